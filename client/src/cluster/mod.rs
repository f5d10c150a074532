//! How a cluster begins: a certificate authority ([`authority`]), a folder per node with its configuration
//! ([`config_file`]), all of it checked by the model before a byte is written and put in place at once ([`init`]).
//!
//! A cluster of an earlier version gets what a new one has by [`adoption`]. How a cluster changes: [`operator`]; how its authority is replaced: [`rotation`], and what nodes show of that: [`handshake`].
//!
//! The authority's key never lies in a node's folder, and nothing here starts a node.
pub mod adoption;

pub mod authority;

pub mod config_file;

pub mod durable;

pub mod handshake;

pub mod init;

pub mod operator;

pub mod rotation;

pub use init::{AdminKey, Blueprint, NodePlan, create};
