//! When an answer is complete (rule 3), against brute force.
use crate::worlds::{layouts, policies, subsets};
use afar_model::{
    coverage::{covers, to_ask},
    layout::{Layout, NodeIndex},
    placement::{Geography, Placement, level, sites_of},
    policy::{Durability, Policy},
};
use proptest::prelude::*;

/// Whether some nodes among these could have acknowledged a write without anybody else.
fn could_have_acknowledged(policy: &Policy, layout: &Layout, silent: &[NodeIndex]) -> bool {
    let sites = sites_of(layout, silent.iter().copied());
    subsets(&sites).any(|set| level(policy, &set, &Geography::claimed(layout)) >= Some(Durability::Far))
}

/// A layout, a policy that it can keep, and some of the eligible nodes, in any order.
fn asked() -> impl Strategy<Value = (Layout, Policy, Vec<NodeIndex>, Vec<NodeIndex>)> {
    (layouts(), policies())
        .prop_filter_map("infeasible", |(layout, policy)| {
            let policy = Policy { home: None, ..policy };
            let eligible = Placement::new(&policy, &Geography::claimed(&layout)).ok()?.eligible().to_vec();
            Some((layout, policy, eligible))
        })
        .prop_flat_map(|(layout, policy, eligible)| {
            let order = Just(eligible.clone()).prop_shuffle();
            (Just((layout, policy, eligible)), order, any::<prop::sample::Index>())
        })
        .prop_map(|((layout, policy, eligible), mut order, cut)| {
            order.truncate(cut.index(order.len() + 1));
            (layout, policy, eligible, order)
        })
}

proptest! {
    #[test]
    fn rule_3_an_answer_is_complete_unless_the_silent_could_have_acknowledged((layout, policy, eligible, answered) in asked()) {
        let silent: Vec<NodeIndex> = eligible.iter().copied().filter(|node| !answered.contains(node)).collect();
        let complete = covers(&policy, &layout, &eligible, &answered);
        let missed = could_have_acknowledged(&policy, &layout, &silent);
        prop_assert!(!(complete && missed), "an acknowledged write would be overlooked");
        if policy.max_copies_per_provider == 0 {
            prop_assert_eq!(complete, !missed, "more is asked than needed");
        }
    }

    #[test]
    fn rule_3_one_more_answer_never_uncovers((layout, policy, eligible, answered) in asked()) {
        if covers(&policy, &layout, &eligible, answered.get(1..).unwrap_or_default()) {
            prop_assert!(covers(&policy, &layout, &eligible, &answered));
        }
        prop_assert!(covers(&policy, &layout, &eligible, &eligible), "everybody is enough");
    }

    #[test]
    fn rule_3_none_of_those_asked_could_be_left_out((layout, policy, eligible, nearest_first) in asked()) {
        let Some(asked) = to_ask(&policy, &layout, &eligible, &nearest_first) else {
            prop_assert!(!covers(&policy, &layout, &eligible, &nearest_first));
            return Ok(());
        };
        prop_assert!(covers(&policy, &layout, &eligible, &asked));
        prop_assert!(asked.iter().all(|node| nearest_first.contains(node)));
        for left_out in &asked {
            let rest: Vec<NodeIndex> = asked.iter().copied().filter(|node| node != left_out).collect();
            prop_assert!(!covers(&policy, &layout, &eligible, &rest));
        }
    }
}
