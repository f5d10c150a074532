//! Where copies may be. One predicate, [`violations`], is what the writer, the reader, the status and the demo ask;
//! [`Placement`] derives from it which nodes a partition is assigned to and who may stand in for them.
use crate::{
    assignment::Assignment,
    id::{BucketId, RecordId},
    layout::{Duty, Layout, NodeIndex, SiteIndex},
    policy::{Durability, Policy, PolicyError, VerifyDistance},
    units::Metres,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// The layout, and what physics said about it.
#[derive(Debug, Clone)]
pub struct Geography<'a> {
    /// Sites and their claimed distances.
    pub layout: &'a Layout,
    /// Pairs of sites that a measured round trip refutes, each with the lower index first.
    pub refuted: &'a BTreeSet<(SiteIndex, SiteIndex)>,
}

/// No pair refuted.
pub static NOTHING_REFUTED: BTreeSet<(SiteIndex, SiteIndex)> = BTreeSet::new();

impl<'a> Geography<'a> {
    /// The layout's claims, taken at their word.
    pub fn claimed(layout: &'a Layout) -> Self {
        Self { layout, refuted: &NOTHING_REFUTED }
    }

    /// Whether two sites count as far apart under a policy.
    pub fn far(&self, policy: &Policy, a: SiteIndex, b: SiteIndex) -> bool {
        a != b && !self.refuses(policy, a, b) && self.layout.distance(a, b) >= policy.min_distance
    }

    /// Whether a measured round trip keeps two sites from counting as far, whatever their coordinates say: only where the
    /// policy minds.
    pub fn refuses(&self, policy: &Policy, a: SiteIndex, b: SiteIndex) -> bool {
        policy.verify_distance == VerifyDistance::Enforce && self.refuted.contains(&(a.min(b), a.max(b)))
    }

    /// The most of these sites that are pairwise far apart, and which: at most `wanted` are looked for.
    pub fn farthest_group(&self, policy: &Policy, sites: &[SiteIndex], wanted: usize) -> Vec<SiteIndex> {
        let far = |group: &[SiteIndex], site| group.iter().all(|member| self.far(policy, *member, site));
        largest_group(sites, wanted, &far)
    }

    /// The same among groups that also keep to the policy's most copies per provider.
    fn farthest_group_that_counts(&self, policy: &Policy, sites: &[SiteIndex], wanted: usize) -> Vec<SiteIndex> {
        let far = |group: &[SiteIndex], site| group.iter().all(|member| self.far(policy, *member, site));
        let room = |group: &[SiteIndex], site| {
            let provider = provider_of(self.layout, site);
            group.iter().filter(|member| provider_of(self.layout, **member) == provider).count() < most_at(policy, provider)
        };
        largest_group(sites, wanted, &|group, site| far(group, site) && room(group, site))
    }

    /// The greatest distance between any two of these sites.
    pub fn greatest_distance(&self, sites: &[SiteIndex]) -> Metres {
        let pairs = sites.iter().flat_map(|a| sites.iter().map(move |b| (*a, *b)));
        pairs.map(|(a, b)| self.layout.distance(a, b)).max().unwrap_or_default()
    }
}

fn distinct(sites: &[SiteIndex]) -> Vec<SiteIndex> {
    sites.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
}

/// The largest group to which `admits` let every member, at most `wanted` of them. `admits` must not depend on the order
/// of a group, nor admit to a larger group what it keeps out of a smaller.
fn largest_group(sites: &[SiteIndex], wanted: usize, admits: &dyn Fn(&[SiteIndex], SiteIndex) -> bool) -> Vec<SiteIndex> {
    let mut best = Vec::new();
    grow(&mut Vec::new(), &distinct(sites), wanted, admits, &mut best);
    best
}

/// Branch and bound; every one of `rest` may join `group`. Sites are few ([`crate::limits::SITES_MAX`]) and groups small,
/// so this is fast; it stops at the first group of `wanted`.
fn grow(
    group: &mut Vec<SiteIndex>,
    rest: &[SiteIndex],
    wanted: usize,
    admits: &dyn Fn(&[SiteIndex], SiteIndex) -> bool,
    best: &mut Vec<SiteIndex>,
) {
    if group.len() > best.len() {
        best.clone_from(group);
    }
    let Some((&first, others)) = rest.split_first() else { return };
    if best.len() >= wanted || group.len() + rest.len() <= best.len() {
        return;
    }
    group.push(first);
    let fitting: Vec<SiteIndex> = others.iter().copied().filter(|other| admits(group, *other)).collect();
    grow(group, &fitting, wanted, admits, best);
    group.pop();
    grow(group, others, wanted, admits, best);
}

/// Why a set of holders does not satisfy a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Fewer distinct sites than `copies`.
    Copies {
        /// Distinct sites that hold a copy.
        have: usize,
        /// What the policy asks for.
        want: usize,
    },
    /// Fewer pairwise far sites than `far_copies`.
    Far {
        /// The most that are pairwise far apart.
        have: usize,
        /// What the policy asks for.
        want: usize,
        /// What the policy calls far.
        min_distance: Metres,
        /// The greatest distance between any two of the holders.
        greatest: Metres,
    },
    /// A copy in a country that the policy does not allow.
    Country {
        /// The site.
        site: SiteIndex,
    },
    /// More copies at one provider than the policy allows.
    Provider {
        /// Whose sites.
        provider: String,
        /// Copies there.
        have: usize,
        /// What the policy allows.
        most: usize,
    },
}

impl Violation {
    /// In words, with names from the layout.
    pub fn explain(&self, layout: &Layout) -> String {
        match self {
            Self::Copies { have, want } => format!("{have} of {want} copies"),
            Self::Far { have, want, min_distance, greatest } => {
                format!("{have} of {want} copies are pairwise at least {min_distance} apart (the farthest two are {greatest} apart)")
            }
            Self::Country { site } => {
                format!(
                    "{} is in {}, which the policy does not allow",
                    layout.site_name(*site),
                    layout.site(*site).map_or("?", |s| &s.country)
                )
            }
            Self::Provider { provider, have, most } => format!("{have} copies at provider {provider:?}, at most {most} allowed"),
        }
    }
}

/// Everything that speaks against calling a record kept as `policy` says, if the verified copies are at `holders`.
/// Empty means that the policy is met. Sites count, not nodes: a site named twice counts once (rule 7).
pub fn violations(policy: &Policy, holders: &[SiteIndex], geography: &Geography<'_>) -> Vec<Violation> {
    let holders = distinct(holders);
    let mut found = Vec::new();
    if holders.len() < usize::from(policy.copies) {
        found.push(Violation::Copies { have: holders.len(), want: usize::from(policy.copies) });
    }
    let far = geography.farthest_group(policy, &holders, usize::from(policy.far_copies)).len();
    if far < usize::from(policy.far_copies) {
        let greatest = geography.greatest_distance(&holders);
        found.push(Violation::Far { have: far, want: usize::from(policy.far_copies), min_distance: policy.min_distance, greatest });
    }
    found.extend(holders.iter().filter(|site| !allowed(policy, geography.layout, **site)).map(|site| Violation::Country { site: *site }));
    found.extend(provider_violations(policy, &holders, geography.layout));
    found
}

/// Whether the policy lets a site hold a copy at all.
pub fn allowed(policy: &Policy, layout: &Layout, site: SiteIndex) -> bool {
    layout.site(site).is_some_and(|site| crate::countries::allows(&policy.countries, &site.country))
}

/// A site's provider; empty where it is not said.
pub(crate) fn provider_of(layout: &Layout, site: SiteIndex) -> &str {
    layout.site(site).map_or("", |site| &site.provider)
}

/// The most copies that a policy lets one provider have. Providers that are not named are not known to be the same.
pub(crate) fn most_at(policy: &Policy, provider: &str) -> usize {
    if policy.max_copies_per_provider == 0 || provider.is_empty() { usize::MAX } else { usize::from(policy.max_copies_per_provider) }
}

/// How many of these distinct sites each provider has.
fn per_provider<'a>(holders: &[SiteIndex], layout: &'a Layout) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for site in holders {
        *counts.entry(provider_of(layout, *site)).or_default() += 1;
    }
    counts
}

fn provider_violations(policy: &Policy, holders: &[SiteIndex], layout: &Layout) -> Vec<Violation> {
    per_provider(holders, layout)
        .into_iter()
        .filter(|(provider, have)| *have > most_at(policy, provider))
        .map(|(provider, have)| Violation::Provider { provider: provider.to_owned(), have, most: most_at(policy, provider) })
        .collect()
}

/// The highest level that copies at these sites amount to; `None` without a copy. Copies that the policy does not allow
/// (in another country, or one too many at a provider) do not count, but a copy too many takes nothing from the others:
/// the level is the best that any of the copies amount to.
pub fn level(policy: &Policy, holders: &[SiteIndex], geography: &Geography<'_>) -> Option<Durability> {
    let layout = geography.layout;
    let eligible: Vec<SiteIndex> = distinct(holders).into_iter().filter(|site| allowed(policy, layout, *site)).collect();
    if eligible.is_empty() {
        return None;
    }
    let wanted = usize::from(policy.far_copies);
    if geography.farthest_group_that_counts(policy, &eligible, wanted).len() < wanted {
        return Some(Durability::Local);
    }
    // Any such group can be filled up with the others until every provider has its most.
    let counted: usize = per_provider(&eligible, layout).into_iter().map(|(provider, have)| have.min(most_at(policy, provider))).sum();
    Some(if counted < usize::from(policy.copies) { Durability::Far } else { Durability::Full })
}

/// A slice of the hash space: the first bits of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u32);

impl Partition {
    /// Of a chunk or manifest, or of anything that is placed by its own id.
    pub fn of_record(id: &RecordId, partitions: u32) -> Self {
        Self::of_bytes(id.as_bytes(), partitions)
    }

    /// Of a key's versions: those of one shard are placed together, so that a listing asks few nodes.
    pub fn of_version(bucket: &BucketId, key: &str, shards: u16, partitions: u32) -> Self {
        Self::of_shard(bucket, shard_of(key, shards), partitions)
    }

    /// Of a shard of a bucket.
    pub fn of_shard(bucket: &BucketId, shard: u16, partitions: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("afar 2026 partition of a bucket's shard");
        hasher.update(bucket.as_bytes()).update(&shard.to_le_bytes());
        Self::of_bytes(hasher.finalize().as_bytes(), partitions)
    }

    /// The top bits; `partitions` is a power of two, so partitions are ranges of ids.
    fn of_bytes(bytes: &[u8; 32], partitions: u32) -> Self {
        let [a, b, c, d, ..] = *bytes;
        let bits = partitions.max(1).ilog2();
        Self(if bits == 0 { 0 } else { u32::from_be_bytes([a, b, c, d]) >> (32 - bits) })
    }
}

/// The shard of a key: by its hash, so that neighbours spread.
pub fn shard_of(key: &str, shards: u16) -> u16 {
    let [a, b, c, d, ..] = *blake3::hash(key.as_bytes()).as_bytes();
    (u32::from_le_bytes([a, b, c, d]) % u32::from(shards.max(1))) as u16
}

/// Which nodes hold what under one policy: for every partition the assigned nodes, and who may stand in.
///
/// Assignments are computed for every record, so what can be hashed beforehand is: a look-up costs a few nanoseconds per
/// set of sites.
#[derive(Debug, Clone)]
pub struct Placement {
    /// What was planned, if anything was: then it counts, and what follows is derived only for those who stand in.
    plan: Option<Arc<Assignment>>,
    sets: Vec<Vec<SiteIndex>>,
    /// What rendezvous hashing mixes with the partition, for each of `sets`.
    set_seeds: Vec<u64>,
    complete: bool,
    eligible: Vec<NodeIndex>,
    /// The nodes at each site, each with its seed.
    nodes_at: Vec<Vec<(NodeIndex, u64)>>,
}

/// No set of sites satisfies a policy: what was considered, and why it failed.
#[derive(Debug, Clone, PartialEq)]
pub enum Infeasible {
    /// The policy makes no sense in itself.
    Policy(PolicyError),
    /// The policy's home is not a site.
    UnknownHome(String),
    /// Not enough sites far enough apart.
    NotFar {
        /// What the policy asks for.
        want: usize,
        /// What the policy calls far.
        min_distance: Metres,
        /// Every pair of sites that may hold a copy, with its distance, and whether a round trip keeps it from counting; the
        /// farthest first.
        pairs: Vec<(String, String, Metres, bool)>,
        /// Sites that may hold none, and why.
        excluded: Vec<(String, String)>,
    },
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(error) => write!(f, "{error}"),
            Self::UnknownHome(home) => write!(f, "home {home:?} is not a site of the layout"),
            Self::NotFar { want, min_distance, pairs, excluded } => {
                write!(f, "no {want} sites that may hold a copy are pairwise at least {min_distance} apart")?;
                for (index, (a, b, distance, refuted)) in pairs.iter().enumerate() {
                    let refuted = if *refuted { " (refuted by the measured round trip)" } else { "" };
                    write!(f, "{} {a}-{b} {distance}{refuted}", if index == 0 { ":" } else { "," })?;
                }
                for (site, why) in excluded {
                    write!(f, "; {site}: {why}")?;
                }
                if let Some((a, b, distance, false)) = pairs.first() {
                    write!(f, "; add a site, or lower min_distance to {distance} ({a}-{b})")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Infeasible {}

/// Sets are enumerated only up to this many, to bound work on large layouts; the first found are the least in index
/// order, and all nodes enumerate alike.
const SETS_MAX: usize = 4096;
/// Of each size only so many sets are tried: all there are of up to 18 sites. On larger layouts a policy of many copies that
/// hardly any set satisfies may get fewer copies than could be had, which every report says; it does not keep nodes busy for days.
const TRIED_MAX: usize = 1 << 16;

impl Placement {
    /// Finds the sets of sites that satisfy a policy. Where `copies` cannot be had, sets that are still far are used,
    /// and every report says that a copy is missing.
    ///
    /// # Errors
    /// If no set of sites is far: then nothing can be acknowledged.
    pub fn new(policy: &Policy, geography: &Geography<'_>) -> Result<Self, Infeasible> {
        let derived = Self::derive(policy, geography)?;
        Ok(Self { plan: geography.layout.plan(policy).cloned(), ..derived })
    }

    /// As [`Placement::new`], without looking for a plan.
    ///
    /// # Errors
    /// As [`Placement::new`].
    pub fn derive(policy: &Policy, geography: &Geography<'_>) -> Result<Self, Infeasible> {
        policy.check().map_err(Infeasible::Policy)?;
        let layout = geography.layout;
        let home = match &policy.home {
            Some(name) => Some(layout.site_named(name).ok_or_else(|| Infeasible::UnknownHome(name.clone()))?),
            None => None,
        };
        let takes = |node: &NodeIndex| layout.duty(*node) == Duty::Active;
        let populated = |site: &SiteIndex| layout.nodes_at(*site).any(|node| takes(&node));
        let candidates: Vec<SiteIndex> = layout.site_indexes().filter(|site| allowed(policy, layout, *site)).filter(populated).collect();
        let may_hold = |node: &NodeIndex| layout.site_of(*node).is_some_and(|site| candidates.contains(&site));
        let eligible = layout.node_indexes().filter(may_hold).filter(takes).collect();
        let far = usize::from(policy.far_copies);
        let farthest = geography.farthest_group(policy, &candidates, far);
        if farthest.len() < far {
            return Err(not_far(policy, geography, &candidates));
        }
        let fits = |set: &[SiteIndex]| violations(policy, set, geography).iter().all(|why| matches!(why, Violation::Copies { .. }));
        // More than that no set can have, so none of such a size is looked for.
        let most: usize = per_provider(&candidates, layout).into_iter().map(|(provider, sites)| sites.min(most_at(policy, provider))).sum();
        for copies in (far..=most.min(usize::from(policy.copies))).rev() {
            let (mut sets, mut tried) = (Vec::new(), 0);
            enumerate(&mut Vec::new(), &candidates, copies, &mut |set| {
                if fits(set) {
                    sets.push(set.to_vec());
                }
                tried += 1;
                sets.len() < SETS_MAX && tried < TRIED_MAX
            });
            if copies == far && sets.is_empty() && fits(&farthest) {
                sets.push(farthest.clone());
            }
            if home.is_some_and(|home| sets.iter().any(|set| set.contains(&home))) {
                sets.retain(|set| home.is_some_and(|home| set.contains(&home)));
            }
            if !sets.is_empty() {
                let set_seeds = sets.iter().map(|set| set_seed(layout, set)).collect();
                let nodes_at = layout.site_indexes().map(|site| seeded_nodes(layout, site)).collect();
                return Ok(Self { plan: None, sets, set_seeds, complete: copies == usize::from(policy.copies), eligible, nodes_at });
            }
        }
        Err(not_far(policy, geography, &candidates))
    }

    /// Whether every assignment has all of the policy's copies.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// The nodes that may hold a copy, assigned or standing in.
    pub fn eligible(&self) -> &[NodeIndex] {
        &self.eligible
    }

    /// The distinct sets of sites in use.
    pub fn sets(&self) -> &[Vec<SiteIndex>] {
        &self.sets
    }

    /// The nodes that a partition is assigned to, one at each site of its set, the home first. `policy` and `layout` are
    /// those that this was made of.
    pub fn assigned(&self, policy: &Policy, layout: &Layout, partition: Partition) -> Vec<NodeIndex> {
        if let Some(plan) = &self.plan {
            return plan.nodes(partition).to_vec();
        }
        let best = self.sets.iter().zip(&self.set_seeds).max_by_key(|(_, seed)| score(**seed, partition));
        let Some((set, _)) = best else { return Vec::new() };
        let mut nodes: Vec<NodeIndex> = Vec::with_capacity(set.len());
        for site in set {
            let at_site = self.nodes_at.get(usize::from(site.0)).map(Vec::as_slice).unwrap_or_default();
            let Some((node, _)) = at_site.iter().max_by_key(|(_, seed)| score(*seed, partition)) else { continue };
            let is_home = policy.home.as_deref().is_some_and(|home| home == layout.site_name(*site));
            nodes.insert(if is_home { 0 } else { nodes.len() }, *node);
        }
        nodes
    }

    /// Who may stand in for an assigned node that does not answer, in the order to try.
    pub fn fallback(&self, policy: &Policy, layout: &Layout, partition: Partition) -> Vec<NodeIndex> {
        let assigned = self.assigned(policy, layout, partition);
        let stands_in = |node: &NodeIndex| self.eligible.contains(node) && !assigned.contains(node);
        let mut others: Vec<(NodeIndex, u64)> = self.nodes_at.iter().flatten().filter(|(node, _)| stands_in(node)).copied().collect();
        others.sort_by_key(|(_, seed)| std::cmp::Reverse(score(*seed, partition)));
        others.into_iter().map(|(node, _)| node).collect()
    }
}

pub(crate) fn not_far(policy: &Policy, geography: &Geography<'_>, candidates: &[SiteIndex]) -> Infeasible {
    let layout = geography.layout;
    let mut pairs = Vec::new();
    for (index, a) in candidates.iter().enumerate() {
        for b in candidates.iter().skip(index + 1) {
            let refuted = geography.refuses(policy, *a, *b);
            pairs.push((layout.site_name(*a).to_owned(), layout.site_name(*b).to_owned(), layout.distance(*a, *b), refuted));
        }
    }
    pairs.sort_by_key(|(_, _, distance, _)| std::cmp::Reverse(*distance));
    let excluded = layout.site_indexes().filter(|site| !candidates.contains(site)).map(|site| {
        let why = match allowed(policy, layout, site) {
            false => "its country is not allowed",
            true if layout.nodes_at(site).next().is_none() => "has no node",
            true => "no node of it takes anything",
        };
        (layout.site_name(site).to_owned(), why.to_owned())
    });
    Infeasible::NotFar { want: usize::from(policy.far_copies), min_distance: policy.min_distance, pairs, excluded: excluded.collect() }
}

/// Calls `visit` with every subset of `size`; stops when it returns false.
fn enumerate(chosen: &mut Vec<SiteIndex>, rest: &[SiteIndex], size: usize, visit: &mut dyn FnMut(&[SiteIndex]) -> bool) -> bool {
    if chosen.len() == size {
        return visit(chosen);
    }
    for (index, site) in rest.iter().enumerate() {
        if rest.len() - index < size - chosen.len() {
            break;
        }
        chosen.push(*site);
        let go_on = enumerate(chosen, rest.get(index + 1..).unwrap_or_default(), size, visit);
        chosen.pop();
        if !go_on {
            return false;
        }
    }
    true
}

/// Rendezvous hashing (Thaler and Ravishankar 1998): the highest score wins, so that a change of the layout moves little.
/// The seed is a good hash already; this only has to mix the partition into it, with the finaliser of SplitMix64 (Steele,
/// Lea and Flood 2014).
const fn score(seed: u64, partition: Partition) -> u64 {
    let mut z = seed ^ (partition.0 as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// By names, so that the order in a file does not matter.
fn seed<'a>(purpose: &str, names: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    for name in names {
        hasher.update(name.as_bytes()).update(b"\0");
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn set_seed(layout: &Layout, set: &[SiteIndex]) -> u64 {
    let mut names: Vec<&str> = set.iter().map(|site| layout.site_name(*site)).collect();
    names.sort_unstable();
    seed("afar 2026 rendezvous of a set of sites", names.into_iter())
}

fn seeded_nodes(layout: &Layout, site: SiteIndex) -> Vec<(NodeIndex, u64)> {
    let seed_of = |node| seed("afar 2026 rendezvous of a node", std::iter::once(layout.node_name(node)));
    layout.nodes_at(site).filter(|node| layout.duty(*node) == Duty::Active).map(|node| (node, seed_of(node))).collect()
}

/// Every holder's site, for callers that think in nodes.
pub fn sites_of(layout: &Layout, nodes: impl IntoIterator<Item = NodeIndex>) -> Vec<SiteIndex> {
    distinct(&nodes.into_iter().filter_map(|node| layout.site_of(node)).collect::<Vec<_>>())
}
