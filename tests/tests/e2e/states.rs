//! What the status says is true, and unknown is never green (rule 25).
use crate::common::{Known, MIB};
use afar_proto::v1::StatRequest;
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, THREE, TWO, WARSAW, check, node_state},
    data,
    limits::SETTLE_MAX,
    wait::until,
    wire,
};
use std::time::SystemTime;

#[test]
fn the_status_counts_what_there_is() {
    let cluster = Cluster::three();
    cluster.bucket("counted", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    for number in 0..5 {
        Known::put(&afar, &mut chance, &format!("counted/{number}"), 100_000);
    }
    Known::put(&afar, &mut chance, "counted/0", 50_000);
    let status = until("all is counted", SETTLE_MAX, || {
        let status = cluster.status();
        if status["objects"]["total"] == 5 && status["objects"]["safe"] == 5 { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(status["state"], "safe");
    assert_eq!(status["bytes"]["total"], 450_000);
    assert_eq!(status["versions"]["total"], 6);
    assert_eq!(status["replication"]["pending_records"], 0);
    assert_eq!(status["sites"].as_array().unwrap().len(), 3);
    for name in ["strasbourg", "roubaix", "warsaw"] {
        assert_eq!(node_state(&status, name).as_deref(), Some("up"));
    }
    afar.run(&["status", "--check"]).expect(0);
}

#[test]
fn what_was_just_acknowledged_is_not_called_at_risk() {
    // Far from each other, all three.
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).start();
    cluster.bucket("fresh", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    Known::put(&afar, &mut chance, "fresh/first", 100_000);
    cluster.wait_state("safe");
    // An object's version and its chunk are placed each for itself: often no two sites hold both.
    for number in 0..30 {
        Known::put(&afar, &mut chance, &format!("fresh/{number}"), 100_000);
        let objects = cluster.status()["objects"].clone();
        assert!(["at_risk", "degraded", "lost"].iter().all(|state| objects[*state] == 0), "{objects}");
        let described = afar.ok(&["stat", "--json", &format!("fresh/{number}")]).json();
        assert_eq!(described["state"], "safe", "{described}");
    }
}

#[test]
fn rule_25_an_empty_cluster_is_safe_only_when_everybody_says_so() {
    let mut cluster = Cluster::three();
    cluster.bucket("empty", &[]);
    cluster.wait_state("safe");
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("warsaw").kill();
    let afar = cluster.afar();
    until("unknown is not green", SETTLE_MAX, || {
        let ran = afar.run(&["status", "--json"]);
        if ran.code == 5 && ran.json()["state"] != "safe" { Ok(()) } else { Err(ran.to_string()) }
    });
    cluster.node_mut("roubaix").kill();
    afar.run(&["status", "--json"]).expect(14);
    afar.run(&["status", "--check"]).expect(3);
}

#[test]
fn rule_25_an_empty_cluster_whose_distances_are_refuted_is_not_safe() {
    // All on one machine: light refutes what is claimed. Nobody has a bucket that would care.
    let cluster = Setup::of(&THREE).set("policy.verify_distance", "enforce").start();
    let afar = cluster.afar();
    let status = until("the distances are refuted", SETTLE_MAX, || {
        let ran = afar.run(&["status", "--json"]);
        let critical = check(&ran.json(), "distance_physics").is_some_and(|check| check["state"] == "critical");
        if critical { Ok(ran) } else { Err(ran.to_string()) }
    });
    assert_eq!((status.code, &status.json()["state"]), (5, &"unknown".into()), "{status}");
    assert_eq!(status.json()["doubted_by"], serde_json::json!(["distance_physics"]));
    for told in status.json()["checks"].as_array().unwrap() {
        assert!(told["code"].as_str().is_some_and(|code| code.starts_with("AFAR-")), "every check has its code: {told}");
    }
    let problems = afar.run(&["status", "-x"]).expect(5).text();
    assert!(problems.contains("CRITICAL distance_physics") && problems.contains("AFAR-DISTANCE"), "{problems}");
    afar.run(&["status", "--check"]).expect(2);
}

#[test]
fn rule_25_a_lost_copy_shows_within_the_bound_of_its_proof() {
    let mut cluster = Cluster::three();
    cluster.bucket("shown", &[]);
    let mut chance = data::chance(data::seed());
    Known::put(&cluster.afar(), &mut chance, "shown/a", 2 * MIB);
    cluster.wait_state("safe");
    cluster.node_mut("warsaw").burn();
    let afar = cluster.afar();
    until("not safe any more", SETTLE_MAX, || {
        let ran = afar.run(&["status", "--json"]);
        if ran.code == 5 && ran.json()["objects"]["safe"] == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    cluster.node_mut("warsaw").start();
    cluster.wait_state("safe");
}

#[test]
fn a_clock_that_is_an_hour_off_refuses_writes_and_is_told() {
    let mut cluster = Setup::of(&THREE).set("testing.enabled", true).make();
    cluster.node_mut("roubaix").environment("AFAR_TEST_CLOCK_OFFSET_MS", "3600000");
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("timed", &[]);
    let mut chance = data::chance(data::seed());
    // The other two are a far pair, and go on.
    let object = Known::put(&cluster.afar_at(&["strasbourg"]), &mut chance, "timed/a", 100_000);
    object.must_be_at(&cluster.afar_at(&["warsaw"]));
    until("rule 4: the one that is off refuses", SETTLE_MAX, || {
        let ran = cluster.afar_at(&["roubaix"]).run_with_input(&["put", "--json", "-", "timed/b"], b"x");
        if ran.code != 0 && ran.text().contains("clock") { Ok(()) } else { Err(ran.to_string()) }
    });
    until("the status says so", SETTLE_MAX, || {
        let status = cluster.status();
        match check(&status, "clock") {
            Some(check) if check["state"] != "ok" => Ok(()),
            _ => Err(status.to_string()),
        }
    });
}

#[test]
fn rule_4_a_clock_that_is_minutes_behind_still_makes_the_current_version() {
    let mut cluster = Setup::of(&THREE).set("testing.enabled", true).make();
    cluster.node_mut("warsaw").environment("AFAR_TEST_CLOCK_OFFSET_MS", "-200000");
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("timed", &[]);
    let mut chance = data::chance(data::seed());
    for _ in 0..3 {
        Known::put(&cluster.afar_at(&["strasbourg"]), &mut chance, "timed/a", 1000);
        let last = Known::put(&cluster.afar_at(&["warsaw"]), &mut chance, "timed/a", 1000);
        for node in cluster.nodes() {
            last.must_be_at(&cluster.afar_at(&[node.name()]));
        }
    }
}

/// What the node has as the time of a key's current version.
fn modified(cluster: &Cluster, node: &str, key: &str) -> u64 {
    wire::runtime().block_on(async {
        let request = StatRequest { bucket: "timed".into(), key: key.into(), ..StatRequest::default() };
        let mut objects = wire::objects(cluster, node).await.unwrap();
        objects.stat(wire::signed(cluster, request)).await.unwrap().into_inner().modified
    })
}

#[test]
fn rule_4_a_day_with_a_wrong_clock_is_not_followed_after_it_and_what_is_put_then_is_current() {
    const HOUR_MS: u64 = 3_600_000;
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
    let mut cluster = Setup::of(&TWO).set("testing.enabled", true).make();
    // Both, so that they agree: nobody is off then, as far as they can tell.
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).environment("AFAR_TEST_CLOCK_OFFSET_MS", HOUR_MS.to_string());
    }
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("timed", &[]);
    let mut chance = data::chance(data::seed());
    Known::put(&cluster.afar(), &mut chance, "timed/a", 1000);
    let wrong = modified(&cluster, "warsaw", "a");
    assert!(wrong > now() + HOUR_MS / 2, "the clock was wrong, or nothing is tested");
    for round in 0..2 {
        for name in ["strasbourg", "warsaw"] {
            let node = cluster.node_mut(name);
            assert_eq!(node.stop(), 143);
            node.environment("AFAR_TEST_CLOCK_OFFSET_MS", "0");
        }
        cluster.start_all();
        cluster.wait_formed();
        // Another key first, so that nothing else has moved the clock.
        let other = Known::put(&cluster.afar(), &mut chance, &format!("timed/other{round}"), 1000);
        let last = Known::put(&cluster.afar(), &mut chance, "timed/a", 1000);
        let after = Known::put(&cluster.afar(), &mut chance, &format!("timed/after{round}"), 1000);
        for name in ["strasbourg", "warsaw"] {
            let afar = cluster.afar_at(&[name]);
            [&other, &last, &after].into_iter().for_each(|known| known.must_be_at(&afar));
            for key in [format!("other{round}"), format!("after{round}")] {
                assert!(modified(&cluster, name, &key) < now() + HOUR_MS / 4, "{key} is stamped by the wrong clock at {name}");
            }
            assert!(modified(&cluster, name, "a") >= wrong, "stamped above what it replaces");
        }
        let status = cluster.status();
        let alarmed =
            status["checks"].as_array().into_iter().flatten().any(|check| check["name"] == "clock" && check["state"] == "warning");
        assert!(alarmed, "alarmed after round {round}: {status}");
    }
}
