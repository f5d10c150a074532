//! `afar rm`: a delete marker for a key, which hides what was there and destroys nothing yet. With `--json`: one key is one
//! document, several (or `-r`) are a line each and a summary.
use super::{Session, output, output::Out, units};
use crate::{
    answers::{Listed, Removed},
    client::{Client, Listing},
    error::{Error, Kind},
    names::{Named, NamedBy, Place, Wanted},
};
use afar_model::policy::Durability;
use clap::Args;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use std::pin::pin;

/// Remove objects (recoverable: `afar cp --version` brings them back)
#[derive(Debug, Args)]
#[command(after_help = "\
What was removed, or put over, is there as an older version, and comes back as a
copy of it:
  afar ls --versions backups/monday.tar
  afar cp --version ID backups/monday.tar backups/monday.tar")]
pub struct Arguments {
    /// BUCKET/KEY; with -r BUCKET/PREFIX
    #[arg(required = true, value_name = "BUCKET/KEY")]
    what: Vec<String>,
    /// Remove everything under a prefix
    #[arg(short, long)]
    recursive: bool,
    /// A key that is not there is as good as removed
    #[arg(short, long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    if arguments.recursive {
        let places = arguments.what.iter().map(|what| what.parse()).collect::<Result<Vec<Place>, _>>()?;
        return remove_trees(session, &arguments, &places).await;
    }
    let wanted = arguments.what.iter().map(|what| by_key(what)).collect::<Result<Vec<_>, _>>()?;
    let client = session.client()?;
    let mut removal =
        Removal { out: &session.out, client: &client, arguments: &arguments, several: wanted.len() > 1, sums: Sums::default() };
    for wanted in &wanted {
        removal.remove(wanted).await?;
    }
    removal.end()
}

async fn remove_trees(session: &Session, arguments: &Arguments, places: &[Place]) -> Result<u8, Error> {
    let client = session.client()?;
    let mut removal = Removal { out: &session.out, client: &client, arguments, several: true, sums: Sums::default() };
    for place in places {
        let (keys, bytes) = find(&client, place).await?;
        if keys.is_empty() && !arguments.force {
            return Err(Error::new(Kind::NotFound, format!("nothing under {place}")).hint("`afar ls` shows what is there"));
        }
        let what = format!("{} ({}) under {place}", units::plural(keys.len(), "object", "objects"), units::bytes(bytes));
        if !keys.is_empty() && !arguments.dry_run && !arguments.yes {
            let question = format!("Remove {what}? They can be brought back: see `afar rm --help`.");
            if !output::confirm(&question, "--yes")? {
                return Err(Error::new(Kind::Failed, "nothing was removed").hint("answer y, or say --yes"));
            }
        }
        for key in keys {
            removal.remove(&Wanted::key(&place.bucket, key)).await?;
        }
    }
    removal.end()
}

fn by_key(what: &str) -> Result<Wanted, Error> {
    let Named { bucket, by, .. } = what.parse()?;
    match by {
        NamedBy::Key(key) => Ok(Wanted::key(bucket, key)),
        NamedBy::Id(_) => {
            Err(Error::usage(format!("{}: an id may stand under several keys", units::printable(what))).hint("remove by BUCKET/KEY"))
        }
    }
}

async fn find(client: &Client, place: &Place) -> Result<(Vec<String>, u64), Error> {
    let listing = Listing { bucket: place.bucket.clone(), prefix: place.path.clone(), ..Listing::default() };
    let mut lines = pin!(client.list(listing));
    let (mut keys, mut bytes) = (Vec::new(), 0_u64);
    while let Some(line) = lines.try_next().await? {
        if let Listed::Entry(entry) = line
            && units::is_under(&place.path, &entry.key)
        {
            bytes += entry.size;
            keys.push(entry.key);
        }
    }
    Ok((keys, bytes))
}

/// What became of the keys so far.
#[derive(Debug, Default)]
struct Sums {
    removed: u64,
    missing: u64,
    local: u64,
}

/// One run of the command.
struct Removal<'a> {
    out: &'a Out,
    client: &'a Client,
    arguments: &'a Arguments,
    several: bool,
    sums: Sums,
}

impl Removal<'_> {
    async fn remove(&mut self, wanted: &Wanted) -> Result<(), Error> {
        if self.arguments.dry_run {
            self.sums.removed += 1;
            return self.say(wanted, json!({"dry_run": true}), &format!("would remove {wanted}"));
        }
        match self.client.delete(wanted).await {
            Ok(removed) => {
                self.sums.removed += 1;
                self.sums.local += u64::from(removed.durability == Durability::Local);
                if self.out.quiet && !self.out.json {
                    return Ok(());
                }
                self.say(wanted, json(&removed), &format!("removed {wanted}"))
            }
            Err(error) if error.kind() == Kind::NotFound && self.arguments.force => {
                self.sums.missing += 1;
                if self.out.json { self.say(wanted, json!({"removed": false}), "") } else { Ok(()) }
            }
            Err(error) => Err(error),
        }
    }

    fn say(&self, wanted: &Wanted, mut value: Value, words: &str) -> Result<(), Error> {
        (value["bucket"], value["key"]) = (json!(wanted.bucket), json!(wanted.key_or_empty()));
        if self.several {
            value["message_type"] = json!("removed");
        }
        self.out.either(|| value, || words.to_owned())
    }

    fn end(&self) -> Result<u8, Error> {
        let Sums { removed, missing, local } = self.sums;
        if self.several && self.out.json {
            let dry_run = self.arguments.dry_run;
            let summary = json!({"message_type": "summary", "removed": removed, "missing": missing, "local": local, "dry_run": dry_run});
            self.out.value(&summary)?;
        }
        Ok(if local > 0 { Kind::BelowPolicy.exit_code() } else { 0 })
    }
}

fn json(removed: &Removed) -> Value {
    json!({"version": removed.version.to_string(), "durability": removed.durability, "sites": removed.sites, "removed": true})
}
