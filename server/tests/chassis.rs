//! The program itself: arguments, configuration faults, exit codes, the pid file, signals and locks.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#[path = "../src/cluster/testing.rs"]
mod testing;

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use testing::{Authority, Wanted, write_secret};

/// A state is waited for at most this long.
const BOUND: Duration = Duration::from_secs(60);

/// The folder of a cluster's only node.
struct Folder {
    directory: tempfile::TempDir,
    port: u16,
}

impl Folder {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Freed again at once; the node takes it a moment later.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Authority::new().equip(directory.path(), &Wanted::good("afar://demo/warsaw"));
        write_secret(&directory.path().join("cluster.secret"), &"ab".repeat(32));
        write_secret(&directory.path().join("admin.key"), "access_key_id = \"AFAR1\"\nsecret_access_key = \"0123456789abcdef\"\n");
        let folder = Self { directory, port };
        folder.configure("");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, more: &str) {
        let port = self.port;
        let text = format!(
            "cluster = \"demo\"\nnode = \"warsaw\"\nlisten = \"127.0.0.1:{port}\"\ndata = [\"data\"]\nstate = \"state\"\npid_file = \"pid\"\n{more}
[tls]\nca = \"ca.crt\"\ncertificate = \"node.crt\"\nkey = \"node.key\"\n[secrets]\ncluster = \"cluster.secret\"\nadmin_key = \"admin.key\"
[layout]\nversion = 1\n[[layout.sites]]\nname = \"warsaw\"\nlatitude = 52.2297\nlongitude = 21.0122\ncountry = \"PL\"
[[layout.nodes]]\nname = \"warsaw\"\nsite = \"warsaw\"\nendpoint = \"https://127.0.0.1:{port}\"\ncapacity = \"1GiB\"\n"
        );
        fs::write(self.path("afard.toml"), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        afard().arg("--config").arg(self.path("afard.toml")).args(arguments).output().unwrap()
    }

    /// Starts the node and waits until it serves.
    fn serve(&self) -> Running {
        let log = fs::File::create(self.path("log")).unwrap();
        let child = afard().arg("--config").arg(self.path("afard.toml")).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let mut running = Running(child);
        let pid = running.0.id().to_string();
        let asked = Instant::now();
        while fs::read_to_string(self.path("pid")).unwrap_or_default().trim() != pid {
            let ended = running.0.try_wait().unwrap();
            assert!(ended.is_none() && asked.elapsed() < BOUND, "{ended:?}: {}", fs::read_to_string(self.path("log")).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let asked = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(asked.elapsed() < BOUND, "does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn afard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afard"));
    command.env_remove("AFARD_LOG").env_remove("RUST_BACKTRACE");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_fits_a_screen_and_mistakes_are_usage() {
    for arguments in [&["--help"][..], &["inspect", "--help"]] {
        let help = afard().args(arguments).output().unwrap();
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(help.status.success() && text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    assert!(afard().arg("--version").output().unwrap().stdout.starts_with(b"afard 0."));
    for mistake in [&[][..], &["--confg", "x"], &["--config", "x", "--log", "=="]] {
        assert_eq!(afard().args(mistake).output().unwrap().status.code(), Some(2), "{mistake:?}");
    }
}

#[test]
fn a_configuration_is_checked_without_touching_anything() {
    let folder = Folder::new();
    let good = folder.run(&["--check-config"]);
    let text = String::from_utf8(good.stdout.clone()).unwrap();
    assert!(good.status.success() && text.contains("node warsaw of cluster demo: good"), "{}", said(&good));
    assert!(text.contains("warning: the default policy cannot be met"), "one site cannot be far from itself: {text}");
    assert!(!folder.path("state").exists() && !folder.path("data").exists());
    folder.configure("frobnicate = 3\ninit_dirs = 4");
    let bad = folder.run(&["--check-config"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(said(&bad).contains("2 problems\n  line 7: frobnicate is not known"), "{}", said(&bad));
    folder.configure("");
    fs::write(folder.path("ca.crt"), Authority::new().pem()).unwrap();
    let foreign = folder.run(&[]);
    assert_eq!((foreign.status.code(), folder.path("data").exists()), (Some(2), false));
    assert!(said(&foreign).contains("was not issued by the authority"), "{}", said(&foreign));
}

#[test]
fn a_node_serves_and_ends_as_it_is_told() {
    let folder = Folder::new();
    let running = folder.serve();
    let second = folder.run(&[]);
    assert_eq!(second.status.code(), Some(11), "{}", said(&second));
    assert!(said(&second).contains("in use by another process"), "{}", said(&second));
    assert!(folder.path("pid").exists(), "the second one leaves the first one's alone");
    running.signal(Signal::HUP);
    assert_eq!(running.end(Signal::TERM).code(), Some(143));
    assert!(!folder.path("pid").exists());
    assert_eq!(folder.serve().end(Signal::INT).code(), Some(130));
    assert_eq!(folder.serve().end(Signal::KILL).code(), None);
    assert_eq!(folder.serve().end(Signal::TERM).code(), Some(143), "a stale pid file is in nobody's way");
}

#[test]
fn rule_19_a_known_directory_that_is_missing_is_no_new_one() {
    let folder = Folder::new();
    folder.serve().end(Signal::TERM);
    fs::remove_dir_all(folder.path("data")).unwrap();
    let refused = folder.run(&[]);
    assert!(!refused.status.success() && !Path::exists(&folder.path("data/identity")), "{}", said(&refused));
    folder.configure("init_dirs = true");
    folder.serve().end(Signal::TERM);
    let foreign = Folder::new();
    foreign.configure("");
    let text = fs::read_to_string(foreign.path("afard.toml")).unwrap().replace("warsaw", "lodz");
    fs::write(foreign.path("afard.toml"), text).unwrap();
    Authority::new().equip(foreign.directory.path(), &Wanted::good("afar://demo/lodz"));
    fs::rename(folder.path("data"), foreign.path("data")).unwrap();
    let refused = foreign.run(&[]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("belongs to node warsaw"), "{}", said(&refused));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = Folder::new();
    let _taken = TcpListener::bind(("127.0.0.1", folder.port)).unwrap();
    let refused = folder.run(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("is another process there?"), "{}", said(&refused));
}

#[test]
fn a_directory_can_be_read_without_its_node() {
    let folder = Folder::new();
    let data = folder.path("data");
    let inspect = |more: &[&str]| afard().arg("inspect").arg(&data).args(more).output().unwrap();
    let running = folder.serve();
    assert_eq!(inspect(&["--rebuild-index"]).status.code(), Some(11), "in use");
    assert!(inspect(&["--verify"]).status.success(), "reading is no harm");
    running.end(Signal::TERM);
    let listed = inspect(&["--json"]);
    let text = String::from_utf8(listed.stdout.clone()).unwrap();
    assert!(listed.status.success() && text.lines().next().unwrap().contains("\"node\":\"warsaw\""), "{text}{}", said(&listed));
    let nowhere = ["--extract", &"00".repeat(32), "-o", "-"];
    assert_eq!(inspect(&nowhere).status.code(), Some(10));
    assert_eq!(inspect(&["--extract", "00", "-o", "-"]).status.code(), Some(2));
    assert!(inspect(&["--rebuild-index"]).status.success() && !data.join("index").exists());
    folder.serve().end(Signal::TERM);
    fs::write(data.join("segments/0000000000000001.afar"), b"garbage").unwrap();
    assert_eq!(inspect(&["--verify"]).status.code(), Some(4));
    assert_eq!(afard().args(["inspect", "/nowhere"]).output().unwrap().status.code(), Some(1));
}
