//! What light and clocks say of what nodes claim.
use super::{CheckResult, Nodes, check};
use crate::{answers::Bucket, limits};
use afar_model::{
    geo::{self, Coordinates, Physics},
    policy::VerifyDistance,
    units::Metres,
};
use afar_proto::v1;
use std::{collections::BTreeMap, time::Duration};

/// How much the buckets care about refuted distances, as far as the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DistanceCheck {
    /// Some bucket enforces them, or it is not known.
    Enforced,
    /// No bucket enforces them, some bucket warns.
    Warned,
    /// Every bucket has `verify_distance = "off"`.
    Off,
}

impl DistanceCheck {
    /// The strictest bucket's; of none, as the cluster's default policy has it. `None`: which buckets there are is not known.
    pub(super) fn of(buckets: Option<&[Bucket]>, newest: &v1::NodeStatus) -> Self {
        let default = newest.default_policy.as_ref().map(|policy| policy.verify_distance.as_str());
        let any = |buckets: &[Bucket], verify| buckets.iter().any(|bucket| bucket.policy.verify_distance == verify);
        match (buckets, default) {
            (Some([]), Some("off")) => Self::Off,
            (Some([]), Some("warn")) => Self::Warned,
            (Some([]) | None, _) => Self::Enforced,
            (Some(buckets), _) if any(buckets, VerifyDistance::Enforce) => Self::Enforced,
            (Some(buckets), _) if any(buckets, VerifyDistance::Warn) => Self::Warned,
            (Some(_), _) => Self::Off,
        }
    }
}

/// A round trip shorter than light needs refutes a claimed distance.
pub(super) fn physics_check(newest: &v1::NodeStatus, nodes: &Nodes<'_>, enforced: DistanceCheck) -> CheckResult {
    let name = "distance_physics";
    let mut least: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for node in nodes.values() {
        for view in node.peers.iter().filter(|view| view.min_round_trip_micros > 0) {
            let Some(other) = newest.nodes.iter().find(|other| other.name == view.node) else { continue };
            let pair = (node.site.as_str().min(&other.site), node.site.as_str().max(&other.site));
            let entry = least.entry(pair).or_insert(u64::MAX);
            *entry = (*entry).min(view.min_round_trip_micros);
        }
    }
    let (mut refuted, mut suspicious) = (Vec::new(), Vec::new());
    for ((a, b), micros) in least.iter().filter(|((a, b), _)| a != b) {
        let Some(claimed) = claimed(newest, a, b) else { continue };
        let finding = format!("{a}-{b}: {claimed} claimed, {:.2} ms round trip", *micros as f64 / 1000.0);
        match geo::judge(claimed, Duration::from_micros(*micros)) {
            Physics::Refuted => refuted.push(finding),
            Physics::Suspicious => suspicious.push(finding),
            Physics::Possible => {}
        }
    }
    match (refuted.is_empty(), suspicious.is_empty(), enforced) {
        (true, true, _) if least.is_empty() => check(name, "unknown", "no round trip has been measured yet"),
        (true, true, _) => check(name, "ok", "no measured round trip speaks against a claimed distance"),
        (_, _, DistanceCheck::Off) => {
            refuted.append(&mut suspicious);
            check(name, "ok", format!("not enforced (verify_distance is off in every bucket): {}", refuted.join("; ")))
        }
        (false, _, DistanceCheck::Warned) => {
            check(name, "warning", format!("faster than light (only warned about in every bucket): {}", refuted.join("; ")))
        }
        (false, ..) => check(name, "critical", format!("faster than light: {}", refuted.join("; "))),
        (true, false, _) => check(name, "warning", format!("faster than light in fibre: {}", suspicious.join("; "))),
    }
}

fn claimed(newest: &v1::NodeStatus, a: &str, b: &str) -> Option<Metres> {
    let site = |name: &str| newest.sites.iter().find(|site| site.name == name);
    let (a, b) = (site(a)?, site(b)?);
    let point = |site: &v1::SiteInfo| Coordinates::new(site.latitude, site.longitude).ok();
    let uncertainty = Metres(a.uncertainty_metres.saturating_add(b.uncertainty_metres));
    Some(point(a)?.distance(&point(b)?).saturating_sub(uncertainty))
}

pub(super) fn clock_check(nodes: &Nodes<'_>) -> CheckResult {
    let views = nodes.values().flat_map(|node| node.peers.iter().map(|view| (node.node.as_str(), view)));
    let worst = views
        .filter(|(_, view)| matches!(view.state.as_str(), "up" | "catching_up"))
        .max_by_key(|(_, view)| view.clock_offset_millis.unsigned_abs());
    let Some((node, view)) = worst else { return check("clock_skew", "unknown", "no two nodes have compared clocks") };
    let off = Duration::from_millis(view.clock_offset_millis.unsigned_abs());
    let state = if off > limits::CLOCK_SKEW_MAX {
        "critical"
    } else if off > limits::CLOCK_SKEW_MAX / 10 {
        "warning"
    } else {
        "ok"
    };
    check("clock_skew", state, format!("at most {} ms, between {node} and {}", off.as_millis(), view.node))
}
