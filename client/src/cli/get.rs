//! `afar get` and `afar cat`.
use super::{Session, output::Out, progress::Progress, units};
use crate::{
    answers::{Info, Listed},
    client::{Client, Listing},
    error::{Error, Kind},
    get::Range,
    limits,
    names::{Named, Place, Wanted},
};
use afar_model::id::IdPrefix;
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

/// Fetch objects into files
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  afar get backups/monday.tar .             as ./monday.tar, once verified
  afar get backups@3f2a91c0 monday.tar      by id, or its beginning
  afar get -r backups/host1/ restored/      everything under a prefix

What cannot be written is named, the rest is fetched, and the exit code is 3.")]
pub struct Arguments {
    /// BUCKET/KEY or BUCKET@ID, then a file, a folder, or `-` for standard output
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DST"])]
    operands: Vec<String>,
    /// Get everything under a prefix
    #[arg(short, long)]
    recursive: bool,
    /// Get this version
    #[arg(long, value_name = "ID")]
    version: Option<IdPrefix>,
    /// Objects at once
    #[arg(short, long, value_name = "N", default_value_t = limits::JOBS_DEFAULT)]
    jobs: usize,
}

/// Write objects to standard output
#[derive(Debug, Args)]
pub struct CatArguments {
    /// BUCKET/KEY or BUCKET@ID
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<String>,
    /// Begin at this byte
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// Write at most so many bytes
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
    /// This version
    #[arg(long, value_name = "ID")]
    version: Option<IdPrefix>,
}

pub(super) async fn cat(session: &Session, arguments: CatArguments) -> Result<u8, Error> {
    let named = named(&arguments.sources, arguments.version.as_ref())?;
    let client = session.client()?;
    let range = Range { offset: arguments.offset, length: arguments.length };
    for wanted in &resolve(&client, &named).await? {
        print(&client, wanted, range).await?;
    }
    Ok(0)
}

fn named(sources: &[String], version: Option<&IdPrefix>) -> Result<Vec<Named>, Error> {
    sources.iter().map(|source| source.parse::<Named>()?.at_version(version.cloned())).collect()
}

/// All of them before the first is written: what is mistyped is told before it costs anything.
async fn resolve(client: &Client, named: &[Named]) -> Result<Vec<Wanted>, Error> {
    let mut wanted = Vec::with_capacity(named.len());
    for named in named {
        wanted.push(client.resolve(named).await?);
    }
    Ok(wanted)
}

/// Each piece is verified before its first byte is printed, and the whole at the end.
async fn print(client: &Client, wanted: &Wanted, range: Range) -> Result<Info, Error> {
    let mut sink = tokio::io::stdout();
    let info = client.get(wanted, range, &mut sink).await?;
    io::stdout().flush().map_err(|error| Error::io("write to standard output", &error))?;
    Ok(info)
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let Some((destination, sources)) = arguments.operands.split_last() else { return Err(Error::usage("nothing to get")) };
    if arguments.recursive {
        let [source] = sources else { return Err(Error::usage("one prefix at a time: afar get -r BUCKET/PREFIX/ FOLDER")) };
        let place = source.parse()?;
        return get_tree(session, &session.client()?, &place, Path::new(destination), arguments.jobs).await;
    }
    let named = named(sources, arguments.version.as_ref())?;
    let client = session.client()?;
    let wanted = resolve(&client, &named).await?;
    if destination == "-" {
        for wanted in &wanted {
            print(&client, wanted, Range::ALL).await?;
        }
        return Ok(0);
    }
    let pairs = targets(&wanted, destination)?;
    if let [(wanted, path)] = pairs.as_slice() {
        let begun = Instant::now();
        let progress = Progress::new(&session.out, "get", None, 1);
        let info = client.get_file(wanted, path, Some(progress.of_file())).await;
        drop(progress);
        let (info, took) = (info?, begun.elapsed());
        return session.out.either(|| got_json(&info, path, took), || got_words(&info, path, took)).map(|()| 0);
    }
    get_many(&session.out, &client, pairs, Vec::new(), arguments.jobs).await
}

/// Which object goes into which file.
fn targets(wanted: &[Wanted], destination: &str) -> Result<Vec<(Wanted, PathBuf)>, Error> {
    let path = Path::new(destination);
    let folder = path.is_dir() || destination.ends_with('/');
    if wanted.len() > 1 && !folder {
        return Err(Error::usage(format!("{destination}: several objects need a folder")).hint(format!("write {destination}/")));
    }
    if folder && !path.is_dir() {
        fs::create_dir_all(path).map_err(|error| Error::io(path.display(), &error))?;
    }
    let target = |wanted: &Wanted| -> Result<(Wanted, PathBuf), Error> {
        if !folder {
            return Ok((wanted.clone(), path.to_owned()));
        }
        let name = wanted.file_name().ok_or_else(|| Error::usage(format!("{wanted}: no file can have that name")).hint("name the file"))?;
        Ok((wanted.clone(), path.join(name)))
    };
    wanted.iter().map(target).collect()
}

async fn get_tree(session: &Session, client: &Client, place: &Place, folder: &Path, jobs: usize) -> Result<u8, Error> {
    let listing = Listing { bucket: place.bucket.clone(), prefix: place.path.clone(), ..Listing::default() };
    let mut found = Vec::new();
    let mut keys = pin!(client.list(listing));
    while let Some(line) = keys.try_next().await? {
        if let Listed::Entry(entry) = line
            && units::is_under(&place.path, &entry.key)
        {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("nothing under {place}")).hint("`afar ls` shows what is there"));
    }
    // From the last slash of the prefix on, as a shell's `cp -r` would.
    let from = place.path.rfind('/').map_or(0, |slash| slash + 1);
    let names: Vec<&str> = found.iter().map(|entry| entry.key.get(from..).unwrap_or(&entry.key)).collect();
    let (mut pairs, mut failed) = (Vec::new(), Vec::new());
    for (entry, why_not) in found.iter().zip(unfit(&names)) {
        let wanted = Wanted { version: Some(entry.version), ..Wanted::key(&place.bucket, &entry.key) };
        let path = folder.join(entry.key.get(from..).unwrap_or(&entry.key));
        match why_not.map_or_else(|| make_parent(&path), |why| Err(Error::new(Kind::Failed, why))) {
            Ok(()) => pairs.push((wanted, path)),
            Err(error) if is_of_one_file(&error) => failed.push(error.during(called(&wanted))),
            Err(error) => return Err(error),
        }
    }
    get_many(&session.out, client, pairs, failed, jobs).await
}

fn make_parent(path: &Path) -> Result<(), Error> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|error| Error::io(parent.display(), &error))
}

/// What is wrong with one file is no reason to leave the others; what is wrong with the cluster, or with this machine, is.
fn is_of_one_file(error: &Error) -> bool {
    error.kind() == Kind::Failed
}

/// How people would name it.
fn called(wanted: &Wanted) -> String {
    Wanted { version: None, ..wanted.clone() }.to_string()
}

/// The longest name that usual file systems have, in bytes.
const NAME_MAX: usize = 255;

/// Why names cannot be files below a folder, each by itself and all of them together. A key is any text; a file's name is not, and
/// must never lead out of the folder.
fn unfit(names: &[&str]) -> Vec<Option<&'static str>> {
    let fitting: BTreeSet<&str> = names.iter().copied().filter(|name| unfit_alone(name).is_none()).collect();
    let is_folder = |name: &str| {
        let within = format!("{name}/");
        fitting.range(within.as_str()..).next().is_some_and(|next| next.starts_with(&within))
    };
    let why =
        |name: &&str| unfit_alone(name).or_else(|| is_folder(name).then_some("cannot be a file: other keys need a folder of that name"));
    names.iter().map(why).collect()
}

fn unfit_alone(name: &str) -> Option<&'static str> {
    let any = |wrong: &dyn Fn(&str) -> bool| name.split('/').any(wrong);
    if any(&str::is_empty) {
        Some("cannot be a file: it begins or ends with a slash, or has two in a row")
    } else if any(&|part| part == "." || part == "..") {
        Some("cannot be a file: a part of it is \".\" or \"..\"")
    } else if name.contains('\0') {
        Some("cannot be a file: it has a NUL")
    } else if any(&|part| part.len() > NAME_MAX) {
        Some("cannot be a file: a part of it is longer than 255 bytes")
    } else {
        None
    }
}

async fn get_many(out: &Out, client: &Client, pairs: Vec<(Wanted, PathBuf)>, failed: Vec<Error>, jobs: usize) -> Result<u8, Error> {
    let begun = Instant::now();
    let progress = Progress::new(out, "get", None, pairs.len());
    let mut sums = Sums { failed: failed.len() as u64, ..Sums::default() };
    failed.iter().for_each(|error| progress.suspend(|| out.warn(error)));
    let mut gets = stream::iter(pairs)
        .map(|(wanted, path)| {
            let told = progress.of_file();
            async move {
                let begun = Instant::now();
                let outcome = Box::pin(client.get_file(&wanted, &path, Some(told))).await;
                (outcome, wanted, path, begun.elapsed())
            }
        })
        .buffer_unordered(jobs.clamp(1, limits::JOBS_MAX));
    while let Some((outcome, wanted, path, took)) = gets.next().await {
        progress.file_done();
        let info = match outcome.map_err(|error| error.during(called(&wanted))) {
            Ok(info) => info,
            Err(error) if is_of_one_file(&error) => {
                sums.failed += 1;
                progress.suspend(|| out.warn(&error));
                continue;
            }
            Err(error) => return Err(error),
        };
        sums.files += 1;
        sums.bytes += info.size;
        if out.json {
            let mut line = got_json(&info, &path, took);
            line["message_type"] = json!("got");
            progress.suspend(|| out.value(&line))?;
        } else if out.verbose > 0 {
            progress.suspend(|| out.line(got_words(&info, &path, took)))?;
        }
    }
    drop(gets);
    drop(progress);
    summarise(out, &sums, begun.elapsed())
}

/// Sums of several gets.
#[derive(Debug, Default)]
struct Sums {
    files: u64,
    bytes: u64,
    failed: u64,
}

fn summarise(out: &Out, sums: &Sums, took: Duration) -> Result<u8, Error> {
    let Sums { files, bytes, failed } = *sums;
    let value =
        || json!({"message_type": "summary", "files": files, "bytes": bytes, "failed": failed, "seconds": units::json_seconds(took)});
    let words = || {
        let failed = if failed > 0 { format!("; {failed} not") } else { String::new() };
        let (objects, bytes) = (units::plural(files as usize, "object", "objects"), units::bytes(bytes));
        format!("got {objects} ({bytes}) in {}, all verified{failed}", units::seconds(took))
    };
    if out.json || !out.quiet {
        out.either(value, words)?;
    }
    if failed == 0 {
        return Ok(0);
    }
    let message = format!("{} could not be fetched; the others are", units::plural(failed as usize, "object", "objects"));
    Err(Error::new(Kind::Incomplete, message).hint(
        "see the messages above; what cannot be a file under its own name is had by `afar get BUCKET/KEY FILE`, or under another \
         key once `afar cp BUCKET/KEY BUCKET/OTHER` has copied it",
    ))
}

fn got_json(info: &Info, path: &Path, took: Duration) -> Value {
    json!({
        "id": info.object.to_string(), "bucket": info.bucket, "key": info.key, "version": info.version.to_string(), "size": info.size,
        "path": path.display().to_string(), "seconds": units::json_seconds(took),
    })
}

fn got_words(info: &Info, path: &Path, took: Duration) -> String {
    format!("got {}  {}, verified  in {}", path.display(), units::bytes(info.size), units::seconds(took))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leads_out_of_the_folder() {
        let long = format!("a/{}", "b".repeat(256));
        for key in ["../a", "a/../../b", "/etc/passwd", "a//b", "a/", "", ".", "a/./b", "a\0b", &long] {
            assert!(unfit(&[key])[0].is_some(), "{key:?}");
        }
        for key in ["a/b.txt", "..a", "a..", ".hidden/...", "a b", "ä", &long[..257]] {
            assert_eq!(unfit(&[key]), [None], "{key:?}");
        }
    }

    #[test]
    fn a_key_that_others_need_as_a_folder_is_no_file_and_the_others_are() {
        let names = ["a", "a-b", "a/b", "a/b/c", "a/bc", "d", "d//e", "../a"];
        let fits: Vec<&str> = names.iter().zip(unfit(&names)).filter(|(_, why)| why.is_none()).map(|(name, _)| *name).collect();
        assert_eq!(fits, ["a-b", "a/b/c", "a/bc", "d"], "what lies below a key that is no file itself takes no name away");
    }

    #[test]
    fn what_was_left_out_is_exit_3() {
        let quiet = Out { json: false, quiet: true, verbose: 0, color: false, progress: super::super::output::ProgressStyle::None };
        assert_eq!(summarise(&quiet, &Sums { files: 2, ..Sums::default() }, Duration::ZERO).unwrap(), 0);
        let error = summarise(&quiet, &Sums { files: 2, failed: 1, ..Sums::default() }, Duration::ZERO).unwrap_err();
        assert!(error.kind() == Kind::Incomplete && error.message().starts_with("1 object could not"), "{error}");
    }

    #[test]
    fn several_objects_need_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = [Wanted::key("b", "x/a"), Wanted::key("b", "c")];
        let file = folder.path().join("file");
        assert_eq!(targets(&wanted, file.to_str().unwrap()).unwrap_err().kind(), Kind::Usage);
        let pairs = targets(&wanted, folder.path().to_str().unwrap()).unwrap();
        assert_eq!(pairs[0].1, folder.path().join("a"));
        assert_eq!(targets(&wanted[..1], file.to_str().unwrap()).unwrap()[0].1, file);
    }
}
