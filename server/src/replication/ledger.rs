//! What this node knows of its peers' holdings: the evidence behind every "safe".
//!
//! By default an assigned peer is believed to hold what it is assigned, once the two have compared their ids record by
//! record in this run and audits are answered; the ledger keeps the exceptions. A peer under a new incarnation, one that
//! reports losses, or one that failed an audit, starts again from nothing. Nothing here is durable: after a restart everything is unproved until
//! compared again.
use crate::limits;
use afar_model::{id::Incarnation, layout::NodeIndex, record::RecordKey, units::UnixMillis};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// What is known of one peer.
#[derive(Debug, Default, Clone)]
struct Account {
    incarnation: Option<Incarnation>,
    /// What it had lost in its run when this account was begun.
    losses: u64,
    /// It failed an audit, and was not compared and audited again since.
    failed_audit: bool,
    compared: Option<(Instant, UnixMillis)>,
    /// Each with when it was noted.
    missing: HashMap<RecordKey, Instant>,
    extra: HashMap<RecordKey, Instant>,
    /// Versions of which the peer holds everything although not all of it is assigned to it.
    whole: HashMap<RecordKey, Instant>,
    overflow: bool,
    /// Age of its least recent verification, as it says, beyond the bound.
    unscrubbed: bool,
    audited: Option<Instant>,
}

/// Whether a peer's copy of a record is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Compared in this run, and audited lately.
    Proved,
    /// It may hold it; nothing proves it now.
    Unproved,
    /// It does not.
    No,
}

/// Every peer's account, and what this node itself should have and has not.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: Mutex<HashMap<NodeIndex, Account>>,
    /// Since when each is known to be missing.
    own_missing: Mutex<HashMap<RecordKey, Instant>>,
}

/// What one comparison with a peer found.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Records that the peer is assigned, this node holds, and the peer lacks.
    pub missing: HashSet<RecordKey>,
    /// Records that the peer holds although they are assigned elsewhere.
    pub extra: HashSet<RecordKey>,
    /// More than [`limits::LEDGER_EXCEPTIONS`] of either: nothing can be said of single records.
    pub overflow: bool,
}

impl Ledger {
    /// A comparison with a peer's log as of `incarnation` is complete.
    pub fn compared(&self, peer: NodeIndex, incarnation: Incarnation, found: Comparison, at: (Instant, UnixMillis)) {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(peer).or_default();
        let audited = account.audited.filter(|_| account.incarnation == Some(incarnation));
        // What was noted while the walk went on is newer than what the walk saw.
        let (begun, now) = (at.0, Instant::now());
        let later = |noted: &HashMap<RecordKey, Instant>| {
            noted.iter().filter(|(_, at)| **at >= begun).map(|(key, at)| (*key, *at)).collect::<Vec<_>>()
        };
        let (missing, extra) = (later(&account.missing), later(&account.extra));
        *account = Account {
            incarnation: Some(incarnation),
            losses: account.losses,
            failed_audit: account.failed_audit,
            compared: Some(at),
            missing: found.missing.into_iter().map(|key| (key, now)).chain(missing).collect(),
            extra: found.extra.into_iter().map(|key| (key, now)).chain(extra).collect(),
            // What was acknowledged stays acknowledged; only another incarnation, or distrust, ends it.
            whole: if account.incarnation == Some(incarnation) { std::mem::take(&mut account.whole) } else { HashMap::new() },
            overflow: found.overflow,
            unscrubbed: account.unscrubbed,
            audited,
        };
    }

    /// The peer could not prove what it is believed to hold: nothing is believed of it, whatever it says of itself, until it
    /// was compared and audited again.
    pub fn failed_audit(&self, peer: NodeIndex) {
        let mut accounts = self.accounts.lock();
        let losses = accounts.get(&peer).map_or(0, |account| account.losses);
        accounts.insert(peer, Account { losses, failed_audit: true, ..Account::default() });
    }

    /// Whether the peer failed its last audit.
    pub fn has_failed_audit(&self, peer: NodeIndex) -> bool {
        self.accounts.lock().get(&peer).is_some_and(|account| account.failed_audit)
    }

    /// Another layout assigns other records: what was compared by the one before proves nothing of them.
    pub fn layout_changed(&self) {
        for account in self.accounts.lock().values_mut() {
            account.compared = None;
        }
    }

    /// Begins anew with a peer whose incarnation is not the one that was compared, or that has lost something since.
    pub fn seen(&self, peer: NodeIndex, incarnation: Incarnation, losses: u64) {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(peer).or_default();
        if account.incarnation.is_some_and(|known| known != incarnation) || account.losses != losses {
            *account = Account { losses, failed_audit: account.failed_audit, ..Account::default() };
        }
    }

    /// The peer acknowledged these as durable; `assigned`: whether they are assigned to it.
    pub fn acknowledged(&self, peer: NodeIndex, assigned: bool, keys: impl IntoIterator<Item = RecordKey>) {
        let mut accounts = self.accounts.lock();
        let Some(account) = accounts.get_mut(&peer) else { return };
        for key in keys {
            account.missing.remove(&key);
            if !assigned {
                insert(&mut account.extra, key, &mut account.overflow);
            }
        }
    }

    /// The peer stands in for another and holds all of a version.
    pub fn stands_in(&self, peer: NodeIndex, version: RecordKey) {
        if let Some(account) = self.accounts.lock().get_mut(&peer) {
            let mut full = false;
            insert(&mut account.whole, version, &mut full);
        }
    }

    /// Whether `peer` is known to hold all of a version for which it stands in.
    pub fn holds_whole(&self, peer: NodeIndex, version: &RecordKey) -> Holding {
        match self.accounts.lock().get(&peer) {
            Some(account) if account.whole.contains_key(version) => {
                if account.is_fresh() {
                    Holding::Proved
                } else {
                    Holding::Unproved
                }
            }
            _ => Holding::No,
        }
    }

    /// The peer should have these and does not yet.
    pub fn lacks(&self, peer: NodeIndex, keys: impl IntoIterator<Item = RecordKey>) {
        let mut accounts = self.accounts.lock();
        // Even before the first comparison: what is noted now is newer than what that will see.
        let account = accounts.entry(peer).or_default();
        for key in keys {
            insert(&mut account.missing, key, &mut account.overflow);
        }
    }

    /// Whether the peer is known to lack something of a version.
    pub fn lacks_of(&self, peer: NodeIndex, version: &RecordKey) -> bool {
        self.accounts.lock().get(&peer).is_some_and(|account| account.missing.contains_key(version))
    }

    /// The peer answered an audit, and every proof was right.
    pub fn audited(&self, peer: NodeIndex) {
        if let Some(account) = self.accounts.lock().get_mut(&peer) {
            account.audited = Some(Instant::now());
            account.failed_audit &= account.compared.is_none();
        }
    }

    /// The peer says how long ago its least recently verified copy was verified.
    pub fn scrubbed(&self, peer: NodeIndex, oldest_unverified: Duration) {
        if let Some(account) = self.accounts.lock().get_mut(&peer) {
            account.unscrubbed = oldest_unverified > afar_model::limits::SCRUB_WITHIN;
        }
    }

    /// Whether `peer` holds a record that it is (`assigned`) or is not assigned.
    pub fn holding(&self, peer: NodeIndex, assigned: bool, key: &RecordKey) -> Holding {
        match self.accounts.lock().get(&peer) {
            None => {
                if assigned {
                    Holding::Unproved
                } else {
                    Holding::No
                }
            }
            Some(account) => account.holding(assigned, key),
        }
    }

    /// Whether `peer` is proved to hold all that it is assigned: then single records need not be asked for.
    pub fn holds_everything(&self, peer: NodeIndex) -> bool {
        self.accounts.lock().get(&peer).is_some_and(|account| account.missing.is_empty() && !account.overflow && account.is_fresh())
    }

    /// Whether any exception is known for any peer: a hint, or a missing record.
    pub fn has_exceptions(&self) -> bool {
        let any = self
            .accounts
            .lock()
            .values()
            .any(|account| account.overflow || !account.missing.is_empty() || !account.extra.is_empty() || !account.whole.is_empty());
        any || !self.own_missing.lock().is_empty()
    }

    /// When the peer was last compared.
    pub fn compared_at(&self, peer: NodeIndex) -> Option<(Instant, UnixMillis)> {
        self.accounts.lock().get(&peer).and_then(|account| account.compared)
    }

    /// How many records the peer is known to lack.
    pub fn missing_at(&self, peer: NodeIndex) -> usize {
        self.accounts.lock().get(&peer).map_or(0, |account| account.missing.len())
    }

    /// This node should have these and has not (or has only a bad copy).
    pub fn own_missing_add(&self, keys: impl IntoIterator<Item = RecordKey>) {
        let mut own = self.own_missing.lock();
        for key in keys {
            if own.len() < limits::LEDGER_EXCEPTIONS {
                own.entry(key).or_insert_with(Instant::now);
            }
        }
    }

    /// This node has them now.
    pub fn own_missing_clear(&self, keys: impl IntoIterator<Item = RecordKey>) {
        let mut own = self.own_missing.lock();
        keys.into_iter().for_each(|key| {
            own.remove(&key);
        });
    }

    /// What this node should have and has not, at most `limit` of them.
    pub fn own_missing(&self, limit: usize) -> Vec<RecordKey> {
        self.own_missing.lock().keys().take(limit).copied().collect()
    }

    /// How many of these nobody has given for longer than that, although whoever is there was asked.
    pub fn missing_for(&self, longer_than: Duration) -> usize {
        self.own_missing.lock().values().filter(|since| since.elapsed() > longer_than).count()
    }

    /// Whether this node should have a record and has not.
    pub fn is_missing_here(&self, key: &RecordKey) -> bool {
        self.own_missing.lock().contains_key(key)
    }
}

fn insert(set: &mut HashMap<RecordKey, Instant>, key: RecordKey, overflow: &mut bool) {
    if set.len() < limits::LEDGER_EXCEPTIONS {
        set.insert(key, Instant::now());
    } else {
        *overflow = true;
    }
}

impl Account {
    fn holding(&self, assigned: bool, key: &RecordKey) -> Holding {
        let claimed = if assigned { !self.missing.contains_key(key) } else { self.extra.contains_key(key) };
        match (claimed, assigned && self.overflow) {
            (false, _) => Holding::No,
            (true, false) if self.is_fresh() => Holding::Proved,
            (true, _) => Holding::Unproved,
        }
    }

    /// Rule 25: compared in this run, lately enough, and its node answered an audit within the bound.
    fn is_fresh(&self) -> bool {
        let within = |since: Option<Instant>, bound: Duration| since.is_some_and(|since| since.elapsed() <= bound);
        !self.unscrubbed
            && within(self.compared.map(|(at, _)| at), limits::COMPARED_WITHIN)
            && within(self.audited, afar_model::limits::AUDIT_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::id::{BucketId, RecordId};

    const PEER: NodeIndex = NodeIndex(1);

    fn key(byte: u8) -> RecordKey {
        RecordKey { bucket: BucketId::SYSTEM, id: RecordId::from_bytes([byte; 32]) }
    }

    fn now() -> (Instant, UnixMillis) {
        (Instant::now(), UnixMillis(1))
    }

    #[test]
    fn what_is_missing_for_long_is_told_from_what_has_just_gone() {
        let ledger = Ledger::default();
        ledger.own_missing_add([key(1), key(2)]);
        ledger.own_missing_add([key(1)]);
        assert_eq!((ledger.missing_for(Duration::ZERO), ledger.missing_for(Duration::from_secs(3600))), (2, 0));
        ledger.own_missing_clear([key(1)]);
        assert_eq!(ledger.missing_for(Duration::ZERO), 1);
    }

    #[test]
    fn rule_25_nothing_is_proved_before_a_comparison_and_an_audit() {
        let ledger = Ledger::default();
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Unproved);
        ledger.compared(PEER, Incarnation::ZERO, Comparison::default(), now());
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Unproved);
        ledger.audited(PEER);
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Proved);
        assert_eq!(ledger.holding(PEER, false, &key(1)), Holding::No);
    }

    #[test]
    fn rule_25_after_a_loss_or_a_failed_audit_a_peer_is_compared_and_audited_again() {
        let ledger = Ledger::default();
        let prove = || {
            ledger.compared(PEER, Incarnation::ZERO, Comparison::default(), now());
            assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Unproved);
            ledger.audited(PEER);
            assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Proved);
        };
        prove();
        ledger.seen(PEER, Incarnation::ZERO, 0);
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Proved, "nothing has happened");
        ledger.seen(PEER, Incarnation::ZERO, 1);
        prove();
        ledger.failed_audit(PEER);
        ledger.audited(PEER);
        assert!(ledger.has_failed_audit(PEER), "an audit alone does not make up for it");
        ledger.seen(PEER, Incarnation::ZERO, 2);
        assert!(ledger.has_failed_audit(PEER));
        prove();
        assert!(!ledger.has_failed_audit(PEER));
    }

    #[test]
    fn a_replacement_starts_from_nothing() {
        let ledger = Ledger::default();
        ledger.compared(PEER, Incarnation::ZERO, Comparison::default(), now());
        ledger.audited(PEER);
        ledger.seen(PEER, Incarnation::from_bytes([1; 16]), 0);
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Unproved);
        let missing = Comparison { missing: HashSet::from([key(1)]), ..Comparison::default() };
        ledger.compared(PEER, Incarnation::from_bytes([1; 16]), missing, now());
        ledger.audited(PEER);
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::No);
        assert_eq!(ledger.holding(PEER, true, &key(2)), Holding::Proved);
        ledger.acknowledged(PEER, true, [key(1)]);
        assert_eq!(ledger.holding(PEER, true, &key(1)), Holding::Proved);
    }
}
