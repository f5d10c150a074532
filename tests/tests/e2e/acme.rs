//! Certificates that an ACME server issues: one of the tests' own, and a real one if there is one (`make test-acme`).
use afar_tests::{
    acme::AcmeServer,
    certificates::Authority,
    cluster::{Cluster, Setup, TWO},
    http::{Answer, Curl},
    limits::SETTLE_MAX,
    wait::until,
    wire,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

const NAME: &str = "afar.example.net";
const DAY_MS: u64 = 86_400_000;

fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).unwrap()
}

/// Strasbourg and Warsaw; Warsaw's HTTP port is to have a certificate from there. Nothing runs yet.
fn made(directory: &str, authority: &str) -> Cluster {
    let cluster = Setup::of(&TWO).set("testing.enabled", true).make();
    let warsaw = cluster.node("warsaw");
    warsaw.open_http();
    fs::write(warsaw.folder().join("acme-ca.crt"), authority).unwrap();
    warsaw.configure("public_tls.acme.domains", vec![NAME]);
    warsaw.configure("public_tls.acme.contact", vec!["mailto:ops@example.net"]);
    warsaw.configure("public_tls.acme.directory", directory);
    warsaw.configure("public_tls.acme.directory_authority", "acme-ca.crt");
    warsaw.configure("public_tls.acme.agree_to_terms", true);
    cluster
}

/// Asks under the name that is certified, believing only who issues.
fn ask(cluster: &Cluster, authority: &str) -> Answer {
    let address = cluster.node("warsaw").http();
    let resolved = format!("{NAME}:{}:{}", address.port(), address.ip());
    let curl = Curl::believing(cluster.file("issuer.pem", authority.as_bytes()));
    curl.get_url(&format!("https://{NAME}:{}/healthz", address.port()), &["--resolve", &resolved])
}

#[track_caller]
fn until_issued(cluster: &Cluster, authority: &str) -> Vec<u8> {
    until("a certificate is issued and shown", SETTLE_MAX, || {
        let answer = ask(cluster, authority);
        if answer.status == 200 { Ok(()) } else { Err(format!("{}; {}", answer.body, public_check(cluster))) }
    });
    wire::served_certificate(cluster.node("warsaw").http()).unwrap()
}

/// What Warsaw says of the certificate that it shows to the public.
fn public_check(cluster: &Cluster) -> serde_json::Value {
    let status = cluster.status();
    let checks = status["checks"].as_array().cloned().unwrap_or_default();
    let is_it = |check: &serde_json::Value| check["name"] == "certificate" && check["detail"].to_string().contains("public");
    checks.into_iter().find(is_it).unwrap_or_default()
}

#[track_caller]
fn until_public(cluster: &Cluster, state: &str, words: &str) {
    until(&format!("the public certificate is {state}: {words}"), SETTLE_MAX, || {
        let check = public_check(cluster);
        if check["state"] == state && check["detail"].to_string().contains(words) { Ok(()) } else { Err(check) }
    });
}

fn issued_files(cluster: &Cluster) -> Vec<PathBuf> {
    let folder = cluster.node("warsaw").folder().join("state/acme");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn server_at(address: SocketAddr, authority: &Arc<Authority>, cluster: &Cluster) -> AcmeServer {
    let server = AcmeServer::start(address, Arc::clone(authority));
    server.leads(NAME, cluster.node("warsaw").http());
    server
}

#[test]
fn a_certificate_is_issued_kept_over_a_restart_and_renewed_before_it_ends() {
    let (authority, address) = (Arc::new(Authority::new()), free());
    let mut cluster = made(&format!("https://{address}/directory"), authority.certificate());
    let server = server_at(address, &authority, &cluster);
    cluster.start_all();
    let first = until_issued(&cluster, authority.certificate());
    until_public(&cluster, "ok", "ends in 89 days");
    assert_eq!((server.accounts(), server.orders()), (1, 1));
    // Names that nobody asks for are shown no proof.
    assert!(wire::shown(cluster.node("warsaw").http(), NAME.try_into().unwrap(), &[b"acme-tls/1"]).is_err(), "no order is under way");
    let files = issued_files(&cluster);
    assert_eq!(files.len(), 2, "an account and a certificate: {files:?}");
    for file in &files {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    // Over a restart it is shown from the first moment, and nobody is asked.
    assert_eq!(cluster.node_mut("warsaw").stop(), 143);
    cluster.node_mut("warsaw").start();
    assert_eq!(wire::served_certificate(cluster.node("warsaw").http()).unwrap(), first);
    until_public(&cluster, "ok", "ends in 89 days");
    assert_eq!(server.orders(), 1, "it is good for long");
    // When two thirds of its time are over it is replaced, by the same account.
    assert_eq!(cluster.node_mut("warsaw").stop(), 143);
    server.issue_for(1, 200);
    cluster.node_mut("warsaw").environment("AFAR_TEST_CLOCK_OFFSET_MS", (70 * DAY_MS).to_string());
    cluster.node_mut("warsaw").start();
    until("it is renewed", SETTLE_MAX, || match wire::served_certificate(cluster.node("warsaw").http()) {
        Ok(served) if served == first => Err("the first one".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    assert_eq!((server.accounts(), server.orders()), (1, 2));
    // A file that was damaged is no reason not to start: there is soon another.
    assert_eq!(cluster.node_mut("warsaw").stop(), 143);
    let certificate = files.iter().find(|file| file.extension().is_some_and(|kind| kind == "pem")).unwrap();
    fs::write(certificate, "garbage").unwrap();
    server.forget_accounts();
    cluster.node_mut("warsaw").start();
    until_public(&cluster, "warning", "accountDoesNotExist");
    cluster.node("warsaw").hang_up();
    until_issued(&cluster, authority.certificate());
    assert_eq!((server.accounts(), server.orders()), (2, 3), "a server that has forgotten us is told again who we are");
}

#[test]
fn without_the_server_the_nodes_own_certificate_is_shown_until_it_is_there() {
    let (authority, address) = (Arc::new(Authority::new()), free());
    let mut cluster = made(&format!("https://{address}/directory"), authority.certificate());
    cluster.start_all();
    cluster.wait_formed();
    until_public(&cluster, "warning", "Connection refused");
    let own = Curl::of(&cluster).get(cluster.node("warsaw").http(), "/readyz", &[] as &[&str]);
    assert_eq!(own.status, 200, "everything else is as ever: {own:?}");
    let server = server_at(address, &authority, &cluster);
    cluster.node("warsaw").hang_up();
    until_issued(&cluster, authority.certificate());
    until_public(&cluster, "ok", "ends in");
    assert_eq!(server.orders(), 1);
}

#[test]
fn a_name_that_does_not_lead_here_is_not_certified_and_it_is_said_why() {
    let (authority, address) = (Arc::new(Authority::new()), free());
    let mut cluster = made(&format!("https://{address}/directory"), authority.certificate());
    let server = server_at(address, &authority, &cluster);
    server.leads(NAME, cluster.node("strasbourg").address());
    cluster.start_all();
    until_public(&cluster, "warning", "the server does not find this node under every name");
    until_public(&cluster, "warning", "no proof was shown there");
    assert!(issued_files(&cluster).iter().all(|file| file.extension().is_some_and(|kind| kind == "json")), "no certificate");
    server.leads(NAME, cluster.node("warsaw").http());
    cluster.node("warsaw").hang_up();
    until_issued(&cluster, authority.certificate());
    assert_eq!(server.accounts(), 1, "the account of the first attempt");
}

/// Ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str], log: &Path) -> Program {
    let log = fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).env("PEBBLE_VA_NOSLEEP", "1").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Program(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}: this test needs it, see `make test-acme`")))
}

/// Pebble, the server that Let's Encrypt tests clients with: it verifies signatures, and refuses some nonces on purpose.
#[test]
#[ignore = "needs Pebble: make test-acme"]
fn a_real_server_issues_a_certificate() {
    let (authority, [api, management, dns, dns_management]) = (Authority::new(), [free(), free(), free(), free()]);
    let mut cluster = made(&format!("https://{api}/dir"), authority.certificate());
    let (certificate, key) = authority.issue(&["127.0.0.1"], 1, 30);
    let (certificate, key) = (cluster.file("pebble.pem", certificate.as_bytes()), cluster.file("pebble.key", key.as_bytes()));
    let config = serde_json::json!({ "pebble": {
        "listenAddress": api.to_string(), "managementListenAddress": management.to_string(), "certificate": certificate, "privateKey": key,
        "httpPort": 1, "tlsPort": cluster.node("warsaw").http().port(), "ocspResponderURL": "", "externalAccountBindingRequired": false,
    }});
    let config = cluster.file("pebble.json", config.to_string().as_bytes());
    let log = |name: &str| cluster.scratch().join(name);
    let names = ["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""];
    let ports = ["-dns01", &dns.to_string(), "-management", &dns_management.to_string()];
    let _names = run("pebble-challtestsrv", &[&names[..], &ports].concat(), &log("names.log"));
    let _pebble = run("pebble", &["-config", config.to_str().unwrap(), "-dnsserver", &dns.to_string(), "-strict"], &log("pebble.log"));
    until("pebble is there", SETTLE_MAX, || std::net::TcpStream::connect(api).map(drop));
    until("its names are there", SETTLE_MAX, || std::net::TcpStream::connect(dns).map(drop));
    cluster.start_all();
    // Who issues is made anew with each start of it.
    let curl = Curl::believing(cluster.file("pebble-ca.pem", authority.certificate().as_bytes()));
    let issuer = curl.get(management, "/roots/0", &[] as &[&str]).body;
    let first = until_issued(&cluster, &issuer);
    assert_eq!(cluster.node_mut("warsaw").stop(), 143);
    cluster.node_mut("warsaw").start();
    assert_eq!(until_issued(&cluster, &issuer), first, "kept");
}
