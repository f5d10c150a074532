//! Damage: what disks, people and fires do to a node's files.
//!
//! Knows of the format only that a record is a header of [`RECORD_HEADER`] bytes and then its body, padded to eight.
use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Length of a record's header.
pub const RECORD_HEADER: u64 = 96;

/// Where some bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub file: PathBuf,
    /// Bytes from its start.
    pub offset: u64,
}

/// Copies a folder with everything in it.
///
/// # Panics
/// If it cannot be read or written.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder to copy").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            fs::copy(&source, &target).expect("copy");
        }
    }
}

/// Every segment under a data directory, oldest first.
pub fn segments(data: &Path) -> Vec<PathBuf> {
    let Ok(folder) = fs::read_dir(data.join("segments")) else { return Vec::new() };
    let mut files: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Every place where these bytes are on disk.
pub fn find(data: &Path, bytes: &[u8]) -> Vec<Place> {
    // Random content: its first 32 bytes tell it from anything else.
    let needle = bytes.get(..32.min(bytes.len())).unwrap_or_default();
    let mut places = Vec::new();
    for file in segments(data) {
        let content = fs::read(&file).expect("read a segment");
        let mut from = 0;
        while let Some(at) = content.get(from..).and_then(|rest| position(rest, needle)) {
            let start = from + at;
            if content.get(start..start + bytes.len()) == Some(bytes) {
                places.push(Place { file: file.clone(), offset: start as u64 });
            }
            from = start + 1;
        }
    }
    places
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let at = from + haystack.get(from..)?.iter().position(|byte| *byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

fn overwrite(place: &Place, bytes: &[u8]) {
    let mut file = File::options().write(true).open(&place.file).expect("open a segment");
    file.seek(SeekFrom::Start(place.offset)).expect("seek");
    file.write_all(bytes).expect("write");
    file.sync_all().expect("sync");
}

fn read(place: &Place, length: u64) -> Vec<u8> {
    let content = fs::read(&place.file).expect("read a segment");
    content.get(place.offset as usize..(place.offset + length) as usize).expect("within the segment").to_vec()
}

/// Turns one bit over.
pub fn flip(place: &Place, byte: u64) {
    let at = Place { file: place.file.clone(), offset: place.offset + byte };
    let old = read(&at, 1)[0];
    overwrite(&at, &[old ^ 0x10]);
}

/// Puts each of two records of equal length where the other was, headers and all.
///
/// # Panics
/// If they are not whole.
pub fn swap(a: &Place, b: &Place, body: u64) {
    let whole = |place: &Place| Place { file: place.file.clone(), offset: place.offset - RECORD_HEADER };
    let (record_a, record_b) = (read(&whole(a), RECORD_HEADER + body), read(&whole(b), RECORD_HEADER + body));
    overwrite(&whole(a), &record_b);
    overwrite(&whole(b), &record_a);
}

/// Cuts a file off.
pub fn truncate(place: &Place) {
    let file = File::options().write(true).open(&place.file).expect("open a segment");
    file.set_len(place.offset).expect("truncate");
    file.sync_all().expect("sync");
}
