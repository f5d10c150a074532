//! Whether the others could hold everything after a loss.
use super::{CheckResult, Stored, check};
use afar_model::{
    geo::Coordinates,
    layout::{Duty, Layout, Node, Site},
    limits::PARTITIONS_DEFAULT,
    placement::Geography,
    plan::{self, Survivor},
    policy::Policy,
    units::Metres,
};
use afar_proto::v1;

/// Whether what is stored would still fit, far apart, without any one site (for the policy of new buckets).
pub(super) fn survivors_check(newest: &v1::NodeStatus, stored: &Stored) -> CheckResult {
    let name = "survivors";
    let policy = newest.default_policy.as_ref().and_then(|policy| Policy::try_from(policy).ok());
    let (Some(policy), Some(layout)) = (policy, layout_of(newest)) else {
        return check(name, "unknown", "the layout is not understood here");
    };
    let weight = |node| if layout.duty(node) == Duty::Active { layout.node(node).map_or(0, |node| node.capacity) } else { 0 };
    let weights: Vec<u64> = layout.node_indexes().map(weight).collect();
    let used = |survivor: &Survivor| layout.nodes_at(survivor.site).any(|node| layout.duty(node) == Duty::Active);
    let survivors = plan::survivors(&policy, &Geography::claimed(&layout), &weights, stored.total());
    let without: Vec<String> = survivors
        .iter()
        .filter(|survivor| used(survivor) && !survivor.holds())
        .map(|survivor| match survivor.usable {
            None => format!("without {} no writes: the rest is not far enough apart", layout.site_name(survivor.site)),
            Some(_) => format!("without {} there is too little room, by {} bytes", layout.site_name(survivor.site), survivor.short),
        })
        .collect();
    if without.is_empty() && !stored.complete {
        return check(name, "unknown", "what is stored has not been counted to the end");
    }
    if without.is_empty() {
        return check(name, "ok", "the others could hold everything after the loss of any one site");
    }
    // Two sites are how most begin: that the second is needed is no news, and their data are safe.
    let short = survivors.iter().any(|survivor| used(survivor) && survivor.usable.is_some() && survivor.short > 0);
    check(name, if short { "warning" } else { "ok" }, without.join("; "))
}

fn layout_of(newest: &v1::NodeStatus) -> Option<Layout> {
    let duty = |name: &str| match name {
        "draining" => Duty::Draining,
        "removed" => Duty::Removed,
        "lost" => Duty::Lost,
        _ => Duty::Active,
    };
    let site = |site: &v1::SiteInfo| {
        Some(Site {
            name: site.name.clone(),
            coordinates: Coordinates::new(site.latitude, site.longitude).ok()?,
            uncertainty: Metres(site.uncertainty_metres),
            country: site.country.clone(),
            provider: site.provider.clone(),
            duty: duty(&site.duty),
        })
    };
    let node = |node: &v1::NodeInfo| Node {
        name: node.name.clone(),
        site: node.site.clone(),
        capacity: node.capacity_bytes,
        endpoint: node.endpoint.clone(),
        duty: duty(&node.duty),
    };
    let sites = newest.sites.iter().map(site).collect::<Option<Vec<_>>>()?;
    Layout::new(newest.layout_version, PARTITIONS_DEFAULT, sites, newest.nodes.iter().map(node).collect()).ok()
}
