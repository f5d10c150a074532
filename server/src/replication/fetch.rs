//! Reading records, here or from whoever holds them. Every body is hashed where it is read and again where it arrives;
//! a bad copy is never passed on, and is mended from the copy that was good.
use crate::{cluster::peers::ChannelKind, limits, node::Node};
use afar_model::{
    document::LayoutHash,
    layout::NodeIndex,
    placement::Partition,
    record::{Record, RecordKey},
};
use afar_proto::{
    convert,
    v1::{self, peer_client::PeerClient},
};
use afar_store::{AppendClass, Found, ReadError, Store};
use std::{sync::Arc, time::Duration};
use tonic::{Request, transport::Channel};

/// Why a record could not be read anywhere.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Nobody who answered has it; `silent` could not be asked.
    #[error("no verified copy of {key:?} answers{}", silent_note(silent))]
    Nowhere {
        /// The record.
        key: RecordKey,
        /// Nodes that may hold it and did not answer.
        silent: Vec<String>,
        /// Whether a damaged copy was seen.
        damaged: bool,
    },
}

fn silent_note(silent: &[String]) -> String {
    if silent.is_empty() { String::new() } else { format!(" (not reachable: {})", silent.join(", ")) }
}

/// A client for unary calls to a peer, with this deadline.
pub fn peer(node: &Node, to: NodeIndex, kind: ChannelKind) -> Option<PeerClient<Channel>> {
    let channel = node.peers.channel(to, kind)?;
    let client = PeerClient::new(channel)
        .max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX);
    Some(client)
}

/// A request that the peer drops, too, when its time is up.
pub fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// The record here: verified, `None` if it is not here or not good.
pub async fn read_here(node: &Arc<Node>, key: RecordKey) -> Result<Option<Record>, ReadError> {
    if let Some(found) = node.store.get_cached(&key, limits::READ_INLINE_BYTES) {
        return Ok(Some(found.record));
    }
    read_blocking(node, key, Store::get).await
}

/// As [`read_here`], from the file that its path names: proves that the record is here, not merely that it can be read.
pub async fn read_by_path(node: &Arc<Node>, key: RecordKey) -> Result<Option<Record>, ReadError> {
    read_blocking(node, key, Store::prove).await
}

async fn read_blocking(
    node: &Arc<Node>,
    key: RecordKey,
    read: fn(&Store, &RecordKey) -> Result<Option<Found>, ReadError>,
) -> Result<Option<Record>, ReadError> {
    let reader = Arc::clone(node);
    let look = move || {
        // Noted here, for whoever asked may not wait for the answer.
        read(&reader.store, &key).inspect_err(|error| {
            tracing::warn!(%error, "a copy here is not good: asking the others, and mending it");
            reader.ledger.own_missing_add([key]);
            // If it was a version, the log has counted it: see `Node::is_catching_up`.
            reader.poke();
        })
    };
    let read = tokio::task::spawn_blocking(look).await;
    let read = read.unwrap_or_else(|error| Err(ReadError::Disk { key, why: error.to_string() }));
    read.map(|found| found.map(|found| found.record))
}

/// Records of one peer, in order; `None` where it has no good copy.
///
/// # Errors
/// If the peer cannot be reached, in words.
pub async fn fetch_from(node: &Node, from: NodeIndex, keys: &[RecordKey], kind: ChannelKind) -> Result<Vec<Option<Record>>, String> {
    let mut client = peer(node, from, kind).ok_or("no such peer")?;
    let request = v1::FetchRequest { keys: keys.iter().map(|key| v1::RecordKey::from(*key)).collect() };
    let mut replies =
        client.fetch(with_deadline(request, limits::FETCH_DEADLINE)).await.map_err(|status| status.message().to_owned())?.into_inner();
    let mut records = Vec::with_capacity(keys.len());
    for key in keys {
        let reply = replies.message().await.map_err(|status| status.message().to_owned())?.ok_or("the peer ended too early")?;
        let record = match reply.record {
            Some(record) => check(record, *key).await,
            None => None,
        };
        records.push(record);
    }
    Ok(records)
}

/// A peer that answers with the wrong bytes has not answered.
async fn check(record: v1::Record, key: RecordKey) -> Option<Record> {
    let convert = move || Record::try_from(record);
    let record = tokio::task::spawn_blocking(convert).await.ok()?.ok()?;
    if record.key() == key {
        return Some(record);
    }
    tracing::error!(expected = ?key, got = ?record.key(), "a peer answered with the wrong bytes");
    None
}

/// Where to look for a record, best first: here, the assigned, then whoever else may hold it.
pub fn candidates(node: &Node, key: &RecordKey, partition: Partition) -> Vec<NodeIndex> {
    let (assigned, eligible) = match node.buckets.get(&key.bucket) {
        Some(bucket) => (bucket.assigned(partition), bucket.eligible()),
        None => (Vec::new(), node.layout().members().collect()),
    };
    let mut order = node.peers.nearest_first(assigned);
    let others: Vec<NodeIndex> = eligible.into_iter().filter(|node| !order.contains(node)).collect();
    order.extend(node.peers.nearest_first(others));
    order
}

/// A chunk or manifest from the nearest good copy; one that is bad here is mended on the way.
///
/// # Errors
/// If no good copy answers.
pub async fn read_anywhere(node: &Arc<Node>, key: RecordKey, partition: Partition, holders: &[NodeIndex]) -> Result<Record, FetchError> {
    let mut order = candidates(node, &key, partition);
    order.sort_by_key(|candidate| !holders.contains(candidate) && *candidate != node.me);
    let (mut silent, mut damaged) = (Vec::new(), false);
    for candidate in order {
        if candidate == node.me {
            match read_here(node, key).await {
                Ok(Some(record)) => return Ok(record),
                Ok(None) => {
                    if node.is_assigned(node.me, &key, partition) {
                        node.ledger.own_missing_add([key]);
                    }
                    damaged |= node.store.is_noted(&key);
                }
                Err(_) => damaged = true,
            }
            continue;
        }
        if !node.peers.usable(candidate) {
            silent.push(node.layout().node_name(candidate).to_owned());
            continue;
        }
        match fetch_from(node, candidate, &[key], ChannelKind::Bulk(0)).await {
            Ok(records) => {
                if let Some(record) = records.into_iter().next().flatten() {
                    mend(node, damaged || node.ledger.is_missing_here(&key), &record);
                    return Ok(record);
                }
                // It answers, and has no good copy: whatever was believed of it.
                node.ledger.lacks(candidate, [key]);
            }
            Err(error) => {
                tracing::debug!(%error, from = node.layout().node_name(candidate), "fetch failed");
                silent.push(node.layout().node_name(candidate).to_owned());
            }
        }
    }
    Err(FetchError::Nowhere { key, silent, damaged })
}

/// Puts a good copy where a bad one was.
fn mend(node: &Arc<Node>, wanted: bool, record: &Record) {
    if !wanted {
        return;
    }
    let (mender, record) = (Arc::clone(node), record.clone());
    node.lifecycle.spawn_brief("mend", async move {
        let key = record.key();
        match mender.keep(AppendClass::Repair, vec![record]).await {
            Ok(_) => tracing::info!(record = ?key.id, "mended a bad copy"),
            Err(error) => tracing::warn!(record = ?key.id, %error, "a bad copy could not be mended"),
        }
    });
}

/// What a node can say of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Read, hashed, and covered by a sync.
    Durable,
    /// Certainly not there.
    Absent,
    /// It was there, and is lost: a version that is noted.
    Lost,
    /// None of these: bad, unreadable, its sync failed, or the node did not answer. Says nothing about absence.
    Unknown,
}

impl From<v1::Proof> for Proof {
    fn from(proof: v1::Proof) -> Self {
        match proof {
            v1::Proof::Durable => Self::Durable,
            v1::Proof::Absent => Self::Absent,
            v1::Proof::Lost => Self::Lost,
            v1::Proof::Unknown => Self::Unknown,
        }
    }
}

impl From<Proof> for v1::Proof {
    fn from(proof: Proof) -> Self {
        match proof {
            Proof::Durable => Self::Durable,
            Proof::Absent => Self::Absent,
            Proof::Lost => Self::Lost,
            Proof::Unknown => Self::Unknown,
        }
    }
}

/// What this node can say of these records: each is read, hashed, and covered by a sync.
pub async fn prove_here(node: &Arc<Node>, keys: &[RecordKey]) -> Vec<Proof> {
    let mut proofs = Vec::with_capacity(keys.len());
    let mut tokens = Vec::new();
    for key in keys {
        proofs.push(match read_here(node, *key).await {
            // An append of what is there verifies the copy, by path (rule 26), and writes nothing, so a full disk may do it. What
            // can still be read from a deleted file is written again.
            Ok(Some(record)) => match node.store.append(AppendClass::Housekeeping, vec![record]).await {
                Ok(written) => {
                    tokens.extend(written);
                    Proof::Durable
                }
                Err(_) => Proof::Unknown,
            },
            Ok(None) if node.store.is_noted(key) => Proof::Lost,
            Ok(None) if node.is_catching_up() || node.ledger.is_missing_here(key) => Proof::Unknown,
            Ok(None) => Proof::Absent,
            Err(_) => Proof::Unknown,
        });
    }
    if node.store.sync(&tokens).await.is_err() {
        proofs.iter_mut().filter(|proof| **proof == Proof::Durable).for_each(|proof| *proof = Proof::Unknown);
    }
    proofs
}

/// What a node can say of these records; all unknown if it does not answer.
pub async fn prove_at(node: &Arc<Node>, at: NodeIndex, keys: &[RecordKey]) -> Vec<Proof> {
    if at == node.me {
        return prove_here(node, keys).await;
    }
    ask_proofs(node, at, keys, &[]).await.filter(|proofs| proofs.len() == keys.len()).unwrap_or_else(|| vec![Proof::Unknown; keys.len()])
}

/// As [`prove_at`], but only if that node has this layout as its current and only one.
pub async fn prove_under(node: &Arc<Node>, at: NodeIndex, keys: &[RecordKey], layout: &LayoutHash) -> Vec<Proof> {
    ask_proofs(node, at, keys, layout).await.filter(|proofs| proofs.len() == keys.len()).unwrap_or_else(|| vec![Proof::Unknown; keys.len()])
}

async fn ask_proofs(node: &Node, at: NodeIndex, keys: &[RecordKey], layout: &[u8]) -> Option<Vec<Proof>> {
    if !node.peers.usable(at) {
        return None;
    }
    let mut client = peer(node, at, ChannelKind::Control)?;
    let keys = keys.iter().map(|key| v1::RecordKey::from(*key)).collect();
    let request = v1::ProveRequest { keys, layout: convert::bytes(layout) };
    let reply = client.prove(with_deadline(request, limits::FETCH_DEADLINE)).await.ok()?.into_inner();
    Some(reply.proofs().map(Proof::from).collect())
}

/// Who of these nodes holds each record, durably, and who certainly does not.
pub async fn prove_all(node: &Arc<Node>, whom: &[NodeIndex], keys: &[RecordKey]) -> Vec<Proved> {
    let answers = futures_util::future::join_all(whom.iter().map(|n| prove_at(node, *n, keys))).await;
    let said = |index: usize, wanted: Proof| {
        let says = move |answer: &Vec<Proof>| answer.get(index) == Some(&wanted);
        whom.iter().zip(&answers).filter(|(_, answer)| says(answer)).map(|(n, _)| *n).collect()
    };
    (0..keys.len())
        .map(|index| Proved { holders: said(index, Proof::Durable), absent: said(index, Proof::Absent), lost: said(index, Proof::Lost) })
        .collect()
}

/// What was said of one record.
#[derive(Debug, Clone)]
pub struct Proved {
    /// Durable there.
    pub holders: Vec<NodeIndex>,
    /// Certainly not there.
    pub absent: Vec<NodeIndex>,
    /// It was there.
    pub lost: Vec<NodeIndex>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Alone, dropped_after, until};
    use afar_model::{id::BucketId, record::RecordKind};
    use std::fs;

    #[tokio::test]
    async fn a_bad_copy_is_noted_even_if_whoever_read_it_has_gone_away() {
        let alone = Alone::start().await;
        let node = &alone.node;
        let content = b"what a disk forgets".repeat(1000);
        let record = Record::new(RecordKind::Chunk, BucketId::ZERO, content.clone().into());
        node.store.commit(AppendClass::Client, vec![record.clone()]).await.unwrap();
        for segment in fs::read_dir(node.config.data.first().unwrap().join("segments")).unwrap() {
            let path = segment.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(content.len()).position(|bytes| bytes == content) {
                bytes[at] ^= 1;
                fs::write(&path, bytes).unwrap();
            }
        }
        assert!(dropped_after(1, read_by_path(node, record.key())).await.is_none());
        until(|| if node.ledger.is_missing_here(&record.key()) { Ok(()) } else { Err("not noted") }).await;
        alone.stop().await;
    }
}
