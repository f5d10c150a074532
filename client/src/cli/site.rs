//! `afar site`: places come into use with their first node, are corrected, retired, and lost.
use super::{
    Session, draining,
    operate::{Options, carry_out, sit_down},
};
use crate::error::Error;
use afar_model::{
    document::Document,
    geo::Coordinates,
    layout::{Duty, Site},
    units::Metres,
};
use clap::{Args, Subcommand};

/// Correct, retire and give up sites
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand over everything that a site holds; said again, how far that is
    Drain(Named),
    /// Take a site whose nodes are drained out of the layout
    Remove(Named),
    /// Say that a site is lost for good: nobody waits for it, and nothing is removed anywhere until that is released
    Lost(Named),
    /// A site that was lost has been built again, with new nodes
    Rebuilt(Named),
    /// Correct a site's place, country or provider
    Set(Set),
}

/// Name a site
#[derive(Debug, Args)]
pub struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    options: Options,
}

/// Correct a site
#[derive(Debug, Args)]
pub struct Set {
    /// Its name
    name: String,
    /// Where it really is, in degrees
    #[arg(long, value_name = "LAT,LON", allow_hyphen_values = true)]
    place: Option<Coordinates>,
    /// By how many metres that may be off
    #[arg(long, value_name = "METRES")]
    uncertainty: Option<u64>,
    /// ISO 3166-1, two letters
    #[arg(long, value_name = "CC")]
    country: Option<String>,
    /// Whose it is
    #[arg(long)]
    provider: Option<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    let (name, options, note): (_, _, &str) = match &command {
        Command::Drain(Named { name, options }) => (name.clone(), options.clone(), "drain site"),
        Command::Remove(Named { name, options }) => (name.clone(), options.clone(), "remove site"),
        Command::Lost(Named { name, options }) => (name.clone(), options.clone(), "lost site"),
        Command::Rebuilt(Named { name, options }) => (name.clone(), options.clone(), "rebuilt site"),
        Command::Set(Set { name, options, .. }) => (name.clone(), options.clone(), "correct site"),
    };
    let mut desk = sit_down(&options).await?;
    let mut document = desk.operator.change(format!("{note} {name}"))?;
    match command {
        Command::Drain(_) if named(&mut document, &name)?.duty == Duty::Draining => {
            let nodes: Vec<String> = document.nodes.iter().filter(|node| node.site == name).map(|node| node.name.clone()).collect();
            return draining::tell(session, &desk, &nodes).await;
        }
        Command::Drain(_) => duties(&mut document, &name, Duty::Draining)?,
        Command::Remove(_) => duties(&mut document, &name, Duty::Removed)?,
        Command::Lost(_) => duties(&mut document, &name, Duty::Lost)?,
        Command::Rebuilt(_) => named(&mut document, &name)?.duty = Duty::Active,
        Command::Set(change) => correct(&mut document, change)?,
    }
    carry_out(session, &mut desk, document, &options).await
}

fn named<'a>(document: &'a mut Document, name: &str) -> Result<&'a mut Site, Error> {
    let known = document.sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = document.sites.iter_mut().find(|site| site.name == name);
    found.ok_or_else(|| Error::usage(format!("the layout names no site {name:?}; it names {known}")))
}

/// A site and all its nodes that still take part.
fn duties(document: &mut Document, name: &str, duty: Duty) -> Result<(), Error> {
    named(document, name)?.duty = duty;
    for node in document.nodes.iter_mut().filter(|node| node.site == name && node.duty.is_member()) {
        node.duty = duty;
    }
    Ok(())
}

fn correct(document: &mut Document, change: Set) -> Result<(), Error> {
    let site = named(document, &change.name)?;
    if change.place.is_none() && change.uncertainty.is_none() && change.country.is_none() && change.provider.is_none() {
        return Err(Error::usage("nothing to change").hint("say --place, --uncertainty, --country or --provider"));
    }
    let moved = change.place.is_some() || change.uncertainty.is_some();
    site.coordinates = change.place.unwrap_or(site.coordinates);
    site.uncertainty = change.uncertainty.map_or(site.uncertainty, Metres);
    if let Some(country) = change.country {
        site.country = country.to_ascii_uppercase();
    }
    if let Some(provider) = change.provider {
        site.provider = provider;
    }
    if moved {
        document.moved.push(change.name);
    }
    Ok(())
}
