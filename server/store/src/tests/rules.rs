//! One test (or several) per rule of the consistency page that this crate has to keep.
use super::*;
use crate::{
    AppendError, CommitError, DirectoryState, IdRange, OpenError, ReadError, Removal, StampsSeen, SyncCounts, SyncFailed,
    format::{self, RECORD_HEADER},
    inspect, limits,
    salvage::{Missing, Salvage},
    sim::Faults,
};
use std::path::Path;

impl Store {
    fn read_only_nowhere(&self) -> bool {
        self.usage().directories.iter().all(|directory| !matches!(directory.state, DirectoryState::ReadOnly(_)))
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// Where a record's body begins on disk: file, its content, offset.
fn find_body(machine: &Machine, record: &Record) -> (PathBuf, Vec<u8>, usize) {
    for (path, content) in machine.disk.files(".afar") {
        let needle = record.key().id;
        let header = content.windows(32).position(|window| window == needle.as_bytes());
        if let Some(at) = header
            && content.get(at - 48..at - 40) == Some(&format::RECORD_MAGIC)
        {
            return (path, content, at - 48 + RECORD_HEADER);
        }
    }
    panic!("{:?} is in no segment", record.key());
}

fn flip(machine: &Machine, record: &Record, byte: usize) {
    let (path, mut content, at) = find_body(machine, record);
    content[at + byte] ^= 0x10;
    machine.disk.tamper(&path, content);
}

#[test]
fn rule_6_a_duplicate_counts_only_if_its_copy_was_verified_lately() {
    let machine = Machine::new(1);
    let store = machine.open();
    let record = chunk(1, 3000);
    commit(&store, vec![record.clone()]);
    assert!(commit(&store, vec![record.clone()])[0].deduplicated(), "verified when it was written");
    // The copy rots, and more than a day goes by: it has to be hashed again, and then it counts no more.
    flip(&machine, &record, 100);
    machine.clock.fetch_add(25 * 3_600_000, Ordering::Relaxed);
    let again = commit(&store, vec![record.clone()]);
    assert!(!again[0].deduplicated(), "a rotten copy was counted");
    assert_here(&store, &record);
    // A good old copy is re-hashed and counts.
    machine.clock.fetch_add(25 * 3_600_000, Ordering::Relaxed);
    assert!(commit(&store, vec![record.clone()])[0].deduplicated());
    assert!(store.presence(&record.key(), HOUR).unwrap());
}

#[test]
fn rule_6_what_an_earlier_run_wrote_is_hashed_again_before_it_counts() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 2);
    store.close();
    flip(&machine, &records[0], 5);
    let store = machine.open();
    assert!(store.presence(&records[1].key(), HOUR).unwrap());
    assert!(matches!(store.presence(&records[0].key(), HOUR), Err(ReadError::Corrupt { .. })));
    assert!(!store.presence(&records[0].key(), HOUR).unwrap());
    assert!(!store.holds(&records[0].key()));
    assert!(!commit(&store, vec![records[0].clone()])[0].deduplicated());
    assert!(store.presence(&records[0].key(), HOUR).unwrap());
}

#[test]
fn rule_6_a_file_that_was_replaced_counts_for_nothing_until_hashed() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 2);
    assert!(store.presence(&records[0].key(), HOUR).unwrap());
    let (path, _, _) = find_body(&machine, &records[0]);
    machine.disk.wipe(&path);
    assert!(!matches!(store.presence(&records[0].key(), HOUR), Ok(true)), "its file is gone");
}

#[test]
fn rule_26_a_segment_that_is_deleted_is_lost_although_it_can_still_be_read() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 3);
    assert_here(&store, &records[0]); // and its file is open now
    let (path, _, _) = find_body(&machine, &records[0]);
    let inside = |record: &&Record| find_body(&machine, record).0 == path;
    let (lost, kept): (Vec<_>, Vec<_>) = records.iter().partition(inside);
    machine.disk.wipe(&path);
    assert_here(&store, lost[0]);
    assert!(!matches!(store.prove(&lost[0].key()), Ok(Some(_))), "that it can be read proves nothing");
    assert!(store.losses_counted() > 0, "and it is known from then on");
    assert!(store.wait_for_views(Duration::from_secs(20)));
    for record in &lost {
        assert_gone(&store, record);
        assert!(!store.holds(&record.key()));
    }
    for record in &kept {
        assert_here(&store, record);
        assert!(store.prove(&record.key()).unwrap().is_some());
    }
    let listed = store.ids(IdRange::ALL, None, &[], 1000).unwrap();
    assert_eq!(listed.len(), kept.len(), "others are asked for what is gone");
    assert_eq!(store.losses().damaged.len(), 1);
    assert!(store.read_only_nowhere(), "what is being written is untouched");
    assert!(!commit(&store, vec![lost[0].clone()])[0].deduplicated());
    assert!(store.prove(&lost[0].key()).unwrap().is_some());
    assert!(store.check_index().matches);
    // A second look finds nothing new.
    let known = store.losses_counted();
    store.look();
    assert_eq!(store.losses_counted(), known);
    store.close();
    let (store, opened) = machine.try_open().unwrap();
    assert!(opened.losses.is_empty(), "{:?}", opened.losses);
    assert_here(&store, lost[0]);
}

#[test]
fn rule_26_what_is_said_of_a_lost_version_does_not_revive_it() {
    let machine = Machine::new(1);
    let store = machine.open();
    let (unmarked, marked, late) = (version("a", 1), version("b", 2), version("c", 3));
    commit(&store, vec![unmarked, marked.clone(), late.clone()]);
    let mark = |key: &str, stamp, record: &Record| store.settle(vec![(bucket(), key.to_owned(), Stamp::from_u64(stamp), record.key().id)]);
    mark("b", 2, &marked);
    fill(&store, 0, 1);
    mark("c", 3, &late); // visible, and not logged yet
    machine.disk.wipe(&find_body(&machine, &marked).0);
    store.look();
    assert!(store.wait_for_views(Duration::from_secs(20)));
    commit(&store, vec![chunk(1000, 100)]); // behind the notes in the queue
    assert_eq!(store.version_ids(None, 10), Ok(Vec::new()));
    let noted = |key: &str, stamp, settled| (key.to_owned(), stamp, settled, false);
    assert_eq!(known(&store), [noted("a", 1, false), noted("b", 2, true), noted("c", 3, true)]);
    commit(&store, vec![late]);
    assert_eq!(store.version_ids(None, 10).unwrap().len(), 1);
    assert!(store.check_index().matches);
}

#[test]
fn rule_26_a_look_finds_what_nobody_reads() {
    for damage in ["deleted", "cut", "replaced"] {
        let machine = Machine::new(1);
        let store = machine.open();
        let records = fill(&store, 0, 2);
        let (path, content, _) = find_body(&machine, &records[0]);
        store.look();
        assert_eq!(store.losses_counted(), 0, "nothing is lost yet");
        match damage {
            "deleted" => machine.disk.wipe(&path),
            "cut" => machine.disk.tamper(&path, content[..content.len() / 2].to_vec()),
            _ => {
                machine.disk.wipe(&path);
                machine.disk.tamper(&path, content);
            }
        }
        store.look();
        assert!(store.losses_counted() > 0, "{damage}");
        assert!(store.wait_for_views(Duration::from_secs(20)));
        assert_gone(&store, &records[0]);
    }
}

#[test]
fn rule_26_a_deleted_file_acknowledges_nothing() {
    let machine = Machine::new(1);
    let store = machine.open();
    commit(&store, vec![chunk(1, 2000)]);
    let (path, _, _) = find_body(&machine, &chunk(1, 2000));
    machine.disk.wipe(&path);
    let refused = wait(store.commit(AppendClass::Client, vec![chunk(2, 2000)]));
    assert!(matches!(refused, Err(CommitError::Sync(SyncFailed::Directory(_)))), "{refused:?}");
    assert!(!store.read_only_nowhere());
    assert!(wait(store.append(AppendClass::Housekeeping, vec![chunk(1, 2000)])).is_err(), "nor does it count as there already");
    store.look();
    assert!(store.losses_counted() > 0);
    assert!(store.wait_for_views(Duration::from_secs(20)));
    assert_eq!(store.ids(IdRange::ALL, None, &[], 10), Ok(Vec::new()), "neither of them is here");
    assert!(store.check_index().matches);
    assert!(machine.disk.files(".afar").is_empty(), "nothing is made anew");
}

#[test]
fn rule_26_what_is_deleted_before_its_sync_was_asked_for_is_not_durable() {
    let machine = Machine::new(1);
    let store = machine.open();
    let record = chunk(1000, 1500);
    let written = wait(store.append(AppendClass::Client, vec![record.clone()])).unwrap();
    fill(&store, 0, 2);
    machine.disk.wipe(&find_body(&machine, &record).0);
    assert_eq!(wait(store.sync(&written)), Err(SyncFailed::Lost));
    store.look();
    assert_eq!(wait(store.sync(&written)), Err(SyncFailed::Lost));
}

#[test]
fn rule_19_a_directory_that_went_is_read_only_and_never_made_anew() {
    let machine = Machine::new(1);
    let store = machine.open();
    let record = chunk(1, 2000);
    commit(&store, vec![record.clone()]);
    let data = machine.options.directories[0].clone();
    machine.disk.wipe(&data.join(crate::identity::IDENTITY));
    store.look();
    assert!(!store.read_only_nowhere());
    assert_here(&store, &record);
    assert_eq!(store.losses_counted(), 0, "its segments are there");
    machine.disk.wipe(&data);
    store.look();
    assert!(store.losses_counted() > 0);
    assert!(machine.disk.files("/poisoned").is_empty(), "whatever is at that path is not ours to write to");
}

#[test]
fn rule_19_segments_that_went_between_two_runs_are_a_loss() {
    for (what, all, cut) in [("all", true, false), ("one", false, false), ("half of one", false, true)] {
        let machine = Machine::new(1);
        let store = machine.open();
        let records = fill(&store, 0, 3);
        store.close();
        let (_, opened) = machine.try_open().unwrap();
        assert!(opened.losses.is_empty(), "{:?}", opened.losses);
        machine.disk.kill();
        let first = find_body(&machine, &records[0]).0;
        for (path, content) in machine.disk.files(".afar") {
            match path == first {
                true if cut => machine.disk.tamper(&path, content[..200].to_vec()),
                first if first || all => machine.disk.wipe(&path),
                _ => {}
            }
        }
        let (store, opened) = machine.try_open().unwrap();
        assert!(!opened.losses.is_empty(), "{what}");
        assert!(store.wait_for_views(Duration::from_secs(20)));
        assert_gone(&store, &records[0]);
    }
}

#[test]
fn rule_16_a_failed_sync_makes_the_directory_read_only_and_is_never_retried() {
    let machine = Machine::new(1);
    let store = machine.open();
    let (safe, doubtful) = (chunk(1, 2000), chunk(2, 2000));
    commit(&store, vec![safe.clone()]);
    machine.disk.set_faults(Faults { sync_fails_after: Some(0), ..Faults::default() });
    let failed = wait(store.commit(AppendClass::Client, vec![doubtful.clone()]));
    assert!(matches!(failed, Err(CommitError::Sync(SyncFailed::Directory(_)))), "{failed:?}");
    machine.disk.set_faults(Faults::default());
    let refused = wait(store.append(AppendClass::Housekeeping, vec![chunk(3, 10)]));
    assert!(matches!(refused, Err(AppendError::ReadOnly(_))), "{refused:?}");
    assert!(wait(store.remove(vec![safe.key()], Removal::Swept)).is_err());
    assert!(matches!(store.usage().directories[0].state, DirectoryState::ReadOnly(_)));
    assert_here(&store, &safe);
    // A process of before the failure would show the doubtful record from the page cache; a new one must not.
    machine.disk.kill();
    drop(store);
    let store = machine.open();
    assert_here(&store, &safe);
    assert_gone(&store, &doubtful);
    commit(&store, vec![doubtful.clone()]);
    machine.crash(store, 0);
    let store = machine.open();
    assert_here(&store, &doubtful);
}

#[test]
fn rule_16_even_without_a_marker_the_page_cache_is_not_believed() {
    let machine = Machine::new(1);
    let store = machine.open();
    commit(&store, vec![chunk(1, 2000)]);
    machine.disk.set_faults(Faults { sync_fails_after: Some(0), no_new_files: true, ..Faults::default() });
    assert!(wait(store.commit(AppendClass::Client, vec![chunk(2, 2000)])).is_err());
    machine.disk.kill();
    machine.disk.set_faults(Faults::default());
    drop(store);
    let store = machine.open();
    let shown = store.get(&chunk(2, 2000).key()).unwrap().is_some();
    machine.crash(store, 0);
    let store = machine.open();
    assert_here(&store, &chunk(1, 2000));
    assert!(!shown || store.get(&chunk(2, 2000).key()).unwrap().is_some(), "served, then lost with the power");
}

#[test]
fn rule_16_tokens_of_another_run_are_refused() {
    let machine = Machine::new(1);
    let store = machine.open();
    let written = wait(store.append(AppendClass::Client, vec![chunk(1, 100)])).unwrap();
    drop(store);
    let store = machine.open();
    assert_eq!(wait(store.sync(&written)), Err(SyncFailed::AnotherRun));
}

#[test]
fn rule_16_one_sync_serves_all_who_wait() {
    let machine = Machine::new(1);
    let store = machine.open();
    commit(&store, vec![chunk(0, 100)]);
    let before = store.usage().syncs;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let written = store.append(AppendClass::Client, (1..20).map(|n| chunk(n, 200)).collect()).await.unwrap();
        store.sync(&written).await.unwrap();
        store.sync(&written).await.unwrap();
    });
    assert!(store.usage().syncs - before <= 2, "{} syncs", store.usage().syncs - before);
}

#[test]
fn syncs_are_counted_by_who_asked_for_them() {
    let machine = Machine::new(2);
    let store = machine.open();
    let counts = || store.usage().directories.iter().map(|directory| directory.syncs).collect::<Vec<_>>();
    let sum = |pick: fn(&SyncCounts) -> u64| counts().iter().map(pick).sum::<u64>();
    let (requests, shared) = (sum(|counts| counts.requests), sum(|counts| counts.shared));
    let home = commit(&store, vec![chunk(0, 100)])[0].directory();
    assert_eq!((sum(|counts| counts.requests) - requests, sum(|counts| counts.shared) - shared), (1, 1));
    let usage = store.usage();
    let there = usage.directories.iter().find(|directory| directory.id == Some(home)).unwrap();
    assert!(there.syncs.requests >= 1 && there.syncs.shared >= 1, "counted where the record is: {usage:?}");
    assert_eq!(usage.syncs, usage.directories.iter().map(|directory| directory.syncs.calls()).sum::<u64>());
    // Twice the same: two requests, and nothing left to sync for the second.
    let (requests, shared) = (sum(|counts| counts.requests), sum(|counts| counts.shared));
    let written = wait(store.append(AppendClass::Client, vec![chunk(1, 100)])).unwrap();
    wait(store.sync(&written)).unwrap();
    wait(store.sync(&written)).unwrap();
    assert_eq!(sum(|counts| counts.requests) - requests, 2);
    assert!(sum(|counts| counts.shared) - shared <= 1);
}

#[test]
fn rule_4_stamps_beyond_the_limit_are_counted_and_the_greatest_below_it_is_found() {
    for directories in [1, 2] {
        let machine = Machine::new(directories);
        let store = machine.open();
        let limit = Stamp::from_u64(1000);
        assert_eq!(store.stamps_up_to(limit), StampsSeen::default());
        let stamps = [7, 2000, 900, 3000, 1000, 1001, 12];
        commit(&store, stamps.iter().map(|stamp| version(&format!("key{stamp}"), *stamp)).collect());
        let expected = StampsSeen { newest: Stamp::from_u64(1000), beyond: 3 };
        assert_eq!(store.stamps_up_to(limit), expected, "in the active segment");
        fill(&store, 100, 2);
        commit(&store, vec![version("later", 999)]);
        assert_eq!(store.stamps_up_to(limit), expected, "in a sealed one");
        store.close();
        let store = machine.open();
        assert_eq!(store.stamps_up_to(limit), expected, "after a restart");
        assert_eq!(store.stamps_up_to(Stamp::from_u64(5000)), StampsSeen { newest: Stamp::from_u64(3000), beyond: 0 });
        assert_eq!(store.stamps_up_to(Stamp::from_u64(5)), StampsSeen { newest: Stamp::ZERO, beyond: 8 });
    }
}

#[test]
fn rule_16_a_damaged_range_is_reported_but_a_torn_tail_is_not() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records: Vec<Record> = (0..4).map(|n| chunk(n, 1000)).collect();
    commit(&store, records.clone());
    store.close();
    let (path, content, at) = find_body(&machine, &records[3]);
    // The last record is cut in half: that is what a power cut leaves. The index does not know it then.
    machine.disk.tamper(&path, content[..at + 500].to_vec());
    machine.indexes.forget();
    let (store, opened) = machine.try_open().unwrap();
    assert!(opened.losses.is_empty(), "{:?}", opened.losses);
    assert_gone(&store, &records[3]);
    commit(&store, vec![records[3].clone()]);
    assert_here(&store, &records[3]);
    store.close();
    // A header in the middle is destroyed: what follows it is found, and the loss is known.
    let (path, mut content, at) = find_body(&machine, &records[1]);
    content[at - RECORD_HEADER..at].fill(0xEE);
    machine.disk.tamper(&path, content);
    let (store, opened) = machine.try_open().unwrap();
    assert_eq!(opened.losses.damaged.len(), 1, "{:?}", opened.losses);
    assert_here(&store, &records[2]);
    assert_here(&store, &records[3]);
    assert!(!matches!(store.get(&records[1].key()), Ok(Some(_))));
}

#[test]
fn rule_17_a_removal_holds_and_a_later_append_revives() {
    let machine = Machine::new(1);
    let record = version("key", 1);
    commit(&machine.open(), vec![record.clone()]);
    for seed in 0..3 {
        let store = machine.open();
        wait(store.remove(vec![record.key()], Removal::Purged)).unwrap();
        machine.crash(store, seed);
        machine.indexes.forget();
        let store = machine.open();
        assert_gone(&store, &record);
        assert!(store.versions(&bucket(), "key", None, 10).unwrap().is_empty());
        commit(&store, vec![record.clone()]);
        machine.crash(store, seed);
        machine.indexes.forget();
        let store = machine.open();
        assert_here(&store, &record);
        assert_eq!(store.versions(&bucket(), "key", None, 10).unwrap().len(), 1);
    }
}

#[test]
fn rule_17_compaction_keeps_tombstones_while_they_bind_and_frees_the_rest() {
    let machine = Machine::new(1);
    let store = machine.open();
    let first = fill(&store, 0, 1);
    let keep = &first[0];
    // The tombstone of first[1] lands in a later segment than its record.
    wait(store.remove(vec![first[1].key()], Removal::Swept)).unwrap();
    let second = fill(&store, 1000, 1);
    wait(store.remove(second.iter().map(Record::key).collect(), Removal::Swept)).unwrap();
    fill(&store, 2000, 1);
    let before = store.usage().directories[0].segment_bytes;
    let mut freed = 0;
    loop {
        let step = store.compact_step().unwrap();
        if step.segment.is_none() {
            break;
        }
        freed += step.freed;
    }
    assert!(freed > 0 && store.usage().directories[0].segment_bytes < before);
    assert!(store.check_index().matches, "{:?}", store.check_index());
    machine.crash(store, 2);
    machine.indexes.forget();
    let store = machine.open();
    assert_here(&store, keep);
    assert_gone(&store, &first[1]);
    second.iter().for_each(|record| assert_gone(&store, record));
}

#[test]
fn rule_17_compaction_quarantines_what_does_not_verify_and_never_blesses_it() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 1);
    fill(&store, 1000, 1);
    wait(store.remove(records.iter().skip(3).map(Record::key).collect(), Removal::Swept)).unwrap();
    flip(&machine, &records[0], 7);
    let step = store.compact_step().unwrap();
    assert_eq!((step.segment.map(|(_, n)| n), step.quarantined), (Some(1), 1));
    assert!(!matches!(store.get(&records[0].key()), Ok(Some(_))));
    assert_here(&store, &records[1]);
    assert_eq!(store.losses().corrupt, [records[0].key()]);
    assert!(inspect::verify(&*machine.disk.boot(), Path::new("/disk0")).unwrap().iter().all(inspect::SegmentReport::is_whole));
    store.close();
    let store = machine.open();
    assert!(store.check_index().matches, "{:?}", store.check_index());
    assert_gone(&store, &records[0]);
}

#[test]
fn rule_18_an_index_that_lacks_or_invents_something_is_noticed_and_rebuilt() {
    type Tampering = fn(&mut BTreeMap<Vec<u8>, Vec<u8>>);
    let tamperings: [Tampering; 4] = [
        |rows| drop(rows.iter().position(|(key, _)| key[0] == b'r').map(|at| rows.remove(&rows.keys().nth(at).unwrap().clone()))),
        |rows| rows.retain(|key, _| key[0] != b's'),
        |rows| rows.iter_mut().filter(|(key, _)| key[0] == b's').for_each(|(_, value)| value[0] ^= 2),
        |rows| rows.clear(),
    ];
    for (number, tampering) in tamperings.into_iter().enumerate() {
        for running in [false, true] {
            let machine = Machine::new(1);
            let mut store = machine.open();
            let records = fill(&store, 0, 2);
            store.close();
            if !running {
                machine.indexes.tamper(tampering);
            }
            store = machine.open();
            if running {
                machine.indexes.tamper(tampering);
            }
            // Counters that only the next start reads do not matter before.
            if running && number != 0 && number != 3 {
                continue;
            }
            if running {
                assert!(!store.check_index().matches, "tampering {number} was not noticed");
            } else if number == 0 {
                store.check_index();
            }
            let mut rounds = 0;
            while !(store.views_ready() && store.check_index().matches) {
                store.wait_for_views(Duration::from_secs(10));
                rounds += 1;
                assert!(rounds < 100, "tampering {number} does not heal");
            }
            records.iter().for_each(|record| assert_here(&store, record));
        }
    }
}

#[test]
fn rule_18_no_compaction_by_an_index_that_does_not_agree() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 2);
    wait(store.remove(records.iter().skip(1).map(Record::key).collect(), Removal::Swept)).unwrap();
    store.close();
    let store = machine.open();
    machine.indexes.tamper(|rows| rows.clear());
    assert!(!store.check_index().matches);
    // Either it is still being rebuilt, and nothing is compacted, or it is rebuilt, and what is compacted is right.
    while store.compact_step().unwrap().segment.is_some() {}
    store.wait_for_views(Duration::from_secs(10));
    while store.compact_step().unwrap().segment.is_some() {}
    assert_here(&store, &records[0]);
}

#[test]
fn rule_19_a_disk_that_is_not_mounted_is_a_failed_disk_not_an_empty_one() {
    let mut machine = Machine::new(2);
    let store = machine.open();
    let records: Vec<Record> = (0..20).map(|n| chunk(n, 500)).collect();
    commit(&store, records.clone());
    store.close();
    machine.disk.wipe(Path::new("/disk1"));
    machine.options.init_dirs = false;
    let (store, opened) = machine.try_open().unwrap();
    assert!(matches!(opened.directories[1].state, DirectoryState::Failed(_)));
    assert_eq!(opened.losses.directories.len(), 1);
    let here = records.iter().filter(|record| store.get(&record.key()).unwrap().is_some()).count();
    assert!(0 < here && here < 20, "{here}");
    commit(&store, records.clone());
    records.iter().for_each(|record| assert_here(&store, record));
    assert!(machine.disk.files("/disk1/identity").is_empty(), "it was made anew");
    store.close();
    let both = std::mem::replace(&mut machine.options.directories, vec![PathBuf::from("/disk1")]);
    let refused = machine.try_open().map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("/disk1: it is missing or empty: a disk"), "words, and no form of a program's: {refused}");
    machine.options.directories = both;
    // Told to, it is.
    machine.options.init_dirs = true;
    let (_store, opened) = machine.try_open().unwrap();
    assert_eq!(opened.directories[1].state, DirectoryState::Created);
}

#[test]
fn rule_19_directories_of_others_and_unknown_ones_are_refused() {
    let mut machine = Machine::new(1);
    machine.options.init_dirs = false;
    assert!(matches!(machine.try_open(), Err(OpenError::NotInitialised { .. })));
    machine.options.init_dirs = true;
    let store = machine.open();
    assert!(matches!(machine.try_open(), Err(OpenError::Locked { .. })));
    store.close();
    machine.options.node = "node2".into();
    assert!(matches!(machine.try_open(), Err(OpenError::Foreign { .. })));
    machine.options.node = "node1".into();
    machine.options.incarnation = Some(afar_model::id::Incarnation::from_bytes([5; 16]));
    assert!(matches!(machine.try_open(), Err(OpenError::Foreign { .. })));
    machine.options.incarnation = None;
    machine.disk.boot().make_directory(Path::new("/disk7/holiday-pictures")).unwrap();
    machine.options.directories = vec!["/disk7".into()];
    machine.options.state_dir = "/other".into();
    assert!(matches!(machine.try_open(), Err(OpenError::NotEmpty { .. })));
}

#[test]
fn rule_19_a_segment_of_another_node_is_never_served() {
    let (ours, theirs) = (Machine::new(1), Machine::new(1));
    theirs.boots.store(100, Ordering::Relaxed); // other randomness, other ids
    let other = theirs.open();
    let stranger = chunk(77, 900);
    commit(&other, vec![stranger.clone()]);
    other.close();
    let (_, content, _) = find_body(&theirs, &stranger);
    let store = ours.open();
    commit(&store, vec![chunk(1, 900)]);
    store.close();
    ours.disk.tamper(Path::new("/disk0/segments/0000000000000009.afar"), content);
    let (store, opened) = ours.try_open().unwrap();
    assert_eq!(opened.losses.damaged.len(), 1, "it is reported");
    assert_gone(&store, &stranger);
    assert_here(&store, &chunk(1, 900));
    commit(&store, vec![chunk(2, 900)]);
    let disk = ours.disk.boot();
    let salvage = Salvage::open(&*disk, &["/disk0".into()]).unwrap();
    assert_eq!(salvage.get(&stranger.key()).as_ref(), Ok(stranger.body()), "but the inspector can read it");
}

#[test]
fn rule_19_positions_never_go_backwards() {
    let machine = Machine::new(1);
    let mut last = crate::Position::default();
    for seed in 0..12 {
        let store = machine.open();
        let now = store.positions()[0].1;
        assert!(now >= last, "seed {seed}: {now:?} after {last:?}");
        commit(&store, vec![chunk(seed, 3000)]);
        wait(store.append(AppendClass::Client, vec![chunk(seed + 100, 3000)])).unwrap();
        last = store.positions()[0].1;
        machine.crash(store, seed);
    }
}

#[test]
fn rule_20_clients_stop_first_then_repair_and_removals_never() {
    let mut machine = Machine::new(1);
    machine.disk = SimDisk::new(1 << 20);
    machine.options.reserve = crate::Reserve { client: Some(300 << 10), repair: Some(100 << 10) };
    let store = machine.open();
    let mut n = 0;
    let mut written = Vec::new();
    for class in [AppendClass::Client, AppendClass::Repair] {
        loop {
            n += 1;
            match wait(store.commit(class, vec![chunk(n, 8000)])) {
                Ok(_) => written.push(chunk(n, 8000)),
                Err(CommitError::Append(AppendError::Full { .. })) => break,
                Err(error) => panic!("{error}"),
            }
            assert!(n < 1000, "never full");
        }
        assert!(matches!(
            wait(store.commit(AppendClass::Client, vec![chunk(n + 5000, 8000)])),
            Err(CommitError::Append(AppendError::Full { .. }))
        ));
    }
    written.iter().for_each(|record| assert_here(&store, record));
    wait(store.remove(written.iter().take(written.len() / 2).map(Record::key).collect(), Removal::Purged)).unwrap();
    while store.compact_step().unwrap().segment.is_some() {}
    commit(&store, vec![chunk(9999, 8000)]);
    written.iter().skip(written.len() / 2).for_each(|record| assert_here(&store, record));
}

#[test]
fn rule_20_a_disk_that_is_really_full_refuses_cleanly_and_goes_on() {
    let mut machine = Machine::new(1);
    machine.disk = SimDisk::new(300 << 10);
    machine.options.reserve = crate::Reserve { client: Some(0), repair: Some(0) };
    let store = machine.open();
    let mut written = Vec::new();
    let full = (0..200).find_map(|n| match wait(store.commit(AppendClass::Housekeeping, vec![chunk(n, 5000)])) {
        Ok(_) => {
            written.push(chunk(n, 5000));
            None
        }
        Err(error) => Some((n, error)),
    });
    let (n, error) = full.unwrap();
    assert!(matches!(error, CommitError::Append(AppendError::Full { .. })), "{error}");
    assert_gone(&store, &chunk(n, 5000));
    written.iter().for_each(|record| assert_here(&store, record));
    machine.disk.set_capacity(2 << 20);
    commit(&store, vec![chunk(n, 5000)]);
    machine.crash(store, 3);
    let store = machine.open();
    assert_here(&store, &chunk(n, 5000));
    written.iter().for_each(|record| assert_here(&store, record));
}

#[test]
fn short_writes_and_write_errors_leave_nothing_half_visible() {
    let machine = Machine::new(1);
    let store = machine.open();
    machine.disk.set_faults(Faults { short_writes: Some(700), ..Faults::default() });
    let records: Vec<Record> = (0..5).map(|n| chunk(n, 2500)).collect();
    commit(&store, records.clone());
    machine.disk.set_faults(Faults { write_fails_after: Some(0), ..Faults::default() });
    assert!(matches!(wait(store.commit(AppendClass::Client, vec![chunk(9, 2500)])), Err(CommitError::Append(AppendError::ReadOnly(_)))));
    assert_gone(&store, &chunk(9, 2500));
    machine.crash(store, 5);
    let store = machine.open();
    records.iter().for_each(|record| assert_here(&store, record));
    commit(&store, vec![chunk(9, 2500)]);
}

#[test]
fn no_flipped_bit_anywhere_in_a_segment_yields_wrong_bytes() {
    for sealed in [false, true] {
        let mut machine = Machine::new(1);
        let store = machine.open();
        let mut records = vec![chunk(1, 300), version("a", 1), version("b", 2), chunk(2, 64)];
        commit(&store, records.clone());
        wait(store.remove(vec![records[3].key()], Removal::Swept)).unwrap();
        let removed = records.pop().unwrap();
        if sealed {
            fill(&store, 100, 1);
        }
        store.close();
        let mut files = machine.disk.files("0000000000000001.afar");
        let (path, content) = files.pop().unwrap();
        let original = machine.disk.clone();
        let tail = content.len().saturating_sub(700);
        let interesting = (0..1500.min(content.len())).chain(tail..content.len());
        for byte in interesting.step_by(7) {
            let mut flipped = content.clone();
            flipped[byte] ^= 1 << (byte % 8);
            machine.disk = original.fork(); // what is found corrupt stays removed, or the next one would not be found
            machine.disk.tamper(&path, flipped);
            machine.indexes.forget();
            let Ok((store, opened)) = machine.try_open() else { continue };
            store.wait_for_views(Duration::from_secs(10));
            for record in &records {
                match store.get(&record.key()) {
                    Ok(Some(found)) => assert_eq!(&found.record, record, "byte {byte}"),
                    Ok(None) => assert!(!opened.losses.is_empty() || !sealed, "byte {byte}: silently gone"),
                    Err(_) => {}
                }
                if let Some(found) = store.get_cached(&record.key(), usize::MAX) {
                    assert_eq!(&found.record, record, "byte {byte}, read from memory");
                }
            }
            if let Ok(Some(found)) = store.get(&removed.key()) {
                assert_eq!(found.record, removed, "byte {byte}");
            }
        }
    }
}

#[test]
fn what_is_in_memory_is_read_without_waiting_and_verified_all_the_same() {
    let machine = Machine::new(2);
    let store = machine.open();
    let records = [chunk(1, 3000), chunk(2, 3000), version("a", 1)];
    commit(&store, records.to_vec());
    for record in &records {
        assert_here(&store, record); // opens its file
        assert_eq!(&store.get_cached(&record.key(), 3000).unwrap().record, record);
    }
    assert_eq!(store.get_cached(&records[0].key(), 2999), None, "longer than asked for");
    assert_eq!(store.get_cached(&chunk(3, 10).key(), 3000), None);
    for byte in [0, 1500, 2999] {
        flip(&machine, &records[0], byte);
        assert_eq!(store.get_cached(&records[0].key(), 3000), None, "a rotten copy was served");
        flip(&machine, &records[0], byte);
    }
    flip(&machine, &records[0], 7);
    assert!(matches!(store.get(&records[0].key()), Err(ReadError::Corrupt { .. })));
    wait(store.remove(vec![records[1].key()], Removal::Swept)).unwrap();
    assert_eq!(store.get_cached(&records[1].key(), 3000), None, "it was removed");
}

#[test]
fn a_truncated_segment_takes_the_same_content_again() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records: Vec<Record> = (0..6).map(|n| chunk(n, 1200)).collect();
    commit(&store, records.clone());
    store.close();
    let (path, content) = machine.disk.files("0000000000000001.afar").pop().unwrap();
    for length in [0, 50, 128, 1000, 3000, content.len() - 1] {
        machine.disk.tamper(&path, content[..length].to_vec());
        let store = machine.open();
        commit(&store, records.clone());
        records.iter().for_each(|record| assert_here(&store, record));
        store.close();
        let store = machine.open();
        records.iter().for_each(|record| assert_here(&store, record));
        assert!(store.check_index().matches);
        store.close();
        machine.disk.wipe(Path::new("/disk0/segments/0000000000000002.afar"));
        machine.indexes.forget();
    }
}

#[test]
fn two_records_swapped_in_place_are_both_found() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 1);
    fill(&store, 100, 1);
    let (a, b) = (&records[0], &records[1]);
    let (path, content, at_a) = find_body(&machine, a);
    let (_, _, at_b) = find_body(&machine, b);
    let total = format::total(1500) as usize;
    let mut swapped = content.clone();
    let (start_a, start_b) = (at_a - RECORD_HEADER, at_b - RECORD_HEADER);
    swapped[start_a..start_a + total].copy_from_slice(&content[start_b..start_b + total]);
    swapped[start_b..start_b + total].copy_from_slice(&content[start_a..start_a + total]);
    machine.disk.tamper(&path, swapped);
    assert_here(&store, a);
    assert_here(&store, b);
    store.close();
    machine.indexes.forget();
    let store = machine.open();
    assert_here(&store, a);
    assert_here(&store, b);
}

/// A block of a record's body, and of nothing else, becomes unreadable.
fn spoil(machine: &Machine, record: &Record) {
    let (path, _, at) = find_body(machine, record);
    let block = limits::READ_AROUND_BYTES as usize;
    let from = at.next_multiple_of(block);
    assert!(from + block <= at + record.body().len());
    machine.disk.spoil(&path, from..from + block);
}

#[test]
fn rule_16_a_block_that_cannot_be_read_at_the_start_costs_its_record_and_is_reported() {
    for at_the_end in [false, true] {
        let machine = Machine::new(1);
        let store = machine.open();
        let (lost, other) = (chunk(1, 9000), chunk(2, 3000));
        let order = if at_the_end { vec![other.clone(), lost.clone()] } else { vec![lost.clone(), other.clone()] };
        order.into_iter().for_each(|record| drop(commit(&store, vec![record])));
        store.close();
        spoil(&machine, &lost);
        machine.indexes.forget();
        let (store, opened) = machine.try_open().unwrap();
        assert_eq!(opened.losses.damaged.len(), 1, "at the end: {at_the_end}: it may have been acknowledged: {:?}", opened.losses);
        assert!(store.wait_for_views(Duration::from_secs(20)));
        assert_here(&store, &other);
        assert_gone(&store, &lost);
        assert!(!commit(&store, vec![lost.clone()])[0].deduplicated());
        fill(&store, 100, 2);
        store.close();
        let store = machine.open();
        assert_here(&store, &other);
        assert_here(&store, &lost);
        assert!(store.check_index().matches, "{:?}", store.check_index());
    }
}

#[test]
fn rule_16_a_footer_that_cannot_be_read_is_made_anew_from_the_records() {
    let machine = Machine::new(1);
    let store = machine.open();
    // So long that a footer's header is in the block before the one that goes.
    let length = 3 * limits::READ_AROUND_BYTES as usize - format::SEGMENT_HEADER - 2 * RECORD_HEADER - 8;
    let records: Vec<Record> = (0..6).map(|n| chunk(n, length)).collect();
    records.iter().for_each(|record| drop(commit(&store, vec![record.clone()])));
    store.close();
    for record in [&records[0], &records[4]] {
        let (path, content, at) = find_body(&machine, record);
        let tail = content.len() - 40;
        assert!(at + length + RECORD_HEADER <= tail - tail % limits::READ_AROUND_BYTES as usize, "nothing else is in that block");
        machine.disk.spoil(&path, tail..content.len());
    }
    machine.indexes.forget();
    let (store, opened) = machine.try_open().unwrap();
    assert!(opened.losses.is_empty(), "{:?}", opened.losses);
    assert!(store.wait_for_views(Duration::from_secs(20)));
    records.iter().for_each(|record| assert_here(&store, record));
    assert!(store.check_index().matches, "{:?}", store.check_index());
}

#[test]
fn rule_17_what_the_device_cannot_read_is_quarantined_and_can_be_written_again() {
    for (read, sealed) in [("get", 0), ("get", 1), ("prove", 0), ("presence", 1)] {
        let machine = Machine::new(1);
        let store = machine.open();
        let (lost, other) = (chunk(1, 9000), chunk(2, 2000));
        commit(&store, vec![lost.clone(), other.clone()]);
        if sealed > 0 {
            fill(&store, 100, sealed);
        }
        spoil(&machine, &lost);
        machine.clock.fetch_add(25 * 3_600_000, Ordering::Relaxed);
        let failed = match read {
            "get" => store.get(&lost.key()).map(|found| found.is_some()),
            "prove" => store.prove(&lost.key()).map(|found| found.is_some()),
            _ => store.presence(&lost.key(), HOUR),
        };
        assert!(matches!(failed, Err(ReadError::Corrupt { .. })), "{read}: {failed:?}");
        assert!(!store.holds(&lost.key()) && !matches!(store.get(&lost.key()), Ok(Some(_))), "{read}");
        assert_eq!(store.losses().corrupt, [lost.key()]);
        let failures = store.usage().directories[0].read_failures.clone();
        assert!(failures.count > 0 && failures.last.contains("os error 5"), "it is named: {failures:?}");
        assert_here(&store, &other);
        assert!(!commit(&store, vec![lost.clone()])[0].deduplicated(), "{read}: what cannot be read was counted");
        assert_here(&store, &lost);
        assert!(store.prove(&lost.key()).unwrap().is_some());
        store.close();
        machine.indexes.forget();
        let store = machine.open();
        assert_here(&store, &lost);
        assert!(store.check_index().matches);
    }
}

#[test]
fn rule_17_what_was_read_well_a_moment_ago_counts_no_more_once_it_cannot_be_read() {
    let machine = Machine::new(1);
    let store = machine.open();
    let record = chunk(1, 9000);
    commit(&store, vec![record.clone()]);
    spoil(&machine, &record);
    assert!(store.get(&record.key()).is_err());
    assert!(!commit(&store, vec![record.clone()])[0].deduplicated(), "verified within the hour, and unreadable");
    assert_here(&store, &record);
}

#[test]
fn a_read_that_fails_for_a_passing_reason_condemns_nothing() {
    const ENOMEM: i32 = 12;
    let machine = Machine::new(1);
    let store = machine.open();
    let record = chunk(1, 2000);
    commit(&store, vec![record.clone()]);
    machine.disk.set_faults(Faults { reads_fail: Some(ENOMEM), ..Faults::default() });
    assert!(matches!(store.get(&record.key()), Err(ReadError::Disk { .. })));
    machine.disk.set_faults(Faults::default());
    assert_here(&store, &record);
    assert_eq!((store.losses().corrupt_total, store.usage().directories[0].read_failures.count), (0, 0));
}

#[test]
fn rule_17_compaction_leaves_behind_what_the_device_cannot_read() {
    let machine = Machine::new(1);
    let store = machine.open();
    let (lost, kept, removed) = (chunk(1, 5000), chunk(2, 500), chunk(3, 8000));
    commit(&store, vec![lost.clone(), kept.clone(), removed.clone()]);
    fill(&store, 1000, 2);
    wait(store.remove(vec![removed.key()], Removal::Swept)).unwrap();
    let (path, _, at) = find_body(&machine, &lost);
    machine.disk.spoil(&path, at..at + 100);
    let step = store.compact_step().unwrap();
    assert_eq!((step.segment.map(|(_, n)| n), step.quarantined), (Some(1), 1));
    assert_gone(&store, &lost);
    assert_here(&store, &kept);
}

#[test]
fn the_scrub_finds_rot_and_remembers_what_it_has_done() {
    let machine = Machine::new(1);
    let store = machine.open();
    let records = fill(&store, 0, 3);
    machine.clock.fetch_add(3_600_000, Ordering::Relaxed);
    let oldest = store.oldest_unverified().unwrap();
    flip(&machine, &records[2], 50);
    let mut corrupt = Vec::new();
    let mut finished = 0;
    for _ in 0..60 {
        let step = store.scrub_step(4000);
        finished += u32::from(step.finished_segment);
        corrupt.extend(step.corrupt);
        if finished == 3 {
            break;
        }
    }
    assert_eq!(corrupt, [records[2].key()]);
    assert_eq!(finished, 3);
    assert!(store.oldest_unverified().unwrap() > oldest);
    assert!(!matches!(store.get(&records[2].key()), Ok(Some(_))));
    assert_eq!(store.losses().corrupt_total, 1);
}

#[test]
fn the_inspector_lists_verifies_and_extracts_without_anything_else() {
    let machine = Machine::new(1);
    let store = machine.open();
    let v = version("some/key", 4);
    commit(&store, vec![v.clone()]);
    let records = fill(&store, 0, 1);
    wait(store.remove(vec![records[0].key()], Removal::Swept)).unwrap();
    store.close();
    let disk = machine.disk.boot();
    let mut listed = Vec::new();
    let reports = inspect::list(&*disk, Path::new("/disk0"), |one| listed.push(one)).unwrap();
    assert!(reports.iter().all(inspect::SegmentReport::is_whole), "{reports:?}");
    assert_eq!(reports[0].footer_agrees, Some(true));
    assert!(listed.iter().any(|one| one.object_key.as_deref() == Some("some/key")));
    assert!(listed.iter().any(|one| one.removes == [records[0].key()]));
    let salvage = Salvage::open(&*disk, &["/disk0/segments".into()]).unwrap();
    assert_eq!(salvage.get(&v.key()).as_ref(), Ok(v.body()));
    assert!(salvage.is_removed(&records[0].key()) && salvage.get(&records[0].key()).is_ok(), "told, and not obeyed");
    assert!(!salvage.is_removed(&v.key()) && salvage.versions().len() == 1 && salvage.versions()[0].info.key == "some/key");
    assert_eq!(salvage.get(&Record::new(RecordKind::Chunk, bucket(), "no".into()).key()), Err(Missing::Absent));
    assert_eq!(inspect::identity(&*disk, Path::new("/disk0")).unwrap().0, "node1");
    // A file on its own, its header destroyed.
    let (path, mut content) = machine.disk.files("0000000000000001.afar").pop().unwrap();
    content[..128].fill(0);
    machine.disk.tamper(Path::new("/elsewhere.afar"), content);
    assert!(Salvage::open(&*disk, &["/elsewhere.afar".into()]).unwrap().get(&v.key()).is_ok());
    let report = &inspect::verify(&*disk, Path::new("/elsewhere.afar")).unwrap()[0];
    assert!(!report.is_whole() && report.records["version"] == 1);
    assert!(path.exists() || inspect::verify(&*disk, Path::new("/nowhere")).is_err());
}

/// What the views know of a key: each version's stamp, whether it is settled, and whether its record is here.
fn known(store: &Store) -> Vec<(String, u64, bool, bool)> {
    let rows = store.known_versions(None, 100).unwrap();
    rows.into_iter().map(|row| (row.key, row.entry.stamp.as_u64(), row.entry.settled, row.here)).collect()
}

/// Two versions of a key, the newer one rotten and found to be.
fn rot(machine: &Machine) -> (Store, Record) {
    let store = machine.open();
    let (older, newer) = (version("k", 1), version("k", 2));
    commit(&store, vec![older.clone(), newer.clone()]);
    let marks = [(1, &older), (2, &newer)].map(|(stamp, record)| (bucket(), "k".to_owned(), Stamp::from_u64(stamp), record.key().id));
    store.settle(marks.to_vec());
    flip(machine, &newer, 20);
    assert!(matches!(store.get(&newer.key()), Err(ReadError::Corrupt { .. })));
    commit(&store, vec![chunk(1, 100)]); // behind it in the queue
    (store, newer)
}

const NOTED: [(&str, u64, bool, bool); 2] = [("k", 2, true, false), ("k", 1, true, true)];

#[track_caller]
fn assert_noted(store: &Store, newer: &Record) {
    assert_eq!(known(store), NOTED.map(|(key, stamp, settled, here)| (key.to_owned(), stamp, settled, here)));
    assert!(store.is_noted(&newer.key()) && !store.holds(&newer.key()));
    assert_gone(store, newer);
    let newest = store.versions(&bucket(), "k", None, 10).unwrap().remove(0);
    assert_eq!((newest.id, newest.settled), (newer.key().id, true), "no older one passes for the newest");
    let held = store.version_ids(None, 10).unwrap();
    assert_eq!(held.len(), 1, "nor does it pass for held: {held:?}");
}

#[test]
fn rule_17_of_a_version_that_rotted_a_note_is_left_that_survives_everything() {
    let machine = Machine::new(1);
    let (store, newer) = rot(&machine);
    assert_noted(&store, &newer);
    store.close();
    let store = machine.open();
    assert_noted(&store, &newer);
    store.close();
    machine.indexes.forget();
    let store = machine.open();
    assert_noted(&store, &newer);
    // The segment that it was in goes, and the one that says so, and so does the index.
    let written = fill(&store, 10, 3);
    let first = machine.disk.files(".afar").remove(0).0;
    wait(store.remove(written.iter().map(Record::key).collect(), Removal::Swept)).unwrap();
    wait(store.remove(vec![chunk(1, 100).key(), version("k", 1).key()], Removal::Swept)).unwrap();
    commit(&store, vec![version("k", 1)]);
    store.settle(vec![(bucket(), "k".to_owned(), Stamp::from_u64(1), version("k", 1).key().id)]);
    while store.compact_step().unwrap().segment.is_some() {}
    assert!(machine.disk.files(".afar").iter().all(|(path, _)| *path != first), "it was not compacted");
    assert_noted(&store, &newer);
    store.close();
    machine.indexes.forget();
    let store = machine.open();
    assert_noted(&store, &newer);
    assert!(store.check_index().matches);
    // Given again, it is a version like any other, and still settled.
    commit(&store, vec![newer.clone()]);
    let whole = vec![("k".to_owned(), 2, true, true), ("k".to_owned(), 1, true, true)];
    assert_eq!(known(&store), whole);
    assert!(!store.is_noted(&newer.key()));
    store.close();
    machine.indexes.forget();
    assert_eq!(known(&machine.open()), whole);
}

#[test]
fn rule_17_a_note_goes_when_its_version_is_removed_for_another_reason() {
    let machine = Machine::new(1);
    let (store, newer) = rot(&machine);
    wait(store.remove(vec![newer.key()], Removal::Discarded)).unwrap();
    let left = vec![("k".to_owned(), 1, true, true)];
    assert_eq!(known(&store), left);
    store.close();
    machine.indexes.forget();
    assert_eq!(known(&machine.open()), left);
}

#[test]
fn what_others_know_to_be_lost_is_noted_unless_it_is_here() {
    let machine = Machine::new(2);
    let (store, newer) = rot(&machine);
    let (other, note) = (Machine::new(2), |stamp: u64| {
        let (record, info) = (version("k", stamp), version_of("k", stamp));
        let info = format::VersionInfo { key: info.key, stamp: info.stamp, upload: info.upload, object: None, inline: true };
        format::Note { record: record.key(), info, settled: true, received: UnixMillis(5) }
    });
    let there = other.open();
    commit(&there, vec![version("k", 1)]);
    there.settle(vec![(bucket(), "k".to_owned(), Stamp::from_u64(1), version("k", 1).key().id)]);
    there.note(vec![note(1), note(2), note(2)]);
    commit(&there, (0..8).map(|n| chunk(n, 100)).collect()); // behind it in both queues
    assert_noted(&there, &newer);
    assert_noted(&store, &newer);
}

#[test]
fn rule_19_what_was_in_a_segment_that_is_lost_is_noted_from_the_index() {
    for running in [true, false] {
        let machine = Machine::new(1);
        let store = machine.open();
        let newer = version("k", 2);
        commit(&store, vec![newer.clone()]);
        store.settle(vec![(bucket(), "k".to_owned(), Stamp::from_u64(2), newer.key().id)]);
        fill(&store, 0, 1);
        let older = version("k", 1);
        commit(&store, vec![older.clone()]);
        store.settle(vec![(bucket(), "k".to_owned(), Stamp::from_u64(1), older.key().id)]);
        let (path, ..) = find_body(&machine, &newer);
        let store = if running {
            machine.disk.wipe(&path);
            store.look();
            assert!(store.wait_for_views(Duration::from_secs(20)));
            store
        } else {
            store.close();
            machine.disk.wipe(&path);
            machine.open()
        };
        commit(&store, vec![chunk(1000, 100)]); // behind it in the queue
        assert_noted(&store, &newer);
        store.close();
        machine.indexes.forget();
        assert_noted(&machine.open(), &newer);
    }
}

#[test]
fn rule_16_a_version_that_rots_at_the_end_of_the_log_while_the_node_is_down_is_noted_from_the_index() {
    let machine = Machine::new(1);
    let store = machine.open();
    let (older, newer) = (version("k", 1), version("k", 2));
    commit(&store, vec![older.clone(), newer.clone()]);
    let marks = [(1, &older), (2, &newer)].map(|(stamp, record)| (bucket(), "k".to_owned(), Stamp::from_u64(stamp), record.key().id));
    store.settle(marks.to_vec());
    store.close();
    flip(&machine, &newer, 20);
    let store = machine.open();
    assert!(!store.losses().is_empty());
    commit(&store, vec![chunk(1, 100)]); // behind it in the queue
    assert_noted(&store, &newer);
    store.close();
    machine.indexes.forget();
    assert_noted(&machine.open(), &newer);
}
