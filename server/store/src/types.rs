//! The words of the store: what callers hand in and get back. No behaviour beyond conversions.
use afar_model::{
    hlc::Stamp,
    id::{BootId, BucketId, DirectoryId, Incarnation, RecordId},
    record::{Record, RecordKey, RecordKind, VersionEntry},
    units::UnixMillis,
};
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

/// Where the time comes from: a function, so that tests can make it up.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// The node's name; a directory that belongs to another node is refused.
    pub node: String,
    /// `None`: what the directories say, or a new one when they are initialised.
    pub incarnation: Option<Incarnation>,
    /// One per disk; at least one.
    pub directories: Vec<PathBuf>,
    /// Where the list of known directories is kept, apart from them (rule 19).
    pub state_dir: PathBuf,
    /// Initialise directories that are missing or empty. Without it a known one that is empty is a failed disk.
    pub init_dirs: bool,
    /// A segment is sealed when it has grown to this many bytes; at least [`crate::limits::SEGMENT_BYTES_MIN`].
    pub segment_bytes: u64,
    /// Memory for the index cache, in bytes, over all directories.
    pub index_cache_bytes: u64,
    /// Bytes of bodies that may wait for the writer, over all directories; appends beyond it wait.
    pub queue_bytes: usize,
    /// Free space that is kept.
    pub reserve: Reserve,
    /// Randomness for new ids.
    pub seed: [u8; 32],
    /// The wall clock.
    pub now: Clock,
}

impl Options {
    /// The usual settings: 256 MiB segments, 256 MiB of index cache, 64 MiB queue, directories not initialised.
    pub fn new(node: impl Into<String>, directories: Vec<PathBuf>, state_dir: impl Into<PathBuf>, seed: [u8; 32], now: Clock) -> Self {
        Self {
            node: node.into(),
            incarnation: None,
            directories,
            state_dir: state_dir.into(),
            init_dirs: false,
            segment_bytes: crate::limits::SEGMENT_BYTES_DEFAULT,
            index_cache_bytes: crate::limits::INDEX_CACHE_BYTES_DEFAULT,
            queue_bytes: crate::limits::QUEUE_BYTES_DEFAULT,
            reserve: Reserve::default(),
            seed,
            now,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("node", &self.node).field("directories", &self.directories).finish_non_exhaustive()
    }
}

/// Free bytes per directory below which a class of writer is refused (rule 20). `None`: from the size of the disk: the
/// greater of two segments and 5 %, but at most a quarter of it, for clients; half of that for repair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Below this, clients' appends are refused.
    pub client: Option<u64>,
    /// Below this, repair and hints are refused as well.
    pub repair: Option<u64>,
}

/// Who writes; decides how far a disk may be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppendClass {
    /// New data: refused first.
    Client,
    /// Copies that restore safety, and hints.
    Repair,
    /// What frees space or keeps the log consistent: served to the last byte.
    Housekeeping,
}

/// A place in a directory's log: greater is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The segment's sequence number.
    pub segment: u64,
    /// Bytes from its start.
    pub offset: u64,
}

/// A record as read and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The record; its id was recomputed from the bytes that were read.
    pub record: Record,
    /// When this node received it.
    pub received: UnixMillis,
}

/// Why a record is removed from this node. On disk: numbers may be added, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Removal {
    /// A version was purged for good, or expired.
    Purged = 1,
    /// No live version needs it (garbage).
    Swept = 2,
    /// The layout assigns it elsewhere, and all holders proved their copies (rule 11).
    Dropped = 3,
    /// A prepared version that nobody could prove (rule 1).
    Discarded = 4,
    /// This copy does not match its name, or cannot be read.
    Quarantined = 5,
}

impl Removal {
    /// From its number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Purged),
            2 => Some(Self::Swept),
            3 => Some(Self::Dropped),
            4 => Some(Self::Discarded),
            5 => Some(Self::Quarantined),
            _ => None,
        }
    }
}

/// A record that still has to reach another node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owed {
    /// Which record.
    pub key: RecordKey,
    /// Its kind.
    pub kind: RecordKind,
    /// The node that has to get it; at most [`crate::limits::NODE_NAME_BYTES_MAX`] bytes, no NUL.
    pub to: String,
    /// Since when.
    pub since: UnixMillis,
    /// Length of its body, for reports.
    pub bytes: u32,
}

/// What is owed to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedSummary {
    /// The node.
    pub to: String,
    /// How many records.
    pub records: u64,
    /// Their bodies' bytes.
    pub bytes: u64,
    /// When the oldest was written: the recovery point.
    pub oldest: UnixMillis,
}

/// Where a listing starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFrom {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only keys greater than this.
    pub after: Option<String>,
    /// Only keys that are this or greater.
    pub from: Option<String>,
}

/// A slice of the id space by the first 32 bits of the id, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// Smallest first four bytes, big-endian.
    pub first: u32,
    /// Greatest first four bytes, big-endian.
    pub last: u32,
}

impl IdRange {
    /// Every id.
    pub const ALL: Self = Self { first: 0, last: u32::MAX };
}

/// One record as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdEntry {
    /// Its name.
    pub key: RecordKey,
    /// Its kind.
    pub kind: RecordKind,
    /// Length of its body in bytes.
    pub length: u32,
}

/// A place in the walk over all versions: buckets ascending, keys ascending, newest version first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionCursor {
    /// The bucket.
    pub bucket: BucketId,
    /// The key.
    pub key: String,
    /// The version's stamp.
    pub stamp: Stamp,
    /// The version's record.
    pub id: RecordId,
}

/// One step of the walk over versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// The bucket.
    pub bucket: BucketId,
    /// The key.
    pub key: String,
    /// The version.
    pub entry: VersionEntry,
    /// Whether its record is here; else it was, and only the note of it is left.
    pub here: bool,
}

impl VersionRow {
    /// Where to continue after this row.
    pub fn cursor(&self) -> VersionCursor {
        VersionCursor { bucket: self.bucket, key: self.key.clone(), stamp: self.entry.stamp, id: self.entry.id }
    }
}

/// What became of one directory at [`crate::Store::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryReport {
    /// As configured, or as remembered from an earlier run.
    pub path: PathBuf,
    /// Its id, where it could be read or is remembered.
    pub id: Option<DirectoryId>,
    /// What was found.
    pub state: DirectoryState,
}

/// The state of one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryState {
    /// Initialised just now.
    Created,
    /// Serving.
    Healthy,
    /// Serving what it holds, taking nothing new: why.
    ReadOnly(String),
    /// A failed disk: why. Its records are gone until it returns.
    Failed(String),
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// This run.
    pub boot: BootId,
    /// Every configured or remembered directory.
    pub directories: Vec<DirectoryReport>,
    /// What is known to be missing or damaged.
    pub losses: Losses,
    /// Directories whose index was missing, unreadable or did not match, and is being rebuilt.
    pub rebuilding: usize,
    /// Records in the log, as far as the segments' footers say: an upper bound on what is live.
    pub records: u64,
}

/// A range of a segment that could not be read, followed by records that could: something may be lost that was
/// acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The directory.
    pub directory: DirectoryId,
    /// The segment.
    pub segment: u64,
    /// First byte.
    pub from: u64,
    /// First byte after.
    pub to: u64,
    /// What was wrong.
    pub why: String,
}

/// What this node knows to have lost, and must be given again before it counts as a full replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Failed directories: path and reason.
    pub directories: Vec<(PathBuf, String)>,
    /// Damaged ranges.
    pub damaged: Vec<DamagedRange>,
    /// Records whose copy here did not match its name and was quarantined, most recent first, bounded by
    /// [`crate::limits::BAD_RECORDS_MAX`].
    pub corrupt: Vec<RecordKey>,
    /// How many were found corrupt since the start.
    pub corrupt_total: u64,
}

impl Losses {
    /// Whether nothing is known to be lost.
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.damaged.is_empty() && self.corrupt_total == 0
    }
}

/// Bytes of live bodies by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindBytes {
    /// Chunks.
    pub chunk: u64,
    /// Manifests.
    pub manifest: u64,
    /// Versions with their inline content.
    pub version: u64,
    /// Settings.
    pub setting: u64,
}

/// One directory in [`Usage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUsage {
    /// Its path.
    pub path: PathBuf,
    /// Its id, unless it failed before that could be read.
    pub id: Option<DirectoryId>,
    /// Its state.
    pub state: DirectoryState,
    /// Size of the file system in bytes.
    pub capacity: u64,
    /// Bytes available to this process.
    pub free: u64,
    /// Bytes of its segments.
    pub segment_bytes: u64,
    /// Its syncs in this run.
    pub syncs: SyncCounts,
    /// What its device could not read in this run.
    pub read_failures: ReadFailures,
}

/// Reads that a device failed: the disk will not last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadFailures {
    /// How many.
    pub count: u64,
    /// What the system said last.
    pub last: String,
}

/// What one directory's group commit did in this run. Only calls of `fdatasync` on segments are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncCounts {
    /// Callers who waited until something was durable: each is one sync call of its own, however many share it.
    pub requests: u64,
    /// Calls of `fdatasync` that at least one of them waited for.
    pub shared: u64,
    /// Calls that nobody waited for: what is written on the side is synced within a second, and before a segment is left.
    pub unasked: u64,
}

impl SyncCounts {
    /// Every call of `fdatasync`.
    pub const fn calls(&self) -> u64 {
        self.shared + self.unasked
    }
}

/// The stamps of the versions in the log, as far as a clock cares: see [`crate::Store::stamps_up_to`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StampsSeen {
    /// The greatest that is not beyond the limit; zero if there is none.
    pub newest: Stamp,
    /// How many versions have a stamp beyond it.
    pub beyond: u64,
}

/// How full the node is and what its log has done in this run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Size of the file systems under the healthy directories, in bytes.
    pub capacity: u64,
    /// Bytes of segments and index.
    pub used: u64,
    /// Bytes available.
    pub free: u64,
    /// Bytes that a client may still append before it is refused (rule 20).
    pub free_for_clients: u64,
    /// Live records.
    pub records: u64,
    /// Live bodies by kind.
    pub bytes_by_kind: KindBytes,
    /// Bytes of the index on disk.
    pub index_bytes: u64,
    /// The index cache's budget.
    pub index_cache_bytes: u64,
    /// Each directory.
    pub directories: Vec<DirectoryUsage>,
    /// Calls of `fdatasync` on segments in this run, by the group commit.
    pub syncs: u64,
    /// Bytes written to segments in this run.
    pub bytes_written: u64,
    /// Whether every view is complete.
    pub views_ready: bool,
    /// 0 to 1: how far the rebuild of the index is; 1 if none is going on.
    pub rebuild_progress: f32,
}

/// What [`crate::Store::check_index`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexCheck {
    /// Whether count and sum agree for every segment of every directory (rule 18).
    pub matches: bool,
    /// Segments compared.
    pub segments: usize,
    /// Records whose index entry was compared with its segment's footer in this call.
    pub sampled: usize,
    /// What did not agree; a rebuild has begun.
    pub mismatches: Vec<String>,
}

/// What one step of compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactStep {
    /// The segment that was emptied and deleted, if any was worth it.
    pub segment: Option<(DirectoryId, u64)>,
    /// Bytes of the deleted file.
    pub freed: u64,
    /// Bytes that were copied out of it.
    pub copied: u64,
    /// Records in it that did not match their names.
    pub quarantined: u64,
}

/// What one step of the scrub did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Bytes read and hashed.
    pub bytes: u64,
    /// Records hashed.
    pub records: u64,
    /// Those that did not match their names and were quarantined.
    pub corrupt: Vec<RecordKey>,
    /// Whether a segment was finished.
    pub finished_segment: bool,
    /// Whether the bytes came from the device (else perhaps from the page cache).
    pub past_cache: bool,
}

/// How old a verification may be: a plain duration, named for readers of signatures.
pub type MaxAge = Duration;

/// Why a store cannot be opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither the options nor the state name a directory.
    #[error("no data directory is configured: name at least one")]
    NoDirectory,
    /// Not initialised, and not told to.
    #[error("{path} holds no afar data and is not known to this node: initialise it with --init-dir, or mount the right disk there")]
    NotInitialised {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to node {found}, this is node {expected}: configure the right directory")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Who it says it belongs to.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// Something is in it that is not ours.
    #[error("{path} is not empty and holds no afar data ({found}): name an empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One thing that is in it.
        found: String,
    },
    /// Another process has it.
    #[error("{path} is in use by another process: stop that first")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// None of the directories can be used.
    #[error("every data directory has failed: {0}")]
    AllFailed(String),
    /// The list of directories cannot be read or written.
    #[error("{path}: {why}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A thread could not be started.
    #[error("start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// Why nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The disk is too full for this class of writer (rule 20).
    #[error("disk full: {free} bytes free, {reserve} are kept in reserve; free space or add a disk")]
    Full {
        /// Free bytes.
        free: u64,
        /// The mark that was reached.
        reserve: u64,
    },
    /// No directory takes writes.
    #[error("read-only: {0}")]
    ReadOnly(String),
    /// A body or name longer than the format allows.
    #[error("{bytes} bytes are more than the {max} that one record may have")]
    TooLarge {
        /// As given.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// Why what was written does not count as durable. It is never retried: write it again, elsewhere if need be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncFailed {
    /// The directory failed a sync, or had failed one before; it is read-only now.
    #[error("sync failed, the directory is read-only: {0}")]
    Directory(String),
    /// The token comes from another run or another store: what it stood for may be gone.
    #[error("written by another run: write it again")]
    AnotherRun,
    /// The file that it was written to is gone.
    #[error("what was written is gone from the disk: write it again")]
    Lost,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// Why a commit failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Nothing was appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Appended, but not durable.
    #[error(transparent)]
    Sync(#[from] SyncFailed),
}

/// Why a record could not be read although it is (or was) here. Ask another replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The copy here does not match its name, or its device cannot read it; it is quarantined.
    #[error("the copy of {key:?} here is corrupt: {why}")]
    Corrupt {
        /// The record.
        key: RecordKey,
        /// What it is: a version that is gone from the views may make absence look real.
        kind: RecordKind,
        /// What was wrong.
        why: String,
    },
    /// The disk did not answer properly, and may the next time.
    #[error("read {key:?}: {why}")]
    Disk {
        /// The record.
        key: RecordKey,
        /// What the system said.
        why: String,
    },
}

/// The views are being rebuilt: nothing may be inferred from them yet.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the index is being rebuilt ({:.0} % done)", self.progress * 100.0)]
pub struct NotReady {
    /// 0 to 1.
    pub progress: f32,
}
