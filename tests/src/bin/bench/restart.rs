//! A node's log with many records, opened with its index and without.
use afar_model::{
    hlc::Stamp,
    id::{BucketId, ObjectId, UploadId},
    record::{Chunker, Content, Data, Record, RecordKey, RecordKind, Version},
    units::UnixMillis,
};
use afar_store::{AppendClass, Opened, Options, Store};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Records committed at once while the log is made.
const BATCH: usize = 4096;
/// Records that are read to see that a node serves.
const SAMPLE: usize = 1000;

fn open(folder: &Path) -> (Store, Opened) {
    let now = Arc::new(|| UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)));
    let mut options = Options::new("bench", vec![folder.join("data")], folder.join("state"), rand::random(), now);
    options.init_dirs = !folder.join("data").exists();
    Store::open(options).expect("open the store")
}

fn record(number: usize) -> Record {
    let content = number.to_le_bytes();
    let data = Content::Object { id: ObjectId::of(&content), size: content.len() as u64, data: Data::Inline, chunker: Chunker::Fixed1MiB };
    let version = Version {
        bucket: BucketId::from_bytes([1; 32]),
        key: format!("some/folder/with/a/name/{number:012}"),
        stamp: Stamp::from_u64(number as u64),
        upload: UploadId::from_bytes((number as u128).to_le_bytes()),
        content: data,
        metadata: BTreeMap::new(),
    };
    Record::new(RecordKind::Version, version.bucket, version.encode(&content))
}

/// Makes a log of so many small versions, and opens it twice.
pub fn measure(base: &Path, records: usize) -> Vec<(String, String)> {
    let folder = tempfile::Builder::new().prefix("afar-bench-").tempdir_in(base).expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut lines = Vec::new();
    let mut line = |name: String, took: Duration| {
        eprintln!("  {name}: {:.2} s", took.as_secs_f64());
        lines.push((name, format!("{:.2} s", took.as_secs_f64())));
    };

    let start = Instant::now();
    let (store, _) = open(folder.path());
    let mut sample: Vec<RecordKey> = Vec::new();
    for from in (0..records).step_by(BATCH) {
        let batch: Vec<Record> = (from..records.min(from + BATCH)).map(record).collect();
        sample.extend(batch.iter().step_by((records / SAMPLE).clamp(1, BATCH)).map(Record::key));
        runtime.block_on(store.commit(AppendClass::Client, batch)).expect("commit");
    }
    line(format!("{records} versions committed, {BATCH} at a time"), start.elapsed());
    store.close();
    line("… and closed".into(), start.elapsed());

    let start = Instant::now();
    let (store, opened) = open(folder.path());
    line(format!("open with the index ({} records)", opened.records), start.elapsed());
    read(&store, &sample);
    line(format!("… and {} records read", sample.len()), start.elapsed());
    wait_views(&store);
    line("… and listings answer".into(), start.elapsed());
    store.close();

    fs::remove_dir_all(folder.path().join("data/index")).expect("an index");
    let start = Instant::now();
    let (store, _) = open(folder.path());
    line("open without the index".into(), start.elapsed());
    read(&store, &sample);
    line(format!("… and {} records read", sample.len()), start.elapsed());
    wait_views(&store);
    line("… and listings answer".into(), start.elapsed());
    read(&store, &sample);
    store.close();
    lines
}

fn read(store: &Store, sample: &[RecordKey]) {
    for key in sample {
        assert!(store.get(key).expect("read").is_some(), "{key:?} is not found");
    }
}

fn wait_views(store: &Store) {
    let start = Instant::now();
    while !store.views_ready() {
        assert!(start.elapsed() < Duration::from_secs(600), "the views are not rebuilt");
        std::thread::sleep(Duration::from_millis(10));
    }
}
