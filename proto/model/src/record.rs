//! What must survive: immutable records, each named by the BLAKE3 digest of its body.
//!
//! A body begins with a format byte, so that an unknown future format is refused with a clear message instead of being
//! misread. What follows is the `postcard` encoding of the structures below, and, in a version that carries its content,
//! the content itself, uncopied. A body is never re-encoded: it travels and rests as the bytes that were hashed first.
use crate::{
    hlc::Stamp,
    id::{BucketId, ObjectId, RecordId, UploadId},
    limits,
    policy::Policy,
    units::UnixMillis,
};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// What a record is. The numbers are on disk and on the wire: they may be added to, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum RecordKind {
    /// A piece of an object: raw bytes, no format byte, so that its id is the digest of its content.
    Chunk = 1,
    /// An ordered list of chunks.
    Manifest = 2,
    /// One immutable state of a key: an object or a delete marker.
    Version = 3,
    /// What every node must know: a bucket, an access key, or the end of one.
    Setting = 4,
}

impl RecordKind {
    /// From its number; `None` for one that this program does not know.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Chunk),
            2 => Some(Self::Manifest),
            3 => Some(Self::Version),
            4 => Some(Self::Setting),
            _ => None,
        }
    }
}

/// A record's name. Deduplication never crosses a bucket, so the bucket is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKey {
    /// The bucket that it belongs to.
    pub bucket: BucketId,
    /// The digest of its body.
    pub id: RecordId,
}

/// A record in memory, its id computed from its body and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    kind: RecordKind,
    key: RecordKey,
    body: Bytes,
}

impl Record {
    /// Hashes the body: the only way to a `Record`, so that one with a wrong id cannot exist.
    pub fn new(kind: RecordKind, bucket: BucketId, body: Bytes) -> Self {
        Self { kind, key: RecordKey { bucket, id: RecordId::of(&body) }, body }
    }

    /// What it is.
    pub const fn kind(&self) -> RecordKind {
        self.kind
    }

    /// Its name.
    pub const fn key(&self) -> RecordKey {
        self.key
    }

    /// The digest of its body.
    pub const fn id(&self) -> RecordId {
        self.key.id
    }

    /// Its bytes.
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// Gives up the bytes.
    pub fn into_body(self) -> Bytes {
        self.body
    }
}

/// Why a body is not what its kind says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its own header.
    #[error("the body ends too early")]
    Truncated,
    /// Made by a later program.
    #[error("format {0} is not known to this program: upgrade it")]
    UnknownFormat(u8),
    /// Not what the encoder writes.
    #[error("the body is malformed: {0}")]
    Malformed(String),
    /// Something in it is out of its range.
    #[error("{0}")]
    OutOfRange(String),
}

const FORMAT_1: u8 = 1;

fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut body = vec![FORMAT_1];
    // Serialising our own plain structures into memory cannot fail; were it to, an empty body decodes as `Truncated`.
    body.extend(postcard::to_stdvec(value).unwrap_or_default());
    body.into()
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    match body.split_first() {
        None => Err(DecodeError::Truncated),
        Some((&FORMAT_1, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(DecodeError::Malformed(format!("{} bytes left over", rest.len()))),
            Err(error) => Err(DecodeError::Malformed(error.to_string())),
        },
        Some((&format, _)) => Err(DecodeError::UnknownFormat(format)),
    }
}

/// How an object was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chunker {
    /// Every chunk has [`limits::CHUNK_BYTES`] bytes but the last.
    Fixed1MiB,
}

/// One piece of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    /// The chunk's record.
    pub id: RecordId,
    /// Its length in bytes: 1 to [`limits::CHUNK_BYTES`].
    pub length: u32,
}

/// An ordered list of chunks; its record is of kind [`RecordKind::Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// In order of the object's bytes; at most [`limits::MANIFEST_CHUNKS_MAX`].
    pub chunks: Vec<ChunkRef>,
}

impl Manifest {
    /// The record's body.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// From a record's body.
    ///
    /// # Errors
    /// If the body is not a manifest, or a length in it is out of range.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let manifest: Self = decode(body)?;
        check_chunks(&manifest.chunks)?;
        Ok(manifest)
    }
}

fn check_chunks(chunks: &[ChunkRef]) -> Result<(), DecodeError> {
    if chunks.len() > limits::MANIFEST_CHUNKS_MAX {
        return Err(DecodeError::OutOfRange(format!("{} chunks in one list", chunks.len())));
    }
    match chunks.iter().find(|chunk| chunk.length == 0 || chunk.length as usize > limits::CHUNK_BYTES) {
        Some(chunk) => Err(DecodeError::OutOfRange(format!("a chunk of {} bytes", chunk.length))),
        None => Ok(()),
    }
}

/// Where a version's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// In the version record itself, after its description.
    Inline,
    /// In these chunks, few enough to be named here.
    Chunks(Vec<ChunkRef>),
    /// In the chunks that these manifest records name, in order.
    Manifests(Vec<RecordId>),
}

/// A version's content names at most this many chunks itself; more go into manifests.
pub const DIRECT_CHUNKS_MAX: usize = 256;

/// What a version says about its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// The key holds nothing from here on; earlier versions stay recoverable.
    DeleteMarker,
    /// The key holds this object.
    Object {
        /// The digest of the whole content.
        id: ObjectId,
        /// Its length in bytes.
        size: u64,
        /// Where the bytes are.
        data: Data,
        /// How they were cut.
        chunker: Chunker,
    },
}

/// One immutable state of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The bucket that the key is in.
    pub bucket: BucketId,
    /// The key, 1 to [`limits::KEY_BYTES_MAX`] bytes of UTF-8 without NUL.
    pub key: String,
    /// Its place in the order of the key's versions.
    pub stamp: Stamp,
    /// The put that made it (rule 5).
    pub upload: UploadId,
    /// What the key holds.
    pub content: Content,
    /// The user's own, and headers such as `content-type`.
    pub metadata: BTreeMap<String, String>,
}

/// A version as read: its description, and its content where that is inline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedVersion {
    /// The description.
    pub version: Version,
    /// The content, if it is [`Data::Inline`]; else empty.
    pub inline: Bytes,
}

const VERSION_HEADER: usize = 5; // format byte, then the description's length as u32 little-endian

impl Version {
    /// The record's body: format byte, length of the description, description, inline content.
    pub fn encode(&self, inline: &[u8]) -> Bytes {
        let description = postcard::to_stdvec(self).unwrap_or_default(); // see `encode`
        let mut body = BytesMut::with_capacity(VERSION_HEADER + description.len() + inline.len());
        body.put_u8(FORMAT_1);
        body.put_u32_le(description.len() as u32);
        body.put_slice(&description);
        body.put_slice(inline);
        body.freeze()
    }

    /// From a record's body; inline content shares its memory.
    ///
    /// # Errors
    /// If the body is not a version, or something in it is out of range.
    pub fn decode(body: &Bytes) -> Result<DecodedVersion, DecodeError> {
        let (version, offset) = Self::decode_description(body)?;
        let inline = body.slice(offset..);
        match &version.content {
            Content::Object { size, data: Data::Inline, .. } if inline.len() as u64 != *size => {
                Err(DecodeError::OutOfRange(format!("{} bytes inline, {size} declared", inline.len())))
            }
            Content::Object { data: Data::Inline, .. } => Ok(DecodedVersion { version, inline }),
            _ if !inline.is_empty() => Err(DecodeError::Malformed(format!("{} bytes left over", inline.len()))),
            _ => Ok(DecodedVersion { version, inline }),
        }
    }

    /// Only the description, and where the inline content begins: for those who index a version without its content.
    ///
    /// # Errors
    /// As [`Version::decode`].
    pub fn decode_description(body: &[u8]) -> Result<(Self, usize), DecodeError> {
        let (header, rest) = body.split_at_checked(VERSION_HEADER).ok_or(DecodeError::Truncated)?;
        let &[format, a, b, c, d] = header else { return Err(DecodeError::Truncated) };
        if format != FORMAT_1 {
            return Err(DecodeError::UnknownFormat(format));
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let description = rest.get(..length).ok_or(DecodeError::Truncated)?;
        let version: Self = match postcard::take_from_bytes(description) {
            Ok((version, [])) => version,
            Ok((_, rest)) => return Err(DecodeError::Malformed(format!("{} bytes left over", rest.len()))),
            Err(error) => return Err(DecodeError::Malformed(error.to_string())),
        };
        version.check()?;
        Ok((version, VERSION_HEADER + length))
    }

    fn check(&self) -> Result<(), DecodeError> {
        check_key(&self.key).map_err(|error| DecodeError::OutOfRange(error.to_string()))?;
        match &self.content {
            Content::DeleteMarker => Ok(()),
            Content::Object { size, data, .. } => match data {
                Data::Inline if *size > limits::INLINE_BYTES_MAX as u64 => Err(DecodeError::OutOfRange(format!("{size} bytes inline"))),
                Data::Inline => Ok(()),
                Data::Chunks(chunks) => {
                    check_chunks(chunks)?;
                    let sum: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
                    if sum == *size {
                        Ok(())
                    } else {
                        Err(DecodeError::OutOfRange(format!("chunks add up to {sum} bytes, {size} declared")))
                    }
                }
                Data::Manifests(manifests) if manifests.len() > limits::MANIFESTS_MAX => {
                    Err(DecodeError::OutOfRange(format!("{} manifests", manifests.len())))
                }
                Data::Manifests(_) => Ok(()),
            },
        }
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("the key is empty")]
    Empty,
    /// Longer than [`limits::KEY_BYTES_MAX`].
    #[error("the key has {0} bytes, the most is {max}", max = limits::KEY_BYTES_MAX)]
    TooLong(usize),
    /// Contains NUL.
    #[error("the key contains a NUL character")]
    Nul,
}

/// Whether a key can be used: 1 to [`limits::KEY_BYTES_MAX`] bytes of UTF-8 without NUL.
///
/// # Errors
/// What is wrong with it.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    match key.len() {
        0 => Err(KeyError::Empty),
        length if length > limits::KEY_BYTES_MAX => Err(KeyError::TooLong(length)),
        _ if key.contains('\0') => Err(KeyError::Nul),
        _ => Ok(()),
    }
}

/// Whether a bucket can have this name: S3's rules, so that a bucket is reachable by every protocol.
///
/// # Errors
/// What a name must look like.
pub fn check_bucket_name(name: &str) -> Result<(), BucketNameError> {
    let characters = name.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let shape = ends(name.bytes().next()) && ends(name.bytes().last()) && !name.contains("..");
    if limits::BUCKET_NAME_CHARS.contains(&name.len()) && characters && shape {
        Ok(())
    } else {
        Err(BucketNameError(name.chars().take(80).collect()))
    }
}

/// A name that no bucket can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be a bucket's name: use 3 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit")]
pub struct BucketNameError(String);

/// What an access key may do in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Right {
    /// Get, list and stat.
    Read,
    /// Put, including over an existing key.
    Write,
    /// Put where there is nothing yet, or the same content again (rule 15).
    Append,
    /// Write delete markers.
    Delete,
    /// Make and remove buckets and keys; implies every other.
    Admin,
}

/// Rights in one bucket, or in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `None`: every bucket.
    pub bucket: Option<BucketId>,
    /// What may be done there.
    pub rights: Vec<Right>,
}

/// What every node must know; its record is of kind [`RecordKind::Setting`] in [`BucketId::SYSTEM`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// A bucket begins. Its id is the id of this record.
    BucketCreated {
        /// What people call it.
        name: String,
        /// How its data are kept.
        policy: Policy,
        /// Over how many shards its versions are spread; fixed for life.
        shards: u16,
        /// When.
        stamp: Stamp,
    },
    /// A bucket ends. Final.
    BucketRemoved {
        /// Which.
        bucket: BucketId,
        /// When.
        stamp: Stamp,
    },
    /// A bucket takes no new versions until this closing is undone: it is being made, or about to be removed.
    BucketClosed {
        /// Which.
        bucket: BucketId,
        /// When; no two closings of a bucket have the same.
        stamp: Stamp,
    },
    /// A closing of a bucket is undone.
    BucketOpened {
        /// Which.
        bucket: BucketId,
        /// Right after the stamp of that closing. Right after none: all that are older are undone (an earlier program's).
        stamp: Stamp,
    },
    /// An access key begins.
    KeyCreated {
        /// Its public part.
        access_key_id: String,
        /// What people call it.
        name: String,
        /// Its secret, encrypted with the cluster's secret.
        sealed_secret: Vec<u8>,
        /// What it may do.
        grants: Vec<Grant>,
        /// When.
        stamp: Stamp,
    },
    /// An access key ends. Final.
    KeyRevoked {
        /// Which.
        access_key_id: String,
        /// When.
        stamp: Stamp,
    },
    /// A bucket is called something else from now on. An `afard` that does not know this refuses the record.
    BucketRenamed {
        /// Which.
        bucket: BucketId,
        /// The new name.
        name: String,
        /// When: the latest counts.
        stamp: Stamp,
    },
}

impl Setting {
    /// The record's body.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// From a record's body.
    ///
    /// # Errors
    /// If the body is not a setting.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        decode(body)
    }

    /// When it was made.
    pub const fn stamp(&self) -> Stamp {
        match self {
            Self::BucketCreated { stamp, .. }
            | Self::BucketClosed { stamp, .. }
            | Self::BucketOpened { stamp, .. }
            | Self::BucketRemoved { stamp, .. }
            | Self::BucketRenamed { stamp, .. }
            | Self::KeyCreated { stamp, .. }
            | Self::KeyRevoked { stamp, .. } => *stamp,
        }
    }
}

/// What the views of a node know of a version without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEntry {
    /// Its place in the order of the key's versions; ties are broken by `id`.
    pub stamp: Stamp,
    /// Its record.
    pub id: RecordId,
    /// The put that made it.
    pub upload: UploadId,
    /// Known to be at its bucket's level; else only prepared (rule 1).
    pub settled: bool,
    /// What the key holds by it: `None` for a delete marker.
    pub object: Option<(ObjectId, u64)>,
    /// Whether the content is inside the record.
    pub inline: bool,
    /// When this node received it (rule 14).
    pub received: UnixMillis,
}

impl VersionEntry {
    /// The order of versions: by stamp, ties by record id (rule 4).
    pub const fn order(&self) -> (Stamp, RecordId) {
        (self.stamp, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(content: Content) -> Version {
        Version {
            bucket: BucketId::SYSTEM,
            key: "a/b".into(),
            stamp: Stamp::from_u64(7),
            upload: UploadId::ZERO,
            content,
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn a_version_round_trips_and_shares_its_inline_content() {
        let content = Content::Object { id: ObjectId::of(b"hello"), size: 5, data: Data::Inline, chunker: Chunker::Fixed1MiB };
        let body = version(content.clone()).encode(b"hello");
        let decoded = Version::decode(&body).unwrap();
        assert_eq!(decoded.version, version(content));
        assert_eq!(&decoded.inline[..], b"hello");
        assert!(body.as_ptr_range().contains(&decoded.inline.as_ptr()));
    }

    #[test]
    fn what_is_no_version_is_refused() {
        let content = Content::Object { id: ObjectId::of(b"hello"), size: 5, data: Data::Inline, chunker: Chunker::Fixed1MiB };
        let body = version(content).encode(b"hello");
        for cut in 0..body.len() {
            assert!(Version::decode(&body.slice(..cut)).is_err(), "cut at {cut}");
        }
        let mut future = body.to_vec();
        future[0] = 9;
        assert_eq!(Version::decode(&future.into()), Err(DecodeError::UnknownFormat(9)));
        let lie = Content::Object {
            id: ObjectId::of(b""),
            size: 2,
            data: Data::Chunks(vec![ChunkRef { id: RecordId::of(b""), length: 1 }]),
            chunker: Chunker::Fixed1MiB,
        };
        assert!(matches!(Version::decode(&version(lie).encode(b"")), Err(DecodeError::OutOfRange(_))));
    }

    #[test]
    fn names() {
        assert!(check_bucket_name("backups-2026").is_ok());
        for bad in ["", "ab", "Abc", "-abc", "abc-", "a..b", "a_b", &"a".repeat(64)] {
            assert!(check_bucket_name(bad).is_err(), "{bad}");
        }
        assert!(check_key("a/ü/\u{1F525}").is_ok());
        assert!(check_key("").is_err() && check_key("a\0b").is_err() && check_key(&"k".repeat(1025)).is_err());
    }
}
