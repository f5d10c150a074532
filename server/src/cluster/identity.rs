//! Who this node is: its certificate, its key, and the cluster's authority. Checked completely before anything listens, so
//! that a wrong file is named at the start and not guessed from failed handshakes.
//!
//! A node's certificate says `afar://CLUSTER/NODE` in a URI name; whoever shows a certificate of the authority that names a
//! node of the layout is that node. The authority's key is never on a node. TLS 1.3 only.
use afar_model::units::UnixMillis;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// The files that an identity is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority's certificate, PEM.
    pub ca: PathBuf,
    /// The node's certificate, PEM, with intermediates if any.
    pub certificate: PathBuf,
    /// The node's private key, PEM.
    pub key: PathBuf,
}

#[cfg(test)]
impl TlsFiles {
    /// As a node's folder holds them.
    pub(crate) fn within(folder: &Path) -> Self {
        Self { ca: folder.join("ca.crt"), certificate: folder.join("node.crt"), key: folder.join("node.key") }
    }
}

/// Why the files make no identity: what, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be used.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// It was valid once.
    #[error("{path}: expired {days} days ago: make a new certificate with the cluster's authority")]
    Expired {
        /// Which.
        path: PathBuf,
        /// How long ago, rounded down.
        days: u64,
    },
    /// It will be valid.
    #[error("{path}: is not valid before {in_hours} hours from now: check this machine's clock, or make the certificate again")]
    NotYetValid {
        /// Which.
        path: PathBuf,
        /// How long it will take, rounded up.
        in_hours: u64,
    },
    /// Another authority made it.
    #[error("{path}: was not issued by the authority in {ca}: use the ca.crt that was made with it")]
    ForeignAuthority {
        /// The certificate.
        path: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
    /// It is somebody else's.
    #[error("{path}: names {found}, and this is {expected}: use this node's own folder")]
    SomebodyElse {
        /// The certificate.
        path: PathBuf,
        /// Whom it names.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// The key is another certificate's.
    #[error("{key}: does not belong to {certificate}: use the pair that was made together")]
    KeyMismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// Peers could not verify it.
    #[error("{path}: is not valid for {host:?}, where the layout says that this node is: make it again for that name")]
    WrongHost {
        /// The certificate.
        path: PathBuf,
        /// The host of the node's endpoint.
        host: String,
    },
    /// Something that none of the above describes.
    #[error("{path}: cannot be used: {why}")]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// What the TLS library says.
        why: String,
    },
}

/// Who this node is, ready for handshakes.
pub struct Identity {
    cluster: String,
    not_after: UnixMillis,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cluster", &self.cluster).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Who an identity must be.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// The node.
    pub node: &'a str,
    /// The host of its endpoint.
    pub host: &'a str,
    /// The time.
    pub now: UnixMillis,
}

impl Identity {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(files: &TlsFiles, expected: Expected<'_>) -> Result<Self, IdentityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authorities = certificates(&files.ca)?;
        let chain = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let roots = Arc::new(roots(&files.ca, &authorities)?);
        for authority in &authorities {
            validity(&files.ca, authority, expected.now)?;
        }
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(IdentityError::File { path: files.certificate.clone(), why: "holds no certificate".into() });
        };
        let not_after = validity(&files.certificate, leaf, expected.now)?;
        check_name(&files.certificate, leaf, expected)?;
        let verifier = client_verifier(&roots, &provider).map_err(|why| unusable(&files.ca, why))?;
        let time = UnixTime::since_unix_epoch(Duration::from_millis(expected.now.0));
        verifier.verify_client_cert(leaf, intermediates, time).map_err(|error| explain(&error, files, expected))?;
        check_host(&roots, &provider, leaf, intermediates, time, files, expected)?;
        check_pair(&provider, &chain, &key, files)?;
        let server = server_config(&provider, verifier, &chain, &key).map_err(|error| unusable(&files.certificate, error))?;
        let client = client_config(&provider, &roots, chain, key).map_err(|error| unusable(&files.certificate, error))?;
        Ok(Self { cluster: expected.cluster.to_owned(), not_after, server: Arc::new(server), client: Arc::new(client) })
    }

    /// For handshakes that we answer: a certificate is asked for, and may be absent (clients have none).
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For handshakes with peers.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// When the certificate ends.
    pub const fn not_after(&self) -> UnixMillis {
        self.not_after
    }

    /// Whole days until the certificate ends; 0 when it has.
    pub fn days_left(&self, now: UnixMillis) -> u64 {
        self.not_after.since(now).as_secs() / 86_400
    }

    /// The node of this cluster that a certificate names. The certificate's signature is the handshake's business.
    pub fn node_named_by(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        let prefix = format!("afar://{}/", self.cluster);
        uris(certificate).into_iter().find_map(|uri| uri.strip_prefix(&prefix).map(str::to_owned))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let file = |why: String| IdentityError::File { path: path.to_owned(), why };
    let text = crate::files::read_text(path, crate::limits::SECRET_FILE_BYTES_MAX).map_err(|error| file(error.to_string()))?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match parsed {
        Ok(found) if found.is_empty() => Err(file("holds no certificate: expected PEM, \"-----BEGIN CERTIFICATE-----\"".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(file(format!("is no PEM file: {error}"))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let file = |why: String| IdentityError::File { path: path.to_owned(), why };
    let text = crate::files::read_secret(path, crate::limits::SECRET_FILE_BYTES_MAX).map_err(|error| file(error.to_string()))?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| file("holds no private key: expected PEM, \"-----BEGIN PRIVATE KEY-----\"".into()))
}

fn roots(path: &Path, authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| unusable(path, error))?;
    }
    Ok(roots)
}

/// When a certificate ends, if it is valid now.
fn validity(path: &Path, certificate: &CertificateDer<'_>, now: UnixMillis) -> Result<UnixMillis, IdentityError> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).map_err(|error| unusable(path, error))?;
    let millis = |time: x509_parser::time::ASN1Time| UnixMillis(u64::try_from(time.timestamp()).unwrap_or_default().saturating_mul(1000));
    let (from, to) = (millis(parsed.validity().not_before), millis(parsed.validity().not_after));
    if now < from {
        return Err(IdentityError::NotYetValid { path: path.to_owned(), in_hours: from.since(now).as_secs().div_ceil(3600) });
    }
    if now > to {
        return Err(IdentityError::Expired { path: path.to_owned(), days: now.since(to).as_secs() / 86_400 });
    }
    Ok(to)
}

fn uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

fn check_name(path: &Path, leaf: &CertificateDer<'_>, expected: Expected<'_>) -> Result<(), IdentityError> {
    let name = format!("afar://{}/{}", expected.cluster, expected.node);
    let found = uris(leaf);
    if found.contains(&name) {
        return Ok(());
    }
    let found = if found.is_empty() { "no node (it has no URI name)".into() } else { found.join(", ") };
    Err(IdentityError::SomebodyElse { path: path.to_owned(), found, expected: name })
}

fn client_verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, impl fmt::Display + use<>> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).allow_unauthenticated().build()
}

fn check_host(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    time: UnixTime,
    files: &TlsFiles,
    expected: Expected<'_>,
) -> Result<(), IdentityError> {
    use rustls::client::danger::ServerCertVerifier as _;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build();
    let verifier = verifier.map_err(|error| unusable(&files.ca, error))?;
    let name = ServerName::try_from(expected.host).map_err(|error| unusable(&files.certificate, error))?;
    verifier.verify_server_cert(leaf, intermediates, &name, &[], time).map_err(|error| explain(&error, files, expected))?;
    Ok(())
}

fn check_pair(
    provider: &CryptoProvider,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    files: &TlsFiles,
) -> Result<(), IdentityError> {
    match CertifiedKey::from_der(chain.to_vec(), key.clone_key(), provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(IdentityError::KeyMismatch { key: files.key.clone(), certificate: files.certificate.clone() })
        }
        Err(error) => Err(unusable(&files.key, error)),
    }
}

fn explain(error: &rustls::Error, files: &TlsFiles, expected: Expected<'_>) -> IdentityError {
    use rustls::CertificateError::{BadSignature, NotValidForName, NotValidForNameContext, UnknownIssuer};
    match error {
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            IdentityError::ForeignAuthority { path: files.certificate.clone(), ca: files.ca.clone() }
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            IdentityError::WrongHost { path: files.certificate.clone(), host: expected.host.to_owned() }
        }
        other => unusable(&files.certificate, other),
    }
}

fn unusable(path: &Path, why: impl fmt::Display) -> IdentityError {
    IdentityError::Unusable { path: path.to_owned(), why: why.to_string() }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
