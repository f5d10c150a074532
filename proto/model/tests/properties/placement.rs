//! Where partitions are assigned, and what moves when the layout changes.
use crate::worlds::{layouts, node, policies, subsets};
use afar_model::{
    id::RecordId,
    layout::{Layout, NodeIndex, Site, SiteIndex, examples},
    placement::{Geography, Infeasible, Partition, Placement, allowed, level, sites_of, violations},
    policy::{Durability, Policy, VerifyDistance},
    units::Metres,
};
use proptest::{prelude::*, sample::Index};
use std::collections::{BTreeMap, BTreeSet};

/// Enough partitions to see every set that a small layout uses, few enough to be quick.
const LOOKED_AT: u32 = 64;

fn partitions(layout: &Layout) -> impl Iterator<Item = Partition> + use<> {
    let step = (layout.partitions() / LOOKED_AT).max(1);
    (0..layout.partitions()).step_by(step as usize).map(Partition)
}

fn names(layout: &Layout, nodes: &[NodeIndex]) -> Vec<String> {
    nodes.iter().map(|node| layout.node_name(*node).to_owned()).collect()
}

fn site_names(layout: &Layout, nodes: &[NodeIndex]) -> BTreeSet<String> {
    sites_of(layout, nodes.iter().copied()).into_iter().map(|site| layout.site_name(site).to_owned()).collect()
}

fn placed(layout: &Layout, policy: &Policy) -> Result<Placement, Infeasible> {
    Placement::new(policy, &Geography::claimed(layout))
}

proptest! {
    #[test]
    fn what_is_assigned_satisfies_the_policy(layout in layouts(), policy in policies()) {
        let Ok(placement) = placed(&layout, &policy) else { return Ok(()) };
        let geography = Geography::claimed(&layout);
        for partition in partitions(&layout) {
            let assigned = placement.assigned(&policy, &layout, partition);
            let sites = sites_of(&layout, assigned.iter().copied());
            prop_assert_eq!(sites.len(), assigned.len(), "one node at each site");
            prop_assert!(level(&policy, &sites, &geography) >= Some(Durability::Far));
            prop_assert_eq!(placement.is_complete(), violations(&policy, &sites, &geography).is_empty());
            prop_assert!(assigned.iter().all(|node| placement.eligible().contains(node)));
        }
    }

    #[test]
    fn the_home_comes_first_if_it_may_hold_a_copy(layout in layouts(), policy in policies()) {
        let Ok(placement) = placed(&layout, &policy) else { return Ok(()) };
        let Some(home) = policy.home.as_deref().and_then(|home| layout.site_named(home)) else { return Ok(()) };
        let may = placement.sets().iter().any(|set| set.contains(&home));
        for partition in partitions(&layout) {
            let first = placement.assigned(&policy, &layout, partition).first().and_then(|node| layout.site_of(*node));
            prop_assert_eq!(first == Some(home), may);
        }
    }

    #[test]
    fn rule_7_only_those_stand_in_whom_the_policy_allows(layout in layouts(), policy in policies()) {
        let Ok(placement) = placed(&layout, &policy) else { return Ok(()) };
        for partition in partitions(&layout) {
            let assigned = placement.assigned(&policy, &layout, partition);
            let fallback = placement.fallback(&policy, &layout, partition);
            prop_assert!(fallback.iter().all(|node| allowed(&policy, &layout, layout.site_of(*node).unwrap())));
            let all: BTreeSet<NodeIndex> = assigned.iter().chain(&fallback).copied().collect();
            prop_assert_eq!(all.len(), assigned.len() + fallback.len(), "nobody twice");
            prop_assert_eq!(all, placement.eligible().iter().copied().collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn infeasible_means_that_no_set_of_sites_would_do(layout in layouts(), policy in policies()) {
        let geography = Geography::claimed(&layout);
        let sites: Vec<SiteIndex> = layout.site_indexes().filter(|site| layout.nodes_at(*site).next().is_some()).collect();
        let feasible = subsets(&sites).any(|set| level(&policy, &set, &geography) >= Some(Durability::Far));
        match placed(&layout, &policy) {
            Ok(_) => prop_assert!(feasible),
            Err(Infeasible::UnknownHome(home)) => prop_assert!(layout.site_named(&home).is_none()),
            Err(other) => {
                prop_assert!(!feasible);
                let text = other.to_string();
                prop_assert!(text.contains(&policy.min_distance.to_string()), "{text}");
            }
        }
    }

    #[test]
    fn the_order_in_a_file_does_not_matter(layout in layouts(), policy in policies(), by in any::<u16>()) {
        let (mut sites, mut nodes) = (layout.sites().to_vec(), layout.nodes().to_vec());
        let turn = usize::from(by);
        let (sites_turn, nodes_turn) = (turn % sites.len(), turn % nodes.len());
        sites.rotate_left(sites_turn);
        nodes.rotate_left(nodes_turn);
        nodes.reverse();
        let other = Layout::new(1, layout.partitions(), sites, nodes).unwrap();
        let (Ok(a), Ok(b)) = (placed(&layout, &policy), placed(&other, &policy)) else {
            prop_assert_eq!(placed(&layout, &policy).is_ok(), placed(&other, &policy).is_ok());
            return Ok(());
        };
        for partition in partitions(&layout) {
            let here: BTreeSet<String> = names(&layout, &a.assigned(&policy, &layout, partition)).into_iter().collect();
            let there: BTreeSet<String> = names(&other, &b.assigned(&policy, &other, partition)).into_iter().collect();
            prop_assert_eq!(here, there);
            let here = names(&layout, &a.fallback(&policy, &layout, partition));
            let there = names(&other, &b.fallback(&policy, &other, partition));
            prop_assert_eq!(here, there, "the order to try is the same for everybody");
        }
    }

    #[test]
    fn a_new_node_takes_partitions_only_for_itself(layout in layouts(), policy in policies(), at in any::<Index>()) {
        let populated: Vec<Site> = layout.sites().iter().filter(|site| layout.nodes().iter().any(|node| node.site == site.name)).cloned().collect();
        let mut nodes = layout.nodes().to_vec();
        nodes.push(node(&populated[at.index(populated.len())], 99));
        let larger = Layout::new(2, layout.partitions(), layout.sites().to_vec(), nodes).unwrap();
        let (Ok(before), Ok(after)) = (placed(&layout, &policy), placed(&larger, &policy)) else { return Ok(()) };
        for partition in partitions(&layout) {
            let old = names(&layout, &before.assigned(&policy, &layout, partition));
            let new = names(&larger, &after.assigned(&policy, &larger, partition));
            prop_assert!(old.iter().zip(&new).all(|(old, new)| old == new || new.ends_with("-99")), "{old:?} became {new:?}");
            prop_assert_eq!(old.len(), new.len());
        }
    }

    #[test]
    fn a_new_site_takes_partitions_only_for_itself(layout in layouts(), policy in policies(), place in crate::worlds::coordinates()) {
        let mut sites = layout.sites().to_vec();
        let site = Site { name: "late".into(), coordinates: place, uncertainty: Metres(0), country: "FR".into(), provider: String::new(), duty: Default::default() };
        let mut nodes = layout.nodes().to_vec();
        nodes.push(node(&site, 0));
        sites.push(site);
        let larger = Layout::new(2, layout.partitions(), sites, nodes).unwrap();
        let (Ok(before), Ok(after)) = (placed(&layout, &policy), placed(&larger, &policy)) else { return Ok(()) };
        // Where the new site makes something possible that was not (more copies, a copy at home), everything may move.
        let home = policy.home.as_deref().and_then(|home| layout.site_named(home));
        let at_home = |placement: &Placement| placement.sets().iter().any(|set| home.is_some_and(|home| set.contains(&home)));
        let size = |placement: &Placement| placement.sets().first().map(Vec::len);
        if size(&before) != size(&after) || at_home(&before) != at_home(&after) {
            return Ok(());
        }
        for partition in partitions(&layout) {
            let old = site_names(&layout, &before.assigned(&policy, &layout, partition));
            let new = site_names(&larger, &after.assigned(&policy, &larger, partition));
            prop_assert!(old == new || new.contains("late"), "{old:?} became {new:?}");
        }
    }

    #[test]
    fn partitions_are_ranges_of_ids(a in any::<[u8; 32]>(), b in any::<[u8; 32]>(), bits in 0..=16_u32) {
        let (low, high) = (a.min(b), a.max(b));
        let of = |bytes| Partition::of_record(&RecordId::from_bytes(bytes), 1 << bits);
        prop_assert!(of(low) <= of(high));
        prop_assert!(of(high).0 < 1 << bits);
    }
}

/// Six sites, a full ring of them far apart, two nodes each: every set and every node gets its share, give or take what
/// chance does (five standard deviations).
#[test]
fn shares_are_even_where_nothing_speaks_against_it() {
    let site = |index: u16| examples::site(&format!("site{index}"), "FR", 0.0, f64::from(index) * 60.0 - 150.0).unwrap();
    let sites: Vec<Site> = (0..6).map(site).collect();
    let nodes = sites.iter().flat_map(|site| [node(site, 0), node(site, 1)]).collect();
    let layout = Layout::new(1, 8192, sites, nodes).unwrap();
    let policy = Policy { home: None, ..Policy::default() };
    let placement = placed(&layout, &policy).unwrap();
    let (mut per_set, mut per_node): (BTreeMap<Vec<SiteIndex>, u32>, BTreeMap<NodeIndex, u32>) = Default::default();
    for partition in (0..8192).map(Partition) {
        let assigned = placement.assigned(&policy, &layout, partition);
        *per_set.entry(sites_of(&layout, assigned.iter().copied())).or_default() += 1;
        for node in assigned {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let even = |counts: Vec<u32>, of: usize| {
        let mean = f64::from(counts.iter().sum::<u32>()) / of as f64;
        assert_eq!(counts.len(), of);
        assert!(counts.iter().all(|count| (f64::from(*count) - mean).abs() < 5.0 * mean.sqrt()), "{counts:?}");
    };
    even(per_set.into_values().collect(), 15);
    even(per_node.into_values().collect(), 12);
}

/// Sixty-two sites in one town, two elsewhere, and next to no set of many that is far: nobody waits for all 10^14 to be tried.
#[test]
fn where_hardly_any_set_is_far_one_is_found_all_the_same() {
    let town = (0..62).map(|n| examples::site(&format!("town{n}"), "FR", 48.0, 7.0 + f64::from(n) / 1000.0).unwrap());
    let elsewhere = [52.0, 40.0].map(|latitude| examples::site(&format!("at{latitude}"), "FR", latitude, 21.0).unwrap());
    let sites: Vec<Site> = town.chain(elsewhere).collect();
    let nodes = sites.iter().map(|site| node(site, 0)).collect();
    let layout = Layout::new(1, 256, sites, nodes).unwrap();
    let policy = Policy { copies: 16, far_copies: 3, home: None, ..Policy::default() };
    let placement = placed(&layout, &policy).unwrap();
    let assigned = placement.assigned(&policy, &layout, Partition(7));
    let sites = sites_of(&layout, assigned);
    assert!(level(&policy, &sites, &Geography::claimed(&layout)) >= Some(Durability::Far), "{sites:?}");
    let nowhere = Policy { far_copies: 4, ..policy.clone() };
    assert!(matches!(placed(&layout, &nowhere), Err(Infeasible::NotFar { .. })));
    let narrow = Policy { max_copies_per_provider: 1, ..policy };
    assert!(placed(&layout, &narrow).is_ok());
}

#[test]
fn a_round_trip_is_named_as_a_reason_only_where_the_policy_minds() {
    let layout = examples::three_sites().unwrap();
    let refuted = BTreeSet::from([(SiteIndex(0), SiteIndex(1)), (SiteIndex(0), SiteIndex(2)), (SiteIndex(1), SiteIndex(2))]);
    let geography = Geography { layout: &layout, refuted: &refuted };
    for (verify_distance, minds) in [(VerifyDistance::Off, false), (VerifyDistance::Warn, false), (VerifyDistance::Enforce, true)] {
        let policy = Policy { verify_distance, min_distance: Metres(1_300_000), ..Policy::default() };
        let why = Placement::new(&policy, &geography).unwrap_err().to_string();
        assert_eq!(why.contains("refuted"), minds, "{why}");
        assert_eq!(why.contains("lower min_distance to 1248.0 km"), !minds, "{why}");
        assert_eq!(geography.refuses(&policy, SiteIndex(2), SiteIndex(0)), minds);
    }
}
