//! Machines of their own on one machine: a network namespace per node with an address of its own, joined by a bridge in yet another.
//! Cables can be pulled, and one direction of a path can be cut. Everything is undone when dropped.
use afar_tests::{limits::SETTLE_MAX, programs, wait::until};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
};
use tempfile::TempDir;

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its result.
    pub out: String,
    /// Everything else that it said.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// A machine with a node on it.
#[derive(Debug)]
struct Machine {
    namespace: String,
    address: String,
    folder: PathBuf,
    process: Option<Child>,
}

/// The machines, the wires between them, and the operator.
#[derive(Debug)]
pub struct World {
    prefix: String,
    hub: String,
    folder: TempDir,
    machines: BTreeMap<String, Machine>,
    /// Kept by [`World::writer`]s too.
    user: Arc<User>,
}

/// Whoever runs `afar`, on the bridge.
#[derive(Debug)]
pub struct User {
    hub: String,
    cluster: PathBuf,
}

fn sh(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let wrong = || format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    output.status.success().then_some(()).ok_or_else(wrong)
}

fn inside(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

impl User {
    /// Runs `afar` with the operator's key, asking all nodes.
    pub fn afar(&self, arguments: &[&str]) -> Said {
        let mut command = inside(&self.hub, &programs::afar());
        command.args(arguments).env("AFAR_CLUSTER_DIR", &self.cluster).env_remove("AFAR_ENDPOINT").stdin(Stdio::null());
        for line in fs::read_to_string(self.cluster.join("client/env")).unwrap_or_default().lines() {
            if let Some((name, value)) = line.trim_start_matches("export ").split_once('=') {
                command.env(name, value.trim_matches('\''));
            }
        }
        command.output().expect("run afar").into()
    }

    /// As [`User::afar`], which must do what is asked of it.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let said = self.afar(arguments);
        assert_eq!(said.code, 0, "afar {}: {}{}", arguments.join(" "), said.out, said.err);
        said.out
    }
}

impl World {
    /// A bridge and an operator; `None` unless it was asked for, for it needs root.
    pub fn new() -> Option<Self> {
        if std::env::var_os("AFAR_TEST_NET").is_none() {
            eprintln!("SKIPPED: this test makes network namespaces, which needs root; `make test-net` runs it");
            return None;
        }
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("af{}x{number}", std::process::id());
        let hub = format!("{prefix}-hub");
        let made = sh("ip", &["netns", "add", &hub]).and_then(|()| {
            sh("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
            sh("ip", &["-n", &hub, "addr", "add", "10.77.0.1/24", "dev", "br0"])?;
            sh("ip", &["-n", &hub, "link", "set", "br0", "up"])?;
            sh("ip", &["-n", &hub, "link", "set", "lo", "up"])
        });
        made.expect("network namespaces: `make test-net` needs root");
        let folder = tempfile::Builder::new().prefix("afar-net-").tempdir().expect("a temporary folder");
        let cluster = folder.path().join("cluster");
        let user = Arc::new(User { hub: hub.clone(), cluster: cluster.clone() });
        user.ok(&["cluster", "init", &cluster.display().to_string(), "--name", "net", "--verify-distance", "off", "--partitions", "256"]);
        Some(Self { prefix, hub, folder, machines: BTreeMap::new(), user })
    }

    /// Whoever runs `afar`.
    pub fn user(&self) -> Arc<User> {
        Arc::clone(&self.user)
    }

    /// A machine at a site (`NAME=LAT,LON,CC`, or a name that is known), its node added and started.
    #[track_caller]
    pub fn add(&mut self, name: &str, site: &str) {
        let number = self.machines.len() + 2;
        let (namespace, address) = (format!("{}-{number}", self.prefix), format!("10.77.0.{number}"));
        let (inner, outer) = (format!("v{number}i"), format!("v{number}o"));
        let wired = sh("ip", &["netns", "add", &namespace]).and_then(|()| {
            sh("ip", &["link", "add", &inner, "netns", &namespace, "type", "veth", "peer", "name", &outer, "netns", &self.hub])?;
            sh("ip", &["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", &inner])?;
            sh("ip", &["-n", &namespace, "link", "set", &inner, "up"])?;
            sh("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
            sh("ip", &["-n", &self.hub, "link", "set", &outer, "master", "br0"])?;
            sh("ip", &["-n", &self.hub, "link", "set", &outer, "up"])
        });
        wired.expect("a machine with a wire");
        let folder = self.folder.path().join(name);
        let at = format!("{address}:7700");
        // Known before anything can fail, so that it is undone.
        self.machines.insert(name.to_owned(), Machine { namespace, address, folder: folder.clone(), process: None });
        self.user.ok(&["node", "add", name, "--site", site, "--at", &at, "--capacity", "1GiB", "-o", &folder.display().to_string(), "-y"]);
        self.start(name);
    }

    fn machine(&self, name: &str) -> &Machine {
        self.machines.get(name).expect("a machine of that name")
    }

    fn machine_mut(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(name).expect("a machine of that name")
    }

    /// Starts a node.
    pub fn start(&mut self, name: &str) {
        let machine = self.machine_mut(name);
        let log = File::options().create(true).append(true).open(machine.folder.join("log")).expect("a log");
        let mut command = inside(&machine.namespace, &programs::afard());
        command.arg("--config").arg(machine.folder.join("afard.toml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        machine.process = Some(command.spawn().expect("start afard"));
    }

    /// Kills a node as a power cut would.
    pub fn kill(&mut self, name: &str) {
        if let Some(mut process) = self.machine_mut(name).process.take() {
            // `ip netns exec` replaces itself by the node, so this is the node.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Kills all nodes at once, and starts them again.
    pub fn restart_all(&mut self) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        names.iter().for_each(|name| self.kill(name));
        names.iter().for_each(|name| self.start(name));
    }

    /// Pulls a machine's cable, or puts it back.
    pub fn cable(&self, name: &str, plugged: bool) {
        let number = self.machine(name).address.rsplit('.').next().unwrap_or_default().to_owned();
        sh("ip", &["-n", &self.hub, "link", "set", &format!("v{number}o"), if plugged { "up" } else { "down" }]).expect("a cable");
    }

    /// Cuts the way from one machine to another, not the way back; or mends it.
    pub fn way(&self, from: &str, to: &str, open: bool) {
        let target = format!("{}/32", self.machine(to).address);
        let verb = if open { "del" } else { "add" };
        sh("ip", &["-n", &self.machine(from).namespace, "route", verb, "blackhole", &target]).expect("a route");
    }

    /// What `afar status --json` says.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.user.afar(&["status", "--json"]).out).unwrap_or(Value::Null)
    }

    /// Waits until everything is safe, and one layout is in force.
    #[track_caller]
    pub fn settled(&self, what: &str) {
        until(what, 2 * SETTLE_MAX, || {
            let status = self.status();
            let calm = status["state"] == "safe" && status["rebalance"]["in_transition"] == false;
            if calm { Ok(()) } else { Err(format!("{} {} {}", status["state"], status["rebalance"], status["checks"])) }
        });
    }

    /// Writes objects until told to stop; answers those that were acknowledged.
    pub fn writer(&self, prefix: &str) -> Writer {
        let (user, stop, prefix) = (self.user(), Arc::new(AtomicBool::new(false)), prefix.to_owned());
        let (told, folder) = (Arc::clone(&stop), self.folder.path().to_path_buf());
        let work = std::thread::spawn(move || {
            let (mut acknowledged, mut number) = (Vec::new(), 0_u32);
            while !told.load(Ordering::Relaxed) {
                number += 1;
                let (key, file) = (format!("{prefix}/{number}"), folder.join(format!("{prefix}-{number}")));
                let content = format!("{key} {}", "x".repeat((number as usize % 7) * 40_000));
                fs::write(&file, &content).expect("a file");
                if user.afar(&["put", &file.display().to_string(), &format!("data/{key}")]).code == 0 {
                    acknowledged.push((key, content));
                }
                let _ = fs::remove_file(&file);
            }
            acknowledged
        });
        Writer { stop, work }
    }

    /// Everything that was acknowledged is there, byte for byte.
    #[track_caller]
    pub fn all_there(&self, acknowledged: &[(String, String)]) {
        for (key, content) in acknowledged {
            let said = self.user.afar(&["cat", &format!("data/{key}")]);
            assert_eq!((said.code, said.out == *content), (0, true), "{key}: {}", said.err);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        for name in names {
            if std::thread::panicking() {
                let log = fs::read_to_string(self.machine(&name).folder.join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("--- {name}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            self.kill(&name);
            let _ = sh("ip", &["netns", "del", &self.machine(&name).namespace]);
        }
        let _ = sh("ip", &["netns", "del", &self.hub]);
    }
}

/// See [`World::writer`].
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    work: JoinHandle<Vec<(String, String)>>,
}

impl Writer {
    /// Ends it.
    pub fn end(self) -> Vec<(String, String)> {
        self.stop.store(true, Ordering::Relaxed);
        self.work.join().expect("the writer")
    }
}
