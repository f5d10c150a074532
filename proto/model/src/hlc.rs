//! The hybrid logical clock that orders versions: wall-clock milliseconds with a counter, so that a stamp made after
//! another was seen is greater, whatever the wall clocks say.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014). 48 bits of milliseconds reach the year 10889.
use crate::units::UnixMillis;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A point of the hybrid logical clock: 48 bits of Unix milliseconds, then a 16-bit counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Stamp(u64);

const COUNTER_BITS: u32 = 16;
const MILLIS_MAX: u64 = u64::MAX >> COUNTER_BITS;

impl Stamp {
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// The first stamp of this millisecond.
    pub const fn at(time: UnixMillis) -> Self {
        let millis = if time.0 > MILLIS_MAX { MILLIS_MAX } else { time.0 };
        Self(millis << COUNTER_BITS)
    }

    /// From its integer form, as stored and sent.
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// Its integer form; order is preserved.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The wall-clock part.
    pub const fn time(self) -> UnixMillis {
        UnixMillis(self.0 >> COUNTER_BITS)
    }

    /// The one right after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> COUNTER_BITS, self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// The clock of one node. It only goes forward, and restarts from the greatest stamp of the node's log that is not beyond
/// [`Hlc::limit`].
#[derive(Debug, Clone, Default)]
pub struct Hlc {
    last: Stamp,
}

/// A stamp from further ahead than [`crate::limits::CLOCK_SKEW_MAX`]: kept, alarmed, and never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stamp {stamp:?} is {ahead_ms} ms ahead of this node's clock")]
pub struct TooFarAhead {
    /// The stamp that was seen.
    pub stamp: Stamp,
    /// By how many milliseconds it leads.
    pub ahead_ms: u64,
}

impl Hlc {
    /// A clock that continues after `last`.
    pub const fn starting_after(last: Stamp) -> Self {
        Self { last }
    }

    /// The greatest stamp that a clock follows at this time: [`crate::limits::CLOCK_SKEW_MAX`] ahead.
    pub const fn limit(now: UnixMillis) -> Stamp {
        let skew = crate::limits::CLOCK_SKEW_MAX.as_millis() as u64;
        let last = Stamp::at(UnixMillis(now.0.saturating_add(skew)));
        Stamp(last.0 | ((1 << COUNTER_BITS) - 1))
    }

    /// A stamp greater than every one given out or observed before.
    pub fn tick(&mut self, now: UnixMillis) -> Stamp {
        self.last = Stamp::at(now).max(self.last.next());
        self.last
    }

    /// Learns of a stamp made elsewhere, so that the next tick is greater.
    ///
    /// # Errors
    /// If it is too far ahead: then the clock does not follow (rule 4), or one bad clock would drag all others along.
    pub fn observe(&mut self, stamp: Stamp, now: UnixMillis) -> Result<(), TooFarAhead> {
        if stamp > Self::limit(now) {
            return Err(TooFarAhead { stamp, ahead_ms: stamp.time().0.saturating_sub(now.0) });
        }
        self.last = self.last.max(stamp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_only_go_forward() {
        let mut clock = Hlc::default();
        let first = clock.tick(UnixMillis(1000));
        let same_millisecond = clock.tick(UnixMillis(1000));
        let wall_went_back = clock.tick(UnixMillis(10));
        assert!(first < same_millisecond && same_millisecond < wall_went_back);
    }

    #[test]
    fn rule_4_an_imported_stamp_far_ahead_does_not_advance_the_clock() {
        let mut clock = Hlc::default();
        let ahead = Stamp::at(UnixMillis(1000 + 300_001));
        assert!(clock.observe(ahead, UnixMillis(1000)).is_err());
        assert!(clock.tick(UnixMillis(1000)) < ahead);
        let near = Stamp::at(UnixMillis(1000 + 300_000));
        assert_eq!(clock.observe(near, UnixMillis(1000)), Ok(()));
        assert!(clock.tick(UnixMillis(1000)) > near);
        assert_eq!(clock.observe(Hlc::limit(UnixMillis(1000)), UnixMillis(1000)), Ok(()));
        assert!(clock.observe(Hlc::limit(UnixMillis(1000)).next(), UnixMillis(1000)).is_err());
    }
}
