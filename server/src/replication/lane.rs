//! The sending half of replication: long-lived streams of records to one peer.
//!
//! A peer has one lane for small records and a few for bulk, so that a 4 KiB version never waits behind megabytes. What
//! waits in a lane goes out together: under load a message carries many records and the peer syncs them with one
//! `fdatasync`. Every lane is bounded in bytes (rule 29), so a slow peer slows those who write to it and nobody else.
//!
//! A lane vouches only for its own present stream: after a reconnect the peer may be another run of the program, and
//! what was written but not synced before counts for nothing. [`Generation`] makes that visible to whoever waits.
use crate::{
    budget::{Budget, PeerPermit, PeerPool},
    cluster::peers::{ChannelKind, Peers},
    lifecycle::Lifecycle,
    limits,
};
use afar_model::layout::NodeIndex;
use afar_proto::{
    outgoing::Uncopied,
    v1::{self, peer_client::PeerClient, store_request::Work},
};
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// One stream of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

/// The peer's answer to records.
#[derive(Debug)]
pub struct Stored {
    /// One for each record, in order.
    pub records: Vec<v1::StoredRecord>,
    /// To be named in a later [`LaneHandle::sync`].
    pub sequence: u64,
    /// The stream that wrote them.
    pub generation: Generation,
}

/// Why a peer has not stored what it was sent. Whether it has is unknown unless it says so itself.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LaneError {
    /// Not connected, or the connection broke before the answer.
    #[error("{0}")]
    Unreachable(String),
    /// The peer refused.
    #[error("{reason}: {detail}")]
    Refused {
        /// As in the message: "full", "clock", …
        reason: String,
        /// In words.
        detail: String,
    },
}

/// Which lane of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneKind {
    /// Versions, settings, manifests.
    Small,
    /// Chunks; those of one upload take one lane.
    Bulk(usize),
}

struct Command {
    work: Work,
    reply: Option<oneshot::Sender<Result<Stored, LaneError>>>,
    /// Only valid on this stream.
    only: Option<Generation>,
    _budget: Option<PeerPermit>,
}

/// One lane to one peer.
#[derive(Debug, Clone)]
pub struct LaneHandle {
    commands: mpsc::Sender<Command>,
    to: NodeIndex,
    budget: Arc<PeerPool>,
}

impl LaneHandle {
    /// Sends records; returns when the peer has written them, and if they are to be synced, made them durable.
    ///
    /// # Errors
    /// If the peer cannot be reached, the stream breaks, or the peer refuses.
    pub async fn store(&self, request: v1::StoreRecords) -> Result<Stored, LaneError> {
        let budget = self.budget.take(self.to, weight(&request)).await.ok_or_else(closed)?;
        self.ask(Work::Records(request), None, Some(budget)).await
    }

    /// Makes durable what the peer wrote for these sequences of this stream.
    ///
    /// # Errors
    /// If the stream is no longer that one, or the peer's sync failed: then nothing is known to be durable.
    pub async fn sync(&self, generation: Generation, sequences: Vec<u64>) -> Result<(), LaneError> {
        self.ask(Work::Sync(v1::SyncWritten { sequences }), Some(generation), None).await.map(|_| ())
    }

    /// Tells the peer that versions are at their level; dropped if the lane is full or broken, for anti-entropy or the
    /// next reader will find out as well.
    pub fn settle(&self, versions: Vec<v1::Settled>) {
        let work = Work::Settle(v1::SettleVersions { versions });
        let _ = self.commands.try_send(Command { work, reply: None, only: None, _budget: None });
    }

    /// Tells the peer to forget a prepared version that was never acknowledged; returns when that is on its way.
    pub async fn abandon(&self, version: v1::VersionRef) {
        let work = Work::Abandon(v1::AbandonVersion { version: Some(version) });
        let _ = self.commands.send(Command { work, reply: None, only: None, _budget: None }).await;
    }

    async fn ask(&self, work: Work, only: Option<Generation>, budget: Option<PeerPermit>) -> Result<Stored, LaneError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { work, reply: Some(reply), only, _budget: budget }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

fn closed() -> LaneError {
    LaneError::Unreachable("this node is shutting down".into())
}

/// The lanes to every peer.
#[derive(Debug)]
pub struct Lanes {
    by_node: RwLock<HashMap<NodeIndex, PeerLanes>>,
}

#[derive(Debug)]
struct PeerLanes {
    small: LaneHandle,
    bulk: Vec<LaneHandle>,
}

impl Lanes {
    /// Starts a task per lane. What may be in flight is bounded by `budget`.
    pub fn start(peers: &Arc<Peers>, others: impl Iterator<Item = NodeIndex>, budget: &Budget, lifecycle: &Lifecycle) -> Self {
        let lanes = Self { by_node: RwLock::default() };
        others.for_each(|node| lanes.add(peers, node, budget, lifecycle));
        lanes
    }

    /// Starts lanes to a node that has none.
    pub fn add(&self, peers: &Arc<Peers>, node: NodeIndex, budget: &Budget, lifecycle: &Lifecycle) {
        self.by_node.write().entry(node).or_insert_with(|| PeerLanes::start(peers, node, budget, lifecycle));
    }

    /// A lane to a peer; `None` for this node itself or one that the layout does not name.
    pub fn to(&self, node: NodeIndex, kind: LaneKind) -> Option<LaneHandle> {
        let lanes = self.by_node.read();
        let lanes = lanes.get(&node)?;
        match kind {
            LaneKind::Small => Some(lanes.small.clone()),
            LaneKind::Bulk(n) => lanes.bulk.get(n % lanes.bulk.len().max(1)).cloned(),
        }
    }
}

impl PeerLanes {
    fn start(peers: &Arc<Peers>, node: NodeIndex, budget: &Budget, lifecycle: &Lifecycle) -> Self {
        let lane = |kind, budget: &Arc<PeerPool>| {
            let (commands, receiver) = mpsc::channel(limits::LANE_QUEUE);
            let task = LaneTask { peers: Arc::clone(peers), node, kind, commands: receiver, generations: AtomicU64::new(0) };
            lifecycle.spawn("lane", move |stop| task.run(stop));
            LaneHandle { commands, to: node, budget: Arc::clone(budget) }
        };
        let bulk = (0..limits::BULK_LANES).map(|n| lane(ChannelKind::Bulk(n), &budget.lanes)).collect();
        Self { small: lane(ChannelKind::Control, &budget.small_lanes), bulk }
    }
}

struct LaneTask {
    peers: Arc<Peers>,
    node: NodeIndex,
    kind: ChannelKind,
    commands: mpsc::Receiver<Command>,
    generations: AtomicU64,
}

type Waiters = Vec<(oneshot::Sender<Result<Stored, LaneError>>, usize, Option<PeerPermit>)>;

/// A request that was sent and not yet answered.
struct InFlight {
    waiters: Waiters,
    sent: Instant,
}

impl LaneTask {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return,
                command = self.commands.recv() => match command { Some(command) => command, None => return },
            };
            match self.open().await {
                Ok((requests, replies)) => {
                    let generation = Generation(self.generations.fetch_add(1, Ordering::Relaxed) + 1);
                    self.pump(first, requests, replies, generation, &stop).await;
                }
                Err(error) => fail_command(first, &error),
            }
        }
    }

    async fn open(&self) -> Result<(mpsc::Sender<v1::StoreRequest>, tonic::Streaming<v1::StoreReply>), LaneError> {
        if !self.peers.usable(self.node) {
            return Err(LaneError::Unreachable("the peer does not answer".into()));
        }
        let channel = self.peers.channel(self.node, self.kind).ok_or_else(|| LaneError::Unreachable("no such peer".into()))?;
        let (requests, receiver) = mpsc::channel(limits::LANE_AHEAD);
        let mut client = PeerClient::new(Uncopied::new(channel, ReceiverStream::new(receiver)))
            .max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX);
        let opened = tokio::time::timeout(limits::LANE_OPEN, client.store(tokio_stream::empty())).await;
        let replies = opened.map_err(|_| LaneError::Unreachable("the peer did not open a stream in time".into()))?;
        let replies = replies.map_err(|status| LaneError::Unreachable(format!("the peer refused a stream: {}", status.message())))?;
        Ok((requests, replies.into_inner()))
    }

    /// Moves commands out and answers in until the stream breaks or falls silent while something is in flight.
    async fn pump(
        &mut self,
        first: Command,
        requests: mpsc::Sender<v1::StoreRequest>,
        mut replies: tonic::Streaming<v1::StoreReply>,
        generation: Generation,
        stop: &CancellationToken,
    ) {
        let mut in_flight: BTreeMap<u64, InFlight> = BTreeMap::new();
        let mut sequence = 0;
        let mut carried = None;
        let mut next = self.batch(first, &mut carried, generation, &mut sequence);
        let error = loop {
            if next.is_none()
                && let Some(command) = carried.take()
            {
                next = self.batch(command, &mut carried, generation, &mut sequence);
                continue;
            }
            // Sequences ascend, so the first is the oldest: whatever else is answered, it must be in time.
            let due = in_flight.first_key_value().map(|(_, request)| request.sent + limits::LANE_SILENCE);
            tokio::select! {
                () = stop.cancelled() => break closed(),
                reply = replies.message() => match reply {
                    Ok(Some(reply)) if !self.peers.is_from(self.node, &reply.incarnation) => {
                        break LaneError::Unreachable("other disks have taken the place of those that answered".into());
                    }
                    Ok(Some(reply)) => {
                        // Before anybody is told that it is durable: see `Remembered::reached`.
                        self.peers.reached(self.node, &reply.positions);
                        answer(&mut in_flight, reply, generation);
                    }
                    Ok(None) => break LaneError::Unreachable("the peer closed the stream".into()),
                    Err(status) => break LaneError::Unreachable(format!("the stream broke: {}", status.message())),
                },
                command = self.commands.recv(), if next.is_none() => match command {
                    Some(command) => next = self.batch(command, &mut carried, generation, &mut sequence),
                    None => break closed(),
                },
                permit = requests.reserve(), if next.is_some() => match (permit, next.take()) {
                    (Ok(permit), Some((request, waiters))) => {
                        if !waiters.is_empty() {
                            in_flight.insert(request.sequence, InFlight { waiters, sent: Instant::now() });
                        }
                        permit.send(request);
                    }
                    (Err(_), Some((_, waiters))) => {
                        let error = LaneError::Unreachable("the stream broke".into());
                        fail(waiters, &error);
                        break error;
                    }
                    (_, None) => {}
                },
                () = at(due) => break LaneError::Unreachable(format!("the peer did not answer within {} s", limits::LANE_SILENCE.as_secs())),
            }
        };
        tracing::debug!(node = ?self.node, %error, in_flight = in_flight.len(), "lane closed");
        in_flight.into_values().for_each(|request| fail(request.waiters, &error));
        next.into_iter().for_each(|(_, waiters)| fail(waiters, &error));
        carried.into_iter().for_each(|command| fail_command(command, &error));
    }

    /// One request from this command and, where they are alike and small, from those that wait behind it.
    fn batch(
        &mut self,
        command: Command,
        carried: &mut Option<Command>,
        generation: Generation,
        sequence: &mut u64,
    ) -> Option<(v1::StoreRequest, Waiters)> {
        if command.only.is_some_and(|only| only != generation) {
            fail_command(command, &LaneError::Unreachable("the stream that wrote this is gone".into()));
            return None;
        }
        let Command { mut work, reply, _budget, .. } = command;
        let mut waiters: Waiters = reply.into_iter().map(|reply| (reply, count(&work), None)).collect();
        if let Some(waiter) = waiters.first_mut() {
            waiter.2 = _budget;
        }
        while let Work::Records(records) = &mut work {
            if !records.sync || weight(records) > limits::LANE_BATCH_BYTES || records.records.len() >= limits::LANE_BATCH_RECORDS {
                break;
            }
            let Ok(command) = self.commands.try_recv() else { break };
            match command {
                Command { work: Work::Records(more), reply: Some(reply), _budget: budget, .. }
                    if more.sync && more.class == records.class && weight(&more) <= limits::LANE_BATCH_BYTES =>
                {
                    waiters.push((reply, more.records.len(), budget));
                    records.records.extend(more.records);
                    records.supersedes.extend(more.supersedes);
                }
                other => {
                    *carried = Some(other);
                    break;
                }
            }
        }
        *sequence += 1;
        Some((v1::StoreRequest { sequence: *sequence, work: Some(work), incarnation: self.peers.own_incarnation() }, waiters))
    }
}

/// Resolves at a time; never without one.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn count(work: &Work) -> usize {
    if let Work::Records(records) = work { records.records.len() } else { 0 }
}

fn weight(records: &v1::StoreRecords) -> usize {
    records.records.iter().map(|record| record.body.len()).sum()
}

fn answer(in_flight: &mut BTreeMap<u64, InFlight>, reply: v1::StoreReply, generation: Generation) {
    let Some(request) = in_flight.remove(&reply.sequence) else { return };
    if let Some(failure) = reply.failure {
        return fail(request.waiters, &LaneError::Refused { reason: failure.reason, detail: failure.detail });
    }
    let mut records = reply.records.into_iter();
    for (waiter, count, _budget) in request.waiters {
        let records: Vec<v1::StoredRecord> = records.by_ref().take(count).collect();
        let stored = if records.len() == count {
            Ok(Stored { records, sequence: reply.sequence, generation })
        } else {
            Err(LaneError::Unreachable("the peer's answer is malformed".into()))
        };
        let _ = waiter.send(stored);
    }
}

fn fail(waiters: Waiters, error: &LaneError) {
    for (waiter, _, _) in waiters {
        let _ = waiter.send(Err(error.clone()));
    }
}

fn fail_command(command: Command, error: &LaneError) {
    if let Some(reply) = command.reply {
        let _ = reply.send(Err(error.clone()));
    }
}
