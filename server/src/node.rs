//! One node: what it is made of, how it starts and how it ends.
//!
//! Order of starting: who are we (certificates, before anything is touched) → our disks (locked, recovered) → the port → the
//! peers → background work → the pid file, which says "serving". The order of ending is the reverse: the doors first, then
//! those who are under way, then background work, then the disks.
use crate::{
    budget::Budget,
    clock::Clock,
    cluster::{
        exchange,
        identity::{Expected, Identity, IdentityError, Reloaded},
        keyring::{KeyRing, NotSealed},
        layouts::{self, ChainError, Layouts},
        membership::{self, Membership},
        memory::{self, MemoryError},
        peers::{Own, PeerError, Peers, PeersOptions},
        replaced::Replaced,
        trust::Trust,
    },
    config::Config,
    files,
    gateways::{
        grpc::{
            self,
            listener::{Door, Servers},
        },
        http::{self, Gateway, HttpError},
        public_tls::{PublicTls, acme},
    },
    health::{survey::Survey, upkeep},
    lifecycle::Lifecycle,
    limits,
    objects::{buckets::BucketTable, claims::Claims},
    reliance::Reliance,
    replication::{
        audit,
        lane::Lanes,
        ledger::Ledger,
        outbox::{self, Pending},
        rebalance::Rebalance,
        reconcile, release,
        settlements::{self, Settlements},
    },
};
use afar_model::{layout::NodeIndex, record::RecordKey, units::UnixMillis};
use afar_proto::v1;
use afar_store::{
    DirectoryState, OpenError, Opened, Options, Store,
    disk::{FaultyDisk, make_private_directory},
    index::sled::SledFactory,
};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A node's parts. Shared by everything that runs in it.
#[derive(Debug)]
pub struct Node {
    /// What it was told.
    pub config: Config,
    /// Sites and nodes, as they are and were.
    pub layouts: Arc<Layouts>,
    /// Which of the nodes this is.
    pub me: NodeIndex,
    /// Its certificate.
    pub identity: Arc<Identity>,
    /// What it shows at ports for the public.
    pub public_tls: Arc<PublicTls>,
    /// Its log.
    pub store: Store,
    /// What opening the log found.
    pub opened: Opened,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// Its clocks.
    pub clock: Clock,
    /// Access keys.
    pub keyring: KeyRing,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// Bytes in flight (rule 29).
    pub transfer: Budget,
    /// The buckets.
    pub buckets: BucketTable,
    /// Keys that puts are about to make.
    pub claims: Claims,
    /// Streams of records to the others.
    pub lanes: Lanes,
    /// What is known of the others' holdings.
    pub ledger: Ledger,
    /// Versions that others should hear are settled.
    pub settlements: Settlements,
    /// On whom this node may rely.
    pub reliance: Reliance,
    /// The last survey.
    pub survey: ArcSwap<Survey>,
    /// Prepared versions that were never acknowledged, as of the last look at them.
    pub disproved: ArcSwap<HashSet<RecordKey>>,
    /// How fast copies are fetched while layouts change.
    pub rebalance: Rebalance,
    /// Records here beyond what is assigned, as last counted; negative: not counted yet by this layout.
    pub surplus: AtomicI64,
    /// What still has to reach others, as of a second ago.
    pub pending: ArcSwap<Pending>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates or key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The port.
    #[error("listen on {address}: {error}: is another process there?")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The HTTP port.
    #[error("listen on {address} (http): {error}: is another process there?")]
    Http {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        error: HttpError,
    },
    /// What is remembered of peers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The layout's endpoints.
    #[error(transparent)]
    Peers(#[from] PeerError),
    /// The chain of layouts.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The configuration is of a node that the layout does not name.
    #[error("node = {0:?}: the current layout names no such node; make a bundle for it with `afar node add`")]
    NotInLayout(String),
    /// The access keys.
    #[error(transparent)]
    KeyRing(#[from] NotSealed),
    /// A file or directory of the node's own.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No randomness, or the runtime is ending.
    #[error("{0}")]
    System(String),
}

impl StartError {
    /// The exit code of the command line's contract.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Identity(_) | Self::Peers(_) | Self::NotInLayout(_) => 2,
            Self::Store(OpenError::Locked { .. }) => 11,
            Self::Store(
                OpenError::NoDirectory | OpenError::NotInitialised { .. } | OpenError::Foreign { .. } | OpenError::NotEmpty { .. },
            ) => 2,
            Self::File { error, .. } | Self::Memory(MemoryError::Io { error, .. }) if error.kind() == io::ErrorKind::StorageFull => 13,
            _ => 1,
        }
    }
}

/// A node that serves.
#[derive(Debug)]
pub struct Running {
    /// Its parts.
    pub node: Arc<Node>,
    /// Where it listens: the port that was found if the configuration says 0.
    pub address: SocketAddr,
    /// Where HTTP is, if it is anywhere.
    pub http: Option<SocketAddr>,
    servers: Servers,
}

impl Node {
    /// Starts a node.
    ///
    /// # Errors
    /// Why it does not start; then nothing of it is left running.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let clock = Clock::new(config.clock_offset_ms);
        let identity = Arc::new(load_identity(&config, clock.now())?);
        let lifecycle = Lifecycle::new();
        let started = Self::start_with(config, clock, identity, &lifecycle).await;
        if started.is_err() {
            // What was begun must not outlive this; what does not end in time ends with the process.
            let _ = lifecycle.stop(limits::DRAIN_TASKS).await;
        }
        started
    }

    async fn start_with(config: Config, clock: Clock, identity: Arc<Identity>, lifecycle: &Lifecycle) -> Result<Running, StartError> {
        let lifecycle = lifecycle.clone();
        let public_tls = PublicTls::load(Arc::clone(&identity), &config.public_tls, &config.state, clock.now())?;
        let public_tls = Arc::new(public_tls);
        let http = open_http(&config, &public_tls, &lifecycle).await?;
        let before_layouts = is_of_a_version_without_layouts(&config);
        let (store, opened) = open_store(&config, &clock, &lifecycle).await?;
        start_clock(&clock, &store, &lifecycle).await?;
        let listener = TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen { address: config.listen, error })?;
        let address = listener.local_addr().map_err(|error| StartError::Listen { address: config.listen, error })?;
        // A chain that is new beside disks that are not: what was forgotten with it, only the others can tell. Unless there
        // never was one: then nothing was ever done by any other layout, and a lone survivor that is upgraded goes on.
        let no_chain = !before_layouts && !config.state.join("layouts").exists();
        let forgotten = no_chain && opened.directories.iter().any(|directory| directory.state == DirectoryState::Healthy);
        let layouts = Arc::new(Layouts::load(&config.state, &config.cluster, config.genesis.clone(), config.layouts.clone())?);
        note_layouts(&config)?;
        let me = layouts.current().node_named(&config.node).ok_or_else(|| StartError::NotInLayout(config.node.clone()))?;
        let transfer =
            Budget::new(config.limits.transfer, layouts.current().members().count().saturating_sub(1), config.limits.connections);
        let peers = Peers::new(PeersOptions {
            layouts: Arc::clone(&layouts),
            own: Own { node: me, incarnation: opened.incarnation, boot: opened.boot },
            identity: Arc::clone(&identity),
            clock: clock.clone(),
            lifecycle: lifecycle.clone(),
            state_directory: config.state.clone(),
            bulk_window: transfer.shares().peer_window,
            memory: memory::load(&config.state)?,
            replaced: Replaced::load(&config.state)?,
        })?;
        let lost =
            forgotten || !opened.losses.is_empty() || opened.directories.iter().any(|directory| directory.state == DirectoryState::Created);
        let new_disks = opened.directories.iter().all(|directory| directory.state == DirectoryState::Created);
        let reliance =
            Reliance::open(&config.state, lost, new_disks).map_err(|error| StartError::File { path: config.state.clone(), error })?;
        let node = Arc::new(Self {
            buckets: BucketTable::new(Arc::clone(&layouts)),
            lanes: Lanes::start(&peers, peers.others(), &transfer, &lifecycle),
            ledger: Ledger::default(),
            settlements: Settlements::default(),
            reliance,
            survey: ArcSwap::default(),
            disproved: ArcSwap::default(),
            pending: ArcSwap::default(),
            keyring: KeyRing::new(&config.secret, &config.admin)?,
            transfer,
            me,
            layouts,
            rebalance: Rebalance::new(config.pace.clone()),
            surplus: AtomicI64::new(-1),
            claims: Claims::default(),
            identity,
            public_tls,
            store,
            opened,
            peers,
            clock,
            lifecycle,
            config,
        });
        node.begin_alone();
        node.follow_trust();
        node.reload_settings().await;
        node.prepare();
        let servers = node.open_doors(listener);
        node.peers.start();
        node.join_membership();
        node.start_background();
        if let Some(http) = &http {
            http.serve(&node);
        }
        node.write_pid()?;
        let http = http.map(|http| http.address);
        tracing::info!(node = node.config.node, %address, ?http, boot = %node.opened.boot, "serving");
        Ok(Running { node, address, http, servers })
    }

    /// Everything that must be in place before the first request or heartbeat.
    fn prepare(self: &Arc<Self>) {
        let node = Arc::downgrade(self);
        self.peers.set_self_state(move |state| {
            if let Some(node) = node.upgrade() {
                node.describe(state);
            }
        });
    }

    /// What this node says of itself in heartbeats. Must not block.
    fn describe(&self, state: &mut v1::NodeState) {
        state.positions = self.positions();
        let pending = self.pending.load();
        let (objects, bytes) = pending.alone.unwrap_or_default();
        state.alone = Some(v1::Alone { objects, bytes, unknown: pending.alone.is_none(), may_queue: self.may_queue() });
        state.catching_up = self.is_catching_up();
        state.new_disks = state.catching_up && self.reliance.began_empty();
        state.layout_synced = self.is_synced();
        state.to_fetch_records = self.rebalance.to_fetch().0;
        state.to_fetch_bytes = self.rebalance.to_fetch().1;
        state.fetch_rate = self.rebalance.rate();
        state.surplus_records = self.surplus().unwrap_or(u64::MAX);
        state.draining = self.lifecycle.is_draining();
        state.pending_records = pending.records;
        state.pending_bytes = pending.bytes;
        state.oldest_pending = pending.oldest.0;
        state.read_only = pending.read_only;
        state.capacity_bytes = pending.capacity;
        state.used_bytes = pending.used;
        state.oldest_unverified_seconds = pending.oldest_unverified.as_secs();
        state.losses = self.loss_epoch();
        state.bad_records = self.ledger.own_missing(limits::LEDGER_EXCEPTIONS).len() as u64;
        state.endpoint = self.endpoint(self.me);
    }

    /// How far its logs reach durably (rule 19), for the peers.
    pub fn positions(&self) -> Vec<v1::LogPosition> {
        let position = |(directory, end): (afar_model::id::DirectoryId, afar_store::Position)| v1::LogPosition {
            directory: afar_proto::convert::bytes(directory.as_bytes()),
            segment: end.segment,
            offset: end.offset,
        };
        self.store.positions().into_iter().map(position).collect()
    }

    /// Whether some bucket lets this node acknowledge alone.
    fn may_queue(&self) -> bool {
        self.buckets.present().buckets.values().any(|bucket| bucket.queues() && bucket.may_queue(self.me))
    }

    /// Where a node is reached.
    pub fn endpoint(&self, node: NodeIndex) -> String {
        self.layout().node(node).map(|node| node.endpoint.clone()).unwrap_or_default()
    }

    /// Reads certificates and key again. Blocks.
    ///
    /// # Errors
    /// Why they are not used.
    pub fn reload_identity(&self) -> Result<Reloaded, IdentityError> {
        self.identity.reload(expected(&self.config, self.now()))
    }

    fn open_doors(self: &Arc<Self>, listener: TcpListener) -> Servers {
        let door = Door {
            identity: Arc::clone(&self.identity),
            layouts: Arc::clone(&self.layouts),
            lifecycle: self.lifecycle.clone(),
            connections: self.config.limits.connections,
            client_window: self.transfer.shares().client_window,
            peer_window: self.transfer.shares().peer_window,
        };
        door.serve(listener, grpc::client_routes(self), grpc::peer_routes(self))
    }

    /// Takes part in what the cluster thinks of its nodes.
    fn join_membership(&self) {
        let deliver = membership::over(&self.peers);
        let membership = Membership::start(&self.config.node, self.member_names(), deliver, &self.clock, &self.lifecycle);
        self.peers.set_membership(membership);
        // A layout may have come meanwhile.
        self.follow_members();
    }

    /// Those who joined are asked whether they live from now on, and those who left are not.
    pub fn follow_members(&self) {
        if let Some(membership) = self.peers.membership() {
            membership.set_members(self.member_names());
        }
    }

    fn member_names(&self) -> Vec<String> {
        let layout = self.layout();
        layout.members().map(|node| layout.node_name(node).to_owned()).collect()
    }

    /// Work that goes on by itself until the node ends.
    fn start_background(self: &Arc<Self>) {
        for peer in self.peers.others() {
            self.start_peer_tasks(peer);
        }
        let start = |name, task: fn(Arc<Self>, CancellationToken) -> BoxFuture<'static, ()>| {
            let node = Arc::clone(self);
            self.lifecycle.spawn(name, move |stop| task(node, stop));
        };
        start("layouts", |node, stop| Box::pin(exchange::run(node, stop)));
        start("release", |node, stop| Box::pin(release::run(node, stop)));
        start("outbox", |node, stop| Box::pin(outbox::run(node, stop)));
        start("settlements", |node, stop| Box::pin(settlements::run(node, stop)));
        start("surveys", |node, stop| Box::pin(upkeep::surveys(node, stop)));
        start("look", |node, stop| Box::pin(upkeep::look(node, stop)));
        start("index", |node, stop| Box::pin(upkeep::index(node, stop)));
        start("scrub", |node, stop| Box::pin(upkeep::scrub(node, stop)));
        start("compact", |node, stop| Box::pin(upkeep::compact(node, stop)));
        start("references", |node, stop| Box::pin(upkeep::references(node, stop)));
        start("discard", |node, stop| Box::pin(upkeep::discard(node, stop)));
        start("certificates", |node, stop| Box::pin(upkeep::certificates(node, stop)));
        start("acme", |node, stop| Box::pin(acme::run(node, stop)));
        start("physics", |node, stop| Box::pin(upkeep::physics(node, stop)));
    }

    /// What goes on with one peer until it leaves.
    pub fn start_peer_tasks(self: &Arc<Self>, peer: NodeIndex) {
        let node = Arc::clone(self);
        self.lifecycle.spawn("reconcile", move |stop| reconcile::run(node, peer, stop));
        let node = Arc::clone(self);
        self.lifecycle.spawn("audit", move |stop| audit::run(node, peer, stop));
    }

    /// How many records this node holds beyond what the current layout assigns to it; `None` if it has not counted yet.
    pub fn surplus(&self) -> Option<u64> {
        u64::try_from(self.surplus.load(Ordering::Acquire)).ok()
    }

    fn write_pid(&self) -> Result<(), StartError> {
        let Some(path) = &self.config.pid_file else { return Ok(()) };
        let text = format!("{}\n", std::process::id());
        files::replace(path, text.as_bytes(), 0o644).map_err(|error| StartError::File { path: path.clone(), error })
    }
}

impl Running {
    /// Ends the node: at most [`limits::DRAIN`]. What is not done by then is as after a crash, which loses nothing that was
    /// acknowledged.
    ///
    /// # Errors
    /// What did not end in time.
    pub async fn stop(self) -> Result<(), String> {
        let Self { node, servers, .. } = self;
        tokio::time::timeout(limits::DRAIN, drain(&node, servers)).await.map_err(|_| "the node did not end in time".to_owned())?
    }
}

async fn drain(node: &Node, servers: Servers) -> Result<(), String> {
    tracing::info!("ending: no new requests, those under way may finish");
    node.lifecycle.begin_drain();
    // Both tasks catch their panics, so there is nothing to learn from how they ended.
    let _ = servers.clients.await;
    let stopped = node.lifecycle.stop(limits::DRAIN_TASKS).await.map_err(|error| error.to_string());
    let _ = servers.peers.await;
    let store = node.store.clone();
    let closed = tokio::task::spawn_blocking(move || store.close()).await.map_err(|error| format!("close the log: {error}"));
    if let Some(path) = &node.config.pid_file {
        // If it is gone already, nothing is lost.
        let _ = std::fs::remove_file(path);
    }
    tracing::info!("ended");
    stopped.and(closed)
}

/// Reads and checks certificates and key.
///
/// # Errors
/// What is wrong with them.
pub fn load_identity(config: &Config, now: UnixMillis) -> Result<Identity, IdentityError> {
    let trust = layouts::newest(layouts::glance(&config.state), &config.layouts).map(|document| Trust::from(&document)).unwrap_or_default();
    match Identity::load_trusting(&config.tls, expected(config, now), trust.clone()) {
        // A layout must not keep a node from starting; whom it withdraws stays withdrawn.
        Err(IdentityError::Trust(error)) => {
            tracing::error!(%error, "the authorities that the layout names are left out");
            Identity::load_trusting(&config.tls, expected(config, now), Trust { extra_roots: Vec::new(), ..trust })
        }
        loaded => loaded,
    }
}

fn expected(config: &Config, now: UnixMillis) -> Expected<'_> {
    Expected { cluster: &config.cluster, node: &config.node, host: &config.host, now }
}

async fn open_http(config: &Config, tls: &Arc<PublicTls>, lifecycle: &Lifecycle) -> Result<Option<Arc<Gateway>>, StartError> {
    let opened = http::open(config, tls, lifecycle).await;
    opened.map_err(|error| StartError::Http { address: config.http.map_or(config.listen, |http| http.listen), error })
}

/// The clock goes on after what the log holds, as far as it can be believed (rule 4).
async fn start_clock(clock: &Clock, store: &Store, lifecycle: &Lifecycle) -> Result<(), StartError> {
    let (reader, limit) = (store.clone(), clock.limit());
    let seen = lifecycle.blocking("stamps", move || reader.stamps_up_to(limit)).await;
    let seen = seen.ok_or_else(|| StartError::System("reading the log's stamps failed: this is a bug, please report it".into()))?;
    clock.start_after(seen.newest, seen.beyond);
    Ok(())
}

async fn open_store(config: &Config, clock: &Clock, lifecycle: &Lifecycle) -> Result<(Store, Opened), StartError> {
    make_private_directory(&config.state).map_err(|error| StartError::File { path: config.state.clone(), error })?;
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| StartError::System("the system gives no randomness".into()))?;
    let clock = clock.clone();
    let options = Options {
        init_dirs: config.init_dirs || is_first_start(config),
        segment_bytes: config.limits.segment,
        index_cache_bytes: config.limits.index_cache,
        ..Options::new(config.node.clone(), config.data.clone(), config.state.clone(), seed, Arc::new(move || clock.now()))
    };
    let faults = config.sync_faults.clone();
    let open = move || match faults {
        None => Store::open(options),
        Some(faults) => {
            Store::open_on(Arc::new(FaultyDisk::new(faults)), Arc::new(SledFactory { cache_bytes: options.index_cache_bytes }), options)
        }
    };
    let opened = lifecycle.blocking("open the log", open).await;
    let (store, opened) = opened.ok_or_else(|| StartError::System("opening the log failed: this is a bug, please report it".into()))??;
    for directory in &opened.directories {
        let path = directory.path.display();
        match &directory.state {
            DirectoryState::Created => tracing::info!(%path, "data directory initialised"),
            DirectoryState::Healthy => tracing::debug!(%path, "data directory"),
            DirectoryState::ReadOnly(why) => tracing::error!(%path, why, "data directory takes no writes"),
            DirectoryState::Failed(why) => tracing::error!(%path, why, "data directory failed"),
        }
    }
    Ok((store, opened))
}

/// Says, in the folder of a node's state, that it has had a chain of layouts: beside the folder that holds it.
const HAS_LAYOUTS: &str = "has_layouts";

/// Whether what ran here last was a version that knew no layouts but its configuration's: it has left its list of
/// directories, and not the word that there was more.
fn is_of_a_version_without_layouts(config: &Config) -> bool {
    !is_first_start(config) && !config.state.join("layouts").exists() && !config.state.join(HAS_LAYOUTS).exists()
}

fn note_layouts(config: &Config) -> Result<(), StartError> {
    let path = config.state.join(HAS_LAYOUTS);
    if path.exists() {
        return Ok(());
    }
    let text = b"without the folder \"layouts\", this node does not know what it has forgotten\n";
    files::replace(&path, text, 0o600).map_err(|error| StartError::File { path, error })
}

/// Whether this node has never had a directory: then there is nothing that an empty one could hide (rule 19).
fn is_first_start(config: &Config) -> bool {
    !config.state.join("directories").exists()
}
