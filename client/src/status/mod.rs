//! The state of a cluster: what each node says of itself, asked of every node directly ([`fetch`]), and what that amounts to
//! ([`mod@merge`], pure). What each finds when it is examined is in [`doctor`].
pub mod fetch;

pub mod doctor;

pub mod merge;

pub use fetch::{Answer, gather};
pub use merge::{ClusterStatus, merge};
