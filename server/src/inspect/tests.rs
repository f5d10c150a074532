//! Objects from the segments of a node that ran and ended; nothing else of it is looked at.
use super::objects::{Chosen, Look, Objects};
use super::*;
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId, UploadId},
    policy::Policy,
    record::{ChunkRef, Chunker, Content, Data, Manifest, Record, RecordKind, Setting, Version},
    units::UnixMillis,
};
use afar_store::{AppendClass, Options, Removal, Store};
use std::sync::Arc;

struct Disk {
    folder: tempfile::TempDir,
    bucket: BucketId,
    stamp: u64,
}

impl Disk {
    fn new(name: &str) -> Self {
        let created = Setting::BucketCreated { name: "former".into(), policy: Policy::default(), shards: 1, stamp: Stamp::from_u64(1) };
        let created = Record::new(RecordKind::Setting, BucketId::SYSTEM, created.encode());
        let bucket = BucketId::from(created.id());
        let renamed = Setting::BucketRenamed { bucket, name: name.into(), stamp: Stamp::from_u64(2) };
        let disk = Self { folder: tempfile::tempdir().unwrap(), bucket, stamp: 2 };
        disk.with(|store| wait(store, vec![created, Record::new(RecordKind::Setting, BucketId::SYSTEM, renamed.encode())]));
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn with(&self, what: impl FnOnce(&Store)) {
        let now = Arc::new(|| UnixMillis(1_700_000_000_000));
        let mut options = Options::new("warsaw", vec![self.path()], self.folder.path().join("state"), [7; 32], now);
        (options.init_dirs, options.segment_bytes) = (true, afar_store::limits::SEGMENT_BYTES_MIN);
        let (store, _) = Store::open(options).unwrap();
        what(&store);
        store.close();
    }

    /// An object of these chunks, all of it but what `without` names; answers its id.
    fn put(&mut self, key: &str, chunks: &[&[u8]], without: &[usize], settled: bool) -> ObjectId {
        self.stamp += 1;
        let stamp = Stamp::from_u64(self.stamp);
        let pieces: Vec<Record> = chunks.iter().map(|chunk| Record::new(RecordKind::Chunk, self.bucket, chunk.to_vec().into())).collect();
        let list = pieces.iter().map(|piece| ChunkRef { id: piece.id(), length: piece.body().len() as u32 }).collect();
        let manifest = Record::new(RecordKind::Manifest, self.bucket, Manifest { chunks: list }.encode());
        let whole = chunks.concat();
        let content = Content::Object {
            id: ObjectId::of(&whole),
            size: whole.len() as u64,
            data: Data::Manifests(vec![manifest.id()]),
            chunker: Chunker::Fixed1MiB,
        };
        let kept = pieces.into_iter().enumerate().filter(|(at, _)| !without.contains(at)).map(|(_, piece)| piece);
        self.version(key, stamp, content, kept.chain([manifest]).collect(), settled);
        ObjectId::of(&whole)
    }

    fn version(&self, key: &str, stamp: Stamp, content: Content, mut records: Vec<Record>, settled: bool) -> RecordId {
        let upload = UploadId::ZERO;
        let version = Version { bucket: self.bucket, key: key.into(), stamp, upload, content, metadata: Default::default() };
        let version = Record::new(RecordKind::Version, self.bucket, version.encode(b""));
        let id = version.id();
        records.push(version);
        self.with(|store| {
            wait(store, records);
            if settled {
                store.settle(vec![(self.bucket, key.to_owned(), stamp, id)]);
            }
        });
        id
    }

    fn rm(&mut self, key: &str) {
        self.stamp += 1;
        self.version(key, Stamp::from_u64(self.stamp), Content::DeleteMarker, Vec::new(), true);
    }
}

fn wait(store: &Store, records: Vec<Record>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.commit(AppendClass::Client, records)).unwrap();
}

fn objects(paths: &[PathBuf]) -> Objects<'static> {
    Objects::of(Salvage::open(&RealDisk, paths).unwrap())
}

/// What `--extract` gives.
fn get(paths: &[PathBuf], wanted: &str) -> Result<Vec<u8>, InspectError> {
    let objects = objects(paths);
    let mut content = Vec::new();
    match objects.choose(wanted)? {
        Chosen::Object(found) => objects.write(found, &mut content)?,
        Chosen::Record(body) => content.extend_from_slice(&body),
    }
    Ok(content)
}

fn listed(paths: &[PathBuf], look: Look) -> Vec<String> {
    let mut text = Vec::new();
    objects(paths).list(look, false, &mut text).unwrap();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn an_object_of_several_chunks_is_had_by_key_and_by_ids() {
    let mut disk = Disk::new("backups");
    let id = disk.put("host1/db.dump", &[b"one", b"two", b"three"], &[], true);
    let paths = [disk.path()];
    for wanted in ["backups/host1/db.dump".to_owned(), id.to_string(), id.to_string()[..12].to_owned()] {
        assert_eq!(get(&paths, &wanted).unwrap(), b"onetwothree", "{wanted}");
    }
    let by_bucket_id = format!("{}/host1/db.dump", &disk.bucket.to_string()[..16]);
    assert_eq!(get(&paths, &by_bucket_id).unwrap(), b"onetwothree");
    assert_eq!(get(&paths, &RecordId::of(b"two").to_string()).unwrap(), b"two", "a piece is had, too");
    for (wanted, code) in [("former/host1/db.dump", 10), ("backups/none", 10), ("12345", 2), (&"00".repeat(32)[..], 10)] {
        assert_eq!(get(&paths, wanted).unwrap_err().exit_code(), code, "{wanted}");
    }
}

#[test]
fn what_is_missing_is_named_and_may_be_on_another_disk() {
    let mut one = Disk::new("backups");
    one.put("a", &[b"one", b"two", b"three"], &[0, 2], true);
    let mut two = Disk::new("backups");
    two.put("b", &[b"one", b"three"], &[], true);
    let refused = get(&[one.path()], "backups/a").unwrap_err();
    assert_eq!(refused.exit_code(), 3);
    let told = refused.to_string();
    assert!(told.contains("2 of 3 pieces missing") && told.contains("bytes 0 to 2") && told.contains("bytes 6 to 10"), "{told}");
    assert!(listed(&[one.path()], Look::There)[0].contains("2 of 3 missing"));
    assert_eq!(get(&[one.path(), two.path()], "backups/a").unwrap(), b"onetwothree");
}

#[test]
fn a_damaged_chunk_is_not_written_and_listing_reads_if_asked() {
    let mut disk = Disk::new("backups");
    disk.put("a", &[b"the first chunk", b"the second chunk"], &[], true);
    let paths = [disk.path()];
    for segment in fs::read_dir(disk.path().join("segments")).unwrap() {
        let path = segment.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let found = bytes.windows(16).position(|window| window == b"the second chunk");
        if let Some(at) = found {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let mut written = Vec::new();
    let objects = objects(&paths);
    let Chosen::Object(found) = objects.choose("backups/a").unwrap() else { panic!("an object") };
    let refused = objects.write(found, &mut written).unwrap_err();
    assert!(refused.to_string().contains("bytes 15 to 30") && refused.exit_code() == 4, "{refused}");
    assert!(written.is_empty() || written == b"the first chunk");
    assert!(listed(&paths, Look::Read)[0].contains("1 of 2 missing"));
    let asked = Asked { paths: paths.to_vec(), list: true, verify: true, ..Asked::default() };
    assert_eq!(run(&asked, &mut Vec::new(), &mut Vec::new()).unwrap(), Outcome::Damaged);
}

#[test]
fn an_object_s_date_is_its_version_s_and_not_that_of_its_arrival_here() {
    let disk = Disk::new("backups");
    disk.version("a", Stamp::at(UnixMillis(1_600_000_000_000)), Content::DeleteMarker, Vec::new(), true);
    let paths = [disk.path()];
    assert!(listed(&paths, Look::There)[0].contains("2020-09-13T12:26:40Z"));
    let mut text = Vec::new();
    objects(&paths).list(Look::There, true, &mut text).unwrap();
    let line: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&line["modified"], &line["received_ms"]), (&json!("2020-09-13T12:26:40Z"), &json!(1_700_000_000_000_u64)));
}

#[test]
fn what_may_not_be_read_is_said_to_be_so_and_is_no_damage() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut disk = Disk::new("backups");
    disk.put("a", &[b"one"], &[], true);
    let segments = disk.path().join("segments");
    let segment = fs::read_dir(&segments).unwrap().next().unwrap().unwrap().path();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&segment, 0);
    if File::open(&segment).is_ok() {
        return; // Root reads everything.
    }
    let asked = |list| Asked { paths: vec![disk.path()], list, ..Asked::default() };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let outcomes = [false, true].map(|list| run(&asked(list), &mut out, &mut notes).unwrap());
    assert_eq!(outcomes.map(Outcome::exit_code), [1, 1]);
    assert!(String::from_utf8(out).unwrap().contains("Permission denied"));
    mode(&segments, 0);
    for list in [false, true] {
        let refused = run(&asked(list), &mut Vec::new(), &mut Vec::new()).unwrap_err();
        assert_eq!(refused.exit_code(), 1);
        assert!(refused.to_string().starts_with(&format!("{}: Permission denied", segments.display())), "{refused}");
    }
    mode(&segments, 0o700);
}

#[test]
fn a_whole_that_is_not_its_version_s_is_refused() {
    let disk = Disk::new("backups");
    let piece = Record::new(RecordKind::Chunk, disk.bucket, b"other".to_vec().into());
    let content = Content::Object {
        id: ObjectId::of(b"wanted"),
        size: 5,
        data: Data::Chunks(vec![ChunkRef { id: piece.id(), length: 5 }]),
        chunker: Chunker::Fixed1MiB,
    };
    disk.version("a", Stamp::from_u64(9), content, vec![piece], true);
    let refused = get(&[disk.path()], "backups/a").unwrap_err();
    assert!(matches!(refused, InspectError::NotIt { .. }) && refused.exit_code() == 4, "{refused}");
}

#[test]
fn rule_1_what_a_refused_put_left_behind_does_not_hide_what_was_there() {
    let mut disk = Disk::new("backups");
    let older = disk.put("a", &[b"good"], &[], true);
    disk.put("a", &[b"never", b"acknowledged"], &[1], false);
    disk.put("b", &[b"gone"], &[], true);
    disk.rm("b");
    let paths = [disk.path()];
    assert_eq!(get(&paths, "backups/a").unwrap(), b"good");
    let lines = listed(&paths, Look::There);
    assert!(lines[0].starts_with("unproved  1 of 2 missing") && lines[1].starts_with("current   whole"), "{lines:?}");
    assert!(lines[2].starts_with("current   deleted") && lines[3].starts_with("older     whole"), "{lines:?}");
    let refused = get(&paths, "backups/b").unwrap_err();
    assert!(matches!(&refused, InspectError::Deleted(_, before) if before.len() == 1), "{refused}");
    // What a node gave away, or took for bad, is not shown as current; but it is had, by its id.
    let version = objects(&paths);
    let Chosen::Object(found) = version.choose(&older.to_string()).unwrap() else { panic!("an object") };
    let record = found.record();
    disk.with(|store| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store.remove(vec![record], Removal::Swept)).unwrap();
    });
    assert_eq!(get(&paths, "backups/a").unwrap_err().exit_code(), 3, "the newer one is all that is left");
    assert_eq!(get(&paths, &older.to_string()).unwrap(), b"good");
}

#[test]
fn a_folder_is_had_whole_and_what_cannot_be_is_told() {
    let mut disk = Disk::new("backups");
    for (key, without) in [("a/1", &[][..]), ("a/b/2", &[]), ("ab", &[]), ("a/../../3", &[]), ("a/4", &[1])] {
        disk.put(key, &[key.as_bytes(), format!("end of {key}").as_bytes()], without, true);
    }
    disk.put("a/5", &[b"gone"], &[], true);
    disk.rm("a/5");
    let to = tempfile::tempdir().unwrap();
    let asked = Asked {
        paths: vec![disk.path()],
        extract: Some("backups/a".into()),
        recursive: true,
        output: Some(to.path().join("out")),
        ..Asked::default()
    };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    assert_eq!(run(&asked, &mut out, &mut notes).unwrap(), Outcome::Incomplete);
    let notes = String::from_utf8(notes).unwrap();
    assert!(notes.contains("a/../../3 cannot be") && notes.contains("a/4: 1 of 2 pieces missing"), "{notes}");
    assert!(notes.contains("2 objects are in") && notes.contains("2 could not"), "{notes}");
    assert_eq!(fs::read(to.path().join("out/a/1")).unwrap(), b"a/1end of a/1");
    assert_eq!(fs::read(to.path().join("out/a/b/2")).unwrap(), b"a/b/2end of a/b/2");
    assert_eq!(fs::read_dir(to.path().join("out/a")).unwrap().count(), 2);
}

#[test]
fn a_key_cannot_play_tricks_on_a_terminal() {
    let mut disk = Disk::new("backups");
    disk.put("a\n\u{1b}[31mb", &[b"x"], &[], true);
    let lines = listed(&[disk.path()], Look::There);
    assert!(lines.len() == 1 && lines[0].ends_with(r"$'backups/a\n\u001b[31mb'"), "{lines:?}");
}
