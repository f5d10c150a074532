//! A put: bytes come in, chunks go to this node's log and to far ones at the same time, and when all of it is durable
//! far enough apart the version is made current.
//!
//! ```text
//! pieces ─ hash ─┬─ own log (written) ────────┐
//!                └─ lanes to the others ──────┴─ sync everywhere ─┬─ settled ─ OK
//!                                   version (prepared) ── durable ┘
//! ```
//! Everything is bounded: a put holds the permit of one chunk before its first byte (rule 29), and more only while they
//! are to be had, so that every admitted put can always go on. Of every chunk some 44 bytes are kept until the end.
use super::{
    buckets::Bucket,
    claims::{self, Claim, Claimed},
    commit::{self, Commit, Committed},
    error::ObjectError,
    holders::Holders,
    versions::{self, Listed},
};
use crate::{
    budget::Permit,
    cluster::keyring::Caller,
    limits,
    node::Node,
    replication::{
        fetch,
        lane::{Generation, LaneKind, Stored},
        send::{Purpose, copy_to},
    },
};
use afar_model::{
    id::{ObjectId, RecordId, UploadId},
    layout::NodeIndex,
    limits::{CHUNK_BYTES, INLINE_BYTES_MAX, MANIFEST_CHUNKS_MAX, MANIFESTS_MAX},
    placement::{Geography, Partition, sites_of},
    policy::Durability,
    record::{ChunkRef, Chunker, Content, DIRECT_CHUNKS_MAX, Data, Manifest, Record, RecordKey, RecordKind, Right, Version, VersionEntry},
    units::Metres,
};
use afar_proto::v1;
use afar_store::Written;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::task::JoinSet;

/// What a put is about.
#[derive(Debug, Clone)]
pub struct Intent {
    /// The bucket's name, or `@` and its id.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The client's name for this put (rule 5).
    pub upload: UploadId,
    /// The user's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Length in bytes, if announced.
    pub size: Option<u64>,
    /// An earlier attempt may have reached a node.
    pub retry: bool,
}

/// What a piece of the content is.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes: exactly one chunk, but for the last.
    Data(Bytes),
    /// A chunk that an earlier attempt brought.
    Present(ChunkRef),
}

/// What was acknowledged.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The content's id; `None` for a delete marker.
    pub object: Option<ObjectId>,
    /// The bucket's name.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The version record.
    pub version: RecordId,
    /// Length in bytes.
    pub size: u64,
    /// What is promised.
    pub durability: Durability,
    /// Sites whose copies are counted.
    pub sites: Vec<String>,
    /// The greatest distance between two of them.
    pub distance: Metres,
    /// Bytes that every holder had.
    pub deduplicated: u64,
    /// Why the level is lower than the policy's.
    pub note: String,
}

/// A put under way.
pub struct Put {
    node: Arc<Node>,
    /// The caller may add, never replace (rule 15).
    append_only: bool,
    /// Then, in the end: its claim on the key.
    claim: Option<Claim>,
    /// Why its version is sent.
    purpose: Purpose,
    /// Who said that it has no room.
    full: Option<String>,
    bucket: Arc<Bucket>,
    intent: Intent,
    hasher: blake3::Hasher,
    size: u64,
    first: Option<Bytes>,
    chunks: Vec<ChunkRef>,
    /// For each chunk the nodes that have it, as bits of `table`.
    placed: Vec<u64>,
    deduplicated: u64,
    /// Nodes that this put has to do with; at most 64.
    table: Vec<NodeIndex>,
    destinations: BTreeMap<NodeIndex, Destination>,
    failed: BTreeSet<NodeIndex>,
    /// [`crate::cluster::peers::Peers::replacements`] when it began.
    replacements: u64,
    pieces: JoinSet<Placed>,
    /// Whether a chunk in flight is covered by the base permit, so that there is no room for another.
    full_up: bool,
    base: Permit,
}

impl std::fmt::Debug for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Put")
            .field("bucket", &self.bucket.name)
            .field("key", &self.intent.key)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What a node has written for this put and not yet synced.
#[derive(Default)]
struct Destination {
    here: Vec<Written>,
    generation: Option<Generation>,
    sequences: Vec<u64>,
}

/// What became of one chunk at one node.
enum At {
    Here(Written),
    There(Stored),
    /// Verified and durable already.
    Proved,
    Failed(String),
}

/// Content of one piece.
enum Only {
    /// It fits into the version.
    Inline(Bytes),
    /// It is a chunk.
    Chunk(Record),
}

struct Placed {
    index: usize,
    length: u32,
    at: Vec<(NodeIndex, At)>,
    /// It was covered by the base permit.
    base: bool,
}

impl Put {
    /// Checks the intent. `base`: the permit of [`super::read::admit`], taken before the first byte came.
    ///
    /// # Errors
    /// If the put can be refused before its first byte.
    pub async fn begin(node: &Arc<Node>, caller: &Caller, intent: Intent, base: Permit) -> Result<Self, ObjectError> {
        afar_model::record::check_key(&intent.key)?;
        let metadata: usize = intent.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if metadata > afar_model::limits::METADATA_BYTES_MAX {
            return Err(ObjectError::Invalid(format!(
                "{metadata} bytes of metadata: the most is {}",
                afar_model::limits::METADATA_BYTES_MAX
            )));
        }
        let bucket = node.bucket(&intent.bucket)?;
        let may_overwrite = caller.may(Right::Write, &bucket.id);
        if !may_overwrite && !caller.may(Right::Append, &bucket.id) {
            return Err(ObjectError::Forbidden("write to this bucket"));
        }
        if let Some(trouble) = node.clock_trouble() {
            return Err(ObjectError::unavailable(format!("this node refuses writes: {trouble}")));
        }
        // Refused before the first byte if no copy can be far away now.
        commit::feasible(node, &bucket, bucket.version_partition(&intent.key)).await?;
        if !may_overwrite && differs(node, &bucket, &intent).await? {
            return Err(append_only(&intent.key));
        }
        Ok(Self {
            node: Arc::clone(node),
            append_only: !may_overwrite,
            claim: None,
            purpose: Purpose::Client,
            full: None,
            bucket,
            intent,
            hasher: blake3::Hasher::new(),
            size: 0,
            first: None,
            chunks: Vec::new(),
            placed: Vec::new(),
            deduplicated: 0,
            table: Vec::new(),
            destinations: BTreeMap::new(),
            failed: BTreeSet::new(),
            replacements: node.peers.replacements(),
            pieces: JoinSet::new(),
            full_up: false,
            base,
        })
    }

    /// Takes the next piece. The first is held back until it is known whether it is all.
    ///
    /// # Errors
    /// If the pieces are not as the contract says, or nothing can be stored any more.
    pub async fn piece(&mut self, piece: Piece) -> Result<(), ObjectError> {
        if !self.size.is_multiple_of(CHUNK_BYTES as u64) {
            return Err(ObjectError::Invalid(format!("a piece before the last was shorter than {CHUNK_BYTES} bytes")));
        }
        if let Some(first) = self.first.take() {
            self.chunk(first, BTreeSet::new()).await?;
        }
        let (data, proved) = match piece {
            Piece::Data(data) => (data, BTreeSet::new()),
            Piece::Present(chunk) => self.present(chunk).await?,
        };
        if data.is_empty() || data.len() > CHUNK_BYTES {
            return Err(ObjectError::Invalid(format!("a piece of {} bytes: must be 1 to {CHUNK_BYTES}", data.len())));
        }
        self.size += data.len() as u64;
        if self.chunks.is_empty() && proved.is_empty() {
            self.first = Some(data);
            return Ok(());
        }
        self.chunk(data, proved).await
    }

    /// Resume: the bytes of a chunk that is said to be stored, and the nodes that prove it.
    async fn present(&self, chunk: ChunkRef) -> Result<(Bytes, BTreeSet<NodeIndex>), ObjectError> {
        let key = RecordKey { bucket: self.bucket.id, id: chunk.id };
        let partition = Partition::of_record(&chunk.id, self.node.layout().partitions());
        let chosen = commit::targets(&self.node, &self.bucket, partition, &self.failed)?;
        let proved = fetch::prove_all(&self.node, &chosen.nodes, std::slice::from_ref(&key)).await;
        let proved = proved.into_iter().flat_map(|proved| proved.holders).collect();
        let record = fetch::read_anywhere(&self.node, key, partition, &[]).await;
        let record = record.map_err(|_| ObjectError::unavailable(format!("chunk {} is not here any more: send it again", chunk.id)))?;
        if record.body().len() != chunk.length as usize || record.kind() != RecordKind::Chunk {
            return Err(ObjectError::Invalid(format!("chunk {} does not have {} bytes", chunk.id, chunk.length)));
        }
        Ok((record.into_body(), proved))
    }

    /// Hashes one chunk into the whole, names it, and sends it on its way.
    async fn chunk(&mut self, data: Bytes, proved: BTreeSet<NodeIndex>) -> Result<(), ObjectError> {
        if self.chunks.len() >= MANIFEST_CHUNKS_MAX * MANIFESTS_MAX {
            return Err(ObjectError::Invalid(format!("the object is larger than {} GiB", MANIFEST_CHUNKS_MAX * MANIFESTS_MAX / 1024)));
        }
        let record = self.hash(data).await?;
        self.follow();
        let length = u32::try_from(record.body().len()).unwrap_or(u32::MAX);
        let index = self.chunks.len();
        self.chunks.push(ChunkRef { id: record.id(), length });
        self.placed.push(0);
        let partition = Partition::of_record(&record.id(), self.node.layout().partitions());
        let chosen = commit::targets(&self.node, &self.bucket, partition, &self.failed).map_err(|error| self.because(error))?;
        let assigned = self.bucket.targets(partition);
        let permit = self.admit().await?;
        let base = permit.is_none();
        self.full_up |= base;
        let (node, lane) = (Arc::clone(&self.node), self.lane());
        self.pieces.spawn(async move {
            let sends = chosen.nodes.iter().map(|target| {
                let purpose = if assigned.contains(target) { Purpose::Client } else { Purpose::Hint };
                let (node, record, proved) = (&node, &record, proved.contains(target));
                async move { (*target, if proved { At::Proved } else { write(node, *target, record, purpose, lane).await }) }
            });
            let at = futures_util::future::join_all(sends).await;
            drop(permit);
            Placed { index, length, at, base }
        });
        while let Some(done) = self.pieces.try_join_next() {
            self.note(done.map_err(|error| ObjectError::Internal(error.to_string()))?);
        }
        if self.chunks.len().is_multiple_of(limits::SYNC_EVERY_CHUNKS) {
            self.drain().await?;
            self.sync_all().await;
        }
        Ok(())
    }

    async fn hash(&mut self, data: Bytes) -> Result<Record, ObjectError> {
        let (mut hasher, bucket) = (std::mem::take(&mut self.hasher), self.bucket.id);
        let work = move || {
            hasher.update(&data);
            (hasher, Record::new(RecordKind::Chunk, bucket, data))
        };
        let (hasher, record) = tokio::task::spawn_blocking(work).await.map_err(|error| ObjectError::Internal(error.to_string()))?;
        self.hasher = hasher;
        Ok(record)
    }

    /// What follows is placed by the layouts that are open now: a long upload must not keep older ones open. What was placed
    /// before is judged by them in the end.
    fn follow(&mut self) {
        if let Some(bucket) = self.node.buckets.get(&self.bucket.id) {
            self.bucket = bucket;
        }
    }

    fn lane(&self) -> LaneKind {
        LaneKind::Bulk(usize::from(self.intent.upload.as_bytes().iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte))))
    }

    /// A permit for one more chunk in flight. If none is to be had, this put's own pieces are waited for; the last resort
    /// is the base permit, so that an admitted put always goes on.
    async fn admit(&mut self) -> Result<Option<Permit>, ObjectError> {
        loop {
            if self.pieces.len() < limits::UPLOAD_PIECES
                && let Some(permit) = self.node.transfer.spare()
            {
                return Ok(Some(permit));
            }
            match self.pieces.join_next().await {
                Some(done) => self.note(done.map_err(|error| ObjectError::Internal(error.to_string()))?),
                None => return Ok(None),
            }
        }
    }

    /// Returns when there is room for the next piece: to be waited for before it is taken from the client.
    ///
    /// # Errors
    /// If a piece in flight panicked.
    pub async fn ready(&mut self) -> Result<(), ObjectError> {
        while self.full_up
            && let Some(done) = self.pieces.join_next().await
        {
            self.note(done.map_err(|error| ObjectError::Internal(error.to_string()))?);
        }
        Ok(())
    }

    fn bit(&mut self, node: NodeIndex) -> u64 {
        let position = self.table.iter().position(|known| *known == node).unwrap_or_else(|| {
            self.table.push(node);
            self.table.len() - 1
        });
        1_u64.checked_shl(position as u32).unwrap_or(0)
    }

    fn note(&mut self, done: Placed) {
        self.full_up &= !done.base;
        let mut deduplicated = true;
        for (target, at) in done.at {
            let bit = self.bit(target);
            let destination = self.destinations.entry(target).or_default();
            match at {
                At::Here(written) => {
                    deduplicated &= written.deduplicated();
                    destination.here.push(written);
                }
                At::There(stored) => {
                    deduplicated &= stored.records.iter().all(|record| record.deduplicated);
                    if *destination.generation.get_or_insert(stored.generation) != stored.generation {
                        self.fail(target, "its stream was opened anew during the upload");
                        continue;
                    }
                    destination.sequences.push(stored.sequence);
                }
                At::Proved => {}
                At::Failed(why) => {
                    self.fail(target, &why);
                    continue;
                }
            }
            if let Some(placed) = self.placed.get_mut(done.index) {
                *placed |= bit;
            }
        }
        self.deduplicated += if deduplicated { u64::from(done.length) } else { 0 };
    }

    /// Nothing that a failed node wrote for this put counts any more.
    fn fail(&mut self, node: NodeIndex, why: &str) {
        if why.contains("disk full") {
            self.full = Some(format!("{}: {why}", self.node.layout().node_name(node)));
        }
        tracing::warn!(node = self.node.layout().node_name(node), why, upload = %self.intent.upload, "a node failed during a put");
        self.failed.insert(node);
        self.destinations.remove(&node);
        let bit = self.bit(node);
        self.placed.iter_mut().for_each(|placed| *placed &= !bit);
    }

    /// If somebody had no room, that is the reason.
    fn because(&self, error: ObjectError) -> ObjectError {
        match (&error, &self.full) {
            (ObjectError::NotFar { .. } | ObjectError::Unavailable { .. }, Some(full)) => {
                ObjectError::NoSpace(format!("no room for a far copy: {full}"))
            }
            _ => error,
        }
    }

    async fn drain(&mut self) -> Result<(), ObjectError> {
        while let Some(done) = self.pieces.join_next().await {
            self.note(done.map_err(|error| ObjectError::Internal(error.to_string()))?);
        }
        Ok(())
    }

    /// Makes durable what every node has written, all at once.
    async fn sync_all(&mut self) {
        let lane = self.lane();
        let syncs = self.destinations.iter_mut().map(|(target, destination)| {
            let (node, target, destination) = (&self.node, *target, std::mem::take(destination));
            async move { (target, sync(node, target, destination, lane).await) }
        });
        let results = futures_util::future::join_all(syncs).await;
        for (target, result) in results {
            if let Err(why) = result {
                self.fail(target, &why);
            }
        }
    }

    /// The end: the content is what the client says, everything is durable, and the version is current.
    ///
    /// # Errors
    /// If anything of that is not so. Nothing is visible under the key then, unless the error says that it may be later.
    pub async fn finish(mut self, object: ObjectId, size: u64) -> Result<Receipt, ObjectError> {
        self.follow();
        let whole = self.first.take();
        if self.chunks.is_empty() {
            // All of it is here: what it need not hold while it is being stored is for others.
            let held = self.base.num_permits();
            let needed = whole.as_ref().map_or(0, Bytes::len).max(limits::PERMIT_MIN as usize);
            drop(self.base.split(held.saturating_sub(needed)));
        }
        let whole = match whole {
            Some(data) => Some(self.only(data).await?),
            None => None,
        };
        let actual = match &whole {
            Some(Only::Chunk(chunk)) => ObjectId::from_bytes(*chunk.id().as_bytes()),
            Some(Only::Inline(data)) => ObjectId::of(data),
            None => ObjectId::from_bytes(*self.hasher.finalize().as_bytes()),
        };
        if (actual, self.size) != (object, size) {
            return Err(ObjectError::Mismatch(format!(
                "the content arrived as {actual} with {} bytes, the client announced {object} with {size}: nothing was stored under the key; send it again",
                self.size
            )));
        }
        if self.append_only {
            match claims::claim(&self.node, &self.bucket, &self.intent.key, self.intent.upload).await? {
                Claimed::Free(claim) => self.claim = Some(claim),
                // Identical content may be repeated: nothing is added.
                Claimed::Holds(existing) if existing.entry.object == Some((object, size)) => {
                    return already(&self.node, &self.bucket, &self.intent.key, existing.entry, object).await;
                }
                Claimed::Holds(_) => return Err(append_only(&self.intent.key)),
            }
        }
        if self.intent.retry {
            let listed = versions::newest(&self.node, &self.bucket, &self.intent.key).await?;
            if let Some(earlier) = listed.into_iter().find(|listed| listed.entry.upload == self.intent.upload) {
                return already(&self.node, &self.bucket, &self.intent.key, earlier.entry, object).await;
            }
        }
        match whole {
            Some(Only::Chunk(record)) => Box::pin(self.finish_single(object, record)).await,
            Some(Only::Inline(data)) => Box::pin(self.finish_inline(object, data)).await,
            None if self.chunks.is_empty() => Box::pin(self.finish_inline(object, Bytes::new())).await,
            None => Box::pin(self.finish_chunked(object)).await,
        }
    }

    /// The only piece, hashed once: a chunk that is the whole object has the object's id.
    async fn only(&self, data: Bytes) -> Result<Only, ObjectError> {
        if data.len() <= INLINE_BYTES_MAX {
            return Ok(Only::Inline(data));
        }
        let bucket = self.bucket.id;
        let record = tokio::task::spawn_blocking(move || Record::new(RecordKind::Chunk, bucket, data)).await;
        record.map(Only::Chunk).map_err(|error| ObjectError::Internal(error.to_string()))
    }

    async fn finish_inline(self, object: ObjectId, data: Bytes) -> Result<Receipt, ObjectError> {
        let committed = self.commit_version(object, Data::Inline, &data).await?;
        let deduplicated = if committed.deduplicated { data.len() as u64 } else { 0 };
        self.acknowledge(object, committed, Vec::new(), deduplicated).await
    }

    /// One chunk: it and the prepared version go out at the same time, one round trip (rule 28).
    async fn finish_single(mut self, object: ObjectId, record: Record) -> Result<Receipt, ObjectError> {
        let chunk = ChunkRef { id: record.id(), length: record.body().len() as u32 };
        self.chunks.push(chunk);
        let data = Data::Chunks(self.chunks.clone());
        let (stored, committed) =
            tokio::join!(spread(&self.node, &self.bucket, &record, self.lane(), &self.failed), self.commit_version(object, data, &[]));
        let (committed, (nodes, deduplicated)) = (committed?, stored?);
        let deduplicated = if deduplicated { u64::from(chunk.length) } else { 0 };
        let group = Group { nodes, records: vec![(chunk.id, RecordKind::Chunk, chunk.length)] };
        self.acknowledge(object, committed, vec![group], deduplicated).await
    }

    async fn finish_chunked(mut self, object: ObjectId) -> Result<Receipt, ObjectError> {
        self.drain().await?;
        let manifests = self.manifests();
        let data = match &manifests {
            Some(manifests) => Data::Manifests(manifests.iter().map(Record::id).collect()),
            None => Data::Chunks(self.chunks.clone()),
        };
        // The version is prepared: it may travel while the chunks are being synced.
        let (node, bucket, lane, failed) = (Arc::clone(&self.node), Arc::clone(&self.bucket), self.lane(), self.failed.clone());
        let description = self.description(object, data);
        let excluded = self.failed.clone();
        let key = self.intent.key.clone();
        let body = move |stamp| Version { stamp, ..description.clone() }.encode(&[]);
        let claim = self.claim.take();
        let (upload, purpose) = (self.intent.upload, self.purpose);
        let commit = Commit { bucket: &bucket, key: &key, body: &body, upload, purpose, excluded, claim: claim.as_ref() };
        let stored = async {
            let mut groups = Vec::new();
            for manifest in manifests.iter().flatten() {
                let (nodes, _) = spread(&node, &bucket, manifest, lane, &failed).await?;
                groups.push(Group { nodes, records: vec![(manifest.id(), RecordKind::Manifest, manifest.body().len() as u32)] });
            }
            Ok::<_, ObjectError>(groups)
        };
        let ((), manifests, committed) = tokio::join!(self.sync_all(), stored, commit.run(&node));
        let chunks = self.settle_chunks().await;
        let chunks = chunks.map_err(|error| self.because(error))?;
        let (committed, mut groups) = (committed.map_err(|error| self.because(error))?, manifests?);
        groups.extend(chunks);
        let deduplicated = self.deduplicated;
        self.acknowledge(object, committed, groups, deduplicated).await
    }

    fn manifests(&self) -> Option<Vec<Record>> {
        let record = |chunks: &[ChunkRef]| Record::new(RecordKind::Manifest, self.bucket.id, Manifest { chunks: chunks.to_vec() }.encode());
        (self.chunks.len() > DIRECT_CHUNKS_MAX).then(|| self.chunks.chunks(MANIFEST_CHUNKS_MAX).map(record).collect())
    }

    /// Every chunk is at its level, or is brought there now from a copy that is durable. Answers who holds which.
    async fn settle_chunks(&mut self) -> Result<Vec<Group>, ObjectError> {
        let mut levels: BTreeMap<u64, Option<Durability>> = BTreeMap::new();
        let mut groups: BTreeMap<Vec<NodeIndex>, Vec<Name>> = BTreeMap::new();
        for index in 0..self.chunks.len() {
            let (Some(chunk), Some(placed)) = (self.chunks.get(index).copied(), self.placed.get(index).copied()) else { break };
            let name = (chunk.id, RecordKind::Chunk, chunk.length);
            let partition = Partition::of_record(&chunk.id, self.node.layout().partitions());
            let level = *levels.entry(placed).or_insert_with(|| reached(&self.node, &self.bucket, &self.nodes(placed)));
            if level >= Some(self.bucket.level()) || level >= Some(self.wanted(partition)?) {
                groups.entry(self.nodes(placed)).or_default().push(name);
                continue;
            }
            let key = RecordKey { bucket: self.bucket.id, id: chunk.id };
            let record = fetch::read_anywhere(&self.node, key, partition, &self.nodes(placed)).await;
            let record = record.map_err(|error| ObjectError::maybe(format!("a chunk is not far away yet: {error}")))?;
            let (nodes, _) = spread(&self.node, &self.bucket, &record, self.lane(), &self.failed).await?;
            groups.entry(nodes).or_default().push(name);
        }
        Ok(groups.into_iter().map(|(nodes, records)| Group { nodes, records }).collect())
    }

    fn wanted(&self, partition: Partition) -> Result<Durability, ObjectError> {
        Ok(wanted(&self.bucket, commit::targets(&self.node, &self.bucket, partition, &self.failed)?.level))
    }

    fn nodes(&self, placed: u64) -> Vec<NodeIndex> {
        let mut nodes: Vec<NodeIndex> = self.table.iter().enumerate().filter(|(bit, _)| placed >> bit & 1 == 1).map(|(_, n)| *n).collect();
        nodes.sort_unstable();
        nodes
    }

    fn description(&self, object: ObjectId, data: Data) -> Version {
        Version {
            bucket: self.bucket.id,
            key: self.intent.key.clone(),
            stamp: afar_model::hlc::Stamp::ZERO,
            upload: self.intent.upload,
            content: Content::Object { id: object, size: self.size, data, chunker: Chunker::Fixed1MiB },
            metadata: self.intent.metadata.clone(),
        }
    }

    /// It brings back what its holders have: on a full disk, too.
    pub const fn undo(&mut self) {
        self.purpose = Purpose::Undo;
    }

    async fn commit_version(&self, object: ObjectId, data: Data, inline: &[u8]) -> Result<Committed, ObjectError> {
        let description = self.description(object, data);
        let body = move |stamp| Version { stamp, ..description.clone() }.encode(inline);
        let commit = Commit {
            bucket: &self.bucket,
            key: &self.intent.key,
            body: &body,
            upload: self.intent.upload,
            purpose: self.purpose,
            excluded: self.failed.clone(),
            claim: self.claim.as_ref(),
        };
        commit.run(&self.node).await
    }

    async fn acknowledge(
        self,
        object: ObjectId,
        committed: Committed,
        groups: Vec<Group>,
        deduplicated: u64,
    ) -> Result<Receipt, ObjectError> {
        if let Some(existing) = committed.existing {
            return already(&self.node, &self.bucket, &self.intent.key, existing, object).await;
        }
        commit::on_the_same_disks(&self.node, self.replacements)?;
        // Asked once more of everything at once: what was far when it was written may have been refuted since.
        let levels = groups.iter().map(|group| reached(&self.node, &self.bucket, &group.nodes));
        let durability = levels.chain([Some(committed.level)]).min().flatten();
        let durability = durability.filter(|level| *level >= least(&self.bucket));
        let durability = durability.ok_or_else(|| ObjectError::maybe("the copies do not count as far enough apart any more"))?;
        let missing = owed(&self.node, &self.bucket, &groups, &committed);
        if durability == Durability::Local {
            // A promise to make it far must survive a restart before it is made.
            self.node.store.owe(missing).await.map_err(|error| ObjectError::maybe(error.to_string()))?;
        } else if !missing.is_empty() {
            let node = Arc::clone(&self.node);
            self.node.lifecycle.spawn_brief("owe", async move {
                if let Err(error) = node.store.owe(missing).await {
                    tracing::warn!(%error, "a debt was not noted; anti-entropy will find it");
                }
            });
        }
        let holders = self.holders(&groups, &committed.nodes);
        commit::settle(&self.node, &self.bucket, &self.intent.key, (committed.stamp, committed.id), &holders);
        let whole: Vec<NodeIndex> = holders.whole().collect();
        let counted = if whole.len() < 2 { committed.nodes } else { whole };
        Ok(receipt(&self.node, &self.bucket, &self.intent.key, committed.id, Some((object, self.size)), durability, &counted, deduplicated))
    }

    fn holders(&self, groups: &[Group], version: &[NodeIndex]) -> Holders {
        let mut holders = Holders::default();
        holders.note(&self.bucket.assigned_by_any(self.bucket.version_partition(&self.intent.key)), version);
        let partitions = self.node.layout().partitions();
        for group in groups {
            let placed: BTreeSet<Partition> = group.records.iter().map(|(id, ..)| Partition::of_record(id, partitions)).collect();
            for partition in placed {
                holders.note(&self.bucket.assigned_by_any(partition), &group.nodes);
            }
        }
        holders
    }
}

/// Whether it is clear before the first byte that the key holds something else. Nobody else is asked as long as nothing here
/// speaks for that: in the end everybody is, anyway.
async fn differs(node: &Arc<Node>, bucket: &Bucket, intent: &Intent) -> Result<bool, ObjectError> {
    let Some(announced) = intent.size else { return Ok(false) };
    let is_other = |entry: &VersionEntry| entry.object.is_some_and(|(_, size)| size != announced);
    let here = node.store.versions(&bucket.id, &intent.key, None, 1).unwrap_or_default();
    Ok(here.first().is_some_and(is_other)
        && versions::current(node, bucket, &intent.key).await?.is_some_and(|current| is_other(&current.entry)))
}

fn append_only(key: &str) -> ObjectError {
    ObjectError::Denied(format!("{key:?} exists, and this access key may only append"))
}

/// A record's id, kind and length.
type Name = (RecordId, RecordKind, u32);

/// Records that the same nodes hold.
#[derive(Debug)]
struct Group {
    nodes: Vec<NodeIndex>,
    records: Vec<Name>,
}

/// A receipt for a version that these nodes hold.
#[allow(clippy::too_many_arguments)]
pub fn receipt(
    node: &Node,
    bucket: &Bucket,
    key: &str,
    version: RecordId,
    object: Option<(ObjectId, u64)>,
    durability: Durability,
    holders: &[NodeIndex],
    deduplicated: u64,
) -> Receipt {
    let sites = sites_of(&node.layout(), holders.iter().copied());
    let note = match durability {
        Durability::Local => "no far copy yet: queued until a far site answers".to_owned(),
        _ => String::new(),
    };
    Receipt {
        object: object.map(|(object, _)| object),
        bucket: bucket.name.clone(),
        key: key.to_owned(),
        version,
        size: object.map_or(0, |(_, size)| size),
        durability,
        sites: sites.iter().map(|site| node.layout().site_name(*site).to_owned()).collect(),
        distance: Geography::claimed(&node.layout()).greatest_distance(&sites),
        deduplicated,
        note,
    }
}

/// Rule 5: an earlier attempt of this very put made a version; that one is the answer, once it stands.
async fn already(node: &Arc<Node>, bucket: &Bucket, key: &str, existing: VersionEntry, object: ObjectId) -> Result<Receipt, ObjectError> {
    if existing.object.map(|(id, _)| id) != Some(object) {
        return Err(ObjectError::Invalid("this upload id was used for other content: choose a new one for every put".into()));
    }
    let listed = versions::newest(node, bucket, key).await?.into_iter().find(|version| version.entry.id == existing.id);
    let listed = listed.unwrap_or_else(|| Listed { entry: existing.clone(), holders: vec![node.me] });
    let standing = if listed.entry.settled { versions::Standing::Settled } else { versions::complete(node, bucket, key, &listed).await? };
    if standing != versions::Standing::Settled {
        return Err(ObjectError::maybe("an earlier attempt of this put is not far away yet"));
    }
    // One whose record is lost is known, and nothing that an answer could rest on.
    versions::read(node, bucket, key, &listed).await?;
    let holdings = super::read::holdings(node, bucket, key, &listed).await;
    let durability = holdings.level(node, bucket).unwrap_or(Durability::Local);
    let holders = holdings.named();
    let size = existing.object.map_or(0, |(_, size)| size);
    Ok(receipt(node, bucket, key, existing.id, existing.object, durability, &holders, size))
}

fn wanted(bucket: &Bucket, possible: Option<Durability>) -> Durability {
    if bucket.queues() { bucket.level().min(possible.unwrap_or(Durability::Local)) } else { bucket.level() }
}

/// The least level that this bucket ever acknowledges.
fn least(bucket: &Bucket) -> Durability {
    if bucket.queues() { Durability::Local } else { bucket.level() }
}

/// What copies at these nodes amount to for a bucket.
pub fn reached(node: &Node, bucket: &Bucket, nodes: &[NodeIndex]) -> Option<Durability> {
    bucket.reached(&node.peers.refuted(), nodes)
}

/// Makes one record durable at its level, trying stand-ins for nodes that fail. Answers who holds it, and whether all of
/// them had it already.
///
/// # Errors
/// If the level cannot be reached.
pub async fn spread(
    node: &Arc<Node>,
    bucket: &Bucket,
    record: &Record,
    lane: LaneKind,
    failed: &BTreeSet<NodeIndex>,
) -> Result<(Vec<NodeIndex>, bool), ObjectError> {
    let partition = Partition::of_record(&record.id(), node.layout().partitions());
    let assigned = bucket.targets(partition);
    let (mut excluded, mut durable, mut deduplicated) = (failed.clone(), Vec::new(), true);
    let mut full: Option<String> = None;
    for _ in 0..limits::COMMIT_ROUNDS {
        let chosen = commit::targets(node, bucket, partition, &excluded);
        let chosen =
            chosen.map_err(|error| full.take().map_or(error, |full| ObjectError::NoSpace(format!("no room for a far copy: {full}"))))?;
        let purpose = |target| if assigned.contains(&target) { Purpose::Client } else { Purpose::Hint };
        let open = chosen.nodes.iter().copied().filter(|target| !durable.contains(target));
        let copies =
            open.map(|target| async move { (target, copy_to(node, target, std::slice::from_ref(record), purpose(target), lane).await) });
        for (target, copied) in futures_util::future::join_all(copies).await {
            match copied {
                Ok(copied) => {
                    deduplicated &= copied.iter().all(|copied| copied.deduplicated);
                    node.ledger.acknowledged(target, assigned.contains(&target), [record.key()]);
                    durable.push(target);
                }
                Err(error) if error.is_full() => {
                    full = Some(error.to_string());
                    excluded.insert(target);
                }
                Err(error) => {
                    tracing::warn!(%error, "a copy failed");
                    excluded.insert(target);
                }
            }
        }
        durable.sort_unstable();
        if reached(node, bucket, &durable) >= Some(wanted(bucket, chosen.level)) {
            return Ok((durable, deduplicated));
        }
    }
    Err(ObjectError::unavailable("a chunk could not be brought far away"))
}

/// What assigned nodes lack of this put.
fn owed(node: &Node, bucket: &Bucket, groups: &[Group], committed: &Committed) -> Vec<afar_store::Owed> {
    let version = (RecordKey { bucket: bucket.id, id: committed.id }, RecordKind::Version, 0);
    let mut debts = commit::debts(node, &committed.owed, &[version]);
    for group in groups {
        for (id, kind, length) in &group.records {
            let partition = Partition::of_record(id, node.layout().partitions());
            let lacking: Vec<NodeIndex> = bucket.targets(partition).into_iter().filter(|n| !group.nodes.contains(n)).collect();
            debts.extend(commit::debts(node, &lacking, &[(RecordKey { bucket: bucket.id, id: *id }, *kind, *length)]));
        }
    }
    for debt in &debts {
        if let Some(to) = node.layout().node_named(&debt.to) {
            node.ledger.lacks(to, [debt.key]);
        }
    }
    debts
}

async fn write(node: &Arc<Node>, to: NodeIndex, record: &Record, purpose: Purpose, lane: LaneKind) -> At {
    if to == node.me {
        return match node.store.append(purpose.class(), vec![record.clone()]).await {
            Ok(mut written) => written.pop().map_or_else(|| At::Failed("nothing was written".into()), At::Here),
            Err(error) => At::Failed(error.to_string()),
        };
    }
    let Some(lane) = node.lanes.to(to, lane) else { return At::Failed("no such peer".into()) };
    let request = v1::StoreRecords {
        records: vec![v1::Record::from(record)],
        sync: false,
        class: purpose.name().to_owned(),
        layout_version: node.layout().version(),
        open_versions: node.open_versions(),
        open_layouts: node.open_layouts(),
        ..v1::StoreRecords::default()
    };
    match lane.store(request).await {
        Ok(stored) if stored.records.iter().all(|stored| &stored.id[..] == record.id().as_bytes()) => At::There(stored),
        Ok(_) => At::Failed("the peer hashed other bytes than were sent".into()),
        Err(error) => At::Failed(error.to_string()),
    }
}

async fn sync(node: &Arc<Node>, at: NodeIndex, destination: Destination, lane: LaneKind) -> Result<(), String> {
    if at == node.me {
        return node.store.sync(&destination.here).await.map(|_| ()).map_err(|error| error.to_string());
    }
    let Some(generation) = destination.generation else { return Ok(()) };
    let lane = node.lanes.to(at, lane).ok_or("no such peer")?;
    lane.sync(generation, destination.sequences).await.map_err(|error| error.to_string())
}
