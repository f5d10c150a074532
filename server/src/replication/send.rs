//! One record set to one node, this one or a peer, durable when it returns: the step that every write is made of.
use super::{
    lane::{LaneError, LaneKind},
    receive,
};
use crate::node::Node;
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    layout::NodeIndex,
    record::{Record, VersionEntry},
};
use afar_proto::{convert, v1};
use afar_store::AppendClass;
use std::sync::Arc;

/// For what a copy is made: decides how full a disk may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client's new data, on an assigned node.
    Client,
    /// A client's new data, on a node that stands in.
    Hint,
    /// A few bytes that remove something, or bring it back: no full disk refuses them before it refuses repair.
    Undo,
    /// Restoring copies.
    Repair,
}

impl Purpose {
    /// As in the message.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Hint => "hint",
            Self::Undo => "undo",
            Self::Repair => "repair",
        }
    }

    /// From its name in a message. What is not known gets the least rights.
    pub fn from_name(name: &str) -> Self {
        match name {
            "repair" => Self::Repair,
            "hint" => Self::Hint,
            "undo" => Self::Undo,
            _ => Self::Client,
        }
    }

    /// As the log's marks know it.
    pub const fn class(self) -> AppendClass {
        match self {
            Self::Client => AppendClass::Client,
            Self::Hint | Self::Undo | Self::Repair => AppendClass::Repair,
        }
    }
}

/// What a version's put has done before, and what it may do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempt<'a> {
    /// It was made before, under these ids: they are no earlier attempt (rule 5).
    pub own: &'a [RecordId],
    /// It makes a key that held nothing, and may not be stored but under its put's claim (rule 15).
    pub create: bool,
}

/// A copy of one record, and what its holder knew of its key.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Whether it is durable there. If not, an earlier attempt of the same put is: see `same_upload`.
    pub durable: bool,
    /// Whether a verified copy was there already.
    pub deduplicated: bool,
    /// For a version: the newest stamp that the holder knows for the key.
    pub newest_stamp: Stamp,
    /// For a version: the holder is catching up, so that others may know a newer one.
    pub catching_up: bool,
    /// For a version: another version of the same put.
    pub same_upload: Option<VersionEntry>,
    /// For a new bucket: another bucket of the same name.
    pub same_name: Option<BucketId>,
}

/// Why there is no durable copy there.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{node}: {error}")]
pub struct NotCopied {
    /// The node's name.
    pub node: String,
    /// What it said, or what went wrong.
    pub error: LaneError,
}

impl NotCopied {
    /// Whether the node said that it has no room.
    pub fn is_full(&self) -> bool {
        matches!(&self.error, LaneError::Refused { reason, .. } if reason == "full")
    }
}

/// Stores records on a node, durably.
///
/// # Errors
/// If the node does not say that all of them are durable. They may be there all the same.
pub async fn copy_to(
    node: &Arc<Node>,
    to: NodeIndex,
    records: &[Record],
    purpose: Purpose,
    kind: LaneKind,
) -> Result<Vec<Copied>, NotCopied> {
    attempt_at(node, to, records, purpose, kind, Attempt::default()).await
}

/// As [`copy_to`], for a version that a put makes.
///
/// # Errors
/// As [`copy_to`].
pub async fn attempt_at(
    node: &Arc<Node>,
    to: NodeIndex,
    records: &[Record],
    purpose: Purpose,
    kind: LaneKind,
    attempt: Attempt<'_>,
) -> Result<Vec<Copied>, NotCopied> {
    let failed = |error| NotCopied { node: node.layout().node_name(to).to_owned(), error };
    if to == node.me {
        return receive::store_here(node, records, purpose, attempt).await.map_err(failed);
    }
    let lane = node.lanes.to(to, kind).ok_or_else(|| failed(LaneError::Unreachable("no such peer".into())))?;
    let request = v1::StoreRecords {
        records: records.iter().map(v1::Record::from).collect(),
        sync: true,
        class: purpose.name().to_owned(),
        layout_version: node.layout().version(),
        open_versions: node.open_versions(),
        open_layouts: node.open_layouts(),
        supersedes: attempt.own.iter().map(|id| convert::bytes(id.as_bytes())).collect(),
        create: attempt.create,
    };
    let stored = lane.store(request).await.map_err(failed)?;
    stored.records.iter().zip(records).map(|(stored, record)| checked(stored, record).map_err(failed)).collect()
}

/// The peer must name the record that was sent and call it durable, or name the earlier attempt that stands instead:
/// anything else is not an acknowledgement.
fn checked(stored: &v1::StoredRecord, record: &Record) -> Result<Copied, LaneError> {
    if let Some(refused) = &stored.refused {
        return Err(LaneError::Refused { reason: refused.reason.clone(), detail: refused.detail.clone() });
    }
    if &stored.id[..] != record.id().as_bytes() {
        return Err(LaneError::Unreachable("the peer hashed other bytes than were sent".into()));
    }
    let same_upload = stored.same_upload.as_ref().and_then(|entry| VersionEntry::try_from(entry).ok());
    if !stored.durable && same_upload.is_none() {
        return Err(LaneError::Unreachable("the peer has written but not synced".into()));
    }
    Ok(Copied {
        durable: stored.durable,
        deduplicated: stored.deduplicated,
        newest_stamp: Stamp::from_u64(stored.newest_stamp),
        catching_up: stored.catching_up,
        same_upload,
        same_name: stored.same_name.as_ref().and_then(|id| convert::id("same_name", id).ok()),
    })
}
