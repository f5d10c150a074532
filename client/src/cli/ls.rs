//! `afar ls`: buckets, or keys. With `--json` buckets are one document; what is in a bucket is a line each and a summary at
//! the end, for a listing may be longer than memory and a reader must see whether it is whole.
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
    after_help = "Examples:\n  afar ls                    buckets\n  afar ls backups/host1/     one level\n  afar ls -r backups         everything\n  afar ls -r --versions backups/host1/   what was removed or replaced, too"
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    let out = &session.out;
    let Some(place) = arguments.place else {
        let buckets = client.buckets().await?;
        if out.json {
            out.value(&Value::Array(buckets.iter().map(super::bucket::json).collect()))?;
        } else {
            buckets.iter().try_for_each(|bucket| out.line(&bucket.name))?;
        }
        return Ok(0);
    };
    let place: Place = place.parse()?;
    let listing = Listing {
        bucket: place.bucket.clone(),
        prefix: place.path.clone(),
        fold: !arguments.recursive,
        versions: arguments.versions,
        limit: arguments.limit.unwrap_or(0),
    };
    let mut lines = pin!(client.list(listing));
    let mut sums = Sums::default();
    while let Some(line) = lines.try_next().await? {
        sums.add(&line);
        out.either(|| line_json(&place.bucket, &line), || line_words(&line, arguments.versions))?;
    }
    // A folder that holds nothing is empty; a key that is not there is not there.
    if sums == Sums::default() && !place.is_folder() {
        return Err(
            Error::new(Kind::NotFound, format!("nothing under {place}")).hint(format!("`afar ls {}` shows what is there", place.bucket))
        );
    }
    if out.json {
        out.value(&sums.json(&place.bucket))?;
    }
    Ok(0)
}

/// What was listed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    objects: u64,
    markers: u64,
    prefixes: u64,
    bytes: u64,
}

impl Sums {
    fn add(&mut self, line: &Listed) {
        match line {
            Listed::Prefix(_) => self.prefixes += 1,
            Listed::Entry(entry) if entry.object.is_some() => {
                self.objects += 1;
                self.bytes += entry.size;
            }
            Listed::Entry(_) => self.markers += 1,
        }
    }

    fn json(&self, bucket: &str) -> Value {
        json!({
            "message_type": "summary", "bucket": bucket, "objects": self.objects, "delete_markers": self.markers,
            "prefixes": self.prefixes, "bytes": self.bytes,
        })
    }
}

fn line_json(bucket: &str, line: &Listed) -> Value {
    match line {
        Listed::Prefix(prefix) => json!({"message_type": "entry", "type": "prefix", "bucket": bucket, "prefix": prefix}),
        Listed::Entry(entry) => json!({
            "message_type": "entry",
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
        Listed::Prefix(prefix) => format!("{:>12}  {:20}  {}", "", "", units::printable(prefix)),
        Listed::Entry(entry) => {
            let size = if entry.object.is_some() { units::bytes(entry.size) } else { "deleted".into() };
            let line = format!("{size:>12}  {:20}  {}", units::time(entry.modified), units::printable(&entry.key));
            if versions { format!("{line}  {}{}", entry.version, mark(entry)) } else { line }
        }
    }
}

const fn mark(entry: &Entry) -> &'static str {
    if entry.current { "  current" } else { "" }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::{
        id::{ObjectId, RecordId},
        units::UnixMillis,
    };

    fn marker_of(listed: &[Listed]) -> Entry {
        let mut entries = listed.iter().filter_map(|line| if let Listed::Entry(entry) = line { Some(entry.clone()) } else { None });
        entries.next_back().unwrap()
    }

    #[test]
    fn no_entries_are_a_question_that_makes_no_sense() {
        use clap::Parser as _;
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        assert!(Line::try_parse_from(["ls", "--limit", "0", "b"]).is_err());
        assert_eq!(Line::try_parse_from(["ls", "b"]).unwrap().arguments.limit, None);
    }

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
        let listed = [Listed::Prefix("a/".into()), Listed::Entry(entry), Listed::Entry(marker)];
        let mut sums = Sums::default();
        listed.iter().for_each(|line| sums.add(line));
        assert_eq!(sums, Sums { objects: 1, markers: 1, prefixes: 1, bytes: 3 << 29 });
        let types: Vec<Value> = listed.iter().map(|line| line_json("b", line)["type"].clone()).collect();
        assert_eq!(types, ["prefix", "object", "delete_marker"]);
        let odd = Entry { key: "a\nb".into(), object: None, ..marker_of(&listed) };
        assert!(line_words(&Listed::Entry(odd.clone()), false).ends_with(r"  $'a\nb'"), "it stays on its line");
        assert_eq!(line_json("b", &Listed::Entry(odd))["key"], "a\nb");
        let lines = listed.map(|line| line_words(&line, false));
        assert_eq!(lines[0], "                                    a/");
        assert_eq!(lines[1], "     1.5 GiB  2027-01-15T08:00:00Z  a/b.txt");
        assert_eq!(lines[2], "     deleted  2027-01-15T08:00:00Z  a/b.txt");
    }
}
