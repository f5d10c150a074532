//! What nodes answer, checked once on arrival: inside, nothing is optional that is required.
use crate::error::{Error, Kind};
use afar_model::{
    id::{BucketId, ObjectId, RecordId},
    policy::{Durability, Policy},
    units::{Metres, UnixMillis},
};
use afar_proto::{convert, v1};
use std::collections::BTreeMap;

/// A node answered something that this protocol does not know.
pub(crate) fn malformed(error: &impl std::fmt::Display) -> Error {
    Error::new(Kind::Failed, format!("the node's answer makes no sense: {error}")).hint("check that afar and afard are of the same version")
}

/// What an acknowledged put or copy made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// BLAKE3 of the content.
    pub object: ObjectId,
    /// The bucket's name.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// The version's id.
    pub version: RecordId,
    /// Bytes.
    pub size: u64,
    /// What may be said of it.
    pub durability: Durability,
    /// The sites whose copies are counted.
    pub sites: Vec<String>,
    /// The greatest distance between two of them.
    pub distance: Metres,
    /// Bytes that every holder had already.
    pub deduplicated_bytes: u64,
    /// Why the level is lower than the policy's; empty if it is not.
    pub note: String,
}

impl TryFrom<v1::PutReply> for Stored {
    type Error = Error;
    fn try_from(reply: v1::PutReply) -> Result<Self, Error> {
        Ok(Self {
            object: convert::id("put.object", &reply.object).map_err(|error| malformed(&error))?,
            version: convert::id("put.version", &reply.version).map_err(|error| malformed(&error))?,
            durability: durability(&reply.durability)?,
            bucket: reply.bucket,
            key: reply.key,
            size: reply.size,
            sites: reply.sites,
            distance: Metres(reply.distance_metres),
            deduplicated_bytes: reply.deduplicated_bytes,
            note: reply.note,
        })
    }
}

/// What a removal made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The delete marker's id, or that of the version that was removed.
    pub version: RecordId,
    /// What may be said of it.
    pub durability: Durability,
    /// The sites whose copies are counted.
    pub sites: Vec<String>,
}

impl TryFrom<v1::DeleteReply> for Removed {
    type Error = Error;
    fn try_from(reply: v1::DeleteReply) -> Result<Self, Error> {
        Ok(Self {
            version: convert::id("delete.version", &reply.version).map_err(|error| malformed(&error))?,
            durability: durability(&reply.durability)?,
            sites: reply.sites,
        })
    }
}

fn durability(text: &str) -> Result<Durability, Error> {
    match text {
        "local" => Ok(Durability::Local),
        "far" => Ok(Durability::Far),
        "full" => Ok(Durability::Full),
        other => Err(malformed(&format!("durability {other:?}"))),
    }
}

/// A version's description.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// The bucket's name.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// BLAKE3 of the content.
    pub object: ObjectId,
    /// The version's id.
    pub version: RecordId,
    /// Bytes.
    pub size: u64,
    /// When it was put.
    pub modified: UnixMillis,
    /// What the client said of it.
    pub metadata: BTreeMap<String, String>,
    /// Sites that hold it, as far as the node knows; only from a stat.
    pub sites: Vec<String>,
    /// The greatest distance between two of them.
    pub distance: Metres,
    /// "safe", "degraded", "unknown", "at_risk" or "lost"; empty if not from a stat.
    pub state: String,
}

impl TryFrom<v1::ObjectInfo> for Info {
    type Error = Error;
    fn try_from(info: v1::ObjectInfo) -> Result<Self, Error> {
        Ok(Self {
            object: convert::id("info.object", &info.object).map_err(|error| malformed(&error))?,
            version: convert::id("info.version", &info.version).map_err(|error| malformed(&error))?,
            bucket: info.bucket,
            key: info.key,
            size: info.size,
            modified: UnixMillis(info.modified),
            metadata: info.metadata.into_iter().collect(),
            sites: info.sites,
            distance: Metres(info.distance_metres),
            state: info.state,
        })
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// A version, or a delete marker.
    Entry(Entry),
    /// Keys that go on after the delimiter, folded: ends with it.
    Prefix(String),
}

/// A version in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The version's id.
    pub version: RecordId,
    /// BLAKE3 of the content; `None` for a delete marker.
    pub object: Option<ObjectId>,
    /// Bytes.
    pub size: u64,
    /// When it was put.
    pub modified: UnixMillis,
    /// Whether it is what a get answers.
    pub current: bool,
}

impl TryFrom<v1::ListEntry> for Entry {
    type Error = Error;
    fn try_from(entry: v1::ListEntry) -> Result<Self, Error> {
        let object =
            entry.object.as_ref().map(|object| convert::id("entry.object", object)).transpose().map_err(|error| malformed(&error))?;
        Ok(Self {
            version: convert::id("entry.version", &entry.version).map_err(|error| malformed(&error))?,
            object,
            key: entry.key,
            size: entry.size,
            modified: UnixMillis(entry.modified),
            current: entry.current,
        })
    }
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The id of its creation record.
    pub id: BucketId,
    /// What people call it.
    pub name: String,
    /// How its data are kept.
    pub policy: Policy,
    /// When it was made.
    pub created: UnixMillis,
    /// Why the present layout cannot keep every copy of the policy; empty if it can.
    pub warning: String,
}

impl TryFrom<v1::Bucket> for Bucket {
    type Error = Error;
    fn try_from(bucket: v1::Bucket) -> Result<Self, Error> {
        let policy = bucket.policy.as_ref().ok_or_else(|| malformed(&"a bucket without a policy"))?;
        Ok(Self {
            id: convert::id("bucket.id", &bucket.id).map_err(|error| malformed(&error))?,
            policy: Policy::try_from(policy).map_err(|error| malformed(&error))?,
            name: bucket.name,
            created: UnixMillis(bucket.created),
            warning: bucket.warning,
        })
    }
}

/// What a key may do in one bucket, or in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The bucket's name; `None`: all.
    pub bucket: Option<String>,
    /// "read", "write", "append", "delete", "admin".
    pub rights: Vec<String>,
}

impl From<Grant> for v1::Grant {
    fn from(grant: Grant) -> Self {
        Self { bucket: grant.bucket.unwrap_or_default(), rights: grant.rights }
    }
}

impl From<v1::Grant> for Grant {
    fn from(grant: v1::Grant) -> Self {
        Self { bucket: Some(grant.bucket).filter(|bucket| !bucket.is_empty()), rights: grant.rights }
    }
}

/// An access key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// What goes into `AFAR_ACCESS_KEY_ID`.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// When it was made.
    pub created: UnixMillis,
}

impl From<v1::AccessKey> for AccessKey {
    fn from(key: v1::AccessKey) -> Self {
        Self {
            id: key.access_key_id,
            name: key.name,
            grants: key.grants.into_iter().map(Grant::from).collect(),
            created: UnixMillis(key.created),
        }
    }
}

/// A new access key: the only time that its secret is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct NewKey {
    /// The key.
    pub key: AccessKey,
    /// What goes into `AFAR_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("key", &self.key).finish_non_exhaustive()
    }
}
