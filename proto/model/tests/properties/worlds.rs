//! Generators: points of the Earth with a taste for its edges, layouts of a few sites, policies that fit them.
use afar_model::{
    geo::Coordinates,
    layout::{Duty, Layout, Node, Site, SiteIndex, examples},
    policy::{Durability, Policy, VerifyDistance},
    units::Metres,
};
use proptest::{collection::vec, prelude::*, sample::select};
use std::collections::BTreeSet;

/// More sites than this make the brute-force oracles slow and teach nothing new.
pub const SITES: usize = 8;

/// Anywhere, but often at a pole, on the antimeridian, or where somebody else is already.
pub fn coordinates() -> impl Strategy<Value = Coordinates> {
    let latitude = prop_oneof![4 => -90.0..=90.0_f64, 1 => select(vec![-90.0, -0.0, 0.0, 48.5734, 90.0])];
    let longitude = prop_oneof![4 => -180.0..=180.0_f64, 1 => select(vec![-180.0, -179.999, -0.0, 0.0, 7.7521, 179.999, 180.0])];
    (latitude, longitude).prop_map(|(latitude, longitude)| Coordinates::new(latitude, longitude).unwrap())
}

/// Within Europe, where 700 km is a question.
fn nearby() -> impl Strategy<Value = Coordinates> {
    (40.0..=60.0_f64, -5.0..=25.0_f64).prop_map(|(latitude, longitude)| Coordinates::new(latitude, longitude).unwrap())
}

fn site(index: usize) -> impl Strategy<Value = Site> {
    let place = prop_oneof![3 => nearby(), 1 => coordinates()];
    let uncertainty = prop_oneof![3 => Just(0_u64), 1 => 0..50_000_u64];
    (place, uncertainty, select(vec!["FR", "DE", "PL"]), select(vec!["", "north", "south"])).prop_map(
        move |(coordinates, uncertainty, country, provider)| Site {
            name: format!("site{index}"),
            coordinates,
            uncertainty: Metres(uncertainty),
            country: country.into(),
            provider: provider.into(),
            duty: Duty::Active,
        },
    )
}

/// One to [`SITES`] sites with up to three nodes each (some have none, but not all).
pub fn layouts() -> impl Strategy<Value = Layout> {
    (1..=SITES).prop_flat_map(|count| {
        let sites: Vec<_> = (0..count).map(site).collect();
        (sites, vec(0..=3_usize, count), select(vec![1_u32, 8, 8192])).prop_map(|(sites, mut populations, partitions)| {
            populations[0] = populations[0].max(1);
            let nodes = sites.iter().zip(populations).flat_map(|(site, count)| (0..count).map(|number| node(site, number))).collect();
            Layout::new(1, partitions, sites, nodes).unwrap()
        })
    })
}

/// A node at a site.
pub fn node(site: &Site, number: usize) -> Node {
    Node { capacity: 1 << 40, ..examples::node(&format!("{}-{number}", site.name), &site.name) }
}

/// Policies over sites named as in [`layouts`]; the home may be one that a layout does not name.
pub fn policies() -> impl Strategy<Value = Policy> {
    let distance = prop_oneof![4 => 100..3_000_u64, 1 => 0..20_003_u64].prop_map(Metres::from_km);
    let countries = select(vec![vec![], vec!["FR"], vec!["FR", "PL"]]);
    let home = prop_oneof![1 => Just(None), 1 => (0..SITES).prop_map(|index| Some(format!("site{index}")))];
    (1..=4_u8, 1..=4_u8, distance, countries, 0..=2_u8, home).prop_map(
        |(copies, far_copies, min_distance, countries, max_copies_per_provider, home)| Policy {
            copies,
            far_copies: far_copies.min(copies),
            min_distance,
            level: Durability::Far,
            home,
            countries: countries.into_iter().map(String::from).collect(),
            max_copies_per_provider,
            ..Policy::default()
        },
    )
}

/// Some of a layout's sites, in any order, some of them twice.
pub fn holders(layout: &Layout) -> impl Strategy<Value = Vec<SiteIndex>> + use<> {
    vec((0..layout.sites().len() as u16).prop_map(SiteIndex), 0..=6)
}

/// Pairs that physics refutes.
pub fn refuted(layout: &Layout) -> impl Strategy<Value = BTreeSet<(SiteIndex, SiteIndex)>> + use<> {
    let sites = layout.sites().len() as u16;
    vec((0..sites, 0..sites), 0..4)
        .prop_map(|pairs| pairs.into_iter().map(|(a, b)| (SiteIndex(a.min(b)), SiteIndex(a.max(b)))).collect::<BTreeSet<_>>())
}

/// What to do about refuted pairs.
pub fn verify() -> impl Strategy<Value = VerifyDistance> {
    select(vec![VerifyDistance::Enforce, VerifyDistance::Warn, VerifyDistance::Off])
}

/// A layout, holders in it, and a policy.
pub fn held() -> impl Strategy<Value = (Layout, Vec<SiteIndex>, Policy)> {
    layouts().prop_flat_map(|layout| {
        let holders = holders(&layout);
        (Just(layout), holders, policies())
    })
}

/// Every subset of what is given; for oracles.
pub fn subsets<T: Copy>(of: &[T]) -> impl Iterator<Item = Vec<T>> + '_ {
    (0..1_u32 << of.len()).map(|mask| of.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, item)| *item).collect())
}
