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
  afar get -r backups/host1/ restored/      everything under a prefix")]
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
    get_many(&session.out, &client, pairs, arguments.jobs).await
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
    let mut pairs = Vec::new();
    let mut keys = pin!(client.list(listing));
    while let Some(line) = keys.try_next().await? {
        let Listed::Entry(entry) = line else { continue };
        if !units::is_under(&place.path, &entry.key) {
            continue;
        }
        // From the last slash of the prefix on, as a shell's `cp -r` would.
        let from = place.path.rfind('/').map_or(0, |slash| slash + 1);
        let name = entry.key.get(from..).unwrap_or(&entry.key);
        let path = folder.join(safe_relative(name).ok_or_else(|| {
            Error::new(Kind::Failed, format!("{}/{}: no file can safely have that name", place.bucket, entry.key))
                .hint("get it by itself, into a file that you name")
        })?);
        let wanted = Wanted { version: Some(entry.version), ..Wanted::key(&place.bucket, entry.key) };
        pairs.push((wanted, path));
    }
    if pairs.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("nothing under {place}")).hint("`afar ls` shows what is there"));
    }
    for (_, path) in &pairs {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| Error::io(parent.display(), &error))?;
        }
    }
    get_many(&session.out, client, pairs, jobs).await
}

/// A key as a path that stays below where it is put: no empty part, no `.` or `..`, no NUL.
fn safe_relative(key: &str) -> Option<PathBuf> {
    let fine = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    (!key.is_empty() && key.split('/').all(fine)).then(|| key.into())
}

async fn get_many(out: &Out, client: &Client, pairs: Vec<(Wanted, PathBuf)>, jobs: usize) -> Result<u8, Error> {
    let begun = Instant::now();
    let progress = Progress::new(out, "get", None, pairs.len());
    let mut gets = stream::iter(pairs)
        .map(|(wanted, path)| {
            let told = progress.of_file();
            async move {
                let begun = Instant::now();
                let outcome = Box::pin(client.get_file(&wanted, &path, Some(told))).await;
                (outcome, path, begun.elapsed())
            }
        })
        .buffer_unordered(jobs.clamp(1, limits::JOBS_MAX));
    let (mut files, mut bytes) = (0_u64, 0_u64);
    while let Some((outcome, path, took)) = gets.next().await {
        let info = outcome.map_err(|error| error.during(path.display()))?;
        progress.file_done();
        files += 1;
        bytes += info.size;
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
    let took = begun.elapsed();
    if out.json || !out.quiet {
        out.either(
            || json!({"message_type": "summary", "files": files, "bytes": bytes, "failed": 0, "seconds": units::json_seconds(took)}),
            || {
                format!(
                    "got {} ({}) in {}, all verified",
                    units::plural(files as usize, "object", "objects"),
                    units::bytes(bytes),
                    units::seconds(took)
                )
            },
        )?;
    }
    Ok(0)
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
        for key in ["../a", "a/../../b", "/etc/passwd", "a//b", "a/", "", ".", "a/./b", "a\0b"] {
            assert_eq!(safe_relative(key), None, "{key:?}");
        }
        assert_eq!(safe_relative("a/b.txt"), Some("a/b.txt".into()));
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
