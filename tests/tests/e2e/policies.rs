//! Far means far: what is refused and why, what is queued and how it shows, what stays inside a policy.
use crate::common::{Known, MIB, chunks_on_disk, put_bytes, try_put_bytes, wait_alone};
use afar_model::policy::{Policy, VerifyDistance};
use afar_tests::{
    cluster::{Cluster, ROUBAIX, STRASBOURG, Setup, THREE},
    data,
    limits::SETTLE_MAX,
    operator::Operator,
    wait::until,
};

#[test]
fn a_write_that_cannot_be_far_is_refused_and_says_why() {
    let mut cluster = Cluster::three();
    cluster.bucket("far", &[]);
    cluster.node_mut("warsaw").kill();
    let afar = cluster.afar_at(&["strasbourg", "roubaix"]);
    let refused = try_put_bytes(&afar, b"cannot be far", "far/a").expect_one_of(&[5, 14]);
    let text = refused.text();
    for word in ["strasbourg", "roubaix", "warsaw", "405.8", "700"] {
        assert!(text.contains(word), "the refusal should name {word:?}: {text}");
    }
    // What helps is that Warsaw comes back; to queue is the last resort, and no word of it where it is none.
    let (back, queue) = (text.find("bring back warsaw"), text.find("afar bucket set far --degraded-writes queue"));
    assert!(refused.code == 14 || (back.is_some() && queue > back), "{text}");
    let refused = afar.run(&["key", "create", "k", "--read"]).expect_one_of(&[0, 5, 14]);
    assert!(!refused.text().contains("queue"), "{refused}");
    afar.run(&["cat", "far/a"]).expect(10);
}

#[test]
fn a_policy_that_no_layout_of_these_sites_can_keep_is_refused_with_the_distances() {
    let cluster = Cluster::three();
    let refused = cluster.afar().run(&["bucket", "create", "moon", "--min-distance-km", "1300"]);
    assert_ne!(refused.code, 0, "{refused}");
    assert!(refused.text().contains("1024.8") || refused.text().contains("1247.9"), "{refused}");
}

#[test]
fn a_policy_that_these_sites_cannot_keep_whole_is_refused_with_the_smallest_change_that_helps() {
    let cluster = Cluster::three();
    let (afar, operator) = (cluster.afar(), Operator::of(&cluster));
    cluster.bucket("kept", &[]);
    let refused = afar.run(&["bucket", "create", "many", "--copies", "9"]).expect(5);
    for said in ["9 copies cannot be had: only 3 sites have a node", "lower copies from 9 to 3"] {
        assert!(refused.text().contains(said), "{refused}");
    }
    let set = ["bucket", "set", "kept", "--copies", "9"];
    let looked = operator.run(&[&set[..], &["--dry-run"]].concat()).expect(5).json();
    assert_eq!(
        (&looked["incomplete"][0]["refused"], &looked["incomplete"][0]["suggestions"][0]),
        (&true.into(), &"lower copies from 9 to 3".into()),
        "{looked}"
    );
    let refused = operator.try_change(&set).expect(5);
    assert!(refused.text().contains("bucket kept could not be kept whole") && refused.text().contains("from 9 to 3"), "{refused}");
    // Nor does a node take it from a client that does not look.
    let bucket = afar.ok(&["bucket", "ls", "--json"]).json()[0]["id"].as_str().unwrap().parse().unwrap();
    let nine = Policy { copies: 9, verify_distance: VerifyDistance::Off, ..Policy::default() };
    let refused = operator.apply(&cluster, |document| document.promise(bucket, nine)).unwrap_err();
    assert!(refused.to_string().contains("\"kept\" could not be kept: 9 copies cannot be had"), "{refused}");
    // All three sites can be had.
    afar.ok(&["bucket", "create", "three", "--copies", "3"]);
    operator.change(&["bucket", "set", "kept", "--copies", "3"]);
    until("both have three", SETTLE_MAX, || {
        let buckets = afar.ok(&["bucket", "ls", "--json"]).json();
        let three = buckets.as_array().is_some_and(|all| all.iter().all(|bucket| bucket["policy"]["copies"] == 3));
        if three { Ok(()) } else { Err(buckets.to_string()) }
    });
}

#[test]
fn a_write_goes_to_those_who_can_be_far_when_home_is_down() {
    let mut cluster = Cluster::three();
    cluster.bucket("home", &["--home", "strasbourg"]);
    let mut chance = data::chance(data::seed());
    cluster.node_mut("strasbourg").kill();
    let afar = cluster.afar_at(&["roubaix", "warsaw"]);
    let content = data::bytes(&mut chance, 3 * MIB);
    let stored = put_bytes(&afar, &content, "home/a");
    let mut sites: Vec<&str> = stored["sites"].as_array().unwrap().iter().filter_map(|site| site.as_str()).collect();
    sites.sort_unstable();
    assert_eq!(sites, ["roubaix", "warsaw"]);
    // Handed over: once home is back it holds what it should have held all the time.
    cluster.node_mut("strasbourg").start();
    until("handed over", SETTLE_MAX, || {
        let here = chunks_on_disk(&cluster, "strasbourg", &content);
        if here == 3 { Ok(()) } else { Err(format!("{here} of 3 chunks")) }
    });
    cluster.wait_state("safe");
}

#[test]
fn rule_8_a_queued_write_says_so_counts_as_at_risk_and_becomes_safe() {
    let mut cluster = Cluster::three();
    cluster.bucket("queued", &["--degraded-writes", "queue"]);
    let mut chance = data::chance(data::seed());
    cluster.node_mut("warsaw").kill();
    let afar = cluster.afar_at(&["strasbourg", "roubaix"]);
    let content = data::bytes(&mut chance, 2 * MIB);
    let stored = try_put_bytes(&afar, &content, "queued/a").expect(5).json();
    assert_eq!(stored["durability"], "local", "{stored}");
    // In such a bucket Warsaw alone may have acknowledged something newer: then nobody else says what is current.
    let ran = afar.run(&["cat", "queued/a"]).expect_one_of(&[0, 14]);
    assert!(ran.code != 0 || ran.stdout == content);

    let status = until("it counts as at risk", SETTLE_MAX, || {
        let ran = afar.run(&["status", "--json"]);
        let status = ran.json();
        if status["objects"]["at_risk"] == 1 && status["replication"]["pending_records"].as_u64() > Some(0) {
            Ok(ran)
        } else {
            Err(status.to_string())
        }
    });
    assert_eq!(status.code, 5);
    assert_eq!(status.json()["state"], "at_risk");

    cluster.node_mut("warsaw").start();
    cluster.wait_state("safe");
    // And that is no mere claim. (Had Strasbourg no time to tell, what it last told would be in doubt: see `alone`.)
    ["roubaix", "warsaw"].into_iter().for_each(|at| wait_alone(&cluster, at, "strasbourg", 0));
    cluster.node_mut("strasbourg").burn();
    assert_eq!(chunks_on_disk(&cluster, "warsaw", &content), 2);
    cluster.node_mut("strasbourg").start();
    cluster.wait_state("safe");
    Known { at: "queued/a".into(), content }.must_be_at(&cluster.afar_at(&["warsaw", "roubaix"]));
}

#[test]
fn rule_8_what_a_dead_site_had_only_queued_is_never_green() {
    let mut cluster = Cluster::three();
    cluster.bucket("queued", &["--degraded-writes", "queue"]);
    cluster.node_mut("warsaw").kill();
    cluster.node_mut("roubaix").kill();
    let stored = try_put_bytes(&cluster.afar_at(&["strasbourg"]), b"only here", "queued/a");
    cluster.node_mut("roubaix").start();
    if stored.code == 0 || stored.code == 5 {
        cluster.node_mut("strasbourg").burn();
        cluster.node_mut("warsaw").start();
        let status = cluster.afar_at(&["roubaix", "warsaw"]).run(&["status", "--json"]);
        assert_ne!(status.code, 0, "{status}");
        assert_ne!(status.json()["state"], "safe");
    }
}

#[test]
fn rule_7_a_coordinator_that_may_hold_nothing_holds_nothing() {
    let cluster = Setup::of(&THREE).set("policy.min_distance_km", 400).start();
    cluster.bucket("french", &["--min-distance-km", "400", "--countries", "FR"]);
    let mut chance = data::chance(data::seed());
    let warsaw = cluster.afar_at(&["warsaw"]);
    let content = data::bytes(&mut chance, 3 * MIB);
    let stored = put_bytes(&warsaw, &content, "french/a");
    assert!(!stored["sites"].to_string().contains("warsaw"), "{stored}");
    Known { at: "french/a".into(), content: content.clone() }.must_be_at(&warsaw);
    assert_eq!(chunks_on_disk(&cluster, "warsaw", &content), 0, "relayed, not kept");
    assert_eq!(chunks_on_disk(&cluster, "strasbourg", &content), 3);
    assert_eq!(chunks_on_disk(&cluster, "roubaix", &content), 3);
}

#[test]
fn rule_9_two_sites_that_are_too_near_never_acknowledge() {
    let cluster = Setup::of(&[STRASBOURG, ROUBAIX, afar_tests::cluster::WARSAW]).make();
    drop(cluster); // the three can be made; these two alone cannot, and that is said before anything starts
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("near").display().to_string();
    let arguments = ["cluster", "init", &root, "--name", "near", "--site", "s=48.5734,7.7521,FR", "--site", "r=50.6927,3.1778,FR"];
    let nodes = ["--node", "s@s=127.0.0.1:7700", "--node", "r@r=127.0.0.1:7701"];
    let refused = afar_tests::command::Afar::new(folder.path(), []).run(&[&arguments[..], &nodes[..]].concat()).expect(5);
    assert!(refused.text().contains("405.8"), "{refused}");
    assert!(!std::path::Path::new(&root).join("nodes").exists(), "nothing is left behind");
}
