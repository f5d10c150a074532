//! The index with the overlay over it: what readers see.
use crate::index::{Index, IndexError, Op, overlay::Overlay};
use parking_lot::RwLock;
use std::sync::Arc;

/// Overlay entries merged at a time.
const PAGE: usize = 1024;

/// Index and overlay of one directory.
#[derive(Debug)]
pub struct Kv {
    /// What is not in the index yet.
    pub overlay: RwLock<Overlay>,
    index: RwLock<Arc<dyn Index>>,
}

impl Kv {
    /// Over this index.
    pub fn new(index: Arc<dyn Index>) -> Self {
        Self { overlay: RwLock::default(), index: RwLock::new(index) }
    }

    /// The index itself.
    pub fn index(&self) -> Arc<dyn Index> {
        Arc::clone(&self.index.read())
    }

    /// Another index takes its place.
    pub fn replace(&self, index: Arc<dyn Index>) {
        *self.index.write() = index;
    }

    /// What the overlay says: nothing, deleted, or a value.
    pub fn over(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        self.overlay.read().get(key).map(|value| value.map(<[u8]>::to_vec))
    }

    /// One value.
    ///
    /// # Errors
    /// If the index is unusable.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        // Overlay first: an entry that moves to the index in between is found there.
        match self.over(key) {
            Some(value) => Ok(value),
            None => self.index().get(key),
        }
    }

    /// Rows with `from <= key < to`, ascending, until the visitor says `false`.
    ///
    /// # Errors
    /// If the index is unusable.
    pub fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), IndexError> {
        let index = self.index();
        let mut from = from.to_vec();
        loop {
            let over = self.overlay.read().range(&from, to, PAGE);
            let next = over.get(PAGE - 1).map(|(last, _)| [last.as_slice(), &[0]].concat());
            if !merge(&*index, over, &from, next.as_deref().unwrap_or(to), visit)? {
                return Ok(());
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }
}

/// Merges overlay rows with those of the index; whether the visitor wants more.
fn merge(
    index: &dyn Index,
    over: Vec<Op>,
    from: &[u8],
    to: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<bool, IndexError> {
    let mut over = over.into_iter().peekable();
    let mut more = true;
    index.scan(from, to, &mut |key, value| {
        while more && let Some((above, change)) = over.next_if(|(above, _)| above.as_slice() < key) {
            more = change.is_none_or(|change| visit(&above, &change));
        }
        if !more {
            return false;
        }
        more = match over.next_if(|(above, _)| above.as_slice() == key) {
            Some((_, change)) => change.is_none_or(|change| visit(key, &change)),
            None => visit(key, value),
        };
        more
    })?;
    while more && let Some((above, change)) = over.next() {
        more = change.is_none_or(|change| visit(&above, &change));
    }
    Ok(more)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::index::mem::MemIndex;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn overlay_and_index_read_as_one(
            below in proptest::collection::btree_map(0_u16..3000, any::<u8>(), 0..300),
            above in proptest::collection::btree_map(0_u16..3000, any::<Option<u8>>(), 0..2500),
            from in 0_u16..3000, limit in 1_usize..3000,
        ) {
            let index = MemIndex::default();
            let ops: Vec<Op> = below.iter().map(|(k, v)| (k.to_be_bytes().to_vec(), Some(vec![*v]))).collect();
            index.apply(&ops).unwrap();
            let kv = Kv::new(Arc::new(index));
            let mut oracle: BTreeMap<u16, u8> = below;
            for (k, v) in above {
                kv.overlay.write().put((k.to_be_bytes().to_vec(), v.map(|v| vec![v])), 1);
                match v { Some(v) => { oracle.insert(k, v); } None => { oracle.remove(&k); } }
            }
            let mut seen = Vec::new();
            kv.scan(&from.to_be_bytes(), &[255, 255], &mut |k, v| {
                seen.push((u16::from_be_bytes(k.try_into().unwrap()), v[0]));
                seen.len() < limit
            }).unwrap();
            let expected: Vec<(u16, u8)> = oracle.range(from..).map(|(k, v)| (*k, *v)).take(limit).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
