//! What becomes of a peer's state when this node's own heartbeats and the cluster's opinion are put together: pure.
//!
//! The result is for people and for whoever asks permission to destroy (rule 10). Whether records may be sent to a peer now
//! is decided by heartbeats alone: no opinion carries bytes to a peer that does not answer this node.
use crate::cluster::pulse::PeerState;
use std::time::Duration;

/// Whether the cluster takes a node to be alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Liveness {
    /// Somebody reaches it.
    Alive,
    /// Somebody who looked, and those whom he asked, did not reach it; it may still contradict.
    Suspect,
    /// It did not contradict in time, or said farewell.
    Down,
    /// Never heard of: this node has just started, or that one does not take part.
    #[default]
    Unknown,
}

impl Liveness {
    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// What the cluster thinks of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opinion {
    /// In a word.
    pub liveness: Liveness,
    /// Since when, by [`crate::clock::Clock::monotonic`]; zero while unknown.
    pub since: Duration,
    /// A node that lately reached it when this one did not.
    pub reached_from: Option<String>,
}

/// A peer's state and, unless it is up, why: from what this node's heartbeats say and what the cluster thinks.
///
/// Who answers this node is up, whatever others think. Who does not is as bad as the better of both opinions: nobody is down
/// whom somebody reaches, or who may still contradict a suspicion.
pub fn combine(direct: PeerState, trouble: String, opinion: &Opinion) -> (PeerState, String) {
    match (direct, opinion.liveness) {
        (PeerState::Up | PeerState::Refused, _) | (_, Liveness::Unknown) => (direct, trouble),
        (PeerState::Suspect | PeerState::Down, Liveness::Alive) => {
            let from = opinion.reached_from.as_deref().unwrap_or("others");
            (PeerState::Suspect, format!("reachable from {from}, not from here ({trouble})"))
        }
        (PeerState::Suspect | PeerState::Down, Liveness::Suspect) => {
            (PeerState::Suspect, format!("not reachable from here, nor from who else looked so far ({trouble})"))
        }
        (PeerState::Suspect | PeerState::Down, Liveness::Down) => (PeerState::Down, format!("not reachable from anywhere ({trouble})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(direct: PeerState, liveness: Liveness) -> PeerState {
        combine(direct, "no answer in time".into(), &Opinion { liveness, ..Opinion::default() }).0
    }

    #[test]
    fn rule_10_the_table_of_direct_and_indirect_opinions() {
        use Liveness::{Alive, Down as Gone, Suspect as Doubted, Unknown};
        use PeerState::{Down, Refused, Suspect, Up};
        let table = [
            (Up, [Up, Up, Up, Up]),
            (Suspect, [Suspect, Suspect, Down, Suspect]),
            (Down, [Suspect, Suspect, Down, Down]),
            (Refused, [Refused, Refused, Refused, Refused]),
        ];
        for (direct, expected) in table {
            assert_eq!([Alive, Doubted, Gone, Unknown].map(|liveness| state(direct, liveness)), expected, "{direct:?}");
        }
    }

    #[test]
    fn the_reason_says_who_reaches_it_and_what_was_seen_from_here() {
        let opinion = Opinion { liveness: Liveness::Alive, reached_from: Some("warsaw".into()), ..Opinion::default() };
        let (_, reason) = combine(PeerState::Down, "no answer in time".into(), &opinion);
        assert_eq!(reason, "reachable from warsaw, not from here (no answer in time)");
        let (_, reason) = combine(PeerState::Down, "no answer in time".into(), &Opinion { reached_from: None, ..opinion });
        assert_eq!(reason, "reachable from others, not from here (no answer in time)");
        let gone = Opinion { liveness: Liveness::Down, ..Opinion::default() };
        assert_eq!(combine(PeerState::Down, "silence".into(), &gone).1, "not reachable from anywhere (silence)");
        assert_eq!(combine(PeerState::Up, String::new(), &gone).1, "", "who is up is in no trouble");
    }
}
