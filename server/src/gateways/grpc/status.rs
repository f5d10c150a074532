//! What this node knows and can prove, for whoever merges the nodes' answers.
use super::{auth, objects::invalid};
use crate::{
    cluster::peers::PeerState,
    health::{checks, doctor, upkeep},
    limits,
    node::Node,
};
use afar_model::layout::{Duty, NodeIndex};
use afar_proto::{
    convert,
    v1::{self, status_server::Status as StatusTrait},
};
use std::sync::Arc;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug, Clone)]
pub struct StatusService {
    node: Arc<Node>,
    /// One examination at a time: two would measure each other.
    examining: Arc<Mutex<()>>,
}

impl StatusService {
    /// On this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, examining: Arc::default() }
    }
}

#[tonic::async_trait]
impl StatusTrait for StatusService {
    async fn node(&self, request: Request<v1::NodeStatusRequest>) -> Result<Response<v1::NodeStatus>, Status> {
        auth::caller_at(&request, &self.node)?;
        let node = &self.node;
        if request.into_inner().fresh && node.survey.load().took <= limits::SURVEY_QUICK {
            upkeep::refresh(node).await;
        }
        let reader = Arc::clone(node);
        let status = node.lifecycle.blocking("status", move || report(&reader)).await;
        status.map(Response::new).ok_or_else(|| invalid(&convert::InvalidMessage::new("status", "the node is ending, or has a bug")))
    }

    async fn doctor(&self, request: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorReport>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        auth::require_admin(&caller, "examine nodes")?;
        let _one = self.examining.lock().await;
        let (node, layout) = (&self.node, self.node.layout());
        Ok(Response::new(v1::DoctorReport {
            node: layout.node_name(node.me).to_owned(),
            site: layout.site_of(node.me).map(|site| layout.site_name(site).to_owned()).unwrap_or_default(),
            findings: doctor::examine(node).await,
            nodes: layout.members().filter_map(|index| node_info(node, index)).collect(),
        }))
    }
}

fn report(node: &Node) -> v1::NodeStatus {
    let (layout, usage, survey) = (node.layout(), node.store.usage(), node.survey.load_full());
    let owed = node.store.owed_summary().unwrap_or_default();
    let oldest = owed.iter().map(|owed| owed.oldest).min();
    let site = layout.site_of(node.me).map(|site| layout.site_name(site).to_owned()).unwrap_or_default();
    let oldest_unverified = node.store.oldest_unverified().map_or(0, |oldest| node.now().since(oldest).as_secs());
    let to_fetch = node.rebalance.to_fetch();
    let shares: Vec<v1::BudgetShare> = node.transfer.report().into_iter().map(share).collect();
    v1::NodeStatus {
        node: layout.node_name(node.me).to_owned(),
        site,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: convert::bytes(node.store.incarnation().as_bytes()),
        layout_version: layout.version(),
        layout_digest: convert::bytes(layout.hash()),
        state: own_state(node, &usage).to_owned(),
        capacity_bytes: usage.capacity,
        used_bytes: usage.used,
        oldest_unverified_seconds: oldest_unverified,
        sites: layout.sites().iter().filter(|site| site.duty != Duty::Removed).map(site_info).collect(),
        nodes: layout.node_indexes().filter(|n| layout.duty(*n) != Duty::Removed).filter_map(|n| node_info(node, n)).collect(),
        peers: layout.node_indexes().filter(|n| *n != node.me).filter_map(|n| peer_view(node, n)).collect(),
        surveys: survey.shards.clone(),
        surveyed_at: survey.at.0,
        survey_complete: survey.complete,
        outbox: Some(v1::Outbox {
            pending_records: owed.iter().map(|owed| owed.records).sum(),
            pending_bytes: owed.iter().map(|owed| owed.bytes).sum(),
            oldest_pending_seconds: oldest.map_or(0, |oldest| node.now().since(oldest).as_secs()),
        }),
        checks: checks::checks(node),
        endpoint: node.endpoint(node.me),
        transfer_budget_bytes: node.config.limits.transfer,
        // Windows are promised, not in flight.
        transfer_in_flight_bytes: shares.iter().filter(|share| !share.name.ends_with("windows")).map(|share| share.used_bytes).sum(),
        transfer_shares: shares,
        syncs: usage.directories.iter().filter_map(syncs).collect(),
        index_cache_bytes: usage.index_cache_bytes,
        index_bytes: usage.index_bytes,
        buckets: node.buckets.present().buckets.len() as u64,
        default_policy: Some(v1::Policy::from(&node.config.policy)),
        to_fetch_records: to_fetch.0,
        to_fetch_bytes: to_fetch.1,
        fetch_bytes_per_second: node.rebalance.rate(),
        surplus_records: node.surplus().unwrap_or(u64::MAX),
        open_layouts: node.layouts.open().chapters().len() as u32,
        fetch_pace_bytes_per_second: node.rebalance.pace(node.now()).unwrap_or(0),
        transition: node.report_transition(),
    }
}

fn share((name, total_bytes, used_bytes): (&str, u64, u64)) -> v1::BudgetShare {
    v1::BudgetShare { name: name.to_owned(), total_bytes, used_bytes }
}

fn syncs(directory: &afar_store::DirectoryUsage) -> Option<v1::DirectorySyncs> {
    let afar_store::SyncCounts { requests, shared, unasked } = directory.syncs;
    Some(v1::DirectorySyncs { directory: convert::bytes(directory.id?.as_bytes()), requests, shared, unasked })
}

fn own_state(node: &Node, usage: &afar_store::Usage) -> &'static str {
    let read_only = usage.directories.iter().all(|directory| matches!(directory.state, afar_store::DirectoryState::ReadOnly(_)));
    match () {
        () if node.lifecycle.is_draining() => "draining",
        // First of the two: what such a node says of itself does not count.
        () if node.is_catching_up() => "catching_up",
        () if read_only => "read_only",
        () => "up",
    }
}

fn site_info(site: &afar_model::layout::Site) -> v1::SiteInfo {
    v1::SiteInfo {
        name: site.name.clone(),
        latitude: site.coordinates.latitude(),
        longitude: site.coordinates.longitude(),
        uncertainty_metres: site.uncertainty.0,
        country: site.country.clone(),
        provider: site.provider.clone(),
        duty: site.duty.name().to_owned(),
    }
}

fn node_info(node: &Node, index: NodeIndex) -> Option<v1::NodeInfo> {
    let layout = node.layout();
    let named = layout.node(index)?;
    Some(v1::NodeInfo {
        name: named.name.clone(),
        site: named.site.clone(),
        capacity_bytes: named.capacity,
        endpoint: node.endpoint(index),
        duty: layout.duty(index).name().to_owned(),
    })
}

fn peer_view(node: &Node, index: NodeIndex) -> Option<v1::PeerView> {
    let view = node.peers.view(index)?;
    let state = match view.state {
        PeerState::Up if view.catching_up => "catching_up",
        state => state.name(),
    };
    Some(v1::PeerView {
        node: view.node,
        state: state.to_owned(),
        last_heard: view.last_heard_wall.map_or(0, |heard| heard.0),
        min_round_trip_micros: view.least_round_trip.map_or(0, |trip| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX)),
        clock_offset_millis: view.clock_offset_ms,
        pending_records: view.pending_records,
        pending_bytes: view.pending_bytes,
        failed_audit: node.ledger.has_failed_audit(index),
    })
}
