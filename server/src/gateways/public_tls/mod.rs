//! What doors for the public show: the certificate of every port that speaks HTTP. A browser or an S3 client knows nothing of
//! the cluster's authority, so the operator may give a certificate of another, or let an ACME server issue one ([`acme`]).
//!
//! Whatever happens, something is shown: until there is a certificate of the kind that was asked for, the node's own; when a
//! new one is bad, the last good one. What is wrong is in the status.
pub mod acme;

mod client;

use crate::{
    cluster::identity::{self, Identity, IdentityError},
    files, limits,
};
use acme::AcmeSettings;
use afar_model::units::UnixMillis;
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;

/// Where the certificate comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// It is the node's own of the cluster.
    #[default]
    Node,
    /// The operator puts it there.
    Files(PairFiles),
    /// An ACME server issues it.
    Acme(AcmeSettings),
}

/// Certificate and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFiles {
    /// PEM, with intermediates if any.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Chooses the certificate of every handshake at a public port.
#[derive(Debug)]
pub struct PublicTls {
    identity: Arc<Identity>,
    source: Source,
    pair: ArcSwapOption<Pair>,
    /// Why there is no better one: files that are not used, an order that failed.
    trouble: ArcSwapOption<String>,
    /// What an ACME server wants to see, by name.
    challenges: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
    asked: Notify,
}

/// A certificate with its key, checked.
#[derive(Debug)]
pub struct Pair {
    digest: blake3::Hash,
    certified: Arc<CertifiedKey>,
    from: UnixMillis,
    until: UnixMillis,
}

/// What there is to say of a certificate that is not the node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// When it ends; `None`: there is none yet.
    pub until: Option<UnixMillis>,
    /// Why there is no better one.
    pub trouble: Option<String>,
    /// How long before its end somebody should be told.
    pub warn_before: Duration,
}

impl PublicTls {
    /// Reads and checks what it can without asking anybody.
    ///
    /// # Errors
    /// The first thing that is wrong with the operator's files.
    pub fn load(identity: Arc<Identity>, source: &Source, state: &Path, now: UnixMillis) -> Result<Self, IdentityError> {
        let tls = Self {
            identity,
            source: source.clone(),
            pair: ArcSwapOption::empty(),
            trouble: ArcSwapOption::empty(),
            challenges: ArcSwap::default(),
            asked: Notify::new(),
        };
        let pair = match source {
            Source::Node => None,
            Source::Files(files) => Some(read_pair(files, &tls.identity.provider(), now)?),
            Source::Acme(settings) => {
                settings.check()?;
                acme::cached(&tls, settings, state, now)
            }
        };
        tls.pair.store(pair.map(Arc::new));
        Ok(tls)
    }

    /// Asks for a certificate to be ordered at once, if it is time for one.
    pub fn look_again(&self) {
        self.asked.notify_one();
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
        if matches!(self.source, Source::Acme(_)) {
            config.alpn_protocols.push(acme::ALPN.to_vec());
        }
        Ok(Arc::new(config))
    }

    /// Reads the operator's files again and, if they have changed and are good, shows them from now on; if they are not good,
    /// those read before stay. Blocks.
    pub fn reload(&self, now: UnixMillis) {
        let Source::Files(files) = &self.source else { return };
        let present = self.pair.load();
        match read_pair(files, &self.identity.provider(), now) {
            // As long as nobody touches it, it may also end: that is another complaint.
            Ok(pair) if present.as_ref().is_some_and(|present| present.digest == pair.digest) => {
                if self.trouble.swap(None).is_some() {
                    tracing::info!("the public certificate's files are again those in use");
                }
            }
            Ok(pair) => self.show(pair),
            Err(_) if digest_of(files).is_some_and(|digest| present.as_ref().is_some_and(|present| present.digest == digest)) => {}
            Err(error) => self.complain(error.to_string(), "the public certificate's files are not used: those read before stay in use"),
        }
    }

    fn show(&self, pair: Pair) {
        tracing::info!("a new public certificate is in use, for every connection from now on");
        self.pair.store(Some(Arc::new(pair)));
        self.trouble.store(None);
    }

    /// Remembers what is wrong; the log hears of each thing once.
    fn complain(&self, why: String, what: &str) {
        if self.trouble.load().as_ref().is_none_or(|told| **told != why) {
            tracing::warn!(why, "{what}");
        }
        self.trouble.store(Some(Arc::new(why)));
    }

    /// What there is to say; `None`: the node's own certificate is shown, of which is said enough.
    pub fn standing(&self) -> Option<Standing> {
        let (pair, trouble) = (self.pair.load(), self.trouble.load().as_ref().map(|why| (**why).clone()));
        let warn_before = match &self.source {
            Source::Node => return None,
            Source::Files(_) => limits::CERTIFICATE_WARNING,
            // It should have been renewed long ago.
            Source::Acme(_) => pair.as_ref().map_or(Duration::ZERO, |pair| pair.until.since(pair.from) / limits::ACME_WARNING_SHARE),
        };
        Some(Standing { until: pair.as_ref().map(|pair| pair.until), trouble, warn_before })
    }
}

impl ResolvesServerCert for PublicTls {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == acme::ALPN)) {
            // Whoever asks so wants this and nothing else (RFC 8737).
            return self.challenges.load().get(hello.server_name()?).cloned();
        }
        Some(self.pair.load().as_ref().map_or_else(|| self.identity.certified(), |pair| Arc::clone(&pair.certified)))
    }
}

fn texts_of(files: &PairFiles) -> Result<(String, String), IdentityError> {
    let most = limits::SECRET_FILE_BYTES_MAX;
    let named = |path: &Path, read: Result<String, files::ReadFileError>| {
        read.map_err(|error| IdentityError::File { path: path.to_owned(), why: error.to_string() })
    };
    Ok((named(&files.certificate, files::read_text(&files.certificate, most))?, named(&files.key, files::read_secret(&files.key, most))?))
}

fn digest(certificate: &str, key: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for text in [certificate, key] {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hasher.finalize()
}

fn digest_of(files: &PairFiles) -> Option<blake3::Hash> {
    texts_of(files).ok().map(|(certificate, key)| digest(&certificate, &key))
}

fn read_pair(files: &PairFiles, provider: &Arc<CryptoProvider>, now: UnixMillis) -> Result<Pair, IdentityError> {
    let (certificate, key) = texts_of(files)?;
    check_pair(files, (&certificate, &key), provider, now)
}

/// Everything that is checked before a pair is shown.
fn check_pair(
    files: &PairFiles,
    (certificate, key): (&str, &str),
    provider: &Arc<CryptoProvider>,
    now: UnixMillis,
) -> Result<Pair, IdentityError> {
    let chain = identity::certificates(&files.certificate, certificate)?;
    let private = identity::private_key(&files.key, key)?;
    let Some(leaf) = chain.first() else {
        return Err(IdentityError::File { path: files.certificate.clone(), why: "holds no certificate".into() });
    };
    let (from, until) = identity::validity(&files.certificate, leaf, now).map_err(|error| match error {
        IdentityError::Expired { path, days } => {
            IdentityError::File { path, why: format!("expired {days} days ago: put a new certificate in its place") }
        }
        other => other,
    })?;
    let certified = identity::certified(provider, chain, &private, (&files.certificate, &files.key))?;
    Ok(Pair { digest: digest(certificate, key), certified: Arc::new(certified), from, until })
}
