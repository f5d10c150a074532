//! The buckets that this node knows: a view of the settings in its log. Every node holds every setting, so this is
//! local and complete up to what anti-entropy still brings.
use crate::cluster::keyring::StoredKey;
use afar_model::{
    hlc::Stamp,
    id::BucketId,
    layout::{Layout, NodeIndex, SiteIndex},
    placement::{Geography, Infeasible, Partition, Placement},
    policy::Policy,
    record::{Record, Setting},
};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// A bucket, and what follows from its policy for the present layout.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The id of its creation record.
    pub id: BucketId,
    /// What people call it.
    pub name: String,
    /// How its data are kept.
    pub policy: Policy,
    /// Over how many shards its versions are spread.
    pub shards: u16,
    /// When it was made.
    pub created: Stamp,
    /// It takes no new versions: it is about to be removed.
    pub closed: bool,
    /// Where its data go; or why nowhere.
    pub placement: Result<Arc<Placement>, Infeasible>,
    partitions: u32,
}

impl Bucket {
    /// The partition of a key's versions.
    pub fn version_partition(&self, key: &str) -> Partition {
        Partition::of_version(&self.id, key, self.shards, self.partitions)
    }

    /// The nodes that a partition is assigned to; none if the policy cannot be met.
    pub fn assigned(&self, layout: &Layout, partition: Partition) -> Vec<NodeIndex> {
        self.placement.as_ref().map_or_else(|_| Vec::new(), |placement| placement.assigned(&self.policy, layout, partition))
    }

    /// The nodes that may hold a copy.
    ///
    /// Where the policy cannot be met at present, all nodes: what was acknowledged under another layout may be anywhere.
    pub fn eligible(&self, layout: &Layout) -> Vec<NodeIndex> {
        self.placement.as_ref().map_or_else(|_| layout.node_indexes().collect(), |placement| placement.eligible().to_vec())
    }
}

/// What the settings amount to.
#[derive(Debug, Default)]
pub struct Settings {
    /// Every live bucket.
    pub buckets: HashMap<BucketId, Arc<Bucket>>,
    /// Names point to buckets: of two with one name, to the one that was created first.
    pub names: BTreeMap<String, BucketId>,
    /// Every live access key.
    pub keys: Vec<StoredKey>,
    /// Names that two live buckets claim.
    pub conflicts: BTreeSet<String>,
    /// Buckets that were removed: known, unlike one whose creation has not arrived yet.
    pub removed: BTreeSet<BucketId>,
}

/// The present [`Settings`], replaced as a whole whenever a setting arrives.
#[derive(Debug)]
pub struct BucketTable {
    layout: Arc<Layout>,
    present: ArcSwap<Settings>,
}

impl BucketTable {
    /// Without settings yet.
    pub fn new(layout: Arc<Layout>) -> Self {
        Self { layout, present: ArcSwap::default() }
    }

    /// What is known now.
    pub fn present(&self) -> Arc<Settings> {
        self.present.load_full()
    }

    /// A bucket by name, or by `@` and its id in hex.
    pub fn find(&self, name: &str) -> Option<Arc<Bucket>> {
        let present = self.present.load();
        let id = match name.strip_prefix('@') {
            Some(hex) => hex.parse().ok()?,
            None => *present.names.get(name)?,
        };
        present.buckets.get(&id).cloned()
    }

    /// A bucket by id.
    pub fn get(&self, id: &BucketId) -> Option<Arc<Bucket>> {
        self.present.load().buckets.get(id).cloned()
    }

    /// Whether a bucket takes no new versions: closed or removed.
    pub fn takes_nothing(&self, id: &BucketId) -> bool {
        let present = self.present.load();
        present.removed.contains(id) || present.buckets.get(id).is_some_and(|bucket| bucket.closed)
    }

    /// Whether nothing is known of a bucket: neither its creation nor its end has arrived.
    pub fn is_unknown(&self, id: &BucketId) -> bool {
        let present = self.present.load();
        *id != BucketId::SYSTEM && !present.buckets.contains_key(id) && !present.removed.contains(id)
    }

    /// Replaces everything by what these records and this physics amount to.
    pub fn rebuild(&self, records: &[Record], refuted: &BTreeSet<(SiteIndex, SiteIndex)>) {
        self.present.store(Arc::new(fold(&self.layout, records, refuted)));
    }
}

/// Pure: the order of the records does not matter, and what cannot be read is left out with a warning.
fn fold(layout: &Layout, records: &[Record], refuted: &BTreeSet<(SiteIndex, SiteIndex)>) -> Settings {
    let geography = Geography { layout, refuted };
    let mut settings = Settings::default();
    let mut keys: BTreeMap<String, StoredKey> = BTreeMap::new();
    let (mut removed, mut revoked) = (BTreeSet::new(), BTreeSet::new());
    // Of closing and opening the later counts.
    let mut doors: BTreeMap<BucketId, (Stamp, bool)> = BTreeMap::new();
    let mut turn = |bucket, stamp, closed| {
        let door = doors.entry(bucket).or_default();
        *door = (*door).max((stamp, closed));
    };
    for record in records {
        match Setting::decode(record.body()) {
            Ok(Setting::BucketCreated { name, policy, shards, stamp }) => {
                let id = BucketId::from(record.id());
                let placement = Placement::new(&policy, &geography).map(Arc::new);
                let bucket = Bucket { id, name, policy, shards, created: stamp, closed: false, placement, partitions: layout.partitions() };
                settings.buckets.insert(id, Arc::new(bucket));
            }
            Ok(Setting::BucketRemoved { bucket, .. }) => {
                removed.insert(bucket);
            }
            Ok(Setting::BucketClosed { bucket, stamp }) => turn(bucket, stamp, true),
            Ok(Setting::BucketOpened { bucket, stamp }) => turn(bucket, stamp, false),
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
    for (id, _) in doors.into_iter().filter(|(_, (_, closed))| *closed) {
        if let Some(bucket) = settings.buckets.get_mut(&id) {
            Arc::make_mut(bucket).closed = true;
        }
    }
    settings.removed = removed;
    keys.retain(|id, _| !revoked.contains(id));
    settings.keys = keys.into_values().collect();
    name_buckets(&mut settings);
    settings
}

fn name_buckets(settings: &mut Settings) {
    for bucket in settings.buckets.values() {
        match settings.names.get(&bucket.name).and_then(|id| settings.buckets.get(id)) {
            Some(other) => {
                settings.conflicts.insert(bucket.name.clone());
                if (bucket.created, bucket.id) < (other.created, other.id) {
                    settings.names.insert(bucket.name.clone(), bucket.id);
                }
            }
            None => {
                settings.names.insert(bucket.name.clone(), bucket.id);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::{layout::examples, record::RecordKind};

    fn record(setting: &Setting) -> Record {
        Record::new(RecordKind::Setting, BucketId::SYSTEM, setting.encode())
    }

    fn bucket(name: &str, stamp: u64) -> Record {
        record(&Setting::BucketCreated { name: name.into(), policy: Policy::default(), shards: 16, stamp: Stamp::from_u64(stamp) })
    }

    #[test]
    fn settings_fold_in_any_order() {
        let table = BucketTable::new(Arc::new(examples::three_sites().unwrap()));
        let (old, new) = (bucket("a", 1), bucket("a", 2));
        let gone = bucket("b", 3);
        let removal = record(&Setting::BucketRemoved { bucket: gone.id().into(), stamp: Stamp::from_u64(4) });
        for records in [vec![old.clone(), new.clone(), gone.clone(), removal.clone()], vec![removal, gone, new, old.clone()]] {
            table.rebuild(&records, &BTreeSet::new());
            assert_eq!(table.find("a").unwrap().id, BucketId::from(old.id()), "the first to be created has the name");
            assert!(table.present().conflicts.contains("a"));
            assert!(table.find("b").is_none());
            assert_eq!(table.find(&format!("@{}", old.id())).unwrap().name, "a");
        }
    }
}
