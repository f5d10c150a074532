//! A certificate authority for tests, and what a node's folder holds.
#![allow(clippy::unwrap_used, dead_code)]
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// How a node's certificate is to be.
pub(crate) struct Wanted<'a> {
    pub uri: &'a str,
    pub host: &'a str,
    /// Years of the validity's ends.
    pub years: (i32, i32),
}

impl<'a> Wanted<'a> {
    pub fn good(uri: &'a str) -> Self {
        Self { uri, host: "127.0.0.1", years: (2020, 2199) }
    }
}

impl Authority {
    pub fn new() -> Self {
        Self::until(2199)
    }

    /// One that ends with the beginning of that year.
    pub fn until(year: i32) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// One that this one vouches for.
    pub fn beneath(&self) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "an authority beneath");
        Self(CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key.
    pub fn issue(&self, wanted: &Wanted<'_>) -> (String, String) {
        let mut params = CertificateParams::new(vec![wanted.host.to_owned()]).unwrap();
        if !wanted.uri.is_empty() {
            params.subject_alt_names.push(SanType::URI(wanted.uri.try_into().unwrap()));
        }
        params.not_before = rcgen::date_time_ymd(wanted.years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(wanted.years.1, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes `ca.crt`, `node.crt` and `node.key` into a node's folder.
    pub fn equip(&self, folder: &Path, wanted: &Wanted<'_>) {
        let (certificate, key) = self.issue(wanted);
        write_secret(&folder.join("node.key"), &key);
        fs::write(folder.join("node.crt"), certificate).unwrap();
        fs::write(folder.join("ca.crt"), self.pem()).unwrap();
    }
}

pub(crate) fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
