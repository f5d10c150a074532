//! afar's log: everything that must survive is an immutable record in an append-only segment file, named by the BLAKE3
//! digest of its body. This crate keeps such records on local disks and says truthfully which of them would outlive a
//! power cut. It knows nothing of the network, of placement or of policies.
//!
//! ```text
//! append ──► writer thread ──► segments/…afar ──► sync thread ──► Durable        (these threads once per directory)
//!                 │ overlay (visible at once)          │
//!                 └───────────────► index thread ◄─────┘ only what is durable ──► index (sled), a cache
//! ```
//!
//! What it promises (numbers are those of the consistency rules):
//! * Only the group commit makes a [`Durable`]; each holds a record that a finished `fdatasync` covered (16).
//! * Bytes are hashed on every read; what does not match its name is quarantined and never served, nor counted as "already
//!   there" (6, 17).
//! * The index may be deleted, stale, garbled or lie: it is checked against the segments and rebuilt from them (18).
//! * A full disk refuses cleanly, with room kept for removals and compaction (20); a failed sync makes its directory
//!   read-only at once (16); a missing disk is a loss that is reported, never an empty directory made anew (19).
//!
//! What is deliberately absent: no retry of a failed sync, no in-place change of a record, no `unsafe`, no `mmap`.
//!
//! Reading order: the words (`types`), the bytes ([`mod@format`]), one file of them (`segment`, `footer`), one disk of those
//! (`identity`, `open`, `recovery`, `directory`), how it grows (`writer`, `commit`), what is known of it (`ledger`, `index`,
//! `indexer`, `filter`, `views`, `outbox`), what keeps it healthy (`compaction`, `scrub`), and the door to all of it ([`Store`]).
mod types;
pub use types::*;

pub mod format;

mod segment;

mod footer;

mod identity;
pub use identity::follows_layouts;

mod open;

mod recovery;

mod directory;

mod writer;

mod commit;
pub use commit::{Durable, Written};

mod ledger;

pub mod index;

mod kv;

mod filter;

mod indexer;

mod views;

mod outbox;

mod compaction;

mod scrub;

mod store;
pub use store::Store;

pub mod inspect;

pub mod salvage;

pub mod disk;

#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub mod limits;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
