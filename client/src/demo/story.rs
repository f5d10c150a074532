//! The story: store, burn, read back, go on writing, replace, heal. Each step says what it did; the last line is the verdict.
use super::{
    Arguments,
    files::{DemoFile, gather},
    find_afard,
    map::{BUCKET, HOME, SITES, blueprint, verdicts},
    nodes::{Folder, NodeProcess, start_all, wait_ready},
    serve::ensure_bucket,
};
use crate::{
    answers::Stored,
    cli::{output::Out, progress::Progress, units},
    client::Client,
    cluster::create,
    error::{Error, Kind},
    get::Range,
    names::Wanted,
    put::{PutOptions, Source},
};
use afar_model::{id::ObjectId, state::State, units::Metres};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Files at once: small files wait for three nodes' disks.
const JOBS: usize = 8;
/// Files up to this size are read once into memory, so that what is hashed is what is put even if somebody edits them.
const WHOLE_MAX: u64 = 16 << 20;
/// The survivors notice within seconds that a site is gone.
const SURVIVORS_WITHIN: Duration = Duration::from_secs(60);
/// A replacement of a demo's size is healed in seconds; a busy machine may take longer.
const HEALED_WITHIN: Duration = Duration::from_secs(180);
/// Between two looks.
const POLL: Duration = Duration::from_millis(200);
/// Lines of single files shown without -v.
const SHOWN: usize = 8;
/// Objects written after the fire.
const AFTER_THE_FIRE: usize = 5;

/// The temporary folder, and in it the nodes. The nodes are ended before their folder is removed.
struct Stage {
    nodes: Vec<NodeProcess>,
    cluster: Folder,
    _folder: tempfile::TempDir,
}

/// What became of what.
#[derive(Debug, Default)]
struct Outcome {
    objects: u64,
    bytes: u64,
    verified: u64,
    lost: u64,
    written_after: u64,
    far_distance: Metres,
    healed: bool,
}

/// What was put, and what it must be when it comes back.
struct Kept {
    key: String,
    object: ObjectId,
    size: u64,
}

/// Tells the story and exits 0 only if nothing was lost.
pub(crate) async fn run(out: &Out, arguments: Arguments) -> Result<u8, Error> {
    let begun = Instant::now();
    let afard = find_afard(arguments.afard.as_ref())?;
    let (files, left_out) = gather(&arguments.file)?;
    let mut stage = raise(out, &afard, left_out).await?;
    let mut outcome = Outcome::default();

    let mut kept = store(out, &stage, files, &mut outcome).await?;
    burn(out, &mut stage)?;
    read_back(out, &stage, &kept, &mut outcome).await?;
    kept.extend(write_after(out, &stage, &mut outcome).await?);
    heal(out, &afard, &mut stage, kept.len() as u64, &mut outcome).await?;

    let took = begun.elapsed();
    out.either(|| verdict_json(&outcome, took), || verdict_words(&outcome, took))?;
    drop(stage);
    Ok(match (outcome.lost, outcome.healed) {
        (0, true) => 0,
        (0, false) => Kind::BelowPolicy.exit_code(),
        _ => Kind::Integrity.exit_code(),
    })
}

fn step(out: &Out, name: &str, value: Value, words: impl FnOnce() -> String) -> Result<(), Error> {
    if out.json {
        let mut value = value;
        value["message_type"] = json!(name);
        out.value(&value)
    } else if out.quiet {
        Ok(())
    } else {
        out.line(words())
    }
}

/// Three nodes, and what the policy says of their places.
async fn raise(out: &Out, afard: &Path, left_out: usize) -> Result<Stage, Error> {
    let folder = tempfile::Builder::new().prefix("afar-demo-").tempdir().map_err(|error| Error::io("make a temporary folder", &error))?;
    let plan = blueprint()?;
    plan.check()?;
    let layout = plan.layout().map_err(|_| Error::usage("the demo's layout makes no sense"))?;
    let root = create(&folder.path().join("cluster"), &plan)?;
    let cluster = Folder::new(root);
    if left_out > 0 {
        out.note(format!("afar: {left_out} files are left out: a demo is short"));
    }
    let verdicts = verdicts(&layout, &plan.policy);
    let table = json!({
        "home": HOME,
        "min_distance_km": plan.policy.min_distance.km(),
        "sites": verdicts.iter().map(|v| json!({"site": v.site, "distance_km": v.distance.km(), "far": v.far, "why": v.why})).collect::<Vec<_>>(),
    });
    step(out, "distances", table, || {
        let mut lines =
            vec![format!("Where may the far copy of what is in {HOME} be? The policy: at least {} away.", plan.policy.min_distance)];
        for verdict in &verdicts {
            let (mark, word) = if verdict.far { ("ok", "taken") } else { ("critical", "refused as a far copy") };
            let line = format!("  {:<12}{:>12}  {}", verdict.site, units::kilometres(verdict.distance.km()), out.paint(mark, word));
            lines.push(if verdict.why.is_empty() { line } else { format!("{line}: {}", verdict.why) });
        }
        lines.push("  (All three run on this machine, so the distances are believed, not verified: verify_distance = \"off\".)".into());
        lines.join("\n")
    })?;
    let begun = Instant::now();
    let mut nodes = start_all(afard, &cluster)?;
    wait_ready(&cluster, &mut nodes, false).await?;
    ensure_bucket(&cluster.client(&SITES)?).await?;
    let took = begun.elapsed();
    step(out, "started", json!({"nodes": SITES, "seconds": units::json_seconds(took)}), || {
        format!("\nThree nodes started and found each other in {}: {}", units::seconds(took), SITES.join(", "))
    })?;
    Ok(Stage { nodes, cluster, _folder: folder })
}

/// Reads, hashes, puts.
async fn put_file(client: &Client, file: &DemoFile, progress: &Progress) -> Result<(ObjectId, Stored), Error> {
    let options = PutOptions { progress: Some(progress.of_file()), ..PutOptions::default() };
    let (expected, source) = if file.size <= WHOLE_MAX {
        let content = Bytes::from(fs::read(&file.path).map_err(|error| Error::io(file.path.display(), &error))?);
        (ObjectId::of(&content), Source::Bytes(content))
    } else {
        (hash_file(file.path.clone()).await?, Source::File(file.path.clone()))
    };
    let stored = client.put(BUCKET, &file.key, source, options).await?;
    Ok((expected, stored))
}

async fn hash_file(path: PathBuf) -> Result<ObjectId, Error> {
    let hash = move || {
        let mut hasher = blake3::Hasher::new();
        let file = fs::File::open(&path)?;
        hasher.update_reader(file)?;
        std::io::Result::Ok(ObjectId::from_bytes(*hasher.finalize().as_bytes()))
    };
    let hashed = tokio::task::spawn_blocking(hash).await.map_err(|_| Error::new(Kind::Failed, "hashing stopped"))?;
    hashed.map_err(|error| Error::io("hash", &error))
}

async fn store(out: &Out, stage: &Stage, files: Vec<DemoFile>, outcome: &mut Outcome) -> Result<Vec<Kept>, Error> {
    let client = stage.cluster.client(&SITES)?;
    let begun = Instant::now();
    let total = files.iter().map(|file| file.size).sum();
    let progress = Progress::new(out, "put", Some(total), files.len());
    let mut puts = stream::iter(files)
        .map(|file| {
            let (client, progress) = (&client, &progress);
            async move {
                let begun = Instant::now();
                let outcome = Box::pin(put_file(client, &file, progress)).await;
                (file, outcome, begun.elapsed())
            }
        })
        .buffer_unordered(JOBS);
    let mut kept = Vec::new();
    let mut places: BTreeMap<(String, String), (usize, u64)> = BTreeMap::new();
    let mut least: Option<Metres> = None;
    while let Some((file, put, took)) = puts.next().await {
        progress.file_done();
        let (expected, stored) = match put {
            Ok(put) => put,
            // Somebody works in that folder.
            Err(error) if error.kind() == Kind::Failed => {
                progress.suspend(|| out.warn(&error));
                continue;
            }
            Err(error) => return Err(error.during(format!("put {}", file.key))),
        };
        if stored.object != expected {
            return Err(Error::new(Kind::Integrity, format!("{}: the node stored {}, the file is {expected}", file.key, stored.object)));
        }
        least = Some(least.map_or(stored.distance, |least| least.min(stored.distance)));
        let place = places.entry((stored.sites.join(" + "), units::kilometres(stored.distance.km()))).or_default();
        *place = (place.0 + 1, place.1 + stored.size);
        if out.json || out.verbose > 0 || kept.len() < SHOWN {
            progress.suspend(|| {
                step(out, "stored", crate::cli::stored_json(&stored, took), || {
                    format!("  {}: {}", file.key, crate::cli::stored_words(&stored, took))
                })
            })?;
        }
        kept.push(Kept { key: file.key, object: expected, size: stored.size });
    }
    drop(puts);
    drop(progress);
    if kept.is_empty() {
        return Err(Error::new(Kind::Failed, "none of the files could be read"));
    }
    outcome.objects = kept.len() as u64;
    outcome.bytes = kept.iter().map(|kept| kept.size).sum();
    outcome.far_distance = least.unwrap_or_default();
    let took = begun.elapsed();
    let value = json!({"objects": outcome.objects, "bytes": outcome.bytes, "seconds": units::json_seconds(took)});
    step(out, "all_stored", value, || {
        let mut lines = Vec::new();
        if kept.len() > SHOWN && out.verbose == 0 {
            lines.push(format!("  … and {} more (-v shows all)", kept.len() - SHOWN));
        }
        lines.push(format!(
            "Stored {} ({}) in {}:",
            units::plural(kept.len(), "object", "objects"),
            units::bytes(outcome.bytes),
            units::seconds(took)
        ));
        lines.extend(places.iter().map(|((sites, apart), (count, bytes))| {
            format!("  {} ({}) at {sites}, {apart} apart", units::plural(*count, "object", "objects"), units::bytes(*bytes))
        }));
        lines.join("\n")
    })?;
    Ok(kept)
}

/// Killed without a word, its data erased.
fn burn(out: &Out, stage: &mut Stage) -> Result<(), Error> {
    for node in stage.nodes.iter_mut().filter(|node| node.site == HOME) {
        node.kill();
    }
    let folder = stage.cluster.node(HOME);
    for name in ["data", "state"] {
        let path = folder.join(name);
        fs::remove_dir_all(&path).map_err(|error| Error::io(path.display(), &error))?;
    }
    // What a killed process leaves behind.
    let _ = fs::remove_file(folder.join("pid"));
    step(out, "burned", json!({"site": HOME}), || format!("\n{} {HOME}: killed, and its disks erased.", out.paint("lost", "FIRE in")))
}

fn survivors() -> Vec<&'static str> {
    SITES.into_iter().rev().filter(|site| *site != HOME).collect()
}

/// Reads an object and compares it with what was put; waits while the survivors find out what happened.
async fn verify(client: &Client, kept: &Kept, begun: Instant) -> Result<(), Error> {
    loop {
        let outcome = Box::pin(client.get(&Wanted::key(BUCKET, &kept.key), Range::ALL, &mut tokio::io::sink())).await;
        match outcome {
            Ok(info) if info.object == kept.object && info.size == kept.size => return Ok(()),
            Ok(info) => return Err(Error::new(Kind::Integrity, format!("{}: came back as {}", kept.key, info.object))),
            Err(error) if error.kind() == Kind::Unreachable && begun.elapsed() < SURVIVORS_WITHIN => tokio::time::sleep(POLL).await,
            Err(error) => return Err(error),
        }
    }
}

async fn read_back(out: &Out, stage: &Stage, kept: &[Kept], outcome: &mut Outcome) -> Result<(), Error> {
    let client = stage.cluster.client(&survivors())?;
    let begun = Instant::now();
    let progress = Progress::new(out, "get", Some(outcome.bytes), kept.len());
    let mut gets = stream::iter(kept)
        .map(|kept| {
            let client = &client;
            async move { (kept, verify(client, kept, begun).await) }
        })
        .buffer_unordered(JOBS);
    while let Some((kept, verified)) = gets.next().await {
        progress.file_done();
        progress.of_file()(kept.size);
        match verified {
            Ok(()) => outcome.verified += 1,
            Err(error) => {
                outcome.lost += 1;
                progress.suspend(|| out.warn(&error.during(&kept.key)));
            }
        }
    }
    drop(gets);
    drop(progress);
    let took = begun.elapsed();
    let value = json!({"verified": outcome.verified, "lost": outcome.lost, "seconds": units::json_seconds(took)});
    step(out, "read_back", value, || {
        let verdict = if outcome.lost == 0 { out.paint("ok", "all of them") } else { out.paint("lost", "NOT all of them") };
        format!(
            "Read back through {}: {} of {} verified by BLAKE3, {verdict}, in {}",
            survivors().join(" and "),
            outcome.verified,
            kept.len(),
            units::seconds(took)
        )
    })
}

/// The survivors are far enough apart to go on.
async fn write_after(out: &Out, stage: &Stage, outcome: &mut Outcome) -> Result<Vec<Kept>, Error> {
    let client = stage.cluster.client(&survivors())?;
    let begun = Instant::now();
    let mut kept = Vec::new();
    let mut last = None;
    for index in 1..=AFTER_THE_FIRE {
        let key = format!("after-the-fire/{index}.txt");
        let content = Bytes::from(format!("written while {HOME} was burning, {index} of {AFTER_THE_FIRE}\n"));
        let stored = loop {
            match client.put(BUCKET, &key, Source::Bytes(content.clone()), PutOptions::default()).await {
                Ok(stored) => break stored,
                Err(error)
                    if matches!(error.kind(), Kind::Unreachable | Kind::BelowPolicy | Kind::Busy) && begun.elapsed() < SURVIVORS_WITHIN =>
                {
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => return Err(error.during(format!("put {key}"))),
            }
        };
        kept.push(Kept { key, object: ObjectId::of(&content), size: content.len() as u64 });
        last = Some(stored);
    }
    for kept in &kept {
        match verify(&client, kept, Instant::now()).await {
            Ok(()) => outcome.written_after += 1,
            Err(error) => {
                outcome.lost += 1;
                out.warn(&error.during(&kept.key));
            }
        }
    }
    let took = begun.elapsed();
    if let Some(stored) = last {
        let value = json!({"objects": kept.len(), "sites": stored.sites, "distance_km": stored.distance.km(), "seconds": units::json_seconds(took)});
        step(out, "written_after", value, || {
            format!(
                "Wrote {} more to the surviving pair, {} ({} apart), in {}",
                units::plural(kept.len(), "object", "objects"),
                stored.sites.join(" + "),
                units::kilometres(stored.distance.km()),
                units::seconds(took)
            )
        })?;
    }
    Ok(kept)
}

/// A new machine under the old name, with empty disks.
async fn heal(out: &Out, afard: &Path, stage: &mut Stage, objects: u64, outcome: &mut Outcome) -> Result<(), Error> {
    stage.nodes.retain(|node| node.site != HOME);
    stage.nodes.push(NodeProcess::start(afard, &stage.cluster, HOME)?);
    let client = stage.cluster.client(&SITES)?;
    let begun = Instant::now();
    let mut last = String::from("no node answered");
    while begun.elapsed() < HEALED_WITHIN {
        if let Ok(status) = crate::cli::ask_status(&client).await {
            let all_up = status.sites.iter().flat_map(|site| &site.nodes).all(|node| node.state == "up");
            if status.state == State::Safe && all_up && status.objects.safe == status.objects.total && status.objects.total == objects {
                outcome.healed = true;
                break;
            }
            let nodes: Vec<String> =
                status.sites.iter().flat_map(|site| &site.nodes).map(|node| format!("{} {}", node.name, node.state)).collect();
            last = format!("{}, {} of {objects} objects safe, {}", status.state, status.objects.safe, nodes.join(", "));
        }
        if let Some(how) = stage.nodes.iter_mut().find_map(|node| node.has_ended().map(|how| format!("{how}: {}", node.last_words()))) {
            last = how;
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let took = begun.elapsed();
    let value = json!({"healed": outcome.healed, "objects": objects, "seconds": units::json_seconds(took), "last_seen": last});
    step(out, "healed", value, || {
        if outcome.healed {
            format!(
                "A replacement joined as {HOME} with empty disks: all {objects} objects {} again after {}",
                out.paint("safe", "safe"),
                units::seconds(took)
            )
        } else {
            format!("A replacement joined as {HOME}, but {} after {}: {last}", out.paint("lost", "it did not heal"), units::seconds(took))
        }
    })
}

fn verdict_json(outcome: &Outcome, took: Duration) -> Value {
    json!({
        "message_type": "summary",
        "objects": outcome.objects,
        "bytes": outcome.bytes,
        "burned_site": HOME,
        "lost": outcome.lost,
        "verified": outcome.verified,
        "written_after": outcome.written_after,
        "far_distance_km": outcome.far_distance.km(),
        "healed": outcome.healed,
        "seconds": units::json_seconds(took),
    })
}

fn verdict_words(outcome: &Outcome, took: Duration) -> String {
    let verdict = match (outcome.lost, outcome.healed) {
        (0, true) => "nothing was lost, and the cluster is whole again".to_owned(),
        (0, false) => "nothing was lost, but the cluster did not heal in time".to_owned(),
        (lost, _) => format!("{lost} WERE LOST"),
    };
    format!(
        "\n{} ({}), {HOME} burnt, {} verified, {} written since: {verdict}. {}",
        units::plural(outcome.objects as usize, "object", "objects"),
        units::bytes(outcome.bytes),
        outcome.verified,
        outcome.written_after,
        units::seconds(took)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_object_has_what_the_contract_names() {
        let outcome =
            Outcome { objects: 7, bytes: 70, verified: 7, lost: 0, written_after: 5, far_distance: Metres(1_024_812), healed: true };
        let value = verdict_json(&outcome, Duration::from_secs(9));
        for name in ["objects", "bytes", "burned_site", "lost", "verified", "far_distance_km", "healed", "seconds"] {
            assert!(value.get(name).is_some(), "{name}");
        }
        assert_eq!((&value["far_distance_km"], &value["healed"]), (&json!(1024.8), &json!(true)));
    }
}
