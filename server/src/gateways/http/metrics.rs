//! What this node knows of itself, for Prometheus, in OpenMetrics. Nobody else sees that library.
//!
//! Everything is read when it is asked for: there is no second set of counters that could disagree with the status. Labels
//! are of small closed sets: states, kinds, names of nodes and checks; never of buckets, keys or paths.
use crate::{
    cluster::pulse::PeerState,
    gateways::http::probes,
    health::{checks, survey},
    limits,
    node::Node,
};
use afar_model::units::UnixMillis;
use afar_proto::v1;
use afar_store::DirectoryState;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use std::{collections::BTreeMap, fmt, time::Duration};

/// What [`page`] is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page. Blocks: looks at the disks.
///
/// # Errors
/// None that writing to memory could have.
pub fn page(node: &Node) -> Result<String, fmt::Error> {
    let mut families = Families::default();
    identity(node, &mut families);
    disks(node, &mut families);
    objects(node, &mut families);
    replication(node, &mut families);
    peers(node, &mut families);
    layouts(node, &mut families);
    health(node, &mut families);
    families.encode()
}

fn identity(node: &Node, out: &mut Families) {
    let layout = node.layout();
    let site = layout.site_of(node.me).map_or("", |site| layout.site_name(site));
    let labels = [("node", node.config.node.as_str()), ("site", site), ("version", env!("CARGO_PKG_VERSION"))];
    out.gauge("afar_node", None, "Who this is; always 1").with(&labels, 1.0);
}

fn disks(node: &Node, out: &mut Families) {
    let usage = node.store.usage();
    out.gauge("afar_disk_capacity", Some(Unit::Bytes), "Size of the file systems under the data directories that work")
        .value(usage.capacity);
    out.gauge("afar_disk_used", Some(Unit::Bytes), "Segments and index").value(usage.used);
    out.gauge("afar_disk_available", Some(Unit::Bytes), "What clients may still write before they are refused")
        .value(usage.free_for_clients);
    let directories = out.gauge("afar_data_directories", None, "Data directories by state");
    let count = |is: fn(&DirectoryState) -> bool| usage.directories.iter().filter(|directory| is(&directory.state)).count() as f64;
    directories.with(&[("state", "ok")], count(|state| matches!(state, DirectoryState::Created | DirectoryState::Healthy)));
    directories.with(&[("state", "read_only")], count(|state| matches!(state, DirectoryState::ReadOnly(_))));
    directories.with(&[("state", "failed")], count(|state| matches!(state, DirectoryState::Failed(_))));
    let failures = usage.directories.iter().map(|directory| directory.read_failures.count).sum();
    out.counter("afar_disk_read_failures", None, "Reads that a disk has failed in this run").count(failures);
    out.counter("afar_disk_syncs", None, "Syncs of segments in this run").count(usage.syncs);
    out.counter("afar_disk_written", Some(Unit::Bytes), "Written to segments in this run").count(usage.bytes_written);
    out.gauge("afar_records", None, "Records held").value(usage.records);
    let bytes = out.gauge("afar_record", Some(Unit::Bytes), "Bodies of records held, by kind");
    let kinds = usage.bytes_by_kind;
    for (kind, held) in [("chunk", kinds.chunk), ("manifest", kinds.manifest), ("version", kinds.version), ("setting", kinds.setting)] {
        bytes.with(&[("kind", kind)], held as f64);
    }
    out.gauge("afar_index_rebuild", Some(Unit::Other("ratio".to_owned())), "How far the rebuild of the index is; 1: it is complete")
        .with(&[], if usage.views_ready { 1.0 } else { f64::from(usage.rebuild_progress).min(0.999) });
}

/// Nothing, as long as nothing is known: no number of objects is zero.
fn objects(node: &Node, out: &mut Families) {
    let survey = node.survey.load_full();
    out.gauge("afar_survey_timestamp", Some(Unit::Seconds), "When objects were counted last; 0: not in this run")
        .with(&[], seconds_of(survey.at));
    out.gauge("afar_survey_complete", None, "Whether that count could see everything that is here").flag(survey.complete);
    if survey.at == UnixMillis(0) {
        return;
    }
    let (mut objects, mut bytes) = (v1::StateCounts::default(), v1::StateCounts::default());
    for shard in survey::reported(node, &survey) {
        add(&mut objects, shard.objects.unwrap_or_default());
        add(&mut bytes, shard.bytes.unwrap_or_default());
    }
    let what = "by state, of those that this node reports: the sum over the nodes is the cluster's";
    by_state(out.gauge("afar_objects", None, &format!("Current objects {what}")), &objects);
    by_state(out.gauge("afar_object", Some(Unit::Bytes), &format!("Bytes of current objects {what}")), &bytes);
}

fn add(sum: &mut v1::StateCounts, more: v1::StateCounts) {
    sum.safe += more.safe;
    sum.degraded += more.degraded;
    sum.unknown += more.unknown;
    sum.at_risk += more.at_risk;
    sum.lost += more.lost;
}

fn by_state(family: &mut Family, counts: &v1::StateCounts) {
    let states = [
        ("safe", counts.safe),
        ("degraded", counts.degraded),
        ("unknown", counts.unknown),
        ("at_risk", counts.at_risk),
        ("lost", counts.lost),
    ];
    for (state, count) in states {
        family.with(&[("state", state)], count as f64);
    }
}

fn replication(node: &Node, out: &mut Families) {
    let owed = node.store.owed_summary().unwrap_or_default();
    let oldest = owed.iter().map(|owed| owed.oldest).min().map_or(Duration::ZERO, |oldest| node.now().since(oldest));
    out.gauge("afar_pending_records", None, "Records acknowledged that still have to reach others")
        .value(owed.iter().map(|owed| owed.records).sum());
    out.gauge("afar_pending", Some(Unit::Bytes), "Bytes of these").value(owed.iter().map(|owed| owed.bytes).sum());
    out.gauge("afar_pending_oldest_age", Some(Unit::Seconds), "For how long the oldest of these has waited: the recovery point")
        .with(&[], oldest.as_secs_f64());
    let (records, bytes) = node.rebalance.to_fetch();
    out.gauge("afar_fetch_records", None, "Records that this node still has to fetch for the current layout").value(records);
    out.gauge("afar_fetch", Some(Unit::Bytes), "Bytes of these").value(bytes);
    out.gauge("afar_catching_up", None, "Whether this node has not compared itself with all others since it lost something")
        .flag(node.is_catching_up());
    let missing = node.ledger.own_missing(limits::LEDGER_EXCEPTIONS).len();
    out.gauge("afar_missing_records", None, "Records that should be here and are bad or missing").value(missing as u64);
    let oldest = node.store.oldest_unverified().map_or(Duration::ZERO, |oldest| node.now().since(oldest));
    out.gauge(
        "afar_oldest_unverified_age",
        Some(Unit::Seconds),
        "For how long the record that was read and hashed longest ago has not been",
    )
    .with(&[], oldest.as_secs_f64());
}

fn peers(node: &Node, out: &mut Families) {
    let views: Vec<_> = node.peers.others().filter_map(|peer| node.peers.view(peer)).collect();
    let states = out.gauge("afar_peer_state", None, "1 for the state that each peer is in, as this node sees it");
    for view in &views {
        for state in [PeerState::Up, PeerState::Suspect, PeerState::Down, PeerState::Refused] {
            states.with(&[("peer", &view.node), ("state", state.name())], f64::from(u8::from(view.state == state)));
        }
    }
    let usable = out.gauge("afar_peer_usable", None, "Whether records may be sent to it now");
    for view in &views {
        usable.with(&[("peer", &view.node)], f64::from(u8::from(view.usable)));
    }
    let trips = out.gauge("afar_peer_round_trip", Some(Unit::Seconds), "The least round trip measured in this run");
    for (view, trip) in views.iter().filter_map(|view| Some((view, view.least_round_trip?))) {
        trips.with(&[("peer", &view.node)], trip.as_secs_f64());
    }
    let refuted = node.peers.refuted().len();
    out.gauge("afar_refuted_site_pairs", None, "Pairs of sites that a round trip has proved to be nearer than they claim")
        .value(refuted as u64);
}

fn layouts(node: &Node, out: &mut Families) {
    out.gauge("afar_layout_version", None, "The current layout").value(node.layout().version());
    out.gauge("afar_layouts_open", None, "Layouts in force; more than one: a transition is under way")
        .value(node.layouts.open().chapters().len() as u64);
    out.gauge("afar_latch_closed", None, "Whether nothing may be removed for good since a site was lost")
        .flag(!node.layouts.latched().is_empty());
}

fn health(node: &Node, out: &mut Families) {
    out.gauge("afar_ready", None, "Whether /readyz says yes").flag(probes::readiness(node).is_good());
    let checks = checks::checks(node);
    let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
    for check in &checks {
        let state = worst.entry(&check.name).or_default();
        *state = state.max(severity(&check.state));
    }
    let family =
        out.gauge("afar_check_state", None, "As status says: 0 ok, 1 warning, 2 critical, 3 unknown; of several with one name the worst");
    for (name, state) in worst {
        family.with(&[("check", name)], state);
    }
    let ends = out.gauge("afar_certificate_not_after_timestamp", Some(Unit::Seconds), "When it ends");
    ends.with(&[("certificate", "node")], seconds_of(node.identity.not_after()));
    ends.with(&[("certificate", "authority")], seconds_of(node.identity.authority_not_after()));
    if let Some(until) = node.public_tls.standing().and_then(|standing| standing.until) {
        ends.with(&[("certificate", "public")], seconds_of(until));
    }
    out.counter("afar_panics", None, "Panics caught in this run: each is a bug").count(node.lifecycle.panics());
}

/// As monitoring plugins exit. What this does not know is unknown.
fn severity(state: &str) -> f64 {
    match state {
        "ok" => 0.0,
        "warning" => 1.0,
        "critical" => 2.0,
        _ => 3.0,
    }
}

fn seconds_of(time: UnixMillis) -> f64 {
    time.0 as f64 / 1000.0
}

/// Families of metrics, in the order in which they are shown.
#[derive(Debug, Default)]
struct Families(Vec<Family>);

#[derive(Debug)]
struct Family {
    name: &'static str,
    unit: Option<Unit>,
    help: String,
    samples: Vec<(Labels, Value)>,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Clone, Copy)]
enum Value {
    Gauge(f64),
    Counter(u64),
}

impl Value {
    fn encode(self, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Gauge(value) => sample.encode_gauge(&value),
            Self::Counter(count) => sample.encode_counter::<NoLabelSet, u64, f64>(&count, None),
        }
    }
}

impl Families {
    fn gauge(&mut self, name: &'static str, unit: Option<Unit>, help: &str) -> &mut Family {
        self.0.push(Family { name, unit, help: help.to_owned(), samples: Vec::new() });
        // Just pushed; were it not there, what is said of it would be lost and nothing else.
        let last = self.0.len().saturating_sub(1);
        &mut self.0[last]
    }

    fn counter(&mut self, name: &'static str, unit: Option<Unit>, help: &str) -> &mut Family {
        self.gauge(name, unit, help)
    }

    fn encode(self) -> Result<String, fmt::Error> {
        let (mut page, mut registry) = (String::new(), Registry::default());
        registry.register_collector(Box::new(self));
        text::encode(&mut page, &registry)?;
        Ok(page)
    }
}

impl Family {
    fn with(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.samples.push((labels, Value::Gauge(value)));
    }

    fn value(&mut self, value: u64) {
        self.with(&[], value as f64);
    }

    fn flag(&mut self, is: bool) {
        self.with(&[], f64::from(u8::from(is)));
    }

    fn count(&mut self, count: u64) {
        self.samples.push((Labels::new(), Value::Counter(count)));
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A family of which nothing is known is not named either: its absence can be alerted on.
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let kind = match family.samples.first() {
                Some((_, Value::Counter(_))) => MetricType::Counter,
                _ => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, &family.help, family.unit.as_ref(), kind)?;
            for (labels, value) in &family.samples {
                if labels.is_empty() {
                    value.encode(&mut metric)?;
                } else {
                    value.encode(&mut metric.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn families_become_a_page_and_labels_cannot_break_it() {
        let mut families = Families::default();
        families.gauge("afar_pending", Some(Unit::Bytes), "Bytes").value(12);
        families.gauge("afar_nothing", None, "Not known").samples.clear();
        let states = families.gauge("afar_peer_state", None, "State");
        states.with(&[("peer", "a\"b\\c\nd"), ("state", "up")], 1.0);
        families.counter("afar_panics", None, "Panics").count(3);
        let page = families.encode().unwrap();
        let expected = "# HELP afar_pending_bytes Bytes\n# TYPE afar_pending_bytes gauge\n# UNIT afar_pending_bytes bytes\nafar_pending_bytes 12.0\n\
             # HELP afar_peer_state State\n# TYPE afar_peer_state gauge\nafar_peer_state{peer=\"a\\\"b\\\\c\\nd\",state=\"up\"} 1.0\n\
             # HELP afar_panics Panics\n# TYPE afar_panics counter\nafar_panics_total 3\n# EOF\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn a_state_that_nobody_knows_is_unknown() {
        assert_eq!(["ok", "warning", "critical", "unknown", "?"].map(severity), [0.0, 1.0, 2.0, 3.0, 3.0]);
    }
}
