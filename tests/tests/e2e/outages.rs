//! Two faults that overlap: one loss for good, and somebody else away for a while. What nobody can know then is said to be
//! unknown (14); an older version, or "not found", would be a lie.
use crate::common::Known;
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, THREE, WARSAW},
    command::Afar,
    data,
    disks::find,
    limits::{SETTLE_MAX, STAYS},
    operator::{Operator, own_check, summary},
    wait::{stays, until, until_true},
};
use rand_chacha::ChaCha8Rng;

/// A key that was overwritten, and one that was new, while Strasbourg was away: acknowledged by Roubaix and Warsaw.
struct Outage {
    current: [Known; 2],
    chance: ChaCha8Rng,
}

impl Outage {
    fn new(cluster: &mut Cluster, at: &str) -> Self {
        cluster.bucket("outage", &[]);
        let mut chance = data::chance(data::seed());
        Known::put(&cluster.afar(), &mut chance, "outage/a", 3_000);
        cluster.wait_state("safe");
        cluster.node_mut("strasbourg").stop();
        let afar = cluster.afar_at(&[at]);
        let current = ["outage/a", "outage/new"].map(|key| Known::put(&afar, &mut chance, key, 3_000));
        Self { current, chance }
    }

    fn right_or_unknown(&self, afar: &Afar) -> Result<(), String> {
        for known in &self.current {
            let ran = afar.run(&["cat", &known.at]);
            if ran.code != 14 && (ran.code != 0 || ran.stdout != known.content) {
                return Err(format!("{}: {ran}", known.at));
            }
        }
        Ok(())
    }

    fn wait_right(&self, afar: &Afar) {
        until("what was acknowledged is read", SETTLE_MAX, || {
            let right = |known: &Known| {
                let ran = afar.run(&["cat", &known.at]);
                if ran.code == 0 && ran.stdout == known.content { Ok(()) } else { Err(ran.to_string()) }
            };
            self.current.iter().try_for_each(right)
        });
    }
}

#[test]
fn rule_3_a_replacement_has_caught_up_only_when_it_has_what_it_took_for_somebody_else() {
    let mut cluster = Cluster::three();
    let outage = Outage::new(&mut cluster, "warsaw");
    cluster.node_mut("roubaix").burn();
    cluster.node_mut("roubaix").start();
    // It compares itself with Warsaw, and has what it is assigned; what it held for Strasbourg is nobody's business yet.
    let mut chance = data::chance(data::seed());
    let more: Vec<Known> = (0..12).map(|n| Known::put(&cluster.afar_at(&["warsaw"]), &mut chance, &format!("outage/{n}"), 3_000)).collect();
    let data = cluster.node("roubaix").data();
    until_true("Roubaix has records again", SETTLE_MAX, || more.iter().any(|known| !find(&data, &known.content).is_empty()));
    cluster.node_mut("warsaw").stop();
    cluster.node_mut("strasbourg").start();
    for name in ["strasbourg", "roubaix"] {
        let afar = cluster.afar_at(&[name]);
        stays("right or unknown", STAYS, || outage.right_or_unknown(&afar));
        let ran = afar.run(&["ls", "outage"]);
        assert!(ran.code == 14 || ran.text().contains("new"), "{ran}");
    }
    cluster.node_mut("warsaw").start();
    cluster.wait_state("safe");
    outage.wait_right(&cluster.afar_at(&["roubaix"]));
}

#[test]
fn rule_3_who_is_lost_may_have_acknowledged_before() {
    let mut cluster = Cluster::three();
    let operator = Operator::of(&cluster);
    let outage = Outage::new(&mut cluster, "warsaw");
    cluster.node_mut("roubaix").burn();
    cluster.node_mut("warsaw").stop();
    cluster.node_mut("strasbourg").start();
    let afar = cluster.afar_at(&["strasbourg"]);
    until("Strasbourg knows that it cannot know", SETTLE_MAX, || {
        let ran = afar.run(&["cat", "outage/a"]);
        if ran.code == 14 && ran.text().contains("too few nodes answer") { Ok(()) } else { Err(ran.to_string()) }
    });
    operator.change(&["site", "lost", "roubaix"]);
    stays("right or unknown", STAYS, || outage.right_or_unknown(&afar));
    cluster.node_mut("warsaw").start();
    outage.wait_right(&afar);
    operator.wait_in_force_at(&cluster, &["strasbourg", "warsaw"]);
    outage.wait_right(&afar);
}

#[test]
fn rule_4_who_is_catching_up_does_not_vouch_for_what_is_newest() {
    let mut cluster = Setup::of(&THREE).set("testing.enabled", true).make();
    // What goes through Roubaix is stamped two minutes late, which is allowed.
    cluster.node_mut("roubaix").environment("AFAR_TEST_CLOCK_OFFSET_MS", "120000");
    cluster.start_all();
    cluster.wait_formed();
    let mut outage = Outage::new(&mut cluster, "roubaix");
    cluster.node_mut("roubaix").stop();
    cluster.node_mut("warsaw").burn();
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).start();
    }
    // Without Roubaix nobody knows what is to be surpassed.
    let content = data::bytes(&mut outage.chance, 3_000);
    let afar = cluster.afar_at(&["strasbourg"]);
    let put = || afar.run_with_input(&["put", "--json", "-", "outage/a"], &content);
    until("they work together", SETTLE_MAX, || {
        let ran = put();
        if ran.code == 0 || ran.text().contains("too few nodes answer") { Ok(()) } else { Err(ran.to_string()) }
    });
    let mut acknowledged = false;
    stays("right or unknown", STAYS, || {
        acknowledged |= put().code == 0;
        Ok::<_, String>(())
    });
    if acknowledged {
        outage.current[0].content.clone_from(&content);
    }
    cluster.node_mut("roubaix").start();
    cluster.wait_state("safe");
    if !acknowledged {
        put().expect(0);
        outage.current[0].content = content;
    }
    for name in ["strasbourg", "roubaix", "warsaw"] {
        outage.wait_right(&cluster.afar_at(&[name]));
    }
}

#[test]
fn a_site_can_be_added_after_a_loss_that_left_no_two_far_apart_however_many_changes_are_under_way() {
    let mut cluster = Cluster::three();
    let operator = Operator::of(&cluster);
    cluster.bucket("stuck", &[]);
    let mut chance = data::chance(data::seed());
    let known = Known::put(&cluster.afar(), &mut chance, "stuck/a", 3_000);
    cluster.node_mut("warsaw").burn();
    // Nothing is in force without Warsaw.
    for capacity in ["2GiB", "3GiB"] {
        operator.change(&["node", "set", "roubaix", "--capacity", capacity]);
    }
    let refused = operator.try_change(&["node", "set", "roubaix", "--capacity", "4GiB"]).expect(11);
    assert!(refused.text().contains("in transition already"), "{refused}");
    operator.change(&["site", "lost", "warsaw"]);
    operator.add(&mut cluster, "madrid", &MADRID);
    operator.wait_in_force_at(&cluster, &["strasbourg", "roubaix", "madrid"]);
    known.must_be_at(&cluster.afar_at(&["madrid"]));
}

/// Sites that are all far apart: what Strasbourg and Warsaw hold together is not in Madrid.
fn two_come_back_empty() -> (Cluster, Vec<Known>, std::path::PathBuf) {
    let mut cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).start();
    cluster.bucket("both", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let objects: Vec<Known> = (0..12).map(|n| Known::put(&afar, &mut chance, &format!("both/{n}"), 3_000)).collect();
    cluster.wait_state("safe");
    cluster.node_mut("warsaw").stop();
    cluster.node_mut("strasbourg").stop();
    let (folder, kept) = (cluster.node("warsaw").folder().to_owned(), cluster.scratch().join("kept"));
    for part in ["data", "state"] {
        afar_tests::disks::copy(&folder.join(part), &kept.join(part));
    }
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).burn();
        cluster.node_mut(name).start();
    }
    until("both are known to be empty", SETTLE_MAX, || {
        let status = cluster.status();
        let says = |name: &&str| {
            own_check(&status, "replica", name).is_some_and(|check| check["detail"].to_string().contains("their former disks"))
        };
        if ["strasbourg", "warsaw"].iter().all(says) { Ok(()) } else { Err(summary(&status)) }
    });
    (cluster, objects, kept)
}

#[test]
fn rule_3_two_that_come_back_empty_do_not_take_each_other_for_all_there_was() {
    let (mut cluster, objects, kept) = two_come_back_empty();
    stays("nothing is called safe or absent", STAYS, || {
        let status = cluster.status();
        if status["state"] == "safe" {
            return Err(summary(&status));
        }
        for object in objects.iter().take(4) {
            let ran = cluster.afar_at(&["madrid"]).run(&["cat", &object.at]);
            if ran.code != 14 && (ran.code != 0 || ran.stdout != object.content) {
                return Err(ran.to_string());
            }
        }
        Ok(())
    });
    // One of the former disks brings everything back.
    cluster.node_mut("warsaw").stop();
    let folder = cluster.node("warsaw").folder().to_owned();
    for part in ["data", "state"] {
        std::fs::remove_dir_all(folder.join(part)).unwrap();
        afar_tests::disks::copy(&kept.join(part), &folder.join(part));
    }
    cluster.node_mut("warsaw").start();
    cluster.wait_state("safe");
    for name in ["strasbourg", "warsaw", "madrid"] {
        for object in &objects {
            object.must_be_at(&cluster.afar_at(&[name]));
        }
    }
}

/// Stops all of them before any is started again: nobody who remembers tells it to anybody.
fn restart_all(cluster: &mut Cluster) {
    for name in ["strasbourg", "warsaw", "madrid"] {
        cluster.node_mut(name).stop();
    }
    cluster.start_all();
}

#[test]
fn rule_3_that_two_came_back_empty_outlives_a_restart_of_all_who_know() {
    let (mut cluster, objects, _) = two_come_back_empty();
    restart_all(&mut cluster);
    stays("nothing is called safe or absent", STAYS, || {
        let status = cluster.status();
        if status["state"] == "safe" {
            return Err(summary(&status));
        }
        for object in objects.iter().take(4) {
            let ran = cluster.afar_at(&["madrid"]).run(&["cat", &object.at]);
            if ran.code != 14 && (ran.code != 0 || ran.stdout != object.content) {
                return Err(ran.to_string());
            }
        }
        Ok(())
    });
    let status = cluster.status();
    for name in ["strasbourg", "warsaw"] {
        let check = own_check(&status, "replica", name).cloned().unwrap_or_default();
        assert!(check["detail"].to_string().contains("their former disks"), "{check}");
    }
}

#[test]
fn two_that_come_back_empty_are_given_up_by_an_operator_who_says_so() {
    let (mut cluster, objects, _) = two_come_back_empty();
    let operator = Operator::of(&cluster);
    operator.change(&["node", "remove", "strasbourg", "--lost"]);
    cluster.node_mut("strasbourg").kill();
    operator.wait_in_force(&cluster);
    until("Warsaw is filled with what Madrid has", SETTLE_MAX, || {
        let status = cluster.status();
        if status["state"] == "unknown" { Err(summary(&status)) } else { Ok(()) }
    });
    // Writes go on; what was at the two alone is gone, and everything else is there.
    let known = Known::put(&cluster.afar_at(&["madrid", "warsaw"]), &mut data::chance(1), "both/after", 3_000);
    known.must_be_at(&cluster.afar_at(&["warsaw"]));
    for object in &objects {
        let ran = cluster.afar_at(&["madrid"]).run(&["cat", &object.at]).expect_one_of(&[0, 10]);
        assert!(ran.code == 10 || ran.stdout == object.content, "{ran}");
    }
}
