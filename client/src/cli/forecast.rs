//! What a change of the layout would copy, from where to where and for how long, and whether what is stored would still fit
//! without any one site. Counted is what `afar status` counts; what nobody says is unknown, and never 0.
use super::{policy, units};
use crate::{
    cluster::operator::{Draft, Planned, Repromised, Said},
    limits,
    status::{ClusterStatus, merge::Stored},
};
use afar_model::{
    layout::{Duty, Layout, NodeIndex},
    placement::Geography,
    plan::{self, Survivor, Usable},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What the cluster says of what it stores, and of how fast it moves it.
#[derive(Debug)]
pub struct Known {
    stored: Option<Stored>,
    /// Whether what would move is known at all: no node, no buckets, and no plan for them.
    heard: bool,
    /// Ids by name.
    buckets: BTreeMap<String, BTreeSet<Vec<u8>>>,
    /// Bytes a second by node, of those whose configuration sets a pace.
    paces: BTreeMap<String, u64>,
}

/// Bytes, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amount {
    Known(u64),
    AtLeast(u64),
    Unknown,
}

impl Amount {
    fn value(self) -> Option<u64> {
        match self {
            Self::Known(bytes) | Self::AtLeast(bytes) => Some(bytes),
            Self::Unknown => None,
        }
    }

    fn map(self, change: impl Fn(u64) -> u64) -> Self {
        match self {
            Self::Known(bytes) => Self::Known(change(bytes)),
            Self::AtLeast(bytes) => Self::AtLeast(change(bytes)),
            Self::Unknown => Self::Unknown,
        }
    }

    fn words(self) -> String {
        match self {
            Self::Known(bytes) => format!("about {}", units::bytes(bytes)),
            Self::AtLeast(bytes) => format!("{} or more", units::bytes(bytes)),
            Self::Unknown => "nobody says how many bytes".to_owned(),
        }
    }
}

impl Known {
    /// From what nodes said; without a status nothing is known.
    pub fn new(said: &[Said], status: Option<&ClusterStatus>) -> Self {
        let mut buckets: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for (id, name, _) in said.iter().flat_map(|said| &said.buckets) {
            buckets.entry(name.clone()).or_default().insert(id.as_bytes().to_vec());
        }
        let nodes = status.into_iter().flat_map(|status| &status.sites).flat_map(|site| &site.nodes);
        let paces = nodes.filter_map(|node| Some((node.name.clone(), node.rebalance_pace?))).collect();
        Self { stored: status.map(|status| status.stored.clone()), heard: !said.is_empty(), buckets, paces }
    }

    /// For a change that plans nothing anew: nobody needs to be asked.
    pub fn nothing_moves() -> Self {
        Self { stored: None, heard: true, buckets: BTreeMap::new(), paces: BTreeMap::new() }
    }

    fn total(&self) -> Amount {
        match &self.stored {
            Some(stored) if stored.complete => Amount::Known(stored.total()),
            Some(stored) => Amount::AtLeast(stored.total()),
            None => Amount::Unknown,
        }
    }

    /// What is stored in these buckets.
    fn within<'a>(&self, names: impl Iterator<Item = &'a String>) -> Amount {
        let ids: BTreeSet<&Vec<u8>> = names.filter_map(|name| self.buckets.get(name)).flatten().collect();
        let bytes = |stored: &Stored| ids.iter().filter_map(|id| stored.buckets.get(*id)).fold(0, |sum: u64, one| sum.saturating_add(*one));
        self.stored.as_ref().map_or(Amount::Unknown, |stored| self.total().map(|_| bytes(stored)))
    }
}

/// Copies of some buckets that a node gets.
#[derive(Debug, Clone, Copy)]
struct Copies {
    from: Option<NodeIndex>,
    to: NodeIndex,
    partitions: u32,
    bytes: Amount,
}

/// A draft with what is known of the cluster.
#[derive(Debug)]
pub struct Forecast<'a> {
    draft: &'a Draft,
    known: &'a Known,
    /// Of each plan: sites in use, and what their loss would leave.
    survivors: Vec<Vec<Survivor>>,
}

impl<'a> Forecast<'a> {
    /// Of that draft.
    pub fn new(draft: &'a Draft, known: &'a Known) -> Self {
        Self { draft, known, survivors: survivors(draft, known) }
    }

    fn name(&self, node: NodeIndex) -> String {
        self.draft.layout.node_name(node).to_owned()
    }

    fn copies(&self, moves: Vec<plan::Move>, stored: Amount) -> Vec<Copies> {
        let partitions = u128::from(self.draft.layout.partitions().max(1));
        // Names are hashes, so partitions grow alike.
        let share = |count: u32| move |bytes: u64| u64::try_from(u128::from(bytes) * u128::from(count) / partitions).unwrap_or(u64::MAX);
        moves
            .into_iter()
            .map(|m| Copies { from: m.from, to: m.to, partitions: m.partitions, bytes: stored.map(share(m.partitions)) })
            .collect()
    }

    /// What moves of a bucket that is promised something else.
    fn of_changed(&self, changed: &Repromised) -> Vec<Copies> {
        let both = changed.previous.as_ref().zip(changed.assignment.as_ref());
        let moves = both.map(|(previous, next)| plan::moves(previous, next, &|_| 0)).unwrap_or_default();
        self.copies(moves, self.known.within(std::iter::once(&changed.bucket)))
    }

    /// Of those that a policy has and keeps.
    fn kept<'b>(&'b self, planned: &'b Planned) -> impl Iterator<Item = &'b String> {
        planned.buckets.iter().filter(|bucket| self.draft.changed.iter().all(|changed| changed.bucket != **bucket))
    }

    /// What moves of a policy's buckets, but for those that [`Self::of_changed`] tells of. Nothing if it tells of all.
    fn of_planned(&self, planned: &Planned) -> Vec<Copies> {
        if !planned.buckets.is_empty() && self.kept(planned).next().is_none() {
            return Vec::new();
        }
        let moves = planned.previous.as_ref().map(|previous| plan::moves(previous, &planned.assignment, &|_| 0)).unwrap_or_default();
        self.copies(moves, self.known.within(self.kept(planned)))
    }

    fn all_copies(&self) -> Vec<Copies> {
        let changed = self.draft.changed.iter().flat_map(|changed| self.of_changed(changed));
        changed.chain(self.draft.plans.iter().flat_map(|planned| self.of_planned(planned))).collect()
    }

    fn copy_lines(&self, copies: &[Copies]) -> Vec<String> {
        let partitions = self.draft.layout.partitions();
        let line = |copies: &Copies| {
            let from = copies.from.map_or_else(|| "a further copy".to_owned(), |node| self.name(node));
            let (to, count) = (self.name(copies.to), copies.partitions);
            let share = f64::from(count) * 100.0 / f64::from(partitions.max(1));
            format!("  {from} -> {to}: {}, {count} of {partitions} partitions ({share:.1} %)", copies.bytes.words())
        };
        if copies.is_empty() { vec!["  nothing moves".into()] } else { copies.iter().map(line).collect() }
    }

    fn usable(&self, planned: &Planned) -> Usable {
        plan::usable_capacity(&planned.assignment, &weights(&self.draft.layout))
    }

    /// Whether everything would fit without that site; `None` if nobody knows.
    fn holds(&self, survivor: &Survivor) -> Option<bool> {
        match self.known.total() {
            _ if !survivor.holds() => Some(false),
            Amount::Known(_) => Some(true),
            Amount::AtLeast(_) | Amount::Unknown => None,
        }
    }

    fn survivor_lines(&self, planned: &Planned, survivors: &[Survivor]) -> Vec<String> {
        let line = |survivor: &Survivor| {
            let site = self.draft.layout.site_name(survivor.site);
            match (survivor.usable, self.holds(survivor)) {
                (None, _) => Some(format!(
                    "  warning: without {site} no {} sites are far enough apart: writes would stop until it is replaced",
                    match planned.policy.far_copies {
                        2 => "two".to_owned(),
                        more => more.to_string(),
                    }
                )),
                (Some(usable), Some(false)) => Some(format!(
                    "  warning: without {site} the others could hold {}: {} too little for what is stored",
                    units::bytes(usable),
                    units::bytes(survivor.short)
                )),
                (Some(usable), None) => Some(format!(
                    "  without {site} the others could hold {}; whether that is enough is unknown ({} stored)",
                    units::bytes(usable),
                    match self.known.total() {
                        Amount::Unknown => "nobody says how much is".to_owned(),
                        known => known.words(),
                    }
                )),
                (Some(_), Some(true)) => None,
            }
        };
        survivors.iter().filter_map(line).collect()
    }

    /// Bytes that arrive at each node.
    fn arriving(&self) -> BTreeMap<NodeIndex, u64> {
        let mut arriving: BTreeMap<NodeIndex, u64> = BTreeMap::new();
        for copies in self.all_copies() {
            let bytes = arriving.entry(copies.to).or_default();
            *bytes = bytes.saturating_add(copies.bytes.value().unwrap_or(0));
        }
        arriving
    }

    /// The node that takes longest, what arrives there, its pace and whether that is configured, and how long it takes.
    fn slowest(&self) -> Option<(NodeIndex, u64, u64, bool, Duration)> {
        let arrivals = self.arriving().into_iter().map(|(node, bytes)| {
            let set = self.known.paces.get(self.draft.layout.node_name(node)).copied();
            let pace = set.unwrap_or(limits::MOVE_ASSUMED).max(1);
            (node, bytes, pace, set.is_some(), Duration::from_secs(bytes.div_ceil(pace)))
        });
        arrivals.max_by_key(|(.., took)| *took)
    }

    /// All that moves together.
    fn moving(&self) -> Amount {
        let copies = self.all_copies();
        let sum = copies.iter().filter_map(|copies| copies.bytes.value()).fold(0, u64::saturating_add);
        if copies.is_empty() && self.known.heard { Amount::Known(0) } else { self.known.total().map(|_| sum) }
    }

    fn time_line(&self) -> Option<String> {
        if self.moving() == Amount::Unknown {
            return Some("how many bytes move, and for how long, is unknown: no node says what is stored".into());
        }
        let (node, bytes, pace, configured, took) = self.slowest()?;
        let (at, why) = (units::bytes(pace), if configured { "its `rebalance.rate`" } else { "assumed: it has no `rebalance.rate`" });
        Some(format!(
            "in all {} to copy, in about {}: {} takes {} at {at}/s ({why})",
            self.moving().words(),
            humantime::format_duration(took.max(Duration::from_secs(1))),
            self.name(node),
            units::bytes(bytes),
        ))
    }

    /// For people: what moves, how much fits, what is warned of.
    pub fn words(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for changed in &self.draft.changed {
            lines.push(format!("bucket {}: {}", changed.bucket, policy::words(&changed.before)));
            lines.push(format!("  becomes: {}", policy::words(&changed.after)));
            lines.extend(self.copy_lines(&self.of_changed(changed)));
        }
        for (planned, survivors) in self.draft.plans.iter().zip(&self.survivors) {
            let buckets = if planned.buckets.is_empty() { "new buckets".to_owned() } else { planned.buckets.join(", ") };
            lines.push(format!("policy of {buckets}: {}", policy::words(&planned.policy)));
            let usable = self.usable(planned);
            let bottleneck = usable.bottleneck.map_or(String::new(), |node| format!("; {} is full first", self.name(node)));
            lines.push(format!(
                "  holds {} of data in {} sets of nodes{bottleneck}",
                units::bytes(usable.bytes),
                planned.assignment.sets().len()
            ));
            if planned.buckets.is_empty() || self.kept(planned).next().is_some() {
                lines.extend(self.copy_lines(&self.of_planned(planned)));
            }
            lines.extend(self.survivor_lines(planned, survivors));
        }
        lines.extend(self.time_line());
        lines
    }

    fn copy_values(&self, copies: &[Copies]) -> Vec<Value> {
        let value = |copies: &Copies| {
            json!({"from": copies.from.map(|node| self.name(node)), "to": self.name(copies.to),
                   "partitions": copies.partitions, "bytes": copies.bytes.value()})
        };
        copies.iter().map(value).collect()
    }

    /// Of each policy, in JSON.
    pub fn plan_values(&self) -> Vec<Value> {
        let survivor = |survivor: &Survivor| {
            let short = self.known.total().value().filter(|_| survivor.usable.is_some()).map(|_| survivor.short);
            json!({"site": self.draft.layout.site_name(survivor.site), "usable_bytes": survivor.usable,
                   "short_bytes": short, "holds": self.holds(survivor)})
        };
        let value = |(planned, survivors): (&Planned, &Vec<Survivor>)| {
            let usable = self.usable(planned);
            json!({
                "policy": policy::json(&planned.policy),
                "buckets": planned.buckets,
                "usable_bytes": usable.bytes,
                "bottleneck": usable.bottleneck.map(|node| self.name(node)),
                "sets": planned.assignment.sets().len(),
                "moves": self.copy_values(&self.of_planned(planned)),
                "without": survivors.iter().map(survivor).collect::<Vec<_>>(),
            })
        };
        self.draft.plans.iter().zip(&self.survivors).map(value).collect()
    }

    /// Of each bucket that is promised something else, in JSON.
    pub fn changed_values(&self) -> Vec<Value> {
        let value = |changed: &Repromised| {
            json!({"bucket": changed.bucket, "before": policy::json(&changed.before), "after": policy::json(&changed.after),
                   "moves": self.copy_values(&self.of_changed(changed))})
        };
        self.draft.changed.iter().map(value).collect()
    }

    /// All of it together, in JSON: `null` is unknown.
    pub fn moving_value(&self) -> Value {
        let bytes = self.moving();
        let slowest = self.slowest();
        json!({
            "bytes": bytes.value(),
            // Whether there may be more.
            "complete": matches!(bytes, Amount::Known(_)),
            "stored_bytes": self.known.total().value(),
            "seconds": bytes.value().map(|_| slowest.map_or(0, |(.., took)| took.as_secs())),
            "slowest": slowest.map(|(node, bytes, pace, configured, _)| json!({
                "node": self.name(node), "bytes": self.moving().value().map(|_| bytes),
                "bytes_per_second": pace, "configured": configured,
            })),
        })
    }
}

/// For each plan, what the loss of a site would leave: the room that is left is shared by all that is stored, each by its policy.
fn survivors(draft: &Draft, known: &Known) -> Vec<Vec<Survivor>> {
    let layout = &draft.layout;
    let takes = |survivor: &Survivor| layout.nodes_at(survivor.site).any(|node| layout.duty(node) == Duty::Active);
    let of = |planned: &Planned| {
        let all = plan::survivors(&planned.policy, &Geography::claimed(layout), &weights(layout), 0);
        all.into_iter().filter(takes).collect::<Vec<_>>()
    };
    let mut found: Vec<Vec<Survivor>> = draft.plans.iter().map(of).collect();
    let mut stored: Vec<u64> = draft.plans.iter().map(|planned| known.within(planned.buckets.iter()).value().unwrap_or(0)).collect();
    // Whatever is in no bucket that is named takes room as well.
    let unnamed = known.total().value().unwrap_or(0).saturating_sub(stored.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)));
    if let Some(first) = stored.first_mut() {
        *first = first.saturating_add(unnamed);
    }
    let sites = found.first().map_or(0, Vec::len);
    for index in 0..sites {
        let ways = found.iter().zip(&stored).filter_map(|(survivors, bytes)| Some((*bytes, survivors.get(index)?.usable?)));
        let short = plan::short_of(ways);
        found.iter_mut().filter_map(|survivors| survivors.get_mut(index)).for_each(|survivor| survivor.short = short);
    }
    found
}

fn weights(layout: &Layout) -> Vec<u64> {
    let weight = |node| if layout.duty(node) == Duty::Active { layout.node(node).map_or(0, |node| node.capacity) } else { 0 };
    layout.node_indexes().map(weight).collect()
}
