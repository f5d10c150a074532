//! `afar rm`: a delete marker for a key, which hides what was there and destroys nothing yet.
use super::{Session, output, output::Out, units};
use crate::{
    answers::{Listed, Removed},
    client::{Client, Listing},
    error::{Error, Kind},
    names::{Place, Wanted},
};
use afar_model::id::RecordId;
use clap::Args;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use std::pin::pin;

/// Remove objects (recoverable until the bucket's undelete window ends)
#[derive(Debug, Args)]
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
    /// Remove this one version for good, subject to retention
    #[arg(long, value_name = "ID", conflicts_with = "recursive")]
    version: Option<RecordId>,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let wanted = if arguments.recursive {
        Vec::new()
    } else {
        arguments.what.iter().map(|what| by_key(what, arguments.version)).collect::<Result<_, _>>()?
    };
    let places =
        if arguments.recursive { arguments.what.iter().map(|what| what.parse()).collect::<Result<Vec<Place>, _>>()? } else { Vec::new() };
    let client = session.client()?;
    let out = &session.out;
    let mut code = 0;
    for place in &places {
        let (keys, bytes) = find(&client, place).await?;
        if keys.is_empty() && !arguments.force {
            return Err(Error::new(Kind::NotFound, format!("nothing under {place}")).hint("`afar ls` shows what is there"));
        }
        let what = format!("{} ({}) under {place}", units::plural(keys.len(), "object", "objects"), units::bytes(bytes));
        if !keys.is_empty() && !arguments.dry_run && !arguments.yes {
            let question = format!("Remove {what}? They stay recoverable until the bucket's undelete window ends.");
            if !output::confirm(&question, "--yes")? {
                return Err(Error::new(Kind::Failed, "nothing was removed"));
            }
        }
        for key in keys {
            code = code.max(remove(out, &client, &Wanted::key(&place.bucket, key), &arguments).await?);
        }
    }
    for wanted in &wanted {
        code = code.max(remove(out, &client, wanted, &arguments).await?);
    }
    Ok(code)
}

fn by_key(what: &str, version: Option<RecordId>) -> Result<Wanted, Error> {
    let wanted: Wanted = what.parse()?;
    if wanted.object_id().is_some() {
        return Err(Error::usage(format!("{what}: an id may stand under several keys")).hint("remove by BUCKET/KEY"));
    }
    Ok(Wanted { version, ..wanted })
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

async fn remove(out: &Out, client: &Client, wanted: &Wanted, arguments: &Arguments) -> Result<u8, Error> {
    if arguments.dry_run {
        let bucket = &wanted.bucket;
        out.either(|| json!({"bucket": bucket, "key": wanted.key_or_empty(), "dry_run": true}), || format!("would remove {wanted}"))?;
        return Ok(0);
    }
    match client.delete(wanted).await {
        Ok(removed) => {
            if out.json || !out.quiet {
                out.either(|| json(wanted, &removed), || format!("removed {wanted}"))?;
            }
            Ok(if removed.durability == afar_model::policy::Durability::Local { Kind::BelowPolicy.exit_code() } else { 0 })
        }
        Err(error) if error.kind() == Kind::NotFound && arguments.force => Ok(0),
        Err(error) => Err(error),
    }
}

fn json(wanted: &Wanted, removed: &Removed) -> Value {
    json!({
        "bucket": wanted.bucket,
        "key": wanted.key_or_empty(),
        "version": removed.version.to_string(),
        "durability": removed.durability,
        "sites": removed.sites,
    })
}
