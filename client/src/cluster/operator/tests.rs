use super::*;
use afar_model::layout::examples;

const BOX: BucketId = BucketId::from_bytes([1; 32]);
const LOG: BucketId = BucketId::from_bytes([2; 32]);

fn three() -> Policy {
    Policy { copies: 3, ..Policy::default() }
}

/// A folder of Strasbourg, Roubaix and Warsaw, with its key.
fn operator() -> (tempfile::TempDir, Operator) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["layout", "recovery"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let own = Custodian::new().unwrap();
    own.write(&folder.path().join(CUSTODIAN)).unwrap();
    let operator = Operator::begin(folder.path(), "demo", examples::three_sites().unwrap(), vec![own.public()]).unwrap();
    (folder, operator)
}

fn said(operator: &Operator, node: &str, buckets: &[(BucketId, &str, Policy)]) -> Said {
    Said {
        node: node.into(),
        current: *operator.head().unwrap().layout.hash(),
        open: 1,
        buckets: buckets.iter().map(|(id, name, policy)| (*id, (*name).to_owned(), policy.clone())).collect(),
        default: Some(Policy::default()),
        chain: operator.chain.clone(),
    }
}

fn apply(operator: &mut Operator, document: &Document) {
    let signed = operator.custodian().unwrap().sign(document);
    operator.learn(&Chain { genesis: Vec::new(), documents: vec![signed] }).unwrap();
}

#[test]
fn a_bucket_that_is_kept_otherwise_moves_alone() {
    let (_folder, mut operator) = operator();
    let said = [said(&operator, "warsaw", &[(BOX, "box", Policy::default()), (LOG, "log", Policy::default())])];
    let mut document = operator.change("three copies").unwrap();
    document.promise(BOX, three());
    let draft = operator.plan_only(document, &said, &[three()]).unwrap();
    let [changed] = draft.changed.as_slice() else { panic!("{:?}", draft.changed) };
    assert_eq!((changed.bucket.as_str(), &changed.before, &changed.after), ("box", &Policy::default(), &three()));
    let moves = |changed: &Repromised| plan::moves(changed.previous.as_ref().unwrap(), changed.assignment.as_ref().unwrap(), &|_| 0);
    let copies: u32 = moves(changed).iter().map(|m| m.partitions).sum();
    assert_eq!(copies, draft.layout.partitions(), "one more copy of every partition");
    let planned: Vec<Policy> = draft.document.plans.iter().map(|(policy, _)| policy.clone()).collect();
    assert_eq!(planned, [three()], "the others stay where they are");
    apply(&mut operator, &draft.document);
    // Undone: where it was, and nothing to copy.
    let said = [self::said(&operator, "warsaw", &[(BOX, "box", three()), (LOG, "log", Policy::default())])];
    let mut document = operator.change("two again").unwrap();
    document.promise(BOX, Policy::default());
    let draft = operator.plan_only(document, &said, &[Policy::default()]).unwrap();
    assert_eq!(moves(draft.changed.first().unwrap()), []);
    assert_eq!(draft.document.promises, [(BOX, Policy::default())]);
}

fn refusals(draft: &Draft) -> Vec<String> {
    draft.refused().map(Unkept::words).collect()
}

#[test]
fn a_promise_that_nobody_could_keep_whole_is_refused() {
    let (_folder, mut operator) = operator();
    let nine = Policy { copies: 9, ..Policy::default() };
    let promised = |operator: &Operator, policy: &Policy, was: &Policy| {
        let said = [said(operator, "warsaw", &[(BOX, "box", was.clone())])];
        let mut document = operator.change("more copies").unwrap();
        document.promise(BOX, policy.clone());
        operator.plan_only(document, &said, std::slice::from_ref(policy)).unwrap()
    };
    assert_eq!(refusals(&promised(&operator, &three(), &Policy::default())), Vec::<String>::new());
    let draft = promised(&operator, &nine, &Policy::default());
    assert_eq!(refusals(&draft), ["bucket box could not be kept whole: 9 copies cannot be had: only 3 sites have a node"]);
    assert_eq!(plan::sentence(&draft.unkept[0].help), "lower copies from 9 to 3");
    // It is so already, and planned for: what is promised anew counts all the same.
    apply(&mut operator, &draft.document);
    assert_eq!(refusals(&promised(&operator, &nine, &three())).len(), 1);
    assert_eq!(refusals(&promised(&operator, &nine, &nine)), Vec::<String>::new(), "nothing is promised anew");
}

#[test]
fn a_site_that_a_bucket_needs_does_not_leave_but_may_be_lost() {
    let (_folder, mut operator) = operator();
    let said = [said(&operator, "warsaw", &[(BOX, "box", three())])];
    let mut document = operator.change("roubaix leaves").unwrap();
    document.nodes.iter_mut().filter(|node| node.name == "roubaix").for_each(|node| node.duty = Duty::Draining);
    let draft = operator.plan(document, &said).unwrap();
    let why = "bucket box could not be kept whole: 3 copies cannot be had: only 2 sites have a node";
    assert_eq!(refusals(&draft), [why], "as it is when a rollback would do the same");
    // A loss is no choice, and what is so already no reason against another change.
    let mut document = operator.change("roubaix is lost").unwrap();
    document.nodes.iter_mut().filter(|node| node.name == "roubaix").for_each(|node| node.duty = Duty::Lost);
    let draft = operator.plan(document, &said).unwrap();
    let told: Vec<String> = draft.unkept.iter().map(Unkept::words).collect();
    assert_eq!((told, refusals(&draft)), (vec![why.to_owned()], Vec::new()));
    apply(&mut operator, &draft.document);
    let mut document = operator.change("more room").unwrap();
    document.nodes.iter_mut().for_each(|node| node.capacity *= 2);
    assert_eq!(refusals(&operator.plan(document, &said).unwrap()), Vec::<String>::new());
}

#[test]
fn who_leaves_nobody_far_may_not_leave_but_may_be_lost() {
    let (_folder, operator) = operator();
    let without_warsaw = |duty: Duty, buckets: &[(BucketId, &str, Policy)]| {
        let mut document = operator.change("warsaw").unwrap();
        document.nodes.iter_mut().filter(|node| node.name == "warsaw").for_each(|node| node.duty = duty);
        refusals(&operator.plan(document, &[said(&operator, "warsaw", buckets)]).unwrap())
    };
    let kept = [(BOX, "box", Policy::default())];
    let drained = without_warsaw(Duty::Draining, &kept);
    assert!(drained.len() == 1 && drained[0].starts_with("bucket box could not be kept any more: no 2 sites"), "{drained:?}");
    assert_eq!(without_warsaw(Duty::Draining, &[]).len(), 1, "nor could any bucket to come");
    assert_eq!(without_warsaw(Duty::Lost, &kept), Vec::<String>::new(), "a loss is no choice");
}

#[test]
fn a_cluster_grows_site_by_site() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("layout")).unwrap();
    let (sites, nodes) = (examples::three_sites().unwrap().sites().to_vec(), examples::three_sites().unwrap().nodes().to_vec());
    let alone = Layout::new(1, 64, sites[..1].to_vec(), nodes[..1].to_vec()).unwrap();
    let operator = Operator::begin(folder.path(), "demo", alone, Vec::new()).unwrap();
    let mut document = operator.change("add roubaix").unwrap();
    (document.sites, document.nodes) = (sites[..2].to_vec(), nodes[..2].to_vec());
    document.custodians.push([1; 32]);
    let draft = operator.plan(document, &[said(&operator, "strasbourg", &[])]).unwrap();
    assert_eq!((draft.unkept.len(), refusals(&draft).len()), (1, 0), "the two are near, and the third is on its way");
}

#[test]
fn what_is_placed_alike_is_planned_once_and_told_by_its_whole_policy_in_one_order() {
    let (_folder, operator) = operator();
    let full = Policy { level: afar_model::policy::Durability::Full, ..Policy::default() };
    let third = BucketId::from_bytes([3; 32]);
    let mut buckets = [(BOX, "box", full.clone()), (LOG, "log", Policy::default()), (third, "act", Policy::default())];
    let mut told = || {
        let draft = operator.plan(operator.change("anew").unwrap(), &[said(&operator, "warsaw", &buckets)]).unwrap();
        assert_eq!(draft.document.plans.len(), 1);
        buckets.reverse();
        draft.plans.into_iter().map(|planned| (planned.policy, planned.buckets)).collect::<Vec<_>>()
    };
    let (one, other) = (told(), told());
    assert_eq!(one, other, "whoever answered first");
    assert_eq!(one.len(), 2);
    assert!(one.contains(&(full, vec!["box".into()])) && one.contains(&(Policy::default(), vec!["act".into(), "log".into()])), "{one:?}");
}

#[test]
fn a_change_of_keys_moves_nothing() {
    let (_folder, operator) = operator();
    let said = [said(&operator, "warsaw", &[(BOX, "box", Policy::default())])];
    let mut document = operator.change("a theft").unwrap();
    document.revoke([7; 32]);
    let draft = operator.plan_only(document.clone(), &said, &[]).unwrap();
    assert_eq!((&draft.document, draft.plans.len(), draft.changed.len()), (&document, 0, 0));
}

#[test]
fn a_bucket_is_found_as_the_newest_layout_has_it() {
    let (_folder, operator) = operator();
    let old = Said { current: [9; 32], ..said(&operator, "roubaix", &[(BOX, "box", Policy::default())]) };
    let new = said(&operator, "warsaw", &[(BOX, "box", three()), (LOG, "log", three())]);
    let head = *operator.head().unwrap().layout.hash();
    let both = [old.clone(), new];
    assert_eq!(bucket_named(&both, &head, "box").unwrap(), (BOX, "box".into(), three()));
    assert_eq!(bucket_named(&both, &head, &format!("@{LOG}")).unwrap().1, "log");
    assert_eq!(bucket_named(&both, &head, "nix").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(bucket_named(&[], &head, "box").unwrap_err().kind(), Kind::Unreachable);
    let twice = [old, said(&operator, "warsaw", &[(LOG, "box", three())])];
    assert_eq!(bucket_named(&twice, &head, "box").unwrap_err().kind(), Kind::Usage);
}

#[test]
fn a_new_key_takes_its_place_only_when_a_layout_names_it_and_then_for_good() {
    let (folder, mut operator) = operator();
    let old = operator.custodian().unwrap().public();
    let next = operator.next_custodian().unwrap().public();
    assert_eq!(operator.custodian().unwrap().public(), old, "nobody has heard of the new one");
    let mut document = operator.change("another key").unwrap();
    document.custodians = vec![next, operator.next_second().unwrap().public()];
    apply(&mut operator, &document);
    // As if the command had died here: whoever opens the folder next goes on.
    assert_eq!(operator.custodian().unwrap().public(), next);
    assert_eq!(Custodian::read(&folder.path().join("layout/old-1.custodian.key")).unwrap().public(), old);
    let second = Custodian::read(&folder.path().join(SECOND)).unwrap().public();
    assert_eq!(operator.head().unwrap().document.custodians, [next, second]);
    assert!(!folder.path().join("layout/custodian.key.next").exists() && !folder.path().join("recovery/custodian.key.next").exists());
}

#[test]
fn the_public_half_of_a_key_is_enough_to_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let key = Custodian::new().unwrap();
    let (whole, half) = (folder.path().join("whole"), folder.path().join("half"));
    key.write(&whole).unwrap();
    fs::write(&half, format!("{}\n", hex::encode(key.public()))).unwrap();
    assert_eq!(Custodian::read_public(&whole).unwrap(), key.public());
    assert_eq!(Custodian::read_public(&half).unwrap(), key.public());
    fs::write(&half, "nonsense").unwrap();
    assert_eq!(Custodian::read_public(&half).unwrap_err().kind(), Kind::Usage);
}
