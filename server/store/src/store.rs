//! The door to the log: everything that the node asks of its disks goes through [`Store`].
use crate::{
    commit::{Durable, Waiter, Written},
    directory::Directory,
    disk::{Disk, Lock, RealDisk},
    format::{self, Debts, Note, Payments},
    index::{IndexFactory, sled::SledFactory},
    indexer::Indexer,
    limits, open, outbox,
    types::*,
    views,
    writer::{Append, Local, Op, Reply, Writer},
};
use afar_model::{
    hlc::Stamp,
    id::{BootId, BucketId, DirectoryId, Incarnation, RecordId},
    record::{Record, RecordKey, RecordKind, VersionEntry},
    units::UnixMillis,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, oneshot};

/// A node's log. Cheap to clone; every clone is the same store. Dropping the last one closes it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directories: Vec<Arc<Directory>>,
    reports: Vec<DirectoryReport>,
    incarnation: Incarnation,
    boot: BootId,
    index_cache_bytes: u64,
    queue: Arc<Semaphore>,
    queue_bytes: usize,
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug)]
struct Threads {
    writers: Vec<JoinHandle<()>>,
    syncers: Vec<JoinHandle<()>>,
    indexers: Vec<JoinHandle<()>>,
    fillers: Vec<JoinHandle<()>>,
    recheck: Option<JoinHandle<()>>,
    _locks: Vec<Box<dyn Lock>>,
}

impl Store {
    /// Opens the directories, recovers what a crash left, and starts serving. Blocking: for the time that scanning each
    /// directory's newest segment takes; an index that must be rebuilt is rebuilt in the background.
    ///
    /// # Errors
    /// If a directory belongs to somebody else, or none can be used. A single failed disk is no error: see [`Opened`].
    pub fn open(options: Options) -> Result<(Self, Opened), OpenError> {
        let share = options.index_cache_bytes / options.directories.len().max(1) as u64;
        Self::open_on(Arc::new(RealDisk), Arc::new(SledFactory { cache_bytes: share }), options)
    }

    /// The same on any disk, with any index: for tests and simulation.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(disk: Arc<dyn Disk>, factory: Arc<dyn IndexFactory>, options: Options) -> Result<(Self, Opened), OpenError> {
        let outcome = open::open(&disk, &*factory, &options)?;
        let (mut directories, mut locks, mut starts, mut records) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for ready in outcome.ready {
            directories.push(Arc::clone(&ready.directory));
            locks.push(ready.lock);
            records += ready.records;
            starts.push((ready.directory, ready.file, ready.trusted));
        }
        let rebuilding = starts.iter().filter(|(_, _, trusted)| trusted.is_err()).count();
        let threads = start(starts, locks, &factory).map_err(OpenError::Thread)?;
        let queue_bytes = options.queue_bytes.clamp(limits::BODY_BYTES_MAX, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let inner = Inner {
            directories,
            reports: outcome.reports.clone(),
            incarnation: outcome.incarnation,
            boot: outcome.boot,
            index_cache_bytes: options.index_cache_bytes,
            queue: Arc::new(Semaphore::new(queue_bytes)),
            queue_bytes,
            threads: Mutex::new(Some(threads)),
        };
        let store = Self { inner: Arc::new(inner) };
        store.wait_for_views(OPEN_PATIENCE);
        let opened = Opened {
            incarnation: outcome.incarnation,
            boot: outcome.boot,
            directories: outcome.reports,
            losses: store.losses(),
            rebuilding,
            records,
        };
        Ok((store, opened))
    }

    /// Waits until the views are complete, or the time is over; whether they are. Blocking.
    pub fn wait_for_views(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        for directory in &self.inner.directories {
            let mut deltas = directory.deltas.lock();
            while !directory.views_ready() {
                if directory.deltas_done.wait_until(&mut deltas, until).timed_out() {
                    return directory.views_ready();
                }
            }
        }
        true
    }

    /// Appends records: placed and written, but not durable. In the order of `records`. If the future is dropped the records
    /// are appended or not, never torn.
    ///
    /// # Errors
    /// If the disk is too full for this class, or takes no writes. Some of the records may have been appended then.
    pub async fn append(&self, class: AppendClass, records: Vec<Record>) -> Result<Vec<Written>, AppendError> {
        let count = records.len();
        let mut waiting = Vec::new();
        for (directory, records) in self.spread(records)? {
            let (reply, answer) = oneshot::channel();
            self.send(&directory, class, records, Reply::Written(reply)).await?;
            waiting.push(answer);
        }
        let mut landed = Vec::with_capacity(count);
        for answer in waiting {
            landed.extend(answer.await.unwrap_or(Err(AppendError::Closed))?);
        }
        Ok(in_order(landed))
    }

    /// Makes what was written durable: one `fdatasync` per directory involved, shared with whoever else waits.
    ///
    /// # Errors
    /// If a directory failed a sync since, or a token comes from another run.
    pub async fn sync(&self, written: &[Written]) -> Result<Vec<Durable>, SyncFailed> {
        let mut groups: BTreeMap<usize, Vec<(usize, Written)>> = BTreeMap::new();
        for (slot, token) in written.iter().enumerate() {
            let directory = self.inner.directories.iter().position(|directory| directory.id == token.directory);
            let directory = directory.filter(|_| token.boot == self.inner.boot).ok_or(SyncFailed::AnotherRun)?;
            groups.entry(directory).or_default().push((slot, token.clone()));
        }
        let mut waiting = Vec::new();
        for (directory, tokens) in groups {
            let Some(directory) = self.inner.directories.get(directory) else { continue };
            let until = tokens.iter().map(|(_, token)| token.end).max().unwrap_or_default();
            let (reply, answer) = oneshot::channel();
            directory.commit.wait(until, Waiter::Sync(tokens, reply));
            waiting.push(answer);
        }
        let mut durable = Vec::with_capacity(written.len());
        for answer in waiting {
            durable.extend(answer.await.unwrap_or(Err(SyncFailed::Closed))?);
        }
        // Much of it may have been durable long before this was asked, and gone since.
        let segments: BTreeSet<(DirectoryId, u64)> = written.iter().map(|token| (token.directory, token.end.segment)).collect();
        let has = |(id, segment): &(DirectoryId, u64)| {
            self.inner.directories.iter().any(|directory| directory.id == *id && directory.still_has(*segment))
        };
        if segments.iter().all(has) { Ok(in_order(durable)) } else { Err(SyncFailed::Lost) }
    }

    /// [`Store::append`] and [`Store::sync`] in one trip.
    ///
    /// # Errors
    /// As both.
    pub async fn commit(&self, class: AppendClass, records: Vec<Record>) -> Result<Vec<Durable>, CommitError> {
        let count = records.len();
        let mut waiting = Vec::new();
        for (directory, records) in self.spread(records)? {
            let (reply, answer) = oneshot::channel();
            self.send(&directory, class, records, Reply::Durable(reply)).await?;
            waiting.push(answer);
        }
        let mut durable = Vec::with_capacity(count);
        for answer in waiting {
            durable.extend(answer.await.unwrap_or(Err(AppendError::Closed.into()))?);
        }
        Ok(in_order(durable))
    }

    async fn send(
        &self,
        directory: &Arc<Directory>,
        class: AppendClass,
        records: Vec<(usize, Record)>,
        reply: Reply,
    ) -> Result<(), AppendError> {
        let bytes: usize = records.iter().map(|(_, record)| record.body().len() + format::RECORD_HEADER).sum();
        let permits = u32::try_from(bytes.min(self.inner.queue_bytes)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.inner.queue).acquire_many_owned(permits).await.map_err(|_| AppendError::Closed)?;
        directory.queue.push(Op::Append(Append { class, records, reply, permit: Some(permit), rechecked: false }));
        Ok(())
    }

    /// Chooses a directory for each record: where it is already, else by rendezvous over the directories that take writes.
    fn spread(&self, records: Vec<Record>) -> Result<Vec<Share>, AppendError> {
        let mut groups: BTreeMap<usize, Vec<(usize, Record)>> = BTreeMap::new();
        for (slot, record) in records.into_iter().enumerate() {
            if record.body().len() > limits::BODY_BYTES_MAX {
                return Err(AppendError::TooLarge { bytes: record.body().len(), max: limits::BODY_BYTES_MAX });
            }
            groups.entry(self.home(&record.key())?).or_default().push((slot, record));
        }
        Ok(groups.into_iter().filter_map(|(at, records)| Some((Arc::clone(self.inner.directories.get(at)?), records))).collect())
    }

    fn home(&self, key: &RecordKey) -> Result<usize, AppendError> {
        let directories = &self.inner.directories;
        let takes_writes = |directory: &Directory| directory.read_only().is_none();
        if let [only] = directories.as_slice() {
            return only.read_only().map_or(Ok(0), |why| Err(AppendError::ReadOnly(why)));
        }
        if let Some(holder) = directories.iter().position(|directory| takes_writes(directory) && self.good_copy_in(directory, key)) {
            return Ok(holder);
        }
        let healthy = directories.iter().enumerate().filter(|(_, directory)| takes_writes(directory));
        healthy.max_by_key(|(_, directory)| weight(directory.id, &key.id)).map(|(at, _)| at).ok_or_else(|| {
            AppendError::ReadOnly(directories.iter().filter_map(|directory| directory.read_only()).collect::<Vec<_>>().join("; "))
        })
    }

    fn good_copy_in(&self, directory: &Directory, key: &RecordKey) -> bool {
        directory.locate_unlikely(key).is_ok_and(|place| place.is_some_and(|place| !directory.is_bad(key, &place)))
    }

    /// Reads and verifies a record. Blocking.
    ///
    /// # Errors
    /// If it is (or was) here but cannot be read whole: ask another replica.
    pub fn get(&self, key: &RecordKey) -> Result<Option<Found>, ReadError> {
        self.read(key, Directory::get)
    }

    fn read(
        &self,
        key: &RecordKey,
        read: impl Fn(&Directory, &RecordKey) -> Result<Option<(UnixMillis, Record)>, ReadError>,
    ) -> Result<Option<Found>, ReadError> {
        let mut failed = None;
        for directory in &self.inner.directories {
            match read(directory, key) {
                Ok(Some((received, record))) => return Ok(Some(Found { record, received })),
                Ok(None) => {}
                Err(error) => failed = Some(error), // another directory may have a good copy
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// As [`Store::get`], by path and past the page cache where that can be done (rule 26): what a proof rests on. What is
    /// read through a file that is open may have been deleted. Blocking.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn prove(&self, key: &RecordKey) -> Result<Option<Found>, ReadError> {
        self.read(key, Directory::prove)
    }

    /// Looks by path whether everything is there that this run has opened and written (rule 26); what is not leaves the index,
    /// and is among the [`Store::losses`]. To be called every 20 s. Blocking.
    pub fn look(&self) {
        self.inner.directories.iter().for_each(|directory| directory.look());
    }

    /// As [`Store::get`], without waiting for a disk: for async code, so that what is in memory costs no other thread.
    /// `None` says nothing, not even that it is not here: then [`Store::get`] finds out.
    pub fn get_cached(&self, key: &RecordKey, bytes_max: usize) -> Option<Found> {
        let found = self.inner.directories.iter().find_map(|directory| directory.get_cached(key, bytes_max));
        found.map(|(received, record)| Found { record, received })
    }

    /// Whether a verified copy is here (rule 6): verified within `max_age` and its file unchanged since, else re-hashed
    /// now. Blocking.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn presence(&self, key: &RecordKey, max_age: Duration) -> Result<bool, ReadError> {
        let mut failed = None;
        for directory in &self.inner.directories {
            match directory.presence(key, max_age) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    /// Whether the index knows the record. No evidence of possession.
    pub fn holds(&self, key: &RecordKey) -> bool {
        self.inner.directories.iter().any(|directory| self.good_copy_in(directory, key))
    }

    /// The versions of a key, newest first, settled or not; those older than `before` if that is given, so that its last is
    /// where the next page begins.
    ///
    /// # Errors
    /// If a view is being rebuilt.
    pub fn versions(
        &self,
        bucket: &BucketId,
        key: &str,
        before: Option<(Stamp, RecordId)>,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, NotReady> {
        let mut versions = Vec::new();
        for directory in &self.inner.directories {
            versions.extend(directory.versions(bucket, key, before, limit)?);
        }
        Ok(views::merge_versions(versions, limit))
    }

    /// One version of a key, however many newer ones there are.
    ///
    /// # Errors
    /// If a view is being rebuilt.
    pub fn version(&self, bucket: &BucketId, key: &str, stamp: Stamp, id: RecordId) -> Result<Option<VersionEntry>, NotReady> {
        let mut versions = Vec::new();
        for directory in &self.inner.directories {
            versions.extend(directory.version(bucket, key, stamp, id)?);
        }
        Ok(views::merge_versions(versions, 1).pop())
    }

    /// Keys ascending (byte order), each with its versions newest first, at most
    /// [`limits::LIST_VERSIONS_PER_KEY_MAX`] each.
    ///
    /// # Errors
    /// If a view is being rebuilt.
    pub fn list(&self, bucket: &BucketId, from: &ListFrom, limit: usize) -> Result<Vec<(String, Vec<VersionEntry>)>, NotReady> {
        Ok(views::merge_listings(self.pages(|directory| directory.list(bucket, from, limit))?, limit))
    }

    /// Records ascending by (id, bucket), of the kinds given (none given: all).
    ///
    /// # Errors
    /// If the index is being rebuilt.
    pub fn ids(&self, range: IdRange, after: Option<&RecordKey>, kinds: &[RecordKind], limit: usize) -> Result<Vec<IdEntry>, NotReady> {
        let pages = self.pages(|directory| directory.ids(range, after, kinds, limit))?;
        Ok(views::merge_sorted(pages, limit, |entry| (entry.key.id, entry.key.bucket)))
    }

    /// A walk over all versions of all buckets.
    ///
    /// # Errors
    /// If a view is being rebuilt.
    pub fn version_ids(&self, after: Option<&VersionCursor>, limit: usize) -> Result<Vec<VersionRow>, NotReady> {
        Ok(views::merge_rows(self.pages(|directory| directory.version_rows(after, false, limit))?, limit))
    }

    /// As [`Store::version_ids`], and those of which only a note is left.
    ///
    /// # Errors
    /// If a view is being rebuilt.
    pub fn known_versions(&self, after: Option<&VersionCursor>, limit: usize) -> Result<Vec<VersionRow>, NotReady> {
        Ok(views::merge_rows(self.pages(|directory| directory.version_rows(after, true, limit))?, limit))
    }

    /// Whether this is a version whose record is lost, and which is still known to have been: it stays among the
    /// [`Store::versions`], so that none that is older passes for the newest, until its record is here again.
    pub fn is_noted(&self, key: &RecordKey) -> bool {
        self.inner.directories.iter().any(|directory| directory.note(key).is_some()) && !self.holds(key)
    }

    /// Notes versions that others know to have been, and whose records nobody has: those that are not known here.
    pub fn note(&self, versions: Vec<Note>) {
        for note in versions {
            if !self.holds(&note.record)
                && let Ok(home) = self.home(&note.record)
                && let Some(directory) = self.inner.directories.get(home)
            {
                directory.queue.push(Op::Local(vec![Local::Note(vec![note])], None));
            }
        }
    }

    fn pages<T>(&self, page: impl Fn(&Directory) -> Result<Vec<T>, NotReady>) -> Result<Vec<Vec<T>>, NotReady> {
        self.inner.directories.iter().map(|directory| page(directory)).collect()
    }

    /// Every record of kind [`RecordKind::Setting`], verified. Works while the views are being rebuilt. Blocking.
    pub fn settings(&self) -> Vec<Record> {
        let keys: HashSet<RecordKey> = self.inner.directories.iter().flat_map(|directory| directory.setting_keys()).collect();
        keys.iter().filter_map(|key| Some(self.get(key).ok()??.record)).collect()
    }

    /// Marks versions as known to be at their bucket's level. Visible at once; logged within about a second. A mark that a
    /// crash loses is made again by the next reader (rule 1).
    pub fn settle(&self, versions: Vec<(BucketId, String, Stamp, RecordId)>) {
        match self.inner.directories.as_slice() {
            [only] => only.settle(versions),
            several => {
                for directory in several {
                    let here = |(bucket, _, _, id): &&(BucketId, String, Stamp, RecordId)| {
                        directory.locate(&RecordKey { bucket: *bucket, id: *id }).is_ok_and(|place| place.is_some())
                    };
                    let versions: Vec<_> = versions.iter().filter(here).cloned().collect();
                    if !versions.is_empty() {
                        directory.settle(versions);
                    }
                }
            }
        }
    }

    /// Removes records from this node, durably. What is not here is no error.
    ///
    /// # Errors
    /// If a directory that holds one of them takes no writes.
    pub async fn remove(&self, keys: Vec<RecordKey>, why: Removal) -> Result<(), AppendError> {
        let mut waiting = Vec::new();
        for directory in &self.inner.directories {
            let known = |key: &&RecordKey| directory.locate(key).map_or(true, |place| place.is_some()) || directory.note(key).is_some();
            let here: Vec<_> = keys.iter().filter(known).map(|key| (*key, None)).collect();
            let locals = here.chunks(limits::LOCAL_ITEMS_MAX).map(|keys| Local::Remove(keys.to_vec(), why)).collect();
            waiting.extend(send_locals(directory, locals));
        }
        finish(waiting).await
    }

    /// Notes that records have to reach other nodes, durably. A record owed already keeps its time.
    ///
    /// # Errors
    /// If the disk takes no writes.
    pub async fn owe(&self, items: Vec<Owed>) -> Result<(), AppendError> {
        let mut groups: BTreeMap<(usize, String), BTreeMap<(RecordId, BucketId), Owed>> = BTreeMap::new();
        for item in items {
            if item.to.len() > limits::NODE_NAME_BYTES_MAX || item.to.contains('\0') {
                return Err(AppendError::TooLarge { bytes: item.to.len(), max: limits::NODE_NAME_BYTES_MAX });
            }
            let home = self.home(&item.key)?;
            groups.entry((home, item.to.clone())).or_default().insert((item.key.id, item.key.bucket), item);
        }
        let mut waiting = Vec::new();
        for ((home, to), items) in groups {
            let Some(directory) = self.inner.directories.get(home) else { continue };
            let items: Vec<_> = items.into_values().map(|item| (item.key, item.kind, item.bytes, item.since)).collect();
            let debts = items.chunks(limits::LOCAL_ITEMS_MAX).map(|items| Local::Owed(Debts { to: to.clone(), items: items.to_vec() }));
            waiting.extend(send_locals(directory, debts.collect()));
        }
        finish(waiting).await
    }

    /// Notes that they have. Logged soon: after a crash a debt may be paid twice.
    pub fn pay(&self, to: &str, mut keys: Vec<RecordKey>) {
        keys.sort_unstable_by_key(|key| (key.id, key.bucket));
        keys.dedup();
        for directory in &self.inner.directories {
            // Each directory takes out what it owes; the debt may lie in another one than its record by now.
            let ours: Vec<RecordKey> = match self.inner.directories.len() {
                1 => keys.clone(),
                _ => keys.iter().filter(|key| directory.may_owe(to, key)).copied().collect(),
            };
            let paid = ours.chunks(limits::LOCAL_ITEMS_MAX).map(|keys| Local::Paid(Payments { to: to.to_owned(), keys: keys.to_vec() }));
            let paid: Vec<Local> = paid.collect();
            if !paid.is_empty() {
                directory.queue.push(Op::Local(paid, None));
            }
        }
    }

    /// What is owed, by node and then oldest first; `after` is the last item of the page before.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn owed(&self, to: Option<&str>, after: Option<&Owed>, limit: usize) -> Result<Vec<Owed>, NotReady> {
        Ok(views::merge_sorted(self.pages(|directory| directory.owed(to, after, limit))?, limit, outbox::order))
    }

    /// What is owed to whom.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn owed_summary(&self) -> Result<Vec<OwedSummary>, NotReady> {
        let mut sums = BTreeMap::new();
        for directory in &self.inner.directories {
            directory.add_owed_summary(&mut sums)?;
        }
        Ok(sums.into_values().collect())
    }

    /// The durable end of each directory's log (rule 19: it never goes backwards).
    pub fn positions(&self) -> Vec<(DirectoryId, Position)> {
        self.inner.directories.iter().map(|directory| (directory.id, directory.commit.durable())).collect()
    }

    /// The greatest version stamp in the log.
    pub fn newest_stamp_seen(&self) -> Stamp {
        let greatest = self.inner.directories.iter().map(|directory| directory.stamp_max.load(Ordering::Acquire)).max();
        Stamp::from_u64(greatest.unwrap_or(0))
    }

    /// The greatest version stamp in the log that is not beyond `limit`, and how many versions are: the clock restarts from
    /// the former (rule 4). Blocking: where a segment holds a stamp beyond the limit its whole footer is read, else nothing.
    pub fn stamps_up_to(&self, limit: Stamp) -> StampsSeen {
        self.inner.directories.iter().fold(StampsSeen::default(), |seen, directory| {
            let here = directory.stamps_up_to(limit);
            StampsSeen { newest: seen.newest.max(here.newest), beyond: seen.beyond + here.beyond }
        })
    }

    /// Grows whenever versions were lost in this run: quarantined, or gone with their segment. It does so before they leave the
    /// views, so whoever asks after reading a view knows whether something may be missing from it.
    pub fn losses_counted(&self) -> u64 {
        self.inner.directories.iter().map(|directory| directory.losses.load(Ordering::Acquire)).sum()
    }

    /// Whether listings are complete; else they answer [`NotReady`].
    pub fn views_ready(&self) -> bool {
        self.inner.directories.iter().all(|directory| directory.views_ready())
    }

    /// This node's incarnation.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation
    }

    /// This run.
    pub fn boot(&self) -> BootId {
        self.inner.boot
    }

    /// How full the node is, and what its log did.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            index_cache_bytes: self.inner.index_cache_bytes,
            views_ready: self.views_ready(),
            rebuild_progress: 1.0,
            ..Usage::default()
        };
        for report in &self.inner.reports {
            let served = self.inner.directories.iter().find(|directory| Some(directory.id) == report.id);
            let directory = match served {
                Some(directory) => directory.add_usage(&mut usage),
                None => DirectoryUsage {
                    path: report.path.clone(),
                    id: report.id,
                    state: report.state.clone(),
                    capacity: 0,
                    free: 0,
                    segment_bytes: 0,
                    syncs: SyncCounts::default(),
                    read_failures: ReadFailures::default(),
                },
            };
            usage.directories.push(directory);
        }
        usage
    }

    /// What is known to be lost or damaged.
    pub fn losses(&self) -> Losses {
        let mut losses = Losses::default();
        for report in &self.inner.reports {
            if let DirectoryState::Failed(why) = &report.state {
                losses.directories.push((report.path.clone(), why.clone()));
            }
        }
        for directory in &self.inner.directories {
            losses.damaged.extend(directory.damaged.lock().iter().cloned());
            let (corrupt, total) = directory.corrupt();
            losses.corrupt.extend(corrupt);
            losses.corrupt_total += total;
        }
        losses.corrupt.truncate(limits::BAD_RECORDS_MAX);
        losses
    }

    /// Compares index and segments (rule 18); to be called every 30 s, and before anything destructive. Blocking.
    pub fn check_index(&self) -> IndexCheck {
        let mut check = IndexCheck { matches: true, ..IndexCheck::default() };
        self.inner.directories.iter().for_each(|directory| directory.check_index(&mut check));
        check
    }

    /// Empties and deletes the segment that is most worth it, if any. Blocking. Not to be called under the latch (rule 10).
    ///
    /// # Errors
    /// If the disk does not take the copies; nothing is lost then.
    pub fn compact_step(&self) -> Result<CompactStep, AppendError> {
        let mut failed = None;
        for directory in &self.inner.directories {
            match directory.compact_step() {
                Ok(step) if step.segment.is_some() => return Ok(step),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(CompactStep::default()), Err)
    }

    /// Re-reads and hashes the next `budget_bytes` of the sealed segments that were verified longest ago. Blocking.
    pub fn scrub_step(&self, budget_bytes: u64) -> ScrubStep {
        let oldest = self.inner.directories.iter().filter_map(|directory| Some((directory.oldest_unverified()?, directory)));
        oldest.min_by_key(|(oldest, _)| *oldest).map(|(_, directory)| directory.scrub_step(budget_bytes)).unwrap_or_default()
    }

    /// When the least recently verified segment was verified (or written and synced); `None` if nothing is sealed.
    pub fn oldest_unverified(&self) -> Option<UnixMillis> {
        self.inner.directories.iter().filter_map(|directory| directory.oldest_unverified()).min()
    }

    /// How much is visible and in no index, once that has all that is durable. Blocking.
    #[cfg(test)]
    pub(crate) fn overlay_entries(&self) -> usize {
        let left = |directory: &Arc<Directory>| {
            directory.sync_blocking().expect("a sync");
            directory.flush_index().expect("a flush");
            directory.kv.overlay.read().len()
        };
        self.inner.directories.iter().map(left).sum()
    }

    /// Syncs, flushes the index and stops. Blocking. Later calls on other clones fail with `Closed`.
    pub fn close(self) {
        self.inner.stop();
    }
}

/// What one directory gets of an append: records with their slots in the caller's list.
type Share = (Arc<Directory>, Vec<(usize, Record)>);

/// An index that lags by less than this is caught up before [`Store::open`] returns.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);

fn in_order<T>(mut slots: Vec<(usize, T)>) -> Vec<T> {
    slots.sort_unstable_by_key(|(slot, _)| *slot);
    slots.into_iter().map(|(_, token)| token).collect()
}

/// Rendezvous: each directory's claim to a record. Uniform because ids are digests and directory ids random.
fn weight(directory: DirectoryId, id: &RecordId) -> u64 {
    let word = |bytes: &[u8]| bytes.first_chunk().copied().map_or(0, u64::from_le_bytes);
    let mut mixed = word(id.as_bytes()) ^ word(directory.as_bytes()).rotate_left(17);
    for multiplier in [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB] {
        mixed = (mixed ^ (mixed >> 31)).wrapping_mul(multiplier);
    }
    mixed ^ (mixed >> 29)
}

fn send_locals(directory: &Arc<Directory>, locals: Vec<Local>) -> Option<oneshot::Receiver<Result<(), SyncFailed>>> {
    if locals.is_empty() {
        return None;
    }
    let (reply, answer) = oneshot::channel();
    directory.queue.push(Op::Local(locals, Some(reply)));
    Some(answer)
}

async fn finish(waiting: Vec<oneshot::Receiver<Result<(), SyncFailed>>>) -> Result<(), AppendError> {
    for answer in waiting {
        match answer.await {
            Ok(Ok(())) => {}
            Ok(Err(SyncFailed::Closed)) | Err(_) => return Err(AppendError::Closed),
            Ok(Err(error)) => return Err(AppendError::ReadOnly(error.to_string())),
        }
    }
    Ok(())
}

type Start = (Arc<Directory>, Option<Arc<dyn crate::disk::DiskFile>>, Result<crate::indexer::Trusted, String>);

fn start(starts: Vec<Start>, locks: Vec<Box<dyn Lock>>, factory: &Arc<dyn IndexFactory>) -> std::io::Result<Threads> {
    let (recheck, rechecks) = mpsc::sync_channel::<(Arc<Directory>, Append)>(limits::VERIFY_QUEUE_MAX);
    let mut threads =
        Threads { writers: Vec::new(), syncers: Vec::new(), indexers: Vec::new(), fillers: Vec::new(), recheck: None, _locks: locks };
    let spawn = |name: String, work: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name).spawn(work);
    for (number, (directory, file, trusted)) in starts.into_iter().enumerate() {
        let indexer = Indexer::new(Arc::clone(&directory), Arc::clone(factory), trusted);
        threads.indexers.push(spawn(format!("afar-index-{number}"), Box::new(move || indexer.run()))?);
        let filling = Arc::clone(&directory);
        threads.fillers.push(spawn(format!("afar-filter-{number}"), Box::new(move || filling.fill_filter()))?);
        let syncing = Arc::clone(&directory);
        let sync = move || syncing.commit.run(|| syncing.wake_indexer());
        threads.syncers.push(spawn(format!("afar-sync-{number}"), Box::new(sync))?);
        let writer = Writer::new(directory, recheck.clone(), file);
        threads.writers.push(spawn(format!("afar-write-{number}"), Box::new(move || writer.run()))?);
    }
    drop(recheck); // the thread below ends with the last writer
    threads.recheck = Some(spawn("afar-recheck".to_owned(), Box::new(move || rechecks.iter().for_each(recheck_copies)))?);
    Ok(threads)
}

/// Re-hashes the existing copies of what somebody appends again, then hands the append back to the writer.
fn recheck_copies((directory, mut append): (Arc<Directory>, Append)) {
    for (_, record) in &append.records {
        // Good ones are remembered as verified, bad ones as bad; the writer asks for both.
        let _ = directory.presence(&record.key(), afar_model::limits::VERIFIED_RECENTLY);
    }
    append.rechecked = true;
    directory.queue.push(Op::Append(append));
}

impl Inner {
    fn stop(&self) {
        let Some(threads) = self.threads.lock().take() else { return };
        let join = |threads: Vec<JoinHandle<()>>| threads.into_iter().for_each(|thread| drop(thread.join()));
        self.queue.close();
        self.directories.iter().for_each(|directory| directory.queue.close());
        join(threads.writers);
        join(threads.recheck.into_iter().collect());
        self.directories.iter().for_each(|directory| directory.commit.stop());
        join(threads.syncers);
        for directory in &self.directories {
            directory.commit.drain();
            directory.deltas.lock().stop = true;
            directory.deltas_wake.notify_all();
        }
        join(threads.indexers);
        join(threads.fillers);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Directory {
    fn wake_indexer(&self) {
        // Under the lock, or the index thread might look just before and sleep just after.
        let _queue = self.deltas.lock();
        self.deltas_wake.notify_all();
    }

    fn may_owe(&self, to: &str, key: &RecordKey) -> bool {
        !self.views_ready() || self.kv.get(&crate::index::keys::debt(to, key)).map_or(true, |row| row.is_some())
    }

    fn add_usage(&self, usage: &mut Usage) -> DirectoryUsage {
        let space = self.space();
        let segment_bytes: u64 = self.segments.read().values().map(|segment| segment.length()).sum();
        let index_bytes = self.kv.index().bytes_on_disk();
        usage.capacity += space.capacity;
        usage.free += space.free;
        usage.used += segment_bytes + index_bytes;
        usage.index_bytes += index_bytes;
        let syncs = self.commit.counts();
        usage.syncs += syncs.calls();
        usage.bytes_written += self.bytes_written.load(Ordering::Relaxed);
        if !self.views_ready() {
            usage.rebuild_progress = usage.rebuild_progress.min(f32::from(self.progress.load(Ordering::Relaxed).min(999) as u16) / 1000.0);
        }
        let read_only = self.read_only();
        if read_only.is_none() {
            usage.free_for_clients += space.free.saturating_sub(self.marks(space.capacity).0);
        }
        for counted in self.counters.lock().values() {
            usage.records += counted.live.max(0).unsigned_abs();
            let [chunk, manifest, version, setting] = counted.by_kind.map(|bytes| bytes.max(0).unsigned_abs());
            usage.bytes_by_kind.chunk += chunk;
            usage.bytes_by_kind.manifest += manifest;
            usage.bytes_by_kind.version += version;
            usage.bytes_by_kind.setting += setting;
        }
        let state = read_only.map_or(DirectoryState::Healthy, DirectoryState::ReadOnly);
        DirectoryUsage {
            path: self.path.clone(),
            id: Some(self.id),
            state,
            capacity: space.capacity,
            free: space.free,
            segment_bytes,
            syncs,
            read_failures: self.read_failures.lock().clone(),
        }
    }
}
