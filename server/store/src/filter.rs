//! Which records are certainly *not* here, answered from memory.
//!
//! Most appended records are new, and for each the index would be asked in vain: a walk down a tree that may well end in a
//! read of the disk. This is a blocked Bloom filter over the names of all records in the segments: some 10 bits each, one
//! cache line per question, wrong (in the harmless direction) for one or two in a hundred. Removed records stay in it.
//!
//! It must never say "not here" of a record that is: so it says nothing at all until every footer has been read into it.
use crate::limits;
use afar_model::record::RecordKey;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Words of 64 bits in a block: one cache line.
const BLOCK: usize = 8;
/// Bits set per record.
const BITS: u32 = 6;

#[derive(Debug)]
struct Layer {
    words: Vec<AtomicU64>,
    records: AtomicU64,
    capacity: u64,
}

/// A filter that grows by layers, each twice as large as the one before.
#[derive(Debug)]
pub struct Filter {
    layers: RwLock<Vec<Layer>>,
    complete: AtomicBool,
}

/// Where a record's bits are, before it is known how many blocks there are. Ids are digests: their bytes are the hash.
fn hash(key: &RecordKey) -> (u64, u64) {
    let word = |bytes: &[u8; 32], at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u64::from_le_bytes);
    let (id, bucket) = (key.id.as_bytes(), key.bucket.as_bytes());
    (word(id, 8) ^ word(bucket, 0), word(id, 16) ^ word(bucket, 8))
}

impl Layer {
    fn new(capacity: u64) -> Self {
        let blocks = (capacity * limits::FILTER_BITS_PER_RECORD).div_ceil(64 * BLOCK as u64).max(1);
        let words = (0..blocks as usize * BLOCK).map(|_| AtomicU64::new(0)).collect();
        Self { words, records: AtomicU64::new(0), capacity }
    }

    /// The words and masks of a record.
    fn bits(&self, (place, mut pattern): (u64, u64)) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let blocks = (self.words.len() / BLOCK) as u64;
        let block = (place % blocks) as usize * BLOCK;
        (0..BITS).filter_map(move |_| {
            let (word, bit) = ((pattern & 7) as usize, (pattern >> 3) & 63);
            pattern >>= 9;
            Some((self.words.get(block + word)?, 1 << bit))
        })
    }

    fn contains(&self, hash: (u64, u64)) -> bool {
        self.bits(hash).all(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }
}

impl Filter {
    /// Room for this many records from the beginning.
    pub fn with_capacity(records: u64) -> Self {
        let layers = RwLock::new(vec![Layer::new(records.max(limits::FILTER_RECORDS_MIN))]);
        Self { layers, complete: AtomicBool::new(false) }
    }

    /// Takes note of a record.
    pub fn insert(&self, key: &RecordKey) {
        let hash = hash(key);
        let layers = self.layers.read();
        if layers.iter().any(|layer| layer.contains(hash)) {
            return;
        }
        let full = match layers.last() {
            Some(layer) => {
                layer.bits(hash).for_each(|(word, mask)| {
                    word.fetch_or(mask, Ordering::Release);
                });
                (layer.records.fetch_add(1, Ordering::Relaxed) + 1 == layer.capacity).then_some(layer.capacity)
            }
            None => None,
        };
        drop(layers);
        if let Some(capacity) = full {
            self.layers.write().push(Layer::new(capacity * 2));
        }
    }

    /// Everything that is in the segments has been noted.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Whether a record is certainly not here. `false` means nothing.
    pub fn lacks(&self, key: &RecordKey) -> bool {
        let hash = hash(key);
        self.complete.load(Ordering::Acquire) && !self.layers.read().iter().any(|layer| layer.contains(hash))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use afar_model::id::{BucketId, RecordId};

    fn key(n: u32) -> RecordKey {
        RecordKey { bucket: BucketId::from_bytes([(n % 5) as u8; 32]), id: RecordId::of(&n.to_le_bytes()) }
    }

    #[test]
    fn it_never_denies_what_is_there_and_seldom_admits_what_is_not() {
        let filter = Filter::with_capacity(0);
        assert!(!filter.lacks(&key(1)), "it says nothing before it is complete");
        let many = limits::FILTER_RECORDS_MIN as u32 * 3;
        (0..many).for_each(|n| filter.insert(&key(n)));
        filter.complete();
        assert!((0..many).all(|n| !filter.lacks(&key(n))));
        let wrong = (many..many + 20_000).filter(|n| !filter.lacks(&key(*n))).count();
        assert!(wrong < 1200, "{wrong} of 20,000");
    }
}
