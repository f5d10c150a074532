//! Making a version current: the one place where a write is acknowledged.
//!
//! The version goes to the nodes of its partition *prepared* (rule 1): it counts for nobody until its records are known
//! to be at their level. It is acknowledged when copies at far-apart sites are durable, and when the answers overlap
//! every set of nodes that could have acknowledged a newer one (rule 4): whoever holds a higher stamp says so, and the
//! version is made again above it.
use super::{
    buckets::Bucket,
    claims::Claim,
    error::ObjectError,
    holders::Holders,
    targets::{self, Targets},
    versions,
};
use crate::{
    limits,
    node::Node,
    replication::{
        lane::LaneKind,
        send::{Attempt, Copied, NotCopied, Purpose, attempt_at},
    },
};
use afar_model::{
    coverage,
    hlc::Stamp,
    id::{RecordId, UploadId},
    layout::{NodeIndex, SiteIndex},
    placement::{Geography, Partition},
    policy::{DegradedWrites, Durability},
    record::{Record, RecordKey, RecordKind, VersionEntry},
};
use afar_proto::{convert, v1};
use afar_store::Owed;
use bytes::Bytes;
use std::{collections::BTreeSet, sync::Arc};
use tokio::task::JoinSet;

/// A version that is durable where it has to be.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its record.
    pub id: RecordId,
    /// Its place in the order of the key's versions.
    pub stamp: Stamp,
    /// Who holds it.
    pub nodes: Vec<NodeIndex>,
    /// Assigned nodes that do not hold it yet.
    pub owed: Vec<NodeIndex>,
    /// What these copies amount to.
    pub level: Durability,
    /// A version that an earlier attempt of the same put made: that one stands (rule 5).
    pub existing: Option<VersionEntry>,
    /// Whether every holder had it.
    pub deduplicated: bool,
}

/// Where records of a partition go now, leaving out `excluded`.
///
/// # Errors
/// If that is not far, and the bucket does not queue: with the sites that were considered.
pub fn targets(node: &Node, bucket: &Bucket, partition: Partition, excluded: &BTreeSet<NodeIndex>) -> Result<Targets, ObjectError> {
    let refuted = node.peers.refuted();
    bucket.now().placement.as_ref().map_err(|why| {
        // No site that comes back changes that.
        let help = "add a site that is far enough away (`afar node add`); `afar layout plan` says what else would help".to_owned();
        ObjectError::NotFar { why: why.to_string(), help }
    })?;
    let usable = |candidate| !excluded.contains(&candidate) && node.can_store(candidate);
    let chosen = targets::choose(bucket, &refuted, partition, &usable);
    let far = chosen.level >= Some(Durability::Far);
    let may_queue = || chosen.nodes.iter().any(|n| bucket.may_queue(*n));
    if far || (bucket.queues() && may_queue()) { Ok(chosen) } else { Err(refusal(node, bucket, &refuted, excluded)) }
}

/// Whether there are targets now. Of a suspect nobody knows whether it is there, so it is no reason to refuse before its next
/// heartbeats have told, which is waited for a little.
///
/// # Errors
/// As [`targets()`].
pub async fn feasible(node: &Node, bucket: &Bucket, partition: Partition) -> Result<(), ObjectError> {
    let mut changes = node.peers.changes();
    let until = tokio::time::Instant::now() + limits::SUSPECT_WAIT;
    loop {
        let chosen = targets(node, bucket, partition, &BTreeSet::new());
        let told = chosen.is_ok() || !bucket.eligible().iter().any(|eligible| node.peers.is_suspect(*eligible));
        if told || !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
            return chosen.map(|_| ());
        }
    }
}

/// Every site, why it is no help, and the distances between those that would be (product contract).
fn refusal(node: &Node, bucket: &Bucket, refuted: &BTreeSet<(SiteIndex, SiteIndex)>, excluded: &BTreeSet<NodeIndex>) -> ObjectError {
    let layout = &bucket.now().layout;
    let geography = Geography { layout, refuted };
    let eligible = bucket.eligible();
    let mut parts = Vec::new();
    let (mut up, mut away) = (Vec::new(), Vec::new());
    for site in layout.site_indexes() {
        let nodes: Vec<NodeIndex> = layout.nodes_at(site).collect();
        let name = layout.site_name(site);
        if nodes.is_empty() {
            parts.push(format!("{name}: has no node"));
        } else if !nodes.iter().any(|n| eligible.contains(n)) {
            parts.push(format!("{name}: the policy allows no copy there"));
        } else if nodes.iter().any(|n| !excluded.contains(n) && node.can_store(*n)) {
            up.push(site);
            parts.push(format!("{name}: up"));
        } else {
            away.push(name);
            parts.push(format!("{name}: {}", node.why_unusable(&nodes)));
        }
    }
    for (index, a) in up.iter().enumerate() {
        for b in up.iter().skip(index + 1) {
            let why = if geography.refuses(bucket.policy(), *a, *b) { ", refuted by the measured round trip" } else { "" };
            parts.push(format!("{}-{}: {}{why}", layout.site_name(*a), layout.site_name(*b), layout.distance(*a, *b)));
        }
    }
    let want = format!("the policy wants {} sites at least {} apart", bucket.policy().far_copies, bucket.policy().min_distance);
    let may_queue = |n: &NodeIndex| node.can_store(*n) && coverage::may_queue(bucket.policy(), layout, *n);
    let alone = bucket.policy().degraded_writes == DegradedWrites::Refuse && eligible.iter().any(may_queue);
    ObjectError::NotFar { why: format!("{want}; {}", parts.join("; ")), help: help(&away, alone.then_some(bucket.name.as_str())) }
}

/// What ends a refusal: that somebody comes back. To queue is the last resort, told only of a bucket that could; and not even that
/// takes this write, for every node must have heard of it before.
fn help(away: &[&str], could_queue: Option<&str>) -> String {
    if away.is_empty() {
        return "`afar doctor` measures the ways between the sites; correct a wrong place (`afar site set`), or add a site (`afar node add`)"
            .to_owned();
    }
    let back = format!("bring back {}: `afar status -x` shows what is wrong", away.join(" or "));
    match could_queue {
        Some(bucket) => format!(
            "{back}; before the next outage, if it is better to take writes that a fire at one site would lose: \
             `afar bucket set {bucket} --degraded-writes queue`"
        ),
        None => back,
    }
}

/// What is being committed.
pub struct Commit<'a> {
    /// The bucket.
    pub bucket: &'a Bucket,
    /// The key.
    pub key: &'a str,
    /// For what: the record's body for a stamp.
    pub body: &'a (dyn Fn(Stamp) -> Bytes + Send + Sync),
    /// The put that makes it (rule 5).
    pub upload: UploadId,
    /// Why it is sent to the assigned nodes; others stand in for them.
    pub purpose: Purpose,
    /// Nodes that already failed this put.
    pub excluded: BTreeSet<NodeIndex>,
    /// If the key may only be made: the claim on it (rule 15).
    pub claim: Option<&'a Claim>,
}

impl std::fmt::Debug for Commit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commit").field("bucket", &self.bucket.name).field("key", &self.key).finish_non_exhaustive()
    }
}

/// A version that was sent to these nodes and is not to stand.
type Superseded = (Stamp, RecordId, Vec<NodeIndex>);

/// What one round of sending brought.
#[derive(Default)]
struct Round {
    durable: Vec<NodeIndex>,
    /// Whose word counts on whether there is a newer version.
    answered: Vec<NodeIndex>,
    newest: Stamp,
    existing: Option<VersionEntry>,
    deduplicated: bool,
    failures: Vec<NotCopied>,
}

impl Commit<'_> {
    /// Sends the version until it is durable at its level and known to be the newest.
    ///
    /// # Errors
    /// If that cannot be had. The error says whether the version may take effect all the same.
    pub async fn run(mut self, node: &Arc<Node>) -> Result<Committed, ObjectError> {
        let mut superseded = Vec::new();
        let committed = self.rounds(node, &mut superseded).await;
        if committed.is_err() {
            // A retry at another node may take this one for its own, so the content stays.
            superseded.pop();
        }
        // Left behind, whoever proves them would make versions of their own of them.
        self.abandon(node, &superseded).await;
        committed
    }

    /// Notes in `superseded` what it has sent and replaced.
    async fn rounds(&mut self, node: &Arc<Node>, superseded: &mut Vec<Superseded>) -> Result<Committed, ObjectError> {
        if let Some(trouble) = node.clock_trouble() {
            return Err(ObjectError::unavailable(format!("this node refuses writes: {trouble}")));
        }
        let partition = self.bucket.version_partition(self.key);
        if let Some(claim) = self.claim {
            self.excluded.extend(claim.strangers(&self.bucket.eligible()));
        }
        let mut stamp = node.tick();
        let mut anywhere = false;
        let mut last_failure = String::new();
        let mut full: Option<String> = None;
        // Of the round before: who holds this version already, and whose word counts.
        let (mut known, mut heard): (Vec<NodeIndex>, Vec<NodeIndex>) = Default::default();
        for _ in 0..limits::COMMIT_ROUNDS {
            let chosen = targets(node, self.bucket, partition, &self.excluded).map_err(|error| match full.take() {
                // A copy that is there without a far one counts for nobody, and is discarded.
                Some(full) => ObjectError::NoSpace(format!("no room for a far copy: {full}")),
                None => self.after(anywhere, error, &last_failure),
            })?;
            let record = Record::new(RecordKind::Version, self.bucket.id, (self.body)(stamp));
            let own: Vec<RecordId> = superseded.iter().map(|(_, id, _)| *id).chain([record.id()]).collect();
            let mut round = self.send(node, &record, &chosen, (known.clone(), heard.clone()), &own).await?;
            anywhere |= !round.durable.is_empty();
            if let Some(existing) = round.existing.take() {
                // Whoever had not heard of the earlier attempt has stored this one: it must not shadow what came between.
                self.abandon(node, &[(stamp, record.id(), round.durable.clone())]).await;
                return Ok(self.stands(existing, round.durable));
            }
            if round.newest > stamp {
                // Somebody holds a newer version: make this one newer still.
                node.observe(round.newest);
                superseded.push((stamp, record.id(), chosen.nodes.clone()));
                stamp = node.tick().max(Stamp::from_u64(round.newest.as_u64().saturating_add(1)));
                known.clear();
                heard.clear();
                continue;
            }
            if self.claim.is_some_and(Claim::may_be_over) {
                return Err(self.after(anywhere, ObjectError::unavailable("it took too long to make the key"), &join(&round.failures)));
            }
            if self.is_met(node, &round.durable, &chosen) {
                let reached = self.level(node, &round.durable);
                let owed = self.bucket.targets(partition).into_iter().filter(|n| !round.durable.contains(n)).collect();
                let level = reached.unwrap_or(Durability::Local);
                return Ok(Committed {
                    id: record.id(),
                    stamp,
                    nodes: round.durable,
                    owed,
                    level,
                    existing: None,
                    deduplicated: round.deduplicated,
                });
            }
            full = full.or_else(|| round.failures.iter().find(|failure| failure.is_full()).map(ToString::to_string));
            last_failure = join(&round.failures);
            heard = round.answered.into_iter().filter(|node| round.durable.contains(node)).collect();
            known = round.durable;
        }
        Err(self.after(anywhere, ObjectError::unavailable("too many attempts"), &last_failure))
    }

    /// At what level this write is acknowledged: the policy's, or less where the bucket queues and no more can be had.
    fn wanted(&self, chosen: &Targets) -> Durability {
        let level = self.bucket.level();
        if self.bucket.queues() { level.min(chosen.level.unwrap_or(Durability::Local)) } else { level }
    }

    /// Whether copies on these nodes may be acknowledged.
    fn is_met(&self, node: &Node, durable: &[NodeIndex], chosen: &Targets) -> bool {
        may_acknowledge(self.bucket, &node.peers.refuted(), durable, self.wanted(chosen))
    }

    fn level(&self, node: &Node, nodes: &[NodeIndex]) -> Option<Durability> {
        self.bucket.reached(&node.peers.refuted(), nodes)
    }

    /// Sends to every target at once, asks witnesses beside them, and returns as soon as the level is reached and the
    /// answers are complete; the rest goes on by itself.
    async fn send(
        &mut self,
        node: &Arc<Node>,
        record: &Record,
        chosen: &Targets,
        (known, heard): (Vec<NodeIndex>, Vec<NodeIndex>),
        own: &[RecordId],
    ) -> Result<Round, ObjectError> {
        let partition = self.bucket.version_partition(self.key);
        let assigned = self.bucket.targets(partition);
        let mut tasks: JoinSet<(NodeIndex, Answer)> = JoinSet::new();
        for target in chosen.nodes.iter().copied().filter(|target| !known.contains(target)) {
            let (sender, record, own, create) = (Arc::clone(node), record.clone(), own.to_vec(), self.claim.is_some());
            let purpose = if assigned.contains(&target) { self.purpose } else { Purpose::Hint };
            tasks.spawn(async move {
                let attempt = Attempt { own: &own, create };
                let copied = attempt_at(&sender, target, std::slice::from_ref(&record), purpose, LaneKind::Small, attempt).await;
                let copied = copied.map(|mut copied| copied.pop());
                if matches!(&copied, Ok(Some(copied)) if copied.durable) {
                    sender.ledger.acknowledged(target, purpose != Purpose::Hint, [record.key()]);
                }
                (target, Answer::Copied(copied))
            });
        }
        let queued = self.wanted(chosen) == Durability::Local;
        let eligible = self.bucket.eligible();
        let mut asked: BTreeSet<NodeIndex> = chosen.nodes.iter().copied().collect();
        if !queued {
            for witness in self.witnesses(node, &chosen.nodes) {
                asked.insert(witness);
                self.ask(node, witness, &mut tasks);
            }
        }
        let mut round = Round { durable: known, answered: heard, deduplicated: true, ..Round::default() };
        loop {
            let complete = queued || self.bucket.covers(&round.answered);
            let durable = self.is_met(node, &round.durable, chosen);
            if complete && durable {
                // The copies beyond the level go on in the background; what fails is found by anti-entropy.
                tasks.detach_all();
                return Ok(round);
            }
            match tasks.join_next().await {
                Some(Ok((from, answer))) => self.take(from, answer, &mut round, own),
                Some(Err(_)) => {}
                None if complete || !durable => return Ok(round),
                None => {
                    // Somebody failed whose answer was counted on: ask whoever else can answer.
                    let others: Vec<NodeIndex> = eligible.iter().copied().filter(|n| !asked.contains(n) && node.answers(*n)).collect();
                    if others.is_empty() {
                        let layout = node.layout();
                        let silent: Vec<&str> =
                            eligible.iter().filter(|n| !round.answered.contains(n)).map(|n| layout.node_name(*n)).collect();
                        let why = format!("too few nodes answer to know whether a newer version exists (silent: {})", silent.join(", "));
                        return Err(ObjectError::maybe(why));
                    }
                    for witness in others {
                        asked.insert(witness);
                        self.ask(node, witness, &mut tasks);
                    }
                }
            }
        }
    }

    fn ask(&self, node: &Arc<Node>, witness: NodeIndex, tasks: &mut JoinSet<(NodeIndex, Answer)>) {
        let (asker, bucket, key) = (Arc::clone(node), self.bucket.id, self.key.to_owned());
        tasks.spawn(async move { (witness, Answer::Witnessed(versions::ask(&asker, witness, &bucket, &key, None).await)) });
    }

    fn take(&mut self, from: NodeIndex, answer: Answer, round: &mut Round, own: &[RecordId]) {
        match answer {
            Answer::Copied(Ok(Some(copied))) => {
                if !copied.catching_up {
                    round.answered.push(from);
                }
                if copied.durable {
                    round.durable.push(from);
                }
                round.newest = round.newest.max(copied.newest_stamp);
                round.deduplicated &= copied.deduplicated;
                round.existing = round.existing.take().or(copied.same_upload.filter(|entry| !own.contains(&entry.id)));
            }
            Answer::Copied(Ok(None)) => {
                self.excluded.insert(from);
            }
            Answer::Copied(Err(failure)) => {
                self.excluded.insert(from);
                round.failures.push(failure);
            }
            Answer::Witnessed(Some(entries)) => {
                round.answered.push(from);
                round.newest = round.newest.max(entries.first().map(|entry| entry.stamp).unwrap_or_default());
                let earlier = entries.into_iter().find(|entry| entry.upload == self.upload && !own.contains(&entry.id));
                round.existing = round.existing.take().or(earlier);
            }
            Answer::Witnessed(None) => {}
        }
    }

    /// Whom to ask besides the targets, so that the answers overlap every set that could have acknowledged.
    fn witnesses(&self, node: &Node, targets: &[NodeIndex]) -> Vec<NodeIndex> {
        let eligible = self.bucket.eligible();
        let others: Vec<NodeIndex> = eligible.iter().copied().filter(|n| !targets.contains(n) && node.answers(*n)).collect();
        let mut order = targets.to_vec();
        order.extend(node.peers.nearest_first(others));
        let enough = self.bucket.to_ask(&order).unwrap_or(order);
        enough.into_iter().filter(|n| !targets.contains(n)).collect()
    }

    /// Makes stamps forgotten that this put has replaced or that must not stand beside an earlier attempt.
    async fn abandon(&self, node: &Arc<Node>, stamps: &[Superseded]) {
        for (stamp, id, nodes) in stamps {
            for target in nodes {
                match node.lanes.to(*target, LaneKind::Small) {
                    Some(lane) => lane.abandon(convert::version_ref(&self.bucket.id, self.key, *stamp, id)).await,
                    None => node.discard(RecordKey { bucket: self.bucket.id, id: *id }, self.key, *stamp).await,
                }
            }
        }
    }

    fn stands(&self, existing: VersionEntry, nodes: Vec<NodeIndex>) -> Committed {
        Committed {
            id: existing.id,
            stamp: existing.stamp,
            nodes,
            owed: Vec::new(),
            level: Durability::Local,
            existing: Some(existing),
            deduplicated: true,
        }
    }

    fn after(&self, anywhere: bool, error: ObjectError, failures: &str) -> ObjectError {
        match error {
            refused @ ObjectError::NotFar { .. } if !anywhere && failures.is_empty() => refused,
            error if anywhere => ObjectError::maybe(format!("{error} ({failures})")),
            error => ObjectError::unavailable(format!("{error} ({failures})")),
        }
    }
}

/// Whether copies on these nodes are worth an acknowledgement that has to be `wanted` at least. A copy at one site alone
/// counts only where readers look for it (rule 3), whatever the level: a bucket that queues does not acknowledge at a stand-in
/// near its home when the home itself failed in mid-put.
fn may_acknowledge(bucket: &Bucket, refuted: &BTreeSet<(SiteIndex, SiteIndex)>, durable: &[NodeIndex], wanted: Durability) -> bool {
    let level = bucket.reached(refuted, durable);
    let findable = || durable.iter().any(|n| bucket.may_queue(*n));
    level >= Some(wanted) && (level >= Some(Durability::Far) || findable())
}

/// The last look before an acknowledgement (rule 19). While it was being written other disks may have taken the place of some that
/// were counted on, and have compared themselves already with whoever got a copy only after that: nobody would miss it there.
///
/// # Errors
/// If the disks of any peer were replaced since there were `replacements`.
pub fn on_the_same_disks(node: &Node, replacements: u64) -> Result<(), ObjectError> {
    let same = node.peers.replacements() == replacements;
    same.then_some(()).ok_or_else(|| ObjectError::maybe("the disks of a node were replaced while this was being written"))
}

enum Answer {
    Copied(Result<Option<Copied>, NotCopied>),
    Witnessed(Option<Vec<VersionEntry>>),
}

fn join(failures: &[NotCopied]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Tells everybody that the version is at its level, and who holds it; not awaited, for the next reader finds out by itself.
pub fn settle(node: &Arc<Node>, bucket: &Bucket, key: &str, (stamp, id): (Stamp, RecordId), holders: &Holders) {
    let complete = holders.complete(&bucket.assigned_by_any(bucket.version_partition(key)));
    let lacking: Vec<NodeIndex> = holders.lacking().collect();
    node.note_holders(RecordKey { bucket: bucket.id, id }, key, &complete, &lacking);
    node.store.settle(vec![(bucket.id, key.to_owned(), stamp, id)]);
    let layout = node.layout();
    let names = |nodes: &[NodeIndex]| nodes.iter().map(|n| layout.node_name(*n).to_owned()).collect();
    let settled = v1::Settled {
        version: Some(convert::version_ref(&bucket.id, key, stamp, &id)),
        holders: names(&complete),
        lacking: names(&lacking),
    };
    for peer in bucket.eligible().into_iter().filter(|n| *n != node.me && node.peers.usable(*n)) {
        node.settlements.push(peer, settled.clone());
    }
}

/// What these nodes still have to get, for the outbox.
pub fn debts(node: &Node, to: &[NodeIndex], keys: &[(RecordKey, RecordKind, u32)]) -> Vec<Owed> {
    let since = node.now();
    let debt = |to: &NodeIndex, (key, kind, bytes): &(RecordKey, RecordKind, u32)| Owed {
        key: *key,
        kind: *kind,
        to: node.layout().node_name(*to).to_owned(),
        since,
        bytes: *bytes,
    };
    to.iter().flat_map(|to| keys.iter().map(move |key| debt(to, key))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::policy::Policy;

    const STRASBOURG: NodeIndex = NodeIndex(0);
    const ROUBAIX: NodeIndex = NodeIndex(1);
    const WARSAW: NodeIndex = NodeIndex(2);

    fn acknowledged(policy: &Policy, durable: &[NodeIndex], wanted: Durability) -> bool {
        may_acknowledge(&Bucket::example(policy), &BTreeSet::new(), durable, wanted)
    }

    #[test]
    fn rule_3_a_queue_bucket_never_acknowledges_at_a_near_stand_in_when_its_home_failed() {
        let home = Some("strasbourg".to_owned());
        let policy = Policy { degraded_writes: DegradedWrites::Queue, home, copies: 3, ..Policy::default() };
        let local = |durable: &[NodeIndex]| acknowledged(&policy, durable, Durability::Local);
        assert!(local(&[STRASBOURG]) && local(&[STRASBOURG, ROUBAIX]), "at home it may be queued");
        assert!(!local(&[ROUBAIX]), "no reader would look there: without home they answer 14, with it they find nothing");
        assert!(!local(&[WARSAW]) && !local(&[]));
        assert!(local(&[ROUBAIX, WARSAW]), "far is found by any reader");
        let homeless = Policy { home: None, ..policy.clone() };
        assert!(acknowledged(&homeless, &[ROUBAIX], Durability::Local), "without a home every node is asked");
    }

    #[test]
    fn to_queue_is_advised_only_of_a_bucket_that_could_and_last() {
        let could = help(&["warsaw", "madrid"], Some("docs"));
        let (back, queue) = (could.find("bring back warsaw or madrid").unwrap(), could.find("afar bucket set docs").unwrap());
        assert!(back < queue && could.is_ascii(), "{could}");
        assert!(!help(&["warsaw"], None).contains("queue"), "it does already, or nobody who could is there");
        assert!(!help(&[], Some("docs")).contains("queue"), "who comes back would make nothing far");
    }

    #[test]
    fn what_is_not_queued_is_acknowledged_at_its_level_only() {
        let policy = Policy::default();
        assert!(!acknowledged(&policy, &[STRASBOURG], Durability::Far));
        assert!(!acknowledged(&policy, &[STRASBOURG, ROUBAIX], Durability::Far), "406 km");
        assert!(acknowledged(&policy, &[STRASBOURG, WARSAW], Durability::Far));
    }
}
