//! Who this node is: its certificate, its key, and the cluster's authorities. Checked completely before anything listens, so
//! that a wrong file is named at the start and not guessed from failed handshakes.
//!
//! A node's certificate says `afar://CLUSTER/NODE` in a URI name; whoever shows a certificate of an authority that names a
//! node of the layout is that node. An authority's key is never on a node. TLS 1.3 only.
//!
//! The files may be replaced while the node runs: [`Identity::reload`] checks them as at the start and, if they are good,
//! every handshake from then on uses them; if they are not, the last good ones stay. Nothing that is done to a file takes a
//! running node down.
use crate::cluster::trust::{Connections, Digest, Held, Judge, Refusals, Role, Trust, TrustError, ends, uris};
use afar_model::units::UnixMillis;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rustls::{
    ClientConfig, ServerConfig, client::danger::ServerCertVerifier, crypto::CryptoProvider, server::danger::ClientCertVerifier,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;
use x509_parser::prelude::FromDer as _;

/// The files that an identity is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority's certificate, PEM; while a cluster changes its authority, several.
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
    /// The cluster has withdrawn the authority that made it.
    #[error("{path}: was issued by an authority that the cluster has withdrawn: make a new one with the present authority")]
    Withdrawn {
        /// The certificate.
        path: PathBuf,
    },
    /// The cluster has revoked its key.
    #[error("{path}: its key was revoked: make a new key and certificate for this node")]
    Revoked {
        /// The certificate.
        path: PathBuf,
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
    /// What signed settings say of authorities.
    #[error(transparent)]
    Trust(#[from] TrustError),
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
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    present: ArcSwap<Present>,
    /// Held by whoever makes the next `present` from the last.
    changing: Mutex<()>,
    connections: Arc<Connections>,
    refusals: Arc<Refusals>,
    rejected: ArcSwapOption<Rejected>,
    asked: Notify,
}

/// What handshakes use now.
struct Present {
    material: Arc<Material>,
    trust: Trust,
    judge: Arc<Judge>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    certified: Arc<CertifiedKey>,
    /// Why others refuse this node's certificate, by what this node itself believes.
    own_refused: Option<&'static str>,
    /// When the first of the trusted authorities ends.
    authority_ends: UnixMillis,
}

/// What the files hold.
struct Material {
    /// Of their contents.
    digest: Digest,
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    not_after: UnixMillis,
    checked: UnixTime,
}

/// Files that were replaced by something that cannot be used.
#[derive(Debug, PartialEq, Eq)]
struct Rejected {
    digest: Option<Digest>,
    why: String,
}

/// What [`Identity::reload`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// The files are those in use.
    Unchanged,
    /// They are others, they are good, and they are in use now.
    Replaced,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cluster", &self.cluster).field("not_after", &self.not_after()).finish_non_exhaustive()
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
        Self::load_trusting(files, expected, Trust::default())
    }

    /// As [`Identity::load`], where signed settings are known already.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load_trusting(files: &TlsFiles, expected: Expected<'_>, trust: Trust) -> Result<Self, IdentityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let refusals = Arc::new(Refusals::default());
        let texts = Texts::read(files)?;
        let (material, judge) = check(&texts, files, expected, &trust, &provider, &refusals)?;
        let present = Present::new(Arc::new(material), trust, judge, &provider).map_err(|error| unusable(&files.certificate, error))?;
        Ok(Self {
            cluster: expected.cluster.to_owned(),
            files: files.clone(),
            provider,
            present: ArcSwap::from_pointee(present),
            changing: Mutex::new(()),
            connections: Arc::default(),
            refusals,
            rejected: ArcSwapOption::empty(),
            asked: Notify::new(),
        })
    }

    /// Reads the files again and, if they have changed and are good, uses them for every handshake from now on. Connections
    /// that exist go on. If they are not good, those in use stay, which is logged once and can be asked for
    /// ([`Identity::rejected`]). Blocks: reads files.
    ///
    /// # Errors
    /// Why the files are not used.
    pub fn reload(&self, expected: Expected<'_>) -> Result<Reloaded, IdentityError> {
        let _one = self.changing.lock();
        let texts = Texts::read(&self.files);
        let digest = texts.as_ref().ok().map(Texts::digest);
        let outcome = texts.and_then(|texts| self.take(&texts, expected));
        match &outcome {
            Ok(Reloaded::Replaced) => {
                self.rejected.store(None);
                let days = self.days_left(expected.now);
                tracing::info!(days, "new certificate files are in use, for every connection from now on");
            }
            Ok(Reloaded::Unchanged) => {
                if self.rejected.swap(None).is_some() {
                    tracing::info!("the certificate files are again those in use");
                }
            }
            Err(error) => self.reject(Rejected { digest, why: error.to_string() }),
        }
        outcome
    }

    fn take(&self, texts: &Texts, expected: Expected<'_>) -> Result<Reloaded, IdentityError> {
        let present = self.present.load();
        if texts.digest() == present.material.digest {
            return Ok(Reloaded::Unchanged);
        }
        let (material, judge) = check(texts, &self.files, expected, &present.trust, &self.provider, &self.refusals)?;
        let next = Present::new(Arc::new(material), present.trust.clone(), judge, &self.provider);
        self.put(next.map_err(|error| unusable(&self.files.certificate, error))?);
        Ok(Reloaded::Replaced)
    }

    fn reject(&self, rejected: Rejected) {
        let told = self.rejected.load().as_ref().is_some_and(|last| match last.digest {
            Some(digest) => Some(digest) == rejected.digest,
            None => **last == rejected,
        });
        if !told {
            tracing::warn!(why = rejected.why, "the certificate files have changed and are not used: those read before stay in use");
        }
        self.rejected.store(Some(Arc::new(rejected)));
    }

    /// Uses this from now on, and ends the connections that rest on what is not believed any more.
    fn put(&self, next: Present) {
        let judge = Arc::clone(&next.judge);
        self.present.store(Arc::new(next));
        self.refusals.forget();
        self.connections.end_refused(&judge);
    }

    /// Why the files, as they are now, are not used; `None` if they are.
    pub fn rejected(&self) -> Option<String> {
        self.rejected.load().as_ref().map(|rejected| rejected.why.clone())
    }

    /// Asks for the files to be read again soon.
    pub fn look_again(&self) {
        self.asked.notify_one();
    }

    /// Resolves after [`Identity::look_again`].
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Trusts these authorities besides those of the files, and does not trust any whose [`certificate_digest`](crate::cluster::trust::certificate_digest) is in
    /// `distrusted`. Holds for handshakes from now on; connections that would not come about any more are ended, so that
    /// their peers have to shake hands again. Files and revocations are left as they are.
    ///
    /// # Errors
    /// If something is no authority or none would be left; then everything stays as it was.
    pub fn set_extra_roots(&self, extra: Vec<CertificateDer<'static>>, distrusted: Vec<Digest>) -> Result<(), TrustError> {
        self.change_trust(|trust| {
            trust.extra_roots = extra;
            trust.distrusted = distrusted.into_iter().collect();
        })
    }

    /// Lets nobody in whose certificate has one of these keys ([`key_digest`](crate::cluster::trust::key_digest)), and ends their connections.
    ///
    /// # Errors
    /// If the TLS library has something against it; then everything stays as it was.
    pub fn set_revoked(&self, revoked: BTreeSet<Digest>) -> Result<(), TrustError> {
        self.change_trust(|trust| trust.revoked = revoked)
    }

    /// As [`Identity::set_extra_roots`] and [`Identity::set_revoked`] in one step.
    ///
    /// # Errors
    /// As those.
    pub fn set_trust(&self, trust: Trust) -> Result<(), TrustError> {
        self.follow(|| trust)
    }

    /// As [`Identity::set_trust`], where `settings` is read when nobody else changes anything: of two who follow at once,
    /// the later one has read the later settings.
    ///
    /// # Errors
    /// As that.
    pub fn follow(&self, settings: impl FnOnce() -> Trust) -> Result<(), TrustError> {
        self.change_trust(|present| *present = settings())
    }

    /// What speaks against believing this: that no authority would be left, that one is none, or that this node itself would
    /// be shut out for want of a certificate of an authority that stays. That its key is revoked is no objection.
    pub fn objection(&self, trust: &Trust) -> Option<String> {
        let present = self.present.load_full();
        let judge = match Judge::new(&present.material.authorities, trust, &self.provider, Arc::clone(&self.refusals)) {
            Ok(judge) => judge,
            Err(error) => return Some(error.to_string()),
        };
        let withdrawn = |judge: &Judge| {
            let shown = judge.check(&present.material.chain, &Role::Caller, present.material.checked);
            matches!(shown, Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)))
        };
        (withdrawn(&judge) && !withdrawn(&present.judge))
            .then(|| "this node still shows a certificate of the authority that would be withdrawn: give it its new one first".to_owned())
    }

    fn change_trust(&self, change: impl FnOnce(&mut Trust)) -> Result<(), TrustError> {
        let _one = self.changing.lock();
        let present = self.present.load_full();
        let mut trust = present.trust.clone();
        change(&mut trust);
        if trust == present.trust {
            return Ok(());
        }
        let judge = Judge::new(&present.material.authorities, &trust, &self.provider, Arc::clone(&self.refusals))?;
        let next = Present::new(Arc::clone(&present.material), trust, Arc::new(judge), &self.provider);
        let next = next.map_err(|error| TrustError::Unusable(error.to_string()))?;
        if let Some(why) = next.own_refused
            && present.own_refused.is_none()
        {
            tracing::error!(why, "this node's own certificate is refused by the others from now on");
        }
        self.put(next);
        // What was rejected for want of an authority may be good now.
        self.look_again();
        Ok(())
    }

    /// What is believed beyond the files.
    pub fn trust(&self) -> Trust {
        self.present.load().trust.clone()
    }

    /// Ends every connection, from or to it, whose certificate names this node; how many there were. It may come back at
    /// once if its certificate is still good.
    pub fn drop_connections_of(&self, node: &str) -> usize {
        self.connections.end_of(node)
    }

    /// Keeps an eye on a connection that rests on the certificate of a handshake that has succeeded: it is ended when that
    /// certificate is not believed any more.
    ///
    /// # Errors
    /// If that is the case already.
    pub fn hold(&self, chain: &[CertificateDer<'static>], role: Role) -> Result<Held, rustls::Error> {
        let node = chain.first().and_then(|leaf| self.node_named_by(leaf)).unwrap_or_default();
        let held = self.connections.hold(node, chain.to_vec(), role);
        // Held first: an opinion that changes from here on finds it. One that changed since the handshake is asked now.
        held.judged(&self.present.load().judge)?;
        Ok(held)
    }

    /// For handshakes that we answer: a certificate is asked for, and may be absent (clients have none).
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.present.load().server)
    }

    /// For handshakes with peers.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.present.load().client)
    }

    /// Certificate and key, for other ports of this node.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.present.load().certified)
    }

    /// What does the cryptography.
    pub fn provider(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.provider)
    }

    /// This node's certificate.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.present.load().material.chain.first().cloned()
    }

    /// Why the others refuse this node's certificate, by what this node itself believes of authorities and keys; `None` if
    /// they do not.
    pub fn own_refused(&self) -> Option<&'static str> {
        self.present.load().own_refused
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> UnixMillis {
        self.present.load().material.not_after
    }

    /// When the first of the trusted authorities ends.
    pub fn authority_not_after(&self) -> UnixMillis {
        self.present.load().authority_ends
    }

    /// Whole days until the certificate ends; 0 when it has.
    pub fn days_left(&self, now: UnixMillis) -> u64 {
        self.not_after().since(now).as_secs() / 86_400
    }

    /// The node of this cluster that a certificate names. The certificate's signature is the handshake's business.
    pub fn node_named_by(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        let prefix = format!("afar://{}/", self.cluster);
        uris(certificate).into_iter().find_map(|uri| uri.strip_prefix(&prefix).map(str::to_owned))
    }
}

impl Present {
    fn new(material: Arc<Material>, trust: Trust, judge: Arc<Judge>, provider: &Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        use rustls::CertificateError::{Revoked, UnknownIssuer};
        let own_refused = match judge.check(&material.chain, &Role::Caller, material.checked) {
            Err(rustls::Error::InvalidCertificate(Revoked)) => Some("its key was revoked: make a new key and certificate for this node"),
            Err(rustls::Error::InvalidCertificate(UnknownIssuer)) => {
                Some("the cluster has withdrawn the authority that issued it: install one that the present authority has made")
            }
            _ => None,
        };
        // Fresh configurations: a session that was begun under the last ones cannot be resumed past the new judge.
        let server = server_config(provider, Arc::clone(&judge) as _, &material.chain, &material.key)?;
        let client = client_config(provider, Arc::clone(&judge) as _, &material.chain, &material.key)?;
        let certified = Arc::new(CertifiedKey::from_der(material.chain.clone(), material.key.clone_key(), provider)?);
        let authority_ends = judge.authorities.iter().filter_map(ends).min().unwrap_or(UnixMillis(u64::MAX));
        Ok(Self { material, trust, judge, server: Arc::new(server), client: Arc::new(client), certified, own_refused, authority_ends })
    }
}

/// The files' contents.
struct Texts {
    ca: String,
    certificate: String,
    key: String,
}

impl Texts {
    fn read(files: &TlsFiles) -> Result<Self, IdentityError> {
        let most = crate::limits::SECRET_FILE_BYTES_MAX;
        let named = |path: &Path, read: Result<String, crate::files::ReadFileError>| {
            read.map_err(|error| IdentityError::File { path: path.to_owned(), why: error.to_string() })
        };
        Ok(Self {
            ca: named(&files.ca, crate::files::read_text(&files.ca, most))?,
            certificate: named(&files.certificate, crate::files::read_text(&files.certificate, most))?,
            key: named(&files.key, crate::files::read_secret(&files.key, most))?,
        })
    }

    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for text in [&self.ca, &self.certificate, &self.key] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Everything that is checked of the files before they are used.
fn check(
    texts: &Texts,
    files: &TlsFiles,
    expected: Expected<'_>,
    trust: &Trust,
    provider: &Arc<CryptoProvider>,
    refusals: &Arc<Refusals>,
) -> Result<(Material, Arc<Judge>), IdentityError> {
    let authorities = valid_authorities(&files.ca, certificates(&files.ca, &texts.ca)?, expected.now)?;
    let chain = certificates(&files.certificate, &texts.certificate)?;
    let key = private_key(&files.key, &texts.key)?;
    // First without the settings, so that a file is blamed for what is wrong with the file.
    let by_files = Judge::new(&authorities, &Trust::default(), provider, Arc::clone(refusals));
    by_files.map_err(|error| unusable(&files.ca, error))?;
    let judge = Judge::new(&authorities, trust, provider, Arc::clone(refusals))?;
    let Some(leaf) = chain.first() else {
        return Err(IdentityError::File { path: files.certificate.clone(), why: "holds no certificate".into() });
    };
    let (_, not_after) = validity(&files.certificate, leaf, expected.now)?;
    check_name(&files.certificate, leaf, expected)?;
    let at = UnixTime::since_unix_epoch(Duration::from_millis(expected.now.0));
    let host = ServerName::try_from(expected.host.to_owned()).map_err(|error| unusable(&files.certificate, error))?;
    for role in [Role::Caller, Role::Called(host)] {
        judge.check(&chain, &role, at).map_err(|error| {
            let lenient = Trust { distrusted: BTreeSet::new(), ..trust.clone() };
            let lenient = Judge::new(&authorities, &lenient, provider, Arc::clone(refusals));
            let withdrawn = lenient.is_ok_and(|lenient| lenient.check(&chain, &role, at).is_ok());
            if withdrawn { IdentityError::Withdrawn { path: files.certificate.clone() } } else { explain(&error, files, expected) }
        })?;
    }
    certified(provider, chain.clone(), &key, (&files.certificate, &files.key))?;
    Ok((Material { digest: texts.digest(), authorities, chain, key, not_after, checked: at }, Arc::new(judge)))
}

/// What a file of certificates holds: at least one.
pub(crate) fn certificates(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let file = |why: String| IdentityError::File { path: path.to_owned(), why };
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match parsed {
        Ok(found) if found.is_empty() => Err(file("holds no certificate: expected PEM, \"-----BEGIN CERTIFICATE-----\"".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(file(format!("is no PEM file: {error}"))),
    }
}

/// What a file with a key holds.
pub(crate) fn private_key(path: &Path, text: &str) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| IdentityError::File {
        path: path.to_owned(),
        why: "holds no private key: expected PEM, \"-----BEGIN PRIVATE KEY-----\"".into(),
    })
}

/// Those that are valid now. One that has expired does no harm beside one that has not: a file may hold the authority of
/// yesterday and that of tomorrow.
fn valid_authorities(
    path: &Path,
    found: Vec<CertificateDer<'static>>,
    now: UnixMillis,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut first = None;
    let mut valid = Vec::new();
    for authority in found {
        match validity(path, &authority, now) {
            Ok(_) => valid.push(authority),
            Err(error) => first = first.or(Some(error)),
        }
    }
    match first {
        Some(error) if valid.is_empty() => Err(error),
        _ => Ok(valid),
    }
}

/// From when to when a certificate is valid, if it is now.
pub(crate) fn validity(path: &Path, certificate: &CertificateDer<'_>, now: UnixMillis) -> Result<(UnixMillis, UnixMillis), IdentityError> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).map_err(|error| unusable(path, error))?;
    let millis = |time: x509_parser::time::ASN1Time| UnixMillis(u64::try_from(time.timestamp()).unwrap_or_default().saturating_mul(1000));
    let (from, to) = (millis(parsed.validity().not_before), millis(parsed.validity().not_after));
    if now < from {
        return Err(IdentityError::NotYetValid { path: path.to_owned(), in_hours: from.since(now).as_secs().div_ceil(3600) });
    }
    if now > to {
        return Err(IdentityError::Expired { path: path.to_owned(), days: now.since(to).as_secs() / 86_400 });
    }
    Ok((from, to))
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

/// A certificate with the key that belongs to it, from these two files.
pub(crate) fn certified(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    (certificate_file, key_file): (&Path, &Path),
) -> Result<CertifiedKey, IdentityError> {
    CertifiedKey::from_der(chain, key.clone_key(), provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            IdentityError::KeyMismatch { key: key_file.to_owned(), certificate: certificate_file.to_owned() }
        }
        error => unusable(key_file, error),
    })
}

fn explain(error: &rustls::Error, files: &TlsFiles, expected: Expected<'_>) -> IdentityError {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext, Revoked, UnknownIssuer};
    match error {
        rustls::Error::InvalidCertificate(Revoked) => IdentityError::Revoked { path: files.certificate.clone() },
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
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
    verifier: Arc<dyn ServerCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
