//! One node: what it is made of, how it starts and how it ends.
//!
//! Order of starting: who are we (certificates, before anything is touched) → our disks (locked, recovered) → the port → the
//! peers → background work → the pid file, which says "serving". The order of ending is the reverse: the doors first, then
//! those who are under way, then background work, then the disks.
use crate::{
    clock::Clock,
    cluster::{
        connect::bulk_window,
        identity::{Expected, Identity, IdentityError},
        keyring::{KeyRing, NotSealed},
        membership::{self, Membership},
        memory::{self, MemoryError},
        peers::{Own, PeerError, Peers, PeersOptions},
    },
    config::Config,
    files,
    gateways::grpc::{
        self,
        listener::{Door, Servers},
    },
    health::{survey::Survey, upkeep},
    lifecycle::Lifecycle,
    limits,
    objects::buckets::BucketTable,
    reliance::Reliance,
    replication::{
        audit,
        lane::Lanes,
        ledger::Ledger,
        outbox::{self, Pending},
        reconcile,
        settlements::{self, Settlements},
    },
};
use afar_model::{
    layout::{Layout, NodeIndex},
    units::UnixMillis,
};
use afar_proto::v1;
use afar_store::{DirectoryState, OpenError, Opened, Options, Store, disk::FailingDisk, index::sled::SledFactory};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// A node's parts. Shared by everything that runs in it.
#[derive(Debug)]
pub struct Node {
    /// What it was told.
    pub config: Config,
    /// Sites and nodes.
    pub layout: Arc<Layout>,
    /// Which of the nodes this is.
    pub me: NodeIndex,
    /// Its certificate.
    pub identity: Arc<Identity>,
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
    /// Bytes in flight (rule 29): one permit a byte. Never closed.
    pub transfer: Arc<Semaphore>,
    /// The buckets.
    pub buckets: BucketTable,
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
    /// What is remembered of peers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The layout's endpoints.
    #[error(transparent)]
    Peers(#[from] PeerError),
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
            Self::Identity(_) | Self::Peers(_) => 2,
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
        let (store, opened) = open_store(&config, &clock, &lifecycle).await?;
        clock.start_after(store.newest_stamp_seen());
        let listener = TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen { address: config.listen, error })?;
        let address = listener.local_addr().map_err(|error| StartError::Listen { address: config.listen, error })?;
        let layout = Arc::new(config.layout.clone());
        let peers = Peers::new(PeersOptions {
            layout: Arc::clone(&layout),
            endpoints: config.endpoints.clone(),
            own: Own { node: config.me, incarnation: opened.incarnation, boot: opened.boot },
            identity: Arc::clone(&identity),
            clock: clock.clone(),
            lifecycle: lifecycle.clone(),
            state_directory: config.state.clone(),
            transfer: config.limits.transfer,
            memory: memory::load(&config.state)?,
        })?;
        let lost = !opened.losses.is_empty() || opened.directories.iter().any(|directory| directory.state == DirectoryState::Created);
        let reliance = Reliance::open(&config.state, lost).map_err(|error| StartError::File { path: config.state.clone(), error })?;
        let lane_budget = u32::try_from(config.limits.transfer / 2).unwrap_or(u32::MAX >> 1);
        let node = Arc::new(Self {
            buckets: BucketTable::new(Arc::clone(&layout)),
            lanes: Lanes::start(&peers, peers.others(), lane_budget, &lifecycle),
            ledger: Ledger::default(),
            settlements: Settlements::default(),
            reliance,
            survey: ArcSwap::default(),
            pending: ArcSwap::default(),
            keyring: KeyRing::new(&config.secret, &config.admin)?,
            transfer: Arc::new(Semaphore::new(usize::try_from(config.limits.transfer).unwrap_or(Semaphore::MAX_PERMITS))),
            me: config.me,
            layout,
            identity,
            store,
            opened,
            peers,
            clock,
            lifecycle,
            config,
        });
        node.begin_alone();
        node.reload_settings().await;
        node.prepare();
        let servers = node.open_doors(listener);
        node.peers.start();
        node.join_membership();
        node.start_background();
        node.write_pid()?;
        tracing::info!(node = node.config.node, %address, boot = %node.opened.boot, "serving");
        Ok(Running { node, address, servers })
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
        let positions = self.store.positions();
        state.positions = positions
            .into_iter()
            .map(|(directory, end)| v1::LogPosition {
                directory: afar_proto::convert::bytes(directory.as_bytes()),
                segment: end.segment,
                offset: end.offset,
            })
            .collect();
        let pending = self.pending.load();
        state.catching_up = self.is_catching_up();
        state.draining = self.lifecycle.is_draining();
        state.pending_records = pending.records;
        state.pending_bytes = pending.bytes;
        state.oldest_pending = pending.oldest.0;
        state.read_only = pending.read_only;
        state.capacity_bytes = pending.capacity;
        state.used_bytes = pending.used;
        state.oldest_unverified_seconds = pending.oldest_unverified.as_secs();
        state.bad_records = self.ledger.own_missing(limits::LEDGER_EXCEPTIONS).len() as u64;
        state.endpoint = self.endpoint(self.me);
    }

    /// Where a node is reached.
    pub fn endpoint(&self, node: NodeIndex) -> String {
        self.config.endpoints.get(usize::from(node.0)).cloned().unwrap_or_default()
    }

    fn open_doors(self: &Arc<Self>, listener: TcpListener) -> Servers {
        let others = self.layout.nodes().len().saturating_sub(1);
        let door = Door {
            identity: Arc::clone(&self.identity),
            layout: Arc::clone(&self.layout),
            lifecycle: self.lifecycle.clone(),
            connections: self.config.limits.connections,
            peer_window: bulk_window(self.config.limits.transfer, others),
        };
        door.serve(listener, grpc::client_routes(self), grpc::peer_routes(self))
    }

    /// Takes part in what the cluster thinks of its nodes.
    fn join_membership(&self) {
        let names = self.layout.nodes().iter().map(|node| node.name.clone()).collect();
        let deliver = membership::over(&self.peers);
        let membership = Membership::start(&self.config.node, names, deliver, &self.clock, &self.lifecycle);
        self.peers.set_membership(membership);
    }

    /// Work that goes on by itself until the node ends.
    fn start_background(self: &Arc<Self>) {
        for peer in self.peers.others() {
            let node = Arc::clone(self);
            self.lifecycle.spawn("reconcile", move |stop| reconcile::run(node, peer, stop));
            let node = Arc::clone(self);
            self.lifecycle.spawn("audit", move |stop| audit::run(node, peer, stop));
        }
        let start = |name, task: fn(Arc<Self>, CancellationToken) -> BoxFuture<'static, ()>| {
            let node = Arc::clone(self);
            self.lifecycle.spawn(name, move |stop| task(node, stop));
        };
        start("outbox", |node, stop| Box::pin(outbox::run(node, stop)));
        start("settlements", |node, stop| Box::pin(settlements::run(node, stop)));
        start("surveys", |node, stop| Box::pin(upkeep::surveys(node, stop)));
        start("index", |node, stop| Box::pin(upkeep::index(node, stop)));
        start("scrub", |node, stop| Box::pin(upkeep::scrub(node, stop)));
        start("compact", |node, stop| Box::pin(upkeep::compact(node, stop)));
        start("references", |node, stop| Box::pin(upkeep::references(node, stop)));
        start("discard", |node, stop| Box::pin(upkeep::discard(node, stop)));
        start("physics", |node, stop| Box::pin(upkeep::physics(node, stop)));
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
    Identity::load(&config.tls, Expected { cluster: &config.cluster, node: &config.node, host: &config.host, now })
}

async fn open_store(config: &Config, clock: &Clock, lifecycle: &Lifecycle) -> Result<(Store, Opened), StartError> {
    std::fs::create_dir_all(&config.state).map_err(|error| StartError::File { path: config.state.clone(), error })?;
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| StartError::System("the system gives no randomness".into()))?;
    let clock = clock.clone();
    let options = Options {
        init_dirs: config.init_dirs || is_first_start(config),
        segment_bytes: config.limits.segment,
        index_cache_bytes: config.limits.index_cache,
        ..Options::new(config.node.clone(), config.data.clone(), config.state.clone(), seed, Arc::new(move || clock.now()))
    };
    let failing = config.fail_sync_after;
    let open = move || match failing {
        None => Store::open(options),
        Some(syncs) => {
            Store::open_on(Arc::new(FailingDisk::new(syncs)), Arc::new(SledFactory { cache_bytes: options.index_cache_bytes }), options)
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

/// Whether this node has never had a directory: then there is nothing that an empty one could hide (rule 19).
fn is_first_start(config: &Config) -> bool {
    !config.state.join("directories").exists()
}
