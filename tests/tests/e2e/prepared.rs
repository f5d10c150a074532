//! What is left behind by a coordinator that dies between its messages: a version that was sent, settled by nobody, with its
//! chunk or without it. The test speaks to a node as another node would.
use crate::common::{Known, bucket_id, chunks_on_disk};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, ObjectId, RecordId, UploadId},
    record::{ChunkRef, Chunker, Content, Data, Record, RecordKind, Version, VersionEntry},
    units::UnixMillis,
};
use afar_proto::{
    convert,
    v1::{VersionsRequest, peer_client::PeerClient},
};
use afar_tests::{
    cluster::Cluster,
    data,
    limits::{SETTLE_MAX, STAYS},
    operator::summary,
    wait::{stays, until},
    wire::{self, store_alone},
};
use rand::RngCore;
use std::{collections::BTreeMap, time::SystemTime};
use tonic::transport::Channel;

/// Who is spoken to, and in whose name.
const TO: &str = "strasbourg";
const FROM: &str = "warsaw";
/// More than fits into a version, so that there is a chunk to be lost.
const OLD_BYTES: usize = 80_000;
const NEW_BYTES: usize = 100_000;

async fn peer(cluster: &Cluster) -> PeerClient<Channel> {
    wire::peer(cluster, TO, FROM).await
}

/// The versions of a key as the views of the node have them, newest first.
async fn versions(peer: &mut PeerClient<Channel>, bucket: BucketId, key: &str) -> Vec<VersionEntry> {
    let request = VersionsRequest { bucket: convert::bytes(bucket.as_bytes()), key: key.into(), limit: 16, before: None };
    let reply = peer.versions(request).await.expect("versions").into_inner();
    reply.entries.iter().map(|entry| VersionEntry::try_from(entry).expect("an entry")).collect()
}

/// A chunk with this content, and the version that names it, newer than every other of the key.
fn prepared(bucket: BucketId, key: &str, content: &[u8], upload: UploadId, present: &[VersionEntry]) -> (Record, Record) {
    let chunk = Record::new(RecordKind::Chunk, bucket, content.to_vec().into());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let stamp = Stamp::at(UnixMillis(now));
    assert!(present.iter().all(|entry| entry.stamp < stamp), "{stamp:?} is not newer than {present:?}");
    let data = Data::Chunks(vec![ChunkRef { id: chunk.id(), length: content.len() as u32 }]);
    let version = Version {
        bucket,
        key: key.into(),
        stamp,
        upload,
        content: Content::Object { id: ObjectId::of(content), size: content.len() as u64, data, chunker: Chunker::Fixed1MiB },
        metadata: BTreeMap::new(),
    };
    (chunk, Record::new(RecordKind::Version, bucket, version.encode(&[])))
}

/// An acknowledged object, then a newer version of it that only one node was sent, with its chunk or without.
fn left_behind(cluster: &Cluster, with_chunk: bool) -> (Known, Known, BucketId, RecordId) {
    cluster.bucket("bucket", &[]);
    let mut chance = data::chance(data::seed());
    let old = Known::put(&cluster.afar(), &mut chance, "bucket/a", OLD_BYTES);
    let new = Known { at: old.at.clone(), content: data::bytes(&mut chance, NEW_BYTES) };
    let mut upload = [0; UploadId::LENGTH];
    chance.fill_bytes(&mut upload);
    let bucket = bucket_id(cluster, "bucket");
    let version = wire::runtime().block_on(async {
        let mut peer = peer(cluster).await;
        let present = versions(&mut peer, bucket, "a").await;
        assert!(!present.is_empty(), "{TO} holds the version that was acknowledged");
        let (chunk, version) = prepared(bucket, "a", &new.content, UploadId::from_bytes(upload), &present);
        let id = version.id();
        let records = if with_chunk { vec![chunk, version] } else { vec![version] };
        store_alone(&mut peer, &records).await;
        id
    });
    (old, new, bucket, version)
}

/// What the node has as the key's newest version.
fn newest(cluster: &Cluster, bucket: BucketId) -> VersionEntry {
    wire::runtime().block_on(async { versions(&mut peer(cluster).await, bucket, "a").await.remove(0) })
}

/// The sizes of what is listed under the bucket.
fn sizes(cluster: &Cluster, node: &str) -> Vec<u64> {
    let listed = cluster.afar_at(&[node]).ok(&["ls", "-r", "--json", "bucket"]);
    listed.json_lines().iter().filter(|line| line["key"] == "a").map(|line| line["size"].as_u64().expect("a size")).collect()
}

#[test]
fn rule_1_a_prepared_version_that_lacks_its_chunk_never_shadows_an_older_one() {
    let cluster = Cluster::two();
    let (old, _, bucket, version) = left_behind(&cluster, false);
    let there = newest(&cluster, bucket);
    assert!(there.id == version && !there.settled, "it is there, newest and prepared, or nothing is tested: {there:?}");
    // Twice: what the first reader found out must not change what the second is told.
    for _ in 0..2 {
        for node in cluster.nodes() {
            old.must_be_at(&cluster.afar_at(&[node.name()]));
            assert_eq!(sizes(&cluster, node.name()), [OLD_BYTES as u64], "listed at {}", node.name());
        }
    }
    let there = newest(&cluster, bucket);
    assert!(there.id != version || !there.settled, "nobody may call it settled: {there:?}");
    // For longer than it may be under way: what was never acknowledged is no object, and no reason to doubt the one that was.
    stays("one key is one object", STAYS, || {
        let objects = cluster.status()["objects"].clone();
        if objects["total"] == 1 { Ok(()) } else { Err(objects) }
    });
    let status = cluster.wait_state("safe");
    assert_eq!((&status["objects"]["safe"], &status["versions"]["total"]), (&1.into(), &1.into()), "{}", summary(&status));
}

#[test]
fn rule_1_a_prepared_version_is_completed_by_the_next_reader() {
    let mut cluster = Cluster::two();
    let (_, new, ..) = left_behind(&cluster, true);
    // At the node that was sent it. The other one need not ask there: alone it overlaps whoever could have acknowledged, and
    // may answer the version before (rules 2 and 3).
    new.must_be_at(&cluster.afar_at(&[TO]));
    // No waiting here: it is at its level before it is shown, not some time after (rule 2).
    assert_eq!(chunks_on_disk(&cluster, FROM, &new.content), 1, "shown, so {FROM} holds it too");
    new.must_be_at(&cluster.afar_at(&[FROM]));
    cluster.node_mut(TO).burn();
    let alone = cluster.afar_at(&[FROM]);
    until("the other one alone serves it", SETTLE_MAX, || {
        let ran = alone.run(&["cat", &new.at]);
        if ran.code != 0 {
            return Err(ran.to_string());
        }
        assert!(ran.stdout == new.content, "something else is served: {} bytes", ran.stdout.len());
        Ok(())
    });
    assert_eq!(sizes(&cluster, FROM), [NEW_BYTES as u64]);
}
