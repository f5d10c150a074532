//! The state of every version that this node is assigned, from evidence: its own log, and what the ledger can prove of
//! the others (rule 25). Counts go to whoever asks for status, per bucket and shard, with this node's rank among the
//! shard's holders, so that each shard is counted once, by the first of its holders that answers.
use crate::{limits, node::Node, objects::buckets::Bucket, replication::ledger::Holding};
use afar_model::{
    id::BucketId,
    layout::{NodeIndex, SiteIndex},
    placement::{Geography, Partition, sites_of},
    record::{Content, Data, Manifest, RecordKey, Version, VersionEntry},
    state::{State, state},
    units::UnixMillis,
};
use afar_proto::{convert, v1};
use afar_store::{VersionCursor, VersionRow};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

/// Marks a shard that exists and that this node is not assigned.
pub const NO_REPORTER: u32 = u32::MAX;

/// What one survey found.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Per bucket and shard.
    pub shards: Vec<v1::ShardSurvey>,
    /// Versions that may be current and that nobody has proved yet: some of them.
    pub prepared: Vec<VersionRow>,
    /// Lost versions that nobody misses: a newer one stands in their place, or they only said that the key holds nothing.
    pub unmissed: Vec<RecordKey>,
    /// When it was made.
    pub at: UnixMillis,
    /// Whether all views were there.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
}

/// Looks at every version that this node holds. Blocking: about a microsecond a version, more where chunks must be looked
/// at one by one.
pub fn survey(node: &Node) -> Survey {
    let begun = Instant::now();
    let mut surveyor = Surveyor::new(node);
    let complete = surveyor.walk();
    let (prepared, unmissed) = (std::mem::take(&mut surveyor.unproved), std::mem::take(&mut surveyor.unmissed));
    Survey { shards: surveyor.finish(), prepared, unmissed, at: node.now(), complete, took: begun.elapsed() }
}

/// What is needed of a bucket again and again.
struct BucketFacts {
    bucket: Arc<Bucket>,
    /// The one state of all records of this bucket, if no exception is known and all sets of nodes amount to the same.
    uniform: Option<State>,
}

/// The key whose versions are passing by, newest first.
#[derive(Default)]
struct Passing {
    key: Option<(BucketId, String)>,
    /// One that is settled has passed.
    settled: bool,
    /// Its object has been counted: a key is one object, however many versions of it may be current.
    counted: bool,
}

impl Passing {
    fn begin(&mut self, bucket: BucketId, key: &str) {
        if !self.key.as_ref().is_some_and(|(b, k)| *b == bucket && k == key) {
            *self = Self { key: Some((bucket, key.to_owned())), ..Self::default() };
        }
    }

    /// Whether its object is still to be counted; from now on it is not.
    fn is_uncounted(&mut self) -> bool {
        !std::mem::replace(&mut self.counted, true)
    }
}

struct Surveyor<'a> {
    node: &'a Node,
    refuted: Arc<BTreeSet<(SiteIndex, SiteIndex)>>,
    exceptions: bool,
    disproved: Arc<HashSet<RecordKey>>,
    facts: HashMap<BucketId, BucketFacts>,
    shards: HashMap<(BucketId, u16), v1::ShardSurvey>,
    key: Passing,
    unproved: Vec<VersionRow>,
    unmissed: Vec<RecordKey>,
}

impl<'a> Surveyor<'a> {
    fn new(node: &'a Node) -> Self {
        let refuted = node.peers.refuted();
        let mut surveyor = Self {
            node,
            refuted,
            exceptions: node.ledger.has_exceptions(),
            disproved: node.disproved.load_full(),
            facts: HashMap::new(),
            shards: HashMap::new(),
            key: Passing::default(),
            unproved: Vec::new(),
            unmissed: Vec::new(),
        };
        for bucket in node.buckets.present().buckets.values() {
            surveyor.begin(bucket);
        }
        surveyor
    }

    /// Every shard of a bucket is reported, be it empty: an absent one would be unknown.
    fn begin(&mut self, bucket: &Arc<Bucket>) {
        for shard in 0..bucket.shards {
            let partition = Partition::of_shard(&bucket.id, shard, self.node.layout().partitions());
            let rank = reporters(bucket, partition).iter().position(|n| *n == self.node.me);
            let survey = v1::ShardSurvey {
                bucket: convert::bytes(bucket.id.as_bytes()),
                shard: u32::from(shard),
                objects: Some(v1::StateCounts::default()),
                bytes: Some(v1::StateCounts::default()),
                versions: Some(v1::StateCounts::default()),
                rank: rank.map_or(NO_REPORTER, |rank| rank as u32),
                stored_bytes: 0,
            };
            self.shards.insert((bucket.id, shard), survey);
        }
        let in_transition = bucket.views().count() > 1;
        let uniform = if self.exceptions || in_transition { None } else { self.uniform(bucket) };
        self.facts.insert(bucket.id, BucketFacts { bucket: Arc::clone(bucket), uniform });
    }

    fn uniform(&self, bucket: &Bucket) -> Option<State> {
        let layout = self.node.layout();
        let sets: BTreeSet<Vec<NodeIndex>> = (0..layout.partitions()).map(|p| bucket.assigned_by_any(Partition(p))).collect();
        let any = RecordKey { bucket: bucket.id, id: afar_model::id::RecordId::ZERO };
        let states: BTreeSet<State> = sets.iter().map(|assigned| self.state_at(bucket, (&any, &any), assigned, &[], true)).collect();
        if states.len() == 1 { states.first().copied() } else { None }
    }

    fn walk(&mut self) -> bool {
        let mut after: Option<VersionCursor> = None;
        loop {
            let Ok(rows) = self.node.store.known_versions(after.as_ref(), limits::SURVEY_PAGE) else { return false };
            after = rows.last().map(VersionRow::cursor);
            let end = rows.len() < limits::SURVEY_PAGE;
            for row in rows {
                self.row(row);
            }
            if end {
                return true;
            }
        }
    }

    fn row(&mut self, row: VersionRow) {
        let entry = &row.entry;
        self.key.begin(row.bucket, &row.key);
        if !row.here && (self.key.settled || entry.settled && entry.object.is_none()) {
            self.key.settled = true;
            self.unmissed.push(RecordKey { bucket: row.bucket, id: entry.id });
            return;
        }
        if !entry.settled {
            // It may be current, and nothing is proved of it yet: then it is unknown, and somebody has to prove it.
            if !self.key.settled && self.node.now().since(entry.received) > limits::PREPARED_FOR {
                self.prepared(row);
            }
            return;
        }
        let current = !std::mem::replace(&mut self.key.settled, true) && self.key.is_uncounted();
        let (Some((_, size)), Some(facts)) = (entry.object, self.facts.get(&row.bucket)) else { return };
        let state = self.version_state(facts, &row);
        let filling = state == State::Degraded && self.is_filling(&facts.bucket, entry);
        let shard = afar_model::placement::shard_of(&row.key, facts.bucket.shards);
        let Some(survey) = self.shards.get_mut(&(row.bucket, shard)) else { return };
        count(&mut survey.versions, state, filling, 1);
        survey.stored_bytes = survey.stored_bytes.saturating_add(size);
        if current {
            count(&mut survey.objects, state, filling, 1);
            count(&mut survey.bytes, state, filling, size);
        }
    }

    /// Whether copies that a version lacks are on their way: it was put a moment ago, and everybody who may get one is there.
    fn is_filling(&self, bucket: &Bucket, entry: &VersionEntry) -> bool {
        let there = |node: &NodeIndex| *node == self.node.me || self.node.peers.usable(*node);
        self.node.now().since(entry.received) <= limits::FILLING_FOR && bucket.eligible().iter().all(there)
    }

    fn prepared(&mut self, row: VersionRow) {
        let Some(facts) = self.facts.get(&row.bucket) else { return };
        let shard = afar_model::placement::shard_of(&row.key, facts.bucket.shards);
        let Some(survey) = self.shards.get_mut(&(row.bucket, shard)) else { return };
        let size = row.entry.object.map_or(0, |(_, size)| size);
        survey.stored_bytes = survey.stored_bytes.saturating_add(size);
        // What was found never to have been acknowledged is no object, to readers neither; it is looked at again all the same.
        if !self.disproved.contains(&RecordKey { bucket: row.bucket, id: row.entry.id }) {
            count(&mut survey.versions, State::Unknown, false, 1);
            if self.key.is_uncounted() {
                count(&mut survey.objects, State::Unknown, false, 1);
                count(&mut survey.bytes, State::Unknown, false, size);
            }
        }
        if self.unproved.len() < limits::PREPARED_BATCH {
            self.unproved.push(row);
        }
    }

    fn version_state(&self, facts: &BucketFacts, VersionRow { key, entry, here, .. }: &VersionRow) -> State {
        if let Some(state) = facts.uniform.filter(|_| *here) {
            return state;
        }
        let bucket = &facts.bucket;
        let name = RecordKey { bucket: bucket.id, id: entry.id };
        // Whoever older layouts assigned it to is believed to hold it only if it was written by them.
        let older = entry.received < self.node.layouts.since();
        let own = self.record_state(bucket, (&name, &name), bucket.version_partition(key), older);
        if entry.inline || !here { own } else { self.content_state(bucket, &name, older).max(own) }
    }

    /// The worst of a version's manifests and chunks; unknown where they cannot be listed here.
    fn content_state(&self, bucket: &Bucket, name: &RecordKey, older: bool) -> State {
        let Some(version) = self.read(name).and_then(|body| Version::decode(&body).ok()) else { return State::Unknown };
        let Content::Object { data, .. } = version.version.content else { return State::Safe };
        let partitions = self.node.layout().partitions();
        let piece =
            |id| self.record_state(bucket, (&RecordKey { bucket: bucket.id, id }, name), Partition::of_record(&id, partitions), older);
        match data {
            Data::Inline => State::Safe,
            Data::Chunks(chunks) => chunks.iter().map(|chunk| piece(chunk.id)).max().unwrap_or(State::Safe),
            Data::Manifests(manifests) => manifests
                .iter()
                .map(|id| {
                    let manifest = self.read(&RecordKey { bucket: bucket.id, id: *id }).and_then(|body| Manifest::decode(&body).ok());
                    let chunks = manifest.map(|manifest| manifest.chunks.iter().map(|chunk| piece(chunk.id)).max().unwrap_or(State::Safe));
                    chunks.unwrap_or(State::Unknown).max(piece(*id))
                })
                .max()
                .unwrap_or(State::Safe),
        }
    }

    fn read(&self, name: &RecordKey) -> Option<bytes::Bytes> {
        self.node.store.get(name).ok().flatten().map(|found| found.record.into_body())
    }

    fn record_state(&self, bucket: &Bucket, (key, version): (&RecordKey, &RecordKey), partition: Partition, older: bool) -> State {
        let assigned = if older { bucket.assigned_by_any(partition) } else { bucket.assigned(partition) };
        let others: Vec<NodeIndex> = bucket.eligible().into_iter().filter(|n| !assigned.contains(n)).collect();
        self.state_at(bucket, (key, version), &assigned, &others, false)
    }

    /// Rule 25 for one record, which `version` needs; `any` stands for every record when no exception is known.
    fn state_at(
        &self,
        bucket: &Bucket,
        (key, version): (&RecordKey, &RecordKey),
        assigned: &[NodeIndex],
        others: &[NodeIndex],
        any: bool,
    ) -> State {
        let (mut proved, mut unproved) = (Vec::new(), Vec::new());
        let candidates = assigned.iter().map(|n| (*n, true)).chain(others.iter().map(|n| (*n, false)));
        for (candidate, is_assigned) in candidates {
            let holding = match self.holding(candidate, is_assigned, key, any) {
                // Of which of its records is not known here.
                _ if candidate != self.node.me && self.node.ledger.lacks_of(candidate, version) => Holding::No,
                Holding::No if !is_assigned => self.stand_in(candidate, version),
                holding => holding,
            };
            match holding {
                Holding::Proved => proved.push(candidate),
                Holding::Unproved => unproved.push(candidate),
                Holding::No => {}
            }
        }
        // While a promise or a layout changes, safe means safe by both. Where a copy is counts, not whether it may stay there.
        let judged = bucket.views().map(|view| {
            let layout = &view.layout;
            let sites = |nodes: &[NodeIndex]| sites_of(layout, nodes.iter().copied());
            state(&view.policy, &sites(&proved), &sites(&unproved), &Geography { layout, refuted: &self.refuted })
        });
        judged.max().unwrap_or(State::Unknown)
    }

    fn holding(&self, candidate: NodeIndex, assigned: bool, key: &RecordKey, any: bool) -> Holding {
        if candidate == self.node.me {
            return self.own_holding(assigned, key, any);
        }
        match self.node.ledger.holding(candidate, assigned, key) {
            Holding::Proved if !self.node.peers.usable(candidate) => Holding::Unproved,
            Holding::Unproved if self.node.was_replaced(candidate) => Holding::No,
            holding => holding,
        }
    }

    fn stand_in(&self, candidate: NodeIndex, version: &RecordKey) -> Holding {
        match self.node.ledger.holds_whole(candidate, version) {
            Holding::Proved if !self.node.peers.usable(candidate) => Holding::Unproved,
            holding => holding,
        }
    }

    /// What is here was read and hashed within the scrub's bound, or synced since: the upkeep sees to it, and says if not.
    fn own_holding(&self, assigned: bool, key: &RecordKey, any: bool) -> Holding {
        let held = if any { assigned } else { self.node.store.holds(key) && !self.node.ledger.is_missing_here(key) };
        match (held, self.node.is_scrubbed()) {
            (false, _) => Holding::No,
            (true, true) => Holding::Proved,
            (true, false) => Holding::Unproved,
        }
    }

    fn finish(self) -> Vec<v1::ShardSurvey> {
        self.shards.into_values().collect()
    }
}

/// The pieces of a version that are assigned to this node. Blocking.
pub fn pieces_here(node: &Node, bucket: BucketId, version: afar_model::id::RecordId) -> Vec<RecordKey> {
    let read = |id| node.store.get(&RecordKey { bucket, id }).ok().flatten().map(|found| found.record.into_body());
    let Some(Content::Object { data, .. }) =
        read(version).and_then(|body| Version::decode(&body).ok()).map(|decoded| decoded.version.content)
    else {
        return Vec::new();
    };
    let mut ids = Vec::new();
    match data {
        Data::Inline => {}
        Data::Chunks(chunks) => ids.extend(chunks.iter().map(|chunk| chunk.id)),
        Data::Manifests(manifests) => {
            for id in manifests {
                let manifest = read(id).and_then(|body| Manifest::decode(&body).ok());
                ids.push(id);
                ids.extend(manifest.into_iter().flat_map(|manifest| manifest.chunks).map(|chunk| chunk.id));
            }
        }
    }
    let partitions = node.layout().partitions();
    let key = |id| RecordKey { bucket, id };
    ids.into_iter().map(key).filter(|key| node.is_assigned(node.me, key, Partition::of_record(&key.id, partitions))).collect()
}

/// The shards that this node reports if every node is asked only what it counts itself: those whose reporters before it cannot be
/// used from here. While nodes see each other each shard is counted once; while they do not, rather twice than never.
pub fn reported<'a>(node: &'a Node, survey: &'a Survey) -> impl Iterator<Item = &'a v1::ShardSurvey> {
    let layout = node.layout();
    let is_first = move |shard: &&v1::ShardSurvey| {
        let rank = shard.rank as usize;
        if shard.rank == NO_REPORTER || rank == 0 {
            return rank == 0;
        }
        let bucket = <[u8; 32]>::try_from(shard.bucket.as_ref()).ok().and_then(|id| node.buckets.get(&BucketId::from_bytes(id)));
        let Some((bucket, number)) = bucket.zip(u16::try_from(shard.shard).ok()) else { return false };
        let before = reporters(&bucket, Partition::of_shard(&bucket.id, number, layout.partitions()));
        before.iter().take(rank).all(|other| !node.peers.usable(*other))
    };
    survey.shards.iter().filter(is_first)
}

/// Who reports a shard, in order: those first who have had it longest, for whoever is assigned it newly may lack it yet.
fn reporters(bucket: &Bucket, partition: Partition) -> Vec<NodeIndex> {
    let mut reporters = Vec::new();
    for node in bucket.views().collect::<Vec<_>>().into_iter().rev().flat_map(|view| view.assigned(partition)) {
        if !reporters.contains(&node) {
            reporters.push(node);
        }
    }
    reporters
}

fn count(counts: &mut Option<v1::StateCounts>, state: State, filling: bool, amount: u64) {
    let counts = counts.get_or_insert_default();
    counts.total += amount;
    counts.filling += if filling { amount } else { 0 };
    *match state {
        State::Safe => &mut counts.safe,
        State::Degraded => &mut counts.degraded,
        State::Unknown => &mut counts.unknown,
        State::AtRisk => &mut counts.at_risk,
        State::Lost => &mut counts.lost,
    } += amount;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_object_however_many_of_its_versions_may_be_current() {
        let (bucket, mut passing) = (BucketId::ZERO, Passing::default());
        passing.begin(bucket, "a");
        assert!(passing.is_uncounted(), "a prepared one");
        passing.begin(bucket, "a");
        assert!(!passing.is_uncounted(), "the one before it");
        passing.begin(bucket, "b");
        assert!(passing.is_uncounted(), "another key");
        passing.begin(BucketId::from_bytes([1; 32]), "b");
        assert!(passing.is_uncounted(), "another bucket");
    }

    #[test]
    fn what_is_filling_is_degraded_all_the_same() {
        let mut counts = None;
        count(&mut counts, State::Degraded, true, 3);
        count(&mut counts, State::Degraded, false, 4);
        assert_eq!(counts, Some(v1::StateCounts { total: 7, degraded: 7, filling: 3, ..v1::StateCounts::default() }));
    }
}
