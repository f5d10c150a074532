//! Who this node is, who the others are, and whether they can be relied on.
//!
//! Reading order: who we are ([`identity`]) and whom we believe ([`trust`]), what a heartbeat changes ([`pulse`], pure), what is remembered of a peer across
//! restarts ([`memory`], pure but for its file), whose clock is off ([`skew`], pure), the connections and the task that
//! keeps them ([`peers`]), what the cluster thinks of whom ([`membership`]), which layouts are open ([`layouts`]) and what closing
//! the older ones waits for ([`transition`]), how they travel ([`exchange`]), and who may ask for anything ([`keyring`]).
pub mod identity;

pub mod trust;

pub mod pulse;

pub mod replaced;

pub mod memory;

pub mod skew;

pub mod layouts;

pub mod transition;

pub mod exchange;

pub mod connect;

pub mod peers;

pub mod membership;

pub mod keyring;

#[cfg(test)]
pub(crate) mod testing;
