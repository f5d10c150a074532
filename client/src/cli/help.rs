//! What `-h`, `--help` and the manual say. `-h` fits a terminal of 24 lines and 80 columns, `--help` a large one, and what
//! scripts must know in detail (settings, JSON, exit codes) is in the manual. All come from one definition.
use clap::error::ErrorKind;
use std::ffi::OsString;

/// At the end of `afar --help`.
pub(super) const AFTER: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 some files unreadable, 4 integrity,
  5 below the policy, 10 not found, 11 busy, 12 authentication, 13 space,
  14 unreachable, 15 denied, 130/143 interrupted
Settings: flags, then AFAR_ENDPOINT, AFAR_ACCESS_KEY_ID, AFAR_CA_FILE,
  AFAR_SECRET_ACCESS_KEY (or .._FILE, .._COMMAND), then the configuration file,
  ~/.config/afar/config.toml; `man afar` says more";

/// The commands as `afar -h` shows them: those that belong together on a line. What is in none of these gets its own.
const GROUPS: [(&str, &str); 11] = [
    ("put get cat", "store files; fetch them into files, or print them"),
    ("ls stat", "list buckets and what is in them; describe an object"),
    ("rm cp", "remove (recoverable for a while); copy within the cluster"),
    ("status doctor", "the state of the cluster; every node examines itself"),
    ("bucket key", "make, list and remove buckets and access keys"),
    ("cluster", "make or adopt a cluster, replace its keys, recover a burnt laptop"),
    ("node site", "add, drain, replace and remove nodes; retire and lose sites"),
    ("layout", "what the cluster is, was, and would be: plan, apply, roll back"),
    ("demo", "see it all on this machine: three sites, a fire, nothing lost"),
    ("config", "show and check settings"),
    ("completions", "for bash, zsh, fish .."),
];

/// If the short help was asked for (`-h`), or help is shown because nothing was asked for: that.
pub(super) fn shortened(arguments: &[OsString], error: &clap::Error) -> Option<clap::Error> {
    let before_dashes = || arguments.iter().take_while(|argument| *argument != "--").filter_map(|argument| argument.to_str());
    let is_short = |argument: &str| argument.strip_prefix('-').is_some_and(|rest| !rest.starts_with('-') && rest.contains('h'));
    let wanted = match error.kind() {
        ErrorKind::DisplayHelp => before_dashes().any(is_short) && !before_dashes().any(|argument| argument == "--help"),
        kind => kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    };
    if wanted { short_definition().try_get_matches_from(arguments).err() } else { None }
}

/// The definition with what every command shares left out of its helps.
fn short_definition() -> clap::Command {
    const KEPT: [&str; 2] = ["json", "help"];
    let definition = super::definition().max_term_width(80).mut_args(|argument| {
        let argument = match argument.get_id().as_str() {
            "help" => argument.help("Print help; --help shows the global options, too"),
            _ => argument,
        };
        match (argument.is_global_set(), KEPT.contains(&argument.get_id().as_str())) {
            (false, _) => argument,
            (true, true) => argument.help_heading(None::<&str>),
            (true, false) => argument.hide(true),
        }
    });
    let text = overview(&definition);
    definition.override_help(text)
}

/// `afar -h`.
fn overview(definition: &clap::Command) -> String {
    let about = definition.get_about().map(ToString::to_string).unwrap_or_default();
    let mut lines = vec![about, String::new(), "Usage: afar [OPTIONS] COMMAND ..".to_owned(), String::new(), "Commands:".to_owned()];
    lines.extend(GROUPS.iter().map(|(names, words)| format!("  {names:12} {words}")));
    let grouped: Vec<&str> = GROUPS.iter().flat_map(|(names, _)| names.split(' ')).collect();
    for command in definition.get_subcommands() {
        let name = command.get_name();
        if !command.is_hide_set() && name != "help" && !grouped.contains(&name) {
            lines.push(format!("  {name:12} {}", command.get_about().map(ToString::to_string).unwrap_or_default()));
        }
    }
    let rest = "
Examples:
  afar demo                            see it work on this machine
  afar put -r /var/backups nightly/    one copy here, one far away, before OK
  afar status --check                  for monitoring: 0 OK, 1, 2, 3

`afar COMMAND -h`: its options. `afar --help`: all commands, global options,
settings and exit codes. `man afar`: what scripts and machines must know.
";
    lines.push(rest.to_owned());
    lines.join("\n")
}

/// What the manual says besides the help.
pub(super) const MANUAL: &str = include_str!("manual.txt");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::{config, definition};

    fn each(command: &mut clap::Command, path: &str, check: &dyn Fn(&str, String)) {
        check(path, command.render_help().to_string());
        for subcommand in command.get_subcommands_mut().filter(|subcommand| subcommand.get_name() != "help") {
            let path = format!("{path} {}", subcommand.get_name());
            each(subcommand, &path, check);
        }
    }

    fn check_size(help: &str, path: &str, lines: usize, columns: usize) {
        assert!(help.lines().count() <= lines, "{path}: {} lines\n{help}", help.lines().count());
        let wide = help.lines().find(|line| line.chars().count() > columns);
        assert_eq!(wide, None, "{path}");
    }

    #[test]
    fn the_short_help_fits_a_terminal_of_24_by_80() {
        let mut short = short_definition();
        short.build();
        each(&mut short, "afar", &|path, help| {
            // A whole cluster is planned on one command line, or a promise changed: that has more to ask.
            let asks_more = path.starts_with("afar cluster") || ["afar bucket set", "afar node add"].contains(&path);
            check_size(&help, path, if asks_more { 40 } else { 24 }, if asks_more { 100 } else { 80 });
            assert!(path == "afar" || !help.contains("--endpoint"), "{path}: global options are for --help");
        });
    }

    #[test]
    fn every_help_fits_a_screen() {
        let mut whole = definition();
        whole.build();
        each(&mut whole, "afar", &|path, help| {
            check_size(&help, path, 50, 100);
            assert!(help.contains("--endpoint"), "{path}");
        });
    }

    #[test]
    fn the_overview_names_every_command_once() {
        let overview = overview(&definition());
        let commands = overview.split("Examples:").next().unwrap();
        for command in definition().get_subcommands().filter(|command| !command.is_hide_set()) {
            let named = commands.lines().filter(|line| line.starts_with("  ")).flat_map(|line| line.get(..15).unwrap_or(line).split(' '));
            assert_eq!(named.filter(|name| *name == command.get_name()).count(), 1, "{}", command.get_name());
        }
        for (names, _) in GROUPS {
            names.split(' ').for_each(|name| assert!(definition().find_subcommand(name).is_some(), "{name} is no command"));
        }
    }

    #[test]
    fn short_help_is_shown_only_where_it_is_asked_for() {
        let is_shortened = |line: &[&str]| {
            let arguments: Vec<OsString> = line.iter().map(OsString::from).collect();
            let error = definition().try_get_matches_from(&arguments).unwrap_err();
            shortened(&arguments, &error).is_some()
        };
        for line in [&["afar", "-h"][..], &["afar", "put", "-h"], &["afar", "put", "-qh"], &["afar"], &["afar", "bucket"]] {
            assert!(is_shortened(line), "{line:?}");
        }
        for line in [&["afar", "--help"][..], &["afar", "put", "--help"], &["afar", "help", "put"], &["afar", "pit"], &["afar", "-V"]] {
            assert!(!is_shortened(line), "{line:?}");
        }
    }

    #[test]
    fn the_manuals_configuration_file_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let from = MANUAL.find("    context =").unwrap();
        let text: String =
            MANUAL[from..].lines().take_while(|line| line.is_empty() || line.starts_with("    ")).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let file = config::read_file(&path).unwrap();
        assert_eq!(file.contexts.keys().collect::<Vec<_>>(), ["lab", "production"]);
        for key in ["endpoint", "access_key_id", "ca_file", "secret_access_key", "secret_access_key_file", "secret_access_key_command"] {
            assert!(MANUAL.contains(key), "{key}");
        }
    }
}
