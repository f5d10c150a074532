//! Which version of a key is current: reads that overlap every acknowledged write (rule 3), and prepared versions that
//! are proved, completed or disproved by whoever meets them first (rules 1 and 2).
//!
//! A version that is only prepared is
//! * *settled*, if all its records are durable at their level, or can be brought there now from a copy that is;
//! * *disproved*, if a record of it is missing from nodes whose answers overlap every set that could have acknowledged:
//!   then nobody was ever told OK, and the version before it stands;
//! * else it may have been acknowledged: all of it is here, but the other holder is out of reach. To answer the version
//!   before it would lose an acknowledged write to the very fire that afar exists for, so it is shown; what it has lost is
//!   what every object of that site has lost for now, its second copy.
use super::{buckets::Bucket, commit, error::ObjectError, holders::Holders};
use crate::{
    cluster::peers::ChannelKind,
    limits,
    node::Node,
    replication::{
        fetch::{self, FetchError},
        lane::LaneKind,
        send::{Purpose, copy_to},
    },
};
use afar_model::{
    id::{BucketId, RecordId},
    layout::NodeIndex,
    placement::Partition,
    record::{Content, Data, DecodedVersion, Manifest, RecordKey, RecordKind, Version, VersionEntry},
};
use afar_proto::{convert, v1};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A version, and who said that they hold it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The version.
    pub entry: VersionEntry,
    /// Who listed it.
    pub holders: Vec<NodeIndex>,
}

/// The versions of one key as one node's views have them; `None` if it does not answer or does not count.
pub async fn ask(node: &Arc<Node>, whom: NodeIndex, bucket: &BucketId, key: &str) -> Option<Vec<VersionEntry>> {
    if whom == node.me {
        return node.store.versions(bucket, key, limits::VERSIONS_PER_KEY).ok().filter(|_| !node.is_catching_up());
    }
    let mut client = fetch::peer(node, whom, ChannelKind::Control)?;
    let request =
        v1::VersionsRequest { bucket: convert::bytes(bucket.as_bytes()), key: key.to_owned(), limit: limits::VERSIONS_PER_KEY as u32 };
    let reply = client.versions(fetch::with_deadline(request, limits::ASK_DEADLINE)).await.ok()?.into_inner();
    if reply.catching_up {
        return None;
    }
    reply.entries.iter().map(|entry| VersionEntry::try_from(entry).ok()).collect()
}

/// Whom to ask about a bucket's versions, the nearest first.
///
/// # Errors
/// If too few nodes answer to prove an absence: then nothing is inferred.
pub fn quorum(node: &Node, bucket: &Bucket, failed: &BTreeSet<NodeIndex>) -> Result<Vec<NodeIndex>, ObjectError> {
    let eligible = bucket.eligible();
    let answering = eligible.iter().copied().filter(|n| !failed.contains(n) && node.answers(*n));
    let order = node.peers.nearest_first(answering);
    bucket.to_ask(&order).ok_or_else(|| {
        let silent: Vec<String> = eligible
            .iter()
            .filter(|n| failed.contains(n) || !node.answers(**n))
            .map(|n| format!("{}: {}", node.layout().node_name(*n), node.why_unusable(&[*n])))
            .collect();
        ObjectError::unavailable(format!("too few nodes answer to know what is current ({})", silent.join("; ")))
    })
}

/// Every version that an overlapping set of nodes lists, newest first.
///
/// # Errors
/// If no such set answers.
pub async fn overlapping(node: &Arc<Node>, bucket: &Bucket, key: &str) -> Result<Vec<Listed>, ObjectError> {
    let mut failed = BTreeSet::new();
    loop {
        let asked = quorum(node, bucket, &failed)?;
        let answers = futures_util::future::join_all(asked.iter().map(|whom| ask(node, *whom, &bucket.id, key))).await;
        let silent: Vec<NodeIndex> = asked.iter().zip(&answers).filter(|(_, answer)| answer.is_none()).map(|(whom, _)| *whom).collect();
        if silent.is_empty() {
            return Ok(merge(asked.iter().copied().zip(answers.into_iter().flatten())));
        }
        failed.extend(silent);
    }
}

/// Pure: the union, newest first; settled if anybody knows it to be.
pub fn merge(answers: impl Iterator<Item = (NodeIndex, Vec<VersionEntry>)>) -> Vec<Listed> {
    let mut merged: BTreeMap<_, Listed> = BTreeMap::new();
    for (from, entries) in answers {
        for entry in entries {
            let listed = merged.entry(entry.order()).or_insert_with(|| Listed { entry: entry.clone(), holders: Vec::new() });
            listed.entry.settled |= entry.settled;
            listed.holders.push(from);
        }
    }
    merged.into_values().rev().collect()
}

/// The current version of a key; `None` if it has none. A delete marker is a version.
///
/// # Errors
/// If that cannot be known now.
pub async fn current(node: &Arc<Node>, bucket: &Bucket, key: &str) -> Result<Option<Listed>, ObjectError> {
    let listed = overlapping(node, bucket, key).await?;
    first_standing(node, bucket, key, listed).await
}

/// The newest of these that stands.
///
/// # Errors
/// If that cannot be known now.
pub async fn first_standing(node: &Arc<Node>, bucket: &Bucket, key: &str, listed: Vec<Listed>) -> Result<Option<Listed>, ObjectError> {
    for version in listed {
        if version.entry.settled {
            return Ok(Some(version));
        }
        match complete(node, bucket, key, &version).await? {
            Standing::Settled | Standing::MayBeAcknowledged => return Ok(Some(version)),
            Standing::Disproved => {}
        }
    }
    Ok(None)
}

/// What became of a prepared version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// At its level, and noted as such.
    Settled,
    /// All of it is readable, but its level cannot be reached now.
    MayBeAcknowledged,
    /// Certainly never acknowledged.
    Disproved,
}

/// Proves a prepared version, brings it to its level, or disproves it.
///
/// # Errors
/// If too few nodes answer to tell.
pub async fn complete(node: &Arc<Node>, bucket: &Bucket, key: &str, listed: &Listed) -> Result<Standing, ObjectError> {
    let version_key = RecordKey { bucket: bucket.id, id: listed.entry.id };
    let partition = bucket.version_partition(key);
    let Ok(record) = fetch::read_anywhere(node, version_key, partition, &listed.holders).await else {
        return disproof(node, bucket, version_key).await;
    };
    let decoded = decode(record.body())?;
    let mut keys = vec![(version_key, RecordKind::Version, partition)];
    match pieces(node, bucket, &decoded.version).await {
        Ok(pieces) => keys.extend(pieces),
        Err(FetchError::Nowhere { key, .. }) => return disproof(node, bucket, key).await,
    }
    let mut far = true;
    // A version that is found by older layouts is brought to its level under the current one as well.
    let mut holders = Holders::default();
    for batch in keys.chunks(limits::PROVE_BATCH) {
        match bring_to_level(node, bucket, batch, &mut holders).await? {
            Standing::Settled => {}
            Standing::MayBeAcknowledged => far = false,
            Standing::Disproved => return Ok(Standing::Disproved),
        }
    }
    if far {
        commit::settle(node, bucket, key, listed.entry.order(), &holders);
        Ok(Standing::Settled)
    } else {
        Ok(Standing::MayBeAcknowledged)
    }
}

/// A record is nowhere to be read: is it nowhere at all?
async fn disproof(node: &Arc<Node>, bucket: &Bucket, key: RecordKey) -> Result<Standing, ObjectError> {
    let partition = Partition::of_record(&key.id, node.layout().partitions());
    match bring_to_level(node, bucket, &[(key, RecordKind::Chunk, partition)], &mut Holders::default()).await? {
        Standing::Disproved => Ok(Standing::Disproved),
        _ => Err(ObjectError::unavailable(format!("{key:?} is held but could not be read just now; retry"))),
    }
}

/// A record disproves its version only if those who certainly do not hold it overlap whoever could have acknowledged it.
fn nobody_holds(bucket: &Bucket, absent: &[NodeIndex]) -> Result<Standing, ObjectError> {
    if bucket.covers(absent) {
        Ok(Standing::Disproved)
    } else {
        Err(ObjectError::unavailable("too few nodes answer to know whether the newest version was acknowledged"))
    }
}

/// Asks everybody who may hold these records, and copies what is at too few places. Notes who holds them.
async fn bring_to_level(
    node: &Arc<Node>,
    bucket: &Bucket,
    keys: &[(RecordKey, RecordKind, Partition)],
    holders: &mut Holders,
) -> Result<Standing, ObjectError> {
    let names: Vec<RecordKey> = keys.iter().map(|(key, _, _)| *key).collect();
    let whom: Vec<NodeIndex> = bucket.eligible().into_iter().filter(|n| *n == node.me || node.peers.usable(*n)).collect();
    let proved = fetch::prove_all(node, &whom, &names).await;
    let mut standing = Standing::Settled;
    for ((key, _, partition), proved) in keys.iter().zip(proved) {
        if proved.holders.is_empty() {
            return nobody_holds(bucket, &proved.absent);
        }
        let spread = spread(node, bucket, *key, *partition, proved.holders).await;
        if !spread.1 {
            standing = Standing::MayBeAcknowledged;
        }
        holders.note(&bucket.assigned_by_any(*partition), &spread.0);
    }
    Ok(standing)
}

/// Copies a record from its holders to where it is assigned until it is at its bucket's level. Answers who holds it, and
/// whether it is.
async fn spread(
    node: &Arc<Node>,
    bucket: &Bucket,
    key: RecordKey,
    partition: Partition,
    holders: Vec<NodeIndex>,
) -> (Vec<NodeIndex>, bool) {
    let reached = |nodes: &[NodeIndex]| bucket.reached(&node.peers.refuted(), nodes) >= Some(bucket.level());
    if reached(&holders) {
        return (holders, true);
    }
    let Ok(record) = fetch::read_anywhere(node, key, partition, &holders).await else { return (holders, false) };
    let Ok(chosen) = commit::targets(node, bucket, partition, &BTreeSet::new()) else { return (holders, false) };
    let mut nodes = holders;
    for target in chosen.nodes {
        if nodes.contains(&target) {
            continue;
        }
        match copy_to(node, target, std::slice::from_ref(&record), Purpose::Repair, LaneKind::Bulk(0)).await {
            Ok(_) => nodes.push(target),
            Err(error) => tracing::warn!(%error, "completing a version"),
        }
    }
    let far = reached(&nodes);
    (nodes, far)
}

/// Manifests and chunks of a version, each with its partition.
///
/// # Errors
/// If a manifest cannot be read.
pub async fn pieces(node: &Arc<Node>, bucket: &Bucket, version: &Version) -> Result<Vec<(RecordKey, RecordKind, Partition)>, FetchError> {
    let partitions = node.layout().partitions();
    let place = |id: RecordId, kind| (RecordKey { bucket: bucket.id, id }, kind, Partition::of_record(&id, partitions));
    let mut pieces = Vec::new();
    match &version.content {
        Content::Object { data: Data::Chunks(chunks), .. } => pieces.extend(chunks.iter().map(|chunk| place(chunk.id, RecordKind::Chunk))),
        Content::Object { data: Data::Manifests(manifests), .. } => {
            for id in manifests {
                let (key, kind, partition) = place(*id, RecordKind::Manifest);
                let record = fetch::read_anywhere(node, key, partition, &[]).await?;
                let damaged = FetchError::Nowhere { key, silent: Vec::new(), damaged: true };
                let manifest = Manifest::decode(record.body()).map_err(|_| damaged)?;
                pieces.push((key, kind, partition));
                pieces.extend(manifest.chunks.iter().map(|chunk| place(chunk.id, RecordKind::Chunk)));
            }
        }
        Content::Object { data: Data::Inline, .. } | Content::DeleteMarker => {}
    }
    Ok(pieces)
}

/// A version's record, read from whoever holds it.
///
/// # Errors
/// If no good copy answers, or it cannot be understood.
pub async fn read(node: &Arc<Node>, bucket: &Bucket, key: &str, listed: &Listed) -> Result<DecodedVersion, ObjectError> {
    let version_key = RecordKey { bucket: bucket.id, id: listed.entry.id };
    let record = fetch::read_anywhere(node, version_key, bucket.version_partition(key), &listed.holders).await.map_err(unreadable)?;
    decode(record.body())
}

fn decode(body: &bytes::Bytes) -> Result<DecodedVersion, ObjectError> {
    Version::decode(body).map_err(|error| ObjectError::Internal(format!("a version record cannot be understood: {error}")))
}

/// What a reader is told when no good copy answers.
pub fn unreadable(error: FetchError) -> ObjectError {
    let FetchError::Nowhere { silent, damaged, .. } = &error;
    if silent.is_empty() && *damaged { ObjectError::Integrity(error.to_string()) } else { ObjectError::unavailable(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::{hlc::Stamp, id::UploadId, units::UnixMillis};

    fn entry(stamp: u64, settled: bool) -> VersionEntry {
        VersionEntry {
            stamp: Stamp::from_u64(stamp),
            id: RecordId::of(&stamp.to_le_bytes()),
            upload: UploadId::ZERO,
            settled,
            object: None,
            inline: true,
            received: UnixMillis(0),
        }
    }

    #[test]
    fn rule_2_a_version_is_settled_if_anybody_knows_it() {
        let (a, b) = (NodeIndex(0), NodeIndex(1));
        let merged = merge([(a, vec![entry(2, false), entry(1, true)]), (b, vec![entry(3, false), entry(2, true)])].into_iter());
        let seen: Vec<(u64, bool, usize)> = merged.iter().map(|v| (v.entry.stamp.as_u64(), v.entry.settled, v.holders.len())).collect();
        assert_eq!(seen, [(3, false, 1), (2, true, 2), (1, true, 1)]);
    }
}
