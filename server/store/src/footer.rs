//! The footer of a segment: what is in it, sorted by id, so that a lost index is rebuilt without reading data and a record
//! is found without any index.
//!
//! Body of the footer record, little-endian:
//!
//! ```text
//! 0 entries u32    4 buckets u32    8 bytes of extras u32    12 zero u32
//! 16 buckets × [32]
//!    entries × 64, sorted by (id, bucket, offset):
//!        0 id [32]   32 bucket u32 (index into the table)   36 body length u32   40 record offset u64   48 received u64
//!       56 extra u32 (offset into the extras, or FFFFFFFF)   60 kind u8   61 zero [3]
//!    extras: per version, postcard of `VersionInfo`
//! ```
//!
//! A tombstone record has one entry per record that it removes, under *that* record's id, so that "is it live here?" is
//! answered by the entry with the greatest offset. Other local records have one entry, under their own id.
use crate::{
    disk::{self, DiskFile},
    format::{IdSum, Kind, RecordHeader, Trailer, VersionInfo},
};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    record::{RecordKey, RecordKind},
    units::UnixMillis,
};
use bytes::Bytes;
use std::{collections::HashMap, io, sync::Arc};

const HEAD: usize = 16;
const BUCKET: usize = 32;
const ENTRY: usize = 64;
const NO_EXTRA: u32 = u32::MAX;
/// Entries read at once while searching: one page.
const WINDOW: usize = 64;

/// One line of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The record; for a tombstone the record that it removes.
    pub key: RecordKey,
    /// Its kind.
    pub kind: Kind,
    /// Where the record (or tombstone) begins.
    pub offset: u64,
    /// Length of its body.
    pub length: u32,
    /// When it was received.
    pub received: UnixMillis,
    extra: u32,
}

impl Entry {
    fn order(&self) -> (RecordId, BucketId, u64) {
        (self.key.id, self.key.bucket, self.offset)
    }
}

/// Collects what a segment's footer will say, in the order of the log.
#[derive(Debug, Clone, Default)]
pub struct FooterBuilder {
    entries: Vec<Entry>,
    extras: Vec<u8>,
    /// What the trailer will say; the footer's place is filled in when sealing.
    pub totals: Trailer,
}

impl FooterBuilder {
    /// Notes a record of the model.
    pub fn add_public(&mut self, header: &RecordHeader, offset: u64, info: Option<&VersionInfo>) {
        let extra = match info {
            None => NO_EXTRA,
            Some(info) => {
                let at = self.extras.len();
                // Into memory: cannot fail; were it to, the entry would simply have no description.
                match postcard::to_extend(info, std::mem::take(&mut self.extras)) {
                    Ok(extras) => {
                        self.extras = extras;
                        u32::try_from(at).unwrap_or(NO_EXTRA)
                    }
                    Err(_) => NO_EXTRA,
                }
            }
        };
        self.totals.count += 1;
        self.totals.sum.add(&header.key.id);
        self.totals.stamp_max = self.totals.stamp_max.max(info.map_or(Stamp::ZERO, |info| info.stamp));
        self.push(header, header.key, offset, extra);
    }

    /// Notes a tombstone record and what it removes.
    pub fn add_tombstone(&mut self, header: &RecordHeader, offset: u64, removes: &[RecordKey]) {
        for key in removes {
            self.push(header, *key, offset, NO_EXTRA);
        }
    }

    /// Notes another local record.
    pub fn add_local(&mut self, header: &RecordHeader, offset: u64) {
        self.push(header, header.key, offset, NO_EXTRA);
    }

    fn push(&mut self, header: &RecordHeader, key: RecordKey, offset: u64, extra: u32) {
        self.totals.kinds |= header.kind.bit();
        self.entries.push(Entry { key, kind: header.kind, offset, length: header.length, received: header.received, extra });
    }

    /// How many lines there are.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// The lines, in the order of the log.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn at(&self, offset: u64) -> Option<&Entry> {
        let at = self.entries.partition_point(|entry| entry.offset < offset);
        self.entries.get(at).filter(|entry| entry.offset == offset)
    }

    /// Whether this record begins here.
    pub fn lists(&self, key: &RecordKey, offset: u64) -> bool {
        self.at(offset).is_some_and(|entry| entry.key == *key)
    }

    /// The description of the version whose record begins here.
    pub fn describe(&self, offset: u64) -> Option<VersionInfo> {
        let entry = self.at(offset)?;
        describe(self.extras.get(entry.extra as usize..)?)
    }

    /// Count and sum of the public records that begin before an offset.
    pub fn totals_before(&self, offset: u64) -> (u64, IdSum) {
        let mut sum = IdSum::default();
        let mut count = 0;
        for entry in self.entries.iter().take_while(|entry| entry.offset < offset) {
            if matches!(entry.kind, Kind::Public(_)) {
                sum.add(&entry.key.id);
                count += 1;
            }
        }
        (count, sum)
    }

    /// The footer's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut sorted: Vec<&Entry> = self.entries.iter().collect();
        sorted.sort_unstable_by_key(|entry| entry.order());
        let mut buckets: HashMap<BucketId, u32> = HashMap::new();
        let mut table = Vec::new();
        for entry in &sorted {
            let next = buckets.len() as u32; // bounded by the number of entries
            buckets.entry(entry.key.bucket).or_insert_with(|| {
                table.push(entry.key.bucket);
                next
            });
        }
        let mut body = Vec::with_capacity(HEAD + table.len() * BUCKET + sorted.len() * ENTRY + self.extras.len());
        for number in [sorted.len() as u32, table.len() as u32, self.extras.len() as u32, 0] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        for bucket in &table {
            body.extend_from_slice(bucket.as_bytes());
        }
        for entry in sorted {
            body.extend_from_slice(entry.key.id.as_bytes());
            body.extend_from_slice(&buckets.get(&entry.key.bucket).copied().unwrap_or(u32::MAX).to_le_bytes());
            body.extend_from_slice(&entry.length.to_le_bytes());
            body.extend_from_slice(&entry.offset.to_le_bytes());
            body.extend_from_slice(&entry.received.0.to_le_bytes());
            body.extend_from_slice(&entry.extra.to_le_bytes());
            body.extend_from_slice(&[entry.kind.to_u8(), 0, 0, 0]);
        }
        body.extend_from_slice(&self.extras);
        body
    }
}

fn describe(extra: &[u8]) -> Option<VersionInfo> {
    postcard::take_from_bytes(extra).ok().map(|(info, _)| info)
}

#[derive(Debug)]
enum Source {
    File(Arc<dyn DiskFile>, u64),
    Memory(Bytes),
}

/// A footer that can be searched: on disk, by a few reads of a page each, or in memory.
#[derive(Debug)]
pub struct FooterView {
    source: Source,
    buckets: Vec<BucketId>,
    entries: usize,
    extras: usize,
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the footer is malformed")
}

impl FooterView {
    /// A footer's body in memory.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn in_memory(body: Bytes) -> io::Result<Self> {
        Self::open(Source::Memory(body))
    }

    /// A footer's body in a file, beginning at an offset. The caller has verified its hash.
    ///
    /// # Errors
    /// If it is malformed, or cannot be read.
    pub fn in_file(file: Arc<dyn DiskFile>, body_offset: u64) -> io::Result<Self> {
        Self::open(Source::File(file, body_offset))
    }

    fn open(source: Source) -> io::Result<Self> {
        let mut view = Self { source, buckets: Vec::new(), entries: 0, extras: 0 };
        let head = view.bytes(0, HEAD)?;
        let number =
            |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.first_chunk().copied()).map(u32::from_le_bytes).ok_or_else(malformed);
        let (entries, buckets, extras) = (number(0)? as usize, number(4)? as usize, number(8)? as usize);
        if buckets > entries {
            return Err(malformed());
        }
        let table = view.bytes(HEAD, buckets * BUCKET)?;
        view.buckets = table.as_chunks::<BUCKET>().0.iter().map(|bucket| BucketId::from_bytes(*bucket)).collect();
        view.entries = entries;
        view.extras = extras;
        Ok(view)
    }

    fn bytes(&self, at: usize, length: usize) -> io::Result<Bytes> {
        match &self.source {
            Source::Memory(body) if at + length <= body.len() => Ok(body.slice(at..at + length)),
            Source::Memory(_) => Err(malformed()),
            Source::File(file, base) => {
                let mut bytes = vec![0; length];
                disk::read_exact(&**file, &mut bytes, base + at as u64)?;
                Ok(bytes.into())
            }
        }
    }

    const fn entries_at(&self) -> usize {
        HEAD + self.buckets.len() * BUCKET
    }

    /// How many lines there are.
    pub const fn len(&self) -> usize {
        self.entries
    }

    /// Lines `from..to`, by id.
    ///
    /// # Errors
    /// If they cannot be read, or are malformed.
    pub fn lines(&self, from: usize, to: usize) -> io::Result<Vec<Entry>> {
        let (from, to) = (from.min(self.entries), to.min(self.entries));
        let bytes = self.bytes(self.entries_at() + from * ENTRY, to.saturating_sub(from) * ENTRY)?;
        bytes.as_chunks::<ENTRY>().0.iter().map(|line| self.parse(line)).collect()
    }

    fn parse(&self, line: &[u8; ENTRY]) -> io::Result<Entry> {
        let (id, rest) = line.split_first_chunk::<32>().ok_or_else(malformed)?;
        let (bucket, rest) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let (offset, rest) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
        let (received, rest) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
        let (extra, rest) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let kind = rest.first().and_then(|&number| Kind::from_u8(number)).ok_or_else(malformed)?;
        let bucket = self.buckets.get(u32::from_le_bytes(*bucket) as usize).copied().ok_or_else(malformed)?;
        Ok(Entry {
            key: RecordKey { bucket, id: RecordId::from_bytes(*id) },
            kind,
            offset: u64::from_le_bytes(*offset),
            length: u32::from_le_bytes(*length),
            received: UnixMillis(u64::from_le_bytes(*received)),
            extra: u32::from_le_bytes(*extra),
        })
    }

    /// The last thing that the segment says about a record: its entry, or the tombstone that removed it.
    ///
    /// # Errors
    /// If the footer cannot be read, or is malformed.
    pub fn last(&self, key: &RecordKey) -> io::Result<Option<Entry>> {
        let end = self.upper_bound(&(key.id, key.bucket, u64::MAX))?;
        let Some(at) = end.checked_sub(1) else { return Ok(None) };
        Ok(self.lines(at, end)?.first().copied().filter(|entry| entry.key == *key))
    }

    /// The entry of a record at exactly this offset.
    ///
    /// # Errors
    /// If the footer cannot be read, or is malformed.
    pub fn at(&self, key: &RecordKey, offset: u64) -> io::Result<Option<Entry>> {
        let end = self.upper_bound(&(key.id, key.bucket, offset))?;
        let Some(at) = end.checked_sub(1) else { return Ok(None) };
        Ok(self.lines(at, end)?.first().copied().filter(|entry| entry.key == *key && entry.offset == offset))
    }

    /// How many entries are not after this. Ids are digests, so guessing by their value lands within a page or two.
    fn upper_bound(&self, target: &(RecordId, BucketId, u64)) -> io::Result<usize> {
        let (mut low, mut high) = (0, self.entries);
        let share = f64::from(prefix(&target.0)) / (f64::from(u32::MAX) + 1.0);
        let mut guess = (share * self.entries as f64) as usize;
        while high - low > WINDOW {
            let from = guess.saturating_sub(WINDOW / 2).clamp(low, high - WINDOW);
            let lines = self.lines(from, from + WINDOW)?;
            let before = lines.partition_point(|entry| entry.order() <= *target);
            match before {
                0 => high = from,
                _ if before == lines.len() => low = from + before,
                _ => return Ok(from + before),
            }
            // A guess that missed: halve what is left, so that ids chosen by an adversary cost no more than a logarithm.
            guess = usize::midpoint(low, high);
        }
        let lines = self.lines(low, high)?;
        Ok(low + lines.partition_point(|entry| entry.order() <= *target))
    }

    /// The description of a version.
    ///
    /// # Errors
    /// If the footer cannot be read.
    pub fn describe(&self, entry: &Entry) -> io::Result<Option<VersionInfo>> {
        let at = entry.extra as usize;
        if entry.extra == NO_EXTRA || at >= self.extras {
            return Ok(None);
        }
        let length = (self.extras - at).min(EXTRA_MAX);
        Ok(describe(&self.bytes(self.entries_at() + self.entries * ENTRY + at, length)?))
    }

    /// Every line in the order of the log, with descriptions of versions. Reads the whole footer.
    ///
    /// # Errors
    /// If the footer cannot be read, or is malformed.
    pub fn in_log_order(&self) -> io::Result<Vec<(Entry, Option<VersionInfo>)>> {
        let mut lines = self.lines(0, self.entries)?;
        lines.sort_by_key(|entry| entry.offset);
        let extras = self.bytes(self.entries_at() + self.entries * ENTRY, self.extras)?;
        Ok(lines
            .into_iter()
            .map(|entry| {
                let wanted = entry.kind == Kind::Public(RecordKind::Version);
                let info = if wanted { extras.get(entry.extra as usize..).and_then(describe) } else { None };
                (entry, info)
            })
            .collect())
    }
}

/// A description is at most a key of the greatest length and some fixed fields.
const EXTRA_MAX: usize = afar_model::limits::KEY_BYTES_MAX + 128;

fn prefix(id: &RecordId) -> u32 {
    id.as_bytes().first_chunk().copied().map_or(0, u32::from_be_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u32) -> RecordKey {
        RecordKey { bucket: BucketId::from_bytes([(n % 3) as u8; 32]), id: RecordId::of(&(n / 2).to_le_bytes()) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_was_noted_last_is_found(numbers in proptest::collection::vec((0_u32..600, any::<bool>()), 0..700)) {
            let mut builder = FooterBuilder::default();
            let mut oracle = HashMap::new();
            for (at, &(n, removed)) in numbers.iter().enumerate() {
                let offset = at as u64 * 8;
                let kind = if removed { Kind::Tombstone } else { Kind::Public(RecordKind::Chunk) };
                let header = RecordHeader { kind, length: 1, key: key(n), received: UnixMillis(at as u64) };
                if removed { builder.add_tombstone(&header, offset, &[key(n)]) } else { builder.add_public(&header, offset, None) }
                oracle.insert(key(n), (kind, offset));
            }
            let view = FooterView::in_memory(builder.encode().into()).unwrap();
            for n in 0..620 {
                let found = view.last(&key(n)).unwrap().map(|entry| (entry.kind, entry.offset));
                prop_assert_eq!(found, oracle.get(&key(n)).copied());
            }
            let ordered: Vec<u64> = view.in_log_order().unwrap().iter().map(|(entry, _)| entry.offset).collect();
            prop_assert_eq!(ordered, (0..numbers.len() as u64).map(|at| at * 8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn descriptions_come_back() {
        let info = VersionInfo {
            key: "k".repeat(1024),
            stamp: Stamp::from_u64(9),
            upload: afar_model::id::UploadId::ZERO,
            object: None,
            inline: false,
        };
        let mut builder = FooterBuilder::default();
        let header = RecordHeader { kind: Kind::Public(RecordKind::Version), length: 1, key: key(1), received: UnixMillis(5) };
        builder.add_public(&header, 128, Some(&info));
        assert_eq!(builder.describe(128), Some(info.clone()));
        let view = FooterView::in_memory(builder.encode().into()).unwrap();
        let entry = view.at(&key(1), 128).unwrap().unwrap();
        assert_eq!(view.describe(&entry).unwrap(), Some(info.clone()));
        assert_eq!(view.in_log_order().unwrap()[0].1, Some(info));
        assert_eq!(builder.totals.stamp_max, Stamp::from_u64(9));
    }
}
