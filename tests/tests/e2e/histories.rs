//! Keys that are overwritten again and again: however many versions there are, each is found, counted and healed.
use crate::common::Known;
use afar::{Client, Config, PutOptions, Source};
use afar_model::id::BucketId;
use afar_proto::{
    convert,
    v1::{VersionsRequest, peer_client::PeerClient},
};
use afar_tests::{
    cluster::{Cluster, Node},
    command::Afar,
    data,
    limits::SETTLE_MAX,
    wait::until,
    wire,
};
use futures_util::StreamExt as _;

/// More than a node tells of a key at once: 64 in a listing, 1,000 otherwise.
const VERSIONS: usize = 1_150;
/// Puts at once.
const AT_ONCE: usize = 16;

/// The versions of the key, oldest last.
fn listed(afar: &Afar) -> Vec<serde_json::Value> {
    let listed = afar.ok(&["ls", "-r", "--versions", "--json", "deep"]);
    listed.json_lines().into_iter().filter(|line| line["version"].is_string()).collect()
}

fn overwrite(cluster: &Cluster) {
    wire::runtime().block_on(async {
        let connect = |node: &Node| Client::connect(&Config { endpoints: vec![node.endpoint()], ..cluster.client_config() }).unwrap();
        let clients: Vec<Client> = cluster.nodes().iter().map(connect).collect();
        let puts = (0..VERSIONS - 2).map(|n| {
            let client = &clients[n % clients.len()];
            async move { client.put("deep", "key", Source::Bytes(format!("content {n}").into()), PutOptions::default()).await.unwrap() }
        });
        futures_util::stream::iter(puts).buffer_unordered(AT_ONCE).count().await
    });
}

/// How many versions of the key a node's views have, settled or not.
fn at_node(cluster: &Cluster, to: &str, from: &str) -> usize {
    let listed = cluster.afar().ok(&["bucket", "ls", "--json"]).json();
    let bucket: BucketId = listed[0]["id"].as_str().unwrap().parse().unwrap();
    let request = VersionsRequest { bucket: convert::bytes(bucket.as_bytes()), key: "key".into(), limit: 8_000, before: None };
    wire::runtime().block_on(async {
        let mut peer = PeerClient::new(wire::connect(cluster, to, Some(from)).await.unwrap());
        peer.versions(request).await.unwrap().into_inner().entries.len()
    })
}

#[test]
fn rule_3_a_version_is_found_however_many_are_newer() {
    let mut cluster = Cluster::two();
    cluster.bucket("deep", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    // In a chunk of its own.
    let oldest = Known::put(&afar, &mut chance, "deep/key", 80_000);
    overwrite(&cluster);
    let newest = Known::put(&afar, &mut chance, "deep/key", 3_000);
    newest.must_be_at(&afar);
    let versions = listed(&afar);
    assert_eq!(versions.len(), VERSIONS);
    // Of a put that failed and was tried again something may be left, which is never shown.
    until("hardly anything is left of attempts that others had outrun", SETTLE_MAX, || {
        let counts = [at_node(&cluster, "strasbourg", "warsaw"), at_node(&cluster, "warsaw", "strasbourg")];
        if counts.iter().all(|count| count - VERSIONS <= AT_ONCE) { Ok(()) } else { Err(counts) }
    });
    let id = versions.last().unwrap()["version"].as_str().unwrap().to_owned();
    let object = data::b3sum(&oldest.content);
    let is_found = |afar: &Afar| {
        for named in
            [&["cat", "--version", &id, "deep/key"][..], &["cat", "--version", &id[..12], "deep/key"], &["cat", &format!("deep@{object}")]]
        {
            assert!(afar.ok(named).stdout == oldest.content, "{named:?}");
        }
    };
    is_found(&afar);
    let safe = cluster.wait_state("safe");
    assert_eq!(safe["versions"]["total"], VERSIONS, "{safe}");
    // One of the two is made anew from the other, and then answers alone.
    cluster.node_mut("warsaw").burn();
    cluster.node_mut("warsaw").start();
    let safe = cluster.wait_state("safe");
    assert_eq!(safe["versions"]["total"], VERSIONS, "{safe}");
    cluster.node_mut("strasbourg").stop();
    let alone = cluster.afar_at(&["warsaw"]);
    newest.must_be_at(&alone);
    is_found(&alone);
    assert_eq!(listed(&alone).len(), VERSIONS);
    cluster.node_mut("strasbourg").start();
    cluster.wait_formed();
    alone.ok(&["rm", "deep/key"]);
    afar.run(&["cat", "deep/key"]).expect(10);
    assert!(afar.ok(&["ls", "deep"]).stdout.is_empty());
    assert_eq!(listed(&afar).len(), VERSIONS + 1, "and a marker");
    is_found(&afar);
}
