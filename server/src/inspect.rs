//! `afard inspect`: what is in a data directory or in segment files, without an index, a cluster or a running node. So a disk
//! that was pulled out of a burnt rack can be read with this program alone.
//!
//! Everything is only read, with one exception that must be asked for: `--rebuild-index` removes an index, which is a cache,
//! and refuses while a node uses the directory.
use afar_model::id::{ParseIdError, RecordId};
use afar_store::{
    disk::RealDisk,
    inspect::{self, Listed, SegmentReport},
};
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
    /// Write the record of this id.
    pub extract: Option<String>,
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
    /// Bytes that are no record, or do not match their names.
    Damaged,
}

impl Outcome {
    /// The exit code of the command line's contract.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
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
    /// Not an id.
    #[error("--extract: {0}")]
    Id(#[from] ParseIdError),
    /// No valid copy of that record is there.
    #[error("no intact record {0} here: try the other directories and the other nodes")]
    Missing(RecordId),
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
            Self::Id(_) => 2,
            Self::Missing(_) => 10,
            Self::InUse(_) => 11,
            Self::File { error, .. } | Self::Answer(error) if error.kind() == io::ErrorKind::StorageFull => 13,
            _ => 1,
        }
    }
}

/// Does what was asked for, and answers on `out`.
///
/// # Errors
/// Why it could not be done.
pub fn run(asked: &Asked, out: &mut dyn io::Write) -> Result<Outcome, InspectError> {
    if let Some(id) = &asked.extract {
        return extract(&asked.paths, &id.parse()?, asked.output.as_deref(), out);
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

fn extract(paths: &[PathBuf], id: &RecordId, output: Option<&Path>, out: &mut dyn io::Write) -> Result<Outcome, InspectError> {
    let mut unreadable = None;
    for path in paths.iter().filter(|path| !is_empty(path)) {
        let body = match inspect::extract(&RealDisk, path, id, None) {
            Ok(Some(body)) => body,
            Ok(None) => continue,
            // Another directory may have it.
            Err(error) => {
                unreadable = unreadable.or(Some(error));
                continue;
            }
        };
        match output {
            None => out.write_all(&body)?,
            Some(file) if file == Path::new("-") => out.write_all(&body)?,
            Some(file) => crate::files::replace(file, &body, 0o644).map_err(|error| InspectError::File { path: file.to_owned(), error })?,
        }
        return Ok(Outcome::Good);
    }
    Err(unreadable.map_or(InspectError::Missing(*id), InspectError::Read))
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
    Ok(if reports.iter().all(SegmentReport::is_whole) { Outcome::Good } else { Outcome::Damaged })
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
        if report.is_whole() { "good" } else { "DAMAGED" }
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
        "records": report.records, "damage": damage, "footer_agrees": report.footer_agrees, "good": report.is_whole(),
    })
    .to_string()
}

/// A time for people.
pub(crate) fn rfc3339(millis: u64) -> humantime::Rfc3339Timestamp {
    // The formatter fails beyond the year 9999, which only damage could claim.
    let bounded = millis.min(253_402_300_799_000);
    humantime::format_rfc3339_seconds(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(bounded))
}
