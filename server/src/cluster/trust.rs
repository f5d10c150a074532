//! Whose certificates are believed at this moment, and which connections rest on it.
//!
//! Authorities come from the node's files and, at run time, from signed settings, which may also withdraw one (so that a
//! cluster can change its authority without a day of darkness) and revoke a single node's key. A `Judge` is one such
//! opinion, fixed; whoever changes the opinion makes a new judge. A connection that was let in under an earlier one is
//! [`Held`]: it ends when the new judge would refuse it, and the peer has to shake hands again.
use crate::limits;
use afar_model::{document::Document, units::UnixMillis};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Context,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// A BLAKE3 digest of a certificate or of a public key.
pub type Digest = [u8; 32];

/// What is believed beyond the node's own files: from signed settings, the same on every node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Authorities that are trusted besides those of the node's files.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Authorities that are not trusted whatever the files say: [`certificate_digest`] of each.
    pub distrusted: BTreeSet<Digest>,
    /// Keys that nobody is let in with: [`key_digest`] of their certificates.
    pub revoked: BTreeSet<Digest>,
}

impl From<&Document> for Trust {
    /// Whom a layout says to believe.
    fn from(document: &Document) -> Self {
        Self {
            extra_roots: document.authorities.iter().map(|der| CertificateDer::from(der.clone())).collect(),
            distrusted: document.distrusted.iter().copied().collect(),
            revoked: document.revoked.iter().copied().collect(),
        }
    }
}

/// Settings that cannot be followed; those before them stay in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Something that is no authority.
    #[error("authority {number} of those to be trusted cannot be used: {why}")]
    BadAuthority {
        /// Which, from 1.
        number: usize,
        /// What the TLS library says.
        why: String,
    },
    /// Then nobody could speak to anybody.
    #[error("no authority would be left that is trusted: name the new one before the old one is withdrawn")]
    NoAuthority,
    /// Something that none of the above describes.
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
}

/// What names a certificate: BLAKE3 of its DER form.
pub fn certificate_digest(certificate: &CertificateDer<'_>) -> Digest {
    *blake3::hash(certificate).as_bytes()
}

/// What names the key of a certificate: BLAKE3 of its SubjectPublicKeyInfo, so that a certificate made again for a stolen
/// key is revoked, too. `None` if it is no certificate.
pub fn key_digest(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    Some(*blake3::hash(parsed.tbs_certificate.subject_pki.raw).as_bytes())
}

/// When a certificate ends; `None` if it is none.
pub(crate) fn ends(certificate: &CertificateDer<'_>) -> Option<UnixMillis> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    Some(UnixMillis(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default().saturating_mul(1000)))
}

/// The URI names of a certificate.
pub(crate) fn uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// Why a certificate is refused, and what to do; `None` for errors that are not about certificates.
pub fn explain(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(why) = error else { return None };
    Some(match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its authority is not, or no longer, trusted here: make it again with the cluster's present authority".into()
        }
        CertificateError::Revoked => "its key was revoked: make a new key and certificate for that node".into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired: install a new one there".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet: check both clocks".into(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is not valid for that host: make it again for the host of the node's endpoint".into()
        }
        other => other.to_string(),
    })
}

/// Why the other side refuses our certificate, and what to do; `None` for errors that are not about that.
pub fn explain_alert(error: &Error) -> Option<String> {
    let Error::AlertReceived(alert) = error else { return None };
    let why = match alert {
        AlertDescription::UnknownCA => "its authority is not, or no longer, trusted there: install one of the cluster's present authority",
        AlertDescription::CertificateRevoked => "its key was revoked: make a new key and certificate for this node",
        AlertDescription::CertificateExpired => "it has expired, or that node's clock is wrong",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::CertificateRequired => "make a new one with the cluster's present authority",
        _ => return None,
    };
    Some(format!("{why} ({alert:?})"))
}

/// The TLS error inside an error of a stream.
pub(crate) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Refusals that were logged: a refused peer calls every two seconds, and a stranger as often as he likes.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeSet<Digest>>);

impl Refusals {
    /// A new opinion: what it refuses is worth telling again.
    pub(crate) fn forget(&self) {
        self.0.lock().clear();
    }

    fn note(&self, certificate: &CertificateDer<'_>, error: &Error) {
        let new = {
            let mut told = self.0.lock();
            told.len() < limits::REFUSALS_TOLD && told.insert(certificate_digest(certificate))
        };
        if new {
            let says: String = uris(certificate).join(", ").chars().take(128).collect();
            let why = explain(error).unwrap_or_else(|| error.to_string());
            tracing::warn!(?says, why, "a certificate is refused");
        }
    }
}

/// On which side of a handshake a certificate is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// By somebody who calls us.
    Caller,
    /// By somebody whom we called under that name.
    Called(ServerName<'static>),
}

/// One opinion on certificates: verifies those of callers and of the called.
pub(crate) struct Judge {
    callers: Arc<dyn ClientCertVerifier>,
    called: Arc<WebPkiServerVerifier>,
    distrusted: BTreeSet<Digest>,
    revoked: BTreeSet<Digest>,
    refusals: Arc<Refusals>,
    /// Authorities that are trusted, each once.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").field("authorities", &self.authorities.len()).finish_non_exhaustive()
    }
}

impl Judge {
    /// Trusts these authorities and those of `trust`, but for the withdrawn ones.
    pub(crate) fn new(
        authorities: &[CertificateDer<'static>],
        trust: &Trust,
        provider: &Arc<CryptoProvider>,
        refusals: Arc<Refusals>,
    ) -> Result<Self, TrustError> {
        let unusable = |why: &dyn std::fmt::Display| TrustError::Unusable(why.to_string());
        let mut roots = RootCertStore::empty();
        let mut taken = BTreeSet::new();
        let mut trusted = Vec::new();
        let extra = trust.extra_roots.iter().enumerate().map(|(index, authority)| (index + 1, authority));
        for (number, authority) in authorities.iter().map(|authority| (0, authority)).chain(extra) {
            let digest = certificate_digest(authority);
            if trust.distrusted.contains(&digest) || !taken.insert(digest) {
                continue;
            }
            roots.add(authority.clone()).map_err(|error| match number {
                0 => unusable(&error),
                number => TrustError::BadAuthority { number, why: error.to_string() },
            })?;
            trusted.push(authority.clone());
        }
        if roots.is_empty() {
            return Err(TrustError::NoAuthority);
        }
        let roots = Arc::new(roots);
        let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider)).allow_unauthenticated();
        Ok(Self {
            callers: callers.build().map_err(|error| unusable(&error))?,
            called: WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build().map_err(|error| unusable(&error))?,
            distrusted: trust.distrusted.clone(),
            revoked: trust.revoked.clone(),
            refusals,
            authorities: trusted,
        })
    }

    /// Whether a chain, the node's own certificate first, is believed.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, chain: &[CertificateDer<'_>], role: &Role, at: UnixTime) -> Result<(), Error> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Err(Error::NoCertificatesPresented) };
        // A withdrawn authority must not come back in by the door for intermediate ones.
        let kept: Vec<CertificateDer<'_>> = intermediates
            .iter()
            .filter(|certificate| self.distrusted.is_empty() || !self.distrusted.contains(&certificate_digest(certificate)))
            .cloned()
            .collect();
        let believed = match role {
            Role::Caller => self.callers.verify_client_cert(leaf, &kept, at).map(|_| ()),
            Role::Called(name) => self.called.verify_server_cert(leaf, &kept, name, &[], at).map(|_| ()),
        };
        believed.map_err(|error| match error {
            // Two authorities of one name, and neither signed it: the caller is to hear "unknown authority".
            Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
            other => other,
        })?;
        let revoked = !self.revoked.is_empty() && key_digest(leaf).is_none_or(|key| self.revoked.contains(&key));
        if revoked { Err(CertificateError::Revoked.into()) } else { Ok(()) }
    }

    fn shown(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], role: &Role, at: UnixTime) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        self.check(&chain, role, at).inspect_err(|error| self.refusals.note(leaf, error))
    }
}

impl ClientCertVerifier for Judge {
    fn client_auth_mandatory(&self) -> bool {
        self.callers.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.callers.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.shown(leaf, intermediates, &Role::Caller, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.callers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.callers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.callers.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.shown(leaf, intermediates, &Role::Called(name.to_owned()), now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(&*self.called, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(&*self.called, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&*self.called)
    }
}

/// Connections that rest on a certificate.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Arc<Open>>,
}

/// One of them.
#[derive(Debug)]
struct Open {
    /// Whom the certificate names; empty: nobody of this cluster.
    node: String,
    chain: Vec<CertificateDer<'static>>,
    role: Role,
    /// When it was believed. It is judged again as of then: that it has expired since ends no connection.
    at: UnixTime,
    ended: AtomicBool,
    waker: AtomicWaker,
}

impl Connections {
    pub(crate) fn hold(self: &Arc<Self>, node: String, chain: Vec<CertificateDer<'static>>, role: Role) -> Held {
        let (ended, waker) = (AtomicBool::new(false), AtomicWaker::new());
        let open = Arc::new(Open { node, chain, role, at: UnixTime::now(), ended, waker });
        let mut table = self.0.lock();
        let number = table.next;
        table.next += 1;
        table.open.insert(number, Arc::clone(&open));
        Held { number, connections: Arc::clone(self), open }
    }

    /// Ends those that `judge` would refuse.
    pub(crate) fn end_refused(&self, judge: &Judge) {
        self.end(|open| judge.check(&open.chain, &open.role, open.at).is_err());
    }

    /// Ends those whose certificate names this node; how many there were.
    pub(crate) fn end_of(&self, node: &str) -> usize {
        self.end(|open| open.node == node)
    }

    fn end(&self, which: impl Fn(&Open) -> bool) -> usize {
        let open: Vec<Arc<Open>> = self.0.lock().open.values().cloned().collect();
        let ending = open.iter().filter(|open| which(open));
        let end = |open: &Arc<Open>| {
            open.ended.store(true, Ordering::Release);
            open.waker.wake();
            tracing::info!(peer = open.node, "a connection is ended: its certificate has to be shown again");
        };
        ending.map(end).count()
    }
}

/// A connection's place among those that rest on a certificate; it leaves when this is dropped.
#[derive(Debug)]
pub struct Held {
    number: u64,
    connections: Arc<Connections>,
    open: Arc<Open>,
}

impl Held {
    /// Asked before every read: an error once the connection has to end, and then it wakes the reader.
    ///
    /// # Errors
    /// The peer's certificate is not believed any more.
    pub fn poll(&self, cx: &Context<'_>) -> io::Result<()> {
        self.open.waker.register(cx.waker());
        self.check()
    }

    /// Asked before every write.
    ///
    /// # Errors
    /// As [`Held::poll`].
    pub fn check(&self) -> io::Result<()> {
        if self.open.ended.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer's certificate has to be shown again"));
        }
        Ok(())
    }

    /// Whether a judge still lets it in.
    pub(crate) fn judged(&self, judge: &Judge) -> Result<(), Error> {
        judge.check(&self.open.chain, &self.open.role, self.open.at)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connections.0.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::testing::{Authority, Wanted};
    use rustls_pki_types::pem::PemObject as _;

    const NOW: UnixTime = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_795_000_000));

    fn judge(root: &Authority, trust: &Trust) -> Judge {
        Judge::new(&[root.der()], trust, &Arc::new(rustls::crypto::aws_lc_rs::default_provider()), Arc::default()).unwrap()
    }

    fn certificate(authority: &Authority) -> CertificateDer<'static> {
        let (certificate, _) = authority.issue(&Wanted::good("afar://demo/warsaw"));
        CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()
    }

    fn roles() -> [Role; 2] {
        [Role::Caller, Role::Called("127.0.0.1".try_into().unwrap())]
    }

    #[test]
    fn a_withdrawn_authority_does_not_come_back_as_an_intermediate_one() {
        let root = Authority::new();
        let beneath = root.beneath();
        let chain = [certificate(&beneath), beneath.der()];
        let withdrawn = Trust { distrusted: BTreeSet::from([certificate_digest(&beneath.der())]), ..Trust::default() };
        for role in roles() {
            assert_eq!(judge(&root, &Trust::default()).check(&chain, &role, NOW), Ok(()));
            assert_eq!(judge(&root, &withdrawn).check(&chain, &role, NOW), Err(CertificateError::UnknownIssuer.into()));
        }
    }

    #[test]
    fn a_key_is_revoked_whatever_certificate_it_has() {
        let root = Authority::new();
        let (stolen, other) = (certificate(&root), certificate(&root));
        let revoked = Trust { revoked: BTreeSet::from([key_digest(&stolen).unwrap()]), ..Trust::default() };
        let judge = judge(&root, &revoked);
        for role in roles() {
            assert_eq!(judge.check(std::slice::from_ref(&stolen), &role, NOW), Err(CertificateError::Revoked.into()));
            assert_eq!(judge.check(std::slice::from_ref(&other), &role, NOW), Ok(()));
        }
        assert_eq!(key_digest(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn an_authority_of_the_same_name_is_another_authority() {
        let (root, other) = (Authority::new(), Authority::new());
        for role in roles() {
            let judged = judge(&root, &Trust::default()).check(&[certificate(&other)], &role, NOW);
            assert_eq!(judged, Err(CertificateError::UnknownIssuer.into()), "and not a bad signature, which tells nobody what to do");
        }
        assert_eq!(judge(&root, &Trust::default()).check(&[], &Role::Caller, NOW), Err(Error::NoCertificatesPresented));
    }

    #[test]
    fn every_connection_of_a_node_is_ended_and_no_other() {
        let (connections, root) = (Arc::new(Connections::default()), Authority::new());
        let hold = |node: &str| connections.hold(node.into(), vec![certificate(&root)], Role::Caller);
        let (one, two, other) = (hold("warsaw"), hold("warsaw"), hold("roubaix"));
        drop(one);
        assert_eq!(connections.end_of("warsaw"), 1, "one has ended by itself");
        assert!(two.check().is_err() && other.check().is_ok());
        connections.end_refused(&judge(&Authority::new(), &Trust::default()));
        assert!(other.check().is_err());
    }
}
