//! Histories of everything that a store does, cut off by a crash at any point: what was acknowledged is there and
//! verifies, what was durably removed stays removed, with the index kept, deleted or old.
use super::*;
use crate::{Owed, Removal, sim::Faults};
use proptest::prelude::*;
use std::collections::BTreeSet;

const RECORDS: u64 = 24;

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Commit(u64),
    Sync,
    Remove(u64),
    Settle(u64),
    Owe(u64),
    Pay(u64),
    Compact,
    Bulk(u64),
    FlushIndex,
    Close,
    Kill,
    Crash {
        seed: u64,
        index: IndexFate,
    },
    /// The machine dies after so many changes of the disk, in the middle of whatever goes on then.
    DieAfter(u64),
}

#[derive(Debug, Clone, Copy)]
enum IndexFate {
    Kept,
    Deleted,
    Old,
}

fn steps() -> impl Strategy<Value = Step> {
    let n = || 0..RECORDS;
    let fate = prop_oneof![3 => Just(IndexFate::Kept), 1 => Just(IndexFate::Deleted), 1 => Just(IndexFate::Old)];
    prop_oneof![
        6 => n().prop_map(Step::Append),
        8 => n().prop_map(Step::Commit),
        2 => Just(Step::Sync),
        6 => n().prop_map(Step::Remove),
        3 => n().prop_map(Step::Settle),
        2 => n().prop_map(Step::Owe),
        2 => n().prop_map(Step::Pay),
        4 => Just(Step::Compact),
        4 => any::<u64>().prop_map(Step::Bulk),
        2 => Just(Step::FlushIndex),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        3 => (any::<u64>(), fate).prop_map(|(seed, index)| Step::Crash { seed, index }),
        3 => (0_u64..40).prop_map(Step::DieAfter),
    ]
}

/// What is promised of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Never stored, or durably removed.
    Gone,
    /// Acknowledged as durable.
    Here,
    /// In between: a crash may decide either way, a running store may not lose it.
    Written,
    /// An operation on it failed half-way.
    Unknown,
}

struct World {
    machine: Machine,
    store: Option<Store>,
    promises: Vec<Promise>,
    unsynced: Vec<(u64, crate::Written)>,
    owed: BTreeSet<u64>,
    maybe_owed: BTreeSet<u64>,
    /// In this run: a clean close logs it.
    paid: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    old_index: std::collections::HashMap<PathBuf, BTreeMap<Vec<u8>, Vec<u8>>>,
    dying: bool,
    bulk: u64,
}

/// Every third one is a version.
fn record(n: u64) -> Record {
    if n.is_multiple_of(3) { version(&format!("key{}", n / 6), n) } else { chunk(n, 700 + 97 * n as usize) }
}

fn owed(n: u64) -> Owed {
    Owed { key: record(n).key(), kind: record(n).kind(), to: format!("node{}", n % 2), since: UnixMillis(n), bytes: 1 }
}

impl World {
    fn new(directories: usize) -> Self {
        let machine = Machine::new(directories);
        let store = Some(machine.open());
        Self {
            machine,
            store,
            promises: vec![Promise::Gone; RECORDS as usize],
            unsynced: Vec::new(),
            owed: BTreeSet::new(),
            maybe_owed: BTreeSet::new(),
            paid: BTreeSet::new(),
            settled: BTreeSet::new(),
            old_index: Default::default(),
            dying: false,
            bulk: 0,
        }
    }

    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    /// An operation failed: only a dying machine may do that.
    fn failed(&mut self, n: Option<u64>, error: &dyn std::fmt::Debug) {
        assert!(self.dying, "failed on a healthy machine: {error:?}");
        if let Some(n) = n {
            self.promises[n as usize] = Promise::Unknown;
        }
    }

    fn step(&mut self, step: &Step) {
        let store = self.store();
        match step {
            Step::Append(n) => match wait(store.append(AppendClass::Client, vec![record(*n)])) {
                Ok(written) => {
                    if matches!(self.promises[*n as usize], Promise::Gone | Promise::Unknown) {
                        self.promises[*n as usize] = Promise::Written;
                    }
                    self.unsynced.extend(written.into_iter().map(|token| (*n, token)));
                }
                Err(error) => self.failed(Some(*n), &error),
            },
            Step::Commit(n) => match wait(store.commit(AppendClass::Client, vec![record(*n)])) {
                Ok(_) => self.promises[*n as usize] = Promise::Here,
                Err(error) => self.failed(Some(*n), &error),
            },
            Step::Sync => {
                let (numbers, tokens): (Vec<u64>, Vec<_>) = std::mem::take(&mut self.unsynced).into_iter().unzip();
                match wait(store.sync(&tokens)) {
                    Ok(_) => {
                        for n in numbers {
                            if self.promises[n as usize] == Promise::Written {
                                self.promises[n as usize] = Promise::Here;
                            }
                        }
                    }
                    Err(error) => self.failed(None, &error),
                }
            }
            Step::Remove(n) => {
                self.unsynced.retain(|(other, _)| other != n);
                self.settled.remove(n);
                match wait(store.remove(vec![record(*n).key()], Removal::Swept)) {
                    Ok(()) => self.promises[*n as usize] = Promise::Gone,
                    Err(error) => self.failed(Some(*n), &error),
                }
            }
            Step::Settle(n) if n.is_multiple_of(3) && self.promises[*n as usize] != Promise::Gone => {
                store.settle(vec![(bucket(), format!("key{}", n / 6), Stamp::from_u64(*n), record(*n).id())]);
                self.settled.insert(*n);
            }
            Step::Settle(_) => {}
            Step::Owe(n) => match wait(store.owe(vec![owed(*n)])) {
                Ok(()) => {
                    self.owed.insert(*n);
                    self.paid.remove(n);
                }
                Err(error) => {
                    self.maybe_owed.insert(*n);
                    self.paid.remove(n);
                    self.failed(None, &error);
                }
            },
            Step::Pay(n) => {
                let owed = owed(*n);
                store.pay(&owed.to, vec![owed.key]);
                self.owed.remove(n);
                self.maybe_owed.insert(*n);
                self.paid.insert(*n);
            }
            Step::Compact => {
                if let Err(error) = store.compact_step() {
                    self.failed(None, &error);
                }
            }
            Step::Bulk(seed) => {
                self.bulk += 1;
                let records = (0..6).map(|n| chunk(1_000_000 + seed % 1000 + self.bulk * 10_000 + n, 1500)).collect();
                if let Err(error) = wait(store.commit(AppendClass::Client, records)) {
                    self.failed(None, &error);
                }
            }
            Step::FlushIndex => {
                self.old_index = self.machine.indexes.snapshot();
                self.machine.indexes.flush_all();
            }
            Step::Close => {
                drop(store);
                self.store.take().unwrap().close();
                if !self.dying {
                    self.maybe_owed.retain(|n| !self.paid.contains(n));
                    self.commit_written();
                }
                self.reopen();
            }
            Step::Kill => {
                self.machine.disk.kill();
                drop(store);
                self.store = None;
                self.reopen();
            }
            Step::Crash { seed, index } => {
                drop(store);
                self.crash(*seed, *index);
            }
            Step::DieAfter(changes) => {
                self.machine.disk.set_faults(Faults { dies_after: Some(*changes), ..Faults::default() });
                self.dying = true;
            }
        }
    }

    /// A clean close syncs everything.
    fn commit_written(&mut self) {
        for promise in self.promises.iter_mut().filter(|promise| **promise == Promise::Written) {
            *promise = Promise::Here;
        }
    }

    fn crash(&mut self, seed: u64, index: IndexFate) {
        self.machine.disk.crash(seed);
        self.store = None;
        match index {
            IndexFate::Kept => self.machine.indexes.crash(),
            IndexFate::Deleted => self.machine.indexes.forget(),
            IndexFate::Old => self.machine.indexes.restore(self.old_index.clone()),
        }
        self.reopen();
    }

    fn reopen(&mut self) {
        self.store = None;
        if self.dying {
            // Whatever it was about to do is undone half-way: that is the point.
            self.machine.disk.crash(self.bulk);
            self.machine.indexes.crash();
            self.dying = false;
        }
        self.unsynced.clear();
        self.paid.clear();
        self.store = Some(self.machine.open());
        self.check(true);
    }

    fn check(&mut self, after_crash: bool) {
        let store = self.store();
        for n in 0..RECORDS {
            let record = record(n);
            let found = store.get(&record.key());
            let here = matches!(&found, Ok(Some(found)) if found.record == record);
            assert!(here || matches!(found, Ok(None) | Err(_)), "wrong bytes for {n}");
            let promise = &mut self.promises[n as usize];
            match *promise {
                Promise::Here => assert!(here, "record {n} was acknowledged and is gone: {found:?}"),
                Promise::Gone => assert_eq!(found, Ok(None), "record {n} was removed and is back"),
                Promise::Written if !after_crash => assert!(here, "record {n} was written and is gone without a crash"),
                // What a restarted store shows was synced when it was opened: it may not vanish any more.
                Promise::Written | Promise::Unknown if after_crash => *promise = if here { Promise::Here } else { Promise::Gone },
                _ => {}
            }
            if let Err(error) = found {
                assert!(after_crash || self.dying, "record {n}: {error}");
                wait(store.remove(vec![record.key()], Removal::Swept)).unwrap();
                // Or it was quarantined already, which nobody waits for: what comes after that waits for it.
                self.bulk += 1;
                if let Err(error) = wait(store.commit(AppendClass::Housekeeping, vec![chunk(8_000_000 + self.bulk, 8)])) {
                    self.failed(None, &error);
                }
            }
        }
        if !self.dying {
            self.check_views(&store);
        }
    }

    fn check_views(&mut self, store: &Store) {
        // Payments are logged in passing: what comes after them in each disk's queue says that they are.
        commit(store, (0..16).map(|n| chunk(9_000_000 + n, 8)).collect());
        for n in (0..RECORDS).filter(|n| n.is_multiple_of(3)) {
            let listed = store.versions(&bucket(), &format!("key{}", n / 6), None, 100).unwrap();
            let row = listed.iter().find(|entry| entry.id == record(n).id());
            let held = store.holds(&record(n).key());
            assert_eq!(row.is_some(), held, "view and index disagree about {n}");
            if row.is_some_and(|row| row.settled) && self.promises[n as usize] != Promise::Unknown {
                assert!(self.settled.contains(&n), "{n} was never settled");
            }
        }
        let owing: BTreeSet<_> = store.owed(None, None, 1000).unwrap().into_iter().map(|owed| (owed.to, owed.key)).collect();
        for n in 0..RECORDS {
            let is_owed = owing.contains(&(owed(n).to, owed(n).key));
            if self.owed.contains(&n) {
                assert!(is_owed, "debt {n} is forgotten");
            } else if !self.maybe_owed.contains(&n) {
                assert!(!is_owed, "debt {n} was never made");
            }
        }
        let total: u64 = store.owed_summary().unwrap().iter().map(|sum| sum.records).sum();
        assert_eq!(total, owing.len() as u64);
        let check = store.check_index();
        assert!(check.matches, "{:?}", check.mismatches);
    }
}

fn run(directories: usize, history: &[Step]) {
    let mut world = World::new(directories);
    for step in history {
        world.step(step);
        if world.machine.disk.is_dead() {
            world.reopen();
        }
    }
    if !world.dying {
        world.check(false);
    }
    world.crash(history.len() as u64, IndexFate::Kept);
    world.crash(history.len() as u64, IndexFate::Deleted);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn rule_16_and_17_what_was_acknowledged_outlives_any_crash(history in proptest::collection::vec(steps(), 1..60)) {
        run(1, &history);
    }

    #[test]
    fn rule_16_and_17_the_same_on_several_disks(history in proptest::collection::vec(steps(), 1..40)) {
        run(3, &history);
    }
}

/// The same short history, cut off after each single change of the disk, in four ways each.
#[test]
fn rule_16_a_crash_at_every_change_of_the_disk() {
    let history = [
        Step::Commit(1),
        Step::Commit(3),
        Step::Append(4),
        Step::Bulk(1),
        Step::Bulk(2),
        Step::Settle(3),
        Step::Remove(1),
        Step::Owe(2),
        Step::Bulk(3),
        Step::Commit(1),
        Step::Remove(4),
        Step::Compact,
        Step::Pay(2),
        Step::Commit(6),
        Step::Compact,
    ];
    for at in 0..70 {
        for seed in 0..4 {
            eprintln!("dies after {at} changes, seed {seed}");
            let mut world = World::new(1);
            world.bulk = seed; // seeds the crash as well
            world.step(&Step::DieAfter(at));
            for step in &history {
                world.step(step);
                if world.machine.disk.is_dead() {
                    break;
                }
            }
            world.reopen();
            world.crash(seed, IndexFate::Deleted);
        }
    }
}
