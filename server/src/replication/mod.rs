//! Copies on other nodes: how records get there, how they are read back, and how it is known that they are there.
//!
//! Reading order: the sending half ([`lane`], [`send`]) and the receiving half ([`receive`]); reading from whoever has a
//! good copy ([`fetch`]); what is known of the others ([`ledger`]) and how it is found out and mended ([`reconcile`],
//! [`audit`]); how fast that may go ([`rebalance`]), and when a copy that is not assigned any more may go ([`release`]); what still has to reach whom ([`outbox`]); and the word that versions are at their level ([`settlements`]).
pub mod lane;

pub mod send;

pub mod receive;

pub mod fetch;

pub mod ledger;

pub mod reconcile;

pub mod rebalance;

pub mod release;

pub mod outbox;

pub mod audit;

pub mod settlements;
