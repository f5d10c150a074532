//! Every wrong file is named, with what to do about it.
use super::*;
use crate::cluster::testing::{Authority, Wanted, write_secret};
use std::fs;

const NOW: UnixMillis = UnixMillis(1_795_000_000_000); // in 2026

fn load(files: &TlsFiles) -> Result<Identity, IdentityError> {
    Identity::load(files, Expected { cluster: "demo", node: "warsaw", host: "127.0.0.1", now: NOW })
}

#[track_caller]
fn check(wanted: &Wanted<'_>, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().equip(folder.path(), wanted);
    let files = TlsFiles::within(folder.path());
    let message = load(&files).unwrap_err().to_string().replace(&format!("{}/", folder.path().display()), "");
    assert_eq!(message, expected);
}

#[test]
fn a_good_folder_makes_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
    let identity = load(&TlsFiles::within(folder.path())).unwrap();
    assert!(identity.days_left(NOW) > 60_000);
    let (other, _) = authority.issue(&Wanted::good("afar://demo/roubaix"));
    let other = CertificateDer::from_pem_slice(other.as_bytes()).unwrap();
    assert_eq!(identity.node_named_by(&other), Some("roubaix".into()));
    let (foreign, _) = authority.issue(&Wanted::good("afar://demo2/roubaix"));
    assert_eq!(identity.node_named_by(&CertificateDer::from_pem_slice(foreign.as_bytes()).unwrap()), None);
}

#[test]
fn a_certificate_out_of_its_time_is_named() {
    let good = Wanted::good("afar://demo/warsaw");
    check(&Wanted { years: (2020, 2025), ..good }, "node.crt: expired 686 days ago: make a new certificate with the cluster's authority");
    check(
        &Wanted { years: (2027, 2199), ..Wanted::good("afar://demo/warsaw") },
        "node.crt: is not valid before 1045 hours from now: check this machine's clock, or make the certificate again",
    );
}

#[test]
fn somebody_elses_certificate_is_named() {
    check(
        &Wanted::good("afar://demo/roubaix"),
        "node.crt: names afar://demo/roubaix, and this is afar://demo/warsaw: use this node's own folder",
    );
    check(
        &Wanted::good("afar://other/warsaw"),
        "node.crt: names afar://other/warsaw, and this is afar://demo/warsaw: use this node's own folder",
    );
    check(&Wanted::good(""), "node.crt: names no node (it has no URI name), and this is afar://demo/warsaw: use this node's own folder");
    check(
        &Wanted { host: "node.example", ..Wanted::good("afar://demo/warsaw") },
        "node.crt: is not valid for \"127.0.0.1\", where the layout says that this node is: make it again for that name",
    );
}

#[test]
fn a_foreign_authority_is_named() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
    let files = TlsFiles::within(folder.path());
    fs::write(&files.ca, Authority::new().pem()).unwrap();
    assert!(matches!(load(&files), Err(IdentityError::ForeignAuthority { .. })), "{:?}", load(&files));
}

#[test]
fn a_key_of_another_certificate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
    let files = TlsFiles::within(folder.path());
    write_secret(&files.key, &authority.issue(&Wanted::good("afar://demo/warsaw")).1);
    assert!(matches!(load(&files), Err(IdentityError::KeyMismatch { .. })), "{:?}", load(&files));
}

#[test]
fn missing_swapped_garbled_and_readable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let fresh = || {
        authority.equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
        TlsFiles::within(folder.path())
    };
    let why = |files: &TlsFiles| load(files).unwrap_err().to_string();
    let files = fresh();
    assert!(why(&TlsFiles { certificate: "/nowhere/node.crt".into(), ..files.clone() }).starts_with("/nowhere/node.crt: No such file"));
    assert!(why(&TlsFiles { certificate: files.key.clone(), ..files.clone() }).contains("holds no certificate"));
    fs::write(&files.ca, "garbage").unwrap();
    assert!(why(&files).contains("ca.crt: holds no certificate"));
    let files = fresh();
    write_secret(&files.key, "garbage");
    assert!(why(&files).contains("node.key: holds no private key"));
    let files = fresh();
    fs::set_permissions(&files.key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(why(&files).contains("may be read by every user"));
}
