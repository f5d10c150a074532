//! Every wrong file is named, with what to do about it.
use super::*;
use crate::cluster::{
    testing::{Authority, Wanted, write_secret},
    trust::{certificate_digest, key_digest},
};
use std::fs;

const NOW: UnixMillis = UnixMillis(1_795_000_000_000); // in 2026

const WARSAW: Expected<'static> = Expected { cluster: "demo", node: "warsaw", host: "127.0.0.1", now: NOW };

fn load(files: &TlsFiles) -> Result<Identity, IdentityError> {
    Identity::load(files, WARSAW)
}

/// A good folder, and what was made of it.
fn warsaw(authority: &Authority) -> (tempfile::TempDir, Identity) {
    let folder = tempfile::tempdir().unwrap();
    authority.equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
    let identity = load(&TlsFiles::within(folder.path())).unwrap();
    (folder, identity)
}

/// A new certificate and key, the authorities' file as it was.
fn renew(folder: &Path, authority: &Authority, wanted: &Wanted<'_>) {
    let (certificate, key) = authority.issue(wanted);
    fs::write(folder.join("node.crt"), certificate).unwrap();
    write_secret(&folder.join("node.key"), &key);
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

#[test]
fn renewed_files_are_used_without_a_restart() {
    let authority = Authority::new();
    let (folder, identity) = warsaw(&authority);
    let (first, server, client) = (identity.certificate(), identity.server_config(), identity.client_config());
    assert_eq!(identity.reload(WARSAW), Ok(Reloaded::Unchanged));
    assert!(Arc::ptr_eq(&server, &identity.server_config()), "nothing has changed");
    renew(folder.path(), &authority, &Wanted { years: (2020, 2198), ..Wanted::good("afar://demo/warsaw") });
    let days = identity.days_left(NOW);
    assert_eq!(identity.reload(WARSAW), Ok(Reloaded::Replaced));
    assert!(identity.certificate() != first && identity.days_left(NOW) < days);
    assert!(!Arc::ptr_eq(&server, &identity.server_config()) && !Arc::ptr_eq(&client, &identity.client_config()));
    assert_eq!(identity.reload(WARSAW), Ok(Reloaded::Unchanged));
}

#[test]
fn files_that_became_bad_change_nothing_but_what_is_said() {
    let authority = Authority::new();
    let (folder, identity) = warsaw(&authority);
    let (good, server) = (identity.certificate(), identity.server_config());
    let files = TlsFiles::within(folder.path());
    let node = "afar://demo/warsaw";
    type Spoil<'a> = Box<dyn Fn() + 'a>;
    let spoil: [(&str, Spoil<'_>); 6] = [
        ("holds no certificate", Box::new(|| fs::write(&files.certificate, "garbage").unwrap())),
        ("No such file", Box::new(|| fs::remove_file(&files.key).unwrap())),
        ("expired", Box::new(|| renew(folder.path(), &authority, &Wanted { years: (2020, 2025), ..Wanted::good(node) }))),
        ("was not issued by", Box::new(|| renew(folder.path(), &Authority::new(), &Wanted::good(node)))),
        ("names afar://demo/roubaix", Box::new(|| renew(folder.path(), &authority, &Wanted::good("afar://demo/roubaix")))),
        ("does not belong to", Box::new(|| write_secret(&files.key, &authority.issue(&Wanted::good(node)).1))),
    ];
    for (expected, spoil) in spoil {
        renew(folder.path(), &authority, &Wanted::good(node));
        spoil();
        let why = identity.reload(WARSAW).unwrap_err().to_string();
        assert!(why.contains(expected), "{why}");
        assert_eq!((identity.rejected(), identity.certificate()), (Some(why), good.clone()));
        assert!(Arc::ptr_eq(&server, &identity.server_config()));
    }
    renew(folder.path(), &authority, &Wanted::good(node));
    assert_eq!((identity.reload(WARSAW), identity.rejected()), (Ok(Reloaded::Replaced), None));
}

#[test]
fn files_that_are_put_back_are_no_trouble_any_more() {
    let (folder, identity) = warsaw(&Authority::new());
    let files = TlsFiles::within(folder.path());
    let good = fs::read(&files.certificate).unwrap();
    fs::write(&files.certificate, "garbage").unwrap();
    assert!(identity.reload(WARSAW).is_err() && identity.rejected().is_some());
    fs::write(&files.certificate, good).unwrap();
    assert_eq!((identity.reload(WARSAW), identity.rejected()), (Ok(Reloaded::Unchanged), None));
}

#[test]
fn a_file_may_hold_several_authorities_and_an_expired_one_among_them_does_no_harm() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles::within(folder.path());
    old.equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
    fs::write(&files.ca, format!("{}{}{}", Authority::until(2025).pem(), new.pem(), old.pem())).unwrap();
    let identity = load(&files).unwrap();
    assert!(identity.authority_not_after() > NOW, "the expired one is none");
    renew(folder.path(), &new, &Wanted::good("afar://demo/warsaw"));
    assert_eq!(identity.reload(WARSAW), Ok(Reloaded::Replaced));
    fs::write(&files.ca, Authority::until(2025).pem()).unwrap();
    assert!(matches!(load(&files), Err(IdentityError::Expired { .. })), "{:?}", load(&files));
}

#[test]
fn an_authority_is_added_and_withdrawn_at_run_time() {
    let (old, new) = (Authority::new(), Authority::new());
    let (folder, identity) = warsaw(&old);
    let withdrawn = vec![certificate_digest(&old.der())];
    assert_eq!(identity.set_extra_roots(Vec::new(), withdrawn.clone()), Err(TrustError::NoAuthority), "nobody would be left");
    let bad = identity.set_extra_roots(vec![CertificateDer::from(vec![1, 2, 3])], Vec::new());
    assert!(matches!(bad, Err(TrustError::BadAuthority { number: 1, .. })), "{bad:?}");
    assert_eq!(identity.trust(), Trust::default(), "and everything is as it was");
    // The new authority is known before any file names it.
    renew(folder.path(), &new, &Wanted::good("afar://demo/warsaw"));
    assert!(matches!(identity.reload(WARSAW), Err(IdentityError::ForeignAuthority { .. })));
    identity.set_extra_roots(vec![new.der()], Vec::new()).unwrap();
    assert_eq!((identity.reload(WARSAW), identity.own_refused()), (Ok(Reloaded::Replaced), None));
    // The old one is withdrawn, whatever the files say.
    identity.set_extra_roots(vec![new.der()], withdrawn).unwrap();
    assert_eq!(identity.own_refused(), None);
    renew(folder.path(), &old, &Wanted::good("afar://demo/warsaw"));
    assert!(matches!(identity.reload(WARSAW), Err(IdentityError::Withdrawn { .. })), "{:?}", identity.reload(WARSAW));
}

#[test]
fn a_node_whose_own_certificate_is_withdrawn_or_revoked_goes_on_and_says_so() {
    let (old, new) = (Authority::new(), Authority::new());
    let (folder, identity) = warsaw(&old);
    identity.set_extra_roots(vec![new.der()], vec![certificate_digest(&old.der())]).unwrap();
    assert!(identity.own_refused().unwrap().contains("withdrawn"));
    identity.set_trust(Trust::default()).unwrap();
    assert_eq!(identity.own_refused(), None);
    let key = key_digest(&identity.certificate().unwrap()).unwrap();
    identity.set_revoked(BTreeSet::from([key])).unwrap();
    assert!(identity.own_refused().unwrap().contains("revoked"));
    // A certificate made again for the same key is no other.
    let trust = identity.trust();
    let files = TlsFiles::within(folder.path());
    let again = Identity::load_trusting(&files, WARSAW, trust);
    assert!(matches!(again, Err(IdentityError::Revoked { .. })), "{again:?}");
}

#[test]
fn a_node_objects_to_being_shut_out_for_want_of_a_new_certificate_and_to_nothing_else() {
    let (old, new) = (Authority::new(), Authority::new());
    let (folder, identity) = warsaw(&old);
    let withdrawn =
        Trust { extra_roots: vec![new.der()], distrusted: BTreeSet::from([certificate_digest(&old.der())]), ..Trust::default() };
    assert!(identity.objection(&withdrawn).unwrap().contains("certificate of the authority that would be withdrawn"));
    let nobody = Trust { extra_roots: Vec::new(), ..withdrawn.clone() };
    assert!(identity.objection(&nobody).unwrap().contains("no authority would be left"));
    let none = Trust { extra_roots: vec![CertificateDer::from(vec![1, 2, 3])], ..Trust::default() };
    assert!(identity.objection(&none).unwrap().contains("cannot be used"));
    assert_eq!(identity.trust(), Trust::default(), "asking changes nothing");
    // A stolen key is revoked whether its node agrees or not.
    let key = key_digest(&identity.certificate().unwrap()).unwrap();
    assert_eq!(identity.objection(&Trust { revoked: BTreeSet::from([key]), ..Trust::default() }), None);
    // With a certificate of the new authority nothing is in the way.
    identity.follow(|| Trust { extra_roots: vec![new.der()], ..Trust::default() }).unwrap();
    renew(folder.path(), &new, &Wanted::good("afar://demo/warsaw"));
    assert_eq!(identity.reload(WARSAW), Ok(Reloaded::Replaced));
    assert_eq!(identity.objection(&withdrawn), None);
}
