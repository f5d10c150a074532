//! Tests of the whole store; each module's own are beside its code.
mod crash;
mod real;
mod rules;
mod views;

use crate::{AppendClass, Durable, Opened, Options, Store, index::mem::MemIndexes, sim::SimDisk};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, ObjectId, UploadId},
    record::{Chunker, Content, Data, Record, RecordKind, Version},
    units::UnixMillis,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A machine with a simulated disk, memory indexes and a clock.
pub struct Machine {
    pub disk: SimDisk,
    pub indexes: Arc<MemIndexes>,
    pub clock: Arc<AtomicU64>,
    pub boots: AtomicU64,
    pub options: Options,
}

impl Machine {
    pub fn new(directories: usize) -> Self {
        let clock = Arc::new(AtomicU64::new(1_700_000_000_000));
        let now = {
            let clock = Arc::clone(&clock);
            Arc::new(move || UnixMillis(clock.load(Ordering::Relaxed)))
        };
        let paths = (0..directories).map(|n| PathBuf::from(format!("/disk{n}"))).collect();
        let mut options = Options::new("node1", paths, "/state", [7; 32], now);
        options.segment_bytes = 16 << 10;
        options.init_dirs = true;
        Self { disk: SimDisk::new(256 << 20), indexes: Arc::default(), clock, boots: AtomicU64::new(0), options }
    }

    pub fn try_open(&self) -> Result<(Store, Opened), crate::OpenError> {
        let mut options = self.options.clone();
        options.seed[0] = self.boots.fetch_add(1, Ordering::Relaxed) as u8;
        Store::open_on(self.disk.boot(), Arc::clone(&self.indexes) as _, options)
    }

    pub fn open(&self) -> Store {
        let (store, _) = self.try_open().unwrap();
        assert!(store.wait_for_views(Duration::from_secs(20)), "views did not become ready");
        store
    }

    /// The power goes, with this seed.
    pub fn crash(&self, store: Store, seed: u64) {
        self.disk.crash(seed);
        drop(store);
        self.indexes.crash();
    }
}

/// Runs a future that needs no runtime.
pub fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub fn bucket() -> BucketId {
    BucketId::from_bytes([9; 32])
}

pub fn chunk(n: u64, bytes: usize) -> Record {
    let mut body = vec![0; bytes.max(8)];
    body[..8].copy_from_slice(&n.to_le_bytes());
    for (at, byte) in body.iter_mut().enumerate().skip(8) {
        *byte = (n as usize).wrapping_mul(31).wrapping_add(at * 7) as u8;
    }
    Record::new(RecordKind::Chunk, bucket(), body.into())
}

pub fn version_of(key: &str, stamp: u64) -> Version {
    let content = Content::Object { id: ObjectId::of(b"inline"), size: 6, data: Data::Inline, chunker: Chunker::Fixed1MiB };
    Version { bucket: bucket(), key: key.into(), stamp: Stamp::from_u64(stamp), upload: UploadId::ZERO, content, metadata: BTreeMap::new() }
}

pub fn version(key: &str, stamp: u64) -> Record {
    Record::new(RecordKind::Version, bucket(), version_of(key, stamp).encode(b"inline"))
}

pub fn commit(store: &Store, records: Vec<Record>) -> Vec<Durable> {
    wait(store.commit(AppendClass::Client, records)).unwrap()
}

/// The record is here and its bytes are right.
pub fn assert_here(store: &Store, record: &Record) {
    let found = store.get(&record.key()).unwrap().unwrap_or_else(|| panic!("{:?} is gone", record.key()));
    assert_eq!(&found.record, record);
}

pub fn assert_gone(store: &Store, record: &Record) {
    assert_eq!(store.get(&record.key()).unwrap(), None, "{:?} is back", record.key());
}

/// Fills segments until `sealed` of them are sealed; returns what was written.
pub fn fill(store: &Store, from: u64, sealed: u64) -> Vec<Record> {
    let mut records = Vec::new();
    let start = store.positions()[0].1.segment.max(1);
    let mut n = from;
    while store.positions()[0].1.segment < start + sealed {
        let record = chunk(n, 1500);
        commit(store, vec![record.clone()]);
        records.push(record);
        n += 1;
    }
    records
}
