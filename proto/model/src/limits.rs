//! Every bound of the model in one place, each with its reason.
use std::time::Duration;

/// Objects are cut into pieces of this many bytes (the last may be shorter). 1 MiB keeps an index of 10 TB at 10 million
/// entries, fits one message, and costs a quarter of a millisecond to verify. It is part of the format: see
/// [`crate::record::Chunker`].
pub const CHUNK_BYTES: usize = 1 << 20;
/// Content up to this size is kept inside the version record: one record, one fsync, one round trip.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// A record's body is at most this long, so that one fits a message and a permit. A manifest of this size names some
/// 58,000 chunks; larger objects get a tree.
pub const RECORD_BYTES_MAX: usize = 2 << 20;
/// Chunk references per manifest record; larger objects use several manifests, listed in the version.
pub const MANIFEST_CHUNKS_MAX: usize = 32_768;
/// Manifests per version: with the above, an object is at most 16 TiB.
pub const MANIFESTS_MAX: usize = 512;
/// S3's limit.
pub const KEY_BYTES_MAX: usize = 1024;
/// S3's limits for bucket names, in characters.
pub const BUCKET_NAME_CHARS: std::ops::RangeInclusive<usize> = 3..=63;
/// S3 allows 2 KiB of user metadata; content type and the like come on top.
pub const METADATA_BYTES_MAX: usize = 8 << 10;
/// Slices of the hash space that are placed together.
pub const PARTITIONS_DEFAULT: u32 = 8192;
/// A bucket's versions are spread over this many shards by the hash of their key.
pub const SHARDS_DEFAULT: u16 = 16;
/// Stamps further ahead than this are not followed, and a node further off refuses writes.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// An existing copy counts for deduplication if it was verified this recently, else it is re-hashed first (rule 6).
pub const VERIFIED_RECENTLY: Duration = Duration::from_secs(24 * 3600);
/// Every byte is re-hashed within this time; a copy not read for longer is no proof (rule 25).
pub const SCRUB_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);
/// A node that answered no audit for this long proves nothing (rule 25).
pub const AUDIT_WITHIN: Duration = Duration::from_secs(60);
/// A prepared version that nobody could prove is discarded after this time.
pub const UPLOAD_GRACE: Duration = Duration::from_secs(24 * 3600);
/// A layout may be this large (rule 22).
pub const LAYOUT_BYTES_MAX: usize = 16 << 20;
/// A configuration file may be this large; what grows past it is refused, never half-read.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Nodes a layout may name: holders are kept as a set of 64-bit words, and plans are for 100 nodes.
pub const NODES_MAX: usize = 256;
/// Sites a layout may name: the overlap of reads and writes is decided by search over sites.
pub const SITES_MAX: usize = 64;
/// Distinct node sets per node that an assignment may use (rule 22): few sets mean that few combinations of failures lose something.
pub const SETS_PER_NODE_MAX: usize = 4;
/// Partitions a layout may have: a set is named by 16 bits.
pub const PARTITIONS_MAX: u32 = 1 << 16;
