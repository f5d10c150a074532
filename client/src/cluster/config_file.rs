//! A node's `afard.toml`, as the node reads it. Written by hand rather than derived, so that it explains itself to whoever
//! opens it next.
use super::{
    durable,
    init::{Blueprint, NodePlan, public_keys, toml_list},
};
use crate::{
    cli::{config::read_bounded, units},
    error::Error,
    limits,
};
use afar_model::{
    document::PublicKey,
    geo::Coordinates,
    layout::{Duty, Site},
    policy::{DegradedWrites, Durability, Policy, VerifyDistance},
    units::Metres,
};
use std::{fmt::Write as _, path::Path};

/// How a node's configuration says which layout it begins with.
#[derive(Debug, Clone, Copy)]
pub enum LayoutSource<'a> {
    /// In the file itself, with those who may change it.
    Inline(&'a [PublicKey]),
    /// In the file `layouts.chain` beside it.
    Chain,
}

/// The text of a node's configuration.
pub fn render(plan: &Blueprint, node: &NodePlan, layout: LayoutSource<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, plan, node, layout);
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn write_all(out: &mut String, plan: &Blueprint, node: &NodePlan, layout: LayoutSource<'_>) -> std::fmt::Result {
    writeln!(out, "# Node {} of cluster {}. Relative paths are relative to this file's folder.", node.name, plan.cluster)?;
    writeln!(out, "cluster = {}", quoted(&plan.cluster))?;
    writeln!(out, "node = {}", quoted(&node.name))?;
    writeln!(out, "# Clients and peers, gRPC over TLS.")?;
    writeln!(out, "listen = {}", quoted(&node.listen()))?;
    writeln!(out, "# One folder per disk.")?;
    writeln!(out, "data = [\"data\"]")?;
    writeln!(out, "# The node's list of its directories: keep it on another disk than them if you can.")?;
    writeln!(out, "state = \"state\"")?;
    writeln!(out, "pid_file = \"pid\"")?;
    writeln!(out, "# Probes and metrics over HTTPS, if you want them.\n# http = {{ listen = \"[::]:7702\" }}")?;
    writeln!(out, "\n[tls]\nca = \"ca.crt\"\ncertificate = \"node.crt\"\nkey = \"node.key\"")?;
    writeln!(out, "\n[secrets]\ncluster = \"cluster.secret\"\nadmin_key = \"admin.key\"")?;
    write_policy(out, plan)?;
    match layout {
        LayoutSource::Inline(custodians) => write_layout(out, plan, custodians),
        LayoutSource::Chain => {
            writeln!(out, "\n# Sites and nodes, signed; the node keeps later ones itself.\n[layout]\nchain = \"layouts.chain\"")
        }
    }
}

/// A distance as the file says it: a number, whole or not.
#[derive(Debug, serde::Deserialize)]
#[serde(try_from = "f64")]
struct Kilometres(Metres);

impl TryFrom<f64> for Kilometres {
    type Error = &'static str;
    fn try_from(km: f64) -> Result<Self, Self::Error> {
        crate::cli::policy::metres(km).map(Self).ok_or("min_distance_km: a number from 0 to 40000")
    }
}

/// A policy as the file says it.
#[derive(Debug, serde::Deserialize)]
pub struct PolicyText {
    copies: u8,
    far_copies: u8,
    min_distance_km: Kilometres,
    level: Durability,
    home: Option<String>,
    countries: Vec<String>,
    max_copies_per_provider: u8,
    verify_distance: VerifyDistance,
    degraded_writes: DegradedWrites,
}

impl From<PolicyText> for Policy {
    fn from(text: PolicyText) -> Self {
        Self {
            copies: text.copies,
            far_copies: text.far_copies,
            min_distance: text.min_distance_km.0,
            level: text.level,
            home: text.home,
            countries: text.countries,
            max_copies_per_provider: text.max_copies_per_provider,
            verify_distance: text.verify_distance,
            degraded_writes: text.degraded_writes,
        }
    }
}

/// The `[policy]` of a plan, as a section.
pub fn policy(plan: &Blueprint) -> String {
    let mut text = String::new();
    let _ = write_policy(&mut text, plan);
    text
}

fn write_policy(out: &mut String, plan: &Blueprint) -> std::fmt::Result {
    let policy = &plan.policy;
    writeln!(out, "\n# How new buckets are kept unless they say otherwise.\n[policy]")?;
    writeln!(out, "copies = {}", policy.copies)?;
    writeln!(out, "far_copies = {}", policy.far_copies)?;
    match (policy.min_distance.0 / 1000, policy.min_distance.0 % 1000) {
        (km, 0) => writeln!(out, "min_distance_km = {km}")?,
        (km, metres) => writeln!(out, "min_distance_km = {km}.{metres:03}")?,
    }
    writeln!(out, "level = {}", quoted(&policy.level.to_string()))?;
    if let Some(home) = &policy.home {
        writeln!(out, "home = {}", quoted(home))?;
    }
    let countries: Vec<String> = policy.countries.iter().map(|country| quoted(country)).collect();
    writeln!(out, "countries = [{}]", countries.join(", "))?;
    writeln!(out, "max_copies_per_provider = {}", policy.max_copies_per_provider)?;
    let verify = match policy.verify_distance {
        VerifyDistance::Enforce => "enforce",
        VerifyDistance::Warn => "warn",
        VerifyDistance::Off => "off",
    };
    writeln!(out, "# \"off\" only for trials on one machine: then claimed distances are believed, whatever the clock says.")?;
    writeln!(out, "verify_distance = \"{verify}\"")?;
    let degraded = match policy.degraded_writes {
        DegradedWrites::Refuse => "refuse",
        DegradedWrites::Queue => "queue",
    };
    writeln!(out, "degraded_writes = \"{degraded}\"")
}

fn write_layout(out: &mut String, plan: &Blueprint, custodians: &[PublicKey]) -> std::fmt::Result {
    writeln!(
        out,
        "\n# What the cluster begins with: the same on every node. Later layouts are signed, and nodes keep them themselves.\n[layout]"
    )?;
    writeln!(out, "version = 1\npartitions = {}", plan.partitions)?;
    write!(out, "{}", custodian_lines(custodians))?;
    for site in &plan.sites {
        writeln!(out, "\n[[layout.sites]]\nname = {}", quoted(&site.name))?;
        // With a decimal point, for TOML tells integers and floats apart.
        writeln!(out, "latitude = {:?}\nlongitude = {:?}", site.coordinates.latitude(), site.coordinates.longitude())?;
        writeln!(out, "uncertainty_m = {}", site.uncertainty.0)?;
        writeln!(out, "country = {}\nprovider = {}", quoted(&site.country), quoted(&site.provider))?;
    }
    for node in &plan.nodes {
        writeln!(out, "\n[[layout.nodes]]\nname = {}\nsite = {}", quoted(&node.name), quoted(&node.site))?;
        writeln!(out, "endpoint = {}", quoted(&node.endpoint()))?;
        writeln!(out, "capacity = \"{}\"", units::exact_bytes(node.capacity))?;
    }
    Ok(())
}

/// What a node's file says under `[layout]` of those who may sign later ones.
pub fn custodian_lines(custodians: &[PublicKey]) -> String {
    format!("# Public keys of those who may change it.\ncustodians = {}\n", toml_list(custodians))
}

/// Names custodians in a node's file that names none; everything else in it stays as it is, comments included.
///
/// # Errors
/// If the file has no line `[layout]`, names others, or cannot be written.
pub fn name_custodians(path: &Path, custodians: &[PublicKey]) -> Result<(), Error> {
    let by_hand = || {
        let lines = custodian_lines(custodians);
        Error::usage(format!("{}: where custodians are to be named is not found", path.display()))
            .hint(format!("put this under [layout] yourself, and try again:\n{lines}"))
    };
    let present = NodeFile::read(path)?.custodians;
    if present.as_slice() == custodians {
        return Ok(());
    }
    let text = read_bounded(path, limits::CONFIG_BYTES_MAX)?;
    let header = text.lines().position(|line| line.trim() == "[layout]").filter(|_| present.is_empty()).ok_or_else(by_hand)?;
    let lines = text.lines().enumerate().flat_map(|(number, line)| {
        let added = (number == header).then(|| custodian_lines(custodians));
        [format!("{line}\n"), added.unwrap_or_default()]
    });
    durable::write(path, lines.collect::<String>().as_bytes(), durable::PUBLIC).map_err(|error| Error::io(path.display(), &error))?;
    // What was meant is what a node will read, or nobody is told that it was done.
    if NodeFile::read(path)?.custodians == custodians { Ok(()) } else { Err(by_hand()) }
}

/// What an operator's folder must know of a node's file.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFile {
    /// What the cluster began with, and how buckets are kept unless they say otherwise.
    pub plan: Blueprint,
    /// Who may sign later layouts.
    pub custodians: Vec<PublicKey>,
}

#[derive(serde::Deserialize)]
struct FileText {
    cluster: String,
    #[serde(default)]
    policy: toml::Table,
    layout: LayoutText,
}

#[derive(serde::Deserialize)]
struct LayoutText {
    #[serde(default = "first_version")]
    version: u64,
    #[serde(default = "usual_partitions")]
    partitions: u32,
    #[serde(default)]
    custodians: Vec<String>,
    sites: Vec<SiteText>,
    nodes: Vec<NodeText>,
}

const fn first_version() -> u64 {
    1
}

const fn usual_partitions() -> u32 {
    afar_model::limits::PARTITIONS_DEFAULT
}

#[derive(serde::Deserialize)]
struct SiteText {
    name: String,
    latitude: f64,
    longitude: f64,
    #[serde(default)]
    uncertainty_m: u64,
    country: String,
    #[serde(default)]
    provider: String,
}

#[derive(serde::Deserialize)]
struct NodeText {
    name: String,
    site: String,
    endpoint: String,
    capacity: toml::Value,
}

impl NodeFile {
    /// Reads a node's file. What concerns that node alone is not looked at: the node does that.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::usage(format!("{}: {why}", path.display()));
        let text = read_bounded(path, limits::CONFIG_BYTES_MAX)?;
        let file: FileText = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        if file.layout.version != 1 {
            return Err(wrong(format!("[layout] has version {}, and a chain begins with 1", file.layout.version)));
        }
        let site = |site: SiteText| {
            let coordinates = Coordinates::new(site.latitude, site.longitude).map_err(|error| wrong(error.to_string()))?;
            let SiteText { name, uncertainty_m, country, provider, .. } = site;
            Ok(Site { name, coordinates, uncertainty: Metres(uncertainty_m), country, provider, duty: Duty::Active })
        };
        let node = |node: NodeText| {
            let (host, port) = address(&node.endpoint).map_err(&wrong)?;
            let capacity = match &node.capacity {
                toml::Value::Integer(bytes) => u64::try_from(*bytes).map_err(|_| wrong(format!("node {}: its capacity", node.name)))?,
                value => units::parse_bytes(value.as_str().unwrap_or_default()).map_err(|error| wrong(error.message().to_owned()))?,
            };
            Ok(NodePlan { name: node.name, site: node.site, host, port, capacity })
        };
        Ok(Self {
            custodians: public_keys(&file.layout.custodians).map_err(wrong)?,
            plan: Blueprint {
                cluster: file.cluster,
                sites: file.layout.sites.into_iter().map(site).collect::<Result<_, Error>>()?,
                nodes: file.layout.nodes.into_iter().map(node).collect::<Result<_, Error>>()?,
                policy: whole_policy(file.policy).map_err(wrong)?,
                partitions: file.layout.partitions,
            },
        })
    }

    /// In which part two nodes' files say different things of the cluster.
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let digest = |file: &Self| file.plan.layout().ok().map(|layout| layout.digest());
        let parts = [
            ("cluster", self.plan.cluster == other.plan.cluster),
            ("[policy]", self.plan.policy == other.plan.policy),
            ("[layout]", digest(self).is_some() && digest(self) == digest(other)),
            ("custodians", self.custodians == other.custodians),
        ];
        parts.into_iter().find(|(_, same)| !same).map(|(part, _)| part)
    }
}

/// `https://HOST[:PORT]`, as a node's file has it.
fn address(endpoint: &str) -> Result<(String, u16), String> {
    let rest = endpoint.strip_prefix("https://").ok_or_else(|| format!("endpoint {endpoint:?}: is no https"))?;
    crate::cli::cluster::address(rest.trim_end_matches('/'))
}

/// A `[policy]` with what it leaves to the program: a node reads it in the same way.
fn whole_policy(mut said: toml::Table) -> Result<Policy, String> {
    let usual: toml::Table = policy(&Blueprint::new("usual")).parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    for (name, value) in usual.get("policy").and_then(toml::Value::as_table).into_iter().flatten() {
        said.entry(name.as_str()).or_insert_with(|| value.clone());
    }
    let text: PolicyText = said.try_into().map_err(|error: toml::de::Error| format!("[policy]: {}", error.message()))?;
    Ok(text.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::layout::examples;

    #[test]
    fn the_file_is_toml_and_says_what_was_planned() {
        let mut site = examples::site("paris", "FR", 48.0, 2.0).unwrap();
        site.provider = "a \"quoted\" = one".into();
        let node = NodePlan { name: "paris-1".into(), site: "paris".into(), host: "::1".into(), port: 7700, capacity: 3 << 40 };
        let plan = Blueprint { sites: vec![site], nodes: vec![node.clone()], ..Blueprint::new("trial") };
        let text = render(&plan, &node, LayoutSource::Inline(&[]));
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["node"].as_str(), Some("paris-1"));
        assert_eq!(value["listen"].as_str(), Some("[::1]:7700"));
        assert_eq!(value["layout"]["sites"][0]["latitude"].as_float(), Some(48.0));
        assert_eq!(value["layout"]["sites"][0]["provider"].as_str(), Some("a \"quoted\" = one"));
        assert_eq!(value["layout"]["nodes"][0]["endpoint"].as_str(), Some("https://[::1]:7700"));
        assert_eq!(value["layout"]["nodes"][0]["capacity"].as_str(), Some("3TiB"));
        assert_eq!(value["policy"]["min_distance_km"].as_integer(), Some(700));
        let (folder, key) = (tempfile::tempdir().unwrap(), [7; 32]);
        let path = folder.path().join("afard.toml");
        std::fs::write(&path, render(&plan, &node, LayoutSource::Inline(&[key]))).unwrap();
        assert_eq!(NodeFile::read(&path).unwrap(), NodeFile { plan, custodians: vec![key] }, "and is read as it was written");
    }

    #[test]
    fn a_distance_is_written_and_read_to_the_metre() {
        for metres in [0, 700_000, 1_024_800, 1_024_812, 20_000_001] {
            let plan = Blueprint { policy: Policy { min_distance: Metres(metres), ..Policy::default() }, ..Blueprint::new("trial") };
            let section: toml::Table = policy(&plan).parse().unwrap();
            let said = section["policy"].as_table().unwrap().clone();
            assert_eq!(whole_policy(said).unwrap(), plan.policy, "{metres}");
        }
        for said in ["min_distance_km = -1", "min_distance_km = nan", "min_distance_km = 40000.5"] {
            assert!(whole_policy(said.parse().unwrap()).is_err(), "{said}");
        }
    }

    #[test]
    fn custodians_are_named_where_there_were_none_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("afard.toml");
        let text = "cluster = \"c\"\n  [layout] # this line is not taken for the section\n";
        std::fs::write(&path, text).unwrap();
        assert!(name_custodians(&path, &[[7; 32]]).is_err());
        let before = "cluster = \"c\"\n[limits]\nsegment = \"1MiB\" # ours\n[layout]\n# two sites\n";
        let after = "[[layout.sites]]\nname = \"s\"\nlatitude = 48\nlongitude = 7\ncountry = \"FR\"\n[[layout.nodes]]\nname = \"n\"\n\
                     site = \"s\"\nendpoint = \"https://[::1]:7700\"\ncapacity = 5\n";
        std::fs::write(&path, format!("{before}{after}")).unwrap();
        name_custodians(&path, &[[7; 32]]).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        let line = custodian_lines(&[[7; 32]]);
        assert_eq!(written, before.replace("[layout]\n", &format!("[layout]\n{line}")) + after);
        name_custodians(&path, &[[7; 32]]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), written, "once is enough");
        assert!(name_custodians(&path, &[[8; 32]]).is_err(), "others are not replaced");
        let file = NodeFile::read(&path).unwrap();
        assert_eq!((file.plan.policy, file.plan.nodes[0].capacity, file.plan.partitions), (Policy::default(), 5, usual_partitions()));
    }
}
