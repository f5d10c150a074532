//! What a node shows to whoever connects, without asking it for anything: so it is known which authority has certified it,
//! and which key it has.
use crate::{
    endpoints,
    error::{Error, Kind},
    limits,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    server::ParsedCertificate,
};
use std::{
    io,
    net::{TcpStream, ToSocketAddrs as _},
    sync::Arc,
};

/// What came of a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A certificate (DER) that one of the authorities has made for that host.
    Believed(Vec<u8>),
    /// Another; why it is not believed.
    Refused(String),
}

/// The certificates (DER) of a PEM file's text.
///
/// # Errors
/// If there is none, or something is no PEM.
pub fn certificates(pem: &[u8], of: &str) -> Result<Vec<Vec<u8>>, Error> {
    let wrong = |why: String| Error::usage(format!("{of}: {why}"));
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).map(|found| found.map(|der| der.to_vec())).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong("holds no certificate".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(format!("is no PEM file: {error}"))),
    }
}

/// What names a certificate's key: BLAKE3 of its SubjectPublicKeyInfo.
///
/// # Errors
/// If it is no certificate.
pub fn key_digest(certificate: &[u8]) -> Result<[u8; 32], Error> {
    public_key(certificate).map(|key| *blake3::hash(&key).as_bytes())
}

/// A certificate's SubjectPublicKeyInfo, DER.
///
/// # Errors
/// If it is no certificate.
pub fn public_key(certificate: &[u8]) -> Result<Vec<u8>, Error> {
    let der = CertificateDer::from(certificate.to_vec());
    let parsed = ParsedCertificate::try_from(&der).map_err(|error| Error::usage(format!("this is no certificate: {error}")))?;
    Ok(parsed.subject_public_key_info().to_vec())
}

/// Whether a certificate that is believed names this node: it holds the URI name `afar://CLUSTER/NODE`.
pub fn names_node(certificate: &[u8], cluster: &str, node: &str) -> bool {
    // As DER writes a URI among the alternative names: its tag, its length, its text.
    let text = format!("afar://{cluster}/{node}");
    let Ok(length) = u8::try_from(text.len()) else { return false };
    let mut name = if length < 0x80 { vec![0x86, length] } else { vec![0x86, 0x81, length] };
    name.extend_from_slice(text.as_bytes());
    certificate.windows(name.len()).any(|window| window == name)
}

/// Connects to an endpoint and looks at its certificate, believing these authorities (DER) and nobody else.
///
/// # Errors
/// If nobody is reached there, or an authority is none.
pub async fn shown(endpoint: &str, authorities: &[Vec<u8>]) -> Result<Shown, Error> {
    let name = endpoints::normalise(endpoint)?;
    let unreachable = |why: String| Error::new(Kind::Unreachable, format!("{name} cannot be reached: {why}"));
    let (host, port) = name
        .strip_prefix("https://")
        .and_then(|rest| rest.rsplit_once(':'))
        .and_then(|(host, port)| Some((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port.parse::<u16>().ok()?)))
        .ok_or_else(|| Error::usage(format!("endpoint {endpoint:?}: names no host")))?;
    let config = config(authorities)?;
    let handshake = tokio::task::spawn_blocking(move || shake(&host, port, config));
    match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(Ok(shown))) => Ok(shown),
        Ok(Ok(Err(error))) => Err(unreachable(error.to_string())),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("no answer in time".into())),
    }
}

fn config(authorities: &[Vec<u8>]) -> Result<Arc<ClientConfig>, Error> {
    let wrong = |error: rustls::Error| Error::usage(format!("the authorities cannot be used: {error}"));
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(CertificateDer::from(authority.clone())).map_err(wrong)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).map_err(wrong)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn shake(host: &str, port: u16, config: Arc<ClientConfig>) -> io::Result<Shown> {
    let mut last = io::Error::other("its name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limits::CONNECT_TIMEOUT) {
            Ok(tcp) => return shake_on(tcp, host, config),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn shake_on(mut tcp: TcpStream, host: &str, config: Arc<ClientConfig>) -> io::Result<Shown> {
    tcp.set_read_timeout(Some(limits::HANDSHAKE_TIMEOUT))?;
    tcp.set_write_timeout(Some(limits::HANDSHAKE_TIMEOUT))?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(&mut tcp) {
            let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            return match refused {
                Some(rustls::Error::InvalidCertificate(why)) => Ok(Shown::Refused(why.to_string())),
                _ => Err(error),
            };
        }
    }
    let leaf = tls.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
    leaf.map(Shown::Believed).ok_or_else(|| io::Error::other("it shows no certificate"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::authority::{Authority, Pair};
    use rustls::{ServerConfig, ServerConnection, pki_types::PrivateKeyDer};
    use std::{net::TcpListener, time::Duration};

    const NOW: Duration = Duration::from_secs(1_795_000_000);

    fn der(pem: &str) -> Vec<u8> {
        certificates(pem.as_bytes(), "it").unwrap().remove(0)
    }

    /// Shows this to one who connects; where.
    fn show(pair: &Pair) -> String {
        let chain = vec![CertificateDer::from(der(&pair.certificate))];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let config = Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(config).unwrap();
            while tls.is_handshaking() && tls.complete_io(&mut tcp).is_ok() {}
        });
        format!("https://{address}")
    }

    #[tokio::test]
    async fn a_certificate_is_believed_by_its_own_authority_alone() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let (old, new) = (Authority::new("demo", now).unwrap(), Authority::new("demo", now).unwrap());
        let pair = new.node("demo", "warsaw", "127.0.0.1", now).unwrap();
        let (old, new) = (der(&old.pair.certificate), der(&new.pair.certificate));
        assert_eq!(shown(&show(&pair), &[old.clone(), new]).await.unwrap(), Shown::Believed(der(&pair.certificate)));
        let refused = shown(&show(&pair), &[old]).await.unwrap();
        assert!(matches!(refused, Shown::Refused(_)), "{refused:?}");
        let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        assert_eq!(shown(&format!("https://{closed}"), &[]).await.unwrap_err().kind(), Kind::Unreachable);
    }

    #[test]
    fn a_certificate_names_its_node_and_no_other() {
        let authority = Authority::new("demo", NOW).unwrap();
        let long = "n".repeat(63);
        for node in ["warsaw", long.as_str()] {
            let cluster = if node == "warsaw" { "demo".to_owned() } else { "c".repeat(63) };
            let certificate = der(&authority.node(&cluster, node, "127.0.0.1", NOW).unwrap().certificate);
            assert!(names_node(&certificate, &cluster, node), "{node}");
            for (cluster, other) in [(cluster.as_str(), "warsa"), (&cluster, "arsaw"), ("dem", node), ("", "")] {
                assert!(!names_node(&certificate, cluster, other), "{other}");
            }
        }
    }

    #[test]
    fn a_key_is_named_alike_in_every_certificate_of_it() {
        let authority = Authority::new("demo", NOW).unwrap();
        let (a, b) = (authority.node("demo", "a", "a.example", NOW).unwrap(), authority.node("demo", "b", "b.example", NOW).unwrap());
        let digest = |pair: &Pair| key_digest(&der(&pair.certificate)).unwrap();
        assert_ne!(digest(&a), digest(&b));
        let key = rcgen::PublicKeyData::subject_public_key_info(&rcgen::KeyPair::from_pem(&a.key).unwrap());
        assert_eq!(digest(&a), *blake3::hash(&key).as_bytes());
        assert!(key_digest(b"no certificate").is_err());
    }
}
