//! The only door to time: the wall clock, the monotonic clock, and the hybrid logical clock that orders versions.
//!
//! It also remembers whether stamps from impossible futures were seen (they are kept and alarmed, never followed: rule 4),
//! and what the kernel says of its own clock.
use crate::limits;
use afar_model::{
    hlc::{Hlc, Stamp},
    units::UnixMillis,
};
use parking_lot::Mutex;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// The node's clocks. Cheap to clone; every clone is the same.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    offset_ms: i64,
    hlc: Mutex<Hlc>,
    alarms: AtomicU64,
    kernel: Mutex<Option<(Duration, Option<bool>)>>,
}

impl Clock {
    /// The machine's clocks, the wall clock shifted by `offset_ms` (zero but in tests).
    pub fn new(offset_ms: i64) -> Self {
        let inner = Inner {
            started: Instant::now(),
            offset_ms,
            hlc: Mutex::new(Hlc::default()),
            alarms: AtomicU64::new(0),
            kernel: Mutex::new(None),
        };
        Self(Arc::new(inner))
    }

    /// Wall-clock time.
    pub fn now(&self) -> UnixMillis {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        UnixMillis(millis.saturating_add_signed(self.0.offset_ms))
    }

    /// Time since this process made its clock: never goes back, whatever happens to the wall clock.
    pub fn monotonic(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The greatest stamp that this clock follows now.
    pub fn limit(&self) -> Stamp {
        Hlc::limit(self.now())
    }

    /// Makes the stamps that follow greater than `newest`: at start, with the greatest stamp of the node's own log that is not
    /// beyond [`Clock::limit`] (rule 4). The log cannot tell its own stamps from imported ones, so of those beyond, `beyond` in
    /// number, none is followed: or one day with a wrong clock would put this node, and whoever hears of it, ahead for good.
    /// They are alarmed. What is put over such a version is stamped above it all the same: see [`crate::objects::commit`].
    pub fn start_after(&self, newest: Stamp, beyond: u64) {
        *self.0.hlc.lock() = Hlc::starting_after(newest);
        if beyond > 0 {
            self.0.alarms.fetch_add(beyond, Ordering::Relaxed);
            tracing::warn!(beyond, "the log holds versions with stamps from the future, which are kept and not followed: check the clock");
        }
    }

    /// A stamp greater than every one given out or observed before.
    pub fn tick(&self) -> Stamp {
        let now = self.now();
        self.0.hlc.lock().tick(now)
    }

    /// Learns of a stamp made elsewhere. One that is more than five minutes ahead is counted and not followed.
    pub fn observe(&self, stamp: Stamp) {
        let now = self.now();
        if let Err(error) = self.0.hlc.lock().observe(stamp, now)
            && self.0.alarms.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(%error, "a stamp from the future is kept and not followed: check the clocks (further ones are only counted)");
        }
    }

    /// How many stamps from too far ahead were observed in this run.
    pub fn alarms(&self) -> u64 {
        self.0.alarms.load(Ordering::Relaxed)
    }

    /// Whether the kernel's clock is kept in step by a time service; `None` if that cannot be told.
    pub fn kernel_synchronised(&self) -> Option<bool> {
        let now = self.monotonic();
        let mut cached = self.0.kernel.lock();
        match *cached {
            Some((looked, state)) if now.saturating_sub(looked) < limits::KERNEL_CLOCK_EVERY => state,
            _ => {
                let state = timesyncd_state(Path::new("/run/systemd/timesync"));
                *cached = Some((now, state));
                state
            }
        }
    }
}

/// `adjtimex` would need unsafe code; systemd's time service leaves its answer in a file. Under another service: unknown.
fn timesyncd_state(directory: &Path) -> Option<bool> {
    directory.is_dir().then(|| directory.join("synchronized").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_4_the_clock_restarts_from_the_log() {
        let clock = Clock::new(0);
        let near = Stamp::at(UnixMillis(clock.now().0 + 240_000));
        clock.start_after(near, 0);
        assert!(clock.tick() > near);
        assert_eq!(clock.alarms(), 0);
    }

    #[test]
    fn rule_4_stamps_of_the_log_that_are_far_ahead_are_alarmed_and_not_followed() {
        let clock = Clock::new(0);
        clock.start_after(Stamp::at(UnixMillis(1000)), 7);
        assert_eq!(clock.alarms(), 7);
        assert!(clock.tick() < clock.limit(), "the wall clock counts again");
    }

    #[test]
    fn rule_4_a_stamp_from_the_future_is_counted_and_not_followed() {
        let clock = Clock::new(0);
        let future = Stamp::at(UnixMillis(clock.now().0 + 3_600_000));
        clock.observe(future);
        assert_eq!(clock.alarms(), 1);
        assert!(clock.tick() < future);
        let near = Stamp::at(UnixMillis(clock.now().0 + 60_000));
        clock.observe(near);
        assert!(clock.tick() > near);
        assert_eq!(clock.alarms(), 1);
    }

    #[test]
    fn the_wall_clock_can_be_shifted() {
        let (early, late) = (Clock::new(-600_000), Clock::new(600_000));
        assert!(late.now().since(early.now()) >= Duration::from_secs(1_199));
    }
}
