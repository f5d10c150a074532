//! What may be claimed of data (rule 25). Unknown is never shown as green.
use crate::{
    layout::SiteIndex,
    placement::{Geography, level},
    policy::{Durability, Policy},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The state of an object, a bucket or the cluster; the order is from best to worst, so that `max` is "the worst wins".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The policy is met, and proved.
    Safe,
    /// Far, but fewer copies than the policy.
    Degraded,
    /// Not proved lately: unreachable, never scanned, stale, zero of zero.
    Unknown,
    /// No two verified copies far enough apart.
    AtRisk,
    /// No verified copy is known to exist.
    Lost,
}

impl State {
    /// Every state, best first.
    pub const ALL: [Self; 5] = [Self::Safe, Self::Degraded, Self::Unknown, Self::AtRisk, Self::Lost];

    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
            Self::AtRisk => "at_risk",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The state of one record. `proved`: sites of holders whose copy was read and hashed within the scrub bound (or
/// fsynced since) and whose node answered an audit lately. `unproved`: sites of holders that merely did not prove it
/// lately. Holders that are confirmed lost are in neither.
pub fn state(policy: &Policy, proved: &[SiteIndex], unproved: &[SiteIndex], geography: &Geography<'_>) -> State {
    let either: Vec<SiteIndex> = proved.iter().chain(unproved).copied().collect();
    match (level(policy, proved, geography), level(policy, &either, geography)) {
        (Some(Durability::Full), _) => State::Safe,
        (Some(Durability::Far), _) => State::Degraded,
        (_, Some(Durability::Far | Durability::Full)) => State::Unknown,
        _ if !either.is_empty() => State::AtRisk,
        _ => State::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::examples;

    #[test]
    fn rule_25_every_state_has_its_case() {
        let layout = examples::three_sites().unwrap();
        let geography = Geography::claimed(&layout);
        let policy = Policy { copies: 3, ..Policy::default() };
        let (s, r, w) = (SiteIndex(0), SiteIndex(1), SiteIndex(2));
        let check = |proved: &[SiteIndex], unproved: &[SiteIndex]| state(&policy, proved, unproved, &geography);
        assert_eq!(check(&[s, r, w], &[]), State::Safe);
        assert_eq!(check(&[s, w], &[r]), State::Degraded);
        assert_eq!(check(&[s], &[w]), State::Unknown);
        assert_eq!(check(&[], &[s, r, w]), State::Unknown);
        assert_eq!(check(&[s, r], &[]), State::AtRisk);
        assert_eq!(check(&[], &[s]), State::AtRisk);
        assert_eq!(check(&[], &[]), State::Lost);
        assert_eq!(check(&[s, s, s], &[]), State::AtRisk, "sites count, not nodes");
    }
}
