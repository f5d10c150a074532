//! The planner (rule 22): what it makes is always valid, holds as much as can be held, and moves little. The oracles are brute force and
//! somebody else's linear program.
use crate::worlds::{layouts, policies, subsets};
use afar_model::{
    assignment::Assignment,
    layout::{Layout, Node, NodeIndex, SiteIndex, examples},
    placement::{Geography, Infeasible, Partition, Placement, violations},
    plan::{assign, moves, usable_capacity},
    policy::Policy,
    units::Metres,
};
use microlp::{ComparisonOp, OptimizationDirection, Problem};
use proptest::{collection::vec, prelude::*};
use std::collections::{BTreeMap, BTreeSet};

fn planned(policy: &Policy, layout: &Layout, weights: &[u64], previous: Option<&Assignment>) -> Result<Assignment, Infeasible> {
    assign(policy, &Geography::claimed(layout), weights, layout.partitions(), previous)
}

fn capacities(layout: &Layout) -> Vec<u64> {
    layout.nodes().iter().map(|node| node.capacity).collect()
}

/// A layout, a policy, and for each node a weight of which some are nothing.
fn weighted(most: u64) -> impl Strategy<Value = (Layout, Policy, Vec<u64>)> {
    layouts().prop_flat_map(move |layout| {
        let weight = prop_oneof![1 => Just(0), 5 => 1..=most];
        let weights = vec(weight, layout.nodes().len());
        (Just(layout), policies(), weights)
    })
}

/// The same layout cut into few partitions, with few enough nodes for brute force.
fn small() -> impl Strategy<Value = (Layout, Policy, Vec<u64>)> {
    (weighted(12), 0..=3_u32).prop_map(|((layout, policy, weights), bits)| {
        let nodes: Vec<Node> = layout.nodes().iter().take(7).cloned().collect();
        let layout = Layout::new(1, 1 << bits, layout.sites().to_vec(), nodes).unwrap();
        let weights = weights.into_iter().take(7).collect();
        (layout, policy, weights)
    })
}

fn copies_moved(previous: &Assignment, next: &Assignment) -> u32 {
    moves(previous, next, &|_| 1).iter().map(|moved| moved.partitions).sum()
}

/// Every set of nodes that may hold a partition, by the predicate alone.
fn node_sets(policy: &Policy, layout: &Layout, weights: &[u64], size: usize) -> Vec<Vec<NodeIndex>> {
    let nodes: Vec<NodeIndex> = layout.node_indexes().filter(|node| weights[usize::from(node.0)] > 0).collect();
    let geography = Geography::claimed(layout);
    let easier = Policy { copies: size as u8, ..policy.clone() };
    let mut sets: Vec<Vec<NodeIndex>> = subsets(&nodes)
        .filter(|set| {
            let sites: BTreeSet<SiteIndex> = set.iter().filter_map(|node| layout.site_of(*node)).collect();
            let sites: Vec<SiteIndex> = sites.into_iter().collect();
            set.len() == size && sites.len() == size && violations(&easier, &sites, &geography).is_empty()
        })
        .collect();
    let home = policy.home.as_deref().and_then(|home| layout.site_named(home));
    let at_home = |set: &Vec<NodeIndex>| set.iter().any(|node| home.is_some() && layout.site_of(*node) == home);
    if sets.iter().any(at_home) {
        sets.retain(at_home);
    }
    sets
}

/// Whether `partitions` find room, one after the other, in sets in ascending order.
fn room_for(partitions: u32, sets: &[Vec<NodeIndex>], room: &mut [u32], seen: &mut BTreeSet<(usize, Vec<u32>)>) -> bool {
    if partitions == 0 {
        return true;
    }
    let Some((set, others)) = sets.split_first() else { return false };
    if !seen.insert((sets.len(), room.to_vec())) {
        return false;
    }
    if set.iter().all(|node| room[usize::from(node.0)] > 0) {
        set.iter().for_each(|node| room[usize::from(node.0)] -= 1);
        let found = room_for(partitions - 1, sets, room, seen);
        set.iter().for_each(|node| room[usize::from(node.0)] += 1);
        if found {
            return true;
        }
    }
    room_for(partitions, others, room, seen)
}

/// The most logical bytes that can be held before a node is full, by trying every unit and every way.
fn brute_force(policy: &Policy, layout: &Layout, weights: &[u64], size: usize) -> u64 {
    let (partitions, sets) = (layout.partitions(), node_sets(policy, layout, weights, size));
    let mut best = 0;
    let bytes = |weight: u64, slots: u32| u64::from(partitions) * weight / u64::from(slots);
    let units = weights.iter().filter(|weight| **weight > 0).flat_map(|weight| (1..=partitions).map(|slots| (*weight, slots)));
    for (weight, slots) in units {
        let mut room: Vec<u32> = weights.iter().map(|other| (other * u64::from(slots) / weight) as u32).collect();
        if bytes(weight, slots) > best && room_for(partitions, &sets, &mut room, &mut BTreeSet::new()) {
            best = bytes(weight, slots);
        }
    }
    best
}

proptest! {
    #[test]
    fn rule_22_a_plan_is_always_valid((layout, policy, weights) in weighted(1 << 44), again in any::<u64>()) {
        let geography = Geography::claimed(&layout);
        let Ok(plan) = planned(&policy, &layout, &weights, None) else { return Ok(()) };
        let complete = plan.sets().iter().all(|set| set.len() == usize::from(policy.copies));
        prop_assert_eq!(plan.violations(&policy, &geography, layout.partitions(), !complete), vec![]);
        let taking = weights.iter().filter(|weight| **weight > 0).count();
        prop_assert!(plan.sets().len() <= 4 * taking);
        prop_assert!(plan.distinct_nodes().iter().all(|node| weights[usize::from(node.0)] > 0), "who takes nothing gets nothing");
        let home = policy.home.as_deref().and_then(|home| layout.site_named(home));
        let at_home = |set: &Vec<NodeIndex>| home.is_some() && layout.site_of(set[0]) == home;
        prop_assert!(plan.sets().iter().all(at_home) || !plan.sets().iter().any(at_home));

        // The same holds after any change of weights, and nothing moves if nothing changed.
        let other: Vec<u64> = weights.iter().zip(0..64).map(|(weight, bit)| if again >> bit & 3 == 3 { weight / 2 } else { *weight }).collect();
        let Ok(next) = planned(&policy, &layout, &other, Some(&plan)) else { return Ok(()) };
        let complete = next.sets().iter().all(|set| set.len() == usize::from(policy.copies));
        prop_assert_eq!(next.violations(&policy, &geography, layout.partitions(), !complete), vec![]);
        prop_assert!(next.sets().len() <= 4 * other.iter().filter(|weight| **weight > 0).count());
        prop_assert_eq!(planned(&policy, &layout, &weights, Some(&plan)), Ok(plan));
    }

    #[test]
    fn rule_22_a_plan_exists_where_a_placement_does((layout, policy, _) in weighted(1)) {
        let plan = planned(&policy, &layout, &vec![1 << 40; layout.nodes().len()], None);
        match (Placement::new(&policy, &Geography::claimed(&layout)), plan) {
            (Ok(placement), Ok(plan)) => {
                let site_sets: BTreeSet<&Vec<SiteIndex>> = placement.sets().iter().collect();
                for set in plan.sets() {
                    let sites = afar_model::placement::sites_of(&layout, set.iter().copied());
                    prop_assert!(site_sets.contains(&sites), "{sites:?}");
                }
            }
            (placement, plan) => prop_assert_eq!(placement.err(), plan.err()),
        }
    }

    #[test]
    fn rule_22_the_order_in_a_file_does_not_matter((layout, policy, weights) in weighted(1 << 44), by in any::<usize>()) {
        let (mut sites, mut nodes) = (layout.sites().to_vec(), layout.nodes().to_vec());
        let (sites_turn, nodes_turn) = (by % sites.len(), by % nodes.len());
        sites.rotate_left(sites_turn);
        nodes.rotate_left(nodes_turn);
        nodes.reverse();
        let other = Layout::new(1, layout.partitions(), sites, nodes).unwrap();
        let weight = |node: &Node| weights[usize::from(layout.node_named(&node.name).unwrap().0)];
        let other_weights: Vec<u64> = other.nodes().iter().map(weight).collect();
        let (Ok(a), Ok(b)) = (planned(&policy, &layout, &weights, None), planned(&policy, &other, &other_weights, None)) else {
            return Ok(());
        };
        for (partition, nodes) in a.iter() {
            let here: Vec<&str> = nodes.iter().map(|node| layout.node_name(*node)).collect();
            let there: Vec<&str> = b.nodes(partition).iter().map(|node| other.node_name(*node)).collect();
            prop_assert_eq!(here, there);
        }
    }

    #[test]
    fn rule_22_small_layouts_get_the_optimum_in_whole_numbers((layout, policy, weights) in small(), change in any::<prop::sample::Index>(), to in 0..20_u64) {
        let Ok(plan) = planned(&policy, &layout, &weights, None) else { return Ok(()) };
        let best = |plan: &Assignment, weights: &[u64]| brute_force(&policy, &layout, weights, plan.sets()[0].len());
        prop_assert_eq!(usable_capacity(&plan, &weights).bytes, best(&plan, &weights));
        let mut changed = weights.clone();
        changed[change.index(weights.len())] = to;
        let Ok(next) = planned(&policy, &layout, &changed, Some(&plan)) else { return Ok(()) };
        prop_assert_eq!(usable_capacity(&next, &changed).bytes, best(&next, &changed), "also with a previous assignment");
        if next.sets()[0].len() == plan.sets()[0].len() {
            let least = least_moves(&policy, &layout, &changed, &plan, &next);
            let moved = copies_moved(&plan, &next);
            prop_assert!(f64::from(moved) <= 1.2 * least + 1.0, "{moved} copies moved, {least} had to");
        }
    }
}

/// What any plan that holds as much as `next` must move, by a linear program over all ways from a set to a set.
fn least_moves(policy: &Policy, layout: &Layout, weights: &[u64], previous: &Assignment, next: &Assignment) -> f64 {
    let sets = node_sets(policy, layout, weights, next.sets()[0].len());
    let room = slots_for(layout, weights, usable(next, weights));
    let mut problem = Problem::new(OptimizationDirection::Minimize);
    let mut on_node: BTreeMap<NodeIndex, Vec<(microlp::Variable, f64)>> = BTreeMap::new();
    for (from, uses) in previous.sets().iter().zip(previous.uses()) {
        let mut all = Vec::new();
        for to in &sets {
            let arriving = to.iter().filter(|node| !from.contains(node)).count();
            let amount = problem.add_var(arriving as f64, (0.0, f64::INFINITY));
            to.iter().for_each(|node| on_node.entry(*node).or_default().push((amount, 1.0)));
            all.push((amount, 1.0));
        }
        problem.add_constraint(&all, ComparisonOp::Eq, f64::from(uses));
    }
    for (node, amounts) in on_node {
        problem.add_constraint(&amounts, ComparisonOp::Le, f64::from(room[usize::from(node.0)]));
    }
    problem.solve().unwrap().into_solution().unwrap().objective()
}

/// The least fraction of bytes per partition, as a node's weight and slots.
fn usable(plan: &Assignment, weights: &[u64]) -> (u64, u32) {
    let full = |node: &NodeIndex| (weights[usize::from(node.0)], plan.slots_of(*node));
    let less = |a: &(u64, u32), b: &(u64, u32)| (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1)));
    plan.distinct_nodes().iter().map(full).min_by(less).unwrap()
}

fn slots_for(layout: &Layout, weights: &[u64], (weight, slots): (u64, u32)) -> Vec<u32> {
    let fit = |other: &u64| u128::from(*other) * u128::from(slots) / u128::from(weight);
    weights.iter().map(|other| fit(other).min(u128::from(layout.partitions())) as u32).collect()
}

/// Ten layouts of 2 to 20 sites, as uneven as people's are: each with a name, a policy and its sites' nodes.
fn ten_layouts() -> Vec<(&'static str, Policy, Layout)> {
    let cities: [(&str, &str, &str, f64, f64); 20] = [
        ("strasbourg", "FR", "ovh", 48.57, 7.75),
        ("warsaw", "PL", "ovh", 52.23, 21.01),
        ("helsinki", "FI", "hetzner", 60.17, 24.94),
        ("madrid", "ES", "own", 40.42, -3.70),
        ("roubaix", "FR", "ovh", 50.69, 3.18),
        ("frankfurt", "DE", "own", 50.11, 8.68),
        ("dublin", "IE", "aws", 53.35, -6.26),
        ("milan", "IT", "own", 45.46, 9.19),
        ("nuremberg", "DE", "hetzner", 49.45, 11.08),
        ("athens", "GR", "own", 37.98, 23.73),
        ("stockholm", "SE", "aws", 59.33, 18.07),
        ("lisbon", "PT", "", 38.72, -9.14),
        ("bucharest", "RO", "", 44.43, 26.10),
        ("london", "GB", "aws", 51.51, -0.13),
        ("oslo", "NO", "", 59.91, 10.75),
        ("vienna", "AT", "own", 48.21, 16.37),
        ("paris", "FR", "aws", 48.86, 2.35),
        ("zurich", "CH", "own", 47.38, 8.54),
        ("amsterdam", "NL", "hetzner", 52.37, 4.90),
        ("sofia", "BG", "", 42.70, 23.32),
    ];
    let layout = |sites: usize, nodes_at: &[usize], tib: &[u64]| {
        let sites: Vec<_> = cities
            .iter()
            .take(sites)
            .map(|(name, country, provider, latitude, longitude)| {
                let site = examples::site(name, country, *latitude, *longitude).unwrap();
                afar_model::layout::Site { provider: (*provider).into(), ..site }
            })
            .collect();
        let mut capacities = tib.iter().cycle();
        let nodes = sites.iter().zip(nodes_at.iter().cycle()).flat_map(|(site, count)| (0..*count).map(move |n| (site.name.clone(), n)));
        let nodes = nodes
            .map(|(site, n)| Node { capacity: capacities.next().unwrap() << 40, ..examples::node(&format!("{site}-{n}"), &site) })
            .collect();
        Layout::new(1, 8192, sites, nodes).unwrap()
    };
    let policy = |copies, far_copies, km| Policy { copies, far_copies, min_distance: Metres::from_km(km), ..Policy::default() };
    vec![
        ("2 sites, one larger", policy(2, 2, 700), layout(2, &[2, 3], &[8, 4, 3])),
        ("3 sites, the demo's distances", policy(2, 2, 700), layout(3, &[3, 2, 1], &[4, 6, 10, 3])),
        ("4 sites, a home", Policy { home: Some("strasbourg".into()), ..policy(3, 2, 700) }, layout(4, &[4, 2, 1, 3], &[12, 5, 7, 9, 3])),
        ("5 sites, two near", policy(3, 2, 700), layout(5, &[1, 3, 2], &[16, 4, 8, 2])),
        ("6 sites, all far", policy(3, 3, 700), layout(6, &[2, 1, 3], &[6, 10, 4])),
        ("8 sites, one per provider", Policy { max_copies_per_provider: 1, ..policy(3, 2, 700) }, layout(8, &[2, 3, 1], &[5, 9, 4, 7])),
        ("10 sites, in the EU", Policy { countries: vec!["EU".into()], ..policy(4, 2, 900) }, layout(10, &[3, 1, 4, 2], &[8, 3, 5, 12])),
        ("12 sites, far apart", policy(2, 2, 1500), layout(12, &[2, 4, 1, 3], &[10, 4, 6, 16, 3])),
        ("16 sites", policy(3, 2, 1000), layout(16, &[3, 2, 5, 1], &[4, 8, 6, 12, 5])),
        ("20 sites, 100 nodes", policy(3, 2, 700), layout(20, &[5, 4, 6], &[4, 8, 6, 16, 5, 7])),
    ]
}

/// The most that sites could hold if partitions could be cut at will: a linear program over all sets of sites that the predicate admits.
fn linear_optimum(policy: &Policy, layout: &Layout, weights: &[u64]) -> f64 {
    let geography = Geography::claimed(layout);
    let mut problem = Problem::new(OptimizationDirection::Maximize);
    let mut at_site: BTreeMap<SiteIndex, Vec<(microlp::Variable, f64)>> = BTreeMap::new();
    let sites: Vec<SiteIndex> = layout.site_indexes().collect();
    let home = policy.home.as_deref().and_then(|home| layout.site_named(home));
    let mut chosen = Vec::new();
    all_sets(&sites, usize::from(policy.copies), &mut chosen, &mut |set| {
        if home.is_none_or(|home| set.contains(&home)) && violations(policy, set, &geography).is_empty() {
            let amount = problem.add_var(1.0, (0.0, f64::INFINITY));
            set.iter().for_each(|site| at_site.entry(*site).or_default().push((amount, 1.0)));
        }
    });
    for (site, amounts) in at_site {
        let bytes: u64 = layout.nodes_at(site).map(|node| weights[usize::from(node.0)]).sum();
        problem.add_constraint(&amounts, ComparisonOp::Le, bytes as f64 / (1_u64 << 30) as f64);
    }
    problem.solve().unwrap().into_solution().unwrap().objective() * (1_u64 << 30) as f64
}

fn all_sets(rest: &[SiteIndex], size: usize, chosen: &mut Vec<SiteIndex>, visit: &mut impl FnMut(&[SiteIndex])) {
    if chosen.len() == size {
        return visit(chosen);
    }
    for (index, site) in rest.iter().enumerate() {
        chosen.push(*site);
        all_sets(&rest[index + 1..], size, chosen, visit);
        chosen.pop();
    }
}

#[test]
fn rule_22_capacity_is_98_percent_of_the_linear_optimum() {
    for (name, policy, layout) in ten_layouts() {
        let weights = capacities(&layout);
        let plan = planned(&policy, &layout, &weights, None).unwrap();
        assert_eq!(plan.violations(&policy, &Geography::claimed(&layout), 8192, false), []);
        let (usable, optimum) = (usable_capacity(&plan, &weights).bytes as f64, linear_optimum(&policy, &layout, &weights));
        let fair = |weight: &u64| *weight as f64 * 8192.0 / optimum;
        let fewest = weights.iter().map(fair).fold(f64::INFINITY, f64::min);
        println!(
            "{name}: {} nodes, {} sets, fewest slots {fewest:.0}, capacity {:.4} of the optimum",
            weights.len(),
            plan.sets().len(),
            usable / optimum
        );
        assert!(fewest >= 100.0, "{name} is meant to be a layout with many slots");
        assert!(usable >= 0.98 * optimum && usable <= 1.000_001 * optimum, "{name}: {usable} of {optimum}");
        assert!(plan.sets().len() <= 4 * weights.len());
    }
}

#[test]
fn rule_22_few_copies_move_when_a_node_joins_leaves_or_changes() {
    for (name, policy, layout) in ten_layouts() {
        let all = capacities(&layout);
        let node = all.len() / 2;
        let with = |weight: u64| {
            let mut weights = all.clone();
            weights[node] = weight;
            weights
        };
        let changes = [
            ("join", with(0), all.clone()),
            ("leave", all.clone(), with(0)),
            ("grow", all.clone(), with(all[node] * 3 / 2)),
            ("shrink", all.clone(), with(all[node] / 2)),
        ];
        for (what, before, after) in changes {
            let plan = planned(&policy, &layout, &before, None).unwrap();
            let next = planned(&policy, &layout, &after, Some(&plan)).unwrap();
            assert_eq!(next.violations(&policy, &Geography::claimed(&layout), 8192, false), []);
            let optimum = linear_optimum(&policy, &layout, &after);
            let capacity = usable_capacity(&next, &after).bytes as f64 / optimum;
            // Copies of nodes that hold more than they have slots for must go, wherever to; where the layout is small enough for a linear
            // program over all ways, it knows also those that must make room for them.
            let room = slots_for(&layout, &after, usable(&next, &after));
            let full: u32 = layout.node_indexes().map(|node| plan.slots_of(node).saturating_sub(room[usize::from(node.0)])).sum();
            let least = if all.len() <= 12 { least_moves(&policy, &layout, &after, &plan, &next) } else { f64::from(full) };
            let moved = copies_moved(&plan, &next);
            let ratio = |of: f64| if moved == 0 { 1.0 } else { f64::from(moved) / of };
            println!(
                "{name}, {what}: capacity {capacity:.4}, {moved} copies moved, {full} leave full nodes ({:.3}), {least:.0} had to ({:.3}); {} sets",
                ratio(f64::from(full)),
                ratio(least),
                next.sets().len()
            );
            assert!(capacity >= 0.98, "{name}, {what}: {capacity}");
            assert!(f64::from(moved) <= 1.2 * least + 0.5, "{name}, {what}: {moved} copies moved, {least} had to");
            assert!(next.sets().len() <= 4 * after.iter().filter(|weight| **weight > 0).count());
        }
    }
}

#[test]
fn rule_22_many_changes_in_a_row_keep_sets_few() {
    let (_, policy, layout) = ten_layouts().swap_remove(7);
    let mut weights = capacities(&layout);
    let mut plan = planned(&policy, &layout, &weights, None).unwrap();
    for turn in 0..24_usize {
        let node = turn * 7 % weights.len();
        weights[node] = if turn % 3 == 0 { 0 } else { (3 + turn as u64 * 5 % 11) << 40 };
        plan = planned(&policy, &layout, &weights, Some(&plan)).unwrap();
        assert_eq!(plan.violations(&policy, &Geography::claimed(&layout), 8192, false), []);
        let taking = weights.iter().filter(|weight| **weight > 0).count();
        assert!(plan.sets().len() <= 4 * taking, "{} sets for {taking} nodes", plan.sets().len());
        let capacity = usable_capacity(&plan, &weights).bytes as f64 / linear_optimum(&policy, &layout, &weights);
        assert!(capacity >= 0.98, "{capacity} after change {turn}");
    }
}

#[test]
fn rule_22_a_node_without_its_disks_keeps_nothing() {
    let layout = examples::three_sites().unwrap();
    let mut weights = capacities(&layout);
    let plan = planned(&Policy::default(), &layout, &weights, None).unwrap();
    weights[0] = 0;
    let next = planned(&Policy::default(), &layout, &weights, Some(&plan)).unwrap();
    assert_eq!(next.nodes(Partition(0)), [NodeIndex(1), NodeIndex(2)]);
    assert_eq!(next.slots_of(NodeIndex(0)), 0);
    weights[2] = 0;
    let refused = planned(&Policy::default(), &layout, &weights, Some(&next)).unwrap_err().to_string();
    assert!(refused.contains("warsaw: no node of it takes anything"), "{refused}");
}

#[test]
fn rule_22_extremes_are_planned_like_anything_else() {
    let layout = examples::three_sites().unwrap();
    let policy = Policy::default();
    for (weights, bytes) in
        [([1, u64::MAX, 1 << 40], 1 << 40), ([u64::MAX; 3], u64::MAX), ([1, 1, 1], 1), ([u64::MAX, 0, 1], 1), ([3, 5, 7], 7)]
    {
        let plan = planned(&policy, &layout, &weights, None).unwrap();
        assert_eq!(usable_capacity(&plan, &weights).bytes, bytes, "{weights:?}");
        assert_eq!(planned(&policy, &layout, &weights, Some(&plan)), Ok(plan));
    }
    // One partition, and the most there can be.
    for partitions in [1, 1 << 16] {
        let plan = assign(&policy, &Geography::claimed(&layout), &[2, 2, 3], partitions, None).unwrap();
        assert_eq!(plan.violations(&policy, &Geography::claimed(&layout), partitions, false), []);
    }
    // A previous assignment of another number of partitions says nothing.
    let other = assign(&policy, &Geography::claimed(&layout), &[2, 2, 3], 16, None).unwrap();
    let plan = planned(&policy, &layout, &[2, 2, 3], Some(&other));
    assert_eq!(plan, planned(&policy, &layout, &[2, 2, 3], None));
}

#[test]
fn rule_22_distance_restricts_what_fits() {
    // Every partition needs Warsaw, for Strasbourg and Roubaix are near: what Warsaw holds is all that fits.
    let layout = examples::three_sites().unwrap();
    let weights = [10 << 40, 30 << 40, 20 << 40];
    let plan = planned(&Policy::default(), &layout, &weights, None).unwrap();
    assert_eq!(usable_capacity(&plan, &weights), afar_model::plan::Usable { bytes: 20 << 40, bottleneck: Some(NodeIndex(2)) });
    // And the others share it by their size.
    assert!(plan.slots_of(NodeIndex(0)).abs_diff(2048) < 8192 / 64, "{}", plan.slots_of(NodeIndex(0)));
    assert_eq!((plan.slots_of(NodeIndex(0)) + plan.slots_of(NodeIndex(1)), plan.slots_of(NodeIndex(2))), (8192, 8192));
}
