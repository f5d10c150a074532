//! `afar cp`: within the cluster; no byte of the object passes through here.
use super::Session;
use crate::{
    error::Error,
    names::{Named, NamedBy, Place},
};
use afar_model::policy::Durability;
use clap::Args;
use std::time::Instant;

/// Copy an object within the cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  afar cp backups/monday.tar archive/2026/
  afar ls --versions backups/monday.tar       what was there before, with ids, then
  afar cp --version ID backups/monday.tar backups/monday.tar   brings it back")]
pub struct Arguments {
    /// BUCKET/KEY
    from: String,
    /// BUCKET/KEY, BUCKET or BUCKET/PREFIX/
    to: String,
    /// Copy this version, which may be of a key that was removed
    #[arg(long, value_name = "ID")]
    version: Option<afar_model::id::IdPrefix>,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let from = arguments.from.parse::<Named>()?;
    let NamedBy::Key(key) = &from.by else {
        return Err(Error::usage("a copy needs a key to copy from").hint("write BUCKET/KEY; `afar stat BUCKET@ID` shows the key"));
    };
    let to: Place = arguments.to.parse()?;
    let name = key.rsplit('/').next().unwrap_or(key);
    let target = if to.is_folder() { format!("{}{name}", to.path) } else { to.path.clone() };
    afar_model::record::check_key(&target).map_err(|error| Error::usage(format!("{}: {error}", arguments.to)))?;
    let from = from.at_version(arguments.version)?;
    let client = session.client()?;
    let from = client.resolve(&from).await?;
    let begun = Instant::now();
    let stored = client.copy(&from, &to.bucket, &target, None).await?;
    let took = begun.elapsed();
    session.out.either(|| super::stored_json(&stored, took), || super::stored_words(&stored, took))?;
    Ok(if stored.durability == Durability::Local { 5 } else { 0 })
}
