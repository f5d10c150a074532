//! The operator's side of layouts: the folder that `afar cluster init` made holds the key that signs them and the chain of
//! those that were signed. A change is a child of the newest one: planned here, checked by every node that answers, signed,
//! sent to all of them, and kept in the folder.
//!
//! Nothing here is needed to serve: nodes keep their layouts themselves and tell each other. Whoever has a custodian's key and
//! any copy of the chain can go on from another machine.
use super::durable;
use crate::{
    client::Client,
    endpoints::Door,
    error::{Error, Kind},
    limits,
};
use afar_model::{
    assignment::Assignment,
    document::{Chain, Chapter, Document, LayoutHash, PublicKey, Refused, ShortHash, Signature, Signed},
    id::BucketId,
    layout::{Duty, Layout, NodeIndex},
    placement::{Geography, Infeasible, Partition, Placement},
    plan,
    policy::Policy,
    units::UnixMillis,
};
use afar_proto::v1;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use futures_util::StreamExt as _;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Bytes of a chain in one message.
const PART_BYTES: usize = 256 << 10;

/// Checks an Ed25519 signature.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, key).verify(message, signature).is_ok()
}

/// A key that signs layouts.
pub struct Custodian {
    pair: Ed25519KeyPair,
    secret: Vec<u8>,
}

impl std::fmt::Debug for Custodian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Custodian({})", hex::encode(self.public()))
    }
}

impl Custodian {
    /// A new key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new() -> Result<Self, Error> {
        let wrong = |_| Error::new(Kind::Failed, "the system gives no randomness for a key");
        let secret = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).map_err(wrong)?.as_ref().to_vec();
        Self::from_secret(secret)
    }

    fn from_secret(secret: Vec<u8>) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_pkcs8(&secret).map_err(|_| Error::usage("this is no key of a custodian"))?;
        Ok(Self { pair, secret })
    }

    /// What goes into a layout.
    pub fn public(&self) -> PublicKey {
        self.pair.public_key().as_ref().try_into().unwrap_or_default()
    }

    /// Reads a key's file.
    ///
    /// # Errors
    /// If it is missing, or no key.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = crate::cli::config::read_bounded(path, limits::SECRET_BYTES_MAX)?;
        let secret = hex::decode(text.trim()).map_err(|_| Error::usage(format!("{}: is no custodian's key", path.display())))?;
        Self::from_secret(secret).map_err(|error| Error::usage(format!("{}: {}", path.display(), error.message())))
    }

    /// Writes the key, for its owner only.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = format!("{}\n", hex::encode(&self.secret));
        durable::write(path, text.as_bytes(), durable::SECRET).map_err(|error| Error::io(path.display(), &error))
    }

    /// Signs a document.
    pub fn sign(&self, document: &Document) -> Signed {
        let body = document.encode();
        let signature = self.pair.sign(&body).as_ref().to_vec();
        Signed { signatures: vec![Signature { key: self.public(), signature }], body }
    }
}

/// What one node said of layouts.
#[derive(Debug, Clone)]
pub struct Said {
    /// The node, or its endpoint if it did not say.
    pub node: String,
    /// Its current layout.
    pub current: LayoutHash,
    /// How many it has open.
    pub open: usize,
    /// Buckets and how they are kept now.
    pub buckets: Vec<(BucketId, String, Policy)>,
    /// The policy of buckets to come.
    pub default: Option<Policy>,
    chain: Chain,
}

/// A change that is ready to be signed, and what it means.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What will be signed.
    pub document: Document,
    /// As it will be.
    pub layout: Layout,
    /// For each policy in use.
    pub plans: Vec<Planned>,
    /// Policies that cannot be met, and the buckets that have them.
    pub infeasible: Vec<(Vec<String>, Policy, Infeasible)>,
}

/// What a draft means for one policy.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The policy.
    pub policy: Policy,
    /// Buckets that have it.
    pub buckets: Vec<String>,
    /// Where its partitions were; `None` if nowhere.
    pub previous: Option<Assignment>,
    /// Where they will be.
    pub assignment: Assignment,
}

/// The operator's folder.
#[derive(Debug)]
pub struct Operator {
    folder: PathBuf,
    chain: Chain,
    chapters: Vec<Chapter>,
}

fn refused(error: &Refused) -> Error {
    Error::usage(error.to_string())
}

/// Now, by this machine's clock.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Operator {
    /// Opens a folder that `afar cluster init` made.
    ///
    /// # Errors
    /// If it is none, or its chain cannot be understood.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("layout/chain");
        let bytes = fs::read(&path).map_err(|error| {
            Error::usage(format!("{}: {error}", path.display()))
                .hint("name the folder that `afar cluster init` made with --dir, or run this in it; a cluster without nodes has no layout yet")
        })?;
        let chain = Chain::decode(&bytes).map_err(|error| refused(&error))?;
        let chapters = chain.chapters(&verify).map_err(|error| refused(&error))?;
        Ok(Self { folder: folder.to_owned(), chain, chapters })
    }

    /// Begins a chain in the folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(folder: &Path, cluster: &str, layout: Layout, custodians: Vec<PublicKey>) -> Result<Self, Error> {
        let genesis = Chapter::genesis(cluster, layout, custodians);
        let chain = Chain { genesis: genesis.document.encode(), documents: Vec::new() };
        let operator = Self { folder: folder.to_owned(), chain, chapters: vec![genesis] };
        operator.save()?;
        Ok(operator)
    }

    fn save(&self) -> Result<(), Error> {
        let path = self.folder.join("layout/chain");
        durable::write(&path, &self.chain.encode(), durable::PUBLIC).map_err(|error| Error::io(path.display(), &error))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The chain's bytes, for a bundle.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Every layout, oldest first.
    pub fn chapters(&self) -> &[Chapter] {
        &self.chapters
    }

    /// The newest layout of the longest line; of two equally long ones, the first that was learnt.
    ///
    /// # Errors
    /// Never in practice: a chain has a genesis.
    pub fn head(&self) -> Result<&Chapter, Error> {
        let newest = self.chapters.iter().rev().max_by_key(|chapter| chapter.document.version);
        newest.ok_or_else(|| Error::usage("the chain of layouts is empty"))
    }

    /// Layouts that no other is made of: more than one is a conflict.
    pub fn heads(&self) -> Vec<&Chapter> {
        let has_child = |hash: &LayoutHash| self.chapters.iter().any(|chapter| chapter.document.parents.contains(hash));
        self.chapters.iter().filter(|chapter| !has_child(chapter.layout.hash())).collect()
    }

    /// The key to sign with: the folder's own.
    ///
    /// # Errors
    /// If it is not there.
    pub fn custodian(&self) -> Result<Custodian, Error> {
        Custodian::read(&self.folder.join("layout/custodian.key"))
    }

    /// Asks every node that the chain or the client's settings name, and learns what they know beyond this folder.
    ///
    /// # Errors
    /// If what a node knows contradicts this folder's genesis.
    pub async fn refresh(&mut self, client: &Client) -> Result<Vec<Said>, Error> {
        let said = self.ask(client).await?;
        for answer in &said {
            self.learn(&answer.chain)?;
        }
        self.save()?;
        Ok(said)
    }

    fn learn(&mut self, chain: &Chain) -> Result<(), Error> {
        for signed in &chain.documents {
            if self.chain.documents.iter().any(|known| known.hash() == signed.hash()) {
                continue;
            }
            let document = Document::decode(&signed.body).map_err(|error| refused(&error))?;
            let parents: Vec<&Chapter> =
                self.chapters.iter().filter(|chapter| document.parents.contains(chapter.layout.hash())).collect();
            if parents.is_empty() || parents.len() < document.parents.len() {
                return Err(Error::usage("a node has layouts that this folder's chain does not lead to: is it another cluster's folder?"));
            }
            let chapter = signed.open(&parents, &verify).map_err(|error| refused(&error))?;
            self.chapters.push(chapter);
            self.chain.documents.push(signed.clone());
        }
        Ok(())
    }

    /// The doors of all nodes that still take part, and those of the client's settings.
    fn doors(&self, client: &Client, layout: &Layout) -> Result<Vec<Door>, Error> {
        let mut doors: Vec<Door> = client.doors().to_vec();
        let Some(first) = doors.first().cloned() else { return Ok(doors) };
        for node in layout.members().filter_map(|node| layout.node(node)) {
            if !doors.iter().any(|door| door.name().trim_end_matches('/') == node.endpoint.trim_end_matches('/')) {
                doors.push(first.to(&node.endpoint)?);
            }
        }
        Ok(doors)
    }

    async fn ask(&self, client: &Client) -> Result<Vec<Said>, Error> {
        let doors = self.doors(client, &self.head()?.layout)?;
        let answers = futures_util::future::join_all(doors.iter().map(ask_one)).await;
        let mut said: Vec<Said> = Vec::new();
        for answer in answers.into_iter().flatten() {
            if !said.iter().any(|known| known.node == answer.node) {
                said.push(answer);
            }
        }
        Ok(said)
    }

    /// A change of the newest layout, not planned yet.
    ///
    /// # Errors
    /// If there are two newest ones.
    pub fn change(&self, note: impl Into<String>) -> Result<Document, Error> {
        if let [_, _, ..] = self.heads().as_slice() {
            return Err(Error::new(Kind::Busy, "two layouts were made of one: end that first")
                .hint("see `afar layout history`, then `afar layout apply --merge VERSION-HASH`, which keeps that one and ends the conflict"));
        }
        Ok(Document::child_of(self.head()?, now(), note))
    }

    /// Plans where everything goes under a document, as near as possible to where it is.
    ///
    /// # Errors
    /// If the document makes no sense.
    pub fn plan(&self, mut document: Document, said: &[Said]) -> Result<Draft, Error> {
        let head = self.head()?;
        let words = |problems: Vec<String>| Error::usage(problems.join("\n       "));
        document.plans.clear();
        let layout = document.layout([0; 32]).map_err(words)?;
        let geography = Geography::claimed(&layout);
        let weight = |node: NodeIndex| match layout.duty(node) {
            Duty::Active => layout.node(node).map_or(0, |node| node.capacity),
            _ => 0,
        };
        let weights: Vec<u64> = layout.node_indexes().map(weight).collect();
        let (mut plans, mut infeasible) = (Vec::new(), Vec::new());
        for (policy, buckets) in policies_in_use(&document, head, said) {
            let before = buckets.first().and_then(|bucket| was(said, bucket)).unwrap_or_else(|| policy.clone());
            let previous = effective(&before, &head.layout).and_then(|previous| {
                let name = |node: NodeIndex| layout.node_named(head.layout.node_name(node));
                previous.renumbered(name).ok()
            });
            match plan::assign(&policy, &geography, &weights, layout.partitions(), previous.as_ref()) {
                Ok(assignment) => {
                    document.plans.push((policy.clone(), assignment.clone()));
                    plans.push(Planned { policy, buckets, previous, assignment });
                }
                Err(why) => infeasible.push((buckets, policy, why)),
            }
        }
        let layout = document.layout([0; 32]).map_err(words)?;
        Ok(Draft { document, layout, plans, infeasible })
    }

    /// Has every node that answers check a signed layout, then sends it to all of them; one refusal stops it. Answers who has
    /// it, and who did not answer.
    ///
    /// # Errors
    /// Who refused, and why; then nobody has it.
    pub async fn apply(&mut self, client: &Client, signed: Signed) -> Result<(Vec<String>, Vec<String>), Error> {
        let mut offered = self.chain.clone();
        offered.documents.push(signed.clone());
        let document = Document::decode(&signed.body).map_err(|error| refused(&error))?;
        let layout = document.layout(signed.hash()).map_err(|problems| Error::usage(problems.join("; ")))?;
        let mut doors = self.doors(client, &self.head()?.layout)?;
        for door in self.doors(client, &layout)? {
            if !doors.iter().any(|known| known.name() == door.name()) {
                doors.push(door);
            }
        }
        // Who lags behind gets what was signed before; whether that worked shows in the check.
        let _ = futures_util::future::join_all(doors.iter().map(|door| offer(door, &self.chain, false))).await;
        let checks = futures_util::future::join_all(doors.iter().map(|door| offer(door, &offered, true))).await;
        let refusals: Vec<String> = checks.iter().filter_map(|check| check.as_ref().ok()?.refusal()).collect();
        if !refusals.is_empty() {
            let why = format!("the layout is not applied, for not every node would take it:\n       {}", refusals.join("\n       "));
            return Err(Error::new(Kind::Failed, why).hint("nothing has changed; mend what the nodes object to, and try again"));
        }
        // From here on it may be out: the folder must know it before anybody else does.
        self.learn(&Chain { genesis: Vec::new(), documents: vec![signed] })?;
        self.save()?;
        let sent = futures_util::future::join_all(doors.iter().map(|door| offer(door, &self.chain, false))).await;
        let (mut have, mut silent) = (Vec::new(), Vec::new());
        for (door, answer) in doors.iter().zip(sent) {
            match answer {
                Ok(reply) if reply.refusal().is_none() => have.push(reply.node),
                Ok(reply) => silent.push(reply.refusal().unwrap_or_default()),
                Err(error) => silent.push(format!("{}: {}", door.name(), error.message())),
            }
        }
        have.sort_unstable();
        have.dedup();
        Ok((have, silent))
    }
}

/// The policy that a bucket has now.
fn was(said: &[Said], name: &str) -> Option<Policy> {
    said.iter().flat_map(|said| &said.buckets).find(|(_, bucket, _)| bucket == name).map(|(_, _, policy)| policy.clone())
}

/// Every policy that a document must plan for, with the buckets that have it: those that nodes know, those that were planned
/// for before, and that of buckets to come.
fn policies_in_use(document: &Document, head: &Chapter, said: &[Said]) -> Vec<(Policy, Vec<String>)> {
    let mut found: BTreeMap<Vec<u8>, (Policy, Vec<String>)> = BTreeMap::new();
    let mut add = |policy: &Policy, bucket: Option<&str>| {
        let entry = found.entry(policy.placement_key()).or_insert_with(|| (policy.clone(), Vec::new()));
        if let Some(bucket) = bucket.filter(|bucket| !entry.1.iter().any(|known| known == bucket)) {
            entry.1.push(bucket.to_owned());
        }
    };
    for (id, name, policy) in said.iter().flat_map(|said| &said.buckets) {
        let promised = document.promises.iter().find(|(bucket, _)| bucket == id).map(|(_, policy)| policy);
        add(promised.unwrap_or(policy), Some(name));
    }
    for (_, policy) in &document.promises {
        add(policy, None);
    }
    if said.is_empty() {
        head.document.plans.iter().for_each(|(policy, _)| add(policy, None));
    }
    said.iter().filter_map(|said| said.default.as_ref()).for_each(|policy| add(policy, None));
    found.into_values().collect()
}

/// Where a policy's partitions are under a layout: as planned, or as derived where nothing was.
pub fn effective(policy: &Policy, layout: &Layout) -> Option<Assignment> {
    if let Some(plan) = layout.plan(policy) {
        return Some(Assignment::clone(plan));
    }
    let placement = Placement::new(policy, &Geography::claimed(layout)).ok()?;
    Assignment::of_partitions((0..layout.partitions()).map(|p| placement.assigned(policy, layout, Partition(p)))).ok()
}

struct Reply {
    node: String,
    problems: Vec<String>,
}

impl Reply {
    fn refusal(&self) -> Option<String> {
        (!self.problems.is_empty()).then(|| format!("{}: {}", self.node, self.problems.join("; ")))
    }
}

async fn offer(door: &Door, chain: &Chain, check_only: bool) -> Result<Reply, Error> {
    let bytes = bytes::Bytes::from(chain.encode());
    let parts: Vec<v1::LayoutPart> = (0..bytes.len().max(1))
        .step_by(PART_BYTES)
        .map(|at| v1::LayoutPart { data: bytes.slice(at..(at + PART_BYTES).min(bytes.len())), check_only, ..v1::LayoutPart::default() })
        .collect();
    let mut client = door.layouts();
    let reply = door.ask(limits::LAYOUT_TIMEOUT, client.offer(futures_util::stream::iter(parts))).await?;
    Ok(Reply { node: reply.node, problems: reply.problems })
}

async fn ask_one(door: &Door) -> Option<Said> {
    let read = async {
        let mut parts = door.layouts().get(v1::GetLayoutsRequest {}).await.ok()?.into_inner();
        let (mut bytes, mut head) = (Vec::new(), None);
        while let Some(part) = parts.next().await {
            let part = part.ok()?;
            if bytes.len() + part.data.len() > Chain::BYTES_MAX {
                return None;
            }
            bytes.extend_from_slice(&part.data);
            head.get_or_insert(part);
        }
        let head = head?;
        let placed = |bucket: &v1::PlacedBucket| -> Option<(BucketId, String, Policy)> {
            let policy = Policy::from_bytes(&bucket.policy)?;
            let id = if bucket.id.is_empty() { BucketId::ZERO } else { BucketId::try_from(bucket.id.as_ref()).ok()? };
            Some((id, bucket.name.clone(), policy))
        };
        let (default, buckets): (Vec<_>, Vec<_>) = head.buckets.iter().filter_map(placed).partition(|(id, ..)| *id == BucketId::ZERO);
        Some(Said {
            node: head.node.clone(),
            current: head.current.as_ref().try_into().ok()?,
            open: head.open.len(),
            buckets,
            default: default.into_iter().next().map(|(_, _, policy)| policy),
            chain: Chain::decode(&bytes).ok()?,
        })
    };
    tokio::time::timeout(limits::LAYOUT_TIMEOUT, read).await.ok().flatten()
}

/// How a layout is named: its version and the beginning of its hash.
pub fn name_of(chapter: &Chapter) -> String {
    format!("{}-{}", chapter.document.version, ShortHash(chapter.layout.hash()))
}
