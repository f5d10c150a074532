//! The state of a cluster: what each node says of itself, asked of every node directly ([`fetch`]), and what that amounts to
//! ([`mod@merge`], pure); what trouble with a check means and asks for ([`advice`]). What each finds when it is examined is in
//! [`doctor`].
pub mod advice;

pub mod fetch;

pub mod doctor;

pub mod merge;

pub use fetch::{Answer, gather};
pub use merge::{ClusterStatus, merge};
