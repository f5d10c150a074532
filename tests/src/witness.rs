//! Who holds what, by the nodes' own proofs: asked as a peer, with the certificate of another node. So a copy that was
//! dropped too early is seen while it is missing, and not only when a reader would have needed it.
use crate::{
    cluster::Cluster,
    limits::{LOOK_EVERY, SETTLE_MAX},
};
use afar_model::{
    geo::Coordinates,
    id::{BucketId, RecordId},
    record::{RecordKey, RecordKind},
    units::Metres,
};
use afar_proto::v1::{self, IdsRequest, Proof, ProveRequest, VersionIdsRequest, peer_client::PeerClient};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// Records that one question may name.
const KEYS: usize = 512;
/// A node that has not answered by then is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node as the witness reaches it.
#[derive(Debug, Clone)]
struct Holder {
    endpoint: String,
    place: Coordinates,
    bundle: PathBuf,
    /// With the certificate of this other node.
    client: Option<(String, PeerClient<Channel>)>,
    /// The layout does not wait for it any more: it is not asked, nor is its certificate used.
    gone: bool,
}

/// See the module. Cheap to clone; clones share what they know.
#[derive(Debug, Clone)]
pub struct Witness {
    authority: String,
    bucket: BucketId,
    holders: Arc<Mutex<BTreeMap<String, Holder>>>,
    /// What each node was last seen to hold or not to hold: one that does not run drops nothing.
    last: Arc<Mutex<BTreeMap<String, BTreeMap<RecordKey, bool>>>>,
}

impl Witness {
    /// For one bucket of a cluster whose nodes run.
    ///
    /// # Panics
    /// If there is no such bucket.
    pub fn of(cluster: &Cluster, bucket: &str) -> Self {
        let buckets = cluster.afar().ok(&["bucket", "ls", "--json"]).json();
        let found = buckets.as_array().into_iter().flatten().find(|found| found["name"] == bucket).expect("the bucket");
        let witness = Self {
            authority: cluster.authority(),
            bucket: found["id"].as_str().expect("an id").parse().expect("an id"),
            holders: Arc::default(),
            last: Arc::default(),
        };
        for node in cluster.nodes() {
            witness.meet(cluster, node.name());
        }
        witness
    }

    /// Learns of a node, also of one that was replaced.
    ///
    /// # Panics
    /// If the cluster has no such node.
    pub fn meet(&self, cluster: &Cluster, name: &str) {
        let (node, place) = (cluster.node(name), cluster.place_of(name));
        let holder = Holder {
            endpoint: node.endpoint(),
            place: Coordinates::new(place.latitude, place.longitude).expect("a place"),
            bundle: node.folder().to_path_buf(),
            client: None,
            gone: false,
        };
        self.holders.lock().expect("nobody panics with this lock").insert(name.to_owned(), holder);
    }

    /// A node has left: what it says counts no more.
    ///
    /// # Panics
    /// If another thread panicked.
    pub fn dismiss(&self, name: &str) {
        let mut holders = self.holders.lock().expect("nobody panics with this lock");
        for holder in holders.values_mut().filter(|holder| holder.client.as_ref().is_some_and(|(asker, _)| asker == name)) {
            holder.client = None;
        }
        if let Some(holder) = holders.get_mut(name) {
            holder.gone = true;
        }
        drop(holders);
        self.last.lock().expect("nobody panics with this lock").remove(name);
    }

    /// The bucket.
    pub const fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// A record of the bucket.
    pub const fn key(&self, id: RecordId) -> RecordKey {
        RecordKey { bucket: self.bucket, id }
    }

    fn names(&self) -> Vec<String> {
        let holders = self.holders.lock().expect("nobody panics with this lock");
        holders.iter().filter(|(_, holder)| !holder.gone).map(|(name, _)| name.clone()).collect()
    }

    fn place(&self, name: &str) -> Coordinates {
        self.holders.lock().expect("nobody panics with this lock").get(name).expect("a node that was met").place
    }

    /// A client of a node, with another node's certificate.
    fn client(&self, name: &str) -> Option<PeerClient<Channel>> {
        let mut holders = self.holders.lock().expect("nobody panics with this lock");
        let (asker, bundle) = holders
            .iter()
            .find(|(asker, holder)| *asker != name && !holder.gone)
            .map(|(asker, holder)| (asker.clone(), holder.bundle.clone()))?;
        let holder = holders.get_mut(name)?;
        if holder.client.is_none() {
            let read = |file: &str| fs::read(bundle.join(file)).ok();
            let identity = Identity::from_pem(read("node.crt")?, read("node.key")?);
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority)).identity(identity);
            let endpoint = Endpoint::from_shared(holder.endpoint.clone()).ok()?.tls_config(tls).ok()?.connect_timeout(PATIENCE);
            let most = afar_proto::limits::MESSAGE_BYTES_MAX;
            let client = PeerClient::new(endpoint.connect_lazy()).max_decoding_message_size(most).max_encoding_message_size(most);
            holder.client = Some((asker, client));
        }
        holder.client.as_ref().map(|(_, client)| client.clone())
    }

    /// Which of these records a node proves to hold: read, hashed and synced there. `None` if it does not answer.
    pub async fn proves(&self, name: &str, records: &[RecordKey]) -> Option<BTreeSet<RecordKey>> {
        let mut client = self.client(name)?;
        let mut held = BTreeSet::new();
        for keys in records.chunks(KEYS) {
            let request = ProveRequest { keys: keys.iter().map(|key| v1::RecordKey::from(*key)).collect(), ..ProveRequest::default() };
            let reply = tokio::time::timeout(PATIENCE, client.prove(within(request))).await.ok()?.ok()?.into_inner();
            held.extend(reply.proofs().zip(keys).filter(|(proof, _)| *proof == Proof::Durable).map(|(_, key)| *key));
        }
        Some(held)
    }

    /// Asks every node once, at the same time. Who does not answer holds what it held, and may hold what it was never asked for.
    async fn round(&self, records: &[RecordKey]) -> Round {
        let names = self.names();
        let answers = futures_util::future::join_all(names.iter().map(|name| self.proves(name, records))).await;
        let mut last = self.last.lock().expect("nobody panics with this lock");
        let mut round = Round { held: BTreeMap::new(), complete: answers.iter().all(Option::is_some) };
        for (name, answer) in names.into_iter().zip(answers) {
            let known = last.entry(name.clone()).or_default();
            if let Some(held) = answer {
                known.extend(records.iter().map(|key| (*key, held.contains(key))));
            }
            let held = records.iter().copied().filter(|key| known.get(key).copied().unwrap_or(true));
            round.held.insert(name, held.collect());
        }
        round
    }

    /// Records of which no two copies that are at least 700 km apart were seen, each with its holders; and whether every node
    /// answered.
    ///
    /// A copy may be brought to one node and dropped by another while this goes from node to node; but not so quickly that it
    /// is missed by two rounds, one after the other.
    pub async fn not_far(&self, records: &[RecordKey]) -> (Vec<(RecordKey, Vec<String>)>, bool) {
        let first = self.round(records).await;
        let doubtful: Vec<RecordKey> = records.iter().copied().filter(|key| !self.is_far(&holders(&[&first], key))).collect();
        if doubtful.is_empty() {
            return (Vec::new(), first.complete);
        }
        let second = self.round(&doubtful).await;
        let both = doubtful.into_iter().map(|key| (key, holders(&[&first, &second], &key)));
        (both.filter(|(_, names)| !self.is_far(names)).collect(), first.complete)
    }

    fn is_far(&self, names: &[String]) -> bool {
        let places: Vec<Coordinates> = names.iter().map(|name| self.place(name)).collect();
        places.iter().any(|a| places.iter().any(|b| a.distance(b) >= Metres::from_km(700)))
    }

    /// Everything of the bucket that a node holds: chunks, manifests and versions, proved or not.
    ///
    /// # Panics
    /// If the node does not answer.
    pub async fn holdings(&self, name: &str) -> BTreeSet<RecordKey> {
        let mut client = self.client(name).expect("a client");
        let mut held = BTreeSet::new();
        let most = afar_proto::limits::PAGE_MAX as u32;
        let start = tokio::time::Instant::now();
        let ids = loop {
            match client.ids(within(IdsRequest { first: 0, last: u32::MAX, after: None, limit: most })).await {
                // It lost something a moment ago, and makes its index anew.
                Err(status) if status.message().contains("being rebuilt") && start.elapsed() < SETTLE_MAX => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                answered => break answered.expect("ids").into_inner(),
            }
        };
        assert!(!ids.more, "too many records for one page");
        for record in ids.records.iter().filter(|record| record.kind != u32::from(RecordKind::Setting as u8)) {
            let key = v1::RecordKey { bucket: record.bucket.clone(), id: record.id.clone() };
            held.extend(RecordKey::try_from(&key).ok());
        }
        let versions = client.version_ids(within(VersionIdsRequest { limit: most, ..VersionIdsRequest::default() })).await;
        for version in versions.expect("versions").into_inner().versions {
            let entry = version.entry.expect("an entry");
            held.extend(RecordKey::try_from(&v1::RecordKey { bucket: version.bucket, id: entry.id }).ok());
        }
        held.retain(|key| key.bucket == self.bucket);
        held
    }

    /// How many copies of each record of the bucket there are, over all nodes that are members: holders by record.
    ///
    /// # Panics
    /// If a node does not answer.
    pub async fn copies(&self) -> BTreeMap<RecordKey, BTreeSet<String>> {
        let mut copies: BTreeMap<RecordKey, BTreeSet<String>> = BTreeMap::new();
        for name in self.names() {
            for key in self.holdings(&name).await {
                copies.entry(key).or_default().insert(name.clone());
            }
        }
        copies
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// What one question to every node has shown.
struct Round {
    held: BTreeMap<String, BTreeSet<RecordKey>>,
    /// Whether every node answered.
    complete: bool,
}

fn holders(rounds: &[&Round], key: &RecordKey) -> Vec<String> {
    let all = rounds.iter().flat_map(|round| round.held.iter()).filter(|(_, held)| held.contains(key)).map(|(name, _)| name.clone());
    all.collect::<BTreeSet<String>>().into_iter().collect()
}
