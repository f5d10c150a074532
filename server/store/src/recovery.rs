//! Reading a segment from front to back without trusting it: what is valid, what is damaged, where a torn tail begins.
//!
//! A record whose header is intact but whose body is not is stepped over by its length. Where a header is damaged the next
//! record is searched for by its magic, at multiples of eight; a candidate must have a header with this directory's checksum
//! *and* a body that matches its hash. What is invalid up to the end of the file is a torn tail: the power went while it was
//! being written, and nothing in it was acknowledged. What is invalid but *followed by* valid records is damage: something
//! may be lost that was acknowledged, and the node must be told. So it must where the device cannot read, be it at the end:
//! nobody knows what stood there, and what is whole around it is served.
use crate::{
    disk::{self, DiskFile},
    format::{self, FormatError, Kind, RECORD_HEADER, RECORD_MAGIC, RecordHeader, SEGMENT_HEADER},
    limits,
};
use afar_model::id::RecordId;
use std::io;

/// A range of a segment that holds no valid record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRange {
    /// First byte.
    pub from: u64,
    /// First byte after.
    pub to: u64,
    /// What was wrong at its beginning.
    pub why: String,
    /// The record that stood there, where its header is intact.
    pub header: Option<RecordHeader>,
}

/// What a scan found, beside the records that it handed out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Invalid ranges that valid records follow.
    pub damaged: Vec<BadRange>,
    /// Invalid up to the end of the file.
    pub torn: Option<BadRange>,
    /// Where the last valid record ends: what follows may be cut off.
    pub end: u64,
}

/// Why a scan stopped before the end.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The disk did not answer now.
    #[error("read at {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Written by a later program: to go on would be to cut off what it wrote.
    #[error("at {offset}: {error}")]
    Future {
        /// Where.
        offset: u64,
        /// What is not known.
        error: FormatError,
    },
}

/// A window onto a file that only moves forward.
struct Window<'a> {
    file: &'a dyn DiskFile,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Up to where something could not be read, and was taken for zeros.
    unreadable_to: u64,
}

impl Window<'_> {
    /// Bytes `at..at + length`, or fewer at the end of the file.
    fn get(&mut self, at: u64, length: usize) -> Result<&[u8], ScanError> {
        let end = (at + length as u64).min(self.length);
        let held = self.start + self.bytes.len() as u64;
        if at < self.start || end > held {
            let keep_from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
            if at < self.start || keep_from >= self.bytes.len() {
                self.bytes.clear();
            } else {
                self.bytes.drain(..keep_from);
            }
            self.start = at;
            self.fill(end.max(at + limits::SCAN_BYTES as u64).min(self.length))?;
        }
        let from = (at - self.start) as usize;
        let to = (end.max(at) - self.start) as usize;
        Ok(self.bytes.get(from..to.min(self.bytes.len())).unwrap_or_default())
    }

    fn fill(&mut self, to: u64) -> Result<(), ScanError> {
        let have = self.bytes.len();
        self.bytes.resize(to.saturating_sub(self.start) as usize, 0);
        if let Some(into) = self.bytes.get_mut(have..) {
            let offset = self.start + have as u64;
            match disk::read_exact(self.file, into, offset) {
                Err(error) if disk::is_unreadable(&error) => self.fill_around(have)?,
                read => read.map_err(|source| ScanError::Read { offset, source })?,
            }
        }
        Ok(())
    }

    /// Block by block, leaving out those that cannot be read.
    fn fill_around(&mut self, have: usize) -> Result<(), ScanError> {
        let mut rest = self.bytes.get_mut(have..).unwrap_or_default();
        let mut offset = self.start + have as u64;
        while !rest.is_empty() {
            let length = limits::READ_AROUND_BYTES - offset % limits::READ_AROUND_BYTES;
            let (block, more) = rest.split_at_mut(rest.len().min(length as usize));
            match disk::read_exact(self.file, block, offset) {
                Err(error) if disk::is_unreadable(&error) => {
                    block.fill(0);
                    self.unreadable_to = offset + block.len() as u64;
                }
                read => read.map_err(|source| ScanError::Read { offset, source })?,
            }
            offset += block.len() as u64;
            rest = more;
        }
        Ok(())
    }
}

enum Step {
    Valid(RecordHeader),
    BadBody(RecordHeader),
    BadHeader(FormatError),
    CutShort(RecordHeader),
}

fn step(window: &mut Window<'_>, at: u64, salt: Option<u32>) -> Result<Step, ScanError> {
    let header = match RecordHeader::decode(window.get(at, RECORD_HEADER)?, salt) {
        Ok(header) => header,
        // Without the checksum a strange number is more likely damage than the future.
        Err(error @ FormatError::Unknown { .. }) if salt.is_some() => return Err(ScanError::Future { offset: at, error }),
        Err(error) => return Ok(Step::BadHeader(error)),
    };
    if at + RECORD_HEADER as u64 + u64::from(header.length) > window.length {
        return Ok(Step::CutShort(header));
    }
    let body = window.get(at + RECORD_HEADER as u64, header.length as usize)?;
    Ok(if RecordId::of(body) == header.key.id { Step::Valid(header) } else { Step::BadBody(header) })
}

/// Scans the records of a file of `length` bytes, handing each valid one out with its offset and body. Stops before a
/// footer record, which must be the last.
///
/// # Errors
/// If the disk does not answer now, or a later program wrote the file.
pub fn scan(
    file: &dyn DiskFile,
    length: u64,
    salt: Option<u32>,
    mut each: impl FnMut(u64, &RecordHeader, &[u8]),
) -> Result<Scan, ScanError> {
    let mut window = Window { file, length, start: 0, bytes: Vec::new(), unreadable_to: 0 };
    let mut result = Scan { end: SEGMENT_HEADER as u64, ..Scan::default() };
    let mut bad: Option<BadRange> = None;
    let mut at = SEGMENT_HEADER as u64;
    while at < length {
        let (next, why, header) = match step(&mut window, at, salt)? {
            // The last, whole or not: what it says is said by the records as well.
            Step::Valid(header) | Step::BadBody(header) | Step::CutShort(header) if header.kind == Kind::Footer => break,
            Step::Valid(header) => {
                if let Some(range) = bad.take() {
                    result.damaged.push(range);
                }
                each(at, &header, window.get(at + RECORD_HEADER as u64, header.length as usize)?);
                at += header.total();
                result.end = at.min(length);
                continue;
            }
            Step::BadBody(header) => ((at + header.total()).min(length), "the body does not match its hash".to_owned(), Some(header)),
            Step::CutShort(header) => (length, "the file ends within the record".to_owned(), Some(header)),
            Step::BadHeader(error) => (next_magic(&mut window, at + format::ALIGN)?, error.to_string(), None),
        };
        match &mut bad {
            Some(range) if range.header.is_none() && header.is_none() => range.to = next,
            _ => {
                result.damaged.extend(bad.take());
                bad = Some(BadRange { from: at, to: next, why, header });
            }
        }
        at = next;
    }
    // Ranges at the end that no valid record follows are the torn tail, however many they are.
    let mut torn = bad;
    while let Some(range) = result.damaged.pop_if(|range| range.from >= result.end) {
        torn = Some(BadRange { to: torn.map_or(range.to, |torn| torn.to), ..range });
    }
    match torn {
        Some(torn) if window.unreadable_to > torn.from => {
            result.end = torn.to.next_multiple_of(format::ALIGN);
            result.damaged.push(BadRange { why: UNREADABLE.to_owned(), ..torn });
        }
        torn => result.torn = torn,
    }
    Ok(result)
}

const UNREADABLE: &str = "the device cannot read it";

fn next_magic(window: &mut Window<'_>, mut at: u64) -> Result<u64, ScanError> {
    while at < window.length {
        let bytes = window.get(at, limits::SCAN_BYTES)?;
        let whole = bytes.as_chunks::<8>().0;
        if let Some(found) = whole.iter().position(|word| *word == RECORD_MAGIC) {
            return Ok(at + found as u64 * 8);
        }
        match whole.len() {
            0 => break,
            words => at += words as u64 * 8,
        }
    }
    Ok(window.length)
}
