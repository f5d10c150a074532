//! What is in the log but not yet in the index: makes a record visible as soon as it is written.
//!
//! Each entry remembers which delta made it; once that delta is in the index the entry goes. A reader looks here first and
//! in the index second: an entry that moves in between is found in the index.
use super::Op;
use std::collections::BTreeMap;

/// The number of a delta, in the order of the log.
pub type DeltaNumber = u64;

/// An entry that no delta has made yet: it stays until one does.
pub const NOT_LOGGED: DeltaNumber = u64::MAX;

#[derive(Debug)]
struct Entry {
    value: Option<Vec<u8>>,
    delta: DeltaNumber,
}

/// Changes over the index; `None` as a value means deleted.
#[derive(Debug, Default)]
pub struct Overlay {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Overlay {
    /// What the overlay says about a key: nothing, deleted, or its value.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.entries.get(key).map(|entry| entry.value.as_deref())
    }

    /// Lays a change over the index.
    pub fn put(&mut self, (key, value): Op, delta: DeltaNumber) {
        self.entries.insert(key, Entry { value, delta });
    }

    /// The deltas up to this one are in the index: forgets what they made, among these keys.
    pub fn applied<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]>, up_to: DeltaNumber) {
        for key in keys {
            if self.entries.get(key).is_some_and(|entry| entry.delta <= up_to) {
                self.entries.remove(key);
            }
        }
    }

    /// Changes with `from <= key < to`, ascending, at most `limit`.
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Vec<Op> {
        if from >= to {
            return Vec::new();
        }
        let range = (std::ops::Bound::Included(from), std::ops::Bound::Excluded(to));
        self.entries.range::<[u8], _>(range).take(limit).map(|(key, entry)| (key.clone(), entry.value.clone())).collect()
    }

    /// Forgets all of them: what made them will never be in the log.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Forgets what no delta has made yet.
    pub fn forget_unlogged(&mut self) {
        self.entries.retain(|_, entry| entry.delta != NOT_LOGGED);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
