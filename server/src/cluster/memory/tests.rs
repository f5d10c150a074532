use super::*;

const NOW: Duration = Duration::from_secs(100);
const DISK: DirectoryId = DirectoryId::from_bytes([9; 16]);

fn claim(incarnation: u8, boot: u8, end: LogEnd) -> Claim {
    Claim {
        incarnation: Incarnation::from_bytes([incarnation; 16]),
        boot: BootId::from_bytes([boot; 16]),
        positions: BTreeMap::from([(DISK, end)]),
    }
}

impl Remembered {
    /// At its usual place, while nobody else of its name is heard.
    fn hears(&mut self, claim: Claim, behind: bool, now: Duration) -> Result<Accepted, Refusal> {
        self.hear(claim, Circumstances { behind, asked: true, silent: limits::TWO_INSTANCES }, now)
    }
}

#[test]
fn rule_19_a_restart_that_remembers_is_accepted() {
    let mut peer = Remembered::default();
    assert_eq!(peer.hears(claim(1, 1, (3, 50)), false, NOW), Ok(Accepted::First));
    assert_eq!(peer.hears(claim(1, 1, (3, 40)), false, NOW), Ok(Accepted::Same), "overtaken by a later message");
    assert_eq!(peer.hears(claim(1, 2, (3, 50)), false, NOW), Ok(Accepted::NewBoot));
    assert_eq!(peer.hears(claim(1, 3, (4, 0)), false, NOW), Ok(Accepted::NewBoot));
}

#[test]
fn rule_19_a_log_that_went_backwards_is_refused_until_the_node_joins_anew() {
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    let refusal = Refusal::Backwards { directory: DISK, before: (3, 50), now: (3, 49) };
    assert_eq!(peer.hears(claim(1, 2, (3, 49)), false, NOW), Err(refusal.clone()));
    assert_eq!(peer.refusal(NOW * 1000), Some(&refusal), "time does not heal it");
    assert_eq!(peer.hears(claim(1, 2, (9, 0)), false, NOW), Err(refusal.clone()), "nor does new data");
    assert!(refusal.to_string().contains("empty its directories"));
    assert_eq!(peer.hears(claim(2, 3, (0, 0)), true, NOW), Ok(Accepted::NewIncarnation));
    assert_eq!(peer.refusal(NOW), None);
}

#[test]
fn rule_19_two_live_instances_of_one_name_are_refused() {
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (1, 0)), false, NOW).unwrap();
    peer.hears(claim(1, 2, (1, 0)), false, NOW).unwrap();
    assert!(matches!(peer.hears(claim(1, 1, (1, 0)), false, NOW), Err(Refusal::TwoInstances { .. })));
    assert!(peer.hears(claim(1, 2, (1, 0)), false, NOW).is_err(), "nor is the other believed");
    assert_eq!(peer.hears(claim(1, 2, (1, 0)), false, NOW + limits::TWO_INSTANCES), Ok(Accepted::Same), "the other one has ended");
}

#[test]
fn rule_3_other_disks_under_a_known_name_are_believed_only_while_they_catch_up() {
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    assert_eq!(peer.hears(claim(2, 2, (0, 0)), true, NOW), Ok(Accepted::NewIncarnation));
    assert_eq!(peer.hears(claim(2, 2, (1, 0)), false, NOW), Ok(Accepted::Same), "it has caught up");
    // The disks that were replaced come back, and do not know that they were.
    assert_eq!(peer.hears(claim(1, 3, (3, 50)), false, NOW), Err(Refusal::Superseded));
    assert_eq!(peer.refusal(NOW), Some(&Refusal::Superseded));
    assert_eq!(peer.hears(claim(1, 3, (3, 50)), true, NOW), Ok(Accepted::NewIncarnation), "they were told");
    assert_eq!(peer.refusal(NOW), None);
    assert_eq!(peer.hears(claim(1, 3, (3, 60)), false, NOW), Ok(Accepted::Same));
}

#[test]
fn rule_19_disks_that_were_replaced_do_not_displace_their_successors() {
    let heard = |behind, asked, silent| Circumstances { behind, asked, silent: Duration::from_secs(silent) };
    let (old, new) = (claim(1, 3, (3, 50)), claim(2, 2, (0, 0)));
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    peer.hears(new.clone(), true, NOW).unwrap();
    // The old machine is switched on; after a restart of this node, too, it is known for what it is.
    let state = tempfile::tempdir().unwrap();
    save(state.path(), &Memory::from([("warsaw".to_owned(), peer)])).unwrap();
    let mut peer = load(state.path()).unwrap().remove("warsaw").unwrap();
    for behind in [false, true] {
        assert_eq!(peer.hear(old.clone(), heard(behind, false, 2), NOW), Err(Refusal::Outlived));
        assert!(Refusal::Outlived.to_string().contains(SUPERSEDED), "it learns that it is behind");
        assert_eq!(peer.hear(new.clone(), heard(false, true, 2), NOW), Ok(Accepted::Same), "the successor goes on");
    }
    // At the successor's place it would be given what is meant for that one.
    assert_eq!(peer.hear(old.clone(), heard(true, true, 2), NOW), Err(Refusal::Outlived));
    assert!(matches!(peer.hear(new.clone(), heard(false, false, 2), NOW), Err(Refusal::TwoInstances { .. })));
    assert!(peer.hear(new.clone(), heard(false, true, 0), NOW).is_err());
    assert_eq!(peer.hear(new.clone(), heard(false, true, 2), NOW + limits::TWO_INSTANCES), Ok(Accepted::Same));
    // The successor is gone: what the old disks held is better than nothing, once they have caught up.
    let later = NOW * 3;
    assert_eq!(peer.hear(old.clone(), heard(false, true, 6), later), Err(Refusal::Superseded));
    assert_eq!(peer.hear(old.clone(), heard(true, true, 6), later), Ok(Accepted::NewIncarnation));
    // It was only away, in the very same run: it does not wait for the old ones to end.
    assert_eq!(peer.hear(new.clone(), heard(false, true, 1), later), Err(Refusal::Superseded));
    assert_eq!(peer.hear(new, heard(true, true, 1), later), Ok(Accepted::NewIncarnation));
    assert_eq!(peer.hear(old, heard(true, false, 1), later), Err(Refusal::Outlived));
}

#[test]
fn rule_19_after_a_second_machine_of_one_name_has_gone_the_first_is_believed_again() {
    let heard = |behind, silent| Circumstances { behind, asked: true, silent: Duration::from_secs(silent) };
    let (first, second) = (claim(1, 1, (3, 50)), claim(2, 2, (0, 0)));
    let mut peer = Remembered::default();
    peer.hears(first.clone(), false, NOW).unwrap();
    peer.hear(second.clone(), heard(true, 1), NOW).unwrap();
    assert_eq!(peer.hear(first.clone(), heard(false, 1), NOW), Err(Refusal::Outlived));
    let elsewhere = Circumstances { asked: false, ..heard(true, 1) };
    assert!(matches!(peer.hear(second, elsewhere, NOW), Err(Refusal::TwoInstances { .. })), "neither of them counts");
    assert!(matches!(peer.hear(first.clone(), heard(false, 1), NOW), Err(Refusal::TwoInstances { .. })));
    let later = NOW + limits::TWO_INSTANCES;
    assert_eq!(peer.hear(first.clone(), heard(false, 60), later), Err(Refusal::Superseded), "the other may have taken something");
    assert_eq!(peer.hear(first, heard(true, 60), later), Ok(Accepted::NewIncarnation));
}

#[test]
fn rule_19_a_directory_that_failed_is_no_step_backwards() {
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    let without = Claim { positions: BTreeMap::new(), ..claim(1, 2, (0, 0)) };
    assert_eq!(peer.hears(without, false, NOW), Ok(Accepted::NewBoot));
}

#[test]
fn rule_19_what_a_write_reached_is_known_before_the_next_heartbeat() {
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    peer.reached([(DISK, (3, 90)), (DirectoryId::from_bytes([8; 16]), (1, 1))]);
    peer.reached([(DISK, (3, 70))]);
    assert_eq!(peer.last().unwrap().positions, BTreeMap::from([(DISK, (3, 90))]), "the farthest, of what it has claimed");
    let refusal = Refusal::Backwards { directory: DISK, before: (3, 90), now: (3, 50) };
    assert_eq!(peer.hears(claim(1, 2, (3, 50)), false, NOW), Err(refusal));
}

const NONE: Alone = Alone { objects: 0, bytes: 0, unknown: false, may_queue: false };
const TWO: Alone = Alone { objects: 2, bytes: 24, may_queue: true, ..NONE };
const QUEUES: Alone = Alone { may_queue: true, ..NONE };

/// Disks 1 say `alone` at second 100, and others take their place at `second`.
fn replaced(alone: Alone, second: u64) -> Remembered {
    let mut peer = Remembered::default();
    let first = peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    peer.told(first, alone, UnixMillis(100_000));
    let second_disks = peer.hears(claim(2, 2, (0, 0)), true, NOW).unwrap();
    assert!(peer.told(second_disks, QUEUES, UnixMillis(second * 1000)));
    peer
}

#[test]
fn rule_8_what_replaced_disks_may_have_held_alone_is_remembered_until_they_hand_it_over() {
    let mut peer = replaced(TWO, 101);
    let doubts = [Doubt { incarnation: Incarnation::from_bytes([1; 16]), alone: TWO, heard: UnixMillis(100_000) }];
    assert_eq!(peer.doubts(), doubts);
    peer.told(Accepted::Same, QUEUES, UnixMillis(103_000));
    assert_eq!(peer.doubts(), doubts, "that the new ones owe nothing says nothing of the old ones");
    let back = peer.hears(claim(1, 3, (3, 50)), true, NOW).unwrap();
    peer.told(back, Alone { unknown: true, ..QUEUES }, UnixMillis(104_000));
    assert_eq!(peer.doubts(), doubts, "they are back, and have not looked yet");
    assert_eq!((peer.alone().objects, peer.alone().unknown), (2, true));
    peer.told(Accepted::Same, TWO, UnixMillis(105_000));
    assert_eq!(peer.doubts(), doubts);
    assert!(peer.told(Accepted::Same, QUEUES, UnixMillis(106_000)));
    assert_eq!(peer.doubts(), [], "handed over");
}

#[test]
fn rule_8_who_may_acknowledge_alone_is_doubted_after_a_silence_and_who_may_not_never() {
    assert_eq!(replaced(QUEUES, 101).doubts(), [], "heard a moment ago");
    assert_eq!(replaced(QUEUES, 3700).doubts().len(), 1, "what did it do in that hour?");
    assert_eq!(replaced(Alone { unknown: true, ..QUEUES }, 101).doubts().len(), 1, "it had not looked");
    assert_eq!(replaced(NONE, 3700).doubts(), []);
    assert!(!QUEUES.is_doubtful(Some(limits::ALONE_SILENT)) && QUEUES.is_doubtful(None) && !NONE.is_doubtful(None));
    // A restart forgets nothing of what was pending before it.
    let mut peer = Remembered::default();
    peer.told(Accepted::First, TWO, UnixMillis(1));
    peer.told(Accepted::NewBoot, Alone { unknown: true, ..QUEUES }, UnixMillis(2));
    assert_eq!(peer.alone(), Alone { unknown: true, ..TWO });
}

#[test]
fn rule_8_doubts_survive_a_restart_and_a_version_that_knows_none() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::from([("strasbourg".to_owned(), replaced(TWO, 101))]);
    save(state.path(), &memory).unwrap();
    assert_eq!(load(state.path()).unwrap(), memory);
    // The version before reads its own file, and writes it: in its time the disks are replaced once more.
    let text = fs::read_to_string(state.path().join(FILE)).unwrap();
    assert!(!text.contains("alone") && !text.contains("objects"), "it would refuse {text}");
    fs::write(state.path().join(FILE), text.replace(&"02".repeat(16), &"03".repeat(16))).unwrap();
    let read = load(state.path()).unwrap();
    let doubted: Vec<_> = read["strasbourg"].doubts().iter().map(|doubt| (doubt.incarnation, doubt.alone)).collect();
    assert_eq!(doubted, [(Incarnation::from_bytes([1; 16]), TWO), (Incarnation::from_bytes([2; 16]), QUEUES)]);
    assert_eq!(read["strasbourg"].alone(), NONE);
    // Where nothing is ever alone there is no such file.
    let state = tempfile::tempdir().unwrap();
    save(state.path(), &Memory::from([("strasbourg".to_owned(), replaced(NONE, 101))])).unwrap();
    assert!(state.path().join(ALONE_FILE).exists(), "its new disks may queue");
    let mut peer = Remembered::default();
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    let state = tempfile::tempdir().unwrap();
    save(state.path(), &Memory::from([("strasbourg".to_owned(), peer)])).unwrap();
    assert!(!state.path().join(ALONE_FILE).exists());
}

#[test]
fn rule_8_doubts_are_bounded_and_none_is_forgotten() {
    let mut doubts = Vec::new();
    for n in 0..=limits::DOUBTS_REMEMBERED {
        let incarnation = Incarnation::from_bytes([n as u8; 16]);
        doubt(&mut doubts, Doubt { incarnation, alone: TWO, heard: UnixMillis(n as u64) });
    }
    let objects: u64 = doubts.iter().map(|doubt| doubt.alone.objects).sum();
    assert_eq!((doubts.len(), objects), (limits::DOUBTS_REMEMBERED, 2 * (limits::DOUBTS_REMEMBERED as u64 + 1)));
}

#[test]
fn rule_19_what_is_remembered_survives_a_restart_and_damage_is_noticed() {
    let state = tempfile::tempdir().unwrap();
    assert_eq!(load(state.path()).unwrap(), Memory::new());
    let mut peer = Remembered { last_heard: Some(UnixMillis(7)), ..Remembered::default() };
    peer.hears(claim(1, 1, (3, 50)), false, NOW).unwrap();
    peer.hears(claim(1, 2, (3, 60)), false, NOW).unwrap();
    let memory = Memory::from([("warsaw".to_owned(), peer)]);
    save(state.path(), &memory).unwrap();
    assert_eq!(load(state.path()).unwrap(), memory);
    fs::write(state.path().join(FILE), "format = 1\npeers = 3").unwrap();
    let error = load(state.path()).unwrap_err().to_string();
    assert!(error.contains("peers.toml is damaged"), "{error}");
}
