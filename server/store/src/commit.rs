//! Group commit: one thread per directory turns what is *written* into what is *durable*, and tells whoever waits.
//!
//! While an `fdatasync` runs the writer goes on writing and waiters gather; the next one serves them all. A segment that is
//! new has its directory synced before the first acknowledgement in it. A sync that fails is final (rule 16): the directory
//! is read-only from then on, every waiter gets an error, and a marker says up to where the log was durable, so that the
//! next start does not mistake the page cache for the disk.
//!
//! A sync counts only if the path of what was synced still names it: a deleted file takes writes and syncs as long as it
//! is open (rule 26).
//!
//! Only this module can make a [`Durable`].
use crate::{
    disk::{self, Disk, DiskFile},
    format,
    identity::Poison,
    limits,
    types::{CommitError, Position, SyncCounts, SyncFailed},
};
use afar_model::{
    id::{BootId, DirectoryId},
    record::{RecordKey, RecordKind},
};
use parking_lot::{Condvar, Mutex};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::oneshot;

/// A record that is in the log but may still be lost with the power: hand it to [`crate::Store::sync`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub(crate) key: RecordKey,
    pub(crate) kind: RecordKind,
    pub(crate) bytes: u32,
    pub(crate) deduplicated: bool,
    pub(crate) boot: BootId,
    pub(crate) directory: DirectoryId,
    /// The log must be durable up to here.
    pub(crate) end: Position,
}

/// A record that a finished `fdatasync` of this run covers. Only the group commit makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable(Written);

impl Written {
    const fn itself(&self) -> &Self {
        self
    }
}

impl Durable {
    const fn itself(&self) -> &Written {
        &self.0
    }
}

macro_rules! accessors {
    ($($name:ident),+) => {
        $(impl $name {
            /// The record's name.
            pub const fn key(&self) -> RecordKey {
                self.itself().key
            }

            /// The record's kind.
            pub const fn kind(&self) -> RecordKind {
                self.itself().kind
            }

            /// Length of its body in bytes.
            pub const fn bytes(&self) -> u32 {
                self.itself().bytes
            }

            /// Whether a verified copy was already there, so that nothing was written.
            pub const fn deduplicated(&self) -> bool {
                self.itself().deduplicated
            }

            /// The directory that holds it.
            pub const fn directory(&self) -> DirectoryId {
                self.itself().directory
            }
        })+
    };
}

accessors!(Written, Durable);

/// What a waiter wants to hear.
#[derive(Debug)]
pub enum Waiter {
    /// The tokens, as durable ones, each with its slot in the caller's list.
    Commit(Vec<(usize, Written)>, oneshot::Sender<Result<Vec<(usize, Durable)>, CommitError>>),
    /// The same, for tokens that were written earlier.
    Sync(Vec<(usize, Written)>, oneshot::Sender<Result<Vec<(usize, Durable)>, SyncFailed>>),
    /// Only that it is done.
    Done(oneshot::Sender<Result<(), SyncFailed>>),
}

impl Waiter {
    fn served(self) {
        // Whoever dropped the future no longer cares.
        let certify = |tokens: Vec<(usize, Written)>| tokens.into_iter().map(|(slot, token)| (slot, Durable(token))).collect();
        match self {
            Self::Commit(tokens, reply) => drop(reply.send(Ok(certify(tokens)))),
            Self::Sync(tokens, reply) => drop(reply.send(Ok(certify(tokens)))),
            Self::Done(reply) => drop(reply.send(Ok(()))),
        }
    }

    /// Tells the waiter that it will never be durable.
    pub fn failed(self, error: SyncFailed) {
        match self {
            Self::Commit(_, reply) => drop(reply.send(Err(error.into()))),
            Self::Sync(_, reply) => drop(reply.send(Err(error))),
            Self::Done(reply) => drop(reply.send(Err(error))),
        }
    }
}

#[derive(Debug, Clone)]
struct Unsynced {
    segment: u64,
    file: Arc<dyn DiskFile>,
    fresh: bool,
}

#[derive(Debug, Default)]
struct State {
    written: Position,
    durable: Position,
    /// Files with bytes that may not be durable, oldest first; the last one is the active segment.
    files: Vec<Unsynced>,
    waiters: Vec<(Position, Waiter)>,
    failed: Option<String>,
    hurry: bool,
    stop: bool,
}

/// One round of the sync thread.
struct Sync {
    target: Position,
    files: Vec<Unsynced>,
    /// Whether somebody waits for it.
    asked: bool,
}

/// Why a sync does not count.
enum SyncTrouble {
    /// The disk refused.
    Failed(String),
    /// What was synced is not what its path names.
    Gone(String),
}

/// The group commit of one directory.
#[derive(Debug)]
pub struct Commit {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    segments: PathBuf,
    state: Mutex<State>,
    wake: Condvar,
    progress: Condvar,
    requests: AtomicU64,
    shared: AtomicU64,
    unasked: AtomicU64,
}

enum Next {
    Sync(Sync),
    Stop,
}

impl Commit {
    /// For a directory whose log was synced up to `durable`.
    pub fn new(disk: Arc<dyn Disk>, directory: PathBuf, segments: PathBuf, durable: Position) -> Self {
        let state = State { written: durable, durable, ..State::default() };
        Self {
            disk,
            directory,
            segments,
            state: Mutex::new(state),
            wake: Condvar::new(),
            progress: Condvar::new(),
            requests: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            unasked: AtomicU64::new(0),
        }
    }

    /// The writer goes on in this file. `fresh`: its directory entry is not durable yet.
    pub fn begin(&self, segment: u64, file: Arc<dyn DiskFile>, fresh: bool, at: Position) {
        let mut state = self.state.lock();
        state.files.push(Unsynced { segment, file, fresh });
        state.written = state.written.max(at);
    }

    /// The writer has written up to here.
    pub fn wrote(&self, position: Position) {
        let mut state = self.state.lock();
        state.written = state.written.max(position);
    }

    /// Waits until at most one sealed segment is not durable, so that a crash leaves few files in doubt.
    ///
    /// # Errors
    /// If a sync failed.
    pub fn wait_for_sealed(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        while state.files.len() > 1 && state.failed.is_none() && !state.stop {
            state.hurry = true;
            self.wake.notify_one();
            self.progress.wait(&mut state);
        }
        state.failed.clone().map_or(Ok(()), Err)
    }

    /// Tells `waiter` once the log is durable up to `position`.
    pub fn wait(&self, position: Position, waiter: Waiter) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        if let Some(why) = &state.failed {
            waiter.failed(SyncFailed::Directory(why.clone()));
        } else if position <= state.durable {
            drop(state);
            waiter.served();
        } else if state.stop {
            waiter.failed(SyncFailed::Closed);
        } else {
            state.waiters.push((position, waiter));
            self.wake.notify_one();
        }
    }

    /// Somebody waits for the index, which waits for durability.
    pub fn hurry(&self) {
        let mut state = self.state.lock();
        if state.written > state.durable {
            state.hurry = true;
            self.wake.notify_one();
        }
    }

    /// Up to where the log is written.
    pub fn written(&self) -> Position {
        self.state.lock().written
    }

    /// Up to where the log is durable.
    pub fn durable(&self) -> Position {
        self.state.lock().durable
    }

    /// Why the directory is read-only, if it is.
    pub fn failed(&self) -> Option<String> {
        self.state.lock().failed.clone()
    }

    /// Who asked for syncs in this run, and what that took.
    pub fn counts(&self) -> SyncCounts {
        let [requests, shared, unasked] = [&self.requests, &self.shared, &self.unasked].map(|count| count.load(Ordering::Relaxed));
        SyncCounts { requests, shared, unasked }
    }

    /// The sync thread: until [`Commit::stop`]. `synced` is called after each success.
    pub fn run(&self, synced: impl Fn()) {
        while let Next::Sync(sync) = self.next() {
            match self.sync(&sync) {
                Ok(()) => self.succeeded(sync.target),
                Err(SyncTrouble::Failed(why)) => self.poison(&why),
                Err(SyncTrouble::Gone(why)) => self.fail(&why),
            }
            synced();
        }
    }

    fn next(&self) -> Next {
        let mut state = self.state.lock();
        loop {
            let dirty = state.written > state.durable && state.failed.is_none();
            if dirty && (state.hurry || state.stop || !state.waiters.is_empty()) {
                state.hurry = false;
                return Next::Sync(Sync { target: state.written, files: state.files.clone(), asked: !state.waiters.is_empty() });
            }
            if state.stop {
                return Next::Stop;
            }
            if self.wake.wait_for(&mut state, limits::LAZY_SYNC_EVERY).timed_out() && state.failed.is_none() {
                state.hurry = true; // only matters if something is dirty
            }
        }
    }

    fn sync(&self, sync: &Sync) -> Result<(), SyncTrouble> {
        let failed = |what: String| move |error| SyncTrouble::Failed(format!("sync {what}: {error}"));
        for unsynced in &sync.files {
            if sync.asked { &self.shared } else { &self.unasked }.fetch_add(1, Ordering::Relaxed);
            unsynced.file.sync().map_err(failed(format!("segment {:016x}", unsynced.segment)))?;
            if unsynced.fresh {
                self.disk.sync_directory(&self.segments).map_err(failed(format!("directory {}", self.segments.display())))?;
            }
            self.look(unsynced)?;
        }
        Ok(())
    }

    /// Whether what was synced is what the next start will find.
    fn look(&self, synced: &Unsynced) -> Result<(), SyncTrouble> {
        let name = format::segment_name(synced.segment);
        match (self.disk.stat(&self.segments.join(&name)), synced.file.stat()) {
            (Ok(named), Ok(synced)) if named.id == synced.id => Ok(()),
            (Ok(_), Ok(_)) => Err(SyncTrouble::Gone(format!("another file is in the place of segment {name}"))),
            (Err(error), _) if disk::is_gone(&error) => Err(SyncTrouble::Gone(format!("segment {name} is gone: {error}"))),
            (Err(error), _) | (_, Err(error)) => Err(SyncTrouble::Failed(format!("look at segment {name}: {error}"))),
        }
    }

    fn succeeded(&self, target: Position) {
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return; // poisoned meanwhile by the writer: nothing counts any more
        }
        state.durable = state.durable.max(target);
        state.files.retain(|unsynced| unsynced.segment >= target.segment);
        for unsynced in state.files.iter_mut().filter(|unsynced| unsynced.segment <= target.segment) {
            unsynced.fresh = false;
        }
        let (served, waiting) = std::mem::take(&mut state.waiters).into_iter().partition(|(position, _)| *position <= target);
        state.waiters = waiting;
        drop(state);
        self.progress.notify_all();
        let served: Vec<(Position, Waiter)> = served;
        served.into_iter().for_each(|(_, waiter)| waiter.served());
    }

    /// The directory takes no more writes, and what was not durable never will be. A marker says so to the next start, for
    /// the page cache may show it more than the disk has.
    pub fn poison(&self, why: &str) {
        let Some((durable, waiters)) = self.give_up(why) else { return };
        let poison = Poison { segment: durable.segment, offset: durable.offset, why: why.to_owned() };
        if let Err(error) = poison.write(&*self.disk, &self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "could not leave a marker of the failed sync");
        }
        self.tell(waiters, why);
    }

    /// The same where the files themselves went: without a marker, for whatever is at that path now may not be ours to write
    /// to, and the next start sees what is missing.
    pub fn fail(&self, why: &str) {
        if let Some((_, waiters)) = self.give_up(why) {
            self.tell(waiters, why);
        }
    }

    fn give_up(&self, why: &str) -> Option<(Position, Vec<(Position, Waiter)>)> {
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return None;
        }
        state.failed = Some(why.to_owned());
        tracing::error!(directory = %self.directory.display(), why, "directory is read-only: move its data to another disk");
        Some((state.durable, std::mem::take(&mut state.waiters)))
    }

    fn tell(&self, waiters: Vec<(Position, Waiter)>, why: &str) {
        self.progress.notify_all();
        waiters.into_iter().for_each(|(_, waiter)| waiter.failed(SyncFailed::Directory(why.to_owned())));
    }

    /// Syncs what is written, then ends the thread.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_all();
        self.progress.notify_all();
    }

    /// After the thread has ended: whoever still waits hears that.
    pub fn drain(&self) {
        let waiters = std::mem::take(&mut self.state.lock().waiters);
        waiters.into_iter().for_each(|(_, waiter)| waiter.failed(SyncFailed::Closed));
    }
}
