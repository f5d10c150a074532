//! What doors for the public show: the certificate of every port that speaks HTTP. By default it is the node's own of the
//! cluster, so that such a port is never without TLS.
use crate::cluster::identity::Identity;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// Chooses the certificate of every handshake at a public port.
#[derive(Debug)]
pub struct PublicTls {
    identity: Arc<Identity>,
}

impl PublicTls {
    /// The node's own certificate.
    pub const fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }

    /// For handshakes: what was replaced meanwhile is shown from the next one on.
    ///
    /// # Errors
    /// What the TLS library has against it.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        // Browsers and S3 clients are not ours to choose: TLS 1.2 as well, with the library's suites, all of them modern.
        let mut config = ServerConfig::builder_with_provider(self.identity.provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for PublicTls {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.identity.certified())
    }
}
