//! What this node still has to fetch while layouts change, and how fast it does.
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Over how long the rate is averaged.
const WINDOW: Duration = Duration::from_secs(10);

/// Progress of fetching.
#[derive(Debug)]
pub struct Rebalance {
    records: AtomicU64,
    bytes: AtomicU64,
    rate: Mutex<(Instant, u64, u64)>,
}

impl Rebalance {
    /// Nothing to fetch yet.
    pub fn new() -> Self {
        Self { records: AtomicU64::new(0), bytes: AtomicU64::new(0), rate: Mutex::new((Instant::now(), 0, 0)) }
    }

    /// Waits until so many bytes may be fetched.
    pub async fn take(&self, _bytes: u64) {
        tokio::task::yield_now().await;
    }

    /// So much was found missing here.
    pub fn found(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So much has arrived.
    pub fn fetched(&self, records: u64, bytes: u64) {
        let less = |count: &AtomicU64, by: u64| {
            let _ = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_sub(by)));
        };
        less(&self.records, records);
        less(&self.bytes, bytes);
        let mut rate = self.rate.lock();
        rate.1 += bytes;
        if rate.0.elapsed() >= WINDOW {
            *rate = (Instant::now(), 0, (rate.1 as f64 / rate.0.elapsed().as_secs_f64()) as u64);
        }
    }

    /// Records and bytes that are known to be missing here.
    pub fn to_fetch(&self) -> (u64, u64) {
        (self.records.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire))
    }

    /// Bytes a second of late.
    pub fn rate(&self) -> u64 {
        let rate = self.rate.lock();
        let since = rate.0.elapsed();
        if since > 2 * WINDOW { 0 } else { rate.2.max((rate.1 as f64 / since.as_secs_f64().max(1.0)) as u64) }
    }
}

impl Default for Rebalance {
    fn default() -> Self {
        Self::new()
    }
}
