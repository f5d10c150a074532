//! The state of a cluster as `afar status --json` prints it; the names of fields are part of its contract.
use afar_model::{policy::Policy, state::State, units::UnixMillis};
use afar_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

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
    /// Of those that are degraded: put a moment ago, with further copies on their way.
    pub filling: u64,
}

impl Counts {
    pub(super) fn add(&mut self, more: &v1::StateCounts) {
        self.total = self.total.saturating_add(more.total);
        self.safe = self.safe.saturating_add(more.safe);
        self.degraded = self.degraded.saturating_add(more.degraded);
        self.unknown = self.unknown.saturating_add(more.unknown);
        self.at_risk = self.at_risk.saturating_add(more.at_risk);
        self.lost = self.lost.saturating_add(more.lost);
        self.filling = self.filling.saturating_add(more.filling);
    }

    /// The worst state with a count; `None` if there is nothing.
    pub(super) fn worst(&self) -> Option<State> {
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

/// A newest layout that is not in force yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// The newest one.
    pub to: OpenLayout,
    /// When it was made; `None` if no node says.
    #[serde(serialize_with = "time")]
    pub since: Option<UnixMillis>,
    /// What is open beside it, oldest first.
    pub older: Vec<OpenLayout>,
    /// Whom that waits for, the worst first. Empty: it is about to end.
    pub waits_for: Vec<Awaited>,
}

/// A layout that is open somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenLayout {
    /// As `afar layout history` has it.
    pub name: String,
    /// Its version.
    pub version: u64,
}

/// A node that keeps older layouts open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Awaited {
    /// Its name.
    pub node: String,
    /// Its site's; empty if the newest layout does not name it.
    pub site: String,
    /// "silent", "unfit", "behind", "writing", "catching_up", "unplaced", "fetching", "comparing" or "unknown".
    pub why: String,
    /// More about it; may be empty.
    pub detail: String,
    /// When it was last heard by those who do not hear it now.
    #[serde(serialize_with = "time")]
    pub last_heard: Option<UnixMillis>,
    /// Bytes that it has fetched for this layout, while it fetches.
    pub fetched_bytes: Option<u64>,
    /// Those that it is known to lack still, while it fetches.
    pub to_fetch_bytes: Option<u64>,
    /// Nodes that do not reach it.
    pub not_reached_from: Vec<String>,
    /// What to do.
    pub action: String,
}

fn time<S: serde::Serializer>(at: &Option<UnixMillis>, to: S) -> Result<S::Ok, S::Error> {
    at.map(crate::cli::units::time).serialize(to)
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

impl CheckResult {
    /// The node that found it, if one did, and what it is about.
    pub fn title(&self) -> String {
        self.node.as_ref().map_or_else(|| self.name.clone(), |node| format!("{node} {}", self.name))
    }
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
    /// The newest layout's way into force; `None` once it is alone everywhere, as far as nodes answer.
    pub transition: Option<Transition>,
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
