//! The buckets that this node knows: a view of the settings in its log. Every node holds every setting, so this is
//! local and complete up to what anti-entropy still brings.
use super::error::ObjectError;
use crate::cluster::{
    keyring::StoredKey,
    layouts::{Layouts, Open},
};
use afar_model::{
    coverage,
    hlc::Stamp,
    id::BucketId,
    layout::{Duty, Layout, NodeIndex, SiteIndex},
    placement::{Geography, Infeasible, Partition, Placement, level, sites_of},
    policy::{DegradedWrites, Durability, Policy},
    record::{Record, Setting},
};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A bucket under one open layout: what is promised, and where that puts its data.
#[derive(Debug, Clone)]
pub struct View {
    /// The layout.
    pub layout: Arc<Layout>,
    /// How the bucket's data are kept under it.
    pub policy: Policy,
    /// Where its data go; or why nowhere.
    pub placement: Result<Arc<Placement>, Infeasible>,
}

impl View {
    fn new(layout: &Arc<Layout>, id: &BucketId, policy: &Policy, refuted: &BTreeSet<(SiteIndex, SiteIndex)>) -> Self {
        let policy = layout.promise(id).unwrap_or(policy).clone();
        let placement = Placement::new(&policy, &Geography { layout, refuted }).map(Arc::new);
        Self { layout: Arc::clone(layout), policy, placement }
    }

    /// The nodes that a partition is assigned to; none if the policy cannot be met.
    pub fn assigned(&self, partition: Partition) -> Vec<NodeIndex> {
        self.placement.as_ref().map_or_else(|_| Vec::new(), |placement| placement.assigned(&self.policy, &self.layout, partition))
    }

    /// The nodes that may hold a copy: assigned ones and those that may stand in.
    ///
    /// Where the policy cannot be met at present, all nodes: what was acknowledged under another layout may be anywhere.
    pub fn eligible(&self) -> Vec<NodeIndex> {
        self.placement.as_ref().map_or_else(|_| self.layout.members().collect(), |placement| placement.eligible().to_vec())
    }

    /// What copies at these nodes amount to. A node that may hold none counts for nothing.
    pub fn reached(&self, refuted: &BTreeSet<(SiteIndex, SiteIndex)>, nodes: &[NodeIndex]) -> Option<Durability> {
        let eligible = self.eligible();
        let counted = nodes.iter().copied().filter(|node| eligible.contains(node));
        level(&self.policy, &sites_of(&self.layout, counted), &Geography { layout: &self.layout, refuted })
    }
}

/// A bucket, and what follows from its policy under every open layout (rule 21): writes satisfy all of them, and reads ask
/// by all of them.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The id of its creation record.
    pub id: BucketId,
    /// What people call it.
    pub name: String,
    /// Over how many shards its versions are spread.
    pub shards: u16,
    /// When it was made.
    pub created: Stamp,
    /// Closings that are in force: while there is one, it takes no new versions.
    pub closings: Vec<Stamp>,
    /// Under the current layout.
    now: View,
    /// Under older ones that are still open, oldest first.
    before: Vec<View>,
    /// Says that somebody may write by these open layouts, until the last who has this bucket lets go of it.
    _writing: Arc<()>,
    /// Everybody asks and writes by the current layout: see [`Open::all_drained`].
    all_drained: Arc<AtomicBool>,
    partitions: u32,
}

impl Bucket {
    /// A bucket as it was created, under the open layouts; `None` if there is none, which cannot be.
    pub fn new(
        (id, name, shards, created): (BucketId, String, u16, Stamp),
        policy: &Policy,
        open: &Open,
        refuted: &BTreeSet<(SiteIndex, SiteIndex)>,
    ) -> Option<Self> {
        let mut views: Vec<View> = open.layouts().map(|layout| View::new(layout, &id, policy, refuted)).collect();
        let now = views.pop()?;
        let partitions = now.layout.partitions();
        let (writing, all_drained) = (open.writing(), open.all_drained());
        Some(Self { id, name, shards, created, closings: Vec::new(), now, before: views, _writing: writing, all_drained, partitions })
    }

    /// A bucket in the demo's cluster.
    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    pub(crate) fn example(policy: &Policy) -> Self {
        let layout = afar_model::layout::examples::three_sites().unwrap();
        let chapter = afar_model::document::Chapter::genesis("test", layout, Vec::new());
        let named = (BucketId::ZERO, "b".to_owned(), 16, Stamp::ZERO);
        Self::new(named, policy, &Open::new(vec![Arc::new(chapter)], false), &BTreeSet::new()).unwrap()
    }

    /// Whether it takes no new versions: it is being made or removed, or whoever did so was stopped halfway.
    pub const fn is_closed(&self) -> bool {
        !self.closings.is_empty()
    }

    /// Under the current layout.
    pub const fn now(&self) -> &View {
        &self.now
    }

    /// How its data are to be kept.
    pub const fn policy(&self) -> &Policy {
        &self.now.policy
    }

    /// Under every open layout, the current one first: what reads ask by, and states are judged by.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        std::iter::once(&self.now).chain(&self.before)
    }

    /// What writes have to satisfy: every open layout, until everybody asks by the current one too; then that alone. (After a
    /// fire a layout without the burnt site takes writes at once, however long it takes to heal.)
    pub fn writing_views(&self) -> impl Iterator<Item = &View> {
        let older = if self.all_drained.load(Ordering::Acquire) { &[] } else { self.before.as_slice() };
        std::iter::once(&self.now).chain(older)
    }

    /// Nobody waits for what an operator has said to be lost.
    fn is_lost(&self, node: NodeIndex) -> bool {
        self.now.layout.duty(node) == Duty::Lost
    }

    /// The partition of a key's versions.
    pub fn version_partition(&self, key: &str) -> Partition {
        Partition::of_version(&self.id, key, self.shards, self.partitions)
    }

    /// The nodes that the current layout assigns a partition to; none if the policy cannot be met.
    pub fn assigned(&self, partition: Partition) -> Vec<NodeIndex> {
        self.now.assigned(partition)
    }

    /// The nodes that any open layout assigns a partition to, those of the current one first: whoever is to be written to,
    /// and is believed to hold what was written.
    pub fn assigned_by_any(&self, partition: Partition) -> Vec<NodeIndex> {
        let mut nodes = self.now.assigned(partition);
        for node in self.before.iter().flat_map(|view| view.assigned(partition)) {
            if !nodes.contains(&node) && !self.is_lost(node) {
                nodes.push(node);
            }
        }
        nodes
    }

    /// The nodes that a partition's records are to be written to now.
    pub fn targets(&self, partition: Partition) -> Vec<NodeIndex> {
        if self.all_drained.load(Ordering::Acquire) { self.assigned(partition) } else { self.assigned_by_any(partition) }
    }

    /// The nodes that may hold a copy under any open layout.
    pub fn eligible(&self) -> Vec<NodeIndex> {
        let mut nodes = self.now.eligible();
        for node in self.before.iter().flat_map(View::eligible) {
            if !nodes.contains(&node) && !self.is_lost(node) {
                nodes.push(node);
            }
        }
        nodes
    }

    /// Whether these answers settle what is and what is not, under every open layout (rules 3 and 21). Who has been lost since
    /// may have acknowledged with any of those who are silent now, so under older layouts it counts, as one who never answers:
    /// until those are closed, when everybody else has everything.
    pub fn covers(&self, answered: &[NodeIndex]) -> bool {
        self.views().all(|view| coverage::covers(&view.policy, &view.layout, &view.eligible(), answered))
    }

    /// The fewest of these (nearest first) whose answers cover.
    pub fn to_ask(&self, nearest_first: &[NodeIndex]) -> Option<Vec<NodeIndex>> {
        let mut asked: Vec<NodeIndex> = Vec::new();
        for view in self.views() {
            for node in coverage::to_ask(&view.policy, &view.layout, &view.eligible(), nearest_first)? {
                if !asked.contains(&node) {
                    asked.push(node);
                }
            }
        }
        Some(asked)
    }

    /// Whether a copy on this node alone may be acknowledged as `local`, under every open layout.
    pub fn may_queue(&self, node: NodeIndex) -> bool {
        self.writing_views().all(|view| view.eligible().contains(&node) && coverage::may_queue(&view.policy, &view.layout, node))
    }

    /// Whether every open layout lets this bucket queue.
    pub fn queues(&self) -> bool {
        self.writing_views().all(|view| view.policy.degraded_writes == DegradedWrites::Queue)
    }

    /// The level that acknowledges a write: the highest that any open layout asks for.
    pub fn level(&self) -> Durability {
        self.writing_views().map(|view| view.policy.level).max().unwrap_or(Durability::Far)
    }

    /// What copies at these nodes amount to: the least under any open layout.
    pub fn reached(&self, refuted: &BTreeSet<(SiteIndex, SiteIndex)>, nodes: &[NodeIndex]) -> Option<Durability> {
        self.writing_views().map(|view| view.reached(refuted, nodes)).min().flatten()
    }
}

/// What the settings amount to.
#[derive(Debug, Default)]
pub struct Settings {
    /// Every live bucket.
    pub buckets: HashMap<BucketId, Arc<Bucket>>,
    /// Names point to buckets: to one each, or nobody knows which is meant (rule 23).
    pub names: BTreeMap<String, BTreeSet<BucketId>>,
    /// Every live access key.
    pub keys: Vec<StoredKey>,
    /// Buckets that were removed: known, unlike one whose creation has not arrived yet.
    pub removed: BTreeSet<BucketId>,
}

/// Several buckets have one name: made at the same moment, by nodes that could not know of each other's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contested {
    /// The name.
    pub name: String,
    /// The buckets.
    pub ids: BTreeSet<BucketId>,
}

impl From<Contested> for ObjectError {
    fn from(Contested { name, ids }: Contested) -> Self {
        Self::Contested { name, ids: ids.iter().map(|id| format!("@{id}")).collect() }
    }
}

impl Settings {
    /// Names that several buckets have.
    pub fn contested(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, ids)| ids.len() > 1).map(|(name, _)| name.as_str())
    }
}

/// The present [`Settings`], replaced as a whole whenever a setting arrives.
#[derive(Debug)]
pub struct BucketTable {
    layouts: Arc<Layouts>,
    present: ArcSwap<Settings>,
}

impl BucketTable {
    /// Without settings yet.
    pub fn new(layouts: Arc<Layouts>) -> Self {
        Self { layouts, present: ArcSwap::default() }
    }

    /// What is known now.
    pub fn present(&self) -> Arc<Settings> {
        self.present.load_full()
    }

    /// A bucket by name, or by `@` and its id in hex; `None` if there is none.
    ///
    /// # Errors
    /// If several have that name: what was put into one of them must not be looked for in another (rule 23).
    pub fn find(&self, name: &str) -> Result<Option<Arc<Bucket>>, Contested> {
        let present = self.present.load();
        let id = match name.strip_prefix('@') {
            Some(hex) => hex.parse().ok(),
            None => match present.names.get(name) {
                Some(ids) if ids.len() > 1 => return Err(Contested { name: name.to_owned(), ids: ids.clone() }),
                ids => ids.and_then(BTreeSet::first).copied(),
            },
        };
        Ok(id.and_then(|id| present.buckets.get(&id).cloned()))
    }

    /// Another bucket of that name.
    pub fn other_named(&self, name: &str, than: &BucketId) -> Option<BucketId> {
        self.present.load().names.get(name)?.iter().copied().find(|id| id != than)
    }

    /// A bucket by id.
    pub fn get(&self, id: &BucketId) -> Option<Arc<Bucket>> {
        self.present.load().buckets.get(id).cloned()
    }

    /// Whether a bucket takes no new versions: closed or removed.
    pub fn takes_nothing(&self, id: &BucketId) -> bool {
        let present = self.present.load();
        present.removed.contains(id) || present.buckets.get(id).is_some_and(|bucket| bucket.is_closed())
    }

    /// Whether nothing is known of a bucket: neither its creation nor its end has arrived.
    pub fn is_unknown(&self, id: &BucketId) -> bool {
        let present = self.present.load();
        *id != BucketId::SYSTEM && !present.buckets.contains_key(id) && !present.removed.contains(id)
    }

    /// Replaces everything by what these records and this physics amount to.
    pub fn rebuild(&self, records: &[Record], refuted: &BTreeSet<(SiteIndex, SiteIndex)>) {
        self.present.store(Arc::new(fold(&self.layouts.open(), records, refuted)));
    }
}

/// When a bucket was closed and opened.
#[derive(Debug, Default)]
struct Door {
    closed: BTreeSet<Stamp>,
    opened: BTreeSet<Stamp>,
}

impl Door {
    /// An opening undoes the one closing whose stamp is right before its own: what another has closed stays closed, for he may
    /// have looked into it and be about to remove it. An opening of no closing in particular is of an earlier program, and undoes
    /// all that are older.
    fn in_force(&self) -> Vec<Stamp> {
        let of_all = self.opened.iter().rev().find(|opened| !self.closed.iter().any(|closed| closed.next() == **opened));
        let undone = |closed: &Stamp| self.opened.contains(&closed.next()) || of_all.is_some_and(|opened| opened > closed);
        self.closed.iter().filter(|closed| !undone(closed)).copied().collect()
    }
}

/// Pure: the order of the records does not matter, and what cannot be read is left out with a warning.
fn fold(open: &Open, records: &[Record], refuted: &BTreeSet<(SiteIndex, SiteIndex)>) -> Settings {
    let mut settings = Settings::default();
    let mut keys: BTreeMap<String, StoredKey> = BTreeMap::new();
    let (mut removed, mut revoked) = (BTreeSet::new(), BTreeSet::new());
    let mut renamed: BTreeMap<BucketId, (Stamp, String)> = BTreeMap::new();
    let mut doors: BTreeMap<BucketId, Door> = BTreeMap::new();
    for record in records {
        match Setting::decode(record.body()) {
            Ok(Setting::BucketCreated { name, policy, shards, stamp }) => {
                let id = BucketId::from(record.id());
                if let Some(bucket) = Bucket::new((id, name, shards, stamp), &policy, open, refuted) {
                    settings.buckets.insert(id, Arc::new(bucket));
                }
            }
            Ok(Setting::BucketRemoved { bucket, .. }) => {
                removed.insert(bucket);
            }
            Ok(Setting::BucketClosed { bucket, stamp }) => {
                doors.entry(bucket).or_default().closed.insert(stamp);
            }
            Ok(Setting::BucketOpened { bucket, stamp }) => {
                doors.entry(bucket).or_default().opened.insert(stamp);
            }
            Ok(Setting::BucketRenamed { bucket, name, stamp }) => {
                let latest = renamed.entry(bucket).or_default();
                *latest = std::mem::take(latest).max((stamp, name));
            }
            Ok(Setting::KeyCreated { access_key_id, name, sealed_secret, grants, stamp }) => {
                keys.insert(access_key_id.clone(), StoredKey { access_key_id, name, sealed_secret, grants, created: stamp });
            }
            Ok(Setting::KeyRevoked { access_key_id, .. }) => {
                revoked.insert(access_key_id);
            }
            Err(error) => tracing::warn!(record = ?record.id(), %error, "a setting cannot be read and is left out"),
        }
    }
    settings.buckets.retain(|id, _| !removed.contains(id));
    for (id, door) in doors {
        if let Some(bucket) = settings.buckets.get_mut(&id) {
            Arc::make_mut(bucket).closings = door.in_force();
        }
    }
    for (id, (_, name)) in renamed {
        if let Some(bucket) = settings.buckets.get_mut(&id) {
            Arc::make_mut(bucket).name = name;
        }
    }
    for (id, bucket) in &settings.buckets {
        settings.names.entry(bucket.name.clone()).or_default().insert(*id);
    }
    settings.removed = removed;
    keys.retain(|id, _| !revoked.contains(id));
    settings.keys = keys.into_values().collect();
    settings
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::{
        document::{Chapter, Document},
        geo::Coordinates,
        layout::examples,
        record::RecordKind,
        units::UnixMillis,
    };

    fn record(setting: &Setting) -> Record {
        Record::new(RecordKind::Setting, BucketId::SYSTEM, setting.encode())
    }

    fn bucket(name: &str, stamp: u64) -> Record {
        record(&Setting::BucketCreated { name: name.into(), policy: Policy::default(), shards: 16, stamp: Stamp::from_u64(stamp) })
    }

    /// What these settings amount to, in whichever order they come.
    fn each_way(records: &[Record], check: impl Fn(&BucketTable)) {
        let folder = tempfile::tempdir().unwrap();
        let genesis = Chapter::genesis("test", examples::three_sites().unwrap(), Vec::new());
        let table = BucketTable::new(Arc::new(Layouts::load(folder.path(), "test", genesis, Vec::new()).unwrap()));
        for turn in 0..records.len() {
            let mut turned = records.to_vec();
            turned.rotate_left(turn);
            for records in [turned.clone(), turned.into_iter().rev().collect()] {
                table.rebuild(&records, &BTreeSet::new());
                check(&table);
            }
        }
    }

    fn called(bucket: &Record, name: &str, stamp: u64) -> Record {
        record(&Setting::BucketRenamed { bucket: bucket.id().into(), name: name.into(), stamp: Stamp::from_u64(stamp) })
    }

    #[test]
    fn rule_23_a_name_of_two_buckets_means_neither_until_one_is_removed_or_renamed() {
        let (old, new) = (bucket("a", 1), bucket("a", 2));
        let ids = BTreeSet::from([BucketId::from(old.id()), BucketId::from(new.id())]);
        let gone = bucket("b", 3);
        let removal = |bucket: &Record| record(&Setting::BucketRemoved { bucket: bucket.id().into(), stamp: Stamp::from_u64(4) });
        let found = |table: &BucketTable, name: &str| table.find(name).unwrap().map(|bucket| bucket.id);
        each_way(&[old.clone(), new.clone(), gone.clone(), removal(&gone)], |table| {
            assert_eq!(table.find("a").unwrap_err(), Contested { name: "a".into(), ids: ids.clone() });
            assert_eq!(table.present().contested().collect::<Vec<_>>(), ["a"]);
            assert_eq!(found(table, "b"), None);
            assert_eq!(found(table, &format!("@{}", old.id())), Some(old.id().into()), "its id means one of them");
            assert_eq!(table.other_named("a", &old.id().into()), Some(new.id().into()));
        });
        each_way(&[old.clone(), new.clone(), removal(&old)], |table| assert_eq!(found(table, "a"), Some(new.id().into())));
        each_way(&[old.clone(), new.clone(), called(&new, "c", 5), called(&new, "d", 6)], |table| {
            assert_eq!((found(table, "a"), found(table, "c"), found(table, "d")), (Some(old.id().into()), None, Some(new.id().into())));
        });
        // A name that is given up is free again.
        each_way(&[old.clone(), called(&old, "c", 5), new.clone()], |table| {
            assert_eq!((found(table, "a"), found(table, "c")), (Some(new.id().into()), Some(old.id().into())));
        });
    }

    #[test]
    fn rule_23_what_has_ended_does_not_begin_again() {
        let of = |setting: fn(String, Stamp) -> Setting, stamp| record(&setting("AFAR1".into(), Stamp::from_u64(stamp)));
        let made = |access_key_id, stamp| Setting::KeyCreated {
            access_key_id,
            name: "k".into(),
            sealed_secret: Vec::new(),
            grants: Vec::new(),
            stamp,
        };
        let revoked = |access_key_id, stamp| Setting::KeyRevoked { access_key_id, stamp };
        each_way(&[of(made, 1), of(revoked, 2), of(made, 3)], |table| assert!(table.present().keys.is_empty()));
        let bucket = bucket("a", 1);
        let removed = record(&Setting::BucketRemoved { bucket: bucket.id().into(), stamp: Stamp::from_u64(2) });
        each_way(&[bucket.clone(), removed, called(&bucket, "b", 9)], |table| assert!(table.present().names.is_empty()));
    }

    #[test]
    fn rule_23_who_opens_a_bucket_leaves_closed_what_another_has_closed() {
        let bucket = bucket("a", 1);
        let id = BucketId::from(bucket.id());
        let closed = |stamp| record(&Setting::BucketClosed { bucket: id, stamp: Stamp::from_u64(stamp) });
        let opened = |stamp| record(&Setting::BucketOpened { bucket: id, stamp: Stamp::from_u64(stamp) });
        let is = |records: &[Record], expected: bool| {
            let records: Vec<Record> = records.iter().chain([&bucket]).cloned().collect();
            each_way(&records, |table| {
                assert_eq!(table.takes_nothing(&id), expected, "{records:?}");
                assert_eq!(table.get(&id).unwrap().is_closed(), expected);
            });
        };
        is(&[closed(5)], true);
        is(&[closed(5), opened(6)], false);
        // Its maker opens it while somebody is about to remove it, whoever has the faster clock.
        is(&[closed(5), opened(6), closed(3)], true);
        is(&[closed(5), opened(6), closed(9)], true);
        is(&[closed(5), opened(6), closed(9), opened(10)], false);
        // By programs that opened whatever was closed.
        is(&[closed(5), opened(9)], false);
        is(&[closed(5), opened(9), closed(12)], true);
    }

    const STRASBOURG: NodeIndex = NodeIndex(0);
    const ROUBAIX: NodeIndex = NodeIndex(1);
    const WARSAW: NodeIndex = NodeIndex(2);
    /// Only the newer layout names it.
    const MADRID: NodeIndex = NodeIndex(3);

    /// A bucket while the demo's layout is replaced by one with Madrid, in which Warsaw has that duty, and for which `promise` is
    /// made if there is one.
    fn in_transition(warsaw: Duty, all_drained: bool, policy: &Policy, promise: Option<Policy>) -> Bucket {
        let older = Chapter::genesis("test", examples::three_sites().unwrap(), vec![[1; 32]]);
        let mut document = Document::child_of(&older, UnixMillis(1), "madrid");
        let (mut site, mut node) = (document.sites[0].clone(), document.nodes[0].clone());
        (site.name, site.country, site.coordinates) = ("madrid".into(), "ES".into(), Coordinates::new(40.4168, -3.7038).unwrap());
        (node.name, node.site, node.endpoint) = ("madrid".into(), "madrid".into(), "https://madrid:7700".into());
        (document.nodes[2].duty, document.sites[2].duty) = (warsaw, warsaw);
        document.sites.push(site);
        document.nodes.push(node);
        if let Some(promise) = promise {
            document.promise(BucketId::ZERO, promise);
        }
        let newer = Chapter { layout: Arc::new(document.layout([2; 32]).unwrap()), document };
        let named = (BucketId::ZERO, "b".to_owned(), 16, Stamp::ZERO);
        Bucket::new(named, policy, &Open::new(vec![Arc::new(older), Arc::new(newer)], all_drained), &BTreeSet::new()).unwrap()
    }

    fn removed(all_drained: bool) -> Bucket {
        in_transition(Duty::Removed, all_drained, &Policy::default(), None)
    }

    #[test]
    fn rule_21_a_write_reaches_its_level_under_every_open_layout_until_all_are_drained() {
        let reached = |bucket: &Bucket, nodes: &[NodeIndex]| bucket.reached(&BTreeSet::new(), nodes);
        let bucket = removed(false);
        // Far by the older layout alone, by the newer alone, and by both.
        assert!(reached(&bucket, &[STRASBOURG, WARSAW]) < Some(Durability::Far), "the newer does not know Warsaw");
        assert!(reached(&bucket, &[STRASBOURG, MADRID]) < Some(Durability::Far), "the older does not know Madrid");
        assert!(reached(&bucket, &[STRASBOURG, WARSAW, MADRID]) >= Some(Durability::Far));
        let bucket = removed(true);
        assert!(reached(&bucket, &[STRASBOURG, MADRID]) >= Some(Durability::Far), "the newer alone counts");
        assert!(reached(&bucket, &[STRASBOURG, WARSAW]) < Some(Durability::Far));
    }

    #[test]
    fn rule_21_reads_ask_by_every_open_layout_and_nobody_who_is_lost() {
        for all_drained in [false, true] {
            let bucket = removed(all_drained);
            assert!(!bucket.covers(&[ROUBAIX, MADRID]), "Strasbourg and Warsaw may have acknowledged by the older one");
            assert!(!bucket.covers(&[WARSAW]), "Strasbourg and Madrid may have acknowledged by the newer one");
            assert!(bucket.covers(&[ROUBAIX, MADRID, WARSAW]));
            let asked = bucket.to_ask(&[ROUBAIX, MADRID, STRASBOURG, WARSAW]).unwrap();
            assert!(bucket.covers(&asked), "{asked:?}");
            assert!(bucket.eligible().contains(&WARSAW) && bucket.eligible().contains(&MADRID), "either may hold something");
        }
        let bucket = in_transition(Duty::Lost, false, &Policy::default(), None);
        assert!(!bucket.covers(&[ROUBAIX, MADRID]), "Strasbourg may have acknowledged with Warsaw, before that was lost (rule 3)");
        assert!(bucket.covers(&[STRASBOURG, ROUBAIX, MADRID]), "nobody waits for Warsaw");
        assert!(!bucket.eligible().contains(&WARSAW));
    }

    #[test]
    fn rule_21_records_go_to_whom_any_open_layout_assigns_them_until_all_are_drained() {
        let partitions = || (0..64).map(Partition);
        let (open, drained) = (removed(false), removed(true));
        let at = |nodes: Vec<NodeIndex>, node: NodeIndex| nodes.contains(&node);
        assert!(partitions().any(|p| at(open.targets(p), WARSAW) && at(open.targets(p), MADRID)), "both are written to");
        for partition in partitions() {
            let both = open.assigned_by_any(partition);
            assert!(open.views().all(|view| view.assigned(partition).iter().all(|node| both.contains(node))));
            assert_eq!(open.targets(partition), both);
            assert_eq!(drained.targets(partition), drained.assigned(partition));
            assert_eq!(drained.assigned_by_any(partition), both, "what was written before is believed to be where it was");
        }
        let lost = in_transition(Duty::Lost, false, &Policy::default(), None);
        assert!(partitions().all(|p| !at(lost.assigned_by_any(p), WARSAW)), "nobody writes to what is lost");
    }

    #[test]
    fn rule_21_the_stricter_promise_counts_until_all_are_drained() {
        let strict = Policy { level: Durability::Full, ..Policy::default() };
        let queueing = Policy { degraded_writes: DegradedWrites::Queue, ..Policy::default() };
        let promised =
            |policy: &Policy, promise: &Policy, all_drained| in_transition(Duty::Active, all_drained, policy, Some(promise.clone()));
        assert_eq!(
            promised(&strict, &Policy::default(), false).level(),
            Durability::Full,
            "raised is kept until it is taken back everywhere"
        );
        assert_eq!(promised(&Policy::default(), &strict, false).level(), Durability::Full);
        assert_eq!(promised(&strict, &Policy::default(), true).level(), Durability::Far);
        for (policy, promise) in [(&queueing, &Policy::default()), (&Policy::default(), &queueing)] {
            assert!(!promised(policy, promise, false).queues(), "one of the two does not queue");
        }
        assert!(promised(&queueing, &queueing, false).queues());
        assert!(promised(&Policy::default(), &queueing, true).queues());
        let both = promised(&queueing, &queueing, false);
        assert!(both.may_queue(STRASBOURG) && !both.may_queue(MADRID), "Madrid is nobody under the older one");
    }
}
