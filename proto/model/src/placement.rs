//! Where copies may be. One predicate, [`violations`], is what the writer, the reader, the status and the demo ask;
//! [`Placement`] derives from it which nodes a partition is assigned to and who may stand in for them.
use crate::{
    id::{BucketId, RecordId},
    layout::{Layout, NodeIndex, SiteIndex},
    policy::{Durability, Policy, PolicyError, VerifyDistance},
    units::Metres,
};
use std::{collections::BTreeSet, fmt};

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
        let refuted = policy.verify_distance == VerifyDistance::Enforce && self.refuted.contains(&(a.min(b), a.max(b)));
        a != b && !refuted && self.layout.distance(a, b) >= policy.min_distance
    }

    /// The most of these sites that are pairwise far apart, and which: at most `wanted` are looked for.
    pub fn farthest_group(&self, policy: &Policy, sites: &[SiteIndex], wanted: usize) -> Vec<SiteIndex> {
        let mut best = Vec::new();
        grow(&mut Vec::new(), &distinct(sites), wanted, &|a, b| self.far(policy, a, b), &mut best);
        best
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

/// Branch and bound for a group whose members all pairwise agree. Sites are few ([`crate::limits::SITES_MAX`]) and
/// groups small, so this is fast; it stops at the first group of `wanted`.
fn grow(
    group: &mut Vec<SiteIndex>,
    rest: &[SiteIndex],
    wanted: usize,
    far: &dyn Fn(SiteIndex, SiteIndex) -> bool,
    best: &mut Vec<SiteIndex>,
) {
    if group.len() > best.len() {
        best.clone_from(group);
    }
    let Some((&first, others)) = rest.split_first() else { return };
    if best.len() >= wanted || group.len() + rest.len() <= best.len() {
        return;
    }
    let fitting: Vec<SiteIndex> = others.iter().copied().filter(|other| far(first, *other)).collect();
    group.push(first);
    grow(group, &fitting, wanted, far, best);
    group.pop();
    grow(group, others, wanted, far, best);
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
    layout.site(site).is_some_and(|site| policy.countries.is_empty() || policy.countries.contains(&site.country))
}

fn provider_violations(policy: &Policy, holders: &[SiteIndex], layout: &Layout) -> Vec<Violation> {
    let most = usize::from(policy.max_copies_per_provider);
    let providers: BTreeSet<&str> = holders.iter().filter_map(|site| layout.site(*site)).map(|site| site.provider.as_str()).collect();
    let count = |provider: &str| holders.iter().filter(|site| layout.site(**site).is_some_and(|site| site.provider == provider)).count();
    providers
        .into_iter()
        .filter(|provider| most > 0 && !provider.is_empty())
        .map(|provider| (provider, count(provider)))
        .filter(|(_, have)| *have > most)
        .map(|(provider, have)| Violation::Provider { provider: provider.to_owned(), have, most })
        .collect()
}

/// The highest level that copies at these sites amount to; `None` without a copy. Copies where the policy allows none
/// do not count.
pub fn level(policy: &Policy, holders: &[SiteIndex], geography: &Geography<'_>) -> Option<Durability> {
    let eligible: Vec<SiteIndex> = holders.iter().copied().filter(|site| allowed(policy, geography.layout, *site)).collect();
    if eligible.is_empty() {
        return None;
    }
    let found = violations(policy, &eligible, geography);
    if found.is_empty() {
        Some(Durability::Full)
    } else if found.iter().any(|violation| matches!(violation, Violation::Far { .. } | Violation::Provider { .. })) {
        Some(Durability::Local)
    } else {
        Some(Durability::Far)
    }
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
#[derive(Debug, Clone)]
pub struct Placement {
    sets: Vec<Vec<SiteIndex>>,
    complete: bool,
    eligible: Vec<NodeIndex>,
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
        /// Every pair of sites that may hold a copy, with its distance, the farthest first.
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

impl Placement {
    /// Finds the sets of sites that satisfy a policy. Where `copies` cannot be had, sets that are still far are used,
    /// and every report says that a copy is missing.
    ///
    /// # Errors
    /// If no set of sites is far: then nothing can be acknowledged.
    pub fn new(policy: &Policy, geography: &Geography<'_>) -> Result<Self, Infeasible> {
        policy.check().map_err(Infeasible::Policy)?;
        let layout = geography.layout;
        let home = match &policy.home {
            Some(name) => Some(layout.site_named(name).ok_or_else(|| Infeasible::UnknownHome(name.clone()))?),
            None => None,
        };
        let populated = |site: &SiteIndex| layout.nodes_at(*site).next().is_some();
        let candidates: Vec<SiteIndex> = layout.site_indexes().filter(|site| allowed(policy, layout, *site)).filter(populated).collect();
        let eligible = layout.node_indexes().filter(|node| layout.site_of(*node).is_some_and(|site| candidates.contains(&site))).collect();
        for copies in (usize::from(policy.far_copies)..=usize::from(policy.copies)).rev() {
            let mut sets = Vec::new();
            enumerate(&mut Vec::new(), &candidates, copies, &mut |set| {
                if level(policy, set, geography) >= Some(Durability::Far) {
                    sets.push(set.to_vec());
                }
                sets.len() < SETS_MAX
            });
            if home.is_some_and(|home| sets.iter().any(|set| set.contains(&home))) {
                sets.retain(|set| home.is_some_and(|home| set.contains(&home)));
            }
            if !sets.is_empty() {
                return Ok(Self { sets, complete: copies == usize::from(policy.copies), eligible });
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

    /// The nodes that a partition is assigned to, one at each site of its set, the home first.
    pub fn assigned(&self, policy: &Policy, layout: &Layout, partition: Partition) -> Vec<NodeIndex> {
        let Some(set) = self.sets.iter().max_by_key(|set| set_score(partition, layout, set)) else { return Vec::new() };
        let mut set = set.clone();
        set.sort_by_key(|site| policy.home.as_deref() != Some(layout.site_name(*site)));
        set.iter().filter_map(|site| layout.nodes_at(*site).max_by_key(|node| node_score(partition, layout, *node))).collect()
    }

    /// Who may stand in for an assigned node that does not answer, in the order to try.
    pub fn fallback(&self, policy: &Policy, layout: &Layout, partition: Partition) -> Vec<NodeIndex> {
        let assigned = self.assigned(policy, layout, partition);
        let mut others: Vec<NodeIndex> = self.eligible.iter().copied().filter(|node| !assigned.contains(node)).collect();
        others.sort_by_key(|node| std::cmp::Reverse(node_score(partition, layout, *node)));
        others
    }
}

fn not_far(policy: &Policy, geography: &Geography<'_>, candidates: &[SiteIndex]) -> Infeasible {
    let layout = geography.layout;
    let mut pairs = Vec::new();
    for (index, a) in candidates.iter().enumerate() {
        for b in candidates.iter().skip(index + 1) {
            let refuted = geography.refuted.contains(&(*a.min(b), *a.max(b)));
            pairs.push((layout.site_name(*a).to_owned(), layout.site_name(*b).to_owned(), layout.distance(*a, *b), refuted));
        }
    }
    pairs.sort_by_key(|(_, _, distance, _)| std::cmp::Reverse(*distance));
    let excluded = layout.site_indexes().filter(|site| !candidates.contains(site)).map(|site| {
        let why = if allowed(policy, layout, site) { "has no node".to_owned() } else { "its country is not allowed".to_owned() };
        (layout.site_name(site).to_owned(), why)
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

/// Rendezvous hashing (Thaler and Ravishankar 1998) by names, so that a node's index does not matter and a change of
/// the layout moves little.
fn score<'a>(partition: Partition, names: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("afar 2026 rendezvous");
    hasher.update(&partition.0.to_le_bytes());
    for name in names {
        hasher.update(name.as_bytes()).update(b"\0");
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn set_score(partition: Partition, layout: &Layout, set: &[SiteIndex]) -> u64 {
    let mut names: Vec<&str> = set.iter().map(|site| layout.site_name(*site)).collect();
    names.sort_unstable();
    score(partition, names.into_iter())
}

fn node_score(partition: Partition, layout: &Layout, node: NodeIndex) -> u64 {
    score(partition, std::iter::once(layout.node_name(node)))
}

/// Every holder's site, for callers that think in nodes.
pub fn sites_of(layout: &Layout, nodes: impl IntoIterator<Item = NodeIndex>) -> Vec<SiteIndex> {
    distinct(&nodes.into_iter().filter_map(|node| layout.site_of(node)).collect::<Vec<_>>())
}
