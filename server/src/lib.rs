//! afard, the node: a library with a thin binary on it.
//!
//! A node joins three things that know nothing of each other: the log on its disks (`afar-store`), the decisions that are
//! made from arguments alone (`afar-model`), and the wire (`afar-proto`). This crate does the wiring and owns the I/O.
//!
//! Reading order: what a node is told ([`config`]) and what it is made of ([`node`]); who it is and who the others are
//! ([`cluster`]); how data get onto enough nodes ([`objects`], [`replication`]) and stay there ([`health`]); and who may ask
//! for them ([`gateways`]).
//!
//! What must never happen here: a panic from what a peer, a client, a disk or a file said; an acknowledgement from anything
//! but a [`afar_store::Durable`]; a task that nobody waits for at shutdown ([`lifecycle`]); a look at the wall clock past
//! [`clock`].
pub mod config;

pub mod node;

pub mod cluster;

pub mod reliance;

pub mod objects;

pub mod replication;

pub mod health;

pub mod gateways;

pub mod inspect;

pub mod clock;

pub mod budget;

pub mod pace;

pub mod files;

pub mod lifecycle;

pub mod limits;

#[cfg(test)]
mod testing;
