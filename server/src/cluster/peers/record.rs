//! What is known of one peer, and what follows from it: pure.
use super::PeerState;
use crate::cluster::{
    membership::{self, Direct, Opinion},
    memory::{Doubt, LogEnd, Remembered},
    pulse::Pulse,
};
use crate::limits;
use afar_model::{
    id::{BootId, DirectoryId, Incarnation},
    layout::{Duty, NodeIndex},
    units::UnixMillis,
};
use afar_proto::v1;
use std::{collections::BTreeMap, time::Duration};

/// What is known of a peer.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// When it was last heard, by [`crate::clock::Clock::monotonic`]; `None`: not in this run.
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
    /// Grows when it loses something in its present run.
    pub losses: u64,
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
    /// Disks that it has replaced are running as well.
    pub is_shadowed: bool,
}

/// Disks that are not heard now, and what they may hold that nobody else has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Whose they are, or were.
    pub node: NodeIndex,
    /// What they may hold.
    pub doubt: Doubt,
    /// Why they are not heard.
    pub why: Absence,
}

/// Why disks are not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// Their node does not answer: nobody has said yet that they are gone.
    Silent,
    /// Other disks answer under their node's name, or the layout says that it is gone.
    Gone,
}

/// What one peer said and did, and what it did not.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) pulse: Pulse,
    pub(super) remembered: Remembered,
    pub(super) said: Option<v1::NodeState>,
    pub(super) heard: Option<Duration>,
    /// When the disks that are believed last spoke, be it that they were refused.
    pub(super) spoke: Duration,
    /// When disks that these have replaced last spoke.
    pub(super) outlived: Option<Duration>,
    /// When it last answered a heartbeat of ours.
    pub(super) answered: Option<Duration>,
    pub(super) clock_offset_ms: i64,
    pub(super) incarnation_changes: u64,
    pub(super) catching_up: bool,
    /// Why it answers and is still not worked with.
    pub(super) unfit: Option<String>,
    /// The last answer to our own heartbeat was a refusal: its heartbeats to us do not undo that.
    pub(super) refuses_us: bool,
    /// Why the last heartbeat failed.
    pub(super) missed: Option<String>,
}

/// What a change of must be told to those who choose among peers.
#[derive(PartialEq)]
pub(super) struct Telling(pub(super) PeerState, pub(super) bool, bool, bool, Option<BootId>, Option<(bytes::Bytes, bool, bool, u64)>);

/// What of our own layouts decides whether a peer can be worked with.
pub(super) struct Ours {
    pub(super) open: Vec<[u8; 32]>,
    /// The current layout waits for this peer: it is neither removed nor lost.
    pub(super) awaited: bool,
}

impl Record {
    pub(super) fn state(&self) -> PeerState {
        match self.pulse.state() {
            PeerState::Down => PeerState::Down,
            _ if self.unfit.is_some() => PeerState::Refused,
            state => state,
        }
    }

    /// Two nodes work together if a layout is open at both: what one writes by it, the other finds by it (rule 21).
    pub(super) fn agrees(&self, ours: &Ours) -> bool {
        let Some(said) = &self.said else { return false };
        let open = |hash: &[u8]| ours.open.iter().any(|ours| ours.as_slice() == hash);
        ours.awaited && (open(&said.layout_digest) || said.open_layouts.iter().any(|hash| open(hash)))
    }

    pub(super) fn usable(&self, ours: &Ours) -> bool {
        self.state() == PeerState::Up && self.agrees(ours)
    }

    pub(super) fn telling(&self, ours: &Ours) -> Telling {
        let said = self.said.as_ref();
        let read_only = said.is_some_and(|said| said.read_only || said.draining);
        let flags = said.map(|said| (said.layout_digest.clone(), said.layout_drained, said.layout_synced, said.losses));
        Telling(self.state(), self.usable(ours), self.catching_up, read_only, self.remembered.last().map(|claim| claim.boot), flags)
    }

    pub(super) fn trouble(&self, ours: &Ours) -> String {
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

    /// Its disks, those before them too, that are not heard at `now` and may hold what nobody else has.
    pub(super) fn absent(&self, node: NodeIndex, duty: Duty, now: UnixMillis) -> Vec<Absent> {
        let gone = |doubt: &Doubt| Absent { node, doubt: doubt.clone(), why: Absence::Gone };
        let mut absent: Vec<Absent> = self.remembered.doubts().iter().map(gone).collect();
        let Some(last) = self.remembered.last() else { return absent };
        let (alone, heard) = (self.remembered.alone(), self.remembered.last_heard.unwrap_or_default());
        let why = match (duty, self.state()) {
            (Duty::Lost, _) => alone.is_doubtful(None).then_some(Absence::Gone),
            // It had to hand over everything first, and took nothing more.
            (Duty::Removed, _) => alone.is_any().then_some(Absence::Gone),
            (_, PeerState::Up | PeerState::Suspect) => None,
            (_, PeerState::Down | PeerState::Refused) => alone.is_doubtful(Some(now.since(heard))).then_some(Absence::Silent),
        };
        let doubt = Doubt { incarnation: last.incarnation, alone, heard };
        absent.extend(why.map(|why| Absent { node, doubt, why }));
        absent
    }

    /// All of it, for whoever asks. `opinion`: what the cluster thinks of it.
    pub(super) fn view(&self, name: &str, ours: &Ours, opinion: &Opinion, now: Duration) -> PeerView {
        let said = self.said.as_ref();
        let count = |field: fn(&v1::NodeState) -> u64| said.map_or(0, field);
        let flag = |field: fn(&v1::NodeState) -> bool| said.is_some_and(field);
        let last = self.remembered.last();
        let direct = Direct { state: self.state(), trouble: self.trouble(ours), answered: self.answered };
        let (state, trouble) = membership::combine(direct, opinion, now);
        PeerView {
            node: name.to_owned(),
            state,
            usable: self.usable(ours),
            catching_up: self.catching_up,
            incarnation: last.map(|claim| claim.incarnation),
            incarnation_changes: self.incarnation_changes,
            boot: last.map(|claim| claim.boot),
            last_heard: self.heard,
            last_heard_wall: self.remembered.last_heard,
            least_round_trip: self.pulse.least_round_trip(),
            clock_offset_ms: self.clock_offset_ms,
            clock_synchronised: said.and_then(|said| said.clock_synchronised),
            pending_records: count(|said| said.pending_records),
            pending_bytes: count(|said| said.pending_bytes),
            oldest_pending: said.map(|said| said.oldest_pending).filter(|oldest| *oldest > 0).map(UnixMillis),
            read_only: flag(|said| said.read_only),
            draining: flag(|said| said.draining),
            bad_records: count(|said| said.bad_records),
            losses: count(|said| said.losses),
            oldest_unverified: Duration::from_secs(count(|said| said.oldest_unverified_seconds)),
            layout_agrees: self.agrees(ours),
            layout_hash: said.map(|said| said.layout_digest.to_vec()).unwrap_or_default(),
            open_layouts: said
                .map(|said| said.open_layouts.iter().filter_map(|hash| hash.as_ref().try_into().ok()).collect())
                .unwrap_or_default(),
            layout_known: said.is_some(),
            answers: self.pulse.state() == PeerState::Up || self.unfit.is_some(),
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
            is_shadowed: self.outlived.is_some_and(|at| now.saturating_sub(at) < limits::TWO_INSTANCES),
        }
    }
}
