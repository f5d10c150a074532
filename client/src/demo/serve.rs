//! `afar demo --serve`: three nodes that stay, for trying things out. Burns nothing; data stay for the next time.
use super::{
    Arguments, find_afard,
    map::{BUCKET, SITES, blueprint},
    nodes::{Folder, NodeProcess, start_all, stop_all, wait_ready},
};
use crate::{
    cli::{self, output::Out, stop::Stop},
    client::Client,
    cluster::{create, durable, init::render_env},
    error::{Error, Kind},
};
use serde_json::json;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often nodes are looked at: only to reap those that died and to say so.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A bucket needs every site; they have just answered.
const BUCKET_WITHIN: Duration = Duration::from_secs(30);

/// Starts the nodes and stays until told to stop.
pub(crate) async fn serve(out: &Out, arguments: Arguments, stop: &mut Stop) -> Result<u8, Error> {
    let dir = arguments.dir.ok_or_else(|| Error::usage("--serve needs --dir"))?;
    let afard = find_afard(arguments.afard.as_ref())?;
    let cluster = open(&dir)?;
    let _lock = lock(&cluster)?;
    remove_envs(&cluster)?;
    // Nodes of an earlier run that was killed: this run starts its own.
    stop_all(&cluster, &mut []).await;
    let mut nodes = start_all(&afard, &cluster)?;
    let started = tokio::select! {
        started = Box::pin(begin(out, &cluster, &mut nodes)) => started.map(|()| None),
        signal = stop.wait() => Ok(Some(signal)),
    };
    let outcome = match started {
        Ok(None) => Ok(stay(out, &mut nodes, stop).await),
        Ok(Some(signal)) => Ok(signal),
        Err(error) => Err(error),
    };
    // A second Ctrl-C while they drain: then the hard way, by dropping the children.
    tokio::select! {
        () = stop_all(&cluster, &mut nodes) => {}
        _ = stop.wait() => {}
    }
    // Nobody answers there any more; and who waits for the next run must not find this one's.
    remove_envs(&cluster)?;
    let signal = outcome?;
    Ok(cli::interrupted(out, signal, Some("the data stay; the same command resumes them")))
}

/// An existing cluster of this kind, or a new one.
fn open(dir: &Path) -> Result<Folder, Error> {
    if dir.join("nodes").is_dir() {
        let root = dir.canonicalize().map_err(|error| Error::io(dir.display(), &error))?;
        let cluster = Folder::new(root);
        for site in SITES {
            cluster.endpoint(site).map_err(|error| error.during("this is not a demo's folder").hint("name another folder with --dir"))?;
        }
        return Ok(cluster);
    }
    create(dir, &blueprint()?).map(Folder::new)
}

fn lock(cluster: &Folder) -> Result<File, Error> {
    let path = cluster.root().join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| Error::io(path.display(), &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(Kind::Busy, format!("{}: another `afar demo --serve` runs here", cluster.root().display()))
                .hint("stop it, or name another folder"))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(path.display(), &error)),
    }
}

fn env_paths(cluster: &Folder) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = SITES.iter().map(|site| cluster.node(site).join("env")).collect();
    // Last, for whoever waits for it waits for everything.
    paths.push(cluster.root().join("env"));
    paths
}

/// Whoever waits for `env` must not find an old one.
fn remove_envs(cluster: &Folder) -> Result<(), Error> {
    for path in env_paths(cluster).iter().rev() {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(path.display(), &error)),
            _ => {}
        }
    }
    Ok(())
}

async fn begin(out: &Out, cluster: &Folder, nodes: &mut [NodeProcess]) -> Result<(), Error> {
    wait_ready(cluster, nodes, true).await?;
    let client = cluster.client(&SITES)?;
    ensure_bucket(&client).await?;
    let key = cluster.key()?;
    let endpoints = SITES.iter().map(|site| cluster.endpoint(site)).collect::<Result<Vec<_>, _>>()?;
    let all = endpoints.join(",");
    for (path, endpoint) in env_paths(cluster).iter().zip(endpoints.iter().chain([&all])) {
        let env = render_env(&[
            ("AFAR_ENDPOINT", endpoint.clone()),
            ("AFAR_ACCESS_KEY_ID", key.access_key_id.clone()),
            ("AFAR_SECRET_ACCESS_KEY", key.secret_access_key.clone()),
            ("AFAR_CA_FILE", cluster.ca().display().to_string()),
            ("AFAR_BUCKET", BUCKET.to_owned()),
        ]);
        durable::write(path, env.as_bytes(), durable::SECRET).map_err(|error| Error::io(path.display(), &error))?;
    }
    let env = cluster.root().join("env").display().to_string();
    out.either(
        || json!({"message_type": "ready", "dir": cluster.root().display().to_string(), "env": env, "endpoints": endpoints, "bucket": BUCKET}),
        || {
            let mut lines = vec![format!("three nodes run, bucket {BUCKET:?} is there; distances are believed, not verified (one machine)")];
            lines.extend(SITES.iter().zip(&endpoints).map(|(site, endpoint)| format!("  {site:<12}{endpoint}  {}", cluster.node(site).display())));
            lines.push(format!("in another shell:  . {env} && afar status"));
            lines.push("Ctrl-C ends them; the data stay".into());
            lines.join("\n")
        },
    )
}

/// Makes the bucket if it is not there; waits while the nodes find out about each other.
pub(super) async fn ensure_bucket(client: &Client) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let outcome = match client.buckets().await {
            Ok(buckets) if buckets.iter().any(|bucket| bucket.name == BUCKET) => return Ok(()),
            Ok(_) => client.create_bucket(BUCKET, None).await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > BUCKET_WITHIN => return Err(error.during(format!("make bucket {BUCKET:?}"))),
            Err(error) if matches!(error.kind(), Kind::Unreachable | Kind::Busy | Kind::BelowPolicy) => {}
            Err(error) => return Err(error.during(format!("make bucket {BUCKET:?}"))),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A node that dies is reaped and mentioned, not started again.
async fn stay(out: &Out, nodes: &mut [NodeProcess], stop: &mut Stop) -> cli::stop::Signal {
    loop {
        tokio::select! {
            signal = stop.wait() => return signal,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        for node in nodes.iter_mut() {
            if let Some(how) = node.has_ended() {
                out.note(format!("afar: {how}; start it again by hand: afard --config nodes/{}/afard.toml", node.site));
            }
        }
    }
}
