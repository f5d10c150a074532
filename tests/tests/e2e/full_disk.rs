//! A disk that fills up (rule 20). Needs root, for a small tmpfs: `make test-root`; elsewhere it says that it was skipped.
use crate::common::{Known, MIB, try_put_bytes};
use afar_tests::{
    cluster::{Setup, TWO},
    data,
    limits::SETTLE_MAX,
    wait::until,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A file system of its own, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "afar-test"]).arg(at).output().ok()?;
        done.status.success().then(|| Self(at.to_path_buf()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn rule_20_a_full_disk_refuses_cleanly_and_still_reads_and_removes() {
    let required = std::env::var_os("AFAR_TEST_ROOT").is_some();
    let mut cluster = Setup::of(&TWO).set("limits.segment", "4MiB").make();
    let Some(_small) = Small::mount(&cluster.node("warsaw").data(), "64m") else {
        assert!(!required, "AFAR_TEST_ROOT is set, but a tmpfs cannot be mounted here");
        eprintln!("SKIPPED: mounting a tmpfs needs root; `make test-root` runs this test");
        return;
    };
    cluster.start_all();
    cluster.wait_formed();
    cluster.bucket("full", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let mut acknowledged: Vec<Known> = Vec::new();
    let refused = loop {
        assert!(acknowledged.len() < 64, "64 MiB hold no 64 objects of 2 MiB");
        let known = Known { at: format!("full/{}", acknowledged.len()), content: data::bytes(&mut chance, 2 * MIB) };
        let ran = try_put_bytes(&afar, &known.content, &known.at);
        if ran.code != 0 {
            break ran;
        }
        acknowledged.push(known);
    };
    let refused = refused.expect_one_of(&[5, 13]);
    assert!(refused.text().contains("full") || refused.text().contains("space"), "{refused}");
    assert!(acknowledged.len() >= 4, "only {} fitted", acknowledged.len());
    for name in ["strasbourg", "warsaw"] {
        for known in &acknowledged {
            known.must_be_at(&cluster.afar_at(&[name]));
        }
    }
    // Refused puts of all sizes take what clients may take, to the last byte.
    for length in [MIB, 256 << 10, 64 << 10, 16 << 10, 4 << 10, 1 << 10, 0] {
        for _ in 0..64 {
            let ran = try_put_bytes(&afar, &data::bytes(&mut chance, length), "full/more");
            if ran.code != 0 {
                break;
            }
        }
    }
    // What removes something, and what brings it back, is not new data.
    afar.ok(&["rm", "full/1"]);
    let versions = afar.ok(&["ls", "--versions", "--json", "full/1"]);
    let version = versions.json_lines().into_iter().find(|line| line["type"] == "object").expect("its version");
    afar.ok(&["cp", "--version", version["version"].as_str().unwrap(), "full/1", "full/1"]);
    acknowledged[1].must_be_at(&cluster.afar_at(&["warsaw"]));
    afar.ok(&["rm", "full/0"]);
    afar.run(&["cat", "full/0"]).expect(10);
    afar.ok(&["ls", "-r", "full"]);
    until("the status says so", SETTLE_MAX, || {
        let status = cluster.status();
        let told = status["checks"].as_array().into_iter().flatten().any(|check| check["state"] != "ok" && check["name"] == "space");
        if told { Ok(()) } else { Err(status.to_string()) }
    });
    // It comes up again as it went down.
    cluster.node_mut("warsaw").kill();
    cluster.node_mut("warsaw").start();
    cluster.wait_formed();
    for known in acknowledged.iter().skip(1) {
        known.must_be_at(&cluster.afar_at(&["warsaw"]));
    }
}
