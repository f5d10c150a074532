//! One data directory: its segments, its index, and the reading of records from it.
//!
//! Appending is the writer's work ([`crate::writer`]); this module finds and reads. A record is found in three steps: the
//! overlay (written, not indexed yet), then, while the index is behind or being rebuilt, the footers of the segments that it
//! lacks, newest first, then the index.
use crate::{
    commit::Commit,
    disk::{self, Disk, DiskFile, Space},
    filter::Filter,
    footer::{FooterBuilder, FooterView},
    format::{self, Kind, Note, VersionInfo},
    identity::{self, Identity},
    index::{
        IndexError,
        keys::{self, Counters, ViewRow},
        overlay::DeltaNumber,
    },
    indexer,
    kv::Kv,
    ledger::{self, Delta, Known, LogItem, TallyChange},
    limits, recovery,
    segment::{self, Place, PlaceError, Seen, Segment},
    types::{Clock, DamagedRange, Position, ReadError, ReadFailures, Reserve, StampsSeen},
    writer,
};
use afar_model::{
    hlc::Stamp,
    id::{BootId, BucketId, DirectoryId, Incarnation, RecordId},
    record::{Record, RecordKey, RecordKind},
    units::UnixMillis,
};
use parking_lot::{Condvar, Mutex, RwLock};
use quick_cache::sync::Cache;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// What is the same for all of it.
#[derive(Clone)]
pub struct Settings {
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// This run.
    pub boot: BootId,
    /// The size at which segments are sealed.
    pub segment_bytes: u64,
    /// Free space that is kept.
    pub reserve: Reserve,
    /// The wall clock.
    pub now: Clock,
}

/// The segment that is being written.
#[derive(Debug)]
pub struct Active {
    /// Its sequence number.
    pub sequence: u64,
    /// What its footer will say.
    pub builder: FooterBuilder,
}

/// Deltas on their way to the index.
#[derive(Debug, Default)]
pub struct DeltaQueue {
    /// In the order of the log.
    pub deltas: VecDeque<Delta>,
    /// The last number given out.
    pub last: DeltaNumber,
    /// Why the index has to be rebuilt, if it has to.
    pub rebuild: Option<String>,
    /// Who waits for a flush of everything durable.
    pub flush: Vec<std::sync::mpsc::SyncSender<Result<(), String>>>,
    /// The thread has to end.
    pub stop: bool,
    /// Who is about to ask for a rebuild, because segments are lost.
    pub losing: usize,
}

/// The segments that the index lacks: searched by their footers until it has caught up.
#[derive(Debug)]
pub struct Behind {
    /// Newest first.
    pub parts: Vec<BehindPart>,
    /// Whether the index holds anything about what is older.
    pub index_usable: bool,
}

/// One segment that the index lacks.
#[derive(Debug)]
pub struct BehindPart {
    /// The segment.
    pub sequence: u64,
    /// Its footer, opened when first needed; `None` if it cannot be read.
    pub view: OnceLock<Option<Arc<FooterView>>>,
}

/// Records found corrupt.
#[derive(Debug, Default)]
pub struct Bad {
    places: HashMap<RecordKey, Place>,
    order: VecDeque<RecordKey>,
    total: u64,
}

/// One data directory.
pub struct Directory {
    /// Its id.
    pub id: DirectoryId,
    /// Where it is.
    pub path: PathBuf,
    /// Where its segments are.
    pub segments_path: PathBuf,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// What records' checksums begin with.
    pub salt: u32,
    /// Shared settings.
    pub settings: Settings,
    /// Every segment that is served.
    pub segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    handles: Cache<u64, Arc<dyn DiskFile>>,
    footers: Cache<u64, Arc<FooterView>>,
    /// The segment that is being written; `None` before the first, and after a failure.
    pub active: Mutex<Active>,
    /// Index and overlay.
    pub kv: Kv,
    /// What is certainly not here.
    pub filter: Filter,
    /// Held while entries are resolved and made visible: their order is the log's.
    pub resolving: Mutex<()>,
    /// Counters per segment, by the log: what the index must agree with.
    pub counters: Mutex<BTreeMap<u64, Counters>>,
    /// Debts per node: records and bytes.
    pub tally: Mutex<BTreeMap<String, (i64, i64)>>,
    /// On their way to the index.
    pub deltas: Mutex<DeltaQueue>,
    /// Signals work for the index thread.
    pub deltas_wake: Condvar,
    /// Signals room in the overlay, and progress of a rebuild.
    pub deltas_done: Condvar,
    /// What the index lacks, if anything.
    pub behind: RwLock<Option<Arc<Behind>>>,
    /// Entries about views cannot be resolved by the writer at present.
    pub deferring: AtomicBool,
    /// Progress of a rebuild in thousandths.
    pub progress: AtomicU64,
    /// How often something went in this run whose absence now looks like there never was anything: a version that was
    /// quarantined, a segment that is gone.
    pub losses: AtomicU64,
    /// Segments whose files went while they were served.
    lost: Mutex<BTreeSet<u64>>,
    /// The group commit.
    pub commit: Commit,
    /// Operations for the writer.
    pub queue: writer::Queue,
    /// Records verified one by one in this run: when, and where.
    verified: Cache<RecordKey, (Place, UnixMillis)>,
    bad: Mutex<Bad>,
    /// What the device could not read in this run.
    pub read_failures: Mutex<ReadFailures>,
    /// Ranges that were found damaged.
    pub damaged: Mutex<Vec<DamagedRange>>,
    /// What is known of versions that may be lost: noted once the index is made anew and does not have them.
    pub lost_versions: Mutex<Vec<Note>>,
    /// Settled marks that are visible but not logged yet.
    pub unlogged: Mutex<Vec<(BucketId, String, Stamp, RecordId)>>,
    /// The greatest stamp of a version in the log.
    pub stamp_max: AtomicU64,
    /// Bytes written to segments in this run.
    pub bytes_written: AtomicU64,
    /// Whether the last comparison of index and log agreed (rule 18).
    pub index_agrees: AtomicBool,
    /// Where the next sample of `check_index` begins.
    pub sample_cursor: Mutex<(u64, usize)>,
    /// Where the scrub is: segment, next entry, when it began.
    pub scrub_cursor: Mutex<Option<(u64, usize, UnixMillis, bool)>>,
    /// Only one compaction at a time.
    pub compacting: Mutex<()>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("id", &self.id).field("path", &self.path).finish_non_exhaustive()
    }
}

/// What opening a directory's log made; see [`crate::open`].
pub struct Parts {
    /// Its id.
    pub id: DirectoryId,
    /// Where it is.
    pub path: PathBuf,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Shared settings.
    pub settings: Settings,
    /// Its segments.
    pub segments: BTreeMap<u64, Arc<Segment>>,
    /// The active one.
    pub active: Active,
    /// Index and overlay.
    pub kv: Kv,
    /// Counters as the index has them.
    pub counters: BTreeMap<u64, Counters>,
    /// The end of the log.
    pub end: Position,
    /// Damage found.
    pub damaged: Vec<DamagedRange>,
    /// The greatest stamp.
    pub stamp_max: Stamp,
}

impl Directory {
    /// Puts it together; nothing runs yet.
    pub fn new(parts: Parts) -> Self {
        let segments_path = parts.path.join("segments");
        let records: u64 = parts.segments.values().filter_map(|segment| segment.trailer()).map(|trailer| trailer.count).sum();
        let filter = Filter::with_capacity(records * 2);
        parts.active.builder.entries().iter().for_each(|entry| filter.insert(&entry.key));
        let commit = Commit::new(Arc::clone(&parts.disk), parts.path.clone(), segments_path.clone(), parts.end);
        Self {
            id: parts.id,
            segments_path,
            disk: parts.disk,
            salt: format::salt(parts.id),
            path: parts.path,
            settings: parts.settings,
            segments: RwLock::new(parts.segments),
            handles: Cache::new(limits::OPEN_SEGMENTS_MAX),
            footers: Cache::new(FOOTERS_OPEN_MAX),
            active: Mutex::new(parts.active),
            kv: parts.kv,
            filter,
            resolving: Mutex::new(()),
            counters: Mutex::new(parts.counters),
            tally: Mutex::default(),
            deltas: Mutex::default(),
            deltas_wake: Condvar::new(),
            deltas_done: Condvar::new(),
            behind: RwLock::new(None),
            deferring: AtomicBool::new(true),
            progress: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            lost: Mutex::default(),
            commit,
            queue: writer::Queue::default(),
            verified: Cache::new(limits::VERIFIED_RECORDS_MAX),
            bad: Mutex::default(),
            read_failures: Mutex::default(),
            damaged: Mutex::new(parts.damaged),
            lost_versions: Mutex::default(),
            unlogged: Mutex::default(),
            stamp_max: AtomicU64::new(parts.stamp_max.as_u64()),
            bytes_written: AtomicU64::new(0),
            index_agrees: AtomicBool::new(false),
            sample_cursor: Mutex::default(),
            scrub_cursor: Mutex::default(),
            compacting: Mutex::new(()),
        }
    }

    /// The time.
    pub fn now(&self) -> UnixMillis {
        (self.settings.now)()
    }

    /// Why it takes no writes, if it takes none.
    pub fn read_only(&self) -> Option<String> {
        self.commit.failed()
    }

    /// Whether every view is complete.
    pub fn views_ready(&self) -> bool {
        !self.deferring.load(Ordering::Acquire)
    }

    /// A segment by number.
    pub fn segment(&self, sequence: u64) -> Option<Arc<Segment>> {
        self.segments.read().get(&sequence).cloned()
    }

    /// A segment's file, kept open for a while.
    ///
    /// # Errors
    /// `NotFound` if it was compacted away, or as the system says.
    pub fn handle(&self, sequence: u64) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.handles.get(&sequence) {
            return Ok(file);
        }
        let segment = self.segment(sequence).ok_or(io::ErrorKind::NotFound)?;
        let file = self.disk.open(&segment.path, false)?;
        self.handles.insert(sequence, Arc::clone(&file));
        Ok(file)
    }

    /// Looks by path at everything that this directory is made of (rule 26): handles that are open would go on reading, and
    /// writing, what somebody has deleted. One look per file; blocking.
    pub fn look(&self) {
        match Identity::read(&*self.disk, &self.path) {
            Ok(identity) if identity.directory == self.id => {}
            Ok(other) => self.commit.fail(&format!("the disk there is another: directory {}", other.directory)),
            Err(error) if disk::is_gone(&error) || error.kind() == io::ErrorKind::InvalidData => {
                self.commit.fail(&format!("its file {:?} is not there any more: {error}", identity::IDENTITY));
            }
            Err(error) => tracing::warn!(directory = %self.path.display(), %error, "the directory cannot be looked at"),
        }
        self.lose_what_is_gone();
    }

    /// Whether a segment's path still names its file. If not, what was in it is lost. Blocking.
    pub fn is_whole(&self, segment: &Segment) -> bool {
        match segment.look(&*self.disk) {
            Seen::Same | Seen::Longer => true,
            Seen::Gone(_) => {
                self.lose_what_is_gone();
                false
            }
            Seen::Unclear(error) => {
                tracing::warn!(segment = %segment.path.display(), %error, "a segment cannot be looked at");
                false
            }
        }
    }

    /// Where a segment's file is gone, so is what was in there: its records leave the index, which is made anew of what is
    /// left, so that they are asked of the others and no longer counted here. Where it is the one that is being written,
    /// nothing more is written in this directory.
    fn lose_what_is_gone(&self) {
        let segments: Vec<Arc<Segment>> = self.segments.read().values().cloned().collect();
        let mut gone: Vec<(Arc<Segment>, String)> = Vec::new();
        for segment in segments {
            // One that is not known any more was compacted away meanwhile.
            if let Seen::Gone(why) = segment.look(&*self.disk)
                && self.segment(segment.sequence).is_some()
                && self.lost.lock().insert(segment.sequence)
            {
                gone.push((segment, why));
            }
        }
        if gone.is_empty() {
            return;
        }
        // The views are not ready from here on, and what is said of versions is looked up only once the index is new, lest it
        // revive what is lost. Then it is counted, before anything leaves the views: see `Store::losses_counted`. Whoever hears
        // of it and compares again finds them not ready, or new.
        let order = self.resolving.lock();
        self.deltas.lock().losing += 1;
        self.deferring.store(true, Ordering::Release);
        drop(order);
        self.losses.fetch_add(1, Ordering::AcqRel);
        let active = self.active_sequence();
        let mut writing = false;
        for (segment, why) in &gone {
            tracing::error!(segment = %segment.path.display(), why, "a segment is lost, and what was in it");
            if segment.trailer().is_none() && segment.sequence == active {
                writing = true;
                self.commit.fail(&format!("the segment that was being written is lost: {why}"));
            }
            let range = recovery::BadRange { from: 0, to: segment.length(), why: format!("the file is lost: {why}"), header: None };
            self.report_damage(segment.sequence, std::iter::once(range));
            self.forget_segment(segment.sequence);
        }
        // What is on its way to the index must not come after the index was made anew.
        let _ = self.sync_blocking();
        let _ = self.flush_index();
        let lost = |sequence| gone.iter().any(|(segment, _)| segment.sequence == sequence);
        let known = indexer::known_in(&self.kv, &lost);
        self.lost_versions.lock().extend(known.into_iter().map(|(note, _)| note));
        let order = self.resolving.lock();
        if writing {
            // What never became durable is not on its way any more.
            self.deltas.lock().deltas.clear();
            self.kv.overlay.write().clear();
        } else {
            self.kv.overlay.write().forget_unlogged();
        }
        drop(order);
        let mut deltas = self.deltas.lock();
        deltas.losing -= 1;
        self.distrust(&mut deltas, "segments are lost");
    }

    /// Whether what was written to a segment in this run is still there: what an acknowledgement asks last. Never blocks for
    /// long.
    pub fn still_has(&self, sequence: u64) -> bool {
        let gone = self.segment(sequence).is_some_and(|segment| matches!(segment.look(&*self.disk), Seen::Gone(_)));
        // One that was compacted away meanwhile has its records elsewhere.
        !(gone && self.segment(sequence).is_some() || self.lost.lock().contains(&sequence))
    }

    /// A segment is gone.
    pub fn forget_segment(&self, sequence: u64) {
        self.segments.write().remove(&sequence);
        self.handles.remove(&sequence);
        self.footers.remove(&sequence);
    }

    /// A segment's footer; made by a scan if it has none that can be read. Not for the active segment.
    ///
    /// # Errors
    /// If the segment cannot be read.
    pub fn footer(&self, sequence: u64) -> io::Result<Arc<FooterView>> {
        if let Some(view) = self.footers.get(&sequence) {
            return Ok(view);
        }
        let segment = self.segment(sequence).ok_or(io::ErrorKind::NotFound)?;
        let file = self.handle(sequence)?;
        let view = Arc::new(self.open_footer(&segment, &file)?);
        self.footers.insert(sequence, Arc::clone(&view));
        Ok(view)
    }

    fn open_footer(&self, segment: &Segment, file: &Arc<dyn DiskFile>) -> io::Result<FooterView> {
        if let Some(trailer) = segment.trailer() {
            match segment::read_footer(file, self.salt, trailer) {
                Ok(_) => return FooterView::in_file(Arc::clone(file), trailer.footer_offset + format::RECORD_HEADER as u64),
                Err(PlaceError::Io(error)) => return Err(error),
                Err(PlaceError::Unreadable(error)) => {
                    self.note_unreadable(&error);
                    tracing::warn!(directory = %self.path.display(), segment = segment.sequence, %error, "footer cannot be read: scanning the segment instead");
                }
                Err(PlaceError::Bad(why)) => {
                    tracing::warn!(directory = %self.path.display(), segment = segment.sequence, why, "footer is damaged: scanning the segment instead");
                }
            }
        }
        let mut builder = FooterBuilder::default();
        let scan =
            recovery::scan(&**file, segment.length(), Some(self.salt), |offset, header, body| note(&mut builder, offset, header, body))
                .map_err(io::Error::other)?;
        if segment.trailer().is_some_and(|trailer| (trailer.count, trailer.sum) != (builder.totals.count, builder.totals.sum)) {
            segment.set_scanned(builder.totals.count, builder.totals.sum);
            self.report_damage(segment.sequence, scan.damaged.into_iter().chain(scan.torn));
        }
        FooterView::in_memory(builder.encode().into())
    }

    /// The greatest stamp of a version in the log that is not beyond `limit`, and how many are. A footer that cannot be read
    /// may hide one of either kind: then the limit itself is the answer, which is later than whatever it hides.
    pub fn stamps_up_to(&self, limit: Stamp) -> StampsSeen {
        let mut seen = StampsSeen::default();
        let mut note = |stamp: Stamp| if stamp > limit { seen.beyond += 1 } else { seen.newest = seen.newest.max(stamp) };
        let active = self.active.lock();
        if active.builder.totals.stamp_max > limit {
            let described = active.builder.entries().iter().filter_map(|entry| active.builder.describe(entry.offset));
            described.for_each(|info| note(info.stamp));
        } else {
            note(active.builder.totals.stamp_max);
        }
        drop(active);
        let sealed: Vec<(u64, Stamp)> =
            self.segments.read().values().filter_map(|segment| Some((segment.sequence, segment.trailer()?.stamp_max))).collect();
        for (sequence, greatest) in sealed {
            if greatest <= limit {
                note(greatest);
                continue;
            }
            match self.footer(sequence).and_then(|footer| footer.in_log_order()) {
                Ok(lines) => lines.iter().filter_map(|(_, info)| info.as_ref()).for_each(|info| note(info.stamp)),
                Err(error) => {
                    tracing::warn!(directory = %self.path.display(), segment = sequence, %error, "the stamps of a segment cannot be read");
                    note(limit);
                }
            }
        }
        seen
    }

    /// Takes note of ranges that something acknowledged may have been in; of each once.
    pub fn report_damage(&self, segment: u64, ranges: impl Iterator<Item = recovery::BadRange>) {
        let mut damaged = self.damaged.lock();
        for bad in ranges {
            let range = DamagedRange { directory: self.id, segment, from: bad.from, to: bad.to, why: bad.why };
            if !damaged.contains(&range) && damaged.len() < limits::DAMAGED_RANGES_MAX {
                damaged.push(range);
            }
        }
    }

    /// Where a record is; an error if that cannot be said now.
    ///
    /// # Errors
    /// If footers cannot be read while the index lacks them.
    pub fn locate(&self, key: &RecordKey) -> Result<Option<Place>, String> {
        let row = keys::primary(key);
        if let Some(over) = self.kv.over(&row) {
            return Ok(over.and_then(|value| keys::parse_place(&value)));
        }
        let behind = self.behind.read().clone();
        if let Some(behind) = &behind
            && let Some(found) = self.locate_behind(behind, key)?
        {
            return Ok(found);
        }
        if behind.is_some_and(|behind| !behind.index_usable) {
            return Ok(None);
        }
        match self.kv.index().get(&row) {
            Ok(value) => Ok(value.and_then(|value| keys::parse_place(&value))),
            Err(error) => {
                self.distrust_index(&error.0);
                Err(error.0)
            }
        }
    }

    /// `Some(None)`: removed there.
    /// [`Directory::locate`] for those who mostly ask for what is not here.
    ///
    /// # Errors
    /// As [`Directory::locate`].
    pub fn locate_unlikely(&self, key: &RecordKey) -> Result<Option<Place>, String> {
        if self.filter.lacks(key) { Ok(None) } else { self.locate(key) }
    }

    /// Reads every footer into the filter, or as many as there is time for.
    pub fn fill_filter(&self) {
        // What the writer adds from now on it notes itself; the active segment was noted when the directory was opened.
        let active = self.active_sequence();
        let others = |segment: &&Arc<Segment>| segment.trailer().is_some() || segment.sequence != active;
        let others: Vec<u64> = self.segments.read().values().filter(others).map(|segment| segment.sequence).collect();
        for sequence in others {
            if self.deltas.lock().stop {
                return;
            }
            // One that was compacted meanwhile: what lived in it was noted when it was written again.
            let Ok(footer) = self.footer(sequence) else {
                if self.segment(sequence).is_some() {
                    return; // unreadable: the filter is never complete, and says nothing
                }
                continue;
            };
            for from in (0..footer.len()).step_by(limits::FILTER_READ) {
                let Ok(lines) = footer.lines(from, from + limits::FILTER_READ) else { return };
                lines.iter().filter(|entry| matches!(entry.kind, Kind::Public(_))).for_each(|entry| self.filter.insert(&entry.key));
            }
        }
        self.filter.complete();
    }

    fn locate_behind(&self, behind: &Behind, key: &RecordKey) -> Result<Option<Option<Place>>, String> {
        for part in &behind.parts {
            let view = part.view.get_or_init(|| {
                self.footer(part.sequence)
                    .inspect_err(|error| {
                        tracing::error!(directory = %self.path.display(), segment = part.sequence, %error, "segment cannot be read");
                    })
                    .ok()
            });
            let Some(view) = view else { return Err(format!("segment {:016x} cannot be read", part.sequence)) };
            if let Some(entry) = view.last(key).map_err(|error| error.to_string())? {
                return Ok(Some(match entry.kind {
                    Kind::Public(kind) => Some(Place { segment: part.sequence, offset: entry.offset, length: entry.length, kind }),
                    _ => None,
                }));
            }
        }
        Ok(None)
    }

    /// The index cannot be used: the index thread will rebuild it.
    pub fn distrust_index(&self, why: &str) {
        self.distrust(&mut self.deltas.lock(), why);
    }

    fn distrust(&self, deltas: &mut DeltaQueue, why: &str) {
        self.index_agrees.store(false, Ordering::Release);
        if deltas.rebuild.is_none() {
            tracing::error!(directory = %self.path.display(), why, "index is unusable: rebuilding it from the segments");
            deltas.rebuild = Some(why.to_owned());
            // At once: nothing may be inferred from the views from now on.
            self.deferring.store(true, Ordering::Release);
            self.deltas_wake.notify_all();
        }
    }

    /// Reads and verifies the record at a place.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn read_at(&self, key: &RecordKey, place: &Place) -> Result<(UnixMillis, Record), PlaceError> {
        let file = self.handle(place.segment)?;
        segment::read_record(&*file, self.salt, key, place).map(|(header, record)| (header.received, record))
    }

    /// The same from the file that the segment's path names now, and past the page cache where that can be done.
    fn read_by_path(&self, key: &RecordKey, place: &Place) -> Result<(UnixMillis, Record), PlaceError> {
        let gone = || PlaceError::Io(io::ErrorKind::NotFound.into());
        let segment = self.segment(place.segment).ok_or_else(gone)?;
        let file = self.disk.open(&segment.path, false)?;
        if file.stat()?.id != segment.id {
            return Err(gone());
        }
        file.forget(place.offset, format::total(place.length));
        segment::read_record(&*file, self.salt, key, place).map(|(header, record)| (header.received, record))
    }

    /// Reads and verifies a record. What does not match its name is looked for once more in its segment, then quarantined; what
    /// the device cannot read is read once more through a fresh handle, and is then no better than what reads wrong.
    ///
    /// # Errors
    /// If it should be here but cannot be read.
    pub fn get(&self, key: &RecordKey) -> Result<Option<(UnixMillis, Record)>, ReadError> {
        self.read(key, Self::read_at)
    }

    /// As [`Directory::get`], from the files that the paths name: what a proof rests on (rule 26).
    ///
    /// # Errors
    /// As [`Directory::get`].
    pub fn prove(&self, key: &RecordKey) -> Result<Option<(UnixMillis, Record)>, ReadError> {
        self.read(key, Self::read_by_path)
    }

    fn read(
        &self,
        key: &RecordKey,
        read_at: impl Fn(&Self, &RecordKey, &Place) -> Result<(UnixMillis, Record), PlaceError>,
    ) -> Result<Option<(UnixMillis, Record)>, ReadError> {
        let disk = |why: String| ReadError::Disk { key: *key, why };
        let mut seen = None;
        for _ in 0..limits::READ_ATTEMPTS_MAX {
            let Some(place) = self.locate(key).map_err(disk)? else { return Ok(None) };
            let read = match read_at(self, key, &place) {
                Err(PlaceError::Unreadable(error)) => {
                    self.note_unreadable(&error);
                    self.read_by_path(key, &place)
                }
                read => read,
            };
            match read {
                Ok(found) => {
                    self.note_verified(key, place);
                    return Ok(Some(found));
                }
                // Compacted away between looking it up and opening it: look again. Or lost.
                Err(PlaceError::Io(error)) if disk::is_gone(&error) && seen != Some(place) => {
                    seen = Some(place);
                    let _ = self.segment(place.segment).is_some_and(|segment| self.is_whole(&segment));
                }
                Err(PlaceError::Io(error)) => return Err(disk(error.to_string())),
                Err(PlaceError::Unreadable(error)) => {
                    self.handles.remove(&place.segment);
                    self.quarantine(key, &place, &error.to_string());
                    return Err(ReadError::Corrupt { key: *key, kind: place.kind, why: error.to_string() });
                }
                Err(PlaceError::Bad(_)) if self.locate(key).map_err(disk)? != Some(place) => {}
                Err(PlaceError::Bad(why)) => return self.look_again(key, &place, why),
            }
        }
        Err(disk("its segment is gone".to_owned()))
    }

    /// As [`Directory::get`], without waiting for a disk: for async code. `None` says nothing: it may be on disk, elsewhere,
    /// longer than `bytes_max`, or not be what it should; then [`Directory::get`] finds out.
    pub fn get_cached(&self, key: &RecordKey, bytes_max: usize) -> Option<(UnixMillis, Record)> {
        let row = keys::primary(key);
        let found = match self.kv.over(&row) {
            Some(over) => over,
            // What the index lacks is in footers, which are read from disk.
            None if self.behind.read().is_some() => None,
            None => self.kv.index().get(&row).ok()?,
        };
        let place = found.and_then(|value| keys::parse_place(&value)).filter(|place| place.length as usize <= bytes_max)?;
        let file = self.handles.get(&place.segment)?;
        let (header, record) = segment::read_cached(&*file, self.salt, key, &place).ok()?;
        self.note_verified(key, place);
        Some((header.received, record))
    }

    /// Two records may have been swapped in place, or the index may lie: the segment itself decides.
    fn look_again(&self, key: &RecordKey, place: &Place, why: String) -> Result<Option<(UnixMillis, Record)>, ReadError> {
        let elsewhere = self.find_by_scan(key, place);
        if let Some((found, record)) = elsewhere {
            tracing::error!(directory = %self.path.display(), ?key, segment = place.segment, "record is not where it should be, but in the same segment");
            return Ok(Some((found, record)));
        }
        self.quarantine(key, place, &why);
        Err(ReadError::Corrupt { key: *key, kind: place.kind, why })
    }

    fn find_by_scan(&self, key: &RecordKey, place: &Place) -> Option<(UnixMillis, Record)> {
        let segment = self.segment(place.segment)?;
        let file = self.handle(place.segment).ok()?;
        let mut found = None;
        let _ = recovery::scan(&*file, segment.length(), Some(self.salt), |_, header, body| {
            if found.is_none() && header.key == *key && header.kind == Kind::Public(place.kind) {
                found = Some((header.received, Record::new(place.kind, key.bucket, bytes::Bytes::copy_from_slice(body))));
            }
        });
        found.filter(|(_, record)| record.key() == *key)
    }

    /// A copy does not match its name: it is never served again, and never counts as "already there" (rules 6, 17).
    pub fn quarantine(&self, key: &RecordKey, place: &Place, why: &str) {
        let mut bad = self.bad.lock();
        if bad.places.insert(*key, *place) == Some(*place) {
            return; // known already
        }
        bad.total += 1;
        if place.kind == RecordKind::Version {
            // Counted before it leaves the views: see `Store::losses_counted`.
            self.losses.fetch_add(1, Ordering::AcqRel);
        }
        bad.order.push_back(*key);
        if bad.order.len() > limits::BAD_RECORDS_MAX
            && let Some(oldest) = bad.order.pop_front()
        {
            bad.places.remove(&oldest);
        }
        drop(bad);
        self.verified.remove(key);
        tracing::error!(directory = %self.path.display(), ?key, segment = place.segment, offset = place.offset, why, "record is corrupt: quarantined");
        self.queue.push(writer::Op::quarantine(*key, *place));
    }

    /// What is to be noted of a version whose copy here is lost.
    pub fn note_of_copy(&self, key: &RecordKey) -> Option<Note> {
        let place = self.locate(key).ok()??;
        let info = self.describe(key, &place).filter(|_| place.kind == RecordKind::Version)?;
        let row = self.kv.get(&keys::view(&key.bucket, &info.key, info.stamp, &key.id)).ok().flatten();
        match row.and_then(|row| ViewRow::decode(&row)) {
            Some(row) => Some(row.note(*key, &info.key, info.stamp)),
            // The index is being made anew, so whether it was settled is not known: then it is not to be taken for disproved.
            None => Some(Note { record: *key, info, settled: true, received: self.now() }),
        }
    }

    /// The note of a version whose record is lost here.
    pub fn note(&self, key: &RecordKey) -> Option<Note> {
        let (name, stamp) = keys::parse_note(&self.kv.get(&keys::note(key)).ok()??)?;
        let row = self.kv.get(&keys::view(&key.bucket, &name, stamp, &key.id)).ok()??;
        ViewRow::decode(&row).filter(|row| !row.here).map(|row| row.note(*key, &name, stamp))
    }

    /// Whether a segment lists this record at this place.
    pub fn lists(&self, key: &RecordKey, place: &Place) -> bool {
        let active = self.active.lock();
        if active.sequence == place.segment {
            return active.builder.lists(key, place.offset);
        }
        drop(active);
        self.footer(place.segment).and_then(|footer| footer.at(key, place.offset)).is_ok_and(|entry| entry.is_some())
    }

    /// Notes what the new index does not have of the versions that were in lost segments.
    pub fn note_lost(&self) {
        let lost = std::mem::take(&mut *self.lost_versions.lock());
        for notes in lost.chunks(limits::LOCAL_ITEMS_MAX / 4) {
            self.queue.push(writer::Op::Local(vec![writer::Local::Note(notes.to_vec())], None));
        }
    }

    /// The device could not read something.
    pub fn note_unreadable(&self, error: &io::Error) {
        let mut failures = self.read_failures.lock();
        failures.count += 1;
        failures.last = error.to_string();
    }

    /// Whether the copy at this place is known to be bad.
    pub fn is_bad(&self, key: &RecordKey, place: &Place) -> bool {
        self.bad.lock().places.get(key) == Some(place)
    }

    /// Corrupt records, most recent first, and how many there were.
    pub fn corrupt(&self) -> (Vec<RecordKey>, u64) {
        let bad = self.bad.lock();
        (bad.order.iter().rev().copied().collect(), bad.total)
    }

    fn note_verified(&self, key: &RecordKey, place: Place) {
        let now = self.now();
        // Only what the segment's own marks do not say is worth remembering one by one.
        let marked = self.segment(place.segment).and_then(|segment| segment.verified_at(place.offset));
        if marked.is_none_or(|marked| now.since(marked) > limits::VERIFIED_GRAIN) {
            self.verified.insert(*key, (place, now));
        }
    }

    /// Rule 6: whether the copy at this place was verified within `max_age` and its file is the same since.
    pub fn verified_within(&self, key: &RecordKey, place: &Place, max_age: std::time::Duration) -> bool {
        if self.is_bad(key, place) {
            return false;
        }
        let Some(segment) = self.segment(place.segment) else { return false };
        let one = self.verified.get(key).filter(|(at, _)| at == place).map(|(_, time)| time);
        let Some(verified) = one.max(segment.verified_at(place.offset)) else { return false };
        let now = self.now();
        if now.since(verified) > max_age || verified > now {
            return false; // `verified > now`: the clock was set back, so the age is not known
        }
        matches!(segment.look(&*self.disk), Seen::Same)
    }

    /// Rule 6, with the re-hash: whether a good copy is here.
    ///
    /// # Errors
    /// If it should be here but cannot be read.
    pub fn presence(&self, key: &RecordKey, max_age: std::time::Duration) -> Result<bool, ReadError> {
        let place = self.locate(key).map_err(|why| ReadError::Disk { key: *key, why })?;
        match place {
            None => Ok(false),
            Some(place) if self.verified_within(key, &place, max_age) => Ok(true),
            Some(place) if self.is_bad(key, &place) => Ok(false),
            Some(_) => Ok(self.prove(key)?.is_some()),
        }
    }

    /// Room on its file system.
    pub fn space(&self) -> Space {
        self.disk.space(&self.path).unwrap_or_default()
    }

    /// Makes entries visible in the order of the log and sends them to the index. Only the writer calls it.
    pub fn publish(&self, items: impl Iterator<Item = (LogItem, Position)>) {
        let _order = self.resolving.lock();
        let mut delta = self.begin_delta();
        for (item, end) in items {
            self.resolve_into(item, &mut delta);
            delta.end = end;
            if delta.ops.len() >= limits::INDEX_BATCH_OPS {
                let full = std::mem::take(&mut delta);
                self.end_delta(full);
                delta = self.begin_delta();
            }
        }
        if delta.end != Position::default() {
            self.end_delta(delta);
        }
    }

    fn begin_delta(&self) -> Delta {
        let mut queue = self.deltas.lock();
        queue.last += 1;
        Delta { number: queue.last, ..Delta::default() }
    }

    fn resolve_into(&self, item: LogItem, delta: &mut Delta) {
        let about_views = matches!(item, LogItem::Settled(_) | LogItem::Owed(_) | LogItem::Paid(_));
        if about_views && self.deferring.load(Ordering::Acquire) {
            delta.deferred.push(item);
            return;
        }
        let (ops, tally) = ledger::resolve(&item, self, delta);
        let mut overlay = self.kv.overlay.write();
        for op in &ops {
            overlay.put(op.clone(), delta.number);
        }
        drop(overlay);
        delta.ops.extend(ops);
        self.count_tally(tally);
    }

    fn end_delta(&self, delta: Delta) {
        let mut counters = self.counters.lock();
        for (segment, change) in &delta.counters {
            counters.entry(*segment).or_default().merge(change);
        }
        drop(counters);
        self.deltas.lock().deltas.push_back(delta);
    }

    /// Takes note of debts made or paid.
    pub fn count_tally(&self, changes: Vec<TallyChange>) {
        let mut tally = self.tally.lock();
        for change in changes {
            let (records, bytes) = tally.entry(change.to).or_default();
            *records += change.records;
            *bytes += change.bytes;
        }
        tally.retain(|_, (records, _)| *records > 0);
    }

    /// Marks versions as settled: visible at once, logged by the writer soon.
    pub fn settle(&self, versions: Vec<(BucketId, String, Stamp, RecordId)>) {
        let _order = self.resolving.lock();
        if !self.deferring.load(Ordering::Acquire) {
            for (bucket, key, stamp, id) in &versions {
                let row = keys::view(bucket, key, *stamp, id);
                if let Some(value) = self.kv.get(&row).ok().and_then(ledger::settled) {
                    self.kv.overlay.write().put((row, Some(value)), crate::index::overlay::NOT_LOGGED);
                }
            }
        }
        let mut unlogged = self.unlogged.lock();
        let room = limits::PENDING_SETTLED_MAX.saturating_sub(unlogged.len());
        unlogged.extend(versions.into_iter().take(room));
        drop(unlogged);
        self.queue.nudge();
    }

    /// A view row, through overlay and index.
    ///
    /// # Errors
    /// If the index is unusable.
    pub fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), IndexError> {
        self.kv.scan(from, to, visit).inspect_err(|error| self.distrust_index(&error.0))
    }
}

/// Footers kept open: each costs its table of buckets.
const FOOTERS_OPEN_MAX: usize = 64;

/// Takes note of a scanned record in a footer to be.
pub fn note(builder: &mut FooterBuilder, offset: u64, header: &format::RecordHeader, body: &[u8]) {
    match header.kind {
        Kind::Public(RecordKind::Version) => {
            let info = VersionInfo::of(body).filter(|(bucket, _)| *bucket == header.key.bucket).map(|(_, info)| info);
            builder.add_public(header, offset, info.as_ref());
        }
        Kind::Public(_) => builder.add_public(header, offset, None),
        Kind::Tombstone => {
            let removes = format::decode_local::<format::Tombstones>(body).map(|tombstones| tombstones.keys).unwrap_or_default();
            builder.add_tombstone(header, offset, &removes);
        }
        _ => builder.add_local(header, offset),
    }
}

impl Known for Directory {
    fn place(&self, key: &RecordKey) -> Option<Place> {
        // What cannot be looked up counts as unknown; the counters will show it, and the index be rebuilt.
        self.locate_unlikely(key).ok().flatten()
    }

    fn row(&self, key: &[u8]) -> Option<Vec<u8>> {
        if self.deferring.load(Ordering::Acquire) {
            return self.kv.over(key).flatten();
        }
        self.kv.get(key).ok().flatten()
    }

    fn describe(&self, key: &RecordKey, place: &Place) -> Option<VersionInfo> {
        let active = self.active.lock();
        if active.sequence == place.segment
            && let Some(info) = active.builder.describe(place.offset)
        {
            return Some(info);
        }
        drop(active);
        let footer = self.footer(place.segment).ok()?;
        let entry = footer.at(key, place.offset).ok()??;
        footer.describe(&entry).ok()?
    }
}
