//! One cluster of three nodes, and what may be wrong with it.
use super::{counts::NO_REPORTER, *};
use crate::error::{Error, Kind};

const NOW: UnixMillis = UnixMillis(1_000_000_000);

fn counts(safe: u64, unknown: u64, lost: u64) -> Option<v1::StateCounts> {
    Some(v1::StateCounts { total: safe + unknown + lost, safe, unknown, lost, ..v1::StateCounts::default() })
}

fn shards(rank: u32, per_shard: Option<v1::StateCounts>) -> Vec<v1::ShardSurvey> {
    let one = |shard| v1::ShardSurvey {
        bucket: vec![7; 32].into(),
        shard,
        objects: per_shard,
        bytes: per_shard,
        versions: per_shard,
        rank,
        stored_bytes: 0,
    };
    (0..16).map(one).collect()
}

/// Three sites far apart, a node at each.
fn node(name: &str, rank: u32, per_shard: Option<v1::StateCounts>) -> v1::NodeStatus {
    let site = |name: &str, latitude, longitude| v1::SiteInfo {
        name: name.into(),
        latitude,
        longitude,
        country: "FR".into(),
        ..v1::SiteInfo::default()
    };
    let info = |name: &str| v1::NodeInfo {
        name: name.into(),
        site: name.into(),
        capacity_bytes: 1 << 40,
        endpoint: format!("https://{name}:7700"),
        duty: String::new(),
    };
    let peer = |other: &str| v1::PeerView {
        node: other.into(),
        state: "up".into(),
        last_heard: NOW.0 - 500,
        min_round_trip_micros: 30_000,
        ..v1::PeerView::default()
    };
    let all = ["strasbourg", "roubaix", "warsaw"];
    v1::NodeStatus {
        node: name.into(),
        site: name.into(),
        version: "0.1.0".into(),
        layout_version: 1,
        layout_digest: vec![1; 32].into(),
        state: "up".into(),
        sites: vec![site("strasbourg", 48.5734, 7.7521), site("roubaix", 50.6927, 3.1778), site("warsaw", 52.2297, 21.0122)],
        nodes: all.iter().map(|name| info(name)).collect(),
        peers: all.iter().filter(|other| **other != name).map(|other| peer(other)).collect(),
        surveys: per_shard.map_or_else(Vec::new, |counts| shards(rank, Some(counts))),
        surveyed_at: NOW.0 - 1000,
        survey_complete: true,
        buckets: 1,
        ..v1::NodeStatus::default()
    }
}

fn answers(nodes: Vec<v1::NodeStatus>) -> Vec<Answer> {
    nodes.into_iter().map(|node| Answer { endpoint: format!("https://{}:7700", node.node), outcome: Ok(node) }).collect()
}

fn merged(nodes: Vec<v1::NodeStatus>) -> ClusterStatus {
    merge(&answers(nodes), NOW, DistanceCheck::Enforced).unwrap()
}

fn three(per_shard: Option<v1::StateCounts>) -> Vec<v1::NodeStatus> {
    vec![node("strasbourg", 0, per_shard), node("warsaw", 1, per_shard), node("roubaix", NO_REPORTER, counts(0, 0, 0))]
}

fn find<'a>(status: &'a ClusterStatus, name: &str) -> &'a CheckResult {
    status.checks.iter().find(|check| check.name == name).unwrap()
}

#[test]
fn all_proved_is_safe_and_counted_once() {
    let status = merged(three(counts(2, 0, 0)));
    assert_eq!((status.state, status.objects.total, status.objects.safe), (State::Safe, 32, 32));
    assert_eq!(status.sites.iter().map(|site| site.state.as_str()).collect::<Vec<_>>(), ["up"; 3]);
}

#[test]
fn the_lowest_rank_that_answered_and_is_not_catching_up_counts() {
    let mut nodes = three(counts(2, 0, 0));
    nodes[0].surveys = shards(0, counts(0, 0, 2));
    assert_eq!(merged(nodes.clone()).state, State::Lost);
    nodes[0].state = "catching_up".into();
    assert_eq!(merged(nodes).state, State::Safe, "who catches up reports nothing");
}

#[test]
fn who_has_missed_versions_does_not_hide_them() {
    let mut nodes = three(counts(2, 0, 0));
    nodes[0].surveys = shards(0, counts(1, 0, 0));
    nodes[1].surveys = shards(1, counts(1, 1, 0));
    let status = merged(nodes);
    assert_eq!((status.state, status.objects.total), (State::Unknown, 32));
}

#[test]
fn rule_25_what_nobody_reports_is_unknown() {
    let mut nodes = three(counts(2, 0, 0));
    for node in nodes.iter_mut().take(2) {
        node.surveys.retain(|survey| survey.shard != 3);
    }
    assert_eq!(merged(nodes).state, State::Unknown, "one shard that exists has no reporter");
    let mut nodes = three(counts(2, 0, 0));
    nodes[2].buckets = 2;
    assert_eq!(merged(nodes).state, State::Unknown, "a bucket without a reporter");
    assert_eq!(merged(three(None)).state, State::Unknown, "zero of one bucket");
}

#[test]
fn rule_25_zero_objects_are_safe_only_if_everybody_proved_them() {
    assert_eq!(merged(three(counts(0, 0, 0))).state, State::Safe);
    let mut nodes = three(counts(0, 0, 0));
    nodes.pop();
    assert_eq!(merged(nodes).state, State::Unknown);
    let mut nodes = three(counts(0, 0, 0));
    nodes[1].survey_complete = false;
    assert_eq!(merged(nodes).state, State::Unknown);
    let mut nodes = three(None);
    for node in &mut nodes {
        node.buckets = 0;
        node.surveys.clear();
    }
    assert_eq!(merged(nodes).state, State::Safe, "no buckets, and all say so");
}

#[test]
fn rule_25_who_failed_an_audit_is_not_believed_about_itself() {
    let mut nodes = three(counts(2, 0, 0));
    nodes[1].peers[0].failed_audit = true;
    let status = merged(nodes);
    assert_eq!(status.state, State::Unknown);
    assert!(find(&status, "survey").detail.contains("strasbourg could not prove its copies to warsaw"));
}

#[test]
fn rule_25_a_stale_survey_proves_nothing() {
    let mut nodes = three(counts(2, 0, 0));
    for node in &mut nodes {
        node.surveyed_at = NOW.0 - 400_000;
    }
    assert_eq!(merged(nodes).state, State::Unknown);
}

#[test]
fn rule_25_a_node_that_just_fell_silent_may_still_be_counted_and_is_doubted() {
    let mut nodes = three(counts(2, 0, 0));
    nodes.remove(0);
    let status = merged(nodes.clone());
    assert_eq!(status.state, State::Unknown);
    assert_eq!(status.sites[0].nodes[0].state, "suspect");
    for node in &mut nodes {
        for peer in node.peers.iter_mut().filter(|peer| peer.node == "strasbourg") {
            peer.last_heard = NOW.0 - 100_000;
            peer.state = "down".into();
        }
    }
    let status = merged(nodes);
    assert_eq!(status.state, State::Safe, "long gone, and a survey since says that all is well without it");
    assert_eq!((status.sites[0].state.as_str(), status.sites[0].nodes[0].used_bytes), ("down", None));
}

#[test]
fn nobody_answers() {
    let silent = Answer { endpoint: "https://a:1".into(), outcome: Err(Error::new(Kind::Unreachable, "no")) };
    assert_eq!(merge(&[silent], NOW, DistanceCheck::Enforced), None);
}

#[test]
fn layouts_clocks_and_distances_are_compared() {
    let mut nodes = three(counts(2, 0, 0));
    nodes[1].layout_digest = vec![2; 32].into();
    nodes[0].peers[0].min_round_trip_micros = 400;
    nodes[0].peers[1].clock_offset_millis = -400_000;
    let status = merged(nodes.clone());
    for name in ["layout_agreement", "distance_physics", "clock_skew"] {
        assert_eq!(find(&status, name).state, "critical", "{name}");
    }
    assert_eq!(status.checks.first().map(|check| check.state.as_str()), Some("critical"));
    let trial = merge(&answers(nodes), NOW, DistanceCheck::Off).unwrap();
    assert_eq!(find(&trial, "distance_physics").state, "ok");
}

/// Nobody has a bucket, and the round trips refute a distance.
fn refuted_and_empty(verify_distance: &str) -> ClusterStatus {
    let mut nodes = three(None);
    for node in &mut nodes {
        node.buckets = 0;
        node.surveys.clear();
        node.default_policy = Some(v1::Policy { verify_distance: verify_distance.into(), ..v1::Policy::default() });
    }
    nodes[0].peers[0].min_round_trip_micros = 400;
    merge(&answers(nodes), NOW, DistanceCheck::Default).unwrap()
}

#[test]
fn rule_25_nothing_is_safe_beside_a_critical_check_of_what_safety_rests_on() {
    let status = refuted_and_empty("enforce");
    assert_eq!((status.state, find(&status, "distance_physics").state.as_str()), (State::Unknown, "critical"));
    assert_eq!(status.doubted_by, ["distance_physics"]);
    for (verify, state) in [("warn", "warning"), ("off", "ok")] {
        let status = refuted_and_empty(verify);
        assert_eq!((status.state, find(&status, "distance_physics").state.as_str()), (State::Safe, state), "{verify}");
    }
    for (name, expected) in [
        ("disk", State::Unknown),
        ("clock", State::Unknown),
        ("peer", State::Unknown),
        ("policy", State::Unknown),
        ("made_by_a_later_version", State::Unknown),
        ("queued", State::Unknown),
        ("certificate", State::Safe),
        ("program", State::Safe),
    ] {
        let mut nodes = three(counts(2, 0, 0));
        nodes[1].checks = vec![v1::Check { name: name.into(), state: "critical".into(), detail: "why".into() }];
        let status = merged(nodes.clone());
        assert_eq!(status.state, expected, "{name}");
        assert_eq!(status.doubted_by.is_empty(), expected == State::Safe, "{name}");
        nodes[1].checks[0].state = "warning".into();
        assert_eq!(merged(nodes).state, State::Safe, "{name}");
    }
    let degraded = v1::StateCounts { total: 2, degraded: 2, ..v1::StateCounts::default() };
    let mut nodes = three(Some(degraded));
    assert_eq!(merged(nodes.clone()).state, State::Degraded);
    nodes[1].checks = vec![v1::Check { name: "queued".into(), state: "critical".into(), detail: "why".into() }];
    assert_eq!(merged(nodes).state, State::Unknown, "rule 8: what may be lost is at most unknown");
    let mut nodes = three(counts(0, 0, 2));
    nodes[1].checks = vec![v1::Check { name: "disk".into(), state: "critical".into(), detail: "why".into() }];
    assert_eq!(merged(nodes).state, State::Lost, "what is worse stays worse");
}

#[test]
fn what_is_pending_counts_the_silent_too() {
    let mut nodes = three(counts(2, 0, 0));
    nodes[1].outbox = Some(v1::Outbox { pending_records: 2, pending_bytes: 20, oldest_pending_seconds: 7 });
    nodes.remove(0);
    for peer in nodes[1].peers.iter_mut().filter(|peer| peer.node == "strasbourg") {
        (peer.pending_records, peer.pending_bytes) = (1, 5);
        peer.last_heard = NOW.0;
    }
    let pending = merged(nodes).replication;
    assert_eq!(pending, Replication { pending_records: 3, pending_bytes: 25, oldest_pending_seconds: 7 });
}

#[test]
fn the_json_has_what_the_contract_names() {
    let json = serde_json::to_value(merged(three(counts(2, 0, 0)))).unwrap();
    for path in [
        "/state",
        "/layout_version",
        "/objects/total",
        "/objects/at_risk",
        "/bytes/safe",
        "/versions/lost",
        "/replication/pending_records",
        "/replication/pending_bytes",
        "/replication/oldest_pending_seconds",
        "/sites/0/name",
        "/sites/0/latitude",
        "/sites/0/longitude",
        "/sites/0/country",
        "/sites/0/provider",
        "/sites/0/state",
        "/sites/0/nodes/0/name",
        "/sites/0/nodes/0/state",
        "/sites/0/nodes/0/version",
        "/sites/0/nodes/0/capacity_bytes",
        "/sites/0/nodes/0/used_bytes",
        "/sites/0/nodes/0/oldest_unverified_seconds",
        "/checks/0/name",
        "/checks/0/state",
        "/checks/0/detail",
    ] {
        assert!(json.pointer(path).is_some(), "{path}");
    }
    assert_eq!(json["state"], "safe");
}
