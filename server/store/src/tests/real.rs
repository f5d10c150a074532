//! The same on real files with sled, where the simulated disk cannot stand in: a damaged index, an abrupt end.
use super::*;
use crate::Removal;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Instant};

fn options(root: &Path) -> Options {
    let mut options =
        Options::new("node1", vec![root.join("data")], root.join("state"), rand::random(), Arc::new(|| UnixMillis(1_700_000_000_000)));
    options.init_dirs = true;
    options.segment_bytes = 64 << 10;
    options.index_cache_bytes = 8 << 20;
    options
}

fn open(root: &Path) -> Store {
    let (store, _) = Store::open(options(root)).unwrap();
    assert!(store.wait_for_views(Duration::from_secs(60)));
    store
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn rule_18_an_index_deleted_garbled_or_truncated_at_random_is_rebuilt() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let mut records: Vec<Record> = (0..120).map(|n| chunk(n, 900)).chain((0..80).map(|n| version(&format!("key{}", n / 4), n))).collect();
    for some in records.chunks(10) {
        commit(&store, some.to_vec());
    }
    let removed = records.split_off(190);
    wait(store.remove(removed.iter().map(Record::key).collect(), Removal::Swept)).unwrap();
    store.close();
    for round in 0..8 {
        let index = root.path().join("data/index");
        match round % 4 {
            0 => fs::remove_dir_all(&index).unwrap(),
            1 => {
                for path in files_below(&index) {
                    let mut content = fs::read(&path).unwrap();
                    for _ in 0..20.min(content.len()) {
                        let at = rng.random_range(0..content.len());
                        content[at] ^= rng.random_range(1..=255);
                    }
                    fs::write(&path, content).unwrap();
                }
            }
            2 => {
                for path in files_below(&index) {
                    let length = fs::metadata(&path).unwrap().len();
                    fs::File::options().write(true).open(&path).unwrap().set_len(rng.random_range(0..=length)).unwrap();
                }
            }
            _ => {
                let files = files_below(&index);
                fs::remove_file(&files[rng.random_range(0..files.len())]).unwrap();
            }
        }
        let store = open(root.path());
        for record in &records {
            assert_here(&store, record);
        }
        removed.iter().for_each(|record| assert_gone(&store, record));
        let listed = store.list(&bucket(), &crate::ListFrom::default(), 1000).unwrap();
        assert_eq!(listed.iter().map(|(_, versions)| versions.len()).sum::<usize>(), 70, "round {round}");
        while !store.check_index().matches {
            assert!(store.wait_for_views(Duration::from_secs(60)));
        }
        store.close();
    }
}

#[test]
fn what_was_written_is_found_after_an_abrupt_end_of_the_process() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let records: Vec<Record> = (0..50).map(|n| chunk(n, 900)).collect();
    commit(&store, records.clone());
    // What a killed process leaves: files as they are at this moment, the index wherever it was.
    let copy = tempfile::tempdir().unwrap();
    for path in files_below(root.path()) {
        let to = copy.path().join(path.strip_prefix(root.path()).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&path, &to).unwrap();
    }
    // The list of directories names the original's place, which a moved machine would not have.
    fs::remove_dir_all(copy.path().join("state")).unwrap();
    let again = open(copy.path());
    records.iter().for_each(|record| assert_here(&again, record));
    // An index that was copied while it was being written may be damaged: then it is made anew.
    assert!(again.wait_for_views(Duration::from_secs(20)));
    assert!(again.check_index().matches);
    let usage = again.usage();
    assert_eq!(usage.records, 50);
    assert!(usage.capacity > 0 && usage.views_ready);
    // One that was made anew has no file worth the name before it is flushed.
    let asked = Instant::now();
    while again.usage().index_bytes == 0 {
        assert!(asked.elapsed() < Duration::from_secs(20), "the index never comes to the disk");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_lies_in_memory_is_read_from_there_if_the_file_system_can() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let records: Vec<Record> = (0..200).map(|n| chunk(n, 2000)).collect();
    commit(&store, records.clone());
    for record in &records {
        assert_here(&store, record);
        // Nothing certain can be said of the page cache but that what comes from it is right.
        if let Some(found) = store.get_cached(&record.key(), 2000) {
            assert_eq!(&found.record, record);
        }
    }
}

#[test]
fn many_writers_share_syncs_and_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..32_u64)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..30 {
                        let durable = store
                            .commit(AppendClass::Client, vec![chunk(task * 1000 + n, 300), version(&format!("{task}/{n}"), n)])
                            .await
                            .unwrap();
                        assert_eq!(durable.len(), 2);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert!(store.usage().syncs < 32 * 30, "{} syncs", store.usage().syncs);
    assert_eq!(store.usage().records, 32 * 30 * 2);
    store.close();
    let store = open(root.path());
    for task in 0..32 {
        (0..30).for_each(|n| assert_here(&store, &chunk(task * 1000 + n, 300)));
    }
    assert_eq!(store.list(&bucket(), &crate::ListFrom::default(), 5000).unwrap().len(), 32 * 30);
}

#[test]
fn what_is_made_is_for_the_node_s_user_alone() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path());
    // As where nothing but the mount point is there; its mode is the operator's.
    options.directories = vec![root.path().join("disk/data")];
    let (store, _) = Store::open(options).unwrap();
    commit(&store, vec![chunk(1, 900)]);
    store.close();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for made in ["disk", "disk/data", "disk/data/segments", "disk/data/index", "state"] {
        assert_eq!(mode(&root.path().join(made)), 0o700, "{made}");
    }
    let index = root.path().join("disk/data/index");
    let ours: Vec<PathBuf> = files_below(root.path()).into_iter().filter(|path| !path.starts_with(&index)).collect();
    assert!(ours.iter().any(|path| path.extension().is_some_and(|end| end == "afar")), "{ours:?}");
    ours.iter().for_each(|path| assert_eq!(mode(path), 0o600, "{}", path.display()));
}
