//! The keys and values of the index, one kind of row per first byte. Keys keep the order of what they stand for.
//!
//! ```text
//! r │ id 32 │ bucket 32                                   → kind u8, segment u64, offset/8 u32, length u32      primary
//! v │ bucket 32 │ key… │ 00 │ !stamp u64 │ !id 32          → postcard of the rest of the version's entry          view
//! k │ id 32 │ bucket 32                                   → (nothing)                                            settings
//! o │ node… │ 00 │ since u64 │ id 32 │ bucket 32           → kind u8, length u32                                  outbox
//! p │ node… │ 00 │ id 32 │ bucket 32                       → since u64                                            outbox, by record
//! s │ segment u64                                         → postcard of the segment's counters                   rule 18
//! q │ id 32 │ bucket 32                                   → postcard of key and stamp: only a note is left of it  note
//! m                                                       → postcard of the checkpoint
//! ```
//!
//! Integers in keys are big-endian, `!` means complemented (greatest first). Keys of objects and names of
//! nodes contain no NUL.
use crate::{
    format::{IdSum, Note, VersionInfo},
    segment::Place,
    types::{Owed, Position},
};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, DirectoryId, ObjectId, RecordId, UploadId},
    record::{RecordKey, RecordKind, VersionEntry},
    units::UnixMillis,
};
use serde::{Deserialize, Serialize};

/// First bytes of rows.
pub mod table {
    /// Record → place.
    pub const PRIMARY: u8 = b'r';
    /// Bucket, key → versions.
    pub const VIEW: u8 = b'v';
    /// Records of kind setting.
    pub const SETTING: u8 = b'k';
    /// Debts, oldest first.
    pub const OUTBOX: u8 = b'o';
    /// Debts, by record.
    pub const DEBT: u8 = b'p';
    /// Versions of which only a note is left.
    pub const NOTE: u8 = b'q';
    /// Counters per segment.
    pub const SEGMENT: u8 = b's';
    /// The checkpoint.
    pub const META: u8 = b'm';
}

/// The single row of [`table::META`].
pub const META: &[u8] = &[table::META];

/// Up to where the log is in the index, and of which directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Version of these layouts.
    pub format: u32,
    /// The directory.
    pub directory: DirectoryId,
    /// The segment.
    pub segment: u64,
    /// Its first byte that is not in the index yet.
    pub offset: u64,
}

/// The version of the layouts above.
pub const FORMAT: u32 = 1;

/// What the index counts per segment. Kept by differences, so that order does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Live records.
    pub live: i64,
    /// Records that were removed, or live elsewhere.
    pub dead: i64,
    /// Bytes of the live ones, with headers and padding.
    pub live_bytes: i64,
    /// Bytes of the dead ones.
    pub dead_bytes: i64,
    /// Bytes of live bodies: chunk, manifest, version, setting.
    pub by_kind: [i64; 4],
    /// Sum of the ids of both.
    sum: [u8; 32],
}

impl Counters {
    /// Sum of the ids of all records, live and dead.
    pub fn sum(&self) -> IdSum {
        IdSum::from_bytes(self.sum)
    }

    fn change_sum(&mut self, change: impl FnOnce(&mut IdSum)) {
        let mut sum = self.sum();
        change(&mut sum);
        self.sum = sum.to_bytes();
    }

    /// A record was found (or written) here, live.
    pub fn born(&mut self, id: &RecordId, place: &Place) {
        self.change_sum(|sum| sum.add(id));
        self.shift(place, 1);
    }

    /// A live record here has died.
    pub fn died(&mut self, place: &Place) {
        self.shift(place, -1);
        self.dead += 1;
        self.dead_bytes += bytes(place);
    }

    fn shift(&mut self, place: &Place, sign: i64) {
        self.live += sign;
        self.live_bytes += sign * bytes(place);
        if let Some(of_kind) = self.by_kind.get_mut(place.kind as usize - 1) {
            *of_kind += sign * i64::from(place.length);
        }
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        self.live += other.live;
        self.dead += other.dead;
        self.live_bytes += other.live_bytes;
        self.dead_bytes += other.dead_bytes;
        self.by_kind.iter_mut().zip(other.by_kind).for_each(|(a, b)| *a += b);
        self.change_sum(|sum| sum.merge(&other.sum()));
    }
}

fn bytes(place: &Place) -> i64 {
    crate::format::total(place.length).cast_signed()
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Key of a record's place: by id first, so that a slice of the id space is a range.
pub fn primary(key: &RecordKey) -> Vec<u8> {
    join(&[&[table::PRIMARY], key.id.as_bytes(), key.bucket.as_bytes()])
}

/// Key of a setting.
pub fn setting(key: &RecordKey) -> Vec<u8> {
    join(&[&[table::SETTING], key.id.as_bytes(), key.bucket.as_bytes()])
}

/// The record that a [`primary`] or [`setting`] key stands for.
pub fn parse_record(key: &[u8]) -> Option<RecordKey> {
    let (id, bucket) = key.get(1..)?.split_first_chunk::<32>()?;
    Some(RecordKey { id: RecordId::from_bytes(*id), bucket: BucketId::try_from(bucket).ok()? })
}

/// Value of a [`primary`] key.
pub fn place(place: &Place) -> Vec<u8> {
    let offset = u32::try_from(place.offset / crate::format::ALIGN).unwrap_or(u32::MAX); // segments are bounded
    join(&[&[place.kind as u8], &place.segment.to_le_bytes(), &offset.to_le_bytes(), &place.length.to_le_bytes()])
}

/// From the value of a [`primary`] key.
pub fn parse_place(value: &[u8]) -> Option<Place> {
    let (&kind, rest) = value.split_first()?;
    let (segment, rest) = rest.split_first_chunk::<8>()?;
    let (offset, rest) = rest.split_first_chunk::<4>()?;
    Some(Place {
        kind: RecordKind::from_u8(kind)?,
        segment: u64::from_le_bytes(*segment),
        offset: u64::from(u32::from_le_bytes(*offset)) * crate::format::ALIGN,
        length: u32::from_le_bytes(rest.try_into().ok()?),
    })
}

/// What the views keep of a version besides its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewRow {
    /// The put that made it.
    pub upload: UploadId,
    /// Known to be at its level.
    pub settled: bool,
    /// What the key holds by it.
    pub object: Option<(ObjectId, u64)>,
    /// Whether the content is in the record.
    pub inline: bool,
    /// When it was received.
    pub received: UnixMillis,
    /// Whether the record is here; else only a note of it, and one more byte stands at the end.
    #[serde(skip)]
    pub here: bool,
}

impl ViewRow {
    /// A version that was just received.
    pub const fn new(info: &VersionInfo, received: UnixMillis) -> Self {
        Self { upload: info.upload, settled: false, object: info.object, inline: info.inline, received, here: true }
    }

    /// One of which only this is left.
    pub const fn noted(note: &Note) -> Self {
        Self { settled: note.settled, here: false, ..Self::new(&note.info, note.received) }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = postcard::to_stdvec(self).unwrap_or_default(); // into memory: cannot fail
        if !self.here {
            bytes.push(0);
        }
        bytes
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (row, more) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        Some(Self { here: more.is_empty(), ..row })
    }

    /// What is noted of the version if its record is lost.
    pub fn note(&self, record: RecordKey, key: &str, stamp: Stamp) -> Note {
        let info = VersionInfo { key: key.to_owned(), stamp, upload: self.upload, object: self.object, inline: self.inline };
        Note { record, info, settled: self.settled, received: self.received }
    }

    /// With what its key says.
    pub const fn entry(&self, stamp: Stamp, id: RecordId) -> VersionEntry {
        VersionEntry {
            stamp,
            id,
            upload: self.upload,
            settled: self.settled,
            object: self.object,
            inline: self.inline,
            received: self.received,
        }
    }
}

/// Beginning of the keys of a bucket's versions whose object keys begin with `prefix`.
pub fn view_prefix(bucket: &BucketId, prefix: &str) -> Vec<u8> {
    join(&[&[table::VIEW], bucket.as_bytes(), prefix.as_bytes()])
}

/// Beginning of the keys of one object key's versions.
pub fn view_key(bucket: &BucketId, key: &str) -> Vec<u8> {
    join(&[&[table::VIEW], bucket.as_bytes(), key.as_bytes(), &[0]])
}

/// Key of one version.
pub fn view(bucket: &BucketId, key: &str, stamp: Stamp, id: &RecordId) -> Vec<u8> {
    join(&[&[table::VIEW], bucket.as_bytes(), key.as_bytes(), &[0], &(!stamp.as_u64()).to_be_bytes(), &id.as_bytes().map(|byte| !byte)])
}

/// What a [`view`] key stands for.
pub fn parse_view(row: &[u8]) -> Option<(BucketId, &str, Stamp, RecordId)> {
    let (bucket, rest) = row.get(1..)?.split_first_chunk::<32>()?;
    let (rest, id) = rest.split_last_chunk::<32>()?;
    let (rest, stamp) = rest.split_last_chunk::<8>()?;
    let (&0, key) = rest.split_last()? else { return None };
    Some((
        BucketId::from_bytes(*bucket),
        std::str::from_utf8(key).ok()?,
        Stamp::from_u64(!u64::from_be_bytes(*stamp)),
        RecordId::from_bytes(id.map(|byte| !byte)),
    ))
}

/// Key of a note.
pub fn note(key: &RecordKey) -> Vec<u8> {
    join(&[&[table::NOTE], key.id.as_bytes(), key.bucket.as_bytes()])
}

/// Value of a [`note`] key: with it, where the views have the version.
pub fn note_value(note: &Note) -> Vec<u8> {
    postcard::to_stdvec(&(&note.info.key, note.info.stamp)).unwrap_or_default() // into memory: cannot fail
}

/// From the value of a [`note`] key.
pub fn parse_note(value: &[u8]) -> Option<(String, Stamp)> {
    postcard::from_bytes(value).ok()
}

/// Beginning of the keys of what is owed to a node.
pub fn outbox_of(to: &str) -> Vec<u8> {
    join(&[&[table::OUTBOX], to.as_bytes(), &[0]])
}

/// Key of a debt, oldest first.
pub fn outbox(to: &str, since: UnixMillis, key: &RecordKey) -> Vec<u8> {
    join(&[&outbox_of(to), &since.0.to_be_bytes(), key.id.as_bytes(), key.bucket.as_bytes()])
}

/// Value of an [`outbox`] key.
pub fn outbox_value(kind: RecordKind, length: u32) -> Vec<u8> {
    join(&[&[kind as u8], &length.to_le_bytes()])
}

/// Key of a debt, by record.
pub fn debt(to: &str, key: &RecordKey) -> Vec<u8> {
    join(&[&[table::DEBT], to.as_bytes(), &[0], key.id.as_bytes(), key.bucket.as_bytes()])
}

/// From a row of the outbox.
pub fn parse_outbox(row: &[u8], value: &[u8]) -> Option<Owed> {
    let (rest, bucket) = row.get(1..)?.split_last_chunk::<32>()?;
    let (rest, id) = rest.split_last_chunk::<32>()?;
    let (rest, since) = rest.split_last_chunk::<8>()?;
    let (&0, to) = rest.split_last()? else { return None };
    let (&kind, bytes) = value.split_first()?;
    Some(Owed {
        key: RecordKey { id: RecordId::from_bytes(*id), bucket: BucketId::from_bytes(*bucket) },
        kind: RecordKind::from_u8(kind)?,
        to: String::from_utf8(to.to_vec()).ok()?,
        since: UnixMillis(u64::from_be_bytes(*since)),
        bytes: u32::from_le_bytes(bytes.try_into().ok()?),
    })
}

/// Key of a segment's counters.
pub fn segment(sequence: u64) -> Vec<u8> {
    join(&[&[table::SEGMENT], &sequence.to_be_bytes()])
}

/// The segment that a [`segment`] key stands for.
pub fn parse_segment(key: &[u8]) -> Option<u64> {
    key.get(1..)?.try_into().ok().map(u64::from_be_bytes)
}

/// The least key that is greater than every key with this prefix.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; 2] // an empty prefix, or one of FFs: no table begins with FF
}

/// Value of [`META`].
pub fn checkpoint(directory: DirectoryId, position: Position) -> Vec<u8> {
    let checkpoint = Checkpoint { format: FORMAT, directory, segment: position.segment, offset: position.offset };
    postcard::to_stdvec(&checkpoint).unwrap_or_default() // into memory: cannot fail
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids() -> impl Strategy<Value = [u8; 32]> {
        any::<[u8; 32]>()
    }

    proptest! {
        #[test]
        fn views_sort_by_bucket_key_and_newest_first(
            a in (0_u8..3, "[a-c/]{1,4}", 0_u64..4, ids()),
            b in (0_u8..3, "[a-c/]{1,4}", 0_u64..4, ids()),
        ) {
            let row = |(bucket, key, stamp, id): &(u8, String, u64, [u8; 32])| {
                view(&BucketId::from_bytes([*bucket; 32]), key, Stamp::from_u64(*stamp), &RecordId::from_bytes(*id))
            };
            let rank = |(bucket, key, stamp, id): &(u8, String, u64, [u8; 32])| {
                (*bucket, key.clone().into_bytes(), std::cmp::Reverse((*stamp, *id)))
            };
            prop_assert_eq!(row(&a).cmp(&row(&b)), rank(&a).cmp(&rank(&b)));
            let encoded = row(&a);
            let (bucket, key, stamp, id) = parse_view(&encoded).unwrap();
            prop_assert_eq!((bucket, key, stamp, id), (BucketId::from_bytes([a.0; 32]), a.1.as_str(), Stamp::from_u64(a.2), RecordId::from_bytes(a.3)));
        }

        #[test]
        fn outbox_rows_round_trip(to in "[a-z]{0,255}", since: u64, id in ids(), bucket in ids(), bytes: u32) {
            let key = RecordKey { bucket: BucketId::from_bytes(bucket), id: RecordId::from_bytes(id) };
            let owed = Owed { key, kind: RecordKind::Manifest, to, since: UnixMillis(since), bytes };
            let row = outbox(&owed.to, owed.since, &key);
            prop_assert!(row.starts_with(&outbox_of(&owed.to)));
            prop_assert_eq!(parse_outbox(&row, &outbox_value(owed.kind, bytes)), Some(owed));
            prop_assert_eq!(parse_record(&primary(&key)), Some(key));
        }

        #[test]
        fn places_round_trip(segment: u64, offset in 0_u64..1 << 30, length: u32) {
            let here = Place { segment, offset: offset * 8, length, kind: RecordKind::Chunk };
            prop_assert_eq!(parse_place(&place(&here)), Some(here));
        }

        #[test]
        fn nothing_panics_on_noise(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (parse_place(&bytes), parse_record(&bytes), parse_view(&bytes), parse_segment(&bytes), ViewRow::decode(&bytes), parse_note(&bytes));
            let _ = parse_outbox(&bytes, &bytes);
            prop_assert!(after_prefix(&bytes).as_slice() > bytes.as_slice() || bytes.iter().all(|&byte| byte == 255));
        }
    }
}
