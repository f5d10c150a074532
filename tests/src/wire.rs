//! A client without manners: raw messages, for what the real one would never send.
use crate::{
    cluster::Cluster,
    limits::{LOOK_EVERY, SETTLE_MAX},
};
use afar_model::record::Record;
use afar_proto::v1::{
    self, PutEnd, PutHeader, PutPiece, PutRequest, objects_client::ObjectsClient, peer_client::PeerClient, put_piece::Piece,
    status_client::StatusClient, store_request::Work,
};
use bytes::Bytes;
use rustls::{
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// A runtime for a test's own requests.
///
/// # Panics
/// If the system gives no threads.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// A connection to a node, with the cluster's authority; with a node's certificate if named.
///
/// # Errors
/// If it does not come about.
pub async fn connect(cluster: &Cluster, node: &str, as_node: Option<&str>) -> Result<Channel, tonic::transport::Error> {
    let Some(name) = as_node else { return open(cluster, node, None).await };
    let folder = cluster.node(name).folder();
    let read = |file: &str| std::fs::read(folder.join(file)).expect("a node's bundle");
    connect_with(cluster, node, &read("node.crt"), &read("node.key")).await
}

/// A client that speaks to a node in another node's name.
///
/// # Panics
/// If it is not let in.
pub async fn peer(cluster: &Cluster, node: &str, as_node: &str) -> PeerClient<Channel> {
    let most = afar_proto::limits::MESSAGE_BYTES_MAX;
    let channel = connect(cluster, node, Some(as_node)).await.expect("a connection in another node's name");
    PeerClient::new(channel).max_decoding_message_size(most).max_encoding_message_size(most)
}

/// Makes these durable at one node alone, as a coordinator does that then says no more. Under the first layout.
///
/// # Panics
/// If they are refused.
pub async fn store_alone(peer: &mut PeerClient<Channel>, records: &[Record]) {
    let work = v1::StoreRecords {
        records: records.iter().map(Into::into).collect(),
        sync: true,
        class: "repair".into(),
        layout_version: 1,
        ..v1::StoreRecords::default()
    };
    let request = v1::StoreRequest { sequence: 1, work: Some(Work::Records(work)), ..v1::StoreRequest::default() };
    let mut replies = peer.store(futures_util::stream::iter([request])).await.expect("a lane").into_inner();
    let reply = replies.message().await.expect("an answer").expect("an answer");
    assert!(reply.failure.is_none(), "refused: {reply:?}");
    assert_eq!(reply.records.len(), records.len(), "{reply:?}");
    assert!(reply.records.iter().all(|stored| stored.durable && stored.refused.is_none()), "{reply:?}");
}

/// A connection to a node with this certificate and its key, PEM.
///
/// # Errors
/// If it does not come about.
pub async fn connect_with(cluster: &Cluster, node: &str, certificate: &[u8], key: &[u8]) -> Result<Channel, tonic::transport::Error> {
    open(cluster, node, Some(Identity::from_pem(certificate, key))).await
}

async fn open(cluster: &Cluster, node: &str, identity: Option<Identity>) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(cluster.authority()));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(cluster.node(node).endpoint()).expect("a URI");
    endpoint.tls_config(tls)?.connect_timeout(Duration::from_secs(10)).connect().await
}

/// The certificate that is served to a new connection, DER; whoever made it.
///
/// # Errors
/// If there is no connection.
pub fn served_certificate(address: SocketAddr) -> io::Result<Vec<u8>> {
    shown(address, address.ip().into(), &[]).map(|(certificate, _)| certificate)
}

/// The certificate that a new connection for this name and these protocols is shown, and the protocol that was agreed on.
///
/// # Errors
/// If there is no connection.
pub fn shown(address: SocketAddr, name: ServerName<'static>, protocols: &[&[u8]]) -> io::Result<(Vec<u8>, Option<Vec<u8>>)> {
    let stream = stranger(address, name, protocols)?;
    let certificate = stream.conn.peer_certificates().and_then(|chain| chain.first()).map(|certificate| certificate.to_vec());
    let protocol = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
    certificate.map(|certificate| (certificate, protocol)).ok_or_else(|| io::Error::other("no certificate"))
}

/// A connection of somebody who believes whatever is shown, after its handshake.
///
/// # Errors
/// If there is none.
pub fn stranger(
    address: SocketAddr,
    name: ServerName<'static>,
    protocols: &[&[u8]],
) -> io::Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut tcp = TcpStream::connect(address)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)?;
    }
    Ok(rustls::StreamOwned::new(tls, tcp))
}

/// Believes everybody, to see what they show.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Adds the cluster's administrator's key.
///
/// # Panics
/// Never: keys are plain text.
pub fn signed<T>(cluster: &Cluster, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let (id, secret) = cluster.key();
    let value: MetadataValue<_> = format!("Bearer {id}.{secret}").parse().expect("plain text");
    request.metadata_mut().insert("authorization", value);
    request
}

/// Objects at a node.
///
/// # Errors
/// If there is no connection.
pub async fn objects(cluster: &Cluster, node: &str) -> Result<ObjectsClient<Channel>, tonic::transport::Error> {
    let most = afar_proto::limits::MESSAGE_BYTES_MAX;
    Ok(ObjectsClient::new(connect(cluster, node, None).await?).max_decoding_message_size(most).max_encoding_message_size(most))
}

/// What a node says of itself.
///
/// # Panics
/// If it does not answer.
pub async fn status(cluster: &Cluster, node: &str) -> v1::NodeStatus {
    let channel = connect(cluster, node, None).await.expect("a connection");
    let reply = StatusClient::new(channel).node(signed(cluster, v1::NodeStatusRequest::default())).await;
    reply.expect("a status").into_inner()
}

/// What a node says of layouts: the hash of its current one, and how many are open.
///
/// # Errors
/// If it does not answer.
pub async fn layouts_at(cluster: &Cluster, node: &str) -> Result<(String, usize), Status> {
    let channel = connect(cluster, node, None).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = v1::layouts_client::LayoutsClient::new(channel).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX);
    let mut parts = client.get(signed(cluster, v1::GetLayoutsRequest {})).await?.into_inner();
    let head = parts.message().await?.ok_or_else(|| Status::unavailable("no answer"))?;
    Ok((head.current.iter().map(|byte| format!("{byte:02x}")).collect(), head.open.len()))
}

/// The beginning of a put.
pub fn header(bucket: &str, key: &str, upload: [u8; 16]) -> PutRequest {
    let header = PutHeader { bucket: bucket.into(), key: key.into(), upload: Bytes::copy_from_slice(&upload), ..PutHeader::default() };
    PutRequest { header: Some(header), ..PutRequest::default() }
}

/// Some of a put's bytes.
pub fn piece(bytes: &[u8]) -> PutRequest {
    let piece = PutPiece { piece: Some(Piece::Data(Bytes::copy_from_slice(bytes))) };
    PutRequest { pieces: vec![piece], ..PutRequest::default() }
}

/// The end of a put, with whatever digest and size one likes to claim.
pub fn end(object: [u8; 32], size: u64) -> PutRequest {
    PutRequest { end: Some(PutEnd { object: Bytes::copy_from_slice(&object), size }), ..PutRequest::default() }
}

/// Everything that a proper put sends.
pub fn whole(bucket: &str, key: &str, upload: [u8; 16], content: &[u8]) -> Vec<PutRequest> {
    let mut messages = vec![header(bucket, key, upload)];
    messages.extend(content.chunks(afar_model::limits::CHUNK_BYTES).map(piece));
    messages.push(end(*blake3::hash(content).as_bytes(), content.len() as u64));
    messages
}

/// The same as a second attempt: an earlier one may have reached a node.
#[must_use]
pub fn again(mut messages: Vec<PutRequest>) -> Vec<PutRequest> {
    for header in messages.iter_mut().filter_map(|message| message.header.as_mut()) {
        header.retry = true;
    }
    messages
}

/// Sends these messages as one put, until somebody has an answer: a cluster that has just formed is not yet sure of itself.
///
/// # Errors
/// What the node says, other than that it cannot say.
pub async fn put_until_answered(cluster: &Cluster, node: &str, messages: Vec<PutRequest>) -> Result<v1::PutReply, Status> {
    let start = std::time::Instant::now();
    loop {
        match put(cluster, node, messages.clone()).await {
            Err(status) if status.code() == Code::Unavailable && start.elapsed() < SETTLE_MAX => tokio::time::sleep(LOOK_EVERY).await,
            answer => return answer,
        }
    }
}

/// Sends these messages as one put.
///
/// # Errors
/// What the node says.
pub async fn put(cluster: &Cluster, node: &str, messages: Vec<PutRequest>) -> Result<v1::PutReply, Status> {
    let mut objects = objects(cluster, node).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let reply = objects.put(signed(cluster, futures_util::stream::iter(messages))).await?;
    Ok(reply.into_inner())
}

/// The exit code that an error carries.
pub fn exit(status: &Status) -> Option<u8> {
    status.metadata().get(afar_proto::EXIT_METADATA)?.to_str().ok()?.parse().ok()
}
