//! Opening: whose directories these are, what a crash left in them, and the threads that serve them.
//!
//! The order matters (rule 16): first what the kernel still holds of the newest segments is synced, then their clean pages
//! are dropped, and only then are they read and believed. A poison marker of an earlier run says up to where the log was
//! durable: what follows is discarded, for the page cache may show what the disk never got.
use crate::{
    directory::{self, Active, Directory, Parts, Settings},
    disk::{Disk, DiskFile, Lock},
    footer::FooterBuilder,
    format::{self, SEGMENT_HEADER, SegmentHeader},
    identity::{self, Identity, Known, Poison},
    index::IndexFactory,
    indexer::{self, Trusted},
    kv::Kv,
    limits,
    recovery::{self, ScanError},
    segment::{self, Segment},
    types::{DamagedRange, DirectoryReport, DirectoryState, OpenError, Options, Position},
    writer,
};
use afar_model::{
    hlc::Stamp,
    id::{BootId, DirectoryId, Incarnation},
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A directory that can be served, not yet served.
pub struct Ready {
    /// The directory.
    pub directory: Arc<Directory>,
    /// The active segment's file, if there is one.
    pub file: Option<Arc<dyn DiskFile>>,
    /// What can be said of its index.
    pub trusted: Result<Trusted, String>,
    /// Held as long as the store is open.
    pub lock: Box<dyn Lock>,
    /// Records that its segments hold, live or not.
    pub records: u64,
}

/// What became of all directories.
pub struct Outcome {
    /// Those that are served.
    pub ready: Vec<Ready>,
    /// All of them.
    pub reports: Vec<DirectoryReport>,
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// This run.
    pub boot: BootId,
}

/// Randomness for a purpose.
fn draw(seed: &[u8; 32], purpose: &str, number: usize) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(purpose.as_bytes());
    hasher.update(&(number as u64).to_le_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

enum Found {
    Ours(Identity),
    New,
    Failed(Option<DirectoryId>, String),
}

/// Opens every directory.
///
/// # Errors
/// See [`OpenError`]. Nothing is changed on disk in that case, save for directories that were made and are empty.
pub fn open(disk: &Arc<dyn Disk>, factory: &dyn IndexFactory, options: &Options) -> Result<Outcome, OpenError> {
    if options.directories.is_empty() {
        return Err(OpenError::NoDirectory);
    }
    let state = |why: io::Error| OpenError::State { path: options.state_dir.join(identity::DIRECTORIES), why: why.to_string() };
    disk.make_directory(&options.state_dir).map_err(state)?;
    let known = Known::read(&**disk, &options.state_dir).map_err(state)?;
    let mut locks = Vec::new();
    let mut found = Vec::new();
    for path in &options.directories {
        let (what, lock) = examine(&**disk, options, known.as_ref(), path)?;
        found.push(what);
        locks.push(lock);
    }
    let incarnation = agree_on_incarnation(options, known.as_ref(), &found)?;
    let settings = Settings {
        incarnation,
        boot: BootId::from_bytes(draw(&options.seed, "boot", 0)),
        segment_bytes: options.segment_bytes.clamp(limits::SEGMENT_BYTES_MIN, limits::SEGMENT_BYTES_MAX),
        reserve: options.reserve,
        now: Arc::clone(&options.now),
    };
    let mut outcome = Outcome { ready: Vec::new(), reports: Vec::new(), incarnation, boot: settings.boot };
    let mut remembered = Vec::new();
    for (number, ((path, what), lock)) in options.directories.iter().zip(found).zip(locks).enumerate() {
        let (id, opened) = match (what, lock) {
            (Found::Failed(id, why), _) => (id, Err(why)),
            (_, None) => (None, Err("it cannot be locked".to_owned())),
            (Found::New, Some(lock)) => {
                let identity = Identity {
                    node: options.node.clone(),
                    incarnation,
                    directory: DirectoryId::from_bytes(draw(&options.seed, "directory", number)),
                };
                (Some(identity.directory), initialise(&**disk, path, &identity).map(|()| (identity.directory, lock, true)))
            }
            (Found::Ours(identity), Some(lock)) => (Some(identity.directory), Ok((identity.directory, lock, false))),
        };
        remembered.extend(id.map(|id| (id, path.clone())));
        let state = match opened.and_then(|(id, lock, new)| Ok((open_directory(disk, factory, &settings, path, id, lock)?, new))) {
            Ok((ready, new)) => {
                let state = match ready.directory.read_only() {
                    Some(why) => DirectoryState::ReadOnly(why),
                    None if new => DirectoryState::Created,
                    None => DirectoryState::Healthy,
                };
                outcome.ready.push(ready);
                state
            }
            Err(why) => {
                tracing::error!(directory = %path.display(), why, "data directory has failed");
                DirectoryState::Failed(why)
            }
        };
        outcome.reports.push(DirectoryReport { path: path.clone(), id, state });
    }
    report_forgotten(known.as_ref(), options, &mut remembered, &mut outcome);
    if outcome.ready.is_empty() {
        let failed = outcome.reports.iter().filter_map(|report| match &report.state {
            DirectoryState::Failed(why) => Some(format!("{}: {why}", report.path.display())),
            _ => None,
        });
        let reasons: Vec<String> = failed.collect();
        return Err(OpenError::AllFailed(reasons.join("; ")));
    }
    let follows_layouts = known.as_ref().is_some_and(|known| known.follows_layouts);
    let remembered = Known { incarnation, directories: remembered, follows_layouts };
    if known.as_ref() != Some(&remembered) {
        remembered.write(&**disk, &options.state_dir).map_err(state)?;
    }
    Ok(outcome)
}

/// A directory that the node once had and that is configured no more: its records are gone until it is again. One that was
/// replaced by a new one at the same path is given up.
fn report_forgotten(known: Option<&Known>, options: &Options, remembered: &mut Vec<(DirectoryId, PathBuf)>, outcome: &mut Outcome) {
    for (id, path) in known.iter().flat_map(|known| &known.directories) {
        let served = remembered.iter().any(|(other, _)| other == id);
        if served || options.directories.contains(path) {
            continue;
        }
        remembered.push((*id, path.clone()));
        let state = DirectoryState::Failed("it is no longer configured: configure it, or let repair replace what it held".to_owned());
        outcome.reports.push(DirectoryReport { path: path.clone(), id: Some(*id), state });
    }
}

/// Looks at one directory without changing it.
fn examine(disk: &dyn Disk, options: &Options, known: Option<&Known>, path: &Path) -> Result<(Found, Option<Box<dyn Lock>>), OpenError> {
    let remembered = known.and_then(|known| known.directories.iter().find(|(_, at)| at == path)).map(|(id, _)| *id);
    match Identity::read(disk, path) {
        Ok(identity) => {
            check_owner(options, known, path, &identity)?;
            match take_lock(disk, path)? {
                Ok(lock) => Ok((Found::Ours(identity), Some(lock))),
                Err(why) => Ok((Found::Failed(Some(identity.directory), why), None)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(stranger) = stranger(disk, path) {
                return match remembered {
                    Some(id) => Ok((Found::Failed(Some(id), format!("its identity is gone, but {stranger} is there")), None)),
                    None => Err(OpenError::NotEmpty { path: path.to_owned(), found: stranger }),
                };
            }
            if !options.init_dirs {
                return match remembered {
                    Some(id) => Ok((Found::Failed(Some(id), "it is missing or empty: a disk that is not mounted?".to_owned()), None)),
                    None => Err(OpenError::NotInitialised { path: path.to_owned() }),
                };
            }
            if let Err(error) = disk.make_directory(path) {
                return Ok((Found::Failed(remembered, format!("it cannot be made: {error}")), None));
            }
            match take_lock(disk, path)? {
                Ok(lock) => Ok((Found::New, Some(lock))),
                Err(why) => Ok((Found::Failed(remembered, why), None)),
            }
        }
        Err(error) => Ok((Found::Failed(remembered, format!("its identity cannot be read: {error}")), None)),
    }
}

fn take_lock(disk: &dyn Disk, path: &Path) -> Result<Result<Box<dyn Lock>, String>, OpenError> {
    match disk.lock(&path.join("lock")) {
        Ok(lock) => Ok(Ok(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OpenError::Locked { path: path.to_owned() }),
        Err(error) => Ok(Err(format!("it cannot be locked: {error}"))),
    }
}

/// Something in a directory that is not ours to write beside.
fn stranger(disk: &dyn Disk, path: &Path) -> Option<String> {
    let names = disk.list(path).ok()?;
    names.into_iter().find(|name| !matches!(name.as_str(), "lost+found" | "lock" | "identity.new"))
}

fn check_owner(options: &Options, known: Option<&Known>, path: &Path, identity: &Identity) -> Result<(), OpenError> {
    let expected = options.incarnation.or(known.map(|known| known.incarnation));
    if identity.node == options.node && expected.is_none_or(|expected| expected == identity.incarnation) {
        return Ok(());
    }
    Err(OpenError::Foreign {
        path: path.to_owned(),
        found: format!("{} ({})", identity.node, identity.incarnation),
        expected: expected.map_or_else(|| options.node.clone(), |expected| format!("{} ({expected})", options.node)),
    })
}

fn agree_on_incarnation(options: &Options, known: Option<&Known>, found: &[Found]) -> Result<Incarnation, OpenError> {
    let mut agreed = options.incarnation.or(known.map(|known| known.incarnation));
    for (path, what) in options.directories.iter().zip(found) {
        let Found::Ours(identity) = what else { continue };
        match agreed {
            Some(agreed) if agreed != identity.incarnation => {
                return Err(OpenError::Foreign {
                    path: path.clone(),
                    found: format!("{} ({})", identity.node, identity.incarnation),
                    expected: format!("{} ({agreed})", options.node),
                });
            }
            _ => agreed = Some(identity.incarnation),
        }
    }
    Ok(agreed.unwrap_or_else(|| Incarnation::from_bytes(draw(&options.seed, "incarnation", 0))))
}

/// Identity last: a directory without one is not ours yet.
fn initialise(disk: &dyn Disk, path: &Path, identity: &Identity) -> Result<(), String> {
    let made = disk
        .make_directory(&path.join("segments"))
        .and_then(|()| disk.sync_directory(path))
        .and_then(|()| identity.write(disk, path))
        .and_then(|()| path.parent().map_or(Ok(()), |parent| disk.sync_directory(parent)));
    made.map_err(|error| format!("it cannot be initialised: {error}"))
}

struct Log {
    segments: BTreeMap<u64, Arc<Segment>>,
    active: Active,
    file: Option<Arc<dyn DiskFile>>,
    end: Position,
    damaged: Vec<DamagedRange>,
    stamp_max: Stamp,
    records: u64,
    read_only: Option<String>,
    /// Segments of which the index knows more than there is.
    lost: Vec<u64>,
}

fn open_directory(
    disk: &Arc<dyn Disk>,
    factory: &dyn IndexFactory,
    settings: &Settings,
    path: &Path,
    id: DirectoryId,
    lock: Box<dyn Lock>,
) -> Result<Ready, String> {
    let mut log = open_log(&**disk, settings, path, id)?;
    let mut known = Vec::new();
    let opened = factory.open(path).map(|index| {
        let trusted = indexer::trusted(&*index, id).and_then(|trusted| log.agree(id, trusted));
        if !log.lost.is_empty() {
            known = indexer::known_in(&Kv::new(Arc::clone(&index)), &|segment| log.lost.contains(&segment));
        }
        (index, trusted)
    });
    let (index, trusted) = match opened {
        Ok((index, Ok(trusted))) => (index, Ok(trusted)),
        // A new directory's index is empty, which is right.
        Ok((index, Err(_))) if log.records == 0 && index_is_empty(&*index) => (index, Ok(Trusted::default())),
        Ok((index, Err(why))) => {
            drop(index); // before its files are renamed
            (indexer::replacement(factory, path), Err(why))
        }
        Err(error) => (indexer::replacement(factory, path), Err(error.0)),
    };
    if let Err(why) = &trusted {
        tracing::warn!(directory = %path.display(), why, "the index cannot be used: rebuilding it from the segments");
    }
    let directory = Arc::new(Directory::new(Parts {
        id,
        path: path.to_owned(),
        disk: Arc::clone(disk),
        settings: settings.clone(),
        segments: log.segments,
        active: log.active,
        kv: Kv::new(index),
        counters: trusted.as_ref().map(|trusted| trusted.counters.clone()).unwrap_or_default(),
        end: log.end,
        damaged: log.damaged,
        stamp_max: log.stamp_max,
    }));
    known.retain(|(note, place)| place.is_none_or(|place| !directory.lists(&note.record, &place)));
    directory.lost_versions.lock().extend(known.into_iter().map(|(note, _)| note));
    if let Some(why) = log.read_only {
        directory.commit.poison(&why);
    }
    if let Some(file) = &log.file {
        directory.commit.begin(log.end.segment, Arc::clone(file), false, log.end);
    }
    Ok(Ready { directory, file: log.file, trusted, lock, records: log.records })
}

impl Log {
    /// Holds an index against the log: one that knows of more shows that something is lost.
    ///
    /// # Errors
    /// That it knows of more: it cannot be used then.
    fn agree(&mut self, id: DirectoryId, trusted: Trusted) -> Result<Trusted, String> {
        let lost = indexer::lost(&trusted, &self.segments, &self.active, self.end);
        if lost.is_empty() {
            return Ok(trusted);
        }
        self.lost = lost.iter().map(|(segment, _)| *segment).collect();
        for (segment, why) in lost {
            tracing::error!(segment, why, "records are lost: the index knows of more records than the log has");
            if !self.damaged.iter().any(|known| known.segment == segment) {
                self.damaged.push(DamagedRange { directory: id, segment, from: 0, to: 0, why });
            }
        }
        Err("it knows of records that are not in the log".to_owned())
    }
}

fn index_is_empty(index: &dyn crate::index::Index) -> bool {
    matches!(index.get(crate::index::keys::META), Ok(None))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

fn open_log(disk: &dyn Disk, settings: &Settings, path: &Path, id: DirectoryId) -> Result<Log, String> {
    let segments_path = path.join("segments");
    let poison = Poison::read(disk, path).map_err(failed("its marker of a failed sync cannot be read"))?;
    if let Some(poison) = &poison {
        discard_after(disk, path, &segments_path, poison).map_err(failed("what followed a failed sync cannot be discarded"))?;
    }
    let names = disk.list(&segments_path).map_err(failed("its segments cannot be listed"))?;
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| format::parse_segment_name(name)).collect();
    sequences.sort_unstable();
    settle_newest(disk, &segments_path, &sequences).map_err(failed("its newest segments cannot be synced"))?;
    let mut log = Log {
        segments: BTreeMap::new(),
        active: Active { sequence: sequences.last().copied().unwrap_or(0), builder: FooterBuilder::default() },
        file: None,
        end: Position { segment: sequences.last().copied().unwrap_or(0), offset: 0 },
        damaged: Vec::new(),
        stamp_max: Stamp::ZERO,
        records: 0,
        read_only: None,
        lost: Vec::new(),
    };
    let newest = sequences.last().copied();
    let recent = sequences.iter().rev().nth(UNSYNCED_MAX - 1).copied().unwrap_or(0);
    for sequence in sequences {
        let age = Age { newest: newest == Some(sequence), recent: sequence >= recent };
        open_segment(disk, settings, &segments_path, id, sequence, age, &mut log)?;
    }
    Ok(log)
}

/// A crash can leave at most so many segments that were not synced to their end: see [`crate::commit`].
const UNSYNCED_MAX: usize = 3;

/// Where a segment is among the others.
#[derive(Debug, Clone, Copy)]
struct Age {
    newest: bool,
    /// It may have been sealed without having been synced.
    recent: bool,
}

/// Rule 16: what is in the page cache of the newest segments is synced, then dropped, so that what is read next is what the
/// disk holds. Older ones were synced before a later one was begun.
fn settle_newest(disk: &dyn Disk, segments: &Path, sequences: &[u64]) -> io::Result<()> {
    for sequence in sequences.iter().rev().take(UNSYNCED_MAX) {
        let file = disk.open(&segments.join(format::segment_name(*sequence)), true)?;
        file.sync()?;
        file.forget(0, 0);
    }
    disk.sync_directory(segments)
}

fn discard_after(disk: &dyn Disk, path: &Path, segments: &Path, poison: &Poison) -> io::Result<()> {
    tracing::warn!(directory = %path.display(), segment = poison.segment, offset = poison.offset, why = poison.why, "discarding what followed a failed sync");
    for name in disk.list(segments)? {
        let Some(sequence) = format::parse_segment_name(&name) else { continue };
        let file = segments.join(&name);
        if sequence > poison.segment || (sequence == poison.segment && poison.offset <= SEGMENT_HEADER as u64) {
            disk.remove(&file)?;
        } else if sequence == poison.segment {
            let file = disk.open(&file, true)?;
            if file.stat()?.length > poison.offset {
                file.set_length(poison.offset)?;
            }
            file.sync()?;
        }
    }
    disk.sync_directory(segments)?;
    disk.remove(&path.join(identity::POISONED))?;
    disk.sync_directory(path)
}

fn open_segment(
    disk: &dyn Disk,
    settings: &Settings,
    segments: &Path,
    id: DirectoryId,
    sequence: u64,
    age: Age,
    log: &mut Log,
) -> Result<(), String> {
    let newest = age.newest;
    let path = segments.join(format::segment_name(sequence));
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let file = disk.open(&path, newest).map_err(failed)?;
    let stat = file.stat().map_err(failed)?;
    let damaged = |from, to, why: String| DamagedRange { directory: id, segment: sequence, from, to, why };
    let mut head = [0; SEGMENT_HEADER];
    let read = crate::disk::read_exact(&*file, &mut head, 0).is_ok();
    let (created, intact) = match SegmentHeader::decode(&head) {
        Ok(header) if header.directory == id && header.sequence == sequence => (header.created, true),
        Ok(header) => {
            let why = format!("it belongs to directory {} of incarnation {}: refused", header.directory, header.incarnation);
            tracing::error!(segment = %path.display(), why, "foreign segment");
            log.damaged.push(damaged(0, stat.length, why));
            return Ok(());
        }
        Err(format::FormatError::Unknown { what, number }) => {
            return Err(format!("{}: {what} {number} is not known to this program: upgrade it", path.display()));
        }
        // The records carry this directory's checksum themselves, so a damaged header loses nothing but its date.
        Err(error) => {
            if read && !newest {
                log.damaged.push(damaged(0, SEGMENT_HEADER as u64, error.to_string()));
            }
            ((settings.now)(), false)
        }
    };
    let trailer = match segment::read_trailer(&*file, stat.length) {
        // Then it is scanned, as one that was never sealed.
        Err(error) if crate::disk::is_unreadable(&error) => None,
        trailer => trailer.map_err(failed)?,
    };
    // The power may have gone between writing a footer and syncing it: then it is as if it had not been written.
    let trailer = trailer.filter(|trailer| !age.recent || segment::read_footer(&file, format::salt(id), trailer).is_ok());
    let segment = Arc::new(Segment::new(sequence, path.clone(), created, stat, trailer));
    if let Some(trailer) = trailer {
        log.records += trailer.count;
        log.stamp_max = log.stamp_max.max(trailer.stamp_max);
        log.segments.insert(sequence, segment);
        if newest {
            log.end = Position { segment: sequence, offset: stat.length };
        }
        return Ok(());
    }
    recover(settings, id, disk, &file, segment, newest, intact, log)
}

/// Scans a segment that was never sealed; cuts a torn tail; goes on writing in it if it is the newest.
#[allow(clippy::too_many_arguments)]
fn recover(
    settings: &Settings,
    id: DirectoryId,
    disk: &dyn Disk,
    file: &Arc<dyn DiskFile>,
    segment: Arc<Segment>,
    newest: bool,
    intact: bool,
    log: &mut Log,
) -> Result<(), String> {
    let path = segment.path.clone();
    let mut builder = FooterBuilder::default();
    let scanned = recovery::scan(&**file, segment.length(), Some(format::salt(id)), |offset, header, body| {
        directory::note(&mut builder, offset, header, body);
    });
    let scan = scanned.map_err(|error: ScanError| format!("{}: {error}", path.display()))?;
    for bad in scan.damaged {
        tracing::error!(segment = %path.display(), from = bad.from, to = bad.to, why = bad.why, "damaged range");
        log.damaged.push(DamagedRange { directory: id, segment: segment.sequence, from: bad.from, to: bad.to, why: bad.why });
    }
    log.records += builder.totals.count;
    log.stamp_max = log.stamp_max.max(builder.totals.stamp_max);
    segment.mark_verified(scan.end, (settings.now)());
    if builder.len() == 0 && newest && !intact {
        // Torn while it was begun: nothing in it was acknowledged, for its header was synced before anything could be.
        if segment.length() > SEGMENT_HEADER as u64 {
            log.damaged.push(DamagedRange {
                directory: id,
                segment: segment.sequence,
                from: 0,
                to: segment.length(),
                why: "nothing in it is valid".to_owned(),
            });
        } else if disk.remove(&path).and_then(|()| disk.sync_directory(path.parent().unwrap_or(Path::new("")))).is_err() {
            log.read_only = Some(format!("{}: a torn segment cannot be removed", path.display()));
        }
        return Ok(());
    }
    let writable = disk.open(&path, true);
    let cut = match (&writable, &scan.torn) {
        (Ok(file), _) if scan.end != segment.length() => {
            let why = scan.torn.as_ref().map_or("an unfinished footer", |torn| torn.why.as_str());
            tracing::warn!(segment = %path.display(), from = scan.end, to = segment.length(), why, "cutting off a torn tail");
            file.set_length(scan.end).and_then(|()| file.sync())
        }
        (Ok(file), _) if !intact && newest => rewrite_header(&**file, settings, id, &segment),
        (Ok(_), _) => Ok(()),
        (Err(error), _) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    if let Err(error) = &cut {
        log.read_only = Some(format!("{}: {error}", path.display()));
    }
    segment.set_length(scan.end);
    log.segments.insert(segment.sequence, Arc::clone(&segment));
    if newest {
        log.end = Position { segment: segment.sequence, offset: scan.end };
        log.active.builder = builder;
        log.file = writable.ok().filter(|_| cut.is_ok());
        return Ok(());
    }
    // A crash between two segments left it without a footer: it gets one now. If that fails it is served by scanning.
    if let (Ok(file), Ok(())) = (&writable, &cut) {
        match writer::seal(&**file, format::salt(id), &builder, scan.end, (settings.now)()).and_then(|sealed| file.sync().map(|()| sealed))
        {
            Ok((trailer, length)) => segment.seal(trailer, length),
            Err(error) => {
                tracing::warn!(segment = %path.display(), %error, "could not be sealed");
                let _ = file.set_length(scan.end);
            }
        }
    }
    Ok(())
}

/// The header of a segment with valid records did not reach the disk, or has rotted.
fn rewrite_header(file: &dyn DiskFile, settings: &Settings, id: DirectoryId, segment: &Segment) -> io::Result<()> {
    let header = SegmentHeader { incarnation: settings.incarnation, directory: id, sequence: segment.sequence, created: segment.created };
    crate::disk::write_all(file, &mut [io::IoSlice::new(&header.encode())], 0)?;
    file.sync()
}
