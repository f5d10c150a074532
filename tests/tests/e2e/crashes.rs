//! Processes that die at any moment, with and without their disks.
use crate::common::{Known, MIB, try_put_bytes};
use afar_tests::{
    cluster::{Cluster, Setup, TWO},
    command::Afar,
    data,
    limits::SETTLE_MAX,
    wait::{until, until_true},
};
use rand::Rng;
use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How long the tests under load last.
fn load() -> Duration {
    let seconds = std::env::var("AFAR_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    Duration::from_secs(seconds)
}

/// Puts objects of all sizes until told to stop, and remembers what was acknowledged.
fn write_until(stop: &AtomicBool, afar: &Afar, bucket: &str, writer: u64, seed: u64, acknowledged: &Mutex<Vec<Known>>) {
    let mut chance = data::chance(seed ^ (writer << 32));
    for number in 0.. {
        if stop.load(Relaxed) {
            return;
        }
        let length = [100, 5_000, 70_000, MIB + 5, 3 * MIB][chance.random_range(0..5)];
        let known = Known { at: format!("{bucket}/{writer}/{number}"), content: data::bytes(&mut chance, length) };
        let ran = try_put_bytes(afar, &known.content, &known.at);
        match ran.code {
            0 => acknowledged.lock().unwrap().push(known),
            // What a node's death may do to a write. Anything else is a bug.
            1 | 5 | 11 | 14 => {}
            _ => panic!("{ran}"),
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_nine_in_a_loop() {
    let mut cluster = Cluster::three();
    cluster.bucket("load", &[]);
    let seed = data::seed();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let afar = cluster.afar();
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (stop, afar, acknowledged) = (&stop, &afar, &acknowledged);
            scope.spawn(move || write_until(stop, afar, "load", writer, seed, acknowledged));
        }
        let stopper = Stop(&stop);
        let mut chance = data::chance(seed);
        let start = Instant::now();
        while start.elapsed() < load() {
            let name = ["strasbourg", "roubaix", "warsaw"][chance.random_range(0..3)];
            std::thread::sleep(Duration::from_millis(chance.random_range(100..900)));
            cluster.node_mut(name).kill();
            std::thread::sleep(Duration::from_millis(chance.random_range(0..400)));
            cluster.node_mut(name).start();
        }
        drop(stopper);
    });
    cluster.wait_formed();
    let acknowledged = acknowledged.into_inner().unwrap();
    eprintln!("{} acknowledged", acknowledged.len());
    assert!(!acknowledged.is_empty(), "nothing was ever acknowledged: seed {seed}");
    for known in &acknowledged {
        known.must_be_at(&cluster.afar());
    }
    cluster.wait_state("safe");
    // Every copy counts: without any one site everything is still there.
    for name in ["strasbourg", "warsaw"] {
        cluster.node_mut(name).kill();
        let rest: Vec<&str> = ["strasbourg", "roubaix", "warsaw"].into_iter().filter(|other| *other != name).collect();
        for known in &acknowledged {
            known.must_be_at(&cluster.afar_at(&rest));
        }
        cluster.node_mut(name).start();
        cluster.wait_formed();
    }
}

#[test]
fn what_was_acknowledged_survives_the_fire() {
    let mut cluster = Cluster::three();
    cluster.bucket("load", &["--home", "strasbourg"]);
    let seed = data::seed();
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let afar = cluster.afar();
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (stop, afar, acknowledged) = (&stop, &afar, &acknowledged);
            scope.spawn(move || write_until(stop, afar, "load", writer, seed, acknowledged));
        }
        let stopper = Stop(&stop);
        let count = || acknowledged.lock().unwrap().len();
        until_true("some are acknowledged before the fire", SETTLE_MAX, || count() >= 12);
        cluster.node_mut("strasbourg").burn();
        let at_fire = count();
        until_true("the survivors take new writes", SETTLE_MAX, || count() >= at_fire + 12);
        drop(stopper);
    });
    let acknowledged = acknowledged.into_inner().unwrap();
    for known in &acknowledged {
        known.must_be_at(&cluster.afar_at(&["warsaw", "roubaix"]));
    }
    // A replacement of the same name joins and heals.
    cluster.node_mut("strasbourg").start();
    cluster.wait_state("safe");
    cluster.node_mut("warsaw").burn();
    for known in &acknowledged {
        known.must_be_at(&cluster.afar_at(&["strasbourg", "roubaix"]));
    }
}

/// Tells the writers to stop, also when the test panics: else it would never end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn an_index_that_was_deleted_is_rebuilt() {
    let mut cluster = Cluster::two();
    cluster.bucket("rebuilt", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let mut objects = Vec::new();
    for number in 0..20 {
        let length = [10, 100_000, 2 * MIB][number % 3];
        objects.push(Known::put(&afar, &mut chance, &format!("rebuilt/{number}"), length));
    }
    afar.ok(&["rm", "rebuilt/0"]);
    objects.remove(0);
    for name in ["strasbourg", "warsaw"] {
        let node = cluster.node_mut(name);
        node.kill();
        fs::remove_dir_all(node.data().join("index")).unwrap();
        node.start();
    }
    cluster.wait_formed();
    for node in ["strasbourg", "warsaw"] {
        let at_node = cluster.afar_at(&[node]);
        for object in &objects {
            object.must_be_at(&at_node);
        }
        until("the listing is whole", SETTLE_MAX, || {
            let ran = at_node.run(&["ls", "-r", "rebuilt"]);
            let listed = String::from_utf8_lossy(&ran.stdout).lines().count();
            if ran.code == 0 && listed >= 19 { Ok(()) } else { Err(ran.to_string()) }
        });
        at_node.run(&["cat", "rebuilt/0"]).expect(10);
    }
}

#[test]
fn rule_16_a_failed_sync_acknowledges_nothing_and_is_told() {
    let mut cluster = Setup::of(&TWO).set("testing.enabled", true).make();
    cluster.ignore_logs();
    cluster.node_mut("warsaw").environment("AFAR_TEST_FAIL_SYNC_AFTER", "40");
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("synced", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let mut acknowledged = Vec::new();
    let refused = until("a sync fails", SETTLE_MAX, || {
        let known = Known { at: format!("synced/{}", acknowledged.len()), content: data::bytes(&mut chance, 100_000) };
        let ran = try_put_bytes(&afar, &known.content, &known.at);
        if ran.code == 0 {
            acknowledged.push(known);
            return Err("acknowledged");
        }
        Ok(ran)
    });
    let refused = refused.expect_one_of(&[1, 5, 13, 14]);
    eprintln!("{refused}");
    until("the node is read-only, and the status says so", SETTLE_MAX, || {
        let status = cluster.status();
        let state = afar_tests::cluster::node_state(&status, "warsaw");
        if state.as_deref() == Some("read_only") { Ok(()) } else { Err(status.to_string()) }
    });
    for known in &acknowledged {
        known.must_be_at(&cluster.afar_at(&["warsaw"]));
    }
    // What was acknowledged before it is there after it, and the disk is taken again.
    let node = cluster.node_mut("warsaw");
    node.kill();
    node.environment("AFAR_TEST_FAIL_SYNC_AFTER", "1000000000");
    node.start();
    cluster.wait_formed();
    for known in &acknowledged {
        known.must_be_at(&cluster.afar_at(&["warsaw"]));
    }
}

#[test]
fn a_put_that_was_interrupted_resumes() {
    // A node takes no more than its budget ahead of its peer, so the client cannot hand over everything and leave.
    let cluster = Setup::of(&TWO).through_network().set("limits.transfer", "32MiB").start();
    cluster.bucket("resumed", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let content = data::bytes(&mut chance, 100 * MIB);
    let file = cluster.file("large", &content).display().to_string();
    // So slow that it is interrupted when some of it, but not all, has arrived.
    cluster.network().round_trip("strasbourg", "warsaw", Duration::from_millis(400));
    let first = afar.start(&["put", "--json", &file, "resumed/a"]);
    let pid = rustix::process::Pid::from_raw(first.id() as i32).unwrap();
    let arrived =
        |name: &str| content.chunks(MIB).take(2).all(|chunk| !afar_tests::disks::find(&cluster.node(name).data(), chunk).is_empty());
    until_true("some of it arrives", SETTLE_MAX, || arrived("warsaw") && arrived("strasbourg"));
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    let first = afar_tests::command::finish(first, "put", &[], SETTLE_MAX);
    cluster.network().round_trip("strasbourg", "warsaw", Duration::ZERO);
    if first.code == 0 {
        eprintln!("the put was faster than its interruption: nothing to resume");
        return;
    }
    afar.run(&["cat", "resumed/a"]).expect(10);
    let again = afar.ok(&["put", "--json", &file, "resumed/a"]).json();
    assert!(again["deduplicated_bytes"].as_u64() >= Some(2 * MIB as u64), "what had arrived is not sent again: {again}");
    Known { at: "resumed/a".into(), content }.must_be_at(&afar);
}

#[test]
fn rule_19_a_node_that_is_rolled_back_to_just_before_a_write_is_refused() {
    let mut cluster = Cluster::three();
    cluster.bucket("kept", &["--home", "strasbourg"]);
    let older = Known { at: "kept/a".into(), content: b"before".to_vec() };
    crate::common::put_bytes(&cluster.afar_at(&["strasbourg"]), &older.content, &older.at);
    cluster.wait_state("safe");
    let (folder, copy) = (cluster.node("warsaw").folder().to_owned(), cluster.scratch().join("copy"));
    cluster.node_mut("warsaw").stop();
    for part in ["data", "state"] {
        afar_tests::disks::copy(&folder.join(part), &copy.join(part));
    }
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    let newer = Known { at: "kept/a".into(), content: b"after, and acknowledged".to_vec() };
    // No heartbeat fits in between.
    let stored = crate::common::put_bytes(&cluster.afar_at(&["strasbourg"]), &newer.content, &newer.at);
    cluster.node_mut("warsaw").burn();
    assert_eq!(stored["sites"], serde_json::json!(["strasbourg", "warsaw"]));
    for part in ["data", "state"] {
        fs::rename(copy.join(part), folder.join(part)).unwrap();
    }
    cluster.node_mut("warsaw").start();
    until_true("Strasbourg knows what Warsaw has forgotten", SETTLE_MAX, || {
        cluster.node("strasbourg").log().contains("log went backwards")
    });
    newer.must_be_at(&cluster.afar_at(&["strasbourg"]));
    // It has been told, and nobody is there any more who knows better.
    until_true("Warsaw answers nothing that it has forgotten", SETTLE_MAX, || {
        cluster.afar_at(&["warsaw"]).run(&["cat", &older.at]).stdout != older.content
    });
    cluster.node_mut("strasbourg").kill();
    let ran = cluster.afar_at(&["warsaw"]).run(&["cat", &older.at]);
    assert!(ran.code != 0 && ran.stdout != older.content, "{ran}");
    // Strasbourg remembers it across its own death.
    cluster.node_mut("strasbourg").start();
    until("Warsaw stays refused", SETTLE_MAX, || {
        let status = cluster.status();
        let told = |check: &serde_json::Value| check["detail"].as_str().is_some_and(|detail| detail.contains("log went backwards"));
        let checks = status["checks"].as_array().cloned().unwrap_or_default();
        if checks.iter().any(|check| check["node"] == "strasbourg" && told(check)) { Ok(()) } else { Err(status.to_string()) }
    });
    newer.must_be_at(&cluster.afar_at(&["strasbourg"]));
}
