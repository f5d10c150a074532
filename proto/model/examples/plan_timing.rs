//! How long a plan takes: 100 nodes at 20 sites, 8,192 partitions, new and after each kind of change. Run it in release form:
//! `cargo run --release -p afar-model --example plan_timing [NODES SITES PARTITIONS COPIES]`.
#![allow(clippy::unwrap_used)]
use afar_model::{
    assignment::Assignment,
    geo::Coordinates,
    layout::{Duty, Layout, Node, NodeIndex, Site},
    placement::Geography,
    plan::{assign, moves, usable_capacity},
    policy::Policy,
    units::Metres,
};
use std::time::Instant;

fn layout(nodes: usize, sites: usize, partitions: u32) -> Layout {
    let site = |n: usize| Site {
        name: format!("site{n:02}"),
        // A grid over Europe, 5 wide, 4 degrees apart.
        coordinates: Coordinates::new(
            38.0 + 4.0 * (n / 5 % 6) as f64 + 0.1 * (n % 7) as f64,
            -6.0 + 6.0 * (n % 5) as f64 + (n / 30) as f64,
        )
        .unwrap(),
        uncertainty: Metres(0),
        country: "FR".into(),
        provider: format!("p{}", n % 7),
        duty: Duty::Active,
    };
    let sites: Vec<Site> = (0..sites).map(site).collect();
    let node = |n: usize| Node {
        name: format!("node{n:03}"),
        site: sites[n % sites.len()].name.clone(),
        capacity: ((2 + n * 7 % 9) as u64) << 40,
        endpoint: String::new(),
        duty: Duty::Active,
    };
    let nodes = (0..nodes).map(node).collect();
    Layout::new(1, partitions, sites, nodes).unwrap()
}

fn timed(what: &str, policy: &Policy, layout: &Layout, weights: &[u64], previous: Option<&Assignment>) -> Assignment {
    let start = Instant::now();
    let plan = assign(policy, &Geography::claimed(layout), weights, layout.partitions(), previous).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let usable = usable_capacity(&plan, weights);
    let moved: u32 = previous.map_or(0, |previous| moves(previous, &plan, &|_| 0).iter().map(|m| m.partitions).sum());
    let least: u32 = previous.map_or(0, |previous| {
        let must = |node: NodeIndex| {
            let fits = u128::from(weights[usize::from(node.0)]) * u128::from(layout.partitions()) / u128::from(usable.bytes.max(1));
            previous.slots_of(node).saturating_sub(u32::try_from(fits).unwrap_or(u32::MAX))
        };
        layout.node_indexes().map(must).sum()
    });
    println!(
        "{what:<22} {seconds:>7.3} s  {:>4} sets  {:>7.1} TiB usable  {moved:>6} copies move, at least {least} must",
        plan.sets().len(),
        usable.bytes as f64 / (1_u64 << 40) as f64
    );
    plan
}

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).map(|text| text.parse().unwrap()).collect();
    let of = |index: usize, default: usize| given.get(index).copied().unwrap_or(default);
    let layout = layout(of(0, 100), of(1, 20), of(2, 8192) as u32);
    let policy = Policy { copies: of(3, 3) as u8, far_copies: 2, ..Policy::default() };
    let all: Vec<u64> = layout.nodes().iter().map(|node| node.capacity).collect();
    let last = all.len() - 1;
    let changed = |node: usize, weight: u64| {
        let mut weights = all.clone();
        weights[node] = weight;
        weights
    };
    let plan = timed("new", &policy, &layout, &all, None);
    timed("unchanged", &policy, &layout, &all, Some(&plan));
    let without = timed("a node leaves", &policy, &layout, &changed(last / 2, 0), Some(&plan));
    timed("and comes back", &policy, &layout, &all, Some(&without));
    timed("a node grows by half", &policy, &layout, &changed(3, all[3] * 3 / 2), Some(&plan));
    timed("a node shrinks by half", &policy, &layout, &changed(3, all[3] / 2), Some(&plan));
    let mut plan = timed("the last joins later", &policy, &layout, &changed(last, 0), None);
    plan = timed("now it does", &policy, &layout, &all, Some(&plan));
    let mut weights = all.clone();
    for turn in 0..24 {
        weights[turn * 11 % all.len()] = if turn % 3 == 0 { 0 } else { all[turn % all.len()] * 2 };
        plan = timed(&format!("change {turn} in a row"), &policy, &layout, &weights, Some(&plan));
    }
}
