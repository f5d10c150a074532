//! Layouts that not everybody has: nodes that were away, nodes that are out, and two operators at once (rule 21).
use crate::common::{Known, try_put_bytes};
use afar_model::{
    id::{BucketId, RecordId},
    record::{Record, RecordKind},
};
use afar_proto::v1::{IdsRequest, ProveRequest, StoreFailure, StoreRecords, StoreRequest, peer_client::PeerClient, store_request::Work};
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, THREE, WARSAW, check},
    data,
    limits::{SETTLE_MAX, STAYS},
    operator::{Operator, own_check, summary},
    wait::{stays, until},
    wire,
    witness::Witness,
};
use tonic::Code;

fn start() -> (Cluster, Operator) {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).start();
    let operator = Operator::of(&cluster);
    (cluster, operator)
}

/// What a node answers to a record that is sent in Madrid's name by these layouts.
async fn sent_by(cluster: &Cluster, layouts: StoreRecords) -> Option<StoreFailure> {
    let record = Record::new(RecordKind::Chunk, BucketId::SYSTEM, vec![7; 100].into());
    let work = StoreRecords { records: vec![(&record).into()], sync: true, class: "client".into(), ..layouts };
    let request = StoreRequest { sequence: 1, work: Some(Work::Records(work)), ..StoreRequest::default() };
    let mut peer = PeerClient::new(wire::connect(cluster, "warsaw", Some("madrid")).await.unwrap());
    let mut replies = peer.store(futures_util::stream::iter([request])).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap().failure
}

#[test]
fn rule_21_a_layout_is_its_hash_and_its_version_only_for_nodes_that_say_no_hash() {
    let (cluster, _) = start();
    wire::runtime().block_on(async {
        let hash: RecordId = wire::layouts_at(&cluster, "warsaw").await.unwrap().0.parse().unwrap();
        let by = |versions: &[u64], hashes: &[&[u8]]| StoreRecords {
            layout_version: versions.last().copied().unwrap_or(1),
            open_versions: versions.to_vec(),
            open_layouts: hashes.iter().map(|hash| hash.to_vec().into()).collect(),
            ..StoreRecords::default()
        };
        let rival = sent_by(&cluster, by(&[1], &[&[9; 32]])).await.expect("another layout of the same version is refused");
        assert_eq!(rival.reason, "layout");
        assert!(rival.detail.contains("by layout 1-09090909, this node by 1-"), "{rival:?}");
        assert_eq!(sent_by(&cluster, by(&[1], &[hash.as_bytes()])).await, None, "the same layout");
        assert_eq!(sent_by(&cluster, by(&[1, 2], &[hash.as_bytes(), &[9; 32]])).await, None, "one of two that are open");
        // By nodes that are older than the hashes, and much older.
        assert_eq!(sent_by(&cluster, by(&[1], &[])).await, None);
        assert_eq!(sent_by(&cluster, by(&[], &[])).await, None);
        assert!(sent_by(&cluster, by(&[2], &[])).await.is_some());
    });
}

/// Some objects, put by way of these nodes.
fn put_some(cluster: &Cluster, bucket: &str, names: &[&str], from: usize) -> Vec<Known> {
    let mut chance = data::chance(data::seed());
    let at = |n: usize| format!("{bucket}/{}", from + n);
    (0..6).map(|n| Known::put(&cluster.afar_at(names), &mut chance, &at(n), [500, 100_000][n % 2])).collect()
}

#[test]
fn rule_21_a_member_that_was_away_keeps_transitions_open_and_catches_up() {
    let (mut cluster, operator) = start();
    cluster.bucket("away", &[]);
    let mut objects = put_some(&cluster, "away", &["strasbourg"], 0);
    cluster.node_mut("madrid").kill();
    for capacity in ["2GiB", "3GiB"] {
        operator.change(&["node", "set", "warsaw", "--capacity", capacity]);
        objects.extend(put_some(&cluster, "away", &["strasbourg", "warsaw"], objects.len()));
    }
    // Nothing is closed without Madrid, so nothing that it may have acknowledged by the old layout is overlooked.
    let open = |name: &str| wire::runtime().block_on(wire::layouts_at(&cluster, name)).map(|(_, open)| open).unwrap_or(0);
    stays("the transitions are open", STAYS, || if open("strasbourg") == 3 { Ok(()) } else { Err(open("strasbourg")) });
    let many = operator.try_change(&["node", "set", "warsaw", "--capacity", "4GiB"]).expect(11);
    assert!(many.text().contains("3 layouts are in transition"), "{many}");
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["warsaw"]));
    }
    cluster.node_mut("madrid").start();
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["madrid"]));
    }
}

#[test]
fn rule_21_a_node_that_is_out_and_comes_back_does_no_harm_and_gets_no_answers() {
    let (mut cluster, operator) = start();
    cluster.bucket("out", &[]);
    let mut objects = put_some(&cluster, "out", &["strasbourg"], 0);
    cluster.node_mut("madrid").kill();
    operator.change(&["node", "remove", "madrid", "--lost"]);
    operator.change(&["node", "set", "warsaw", "--capacity", "2GiB"]);
    operator.wait_in_force(&cluster);
    let both = ["strasbourg", "warsaw"];
    objects.extend(put_some(&cluster, "out", &both, objects.len()));
    let newer = Known::put(&cluster.afar_at(&both), &mut data::chance(data::seed()), "out/0", 700);
    cluster.node_mut("madrid").start();
    until("it has heard of the layout that puts it out", SETTLE_MAX, || {
        let runtime = wire::runtime();
        let (theirs, ours) =
            runtime.block_on(async { (wire::layouts_at(&cluster, "madrid").await, wire::layouts_at(&cluster, "warsaw").await) });
        let (theirs, ours) = (theirs.map_err(|status| status.to_string())?, ours.map_err(|status| status.to_string())?);
        if theirs.0 == ours.0 { Ok(()) } else { Err(format!("{theirs:?} {ours:?}")) }
    });
    // It neither takes a write nor shows what is older than what the others have.
    let alone = cluster.afar_at(&["madrid"]);
    try_put_bytes(&alone, b"nowhere", "out/nowhere").expect_one_of(&[5, 14]);
    for key in ["out/0", "out/1", "out/never"] {
        alone.run(&["cat", key]).expect(14);
    }
    // With its certificate, which is good: no answers, and nothing that it says is taken.
    let refusals = wire::runtime().block_on(async {
        let mut peer = PeerClient::new(wire::connect(&cluster, "warsaw", Some("madrid")).await.unwrap());
        let ids = peer.ids(IdsRequest { first: 0, last: 255, after: None, limit: 10 }).await.unwrap_err();
        (ids, peer.prove(ProveRequest::default()).await.unwrap_err())
    });
    for refused in [refusals.0, refusals.1] {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("out of service"), "{refused}");
    }
    objects[0] = newer;
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["strasbourg"]));
    }
    cluster.node_mut("madrid").kill();
    let status = cluster.wait_state("safe");
    assert_eq!(status["objects"]["safe"], objects.len(), "{}", summary(&status));
}

#[test]
fn rule_21_two_children_of_one_layout_are_a_conflict_that_drops_nothing_until_it_is_merged() {
    let mut cluster = Setup::of(&THREE).partitions(256).start();
    cluster.bucket("split", &[]);
    let operator = Operator::of(&cluster);
    let other = operator.twin("other-operator");
    let mut objects = put_some(&cluster, "split", &["strasbourg"], 0);
    cluster.wait_state("safe");

    cluster.node_mut("warsaw").kill();
    let first = operator.change(&["node", "set", "strasbourg", "--capacity", "3GiB"]);
    assert_eq!(first["nodes"], serde_json::json!(["roubaix", "strasbourg"]), "{first}");
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("roubaix").kill();
    cluster.node_mut("warsaw").start();
    let second = other.change(&["node", "set", "roubaix", "--capacity", "3GiB"]);
    assert_eq!(second["nodes"], serde_json::json!(["warsaw"]), "{second}");
    // As many as may be open at once: a merge ends the conflict that keeps them open, and waits for none of them.
    other.change(&["node", "set", "roubaix", "--capacity", "4GiB"]);
    cluster.node_mut("strasbourg").start();
    cluster.node_mut("roubaix").start();

    let status = until("every node says that there is a conflict", SETTLE_MAX, || {
        let status = cluster.status();
        let says =
            |name: &&str| own_check(&status, "layout", name).is_some_and(|check| check["detail"].to_string().contains("two layouts"));
        if ["strasbourg", "roubaix", "warsaw"].iter().all(says) { Ok(status) } else { Err(summary(&status)) }
    });
    assert_eq!(own_check(&status, "layout", "warsaw").unwrap()["state"], "critical");
    assert_eq!(check(&status, "layout_agreement").unwrap()["state"], "critical", "{}", summary(&status));
    let people = cluster.afar().run(&["status"]);
    assert!(people.text().contains("afar layout apply --merge"), "it says what to do: {people}");

    // Reads and writes go on, at every node.
    for name in ["strasbourg", "roubaix", "warsaw"] {
        until("it works together with the others", SETTLE_MAX, || {
            let ran = try_put_bytes(&cluster.afar_at(&[name]), b"trial", &format!("split/trial-{name}"));
            if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
        });
        objects.extend(put_some(&cluster, "split", &[name], objects.len()));
    }
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["warsaw"]));
        object.must_be_at(&cluster.afar_at(&["strasbourg"]));
    }
    // Nothing is dropped, and no other change is taken.
    let (witness, runtime) = (Witness::of(&cluster, "split"), wire::runtime());
    let before = runtime.block_on(witness.copies());
    stays("nothing is dropped", STAYS, || {
        let now = runtime.block_on(witness.copies());
        if before.iter().all(|(key, holders)| now.get(key).is_some_and(|now| now.is_superset(holders))) { Ok(()) } else { Err("dropped") }
    });
    let busy = operator.try_change(&["node", "set", "warsaw", "--capacity", "2GiB"]).expect(11);
    assert!(busy.text().contains("--merge"), "{busy}");

    let heads = operator.ask(&["layout", "history"]);
    let heads: Vec<&str> =
        heads.as_array().unwrap().iter().filter(|entry| entry["head"] == true).map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(heads.len(), 2, "{heads:?}");
    let wrong = operator.try_change(&["layout", "apply", "--merge", &operator.history()[0]]).expect(2);
    assert!(wrong.text().contains("not one of two"), "{wrong}");
    operator.change(&["layout", "apply", "--merge", heads[1]]);
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    assert_eq!(operator.version(), 4);
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["roubaix"]));
    }
    let status = cluster.status();
    assert_eq!(own_check(&status, "layout", "strasbourg").unwrap()["state"], "ok", "{}", summary(&status));
    // And the other operator's folder goes on from there.
    other.change(&["node", "set", "warsaw", "--capacity", "2GiB"]);
    other.wait_in_force(&cluster);
}
