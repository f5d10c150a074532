//! What the answers of nodes amount to: one pure function, [`merge`].
//!
//! Rules: of each shard of each bucket the survey of the lowest-ranked node counts that answered, made a complete survey, is
//! not catching up and knows of no fewer versions than the others. What nobody proved is unknown, and unknown is never green:
//! a shard without a reporter, a survey that is stale, a survey made so soon after a silent node was last heard that it may
//! still count that node's copies, and zero objects that not every node confirms. Nor is green what a critical check speaks
//! against that concerns the data's safety ([`Advice::doubts_safety`]): a count of copies is only as good as the distances,
//! clocks and disks that it relies on.
//!
//! Its rooms: what comes out (`types`), what the objects' counts amount to (`counts`), sites and nodes (`places`), what is on
//! its way (`moving`), what a new layout waits for (`transition`), what light and clocks say (`physics`), and whether there is room for a loss (`room`).
mod types;

mod counts;

mod places;

mod moving;

mod transition;

mod physics;

mod room;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use types::{
    Awaited, CheckResult, ClusterStatus, Counts, NodeSummary, OpenLayout, Rebalance, Replication, SiteStatus, Stored, Transition,
};

use super::{advice::Advice, fetch::Answer};
use crate::answers::Bucket;
use afar_model::{policy::Policy, state::State, units::UnixMillis};
use afar_proto::v1;
use physics::DistanceCheck;
use std::{cmp::Reverse, collections::BTreeMap};

/// Those that answered, by name.
type Nodes<'a> = BTreeMap<&'a str, &'a v1::NodeStatus>;

/// Merges answers. `buckets`: those that the caller may see, with their policies; `None` if it could not ask. `None` if no node
/// answered.
pub fn merge(answers: &[Answer], now: UnixMillis, buckets: Option<&[Bucket]>) -> Option<ClusterStatus> {
    let nodes = by_name(answers);
    let newest = nodes.values().max_by_key(|node| node.layout_version)?;
    // Who was removed and still runs closes nothing, and nobody waits for it.
    let taking_part: Nodes<'_> =
        members(newest).filter_map(|node| nodes.get_key_value(node.name.as_str())).map(|(n, s)| (*n, *s)).collect();
    let known = nodes.values().map(|node| node.buckets).max().unwrap_or_default();
    let survey = counts::survey(&nodes, newest, now);
    let sites: Vec<SiteStatus> = newest.sites.iter().map(|site| places::site_status(site, newest, &nodes)).collect();
    let mut checks = vec![
        survey.check.clone(),
        moving::layout_check(&nodes),
        physics::physics_check(newest, &nodes, DistanceCheck::of(buckets, newest)),
        physics::clock_check(&nodes),
    ];
    checks.push(places::nodes_check(&sites, answers));
    checks.push(room::survivors_check(newest, &survey.stored, buckets.unwrap_or_default(), known));
    for node in nodes.values() {
        checks.extend(node.checks.iter().map(|check| CheckResult {
            name: check.name.clone(),
            node: Some(node.node.clone()),
            state: check.state.clone(),
            detail: check.detail.clone(),
            code: Advice::about(&check.name).map_or("", |advice| advice.code),
        }));
    }
    checks.sort_by_key(|check| Reverse(severity(&check.state)));
    // What speaks against the counts speaks against `degraded` as well.
    let doubted_by = if survey.state < State::Unknown { doubted_by(&checks) } else { Vec::new() };
    Some(ClusterStatus {
        state: if doubted_by.is_empty() { survey.state } else { State::Unknown },
        doubted_by,
        layout_version: newest.layout_version,
        default_policy: newest.default_policy.as_ref().and_then(|policy| Policy::try_from(policy).ok()),
        at: now,
        objects: survey.objects,
        bytes: survey.bytes,
        versions: survey.versions,
        stored: survey.stored,
        buckets: known,
        replication: moving::replication(&nodes, newest),
        rebalance: moving::rebalance(&taking_part, newest),
        transition: transition::transition(&taking_part, newest),
        sites,
        checks,
    })
}

/// Which critical checks say that nothing here may be called safe.
fn doubted_by(checks: &[CheckResult]) -> Vec<String> {
    let doubting = |check: &&CheckResult| check.state == "critical" && Advice::about(&check.name).is_none_or(|advice| advice.doubts_safety);
    checks.iter().filter(doubting).map(CheckResult::title).collect()
}

fn by_name(answers: &[Answer]) -> Nodes<'_> {
    answers.iter().filter_map(|answer| answer.outcome.as_ref().ok()).map(|status| (status.node.as_str(), status)).collect()
}

/// Nodes that are still waited for: not those that an operator has said to be lost.
fn members(newest: &v1::NodeStatus) -> impl Iterator<Item = &v1::NodeInfo> {
    newest.nodes.iter().filter(|node| node.duty != "lost" && node.duty != "removed")
}

fn last_heard(name: &str, nodes: &Nodes<'_>) -> u64 {
    views(name, nodes).map(|view| view.last_heard).max().unwrap_or_default()
}

fn views<'a>(name: &'a str, nodes: &'a Nodes<'_>) -> impl Iterator<Item = &'a v1::PeerView> {
    nodes.values().flat_map(|node| &node.peers).filter(move |view| view.node == name)
}

fn check(name: &str, state: &str, detail: impl Into<String>) -> CheckResult {
    let code = Advice::about(name).map_or("", |advice| advice.code);
    CheckResult { name: name.into(), node: None, state: state.into(), detail: detail.into(), code }
}

pub(crate) fn severity(state: &str) -> u8 {
    match state {
        "critical" => 3,
        "warning" => 2,
        "ok" => 0,
        _ => 1,
    }
}
