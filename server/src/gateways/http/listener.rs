//! The accept loop of a port that speaks HTTP/1.1 and HTTP/2 over TLS, and the patience that it has with its callers.
//!
//! Everything that a stranger can do costs a bounded amount of memory for a bounded time: connections, header bytes, requests
//! on one connection, the time to the first request and between two, the time of a request, what is not taken of an answer.
//! There are no bodies: a request that brings one is refused before it is read.
use crate::{lifecycle::Lifecycle, limits};
use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode, Version, header},
};
use futures_util::FutureExt as _;
use hyper::{
    body::{Body as _, Incoming},
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ServerConfig;
use std::{convert::Infallible, net::SocketAddr, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt as _;

/// What the loop needs to know.
#[derive(Debug)]
pub struct Door {
    /// For handshakes.
    pub tls: Arc<ServerConfig>,
    /// Our tasks.
    pub lifecycle: Lifecycle,
    /// Connections at once; one more is closed at once.
    pub connections: usize,
    /// How long a caller may take to say what it wants.
    pub patience: Duration,
}

impl Door {
    /// Serves until background tasks are told to end: later than clients are, so that a probe hears that the node is draining.
    pub fn serve(self, listener: TcpListener, routes: Router) {
        let lifecycle = self.lifecycle.clone();
        lifecycle.spawn("http", |_| async move { Arc::new(self).accept(listener, routes).await });
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, routes: Router) {
        let places = Arc::new(Semaphore::new(self.connections));
        loop {
            let accepted = tokio::select! {
                () = self.lifecycle.stopping() => return,
                accepted = listener.accept() => accepted,
            };
            let (tcp, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(%remote, "too many connections: this one is closed");
                continue;
            };
            let (door, routes) = (Arc::clone(&self), routes.clone());
            self.lifecycle.spawn_brief("http connection", async move {
                let ending = door.lifecycle.clone();
                let Some(Some(stream)) = ending.token().run_until_cancelled(door.welcome(tcp, remote)).await else { return };
                door.converse(stream, routes).await;
                drop(place);
            });
        }
    }

    async fn welcome(&self, tcp: TcpStream, remote: SocketAddr) -> Option<TlsStream<TcpStream>> {
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%remote, %error, "set TCP_NODELAY");
        }
        let handshake = TlsAcceptor::from(Arc::clone(&self.tls)).accept(tcp);
        match tokio::time::timeout(limits::HANDSHAKE.min(self.patience), handshake).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "TLS handshake");
                None
            }
            Err(_) => {
                tracing::debug!(%remote, "TLS handshake took too long");
                None
            }
        }
    }

    async fn converse(&self, stream: TlsStream<TcpStream>, routes: Router) {
        let visit = Arc::new(Visit::new(self.patience));
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let (noted, lifecycle) = (Arc::clone(&visit), self.lifecycle.clone());
        let service = service_fn(move |request| {
            let (visit, lifecycle, routes) = (Arc::clone(&noted), lifecycle.clone(), routes.clone());
            async move {
                let _under_way = visit.request();
                Ok::<_, Infallible>(respond(request, routes, &lifecycle).await)
            }
        });
        let io = TokioIo::new(stream);
        if is_http2 {
            let connection = http2::Builder::new(Streams(self.lifecycle.clone()))
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits::HTTP_STREAMS)
                .max_header_list_size(limits::HTTP_HEADER_BYTES)
                .initial_stream_window_size(limits::WINDOW_MIN)
                .initial_connection_window_size(limits::WINDOW_MIN)
                .max_send_buf_size(limits::WINDOW_MIN as usize)
                .keep_alive_interval(limits::KEEPALIVE_INTERVAL)
                .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
                .serve_connection(io, service);
            self.attend(connection, &visit).await;
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.patience)
                .max_headers(limits::HTTP_HEADERS)
                .max_buf_size(limits::HTTP_HEADER_BYTES as usize)
                .serve_connection(io, service);
            self.attend(connection, &visit).await;
        }
    }

    /// Serves one connection, as long as patience lasts and the node does.
    async fn attend(&self, connection: impl Ending, visit: &Visit) {
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => return,
            () = visit.outstayed() => {}
            () = self.lifecycle.stopping() => {}
        }
        connection.as_mut().end();
        // Whoever does not even take its last answer is left.
        let _ = tokio::time::timeout(limits::HTTP_GRACE, connection).await;
    }
}

async fn respond(request: Request<Incoming>, routes: Router, lifecycle: &Lifecycle) -> Response<Body> {
    if !request.body().is_end_stream() {
        let mut refused = empty(StatusCode::PAYLOAD_TOO_LARGE);
        if request.version() < Version::HTTP_2 {
            // What it sends is not read, so nothing can follow it. (A stream of HTTP/2 simply ends.)
            refused.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        return refused;
    }
    let path = request.uri().path().to_owned();
    let answering = AssertUnwindSafe(routes.oneshot(request)).catch_unwind();
    match tokio::time::timeout(limits::HTTP_REQUEST, answering).await {
        Ok(Ok(Ok(answer))) => answer,
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(_)) => {
            lifecycle.count_panic();
            tracing::error!(path, "a request panicked: this is a bug, please report it");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(_) => empty(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// A connection that can be told to end.
trait Ending: Future<Output = hyper::Result<()>> {
    fn end(self: Pin<&mut Self>);
}

impl<I, S> Ending for http1::Connection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Ending for http2::Connection<I, S, Streams>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Where the streams of an HTTP/2 connection run: among the node's tasks.
#[derive(Clone)]
struct Streams(Lifecycle);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        self.0.spawn_brief("http stream", async move {
            stream.await;
        });
    }
}

/// One connection's use of our patience.
struct Visit {
    patience: Duration,
    born: Instant,
    now: Mutex<Doing>,
}

#[derive(Clone, Copy)]
struct Doing {
    under_way: usize,
    /// When the last request ended; the connection's beginning, if there was none.
    idle_since: Instant,
    has_asked: bool,
}

impl Visit {
    fn new(patience: Duration) -> Self {
        let born = Instant::now();
        Self { patience, born, now: Mutex::new(Doing { under_way: 0, idle_since: born, has_asked: false }) }
    }

    fn request(self: &Arc<Self>) -> UnderWay {
        let mut now = self.now.lock();
        now.under_way += 1;
        now.has_asked = true;
        UnderWay(Arc::clone(self))
    }

    /// Until when it may stay if nothing more happens.
    fn until(&self) -> Instant {
        let now = *self.now.lock();
        let may = match now {
            Doing { under_way: 1.., .. } => Instant::now() + limits::HTTP_REQUEST,
            Doing { has_asked: true, idle_since, .. } => idle_since + limits::HTTP_IDLE,
            Doing { idle_since, .. } => idle_since + self.patience,
        };
        may.min(self.born + limits::HTTP_CONNECTION_AGE)
    }

    /// Resolves when it has been here too long for what it does.
    async fn outstayed(&self) {
        loop {
            let until = self.until();
            tokio::time::sleep_until(until).await;
            if self.until() <= Instant::now() {
                return;
            }
        }
    }
}

struct UnderWay(Arc<Visit>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut now = self.0.now.lock();
        now.under_way -= 1;
        now.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_with_silence_and_with_age() {
        let begun = Instant::now();
        let visit = Arc::new(Visit::new(Duration::from_secs(3)));
        visit.outstayed().await;
        assert_eq!(begun.elapsed().as_secs(), 3, "nothing was asked");
        drop(visit.request());
        visit.outstayed().await;
        assert_eq!(begun.elapsed().as_secs(), 3 + limits::HTTP_IDLE.as_secs(), "nothing more was asked");
        let under_way = visit.request();
        let waits = tokio::time::timeout(limits::HTTP_CONNECTION_AGE / 2, visit.outstayed()).await;
        assert!(waits.is_err(), "a request is under way");
        visit.outstayed().await;
        assert_eq!(begun.elapsed().as_secs(), limits::HTTP_CONNECTION_AGE.as_secs(), "whatever it does");
        drop(under_way);
    }
}
