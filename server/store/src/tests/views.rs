//! What readers see: records, versions, listings, debts.
use super::*;
use crate::{IdRange, ListFrom, Owed, Removal};
use afar_model::record::VersionEntry;

#[test]
fn a_record_is_visible_once_appended_and_durable_once_synced() {
    let machine = Machine::new(1);
    let store = machine.open();
    let record = chunk(1, 4000);
    let written = wait(store.append(AppendClass::Client, vec![record.clone(), chunk(2, 10)])).unwrap();
    assert_eq!(written.len(), 2);
    assert_eq!(written[0].key(), record.key());
    assert_here(&store, &record);
    let durable = wait(store.sync(&written)).unwrap();
    assert_eq!(durable[0].bytes(), 4000);
    assert!(!durable[0].deduplicated());
    let again = commit(&store, vec![record.clone(), record.clone()]);
    assert!(again.iter().all(Durable::deduplicated));
    assert_eq!(store.get(&chunk(3, 10).key()).unwrap(), None);
    assert_eq!(store.usage().records, 2);
    store.close();
    assert_here(&machine.open(), &record);
}

#[test]
fn versions_are_listed_newest_first_and_settle_at_once() {
    for directories in [1, 3] {
        let machine = Machine::new(directories);
        let store = machine.open();
        let records: Vec<Record> =
            [("a", 1), ("a", 3), ("a", 2), ("a/b", 1), ("b", 1), ("c", 1)].map(|(key, stamp)| version(key, stamp)).into();
        commit(&store, records.clone());
        let check = |store: &Store| {
            let stamps = |key: &str| store.versions(&bucket(), key, None, 10).unwrap().iter().map(|v| v.stamp.as_u64()).collect::<Vec<_>>();
            assert_eq!(stamps("a"), [3, 2, 1]);
            assert_eq!(stamps("a/b"), [1]);
            assert_eq!(stamps("zz"), [0; 0]);
            let keys = |from: &ListFrom, limit| {
                store
                    .list(&bucket(), from, limit)
                    .unwrap()
                    .into_iter()
                    .map(|(key, versions)| format!("{key}{}", versions.len()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(keys(&ListFrom::default(), 10), ["a3", "a/b1", "b1", "c1"]);
            assert_eq!(keys(&ListFrom::default(), 2), ["a3", "a/b1"]);
            assert_eq!(keys(&ListFrom { prefix: "a".into(), ..Default::default() }, 10), ["a3", "a/b1"]);
            assert_eq!(keys(&ListFrom { after: Some("a".into()), ..Default::default() }, 10), ["a/b1", "b1", "c1"]);
            assert_eq!(keys(&ListFrom { from: Some("b".into()), ..Default::default() }, 10), ["b1", "c1"]);
            let mut walked = Vec::new();
            let mut cursor = None;
            while let Some(row) = store.version_ids(cursor.as_ref(), 1).unwrap().pop() {
                cursor = Some(row.cursor());
                walked.push((row.key, row.entry.stamp.as_u64()));
            }
            assert_eq!(walked, [("a", 3), ("a", 2), ("a", 1), ("a/b", 1), ("b", 1), ("c", 1)].map(|(key, stamp)| (key.to_owned(), stamp)));
            let mut ids: Vec<_> = store.ids(IdRange::ALL, None, &[RecordKind::Version], 100).unwrap();
            assert_eq!(ids.len(), 6);
            let middle = ids[2].key;
            let rest = ids.split_off(3);
            assert_eq!(store.ids(IdRange::ALL, Some(&middle), &[], 100).unwrap(), rest);
            assert_eq!(store.newest_stamp_seen(), Stamp::from_u64(3));
        };
        check(&store);
        let newest = &store.versions(&bucket(), "a", None, 1).unwrap()[0];
        assert!(!newest.settled);
        store.settle(vec![(bucket(), "a".into(), newest.stamp, newest.id)]);
        assert!(store.versions(&bucket(), "a", None, 1).unwrap()[0].settled, "visible at once");
        store.close();
        machine.indexes.forget();
        let store = machine.open();
        check(&store);
        assert!(store.versions(&bucket(), "a", None, 1).unwrap()[0].settled, "closing logs it");
        wait(store.remove(vec![records[1].key()], Removal::Purged)).unwrap();
        assert_eq!(store.versions(&bucket(), "a", None, 10).unwrap().len(), 2);
        assert_gone(&store, &records[1]);
    }
}

#[test]
fn a_key_with_many_versions_does_not_hide_the_next() {
    let machine = Machine::new(1);
    let store = machine.open();
    let many = crate::limits::LIST_VERSIONS_PER_KEY_MAX as u64 + 20;
    commit(&store, (0..many).map(|stamp| version("many", stamp)).chain([version("next", 1)]).collect());
    let listed = store.list(&bucket(), &ListFrom::default(), 10).unwrap();
    assert_eq!(
        listed.iter().map(|(key, versions)| (key.as_str(), versions.len())).collect::<Vec<_>>(),
        [("many", crate::limits::LIST_VERSIONS_PER_KEY_MAX), ("next", 1)]
    );
    assert_eq!(listed[0].1[0].stamp.as_u64(), many - 1);
    assert_eq!(store.versions(&bucket(), "many", None, 1000).unwrap().len(), many as usize);
}

#[test]
fn the_versions_of_a_key_come_page_by_page_and_each_by_itself() {
    for directories in [1, 3] {
        let machine = Machine::new(directories);
        let store = machine.open();
        commit(&store, (1..=23).map(|stamp| version("many", stamp)).chain([version("many/more", 99), version("man", 98)]).collect());
        let (mut walked, mut before) = (Vec::new(), None);
        loop {
            let page = store.versions(&bucket(), "many", before, 10).unwrap();
            before = page.last().map(VersionEntry::order);
            walked.extend(page.iter().map(|entry| entry.stamp.as_u64()));
            if page.len() < 10 {
                break;
            }
        }
        assert_eq!(walked, (1..=23).rev().collect::<Vec<u64>>(), "each once, newest first, and nothing of other keys");
        let oldest = store.versions(&bucket(), "many", None, 100).unwrap().pop().unwrap();
        assert_eq!(store.version(&bucket(), "many", oldest.stamp, oldest.id), Ok(Some(oldest.clone())));
        assert_eq!(store.version(&bucket(), "man", oldest.stamp, oldest.id), Ok(None));
        assert_eq!(store.version(&bucket(), "many", Stamp::from_u64(2), oldest.id), Ok(None));
    }
}

#[test]
fn debts_survive_and_are_paid() {
    for directories in [1, 3] {
        let machine = Machine::new(directories);
        let store = machine.open();
        let owed: Vec<Owed> = (0..10)
            .map(|n| Owed {
                key: chunk(n, 8).key(),
                kind: RecordKind::Chunk,
                to: if n % 2 == 0 { "even" } else { "odd" }.into(),
                since: UnixMillis(100 - n),
                bytes: 5,
            })
            .collect();
        wait(store.owe(owed.clone())).unwrap();
        wait(store.owe(owed.iter().map(|owed| Owed { since: UnixMillis(7000), ..owed.clone() }).collect())).unwrap();
        machine.crash(store, 1);
        machine.indexes.forget();
        let store = machine.open();
        let summary = store.owed_summary().unwrap();
        assert_eq!(
            summary.iter().map(|sum| (sum.to.as_str(), sum.records, sum.bytes, sum.oldest.0)).collect::<Vec<_>>(),
            [("even", 5, 25, 92), ("odd", 5, 25, 91)]
        );
        let odd = store.owed(Some("odd"), None, 10).unwrap();
        assert_eq!(odd.iter().map(|owed| owed.since.0).collect::<Vec<_>>(), [91, 93, 95, 97, 99]);
        assert_eq!(store.owed(None, Some(&odd[3]), 10).unwrap(), odd[4..]);
        store.pay("odd", odd.iter().map(|owed| owed.key).collect());
        store.pay("even", vec![chunk(77, 8).key()]);
        store.close();
        let store = machine.open();
        assert_eq!(store.owed(None, None, 100).unwrap().len(), 5);
        assert_eq!(store.owed_summary().unwrap().len(), 1);
    }
}

#[test]
fn settings_are_found_even_while_the_index_is_rebuilt() {
    let machine = Machine::new(1);
    let store = machine.open();
    let setting = Record::new(RecordKind::Setting, BucketId::SYSTEM, Bytes::from_static(b"a setting"));
    commit(&store, vec![setting.clone()]);
    fill(&store, 0, 3);
    assert_eq!(store.settings(), std::slice::from_ref(&setting));
    store.close();
    machine.indexes.forget();
    let (store, opened) = machine.try_open().unwrap();
    assert_eq!(opened.rebuilding, 1);
    assert_eq!(store.settings(), std::slice::from_ref(&setting));
    wait(store.remove(vec![setting.key()], Removal::Purged)).unwrap();
    assert!(store.settings().is_empty());
}

#[test]
fn that_a_version_is_settled_comes_into_the_index_and_leaves_memory() {
    let machine = Machine::new(1);
    let store = machine.open();
    let record = version("a", 1);
    commit(&store, vec![record.clone()]);
    store.settle(vec![(bucket(), "a".into(), Stamp::from_u64(1), record.id())]);
    commit(&store, vec![chunk(1, 100)]); // behind the mark in the log
    assert_eq!(store.overlay_entries(), 0, "writers wait for what the index does not take");
    store.close();
    assert!(machine.open().versions(&bucket(), "a", None, 1).unwrap()[0].settled);
}
