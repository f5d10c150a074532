//! `afar stat`: one object, where its copies are, and its state. `BUCKET` alone describes the bucket.
use super::{Session, units};
use crate::{
    answers::Info,
    error::{Error, Kind},
    names::{Named, Place},
};
use afar_model::id::IdPrefix;
use clap::Args;
use serde_json::{Value, json};

/// Describe an object: where its copies are, and its state
#[derive(Debug, Args)]
pub struct Arguments {
    /// BUCKET/KEY, BUCKET@ID, or BUCKET
    #[arg(value_name = "BUCKET/KEY")]
    what: String,
    /// This version
    #[arg(long, value_name = "ID")]
    version: Option<IdPrefix>,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    if let Ok(Place { bucket, path }) = arguments.what.parse::<Place>()
        && path.is_empty()
    {
        return stat_bucket(session, &bucket).await;
    }
    let named = arguments.what.parse::<Named>()?.at_version(arguments.version)?;
    let client = session.client()?;
    let info = client.stat(&client.resolve(&named).await?).await?;
    session.out.either(|| json(&info), || words(&info))?;
    Ok(0)
}

async fn stat_bucket(session: &Session, name: &str) -> Result<u8, Error> {
    let buckets = session.client()?.buckets().await?;
    let bucket = buckets.iter().find(|bucket| bucket.name == name);
    let bucket =
        bucket.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no bucket {name:?}")).hint("`afar ls` shows the buckets"))?;
    session.out.either(|| super::bucket::json(bucket), || super::bucket::words(bucket))?;
    Ok(0)
}

fn json(info: &Info) -> Value {
    json!({
        "id": info.object.to_string(),
        "bucket": info.bucket,
        "key": info.key,
        "version": info.version.to_string(),
        "size": info.size,
        "modified": units::time(info.modified),
        "metadata": info.metadata,
        "sites": info.sites,
        "distance_km": info.distance.km(),
        "state": info.state,
    })
}

fn words(info: &Info) -> String {
    let mut lines = vec![
        units::printable(&format!("{}/{}", info.bucket, info.key)).into_owned(),
        format!("  id        {}", info.object),
        format!("  version   {}", info.version),
        format!("  size      {} ({} bytes)", units::bytes(info.size), units::grouped(info.size)),
        format!("  modified  {}", units::time(info.modified)),
        format!("  state     {}", info.state),
    ];
    let apart = units::apart(info.sites.len(), info.distance.km());
    lines.push(format!("  copies    {}{apart}", info.sites.join(", ")));
    lines.extend(info.metadata.iter().map(|(name, value)| format!("  {name}: {value}")));
    lines.join("\n")
}
