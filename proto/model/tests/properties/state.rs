//! What may be claimed (rule 25).
use crate::worlds::held;
use afar_model::{
    layout::SiteIndex,
    placement::{Geography, level},
    policy::Durability,
    state::{State, state},
};
use proptest::prelude::*;

fn split(holders: &[SiteIndex], at: prop::sample::Index) -> (Vec<SiteIndex>, Vec<SiteIndex>) {
    let (proved, unproved) = holders.split_at(at.index(holders.len() + 1));
    (proved.to_vec(), unproved.to_vec())
}

proptest! {
    #[test]
    fn rule_25_the_state_is_as_defined((layout, holders, policy) in held(), at in any::<prop::sample::Index>()) {
        let geography = Geography::claimed(&layout);
        let (proved, unproved) = split(&holders, at);
        let far = |sites: &[SiteIndex]| level(&policy, sites, &geography) >= Some(Durability::Far);
        let expected = if level(&policy, &proved, &geography) == Some(Durability::Full) {
            State::Safe
        } else if far(&proved) {
            State::Degraded
        } else if far(&holders) {
            State::Unknown
        } else if !holders.is_empty() {
            State::AtRisk
        } else {
            State::Lost
        };
        prop_assert_eq!(state(&policy, &proved, &unproved, &geography), expected);
    }

    #[test]
    fn rule_25_proof_never_makes_it_worse((layout, holders, policy) in held(), at in any::<prop::sample::Index>()) {
        let geography = Geography::claimed(&layout);
        let (mut proved, mut unproved) = split(&holders, at);
        let before = state(&policy, &proved, &unproved, &geography);
        let Some(holder) = unproved.pop() else { return Ok(()) };
        let without = state(&policy, &proved, &unproved, &geography);
        prop_assert!(without >= before, "losing sight of a holder never makes it better");
        proved.push(holder);
        prop_assert!(state(&policy, &proved, &unproved, &geography) <= before);
    }

    #[test]
    fn rule_25_losing_a_proved_holder_never_makes_it_better((layout, holders, policy) in held(), at in any::<prop::sample::Index>()) {
        let geography = Geography::claimed(&layout);
        let (mut proved, unproved) = split(&holders, at);
        let before = state(&policy, &proved, &unproved, &geography);
        if proved.pop().is_some() {
            prop_assert!(state(&policy, &proved, &unproved, &geography) >= before);
        }
    }

    #[test]
    fn rule_25_nothing_unproved_is_ever_green((layout, holders, policy) in held()) {
        prop_assert!(state(&policy, &[], &holders, &Geography::claimed(&layout)) >= State::Unknown);
    }
}
