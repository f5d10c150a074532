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
    pub reached: Option<Reached>,
}

/// That somebody reached a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Who did.
    pub from: String,
    /// When this node was told so, by [`crate::clock::Clock::monotonic`].
    pub at: Duration,
}

/// What this node itself saw of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direct {
    /// By its own heartbeats.
    pub state: PeerState,
    /// Why it is not worked with; empty if it is.
    pub trouble: String,
    /// When it last answered one.
    pub answered: Option<Duration>,
}

/// A peer's state and, unless it is up, why: from what this node's heartbeats say and what the cluster thinks.
///
/// Who answers this node is up, whatever others think. Who does not is as bad as the better of both opinions: nobody is down
/// whom somebody reaches, or who may still contradict a suspicion. That nobody has missed it yet is not that somebody reaches it.
pub fn combine(direct: Direct, opinion: &Opinion, now: Duration) -> (PeerState, String) {
    let Direct { state, trouble, answered } = direct;
    match (state, opinion.liveness) {
        (PeerState::Up | PeerState::Refused, _) | (_, Liveness::Unknown) => (state, trouble),
        (PeerState::Suspect | PeerState::Down, Liveness::Alive) => {
            // Who reached it before it last answered here says nothing about now.
            let reached = opinion.reached.as_ref().filter(|reached| answered.is_none_or(|answered| reached.at > answered));
            let words = match reached {
                Some(Reached { from, at }) => {
                    format!("reachable from {from} ({} s ago), not from here ({trouble})", now.saturating_sub(*at).as_secs())
                }
                None => format!("not reachable from here ({trouble}); whether others reach it is not known yet"),
            };
            (PeerState::Suspect, words)
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

    fn seen(state: PeerState, trouble: &str, answered: Option<u64>) -> Direct {
        Direct { state, trouble: trouble.into(), answered: answered.map(Duration::from_secs) }
    }

    fn state(direct: PeerState, liveness: Liveness) -> PeerState {
        combine(seen(direct, "no answer in time", None), &Opinion { liveness, ..Opinion::default() }, Duration::ZERO).0
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
        let now = Duration::from_secs(20);
        let reached = |at| Some(Reached { from: "warsaw".into(), at: Duration::from_secs(at) });
        let alive = |reached| Opinion { liveness: Liveness::Alive, reached, ..Opinion::default() };
        let why = |opinion: &Opinion, answered| combine(seen(PeerState::Down, "no answer in time", answered), opinion, now).1;
        for answered in [None, Some(10)] {
            assert_eq!(why(&alive(reached(15)), answered), "reachable from warsaw (5 s ago), not from here (no answer in time)");
        }
        // It answered here since then, and nobody has noticed its silence: that is not reaching it.
        for opinion in [alive(reached(15)), alive(None)] {
            let why = why(&opinion, Some(16));
            assert!(why.starts_with("not reachable from here (no answer in time); whether others"), "{why}");
        }
        let gone = Opinion { liveness: Liveness::Down, ..Opinion::default() };
        let why = |state, trouble| combine(seen(state, trouble, None), &gone, now).1;
        assert_eq!(why(PeerState::Down, "silence"), "not reachable from anywhere (silence)");
        assert_eq!(why(PeerState::Up, ""), "", "who is up is in no trouble");
    }
}
