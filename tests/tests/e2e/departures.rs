//! Nodes that leave before they have handed over what they hold, and what an operator is told then: what is stuck, on whom, and
//! how to go on.
use crate::common::Known;
use afar_tests::{
    cluster::{Cluster, MADRID, ROUBAIX, STRASBOURG, Setup, WARSAW},
    command::Ran,
    data,
    limits::SETTLE_MAX,
    operator::{Operator, own_check, summary},
    wait::until,
};
use serde_json::Value;

const OBJECTS: usize = 12;

/// Three sites far from each other: every object is at two of them, and none at all three.
fn start() -> (Cluster, Operator, Vec<Known>) {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).start();
    cluster.bucket("kept", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let objects = (0..OBJECTS).map(|n| Known::put(&afar, &mut chance, &format!("kept/{n}"), [3_000, 100_000][n % 2])).collect();
    cluster.wait_state("safe");
    let operator = Operator::of(&cluster);
    (cluster, operator, objects)
}

/// Waits until the status says that the newest layout waits for a node, and why; what it says of it.
#[track_caller]
fn wait_awaited(cluster: &Cluster, node: &str, why: &str) -> Value {
    until(&format!("it is said that {node} is waited for ({why})"), SETTLE_MAX, || {
        let status = cluster.status();
        let waits = status["transition"]["waits_for"].as_array();
        let found = waits.into_iter().flatten().find(|wait| wait["node"] == node && wait["why"] == why);
        found.cloned().ok_or_else(|| format!("{} {}", status["transition"], summary(&status)))
    })
}

/// Read right, all of them, through one node alone.
#[track_caller]
fn wait_readable(cluster: &Cluster, objects: &[Known], at: &str) {
    let afar = cluster.afar_at(&[at]);
    for object in objects {
        until(&format!("{} is read at {at}", object.at), SETTLE_MAX, || {
            let ran = afar.run(&["cat", &object.at]);
            never_wrong(object, &ran);
            if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
        });
    }
}

/// An acknowledged object is read as it was, or it is not known now; it is never said not to be there.
#[track_caller]
fn never_wrong(object: &Known, ran: &Ran) {
    assert!(ran.code == 14 || (ran.code == 0 && ran.stdout == object.content), "{}: {ran}", object.at);
}

/// What `afar` says for people, whatever it exits with.
fn words(cluster: &Cluster, operator: &Operator, arguments: &[&str]) -> String {
    let folder = operator.folder().display().to_string();
    let of_folder = if arguments.first() == Some(&"status") { vec![] } else { vec!["--dir", &folder] };
    cluster.afar().run(&[arguments, &of_folder].concat()).text()
}

#[test]
fn a_change_that_is_stuck_says_on_whom_since_when_and_what_to_do() {
    let (mut cluster, operator, _) = start();
    assert_eq!(cluster.status()["transition"], Value::Null);
    cluster.node_mut("warsaw").kill();
    for capacity in ["2GiB", "3GiB"] {
        operator.change(&["node", "set", "madrid", "--capacity", capacity]);
    }
    let warsaw = wait_awaited(&cluster, "warsaw", "silent");
    assert!(warsaw["last_heard"].is_string() && warsaw["site"] == "warsaw", "{warsaw}");
    let action = warsaw["action"].as_str().unwrap();
    assert!(action.contains("bring it back") && action.contains("`afar node remove warsaw --lost`"), "{action}");
    let transition = cluster.status()["transition"].clone();
    assert!(transition["to"]["version"] == 3 && transition["since"].is_string(), "{transition}");
    let open: Vec<&Value> = transition["older"].as_array().unwrap().iter().map(|older| &older["version"]).collect();
    assert_eq!(open, [1, 2], "{transition}");
    // In every place where an operator would look, and be it for what else is refused meanwhile.
    for arguments in [&["status"][..], &["status", "-x"], &["layout", "show"]] {
        let said = words(&cluster, &operator, arguments);
        for part in ["Layout 3-", "is taking over since", "warsaw: does not answer ", "last heard", "do: bring it back"] {
            assert!(said.contains(part), "{part:?} in {arguments:?}:\n{said}");
        }
    }
    let shown = operator.ask(&["layout", "show"])["transition"]["waits_for"].clone();
    assert!(shown.as_array().unwrap().iter().any(|wait| wait["node"] == "warsaw"), "{shown}");
    let refused = operator.try_change(&["node", "set", "madrid", "--capacity", "4GiB"]).expect(11);
    let refused = refused.text();
    assert!(refused.contains("in transition already, and wait for ") && refused.contains("warsaw (does not answer)"), "{refused}");
    let status = cluster.status();
    let told = own_check(&status, "layout", "madrid").unwrap()["detail"].as_str().unwrap();
    assert!(told.contains("waits for ") && told.contains("warsaw (does not answer)"), "{told}");

    cluster.node_mut("warsaw").start();
    operator.wait_in_force(&cluster);
    until("nothing is waited for", SETTLE_MAX, || {
        let status = cluster.status();
        if status["transition"].is_null() { Ok(()) } else { Err(status["transition"].to_string()) }
    });
    assert!(words(&cluster, &operator, &["layout", "show"]).contains("in force everywhere that answers"));
}

#[test]
fn nothing_is_lost_when_a_node_stops_halfway_through_its_drain_and_another_site_burns() {
    let (mut cluster, operator, objects) = start();
    operator.change(&["node", "drain", "strasbourg"]);
    cluster.node_mut("strasbourg").stop();
    wait_awaited(&cluster, "strasbourg", "silent");
    let refused = operator.try_change(&["node", "remove", "strasbourg"]).expect(11);
    assert!(refused.text().contains("it waits for ") && refused.text().contains("strasbourg (does not answer)"), "{refused}");
    cluster.node_mut("warsaw").burn();
    // What was in Strasbourg and Warsaw only, nobody can read now: that is unknown, and neither lost nor absent.
    let status = until("Warsaw is missed", SETTLE_MAX, || {
        let status = cluster.status();
        let unknown = status["objects"]["unknown"].as_u64().is_some_and(|count| count > 0);
        if unknown { Ok(status) } else { Err(summary(&status)) }
    });
    assert_eq!((&status["state"], &status["objects"]["lost"]), (&"unknown".into(), &0.into()), "{}", summary(&status));
    // Some of them: a client tries for seconds before it says so.
    for object in objects.iter().take(3) {
        never_wrong(object, &cluster.afar_at(&["madrid"]).run(&["cat", &object.at]));
    }
    // As it is told: Strasbourg is brought back, and nothing is missing. Warsaw is gone for good.
    cluster.node_mut("strasbourg").start();
    wait_readable(&cluster, &objects, "madrid");
    operator.change(&["site", "lost", "warsaw"]);
    // One site alone is to hold anything: no waiting ends that, and it is said.
    let homeless = wait_awaited(&cluster, "madrid", "unplaced");
    assert!(homeless["action"].as_str().unwrap().contains("add a site"), "{homeless}");
    wait_readable(&cluster, &objects, "madrid");
    operator.add(&mut cluster, "roubaix", &ROUBAIX);
    operator.wait_in_force(&cluster);
    let kept = operator.try_change(&["node", "remove", "strasbourg"]).expect(1);
    let release = kept.text().split("`afar layout release ").nth(1).and_then(|rest| rest.split('`').next()).map(String::from);
    operator.change(&["layout", "release", &release.unwrap_or_else(|| panic!("it says how to go on: {kept}"))]);
    until("Strasbourg has handed over everything", SETTLE_MAX, || {
        let ran = operator.try_change(&["node", "remove", "strasbourg"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    // At once: it is out of service, and nobody waits for it.
    cluster.node_mut("strasbourg").kill();
    operator.wait_in_force(&cluster);
    for at in ["madrid", "roubaix"] {
        wait_readable(&cluster, &objects, at);
    }
    let status = cluster.wait_state("safe");
    assert_eq!(status["objects"]["safe"], OBJECTS, "{}", summary(&status));
    cluster.node_mut("roubaix").burn();
    wait_readable(&cluster, &objects, "madrid");
}

#[test]
fn nothing_is_lost_when_a_removed_node_is_stopped_at_once_and_another_site_burns() {
    let (mut cluster, operator, objects) = start();
    operator.change(&["node", "drain", "strasbourg"]);
    operator.wait_in_force(&cluster);
    until("Strasbourg has handed over everything", SETTLE_MAX, || {
        let ran = operator.try_change(&["node", "remove", "strasbourg"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("warsaw").burn();
    wait_readable(&cluster, &objects, "madrid");
    // The layout without Strasbourg may still be on its way: then it waits for Warsaw, never for the one that has left.
    let status = cluster.status();
    let waits = status["transition"]["waits_for"].as_array();
    assert!(waits.into_iter().flatten().all(|wait| wait["node"] == "warsaw" || wait["node"] == "madrid"), "{}", status["transition"]);
}

#[test]
fn nothing_is_lost_when_a_node_stops_halfway_through_its_drain_and_is_given_up() {
    let (mut cluster, operator, objects) = start();
    operator.change(&["node", "drain", "strasbourg"]);
    cluster.node_mut("strasbourg").burn();
    wait_awaited(&cluster, "strasbourg", "silent");
    operator.change(&["node", "remove", "strasbourg", "--lost"]);
    operator.wait_in_force(&cluster);
    let status = cluster.wait_state("safe");
    assert_eq!((&status["transition"], &status["objects"]["safe"]), (&Value::Null, &OBJECTS.into()), "{}", summary(&status));
    cluster.node_mut("warsaw").burn();
    wait_readable(&cluster, &objects, "madrid");
}
