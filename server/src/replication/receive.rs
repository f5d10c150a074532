//! The receiving half of replication. What arrives is hashed here before it is stored, and only what this node's own
//! group commit has synced is called durable. One task per request, bounded, so that one slow sync does not hold up
//! the stream.
use super::{
    lane::LaneError,
    send::{Attempt, Copied, Purpose},
};
use crate::{limits, node::Node};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    layout::{Layout, NodeIndex},
    record::{Record, RecordKey, RecordKind, Setting, Version, VersionEntry},
};
use afar_proto::{
    convert::{self, InvalidMessage},
    v1::{self, store_request::Work},
};
use afar_store::{AppendError, CommitError, SyncFailed, Written};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Serves one stream of one peer; answers appear in `replies`.
pub async fn serve(
    node: Arc<Node>,
    from: NodeIndex,
    mut requests: Streaming<v1::StoreRequest>,
    replies: mpsc::Sender<Result<v1::StoreReply, Status>>,
) {
    let session = Arc::new(Session { node, from, written: Mutex::default() });
    loop {
        let request = tokio::select! {
            () = session.node.lifecycle.stopping() => return,
            request = requests.message() => match request { Ok(Some(request)) => request, Ok(None) | Err(_) => return },
        };
        // All streams together are bounded (rule 29). Who waits here waits for this node's disk alone, so nobody waits for ever.
        let Some(permit) = session.node.transfer.arriving(weight(&request)).await else { return };
        let (session, replies) = (Arc::clone(&session), replies.clone());
        // In a task of its own: a stream that breaks must not tear what is being written.
        session.node.clone().lifecycle.spawn_brief("receive", async move {
            if let Some(reply) = session.handle(request).await {
                let _ = replies.send(Ok(reply)).await;
            }
            drop(permit);
        });
    }
}

fn weight(request: &v1::StoreRequest) -> usize {
    match &request.work {
        Some(Work::Records(records)) => records.records.iter().map(|record| record.body.len()).sum(),
        _ => 0,
    }
}

/// Stores records on this very node, durably, as a peer would.
///
/// # Errors
/// As a peer would refuse.
pub async fn store_here(node: &Arc<Node>, records: &[Record], purpose: Purpose, attempt: Attempt<'_>) -> Result<Vec<Copied>, LaneError> {
    let refused = |Failure { reason, detail }| LaneError::Refused { reason: reason.to_owned(), detail };
    let arrived = records.iter().map(|record| Arrived::of(node, record.clone(), purpose, attempt)).collect();
    let stored = store_arrived(node, arrived, purpose).await.map_err(refused)?;
    stored.into_iter().map(|outcome| outcome.map_err(refused)).collect()
}

/// Makes durable what may be stored, all with one sync; the rest keeps its reason.
async fn store_arrived(
    node: &Arc<Node>,
    arrived: Vec<Result<Arrived, Failure>>,
    purpose: Purpose,
) -> Result<Vec<Result<Copied, Failure>>, Failure> {
    let records: Vec<Record> =
        arrived.iter().flatten().filter(|arrived| arrived.is_new_attempt()).map(|arrived| arrived.record.clone()).collect();
    let mut durable = node.keep(purpose.class(), records).await?.into_iter();
    let outcome = |arrived: Result<Arrived, Failure>| {
        let arrived = arrived?;
        let durable = if arrived.is_new_attempt() { durable.next() } else { None };
        Ok(arrived.copied(durable.is_some(), durable.is_some_and(|durable| durable.deduplicated())))
    };
    Ok(arrived.into_iter().map(outcome).collect())
}

struct Session {
    node: Arc<Node>,
    from: NodeIndex,
    /// What was written on this stream and not synced yet.
    written: Mutex<BTreeMap<u64, Vec<Written>>>,
}

/// Why a request failed as a whole; the reasons are those of the message.
struct Failure {
    reason: &'static str,
    detail: String,
}

impl Failure {
    fn new(reason: &'static str, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

impl From<InvalidMessage> for Failure {
    fn from(error: InvalidMessage) -> Self {
        Self::new("corrupt", error)
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full { .. } => Self::new("full", error),
            AppendError::ReadOnly(_) => Self::new("read_only", error),
            AppendError::TooLarge { .. } => Self::new("corrupt", error),
            AppendError::Closed => Self::new("internal", error),
        }
    }
}

impl From<SyncFailed> for Failure {
    fn from(error: SyncFailed) -> Self {
        Self::new("read_only", error)
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Append(error) => error.into(),
            CommitError::Sync(error) => error.into(),
        }
    }
}

impl Session {
    async fn handle(&self, request: v1::StoreRequest) -> Option<v1::StoreReply> {
        let sequence = request.sequence;
        let synced = match &request.work {
            Some(Work::Records(records)) => records.sync,
            other => matches!(other, Some(Work::Sync(_))),
        };
        // Before, so that nothing is taken; and after, for who is told OK must have been the one of that name until then: whoever
        // takes its place learns of everything that is here when it is met, and of nothing that comes later.
        let from_them = || match self.node.peers.is_from(self.from, &request.incarnation) {
            true => Ok(()),
            false => Err(Failure::new("superseded", "other disks have taken the place of the sender's")),
        };
        let result = match request.work {
            Some(Work::Records(_) | Work::Sync(_)) if from_them().is_err() => from_them().map(|()| Vec::new()),
            Some(Work::Records(records)) => self.store(sequence, records).await,
            Some(Work::Sync(sync)) => self.sync(&sync.sequences).await.map(|()| Vec::new()),
            Some(Work::Settle(_) | Work::Abandon(_)) if from_them().is_err() => return None,
            Some(Work::Settle(settle)) => {
                self.settle(settle);
                return None;
            }
            Some(Work::Abandon(abandon)) => {
                self.abandon(abandon).await;
                return None;
            }
            None => Err(Failure::new("corrupt", "the request is empty, or made by a later program")),
        };
        let incarnation = self.node.peers.own_incarnation();
        Some(match result.and_then(|records| from_them().map(|()| records)) {
            Ok(records) => {
                let positions = if synced { self.node.positions() } else { Vec::new() };
                v1::StoreReply { sequence, records, failure: None, positions, incarnation }
            }
            Err(Failure { reason, detail }) => {
                tracing::warn!(from = self.node.layout().node_name(self.from), reason, detail, "refused records");
                let failure = Some(v1::StoreFailure { reason: reason.into(), detail });
                v1::StoreReply { sequence, failure, incarnation, ..v1::StoreReply::default() }
            }
        })
    }

    async fn store(&self, sequence: u64, request: v1::StoreRecords) -> Result<Vec<v1::StoredRecord>, Failure> {
        self.accept_layout(&request)?;
        let purpose = Purpose::from_name(&request.class);
        let supersedes: Result<Vec<RecordId>, InvalidMessage> = request.supersedes.iter().map(|id| convert::id("supersedes", id)).collect();
        let supersedes = supersedes?;
        let node = Arc::clone(&self.node);
        let heavy = request.records.iter().any(|record| record.body.len() > limits::HASH_INLINE_BYTES);
        let check = move || {
            let attempt = Attempt { own: &supersedes, create: request.create };
            request.records.into_iter().map(|record| Arrived::check(&node, record, purpose, attempt)).collect::<Vec<_>>()
        };
        let arrived =
            if heavy { tokio::task::spawn_blocking(check).await.map_err(|error| Failure::new("internal", error))? } else { check() };
        let ids: Vec<Option<RecordId>> = arrived.iter().map(|arrived| arrived.as_ref().ok().map(|arrived| arrived.record.id())).collect();
        if request.sync {
            let stored = store_arrived(&self.node, arrived, purpose).await?;
            return Ok(ids.into_iter().zip(stored).map(|(id, outcome)| stored_record(id, outcome)).collect());
        }
        // Chunks of an upload: all or nothing, for they are synced together.
        let arrived = arrived.into_iter().collect::<Result<Vec<_>, Failure>>()?;
        let records: Vec<Record> = arrived.iter().map(|arrived| arrived.record.clone()).collect();
        let written = self.node.store.append(purpose.class(), records).await?;
        let stored = written.iter().zip(arrived).map(|(written, arrived)| Ok(arrived.copied(false, written.deduplicated())));
        let stored = ids.into_iter().zip(stored).map(|(id, outcome)| stored_record(id, outcome)).collect();
        let mut kept = self.written.lock();
        kept.insert(sequence, written);
        if kept.len() > limits::LANE_WRITTEN {
            // An upload that was given up never asks; a sync of what is forgotten fails, which is safe.
            kept.pop_first();
        }
        Ok(stored)
    }

    /// Rule 21: what was placed by layouts that are all closed here is refused, and so is what was placed by none that is known
    /// here; the sender, or this node, has one to fetch.
    fn accept_layout(&self, request: &v1::StoreRecords) -> Result<(), Failure> {
        let (open, layout) = (self.node.layouts.open(), self.node.layout());
        let theirs = Theirs::of(request);
        if !layout.duty(self.from).is_member() {
            return Err(Failure::new("layout", "the layout says that the sender is out of service"));
        }
        // What is said to everybody must be said to everybody that this node knows of.
        let to_all = |record: &v1::Record| record.kind == RecordKind::Setting as u32;
        let knows_all = theirs.name(&layout) || request.class == Purpose::Repair.name();
        if open.layouts().any(|layout| theirs.name(layout)) && (knows_all || !request.records.iter().any(to_all)) {
            return Ok(());
        }
        self.node.layouts_differ(self.from);
        let ours: Vec<String> = open.layouts().map(|layout| called(layout.version(), layout.hash())).collect();
        Err(Failure::new("layout", format!("the sender writes by layout {}, this node by {}", theirs.words(), ours.join(" and "))))
    }

    async fn sync(&self, sequences: &[u64]) -> Result<(), Failure> {
        let mut tokens = Vec::new();
        {
            let mut written = self.written.lock();
            for sequence in sequences {
                tokens.extend(
                    written.remove(sequence).ok_or_else(|| Failure::new("internal", format!("nothing was written as {sequence}")))?,
                );
            }
        }
        self.node.store.sync(&tokens).await?;
        Ok(())
    }

    fn settle(&self, settle: v1::SettleVersions) {
        let mut versions = Vec::with_capacity(settle.versions.len());
        for settled in settle.versions {
            let Some(version) = settled.version else { continue };
            let (Ok(bucket), Ok(id)) = (convert::id::<BucketId>("bucket", &version.bucket), convert::id::<RecordId>("id", &version.id))
            else {
                continue;
            };
            let layout = self.node.layout();
            let named = |names: &[String]| names.iter().filter_map(|name| layout.node_named(name)).collect::<Vec<_>>();
            self.node.note_holders(RecordKey { bucket, id }, &version.key, &named(&settled.holders), &named(&settled.lacking));
            versions.push((bucket, version.key, Stamp::from_u64(version.stamp), id));
        }
        self.node.store.settle(versions);
    }

    /// Only a version that nobody has proved, and only if it is younger than its put can be: its coordinator says that
    /// it never acknowledged it.
    async fn abandon(&self, abandon: v1::AbandonVersion) {
        let Some(version) = abandon.version else { return };
        let (Ok(bucket), Ok(id)) = (convert::id::<BucketId>("bucket", &version.bucket), convert::id::<RecordId>("id", &version.id)) else {
            return;
        };
        self.node.discard(RecordKey { bucket, id }, &version.key, Stamp::from_u64(version.stamp)).await;
    }
}

/// By which layouts a sender writes. Two layouts may have one version, if two operators each made a child of one parent; only
/// a sender that is older than the hashes on the wire is taken by the versions.
struct Theirs<'a> {
    versions: &'a [u64],
    hashes: &'a [Bytes],
}

impl<'a> Theirs<'a> {
    fn of(request: &'a v1::StoreRecords) -> Self {
        let alone = std::slice::from_ref(&request.layout_version);
        let versions = if request.open_versions.is_empty() { alone } else { &request.open_versions };
        Self { versions, hashes: &request.open_layouts }
    }

    /// Whether it writes by this one.
    fn name(&self, layout: &Layout) -> bool {
        match self.hashes {
            [] => self.versions.contains(&layout.version()),
            hashes => hashes.iter().any(|hash| hash[..] == layout.hash()[..]),
        }
    }

    fn words(&self) -> String {
        let called =
            |(index, version): (usize, &u64)| self.hashes.get(index).map_or_else(|| version.to_string(), |hash| called(*version, hash));
        self.versions.iter().enumerate().map(called).collect::<Vec<_>>().join(" and ")
    }
}

fn called(version: u64, hash: &[u8]) -> String {
    format!("{version}-{}", hex::encode(hash.get(..4).unwrap_or(hash)))
}

/// A record that was hashed, and what its key held when it arrived.
struct Arrived {
    record: Record,
    newest_stamp: Stamp,
    catching_up: bool,
    same_upload: Option<VersionEntry>,
    same_name: Option<BucketId>,
}

impl Arrived {
    fn check(node: &Node, record: v1::Record, purpose: Purpose, attempt: Attempt<'_>) -> Result<Self, Failure> {
        Self::of(node, Record::try_from(record)?, purpose, attempt)
    }

    fn of(node: &Node, record: Record, purpose: Purpose, attempt: Attempt<'_>) -> Result<Self, Failure> {
        let mut arrived = Self { record, newest_stamp: Stamp::ZERO, catching_up: false, same_upload: None, same_name: None };
        arrived.may_be_here(node, purpose)?;
        match arrived.record.kind() {
            RecordKind::Version if purpose != Purpose::Repair => arrived.look_up_key(node, attempt)?,
            RecordKind::Setting => arrived.look_up_name(node)?,
            _ => {}
        }
        Ok(arrived)
    }

    /// Rule 7: nothing is taken that the bucket's policy does not allow here. Nothing new is taken for a bucket that is
    /// closed or gone. A bucket that is not known yet says nothing.
    fn may_be_here(&self, node: &Node, purpose: Purpose) -> Result<(), Failure> {
        let id = self.record.key().bucket;
        if purpose != Purpose::Repair && node.buckets.takes_nothing(&id) {
            return Err(Failure::new("gone", "the bucket is being made or removed, or was removed"));
        }
        match node.buckets.get(&id) {
            Some(bucket) if !bucket.eligible().contains(&node.me) => {
                Err(Failure::new("policy", format!("the policy of bucket {:?} allows no copy here", bucket.name)))
            }
            _ => Ok(()),
        }
    }

    /// Rules 4 and 5: what the coordinator must know before it acknowledges. Rule 15: whether it may be stored at all.
    fn look_up_key(&mut self, node: &Node, attempt: Attempt<'_>) -> Result<(), Failure> {
        let (version, _) = Version::decode_description(self.record.body()).map_err(|error| Failure::new("corrupt", error))?;
        if let Some(trouble) = node.clock_trouble() {
            return Err(Failure::new("clock", trouble));
        }
        node.observe(version.stamp);
        let entries = node
            .store
            .versions(&version.bucket, &version.key, None, limits::VERSIONS_PAGE)
            .map_err(|error| Failure::new("not_ready", error))?;
        if attempt.create {
            if !node.claims.is_held(&version.bucket, &version.key, version.upload) {
                return Err(Failure::new("claim", "the put has no claim on the key here any more"));
            }
            let settled = entries.iter().find(|entry| entry.settled && entry.upload != version.upload);
            if settled.is_some_and(|entry| entry.object.is_some()) {
                return Err(Failure::new("claim", "somebody else has made the key meanwhile"));
            }
        }
        self.catching_up = node.is_catching_up();
        self.newest_stamp = entries.first().map_or(version.stamp, |newest| newest.stamp.max(version.stamp));
        let earlier =
            |entry: &VersionEntry| entry.upload == version.upload && entry.id != self.record.id() && !attempt.own.contains(&entry.id);
        self.same_upload = entries.into_iter().find(earlier);
        Ok(())
    }

    fn look_up_name(&mut self, node: &Node) -> Result<(), Failure> {
        let setting = Setting::decode(self.record.body()).map_err(|error| Failure::new("corrupt", error))?;
        node.observe(setting.stamp());
        let named = match setting {
            Setting::BucketCreated { name, .. } => Some((name, BucketId::from(self.record.id()))),
            Setting::BucketRenamed { bucket, name, .. } => Some((name, bucket)),
            _ => None,
        };
        self.same_name = named.and_then(|(name, id)| node.buckets.other_named(&name, &id));
        Ok(())
    }

    /// Another attempt of a put that has made its version already is not stored: it would shadow what came between.
    const fn is_new_attempt(&self) -> bool {
        self.same_upload.is_none()
    }

    fn copied(self, durable: bool, deduplicated: bool) -> Copied {
        let Self { newest_stamp, catching_up, same_upload, same_name, .. } = self;
        Copied { durable, deduplicated, newest_stamp, catching_up, same_upload, same_name }
    }
}

fn stored_record(id: Option<RecordId>, outcome: Result<Copied, Failure>) -> v1::StoredRecord {
    let id = id.map(|id| convert::bytes(id.as_bytes())).unwrap_or_default();
    match outcome {
        Ok(copied) => v1::StoredRecord {
            id,
            durable: copied.durable,
            deduplicated: copied.deduplicated,
            newest_stamp: copied.newest_stamp.as_u64(),
            catching_up: copied.catching_up,
            same_upload: copied.same_upload.as_ref().map(v1::VersionEntry::from),
            same_name: copied.same_name.map(|bucket| convert::bytes(bucket.as_bytes())),
            refused: None,
        },
        Err(Failure { reason, detail }) => {
            let refused = Some(v1::StoreFailure { reason: reason.to_owned(), detail });
            v1::StoredRecord { id, refused, ..v1::StoredRecord::default() }
        }
    }
}
