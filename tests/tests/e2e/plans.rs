//! What a plan says before anything happens: bytes, time, room, and what is not known.
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, WARSAW, check},
    data,
    limits::SETTLE_MAX,
    operator::{Operator, summary},
    wait::until,
};
use serde_json::Value;

const OBJECT: usize = 300_000;
const OBJECTS: usize = 12;
const STORED: u64 = (OBJECT * OBJECTS) as u64;

/// Three sites far from each other with one bucket, and every key written twice: an older version takes room, too.
fn start() -> (Cluster, Operator) {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).set("rebalance.rate", "1MiB/s").start();
    cluster.bucket("kept", &[]);
    let mut chance = data::chance(data::seed());
    for n in 0..OBJECTS {
        let file = cluster.file("content", &data::bytes(&mut chance, OBJECT)).display().to_string();
        cluster.afar().ok(&["put", &file, &format!("kept/{}", n / 2)]);
    }
    cluster.wait_state("safe");
    let operator = Operator::of(&cluster);
    (cluster, operator)
}

fn sum(values: &Value, field: &str) -> u64 {
    values.as_array().into_iter().flatten().filter_map(|value| value[field].as_u64()).sum()
}

/// The same command for people.
fn words(cluster: &Cluster, operator: &Operator, arguments: &[&str]) -> String {
    let folder = operator.folder().display().to_string();
    cluster.afar().run(&[arguments, &["--dir", &folder]].concat()).expect(0).text()
}

#[test]
fn a_plan_says_how_many_bytes_move_and_for_how_long_and_what_is_unknown_is_not_zero() {
    let (mut cluster, operator) = start();
    let drain = ["node", "drain", "strasbourg", "--dry-run"];
    let plan = operator.ask(&drain);
    let (moving, moves) = (&plan["moving"], &plan["plans"][0]["moves"]);
    assert_eq!((moving["stored_bytes"].as_u64(), moving["complete"].as_bool()), (Some(STORED), Some(true)), "{plan}");
    // Two of three nodes have each partition: what Strasbourg had goes to whichever of the others has it not.
    let bytes = moving["bytes"].as_u64().unwrap();
    assert!((STORED / 2..STORED * 5 / 6).contains(&bytes), "two thirds of {STORED}: {plan}");
    assert_eq!(bytes, sum(moves, "bytes"), "{plan}");
    assert!(moves.as_array().unwrap().iter().all(|m| m["from"] == "strasbourg" && m["to"] != "strasbourg"), "{plan}");
    // The one that gets most, at the pace that its configuration sets.
    let slowest = &moving["slowest"];
    assert_eq!((&slowest["bytes_per_second"], &slowest["configured"]), (&(1 << 20).into(), &true.into()), "{plan}");
    assert_eq!(moving["seconds"].as_u64(), Some(slowest["bytes"].as_u64().unwrap().div_ceil(1 << 20)), "{plan}");
    let said = words(&cluster, &operator, &drain);
    for part in ["strasbourg -> ", "MiB, ", "at 1.0 MiB/s (its `rebalance.rate`)", "is full first", "in all about "] {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
    // Without Strasbourg, two are left, and the loss of either stops writes.
    assert!(said.contains("without warsaw no two sites are far enough apart"), "{said}");

    // From now on the folder knows a plan, and can say what would move without asking anybody: but not how many bytes.
    operator.change(&["layout", "apply"]);
    for name in ["strasbourg", "warsaw", "madrid"] {
        cluster.node_mut(name).kill();
    }
    let plan = operator.ask(&drain);
    assert!(!plan["plans"][0]["moves"].as_array().unwrap().is_empty(), "{plan}");
    for unknown in ["/moving/bytes", "/moving/seconds", "/moving/stored_bytes", "/plans/0/moves/0/bytes"] {
        assert_eq!(plan.pointer(unknown), Some(&Value::Null), "{unknown} of {plan}");
    }
    let said = words(&cluster, &operator, &drain);
    assert!(said.contains("nobody says how many bytes") && said.contains("is unknown") && !said.contains(" 0 B"), "{said}");
}

#[test]
fn too_little_room_without_a_site_is_warned_of_before_and_after() {
    let (cluster, operator) = start();
    let plan = operator.ask(&["layout", "plan"]);
    let without = plan["plans"][0]["without"].as_array().unwrap();
    assert!(without.len() == 3 && without.iter().all(|site| site["holds"] == true && site["short_bytes"] == 0), "{plan}");
    let status = cluster.status();
    assert_eq!(check(&status, "survivors").unwrap()["state"], "ok", "{}", summary(&status));

    // Less than what is stored at one of them: without either of the others too little is left.
    let smaller = ["node", "set", "madrid", "--capacity", "2MiB"];
    let plan = operator.run(&[&smaller[..], &["--dry-run"]].concat()).expect(0).json();
    let short: Vec<&str> = plan["plans"][0]["without"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|site| site["holds"] == false && site["short_bytes"] == STORED - (2 << 20))
        .filter_map(|site| site["site"].as_str())
        .collect();
    assert_eq!(short, ["strasbourg", "warsaw"], "{plan}");
    let said = words(&cluster, &operator, &[&smaller[..], &["--dry-run"]].concat());
    assert!(said.contains("warning: without strasbourg the others could hold 2.0 MiB: 1.4 MiB too little for what is stored"), "{said}");

    operator.change(&smaller);
    until("the status warns", SETTLE_MAX, || {
        let status = cluster.status();
        let detail = check(&status, "survivors").map(|check| (check["state"].clone(), check["detail"].to_string()));
        match detail {
            Some((state, detail)) if state == "warning" && detail.contains("without strasbourg there is too little room") => Ok(()),
            _ => Err(summary(&status)),
        }
    });
}
