//! Callers who hang up: a node drops what it does for a request as soon as its caller goes away, at whatever point that is. What
//! must not be left halfway is done to the end; the rest leaves nothing that anybody would have to repair.
use crate::common::Known;
use afar_proto::v1::{
    CreateBucketRequest, CreateKeyRequest, DeleteRequest, Grant, LayoutPart, RemoveBucketRequest, RenameBucketRequest, RevokeKeyRequest,
    admin_client::AdminClient, layouts_client::LayoutsClient,
};
use afar_tests::{
    cluster::{Cluster, ROUBAIX, STRASBOURG, Setup, THREE, WARSAW},
    data,
    limits::SETTLE_MAX,
    operator::Operator,
    wait::until,
    wire,
};
use bytes::Bytes;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tonic::{Code, Response, Status, transport::Channel};

const NODES: [&str; 3] = [STRASBOURG.name, ROUBAIX.name, WARSAW.name];

#[test]
fn a_layout_whose_offerer_hangs_up_is_followed_all_the_same() {
    let mut cluster = Setup::of(&[]).make();
    let operator = Operator::of(&cluster);
    operator.prepare(&mut cluster, "strasbourg", &STRASBOURG);
    operator.prepare(&mut cluster, "warsaw", &WARSAW);
    let chain = Bytes::from(operator.library().chain().encode());
    let runtime = wire::runtime();
    // After the node has begun to store it: at once, and a little later.
    for pause in [0, 0, 2, 5, 20].map(Duration::from_millis) {
        for name in ["strasbourg", "warsaw"] {
            cluster.node_mut(name).burn();
        }
        // Alone it has the layout that came with its bundle, the first.
        cluster.node_mut("strasbourg").start();
        let folder = cluster.node("strasbourg").folder().join("state/layouts");
        let stored =
            || std::fs::read_dir(&folder).unwrap().flatten().any(|file| file.file_name().to_string_lossy().starts_with("00000002-"));
        runtime.block_on(async {
            let channel = wire::connect(&cluster, "strasbourg", None).await.unwrap();
            let mut client = LayoutsClient::new(channel);
            let parts = [LayoutPart { data: chain.clone(), ..LayoutPart::default() }];
            assert!(!stored());
            let offer = client.offer(wire::signed(&cluster, futures_util::stream::iter(parts)));
            let hang_up = async {
                while !stored() {
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                _ = offer => {}
                () = hang_up => {}
            }
        });
        cluster.node_mut("warsaw").start();
        until("strasbourg knows the way to warsaw", SETTLE_MAX, || {
            let ran = cluster.afar().run(&["status", "--json"]);
            if ran.code == 0 && ran.json()["state"] == "safe" { Ok(()) } else { Err(ran.to_string()) }
        });
    }
}

/// What one worker asks for.
const ROUNDS: usize = 100;

/// Somebody who asks for one thing after another, at any node, and hangs up on many.
struct Worker<'c> {
    cluster: &'c Cluster,
    chance: ChaCha8Rng,
    channels: Vec<Channel>,
    name: String,
    /// A bucket that stays, and what was acknowledged in it.
    kept: String,
    objects: BTreeMap<String, Vec<u8>>,
    /// Access keys that it was told of.
    keys: BTreeSet<String>,
    /// How long the last answer took: who hangs up does so within that time or a little later.
    usual: Duration,
    hung_up: usize,
    acknowledged: usize,
}

impl<'c> Worker<'c> {
    async fn new(cluster: &'c Cluster, number: u64, seed: u64) -> Self {
        let mut channels = Vec::new();
        for node in NODES {
            channels.push(wire::connect(cluster, node, None).await.unwrap());
        }
        let (name, kept) = (format!("w{number}-bucket"), format!("kept-{number}"));
        let (objects, keys) = (BTreeMap::new(), BTreeSet::new());
        Self {
            cluster,
            chance: data::chance(seed.wrapping_add(number)),
            channels,
            name,
            kept,
            objects,
            keys,
            usual: Duration::ZERO,
            hung_up: 0,
            acknowledged: 0,
        }
    }

    fn channel(&mut self) -> Channel {
        let at = self.chance.random_range(0..self.channels.len());
        self.channels[at].clone()
    }

    /// Waits for an answer, or not so long. `None`: nobody knows what came of it.
    async fn ask<T>(&mut self, asked: impl Future<Output = Result<Response<T>, Status>>) -> Option<Result<T, Status>> {
        let patience = if self.chance.random() { SETTLE_MAX } else { self.usual.mul_f64(self.chance.random_range(0.0..1.2)) };
        let begun = Instant::now();
        let answered = tokio::time::timeout(patience, asked).await.ok();
        match &answered {
            None => self.hung_up += 1,
            Some(answer) => {
                self.usual = begun.elapsed();
                self.acknowledged += usize::from(answer.is_ok());
            }
        }
        answered.map(|answer| answer.map(Response::into_inner))
    }

    async fn round(&mut self, number: usize) {
        match self.chance.random_range(0..8) {
            0 | 1 => self.make().await,
            2 => self.rename(number).await,
            3 | 4 => self.remove().await,
            5 => self.put(number).await,
            6 => self.delete().await,
            _ => self.key(number).await,
        }
    }

    /// What was asked for, unless it is refused for one of these reasons, or nobody can tell for now.
    fn expect<T>(answer: Option<Result<T, Status>>, codes: &[Code]) -> Option<T> {
        match answer {
            Some(Err(status)) if !codes.contains(&status.code()) && status.code() != Code::Unavailable => panic!("{status}"),
            answer => answer.and_then(Result::ok),
        }
    }

    async fn make(&mut self) {
        let mut admin = AdminClient::new(self.channel());
        let request = wire::signed(self.cluster, CreateBucketRequest { name: self.name.clone(), policy: None });
        let answer = self.ask(admin.create_bucket(request)).await;
        // What it hung up on before goes on beside it.
        Self::expect(answer, &[Code::AlreadyExists, Code::FailedPrecondition, Code::NotFound]);
    }

    async fn rename(&mut self, number: usize) {
        let (mut admin, name) = (AdminClient::new(self.channel()), format!("{}-{number}", self.kept.replace("kept", "renamed")));
        let request = wire::signed(self.cluster, RenameBucketRequest { bucket: self.name.clone(), name });
        let answer = self.ask(admin.rename_bucket(request)).await;
        Self::expect(answer, &[Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition]);
    }

    async fn remove(&mut self) {
        let mut admin = AdminClient::new(self.channel());
        let answer = self.ask(admin.remove_bucket(wire::signed(self.cluster, RemoveBucketRequest { name: self.name.clone() }))).await;
        Self::expect(answer, &[Code::NotFound, Code::FailedPrecondition]);
    }

    async fn put(&mut self, number: usize) {
        let length = [100, 100_000, 1 << 20, (1 << 20) + 5][self.chance.random_range(0..4)];
        let content = data::bytes(&mut self.chance, length);
        let (mut upload, key) = ([0; 16], format!("{number}"));
        self.chance.fill_bytes(&mut upload);
        let messages = futures_util::stream::iter(wire::whole(&self.kept, &key, upload, &content));
        let mut objects = afar_proto::v1::objects_client::ObjectsClient::new(self.channel());
        let answer = self.ask(objects.put(wire::signed(self.cluster, messages))).await;
        if Self::expect(answer, &[]).is_some() {
            self.objects.insert(key, content);
        }
    }

    async fn delete(&mut self) {
        // Whether it is gone nobody knows, if nobody waits for the answer.
        let Some((key, _)) = self.objects.pop_first() else { return };
        let mut upload = [0; 16];
        self.chance.fill_bytes(&mut upload);
        let upload = Bytes::copy_from_slice(&upload);
        let request = wire::signed(self.cluster, DeleteRequest { bucket: self.kept.clone(), key, upload, ..DeleteRequest::default() });
        let mut objects = afar_proto::v1::objects_client::ObjectsClient::new(self.channel());
        let answer = self.ask(objects.delete(request)).await;
        Self::expect(answer, &[]);
    }

    async fn key(&mut self, number: usize) {
        let mut admin = AdminClient::new(self.channel());
        if let Some(access_key_id) = self.keys.pop_first().filter(|_| self.chance.random()) {
            let answer = self.ask(admin.revoke_key(wire::signed(self.cluster, RevokeKeyRequest { access_key_id }))).await;
            Self::expect(answer, &[]);
            return;
        }
        let grants = vec![Grant { bucket: self.kept.clone(), rights: vec!["read".into()] }];
        let request = wire::signed(self.cluster, CreateKeyRequest { name: format!("{}-{number}", self.kept), grants });
        let answer = self.ask(admin.create_key(request)).await;
        if let Some(made) = Self::expect(answer, &[]) {
            self.keys.insert(made.key.unwrap().access_key_id);
        }
    }
}

/// The buckets that a node knows, by name. An error if two have one name.
fn buckets(cluster: &Cluster, node: &str) -> Result<BTreeMap<String, String>, String> {
    let listed = cluster.afar_at(&[node]).ok(&["bucket", "ls", "--json"]).json();
    let word = |bucket: &serde_json::Value, name: &str| bucket[name].as_str().unwrap().to_owned();
    let listed: Vec<(String, String)> =
        listed.as_array().into_iter().flatten().map(|bucket| (word(bucket, "name"), word(bucket, "id"))).collect();
    let by_name: BTreeMap<String, String> = listed.iter().cloned().collect();
    if by_name.len() == listed.len() { Ok(by_name) } else { Err(format!("two of one name at {node}: {listed:?}")) }
}

#[test]
fn callers_who_hang_up_leave_nothing_that_anybody_would_have_to_repair() {
    let cluster = Setup::of(&THREE).partitions(256).start();
    let (operator, seed, runtime) = (Operator::of(&cluster), data::seed(), wire::runtime());
    (0..3).for_each(|number| cluster.bucket(&format!("kept-{number}"), &[]));
    for node in NODES {
        until(&format!("{node} is sure of itself"), SETTLE_MAX, || {
            let ran = cluster.afar_at(&[node]).run_with_input(&["put", "-", "kept-0/first"], b"first");
            if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
        });
    }
    let work = async |number: u64| {
        let mut worker = Worker::new(&cluster, number, seed).await;
        for round in 0..ROUNDS {
            worker.round(round).await;
        }
        worker
    };
    let workers = runtime.block_on(futures_util::future::join_all((0..3).map(&work)));
    for worker in &workers {
        eprintln!("{}: {} acknowledged, {} hung up", worker.kept, worker.acknowledged, worker.hung_up);
    }
    // No name is frozen, all nodes agree, and every bucket takes objects: none is left half removed.
    until("every bucket is a whole one", SETTLE_MAX, || {
        let known = NODES.map(|node| buckets(&cluster, node));
        let [Ok(first), Ok(second), Ok(third)] = &known else { return Err(format!("{known:?}")) };
        if first != second || second != third {
            return Err(format!("{known:?}"));
        }
        for (name, node) in first.keys().zip(NODES.iter().cycle()) {
            let ran = cluster.afar_at(&[node]).run_with_input(&["put", "-", &format!("{name}/last")], b"last");
            if ran.code != 0 {
                return Err(ran.to_string());
            }
        }
        Ok(())
    });
    // No request is under way any more as far as the nodes know.
    operator.change(&["node", "set", "warsaw", "--capacity", "2GiB"]);
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    let afar = cluster.afar();
    let keys: BTreeSet<String> = afar
        .ok(&["key", "ls", "--json"])
        .json()
        .as_array()
        .into_iter()
        .flatten()
        .map(|key| key["access_key_id"].as_str().unwrap().to_owned())
        .collect();
    for worker in workers {
        assert!(worker.keys.is_subset(&keys), "a key that somebody was told of is not there");
        for ((key, content), node) in worker.objects.into_iter().zip(NODES.iter().cycle()) {
            Known { at: format!("{}/{key}", worker.kept), content }.must_be_at(&cluster.afar_at(&[node]));
        }
    }
}
