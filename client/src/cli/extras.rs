//! Completions and man pages, from the same definition as the help.
use crate::error::{Error, Kind};
use clap::Args;
use clap_complete::Shell;
use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

/// Print a shell's completions
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  afar completions bash > /etc/bash_completion.d/afar")]
pub struct CompletionsArguments {
    /// Which shell
    shell: Shell,
}

/// Write the man pages to a folder
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The folder, made if it is not there
    folder: PathBuf,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<u8, Error> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::definition(), "afar", &mut text);
    match io::stdout().lock().write_all(&text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Error::new(Kind::OutputClosed, "the reader has gone")),
        Err(error) => Err(Error::io("write to standard output", &error)),
        Ok(()) => Ok(0),
    }
}

pub(super) fn man(arguments: &ManArguments) -> Result<u8, Error> {
    let wrong = |error: io::Error| Error::io(arguments.folder.display(), &error);
    fs::create_dir_all(&arguments.folder).map_err(wrong)?;
    // The manual has room for what no screen has.
    let manual = format!("{}\n\n{}", super::help::AFTER, super::help::MANUAL);
    clap_mangen::generate_to(super::definition().after_long_help(manual), &arguments.folder).map_err(wrong)?;
    Ok(0)
}
