//! The other nodes: connections to each, a heartbeat that tells who can be relied on, and what each last said of itself.
//!
//! Each peer has a control channel for small things and [`limits::BULK_LANES`] for bulk, so that a heartbeat never waits
//! behind megabytes. They connect when used. A heartbeat every two seconds measures the round trip (physics judges claimed
//! distances by its minimum), compares clocks, layouts and identities, and carries what each node has pending.
use crate::{
    clock::Clock,
    cluster::{
        connect::{Address, ConnectError, Connector, jitter},
        identity::Identity,
        layouts::{Layouts, awaited},
        membership::{self, Membership},
        memory::{self, Accepted, Claim, LogEnd, Memory, Refusal, Remembered},
        pulse::{Miss, Pulse},
        skew::{self, PeerClock},
    },
    lifecycle::Lifecycle,
    limits,
};
use afar_model::{
    geo::{self, Physics},
    id::{BootId, DirectoryId, Incarnation},
    layout::{Layout, NodeIndex, SiteIndex},
    units::{Metres, UnixMillis},
};
use afar_proto::v1::{self, peer_client::PeerClient};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::error::Elapsed,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, transport::Channel};

pub use crate::cluster::pulse::PeerState;

/// Which of a peer's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Heartbeats and whatever is small: never waits behind bulk.
    Control,
    /// One of [`limits::BULK_LANES`]; any number will do, it is taken modulo that.
    Bulk(usize),
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// Its name.
    pub node: String,
    /// Whether it is there: as this node's heartbeats and the cluster's opinion together say ([`membership::combine`]).
    pub state: PeerState,
    /// Up by this node's own heartbeats, of the same layout, and not refused: records may be sent to it.
    pub usable: bool,
    /// It does not have everything yet that is assigned to it: its answers prove no absence (rule 3).
    pub catching_up: bool,
    /// Its disks.
    pub incarnation: Option<Incarnation>,
    /// How often its disks were replaced by others while this node watched.
    pub incarnation_changes: u64,
    /// Its run.
    pub boot: Option<BootId>,
    /// When it was last heard, by [`Clock::monotonic`]; `None`: not in this run.
    pub last_heard: Option<Duration>,
    /// When it was last heard by the wall clock, in an earlier run if need be.
    pub last_heard_wall: Option<UnixMillis>,
    /// The least round trip measured in this run.
    pub least_round_trip: Option<Duration>,
    /// By how many milliseconds its wall clock leads ours.
    pub clock_offset_ms: i64,
    /// Whether its kernel calls its clock synchronised.
    pub clock_synchronised: Option<bool>,
    /// Records that it has acknowledged and that are not yet far (rule 8).
    pub pending_records: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Since when the oldest waits.
    pub oldest_pending: Option<UnixMillis>,
    /// It takes no writes.
    pub read_only: bool,
    /// It is shutting down.
    pub draining: bool,
    /// Records that are known to be bad there.
    pub bad_records: u64,
    /// Age of its least recent verification, as it says (rule 25).
    pub oldest_unverified: Duration,
    /// Its open layouts and ours have one in common.
    pub layout_agrees: bool,
    /// The hash of its current layout.
    pub layout_hash: Vec<u8>,
    /// Hashes of its open layouts, oldest first.
    pub open_layouts: Vec<[u8; 32]>,
    /// It has said which layout it has.
    pub layout_known: bool,
    /// Its address answers, be it with a refusal.
    pub answers: bool,
    /// It writes by its current layout only (rule 21).
    pub layout_drained: bool,
    /// It has everything that its current layout assigns to it.
    pub layout_synced: bool,
    /// Records that it still has to fetch, and their bytes, as it says.
    pub rebalance: (u64, u64),
    /// Records that it holds beyond what it is assigned.
    pub surplus: u64,
    /// Its layout's version.
    pub layout_version: u64,
    /// Its program.
    pub program_version: String,
    /// How far its logs reach.
    pub positions: BTreeMap<DirectoryId, LogEnd>,
    /// Size of its disks in bytes.
    pub capacity_bytes: u64,
    /// Bytes in use there.
    pub used_bytes: u64,
    /// Why it is not usable, in words; empty if it is.
    pub trouble: String,
}

/// What measured round trips say of a pair of sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairPhysics {
    /// The site of lower index.
    pub a: SiteIndex,
    /// The other.
    pub b: SiteIndex,
    /// What the layout claims.
    pub claimed: Metres,
    /// The least time in which light could have gone from one to the other and back, as measured; over this node if it is
    /// at neither. `None`: not measured yet.
    pub round_trip: Option<Duration>,
    /// The verdict; without a measurement nothing speaks against the claim.
    pub verdict: Physics,
}

/// A heartbeat that is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloRefused {
    /// The certificate names this node itself.
    #[error("this node has the same name: two instances of one name must not run at once")]
    OurName,
    /// The certificate names one node, the message another, or the message makes no sense.
    #[error("the heartbeat makes no sense: {0}")]
    Malformed(String),
    /// Too old or too new.
    #[error("protocol {theirs}, this node speaks {ours}: neighbouring versions work together, upgrade the older node")]
    Protocol {
        /// The caller's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The layout has taken it out of service. It has not heard of that, or does not mind.
    #[error("this node is {}: the layout says so, and nothing that it says counts any more", memory::OUT_OF_SERVICE)]
    OutOfService,
    /// Not believed (rule 19).
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<HelloRefused> for Status {
    fn from(refused: HelloRefused) -> Self {
        let code = match refused {
            HelloRefused::Malformed(_) => Code::InvalidArgument,
            _ => Code::PermissionDenied,
        };
        Self::new(code, refused.to_string())
    }
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

#[derive(Debug, Default)]
struct Record {
    pulse: Pulse,
    remembered: Remembered,
    said: Option<v1::NodeState>,
    heard: Option<Duration>,
    clock_offset_ms: i64,
    incarnation_changes: u64,
    catching_up: bool,
    /// Why it answers and is still not worked with.
    unfit: Option<String>,
    /// The last answer to our own heartbeat was a refusal: its heartbeats to us do not undo that.
    refuses_us: bool,
    /// Why the last heartbeat failed.
    missed: Option<String>,
}

/// What a change of must be told to those who choose among peers.
#[derive(PartialEq)]
struct Telling(PeerState, bool, bool, bool, Option<BootId>, Option<(bytes::Bytes, bool, bool)>);

/// What of our own layouts decides whether a peer can be worked with.
struct Ours {
    open: Vec<[u8; 32]>,
    /// The current layout waits for this peer: it is neither removed nor lost.
    awaited: bool,
}

impl Slot {
    /// Whether a request failed because the connection that carried it has ended, and no attempt to make a new one failed:
    /// what the other side says has no source here.
    fn connection_ended(&self, status: &Status) -> bool {
        let timeout = matches!(status.code(), Code::DeadlineExceeded) || status.message().contains("Timeout expired");
        !timeout && std::error::Error::source(status).is_some() && self.connector.last_failure().is_none()
    }
}

impl Record {
    fn state(&self) -> PeerState {
        match self.pulse.state() {
            PeerState::Down => PeerState::Down,
            _ if self.unfit.is_some() => PeerState::Refused,
            state => state,
        }
    }

    /// Two nodes work together if a layout is open at both: what one writes by it, the other finds by it (rule 21).
    fn agrees(&self, ours: &Ours) -> bool {
        let Some(said) = &self.said else { return false };
        let open = |hash: &[u8]| ours.open.iter().any(|ours| ours.as_slice() == hash);
        ours.awaited && (open(&said.layout_digest) || said.open_layouts.iter().any(|hash| open(hash)))
    }

    fn usable(&self, ours: &Ours) -> bool {
        self.state() == PeerState::Up && self.agrees(ours)
    }

    fn telling(&self, ours: &Ours) -> Telling {
        let said = self.said.as_ref();
        let read_only = said.is_some_and(|said| said.read_only || said.draining);
        let flags = said.map(|said| (said.layout_digest.clone(), said.layout_drained, said.layout_synced));
        Telling(self.state(), self.usable(ours), self.catching_up, read_only, self.remembered.last().map(|claim| claim.boot), flags)
    }

    fn trouble(&self, ours: &Ours) -> String {
        if let Some(unfit) = &self.unfit {
            return unfit.clone();
        }
        if self.pulse.state() != PeerState::Up {
            return self.missed.clone().unwrap_or_else(|| "not heard yet".into());
        }
        if !ours.awaited {
            return "the layout says that it is out of service".into();
        }
        if self.agrees(ours) {
            String::new()
        } else {
            "its layout and this node's have nothing in common: one of them is out of date, or of another cluster".into()
        }
    }
}

/// A heartbeat that was answered.
#[derive(Debug, Clone, Copy)]
struct Measured {
    round_trip: Duration,
    /// Our wall clock half-way between question and answer.
    midpoint: UnixMillis,
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
        let record = slot.record.lock();
        let said = record.said.as_ref();
        let count = |field: fn(&v1::NodeState) -> u64| said.map_or(0, field);
        let flag = |field: fn(&v1::NodeState) -> bool| said.is_some_and(field);
        let last = record.remembered.last();
        let opinion = self.membership.get().map(|membership| membership.view(&slot.name)).unwrap_or_default();
        let (state, trouble) = membership::combine(record.state(), record.trouble(&ours), &opinion);
        Some(PeerView {
            node: slot.name.clone(),
            state,
            usable: record.usable(&ours),
            catching_up: record.catching_up,
            incarnation: last.map(|claim| claim.incarnation),
            incarnation_changes: record.incarnation_changes,
            boot: last.map(|claim| claim.boot),
            last_heard: record.heard,
            last_heard_wall: record.remembered.last_heard,
            least_round_trip: record.pulse.least_round_trip(),
            clock_offset_ms: record.clock_offset_ms,
            clock_synchronised: said.and_then(|said| said.clock_synchronised),
            pending_records: count(|said| said.pending_records),
            pending_bytes: count(|said| said.pending_bytes),
            oldest_pending: said.map(|said| said.oldest_pending).filter(|oldest| *oldest > 0).map(UnixMillis),
            read_only: flag(|said| said.read_only),
            draining: flag(|said| said.draining),
            bad_records: count(|said| said.bad_records),
            oldest_unverified: Duration::from_secs(count(|said| said.oldest_unverified_seconds)),
            layout_agrees: record.agrees(&ours),
            layout_hash: said.map(|said| said.layout_digest.to_vec()).unwrap_or_default(),
            open_layouts: said
                .map(|said| said.open_layouts.iter().filter_map(|hash| hash.as_ref().try_into().ok()).collect())
                .unwrap_or_default(),
            layout_known: said.is_some(),
            answers: record.pulse.state() == PeerState::Up || record.unfit.is_some(),
            layout_drained: flag(|said| said.layout_drained),
            layout_synced: flag(|said| said.layout_synced),
            rebalance: (count(|said| said.to_fetch_records), count(|said| said.to_fetch_bytes)),
            surplus: count(|said| said.surplus_records),
            layout_version: count(|said| said.layout_version),
            program_version: said.map(|said| said.program_version.clone()).unwrap_or_default(),
            positions: last.map(|claim| claim.positions.clone()).unwrap_or_default(),
            capacity_bytes: count(|said| said.capacity_bytes),
            used_bytes: count(|said| said.used_bytes),
            trouble,
        })
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

    /// What measured round trips say of every pair of sites that have nodes.
    pub fn physics(&self) -> Vec<PairPhysics> {
        let layout = self.layouts.current();
        let round_trips: Vec<(SiteIndex, Duration)> =
            layout.members().filter_map(|node| Some((layout.site_of(node)?, self.round_trip(node)?))).collect();
        judge_pairs(&layout, &round_trips)
    }

    /// Whether a peer remembers more of this node's log than there is: an old copy was restored, and its answers prove nothing.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
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

    /// Answers a heartbeat. `from` is who the caller's certificate names.
    ///
    /// # Errors
    /// If the caller is not who it should be, or cannot be worked with.
    pub fn answer_hello(&self, said: v1::NodeState, from: NodeIndex) -> Result<v1::NodeState, HelloRefused> {
        if !awaited(&self.layouts.current(), from) {
            return Err(HelloRefused::OutOfService);
        }
        if from == self.own.node {
            tracing::error!("another process runs under this node's name: stop one of the two");
            return Err(HelloRefused::OurName);
        }
        self.hear(from, said, None)?;
        Ok(self.self_state())
    }

    /// What this node says of itself.
    pub fn self_state(&self) -> v1::NodeState {
        let (layout, open) = (self.layouts.current(), self.layouts.open());
        let mut state = v1::NodeState {
            node: layout.node_name(self.own.node).to_owned(),
            incarnation: afar_proto::convert::bytes(self.own.incarnation.as_bytes()),
            boot: afar_proto::convert::bytes(self.own.boot.as_bytes()),
            program_version: env!("CARGO_PKG_VERSION").into(),
            protocol: afar_proto::PROTOCOL,
            layout_digest: afar_proto::convert::bytes(layout.hash()),
            layout_version: layout.version(),
            open_layouts: open.hashes().map(|hash| afar_proto::convert::bytes(hash)).collect(),
            layout_drained: self.layouts.is_drained(),
            clock_synchronised: self.clock.kernel_synchronised(),
            draining: self.lifecycle.is_draining(),
            endpoint: layout.node(self.own.node).map(|node| node.endpoint.clone()).unwrap_or_default(),
            ..v1::NodeState::default()
        };
        if let Some(extras) = self.extras.get() {
            extras(&mut state);
        }
        state.now = self.clock.now().0;
        state
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

    async fn heartbeat(&self, node: NodeIndex, stop: CancellationToken) {
        let Some(slot) = self.slot(node) else { return };
        // Ends when the node has left, or is called elsewhere: then another task does.
        while self.slot(node).is_some_and(|now| Arc::ptr_eq(&now, &slot)) && awaited(&self.layouts.current(), node) {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.say_hello(node, &slot) => {}
            }
            let pause = jitter(slot.record.lock().pulse.pause());
            let poked = async {
                // Several connections end at once; and one that ends as soon as it is made must not keep us busy.
                tokio::time::sleep(limits::POKE_PAUSE).await;
                slot.poke.notified().await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = poked => {}
            }
        }
    }

    async fn say_hello(&self, node: NodeIndex, slot: &Slot) {
        let (mut answer, mut measured) = self.ask_hello(slot).await;
        if let Ok(Err(status)) = &answer
            && slot.connection_ended(status)
        {
            // It says nothing of the peer: certificates may have been renewed. A new connection tells.
            (answer, measured) = self.ask_hello(slot).await;
        }
        let round_trip = measured.round_trip;
        match answer {
            Ok(Ok(reply)) => {
                let said = reply.into_inner().from.unwrap_or_default();
                // Refusals are kept in the record, and logged there once.
                let _ = self.hear(node, said, Some(measured));
            }
            Ok(Err(status)) if matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition) => {
                if [memory::WENT_BACKWARDS, memory::OUT_OF_SERVICE].iter().any(|words| status.message().contains(words)) {
                    self.stale.store(true, Ordering::Release);
                }
                self.change(node, slot, |record| {
                    record.pulse.answered(round_trip);
                    record.refuses_us = true;
                    record.unfit = Some(format!("it refuses this node: {}", status.message()));
                });
            }
            Ok(Err(status)) => self.miss(node, slot, status.message()),
            Err(_) => self.miss(node, slot, "no answer in time"),
        }
    }

    /// One heartbeat: what came of it, and how long that took.
    async fn ask_hello(&self, slot: &Slot) -> (Result<Result<Response<v1::HelloReply>, Status>, Elapsed>, Measured) {
        let mut request = Request::new(v1::HelloRequest { from: Some(self.self_state()) });
        request.set_timeout(limits::HELLO_DEADLINE);
        let mut client = PeerClient::new(slot.control.clone());
        let (asked, asked_wall) = (self.clock.monotonic(), self.clock.now());
        let answer = tokio::time::timeout(limits::HELLO_DEADLINE, client.hello(request)).await;
        let round_trip = self.clock.monotonic().saturating_sub(asked);
        let half = u64::try_from(round_trip.as_millis() / 2).unwrap_or_default();
        (answer, Measured { round_trip, midpoint: UnixMillis(asked_wall.0.saturating_add(half)) })
    }

    fn miss(&self, node: NodeIndex, slot: &Slot, why: &str) {
        let failure = slot.connector.last_failure();
        let miss = match failure {
            Some(ConnectError::Refused { .. }) => Miss::ConnectionRefused,
            _ => Miss::Silent,
        };
        self.change(node, slot, |record| {
            record.pulse.missed(miss);
            record.missed = Some(failure.map_or_else(|| why.to_owned(), |failure| failure.to_string()));
        });
    }

    fn hear(&self, node: NodeIndex, said: v1::NodeState, measured: Option<Measured>) -> Result<(), HelloRefused> {
        let slot = self.slot(node).ok_or_else(|| HelloRefused::Malformed("not a node of this layout".into()))?;
        let checked = check(&said, &slot.name);
        let heard = self.change(node, &slot, |record| {
            if let Some(measured) = measured {
                record.pulse.answered(measured.round_trip);
                record.clock_offset_ms = said.now.cast_signed().saturating_sub(measured.midpoint.0.cast_signed());
                record.missed = None;
            }
            let now = self.clock.monotonic();
            let accepted = checked.and_then(|claim| Ok(record.remembered.hear(claim, now)?));
            match &accepted {
                Ok(accepted) => {
                    record.refuses_us &= measured.is_none();
                    if !record.refuses_us {
                        record.unfit = None;
                    }
                    record.heard = Some(now);
                    record.remembered.last_heard = Some(self.clock.now());
                    record.catching_up = said.catching_up || *accepted == Accepted::NewIncarnation;
                    record.incarnation_changes += u64::from(*accepted == Accepted::NewIncarnation);
                    record.said = Some(said);
                }
                Err(refused) => record.unfit = Some(refused.to_string()),
            }
            accepted
        });
        if measured.is_none() && slot.record.lock().pulse.state() != PeerState::Up {
            // It reaches us: find out at once whether we reach it.
            slot.poke.notify_one();
        }
        match heard? {
            Accepted::Same => {}
            accepted => self.note(&slot.name, accepted),
        }
        Ok(())
    }

    fn note(&self, peer: &str, accepted: Accepted) {
        match accepted {
            Accepted::NewIncarnation => {
                tracing::warn!(
                    peer,
                    event = "incarnation_changed",
                    "the peer has other disks under the same name: a replacement, catching up"
                );
            }
            _ => tracing::info!(peer, event = "peer_started", "a new run of the peer"),
        }
        self.remember.notify_one();
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

    fn judge_distances(&self) {
        let refuted: BTreeSet<(SiteIndex, SiteIndex)> =
            self.physics().iter().filter(|pair| pair.verdict == Physics::Refuted).map(|pair| (pair.a, pair.b)).collect();
        if refuted != **self.refuted.load() {
            let layout = self.layouts.current();
            for (a, b) in refuted.difference(&self.refuted.load()) {
                let (a, b) = (layout.site_name(*a), layout.site_name(*b));
                tracing::warn!(a, b, "a measured round trip is shorter than light needs for the distance that the layout claims");
            }
            self.refuted.store(Arc::new(refuted));
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn judge_clock(&self) {
        let now = self.clock.monotonic();
        let clocks: Vec<PeerClock> = (self.slots.load().iter().flatten())
            .filter_map(|slot| {
                let record = slot.record.lock();
                let lately = record.heard.is_some_and(|heard| now.saturating_sub(heard) < limits::CLOCK_HEARD_WITHIN);
                let said = record.said.as_ref().filter(|_| lately && record.state() == PeerState::Up)?;
                Some(PeerClock { offset_ms: record.clock_offset_ms, synchronised: said.clock_synchronised })
            })
            .collect();
        let trouble = skew::trouble(skew::judge(self.clock.kernel_synchronised(), &clocks));
        if trouble.is_some() != self.clock_trouble.load().is_some() {
            match &trouble {
                Some(trouble) => tracing::error!(trouble, "writes are refused"),
                None => tracing::info!("the clock is in step again: writes are taken"),
            }
        }
        self.clock_trouble.store(trouble.map(Arc::new));
    }

    async fn keep_memory(&self, stop: CancellationToken) {
        let mut saved = Memory::new();
        let mut saved_at = Duration::ZERO;
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                () = stop.cancelled() => stopping = true,
                () = self.remember.notified() => {}
                () = tokio::time::sleep(limits::MEMORY_WRITE_EVERY) => {}
            }
            let memory = self.memory();
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

/// What a peer claims to be, checked.
fn check(said: &v1::NodeState, name: &str) -> Result<Claim, HelloRefused> {
    let malformed = |why: String| HelloRefused::Malformed(why);
    if said.protocol.abs_diff(afar_proto::PROTOCOL) > 1 {
        return Err(HelloRefused::Protocol { theirs: said.protocol, ours: afar_proto::PROTOCOL });
    }
    if said.node != name {
        return Err(malformed(format!("it comes from {name} and says it is {:?}", said.node.chars().take(64).collect::<String>())));
    }
    if said.positions.len() > limits::POSITIONS_MAX {
        return Err(malformed(format!("{} log positions", said.positions.len())));
    }
    let incarnation = afar_proto::convert::id("incarnation", &said.incarnation).map_err(|error| malformed(error.to_string()))?;
    let boot = afar_proto::convert::id("boot", &said.boot).map_err(|error| malformed(error.to_string()))?;
    let place = |position: &v1::LogPosition| {
        let directory =
            afar_proto::convert::id("positions.directory", &position.directory).map_err(|error| malformed(error.to_string()))?;
        Ok((directory, (position.segment, position.offset)))
    };
    Ok(Claim { incarnation, boot, positions: said.positions.iter().map(place).collect::<Result<_, HelloRefused>>()? })
}

/// Judges every pair of sites by round trips from this node to nodes at them. News cannot go from one to the other faster
/// than over this node, so the sum of both round trips bounds the pair's own.
fn judge_pairs(layout: &Layout, round_trips: &[(SiteIndex, Duration)]) -> Vec<PairPhysics> {
    let least = |site: SiteIndex| round_trips.iter().filter(|(at, _)| *at == site).map(|(_, time)| *time).min();
    let sites: Vec<SiteIndex> = layout.site_indexes().filter(|site| layout.nodes_at(*site).next().is_some()).collect();
    let pairs = sites.iter().enumerate().flat_map(|(index, a)| sites.iter().skip(index + 1).map(move |b| (*a, *b)));
    let judged = pairs.map(|(a, b)| {
        let claimed = layout.distance(a, b);
        let round_trip = least(a).zip(least(b)).map(|(to_a, to_b)| to_a + to_b);
        let verdict = round_trip.map_or(Physics::Possible, |time| geo::judge(claimed, time));
        PairPhysics { a, b, claimed, round_trip, verdict }
    });
    judged.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
