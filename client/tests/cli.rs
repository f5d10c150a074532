//! The command line as scripts see it, where no node is needed: exit codes, streams, files.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use assert_cmd::Command;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

/// `afar`, with nothing of this machine's environment or configuration.
fn afar(home: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("afar"));
    command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").current_dir(home);
    command
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(home: &Path, arguments: &[&str]) -> Ran {
    let output = afar(home).args(arguments).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The last line of standard error, which with `--json` is an object.
fn exit_error(ran: &Ran) -> Value {
    let value: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(value["message_type"], "exit_error");
    assert_eq!(value["code"].as_i64(), Some(i64::from(ran.code)));
    value
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn usage_errors_exit_2_with_a_suggestion_and_say_nothing_on_stdout() {
    let home = home();
    for arguments in [
        &["pit", "a", "b"][..],
        &["put", "a"],
        &["put", "--recursve", "a", "bucket"],
        &["put", "a", "Bad Bucket"],
        &["put", "a", "b", "bucket/key"],
        &["get", "bucket", "x"],
        &["get", "bucket@12", "x"],
        &["get", "bucket@12345", "x"],
        &["cat", "bucket@123456", "--version", "123456"],
        &["cat", "bucket/key", "--version", "12345"],
        &["rm", "bucket@123456"],
        &["ls", "x"],
        &["bucket", "create", "x"],
        &["bucket", "create", "docs", "--copies", "0"],
        &["key", "create", "k"],
        &["status", "--chek"],
        &["demo", "--serve"],
        &[],
    ] {
        let ran = run(home.path(), arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{arguments:?}");
    }
    assert!(run(home.path(), &["pit", "a", "b"]).stderr.contains("'put'"), "did you mean");
    let named = run(home.path(), &["bucket", "create", "docs", "--copies", "0"]).stderr;
    assert!(named.contains("`afar bucket create --help`"), "the hint names the command: {named}");
    assert!(run(home.path(), &["put", "--recursve", "a", "b"]).stderr.contains("--recursive"));
}

#[test]
fn with_json_every_error_is_json() {
    let home = home();
    for arguments in [
        &["--json", "pit"][..],
        &["put", "--json", "a"],
        &["--json", "ls"],
        &["--json", "put", "a", "b", "bucket/key"],
        &["ls", "--jsn", "--json"],
        &["key", "create", "--json"],
        &["--json"],
        &["--json", "bucket"],
    ] {
        let ran = run(home.path(), arguments);
        let error = exit_error(&ran);
        assert_eq!(ran.code, 2, "{arguments:?}");
        let told = |name: &str| error[name].as_str().is_some_and(|text| !text.is_empty());
        assert!(told("message") && told("hint") && error["id"] == "E_USAGE", "{error}");
        assert!(ran.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_monitoring_plugin_only_exits_0_to_3() {
    let home = home();
    for arguments in [&["status", "--check"][..], &["status", "--check", "--nonsense"], &["--json", "status", "--check"]] {
        assert_eq!(run(home.path(), arguments).code, 3, "{arguments:?}");
    }
}

#[test]
fn what_is_not_configured_is_named() {
    let home = home();
    let ran = run(home.path(), &["ls"]);
    assert_eq!(ran.code, 2);
    for name in ["AFAR_ENDPOINT", "AFAR_ACCESS_KEY_ID", "AFAR_SECRET_ACCESS_KEY", "AFAR_CA_FILE"] {
        assert!(ran.stderr.contains(name), "{}", ran.stderr);
    }
}

#[test]
fn help_and_version_are_results() {
    let home = home();
    for arguments in [&["--help"][..], &["-h"], &["--version"], &["put", "--help"], &["help", "put"], &["bucket", "create", "-h"]] {
        let ran = run(home.path(), arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
        let lines = if arguments.contains(&"-h") { 24 } else { 50 };
        assert!(ran.stdout.lines().count() <= lines, "{arguments:?} fits a screen: {}", ran.stdout);
    }
    assert!(
        !run(home.path(), &["put", "-h"]).stdout.contains("--endpoint")
            && run(home.path(), &["put", "--help"]).stdout.contains("--endpoint")
    );
}

#[test]
fn a_secret_is_fetched_from_a_file_or_a_command_and_never_shown() {
    let home = home();
    let secret = home.path().join("secret");
    fs::write(&secret, "hush\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(home.path().join("ca.crt"), "not a certificate").unwrap();
    let with = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = afar(home.path());
        command.env("AFAR_ENDPOINT", "https://127.0.0.1:1").env("AFAR_ACCESS_KEY_ID", "A").env("AFAR_CA_FILE", "ca.crt");
        let output = command.env(name, value).args(arguments).output().unwrap();
        (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    };
    for command in ["ls", "status", "doctor"] {
        let (code, text) = with("AFAR_SECRET_ACCESS_KEY_FILE", secret.to_str().unwrap(), &[command]);
        assert!(code == Some(2) && text.contains("readable by everybody") && text.contains("chmod 600"), "{command}: {text}");
    }
    let (code, text) = with("AFAR_SECRET_ACCESS_KEY_COMMAND", "echo hush; exit 1", &["ls"]);
    assert!(code == Some(2) && text.contains("AFAR_SECRET_ACCESS_KEY_COMMAND") && !text.contains("hush"), "{text}");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    for (name, value) in [("AFAR_SECRET_ACCESS_KEY_FILE", "secret"), ("AFAR_SECRET_ACCESS_KEY_COMMAND", "cat secret")] {
        // The next thing that is wrong is the authority's file: the secret was had.
        let (code, text) = with(name, value, &["ls"]);
        assert!(code == Some(2) && text.contains("CA file"), "{text}");
        let (code, text) = with(name, value, &["config", "show"]);
        assert!(code == Some(0) && text.contains(name) && !text.contains("hush"), "{text}");
    }
}

#[test]
fn a_dead_endpoint_is_unreachable_and_a_wrong_ca_file_a_usage_error() {
    let home = home();
    run(
        home.path(),
        &[
            "cluster",
            "init",
            "c",
            "--name",
            "c",
            "--site",
            "a=48.5,7.7,FR",
            "--site",
            "b=52.2,21.0,PL",
            "--node",
            "a@a=127.0.0.1:1",
            "--node",
            "b@b=127.0.0.1:2",
        ],
    );
    let ca = home.path().join("c/client/ca.crt");
    let with = |ca: &Path, arguments: &[&str]| {
        let mut command = afar(home.path());
        command
            .env("AFAR_ENDPOINT", "https://127.0.0.1:1")
            .env("AFAR_ACCESS_KEY_ID", "A")
            .env("AFAR_SECRET_ACCESS_KEY", "s")
            .env("AFAR_CA_FILE", ca);
        command.args(arguments).output().unwrap()
    };
    let status = with(&ca, &["--json", "status"]);
    assert_eq!(status.status.code(), Some(14), "{}", String::from_utf8_lossy(&status.stderr));
    let put = with(&ca, &["put", "c/client/ca.crt", "docs"]);
    assert_eq!(put.status.code(), Some(14), "{}", String::from_utf8_lossy(&put.stderr));
    fs::write(home.path().join("no.crt"), "not a certificate").unwrap();
    assert_eq!(with(&home.path().join("no.crt"), &["ls"]).status.code(), Some(2));
    assert_eq!(with(&home.path().join("missing.crt"), &["ls"]).status.code(), Some(2));
    let missing = with(&ca, &["put", "no-such-file", "docs"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-file"));
}

#[test]
fn a_configuration_file_is_checked_and_its_secret_never_shown() {
    let home = home();
    let folder = home.path().join(".config/afar");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("config.toml");
    let text = "[contexts.a]\nendpoint = \"https://a:7700\"\naccess_key_id = \"AK\"\nsecret_access_key = \"hush\"\nca_file = \"/ca\"\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let shown = run(home.path(), &["--json", "config", "show"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    let value: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(value["endpoint"]["value"], "https://a:7700");
    assert!(!shown.stdout.contains("hush"));
    assert_eq!(run(home.path(), &["config", "check"]).code, 0);
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert_eq!(run(home.path(), &["config", "check"]).code, 2, "larger than 1 MiB");
    fs::write(&path, "[contexts.a]\nendpiont = 1\n").unwrap();
    let faulty = run(home.path(), &["ls"]);
    assert!(faulty.code == 2 && faulty.stderr.contains("line 2"), "{}", faulty.stderr);
}

#[test]
fn cluster_init_makes_a_cluster_or_says_what_is_wrong_and_makes_nothing() {
    let home = home();
    let sites = [
        "--site",
        "strasbourg=48.5734,7.7521,FR",
        "--site",
        "roubaix=50.6927,3.1778,FR",
        "--site",
        "warsaw=52.2297,21.0122,PL,Some Host,500",
    ];
    let nodes = [
        "--node",
        "s@strasbourg=s.example.org:7700,4TiB",
        "--node",
        "r@roubaix=r.example.org:7700",
        "--node",
        "w@warsaw=w.example.org:7700",
    ];
    let init = |dir: &str, more: &[&str]| {
        let mut arguments = vec!["--json", "cluster", "init", dir, "--name", "hosting"];
        arguments.extend(sites.iter().chain(&nodes).copied());
        arguments.extend(more);
        run(home.path(), &arguments)
    };
    let made = init("c", &["--copies", "3", "--min-distance-km", "400"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let config = fs::read_to_string(home.path().join("c/nodes/w/afard.toml")).unwrap();
    assert!(config.contains("copies = 3") && config.contains("node = \"w\"") && config.contains("uncertainty_m = 500"), "{config}");
    for (dir, more, code, expected) in [
        ("c", &[][..], 2, "not empty"),
        ("d", &["--copies", "0"], 2, "copies"),
        ("d", &["--min-distance-km", "2000"], 5, "cannot be kept"),
        ("d", &["--copies", "9"], 5, "only 3 sites have a node; would help: lower copies from 9 to 3"),
        ("d", &["--home", "paris"], 2, "paris"),
        ("d", &["--countries", "FR"], 5, "strasbourg-roubaix"),
        ("d", &["--site", "warsaw=0,0,PL"], 2, "two sites are named"),
        ("d", &["--node", "s@strasbourg=t.example.org:7700"], 2, "two nodes are named"),
        ("d", &["--node", "x@nowhere=t.example.org:7700"], 2, "nowhere"),
        ("d", &["--node", "x@warsaw=s.example.org:7700"], 2, "same endpoint"),
        ("d", &["--site", "pole=91,0,FR"], 2, "latitude"),
        ("d", &["--partitions", "1000"], 2, "power of two"),
    ] {
        let ran = init(dir, more);
        let error = exit_error(&ran);
        assert_eq!(ran.code, code, "{more:?}");
        assert!(error.to_string().contains(expected), "{more:?}: {error}");
        assert!(!home.path().join("d").exists(), "{more:?}");
    }
}

#[test]
fn completions_and_man_pages_come_from_the_same_definition() {
    let home = home();
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(home.path(), &["completions", shell]);
        assert!(ran.code == 0 && ran.stdout.contains("afar"), "{shell}");
    }
    assert_eq!(run(home.path(), &["man", "pages"]).code, 0);
    assert!(home.path().join("pages/afar.1").exists() && home.path().join("pages/afar-put.1").exists());
    let manual = fs::read_to_string(home.path().join("pages/afar.1")).unwrap();
    for told in ["exit_error", "summary", "AFAR_SECRET_ACCESS_KEY_COMMAND", "CREDENTIALS_DIRECTORY"] {
        assert!(manual.replace('\\', "").contains(told), "{told}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let home = home();
    let program = assert_cmd::cargo::cargo_bin!("afar");
    let script = format!("set -o pipefail; {} completions bash | head -c 10 >/dev/null", program.display());
    let status = std::process::Command::new("bash").args(["-c", &script]).current_dir(home.path()).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_demo_says_what_is_missing() {
    let home = home();
    let output = afar(home.path()).env("AFARD", "/no/such/afard").arg("demo").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/afard"));
}
