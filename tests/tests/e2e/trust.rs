//! Keys, certificates, and those who have the wrong ones.
use crate::common::{Known, try_put_bytes};
use afar_proto::v1::{HelloRequest, NodeStatusRequest, peer_client::PeerClient, status_client::StatusClient};
use afar_tests::{
    certificates::Authority,
    cluster::{Cluster, Setup, TWO},
    data, wire,
};
use tonic::Code;

#[test]
fn a_wrong_key_is_told_apart_from_a_missing_right() {
    let cluster = Cluster::two();
    cluster.bucket("keys", &[]);
    cluster.bucket("others", &[]);
    let admin = cluster.afar();
    let mut chance = data::chance(data::seed());
    let object = Known::put(&admin, &mut chance, "keys/a", 1000);
    let wrong = admin.with("AFAR_SECRET_ACCESS_KEY", "not-the-secret");
    let unknown = admin.with("AFAR_ACCESS_KEY_ID", "NOBODY");
    for nobody in [&wrong, &unknown] {
        for command in [&["cat", "keys/a"][..], &["ls", "keys"], &["rm", "keys/a"], &["bucket", "create", "mine"], &["key", "ls"]] {
            nobody.run(command).expect(12);
        }
        try_put_bytes(nobody, b"x", "keys/b").expect(12);
    }
    let made = admin.ok(&["key", "create", "reader", "--read", "--bucket", "keys", "--json"]).json();
    let reader = admin
        .with("AFAR_ACCESS_KEY_ID", made["access_key_id"].as_str().unwrap())
        .with("AFAR_SECRET_ACCESS_KEY", made["secret_access_key"].as_str().unwrap());
    object.must_be_at(&reader);
    assert_ne!(try_put_bytes(&reader, b"x", "keys/b").code, 0);
    assert_ne!(reader.run(&["rm", "keys/a"]).code, 0);
    assert_ne!(reader.run(&["ls", "others"]).code, 0);
    object.must_be_at(&admin);
    // At every node, and no secret is ever written where somebody may read it.
    let everywhere = made["secret_access_key"].as_str().unwrap();
    for node in cluster.nodes() {
        assert!(!node.log().contains(everywhere), "{} logs secrets", node.name());
    }
    admin.ok(&["key", "revoke", made["access_key_id"].as_str().unwrap()]);
    reader.run(&["cat", "keys/a"]).expect(12);
}

#[test]
fn rule_15_append_only_means_append() {
    let cluster = Cluster::two();
    cluster.bucket("log", &[]);
    let admin = cluster.afar();
    let made = admin.ok(&["key", "create", "appender", "--append", "--bucket", "log", "--json"]).json();
    let appender = admin
        .with("AFAR_ACCESS_KEY_ID", made["access_key_id"].as_str().unwrap())
        .with("AFAR_SECRET_ACCESS_KEY", made["secret_access_key"].as_str().unwrap());
    try_put_bytes(&appender, b"first", "log/a").expect(0);
    try_put_bytes(&appender, b"first", "log/a").expect(0); // the same again is no change
    try_put_bytes(&appender, b"second", "log/a").expect(15);
    appender.run(&["rm", "log/a"]).expect_one_of(&[12, 15]);
    assert_eq!(crate::common::read(&admin, "log/a"), b"first");
}

#[test]
fn peers_answer_only_to_peers() {
    let cluster = Cluster::two();
    wire::runtime().block_on(async {
        let stranger = wire::connect(&cluster, "warsaw", None).await.unwrap();
        let refused = PeerClient::new(stranger.clone()).hello(wire::signed(&cluster, HelloRequest::default())).await.unwrap_err();
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated), "{refused}");
        let refused = StatusClient::new(stranger).node(NodeStatusRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        assert_eq!(wire::exit(&refused), Some(12));
    });
}

#[test]
fn a_certificate_that_expired_is_refused_at_the_start() {
    let mut cluster = Setup::of(&TWO).make();
    let authority = Authority::new();
    authority.certify(cluster.node("strasbourg").folder(), "test", "strasbourg", false);
    authority.certify(cluster.node("warsaw").folder(), "test", "warsaw", true);
    cluster.node_mut("strasbourg").start();
    let warsaw = cluster.node_mut("warsaw");
    warsaw.spawn();
    assert_eq!(warsaw.wait_ended(), 2, "{}", warsaw.log_end());
    assert!(warsaw.log().contains("expired"), "{}", warsaw.log_end());
}

#[test]
fn a_certificate_of_another_authority_or_name_makes_no_peer() {
    let mut cluster = Setup::of(&TWO).make();
    // Warsaw trusts and is certified by somebody else.
    Authority::new().certify(cluster.node("warsaw").folder(), "test", "warsaw", false);
    cluster.start_all();
    let afar = cluster.afar_at(&["strasbourg"]);
    let made = afar.run(&["bucket", "create", "alone"]);
    assert_ne!(made.code, 0, "creation needs every site: {made}");
    // And one that names another node does not even start.
    let authority = Authority::new();
    let warsaw = cluster.node_mut("warsaw");
    warsaw.kill();
    authority.certify(warsaw.folder(), "test", "strasbourg", false);
    warsaw.spawn();
    assert_eq!(warsaw.wait_ended(), 2, "{}", warsaw.log_end());
}

#[test]
fn a_configuration_that_is_wrong_is_refused_and_says_where() {
    let cluster = Setup::of(&TWO).make();
    let node = cluster.node("warsaw");
    let good = std::fs::read_to_string(node.folder().join("afard.toml")).unwrap();
    let bad = [
        good.replace("cluster =", "clutser ="),
        good.replace("latitude = 52.2297", "latitude = 152.2297"),
        good.replace("node = \"warsaw\"", "node = \"krakow\""),
        good.get(..good.len() / 2).unwrap().to_owned() + "\n[",
        format!("{good}\n# {}", "x".repeat(1 << 20)),
    ];
    for text in bad {
        assert_ne!(text, good);
        std::fs::write(node.folder().join("bad.toml"), &text).unwrap();
        let ran = std::process::Command::new(afar_tests::programs::afard())
            .args(["--check-config", "--config"])
            .arg(node.folder().join("bad.toml"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{said}");
        assert!(said.contains("bad.toml"), "{said}");
    }
}
