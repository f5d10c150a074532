//! What goes over the wire between two sites for one put, and what its acknowledgement waits for. A peer between the two
//! keeps answers back, so that nothing is measured and nothing is guessed from time.
use crate::common::{Known, try_put_bytes};
use afar_model::{
    id::BucketId,
    record::{Record, RecordKind},
};
use afar_proto::v1::{StoreRecords, StoreRequest, store_request::Work};
use afar_tests::{
    cluster::{Cluster, Setup, TWO},
    data,
    liar::{CHUNK, Conduct, Liar, SYNC, VERSION},
    limits::SETTLE_MAX,
    wait::until,
    wire,
};
use bytes::Bytes;
use tonic::Code;

const MIB: usize = 1 << 20;

/// Strasbourg reaches Warsaw only through the one between.
fn with_one_between() -> (Cluster, Liar) {
    let mut cluster = Setup::of(&TWO).start();
    cluster.bucket("lanes", &[]);
    let between = Liar::between(&cluster, "strasbourg", "warsaw");
    let strasbourg = cluster.node_mut("strasbourg");
    strasbourg.kill();
    strasbourg.redirect("warsaw", between.address());
    strasbourg.start();
    let afar = cluster.afar_at(&["strasbourg"]);
    until("strasbourg writes through the one between", SETTLE_MAX, || {
        let ran = try_put_bytes(&afar, b"hello", "lanes/hello");
        if ran.code == 0 && between.seen() & VERSION != 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    (cluster, between)
}

fn put_while(conduct: Conduct, bytes: usize) -> (i32, u8) {
    let (cluster, between) = with_one_between();
    let mut chance = data::chance(data::seed());
    let known = Known { at: "lanes/a".into(), content: data::bytes(&mut chance, bytes) };
    between.behave(conduct);
    let ran = try_put_bytes(&cluster.afar_at(&["strasbourg"]), &known.content, &known.at);
    eprintln!("{ran}");
    let seen = between.seen();
    between.behave(Conduct::Honest);
    if ran.code == 0 {
        known.must_be_at(&cluster.afar_at(&["warsaw"]));
    }
    (ran.code, seen)
}

#[test]
fn rule_28_up_to_a_mebibyte_chunk_and_version_travel_together() {
    assert_eq!(put_while(Conduct::Together(CHUNK | VERSION), MIB), (0, CHUNK | VERSION), "one round trip, and no sync of its own");
}

#[test]
fn rule_28_of_a_larger_object_sync_and_version_travel_together() {
    assert_eq!(put_while(Conduct::Together(SYNC | VERSION), 5 * MIB), (0, CHUNK | SYNC | VERSION), "two round trips");
}

#[test]
fn chunks_whose_sync_fails_far_away_acknowledge_nothing() {
    let (code, seen) = put_while(Conduct::RefuseSyncs, 5 * MIB);
    assert!([1, 5, 13, 14].contains(&code), "acknowledged without the far sync: exit {code}");
    assert_ne!(seen & SYNC, 0, "a sync was asked for");
}

#[test]
fn rule_19_nothing_counts_that_is_sent_or_answered_by_other_disks_than_those_met_last() {
    let (cluster, between) = with_one_between();
    between.behave(Conduct::OtherDisks);
    let messages = wire::whole("lanes", "a", [7; 16], b"content");
    wire::runtime().block_on(wire::put(&cluster, "strasbourg", messages)).expect_err("a stranger says that it has it");
    assert_ne!(between.seen() & VERSION, 0, "the version was sent");
    between.behave(Conduct::Honest);
    let chunk = Record::new(RecordKind::Chunk, BucketId::SYSTEM, Bytes::from_static(b"x"));
    let work =
        StoreRecords { records: vec![(&chunk).into()], sync: true, class: "repair".into(), layout_version: 1, ..StoreRecords::default() };
    let request = |sequence, incarnation: &'static [u8]| {
        let work = Some(Work::Records(work.clone()));
        StoreRequest { sequence, work, incarnation: Bytes::from_static(incarnation) }
    };
    wire::runtime().block_on(async {
        let mut peer = wire::peer(&cluster, "warsaw", "strasbourg").await;
        let requests = futures_util::stream::iter([request(1, &[7; 16]), request(2, &[])]);
        let mut replies = peer.store(requests).await.unwrap().into_inner();
        let mut outcomes = Vec::new();
        while let Some(reply) = replies.message().await.unwrap() {
            outcomes.push((reply.sequence, reply.failure.map(|failure| failure.reason)));
        }
        outcomes.sort();
        assert_eq!(outcomes, [(1, Some("superseded".to_owned())), (2, None)], "an earlier program does not say who it is");
    });
}

#[test]
fn rule_2_a_put_that_ended_in_an_error_may_still_take_effect_and_its_error_says_so() {
    let (cluster, between) = with_one_between();
    let mut chance = data::chance(data::seed());
    let known = Known { at: "lanes/a".into(), content: data::bytes(&mut chance, 1000) };
    between.behave(Conduct::DenyVersions);
    // One attempt: the command line would try again, and find what the first has left.
    let messages = wire::whole("lanes", "a", [7; 16], &known.content);
    let refused = wire::runtime().block_on(wire::put(&cluster, "strasbourg", messages)).expect_err("nobody far away has it, as it seems");
    assert_ne!(between.seen() & VERSION, 0, "the version was sent");
    assert_eq!((refused.code(), wire::exit(&refused)), (Code::Unavailable, Some(14)), "{refused}");
    assert!(refused.message().contains("may still take effect later"), "{refused}");
    assert_eq!(refused.metadata().get(afar_proto::MAYBE_METADATA).map(|value| value.as_bytes()), Some(&b"1"[..]), "{refused:?}");
    between.behave(Conduct::Honest);
    // And so it does: it is at two sites after all, and somebody finds that out.
    for name in ["strasbourg", "warsaw"] {
        let afar = cluster.afar_at(&[name]);
        until("it takes effect", SETTLE_MAX, || {
            let ran = afar.run(&["cat", &known.at]);
            if ran.code == 0 && ran.stdout == known.content { Ok(()) } else { Err(ran.to_string()) }
        });
    }
}

#[test]
fn rule_2_a_put_that_was_refused_before_its_version_does_not_say_that_it_may_take_effect() {
    let mut cluster = Cluster::two();
    cluster.bucket("lanes", &[]);
    cluster.node_mut("warsaw").kill();
    let runtime = wire::runtime();
    let refused = until("strasbourg notices", SETTLE_MAX, || {
        match runtime.block_on(wire::put(&cluster, "strasbourg", wire::whole("lanes", "a", [7; 16], b"never"))) {
            Err(status) if status.code() == Code::FailedPrecondition => Ok(status),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(refused.metadata().get(afar_proto::MAYBE_METADATA), None, "nothing was written: {refused:?}");
    assert_eq!(wire::exit(&refused), Some(5));
}
