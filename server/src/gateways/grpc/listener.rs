//! One port, two classes of callers. An accept loop does the TLS handshakes, bounded in number and time, and then hands
//! each connection to one of two HTTP/2 servers: peers, who prove by certificate to be a node of the layout, get large
//! windows and the peer service; everybody else is a client with a window of at most 1 MiB (rule 29) and no way to the peer
//! service.
//!
//! ```text
//! accept ─► TLS handshake ─┬─ certificate of a node of the layout ─► peers' server    (control and bulk lanes)
//!                          └─ any other ────────────────────────────► clients' server (access keys)
//! ```
//!
//! At shutdown the loop stops first, then clients' requests get some time to end, then peers' streams. A connection that
//! never speaks must not hold that up (hyper #4170), so everything here has a bound in time.
use crate::{
    cluster::{
        identity::Identity,
        layouts::Layouts,
        trust::{Held, Role},
    },
    gateways::grpc::guard::GuardLayer,
    lifecycle::Lifecycle,
    limits,
};
use afar_model::layout::NodeIndex;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};

/// Who is at the other end; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Their address.
    pub remote: Option<SocketAddr>,
    /// The node of the layout that their certificate names; `None`: a client.
    pub node: Option<NodeIndex>,
    /// Their certificate names a node of this cluster, be it one that the layout does not name yet.
    pub certified: bool,
    /// Cancelled to close the connection, with everything on it. HTTP/2 keeps what it has taken over to send until the other
    /// end takes it, and there is no other way to have it back from one that never does.
    pub close: CancellationToken,
    /// Puts that it carries.
    pub puts: Arc<AtomicUsize>,
}

/// A put on its connection, until dropped.
#[derive(Debug)]
pub struct CarriedPut {
    /// Those that the connection carried already.
    pub others: usize,
    puts: Arc<AtomicUsize>,
}

impl ConnectionInfo {
    /// Notes that the connection carries one more put.
    pub fn carry_put(self) -> CarriedPut {
        CarriedPut { others: self.puts.fetch_add(1, Ordering::AcqRel), puts: self.puts }
    }
}

impl Drop for CarriedPut {
    fn drop(&mut self) {
        self.puts.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the listener needs to know.
#[derive(Debug)]
pub struct Door {
    /// Our certificate, and the authority of others'.
    pub identity: Arc<Identity>,
    /// Which nodes there are.
    pub layouts: Arc<Layouts>,
    /// Our tasks.
    pub lifecycle: Lifecycle,
    /// Client connections at once.
    pub connections: usize,
    /// Window of a client's connection, in bytes.
    pub client_window: u32,
    /// Window of a peer's connection, in bytes.
    pub peer_window: u32,
}

/// The two servers: each task ends when its class was told to leave.
#[derive(Debug)]
pub struct Servers {
    /// Ends after [`Lifecycle::begin_drain`].
    pub clients: JoinHandle<()>,
    /// Ends after [`Lifecycle::stop`].
    pub peers: JoinHandle<()>,
}

impl Door {
    /// Serves until the node ends.
    pub fn serve(self, listener: TcpListener, clients: Routes, peers: Routes) -> Servers {
        let (to_clients, new_clients) = mpsc::channel(limits::ACCEPT_QUEUE);
        let (to_peers, new_peers) = mpsc::channel(limits::ACCEPT_QUEUE);
        let lifecycle = self.lifecycle.clone();
        let hall = Arc::new(Hall {
            clients: Arc::new(Semaphore::new(self.connections)),
            per_peer: Mutex::default(),
            identity: self.identity,
            layouts: self.layouts,
            to_clients,
            to_peers,
        });
        let accepting = accept(listener, hall, lifecycle.clone());
        lifecycle.spawn("accept", |_| accepting);
        let (ending, stopping) = (lifecycle.clone(), lifecycle.clone());
        let mut client_server = client_server(&lifecycle, self.client_window);
        let mut peer_server = peer_server(&lifecycle, self.peer_window);
        Servers {
            clients: lifecycle.spawn_brief("clients", async move {
                let told = ending.clone();
                let serving = client_server
                    .add_routes(clients)
                    .serve_with_incoming_shutdown(incoming(new_clients), async move { told.draining().await });
                end_within(limits::DRAIN_CLIENTS, serving, ending.draining(), "clients").await;
            }),
            peers: lifecycle.spawn_brief("peers", async move {
                let told = stopping.clone();
                let serving =
                    peer_server.add_routes(peers).serve_with_incoming_shutdown(incoming(new_peers), async move { told.stopping().await });
                end_within(limits::DRAIN_TASKS / 2, serving, stopping.stopping(), "peers").await;
            }),
        }
    }
}

type Guarded = Server<tower::layer::util::Stack<GuardLayer, tower::layer::util::Identity>>;

fn server(lifecycle: &Lifecycle, window: u32) -> Guarded {
    Server::builder()
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(afar_proto::limits::HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .layer(GuardLayer::new(lifecycle.clone()))
}

fn client_server(lifecycle: &Lifecycle, window: u32) -> Guarded {
    server(lifecycle, window)
        .max_frame_size(afar_proto::limits::FRAME_BYTES)
        .max_connection_age(limits::CLIENT_CONNECTION_AGE)
        .max_connection_age_grace(limits::CLIENT_CONNECTION_GRACE)
}

fn peer_server(lifecycle: &Lifecycle, window: u32) -> Guarded {
    server(lifecycle, window).max_frame_size(afar_proto::limits::PEER_FRAME_BYTES)
}

fn incoming(connections: mpsc::Receiver<Connection>) -> impl futures_util::Stream<Item = Result<Connection, io::Error>> {
    futures_util::StreamExt::map(ReceiverStream::new(connections), Ok)
}

/// Runs a server; once told to end it has `grace`, then it is dropped with every connection that is left.
async fn end_within(
    grace: Duration,
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    told: impl Future<Output = ()>,
    class: &'static str,
) {
    let too_late = async {
        told.await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::error!(class, %error, "serving ended");
        },
        () = too_late => tracing::warn!(class, "connections that did not end in time are dropped"),
    }
}

/// Where connections stand between their handshake and their server.
struct Hall {
    clients: Arc<Semaphore>,
    per_peer: Mutex<HashMap<NodeIndex, Arc<Semaphore>>>,
    identity: Arc<Identity>,
    layouts: Arc<Layouts>,
    to_clients: mpsc::Sender<Connection>,
    to_peers: mpsc::Sender<Connection>,
}

async fn accept(listener: TcpListener, hall: Arc<Hall>, lifecycle: Lifecycle) {
    let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = lifecycle.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, remote)) => {
                let (hall, ending) = (Arc::clone(&hall), lifecycle.clone());
                lifecycle.spawn_brief("handshake", async move {
                    tokio::select! {
                        () = ending.draining() => {}
                        () = hall.welcome(tcp, remote) => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Most of these concern one connection; the rest (no descriptors left) pass when others close.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Hall {
    async fn welcome(&self, tcp: TcpStream, remote: SocketAddr) {
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%remote, %error, "set TCP_NODELAY");
        }
        let handshake = TlsAcceptor::from(self.identity.server_config()).accept(tcp);
        let stream = match tokio::time::timeout(limits::HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake"),
            Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
        };
        // Nothing is held of those who showed no certificate: they are known by their access keys.
        let chain = stream.get_ref().1.peer_certificates();
        let held = match chain.map(|chain| self.identity.hold(chain, Role::Caller)).transpose() {
            Ok(held) => held,
            Err(error) => return tracing::debug!(%remote, %error, "its certificate is not believed any more"),
        };
        let name = self.name_of(&stream);
        let (layout, mut changes) = self.layouts.watched();
        let node = name.as_deref().and_then(|name| layout.node_named(name));
        if let Some(name) = name.as_deref().filter(|_| node.is_none()) {
            tracing::warn!(name, "a certificate names a node that the layout does not (yet): treated as a client");
        }
        let Ok(place) = self.places(node).try_acquire_owned() else {
            let caller = node.map_or("a client", |node| layout.node_name(node));
            return tracing::warn!(%remote, caller, "too many connections: this one is closed");
        };
        // A node that the layout does not name yet is a client until it does; then it must come again, by the other door.
        let anew: Option<Leaving> =
            (name.is_some() && node.is_none()).then(|| Box::pin(async move { drop(changes.changed().await) }) as Leaving);
        let close = CancellationToken::new();
        let connection = Connection {
            stream,
            anew,
            closed: Box::pin(close.clone().cancelled_owned()),
            info: ConnectionInfo { remote: Some(remote), node, certified: name.is_some(), close, puts: Arc::default() },
            silence: Some(Box::pin(tokio::time::sleep(limits::FIRST_BYTE))),
            held,
            _place: place,
        };
        let to = if node.is_some() { &self.to_peers } else { &self.to_clients };
        // An error means that the server has ended, and with it this connection.
        let _ = to.send(connection).await;
    }

    /// The handshake has verified the certificate; here it is only read.
    fn name_of(&self, stream: &TlsStream<TcpStream>) -> Option<String> {
        let certificate = stream.get_ref().1.peer_certificates()?.first()?;
        self.identity.node_named_by(certificate)
    }

    fn places(&self, node: Option<NodeIndex>) -> Arc<Semaphore> {
        let Some(node) = node else { return Arc::clone(&self.clients) };
        let mut per_peer = self.per_peer.lock();
        Arc::clone(per_peer.entry(node).or_insert_with(|| Arc::new(Semaphore::new(limits::CONNECTIONS_PER_PEER))))
    }
}

type Leaving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection after its handshake, with its place among those of its class.
struct Connection {
    stream: TlsStream<TcpStream>,
    /// Ends when this connection belongs to another class.
    anew: Option<Leaving>,
    info: ConnectionInfo,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the first byte came.
    silence: Option<Pin<Box<Sleep>>>,
    /// If it rests on a certificate: it ends when that is not believed any more.
    held: Option<Held>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn still_believed(&self) -> io::Result<()> {
        self.held.as_ref().map_or(Ok(()), Held::check)
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;
    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(held) = &self.held {
            held.poll(cx)?;
        }
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.anew.as_mut().is_some_and(|anew| anew.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(silence) = &mut self.silence {
            if polled.is_ready() {
                self.silence = None;
            } else if silence.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.still_believed()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.still_believed()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
