//! An authority of the tests' own, for certificates that `afar cluster init` would never make.
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// Issues certificates for nodes.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one, unknown to everybody.
    ///
    /// # Panics
    /// If the system has no randomness.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority for tests");
        let certificate = params.self_signed(&key).expect("signs itself").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Its own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Replaces a node's certificate, key and authority; `expired`: it was good until 2001.
    ///
    /// # Panics
    /// If the folder cannot be written.
    pub fn certify(&self, folder: &Path, cluster: &str, node: &str, expired: bool) {
        self.renew(folder, cluster, node, expired);
        fs::write(folder.join("ca.crt"), &self.certificate).expect("write");
    }

    /// As [`Authority::certify`], but the authority that the node trusts stays; the certificate, DER.
    ///
    /// # Panics
    /// If the folder cannot be written.
    pub fn renew(&self, folder: &Path, cluster: &str, node: &str, expired: bool) -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]).expect("names");
        params.subject_alt_names.push(SanType::URI(format!("afar://{cluster}/{node}").try_into().expect("a URI")));
        params.distinguished_name.push(rcgen::DnType::CommonName, node);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        fs::write(folder.join("node.crt"), certificate.pem()).expect("write");
        fs::write(folder.join("node.key"), key.serialize_pem()).expect("write");
        fs::set_permissions(folder.join("node.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
        certificate.der().to_vec()
    }
}
