//! sled as the index: the only module that knows of it.
//!
//! sled 0.34 is beta: it has been seen to panic on open after an abrupt stop, to deadlock in `flush_async`, and to grow with
//! many trees. So: one tree; written by one thread; `flush` blocking and by that thread; opened inside `catch_unwind` with a
//! deadline; every call inside `catch_unwind`, a panic being an unusable index and no more than that. What is unusable is
//! renamed to `index.bad-N` (the newest is kept, for those who want to look) and made anew.
use super::{Index, IndexError, IndexFactory, Op, Visit};
use crate::{disk::make_private_directory, limits};
use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

const DIRECTORY: &str = "index";
const BAD: &str = "index.bad-";
/// Databases within `index/`: a rebuild of a running store makes the next one while readers still hold the last.
const DATABASE: &str = "db-";

/// Opens sled databases.
#[derive(Debug, Clone, Copy)]
pub struct SledFactory {
    /// Cache per database, in bytes.
    pub cache_bytes: u64,
}

#[derive(Debug)]
struct SledIndex {
    db: sled::Db,
}

fn failed(error: impl std::fmt::Display) -> IndexError {
    IndexError(error.to_string())
}

fn guarded<T>(what: &str, call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(IndexError(format!("sled panicked in {what}"))),
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        guarded("get", || Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), IndexError> {
        if from >= to {
            return Ok(());
        }
        guarded("scan", || {
            for row in self.db.range(from..to) {
                let (key, value) = row?;
                if !visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn apply(&self, ops: &[Op]) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        for (key, value) in ops {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        guarded("apply", || self.db.apply_batch(batch))
    }

    fn flush(&self) -> Result<(), IndexError> {
        guarded("flush", || self.db.flush().map(|_| ()))
    }

    fn bytes_on_disk(&self) -> u64 {
        guarded("size", || self.db.size_on_disk()).unwrap_or(0)
    }
}

impl SledFactory {
    fn open_database(self, path: PathBuf) -> Result<Arc<dyn Index>, IndexError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let cache = self.cache_bytes.max(CACHE_BYTES_MIN);
        let work = move || {
            let opened = guarded("open", || {
                sled::Config::new()
                    .path(path)
                    .cache_capacity(cache)
                    .flush_every_ms(None)
                    .mode(sled::Mode::HighThroughput)
                    .use_compression(false)
                    .open()
            });
            let _ = sender.send(opened); // nobody listens if it took too long: then it is dropped here
        };
        thread::Builder::new().name("afar-index-open".into()).spawn(work).map_err(failed)?;
        match receiver.recv_timeout(limits::INDEX_OPEN_MAX) {
            Ok(opened) => Ok(Arc::new(SledIndex { db: opened? })),
            Err(_) => Err(IndexError(format!("sled did not open within {} s", limits::INDEX_OPEN_MAX.as_secs()))),
        }
    }
}

/// sled does not work with less.
const CACHE_BYTES_MIN: u64 = 1 << 20;

impl IndexFactory for SledFactory {
    fn open(&self, directory: &Path) -> Result<Arc<dyn Index>, IndexError> {
        let root = directory.join(DIRECTORY);
        make_private_directory(&root).map_err(failed)?;
        let databases = databases(&root).map_err(failed)?;
        let newest = databases.last().copied().unwrap_or(1);
        for old in databases.iter().filter(|&&old| old != newest) {
            let _ = fs::remove_dir_all(root.join(format!("{DATABASE}{old}")));
        }
        self.open_database(root.join(format!("{DATABASE}{newest}")))
    }

    fn replace(&self, directory: &Path) -> Result<Arc<dyn Index>, IndexError> {
        let root = directory.join(DIRECTORY);
        let next = databases(&root).unwrap_or_default().last().map_or(1, |newest| newest + 1);
        set_aside(directory, &root).map_err(failed)?;
        make_private_directory(&root).map_err(failed)?;
        self.open_database(root.join(format!("{DATABASE}{next}")))
    }
}

fn databases(root: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(DATABASE)).and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Renames `index` to `index.bad-N`, and removes the one before it: they are large, and one is enough to look at.
fn set_aside(directory: &Path, root: &Path) -> io::Result<()> {
    let mut last = 0;
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix(BAD)).and_then(|number| number.parse::<u64>().ok()) {
            last = last.max(number);
            fs::remove_dir_all(directory.join(&name))?;
        }
    }
    match fs::rename(root, directory.join(format!("{BAD}{}", last + 1))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
