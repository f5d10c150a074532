//! HTTP on a port of its own, for those who watch this node: probes and Prometheus.
//!
//! ```text
//! /healthz  the process lives, and has disks to work with   open to everybody
//! /readyz   it can do its part of whatever it is asked      open to everybody
//! /metrics  what it knows of itself                         with an access key, unless the operator opens it
//! ```
//!
//! The port is there before the log is opened: whoever restarts what does not answer must not restart a node that reads its
//! log. A page for people would be one more route in `routes`; S3 has a port of its own, and shares
//! [`listener`] and [`PublicTls`] with this one.
pub mod listener;

pub mod metrics;

pub mod probes;

use crate::{
    cluster::keyring::{Caller, KeyRing},
    config::{Config, MetricsAccess},
    gateways::{grpc::auth, public_tls::PublicTls},
    lifecycle::Lifecycle,
    limits,
    node::Node,
};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use probes::Verdict;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::{net::TcpListener, sync::Semaphore};

/// What requests are answered from.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    /// Once its log is open.
    node: OnceLock<Arc<Node>>,
    metrics: MetricsAccess,
    lifecycle: Lifecycle,
    /// Looks at the disks under way: one that hangs must not take a thread for every probe that asks after it.
    looks: Arc<Semaphore>,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// It is somebody else's.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// What the TLS library has against it.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Opens the port, if the configuration asks for one. Until [`Gateway::serve`] it says that the node is starting.
///
/// # Errors
/// If it cannot.
pub async fn open(config: &Config, tls: &Arc<PublicTls>, lifecycle: &Lifecycle) -> Result<Option<Arc<Gateway>>, HttpError> {
    let Some(port) = &config.http else { return Ok(None) };
    let listener = TcpListener::bind(port.listen).await?;
    let gateway = Arc::new(Gateway {
        address: listener.local_addr()?,
        node: OnceLock::new(),
        metrics: port.metrics,
        lifecycle: lifecycle.clone(),
        looks: Arc::new(Semaphore::new(limits::HTTP_LOOKS)),
    });
    let door = listener::Door {
        tls: tls.server_config()?,
        lifecycle: lifecycle.clone(),
        connections: limits::HTTP_CONNECTIONS,
        patience: limits::HTTP_PATIENCE.min(config.slow_after),
    };
    door.serve(listener, routes(Arc::clone(&gateway)));
    Ok(Some(gateway))
}

fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new().route("/healthz", get(health)).route("/readyz", get(readiness)).route("/metrics", get(metrics_page)).with_state(gateway)
}

impl Gateway {
    /// The node is there.
    pub fn serve(&self, node: &Arc<Node>) {
        // It is said once; a second time would be the same node.
        let _ = self.node.set(Arc::clone(node));
    }

    /// Asks the node something that may wait for a disk. `None`: no answer in time, so nobody knows.
    async fn look<T: Send + 'static>(&self, node: &Arc<Node>, ask: impl FnOnce(&Node) -> T + Send + 'static) -> Option<T> {
        let look = async {
            let permit = Arc::clone(&self.looks).acquire_owned().await.ok()?;
            let node = Arc::clone(node);
            let asking = move || {
                let answer = ask(&node);
                drop(permit);
                answer
            };
            self.lifecycle.blocking("http", asking).await
        };
        tokio::time::timeout(limits::HTTP_LOOK, look).await.ok().flatten()
    }

    async fn verdict(&self, starting: Verdict, judge: fn(&Node) -> Verdict) -> Response<Body> {
        let Some(node) = self.node.get() else { return judged(&starting) };
        judged(&self.look(node, judge).await.unwrap_or_else(Verdict::unknown))
    }
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response<Body> {
    gateway.verdict(Verdict::good("starting: the log is being opened"), probes::health).await
}

async fn readiness(State(gateway): State<Arc<Gateway>>) -> Response<Body> {
    gateway.verdict(Verdict::bad("starting: the log is being opened"), probes::readiness).await
}

async fn metrics_page(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response<Body> {
    let Some(node) = gateway.node.get() else { return plain(StatusCode::SERVICE_UNAVAILABLE, "starting: the log is being opened\n") };
    if gateway.metrics == MetricsAccess::Key && caller(&headers, &node.keyring).is_none() {
        if node.is_catching_up() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "this node is catching up and may not know this access key yet: retry\n");
        }
        let mut refusal = plain(StatusCode::UNAUTHORIZED, "an access key is needed: its id and secret by basic authentication\n");
        refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"afar\", charset=\"UTF-8\""));
        return refusal;
    }
    match gateway.look(node, metrics::page).await {
        Some(Ok(page)) => answer(StatusCode::OK, metrics::CONTENT_TYPE, page),
        _ => plain(StatusCode::SERVICE_UNAVAILABLE, "unknown: the disks did not answer in time\n"),
    }
}

/// Whose key it is: `Basic` with its id and secret, as Prometheus and curl do it, or `Bearer ID.SECRET`, as everywhere else.
fn caller(headers: &HeaderMap, keyring: &KeyRing) -> Option<Caller> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let Some(encoded) = header.strip_prefix("Basic ") else { return auth::bearer(header, keyring) };
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    keyring.authenticate(id, secret)
}

fn judged(verdict: &Verdict) -> Response<Body> {
    let status = if verdict.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, "application/json", verdict.to_json())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // What was true a moment ago is no answer.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::keyring::{AdminKey, ClusterSecret, Secret};

    #[test]
    fn a_key_opens_either_way_and_nothing_else_does() {
        let admin = AdminKey { access_key_id: "AFAR1".into(), secret_access_key: Secret::new("a:b.c") };
        let ring = KeyRing::new(&ClusterSecret::new([1; 32]), &admin).unwrap();
        let ask = |value: String| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            caller(&headers, &ring).is_some()
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(ask(basic("AFAR1:a:b.c")) && ask("Bearer AFAR1.a:b.c".into()));
        let wrong = [basic("AFAR1:a:b"), basic("AFAR1"), basic(":"), basic("AFAR2:a:b.c"), "Basic !".into(), "AFAR1:a:b.c".into()];
        assert!(!wrong.into_iter().any(ask) && caller(&HeaderMap::new(), &ring).is_none());
    }
}
