//! Letting go of copies that the current layout assigns to others: what was moved away, and what was held for a node that was
//! away (hinted handoff).
//!
//! The only place where a good copy of a live record is removed, so every condition is asked for, late, and together
//! (rules 10 and 11):
//! * this node is not assigned the record by the newest layout, and no older one is open anywhere;
//! * every node of every site answers, none is suspect or catching up, all by the same layout, undisputed, and no latch is
//!   closed;
//! * every assigned holder has just read and hashed its copy, under that very layout, and they are far enough apart;
//! * no other layout takes its place before the removal is durable.
//!
//! If one of them is not so, nobody drops anything.
use super::fetch::{self, Proof};
use crate::{
    cluster::peers::{PeerState, PeerView},
    limits,
    node::Node,
    objects::buckets::Bucket,
};
use afar_model::{
    document::LayoutHash,
    id::BucketId,
    layout::{NodeIndex, SiteIndex},
    placement::Partition,
    record::{RecordKey, RecordKind},
};
use afar_store::{IdRange, NotReady, Removal, VersionCursor, VersionRow};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// A record that is not assigned to this node, and the nodes that it is assigned to.
type Surplus = (RecordKey, Vec<NodeIndex>);

/// Looks for surplus for as long as the node runs: soon after a layout was closed, and now and then.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut changes = node.layouts.changes();
    loop {
        let left = match stop.run_until_cancelled(round(&node)).await {
            None => return,
            Some(left) => left,
        };
        let pause = if left == Some(0) { limits::RELEASE_EVERY } else { limits::RELEASE_AGAIN };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            _ = changes.changed() => node.surplus.store(-1, Ordering::Release),
        }
    }
}

/// One look at everything. Answers how much surplus is left; `None` if that cannot be told.
async fn round(node: &Arc<Node>) -> Option<u64> {
    if node.layouts.open().chapters().len() > 1 || node.is_catching_up() {
        return None;
    }
    let layout = *node.layout().hash();
    let finder = Arc::clone(node);
    let found = node.lifecycle.blocking("surplus", move || find(&finder)).await?.ok()?;
    let mut left = found.len() as u64;
    for batch in found.chunks(limits::PROVE_BATCH) {
        if let Err(why) = permission(node, &layout) {
            tracing::debug!(why, left, "copies that are assigned to others stay");
            break;
        }
        left -= release(node, &layout, batch).await;
    }
    if *node.layout().hash() == layout {
        node.surplus.store(i64::try_from(left).unwrap_or(i64::MAX), Ordering::Release);
    }
    Some(left)
}

/// Everything here that the current layout assigns to others. Blocking.
fn find(node: &Node) -> Result<Vec<Surplus>, NotReady> {
    let mut found = Vec::new();
    let mut note = |bucket: &BucketId, key: RecordKey, partition: &dyn Fn(&Bucket) -> Partition| {
        if let Some(bucket) = node.buckets.get(bucket).filter(|_| found.len() < limits::LEDGER_EXCEPTIONS) {
            let assigned = bucket.assigned(partition(&bucket));
            if is_surplus(&assigned, node.me) {
                found.push((key, assigned));
            }
        }
    };
    let (partitions, mut after) = (node.layout().partitions(), None);
    loop {
        let page = node.store.ids(IdRange::ALL, after.as_ref(), &[RecordKind::Chunk, RecordKind::Manifest], limits::SURVEY_PAGE)?;
        after = page.last().map(|entry| entry.key);
        for entry in &page {
            note(&entry.key.bucket, entry.key, &|_| Partition::of_record(&entry.key.id, partitions));
        }
        if page.len() < limits::SURVEY_PAGE {
            break;
        }
    }
    let mut after: Option<VersionCursor> = None;
    loop {
        let rows = node.store.version_ids(after.as_ref(), limits::SURVEY_PAGE)?;
        after = rows.last().map(VersionRow::cursor);
        for row in &rows {
            note(&row.bucket, RecordKey { bucket: row.bucket, id: row.entry.id }, &|bucket| bucket.version_partition(&row.key));
        }
        if rows.len() < limits::SURVEY_PAGE {
            return Ok(found);
        }
    }
}

/// Rule 10: whether anything may be removed now that was good.
///
/// # Errors
/// Why not.
pub fn permission(node: &Node, layout: &LayoutHash) -> Result<(), String> {
    if !node.layouts.latched().is_empty() {
        return Err("a site was lost: the latch is closed".into());
    }
    if let Some(trouble) = node.layouts.trouble() {
        return Err(trouble);
    }
    for peer in node.peers.others() {
        let Some(view) = node.peers.view(peer) else { return Err("a peer is unknown".into()) };
        match objection(&view, node.clock.monotonic(), layout) {
            None => {}
            Some(Objection::Absent) => return Err(format!("{}: {}", view.node, node.why_unusable(&[peer]))),
            Some(Objection::OtherLayout) => return Err(format!("{} is not at the same layout alone", view.node)),
        }
    }
    Ok(())
}

/// What keeps anybody from dropping anything, be it said of a node that holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Objection {
    /// It is not known to be there, with everything that it should have.
    Absent,
    /// It goes by another layout, or by an older one as well.
    OtherLayout,
}

/// Pure: what a peer's last word is worth at this moment.
fn objection(view: &PeerView, now: Duration, layout: &LayoutHash) -> Option<Objection> {
    let heard = view.last_heard.is_some_and(|heard| now.saturating_sub(heard) < limits::PERMISSION_WITHIN);
    if !view.usable || view.state != PeerState::Up || !heard || view.catching_up {
        Some(Objection::Absent)
    } else if view.layout_hash != layout.as_slice() || view.open_layouts.len() != 1 {
        Some(Objection::OtherLayout)
    } else {
        None
    }
}

/// Drops those of a batch that all of their assigned holders prove. Answers how many.
async fn release(node: &Arc<Node>, layout: &LayoutHash, batch: &[Surplus]) -> u64 {
    let mut by_holders: BTreeMap<&Vec<NodeIndex>, Vec<RecordKey>> = BTreeMap::new();
    for (key, holders) in batch {
        by_holders.entry(holders).or_default().push(*key);
    }
    let mut dropped = 0;
    for (holders, keys) in by_holders {
        let answers = futures_util::future::join_all(holders.iter().map(|n| fetch::prove_under(node, *n, &keys, layout))).await;
        let refuted = node.peers.refuted();
        let far = |key: &RecordKey| node.buckets.get(&key.bucket).is_some_and(|bucket| are_far(&bucket, &refuted, holders));
        let safe = proved(&keys, &answers, far);
        let Some(_permit) = node.layouts.may_drop(layout).filter(|_| permission(node, layout).is_ok() && !safe.is_empty()) else {
            continue;
        };
        match node.store.remove(safe.clone(), Removal::Dropped).await {
            Ok(()) => dropped += safe.len() as u64,
            Err(error) => tracing::warn!(%error, "copies that are assigned to others stay"),
        }
    }
    if dropped > 0 {
        tracing::info!(records = dropped, "dropped copies that their assigned holders have proved to hold");
    }
    dropped
}

/// Assigned to others, and to somebody at all: where the policy cannot be met, nobody is assigned anything, and all is kept.
fn is_surplus(assigned: &[NodeIndex], me: NodeIndex) -> bool {
    !assigned.is_empty() && !assigned.contains(&me)
}

/// The keys that every holder (at least one) has said to be durable, and that would be left far enough apart.
fn proved(keys: &[RecordKey], answers: &[Vec<Proof>], far: impl Fn(&RecordKey) -> bool) -> Vec<RecordKey> {
    let durable = |index: usize| !answers.is_empty() && answers.iter().all(|answer| answer.get(index) == Some(&Proof::Durable));
    keys.iter().enumerate().filter(|(index, key)| durable(*index) && far(key)).map(|(_, key)| *key).collect()
}

/// The predicate, once more, for what would be left.
fn are_far(bucket: &Bucket, refuted: &BTreeSet<(SiteIndex, SiteIndex)>, holders: &[NodeIndex]) -> bool {
    bucket.reached(refuted, holders) >= Some(bucket.level())
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::{
        id::RecordId,
        policy::{Durability, Policy},
    };

    fn key(n: u8) -> RecordKey {
        RecordKey { bucket: BucketId::ZERO, id: RecordId::from_bytes([n; 32]) }
    }

    #[test]
    fn rule_11_only_what_every_assigned_holder_has_just_proved_is_dropped() {
        use Proof::{Absent, Durable, Unknown};
        let keys: Vec<RecordKey> = (0..6).map(key).collect();
        let answers = [vec![Durable, Durable, Unknown, Durable, Absent, Durable], vec![Durable, Unknown, Durable, Absent, Absent]];
        assert_eq!(proved(&keys, &answers, |_| true), [key(0)], "one holder of two is not enough, and a short answer proves nothing");
        assert!(proved(&keys, &answers, |_| false).is_empty(), "not far enough apart");
        assert!(proved(&keys, &[], |_| true).is_empty(), "nobody was asked");
    }

    #[test]
    fn rule_11_an_assigned_holder_never_drops_and_nobody_does_where_nobody_is_assigned() {
        let (me, other) = (NodeIndex(1), NodeIndex(2));
        assert!(is_surplus(&[other], me));
        assert!(!is_surplus(&[other, me], me) && !is_surplus(&[], me));
    }

    const OURS: LayoutHash = [1; 32];
    const NOW: Duration = Duration::from_secs(1000);

    fn good() -> PeerView {
        PeerView {
            usable: true,
            state: PeerState::Up,
            last_heard: Some(NOW),
            layout_hash: OURS.to_vec(),
            open_layouts: vec![OURS],
            ..PeerView::default()
        }
    }

    #[test]
    fn rule_11_nobody_drops_while_anybody_goes_by_another_layout() {
        assert_eq!(objection(&good(), NOW, &OURS), None);
        let other = PeerView { layout_hash: vec![2; 32], open_layouts: vec![[2; 32]], ..good() };
        assert_eq!(objection(&other, NOW, &OURS), Some(Objection::OtherLayout));
        let older_as_well = PeerView { open_layouts: vec![[0; 32], OURS], ..good() };
        assert_eq!(objection(&older_as_well, NOW, &OURS), Some(Objection::OtherLayout));
        let unknown = PeerView { layout_hash: Vec::new(), open_layouts: Vec::new(), ..good() };
        assert_eq!(objection(&unknown, NOW, &OURS), Some(Objection::OtherLayout), "it has not said");
    }

    #[test]
    fn rule_10_nobody_drops_on_silence() {
        let absent = [
            PeerView { usable: false, ..good() },
            PeerView { state: PeerState::Suspect, ..good() },
            PeerView { state: PeerState::Down, ..good() },
            PeerView { last_heard: None, ..good() },
            PeerView { last_heard: Some(NOW - limits::PERMISSION_WITHIN), ..good() },
            PeerView { catching_up: true, ..good() },
        ];
        for view in absent {
            assert_eq!(objection(&view, NOW, &OURS), Some(Objection::Absent), "{view:?}");
        }
        let just_now = NOW - limits::PERMISSION_WITHIN + Duration::from_millis(1);
        assert_eq!(objection(&PeerView { last_heard: Some(just_now), ..good() }, NOW, &OURS), None);
    }

    #[test]
    fn rule_11_what_is_left_has_to_be_far_by_what_is_known_now() {
        let [strasbourg, roubaix, warsaw] = [0, 1, 2].map(NodeIndex);
        let far = |policy: &Policy, refuted: &[(u16, u16)], holders: &[NodeIndex]| {
            let refuted = refuted.iter().map(|(a, b)| (SiteIndex(*a), SiteIndex(*b))).collect();
            are_far(&Bucket::example(policy), &refuted, holders)
        };
        let policy = Policy::default();
        assert!(far(&policy, &[], &[strasbourg, warsaw]));
        assert!(!far(&policy, &[], &[strasbourg, roubaix]), "406 km");
        assert!(!far(&policy, &[], &[warsaw]) && !far(&policy, &[], &[]));
        assert!(!far(&policy, &[(0, 2)], &[strasbourg, warsaw]), "refuted since it was planned");
        let full = Policy { copies: 3, level: Durability::Full, ..policy };
        assert!(!far(&full, &[], &[strasbourg, warsaw]) && far(&full, &[], &[strasbourg, roubaix, warsaw]));
    }
}
