//! What the answers of nodes amount to: one pure function, [`merge`].
//!
//! Rules: of each shard of each bucket the survey of the lowest-ranked node counts that answered, made a complete survey, is
//! not catching up and knows of no fewer versions than the others. What nobody proved is unknown, and unknown is never green: a shard without a reporter, a survey that
//! is stale, a survey made so soon after a silent node was last heard that it may still count that node's copies, and zero
//! objects that not every node confirms. Nor is green what a critical check speaks against that concerns the data's safety
//! ([`Advice::doubts_safety`]): a count of copies is only as good as the distances, clocks and disks that it relies on.
use super::{advice::Advice, fetch::Answer};
use crate::limits;
use afar_model::{
    geo::{self, Coordinates, Physics},
    layout::{Duty, Layout, Node, Site},
    limits::{AUDIT_WITHIN, PARTITIONS_DEFAULT},
    placement::Geography,
    plan::{self, Survivor},
    policy::Policy,
    state::State,
    units::{Metres, UnixMillis},
};
use afar_proto::v1;
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Counts by state; the field names are those of `afar status --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs)]
pub struct Counts {
    pub total: u64,
    pub safe: u64,
    pub degraded: u64,
    pub unknown: u64,
    pub at_risk: u64,
    pub lost: u64,
}

impl Counts {
    fn add(&mut self, more: &v1::StateCounts) {
        self.total = self.total.saturating_add(more.total);
        self.safe = self.safe.saturating_add(more.safe);
        self.degraded = self.degraded.saturating_add(more.degraded);
        self.unknown = self.unknown.saturating_add(more.unknown);
        self.at_risk = self.at_risk.saturating_add(more.at_risk);
        self.lost = self.lost.saturating_add(more.lost);
    }

    /// The worst state with a count; `None` if there is nothing.
    fn worst(&self) -> Option<State> {
        let counts = [
            (self.lost, State::Lost),
            (self.at_risk, State::AtRisk),
            (self.unknown, State::Unknown),
            (self.degraded, State::Degraded),
            (self.safe, State::Safe),
        ];
        counts.into_iter().find(|(count, _)| *count > 0).map(|(_, state)| state)
    }
}

/// What has been acknowledged but not yet brought everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Replication {
    /// Records that some node still owes to another.
    pub pending_records: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// The age of the oldest.
    pub oldest_pending_seconds: u64,
}

/// What has to move until the newest layout is in force everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rebalance {
    /// Whether older layouts are still open somewhere.
    pub in_transition: bool,
    /// Records that nodes still have to fetch, as far as they know.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes a second that arrive.
    pub bytes_per_second: u64,
    /// At that rate; `None` if nothing arrives.
    pub seconds_left: Option<u64>,
    /// Records that nodes hold beyond what they are assigned, and have not let go of yet.
    pub surplus_records: u64,
}

/// A site and its nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteStatus {
    /// Its name.
    pub name: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// Whose it is.
    pub provider: String,
    /// "up", "suspect", "down" or "lost".
    pub state: String,
    /// Its nodes.
    pub nodes: Vec<NodeSummary>,
}

/// A node, as it says itself or as its peers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeSummary {
    /// Its name.
    pub name: String,
    /// "up", "suspect", "down", "lost", "draining", "read_only" or "catching_up".
    pub state: String,
    /// Of its program; `None` if it did not answer.
    pub version: Option<String>,
    /// Its share.
    pub capacity_bytes: u64,
    /// `None` if it did not answer.
    pub used_bytes: Option<u64>,
    /// `None` if it did not answer.
    pub oldest_unverified_seconds: Option<u64>,
    /// Where it is reached.
    pub endpoint: String,
    /// How fast it may fetch what moves, in bytes a second; `None`: as fast as it goes, or it did not answer.
    pub rebalance_pace: Option<u64>,
    /// Whether it answered us.
    pub answered: bool,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// What was looked at.
    pub name: String,
    /// By which node; `None`: by comparing nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// "ok", "warning", "critical" or "unknown".
    pub state: String,
    /// What was found.
    pub detail: String,
    /// What it is about, for scripts and the runbook: "AFAR-DISK". Empty for a check that this program does not know.
    pub code: &'static str,
}

/// The state of a cluster: what `afar status --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// The worst of all.
    pub state: State,
    /// The critical checks that make it `unknown`, although every object would be `safe`, or `degraded` at worst.
    pub doubted_by: Vec<String>,
    /// Of the newest layout seen.
    pub layout_version: u64,
    /// What a bucket gets without a policy of its own; `None` if no node says.
    #[serde(skip)]
    pub default_policy: Option<Policy>,
    /// When the answers were merged (Unix milliseconds).
    #[serde(skip)]
    pub at: UnixMillis,
    /// Current versions.
    pub objects: Counts,
    /// Their logical bytes.
    pub bytes: Counts,
    /// All versions.
    pub versions: Counts,
    /// Buckets that nodes know.
    pub buckets: u64,
    /// What is stored, older versions included.
    #[serde(rename = "stored_bytes", serialize_with = "Stored::serialize_total")]
    pub stored: Stored,
    /// What is on its way.
    pub replication: Replication,
    /// What is on its way because the layout changed.
    pub rebalance: Rebalance,
    /// Sites, in the layout's order.
    pub sites: Vec<SiteStatus>,
    /// What was looked at, the worst first.
    pub checks: Vec<CheckResult>,
}

/// Logical bytes of all versions: what takes room, and what moves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// By bucket.
    pub buckets: BTreeMap<Vec<u8>, u64>,
    /// Whether that is all: every shard of every bucket was counted to the end.
    pub complete: bool,
}

impl Stored {
    /// In all buckets.
    pub fn total(&self) -> u64 {
        self.buckets.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn serialize_total<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.total())
    }
}

/// Whether claimed distances are held against measured round trips in every bucket, as far as the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistanceCheck {
    /// Some bucket enforces them, or it is not known.
    Enforced,
    /// No bucket enforces them, some bucket warns.
    Warned,
    /// Every bucket has `verify_distance = "off"`.
    Off,
    /// There is no bucket yet: as the cluster's default policy has it.
    Default,
}

/// Merges answers. `None` if no node answered.
pub fn merge(answers: &[Answer], now: UnixMillis, distance_check: DistanceCheck) -> Option<ClusterStatus> {
    let nodes = by_name(answers);
    let newest = nodes.values().max_by_key(|node| node.layout_version)?;
    let survey = survey(&nodes, newest, now);
    let sites: Vec<SiteStatus> = newest.sites.iter().map(|site| site_status(site, newest, &nodes)).collect();
    let mut checks = vec![
        survey.check.clone(),
        layout_check(&nodes),
        physics_check(newest, &nodes, distance_check.or_default(newest)),
        clock_check(&nodes),
    ];
    checks.push(nodes_check(&sites, answers));
    checks.push(survivors_check(newest, &survey.stored));
    for node in nodes.values() {
        checks.extend(node.checks.iter().map(|check| CheckResult {
            name: check.name.clone(),
            node: Some(node.node.clone()),
            state: check.state.clone(),
            detail: check.detail.clone(),
            code: Advice::about(&check.name).map_or("", |advice| advice.code),
        }));
    }
    checks.sort_by_key(|check| Reverse(severity(&check.state)));
    // What speaks against the counts speaks against `degraded` as well.
    let doubted_by = if survey.state < State::Unknown { doubted_by(&checks) } else { Vec::new() };
    Some(ClusterStatus {
        state: if doubted_by.is_empty() { survey.state } else { State::Unknown },
        doubted_by,
        layout_version: newest.layout_version,
        default_policy: newest.default_policy.as_ref().and_then(|policy| Policy::try_from(policy).ok()),
        at: now,
        objects: survey.objects,
        bytes: survey.bytes,
        versions: survey.versions,
        stored: survey.stored,
        buckets: nodes.values().map(|node| node.buckets).max().unwrap_or_default(),
        replication: replication(&nodes, newest),
        rebalance: rebalance(&nodes, newest),
        sites,
        checks,
    })
}

impl DistanceCheck {
    fn or_default(self, newest: &v1::NodeStatus) -> Self {
        let default = newest.default_policy.as_ref().map(|policy| policy.verify_distance.as_str());
        match (self, default) {
            (Self::Default, Some("off")) => Self::Off,
            (Self::Default, Some("warn")) => Self::Warned,
            (Self::Default, _) => Self::Enforced,
            (known, _) => known,
        }
    }
}

/// Which critical checks say that nothing here may be called safe.
fn doubted_by(checks: &[CheckResult]) -> Vec<String> {
    let doubting = |check: &&CheckResult| check.state == "critical" && Advice::about(&check.name).is_none_or(|advice| advice.doubts_safety);
    checks.iter().filter(doubting).map(CheckResult::title).collect()
}

impl CheckResult {
    /// The node that found it, if one did, and what it is about.
    pub fn title(&self) -> String {
        self.node.as_ref().map_or_else(|| self.name.clone(), |node| format!("{node} {}", self.name))
    }
}

fn by_name(answers: &[Answer]) -> BTreeMap<&str, &v1::NodeStatus> {
    answers.iter().filter_map(|answer| answer.outcome.as_ref().ok()).map(|status| (status.node.as_str(), status)).collect()
}

/// What a node that is not assigned a shard gives as its rank: the shard exists, and somebody else counts it.
const NO_REPORTER: u32 = u32::MAX;

struct Survey {
    state: State,
    objects: Counts,
    bytes: Counts,
    versions: Counts,
    stored: Stored,
    check: CheckResult,
}

fn survey(nodes: &BTreeMap<&str, &v1::NodeStatus>, newest: &v1::NodeStatus, now: UnixMillis) -> Survey {
    let mut doubts: BTreeSet<String> = BTreeSet::new();
    let mut chosen: BTreeMap<(&[u8], u32), (&v1::NodeStatus, &v1::ShardSurvey)> = BTreeMap::new();
    for node in nodes.values().filter(|node| node.state != "catching_up") {
        for found in node.surveys.iter().filter(|found| found.rank != NO_REPORTER) {
            // A complete survey counts more than a partial one. Then one that knows of more: versions are not lost by being
            // read, so who knows of fewer has missed some, whatever it believes of itself. Then the lower rank.
            let order = |node: &v1::NodeStatus, survey: &v1::ShardSurvey| {
                (!node.survey_complete, Reverse(survey.versions.map_or(0, |counts| counts.total)), survey.rank)
            };
            let better = |(other, theirs): &(&v1::NodeStatus, &v1::ShardSurvey)| order(node, found) < order(other, theirs);
            let slot = (found.bucket.as_ref(), found.shard);
            if chosen.get(&slot).is_none_or(better) {
                chosen.insert(slot, (node, found));
            }
        }
    }
    let (mut objects, mut bytes, mut versions) = (Counts::default(), Counts::default(), Counts::default());
    let mut stored = Stored { complete: true, ..Stored::default() };
    for (node, found) in chosen.values() {
        for (sum, counts) in [(&mut objects, &found.objects), (&mut bytes, &found.bytes), (&mut versions, &found.versions)] {
            if let Some(counts) = counts {
                sum.add(counts);
            }
        }
        // A node that is older than this count says zero, and the current versions are the least that there is.
        let least = found.bytes.map_or(0, |bytes| bytes.total).max(found.stored_bytes);
        let bucket = stored.buckets.entry(found.bucket.to_vec()).or_default();
        *bucket = bucket.saturating_add(least);
        stored.complete &= node.survey_complete;
        doubts.extend(doubts_about(node, nodes, newest, now));
    }
    doubts.extend(failed_audits(nodes, newest));
    let reported: BTreeSet<&[u8]> = chosen.keys().map(|(bucket, _)| *bucket).collect();
    let known = nodes.values().map(|node| node.buckets).max().unwrap_or_default();
    if (reported.len() as u64) < known {
        doubts.insert(format!("{} of {known} buckets have a reporter", reported.len()));
    }
    let all: BTreeSet<(&[u8], u32)> =
        nodes.values().flat_map(|node| &node.surveys).map(|found| (found.bucket.as_ref(), found.shard)).collect();
    let without = all.iter().filter(|shard| !chosen.contains_key(*shard)).count();
    stored.complete &= without == 0 && reported.len() as u64 >= known;
    if without > 0 {
        doubts.insert(format!("{without} of {} shards have no reporter that answers", all.len()));
    }
    if objects.total == 0 {
        doubts.extend(doubts_about_nothing(nodes, newest));
    }
    let proved = if doubts.is_empty() { State::Safe } else { State::Unknown };
    let worst = [objects.worst(), versions.worst()].into_iter().flatten().max().unwrap_or(State::Safe);
    let detail =
        if doubts.is_empty() { "every shard has a complete survey".to_owned() } else { doubts.into_iter().collect::<Vec<_>>().join("; ") };
    let check = check("survey", if proved == State::Safe { "ok" } else { "unknown" }, detail);
    Survey { state: worst.max(proved), objects, bytes, versions, stored, check }
}

/// Why a node's survey proves nothing about now.
fn doubts_about(node: &v1::NodeStatus, nodes: &BTreeMap<&str, &v1::NodeStatus>, newest: &v1::NodeStatus, now: UnixMillis) -> Vec<String> {
    let mut doubts = Vec::new();
    if !node.survey_complete || node.surveyed_at == 0 {
        doubts.push(format!("{}'s survey is not complete", node.node));
    }
    let surveyed = UnixMillis(node.surveyed_at);
    if node.surveyed_at > 0 && now.since(surveyed) > limits::SURVEY_STALE {
        doubts.push(format!("{}'s survey is {} s old", node.node, now.since(surveyed).as_secs()));
    }
    for silent in members(newest).filter(|other| !nodes.contains_key(other.name.as_str())) {
        let heard = UnixMillis(last_heard(&silent.name, nodes));
        if heard.0 > 0 && surveyed < UnixMillis(heard.0.saturating_add(AUDIT_WITHIN.as_millis() as u64)) {
            doubts.push(format!("{} does not answer, and what it last proved may still be counted", silent.name));
        }
    }
    doubts
}

/// Who could not prove to another what it should hold: it says of itself that it does, and is believed only once it was compared
/// and audited again.
fn failed_audits<'a>(nodes: &'a BTreeMap<&str, &v1::NodeStatus>, newest: &'a v1::NodeStatus) -> impl Iterator<Item = String> + 'a {
    let failed = |name: &str, auditor: &v1::NodeStatus| auditor.peers.iter().any(|view| view.node == name && view.failed_audit);
    members(newest).flat_map(move |node| {
        let auditors = nodes.values().filter(move |auditor| failed(&node.name, auditor));
        auditors.map(|auditor| format!("{} could not prove its copies to {}", node.name, auditor.node))
    })
}

/// Nodes that are still waited for: not those that an operator has said to be lost.
fn members(newest: &v1::NodeStatus) -> impl Iterator<Item = &v1::NodeInfo> {
    newest.nodes.iter().filter(|node| node.duty != "lost" && node.duty != "removed")
}

fn last_heard(name: &str, nodes: &BTreeMap<&str, &v1::NodeStatus>) -> u64 {
    views(name, nodes).map(|view| view.last_heard).max().unwrap_or_default()
}

fn views<'a>(name: &'a str, nodes: &'a BTreeMap<&str, &v1::NodeStatus>) -> impl Iterator<Item = &'a v1::PeerView> {
    nodes.values().flat_map(|node| &node.peers).filter(move |view| view.node == name)
}

/// Zero objects are proved only by everybody: zero of zero that nobody proved is unknown.
fn doubts_about_nothing(nodes: &BTreeMap<&str, &v1::NodeStatus>, newest: &v1::NodeStatus) -> Option<String> {
    let silent = members(newest).filter(|node| {
        !nodes
            .get(node.name.as_str())
            .is_some_and(|status| status.survey_complete && status.surveyed_at > 0 && status.state != "catching_up")
    });
    let names: Vec<&str> = silent.map(|node| node.name.as_str()).collect();
    (!names.is_empty()).then(|| format!("no objects, but that is not proved by {}", names.join(", ")))
}

fn site_status(site: &v1::SiteInfo, newest: &v1::NodeStatus, nodes: &BTreeMap<&str, &v1::NodeStatus>) -> SiteStatus {
    let summaries: Vec<NodeSummary> =
        newest.nodes.iter().filter(|node| node.site == site.name).map(|node| node_summary(node, nodes)).collect();
    SiteStatus {
        name: site.name.clone(),
        latitude: site.latitude,
        longitude: site.longitude,
        country: site.country.clone(),
        provider: site.provider.clone(),
        state: site_state(&summaries).to_owned(),
        nodes: summaries,
    }
}

/// A site is as alive as its most alive node.
fn site_state(nodes: &[NodeSummary]) -> &'static str {
    let any = |states: &[&str]| nodes.iter().any(|node| states.contains(&node.state.as_str()));
    if any(&["up", "draining", "read_only", "catching_up"]) {
        "up"
    } else if any(&["suspect"]) {
        "suspect"
    } else if !nodes.is_empty() && nodes.iter().all(|node| node.state == "lost") {
        "lost"
    } else {
        "down"
    }
}

fn node_summary(node: &v1::NodeInfo, nodes: &BTreeMap<&str, &v1::NodeStatus>) -> NodeSummary {
    let status = nodes.get(node.name.as_str());
    let state = match status {
        _ if node.duty == "lost" => "lost",
        Some(status) if node.duty == "draining" && status.state == "up" => "draining",
        Some(status) => status.state.as_str(),
        None => seen_by_peers(&node.name, nodes),
    };
    NodeSummary {
        name: node.name.clone(),
        state: state.to_owned(),
        version: status.map(|status| status.version.clone()),
        capacity_bytes: status.map(|status| status.capacity_bytes).filter(|bytes| *bytes > 0).unwrap_or(node.capacity_bytes),
        used_bytes: status.map(|status| status.used_bytes),
        oldest_unverified_seconds: status.map(|status| status.oldest_unverified_seconds),
        endpoint: node.endpoint.clone(),
        rebalance_pace: status.map(|status| status.fetch_pace_bytes_per_second).filter(|pace| *pace > 0),
        answered: status.is_some(),
    }
}

/// A node that does not answer us is never up, whatever its peers say: one who hears it makes it suspect.
fn seen_by_peers(name: &str, nodes: &BTreeMap<&str, &v1::NodeStatus>) -> &'static str {
    let states: Vec<&str> = views(name, nodes).map(|view| view.state.as_str()).collect();
    if states.contains(&"lost") {
        "lost"
    } else if states.iter().any(|state| matches!(*state, "up" | "catching_up" | "suspect")) {
        "suspect"
    } else {
        "down"
    }
}

/// What answering nodes owe, and what silent ones owed when their peers last heard of it.
fn replication(nodes: &BTreeMap<&str, &v1::NodeStatus>, newest: &v1::NodeStatus) -> Replication {
    let mut sum = Replication::default();
    for outbox in nodes.values().filter_map(|node| node.outbox) {
        sum.pending_records += outbox.pending_records;
        sum.pending_bytes += outbox.pending_bytes;
        sum.oldest_pending_seconds = sum.oldest_pending_seconds.max(outbox.oldest_pending_seconds);
    }
    for silent in members(newest).filter(|node| !nodes.contains_key(node.name.as_str())) {
        if let Some(view) = views(&silent.name, nodes).max_by_key(|view| view.last_heard) {
            sum.pending_records += view.pending_records;
            sum.pending_bytes += view.pending_bytes;
        }
    }
    sum
}

/// Whether what is stored would still fit, far apart, without any one site (for the policy of new buckets).
fn survivors_check(newest: &v1::NodeStatus, stored: &Stored) -> CheckResult {
    let name = "survivors";
    let policy = newest.default_policy.as_ref().and_then(|policy| Policy::try_from(policy).ok());
    let (Some(policy), Some(layout)) = (policy, layout_of(newest)) else {
        return check(name, "unknown", "the layout is not understood here");
    };
    let weight = |node| if layout.duty(node) == Duty::Active { layout.node(node).map_or(0, |node| node.capacity) } else { 0 };
    let weights: Vec<u64> = layout.node_indexes().map(weight).collect();
    let used = |survivor: &Survivor| layout.nodes_at(survivor.site).any(|node| layout.duty(node) == Duty::Active);
    let survivors = plan::survivors(&policy, &Geography::claimed(&layout), &weights, stored.total());
    let without: Vec<String> = survivors
        .iter()
        .filter(|survivor| used(survivor) && !survivor.holds())
        .map(|survivor| match survivor.usable {
            None => format!("without {} no writes: the rest is not far enough apart", layout.site_name(survivor.site)),
            Some(_) => format!("without {} there is too little room, by {} bytes", layout.site_name(survivor.site), survivor.short),
        })
        .collect();
    if without.is_empty() && !stored.complete {
        return check(name, "unknown", "what is stored has not been counted to the end");
    }
    if without.is_empty() {
        return check(name, "ok", "the others could hold everything after the loss of any one site");
    }
    // Two sites are how most begin: that the second is needed is no news, and their data are safe.
    let short = survivors.iter().any(|survivor| used(survivor) && survivor.usable.is_some() && survivor.short > 0);
    check(name, if short { "warning" } else { "ok" }, without.join("; "))
}

fn layout_of(newest: &v1::NodeStatus) -> Option<Layout> {
    let duty = |name: &str| match name {
        "draining" => Duty::Draining,
        "removed" => Duty::Removed,
        "lost" => Duty::Lost,
        _ => Duty::Active,
    };
    let site = |site: &v1::SiteInfo| {
        Some(Site {
            name: site.name.clone(),
            coordinates: Coordinates::new(site.latitude, site.longitude).ok()?,
            uncertainty: Metres(site.uncertainty_metres),
            country: site.country.clone(),
            provider: site.provider.clone(),
            duty: duty(&site.duty),
        })
    };
    let node = |node: &v1::NodeInfo| Node {
        name: node.name.clone(),
        site: node.site.clone(),
        capacity: node.capacity_bytes,
        endpoint: node.endpoint.clone(),
        duty: duty(&node.duty),
    };
    let sites = newest.sites.iter().map(site).collect::<Option<Vec<_>>>()?;
    Layout::new(newest.layout_version, PARTITIONS_DEFAULT, sites, newest.nodes.iter().map(node).collect()).ok()
}

fn rebalance(nodes: &BTreeMap<&str, &v1::NodeStatus>, newest: &v1::NodeStatus) -> Rebalance {
    let lagging = nodes.values().any(|node| node.layout_version != newest.layout_version);
    let mut sum = Rebalance { in_transition: lagging || nodes.values().any(|node| node.open_layouts > 1), ..Rebalance::default() };
    for node in nodes.values() {
        sum.records = sum.records.saturating_add(node.to_fetch_records);
        sum.bytes = sum.bytes.saturating_add(node.to_fetch_bytes);
        sum.bytes_per_second = sum.bytes_per_second.saturating_add(node.fetch_bytes_per_second);
        // All ones: not counted yet.
        sum.surplus_records =
            sum.surplus_records.saturating_add(Some(node.surplus_records).filter(|count| *count != u64::MAX).unwrap_or(0));
    }
    sum.seconds_left = (sum.bytes_per_second > 0).then(|| sum.bytes / sum.bytes_per_second);
    sum
}

fn check(name: &str, state: &str, detail: impl Into<String>) -> CheckResult {
    let code = Advice::about(name).map_or("", |advice| advice.code);
    CheckResult { name: name.into(), node: None, state: state.into(), detail: detail.into(), code }
}

fn severity(state: &str) -> u8 {
    match state {
        "critical" => 3,
        "warning" => 2,
        "ok" => 0,
        _ => 1,
    }
}

fn nodes_check(sites: &[SiteStatus], answers: &[Answer]) -> CheckResult {
    let all = sites.iter().flat_map(|site| &site.nodes);
    let silent: Vec<String> = all
        .clone()
        .filter(|node| !node.answered)
        .map(|node| {
            let why = answers.iter().find(|answer| answer.endpoint == node.endpoint).and_then(|answer| answer.outcome.as_ref().err());
            why.map_or_else(|| format!("{} does not answer", node.name), |why| format!("{}: {why}", node.name))
        })
        .collect();
    let count = all.count();
    if silent.is_empty() {
        check("nodes", "ok", format!("{count} of {count} answer"))
    } else {
        check("nodes", "warning", format!("{} of {count} answer; {}", count - silent.len(), silent.join("; ")))
    }
}

fn layout_check(nodes: &BTreeMap<&str, &v1::NodeStatus>) -> CheckResult {
    let mut camps: BTreeMap<(u64, &[u8]), Vec<&str>> = BTreeMap::new();
    for node in nodes.values() {
        camps.entry((node.layout_version, node.layout_digest.as_ref())).or_default().push(&node.node);
    }
    if camps.len() <= 1 {
        return check("layout_agreement", "ok", "all that answer have the same layout");
    }
    let camps: Vec<String> = camps.iter().map(|((version, _), names)| format!("version {version}: {}", names.join(", "))).collect();
    check("layout_agreement", "critical", format!("nodes disagree about the layout ({})", camps.join("; ")))
}

/// A round trip shorter than light needs refutes a claimed distance.
fn physics_check(newest: &v1::NodeStatus, nodes: &BTreeMap<&str, &v1::NodeStatus>, enforced: DistanceCheck) -> CheckResult {
    let name = "distance_physics";
    let mut least: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for node in nodes.values() {
        for view in node.peers.iter().filter(|view| view.min_round_trip_micros > 0) {
            let Some(other) = newest.nodes.iter().find(|other| other.name == view.node) else { continue };
            let pair = (node.site.as_str().min(&other.site), node.site.as_str().max(&other.site));
            let entry = least.entry(pair).or_insert(u64::MAX);
            *entry = (*entry).min(view.min_round_trip_micros);
        }
    }
    let (mut refuted, mut suspicious) = (Vec::new(), Vec::new());
    for ((a, b), micros) in least.iter().filter(|((a, b), _)| a != b) {
        let Some(claimed) = claimed(newest, a, b) else { continue };
        let finding = format!("{a}-{b}: {claimed} claimed, {:.2} ms round trip", *micros as f64 / 1000.0);
        match geo::judge(claimed, Duration::from_micros(*micros)) {
            Physics::Refuted => refuted.push(finding),
            Physics::Suspicious => suspicious.push(finding),
            Physics::Possible => {}
        }
    }
    match (refuted.is_empty(), suspicious.is_empty(), enforced) {
        (true, true, _) if least.is_empty() => check(name, "unknown", "no round trip has been measured yet"),
        (true, true, _) => check(name, "ok", "no measured round trip speaks against a claimed distance"),
        (_, _, DistanceCheck::Off) => {
            refuted.append(&mut suspicious);
            check(name, "ok", format!("not enforced (verify_distance is off in every bucket): {}", refuted.join("; ")))
        }
        (false, _, DistanceCheck::Warned) => {
            check(name, "warning", format!("faster than light (only warned about in every bucket): {}", refuted.join("; ")))
        }
        (false, ..) => check(name, "critical", format!("faster than light: {}", refuted.join("; "))),
        (true, false, _) => check(name, "warning", format!("faster than light in fibre: {}", suspicious.join("; "))),
    }
}

fn claimed(newest: &v1::NodeStatus, a: &str, b: &str) -> Option<Metres> {
    let site = |name: &str| newest.sites.iter().find(|site| site.name == name);
    let (a, b) = (site(a)?, site(b)?);
    let point = |site: &v1::SiteInfo| Coordinates::new(site.latitude, site.longitude).ok();
    let uncertainty = Metres(a.uncertainty_metres.saturating_add(b.uncertainty_metres));
    Some(point(a)?.distance(&point(b)?).saturating_sub(uncertainty))
}

fn clock_check(nodes: &BTreeMap<&str, &v1::NodeStatus>) -> CheckResult {
    let views = nodes.values().flat_map(|node| node.peers.iter().map(|view| (node.node.as_str(), view)));
    let worst = views
        .filter(|(_, view)| matches!(view.state.as_str(), "up" | "catching_up"))
        .max_by_key(|(_, view)| view.clock_offset_millis.unsigned_abs());
    let Some((node, view)) = worst else { return check("clock_skew", "unknown", "no two nodes have compared clocks") };
    let off = Duration::from_millis(view.clock_offset_millis.unsigned_abs());
    let state = if off > limits::CLOCK_SKEW_MAX {
        "critical"
    } else if off > limits::CLOCK_SKEW_MAX / 10 {
        "warning"
    } else {
        "ok"
    };
    check("clock_skew", state, format!("at most {} ms, between {node} and {}", off.as_millis(), view.node))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    const NOW: UnixMillis = UnixMillis(1_000_000_000);

    fn counts(safe: u64, unknown: u64, lost: u64) -> Option<v1::StateCounts> {
        Some(v1::StateCounts { total: safe + unknown + lost, safe, unknown, lost, ..v1::StateCounts::default() })
    }

    fn shards(rank: u32, per_shard: Option<v1::StateCounts>) -> Vec<v1::ShardSurvey> {
        let one = |shard| v1::ShardSurvey {
            bucket: vec![7; 32].into(),
            shard,
            objects: per_shard,
            bytes: per_shard,
            versions: per_shard,
            rank,
            stored_bytes: 0,
        };
        (0..16).map(one).collect()
    }

    /// Three sites far apart, a node at each.
    fn node(name: &str, rank: u32, per_shard: Option<v1::StateCounts>) -> v1::NodeStatus {
        let site = |name: &str, latitude, longitude| v1::SiteInfo {
            name: name.into(),
            latitude,
            longitude,
            country: "FR".into(),
            ..v1::SiteInfo::default()
        };
        let info = |name: &str| v1::NodeInfo {
            name: name.into(),
            site: name.into(),
            capacity_bytes: 1 << 40,
            endpoint: format!("https://{name}:7700"),
            duty: String::new(),
        };
        let peer = |other: &str| v1::PeerView {
            node: other.into(),
            state: "up".into(),
            last_heard: NOW.0 - 500,
            min_round_trip_micros: 30_000,
            ..v1::PeerView::default()
        };
        let all = ["strasbourg", "roubaix", "warsaw"];
        v1::NodeStatus {
            node: name.into(),
            site: name.into(),
            version: "0.1.0".into(),
            layout_version: 1,
            layout_digest: vec![1; 32].into(),
            state: "up".into(),
            sites: vec![site("strasbourg", 48.5734, 7.7521), site("roubaix", 50.6927, 3.1778), site("warsaw", 52.2297, 21.0122)],
            nodes: all.iter().map(|name| info(name)).collect(),
            peers: all.iter().filter(|other| **other != name).map(|other| peer(other)).collect(),
            surveys: per_shard.map_or_else(Vec::new, |counts| shards(rank, Some(counts))),
            surveyed_at: NOW.0 - 1000,
            survey_complete: true,
            buckets: 1,
            ..v1::NodeStatus::default()
        }
    }

    fn answers(nodes: Vec<v1::NodeStatus>) -> Vec<Answer> {
        nodes.into_iter().map(|node| Answer { endpoint: format!("https://{}:7700", node.node), outcome: Ok(node) }).collect()
    }

    fn merged(nodes: Vec<v1::NodeStatus>) -> ClusterStatus {
        merge(&answers(nodes), NOW, DistanceCheck::Enforced).unwrap()
    }

    fn three(per_shard: Option<v1::StateCounts>) -> Vec<v1::NodeStatus> {
        vec![node("strasbourg", 0, per_shard), node("warsaw", 1, per_shard), node("roubaix", NO_REPORTER, counts(0, 0, 0))]
    }

    fn find<'a>(status: &'a ClusterStatus, name: &str) -> &'a CheckResult {
        status.checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn all_proved_is_safe_and_counted_once() {
        let status = merged(three(counts(2, 0, 0)));
        assert_eq!((status.state, status.objects.total, status.objects.safe), (State::Safe, 32, 32));
        assert_eq!(status.sites.iter().map(|site| site.state.as_str()).collect::<Vec<_>>(), ["up"; 3]);
    }

    #[test]
    fn the_lowest_rank_that_answered_and_is_not_catching_up_counts() {
        let mut nodes = three(counts(2, 0, 0));
        nodes[0].surveys = shards(0, counts(0, 0, 2));
        assert_eq!(merged(nodes.clone()).state, State::Lost);
        nodes[0].state = "catching_up".into();
        assert_eq!(merged(nodes).state, State::Safe, "who catches up reports nothing");
    }

    #[test]
    fn who_has_missed_versions_does_not_hide_them() {
        let mut nodes = three(counts(2, 0, 0));
        nodes[0].surveys = shards(0, counts(1, 0, 0));
        nodes[1].surveys = shards(1, counts(1, 1, 0));
        let status = merged(nodes);
        assert_eq!((status.state, status.objects.total), (State::Unknown, 32));
    }

    #[test]
    fn rule_25_what_nobody_reports_is_unknown() {
        let mut nodes = three(counts(2, 0, 0));
        for node in nodes.iter_mut().take(2) {
            node.surveys.retain(|survey| survey.shard != 3);
        }
        assert_eq!(merged(nodes).state, State::Unknown, "one shard that exists has no reporter");
        let mut nodes = three(counts(2, 0, 0));
        nodes[2].buckets = 2;
        assert_eq!(merged(nodes).state, State::Unknown, "a bucket without a reporter");
        assert_eq!(merged(three(None)).state, State::Unknown, "zero of one bucket");
    }

    #[test]
    fn rule_25_zero_objects_are_safe_only_if_everybody_proved_them() {
        assert_eq!(merged(three(counts(0, 0, 0))).state, State::Safe);
        let mut nodes = three(counts(0, 0, 0));
        nodes.pop();
        assert_eq!(merged(nodes).state, State::Unknown);
        let mut nodes = three(counts(0, 0, 0));
        nodes[1].survey_complete = false;
        assert_eq!(merged(nodes).state, State::Unknown);
        let mut nodes = three(None);
        for node in &mut nodes {
            node.buckets = 0;
            node.surveys.clear();
        }
        assert_eq!(merged(nodes).state, State::Safe, "no buckets, and all say so");
    }

    #[test]
    fn rule_25_who_failed_an_audit_is_not_believed_about_itself() {
        let mut nodes = three(counts(2, 0, 0));
        nodes[1].peers[0].failed_audit = true;
        let status = merged(nodes);
        assert_eq!(status.state, State::Unknown);
        assert!(find(&status, "survey").detail.contains("strasbourg could not prove its copies to warsaw"));
    }

    #[test]
    fn rule_25_a_stale_survey_proves_nothing() {
        let mut nodes = three(counts(2, 0, 0));
        for node in &mut nodes {
            node.surveyed_at = NOW.0 - 400_000;
        }
        assert_eq!(merged(nodes).state, State::Unknown);
    }

    #[test]
    fn rule_25_a_node_that_just_fell_silent_may_still_be_counted_and_is_doubted() {
        let mut nodes = three(counts(2, 0, 0));
        nodes.remove(0);
        let status = merged(nodes.clone());
        assert_eq!(status.state, State::Unknown);
        assert_eq!(status.sites[0].nodes[0].state, "suspect");
        for node in &mut nodes {
            for peer in node.peers.iter_mut().filter(|peer| peer.node == "strasbourg") {
                peer.last_heard = NOW.0 - 100_000;
                peer.state = "down".into();
            }
        }
        let status = merged(nodes);
        assert_eq!(status.state, State::Safe, "long gone, and a survey since says that all is well without it");
        assert_eq!((status.sites[0].state.as_str(), status.sites[0].nodes[0].used_bytes), ("down", None));
    }

    #[test]
    fn nobody_answers() {
        let silent = Answer { endpoint: "https://a:1".into(), outcome: Err(Error::new(Kind::Unreachable, "no")) };
        assert_eq!(merge(&[silent], NOW, DistanceCheck::Enforced), None);
    }

    #[test]
    fn layouts_clocks_and_distances_are_compared() {
        let mut nodes = three(counts(2, 0, 0));
        nodes[1].layout_digest = vec![2; 32].into();
        nodes[0].peers[0].min_round_trip_micros = 400;
        nodes[0].peers[1].clock_offset_millis = -400_000;
        let status = merged(nodes.clone());
        for name in ["layout_agreement", "distance_physics", "clock_skew"] {
            assert_eq!(find(&status, name).state, "critical", "{name}");
        }
        assert_eq!(status.checks.first().map(|check| check.state.as_str()), Some("critical"));
        let trial = merge(&answers(nodes), NOW, DistanceCheck::Off).unwrap();
        assert_eq!(find(&trial, "distance_physics").state, "ok");
    }

    /// Nobody has a bucket, and the round trips refute a distance.
    fn refuted_and_empty(verify_distance: &str) -> ClusterStatus {
        let mut nodes = three(None);
        for node in &mut nodes {
            node.buckets = 0;
            node.surveys.clear();
            node.default_policy = Some(v1::Policy { verify_distance: verify_distance.into(), ..v1::Policy::default() });
        }
        nodes[0].peers[0].min_round_trip_micros = 400;
        merge(&answers(nodes), NOW, DistanceCheck::Default).unwrap()
    }

    #[test]
    fn rule_25_nothing_is_safe_beside_a_critical_check_of_what_safety_rests_on() {
        let status = refuted_and_empty("enforce");
        assert_eq!((status.state, find(&status, "distance_physics").state.as_str()), (State::Unknown, "critical"));
        assert_eq!(status.doubted_by, ["distance_physics"]);
        for (verify, state) in [("warn", "warning"), ("off", "ok")] {
            let status = refuted_and_empty(verify);
            assert_eq!((status.state, find(&status, "distance_physics").state.as_str()), (State::Safe, state), "{verify}");
        }
        for (name, expected) in [
            ("disk", State::Unknown),
            ("clock", State::Unknown),
            ("peer", State::Unknown),
            ("policy", State::Unknown),
            ("made_by_a_later_version", State::Unknown),
            ("queued", State::Unknown),
            ("certificate", State::Safe),
            ("program", State::Safe),
        ] {
            let mut nodes = three(counts(2, 0, 0));
            nodes[1].checks = vec![v1::Check { name: name.into(), state: "critical".into(), detail: "why".into() }];
            let status = merged(nodes.clone());
            assert_eq!(status.state, expected, "{name}");
            assert_eq!(status.doubted_by.is_empty(), expected == State::Safe, "{name}");
            nodes[1].checks[0].state = "warning".into();
            assert_eq!(merged(nodes).state, State::Safe, "{name}");
        }
        let degraded = v1::StateCounts { total: 2, degraded: 2, ..v1::StateCounts::default() };
        let mut nodes = three(Some(degraded));
        assert_eq!(merged(nodes.clone()).state, State::Degraded);
        nodes[1].checks = vec![v1::Check { name: "queued".into(), state: "critical".into(), detail: "why".into() }];
        assert_eq!(merged(nodes).state, State::Unknown, "rule 8: what may be lost is at most unknown");
        let mut nodes = three(counts(0, 0, 2));
        nodes[1].checks = vec![v1::Check { name: "disk".into(), state: "critical".into(), detail: "why".into() }];
        assert_eq!(merged(nodes).state, State::Lost, "what is worse stays worse");
    }

    #[test]
    fn what_is_pending_counts_the_silent_too() {
        let mut nodes = three(counts(2, 0, 0));
        nodes[1].outbox = Some(v1::Outbox { pending_records: 2, pending_bytes: 20, oldest_pending_seconds: 7 });
        nodes.remove(0);
        for peer in nodes[1].peers.iter_mut().filter(|peer| peer.node == "strasbourg") {
            (peer.pending_records, peer.pending_bytes) = (1, 5);
            peer.last_heard = NOW.0;
        }
        let pending = merged(nodes).replication;
        assert_eq!(pending, Replication { pending_records: 3, pending_bytes: 25, oldest_pending_seconds: 7 });
    }

    #[test]
    fn the_json_has_what_the_contract_names() {
        let json = serde_json::to_value(merged(three(counts(2, 0, 0)))).unwrap();
        for path in [
            "/state",
            "/layout_version",
            "/objects/total",
            "/objects/at_risk",
            "/bytes/safe",
            "/versions/lost",
            "/replication/pending_records",
            "/replication/pending_bytes",
            "/replication/oldest_pending_seconds",
            "/sites/0/name",
            "/sites/0/latitude",
            "/sites/0/longitude",
            "/sites/0/country",
            "/sites/0/provider",
            "/sites/0/state",
            "/sites/0/nodes/0/name",
            "/sites/0/nodes/0/state",
            "/sites/0/nodes/0/version",
            "/sites/0/nodes/0/capacity_bytes",
            "/sites/0/nodes/0/used_bytes",
            "/sites/0/nodes/0/oldest_unverified_seconds",
            "/checks/0/name",
            "/checks/0/state",
            "/checks/0/detail",
        ] {
            assert!(json.pointer(path).is_some(), "{path}");
        }
        assert_eq!(json["state"], "safe");
    }
}
