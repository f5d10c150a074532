//! What this node still has to fetch while layouts change, and how fast it may.
//!
//! Moving data to where a new layout wants them competes with clients for the wire, so an operator can bound it, by the time of
//! day if need be. Restoring copies that are missing is not bounded: nothing comes before that.
use afar_model::{layout::NodeIndex, units::UnixMillis};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Over how long the rate is averaged.
const WINDOW: Duration = Duration::from_secs(10);
/// A wait is cut into pieces of this length, so that a new hour's rate is followed.
const STEP: Duration = Duration::from_secs(1);
const DAY_MINUTES: u16 = 24 * 60;

/// Between two times of the day in UTC, another rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    from: u16,
    to: u16,
    rate: u64,
}

/// `HH:MM-HH:MM RATE`, in UTC; the end may lie after midnight.
impl FromStr for Slot {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?}: write HH:MM-HH:MM RATE, such as \"08:00-18:00 16MiB/s\" (UTC)");
        let (times, rate) = text.trim().split_once(' ').ok_or_else(form)?;
        let (from, to) = times.split_once('-').ok_or_else(form)?;
        let minutes = |time: &str| -> Option<u16> {
            let (hours, minutes) = time.trim().split_once(':')?;
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            let minute = hours.checked_mul(60)?.checked_add(minutes)?;
            (minutes < 60 && minute <= DAY_MINUTES).then_some(minute)
        };
        let (from, to) = (minutes(from).ok_or_else(form)?, minutes(to).ok_or_else(form)?);
        Ok(Self { from, to, rate: parse_rate(rate)? })
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, rate } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02} {rate}B/s", from / 60, from % 60, to / 60, to % 60)
    }
}

/// A size a second, such as `64MiB/s`, in bytes.
///
/// # Errors
/// If it is none, or zero: to stop moving altogether, do not apply a layout.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let form = || format!("{text:?}: write a size a second, such as \"64MiB/s\"");
    let size = text.trim().strip_suffix("/s").ok_or_else(form)?;
    let bytes: bytesize::ByteSize = size.trim().parse().map_err(|_| form())?;
    if bytes.as_u64() == 0 { Err(form()) } else { Ok(bytes.as_u64()) }
}

/// How fast data may be moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second where no slot says otherwise; `None`: as fast as it goes.
    pub rate: Option<u64>,
    /// The first that the time of day is in counts.
    pub timetable: Vec<Slot>,
}

impl Pace {
    /// Bytes a second at that time.
    pub fn at(&self, now: UnixMillis) -> Option<u64> {
        let minute = u16::try_from(now.0 / 60_000 % u64::from(DAY_MINUTES)).unwrap_or_default();
        let within = |slot: &&Slot| match slot.from <= slot.to {
            true => (slot.from..slot.to).contains(&minute),
            false => minute >= slot.from || minute < slot.to,
        };
        self.timetable.iter().find(within).map(|slot| slot.rate).or(self.rate)
    }
}

/// Progress of fetching, and its pace.
#[derive(Debug)]
pub struct Rebalance {
    pace: Pace,
    /// What was found missing in comparison with each peer. The same record may be at several.
    expected: Mutex<HashMap<NodeIndex, (u64, u64)>>,
    /// The most that was ever found missing at once since the current layout is, in bytes.
    total: AtomicU64,
    arrived: Mutex<Arrived>,
    /// Until when what was fetched has used up its time.
    paid: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Arrived {
    since: Instant,
    bytes: u64,
    rate: u64,
}

impl Rebalance {
    /// Nothing to fetch yet.
    pub fn new(pace: Pace) -> Self {
        let arrived = Mutex::new(Arrived { since: Instant::now(), bytes: 0, rate: 0 });
        Self { pace, expected: Mutex::default(), total: AtomicU64::new(0), arrived, paid: tokio::sync::Mutex::default() }
    }

    /// Waits until so many bytes may be fetched at the pace of `now`.
    pub async fn take(&self, bytes: u64, now: impl Fn() -> UnixMillis) {
        // One at a time, in order: the sum of all fetches keeps the pace.
        let mut paid = self.paid.lock().await;
        let mut left = bytes as f64;
        while left > 0.0 {
            let Some(rate) = self.pace.at(now()) else { return *paid = None };
            let begin = paid.filter(|until| until.elapsed().is_zero()).unwrap_or_else(Instant::now);
            let part = left.min(rate as f64 * STEP.as_secs_f64());
            let until = begin + Duration::from_secs_f64(part / rate as f64);
            tokio::time::sleep_until(until.into()).await;
            *paid = Some(until);
            left -= part;
        }
    }

    /// A new layout: what was missing by the one before is no part of it.
    pub fn begin(&self) {
        self.total.store(0, Ordering::Relaxed);
    }

    /// So much is missing here that a peer has.
    pub fn expect(&self, peer: NodeIndex, records: u64, bytes: u64) {
        self.expected.lock().insert(peer, (records, bytes));
        self.total.fetch_max(bytes, Ordering::Relaxed);
    }

    /// So much of it has arrived.
    pub fn fetched(&self, peer: NodeIndex, records: u64, bytes: u64) {
        if let Some(expected) = self.expected.lock().get_mut(&peer) {
            *expected = (expected.0.saturating_sub(records), expected.1.saturating_sub(bytes));
        }
        let mut arrived = self.arrived.lock();
        arrived.bytes += bytes;
        let took = arrived.since.elapsed();
        if took >= WINDOW {
            *arrived = Arrived { since: Instant::now(), bytes: 0, rate: (arrived.bytes as f64 / took.as_secs_f64()) as u64 };
        }
    }

    /// Records and bytes that are known to be missing here: as the peer says that has most of them, for others have the same.
    pub fn to_fetch(&self) -> (u64, u64) {
        self.expected.lock().values().copied().max_by_key(|(records, bytes)| (*bytes, *records)).unwrap_or_default()
    }

    /// Bytes that were missing by the current layout and are here now, and those that are known to be missing still. (Not what
    /// has arrived: the same may come from several peers.)
    pub fn progress(&self) -> (u64, u64) {
        let left = self.to_fetch().1;
        (self.total.load(Ordering::Relaxed).saturating_sub(left), left)
    }

    /// How fast it may be at that time; `None`: as fast as it goes.
    pub fn pace(&self, now: UnixMillis) -> Option<u64> {
        self.pace.at(now)
    }

    /// Bytes a second of late.
    pub fn rate(&self) -> u64 {
        let arrived = self.arrived.lock();
        let since = arrived.since.elapsed();
        if since > 2 * WINDOW {
            return 0;
        }
        arrived.rate.max((arrived.bytes as f64 / since.as_secs_f64().max(1.0)) as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(hours: u64, minutes: u64) -> UnixMillis {
        UnixMillis((20_000 * 24 * 60 + hours * 60 + minutes) * 60_000)
    }

    #[test]
    fn the_pace_follows_the_timetable() {
        let timetable = ["08:00-18:00 16MiB/s", "22:30-05:00 128MiB/s"].iter().map(|slot| slot.parse().unwrap()).collect();
        let pace = Pace { rate: Some(64 * MIB), timetable };
        let rates = [(7, 59), (8, 0), (17, 59), (18, 0), (22, 30), (0, 0), (4, 59), (5, 0)].map(|(h, m)| pace.at(at(h, m)).unwrap() / MIB);
        assert_eq!(rates, [64, 16, 16, 64, 128, 128, 128, 64]);
        assert_eq!(Pace::default().at(at(1, 1)), None);
    }

    #[test]
    fn what_is_no_slot_is_refused() {
        for text in [
            "",
            "08:00-18:00",
            "8-18 1MiB/s",
            "08:00-25:00 1MiB/s",
            "08:60-09:00 1MiB/s",
            "08:00-18:00 fast",
            "08:00-18:00 0B/s",
            "08:00-18:00 1MiB",
        ] {
            assert!(text.parse::<Slot>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn progress_is_that_of_the_current_layout_and_counts_nothing_twice() {
        let (rebalance, one, two) = (Rebalance::new(Pace::default()), NodeIndex(1), NodeIndex(2));
        rebalance.expect(one, 9, 90);
        rebalance.expect(one, 0, 0);
        rebalance.begin();
        // Both have the same.
        rebalance.expect(one, 2, 10);
        rebalance.expect(two, 2, 10);
        rebalance.fetched(one, 1, 3);
        assert_eq!(rebalance.progress(), (0, 10));
        rebalance.fetched(two, 1, 3);
        assert_eq!(rebalance.progress(), (3, 7));
        // Counted again, after a comparison that was broken off.
        rebalance.expect(one, 1, 7);
        assert_eq!(rebalance.progress(), (3, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn fetching_keeps_the_pace_across_fetchers() {
        let rebalance = Rebalance::new(Pace { rate: Some(MIB), timetable: Vec::new() });
        let begin = tokio::time::Instant::now();
        tokio::join!(rebalance.take(3 * MIB, || at(1, 1)), rebalance.take(2 * MIB, || at(1, 1)));
        let took = begin.elapsed().as_secs_f64();
        assert!((4.9..5.5).contains(&took), "{took} s of virtual time for 5 MiB at 1 MiB/s");
    }
}
