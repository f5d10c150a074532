//! A node's `afard.toml`, as the node reads it. Written by hand rather than derived, so that it explains itself to whoever
//! opens it next.
use super::init::{Blueprint, NodePlan};
use afar_model::{
    document::PublicKey,
    policy::{DegradedWrites, Durability, Policy, VerifyDistance},
    units::Metres,
};
use std::fmt::Write as _;

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

/// A policy as the file says it.
#[derive(Debug, serde::Deserialize)]
pub struct PolicyText {
    copies: u8,
    far_copies: u8,
    min_distance_km: u64,
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
            min_distance: Metres::from_km(text.min_distance_km),
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
    writeln!(out, "min_distance_km = {}", policy.min_distance.0 / 1000)?;
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
    writeln!(out, "# Public keys of those who may change it.")?;
    writeln!(out, "custodians = [{}]", custodians.iter().map(|key| quoted(&hex::encode(key))).collect::<Vec<_>>().join(", "))?;
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
        writeln!(out, "capacity = \"{}\"", crate::cli::units::exact_bytes(node.capacity))?;
    }
    Ok(())
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
    }
}
