//! On whom this node may rely now, itself included: who can store, whose answers prove an absence, who is owed what.
//!
//! A node that lost something (a disk, a range of its log, everything, because it is a replacement) is *behind*: it stores
//! and serves what it has, but its "I have nothing" proves nothing until it has compared itself with every other node of
//! the layout (rule 3; see also [`crate::cluster::replaced`]). That is remembered on disk, so that a restart in the middle does not make it forget.
use crate::{
    files,
    node::Node,
    objects::{ObjectError, buckets::Bucket},
};
use afar_model::{
    hlc::Stamp,
    id::BucketId,
    layout::{Layout, NodeIndex},
    placement::Partition,
    policy::Policy,
    record::{Record, RecordKey, RecordKind, Version},
    units::UnixMillis,
};
use afar_store::Removal;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

/// The name of the file that says that this node is behind.
const BEHIND: &str = "catching_up";
/// What stands in it if there was nothing to lose.
const BEGAN_EMPTY: &[u8] = b"this node began with empty disks, and has not compared itself with every other node since\n";

/// Whether this node is behind, and with whom it has compared itself since.
#[derive(Debug)]
pub struct Reliance {
    marker: PathBuf,
    behind: AtomicBool,
    began_empty: AtomicBool,
    /// Losses so far: a comparison that began before one does not make up for it.
    epoch: AtomicU64,
    /// Up to which count the log's losses have been taken note of.
    noted: AtomicU64,
    compared: Mutex<BTreeSet<NodeIndex>>,
    pokes: watch::Sender<u64>,
    reload: tokio::sync::Mutex<()>,
}

impl Reliance {
    /// As the marker of an earlier run says, or as opening the log has found (`lost`, and `new_disks` if there was nothing at all).
    /// The marker is durable before this returns.
    ///
    /// # Errors
    /// If the marker cannot be written: then nothing may be served.
    pub fn open(state: &std::path::Path, lost: bool, new_disks: bool) -> std::io::Result<Self> {
        let marker = state.join(BEHIND);
        if lost {
            let why = if new_disks { BEGAN_EMPTY } else { b"this node has not compared itself with every other node since it lost data\n" };
            files::replace(&marker, why, 0o644)?;
        }
        let began_empty = AtomicBool::new(std::fs::read(&marker).is_ok_and(|why| why == BEGAN_EMPTY));
        let behind = AtomicBool::new(marker.exists());
        let compared = Mutex::default();
        Ok(Self {
            marker,
            behind,
            began_empty,
            epoch: AtomicU64::new(0),
            noted: AtomicU64::new(0),
            compared,
            pokes: watch::Sender::new(0),
            reload: tokio::sync::Mutex::default(),
        })
    }

    /// Whether this node was empty when it became behind, as far as it still is.
    pub fn began_empty(&self) -> bool {
        self.began_empty.load(Ordering::Acquire)
    }
}

impl Node {
    /// The wall clock.
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// A stamp greater than all before it.
    pub fn tick(&self) -> Stamp {
        self.clock.tick()
    }

    /// Learns of a stamp made elsewhere.
    pub fn observe(&self, stamp: Stamp) {
        self.clock.observe(stamp);
    }

    /// Why this node refuses writes: its clock is off (rule 4).
    pub fn clock_trouble(&self) -> Option<String> {
        self.peers.clock_trouble()
    }

    /// The policy of buckets that are made without one.
    pub fn default_policy(&self) -> Policy {
        self.config.policy.clone()
    }

    /// A bucket by name, or by `@` and its id.
    ///
    /// # Errors
    /// If there is none, or several have that name.
    pub fn bucket(&self, name: &str) -> Result<Arc<Bucket>, ObjectError> {
        self.buckets.find(name)?.ok_or_else(|| {
            if self.is_catching_up() {
                // Settings may not have arrived yet: their absence proves nothing either (rule 3).
                return ObjectError::unavailable("this node is catching up and cannot tell yet which buckets there are");
            }
            ObjectError::NoSuchBucket(name.chars().take(80).collect())
        })
    }

    /// Whether a node takes new records now. This node finds out when it tries.
    pub fn can_store(&self, node: NodeIndex) -> bool {
        node == self.me || (self.peers.usable(node) && self.peers.view(node).is_some_and(|view| !view.read_only && !view.draining))
    }

    /// Whether a node's answers about what is there count.
    pub fn answers(&self, node: NodeIndex) -> bool {
        if node == self.me {
            return !self.is_catching_up();
        }
        self.peers.usable(node) && self.peers.view(node).is_some_and(|view| !view.catching_up)
    }

    /// Why none of these nodes can be relied on, in words.
    pub fn why_unusable(&self, nodes: &[NodeIndex]) -> String {
        let why = |node: &NodeIndex| {
            if *node == self.me {
                return if self.is_catching_up() { "catching up".to_owned() } else { "failed during this write".to_owned() };
            }
            match self.peers.view(*node) {
                None => "unknown".to_owned(),
                Some(view) if !view.trouble.is_empty() => view.trouble,
                Some(view) if view.read_only => "read-only".to_owned(),
                Some(view) if view.draining => "shutting down".to_owned(),
                Some(view) if view.catching_up => "catching up".to_owned(),
                Some(view) if view.usable => "failed during this write".to_owned(),
                Some(view) => view.state.name().to_owned(),
            }
        };
        nodes.iter().map(why).collect::<Vec<_>>().join(", ")
    }

    /// Whether this node's answers prove no absence. To be asked *after* the views were read: the log counts a loss before
    /// what was lost leaves them.
    pub fn is_catching_up(&self) -> bool {
        self.note_losses();
        // Refused by a peer that remembers more of our log than there is: whatever was forgotten, absence here proves nothing.
        self.reliance.behind.load(Ordering::Acquire) || self.peers.is_stale()
    }

    fn note_losses(&self) {
        let lost = self.store.losses_counted();
        let unnoted = lost > self.reliance.noted.fetch_max(lost, Ordering::AcqRel);
        if unnoted || self.peers.was_superseded() {
            self.note_loss();
        }
    }

    /// Something that this node should have is gone: it is behind until it has compared itself with everybody.
    pub fn note_loss(&self) {
        self.reliance.epoch.fetch_add(1, Ordering::AcqRel);
        self.reliance.compared.lock().clear();
        self.layouts.note_loss();
        let first = !self.reliance.behind.swap(true, Ordering::AcqRel);
        if first && let Err(error) = files::replace(&self.reliance.marker, b"this node has lost something that it acknowledged\n", 0o644) {
            tracing::error!(%error, "cannot remember that this node is behind");
        }
        self.begin_alone();
        self.poke();
    }

    /// How many losses there were: a comparison makes up for those before it.
    pub fn loss_epoch(&self) -> u64 {
        self.note_losses();
        self.reliance.epoch.load(Ordering::Acquire)
    }

    /// A comparison with a peer is complete, and everything that it has for this node is here. `epoch`: when it began.
    pub fn compared_with(&self, peer: NodeIndex, epoch: u64) {
        self.note_losses();
        let mut compared = self.reliance.compared.lock();
        if epoch != self.reliance.epoch.load(Ordering::Acquire) {
            return;
        }
        compared.insert(peer);
        // Who took another's place has what there is, which may be less than there was.
        let told = |other: NodeIndex| compared.contains(&other) && !self.peers.is_replacement_behind(other);
        if self.reliance.behind.load(Ordering::Acquire) && self.peers.others().all(told) {
            match files::remove(&self.reliance.marker) {
                Ok(()) => {
                    self.reliance.behind.store(false, Ordering::Release);
                    self.reliance.began_empty.store(false, Ordering::Release);
                    tracing::info!("caught up: this node has everything that it is assigned");
                }
                Err(error) => tracing::error!(%error, "cannot remember that this node has caught up"),
            }
        }
    }

    /// Who holds all of a settled version that is theirs: whoever else is assigned it lacks something, and is not believed to be
    /// safe. `lacking`: who is assigned something of it and lacks that.
    pub fn note_holders(&self, version: RecordKey, key: &str, holders: &[NodeIndex], lacking: &[NodeIndex]) {
        let Some(bucket) = self.buckets.get(&version.bucket) else { return };
        let assigned = bucket.assigned_by_any(bucket.version_partition(key));
        let others = assigned.iter().filter(|n| !holders.contains(n));
        for lacking in others.chain(lacking).filter(|n| **n != self.me) {
            self.ledger.lacks(*lacking, [version]);
        }
        for stand_in in holders.iter().filter(|n| **n != self.me && !assigned.contains(n)) {
            self.ledger.stands_in(*stand_in, version);
        }
    }

    /// A node without peers has nobody to compare itself with.
    pub fn begin_alone(&self) {
        if self.peers.others().next().is_none() {
            self.reliance.behind.store(false, Ordering::Release);
        }
    }

    /// Something happened: compare soon.
    pub fn poke(&self) {
        self.reliance.pokes.send_modify(|pokes| *pokes += 1);
    }

    /// Changes when something happened.
    pub fn pokes(&self) -> watch::Receiver<u64> {
        self.reliance.pokes.subscribe()
    }

    /// Whether the peer's disks are others than those that held what it was assigned before.
    pub fn was_replaced(&self, peer: NodeIndex) -> bool {
        self.peers
            .view(peer)
            .is_some_and(|view| view.catching_up || view.incarnation_changes > 0 && self.ledger.compared_at(peer).is_none())
    }

    /// Whether every byte here was hashed within the scrub's bound.
    pub fn is_scrubbed(&self) -> bool {
        self.store.oldest_unverified().is_none_or(|oldest| self.now().since(oldest) <= afar_model::limits::SCRUB_WITHIN)
    }

    /// Whether the current layout assigns a record that is placed in this partition to a node; settings are everybody's.
    pub fn is_assigned(&self, node: NodeIndex, key: &RecordKey, partition: Partition) -> bool {
        key.bucket == BucketId::SYSTEM || self.buckets.get(&key.bucket).is_some_and(|bucket| bucket.assigned(partition).contains(&node))
    }

    /// Whether any open layout does: then the node is believed to hold it unless the ledger knows better.
    pub fn is_assigned_by_any(&self, node: NodeIndex, key: &RecordKey, partition: Partition) -> bool {
        key.bucket == BucketId::SYSTEM
            || self.buckets.get(&key.bucket).is_some_and(|bucket| bucket.assigned_by_any(partition).contains(&node))
    }

    /// The current layout.
    pub fn layout(&self) -> Arc<Layout> {
        self.layouts.current()
    }

    /// Versions of the open layouts, oldest first (rule 21).
    pub fn open_versions(&self) -> Vec<u64> {
        self.layouts.open().layouts().map(|layout| layout.version()).collect()
    }

    /// Their hashes, in the same order, as they are sent.
    pub fn open_layouts(&self) -> Vec<bytes::Bytes> {
        self.layouts.open().hashes().map(|hash| bytes::Bytes::copy_from_slice(hash)).collect()
    }

    /// Returns when the current layout waits for a peer no longer.
    pub async fn leaves(&self, peer: NodeIndex) {
        let mut changes = self.layouts.changes();
        while self.layout().duty(peer).is_member() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// A peer writes by a layout that is not open here, or the reverse: one of the two fetches it at once.
    pub fn layouts_differ(&self, peer: NodeIndex) {
        self.peers.poke(peer);
    }

    /// What must follow when records have become durable here.
    pub fn after_storing<'a>(self: &Arc<Self>, records: impl Iterator<Item = &'a Record>) {
        let (mut settings, mut stored) = (false, Vec::new());
        for record in records {
            stored.push(record.key());
            match record.kind() {
                RecordKind::Setting => settings = true,
                RecordKind::Version => {
                    if let Ok((version, _)) = Version::decode_description(record.body()) {
                        self.observe(version.stamp);
                    }
                }
                RecordKind::Chunk | RecordKind::Manifest => {}
            }
        }
        self.ledger.own_missing_clear(stored);
        if settings {
            let node = Arc::clone(self);
            self.lifecycle.spawn_brief("settings", async move { node.reload_settings().await });
        }
    }

    /// Reads all settings again: buckets and access keys.
    pub async fn reload_settings(self: &Arc<Self>) {
        // One at a time, so that an older reading never replaces a newer one.
        let _one = self.reliance.reload.lock().await;
        let reader = Arc::clone(self);
        let read = move || {
            let records = reader.store.settings();
            reader.buckets.rebuild(&records, &reader.peers.refuted());
            for (key, error) in reader.keyring.replace(reader.buckets.present().keys.clone()) {
                tracing::error!(access_key_id = key, %error, "an access key cannot be used");
            }
        };
        self.lifecycle.blocking("settings", read).await;
    }

    /// Removes a prepared version that its own put has replaced; one that somebody has settled meanwhile stays.
    pub async fn discard(&self, key: RecordKey, name: &str, stamp: Stamp) {
        let found = self.store.version(&key.bucket, name, stamp, key.id).ok().flatten();
        if found.is_some_and(|entry| !entry.settled)
            && let Err(error) = self.store.remove(vec![key], Removal::Discarded).await
        {
            tracing::warn!(%error, "a version that was replaced before it counted stays");
        }
    }
}
