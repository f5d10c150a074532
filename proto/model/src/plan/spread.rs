//! From sites to nodes: every site's partitions are laid in a row and cut into its nodes' shares. Cutting makes at most one more set per
//! node. The sets of sites come by several times, each time with a part of their partitions, as often as makes no more sets than there are
//! nodes: then every node is in sets of many kinds, and whatever must move later finds a partition that can. So a new plan has about two
//! sets per node.
use super::capacity::{Packing, Unit, World};
use std::{cmp::Reverse, collections::BinaryHeap};

/// Sets of nodes, each with its number of partitions.
pub fn over_nodes(world: &World, packing: &Packing) -> Vec<(Vec<u16>, u32)> {
    let mut loads = vec![0_u32; world.nodes_at.len()];
    for (set, count) in packing {
        set.iter().for_each(|site| loads[*site] += count);
    }
    // For each site its nodes with what is left of their shares, the next one last.
    let shares = world.nodes_at.iter().zip(loads).map(|(nodes, load)| {
        let weights: Vec<u64> = nodes.iter().map(|node| world.weights[*node]).collect();
        nodes.iter().copied().zip(shares(&weights, load)).filter(|(_, share)| *share > 0).rev().collect()
    });
    let mut shares: Vec<Vec<(usize, u32)>> = shares.collect();
    let rounds = world.nodes.len().div_ceil(packing.len().max(1)).max(1) as u32;
    let round = |round: u32| packing.iter().map(move |(sites, count)| (sites, count * (round + 1) / rounds - count * round / rounds));
    let mut sets = Vec::new();
    for (sites, count) in (0..rounds).flat_map(round) {
        let mut missing = count;
        while missing > 0 {
            let nodes: Vec<u16> = sites.iter().filter_map(|site| shares[*site].last()).map(|(node, _)| *node as u16).collect();
            let step = sites.iter().filter_map(|site| shares[*site].last()).map(|(_, share)| *share).min().unwrap_or(missing).min(missing);
            for site in sites {
                if let Some((_, share)) = shares[*site].last_mut() {
                    *share -= step;
                }
                shares[*site].pop_if(|(_, share)| *share == 0);
            }
            sets.push((nodes, step));
            missing -= step;
        }
    }
    sets
}

/// Cuts a load into shares so that the fullest node is as empty as can be (the method of D'Hondt and Jefferson, which gives each node at
/// least the whole part of its quota: so that is where it starts).
fn shares(weights: &[u64], load: u32) -> Vec<u32> {
    let total: u128 = weights.iter().copied().map(u128::from).sum();
    let quota = |weight: &u64| (u128::from(*weight) * u128::from(load) / total.max(1)) as u32;
    let mut shares: Vec<u32> = weights.iter().map(quota).collect();
    let missing = load.saturating_sub(shares.iter().sum());
    let next = |node: usize, share: u32| (Unit::new(weights[node], share + 1), Reverse(node));
    let mut nodes: BinaryHeap<(Unit, Reverse<usize>)> = shares.iter().enumerate().map(|(node, share)| next(node, *share)).collect();
    for _ in 0..missing {
        let Some((_, Reverse(node))) = nodes.pop() else { break };
        shares[node] += 1;
        nodes.push(next(node, shares[node]));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_22_the_fullest_node_is_as_empty_as_can_be() {
        assert_eq!(shares(&[10, 10, 10], 8), [3, 3, 2]);
        assert_eq!(shares(&[100, 1], 50), [50, 0]);
        assert_eq!(shares(&[3, 2, 1], 6), [3, 2, 1]);
        assert_eq!(shares(&[u64::MAX, u64::MAX], 3), [2, 1]);
    }
}
