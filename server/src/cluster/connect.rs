//! Connections to a peer: TCP, TLS with our certificate, and a look at theirs. A certificate of the cluster's authority is
//! not enough: it must name the very node that we meant to call.
use crate::{
    cluster::{
        identity::Identity,
        trust::{self, Held, Role},
    },
    limits,
};
use afar_model::units::UnixMillis;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// A peer's address, from its endpoint in the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address; an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// An endpoint that cannot be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {0:?}: write https://HOST:PORT, such as https://node1.example:7700")]
pub struct BadEndpoint(pub String);

impl Address {
    /// From `https://HOST:PORT`; the port may be left out and is 7700 then.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn parse(endpoint: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(endpoint.chars().take(200).collect());
        let uri: Uri = endpoint.parse().map_err(|_| bad())?;
        let plain = uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|authority| plain && !authority.as_str().contains('@')).ok_or_else(bad)?;
        let port = match authority.port() {
            Some(port) => port.as_str().parse().ok().filter(|port| *port != 0).ok_or_else(bad)?,
            None if authority.as_str() == authority.host() => limits::PORT_DEFAULT,
            None => return Err(bad()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if ServerName::try_from(host.clone()).is_err() {
            return Err(bad());
        }
        Ok(Self { host, port })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// Why a connection did not come about.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("{address}: connection refused: is afard running there?")]
    Refused {
        /// As called.
        address: String,
    },
    /// TCP did not get through.
    #[error("{address}: {why}")]
    Network {
        /// As called.
        address: String,
        /// What the system said.
        why: String,
    },
    /// TLS did not come about.
    #[error("{address}: TLS: {why}: the certificates of both nodes must come from one authority and be valid")]
    Tls {
        /// As called.
        address: String,
        /// What was wrong.
        why: String,
    },
    /// Their certificate is not believed here.
    #[error("{address}: the certificate there is refused: {why}")]
    Untrusted {
        /// As called.
        address: String,
        /// Why, and what to do.
        why: String,
    },
    /// Our certificate is not believed there.
    #[error("{address}: refuses this node's certificate: {why}")]
    RefusesUs {
        /// As called.
        address: String,
        /// Why, and what to do.
        why: String,
    },
    /// Somebody else answers.
    #[error("{address}: the certificate there is {found}'s, expected {expected}'s: check the layout's endpoints")]
    SomebodyElse {
        /// As called.
        address: String,
        /// Who answers.
        found: String,
        /// Whom we called.
        expected: String,
    },
}

/// How to reach one peer.
#[derive(Clone)]
pub struct Connector {
    address: Address,
    node: String,
    identity: Arc<Identity>,
    /// The last failure, for those who only see that a request failed; none while connected.
    last: Arc<Mutex<Option<ConnectError>>>,
    ended: Arc<Notify>,
    /// When the certificate that was last seen there ends, in Unix milliseconds; 0: none was.
    certificate_ends: Arc<AtomicU64>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("address", &self.address).field("node", &self.node).finish_non_exhaustive()
    }
}

impl Connector {
    /// For the node of that name at that address.
    pub fn new(address: Address, node: impl Into<String>, identity: Arc<Identity>) -> Self {
        Self { address, node: node.into(), identity, last: Arc::default(), ended: Arc::default(), certificate_ends: Arc::default() }
    }

    /// One for the same peer that shares nothing with this one.
    #[must_use]
    pub fn aside(&self) -> Self {
        Self::new(self.address.clone(), self.node.clone(), Arc::clone(&self.identity))
    }

    /// Notified whenever a connection has ended: the first sign of a peer's death.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Why the last attempt failed, if it did.
    pub fn last_failure(&self) -> Option<ConnectError> {
        self.last.lock().clone()
    }

    /// When the certificate that was last seen there ends.
    pub fn certificate_ends(&self) -> Option<UnixMillis> {
        Some(self.certificate_ends.load(Ordering::Relaxed)).filter(|ends| *ends > 0).map(UnixMillis)
    }

    /// A channel that connects when it is used, and again when it broke. `window`: bytes that may be under way to us.
    ///
    /// # Errors
    /// If the address makes no URI, which [`Address::parse`] rules out.
    pub fn channel(&self, window: u32) -> Result<Channel, tonic::transport::Error> {
        // TLS is the connector's business, so the URI speaks of plain HTTP/2.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?
            .user_agent(concat!("afard/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(limits::PEER_CONNECT)
            .max_frame_size(afar_proto::limits::PEER_FRAME_BYTES)
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .http2_max_header_list_size(afar_proto::limits::HEADER_BYTES_MAX)
            .http2_keep_alive_interval(limits::PEER_KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::PEER_KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            // Hedged reads are cancelled all the time: h2 would take that for an attack (h2 #856).
            .http2_max_local_error_reset_streams(Some(usize::MAX));
        Ok(endpoint.connect_with_connector_lazy(self.clone()))
    }

    /// Connects once, beside the channels, and hangs up: how long TCP and TLS took.
    ///
    /// # Errors
    /// Why it did not come about.
    pub async fn probe(&self) -> Result<Duration, ConnectError> {
        let asked = tokio::time::Instant::now();
        match tokio::time::timeout(limits::PEER_CONNECT, self.connect()).await {
            Ok(connected) => connected.map(|_| asked.elapsed()),
            Err(_) => Err(ConnectError::Network {
                address: self.address.to_string(),
                why: format!("no connection within {} s", limits::PEER_CONNECT.as_secs()),
            }),
        }
    }

    async fn connect(&self) -> Result<Connection, ConnectError> {
        let address = self.address.to_string();
        let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port)).await;
        let tcp = tcp.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused { address: address.clone() },
            _ => ConnectError::Network { address: address.clone(), why: error.to_string() },
        })?;
        let tls = |why: String| ConnectError::Tls { address: address.clone(), why };
        tcp.set_nodelay(true).map_err(|error| ConnectError::Network { address: address.clone(), why: error.to_string() })?;
        let name = ServerName::try_from(self.address.host.clone()).map_err(|error| tls(error.to_string()))?;
        let connecting = TlsConnector::from(self.identity.client_config()).connect(name.clone(), tcp);
        let stream = connecting.await.map_err(|error| self.refusal(&error).unwrap_or_else(|| tls(error.to_string())))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let found = chain.first().and_then(|leaf| self.identity.node_named_by(leaf));
        if found.as_ref() != Some(&self.node) {
            let found = found.unwrap_or_else(|| "nobody of this cluster".into());
            return Err(ConnectError::SomebodyElse { address, found, expected: self.node.clone() });
        }
        let ends = chain.first().and_then(trust::ends).unwrap_or_default();
        self.certificate_ends.store(ends.0, Ordering::Relaxed);
        let held = self.identity.hold(chain, Role::Called(name)).map_err(|error| self.untrusted(&error))?;
        Ok(Connection { stream, held, connector: self.clone(), heard: false })
    }

    fn untrusted(&self, error: &rustls::Error) -> ConnectError {
        let why = trust::explain(error).unwrap_or_else(|| error.to_string());
        ConnectError::Untrusted { address: self.address.to_string(), why }
    }

    /// What an error of the stream says of certificates, if it does.
    fn refusal(&self, error: &io::Error) -> Option<ConnectError> {
        let error = trust::tls_error(error)?;
        let refuses = trust::explain_alert(error).map(|why| ConnectError::RefusesUs { address: self.address.to_string(), why });
        refuses.or_else(|| trust::explain(error).map(|_| self.untrusted(error)))
    }

    /// How the last attempt to connect ended. That the other side refuses our certificate is only heard after the handshake
    /// has succeeded here, so what was heard last of that kind stands until the other side says anything else.
    fn note(&self, connected: Option<&ConnectError>) {
        let mut last = self.last.lock();
        if connected.is_some() || !matches!(*last, Some(ConnectError::RefusesUs { .. })) {
            *last = connected.cloned();
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = hyper_util::rt::TokioIo<Connection>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let connected = connector.connect().await;
            connector.note(connected.as_ref().err());
            connected.map(hyper_util::rt::TokioIo::new)
        })
    }
}

/// A connection that tells when it ends, and ends when the peer's certificate is not believed any more.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    held: Held,
    connector: Connector,
    /// The other side has said something: it believes our certificate.
    heard: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connector.ended.notify_one();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.held.poll(cx)?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &polled {
            Poll::Ready(Err(error)) => {
                if let Some(refusal) = self.connector.refusal(error) {
                    self.connector.note(Some(&refusal));
                }
            }
            Poll::Ready(Ok(())) if buffer.filled().len() > before && !self.heard => {
                self.heard = true;
                *self.connector.last.lock() = None;
            }
            _ => {}
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.held.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.held.check()?;
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

/// A pause with up to a fifth more or less, so that nodes do not call in step.
pub fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.8..1.2))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let address = |host: &str, port| Ok(Address { host: host.into(), port });
        assert_eq!(Address::parse("https://127.0.0.1:7700"), address("127.0.0.1", 7700));
        assert_eq!(Address::parse("https://node1.example"), address("node1.example", 7700));
        assert_eq!(Address::parse("https://[::1]:7701/"), address("::1", 7701));
        for good in
            ["https://127.0.0.1:7700", "https://node1.example", "https://[::1]:7701/", "https://a:1", "https://n-1.example.org:65535"]
        {
            assert!(afar_model::layout::is_endpoint(good) && Address::parse(good).is_ok(), "what a layout may say can be called: {good}");
        }
        for bad in [
            "",
            "127.0.0.1:7700",
            "http://a:1",
            "https://",
            "https://a:0",
            "https://a:99999",
            "https://u@a:1",
            "https://a:1/x",
            "https://a b:1",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
