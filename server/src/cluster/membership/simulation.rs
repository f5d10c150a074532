//! Many nodes in one thread and virtual time, on a network that delays, loses and cuts. Every choice comes from a seed, which
//! a failing test prints; `AFAR_TEST_SEED` runs with another one.
#![allow(clippy::unwrap_used)]
use super::{
    BadPacket, Liveness,
    swim::{At, Swim},
};
use crate::limits::{ANNOUNCE_EVERY, PROBE_PERIOD, PROBE_ROUND_TRIP, SUSPECT_FOR};
use afar_model::units::UnixMillis;
use bytes::Bytes;
use foca_rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// When every simulation begins.
const BEGIN: u64 = 1_800_000_000_000;
/// A round of announcements and a few round trips: what a heal takes.
const HEAL: Duration = ANNOUNCE_EVERY.saturating_add(Duration::from_secs(10));
const MINUTE: Duration = Duration::from_secs(60);

fn seeds() -> Vec<u64> {
    match std::env::var("AFAR_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => vec![1, 2, 3],
    }
}

struct Node {
    name: String,
    swim: Option<Swim>,
    /// When it is to be woken next.
    wake: Option<Duration>,
    /// How far its wall clock leads.
    clock_ms: i64,
    paused: bool,
    seen: BTreeMap<String, Liveness>,
    /// Of what was seen.
    revision: Option<u64>,
}

enum Event {
    Tick(usize),
    Packet { from: usize, to: usize, bytes: Bytes },
}

/// A change of opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    at: Duration,
    observer: usize,
    subject: usize,
    liveness: Liveness,
}

struct World {
    seed: u64,
    chance: SmallRng,
    now: Duration,
    nodes: Vec<Node>,
    queue: BTreeMap<(Duration, u64), Event>,
    number: u64,
    loss: f64,
    /// Most milliseconds of a way, one way.
    latency_ms: u64,
    /// Added to each way from and to a node.
    slow: BTreeMap<usize, Duration>,
    cut: BTreeSet<(usize, usize)>,
    history: Vec<Change>,
    packets: u64,
    /// What went from the second node to the first.
    overheard: Vec<Bytes>,
}

impl World {
    /// Nodes that start within the first second, each knowing the names of all.
    fn new(count: usize, seed: u64, loss: f64) -> Self {
        let node = |index| Node {
            name: format!("node-{index:02}"),
            swim: None,
            wake: None,
            clock_ms: 0,
            paused: false,
            seen: BTreeMap::new(),
            revision: None,
        };
        let mut world = Self {
            seed,
            chance: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            nodes: (0..count).map(node).collect(),
            queue: BTreeMap::new(),
            number: 0,
            loss,
            latency_ms: 150,
            slow: BTreeMap::new(),
            cut: BTreeSet::new(),
            history: Vec::new(),
            packets: 0,
            overheard: Vec::new(),
        };
        for index in 0..count {
            world.run(Duration::from_millis(1000 / count as u64));
            world.start(index);
        }
        world
    }

    /// All know all.
    fn formed(count: usize, seed: u64, loss: f64) -> Self {
        let mut world = Self::new(count, seed, loss);
        world.until("all know all", MINUTE, World::all_alive);
        world.history.clear();
        world
    }

    fn start(&mut self, index: usize) {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let (seed, at) = (self.chance.random(), self.at(index));
        self.nodes[index].swim = Some(Swim::new(&names[index], names.iter().map(String::as_str), seed, at));
        self.nodes[index].seen.clear();
        self.nodes[index].revision = None;
        self.after(index);
    }

    fn kill(&mut self, index: usize) {
        self.nodes[index].swim = None;
        self.nodes[index].wake = None;
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    fn isolate(&mut self, index: usize) {
        (0..self.nodes.len()).filter(|other| *other != index).for_each(|other| self.cut(index, other));
    }

    fn at(&self, index: usize) -> At {
        let since = u64::try_from(self.now.as_millis()).unwrap();
        At { monotonic: self.now, wall: UnixMillis((BEGIN + since).saturating_add_signed(self.nodes[index].clock_ms)) }
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.number += 1;
        self.queue.insert((at, self.number), event);
    }

    /// After anything has happened to a node: its packets go out, its next tick is set, its changes of mind are noted.
    fn after(&mut self, index: usize) {
        let Some(swim) = &mut self.nodes[index].swim else { return };
        let (packets, next) = (swim.take_packets(), swim.next_tick().max(self.now));
        for packet in packets {
            self.send(index, &packet.to, packet.bytes);
        }
        let node = &mut self.nodes[index];
        if node.wake.is_none_or(|wake| next < wake) {
            node.wake = Some(next);
            self.push(next, Event::Tick(index));
        }
        self.note(index);
    }

    fn send(&mut self, from: usize, to: &str, bytes: Bytes) {
        self.packets += 1;
        let to = self.nodes.iter().position(|node| node.name == to).expect("only nodes of the layout are written to");
        assert!(to != from, "nobody writes to itself");
        if (from, to) == (1, 0) {
            self.overheard.push(bytes.clone());
        }
        // A way has its own length, and some unrest.
        let length = (from.min(to) * 31 + from.max(to) * 17) as u64 % self.latency_ms.max(2);
        let unrest = self.chance.random_range(0..=self.latency_ms / 10);
        let slow = |index: &usize| self.slow.get(index).copied().unwrap_or_default();
        let latency = Duration::from_millis(1 + length + unrest) + slow(&from) + slow(&to);
        if !self.chance.random_bool(self.loss) {
            self.push(self.now + latency, Event::Packet { from, to, bytes });
        }
    }

    fn note(&mut self, index: usize) {
        let Some(swim) = &self.nodes[index].swim else { return };
        let revision = Some(swim.revision());
        if self.nodes[index].revision == revision {
            return;
        }
        let new: BTreeMap<String, Liveness> = swim.opinions().iter().map(|(name, opinion)| (name.to_string(), opinion.liveness)).collect();
        for (name, liveness) in &new {
            if self.nodes[index].seen.get(name) != Some(liveness) {
                let subject = self.nodes.iter().position(|node| node.name == *name).unwrap();
                self.history.push(Change { at: self.now, observer: index, subject, liveness: *liveness });
            }
        }
        self.nodes[index].seen = new;
        self.nodes[index].revision = revision;
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(index) => {
                let at = self.at(index);
                let node = &mut self.nodes[index];
                if node.paused || node.wake != Some(self.now) {
                    return;
                }
                node.wake = None;
                let Some(swim) = &mut node.swim else { return };
                swim.tick(at);
                self.after(index);
            }
            Event::Packet { from, to, bytes } => {
                let (at, name) = (self.at(to), self.nodes[from].name.clone());
                // Who stands still does not read either, and the calls run into their deadline.
                if self.cut.contains(&(from, to)) || self.nodes[to].paused {
                    return;
                }
                let Some(swim) = &mut self.nodes[to].swim else { return };
                swim.receive(&name, &bytes, at).unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
                self.after(to);
            }
        }
    }

    /// Runs until something holds, looking ten times a second, and says how long that took.
    fn until(&mut self, what: &str, most: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            self.check(self.now - start < most, &format!("{what}: not within {most:?}"));
            self.run(Duration::from_millis(100));
        }
        self.now - start
    }

    fn check(&self, holds: bool, what: &str) {
        assert!(holds, "{what}; AFAR_TEST_SEED={}, at {:?}, last changes: {:#?}", self.seed, self.now, {
            &self.history[self.history.len().saturating_sub(12)..]
        });
    }

    fn sees(&self, observer: usize, subject: usize) -> Liveness {
        self.nodes[observer].seen.get(&self.nodes[subject].name).copied().unwrap_or_default()
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let running = (0..self.nodes.len()).filter(|index| self.nodes[*index].swim.is_some());
        running.flat_map(|observer| (0..self.nodes.len()).map(move |subject| (observer, subject))).filter(|(a, b)| a != b)
    }

    fn all_see(&self, subject: usize, liveness: Liveness) -> bool {
        self.pairs().filter(|(_, about)| *about == subject).all(|(observer, _)| self.sees(observer, subject) == liveness)
    }

    fn all_alive(&self) -> bool {
        self.pairs().all(|(observer, subject)| self.sees(observer, subject) == Liveness::Alive)
    }

    fn ever(&self, liveness: Liveness) -> impl Iterator<Item = &Change> {
        self.history.iter().filter(move |change| change.liveness == liveness)
    }

    fn nobody_was_down(&self) {
        self.check(self.ever(Liveness::Down).count() == 0, "nobody is ever down");
    }

    /// How long a suspicion lasts among so many.
    fn suspicion(&self) -> Duration {
        SUSPECT_FOR.mul_f64((self.nodes.len() as f64).log10().max(1.0))
    }
}

#[test]
fn fifty_nodes_find_each_other_though_packets_are_lost_and_stay_together() {
    for seed in seeds() {
        let mut world = World::new(50, seed, 0.05);
        let took = world.until("all see all up", Duration::from_secs(30), World::all_alive);
        println!("seed {seed}: formed in {took:?} with {} packets", world.packets);
        let packets = world.packets;
        world.run(3 * MINUTE);
        println!("seed {seed}: then {} packets a second and node", (world.packets - packets) / (180 * 50));
        world.nobody_was_down();
    }
}

#[test]
fn a_killed_node_is_suspect_before_it_is_down_and_all_know_within_a_bound() {
    for (seed, count) in seeds().into_iter().flat_map(|seed| [(seed, 50), (seed, 3)]) {
        let mut world = World::formed(count, seed, 0.05);
        world.run(Duration::from_secs(5));
        world.kill(1);
        let killed = world.now;
        // Somebody asks it within a few periods, its silence shows after another, and the news takes two or three.
        let bound = 6 * PROBE_PERIOD + world.suspicion() + 4 * PROBE_PERIOD;
        let took = world.until("all see it down", bound, |world| world.all_see(1, Liveness::Down));
        println!("seed {seed}, {count} nodes: down everywhere after {took:?}");
        for observer in (0..count).filter(|index| *index != 1) {
            let of = |liveness| {
                world.ever(liveness).find(move |change| (change.observer, change.subject) == (observer, 1) && change.at >= killed)
            };
            let (suspect, down) = (of(Liveness::Suspect), of(Liveness::Down));
            world.check(suspect.zip(down).is_some_and(|(suspect, down)| suspect.at < down.at), "suspicion comes before death");
        }
        world.check(world.ever(Liveness::Down).all(|change| change.subject == 1), "nobody else is down");
    }
}

#[test]
fn a_slow_node_is_never_taken_for_dead() {
    for (seed, loss) in seeds().into_iter().flat_map(|seed| [(seed, 0.05), (seed, 0.0)]) {
        let mut world = World::formed(10, seed, loss);
        world.latency_ms = 40;
        // 45 ms at most of each way's own, there and back: just below the round trip that is waited for.
        world.slow.insert(3, PROBE_ROUND_TRIP / 2 - Duration::from_millis(46));
        world.run(10 * MINUTE);
        world.nobody_was_down();
        if loss == 0.0 {
            world.check(world.ever(Liveness::Suspect).count() == 0, "nobody is even suspected");
        }
    }
}

#[test]
fn a_node_that_one_cannot_reach_and_others_can_is_not_down_and_it_is_known_who_reaches_it() {
    for (seed, count) in seeds().into_iter().flat_map(|seed| [(seed, 3), (seed, 10)]) {
        for both_ways in [false, true] {
            let mut world = World::formed(count, seed, 0.0);
            world.cut.insert((0, 1));
            if both_ways {
                world.cut.insert((1, 0));
            }
            world.run(10 * MINUTE);
            world.nobody_was_down();
            world.check(world.all_alive(), "everybody reaches everybody somehow");
            let opinion = &world.nodes[0].swim.as_ref().unwrap().opinions()["node-01"];
            let witness = opinion.reached.as_ref().map(|reached| reached.from.as_str());
            world.check(witness.is_some_and(|from| from != "node-00" && from != "node-01"), &format!("reached from {witness:?}"));
            let opinion = &world.nodes[0].swim.as_ref().unwrap().opinions()["node-02"];
            world.check(opinion.reached.is_none(), "whom it reaches itself needs no witness");
        }
    }
}

#[test]
fn a_node_that_starts_again_is_up_again_everywhere() {
    for seed in seeds() {
        for (absence, clock_ms) in [(Duration::from_millis(10), 0), (MINUTE, 0), (MINUTE, -3_600_000), (MINUTE, 3_600_000)] {
            let mut world = World::formed(10, seed, 0.05);
            world.kill(4);
            world.run(absence);
            world.nodes[4].clock_ms = clock_ms;
            world.start(4);
            let back = |world: &World| world.all_alive() && world.nodes[4].swim.is_some();
            let took = world.until("it is up again", Duration::from_secs(10), back);
            println!("seed {seed}: away for {absence:?}, clock {clock_ms} ms: up after {took:?}");
            world.history.clear();
            world.run(2 * MINUTE);
            world.nobody_was_down();
        }
    }
}

#[test]
fn who_lost_everybody_finds_all_again() {
    for (seed, count) in seeds().into_iter().flat_map(|seed| [(seed, 2), (seed, 10)]) {
        let mut world = World::formed(count, seed, 0.0);
        world.isolate(0);
        world.run(5 * MINUTE);
        world.check((1..count).all(|other| world.sees(0, other) == Liveness::Down), "alone it sees nobody");
        world.check(world.all_see(0, Liveness::Down), "and nobody sees it");
        world.cut.clear();
        let took = world.until("all see all again", HEAL, World::all_alive);
        println!("seed {seed}, {count} nodes: healed in {took:?}");
    }
}

#[test]
fn two_halves_find_each_other_again() {
    for seed in seeds() {
        let mut world = World::formed(10, seed, 0.05);
        for (a, b) in (0..5).flat_map(|a| (5..10).map(move |b| (a, b))) {
            world.cut(a, b);
        }
        world.run(5 * MINUTE);
        world.check(world.sees(0, 9) == Liveness::Down && world.sees(9, 0) == Liveness::Down, "each half takes the other for dead");
        world.check(world.sees(0, 4) == Liveness::Alive && world.sees(9, 5) == Liveness::Alive, "and holds together");
        world.cut.clear();
        let took = world.until("all see all again", HEAL, World::all_alive);
        println!("seed {seed}: healed in {took:?}");
    }
}

#[test]
fn a_process_that_stood_still_accuses_nobody_and_is_back_at_once() {
    for (seed, still) in seeds().into_iter().flat_map(|seed| [(seed, Duration::from_secs(3)), (seed, MINUTE)]) {
        let mut world = World::formed(10, seed, 0.0);
        // In the middle of a question of its own.
        world.run(Duration::from_millis(2100));
        world.nodes[0].paused = true;
        world.run(still);
        world.nodes[0].paused = false;
        let now = world.now;
        world.nodes[0].wake = Some(now);
        world.push(now, Event::Tick(0));
        world.until("it is back", Duration::from_secs(10), World::all_alive);
        world.run(MINUTE);
        let accused = world.history.iter().filter(|change| change.observer == 0 && change.liveness != Liveness::Alive);
        world.check(accused.count() == 0, "it accuses nobody of its own silence");
    }
}

#[test]
fn a_farewell_needs_no_suspicion() {
    for seed in seeds() {
        let mut world = World::formed(10, seed, 0.0);
        let at = world.at(7);
        world.nodes[7].swim.as_mut().unwrap().leave(at);
        world.after(7);
        world.kill(7);
        world.until("all know that it left", 4 * PROBE_PERIOD, |world| world.all_see(7, Liveness::Down));
        world.check(world.ever(Liveness::Suspect).count() == 0, "nobody had to find out");
    }
}

#[test]
fn nodes_that_leave_the_layout_are_forgotten_and_new_ones_found() {
    for seed in seeds() {
        let mut world = World::formed(6, seed, 0.0);
        let names: Vec<String> = world.nodes.iter().map(|node| node.name.clone()).collect();
        let set = |world: &mut World, last: usize| {
            for index in 0..6 {
                let at = world.at(index);
                world.nodes[index].swim.as_mut().unwrap().set_members(names[..last].iter().map(String::as_str), at);
                world.after(index);
            }
        };
        set(&mut world, 5);
        world.check(world.all_see(5, Liveness::Unknown), "it is forgotten at once");
        // It does not know that it is out, and goes on talking: nobody listens.
        let (at, stranger) = (world.at(0), world.nodes[5].name.clone());
        let refused = world.nodes[0].swim.as_mut().unwrap().receive(&stranger, &[1, 0], at);
        assert_eq!(refused, Err(BadPacket::Stranger));
        world.kill(5);
        world.run(MINUTE);
        world.check(world.all_see(5, Liveness::Unknown), "nor do rumours bring it back");
        world.start(5);
        set(&mut world, 6);
        world.until("it is found again", HEAL, World::all_alive);
    }
}

#[test]
fn a_death_that_is_claimed_of_a_run_that_cannot_be_is_not_believed() {
    use foca::{Codec as _, Header, Member, Message, PostcardCodec};
    let mut world = World::formed(3, 1, 0.0);
    let id = |world: &World, index: usize| world.nodes[index].swim.as_ref().unwrap().identity().clone();
    let (liar, victim, dupe) = (id(&world, 0), id(&world, 1), id(&world, 2));
    let claim = |boot, suffix| {
        let mut body = Vec::new();
        let header = Header { src: liar.clone(), src_incarnation: 0, dst: dupe.clone(), message: Message::Gossip };
        PostcardCodec.encode_header(&header, &mut body).unwrap();
        body.extend(1_u16.to_be_bytes());
        let dead = super::Identity { name: victim.name.clone(), boot, suffix };
        PostcardCodec.encode_member(&Member::down(dead), &mut body).unwrap();
        super::packet::swim(&body)
    };
    let tell = |world: &mut World, packet: &[u8]| {
        let at = world.at(2);
        world.nodes[2].swim.as_mut().unwrap().receive("node-00", packet, at).unwrap();
        world.after(2);
    };
    tell(&mut world, &claim(u64::MAX, 0));
    world.check(world.sees(2, 1) == Liveness::Alive, "no run begins at the end of time");
    // One that could be is believed, until the victim hears of it and takes a greater one.
    tell(&mut world, &claim(victim.boot + 3_600_000, 9));
    world.check(world.sees(2, 1) == Liveness::Down, "a claim is a claim");
    world.until("the victim contradicts", 4 * PROBE_PERIOD, World::all_alive);
    assert!(id(&world, 1).is_newer(&super::Identity { boot: victim.boot + 3_600_000, suffix: 9, ..victim }));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::formed(10, 7, 0.2);
        world.kill(3);
        world.run(2 * MINUTE);
        (world.packets, world.history)
    };
    assert_eq!(run(), run());
}

proptest! {
    #[test]
    fn malformed_packets_change_nothing(noise in proptest::collection::vec(any::<u8>(), 0..200), framed in any::<bool>(), sender in 0..4_usize) {
        let mut world = World::formed(3, 1, 0.0);
        let (at, name) = (world.at(0), format!("node-{sender:02}"));
        let swim = world.nodes[0].swim.as_mut().unwrap();
        let packet = if framed { [&[1, 0], &noise[..]].concat() } else { noise };
        let before = swim.fingerprint();
        prop_assert!(swim.receive(&name, &packet, at).is_err());
        prop_assert_eq!(before, swim.fingerprint());
    }

    /// Good packets with a few bytes changed, cut off or put in: some still make sense.
    #[test]
    fn spoilt_packets_are_read_or_refused_and_never_half_of_it(
        which in any::<prop::sample::Index>(),
        spoils in proptest::collection::vec((0..3_u8, any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut world = World::formed(3, 2, 0.0);
        world.kill(2);
        world.run(MINUTE);
        let mut packet = which.get(&world.overheard).to_vec();
        for (kind, place, byte) in spoils {
            let place = place.index(packet.len().max(1));
            match kind {
                0 => packet.truncate(place),
                1 => packet.insert(place, byte),
                _ => packet.iter_mut().skip(place).take(1).for_each(|there| *there ^= byte),
            }
        }
        let at = world.at(0);
        let swim = world.nodes[0].swim.as_mut().unwrap();
        let before = swim.fingerprint();
        if swim.receive("node-01", &packet, at).is_err() {
            prop_assert_eq!(before, swim.fingerprint());
        }
        world.after(0);
        world.run(MINUTE);
    }
}
