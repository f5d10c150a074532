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
    inspect::rfc3339,
    limits,
    node::Node,
    replication::{
        fetch::{self, FetchError, Proved},
        lane::LaneKind,
        send::{Purpose, copy_to},
    },
};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    layout::{Layout, NodeIndex},
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

/// A place among a key's versions, of which the newest is the first.
pub type Order = (Stamp, RecordId);

/// Versions of a key, newest first: all that there are down to the last of them.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The versions.
    pub versions: Vec<Listed>,
    /// There may be more that are older than this.
    next: Option<Order>,
}

impl Page {
    /// Pure: the union. Where an answer is full (`limit` entries), what is older than its last may be unknown to whoever gave
    /// it, and there a standing version may hide: it comes with the next page.
    pub fn of(answers: Vec<(NodeIndex, Vec<VersionEntry>)>, limit: usize) -> Self {
        let full = answers.iter().filter(|(_, entries)| entries.len() >= limit);
        let next = full.filter_map(|(_, entries)| entries.last().map(VersionEntry::order)).max();
        let mut versions = merge(answers.into_iter());
        versions.retain(|listed| next.is_none_or(|end| listed.entry.order() >= end));
        Self { versions, next }
    }

    /// The page after this one; `None` at the end.
    ///
    /// # Errors
    /// If too few nodes answer to tell what is there.
    pub async fn older(&self, node: &Arc<Node>, bucket: &Bucket, key: &str) -> Result<Option<Self>, ObjectError> {
        match self.next {
            Some(before) => page(node, bucket, key, Some(before)).await.map(Some),
            None => Ok(None),
        }
    }
}

/// A page of the versions of one key as one node's views have them; `None` if it does not answer or does not count.
pub async fn ask(node: &Arc<Node>, whom: NodeIndex, bucket: &BucketId, key: &str, before: Option<Order>) -> Option<Vec<VersionEntry>> {
    if whom == node.me {
        return node.store.versions(bucket, key, before, limits::VERSIONS_PAGE).ok().filter(|_| !node.is_catching_up());
    }
    let mut client = fetch::peer(node, whom, ChannelKind::Control)?;
    let request = v1::VersionsRequest {
        bucket: convert::bytes(bucket.as_bytes()),
        key: key.to_owned(),
        limit: limits::VERSIONS_PAGE as u32,
        before: before.map(|(stamp, id)| v1::VersionAt { stamp: stamp.as_u64(), id: convert::bytes(id.as_bytes()) }),
    };
    let reply = client.versions(fetch::with_deadline(request, limits::ASK_DEADLINE)).await.ok()?.into_inner();
    let entries = entries(&reply.entries).filter(|_| !reply.catching_up)?;
    // A node of an earlier version knows no pages, and answers the first again.
    let older = entries.first().zip(before).is_none_or(|(first, before)| first.order() < before);
    older.then_some(entries)
}

/// What a node has answered; `None` if it makes no sense.
pub fn entries(answered: &[v1::VersionEntry]) -> Option<Vec<VersionEntry>> {
    answered.iter().map(|entry| VersionEntry::try_from(entry).ok()).collect()
}

/// Whom to ask about a bucket's versions: `first` those who are asked anyway, then the nearest.
///
/// # Errors
/// If too few nodes answer to prove an absence: then nothing is inferred.
pub fn quorum(node: &Node, bucket: &Bucket, first: &[NodeIndex], failed: &BTreeSet<NodeIndex>) -> Result<Vec<NodeIndex>, ObjectError> {
    let eligible = bucket.eligible();
    let answering = eligible.iter().copied().filter(|n| !failed.contains(n) && node.answers(*n));
    let mut order = node.peers.nearest_first(answering);
    order.sort_by_key(|n| !first.contains(n));
    bucket.to_ask(&order).ok_or_else(|| {
        let silent: Vec<String> = eligible
            .iter()
            .filter(|n| failed.contains(n) || !node.answers(**n))
            .map(|n| format!("{}: {}", node.layout().node_name(*n), node.why_unusable(&[*n])))
            .collect();
        ObjectError::unavailable(format!("too few nodes answer to know what is current ({})", silent.join("; ")))
    })
}

/// What an overlapping set of nodes lists of a key's versions, the newest or those before a place.
///
/// # Errors
/// If no such set answers.
pub async fn page(node: &Arc<Node>, bucket: &Bucket, key: &str, before: Option<Order>) -> Result<Page, ObjectError> {
    let mut failed = BTreeSet::new();
    loop {
        let asked = quorum(node, bucket, &[], &failed)?;
        let answers = futures_util::future::join_all(asked.iter().map(|whom| ask(node, *whom, &bucket.id, key, before))).await;
        let silent: Vec<NodeIndex> = asked.iter().zip(&answers).filter(|(_, answer)| answer.is_none()).map(|(whom, _)| *whom).collect();
        if silent.is_empty() {
            return Ok(Page::of(asked.into_iter().zip(answers.into_iter().flatten()).collect(), limits::VERSIONS_PAGE));
        }
        failed.extend(silent);
    }
}

/// The newest versions of a key: whoever looks for what was made lately finds it among them.
///
/// # Errors
/// If too few nodes answer to tell.
pub async fn newest(node: &Arc<Node>, bucket: &Bucket, key: &str) -> Result<Vec<Listed>, ObjectError> {
    Ok(page(node, bucket, key, None).await?.versions)
}

/// One version of a key, however old.
///
/// # Errors
/// If too few nodes answer to tell.
pub async fn find(node: &Arc<Node>, bucket: &Bucket, key: &str, id: RecordId) -> Result<Option<Listed>, ObjectError> {
    let mut next = Some(page(node, bucket, key, None).await?);
    while let Some(page) = next {
        if let Some(found) = page.versions.iter().find(|listed| listed.entry.id == id) {
            return Ok(Some(found.clone()));
        }
        next = page.older(node, bucket, key).await?;
    }
    Ok(None)
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
    let newest = page(node, bucket, key, None).await?;
    current_from(node, bucket, key, newest).await
}

/// The newest version that stands, from this page on.
///
/// # Errors
/// If that cannot be known now.
pub async fn current_from(node: &Arc<Node>, bucket: &Bucket, key: &str, newest: Page) -> Result<Option<Listed>, ObjectError> {
    let mut next = Some(newest);
    while let Some(page) = next {
        if let Some(standing) = first_standing(node, bucket, key, &page.versions).await? {
            return Ok(Some(standing));
        }
        next = page.older(node, bucket, key).await?;
    }
    Ok(None)
}

/// The newest of these that stands.
///
/// # Errors
/// If that cannot be known now.
pub async fn first_standing<'l>(
    node: &Arc<Node>,
    bucket: &Bucket,
    key: &str,
    listed: impl IntoIterator<Item = &'l Listed>,
) -> Result<Option<Listed>, ObjectError> {
    for version in listed {
        if version.entry.settled {
            return Ok(Some(version.clone()));
        }
        match complete(node, bucket, key, version).await? {
            Standing::Settled | Standing::MayBeAcknowledged => return Ok(Some(version.clone())),
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

/// A record disproves its version only if those who certainly do not hold it overlap whoever could have acknowledged it; and
/// never where it was held and is lost, for the disks of the other holder may have been replaced since.
fn nobody_holds(bucket: &Bucket, layout: &Layout, proved: &Proved) -> Result<Standing, ObjectError> {
    if let Some(lost) = proved.lost.first() {
        let at = layout.node_name(*lost);
        let why = "nobody can tell whether it was acknowledged: put the key again, or remove it";
        return Err(ObjectError::unavailable(format!("the newest version was at {at} and is lost there; {why}")));
    }
    if bucket.covers(&proved.absent) {
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
            return nobody_holds(bucket, &node.layout(), &proved);
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
    let read = fetch::read_anywhere(node, version_key, bucket.version_partition(key), &listed.holders).await;
    // Never the version before: this one was acknowledged after it.
    let which = || format!("version {} of {key:?}, of {}: ", listed.entry.id, rfc3339(listed.entry.stamp.time().0));
    decode(read.map_err(|error| unreadable_of(&error, &which()))?.body())
}

fn decode(body: &bytes::Bytes) -> Result<DecodedVersion, ObjectError> {
    Version::decode(body).map_err(|error| ObjectError::Internal(format!("a version record cannot be understood: {error}")))
}

/// What a reader is told when no good copy answers.
#[allow(clippy::needless_pass_by_value)]
pub fn unreadable(error: FetchError) -> ObjectError {
    unreadable_of(&error, "")
}

fn unreadable_of(error: &FetchError, what: &str) -> ObjectError {
    let FetchError::Nowhere { silent, damaged, .. } = error;
    let why = format!("{what}{error}");
    if silent.is_empty() && *damaged { ObjectError::Integrity(why) } else { ObjectError::unavailable(why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::{id::UploadId, units::UnixMillis};

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

    #[test]
    fn rule_3_what_is_older_than_a_full_answer_comes_with_the_next_page() {
        let (a, b) = (NodeIndex(0), NodeIndex(1));
        let stamps = |page: &Page| page.versions.iter().map(|listed| listed.entry.stamp.as_u64()).collect::<Vec<_>>();
        // To `a` version 4 may be known, and everything below: it was only asked for three.
        let answers = vec![(a, vec![entry(9, false), entry(7, false), entry(5, false)]), (b, vec![entry(9, false), entry(3, true)])];
        let page = Page::of(answers.clone(), 3);
        assert_eq!((stamps(&page), page.next), (vec![9, 7, 5], Some(entry(5, false).order())));
        let page = Page::of(answers, 4);
        assert_eq!((stamps(&page), page.next), (vec![9, 7, 5, 3], None));
    }
}
