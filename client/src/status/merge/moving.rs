//! What is on its way: to where it was promised, and to where a new layout wants it.
use super::{CheckResult, Nodes, Rebalance, Replication, check, members, views};
use afar_proto::v1;
use std::collections::BTreeMap;

/// What answering nodes owe, and what silent ones owed when their peers last heard of it.
pub(super) fn replication(nodes: &Nodes<'_>, newest: &v1::NodeStatus) -> Replication {
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

pub(super) fn rebalance(nodes: &Nodes<'_>, newest: &v1::NodeStatus) -> Rebalance {
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

pub(super) fn layout_check(nodes: &Nodes<'_>) -> CheckResult {
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
