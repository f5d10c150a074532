//! Disks that lie, people who copy files about, peers that answer wrong bytes.
use crate::common::{Known, MIB, chunks_on_disk, put_bytes, read, try_put_bytes};
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, TWO, WARSAW, check_of},
    data,
    disks::{self, find},
    liar::Liar,
    limits::{SETTLE_MAX, STAYS},
    operator::Operator,
    wait::{stays, until},
    wire,
    witness::Witness,
};
use std::fs;

/// A repair shows when the good bytes stand again in the node's segments, somewhere.
#[track_caller]
fn wait_repaired(cluster: &Cluster, node: &str, chunk: &[u8]) {
    until("the copy is whole again", SETTLE_MAX, || {
        let found = find(&cluster.node(node).data(), chunk).len();
        if found > 0 { Ok(()) } else { Err(cluster.status().to_string()) }
    });
}

#[test]
fn a_flipped_bit_is_never_served_and_is_repaired() {
    let mut cluster = Cluster::two();
    cluster.bucket("bits", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let large = Known::put(&afar, &mut chance, "bits/large", 3 * MIB);
    let small = Known::put(&afar, &mut chance, "bits/small", 3_000);
    let chunk = &large.content[MIB..2 * MIB];
    for (bytes, at) in [(chunk, MIB as u64 - 5), (&small.content[..], 7)] {
        let places = find(&cluster.node("strasbourg").data(), bytes);
        assert_eq!(places.len(), 1);
        disks::flip(&places[0], at);
    }
    for name in ["strasbourg", "warsaw"] {
        large.must_be_at(&cluster.afar_at(&[name]));
        small.must_be_at(&cluster.afar_at(&[name]));
    }
    wait_repaired(&cluster, "strasbourg", chunk);
    wait_repaired(&cluster, "strasbourg", &small.content);
    cluster.wait_state("safe");
    // After the next start as well: the bad copy is remembered to be bad.
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("strasbourg").start();
    cluster.wait_formed();
    cluster.node_mut("warsaw").kill();
    // Two sites, so that one alone may answer: the other could not have acknowledged without it.
    let alone = cluster.afar_at(&["strasbourg"]);
    until("from its own copy", SETTLE_MAX, || {
        let ran = alone.run(&["cat", &large.at]);
        if ran.code == 0 && ran.stdout == large.content { Ok(()) } else { Err(ran.to_string()) }
    });
}

#[test]
fn one_disk_is_enough_for_what_it_holds() {
    let mut cluster = Cluster::two();
    cluster.bucket("last", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let sizes = [("host/small", 300), ("host/one", MIB), ("host/large", 5 * MIB + 17)];
    let known = sizes.map(|(key, size)| Known::put(&afar, &mut chance, &format!("last/{key}"), size));
    cluster.node_mut("strasbourg").burn();
    cluster.node_mut("warsaw").kill();
    // Of that machine nothing is left but its segments.
    let segments = cluster.node("warsaw").data().join("segments");
    let inspect = |more: &[&str]| {
        std::process::Command::new(afar_tests::programs::afard()).arg("inspect").arg(&segments).args(more).output().unwrap()
    };
    let listed = inspect(&["--list", "--verify"]);
    let told = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && told.lines().count() == 3 && told.matches("current   whole").count() == 3, "{told}");
    for object in &known {
        for wanted in [object.at.clone(), afar_model::id::ObjectId::of(&object.content).to_string()] {
            let got = inspect(&["--extract", &wanted, "-o", "-"]);
            assert!(got.status.success() && got.stdout == object.content, "{wanted}: {}", String::from_utf8_lossy(&got.stderr));
        }
    }
    let folder = cluster.scratch().join("saved");
    assert!(inspect(&["--extract", "last", "-r", "-o", &folder.display().to_string()]).status.success());
    assert_eq!(fs::read(folder.join("host/large")).unwrap(), known[2].content);
}

/// Turns a bit of both copies of a chunk over while nobody runs: else the one would be repaired from the other.
fn damage_both(cluster: &mut Cluster, chunk: &[u8]) {
    let sites = ["strasbourg", "warsaw"];
    for name in sites {
        // In peace: what a node noted lazily (that a version is known to be at its level) is on disk then.
        assert_eq!(cluster.node_mut(name).stop(), 143);
    }
    for name in sites {
        disks::flip(&find(&cluster.node(name).data(), chunk)[0], 12345);
    }
    cluster.start_all();
    cluster.wait_formed();
}

#[test]
fn rule_6_a_damaged_copy_does_not_count_as_already_there() {
    let mut cluster = Cluster::two();
    cluster.bucket("again", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let object = Known::put(&afar, &mut chance, "again/a", 2 * MIB);
    damage_both(&mut cluster, &object.content[..MIB]);
    // Both copies of a chunk are bad now. That is a loss, and no put of the same content may hide it.
    put_bytes(&cluster.afar(), &object.content, "again/b");
    for name in ["strasbourg", "warsaw"] {
        assert!(!find(&cluster.node(name).data(), &object.content[..MIB]).is_empty(), "{name} has a good copy of what was acknowledged");
    }
    Known { at: "again/b".into(), ..object }.must_be_at(&cluster.afar());
}

#[test]
fn when_every_copy_is_bad_nothing_false_is_served_and_the_status_says_lost() {
    let mut cluster = Cluster::two();
    cluster.bucket("bad", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let object = Known::put(&afar, &mut chance, "bad/a", 2 * MIB);
    damage_both(&mut cluster, &object.content[..MIB]);
    let target = cluster.scratch().join("target");
    let target_name = target.display().to_string();
    // 4 where a node knows its copy to be damaged, 14 where it only knows that it has none.
    cluster.afar().run(&["get", "bad/a", &target_name]).expect_one_of(&[4, 14]);
    assert!(!target.exists(), "no wrong bytes are left behind");
    let ran = cluster.afar().run(&["cat", "bad/a"]).expect_one_of(&[4, 14]);
    assert!(object.content.starts_with(&ran.stdout), "nothing false was printed");
    until("and the status says so", SETTLE_MAX, || {
        let ran = cluster.afar().run(&["status", "--json"]);
        if ran.code == 4 && ran.json()["state"] == "lost" { Ok(()) } else { Err(ran.to_string()) }
    });
}

/// A key of which the newest version is damaged wherever it is: nothing older may pass for it, nor "not found".
struct Rotten {
    older: Known,
    newer: Known,
}

impl Rotten {
    fn put(cluster: &Cluster, chance: &mut rand_chacha::ChaCha8Rng) -> Self {
        cluster.bucket("rot", &[]);
        let older = Known::put(&cluster.afar(), chance, "rot/a", 3_000);
        let newer = Known::put(&cluster.afar(), chance, "rot/a", 4_000);
        cluster.wait_state("safe");
        Self { older, newer }
    }

    /// Turns a bit of the newer version's record over, while the node does not run.
    fn flip(&self, cluster: &Cluster, name: &str) {
        disks::flip(&find(&cluster.node(name).data(), &self.newer.content)[0], 1234);
    }

    /// What a node may say of the key.
    fn ask(&self, cluster: &Cluster, name: &str) {
        let door = cluster.afar_at(&[name]);
        for command in ["cat", "stat"] {
            let ran = door.run(&[command, &self.newer.at]).expect_one_of(&[4, 14]);
            assert!(ran.stdout != self.older.content, "an older version passed for the newest");
        }
        let listed = door.run(&["ls", "--json", "rot"]).expect_one_of(&[0, 14]);
        assert!(listed.code == 14 || listed.text().contains("\"size\":4000"), "it is listed as it was acknowledged: {listed}");
    }

    /// Waits until the status says that it is lost, and asks meanwhile.
    #[track_caller]
    fn wait_lost(&self, cluster: &Cluster, names: &[&str]) {
        until("it is said to be lost", SETTLE_MAX, || {
            names.iter().for_each(|name| self.ask(cluster, name));
            let ran = cluster.afar().run(&["status", "--json"]);
            assert_ne!(ran.code, 0, "{ran}");
            let status = ran.json();
            if ran.code == 4 && status["objects"]["lost"] == 1 { Ok(()) } else { Err(ran.to_string()) }
        });
        names.iter().for_each(|name| self.ask(cluster, name));
    }
}

#[test]
fn a_version_whose_record_is_bad_everywhere_is_known_to_be_lost_until_its_key_is_put_again() {
    let mut cluster = Cluster::two();
    let (names, mut chance) = (["strasbourg", "warsaw"], data::chance(data::seed()));
    let rotten = Rotten::put(&cluster, &mut chance);
    names.iter().for_each(|name| assert_eq!(cluster.node_mut(name).stop(), 143));
    names.iter().for_each(|name| rotten.flip(&cluster, name));
    cluster.start_all();
    cluster.wait_formed();
    rotten.wait_lost(&cluster, &names);
    // Nothing of that is forgotten with a run, nor with an index.
    names.iter().for_each(|name| cluster.node_mut(name).kill());
    fs::remove_dir_all(cluster.node("warsaw").data().join("index")).unwrap();
    cluster.start_all();
    cluster.wait_formed();
    rotten.wait_lost(&cluster, &names);
    let again = Known::put(&cluster.afar(), &mut chance, "rot/a", 5_000);
    for restarted in [false, true] {
        if restarted {
            names.iter().for_each(|name| cluster.node_mut(name).kill());
            cluster.start_all();
        }
        let status = cluster.wait_state("safe");
        assert_eq!(status["objects"]["safe"], 1, "{status}");
        names.iter().for_each(|name| again.must_be_at(&cluster.afar_at(&[name])));
    }
}

#[test]
fn a_node_that_comes_back_empty_learns_of_a_version_that_the_other_has_lost() {
    let mut cluster = Cluster::two();
    let rotten = Rotten::put(&cluster, &mut data::chance(data::seed()));
    for name in ["strasbourg", "warsaw"] {
        assert_eq!(cluster.node_mut(name).stop(), 143);
    }
    rotten.flip(&cluster, "strasbourg");
    cluster.node_mut("warsaw").burn();
    cluster.start_all();
    cluster.wait_formed();
    rotten.wait_lost(&cluster, &["strasbourg", "warsaw"]);
    // Of two sites one may answer alone.
    cluster.node_mut("strasbourg").kill();
    stays("it knows as much as the other did", STAYS, || {
        rotten.ask(&cluster, "warsaw");
        Ok::<(), String>(())
    });
}

#[test]
fn two_records_in_each_others_place_are_both_found() {
    let mut cluster = Cluster::two();
    cluster.bucket("swapped", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let object = Known::put(&afar, &mut chance, "swapped/a", 4 * MIB);
    let data = cluster.node("strasbourg").data();
    cluster.node_mut("strasbourg").kill();
    let places: Vec<_> = [1, 2].map(|n| find(&data, &object.content[n * MIB..(n + 1) * MIB]).remove(0)).to_vec();
    disks::swap(&places[0], &places[1], MIB as u64);
    cluster.node_mut("strasbourg").start();
    cluster.wait_formed();
    cluster.node_mut("warsaw").kill();
    let alone = cluster.afar_at(&["strasbourg"]);
    until("both are found", SETTLE_MAX, || {
        let ran = alone.run(&["cat", &object.at]);
        if ran.code == 0 && ran.stdout == object.content { Ok(()) } else { Err(ran.to_string()) }
    });
}

#[test]
fn a_segment_of_another_node_is_not_ours() {
    let mut cluster = Cluster::two();
    cluster.bucket("copied", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let object = Known::put(&afar, &mut chance, "copied/a", 2 * MIB);
    cluster.node_mut("warsaw").kill();
    let theirs = disks::segments(&cluster.node("strasbourg").data()).pop().unwrap();
    // The next number after the last of Warsaw's own.
    let last = disks::segments(&cluster.node("warsaw").data()).pop().unwrap();
    let stem = last.file_stem().unwrap().to_str().unwrap();
    let next = u64::from_str_radix(stem, 16).unwrap() + 1;
    let name = format!("{next:0width$x}.afar", width = stem.len());
    fs::copy(&theirs, last.with_file_name(&name)).unwrap();
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    object.must_be_at(&cluster.afar_at(&["warsaw"]));
    let after = Known::put(&cluster.afar(), &mut chance, "copied/b", 2 * MIB);
    after.must_be_at(&cluster.afar_at(&["warsaw"]));
    assert!(cluster.node("warsaw").log().contains(&name), "it says what it found: {}", cluster.node("warsaw").log_end());
}

#[test]
fn rule_6_what_a_truncated_segment_lost_does_not_count_and_is_stored_again() {
    let mut cluster = Cluster::two();
    cluster.bucket("cut", &[]);
    let mut chance = data::chance(data::seed());
    let strasbourg = cluster.afar_at(&["strasbourg"]);
    let before = Known::put(&strasbourg, &mut chance, "cut/before", 100_000);
    let object = Known::put(&strasbourg, &mut chance, "cut/a", 3 * MIB);
    let place = find(&cluster.node("warsaw").data(), &object.content[MIB..2 * MIB]).remove(0);
    cluster.node_mut("warsaw").kill();
    disks::truncate(&disks::Place { offset: place.offset + 1000, ..place });
    cluster.node_mut("warsaw").start();
    until("Strasbourg remembers how far that log reached (rule 19)", SETTLE_MAX, || {
        let status = cluster.status();
        if status.to_string().contains("its log went backwards") { Ok(()) } else { Err(status.to_string()) }
    });
    assert_ne!(cluster.status()["state"], "safe");
    strasbourg.run_with_input(&["put", "--json", "-", "cut/b"], &object.content).expect_one_of(&[5, 14]);
    // As it is told: its directories are emptied, and it joins anew.
    cluster.node_mut("warsaw").burn();
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    put_bytes(&strasbourg, &object.content, "cut/b");
    cluster.wait_state("safe");
    cluster.node_mut("strasbourg").burn();
    let alone = cluster.afar_at(&["warsaw"]);
    let again = Known { at: "cut/b".into(), ..object };
    for known in [&before, &again] {
        until("from Warsaw alone", SETTLE_MAX, || {
            let ran = alone.run(&["cat", &known.at]);
            if ran.code == 0 && ran.stdout == known.content { Ok(()) } else { Err(ran.to_string()) }
        });
    }
}

/// What a node says of its copies, and of its disks.
#[track_caller]
fn wait_critical(cluster: &Cluster, node: &str, name: &str) {
    until(&format!("{node} says what happened to its {name}"), SETTLE_MAX, || {
        let status = cluster.status();
        let critical = check_of(&status, node, name).is_some_and(|check| check["state"] == "critical");
        assert!(!critical || status["state"] != "safe", "{status}");
        if critical { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
fn rule_26_segments_that_are_deleted_while_the_node_runs_are_lost_and_mended() {
    let mut cluster = Setup::of(&TWO).set("limits.segment", "4MiB").start();
    cluster.bucket("unlinked", &[]);
    let mut chance = data::chance(data::seed());
    let objects: Vec<Known> = (0..4).map(|n| Known::put(&cluster.afar(), &mut chance, &format!("unlinked/{n}"), 3 * MIB)).collect();
    cluster.wait_state("safe");
    let (witness, runtime) = (Witness::of(&cluster, "unlinked"), wire::runtime());
    let held: Vec<_> = runtime.block_on(witness.holdings("warsaw")).into_iter().collect();
    // Nobody to mend it from, so that it can be seen before it is mended.
    cluster.node_mut("strasbourg").stop();
    let segments = disks::segments(&cluster.node("warsaw").data());
    let sealed = &segments[..segments.len() - 1];
    assert!(sealed.len() >= 2, "{segments:?}");
    sealed.iter().for_each(|segment| fs::remove_file(segment).unwrap());
    wait_critical(&cluster, "warsaw", "replica");
    cluster.node_mut("strasbourg").start();
    let status = cluster.wait_state("safe");
    assert_eq!(status["objects"]["safe"], 4, "{status}");
    for object in &objects {
        assert_eq!(chunks_on_disk(&cluster, "warsaw", &object.content), 3, "every chunk of {} stands in a file again", object.at);
    }
    let proved = runtime.block_on(witness.proves("warsaw", &held));
    assert_eq!(proved.map(|proved| proved.len()), Some(held.len()), "and every version");
    // What it says it holds, it holds: without the others, and after a start.
    cluster.node_mut("strasbourg").burn();
    cluster.node_mut("warsaw").kill();
    cluster.node_mut("warsaw").start();
    let alone = cluster.afar_at(&["warsaw"]);
    for object in &objects {
        until("from Warsaw alone", SETTLE_MAX, || {
            let ran = alone.run(&["cat", &object.at]);
            if ran.code == 0 && ran.stdout == object.content { Ok(()) } else { Err(ran.to_string()) }
        });
    }
}

#[test]
fn rule_11_nothing_is_dropped_or_acknowledged_on_the_word_of_a_disk_that_lost_its_files() {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).start();
    cluster.bucket("gone", &[]);
    let (witness, runtime, operator) = (Witness::of(&cluster, "gone"), wire::runtime(), Operator::of(&cluster));
    let (afar, mut chance) = (cluster.afar_at(&["strasbourg", "madrid"]), data::chance(data::seed()));
    let mut objects: Vec<Known> = (0..12).map(|n| Known::put(&afar, &mut chance, &format!("gone/{n}"), 100_000)).collect();
    cluster.wait_state("safe");
    let held = runtime.block_on(witness.holdings("madrid"));
    assert!(!held.is_empty());
    disks::segments(&cluster.node("warsaw").data()).iter().for_each(|segment| fs::remove_file(segment).unwrap());
    // At once, before anybody can have looked: what is put now is at the other two, or nowhere.
    for n in 12..24 {
        let (at, content) = (format!("gone/{n}"), data::bytes(&mut chance, 3_000));
        let ran = try_put_bytes(&afar, &content, &at);
        if ran.code == 0 {
            let put = ran.json();
            assert!(!put["sites"].to_string().contains("warsaw"), "acknowledged by a file that is gone: {put}");
            objects.push(Known { at, content });
        }
    }
    operator.change(&["node", "drain", "madrid"]);
    wait_critical(&cluster, "warsaw", "disk");
    stays("nobody relies on what Warsaw has", STAYS, || {
        let now = runtime.block_on(witness.holdings("madrid"));
        let status = cluster.status();
        let dropped = cluster.node("madrid").log().contains("dropped copies");
        if now.is_superset(&held) && status["state"] != "safe" && !dropped { Ok(()) } else { Err(status.to_string()) }
    });
    until("Warsaw says that it holds nothing", SETTLE_MAX, || {
        let held = runtime.block_on(witness.holdings("warsaw"));
        if held.is_empty() { Ok(()) } else { Err(held) }
    });
    assert!(disks::segments(&cluster.node("warsaw").data()).is_empty(), "nor does it begin anew by itself");
    for object in &objects {
        object.must_be_at(&afar);
    }
}

#[test]
fn rule_19_a_node_whose_segments_went_while_it_was_down_knows_that_it_lost_them() {
    let mut cluster = Cluster::two();
    cluster.bucket("away", &[]);
    let mut chance = data::chance(data::seed());
    Known::put(&cluster.afar(), &mut chance, "away/a", 100_000);
    cluster.wait_state("safe");
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).stop();
    }
    disks::segments(&cluster.node("warsaw").data()).iter().for_each(|segment| fs::remove_file(segment).unwrap());
    cluster.node_mut("warsaw").start();
    let alone = cluster.afar_at(&["warsaw"]);
    let ran = alone.run(&["cat", "away/a"]).expect(14);
    assert!(ran.text().contains("catching up"), "{ran}");
    alone.run(&["ls"]).expect(14);
    wait_critical(&cluster, "warsaw", "replica");
}

#[test]
fn a_peer_that_answers_wrong_bytes_is_not_believed() {
    let mut cluster = Setup::of(&TWO).start();
    cluster.bucket("liar", &[]);
    let mut chance = data::chance(data::seed());
    let object = Known::put(&cluster.afar(), &mut chance, "liar/a", 2 * MIB);
    let liar = Liar::between(&cluster, "strasbourg", "warsaw");
    let place = find(&cluster.node("strasbourg").data(), &object.content[..MIB]).remove(0);
    let strasbourg = cluster.node_mut("strasbourg");
    strasbourg.kill();
    disks::flip(&place, 77);
    strasbourg.redirect("warsaw", liar.address());
    strasbourg.start();
    let at_strasbourg = cluster.afar_at(&["strasbourg"]);
    until("it asks the liar", SETTLE_MAX, || {
        let ran = at_strasbourg.run(&["cat", "liar/a"]);
        assert_ne!(ran.code, 0, "there is no good copy that Strasbourg could reach");
        assert!(object.content.starts_with(&ran.stdout), "wrong bytes were served");
        if liar.lies() > 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    assert!(find(&cluster.node("strasbourg").data(), &object.content[..MIB]).is_empty());
    let honest = cluster.node("warsaw").address();
    let strasbourg = cluster.node_mut("strasbourg");
    strasbourg.kill();
    strasbourg.redirect("warsaw", honest);
    strasbourg.start();
    until("an honest peer heals it", SETTLE_MAX, || {
        let ran = at_strasbourg.run(&["cat", "liar/a"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    assert!(read(&at_strasbourg, "liar/a") == object.content);
}

#[test]
fn rule_19_a_directory_of_another_node_is_refused() {
    let mut cluster = Cluster::two();
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("warsaw").kill();
    let (ours, theirs) = (cluster.node("strasbourg").data(), cluster.node("warsaw").data());
    let aside = ours.with_file_name("aside");
    fs::rename(&ours, &aside).unwrap();
    fs::rename(&theirs, &ours).unwrap();
    let strasbourg = cluster.node_mut("strasbourg");
    strasbourg.spawn();
    assert_ne!(strasbourg.wait_ended(), 0);
    assert!(strasbourg.log().contains("warsaw"), "it says whose it is: {}", strasbourg.log_end());
}

#[test]
fn rule_19_a_known_directory_that_is_missing_is_a_failed_disk() {
    let mut cluster = Cluster::two();
    cluster.bucket("disk", &[]);
    let mut chance = data::chance(data::seed());
    let object = Known::put(&cluster.afar(), &mut chance, "disk/a", 100_000);
    let node = cluster.node_mut("warsaw");
    node.kill();
    fs::remove_dir_all(node.data()).unwrap();
    node.spawn();
    // It ends and says why, or serves and says that its disk failed. It never makes an empty one anew.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ended = node.ended();
    assert!(!node.data().join("segments").exists(), "made anew: {}", node.log_end());
    assert_ne!(ended, Some(0));
    let status = cluster.afar().run(&["status", "--json"]);
    assert_ne!(status.code, 0, "{status}");
    // Told to, it does, and heals.
    let node = cluster.node_mut("warsaw");
    node.kill();
    node.arguments(&["--init-dirs"]);
    node.start();
    cluster.wait_state("safe");
    cluster.node_mut("strasbourg").kill();
    until("from the new disk", SETTLE_MAX, || {
        let ran = cluster.afar_at(&["warsaw"]).run(&["cat", "disk/a"]);
        if ran.code == 0 && ran.stdout == object.content { Ok(()) } else { Err(ran.to_string()) }
    });
}

/// Moves what a node holds and remembers elsewhere, or back.
fn shelve(cluster: &Cluster, from: &str, to: &str) {
    let folder = cluster.node("warsaw").folder();
    for name in ["data", "state"] {
        fs::rename(folder.join(format!("{name}{from}")), folder.join(format!("{name}{to}"))).unwrap();
    }
}

#[test]
fn rule_3_disks_that_come_back_after_others_took_their_place_prove_no_absence() {
    let mut cluster = Cluster::three();
    cluster.bucket("back", &[]);
    let mut chance = data::chance(data::seed());
    let before = Known::put(&cluster.afar(), &mut chance, "back/before", 100_000);
    cluster.wait_state("safe");
    cluster.node_mut("warsaw").stop();
    shelve(&cluster, "", ".old");
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    cluster.wait_state("safe");
    // Acknowledged by Warsaw's new disks, for it is the only far site.
    let mut later: Vec<Known> =
        (0..3).map(|n| Known::put(&cluster.afar_at(&["strasbourg"]), &mut chance, &format!("back/{n}"), 3_000)).collect();
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).stop();
    }
    shelve(&cluster, "", ".new");
    shelve(&cluster, ".old", "");
    cluster.node_mut("warsaw").start();
    let (roubaix, warsaw) = (cluster.afar_at(&["roubaix"]), cluster.afar_at(&["warsaw"]));
    until("the others have noticed", SETTLE_MAX, || {
        let log = cluster.node("warsaw").log();
        if log.contains("other disks have answered to this node's name") { Ok(()) } else { Err(cluster.node("warsaw").log_end()) }
    });
    let content = data::bytes(&mut chance, 3_000);
    until("they work together, and know that they cannot know", SETTLE_MAX, || {
        let ran = roubaix.run_with_input(&["put", "--json", "-", "back/0"], &content);
        if ran.code == 14 && ran.text().contains("too few nodes answer to know") { Ok(()) } else { Err(ran.to_string()) }
    });
    for known in &later {
        // Strasbourg may hold them, with the disks that Warsaw had: without it nobody knows.
        for door in [&roubaix, &warsaw] {
            let ran = door.run(&["cat", &known.at]);
            assert!(ran.code == 14 || ran.code == 0 && ran.stdout == known.content, "{ran}");
        }
    }
    cluster.node_mut("strasbourg").start();
    cluster.wait_state("safe");
    put_bytes(&roubaix, &content, "back/0");
    later[0].content = content;
    later.push(before);
    // It has been told of the new disks, and expects them for some seconds before it believes that the old ones are all there is.
    until("strasbourg works with the disks that came back", SETTLE_MAX, || {
        let ran = warsaw.run(&["cat", "back/0"]);
        if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    for known in &later {
        known.must_be_at(&warsaw);
    }
}

#[test]
fn rule_19_two_processes_never_share_a_directory() {
    let cluster = Cluster::two();
    let second = std::process::Command::new(afar_tests::programs::afard())
        .arg("--config")
        .arg(cluster.node("warsaw").folder().join("afard.toml"))
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("in use"), "{text}");
}
