//! A peer that answers wrong bytes: it stands between two nodes with the certificates of both, passes everything on, and
//! turns a bit over in every record that is fetched through it. On the lanes that write to it it can be told to misbehave,
//! too: see [`Conduct`].
use crate::cluster::Cluster;
use afar_model::record::RecordKind;
use afar_proto::v1::{
    AuditReply, AuditRequest, ClaimReply, ClaimRequest, FetchReply, FetchRequest, GossipReply, GossipRequest, HelloReply, HelloRequest,
    IdsReply, IdsRequest, ListVersionsReply, ListVersionsRequest, ProveReply, ProveRequest, StoreFailure, StoreReply, StoreRequest,
    VersionIdsReply, VersionIdsRequest, VersionsReply, VersionsRequest,
    peer_client::PeerClient,
    peer_server::{Peer, PeerServer},
    store_request::Work,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::watch;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// How it treats those who write through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// Passes everything on.
    Honest,
    /// Says that every sync failed.
    RefuseSyncs,
    /// Stores versions, and says that it did not.
    DenyVersions,
    /// Answers as disks that nobody has met under its name.
    OtherDisks,
    /// Keeps back its answers to requests of these kinds until one of each kind has arrived: whoever waits for the answer to
    /// one before it sends the next waits for ever.
    Together(u8),
}

/// A request that carries a chunk.
pub const CHUNK: u8 = 1;
/// A request that carries a version.
pub const VERSION: u8 = 2;
/// A request to sync what was written.
pub const SYNC: u8 = 4;

/// What all streams through it share.
#[derive(Debug)]
struct Lanes {
    conduct: Mutex<Conduct>,
    seen: watch::Sender<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    lies: Arc<AtomicU64>,
    lanes: Arc<Lanes>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Liar {
    /// Stands between `caller` and the `honest` node, which runs. The caller's file must be told: [`Liar::address`].
    ///
    /// # Panics
    /// If the honest node does not answer.
    pub fn between(cluster: &Cluster, caller: &str, honest: &str) -> Self {
        let runtime = crate::wire::runtime();
        let lies = Arc::new(AtomicU64::new(0));
        let lanes = Arc::new(Lanes { conduct: Mutex::new(Conduct::Honest), seen: watch::Sender::new(0) });
        let served = runtime.block_on(serve(cluster, caller, honest, Arc::clone(&lies), Arc::clone(&lanes)));
        Self { address: served.expect("stand between two nodes"), lies, lanes, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it treats writers from now on; what it has seen before counts for nothing.
    ///
    /// # Panics
    /// If a stream panicked.
    pub fn behave(&self, conduct: Conduct) {
        *self.lanes.conduct.lock().expect("no stream panicked") = conduct;
        self.lanes.seen.send_replace(0);
    }

    /// Which kinds of requests it has seen since it was last told how to behave.
    pub fn seen(&self) -> u8 {
        *self.lanes.seen.borrow()
    }

    /// How many records it has falsified.
    pub fn lies(&self) -> u64 {
        self.lies.load(Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(cluster: &Cluster, caller: &str, honest: &str, lies: Arc<AtomicU64>, lanes: Arc<Lanes>) -> anyhow::Result<SocketAddr> {
    let channel = crate::wire::connect(cluster, honest, Some(caller)).await?;
    let most = afar_proto::limits::MESSAGE_BYTES_MAX;
    let honest_peer = PeerClient::new(channel).max_decoding_message_size(most).max_encoding_message_size(most);
    let folder = cluster.node(honest).folder();
    let identity = Identity::from_pem(std::fs::read(folder.join("node.crt"))?, std::fs::read(folder.join("node.key"))?);
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let peer =
        PeerServer::new(Between { honest: honest_peer, lies, lanes }).max_decoding_message_size(most).max_encoding_message_size(most);
    let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity))?.add_service(peer);
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

struct Between {
    honest: PeerClient<Channel>,
    lies: Arc<AtomicU64>,
    lanes: Arc<Lanes>,
}

type Stored = Pin<Box<dyn Stream<Item = Result<StoreReply, Status>> + Send>>;
type Fetched = Pin<Box<dyn Stream<Item = Result<FetchReply, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Between {
    type StoreStream = Stored;
    type FetchStream = Fetched;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Fetched>, Status> {
        let answers = self.honest.clone().fetch(request.into_inner()).await?.into_inner();
        let lies = Arc::clone(&self.lies);
        Ok(Response::new(Box::pin(answers.map(move |answer| answer.map(|answer| falsified(answer, &lies))))))
    }

    async fn store(&self, request: Request<Streaming<StoreRequest>>) -> Result<Response<Stored>, Status> {
        let (lanes, sent) = (Arc::clone(&self.lanes), Arc::new(Mutex::new(HashMap::new())));
        let noted = Arc::clone(&sent);
        let requests = request.into_inner().filter_map(move |request| {
            let request = request.ok();
            if let Some(request) = &request {
                let kinds = kinds(request);
                noted.lock().expect("no stream panicked").insert(request.sequence, kinds);
                lanes.seen.send_modify(|seen| *seen |= kinds);
            }
            std::future::ready(request)
        });
        let replies = self.honest.clone().store(requests).await?.into_inner();
        let lanes = Arc::clone(&self.lanes);
        let replies = replies.then(move |reply| {
            let (lanes, sent) = (Arc::clone(&lanes), Arc::clone(&sent));
            async move { Ok(treated(reply?, &lanes, &sent).await) }
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        self.honest.clone().hello(request.into_inner()).await
    }

    async fn versions(&self, request: Request<VersionsRequest>) -> Result<Response<VersionsReply>, Status> {
        self.honest.clone().versions(request.into_inner()).await
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        self.honest.clone().claim(request.into_inner()).await
    }

    async fn list_versions(&self, request: Request<ListVersionsRequest>) -> Result<Response<ListVersionsReply>, Status> {
        self.honest.clone().list_versions(request.into_inner()).await
    }

    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<ProveReply>, Status> {
        self.honest.clone().prove(request.into_inner()).await
    }

    async fn ids(&self, request: Request<IdsRequest>) -> Result<Response<IdsReply>, Status> {
        self.honest.clone().ids(request.into_inner()).await
    }

    async fn version_ids(&self, request: Request<VersionIdsRequest>) -> Result<Response<VersionIdsReply>, Status> {
        self.honest.clone().version_ids(request.into_inner()).await
    }

    async fn audit(&self, request: Request<AuditRequest>) -> Result<Response<AuditReply>, Status> {
        self.honest.clone().audit(request.into_inner()).await
    }

    async fn gossip(&self, request: Request<GossipRequest>) -> Result<Response<GossipReply>, Status> {
        self.honest.clone().gossip(request.into_inner()).await
    }
}

fn kinds(request: &StoreRequest) -> u8 {
    match &request.work {
        Some(Work::Sync(_)) => SYNC,
        Some(Work::Records(records)) => records.records.iter().fold(0, |kinds, record| {
            kinds
                | match record.kind {
                    kind if kind == RecordKind::Chunk as u32 => CHUNK,
                    kind if kind == RecordKind::Version as u32 => VERSION,
                    _ => 0,
                }
        }),
        _ => 0,
    }
}

async fn treated(mut reply: StoreReply, lanes: &Lanes, sent: &Mutex<HashMap<u64, u8>>) -> StoreReply {
    let kinds = sent.lock().expect("no stream panicked").remove(&reply.sequence).unwrap_or(0);
    let conduct = *lanes.conduct.lock().expect("no stream panicked");
    match conduct {
        Conduct::RefuseSyncs if kinds & SYNC != 0 => {
            reply.failure = Some(StoreFailure { reason: "read_only".into(), detail: "the sync failed".into() });
        }
        Conduct::DenyVersions if kinds & VERSION != 0 => {
            reply.failure = Some(StoreFailure { reason: "read_only".into(), detail: "the version was not stored".into() });
        }
        Conduct::OtherDisks => reply.incarnation = Bytes::from_static(&[7; 16]),
        Conduct::Together(all) if kinds & all != 0 => {
            // Ends with an error only when the test does.
            let _ = lanes.seen.subscribe().wait_for(|seen| seen & all == all).await;
        }
        _ => {}
    }
    reply
}

fn falsified(mut answer: FetchReply, lies: &AtomicU64) -> FetchReply {
    if let Some(record) = &mut answer.record {
        let mut body = record.body.to_vec();
        if let Some(last) = body.last_mut() {
            *last ^= 1;
        }
        record.body = Bytes::from(body);
        lies.fetch_add(1, Relaxed);
    }
    answer
}
