//! How slow a client may be (rule 29): who takes or gives less than a minimum for half a minute holds memory that others
//! could use, and loses its transfer. Pure: time and bytes are handed in.
use crate::limits;
use std::time::Duration;

/// The client was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fewer than {} KiB moved in {} s", least(*.0) >> 10, .0.as_secs())]
pub struct TooSlow(pub Duration);

/// Watches one transfer. Only time in which this node waits for the client counts: what the node itself takes is not the
/// client's fault.
#[derive(Debug, Clone)]
pub struct Pace {
    within: Duration,
    waited: Duration,
    moved: u64,
}

/// What must move within this time of waiting.
fn least(within: Duration) -> u64 {
    u64::try_from(within.as_millis()).unwrap_or(u64::MAX).saturating_mul(limits::TRANSFER_RATE_MIN) / 1000
}

impl Pace {
    /// A transfer that begins; it has `within` to move what the minimum rate asks for, again and again.
    pub const fn new(within: Duration) -> Self {
        Self { within, waited: Duration::ZERO, moved: 0 }
    }

    /// The node has waited for the client for this long, and so many bytes moved meanwhile or since.
    ///
    /// # Errors
    /// If that is too few.
    pub fn waited(&mut self, time: Duration, moved: u64) -> Result<(), TooSlow> {
        self.waited = self.waited.saturating_add(time);
        self.moved = self.moved.saturating_add(moved);
        if self.moved >= least(self.within) {
            (self.waited, self.moved) = (Duration::ZERO, 0);
        } else if self.waited >= self.within {
            return Err(TooSlow(self.within));
        }
        Ok(())
    }

    /// How much longer the client may be waited for before it must be looked at again.
    pub fn left(&self) -> Duration {
        self.within.saturating_sub(self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HALF_MINUTE: Duration = Duration::from_secs(30);

    /// After how many seconds a client that moves so many bytes a second is given up.
    fn given_up(bytes_a_second: u64, seconds: u64) -> Option<u64> {
        let mut pace = Pace::new(HALF_MINUTE);
        (1..=seconds).find(|_| pace.waited(SECOND, bytes_a_second).is_err())
    }

    #[test]
    fn rule_29_silence_and_a_trickle_lose_after_half_a_minute() {
        assert_eq!(given_up(0, 100), Some(30));
        assert_eq!(given_up(1, 100), Some(30), "a byte now and then is no transfer");
        assert_eq!(given_up(limits::TRANSFER_RATE_MIN - 1, 100), Some(30));
        assert_eq!(given_up(limits::TRANSFER_RATE_MIN, 1000), None);
    }

    #[test]
    fn rule_29_what_was_fast_before_is_no_excuse() {
        let mut pace = Pace::new(HALF_MINUTE);
        assert_eq!(pace.waited(SECOND, 1 << 30), Ok(()));
        assert_eq!(pace.waited(29 * SECOND, 1), Ok(()));
        assert_eq!(pace.left(), SECOND);
        assert_eq!(pace.waited(SECOND, 1), Err(TooSlow(HALF_MINUTE)));
    }

    #[test]
    fn rule_29_who_was_waited_for_only_briefly_is_not_slow() {
        let mut pace = Pace::new(HALF_MINUTE);
        for _ in 0..100 {
            assert_eq!(pace.waited(SECOND / 10, 1 << 18), Ok(()));
        }
        assert_eq!(TooSlow(HALF_MINUTE).to_string(), "fewer than 240 KiB moved in 30 s");
    }
}
