//! Moves as few copies as new slots need. Partitions that are at the same nodes now are a class; a linear program says how many of each
//! class go to which nodes, where a copy that stays costs nothing and one that arrives costs one, and what is not whole in its solution is
//! rounded a few at a time, asking it again what that means for the others.
use super::{
    capacity::World,
    simplex::{Column, EPSILON, Solution, TOLERANCE, Worth, solve},
};
use crate::assignment::Assignment;
use std::collections::BTreeMap;

/// Work (see [`Solution::work`]) for rounding before it is given up.
const EFFORT: u64 = 2_000_000_000;
/// What a copy costs more on a node that is full than on an empty one: enough to break ties.
const FULLNESS: f64 = 0.01;
/// What a set of nodes in use costs less than a new one: enough to break ties.
const IN_USE: f64 = 0.02;

/// Partitions that are kept by the same nodes now.
#[derive(Debug)]
pub struct Class {
    /// Nodes that still take something, by new number, ascending.
    nodes: Vec<u16>,
    /// Whether they may go on as they are.
    may_stay: bool,
    partitions: Vec<u32>,
}

/// All of them.
#[derive(Debug)]
pub struct Classes(Vec<Class>);

/// How many partitions of which class go to which nodes.
pub type Ways = BTreeMap<(usize, Vec<u16>), u32>;

impl Classes {
    /// Of a previous assignment; without one, all partitions are in one class that is nowhere.
    pub fn new(world: &World, previous: Option<&Assignment>) -> Self {
        let number: BTreeMap<_, u16> = world.nodes.iter().zip(0..).map(|(node, number)| (*node, number)).collect();
        let mut classes: BTreeMap<Vec<u16>, Vec<u32>> = BTreeMap::new();
        for partition in 0..world.partitions {
            let nodes = previous.map(|previous| previous.nodes(crate::placement::Partition(partition))).unwrap_or_default();
            let mut nodes: Vec<u16> = nodes.iter().filter_map(|node| number.get(node).copied()).collect();
            nodes.sort_unstable();
            classes.entry(nodes).or_default().push(partition);
        }
        let class = |(nodes, partitions): (Vec<u16>, _)| {
            let mut sites: Vec<usize> = nodes.iter().map(|node| world.site_of[usize::from(*node)]).collect();
            sites.sort_unstable();
            Class { may_stay: world.family.admits(&sites), nodes, partitions }
        };
        Self(classes.into_iter().map(class).collect())
    }

    /// What a partition may grow to now, in bytes: nothing if one is at a node that takes nothing.
    pub fn unit(&self, world: &World) -> f64 {
        if self.0.iter().any(|class| class.nodes.len() < world.family.size) {
            return 0.0;
        }
        let loads = loads(self, world.nodes.len());
        let full = world.weights.iter().zip(loads).filter(|(_, load)| *load > 0).map(|(weight, load)| *weight as f64 / f64::from(load));
        full.fold(f64::INFINITY, f64::min)
    }

    /// For each partition its nodes.
    pub fn partitions(&self, ways: Ways, count: u32) -> Vec<Vec<u16>> {
        let mut nodes = vec![Vec::new(); count as usize];
        let mut left: Vec<&[u32]> = self.0.iter().map(|class| class.partitions.as_slice()).collect();
        for ((class, to), count) in ways {
            let (now, later) = left[class].split_at((count as usize).min(left[class].len()));
            now.iter().for_each(|partition| nodes[*partition as usize] = to.clone());
            left[class] = later;
        }
        nodes
    }
}

/// How many copies a plan makes.
pub fn copies_made(classes: &Classes, ways: &Ways) -> u32 {
    ways.iter().map(|((class, to), count)| count * arriving(&classes.0[*class].nodes, to) as u32).sum()
}

/// How many copies must be made at least for no node to have more than its slots, wherever they may go.
pub fn least_copies(world: &World, classes: &Classes, slots: &[u32]) -> u32 {
    let stays = loads(classes, slots.len()).into_iter().zip(slots).map(|(load, slots)| load.min(*slots)).sum();
    (world.partitions * world.family.size as u32).saturating_sub(stays)
}

/// How many copies each node has now.
fn loads(classes: &Classes, nodes: usize) -> Vec<u32> {
    let mut loads = vec![0_u32; nodes];
    for class in &classes.0 {
        class.nodes.iter().for_each(|node| loads[usize::from(*node)] += class.partitions.len() as u32);
    }
    loads
}

/// How many copies must be made for a partition at `from` to be at `to`.
fn arriving(from: &[u16], to: &[u16]) -> usize {
    to.iter().filter(|node| !from.contains(node)).count()
}

/// The sets of nodes in use, the most used first.
pub fn distinct(ways: &Ways) -> Vec<Vec<u16>> {
    let mut uses: BTreeMap<&Vec<u16>, u32> = BTreeMap::new();
    for ((_, nodes), count) in ways {
        *uses.entry(nodes).or_default() += count;
    }
    let mut sets: Vec<(&Vec<u16>, u32)> = uses.into_iter().collect();
    sets.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    sets.into_iter().map(|(nodes, _)| nodes.clone()).collect()
}

/// Gives a new plan's sets to the classes that are the most like them.
pub fn matched(classes: &Classes, sets: &[(Vec<u16>, u32)]) -> Ways {
    let pairs = classes
        .0
        .iter()
        .enumerate()
        .flat_map(|(class, from)| sets.iter().enumerate().map(move |(set, (nodes, _))| (arriving(&from.nodes, nodes), class, set)));
    let mut pairs: Vec<(usize, usize, usize)> = pairs.collect();
    pairs.sort_unstable();
    let mut left: Vec<u32> = classes.0.iter().map(|class| class.partitions.len() as u32).collect();
    let mut room: Vec<u32> = sets.iter().map(|(_, count)| *count).collect();
    let mut ways = Ways::new();
    for (_, class, set) in pairs {
        let count = left[class].min(room[set]);
        if count > 0 {
            left[class] -= count;
            room[set] -= count;
            *ways.entry((class, sets[set].0.clone())).or_default() += count;
        }
    }
    ways
}

/// The fewest copies to move so that no node has more than its slots; if there are `targets`, to them but for a few.
pub fn few_moves(world: &World, classes: &Classes, slots: &[u32], targets: Option<Vec<Vec<u16>>>) -> Option<Ways> {
    let loads = loads(classes, slots.len());
    let fullness = loads.iter().zip(slots).map(|(load, slots)| (f64::from(*load) / f64::from((*slots).max(1))).min(1.0));
    let mut keeping = Keeping {
        world,
        classes: &classes.0,
        targets: None,
        arrival: fullness.map(|fullness| 1.0 + FULLNESS * fullness).collect(),
        pool: Vec::new(),
        left: EFFORT,
    };
    keeping.targets = targets.map(|sets| {
        let costs = classes.0.iter().map(|class| sets.iter().map(|to| keeping.cost(&class.nodes, to)).collect()).collect();
        Targets { sets, costs }
    });
    keeping.pool = keeping.known_ways();
    let (mut room, mut sizes) = (slots.to_vec(), classes.0.iter().map(|class| class.partitions.len() as u32).collect::<Vec<u32>>());
    let mut placed = Vec::new();
    if keeping.targets.is_some() {
        // What is not whole, or finds no room in the targets, may go anywhere: that is little.
        let solution = keeping.solved(&room, &sizes);
        placed = keeping.take_whole(&solution.amounts, &mut room, &mut sizes);
        keeping.targets = None;
    }
    keeping.left = EFFORT;
    let relaxed = keeping.relaxed(&room, &sizes)?;
    placed.extend(keeping.round(room, sizes, &relaxed)?);
    let mut ways = Ways::new();
    for (column, count) in placed.into_iter().filter(|(_, count)| *count > 0) {
        let column = &keeping.pool[column];
        *ways.entry((column.class, column.items.clone())).or_default() += count;
    }
    Some(ways)
}

/// The only sets to go to, and for each class what going there costs.
struct Targets {
    sets: Vec<Vec<u16>>,
    costs: Vec<Vec<f64>>,
}

struct Keeping<'a> {
    world: &'a World,
    classes: &'a [Class],
    targets: Option<Targets>,
    /// What a copy that arrives costs, by node.
    arrival: Vec<f64>,
    pool: Vec<Column>,
    /// Work that rounding may still take.
    left: u64,
}

impl Keeping<'_> {
    /// To stay, and to go where another class is if that is one copy away.
    fn known_ways(&self) -> Vec<Column> {
        let allowed = |nodes: &Vec<u16>| self.targets.as_ref().is_none_or(|targets| targets.sets.contains(nodes));
        let goals: Vec<(usize, &Class)> = self.classes.iter().enumerate().filter(|(_, to)| to.may_stay && allowed(&to.nodes)).collect();
        let mut known = Vec::new();
        for (class, from) in self.classes.iter().enumerate() {
            for (goal, to) in &goals {
                if class == *goal {
                    known.push(Column { class, items: to.nodes.clone(), cost: 0.0 });
                } else if arriving(&from.nodes, &to.nodes) == 1 {
                    known.push(Column { class, items: to.nodes.clone(), cost: self.cost(&from.nodes, &to.nodes) - IN_USE });
                }
            }
        }
        known
    }

    fn cost(&self, from: &[u16], to: &[u16]) -> f64 {
        to.iter().filter(|node| !from.contains(node)).map(|node| self.arrival[usize::from(*node)]).sum()
    }

    /// The linear program.
    fn solved(&mut self, room: &[u32], sizes: &[u32]) -> Solution {
        let floats = |numbers: &[u32]| numbers.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let mut pool = std::mem::take(&mut self.pool);
        let solution = solve(&floats(room), &floats(sizes), &mut pool, &mut |worth| self.offers(room, sizes, worth));
        self.pool = pool;
        self.left = self.left.saturating_sub(solution.work + 1);
        solution
    }

    /// The same; `None` if there is no room for all.
    fn relaxed(&mut self, room: &[u32], sizes: &[u32]) -> Option<Solution> {
        Some(self.solved(room, sizes)).filter(|solution| solution.unplaced < TOLERANCE * 10.0)
    }

    /// For each class the way that pays most.
    fn offers(&self, room: &[u32], sizes: &[u32], worth: &Worth<'_>) -> Vec<Column> {
        let sites = self.world.nodes_at.len();
        let open = |node: &usize| room[*node] > 0;
        let price_of_new = |node: usize| worth.prices[node] + self.arrival[node];
        let cheapest = |nodes: &Vec<usize>| {
            nodes.iter().copied().filter(|node| open(node)).min_by(|a, b| price_of_new(*a).total_cmp(&price_of_new(*b)).then(a.cmp(b)))
        };
        let new: Vec<Option<usize>> = self.world.nodes_at.iter().map(cheapest).collect();
        // What the room in each target costs.
        let room_of_targets = self.targets.iter().flat_map(|targets| &targets.sets).map(|to| {
            to.iter().map(|node| usize::from(*node)).map(|node| if open(&node) { worth.prices[node] } else { f64::INFINITY }).sum()
        });
        let room_of_targets: Vec<f64> = room_of_targets.collect();
        let mut offers = Vec::new();
        for (class, from) in self.classes.iter().enumerate().filter(|(class, _)| sizes[*class] > 0) {
            let below = worth.classes[class] - 2.0 * EPSILON;
            let items = match &self.targets {
                None => {
                    let mut nodes = new.clone();
                    let mut prices: Vec<f64> = (0..sites).map(|site| nodes[site].map_or(f64::INFINITY, price_of_new)).collect();
                    for node in from.nodes.iter().map(|node| usize::from(*node)).filter(open) {
                        let site = self.world.site_of[node];
                        if worth.prices[node] < prices[site] {
                            (prices[site], nodes[site]) = (worth.prices[node], Some(node));
                        }
                    }
                    let set = self.world.family.cheapest(&prices, below).map(|(_, set)| set);
                    set.map(|set| set.into_iter().filter_map(|site| nodes[site]).map(|node| node as u16).collect::<Vec<u16>>())
                }
                Some(Targets { sets, costs }) => {
                    let prices = room_of_targets.iter().zip(&costs[class]).map(|(room, cost)| room + cost);
                    let best =
                        prices.zip(sets).fold((below, None), |best, (price, to)| if price < best.0 { (price, Some(to)) } else { best });
                    best.1.cloned()
                }
            };
            if let Some(mut items) = items {
                items.sort_unstable();
                offers.push(Column { class, cost: self.cost(&from.nodes, &items), items });
            }
        }
        offers
    }

    /// Makes a solution whole: columns of the pool, each with a number of partitions.
    fn round(&mut self, mut room: Vec<u32>, mut sizes: Vec<u32>, solution: &Solution) -> Option<Vec<(usize, u32)>> {
        let ways = self.take_whole(&solution.amounts, &mut room, &mut sizes);
        if sizes.iter().all(|size| *size == 0) {
            return Some(ways);
        }
        let parts = solution.amounts.iter().zip(&ways).map(|((column, amount), (_, whole))| (*column, amount - f64::from(*whole)));
        let mut parts: Vec<(usize, f64)> = parts.collect();
        parts.retain(|(_, part)| *part > TOLERANCE);
        parts.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let many = parts.get(..parts.len().div_ceil(4)).unwrap_or_default();
        let one = parts.iter().take(8).map(std::slice::from_ref);
        for chosen in std::iter::once(many).chain(one) {
            let (mut room, mut sizes) = (room.clone(), sizes.clone());
            let taken: Vec<(usize, u32)> =
                chosen.iter().map(|(column, _)| (*column, self.take(*column, 1, &mut room, &mut sizes))).filter(|(_, n)| *n > 0).collect();
            if taken.is_empty() || self.left == 0 {
                continue;
            }
            let Some(relaxed) = self.relaxed(&room, &sizes) else { continue };
            if let Some(rest) = self.round(room, sizes, &relaxed) {
                return Some(ways.into_iter().chain(taken).chain(rest).collect());
            }
        }
        None
    }

    /// Takes the whole part of each amount.
    fn take_whole(&self, amounts: &[(usize, f64)], room: &mut [u32], sizes: &mut [u32]) -> Vec<(usize, u32)> {
        amounts.iter().map(|(column, amount)| (*column, self.take(*column, (amount + TOLERANCE) as u32, room, sizes))).collect()
    }

    /// Takes up to `count` partitions of a column's class to its nodes, as far as there is room; says how many.
    fn take(&self, column: usize, count: u32, room: &mut [u32], sizes: &mut [u32]) -> u32 {
        let Column { class, items, .. } = &self.pool[column];
        let most = items.iter().map(|node| room[usize::from(*node)]).min().unwrap_or(0);
        let count = count.min(most).min(sizes[*class]);
        items.iter().for_each(|node| room[usize::from(*node)] -= count);
        sizes[*class] -= count;
        count
    }
}
