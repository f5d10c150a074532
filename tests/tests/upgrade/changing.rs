//! From a cluster that cannot change its layout to one that can, and why there is no way back from there.
use crate::mixed::{Mixed, THREE};
use afar_tests::{
    cluster::{Place, ROUBAIX, STRASBOURG, WARSAW, node_state},
    data,
    limits::{SETTLE_MAX, STAYS},
    load::Load,
    operator::{Operator, summary},
    wait::{stays, until},
    wire,
};
use std::fs;

const MORE: usize = 10;

/// Takes the keys that earlier programs do not know out of a node's file; what stood there.
fn unname_custodians(mixed: &Mixed, name: &str) -> toml::Value {
    let mut file = mixed.cluster.node(name).config();
    let named = file["layout"].as_table_mut().unwrap().remove("custodians").expect("named");
    mixed.cluster.node(name).write_config(&file);
    named
}

/// Which nodes let the folder's key sign.
#[track_caller]
fn ready(operator: &Operator) -> Vec<String> {
    let told = operator.ask(&["cluster", "adopt"]);
    assert_eq!(told["made"], false, "made once: {told}");
    told["ready"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Restarts a node; if it is to forget, as one that has never begun with a layout.
fn restart(mixed: &mut Mixed, load: &Load, name: &str, forget: bool) {
    load.disturbed(true);
    let node = mixed.cluster.node_mut(name);
    node.stop();
    if forget {
        fs::remove_dir_all(node.folder().join("state/layouts")).unwrap();
        fs::remove_file(node.folder().join("state/has_layouts")).unwrap();
    }
    node.start();
    mixed.cluster.wait_formed();
    load.disturbed(false);
}

#[track_caller]
fn must_refuse(operator: &Operator, words: &[&str]) {
    let refused = operator.try_change(&["node", "set", "madrid", "--capacity", "2GiB"]).expect(1);
    for word in words {
        assert!(refused.text().contains(word), "{word:?}: {refused}");
    }
    assert_eq!(operator.version(), 1, "nothing has changed");
}

#[test]
#[ignore = "needs the programs of an earlier version: `make test-upgrade`"]
fn rule_21_an_earlier_cluster_is_adopted_and_changes_only_when_every_node_knows_layouts() {
    let mut mixed = Mixed::made_before(&THREE);
    let (before, today) = (mixed.before.clone(), mixed.today.clone());
    let operator = Operator::of(&mixed.cluster);
    let told = operator.run(&["layout", "show"]).expect(2);
    assert!(told.text().contains("afar cluster adopt"), "{told}");
    let made = operator.ask(&["cluster", "adopt"]);
    assert_eq!((&made["made"], made["waiting"].as_object().map(serde_json::Map::len)), (&true.into(), Some(3)), "{made}");
    assert!(ready(&operator).is_empty());
    let load = Load::start(&mixed.cluster, "kept", data::seed());
    load.go_on(MORE);

    load.disturbed(true);
    mixed.replace("strasbourg", &today);
    mixed.replace("warsaw", &today);
    load.disturbed(false);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw"]);
    // The node itself does not know the question; both others, who hear its heartbeats, say so, too.
    let refusals = |node: &str| format!("{node}: madrid runs a version that knows no layouts");
    must_refuse(&operator, &["it runs a version that knows no layouts", &refusals("strasbourg"), &refusals("warsaw")]);

    // Upgraded, but its file was forgotten.
    let named = unname_custodians(&mixed, "madrid");
    load.disturbed(true);
    mixed.replace("madrid", &today);
    load.disturbed(false);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw"]);
    must_refuse(&operator, &["madrid: ", "custodians in every node's configuration"]);
    mixed.cluster.node("madrid").configure("layout.custodians", named.clone());
    load.disturbed(true);
    mixed.replace("madrid", &today);
    load.disturbed(false);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw", "madrid"]);

    // A node keeps those whom it has begun with, until it is made to forget that it has begun; which it may, before any change.
    mixed.cluster.node("madrid").configure("layout.custodians", vec!["00".repeat(32)]);
    restart(&mut mixed, &load, "madrid", false);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw", "madrid"]);
    restart(&mut mixed, &load, "madrid", true);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw"]);
    mixed.cluster.node("madrid").configure("layout.custodians", named);
    restart(&mut mixed, &load, "madrid", true);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw", "madrid"]);

    // Nothing was changed yet: a node may still go back, once its file is one that it understands.
    load.disturbed(true);
    mixed.cluster.node_mut("strasbourg").stop();
    mixed.cluster.node_mut("strasbourg").run_by(&before);
    mixed.cluster.node_mut("strasbourg").spawn();
    assert_eq!(mixed.cluster.node_mut("strasbourg").wait_ended(), 2);
    assert!(mixed.cluster.node("strasbourg").log_end().contains("custodians"), "{}", mixed.cluster.node("strasbourg").log_end());
    unname_custodians(&mixed, "strasbourg");
    mixed.cluster.node_mut("strasbourg").start();
    mixed.cluster.wait_formed();
    load.disturbed(false);
    load.go_on(MORE);
    load.disturbed(true);
    // It has begun with them once, so it knows them without its file.
    mixed.replace("strasbourg", &today);
    load.disturbed(false);
    assert_eq!(ready(&operator), ["strasbourg", "warsaw", "madrid"]);

    operator.add(&mut mixed.cluster, "roubaix", &ROUBAIX);
    load.witness().meet(&mixed.cluster, "roubaix");
    load.go_on(MORE);
    operator.wait_in_force(&mixed.cluster);
    mixed.check();
    load.go_on(MORE);

    // Now there is no way back: the earlier program does not start on what has changed, and nothing is lost by trying.
    load.disturbed(true);
    mixed.cluster.node_mut("strasbourg").stop();
    mixed.cluster.node_mut("strasbourg").run_by(&before);
    mixed.cluster.node_mut("strasbourg").spawn();
    let code = mixed.cluster.node_mut("strasbourg").wait_ended();
    let log = mixed.cluster.node("strasbourg").log_end();
    assert!(code == 1 && log.contains("its format is not known to this program: upgrade it"), "{code}: {log}");
    mixed.cluster.node_mut("strasbourg").run_by(&today);
    mixed.cluster.node_mut("strasbourg").start();
    mixed.cluster.wait_formed();
    load.disturbed(false);
    load.go_on(MORE);
    load.finish();
    mixed.check();
}

/// The last of the places is an earlier node still, and down, when a node joins at Roubaix; then it is started as it is.
fn left_behind(places: &[Place]) {
    let mut mixed = Mixed::made_before(places);
    let (before, today) = (mixed.before.clone(), mixed.today.clone());
    let operator = Operator::of(&mixed.cluster);
    operator.ask(&["cluster", "adopt"]);
    mixed.check();
    let late = mixed.names().pop().unwrap();
    let others: Vec<&str> = mixed.names().into_iter().filter(|name| *name != late).collect();
    let named = unname_custodians(&mixed, late);
    for name in &others {
        mixed.replace(name, &today);
    }
    mixed.cluster.node_mut(late).kill();
    // Nobody that runs has ever heard it; a layout must be possible while a node is away.
    for name in &others {
        mixed.cluster.node_mut(name).kill();
        mixed.cluster.node_mut(name).start();
    }
    until("it is down", SETTLE_MAX, || match node_state(&mixed.cluster.status(), late) {
        Some(state) if state == "down" => Ok(()),
        state => Err(state),
    });
    operator.add(&mut mixed.cluster, "roubaix", &ROUBAIX);
    let mut puts = vec![mixed.put("kept/during", &["strasbourg"], &today)];
    mixed.cluster.node_mut(late).start();
    // It works by what it knows, and the others keep the layout open that it has: so it finds everything, or says that it cannot.
    let runtime = wire::runtime();
    stays("the earlier layout stays open", STAYS, || {
        let said = runtime.block_on(wire::layouts_at(&mixed.cluster, "strasbourg"));
        if said.as_ref().is_ok_and(|(_, open)| *open == 2) { Ok(()) } else { Err(format!("{said:?}")) }
    });
    puts.push(mixed.put("kept/after", &["strasbourg"], &today));
    puts.push(mixed.put("kept/through", &[late], &today));
    let codes: Vec<i32> = puts.into_iter().map(|put| put.expect_one_of(&[0, 5, 14]).code).collect();
    eprintln!("puts: {codes:?}: while it was away, since then, and through it");
    for client in [&before, &today] {
        mixed.must_not_hide(late, client);
        mixed.must_not_hide("strasbourg", client);
    }
    let status = mixed.cluster.status();
    assert_ne!(status["state"], "safe", "a node has another layout: {}", summary(&status));
    mixed.cluster.node(late).configure("layout.custodians", named);
    mixed.replace(late, &today);
    operator.wait_in_force(&mixed.cluster);
    mixed.check();
    let list = fs::read_to_string(mixed.cluster.node(late).folder().join("state/directories")).unwrap();
    assert!(list.starts_with("afar directories 2"), "{list}");
}

#[test]
#[ignore = "needs the programs of an earlier version: `make test-upgrade`"]
fn rule_21_an_earlier_node_that_was_away_when_the_layout_changed_hides_nothing() {
    left_behind(&THREE);
}

#[test]
#[ignore = "needs the programs of an earlier version: `make test-upgrade`"]
fn rule_21_nor_one_of_two_that_answers_alone() {
    left_behind(&[STRASBOURG, WARSAW]);
}
