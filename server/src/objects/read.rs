//! A get: the current version, then its bytes in order, every chunk verified here before a byte of it leaves the node.
//! If a copy is bad or its node falls silent in the middle, the next replica is asked and the reader notices nothing.
//!
//! What is read is bounded (rule 29): a get holds the permit of one chunk from its beginning, so that it can always go on,
//! and reads ahead only while more permits are to be had.
use super::{
    buckets::Bucket,
    error::ObjectError,
    versions::{self, Listed},
};
use crate::{
    budget::{NoRoom, Permit},
    cluster::keyring::Caller,
    limits,
    node::Node,
    replication::fetch,
};
use afar_model::{
    id::{BucketId, ObjectId, RecordId},
    layout::NodeIndex,
    limits::{CHUNK_BYTES, INLINE_BYTES_MAX},
    placement::Partition,
    policy::Durability,
    record::{ChunkRef, Content, Data, DecodedVersion, Manifest, RecordKey, RecordKind, Right},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream::FuturesOrdered};
use std::{ops::ControlFlow, sync::Arc, time::Duration};

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// What the key holds now.
    Current(String),
    /// One version of a key.
    Version(String, RecordId),
    /// Any settled version with this content.
    Object(ObjectId),
}

/// An object that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its bucket.
    pub bucket: Arc<Bucket>,
    /// Its key.
    pub key: String,
    /// Its version.
    pub listed: Listed,
    /// Its description, and its content where that is inline.
    pub decoded: DecodedVersion,
    /// Its id.
    pub object: ObjectId,
    /// Its length in bytes.
    pub size: u64,
}

/// Bytes of an object, verified.
#[derive(Debug, Clone)]
pub struct Bite {
    /// Where they begin in the object.
    pub offset: u64,
    /// The bytes: a whole chunk, or a whole inline object.
    pub data: Bytes,
    /// Their digest; `None` if they are the whole object.
    pub id: Option<RecordId>,
}

/// Finds an object that the caller may read.
///
/// # Errors
/// If there is none, or that cannot be known now.
pub async fn find(node: &Arc<Node>, caller: &Caller, bucket: &str, wanted: Wanted) -> Result<Found, ObjectError> {
    let bucket = node.bucket(bucket)?;
    if !caller.may(Right::Read, &bucket.id) {
        return Err(ObjectError::Forbidden("read this bucket"));
    }
    let (key, listed) = match wanted {
        Wanted::Current(key) => {
            let current = versions::current(node, &bucket, &key).await?;
            let listed = current.filter(|listed| listed.entry.object.is_some());
            let listed = listed.ok_or_else(|| ObjectError::NoSuchObject { bucket: bucket.name.clone(), key: key.clone() })?;
            (key, listed)
        }
        Wanted::Version(key, id) => {
            let listed = versions::find(node, &bucket, &key, id).await?.filter(|listed| listed.entry.object.is_some());
            let missing = || ObjectError::NoSuchObject { bucket: bucket.name.clone(), key: format!("{key} version {id}") };
            let listed = versions::first_standing(node, &bucket, &key, [&listed.ok_or_else(missing)?]).await?.ok_or_else(missing)?;
            (key, listed)
        }
        Wanted::Object(id) => {
            let found = super::list::find_object(node, &bucket, &id).await?;
            found.ok_or_else(|| ObjectError::NoSuchObject { bucket: bucket.name.clone(), key: format!("@{id}") })?
        }
    };
    let decoded = versions::read(node, &bucket, &key, &listed).await?;
    match decoded.version.content {
        Content::Object { id, size, .. } => Ok(Found { bucket, key, listed, decoded, object: id, size }),
        Content::DeleteMarker => Err(ObjectError::NoSuchObject { bucket: bucket.name.clone(), key }),
    }
}

/// Finds an object that the caller may read, with the permit to read it: a chunk's, or less for what is inside its version.
///
/// # Errors
/// As for [`find`], and if the node is busy.
pub async fn open(node: &Arc<Node>, caller: &Caller, bucket: &str, wanted: Wanted) -> Result<(Found, Permit), ObjectError> {
    let small = admit(node, INLINE_BYTES_MAX, limits::ADMISSION_WAIT).await?;
    let found = find(node, caller, bucket, wanted).await?;
    if matches!(found.decoded.version.content, Content::Object { data: Data::Inline, .. }) {
        return Ok((found, small));
    }
    // Given back first: who waits for more while it holds some may wait for others who do the same.
    drop(small);
    let permit = admit(node, CHUNK_BYTES, limits::ADMISSION_WAIT).await?;
    Ok((found, permit))
}

/// The permit with which a get or a put begins.
///
/// # Errors
/// If the node is busy, and stays so for this long.
pub async fn admit(node: &Node, bytes: usize, within: Duration) -> Result<Permit, ObjectError> {
    let busy = |NoRoom| ObjectError::Busy("the node's transfer budget is in use by other transfers".into());
    node.transfer.admit(bytes, within).await.map_err(busy)
}

/// The bytes from `offset`, `length` of them at most: whole chunks, so that whoever gets them can verify them. The
/// first error ends the stream. `permit`: of [`open`], or `None` if the caller holds one chunk's for as long as it reads.
///
/// # Errors
/// If the range begins after the object's end.
pub fn bytes(
    node: &Arc<Node>,
    found: &Found,
    offset: u64,
    length: Option<u64>,
    permit: Option<Permit>,
) -> Result<impl Stream<Item = Result<Bite, ObjectError>> + Send + use<>, ObjectError> {
    if offset > found.size || (offset == found.size && offset > 0) {
        return Err(ObjectError::Invalid(format!("the range begins at {offset}, the object has {} bytes", found.size)));
    }
    let end = length.map_or(found.size, |length| offset.saturating_add(length).min(found.size));
    let (node, bucket) = (Arc::clone(node), found.bucket.id);
    let object = found.object;
    let size = found.size;
    let inline = found.decoded.inline.clone();
    let plan = match &found.decoded.version.content {
        Content::Object { data: Data::Chunks(chunks), .. } => Plan::Chunks(chunks.clone()),
        Content::Object { data: Data::Manifests(manifests), .. } => Plan::Manifests(manifests.clone()),
        _ => Plan::Inline,
    };
    Ok(async_stream::try_stream! {
        let _permit = permit;
        match plan {
            Plan::Inline => {
                // The version record was verified as a whole; the object's own id is checked all the same.
                if ObjectId::of(&inline) != object {
                    Err(ObjectError::Integrity(format!("the content of {object} is not what its version says")))?;
                }
                if !inline.is_empty() || size == 0 {
                    yield Bite { offset: 0, data: inline, id: None };
                }
            }
            Plan::Chunks(chunks) => {
                let mut bites = Box::pin(chunk_bytes(node, bucket, chunks, 0, offset, end));
                while let Some(bite) = bites.next().await {
                    yield bite?;
                }
            }
            Plan::Manifests(manifests) => {
                let mut begin = 0;
                for id in manifests {
                    let chunks = manifest(&node, bucket, id).await?;
                    let length: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
                    if begin + length > offset && begin < end {
                        let mut bites = Box::pin(chunk_bytes(Arc::clone(&node), bucket, chunks, begin, offset, end));
                        while let Some(bite) = bites.next().await {
                            yield bite?;
                        }
                    }
                    begin += length;
                }
            }
        }
    })
}

enum Plan {
    Inline,
    Chunks(Vec<ChunkRef>),
    Manifests(Vec<RecordId>),
}

async fn manifest(node: &Arc<Node>, bucket: BucketId, id: RecordId) -> Result<Vec<ChunkRef>, ObjectError> {
    let key = RecordKey { bucket, id };
    let partition = Partition::of_record(&id, node.layout().partitions());
    let record = fetch::read_anywhere(node, key, partition, &[]).await.map_err(versions::unreadable)?;
    Ok(Manifest::decode(record.body()).map_err(|error| ObjectError::Integrity(error.to_string()))?.chunks)
}

/// Chunks that touch the range, in order, some read ahead. At most one of them at a time is covered by the get's own permit:
/// from when it is read until the next is asked for, when HTTP/2 has taken it over. Every other has one of its own.
fn chunk_bytes(
    node: Arc<Node>,
    bucket: BucketId,
    chunks: Vec<ChunkRef>,
    begin: u64,
    offset: u64,
    end: u64,
) -> impl Stream<Item = Result<Bite, ObjectError>> + Send {
    let mut at = begin;
    let mut placed = chunks
        .into_iter()
        .map(move |chunk| {
            let begin = at;
            at += u64::from(chunk.length);
            (begin, chunk)
        })
        .filter(move |(begin, chunk)| begin + u64::from(chunk.length) > offset && *begin < end)
        .peekable();
    async_stream::try_stream! {
        let mut ahead = FuturesOrdered::new();
        let mut own = true;
        loop {
            while ahead.len() < limits::READ_AHEAD && placed.peek().is_some() {
                let ControlFlow::Continue(permit) = permit_ahead(&mut own, || node.transfer.spare()) else { break };
                let Some((begin, chunk)) = placed.next() else { break };
                let node = Arc::clone(&node);
                ahead.push_back(async move { read_chunk(&node, bucket, begin, chunk).await.map(|bite| (bite, permit)) });
            }
            let Some(read) = ahead.next().await else { break };
            let (bite, permit) = read?;
            yield bite;
            own |= permit.is_none();
        }
    }
}

/// With which permit one more chunk may be read: none if the get's own is free (`own`), else a spare one.
fn permit_ahead<P>(own: &mut bool, spare: impl FnOnce() -> Option<P>) -> ControlFlow<(), Option<P>> {
    if std::mem::take(own) {
        return ControlFlow::Continue(None);
    }
    spare().map_or(ControlFlow::Break(()), |permit| ControlFlow::Continue(Some(permit)))
}

async fn read_chunk(node: &Arc<Node>, bucket: BucketId, begin: u64, chunk: ChunkRef) -> Result<Bite, ObjectError> {
    let key = RecordKey { bucket, id: chunk.id };
    let partition = Partition::of_record(&chunk.id, node.layout().partitions());
    let record = fetch::read_anywhere(node, key, partition, &[]).await.map_err(versions::unreadable)?;
    if record.kind() != RecordKind::Chunk || record.body().len() != chunk.length as usize {
        return Err(ObjectError::Integrity(format!("chunk {} is not what its version says", chunk.id)));
    }
    Ok(Bite { offset: begin, data: record.into_body(), id: Some(chunk.id) })
}

/// Who holds each record of a version, the version's own first: pieces of one object may be at different pairs of sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings(Vec<Vec<NodeIndex>>);

impl Holdings {
    /// The holders of each record.
    pub fn of_each(&self) -> impl Iterator<Item = &[NodeIndex]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// What all of it amounts to: as much as the record that is worst off.
    pub fn level(&self, node: &Node, bucket: &Bucket) -> Option<Durability> {
        self.of_each().map(|holders| super::put::reached(node, bucket, holders)).min().flatten()
    }

    /// Whom to name: those who hold everything, or, if hardly anybody does, those who hold the version.
    pub fn named(&self) -> Vec<NodeIndex> {
        let version = self.0.first().cloned().unwrap_or_default();
        let whole: Vec<NodeIndex> = version.iter().copied().filter(|node| self.0.iter().all(|holders| holders.contains(node))).collect();
        if whole.len() < 2 { version } else { whole }
    }
}

/// Who holds a version and everything that it needs, asked now.
pub async fn holdings(node: &Arc<Node>, bucket: &Bucket, key: &str, listed: &Listed) -> Holdings {
    let version_key = RecordKey { bucket: bucket.id, id: listed.entry.id };
    let (mut keys, mut unknown) = (vec![version_key], false);
    if !listed.entry.inline {
        match versions::read(node, bucket, key, listed).await {
            Ok(decoded) => match versions::pieces(node, bucket, &decoded.version).await {
                Ok(pieces) => keys.extend(pieces.into_iter().map(|(key, _, _)| key)),
                Err(_) => unknown = true,
            },
            Err(_) => unknown = true,
        }
    }
    let whom: Vec<NodeIndex> = bucket.eligible().into_iter().filter(|n| *n == node.me || node.peers.usable(*n)).collect();
    let mut holdings = Vec::with_capacity(keys.len());
    for batch in keys.chunks(limits::PROVE_BATCH) {
        holdings.extend(fetch::prove_all(node, &whom, batch).await.into_iter().map(|proved| proved.holders));
    }
    if unknown {
        // What cannot be named cannot be proved either.
        holdings.push(Vec::new());
    }
    Holdings(holdings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_29_one_chunk_may_always_be_read_and_more_only_with_permits() {
        let mut own = true;
        assert_eq!(permit_ahead(&mut own, || None::<u8>), ControlFlow::Continue(None), "its own permit");
        assert_eq!(permit_ahead(&mut own, || None::<u8>), ControlFlow::Break(()), "which covers one chunk alone");
        assert_eq!(permit_ahead(&mut own, || Some(7)), ControlFlow::Continue(Some(7)));
        own = true;
        assert_eq!(permit_ahead(&mut own, || Some(7)), ControlFlow::Continue(None), "free again");
    }

    #[test]
    fn whose_pieces_are_at_different_pairs_is_named_by_where_its_version_is() {
        let (a, b, c) = (NodeIndex(0), NodeIndex(1), NodeIndex(2));
        assert_eq!(Holdings(vec![vec![a, b], vec![a, c]]).named(), [a, b]);
        assert_eq!(Holdings(vec![vec![a, b, c], vec![a, c]]).named(), [a, c]);
        assert_eq!(Holdings(vec![vec![a, b], Vec::new()]).named(), [a, b]);
    }
}
