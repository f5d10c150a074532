//! Sites and nodes, as they say themselves or as others see them.
use super::{CheckResult, NodeSummary, Nodes, SiteStatus, check, views};
use crate::status::fetch::Answer;
use afar_proto::v1;

pub(super) fn site_status(site: &v1::SiteInfo, newest: &v1::NodeStatus, nodes: &Nodes<'_>) -> SiteStatus {
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

fn node_summary(node: &v1::NodeInfo, nodes: &Nodes<'_>) -> NodeSummary {
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
fn seen_by_peers(name: &str, nodes: &Nodes<'_>) -> &'static str {
    let states: Vec<&str> = views(name, nodes).map(|view| view.state.as_str()).collect();
    if states.contains(&"lost") {
        "lost"
    } else if states.iter().any(|state| matches!(*state, "up" | "catching_up" | "suspect")) {
        "suspect"
    } else {
        "down"
    }
}

pub(super) fn nodes_check(sites: &[SiteStatus], answers: &[Answer]) -> CheckResult {
    // Nobody waits for those that an operator has said to be lost.
    let all = sites.iter().flat_map(|site| &site.nodes).filter(|node| node.state != "lost");
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
