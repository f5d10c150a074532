//! Plans which nodes hold which partition (rule 22): pure, without chance, and computed once by whoever proposes a layout; nodes check the
//! result with the predicate and never compute it again.
//!
//! What is asked for, in this order:
//! 1. Every partition's nodes keep to the policy: one node at each site, the home site's first if it may hold a copy.
//! 2. Capacity: the first node to be full is full as late as can be. That is at least 98 % of what a partition that could be cut at will
//!    would give where every node has 100 slots and more, else the optimum in whole numbers.
//! 3. Few distinct sets of nodes, at most four per node: fewer sets are lost by fewer combinations of failures.
//! 4. Few copies move: none that gains no capacity.
//!
//! How: `family` answers which set of sites is the cheapest at given prices, `simplex` makes a linear program's solver of that, `capacity`
//! finds the largest unit (what a partition may grow to) at which all have room, `spread` cuts sites' partitions into nodes', and `keep`
//! moves as few copies of a previous assignment as the new slots need. A node that takes nothing any more (draining, removed, lost) has the
//! weight 0.
mod capacity;
mod family;
mod keep;
mod simplex;
mod spread;

mod cities;
mod report;
mod suggest;

pub use report::{Move, Survivor, Usable, moves, short_of, survivors, usable_capacity};
pub use suggest::{Change, Constraint, Suggestion, Unmet, conflict, misnamed, sentence, suggest, unmet};

use crate::{
    assignment::Assignment,
    layout::NodeIndex,
    limits,
    placement::{Geography, Infeasible, not_far},
    policy::Policy,
};
use capacity::{Unit, World};
use keep::{Classes, Ways};

/// Where every node has this many slots, a unit that is a little smaller costs a fraction of the 2 % that rule 22 leaves.
const MANY_SLOTS: u32 = 100;
/// Units to try, in thousandths of the best, where the best leaves no room to move few copies into few sets.
const LOOSER: [u64; 6] = [999, 998, 996, 994, 991, 988];
/// Moves in hundredths of those that no plan of the same capacity can avoid, up to which no capacity is given for fewer.
const FEW_MOVES: u64 = 115;
/// The least part of the optimum that a looser unit may leave.
const ENOUGH: f64 = 0.982;

/// Assigns partitions to nodes.
///
/// `weights` is by [`NodeIndex`] what a node holds in bytes; 0 means that it takes nothing (draining, removed, lost), as does a missing
/// entry. `previous` is the assignment that holds now, with the node indexes of this layout (see [`Assignment::renumbered`]); nodes in it
/// that take nothing keep nothing. One for another number of partitions is ignored.
///
/// Where no set of sites has all the copies of the policy, those with the most are used, and every report says that copies are missing.
///
/// # Errors
/// If no set of sites that take something is far.
pub fn assign(
    policy: &Policy,
    geography: &Geography<'_>,
    weights: &[u64],
    partitions: u32,
    previous: Option<&Assignment>,
) -> Result<Assignment, Infeasible> {
    let partitions = partitions.clamp(1, limits::PARTITIONS_MAX);
    let world = World::new(policy, geography, weights, partitions)?;
    let impossible = || not_far(policy, geography, &world.family.sites);
    let (unit, packing) = world.largest_unit().ok_or_else(impossible)?;
    let previous = previous.filter(|previous| previous.partitions() == partitions);
    let classes = Classes::new(&world, previous);
    let kept = previous.and_then(|_| keep_most(&world, &classes, unit));
    let ways = kept.unwrap_or_else(|| {
        let levelled = world.levelled(unit);
        let levelled = if levelled.is_empty() { packing } else { levelled };
        keep::matched(&classes, &spread::over_nodes(&world, &levelled))
    });
    let nodes = classes.partitions(ways, partitions);
    Assignment::of_partitions(nodes.into_iter().map(|nodes| in_order(&world, &nodes))).map_err(|_| impossible())
}

/// The plan that moves few copies of the previous assignment, has the best capacity and few enough sets. Where that moves more than is
/// hardly avoidable, a little of the capacity that rule 22 leaves is given for it. `None` if none was found, and then a new plan is made.
fn keep_most(world: &World, classes: &Classes, best: Unit) -> Option<Ways> {
    // At least half of what the change gains is gained.
    let gaining = (classes.unit(world) + best.bytes()) / 2.0;
    let enough = (world.fractional_optimum() / f64::from(world.partitions) * ENOUGH).max(gaining);
    let many = |unit: &Unit| unit.bytes() >= enough && world.slots(*unit).into_iter().all(|slots| slots >= MANY_SLOTS);
    let looser = LOOSER.into_iter().map(|part| best.scaled(part, 1000)).filter(many);
    let mut found: Vec<(u32, Ways)> = Vec::new();
    for unit in std::iter::once(best).chain(looser) {
        let slots = world.slots(unit);
        let Some(ways) = few_sets(world, classes, &slots) else { continue };
        let (made, least) = (keep::copies_made(classes, &ways), keep::least_copies(world, classes, &slots));
        if u64::from(made) * 100 <= u64::from(least) * FEW_MOVES {
            return Some(ways);
        }
        // In thousandths of what cannot be avoided.
        found.push((made.saturating_mul(1000) / least.max(1), ways));
    }
    found.into_iter().min_by_key(|(ratio, _)| *ratio).map(|(_, ways)| ways)
}

/// The fewest moves for these slots; and if that makes too many sets of nodes, without the least used of them.
fn few_sets(world: &World, classes: &Classes, slots: &[u32]) -> Option<Ways> {
    let most = world.nodes.len() * limits::SETS_PER_NODE_MAX;
    let ways = keep::few_moves(world, classes, slots, None)?;
    let sets = keep::distinct(&ways);
    if sets.len() <= most {
        return Some(ways);
    }
    // A few more come back when amounts are made whole.
    [0, 8, 16, 32].into_iter().find_map(|spare| {
        let targets = sets.iter().take(most - (most * spare) / 100).cloned().collect();
        keep::few_moves(world, classes, slots, Some(targets)).filter(|ways| keep::distinct(ways).len() <= most)
    })
}

/// The home site's node first, the others in the order of their names.
fn in_order(world: &World, nodes: &[u16]) -> Vec<NodeIndex> {
    let mut nodes: Vec<usize> = nodes.iter().map(|node| usize::from(*node)).collect();
    nodes.sort_by_key(|node| (Some(world.site_of[*node]) != world.family.home(), *node));
    nodes.into_iter().map(|node| world.nodes[node]).collect()
}
