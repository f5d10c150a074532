//! Removing and copying. Neither destroys anything: a removal is a version that says that the key holds nothing, and it
//! is acknowledged like any other write.
use super::{
    buckets::Bucket,
    commit::{self, Commit},
    error::ObjectError,
    holders::Holders,
    put::{self, Intent, Piece, Put, Receipt},
    read::{self, Wanted},
    versions::{self, Listed},
};
use crate::{cluster::keyring::Caller, limits, node::Node, replication::send::Purpose};
use afar_model::{
    hlc::Stamp,
    id::{ObjectId, UploadId},
    limits::CHUNK_BYTES,
    policy::Durability,
    record::{Content, RecordKey, RecordKind, Right, Version},
};
use futures_util::StreamExt as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Writes a delete marker.
///
/// # Errors
/// If the key holds nothing, the caller may not, or it cannot be far away now.
pub async fn remove(node: &Arc<Node>, caller: &Caller, bucket: &str, key: &str, upload: UploadId) -> Result<Receipt, ObjectError> {
    afar_model::record::check_key(key)?;
    let bucket = node.bucket(bucket)?;
    if !caller.may(Right::Delete, &bucket.id) {
        return Err(ObjectError::Forbidden("delete in this bucket"));
    }
    let newest = versions::page(node, &bucket, key, None).await?;
    if let Some(earlier) = newest.versions.iter().find(|listed| listed.entry.upload == upload && listed.entry.object.is_none()) {
        // Rule 5: an earlier attempt of this very removal.
        return stands(node, &bucket, key, earlier.clone()).await;
    }
    let current = versions::current_from(node, &bucket, key, newest).await?;
    if current.is_none_or(|current| current.entry.object.is_none()) {
        return Err(ObjectError::NoSuchObject { bucket: bucket.name.clone(), key: key.to_owned() });
    }
    let marker = Version {
        bucket: bucket.id,
        key: key.to_owned(),
        stamp: Stamp::ZERO,
        upload,
        content: Content::DeleteMarker,
        metadata: BTreeMap::new(),
    };
    let body = move |stamp| Version { stamp, ..marker.clone() }.encode(&[]);
    let commit = Commit { bucket: &bucket, key, body: &body, upload, purpose: Purpose::Undo, excluded: BTreeSet::new(), claim: None };
    let replacements = node.peers.replacements();
    let committed = commit.run(node).await?;
    commit::on_the_same_disks(node, replacements)?;
    if let Some(entry) = committed.existing {
        return stands(node, &bucket, key, Listed { entry, holders: committed.nodes }).await;
    }
    if committed.level == Durability::Local {
        let name = (RecordKey { bucket: bucket.id, id: committed.id }, RecordKind::Version, 0);
        let debts = commit::debts(node, &committed.owed, &[name]);
        node.store.owe(debts).await.map_err(|error| ObjectError::maybe(error.to_string()))?;
    }
    let mut holders = Holders::default();
    holders.note(&bucket.assigned_by_any(bucket.version_partition(key)), &committed.nodes);
    commit::settle(node, &bucket, key, (committed.stamp, committed.id), &holders);
    Ok(put::receipt(node, &bucket, key, committed.id, None, committed.level, &committed.nodes, 0))
}

async fn stands(node: &Arc<Node>, bucket: &Bucket, key: &str, earlier: Listed) -> Result<Receipt, ObjectError> {
    if !earlier.entry.settled && versions::complete(node, bucket, key, &earlier).await? != versions::Standing::Settled {
        return Err(ObjectError::maybe("an earlier attempt of this removal is not far away yet"));
    }
    let holdings = read::holdings(node, bucket, key, &earlier).await;
    let level = holdings.level(node, bucket).unwrap_or(Durability::Local);
    Ok(put::receipt(node, bucket, key, earlier.entry.id, None, level, &holdings.named(), 0))
}

/// Copies an object: read here and put again, so that a copy is verified and acknowledged like any put. Content that the
/// holders have is not stored twice.
///
/// # Errors
/// As for a get and a put.
pub async fn copy(
    node: &Arc<Node>,
    caller: &Caller,
    from: (String, Wanted),
    to: (String, String),
    upload: UploadId,
    metadata: Option<BTreeMap<String, String>>,
) -> Result<Receipt, ObjectError> {
    let found = read::find(node, caller, &from.0, from.1).await?;
    let metadata = metadata.unwrap_or_else(|| found.decoded.version.metadata.clone());
    // Its content is at its holders, and needs no room there.
    let brings_back = from.0 == to.0 && found.decoded.version.key == to.1;
    let intent = Intent { bucket: to.0, key: to.1, upload, metadata, size: Some(found.size), retry: true };
    let base = read::admit(node, CHUNK_BYTES, limits::ADMISSION_WAIT).await?;
    let mut put = Put::begin(node, caller, intent, base).await?;
    if brings_back {
        put.undo();
    }
    // What is read is at once put, under the put's own permit.
    let mut bites = Box::pin(read::bytes(node, &found, 0, None, None)?);
    let (object, size) = (ObjectId::from_bytes(*found.object.as_bytes()), found.size);
    // However long this takes, it must not keep older layouts open.
    drop(found);
    while let Some(bite) = bites.next().await {
        let data = bite?.data;
        if !data.is_empty() {
            put.piece(Piece::Data(data)).await?;
            put.ready().await?;
        }
    }
    put.finish(object, size).await
}
