//! Who is alive, by SWIM, between real processes: a node that dies, a way that is cut in one direction, a way that is slow.
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, THREE, WARSAW, check_of, node_state},
    limits::{SETTLE_MAX, STAYS},
    operator::{Operator, summary},
    wait::{stays, until},
};
use serde_json::Value;
use std::time::Duration;

/// What a node said of a peer's liveness since its start, oldest first: each is a change of its opinion.
fn opinions(cluster: &Cluster, at: &str, of: &str) -> Vec<String> {
    let of = format!("peer=\"{of}\"");
    let log = cluster.node(at).log();
    let lines = log.lines().filter(|line| line.contains(": membership ") && line.contains(&of));
    lines.filter_map(|line| Some(line.split_once("opinion=\"")?.1.split_once('"')?.0.to_owned())).collect()
}

/// What a node complains of in a peer.
fn complaint(status: &Value, at: &str, of: &str) -> Option<String> {
    let checks = status["checks"].as_array()?.iter();
    let mut complaints = checks.filter(|check| check["name"] == "peer" && check["node"] == at).filter_map(|check| check["detail"].as_str());
    complaints.find(|detail| detail.starts_with(&format!("{of}: "))).map(String::from)
}

#[test]
fn a_node_that_is_killed_is_suspect_then_down_and_is_itself_again_when_it_returns() {
    let mut cluster = Cluster::three();
    cluster.node_mut("warsaw").kill();
    let mut seen = Vec::new();
    until("the others call it down", SETTLE_MAX, || {
        let status = cluster.status();
        let state = node_state(&status, "warsaw").unwrap_or_default();
        if seen.last() != Some(&state) {
            seen.push(state.clone());
        }
        if state == "down" { Ok(()) } else { Err(format!("{seen:?} {}", summary(&status))) }
    });
    assert!(seen.iter().all(|state| ["up", "suspect", "down"].contains(&state.as_str())), "never anything else: {seen:?}");
    assert!(seen.contains(&"suspect".to_owned()), "suspect comes first: {seen:?}");
    for at in ["strasbourg", "roubaix"] {
        // Once suspected, once given up: that one node is silent is no reason to doubt another.
        until("each has said so", SETTLE_MAX, || {
            let said = opinions(&cluster, at, "warsaw");
            if said.ends_with(&["suspect".into(), "down".into()]) { Ok(()) } else { Err(format!("{at}: {said:?}")) }
        });
    }
    assert_eq!(opinions(&cluster, "strasbourg", "roubaix").last().map(String::as_str), Some("alive"));

    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    until("nobody complains of it", SETTLE_MAX, || {
        let status = cluster.status();
        let alive = |at: &&str| opinions(&cluster, at, "warsaw").last().is_some_and(|said| said == "alive");
        if ["strasbourg", "roubaix"].iter().all(alive) && complaint(&status, "strasbourg", "warsaw").is_none() {
            Ok(())
        } else {
            Err(summary(&status))
        }
    });
    cluster.wait_state("safe");
}

#[test]
fn a_way_that_is_cut_in_one_direction_makes_nobody_down_while_others_reach_it() {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).through_network().start();
    // Strasbourg's words arrive, and no answer comes back.
    cluster.network().cut_one_way("warsaw", "strasbourg");
    until("Strasbourg says who reaches it", SETTLE_MAX, || {
        let status = cluster.status();
        match complaint(&status, "strasbourg", "warsaw") {
            Some(why) if why.contains("reachable from ") && why.contains("madrid") => Ok(()),
            other => Err(format!("{other:?} {}", summary(&status))),
        }
    });
    stays("it is not called down", STAYS, || {
        let status = cluster.status();
        let down = |at: &str| opinions(&cluster, at, "warsaw").contains(&"down".to_owned());
        let states = [node_state(&status, "warsaw"), node_state(&status, "strasbourg")];
        if states.iter().any(|state| state.as_deref() == Some("down")) || ["strasbourg", "madrid"].iter().any(|at| down(at)) {
            return Err(format!("{states:?} {}", summary(&status)));
        }
        Ok(())
    });
    assert!(complaint(&cluster.status(), "madrid", "warsaw").is_none(), "Madrid reaches it as ever");
    cluster.network().heal();
    cluster.wait_formed();
    cluster.wait_state("safe");
}

#[test]
fn a_node_that_joins_is_looked_after_like_those_that_were_there() {
    let mut cluster = Cluster::two();
    Operator::of(&cluster).add(&mut cluster, "madrid", &MADRID);
    for at in ["strasbourg", "warsaw"] {
        until("the others have heard that it lives", SETTLE_MAX, || {
            let said = opinions(&cluster, at, "madrid");
            if said.last().is_some_and(|said| said == "alive") { Ok(()) } else { Err(format!("{at}: {said:?}")) }
        });
    }
}

#[test]
fn a_slow_peer_does_not_flap() {
    let cluster = Setup::of(&THREE).through_network().start();
    let before = |at: &str| opinions(&cluster, at, "warsaw");
    let (strasbourg, roubaix) = (before("strasbourg"), before("roubaix"));
    // As slow as a satellite: slower than what a node waits before it asks others to look.
    for name in ["strasbourg", "roubaix"] {
        cluster.network().round_trip(name, "warsaw", Duration::from_millis(600));
    }
    stays("opinions stay as they are", 2 * STAYS, || {
        let now = (before("strasbourg"), before("roubaix"), opinions(&cluster, "warsaw", "strasbourg"));
        if now.0 == strasbourg && now.1 == roubaix && now.2.iter().all(|said| said == "alive") { Ok(()) } else { Err(now) }
    });
    let status = cluster.status();
    assert_eq!(node_state(&status, "warsaw").as_deref(), Some("up"), "{}", summary(&status));
    assert!(check_of(&status, "strasbourg", "peer").is_none(), "{}", summary(&status));
}
