//! Layouts that change while data are written and read: nodes come, hand over what they hold, and leave.
use crate::common::{Known, put_bytes};
use afar_tests::{
    cluster::{Cluster, MADRID, ROUBAIX, STRASBOURG, Setup, THREE, TWO, WARSAW, check, node_state},
    command::Afar,
    data,
    limits::SETTLE_MAX,
    load::Load,
    operator::{Operator, own_check, summary},
    wait::until,
    wire,
};

/// Fewer partitions than usual: an unoptimised planner is slow.
const PARTITIONS: u32 = 256;

fn start(places: &[afar_tests::cluster::Place]) -> (Cluster, Operator) {
    let cluster = Setup::of(places).partitions(PARTITIONS).start();
    let operator = Operator::of(&cluster);
    (cluster, operator)
}

/// Everything is safe, and nothing is where it is not assigned.
#[track_caller]
fn wait_safe_and_tidy(cluster: &Cluster) {
    let status = cluster.wait_state("safe");
    assert_eq!(status["objects"]["total"], status["objects"]["safe"], "{}", summary(&status));
}

/// A node holds nothing of the bucket any more.
#[track_caller]
fn wait_empty(load: &Load, name: &str) {
    let (witness, runtime) = (load.witness().clone(), wire::runtime());
    until(&format!("{name} holds nothing"), SETTLE_MAX, || {
        load.check();
        let held = runtime.block_on(witness.holdings(name)).len();
        if held == 0 { Ok(()) } else { Err(format!("{held} records")) }
    });
}

#[test]
fn a_cluster_is_five_commands() {
    let mut cluster = Setup::of(&[]).make();
    let operator = Operator::of(&cluster);
    // The first of the five, `afar cluster init`, has been run.
    operator.prepare(&mut cluster, "strasbourg", &STRASBOURG);
    operator.prepare(&mut cluster, "warsaw", &WARSAW);
    cluster.start_all();
    let status = until("it is safe", SETTLE_MAX, || {
        let ran = cluster.afar().run(&["status", "--json"]);
        if ran.code == 0 && ran.json()["state"] == "safe" { Ok(ran.json()) } else { Err(ran.to_string()) }
    });
    assert_eq!(status["layout_version"], 2, "{status}");
    cluster.bucket("first", &[]);
    let mut chance = data::chance(data::seed());
    let object = Known::put(&cluster.afar(), &mut chance, "first/a", 100_000);
    for name in ["strasbourg", "warsaw"] {
        object.must_be_at(&cluster.afar_at(&[name]));
    }
    cluster.wait_state("safe");
}

#[test]
fn rule_21_a_node_joins_hands_over_and_leaves_while_everything_is_read_back() {
    let (mut cluster, operator) = start(&TWO);
    cluster.bucket("moving", &[]);
    let load = Load::start(&cluster, "moving", data::seed());
    load.go_on(20);
    operator.add(&mut cluster, "madrid", &MADRID);
    load.witness().meet(&cluster, "madrid");
    load.go_on(20);
    operator.wait_in_force(&cluster);
    let refused = operator.try_change(&["node", "remove", "warsaw"]).expect(1);
    assert!(refused.text().contains("drain it before it is removed"), "{refused}");
    operator.change(&["node", "drain", "warsaw"]);
    let refused = operator.try_change(&["node", "remove", "warsaw"]).expect(11);
    assert!(refused.text().contains("drained") || refused.text().contains("handed over"), "{refused}");
    load.go_on(20);
    operator.wait_in_force(&cluster);
    wait_empty(&load, "warsaw");
    until("it says that it is done", SETTLE_MAX, || {
        // To say it again signs nothing.
        let said = operator.ask(&["node", "drain", "warsaw"]);
        assert_eq!(said["applied"], false, "{said}");
        if said["draining"][0]["done"] == true { Ok(()) } else { Err(said.to_string()) }
    });
    until("the drain is done", SETTLE_MAX, || {
        let ran = operator.try_change(&["node", "remove", "warsaw"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    load.witness().dismiss("warsaw");
    load.go_on(5);
    operator.wait_in_force_at(&cluster, &["strasbourg", "madrid"]);
    cluster.node_mut("warsaw").kill();
    load.go_on(20);
    let objects = load.finish();
    wait_safe_and_tidy(&cluster);
    for object in &objects {
        Known { at: format!("moving/{}", object.key), content: object.content.to_vec() }.must_be_at(&cluster.afar_at(&["madrid"]));
    }
}

#[test]
fn rule_21_capacities_change_and_change_back_while_everything_is_read_back() {
    let (cluster, operator) = start(&[STRASBOURG, WARSAW, MADRID]);
    cluster.bucket("moving", &[]);
    let load = Load::start(&cluster, "moving", data::seed());
    load.go_on(20);
    // Three changes in a row, each before the one before it is in force.
    let moved = operator.change(&["node", "set", "madrid", "--capacity", "3GiB"]);
    assert!(moved["plans"][0]["moves"].as_array().is_some_and(|moves| !moves.is_empty()), "{moved}");
    operator.change(&["node", "drain", "strasbourg"]);
    load.go_on(10);
    operator.wait_in_force(&cluster);
    wait_empty(&load, "strasbourg");
    let before = operator.history();
    operator.change(&["layout", "rollback", &before[0]]);
    load.go_on(20);
    operator.wait_in_force(&cluster);
    load.finish();
    wait_safe_and_tidy(&cluster);
    let layout = operator.ask(&["layout", "show"])["layout"].clone();
    let nodes = layout["nodes"].as_array().unwrap();
    assert!(nodes.iter().all(|node| node["duty"] == "active" && node["capacity_bytes"] == 1 << 30), "{layout}");
}

#[test]
fn rule_21_when_all_nodes_die_in_the_middle_the_transition_goes_on() {
    let (mut cluster, operator) = start(&TWO);
    cluster.bucket("moving", &[]);
    let load = Load::start(&cluster, "moving", data::seed());
    load.go_on(40);
    operator.add(&mut cluster, "madrid", &MADRID);
    load.witness().meet(&cluster, "madrid");
    operator.change(&["node", "drain", "warsaw"]);
    load.disturbed(true);
    for name in ["strasbourg", "warsaw", "madrid"] {
        cluster.node_mut(name).kill();
    }
    cluster.start_all();
    cluster.wait_formed();
    load.disturbed(false);
    load.go_on(10);
    operator.wait_in_force(&cluster);
    wait_empty(&load, "warsaw");
    load.finish();
    wait_safe_and_tidy(&cluster);
}

#[test]
fn a_replaced_node_heals_and_two_instances_of_one_name_are_refused() {
    let (mut cluster, operator) = start(&THREE);
    cluster.bucket("replaced", &[]);
    let mut chance = data::chance(data::seed());
    let objects: Vec<Known> = (0..6).map(|n| Known::put(&cluster.afar(), &mut chance, &format!("replaced/{n}"), 100_000)).collect();
    cluster.wait_state("safe");
    cluster.node_mut("warsaw").burn();
    std::fs::remove_dir_all(cluster.node("warsaw").folder()).unwrap();
    let bundle = cluster.node("warsaw").folder().display().to_string();
    operator.change(&["node", "replace", "warsaw", "-o", &bundle]);
    cluster.write_edits("warsaw");
    cluster.node_mut("warsaw").start();
    cluster.wait_state("safe");
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["warsaw"]));
    }
    // The same bundle, used for a second machine.
    let twin = cluster.twin("warsaw");
    until("the status names the two instances", SETTLE_MAX, || {
        let status = cluster.status();
        match check(&status, "peer") {
            Some(check) if check["detail"].as_str().is_some_and(|detail| detail.contains("two live instances")) => Ok(()),
            _ => Err(summary(&status)),
        }
    });
    // Neither of the two counts: without Warsaw nothing is far.
    let refused = until("warsaw is refused", SETTLE_MAX, || {
        let ran = cluster.afar_at(&["strasbourg"]).run_with_input(&["put", "--json", "-", "replaced/x"], b"x");
        if ran.code == 5 || ran.code == 14 { Ok(ran) } else { Err(ran.to_string()) }
    });
    // As long as the second one has not spoken again the first may be the one that was replaced.
    let words = ["two live instances", "other disks have answered to this node's name"];
    assert!(words.iter().any(|words| refused.text().contains(words)), "{refused}");
    for object in &objects {
        // Nor is anything lost, or said to be missing.
        cluster.afar_at(&["strasbourg"]).run(&["cat", &object.at]).expect_one_of(&[0, 14]);
    }
    drop(twin);
}

#[test]
fn rule_19_the_old_disks_of_a_replaced_node_are_refused_and_the_new_ones_go_on() {
    let (mut cluster, operator) = start(&TWO);
    cluster.bucket("replaced", &[]);
    cluster.wait_state("safe");
    put_bytes(&cluster.afar(), b"before", "replaced/x");
    cluster.node_mut("warsaw").kill();
    let (folder, former) = (cluster.node("warsaw").folder().to_owned(), cluster.scratch().join("former"));
    std::fs::rename(&folder, &former).unwrap();
    operator.change(&["node", "replace", "warsaw", "-o", &folder.display().to_string()]);
    cluster.write_edits("warsaw");
    cluster.node_mut("warsaw").start();
    cluster.wait_state("safe");
    put_bytes(&cluster.afar(), b"after", "replaced/x");
    // The machine that was written off is switched on.
    let former = cluster.beside("warsaw", former);
    let told = |cluster: &Cluster| {
        until("the other is told of them", SETTLE_MAX, || {
            let status = cluster.afar_at(&["strasbourg"]).run(&["status", "--json"]).json();
            let detail = own_check(&status, "peer", "strasbourg").and_then(|check| check["detail"].as_str());
            if detail.is_some_and(|detail| detail.contains("disks that it has replaced")) { Ok(()) } else { Err(summary(&status)) }
        });
    };
    told(&cluster);
    let at_former = cluster.afar().with("AFAR_ENDPOINT", former.endpoint());
    for round in 0..3 {
        put_bytes(&cluster.afar(), b"again", &format!("replaced/{round}"));
        let stale = at_former.run(&["cat", "replaced/x"]);
        assert!(stale.code != 0 || stale.stdout == b"after", "{stale}");
        let absent = at_former.run(&["cat", &format!("replaced/{round}")]);
        assert!(absent.code != 10, "what it has not is not proved to be nowhere: {absent}");
        assert_ne!(at_former.run_with_input(&["put", "-", "replaced/alone"], b"x").code, 0);
    }
    // Who was restarted meanwhile knows it still.
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("strasbourg").start();
    cluster.wait_state("safe");
    told(&cluster);
    put_bytes(&cluster.afar(), b"still", "replaced/still");
    drop(former);
    put_bytes(&cluster.afar(), b"later", "replaced/later");
    cluster.wait_state("safe");
}

#[test]
fn a_second_node_is_not_replaced_unasked_while_the_first_is_being_filled() {
    let (mut cluster, operator) = start(&THREE);
    cluster.bucket("twice", &[]);
    cluster.wait_state("safe");
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).burn();
    }
    // Nobody can fill it as long as Warsaw is away.
    cluster.node_mut("strasbourg").spawn();
    until("strasbourg is being filled", SETTLE_MAX, || {
        let status = cluster.status();
        if node_state(&status, "strasbourg").as_deref() == Some("catching_up") { Ok(()) } else { Err(summary(&status)) }
    });
    let (folder, bundle) = (operator.folder().display().to_string(), cluster.scratch().join("w").display().to_string());
    let arguments = ["node", "replace", "warsaw", "-o", &bundle, "--dir", &folder];
    let refused = cluster.afar().run(&arguments).expect(2);
    assert!(refused.text().contains("strasbourg has not caught up yet") && refused.text().contains("--yes"), "{refused}");
    assert!(!std::path::Path::new(&bundle).exists());
    cluster.afar().run(&[&arguments[..], &["--yes"]].concat()).expect(0);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_happens() {
    let (mut cluster, operator) = start(&THREE);
    cluster.bucket("kept", &[]);
    put_bytes(&cluster.afar(), b"kept", "kept/a");
    let bundle = cluster.scratch().join("bundle").display().to_string();
    let add = |name: &str, site: &str| operator.try_change(&["node", "add", name, "--site", site, "--at", "127.0.0.1:7799", "-o", &bundle]);
    let again = add("warsaw", "warsaw").expect(2);
    assert!(again.text().contains("already"), "{again}");
    let nowhere = add("krakow", "krakow").expect(2);
    assert!(nowhere.text().contains("krakow"), "{nowhere}");
    let elsewhere = add("warsaw2", "warsaw=10,10,PL").expect(2);
    assert!(elsewhere.text().contains("another place"), "{elsewhere}");
    let unknown = operator.try_change(&["node", "drain", "krakow"]).expect(2);
    assert!(unknown.text().contains("strasbourg, roubaix, warsaw"), "it says which there are: {unknown}");
    assert!(!std::path::Path::new(&bundle).exists(), "nothing is left behind");

    // Without Warsaw no two sites are far apart: that is refused with what would help, looked at or meant; and nodes refuse it.
    let dry = operator.run(&["node", "drain", "warsaw", "--dry-run"]).expect(5).json();
    let infeasible = &dry["infeasible"][0];
    assert!(infeasible["why"].as_str().is_some_and(|why| why.contains("405.8")), "{dry}");
    assert!(infeasible["suggestions"].as_array().is_some_and(|found| !found.is_empty()), "{dry}");
    for meant in [["node", "drain", "warsaw"], ["site", "drain", "warsaw"]] {
        let refused = operator.try_change(&meant).expect(5);
        assert!(refused.text().contains("could not be kept any more") && refused.text().contains("not applied"), "{refused}");
    }
    let drains = |document: &mut afar_model::document::Document| {
        document.nodes.iter_mut().filter(|node| node.name == "warsaw").for_each(|node| node.duty = afar_model::layout::Duty::Draining);
    };
    let refused = operator.apply(&cluster, drains).unwrap_err().to_string();
    assert!(refused.contains("could not be kept any more") && refused.contains("not every node would take it"), "{refused}");
    assert_eq!(operator.version(), 1, "nothing has changed");

    // A certificate of another authority opens nothing.
    let stranger = cluster.scratch().join("stranger");
    std::fs::create_dir_all(&stranger).unwrap();
    afar_tests::certificates::Authority::new().certify(&stranger, "test", "warsaw", false);
    let certificates = ["node.crt", "node.key"].map(|file| std::fs::read(stranger.join(file)).unwrap());
    let answered = wire::runtime().block_on(async {
        let channel = wire::connect_with(&cluster, "strasbourg", &certificates[0], &certificates[1]).await;
        let channel = channel.map_err(|error| error.to_string())?;
        let mut client = afar_proto::v1::layouts_client::LayoutsClient::new(channel);
        client.get(afar_proto::v1::GetLayoutsRequest {}).await.map(|_| ()).map_err(|status| status.to_string())
    });
    assert!(answered.is_err(), "a foreign certificate read the layout");
    cluster.node_mut("warsaw").kill();
    let nobody = Afar::new(cluster.scratch(), []);
    nobody.run(&["layout", "show", "--dir", &cluster.scratch().display().to_string()]).expect(2);
}

#[test]
fn a_site_that_is_too_near_never_takes_over_alone() {
    let (mut cluster, operator) = start(&TWO);
    cluster.bucket("near", &[]);
    operator.add(&mut cluster, "roubaix", &ROUBAIX);
    operator.wait_in_force(&cluster);
    assert_eq!(node_state(&cluster.status(), "roubaix").as_deref(), Some("up"));
    // Strasbourg may go, for Roubaix is far from Warsaw; Warsaw may not.
    operator.run(&["node", "drain", "strasbourg", "--dry-run"]).expect(0);
    operator.run(&["node", "drain", "warsaw", "--dry-run"]).expect(5);
    let status = cluster.status();
    assert!(own_check(&status, "layout", "roubaix").is_some_and(|check| check["state"] == "ok"), "{}", summary(&status));
}
