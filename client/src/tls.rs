//! Who a node must be. Only the cluster's own certificate authority is believed: no certificate of the system's store is, so
//! that nobody who can obtain a certificate for a name can read or take writes.
use crate::error::Error;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tonic::transport::{Certificate, ClientTlsConfig};

/// Trusts the certificates in `ca_pem` and nothing else.
///
/// # Errors
/// If there is no certificate in it.
pub fn client_config(ca_pem: &[u8]) -> Result<ClientTlsConfig, Error> {
    let hint = "name the cluster's ca.crt with --ca-file or AFAR_CA_FILE";
    let mut count = 0_usize;
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        certificate.map_err(|error| Error::usage(format!("the CA file is not readable as PEM: {error}")).hint(hint))?;
        count += 1;
    }
    if count == 0 {
        return Err(Error::usage("the CA file holds no certificate").hint(hint));
    }
    // A second provider in the program would make rustls refuse to choose; the first choice stays.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_with_what_to_do() {
        for pem in [&b""[..], b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA"] {
            let error = client_config(pem).err().map(|error| (error.kind(), error.what_to_do().is_some()));
            assert_eq!(error, Some((crate::error::Kind::Usage, true)));
        }
    }
}
