//! The receiving half of replication. What arrives is hashed here before it is stored, and only what this node's own
//! group commit has synced is called durable. One task per request, bounded, so that one slow sync does not hold up
//! the stream.
use super::{
    lane::LaneError,
    send::{Copied, Purpose},
};
use crate::{limits, node::Node};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    layout::NodeIndex,
    record::{Record, RecordKind, Setting, Version, VersionEntry},
};
use afar_proto::{
    convert::{self, InvalidMessage},
    v1::{self, store_request::Work},
};
use afar_store::{AppendClass, AppendError, CommitError, Removal, SyncFailed, Written};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};

/// Serves one stream of one peer; answers appear in `replies`.
pub async fn serve(
    node: Arc<Node>,
    from: NodeIndex,
    mut requests: Streaming<v1::StoreRequest>,
    replies: mpsc::Sender<Result<v1::StoreReply, Status>>,
) {
    let session = Arc::new(Session { node, from, written: Mutex::default() });
    let room = Arc::new(Semaphore::new(limits::RECEIVE_BYTES as usize));
    loop {
        let request = tokio::select! {
            () = session.node.lifecycle.stopping() => return,
            request = requests.message() => match request { Ok(Some(request)) => request, Ok(None) | Err(_) => return },
        };
        let weight = weight(&request).clamp(limits::RECEIVE_WEIGHT_MIN, limits::RECEIVE_BYTES);
        let Ok(permit) = Arc::clone(&room).acquire_many_owned(weight).await else { return };
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

fn weight(request: &v1::StoreRequest) -> u32 {
    match &request.work {
        Some(Work::Records(records)) => {
            records.records.iter().map(|record| u32::try_from(record.body.len()).unwrap_or(u32::MAX)).fold(0, u32::saturating_add)
        }
        _ => 0,
    }
}

/// Stores records on this very node, durably, as a peer would.
///
/// # Errors
/// As a peer would refuse.
pub async fn store_here(node: &Arc<Node>, records: Vec<Record>, purpose: Purpose) -> Result<Vec<Copied>, LaneError> {
    let refused = |Failure { reason, detail }| LaneError::Refused { reason: reason.to_owned(), detail };
    let arrived = records
        .iter()
        .cloned()
        .map(|record| Arrived::of(node, record, purpose.class()))
        .collect::<Result<Vec<_>, Failure>>()
        .map_err(refused)?;
    let durable = node.store.commit(purpose.class(), records).await.map_err(|error| refused(error.into()))?;
    node.after_storing(arrived.iter().map(|arrived| &arrived.record));
    Ok(durable.iter().zip(arrived).map(|(durable, arrived)| arrived.copied(durable.deduplicated())).collect())
}

struct Session {
    node: Arc<Node>,
    from: NodeIndex,
    /// What was written on this stream and not synced yet.
    written: Mutex<HashMap<u64, Vec<Written>>>,
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
        let result = match request.work {
            Some(Work::Records(records)) => self.store(sequence, records).await,
            Some(Work::Sync(sync)) => self.sync(&sync.sequences).await.map(|()| Vec::new()),
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
        Some(match result {
            Ok(records) => v1::StoreReply { sequence, records, failure: None },
            Err(Failure { reason, detail }) => {
                tracing::warn!(from = self.node.layout.node_name(self.from), reason, detail, "refused records");
                v1::StoreReply { sequence, records: Vec::new(), failure: Some(v1::StoreFailure { reason: reason.into(), detail }) }
            }
        })
    }

    async fn store(&self, sequence: u64, request: v1::StoreRecords) -> Result<Vec<v1::StoredRecord>, Failure> {
        let ours = self.node.layout.version();
        if request.layout_version != ours {
            return Err(Failure::new("layout", format!("the sender has layout {}, this node has {ours}", request.layout_version)));
        }
        let class = if request.class == "client" { AppendClass::Client } else { AppendClass::Repair };
        let node = Arc::clone(&self.node);
        let heavy = request.records.iter().any(|record| record.body.len() > limits::HASH_INLINE_BYTES);
        let arrived =
            move || request.records.into_iter().map(|record| Arrived::check(&node, record, class)).collect::<Result<Vec<_>, Failure>>();
        let arrived =
            if heavy { tokio::task::spawn_blocking(arrived).await.map_err(|error| Failure::new("internal", error))?? } else { arrived()? };
        let records: Vec<Record> = arrived.iter().map(|arrived| arrived.record.clone()).collect();
        let stored = if request.sync {
            let durable = self.node.store.commit(class, records).await?;
            self.node.after_storing(arrived.iter().map(|arrived| &arrived.record));
            durable.iter().zip(arrived).map(|(durable, arrived)| arrived.stored(true, durable.deduplicated())).collect()
        } else {
            let written = self.node.store.append(class, records).await?;
            let stored = written.iter().zip(arrived).map(|(written, arrived)| arrived.stored(false, written.deduplicated())).collect();
            self.written.lock().insert(sequence, written);
            stored
        };
        Ok(stored)
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
        let versions = settle.versions.iter().filter_map(|version| {
            let bucket: BucketId = convert::id("bucket", &version.bucket).ok()?;
            let id: RecordId = convert::id("id", &version.id).ok()?;
            Some((bucket, version.key.clone(), Stamp::from_u64(version.stamp), id))
        });
        self.node.store.settle(versions.collect());
    }

    /// Only a version that nobody has proved, and only if it is younger than its put can be: its coordinator says that
    /// it never acknowledged it.
    async fn abandon(&self, abandon: v1::AbandonVersion) {
        let Some(version) = abandon.version else { return };
        let (Ok(bucket), Ok(id)) = (convert::id::<BucketId>("bucket", &version.bucket), convert::id::<RecordId>("id", &version.id)) else {
            return;
        };
        let entries = self.node.store.versions(&bucket, &version.key, limits::VERSIONS_PER_KEY).unwrap_or_default();
        if entries.iter().any(|entry| entry.id == id && !entry.settled) {
            let key = afar_model::record::RecordKey { bucket, id };
            if let Err(error) = self.node.store.remove(vec![key], Removal::Discarded).await {
                tracing::warn!(%error, "an abandoned version stays");
            }
        }
    }
}

/// A record that was hashed, and what its key held when it arrived.
struct Arrived {
    record: Record,
    newest_stamp: Stamp,
    same_upload: Option<VersionEntry>,
    same_name: Option<BucketId>,
}

impl Arrived {
    fn check(node: &Node, record: v1::Record, class: AppendClass) -> Result<Self, Failure> {
        Self::of(node, Record::try_from(record)?, class)
    }

    fn of(node: &Node, record: Record, class: AppendClass) -> Result<Self, Failure> {
        let mut arrived = Self { record, newest_stamp: Stamp::ZERO, same_upload: None, same_name: None };
        arrived.may_be_here(node)?;
        match arrived.record.kind() {
            RecordKind::Version if class == AppendClass::Client => arrived.look_up_key(node)?,
            RecordKind::Setting => arrived.look_up_name(node)?,
            _ => {}
        }
        Ok(arrived)
    }

    /// Rule 7: nothing is taken that the bucket's policy does not allow here. A bucket that is not known yet says nothing.
    fn may_be_here(&self, node: &Node) -> Result<(), Failure> {
        match node.buckets.get(&self.record.key().bucket) {
            Some(bucket) if !bucket.eligible(&node.layout).contains(&node.me) => {
                Err(Failure::new("policy", format!("the policy of bucket {:?} allows no copy here", bucket.name)))
            }
            _ => Ok(()),
        }
    }

    /// Rules 4 and 5: what the coordinator must know before it acknowledges.
    fn look_up_key(&mut self, node: &Node) -> Result<(), Failure> {
        let (version, _) = Version::decode_description(self.record.body()).map_err(|error| Failure::new("corrupt", error))?;
        if let Some(trouble) = node.clock_trouble() {
            return Err(Failure::new("clock", trouble));
        }
        node.observe(version.stamp);
        let entries = node
            .store
            .versions(&version.bucket, &version.key, limits::VERSIONS_PER_KEY)
            .map_err(|error| Failure::new("not_ready", error))?;
        self.newest_stamp = entries.first().map_or(version.stamp, |newest| newest.stamp.max(version.stamp));
        self.same_upload = entries.into_iter().find(|entry| entry.upload == version.upload && entry.id != self.record.id());
        Ok(())
    }

    fn look_up_name(&mut self, node: &Node) -> Result<(), Failure> {
        let setting = Setting::decode(self.record.body()).map_err(|error| Failure::new("corrupt", error))?;
        node.observe(setting.stamp());
        if let Setting::BucketCreated { name, .. } = setting {
            let id = BucketId::from(self.record.id());
            self.same_name = node.buckets.find(&name).map(|bucket| bucket.id).filter(|other| *other != id);
        }
        Ok(())
    }

    fn copied(self, deduplicated: bool) -> Copied {
        Copied { deduplicated, newest_stamp: self.newest_stamp, same_upload: self.same_upload, same_name: self.same_name }
    }

    fn stored(self, durable: bool, deduplicated: bool) -> v1::StoredRecord {
        v1::StoredRecord {
            id: convert::bytes(self.record.id().as_bytes()),
            durable,
            deduplicated,
            newest_stamp: self.newest_stamp.as_u64(),
            same_upload: self.same_upload.as_ref().map(v1::VersionEntry::from),
            same_name: self.same_name.map(|bucket| convert::bytes(bucket.as_bytes())),
        }
    }
}
