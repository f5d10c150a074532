//! The membership protocol without a network, a clock or a random source of its own: bytes, names and times go in, packets
//! and opinions come out. The same inputs give the same outputs, so 50 nodes and ten minutes fit into a test of a second.
//!
//! The protocol is SWIM as `foca` speaks it: every period each node asks one other whether it lives; who does not answer is
//! asked again through three others; who answers none of them is suspected, and the suspicion travels with all packets until
//! the suspect contradicts or its time is up. What is added here:
//!
//! * Whoever is not known as alive is told of this node again and again, at most every [`limits::ANNOUNCE_EVERY`]. A node that
//!   lost everybody finds them all again, and two halves of a cluster each other.
//! * A node that comes back with a smaller identity than it is known by (its clock was set back) is told so, and takes a
//!   greater one.
//! * Time during which this process stood still does not count: whoever was asked before could not be heard.
use super::{
    packet::{self, Admitted, BadPacket, FRAME_BYTES, Gate, Identity},
    verdict::{Liveness, Opinion, Reached},
};
use crate::limits;
use afar_model::units::UnixMillis;
use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Config, Foca, Member, Message, NoCustomBroadcast, OwnedNotification, PeriodicParams, PostcardCodec, State, Timer,
};
use foca_rand::{SeedableRng as _, rngs::SmallRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::{NonZeroU8, NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// By [`crate::clock::Clock::monotonic`].
    pub monotonic: Duration,
    /// By the wall clock.
    pub wall: UnixMillis,
}

/// A packet to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// To the node of this name.
    pub to: Arc<str>,
    /// These bytes.
    pub bytes: Bytes,
}

/// Every other node's opinion, by name. Who is missing is unknown.
pub type Opinions = BTreeMap<Arc<str>, Opinion>;

/// One node's part in the protocol.
pub struct Swim {
    me: Arc<str>,
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    members: BTreeSet<Arc<str>>,
    /// What is due when, by [`Swim::time`]; the number keeps the order of what is due together.
    timers: BTreeMap<(Duration, u64), Timer<Identity>>,
    numbers: u64,
    /// For how long this process has stood still in all.
    stood_still: Duration,
    announce_at: Duration,
    announce_pause: Duration,
    /// The next announcement goes to those who are alive, too: they know this node by an older identity, or not at all.
    announce_to_all: bool,
    rose_at: Option<Duration>,
    /// Who reached a node that this one did not, and when by the true monotonic clock.
    witnesses: BTreeMap<Arc<str>, (Arc<str>, Duration)>,
    opinions: Opinions,
    revision: u64,
    packets: Vec<Packet>,
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim").field("identity", self.foca.identity()).field("opinions", &self.opinions).finish_non_exhaustive()
    }
}

impl Swim {
    /// The node `name` among `members` (all nodes of the layout; itself may be among them). It announces itself with the first
    /// [`Swim::tick`]. `seed` decides every choice that it will make.
    pub fn new<'a>(name: &str, members: impl IntoIterator<Item = &'a str>, seed: u64, at: At) -> Self {
        let me: Arc<str> = Arc::from(name);
        let members = others(&me, members);
        let identity = Identity { boot: at.wall.0, ..Identity::anybody(&me) };
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            foca: Foca::new(identity, config(members.len()), rng, PostcardCodec),
            me,
            runtime: AccumulatingRuntime::new(),
            members,
            timers: BTreeMap::new(),
            numbers: 0,
            stood_still: Duration::ZERO,
            announce_at: at.monotonic,
            announce_pause: limits::ANNOUNCE_FIRST,
            announce_to_all: true,
            rose_at: None,
            witnesses: BTreeMap::new(),
            opinions: Opinions::new(),
            revision: 0,
            packets: Vec::new(),
        }
    }

    /// Who this node is at present.
    pub const fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// What is thought of every other node.
    pub const fn opinions(&self) -> &Opinions {
        &self.opinions
    }

    /// Changes whenever an opinion does.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// When [`Swim::tick`] is to be called, by the monotonic clock, unless something else happens before.
    pub fn next_tick(&self) -> Duration {
        self.due() + self.stood_still
    }

    /// What is to be sent, once.
    pub fn take_packets(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.packets)
    }

    /// Replaces the nodes of the layout. Who is new is told of this node; who is gone is forgotten here, and nobody is told.
    pub fn set_members<'a>(&mut self, members: impl IntoIterator<Item = &'a str>, at: At) {
        self.excuse(at);
        let members = others(&self.me, members);
        if members == self.members {
            return;
        }
        self.members = members;
        let gone = self.foca.iter_members().filter(|member| !self.members.contains(&member.id().name));
        let gone: Vec<Member<Identity>> = gone.map(|member| Member::new(member.id().clone(), member.incarnation(), State::Down)).collect();
        let applied = self.foca.apply_many(gone.into_iter(), false, &mut self.runtime);
        self.settle(applied, at);
        // Only what may change at run time does.
        let changed = self.foca.set_config(config(self.members.len()));
        self.settle(changed, at);
        self.witnesses.retain(|name, _| self.members.contains(name));
        self.announce_soon(at);
        self.refresh(at);
    }

    /// A packet has arrived. `from`: whom the sender's certificate names.
    ///
    /// # Errors
    /// Why it was not let in; nothing has changed then.
    pub fn receive(&mut self, from: &str, packet: &[u8], at: At) -> Result<(), BadPacket> {
        let gate = Gate {
            from,
            me: &self.me,
            members: &self.members,
            newest_boot: at.wall.0.saturating_add(limits::BOOT_AHEAD_MAX.as_millis() as u64),
            body_bytes: limits::GOSSIP_BYTES - FRAME_BYTES,
        };
        let admitted = gate.admit(packet)?;
        self.excuse(at);
        match admitted {
            Admitted::Outdated(known) => self.rise_above(&known, at),
            Admitted::Swim { header, body, about_us } => {
                if let Some(known) = about_us {
                    self.rise_above(&known, at);
                }
                if let Some(known) = self.known(from).filter(|known| known.is_newer(&header.src)) {
                    // The protocol would call it dead, whereupon it would renew itself, and be no newer; and so on.
                    let to = Arc::clone(&known.name);
                    self.packets.extend(packet::outdated(known).map(|bytes| Packet { to, bytes }));
                    return Ok(());
                }
                if let Message::ForwardedAck { origin, .. } = header.message {
                    self.witnesses.insert(origin.name, (header.src.name, at.monotonic));
                }
                let handled = self.foca.handle_data(&body, &mut self.runtime);
                self.settle(handled, at);
            }
        }
        self.refresh(at);
        Ok(())
    }

    /// Does what is due.
    pub fn tick(&mut self, at: At) {
        self.excuse(at);
        let now = self.time(at);
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let handled = self.foca.handle_timer(entry.remove(), &mut self.runtime);
            self.settle(handled, at);
        }
        if self.announce_at <= now {
            self.announce(at);
        }
        self.refresh(at);
    }

    /// Says farewell: this process ends, so that nobody needs to find out.
    pub fn leave(&mut self, at: At) {
        let left = self.foca.leave_cluster(&mut self.runtime);
        self.settle(left, at);
    }

    /// All that a packet could change.
    #[cfg(test)]
    pub(super) fn fingerprint(&self) -> String {
        let known: Vec<_> = self.foca.iter_membership_state().collect();
        format!(
            "{self:?} {known:?} {:?} {:?} {:?} {:?} {} {:?}",
            self.timers,
            self.witnesses,
            self.packets,
            (self.announce_at, self.announce_pause, self.announce_to_all, self.rose_at, self.stood_still),
            self.revision,
            (self.foca.num_members(), self.foca.updates_backlog())
        )
    }

    /// The monotonic clock less the time that does not count.
    const fn time(&self, at: At) -> Duration {
        at.monotonic.saturating_sub(self.stood_still)
    }

    fn due(&self) -> Duration {
        self.timers.first_key_value().map_or(self.announce_at, |((due, _), _)| self.announce_at.min(*due))
    }

    fn excuse(&mut self, at: At) {
        let late = self.time(at).saturating_sub(self.due());
        if late > limits::STOOD_STILL {
            self.stood_still += late;
        }
    }

    fn known(&self, name: &str) -> Option<&Identity> {
        self.foca.iter_membership_state().map(Member::id).find(|id| *id.name == *name)
    }

    /// Others know this node by an identity that beats its own: takes one that beats that. Not often: if there are two
    /// processes of one name they do this to each other, until they are told apart elsewhere (rule 19).
    fn rise_above(&mut self, known: &Identity, at: At) {
        let now = self.time(at);
        let lately = self.rose_at.is_some_and(|rose| now.saturating_sub(rose) < limits::PROBE_PERIOD);
        let Some(next) = known.renewed().filter(|_| !lately && known.is_newer(self.identity())) else { return };
        self.rose_at = Some(now);
        let changed = self.foca.change_identity(next, &mut self.runtime);
        self.settle(changed, at);
        self.announce_to_all = true;
        self.announce_soon(at);
    }

    fn announce_soon(&mut self, at: At) {
        self.announce_at = self.time(at);
        self.announce_pause = limits::ANNOUNCE_FIRST;
    }

    fn announce(&mut self, at: At) {
        let alive: BTreeSet<Arc<str>> = match std::mem::take(&mut self.announce_to_all) {
            true => BTreeSet::new(),
            false => self.foca.iter_members().map(|member| Arc::clone(&member.id().name)).collect(),
        };
        let unheard: Vec<Identity> = self.members.difference(&alive).map(Identity::anybody).collect();
        for anybody in unheard {
            let announced = self.foca.announce(anybody, &mut self.runtime);
            self.settle(announced, at);
        }
        self.announce_at = self.time(at) + self.announce_pause;
        self.announce_pause = (self.announce_pause * 2).min(limits::ANNOUNCE_EVERY);
    }

    /// Takes what the protocol wants done. What it could not do it tries again by itself: an error is only for the log.
    fn settle(&mut self, done: Result<(), foca::Error>, at: At) {
        if let Err(error) = done {
            tracing::debug!(%error, "membership");
        }
        while let Some((to, bytes)) = self.runtime.to_send() {
            // It may still want to speak to its own past, and to nodes that have left the layout.
            if self.members.contains(&to.name) {
                self.packets.push(Packet { to: to.name, bytes: packet::swim(&bytes) });
            }
        }
        let now = self.time(at);
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.numbers = self.numbers.wrapping_add(1);
            self.timers.insert((now + after, self.numbers), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::Rejoin(_) => {
                    self.announce_to_all = true;
                    self.announce_soon(at);
                }
                OwnedNotification::Idle => self.announce_soon(at),
                _ => {}
            }
        }
    }

    fn refresh(&mut self, at: At) {
        let before = self.opinions.len();
        self.opinions.retain(|name, _| self.members.contains(name));
        let mut changed = before != self.opinions.len();
        self.witnesses.retain(|_, (_, when)| at.monotonic.saturating_sub(*when) < limits::WITNESS_KEPT);
        for member in self.foca.iter_membership_state() {
            let name = &member.id().name;
            if !self.members.contains(name) {
                continue;
            }
            let liveness = liveness(member.state());
            let witness = self.witnesses.get(name).filter(|_| liveness == Liveness::Alive);
            let reached = witness.map(|(from, at)| Reached { from: from.to_string(), at: *at });
            match self.opinions.get_mut(name) {
                Some(opinion) if opinion.liveness == liveness && opinion.reached == reached => {}
                Some(opinion) => {
                    if opinion.liveness != liveness {
                        (opinion.liveness, opinion.since) = (liveness, at.monotonic);
                    }
                    opinion.reached = reached;
                    changed = true;
                }
                None => {
                    let opinion = Opinion { liveness, since: at.monotonic, reached };
                    self.opinions.insert(Arc::clone(name), opinion);
                    changed = true;
                }
            }
        }
        self.revision = self.revision.wrapping_add(u64::from(changed));
    }
}

const fn liveness(state: State) -> Liveness {
    match state {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down => Liveness::Down,
    }
}

fn others<'a>(me: &str, members: impl IntoIterator<Item = &'a str>) -> BTreeSet<Arc<str>> {
    members.into_iter().filter(|name| *name != me).map(Arc::from).collect()
}

/// The protocol's parameters among so many others.
fn config(others: usize) -> Config {
    let nodes = NonZeroU32::MIN.saturating_add(u32::try_from(others).unwrap_or(u32::MAX));
    // The more nodes, the longer news and their contradiction travel: by as many steps as the number has digits.
    let steps = f64::from(nodes.get()).log10().max(1.0);
    Config {
        probe_period: limits::PROBE_PERIOD,
        probe_rtt: limits::PROBE_ROUND_TRIP,
        suspect_to_down_after: limits::SUSPECT_FOR.mul_f64(steps),
        // At most ten steps, so far from overflowing.
        max_transmissions: limits::NEWS_TOLD.saturating_mul(NonZeroU8::MIN.saturating_add(steps.ceil() as u8 - 1)),
        // Members are as many as the layout has nodes, so there is no need to forget any, and who is forgotten while it is
        // down is taken for alive again wherever an old packet arrives.
        remove_down_after: None,
        max_packet_size: NonZeroUsize::MIN.saturating_add(limits::GOSSIP_BYTES - FRAME_BYTES - 1),
        // Who comes back must hear that it is taken for dead.
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams { frequency: limits::ROSTER_EVERY, num_members: NonZeroUsize::MIN }),
        // `Swim::announce` does it, and to all of them.
        periodic_announce_to_down_members: None,
        ..Config::new_wan(nodes)
    }
}
