//! One cluster of three nodes, and what may be wrong with it.
use super::{counts::NO_REPORTER, *};
use crate::error::{Error, Kind};
use afar_model::{id::BucketId, policy::VerifyDistance, units::Metres};

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

fn bucket(id: u8, policy: Policy) -> Bucket {
    let id = BucketId::from_bytes([id; 32]);
    Bucket { id, name: format!("b{}", id.as_bytes()[0]), policy, created: NOW, warning: String::new() }
}

fn merged(nodes: Vec<v1::NodeStatus>) -> ClusterStatus {
    merge(&answers(nodes), NOW, Some(&[bucket(1, Policy::default())])).unwrap()
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
fn who_is_said_to_be_lost_is_not_missed() {
    let mut nodes = three(counts(2, 0, 0));
    nodes.pop();
    assert_eq!(find(&merged(nodes.clone()), "nodes").state, "warning");
    for node in nodes.iter_mut().flat_map(|node| &mut node.nodes).filter(|node| node.name == "roubaix") {
        node.duty = "lost".into();
    }
    assert_eq!(find(&merged(nodes), "nodes").detail, "2 of 2 answer");
}

#[test]
fn nobody_answers() {
    let silent = Answer { endpoint: "https://a:1".into(), outcome: Err(Error::new(Kind::Unreachable, "no")) };
    assert_eq!(merge(&[silent], NOW, None), None);
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
    let off = Policy { verify_distance: VerifyDistance::Off, ..Policy::default() };
    let trial = merge(&answers(nodes), NOW, Some(&[bucket(1, off)])).unwrap();
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
    merge(&answers(nodes), NOW, Some(&[])).unwrap()
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

#[test]
fn the_strictest_bucket_decides_about_distances() {
    use VerifyDistance::{Enforce, Off, Warn};
    let newest = node("strasbourg", 0, None);
    let of = |buckets: &[VerifyDistance]| {
        let buckets: Vec<Bucket> =
            buckets.iter().map(|verify| bucket(1, Policy { verify_distance: *verify, ..Policy::default() })).collect();
        DistanceCheck::of(Some(&buckets), &newest)
    };
    assert_eq!(
        [of(&[]), of(&[Off, Off]), of(&[Off, Warn, Off]), of(&[Warn, Enforce, Off])],
        [DistanceCheck::Enforced, DistanceCheck::Off, DistanceCheck::Warned, DistanceCheck::Enforced]
    );
    assert_eq!(DistanceCheck::of(None, &newest), DistanceCheck::Enforced, "nobody says which buckets there are");
}

/// The survivors' check of three nodes that store so much in each of these buckets, which have ids from 1 on.
fn survivors(buckets: &[(Policy, u64)], capacity: u64) -> CheckResult {
    let mut nodes = three(None);
    for node in &mut nodes {
        node.default_policy = Some(v1::Policy::from(&Policy::default()));
        node.nodes.iter_mut().for_each(|node| node.capacity_bytes = capacity);
    }
    let stored = Stored { buckets: (1..).zip(buckets).map(|(id, (_, bytes))| (vec![id; 32], *bytes)).collect(), complete: true };
    let buckets: Vec<Bucket> = (1..).zip(buckets).map(|(id, (policy, _))| bucket(id, policy.clone())).collect();
    room::survivors_check(&nodes[0], &stored, &buckets, buckets.len() as u64)
}

#[test]
fn a_node_of_a_site_that_is_gone_from_the_layout_does_not_hide_the_others() {
    let mut newest = three(None).remove(0);
    newest.default_policy = Some(v1::Policy::from(&Policy::default()));
    newest.nodes.iter_mut().for_each(|node| node.capacity_bytes = 100);
    newest.nodes.push(v1::NodeInfo { name: "m1".into(), site: "madrid".into(), duty: "lost".into(), ..v1::NodeInfo::default() });
    let found = room::survivors_check(&newest, &Stored { complete: true, ..Stored::default() }, &[], 0);
    assert_eq!(found.state, "ok", "{}", found.detail);
}

#[test]
fn the_loss_of_a_site_is_judged_by_every_bucket_and_the_state_fits_the_words() {
    let near = Policy { min_distance: Metres(400_000), ..Policy::default() };
    let three = Policy { copies: 3, ..near.clone() };
    // Only Warsaw is far from the others by the default policy; by the other one any two are.
    let found = survivors(&[(Policy::default(), 10), (near.clone(), 10)], 100);
    assert_eq!(found.state, "ok", "{}", found.detail);
    assert_eq!(
        found.detail,
        "what has its copies stays readable without any one site; without warsaw new writes to b1 would be refused until it is replaced"
    );
    let found = survivors(&[(Policy { min_distance: Metres(400_000), ..Policy::default() }, 10)], 100);
    assert!(found.detail.contains("without warsaw new writes to new buckets would be refused"), "{}", found.detail);
    // Two nodes of 100 bytes are left: they hold 100 bytes twice, whatever wanted a third copy.
    for (buckets, state) in [
        (vec![(near.clone(), 60)], "ok"),
        (vec![(near.clone(), 60), (three.clone(), 30)], "ok"),
        (vec![(near, 60), (three, 60)], "warning"),
    ] {
        let found = survivors(&buckets, 100);
        assert_eq!(found.state, state, "{}", found.detail);
        assert_eq!(found.detail.contains("too little room, by 20 bytes"), state == "warning", "{}", found.detail);
    }
    let found = survivors(&[(Policy { copies: 1, far_copies: 1, ..Policy::default() }, 1)], 100);
    assert!(found.state == "warning" && found.detail.starts_with("b1: one copy of everything"), "{}", found.detail);
    let found = survivors(&[(Policy { min_distance: Metres(5_000_000), ..Policy::default() }, 1)], 100);
    assert!(found.state == "warning" && found.detail.starts_with("b1: no sites that are left keep to the policy"), "{}", found.detail);
}

#[test]
fn buckets_whose_policies_are_not_shown_make_the_survivors_unknown() {
    let mut nodes = three(counts(2, 0, 0));
    nodes.iter_mut().for_each(|node| node.default_policy = Some(v1::Policy::from(&Policy::default())));
    let status = merge(&answers(nodes.clone()), NOW, None).unwrap();
    assert_eq!(find(&status, "survivors").state, "unknown");
    assert_eq!(find(&merged(nodes), "survivors").state, "ok");
}

/// Whom a node waits for, why, and when that was heard.
type Waits<'a> = &'a [(&'a str, &'a str, u64)];

/// Three nodes; the second layout takes over from the first, and some say what they wait for.
fn taking_over(says: &[(&str, Waits<'_>)]) -> Vec<v1::NodeStatus> {
    let mut nodes = three(counts(2, 0, 0));
    for node in &mut nodes {
        (node.layout_version, node.layout_digest) = (2, vec![2; 32].into());
        let waits = says.iter().filter(|(name, _)| *name == node.node).flat_map(|(_, waits)| waits.iter());
        let awaited = |(node, why, heard): &(&str, &str, u64)| v1::Awaited {
            node: (*node).into(),
            why: (*why).into(),
            last_heard: *heard,
            fetched_bytes: 3,
            to_fetch_bytes: 7,
            ..v1::Awaited::default()
        };
        let older = vec![v1::OpenLayout { version: 1, digest: vec![1; 32].into() }];
        node.open_layouts = 2;
        node.transition = Some(v1::Transition { since: 1000, older, waits: waits.map(awaited).collect() });
    }
    nodes
}

fn awaited(status: &ClusterStatus) -> Vec<(&str, &str)> {
    let transition = status.transition.as_ref().unwrap();
    transition.waits_for.iter().map(|awaited| (awaited.node.as_str(), awaited.why.as_str())).collect()
}

#[test]
fn a_layout_that_is_taking_over_says_whom_it_waits_for_since_when_and_what_to_do() {
    assert_eq!(merged(three(counts(2, 0, 0))).transition, None, "one layout everywhere");
    let mut nodes = taking_over(&[("strasbourg", &[("warsaw", "silent", 5_000)]), ("roubaix", &[("warsaw", "silent", 7_000)])]);
    nodes.retain(|node| node.node != "warsaw");
    let status = merged(nodes);
    let transition = status.transition.as_ref().unwrap();
    assert_eq!((transition.to.name.as_str(), transition.since), ("2-02020202", Some(UnixMillis(1000))));
    assert_eq!(transition.older.iter().map(|open| open.name.as_str()).collect::<Vec<_>>(), ["1-01010101"]);
    let [warsaw] = transition.waits_for.as_slice() else { panic!("{transition:?}") };
    assert_eq!((warsaw.node.as_str(), warsaw.why.as_str(), warsaw.last_heard), ("warsaw", "silent", Some(UnixMillis(7_000))));
    assert_eq!(warsaw.not_reached_from, ["roubaix", "strasbourg"]);
    for part in ["bring it back", "`afar node remove warsaw --lost`", "`afar site lost warsaw`"] {
        assert!(warsaw.action.contains(part), "{}", warsaw.action);
    }
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["transition"]["since"], "1970-01-01T00:00:01Z");
    assert_eq!(json["transition"]["waits_for"][0]["last_heard"], "1970-01-01T00:00:07Z");
}

#[test]
fn a_node_that_answers_is_believed_about_itself_unless_the_others_do_not_reach_it() {
    // What others say of it is older than what it says.
    let nodes = taking_over(&[("strasbourg", &[("warsaw", "comparing", 9)]), ("warsaw", &[("warsaw", "fetching", 0)])]);
    let status = merged(nodes);
    assert_eq!(awaited(&status), [("warsaw", "fetching")]);
    let warsaw = status.transition.as_ref().unwrap().waits_for.first().unwrap();
    assert_eq!((warsaw.fetched_bytes, warsaw.to_fetch_bytes, warsaw.action.as_str()), (Some(3), Some(7), "wait"));
    let cut = merged(taking_over(&[("strasbourg", &[("warsaw", "silent", 9)]), ("warsaw", &[("strasbourg", "silent", 9)])]));
    assert_eq!(awaited(&cut), [("strasbourg", "silent"), ("warsaw", "silent")]);
    let action = &cut.transition.as_ref().unwrap().waits_for.first().unwrap().action;
    assert!(action.contains("mend the way between them") && !action.contains("lost"), "{action}");
}

#[test]
fn who_does_not_say_what_it_waits_for_is_unknown_and_who_lags_is_named() {
    let mut nodes = taking_over(&[]);
    nodes[0].transition = None;
    (nodes[1].layout_version, nodes[1].layout_digest, nodes[1].open_layouts) = (1, vec![1; 32].into(), 1);
    assert_eq!(awaited(&merged(nodes.clone())), [("warsaw", "behind"), ("strasbourg", "unknown")]);
    // Who was removed and still runs is not waited for.
    let (mut gone, warsaw) = (nodes, 1);
    gone[warsaw].open_layouts = 2;
    for node in &mut gone {
        node.nodes.retain(|node| node.name != "warsaw");
    }
    assert_eq!(awaited(&merged(gone)), [("strasbourg", "unknown")]);
}
