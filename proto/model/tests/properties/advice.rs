//! What a plan means, and what is advised when a policy cannot be met (rule 22): nothing is advised that does not help.
use crate::worlds::{layouts, policies};
use afar_model::{
    assignment::Assignment,
    layout::{Layout, NodeIndex, Site, SiteIndex, examples},
    placement::{Geography, Partition, Placement},
    plan::{Change, Constraint, Move, Survivor, Usable, conflict, moves, sentence, short_of, suggest, survivors, unmet, usable_capacity},
    policy::Policy,
    units::Metres,
};
use proptest::prelude::*;

const STRASBOURG: NodeIndex = NodeIndex(0);
const ROUBAIX: NodeIndex = NodeIndex(1);
const WARSAW: NodeIndex = NodeIndex(2);

fn demo() -> Layout {
    examples::three_sites().unwrap()
}

fn advice(policy: &Policy) -> Vec<String> {
    suggest(policy, &Geography::claimed(&demo())).iter().map(ToString::to_string).collect()
}

fn complete(policy: &Policy, layout: &Layout) -> bool {
    Placement::new(policy, &Geography::claimed(layout)).is_ok_and(|placement| placement.is_complete())
}

fn with_city(layout: &Layout, change: &Change) -> Layout {
    let Change::Site { city, country, coordinates } = change else { return layout.clone() };
    let name = city.to_lowercase().replace(' ', "-");
    let (mut sites, mut nodes) = (layout.sites().to_vec(), layout.nodes().to_vec());
    sites.push(Site {
        name: name.clone(),
        coordinates: *coordinates,
        uncertainty: Metres(0),
        country: country.clone(),
        provider: String::new(),
        duty: afar_model::layout::Duty::Active,
    });
    nodes.push(examples::node(&name, &name));
    Layout::new(1, layout.partitions(), sites, nodes).unwrap()
}

proptest! {
    #[test]
    fn rule_22_whatever_is_advised_helps(layout in layouts(), policy in policies()) {
        let policy = Policy { home: None, ..policy };
        let geography = Geography::claimed(&layout);
        let (found, needed) = (suggest(&policy, &geography), conflict(&policy, &geography));
        prop_assert_eq!(complete(&policy, &layout), needed.is_empty());
        prop_assert!(found.is_empty() || !needed.is_empty());
        for suggestion in &found {
            let larger = suggestion.changes.iter().fold(layout.clone(), |layout, change| with_city(&layout, change));
            prop_assert!(complete(&suggestion.policy, &larger), "{suggestion}");
            let is_site = |change: &Change| matches!(change, Change::Site { .. });
            prop_assert!(suggestion.policy != policy || suggestion.changes.iter().any(is_site));
        }
        let every: Vec<String> = found.iter().map(ToString::to_string).collect();
        prop_assert!(every.iter().enumerate().all(|(index, text)| !every[..index].contains(text)), "{every:?}");
    }

    #[test]
    fn rule_22_what_conflicts_conflicts_and_nothing_less_does(layout in layouts(), policy in policies()) {
        let policy = Policy { home: None, ..policy };
        let needed = conflict(&policy, &Geography::claimed(&layout));
        for without in needed.iter().filter(|constraint| !matches!(constraint, Constraint::Sites(_))) {
            let mut less = policy.clone();
            let has = |kind: fn(&Constraint) -> bool| needed.iter().any(|other| other != without && kind(other));
            if !has(|c| matches!(c, Constraint::Providers(_))) {
                less.max_copies_per_provider = 0;
            }
            if !has(|c| matches!(c, Constraint::Countries(_))) {
                less.countries.clear();
            }
            if !has(|c| matches!(c, Constraint::Far(..))) {
                less.far_copies = 1;
            }
            if !has(|c| matches!(c, Constraint::Copies(_))) {
                less.copies = less.far_copies;
            }
            prop_assert!(complete(&less, &layout), "without {without}");
        }
    }
}

#[test]
fn rule_22_advice_names_the_smallest_change_first_and_in_plain_words() {
    let far = Policy { min_distance: Metres::from_km(1300), ..Policy::default() };
    let found = advice(&far);
    assert_eq!(found[0], "lower min_distance from 1300.0 km to 1240.0 km, since roubaix-warsaw are 1248.0 km apart");
    assert!(found[1].starts_with("add a site such as "), "{found:?}");
    assert_eq!(conflict(&far, &Geography::claimed(&demo())), [Constraint::Far(2, Metres::from_km(1300))]);

    let french = Policy { countries: vec!["FR".into()], ..Policy::default() };
    let found = advice(&french);
    assert_eq!(found[0], "allow copies in PL");
    assert!(
        found.contains(&"lower min_distance from 700.0 km to 400.0 km, since strasbourg-roubaix are 405.8 km apart".to_owned()),
        "{found:?}"
    );
    assert!(found.iter().any(|text| text.starts_with("add a site such as ") && text.ends_with("(FR)")), "{found:?}");
    assert_eq!(found.last().unwrap(), "lower far_copies from 2 to 1, which promises nothing about a fire");
    let needed = conflict(&french, &Geography::claimed(&demo()));
    assert_eq!(needed, [Constraint::Countries(vec!["FR".into()]), Constraint::Far(2, Metres::from_km(700))]);

    let many = Policy { copies: 4, ..Policy::default() };
    assert_eq!(advice(&many)[0], "lower copies from 4 to 3");
    assert_eq!(conflict(&many, &Geography::claimed(&demo())), [Constraint::Copies(4), Constraint::Sites(3)]);

    assert_eq!(advice(&Policy::default()), Vec::<String>::new(), "nothing to advise");
}

#[test]
fn what_cannot_be_kept_whole_says_what_conflicts_and_whether_it_would_be_far_all_the_same() {
    let layout = demo();
    let asked = |policy: &Policy| {
        let geography = Geography::claimed(&layout);
        unmet(policy, &geography).map(|unmet| (unmet.far, unmet.why, sentence(&suggest(policy, &geography))))
    };
    assert_eq!(asked(&Policy::default()), None);
    assert_eq!(asked(&Policy { copies: 3, ..Policy::default() }), None);
    let many = asked(&Policy { copies: 9, ..Policy::default() }).unwrap();
    assert_eq!(many, (true, "9 copies cannot be had: only 3 sites have a node".into(), "lower copies from 9 to 3".into()));
    let (far, why, advice) = asked(&Policy { countries: vec!["FR".into()], ..Policy::default() }).unwrap();
    assert!(!far && why.contains("strasbourg-roubaix 405.8 km"), "{why}");
    assert!(advice.starts_with("allow copies in PL; or "), "{advice}");
    let (far, why, _) = asked(&Policy { home: Some("paris".into()), ..Policy::default() }).unwrap();
    assert!(!far && why.contains("paris"), "{why}");
}

#[test]
fn rule_22_where_no_single_change_helps_two_are_advised() {
    // Four copies, three sites; and of these only the two in France, which are near.
    let policy = Policy { copies: 4, countries: vec!["FR".into()], ..Policy::default() };
    let found = advice(&policy);
    assert_eq!(found[0], "allow copies in PL, and lower copies from 4 to 3");
    assert!(!found.iter().any(|text| text.contains("from 4 to 2, and allow")), "more than needed: {found:?}");
}

#[test]
fn rule_22_a_provider_with_too_many_copies_is_named() {
    let mut sites = demo().sites().to_vec();
    sites.iter_mut().for_each(|site| site.provider = "one".into());
    let layout = Layout::new(1, 8, sites, demo().nodes().to_vec()).unwrap();
    let policy = Policy { max_copies_per_provider: 1, ..Policy::default() };
    let found: Vec<String> = suggest(&policy, &Geography::claimed(&layout)).iter().map(ToString::to_string).collect();
    assert!(found.contains(&"raise max_copies_per_provider from 1 to 2".to_owned()), "{found:?}");
}

#[test]
fn rule_22_the_first_node_to_be_full_is_the_bottleneck() {
    let assignment = Assignment::of_partitions(vec![vec![STRASBOURG, WARSAW], vec![ROUBAIX, WARSAW]]).unwrap();
    assert_eq!(usable_capacity(&assignment, &[100, 100, 150]), Usable { bytes: 150, bottleneck: Some(WARSAW) });
    assert_eq!(usable_capacity(&assignment, &[100, 60, 150]), Usable { bytes: 120, bottleneck: Some(ROUBAIX) });
    assert_eq!(usable_capacity(&assignment, &[100, 60]), Usable { bytes: 0, bottleneck: Some(WARSAW) }, "what is not known holds nothing");
}

#[test]
fn rule_22_moves_say_who_copies_for_whom() {
    let of = |sets: [&[NodeIndex]; 4]| Assignment::of_partitions(sets.map(<[_]>::to_vec)).unwrap();
    let before = of([&[STRASBOURG, WARSAW], &[STRASBOURG, WARSAW], &[ROUBAIX, WARSAW], &[ROUBAIX]]);
    let after = of([&[STRASBOURG, WARSAW], &[ROUBAIX, WARSAW], &[STRASBOURG, WARSAW], &[ROUBAIX, WARSAW]]);
    let size = |partition: Partition| u64::from(10_u32.pow(partition.0));
    let expected = [
        Move { from: None, to: WARSAW, partitions: 1, bytes: 1000 },
        Move { from: Some(STRASBOURG), to: ROUBAIX, partitions: 1, bytes: 10 },
        Move { from: Some(ROUBAIX), to: STRASBOURG, partitions: 1, bytes: 100 },
    ];
    assert_eq!(moves(&before, &after, &size), expected);
    assert_eq!(moves(&before, &before, &size), []);
}

#[test]
fn rule_22_survivors_hold_what_fits_and_what_is_far() {
    let layout = demo();
    let survivor = |site, usable, copies, short| Survivor { site: SiteIndex(site), usable, copies, short };
    let found = survivors(&Policy::default(), &Geography::claimed(&layout), &[100, 50, 120], 80);
    let expected = [survivor(0, Some(50), 2, 30), survivor(1, Some(100), 2, 0), survivor(2, None, 0, 80)];
    assert_eq!(found, expected, "Roubaix is too small for Strasbourg's, and without Warsaw nothing is far");
    assert_eq!(found.iter().map(Survivor::holds).collect::<Vec<_>>(), [false, true, false]);
    // Of three copies two remain: fewer, but far.
    let three = Policy { copies: 3, ..Policy::default() };
    let found = survivors(&three, &Geography::claimed(&layout), &[100, 100, 100], 100);
    assert_eq!(found[0], survivor(0, Some(100), 2, 0));
}

#[test]
fn rule_22_data_that_are_kept_in_several_ways_share_the_room() {
    assert_eq!(short_of([(100, 100)]), 0, "it just fits");
    assert_eq!(short_of([(120, 100)]), 20);
    assert_eq!(short_of([(50, 100), (25, 50)]), 0, "half of the room each");
    // Two fifths more than there is room for: as much of what is stored is too much.
    assert_eq!(short_of([(70, 100), (35, 50)]), 30);
    assert_eq!((short_of([]), short_of([(0, 0)]), short_of([(5, 0)])), (0, 0, 4), "nothing fits into nothing, give or take a byte");
}
