//! The index thread: brings the index up to the log, checks that it agrees with it, and rebuilds it where it does not.
//!
//! Starting up, replaying what a crash left behind, and rebuilding from nothing are one thing: from the checkpoint on, take
//! the segments' footers in the order of the log and resolve them as the writer would have. Meanwhile records are found by
//! those same footers, and listings answer "not ready". What the writer adds in the meantime waits in the overlay.
use crate::{
    directory::{Active, Behind, BehindPart, Directory},
    disk::DiskFile,
    footer::{Entry, FooterView},
    format::{self, Kind},
    index::{
        Index, IndexError, IndexFactory, Op,
        keys::{self, Checkpoint, Counters, table},
        mem::MemIndex,
    },
    kv::Kv,
    ledger::{self, Delta, Known, LogItem},
    limits,
    segment::{self, Place, Segment},
    types::{DamagedRange, Position},
};
use afar_model::{
    id::RecordId,
    record::{RecordKey, RecordKind},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Instant,
};

/// The index thread's state.
#[derive(Debug)]
pub struct Indexer {
    directory: Arc<Directory>,
    factory: Arc<dyn IndexFactory>,
    /// Counters as the index has them.
    applied: BTreeMap<u64, Counters>,
    /// The log up to here is in the index.
    end: Position,
    /// Whether the index was rebuilt from nothing in this run: a mismatch then is not cured by doing it again.
    rebuilt: bool,
    flushed: Instant,
    dirty: bool,
}

enum Work {
    Apply(Vec<Delta>),
    Rebuild(String),
    Flush,
    Stop,
}

impl Indexer {
    /// Continues from what [`trusted`] said of the index; marks the directory as behind, so that readers know.
    pub fn new(directory: Arc<Directory>, factory: Arc<dyn IndexFactory>, trusted: Result<Trusted, String>) -> Self {
        let fresh = trusted.is_err();
        let (end, applied) = trusted.map_or_else(|_| Default::default(), |trusted| (trusted.end, trusted.counters));
        let indexer = Self { directory, factory, applied, end, rebuilt: fresh, flushed: Instant::now(), dirty: false };
        indexer.fall_behind(indexer.directory.commit.written(), !fresh);
        indexer
    }

    /// Until told to stop.
    pub fn run(mut self) {
        self.catch_up();
        loop {
            match self.next() {
                Work::Apply(deltas) => self.apply_or_rebuild(deltas),
                Work::Rebuild(why) => self.rebuild(&why),
                Work::Flush => self.flush(),
                Work::Stop => return self.flush(),
            }
            self.stop_deferring();
            self.directory.deltas_done.notify_all();
        }
    }

    fn next(&self) -> Work {
        let directory = &self.directory;
        let mut queue = directory.deltas.lock();
        loop {
            if let Some(why) = queue.rebuild.take() {
                return Work::Rebuild(why);
            }
            let durable = directory.commit.durable();
            let (mut taken, mut ops) = (Vec::new(), 0);
            while let Some(delta) = queue.deltas.pop_front_if(|delta| delta.end <= durable && ops < limits::INDEX_BATCH_OPS) {
                ops += delta.ops.len() + delta.deferred.len();
                taken.push(delta);
            }
            if !taken.is_empty() {
                return Work::Apply(taken);
            }
            if !queue.flush.is_empty() || (self.dirty && self.flushed.elapsed() >= limits::INDEX_FLUSH_EVERY) {
                return Work::Flush;
            }
            if queue.stop {
                return Work::Stop;
            }
            directory.deltas_wake.wait_for(&mut queue, limits::LAZY_SYNC_EVERY);
        }
    }

    fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.directory.deltas.lock().flush);
        let result = self.directory.kv.index().flush().map_err(|error| error.0);
        self.flushed = Instant::now();
        self.dirty = false;
        if let Err(why) = &result {
            self.directory.distrust_index(why);
        }
        waiting.into_iter().for_each(|waiter| drop(waiter.send(result.clone())));
    }

    fn apply_or_rebuild(&mut self, mut deltas: Vec<Delta>) {
        let Some((number, end)) = deltas.last().map(|delta| (delta.number, delta.end)) else { return };
        let index = self.directory.kv.index();
        let mut rows = Pending::new(&*index, &self.directory);
        let (mut counters, mut deferred, mut tally) = (Vec::new(), Vec::new(), Vec::new());
        for delta in &mut deltas {
            rows.take(delta.ops.drain(..));
            counters.append(&mut delta.counters);
            for item in delta.deferred.drain(..) {
                let (ops, changes) = ledger::resolve(&item, &rows, &mut Delta::default());
                rows.take(ops.into_iter());
                tally.extend(changes);
                deferred.push(item);
            }
        }
        let mut rows = rows.into_rows();
        match self.write(&*index, &mut rows, &counters, end) {
            Ok(()) => {
                self.directory.kv.overlay.write().applied(rows.iter().map(|(key, _)| key.as_slice()), number);
                self.directory.count_tally(tally);
            }
            Err(error) => {
                // What was deferred is resolved anew, over the next index.
                rows.retain(|(key, _)| deferred.is_empty() || !matches!(key.first(), Some(&(table::OUTBOX | table::DEBT))));
                let again = Delta { number, ops: rows, counters, deferred, end };
                self.directory.deltas.lock().deltas.push_front(again);
                self.directory.distrust_index(&error.0);
            }
        }
    }

    /// One atomic batch: rows, the counters that go with them, and how far the log is in the index then. The rows come back
    /// as they were.
    fn write(&mut self, index: &dyn Index, rows: &mut Vec<Op>, changes: &[(u64, Counters)], end: Position) -> Result<(), IndexError> {
        let mut counters: BTreeMap<u64, Counters> = BTreeMap::new();
        for (segment, change) in changes {
            counters.entry(*segment).or_insert_with(|| self.applied.get(segment).copied().unwrap_or_default()).merge(change);
        }
        let own = rows.len();
        for (segment, counted) in &counters {
            rows.push((keys::segment(*segment), postcard::to_stdvec(counted).ok()));
        }
        rows.push((keys::META.to_vec(), Some(keys::checkpoint(self.directory.id, end))));
        let applied = index.apply(rows);
        rows.truncate(own);
        applied?;
        self.applied.extend(counters);
        self.end = end;
        self.dirty = true;
        Ok(())
    }

    /// From now on records of the log up to `limit` that the index lacks are found by footers.
    fn fall_behind(&self, limit: Position, index_usable: bool) {
        let directory = &self.directory;
        let active = directory.active.lock();
        let wanted = |segment: &&Arc<Segment>| segment.sequence >= self.end.segment && segment.sequence <= limit.segment;
        let segments: Vec<Arc<Segment>> = directory.segments.read().values().rev().filter(wanted).cloned().collect();
        let part = |segment: Arc<Segment>| {
            let view = OnceLock::new();
            if segment.sequence == active.sequence && segment.trailer().is_none() {
                // What lies beyond the limit is in the overlay, which is asked first.
                let _ = view.set(FooterView::in_memory(active.builder.encode().into()).ok().map(Arc::new));
            }
            BehindPart { sequence: segment.sequence, view }
        };
        let parts = segments.into_iter().map(part).collect();
        *directory.behind.write() = Some(Arc::new(Behind { parts, index_usable }));
    }

    fn rebuild(&mut self, why: &str) {
        let directory = Arc::clone(&self.directory);
        tracing::warn!(directory = %directory.path.display(), why, "rebuilding the index");
        let limit = self.end;
        {
            let _order = directory.resolving.lock();
            directory.deferring.store(true, Ordering::Release);
        }
        self.applied.clear();
        self.end = Position::default();
        self.rebuilt = true;
        directory.progress.store(0, Ordering::Relaxed);
        self.fall_behind(limit, false);
        directory.kv.replace(replacement(&*self.factory, &directory.path));
        directory.counters.lock().clear();
        self.catch_up_to(limit);
        // What is still on its way was counted before: count it again.
        let queue = directory.deltas.lock();
        let mut counters = directory.counters.lock();
        for (segment, change) in queue.deltas.iter().flat_map(|delta| &delta.counters) {
            counters.entry(*segment).or_default().merge(change);
        }
    }

    fn catch_up(&mut self) {
        // Everything up to here was synced when the directory was opened.
        let limit = self.directory.behind.read().as_ref().and_then(|behind| behind.parts.first().map(|part| part.sequence));
        let opened = self.directory.commit.durable();
        let limit = limit.map_or(opened, |segment| if segment == opened.segment { opened } else { Position { segment, offset: u64::MAX } });
        self.catch_up_to(limit);
        self.stop_deferring();
    }

    fn catch_up_to(&mut self, limit: Position) {
        let Some(behind) = self.directory.behind.read().clone() else { return };
        let total = behind.parts.len().max(1) as u64;
        for (done, part) in behind.parts.iter().rev().enumerate() {
            let stopping = self.directory.deltas.lock().stop;
            if stopping {
                return;
            }
            if let Err(why) = self.replay(part, limit)
                && self.directory.segment(part.sequence).is_some()
            {
                tracing::error!(directory = %self.directory.path.display(), segment = part.sequence, why, "segment cannot be replayed");
                self.directory.damaged.lock().push(DamagedRange {
                    directory: self.directory.id,
                    segment: part.sequence,
                    from: 0,
                    to: self.directory.segment(part.sequence).map_or(0, |segment| segment.length()),
                    why,
                });
            }
            self.directory.progress.store((done as u64 + 1) * 1000 / total, Ordering::Relaxed);
        }
        self.end = self.end.max(limit);
        *self.directory.behind.write() = None;
        self.recount_tally();
        self.judge();
    }

    fn replay(&mut self, part: &BehindPart, limit: Position) -> Result<(), String> {
        let directory = Arc::clone(&self.directory);
        let file = directory.handle(part.sequence).map_err(|error| error.to_string())?;
        let view = match part.view.get().cloned().flatten() {
            Some(view) => view,
            None => directory.footer(part.sequence).map_err(|error| error.to_string())?,
        };
        let from = self.end;
        let todo = view.in_log_order().map_err(|error| error.to_string())?.into_iter().filter(|(entry, _)| {
            let here = Position { segment: part.sequence, offset: entry.offset };
            here >= from && here < limit
        });
        let index = directory.kv.index();
        let mut rows = Pending::new(&*index, &directory);
        let mut delta = Delta::default();
        // Of the tombstone that passes by: where it is, and what it says beside its keys.
        let mut notes = (0, HashMap::new());
        for (entry, info) in todo {
            // A batch ends between records, never between the entries of one tombstone.
            if rows.rows.len() >= REPLAY_BATCH_OPS && entry.offset >= delta.end.offset {
                let full = std::mem::replace(&mut rows, Pending::new(&*index, &directory));
                self.write_replayed(&*index, full, &mut delta)?;
            }
            if entry.kind == Kind::Tombstone && notes.0 != entry.offset {
                notes = (entry.offset, read_notes(&directory, &*file, &entry, part.sequence));
            }
            let item = match entry.kind {
                Kind::Tombstone => Some(LogItem::Remove(entry.key, notes.1.remove(&entry.key))),
                _ => to_item(&directory, &*file, &entry, info, part.sequence),
            };
            if let Some(item) = item {
                let (ops, _) = ledger::resolve(&item, &rows, &mut delta);
                rows.take(ops.into_iter());
            }
            delta.end = Position { segment: part.sequence, offset: entry.offset + format::total(entry.length) };
        }
        if delta.end != Position::default() {
            self.write_replayed(&*index, rows, &mut delta)?;
        }
        Ok(())
    }

    fn write_replayed(&mut self, index: &dyn Index, rows: Pending<'_>, delta: &mut Delta) -> Result<(), String> {
        self.write(index, &mut rows.into_rows(), &delta.counters, delta.end).map_err(|error| error.0)?;
        let mut counters = self.directory.counters.lock();
        for (segment, change) in delta.counters.drain(..) {
            counters.entry(segment).or_default().merge(&change);
        }
        delta.end = Position::default();
        Ok(())
    }

    fn recount_tally(&self) {
        let mut tally: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        let (from, to) = ([table::OUTBOX], [table::OUTBOX + 1]);
        // With the overlay: what was resolved before a rebuild began is still on its way.
        let scanned = self.directory.kv.scan(&from, &to, &mut |key, value| {
            if let Some(owed) = keys::parse_outbox(key, value) {
                let (records, bytes) = tally.entry(owed.to).or_default();
                *records += 1;
                *bytes += i64::from(owed.bytes);
            }
            true
        });
        *self.directory.tally.lock() = tally;
        if let Err(error) = scanned {
            self.directory.distrust_index(&error.0);
        }
    }

    /// Rule 18: whether what was replayed adds up to what the segments say.
    fn judge(&mut self) {
        let mismatches = compare(&self.directory, &self.applied, self.end);
        self.directory.index_agrees.store(mismatches.is_empty(), Ordering::Release);
        if let Some(first) = mismatches.first() {
            if self.rebuilt {
                tracing::error!(directory = %self.directory.path.display(), first, "a rebuilt index does not add up: the segments contradict themselves");
            } else {
                self.directory.distrust_index(first);
            }
        }
    }

    /// Once nothing that was deferred is on its way any more, the writer resolves everything itself again.
    fn stop_deferring(&self) {
        let directory = &self.directory;
        if directory.views_ready() || directory.behind.read().is_some() {
            return;
        }
        let order = directory.resolving.lock();
        let queue = directory.deltas.lock();
        if queue.rebuild.is_none() && queue.losing == 0 && queue.deltas.iter().all(|delta| delta.deferred.is_empty()) {
            directory.progress.store(1000, Ordering::Relaxed);
            directory.deferring.store(false, Ordering::Release);
            directory.deltas_done.notify_all();
            drop((queue, order));
            directory.note_lost();
        } else {
            directory.commit.hurry();
        }
    }
}

/// Operations per batch while nobody lists anyway.
const REPLAY_BATCH_OPS: usize = 4096;

/// An empty index in place of an unusable one; in memory if the disk refuses even that.
pub fn replacement(factory: &dyn IndexFactory, directory: &std::path::Path) -> Arc<dyn Index> {
    factory.replace(directory).unwrap_or_else(|error| {
        tracing::error!(directory = %directory.display(), %error, "no index can be made on this disk: keeping it in memory until the next start");
        Arc::new(MemIndex::default())
    })
}

/// Rows that are about to be applied, over the index.
struct Pending<'a> {
    rows: HashMap<Vec<u8>, Option<Vec<u8>>>,
    index: &'a dyn Index,
    directory: &'a Directory,
}

impl<'a> Pending<'a> {
    fn new(index: &'a dyn Index, directory: &'a Directory) -> Self {
        Self { rows: HashMap::new(), index, directory }
    }

    fn take(&mut self, ops: impl Iterator<Item = Op>) {
        self.rows.extend(ops);
    }

    fn into_rows(self) -> Vec<Op> {
        self.rows.into_iter().collect()
    }
}

impl Known for Pending<'_> {
    fn place(&self, key: &RecordKey) -> Option<Place> {
        self.row(&keys::primary(key)).and_then(|value| keys::parse_place(&value))
    }

    fn row(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.rows.get(key) {
            Some(value) => value.clone(),
            None => self.index.get(key).ok().flatten(),
        }
    }

    fn describe(&self, key: &RecordKey, place: &Place) -> Option<format::VersionInfo> {
        self.directory.describe(key, place)
    }
}

fn to_item(directory: &Directory, file: &dyn DiskFile, entry: &Entry, info: Option<format::VersionInfo>, segment: u64) -> Option<LogItem> {
    match entry.kind {
        Kind::Public(kind) => {
            let place = Place { segment, offset: entry.offset, length: entry.length, kind };
            Some(LogItem::Put { key: entry.key, place, received: entry.received, info: info.filter(|_| kind == RecordKind::Version) })
        }
        Kind::Tombstone => None, // of several records, and perhaps with notes: the caller's
        Kind::Settled => local(directory, file, entry, segment).map(LogItem::Settled),
        Kind::Owed => local(directory, file, entry, segment).map(LogItem::Owed),
        Kind::Paid => local(directory, file, entry, segment).map(LogItem::Paid),
        Kind::Footer => None,
    }
}

/// Reads and verifies a local record; one that is damaged is reported and skipped.
pub fn local<T: serde::de::DeserializeOwned>(directory: &Directory, file: &dyn DiskFile, entry: &Entry, segment: u64) -> Option<T> {
    local_body(directory, file, entry, segment, |body| format::decode_local(body))
}

/// The notes beside the keys of a tombstone, by record.
fn read_notes(directory: &Directory, file: &dyn DiskFile, entry: &Entry, segment: u64) -> HashMap<RecordKey, format::Note> {
    let notes = local_body(directory, file, entry, segment, format::decode_notes).unwrap_or_default();
    notes.into_iter().map(|note| (note.record, note)).collect()
}

fn local_body<T>(
    directory: &Directory,
    file: &dyn DiskFile,
    entry: &Entry,
    segment: u64,
    decode: impl FnOnce(&[u8]) -> Result<T, format::FormatError>,
) -> Option<T> {
    let why = match segment::read_raw(file, directory.salt, entry.offset, entry.length) {
        Ok((header, body)) if header.kind == entry.kind && RecordId::of(&body) == header.key.id => match decode(&body) {
            Ok(value) => return Some(value),
            Err(error) => error.to_string(),
        },
        Ok(_) => "a local record does not match its hash".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    let to = entry.offset + format::total(entry.length);
    directory.damaged.lock().push(DamagedRange { directory: directory.id, segment, from: entry.offset, to, why });
    None
}

/// Where the index is, and what it has counted.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    /// The log up to here is in it.
    pub end: Position,
    /// Its counters.
    pub counters: BTreeMap<u64, Counters>,
}

/// What an index knows to have been in the log and is not: per segment, with what is missing. It is brought up to the log only
/// once that is durable, so nothing but a loss explains this.
pub fn lost(trusted: &Trusted, segments: &BTreeMap<u64, Arc<Segment>>, active: &Active, end: Position) -> Vec<(u64, String)> {
    let held = |sequence: &u64| match segments.get(sequence).map(|segment| segment.totals()) {
        Some(Some((count, _))) => count,
        Some(None) if *sequence == active.sequence => active.builder.totals.count,
        Some(None) => u64::MAX, // neither sealed nor written to: only a scan would tell
        None => 0,
    };
    let known = trusted.counters.iter().filter(|(_, counted)| counted.live > 0);
    let missing = known.map(|(sequence, counted)| (*sequence, u64::try_from(counted.live + counted.dead).unwrap_or(0), held(sequence)));
    let mut lost: Vec<(u64, String)> = missing
        .filter(|(_, known, held)| known > held)
        .map(|(sequence, known, held)| (sequence, format!("{held} of the {known} records that the index knows are there")))
        .collect();
    if trusted.end > end && lost.is_empty() {
        lost.push((trusted.end.segment, "the log ends before what the index knows of it".to_owned()));
    }
    lost
}

/// What is to be noted of the versions that were in segments of which something is lost: all that an index knows to have been
/// there, each with its place; and the notes that it has, for what says so may be lost as well.
pub fn known_in(kv: &Kv, lost: &dyn Fn(u64) -> bool) -> Vec<(format::Note, Option<Place>)> {
    let mut known = Vec::new();
    let scanned = kv.scan(&[table::VIEW], &[table::VIEW + 1], &mut |row, value| {
        let (Some((bucket, key, stamp, id)), Some(view)) = (keys::parse_view(row), keys::ViewRow::decode(value)) else { return true };
        let record = RecordKey { bucket, id };
        let place = || kv.get(&keys::primary(&record)).ok().flatten().and_then(|value| keys::parse_place(&value));
        let place = if view.here { place() } else { None };
        if !view.here || place.is_some_and(|place| lost(place.segment)) {
            known.push((view.note(record, key, stamp), place));
        }
        true
    });
    if let Err(error) = scanned {
        tracing::error!(%error, "what was in lost segments is not known");
    }
    known
}

/// Reads an index's checkpoint and counters.
///
/// # Errors
/// Why it cannot be used.
pub fn trusted(index: &dyn Index, directory: afar_model::id::DirectoryId) -> Result<Trusted, String> {
    let meta = index.get(keys::META).map_err(|error| error.0)?.ok_or("it is empty")?;
    let checkpoint: Checkpoint = postcard::from_bytes(&meta).map_err(|_| "its checkpoint is malformed")?;
    if checkpoint.format != keys::FORMAT {
        return Err(format!("it has format {}, this program has {}", checkpoint.format, keys::FORMAT));
    }
    if checkpoint.directory != directory {
        return Err("it belongs to another directory".to_owned());
    }
    let at = Position { segment: checkpoint.segment, offset: checkpoint.offset };
    let mut counters = BTreeMap::new();
    let scanned = index.scan(&[table::SEGMENT], &[table::SEGMENT + 1], &mut |key, value| {
        if let (Some(segment), Ok(counted)) = (keys::parse_segment(key), postcard::from_bytes(value)) {
            counters.insert(segment, counted);
        }
        true
    });
    scanned.map_err(|error| error.0)?;
    Ok(Trusted { end: at, counters })
}

/// Compares counters with what the segments say of themselves (rule 18), for those that lie wholly before `end`. Tells what
/// does not agree.
pub fn compare(directory: &Directory, counters: &BTreeMap<u64, Counters>, end: Position) -> Vec<String> {
    let segments: Vec<Arc<Segment>> = directory.segments.read().values().cloned().collect();
    let mut mismatches = Vec::new();
    for segment in &segments {
        let counted = counters.get(&segment.sequence).copied().unwrap_or_default();
        let said = match segment.trailer() {
            Some(trailer) if segment.sequence < end.segment || end.offset >= trailer.footer_offset => match segment.totals() {
                Some(totals) => totals,
                None => continue,
            },
            _ if segment.sequence < end.segment => continue, // unsealed and not active: known by scan only
            _ if segment.sequence == end.segment && end.offset > 0 => {
                let active = directory.active.lock();
                if active.sequence != segment.sequence || active.builder.len() == 0 {
                    continue;
                }
                active.builder.totals_before(end.offset)
            }
            _ => continue,
        };
        let agrees =
            u64::try_from(counted.live + counted.dead) == Ok(said.0) && counted.sum() == said.1 && counted.live >= 0 && counted.dead >= 0;
        if !agrees {
            mismatches.push(format!(
                "segment {:016x} holds {} records, the index counts {} live and {} dead",
                segment.sequence, said.0, counted.live, counted.dead
            ));
        }
    }
    let known = |sequence: &u64| segments.iter().any(|segment| segment.sequence == *sequence);
    for (segment, counted) in counters.iter().filter(|(segment, counted)| counted.live != 0 && !known(segment)) {
        mismatches.push(format!("segment {segment:016x} is missing, the index counts {} live records in it", counted.live));
    }
    mismatches
}
