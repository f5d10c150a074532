//! Looking into segments without index, cluster or configuration: what is in this directory, is it whole. For
//! `afard inspect`, for a disk that was pulled out of a burnt rack, and for a segment file that somebody
//! copied. It opens everything read-only, belongs to no node, and believes nothing but checksums and hashes.
use crate::{
    disk::Disk,
    format::{self, Kind, SEGMENT_HEADER, SegmentHeader, Tombstones, VersionInfo},
    identity::Identity,
    recovery::{self, BadRange, Scan},
    segment,
};
use afar_model::{
    id::{DirectoryId, Incarnation},
    record::{RecordKey, RecordKind},
    units::UnixMillis,
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// Why something could not be inspected.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct InspectError {
    /// What was looked at.
    pub path: PathBuf,
    /// What was wrong with it.
    pub why: String,
    /// Whether only permission is lacking: then nothing is known of what is there.
    pub denied: bool,
}

/// One segment file, by its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// Whose it is, if its header is intact.
    pub owner: Option<(Incarnation, DirectoryId)>,
    /// Its number, if its header is intact.
    pub sequence: Option<u64>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether it ends with an intact trailer.
    pub sealed: bool,
    /// Valid records by kind: the model's kinds and local ones, by their names.
    pub records: BTreeMap<String, u64>,
    /// What is not valid.
    pub damage: Vec<(u64, u64, String)>,
    /// Whether we may not read it: then nothing is known of it, damage least of all.
    pub denied: bool,
    /// Of a sealed segment: whether its footer lists exactly the valid records.
    pub footer_agrees: Option<bool>,
}

impl SegmentReport {
    /// Whether nothing is wrong with it.
    pub fn is_whole(&self) -> bool {
        self.owner.is_some() && self.damage.is_empty() && self.footer_agrees != Some(false)
    }
}

/// One record in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The file.
    pub path: PathBuf,
    /// Where it begins.
    pub offset: u64,
    /// Its kind, as a word.
    pub kind: String,
    /// Its name.
    pub key: RecordKey,
    /// Length of its body.
    pub bytes: u32,
    /// When it was received.
    pub received: UnixMillis,
    /// For a version: its object key.
    pub object_key: Option<String>,
    /// For a tombstone: what it removes.
    pub removes: Vec<RecordKey>,
}

/// A kind, as a word.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Public(RecordKind::Chunk) => "chunk",
        Kind::Public(RecordKind::Manifest) => "manifest",
        Kind::Public(RecordKind::Version) => "version",
        Kind::Public(RecordKind::Setting) => "setting",
        Kind::Tombstone => "tombstone",
        Kind::Settled => "settled",
        Kind::Owed => "owed",
        Kind::Paid => "paid",
        Kind::Footer => "footer",
    }
}

/// The identity of a data directory, for display: node, incarnation, directory.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn identity(disk: &dyn Disk, directory: &Path) -> Result<(String, Incarnation, DirectoryId), InspectError> {
    let identity = Identity::read(disk, directory).map_err(|error| failed(directory, error))?;
    Ok((identity.node, identity.incarnation, identity.directory))
}

/// Every valid record of a data directory, of a directory of segments, or of one segment file, in the order of the log.
///
/// # Errors
/// If nothing there can be read.
pub fn list(disk: &dyn Disk, path: &Path, mut each: impl FnMut(Listed)) -> Result<Vec<SegmentReport>, InspectError> {
    walk(disk, path, |listed, _| each(listed))
}

/// Reads and hashes everything; reports on each segment.
///
/// # Errors
/// If nothing there can be read.
pub fn verify(disk: &dyn Disk, path: &Path) -> Result<Vec<SegmentReport>, InspectError> {
    walk(disk, path, |_, _| {})
}

pub(crate) fn failed(path: &Path, error: impl ToString) -> InspectError {
    InspectError { path: path.to_owned(), why: error.to_string(), denied: false }
}

pub(crate) fn refused(path: &Path, error: &io::Error) -> InspectError {
    InspectError { denied: error.kind() == io::ErrorKind::PermissionDenied, ..failed(path, error) }
}

fn walk(disk: &dyn Disk, path: &Path, mut each: impl FnMut(Listed, &[u8])) -> Result<Vec<SegmentReport>, InspectError> {
    let files = segment_files(disk, path)?;
    let fallback = Identity::read(disk, path).ok().map(|identity| identity.directory);
    let mut reports = Vec::new();
    for file in files {
        reports.push(match inspect_file(disk, &file, fallback, &mut each) {
            Ok(report) => report,
            // One file that cannot be read must not hide the others.
            Err(error) => unreadable(file, error),
        });
    }
    Ok(reports)
}

fn unreadable(path: PathBuf, error: InspectError) -> SegmentReport {
    SegmentReport {
        path,
        owner: None,
        sequence: None,
        bytes: 0,
        sealed: false,
        records: BTreeMap::new(),
        damage: vec![(0, 0, error.why)],
        denied: error.denied,
        footer_agrees: None,
    }
}

pub(crate) fn segment_files(disk: &dyn Disk, path: &Path) -> Result<Vec<PathBuf>, InspectError> {
    let below = path.join("segments");
    let (directory, names) = match disk.list(&below) {
        Ok(names) => (below, names),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(refused(&below, &error)),
        Err(_) => match disk.list(path) {
            Ok(names) => (path.to_owned(), names),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(refused(path, &error)),
            Err(_) => {
                disk.stat(path).map_err(|error| refused(path, &error))?;
                return Ok(vec![path.to_owned()]);
            }
        },
    };
    let mut names: Vec<String> = names.into_iter().filter(|name| name.ends_with(".afar")).collect();
    names.sort();
    if names.is_empty() {
        return Err(failed(path, "no segment files (*.afar) here, nor in segments/"));
    }
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn inspect_file(
    disk: &dyn Disk,
    path: &Path,
    fallback: Option<DirectoryId>,
    each: &mut impl FnMut(Listed, &[u8]),
) -> Result<SegmentReport, InspectError> {
    let io = |error: io::Error| refused(path, &error);
    let file = disk.open(path, false).map_err(io)?;
    let length = file.stat().map_err(io)?.length;
    let mut head = vec![0; SEGMENT_HEADER.min(length as usize)];
    crate::disk::read_exact(&*file, &mut head, 0).map_err(io)?;
    let header = SegmentHeader::decode(&head);
    // Without its header, whose the records are is known from the directory, or not at all: then hashes decide alone.
    let salt = header.as_ref().ok().map(|header| header.directory).or(fallback).map(format::salt);
    let mut records: BTreeMap<String, u64> = BTreeMap::new();
    let mut public = 0;
    let scanned = recovery::scan(&*file, length, salt, |offset, header, body| {
        *records.entry(kind_name(header.kind).to_owned()).or_default() += 1;
        public += u64::from(matches!(header.kind, Kind::Public(_)));
        let object_key =
            (header.kind == Kind::Public(RecordKind::Version)).then(|| VersionInfo::of(body).map(|(_, info)| info.key)).flatten();
        let removes = match header.kind {
            Kind::Tombstone => format::decode_local::<Tombstones>(body).map(|tombstones| tombstones.keys).unwrap_or_default(),
            _ => Vec::new(),
        };
        let kind = kind_name(header.kind).to_owned();
        each(
            Listed {
                path: path.to_owned(),
                offset,
                kind,
                key: header.key,
                bytes: header.length,
                received: header.received,
                object_key,
                removes,
            },
            body,
        );
    });
    let scan = scanned.map_err(|error| failed(path, error))?;
    let trailer = segment::read_trailer(&*file, length).map_err(io)?;
    let footer_agrees = match (trailer, salt) {
        (Some(trailer), Some(salt)) => Some(segment::read_footer(&file, salt, &trailer).is_ok() && trailer.count == public),
        _ => None,
    };
    Ok(SegmentReport {
        path: path.to_owned(),
        owner: header.as_ref().ok().map(|header| (header.incarnation, header.directory)),
        sequence: header.as_ref().ok().map(|header| header.sequence),
        bytes: length,
        sealed: trailer.is_some(),
        records,
        damage: damage(header.err(), scan, trailer.is_some()),
        denied: false,
        footer_agrees,
    })
}

fn damage(header: Option<format::FormatError>, scan: Scan, sealed: bool) -> Vec<(u64, u64, String)> {
    let mut damage: Vec<(u64, u64, String)> = header.map(|error| (0, SEGMENT_HEADER as u64, error.to_string())).into_iter().collect();
    let range = |bad: BadRange| (bad.from, bad.to, bad.why);
    damage.extend(scan.damaged.into_iter().map(range));
    // Nothing invalid may lie between the last record and the footer of a sealed segment; in one that was being written it
    // is what the power cut off.
    let torn = scan.torn.map(range).map(|(from, to, why)| (from, to, if sealed { why } else { format!("torn tail: {why}") }));
    damage.extend(torn);
    damage
}
