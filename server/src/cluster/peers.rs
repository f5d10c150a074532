//! The other nodes: connections to each, a heartbeat that tells who can be relied on, and what each last said of itself.
//!
//! Each peer has a control channel for small things and [`limits::BULK_LANES`] for bulk, so that a heartbeat never waits
//! behind megabytes. They connect when used. A heartbeat every two seconds measures the round trip (physics judges claimed
//! distances by its minimum), compares clocks, layouts and identities, and carries what each node has pending.
mod hello;
mod judge;
mod record;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use self::{
    hello::HelloRefused,
    judge::PairPhysics,
    record::{Absence, Absent, PeerView},
};
pub use crate::cluster::pulse::PeerState;

use self::record::{Ours, Record};
use crate::{
    clock::Clock,
    cluster::{
        connect::{Address, ConnectError, Connector},
        identity::Identity,
        layouts::{Layouts, awaited},
        membership::Membership,
        memory::{self, Memory},
        replaced::Replaced,
    },
    lifecycle::Lifecycle,
    limits,
};
use afar_model::{
    id::{BootId, Incarnation},
    layout::{NodeIndex, SiteIndex},
    units::UnixMillis,
};
use afar_proto::v1::{self, peer_client::PeerClient};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Which of a peer's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Heartbeats and whatever is small: never waits behind bulk.
    Control,
    /// One of [`limits::BULK_LANES`]; any number will do, it is taken modulo that.
    Bulk(usize),
}

/// Who this node is to its peers.
#[derive(Debug, Clone)]
pub struct Own {
    /// Which node of the layout.
    pub node: NodeIndex,
    /// Its disks.
    pub incarnation: Incarnation,
    /// This run.
    pub boot: BootId,
}

/// Fills in what this node says of itself beyond its identity: positions, pending, catching up …
type Extras = Box<dyn Fn(&mut v1::NodeState) + Send + Sync>;

/// Every other node of the layout.
pub struct Peers {
    layouts: Arc<Layouts>,
    own: Own,
    identity: Arc<Identity>,
    bulk_window: u32,
    /// What was remembered of peers that have no slot yet.
    memory: Mutex<Memory>,
    clock: Clock,
    lifecycle: Lifecycle,
    state_directory: PathBuf,
    slots: ArcSwap<Vec<Option<Arc<Slot>>>>,
    extras: OnceLock<Extras>,
    membership: OnceLock<Membership>,
    refuted: ArcSwap<BTreeSet<(SiteIndex, SiteIndex)>>,
    clock_trouble: ArcSwapOption<String>,
    changes: watch::Sender<u64>,
    remember: Notify,
    stale: AtomicBool,
    superseded: AtomicBool,
    replaced: Replaced,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("own", &self.own).field("peers", &self.others().count()).finish_non_exhaustive()
    }
}

struct Slot {
    name: String,
    endpoint: String,
    connector: Connector,
    control: Channel,
    bulk: Vec<Channel>,
    usable: AtomicBool,
    record: Mutex<Record>,
    /// Asks for a heartbeat at once: a connection or a request has failed, or the peer was heard.
    poke: Arc<Notify>,
}

/// What is needed to know the peers.
#[derive(Debug)]
pub struct PeersOptions {
    /// Who there is.
    pub layouts: Arc<Layouts>,
    /// Who we are.
    pub own: Own,
    /// Our certificate.
    pub identity: Arc<Identity>,
    /// Our clocks.
    pub clock: Clock,
    /// Our tasks.
    pub lifecycle: Lifecycle,
    /// Where to remember peers.
    pub state_directory: PathBuf,
    /// Bytes that may be under way to us on one bulk connection: see [`crate::budget::Shares`].
    pub bulk_window: u32,
    /// What is remembered, from [`memory::load`].
    pub memory: Memory,
    /// What is known of disks that took the place of others, from [`Replaced::load`].
    pub replaced: Replaced,
}

/// A peer that cannot be called.
#[derive(Debug, thiserror::Error)]
#[error("node {node:?}: {why}")]
pub struct PeerError {
    /// Its name.
    pub node: String,
    /// What is wrong.
    pub why: String,
}

impl Peers {
    /// Knows the peers; nothing is sent before [`Peers::start`].
    ///
    /// # Errors
    /// If an endpoint cannot be called.
    pub fn new(options: PeersOptions) -> Result<Arc<Self>, PeerError> {
        let peers = Self {
            layouts: options.layouts,
            own: options.own,
            identity: options.identity,
            bulk_window: options.bulk_window,
            memory: Mutex::new(options.memory),
            clock: options.clock,
            lifecycle: options.lifecycle,
            state_directory: options.state_directory,
            slots: ArcSwap::default(),
            extras: OnceLock::new(),
            membership: OnceLock::new(),
            refuted: ArcSwap::default(),
            clock_trouble: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
            remember: Notify::new(),
            stale: AtomicBool::new(false),
            superseded: AtomicBool::new(false),
            replaced: options.replaced,
        };
        peers.renew()?;
        Ok(Arc::new(peers))
    }

    /// Makes slots for what the current layout names and this node does not know yet. Answers for whom.
    fn renew(&self) -> Result<Vec<NodeIndex>, PeerError> {
        let layout = self.layouts.current();
        let before = self.slots.load_full();
        let window = self.bulk_window;
        let (mut slots, mut new) = (Vec::new(), Vec::new());
        for (index, node) in layout.node_indexes().zip(layout.nodes()) {
            let known = before.get(usize::from(index.0)).cloned().flatten();
            if index == self.own.node {
                slots.push(None);
            } else if let Some(known) = known.filter(|slot| slot.endpoint == node.endpoint) {
                slots.push(Some(known));
            } else {
                slots.push(Some(Arc::new(self.slot_for(node, window)?)));
                new.push(index);
            }
        }
        self.slots.store(Arc::new(slots));
        Ok(new)
    }

    fn slot_for(&self, node: &afar_model::layout::Node, window: u32) -> Result<Slot, PeerError> {
        let wrong = |why: String| PeerError { node: node.name.clone(), why };
        let address = Address::parse(&node.endpoint).map_err(|error| wrong(error.to_string()))?;
        let connector = Connector::new(address, &node.name, Arc::clone(&self.identity));
        let channel = |window| connector.channel(window).map_err(|error| wrong(error.to_string()));
        let remembered = self.memory.lock().get(&node.name).cloned().unwrap_or_default();
        Ok(Slot {
            name: node.name.clone(),
            endpoint: node.endpoint.clone(),
            control: channel(limits::CONTROL_WINDOW)?,
            bulk: (0..limits::BULK_LANES).map(|_| channel(window)).collect::<Result<_, _>>()?,
            poke: connector.ended(),
            connector,
            usable: AtomicBool::new(false),
            record: Mutex::new(Record { remembered, ..Record::default() }),
        })
    }

    /// The layout has changed: knows the new peers, and judges all of them anew. Answers who is new.
    pub fn layout_changed(self: &Arc<Self>) -> Vec<NodeIndex> {
        let new = self.renew().unwrap_or_else(|error| {
            tracing::error!(%error, "a node of the new layout cannot be called");
            Vec::new()
        });
        for node in &new {
            self.start_heartbeat(*node);
        }
        for node in self.others() {
            if let Some(slot) = self.slot(node) {
                self.change(node, &slot, |_| ());
                slot.poke.notify_one();
            }
        }
        self.judge_distances();
        new
    }

    fn start_heartbeat(self: &Arc<Self>, node: NodeIndex) {
        let peers = Arc::clone(self);
        self.lifecycle.spawn("heartbeat", move |stop| async move { peers.heartbeat(node, stop).await });
    }

    fn ours(&self, node: NodeIndex) -> Ours {
        Ours { open: self.layouts.open().hashes().copied().collect(), awaited: awaited(&self.layouts.current(), node) }
    }

    /// Sets, once, what fills in [`v1::NodeState`] beyond identity and layout: log positions, pending, catching up, read
    /// only, capacity, bad records. Called for every heartbeat, so it must not block.
    pub fn set_self_state(&self, extras: impl Fn(&mut v1::NodeState) + Send + Sync + 'static) {
        if self.extras.set(Box::new(extras)).is_err() {
            tracing::error!("the node's own state is set twice: this is a bug, please report it");
        }
    }

    /// Sets, once, what the cluster thinks of peers: [`Peers::view`] takes it into account, [`Peers::usable`] does not.
    pub fn set_membership(&self, membership: Membership) {
        if self.membership.set(membership).is_err() {
            tracing::error!("the membership is set twice: this is a bug, please report it");
        }
    }

    /// What the cluster thinks of peers; `None` before it was set.
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.get()
    }

    /// Starts a heartbeat for every peer.
    pub fn start(self: &Arc<Self>) {
        for node in self.others() {
            self.start_heartbeat(node);
        }
        let peers = Arc::clone(self);
        self.lifecycle.spawn("peers' memory", move |stop| async move { peers.keep_memory(stop).await });
    }

    /// Every node but this one that the layout still waits for.
    pub fn others(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        let (own, layout) = (self.own.node, self.layouts.current());
        let others: Vec<NodeIndex> = layout.members().filter(|node| *node != own).collect();
        others.into_iter()
    }

    /// A connection to a peer: connects when used. `None` for this node itself or an index of another layout.
    pub fn channel(&self, node: NodeIndex, kind: ChannelKind) -> Option<Channel> {
        let slot = self.slot(node)?;
        match kind {
            ChannelKind::Control => Some(slot.control.clone()),
            ChannelKind::Bulk(number) => slot.bulk.get(number % limits::BULK_LANES).cloned(),
        }
    }

    /// A client of a peer's service, with this program's limits on messages.
    pub fn client(&self, node: NodeIndex, kind: ChannelKind) -> Option<PeerClient<Channel>> {
        let client = PeerClient::new(self.channel(node, kind)?);
        let most = afar_proto::limits::MESSAGE_BYTES_MAX;
        Some(client.max_decoding_message_size(most).max_encoding_message_size(most))
    }

    /// [`Peers::client`] by the node's name.
    pub fn client_named(&self, name: &str, kind: ChannelKind) -> Option<PeerClient<Channel>> {
        self.client(self.layouts.current().node_named(name)?, kind)
    }

    /// Whether records may be sent to a node: up, of the same layout, not refused. True for this node itself.
    pub fn usable(&self, node: NodeIndex) -> bool {
        node == self.own.node || self.slot(node).is_some_and(|slot| slot.usable.load(Ordering::Acquire))
    }

    /// Whether a node missed its last heartbeats, but not so many that it is down: nothing is known of it at this moment.
    pub fn is_suspect(&self, node: NodeIndex) -> bool {
        self.slot(node).is_some_and(|slot| slot.record.lock().state() == PeerState::Suspect)
    }

    /// What is known of a peer; `None` for this node itself or an index of another layout.
    pub fn view(&self, node: NodeIndex) -> Option<PeerView> {
        let slot = self.slot(node)?;
        let ours = self.ours(node);
        let opinion = self.membership.get().map(|membership| membership.view(&slot.name)).unwrap_or_default();
        Some(slot.record.lock().view(&slot.name, &ours, &opinion, self.clock.monotonic()))
    }

    /// Disks that are not heard now, and may hold what nobody else has (rule 8).
    pub fn absent(&self) -> Vec<Absent> {
        let (layout, now) = (self.layouts.current(), self.clock.now());
        let slots = self.slots.load();
        let known = layout.node_indexes().filter_map(|node| Some((node, slots.get(usize::from(node.0))?.as_ref()?)));
        known.flat_map(|(node, slot)| slot.record.lock().absent(node, layout.duty(node), now)).collect()
    }

    /// Connects to a peer once, beside its channels, and hangs up: how long TCP and TLS took. `None` as for [`Peers::view`].
    pub async fn probe(&self, node: NodeIndex) -> Option<Result<Duration, ConnectError>> {
        // Not the channels' connector: a probe's end is no sign of a peer's death, nor its failure theirs.
        let probe = self.slot(node)?.connector.aside();
        Some(probe.probe().await)
    }

    /// When the certificate ends that a peer showed last; `None` if it was not met in this run.
    pub fn certificate_ends(&self, node: NodeIndex) -> Option<UnixMillis> {
        self.slot(node)?.connector.certificate_ends()
    }

    /// These nodes by measured round trip: this one first, then the nearest; those never measured last.
    pub fn nearest_first(&self, nodes: impl IntoIterator<Item = NodeIndex>) -> Vec<NodeIndex> {
        let mut nodes: Vec<NodeIndex> = nodes.into_iter().collect();
        nodes.sort_by_cached_key(|node| (self.round_trip(*node).unwrap_or(Duration::MAX), *node));
        nodes
    }

    /// Pairs of sites whose claimed distance measured round trips refute, each with the lower index first.
    pub fn refuted(&self) -> Arc<BTreeSet<(SiteIndex, SiteIndex)>> {
        self.refuted.load_full()
    }

    /// Whether a peer remembers more of this node's log than there is: an old copy was restored, and its answers prove nothing.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Whether a peer has said, since this was last asked, that it met other disks under this node's name: what they
    /// acknowledged is not here.
    pub fn was_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire) && self.superseded.swap(false, Ordering::AcqRel)
    }

    /// Whether a peer's disks took the place of others and have not caught up: what it lacks may be nowhere else. If ours did, so
    /// did perhaps those of a peer that began empty, too: who could tell may not have met it yet. (In a new cluster all did, and
    /// nobody took anybody's place.)
    pub fn is_replacement_behind(&self, node: NodeIndex) -> bool {
        let Some(slot) = self.slot(node) else { return false };
        let record = slot.record.lock();
        let known = || record.remembered.last().is_some_and(|last| self.replaced.is_behind(&last.incarnation));
        let new_disks = record.said.as_ref().is_some_and(|said| said.new_disks);
        record.catching_up && (known() || new_disks && self.is_replacement())
    }

    /// The same of this node's own disks.
    pub fn is_replacement(&self) -> bool {
        self.replaced.is_behind(&self.own.incarnation)
    }

    /// This node's own disks, as on the wire.
    pub fn own_incarnation(&self) -> bytes::Bytes {
        afar_proto::convert::bytes(self.own.incarnation.as_bytes())
    }

    /// How often the disks of a peer were replaced, in this run: who counted on any before it was more may have counted on disks
    /// that count no longer.
    pub fn replacements(&self) -> u64 {
        self.slots.load().iter().flatten().map(|slot| slot.record.lock().incarnation_changes).sum()
    }

    /// Whether every other node has answered a heartbeat of this run: all know which disks this node has.
    pub fn have_all_met_us(&self) -> bool {
        self.others().filter_map(|node| self.slot(node)).all(|slot| slot.record.lock().answered.is_some())
    }

    /// Changes whenever a peer's state, usability, run, or what it says about catching up or taking writes does; and when a
    /// pair of sites is refuted.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Why this node refuses writes because of its clock (rule 4); `None` if it does not.
    pub fn clock_trouble(&self) -> Option<String> {
        self.clock_trouble.load().as_deref().cloned()
    }

    /// Asks for a heartbeat at once: a request to that peer has failed.
    pub fn poke(&self, node: NodeIndex) {
        if let Some(slot) = self.slot(node) {
            slot.poke.notify_one();
        }
    }

    fn slot(&self, node: NodeIndex) -> Option<Arc<Slot>> {
        self.slots.load().get(usize::from(node.0)).cloned().flatten()
    }

    fn round_trip(&self, node: NodeIndex) -> Option<Duration> {
        if node == self.own.node {
            return Some(Duration::ZERO);
        }
        self.slot(node)?.record.lock().pulse.least_round_trip()
    }

    /// Changes what is known of a peer, and tells whom it concerns.
    fn change<T>(&self, node: NodeIndex, slot: &Slot, change: impl FnOnce(&mut Record) -> T) -> T {
        let ours = self.ours(node);
        let (result, before, after, nearer, trouble) = {
            let mut record = slot.record.lock();
            let (mut before, round_trip) = (record.telling(&ours), record.pulse.least_round_trip());
            // Our own layouts may have changed since it was judged.
            before.1 = slot.usable.load(Ordering::Acquire);
            let result = change(&mut record);
            let after = record.telling(&ours);
            slot.usable.store(record.usable(&ours), Ordering::Release);
            (result, before, after, record.pulse.least_round_trip() != round_trip, record.trouble(&ours))
        };
        if nearer {
            self.judge_distances();
        }
        self.judge_clock();
        if before != after {
            if (before.0, before.1) != (after.0, after.1) {
                tracing::info!(peer = slot.name, state = after.0.name(), usable = after.1, trouble, "peer");
            }
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        result
    }

    async fn keep_memory(&self, stop: CancellationToken) {
        let (mut saved, mut saved_replaced) = (Memory::new(), None);
        let mut saved_at = Duration::ZERO;
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                () = stop.cancelled() => stopping = true,
                () = self.remember.notified() => {}
                () = tokio::time::sleep(limits::MEMORY_WRITE_EVERY) => {}
            }
            // Before the word that they were replaced: a crash in between repeats it, and forgets nothing.
            let memory = self.memory();
            let replaced = self.replaced.known();
            if saved_replaced.as_ref() != Some(&replaced) {
                let (directory, written) = (self.state_directory.clone(), replaced.clone());
                match self.lifecycle.blocking("write replaced", move || written.save(&directory)).await {
                    Some(Ok(())) => saved_replaced = Some(replaced),
                    Some(Err(error)) => {
                        tracing::error!(%error, "what is known of disks that were replaced was not written");
                        continue;
                    }
                    None => continue,
                }
            }
            let now = self.clock.monotonic();
            // That a peer was heard again is only for people: not worth a sync every time.
            let only_heard = now.saturating_sub(saved_at) < limits::MEMORY_HEARD_EVERY && memory::same_but_heard(&memory, &saved);
            if memory == saved || (only_heard && !stopping) {
                continue;
            }
            let (directory, written) = (self.state_directory.clone(), memory.clone());
            match self.lifecycle.blocking("write peers", move || memory::save(&directory, &written)).await {
                Some(Ok(())) => (saved, saved_at) = (memory, now),
                Some(Err(error)) => tracing::error!(%error, "what is known of peers was not written"),
                None => {}
            }
        }
    }

    fn memory(&self) -> Memory {
        // What is remembered of those that have left stays: they may answer to their name again.
        let mut memory = self.memory.lock().clone();
        let present = self.slots.load();
        memory.extend(present.iter().flatten().map(|slot| (slot.name.clone(), slot.record.lock().remembered.clone())));
        memory
    }
}
