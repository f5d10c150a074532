//! Every bound of the store in one place, each with its reason.
use std::time::Duration;

/// Segments are sealed at this size unless told otherwise: large enough that footers and file handles are few, small
/// enough that compaction moves little at a time and that a restart scans the active one in a fraction of a second.
pub const SEGMENT_BYTES_DEFAULT: u64 = 256 << 20;
/// The least segment size that may be asked for (tests use it): room for a header and some records.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// The greatest: offsets are kept in units of eight bytes in 32 bits, with room to spare for one last record.
pub const SEGMENT_BYTES_MAX: u64 = 8 << 30;
/// A segment is sealed early at this many records: what its footer will say is kept in memory until then, some 200 bytes
/// each.
pub const SEGMENT_RECORDS_MAX: usize = 1 << 17;
/// A body may be this long; the same as the model's bound, checked here because a length read from a disk is not trusted.
pub const BODY_BYTES_MAX: usize = afar_model::limits::RECORD_BYTES_MAX;
/// A footer may be this long: [`SEGMENT_RECORDS_MAX`] entries with keys of the greatest length fit.
pub const FOOTER_BYTES_MAX: usize = 256 << 20;
/// Index cache, over all directories: sled's memory is about 1.4 times this.
pub const INDEX_CACHE_BYTES_DEFAULT: u64 = 256 << 20;
/// Bodies that may wait for the writers: a second of a fast disk's work is more than this, so more would only add latency.
pub const QUEUE_BYTES_DEFAULT: usize = 64 << 20;
/// One write call carries at most this much, so that a small append never waits long behind a large one.
pub const WRITE_BATCH_BYTES_MAX: usize = 4 << 20;
/// And at most this many records: the kernel takes 1,024 pieces per call, and a record has up to three.
pub const WRITE_BATCH_RECORDS_MAX: usize = 1024;
/// Writeback is started every so many bytes, so that the `fdatasync` at the end of a large upload finds little to do.
pub const WRITEBACK_BYTES: u64 = 8 << 20;
/// Space is allocated ahead in steps of this: fewer extents, and a full disk shows when writing, not when syncing.
pub const ALLOCATE_BYTES: u64 = 16 << 20;
/// Free space is asked for at most this often, or after [`WRITEBACK_BYTES`].
pub const SPACE_CHECK_EVERY: Duration = Duration::from_millis(200);
/// What is written without anybody waiting for its sync (settled marks, paid debts) is synced within this time.
pub const LAZY_SYNC_EVERY: Duration = Duration::from_secs(1);
/// Index entries that are in the overlay but not yet in the index, per directory; writers wait beyond it. Some 300 bytes each.
pub const OVERLAY_ENTRIES_MAX: usize = 1 << 17;
/// While the index is being rebuilt nothing leaves the overlay, so it may hold more before writers wait.
pub const OVERLAY_ENTRIES_REBUILD_MAX: usize = 1 << 20;
/// Index operations applied in one atomic batch: readers of the index wait while one is applied, some milliseconds.
pub const INDEX_BATCH_OPS: usize = 512;
/// The index is flushed this often: what it lacks at a crash is replayed from the log.
pub const INDEX_FLUSH_EVERY: Duration = Duration::from_secs(4);
/// Opening the index may take this long before it is given up and rebuilt.
pub const INDEX_OPEN_MAX: Duration = Duration::from_secs(120);
/// Records known to be corrupt that are remembered one by one; beyond it only their number.
pub const BAD_RECORDS_MAX: usize = 10_000;
/// Damaged ranges that are remembered one by one; a disk with more is not worth a longer list.
pub const DAMAGED_RANGES_MAX: usize = 1000;
/// Records re-hashed one by one in this run that are remembered as verified.
pub const VERIFIED_RECORDS_MAX: usize = 1 << 16;
/// Segment files kept open for reading.
pub const OPEN_SEGMENTS_MAX: usize = 256;
/// Duplicates that wait for their existing copy to be re-hashed.
pub const VERIFY_QUEUE_MAX: usize = 4096;
/// Versions per key in one listing; the newest ones. `versions()` gives all, page by page.
pub const LIST_VERSIONS_PER_KEY_MAX: usize = 64;
/// Settled marks kept in memory until they are logged; one that is dropped is only proved again by the next reader.
pub const PENDING_SETTLED_MAX: usize = 1 << 16;
/// Items in one local record (tombstones, settled marks, debts): keeps it far below [`BODY_BYTES_MAX`].
pub const LOCAL_ITEMS_MAX: usize = 2048;
/// A node's name in the outbox: longer than any that a certificate can carry, short enough for a key.
pub const NODE_NAME_BYTES_MAX: usize = 255;
/// Bits of memory per record in the filter of what is certainly not here: one or two wrong answers in a hundred.
pub const FILTER_BITS_PER_RECORD: u64 = 10;
/// The filter begins with room for so many records (80 KiB) and doubles.
pub const FILTER_RECORDS_MIN: u64 = 1 << 16;
/// Footer entries that are read into the filter at a time.
pub const FILTER_READ: usize = 4096;
/// Footer entries that one call of `check_index` compares with the index.
pub const CHECK_SAMPLE: usize = 2048;
/// A segment is worth compacting when at most this share of it is live, in percent: copying costs less than it frees.
pub const COMPACT_LIVE_PERCENT_MAX: u64 = 50;
/// Bytes that compaction copies between two waits for the disk.
pub const COMPACT_BATCH_BYTES: usize = 4 << 20;
/// How often a read looks the record up again after its segment went away under it.
pub const READ_ATTEMPTS_MAX: usize = 4;
/// Verification times are remembered per segment at this granularity.
pub const VERIFIED_GRAIN: Duration = Duration::from_secs(60);
/// Where a device cannot read, so many bytes are left out at a time: a page, which is what file systems read at least.
pub const READ_AROUND_BYTES: u64 = 4096;
/// Bytes read at a time when a segment is scanned.
pub const SCAN_BYTES: usize = 1 << 20;
