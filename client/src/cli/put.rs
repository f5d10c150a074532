//! `afar put`: files, trees and standard input.
use super::{Session, output::Out, progress::Progress, units};
use crate::{
    answers::Stored,
    client::Client,
    error::{Error, Kind},
    limits,
    names::Place,
    put::{PutOptions, Source},
    resume::Notes,
};
use afar_model::{policy::Durability, record};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Store files
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  afar put monday.tar backups               as backups/monday.tar
  pg_dump db | afar put - backups/db.sql    standard input needs a key
  afar put -r /etc /home/ backups/host1/    host1/etc/.., and what is in /home

Of a link to a file the file is stored. In trees, links to folders or nothing,
sockets, pipes and devices are skipped and counted; what is unreadable: exit 3.")]
pub struct Arguments {
    /// Files (`-`: standard input), then BUCKET, BUCKET/KEY or BUCKET/PREFIX/
    #[arg(required = true, num_args = 2.., value_names = ["FILE", "BUCKET[/KEY|/PREFIX/]"])]
    operands: Vec<PathBuf>,
    /// Put whole trees
    #[arg(short, long)]
    recursive: bool,
    /// Say something of the objects (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = metadata)]
    metadata: Vec<(String, String)>,
    /// Files at once
    #[arg(short, long, value_name = "N", default_value_t = limits::JOBS_DEFAULT)]
    jobs: usize,
    /// Do not resume an earlier, interrupted put
    #[arg(long)]
    no_resume: bool,
}

fn metadata(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() { Err("write NAME=VALUE".into()) } else { Ok((name.to_ascii_lowercase(), value.to_owned())) }
}

/// One thing to put.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    /// `None`: standard input.
    path: Option<PathBuf>,
    key: String,
    size: Option<u64>,
}

/// Something in a tree that holds no bytes of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Skipped {
    path: PathBuf,
    what: &'static str,
}

/// What is to be put, and what cannot be.
#[derive(Debug, Default)]
struct Plan {
    items: Vec<Item>,
    failed: Vec<Error>,
    skipped: Vec<Skipped>,
    single: bool,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let Some((destination, sources)) = arguments.operands.split_last() else { return Err(Error::usage("nothing to put")) };
    let place: Place = utf8(destination)?.parse()?;
    let plan = plan(sources, &place, arguments.recursive)?;
    let client = session.client()?;
    let options = PutOptions {
        metadata: arguments.metadata.iter().cloned().collect::<BTreeMap<_, _>>(),
        notes: if arguments.no_resume { None } else { Notes::of_user() },
        ..PutOptions::default()
    };
    if plan.single {
        return put_one(&session.out, &client, &place.bucket, plan, options).await;
    }
    let jobs = arguments.jobs.clamp(1, limits::JOBS_MAX);
    put_many(&session.out, &client, &place.bucket, plan, options, jobs).await
}

fn utf8(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::usage(format!("{}: is not UTF-8", path.display())))
}

async fn put_one(out: &Out, client: &Client, bucket: &str, plan: Plan, options: PutOptions) -> Result<u8, Error> {
    if let Some(error) = plan.failed.into_iter().next() {
        return Err(error);
    }
    let Some(item) = plan.items.into_iter().next() else { return Err(Error::usage("nothing to put")) };
    let begun = Instant::now();
    let progress = Progress::new(out, "put", item.size, 1);
    let stored = put_item(client, bucket, &item, PutOptions { progress: Some(progress.of_file()), ..options }).await;
    drop(progress);
    let stored = stored?;
    let took = begun.elapsed();
    out.either(|| stored_json(&stored, took), || stored_words(&stored, took))?;
    Ok(exit_code(&stored))
}

const fn exit_code(stored: &Stored) -> u8 {
    if matches!(stored.durability, Durability::Local) { Kind::BelowPolicy.exit_code() } else { 0 }
}

async fn put_item(client: &Client, bucket: &str, item: &Item, options: PutOptions) -> Result<Stored, Error> {
    let source = match &item.path {
        Some(path) => Source::File(path.clone()),
        None => Source::Read(Box::new(io::stdin())),
    };
    client.put(bucket, &item.key, source, options).await
}

/// Sums of several puts.
#[derive(Debug, Default)]
struct Sums {
    files: u64,
    bytes: u64,
    deduplicated: u64,
    local: u64,
    skipped: u64,
    failed: u64,
}

async fn put_many(out: &Out, client: &Client, bucket: &str, plan: Plan, options: PutOptions, jobs: usize) -> Result<u8, Error> {
    let begun = Instant::now();
    let total = plan.items.iter().filter_map(|item| item.size).sum();
    let progress = Progress::new(out, "put", Some(total), plan.items.len());
    let mut sums = Sums { skipped: plan.skipped.len() as u64, failed: plan.failed.len() as u64, ..Sums::default() };
    plan.skipped.iter().for_each(|skipped| progress.suspend(|| tell_skipped(out, skipped)));
    plan.failed.iter().for_each(|error| progress.suspend(|| out.warn(error)));
    let mut puts = stream::iter(plan.items)
        .map(|item| {
            let options = PutOptions { progress: Some(progress.of_file()), ..options.clone() };
            async move {
                let begun = Instant::now();
                let outcome = Box::pin(put_item(client, bucket, &item, options)).await;
                (item, outcome, begun.elapsed())
            }
        })
        .buffer_unordered(jobs);
    while let Some((item, outcome, took)) = puts.next().await {
        progress.file_done();
        match outcome {
            Ok(stored) => {
                sums.files += 1;
                sums.bytes += stored.size;
                sums.deduplicated += stored.deduplicated_bytes;
                sums.local += u64::from(stored.durability == Durability::Local);
                if out.json {
                    let mut line = stored_json(&stored, took);
                    line["message_type"] = json!("stored");
                    progress.suspend(|| out.value(&line))?;
                } else if !out.quiet {
                    progress.suspend(|| out.line(stored_line(&item.key, &stored, took)))?;
                }
            }
            // What is wrong with one file is no reason to leave the others; what is wrong with the cluster is.
            Err(error) if error.kind() == Kind::Failed => {
                sums.failed += 1;
                progress.suspend(|| out.warn(&error));
            }
            Err(error) => {
                return Err(error.during(format!(
                    "{}, after {}",
                    units::printable(&item.key),
                    units::plural(sums.files as usize, "file", "files")
                )));
            }
        }
    }
    drop(puts);
    drop(progress);
    summarise(out, &sums, begun.elapsed())
}

/// Said, so that nobody believes that it was stored.
fn tell_skipped(out: &Out, skipped: &Skipped) {
    let Skipped { path, what } = skipped;
    if out.json {
        out.note(json!({"message_type": "skipped", "path": path.display().to_string(), "reason": what}).to_string());
    } else {
        out.note(format!("afar: skipped {}: it is {what}", units::printable(&path.display().to_string())));
    }
}

fn summarise(out: &Out, sums: &Sums, took: Duration) -> Result<u8, Error> {
    let summary = || {
        json!({
            "message_type": "summary", "files": sums.files, "bytes": sums.bytes, "deduplicated_bytes": sums.deduplicated,
            "local": sums.local, "skipped": sums.skipped, "failed": sums.failed, "seconds": units::json_seconds(took),
        })
    };
    let words = || {
        let beside = |count: u64, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
        let (skipped, failed) = (beside(sums.skipped, "skipped"), beside(sums.failed, "failed"));
        format!(
            "stored {} ({}) in {}{skipped}{failed}",
            units::plural(sums.files as usize, "file", "files"),
            units::bytes(sums.bytes),
            units::seconds(took)
        )
    };
    if out.json || !out.quiet {
        out.either(summary, words)?;
    }
    if sums.failed > 0 {
        let message = format!("{} could not be stored; the others are", units::plural(sums.failed as usize, "file", "files"));
        return Err(Error::new(Kind::Incomplete, message).hint("see the messages above, and put those again"));
    }
    Ok(if sums.local > 0 { Kind::BelowPolicy.exit_code() } else { 0 })
}

/// An acknowledged put in JSON.
pub(crate) fn stored_json(stored: &Stored, took: Duration) -> Value {
    json!({
        "id": stored.object.to_string(),
        "bucket": stored.bucket,
        "key": stored.key,
        "version": stored.version.to_string(),
        "size": stored.size,
        "durability": stored.durability,
        "sites": stored.sites,
        "distance_km": stored.distance.km(),
        "seconds": units::json_seconds(took),
        "deduplicated_bytes": stored.deduplicated_bytes,
        "note": stored.note,
    })
}

/// An acknowledged put in words: `stored 3f2a…  2 copies: strasbourg, warsaw (1 024.8 km apart)  in 0.41 s`.
pub(crate) fn stored_words(stored: &Stored, took: Duration) -> String {
    let id: String = stored.object.to_string().chars().take(8).collect();
    let copies = units::plural(stored.sites.len(), "copy", "copies");
    let apart = units::apart(stored.sites.len(), stored.distance.km());
    let local = match (stored.durability, stored.note.as_str()) {
        (Durability::Local, "") => "  NOT FAR YET".to_owned(),
        (Durability::Local, note) => format!("  NOT FAR YET: {note}"),
        _ => String::new(),
    };
    format!("stored {id}…  {copies}: {}{apart}{local}  in {}", stored.sites.join(", "), units::seconds(took))
}

/// The same for one of several keys.
fn stored_line(key: &str, stored: &Stored, took: Duration) -> String {
    format!("{}: {}", units::printable(key), stored_words(stored, took))
}

/// Which file goes under which key.
fn plan(sources: &[PathBuf], place: &Place, recursive: bool) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    let alone = sources.len() == 1;
    if !alone && !place.is_folder() {
        return Err(
            Error::usage(format!("{place}: several files cannot have one key")).hint(format!("write {place}/ to put them under it"))
        );
    }
    for source in sources {
        if source == Path::new("-") {
            if place.is_folder() {
                return Err(Error::usage("standard input has no name").hint("write BUCKET/KEY"));
            }
            plan.items.push(Item { path: None, key: place.path.clone(), size: None });
        } else if source.is_dir() {
            if !recursive {
                return Err(Error::usage(format!("{}: is a directory", source.display())).hint("put trees with -r"));
            }
            let prefix = tree_prefix(source, place)?;
            walk(source, &prefix, &mut plan);
        } else {
            let name = source.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::usage(format!("{}: its name is not UTF-8 and cannot be a key", source.display())))?;
            let key = if place.is_folder() { format!("{}{name}", place.path) } else { place.path.clone() };
            record::check_key(&key).map_err(|error| Error::usage(format!("{}: {error}", source.display())))?;
            add(&mut plan, source, key);
        }
    }
    plan.single = alone && sources.first().is_some_and(|source| !source.is_dir());
    Ok(plan)
}

/// As `cp -r` does it: the directory's name is kept, unless it is `.` or ends with a slash, or the place names another.
fn tree_prefix(source: &Path, place: &Place) -> Result<String, Error> {
    if !place.is_folder() {
        return Ok(format!("{}/", place.path));
    }
    let text = utf8(source)?;
    if text.ends_with('/') {
        return Ok(place.path.clone());
    }
    Ok(match source.file_name().and_then(|name| name.to_str()) {
        Some(name) => format!("{}{name}/", place.path),
        None => place.path.clone(),
    })
}

fn add(plan: &mut Plan, path: &Path, key: String) {
    match fs::metadata(path) {
        Ok(metadata) => {
            let size = metadata.is_file().then_some(metadata.len());
            plan.items.push(Item { path: Some(path.to_owned()), key, size });
        }
        Err(error) => plan.failed.push(Error::io(path.display(), &error)),
    }
}

/// Every file below a folder, in order. Links to folders are not followed, for they may lead in circles.
fn walk(folder: &Path, prefix: &str, plan: &mut Plan) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return plan.failed.push(Error::io(folder.display(), &error)),
    };
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Ok(entry) => found.push(entry.path()),
            Err(error) => unread.push(Error::io(folder.display(), &error)),
        }
    }
    plan.failed.append(&mut unread);
    found.sort();
    for path in found {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            plan.failed.push(Error::new(Kind::Failed, format!("{}: its name is not UTF-8 and cannot be a key", path.display())));
            continue;
        };
        let key = format!("{prefix}{name}");
        let link = path.is_symlink();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && link => plan.skipped.push(Skipped { path, what: "a link to a folder" }),
            Ok(metadata) if metadata.is_dir() => walk(&path, &format!("{key}/"), plan),
            Ok(metadata) if metadata.is_file() => match record::check_key(&key) {
                Ok(()) => plan.items.push(Item { path: Some(path), key, size: Some(metadata.len()) }),
                Err(error) => plan.failed.push(Error::new(Kind::Failed, format!("{}: {error}", path.display()))),
            },
            Ok(metadata) => plan.skipped.push(Skipped { what: special(metadata.file_type()), path }),
            Err(error) if link && leads_nowhere(&error) => plan.skipped.push(Skipped { path, what: "a link that leads nowhere" }),
            Err(error) => plan.failed.push(Error::io(path.display(), &error)),
        }
    }
}

/// What it is that is neither a file nor a folder: it holds no bytes that could be kept.
fn special(kind: fs::FileType) -> &'static str {
    if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "neither a file nor a folder"
    }
}

/// Whether a link has no end: nothing is there, or it leads in a circle. That one may not look is another matter.
fn leads_nowhere(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::{
        id::{ObjectId, RecordId},
        units::Metres,
    };

    fn keys(sources: &[&Path], place: &str, recursive: bool) -> Vec<String> {
        let sources: Vec<PathBuf> = sources.iter().map(|path| path.to_path_buf()).collect();
        plan(&sources, &place.parse().unwrap(), recursive).unwrap().items.into_iter().map(|item| item.key).collect()
    }

    fn stored() -> Stored {
        Stored {
            object: ObjectId::of(b""),
            bucket: "docs".into(),
            key: "a".into(),
            version: RecordId::of(b"v"),
            size: 7,
            durability: Durability::Far,
            sites: vec!["strasbourg".into(), "warsaw".into()],
            distance: Metres(1_024_812),
            deduplicated_bytes: 0,
            note: String::new(),
        }
    }

    #[test]
    fn keys_are_as_cp_would_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("b")).unwrap();
        fs::write(tree.join("a.txt"), "a").unwrap();
        fs::write(tree.join("b/c.txt"), "c").unwrap();
        std::os::unix::fs::symlink(&tree, tree.join("b/circle")).unwrap();
        let file = tree.join("a.txt");
        assert_eq!(keys(&[&file], "docs", false), ["a.txt"]);
        assert_eq!(keys(&[&file], "docs/other", false), ["other"]);
        assert_eq!(keys(&[&file], "docs/in/", false), ["in/a.txt"]);
        assert_eq!(keys(&[&tree], "docs", true), ["tree/a.txt", "tree/b/c.txt"]);
        assert_eq!(keys(&[&tree], "docs/x", true), ["x/a.txt", "x/b/c.txt"]);
        assert_eq!(keys(&[&tree.join("")], "docs/x/", true), ["x/a.txt", "x/b/c.txt"]);
        assert_eq!(keys(&[&tree, &file], "docs/x/", true), ["x/tree/a.txt", "x/tree/b/c.txt", "x/a.txt"]);
    }

    #[test]
    fn what_holds_no_bytes_is_skipped_by_name_and_what_cannot_be_read_has_failed() {
        use std::os::unix::{ffi::OsStrExt as _, fs::symlink, net::UnixListener};
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path();
        fs::write(tree.join("file"), "kept").unwrap();
        fs::create_dir(tree.join("folder")).unwrap();
        let _socket = UnixListener::bind(tree.join("socket")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for (name, target) in
            [("to-file", "file"), ("to-folder", "folder"), ("to-device", "/dev/null"), ("to-nothing", "gone"), ("circle", "circle")]
        {
            symlink(target, tree.join(name)).unwrap();
        }
        fs::write(tree.join(std::ffi::OsStr::from_bytes(b"\xff")), "its name is no key").unwrap();
        let mut plan = Plan::default();
        walk(tree, "", &mut plan);
        assert_eq!(
            plan.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(),
            ["file", "to-file"],
            "a link to a file is its file"
        );
        let skipped: Vec<(&str, &str)> =
            plan.skipped.iter().map(|skipped| (skipped.path.file_name().unwrap().to_str().unwrap(), skipped.what)).collect();
        let expected = [
            ("circle", "a link that leads nowhere"),
            ("pipe", "a pipe"),
            ("socket", "a socket"),
            ("to-device", "a device"),
            ("to-folder", "a link to a folder"),
            ("to-nothing", "a link that leads nowhere"),
        ];
        assert_eq!(skipped, expected);
        assert_eq!(plan.failed.len(), 1, "{:?}", plan.failed);
        let quiet = Out { json: false, quiet: true, verbose: 0, color: false, progress: super::super::output::ProgressStyle::None };
        let sums = Sums { files: 2, skipped: 6, ..Sums::default() };
        assert_eq!(summarise(&quiet, &sums, Duration::ZERO).unwrap(), 0, "what holds nothing is not missed");
        let sums = Sums { failed: 1, ..sums };
        assert_eq!(summarise(&quiet, &sums, Duration::ZERO).unwrap_err().kind(), Kind::Incomplete);
    }

    #[test]
    fn what_has_no_key_is_a_usage_error() {
        let place = |text: &str| text.parse::<Place>().unwrap();
        let two = [PathBuf::from("a"), PathBuf::from("b")];
        assert_eq!(plan(&two, &place("docs/key"), false).unwrap_err().kind(), Kind::Usage);
        assert_eq!(plan(&[PathBuf::from("-")], &place("docs"), false).unwrap_err().kind(), Kind::Usage);
        assert_eq!(plan(&[std::env::temp_dir()], &place("docs"), false).unwrap_err().kind(), Kind::Usage);
        let missing = plan(&[PathBuf::from("/no/such")], &place("docs"), false).unwrap();
        assert_eq!((missing.items.len(), missing.failed.len()), (0, 1));
    }

    #[test]
    fn a_put_prints_what_the_contract_shows() {
        insta::assert_snapshot!(stored_words(&stored(), Duration::from_millis(412)), @"stored af1349b9…  2 copies: strasbourg, warsaw (1 024.8 km apart)  in 0.41 s");
        let local = Stored { durability: Durability::Local, sites: vec!["strasbourg".into()], note: "warsaw is down".into(), ..stored() };
        insta::assert_snapshot!(stored_words(&local, Duration::from_millis(412)), @"stored af1349b9…  1 copy: strasbourg  NOT FAR YET: warsaw is down  in 0.41 s");
        let three = Stored { sites: vec!["strasbourg".into(), "roubaix".into(), "warsaw".into()], ..stored() };
        insta::assert_snapshot!(stored_words(&three, Duration::from_millis(412)), @"stored af1349b9…  3 copies: strasbourg, roubaix, warsaw (the farthest two 1 024.8 km apart)  in 0.41 s");
        assert_eq!((exit_code(&stored()), exit_code(&local)), (0, 5));
        let line = stored_line("a\nb", &stored(), Duration::from_millis(412));
        assert!(line.starts_with("$'a\\nb': stored af1349b9…") && !line.contains('\n'), "a key stays on its line: {line}");
        let odd = Stored { key: "a\nb".into(), ..stored() };
        assert_eq!(stored_json(&odd, Duration::ZERO)["key"], "a\nb", "programs are given the key");
    }

    #[test]
    fn a_put_in_json_has_what_the_contract_names() {
        let json = stored_json(&stored(), Duration::from_millis(412));
        for name in ["id", "bucket", "key", "version", "size", "durability", "sites", "distance_km", "seconds", "deduplicated_bytes"] {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!((&json["durability"], &json["distance_km"]), (&json!("far"), &json!(1024.8)));
    }
}
