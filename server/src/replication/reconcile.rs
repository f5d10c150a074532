//! Anti-entropy, plain form: two nodes compare what they hold id by id, and each pulls what it is assigned and lacks.
//!
//! Replication is set union, so this heals whatever went wrong before: a node that was away, a disk that was replaced, a
//! copy that rotted, a coordinator that died between two copies. It is also where the evidence comes from: a finished
//! comparison is what the ledger builds its "proved" on. Cost grows with the number of records; the contract does not
//! depend on that, and a cleverer comparison may replace this one.
use super::{
    fetch::{self, Proof},
    lane::LaneKind,
    ledger::Comparison,
    outbox,
    send::{Purpose, copy_to},
};
use crate::{cluster::peers::ChannelKind, health::upkeep, limits, node::Node};
use afar_model::{
    id::{BootId, Incarnation, RecordId},
    layout::NodeIndex,
    placement::Partition,
    record::{Record, RecordKey, RecordKind, VersionEntry},
};
use afar_proto::{convert, limits::PAGE_MAX, v1};
use afar_store::{
    AppendClass, IdEntry, IdRange, VersionCursor, VersionRow,
    format::{Note, VersionInfo},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Compares with one peer for as long as the node runs: when it comes up, when something happened, and now and then.
pub async fn run(node: Arc<Node>, peer: NodeIndex, stop: CancellationToken) {
    tokio::select! {
        () = compare(&node, peer, stop) => {}
        () = node.leaves(peer) => {}
    }
    // In the middle of a comparison, perhaps; nothing will come from there any more.
    node.rebalance.expect(peer, 0, 0);
}

async fn compare(node: &Arc<Node>, peer: NodeIndex, stop: CancellationToken) {
    let mut changes = node.peers.changes();
    let mut poked = node.pokes();
    loop {
        let met = node.peers.have_all_met_us();
        let mut pause = limits::RECONCILE_RETRY;
        let mut compared: Compared = None;
        if node.peers.usable(peer) {
            let round =
                Round { node, peer, found: Comparison::default(), unknown: false, partitions: node.layout().partitions(), expected: None };
            match stop.run_until_cancelled(round.run()).await {
                None => return,
                Some(Ok(())) => {
                    // Older layouts stay open until a comparison with everybody was complete.
                    let again = node.ledger.missing_at(peer) > 0 || node.layouts.waits_for(peer);
                    pause = if again { limits::RECONCILE_RETRY } else { limits::RECONCILE_EVERY };
                    compared = state_of(node, peer);
                }
                Some(Err(error)) => tracing::debug!(peer = node.layout().node_name(peer), error, "comparison broken off"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = due(node, peer, pause) => {}
            _ = poked.changed() => tokio::time::sleep(limits::RECONCILE_SOON).await,
            () = another(node, peer, (met, &compared), &mut changes) => {}
        }
    }
}

/// Waits for the next comparison: sooner if the peer is believed to lack something and can be asked.
async fn due(node: &Node, peer: NodeIndex, pause: Duration) {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        tokio::time::sleep(pause.min(limits::RECONCILE_LACKING)).await;
        if node.peers.usable(peer) && node.ledger.missing_at(peer) > 0 {
            return;
        }
    }
}

/// Which disks and which run of the peer were compared, whether it was catching up then, and what it had lost by then.
type Compared = Option<(Option<Incarnation>, Option<BootId>, bool, u64)>;

fn state_of(node: &Node, peer: NodeIndex) -> Compared {
    node.peers.view(peer).map(|view| (view.incarnation, view.boot, view.catching_up, view.losses))
}

/// Waits until the peer is usable as another run than before, or until all peers have met this node for the first time.
async fn another(node: &Node, peer: NodeIndex, (met, before): (bool, &Compared), changes: &mut watch::Receiver<u64>) {
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        let now_met = !met && node.peers.have_all_met_us();
        if node.peers.usable(peer) && (now_met || state_of(node, peer) != *before) {
            return;
        }
    }
}

struct Round<'a> {
    node: &'a Arc<Node>,
    peer: NodeIndex,
    found: Comparison,
    /// A record of a bucket was seen whose creation has not arrived here yet: nothing can be said of it.
    unknown: bool,
    partitions: u32,
    /// Only counts what there is to fetch, for status: records and bytes.
    expected: Option<(u64, u64)>,
}

impl Round<'_> {
    async fn run(mut self) -> Result<(), String> {
        let view = self.node.peers.view(self.peer).ok_or("no such peer")?;
        let incarnation = view.incarnation.ok_or("the peer has not said who it is")?;
        self.node.ledger.seen(self.peer, incarnation, view.losses);
        self.node.ledger.scrubbed(self.peer, view.oldest_unverified);
        let begun = (Instant::now(), self.node.now());
        let epoch = self.node.loss_epoch();
        // Whoever has not met this node's disks yet may still count on others of its name, and have a copy made here by them.
        let met = self.node.peers.have_all_met_us();
        let layout = *self.node.layout().hash();
        self.count().await?;
        let complete = self.walk().await?;
        self.node.rebalance.expect(self.peer, 0, 0);
        self.push_missing(view.catching_up).await;
        let unchanged =
            self.node.peers.view(self.peer).is_some_and(|now| now.incarnation == Some(incarnation) && now.losses == view.losses);
        if !unchanged {
            return Err("the peer became another, or lost something, during the comparison".into());
        }
        if *self.node.layout().hash() != layout {
            return Err("the layout changed during the comparison".into());
        }
        self.node.ledger.compared(self.peer, incarnation, self.found, begun);
        if complete {
            if met {
                self.node.compared_with(self.peer, epoch);
            }
            self.node.layouts.note_compared(self.peer, begun.0, &layout);
        }
        Ok(())
    }

    fn in_transition(&self) -> bool {
        self.node.layouts.open().chapters().len() > 1
    }

    /// How much there is to fetch from this peer, before it is fetched: only while layouts change, for it is a walk more.
    async fn count(&mut self) -> Result<(), String> {
        if !self.in_transition() {
            self.node.rebalance.expect(self.peer, 0, 0);
            return Ok(());
        }
        self.expected = Some((0, 0));
        self.records().await?;
        self.versions().await?;
        let (records, bytes) = self.expected.take().unwrap_or_default();
        self.node.rebalance.expect(self.peer, records, bytes);
        Ok(())
    }

    /// Walks over everything; again if settings arrived that say what to make of it.
    async fn walk(&mut self) -> Result<bool, String> {
        let mut complete = false;
        for _ in 0..limits::RECONCILE_WALKS {
            self.unknown = false;
            self.found = Comparison::default();
            complete = self.records().await?;
            if self.unknown {
                self.node.reload_settings().await;
                continue;
            }
            complete &= self.versions().await?;
            if !self.unknown {
                return Ok(complete);
            }
            self.node.reload_settings().await;
        }
        // Still unknown: a bucket that nobody here has heard of. Whoever has its setting will bring it.
        Ok(complete && !self.unknown)
    }

    /// Chunks, manifests and settings. Answers whether everything that this node should have is here now.
    async fn records(&mut self) -> Result<bool, String> {
        let mut after: Option<RecordKey> = None;
        let mut complete = true;
        // What this node knows that it lacks shows in no list of its own: a peer that lacks it, too, must not pass for a holder.
        let mut lacked: HashSet<RecordKey> = self.node.ledger.own_missing(limits::LEDGER_EXCEPTIONS).into_iter().collect();
        loop {
            let (theirs, more) = self.their_ids(after).await?;
            let end = if more { theirs.last().map(|entry| entry.key) } else { None };
            let ours = self.our_ids(after, end).await?;
            let our_set: HashSet<RecordKey> = ours.iter().map(|entry| entry.key).collect();
            let their_set: HashSet<RecordKey> = theirs.iter().map(|entry| entry.key).collect();
            let mut wanted = Vec::new();
            lacked.retain(|key| !their_set.contains(key));
            for entry in &theirs {
                let (mine, held) = (self.assigned_now(self.node.me, entry), our_set.contains(&entry.key));
                if mine && !held {
                    wanted.push((entry.key, entry.length));
                } else if held && !self.assigned_now(self.peer, entry) {
                    self.extra(entry.key);
                }
            }
            for entry in ours.iter().filter(|entry| !their_set.contains(&entry.key)) {
                if self.assigned(self.peer, entry) {
                    self.missing(entry.key);
                }
            }
            complete &= self.pull(&wanted).await?;
            match end {
                Some(end) => after = Some(end),
                None => break,
            }
        }
        for key in lacked {
            if self.node.is_assigned_by_any(self.peer, &key, Partition::of_record(&key.id, self.partitions)) {
                self.missing(key);
            }
        }
        Ok(complete)
    }

    /// By the current layout: what this node has to fetch.
    fn assigned_now(&mut self, node: NodeIndex, entry: &IdEntry) -> bool {
        self.unknown |= self.node.buckets.is_unknown(&entry.key.bucket);
        self.node.is_assigned(node, &entry.key, self.partition(entry))
    }

    /// By any open layout: what a peer is believed to hold.
    fn assigned(&mut self, node: NodeIndex, entry: &IdEntry) -> bool {
        self.unknown |= self.node.buckets.is_unknown(&entry.key.bucket);
        self.node.is_assigned_by_any(node, &entry.key, self.partition(entry))
    }

    fn partition(&self, entry: &IdEntry) -> Partition {
        Partition::of_record(&entry.key.id, self.partitions)
    }

    fn missing(&mut self, key: RecordKey) {
        if self.found.missing.len() < limits::LEDGER_EXCEPTIONS {
            self.found.missing.insert(key);
        } else {
            self.found.overflow = true;
        }
    }

    fn extra(&mut self, key: RecordKey) {
        if self.found.extra.len() < limits::LEDGER_EXCEPTIONS {
            self.found.extra.insert(key);
        }
    }

    async fn their_ids(&self, after: Option<RecordKey>) -> Result<(Vec<IdEntry>, bool), String> {
        let mut client = fetch::peer(self.node, self.peer, ChannelKind::Bulk(1)).ok_or("no such peer")?;
        let request = v1::IdsRequest {
            first: 0,
            last: self.node.layout().partitions().saturating_sub(1),
            after: after.map(v1::RecordKey::from),
            limit: PAGE_MAX as u32,
        };
        let reply = client
            .ids(fetch::with_deadline(request, limits::FETCH_DEADLINE))
            .await
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        let entry = |held: &v1::HeldRecord| {
            let key = RecordKey { bucket: convert::id("bucket", &held.bucket).ok()?, id: convert::id("id", &held.id).ok()? };
            let kind = u8::try_from(held.kind).ok().and_then(RecordKind::from_u8)?;
            Some(IdEntry { key, kind, length: held.length })
        };
        let entries: Option<Vec<IdEntry>> = reply.records.iter().map(entry).collect();
        Ok((entries.ok_or("the peer's answer is malformed")?, reply.more))
    }

    /// This node's own ids from `after` up to `end`, both as in [`afar_store::Store::ids`].
    async fn our_ids(&self, after: Option<RecordKey>, end: Option<RecordKey>) -> Result<Vec<IdEntry>, String> {
        let node = Arc::clone(self.node);
        let read = move || {
            let order = |key: &RecordKey| (key.id, key.bucket);
            let (mut ids, mut from) = (Vec::new(), after);
            loop {
                let page = node.store.ids(IdRange::ALL, from.as_ref(), &PLACED_BY_ID, PAGE_MAX).map_err(|error| error.to_string())?;
                let full = page.len() >= PAGE_MAX;
                from = page.last().map(|entry| entry.key);
                let before = page.len();
                ids.extend(page.into_iter().filter(|entry| end.is_none_or(|end| order(&entry.key) <= order(&end))));
                let beyond = from.zip(end).is_some_and(|(from, end)| order(&from) > order(&end));
                if !full || before == 0 || beyond {
                    return Ok(ids);
                }
            }
        };
        self.node.lifecycle.blocking("ids", read).await.unwrap_or_else(|| Err("reading ids failed".into()))
    }

    /// Fetches records from the peer and stores them. Answers whether all of them are here now.
    async fn pull(&mut self, wanted: &[(RecordKey, u32)]) -> Result<bool, String> {
        if let Some((records, bytes)) = &mut self.expected {
            *records += wanted.len() as u64;
            *bytes += wanted.iter().map(|(_, length)| u64::from(*length)).sum::<u64>();
            return Ok(true);
        }
        let mut complete = true;
        for batch in batches(wanted, self.node.transfer.repair_batch()) {
            let bytes = wanted_bytes(&batch);
            let _permit = self.node.transfer.repair(bytes).await;
            let batch: Vec<RecordKey> = batch.into_iter().map(|(key, _)| key).collect();
            let records = fetch::fetch_from(self.node, self.peer, &batch, ChannelKind::Bulk(1)).await?;
            let good: Vec<Record> = records.into_iter().flatten().collect();
            if good.len() < batch.len() {
                complete = false;
                let got: HashSet<RecordKey> = good.iter().map(Record::key).collect();
                self.node.ledger.own_missing_add(batch.iter().copied().filter(|key| !got.contains(key)));
            }
            let (records, bytes) = (good.len() as u64, good.iter().map(|record| record.body().len() as u64).sum());
            self.node.keep(AppendClass::Repair, good).await.map_err(|error| error.to_string())?;
            self.node.rebalance.fetched(self.peer, records, bytes);
            if self.in_transition() {
                let node = self.node;
                node.rebalance.take(bytes, || node.now()).await;
            }
        }
        Ok(complete)
    }

    /// Versions, in the order of the views; whoever knows one to be settled tells the other.
    async fn versions(&mut self) -> Result<bool, String> {
        let mut after: Option<VersionCursor> = None;
        let mut complete = true;
        let behind = self.node.is_catching_up() && self.expected.is_none();
        loop {
            let (theirs, more) = self.their_versions(after.as_ref()).await?;
            let end = if more { theirs.last().map(VersionRow::cursor) } else { None };
            let ours = self.our_versions(after.clone(), end.clone()).await?;
            let is_here = |row: &VersionRow| row.here;
            let (theirs, their_lost): (Vec<_>, Vec<_>) = theirs.into_iter().partition(is_here);
            let (ours, our_lost): (Vec<_>, Vec<_>) = ours.into_iter().partition(is_here);
            let by_key = |rows: &[VersionRow]| -> HashMap<RecordKey, VersionEntry> {
                rows.iter().map(|row| (name(row), row.entry.clone())).collect()
            };
            let (our_map, their_map) = (by_key(&ours), by_key(&theirs));
            let (mut wanted, mut settled, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
            for row in &theirs {
                let held = our_map.get(&name(row));
                if held.is_none() && behind && self.may_have_stood_in(row) {
                    elsewhere.push(row.clone());
                }
                if held.is_none() && self.version_assigned(self.node.me, row, false) {
                    wanted.push((name(row), 1024));
                } else if held.is_some() && !self.version_assigned(self.peer, row, false) {
                    self.extra(name(row));
                }
                if row.entry.settled && held.is_none_or(|held| !held.settled) {
                    settled.push((row.bucket, row.key.clone(), row.entry.stamp, row.entry.id));
                }
            }
            for row in ours.iter().filter(|row| !their_map.contains_key(&name(row))) {
                if self.version_assigned(self.peer, row, true) {
                    self.missing(name(row));
                }
            }
            let (only_here, unknown) = self.of_absent_holders(&elsewhere).await;
            complete &= !unknown;
            wanted.extend(only_here.into_iter().map(|key| (key, 1024)));
            complete &= self.pull(&wanted).await?;
            self.lost(&their_lost, &our_lost, &their_map);
            self.node.store.settle(settled);
            match end {
                Some(end) => after = Some(end),
                None => return Ok(complete),
            }
        }
    }

    /// Versions of which one of the two only knows that there were such. Whoever may be asked what is current has to know as much,
    /// or an older one would pass for it; and who lacks one of them is not believed to hold it.
    fn lost(&mut self, theirs: &[VersionRow], ours: &[VersionRow], held: &HashMap<RecordKey, VersionEntry>) {
        if self.expected.is_some() {
            return;
        }
        // Of one that is only prepared its holders alone may keep others from disproving it.
        let missed = |row: &&VersionRow| row.entry.settled && !upkeep::is_shadowed(self.node, row);
        let eligible =
            |row: &&VersionRow| self.node.buckets.get(&row.bucket).is_some_and(|bucket| bucket.eligible().contains(&self.node.me));
        self.node.store.note(theirs.iter().filter(missed).filter(eligible).map(note_of).collect());
        let missed: Vec<&VersionRow> = theirs.iter().chain(ours).filter(missed).collect();
        for row in missed {
            if row.entry.object.is_some() && !held.contains_key(&name(row)) && self.version_assigned(self.peer, row, true) {
                self.missing(name(row));
            }
        }
    }

    fn version_assigned(&mut self, node: NodeIndex, row: &VersionRow, by_any: bool) -> bool {
        self.unknown |= self.node.buckets.is_unknown(&row.bucket);
        self.node.buckets.get(&row.bucket).is_some_and(|bucket| {
            let partition = bucket.version_partition(&row.key);
            let assigned = if by_any { bucket.assigned_by_any(partition) } else { bucket.assigned(partition) };
            assigned.contains(&node)
        })
    }

    /// Whether this node may have acknowledged a version that others are assigned, because one of them could not be reached.
    fn may_have_stood_in(&mut self, row: &VersionRow) -> bool {
        let eligible = self.node.buckets.get(&row.bucket).is_some_and(|bucket| bucket.eligible().contains(&self.node.me));
        eligible && !self.version_assigned(self.node.me, row, false)
    }

    /// Of versions that this node is not assigned: those that one of their assigned holders lacks. What this node held when it
    /// stood in for that one is among them, and without it this node's word would prove an absence falsely (rule 3). And
    /// whether there are some of which that cannot be told now.
    async fn of_absent_holders(&self, rows: &[VersionRow]) -> (Vec<RecordKey>, bool) {
        let mut by_holders: BTreeMap<Vec<NodeIndex>, Vec<RecordKey>> = BTreeMap::new();
        let (mut lacking, mut unknown) = (Vec::new(), false);
        for row in rows {
            let Some(bucket) = self.node.buckets.get(&row.bucket) else { continue };
            let mut holders = bucket.assigned(bucket.version_partition(&row.key));
            if holders.is_empty() {
                // The bucket can be placed nowhere at present, so its versions may be anywhere.
                lacking.push(name(row));
                continue;
            }
            holders.retain(|holder| *holder != self.peer);
            by_holders.entry(holders).or_default().push(name(row));
        }
        for (holders, keys) in by_holders {
            for batch in keys.chunks(limits::PROVE_BATCH) {
                for (key, proved) in batch.iter().zip(fetch::prove_all(self.node, &holders, batch).await) {
                    if !proved.absent.is_empty() {
                        lacking.push(*key);
                    } else {
                        unknown |= proved.holders.len() < holders.len();
                    }
                }
            }
        }
        (lacking, unknown)
    }

    async fn their_versions(&self, after: Option<&VersionCursor>) -> Result<(Vec<VersionRow>, bool), String> {
        let mut client = fetch::peer(self.node, self.peer, ChannelKind::Bulk(1)).ok_or("no such peer")?;
        let request = v1::VersionIdsRequest {
            after_bucket: after.map(|after| convert::bytes(after.bucket.as_bytes())).unwrap_or_default(),
            after_key: after.map(|after| after.key.clone()).unwrap_or_default(),
            after_stamp: after.map(|after| after.stamp.as_u64()).unwrap_or_default(),
            after_id: after.map(|after| convert::bytes(after.id.as_bytes())).unwrap_or_default(),
            limit: PAGE_MAX as u32,
            with_lost: true,
        };
        let reply = client
            .version_ids(fetch::with_deadline(request, limits::FETCH_DEADLINE))
            .await
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        let row = |version: v1::KeyedVersion| {
            let entry = VersionEntry::try_from(&version.entry?).ok()?;
            Some(VersionRow { bucket: convert::id("bucket", &version.bucket).ok()?, key: version.key, entry, here: !version.lost })
        };
        let rows: Option<Vec<VersionRow>> = reply.versions.into_iter().map(row).collect();
        Ok((rows.ok_or("the peer's answer is malformed")?, reply.more))
    }

    async fn our_versions(&self, after: Option<VersionCursor>, end: Option<VersionCursor>) -> Result<Vec<VersionRow>, String> {
        let node = Arc::clone(self.node);
        let read = move || {
            let (mut rows, mut from) = (Vec::new(), after);
            loop {
                let page = node.store.known_versions(from.as_ref(), PAGE_MAX).map_err(|error| error.to_string())?;
                let full = page.len() >= PAGE_MAX;
                let last = page.last().map(VersionRow::cursor);
                rows.extend(page.into_iter().filter(|row| end.as_ref().is_none_or(|end| order(&row.cursor()) <= order(end))));
                let beyond = last.as_ref().zip(end.as_ref()).is_some_and(|(last, end)| order(last) > order(end));
                if !full || last.is_none() || beyond {
                    return Ok(rows);
                }
                from = last;
            }
        };
        self.node.lifecycle.blocking("versions", read).await.unwrap_or_else(|| Err("reading versions failed".into()))
    }

    /// What the peer lacked when its ids were read may have arrived since: it is asked once more. What it still lacks is
    /// sent, unless it is catching up and pulls for itself.
    async fn push_missing(&mut self, catching_up: bool) {
        let keys: Vec<RecordKey> = self.found.missing.iter().copied().collect();
        for batch in keys.chunks(limits::PROVE_BATCH) {
            let proofs = fetch::prove_at(self.node, self.peer, batch).await;
            let said = |wanted| batch.iter().zip(&proofs).filter(move |(_, proof)| **proof == wanted).map(|(key, _)| *key);
            said(Proof::Durable).for_each(|key| {
                self.found.missing.remove(&key);
            });
            let lacking: Vec<RecordKey> = said(Proof::Absent).collect();
            if !catching_up {
                self.push(&lacking).await;
            }
        }
    }

    async fn push(&mut self, keys: &[RecordKey]) {
        for key in keys {
            let _permit = self.node.transfer.repair(afar_model::limits::CHUNK_BYTES).await;
            let Ok(Some(record)) = fetch::read_here(self.node, *key).await else { continue };
            for group in outbox::group(std::slice::from_ref(&record)) {
                match copy_to(self.node, self.peer, group, Purpose::Repair, LaneKind::Bulk(1)).await {
                    Ok(_) => {
                        self.found.missing.remove(key);
                    }
                    Err(error) => return tracing::debug!(%error, "a missing copy stays missing"),
                }
            }
        }
    }
}

/// Kinds that are placed by their id, or held by everybody.
const PLACED_BY_ID: [RecordKind; 3] = [RecordKind::Chunk, RecordKind::Manifest, RecordKind::Setting];

fn name(row: &VersionRow) -> RecordKey {
    RecordKey { bucket: row.bucket, id: row.entry.id }
}

fn note_of(row: &VersionRow) -> Note {
    let VersionEntry { stamp, upload, object, inline, settled, received, .. } = row.entry;
    let info = VersionInfo { key: row.key.clone(), stamp, upload, object, inline };
    Note { record: name(row), info, settled, received }
}

/// The order of the views: newest versions first.
fn order(cursor: &VersionCursor) -> (afar_model::id::BucketId, &str, std::cmp::Reverse<afar_model::hlc::Stamp>, RecordId) {
    (cursor.bucket, cursor.key.as_str(), std::cmp::Reverse(cursor.stamp), cursor.id)
}

fn wanted_bytes(batch: &[(RecordKey, u32)]) -> usize {
    batch.iter().map(|(_, length)| *length as usize).sum()
}

fn batches(wanted: &[(RecordKey, u32)], most: usize) -> Vec<Vec<(RecordKey, u32)>> {
    let mut batches: Vec<Vec<(RecordKey, u32)>> = Vec::new();
    let mut bytes = usize::MAX;
    for (key, length) in wanted {
        bytes = bytes.saturating_add(*length as usize);
        match batches.last_mut().filter(|batch| bytes <= most && batch.len() < limits::PULL_RECORDS) {
            Some(batch) => batch.push((*key, *length)),
            None => {
                batches.push(vec![(*key, *length)]);
                bytes = *length as usize;
            }
        }
    }
    batches
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::Alone;

    #[tokio::test]
    async fn nothing_is_expected_any_more_of_a_peer_that_has_left_in_the_middle() {
        let (alone, gone) = (Alone::start().await, NodeIndex(1));
        let node = &alone.node;
        assert!(!node.layout().duty(gone).is_member());
        node.rebalance.expect(gone, 5, 50);
        run(Arc::clone(node), gone, node.lifecycle.token()).await;
        assert_eq!(node.rebalance.to_fetch(), (0, 0));
        alone.stop().await;
    }
}
