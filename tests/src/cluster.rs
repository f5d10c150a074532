//! A cluster of real processes, made by `afar cluster init`, ended when dropped.
use crate::{
    certificates::Authority,
    command::Afar,
    limits::{LOG_LINES, SETTLE_MAX, START_MAX, STOP_MAX},
    network::Network,
    programs::Programs,
    wait::until,
};
use afar::Config;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};
use tempfile::TempDir;
use toml::Table;

/// A site with one node of the same name.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Of the site and of the node.
    pub name: &'static str,
    /// Degrees.
    pub latitude: f64,
    /// Degrees.
    pub longitude: f64,
    /// ISO 3166-1 alpha-2.
    pub country: &'static str,
}

/// In Alsace.
pub const STRASBOURG: Place = Place { name: "strasbourg", latitude: 48.5734, longitude: 7.7521, country: "FR" };
/// 405.8 km from Strasbourg.
pub const ROUBAIX: Place = Place { name: "roubaix", latitude: 50.6927, longitude: 3.1778, country: "FR" };
/// 1,024.8 km from Strasbourg, 1,248 km from Roubaix.
pub const WARSAW: Place = Place { name: "warsaw", latitude: 52.2297, longitude: 21.0122, country: "PL" };
/// The demo's.
pub const THREE: [Place; 3] = [STRASBOURG, ROUBAIX, WARSAW];
/// Far from all of the above: 1,270 km from Strasbourg and more from the others.
pub const MADRID: Place = Place { name: "madrid", latitude: 40.4168, longitude: -3.7038, country: "ES" };
/// The least that can be far.
pub const TWO: [Place; 2] = [STRASBOURG, WARSAW];

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Setup {
    programs: Programs,
    places: Vec<Place>,
    edits: Vec<(String, toml::Value)>,
    through_network: bool,
    base: Option<PathBuf>,
    host: Option<IpAddr>,
    partitions: Option<u32>,
}

impl Setup {
    /// One node at each of these.
    pub fn of(places: &[Place]) -> Self {
        Self {
            programs: Programs::today(),
            places: places.to_vec(),
            edits: Vec::new(),
            through_network: false,
            base: None,
            host: None,
            partitions: None,
        }
    }

    /// Sets a value in every node's file: a path such as `limits.segment`.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<toml::Value>) -> Self {
        self.edits.push((path.to_owned(), value.into()));
        self
    }

    /// Nodes reach each other through a [`Network`] that can be slowed and cut.
    #[must_use]
    pub const fn through_network(mut self) -> Self {
        self.through_network = true;
        self
    }

    /// So many slices of the hash space: fewer are planned more quickly.
    #[must_use]
    pub const fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// Made by the client of this version, and of nodes of it.
    #[must_use]
    pub fn by(mut self, programs: &Programs) -> Self {
        self.programs = programs.clone();
        self
    }

    /// Where to put everything; else a temporary folder.
    #[must_use]
    pub fn under(mut self, base: &Path) -> Self {
        self.base = Some(base.to_path_buf());
        self
    }

    /// On which address of this machine; else 127.0.0.1.
    #[must_use]
    pub const fn on(mut self, host: IpAddr) -> Self {
        self.host = Some(host);
        self
    }

    /// Makes the folders; starts nothing.
    ///
    /// # Panics
    /// If `afar cluster init` fails.
    pub fn make(self) -> Cluster {
        let base = self.base.unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("afar-test-").tempdir_in(base).expect("a temporary folder");
        let root = folder.path().join("cluster");
        let addresses = free_addresses(self.host.unwrap_or(Ipv4Addr::LOCALHOST.into()), self.places.len());
        let mut arguments: Vec<String> = ["cluster", "init"].map(String::from).to_vec();
        arguments.push(root.display().to_string());
        arguments.extend(["--name", "test", "--verify-distance", "off"].map(String::from));
        for (place, address) in self.places.iter().zip(&addresses) {
            let Place { name, latitude, longitude, country } = place;
            arguments.extend(["--site".into(), format!("{name}={latitude},{longitude},{country}")]);
            arguments.extend(["--node".into(), format!("{name}@{name}={address},1GiB")]);
        }
        if let Some(partitions) = self.partitions {
            arguments.extend(["--partitions".into(), partitions.to_string()]);
        }
        let home = folder.path().join("user");
        Afar::new(&home, []).by(&self.programs).ok(&arguments);
        let mut nodes: Vec<Node> =
            self.places.iter().zip(&addresses).map(|(place, address)| Node::new(place.name, place.name, *address, &root)).collect();
        nodes.iter_mut().for_each(|node| node.run_by(&self.programs));
        let network = self.through_network.then(Network::new);
        let mut cluster = Cluster { nodes, network, root, home, folder, edits: self.edits, check_logs: true };
        cluster.write_files();
        cluster
    }

    /// Makes it, starts every node, and waits until all see each other.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(self) -> Cluster {
        let mut cluster = self.make();
        cluster.start_all();
        cluster.wait_formed();
        cluster
    }
}

/// A cluster; see [`Setup`].
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    network: Option<Network>,
    root: PathBuf,
    home: PathBuf,
    folder: TempDir,
    edits: Vec<(String, toml::Value)>,
    check_logs: bool,
}

/// Ports that were free a moment ago. All are held before any is let go, so that they differ.
fn free_addresses(host: IpAddr, count: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind((host, 0)).expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("a port")).collect()
}

impl Cluster {
    /// The demo's three sites, up.
    pub fn three() -> Self {
        Setup::of(&THREE).start()
    }

    /// Strasbourg and Warsaw, up.
    pub fn two() -> Self {
        Setup::of(&TWO).start()
    }

    fn write_files(&mut self) {
        let addresses: Vec<(&'static str, SocketAddr)> = self.nodes.iter().map(|node| (node.name, node.address)).collect();
        for node in &self.nodes {
            self.write_edits(node.name);
            let mut file = node.config();
            if let Some(network) = &self.network {
                for (name, address) in addresses.iter().filter(|(name, _)| *name != node.name) {
                    let through = network.listen(node.name, name, *address);
                    set_endpoint(&mut file, name, &format!("https://{through}"));
                }
            }
            node.write_config(&file);
        }
    }

    /// Sets what the cluster was made with ([`Setup::set`]) in a node's file.
    pub fn write_edits(&self, name: &str) {
        let mut file = self.node(name).config();
        for (path, value) in &self.edits {
            set(&mut file, path, value.clone());
        }
        self.node(name).write_config(&file);
    }

    /// Room for another node at a site, and a port for it; its folder is still to be made, at [`Node::folder`].
    pub fn join(&mut self, name: &'static str, site: &'static str) -> SocketAddr {
        let address = free_addresses(Ipv4Addr::LOCALHOST.into(), 1).pop().expect("one address");
        self.nodes.push(Node::new(name, site, address, &self.root));
        address
    }

    /// A second process with a node's bundle and name, at a port and on disks of its own. It runs until it is dropped.
    ///
    /// # Panics
    /// If the bundle cannot be copied.
    pub fn twin(&self, name: &str) -> Node {
        let node = self.node(name);
        let folder = self.scratch().join(format!("twin-{name}"));
        fs::create_dir_all(&folder).expect("a folder");
        for entry in fs::read_dir(node.folder()).expect("a bundle").flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("copy");
        }
        self.beside(name, folder)
    }

    /// A second process of a node's name, from a folder of its own, at a port of its own. It runs until it is dropped.
    ///
    /// # Panics
    /// If it does not start.
    pub fn beside(&self, name: &str, folder: PathBuf) -> Node {
        let (node, address) = (self.node(name), free_addresses(Ipv4Addr::LOCALHOST.into(), 1).pop().expect("one address"));
        let mut twin = Node::new(node.name, node.site, address, &self.root);
        twin.folder = folder;
        twin.configure("listen", address.to_string());
        twin.start();
        twin
    }

    /// The operator's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a node is, if its site is one of those that are named here.
    ///
    /// # Panics
    /// If it is elsewhere.
    pub fn place_of(&self, name: &str) -> Place {
        let site = self.node(name).site;
        [STRASBOURG, ROUBAIX, WARSAW, MADRID].into_iter().find(|place| place.name == site).expect("a place that is named here")
    }

    /// The names of the nodes that run.
    pub fn running(&self) -> Vec<&'static str> {
        self.nodes.iter().filter(|node| node.child.is_some()).map(|node| node.name).collect()
    }

    /// For the client library: the administrator's key and the endpoints of the nodes that there are now.
    pub fn client_config(&self) -> Config {
        let endpoints = self.nodes.iter().map(Node::endpoint).collect();
        let (access_key_id, secret_access_key) = self.key();
        let ca_pem = self.authority().into_bytes();
        Config { endpoints, access_key_id, secret_access_key, ca_pem, rounds: afar::limits::ROUNDS }
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// If the cluster was made without one.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("made with `through_network`")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The node of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).expect("a node of the cluster")
    }

    /// The node of that name.
    ///
    /// # Panics
    /// If there is none.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).expect("a node of the cluster")
    }

    /// Every node.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Starts every node that does not run, and waits until each serves.
    pub fn start_all(&mut self) {
        for node in &mut self.nodes {
            if node.child.is_none() {
                node.spawn();
            }
        }
        for node in &mut self.nodes {
            node.wait_serving();
        }
    }

    /// Waits until every node that runs is seen as up.
    ///
    /// # Panics
    /// After [`SETTLE_MAX`].
    #[track_caller]
    pub fn wait_formed(&self) {
        let running = self.running();
        until("every node is up", SETTLE_MAX, || {
            let status = self.status();
            let up = |name: &&&str| node_state(&status, name).as_deref().is_some_and(|state| state == "up" || state == "draining");
            if running.iter().filter(up).count() == running.len() && peers_agree(&status, &running) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    }

    /// Waits until the cluster's state is this.
    ///
    /// # Panics
    /// After [`SETTLE_MAX`].
    #[track_caller]
    pub fn wait_state(&self, state: &str) -> Value {
        until(&format!("the cluster is {state}"), SETTLE_MAX, || {
            let status = self.status();
            if status["state"] == state { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// `afar status --json`, whatever it exits with; null if it printed none.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.afar().run(&["status", "--json"]).stdout).unwrap_or_default()
    }

    /// The command line with the administrator's key and every endpoint, the first node's first.
    pub fn afar(&self) -> Afar {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name).collect();
        self.afar_at(&names)
    }

    /// The same, knowing only these nodes.
    pub fn afar_at(&self, names: &[&str]) -> Afar {
        let endpoints: Vec<String> = names.iter().map(|name| self.node(name).endpoint()).collect();
        let (id, secret) = self.key();
        let ca = self.root.join("client/ca.crt").display().to_string();
        let environment =
            [("AFAR_ENDPOINT", endpoints.join(",")), ("AFAR_ACCESS_KEY_ID", id), ("AFAR_SECRET_ACCESS_KEY", secret), ("AFAR_CA_FILE", ca)];
        Afar::new(&self.home, environment.map(|(name, value)| (name.to_owned(), value)))
    }

    /// The administrator's access key.
    ///
    /// # Panics
    /// If it is not where `cluster init` puts it.
    pub fn key(&self) -> (String, String) {
        let file: Table = fs::read_to_string(self.root.join("client/admin.key")).expect("a key").parse().expect("TOML");
        let word = |name: &str| file.get(name).and_then(|value| value.as_str()).expect("a key's two parts").to_owned();
        (word("access_key_id"), word("secret_access_key"))
    }

    /// The authority's certificate, PEM.
    ///
    /// # Panics
    /// If it is not where `cluster init` puts it.
    pub fn authority(&self) -> String {
        fs::read_to_string(self.root.join("client/ca.crt")).expect("an authority")
    }

    /// Gives every node, and the command line, certificates of another authority; before they are started.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn adopt(&self, authority: &Authority) {
        for node in &self.nodes {
            authority.certify(&node.folder, "test", node.name, false);
        }
        fs::write(self.root.join("client/ca.crt"), authority.certificate()).expect("write the authority");
    }

    /// A bucket with the cluster's policy, or, with flags, one of its own. Distances are not measured: everything is on one
    /// machine.
    pub fn bucket(&self, name: &str, flags: &[&str]) {
        let mut arguments = vec!["bucket", "create", name];
        if !flags.is_empty() {
            arguments.extend(["--verify-distance", "off"]);
        }
        arguments.extend(flags);
        self.afar().ok(&arguments);
    }

    /// A file of the test's own with this content.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.scratch().join(name);
        fs::write(&path, content).expect("write a file");
        path
    }

    /// For tests in which a node is meant to panic or to complain: its log is not looked at in the end.
    pub const fn ignore_logs(&mut self) {
        self.check_logs = false;
    }
}

/// What the status says of a node.
pub fn node_state(status: &Value, name: &str) -> Option<String> {
    let nodes = status["sites"].as_array()?.iter().flat_map(|site| site["nodes"].as_array().into_iter().flatten());
    nodes.into_iter().find(|node| node["name"] == name).and_then(|node| node["state"].as_str()).map(String::from)
}

/// No check complains of a peer that runs: where a client sees every node, each may still have to meet the others.
fn peers_agree(status: &Value, running: &[&str]) -> bool {
    let checks = status["checks"].as_array().into_iter().flatten().filter(|check| check["state"] != "ok");
    let details = checks.filter(|check| check["name"].as_str().is_some_and(|name| name.contains("peer"))).map(|check| check.to_string());
    !details.into_iter().any(|detail| running.iter().any(|name| detail.contains(&format!("{name}:"))))
}

/// A node's own check in the status, by its exact name.
pub fn check_of<'a>(status: &'a Value, node: &str, name: &str) -> Option<&'a Value> {
    status["checks"].as_array()?.iter().find(|check| check["name"] == name && check["node"] == node)
}

/// A check of the status by its name.
pub fn check<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["checks"].as_array()?.iter().find(|check| check["name"].as_str().is_some_and(|found| found.contains(name)))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- the last of {}'s log\n{}", node.name, node.log_end());
            }
            if std::env::var_os("AFAR_TEST_KEEP").is_some() {
                self.folder.disable_cleanup(true);
                eprintln!("kept: {}", self.folder.path().display());
            }
        } else if self.check_logs {
            for node in &self.nodes {
                assert!(!node.log().contains("panicked at"), "{} panicked: {}", node.name, node.log_end());
            }
        }
    }
}

/// One `afard`.
#[derive(Debug)]
pub struct Node {
    programs: Programs,
    name: &'static str,
    site: &'static str,
    address: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Node {
    fn new(name: &'static str, site: &'static str, address: SocketAddr, root: &Path) -> Self {
        let folder = root.join("nodes").join(name);
        let programs = Programs::today();
        Self { programs, name, site, address, folder, child: None, environment: Vec::new(), arguments: Vec::new() }
    }

    /// Its name; the first node of a site has the site's.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Where clients reach it, past any [`Network`].
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its one data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its configuration.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn config(&self) -> Table {
        fs::read_to_string(self.folder.join("afard.toml")).expect("a configuration").parse().expect("TOML")
    }

    /// Replaces its configuration.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_config(&self, file: &Table) {
        fs::write(self.folder.join("afard.toml"), toml::to_string(file).expect("TOML")).expect("write a configuration");
    }

    /// Changes where it believes another node to be.
    pub fn redirect(&self, other: &str, address: SocketAddr) {
        let mut file = self.config();
        set_endpoint(&mut file, other, &format!("https://{address}"));
        self.write_config(&file);
    }

    /// Changes one value of its configuration.
    pub fn configure(&self, path: &str, value: impl Into<toml::Value>) {
        let mut file = self.config();
        set(&mut file, path, value.into());
        self.write_config(&file);
    }

    /// A variable for its next start, replacing one of that name.
    pub fn environment(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(present, _)| present != name);
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Arguments for its next start, besides `--config`.
    pub fn arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    }

    /// Which version it runs from its next start on.
    pub fn run_by(&mut self, programs: &Programs) {
        self.programs = programs.clone();
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_serving();
    }

    /// Starts it and lets it be.
    ///
    /// # Panics
    /// If it runs already.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let _ = fs::remove_file(self.folder.join("pid"));
        let log = File::options().create(true).append(true).open(self.folder.join("log")).expect("a log");
        let child = Command::new(self.programs.afard())
            .arg("--config")
            .arg(self.folder.join("afard.toml"))
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("start afard");
        self.child = Some(child);
    }

    /// Waits until it has written its pid, which it does when it serves.
    ///
    /// # Panics
    /// If it ends instead, or takes longer than [`START_MAX`].
    #[track_caller]
    pub fn wait_serving(&mut self) {
        let start = Instant::now();
        let pid = self.pid().expect("started").to_string();
        loop {
            if fs::read_to_string(self.folder.join("pid")).is_ok_and(|text| text.trim() == pid) {
                return;
            }
            if let Some(code) = self.ended() {
                panic!("{} ended with {code} instead of serving\n{}", self.name, self.log_end());
            }
            assert!(start.elapsed() < START_MAX, "{} does not serve\n{}", self.name, self.log_end());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The exit code, if it has ended by itself.
    ///
    /// # Panics
    /// If it was never started.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.as_mut().expect("started").try_wait().expect("wait")?;
        self.child = None;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Some(status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(-1))
    }

    /// Waits for its end; the exit code.
    ///
    /// # Panics
    /// If it does not end within [`START_MAX`].
    #[track_caller]
    pub fn wait_ended(&mut self) -> i32 {
        until(&format!("{} ends", self.name), START_MAX, || self.ended().ok_or("it runs"))
    }

    /// Kills it (SIGKILL), if it runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it runs");
        kill_process(pid, signal).expect("signal it");
    }

    /// Asks it to read its certificates again (SIGHUP).
    ///
    /// # Panics
    /// If it does not run.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Asks it to end (SIGTERM), and lets it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Takes it out of time (SIGSTOP): its port still takes connections, and nobody answers.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end (SIGTERM) and waits; the exit code.
    ///
    /// # Panics
    /// If it does not within [`STOP_MAX`].
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        let start = Instant::now();
        loop {
            if let Some(code) = self.ended() {
                return code;
            }
            assert!(start.elapsed() < STOP_MAX, "{} does not end\n{}", self.name, self.log_end());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Killed, and everything that it held is gone.
    ///
    /// # Panics
    /// If its files cannot be removed.
    pub fn burn(&mut self) {
        self.kill();
        for folder in ["data", "state"] {
            match fs::remove_dir_all(self.folder.join(folder)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("burn {folder}: {error}"),
                _ => {}
            }
        }
    }

    /// Everything that it ever said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap_or_default()).into_owned()
    }

    /// The last of it.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn set(file: &mut Table, path: &str, value: toml::Value) {
    match path.split_once('.') {
        None => {
            file.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = file.entry(first).or_insert_with(|| Table::new().into());
            set(inner.as_table_mut().expect("a table"), rest, value);
        }
    }
}

fn set_endpoint(file: &mut Table, node: &str, endpoint: &str) {
    let nodes = file.get_mut("layout").and_then(|layout| layout.get_mut("nodes")).and_then(|nodes| nodes.as_array_mut());
    let mut tables = nodes.expect("[[layout.nodes]]").iter_mut().filter_map(|node| node.as_table_mut());
    let entry = tables.find(|entry| entry.get("name").and_then(|name| name.as_str()) == Some(node)).expect("a node of the layout");
    entry.insert("endpoint".into(), endpoint.into());
}
