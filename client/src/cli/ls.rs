//! `afar ls`: buckets, or keys. With `--json` one object a line, for a listing may be longer than memory.
use super::{Session, units};
use crate::{
    answers::{Entry, Listed},
    client::Listing,
    error::{Error, Kind},
    names::Place,
};
use clap::Args;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use std::pin::pin;

/// List buckets, or what is in one
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  afar ls                    buckets\n  afar ls backups/host1/     one level\n  afar ls -r backups         everything"
)]
pub struct Arguments {
    /// BUCKET or BUCKET/PREFIX
    #[arg(value_name = "BUCKET[/PREFIX]")]
    place: Option<String>,
    /// Do not stop at the next slash
    #[arg(short, long)]
    recursive: bool,
    /// Older versions and delete markers too
    #[arg(long)]
    versions: bool,
    /// At most so many entries
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    limit: u64,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let out = &session.out;
    let Some(place) = arguments.place else {
        for bucket in client.buckets().await? {
            out.either(|| super::bucket::json(&bucket), || bucket.name.clone())?;
        }
        return Ok(0);
    };
    let place: Place = place.parse()?;
    let listing = Listing {
        bucket: place.bucket.clone(),
        prefix: place.path.clone(),
        fold: !arguments.recursive,
        versions: arguments.versions,
        limit: arguments.limit,
    };
    let mut lines = pin!(client.list(listing));
    let mut any = false;
    while let Some(line) = lines.try_next().await? {
        any = true;
        out.either(|| line_json(&place.bucket, &line), || line_words(&line, arguments.versions))?;
    }
    // A folder that holds nothing is empty; a key that is not there is not there.
    if !any && !place.is_folder() {
        return Err(
            Error::new(Kind::NotFound, format!("nothing under {place}")).hint(format!("`afar ls {}` shows what is there", place.bucket))
        );
    }
    Ok(0)
}

fn line_json(bucket: &str, line: &Listed) -> Value {
    match line {
        Listed::Prefix(prefix) => json!({"type": "prefix", "bucket": bucket, "prefix": prefix}),
        Listed::Entry(entry) => json!({
            "type": if entry.object.is_some() { "object" } else { "delete_marker" },
            "bucket": bucket,
            "key": entry.key,
            "id": entry.object.map(|object| object.to_string()),
            "version": entry.version.to_string(),
            "size": entry.size,
            "modified": units::time(entry.modified),
            "current": entry.current,
        }),
    }
}

fn line_words(line: &Listed, versions: bool) -> String {
    match line {
        Listed::Prefix(prefix) => format!("{:>12}  {:20}  {prefix}", "", ""),
        Listed::Entry(entry) => {
            let size = if entry.object.is_some() { units::bytes(entry.size) } else { "deleted".into() };
            let line = format!("{size:>12}  {:20}  {}", units::time(entry.modified), entry.key);
            if versions { format!("{line}  {}{}", entry.version, mark(entry)) } else { line }
        }
    }
}

const fn mark(entry: &Entry) -> &'static str {
    if entry.current { "  current" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::{
        id::{ObjectId, RecordId},
        units::UnixMillis,
    };

    #[test]
    fn a_listing_lines_up() {
        let entry = Entry {
            key: "a/b.txt".into(),
            version: RecordId::of(b"v"),
            object: Some(ObjectId::of(b"")),
            size: 3 << 29,
            modified: UnixMillis(1_800_000_000_000),
            current: true,
        };
        let marker = Entry { object: None, current: false, ..entry.clone() };
        let lines = [Listed::Prefix("a/".into()), Listed::Entry(entry), Listed::Entry(marker)].map(|line| line_words(&line, false));
        assert_eq!(lines[0], "                                    a/");
        assert_eq!(lines[1], "     1.5 GiB  2027-01-15T08:00:00Z  a/b.txt");
        assert_eq!(lines[2], "     deleted  2027-01-15T08:00:00Z  a/b.txt");
    }
}
