//! To which nodes a record goes now: pure. The assigned nodes that can be used, and where that is not far enough, others
//! that the whole policy allows stand in (hinted handoff; rule 7).
use super::buckets::Bucket;
use afar_model::{
    layout::{Layout, NodeIndex, SiteIndex},
    placement::{Geography, Partition, level, sites_of},
    policy::{Durability, Policy},
};
use std::collections::BTreeSet;

/// Where a record goes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// Nodes to send to, assigned ones first.
    pub nodes: Vec<NodeIndex>,
    /// Assigned nodes that cannot be used now and are owed a copy.
    pub owed: Vec<NodeIndex>,
    /// What copies at all of `nodes` amount to.
    pub level: Option<Durability>,
}

/// Chooses among the nodes for which `usable` holds, so that every open layout is satisfied (rule 21). While one is being
/// replaced by another, what is written goes to where both want it.
pub fn choose(
    bucket: &Bucket,
    refuted: &BTreeSet<(SiteIndex, SiteIndex)>,
    partition: Partition,
    usable: &dyn Fn(NodeIndex) -> bool,
) -> Targets {
    let assigned = bucket.targets(partition);
    let (mut nodes, owed): (Vec<NodeIndex>, Vec<NodeIndex>) = assigned.iter().partition(|node| usable(**node));
    for view in bucket.writing_views() {
        let Ok(placement) = &view.placement else { continue };
        if view.reached(refuted, &nodes) >= Some(view.policy.level) {
            continue;
        }
        let geography = Geography { layout: &view.layout, refuted };
        let eligible = view.eligible();
        let (mine, others): (Vec<NodeIndex>, Vec<NodeIndex>) = nodes.iter().partition(|node| eligible.contains(node));
        let spares: Vec<NodeIndex> = placement
            .fallback(&view.policy, &view.layout, partition)
            .into_iter()
            .filter(|node| usable(*node) && !mine.contains(node))
            .collect();
        let chosen = stand_in(&view.policy, &geography, mine.clone(), &spares);
        // What another layout wants stays.
        let kept: Vec<NodeIndex> = if bucket.writing_views().count() > 1 { mine } else { Vec::new() };
        nodes = chosen;
        nodes.extend(others);
        let dropped: Vec<NodeIndex> = kept.into_iter().filter(|node| !nodes.contains(node)).collect();
        nodes.extend(dropped);
    }
    let level = bucket.reached(refuted, &nodes);
    Targets { nodes, owed, level }
}

/// What copies at these nodes amount to.
fn reached(policy: &Policy, geography: &Geography<'_>, nodes: &[NodeIndex]) -> Option<Durability> {
    level(policy, &sites_of(geography.layout, nodes.iter().copied()), geography)
}

/// Adds spares, in their order, as long as each brings the group nearer to far; if that leads into a dead end, whoever
/// makes a far group at all.
fn stand_in(policy: &Policy, geography: &Geography<'_>, nodes: Vec<NodeIndex>, spares: &[NodeIndex]) -> Vec<NodeIndex> {
    let mut chosen = nodes.clone();
    for spare in spares {
        if reached(policy, geography, &chosen) >= Some(policy.level) {
            return chosen;
        }
        let with: Vec<NodeIndex> = chosen.iter().copied().chain([*spare]).collect();
        if worth(policy, geography, &with) > worth(policy, geography, &chosen) {
            chosen = with;
        }
    }
    if reached(policy, geography, &chosen) >= Some(Durability::Far) {
        return chosen;
    }
    let all: Vec<NodeIndex> = nodes.iter().chain(spares).copied().collect();
    let sites = geography.farthest_group(policy, &sites_of(geography.layout, all.iter().copied()), usize::from(policy.far_copies));
    let far: Vec<NodeIndex> = sites.iter().filter_map(|site| first_at(geography.layout, &all, *site)).collect();
    if reached(policy, geography, &far) >= Some(Durability::Far) { far } else { nodes }
}

/// What a set of nodes is worth: first how many are pairwise far, then how many copies the policy lets count.
fn worth(policy: &Policy, geography: &Geography<'_>, nodes: &[NodeIndex]) -> (usize, usize) {
    let sites = sites_of(geography.layout, nodes.iter().copied());
    let group = geography.farthest_group(policy, &sites, usize::from(policy.far_copies)).len();
    (group, sites.len().min(usize::from(policy.copies)))
}

fn first_at(layout: &Layout, nodes: &[NodeIndex], site: SiteIndex) -> Option<NodeIndex> {
    nodes.iter().copied().find(|node| layout.site_of(*node) == Some(site))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STRASBOURG: NodeIndex = NodeIndex(0);
    const ROUBAIX: NodeIndex = NodeIndex(1);
    const WARSAW: NodeIndex = NodeIndex(2);

    fn targets(up: &[NodeIndex]) -> Targets {
        let policy = Policy { home: Some("strasbourg".into()), ..Policy::default() };
        let bucket = Bucket::example(&policy);
        choose(&bucket, &BTreeSet::new(), Partition(3), &|node| up.contains(&node))
    }

    #[test]
    fn the_assigned_nodes_when_all_is_well() {
        let chosen = targets(&[STRASBOURG, ROUBAIX, WARSAW]);
        assert_eq!(chosen, Targets { nodes: vec![STRASBOURG, WARSAW], owed: vec![], level: Some(Durability::Full) });
    }

    #[test]
    fn rule_7_a_stand_in_must_be_far_from_the_others() {
        let chosen = targets(&[ROUBAIX, WARSAW]);
        assert_eq!((chosen.nodes, chosen.level), (vec![WARSAW, ROUBAIX], Some(Durability::Full)));
        assert_eq!(chosen.owed, vec![STRASBOURG]);
        let chosen = targets(&[STRASBOURG, ROUBAIX]);
        assert_eq!((chosen.nodes, chosen.level), (vec![STRASBOURG], Some(Durability::Local)), "Roubaix is too near");
    }
}
