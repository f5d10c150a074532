//! Removing and copying. Neither destroys anything: a removal is a version that says that the key holds nothing, and it
//! is acknowledged like any other write.
use super::{
    commit::{self, Commit},
    error::ObjectError,
    put::{self, Intent, Piece, Put, Receipt},
    read::{self, Wanted},
    versions,
};
use crate::{cluster::keyring::Caller, node::Node};
use afar_model::{
    hlc::Stamp,
    id::{ObjectId, UploadId},
    policy::Durability,
    record::{Content, Right, Version},
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
    let current = versions::current(node, &bucket, key).await?;
    let standing = current.filter(|current| current.entry.object.is_some() || current.entry.upload == upload);
    if standing.is_none() {
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
    let committed = Commit { bucket: &bucket, key, body: &body, excluded: BTreeSet::new() }.run(node).await?;
    if committed.existing.is_none() {
        if committed.level == Durability::Local {
            let name = (afar_model::record::RecordKey { bucket: bucket.id, id: committed.id }, afar_model::record::RecordKind::Version, 0);
            let debts = commit::debts(node, &committed.owed, &[name]);
            node.store.owe(debts).await.map_err(|error| ObjectError::maybe(error.to_string()))?;
        }
        commit::settle(node, &bucket, key, committed.stamp, committed.id);
    }
    Ok(put::receipt(node, &bucket, key, committed.id, None, committed.level, &committed.nodes, 0))
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
    let intent = Intent { bucket: to.0, key: to.1, upload, metadata, size: Some(found.size) };
    let mut put = Put::begin(node, caller, intent).await?;
    let mut bites = Box::pin(read::bytes(node, &found, 0, None)?);
    while let Some(bite) = bites.next().await {
        let data = bite?.data;
        if !data.is_empty() {
            put.piece(Piece::Data(data)).await?;
        }
    }
    put.finish(ObjectId::from_bytes(*found.object.as_bytes()), found.size).await
}
