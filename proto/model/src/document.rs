//! The layout as a document: signed by a custodian, named by its hash, and a child of the one before it (rule 21).
//!
//! ```text
//! genesis ◄── 2 ◄── 3 ◄── 4a ◄── 5        genesis is what the configuration says; everything later is signed by a custodian
//!                     ◄── 4b ◄──┘          whom its parent names; two children of one parent are a conflict, ended by a merge
//! ```
//! A document is checked against its parent as a whole, and a node that finds anything wrong keeps what it has. Sites and nodes
//! are known by name, and none ever disappears: what leaves is marked. A node keeps the order in which it first met them
//! ([`Document::layout_after`]), so that an index means the same to it in every layout, whatever the order in documents.
use crate::{
    assignment::Assignment,
    id::{BucketId, Incarnation},
    layout::{Duty, Layout, LayoutProblem, Node, NodeIndex, Site, is_endpoint},
    limits,
    placement::{Geography, Placement},
    policy::Policy,
    units::UnixMillis,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// What the bytes of a document begin with.
const MAGIC: [u8; 8] = *b"afarlay\0";
/// The format that this program writes; one that it does not know is refused, not guessed at.
pub const FORMAT: u16 = 1;

/// BLAKE3 of a document's bytes, or of what the genesis says.
pub type LayoutHash = [u8; 32];

/// An Ed25519 public key of somebody who may change the layout.
pub type PublicKey = [u8; 32];

/// The signed part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The cluster's name: a layout of another cluster is not ours, whoever signed it.
    pub cluster: String,
    /// One more than the greatest of its parents'.
    pub version: u64,
    /// The layout that it changes; two for a merge.
    pub parents: Vec<LayoutHash>,
    /// Wall clock when it was made; for people.
    pub made: UnixMillis,
    /// Why, in words.
    pub note: String,
    /// Slices of the hash space: as in the genesis.
    pub partitions: u32,
    /// All sites, those of the parents among them.
    pub sites: Vec<Site>,
    /// All nodes, likewise.
    pub nodes: Vec<Node>,
    /// Sites whose coordinates this document changes on purpose (rule 24).
    pub moved: Vec<String>,
    /// Who may sign the next one.
    pub custodians: Vec<PublicKey>,
    /// Certificates (DER) of authorities that are trusted besides those in nodes' configurations.
    pub authorities: Vec<Vec<u8>>,
    /// BLAKE3 of certificates of authorities that are trusted no longer, wherever they stand.
    pub distrusted: Vec<[u8; 32]>,
    /// BLAKE3 of public keys (SubjectPublicKeyInfo) of nodes that are refused.
    pub revoked: Vec<[u8; 32]>,
    /// Buckets that are kept otherwise than they were made.
    pub promises: Vec<(BucketId, Policy)>,
    /// Assignments, one for each policy in use when it was planned.
    pub plans: Vec<(Policy, Assignment)>,
    /// What is hereby answered for: layouts that closed the latch (rule 10), and disks of which it is accepted that what they
    /// alone held is gone ([`release_of`], rule 8).
    pub releases: Vec<LayoutHash>,
}

/// A signature over a document's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Whose.
    pub key: PublicKey,
    /// Ed25519, 64 bytes.
    pub signature: Vec<u8>,
}

/// A document as it travels and lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Magic, format, and the document in postcard.
    pub body: Vec<u8>,
    /// At least one by a custodian of its parent.
    pub signatures: Vec<Signature>,
}

/// Why a document is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too large to look at.
    #[error("the layout has {0} bytes: the most is {max}", max = limits::LAYOUT_BYTES_MAX)]
    TooLarge(usize),
    /// Not a layout, or cut off.
    #[error("this is no layout document: {0}")]
    Malformed(String),
    /// From a later program.
    #[error("the layout has format {0}, this program knows {FORMAT}: upgrade the node first")]
    Future(u16),
    /// Not signed by a custodian of its parent.
    #[error("the layout is not signed by a custodian of this cluster{0}")]
    Unsigned(String),
    /// It does not follow what this node has.
    #[error("{0}")]
    Strange(String),
    /// What it says makes no sense.
    #[error("the layout makes no sense: {}", .0.join("; "))]
    Wrong(Vec<String>),
}

/// Checks an Ed25519 signature: key, message, signature.
pub type Verify<'a> = &'a dyn Fn(&PublicKey, &[u8], &[u8]) -> bool;

/// A layout with what its document says beyond places.
#[derive(Debug, Clone, PartialEq)]
pub struct Chapter {
    /// Sites, nodes, assignments.
    pub layout: Arc<Layout>,
    /// What it was made of; for the genesis, as if it had been.
    pub document: Document,
}

impl Document {
    /// The genesis: what the configuration says.
    pub fn genesis(cluster: &str, layout: &Layout, custodians: Vec<PublicKey>) -> Self {
        Self {
            cluster: cluster.to_owned(),
            version: layout.version(),
            parents: Vec::new(),
            made: UnixMillis(0),
            note: "as configured".into(),
            partitions: layout.partitions(),
            sites: layout.sites().to_vec(),
            nodes: layout.nodes().to_vec(),
            moved: Vec::new(),
            custodians,
            authorities: Vec::new(),
            distrusted: Vec::new(),
            revoked: Vec::new(),
            promises: Vec::new(),
            plans: Vec::new(),
            releases: Vec::new(),
        }
    }

    /// A child of one layout that says the same: to be changed, then signed.
    pub fn child_of(parent: &Chapter, made: UnixMillis, note: impl Into<String>) -> Self {
        let document = parent.document.clone();
        Self {
            version: document.version + 1,
            parents: vec![*parent.layout.hash()],
            made,
            note: note.into(),
            moved: Vec::new(),
            releases: Vec::new(),
            ..document
        }
    }

    /// Promises this for a bucket, in place of whatever was promised for it before.
    pub fn promise(&mut self, bucket: BucketId, policy: Policy) {
        match self.promises.iter_mut().find(|(id, _)| *id == bucket) {
            Some((_, promised)) => *promised = policy,
            None => self.promises.push((bucket, policy)),
        }
    }

    /// Trusts an authority (its certificate, DER) besides those of nodes' configurations. Answers whether that is news.
    pub fn trust_authority(&mut self, certificate: &[u8]) -> bool {
        let news = !self.authorities.iter().any(|known| known == certificate);
        if news {
            self.authorities.push(certificate.to_vec());
        }
        news
    }

    /// Withdraws an authority (its certificate, DER): it is trusted no longer, whatever nodes' configurations say.
    pub fn withdraw_authority(&mut self, certificate: &[u8]) {
        self.authorities.retain(|known| known != certificate);
        let digest = *blake3::hash(certificate).as_bytes();
        if !self.distrusted.contains(&digest) {
            self.distrusted.push(digest);
        }
    }

    /// Refuses whoever shows a certificate with this key (BLAKE3 of its SubjectPublicKeyInfo). Answers whether that is news.
    pub fn revoke(&mut self, key: [u8; 32]) -> bool {
        let news = !self.revoked.contains(&key);
        if news {
            self.revoked.push(key);
        }
        news
    }

    /// What was withdrawn from anybody stays withdrawn: takes over what another document says of that.
    pub fn withdraw_as(&mut self, other: &Self) {
        for digest in &other.distrusted {
            if !self.distrusted.contains(digest) {
                self.distrusted.push(*digest);
            }
        }
        for key in &other.revoked {
            self.revoke(*key);
        }
        let ours = std::mem::take(&mut self.authorities);
        for authority in ours.iter().chain(&other.authorities) {
            if !self.distrusted.contains(blake3::hash(authority).as_bytes()) {
                self.trust_authority(authority);
            }
        }
    }

    /// Its bytes, which are signed and whose BLAKE3 names it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        // Writing to a vector does not fail; an empty document would be refused by everybody.
        bytes.extend(postcard::to_stdvec(self).unwrap_or_default());
        bytes
    }

    /// Reads a document; nothing is believed of it yet.
    ///
    /// # Errors
    /// If it is too large, none, or of another format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        if bytes.len() > limits::LAYOUT_BYTES_MAX {
            return Err(Refused::TooLarge(bytes.len()));
        }
        let rest = bytes.strip_prefix(&MAGIC).ok_or_else(|| Refused::Malformed("it begins with other bytes".into()))?;
        let (format, rest) = rest.split_first_chunk::<2>().ok_or_else(|| Refused::Malformed("it ends too soon".into()))?;
        match u16::from_le_bytes(*format) {
            FORMAT => {}
            other => return Err(Refused::Future(other)),
        }
        let (document, rest) = postcard::take_from_bytes(rest).map_err(|error| Refused::Malformed(error.to_string()))?;
        if rest.is_empty() { Ok(document) } else { Err(Refused::Malformed(format!("{} bytes follow it", rest.len()))) }
    }

    /// Its sites, nodes and assignments, checked in themselves, in the order of the document.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn layout(&self, hash: LayoutHash) -> Result<Layout, Vec<String>> {
        self.ordered(hash, self.sites.clone(), self.nodes.clone())
    }

    /// As [`Document::layout`], with what `before` names in its order first: indexes mean the same in both.
    ///
    /// # Errors
    /// As [`Document::layout`].
    pub fn layout_after(&self, hash: LayoutHash, before: &Layout) -> Result<Layout, Vec<String>> {
        let place = |known: Option<u16>| known.unwrap_or(u16::MAX);
        let (mut sites, mut nodes) = (self.sites.clone(), self.nodes.clone());
        // A stable sort, so that whoever is new keeps the order of the document.
        sites.sort_by_key(|site| place(before.site_named(&site.name).map(|index| index.0)));
        nodes.sort_by_key(|node| place(before.node_named(&node.name).map(|index| index.0)));
        self.ordered(hash, sites, nodes)
    }

    fn ordered(&self, hash: LayoutHash, sites: Vec<Site>, nodes: Vec<Node>) -> Result<Layout, Vec<String>> {
        let words = |problems: Vec<LayoutProblem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        let layout = Layout::new(self.version, self.partitions, sites, nodes).map_err(words)?;
        if self.parents.is_empty() {
            return Ok(layout);
        }
        let index = |node: NodeIndex| layout.node_named(&self.nodes.get(usize::from(node.0))?.name);
        let renumbered = |(policy, plan): &(Policy, Assignment)| {
            let known = plan.distinct_nodes().into_iter().all(|node| index(node).is_some());
            let plan = plan.renumbered(index).ok().filter(|_| known);
            plan.map(|plan| (policy.clone(), plan)).ok_or_else(|| vec!["it assigns partitions to nodes that it does not name".to_owned()])
        };
        let plans = self.plans.iter().map(renumbered).collect::<Result<Vec<_>, _>>()?;
        let layout = layout.with(hash, plans, self.promises.iter().cloned());
        let mut problems: Vec<String> = Vec::new();
        for (policy, _) in &self.plans {
            problems.extend(check_plan(policy, &layout));
        }
        for (bucket, policy) in &self.promises {
            problems.extend(policy.check().err().map(|error| format!("bucket {bucket}: {error}")));
        }
        for (policy, _) in &self.plans {
            problems.extend(policy.check().err().map(|error| format!("a policy that is planned for: {error}")));
        }
        for node in self.nodes.iter().filter(|node| node.duty.is_member() && !is_endpoint(&node.endpoint)) {
            // A node that cannot be called could not be reached by any layout that mends this, either.
            problems.push(format!("node {:?} has endpoint {:?}: write https://HOST:PORT", node.name, node.endpoint));
        }
        if self.custodians.is_empty() {
            problems.push("it names no custodian: nobody could ever change it again".into());
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.duty.is_member()) {
            if let Some(other) = self.nodes.iter().take(index).find(|other| other.duty.is_member() && other.endpoint == node.endpoint) {
                problems.push(format!("nodes {:?} and {:?} have the same endpoint {:?}", other.name, node.name, node.endpoint));
            }
        }
        if problems.is_empty() { Ok(layout) } else { Err(problems) }
    }
}

/// Every set of a plan must satisfy the predicate, but for copies that no set of sites can have.
fn check_plan(policy: &Policy, layout: &Layout) -> Option<String> {
    let (plan, geography) = (layout.plan(policy)?, Geography::claimed(layout));
    let complete = Placement::derive(policy, &geography).is_ok_and(|placement| placement.is_complete());
    if let Some(idle) = plan.distinct_nodes().into_iter().find(|node| layout.duty(*node) != Duty::Active) {
        return Some(format!("partitions are assigned to {}, which takes nothing more", layout.node_name(idle)));
    }
    plan.violations(policy, &geography, layout.partitions(), !complete).first().map(ToString::to_string)
}

impl Signed {
    /// What names it.
    pub fn hash(&self) -> LayoutHash {
        *blake3::hash(&self.body).as_bytes()
    }

    /// Checks a document against its parents, all of which the caller has accepted before.
    ///
    /// # Errors
    /// Why it is not to be accepted.
    pub fn open(&self, parents: &[&Chapter], verify: Verify<'_>) -> Result<Chapter, Refused> {
        let document = Document::decode(&self.body)?;
        let hash = self.hash();
        let known = |key: &PublicKey| parents.iter().all(|parent| parent.document.custodians.contains(key));
        let signed = |s: &Signature| known(&s.key) && verify(&s.key, &self.body, &s.signature);
        if !self.signatures.iter().any(signed) {
            return Err(Refused::Unsigned(explain_unsigned(&self.signatures, parents)));
        }
        let mut wrong = Vec::new();
        for parent in parents {
            wrong.extend(document.departures(parent));
        }
        let follows = parents.iter().map(|parent| parent.document.version).max().unwrap_or_default().saturating_add(1);
        if document.version != follows {
            wrong.push(format!("its version is {}, and the one that follows its parents is {follows}", document.version));
        }
        let layout = match document.layout(hash) {
            Ok(layout) if wrong.is_empty() => layout,
            Ok(_) => return Err(Refused::Wrong(wrong)),
            Err(problems) => {
                wrong.extend(problems);
                return Err(Refused::Wrong(wrong));
            }
        };
        Ok(Chapter { layout: Arc::new(layout), document })
    }
}

fn explain_unsigned(signatures: &[Signature], parents: &[&Chapter]) -> String {
    if parents.iter().any(|parent| parent.document.custodians.is_empty()) {
        return ": it has none; name one under [layout] custodians in every node's configuration, and restart them (`afar cluster adopt`)"
            .into();
    }
    let short = |key: &PublicKey| key.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    match signatures.first() {
        Some(by) => format!(" (it is signed by {}…)", short(&by.key)),
        None => " (it is not signed at all)".into(),
    }
}

impl Document {
    /// What of a parent it changes that must not change.
    fn departures(&self, parent: &Chapter) -> Vec<String> {
        let before = &parent.document;
        let mut wrong = Vec::new();
        if self.cluster != before.cluster {
            wrong.push(format!("it is of cluster {:?}, this is {:?}", self.cluster, before.cluster));
        }
        if self.partitions != before.partitions {
            wrong.push(format!("partitions = {}: they are {} for the cluster's life", self.partitions, before.partitions));
        }
        for old in &before.sites {
            match self.sites.iter().find(|site| site.name == old.name) {
                None => wrong.push(format!("site {:?} is missing: mark it removed instead", old.name)),
                Some(new) => wrong.extend(self.site_departure(old, new)),
            }
        }
        for old in &before.nodes {
            match self.nodes.iter().find(|node| node.name == old.name) {
                None => wrong.push(format!("node {:?} is missing: mark it removed instead", old.name)),
                Some(new) => wrong.extend(node_departure(old, new).or_else(|| self.returns(before, old, new))),
            }
        }
        wrong
    }

    /// A node whose site is out of service is so, too; and it does not return with it.
    fn returns(&self, before: &Self, old: &Node, new: &Node) -> Option<String> {
        let (was, is) = (before.duty(old), self.duty(new));
        (!was.is_member() && is.is_member()).then(|| {
            format!("node {:?} was {} with its site: it cannot be {} again; add one under another name", new.name, was.name(), is.name())
        })
    }

    fn duty(&self, node: &Node) -> Duty {
        let site = self.sites.iter().find(|site| site.name == node.site);
        node.duty.max(site.map_or(Duty::Lost, |site| site.duty))
    }

    fn site_departure(&self, old: &Site, new: &Site) -> Option<String> {
        let moved = old.coordinates != new.coordinates || new.uncertainty < old.uncertainty;
        if moved && !self.moved.contains(&new.name) {
            return Some(format!("site {:?} is elsewhere than before, and \"moved\" does not name it (rule 24)", new.name));
        }
        let emptied = || self.nodes.iter().filter(|node| node.site == new.name).all(|node| !node.duty.is_member());
        if new.duty == Duty::Removed && old.duty != Duty::Removed && !emptied() {
            return Some(format!("site {:?} still has nodes: drain and remove them first", new.name));
        }
        None
    }
}

fn node_departure(old: &Node, new: &Node) -> Option<String> {
    let name = &new.name;
    if old.site != new.site {
        return Some(format!("node {name:?} was at {:?} and is at {:?}: a node cannot move; drain it and add another", old.site, new.site));
    }
    let (before, now) = (old.duty, new.duty);
    if !before.is_member() && now != before {
        return Some(format!("node {name:?} was {}: it cannot be {} again; add one under another name", before.name(), now.name()));
    }
    if before == Duty::Active && now == Duty::Removed {
        return Some(format!("node {name:?} takes part: drain it before it is removed, or say that it is lost"));
    }
    None
}

impl Chapter {
    /// The first of a chain.
    pub fn genesis(cluster: &str, layout: Layout, custodians: Vec<PublicKey>) -> Self {
        let document = Document::genesis(cluster, &layout, custodians);
        Self { layout: Arc::new(layout), document }
    }

    /// Sites that are lost here and were not in any parent: then this layout closes the latch (rule 10).
    pub fn newly_lost(&self, parents: &[&Self]) -> Vec<String> {
        let lost_before =
            |name: &str| parents.iter().any(|p| p.document.sites.iter().any(|site| site.name == name && site.duty == Duty::Lost));
        let lost = self.document.sites.iter().filter(|site| site.duty == Duty::Lost && !lost_before(&site.name));
        lost.map(|site| site.name.clone()).collect()
    }
}

/// What stands before an incarnation where a document names one in place of a layout's hash.
const INCARNATION: [u8; 16] = *b"afar incarnation";

/// How a document names disks that an operator answers for: whatever they alone held is gone, and that is accepted (rule 8).
pub fn release_of(incarnation: Incarnation) -> LayoutHash {
    let mut name = [0; 32];
    let (tag, rest) = name.split_at_mut(INCARNATION.len());
    tag.copy_from_slice(&INCARNATION);
    rest.copy_from_slice(incarnation.as_bytes());
    name
}

/// The disks that a release names; `None` if it names a layout.
pub fn released_disks(release: &LayoutHash) -> Option<Incarnation> {
    release.strip_prefix(&INCARNATION).and_then(|rest| Incarnation::try_from(rest).ok())
}

/// The disks of which an operator has accepted that what they alone held is gone.
pub fn given_up<'a>(chapters: impl Iterator<Item = &'a Chapter>) -> BTreeSet<Incarnation> {
    chapters.flat_map(|chapter| &chapter.document.releases).filter_map(released_disks).collect()
}

/// Layouts of a chain that closed the latch and were not answered for (rule 10): while there is one, nothing is removed.
pub fn latched<'a>(chapters: impl Iterator<Item = &'a Chapter> + Clone) -> Vec<LayoutHash> {
    let released: BTreeSet<LayoutHash> = chapters.clone().flat_map(|chapter| chapter.document.releases.iter().copied()).collect();
    let closes = |chapter: &&Chapter| {
        let is_parent = |other: &&Chapter| chapter.document.parents.contains(other.layout.hash());
        let parents: Vec<&Chapter> = chapters.clone().filter(is_parent).collect();
        !chapter.newly_lost(&parents).is_empty()
    };
    let closing = chapters.clone().filter(closes).map(|chapter| *chapter.layout.hash());
    closing.filter(|hash| !released.contains(hash)).collect()
}

/// How a layout's hash is shown: enough to tell two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortHash<'a>(pub &'a LayoutHash);

impl fmt::Display for ShortHash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A chain of layouts as it travels: with a bundle, to an operator, between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The first layout, as [`Document::encode`] writes it; not signed.
    pub genesis: Vec<u8>,
    /// Every later one, parents first.
    pub documents: Vec<Signed>,
}

impl Chain {
    /// What the bytes of a chain begin with.
    const MAGIC: [u8; 8] = *b"afarchn\x01";
    /// A chain may be this large: some layouts of the greatest size, or thousands of usual ones.
    pub const BYTES_MAX: usize = 8 * limits::LAYOUT_BYTES_MAX;

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::MAGIC.to_vec();
        bytes.extend(postcard::to_stdvec(self).unwrap_or_default());
        bytes
    }

    /// Reads a chain; nothing is believed of it yet.
    ///
    /// # Errors
    /// If it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(Refused::TooLarge(bytes.len()));
        }
        let rest = bytes.strip_prefix(&Self::MAGIC).ok_or_else(|| Refused::Malformed("it begins with other bytes".into()))?;
        postcard::from_bytes(rest).map_err(|error| Refused::Malformed(error.to_string()))
    }

    /// The first layout.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn genesis(&self) -> Result<Chapter, Refused> {
        let document = Document::decode(&self.genesis)?;
        let layout = document.layout([0; 32]).map_err(Refused::Wrong)?;
        Ok(Chapter { layout: Arc::new(layout), document })
    }

    /// Every layout of the chain, verified, in the order of the chain; the genesis first.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn chapters(&self, verify: Verify<'_>) -> Result<Vec<Chapter>, Refused> {
        let mut chapters = vec![self.genesis()?];
        for signed in &self.documents {
            let document = Document::decode(&signed.body)?;
            let parents: Vec<&Chapter> = chapters.iter().filter(|known| document.parents.contains(known.layout.hash())).collect();
            if parents.is_empty() || parents.len() < document.parents.len() {
                return Err(Refused::Strange("a layout of the chain has a parent that is not in it".into()));
            }
            let chapter = signed.open(&parents, verify)?;
            chapters.push(chapter);
        }
        Ok(chapters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::examples;

    const OURS: PublicKey = [1; 32];
    const THEIRS: PublicKey = [2; 32];

    /// Stands in for a signature: only whoever has the "key" can make it, which is all that is asked of it here.
    fn mark(key: &PublicKey, message: &[u8]) -> Vec<u8> {
        blake3::keyed_hash(key, message).as_bytes().to_vec()
    }

    fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        mark(key, message) == signature
    }

    fn sign(document: &Document, key: PublicKey) -> Signed {
        let body = document.encode();
        Signed { signatures: vec![Signature { key, signature: mark(&key, &body) }], body }
    }

    fn genesis() -> Chapter {
        Chapter::genesis("trial", examples::three_sites().unwrap(), vec![OURS])
    }

    fn child(change: impl FnOnce(&mut Document)) -> (Chapter, Signed) {
        let parent = genesis();
        let mut document = Document::child_of(&parent, UnixMillis(1), "a change");
        change(&mut document);
        let signed = sign(&document, OURS);
        (parent, signed)
    }

    fn refusal(change: impl FnOnce(&mut Document)) -> String {
        let (parent, signed) = child(change);
        signed.open(&[&parent], &verify).unwrap_err().to_string()
    }

    #[test]
    fn rule_21_a_child_of_the_present_layout_signed_by_a_custodian_is_accepted() {
        let (parent, signed) = child(|document| document.nodes.push(examples::node("new", "warsaw")));
        let chapter = signed.open(&[&parent], &verify).unwrap();
        assert_eq!((chapter.layout.version(), chapter.layout.hash()), (2, &signed.hash()));
        assert_eq!(chapter.document.parents, [*parent.layout.hash()]);
        let chain = Chain { genesis: parent.document.encode(), documents: vec![signed] };
        let read = Chain::decode(&chain.encode()).unwrap();
        assert_eq!(read.chapters(&verify).unwrap(), [parent, chapter]);
    }

    #[test]
    fn rule_8_disks_that_are_answered_for_are_named_among_the_releases_and_close_no_latch() {
        let disks = Incarnation::from_bytes([7; 16]);
        let (parent, signed) = child(|document| document.releases = vec![release_of(disks), [9; 32]]);
        let chapter = signed.open(&[&parent], &verify).unwrap();
        let chain = [parent, chapter];
        assert_eq!(given_up(chain.iter()), BTreeSet::from([disks]));
        assert_eq!(latched(chain.iter()), [] as [LayoutHash; 0]);
        assert_eq!((released_disks(&release_of(disks)), released_disks(&[9; 32])), (Some(disks), None));
    }

    #[test]
    fn a_promise_replaces_the_one_before_it_and_no_other() {
        let (a, b) = (BucketId::from_bytes([1; 32]), BucketId::from_bytes([2; 32]));
        let three = Policy { copies: 3, ..Policy::default() };
        let mut document = genesis().document;
        document.promise(a, three.clone());
        document.promise(b, Policy::default());
        document.promise(a, Policy { copies: 4, ..Policy::default() });
        assert_eq!(document.promises.iter().map(|(id, policy)| (*id, policy.copies)).collect::<Vec<_>>(), [(a, 4), (b, 2)]);
        document.promise(a, three.clone());
        assert_eq!(document.promises, [(a, three), (b, Policy::default())], "and it is undone by another");
        let (parent, signed) = child(|document| document.promise(a, Policy { copies: 3, ..Policy::default() }));
        let layout = signed.open(&[&parent], &verify).unwrap().layout;
        assert_eq!((layout.promise(&a).map(|policy| policy.copies), layout.promise(&b)), (Some(3), None));
    }

    #[test]
    fn what_was_withdrawn_stays_withdrawn_whatever_another_document_trusts() {
        let (mut ours, mut theirs) = (genesis().document, genesis().document);
        assert!(ours.trust_authority(b"old") && ours.trust_authority(b"new") && !ours.trust_authority(b"new"));
        theirs.trust_authority(b"old");
        theirs.trust_authority(b"third");
        theirs.revoke([7; 32]);
        ours.withdraw_authority(b"old");
        ours.withdraw_authority(b"old");
        ours.withdraw_as(&theirs);
        assert_eq!(ours.authorities, [b"new".to_vec(), b"third".to_vec()]);
        assert_eq!((ours.distrusted, ours.revoked), (vec![*blake3::hash(b"old").as_bytes()], vec![[7; 32]]));
        theirs.withdraw_authority(b"third");
        assert_eq!(theirs.authorities, [b"old".to_vec()]);
    }

    #[test]
    fn rule_21_what_is_not_signed_by_a_custodian_of_its_parent_is_refused() {
        let (parent, signed) = child(|document| document.custodians = vec![OURS, THEIRS]);
        let document = Document::decode(&signed.body).unwrap();
        for wrong in [
            sign(&document, THEIRS),
            Signed { signatures: Vec::new(), ..signed.clone() },
            Signed { body: [signed.body.as_slice(), &[0]].concat(), ..signed.clone() },
        ] {
            assert!(wrong.open(&[&parent], &verify).is_err());
        }
        assert!(sign(&document, THEIRS).open(&[&parent], &verify).unwrap_err().to_string().contains("not signed by a custodian"));
    }

    #[test]
    fn rule_21_a_custodians_name_without_its_signature_opens_nothing() {
        let (parent, signed) = child(|_| ());
        let (_, other) = child(|document| document.note = "another".into());
        let borrowed = Signed { signatures: other.signatures, ..signed };
        assert!(matches!(borrowed.open(&[&parent], &verify), Err(Refused::Unsigned(_))), "a signature of other words");
    }

    #[test]
    fn rule_21_a_merge_is_signed_by_whom_both_sides_know() {
        let (parent, ours) = child(|document| document.note = "one side".into());
        let (_, theirs) = child(|document| document.custodians = vec![OURS, THEIRS]);
        let (one, other) = (ours.open(&[&parent], &verify).unwrap(), theirs.open(&[&parent], &verify).unwrap());
        let mut merge = Document::child_of(&one, UnixMillis(2), "merge");
        merge.parents.push(*other.layout.hash());
        let refused = sign(&merge, THEIRS).open(&[&one, &other], &verify);
        assert!(matches!(refused, Err(Refused::Unsigned(_))), "one of the two never named that custodian: {refused:?}");
        assert!(sign(&merge, OURS).open(&[&one, &other], &verify).is_ok());
    }

    #[test]
    fn who_is_out_stays_out_by_whatever_door() {
        // A site with nodes is not removed under them.
        assert!(refusal(|document| document.sites[2].duty = Duty::Removed).contains("still has nodes"));
        // Who was lost did not hand over, and is not put among those who did.
        let (parent, signed) = child(|document| document.nodes[0].duty = Duty::Lost);
        let lost = signed.open(&[&parent], &verify).unwrap();
        let mut tidied = Document::child_of(&lost, UnixMillis(2), "tidied");
        tidied.nodes[0].duty = Duty::Removed;
        assert!(sign(&tidied, OURS).open(&[&lost], &verify).unwrap_err().to_string().contains("cannot be removed again"));
        // A node that was lost with its site does not come back with it.
        let (parent, signed) = child(|document| document.sites[0].duty = Duty::Lost);
        let lost = signed.open(&[&parent], &verify).unwrap();
        let mut rebuilt = Document::child_of(&lost, UnixMillis(2), "rebuilt");
        rebuilt.sites[0].duty = Duty::Active;
        assert!(sign(&rebuilt, OURS).open(&[&lost], &verify).unwrap_err().to_string().contains("was lost with its site"));
    }

    #[test]
    fn what_nobody_could_call_or_fill_is_refused() {
        assert!(refusal(|document| document.nodes[0].endpoint = "http://strasbourg:7700".into()).contains("write https://HOST:PORT"));
        let set = vec![NodeIndex(0), NodeIndex(2)];
        let plan = || Assignment::of_partitions((0..limits::PARTITIONS_DEFAULT).map(|_| set.clone())).unwrap();
        let idle = refusal(|document| {
            document.nodes[0].duty = Duty::Draining;
            document.plans = vec![(Policy::default(), plan())];
        });
        assert!(idle.contains("strasbourg, which takes nothing more"), "{idle}");
    }

    #[test]
    fn what_is_no_layout_or_from_the_future_is_refused() {
        let (_, signed) = child(|_| ());
        for length in [0, 7, 9, 10, 40, signed.body.len() - 1] {
            assert!(Document::decode(&signed.body[..length]).is_err(), "{length}");
        }
        let mut future = signed.body;
        future[8] = 9;
        assert_eq!(Document::decode(&future), Err(Refused::Future(9)));
        assert_eq!(Document::decode(&vec![0; limits::LAYOUT_BYTES_MAX + 1]), Err(Refused::TooLarge(limits::LAYOUT_BYTES_MAX + 1)));
    }

    #[test]
    fn nobody_disappears_returns_or_moves_unsaid() {
        assert!(refusal(|document| drop(document.nodes.pop())).contains("missing"));
        assert!(refusal(|document| drop(document.sites.pop())).contains("missing"));
        assert!(refusal(|document| document.nodes[0].duty = Duty::Removed).contains("drain it"));
        assert!(refusal(|document| document.nodes[0].site = "warsaw".into()).contains("cannot move"));
        assert!(refusal(|document| document.version = 1).contains("its version is 1"));
        assert!(refusal(|document| document.partitions = 8).contains("for the cluster's life"));
        assert!(refusal(|document| document.cluster = "other".into()).contains("cluster"));
        assert!(refusal(|document| document.custodians.clear()).contains("custodian"));
        assert!(refusal(|document| document.nodes[1].endpoint = document.nodes[0].endpoint.clone()).contains("same endpoint"));
        let (parent, signed) = child(|document| document.nodes[0].duty = Duty::Lost);
        let lost = signed.open(&[&parent], &verify).unwrap();
        let mut back = Document::child_of(&lost, UnixMillis(2), "back");
        back.nodes[0].duty = Duty::Active;
        assert!(sign(&back, OURS).open(&[&lost], &verify).unwrap_err().to_string().contains("cannot be active again"));
    }

    #[test]
    fn rule_24_a_site_that_moves_is_named() {
        let elsewhere = crate::geo::Coordinates::new(10.0, 10.0).unwrap();
        assert!(refusal(|document| document.sites[0].coordinates = elsewhere).contains("rule 24"));
        let (parent, signed) = child(|document| {
            document.sites[0].coordinates = elsewhere;
            document.moved = vec!["strasbourg".into()];
        });
        assert!(signed.open(&[&parent], &verify).is_ok());
    }

    #[test]
    fn rule_22_a_plan_that_breaks_its_policy_is_refused() {
        let near = |nodes: &[u16]| {
            let nodes = nodes.iter().map(|node| NodeIndex(*node)).collect::<Vec<_>>();
            Assignment::of_partitions((0..limits::PARTITIONS_DEFAULT).map(|_| nodes.clone())).unwrap()
        };
        for nodes in [vec![0, 1], vec![2], vec![0, 9]] {
            let (parent, signed) = child(|document| document.plans = vec![(Policy::default(), near(&nodes))]);
            assert!(signed.open(&[&parent], &verify).is_err(), "{nodes:?}");
        }
        let (parent, signed) = child(|document| document.plans = vec![(Policy::default(), near(&[0, 2]))]);
        let chapter = signed.open(&[&parent], &verify).unwrap();
        let placement = Placement::new(&Policy::default(), &Geography::claimed(&chapter.layout)).unwrap();
        let assigned = placement.assigned(&Policy::default(), &chapter.layout, crate::placement::Partition(7));
        assert_eq!(assigned, [NodeIndex(0), NodeIndex(2)], "what was planned counts");
    }

    #[test]
    fn an_index_means_the_same_whatever_the_order_of_a_document() {
        let (parent, signed) = child(|document| {
            document.nodes.insert(0, examples::node("new", "warsaw"));
            document.sites.reverse();
            let set = vec![NodeIndex(1), NodeIndex(0)];
            document.plans =
                vec![(Policy::default(), Assignment::of_partitions((0..limits::PARTITIONS_DEFAULT).map(|_| set.clone())).unwrap())];
        });
        let document = signed.open(&[&parent], &verify).unwrap().document;
        let layout = document.layout_after(signed.hash(), &parent.layout).unwrap();
        for index in parent.layout.node_indexes() {
            assert_eq!(layout.node_name(index), parent.layout.node_name(index));
        }
        for site in parent.layout.site_indexes() {
            assert_eq!(layout.site_name(site), parent.layout.site_name(site));
        }
        let plan = layout.plan(&Policy::default()).unwrap();
        let names: Vec<&str> = plan.nodes(crate::placement::Partition(0)).iter().map(|node| layout.node_name(*node)).collect();
        assert_eq!(names, ["strasbourg", "new"]);
    }

    #[test]
    fn rule_10_a_layout_in_which_a_site_is_newly_lost_is_told_from_others() {
        let (parent, signed) = child(|document| document.sites[0].duty = Duty::Lost);
        let lost = signed.open(&[&parent], &verify).unwrap();
        assert_eq!(lost.newly_lost(&[&parent]), ["strasbourg"]);
        assert_eq!(lost.layout.duty(NodeIndex(0)), Duty::Lost, "with its nodes");
        let after = sign(&Document::child_of(&lost, UnixMillis(2), "later"), OURS).open(&[&lost], &verify).unwrap();
        assert!(after.newly_lost(&[&lost]).is_empty());
    }
}
