//! What a plan means: how much fits, what moves, and who could take over from a site that is lost.
use super::capacity::World;
use crate::{
    assignment::Assignment,
    layout::{NodeIndex, SiteIndex},
    limits,
    placement::{Geography, Partition},
    policy::Policy,
};
use std::collections::BTreeMap;

/// How much an assignment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usable {
    /// Logical bytes, each counted once however many copies there are, before the first node is full, if partitions grow alike.
    pub bytes: u64,
    /// The node that is full first; of several the first in the layout. `None` if nothing is assigned to a node.
    pub bottleneck: Option<NodeIndex>,
}

/// How much fits before the first node is full; `weights` are capacities in bytes by [`NodeIndex`].
pub fn usable_capacity(assignment: &Assignment, weights: &[u64]) -> Usable {
    let mut slots: BTreeMap<NodeIndex, u32> = BTreeMap::new();
    for (set, count) in assignment.sets().iter().zip(assignment.uses()) {
        set.iter().for_each(|node| *slots.entry(*node).or_default() += count);
    }
    let full_at = |(node, slots): (NodeIndex, u32)| {
        let weight = weights.get(usize::from(node.0)).copied().unwrap_or(0);
        let bytes = u128::from(assignment.partitions()) * u128::from(weight) / u128::from(slots.max(1));
        (u64::try_from(bytes).unwrap_or(u64::MAX), node)
    };
    let first = slots.into_iter().map(full_at).min();
    Usable { bytes: first.map_or(0, |(bytes, _)| bytes), bottleneck: first.map(|(_, node)| node) }
}

/// Copies that one node gets, in place of those that another gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Whose copies these replace; `None` where there are more copies than before.
    pub from: Option<NodeIndex>,
    /// Who gets them.
    pub to: NodeIndex,
    /// How many partitions.
    pub partitions: u32,
    /// How many bytes they have.
    pub bytes: u64,
}

/// What must be copied to get from one assignment to another, in the order of nodes. Copies that are only given up are not in it.
pub fn moves(previous: &Assignment, next: &Assignment, bytes_per_partition: &dyn Fn(Partition) -> u64) -> Vec<Move> {
    let mut moves: BTreeMap<(Option<NodeIndex>, NodeIndex), (u32, u64)> = BTreeMap::new();
    for (partition, new) in next.iter() {
        let old = previous.nodes(partition);
        let mut leaving = old.iter().filter(|node| !new.contains(node));
        for to in new.iter().filter(|node| !old.contains(node)) {
            let (partitions, bytes) = moves.entry((leaving.next().copied(), *to)).or_default();
            *partitions += 1;
            *bytes = bytes.saturating_add(bytes_per_partition(partition));
        }
    }
    moves.into_iter().map(|((from, to), (partitions, bytes))| Move { from, to, partitions, bytes }).collect()
}

/// What the loss of a site would leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survivor {
    /// The site that would be lost.
    pub site: SiteIndex,
    /// Logical bytes that the others could hold under the policy, rightly assigned (to a millionth); `None` if no set of them is far.
    pub usable: Option<u64>,
    /// Copies that they could keep: fewer than the policy's if there are too few sites.
    pub copies: usize,
    /// By how many logical bytes they are short: 0 if everything fits.
    pub short: u64,
}

impl Survivor {
    /// Whether the others could hold everything, far apart.
    pub const fn holds(&self) -> bool {
        self.usable.is_some() && self.short == 0
    }
}

/// For each site whether those that remain could hold everything after its loss. `weights` are capacities in bytes by [`NodeIndex`],
/// `logical_bytes` is what is stored under the policy, each byte counted once.
pub fn survivors(policy: &Policy, geography: &Geography<'_>, weights: &[u64], logical_bytes: u64) -> Vec<Survivor> {
    let layout = geography.layout;
    let without = |site: SiteIndex| {
        let weight =
            |node: NodeIndex| if layout.site_of(node) == Some(site) { 0 } else { weights.get(usize::from(node.0)).copied().unwrap_or(0) };
        let left: Vec<u64> = layout.node_indexes().map(weight).collect();
        match World::new(policy, geography, &left, limits::PARTITIONS_DEFAULT) {
            Ok(world) => {
                let usable = world.fractional_optimum().round() as u64;
                Survivor { site, usable: Some(usable), copies: world.family.size, short: logical_bytes.saturating_sub(usable) }
            }
            Err(_) => Survivor { site, usable: None, copies: 0, short: logical_bytes },
        }
    };
    layout.site_indexes().map(without).collect()
}

/// By how many bytes data that are kept in several ways are too many for the room that they share: of each way what is stored, and
/// what would fit if there were nothing else. 0 if everything fits when each is given the part of the room that it needs.
pub fn short_of(ways: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    let (mut stored, mut load) = (0.0, 0.0);
    for (bytes, usable) in ways.into_iter().filter(|(bytes, _)| *bytes > 0) {
        stored += bytes as f64;
        load += bytes as f64 / usable.max(1) as f64;
    }
    if load > 1.0 { (stored * (1.0 - 1.0 / load)).round() as u64 } else { 0 }
}
