//! What goes in comes out.
use crate::common::{Known, MIB, put, put_bytes, read, try_put_bytes};
use afar_proto::v1::GetRequest;
use afar_tests::{cluster::Cluster, data, limits::SETTLE_MAX, wait::until_true, wire};
use std::fs;

/// The edges: nothing, inline or not, one chunk or more, many.
const SIZES: [usize; 11] = [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3, 40 * MIB, 300 * MIB];

#[test]
fn every_size_comes_back_through_every_node() {
    let cluster = Cluster::three();
    cluster.bucket("sizes", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    // The largest is more than 256 chunks, so its version names manifests; it is worth its seconds once a day, not every time.
    let largest = if std::env::var_os("AFAR_TEST_LARGE").is_some() { SIZES.len() } else { SIZES.len() - 1 };
    for (number, size) in SIZES.into_iter().take(largest).enumerate() {
        let content = data::bytes(&mut chance, size);
        let file = cluster.file("original", &content);
        let at = format!("sizes/dir/{size}");
        let stored = put(&afar, &file, &at);
        assert_eq!(stored["id"], data::b3sum(&content), "the id is what b3sum prints");
        assert_eq!((&stored["bucket"], &stored["key"]), (&"sizes".into(), &format!("dir/{size}").into()));
        assert_eq!(stored["size"], size);
        assert!(stored["durability"] == "far" || stored["durability"] == "full", "{stored}");
        assert!(stored["distance_km"].as_f64().unwrap() >= 700.0, "{stored}");
        assert!(stored["sites"].as_array().unwrap().len() >= 2, "{stored}");
        assert_eq!(stored["version"].as_str().unwrap().len(), 64);

        for node in cluster.nodes() {
            let copy = cluster.scratch().join("copy");
            let copy_name = copy.display().to_string();
            cluster.afar_at(&[node.name()]).ok(&["get", &at, &copy_name]);
            assert!(fs::read(&copy).unwrap() == content, "{size} bytes through {}", node.name());
        }
        let by_id = format!("sizes@{}", data::b3sum(&content));
        assert!(read(&afar, &by_id) == content, "{size} bytes by id");
        let stat = afar.ok(&["stat", "--json", &at]).json();
        assert_eq!((&stat["size"], &stat["id"]), (&size.into(), &stored["id"]));
        let listed = String::from_utf8(afar.ok(&["ls", "-r", "sizes"]).stdout).unwrap();
        assert_eq!(listed.lines().filter(|line| line.contains("dir/")).count(), number + 1, "{listed}");
    }
}

#[test]
fn a_range_comes_in_pieces_that_can_be_verified() {
    let cluster = Cluster::two();
    cluster.bucket("ranges", &[]);
    let mut chance = data::chance(data::seed());
    let object = Known::put(&cluster.afar(), &mut chance, "ranges/a", 3 * MIB + 17);
    let size = object.content.len() as u64;
    let mib = MIB as u64;
    let ranges = [(0, 1), (0, size), (mib - 1, 2), (mib, mib), (2 * mib + 5, 7), (size - 1, 1), (3 * mib, 17), (size - 1, 100)];
    wire::runtime().block_on(async {
        let mut objects = wire::objects(&cluster, "warsaw").await.unwrap();
        for (offset, length) in ranges {
            let request = GetRequest { bucket: "ranges".into(), key: "a".into(), offset, length: Some(length), ..GetRequest::default() };
            let mut replies = objects.get(wire::signed(&cluster, request)).await.unwrap().into_inner();
            let mut got = vec![None; object.content.len()];
            while let Some(reply) = replies.message().await.unwrap() {
                let Some(piece) = reply.piece else { continue };
                if let Some(id) = &piece.id {
                    assert_eq!(&id[..], blake3::hash(&piece.data).as_bytes(), "{offset}+{length}");
                }
                for (at, byte) in piece.data.iter().enumerate() {
                    got[piece.offset as usize + at] = Some(*byte);
                }
            }
            let wanted = offset as usize..(offset + length).min(size) as usize;
            let expected: Vec<Option<u8>> = object.content[wanted.clone()].iter().copied().map(Some).collect();
            assert!(got[wanted] == expected[..], "{offset}+{length}");
        }
    });
}

#[test]
fn objects_are_listed_copied_and_removed() {
    let cluster = Cluster::three();
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    cluster.bucket("things", &[]);
    let old = data::bytes(&mut chance, 70_000);
    put_bytes(&afar, &old, "things/a/one");
    let first = Known::put(&afar, &mut chance, "things/a/one", 100);
    let second = Known::put(&afar, &mut chance, "things/b/two", 2 * MIB);
    first.must_be_at(&afar);

    afar.ok(&["cp", "things/b/two", "things/c/three"]);
    Known { at: "things/c/three".into(), ..second.clone() }.must_be_at(&afar);
    let listed = String::from_utf8(afar.ok(&["ls", "-r", "things"]).stdout).unwrap();
    for key in ["a/one", "b/two", "c/three"] {
        assert!(listed.contains(key), "{listed}");
    }
    let versions = String::from_utf8(afar.ok(&["ls", "-r", "--versions", "things/a/"]).stdout).unwrap();
    assert_eq!(versions.lines().filter(|line| line.contains("one")).count(), 2, "what is overwritten stays: {versions}");

    afar.ok(&["rm", "things/a/one"]);
    afar.run(&["cat", "things/a/one"]).expect(10);
    afar.run(&["stat", "things/a/one"]).expect(10);
    afar.run(&["rm", "things/a/one"]).expect(10);
    afar.ok(&["rm", "-f", "things/a/one"]);
    // As `afar rm --help` says it: an older version, brought back as a copy of itself.
    let versions = afar.ok(&["ls", "--versions", "--json", "things/a/one"]).json_lines();
    let types: Vec<&str> = versions.iter().filter_map(|line| line["type"].as_str()).collect();
    assert_eq!(types, ["delete_marker", "object", "object"], "newest first: {versions:?}");
    let oldest = versions[2]["version"].as_str().unwrap();
    afar.ok(&["cp", "--version", &oldest[..8], "things/a/one", "things/a/one"]);
    assert!(read(&afar, "things/a/one") == old, "what was there before anything was put over it");
    afar.ok(&["rm", "things/a/one"]);
    for node in cluster.nodes() {
        let at_node = cluster.afar_at(&[node.name()]);
        let listed = String::from_utf8(at_node.ok(&["ls", "-r", "things"]).stdout).unwrap();
        assert!(!listed.contains("a/one") && listed.contains("b/two"), "at {}: {listed}", node.name());
        second.must_be_at(&at_node);
    }
    afar.run(&["rm", "things/none"]).expect(10);
    afar.run(&["cat", "nowhere/none"]).expect(10);
    try_put_bytes(&afar, b"x", "nowhere/none").expect(10);
}

#[test]
fn several_files_are_put_and_one_that_cannot_be_read_is_told() {
    let cluster = Cluster::two();
    cluster.bucket("several", &[]);
    let afar = cluster.afar();
    let (a, b) = (cluster.file("a", b"first"), cluster.file("b", b"second"));
    let missing = cluster.scratch().join("missing");
    let names = [&a, &b, &missing].map(|path| path.display().to_string());
    let whole = afar.ok(&["put", "--json", &names[0], &names[1], "several/dir/"]);
    assert!(whole.json_lines().len() >= 3, "one line each and a summary: {whole}");
    afar.run(&["put", "--json", &names[0], &names[1], &names[2], "several/again/"]).expect(3);
    assert_eq!(read(&afar, "several/dir/a"), b"first");
    assert_eq!(read(&afar, "several/again/b"), b"second");
}

#[test]
fn a_pipe_that_nobody_fills_is_waited_for_and_a_signal_ends_that() {
    let cluster = Cluster::two();
    cluster.bucket("pipes", &[]);
    let (afar, pipe) = (cluster.afar(), cluster.scratch().join("pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let name = pipe.display().to_string();
    let waiting = afar.start(&["put", &name, "pipes/a"]);
    let pid = rustix::process::Pid::from_raw(waiting.id() as i32).unwrap();
    // It has looked at the pipe when it is there to be told: a signal before that would end it, too.
    let handles = || fs::read_to_string(format!("/proc/{}/status", waiting.id())).unwrap_or_default();
    until_true("it listens for signals", SETTLE_MAX, || {
        handles().lines().any(|line| line.strip_prefix("SigCgt:\t").is_some_and(|mask| u64::from_str_radix(mask, 16).unwrap() & 2 != 0))
    });
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    afar_tests::command::finish(waiting, "put", &[], SETTLE_MAX).expect(130);
    let filled = afar.start(&["put", &name, "pipes/a"]);
    fs::write(&pipe, b"from a pipe").unwrap();
    afar_tests::command::finish(filled, "put", &[], SETTLE_MAX).expect(0);
    assert_eq!(read(&afar, "pipes/a"), b"from a pipe");
}

/// Two contents whose ids begin with the same six digits: among some thousands there are some.
fn same_beginning() -> (String, String) {
    let mut seen = std::collections::HashMap::new();
    for number in 0_u32.. {
        let content = number.to_string();
        if let Some(other) = seen.insert(data::b3sum(content.as_bytes())[..6].to_owned(), content.clone()) {
            return (other, content);
        }
    }
    unreachable!("there are only 16^6 beginnings")
}

#[test]
fn rule_3_an_abbreviated_id_is_made_whole_or_refused() {
    let mut cluster = Cluster::three();
    cluster.bucket("short", &[]);
    let afar = cluster.afar();
    let (first, second) = same_beginning();
    let old = put_bytes(&afar, b"an older version", "short/a");
    put_bytes(&afar, first.as_bytes(), "short/a");
    let id = data::b3sum(first.as_bytes());
    let by = |digits: usize, id: &str| format!("short@{}", &id[..digits]);
    assert_eq!(read(&afar, &by(6, &id)), first.as_bytes());
    let ran = afar.run(&["put", "--json", "-", "short/b"]); // nothing at all
    let empty = ran.json()["id"].as_str().unwrap()[..8].to_owned();
    assert!(read(&afar, &format!("short@{empty}…")).is_empty(), "as it is printed");

    put_bytes(&afar, second.as_bytes(), "short/c");
    let ambiguous = afar.run(&["cat", &by(6, &id)]).expect(2);
    for id in [&id, &data::b3sum(second.as_bytes())] {
        assert!(ambiguous.stderr.contains(id), "{ambiguous}");
    }
    assert_eq!(read(&afar, &by(63, &id)), first.as_bytes());
    let stat = afar.ok(&["stat", "--json", &by(63, &id)]).json();
    assert_eq!(stat["id"], id);
    let unknown = afar.run(&["cat", "short@ffffffff"]).expect(10);
    assert!(unknown.stderr.contains("short") && unknown.stderr.contains("ffffffff"), "{unknown}");

    let version = old["version"].as_str().unwrap();
    let mine = ["cat", "short/a", "--version", &version[..6]];
    assert_eq!(afar.ok(&mine).stdout, b"an older version");
    afar.run(&["cat", "short/c", "--version", &version[..6]]).expect(10);
    assert_eq!(read(&afar, &by(8, old["id"].as_str().unwrap())), b"an older version", "an older version has its id, too");

    // The two others are far apart: they may have acknowledged what one alone has never heard of.
    cluster.node_mut("warsaw").kill();
    cluster.node_mut("roubaix").kill();
    cluster.afar_at(&["strasbourg"]).run(&["cat", "short@ffffffff"]).expect(14);
}

#[test]
fn a_key_that_cannot_be_a_file_keeps_no_other_from_being_fetched() {
    let cluster = Cluster::two();
    cluster.bucket("odd", &[]);
    let afar = cluster.afar();
    let long = "l".repeat(300);
    let odd = ["a/../b", "/abs", "a//b", ".", &long, "folder"];
    let fine = ["a/b", "folder/file", "plain"];
    for key in odd.iter().chain(&fine) {
        put_bytes(&afar, key.as_bytes(), &format!("odd/{key}"));
    }
    let target = cluster.scratch().join("fetched");
    // Nor does what is in its way here.
    fs::create_dir_all(target.join("plain")).unwrap();
    let got = afar.run(&["get", "-r", "--json", "odd", target.to_str().unwrap()]).expect(3);
    for key in ["a/b", "folder/file"] {
        assert_eq!(fs::read_to_string(target.join(key)).unwrap(), key);
    }
    let summary = got.json_lines().pop().unwrap();
    let sums = (&summary["message_type"], &summary["files"], &summary["failed"]);
    assert_eq!(sums, (&"summary".into(), &2.into(), &(odd.len() + 1).into()), "{got}");
    let said: Vec<serde_json::Value> = got.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for key in odd.iter().chain(&["plain"]) {
        let named = |line: &&serde_json::Value| line["message"].as_str().is_some_and(|said| said.starts_with(&format!("odd/{key}: ")));
        assert_eq!(said.iter().filter(named).count(), 1, "{key}: {got}");
    }
    let last = said.last().unwrap();
    assert!(last["code"] == 3 && last["hint"].as_str().is_some_and(|hint| hint.contains("afar get BUCKET/KEY FILE")), "{got}");
    assert!(!cluster.scratch().join("b").exists() && fs::read_dir(cluster.scratch().join("fetched")).unwrap().count() == 3, "nowhere else");
    // As the hint says.
    let file = cluster.scratch().join("by-itself");
    afar.ok(&["get", "odd/a/../b", file.to_str().unwrap()]);
    assert_eq!(fs::read(&file).unwrap(), b"a/../b");
    afar.ok(&["cp", "odd/a/../b", "odd/renamed"]);
    assert_eq!(read(&afar, "odd/renamed"), b"a/../b");
}

#[test]
fn a_tree_with_what_cannot_be_stored_is_put_and_says_so() {
    let cluster = Cluster::two();
    cluster.bucket("tree", &[]);
    let afar = cluster.afar();
    let tree = cluster.scratch().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), "kept").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    std::os::unix::fs::symlink("/no/such/thing", tree.join("dangling")).unwrap();
    let name = tree.display().to_string();
    let put = afar.ok(&["put", "-r", "--json", &name, "tree"]);
    let summary = put.json_lines().pop().unwrap();
    assert_eq!((&summary["message_type"], &summary["files"], &summary["skipped"]), (&"summary".into(), &1.into(), &2.into()), "{put}");
    for skipped in ["socket", "dangling"] {
        let said = put.stderr.lines().any(|line| line.contains(skipped) && line.contains("\"skipped\""));
        assert!(said, "{skipped}: {put}");
    }
    assert_eq!(read(&afar, "tree/tree/sub/file"), b"kept");
    fs::write(tree.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff")), "no key").unwrap();
    let put = afar.run(&["put", "-r", "--json", &name, "tree"]).expect(3);
    let last: serde_json::Value = serde_json::from_str(put.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&last["message_type"], &last["code"]), (&"exit_error".into(), &3.into()));
}

#[test]
fn json_is_one_document_or_lines_that_end_with_a_summary() {
    let cluster = Cluster::two();
    let afar = cluster.afar();
    assert_eq!(afar.ok(&["ls", "--json"]).json(), serde_json::json!([]));
    cluster.bucket("shapes", &[]);
    for command in [&["ls", "--json"][..], &["bucket", "ls", "--json"], &["key", "ls", "--json"]] {
        assert!(afar.ok(command).json().is_array(), "{command:?}");
    }
    let (a, b) = (cluster.file("a", b"1"), cluster.file("b", b"22"));
    let (a, b) = (a.display().to_string(), b.display().to_string());
    assert_eq!(afar.ok(&["put", "--json", &a, "shapes"]).json()["key"], "a");
    let stream = |arguments: &[&str], kind: &str, lines: usize| {
        let ran = afar.ok(arguments);
        let mut all = ran.json_lines();
        assert_eq!(all.pop().unwrap()["message_type"], "summary", "{ran}");
        assert!(all.iter().all(|line| line["message_type"] == kind) && all.len() == lines, "{ran}");
    };
    stream(&["put", "--json", &a, &b, "shapes"], "stored", 2);
    stream(&["ls", "--json", "shapes"], "entry", 2);
    stream(&["ls", "--json", "shapes/none/"], "entry", 0);
    let folder = cluster.scratch().join("got").display().to_string() + "/";
    assert_eq!(afar.ok(&["get", "--json", "shapes/a", &folder]).json()["key"], "a");
    stream(&["get", "--json", "-r", "shapes/", &folder], "got", 2);
    assert_eq!(afar.ok(&["rm", "--json", "shapes/a"]).json()["removed"], true);
    assert_eq!(afar.ok(&["rm", "--json", "-f", "shapes/a"]).json()["removed"], false);
    stream(&["rm", "--json", "-f", "shapes/a", "shapes/b"], "removed", 2);
    for (arguments, code) in
        [(&["rm", "--json", "shapes/a"][..], 10), (&["bucket", "create", "--json", "shapes"], 2), (&["ls", "--json", "none"], 10)]
    {
        let ran = afar.run(arguments).expect(code);
        let last: serde_json::Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
        assert_eq!((&last["message_type"], &last["code"]), (&"exit_error".into(), &code.into()), "{ran}");
        assert!(last["hint"].as_str().is_some_and(|hint| !hint.is_empty() && !hint.contains("retry")), "time mends none of these: {ran}");
    }
    afar.ok(&["bucket", "rm", "shapes"]);
}

#[test]
fn the_same_content_again_is_a_success_that_moves_nothing() {
    let cluster = Cluster::two();
    cluster.bucket("twice", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let object = Known::put(&afar, &mut chance, "twice/a", 5 * MIB);
    let again = put_bytes(&afar, &object.content, "twice/b");
    assert_eq!(again["deduplicated_bytes"], object.content.len(), "{again}");
    for node in cluster.nodes() {
        let places = afar_tests::disks::find(&node.data(), &object.content[..MIB]);
        assert_eq!(places.len(), 1, "{} keeps one copy", node.name());
    }
    object.must_be_at(&afar);
}

#[test]
fn buckets_do_not_share_content() {
    let cluster = Cluster::two();
    cluster.bucket("mine", &[]);
    cluster.bucket("theirs", &[]);
    let (afar, mut chance) = (cluster.afar(), data::chance(data::seed()));
    let object = Known::put(&afar, &mut chance, "mine/a", 2 * MIB);
    let other = put_bytes(&afar, &object.content, "theirs/a");
    assert_eq!(other["deduplicated_bytes"], 0, "else a tenant could probe for another's content: {other}");
}
