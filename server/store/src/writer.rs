//! The writer: one thread per directory that turns operations into bytes at the end of the log, and makes them visible.
//!
//! It is the only one that writes to segments, so the order of the log is the order of its work. Bodies are written from
//! where they lie (`pwritev`), never copied. Nothing is visible before its write call has returned; nothing is acknowledged
//! here at all: that is the group commit's ([`crate::commit`]).
use crate::{
    commit::{Waiter, Written},
    directory::{Active, Directory},
    disk::{self, DiskFile, Space},
    footer::FooterBuilder,
    format::{self, ALIGN, Kind, Note, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, Tombstones, VersionInfo},
    ledger::LogItem,
    limits,
    segment::{Place, Segment},
    types::{AppendClass, AppendError, CommitError, Position, Removal, SyncFailed},
};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    record::{Record, RecordKey, RecordKind},
};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{HashMap, VecDeque},
    io::IoSlice,
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Who wants to hear of an append.
#[derive(Debug)]
pub enum Reply {
    /// Once it is written.
    Written(oneshot::Sender<Result<Vec<(usize, Written)>, AppendError>>),
    /// Once it is durable.
    Durable(oneshot::Sender<Result<Vec<(usize, crate::commit::Durable)>, CommitError>>),
}

impl Reply {
    fn failed(self, error: AppendError) {
        match self {
            Self::Written(reply) => drop(reply.send(Err(error))),
            Self::Durable(reply) => drop(reply.send(Err(error.into()))),
        }
    }
}

/// Records to append.
#[derive(Debug)]
pub struct Append {
    /// Who writes.
    pub class: AppendClass,
    /// Each with its slot in the caller's list.
    pub records: Vec<(usize, Record)>,
    /// Who wants to hear.
    pub reply: Reply,
    /// Room in the queue, given back when the bytes are written.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Existing copies were re-hashed for this one already.
    pub rechecked: bool,
}

/// A record that compaction moves to the end of the log.
#[derive(Debug)]
pub struct Move {
    /// Its header, verbatim.
    pub header: RecordHeader,
    /// Where it was: if it is elsewhere or gone by now, it is not moved.
    pub from: Place,
    /// Its body, verified.
    pub body: Bytes,
}

/// A local entry: its kind and body, and what it means.
#[derive(Debug)]
pub enum Local {
    /// Removes records, unless they are elsewhere than named.
    Remove(Vec<(RecordKey, Option<Place>)>, Removal),
    /// Keeps earlier removals in force: only for records that are not live.
    KeepRemoved(Vec<RecordKey>, Removal),
    /// What is left of versions, unless their records are here.
    Note(Vec<Note>),
    /// Compaction: notes that still stand.
    KeepNotes(Vec<RecordKey>),
    /// Debts.
    Owed(format::Debts),
    /// Payments.
    Paid(format::Payments),
    /// Compaction: debts that still stand, if they do when this is written.
    KeepOwed(format::Debts),
    /// Compaction: payments that still count, if nothing is owed again by then.
    KeepPaid(format::Payments),
    /// Compaction: marks that still stand.
    Settled(Vec<(BucketId, String, Stamp, RecordId)>),
}

/// What the writer is asked to do.
#[derive(Debug)]
pub enum Op {
    /// New records.
    Append(Append),
    /// Local entries, and who wants to hear that they are durable.
    Local(Vec<Local>, Option<oneshot::Sender<Result<(), SyncFailed>>>),
    /// Compaction: records to move, and local entries to keep. Answers once written.
    Compact(Vec<Move>, Vec<Local>, mpsc::SyncSender<Result<u64, AppendError>>),
}

impl Op {
    /// Removes a copy that does not match its name.
    pub fn quarantine(key: RecordKey, place: Place) -> Self {
        Self::Local(vec![Local::Remove(vec![(key, Some(place))], Removal::Quarantined)], None)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append(append) => append.records.iter().map(|(_, record)| record.body().len() + RECORD_HEADER).sum(),
            Self::Local(..) => RECORD_HEADER,
            Self::Compact(moves, ..) => moves.iter().map(|one| one.body.len() + RECORD_HEADER).sum(),
        }
    }

    fn records(&self) -> usize {
        match self {
            Self::Append(append) => append.records.len(),
            Self::Local(locals, _) => locals.len(),
            Self::Compact(moves, locals, _) => moves.len() + locals.len(),
        }
    }

    fn failed(self, error: &AppendError) {
        match self {
            Self::Append(append) => append.reply.failed(error.clone()),
            Self::Local(_, Some(reply)) => drop(reply.send(Err(sync_failed(error)))),
            Self::Local(_, None) => {}
            Self::Compact(_, _, reply) => drop(reply.send(Err(error.clone()))),
        }
    }
}

fn sync_failed(error: &AppendError) -> SyncFailed {
    match error {
        AppendError::Closed => SyncFailed::Closed,
        other => SyncFailed::Directory(other.to_string()),
    }
}

#[derive(Debug, Default)]
struct QueueState {
    ops: VecDeque<Op>,
    nudged: bool,
    closed: bool,
}

/// The writer's inbox. Bounded in bytes by the permits that appends carry; local entries are small and few.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

impl Queue {
    /// Adds an operation; one that comes too late hears that.
    pub fn push(&self, op: Op) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            op.failed(&AppendError::Closed);
            return;
        }
        state.ops.push_back(op);
        self.wake.notify_one();
    }

    /// There are settled marks to log, some time.
    pub fn nudge(&self) {
        self.state.lock().nudged = true;
    }

    /// No more operations; the writer finishes those that are there.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    /// The next operations: some, none (only marks to log), or `None` at the end.
    fn take(&self) -> Option<Vec<Op>> {
        let mut state = self.state.lock();
        while state.ops.is_empty() {
            if state.closed {
                return std::mem::take(&mut state.nudged).then(Vec::new);
            }
            let timed_out = self.wake.wait_for(&mut state, limits::LAZY_SYNC_EVERY).timed_out();
            if timed_out && state.ops.is_empty() && std::mem::take(&mut state.nudged) {
                return Some(Vec::new());
            }
        }
        let (mut taken, mut bytes, mut records) = (Vec::new(), 0, 0);
        while let Some(op) = state.ops.front() {
            bytes += op.bytes();
            records += op.records();
            if !taken.is_empty() && (bytes > limits::WRITE_BATCH_BYTES_MAX || records > limits::WRITE_BATCH_RECORDS_MAX) {
                break;
            }
            taken.extend(state.ops.pop_front());
        }
        Some(taken)
    }
}

/// One record on its way to the log.
struct Entry {
    header: RecordHeader,
    body: Bytes,
    what: What,
    place: Position,
}

enum What {
    Public(RecordKind, Option<VersionInfo>),
    Removes(Vec<RecordKey>, Vec<Note>),
    Settled(format::SettledMarks),
    Owed(format::Debts),
    Paid(format::Payments),
}

/// Where a record of an append will be found.
enum Landing {
    /// It is the n-th entry of this batch.
    Entry(usize, bool),
    /// It is there already.
    Existing(Place),
}

struct Pending {
    landings: Vec<(usize, RecordKey, RecordKind, u32, Landing)>,
    reply: Reply,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Free space as last seen, less what was written since.
struct Room {
    space: Space,
    seen: Instant,
    written: u64,
}

/// The writer thread's state.
pub struct Writer {
    directory: Arc<Directory>,
    recheck: mpsc::SyncSender<(Arc<Directory>, Append)>,
    file: Option<Arc<dyn DiskFile>>,
    segment: Option<Arc<Segment>>,
    offset: u64,
    allocated: u64,
    written_back: u64,
    room: Option<Room>,
}

impl Writer {
    /// Continues at the end of the directory's log; `file` is the active segment, if there is one.
    pub fn new(directory: Arc<Directory>, recheck: mpsc::SyncSender<(Arc<Directory>, Append)>, file: Option<Arc<dyn DiskFile>>) -> Self {
        let end = directory.commit.written();
        let segment = file.as_ref().and_then(|_| directory.segment(end.segment));
        Self { directory, recheck, file, segment, offset: end.offset, allocated: end.offset, written_back: end.offset, room: None }
    }

    /// Until the queue is closed and empty.
    pub fn run(mut self) {
        while let Some(ops) = self.directory.queue.take() {
            self.wait_for_overlay();
            self.process(ops);
        }
    }

    /// The overlay is memory: if the index cannot keep up, writers wait.
    fn wait_for_overlay(&self) {
        let directory = &self.directory;
        let mut deltas = directory.deltas.lock();
        loop {
            let max = if directory.views_ready() { limits::OVERLAY_ENTRIES_MAX } else { limits::OVERLAY_ENTRIES_REBUILD_MAX };
            if directory.kv.overlay.read().len() < max || deltas.stop || directory.read_only().is_some() {
                return;
            }
            directory.commit.hurry();
            directory.deltas_wake.notify_all();
            directory.deltas_done.wait_for(&mut deltas, Duration::from_millis(100));
        }
    }

    fn process(&mut self, ops: Vec<Op>) {
        if let Some(why) = self.directory.read_only() {
            let error = AppendError::ReadOnly(why);
            ops.into_iter().for_each(|op| op.failed(&error));
            return;
        }
        let mut batch = Batch::default();
        for op in ops {
            // What compaction keeps depends on all that was logged before it: it never shares a batch.
            let alone = matches!(op, Op::Compact(..));
            if alone {
                self.finish(std::mem::take(&mut batch));
            }
            match op {
                Op::Append(append) => self.plan_append(append, &mut batch),
                Op::Local(locals, reply) => {
                    locals.into_iter().for_each(|local| self.plan_local(local, &mut batch));
                    batch.locals.extend(reply);
                }
                Op::Compact(moves, locals, reply) => {
                    let from = batch.entries.len();
                    moves.into_iter().for_each(|one| self.plan_move(one, &mut batch));
                    locals.into_iter().for_each(|local| self.plan_local(local, &mut batch));
                    let bytes = batch.entries.iter().skip(from).map(|entry| entry.header.total()).sum();
                    batch.compactions.push((bytes, reply));
                }
            }
            if alone {
                self.finish(std::mem::take(&mut batch));
            }
        }
        self.finish(batch);
    }

    fn finish(&mut self, mut batch: Batch) {
        self.plan_settled(&mut batch);
        let outcome = self.write(&mut batch.entries);
        self.answer(batch, outcome);
    }

    fn plan_append(&mut self, append: Append, batch: &mut Batch) {
        let length = |record: &Record| format::total(record.body().len() as u32);
        let bytes: u64 = append.records.iter().map(|(_, record)| length(record)).sum();
        if let Err(error) = self.admit(append.class, bytes) {
            // What is here already, and not known to be bad, needs no room.
            let new = append.records.iter().filter(|(_, record)| self.existing(&record.key(), batch).is_none());
            let bytes = new.map(|(_, record)| length(record)).sum();
            if bytes > 0 && self.admit(append.class, bytes).is_err() {
                append.reply.failed(error);
                return;
            }
        }
        let mut found: Vec<Option<Place>> = Vec::with_capacity(append.records.len());
        let mut doubtful = false;
        for (_, record) in &append.records {
            let place = self.existing(&record.key(), batch);
            if let Some(place) = place {
                doubtful |= !self.directory.verified_within(&record.key(), &place, afar_model::limits::VERIFIED_RECENTLY);
            }
            found.push(place);
        }
        let append = match doubtful && !append.rechecked {
            false => append,
            // Re-hashing reads the disk: another thread's work. The append comes back when that is done.
            true => match self.recheck.try_send((Arc::clone(&self.directory), append)) {
                Ok(()) => return,
                Err(mpsc::TrySendError::Full((_, append)) | mpsc::TrySendError::Disconnected((_, append))) => append,
            },
        };
        let mut landings = Vec::with_capacity(append.records.len());
        for ((slot, record), place) in append.records.into_iter().zip(found) {
            let (key, kind, length) = (record.key(), record.kind(), record.body().len() as u32);
            let landing = match (batch.by_key.get(&key), place) {
                (Some(&entry), _) => Landing::Entry(entry, true),
                (None, Some(place)) if self.directory.verified_within(&key, &place, afar_model::limits::VERIFIED_RECENTLY) => {
                    Landing::Existing(place)
                }
                // Not there, or not known to be good: written (again).
                _ => Landing::Entry(self.plan_record(record, batch), false),
            };
            landings.push((slot, key, kind, length, landing));
        }
        batch.appends.push(Pending { landings, reply: append.reply, _permit: append.permit });
    }

    fn existing(&self, key: &RecordKey, batch: &Batch) -> Option<Place> {
        if batch.removed.contains(key) {
            return None; // by an operation just before, in this very batch
        }
        self.directory.locate_unlikely(key).ok().flatten().filter(|place| !self.directory.is_bad(key, place))
    }

    fn plan_record(&self, record: Record, batch: &mut Batch) -> usize {
        let header = RecordHeader {
            kind: Kind::Public(record.kind()),
            length: record.body().len() as u32, // checked at the door
            key: record.key(),
            received: self.directory.now(),
        };
        let info = (record.kind() == RecordKind::Version)
            .then(|| VersionInfo::of(record.body()).filter(|(bucket, _)| *bucket == header.key.bucket).map(|(_, info)| info))
            .flatten();
        batch.by_key.insert(header.key, batch.entries.len());
        batch.push(header, record.clone().into_body(), What::Public(record.kind(), info))
    }

    fn plan_move(&self, one: Move, batch: &mut Batch) {
        let key = one.header.key;
        let Kind::Public(kind) = one.header.kind else { return };
        // Removed, replaced or quarantined since compaction looked: it stays where it is, dead.
        if batch.by_key.contains_key(&key) || batch.removed.contains(&key) || self.directory.locate(&key) != Ok(Some(one.from)) {
            return;
        }
        let info = (kind == RecordKind::Version).then(|| VersionInfo::of(&one.body)).flatten();
        let settled = info.as_ref().and_then(|(bucket, info)| self.settled_mark(bucket, info, &key.id));
        batch.by_key.insert(key, batch.entries.len());
        batch.push(one.header, one.body, What::Public(kind, info.map(|(_, info)| info)));
        batch.settled.extend(settled); // after its version, so that replay finds the row
    }

    fn settled_mark(&self, bucket: &BucketId, info: &VersionInfo, id: &RecordId) -> Option<(BucketId, String, Stamp, RecordId)> {
        let row = self.directory.kv.get(&crate::index::keys::view(bucket, &info.key, info.stamp, id)).ok()??;
        crate::index::keys::ViewRow::decode(&row)?.settled.then(|| (*bucket, info.key.clone(), info.stamp, *id))
    }

    fn plan_local(&self, local: Local, batch: &mut Batch) {
        match local {
            Local::Remove(keys, why) => {
                let live = |(key, place): (RecordKey, Option<Place>)| {
                    let here = match (batch.by_key.get(&key), self.directory.locate(&key).ok().flatten()) {
                        (Some(_), _) => place.is_none(), // appended in this very batch, just before
                        (None, Some(here)) => place.is_none_or(|place| place == here),
                        (None, None) => place.is_none() && self.directory.note(&key).is_some(),
                    };
                    here.then_some(key)
                };
                let keys: Vec<RecordKey> = keys.into_iter().filter_map(live).collect();
                let lost = keys.iter().filter(|_| why == Removal::Quarantined);
                let notes = lost.filter_map(|key| self.directory.note_of_copy(key)).collect();
                self.plan_tombstones(keys, why, notes, batch);
            }
            Local::KeepRemoved(keys, why) => {
                let dead = |key: &RecordKey| {
                    !batch.by_key.contains_key(key) && self.directory.locate(key) == Ok(None) && self.directory.note(key).is_none()
                };
                let keys: Vec<RecordKey> = keys.into_iter().filter(dead).collect();
                self.plan_tombstones(keys, why, Vec::new(), batch);
            }
            Local::Note(notes) => {
                let lacked = |note: &Note| !batch.by_key.contains_key(&note.record) && self.directory.locate(&note.record) == Ok(None);
                let notes = notes.into_iter().filter(lacked).filter(|note| self.directory.note(&note.record).is_none()).collect();
                self.plan_notes(notes, batch);
            }
            Local::KeepNotes(keys) => self.plan_notes(keys.iter().filter_map(|key| self.directory.note(key)).collect(), batch),
            Local::Owed(debts) => {
                let body = format::encode_local(&debts);
                self.push_local(Kind::Owed, body, What::Owed(debts), batch);
            }
            Local::Paid(payments) => {
                let body = format::encode_local(&payments);
                self.push_local(Kind::Paid, body, What::Paid(payments), batch);
            }
            Local::KeepOwed(mut debts) => {
                debts.items.retain(|item| self.is_owed(&debts.to, &item.0));
                self.plan_local(Local::Owed(debts), batch);
            }
            Local::KeepPaid(mut payments) => {
                payments.keys.retain(|key| !self.is_owed(&payments.to, key));
                self.plan_local(Local::Paid(payments), batch);
            }
            Local::Settled(versions) => batch.settled.extend(versions),
        }
    }

    fn is_owed(&self, to: &str, key: &RecordKey) -> bool {
        self.directory.kv.get(&crate::index::keys::debt(to, key)).is_ok_and(|row| row.is_some())
    }

    /// A note is a tombstone as well: what it says holds for its record from here on.
    fn plan_notes(&self, notes: Vec<Note>, batch: &mut Batch) {
        let keys = notes.iter().map(|note| note.record).collect();
        self.plan_tombstones(keys, Removal::Quarantined, notes, batch);
    }

    fn plan_tombstones(&self, keys: Vec<RecordKey>, why: Removal, notes: Vec<Note>, batch: &mut Batch) {
        if keys.is_empty() {
            return;
        }
        for key in &keys {
            batch.by_key.remove(key); // a later append of the same record revives it
            batch.removed.insert(*key);
        }
        let tombstones = Tombstones { why: why as u8, keys };
        let body = format::encode_tombstones(&tombstones, &notes);
        self.push_local(Kind::Tombstone, body, What::Removes(tombstones.keys, notes), batch);
    }

    fn plan_settled(&self, batch: &mut Batch) {
        let mut versions = std::mem::take(&mut batch.settled);
        if self.directory.views_ready() {
            versions.append(&mut self.directory.unlogged.lock());
        }
        let mut versions = versions.into_iter().peekable();
        while versions.peek().is_some() {
            let marks = format::SettledMarks { versions: versions.by_ref().take(limits::LOCAL_ITEMS_MAX / 4).collect() };
            let body = format::encode_local(&marks);
            self.push_local(Kind::Settled, body, What::Settled(marks), batch);
        }
    }

    fn push_local(&self, kind: Kind, body: Vec<u8>, what: What, batch: &mut Batch) {
        let key = RecordKey { bucket: BucketId::SYSTEM, id: RecordId::of(&body) };
        let header = RecordHeader { kind, length: body.len() as u32, key, received: self.directory.now() };
        batch.push(header, body.into(), what);
    }

    /// Rule 20: whether this class of writer may use the disk further.
    fn admit(&mut self, class: AppendClass, bytes: u64) -> Result<(), AppendError> {
        let capacity = self.space().capacity;
        let (client, repair) = self.directory.marks(capacity);
        let reserve = match class {
            AppendClass::Housekeeping => return Ok(()),
            AppendClass::Repair => repair,
            AppendClass::Client => client,
        };
        if self.space().free < reserve.saturating_add(bytes) {
            self.room = None; // nobody is refused by a number that may be out of date
        }
        let space = self.space();
        if space.free < reserve.saturating_add(bytes) { Err(AppendError::Full { free: space.free, reserve }) } else { Ok(()) }
    }

    fn space(&mut self) -> Space {
        let stale = |room: &Room| {
            room.seen.elapsed() > limits::SPACE_CHECK_EVERY || room.written > (room.space.free / 16).min(limits::WRITEBACK_BYTES)
        };
        if self.room.as_ref().is_none_or(stale) {
            self.room = Some(Room { space: self.directory.space(), seen: Instant::now(), written: 0 });
        }
        // What is allocated ahead is ours, although the system counts it as used.
        let ahead = self.allocated.saturating_sub(self.offset);
        self.room.as_ref().map_or_else(Space::default, |room| Space {
            free: room.space.free.saturating_add(ahead).saturating_sub(room.written),
            ..room.space
        })
    }

    /// Writes entries, segment by segment; what was written is visible even if a later part fails.
    fn write(&mut self, entries: &mut [Entry]) -> Result<(), AppendError> {
        let mut rest = entries;
        while !rest.is_empty() {
            let fits = self.make_room(rest.first().map_or(0, |entry| entry.header.total()), rest)?;
            let (run, more) = rest.split_at_mut(fits);
            self.write_run(run)?;
            rest = more;
        }
        Ok(())
    }

    /// How many entries go into the present segment, sealing the last and beginning a new one first if none do.
    fn make_room(&mut self, first: u64, entries: &[Entry]) -> Result<usize, AppendError> {
        let noted = self.directory.active.lock().builder.len();
        let full = noted > 0 && self.offset + first > self.directory.settings.segment_bytes || noted >= limits::SEGMENT_RECORDS_MAX;
        if self.file.is_none() || full {
            self.roll()?;
        }
        let mut end = self.offset;
        let fits = entries.iter().take_while(|entry| {
            end += entry.header.total();
            end <= self.directory.settings.segment_bytes
        });
        Ok(fits.count().max(1)) // a record larger than a segment gets one of its own
    }

    fn write_run(&mut self, run: &mut [Entry]) -> Result<(), AppendError> {
        let Some(file) = self.file.clone() else { return Err(AppendError::ReadOnly("there is no segment to write to".to_owned())) };
        let start = self.offset;
        let mut end = start;
        let salt = self.directory.salt;
        let headers: Vec<[u8; RECORD_HEADER]> = run.iter().map(|entry| entry.header.encode(salt)).collect();
        let mut pieces = Vec::with_capacity(run.len() * 3);
        for (entry, header) in run.iter_mut().zip(&headers) {
            entry.place = Position { segment: self.directory.active_sequence(), offset: end };
            end += entry.header.total();
            pieces.push(IoSlice::new(header));
            pieces.push(IoSlice::new(&entry.body));
            let padding = (entry.header.total() - RECORD_HEADER as u64) as usize - entry.body.len();
            pieces.push(IoSlice::new(ZEROS.get(..padding).unwrap_or_default()));
        }
        pieces.retain(|piece| !piece.is_empty());
        self.allocate(&*file, end);
        disk::write_all(&*file, &mut pieces, start).map_err(|error| self.write_failed(&*file, start, &error))?;
        self.offset = end;
        self.wrote(&*file, end - start);
        self.publish(run);
        Ok(())
    }

    /// Space is allocated ahead, so that a full disk shows here and not at the sync. Only a hint: errors show when writing.
    fn allocate(&mut self, file: &dyn DiskFile, end: u64) {
        if end <= self.allocated {
            return;
        }
        let step = limits::ALLOCATE_BYTES.min(self.space().free / 16);
        let want = (self.allocated + step).min(self.directory.settings.segment_bytes).max(end);
        if file.allocate(self.offset, want - self.offset).is_ok() {
            self.allocated = want;
            self.room = None;
        } else {
            self.allocated = end;
        }
    }

    fn wrote(&mut self, file: &dyn DiskFile, bytes: u64) {
        self.directory.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        if let Some(room) = &mut self.room {
            room.written += bytes;
        }
        if self.offset - self.written_back >= limits::WRITEBACK_BYTES {
            file.forget(self.written_back, self.offset - self.written_back); // starts writeback; the sync then finds less to do
            self.written_back = self.offset;
        }
    }

    /// Takes a torn write back. If even that fails, or the disk is broken rather than full, the directory is done for.
    fn write_failed(&mut self, file: &dyn DiskFile, start: u64, error: &std::io::Error) -> AppendError {
        self.room = None;
        self.allocated = start;
        let undone = file.set_length(start);
        if disk::is_full(error) && undone.is_ok() {
            return AppendError::Full { free: self.directory.space().free, reserve: 0 };
        }
        let why = match undone {
            Ok(()) => format!("write: {error}"),
            Err(undo) => format!("write: {error}; taking it back: {undo}"),
        };
        self.directory.commit.poison(&why);
        AppendError::ReadOnly(why)
    }

    fn publish(&self, run: &mut [Entry]) {
        let directory = &*self.directory;
        let now = directory.now();
        let end = Position { segment: directory.active_sequence(), offset: self.offset };
        if let Some(segment) = &self.segment {
            segment.grew(end.offset, now);
        }
        let mut active = directory.active.lock();
        for entry in run.iter() {
            entry.note(&mut active.builder);
        }
        let stamp = active.builder.totals.stamp_max.as_u64();
        drop(active);
        directory.stamp_max.fetch_max(stamp, Ordering::AcqRel);
        directory.publish(run.iter_mut().flat_map(|entry| {
            let end = Position { offset: entry.place.offset + entry.header.total(), ..entry.place };
            entry.items().into_iter().map(move |item| (item, end))
        }));
        // After they are resolved, which asks whether they were here before; and before anybody hears that they are now.
        for entry in run.iter().filter(|entry| matches!(entry.header.kind, Kind::Public(_))) {
            directory.filter.insert(&entry.header.key);
        }
        directory.commit.wrote(end);
    }

    /// Seals the present segment and begins the next.
    fn roll(&mut self) -> Result<(), AppendError> {
        if self.file.is_some() {
            self.seal()?;
        }
        self.directory.commit.wait_for_sealed().map_err(AppendError::ReadOnly)?;
        self.begin_segment()
    }

    fn seal(&mut self) -> Result<(), AppendError> {
        let (Some(file), Some(segment)) = (self.file.clone(), self.segment.clone()) else { return Ok(()) };
        // What the segment holds stays known from memory until the next one is begun.
        let sealed = seal(&*file, self.directory.salt, &self.directory.active.lock().builder, self.offset, self.directory.now());
        match sealed {
            Ok((trailer, length)) => {
                segment.seal(trailer, length);
                self.directory.commit.wrote(Position { segment: segment.sequence, offset: length });
                self.file = None;
                self.segment = None;
                Ok(())
            }
            Err(error) => Err(self.write_failed(&*file, self.offset, &error)),
        }
    }

    fn begin_segment(&mut self) -> Result<(), AppendError> {
        let directory = Arc::clone(&self.directory);
        let sequence = directory.active_sequence() + 1;
        let header =
            SegmentHeader { incarnation: directory.settings.incarnation, directory: directory.id, sequence, created: directory.now() };
        let path = directory.segments_path.join(format::segment_name(sequence));
        let made = directory.disk.create(&path).and_then(|file| {
            disk::write_all(&*file, &mut [IoSlice::new(&header.encode())], 0)?;
            let stat = file.stat()?;
            Ok((file, stat))
        });
        let (file, stat) = made.map_err(|error| {
            let _ = directory.disk.remove(&path);
            if disk::is_full(&error) {
                AppendError::Full { free: directory.space().free, reserve: 0 }
            } else {
                let why = format!("begin segment {sequence:016x}: {error}");
                directory.commit.poison(&why);
                AppendError::ReadOnly(why)
            }
        })?;
        let segment = Arc::new(Segment::new(sequence, path, header.created, stat, None));
        segment.mark_verified(stat.length, header.created);
        directory.segments.write().insert(sequence, Arc::clone(&segment));
        *directory.active.lock() = Active { sequence, builder: FooterBuilder::default() };
        self.offset = SEGMENT_HEADER as u64;
        self.allocated = self.offset;
        self.written_back = 0;
        directory.commit.begin(sequence, Arc::clone(&file), true, Position { segment: sequence, offset: self.offset });
        self.file = Some(file);
        self.segment = Some(segment);
        Ok(())
    }

    fn answer(&self, batch: Batch, outcome: Result<(), AppendError>) {
        let end = self.directory.commit.written();
        match outcome {
            Ok(()) => {
                for pending in batch.appends {
                    self.answer_append(pending, &batch.entries);
                }
                for reply in batch.locals {
                    self.directory.commit.wait(end, Waiter::Done(reply));
                }
                for (bytes, reply) in batch.compactions {
                    let _ = reply.send(Ok(bytes));
                }
            }
            Err(error) => {
                batch.appends.into_iter().for_each(|pending| pending.reply.failed(error.clone()));
                batch.locals.into_iter().for_each(|reply| drop(reply.send(Err(sync_failed(&error)))));
                batch.compactions.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
            }
        }
    }

    fn answer_append(&self, pending: Pending, entries: &[Entry]) {
        let mut until = Position::default();
        let mut tokens = Vec::with_capacity(pending.landings.len());
        for (slot, key, kind, bytes, landing) in pending.landings {
            let (end, deduplicated) = match landing {
                Landing::Existing(place) => (Position { segment: place.segment, offset: place.offset + format::total(place.length) }, true),
                Landing::Entry(at, twin) => {
                    let Some(entry) = entries.get(at) else { continue };
                    (Position { offset: entry.place.offset + entry.header.total(), ..entry.place }, twin)
                }
            };
            until = until.max(end);
            let (boot, directory) = (self.directory.settings.boot, self.directory.id);
            tokens.push((slot, Written { key, kind, bytes, deduplicated, boot, directory, end }));
        }
        match pending.reply {
            Reply::Written(reply) => drop(reply.send(Ok(tokens))),
            Reply::Durable(reply) => self.directory.commit.wait(until, Waiter::Commit(tokens, reply)),
        }
    }
}

const ZEROS: [u8; ALIGN as usize] = [0; ALIGN as usize];

impl Entry {
    fn note(&self, builder: &mut FooterBuilder) {
        let offset = self.place.offset;
        match &self.what {
            What::Public(_, info) => builder.add_public(&self.header, offset, info.as_ref()),
            What::Removes(keys, _) => builder.add_tombstone(&self.header, offset, keys),
            What::Settled(_) | What::Owed(_) | What::Paid(_) => builder.add_local(&self.header, offset),
        }
    }

    fn items(&mut self) -> Vec<LogItem> {
        match std::mem::replace(&mut self.what, What::Removes(Vec::new(), Vec::new())) {
            What::Public(kind, info) => {
                let place = Place { segment: self.place.segment, offset: self.place.offset, length: self.header.length, kind };
                vec![LogItem::Put { key: self.header.key, place, received: self.header.received, info }]
            }
            What::Removes(keys, notes) => {
                let mut notes: HashMap<RecordKey, Note> = notes.into_iter().map(|note| (note.record, note)).collect();
                keys.into_iter().map(|key| LogItem::Remove(key, notes.remove(&key))).collect()
            }
            What::Settled(marks) => vec![LogItem::Settled(marks)],
            What::Owed(debts) => vec![LogItem::Owed(debts)],
            What::Paid(payments) => vec![LogItem::Paid(payments)],
        }
    }
}

#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    by_key: HashMap<RecordKey, usize>,
    removed: std::collections::HashSet<RecordKey>,
    appends: Vec<Pending>,
    locals: Vec<oneshot::Sender<Result<(), SyncFailed>>>,
    compactions: Vec<(u64, mpsc::SyncSender<Result<u64, AppendError>>)>,
    settled: Vec<(BucketId, String, Stamp, RecordId)>,
}

impl Batch {
    fn push(&mut self, header: RecordHeader, body: Bytes, what: What) -> usize {
        self.entries.push(Entry { header, body, what, place: Position::default() });
        self.entries.len() - 1
    }
}

/// Writes footer and trailer at `offset`; returns the trailer and the file's final length.
///
/// # Errors
/// As the system says; the file may have grown then.
pub fn seal(
    file: &dyn DiskFile,
    salt: u32,
    builder: &FooterBuilder,
    offset: u64,
    now: afar_model::units::UnixMillis,
) -> std::io::Result<(format::Trailer, u64)> {
    let body = builder.encode();
    let key = RecordKey { bucket: BucketId::SYSTEM, id: RecordId::of(&body) };
    let length = u32::try_from(body.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let header = RecordHeader { kind: Kind::Footer, length, key, received: now };
    let trailer = format::Trailer { footer_offset: offset, footer_length: header.total(), ..builder.totals };
    let padding = (header.total() - RECORD_HEADER as u64) as usize - body.len();
    let (head, tail) = (header.encode(salt), trailer.encode());
    let mut pieces =
        [IoSlice::new(&head), IoSlice::new(&body), IoSlice::new(ZEROS.get(..padding).unwrap_or_default()), IoSlice::new(&tail)];
    disk::write_all(file, &mut pieces, offset)?;
    let end = offset + header.total() + format::TRAILER as u64;
    file.set_length(end)?; // gives back what was allocated ahead
    Ok((trailer, end))
}

impl Directory {
    /// The number of the segment that is being written (or was last).
    pub fn active_sequence(&self) -> u64 {
        self.active.lock().sequence
    }

    /// Free bytes below which clients, and below which repair, are refused, on a disk of this size.
    pub fn marks(&self, capacity: u64) -> (u64, u64) {
        let usual = self.settings.segment_bytes.saturating_mul(2).max(capacity / 20).min(capacity / 4);
        let client = self.settings.reserve.client.unwrap_or(usual);
        (client, self.settings.reserve.repair.unwrap_or(client / 2))
    }
}
