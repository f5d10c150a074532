//! What the *cluster* thinks of each node, by SWIM: whom nobody reaches is down, whom only this node does not reach is not.
//!
//! Reading order: what becomes of a peer's state ([`verdict`], pure), what is let in (`packet`, pure), the protocol ([`swim`],
//! no network and no clock), and here the one task that runs it. Packets travel as unary calls over the control channels that
//! heartbeats use, so that whoever sends one has shown a certificate. Nothing waits for them: what is too much is dropped, and
//! the protocol, which was made for lossy networks, goes on. Nor does anything wait for an opinion: reading one is a look at a
//! shared table. While nothing is known, or if the task should ever die, every opinion is [`Liveness::Unknown`], and heartbeats
//! alone decide.
pub mod swim;

pub mod verdict;

mod packet;

#[cfg(test)]
mod simulation;

use crate::{
    clock::Clock,
    cluster::peers::{ChannelKind, Peers},
    lifecycle::Lifecycle,
    limits,
};
use afar_proto::v1;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use swim::{At, Opinions, Packet, Swim};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Request;

pub use packet::{BadPacket, Identity};
pub use verdict::{Direct, Liveness, Opinion, Reached, combine};

/// Sends a packet to the node of that name, within [`limits::GOSSIP_DEADLINE`] or not at all; `None` if there is no such node.
pub type Deliver = Box<dyn Fn(&str, Bytes) -> Option<BoxFuture<'static, ()>> + Send + Sync>;

/// The node's part in the membership protocol. Cheap to clone; every clone is the same.
#[derive(Debug, Clone)]
pub struct Membership(Arc<Shared>);

struct Shared {
    opinions: ArcSwap<Opinions>,
    changes: watch::Sender<u64>,
    members: watch::Sender<Vec<String>>,
    inbox: mpsc::Sender<(String, Bytes)>,
    dropped: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("opinions", &**self.opinions.load()).finish_non_exhaustive()
    }
}

impl Membership {
    /// Takes part as the node `name`. `members`: all nodes of the layout. Ends with the lifecycle, and says farewell.
    pub fn start(name: &str, members: Vec<String>, deliver: Deliver, clock: &Clock, lifecycle: &Lifecycle) -> Self {
        let (inbox, packets) = mpsc::channel(limits::GOSSIP_QUEUE);
        let shared = Arc::new(Shared {
            opinions: ArcSwap::default(),
            changes: watch::Sender::new(0),
            members: watch::Sender::new(members),
            inbox,
            dropped: AtomicU64::new(0),
        });
        let mut new_members = shared.members.subscribe();
        let at = now(clock);
        let swim = Swim::new(name, new_members.borrow_and_update().iter().map(String::as_str), rand::random(), at);
        let task = Task {
            swim,
            published: None,
            shared: Arc::clone(&shared),
            deliver,
            in_flight: BTreeMap::new(),
            clock: clock.clone(),
            lifecycle: lifecycle.clone(),
        };
        lifecycle.spawn("membership", move |stop| task.run(packets, new_members, stop));
        Self(shared)
    }

    /// What the cluster thinks of a node. Never waits.
    pub fn view(&self, node: &str) -> Opinion {
        self.0.opinions.load().get(node).cloned().unwrap_or_default()
    }

    /// Changes whenever an opinion does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Replaces the nodes of the layout.
    pub fn set_members(&self, members: Vec<String>) {
        self.0.members.send_replace(members);
    }

    /// Takes a packet from the node that the sender's certificate names, or drops it. Never waits.
    pub fn receive(&self, from: &str, packet: Bytes) {
        if packet.len() > limits::GOSSIP_BYTES || self.0.inbox.try_send((from.to_owned(), packet)).is_err() {
            self.0.drop_one();
        }
    }

    /// Packets that were dropped in this run, of both directions, because there were too many or they were wrong.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends packets over the control channels to the peers.
pub fn over(peers: &Arc<Peers>) -> Deliver {
    let peers = Arc::clone(peers);
    Box::new(move |to, packet| {
        let mut client = peers.client_named(to, ChannelKind::Control)?;
        Some(Box::pin(async move {
            let mut request = Request::new(v1::GossipRequest { packet });
            request.set_timeout(limits::GOSSIP_DEADLINE);
            // Whether it has arrived is the protocol's to find out.
            let _ = tokio::time::timeout(limits::GOSSIP_DEADLINE, client.gossip(request)).await;
        }))
    })
}

fn now(clock: &Clock) -> At {
    At { monotonic: clock.monotonic(), wall: clock.now() }
}

struct Task {
    swim: Swim,
    published: Option<u64>,
    shared: Arc<Shared>,
    deliver: Deliver,
    /// Packets under way to each node: one that does not answer must not take the others' places.
    in_flight: BTreeMap<Arc<str>, Arc<Semaphore>>,
    clock: Clock,
    lifecycle: Lifecycle,
}

impl Task {
    async fn run(
        mut self,
        mut packets: mpsc::Receiver<(String, Bytes)>,
        mut members: watch::Receiver<Vec<String>>,
        stop: CancellationToken,
    ) {
        loop {
            self.swim.tick(now(&self.clock));
            self.act();
            let pause = self.swim.next_tick().saturating_sub(self.clock.monotonic());
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Ok(()) = members.changed() => self.change_members(&mut members),
                Some((from, packet)) = packets.recv() => self.hear(&from, &packet),
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.swim.leave(now(&self.clock));
        self.act();
    }

    fn change_members(&mut self, members: &mut watch::Receiver<Vec<String>>) {
        let members = members.borrow_and_update();
        self.swim.set_members(members.iter().map(String::as_str), now(&self.clock));
        self.in_flight.retain(|name, _| members.iter().any(|member| **member == **name));
    }

    fn hear(&mut self, from: &str, packet: &[u8]) {
        if let Err(error) = self.swim.receive(from, packet, now(&self.clock)) {
            tracing::debug!(peer = from, %error, "a membership packet was dropped");
            self.shared.drop_one();
        }
    }

    fn act(&mut self) {
        for packet in self.swim.take_packets() {
            self.send(packet);
        }
        let revision = self.swim.revision();
        if self.published != Some(revision) {
            self.published = Some(revision);
            self.publish();
        }
    }

    fn send(&mut self, packet: Packet) {
        let places = self.in_flight.entry(Arc::clone(&packet.to)).or_insert_with(|| Arc::new(Semaphore::new(limits::GOSSIP_IN_FLIGHT)));
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            self.shared.drop_one();
            return;
        };
        if let Some(delivery) = (self.deliver)(&packet.to, packet.bytes) {
            self.lifecycle.spawn_brief("gossip", async move {
                delivery.await;
                drop(place);
            });
        }
    }

    fn publish(&self) {
        let opinions = self.swim.opinions();
        let before = self.shared.opinions.load();
        for (name, opinion) in opinions {
            let was = before.get(name).map_or(Liveness::Unknown, |before| before.liveness);
            if was != opinion.liveness {
                tracing::info!(peer = &**name, opinion = opinion.liveness.name(), was = was.name(), "membership");
            }
        }
        self.shared.opinions.store(Arc::new(opinions.clone()));
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Drop for Task {
    /// Opinions that nobody keeps up to date any more are none.
    fn drop(&mut self) {
        self.shared.opinions.store(Arc::default());
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}
