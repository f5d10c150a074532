//! gRPC on the node's one port: what clients may ask for (with an access key) and what peers may (with a certificate).
//!
//! A handler decodes, asks the domain, encodes. Who asks is settled before it runs: [`listener`] tells peers from clients,
//! [`auth`] tells clients from each other. [`meta`] is how errors become statuses.
pub mod listener;

pub mod guard;

pub mod flow;

pub mod auth;

pub mod meta;

pub mod objects;

pub mod admin;

pub mod status;

pub mod peer;

pub mod layouts;

use crate::{node::Node, objects::ObjectError};
use afar_proto::v1;
use futures_util::future::{Ready, ready};
use meta::exit;
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{InterceptedService, http},
    server::NamedService,
    service::Routes,
};
use tonic_health::pb::health_server::{Health, HealthServer};

/// A service that refuses messages larger than the wire allows.
macro_rules! bounded {
    ($service:expr) => {
        $service
            .max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
    };
}

/// What a client's connection reaches.
pub fn client_routes(node: &Arc<Node>) -> Routes {
    let routes = Routes::new(health()).add_service(NotForClients);
    add_client_services(node, with_reflection(node, routes))
}

/// What a peer's connection reaches.
pub fn peer_routes(node: &Arc<Node>) -> Routes {
    add_peer_services(node, Routes::new(health()))
}

fn add_client_services(node: &Arc<Node>, routes: Routes) -> Routes {
    routes
        .add_service(bounded!(v1::objects_server::ObjectsServer::new(objects::ObjectsService::new(Arc::clone(node)))))
        .add_service(bounded!(v1::layouts_server::LayoutsServer::new(layouts::LayoutsService::new(Arc::clone(node)))))
        .add_service(bounded!(v1::admin_server::AdminServer::new(admin::AdminService::new(Arc::clone(node)))))
        .add_service(bounded!(v1::status_server::StatusServer::new(status::StatusService::new(Arc::clone(node)))))
}

fn add_peer_services(node: &Arc<Node>, routes: Routes) -> Routes {
    let layouts = bounded!(v1::layouts_server::LayoutsServer::new(layouts::LayoutsService::new(Arc::clone(node))));
    routes.add_service(layouts).add_service(bounded!(v1::peer_server::PeerServer::new(peer::PeerService::new(Arc::clone(node)))))
}

/// The standard health service: open to everybody, for load balancers; says that the process serves, nothing about data.
fn health() -> HealthServer<impl Health> {
    // The reporter starts out with the whole server, the empty name, as serving.
    tonic_health::server::health_reporter().1
}

/// The standard reflection service, for those with an access key.
fn with_reflection(node: &Arc<Node>, routes: Routes) -> Routes {
    let built =
        tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(afar_proto::FILE_DESCRIPTORS).build_v1();
    let node = Arc::clone(node);
    let check = move |request: tonic::Request<()>| auth::from_metadata(request.metadata(), &node.keyring).map(|_| request);
    match built {
        Ok(service) => routes.add_service(InterceptedService::new(service, check)),
        Err(error) => {
            tracing::error!(%error, "no reflection");
            routes
        }
    }
}

/// Runs an operation of several steps: to the end, for tonic drops a request's handler as soon as its caller goes away, and
/// what is left halfway by a node that lives on is mended by nobody.
async fn to_the_end<T: Send + 'static>(
    node: &Node,
    name: &'static str,
    work: impl Future<Output = Result<T, ObjectError>> + Send + 'static,
) -> Result<T, Status> {
    let ended = node.lifecycle.to_the_end(name, work).await;
    Ok(ended.ok_or_else(|| meta::status(Code::Internal, exit::FAILED, "the node is ending, or has a bug: its log says more"))??)
}

/// Stands where clients would find the peer service.
#[derive(Debug, Clone, Copy)]
struct NotForClients;

impl NamedService for NotForClients {
    const NAME: &'static str = "afar.v1.Peer";
}

impl tower::Service<http::Request<Body>> for NotForClients {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let why = "only a node of this cluster's layout may ask for this, proved by its certificate";
        ready(Ok(meta::status(Code::PermissionDenied, exit::AUTHENTICATION, why).into_http()))
    }
}
