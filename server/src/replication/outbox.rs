//! Paying debts: records that were acknowledged without a copy that their policy asks for (the node was away, or the
//! bucket queues) are sent as soon as it answers. The debts themselves are in the log and survive a restart; their age is
//! the recovery point that is reported.
use super::{
    fetch,
    lane::LaneKind,
    send::{Purpose, copy_to},
};
use crate::{limits, node::Node, objects::buckets::Bucket};
use afar_model::{
    id::BucketId,
    layout::NodeIndex,
    policy::DegradedWrites,
    record::{Record, RecordKey, RecordKind},
    units::UnixMillis,
};
use afar_store::{DirectoryState, Owed};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// What still has to reach others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pending {
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since when the oldest waits; zero if none does.
    pub oldest: UnixMillis,
    /// Objects among them that may be nowhere else, and their bytes (rule 8); `None`: not counted yet.
    pub alone: Option<(u64, u64)>,
    /// This node's log takes no writes.
    pub read_only: bool,
    /// Size of its disks in bytes.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Age of its least recent verification.
    pub oldest_unverified: Duration,
}

/// What this node tells the others of itself that takes a look at its disks. Blocking.
fn look(node: &Node) -> Pending {
    let summary = node.store.owed_summary().unwrap_or_default();
    let usage = node.store.usage();
    Pending {
        records: summary.iter().map(|owed| owed.records).sum(),
        bytes: summary.iter().map(|owed| owed.bytes).sum(),
        oldest: summary.iter().map(|owed| owed.oldest).min().unwrap_or_default(),
        alone: alone(node),
        read_only: usage
            .directories
            .iter()
            .all(|directory| matches!(directory.state, DirectoryState::ReadOnly(_) | DirectoryState::Failed(_))),
        capacity: usage.capacity,
        used: usage.used,
        oldest_unverified: node.store.oldest_unverified().map_or(Duration::ZERO, |oldest| node.now().since(oldest)),
    }
}

/// Whether a bucket lets anybody acknowledge alone, or was made so.
pub fn queues(bucket: &Bucket) -> bool {
    bucket.queues() || bucket.policy().degraded_writes == DegradedWrites::Queue
}

/// Objects that are owed and were perhaps acknowledged here only, with their bytes: at most so many. Only a bucket that
/// queues, or was made to, acknowledges such. `None` while the views are being rebuilt.
fn alone(node: &Node) -> Option<(u64, u64)> {
    let summary = node.store.owed_summary().ok()?;
    let present = node.buckets.present();
    let queueing: HashSet<BucketId> = present.buckets.values().filter(|bucket| queues(bucket)).map(|bucket| bucket.id).collect();
    if queueing.is_empty() {
        return Some((0, 0));
    }
    let (mut seen, mut looked, mut sum): (HashSet<RecordKey>, usize, (u64, u64)) = (HashSet::new(), 0, (0, 0));
    let mut after: Option<Owed> = None;
    loop {
        let page = node.store.owed(None, after.as_ref(), limits::OUTBOX_BATCH).ok()?;
        // A record may be owed to several.
        for owed in page.iter().filter(|owed| queueing.contains(&owed.key.bucket) && seen.insert(owed.key)) {
            sum.0 += u64::from(owed.kind == RecordKind::Version);
            sum.1 += u64::from(owed.bytes);
        }
        looked += page.len();
        if page.len() < limits::OUTBOX_BATCH {
            return Some(sum);
        }
        if looked >= limits::ALONE_LOOK {
            return Some((summary.iter().map(|owed| owed.records).sum(), summary.iter().map(|owed| owed.bytes).sum()));
        }
        after = page.into_iter().last();
    }
}

/// Pays what can be paid, again and again.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    // At once: what burns before it has counted is in doubt.
    tell(&node).await;
    while stop.run_until_cancelled(tokio::time::sleep(limits::OUTBOX_EVERY)).await.is_some() {
        let summary = node.store.owed_summary().unwrap_or_default();
        tell(&node).await;
        forgive(&node, summary.iter().map(|owed| owed.to.as_str()));
        let creditors: Vec<NodeIndex> = summary.iter().filter_map(|owed| node.layout().node_named(&owed.to)).collect();
        for creditor in creditors.into_iter().filter(|n| node.can_store(*n)) {
            if stop.run_until_cancelled(pay(&node, creditor)).await.is_none() {
                return;
            }
            tell(&node).await;
        }
    }
}

/// Looks at what is pending, for the heartbeats. If something more, or less, is nowhere else, the peers hear of it at once:
/// whatever this node had not told them when it burns is in doubt (rule 8).
async fn tell(node: &Arc<Node>) {
    let looker = Arc::clone(node);
    let Some(pending) = node.lifecycle.blocking("look", move || look(&looker)).await else { return };
    let before = node.pending.swap(Arc::new(pending)).alone;
    if before != pending.alone {
        node.peers.others().for_each(|peer| node.peers.poke(peer));
    }
}

/// Who has left the cluster is owed nothing any more; to whom else the records belong now, the layout says.
fn forgive<'a>(node: &Node, creditors: impl Iterator<Item = &'a str>) {
    let layout = node.layout();
    for name in creditors.filter(|name| !layout.node_named(name).is_some_and(|creditor| layout.duty(creditor).is_member())) {
        let debts = node.store.owed(Some(name), None, limits::OUTBOX_BATCH).unwrap_or_default();
        node.store.pay(name, debts.into_iter().map(|debt| debt.key).collect());
    }
}

async fn pay(node: &Arc<Node>, creditor: NodeIndex) {
    let name = node.layout().node_name(creditor).to_owned();
    loop {
        let debts = node.store.owed(Some(&name), None, limits::OUTBOX_BATCH).unwrap_or_default();
        if debts.is_empty() {
            return;
        }
        let paid = send(node, creditor, &debts).await;
        let progress = !paid.is_empty();
        node.ledger.acknowledged(creditor, true, paid.iter().copied());
        node.store.pay(&name, paid);
        if !progress {
            return;
        }
    }
}

/// Sends what is owed and answers what has arrived durably, or can never be paid.
async fn send(node: &Arc<Node>, creditor: NodeIndex, debts: &[Owed]) -> Vec<RecordKey> {
    let mut settled = Vec::new();
    let mut batch: Vec<Record> = Vec::new();
    let most = node.transfer.repair_batch();
    let _permit = node.transfer.repair(most).await;
    for debt in debts {
        match fetch::read_here(node, debt.key).await {
            Ok(Some(record)) => batch.push(record),
            // Not here any more: whoever has it is found by anti-entropy.
            Ok(None) => settled.push(debt.key),
            Err(error) => tracing::warn!(%error, "a debt cannot be paid from here"),
        }
        if batch.iter().map(|record| record.body().len()).sum::<usize>() >= most {
            settled.extend(flush(node, creditor, &mut batch).await);
        }
    }
    settled.extend(flush(node, creditor, &mut batch).await);
    settled
}

async fn flush(node: &Arc<Node>, creditor: NodeIndex, batch: &mut Vec<Record>) -> Vec<RecordKey> {
    let records = std::mem::take(batch);
    let mut sent = Vec::new();
    for group in group(&records) {
        match copy_to(node, creditor, group, Purpose::Repair, LaneKind::Bulk(1)).await {
            Ok(_) => sent.extend(group.iter().map(Record::key)),
            Err(error) => {
                tracing::debug!(%error, "a debt stays");
                break;
            }
        }
    }
    sent
}

/// Records in messages: as many as fit one.
pub fn group(records: &[Record]) -> Vec<&[Record]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, record) in records.iter().enumerate() {
        if index > start && bytes + record.body().len() > afar_model::limits::RECORD_BYTES_MAX {
            groups.extend(records.get(start..index));
            (start, bytes) = (index, 0);
        }
        bytes += record.body().len();
    }
    groups.extend(records.get(start..).filter(|rest| !rest.is_empty()));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::{id::BucketId, record::RecordKind};

    #[test]
    fn groups_fit_a_message_and_lose_nothing() {
        let record = |bytes: usize| Record::new(RecordKind::Chunk, BucketId::SYSTEM, vec![0; bytes].into());
        let records: Vec<Record> = [1 << 20, 1 << 20, 1, 2 << 20, 5, 6].into_iter().map(record).collect();
        let groups: Vec<usize> = group(&records).iter().map(|group| group.len()).collect();
        assert_eq!(groups, [2, 1, 1, 2]);
        assert!(group(&[]).is_empty());
    }
}
