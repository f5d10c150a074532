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
    placement::{Geography, Partition, Placement},
    plan,
    policy::Policy,
    units::UnixMillis,
};
use afar_proto::v1;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use futures_util::StreamExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tonic::Code;

/// Where the folder's own key is.
const CUSTODIAN: &str = "layout/custodian.key";
/// Where the second one is, until it is taken elsewhere. What is to take the place of either lies beside it as `NAME.next`.
const SECOND: &str = "recovery/custodian.key";

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

    /// The same key once more.
    ///
    /// # Errors
    /// Never in practice: it was read before.
    pub fn again(&self) -> Result<Self, Error> {
        Self::from_secret(self.secret.clone())
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

    /// Reads the public half of somebody's key: of a file that holds the key, or only that half (64 hexadecimal digits).
    ///
    /// # Errors
    /// If it is neither.
    pub fn read_public(path: &Path) -> Result<PublicKey, Error> {
        let text = crate::cli::config::read_bounded(path, limits::SECRET_BYTES_MAX)?;
        let mut key = [0; 32];
        match hex::decode_to_slice(text.trim(), &mut key) {
            Ok(()) => Ok(key),
            Err(_) => Ok(Self::read(path)?.public()),
        }
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

impl Said {
    /// What its chain begins with.
    ///
    /// # Errors
    /// If that makes no sense.
    pub fn genesis(&self) -> Result<Chapter, Error> {
        self.chain.genesis().map_err(|error| refused(&error))
    }

    /// Whether it takes what this key signs.
    pub fn believes(&self, key: &PublicKey) -> bool {
        let chapters = self.chain.chapters(&verify).unwrap_or_default();
        let current = chapters.iter().find(|chapter| *chapter.layout.hash() == self.current);
        current.is_some_and(|chapter| chapter.document.custodians.contains(key))
    }

    #[cfg(test)]
    pub(crate) fn of(node: &str, genesis: Chapter) -> Self {
        let chain = Chain { genesis: genesis.document.encode(), documents: Vec::new() };
        let current = *genesis.layout.hash();
        Self { node: node.to_owned(), current, open: 1, buckets: Vec::new(), default: None, chain }
    }
}

/// What those nodes say of layouts that a client knows; who does not answer, or knows nothing of layouts, is left out.
///
/// # Errors
/// If one refuses the key.
pub async fn ask_known(client: &Client) -> Result<Vec<Said>, Error> {
    let answers = futures_util::future::join_all(client.doors().iter().map(ask_one)).await;
    Ok(answers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
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
    /// Policies that could not be kept whole.
    pub unkept: Vec<Unkept>,
    /// Buckets whose promise it alters.
    pub changed: Vec<Repromised>,
}

impl Draft {
    /// Policies for whose sake the change must not be made; none if it may.
    pub fn refused(&self) -> impl Iterator<Item = &Unkept> {
        self.unkept.iter().filter(|unkept| unkept.refused)
    }
}

/// A policy that a layout could not keep whole.
#[derive(Debug, Clone)]
pub struct Unkept {
    /// It.
    pub policy: Policy,
    /// Buckets that have it; none: those to come.
    pub buckets: Vec<String>,
    /// Whether copies would be far all the same, only fewer than it asks for.
    pub far: bool,
    /// What conflicts.
    pub why: String,
    /// The smallest changes that would help; may be empty.
    pub help: Vec<plan::Suggestion>,
    /// Whether that speaks against the change: one that somebody chooses leaves no bucket with fewer copies than it is promised, and
    /// no cluster without two far ones. What was so before, or follows from a loss, is only told.
    pub refused: bool,
}

impl Unkept {
    /// `buckets a, b could not be kept: …`.
    pub fn words(&self) -> String {
        let who = match self.buckets.as_slice() {
            [] => "new buckets".to_owned(),
            [bucket] => format!("bucket {bucket}"),
            buckets => format!("buckets {}", buckets.join(", ")),
        };
        let how = match (self.far, self.refused) {
            (true, _) => " whole",
            (false, true) => " any more",
            (false, false) => "",
        };
        format!("{who} could not be kept{how}: {}", self.why)
    }
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

/// A bucket whose promise a change alters.
#[derive(Debug, Clone)]
pub struct Repromised {
    /// Its name.
    pub bucket: String,
    /// What is promised now.
    pub before: Policy,
    /// What will be.
    pub after: Policy,
    /// Where its partitions are; `None` if nowhere.
    pub previous: Option<Assignment>,
    /// Where they will be; `None` if it cannot be kept.
    pub assignment: Option<Assignment>,
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
            Error::usage(format!("{}: {error}", path.display())).hint(
                "name the folder that `afar cluster init` made with --dir or AFAR_CLUSTER_DIR; a cluster without nodes has no layout \
                 yet, and one that an earlier version made must be adopted first (`afar cluster adopt`)",
            )
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

    /// Begins a folder's chain with what nodes know: the newest that this key may change. Whoever has the key has been named
    /// by the chain, and everything in it is verified; which of several nodes knows most, only asking all of them shows.
    ///
    /// # Errors
    /// If nobody answers, or nobody's newest layout names the key.
    pub async fn learn_from(folder: &Path, client: &Client, key: &PublicKey) -> Result<Self, Error> {
        let (mut best, mut heard): (Option<Self>, usize) = (None, 0);
        for said in ask_known(client).await? {
            heard += 1;
            let Ok(chapters) = said.chain.chapters(&verify) else { continue };
            let operator = Self { folder: folder.to_owned(), chain: said.chain, chapters };
            let newer = best
                .as_ref()
                .map(Self::head)
                .transpose()?
                .is_none_or(|best| operator.head().is_ok_and(|head| head.document.version > best.document.version));
            if newer {
                best = Some(operator);
            }
        }
        let Some(mut best) = best else {
            let why = if heard == 0 { "no node answers" } else { "no node has a chain of layouts that is whole" };
            return Err(Error::new(Kind::Unreachable, why).hint("check --endpoint, the access key and the CA file"));
        };
        // Those that the settings do not name may know more.
        for said in best.ask(client).await? {
            if let Err(error) = best.learn(&said.chain) {
                tracing::warn!(node = said.node, %error, "what it knows of layouts is left out");
            }
        }
        if best.head()?.document.custodians.contains(key) {
            return Ok(best);
        }
        Err(Error::usage(format!("layout {} does not name this key among those who may sign", name_of(best.head()?)))
            .hint("it was replaced; use the key that `afar cluster rekey` made last"))
    }

    /// Writes the chain into a folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self) -> Result<(), Error> {
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

    /// What nodes say of layouts; nothing is learnt from it.
    ///
    /// # Errors
    /// If an endpoint of the layout cannot be one.
    pub async fn listen(&self, client: &Client) -> Result<Vec<Said>, Error> {
        self.ask(client).await
    }

    /// The key to sign with: the folder's own. If a change of it was interrupted, it is completed here.
    ///
    /// # Errors
    /// If it is not there.
    pub fn custodian(&self) -> Result<Custodian, Error> {
        self.settle_custodian()?;
        Custodian::read(&self.folder.join(CUSTODIAN))
    }

    /// Makes a key that is to take the place of the folder's own, once a layout names it. On disk before anybody hears of it.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn next_custodian(&self) -> Result<Custodian, Error> {
        self.next_key(CUSTODIAN)
    }

    /// As [`Operator::next_custodian`], for the second key, which is to be kept elsewhere.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn next_second(&self) -> Result<Custodian, Error> {
        let recovery = self.folder.join("recovery");
        if !recovery.exists() {
            durable::private_folder(&recovery).map_err(|error| Error::io(recovery.display(), &error))?;
        }
        self.next_key(SECOND)
    }

    fn next_key(&self, name: &str) -> Result<Custodian, Error> {
        self.settle_custodian()?;
        let next = Custodian::new()?;
        next.write(&self.folder.join(format!("{name}.next")))?;
        Ok(next)
    }

    /// Puts a key that waits in its place if the newest layout names it; the one before it is kept as `old-N`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn settle_custodian(&self) -> Result<(), Error> {
        self.settle(CUSTODIAN)?;
        self.settle(SECOND)
    }

    fn settle(&self, name: &str) -> Result<(), Error> {
        let (own, next) = (self.folder.join(name), self.folder.join(format!("{name}.next")));
        if !next.exists() || !self.head()?.document.custodians.contains(&Custodian::read(&next)?.public()) {
            return Ok(());
        }
        if own.exists() {
            durable::keep_old(&own, durable::SECRET).map_err(|error| Error::io(own.display(), &error))?;
        }
        durable::rename(&next, &own).map_err(|error| Error::io(own.display(), &error))
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
            let parents: Vec<&Chapter> = self.chapters.iter().filter(|chapter| document.parents.contains(chapter.layout.hash())).collect();
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
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
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
            return Err(Error::new(Kind::Busy, "two layouts were made of one: end that first").hint(
                "see `afar layout history`, then `afar layout apply --merge VERSION-HASH`, which keeps that one and ends the conflict",
            ));
        }
        Ok(Document::child_of(self.head()?, now(), note))
    }

    /// Plans where everything goes under a document, as near as possible to where it is.
    ///
    /// # Errors
    /// If the document makes no sense.
    pub fn plan(&self, mut document: Document, said: &[Said]) -> Result<Draft, Error> {
        document.plans.clear();
        self.planned(document, said, &|_| true)
    }

    /// Leaves every assignment as it is, and plans only for those of these policies for which there is none.
    ///
    /// # Errors
    /// If the document makes no sense.
    pub fn plan_only(&self, document: Document, said: &[Said], policies: &[Policy]) -> Result<Draft, Error> {
        let wanted: Vec<Vec<u8>> = policies.iter().map(Policy::placement_key).collect();
        let planned: Vec<Vec<u8>> = document.plans.iter().map(|(policy, _)| policy.placement_key()).collect();
        self.planned(document, said, &|policy| {
            let key = policy.placement_key();
            wanted.contains(&key) && !planned.contains(&key)
        })
    }

    fn planned(&self, mut document: Document, said: &[Said], wanted: &dyn Fn(&Policy) -> bool) -> Result<Draft, Error> {
        let head = self.head()?;
        let words = |problems: Vec<String>| Error::usage(problems.join("\n       "));
        let layout = document.layout([0; 32]).map_err(words)?;
        let geography = Geography::claimed(&layout);
        let weight = |node: NodeIndex| match layout.duty(node) {
            Duty::Active => layout.node(node).map_or(0, |node| node.capacity),
            _ => 0,
        };
        let weights: Vec<u64> = layout.node_indexes().map(weight).collect();
        let (mut plans, mut unkept) = (Vec::new(), Vec::new());
        let present = |policy: &Policy| {
            let name = |node: NodeIndex| layout.node_named(head.layout.node_name(node));
            effective(policy, &head.layout).and_then(|previous| previous.renumbered(name).ok())
        };
        let repromised = repromised(&document, said);
        let anew = |policy: &Policy| repromised.iter().any(|(_, _, after)| after.placement_key() == policy.placement_key());
        let lost = gives_up(&document, &head.document);
        for alike in policies_in_use(&document, head, said) {
            let Some(policy) = alike.first().map(|(policy, _)| policy.clone()).filter(|policy| wanted(policy) || anew(policy)) else {
                continue;
            };
            let buckets: Vec<String> =
                alike.iter().flat_map(|(_, buckets)| buckets).cloned().collect::<BTreeSet<_>>().into_iter().collect();
            if let Some(unmet) = plan::unmet(&policy, &geography) {
                let before = plan::unmet(&policy, &Geography::claimed(&head.layout));
                let refused = match unmet.far {
                    true => document.parents.len() < 2 && (anew(&policy) || (!lost && !buckets.is_empty() && before.is_none())),
                    false => !lost && (!buckets.is_empty() || before.is_none_or(|before| before.far)),
                };
                let (help, policy) = (plan::suggest(&policy, &geography), policy.clone());
                unkept.push(Unkept { policy, buckets: buckets.clone(), far: unmet.far, why: unmet.why, help, refused });
            }
            if !wanted(&policy) {
                continue;
            }
            let previous = present(&kept_now(&policy, &buckets, head, said));
            // What can be assigned nowhere is among the above.
            if let Ok(assignment) = plan::assign(&policy, &geography, &weights, layout.partitions(), previous.as_ref()) {
                document.plans.push((policy.clone(), assignment.clone()));
                let planned = |(policy, buckets)| Planned { policy, buckets, previous: previous.clone(), assignment: assignment.clone() };
                plans.extend(alike.into_iter().map(planned));
            }
        }
        let layout = document.layout([0; 32]).map_err(words)?;
        let changed = repromised.into_iter().map(|(bucket, before, after)| {
            let (previous, assignment) = (present(&before), effective(&after, &layout));
            Repromised { bucket, before, after, previous, assignment }
        });
        let changed = changed.collect();
        Ok(Draft { document, layout, plans, unkept, changed })
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
            let refusing = checks.iter().flatten().filter(|check| check.refusal().is_some());
            return Err(match refusing.into_iter().all(|check| check.passes) {
                true => Error::new(Kind::Busy, why)
                    .hint("nothing has changed; `afar status` says what is waited for: try again when it is over"),
                false => Error::new(Kind::Failed, why).hint("nothing has changed; mend what the nodes object to, and try again"),
            });
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

/// Whether a document says that somebody who took part is lost: that is no choice, so what it costs is no reason to refuse it.
fn gives_up(document: &Document, before: &Document) -> bool {
    let site = |name: &str| before.sites.iter().any(|was| was.name == name && was.duty != Duty::Lost);
    let node = |name: &str| before.nodes.iter().any(|was| was.name == name && was.duty.is_member());
    document.sites.iter().any(|now| now.duty == Duty::Lost && site(&now.name))
        || document.nodes.iter().any(|now| now.duty == Duty::Lost && node(&now.name))
}

/// Where the data of a group of buckets are now: by the policy that they shall have, if one of them has it already or it is
/// planned for; else by that of the first.
fn kept_now(policy: &Policy, buckets: &[String], head: &Chapter, said: &[Said]) -> Policy {
    let same = |was: &Policy| was.placement_key() == policy.placement_key();
    let mut before = buckets.iter().filter_map(|bucket| was(said, bucket));
    match before.next() {
        Some(first) if !same(&first) && !before.any(|was| same(&was)) && head.layout.plan(policy).is_none() => first,
        _ => policy.clone(),
    }
}

/// Buckets for which a document promises something else than they have: name, what they have, what they get.
fn repromised(document: &Document, said: &[Said]) -> Vec<(String, Policy, Policy)> {
    let mut found: Vec<(String, Policy, Policy)> = Vec::new();
    for (id, policy) in &document.promises {
        let known = said.iter().flat_map(|said| &said.buckets).find(|(bucket, ..)| bucket == id);
        if let Some((_, name, before)) = known.filter(|(_, _, before)| before != policy) {
            found.push((name.clone(), before.clone(), policy.clone()));
        }
    }
    found
}

/// A bucket by its name, or by `@` and its id: its id, its name, and what is promised for it now. Nodes that have the newest
/// layout are believed first.
///
/// # Errors
/// If nobody answers, there is none, or there are two.
pub fn bucket_named(said: &[Said], head: &LayoutHash, name: &str) -> Result<(BucketId, String, Policy), Error> {
    if said.is_empty() {
        return Err(Error::new(Kind::Unreachable, "no node answers: what is promised now is not known").hint("see `afar status`"));
    }
    let by_id = name.strip_prefix('@').and_then(|hex| hex.parse::<BucketId>().ok());
    let (newest, others): (Vec<&Said>, Vec<&Said>) = said.iter().partition(|said| said.current == *head);
    let mut found: BTreeMap<BucketId, (BucketId, String, Policy)> = BTreeMap::new();
    for bucket in newest.into_iter().chain(others).flat_map(|said| &said.buckets) {
        if by_id.map_or(bucket.1 == name, |id| bucket.0 == id) {
            found.entry(bucket.0).or_insert_with(|| bucket.clone());
        }
    }
    let mut found = found.into_values();
    match (found.next(), found.next()) {
        (Some(bucket), None) => Ok(bucket),
        (None, _) => Err(Error::new(Kind::NotFound, format!("there is no bucket {name:?}")).hint("see `afar bucket ls`")),
        (Some(_), Some(_)) => {
            Err(Error::usage(format!("two buckets are named {name:?}"))
                .hint("say which by @ and its id; `afar bucket ls --json` shows them"))
        }
    }
}

/// The policy that a bucket has now.
fn was(said: &[Said], name: &str) -> Option<Policy> {
    said.iter().flat_map(|said| &said.buckets).find(|(_, bucket, _)| bucket == name).map(|(_, _, policy)| policy.clone())
}

/// Policies that are placed alike, by all that they say, with the buckets that have them.
type Alike = BTreeMap<Vec<u8>, (Policy, BTreeSet<String>)>;

/// Every policy that a document must plan for, with the buckets that have it: those that nodes know, those that were planned
/// for before, and that of buckets to come. Those that are placed alike stand together, for one plan serves them all. The order does
/// not depend on who answered first.
fn policies_in_use(document: &Document, head: &Chapter, said: &[Said]) -> Vec<Vec<(Policy, Vec<String>)>> {
    let mut found: BTreeMap<Vec<u8>, Alike> = BTreeMap::new();
    let mut add = |policy: &Policy, bucket: Option<&str>| {
        let alike = found.entry(policy.placement_key()).or_default();
        let (_, buckets) = alike.entry(policy.to_bytes()).or_insert_with(|| (policy.clone(), BTreeSet::new()));
        buckets.extend(bucket.map(str::to_owned));
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
    let listed = |(policy, buckets): (Policy, BTreeSet<String>)| (policy, buckets.into_iter().collect());
    found.into_values().map(|alike| alike.into_values().map(listed).collect()).collect()
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
    passes: bool,
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
    let offered = async {
        match client.offer(futures_util::stream::iter(parts)).await {
            // A node that knows nothing of layouts would go on by its own for ever, and the others would not wait for it.
            Err(status) if status.code() == Code::Unimplemented => Ok(tonic::Response::new(v1::OfferReply {
                node: door.name().to_owned(),
                problems: vec!["it runs a version that knows no layouts but its configuration's: upgrade it first".into()],
                ..v1::OfferReply::default()
            })),
            answer => answer,
        }
    };
    let reply = door.ask(limits::LAYOUT_TIMEOUT, offered).await?;
    Ok(Reply { node: reply.node, problems: reply.problems, passes: reply.passes })
}

/// `None` if it does not answer, or answers nonsense.
///
/// # Errors
/// If it refuses the key: that is no outage, and nothing should be signed on the strength of it.
async fn ask_one(door: &Door) -> Result<Option<Said>, Error> {
    let mut refused = None;
    let read = async {
        let asked = door.layouts().get(v1::GetLayoutsRequest {}).await;
        let mut parts = asked.map_err(|status| refused = Some(door.error(&status))).ok()?.into_inner();
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
    let said = tokio::time::timeout(limits::LAYOUT_TIMEOUT, read).await.ok().flatten();
    match refused.filter(|error: &Error| !error.is_connection() && matches!(error.kind(), Kind::Authentication | Kind::Denied)) {
        Some(error) => Err(error),
        None => Ok(said),
    }
}

/// How a layout is named: its version and the beginning of its hash.
pub fn name_of(chapter: &Chapter) -> String {
    format!("{}-{}", chapter.document.version, ShortHash(chapter.layout.hash()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
