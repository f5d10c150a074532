//! Keys that may be made and not replaced, wanted by several at once (rule 15).
use crate::common::{MIB, read};
use afar::{Client, Config, Kind, PutOptions, Source};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, ObjectId, UploadId},
    record::{Chunker, Content, Data, Record, RecordKind, Version},
    units::UnixMillis,
};
use afar_proto::{
    convert,
    v1::{ClaimRequest, StoreRecords, StoreRequest, StoredRecord, peer_client::PeerClient, store_request::Work},
};
use afar_tests::{
    cluster::{Cluster, Setup, THREE, TWO},
    data, wire,
};
use rand::Rng;
use std::{collections::BTreeMap, time::SystemTime};
use tonic::transport::Channel;

/// Keys that two want.
const RACES: usize = 40;

/// The library's client with a key that may only append, at one node.
fn appender(cluster: &Cluster, at: &str, key: &(String, String)) -> Client {
    let endpoints = vec![cluster.node(at).endpoint()];
    let (access_key_id, secret_access_key) = key.clone();
    Client::connect(&Config { endpoints, access_key_id, secret_access_key, ..cluster.client_config() }).unwrap()
}

fn append_key(cluster: &Cluster, bucket: &str) -> (String, String) {
    let made = cluster.afar().ok(&["key", "create", "appender", "--append", "--bucket", bucket, "--json"]).json();
    (made["access_key_id"].as_str().unwrap().to_owned(), made["secret_access_key"].as_str().unwrap().to_owned())
}

fn of_two_at_once_one_succeeds(cluster: &Cluster) {
    cluster.bucket("log", &[]);
    let (seed, key) = (data::seed(), append_key(cluster, "log"));
    let mut chance = data::chance(seed);
    let names: Vec<&str> = cluster.nodes().iter().map(|node| node.name()).collect();
    for number in 0..RACES {
        // Inside the version, one chunk, several.
        let length = [200, 100_000, 2 * MIB + 7][chance.random_range(0..3)];
        let contents = [data::bytes(&mut chance, length), data::bytes(&mut chance, length)];
        let object = format!("{number:02}");
        let outcomes = wire::runtime().block_on(async {
            let puts = contents.iter().enumerate().map(|(who, content)| {
                let client = appender(cluster, names[(number + who) % names.len()], &key);
                let (content, object) = (Source::Bytes(content.clone().into()), &object);
                async move { client.put("log", object, content, PutOptions::default()).await }
            });
            futures_util::future::join_all(puts).await
        });
        let won: Vec<usize> = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).map(|(who, _)| who).collect();
        let [winner] = won[..] else { panic!("key {object} of seed {seed}: not one of the two: {outcomes:?}") };
        let lost = outcomes[1 - winner].as_ref().unwrap_err();
        assert_eq!(lost.kind(), Kind::Denied, "key {object} of seed {seed}: {lost:?}");
        for name in &names {
            let got = read(&cluster.afar_at(&[name]), &format!("log/{object}"));
            assert!(got == contents[winner], "key {object} of seed {seed}: {name} has something else");
        }
    }
    let listed = cluster.afar().ok(&["ls", "-r", "--versions", "--json", "log"]);
    let versions = listed.json_lines().iter().filter(|line| line["version"].is_string()).count();
    assert_eq!(versions, RACES, "one version each, seed {seed}: {listed}");
}

#[test]
fn rule_15_of_two_appends_of_one_key_at_two_sites_one_succeeds() {
    of_two_at_once_one_succeeds(&Setup::of(&TWO).start());
}

#[test]
fn rule_15_of_two_appends_of_one_key_at_three_sites_one_succeeds() {
    of_two_at_once_one_succeeds(&Setup::of(&THREE).start());
}

struct Maker {
    peer: PeerClient<Channel>,
    bucket: BucketId,
    sequence: u64,
}

impl Maker {
    /// Whether the key is this put's, and if not, whose.
    async fn claim(&mut self, upload: UploadId, release: bool) -> Option<UploadId> {
        let bucket = convert::bytes(self.bucket.as_bytes());
        let request = ClaimRequest { bucket, key: "k".into(), upload: convert::bytes(upload.as_bytes()), release, limit: 10 };
        let reply = self.peer.claim(request).await.unwrap().into_inner();
        reply.held_by.map(|other| convert::id("held_by", &other).unwrap())
    }

    /// Sends a version that makes the key.
    async fn store(&mut self, upload: UploadId) -> StoredRecord {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        let content = Content::Object { id: ObjectId::of(b"x"), size: 1, data: Data::Inline, chunker: Chunker::Fixed1MiB };
        let stamp = Stamp::at(UnixMillis(now));
        let version = Version { bucket: self.bucket, key: "k".into(), stamp, upload, content, metadata: BTreeMap::new() };
        let record = Record::new(RecordKind::Version, self.bucket, version.encode(b"x"));
        let (records, class) = (vec![(&record).into()], "client".to_owned());
        let records = StoreRecords { records, sync: true, class, layout_version: 1, create: true, ..StoreRecords::default() };
        self.sequence += 1;
        let request = StoreRequest { sequence: self.sequence, work: Some(Work::Records(records)), ..StoreRequest::default() };
        let mut replies = self.peer.store(futures_util::stream::iter([request])).await.unwrap().into_inner();
        replies.message().await.unwrap().unwrap().records.remove(0)
    }
}

#[test]
fn rule_15_a_node_stores_what_makes_a_key_only_under_its_claim() {
    let cluster = Cluster::two();
    cluster.bucket("log", &[]);
    let listed = cluster.afar().ok(&["bucket", "ls", "--json"]).json();
    let bucket = listed[0]["id"].as_str().unwrap().parse().unwrap();
    let [a, b] = [1, 2].map(|n| UploadId::from_bytes([n; UploadId::LENGTH]));
    wire::runtime().block_on(async {
        let channel = wire::connect(&cluster, "strasbourg", Some("warsaw")).await.unwrap();
        let mut maker = Maker { peer: PeerClient::new(channel), bucket, sequence: 0 };
        let refused = |stored: &StoredRecord| !stored.durable && stored.refused.as_ref().is_some_and(|failure| failure.reason == "claim");
        let stored = maker.store(a).await;
        assert!(refused(&stored), "nobody has claimed it: {stored:?}");
        assert_eq!((maker.claim(b, false).await, maker.claim(a, false).await), (None, Some(b)));
        let stored = maker.store(a).await;
        assert!(refused(&stored), "somebody else has: {stored:?}");
        maker.claim(b, true).await;
        assert_eq!(maker.claim(a, false).await, None);
        assert!(maker.store(a).await.durable);
        // Once it is made, nobody else makes it, claim or no claim.
        maker.claim(a, true).await;
        read(&cluster.afar(), "log/k");
        assert_eq!(maker.claim(b, false).await, None);
        let stored = maker.store(b).await;
        assert!(refused(&stored), "the key is there: {stored:?}");
    });
}
