//! The door to the log: everything that the node asks of its disks goes through [`Store`].
use crate::types::*;
use afar_model::{
    hlc::Stamp,
    id::{BootId, BucketId, DirectoryId, Incarnation, RecordId},
    record::{Record, RecordKey, RecordKind, VersionEntry},
};
use std::{sync::Arc, time::Duration};

/// A node's log. Cheap to clone; every clone is the same store.
#[derive(Debug, Clone)]
pub struct Store {
    _inner: Arc<()>,
}

#[allow(missing_docs, clippy::unused_async, unused_variables)]
impl Store {
    /// Opens the directories, recovers what a crash left, and starts serving. Blocking: up to the time that scanning each
    /// directory's active segment takes; an index that must be rebuilt is rebuilt in the background.
    ///
    /// # Errors
    /// If a directory belongs to somebody else, or none can be used. A single failed disk is no error: see [`Opened`].
    pub fn open(options: Options) -> Result<(Self, Opened), OpenError> {
        unimplemented!()
    }

    /// Appends records: placed and written, but not durable. In the order of `records`. Cancel-safe in that a dropped future
    /// leaves the records appended or not, never torn.
    pub async fn append(&self, class: AppendClass, records: Vec<Record>) -> Result<Vec<Written>, AppendError> {
        unimplemented!()
    }

    /// Makes what was written durable: one `fdatasync` per directory involved, shared with whoever else waits.
    pub async fn sync(&self, written: &[Written]) -> Result<Vec<Durable>, SyncFailed> {
        unimplemented!()
    }

    /// [`Store::append`] and [`Store::sync`] in one trip.
    pub async fn commit(&self, class: AppendClass, records: Vec<Record>) -> Result<Vec<Durable>, CommitError> {
        unimplemented!()
    }

    /// Reads and verifies a record. Blocking.
    pub fn get(&self, key: &RecordKey) -> Result<Option<Found>, ReadError> {
        unimplemented!()
    }

    /// Whether a verified copy is here (rule 6): verified within `max_age` and its file unchanged since, else re-hashed
    /// now. Blocking.
    pub fn presence(&self, key: &RecordKey, max_age: Duration) -> Result<bool, ReadError> {
        unimplemented!()
    }

    /// Whether the index knows the record. No evidence of possession.
    pub fn holds(&self, key: &RecordKey) -> bool {
        unimplemented!()
    }

    /// The versions of a key, newest first.
    pub fn versions(&self, bucket: &BucketId, key: &str, limit: usize) -> Result<Vec<VersionEntry>, NotReady> {
        unimplemented!()
    }

    /// Keys ascending (byte order), each with its versions newest first, at most
    /// [`crate::limits::LIST_VERSIONS_PER_KEY_MAX`] each.
    pub fn list(&self, bucket: &BucketId, from: &ListFrom, limit: usize) -> Result<Vec<(String, Vec<VersionEntry>)>, NotReady> {
        unimplemented!()
    }

    /// Records by id, ascending by (id, bucket), of the kinds given (empty: all).
    pub fn ids(&self, range: IdRange, after: Option<RecordKey>, kinds: &[RecordKind], limit: usize) -> Result<Vec<IdEntry>, NotReady> {
        unimplemented!()
    }

    /// A walk over all versions of all buckets.
    pub fn version_ids(&self, after: Option<&VersionCursor>, limit: usize) -> Result<Vec<VersionRow>, NotReady> {
        unimplemented!()
    }

    /// Every record of kind [`RecordKind::Setting`], verified. Works while the views are being rebuilt. Blocking.
    pub fn settings(&self) -> Vec<Record> {
        unimplemented!()
    }

    /// Marks versions as known to be at their bucket's level. Visible at once; logged within about a second.
    pub fn settle(&self, versions: Vec<(BucketId, String, Stamp, RecordId)>) {
        unimplemented!()
    }

    /// Removes records from this node, durably. What is not here is no error.
    pub async fn remove(&self, keys: Vec<RecordKey>, why: Removal) -> Result<(), AppendError> {
        unimplemented!()
    }

    /// Notes that records have to reach other nodes, durably.
    pub async fn owe(&self, items: Vec<Owed>) -> Result<(), AppendError> {
        unimplemented!()
    }

    /// Notes that they have. Logged within about a second: after a crash a debt may be paid twice.
    pub fn pay(&self, to: &str, keys: Vec<RecordKey>) {
        unimplemented!()
    }

    /// What is owed, by node and then oldest first; `after` is the last item of the page before.
    pub fn owed(&self, to: Option<&str>, after: Option<&Owed>, limit: usize) -> Result<Vec<Owed>, NotReady> {
        unimplemented!()
    }

    /// What is owed to whom.
    pub fn owed_summary(&self) -> Result<Vec<OwedSummary>, NotReady> {
        unimplemented!()
    }

    /// The end of each directory's log (rule 19: it never goes backwards).
    pub fn positions(&self) -> Vec<(DirectoryId, Position)> {
        unimplemented!()
    }

    /// The greatest version stamp in the log: the clock restarts from it (rule 4).
    pub fn newest_stamp_seen(&self) -> Stamp {
        unimplemented!()
    }

    /// Whether listings are complete; else they answer [`NotReady`].
    pub fn views_ready(&self) -> bool {
        unimplemented!()
    }

    /// This node's incarnation.
    pub fn incarnation(&self) -> Incarnation {
        unimplemented!()
    }

    /// This run.
    pub fn boot(&self) -> BootId {
        unimplemented!()
    }

    /// How full the node is, and what its log did.
    pub fn usage(&self) -> Usage {
        unimplemented!()
    }

    /// What is known to be lost or damaged.
    pub fn losses(&self) -> Losses {
        unimplemented!()
    }

    /// Compares index and segments (rule 18); to be called every 30 s, and before anything destructive. Blocking.
    pub fn check_index(&self) -> IndexCheck {
        unimplemented!()
    }

    /// Empties and deletes the segment that is most worth it, if any. Blocking. Not to be called under the latch (rule 10).
    pub fn compact_step(&self) -> Result<CompactStep, AppendError> {
        unimplemented!()
    }

    /// Re-reads and hashes the next `budget_bytes` of the sealed segments that were verified longest ago. Blocking.
    pub fn scrub_step(&self, budget_bytes: u64) -> ScrubStep {
        unimplemented!()
    }

    /// When the least recently verified segment was verified (or written and synced); `None` if nothing is sealed.
    pub fn oldest_unverified(&self) -> Option<afar_model::units::UnixMillis> {
        unimplemented!()
    }

    /// Syncs, flushes the index and stops. Blocking. Later calls on other clones fail with `Closed`.
    pub fn close(self) {
        unimplemented!()
    }
}
