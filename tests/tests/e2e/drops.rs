//! When a copy may be dropped (rules 10 and 11): never on silence, never on a promise, never under the latch.
use crate::common::{Known, MIB};
use afar_model::{id::RecordId, record::RecordKey};
use afar_proto::v1::{Proof, ProveRequest, RecordKey as WireKey, peer_client::PeerClient};
use afar_tests::{
    cluster::{Cluster, MADRID, ROUBAIX, STRASBOURG, Setup, WARSAW},
    data, disks,
    limits::{SETTLE_MAX, STAYS},
    operator::{Operator, own_check, summary},
    wait::{stays, until},
    wire,
    witness::Witness,
};
use std::collections::BTreeSet;
use tokio::runtime::Runtime;

/// Four sites; Strasbourg and Warsaw are assigned everything, Roubaix may stand in for Strasbourg, and Madrid may hold nothing.
struct Handoff {
    cluster: Cluster,
    witness: Witness,
    runtime: Runtime,
    objects: Vec<Known>,
}

impl Handoff {
    /// Objects that were put while Strasbourg was down: Roubaix holds its copies.
    fn new() -> Self {
        let mut cluster = Setup::of(&[STRASBOURG, ROUBAIX, WARSAW, MADRID]).partitions(256).start();
        cluster.bucket("hinted", &["--home", "strasbourg", "--countries", "FR", "--countries", "PL"]);
        let (witness, runtime) = (Witness::of(&cluster, "hinted"), wire::runtime());
        cluster.node_mut("strasbourg").kill();
        let (afar, mut chance) = (cluster.afar_at(&["warsaw", "roubaix"]), data::chance(data::seed()));
        let put = |n: usize| Known::put(&afar, &mut chance, &format!("hinted/{n}"), [3_000, 100_000, 2 * MIB][n % 3]);
        let objects: Vec<Known> = (0..6).map(put).collect();
        let made = Self { cluster, witness, runtime, objects };
        assert!(!made.held("roubaix").is_empty(), "Roubaix stands in");
        made
    }

    fn held(&self, name: &str) -> BTreeSet<RecordKey> {
        self.runtime.block_on(self.witness.holdings(name))
    }

    #[track_caller]
    fn wait_held(&self, name: &str, wanted: &BTreeSet<RecordKey>) {
        until(&format!("{name} holds everything"), SETTLE_MAX, || {
            let held = self.held(name);
            if held.is_superset(wanted) { Ok(()) } else { Err(format!("{} of {}", held.intersection(wanted).count(), wanted.len())) }
        });
    }

    #[track_caller]
    fn stays(&self, what: &str, wanted: &BTreeSet<RecordKey>) {
        stays(what, STAYS, || if self.held("roubaix") == *wanted { Ok(()) } else { Err("Roubaix has dropped something") });
    }

    #[track_caller]
    fn wait_dropped(&self) {
        until("what was held for Strasbourg is dropped", SETTLE_MAX, || {
            let left = self.held("roubaix").len();
            if left == 0 { Ok(()) } else { Err(left) }
        });
    }

    fn all_readable(&self, names: &[&str]) {
        for object in &self.objects {
            object.must_be_at(&self.cluster.afar_at(names));
        }
    }
}

#[test]
fn rule_11_while_an_assigned_holder_or_anybody_else_is_silent_nobody_drops() {
    let mut handoff = Handoff::new();
    let held = handoff.held("roubaix");
    handoff.stays("an assigned holder is down", &held);
    // Strasbourg has it all now, and Warsaw has; but rule 10 wants everybody, and Madrid does not answer.
    handoff.cluster.node_mut("madrid").kill();
    handoff.cluster.node_mut("strasbourg").start();
    handoff.wait_held("strasbourg", &held);
    handoff.stays("somebody is silent", &held);
    handoff.cluster.node_mut("madrid").start();
    handoff.wait_dropped();
    assert!(handoff.held("strasbourg").is_superset(&held), "assigned holders never drop");
    assert!(handoff.held("warsaw").is_superset(&held), "assigned holders never drop");
    handoff.all_readable(&["strasbourg", "warsaw"]);
    handoff.cluster.wait_state("safe");
}

#[test]
fn rule_11_a_holder_whose_copy_is_bad_blocks_the_drop_until_it_is_mended() {
    let mut handoff = Handoff::new();
    let held = handoff.held("roubaix");
    handoff.cluster.node_mut("madrid").kill();
    handoff.cluster.node_mut("strasbourg").start();
    handoff.wait_held("strasbourg", &held);
    // Both assigned copies of every chunk go bad, so that the surplus one is the last good one. Whoever lets go of it because
    // of what the others have listed, and not because of what they have just read, loses it.
    let large = handoff.objects.iter().filter(|object| object.content.len() > 64 << 10);
    for chunk in large.flat_map(|object| object.content.chunks(MIB)) {
        for name in ["strasbourg", "warsaw"] {
            for place in disks::find(&handoff.cluster.node(name).data(), chunk) {
                disks::flip(&place, 1234);
            }
        }
    }
    handoff.cluster.node_mut("madrid").start();
    handoff.wait_dropped();
    handoff.all_readable(&["strasbourg"]);
    handoff.all_readable(&["warsaw"]);
    let status = handoff.cluster.wait_state("safe");
    assert_eq!(status["objects"]["safe"], 6, "{}", summary(&status));
}

#[test]
fn rule_11_nothing_is_proved_by_another_layout() {
    let cluster = Cluster::two();
    cluster.bucket("proved", &[]);
    let mut chance = data::chance(data::seed());
    let object = Known::put(&cluster.afar(), &mut chance, "proved/a", 100_000);
    let (witness, runtime) = (Witness::of(&cluster, "proved"), wire::runtime());
    let key = WireKey::from(witness.key(RecordId::of(&object.content)));
    let proof = |layout: Vec<u8>| {
        runtime.block_on(async {
            let mut warsaw = PeerClient::new(wire::connect(&cluster, "warsaw", Some("strasbourg")).await.unwrap());
            let request = ProveRequest { keys: vec![key.clone()], layout: layout.into() };
            warsaw.prove(request).await.unwrap().into_inner().proofs().next()
        })
    };
    let (current, _) = runtime.block_on(wire::layouts_at(&cluster, "warsaw")).unwrap();
    let hash: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&current[2 * n..2 * n + 2], 16).unwrap()).collect();
    assert_eq!(proof(hash), Some(Proof::Durable));
    assert_eq!(proof(vec![7; 32]), Some(Proof::Unknown));
}

#[test]
fn rule_10_after_the_loss_of_a_site_nothing_is_dropped_until_that_very_loss_is_released() {
    let mut cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).start();
    let operator = Operator::of(&cluster);
    operator.add(&mut cluster, "roubaix", &ROUBAIX);
    operator.wait_in_force(&cluster);
    cluster.bucket("latched", &[]);
    let (witness, runtime) = (Witness::of(&cluster, "latched"), wire::runtime());
    let mut chance = data::chance(data::seed());
    let objects: Vec<Known> = (0..12).map(|n| Known::put(&cluster.afar(), &mut chance, &format!("latched/{n}"), 70_000)).collect();
    cluster.node_mut("strasbourg").burn();
    operator.change(&["site", "lost", "strasbourg"]);
    witness.dismiss("strasbourg");
    operator.wait_in_force(&cluster);
    let lost = operator.history().pop().unwrap();
    let hash = lost.split_once('-').unwrap().1.to_owned();
    let status = cluster.status();
    for name in ["warsaw", "madrid", "roubaix"] {
        let check = own_check(&status, "layout", name).unwrap();
        assert_eq!(check["state"], "warning", "{}", summary(&status));
        assert!(check["detail"].as_str().unwrap().contains(&format!("afar layout release {hash}")), "{check}");
    }
    // Everything answers and everything is safe, and what is moved away now stays all the same.
    operator.change(&["node", "set", "madrid", "--capacity", "4GiB"]);
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    let copies = || runtime.block_on(witness.copies());
    let before = copies();
    let surplus = before.values().filter(|holders| holders.len() > 2).count();
    assert!(surplus > 0, "nothing was moved: {before:?}");
    stays("the latch is closed", STAYS, || if copies() == before { Ok(()) } else { Err("a copy was dropped") });
    // It is on disk, and not only in memory.
    for name in ["warsaw", "madrid", "roubaix"] {
        cluster.node_mut(name).kill();
    }
    for name in ["warsaw", "madrid", "roubaix"] {
        cluster.node_mut(name).start();
    }
    let check = own_check(&cluster.status(), "layout", "warsaw").cloned().unwrap();
    assert!(check["detail"].as_str().unwrap().contains(&hash), "{check}");
    for wrong in ["ffffffff".to_owned(), operator.history()[0].split_once('-').unwrap().1.to_owned()] {
        let refused = operator.try_change(&["layout", "release", &wrong]).expect(2);
        assert!(refused.text().contains(&hash), "it says which one: {refused}");
    }
    operator.change(&["layout", "release", &hash]);
    operator.wait_in_force(&cluster);
    until("every record has its two copies and no more", SETTLE_MAX, || {
        let now = copies();
        if now.values().all(|holders| holders.len() == 2) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(own_check(&cluster.status(), "layout", "warsaw").unwrap()["state"], "ok");
    for object in &objects {
        object.must_be_at(&cluster.afar_at(&["madrid"]));
    }
    let again = operator.try_change(&["layout", "release", &hash]).expect(2);
    assert!(again.text().contains("answered for already"), "{again}");
}
