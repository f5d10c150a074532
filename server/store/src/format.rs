//! The bytes on disk. `FORMAT.md` tells the same for people who have only a disk and this page.
//!
//! All integers are little-endian. A segment file is
//!
//! ```text
//! segment header (128) │ record │ record │ … │ [footer record │ trailer (128)]   the last two once it is sealed
//!
//! segment header    0 magic "AFARSEG\n"    8 version u32    12 zero u32    16 incarnation [16]    32 directory [16]
//!                  48 sequence u64    56 created u64 (Unix ms)    64 zero [60]    124 CRC-32C of bytes 0..124
//!
//! record header     0 magic 8F "AFAR" 0D 0A 1A    8 version u8    9 kind u8    10 flags u16    12 body length u32
//!    (96)          16 bucket [32]    48 id [32] = BLAKE3(body)    80 received u64 (Unix ms)    88 zero u32
//!                  92 CRC-32C of bytes 0..92, begun with the CRC-32C of the directory id
//! then              body, zeros up to a multiple of 8
//!
//! trailer           0 magic "AFAREND\n"    8 version u32    12 kinds u32 (bit = kind, local kinds from bit 16)
//!                  16 footer's offset u64    24 footer's length u64 (header, body, padding)    32 records u64
//!                  40 sum of ids [32]    72 greatest version stamp u64    80 zero [44]    124 CRC-32C of bytes 0..124
//! ```
//!
//! The record's CRC begins with its directory's id so that bytes which merely *contain* a record (a segment file that
//! somebody stores as an object) are not taken for one when a damaged region is searched for the next record. A record can
//! be parsed and verified with nothing but its file.
//!
//! Nothing here does I/O, and nothing here trusts a length.
use crate::limits;
use afar_model::{
    hlc::Stamp,
    id::{BucketId, DirectoryId, Incarnation, ObjectId, RecordId, UploadId},
    record::{RecordKey, RecordKind},
    units::UnixMillis,
};
use serde::{Deserialize, Serialize};

/// The version of everything on disk that this program writes.
pub const VERSION: u32 = 1;
/// Length of a segment header.
pub const SEGMENT_HEADER: usize = 128;
/// Length of a record header.
pub const RECORD_HEADER: usize = 96;
/// Length of a trailer.
pub const TRAILER: usize = 128;
/// Records begin at multiples of this.
pub const ALIGN: u64 = 8;
/// What a record begins with. Not text, and contains what text-mode transfers mangle.
pub const RECORD_MAGIC: [u8; 8] = [0x8F, b'A', b'F', b'A', b'R', 0x0D, 0x0A, 0x1A];
const SEGMENT_MAGIC: [u8; 8] = *b"AFARSEG\n";
const TRAILER_MAGIC: [u8; 8] = *b"AFAREND\n";
/// Flag bit reserved for bodies that are encrypted at rest.
pub const FLAG_ENCRYPTED: u16 = 1;

/// What a record in a segment is: one of the model's kinds, or one that never leaves this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A record of the model.
    Public(RecordKind),
    /// Local: records removed from this directory.
    Tombstone,
    /// Local: versions known to be at their level.
    Settled,
    /// Local: records owed to other nodes.
    Owed,
    /// Local: debts that are paid.
    Paid,
    /// Local: the footer of a sealed segment.
    Footer,
}

impl Kind {
    /// Its number on disk.
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Public(kind) => kind as u8,
            Self::Tombstone => 128,
            Self::Settled => 129,
            Self::Owed => 130,
            Self::Paid => 131,
            Self::Footer => 255,
        }
    }

    /// From its number on disk; `None` if a later program wrote it.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            128 => Some(Self::Tombstone),
            129 => Some(Self::Settled),
            130 => Some(Self::Owed),
            131 => Some(Self::Paid),
            255 => Some(Self::Footer),
            _ => match RecordKind::from_u8(number) {
                Some(kind) => Some(Self::Public(kind)),
                None => None,
            },
        }
    }

    /// Its bit in a trailer.
    pub const fn bit(self) -> u32 {
        match self {
            Self::Public(kind) => 1 << (kind as u8 & 15),
            Self::Tombstone => 1 << 16,
            Self::Settled => 1 << 17,
            Self::Owed => 1 << 18,
            Self::Paid => 1 << 19,
            Self::Footer => 1 << 20,
        }
    }

    const fn body_bytes_max(self) -> usize {
        match self {
            Self::Footer => limits::FOOTER_BYTES_MAX,
            _ => limits::BODY_BYTES_MAX,
        }
    }
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    #[error("cut short")]
    Short,
    /// Does not begin with the right magic.
    #[error("no {0} begins here")]
    Magic(&'static str),
    /// The checksum does not match.
    #[error("the checksum of the {0} does not match")]
    Checksum(&'static str),
    /// Made by a later program.
    #[error("{what} {number} is not known to this program: upgrade it")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// Something in it is out of range.
    #[error("{0}")]
    Range(String),
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FormatError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or(FormatError::Short)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, FormatError> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, FormatError> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn put<const N: usize>(into: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(place) = into.get_mut(at..at + N) {
        place.copy_from_slice(&bytes);
    }
}

fn check_crc(bytes: &[u8], covered: usize, salt: u32, what: &'static str) -> Result<(), FormatError> {
    let body = bytes.get(..covered).ok_or(FormatError::Short)?;
    if crc32c::crc32c_append(salt, body) == u32_at(bytes, covered)? { Ok(()) } else { Err(FormatError::Checksum(what)) }
}

/// What a record's CRC begins with in this directory.
pub fn salt(directory: DirectoryId) -> u32 {
    crc32c::crc32c(directory.as_bytes())
}

/// The beginning of a segment file: binds it to its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the node that wrote it.
    pub incarnation: Incarnation,
    /// The directory that it belongs to.
    pub directory: DirectoryId,
    /// Its place in the order of the directory's segments; also its name.
    pub sequence: u64,
    /// When it was begun.
    pub created: UnixMillis,
}

impl SegmentHeader {
    /// Its bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        put(&mut bytes, 0, SEGMENT_MAGIC);
        put(&mut bytes, 8, VERSION.to_le_bytes());
        put(&mut bytes, 16, *self.incarnation.as_bytes());
        put(&mut bytes, 32, *self.directory.as_bytes());
        put(&mut bytes, 48, self.sequence.to_le_bytes());
        put(&mut bytes, 56, self.created.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..124]);
        put(&mut bytes, 124, crc.to_le_bytes());
        bytes
    }

    /// From its bytes.
    ///
    /// # Errors
    /// If they are not a segment header that this program knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if array::<8>(bytes, 0)? != SEGMENT_MAGIC {
            return Err(FormatError::Magic("segment"));
        }
        check_crc(bytes, 124, 0, "segment header")?;
        match u32_at(bytes, 8)? {
            VERSION => {}
            other => return Err(FormatError::Unknown { what: "segment format", number: other.into() }),
        }
        Ok(Self {
            incarnation: Incarnation::from_bytes(array(bytes, 16)?),
            directory: DirectoryId::from_bytes(array(bytes, 32)?),
            sequence: u64_at(bytes, 48)?,
            created: UnixMillis(u64_at(bytes, 56)?),
        })
    }
}

/// The beginning of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: Kind,
    /// Length of its body.
    pub length: u32,
    /// Its name; local records have the system bucket.
    pub key: RecordKey,
    /// When this node received it.
    pub received: UnixMillis,
}

impl RecordHeader {
    /// Its bytes, for a directory with this salt.
    pub fn encode(&self, salt: u32) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        put(&mut bytes, 0, RECORD_MAGIC);
        put(&mut bytes, 8, [VERSION as u8, self.kind.to_u8()]);
        put(&mut bytes, 12, self.length.to_le_bytes());
        put(&mut bytes, 16, *self.key.bucket.as_bytes());
        put(&mut bytes, 48, *self.key.id.as_bytes());
        put(&mut bytes, 80, self.received.0.to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &bytes[..92]);
        put(&mut bytes, 92, crc.to_le_bytes());
        bytes
    }

    /// From its bytes. `salt` as `None` skips the checksum: for the inspector, where the segment header is gone; the body's
    /// hash then decides alone.
    ///
    /// # Errors
    /// If they are not a record header that this program knows.
    pub fn decode(bytes: &[u8], salt: Option<u32>) -> Result<Self, FormatError> {
        if array::<8>(bytes, 0)? != RECORD_MAGIC {
            return Err(FormatError::Magic("record"));
        }
        if let Some(salt) = salt {
            check_crc(bytes, 92, salt, "record header")?;
        }
        let [version, kind] = array(bytes, 8)?;
        if u32::from(version) != VERSION {
            return Err(FormatError::Unknown { what: "record format", number: version.into() });
        }
        let kind = Kind::from_u8(kind).ok_or(FormatError::Unknown { what: "record kind", number: kind.into() })?;
        match u16::from_le_bytes(array(bytes, 10)?) {
            0 => {}
            flags => return Err(FormatError::Unknown { what: "record flags", number: flags.into() }),
        }
        let length = u32_at(bytes, 12)?;
        if length as usize > kind.body_bytes_max() {
            return Err(FormatError::Range(format!("a body of {length} bytes")));
        }
        let key = RecordKey { bucket: BucketId::from_bytes(array(bytes, 16)?), id: RecordId::from_bytes(array(bytes, 48)?) };
        Ok(Self { kind, length, key, received: UnixMillis(u64_at(bytes, 80)?) })
    }

    /// Bytes of the whole record: header, body, padding.
    pub const fn total(&self) -> u64 {
        total(self.length)
    }
}

/// Bytes of a record with a body of this length: header, body, padding.
pub const fn total(length: u32) -> u64 {
    (RECORD_HEADER as u64 + length as u64).next_multiple_of(ALIGN)
}

/// A sum of ids modulo 2²⁵⁶: with the count it tells whether two sets of records are probably the same (rule 18). It is no
/// evidence of possession.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdSum([u64; 4]);

impl IdSum {
    /// Adds an id.
    pub fn add(&mut self, id: &RecordId) {
        self.merge(&Self::of(id));
    }

    /// Takes an id away.
    pub fn subtract(&mut self, id: &RecordId) {
        // a - b = a + !b + 1
        let mut negated = Self::of(id);
        negated.0 = negated.0.map(|word| !word);
        self.merge(&negated);
        self.merge(&Self([1, 0, 0, 0]));
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        let mut carry = false;
        for (word, more) in self.0.iter_mut().zip(other.0) {
            let (sum, first) = word.overflowing_add(more);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = first || second;
        }
    }

    fn of(id: &RecordId) -> Self {
        Self::from_bytes(*id.as_bytes())
    }

    /// From its bytes, least significant first.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Self(words)
    }

    /// Its bytes, least significant first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }
}

/// The end of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trailer {
    /// Which kinds occur, as [`Kind::bit`]s.
    pub kinds: u32,
    /// Where the footer record begins.
    pub footer_offset: u64,
    /// Its length with header and padding.
    pub footer_length: u64,
    /// Public records in the segment.
    pub count: u64,
    /// The sum of their ids.
    pub sum: IdSum,
    /// The greatest stamp of a version in the segment.
    pub stamp_max: Stamp,
}

impl Trailer {
    /// Its bytes.
    pub fn encode(&self) -> [u8; TRAILER] {
        let mut bytes = [0; TRAILER];
        put(&mut bytes, 0, TRAILER_MAGIC);
        put(&mut bytes, 8, VERSION.to_le_bytes());
        put(&mut bytes, 12, self.kinds.to_le_bytes());
        put(&mut bytes, 16, self.footer_offset.to_le_bytes());
        put(&mut bytes, 24, self.footer_length.to_le_bytes());
        put(&mut bytes, 32, self.count.to_le_bytes());
        put(&mut bytes, 40, self.sum.to_bytes());
        put(&mut bytes, 72, self.stamp_max.as_u64().to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..124]);
        put(&mut bytes, 124, crc.to_le_bytes());
        bytes
    }

    /// From its bytes, the last of a file of `file_length` bytes.
    ///
    /// # Errors
    /// If the file is not sealed, or the trailer is damaged.
    pub fn decode(bytes: &[u8], file_length: u64) -> Result<Self, FormatError> {
        if array::<8>(bytes, 0)? != TRAILER_MAGIC {
            return Err(FormatError::Magic("trailer"));
        }
        check_crc(bytes, 124, 0, "trailer")?;
        match u32_at(bytes, 8)? {
            VERSION => {}
            other => return Err(FormatError::Unknown { what: "trailer format", number: other.into() }),
        }
        let trailer = Self {
            kinds: u32_at(bytes, 12)?,
            footer_offset: u64_at(bytes, 16)?,
            footer_length: u64_at(bytes, 24)?,
            count: u64_at(bytes, 32)?,
            sum: IdSum::from_bytes(array(bytes, 40)?),
            stamp_max: Stamp::from_u64(u64_at(bytes, 72)?),
        };
        let end = trailer.footer_offset.checked_add(trailer.footer_length).and_then(|end| end.checked_add(TRAILER as u64));
        if end != Some(file_length) || trailer.footer_offset < SEGMENT_HEADER as u64 || trailer.footer_length < RECORD_HEADER as u64 {
            return Err(FormatError::Range(format!("the footer does not end where the trailer begins, in a file of {file_length} bytes")));
        }
        Ok(trailer)
    }
}

/// What a footer (and the views) know of a version without reading its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The key; the bucket is the record's.
    pub key: String,
    /// Its place in the order of versions.
    pub stamp: Stamp,
    /// The put that made it.
    pub upload: UploadId,
    /// What the key holds by it; `None` for a delete marker.
    pub object: Option<(ObjectId, u64)>,
    /// Whether the content is in the record.
    pub inline: bool,
}

impl VersionInfo {
    /// From a version's body; `None` if it is not one that this program knows.
    pub fn of(body: &[u8]) -> Option<(BucketId, Self)> {
        use afar_model::record::{Content, Data, Version};
        let (version, _) = Version::decode_description(body).ok()?;
        let (object, inline) = match &version.content {
            Content::DeleteMarker => (None, false),
            Content::Object { id, size, data, .. } => (Some((*id, *size)), matches!(data, Data::Inline)),
        };
        Some((version.bucket, Self { key: version.key, stamp: version.stamp, upload: version.upload, object, inline }))
    }
}

/// Body of a [`Kind::Tombstone`] record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstones {
    /// Why, as the number of a [`crate::Removal`].
    pub why: u8,
    /// What is removed.
    pub keys: Vec<RecordKey>,
}

/// Body of a [`Kind::Settled`] record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledMarks {
    /// Bucket, key, stamp and record of each version: enough to find its row in the views.
    pub versions: Vec<(BucketId, String, Stamp, RecordId)>,
}

/// Body of a [`Kind::Owed`] record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debts {
    /// To whom.
    pub to: String,
    /// Record, kind, length of its body, since when.
    pub items: Vec<(RecordKey, RecordKind, u32, UnixMillis)>,
}

/// Body of a [`Kind::Paid`] record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payments {
    /// To whom.
    pub to: String,
    /// What reached it.
    pub keys: Vec<RecordKey>,
}

/// What is left of a version whose copy here is lost, after the [`Tombstones`] in the same body: enough to list it, so that nobody
/// takes an older one for the newest. A program that knows no notes reads the tombstone alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its record.
    pub record: RecordKey,
    /// What it said.
    pub info: VersionInfo,
    /// Known to be at its level.
    pub settled: bool,
    /// When it was received.
    pub received: UnixMillis,
}

/// The body of a tombstone record with its notes.
pub fn encode_tombstones(tombstones: &Tombstones, notes: &[Note]) -> Vec<u8> {
    if notes.is_empty() { encode_local(tombstones) } else { encode_local(&(tombstones, notes)) }
}

/// The notes in the body of a tombstone record.
///
/// # Errors
/// If it is not one.
pub fn decode_notes(body: &[u8]) -> Result<Vec<Note>, FormatError> {
    let malformed = |error| FormatError::Range(format!("malformed local record: {error}"));
    match body.split_first() {
        Some((&LOCAL_1, rest)) => match postcard::take_from_bytes::<Tombstones>(rest).map_err(malformed)? {
            (_, []) => Ok(Vec::new()),
            (_, notes) => postcard::from_bytes(notes).map_err(malformed),
        },
        Some((&other, _)) => Err(FormatError::Unknown { what: "local record format", number: other.into() }),
        None => Err(FormatError::Short),
    }
}

const LOCAL_1: u8 = 1;

/// The body of a local record: format byte, then postcard.
pub fn encode_local<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own plain structures into memory: cannot fail. An empty body would be refused when read.
    postcard::to_extend(value, vec![LOCAL_1]).unwrap_or_default()
}

/// A local record from its body.
///
/// # Errors
/// If it is not one.
pub fn decode_local<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FormatError> {
    match body.split_first() {
        Some((&LOCAL_1, rest)) => {
            postcard::from_bytes(rest).map_err(|error| FormatError::Range(format!("malformed local record: {error}")))
        }
        Some((&other, _)) => Err(FormatError::Unknown { what: "local record format", number: other.into() }),
        None => Err(FormatError::Short),
    }
}

/// A segment's file name.
pub fn segment_name(sequence: u64) -> String {
    format!("{sequence:016x}.afar")
}

/// The sequence number that a file name stands for.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".afar").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().filter(|&sequence| segment_name(sequence) == name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: Kind::Public(RecordKind::Version),
            length: 4321,
            key: RecordKey { bucket: BucketId::from_bytes([3; 32]), id: RecordId::of(b"x") },
            received: UnixMillis(77),
        }
    }

    #[test]
    fn headers_round_trip_and_any_flipped_bit_is_noticed() {
        let bytes = header().encode(9);
        assert_eq!(RecordHeader::decode(&bytes, Some(9)), Ok(header()));
        assert!(RecordHeader::decode(&bytes, Some(8)).is_err(), "another directory's record");
        let segment = SegmentHeader {
            incarnation: Incarnation::from_bytes([1; 16]),
            directory: DirectoryId::from_bytes([2; 16]),
            sequence: 7,
            created: UnixMillis(8),
        };
        assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(segment));
        let trailer = Trailer { footer_offset: 128, footer_length: 96, count: 3, ..Trailer::default() };
        assert_eq!(Trailer::decode(&trailer.encode(), 128 + 96 + 128), Ok(trailer));
        for bit in 0..RECORD_HEADER * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&flipped, Some(9)).is_err(), "bit {bit}");
        }
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut flipped = segment.encode();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&flipped).is_err(), "bit {bit}");
            let mut flipped = trailer.encode();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&flipped, 128 + 96 + 128).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn unknown_flags_and_kinds_are_refused_with_advice() {
        for (at, value) in [(8, 2), (9, 77), (10, FLAG_ENCRYPTED as u8)] {
            let mut bytes = header().encode(0);
            bytes[at] = value;
            let crc = crc32c::crc32c(&bytes[..92]);
            put(&mut bytes, 92, crc.to_le_bytes());
            let error = RecordHeader::decode(&bytes, Some(crc32c::crc32c(&[]))).unwrap_err();
            assert!(error.to_string().contains("upgrade"), "{error}");
        }
    }

    #[test]
    fn names_parse_back() {
        assert_eq!(parse_segment_name(&segment_name(0xAB)), Some(0xAB));
        for bad in ["", "1.afar", "00000000000000ZZ.afar", "00000000000000AB.afar", "+0000000000000ab.afar"] {
            assert_eq!(parse_segment_name(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn rule_18_sums_do_not_depend_on_order_and_can_be_undone(ids in proptest::collection::vec(any::<[u8; 32]>(), 0..20)) {
            let (mut forward, mut backward) = (IdSum::default(), IdSum::default());
            ids.iter().for_each(|id| forward.add(&RecordId::from_bytes(*id)));
            ids.iter().rev().for_each(|id| backward.add(&RecordId::from_bytes(*id)));
            prop_assert_eq!(forward, backward);
            ids.iter().for_each(|id| forward.subtract(&RecordId::from_bytes(*id)));
            prop_assert_eq!(forward, IdSum::default());
        }

        #[test]
        fn nothing_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = RecordHeader::decode(&bytes, None);
            let _ = SegmentHeader::decode(&bytes);
            let _ = Trailer::decode(&bytes, 300);
            let _ = VersionInfo::of(&bytes);
            let _ = decode_local::<Tombstones>(&bytes);
        }
    }
}
