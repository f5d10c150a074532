//! Promises that change, and keys that are replaced, lost and stolen, while a cluster serves.
use crate::common::{Known, MIB, chunks_on_disk, try_put_bytes};
use afar_proto::v1::{HelloRequest, peer_client::PeerClient};
use afar_tests::{
    cluster::{Cluster, Node, check_of},
    command::{Afar, Ran},
    data,
    limits::SETTLE_MAX,
    wait::until,
    wire,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// What lies in a node's folder and is replaced when keys are.
const CERTIFIED: [&str; 3] = ["ca.crt", "node.crt", "node.key"];

/// A command of the operator's, in a folder.
fn operate(afar: &Afar, folder: &Path, arguments: &[&str]) -> Ran {
    let mut line = arguments.to_vec();
    line.extend(["--yes", "--dir", folder.to_str().unwrap()]);
    afar.run(&line)
}

/// The same, until the cluster is ready for it: layouts come one after the other.
#[track_caller]
fn operate_until(afar: &Afar, folder: &Path, arguments: &[&str]) -> Ran {
    until(&arguments.join(" "), SETTLE_MAX, || {
        let ran = operate(afar, folder, arguments);
        if ran.code == 0 { Ok(ran) } else { Err(ran.to_string()) }
    })
}

fn copy(names: &[&str], from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names {
        // Anew, with the permissions that it has.
        let _ = fs::remove_file(to.join(name));
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Waits until the layout is in force at every node.
#[track_caller]
fn until_in_force(cluster: &Cluster, version: u64) {
    until("one layout is in force", SETTLE_MAX, || {
        let status = cluster.status();
        let late = |node: &&Node| {
            let check = check_of(&status, node.name(), "layout").cloned().unwrap_or_default();
            check["state"] != "ok" || check["detail"] != format!("version {version}")
        };
        if cluster.nodes().iter().any(|node| late(&node)) { Err(status.to_string()) } else { Ok(()) }
    });
}

/// A heartbeat to a node with what lies in a folder as certificate and key.
fn hello_as(cluster: &Cluster, node: &str, folder: &Path) -> Result<(), String> {
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(cluster.authority()))
        .identity(Identity::from_pem(read("node.crt"), read("node.key")));
    wire::runtime().block_on(async {
        let endpoint = Endpoint::from_shared(cluster.node(node).endpoint()).unwrap().tls_config(tls).unwrap();
        let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
        match PeerClient::new(channel).hello(HelloRequest::default()).await {
            // A peer is told what is wrong with its empty message; anybody else is told that there is nothing for him here.
            Err(status) if status.code() == tonic::Code::InvalidArgument => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
}

#[test]
fn a_bucket_is_kept_otherwise_from_now_on_and_back() {
    let cluster = Cluster::three();
    cluster.bucket("box", &[]);
    cluster.bucket("other", &[]);
    let (admin, root) = (cluster.afar(), cluster.root());
    let mut chance = data::chance(data::seed());
    let object = Known::put(&admin, &mut chance, "box/a", 3 * MIB);
    let other = Known::put(&admin, &mut chance, "other/a", 3 * MIB);
    let copies = |known: &Known| cluster.nodes().iter().map(|node| chunks_on_disk(&cluster, node.name(), &known.content)).sum::<usize>();
    assert_eq!((copies(&object), copies(&other)), (6, 6));
    let set = ["bucket", "set", "box", "--copies", "3"];
    // Once everything that was put has been counted.
    until("the plan says how much there is to copy", SETTLE_MAX, || {
        let looked = admin.ok(&["bucket", "set", "box", "--copies", "3", "--dry-run", "--dir", root.to_str().unwrap()]);
        let says = |what: &str| looked.text().contains(what);
        if says("becomes: 3 copies") && says("in all about 3.0 MiB to copy") { Ok(()) } else { Err(looked.to_string()) }
    });
    operate(&admin, root, &["bucket", "set", "box"]).expect(2);
    operate(&admin, root, &["bucket", "set", "nix", "--copies", "3"]).expect(10);
    operate(&admin, root, &set).expect(0);
    // Everything that was there gets its third copy, and so does what is put meanwhile; another bucket's data stay.
    let meanwhile = Known::put(&admin, &mut chance, "box/b", 3 * MIB);
    until("three copies of everything", SETTLE_MAX, || {
        let found = (copies(&object), copies(&meanwhile), copies(&other));
        if found == (9, 9, 6) { Ok(()) } else { Err(found) }
    });
    until_in_force(&cluster, 2);
    cluster.wait_state("safe");
    assert!(operate(&admin, root, &set).expect(0).text().contains("already"), "nothing is signed for nothing");
    // And back.
    operate(&admin, root, &["bucket", "set", "box", "--copies", "2"]).expect(0);
    until_in_force(&cluster, 3);
    for known in [&object, &meanwhile, &other] {
        known.must_be_at(&admin);
    }
    let buckets = admin.ok(&["bucket", "ls", "--json"]).json();
    assert!(buckets.as_array().unwrap().iter().all(|bucket| bucket["policy"]["copies"] == 2), "{buckets}");
    // A promise that cannot be kept is refused by the nodes, and nothing changes.
    let ran = operate(&admin, root, &["bucket", "set", "box", "--min-distance-km", "3000"]);
    assert!(ran.code != 0 && ran.text().contains("could not be kept"), "{ran}");
    until_in_force(&cluster, 3);
}

#[test]
fn an_authority_is_replaced_under_load_and_the_old_one_is_worth_nothing_afterwards() {
    let mut cluster = Cluster::three();
    cluster.bucket("load", &[]);
    let (admin, root) = (cluster.afar(), cluster.root().to_path_buf());
    let new = cluster.scratch().join("new");
    let old = cluster.scratch().join("old");
    copy(&CERTIFIED, cluster.node("warsaw").folder(), &old);
    assert_eq!(hello_as(&cluster, "roubaix", &old), Ok(()));
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut chance = data::chance(data::seed());
            let mut acknowledged = Vec::new();
            while !stop.load(Relaxed) {
                let known = Known::put(&admin, &mut chance, &format!("load/{}", acknowledged.len()), 70_000);
                known.must_be_at(&admin);
                acknowledged.push(known);
            }
            acknowledged
        });
        let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            operate(&admin, &root, &["cluster", "rekey", "--finish"]).expect(2);
            operate(&admin, &root, &["cluster", "rekey", "--authority", "-o", new.to_str().unwrap()]).expect(0);
            let finish = ["cluster", "rekey", "--finish"];
            let late = operate(&admin, &root, &finish).expect(11).text();
            assert!(["strasbourg", "roubaix", "warsaw"].iter().all(|name| late.contains(&format!("{name}: "))), "{late}");
            copy(&CERTIFIED, &new.join("warsaw"), cluster.node("warsaw").folder());
            until("warsaw is no longer late", SETTLE_MAX, || {
                let late = operate(&admin, &root, &finish).expect(11).text();
                if late.contains("warsaw: ") { Err(late) } else { Ok(()) }
            });
            for node in cluster.nodes() {
                copy(&CERTIFIED, &new.join(node.name()), node.folder());
            }
            operate_until(&admin, &root, &finish);
        }));
        stop.store(true, Relaxed);
        let acknowledged = writer.join().unwrap();
        rotated.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        acknowledged
    });
    assert!(!acknowledged.is_empty());
    until_in_force(&cluster, 3);
    assert_eq!(cluster.authority().matches("BEGIN CERTIFICATE").count(), 1, "clients believe the new one alone");
    let refused = hello_as(&cluster, "roubaix", &old).unwrap_err();
    assert!(refused.contains("UnknownCA") || refused.contains("transport error"), "{refused}");
    assert_eq!(hello_as(&cluster, "roubaix", cluster.node("warsaw").folder()), Ok(()));
    // Nodes come back with what they have, and an old certificate is refused at the start.
    cluster.node_mut("warsaw").stop();
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    for known in &acknowledged {
        known.must_be_at(&cluster.afar());
    }
    let warsaw = cluster.node_mut("warsaw");
    warsaw.stop();
    copy(&CERTIFIED, &old, warsaw.folder());
    warsaw.spawn();
    assert_eq!(warsaw.wait_ended(), 2, "{}", warsaw.log_end());
    assert!(warsaw.log_end().contains("authority"), "{}", warsaw.log_end());
    // What is made from now on is of the new one.
    let bundle = cluster.scratch().join("bundle");
    operate(&cluster.afar(), &root, &["node", "replace", "warsaw", "-o", bundle.to_str().unwrap()]).expect(0);
    copy(&CERTIFIED, &bundle, cluster.node("warsaw").folder());
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
}

#[test]
fn the_second_key_makes_a_new_folder_and_the_stolen_one_is_worth_nothing() {
    let cluster = Cluster::three();
    cluster.bucket("box", &[]);
    let (admin, root) = (cluster.afar(), cluster.root().to_path_buf());
    // The chain is more than what it began with.
    operate(&admin, &root, &["node", "set", "warsaw", "--capacity", "2GiB"]).expect(0);
    until_in_force(&cluster, 2);
    // A thief has the laptop; the second key is elsewhere.
    let (thief, safe) = (cluster.scratch().join("thief"), cluster.scratch().join("safe"));
    for name in ["ca", "layout"] {
        copy_tree(&root.join(name), &thief.join(name));
        fs::remove_dir_all(root.join(name)).unwrap();
    }
    copy_tree(&root.join("client"), &thief.join("client"));
    fs::copy(root.join("cluster.toml"), thief.join("cluster.toml")).unwrap();
    fs::rename(root.join("recovery"), &safe).unwrap();
    let node = cluster.node("roubaix").folder().to_path_buf();
    let mut helper = cluster.afar_at(&["roubaix"]).with("AFAR_CA_FILE", node.join("ca.crt").to_str().unwrap());
    let (new, key) = (cluster.scratch().join("again"), safe.join("custodian.key"));
    let recover = |afar: &Afar, key: &Path| {
        let secret = node.join("cluster.secret");
        let line = [
            "cluster",
            "recover",
            new.to_str().unwrap(),
            "--custodian",
            key.to_str().unwrap(),
            "--cluster-secret",
            secret.to_str().unwrap(),
        ];
        afar.run(&[&line[..], &["--yes"]].concat())
    };
    recover(&helper, &key).expect(0);
    recover(&helper, &key).expect(2); // never over another
    until_in_force(&cluster, 3);
    // The thief's key opens nothing any more.
    let ran = operate(&admin, &thief, &["bucket", "set", "box", "--copies", "3"]);
    assert!(ran.code != 0 && ran.text().contains("not signed by a custodian"), "{ran}");
    assert_eq!(recover(&helper, &thief.join("layout/custodian.key")).code, 2);
    // The new folder does everything: it finishes the change of the authority, and changes promises and keys.
    for node in cluster.nodes() {
        copy(&CERTIFIED, &new.join("nodes").join(node.name()), node.folder());
    }
    helper = helper.with("AFAR_CA_FILE", new.join("client/ca.crt").to_str().unwrap());
    operate_until(&helper, &new, &["cluster", "rekey", "--finish"]);
    operate_until(&helper, &new, &["bucket", "set", "box", "--copies", "3"]);
    operate_until(&helper, &new, &["cluster", "rekey", "--custodian", "--second", "new"]);
    operate_until(&helper, &new, &["bucket", "set", "box", "--copies", "2"]);
    let refused = hello_as_believing(&cluster, "roubaix", &thief_certificate(&cluster, &thief), &new);
    assert!(refused.contains("UnknownCA") || refused.contains("transport error"), "what the thief's authority makes is refused: {refused}");
    // The key in the safe was replaced as well.
    fs::remove_dir_all(&new).unwrap();
    assert_eq!(recover(&helper.with("AFAR_CA_FILE", node.join("ca.crt").to_str().unwrap()), &key).code, 2);
}

/// What whoever has the authority's key makes for himself: a bundle for a node of the cluster.
fn thief_certificate(cluster: &Cluster, thief: &Path) -> PathBuf {
    let bundle = thief.join("warsaw");
    // Offline: the nodes need not answer him.
    let ran = operate(&cluster.afar(), thief, &["node", "replace", "warsaw", "-o", bundle.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran}");
    bundle
}

fn hello_as_believing(cluster: &Cluster, node: &str, bundle: &Path, operator: &Path) -> String {
    fs::copy(operator.join("client/ca.crt"), cluster.root().join("client/ca.crt")).unwrap();
    hello_as(cluster, node, bundle).unwrap_err()
}

#[test]
fn a_node_whose_key_is_revoked_is_refused_and_its_replacement_works() {
    let mut cluster = Cluster::three();
    cluster.bucket("box", &[]);
    let (admin, root) = (cluster.afar(), cluster.root().to_path_buf());
    let mut chance = data::chance(data::seed());
    let object = Known::put(&admin, &mut chance, "box/a", 2 * MIB);
    let stolen = cluster.scratch().join("stolen");
    copy(&CERTIFIED, cluster.node("warsaw").folder(), &stolen);
    let wrong = cluster.node("roubaix").folder().join("node.crt");
    operate(&admin, &root, &["node", "revoke", "warsaw", "--certificate", wrong.to_str().unwrap()]).expect(2);
    operate(&admin, &root, &["node", "revoke", "warsaw"]).expect(0);
    for name in ["strasbourg", "roubaix"] {
        until(&format!("{name} refuses warsaw"), SETTLE_MAX, || {
            let checks = cluster.status()["checks"].to_string();
            let refused = hello_as(&cluster, name, &stolen);
            if refused.as_ref().is_err_and(|why| why.contains("CertificateRevoked")) && checks.contains("revoked") {
                Ok(())
            } else {
                Err(checks)
            }
        });
    }
    // Without it no two sites are far enough apart, and it is no site any more: its old connections ended, too.
    until("nothing is sent to it", SETTLE_MAX, || {
        let ran = try_put_bytes(&cluster.afar_at(&["strasbourg"]), b"x", "box/b");
        if ran.code == 5 && ran.text().contains("revoked") { Ok(()) } else { Err(ran.to_string()) }
    });
    let again = stolen.join("node.crt");
    operate(&admin, &root, &["node", "revoke", "warsaw", "--certificate", again.to_str().unwrap()]).expect(2);
    // A new key, and the same disks: without a restart.
    let bundle = cluster.scratch().join("bundle");
    operate(&admin, &root, &["node", "replace", "warsaw", "-o", bundle.to_str().unwrap()]).expect(0);
    copy(&CERTIFIED, &bundle, cluster.node("warsaw").folder());
    cluster.wait_formed();
    Known::put(&admin, &mut chance, "box/b", 2 * MIB).must_be_at(&admin);
    object.must_be_at(&admin);
    until_in_force(&cluster, 2);
    // The thief's copy of the node does not even start where the layout is known.
    let warsaw = cluster.node_mut("warsaw");
    warsaw.stop();
    copy(&CERTIFIED, &stolen, warsaw.folder());
    warsaw.spawn();
    assert_eq!(warsaw.wait_ended(), 2, "{}", warsaw.log_end());
    assert!(warsaw.log_end().contains("revoked"), "{}", warsaw.log_end());
}
