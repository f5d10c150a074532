//! The HTTP port: probes, metrics, and how little a stranger gets out of it.
use crate::common::put_bytes;
use afar_tests::{
    certificates::{Authority, put_pair},
    cluster::{Cluster, Setup, TWO},
    http::{Answer, Curl, Metrics},
    limits::SETTLE_MAX,
    programs::Programs,
    wait::until,
    wire,
};
use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

const NO_FLAGS: &[&str] = &[];

/// Strasbourg and Warsaw, each with an HTTP port; nothing runs yet.
fn made() -> Cluster {
    let cluster = Setup::of(&TWO).set("testing.enabled", true).make();
    for node in cluster.nodes() {
        node.open_http();
    }
    cluster
}

fn probe(cluster: &Cluster, node: &str, path: &str) -> Answer {
    Curl::of(cluster).get(cluster.node(node).http(), path, NO_FLAGS)
}

/// Waits until a node's probe says this.
#[track_caller]
fn until_says(cluster: &Cluster, node: &str, path: &str, status: u16, reason: &str) -> Answer {
    until(&format!("{node}{path} says {status} {reason:?}"), SETTLE_MAX, || {
        let answer = probe(cluster, node, path);
        if answer.status == status && answer.body.contains(reason) { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
}

fn metrics(cluster: &Cluster, node: &str) -> Metrics {
    let (id, secret) = cluster.key();
    let page = Curl::of(cluster).get(cluster.node(node).http(), "/metrics", &["--user", &format!("{id}:{secret}")]);
    assert_eq!(page.status, 200, "{page:?}");
    Metrics::parse(&page.body).unwrap_or_else(|why| panic!("{why}\n{}", page.body))
}

#[test]
fn probes_and_metrics_are_served_by_both_versions_of_http() {
    let mut cluster = made();
    cluster.node("warsaw").configure("http.metrics", "open");
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("box", &[]);
    put_bytes(&cluster.afar(), &[7; 100_000], "box/a");
    let (curl, strasbourg) = (Curl::of(&cluster), cluster.node("strasbourg").http());
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
        for path in ["/healthz", "/readyz"] {
            let answer = until_says(&cluster, "strasbourg", path, 200, "");
            assert_eq!(answer.json(), serde_json::json!({ "status": "ok", "reasons": [] }), "{answer:?}");
            let answer = curl.get(strasbourg, path, &[flag]);
            assert_eq!((answer.status, answer.version.as_str()), (200, version), "{answer:?}");
            assert_eq!(curl.get(strasbourg, path, &[flag, "--head"]).status, 200);
        }
        assert_eq!(curl.get(strasbourg, "/", &[flag]).status, 404);
        assert_eq!(curl.get(strasbourg, "/readyz", &[flag, "--request", "DELETE"]).status, 405);
    }
    // Who may read the metrics.
    let (id, secret) = cluster.key();
    let user = |id: &str, secret: &str| curl.get(strasbourg, "/metrics", &["--user", &format!("{id}:{secret}")]);
    let bearer = |text: String| curl.get(strasbourg, "/metrics", &["--header", &format!("Authorization: Bearer {text}")]);
    let key: serde_json::Value = cluster.afar().ok(&["key", "create", "watcher", "--bucket", "box", "--read", "--json"]).json();
    let made = until("the new key is known", SETTLE_MAX, || {
        let answer = user(key["access_key_id"].as_str().unwrap(), key["secret_access_key"].as_str().unwrap());
        if answer.status == 200 { Ok(answer) } else { Err(answer) }
    });
    assert_eq!(made.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!((user(&id, &secret).status, bearer(format!("{id}.{secret}")).status), (200, 200));
    for refused in [curl.get(strasbourg, "/metrics", NO_FLAGS), user(&id, "wrong"), user("nobody", &secret), bearer(id.clone())] {
        assert_eq!(refused.status, 401, "{refused:?}");
        assert!(refused.headers["www-authenticate"].starts_with("Basic ") && !refused.body.contains("afar_"), "{refused:?}");
    }
    let open = Curl::of(&cluster).get(cluster.node("warsaw").http(), "/metrics", NO_FLAGS);
    assert_eq!(open.status, 200, "{open:?}");
    // What they say.
    until("the object is reported once", SETTLE_MAX, || {
        let pages = ["strasbourg", "warsaw"].map(|node| metrics(&cluster, node));
        let safe: f64 = pages.iter().filter_map(|page| page.value("afar_objects", &[("state", "safe")])).sum();
        let bytes: f64 = pages.iter().filter_map(|page| page.value("afar_object_bytes", &[("state", "safe")])).sum();
        if (safe, bytes) == (1.0, 100_000.0) { Ok(()) } else { Err((safe, bytes)) }
    });
    let page = metrics(&cluster, "strasbourg");
    for (name, labels, value) in [
        ("afar_ready", &[][..], 1.0),
        ("afar_catching_up", &[], 0.0),
        ("afar_peer_usable", &[("peer", "warsaw")], 1.0),
        ("afar_peer_state", &[("peer", "warsaw"), ("state", "up")], 1.0),
        ("afar_peer_state", &[("peer", "warsaw"), ("state", "down")], 0.0),
        ("afar_data_directories", &[("state", "ok")], 1.0),
        ("afar_layout_version", &[], 1.0),
        ("afar_layouts_open", &[], 1.0),
        ("afar_check_state", &[("check", "disk")], 0.0),
        ("afar_panics_total", &[], 0.0),
    ] {
        assert_eq!(page.value(name, labels), Some(value), "{name}");
    }
    documented(&page);
    let positive = |name: &str, labels: &[(&str, &str)]| page.value(name, labels).is_some_and(|value| value > 0.0);
    assert!(positive("afar_records", &[]) && positive("afar_record_bytes", &[("kind", "chunk")]) && positive("afar_disk_used_bytes", &[]));
    assert!(positive("afar_peer_round_trip_seconds", &[("peer", "warsaw")]) && positive("afar_disk_syncs_total", &[]));
    assert!(positive("afar_certificate_not_after_timestamp_seconds", &[("certificate", "node")]));
}

/// Every metric is in the runbook, nothing else is, and alerts ask for nothing that is not there.
#[track_caller]
fn documented(page: &Metrics) {
    let names = page.names();
    let words = |text: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned);
        words.filter(|word| word.starts_with("afar_")).collect::<BTreeSet<String>>()
    };
    let runbook = include_str!("../../../deploy/runbook.md");
    let rows: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("| `afar_")?.split(" | ").next()).collect();
    let said = words(&rows.iter().map(|row| format!("`afar_{row} ")).collect::<String>());
    assert_eq!(said.iter().map(String::as_str).collect::<BTreeSet<_>>(), names);
    let asked = words(include_str!("../../../deploy/prometheus/afar.rules.yml"));
    let missing: Vec<&String> = asked.iter().filter(|name| !names.contains(name.as_str())).collect();
    assert!(missing.is_empty() && asked.len() > 5, "{missing:?} of {asked:?}");
}

#[test]
fn a_probe_says_what_a_node_cannot_do() {
    let mut cluster = made();
    // Starting: its log cannot be opened yet.
    let held = cluster.file("hold", b"");
    cluster.node_mut("warsaw").environment("AFAR_TEST_HOLD_SYNCS", held.display().to_string());
    cluster.node_mut("warsaw").spawn();
    until_says(&cluster, "warsaw", "/readyz", 503, "starting");
    assert_eq!(probe(&cluster, "warsaw", "/healthz").status, 200, "who restarts what does not answer must not restart it now");
    assert_eq!(probe(&cluster, "warsaw", "/metrics").status, 503);
    fs::remove_file(&held).unwrap();
    cluster.start_all();
    cluster.wait_formed();
    until_says(&cluster, "warsaw", "/readyz", 200, "");
    // Draining: a put is under way and cannot end.
    cluster.bucket("box", &[]);
    let written = |cluster: &Cluster| metrics(cluster, "warsaw").value("afar_disk_written_bytes_total", &[]).unwrap();
    let before = written(&cluster);
    fs::write(&held, "").unwrap();
    let file = cluster.file("content", b"content");
    let mut put = cluster.afar_at(&["warsaw"]).start(&["put", file.to_str().unwrap(), "box/a"]);
    put.stdin = None;
    until("the put is under way", SETTLE_MAX, || if written(&cluster) > before { Ok(()) } else { Err("nothing is written") });
    cluster.node("warsaw").terminate();
    until_says(&cluster, "warsaw", "/readyz", 503, "draining");
    fs::remove_file(&held).unwrap();
    let _ = put.wait();
    cluster.node_mut("warsaw").wait_ended();
    // Catching up: its disks are new, and nobody can fill them.
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("warsaw").burn();
    cluster.node_mut("warsaw").start();
    until_says(&cluster, "warsaw", "/readyz", 503, "catching_up");
    assert_eq!(probe(&cluster, "warsaw", "/healthz").status, 200);
    cluster.node_mut("strasbourg").start();
    until_says(&cluster, "warsaw", "/readyz", 200, "");
    // Its only disk fails.
    cluster.node_mut("strasbourg").kill();
    cluster.node_mut("strasbourg").environment("AFAR_TEST_FAIL_SYNC_AFTER", "40");
    cluster.node_mut("strasbourg").start();
    cluster.wait_formed();
    let admin = cluster.afar_at(&["strasbourg"]);
    until("the disk has failed", SETTLE_MAX, || {
        let _ = admin.run_with_input(&["put", "-", "box/b"], b"more");
        let answer = probe(&cluster, "strasbourg", "/healthz");
        if answer.status == 503 { Ok(()) } else { Err(answer) }
    });
    until_says(&cluster, "strasbourg", "/healthz", 503, "1 of 1 data directories have failed");
    until_says(&cluster, "strasbourg", "/readyz", 503, "disk");
    assert_eq!(metrics(&cluster, "strasbourg").value("afar_ready", &[]), Some(0.0));
}

#[test]
fn a_stranger_costs_little() {
    let mut cluster = made();
    cluster.node_mut("warsaw").environment("AFAR_TEST_SLOW_AFTER_MS", "500");
    cluster.start_all();
    let (curl, address) = (Curl::of(&cluster), cluster.node("warsaw").http());
    let large = format!("X-Large: {}", "x".repeat(40_000));
    let many: Vec<String> = (0..100).flat_map(|n| ["--header".to_owned(), format!("X-{n}: 1")]).collect();
    for version in ["--http1.1", "--http2"] {
        let answer = curl.get(address, "/healthz", &[version, "--header", &large]);
        assert!(matches!(answer.status, 0 | 431), "{answer:?}");
        let answer = curl.get(address, "/healthz", &[version, "--request", "GET", "--data", "x"]);
        // Of HTTP/2 this curl may see only that the stream is at an end.
        assert!(answer.status == 413 || (version == "--http2" && answer.status == 0), "{answer:?}");
    }
    let answer = curl.get(address, "/healthz", &[&["--http1.1".to_owned()][..], &many].concat());
    assert!(matches!(answer.status, 0 | 431), "{answer:?}");
    // Those that say half a thing, or nothing: each is shown the door, and then others come in again.
    let half = |protocol: &[u8], said: &[u8]| {
        let mut stream = wire::stranger(address, address.ip().into(), &[protocol]).unwrap();
        stream.write_all(said).unwrap();
        stream
    };
    let halves =
        [half(b"http/1.1", b"GET /healthz HTTP/1.1\r\nX-Slow: "), half(b"http/1.1", b""), half(b"h2", b"PRI * HT"), half(b"h2", b"")];
    let silent: Vec<TcpStream> = (0..CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
    until("everybody else comes in again", SETTLE_MAX, || {
        let answer = curl.get(address, "/healthz", NO_FLAGS);
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    });
    for mut stream in halves {
        stream.sock.set_read_timeout(Some(SETTLE_MAX)).unwrap();
        assert!(ends(&mut stream), "it was closed");
    }
    for mut stream in silent {
        stream.set_read_timeout(Some(SETTLE_MAX)).unwrap();
        assert!(ends(&mut stream), "it was closed");
    }
    assert_eq!(cluster.node_mut("warsaw").stop(), 143, "nobody holds it up");
}

/// As many connections as there is room for.
const CONNECTIONS: usize = 64;

/// Whether the other end closes it; what it says before does not matter.
fn ends(stream: &mut impl Read) -> bool {
    let mut said = [0; 256];
    loop {
        match stream.read(&mut said) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let mut cluster = made();
    let taken = std::net::TcpListener::bind(cluster.node("warsaw").http()).unwrap();
    cluster.node_mut("warsaw").spawn();
    assert_eq!(cluster.node_mut("warsaw").wait_ended(), 1);
    let log = cluster.node("warsaw").log();
    assert!(
        log.contains(&format!("listen on {} (http)", taken.local_addr().unwrap())) && log.contains("is another process there?"),
        "{log}"
    );
    assert!(!cluster.node("warsaw").data().join("segments").exists(), "its disks were not touched");
}

/// Waits until a node says this of the certificate that it shows to the public.
#[track_caller]
fn until_public(cluster: &Cluster, node: &str, state: &str, words: &str) {
    until(&format!("{node}'s public certificate is {state}: {words}"), SETTLE_MAX, || {
        let status = cluster.status();
        let checks = status["checks"].as_array().cloned().unwrap_or_default();
        let of_it = |check: &&serde_json::Value| check["node"] == node && check["name"] == "certificate";
        let found = checks.iter().filter(of_it).find(|check| check["detail"].as_str().is_some_and(|detail| detail.contains("public")));
        let said =
            found.is_some_and(|check| check["state"] == state && check["detail"].as_str().is_some_and(|detail| detail.contains(words)));
        if said { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn an_own_certificate_is_shown_renewed_without_a_restart_and_never_a_bad_one() {
    let mut cluster = made();
    let warsaw = cluster.node("warsaw");
    let folder = warsaw.folder().to_owned();
    warsaw.configure("public_tls.certificate", "public.pem");
    warsaw.configure("public_tls.key", "public.key");
    let url = format!("https://localhost:{}/healthz", warsaw.http().port());
    let (first, second) = (Authority::new(), Authority::new());
    // What is wrong is said before the start, and ends it.
    let check = |words: &str| {
        let config = folder.join("afard.toml");
        let ran = Command::new(Programs::today().afard()).arg("--config").arg(config).arg("--check-config").output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(2) && said.contains(words), "{words}: {:?} {said}", ran.status);
    };
    check("public.pem: No such file");
    put_pair(&folder, &first.issue(&["localhost"], 10, -3));
    check("public.pem: expired 3 days ago: put a new certificate in its place");
    put_pair(&folder, &(first.issue(&["localhost"], 1, 90).0, first.issue(&["localhost"], 1, 90).1));
    check("public.key: does not belong to");
    put_pair(&folder, &first.issue(&["localhost"], 1, 90));
    fs::set_permissions(folder.join("public.key"), fs::Permissions::from_mode(0o644)).unwrap();
    check("may be read by every user (mode 0644)");
    cluster.node_mut("warsaw").spawn();
    assert_eq!(cluster.node_mut("warsaw").wait_ended(), 2);
    fs::set_permissions(folder.join("public.key"), fs::Permissions::from_mode(0o600)).unwrap();
    cluster.start_all();
    cluster.wait_formed();
    let warsaw = cluster.node("warsaw");
    let curl =
        |authority: &Authority| Curl::believing(cluster.file("authority.pem", authority.certificate().as_bytes())).get_url(&url, NO_FLAGS);
    assert_eq!(curl(&first).status, 200);
    assert_eq!((curl(&second).status, Curl::of(&cluster).get_url(&url, NO_FLAGS).status), (0, 0), "nobody else's");
    until_public(&cluster, "warsaw", "ok", "ends in 89 days");
    let metric = metrics_of(&cluster, "warsaw", &first).value("afar_certificate_not_after_timestamp_seconds", &[("certificate", "public")]);
    assert!(metric.is_some());
    // Replaced by itself, within seconds.
    put_pair(&folder, &second.issue(&["localhost"], 1, 90));
    until("the new one is shown", SETTLE_MAX, || if curl(&second).status == 200 { Ok(()) } else { Err(curl(&second)) });
    // Bad ones never are, and it is said why.
    let foreign = (second.issue(&["localhost"], 1, 90).0, first.issue(&["localhost"], 1, 90).1);
    let spoilt = [
        (("garbage".to_owned(), second.issue(&["localhost"], 1, 90).1), "holds no certificate"),
        (second.issue(&["localhost"], 9, -1), "expired"),
        (foreign, "does not belong to"),
    ];
    for (pair, words) in spoilt {
        put_pair(&folder, &pair);
        warsaw.hang_up();
        until_public(&cluster, "warsaw", "warning", words);
        assert_eq!(curl(&second).status, 200, "the last good one stays");
    }
    // One that ends soon is shown, with a warning.
    put_pair(&folder, &second.issue(&["localhost"], 1, 10));
    warsaw.hang_up();
    until_public(&cluster, "warsaw", "warning", "ends in 9 days");
    put_pair(&folder, &second.issue(&["localhost"], 1, 60));
    warsaw.hang_up();
    until_public(&cluster, "warsaw", "ok", "ends in 59 days");
    assert_eq!(curl(&second).status, 200);
}

/// The metrics of a node whose public certificate is of this authority.
fn metrics_of(cluster: &Cluster, node: &str, authority: &Authority) -> Metrics {
    let (id, secret) = cluster.key();
    let curl = Curl::believing(cluster.file("authority.pem", authority.certificate().as_bytes()));
    let url = format!("https://localhost:{}/metrics", cluster.node(node).http().port());
    let page = curl.get_url(&url, &["--user", &format!("{id}:{secret}")]);
    Metrics::parse(&page.body).unwrap_or_else(|why| panic!("{why}\n{page:?}"))
}
