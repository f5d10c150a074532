//! Whose clock is off (rule 4): pure. A node that is more than five minutes off the median of the cluster refuses writes
//! and says so; where the median cannot tell, what the kernels say of their clocks decides, and else both sides refuse.
use afar_model::limits::CLOCK_SKEW_MAX;

/// A peer's clock as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerClock {
    /// By how many milliseconds it leads ours.
    pub offset_ms: i64,
    /// Whether its kernel calls it synchronised.
    pub synchronised: Option<bool>,
}

/// What is to be thought of our own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnClock {
    /// Nothing speaks against it.
    Fine,
    /// The median of the nodes leads it by so many milliseconds.
    Off(i64),
    /// Half of the nodes disagree by up to so many milliseconds, and nothing tells who is right.
    Undecidable(i64),
}

/// Judges our clock by those of the peers that were heard lately.
pub fn judge(synchronised: Option<bool>, peers: &[PeerClock]) -> OwnClock {
    let mut offsets: Vec<i64> = peers.iter().map(|peer| peer.offset_ms).chain([0]).collect();
    offsets.sort_unstable();
    let middle = |index: usize| offsets.get(index).copied().unwrap_or_default();
    let (low, high) = (middle((offsets.len() - 1) / 2), middle(offsets.len() / 2));
    match (is_off(low), is_off(high)) {
        (false, false) => OwnClock::Fine,
        (true, true) => OwnClock::Off(if low.unsigned_abs() > high.unsigned_abs() { high } else { low }),
        (low_off, _) => by_kernels(synchronised, peers, if low_off { low } else { high }),
    }
}

/// The node whose kernel clock is unsynchronised is the one that is wrong.
fn by_kernels(synchronised: Option<bool>, peers: &[PeerClock], offset_ms: i64) -> OwnClock {
    let mut others = peers.iter().filter(|peer| is_off(peer.offset_ms)).map(|peer| peer.synchronised);
    match synchronised {
        Some(true) if others.all(|other| other == Some(false)) => OwnClock::Fine,
        Some(false) if others.all(|other| other == Some(true)) => OwnClock::Off(offset_ms),
        _ => OwnClock::Undecidable(offset_ms),
    }
}

fn is_off(offset_ms: i64) -> bool {
    u128::from(offset_ms.unsigned_abs()) > CLOCK_SKEW_MAX.as_millis()
}

/// Why this node refuses writes because of its clock; `None` if it does not.
pub fn trouble(verdict: OwnClock) -> Option<String> {
    let seconds = |ms: i64| ms.unsigned_abs() / 1000;
    match verdict {
        OwnClock::Fine => None,
        OwnClock::Off(ms) => Some(format!(
            "this node's clock is {} s {} the others' (allowed: {} s): set it right, and let a time service keep it",
            seconds(ms),
            if ms > 0 { "behind" } else { "ahead of" },
            CLOCK_SKEW_MAX.as_secs()
        )),
        OwnClock::Undecidable(ms) => Some(format!(
            "this node's clock and a peer's are {} s apart (allowed: {} s), and nothing tells whose is right: set both right, and let a time service keep them",
            seconds(ms),
            CLOCK_SKEW_MAX.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_MINUTES: i64 = 600_000;

    fn peers(offsets: &[i64]) -> Vec<PeerClock> {
        offsets.iter().map(|offset_ms| PeerClock { offset_ms: *offset_ms, synchronised: None }).collect()
    }

    #[test]
    fn rule_4_alone_or_within_five_minutes_a_clock_is_fine() {
        assert_eq!(judge(None, &[]), OwnClock::Fine);
        assert_eq!(judge(None, &peers(&[300_000, -300_000])), OwnClock::Fine);
    }

    #[test]
    fn rule_4_of_three_nodes_the_odd_one_refuses() {
        assert_eq!(judge(None, &peers(&[0, TEN_MINUTES])), OwnClock::Fine, "the other one is off");
        assert_eq!(judge(None, &peers(&[TEN_MINUTES, TEN_MINUTES + 5])), OwnClock::Off(TEN_MINUTES));
        assert_eq!(judge(None, &peers(&[-TEN_MINUTES, -TEN_MINUTES - 5])), OwnClock::Off(-TEN_MINUTES));
    }

    #[test]
    fn rule_4_of_two_nodes_the_unsynchronised_one_refuses_else_both() {
        let two = |ours, theirs| judge(ours, &[PeerClock { offset_ms: TEN_MINUTES, synchronised: theirs }]);
        assert_eq!(two(Some(true), Some(false)), OwnClock::Fine);
        assert_eq!(two(Some(false), Some(true)), OwnClock::Off(TEN_MINUTES));
        for undecidable in [(None, None), (Some(true), Some(true)), (Some(false), Some(false)), (None, Some(true)), (Some(false), None)] {
            assert_eq!(two(undecidable.0, undecidable.1), OwnClock::Undecidable(TEN_MINUTES), "{undecidable:?}");
        }
    }

    #[test]
    fn rule_4_trouble_says_what_and_what_to_do() {
        assert_eq!(trouble(OwnClock::Fine), None);
        let text = trouble(OwnClock::Off(-TEN_MINUTES)).unwrap_or_default();
        assert!(text.contains("600 s ahead of the others'") && text.contains("set it right"), "{text}");
    }
}
