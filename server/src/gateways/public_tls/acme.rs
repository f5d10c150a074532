//! Certificates that an ACME server issues (RFC 8555), for names that it sees lead here: it opens a TLS connection to port 443
//! of each and wants to be shown a certificate of ours for this one question (TLS-ALPN-01, RFC 8737). So that port must lead
//! to a public port of this node.
//!
//! Nothing that a server does or fails to do takes anything down: what was issued last, durable in the state directory, is
//! shown, and tried again for with growing pauses; or at once when somebody asks (SIGHUP).
use super::{
    Pair, PairFiles, PublicTls, Source, check_pair,
    client::{self, Client},
    read_pair,
};
use crate::{cluster::identity::IdentityError, files, limits, node::Node};
use afar_model::units::UnixMillis;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rand::Rng as _;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// What a server offers when it looks for our answer, and nobody else does.
pub const ALPN: &[u8] = b"acme-tls/1";

/// The server that is asked unless the configuration names another.
pub const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// What is certified, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeSettings {
    /// Names.
    pub domains: Vec<String>,
    /// Where the server may write to.
    pub contact: Vec<String>,
    /// Where it is.
    pub directory: String,
    /// Its own authority, if it is none of the public ones.
    pub authority: Option<PathBuf>,
}

impl AcmeSettings {
    /// What is wrong with them, by key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.domains.is_empty() || self.domains.len() > limits::ACME_DOMAINS {
            problems.push(format!("domains: name 1 to {} of them", limits::ACME_DOMAINS));
        }
        for domain in self.domains.iter().filter(|domain| !is_domain(domain)) {
            problems.push(format!("domains = {domain:?}: must be a name such as \"afar.example.net\", in lower case, without *"));
        }
        for contact in self.contact.iter().filter(|contact| !contact.starts_with("mailto:")) {
            problems.push(format!("contact = {contact:?}: must be such as \"mailto:ops@example.net\""));
        }
        if !client::is_address(&self.directory) {
            problems.push(format!("directory = {:?}: must be an https address", self.directory));
        }
        problems
    }

    /// Whether the file that they name can be used.
    pub(super) fn check(&self) -> Result<(), IdentityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Client::new(self, provider).map(|_| ())
    }

    /// Another server is another account.
    fn account_file(&self, state: &Path) -> PathBuf {
        folder(state).join(format!("account-{}.json", short(&[&self.directory])))
    }

    /// Another server or other names are another certificate.
    fn certificate_file(&self, state: &Path) -> PathBuf {
        let mut parts: Vec<&str> = self.domains.iter().map(String::as_str).collect();
        parts.sort_unstable();
        parts.push(&self.directory);
        folder(state).join(format!("certificate-{}.pem", short(&parts)))
    }
}

fn folder(state: &Path) -> PathBuf {
    state.join("acme")
}

fn short(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part.as_bytes()).update(&[0]);
    }
    hasher.finalize().to_hex().chars().take(16).collect()
}

fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.chars().all(|c| c.is_ascii_digit());
    text.len() <= 253 && text.contains('.') && text.split('.').all(is_label) && !text.rsplit('.').next().is_none_or(is_number)
}

const NOT_FOUND: &str = "the server does not find this node under every name (does port 443 there lead to its HTTP port?)";

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
enum AcmeError {
    #[error(transparent)]
    Server(#[from] instant_acme::Error),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Useless(#[from] IdentityError),
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("the order took too long")]
    Late,
}

/// What was issued last, if it is still good.
pub(super) fn cached(tls: &PublicTls, settings: &AcmeSettings, state: &Path, now: UnixMillis) -> Option<Pair> {
    let path = settings.certificate_file(state);
    if !path.exists() {
        return None;
    }
    let files = PairFiles { certificate: path.clone(), key: path };
    let read = read_pair(&files, &tls.identity.provider(), now);
    read.inspect_err(|error| tracing::warn!(%error, "the certificate that was issued last is not used: a new one is ordered")).ok()
}

/// Sees to it that there is a certificate, if it is to come from an ACME server.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    let tls = Arc::clone(&node.public_tls);
    let Source::Acme(settings) = &tls.source else { return };
    // It knows nothing of the wall clock's jumps: so it looks again now and then.
    let mut pause = limits::ACME_RETRY_MIN;
    loop {
        let wait = if tls.is_due(node.now()) {
            let order = tokio::time::timeout(limits::ACME_ORDER, order(&tls, settings, &node));
            let Some(ordered) = stop.run_until_cancelled(order).await else { return };
            tls.challenges.store(Arc::default());
            match ordered.unwrap_or(Err(AcmeError::Late)) {
                Ok(pair) => {
                    tls.show(pair);
                    pause = limits::ACME_RETRY_MIN;
                }
                Err(error) => {
                    tls.complain(error.to_string(), "no certificate was issued: it is tried again");
                    pause = (pause * 2).min(limits::ACME_RETRY_MAX);
                }
            }
            // Not all nodes at the same moment. And a server whose certificates are always about to end is asked no oftener.
            pause.mul_f64(rand::rng().random_range(0.75..1.0))
        } else {
            limits::ACME_RETRY_MIN
        };
        let waiting = tokio::time::timeout(wait, tls.asked.notified());
        if stop.run_until_cancelled(waiting).await.is_none() {
            return;
        }
    }
}

impl PublicTls {
    /// Whether it is time for a new one.
    fn is_due(&self, now: UnixMillis) -> bool {
        self.pair.load().as_ref().is_none_or(|pair| pair.until.since(now) < pair.until.since(pair.from) / limits::ACME_RENEW_SHARE)
    }

    /// What a server that asks for this name is shown from now on.
    fn prove(&self, name: &str, digest: &[u8]) -> Result<(), AcmeError> {
        let digest: [u8; 32] = digest.try_into().map_err(|_| AcmeError::Refused("a digest of another length".into()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
        let certificate = params.self_signed(&key)?.der().clone();
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        // Without the library's own check of the pair: it refuses what it does not know and is critical, as this must be.
        let signing = self.identity.provider().key_provider.load_private_key(private)?;
        let certified = Arc::new(CertifiedKey::new(vec![certificate], signing));
        self.challenges.rcu(|present| {
            let mut next = HashMap::clone(present);
            next.insert(name.to_owned(), Arc::clone(&certified));
            next
        });
        Ok(())
    }
}

const fn retries() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(limits::ACME_ORDER)
}

async fn order(tls: &PublicTls, settings: &AcmeSettings, node: &Node) -> Result<Pair, AcmeError> {
    let state = &node.config.state;
    let account = account(tls, settings, state).await?;
    let names: Vec<Identifier> = settings.domains.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await.inspect_err(|error| forget_account(error, settings, state))?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let offered = authorization.challenge(ChallengeType::TlsAlpn01);
        let mut challenge = offered.ok_or_else(|| AcmeError::Refused("the server offers no tls-alpn-01".into()))?;
        let Identifier::Dns(name) = challenge.identifier().identifier.clone() else {
            return Err(AcmeError::Refused("the server asks about something that is no name".into()));
        };
        tls.prove(&name, challenge.key_authorization().digest().as_ref())?;
        challenge.set_ready().await.map_err(|error| match error {
            // It has looked already.
            instant_acme::Error::Api(problem) => AcmeError::Refused(format!("{NOT_FOUND}: {name}: {problem}")),
            error => error.into(),
        })?;
    }
    if order.poll_ready(&retries()).await? != OrderStatus::Ready {
        return Err(AcmeError::Refused(why_invalid(&mut order).await));
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(settings.domains.clone())?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&retries()).await?;
    let text = format!("{}{chain}", key.serialize_pem());
    let path = settings.certificate_file(state);
    let files = PairFiles { certificate: path.clone(), key: path.clone() };
    let pair = check_pair(&files, (&text, &text), &tls.identity.provider(), node.now())?;
    write(state, path, text)?;
    Ok(pair)
}

/// What the server says of the name that it would not certify.
async fn why_invalid(order: &mut Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(errors.map(|error| format!("{}: {error}", state.identifier())));
    }
    if reasons.is_empty() { NOT_FOUND.to_owned() } else { format!("{NOT_FOUND}: {}", reasons.join("; ")) }
}

async fn account(tls: &PublicTls, settings: &AcmeSettings, state: &Path) -> Result<Account, AcmeError> {
    let path = settings.account_file(state);
    let builder = Account::builder_with_http(Box::new(Client::new(settings, tls.identity.provider())?));
    let kept = files::read_secret(&path, limits::SECRET_FILE_BYTES_MAX).ok();
    // A file that is none is replaced: an account is made in a moment.
    if let Some(kept) = kept.and_then(|text| serde_json::from_str::<AccountCredentials>(&text).ok()) {
        return Ok(builder.from_credentials(kept).await?);
    }
    let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&wanted, settings.directory.clone(), None).await?;
    write(state, path, serde_json::to_string(&credentials).map_err(instant_acme::Error::from)?)?;
    Ok(account)
}

/// A server that was made anew knows nobody: the next attempt makes an account again.
fn forget_account(error: &instant_acme::Error, settings: &AcmeSettings, state: &Path) {
    let instant_acme::Error::Api(problem) = error else { return };
    if problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(":accountDoesNotExist")) {
        // If it stays, the next attempt says the same.
        let _ = files::remove(&settings.account_file(state));
    }
}

/// Durably, and for this user alone. A few kilobytes, once in weeks: no thread is worth it.
fn write(state: &Path, path: PathBuf, text: String) -> Result<(), AcmeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder(state));
    made.and_then(|()| files::replace(&path, text.as_bytes(), 0o600)).map_err(|error| AcmeError::File { path, error })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings(domains: &[&str]) -> AcmeSettings {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        AcmeSettings { domains, contact: Vec::new(), directory: DIRECTORY.into(), authority: None }
    }

    #[test]
    fn names_are_checked_before_anybody_is_asked() {
        assert_eq!(settings(&["afar.example.net", "s3.example.net"]).problems(), Vec::<String>::new());
        for bad in ["", "localhost", "*.example.net", "A.example.net", "10.0.0.1", "a..b", "-a.b", "a.b:443", "::1"] {
            assert_eq!(settings(&[bad]).problems().len(), 1, "{bad:?}");
        }
        assert_eq!(settings(&[]).problems().len(), 1);
        let other = |change: fn(&mut AcmeSettings)| {
            let mut settings = settings(&["a.b"]);
            change(&mut settings);
            settings.problems().len()
        };
        assert_eq!((other(|s| s.directory = "http://a/".into()), other(|s| s.contact = vec!["ops@a.b".into()])), (1, 1));
    }

    #[test]
    fn another_server_or_other_names_are_other_files() {
        let state = Path::new("state");
        let (one, turned) = (settings(&["a.b", "c.d"]), settings(&["c.d", "a.b"]));
        assert_eq!(one.certificate_file(state), turned.certificate_file(state));
        assert_ne!(one.certificate_file(state), settings(&["a.b"]).certificate_file(state));
        let mut other = one.clone();
        other.directory = "https://other/".into();
        assert_ne!(one.certificate_file(state), other.certificate_file(state));
        assert_ne!(one.account_file(state), other.account_file(state));
        assert_eq!(one.account_file(state), settings(&["x.y"]).account_file(state));
    }
}
