//! A disk in memory that can lose the power.
//!
//! It keeps what a process sees and what would survive. Everything between two syncs is in doubt: at a crash each write is
//! kept, dropped, or torn at sectors, in any combination; directory entries are lost unless their directory was synced.
//! After a *failed* sync the doubtful writes are gone for good although reading still shows them, as on Linux, until the
//! page cache is dropped.
//!
//! ```
//! # use afar_store::sim::SimDisk;
//! let machine = SimDisk::new(64 << 20);
//! let disk = machine.boot(); // hand this to `Store::open_on`
//! machine.crash(7); // every handle of before is dead now
//! let disk = machine.boot();
//! ```
use crate::disk::{Disk, DiskFile, FileId, FileStat, Lock, Space};
use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What the system says when a device cannot read.
const EIO: i32 = 5;

/// Disks write these whole or not at all.
const SECTOR: usize = 512;

/// A simulated machine's disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What should go wrong, and when. Counted from the moment that it is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The sync after this many others fails.
    pub sync_fails_after: Option<u64>,
    /// The write after this many others fails with an I/O error.
    pub write_fails_after: Option<u64>,
    /// Writes are cut into pieces of at most this many bytes.
    pub short_writes: Option<usize>,
    /// Every read fails with this number of the system's.
    pub reads_fail: Option<i32>,
    /// Files can be neither made nor replaced: not even a marker can be left.
    pub no_new_files: bool,
    /// After this many further changes (writes, syncs, entries) the process is dead: nothing that it does has an effect.
    pub dies_after: Option<u64>,
}

/// Names and what they stand for from now on; `None`: nothing.
type Entries = Vec<(String, Option<u64>)>;

#[derive(Debug, Default)]
struct State {
    generation: u64,
    capacity: u64,
    files: HashMap<u64, Inode>,
    next_inode: u64,
    /// Directory → name → inode, as seen.
    live: BTreeMap<PathBuf, BTreeMap<String, u64>>,
    /// As it would survive.
    durable: BTreeMap<PathBuf, BTreeMap<String, u64>>,
    /// Changes of entries since their directory was synced; each all or nothing.
    doubtful: Vec<(PathBuf, Entries)>,
    locks: HashSet<PathBuf>,
    faults: Faults,
    syncs: u64,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    /// Bytes that the device cannot read.
    unreadable: Vec<Range<usize>>,
    live: Vec<u8>,
    durable: Vec<u8>,
    doubtful: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>, mut keep: impl FnMut() -> bool) {
        match self {
            Self::Length(length) => {
                if keep() {
                    to.resize(*length as usize, 0);
                }
            }
            Self::Write(offset, bytes) => {
                // Sectors are those of the disk, not of the write.
                let mut at = *offset as usize;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (piece, more) = rest.split_at((SECTOR - at % SECTOR).min(rest.len()));
                    if keep() {
                        if to.len() < at + piece.len() {
                            to.resize(at + piece.len(), 0);
                        }
                        if let Some(place) = to.get_mut(at..at + piece.len()) {
                            place.copy_from_slice(piece);
                        }
                    }
                    at += piece.len();
                    rest = more;
                }
            }
        }
    }
}

impl SimDisk {
    /// An empty disk of this many bytes.
    pub fn new(capacity: u64) -> Self {
        let disk = Self::default();
        disk.state.lock().capacity = capacity;
        disk
    }

    /// A handle that works until the next crash or kill.
    pub fn boot(&self) -> Arc<dyn Disk> {
        Arc::new(SimHandle { state: Arc::clone(&self.state), generation: self.state.lock().generation })
    }

    /// Another machine with the same disk: to try something without consequences for this one.
    pub fn fork(&self) -> Self {
        let state = self.state.lock();
        let copy = State {
            generation: 0,
            capacity: state.capacity,
            files: state.files.clone(),
            next_inode: state.next_inode,
            live: state.live.clone(),
            durable: state.durable.clone(),
            doubtful: state.doubtful.clone(),
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(copy)) }
    }

    /// The power goes. What was not synced is dropped, kept or torn, as the seed says.
    pub fn crash(&self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // All lost and all kept are the extremes worth seeing often.
        let likely = [0.0, 1.0, 0.5, 0.9][rng.random_range(0..4)];
        let mut state = self.state.lock();
        state.generation += 1;
        state.locks.clear();
        state.faults = Faults::default();
        let mut inodes: Vec<u64> = state.files.keys().copied().collect();
        inodes.sort_unstable(); // the order of a hash map would not repeat
        for inode in inodes {
            let Some(file) = state.files.get_mut(&inode) else { continue };
            for change in std::mem::take(&mut file.doubtful) {
                let whole = rng.random_bool(0.5).then(|| rng.random_bool(likely));
                change.apply(&mut file.durable, || whole.unwrap_or_else(|| rng.random_bool(likely)));
            }
            file.live.clone_from(&file.durable);
        }
        for (directory, changes) in std::mem::take(&mut state.doubtful) {
            if rng.random_bool(likely) {
                enter(state.durable.entry(directory).or_default(), &changes);
            }
        }
        state.live = state.durable.clone();
    }

    /// The process is killed; the kernel and its page cache live on.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.locks.clear();
    }

    /// From now on, these go wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Changes the size of the disk.
    pub fn set_capacity(&self, capacity: u64) {
        self.state.lock().capacity = capacity;
    }

    /// Whether the process died of [`Faults::dies_after`].
    pub fn is_dead(&self) -> bool {
        self.state.lock().faults.dies_after == Some(0)
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The files whose path ends like this, with their contents as seen.
    pub fn files(&self, suffix: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.state.lock();
        let all = state.live.iter().flat_map(|(directory, names)| names.iter().map(move |(name, inode)| (directory.join(name), inode)));
        all.filter(|(path, _)| path.to_string_lossy().ends_with(suffix))
            .filter_map(|(path, inode)| Some((path, state.files.get(inode)?.live.clone())))
            .collect()
    }

    /// Replaces a file's content behind everybody's back, durably: bit rot, or somebody with an editor.
    pub fn tamper(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state.lock();
        let inode = state.find(path).unwrap_or_else(|| state.make(path));
        if let Some(file) = state.files.get_mut(&inode) {
            *file = Inode { live: content.clone(), durable: content, ..Inode::default() };
        }
        state.durable = state.live.clone();
        state.doubtful.clear();
    }

    /// The device cannot read these bytes of a file any more.
    pub fn spoil(&self, path: &Path, bytes: Range<usize>) {
        let mut state = self.state.lock();
        if let Some(file) = state.find(path).and_then(|inode| state.files.get_mut(&inode)) {
            file.unreadable.push(bytes);
        }
    }

    /// Removes what is at or under a path, durably: a disk that is not mounted, or `rm`. Whoever has a file open goes on
    /// reading and writing it, as on Linux.
    pub fn wipe(&self, path: &Path) {
        let mut state = self.state.lock();
        for image in [true, false] {
            let directories = if image { &mut state.live } else { &mut state.durable };
            directories.retain(|directory, _| !directory.starts_with(path));
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
                && let Some(names) = directories.get_mut(parent)
            {
                names.remove(name);
            }
        }
        state.doubtful.retain(|(directory, _)| !directory.starts_with(path));
    }
}

fn enter(names: &mut BTreeMap<String, u64>, changes: &[(String, Option<u64>)]) {
    for (name, inode) in changes {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok((parent.to_owned(), name.to_owned()))
}

impl State {
    fn find(&self, path: &Path) -> Option<u64> {
        let (parent, name) = split(path).ok()?;
        self.live.get(&parent)?.get(&name).copied()
    }

    fn make(&mut self, path: &Path) -> u64 {
        self.next_inode += 1;
        self.files.insert(self.next_inode, Inode::default());
        if let Ok((parent, name)) = split(path) {
            self.change(parent, vec![(name, Some(self.next_inode))]);
        }
        self.next_inode
    }

    fn change(&mut self, directory: PathBuf, changes: Vec<(String, Option<u64>)>) {
        enter(self.live.entry(directory.clone()).or_default(), &changes);
        self.doubtful.push((directory, changes));
    }

    fn used(&self) -> u64 {
        let reachable = self.live.values().flat_map(BTreeMap::values);
        reachable.filter_map(|inode| self.files.get(inode)).map(|file| file.live.len() as u64).sum()
    }

    fn due(counter: &mut Option<u64>) -> bool {
        match counter {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

/// A disk as one process sees it.
#[derive(Debug)]
struct SimHandle {
    state: Arc<Mutex<State>>,
    generation: u64,
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    generation: u64,
    inode: u64,
}

#[derive(Debug)]
struct SimLock {
    state: Arc<Mutex<State>>,
    generation: u64,
    path: PathBuf,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.generation == self.generation {
            state.locks.remove(&self.path);
        }
    }
}

/// As [`with`], for what changes something on disk: what a process can die before.
fn change<T>(state: &Mutex<State>, generation: u64, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
    with(state, generation, |state| {
        if State::due(&mut state.faults.dies_after) { Err(io::Error::other("this process is dead")) } else { work(state) }
    })
}

fn with<T>(state: &Mutex<State>, generation: u64, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
    let mut state = state.lock();
    if state.generation == generation { work(&mut state) } else { Err(io::Error::other("this process is dead")) }
}

impl SimFile {
    fn change<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        change(&self.state, self.generation, work)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        with(&self.state, self.generation, work)
    }
}

const fn id(inode: u64) -> FileId {
    FileId { device: 0, inode }
}

fn not_found<T>(found: Option<T>) -> io::Result<T> {
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for SimFile {
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.change(|state| {
            if State::due(&mut state.faults.write_fails_after) {
                return Err(io::Error::other("simulated write error"));
            }
            bytes.truncate(state.faults.short_writes.unwrap_or(usize::MAX).max(1));
            let length = not_found(state.files.get(&self.inode))?.live.len() as u64;
            let room = state.capacity.saturating_sub(state.used()) + length.saturating_sub(offset);
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            bytes.truncate(room as usize);
            let written = bytes.len();
            let file = not_found(state.files.get_mut(&self.inode))?;
            let change = Change::Write(offset, bytes);
            change.apply(&mut file.live, || true);
            file.doubtful.push(change);
            Ok(written)
        })
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let file = not_found(state.files.get(&self.inode))?;
            let bytes = file.live.get(offset as usize..).unwrap_or_default();
            let read = bytes.len().min(into.len());
            let touched = offset as usize..offset as usize + read;
            let unreadable = file.unreadable.iter().any(|bad| bad.start < touched.end && touched.start < bad.end);
            if let Some(number) = state.faults.reads_fail.or(unreadable.then_some(EIO)) {
                return Err(io::Error::from_raw_os_error(number));
            }
            if let (Some(to), Some(from)) = (into.get_mut(..read), bytes.get(..read)) {
                to.copy_from_slice(from);
            }
            Ok(read)
        })
    }

    fn read_cached_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(into, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|state| {
            state.syncs += 1;
            let fails = State::due(&mut state.faults.sync_fails_after);
            let file = not_found(state.files.get_mut(&self.inode))?;
            let doubtful = std::mem::take(&mut file.doubtful);
            if fails {
                // The kernel calls the pages clean now: reading shows them, the disk never will.
                return Err(io::Error::other("simulated sync error"));
            }
            doubtful.iter().for_each(|change| change.apply(&mut file.durable, || true));
            Ok(())
        })
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.change(|state| {
            let file = not_found(state.files.get_mut(&self.inode))?;
            file.live.resize(length as usize, 0);
            file.doubtful.push(Change::Length(length));
            Ok(())
        })
    }

    fn stat(&self) -> io::Result<FileStat> {
        self.with(|state| Ok(FileStat { id: id(self.inode), length: not_found(state.files.get(&self.inode))?.live.len() as u64 }))
    }

    fn allocate(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn forget(&self, _offset: u64, _length: u64) {
        let _ = self.with(|state| {
            let file = not_found(state.files.get_mut(&self.inode))?;
            let mut live = file.durable.clone();
            file.doubtful.iter().for_each(|change| change.apply(&mut live, || true));
            file.live = live;
            Ok(())
        });
    }

    fn can_forget(&self) -> bool {
        true
    }
}

impl SimHandle {
    fn change<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        change(&self.state, self.generation, work)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        with(&self.state, self.generation, work)
    }

    fn file(&self, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { state: Arc::clone(&self.state), generation: self.generation, inode })
    }
}

impl Disk for SimHandle {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.change(|state| {
            let (parent, _) = split(path)?;
            not_found(state.live.get(&parent))?;
            match state.find(path) {
                Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
                None if state.faults.no_new_files => Err(io::Error::other("simulated: no new files")),
                None => Ok(state.make(path)),
            }
        })?;
        Ok(self.file(inode))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.with(|state| not_found(state.find(path))).map(|inode| self.file(inode))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.with(|state| {
            let names = not_found(state.live.get(directory))?.keys().cloned();
            let below = state.live.keys().filter(|path| path.parent() == Some(directory));
            Ok(names.chain(below.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))).collect())
        })
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        // Durable at once: what is tested here is the log, not mkdir.
        self.with(|state| {
            for directory in path.ancestors() {
                state.live.entry(directory.to_owned()).or_default();
                state.durable.entry(directory.to_owned()).or_default();
            }
            Ok(())
        })
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.change(|state| {
            if State::due(&mut state.faults.sync_fails_after) {
                return Err(io::Error::other("simulated sync error"));
            }
            let (here, elsewhere): (Vec<_>, Vec<_>) =
                std::mem::take(&mut state.doubtful).into_iter().partition(|(directory, _)| directory == path);
            state.doubtful = elsewhere;
            for (directory, changes) in here {
                enter(state.durable.entry(directory).or_default(), &changes);
            }
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| {
            let inode = not_found(state.find(from))?;
            let ((directory, old), (other, new)) = (split(from)?, split(to)?);
            if directory != other {
                return Err(io::ErrorKind::Unsupported.into());
            }
            state.change(directory, vec![(old, None), (new, Some(inode))]);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state| {
            not_found(state.find(path))?;
            let (directory, name) = split(path)?;
            state.change(directory, vec![(name, None)]);
            Ok(())
        })
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        self.with(|state| {
            let inode = not_found(state.find(path))?;
            Ok(FileStat { id: id(inode), length: not_found(state.files.get(&inode))?.live.len() as u64 })
        })
    }

    fn space(&self, _directory: &Path) -> io::Result<Space> {
        self.with(|state| Ok(Space { capacity: state.capacity, free: state.capacity.saturating_sub(state.used()) }))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.with(|state| {
            let (parent, _) = split(path)?;
            not_found(state.live.get(&parent))?;
            if state.locks.insert(path.to_owned()) { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        })?;
        Ok(Box::new(SimLock { state: Arc::clone(&self.state), generation: self.generation, path: path.to_owned() }))
    }
}
