//! `afar cluster`: the arguments; what is written is in [`crate::cluster`], what changes keys in [`super::rekey`].
// Doc comments of arguments are their help texts: square brackets are syntax there, not links.
#![allow(rustdoc::broken_intra_doc_links)]
use super::{PolicyFlags, Session, adopt, policy, rekey, units};
use crate::{
    cluster::{Blueprint, NodePlan, create},
    error::Error,
};
use afar_model::{
    geo::Coordinates,
    layout::{Duty, Site},
    limits,
    policy::Policy,
    units::Metres,
};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

/// Make a cluster, and replace the keys that it rests on
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a certificate authority and a folder for each node
    Init(Init),
    /// Give a cluster of an earlier version the keys that sign layouts
    Adopt(adopt::Adopt),
    /// Replace the keys that a cluster rests on, while it serves
    Rekey(rekey::Rekey),
    /// Make an operator's folder anew, when it was lost or stolen
    Recover(rekey::Recover),
}

/// Make a certificate authority and a folder for each node
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  afar cluster init hosting --name hosting \\
    --site strasbourg=48.5734,7.7521,FR --site warsaw=52.2297,21.0122,PL \\
    --node s1@strasbourg=s1.example.org:7700,4TiB --node w1@warsaw=w1.example.org:7700,4TiB")]
pub struct Init {
    /// Folder to make
    dir: PathBuf,
    /// The cluster's name
    #[arg(long)]
    name: String,
    /// NAME=LAT,LON,COUNTRY[,PROVIDER[,UNCERTAINTY_M]] (repeatable)
    #[arg(long, value_name = "SITE", value_parser = site)]
    site: Vec<Site>,
    /// NAME@SITE=HOST:PORT[,CAPACITY] (repeatable; capacity 1TiB)
    #[arg(long, value_name = "NODE", value_parser = node)]
    node: Vec<NodePlan>,
    /// Slices of the hash space, fixed for life
    #[arg(long, value_name = "N", default_value_t = limits::PARTITIONS_DEFAULT)]
    partitions: u32,
    #[command(flatten)]
    policy: PolicyFlags,
}

pub(super) async fn run(session: &Session, command: Command) -> Result<u8, Error> {
    match command {
        Command::Init(arguments) => init(session, arguments),
        Command::Adopt(arguments) => adopt::run(session, arguments).await,
        Command::Rekey(arguments) => rekey::run(session, arguments).await,
        Command::Recover(arguments) => rekey::recover(session, arguments).await,
    }
}

fn init(session: &Session, arguments: Init) -> Result<u8, Error> {
    let plan = Blueprint {
        cluster: arguments.name,
        sites: arguments.site,
        nodes: arguments.node,
        policy: arguments.policy.changing(&Policy::default())?,
        partitions: arguments.partitions,
    };
    let dir = create(&arguments.dir, &plan)?;
    session.out.either(
        || json!({"dir": dir.display().to_string(), "cluster": plan.cluster, "nodes": plan.nodes.iter().map(|node| &node.name).collect::<Vec<_>>()}),
        || words(&plan, &dir.display().to_string()),
    )?;
    Ok(0)
}

fn words(plan: &Blueprint, dir: &str) -> String {
    let mut lines =
        vec![format!("made cluster {} in {dir}", plan.cluster), format!("policy: {}", policy::words(&plan.policy)), String::new()];
    lines.push("next:".into());
    if plan.nodes.is_empty() {
        lines.push(format!("  afar node add NAME --site SITE=LAT,LON,COUNTRY --at HOST:PORT -o BUNDLE --dir {dir}"));
    }
    for node in &plan.nodes {
        lines.push(format!("  copy {dir}/nodes/{} to {} and run: afard --config afard.toml", node.name, node.host));
    }
    lines.push(format!("  keep {dir}/ca and {dir}/layout away from the nodes: whoever has them can join, and say what the cluster is"));
    lines.push(format!("  keep {dir}/recovery somewhere else entirely: it is the second key for the day that this machine burns"));
    lines.push(format!("  . {dir}/client/env && afar status"));
    lines.join("\n")
}

pub(super) fn site(text: &str) -> Result<Site, String> {
    let form = "write NAME=LAT,LON,COUNTRY[,PROVIDER[,UNCERTAINTY_M]]";
    let (name, rest) = text.split_once('=').ok_or(form)?;
    let parts: Vec<&str> = rest.split(',').map(str::trim).collect();
    let (latitude, longitude, country) = match parts.as_slice() {
        [latitude, longitude, country, ..] if parts.len() <= 5 => (*latitude, *longitude, *country),
        _ => return Err(form.into()),
    };
    let coordinates: Coordinates = format!("{latitude},{longitude}").parse().map_err(|error| format!("{error}"))?;
    let uncertainty = match parts.get(4) {
        Some(metres) => metres.parse().map_err(|_| format!("uncertainty {metres:?}: write whole metres"))?,
        None => 0,
    };
    Ok(Site {
        name: name.trim().to_owned(),
        coordinates,
        uncertainty: Metres(uncertainty),
        country: country.to_ascii_uppercase(),
        provider: parts.get(3).map(|provider| (*provider).to_owned()).unwrap_or_default(),
        duty: Duty::Active,
    })
}

pub(super) const CAPACITY_DEFAULT: u64 = 1 << 40;

fn node(text: &str) -> Result<NodePlan, String> {
    let form = "write NAME@SITE=HOST:PORT[,CAPACITY]";
    let (who, rest) = text.split_once('=').ok_or(form)?;
    let (name, site) = who.split_once('@').ok_or(form)?;
    let (address, capacity) = match rest.split_once(',') {
        Some((address, capacity)) => (address, units::parse_bytes(capacity).map_err(|error| error.to_string())?),
        None => (rest, CAPACITY_DEFAULT),
    };
    let (host, port) = self::address(address)?;
    Ok(NodePlan { name: name.trim().to_owned(), site: site.trim().to_owned(), host, port, capacity })
}

/// `HOST:PORT`, an IPv6 address in brackets.
pub(crate) fn address(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.trim().rsplit_once(':').ok_or_else(|| format!("{text:?}: write HOST:PORT"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if host.is_empty() || !host.chars().all(valid) {
        return Err(format!("host {host:?}: write a DNS name or an address"));
    }
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("port {port:?}: write a number from 1 to 65535"))?;
    Ok((host.to_owned(), port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_a_name_and_a_place() {
        let paris = site("paris=48.85, 2.35,fr,Some Host,500").unwrap();
        assert_eq!(
            (paris.name.as_str(), paris.country.as_str(), paris.provider.as_str(), paris.uncertainty),
            ("paris", "FR", "Some Host", Metres(500))
        );
        for text in ["paris", "paris=1,2", "paris=91,0,FR", "paris=NaN,0,FR", "paris=1,2,FR,p,x", "paris=1,2,FR,p,1,2"] {
            assert!(site(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_is_a_name_a_site_and_an_address() {
        let n = node("n1@paris=[::1]:7700,4TiB").unwrap();
        assert_eq!((n.host.as_str(), n.port, n.capacity), ("::1", 7700, 4 << 40));
        assert_eq!(node("n1@paris=a.example:7700").unwrap().capacity, CAPACITY_DEFAULT);
        for text in ["n1", "n1=h:1", "n1@paris=h", "n1@paris=h:0", "n1@paris=h:99999", "n1@paris=:1", "n1@paris=h h:1", "n1@paris=h:1,many"]
        {
            assert!(node(text).is_err(), "{text}");
        }
    }
}
