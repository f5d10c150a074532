use super::*;
use crate::testing::Custodian as Operator;
use afar_model::layout::examples;

fn load(state: &Path, operator: &Operator) -> Arc<Layouts> {
    Arc::new(Layouts::load(state, "trial", operator.genesis(), Vec::new()).unwrap())
}

fn open(layouts: &Layouts) -> Vec<u64> {
    layouts.open().layouts().map(|layout| layout.version()).collect()
}

#[test]
fn rule_21_a_new_layout_is_opened_beside_the_old_ones_and_survives_a_restart() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let second = operator.child(&layouts.chapter(), "second");
    assert_eq!(layouts.offer(&second), Ok(Offered::Applied));
    assert_eq!(layouts.offer(&second), Ok(Offered::Known));
    let third = operator.child(&layouts.chapter(), "third");
    assert_eq!(layouts.offer(&third), Ok(Offered::Applied));
    assert_eq!(open(&layouts), [1, 2, 3]);
    assert_eq!(open(&load(state.path(), &operator)), [1, 2, 3]);
    layouts.close_others(&third.hash(), &[]).unwrap();
    assert_eq!(open(&layouts), [3]);
    let again = load(state.path(), &operator);
    assert_eq!((open(&again), *again.current().hash()), (vec![3], third.hash()));
    assert_eq!(again.whole_chain().documents, [second, third]);
}

#[test]
fn a_document_that_was_stored_and_not_applied_before_a_crash_is_applied() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    layouts.offer(&operator.child(&layouts.chapter(), "second")).unwrap();
    let genesis = format!("{}\n", hex::encode(operator.genesis().layout.hash()));
    fs::write(state.path().join("layouts/open"), genesis).unwrap();
    assert_eq!(open(&load(state.path(), &operator)), [1, 2]);
}

#[test]
fn a_document_that_was_stored_and_not_applied_for_want_of_a_disk_is_applied_when_it_comes_again() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let (second, open_file) = (operator.child(&layouts.chapter(), "second"), state.path().join("layouts/open"));
    fs::create_dir(&open_file).unwrap();
    assert!(matches!(layouts.offer(&second), Err(Refused::Strange(_))));
    assert_eq!((open(&layouts), layouts.knows(&second.hash())), (vec![1], true));
    fs::remove_dir(&open_file).unwrap();
    assert_eq!((layouts.offer(&second), open(&layouts)), (Ok(Offered::Applied), vec![1, 2]));
    assert_eq!(layouts.offer(&second), Ok(Offered::Known));
}

#[test]
fn custodians_are_named_once_and_kept_whatever_the_configuration_says_later() {
    let (state, operator, other) = (tempfile::tempdir().unwrap(), Operator::new(), Operator::new());
    let with = |custodians: Vec<[u8; 32]>| {
        let genesis = Chapter::genesis("trial", examples::three_sites().unwrap(), custodians);
        Layouts::load(state.path(), "trial", genesis, Vec::new()).unwrap()
    };
    // As an earlier version's configuration has it: nobody changes anything.
    let layouts = with(Vec::new());
    let refused = layouts.offer(&operator.child(&layouts.chapter(), "second")).unwrap_err().to_string();
    assert!(refused.contains("custodians in every node's configuration"), "{refused}");
    let layouts = with(vec![operator.public()]);
    assert_eq!(layouts.offer(&operator.child(&layouts.chapter(), "second")), Ok(Offered::Applied));
    for later in [Vec::new(), vec![other.public()]] {
        let layouts = with(later);
        assert_eq!((open(&layouts), layouts.history()[0].document.custodians.clone()), (vec![1, 2], vec![operator.public()]));
        assert!(matches!(layouts.offer(&other.child(&layouts.chapter(), "not ours")), Err(Refused::Unsigned(_))));
    }
}

#[test]
fn rule_21_a_state_that_has_left_its_configuration_is_not_for_earlier_programs() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let options = |state: &Path| {
        let now = Arc::new(|| UnixMillis(1));
        let directories = vec![state.join("data")];
        afar_store::Options { init_dirs: true, ..afar_store::Options::new("warsaw", directories, state, [7; 32], now) }
    };
    afar_store::Store::open(options(state.path())).unwrap().0.close();
    let format = || fs::read_to_string(state.path().join("directories")).unwrap().lines().next().map(str::to_owned);
    let layouts = load(state.path(), &operator);
    assert_eq!(format().as_deref(), Some("afar directories 1"), "nothing has changed yet");
    layouts.offer(&operator.child(&layouts.chapter(), "second")).unwrap();
    assert_eq!(format().as_deref(), Some("afar directories 2"));
    // It stays so, and one that was left by a program that did not say so is mended at the next start.
    afar_store::Store::open(options(state.path())).unwrap().0.close();
    assert_eq!(format().as_deref(), Some("afar directories 2"));
    let unsaid = tempfile::tempdir().unwrap();
    afar_store::Store::open(options(unsaid.path())).unwrap().0.close();
    fs::create_dir(unsaid.path().join("layouts")).unwrap();
    for entry in fs::read_dir(state.path().join("layouts")).unwrap().flatten() {
        fs::copy(entry.path(), unsaid.path().join("layouts").join(entry.file_name())).unwrap();
    }
    load(unsaid.path(), &operator);
    assert!(fs::read_to_string(unsaid.path().join("directories")).unwrap().starts_with("afar directories 2"));
}

#[test]
fn the_newest_layout_is_seen_at_a_glance_before_anything_else_is_read() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    assert_eq!(glance(state.path()), None, "there is nothing yet");
    let layouts = load(state.path(), &operator);
    assert_eq!(glance(state.path()), None, "a genesis says nothing of keys");
    let mut document = Document::child_of(&layouts.chapter(), UnixMillis(1), "a theft");
    document.revoke([7; 32]);
    layouts.offer(&operator.sign(&document)).unwrap();
    assert_eq!(glance(state.path()), Some(document.clone()));
    let later = operator.child(&layouts.chapter(), "brought by a bundle");
    let brought = Document::decode(&later.body).unwrap();
    assert_eq!(newest(glance(state.path()), &[later]), Some(brought));
    assert_eq!(newest(glance(state.path()), &[]), Some(document));
}

#[test]
fn rule_21_a_bad_document_changes_nothing_and_is_told() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let stranger = Operator::new().child(&layouts.chapter(), "not ours");
    assert!(matches!(layouts.offer(&stranger), Err(Refused::Unsigned(_))));
    let orphan = Document { parents: vec![[7; 32]], ..Document::child_of(&layouts.chapter(), UnixMillis(1), "orphan") };
    assert!(matches!(layouts.offer(&operator.sign(&orphan)), Err(Refused::Strange(_))));
    assert_eq!(open(&layouts), [1]);
    assert!(layouts.trouble().unwrap().contains("refused"));
    layouts.offer(&operator.child(&layouts.chapter(), "good")).unwrap();
    assert_eq!(layouts.trouble(), None);
}

#[test]
fn rule_21_what_is_too_large_or_from_the_future_is_refused_unread_and_leaves_nothing() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let good = operator.child(&layouts.chapter(), "good");
    let signed = |body: Vec<u8>| operator.sign_bytes(body);
    let large = signed([good.body.clone(), vec![0; LAYOUT_BYTES_MAX]].concat());
    let mut body = good.body.clone();
    body[8] = 9;
    let future = signed(body);
    let altered = Signed { body: [good.body.as_slice(), b"x"].concat(), ..good.clone() };
    let files = || fs::read_dir(state.path().join("layouts")).unwrap().count();
    let before = files();
    for _ in 0..2 {
        assert!(matches!((layouts.check(&large), layouts.offer(&large)), (Err(Refused::TooLarge(_)), Err(Refused::TooLarge(_)))));
        assert_eq!((layouts.check(&future).err(), layouts.offer(&future)), (Some(Refused::Future(9)), Err(Refused::Future(9))));
        assert!(layouts.check(&altered).is_err() && layouts.offer(&altered).is_err());
        assert!([&large, &future, &altered].iter().all(|refused| !layouts.knows(&refused.hash())), "it was remembered as good");
        assert_eq!((open(&layouts), files(), layouts.rivals().len()), (vec![1], before, 0));
    }
    assert!(layouts.trouble().unwrap().contains("refused"));
    assert_eq!((layouts.offer(&good), layouts.trouble()), (Ok(Offered::Applied), None));
}

#[test]
fn rule_21_a_check_takes_only_what_would_be_applied_and_applies_nothing() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let unsigned = Signed { signatures: Vec::new(), ..operator.child(&layouts.chapter(), "unsigned") };
    let stranger = Operator::new().child(&layouts.chapter(), "not ours");
    for refused in [unsigned, stranger] {
        assert!(matches!(layouts.check(&refused), Err(Refused::Unsigned(_))));
        assert!(matches!(layouts.offer(&refused), Err(Refused::Unsigned(_))));
    }
    let (second, beside) = (operator.child(&layouts.chapter(), "second"), operator.child(&layouts.chapter(), "beside"));
    assert!(layouts.check(&second).is_ok() && layouts.check(&beside).is_ok());
    assert!(!layouts.knows(&second.hash()) && open(&layouts) == [1], "a check changes nothing");
    let third = operator.child(&layouts.check(&second).unwrap(), "third");
    assert!(matches!(layouts.check(&third), Err(Refused::Strange(_))), "its parent is not here");
    assert!(matches!(layouts.check_after(std::slice::from_ref(&second), &third), Err(Refused::Strange(_))));
    layouts.offer(&second).unwrap();
    assert!(layouts.check_after(std::slice::from_ref(&second), &third).is_ok());
    assert!(matches!(layouts.check(&beside), Err(Refused::Strange(_))), "a sibling of the current one is no plan to follow");
}

#[test]
fn a_stored_document_that_is_damaged_or_too_large_is_named_and_nothing_is_guessed() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let second = operator.child(&layouts.chapter(), "second");
    layouts.offer(&second).unwrap();
    let path = state.path().join(format!("layouts/00000002-{}", ShortHash(&second.hash())));
    let whole = fs::read(&path).unwrap();
    let again = || Layouts::load(state.path(), "trial", operator.genesis(), Vec::new());
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let half = whole[..whole.len() / 2].to_vec();
    for (bad, why) in [(half, "damaged"), (flipped, "restore it"), (vec![0; LAYOUT_BYTES_MAX + 5000], "the most is")] {
        fs::write(&path, &bad).unwrap();
        let error = again().unwrap_err();
        assert_eq!(error.path, path, "{error}");
        assert!(error.why.contains(why), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(again().unwrap_err().to_string().contains("is missing"));
    fs::write(&path, whole).unwrap();
    assert_eq!(*again().unwrap().current().hash(), second.hash());
}

#[test]
fn rule_11_copies_are_dropped_by_the_current_layout_alone() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let first = *layouts.current().hash();
    let second = operator.child(&layouts.chapter(), "second");
    assert!(layouts.may_drop(&second.hash()).is_none() && layouts.may_drop(&[0; 32]).is_none(), "not the current one");
    let held = (layouts.may_drop(&first), layouts.may_drop(&first));
    assert!(held.0.is_some() && held.1.is_some(), "several may drop at a time");
    drop(held);
    layouts.offer(&second).unwrap();
    assert!(layouts.may_drop(&second.hash()).is_none(), "the first is open");
    layouts.close_others(&second.hash(), &[]).unwrap();
    assert!(layouts.may_drop(&second.hash()).is_some() && layouts.may_drop(&first).is_none());
    let _one = layouts.changing.lock();
    assert!(layouts.may_drop(&second.hash()).is_none(), "another may be about to take its place");
}

#[test]
fn a_change_between_a_look_at_the_layout_and_the_wait_for_its_changes_is_not_missed() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let over = Arc::new(AtomicBool::new(false));
    let looking = {
        let (layouts, over) = (Arc::clone(&layouts), Arc::clone(&over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                let (layout, changes) = layouts.watched();
                // Versions and changes are counted alike here. So many changes are behind now: either the layout has all of
                // them, or the receiver has one to tell.
                let behind = *changes.borrow();
                let told = changes.has_changed().unwrap();
                assert!(behind < layout.version() || told, "change {behind} was missed: layout {}", layout.version());
            }
        })
    };
    for _ in 0..CHANGES {
        layouts.offer(&operator.child(&layouts.chapter(), "next")).unwrap();
    }
    over.store(true, Ordering::Release);
    looking.join().unwrap();
}

/// Enough that the other order of the two was caught every time.
const CHANGES: usize = 100;

#[test]
fn rule_21_two_children_of_one_parent_are_a_conflict_until_a_merge() {
    let (here, there, operator) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Operator::new());
    let (a, b) = (load(here.path(), &operator), load(there.path(), &operator));
    let (left, right) = (operator.child(&a.chapter(), "left"), operator.child(&b.chapter(), "right"));
    a.offer(&left).unwrap();
    b.offer(&right).unwrap();
    assert_eq!((a.offer(&right), b.offer(&left)), (Ok(Offered::Rival), Ok(Offered::Rival)));
    assert!(a.trouble().unwrap().contains("two layouts") && a.may_drop(&left.hash()).is_none());
    assert_eq!(load(here.path(), &operator).rivals().len(), 1, "remembered");
    let parents = vec![left.hash(), right.hash()];
    let merge = operator.sign(&Document { parents, ..Document::child_of(&a.chapter(), UnixMillis(2), "merge") });
    assert_eq!((a.offer(&merge), b.offer(&merge)), (Ok(Offered::Applied), Ok(Offered::Applied)));
    assert_eq!((a.current().hash(), a.trouble(), b.trouble()), (b.current().hash(), None, None));
    assert_eq!(a.open().hashes().next(), b.open().hashes().next(), "the common parent is open at both");
}

#[test]
fn rule_21_a_layout_is_drained_when_nobody_holds_on_to_older_ones() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let writing = layouts.open().writing();
    layouts.offer(&operator.child(&layouts.chapter(), "second")).unwrap();
    assert!(!layouts.is_drained(), "somebody may still write by the first alone");
    let newer = layouts.open().writing();
    drop(writing);
    assert!(layouts.is_drained());
    drop(newer);
}

#[test]
fn rule_21_synced_means_compared_with_everybody_after_everybody_drained() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    layouts.offer(&operator.child(&layouts.chapter(), "second")).unwrap();
    let (current, others) = (*layouts.current().hash(), [NodeIndex(1), NodeIndex(2)]);
    layouts.note_compared(NodeIndex(1), Instant::now(), &current);
    let too_early = Instant::now();
    assert!(!layouts.note_all_drained(&[0; 32]), "they write by another layout, which has been replaced");
    assert!(layouts.note_all_drained(&current) && !layouts.note_all_drained(&current));
    layouts.note_compared(NodeIndex(1), too_early, &current);
    layouts.note_compared(NodeIndex(2), Instant::now(), &current);
    layouts.note_compared(NodeIndex(1), Instant::now(), &[0; 32]);
    assert_eq!(layouts.not_compared(&others), [NodeIndex(1)], "it was compared too early, or by another layout");
    layouts.note_compared(NodeIndex(1), Instant::now(), &current);
    assert_eq!(layouts.not_compared(&others), []);
    layouts.note_loss();
    assert_eq!(layouts.not_compared(&others), others);
}

#[test]
fn rule_11_nothing_replaces_a_layout_while_copies_are_dropped_by_it() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let (first, second) = (*layouts.current().hash(), operator.child(&layouts.chapter(), "second"));
    let permit = layouts.may_drop(&first).unwrap();
    let applying = {
        let (layouts, second) = (Arc::clone(&layouts), second.clone());
        std::thread::spawn(move || layouts.offer(&second))
    };
    while !layouts.knows(&second.hash()) {
        std::thread::yield_now();
    }
    assert_eq!(*layouts.current().hash(), first);
    drop(permit);
    assert_eq!(applying.join().unwrap(), Ok(Offered::Applied));
    assert!(layouts.may_drop(&first).is_none() && layouts.may_drop(&second.hash()).is_none(), "an older one is open");
}

#[test]
fn rule_10_the_latch_is_open_again_only_when_the_layout_that_closed_it_is_named() {
    let (state, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let layouts = load(state.path(), &operator);
    let mut lost = Document::child_of(&layouts.chapter(), UnixMillis(1), "a fire");
    lost.sites.first_mut().unwrap().duty = Duty::Lost;
    let lost = operator.sign(&lost);
    layouts.offer(&lost).unwrap();
    layouts.close_others(&lost.hash(), &[]).unwrap();
    assert_eq!(layouts.latched(), [lost.hash()]);
    assert!(layouts.may_drop(&lost.hash()).is_none());
    for (releases, left) in [(vec![[9; 32]], 1), (vec![lost.hash()], 0)] {
        let next = Document { releases, ..Document::child_of(&layouts.chapter(), UnixMillis(2), "release") };
        layouts.offer(&operator.sign(&next)).unwrap();
        assert_eq!(layouts.latched().len(), left);
    }
}
