//! `afard inspect`: what is in a data directory or in segment files, without an index, a cluster or a running node. So a disk
//! that was pulled out of a burnt rack can be read with this program alone.
//!
//! Everything is only read, with one exception that must be asked for: `--rebuild-index` removes an index, which is a cache,
//! and refuses while a node uses the directory.
mod objects;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use afar_model::id::{ObjectId, ParseIdPrefixError};
use afar_store::{
    disk::RealDisk,
    inspect::{self, Listed, SegmentReport},
    salvage::Salvage,
};
use objects::{Chosen, Look, Objects};
use serde_json::json;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Data directories or segment files.
    pub paths: Vec<PathBuf>,
    /// Only say whether every record matches its name.
    pub verify: bool,
    /// Objects instead of records.
    pub list: bool,
    /// Write the object of this key, or the object or record of this id.
    pub extract: Option<String>,
    /// Not one object, but all whose keys begin so, into a folder.
    pub recursive: bool,
    /// Where to; `-` is the standard output.
    pub output: Option<PathBuf>,
    /// Remove indexes.
    pub rebuild_index: bool,
    /// JSON Lines instead of text.
    pub json: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nothing wrong.
    Good,
    /// Something of an object is not there.
    Incomplete,
    /// We may not read it.
    Denied,
    /// Bytes that are no record, or do not match their names.
    Damaged,
}

impl Outcome {
    /// The exit code of the command line's contract.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Incomplete => 3,
            Self::Denied => 1,
            Self::Damaged => 4,
        }
    }
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A path that holds nothing of ours, or cannot be read.
    #[error(transparent)]
    Read(#[from] inspect::InspectError),
    /// Neither a key nor an id.
    #[error("--extract: {0}; or BUCKET/KEY, as --list shows it")]
    Id(#[from] ParseIdPrefixError),
    /// It may mean several.
    #[error("--extract: {0} may mean any of these, write more of it:\n  {ids}", ids = .1.join("\n  "))]
    Ambiguous(String, Vec<String>),
    /// Nothing of that name is there.
    #[error("no {0} here: --list shows what there is; try the other directories and the other nodes")]
    Missing(String),
    /// The key holds nothing.
    #[error("{0} was removed; what it was before is had by id (--list){ids}", ids = .1.iter().map(|id| format!("\n  {id}")).collect::<String>())]
    Deleted(String, Vec<String>),
    /// Some of it is not there.
    #[error("{0}: {1}\nname the node's other directories as well, or look on the other nodes' disks")]
    Incomplete(String, objects::Lacks),
    /// Its key cannot be a path below the folder.
    #[error("{0} cannot be a file's name here: --extract {1} -o FILE")]
    Name(String, String),
    /// All of it was there, and it is not it.
    #[error("what its version lists are {bytes} bytes with the hash {got}, not {wanted}")]
    NotIt {
        /// The object's id.
        wanted: ObjectId,
        /// What the bytes hash to.
        got: ObjectId,
        /// How many they are.
        bytes: u64,
    },
    /// The index is in use.
    #[error("{0} is in use: stop the node first (it rebuilds a damaged index by itself)")]
    InUse(PathBuf),
    /// The system said no.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The answer could not be written.
    #[error("write the answer: {0}")]
    Answer(#[from] io::Error),
}

impl InspectError {
    /// The exit code of the command line's contract.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Id(_) | Self::Ambiguous(..) => 2,
            Self::Incomplete(_, lacks) => lacks.outcome().exit_code(),
            Self::NotIt { .. } => 4,
            Self::Missing(_) | Self::Deleted(..) => 10,
            Self::InUse(_) => 11,
            Self::File { error, .. } | Self::Answer(error) if error.kind() == io::ErrorKind::StorageFull => 13,
            _ => 1,
        }
    }
}

/// Does what was asked for, and answers on `out`; remarks beside it go to `notes`.
///
/// # Errors
/// Why it could not be done.
pub fn run(asked: &Asked, out: &mut dyn io::Write, notes: &mut dyn io::Write) -> Result<Outcome, InspectError> {
    if asked.list || asked.extract.is_some() {
        let paths: Vec<PathBuf> = asked.paths.iter().filter(|path| !is_empty(path)).cloned().collect();
        let objects = Objects::of(Salvage::open(&RealDisk, &paths)?);
        // Before the answer, which may be long; who reads it must know that it may not be all.
        let damage = objects.damage();
        damage.iter().try_for_each(|damage| writeln!(notes, "afard: {damage}"))?;
        return match &asked.extract {
            Some(prefix) if asked.recursive => extract_all(&objects, prefix, asked, out, notes),
            Some(wanted) => extract(&objects, wanted, asked, out),
            None => {
                let look = if asked.verify { Look::Read } else { Look::There };
                let worst = objects.list(look, asked.json, out)?;
                Ok(worst.max(objects.outcome()))
            }
        };
    }
    let mut worst = Outcome::Good;
    for path in &asked.paths {
        if asked.rebuild_index {
            remove_index(path)?;
            writeln!(out, "{}: the index is removed; the next start rebuilds it from the segments", path.display())?;
        } else {
            worst = worst.max(show(path, asked, out)?);
        }
    }
    Ok(worst)
}

fn extract(objects: &Objects<'_>, wanted: &str, asked: &Asked, out: &mut dyn io::Write) -> Result<Outcome, InspectError> {
    let chosen = objects.choose(wanted)?;
    let write = |to: &mut dyn io::Write| match &chosen {
        Chosen::Object(found) => objects.write(found, to),
        Chosen::Record(body) => Ok(to.write_all(body)?),
    };
    let Some(file) = asked.output.as_deref().filter(|file| *file != Path::new("-")) else {
        write(out)?;
        return Ok(Outcome::Good);
    };
    write_file(file, write)?;
    if let Chosen::Object(found) = &chosen {
        writeln!(out, "{}", if asked.json { found.json().to_string() } else { format!("{found}: written to {}", file.display()) })?;
    }
    Ok(Outcome::Good)
}

/// What cannot be had, or cannot be a file's name, is told and does not stop the rest.
fn extract_all(
    objects: &Objects<'_>,
    prefix: &str,
    asked: &Asked,
    out: &mut dyn io::Write,
    notes: &mut dyn io::Write,
) -> Result<Outcome, InspectError> {
    let folder = asked.output.as_deref().unwrap_or_else(|| Path::new("."));
    let (mut written, mut failed, mut worst) = (0, 0, Outcome::Good);
    for found in objects.under(prefix)? {
        let done = match found.path() {
            Some(path) => {
                let path = folder.join(path);
                let parent = path.parent().unwrap_or(folder);
                let made = fs::create_dir_all(parent).map_err(|error| InspectError::File { path: parent.to_owned(), error });
                made.and_then(|()| write_file(&path, |to| objects.write(found, to)))
            }
            None => Err(InspectError::Name(found.to_string(), found.id())),
        };
        match done {
            Ok(()) => {
                written += 1;
                if asked.json {
                    writeln!(out, "{}", found.json())?;
                }
            }
            // Nothing more would fit.
            Err(full) if full.exit_code() == 13 => return Err(full),
            Err(why) => {
                failed += 1;
                worst = worst.max(if why.exit_code() == Outcome::Damaged.exit_code() { Outcome::Damaged } else { Outcome::Incomplete });
                writeln!(notes, "afard: {why}")?;
            }
        }
    }
    writeln!(notes, "afard: {written} objects are in {}, {failed} could not be had", folder.display())?;
    Ok(worst)
}

fn write_file(file: &Path, write: impl FnOnce(&mut dyn io::Write) -> Result<(), InspectError>) -> Result<(), InspectError> {
    crate::files::replace_with(file, 0o644, |to| write(to)).map_err(|error| match error {
        InspectError::Answer(error) => InspectError::File { path: file.to_owned(), error },
        other => other,
    })
}

fn remove_index(directory: &Path) -> Result<(), InspectError> {
    inspect::identity(&RealDisk, directory)?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| InspectError::File { path, error }
    };
    let lock = directory.join("lock");
    let held = File::open(&lock).map_err(at(&lock))?;
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(InspectError::InUse(directory.to_owned())),
        Err(TryLockError::Error(error)) => return Err(at(&lock)(error)),
    }
    let index = directory.join("index");
    match fs::remove_dir_all(&index) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&index)(error)),
        _ => Ok(()),
    }
}

fn show(path: &Path, asked: &Asked, out: &mut dyn io::Write) -> Result<Outcome, InspectError> {
    if let Ok((node, incarnation, directory)) = inspect::identity(&RealDisk, path) {
        if asked.json {
            let line = json!({"type": "directory", "path": path, "node": node, "incarnation": incarnation.to_string(), "directory": directory.to_string()});
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{}: directory {directory} of node {node}, incarnation {incarnation}", path.display())?;
        }
    }
    if is_empty(path) {
        if !asked.json {
            writeln!(out, "{}: no segments yet", path.display())?;
        }
        return Ok(Outcome::Good);
    }
    let mut written = Ok(());
    let reports = inspect::list(&RealDisk, path, |listed| {
        if !asked.verify && written.is_ok() {
            written = writeln!(out, "{}", if asked.json { record_json(&listed) } else { record_text(&listed) });
        }
    })?;
    written?;
    for report in &reports {
        writeln!(out, "{}", if asked.json { segment_json(report) } else { segment_text(report) })?;
    }
    let outcome = |report: &SegmentReport| match (report.denied, report.is_whole()) {
        (true, _) => Outcome::Denied,
        (_, true) => Outcome::Good,
        (_, false) => Outcome::Damaged,
    };
    Ok(reports.iter().map(outcome).max().unwrap_or(Outcome::Good))
}

/// Whether a data directory was initialised and nothing was ever written to it.
fn is_empty(path: &Path) -> bool {
    let initialised = inspect::identity(&RealDisk, path).is_ok();
    initialised && fs::read_dir(path.join("segments")).is_ok_and(|mut files| files.next().is_none())
}

fn record_text(listed: &Listed) -> String {
    let Listed { kind, key, bytes, received, object_key, removes, .. } = listed;
    let object = object_key.as_ref().map(|key| format!("  {key:?}")).unwrap_or_default();
    let removed = if removes.is_empty() { String::new() } else { format!("  removes {}", removes.len()) };
    format!("{kind:<9} {}  {bytes:>8} B  received {}  bucket {:?}{object}{removed}", key.id, rfc3339(received.0), key.bucket)
}

fn record_json(listed: &Listed) -> String {
    let removes: Vec<String> = listed.removes.iter().map(|key| key.id.to_string()).collect();
    json!({
        "type": "record", "kind": listed.kind, "id": listed.key.id.to_string(), "bucket": listed.key.bucket.to_string(), "bytes": listed.bytes,
        "received_ms": listed.received.0, "key": listed.object_key, "removes": removes, "path": listed.path, "offset": listed.offset,
    })
    .to_string()
}

fn segment_text(report: &SegmentReport) -> String {
    let kinds: Vec<String> = report.records.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let state = if report.sealed { "sealed" } else { "open" };
    let kinds = if kinds.is_empty() { "no records".to_owned() } else { kinds.join(", ") };
    let mut text = format!(
        "{}: {state}, {} bytes, {kinds}: {}",
        report.path.display(),
        report.bytes,
        match (report.denied, report.is_whole()) {
            (true, _) => "NOT READ",
            (_, true) => "good",
            (_, false) => "DAMAGED",
        }
    );
    for (from, to, why) in &report.damage {
        text.push_str(&format!("\n  bytes {from} to {to}: {why}"));
    }
    if report.footer_agrees == Some(false) {
        text.push_str("\n  the footer does not list the records that are there");
    }
    text
}

fn segment_json(report: &SegmentReport) -> String {
    let damage: Vec<_> = report.damage.iter().map(|(from, to, why)| json!({"from": from, "to": to, "why": why})).collect();
    json!({
        "type": "segment", "path": report.path, "sequence": report.sequence, "bytes": report.bytes, "sealed": report.sealed,
        "records": report.records, "damage": damage, "denied": report.denied, "footer_agrees": report.footer_agrees, "good": report.is_whole(),
    })
    .to_string()
}

/// A time for people.
pub(crate) fn rfc3339(millis: u64) -> humantime::Rfc3339Timestamp {
    // The formatter fails beyond the year 9999, which only damage could claim.
    let bounded = millis.min(253_402_300_799_000);
    humantime::format_rfc3339_seconds(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(bounded))
}
