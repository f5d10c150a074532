//! Heartbeats, said and answered.
use super::{PeerState, Peers, Slot};
use crate::{
    cluster::{
        connect::{ConnectError, jitter},
        layouts::awaited,
        memory::{self, Accepted, Alone, Circumstances, Claim, LogEnd, Refusal},
        pulse::Miss,
    },
    limits,
};
use afar_model::{
    id::{DirectoryId, Incarnation},
    layout::NodeIndex,
    units::UnixMillis,
};
use afar_proto::v1::{self, peer_client::PeerClient};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::error::Elapsed;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

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

/// A heartbeat that was answered.
#[derive(Debug, Clone, Copy)]
struct Measured {
    round_trip: Duration,
    /// Our wall clock half-way between question and answer.
    midpoint: UnixMillis,
}

impl Slot {
    /// Whether a request failed because the connection that carried it has ended, and no attempt to make a new one failed:
    /// what the other side says has no source here.
    fn connection_ended(&self, status: &Status) -> bool {
        let timeout = matches!(status.code(), Code::DeadlineExceeded) || status.message().contains("Timeout expired");
        !timeout && std::error::Error::source(status).is_some() && self.connector.last_failure().is_none()
    }
}

impl Peers {
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
        self.replaced.heard(self.own.incarnation, state.catching_up);
        state.replaced = self.replaced.all().iter().map(|disks| afar_proto::convert::bytes(disks.as_bytes())).collect();
        state.now = self.clock.now().0;
        state
    }

    pub(super) async fn heartbeat(&self, node: NodeIndex, stop: CancellationToken) {
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

    pub(super) async fn say_hello(&self, node: NodeIndex, slot: &Slot) {
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
                if status.message().contains(memory::SUPERSEDED) && !self.superseded.swap(true, Ordering::AcqRel) {
                    tracing::warn!(peer = slot.name, "{}: what they took is fetched before this node's word counts", memory::SUPERSEDED);
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
        let mut news = false;
        let heard = self.change(node, &slot, |record| {
            if let Some(measured) = measured {
                record.pulse.answered(measured.round_trip);
                record.answered = Some(self.clock.monotonic());
                record.clock_offset_ms = said.now.cast_signed().saturating_sub(measured.midpoint.0.cast_signed());
                record.missed = None;
            }
            let now = self.clock.monotonic();
            let before = record.remembered.last().map(|claim| claim.incarnation);
            let silent = now.saturating_sub(record.spoke);
            let circumstances = Circumstances { behind: said.catching_up, asked: measured.is_some(), silent };
            let accepted = checked.and_then(|claim| {
                let run = (claim.incarnation, claim.boot);
                let accepted = record.remembered.hear(claim, circumstances, now);
                if record.remembered.last().is_some_and(|last| (last.incarnation, last.boot) == run) {
                    record.spoke = now;
                }
                Ok(accepted?)
            });
            match &accepted {
                Ok(accepted) => {
                    record.refuses_us &= measured.is_none();
                    if !record.refuses_us {
                        record.unfit = None;
                    }
                    record.heard = Some(now);
                    self.note_replaced(*accepted, before, record.remembered.last().map(|claim| claim.incarnation), &said);
                    news = record.remembered.told(*accepted, alone(&said), self.clock.now());
                    record.catching_up = said.catching_up || *accepted == Accepted::NewIncarnation;
                    record.incarnation_changes += u64::from(*accepted == Accepted::NewIncarnation);
                    record.said = Some(said);
                }
                Err(HelloRefused::Refused(Refusal::Outlived)) if measured.is_none() => record.outlived = Some(now),
                Err(refused) => record.unfit = Some(refused.to_string()),
            }
            accepted
        });
        if measured.is_none() && slot.record.lock().pulse.state() != PeerState::Up {
            // It reaches us: find out at once whether we reach it.
            slot.poke.notify_one();
        }
        let accepted = heard?;
        if accepted != Accepted::Same {
            self.note(&slot.name, accepted);
        }
        if news || accepted != Accepted::Same {
            self.remember.notify_one();
        }
        Ok(())
    }

    /// What a peer is, and what it knows, about disks that took the place of others.
    fn note_replaced(&self, accepted: Accepted, before: Option<Incarnation>, now: Option<Incarnation>, said: &v1::NodeState) {
        if let (Accepted::NewIncarnation, Some(before), Some(now)) = (accepted, before, now) {
            self.replaced.met(before, now);
        }
        if let Some(now) = now {
            self.replaced.heard(now, said.catching_up);
        }
        self.replaced.told(said.replaced.iter().filter_map(|disks| afar_proto::convert::id("replaced", disks).ok()));
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
    }

    /// Whether disks that say something are those of the peer (rule 19): of several machines of one name, those that were met
    /// last. `incarnation` as on the wire: earlier programs do not say.
    pub fn is_from(&self, node: NodeIndex, incarnation: &[u8]) -> bool {
        let Some(slot) = self.slot(node) else { return false };
        let record = slot.record.lock();
        incarnation.is_empty() || record.remembered.last().is_none_or(|last| last.incarnation.as_bytes() == incarnation)
    }

    /// A peer has answered a write: so far do its logs reach. Once for each message, however many writes it carried; what it
    /// changes is written with the next turn of the memory.
    pub fn reached(&self, node: NodeIndex, positions: &[v1::LogPosition]) {
        if positions.is_empty() || positions.len() > limits::POSITIONS_MAX {
            return;
        }
        if let Some(slot) = self.slot(node) {
            slot.record.lock().remembered.reached(positions.iter().filter_map(|position| place(position).ok()));
        }
    }
}

/// What a peer claims to be, checked.
pub(super) fn check(said: &v1::NodeState, name: &str) -> Result<Claim, HelloRefused> {
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
    Ok(Claim { incarnation, boot, positions: said.positions.iter().map(place).collect::<Result<_, HelloRefused>>()? })
}

fn place(position: &v1::LogPosition) -> Result<(DirectoryId, LogEnd), HelloRefused> {
    let directory = afar_proto::convert::id("positions.directory", &position.directory);
    Ok((directory.map_err(|error| HelloRefused::Malformed(error.to_string()))?, (position.segment, position.offset)))
}

/// What a peer says that it holds alone; of an older program, everything that it owes.
fn alone(said: &v1::NodeState) -> Alone {
    let alone = match &said.alone {
        Some(v1::Alone { objects, bytes, unknown, may_queue }) => {
            Alone { objects: *objects, bytes: *bytes, unknown: *unknown, may_queue: *may_queue }
        }
        None => Alone { objects: said.pending_records, bytes: said.pending_bytes, ..Alone::default() },
    };
    alone.bounded()
}
