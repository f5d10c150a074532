//! Objects: what clients put, get, list and remove, in terms of records on nodes.
//!
//! Reading order: which buckets there are ([`buckets`]), where their records go ([`targets`], pure), how a version becomes
//! current ([`commit`]), how it is found again ([`versions`]), who may make a key ([`claims`]), the verbs ([`put`], [`read`], [`list`], [`resolve`],
//! [`remove`], [`settings`]), and what can go wrong ([`error`]).
pub mod buckets;

pub mod targets;

pub mod commit;

pub mod holders;

pub mod versions;

pub mod claims;

pub mod put;

pub mod read;

pub mod list;

pub mod resolve;

pub mod remove;

pub mod settings;

pub mod error;

pub use error::ObjectError;
