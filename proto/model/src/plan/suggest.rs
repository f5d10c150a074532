//! Advice for a policy that cannot be met: which of its demands conflict, and the smallest changes that help. Nothing is advised that the
//! predicate does not confirm.
use super::{
    cities::{CITIES, City},
    family::Family,
};
use crate::{
    countries,
    geo::Coordinates,
    layout::{Duty, Layout, Node, Site, SiteIndex},
    placement::{Geography, Placement, allowed, violations},
    policy::Policy,
    units::Metres,
};
use std::{collections::BTreeSet, fmt};

/// At most this many suggestions: more are no advice.
const SUGGESTIONS_MAX: usize = 6;
/// So many of them are said where there is little room.
const ADVISED: usize = 3;
/// A distance below this is not worth the name.
const DISTANCE_MIN: Metres = Metres::from_km(1);
/// A new site this near to one that exists would be the same place.
const SAME_PLACE: Metres = Metres::from_km(30);

/// A demand of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constraint {
    /// So many copies at distinct sites.
    Copies(u8),
    /// So many of them pairwise so far apart.
    Far(u8, Metres),
    /// Only in these countries.
    Countries(Vec<String>),
    /// So many per provider.
    Providers(u8),
    /// The layout has only so many sites with a node.
    Sites(usize),
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copies(copies) => write!(f, "{copies} copies"),
            Self::Far(copies, distance) => write!(f, "{copies} copies pairwise at least {distance} apart"),
            Self::Countries(countries) => write!(f, "copies only in {}", countries.join(", ")),
            Self::Providers(most) => write!(f, "at most {most} copies per provider"),
            Self::Sites(sites) => write!(f, "only {sites} sites have a node"),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A lesser distance.
    MinDistance {
        /// As it is.
        from: Metres,
        /// As it should be.
        to: Metres,
        /// The two sites that then count as far, and how far they are.
        because: (String, String, Metres),
    },
    /// Fewer copies.
    Copies {
        /// As it is.
        from: u8,
        /// As it should be.
        to: u8,
    },
    /// Fewer far copies.
    FarCopies {
        /// As it is.
        from: u8,
        /// As it should be.
        to: u8,
    },
    /// Copies in one more country.
    Country(String),
    /// More copies per provider.
    Providers {
        /// As it is.
        from: u8,
        /// As it should be.
        to: u8,
    },
    /// One more site.
    Site {
        /// A city where it could be.
        city: String,
        /// Its country.
        country: String,
        /// Where that is.
        coordinates: Coordinates,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinDistance { from, to, because: (a, b, distance) } => {
                write!(f, "lower min_distance from {from} to {to}, since {a}-{b} are {distance} apart")
            }
            Self::Copies { from, to } => write!(f, "lower copies from {from} to {to}"),
            Self::FarCopies { from, to: 1 } => write!(f, "lower far_copies from {from} to 1, which promises nothing about a fire"),
            Self::FarCopies { from, to } => write!(f, "lower far_copies from {from} to {to}"),
            Self::Country(country) => write!(f, "allow copies in {country}"),
            Self::Providers { from, to } => write!(f, "raise max_copies_per_provider from {from} to {to}"),
            Self::Site { city, country, .. } => write!(f, "add a site such as {city} ({country})"),
        }
    }
}

impl Change {
    /// How much is given up, in thousandths: relative to what was asked; a site gives nothing up, but must be paid for.
    fn weight(&self) -> u64 {
        let lost = |from: u64, to: u64| from.saturating_sub(to) * 1000 / from.max(1);
        match self {
            Self::MinDistance { from, to, .. } => lost(from.0, to.0),
            Self::Copies { from, to } => lost(u64::from(*from), u64::from(*to)),
            // What the whole thing is for.
            Self::FarCopies { from, to } => lost(u64::from(*from), u64::from(*to)) + 500,
            Self::Country(_) => 250,
            Self::Providers { from, to } => 1000 - u64::from(*from) * 1000 / u64::from(*to).max(1),
            Self::Site { .. } => 400,
        }
    }

    /// What it changes.
    fn kind(&self) -> (u8, String) {
        match self {
            Self::MinDistance { .. } => (0, String::new()),
            Self::Copies { .. } => (1, String::new()),
            Self::FarCopies { .. } => (2, String::new()),
            Self::Country(country) => (3, country.clone()),
            Self::Providers { .. } => (4, String::new()),
            Self::Site { .. } => (5, String::new()),
        }
    }

    fn apply(&self, policy: &mut Policy) {
        match self {
            Self::MinDistance { to, .. } => policy.min_distance = *to,
            Self::Copies { to, .. } => policy.copies = *to,
            Self::FarCopies { to, .. } => policy.far_copies = *to,
            Self::Country(country) => policy.countries.push(country.clone()),
            Self::Providers { to, .. } => policy.max_copies_per_provider = *to,
            Self::Site { .. } => {}
        }
    }
}

/// Changes that together make a policy one that can be met.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggestion {
    /// One, or two where no single one helps.
    pub changes: Vec<Change>,
    /// The policy with them.
    pub policy: Policy,
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, change) in self.changes.iter().enumerate() {
            write!(f, "{}{change}", if index == 0 { "" } else { ", and " })?;
        }
        Ok(())
    }
}

/// That a layout cannot keep a policy with all its copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Whether copies would be far all the same, only fewer than it asks for; else nothing could be acknowledged.
    pub far: bool,
    /// What conflicts.
    pub why: String,
}

/// Whether a layout cannot keep a policy whole, and why; `None` if it can.
pub fn unmet(policy: &Policy, geography: &Geography<'_>) -> Option<Unmet> {
    match Placement::derive(policy, geography) {
        Ok(placement) if placement.is_complete() => None,
        Ok(_) => Some(Unmet { far: true, why: together(&conflict(policy, geography)) }),
        Err(why) => Some(Unmet { far: false, why: why.to_string() }),
    }
}

/// What a policy names that the layout does not have: a mistake in writing, rather than something that cannot be kept.
pub fn misnamed(policy: &Policy, layout: &Layout) -> Option<String> {
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    let sites = || layout.sites().iter().filter(|site| site.duty < Duty::Removed);
    match &policy.home {
        Some(home) if !sites().any(|site| site.name == *home) => {
            return Some(format!("home {home:?} is no site: the sites are {}", list(sites().map(|site| site.name.as_str()).collect())));
        }
        _ => {}
    }
    let here = sites().any(|site| countries::allows(&policy.countries, &site.country));
    (!here).then(|| {
        let present = list(sites().map(|site| site.country.as_str()).collect());
        format!("no site is in {}: the sites are in {present}", policy.countries.join(", "))
    })
}

/// The smallest of what [`suggest`] finds, in one sentence; empty if nothing of this kind helps.
pub fn sentence(found: &[Suggestion]) -> String {
    found.iter().take(ADVISED).map(ToString::to_string).collect::<Vec<_>>().join("; or ")
}

/// That demands cannot be met together.
fn together(needed: &[Constraint]) -> String {
    let (sites, demands): (Vec<&Constraint>, Vec<&Constraint>) = needed.iter().partition(|one| matches!(one, Constraint::Sites(_)));
    let words = |some: &[&Constraint]| some.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let both = if demands.len() > 1 { " together" } else { "" };
    let because = if sites.is_empty() { String::new() } else { format!(": {}", words(&sites)) };
    format!("{} cannot be had{both}{because}", words(&demands))
}

/// Which demands of a policy conflict: all of these together cannot be met, and without any one of them the others could. If there are fewer
/// sites than copies, their number is said too. Empty if the policy can be met, or makes no sense in itself.
pub fn conflict(policy: &Policy, geography: &Geography<'_>) -> Vec<Constraint> {
    if policy.check().is_err() || met(policy, geography) {
        return Vec::new();
    }
    let demands = [
        Constraint::Providers(policy.max_copies_per_provider),
        Constraint::Countries(policy.countries.clone()),
        Constraint::Copies(policy.copies),
        Constraint::Far(policy.far_copies, policy.min_distance),
    ];
    let mut needed = demands.to_vec();
    for demand in &demands {
        let others: Vec<Constraint> = needed.iter().filter(|other| *other != demand).cloned().collect();
        if !met(&demanding(policy, &others), geography) {
            needed = others;
        }
    }
    let sites = populated(geography.layout).len();
    if sites < usize::from(policy.copies) {
        needed.push(Constraint::Sites(sites));
    }
    needed
}

/// A policy that demands only these things of another.
fn demanding(policy: &Policy, demands: &[Constraint]) -> Policy {
    let mut less = Policy { copies: 1, far_copies: 1, max_copies_per_provider: 0, countries: Vec::new(), ..policy.clone() };
    for demand in demands {
        match demand {
            Constraint::Copies(copies) => less.copies = *copies,
            Constraint::Far(copies, _) => less.far_copies = *copies,
            Constraint::Countries(countries) => less.countries.clone_from(countries),
            Constraint::Providers(most) => less.max_copies_per_provider = *most,
            Constraint::Sites(_) => {}
        }
    }
    less.copies = less.copies.max(less.far_copies);
    less
}

/// What would make a policy one that can be met with all its copies, the smallest change first; each is confirmed by the predicate. Empty if
/// nothing needs to change, nothing of this kind helps, or the policy makes no sense in itself.
pub fn suggest(policy: &Policy, geography: &Geography<'_>) -> Vec<Suggestion> {
    if policy.check().is_err() || met(policy, geography) {
        return Vec::new();
    }
    let mut found: Vec<Suggestion> = single_changes(policy, geography).into_iter().map(|change| with(policy, vec![change])).collect();
    if found.is_empty() {
        for first in all_changes(policy, geography) {
            let half = with(policy, vec![first.clone()]).policy;
            found.extend(single_changes(&half, geography).into_iter().map(|second| with(policy, vec![first.clone(), second])));
        }
    }
    found.extend(new_site(policy, geography).map(|site| with(policy, vec![site])));
    found.sort_by_cached_key(|suggestion| (suggestion.changes.iter().map(Change::weight).sum::<u64>(), suggestion.to_string()));
    // Of those that change the same things, the smallest.
    let mut seen: BTreeSet<Vec<(u8, String)>> = BTreeSet::new();
    found.retain(|suggestion| {
        let mut kinds: Vec<(u8, String)> = suggestion.changes.iter().map(Change::kind).collect();
        kinds.sort_unstable();
        seen.insert(kinds)
    });
    found.truncate(SUGGESTIONS_MAX);
    found
}

fn with(policy: &Policy, changes: Vec<Change>) -> Suggestion {
    let mut changed = policy.clone();
    changes.iter().for_each(|change| change.apply(&mut changed));
    Suggestion { changes, policy: changed }
}

/// Sites with a node that takes something.
fn populated(layout: &Layout) -> Vec<SiteIndex> {
    layout.site_indexes().filter(|site| layout.nodes_at(*site).any(|node| layout.duty(node) == Duty::Active)).collect()
}

/// Whether a set of sites satisfies a policy, all its copies included.
fn met(policy: &Policy, geography: &Geography<'_>) -> bool {
    let sites: Vec<SiteIndex> = populated(geography.layout).into_iter().filter(|site| allowed(policy, geography.layout, *site)).collect();
    let none = vec![0.0; sites.len()];
    let Some(family) = Family::new(policy, geography, sites) else { return false };
    family.cheapest(&none, f64::INFINITY).is_some_and(|(_, set)| {
        let set: Vec<SiteIndex> = set.into_iter().filter_map(|site| family.sites.get(site).copied()).collect();
        violations(policy, &set, geography).is_empty()
    })
}

/// For each demand the smallest change that helps alone.
fn single_changes(policy: &Policy, geography: &Geography<'_>) -> Vec<Change> {
    let helps = |change: &Change| met(&with(policy, vec![change.clone()]).policy, geography);
    let mut found: Vec<Change> = lesser_distance(policy, geography).into_iter().filter(&helps).collect();
    found.extend(fewer_copies(policy).find(&helps));
    found.extend(fewer_far_copies(policy).find(&helps));
    found.extend(more_per_provider(policy).find(&helps));
    found.extend(more_countries(policy, geography.layout).filter(&helps));
    found
}

/// Every change that might help together with another.
fn all_changes(policy: &Policy, geography: &Geography<'_>) -> Vec<Change> {
    let counts = fewer_copies(policy).chain(fewer_far_copies(policy)).chain(more_per_provider(policy));
    counts.chain(more_countries(policy, geography.layout)).collect()
}

fn fewer_copies(policy: &Policy) -> impl Iterator<Item = Change> + use<> {
    let from = policy.copies;
    (policy.far_copies..from).rev().map(move |to| Change::Copies { from, to })
}

fn fewer_far_copies(policy: &Policy) -> impl Iterator<Item = Change> + use<> {
    let from = policy.far_copies;
    (1..from).rev().map(move |to| Change::FarCopies { from, to })
}

fn more_per_provider(policy: &Policy) -> impl Iterator<Item = Change> + use<> {
    let from = policy.max_copies_per_provider;
    let most = if from == 0 { 0 } else { policy.copies };
    (from + 1..=most).map(move |to| Change::Providers { from, to })
}

fn more_countries(policy: &Policy, layout: &Layout) -> impl Iterator<Item = Change> + use<> {
    let sites = populated(layout).into_iter().filter_map(|site| layout.site(site));
    let closed: BTreeSet<String> =
        sites.map(|site| &site.country).filter(|country| !countries::allows(&policy.countries, country)).cloned().collect();
    closed.into_iter().map(Change::Country)
}

/// The greatest distance at which the policy could be met, rounded down to what people would write.
fn lesser_distance(policy: &Policy, geography: &Geography<'_>) -> Option<Change> {
    let layout = geography.layout;
    let sites: Vec<SiteIndex> = populated(layout).into_iter().filter(|site| allowed(policy, layout, *site)).collect();
    let mut pairs: Vec<(Metres, SiteIndex, SiteIndex)> = Vec::new();
    for (index, a) in sites.iter().enumerate() {
        let nearer = sites.iter().skip(index + 1).map(|b| (layout.distance(*a, *b), *a, *b));
        pairs.extend(nearer.filter(|(distance, _, _)| *distance < policy.min_distance && *distance >= DISTANCE_MIN));
    }
    pairs.sort_by_key(|(distance, a, b)| (std::cmp::Reverse(*distance), *a, *b));
    let fails = |distance: Metres| !met(&Policy { min_distance: distance, ..policy.clone() }, geography);
    let (distance, a, b) = *pairs.get(pairs.partition_point(|(distance, _, _)| fails(*distance)))?;
    let because = (layout.site_name(a).to_owned(), layout.site_name(b).to_owned(), distance);
    Some(Change::MinDistance { from: policy.min_distance, to: rounded(distance), because })
}

/// Down to ten kilometres, or to one if there are few.
fn rounded(distance: Metres) -> Metres {
    let step = if distance >= Metres::from_km(100) { 10_000 } else { 1_000 };
    Metres(distance.0 / step * step)
}

/// One more site that would do, the nearest to the others that there is.
fn new_site(policy: &Policy, geography: &Geography<'_>) -> Option<Change> {
    let helpful = CITIES.iter().filter(|(_, country, _, _)| countries::allows(&policy.countries, country));
    let helpful = helpful.filter_map(|city| {
        let (layout, site) = with_site(geography.layout, city)?;
        let far = populated(&layout).into_iter().filter(|other| *other != site).map(|other| layout.distance(site, other));
        let (total, least) = far.fold((0, Metres(u64::MAX)), |(total, least), next| (total + next.0, least.min(next)));
        let extended = Geography { layout: &layout, refuted: geography.refuted };
        (least >= SAME_PLACE && met(policy, &extended)).then_some((total, city))
    });
    let (_, (city, country, latitude, longitude)) = helpful.min_by_key(|(total, (name, ..))| (*total, *name))?;
    let coordinates = Coordinates::new(*latitude, *longitude).ok()?;
    Some(Change::Site { city: (*city).to_owned(), country: (*country).to_owned(), coordinates })
}

/// The layout with a site and a node in that city.
fn with_site(layout: &Layout, (_, country, latitude, longitude): &City) -> Option<(Layout, SiteIndex)> {
    let unused = |what: &str| {
        (0..).map(|n| format!("{what}{n}")).find(|name| layout.site_named(name).is_none() && layout.node_named(name).is_none())
    };
    let name = unused("new")?;
    let (mut sites, mut nodes) = (layout.sites().to_vec(), layout.nodes().to_vec());
    sites.push(Site {
        name: name.clone(),
        coordinates: Coordinates::new(*latitude, *longitude).ok()?,
        uncertainty: Metres(0),
        country: (*country).to_owned(),
        provider: String::new(),
        duty: Duty::Active,
    });
    nodes.push(Node { name: name.clone(), site: name.clone(), capacity: 1, endpoint: String::new(), duty: Duty::Active });
    let layout = Layout::new(layout.version(), layout.partitions(), sites, nodes).ok()?;
    let site = layout.site_named(&name)?;
    Some((layout, site))
}
