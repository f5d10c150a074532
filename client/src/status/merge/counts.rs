//! What nodes have counted, each shard once, and why that may prove nothing.
use super::{CheckResult, Counts, Nodes, Stored, check, last_heard, members};
use crate::limits;
use afar_model::{limits::AUDIT_WITHIN, state::State, units::UnixMillis};
use afar_proto::v1;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// What a node that is not assigned a shard gives as its rank: the shard exists, and somebody else counts it.
pub(super) const NO_REPORTER: u32 = u32::MAX;

pub(super) struct Survey {
    pub(super) state: State,
    pub(super) objects: Counts,
    pub(super) bytes: Counts,
    pub(super) versions: Counts,
    pub(super) stored: Stored,
    pub(super) check: CheckResult,
}

pub(super) fn survey(nodes: &Nodes<'_>, newest: &v1::NodeStatus, now: UnixMillis) -> Survey {
    let mut doubts: BTreeSet<String> = BTreeSet::new();
    let mut chosen: BTreeMap<(&[u8], u32), (&v1::NodeStatus, &v1::ShardSurvey)> = BTreeMap::new();
    for node in nodes.values().filter(|node| node.state != "catching_up") {
        for found in node.surveys.iter().filter(|found| found.rank != NO_REPORTER) {
            // A complete survey counts more than a partial one. Then one that knows of more: versions are not lost by being
            // read, so who knows of fewer has missed some, whatever it believes of itself. Then the lower rank.
            let order = |node: &v1::NodeStatus, survey: &v1::ShardSurvey| {
                (!node.survey_complete, Reverse(survey.versions.map_or(0, |counts| counts.total)), survey.rank)
            };
            let better = |(other, theirs): &(&v1::NodeStatus, &v1::ShardSurvey)| order(node, found) < order(other, theirs);
            let slot = (found.bucket.as_ref(), found.shard);
            if chosen.get(&slot).is_none_or(better) {
                chosen.insert(slot, (node, found));
            }
        }
    }
    let (mut objects, mut bytes, mut versions) = (Counts::default(), Counts::default(), Counts::default());
    let mut stored = Stored { complete: true, ..Stored::default() };
    for (node, found) in chosen.values() {
        for (sum, counts) in [(&mut objects, &found.objects), (&mut bytes, &found.bytes), (&mut versions, &found.versions)] {
            if let Some(counts) = counts {
                sum.add(counts);
            }
        }
        // A node that is older than this count says zero, and the current versions are the least that there is.
        let least = found.bytes.map_or(0, |bytes| bytes.total).max(found.stored_bytes);
        let bucket = stored.buckets.entry(found.bucket.to_vec()).or_default();
        *bucket = bucket.saturating_add(least);
        stored.complete &= node.survey_complete;
        doubts.extend(doubts_about(node, nodes, newest, now));
    }
    doubts.extend(failed_audits(nodes, newest));
    let reported: BTreeSet<&[u8]> = chosen.keys().map(|(bucket, _)| *bucket).collect();
    let known = nodes.values().map(|node| node.buckets).max().unwrap_or_default();
    if (reported.len() as u64) < known {
        doubts.insert(format!("{} of {known} buckets have a reporter", reported.len()));
    }
    let all: BTreeSet<(&[u8], u32)> =
        nodes.values().flat_map(|node| &node.surveys).map(|found| (found.bucket.as_ref(), found.shard)).collect();
    let without = all.iter().filter(|shard| !chosen.contains_key(*shard)).count();
    stored.complete &= without == 0 && reported.len() as u64 >= known;
    if without > 0 {
        doubts.insert(format!("{without} of {} shards have no reporter that answers", all.len()));
    }
    if objects.total == 0 {
        doubts.extend(doubts_about_nothing(nodes, newest));
    }
    let proved = if doubts.is_empty() { State::Safe } else { State::Unknown };
    let worst = [objects.worst(), versions.worst()].into_iter().flatten().max().unwrap_or(State::Safe);
    let detail =
        if doubts.is_empty() { "every shard has a complete survey".to_owned() } else { doubts.into_iter().collect::<Vec<_>>().join("; ") };
    let check = check("survey", if proved == State::Safe { "ok" } else { "unknown" }, detail);
    Survey { state: worst.max(proved), objects, bytes, versions, stored, check }
}

/// Why a node's survey proves nothing about now.
fn doubts_about(node: &v1::NodeStatus, nodes: &Nodes<'_>, newest: &v1::NodeStatus, now: UnixMillis) -> Vec<String> {
    let mut doubts = Vec::new();
    if !node.survey_complete || node.surveyed_at == 0 {
        doubts.push(format!("{}'s survey is not complete", node.node));
    }
    let surveyed = UnixMillis(node.surveyed_at);
    if node.surveyed_at > 0 && now.since(surveyed) > limits::SURVEY_STALE {
        doubts.push(format!("{}'s survey is {} s old", node.node, now.since(surveyed).as_secs()));
    }
    for silent in members(newest).filter(|other| !nodes.contains_key(other.name.as_str())) {
        let heard = UnixMillis(last_heard(&silent.name, nodes));
        if heard.0 > 0 && surveyed < UnixMillis(heard.0.saturating_add(AUDIT_WITHIN.as_millis() as u64)) {
            doubts.push(format!("{} does not answer, and what it last proved may still be counted", silent.name));
        }
    }
    doubts
}

/// Who could not prove to another what it should hold: it says of itself that it does, and is believed only once it was compared
/// and audited again.
fn failed_audits<'a>(nodes: &'a Nodes<'_>, newest: &'a v1::NodeStatus) -> impl Iterator<Item = String> + 'a {
    let failed = |name: &str, auditor: &v1::NodeStatus| auditor.peers.iter().any(|view| view.node == name && view.failed_audit);
    members(newest).flat_map(move |node| {
        let auditors = nodes.values().filter(move |auditor| failed(&node.name, auditor));
        auditors.map(|auditor| format!("{} could not prove its copies to {}", node.name, auditor.node))
    })
}

/// Zero objects are proved only by everybody: zero of zero that nobody proved is unknown.
fn doubts_about_nothing(nodes: &Nodes<'_>, newest: &v1::NodeStatus) -> Option<String> {
    let silent = members(newest).filter(|node| {
        !nodes
            .get(node.name.as_str())
            .is_some_and(|status| status.survey_complete && status.surveyed_at > 0 && status.state != "catching_up")
    });
    let names: Vec<&str> = silent.map(|node| node.name.as_str()).collect();
    (!names.is_empty()).then(|| format!("no objects, but that is not proved by {}", names.join(", ")))
}
