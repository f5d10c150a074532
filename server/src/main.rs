//! The node's program: arguments, log, runtime, signals. Everything else is in the library.
mod manual;

use afard::{clock::Clock, config::Config, gateways::public_tls::PublicTls, inspect, node::Node};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code for SIGTERM after everything ended in time, as shells count it.
const TERMINATED: u8 = 143;
/// The exit code for SIGINT.
const INTERRUPTED: u8 = 130;

const AFTER: &str = "\
Exit codes: 0 good, 1 failed, 2 configuration, 11 the data are in use by another
  process, 130/143 told to stop. The file: man afard.toml, deploy/afard.toml.md";

const INSPECT_AFTER: &str = "\
One disk is all that is left? deploy/runbook.md. Exit codes: 3 pieces are
missing, 4 damage, 10 nothing of that name, 11 the node runs";

/// afar's node: keeps records on its disks and on far away peers'
#[derive(Debug, Parser)]
#[command(
    name = "afard",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 80,
    after_help = AFTER
)]
struct Arguments {
    /// The node's configuration
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Only report every problem of the configuration
    #[arg(long)]
    check_config: bool,
    /// Make missing or empty data directories (else they are failed disks)
    #[arg(long, alias = "init-dir")]
    init_dirs: bool,
    /// What to log, such as "debug"
    #[arg(long, value_name = "FILTER", env = "AFARD_LOG", default_value = "info")]
    log: String,
    /// Log one JSON object per line
    #[arg(long)]
    json_logs: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read data without an index, a cluster or a running node
    Inspect(Inspect),
    /// Write the man pages, of the program and of its file, to a folder
    #[command(hide = true)]
    Man {
        /// The folder, made if it is not there
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(after_help = INSPECT_AFTER)]
struct Inspect {
    /// Data directories or segment files; they are only read
    #[arg(required = true, value_name = "DIR|SEGMENT")]
    paths: Vec<PathBuf>,
    /// Only say of each segment whether every record matches its name
    #[arg(long)]
    verify: bool,
    /// Objects instead of records; with --verify all of each is read
    #[arg(long)]
    list: bool,
    /// Write one object: BUCKET/KEY, or the id of it, a version or a record
    #[arg(long, value_name = "WHAT", requires = "output", conflicts_with_all = ["list", "verify"])]
    extract: Option<String>,
    /// Every object under BUCKET/PREFIX, into the folder that -o names
    #[arg(short, long, requires = "extract")]
    recursive: bool,
    /// Where to; - is stdout
    #[arg(short, long, value_name = "FILE", requires = "extract")]
    output: Option<PathBuf>,
    /// Remove the index; the next start rebuilds it
    #[arg(long, conflicts_with_all = ["verify", "list", "extract"])]
    rebuild_index: bool,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = start_log(&arguments) {
        return complain(&error, 2);
    }
    // Before the first handshake; an error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match (arguments.command, arguments.config) {
        (Some(Command::Inspect(asked)), _) => inspect_files(asked),
        (Some(Command::Man { folder }), _) => match manual::write(Arguments::command(), &folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&format!("{}: {error}", folder.display()), 1),
        },
        (None, Some(path)) => match Config::load(&path) {
            Ok(mut config) => {
                config.init_dirs |= arguments.init_dirs;
                if arguments.check_config { check(&config) } else { run(config) }
            }
            Err(error) => complain(&error.to_string(), 2),
        },
        (None, None) => complain("--config FILE is missing", 2),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    eprintln!("afard: {message}");
    ExitCode::from(code)
}

fn start_log(arguments: &Arguments) -> Result<(), String> {
    let filter = EnvFilter::try_new(&arguments.log).map_err(|error| format!("--log {:?}: {error}", arguments.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if arguments.json_logs {
        builder.json().init()
    } else {
        builder.with_ansi(false).init()
    }
    Ok(())
}

fn check(config: &Config) -> ExitCode {
    let now = Clock::new(config.clock_offset_ms).now();
    let loaded = afard::node::load_identity(config, now).and_then(|identity| {
        // As the start does it.
        PublicTls::load(Arc::new(identity), &config.public_tls, &config.state, now)
    });
    if let Err(error) = loaded {
        return complain(&error.to_string(), 2);
    }
    println!("{}: node {} of cluster {}: good", config.path.display(), config.node, config.cluster);
    if let Err(infeasible) = config.feasible() {
        println!("warning: the default policy cannot be met: {infeasible}");
    }
    ExitCode::SUCCESS
}

fn run(config: Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("afard").build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("start: {error}"), 1),
    };
    if let Err(infeasible) = config.feasible() {
        tracing::warn!("the default policy cannot be met: {infeasible}");
    }
    let code = runtime.block_on(serve(config));
    // What is left is stuck; the process ends without it.
    runtime.shutdown_background();
    code
}

async fn serve(config: Config) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        return complain("signals cannot be received", 1);
    };
    let starting = Node::start(config);
    tokio::pin!(starting);
    let running = tokio::select! {
        started = &mut starting => match started {
            Ok(running) => running,
            Err(error) => return complain(&error.to_string(), error.exit_code()),
        },
        _ = terminate.recv() => return ExitCode::from(TERMINATED),
        _ = interrupt.recv() => return ExitCode::from(INTERRUPTED),
    };
    let code = loop {
        tokio::select! {
            _ = terminate.recv() => break TERMINATED,
            _ = interrupt.recv() => break INTERRUPTED,
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: certificates and key are read again; for everything else in the configuration restart the node");
                running.node.identity.look_again();
                running.node.public_tls.look_again();
            }
        }
    };
    match running.stop().await {
        Ok(()) => ExitCode::from(code),
        Err(why) => {
            tracing::error!(why, "not everything ended in time");
            ExitCode::FAILURE
        }
    }
}

fn inspect_files(asked: Inspect) -> ExitCode {
    let asked = inspect::Asked {
        paths: asked.paths,
        verify: asked.verify,
        list: asked.list,
        extract: asked.extract,
        recursive: asked.recursive,
        output: asked.output,
        rebuild_index: asked.rebuild_index,
        json: asked.json,
    };
    match inspect::run(&asked, &mut std::io::stdout().lock(), &mut std::io::stderr().lock()) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        // Whoever read our answer has seen enough.
        Err(inspect::InspectError::Answer(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string(), error.exit_code()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_help_fits_a_terminal_of_24_by_80() {
        Arguments::command().debug_assert();
        let help = |line: &[&str]| Arguments::command().max_term_width(80).try_get_matches_from(line).unwrap_err().to_string();
        let helps = [&["afard", "-h"][..], &["afard", "--help"], &["afard", "inspect", "-h"], &["afard", "inspect", "--help"]].map(help);
        for help in helps {
            assert!(help.lines().count() <= 24, "{help}");
            assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
        }
    }
}
