//! Certificates that are renewed while their node runs, and where a node is reached.
use crate::common::{Known, put_bytes};
use afar_tests::{
    certificates::Authority,
    cluster::{Cluster, Node, Setup, TWO, check_of, node_state},
    data,
    limits::SETTLE_MAX,
    network::Network,
    wait::until,
    wire,
};
use serde_json::Value;
use std::{fs, net::Ipv6Addr};

/// Waits until a new connection is shown this certificate.
#[track_caller]
fn until_served(node: &Node, certificate: &[u8]) {
    until("the certificate is served", SETTLE_MAX, || match wire::served_certificate(node.address()) {
        Ok(served) if served == certificate => Ok(()),
        Ok(_) => Err("another one".to_owned()),
        Err(error) => Err(error.to_string()),
    });
}

/// Waits until the node's own check says this of its certificate.
#[track_caller]
fn until_check(cluster: &Cluster, node: &str, state: &str, words: &str) {
    until(&format!("{node} says {state}"), SETTLE_MAX, || {
        let status = cluster.status();
        let check = check_of(&status, node, "certificate").cloned().unwrap_or_default();
        let said = check["detail"].as_str().is_some_and(|detail| detail.contains(words));
        if said && check["state"] == state { Ok(()) } else { Err(check.to_string()) }
    });
}

#[test]
fn a_renewed_certificate_is_served_without_a_restart_and_a_bad_one_never() {
    let mut cluster = Setup::of(&TWO).make();
    let authority = Authority::new();
    cluster.adopt(&authority);
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("box", &[]);
    let admin = cluster.afar();
    let mut chance = data::chance(data::seed());
    let warsaw = cluster.node("warsaw");
    let pid = warsaw.pid();
    // By itself, within seconds.
    let renewed = authority.renew(warsaw.folder(), "test", "warsaw", false);
    until_served(warsaw, &renewed);
    until_check(&cluster, "warsaw", "ok", "ends in");
    let file = |name: &str| warsaw.folder().join(name);
    let spoilt: [(&str, &dyn Fn()); 3] = [
        ("holds no certificate", &|| fs::write(file("node.crt"), "garbage").unwrap()),
        ("expired", &|| drop(authority.renew(warsaw.folder(), "test", "warsaw", true))),
        ("was not issued by the authority", &|| drop(Authority::new().renew(warsaw.folder(), "test", "warsaw", false))),
    ];
    for (words, spoil) in spoilt {
        spoil();
        // At once, when asked to.
        warsaw.hang_up();
        until_check(&cluster, "warsaw", "warning", words);
        assert_eq!(wire::served_certificate(warsaw.address()).unwrap(), renewed, "after: {words}");
        Known::put(&admin, &mut chance, "box/a", 1000).must_be_at(&admin);
    }
    let mended = authority.renew(warsaw.folder(), "test", "warsaw", false);
    warsaw.hang_up();
    until_served(warsaw, &mended);
    until_check(&cluster, "warsaw", "ok", "ends in");
    assert_eq!((warsaw.pid(), cluster.node_mut("warsaw").ended()), (pid, None), "one process all the time");
    assert!(cluster.node("warsaw").log().contains("SIGHUP: certificates and key are read again"));
}

#[test]
fn a_cluster_lives_on_ipv6() {
    let cluster = Setup::of(&TWO).on(Ipv6Addr::LOCALHOST.into()).start();
    cluster.bucket("box", &[]);
    let admin = cluster.afar();
    let object = Known::put(&admin, &mut data::chance(data::seed()), "box/a", 3 << 20);
    object.must_be_at(&cluster.afar_at(&["warsaw"]));
    let status = cluster.status();
    let endpoint = cluster.node("warsaw").endpoint();
    assert!(endpoint.starts_with("https://[::1]:") && status.to_string().contains(&endpoint), "{status}");
    cluster.wait_state("safe");
}

#[test]
fn a_node_is_reached_where_it_is_advertised_not_where_it_listens() {
    let network = Network::new();
    let mut cluster = Setup::of(&TWO).make();
    let inside = cluster.node("warsaw").address();
    let outside = network.listen("world", "warsaw", inside);
    for node in cluster.nodes() {
        node.redirect("warsaw", outside);
    }
    cluster.node("warsaw").configure("listen", format!("[::]:{}", inside.port()));
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("box", &[]);
    let strasbourg = cluster.afar_at(&["strasbourg"]);
    let stored = put_bytes(&strasbourg, b"far away", "box/a");
    assert_eq!(stored["sites"].as_array().map(Vec::len), Some(2), "{stored}");
    // Who knows strasbourg alone learns where warsaw is.
    let status: Value = strasbourg.run(&["status", "--json"]).json();
    assert!(status.to_string().contains(&format!("https://{outside}")), "{status}");
    assert_eq!(node_state(&status, "warsaw").as_deref(), Some("up"));
    // And that is really the way that is taken.
    network.cut("world", "warsaw");
    until("warsaw is not reached any more", SETTLE_MAX, || {
        let ran = strasbourg.run(&["put", "--json", cluster.file("f", b"x").to_str().unwrap(), "box/b"]);
        if ran.code == 0 { Err(ran.text()) } else { Ok(()) }
    });
}

#[test]
fn a_doctor_examines_every_node_and_says_what_to_do() {
    let mut cluster = Setup::of(&TWO).start();
    let admin = cluster.afar();
    let examined = |names: &[&str]| {
        let ran = cluster.afar_at(names).run(&["doctor", "--json"]);
        (ran.code, ran.json())
    };
    let (code, found) = examined(&["strasbourg"]);
    let nodes = found["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().map(|node| node["node"].as_str().unwrap()).collect::<Vec<_>>(), ["strasbourg", "warsaw"]);
    for node in nodes {
        let checks = node["checks"].as_array().unwrap();
        for name in ["fsync", "disk", "clock", "time_service", "distance", "reach", "certificate", "authority", "open_files", "tcp_buffers"]
        {
            assert!(checks.iter().any(|check| check["name"] == name), "{name} is not among {checks:?}");
        }
        let fsync = checks.iter().find(|check| check["name"] == "fsync").unwrap();
        assert!(fsync["measured"]["fsync_median_micros"].as_f64().unwrap() > 0.0, "{fsync}");
        let reach = checks.iter().find(|check| check["name"] == "reach").unwrap();
        assert_eq!(reach["state"], "ok", "{reach}");
        for check in checks.iter().filter(|check| check["state"] != "ok") {
            assert_ne!(check["advice"], "", "{check}");
        }
    }
    // The machine that runs this test may have a disk in memory or few files; the exit code says what the report says.
    let wrong = matches!(found["state"].as_str(), Some("warning" | "critical"));
    assert_eq!(code, if wrong { 5 } else { 0 }, "{found}");
    // Only administrators may: it writes to disks.
    let made = admin.ok(&["key", "create", "reader", "--read", "--json"]).json();
    let reader = admin
        .with("AFAR_ACCESS_KEY_ID", made["access_key_id"].as_str().unwrap())
        .with("AFAR_SECRET_ACCESS_KEY", made["secret_access_key"].as_str().unwrap());
    let refused = reader.run(&["doctor"]).expect(15);
    assert!(refused.text().contains("may not examine nodes") && !refused.text().contains("no node answers"), "{refused}");
    let stranger = admin.with("AFAR_SECRET_ACCESS_KEY", "not-the-secret-of-this-key");
    let refused = stranger.run(&["doctor"]).expect(12);
    assert!(refused.text().contains("AFAR_SECRET_ACCESS_KEY") && !refused.text().contains("no node answers"), "{refused}");
    cluster.node_mut("warsaw").kill();
    let ran = cluster.afar_at(&["strasbourg"]).run(&["doctor"]).expect(5);
    let screen = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(screen.contains("connection refused") && screen.contains("open that port"), "{screen}");
    cluster.node_mut("strasbourg").kill();
    cluster.afar().run(&["doctor"]).expect(14);
}
