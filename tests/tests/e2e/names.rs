//! Buckets' names: one name means one bucket, whoever made it where and when (rule 23).
use crate::common::{Known, bucket_id};
use afar_model::{
    hlc::Stamp,
    id::BucketId,
    policy::{Policy, VerifyDistance},
    record::{Record, RecordKind, Setting},
    units::UnixMillis,
};
use afar_tests::{
    cluster::{Cluster, ROUBAIX, STRASBOURG, WARSAW},
    command::Ran,
    data, wire,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

const NODES: [&str; 3] = [STRASBOURG.name, ROUBAIX.name, WARSAW.name];

/// The ids of the buckets of that name that a node knows.
fn ids(cluster: &Cluster, node: &str, name: &str) -> BTreeSet<String> {
    let listed = cluster.afar_at(&[node]).ok(&["bucket", "ls", "--json"]).json();
    let of_name = listed.as_array().into_iter().flatten().filter(|bucket| bucket["name"] == name);
    of_name.filter_map(|bucket| bucket["id"].as_str().map(str::to_owned)).collect()
}

fn record(setting: &Setting) -> Record {
    Record::new(RecordKind::Setting, BucketId::SYSTEM, setting.encode())
}

/// A bucket that nobody made by asking for it.
fn created(name: &str) -> Setting {
    let policy = Policy { verify_distance: VerifyDistance::Off, ..Policy::default() };
    Setting::BucketCreated { name: name.into(), policy, shards: 16, stamp: Stamp::at(UnixMillis(1)) }
}

fn store_everywhere(cluster: &Cluster, records: &[Record]) {
    wire::runtime().block_on(async {
        for node in NODES {
            let other = if node == WARSAW.name { ROUBAIX.name } else { WARSAW.name };
            wire::store_alone(&mut wire::peer(cluster, node, other).await, records).await;
        }
    });
}

#[test]
fn rule_23_of_buckets_made_at_one_moment_at_two_nodes_at_most_one_stands() {
    let cluster = Cluster::three();
    for round in 0..8 {
        let name = format!("round-{round}");
        let decided = AtomicBool::new(false);
        let (answers, early): (Vec<Ran>, Vec<String>) = thread::scope(|scope| {
            let make = |node: &'static str| {
                let (afar, name) = (cluster.afar_at(&[node]), &name);
                scope.spawn(move || afar.run(&["bucket", "create", name]).expect_one_of(&[0, 1, 2]))
            };
            let made: Vec<_> = NODES.into_iter().map(make).collect();
            // Somebody puts into it as soon as there is one.
            let putting = scope.spawn(|| {
                let nodes = NODES.into_iter().cycle().enumerate().take_while(|_| !decided.load(Ordering::Acquire));
                let put = |(number, node)| (cluster.afar_at(&[node]), format!("{name}/{number}"));
                let put = nodes.map(put).filter(|(afar, path)| afar.run_with_input(&["put", "-", path], b"early").code == 0);
                put.map(|(_, path)| path).collect()
            });
            let answers = made.into_iter().map(|made| made.join().expect("a client")).collect();
            decided.store(true, Ordering::Release);
            (answers, putting.join().expect("a client"))
        });
        let made = answers.iter().filter(|answer| answer.code == 0).count();
        let said: Vec<String> = answers.iter().map(ToString::to_string).collect();
        assert!(made <= 1, "{name} was made {made} times: {said:#?}");
        let known: BTreeSet<BTreeSet<String>> = NODES.iter().map(|node| ids(&cluster, node, &name)).collect();
        assert_eq!(known.iter().map(BTreeSet::len).collect::<Vec<_>>(), [made], "{name}: {known:?}: {said:#?}");
        // What was acknowledged meanwhile is not taken away with a bucket that lost its name.
        for path in early {
            assert_eq!(cluster.afar().ok(&["cat", &path]).stdout, b"early");
        }
        // Nothing is left in the way of who comes next.
        cluster.afar().run(&["bucket", "create", &name]).expect(if made == 1 { 2 } else { 0 });
    }
}

#[test]
fn rule_23_a_name_is_given_only_while_every_site_hears_of_it() {
    let mut cluster = Cluster::three();
    let mut chance = data::chance(data::seed());
    cluster.bucket("before", &[]);
    cluster.bucket("other", &[]);
    let known = Known::put(&cluster.afar(), &mut chance, "before/a", 100_000);
    cluster.node_mut("warsaw").kill();
    let afar = cluster.afar_at(&["strasbourg", "roubaix"]);
    for arguments in [["bucket", "create", "after"].as_slice(), &["bucket", "rename", "before", "after"]] {
        let refused = afar.run(arguments).expect(14);
        assert!(refused.text().contains("warsaw"), "{refused}");
    }
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    assert!(cluster.afar().run(&["bucket", "rename", "before", "other"]).expect(2).text().contains("exists already"));
    cluster.afar().ok(&["bucket", "rename", "before", "after"]);
    for node in NODES {
        let afar = cluster.afar_at(&[node]);
        assert_eq!(afar.ok(&["cat", "after/a"]).stdout, known.content);
        afar.run(&["cat", "before/a"]).expect(10);
    }
    cluster.bucket("before", &[]);
    cluster.afar().run(&["cat", "before/a"]).expect(10);
}

#[test]
fn rule_23_a_name_of_two_buckets_is_frozen_until_an_administrator_says_which_is_which() {
    let cluster = Cluster::three();
    let mut chance = data::chance(data::seed());
    cluster.bucket("docs", &[]);
    let known = Known::put(&cluster.afar(), &mut chance, "docs/a", 100_000);
    let first = bucket_id(&cluster, "docs");
    // As a node leaves it behind that dies between making a bucket and hearing of the other.
    let twin = record(&created("docs"));
    let second = BucketId::from(twin.id());
    store_everywhere(&cluster, &[twin]);
    for node in NODES {
        assert_eq!(ids(&cluster, node, "docs").len(), 2);
        let afar = cluster.afar_at(&[node]);
        // Neither is read for the other, and nothing is put where it may be looked for in vain.
        for refused in [afar.run(&["cat", "docs/a"]), afar.run_with_input(&["put", "-", "docs/b"], b"b")] {
            let text = refused.expect(1).text();
            assert!(text.contains(&first.to_string()) && text.contains("afar bucket rename @"), "{text}");
        }
    }
    let named = |check: &Value| check["detail"].as_str().is_some_and(|words| words.contains("\"docs\""));
    let status = cluster.status();
    assert!(status["checks"].as_array().into_iter().flatten().any(named), "{status:#}");
    cluster.afar().ok(&["bucket", "rename", &format!("@{second}"), "docs-2"]);
    for node in NODES {
        let afar = cluster.afar_at(&[node]);
        assert_eq!(afar.ok(&["cat", "docs/a"]).stdout, known.content);
        afar.run(&["cat", "docs-2/a"]).expect(10);
    }
}

#[test]
fn rule_23_a_bucket_whose_maker_died_takes_nothing_and_can_be_removed() {
    let cluster = Cluster::three();
    // As a node leaves it behind that dies between making a bucket and knowing that its name is its own.
    let created = record(&created("docs"));
    let closed = Setting::BucketClosed { bucket: BucketId::from(created.id()), stamp: Stamp::at(UnixMillis(1)) };
    store_everywhere(&cluster, &[record(&closed), created]);
    let refused = cluster.afar().run_with_input(&["put", "-", "docs/a"], b"a");
    assert!(refused.code != 0 && refused.text().contains("being made or removed"), "{refused}");
    let listed = cluster.afar().ok(&["bucket", "ls"]).text();
    assert!(listed.contains("afar bucket rm"), "{listed}");
    cluster.afar().run(&["bucket", "create", "docs"]).expect(2);
    cluster.afar().ok(&["bucket", "rm", "docs"]);
    cluster.bucket("docs", &[]);
    cluster.afar().run_with_input(&["put", "-", "docs/a"], b"a").expect(0);
}
