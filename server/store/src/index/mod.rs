//! The index: where each record is, and the sorted views. A cache with a checkpoint, never the truth.
//!
//! One ordered space of bytes keys per data directory (layouts in [`keys`]), behind the small trait [`Index`], so that sled
//! stays in one module and tests run on memory. Changes arrive as `Delta`s in the order of the log; one thread applies
//! them in atomic batches, each with the checkpoint and the per-segment counters that belong to it, so that the index is
//! always the image of a prefix of the log, and the counters tell if it is not (rule 18). Only deltas of *durable* records
//! are applied, so that the index never knows of a record that a power cut can take back.
pub mod keys;
pub mod mem;
pub mod overlay;
pub mod sled;

use std::{fmt, path::Path, sync::Arc};

/// The index is unusable: it will be set aside and rebuilt.
#[derive(Debug, Clone, thiserror::Error)]
#[error("index: {0}")]
pub struct IndexError(pub String);

/// One change: a key, and its new value or `None` to delete it.
pub type Op = (Vec<u8>, Option<Vec<u8>>);

/// Visits one row; `false` stops.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// An ordered map from bytes to bytes that survives restarts, more or less.
pub trait Index: Send + Sync + fmt::Debug {
    /// One value.
    ///
    /// # Errors
    /// If the index is unusable.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
    /// Rows with `from <= key < to`, ascending, until the visitor has enough.
    ///
    /// # Errors
    /// If the index is unusable.
    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), IndexError>;
    /// Applies changes, all or none even after a crash. Only ever called by one thread.
    ///
    /// # Errors
    /// If the index is unusable.
    fn apply(&self, ops: &[Op]) -> Result<(), IndexError>;
    /// Makes what was applied durable. Blocking.
    ///
    /// # Errors
    /// If the index is unusable.
    fn flush(&self) -> Result<(), IndexError>;
    /// Bytes on disk.
    fn bytes_on_disk(&self) -> u64;
}

/// Opens indexes: one per data directory.
pub trait IndexFactory: Send + Sync + fmt::Debug {
    /// Opens the index under `directory`, or makes an empty one.
    ///
    /// # Errors
    /// If what is there is unusable.
    fn open(&self, directory: &Path) -> Result<Arc<dyn Index>, IndexError>;
    /// Sets what is there aside and makes an empty one. The old one may still be open for readers.
    ///
    /// # Errors
    /// If that fails too: then the directory cannot be used.
    fn replace(&self, directory: &Path) -> Result<Arc<dyn Index>, IndexError>;
}
