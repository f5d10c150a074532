//! How much fits. The unit is what one partition may grow to: with a smaller unit a node has more slots, and the largest unit at which all
//! partitions find room is the optimum. First as a linear program over sites, then downwards over the few units at which a node gains a
//! slot, until there is a solution in whole numbers.
use super::{
    family::Family,
    simplex::{Column, EPSILON, TOLERANCE, solve},
};
use crate::{
    layout::{NodeIndex, SiteIndex},
    placement::{Geography, Infeasible, allowed, not_far},
    policy::Policy,
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

/// Work (see [`super::simplex::Solution::work`]) that the search for whole numbers may take at one unit before it tries the next.
const EFFORT: u64 = 100_000_000;
/// Work that it may take at all units together.
const EFFORT_TOTAL: u64 = 500_000_000;
/// The search places at most this many partitions one by one.
const ONE_BY_ONE_MAX: u32 = 192;
/// All sets are tried, not only those of the linear program's solution, if they are at most this many.
const SETS_TRIED_MAX: usize = 256;

/// What a partition may grow to in bytes, as a fraction: a node of `weight` bytes is full with `slots` of them.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    weight: u64,
    slots: u32,
}

impl Unit {
    /// What a partition may grow to for `slots` of them to fill a node of that weight.
    pub const fn new(weight: u64, slots: u32) -> Self {
        Self { weight, slots }
    }

    /// A fraction of it.
    pub fn scaled(self, part: u64, of: u64) -> Self {
        let weight = u128::from(self.weight) * u128::from(part) / u128::from(of.max(1));
        Self { weight: u64::try_from(weight).unwrap_or(u64::MAX).max(1), ..self }
    }

    /// How many partitions of this size a node of that weight holds.
    pub fn slots(self, weight: u64, most: u32) -> u32 {
        let slots = u128::from(weight) * u128::from(self.slots) / u128::from(self.weight.max(1));
        u32::try_from(slots).unwrap_or(u32::MAX).min(most)
    }

    /// In bytes.
    pub fn bytes(self) -> f64 {
        self.weight as f64 / f64::from(self.slots)
    }
}

impl PartialEq for Unit {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Unit {}

impl PartialOrd for Unit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Unit {
    fn cmp(&self, other: &Self) -> Ordering {
        (u128::from(self.weight) * u128::from(other.slots)).cmp(&(u128::from(other.weight) * u128::from(self.slots)))
    }
}

/// The nodes that take something, and the sets of their sites. Sites and nodes are numbered anew in the order of their names, so that the
/// order in a file does not matter.
#[derive(Debug)]
pub struct World {
    /// Sets of sites, by their place in the family.
    pub family: Family,
    /// By new number the node's index in the layout.
    pub nodes: Vec<NodeIndex>,
    /// By new number what it holds in bytes, more than 0.
    pub weights: Vec<u64>,
    /// By new number the place of its site in the family.
    pub site_of: Vec<usize>,
    /// By place of a site in the family the new numbers of its nodes.
    pub nodes_at: Vec<Vec<usize>>,
    /// How many partitions there are.
    pub partitions: u32,
}

/// Sets of sites, each with the number of partitions that are there.
pub type Packing = Vec<(Vec<usize>, u32)>;

impl World {
    /// Who takes part.
    pub fn new(policy: &Policy, geography: &Geography<'_>, weights: &[u64], partitions: u32) -> Result<Self, Infeasible> {
        policy.check().map_err(Infeasible::Policy)?;
        let layout = geography.layout;
        if let Some(home) = policy.home.as_ref().filter(|home| layout.site_named(home).is_none()) {
            return Err(Infeasible::UnknownHome(home.clone()));
        }
        let weight = |node: NodeIndex| weights.get(usize::from(node.0)).copied().unwrap_or(0);
        let takes = |site: &SiteIndex| layout.nodes_at(*site).any(|node| weight(node) > 0);
        let mut sites: Vec<SiteIndex> = layout.site_indexes().filter(|site| allowed(policy, layout, *site) && takes(site)).collect();
        sites.sort_by_key(|site| layout.site_name(*site));
        let Some(family) = Family::new(policy, geography, sites.clone()) else { return Err(not_far(policy, geography, &sites)) };
        let place = |node: NodeIndex| family.sites.iter().position(|site| layout.site_of(node) == Some(*site));
        let mut nodes: Vec<NodeIndex> = layout.node_indexes().filter(|node| weight(*node) > 0 && place(*node).is_some()).collect();
        nodes.sort_by_key(|node| layout.node_name(*node));
        let site_of: Vec<usize> = nodes.iter().filter_map(|node| place(*node)).collect();
        let mut nodes_at = vec![Vec::new(); family.sites.len()];
        for (node, site) in site_of.iter().enumerate() {
            nodes_at[*site].push(node);
        }
        let weights = nodes.iter().map(|node| weight(*node)).collect();
        Ok(Self { family, nodes, weights, site_of, nodes_at, partitions })
    }

    /// How many slots each node has at a unit.
    pub fn slots(&self, unit: Unit) -> Vec<u32> {
        self.weights.iter().map(|weight| unit.slots(*weight, self.partitions)).collect()
    }

    /// How many each site has, if its nodes have these.
    pub fn at_sites(&self, slots: &[u32]) -> Vec<u32> {
        let sum = |nodes: &Vec<usize>| nodes.iter().map(|node| slots[*node]).fold(0, u32::saturating_add).min(self.partitions);
        self.nodes_at.iter().map(sum).collect()
    }

    /// The most logical bytes that the sites could hold if partitions could be cut at will.
    pub fn fractional_optimum(&self) -> f64 {
        let at_sites: Vec<f64> = self.nodes_at.iter().map(|nodes| nodes.iter().map(|node| self.weights[*node] as f64).sum()).collect();
        // In numbers of the size of slots, for which the solver's tolerances are meant.
        let total: f64 = at_sites.iter().sum();
        let scale = total / (f64::from(self.partitions) * self.family.size as f64);
        let capacities: Vec<f64> = at_sites.iter().map(|bytes| bytes / scale).collect();
        let more_than_fits = f64::from(self.partitions) * self.family.size as f64;
        let unplaced = self.relaxed(&capacities, more_than_fits, &mut Vec::new()).unplaced;
        (more_than_fits - unplaced).max(0.0) * scale
    }

    /// The linear program over sites: how many of `partitions` find no room, and where the others are.
    fn relaxed(&self, capacities: &[f64], partitions: f64, pool: &mut Vec<Column>) -> super::simplex::Solution {
        solve(capacities, &[partitions], pool, &mut |worth| {
            let value = worth.classes.first().copied().unwrap_or_default();
            let prices: Vec<f64> =
                worth.prices.iter().zip(capacities).map(|(price, room)| if *room > 0.0 { *price } else { f64::INFINITY }).collect();
            let found = self.family.cheapest(&prices, value - 2.0 * EPSILON);
            found.map(|(_, set)| Column { class: 0, items: set.iter().map(|site| *site as u16).collect(), cost: 0.0 }).into_iter().collect()
        })
    }

    /// Whether the linear program finds room for all partitions.
    fn fits(&self, at_sites: &[u32], partitions: u32, pool: &mut Vec<Column>) -> bool {
        let capacities: Vec<f64> = at_sites.iter().copied().map(f64::from).collect();
        self.relaxed(&capacities, f64::from(partitions), pool).unplaced < TOLERANCE * 10.0
    }

    /// The largest unit for which there is a solution in whole numbers, and that solution.
    pub fn largest_unit(&self) -> Option<(Unit, Packing)> {
        let pool = &mut Vec::new();
        let optimum = self.fractional_optimum() / f64::from(self.partitions);
        let mut units = Units::below(self, optimum * (1.0 + 1e-6));
        // The units in order, as far as needed: twice as many each time until one fits, then halving.
        let mut known: Vec<Unit> = Vec::new();
        let mut wanted = self.nodes.len() + 8;
        loop {
            let before = known.len();
            known.extend(units.by_ref().take(wanted));
            match known.last() {
                Some(unit) if self.fits(&self.at_sites(&self.slots(*unit)), self.partitions, pool) => break,
                Some(_) if known.len() > before => wanted *= 2,
                _ => return None,
            }
        }
        let first = known.partition_point(|unit| !self.fits(&self.at_sites(&self.slots(*unit)), self.partitions, pool));
        let mut left = EFFORT_TOTAL;
        for unit in known.into_iter().skip(first).chain(units) {
            let mut whole =
                Whole { world: self, pool, all: self.family.all(SETS_TRIED_MAX), failed: BTreeSet::new(), left: left.min(EFFORT) };
            let before = whole.left;
            let found = whole.pack(&self.at_sites(&self.slots(unit)), self.partitions);
            left -= before - whole.left;
            if let Some(found) = found {
                return Some((unit, found));
            }
        }
        None
    }

    /// A packing at a unit that spreads the load over sites that have more room than is needed: the fullest as empty as can be, then the
    /// next. Empty if there is none at that unit.
    pub fn levelled(&self, unit: Unit) -> Packing {
        const STEPS: u64 = 128;
        let pool = &mut Vec::new();
        let at_site = |nodes: &Vec<usize>| nodes.iter().map(|node| u64::from(unit.slots(self.weights[*node], u32::MAX))).sum();
        let at_sites: Vec<u64> = self.nodes_at.iter().map(at_site).collect();
        let part = |room: u64, steps: u64| (room * steps).div_ceil(STEPS).min(u64::from(self.partitions)) as u32;
        let mut settled: Vec<Option<u32>> = vec![None; at_sites.len()];
        let mut steps = STEPS;
        let limits = |settled: &[Option<u32>], steps: u64| -> Vec<u32> {
            at_sites.iter().zip(settled).map(|(room, settled)| settled.unwrap_or(part(*room, steps))).collect()
        };
        while settled.contains(&None) && steps > 0 {
            let (mut fits, mut fails) = (steps, 0);
            while fits > fails + 1 {
                let middle = fails.midpoint(fits);
                if self.fits(&limits(&settled, middle), self.partitions, pool) { fits = middle } else { fails = middle }
            }
            let short: Vec<f64> = limits(&settled, fails).into_iter().map(f64::from).collect();
            let prices = self.relaxed(&short, f64::from(self.partitions), pool).prices;
            let full: Vec<usize> = (0..at_sites.len()).filter(|site| settled[*site].is_none() && prices[*site] > 1e-6).collect();
            if full.is_empty() {
                break;
            }
            for site in full {
                settled[site] = Some(limits(&settled, fits)[site]);
            }
            steps = fits;
        }
        let whole = |at_sites: &[u32]| {
            let pool = &mut Vec::new();
            Whole { world: self, pool, all: None, failed: BTreeSet::new(), left: EFFORT }.pack(at_sites, self.partitions)
        };
        whole(&limits(&settled, steps)).or_else(|| whole(&limits(&vec![None; at_sites.len()], STEPS))).unwrap_or_default()
    }
}

/// The units at which a node gains a slot, the largest first, each once.
struct Units<'a> {
    world: &'a World,
    next: BinaryHeap<(Unit, usize)>,
    last: Option<Unit>,
}

impl<'a> Units<'a> {
    fn below(world: &'a World, bytes: f64) -> Self {
        let first = |weight: u64| ((weight as f64 / bytes) as u32).saturating_add(1);
        let starts = world.weights.iter().enumerate().map(|(node, weight)| (Unit { weight: *weight, slots: first(*weight) }, node));
        Self { world, next: starts.filter(|(unit, _)| unit.slots <= world.partitions).collect(), last: None }
    }
}

impl Iterator for Units<'_> {
    type Item = Unit;
    fn next(&mut self) -> Option<Unit> {
        loop {
            let (unit, node) = self.next.pop()?;
            if unit.slots < self.world.partitions {
                self.next.push((Unit { slots: unit.slots + 1, ..unit }, node));
            }
            if self.last != Some(unit) {
                self.last = Some(unit);
                return Some(unit);
            }
        }
    }
}

/// The search for a solution in whole numbers: the whole part of the linear program's solution, and the few partitions that are left one
/// by one, asking the linear program each time whether the others still fit.
struct Whole<'a> {
    world: &'a World,
    pool: &'a mut Vec<Column>,
    all: Option<Vec<Vec<usize>>>,
    /// Rooms that are known not to suffice for as many partitions as are left when they are met.
    failed: BTreeSet<Vec<u32>>,
    /// Work that it may still take.
    left: u64,
}

impl Whole<'_> {
    fn pack(&mut self, at_sites: &[u32], partitions: u32) -> Option<Packing> {
        let capacities: Vec<f64> = at_sites.iter().copied().map(f64::from).collect();
        let solution = self.world.relaxed(&capacities, f64::from(partitions), self.pool);
        if solution.unplaced > TOLERANCE * 10.0 {
            return None;
        }
        let parts: Vec<(Vec<usize>, u32)> =
            solution.amounts.iter().map(|(column, amount)| (places(&self.pool[*column]), (amount + TOLERANCE) as u32)).collect();
        // If the whole parts leave no solution for the rest, more is left to the search.
        for back in [0, 1, 4, 16, u32::MAX] {
            let (mut rooms, mut missing) = (at_sites.to_vec(), partitions);
            let mut kept = Packing::new();
            for (set, count) in &parts {
                let most = set.iter().map(|site| rooms[*site]).min().unwrap_or(0).min(missing);
                let count = count.saturating_sub(back).min(most);
                set.iter().for_each(|site| rooms[*site] -= count);
                missing -= count;
                kept.push((set.clone(), count));
            }
            if back > 0 && missing > ONE_BY_ONE_MAX {
                break;
            }
            let mut rest = Vec::new();
            self.failed.clear();
            if self.one_by_one(&mut rooms, missing, &mut rest) {
                let mut total: BTreeMap<Vec<usize>, u32> = BTreeMap::new();
                for (set, count) in kept.into_iter().chain(rest.into_iter().map(|set| (set, 1))).filter(|(_, count)| *count > 0) {
                    *total.entry(set).or_default() += count;
                }
                return Some(total.into_iter().collect());
            }
        }
        None
    }

    fn one_by_one(&mut self, rooms: &mut [u32], partitions: u32, placed: &mut Vec<Vec<usize>>) -> bool {
        if partitions == 0 {
            return true;
        }
        if self.left == 0 || self.failed.contains(rooms) {
            return false;
        }
        let capacities: Vec<f64> = rooms.iter().copied().map(f64::from).collect();
        let mut solution = self.world.relaxed(&capacities, f64::from(partitions), self.pool);
        self.left = self.left.saturating_sub(solution.work + 1);
        if solution.unplaced < TOLERANCE * 10.0 {
            solution.amounts.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let likely: Vec<Vec<usize>> = solution.amounts.iter().map(|(column, _)| places(&self.pool[*column])).collect();
            let others: Vec<Vec<usize>> = self.all.iter().flatten().filter(|set| !likely.contains(set)).cloned().collect();
            for set in likely.into_iter().chain(others) {
                if set.iter().any(|site| rooms[*site] == 0) {
                    continue;
                }
                set.iter().for_each(|site| rooms[*site] -= 1);
                placed.push(set.clone());
                if self.one_by_one(rooms, partitions - 1, placed) {
                    return true;
                }
                placed.pop();
                set.iter().for_each(|site| rooms[*site] += 1);
            }
        }
        self.failed.insert(rooms.to_vec());
        false
    }
}

fn places(column: &Column) -> Vec<usize> {
    column.items.iter().map(|site| usize::from(*site)).collect()
}
