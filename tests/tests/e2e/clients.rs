//! Clients that lie, stall, vanish, or repeat themselves.
use crate::common::{Known, MIB};
use afar::{
    Client, PutOptions, Source,
    resume::{Notes, Subject},
};
use afar_model::policy::Durability;
use afar_proto::v1::{PutRequest, StatRequest};
use afar_tests::{
    cluster::{Cluster, MADRID, STRASBOURG, Setup, WARSAW},
    data, wire,
};
use tonic::Code;

#[test]
fn an_endpoint_that_takes_connections_and_does_not_speak_is_left_for_the_next() {
    let cluster = Cluster::three();
    cluster.bucket("frozen", &[]);
    let mut chance = data::chance(data::seed());
    let names = ["strasbourg", "roubaix", "warsaw"];
    let before = Known::put(&cluster.afar_at(&names), &mut chance, "frozen/before", 100_000);
    cluster.node("strasbourg").freeze();
    let afar = cluster.afar_at(&names);
    before.must_be_at(&afar);
    let put = [100, 100_000, 3 * MIB].map(|length| Known::put(&afar, &mut chance, &format!("frozen/{length}"), length));
    afar.ok(&["stat", "frozen/before"]);
    assert_eq!(afar.ok(&["ls", "-r", "frozen"]).stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 4);
    cluster.node("strasbourg").thaw();
    cluster.wait_state("safe");
    for object in put.iter().chain([&before]) {
        object.must_be_at(&cluster.afar_at(&["strasbourg"]));
    }
}

#[test]
fn rule_4_a_put_that_is_resumed_is_current_whatever_came_between() {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).start();
    cluster.bucket("resumed", &[]);
    let mut chance = data::chance(data::seed());
    let [content, other] = [2 * MIB + 9, 3 * MIB].map(|length| data::bytes(&mut chance, length));
    let path = cluster.file("content", &content).canonicalize().unwrap();
    let notes = Notes::new(cluster.scratch().join("notes"));
    let runtime = wire::runtime();
    let client = runtime.block_on(async { Client::connect(&cluster.client_config()) }).unwrap();
    let put = || {
        let options = PutOptions { notes: Some(notes.clone()), ..PutOptions::default() };
        runtime.block_on(client.put("resumed", "a", Source::File(path.clone()), options)).unwrap()
    };
    let metadata = path.metadata().unwrap();
    let subject = Subject {
        cluster: client.cluster(),
        bucket: "resumed",
        key: "a",
        path: &path,
        size: metadata.len(),
        modified: metadata.modified().unwrap(),
    };
    let (afar, known) = (cluster.afar(), Known { at: "resumed/a".into(), content });
    put();
    for between in ["put", "rm"] {
        // As by a client that was killed when its put had been acknowledged, before it took its note away.
        notes.write(&subject).unwrap();
        match between {
            "put" => drop(crate::common::put_bytes(&afar, &other, &known.at)),
            _ => drop(afar.ok(&["rm", &known.at])),
        }
        let stored = put();
        assert!(stored.durability == Durability::Full && stored.sites.len() == 2, "{stored:?}");
        known.must_be_at(&afar);
    }
}

#[test]
fn a_repeated_put_whose_pieces_are_at_different_pairs_of_sites_is_as_far_as_it_was() {
    let cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).start();
    cluster.bucket("repeated", &[]);
    cluster.wait_state("safe");
    let content = data::bytes(&mut data::chance(data::seed()), 8 * MIB);
    let runtime = wire::runtime();
    runtime.block_on(async {
        let messages = wire::whole("repeated", "a", [7; 16], &content);
        let first = wire::put_until_answered(&cluster, "strasbourg", messages.clone()).await.unwrap();
        for node in ["strasbourg", "warsaw", "madrid"] {
            let again = wire::put_until_answered(&cluster, node, wire::again(messages.clone())).await.unwrap();
            assert_eq!((&again.version, &again.durability), (&first.version, &first.durability), "{again:?}");
        }
    });
}

#[test]
fn a_client_that_lies_about_its_content_stores_nothing() {
    let cluster = Cluster::two();
    cluster.bucket("lies", &[]);
    let mut chance = data::chance(data::seed());
    let content = data::bytes(&mut chance, 2 * MIB + 100);
    let digest = *blake3::hash(&content).as_bytes();
    let begun = |key: &str| vec![wire::header("lies", key, [7; 16])];
    let pieces = || content.chunks(MIB).map(wire::piece);
    let cases: Vec<(&str, Vec<PutRequest>)> = vec![
        ("hash", begun("hash").into_iter().chain(pieces()).chain([wire::end([9; 32], content.len() as u64)]).collect()),
        ("longer", begun("longer").into_iter().chain(pieces()).chain([wire::end(digest, content.len() as u64 + 1)]).collect()),
        ("shorter", begun("shorter").into_iter().chain(pieces()).chain([wire::end(digest, 1)]).collect()),
        ("no-end", begun("no-end").into_iter().chain(pieces()).collect()),
        ("no-header", pieces().chain([wire::end(digest, content.len() as u64)]).collect()),
        ("nothing", vec![]),
        (
            "short-piece",
            begun("short-piece")
                .into_iter()
                .chain(content.chunks(1000).map(wire::piece))
                .chain([wire::end(digest, content.len() as u64)])
                .collect(),
        ),
        (
            "empty-piece",
            begun("empty-piece")
                .into_iter()
                .chain([wire::piece(b"")])
                .chain(pieces())
                .chain([wire::end(digest, content.len() as u64)])
                .collect(),
        ),
        (
            "two-headers",
            begun("two-headers")
                .into_iter()
                .chain(begun("other"))
                .chain(pieces())
                .chain([wire::end(digest, content.len() as u64)])
                .collect(),
        ),
        (
            "no-key",
            [wire::header("lies", "", [7; 16])].into_iter().chain(pieces()).chain([wire::end(digest, content.len() as u64)]).collect(),
        ),
        (
            "long-key",
            [wire::header("lies", &"k".repeat(1025), [7; 16])]
                .into_iter()
                .chain(pieces())
                .chain([wire::end(digest, content.len() as u64)])
                .collect(),
        ),
        (
            "nul-key",
            [wire::header("lies", "a\0b", [7; 16])].into_iter().chain(pieces()).chain([wire::end(digest, content.len() as u64)]).collect(),
        ),
    ];
    wire::runtime().block_on(async {
        for (case, messages) in cases {
            let refused = wire::put(&cluster, "strasbourg", messages).await;
            let status = refused.expect_err(case);
            assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{case}: {status}");
            let mut objects = wire::objects(&cluster, "strasbourg").await.unwrap();
            let stat = StatRequest { bucket: "lies".into(), key: case.into(), ..StatRequest::default() };
            let missing = objects.stat(wire::signed(&cluster, stat)).await.expect_err(case);
            assert_eq!(missing.code(), Code::NotFound, "{case}: {missing}");
        }
    });
    assert!(cluster.afar().ok(&["ls", "-r", "lies"]).stdout.is_empty());
    Known::put(&cluster.afar(), &mut chance, "lies/honest", 100);
}

#[test]
fn a_client_that_vanishes_halfway_leaves_nothing_to_see() {
    let cluster = Cluster::two();
    cluster.bucket("gone", &[]);
    let mut chance = data::chance(data::seed());
    let content = data::bytes(&mut chance, 4 * MIB);
    wire::runtime().block_on(async {
        let mut stalled = Vec::new();
        for number in 0_u8..8 {
            // Some stall with the connection open, some break it off.
            let (sender, receiver) = tokio::sync::mpsc::channel(8);
            let mut objects = wire::objects(&cluster, "strasbourg").await.unwrap();
            let request = wire::signed(&cluster, tokio_stream::wrappers::ReceiverStream::new(receiver));
            let put = tokio::spawn(async move { objects.put(request).await.map(|_| ()) });
            sender.send(wire::header("gone", &format!("{number}"), [number; 16])).await.unwrap();
            sender.send(wire::piece(&content[..MIB])).await.unwrap();
            if number % 2 == 0 {
                put.abort();
            } else {
                stalled.push((sender, put));
            }
        }
        // Others are served meanwhile.
        let mut chance = data::chance(1);
        let cluster = &cluster;
        tokio::task::block_in_place(|| {
            Known::put(&cluster.afar(), &mut chance, "gone/other", 3 * MIB).must_be_at(&cluster.afar());
            for number in 0..8 {
                cluster.afar().run(&["cat", &format!("gone/{number}")]).expect(10);
            }
        });
    });
}

#[test]
fn rule_5_a_repeated_put_is_the_same_version_at_any_node() {
    let cluster = Cluster::three();
    cluster.bucket("repeated", &[]);
    let mut chance = data::chance(data::seed());
    for length in [500, 100_000, 2 * MIB + 1] {
        let content = data::bytes(&mut chance, length);
        let key = length.to_string();
        let upload = length.to_le_bytes().repeat(2).try_into().unwrap();
        wire::runtime().block_on(async {
            let mut versions = Vec::new();
            for node in ["strasbourg", "warsaw", "roubaix", "strasbourg"] {
                let messages = wire::whole("repeated", &key, upload, &content);
                let messages = if versions.is_empty() { messages } else { wire::again(messages) };
                let reply = wire::put_until_answered(&cluster, node, messages).await;
                versions.push(reply.unwrap_or_else(|status| panic!("{node}: {status}")).version);
            }
            versions.dedup();
            assert_eq!(versions.len(), 1, "{length} bytes: {versions:?}");
        });
        let listed = cluster.afar().ok(&["ls", "-r", "--versions", &format!("repeated/{key}")]);
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.contains(&key)).count(), 1, "{listed}");
    }
}

#[test]
fn rule_5_attempts_that_overlap_agree_on_the_content() {
    let cluster = Cluster::two();
    cluster.bucket("race", &[]);
    let mut chance = data::chance(data::seed());
    let content = data::bytes(&mut chance, 300_000);
    wire::runtime().block_on(async {
        let messages = || wire::whole("race", "a", [3; 16], &content);
        let (a, b, c) = tokio::join!(
            wire::put(&cluster, "strasbourg", messages()),
            wire::put(&cluster, "warsaw", wire::again(messages())),
            wire::put(&cluster, "strasbourg", wire::again(messages()))
        );
        for reply in [a, b, c].into_iter().flatten() {
            assert_eq!(&reply.object[..], blake3::hash(&content).as_bytes());
        }
        let settled = wire::put_until_answered(&cluster, "warsaw", wire::again(messages())).await.unwrap();
        let same = wire::put_until_answered(&cluster, "strasbourg", wire::again(messages())).await.unwrap();
        assert_eq!(settled.version, same.version);
    });
    let known = Known { at: "race/a".into(), content };
    known.must_be_at(&cluster.afar_at(&["strasbourg"]));
    known.must_be_at(&cluster.afar_at(&["warsaw"]));
}

#[test]
fn rule_4_the_last_of_many_writers_is_current_everywhere() {
    let cluster = Cluster::three();
    cluster.bucket("hot", &[]);
    let mut chance = data::chance(data::seed());
    let contents: Vec<Vec<u8>> = (0..12).map(|_| data::bytes(&mut chance, 2_000)).collect();
    std::thread::scope(|scope| {
        for (number, content) in contents.iter().enumerate() {
            let afar = cluster.afar_at(&[["strasbourg", "roubaix", "warsaw"][number % 3]]);
            scope.spawn(move || crate::common::put_bytes(&afar, content, "hot/key"));
        }
    });
    let last = Known::put(&cluster.afar_at(&["roubaix"]), &mut chance, "hot/key", 2_000);
    for node in cluster.nodes() {
        last.must_be_at(&cluster.afar_at(&[node.name()]));
    }
}
