//! The demo's nodes: processes that are started here, known by their ids, and ended here whatever happens.
//!
//! A process is only ever signalled if it is a child of this one, or verifiably runs the configuration in question: an id in
//! a file may by now belong to somebody else.
use crate::{
    client::{Client, Config},
    cluster::AdminKey,
    error::{Error, Kind},
    limits,
    status::gather,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::map::SITES;

/// A cluster of three on one machine forms within a second or two; a slow disk may take longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A node drains within 10 s; then it is ended.
const STOP_WITHIN: Duration = Duration::from_secs(13);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

/// A cluster's folder, as `cluster init` wrote it.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn node(&self, site: &str) -> PathBuf {
        self.root.join("nodes").join(site)
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.root.join("client/ca.crt")
    }

    pub(super) fn key(&self) -> Result<AdminKey, Error> {
        AdminKey::read(&self.root.join("client/admin.key"))
    }

    /// Where a site's node is reached, from its own configuration.
    pub(super) fn endpoint(&self, site: &str) -> Result<String, Error> {
        let path = self.node(site).join("afard.toml");
        let text = crate::cli::config::read_bounded(&path, limits::CONFIG_BYTES_MAX)?;
        let table: toml::Table = text.parse().map_err(|_| Error::usage(format!("{}: is not TOML", path.display())))?;
        let nodes = table.get("layout").and_then(|layout| layout.get("nodes")).and_then(toml::Value::as_array);
        let node = nodes.into_iter().flatten().find(|node| node.get("name").and_then(toml::Value::as_str) == Some(site));
        let endpoint = node.and_then(|node| node.get("endpoint")).and_then(toml::Value::as_str);
        endpoint.map(str::to_owned).ok_or_else(|| Error::usage(format!("{}: names no endpoint of {site}", path.display())))
    }

    /// A client that knows these sites' endpoints, in this order.
    pub(super) fn client(&self, sites: &[&str]) -> Result<Client, Error> {
        let key = self.key()?;
        let endpoints = sites.iter().map(|site| self.endpoint(site)).collect::<Result<_, _>>()?;
        let ca_pem = crate::cli::config::read_bounded(&self.ca(), limits::CA_BYTES_MAX)?.into_bytes();
        Client::connect(&Config {
            endpoints,
            access_key_id: key.access_key_id,
            secret_access_key: key.secret_access_key,
            ca_pem,
            rounds: limits::ROUNDS,
        })
    }
}

/// A node that was started here. Dropping it kills it.
#[derive(Debug)]
pub(super) struct NodeProcess {
    pub(super) site: String,
    folder: PathBuf,
    child: Child,
    ended: bool,
}

impl NodeProcess {
    /// Starts a node in its folder; what it says goes to its log.
    pub(super) fn start(afard: &Path, cluster: &Folder, site: &str) -> Result<Self, Error> {
        let folder = cluster.node(site);
        let wrong = |error: &io::Error| Error::io(format!("start {site}"), error);
        let log = OpenOptions::new().create(true).append(true).open(folder.join("log")).map_err(|error| wrong(&error))?;
        let copy = log.try_clone().map_err(|error| wrong(&error))?;
        let child = Command::new(afard)
            .arg("--config")
            .arg(folder.join("afard.toml"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy)
            // Of its own group: Ctrl-C is for us, and we end the nodes in order.
            .process_group(0)
            .spawn()
            .map_err(|error| wrong(&error))?;
        Ok(Self { site: site.to_owned(), folder, child, ended: false })
    }

    /// Whether it has ended by itself, and how.
    pub(super) fn has_ended(&mut self) -> Option<String> {
        if self.ended {
            return None;
        }
        let status = self.child.try_wait().ok().flatten()?;
        self.ended = true;
        Some(format!("{} ended ({status})", self.site))
    }

    /// As a fire would: without a word.
    pub(super) fn kill(&mut self) {
        if !self.ended {
            // A child that cannot be killed or waited for has ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = true;
        }
    }

    /// The last lines that it said.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(log.get(log.len().saturating_sub(4096)..).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts all three.
pub(super) fn start_all(afard: &Path, cluster: &Folder) -> Result<Vec<NodeProcess>, Error> {
    SITES.iter().map(|site| NodeProcess::start(afard, cluster, site)).collect()
}

/// Waits until every node answers, is up and sees the others up.
pub(super) async fn wait_ready(cluster: &Folder, nodes: &mut [NodeProcess], catching_up: bool) -> Result<(), Error> {
    let client = cluster.client(&SITES)?;
    let begun = Instant::now();
    loop {
        let answers = gather(&client, false).await;
        let statuses: Vec<_> = answers.iter().filter_map(|answer| answer.outcome.as_ref().ok()).collect();
        let fine = |state: &str| state == "up" || (catching_up && state == "catching_up");
        let formed = statuses.iter().all(|status| fine(&status.state) && status.peers.iter().all(|peer| fine(&peer.state)));
        if statuses.len() == SITES.len() && formed {
            return Ok(());
        }
        if let Some(error) = nodes.iter_mut().find_map(|node| node.has_ended().map(|how| (how, node.last_words()))) {
            let (how, words) = error;
            return Err(Error::new(Kind::Failed, format!("{how} before the cluster was there:\n  {words}")).hint("see its log"));
        }
        if begun.elapsed() > READY_WITHIN {
            let why: Vec<String> = answers
                .iter()
                .map(|answer| match &answer.outcome {
                    Ok(status) => format!("{} is {}", status.node, status.state),
                    Err(error) => error.to_string(),
                })
                .collect();
            return Err(Error::new(
                Kind::Unreachable,
                format!("the nodes did not find each other within {} s: {}", READY_WITHIN.as_secs(), why.join("; ")),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The process that serves a node's configuration, if the id in its `pid` file verifiably belongs to one.
pub(super) fn owner(cluster: &Folder, site: &str) -> Option<Pid> {
    let folder = cluster.node(site);
    let id: i32 = fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()?;
    let config = folder.join("afard.toml").canonicalize().ok()?;
    runs_with(id, &config).then(|| Pid::from_raw(id)).flatten()
}

/// Whether that process was started with that configuration, however the path was written.
fn runs_with(id: i32, config: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{id}"));
    let Ok(line) = fs::read(process.join("cmdline")) else { return false };
    let Ok(folder) = fs::read_link(process.join("cwd")) else { return false };
    line.split(|byte| *byte == 0).filter_map(|argument| std::str::from_utf8(argument).ok()).any(|argument| {
        let path = argument.strip_prefix("--config=").unwrap_or(argument);
        !path.is_empty() && folder.join(path).canonicalize().is_ok_and(|path| path == config)
    })
}

/// Ends whatever serves these sites: first by asking, then by force. Children are reaped.
pub(super) async fn stop_all(cluster: &Folder, children: &mut [NodeProcess]) {
    for site in SITES {
        if let Some(id) = owner(cluster, site) {
            // It may have ended in between.
            let _ = kill_process(id, Signal::TERM);
        }
    }
    for child in children.iter_mut().filter(|child| !child.ended) {
        if let Some(id) = i32::try_from(child.child.id()).ok().and_then(Pid::from_raw)
            && child.has_ended().is_none()
        {
            let _ = kill_process(id, Signal::TERM);
        }
    }
    let begun = Instant::now();
    while begun.elapsed() < STOP_WITHIN {
        for child in children.iter_mut() {
            let _ = child.has_ended();
        }
        if children.iter().all(|child| child.ended) && SITES.iter().all(|site| owner(cluster, site).is_none()) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    for site in SITES {
        if let Some(id) = owner(cluster, site) {
            let _ = kill_process(id, Signal::KILL);
        }
    }
    children.iter_mut().for_each(NodeProcess::kill);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_only_owned_if_it_runs_that_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("afard.toml");
        fs::write(&config, "").unwrap();
        let config = config.canonicalize().unwrap();
        let mut child =
            Command::new("sh").args(["-c", "read x", "afard.toml"]).current_dir(folder.path()).stdin(Stdio::piped()).spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        // Between fork and exec it is still this program.
        let begun = Instant::now();
        while !runs_with(id, &config) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        assert!(runs_with(id, &config), "a relative path is resolved where the process is");
        assert!(!runs_with(id, &folder.path().join("other.toml")));
        assert!(!runs_with(i32::try_from(std::process::id()).unwrap(), &config));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!runs_with(id, &config));
    }
}
