//! The transfer budget (rule 29): how much memory bytes on their way may take, and who has which part of it.
//!
//! [`Shares`] is the partition, pure. [`Budget`] is what hands out permits by it: whoever wants to hold bytes takes a permit
//! of that many first, and whoever cannot have one waits, or is told that the node is busy. No share waits for another on
//! the same node but in this order: clients, then what leaves for peers; what arrives from peers waits for the disk alone.
//! So there is no circle, between nodes neither.
use crate::limits;
use afar_model::{
    layout::NodeIndex,
    limits::{CHUNK_BYTES, RECORD_BYTES_MAX},
};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The partition of a node's transfer budget, in bytes.
///
/// | share | of the budget | what it holds |
/// | --- | --- | --- |
/// | peers' windows | a quarter, at least 64 KiB a connection | what peers have sent and nobody has read yet |
/// | clients' windows | at most a quarter, at least 64 KiB a connection | the same of clients, at most 1 MiB each |
/// | clients | three eighths of the rest | chunks of puts in flight and of gets read ahead |
/// | lanes, answers | three eighths of the rest | records on their way to peers, encoded: large ones, small ones, and those asked for |
/// | arriving, repair | a quarter of the rest | records from peers being hashed and written, and those being copied to mend something |
///
/// They add up to at most the budget, for up to 100 peers and any budget from [`limits::TRANSFER_MIN`]. Beyond 100 peers the
/// windows, which HTTP/2 does not let be smaller than 64 KiB, may exceed it.
///
/// What peers send on connections that *this* node opened are answers, and covered by the permit of whoever asked. Not
/// counted are, of every stream, one message that is being decoded and some 400 KiB that HTTP/2 has taken over to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Of one client's connection, and of each of its streams.
    pub client_window: u32,
    /// Of all clients' connections together.
    pub client_windows: u64,
    /// Of one connection with a peer.
    pub peer_window: u32,
    /// Of all connections that peers open to this node.
    pub peer_windows: u64,
    /// Puts and gets.
    pub clients: u64,
    /// Large records on their way to peers.
    pub lanes: u64,
    /// Small ones: so that a version does not wait behind chunks.
    pub small_lanes: u64,
    /// Records that peers asked for.
    pub answers: u64,
    /// Large records that peers have sent, being hashed and written.
    pub arriving: u64,
    /// Small ones.
    pub small_arriving: u64,
    /// Records that are copied to mend something, or to catch up.
    pub repair: u64,
}

impl Shares {
    /// Divides a budget among so many peers and client connections.
    pub fn of(transfer: u64, peers: usize, connections: usize) -> Self {
        let (peers, clients) = (count(peers) * count(limits::CONNECTIONS_OF_PEER), count(connections));
        let peer_window = window(transfer / 4, peers, limits::BULK_WINDOW_MAX);
        let peer_windows = u64::from(peer_window) * peers;
        let rest = transfer.saturating_sub(peer_windows);
        let client_window = window((transfer / 4).min(rest / 3), clients, limits::CLIENT_WINDOW);
        let client_windows = u64::from(client_window) * clients;
        // What a node cannot do without, whatever the windows have left: one record of each kind.
        let rest = rest.saturating_sub(client_windows).max(8 * CHUNK_BYTES as u64);
        let (leaving, arriving) = (rest / 8 * 3, rest / 4);
        Self {
            client_window,
            client_windows,
            peer_window,
            peer_windows,
            clients: rest - leaving - arriving,
            lanes: leaving - leaving / 8 - leaving / 4,
            small_lanes: leaving / 8,
            answers: leaving / 4,
            arriving: arriving - arriving / 8 - arriving / 8 * 3,
            small_arriving: arriving / 8,
            repair: arriving / 8 * 3,
        }
    }

    /// Every share that takes memory, with a name for reports.
    pub const fn named(&self) -> [(&'static str, u64); 9] {
        [
            ("client_windows", self.client_windows),
            ("peer_windows", self.peer_windows),
            ("clients", self.clients),
            ("lanes", self.lanes),
            ("small_lanes", self.small_lanes),
            ("answers", self.answers),
            ("arriving", self.arriving),
            ("small_arriving", self.small_arriving),
            ("repair", self.repair),
        ]
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.named().iter().map(|(_, bytes)| bytes).sum()
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number.max(1)).unwrap_or(u64::MAX)
}

fn window(share: u64, connections: u64, most: u32) -> u32 {
    u32::try_from(share / connections).unwrap_or(u32::MAX).clamp(limits::WINDOW_MIN, most)
}

/// Most client connections that a budget has room for.
pub const fn connections_max(transfer: u64) -> u64 {
    transfer / 8 / limits::WINDOW_MIN as u64
}

/// Bytes that may be held; dropped, they are free again.
pub type Permit = OwnedSemaphorePermit;

/// One share, and who holds how much of it.
#[derive(Debug, Clone)]
struct Pool {
    free: Arc<Semaphore>,
    bytes: u32,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// What is larger than the pool takes all of it. `None` only if the pool was closed, which nobody does.
    async fn take(&self, bytes: usize) -> Option<Permit> {
        Arc::clone(&self.free).acquire_many_owned(self.weight(bytes)).await.ok()
    }

    /// Without waiting. Leaves a quarter of the pool to those who come.
    fn spare(&self, bytes: usize) -> Option<Permit> {
        let weight = self.weight(bytes);
        let after = self.free.available_permits().checked_sub(weight as usize)?;
        if after < (self.bytes / 4) as usize { None } else { Arc::clone(&self.free).try_acquire_many_owned(weight).ok() }
    }

    fn weight(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).clamp(limits::PERMIT_MIN, self.bytes)
    }

    fn used(&self) -> u64 {
        u64::from(self.bytes).saturating_sub(self.free.available_permits() as u64)
    }
}

/// A share for what goes to peers. Each peer has a part of its own, so that one that takes nothing keeps nobody else
/// waiting; where there are more peers than parts of one record, so many of them may hold all of it at a time.
#[derive(Debug)]
pub struct PeerPool {
    all: Pool,
    each: u64,
    peers: Mutex<HashMap<NodeIndex, Pool>>,
}

/// Bytes that may be held on their way to a peer.
#[derive(Debug)]
pub struct PeerPermit {
    _of_peer: Permit,
    _of_all: Permit,
}

impl PeerPool {
    fn new(bytes: u64, peers: usize) -> Self {
        let each = (bytes / count(peers)).max(bytes.min(RECORD_BYTES_MAX as u64));
        Self { all: Pool::new(bytes), each, peers: Mutex::default() }
    }

    /// Waits until so many bytes may be on their way to that peer. `None` only if the node ends.
    pub async fn take(&self, peer: NodeIndex, bytes: usize) -> Option<PeerPermit> {
        let own = self.peers.lock().entry(peer).or_insert_with(|| Pool::new(self.each)).clone();
        let of_peer = own.take(bytes).await?;
        Some(PeerPermit { _of_all: self.all.take(bytes).await?, _of_peer: of_peer })
    }
}

/// The permits of a node's transfer budget.
#[derive(Debug)]
pub struct Budget {
    shares: Shares,
    clients: Pool,
    /// Large records on their way to peers.
    pub lanes: Arc<PeerPool>,
    /// Small ones.
    pub small_lanes: Arc<PeerPool>,
    /// Records that peers asked for.
    pub answers: PeerPool,
    arriving: Pool,
    small_arriving: Pool,
    repair: Pool,
}

/// Nobody left the node's transfer budget in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

impl Budget {
    /// All of it is free.
    pub fn new(transfer: u64, peers: usize, connections: usize) -> Self {
        let shares = Shares::of(transfer, peers, connections);
        Self {
            shares,
            clients: Pool::new(shares.clients),
            lanes: Arc::new(PeerPool::new(shares.lanes, peers)),
            small_lanes: Arc::new(PeerPool::new(shares.small_lanes, peers)),
            answers: PeerPool::new(shares.answers, peers),
            arriving: Pool::new(shares.arriving),
            small_arriving: Pool::new(shares.small_arriving),
            repair: Pool::new(shares.repair),
        }
    }

    /// Who has which part.
    pub const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// A put or get begins: a permit that it keeps, so that it can always go on.
    ///
    /// # Errors
    /// If there is none within this time.
    pub async fn admit(&self, bytes: usize, within: Duration) -> Result<Permit, NoRoom> {
        let waited = tokio::time::timeout(within, self.clients.take(bytes)).await;
        waited.ok().flatten().ok_or(NoRoom)
    }

    /// A permit for one more chunk of a put or get that was admitted, if there is room for it now.
    pub fn spare(&self) -> Option<Permit> {
        self.clients.spare(CHUNK_BYTES)
    }

    /// Waits until a message of a peer may be hashed and written. `None` only if the node ends.
    pub async fn arriving(&self, bytes: usize) -> Option<Permit> {
        if bytes <= limits::LANE_BATCH_BYTES { self.small_arriving.take(bytes).await } else { self.arriving.take(bytes).await }
    }

    /// Waits until so many bytes may be copied to mend something. `None` only if the node ends.
    pub async fn repair(&self, bytes: usize) -> Option<Permit> {
        self.repair.take(bytes).await
    }

    /// As many bytes as are copied in one go to mend something.
    pub fn repair_batch(&self) -> usize {
        limits::PULL_BYTES.min(usize::try_from(self.shares.repair).unwrap_or(usize::MAX))
    }

    /// Every share, with what it has and how much of that is held. Windows are promised as a whole.
    pub fn report(&self) -> Vec<(&'static str, u64, u64)> {
        let used = |name: &str, total: u64| match name {
            "clients" => self.clients.used(),
            "lanes" => self.lanes.all.used(),
            "small_lanes" => self.small_lanes.all.used(),
            "answers" => self.answers.all.used(),
            "arriving" => self.arriving.used(),
            "small_arriving" => self.small_arriving.used(),
            "repair" => self.repair.used(),
            _ => total,
        };
        self.shares.named().into_iter().map(|(name, total)| (name, total, used(name, total))).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rule_29_the_shares_add_up_to_at_most_the_budget() {
        let budgets =
            [limits::TRANSFER_MIN, limits::TRANSFER_MIN + 1, 48 * MIB + 7, 100 * MIB, limits::TRANSFER_DEFAULT, limits::TRANSFER_MAX];
        for transfer in budgets {
            for peers in 0..=100 {
                for connections in [1, 8, 64, usize::try_from(connections_max(transfer)).unwrap()] {
                    let shares = Shares::of(transfer, peers, connections);
                    let what = format!("{transfer} for {peers} peers and {connections} connections: {shares:?}");
                    assert!(shares.total() <= transfer, "{what}");
                    assert!(shares.total() >= transfer / 2, "most of it is of use: {what}");
                    assert!(shares.clients >= 3 * CHUNK_BYTES as u64, "{what}");
                    assert!(shares.lanes >= CHUNK_BYTES as u64 && shares.arriving >= CHUNK_BYTES as u64, "{what}");
                    let windows = [shares.client_window, shares.peer_window];
                    assert!(windows.iter().all(|window| *window >= limits::WINDOW_MIN), "less is no HTTP/2: {what}");
                    assert!(shares.client_window <= 1 << 20, "{what}");
                }
            }
        }
    }

    #[test]
    fn rule_29_the_usual_budget_and_what_it_gives() {
        let shares = Shares::of(limits::TRANSFER_DEFAULT, 2, limits::CONNECTIONS_DEFAULT);
        assert_eq!((shares.client_window, shares.client_windows), (1 << 20, 64 * MIB));
        assert_eq!([shares.clients, shares.lanes, shares.arriving, shares.repair].map(|bytes| bytes / MIB), [48, 30, 16, 12]);
        assert_eq!(shares.peer_window >> 20, 10);
    }

    #[tokio::test]
    async fn rule_29_who_goes_on_leaves_room_for_those_who_come() {
        let pool = Pool::new(8 * MIB);
        let held: Vec<Permit> = std::iter::from_fn(|| pool.spare(CHUNK_BYTES)).collect();
        assert_eq!((held.len(), pool.used()), (6, 6 * MIB));
        let newcomer = pool.take(CHUNK_BYTES).await.unwrap();
        assert!(pool.spare(1).is_none());
        drop((held, newcomer));
        assert_eq!(pool.used(), 0);
        assert_eq!(pool.take(usize::MAX).await.unwrap().num_permits(), 8 << 20, "what is larger takes all");
    }

    #[tokio::test]
    async fn rule_29_a_peer_that_takes_nothing_keeps_nobody_else_waiting() {
        let pool = PeerPool::new(8 * MIB, 2);
        let (stuck, other) = (NodeIndex(1), NodeIndex(2));
        let held = futures_util::future::join_all((0..4).map(|_| pool.take(stuck, CHUNK_BYTES))).await;
        assert!(held.iter().all(Option::is_some));
        let more = std::pin::pin!(pool.take(stuck, CHUNK_BYTES));
        assert!(futures_util::poll!(more).is_pending(), "its part is used up");
        assert!(futures_util::poll!(std::pin::pin!(pool.take(other, CHUNK_BYTES))).is_ready());
        // With more peers than records fit, all of them together are bounded.
        let crowd = PeerPool::new(2 * RECORD_BYTES_MAX as u64, 100);
        let first = (crowd.take(stuck, RECORD_BYTES_MAX).await, crowd.take(other, RECORD_BYTES_MAX).await);
        assert!(futures_util::poll!(std::pin::pin!(crowd.take(NodeIndex(3), 1))).is_pending());
        drop(first);
    }

    #[tokio::test]
    async fn rule_29_who_finds_no_room_is_told_and_what_is_mended_is_bounded() {
        let budget = Budget::new(limits::TRANSFER_MIN, 2, 64);
        let all = budget.admit(usize::MAX, Duration::ZERO).await.unwrap();
        assert_eq!(budget.admit(CHUNK_BYTES, Duration::ZERO).await.err(), Some(NoRoom));
        drop(all);
        assert!(budget.admit(CHUNK_BYTES, Duration::ZERO).await.is_ok());
        // A batch never asks for more than there is, and is given only what is free.
        assert!(budget.shares().repair < limits::PULL_BYTES as u64, "else this shows nothing");
        assert_eq!(budget.repair_batch() as u64, budget.shares().repair);
        let batch = budget.repair(budget.repair_batch()).await.unwrap();
        assert!(futures_util::poll!(std::pin::pin!(budget.repair(CHUNK_BYTES))).is_pending());
        drop(batch);
    }

    #[tokio::test]
    async fn rule_29_what_is_larger_than_its_share_takes_all_of_it_and_never_waits_for_more_than_there_is() {
        let budget = Budget::new(limits::TRANSFER_MIN, 100, 64);
        let all = usize::try_from(budget.shares().repair).unwrap();
        for bytes in [all + 1, usize::MAX] {
            let permit = futures_util::poll!(std::pin::pin!(budget.repair(bytes)));
            let std::task::Poll::Ready(Some(permit)) = permit else { panic!("{bytes} of {all}: it would wait for ever") };
            assert_eq!(permit.num_permits(), all);
            assert!(futures_util::poll!(std::pin::pin!(budget.repair(1))).is_pending());
        }
        assert!(futures_util::poll!(std::pin::pin!(budget.repair(1))).is_ready(), "all of it was given back");
        assert!(budget.repair_batch() <= all && budget.repair_batch() > 0);
        assert!(futures_util::poll!(std::pin::pin!(budget.answers.take(NodeIndex(1), usize::MAX))).is_ready());
        assert!(futures_util::poll!(std::pin::pin!(budget.admit(usize::MAX, Duration::ZERO))).is_ready());
    }

    #[tokio::test]
    async fn small_messages_do_not_wait_for_large_ones() {
        let budget = Budget::new(limits::TRANSFER_MIN, 2, 64);
        let large = budget.arriving(usize::MAX).await.unwrap();
        assert!(futures_util::poll!(std::pin::pin!(budget.arriving(CHUNK_BYTES))).is_pending());
        assert!(futures_util::poll!(std::pin::pin!(budget.arriving(4096))).is_ready());
        let report = budget.report();
        assert!(report.contains(&("arriving", budget.shares().arriving, large.num_permits() as u64)), "{report:?}");
        assert_eq!(report.iter().map(|(_, total, _)| total).sum::<u64>(), budget.shares().total());
    }
}
