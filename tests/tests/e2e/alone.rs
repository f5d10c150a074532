//! What one site alone had acknowledged, and has burnt with it: never called safe before somebody has answered for it (rule 8).
use crate::common::{Known, put_bytes, try_put_bytes, wait_alone};
use afar_tests::{
    cluster::Cluster,
    limits::SETTLE_MAX,
    operator::{Operator, own_check, summary},
    wait::until,
};
use serde_json::Value;
use std::fs;

/// Three sites. While Warsaw was down, two objects were acknowledged in Strasbourg only, and Roubaix has heard of it.
fn queued() -> (Cluster, Known, [Known; 2]) {
    let mut cluster = Cluster::three();
    cluster.bucket("queued", &["--degraded-writes", "queue", "--home", "strasbourg"]);
    let known = |at: &str, content: &[u8]| Known { at: format!("queued/{at}"), content: content.to_vec() };
    let (first, late) = (known("a", b"version one"), [known("a", b"version two"), known("new", b"only in Strasbourg")]);
    put_bytes(&cluster.afar_at(&["strasbourg"]), &first.content, &first.at);
    cluster.wait_state("safe");
    cluster.node_mut("warsaw").kill();
    for known in &late {
        let stored = try_put_bytes(&cluster.afar_at(&["strasbourg"]), &known.content, &known.at).expect(5).json();
        assert_eq!(stored["durability"], "local", "{stored}");
    }
    wait_alone(&cluster, "roubaix", "strasbourg", 2);
    (cluster, first, late)
}

/// Every shard is surveyed, and Roubaix says that something may be lost: what it says.
#[track_caller]
fn wait_doubted(cluster: &Cluster, words: &str) -> String {
    until(&format!("Roubaix says {words:?}"), SETTLE_MAX, || {
        let ran = cluster.afar().run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        assert_ne!(status["state"], "safe", "{status}");
        let detail = own_check(&status, "queued", "roubaix").and_then(|check| check["detail"].as_str()).unwrap_or_default().to_owned();
        let surveyed = status["checks"].as_array().into_iter().flatten().any(|check| check["name"] == "survey" && check["state"] == "ok");
        if surveyed && detail.contains(words) && ran.code == 5 && status["state"] == "unknown" { Ok(detail) } else { Err(summary(&status)) }
    })
}

/// The disks that a doubt names.
fn disks(detail: &str) -> String {
    let (_, rest) = detail.split_once("afar layout release ").expect("how to answer for it");
    rest.chars().take_while(char::is_ascii_hexdigit).collect()
}

#[test]
fn rule_8_what_a_burnt_node_alone_had_acknowledged_is_not_safe_until_somebody_answers_for_it() {
    let (mut cluster, first, _) = queued();
    cluster.node_mut("strasbourg").burn();
    // What Roubaix has heard survives its restart.
    cluster.node_mut("roubaix").kill();
    cluster.node_mut("roubaix").start();
    cluster.node_mut("warsaw").start();
    let silent = until("Roubaix says what the silent may have", SETTLE_MAX, || {
        let status = cluster.status();
        assert_ne!(status["state"], "safe", "{status}");
        let check = own_check(&status, "queued", "roubaix").filter(|check| check["state"] == "critical");
        check.and_then(|check| check["detail"].as_str()).map(String::from).ok_or_else(|| summary(&status))
    });
    assert!(silent.contains("up to 2 objects") && silent.contains("strasbourg does not answer"), "{silent}");
    let operator = Operator::of(&cluster);
    cluster.node_mut("strasbourg").start();
    let detail = wait_doubted(&cluster, "up to 2 objects");
    first.must_be_at(&cluster.afar());
    let problems = cluster.afar().run(&["status", "-x"]).expect(5).text();
    assert!(problems.contains("AFAR-QUEUED") && !problems.contains("no problems"), "{problems}");
    // Nobody can answer in advance for disks that are still in use.
    let list = fs::read_to_string(cluster.node("strasbourg").folder().join("state/directories")).unwrap();
    let present = list.lines().find_map(|line| line.strip_prefix("incarnation ")).unwrap();
    let refused = operator.try_change(&["layout", "release", present]);
    assert!(refused.code != 0 && refused.text().contains("takes part"), "{refused}");
    operator.change(&["layout", "release", &disks(&detail)]);
    cluster.wait_state("safe");
    cluster.afar().run(&["status"]).expect(0);
}

#[test]
fn rule_8_what_a_lost_site_alone_had_acknowledged_is_not_safe_until_somebody_answers_for_it() {
    let (mut cluster, _, _) = queued();
    cluster.node_mut("strasbourg").burn();
    cluster.node_mut("warsaw").start();
    let operator = Operator::of(&cluster);
    operator.change(&["site", "lost", "strasbourg"]);
    let detail = wait_doubted(&cluster, "up to 2 objects");
    operator.change(&["layout", "release", &disks(&detail)]);
    cluster.wait_state("safe");
}

#[test]
fn rule_8_disks_that_return_and_hand_over_what_they_alone_had_end_the_doubt() {
    let (mut cluster, _, late) = queued();
    let (folder, aside) = (cluster.node("strasbourg").folder().to_owned(), cluster.scratch().join("aside"));
    fs::create_dir(&aside).unwrap();
    cluster.node_mut("strasbourg").kill();
    for part in ["data", "state"] {
        fs::rename(folder.join(part), aside.join(part)).unwrap();
    }
    cluster.node_mut("warsaw").start();
    cluster.node_mut("strasbourg").start();
    wait_doubted(&cluster, "up to 2 objects");
    cluster.node_mut("strasbourg").burn();
    for part in ["data", "state"] {
        fs::rename(aside.join(part), folder.join(part)).unwrap();
    }
    cluster.node_mut("strasbourg").start();
    cluster.wait_state("safe");
    late.iter().for_each(|known| known.must_be_at(&cluster.afar()));
}
