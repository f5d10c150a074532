//! HTTPS to an ACME server: a few small requests in a month, each on a connection of its own, bounded in time and bytes.
use super::acme::AcmeSettings;
use crate::{
    cluster::identity::{self, IdentityError},
    files, limits,
};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Request,
    body::Bytes,
    header::{HOST, HeaderValue},
    http::uri::{Authority, PathAndQuery, Uri},
};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::ServerName;
use std::{fmt, pin::Pin, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Speaks with servers of these authorities.
#[derive(Clone)]
pub(super) struct Client(Arc<ClientConfig>);

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    /// Believes the authority that the settings name, or else the public ones.
    pub(super) fn new(settings: &AcmeSettings, provider: Arc<CryptoProvider>) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        match &settings.authority {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                let file = |why: String| IdentityError::File { path: path.clone(), why };
                let text = files::read_text(path, limits::SECRET_FILE_BYTES_MAX).map_err(|error| file(error.to_string()))?;
                for certificate in identity::certificates(path, &text)? {
                    roots.add(certificate).map_err(|error| file(format!("is no authority's certificate: {error}")))?;
                }
            }
        }
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(rustls::ALL_VERSIONS);
        let config = config.map_err(|error| IdentityError::Unusable { path: "public_tls.acme".into(), why: error.to_string() })?;
        Ok(Self(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl HttpClient for Client {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let uri = request.uri().clone();
            let exchange = tokio::time::timeout(limits::ACME_REQUEST, client.exchange(request));
            let answered = exchange.await.unwrap_or_else(|_| Err("no answer in time".into()));
            answered.map_err(|error| Error::Other(format!("{uri}: {error}").into()))
        })
    }
}

impl Client {
    async fn exchange(&self, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Failure> {
        let (host, port) = place(request.uri())?;
        let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let stream = TlsConnector::from(Arc::clone(&self.0)).connect(name, tcp).await?;
        let authority = request.uri().authority().map(Authority::as_str).unwrap_or_default();
        let host = HeaderValue::from_str(authority)?;
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        request.headers_mut().insert(HOST, host);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async move {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, limits::ACME_ANSWER_BYTES).collect().await?.to_bytes();
            Ok::<_, Failure>(BytesResponse { parts, body: Box::new(body) })
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            answered = &mut exchange => answered,
            // What has arrived is there all the same.
            _ = &mut connection => exchange.await,
        }
    }
}

/// Host and port of an address that is under TLS.
fn place(uri: &Uri) -> Result<(String, u16), Failure> {
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(host)) => Ok((host.to_owned(), uri.port_u16().unwrap_or(443))),
        _ => Err("is no https address".into()),
    }
}

/// Whether something is an address that could be asked.
pub(super) fn is_address(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| place(&uri).is_ok())
}
