//! The other nodes: connections to each, a heartbeat that tells who can be relied on, and what each last said of itself.
//!
//! Each peer has a control channel for small things and [`limits::BULK_LANES`] for bulk, so that a heartbeat never waits
//! behind megabytes. They connect when used. A heartbeat every two seconds measures the round trip (physics judges claimed
//! distances by its minimum), compares clocks, layouts and identities, and carries what each node has pending.
use crate::{
    clock::Clock,
    cluster::{
        connect::{Address, ConnectError, Connector, bulk_window, jitter},
        identity::Identity,
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
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};

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
    /// Its layout is ours.
    pub layout_agrees: bool,
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
    layout: Arc<Layout>,
    digest: [u8; 32],
    endpoints: Vec<String>,
    own: Own,
    clock: Clock,
    lifecycle: Lifecycle,
    state_directory: PathBuf,
    slots: Vec<Option<Slot>>,
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
struct Telling(PeerState, bool, bool, bool, Option<BootId>);

impl Record {
    fn state(&self) -> PeerState {
        match self.pulse.state() {
            PeerState::Down => PeerState::Down,
            _ if self.unfit.is_some() => PeerState::Refused,
            state => state,
        }
    }

    fn agrees(&self, digest: &[u8; 32]) -> bool {
        self.said.as_ref().is_some_and(|said| said.layout_digest == digest.as_slice())
    }

    fn usable(&self, digest: &[u8; 32]) -> bool {
        self.state() == PeerState::Up && self.agrees(digest)
    }

    fn telling(&self, digest: &[u8; 32]) -> Telling {
        let read_only = self.said.as_ref().is_some_and(|said| said.read_only || said.draining);
        Telling(self.state(), self.usable(digest), self.catching_up, read_only, self.remembered.last().map(|claim| claim.boot))
    }

    fn trouble(&self, digest: &[u8; 32]) -> String {
        if let Some(unfit) = &self.unfit {
            return unfit.clone();
        }
        if self.pulse.state() != PeerState::Up {
            return self.missed.clone().unwrap_or_else(|| "not heard yet".into());
        }
        if self.agrees(digest) { String::new() } else { "its layout is another than this node's: give both the same [layout]".into() }
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
    pub layout: Arc<Layout>,
    /// Where each node is, in the order of the layout.
    pub endpoints: Vec<String>,
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
    /// The transfer budget in bytes.
    pub transfer: u64,
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
    pub fn new(mut options: PeersOptions) -> Result<Arc<Self>, PeerError> {
        let others = options.layout.nodes().len().saturating_sub(1);
        let window = bulk_window(options.transfer, others);
        let mut slots = Vec::new();
        for (index, node) in options.layout.node_indexes().zip(options.layout.nodes()) {
            if index == options.own.node {
                slots.push(None);
                continue;
            }
            let wrong = |why: String| PeerError { node: node.name.clone(), why };
            let endpoint = options.endpoints.get(usize::from(index.0)).ok_or_else(|| wrong("has no endpoint".into()))?;
            let address = Address::parse(endpoint).map_err(|error| wrong(error.to_string()))?;
            let connector = Connector::new(address, &node.name, Arc::clone(&options.identity));
            let channel = |window| connector.channel(window).map_err(|error| wrong(error.to_string()));
            let remembered = options.memory.remove(&node.name).unwrap_or_default();
            slots.push(Some(Slot {
                name: node.name.clone(),
                control: channel(limits::CONTROL_WINDOW)?,
                bulk: (0..limits::BULK_LANES).map(|_| channel(window)).collect::<Result<_, _>>()?,
                poke: connector.ended(),
                connector,
                usable: AtomicBool::new(false),
                record: Mutex::new(Record { remembered, ..Record::default() }),
            }));
        }
        Ok(Arc::new(Self {
            digest: options.layout.digest(),
            layout: options.layout,
            endpoints: options.endpoints,
            own: options.own,
            clock: options.clock,
            lifecycle: options.lifecycle,
            state_directory: options.state_directory,
            slots,
            extras: OnceLock::new(),
            membership: OnceLock::new(),
            refuted: ArcSwap::default(),
            clock_trouble: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
            remember: Notify::new(),
            stale: AtomicBool::new(false),
        }))
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
        for node in self.others().collect::<Vec<_>>() {
            let peers = Arc::clone(self);
            self.lifecycle.spawn("heartbeat", move |stop| async move { peers.heartbeat(node, stop).await });
        }
        let peers = Arc::clone(self);
        self.lifecycle.spawn("peers' memory", move |stop| async move { peers.keep_memory(stop).await });
    }

    /// Every node but this one.
    pub fn others(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        let own = self.own.node;
        self.layout.node_indexes().filter(move |node| *node != own)
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
        self.client(self.layout.node_named(name)?, kind)
    }

    /// Whether records may be sent to a node: up, of the same layout, not refused. True for this node itself.
    pub fn usable(&self, node: NodeIndex) -> bool {
        node == self.own.node || self.slot(node).is_some_and(|slot| slot.usable.load(Ordering::Acquire))
    }

    /// What is known of a peer; `None` for this node itself or an index of another layout.
    pub fn view(&self, node: NodeIndex) -> Option<PeerView> {
        let slot = self.slot(node)?;
        let record = slot.record.lock();
        let said = record.said.as_ref();
        let count = |field: fn(&v1::NodeState) -> u64| said.map_or(0, field);
        let flag = |field: fn(&v1::NodeState) -> bool| said.is_some_and(field);
        let last = record.remembered.last();
        let opinion = self.membership.get().map(|membership| membership.view(&slot.name)).unwrap_or_default();
        let (state, trouble) = membership::combine(record.state(), record.trouble(&self.digest), &opinion);
        Some(PeerView {
            node: slot.name.clone(),
            state,
            usable: record.usable(&self.digest),
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
            layout_agrees: record.agrees(&self.digest),
            layout_version: count(|said| said.layout_version),
            program_version: said.map(|said| said.program_version.clone()).unwrap_or_default(),
            positions: last.map(|claim| claim.positions.clone()).unwrap_or_default(),
            capacity_bytes: count(|said| said.capacity_bytes),
            used_bytes: count(|said| said.used_bytes),
            trouble,
        })
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
        let round_trips: Vec<(SiteIndex, Duration)> =
            (self.layout.node_indexes()).filter_map(|node| Some((self.layout.site_of(node)?, self.round_trip(node)?))).collect();
        judge_pairs(&self.layout, &round_trips)
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
        if from == self.own.node {
            tracing::error!("another process runs under this node's name: stop one of the two");
            return Err(HelloRefused::OurName);
        }
        self.hear(from, said, None)?;
        Ok(self.self_state())
    }

    /// What this node says of itself.
    pub fn self_state(&self) -> v1::NodeState {
        let mut state = v1::NodeState {
            node: self.layout.node_name(self.own.node).to_owned(),
            incarnation: afar_proto::convert::bytes(self.own.incarnation.as_bytes()),
            boot: afar_proto::convert::bytes(self.own.boot.as_bytes()),
            program_version: env!("CARGO_PKG_VERSION").into(),
            protocol: afar_proto::PROTOCOL,
            layout_digest: afar_proto::convert::bytes(&self.digest),
            layout_version: self.layout.version(),
            clock_synchronised: self.clock.kernel_synchronised(),
            draining: self.lifecycle.is_draining(),
            endpoint: self.endpoints.get(usize::from(self.own.node.0)).cloned().unwrap_or_default(),
            ..v1::NodeState::default()
        };
        if let Some(extras) = self.extras.get() {
            extras(&mut state);
        }
        state.now = self.clock.now().0;
        state
    }

    fn slot(&self, node: NodeIndex) -> Option<&Slot> {
        self.slots.get(usize::from(node.0))?.as_ref()
    }

    fn round_trip(&self, node: NodeIndex) -> Option<Duration> {
        if node == self.own.node {
            return Some(Duration::ZERO);
        }
        self.slot(node)?.record.lock().pulse.least_round_trip()
    }

    async fn heartbeat(&self, node: NodeIndex, stop: CancellationToken) {
        let Some(slot) = self.slot(node) else { return };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.say_hello(node, slot) => {}
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
        let mut request = Request::new(v1::HelloRequest { from: Some(self.self_state()) });
        request.set_timeout(limits::HELLO_DEADLINE);
        let mut client = PeerClient::new(slot.control.clone());
        let (asked, asked_wall) = (self.clock.monotonic(), self.clock.now());
        let answer = tokio::time::timeout(limits::HELLO_DEADLINE, client.hello(request)).await;
        let round_trip = self.clock.monotonic().saturating_sub(asked);
        let midpoint = UnixMillis(asked_wall.0.saturating_add(u64::try_from(round_trip.as_millis() / 2).unwrap_or_default()));
        match answer {
            Ok(Ok(reply)) => {
                let said = reply.into_inner().from.unwrap_or_default();
                // Refusals are kept in the record, and logged there once.
                let _ = self.hear(node, said, Some(Measured { round_trip, midpoint }));
            }
            Ok(Err(status)) if matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition) => {
                if status.message().contains(memory::WENT_BACKWARDS) {
                    self.stale.store(true, Ordering::Release);
                }
                self.change(slot, |record| {
                    record.pulse.answered(round_trip);
                    record.refuses_us = true;
                    record.unfit = Some(format!("it refuses this node: {}", status.message()));
                });
            }
            Ok(Err(status)) => self.miss(slot, status.message()),
            Err(_) => self.miss(slot, "no answer in time"),
        }
    }

    fn miss(&self, slot: &Slot, why: &str) {
        let failure = slot.connector.last_failure();
        let miss = match failure {
            Some(ConnectError::Refused { .. }) => Miss::ConnectionRefused,
            _ => Miss::Silent,
        };
        self.change(slot, |record| {
            record.pulse.missed(miss);
            record.missed = Some(failure.map_or_else(|| why.to_owned(), |failure| failure.to_string()));
        });
    }

    fn hear(&self, node: NodeIndex, said: v1::NodeState, measured: Option<Measured>) -> Result<(), HelloRefused> {
        let slot = self.slot(node).ok_or_else(|| HelloRefused::Malformed("not a node of this layout".into()))?;
        let checked = check(&said, &slot.name);
        let heard = self.change(slot, |record| {
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
    fn change<T>(&self, slot: &Slot, change: impl FnOnce(&mut Record) -> T) -> T {
        let (result, before, after, nearer, trouble) = {
            let mut record = slot.record.lock();
            let (before, round_trip) = (record.telling(&self.digest), record.pulse.least_round_trip());
            let result = change(&mut record);
            let after = record.telling(&self.digest);
            slot.usable.store(record.usable(&self.digest), Ordering::Release);
            (result, before, after, record.pulse.least_round_trip() != round_trip, record.trouble(&self.digest))
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
            for (a, b) in refuted.difference(&self.refuted.load()) {
                let (a, b) = (self.layout.site_name(*a), self.layout.site_name(*b));
                tracing::warn!(a, b, "a measured round trip is shorter than light needs for the distance that the layout claims");
            }
            self.refuted.store(Arc::new(refuted));
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn judge_clock(&self) {
        let now = self.clock.monotonic();
        let clocks: Vec<PeerClock> = (self.slots.iter().flatten())
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
        self.slots.iter().flatten().map(|slot| (slot.name.clone(), slot.record.lock().remembered.clone())).collect()
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
