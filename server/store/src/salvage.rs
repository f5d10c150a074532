//! All that some segments hold, found without index, cluster or configuration: which records, and an intact copy of each. For
//! `afard inspect`, when a disk is all that is left.
//!
//! A sealed segment whose footer matches its hash is believed to hold what the footer lists, so a disk of 10 TB is opened by
//! reading some gigabytes; any other is scanned. Nothing is handed out that was not hashed just then. Tombstones remove
//! nothing here: they are only told, for whatever is still there may be the last copy.
//!
//! In memory are 56 bytes of every record, and the names of all versions.
use crate::{
    disk::{self, Disk, DiskFile},
    footer::FooterView,
    format::{self, Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, SettledMarks, Tombstones, VersionInfo},
    identity::Identity,
    inspect::{self, InspectError},
    recovery, segment,
};
use afar_model::{
    id::{BucketId, DirectoryId, IdPrefix, RecordId},
    record::{RecordKey, RecordKind},
    units::UnixMillis,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A version, by its description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its record.
    pub key: RecordKey,
    /// What it says of its key.
    pub info: VersionInfo,
    /// When this node received it.
    pub received: UnixMillis,
}

/// Why there is no body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no copy here.
    #[error("not here")]
    Absent,
    /// Every copy that is here is bad; of the last one, why.
    #[error("damaged here: {0}")]
    Damaged(String),
}

#[derive(Debug)]
struct SegmentFile {
    path: PathBuf,
    directory: Option<DirectoryId>,
    sequence: u64,
}

/// Where in its directory's log something is said of a record, and whether that it is removed: the greatest is the last word.
type Word = ((u64, u64), bool);

/// Where a record begins, or a tombstone of it.
#[derive(Debug, Clone, Copy)]
struct Line {
    id: RecordId,
    bucket: u32,
    file: u32,
    offset: u64,
    length: u32,
    kind: Kind,
}

/// What some segments hold.
#[derive(Debug)]
pub struct Salvage<'a> {
    disk: &'a dyn Disk,
    files: Vec<SegmentFile>,
    buckets: Vec<BucketId>,
    /// Sorted by id and bucket.
    lines: Vec<Line>,
    versions: Vec<Described>,
    settled: HashSet<RecordKey>,
    damage: Vec<InspectError>,
}

impl<'a> Salvage<'a> {
    /// Looks into data directories, directories of segments, and segment files.
    ///
    /// # Errors
    /// If one of them is none of these. What is there and cannot be read is [`Salvage::damage`].
    pub fn open(disk: &'a dyn Disk, paths: &[PathBuf]) -> Result<Self, InspectError> {
        let mut collected = Collected::new(disk);
        for path in paths {
            let fallback = Identity::read(disk, path).ok().map(|identity| identity.directory);
            for file in inspect::segment_files(disk, path)? {
                if let Err(error) = collected.file(&file, fallback) {
                    collected.salvage.damage.push(error);
                }
            }
        }
        let mut salvage = collected.salvage;
        salvage.lines.sort_unstable_by_key(|line| (line.id, line.bucket));
        salvage.versions.sort_by_key(|version| version.key);
        salvage.versions.dedup_by_key(|version| version.key);
        Ok(salvage)
    }

    /// What could not be read.
    pub fn damage(&self) -> &[InspectError] {
        &self.damage
    }

    /// Every version, once.
    pub fn versions(&self) -> &[Described] {
        &self.versions
    }

    /// Whether a version is noted to be at its bucket's level (rule 1).
    pub fn is_settled(&self, version: &RecordKey) -> bool {
        self.settled.contains(version)
    }

    /// Every record of a kind, once.
    pub fn of_kind(&self, kind: RecordKind) -> impl Iterator<Item = RecordKey> {
        let mut last = None;
        self.lines.iter().filter(move |line| line.kind == Kind::Public(kind)).filter_map(move |line| {
            let key = self.key_of(line)?;
            (last.replace(key) != Some(key)).then_some(key)
        })
    }

    /// Every record whose id begins so.
    pub fn named(&self, prefix: &IdPrefix) -> Vec<RecordKey> {
        let fits = |line: &&Line| matches!(line.kind, Kind::Public(_)) && prefix.begins(line.id.as_bytes());
        let mut keys: Vec<RecordKey> = self.lines.iter().filter(fits).filter_map(|line| self.key_of(line)).collect();
        keys.dedup();
        keys
    }

    /// Whether there is a copy of a record, be it a bad one.
    pub fn holds(&self, key: &RecordKey) -> bool {
        self.lines_of(key).any(|line| matches!(line.kind, Kind::Public(_)))
    }

    /// Whether all that is left of a record was removed: in every directory that has it, a tombstone follows it.
    pub fn is_removed(&self, key: &RecordKey) -> bool {
        let mut last: BTreeMap<(Option<DirectoryId>, u32), Word> = BTreeMap::new();
        for line in self.lines_of(key) {
            let Some(file) = self.files.get(line.file as usize) else { continue };
            // A file whose directory is not known has no order among others.
            let directory = (file.directory, if file.directory.is_some() { 0 } else { line.file });
            let word = ((file.sequence, line.offset), line.kind == Kind::Tombstone);
            let known = last.entry(directory).or_insert(word);
            *known = word.max(*known);
        }
        !last.is_empty() && last.values().all(|(_, removed)| *removed)
    }

    /// The body of a record, from the first copy that matches its hash.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, key: &RecordKey) -> Result<Bytes, Missing> {
        let mut missing = Missing::Absent;
        for line in self.lines_of(key).filter(|line| matches!(line.kind, Kind::Public(_))) {
            let Some(file) = self.files.get(line.file as usize) else { continue };
            match self.read(file, line, key) {
                Ok(body) => return Ok(body),
                Err(why) => missing = Missing::Damaged(format!("{} at {}: {why}", file.path.display(), line.offset)),
            }
        }
        Err(missing)
    }

    fn read(&self, file: &SegmentFile, line: &Line, key: &RecordKey) -> Result<Bytes, String> {
        let opened = self.disk.open(&file.path, false).map_err(|error| error.to_string())?;
        let (header, body) = raw(&*opened, file.directory, line.offset, line.length)?;
        if header.key != *key || header.length != line.length || RecordId::of(&body) != key.id {
            return Err("what is there does not match its hash".to_owned());
        }
        Ok(body)
    }

    fn lines_of(&self, key: &RecordKey) -> impl Iterator<Item = &Line> {
        let from = self.lines.partition_point(|line| line.id < key.id);
        let same = self.lines.get(from..).unwrap_or_default().iter().take_while(|line| line.id == key.id);
        same.filter(|line| self.buckets.get(line.bucket as usize) == Some(&key.bucket))
    }

    fn key_of(&self, line: &Line) -> Option<RecordKey> {
        self.buckets.get(line.bucket as usize).map(|bucket| RecordKey { bucket: *bucket, id: line.id })
    }
}

/// Header and body as they stand there. Where no directory is known its checksum says nothing, and the hash decides alone.
fn raw(file: &dyn DiskFile, directory: Option<DirectoryId>, offset: u64, length: u32) -> Result<(RecordHeader, Bytes), String> {
    if length as usize > crate::limits::BODY_BYTES_MAX {
        return Err(format!("a body of {length} bytes"));
    }
    let bytes = disk::read_whole(file, RECORD_HEADER + length as usize, offset).map_err(|error| error.to_string())?;
    let header = RecordHeader::decode(&bytes, directory.map(format::salt)).map_err(|error| error.to_string())?;
    Ok((header, Bytes::from(bytes).slice(RECORD_HEADER..)))
}

struct Collected<'a> {
    salvage: Salvage<'a>,
    numbers: HashMap<BucketId, u32>,
}

impl<'a> Collected<'a> {
    fn new(disk: &'a dyn Disk) -> Self {
        let salvage = Salvage {
            disk,
            files: Vec::new(),
            buckets: Vec::new(),
            lines: Vec::new(),
            versions: Vec::new(),
            settled: HashSet::new(),
            damage: Vec::new(),
        };
        Self { salvage, numbers: HashMap::new() }
    }

    fn file(&mut self, path: &Path, fallback: Option<DirectoryId>) -> Result<(), InspectError> {
        let failed = |error: std::io::Error| inspect::refused(path, &error);
        let file = self.salvage.disk.open(path, false).map_err(failed)?;
        let length = file.stat().map_err(failed)?.length;
        let mut head = vec![0; SEGMENT_HEADER.min(usize::try_from(length).unwrap_or(SEGMENT_HEADER))];
        disk::read_exact(&*file, &mut head, 0).map_err(failed)?;
        let header = SegmentHeader::decode(&head).ok();
        let directory = header.map(|header| header.directory).or(fallback);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let sequence = header.map(|header| header.sequence).or_else(|| format::parse_segment_name(name)).unwrap_or_default();
        self.salvage.files.push(SegmentFile { path: path.to_owned(), directory, sequence });
        if self.by_footer(&file, directory, length).is_none() {
            self.by_scan(path, &*file, directory, length)?;
        }
        Ok(())
    }

    /// `None` if there is no footer that can be believed.
    fn by_footer(&mut self, file: &Arc<dyn DiskFile>, directory: Option<DirectoryId>, length: u64) -> Option<()> {
        let salt = format::salt(directory?);
        let trailer = segment::read_trailer(&**file, length).ok()??;
        let body = segment::read_footer(file, salt, &trailer).ok()?;
        for (entry, info) in FooterView::in_memory(body).ok()?.in_log_order().ok()? {
            if entry.kind == Kind::Settled {
                // One that is damaged only means that some versions look less proved than they are.
                let record = raw(&**file, directory, entry.offset, entry.length).ok();
                record.filter(|(_, body)| RecordId::of(body) == entry.key.id).into_iter().for_each(|(_, body)| self.settle(&body));
            }
            self.push(entry.key, entry.kind, entry.offset, entry.length);
            self.salvage.versions.extend(info.map(|info| Described { key: entry.key, info, received: entry.received }));
        }
        Some(())
    }

    fn by_scan(&mut self, path: &Path, file: &dyn DiskFile, directory: Option<DirectoryId>, length: u64) -> Result<(), InspectError> {
        let scan = recovery::scan(file, length, directory.map(format::salt), |offset, header, body| {
            match header.kind {
                Kind::Tombstone => {
                    let removed = format::decode_local::<Tombstones>(body).map(|tombstones| tombstones.keys).unwrap_or_default();
                    removed.into_iter().for_each(|key| self.push(key, Kind::Tombstone, offset, header.length));
                }
                Kind::Settled => self.settle(body),
                _ => self.push(header.key, header.kind, offset, header.length),
            }
            if header.kind == Kind::Public(RecordKind::Version) {
                let info = VersionInfo::of(body).map(|(_, info)| info);
                self.salvage.versions.extend(info.map(|info| Described { key: header.key, info, received: header.received }));
            }
        });
        let scan = scan.map_err(|error| inspect::failed(path, error))?;
        let damaged = scan.damaged.iter().map(|bad| inspect::failed(path, format!("bytes {} to {}: {}", bad.from, bad.to, bad.why)));
        self.salvage.damage.extend(damaged);
        Ok(())
    }

    fn settle(&mut self, body: &[u8]) {
        let marks = format::decode_local::<SettledMarks>(body).map(|marks| marks.versions).unwrap_or_default();
        self.salvage.settled.extend(marks.into_iter().map(|(bucket, _, _, id)| RecordKey { bucket, id }));
    }

    /// Of the log of the last file.
    fn push(&mut self, key: RecordKey, kind: Kind, offset: u64, length: u32) {
        if !matches!(kind, Kind::Public(_) | Kind::Tombstone) {
            return;
        }
        let buckets = &mut self.salvage.buckets;
        let bucket = *self.numbers.entry(key.bucket).or_insert_with(|| {
            buckets.push(key.bucket);
            buckets.len() as u32 - 1
        });
        let file = self.salvage.files.len() as u32 - 1;
        self.salvage.lines.push(Line { id: key.id, bucket, file, offset, length, kind });
    }
}
