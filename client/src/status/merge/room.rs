//! Whether the others could hold everything after a loss, for every policy that is in use.
//!
//! What is warned of can be mended before the fire: too little room, and data of which there is only one copy. That new writes
//! would have to wait for a replacement is said, and is no warning: what is stored stays, and two sites are how most begin.
use super::{CheckResult, Stored, check};
use crate::answers::Bucket;
use afar_model::{
    geo::Coordinates,
    layout::{Duty, Layout, Node, Site, SiteIndex},
    limits::PARTITIONS_DEFAULT,
    placement::{Geography, Placement},
    plan,
    policy::Policy,
    units::Metres,
};
use afar_proto::v1;
use std::collections::BTreeMap;

/// Buckets that are kept alike, and what the loss of each site would leave them.
struct Kept {
    policy: Policy,
    /// Their names; none: buckets that are still to be made.
    buckets: Vec<String>,
    /// Their logical bytes.
    stored: u64,
    /// What the others could hold of such data alone, by the site that is lost; `None`: no set of them is far.
    usable: BTreeMap<SiteIndex, Option<u64>>,
}

/// Whether what is stored would still fit, far apart, without any one site. `buckets`: those whose policies are shown to us, of
/// so many that nodes `know`.
pub(super) fn survivors_check(newest: &v1::NodeStatus, stored: &Stored, buckets: &[Bucket], known: u64) -> CheckResult {
    let name = "survivors";
    let default = newest.default_policy.as_ref().and_then(|policy| Policy::try_from(policy).ok());
    let (Some(default), Some(layout)) = (default, layout_of(newest)) else {
        return check(name, "unknown", "the layout is not understood here");
    };
    let kept = kept(&default, &layout, stored, buckets);
    let takes = |site: &SiteIndex| layout.nodes_at(*site).any(|node| layout.duty(node) == Duty::Active);
    let sites: Vec<SiteIndex> = layout.site_indexes().filter(takes).collect();
    let mut warnings: Vec<String> = kept.iter().filter_map(|kept| alone(kept, &layout)).collect();
    warnings.extend(sites.iter().filter_map(|site| too_little(&kept, *site, layout.site_name(*site))));
    let waiting = waiting(&kept, &sites, &layout);
    let unseen = known.saturating_sub(buckets.len() as u64);
    if !warnings.is_empty() {
        check(name, "warning", [warnings, waiting].concat().join("; "))
    } else if !stored.complete {
        check(name, "unknown", "what is stored has not been counted to the end")
    } else if unseen > 0 {
        check(name, "unknown", format!("how {unseen} of {known} buckets are kept is not shown to this key"))
    } else if waiting.is_empty() {
        check(name, "ok", "the others could hold everything after the loss of any one site")
    } else {
        check(name, "ok", format!("what has its copies stays readable without any one site; {}", waiting.join("; ")))
    }
}

/// Every policy in use, that of buckets to come among them. What is stored in buckets that are not shown counts with those.
fn kept(default: &Policy, layout: &Layout, stored: &Stored, buckets: &[Bucket]) -> Vec<Kept> {
    let weight = |node| if layout.duty(node) == Duty::Active { layout.node(node).map_or(0, |node| node.capacity) } else { 0 };
    let weights: Vec<u64> = layout.node_indexes().map(weight).collect();
    let fresh = |policy: &Policy| {
        let survivors = plan::survivors(policy, &Geography::claimed(layout), &weights, 0);
        let usable = survivors.iter().map(|survivor| (survivor.site, survivor.usable)).collect();
        Kept { policy: policy.clone(), buckets: Vec::new(), stored: 0, usable }
    };
    let mut kept = BTreeMap::from([(default.placement_key(), fresh(default))]);
    let mut shown = 0;
    for bucket in buckets {
        let bytes = stored.buckets.get(bucket.id.as_bytes().as_slice()).copied().unwrap_or(0);
        let entry = kept.entry(bucket.policy.placement_key()).or_insert_with(|| fresh(&bucket.policy));
        entry.buckets.push(bucket.name.clone());
        entry.stored = entry.stored.saturating_add(bytes);
        shown += bytes;
    }
    if let Some(default) = kept.get_mut(&default.placement_key()) {
        default.stored = default.stored.saturating_add(stored.total().saturating_sub(shown));
    }
    kept.into_values().collect()
}

/// What no other site has, or none is to have.
fn alone(kept: &Kept, layout: &Layout) -> Option<String> {
    let who = kept.who();
    if kept.is_impossible(layout) {
        return Some(format!("{who}: no sites that are left keep to the policy, whatever their room (check `policy` says why)"));
    }
    (kept.policy.copies < 2).then(|| format!("{who}: one copy of everything, and what a site holds is lost with it"))
}

fn too_little(kept: &[Kept], site: SiteIndex, name: &str) -> Option<String> {
    let short = plan::short_of(kept.iter().filter_map(|kept| Some((kept.stored, kept.usable.get(&site).copied().flatten()?))));
    (short > 0).then(|| format!("without {name} there is too little room, by {short} bytes"))
}

/// Whose loss would stop writes until there is a replacement, and to what.
fn waiting(kept: &[Kept], sites: &[SiteIndex], layout: &Layout) -> Vec<String> {
    let possible: Vec<&Kept> = kept.iter().filter(|kept| !kept.is_impossible(layout)).collect();
    let mut needed: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for site in sites {
        let stopped: Vec<&&Kept> = possible.iter().filter(|kept| kept.usable.get(site).is_some_and(Option::is_none)).collect();
        if !stopped.is_empty() {
            let all = stopped.len() == possible.len();
            let whose =
                if all { String::new() } else { format!(" to {}", stopped.iter().map(|kept| kept.who()).collect::<Vec<_>>().join(", ")) };
            needed.entry(whose).or_default().push(layout.site_name(*site));
        }
    }
    let words = |(whose, sites): (String, Vec<&str>)| {
        format!("without {} new writes{whose} would be refused until it is replaced", sites.join(" or "))
    };
    needed.into_iter().map(words).collect()
}

impl Kept {
    fn who(&self) -> String {
        if self.buckets.is_empty() { "new buckets".to_owned() } else { self.buckets.join(", ") }
    }

    /// Whether no set of sites keeps to the policy even with all of them.
    fn is_impossible(&self, layout: &Layout) -> bool {
        Placement::derive(&self.policy, &Geography::claimed(layout)).is_err()
    }
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
    // A node of a site that was removed is named for as long as it is not forgotten that it was lost.
    let placed = |node: &&v1::NodeInfo| sites.iter().any(|site| site.name == node.site);
    let nodes = newest.nodes.iter().filter(placed).map(node).collect();
    Layout::new(newest.layout_version, PARTITIONS_DEFAULT, sites, nodes).ok()
}
