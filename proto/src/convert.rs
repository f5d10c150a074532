//! Checked conversions. The receiving side validates; an error says which field of what was wrong.
use crate::v1;
use afar_model::{
    hlc::Stamp,
    id::{BucketId, ObjectId, RecordId, UploadId},
    policy::{DegradedWrites, Durability, Policy, VerifyDistance},
    record::{Record, RecordKey, RecordKind, VersionEntry},
    units::{Metres, UnixMillis},
};
use bytes::Bytes;

/// A message that is not what its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidMessage {
    field: &'static str,
    problem: String,
}

impl InvalidMessage {
    /// Names the field and what is wrong with it.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }

    /// A field that must be there and is not.
    pub fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

/// An id of 16 or 32 bytes.
///
/// # Errors
/// If the length is wrong.
pub fn id<'a, T: TryFrom<&'a [u8], Error = afar_model::id::IdLengthError>>(
    field: &'static str,
    bytes: &'a [u8],
) -> Result<T, InvalidMessage> {
    T::try_from(bytes).map_err(|error| InvalidMessage::new(field, error.to_string()))
}

/// Bytes of an id, for a message.
pub fn bytes(id: &[u8]) -> Bytes {
    Bytes::copy_from_slice(id)
}

impl From<&Record> for v1::Record {
    fn from(record: &Record) -> Self {
        Self { kind: record.kind() as u32, bucket: bytes(record.key().bucket.as_bytes()), body: record.body().clone() }
    }
}

/// Hashes the body: what comes out has the id of what came in. Runs for about a quarter of a millisecond per MiB.
///
/// # Errors
/// If the kind is unknown, the bucket malformed or the body too long.
impl TryFrom<v1::Record> for Record {
    type Error = InvalidMessage;
    fn try_from(record: v1::Record) -> Result<Self, InvalidMessage> {
        let kind = u8::try_from(record.kind).ok().and_then(RecordKind::from_u8);
        let kind =
            kind.ok_or_else(|| InvalidMessage::new("record.kind", format!("{} is not known to this program: upgrade it", record.kind)))?;
        if record.body.len() > afar_model::limits::RECORD_BYTES_MAX {
            return Err(InvalidMessage::new("record.body", format!("has {} bytes", record.body.len())));
        }
        Ok(Self::new(kind, id("record.bucket", &record.bucket)?, record.body))
    }
}

impl From<RecordKey> for v1::RecordKey {
    fn from(key: RecordKey) -> Self {
        Self { bucket: bytes(key.bucket.as_bytes()), id: bytes(key.id.as_bytes()) }
    }
}

impl TryFrom<&v1::RecordKey> for RecordKey {
    type Error = InvalidMessage;
    fn try_from(key: &v1::RecordKey) -> Result<Self, InvalidMessage> {
        Ok(Self { bucket: id("key.bucket", &key.bucket)?, id: id("key.id", &key.id)? })
    }
}

impl From<&VersionEntry> for v1::VersionEntry {
    fn from(entry: &VersionEntry) -> Self {
        Self {
            stamp: entry.stamp.as_u64(),
            id: bytes(entry.id.as_bytes()),
            upload: bytes(entry.upload.as_bytes()),
            settled: entry.settled,
            object: entry.object.map(|(object, _)| bytes(object.as_bytes())),
            size: entry.object.map_or(0, |(_, size)| size),
            inline: entry.inline,
            received: entry.received.0,
        }
    }
}

impl TryFrom<&v1::VersionEntry> for VersionEntry {
    type Error = InvalidMessage;
    fn try_from(entry: &v1::VersionEntry) -> Result<Self, InvalidMessage> {
        let object: Option<ObjectId> = entry.object.as_ref().map(|object| id("entry.object", object)).transpose()?;
        Ok(Self {
            stamp: Stamp::from_u64(entry.stamp),
            id: id::<RecordId>("entry.id", &entry.id)?,
            upload: id::<UploadId>("entry.upload", &entry.upload)?,
            settled: entry.settled,
            object: object.map(|object| (object, entry.size)),
            inline: entry.inline,
            received: UnixMillis(entry.received),
        })
    }
}

/// Names a version to a peer.
pub fn version_ref(bucket: &BucketId, key: &str, stamp: Stamp, id: &RecordId) -> v1::VersionRef {
    v1::VersionRef { bucket: bytes(bucket.as_bytes()), key: key.to_owned(), stamp: stamp.as_u64(), id: bytes(id.as_bytes()) }
}

impl From<&Policy> for v1::Policy {
    fn from(policy: &Policy) -> Self {
        Self {
            copies: u32::from(policy.copies),
            far_copies: u32::from(policy.far_copies),
            min_distance_metres: policy.min_distance.0,
            level: policy.level.to_string(),
            home: policy.home.clone(),
            countries: policy.countries.clone(),
            max_copies_per_provider: u32::from(policy.max_copies_per_provider),
            verify_distance: match policy.verify_distance {
                VerifyDistance::Enforce => "enforce",
                VerifyDistance::Warn => "warn",
                VerifyDistance::Off => "off",
            }
            .into(),
            degraded_writes: match policy.degraded_writes {
                DegradedWrites::Refuse => "refuse",
                DegradedWrites::Queue => "queue",
            }
            .into(),
        }
    }
}

impl TryFrom<&v1::Policy> for Policy {
    type Error = InvalidMessage;
    fn try_from(policy: &v1::Policy) -> Result<Self, InvalidMessage> {
        let small = |field, number: u32| u8::try_from(number).map_err(|_| InvalidMessage::new(field, format!("{number} is too many")));
        let checked = Self {
            copies: small("policy.copies", policy.copies)?,
            far_copies: small("policy.far_copies", policy.far_copies)?,
            min_distance: Metres(policy.min_distance_metres),
            level: match policy.level.as_str() {
                "far" => Durability::Far,
                "full" => Durability::Full,
                other => return Err(InvalidMessage::new("policy.level", format!("{other:?} is neither \"far\" nor \"full\""))),
            },
            home: policy.home.clone(),
            countries: policy.countries.clone(),
            max_copies_per_provider: small("policy.max_copies_per_provider", policy.max_copies_per_provider)?,
            verify_distance: match policy.verify_distance.as_str() {
                "enforce" => VerifyDistance::Enforce,
                "warn" => VerifyDistance::Warn,
                "off" => VerifyDistance::Off,
                other => {
                    return Err(InvalidMessage::new(
                        "policy.verify_distance",
                        format!("{other:?} is none of \"enforce\", \"warn\", \"off\""),
                    ));
                }
            },
            degraded_writes: match policy.degraded_writes.as_str() {
                "refuse" => DegradedWrites::Refuse,
                "queue" => DegradedWrites::Queue,
                other => {
                    return Err(InvalidMessage::new("policy.degraded_writes", format!("{other:?} is neither \"refuse\" nor \"queue\"")));
                }
            },
        };
        checked.check().map_err(|error| InvalidMessage::new("policy", error.to_string()))?;
        Ok(checked)
    }
}

/// Of the entries of a page those at the beginning that fit into one message, at least one, and whether any were left out:
/// a page may have thousands of entries, and keys may be long.
pub fn fitting<M: prost::Message>(entries: impl Iterator<Item = M>) -> (Vec<M>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        // Before each stand its field's number and its length.
        bytes += entry.encoded_len() + 8;
        if bytes > afar_model::limits::RECORD_BYTES_MAX && !page.is_empty() {
            return (page, true);
        }
        page.push(entry);
    }
    (page, false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_round_trips_and_nonsense_is_refused() {
        let policy = Policy { home: Some("a".into()), countries: vec!["FR".into()], ..Policy::default() };
        let wire = v1::Policy::from(&policy);
        assert_eq!(Policy::try_from(&wire), Ok(policy));
        assert!(Policy::try_from(&v1::Policy { copies: 0, ..wire.clone() }).is_err());
        assert!(Policy::try_from(&v1::Policy { copies: 300, ..wire.clone() }).is_err());
        assert!(Policy::try_from(&v1::Policy { level: "local".into(), ..wire }).is_err());
    }

    #[test]
    fn a_record_is_named_by_what_arrived() {
        let record = Record::new(RecordKind::Chunk, BucketId::SYSTEM, Bytes::from_static(b"abc"));
        let mut wire = v1::Record::from(&record);
        assert_eq!(Record::try_from(wire.clone()), Ok(record.clone()));
        wire.body = Bytes::from_static(b"abd");
        assert_ne!(Record::try_from(wire.clone()).unwrap().id(), record.id());
        wire.kind = 200;
        assert!(Record::try_from(wire).is_err());
    }

    #[test]
    fn a_page_of_the_longest_keys_fits_into_a_message_and_the_rest_is_left_for_the_next() {
        use prost::Message as _;
        let one = |n: usize| v1::KeyedVersion {
            bucket: vec![1; 32].into(),
            key: format!("{n:0width$}", width = afar_model::limits::KEY_BYTES_MAX),
            entry: Some(v1::VersionEntry::default()),
            lost: false,
        };
        let all = crate::limits::PAGE_MAX;
        let (mut taken, mut pages) = (0, 0);
        while taken < all {
            let (versions, more) = fitting((taken..all).map(one));
            assert!(!versions.is_empty() && versions[0].key == one(taken).key, "nothing is left out between two pages");
            taken += versions.len();
            pages += 1;
            assert_eq!(more, taken < all);
            let reply = v1::VersionIdsReply { versions, more };
            assert!(reply.encoded_len() <= crate::limits::MESSAGE_BYTES_MAX, "{} bytes", reply.encoded_len());
        }
        assert!(pages > 1, "that much would not have fitted into one");
        // One that is too large by itself is sent by itself: to leave it out would end the walk.
        let huge = || v1::KeyedVersion { key: "k".repeat(2 * afar_model::limits::RECORD_BYTES_MAX), ..v1::KeyedVersion::default() };
        assert_eq!(fitting([huge(), huge()].into_iter()).0.len(), 1);
    }
}
