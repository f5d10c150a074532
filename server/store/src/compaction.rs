//! Compaction: what is live in a segment that is mostly garbage goes to the end of the log, then the file goes.
//!
//! The copies are ordinary entries of the log, written by the writer, which moves a record only if it is still where
//! compaction found it: a removal in between wins. Headers are verbatim, bodies are verified before they are copied, and
//! what fails is quarantined (rule 17). Then the copies are synced, the index is flushed beyond them, and only then is the
//! file removed: a crash at any point leaves either the file, or the file and copies (the later ones win), or the copies.
//!
//! A tombstone is kept as long as an older segment of this directory holds its record, and debts, settled marks and notes as
//! long as they mean anything.
use crate::{
    commit::Waiter,
    directory::Directory,
    footer::Entry,
    format::{self, Debts, Kind, Payments, SettledMarks},
    index::keys,
    indexer, limits,
    segment::{self, Place, PlaceError, Segment},
    types::{AppendError, CompactStep, SyncFailed},
    writer::{Local, Move, Op},
};
use afar_model::record::{RecordKey, RecordKind};
use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};
use tokio::sync::oneshot;

impl Directory {
    /// Empties and removes one segment, if one is worth it and the index agrees with the log (rule 18).
    ///
    /// # Errors
    /// If the disk does not take the copies.
    pub fn compact_step(&self) -> Result<CompactStep, AppendError> {
        let Some(_only_one) = self.compacting.try_lock() else { return Ok(CompactStep::default()) };
        if !self.views_ready() || !self.index_agrees.load(Ordering::Acquire) || self.read_only().is_some() {
            return Ok(CompactStep::default());
        }
        match self.victim() {
            Some(segment) => self.empty(&segment),
            None => Ok(CompactStep::default()),
        }
    }

    /// The sealed segment with most to gain.
    fn victim(&self) -> Option<Arc<Segment>> {
        let counters = self.counters.lock();
        let segments = self.segments.read();
        let durable = self.commit.durable();
        let oldest = segments.keys().next().copied();
        let gain = |segment: &Segment| {
            let counted = counters.get(&segment.sequence).copied().unwrap_or_default();
            let (live, dead) = (counted.live_bytes.max(0).unsigned_abs(), counted.dead_bytes.max(0).unsigned_abs());
            // The oldest segment's tombstones bind nobody any more: once nothing lives there it can go.
            let worth = dead > 0 && live * 100 <= (live + dead) * limits::COMPACT_LIVE_PERCENT_MAX
                || (live == 0 && oldest == Some(segment.sequence));
            worth.then_some(segment.length().saturating_sub(live))
        };
        let sealed = segments.values().filter(|segment| segment.trailer().is_some() && segment.sequence < durable.segment);
        sealed.filter_map(|segment| Some((gain(segment)?, Arc::clone(segment)))).max_by_key(|(gain, _)| *gain).map(|(_, segment)| segment)
    }

    fn empty(&self, segment: &Arc<Segment>) -> Result<CompactStep, AppendError> {
        let read_failed = |error: std::io::Error| AppendError::ReadOnly(format!("read segment {:016x}: {error}", segment.sequence));
        let file = self.disk.open(&segment.path, false).map_err(read_failed)?;
        let lines = self.footer(segment.sequence).and_then(|footer| footer.in_log_order()).map_err(read_failed)?;
        let mut step = CompactStep { segment: Some((self.id, segment.sequence)), freed: segment.length(), ..CompactStep::default() };
        let (mut moves, mut bytes) = (Vec::new(), 0);
        for (entry, _) in &lines {
            let Kind::Public(kind) = entry.kind else { continue };
            let place = Place { segment: segment.sequence, offset: entry.offset, length: entry.length, kind };
            if self.locate(&entry.key).map_err(AppendError::ReadOnly)? != Some(place) {
                continue;
            }
            match segment::read_record(&*file, self.salt, &entry.key, &place) {
                Ok((header, record)) => {
                    bytes += record.body().len();
                    moves.push(Move { header, from: place, body: record.into_body() });
                }
                Err(PlaceError::Bad(why)) => {
                    self.quarantine(&entry.key, &place, &why);
                    step.quarantined += 1;
                }
                Err(PlaceError::Unreadable(error)) => {
                    self.note_unreadable(&error);
                    self.quarantine(&entry.key, &place, &error.to_string());
                    step.quarantined += 1;
                }
                Err(PlaceError::Io(error)) => return Err(read_failed(error)),
            }
            if bytes >= limits::COMPACT_BATCH_BYTES {
                step.copied += self.write_out(std::mem::take(&mut moves), Vec::new())?;
                bytes = 0;
            }
        }
        let locals = self.locals_to_keep(&*file, segment, &lines).map_err(read_failed)?;
        // Also a barrier, if there is nothing to write: quarantines from above are in the log after it.
        step.copied += self.write_out(moves, locals)?;
        self.sync_blocking().map_err(|error| AppendError::ReadOnly(error.to_string()))?;
        self.flush_index().map_err(AppendError::ReadOnly)?;
        self.remove_segment(segment, &lines)?;
        Ok(step)
    }

    fn write_out(&self, moves: Vec<Move>, locals: Vec<Local>) -> Result<u64, AppendError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.queue.push(Op::Compact(moves, locals, sender));
        receiver.recv().unwrap_or(Err(AppendError::Closed))
    }

    /// Waits until everything written so far is durable. Blocking.
    ///
    /// # Errors
    /// If the sync fails.
    pub fn sync_blocking(&self) -> Result<(), SyncFailed> {
        let (sender, mut receiver) = oneshot::channel();
        self.commit.wait(self.commit.written(), Waiter::Done(sender));
        loop {
            // Not `blocking_recv`: that panics in an asynchronous context, and this may be called from anywhere.
            match receiver.try_recv() {
                Ok(result) => return result,
                Err(oneshot::error::TryRecvError::Closed) => return Err(SyncFailed::Closed),
                Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// Waits until the index has everything durable so far, itself durably. Blocking.
    ///
    /// # Errors
    /// If the index is unusable.
    pub fn flush_index(&self) -> Result<(), String> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let mut deltas = self.deltas.lock();
        if deltas.stop {
            return Err("the store is closed".to_owned()); // its thread may have ended, and would never answer
        }
        deltas.flush.push(sender);
        drop(deltas);
        self.deltas_wake.notify_all();
        receiver.recv().unwrap_or_else(|_| Err("the store is closed".to_owned()))
    }

    fn remove_segment(&self, segment: &Arc<Segment>, lines: &[(Entry, Option<format::VersionInfo>)]) -> Result<(), AppendError> {
        // Assert again before what cannot be undone: nothing that is live may still be in there.
        for (entry, _) in lines.iter().filter(|(entry, _)| matches!(entry.kind, Kind::Public(_))) {
            let here = self.locate(&entry.key).map_err(AppendError::ReadOnly)?;
            if here.is_some_and(|place| place.segment == segment.sequence) && !here.is_some_and(|place| self.is_bad(&entry.key, &place)) {
                return Err(AppendError::ReadOnly(format!("segment {:016x} still holds {:?}: not removed", segment.sequence, entry.key)));
            }
        }
        // Forgotten first, or whoever looks by path just then would take it for lost.
        self.forget_segment(segment.sequence);
        if let Err(error) = self.disk.remove(&segment.path).and_then(|()| self.disk.sync_directory(&self.segments_path)) {
            self.segments.write().insert(segment.sequence, Arc::clone(segment));
            return Err(AppendError::ReadOnly(format!("remove segment {:016x}: {error}", segment.sequence)));
        }
        self.counters.lock().remove(&segment.sequence);
        Ok(())
    }

    fn locals_to_keep(
        &self,
        file: &dyn crate::disk::DiskFile,
        segment: &Segment,
        lines: &[(Entry, Option<format::VersionInfo>)],
    ) -> std::io::Result<Vec<Local>> {
        let mut locals = Vec::new();
        let removed = lines.iter().filter(|(entry, _)| entry.kind == Kind::Tombstone).map(|(entry, _)| entry.key);
        let (noted, removed): (Vec<RecordKey>, Vec<RecordKey>) = removed.partition(|key| self.note(key).is_some());
        let bound = self.still_bound(removed, segment.sequence)?;
        for keys in bound.chunks(limits::LOCAL_ITEMS_MAX) {
            locals.push(Local::KeepRemoved(keys.to_vec(), crate::Removal::Swept));
        }
        for keys in noted.chunks(limits::LOCAL_ITEMS_MAX / 4) {
            locals.push(Local::KeepNotes(keys.to_vec()));
        }
        for (entry, _) in lines {
            match entry.kind {
                Kind::Settled => locals.extend(self.settled_to_keep(file, entry, segment.sequence)),
                Kind::Owed => locals.extend(self.debts_to_keep(file, entry, segment.sequence)),
                Kind::Paid => locals.extend(self.payments_to_keep(file, entry, segment.sequence)),
                _ => {}
            }
        }
        Ok(locals)
    }

    /// Of removed records, those that an older segment still holds and that are not live again.
    fn still_bound(&self, mut keys: Vec<RecordKey>, sequence: u64) -> std::io::Result<Vec<RecordKey>> {
        keys.sort_unstable_by_key(|key| (key.id, key.bucket));
        keys.dedup();
        keys.retain(|key| self.locate(key) == Ok(None));
        let older: Vec<u64> = self.segments.read().range(..sequence).map(|(older, _)| *older).collect();
        let mut bound = Vec::new();
        for older in older {
            if keys.is_empty() {
                break;
            }
            let footer = self.footer(older)?;
            let mut free = Vec::new();
            for key in keys {
                if footer.last(&key)?.is_some() { bound.push(key) } else { free.push(key) }
            }
            keys = free;
        }
        Ok(bound)
    }

    fn settled_to_keep(&self, file: &dyn crate::disk::DiskFile, entry: &Entry, sequence: u64) -> Option<Local> {
        let marks: SettledMarks = indexer::local(self, file, entry, sequence)?;
        let settled = |(bucket, key, stamp, id): &(_, String, _, _)| {
            let row = self.kv.get(&keys::view(bucket, key, *stamp, id)).ok().flatten();
            row.and_then(|row| keys::ViewRow::decode(&row)).is_some_and(|row| row.settled)
        };
        let versions: Vec<_> = marks.versions.into_iter().filter(settled).collect();
        (!versions.is_empty()).then_some(Local::Settled(versions))
    }

    fn debts_to_keep(&self, file: &dyn crate::disk::DiskFile, entry: &Entry, sequence: u64) -> Option<Local> {
        let debts: Debts = indexer::local(self, file, entry, sequence)?;
        let Debts { to, items } = debts;
        let owed = |item: &(RecordKey, RecordKind, u32, _)| self.kv.get(&keys::debt(&to, &item.0)).is_ok_and(|row| row.is_some());
        let items: Vec<_> = items.into_iter().filter(owed).collect();
        (!items.is_empty()).then_some(Local::KeepOwed(Debts { to, items }))
    }

    /// A payment matters as long as an older segment may hold its debt.
    fn payments_to_keep(&self, file: &dyn crate::disk::DiskFile, entry: &Entry, sequence: u64) -> Option<Local> {
        let older_debts = self
            .segments
            .read()
            .range(..sequence)
            .any(|(_, segment)| segment.trailer().is_none_or(|trailer| trailer.kinds & Kind::Owed.bit() != 0));
        if !older_debts {
            return None;
        }
        let Payments { to, keys: paid } = indexer::local(self, file, entry, sequence)?;
        let unowed = |key: &RecordKey| self.kv.get(&keys::debt(&to, key)).is_ok_and(|row| row.is_none());
        let paid: Vec<_> = paid.into_iter().filter(unowed).collect();
        (!paid.is_empty()).then_some(Local::KeepPaid(Payments { to, keys: paid }))
    }
}
