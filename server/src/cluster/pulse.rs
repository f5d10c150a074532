//! What heartbeats say about a peer: pure. Heard, missed and refused go in; up, suspect or down comes out.
//!
//! Only an answer to our own heartbeat makes a peer up: that it reaches us does not mean that we reach it, and it is we who
//! will send it data. Being down drives routing alone, at once and both ways; nothing is moved or removed for it (rule 10).
use crate::limits;
use std::time::Duration;

/// Whether a peer can be relied on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// It answered the last heartbeat.
    Up,
    /// It missed the last heartbeat.
    Suspect,
    /// It missed several, or nobody listens there, or it was never heard.
    #[default]
    Down,
    /// It answers, but is not who it should be (rule 19), or speaks another protocol.
    Refused,
}

impl PeerState {
    /// As in status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Refused => "refused",
        }
    }
}

/// How a heartbeat failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// No answer in time, or the connection broke.
    Silent,
    /// Nobody listens there.
    ConnectionRefused,
}

/// What heartbeats to one peer have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    state: PeerState,
    missed: u32,
    refused_connections: u32,
    least_round_trip: Option<Duration>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { state: PeerState::Down, missed: 0, refused_connections: 0, least_round_trip: None }
    }
}

impl Pulse {
    /// Up, suspect or down.
    pub const fn state(&self) -> PeerState {
        self.state
    }

    /// The least round trip measured since this process started.
    pub const fn least_round_trip(&self) -> Option<Duration> {
        self.least_round_trip
    }

    /// The peer answered a heartbeat.
    pub fn answered(&mut self, round_trip: Duration) {
        self.least_round_trip = Some(self.least_round_trip.map_or(round_trip, |least| least.min(round_trip)));
        self.state = PeerState::Up;
        self.missed = 0;
        self.refused_connections = 0;
    }

    /// A heartbeat failed.
    pub const fn missed(&mut self, miss: Miss) {
        self.missed = self.missed.saturating_add(1);
        self.refused_connections = match miss {
            Miss::ConnectionRefused => self.refused_connections.saturating_add(1),
            Miss::Silent => 0,
        };
        let gone = self.missed >= limits::MISSED_MAX || self.refused_connections >= limits::REFUSED_MAX;
        self.state = match self.state {
            PeerState::Down => PeerState::Down,
            _ if gone => PeerState::Down,
            _ => PeerState::Suspect,
        };
    }

    /// How long to wait before the next heartbeat, before jitter.
    pub fn pause(&self) -> Duration {
        match self.state {
            PeerState::Up => limits::HELLO_INTERVAL,
            _ => (limits::RETRY_MIN * 2_u32.saturating_pow(self.missed.saturating_sub(1).min(8))).min(limits::RETRY_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(3);
    const SLOW: Duration = Duration::from_millis(9);

    fn heard() -> Pulse {
        let mut pulse = Pulse::default();
        pulse.answered(SLOW);
        pulse
    }

    #[test]
    fn a_peer_that_was_never_heard_is_down_and_one_answer_makes_it_up() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.state(), PeerState::Down);
        pulse.missed(Miss::Silent);
        assert_eq!(pulse.state(), PeerState::Down);
        pulse.answered(SLOW);
        assert_eq!(pulse.state(), PeerState::Up);
    }

    #[test]
    fn one_miss_is_suspicion_and_three_are_certainty() {
        let mut pulse = heard();
        let states: Vec<PeerState> = (0..4).map(|_| (pulse.missed(Miss::Silent), pulse.state()).1).collect();
        assert_eq!(states, [PeerState::Suspect, PeerState::Suspect, PeerState::Down, PeerState::Down]);
    }

    #[test]
    fn nobody_listening_twice_in_a_row_is_certainty_too() {
        let mut pulse = heard();
        pulse.missed(Miss::ConnectionRefused);
        assert_eq!(pulse.state(), PeerState::Suspect);
        pulse.missed(Miss::ConnectionRefused);
        assert_eq!(pulse.state(), PeerState::Down);
        let mut pulse = heard();
        for miss in [Miss::ConnectionRefused, Miss::Silent] {
            pulse.missed(miss);
        }
        assert_eq!(pulse.state(), PeerState::Suspect);
    }

    #[test]
    fn the_least_round_trip_is_kept_over_absences() {
        let mut pulse = heard();
        pulse.answered(FAST);
        pulse.answered(SLOW);
        (0..5).for_each(|_| pulse.missed(Miss::Silent));
        pulse.answered(SLOW);
        assert_eq!(pulse.least_round_trip(), Some(FAST));
    }

    #[test]
    fn an_absent_peer_is_tried_quickly_at_first_and_never_rarely() {
        let mut pulse = Pulse::default();
        let pauses: Vec<u128> = (0..6).map(|_| (pulse.missed(Miss::Silent), pulse.pause().as_millis()).1).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 2000, 2000]);
    }
}
