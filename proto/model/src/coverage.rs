//! When an answer is complete: reads that overlap every write (rule 3).
//!
//! An acknowledged write is on nodes at `far_copies` sites that are pairwise far apart. So if the nodes that did *not*
//! answer cannot hold such a group between them, whatever was acknowledged is held by at least one that did, and
//! absence, or "this is the newest", is proved. Distances do the work: from Warsaw alone one can tell what Strasbourg
//! and Roubaix, 406 km apart, could never have acknowledged without it.
use crate::{
    layout::{Layout, NodeIndex},
    placement::{Geography, sites_of},
    policy::{DegradedWrites, Policy},
};

/// Whether the answers of `answered` settle what is and what is not, among nodes that the policy allows (`eligible`).
///
/// Distances are taken as claimed: a pair that physics refutes today may have been counted yesterday, so refuting it
/// must not shrink the set of nodes that are asked.
///
/// A bucket that queues may acknowledge at its home site alone (see [`may_queue`]), so every node there must answer; if it
/// has no home, every node.
pub fn covers(policy: &Policy, layout: &Layout, eligible: &[NodeIndex], answered: &[NodeIndex]) -> bool {
    let queues = policy.degraded_writes == DegradedWrites::Queue;
    if queues && eligible.iter().any(|node| may_queue(policy, layout, *node) && !answered.contains(node)) {
        return false;
    }
    let silent = eligible.iter().copied().filter(|node| !answered.contains(node));
    let sites = sites_of(layout, silent);
    let wanted = usize::from(policy.far_copies);
    Geography::claimed(layout).farthest_group(policy, &sites, wanted).len() < wanted
}

/// Whether a copy on this node alone may be acknowledged as `local` in a bucket that queues: at its home site, so that
/// readers know whom they cannot do without.
pub fn may_queue(policy: &Policy, layout: &Layout, node: NodeIndex) -> bool {
    match policy.home.as_deref().and_then(|home| layout.site_named(home)) {
        Some(home) => layout.site_of(node) == Some(home),
        None => true,
    }
}

/// The nodes to ask, in the order given (nearest first), so that their answers cover: the shortest prefix that does,
/// with those dropped that it covers without.
pub fn to_ask(policy: &Policy, layout: &Layout, eligible: &[NodeIndex], nearest_first: &[NodeIndex]) -> Option<Vec<NodeIndex>> {
    let enough = (0..=nearest_first.len()).find(|n| covers(policy, layout, eligible, nearest_first.get(..*n).unwrap_or_default()))?;
    let mut asked: Vec<NodeIndex> = nearest_first.get(..enough)?.to_vec();
    for node in nearest_first.get(..enough)? {
        let without: Vec<NodeIndex> = asked.iter().copied().filter(|other| other != node).collect();
        if covers(policy, layout, eligible, &without) {
            asked = without;
        }
    }
    Some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::examples;

    const STRASBOURG: NodeIndex = NodeIndex(0);
    const ROUBAIX: NodeIndex = NodeIndex(1);
    const WARSAW: NodeIndex = NodeIndex(2);

    #[test]
    fn rule_3_an_answer_is_complete_when_the_silent_could_not_have_acknowledged() {
        let layout = examples::three_sites().unwrap();
        let policy = Policy::default();
        let all = [STRASBOURG, ROUBAIX, WARSAW];
        assert!(covers(&policy, &layout, &all, &[WARSAW]));
        assert!(!covers(&policy, &layout, &all, &[STRASBOURG]), "Roubaix and Warsaw may have acknowledged");
        assert!(covers(&policy, &layout, &all, &[STRASBOURG, ROUBAIX]));
        assert!(!covers(&policy, &layout, &all, &[]));
        assert!(covers(&policy, &layout, &[STRASBOURG, WARSAW], &[STRASBOURG]));
    }

    #[test]
    fn rule_3_the_fewest_and_nearest_are_asked() {
        let layout = examples::three_sites().unwrap();
        let all = [STRASBOURG, ROUBAIX, WARSAW];
        assert_eq!(to_ask(&Policy::default(), &layout, &all, &[WARSAW, ROUBAIX]), Some(vec![WARSAW]));
        assert_eq!(to_ask(&Policy::default(), &layout, &all, &[STRASBOURG, ROUBAIX, WARSAW]), Some(vec![STRASBOURG, ROUBAIX]));
        assert_eq!(to_ask(&Policy::default(), &layout, &all, &[STRASBOURG]), None);
    }

    #[test]
    fn rule_3_a_bucket_that_queues_needs_the_answer_of_whoever_may_have_queued() {
        let layout = examples::three_sites().unwrap();
        let all = [STRASBOURG, ROUBAIX, WARSAW];
        let at_home = Policy { degraded_writes: DegradedWrites::Queue, home: Some("strasbourg".into()), ..Policy::default() };
        assert!(!covers(&at_home, &layout, &all, &[ROUBAIX, WARSAW]), "Strasbourg may have queued");
        assert!(covers(&at_home, &layout, &all, &[STRASBOURG, ROUBAIX]));
        let anywhere = Policy { home: None, ..at_home };
        assert!(!covers(&anywhere, &layout, &all, &[STRASBOURG, WARSAW]));
        assert!(covers(&anywhere, &layout, &all, &all));
    }
}
