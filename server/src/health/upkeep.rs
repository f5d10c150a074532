//! The upkeep of this node's own log: its files are looked for (rule 26), the index is compared with the segments (rule 18), every byte is read again within
//! the scrub's bound (rule 25), what compaction can free is freed, and the survey is made anew.
use super::survey;
use crate::{limits, node::Node, objects::versions};
use afar_model::record::RecordKey;
use afar_store::VersionRow;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Surveys now and then, for those who ask without asking for a fresh one.
pub async fn surveys(node: Arc<Node>, stop: CancellationToken) {
    loop {
        refresh(&node).await;
        if stop.run_until_cancelled(prove_prepared(&node)).await.is_none() {
            return;
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause(&node))).await.is_none() {
            return;
        }
    }
}

/// A large survey is made more seldom, so that it takes a twentieth of one core at most.
fn pause(node: &Node) -> Duration {
    limits::SURVEY_EVERY.max(node.survey.load().took * 20)
}

/// Proves versions whose coordinator never said that they are settled, so that they do not wait for a reader (rule 1). Those
/// that nobody can have acknowledged are remembered until the next time, lest they be counted.
async fn prove_prepared(node: &Arc<Node>) {
    let survey = node.survey.load_full();
    let mut disproved = HashSet::new();
    for row in &survey.prepared {
        let Some(bucket) = node.buckets.get(&row.bucket).filter(|_| !is_shadowed(node, row)) else { continue };
        let listed = versions::Listed { entry: row.entry.clone(), holders: vec![node.me] };
        match versions::complete(node, &bucket, &row.key, &listed).await {
            Ok(versions::Standing::Disproved) => {
                disproved.insert(RecordKey { bucket: row.bucket, id: row.entry.id });
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a prepared version stays unproved"),
        }
    }
    node.disproved.store(Arc::new(disproved));
    if !survey.prepared.is_empty() {
        refresh(node).await;
    }
}

/// Whether a newer version has turned out to stand since the survey: then nobody waits for this one, and what was left behind by
/// a put that others outran must not become a version of its own.
pub fn is_shadowed(node: &Node, row: &VersionRow) -> bool {
    let newer = node.store.versions(&row.bucket, &row.key, None, limits::VERSIONS_PAGE).unwrap_or_default();
    newer.iter().any(|other| other.settled && other.order() > row.entry.order())
}

/// Makes the survey anew.
pub async fn refresh(node: &Arc<Node>) {
    let surveyor = Arc::clone(node);
    if let Some(found) = node.lifecycle.blocking("survey", move || survey::survey(&surveyor)).await {
        node.ledger.own_missing_clear(found.unmissed.iter().copied());
        node.survey.store(Arc::new(found));
    }
}

/// Looks whether the files of the log are still there, and what was missing is again. What is not is asked of the others.
pub async fn look(node: Arc<Node>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(limits::LOOK_AT_FILES_EVERY)).await.is_some() {
        let looker = Arc::clone(&node);
        let look = move || {
            looker.store.look();
            looker.note_found();
        };
        node.lifecycle.blocking("look", look).await;
        // Takes note of a loss, and begins to mend it.
        node.is_catching_up();
    }
}

/// Compares index and segments.
pub async fn index(node: Arc<Node>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(limits::CHECK_INDEX_EVERY)).await.is_some() {
        let store = node.store.clone();
        let Some(check) = node.lifecycle.blocking("check index", move || store.check_index()).await else { continue };
        if !check.matches {
            tracing::error!(mismatches = ?check.mismatches, "the index did not match the log and is being rebuilt");
            node.poke();
        }
    }
}

/// Reads the certificate files again, now and then or when asked to.
pub async fn certificates(node: Arc<Node>, stop: CancellationToken) {
    loop {
        let wait = tokio::time::timeout(limits::CERTIFICATES_EVERY, node.identity.asked());
        if stop.run_until_cancelled(wait).await.is_none() {
            return;
        }
        let reader = Arc::clone(&node);
        // What is wrong with them is logged and shown by the identity itself.
        let read = move || {
            let _ = reader.reload_identity();
            reader.public_tls.reload(reader.now());
        };
        node.lifecycle.blocking("certificates", read).await;
    }
}

/// Reads everything again, a little at a time: as much per step as finishes within half the bound.
pub async fn scrub(node: Arc<Node>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(limits::SCRUB_EVERY)).await.is_some() {
        let store = node.store.clone();
        let Some(step) = node.lifecycle.blocking("scrub", move || store.scrub_step(step_bytes(store.usage().used))).await else { continue };
        if !step.corrupt.is_empty() {
            tracing::error!(records = step.corrupt.len(), "the scrub found bad copies here: they are quarantined and will be mended");
            node.ledger.own_missing_add(step.corrupt);
            node.poke();
        }
    }
}

fn step_bytes(used: u64) -> u64 {
    let steps = afar_model::limits::SCRUB_WITHIN.as_secs() / 2 / limits::SCRUB_EVERY.as_secs();
    (used / steps.max(1)).max(limits::SCRUB_STEP_MIN)
}

/// Compacts as long as there is something worth it.
pub async fn compact(node: Arc<Node>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(limits::COMPACT_EVERY)).await.is_some() {
        let store = node.store.clone();
        match node.lifecycle.blocking("compact", move || store.compact_step()).await {
            Some(Ok(step)) if step.segment.is_some() => tracing::info!(freed = step.freed, copied = step.copied, "compacted a segment"),
            Some(Err(error)) => tracing::warn!(%error, "compaction failed"),
            _ => {}
        }
    }
}

/// When physics refutes a pair of sites, or no longer does, placements are derived anew.
pub async fn physics(node: Arc<Node>, stop: CancellationToken) {
    let mut known = node.peers.refuted();
    while stop.run_until_cancelled(tokio::time::sleep(limits::HELLO_INTERVAL)).await.is_some() {
        let now = node.peers.refuted();
        if now != known {
            node.reload_settings().await;
            known = now;
        }
    }
}

/// Discards versions that were prepared longer ago than the upload grace and that nobody can prove (rule 1): only when every
/// node of the layout answers, for nothing is destroyed on silence.
pub async fn discard(node: Arc<Node>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(limits::DISCARD_EVERY)).await.is_some() {
        let reader = Arc::clone(&node);
        let Some(old) = node.lifecycle.blocking("old", move || prepared_before_grace(&reader)).await else { continue };
        for row in old {
            let everybody = node.layout().members().all(|n| node.answers(n));
            let Some(bucket) = node.buckets.get(&row.bucket).filter(|_| everybody) else { continue };
            let listed = versions::Listed { entry: row.entry.clone(), holders: vec![node.me] };
            if let Ok(versions::Standing::Disproved) = versions::complete(&node, &bucket, &row.key, &listed).await {
                node.discard(RecordKey { bucket: row.bucket, id: row.entry.id }, &row.key, row.entry.stamp).await;
            }
        }
    }
}

fn prepared_before_grace(node: &Node) -> Vec<VersionRow> {
    let (mut old, mut after) = (Vec::new(), None);
    loop {
        let rows = node.store.known_versions(after.as_ref(), limits::SURVEY_PAGE).unwrap_or_default();
        after = rows.last().map(VersionRow::cursor);
        let end = rows.len() < limits::SURVEY_PAGE;
        let is_old = |row: &VersionRow| !row.entry.settled && node.now().since(row.entry.received) > afar_model::limits::UPLOAD_GRACE;
        old.extend(rows.into_iter().filter(is_old));
        if end || old.len() > limits::SURVEY_PAGE {
            return old;
        }
    }
}

/// Follows every settled version to its pieces, after the start and now and then: what should be here and is not (an earlier
/// run found it bad, say) is asked of the others, and is not believed to be safe.
pub async fn references(node: Arc<Node>, stop: CancellationToken) {
    let mut pause = limits::REFERENCES_SOON;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        if node.layouts.open().chapters().len() > 1 {
            // What is newly assigned is on its way.
            continue;
        }
        let reader = Arc::clone(&node);
        match node.lifecycle.blocking("references", move || dangling(&reader)).await {
            Some(Ok(missing)) => {
                pause = limits::REFERENCES_EVERY;
                if !missing.is_empty() {
                    tracing::error!(
                        records = missing.len(),
                        "records that this node should have are missing: they are asked of the others"
                    );
                    node.ledger.own_missing_add(missing);
                    node.poke();
                }
            }
            _ => pause = limits::REFERENCES_SOON,
        }
    }
}

/// Pieces of settled versions that are assigned to this node and are not here, and versions of which only a note is left.
fn dangling(node: &Node) -> Result<Vec<RecordKey>, afar_store::NotReady> {
    let (mut missing, mut after) = (Vec::new(), None);
    loop {
        let rows = node.store.known_versions(after.as_ref(), limits::SURVEY_PAGE)?;
        after = rows.last().map(VersionRow::cursor);
        let end = rows.len() < limits::SURVEY_PAGE;
        missing.extend(rows.iter().filter(|row| is_missed(node, row)).map(|row| RecordKey { bucket: row.bucket, id: row.entry.id }));
        for row in rows.iter().filter(|row| row.here && row.entry.settled && !row.entry.inline && row.entry.object.is_some()) {
            missing.extend(survey::pieces_here(node, row.bucket, row.entry.id).into_iter().filter(|key| !node.store.holds(key)));
        }
        if end || missing.len() >= limits::LEDGER_EXCEPTIONS {
            return Ok(missing);
        }
    }
}

/// Whether this is a version that the node should have and of which it only knows that there was one. Of no use is one that is
/// not the newest any more, or that only said that its key holds nothing: that is known.
fn is_missed(node: &Node, row: &VersionRow) -> bool {
    let mine =
        || node.buckets.get(&row.bucket).is_some_and(|bucket| bucket.assigned(bucket.version_partition(&row.key)).contains(&node.me));
    !row.here && row.entry.object.is_some() && mine() && !is_shadowed(node, row)
}
