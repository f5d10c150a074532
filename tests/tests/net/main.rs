//! Clusters of machines with addresses of their own, cut and changed while they serve: `make test-net`, which needs root for network
//! namespaces. After each: everything acknowledged is there and verifies, and in the end everything is safe.
#![allow(clippy::unwrap_used, clippy::expect_used)]
mod world;

use afar_tests::{limits::SETTLE_MAX, wait::until};
use world::World;

const STRASBOURG: &str = "strasbourg=48.5734,7.7521,FR";
const WARSAW: &str = "warsaw=52.2297,21.0122,PL";
const MADRID: &str = "madrid=40.4168,-3.7038,ES";

/// Three far-apart sites with a node each, and a bucket.
fn three() -> Option<World> {
    let mut world = World::new()?;
    world.add("s1", STRASBOURG);
    world.add("w1", WARSAW);
    world.add("m1", MADRID);
    world.settled("three sites");
    world.user().ok(&["bucket", "create", "data"]);
    Some(world)
}

#[track_caller]
fn state_of(world: &World, node: &str) -> String {
    let status = world.status();
    let nodes = status["sites"].as_array().into_iter().flatten().flat_map(|site| site["nodes"].as_array().cloned().unwrap_or_default());
    nodes.filter(|found| found["name"] == node).map(|found| found["state"].to_string()).collect()
}

#[test]
fn a_site_that_is_cut_off_loses_nothing_and_returns() {
    let Some(world) = three() else { return };
    let writer = world.writer("cut");
    world.cable("s1", false);
    until("strasbourg is seen to be gone", SETTLE_MAX, || {
        let state = state_of(&world, "s1");
        if state.contains("down") { Ok(()) } else { Err(state) }
    });
    let said = world.user().afar(&["put", "/etc/hostname", "data/while-cut"]);
    assert_eq!(said.code, 0, "the others go on: {}", said.err);
    world.cable("s1", true);
    world.settled("the site is back");
    let acknowledged = writer.end();
    assert!(!acknowledged.is_empty());
    world.all_there(&acknowledged);
    world.settled("all of it is where it belongs");
}

#[test]
fn a_way_that_is_cut_in_one_direction_only_loses_nothing() {
    let Some(world) = three() else { return };
    let writer = world.writer("way");
    world.way("s1", "w1", false);
    until("both sides notice", SETTLE_MAX, || {
        let checks = world.status()["checks"].to_string();
        if checks.contains("w1") && checks.contains("s1") { Ok(()) } else { Err(checks) }
    });
    assert_eq!(world.user().afar(&["put", "/etc/hostname", "data/one-way"]).code, 0);
    world.way("s1", "w1", true);
    world.settled("mended");
    let acknowledged = writer.end();
    world.all_there(&acknowledged);
}

#[test]
fn nodes_join_and_drain_under_load_and_all_restart_in_the_middle() {
    let Some(mut world) = three() else { return };
    let writer = world.writer("load");
    world.add("w2", "warsaw");
    world.settled("w2 has joined");
    world.user().ok(&["node", "drain", "w1", "-y"]);
    world.restart_all();
    until("w1 has handed over everything and is removed", 2 * SETTLE_MAX, || {
        let said = world.user().afar(&["node", "remove", "w1", "-y"]);
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    });
    world.settled("w1 is out");
    let acknowledged = writer.end();
    assert!(!acknowledged.is_empty());
    world.kill("w1");
    world.all_there(&acknowledged);
}

#[test]
fn a_burnt_node_is_replaced_and_the_latch_holds_until_it_is_released() {
    let Some(mut world) = three() else { return };
    let writer = world.writer("fire");
    world.kill("s1");
    world.user().ok(&["site", "lost", "strasbourg", "-y"]);
    world.add("s2", "geneva=46.2044,6.1432,CH");
    world.settled("what burnt is at Geneva or elsewhere again");
    let acknowledged = writer.end();
    world.all_there(&acknowledged);
    let checks = world.status()["checks"].to_string();
    assert!(checks.contains("afar layout release"), "{checks}");
}

#[test]
fn a_node_that_was_away_while_layouts_changed_does_no_harm() {
    let Some(mut world) = three() else { return };
    let before = world.writer("before");
    until("something is written", SETTLE_MAX, || if world.user().afar(&["ls", "data"]).out.is_empty() { Err("nothing") } else { Ok(()) });
    let mut acknowledged = before.end();
    world.kill("s1");
    world.user().ok(&["node", "set", "w1", "--capacity", "2GiB", "-y"]);
    world.user().ok(&["node", "set", "m1", "--capacity", "3GiB", "-y"]);
    let during = world.writer("during");
    world.start("s1");
    world.settled("it has caught up");
    acknowledged.extend(during.end());
    world.all_there(&acknowledged);
    world.settled("all of it is where it belongs");
}
