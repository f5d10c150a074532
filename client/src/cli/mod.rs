//! The command line: arguments in, one command run, an exit code out. The contract of exit codes and streams is kept here;
//! what the commands do is in the files beside.
pub mod units;

pub mod output;

pub mod progress;

pub mod config;

pub mod stop;

mod adopt;

mod bucket;

pub(crate) mod cluster;
mod draining;
mod forecast;
mod layout;
mod node;
mod operate;
mod site;

mod config_command;

mod cp;

mod doctor;

mod extras;

mod get;

mod help;

mod key;

mod ls;

pub(crate) mod policy;

mod rekey;

mod put;

mod rm;

mod stat;

mod status;

mod transition;

pub(crate) use policy::PolicyFlags;
pub(crate) use put::{stored_json, stored_words};
pub(crate) use status::ask as ask_status;

use crate::{
    client::Client,
    demo,
    error::{Error, Kind},
};
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind};
use output::{ColorChoice, Out, ProgressStyle};
use std::{
    ffi::OsString,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};
use stop::Stop;

/// Keeps data in datacentres far apart, and proves it
#[derive(Debug, Parser)]
#[command(name = "afar", version, after_help = help::AFTER, max_term_width = 100, disable_help_flag = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Results and errors as JSON (see `man afar`)
    #[arg(long, global = true)]
    pub json: bool,
    /// Only results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More detail (repeat for more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Endpoints to try in order, https://HOST:PORT[,...]
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint: Vec<String>,
    /// Access key
    #[arg(long, global = true, value_name = "ID")]
    pub access_key_id: Option<String>,
    /// File that holds the access key's secret
    #[arg(long, global = true, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// The cluster's ca.crt
    #[arg(long, global = true, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Configuration file
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Context of the configuration file
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// When to use colours
    #[arg(long, global = true, value_enum, value_name = "WHEN", hide_possible_values = true)]
    pub color: Option<ColorChoice>,
    /// Print help
    #[arg(short, long, global = true, action = clap::ArgAction::HelpShort)]
    pub help: Option<bool>,
    /// How to show progress: auto, bar, plain, none
    #[arg(long, global = true, value_enum, value_name = "HOW", hide_possible_values = true)]
    pub progress: Option<ProgressStyle>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it all on this machine: three sites, a fire, nothing lost
    Demo(demo::Arguments),
    /// Store files
    Put(put::Arguments),
    /// Fetch objects into files
    Get(get::Arguments),
    /// Write objects to standard output
    Cat(get::CatArguments),
    /// List buckets, or what is in one
    Ls(ls::Arguments),
    /// Describe an object: where its copies are, and its state
    Stat(stat::Arguments),
    /// Remove objects (recoverable: `afar cp --version` brings them back)
    Rm(rm::Arguments),
    /// Copy an object within the cluster
    Cp(cp::Arguments),
    /// The state of the cluster, asked of every node
    Status(status::Arguments),
    /// Let every node examine its machine and its ways to the others
    Doctor(doctor::Arguments),
    /// Make, list, change and remove buckets
    #[command(subcommand)]
    Bucket(bucket::Command),
    /// Make, list and revoke access keys
    #[command(subcommand)]
    Key(key::Command),
    /// Make a cluster, and replace the keys that it rests on
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Add, drain, replace and remove nodes, and refuse stolen keys
    #[command(subcommand)]
    Node(node::Command),
    /// Correct, retire and give up sites
    #[command(subcommand)]
    Site(site::Command),
    /// Show, plan and change the layout
    #[command(subcommand)]
    Layout(layout::Command),
    /// Show and check settings
    #[command(subcommand)]
    Config(config_command::Command),
    /// Print a shell's completions
    Completions(extras::CompletionsArguments),
    /// Write the man pages to a folder
    #[command(hide = true)]
    Man(extras::ManArguments),
}

/// What a command needs.
pub(crate) struct Session {
    pub(crate) out: Out,
    global: Global,
}

impl Session {
    /// Connects as the settings say.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        let settings = config::Settings::gather(&self.global, &config::process_env)?;
        Client::connect(&settings.client_config()?)
    }

    pub(crate) const fn global(&self) -> &Global {
        &self.global
    }
}

/// Runs the program and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = definition().try_get_matches_from(&arguments);
    let (cli, name) = match parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, name_of(&matches)))) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&arguments, &error),
    };
    start_log(cli.global.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::report(cli.global.json, &Error::io("start", &error));
            return 1;
        }
    };
    let code = runtime.block_on(run(cli, &name));
    // A thread that waits for a terminal or a slow disk must not keep the program from ending.
    runtime.shutdown_background();
    code
}

/// The command that was given: `bucket create`.
fn name_of(matches: &ArgMatches) -> String {
    let below = |matches: &ArgMatches| matches.subcommand().map(|(name, matches)| (name.to_owned(), matches.clone()));
    let names = std::iter::successors(below(matches), |(_, matches)| below(matches)).map(|(name, _)| name);
    names.collect::<Vec<_>>().join(" ")
}

fn start_log(verbose: u8) {
    let filter = match verbose {
        0 => "off",
        1 => "afar=warn",
        2 => "afar=debug",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Usage errors exit 2 (3 for a monitoring plugin) and are JSON if JSON was asked for; help and version are no errors.
fn refuse(arguments: &[OsString], error: &clap::Error) -> u8 {
    let short = help::shortened(arguments, error);
    let error = short.as_ref().unwrap_or(error);
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = write!(std::io::stdout().lock(), "{}", error.render());
        return 0;
    }
    let given = |name: &str| arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == name);
    let code = if given("status") && given("--check") { 3 } else { 2 };
    let text = error.render().to_string();
    if given("--json") {
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let hint: Vec<&str> = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()).collect();
        output::say(&output::exit_error(code, Kind::Usage.id(), &message, Some(&hint.join(" "))).to_string());
    } else {
        output::say(text.trim_end());
    }
    code
}

async fn run(cli: Cli, name: &str) -> u8 {
    let Cli { global, command } = cli;
    let choice = global.color.unwrap_or(ColorChoice::Auto);
    let out = Out {
        json: global.json,
        quiet: global.quiet,
        verbose: global.verbose,
        color: !global.json && output::use_color(choice, &|name| std::env::var(name).ok(), std::io::stdout().is_terminal()),
        progress: global.progress.unwrap_or(if global.json { ProgressStyle::None } else { ProgressStyle::Auto }),
    };
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => {
            output::report(out.json, &Error::io("listen for signals", &error));
            return 1;
        }
    };
    let resumable = matches!(command, Command::Put(_));
    let session = Session { out, global };
    let outcome = match command {
        // It has processes of its own to end, and ends when it is told to.
        Command::Demo(arguments) if arguments.serve => Box::pin(demo::serve(&out, arguments, &mut stop)).await,
        command => tokio::select! {
            outcome = Box::pin(dispatch(&session, command)) => outcome,
            signal = stop.wait() => {
                let hint = resumable.then_some("run the same command again: files go on where they were");
                return interrupted(&out, signal, hint);
            }
        },
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let code = error.kind().exit_code();
            output::report(out.json, &error.of_command(name));
            code
        }
    }
}

/// Says that it was interrupted, and answers the exit code.
pub(crate) fn interrupted(out: &Out, signal: stop::Signal, hint: Option<&str>) -> u8 {
    if out.json {
        output::say(&output::exit_error(signal.exit_code(), "E_INTERRUPTED", "interrupted", hint).to_string());
    } else if !out.quiet {
        output::say(&hint.map_or_else(|| "afar: interrupted".to_owned(), |hint| format!("afar: interrupted; {hint}")));
    }
    signal.exit_code()
}

/// Runs one command; an exit code other than 0 says something that is no error, such as a state.
async fn dispatch(session: &Session, command: Command) -> Result<u8, Error> {
    match command {
        Command::Demo(arguments) => Box::pin(demo::run(&session.out, arguments)).await,
        Command::Put(arguments) => put::run(session, arguments).await,
        Command::Get(arguments) => get::run(session, arguments).await,
        Command::Cat(arguments) => get::cat(session, arguments).await,
        Command::Ls(arguments) => ls::run(session, arguments).await,
        Command::Stat(arguments) => stat::run(session, arguments).await,
        Command::Rm(arguments) => rm::run(session, arguments).await,
        Command::Cp(arguments) => cp::run(session, arguments).await,
        Command::Status(arguments) => status::run(session, arguments).await,
        Command::Doctor(arguments) => doctor::run(session, arguments).await,
        Command::Bucket(command) => Box::pin(bucket::run(session, command)).await,
        Command::Key(command) => key::run(session, command).await,
        Command::Cluster(command) => Box::pin(cluster::run(session, command)).await,
        Command::Node(command) => Box::pin(node::run(session, command)).await,
        Command::Site(command) => Box::pin(site::run(session, command)).await,
        Command::Layout(command) => Box::pin(layout::run(session, command)).await,
        Command::Config(command) => config_command::run(session, command),
        Command::Completions(arguments) => extras::completions(&arguments),
        Command::Man(arguments) => extras::man(&arguments),
    }
}

/// The definition that help, completions and man pages come from.
pub fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }
}
