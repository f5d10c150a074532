//! Which nodes hold which partition, written down (rule 22): a planner computes it once, it is signed with the layout, and nodes check it
//! with the predicate and never compute it again. So no two nodes can disagree about where something is, whatever their versions.
use crate::{
    layout::{NodeIndex, SiteIndex},
    limits,
    placement::{Geography, Partition, Violation, sites_of, violations},
    policy::{COPIES_MAX, Policy},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// For every partition the nodes that it is assigned to. Valid by construction, also when it was decoded: every slot names a set, every
/// set is used, none is empty, and none names a node twice. Whether it keeps to a policy is what [`Assignment::violations`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Assignment {
    /// The distinct sets of nodes in use, each with the home site's node first.
    sets: Vec<Vec<NodeIndex>>,
    /// For each partition, which set.
    slots: Vec<u16>,
}

/// As it comes from outside.
#[derive(Deserialize)]
struct Raw {
    sets: Vec<Vec<NodeIndex>>,
    slots: Vec<u16>,
}

impl TryFrom<Raw> for Assignment {
    type Error = AssignmentProblem;
    fn try_from(raw: Raw) -> Result<Self, AssignmentProblem> {
        Self::new(raw.sets, raw.slots)
    }
}

/// One thing wrong with an assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentProblem {
    /// No partition, or more than there can be.
    #[error("an assignment of {0} partitions: it must have 1 to {max}", max = limits::PARTITIONS_MAX)]
    Count(usize),
    /// A slot without its set.
    #[error("partition {partition} is assigned to node set {set}, but there are only {sets} sets")]
    Slot {
        /// The partition.
        partition: usize,
        /// The set that it names.
        set: u16,
        /// How many there are.
        sets: usize,
    },
    /// A set that no partition names.
    #[error("node set {0} is in no use: only sets in use belong into an assignment")]
    Unused(usize),
    /// A set without a node.
    #[error("node set {0} is empty: a partition needs at least one node")]
    Empty(usize),
    /// A set that names a node twice.
    #[error("node set {set} names node {node} twice: two copies on one node are one")]
    Twice {
        /// The set.
        set: usize,
        /// The node's index.
        node: u16,
    },
    /// More nodes than a policy can have copies.
    #[error("node set {set} has {count} nodes: the most is {COPIES_MAX}")]
    TooManyNodes {
        /// The set.
        set: usize,
        /// Its nodes.
        count: usize,
    },
    /// Two sets of the same nodes.
    #[error("node sets {0} and {1} are the same: sets must be distinct")]
    Same(usize, usize),
    /// Not the layout's partition count.
    #[error("it assigns {have} partitions, and the layout has {want}")]
    Partitions {
        /// Of the assignment.
        have: u32,
        /// Of the layout.
        want: u32,
    },
    /// More distinct sets than rule 22 allows.
    #[error("it uses {have} distinct node sets, and {most} are allowed: {per_node} for each node", per_node = limits::SETS_PER_NODE_MAX)]
    TooManySets {
        /// Of the assignment.
        have: usize,
        /// The most.
        most: usize,
    },
    /// A node that the layout does not name.
    #[error("node set {set} names node number {node}, which the layout does not have")]
    UnknownNode {
        /// The set.
        set: usize,
        /// The node's index.
        node: u16,
    },
    /// Two nodes at one site: copies count by site.
    #[error("node set {set} has two nodes at {site}: one node at each site")]
    SameSite {
        /// The set.
        set: usize,
        /// The site's name.
        site: String,
    },
    /// The home site's node stands elsewhere than first.
    #[error("node set {set} has the node at home site {home} not first")]
    HomeNotFirst {
        /// The set.
        set: usize,
        /// The home site.
        home: String,
    },
    /// The policy is not met.
    #[error("node set {set} ({nodes}) does not keep to the policy: {why}")]
    Policy {
        /// The set.
        set: usize,
        /// Its nodes' names.
        nodes: String,
        /// What speaks against it.
        why: String,
    },
}

impl Assignment {
    /// Checks what does not depend on a layout.
    ///
    /// # Errors
    /// The first problem found.
    pub fn new(sets: Vec<Vec<NodeIndex>>, slots: Vec<u16>) -> Result<Self, AssignmentProblem> {
        if slots.is_empty() || slots.len() > limits::PARTITIONS_MAX as usize {
            return Err(AssignmentProblem::Count(slots.len()));
        }
        if let Some((partition, set)) = slots.iter().enumerate().find(|(_, set)| usize::from(**set) >= sets.len()) {
            return Err(AssignmentProblem::Slot { partition, set: *set, sets: sets.len() });
        }
        let used: BTreeSet<usize> = slots.iter().map(|set| usize::from(*set)).collect();
        let mut seen: BTreeMap<BTreeSet<NodeIndex>, usize> = BTreeMap::new();
        for (index, set) in sets.iter().enumerate() {
            if !used.contains(&index) {
                return Err(AssignmentProblem::Unused(index));
            }
            let distinct = check_set(index, set)?;
            if let Some(earlier) = seen.insert(distinct, index) {
                return Err(AssignmentProblem::Same(earlier, index));
            }
        }
        Ok(Self { sets, slots })
    }

    /// The same from the nodes of each partition, in the order of partitions. Sets of the same nodes are one set, in the order in which
    /// they first appear.
    ///
    /// # Errors
    /// The first problem found.
    pub fn of_partitions(partitions: impl IntoIterator<Item = Vec<NodeIndex>>) -> Result<Self, AssignmentProblem> {
        let (mut sets, mut slots) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<Vec<NodeIndex>, u16> = BTreeMap::new();
        for nodes in partitions {
            if slots.len() >= limits::PARTITIONS_MAX as usize {
                return Err(AssignmentProblem::Count(slots.len() + 1));
            }
            let mut sorted = nodes.clone();
            sorted.sort_unstable();
            // At most as many sets as partitions, which fit 16 bits.
            let next = sets.len() as u16;
            let slot = *known.entry(sorted).or_insert_with(|| {
                sets.push(nodes);
                next
            });
            slots.push(slot);
        }
        Self::new(sets, slots)
    }

    /// The nodes of a partition, the home site's first; none for a partition that it does not have.
    pub fn nodes(&self, partition: Partition) -> &[NodeIndex] {
        let slot = usize::try_from(partition.0).ok().and_then(|index| self.slots.get(index));
        slot.and_then(|set| self.sets.get(usize::from(*set))).map(Vec::as_slice).unwrap_or_default()
    }

    /// The distinct sets of nodes in use.
    pub fn sets(&self) -> &[Vec<NodeIndex>] {
        &self.sets
    }

    /// How many partitions it assigns.
    pub fn partitions(&self) -> u32 {
        // At most PARTITIONS_MAX.
        self.slots.len() as u32
    }

    /// For each partition its nodes.
    pub fn iter(&self) -> impl Iterator<Item = (Partition, &[NodeIndex])> {
        (0..self.partitions()).map(Partition).map(|partition| (partition, self.nodes(partition)))
    }

    /// How many partitions use each of [`Self::sets`].
    pub fn uses(&self) -> Vec<u32> {
        let mut uses = vec![0; self.sets.len()];
        for slot in &self.slots {
            if let Some(count) = uses.get_mut(usize::from(*slot)) {
                *count += 1;
            }
        }
        uses
    }

    /// How many partitions a node holds.
    pub fn slots_of(&self, node: NodeIndex) -> u32 {
        self.sets.iter().zip(self.uses()).filter(|(set, _)| set.contains(&node)).map(|(_, count)| count).sum()
    }

    /// Every node that holds a partition.
    pub fn distinct_nodes(&self) -> BTreeSet<NodeIndex> {
        self.sets.iter().flatten().copied().collect()
    }

    /// The same with the node indexes of another layout. Nodes for which `of` has none are left out; a set of which nothing is left keeps
    /// an index that no layout has, so that it is still known that its partitions were somewhere.
    ///
    /// # Errors
    /// If `of` maps two nodes of a set to one.
    pub fn renumbered(&self, of: impl Fn(NodeIndex) -> Option<NodeIndex>) -> Result<Self, AssignmentProblem> {
        let nowhere = || vec![NodeIndex(u16::MAX)];
        Self::of_partitions(self.iter().map(|(_, nodes)| {
            let kept: Vec<NodeIndex> = nodes.iter().filter_map(|node| of(*node)).collect();
            if kept.is_empty() { nowhere() } else { kept }
        }))
    }

    /// What a node checks before it accepts a layout with this assignment; empty if nothing speaks against it. `fewer_copies` says that
    /// fewer copies than the policy's are tolerated, as they are where the layout has no better set; what is left must be far all the
    /// same.
    pub fn violations(&self, policy: &Policy, geography: &Geography<'_>, partitions: u32, fewer_copies: bool) -> Vec<AssignmentProblem> {
        let mut found = Vec::new();
        if self.partitions() != partitions {
            found.push(AssignmentProblem::Partitions { have: self.partitions(), want: partitions });
        }
        let most = geography.layout.nodes().len() * limits::SETS_PER_NODE_MAX;
        if self.sets.len() > most {
            found.push(AssignmentProblem::TooManySets { have: self.sets.len(), most });
        }
        for (index, set) in self.sets.iter().enumerate() {
            found.extend(set_problems(index, set, policy, geography, fewer_copies));
        }
        found
    }
}

fn check_set(index: usize, set: &[NodeIndex]) -> Result<BTreeSet<NodeIndex>, AssignmentProblem> {
    if set.is_empty() {
        return Err(AssignmentProblem::Empty(index));
    }
    if set.len() > usize::from(COPIES_MAX) {
        return Err(AssignmentProblem::TooManyNodes { set: index, count: set.len() });
    }
    let mut distinct = BTreeSet::new();
    match set.iter().find(|node| !distinct.insert(**node)) {
        Some(node) => Err(AssignmentProblem::Twice { set: index, node: node.0 }),
        None => Ok(distinct),
    }
}

fn set_problems(index: usize, set: &[NodeIndex], policy: &Policy, geography: &Geography<'_>, fewer_copies: bool) -> Vec<AssignmentProblem> {
    let layout = geography.layout;
    if let Some(node) = set.iter().find(|node| layout.node(**node).is_none()) {
        return vec![AssignmentProblem::UnknownNode { set: index, node: node.0 }];
    }
    let mut found = Vec::new();
    let sites: Vec<SiteIndex> = set.iter().filter_map(|node| layout.site_of(*node)).collect();
    let mut seen = BTreeSet::new();
    for site in sites.iter().filter(|site| !seen.insert(**site)) {
        found.push(AssignmentProblem::SameSite { set: index, site: layout.site_name(*site).to_owned() });
    }
    if let Some(home) = policy.home.as_deref().and_then(|home| layout.site_named(home))
        && sites.iter().skip(1).any(|site| *site == home)
        && sites.first() != Some(&home)
    {
        found.push(AssignmentProblem::HomeNotFirst { set: index, home: layout.site_name(home).to_owned() });
    }
    let against = violations(policy, &sites_of(layout, set.iter().copied()), geography);
    for violation in against.iter().filter(|violation| !(fewer_copies && matches!(violation, Violation::Copies { .. }))) {
        let nodes: Vec<&str> = set.iter().map(|node| layout.node_name(*node)).collect();
        found.push(AssignmentProblem::Policy { set: index, nodes: nodes.join(", "), why: violation.explain(layout) });
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layout::{Layout, examples};

    const STRASBOURG: NodeIndex = NodeIndex(0);
    const ROUBAIX: NodeIndex = NodeIndex(1);
    const WARSAW: NodeIndex = NodeIndex(2);

    fn layout() -> Layout {
        examples::three_sites().unwrap()
    }

    fn problems(partitions: Vec<Vec<NodeIndex>>, policy: &Policy, count: u32) -> Vec<AssignmentProblem> {
        Assignment::of_partitions(partitions).unwrap().violations(policy, &Geography::claimed(&layout()), count, false)
    }

    #[test]
    fn rule_22_nonsense_is_refused_also_when_decoded() {
        let set = |nodes: &[u16]| nodes.iter().copied().map(NodeIndex).collect::<Vec<_>>();
        let many: Vec<u16> = (0..17).collect();
        let bad = [
            (vec![], vec![]),
            (vec![set(&[0, 1])], vec![]),
            (vec![set(&[0, 1])], vec![0, 1]),
            (vec![set(&[0, 1]), set(&[])], vec![0, 1]),
            (vec![set(&[0, 1, 0])], vec![0]),
            (vec![set(&many)], vec![0]),
            (vec![set(&[0, 1]), set(&[1, 0])], vec![0, 1]),
            (vec![set(&[0, 1]), set(&[1, 2])], vec![0, 0]),
            (vec![set(&[0])], vec![0; limits::PARTITIONS_MAX as usize + 1]),
        ];
        for (sets, slots) in bad {
            let stored = postcard::to_stdvec(&(&sets, &slots)).unwrap();
            assert!(postcard::from_bytes::<Assignment>(&stored).is_err(), "{sets:?}");
            assert!(Assignment::new(sets, slots).is_err());
        }
        let good = Assignment::new(vec![set(&[0, 2]), set(&[1, 2])], vec![0, 1, 1, 0]).unwrap();
        assert_eq!(postcard::from_bytes::<Assignment>(&postcard::to_stdvec(&good).unwrap()), Ok(good.clone()));
        assert_eq!((good.partitions(), good.slots_of(WARSAW), good.slots_of(ROUBAIX)), (4, 4, 2));
        assert_eq!(good.nodes(Partition(1)), [ROUBAIX, WARSAW]);
        assert_eq!(good.nodes(Partition(4)), []);
        assert_eq!(good.nodes(Partition(u32::MAX)), []);
    }

    #[test]
    fn rule_22_a_node_checks_with_the_predicate() {
        let policy = Policy { home: Some("strasbourg".into()), ..Policy::default() };
        assert_eq!(problems(vec![vec![STRASBOURG, WARSAW]; 4], &policy, 4), []);
        assert_eq!(problems(vec![vec![STRASBOURG, WARSAW]; 4], &policy, 8), [AssignmentProblem::Partitions { have: 4, want: 8 }]);
        let near = problems(vec![vec![STRASBOURG, ROUBAIX]], &policy, 1);
        assert!(matches!(near.as_slice(), [AssignmentProblem::Policy { .. }]), "{near:?}");
        let last = problems(vec![vec![WARSAW, STRASBOURG]], &policy, 1);
        assert_eq!(last, [AssignmentProblem::HomeNotFirst { set: 0, home: "strasbourg".into() }]);
        let unknown = problems(vec![vec![STRASBOURG, NodeIndex(3)]], &policy, 1);
        assert_eq!(unknown, [AssignmentProblem::UnknownNode { set: 0, node: 3 }]);
        let french = Policy { countries: vec!["FR".into()], ..policy };
        let abroad = problems(vec![vec![STRASBOURG, WARSAW]], &french, 1);
        assert!(abroad[0].to_string().contains("warsaw is in PL"), "{abroad:?}");
    }

    #[test]
    fn rule_22_fewer_copies_are_tolerated_only_on_demand() {
        let (layout, policy) = (layout(), Policy { copies: 3, ..Policy::default() });
        let geography = Geography::claimed(&layout);
        let two = Assignment::of_partitions(vec![vec![STRASBOURG, WARSAW]]).unwrap();
        assert!(!two.violations(&policy, &geography, 1, false).is_empty());
        assert_eq!(two.violations(&policy, &geography, 1, true), []);
        let near = Assignment::of_partitions(vec![vec![STRASBOURG, ROUBAIX]]).unwrap();
        assert!(!near.violations(&policy, &geography, 1, true).is_empty());
    }

    #[test]
    fn rule_22_a_copy_more_on_the_same_site_is_none() {
        let mut nodes = layout().nodes().to_vec();
        nodes.push(examples::node("warsaw2", "warsaw"));
        let layout = Layout::new(1, 1, layout().sites().to_vec(), nodes).unwrap();
        let twice = Assignment::of_partitions(vec![vec![STRASBOURG, WARSAW, NodeIndex(3)]]).unwrap();
        let found = twice.violations(&Policy::default(), &Geography::claimed(&layout), 1, false);
        assert_eq!(found, [AssignmentProblem::SameSite { set: 0, site: "warsaw".into() }]);
    }

    #[test]
    fn rule_22_few_distinct_sets() {
        let layout = layout();
        let sites = layout.sites().to_vec();
        let sites: Vec<_> = (0..7).map(|n| crate::layout::Site { name: format!("s{n}"), ..sites[0].clone() }).collect();
        let nodes = sites.iter().map(|s| examples::node(&s.name, &s.name)).collect();
        let layout = Layout::new(1, 64, sites, nodes).unwrap();
        let policy = Policy { copies: 3, far_copies: 1, ..Policy::default() };
        let triples = (0..7).flat_map(|a| (0..a).flat_map(move |b| (0..b).map(move |c| [a, b, c].map(NodeIndex).to_vec())));
        let assignment = Assignment::of_partitions(triples).unwrap();
        assert_eq!(
            assignment.violations(&policy, &Geography::claimed(&layout), 35, false),
            [AssignmentProblem::TooManySets { have: 35, most: 28 }]
        );
    }

    #[test]
    fn rule_22_nodes_keep_their_partitions_under_new_numbers() {
        let before = Assignment::of_partitions(vec![vec![STRASBOURG, WARSAW], vec![ROUBAIX, WARSAW], vec![ROUBAIX]]).unwrap();
        // Roubaix is gone, and so those behind it have moved up.
        let after = before.renumbered(|node| [Some(NodeIndex(0)), None, Some(NodeIndex(1))][usize::from(node.0)]).unwrap();
        assert_eq!(after.nodes(Partition(0)), [NodeIndex(0), NodeIndex(1)]);
        assert_eq!(after.nodes(Partition(1)), [NodeIndex(1)]);
        assert_eq!(after.nodes(Partition(2)), [NodeIndex(u16::MAX)]);
    }
}
