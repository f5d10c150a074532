//! One segment file as the running store sees it, and the reading of single records from it.
use crate::{
    disk::{self, Disk, DiskFile, FileId, FileStat},
    format::{self, FormatError, IdSum, Kind, RECORD_HEADER, RecordHeader, Trailer},
    limits,
};
use afar_model::{
    record::{Record, RecordKey, RecordKind},
    units::UnixMillis,
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where a record of the model is, within one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The segment.
    pub segment: u64,
    /// Where its header begins.
    pub offset: u64,
    /// Length of its body.
    pub length: u32,
    /// Its kind.
    pub kind: RecordKind,
}

/// A segment file.
#[derive(Debug)]
pub struct Segment {
    /// Its place in the order of segments.
    pub sequence: u64,
    /// The file.
    pub path: PathBuf,
    /// When it was begun.
    pub created: UnixMillis,
    /// Its file, when this run first saw it.
    pub id: FileId,
    length: AtomicU64,
    trailer: OnceLock<Trailer>,
    scanned: OnceLock<(u64, IdSum)>,
    verified: Mutex<Verified>,
}

/// What of a segment was read and hashed (or written) in this run, and when.
#[derive(Debug, Default)]
struct Verified {
    whole: Option<UnixMillis>,
    /// (end offset, time): each covers what lies before it and after the one before.
    marks: Vec<(u64, UnixMillis)>,
}

impl Segment {
    /// A segment of which nothing was verified yet.
    pub fn new(sequence: u64, path: PathBuf, created: UnixMillis, stat: FileStat, trailer: Option<Trailer>) -> Self {
        let sealed = OnceLock::new();
        if let Some(trailer) = trailer {
            let _ = sealed.set(trailer);
        }
        Self {
            sequence,
            path,
            created,
            id: stat.id,
            length: AtomicU64::new(stat.length),
            trailer: sealed,
            scanned: OnceLock::new(),
            verified: Mutex::default(),
        }
    }

    /// Bytes written to it.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Whether its path still names the file that this run opened or made, and all of it. What is read or written through a
    /// handle proves nothing of that: a deleted file lives on for whoever has it open (rule 26).
    pub fn look(&self, disk: &dyn Disk) -> Seen {
        // Before the file is looked at: it only grows, and is not sealed twice.
        let (sealed, length) = (self.trailer().is_some(), self.length());
        match disk.stat(&self.path) {
            Ok(stat) if stat.id != self.id => Seen::Gone("another file is in its place".to_owned()),
            Ok(stat) if stat.length < length => Seen::Gone(format!("it has {} of its {length} bytes", stat.length)),
            Ok(stat) if sealed && stat.length > length => Seen::Longer,
            Ok(_) => Seen::Same,
            Err(error) if disk::is_gone(&error) => Seen::Gone(error.to_string()),
            Err(error) => Seen::Unclear(error),
        }
    }

    /// It has grown; what is new was made from hashed bytes just now.
    pub fn grew(&self, length: u64, now: UnixMillis) {
        self.length.store(length, Ordering::Release);
        self.mark_verified(length, now);
    }

    /// Its torn tail was cut off.
    pub fn set_length(&self, length: u64) {
        self.length.store(length, Ordering::Release);
    }

    /// Its trailer, once sealed.
    pub fn trailer(&self) -> Option<&Trailer> {
        self.trailer.get()
    }

    /// Count and sum of its records (rule 18), once sealed: as its trailer says, or, where its footer is damaged, as a scan
    /// found.
    pub fn totals(&self) -> Option<(u64, IdSum)> {
        self.scanned.get().copied().or_else(|| self.trailer.get().map(|trailer| (trailer.count, trailer.sum)))
    }

    /// Its footer is damaged; this is what can still be found in it.
    pub fn set_scanned(&self, count: u64, sum: IdSum) {
        let _ = self.scanned.set((count, sum));
    }

    /// It is sealed now.
    pub fn seal(&self, trailer: Trailer, length: u64) {
        self.length.store(length, Ordering::Release);
        let _ = self.trailer.set(trailer);
    }

    /// Everything before `end` that was not marked before was verified at `time`.
    pub fn mark_verified(&self, end: u64, time: UnixMillis) {
        let mut verified = self.verified.lock();
        match verified.marks.last_mut() {
            Some((last_end, last)) if time.since(*last) < limits::VERIFIED_GRAIN => *last_end = end.max(*last_end),
            _ => verified.marks.push((end, time)),
        }
    }

    /// All of it was re-read and hashed; `time` is when that began.
    pub fn mark_scrubbed(&self, time: UnixMillis) {
        self.verified.lock().whole = Some(time);
    }

    /// When the byte at `offset` was last verified in this run.
    pub fn verified_at(&self, offset: u64) -> Option<UnixMillis> {
        let verified = self.verified.lock();
        let mark = verified.marks.get(verified.marks.partition_point(|(end, _)| *end <= offset)).map(|(_, time)| *time);
        mark.max(verified.whole)
    }

    /// When all of it had last been verified, or written and synced.
    pub fn oldest_verification(&self) -> UnixMillis {
        self.verified.lock().whole.unwrap_or(self.created)
    }
}

/// What a segment's path names now.
#[derive(Debug)]
pub enum Seen {
    /// Its file, as it was.
    Same,
    /// Its file, although something was added: what it holds has to be hashed again before it counts.
    Longer,
    /// Not its file, or not all of it: why.
    Gone(String),
    /// The disk does not say.
    Unclear(io::Error),
}

/// Why a record could not be read from a place.
#[derive(Debug)]
pub enum PlaceError {
    /// The system refused for now, or the file is gone.
    Io(io::Error),
    /// The device cannot read it.
    Unreadable(io::Error),
    /// What is there is not the record.
    Bad(String),
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Bad("the file ends within the record".to_owned()),
            _ if disk::is_unreadable(&error) => Self::Unreadable(error),
            _ => Self::Io(error),
        }
    }
}

impl From<FormatError> for PlaceError {
    fn from(error: FormatError) -> Self {
        Self::Bad(error.to_string())
    }
}

/// Reads a record of the model and verifies all of it: header, checksum, name and the hash of its body.
///
/// # Errors
/// If it is not there whole.
pub fn read_record(file: &dyn DiskFile, salt: u32, key: &RecordKey, place: &Place) -> Result<(RecordHeader, Record), PlaceError> {
    let (header, body) = read_raw(file, salt, place.offset, place.length)?;
    verify(header, body, key, place)
}

/// As [`read_record`], if all of it is in memory; else `WouldBlock`.
///
/// # Errors
/// If it is not there whole, or not in memory whole.
pub fn read_cached(file: &dyn DiskFile, salt: u32, key: &RecordKey, place: &Place) -> Result<(RecordHeader, Record), PlaceError> {
    let mut bytes = BytesMut::zeroed(RECORD_HEADER + place.length as usize);
    if file.read_cached_at(&mut bytes, place.offset)? < bytes.len() {
        return Err(PlaceError::Io(io::ErrorKind::WouldBlock.into()));
    }
    let header = RecordHeader::decode(&bytes, Some(salt))?;
    verify(header, bytes.freeze().slice(RECORD_HEADER..), key, place)
}

fn verify(header: RecordHeader, body: Bytes, key: &RecordKey, place: &Place) -> Result<(RecordHeader, Record), PlaceError> {
    if header.key != *key || header.kind != Kind::Public(place.kind) || header.length != place.length {
        return Err(PlaceError::Bad("another record is there".to_owned()));
    }
    let record = Record::new(place.kind, key.bucket, body); // computes the hash
    if record.id() == key.id { Ok((header, record)) } else { Err(PlaceError::Bad("the body does not match its hash".to_owned())) }
}

/// Reads header and body without verifying the body.
///
/// # Errors
/// If there is no header of this directory at that place.
pub fn read_raw(file: &dyn DiskFile, salt: u32, offset: u64, length: u32) -> Result<(RecordHeader, Bytes), PlaceError> {
    if length as usize > limits::BODY_BYTES_MAX {
        return Err(PlaceError::Bad(format!("a body of {length} bytes")));
    }
    let bytes = disk::read_whole(file, RECORD_HEADER + length as usize, offset)?;
    let header = RecordHeader::decode(&bytes, Some(salt))?;
    Ok((header, Bytes::from(bytes).slice(RECORD_HEADER..)))
}

/// Reads a sealed segment's trailer; `None` if it is not sealed.
///
/// # Errors
/// If the disk does not answer.
pub fn read_trailer(file: &dyn DiskFile, length: u64) -> io::Result<Option<Trailer>> {
    let Some(at) = length.checked_sub(format::TRAILER as u64).filter(|&at| at >= format::SEGMENT_HEADER as u64) else { return Ok(None) };
    let mut bytes = [0; format::TRAILER];
    disk::read_exact(file, &mut bytes, at)?;
    Ok(Trailer::decode(&bytes, length).ok())
}

/// Reads a sealed segment's footer whole and verifies it.
///
/// # Errors
/// If it does not match its hash.
pub fn read_footer(file: &Arc<dyn DiskFile>, salt: u32, trailer: &Trailer) -> Result<Bytes, PlaceError> {
    let total = usize::try_from(trailer.footer_length).ok().filter(|&total| total <= limits::FOOTER_BYTES_MAX + RECORD_HEADER + 8);
    let Some(total) = total else { return Err(PlaceError::Bad(format!("a footer of {} bytes", trailer.footer_length))) };
    let mut bytes = BytesMut::zeroed(total);
    disk::read_exact(&**file, &mut bytes, trailer.footer_offset)?;
    let header = RecordHeader::decode(&bytes, Some(salt))?;
    if header.kind != Kind::Footer || header.total() != trailer.footer_length {
        return Err(PlaceError::Bad("no footer where the trailer says".to_owned()));
    }
    let body = bytes.freeze().slice(RECORD_HEADER..RECORD_HEADER + header.length as usize);
    if afar_model::id::RecordId::of(&body) != header.key.id {
        return Err(PlaceError::Bad("the footer does not match its hash".to_owned()));
    }
    Ok(body)
}
