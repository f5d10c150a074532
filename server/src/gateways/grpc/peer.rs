//! What peers ask, over gRPC: decode, ask the domain, encode. The listener lets only nodes of the layout in here.
use super::{
    meta::{self, status},
    objects::invalid,
};
use crate::{
    cluster::peers::{HelloRefused, PeerState},
    limits,
    node::Node,
    replication::{audit, fetch, receive},
};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId, UploadId},
    layout::NodeIndex,
    record::{RecordKey, RecordKind, VersionEntry},
};
use afar_proto::{
    convert,
    limits::{KEYS_MAX, PAGE_MAX},
    v1::{self, peer_server::Peer},
};
use afar_store::{IdEntry, IdRange, ListFrom, NotReady, Store, VersionCursor, VersionRow};
use futures_util::Stream;
use std::{pin::Pin, sync::Arc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// The service.
#[derive(Debug, Clone)]
pub struct PeerService {
    node: Arc<Node>,
}

impl PeerService {
    /// On this node.
    pub const fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    #[allow(clippy::result_large_err)]
    fn from<T>(&self, request: &Request<T>) -> Result<NodeIndex, Status> {
        meta::from_node(request).ok_or_else(|| {
            status(
                Code::PermissionDenied,
                meta::exit::AUTHENTICATION,
                "only a node of this cluster may ask this: its certificate must name one",
            )
        })
    }

    /// As [`PeerService::from`], for everything but heartbeats: a node that is refused (rule 19) gets no answers either.
    #[allow(clippy::result_large_err)]
    fn partner<T>(&self, request: &Request<T>) -> Result<NodeIndex, Status> {
        let from = self.from(request)?;
        if !self.node.layout().duty(from).is_member() {
            let message = "the layout says that this node is out of service: nothing that it says counts any more";
            return Err(status(Code::FailedPrecondition, meta::exit::FAILED, message));
        }
        match self.node.peers.view(from) {
            Some(view) if view.state == PeerState::Refused => Err(status(Code::FailedPrecondition, meta::exit::FAILED, view.trouble)),
            _ => Ok(from),
        }
    }

    async fn blocking<T: Send + 'static>(&self, name: &'static str, work: impl FnOnce(&Node) -> T + Send + 'static) -> Result<T, Status> {
        let node = Arc::clone(&self.node);
        let done = self.node.lifecycle.blocking(name, move || work(&node)).await;
        done.ok_or_else(|| status(Code::Internal, meta::exit::FAILED, "the node is ending, or has a bug"))
    }
}

#[allow(clippy::result_large_err)]
fn keys(keys: &[v1::RecordKey]) -> Result<Vec<RecordKey>, Status> {
    if keys.len() > KEYS_MAX {
        return Err(status(Code::InvalidArgument, meta::exit::USAGE, format!("{} keys: the most is {KEYS_MAX}", keys.len())));
    }
    keys.iter().map(|key| RecordKey::try_from(key).map_err(|error| invalid(&error))).collect()
}

fn not_ready(error: NotReady) -> Status {
    status(Code::Unavailable, meta::exit::UNREACHABLE, error.to_string())
}

fn limit(asked: u32) -> usize {
    (asked as usize).clamp(1, PAGE_MAX)
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        let from = self.from(&request)?;
        let said = request.into_inner().from.unwrap_or_default();
        let answer = self.node.peers.answer_hello(said, from).map_err(|error| match error {
            HelloRefused::Malformed(_) => status(Code::InvalidArgument, meta::exit::USAGE, error.to_string()),
            _ => status(Code::FailedPrecondition, meta::exit::FAILED, error.to_string()),
        })?;
        Ok(Response::new(v1::HelloReply { from: Some(answer) }))
    }

    type StoreStream = ReceiverStream<Result<v1::StoreReply, Status>>;

    async fn store(&self, request: Request<Streaming<v1::StoreRequest>>) -> Result<Response<Self::StoreStream>, Status> {
        let from = self.partner(&request)?;
        let (sender, replies) = mpsc::channel(limits::LANE_REPLIES);
        let serve = receive::serve(Arc::clone(&self.node), from, request.into_inner(), sender);
        self.node.lifecycle.spawn_brief("serve lane", serve);
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn versions(&self, request: Request<v1::VersionsRequest>) -> Result<Response<v1::VersionsReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let bucket: BucketId = convert::id("bucket", &request.bucket).map_err(|error| invalid(&error))?;
        let before = request.before.as_ref().map(before).transpose()?;
        let entries = self.node.store.versions(&bucket, &request.key, before, limit(request.limit)).map_err(not_ready)?;
        let entries = entries.iter().map(v1::VersionEntry::from).collect();
        Ok(Response::new(v1::VersionsReply { catching_up: self.node.is_catching_up(), entries }))
    }

    async fn claim(&self, request: Request<v1::ClaimRequest>) -> Result<Response<v1::ClaimReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let bucket: BucketId = convert::id("bucket", &request.bucket).map_err(|error| invalid(&error))?;
        let upload: UploadId = convert::id("upload", &request.upload).map_err(|error| invalid(&error))?;
        if request.release {
            self.node.claims.release(&bucket, &request.key, upload);
            return Ok(Response::new(v1::ClaimReply::default()));
        }
        if let Err(other) = self.node.claims.take(&bucket, &request.key, upload) {
            return Ok(Response::new(v1::ClaimReply { held_by: Some(convert::bytes(other.as_bytes())), ..v1::ClaimReply::default() }));
        }
        // Looked up after it was taken: what is stored from now on has no claim.
        let entries = self.node.store.versions(&bucket, &request.key, None, limit(request.limit)).map_err(not_ready)?;
        let entries = entries.iter().map(v1::VersionEntry::from).collect();
        Ok(Response::new(v1::ClaimReply { held_by: None, catching_up: self.node.is_catching_up(), entries }))
    }

    async fn list_versions(&self, request: Request<v1::ListVersionsRequest>) -> Result<Response<v1::ListVersionsReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let bucket: BucketId = convert::id("bucket", &request.bucket).map_err(|error| invalid(&error))?;
        let limit = limit(request.limit);
        let from = ListFrom { prefix: request.prefix, after: Some(request.after).filter(|after| !after.is_empty()), from: None };
        let listed = self.blocking("list", move |node| node.store.list(&bucket, &from, limit)).await?.map_err(not_ready)?;
        let full = listed.len() >= limit;
        let keys =
            listed.into_iter().map(|(key, entries)| v1::KeyVersions { key, entries: entries.iter().map(v1::VersionEntry::from).collect() });
        let (keys, cut) = convert::fitting(keys);
        let catching_up = self.node.is_catching_up();
        Ok(Response::new(v1::ListVersionsReply { catching_up, keys, more: full || cut }))
    }

    type FetchStream = Pin<Box<dyn Stream<Item = Result<v1::FetchReply, Status>> + Send>>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let from = self.partner(&request)?;
        let keys = keys(&request.into_inner().keys)?;
        let node = Arc::clone(&self.node);
        let replies = async_stream::stream! {
            for key in keys {
                // Held until the next is asked for: by then this one is on its way (rule 29).
                let _permit = node.transfer.answers.take(from, afar_model::limits::CHUNK_BYTES).await;
                yield Ok(match fetch::read_here(&node, key).await {
                    Ok(Some(record)) => v1::FetchReply { record: Some(v1::Record::from(&record)), bad: false },
                    Ok(None) => v1::FetchReply { record: None, bad: false },
                    Err(_) => v1::FetchReply { record: None, bad: true },
                });
            }
        };
        Ok(Response::new(Box::pin(replies)))
    }

    async fn prove(&self, request: Request<v1::ProveRequest>) -> Result<Response<v1::ProveReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let keys = keys(&request.keys)?;
        let open = self.node.layouts.open();
        let fits = request.layout.is_empty() || open.hashes().map(|hash| hash.as_slice()).eq([&request.layout[..]]);
        let proofs = if fits { fetch::prove_here(&self.node, &keys).await } else { vec![fetch::Proof::Unknown; keys.len()] };
        Ok(Response::new(v1::ProveReply { proofs: proofs.into_iter().map(|proof| v1::Proof::from(proof) as i32).collect() }))
    }

    async fn ids(&self, request: Request<v1::IdsRequest>) -> Result<Response<v1::IdsReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let after = request.after.as_ref().map(RecordKey::try_from).transpose().map_err(|error| invalid(&error))?;
        let range = range(request.first, request.last, self.node.layout().partitions());
        let limit = limit(request.limit);
        let kinds = [RecordKind::Chunk, RecordKind::Manifest, RecordKind::Setting];
        let ids = self.blocking("ids", move |node| node.store.ids(range, after.as_ref(), &kinds, limit)).await?.map_err(not_ready)?;
        let more = ids.len() >= limit;
        Ok(Response::new(v1::IdsReply { records: ids.iter().map(held).collect(), more }))
    }

    async fn version_ids(&self, request: Request<v1::VersionIdsRequest>) -> Result<Response<v1::VersionIdsReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let after = cursor(&request)?;
        let limit = limit(request.limit);
        let walk = if request.with_lost { Store::known_versions } else { Store::version_ids };
        let rows = self.blocking("version ids", move |node| walk(&node.store, after.as_ref(), limit)).await?.map_err(not_ready)?;
        let full = rows.len() >= limit;
        let (versions, cut) = convert::fitting(rows.into_iter().map(keyed));
        Ok(Response::new(v1::VersionIdsReply { versions, more: full || cut }))
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<v1::AuditReply>, Status> {
        self.partner(&request)?;
        let request = request.into_inner();
        let nonce: [u8; 32] =
            request.nonce[..].try_into().map_err(|_| status(Code::InvalidArgument, meta::exit::USAGE, "a nonce has 32 bytes"))?;
        let keys = keys(&request.keys)?;
        Ok(Response::new(v1::AuditReply { proofs: audit::answer(&self.node, nonce, keys).await }))
    }

    async fn gossip(&self, request: Request<v1::GossipRequest>) -> Result<Response<v1::GossipReply>, Status> {
        // A packet speaks for whom the certificate names, whatever it says itself.
        let from = self.partner(&request)?;
        if let Some(membership) = self.node.peers.membership() {
            membership.receive(self.node.layout().node_name(from), request.into_inner().packet);
        }
        Ok(Response::new(v1::GossipReply {}))
    }
}

/// Partitions are ranges of the first bits of an id.
fn range(first: u32, last: u32, partitions: u32) -> IdRange {
    let bits = 32 - partitions.max(1).ilog2();
    let low = u64::from(first) << bits;
    let high = ((u64::from(last) + 1) << bits).saturating_sub(1);
    IdRange { first: u32::try_from(low).unwrap_or(u32::MAX), last: u32::try_from(high).unwrap_or(u32::MAX) }
}

fn held(entry: &IdEntry) -> v1::HeldRecord {
    v1::HeldRecord {
        bucket: convert::bytes(entry.key.bucket.as_bytes()),
        id: convert::bytes(entry.key.id.as_bytes()),
        kind: entry.kind as u32,
        length: entry.length,
    }
}

fn keyed(row: VersionRow) -> v1::KeyedVersion {
    let entry: &VersionEntry = &row.entry;
    v1::KeyedVersion { bucket: convert::bytes(row.bucket.as_bytes()), entry: Some(entry.into()), key: row.key, lost: !row.here }
}

#[allow(clippy::result_large_err)]
fn before(at: &v1::VersionAt) -> Result<(Stamp, RecordId), Status> {
    Ok((Stamp::from_u64(at.stamp), convert::id("before", &at.id).map_err(|error| invalid(&error))?))
}

#[allow(clippy::result_large_err)]
fn cursor(request: &v1::VersionIdsRequest) -> Result<Option<VersionCursor>, Status> {
    if request.after_bucket.is_empty() {
        return Ok(None);
    }
    Ok(Some(VersionCursor {
        bucket: convert::id("after_bucket", &request.after_bucket).map_err(|error| invalid(&error))?,
        key: request.after_key.clone(),
        stamp: Stamp::from_u64(request.after_stamp),
        id: convert::id("after_id", &request.after_id).map_err(|error| invalid(&error))?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_ranges_of_ids() {
        assert_eq!(range(0, 8191, 8192), IdRange::ALL);
        assert_eq!(range(0, 0, 2), IdRange { first: 0, last: u32::MAX / 2 });
        assert_eq!(range(1, 1, 2), IdRange { first: 1 << 31, last: u32::MAX });
        assert_eq!(range(0, 0, 1), IdRange::ALL);
        assert_eq!(range(5, u32::MAX, 8192).last, u32::MAX);
    }
}
