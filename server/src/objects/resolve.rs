//! Abbreviated ids: what people copied from a screen, made whole. An absence is an answer like any other, so "unknown" is
//! only said after a walk over answers that cover (rule 3); what was never acknowledged is nobody's candidate (rule 1).
use super::{
    buckets::Bucket,
    error::ObjectError,
    list,
    versions::{self, Listed},
};
use crate::{cluster::keyring::Caller, limits, node::Node};
use afar_model::{id::IdPrefix, record::Right};
use std::{collections::BTreeSet, sync::Arc};

/// The whole ids that an abbreviated one may mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// In order, at most [`limits::RESOLVE_CANDIDATES`]; never empty.
    pub ids: BTreeSet<[u8; 32]>,
    /// There are more.
    pub more: bool,
}

impl Resolved {
    /// Takes in a candidate; false once there are more than anybody wants to read.
    fn add(&mut self, id: [u8; 32]) -> bool {
        if self.ids.len() < limits::RESOLVE_CANDIDATES {
            self.ids.insert(id);
        } else {
            self.more |= !self.ids.contains(&id);
        }
        !self.more
    }
}

/// Which ids begin like this: of a key's versions, or, if `key` is empty, of the bucket's objects, older versions included.
///
/// # Errors
/// If there is none, the caller may not read the bucket, or too few nodes answer to tell.
pub async fn resolve(node: &Arc<Node>, caller: &Caller, bucket: &str, key: &str, prefix: &IdPrefix) -> Result<Resolved, ObjectError> {
    let bucket = node.bucket(bucket)?;
    if !caller.may(Right::Read, &bucket.id) {
        return Err(ObjectError::Forbidden("read this bucket"));
    }
    let found = if key.is_empty() { objects(node, &bucket, prefix).await? } else { versions_of(node, &bucket, key, prefix).await? };
    if found.ids.is_empty() {
        let wanted = if key.is_empty() { format!("@{prefix}") } else { format!("{key} version {prefix}") };
        return Err(ObjectError::NoSuchObject { bucket: bucket.name.clone(), key: wanted });
    }
    Ok(found)
}

async fn versions_of(node: &Arc<Node>, bucket: &Bucket, key: &str, prefix: &IdPrefix) -> Result<Resolved, ObjectError> {
    let mut found = Resolved::default();
    let mut next = Some(versions::page(node, bucket, key, None).await?);
    while let Some(page) = next {
        for listed in &page.versions {
            let id = *listed.entry.id.as_bytes();
            if prefix.begins(&id) && versions::first_standing(node, bucket, key, [listed]).await?.is_some() && !found.add(id) {
                return Ok(found);
            }
        }
        next = page.older(node, bucket, key).await?;
    }
    Ok(found)
}

/// Walks the bucket, for there is no view by content; it ends early only when there are too many.
async fn objects(node: &Arc<Node>, bucket: &Bucket, prefix: &IdPrefix) -> Result<Resolved, ObjectError> {
    let mut found = Resolved::default();
    let mut pages = list::Pages::of(bucket);
    while let Some(keys) = pages.next(node).await? {
        for (key, newest) in keys {
            let mut next = Some(newest);
            while let Some(page) = next {
                for (id, versions) in candidates(&page.versions, prefix) {
                    let known = found.ids.contains(&id);
                    if !known && versions::first_standing(node, bucket, &key, versions).await?.is_some() && !found.add(id) {
                        return Ok(found);
                    }
                }
                next = page.older(node, bucket, &key).await?;
            }
        }
    }
    Ok(found)
}

/// Pure: the objects that begin like this among a key's versions, each with the versions that have it, newest first.
fn candidates<'l>(listed: &'l [Listed], prefix: &IdPrefix) -> Vec<([u8; 32], Vec<&'l Listed>)> {
    let mut found: Vec<([u8; 32], Vec<&Listed>)> = Vec::new();
    for listed in listed {
        let Some(id) = listed.entry.object.map(|(id, _)| *id.as_bytes()).filter(|id| prefix.begins(id)) else { continue };
        match found.iter_mut().find(|(known, _)| *known == id) {
            Some((_, versions)) => versions.push(listed),
            None => found.push((id, vec![listed])),
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::{
        hlc::Stamp,
        id::{ObjectId, RecordId, UploadId},
        record::VersionEntry,
        units::UnixMillis,
    };

    fn version(number: u64, object: Option<ObjectId>) -> Listed {
        let entry = VersionEntry {
            stamp: Stamp::from_u64(number),
            id: RecordId::of(&number.to_le_bytes()),
            upload: UploadId::ZERO,
            settled: true,
            object: object.map(|object| (object, 1)),
            inline: true,
            received: UnixMillis(0),
        };
        Listed { entry, holders: Vec::new() }
    }

    #[test]
    fn one_object_of_many_versions_is_one_candidate_and_a_marker_is_none() {
        let (object, other) = (ObjectId::of(b""), ObjectId::of(b"x"));
        let prefix: IdPrefix = "af1349".parse().unwrap();
        let listed = vec![version(4, None), version(3, Some(object)), version(2, Some(other)), version(1, Some(object))];
        let found = candidates(&listed, &prefix);
        assert_eq!(found.iter().map(|(id, versions)| (*id, versions.len())).collect::<Vec<_>>(), [(*object.as_bytes(), 2)]);
    }

    #[test]
    fn too_many_candidates_are_cut_and_that_is_said() {
        let mut found = Resolved::default();
        for number in 0..limits::RESOLVE_CANDIDATES as u8 {
            assert!(found.add([number; 32]));
        }
        assert!(found.add([0; 32]) && !found.more, "one that is known already is not one more");
        assert!(!found.add([255; 32]) && found.more);
        assert_eq!(found.ids.len(), limits::RESOLVE_CANDIDATES);
    }
}
