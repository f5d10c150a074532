//! On whom this node may rely now, itself included: who can store, whose answers prove an absence, who is owed what.
//!
//! A node that lost something (a disk, a range of its log, everything, because it is a replacement) is *behind*: it stores
//! and serves what it has, but its "I have nothing" proves nothing until it has compared itself with every other node of
//! the layout (rule 3; see also [`crate::cluster::replaced`]). That is remembered on disk, so that a restart in the middle does not make it forget.
use crate::{
    files, limits,
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
use afar_store::{AppendClass, AppendError, CommitError, Durable, Removal};
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
    reload: Arc<tokio::sync::Mutex<()>>,
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
            files::replace(&marker, why, 0o600)?;
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
            reload: Arc::default(),
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
        if first && let Err(error) = files::replace(&self.reliance.marker, b"this node has lost something that it acknowledged\n", 0o600) {
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

    /// Makes records durable here, and does what follows from it. To the end: whoever waits may be dropped between the two, and
    /// what is here and not known to be here would stay so until a restart.
    ///
    /// # Errors
    /// As [`afar_store::Store::commit`].
    pub async fn keep(self: &Arc<Self>, class: AppendClass, records: Vec<Record>) -> Result<Vec<Durable>, CommitError> {
        let node = Arc::clone(self);
        let kept = self.lifecycle.to_the_end("keep", async move {
            let durable = node.store.commit(class, records.clone()).await?;
            node.after_storing(&records).await;
            Ok(durable)
        });
        kept.await.unwrap_or_else(|| Err(AppendError::Closed.into()))
    }

    async fn after_storing(self: &Arc<Self>, records: &[Record]) {
        for record in records.iter().filter(|record| record.kind() == RecordKind::Version) {
            if let Ok((version, _)) = Version::decode_description(record.body()) {
                self.observe(version.stamp);
            }
        }
        self.ledger.own_missing_clear(records.iter().map(Record::key));
        if records.iter().any(|record| record.kind() == RecordKind::Setting) {
            // A bucket that is closed or gone must be so before anybody is told.
            self.reload_settings().await;
        }
    }

    /// Reads all settings again: buckets and access keys.
    pub async fn reload_settings(self: &Arc<Self>) {
        // One at a time, so that an older reading never replaces a newer one; held by the reading itself, which goes on if whoever
        // waits for it is dropped.
        let one = Arc::clone(&self.reliance.reload).lock_owned().await;
        let reader = Arc::clone(self);
        let read = move || {
            let _one = one;
            let records = reader.store.settings();
            reader.buckets.rebuild(&records, &reader.peers.refuted());
            for (key, error) in reader.keyring.replace(reader.buckets.present().keys.clone()) {
                tracing::error!(access_key_id = key, %error, "an access key cannot be used");
            }
        };
        self.lifecycle.blocking("settings", read).await;
    }

    /// Takes note of what was missing here and is here again: a put may have brought it, or it was only for a moment that it could
    /// not be read. Blocking.
    pub fn note_found(&self) {
        let missing = self.ledger.own_missing(limits::LEDGER_EXCEPTIONS);
        let is_here = |key: &RecordKey| self.store.presence(key, afar_model::limits::VERIFIED_RECENTLY).unwrap_or(false);
        self.ledger.own_missing_clear(missing.into_iter().filter(is_here));
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Alone, dropped_after, until};
    use afar_model::{id::RecordId, record::Setting};

    fn bucket(node: &Node, name: &str) -> Record {
        let made = Setting::BucketCreated { name: name.into(), policy: node.default_policy(), shards: 1, stamp: node.tick() };
        Record::new(RecordKind::Setting, BucketId::SYSTEM, made.encode())
    }

    #[tokio::test]
    async fn what_was_stored_is_known_to_be_here_whenever_whoever_waits_goes_away() {
        let alone = Alone::start().await;
        let node = &alone.node;
        for polls in 1.. {
            let name = format!("bucket-{polls}");
            let record = bucket(node, &name);
            node.ledger.own_missing_add([record.key()]);
            let kept = dropped_after(polls, node.keep(AppendClass::Repair, vec![record.clone()])).await;
            let known = || (!node.ledger.is_missing_here(&record.key()), node.buckets.find(&name).unwrap().is_some());
            until(|| if known() == (true, true) { Ok(()) } else { Err((polls, known())) }).await;
            if kept.is_some() {
                break;
            }
        }
        alone.stop().await;
    }

    #[test]
    fn an_older_reading_of_the_settings_never_replaces_a_newer_one() {
        // One thread for blocking work, so that what is to be read waits as long as the test wants it to.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let alone = Alone::start().await;
            let (go_on, wait) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || wait.recv());
            assert!(dropped_after(1, alone.node.reload_settings()).await.is_none());
            assert!(alone.node.reliance.reload.try_lock().is_err(), "it still reads, and nobody else may");
            go_on.send(()).unwrap();
            busy.await.unwrap().unwrap();
            alone.node.reload_settings().await;
            alone.stop().await;
        });
    }

    #[tokio::test]
    async fn what_was_missing_and_is_here_again_however_it_came_is_not_missing() {
        let alone = Alone::start().await;
        let node = &alone.node;
        let put = Record::new(RecordKind::Chunk, BucketId::ZERO, "brought by a put".into());
        let gone = RecordKey { bucket: BucketId::ZERO, id: RecordId::ZERO };
        node.store.commit(AppendClass::Client, vec![put.clone()]).await.unwrap();
        node.ledger.own_missing_add([put.key(), gone]);
        let noter = Arc::clone(node);
        node.lifecycle.blocking("note", move || noter.note_found()).await.unwrap();
        assert_eq!(node.ledger.own_missing(9), [gone]);
        alone.stop().await;
    }
}
