//! Challenges between nodes: "prove, with this fresh nonce, that you still hold these bytes". The proof is the BLAKE3 of
//! the bytes keyed with the nonce, which cannot be had from their id. This is the plain form: a few records every
//! [`crate::limits::AUDIT_EVERY`], chosen at random from what both hold.
use super::{fetch, ledger::Holding};
use crate::{cluster::peers::ChannelKind, limits, node::Node};
use afar_model::{
    layout::NodeIndex,
    placement::Partition,
    record::{RecordKey, RecordKind, Version},
    units::UnixMillis,
};
use afar_proto::{convert, v1};
use afar_store::{IdEntry, IdRange};
use bytes::Bytes;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The answer to a challenge: for each record the proof, empty where there is no good copy here. The bytes come from the files
/// that the paths name (rule 26).
pub async fn answer(node: &Arc<Node>, nonce: [u8; 32], keys: Vec<RecordKey>) -> Vec<Bytes> {
    let mut proofs = Vec::with_capacity(keys.len());
    for key in keys {
        let proof = match fetch::read_by_path(node, key).await {
            Ok(Some(record)) => convert::bytes(blake3::keyed_hash(&nonce, record.body()).as_bytes()),
            _ => Bytes::new(),
        };
        proofs.push(proof);
    }
    proofs
}

/// Challenges one peer for as long as the node runs.
pub async fn run(node: Arc<Node>, peer: NodeIndex, stop: CancellationToken) {
    while node.layout().duty(peer).is_member() {
        let mut failed = false;
        if node.peers.usable(peer) && node.ledger.compared_at(peer).is_some() {
            match challenge(&node, peer).await {
                // Nothing in common: nothing proved.
                Ok(None) => {}
                Ok(Some(wrong)) if wrong.is_empty() => node.ledger.audited(peer),
                Ok(Some(wrong)) => {
                    tracing::error!(
                        peer = node.layout().node_name(peer),
                        records = wrong.len(),
                        "failed an audit: it does not hold what it should"
                    );
                    failed = true;
                    node.ledger.failed_audit(peer);
                    node.poke();
                }
                Err(error) => tracing::debug!(peer = node.layout().node_name(peer), error, "no answer to an audit"),
            }
        }
        let pause = match () {
            () if failed => limits::RECONCILE_RETRY, // no sooner than what it lacks can be there
            () if node.ledger.holds_everything(peer) => limits::AUDIT_EVERY,
            () => limits::RECONCILE_SOON,
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Records whose proof was missing or wrong although this node has a good copy and the peer should; `None` if there was
/// nothing to ask for.
async fn challenge(node: &Arc<Node>, peer: NodeIndex) -> Result<Option<Vec<RecordKey>>, String> {
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| "the system gives no randomness")?;
    let chooser = Arc::clone(node);
    let chosen = node.lifecycle.blocking("choose", move || choose(&chooser, peer, nonce)).await.unwrap_or_default();
    let keys: Vec<RecordKey> = chosen.iter().map(|entry| entry.key).collect();
    if keys.is_empty() {
        return Ok(None);
    }
    let mut client = fetch::peer(node, peer, ChannelKind::Control).ok_or("no such peer")?;
    let request = v1::AuditRequest { nonce: convert::bytes(&nonce), keys: keys.iter().map(|key| v1::RecordKey::from(*key)).collect() };
    let reply = client
        .audit(fetch::with_deadline(request, limits::FETCH_DEADLINE))
        .await
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    let expected = answer(node, nonce, keys).await;
    let proofs = reply.proofs.into_iter().map(Some).chain(std::iter::repeat(None));
    let compared = chosen.into_iter().zip(expected).zip(proofs).filter(|((_, expected), _)| !expected.is_empty());
    let (right, wrong): (Vec<_>, Vec<_>) = compared.partition(|((_, expected), proof)| proof.as_ref() == Some(expected));
    let wrong: Vec<IdEntry> = wrong.into_iter().map(|((entry, _), _)| entry).collect();
    let judge = Arc::clone(node);
    let accused =
        move || -> Vec<RecordKey> { wrong.iter().filter(|entry| is_accused(&judge, peer, entry)).map(|entry| entry.key).collect() };
    let wrong = node.lifecycle.blocking("accuse", accused).await.ok_or("the node is ending")?;
    Ok(if right.is_empty() && wrong.is_empty() { None } else { Some(wrong) })
}

/// Whether a peer that has not proved a record is to be blamed for it: it still should hold it (another layout may have been
/// closed meanwhile, and the copy let go of), and was to hold it before. A record that has come since the last comparison
/// with the peer may be part of a put that is still on its way there, or that it had no room for. A settled version is not:
/// whoever lacks it was named when it was settled. Blocking.
fn is_accused(node: &Node, peer: NodeIndex, entry: &IdEntry) -> bool {
    let Some((_, compared)) = node.ledger.compared_at(peer) else { return false };
    let received = || node.store.get(&entry.key).ok().flatten().map(|found| found.received);
    should_hold(node, peer, entry) && is_evidence(entry.kind, received, compared)
}

/// Whether a peer that was compared at that time had to have a record that came here when `received` says.
fn is_evidence(kind: RecordKind, received: impl FnOnce() -> Option<UnixMillis>, compared: UnixMillis) -> bool {
    kind == RecordKind::Version || received().is_some_and(|received| received < compared)
}

/// Some records that both should hold, from a random place of the id space on. Blocking.
fn choose(node: &Node, peer: NodeIndex, nonce: [u8; 32]) -> Vec<IdEntry> {
    let [a, b, c, d, ..] = nonce;
    let first = u32::from_be_bytes([a, b, c, d]);
    let page = |first| node.store.ids(IdRange { first, last: u32::MAX }, None, &[], 16 * limits::AUDIT_RECORDS).unwrap_or_default();
    let entries = page(first).into_iter().chain(page(0));
    entries.filter(|entry| should_hold(node, peer, entry)).take(limits::AUDIT_RECORDS).collect()
}

fn should_hold(node: &Node, peer: NodeIndex, entry: &IdEntry) -> bool {
    let partition = match entry.kind {
        RecordKind::Version => version_partition(node, &entry.key),
        _ => Some(Partition::of_record(&entry.key.id, node.layout().partitions())),
    };
    partition.is_some_and(|partition| node.is_assigned_by_any(peer, &entry.key, partition))
        && node.ledger.holding(peer, true, &entry.key) != Holding::No
}

/// A version is placed by its key, which only its body names. One that is only prepared may not be there yet.
fn version_partition(node: &Node, key: &RecordKey) -> Option<Partition> {
    let record = node.store.get(key).ok().flatten()?.record;
    let (version, _) = Version::decode_description(record.body()).ok()?;
    let settled = node.store.version(&key.bucket, &version.key, version.stamp, key.id).ok()?.is_some_and(|entry| entry.settled);
    node.buckets.get(&key.bucket).filter(|_| settled).map(|bucket| bucket.version_partition(&version.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_accused_of_what_came_after_the_last_comparison_and_may_be_on_its_way() {
        let at = |received: u64| move || Some(UnixMillis(received));
        let compared = UnixMillis(1000);
        for kind in [RecordKind::Chunk, RecordKind::Manifest, RecordKind::Setting] {
            assert!(is_evidence(kind, at(999), compared), "both had it then, or the ledger knows better");
            assert!(!is_evidence(kind, at(1000), compared) && !is_evidence(kind, at(2000), compared));
            assert!(!is_evidence(kind, || None, compared), "it has gone here, too");
        }
        // Only settled versions are asked for, and who lacks one was named when it was settled.
        assert!(is_evidence(RecordKind::Version, at(2000), compared));
    }
}
