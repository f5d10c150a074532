//! An authority of the tests' own, for certificates that `afar cluster init` would never make.
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

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

    /// A certificate for these names, good from so many days ago for so many days from now (negative: not any more), and its
    /// key; both PEM.
    ///
    /// # Panics
    /// If the system has no randomness.
    pub fn issue(&self, names: &[&str], since_days: u64, for_days: i64) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
        set_days(&mut params, since_days, for_days);
        (params.signed_by(&key, &self.issuer).expect("signs").pem(), key.serialize_pem())
    }

    /// Signs what somebody else has made a request of (DER); PEM.
    ///
    /// # Panics
    /// If it is none.
    pub fn sign(&self, request: &[u8], since_days: u64, for_days: i64) -> String {
        let mut request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).expect("a request");
        set_days(&mut request.params, since_days, for_days);
        request.signed_by(&self.issuer).expect("signs").pem()
    }
}

fn set_days(params: &mut CertificateParams, since_days: u64, for_days: i64) {
    let (day, now) = (Duration::from_secs(86_400), SystemTime::now());
    let days = day * u32::try_from(for_days.unsigned_abs()).expect("a few days");
    params.not_before = (now - day * u32::try_from(since_days).expect("a few days")).into();
    params.not_after = if for_days < 0 { now - days } else { now + days }.into();
}

/// Puts certificate and key where a node is told to look, each replaced whole.
///
/// # Panics
/// If they cannot be written.
pub fn put_pair(folder: &Path, (certificate, key): &(String, String)) {
    for (name, text, mode) in [("public.pem", certificate, 0o644), ("public.key", key, 0o600)] {
        let fresh = folder.join(format!("{name}.new"));
        fs::write(&fresh, text).expect("write");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).expect("chmod");
        fs::rename(&fresh, folder.join(name)).expect("rename");
    }
}
