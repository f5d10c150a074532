//! A peer that answers wrong bytes: it stands between two nodes with the certificates of both, passes everything on, and
//! turns a bit over in every record that is fetched through it.
use crate::cluster::Cluster;
use afar_proto::v1::{
    AuditReply, AuditRequest, FetchReply, FetchRequest, HelloReply, HelloRequest, IdsReply, IdsRequest, ListVersionsReply,
    ListVersionsRequest, ProveReply, ProveRequest, StoreReply, StoreRequest, VersionIdsReply, VersionIdsRequest, VersionsReply,
    VersionsRequest,
    peer_client::PeerClient,
    peer_server::{Peer, PeerServer},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// See the module.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    lies: Arc<AtomicU64>,
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
        let address = runtime.block_on(serve(cluster, caller, honest, Arc::clone(&lies))).expect("stand between two nodes");
        Self { address, lies, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
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

async fn serve(cluster: &Cluster, caller: &str, honest: &str, lies: Arc<AtomicU64>) -> anyhow::Result<SocketAddr> {
    let channel = crate::wire::connect(cluster, honest, Some(caller)).await?;
    let most = afar_proto::limits::MESSAGE_BYTES_MAX;
    let honest_peer = PeerClient::new(channel).max_decoding_message_size(most).max_encoding_message_size(most);
    let folder = cluster.node(honest).folder();
    let identity = Identity::from_pem(std::fs::read(folder.join("node.crt"))?, std::fs::read(folder.join("node.key"))?);
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let peer = PeerServer::new(Between { honest: honest_peer, lies }).max_decoding_message_size(most).max_encoding_message_size(most);
    let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity))?.add_service(peer);
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

struct Between {
    honest: PeerClient<Channel>,
    lies: Arc<AtomicU64>,
}

type Fetched = Pin<Box<dyn Stream<Item = Result<FetchReply, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Between {
    type StoreStream = Streaming<StoreReply>;
    type FetchStream = Fetched;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Fetched>, Status> {
        let answers = self.honest.clone().fetch(request.into_inner()).await?.into_inner();
        let lies = Arc::clone(&self.lies);
        Ok(Response::new(Box::pin(answers.map(move |answer| answer.map(|answer| falsified(answer, &lies))))))
    }

    async fn store(&self, request: Request<Streaming<StoreRequest>>) -> Result<Response<Streaming<StoreReply>>, Status> {
        let requests = request.into_inner().filter_map(|request| std::future::ready(request.ok()));
        self.honest.clone().store(requests).await
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        self.honest.clone().hello(request.into_inner()).await
    }

    async fn versions(&self, request: Request<VersionsRequest>) -> Result<Response<VersionsReply>, Status> {
        self.honest.clone().versions(request.into_inner()).await
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
