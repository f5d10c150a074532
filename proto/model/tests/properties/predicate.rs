//! The one predicate, [`violations`], and the level that follows from it.
use crate::worlds::{held, layouts, refuted, subsets, verify};
use afar_model::{
    layout::{Layout, SiteIndex},
    placement::{Geography, Violation, allowed, level, violations},
    policy::{Durability, Policy},
    units::Metres,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// The definition: the best that any of the copies that the policy allows amount to.
fn slow_level(policy: &Policy, holders: &[SiteIndex], geography: &Geography<'_>) -> Option<Durability> {
    let sites: BTreeSet<SiteIndex> = holders.iter().copied().filter(|site| allowed(policy, geography.layout, *site)).collect();
    let sites: Vec<SiteIndex> = sites.into_iter().collect();
    let of = |set: Vec<SiteIndex>| {
        let found = violations(policy, &set, geography);
        match found.as_slice() {
            _ if set.is_empty() => None,
            [] => Some(Durability::Full),
            [Violation::Copies { .. }] => Some(Durability::Far),
            _ => Some(Durability::Local),
        }
    };
    subsets(&sites).filter_map(of).max()
}

fn pairwise_far(policy: &Policy, layout: &Layout, group: &[SiteIndex]) -> bool {
    group.iter().enumerate().all(|(index, a)| group.iter().skip(index + 1).all(|b| layout.distance(*a, *b) >= policy.min_distance))
}

proptest! {
    #[test]
    fn the_level_is_the_best_that_any_of_the_copies_amount_to((layout, holders, policy) in held()) {
        let geography = Geography::claimed(&layout);
        prop_assert_eq!(level(&policy, &holders, &geography), slow_level(&policy, &holders, &geography));
    }

    #[test]
    fn rule_7_sites_count_not_nodes((layout, holders, policy) in held(), extra in any::<prop::sample::Index>()) {
        let geography = Geography::claimed(&layout);
        let mut twice: Vec<SiteIndex> = holders.iter().rev().copied().collect();
        if let Some(again) = (!holders.is_empty()).then(|| holders[extra.index(holders.len())]) {
            twice.push(again);
        }
        prop_assert_eq!(violations(&policy, &holders, &geography), violations(&policy, &twice, &geography));
        prop_assert_eq!(level(&policy, &holders, &geography), level(&policy, &twice, &geography));
    }

    #[test]
    fn a_further_copy_never_lowers_the_level((layout, holders, policy) in held(), more in any::<prop::sample::Index>()) {
        let geography = Geography::claimed(&layout);
        let mut with = holders.clone();
        with.push(SiteIndex(more.index(layout.sites().len()) as u16));
        prop_assert!(level(&policy, &with, &geography) >= level(&policy, &holders, &geography));
    }

    #[test]
    fn a_lesser_distance_never_lowers_the_level((layout, holders, policy) in held(), less in 0..3_000_000_u64) {
        let geography = Geography::claimed(&layout);
        let easier = Policy { min_distance: policy.min_distance.saturating_sub(Metres(less)), ..policy.clone() };
        prop_assert!(level(&easier, &holders, &geography) >= level(&policy, &holders, &geography));
    }

    #[test]
    fn far_means_that_a_group_is_pairwise_far((layout, holders, policy) in held()) {
        let geography = Geography::claimed(&layout);
        let sites: Vec<SiteIndex> = holders.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let most = subsets(&sites).filter(|set| pairwise_far(&policy, &layout, set)).map(|set| set.len()).max().unwrap_or(0);
        let found = geography.farthest_group(&policy, &holders, usize::MAX);
        prop_assert!(pairwise_far(&policy, &layout, &found), "{found:?}");
        prop_assert_eq!(found.len(), most);
        if level(&policy, &holders, &geography) >= Some(Durability::Far) {
            prop_assert!(most >= usize::from(policy.far_copies));
        }
    }

    #[test]
    fn rule_9_distances_compare_as_whole_metres(layout in layouts(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let sites = layout.sites().len();
        let (a, b) = (SiteIndex(a.index(sites) as u16), SiteIndex(b.index(sites) as u16));
        if a == b {
            return Ok(());
        }
        let geography = Geography::claimed(&layout);
        let exactly = Policy { min_distance: layout.distance(a, b), ..Policy::default() };
        let a_metre_more = Policy { min_distance: Metres(exactly.min_distance.0 + 1), ..Policy::default() };
        prop_assert!(geography.far(&exactly, a, b) && geography.far(&exactly, b, a));
        prop_assert!(!geography.far(&a_metre_more, a, b) && !geography.far(&a_metre_more, b, a));
        prop_assert!(!geography.far(&exactly, a, a), "a site is never far from itself, at no distance");
    }

    #[test]
    fn what_physics_refutes_never_raises_a_level(
        ((layout, holders, policy), pairs) in held().prop_flat_map(|held| { let pairs = refuted(&held.0); (Just(held), pairs) }),
        verify_distance in verify(),
    ) {
        let policy = Policy { verify_distance, ..policy };
        let claimed = level(&policy, &holders, &Geography::claimed(&layout));
        let measured = level(&policy, &holders, &Geography { layout: &layout, refuted: &pairs });
        match verify_distance {
            afar_model::policy::VerifyDistance::Enforce => prop_assert!(measured <= claimed),
            _ => prop_assert_eq!(measured, claimed),
        }
    }

    #[test]
    fn every_violation_can_be_explained((layout, holders, policy) in held()) {
        for violation in violations(&policy, &holders, &Geography::claimed(&layout)) {
            let text = violation.explain(&layout);
            prop_assert!(!text.is_empty() && !text.contains('?'), "{text}");
        }
    }
}

/// The demo's sites, and what the product says of them.
#[test]
fn strasbourg_and_roubaix_burn_together_strasbourg_and_warsaw_do_not() {
    let layout = afar_model::layout::examples::three_sites().unwrap();
    let geography = Geography::claimed(&layout);
    let (strasbourg, roubaix, warsaw) = (SiteIndex(0), SiteIndex(1), SiteIndex(2));
    let policy = Policy::default();
    assert_eq!(level(&policy, &[strasbourg, roubaix], &geography), Some(Durability::Local));
    assert_eq!(level(&policy, &[strasbourg, warsaw], &geography), Some(Durability::Full));
    assert_eq!(level(&policy, &[roubaix, warsaw], &geography), Some(Durability::Full));
    assert_eq!(level(&policy, &[], &geography), None);
}
