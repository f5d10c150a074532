//! Layouts over gRPC: for nodes that tell each other, and for operators. What is offered proves itself by its signatures.
use super::{
    auth,
    meta::{self, status},
};
use crate::{cluster::exchange, limits, node::Node};
use afar_model::document::Chain;
use afar_proto::{
    convert,
    v1::{self, layouts_server::Layouts},
};
use bytes::Bytes;
use std::{pin::Pin, sync::Arc};
use tonic::{Code, Request, Response, Status, Streaming};

/// The service.
#[derive(Debug, Clone)]
pub struct LayoutsService {
    node: Arc<Node>,
}

impl LayoutsService {
    /// On this node.
    pub const fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// An administrator, or a node of this cluster: even one that the layout does not name yet.
    #[allow(clippy::result_large_err)]
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if meta::is_certified(request) {
            return Ok(());
        }
        let caller = auth::caller_at(request, &self.node)?;
        auth::require_admin(&caller, "read or change the layout")
    }
}

type Parts = Pin<Box<dyn futures_util::Stream<Item = Result<v1::LayoutPart, Status>> + Send>>;

#[tonic::async_trait]
impl Layouts for LayoutsService {
    type GetStream = Parts;

    async fn get(&self, request: Request<v1::GetLayoutsRequest>) -> Result<Response<Parts>, Status> {
        self.admit(&request)?;
        let (node, layouts) = (&self.node, &self.node.layouts);
        let layout = layouts.current();
        let chain = Bytes::from(layouts.whole_chain().encode());
        let head = v1::LayoutPart {
            current: convert::bytes(layout.hash()),
            version: layout.version(),
            open: layouts.open().hashes().map(|hash| convert::bytes(hash)).collect(),
            node: node.config.node.clone(),
            buckets: exchange::placed_buckets(node),
            ..v1::LayoutPart::default()
        };
        Ok(Response::new(Box::pin(futures_util::stream::iter(exchange::parts(chain, head).into_iter().map(Ok)))))
    }

    async fn offer(&self, request: Request<Streaming<v1::LayoutPart>>) -> Result<Response<v1::OfferReply>, Status> {
        self.admit(&request)?;
        let mut parts = request.into_inner();
        let (mut bytes, mut check_only, mut first) = (Vec::new(), false, true);
        loop {
            let next = tokio::time::timeout(limits::FETCH_DEADLINE, parts.message()).await;
            let next = next.map_err(|_| status(Code::DeadlineExceeded, meta::exit::UNREACHABLE, "the layout did not arrive in time"))??;
            let Some(part) = next else { break };
            check_only |= first && part.check_only;
            first = false;
            if bytes.len() + part.data.len() > Chain::BYTES_MAX {
                let message = format!("the chain is larger than {} bytes: this node keeps its last good layout", Chain::BYTES_MAX);
                tracing::error!(message, "a layout is refused");
                self.node.layouts.refuse(std::slice::from_ref(&message));
                return Err(status(Code::InvalidArgument, meta::exit::USAGE, message));
            }
            bytes.extend_from_slice(&part.data);
        }
        let objections = exchange::take(&self.node, bytes, check_only).await;
        let layout = self.node.layouts.current();
        Ok(Response::new(v1::OfferReply {
            node: self.node.config.node.clone(),
            current: convert::bytes(layout.hash()),
            version: layout.version(),
            passes: objections.pass(),
            problems: objections.problems,
        }))
    }
}
