//! An index in memory: for tests and simulation, and small enough to be obviously right.
//!
//! It distinguishes what was flushed from what was not, and can lose the latter, as sled does at a crash.
use super::{Index, IndexError, IndexFactory, Op, Visit};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// One index in memory.
#[derive(Debug, Default)]
pub struct MemIndex {
    live: RwLock<Rows>,
    flushed: Mutex<Rows>,
}

impl Index for MemIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.live.read().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), IndexError> {
        let live = self.live.read();
        if from < to {
            let _ = live
                .range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)))
                .all(|(key, value)| visit(key, value));
        }
        Ok(())
    }

    fn apply(&self, ops: &[Op]) -> Result<(), IndexError> {
        let mut live = self.live.write();
        for (key, value) in ops {
            match value {
                Some(value) => live.insert(key.clone(), value.clone()),
                None => live.remove(key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        let live = self.live.read().clone();
        *self.flushed.lock() = live;
        Ok(())
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}

/// The memory indexes of a simulated machine, by directory: they outlive the store, not the machine.
#[derive(Debug, Default)]
pub struct MemIndexes {
    by_directory: Mutex<HashMap<PathBuf, Arc<MemIndex>>>,
}

impl MemIndexes {
    /// The power goes: what was not flushed is gone.
    pub fn crash(&self) {
        for index in self.by_directory.lock().values_mut() {
            let flushed = index.flushed.lock().clone();
            *index = Arc::new(MemIndex { live: RwLock::new(flushed.clone()), flushed: Mutex::new(flushed) });
        }
    }

    /// What is flushed now, to be put back later: an index that is older than it should be.
    pub fn snapshot(&self) -> HashMap<PathBuf, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.by_directory.lock().iter().map(|(path, index)| (path.clone(), index.flushed.lock().clone())).collect()
    }

    /// Flushes every index, as sled does now and then by itself.
    pub fn flush_all(&self) {
        for index in self.by_directory.lock().values() {
            let _ = index.flush();
        }
    }

    /// Puts an older image in place.
    pub fn restore(&self, image: HashMap<PathBuf, BTreeMap<Vec<u8>, Vec<u8>>>) {
        let fresh = |rows: Rows| Arc::new(MemIndex { live: RwLock::new(rows.clone()), flushed: Mutex::new(rows) });
        *self.by_directory.lock() = image.into_iter().map(|(path, rows)| (path, fresh(rows))).collect();
    }

    /// Somebody deletes `index/`.
    pub fn forget(&self) {
        self.by_directory.lock().clear();
    }

    /// Changes rows behind the store's back: for tests of what notices.
    pub fn tamper(&self, change: impl Fn(&mut BTreeMap<Vec<u8>, Vec<u8>>)) {
        for index in self.by_directory.lock().values() {
            change(&mut index.live.write());
            change(&mut index.flushed.lock());
        }
    }
}

impl IndexFactory for MemIndexes {
    fn open(&self, directory: &Path) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::clone(self.by_directory.lock().entry(directory.to_path_buf()).or_default()) as Arc<dyn Index>)
    }

    fn replace(&self, directory: &Path) -> Result<Arc<dyn Index>, IndexError> {
        let fresh = Arc::new(MemIndex::default());
        self.by_directory.lock().insert(directory.to_path_buf(), Arc::clone(&fresh));
        Ok(fresh)
    }
}
