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
    for entry in fs::read_dir(&arguments.folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("afar") && name.ends_with(".1"));
        if ours {
            let page = fs::read_to_string(&path).map_err(wrong)?;
            fs::write(&path, laid_out(&page)).map_err(wrong)?;
        }
    }
    Ok(0)
}

/// What the generator takes from the end of the help is text for a screen: where a line is indented, roff would fill it up with
/// the lines after it, and stretch it to the margin. Here such a line stays one, and begins where it is meant to.
fn laid_out(page: &str) -> String {
    let (mut text, mut within) = (String::with_capacity(page.len()), false);
    for line in page.lines() {
        let (bare, section) = (line.trim_start_matches(' '), line.starts_with(".SH"));
        match line.len() - bare.len() {
            0 if section && within => text.push_str(".ad b\n.hy\n"),
            indent @ 1.. if within && !bare.is_empty() => {
                // What begins like a request is text here.
                let guard = if bare.starts_with(['.', '\'']) { "\\&" } else { "" };
                text.push_str(&format!(".br\n.in +{indent}n\n{guard}{bare}\n.br\n.in -{indent}n\n"));
                continue;
            }
            _ => {}
        }
        text.push_str(line);
        text.push('\n');
        if section {
            within = line == ".SH EXTRA";
            text.push_str(if within { ".ad l\n.nh\n" } else { "" });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indented_lines_of_a_manual_stay_lines_of_their_own() {
        let page = ".TH afar 1\n  as it was\n.SH EXTRA\nExample:\n  afar put a b\n  .hidden\n\nA paragraph\nof two lines.\n.SH VERSION\n  as it was\n";
        let expected = ".TH afar 1\n  as it was\n.SH EXTRA\n.ad l\n.nh\nExample:\n.br\n.in +2n\nafar put a b\n.br\n.in -2n\n\
            .br\n.in +2n\n\\&.hidden\n.br\n.in -2n\n\nA paragraph\nof two lines.\n.ad b\n.hy\n.SH VERSION\n  as it was\n";
        assert_eq!(laid_out(page), expected);
    }
}
