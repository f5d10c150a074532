//! The cluster's certificate authority and its nodes' certificates: ECDSA P-256 by AWS-LC.
//!
//! A node is known by the URI in its certificate, `afar://CLUSTER/NODE`, and reached by the host in it. A key is
//! revoked, and an authority withdrawn, by the layout.
use super::handshake;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    SanType, SerialNumber, date_time_ymd,
};
use std::{net::IpAddr, time::Duration};

/// A node's certificate is renewed once a year; its expiry is a health check.
const NODE_VALID: Duration = Duration::from_secs(366 * 24 * 3600);
/// An authority outlives the machines that it vouches for.
const CA_VALID: Duration = Duration::from_secs(3653 * 24 * 3600);
/// Clocks of machines differ; a certificate made now is good everywhere now.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    /// Public.
    pub certificate: String,
    /// Secret.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A new certificate authority.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    /// Its certificate and key.
    pub pair: Pair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("pair", &self.pair).finish_non_exhaustive()
    }
}

fn valid_for(params: &mut CertificateParams, now: Duration, valid: Duration) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + (now + valid);
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
}

/// What an issuer's certificates say of it: the same whenever they are made.
fn ca_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, format!("afar {cluster} CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// Makes an authority for a cluster, valid from `now` (since 1970) for ten years.
    ///
    /// # Errors
    /// If the system has no randomness, in essence.
    pub fn new(cluster: &str, now: Duration) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = ca_params(cluster);
        valid_for(&mut params, now, CA_VALID);
        let pair = Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok(Self { params, key, pair })
    }

    /// An authority that was made before, from its files.
    ///
    /// # Errors
    /// If the key is none.
    pub fn restore(cluster: &str, pair: Pair) -> Result<Self, rcgen::Error> {
        let key = KeyPair::from_pem(&pair.key)?;
        Ok(Self { params: ca_params(cluster), key, pair })
    }

    /// Whether the key is the certificate's.
    pub fn is_whole(&self) -> bool {
        let certificates = handshake::certificates(self.pair.certificate.as_bytes(), "it").unwrap_or_default();
        certificates.first().and_then(|der| handshake::public_key(der).ok()).is_some_and(|key| key == self.key.subject_public_key_info())
    }

    /// Makes a node's certificate for the host that clients and peers reach it by, valid from `now` for a year.
    ///
    /// # Errors
    /// If the host cannot stand in a certificate.
    pub fn node(&self, cluster: &str, node: &str, host: &str, now: Duration) -> Result<Pair, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, format!("{node}.{cluster}"));
        params.subject_alt_names = vec![SanType::URI(format!("afar://{cluster}/{node}").try_into()?)];
        for name in names_of(host) {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, now, NODE_VALID);
        let issuer = Issuer::from_params(&self.params, &self.key);
        Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    }
}

/// A host on this machine goes by all its local names; any other by the one given.
fn names_of(host: &str) -> Vec<String> {
    if is_loopback(host) {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        if !names.iter().any(|name| name == host) {
            names.push(host.to_owned());
        }
        names
    } else {
        vec![host.to_owned()]
    }
}

/// Whether a host is this machine by name or by address.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_for_any_host() {
        let now = Duration::from_secs(1_800_000_000);
        let authority = Authority::new("demo", now).unwrap();
        for host in ["127.0.0.1", "localhost", "::1", "node1.example.org", "192.0.2.7"] {
            let pair = authority.node("demo", "n", host, now).unwrap();
            assert!(pair.certificate.contains("BEGIN CERTIFICATE") && pair.key.contains("PRIVATE KEY"), "{host}");
        }
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }

    #[test]
    fn only_this_machine_is_also_called_localhost() {
        assert_eq!(names_of("a.example"), ["a.example"]);
        assert_eq!(names_of("::1"), ["localhost", "127.0.0.1", "::1"]);
    }
}
