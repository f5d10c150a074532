//! `afard man DIR`: pages for the program, from the definition of its arguments, and for the node's file, from the reference that
//! `config::tests` keeps true. Nothing is written twice.
use clap_mangen::roff::{Roff, bold, roman};
use std::{fs, io, path::Path};

/// What every key of a node's file means, for reading on the web; here it becomes `afard.toml(5)`.
const REFERENCE: &str = include_str!("../../deploy/afard.toml.md");

/// What does not fit `afard inspect --help`.
const INSPECT: &str = "\
ONE DISK IS ALL THAT IS LEFT

Name every data directory that is left; what one lacks another may hold. Objects are put together from the segments alone; every
record is hashed as it is read, and an object as a whole.

  afard inspect /mnt/A /mnt/B --list
  afard inspect /mnt/A /mnt/B --extract backups/host1/db.dump -o db.dump
  afard inspect /mnt/A /mnt/B --extract 3f2a91c0 -o db.dump
  afard inspect /mnt/A /mnt/B --extract backups -r -o saved

In a list, current is what afar get would give, older what was replaced or removed since, unproved what is not noted here to have been
acknowledged, and removed what this node gave away or took for bad. All but the first are had by their ids.

EXIT CODES

0 good, 1 failed, 2 usage, 3 pieces of an object are missing, 4 damage, 10 nothing of that name, 11 the node uses the directory, 13 no space.";

/// Writes `afard.1`, a page for each subcommand, and `afard.toml.5` to a folder, which is made if it is not there.
///
/// # Errors
/// If they cannot be written.
pub fn write(program: clap::Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let program = program.mut_subcommand("inspect", |inspect| inspect.after_long_help(INSPECT));
    clap_mangen::generate_to(program, folder)?;
    fs::write(folder.join("afard.toml.5"), file_page(REFERENCE))
}

/// A page of a reference in Markdown: of that only headings, paragraphs, blocks of code and tables, which is what it is made of.
fn file_page(reference: &str) -> String {
    let mut page = Roff::new();
    page.control("TH", ["afard.toml", "5", "", concat!("afard ", env!("CARGO_PKG_VERSION"))]);
    page.control("SH", ["NAME"]);
    page.text([roman("afard.toml - what an afard node is told")]);
    page.control("SH", ["DESCRIPTION"]);
    let (mut within_code, mut beside_table) = (false, true);
    for line in reference.lines().skip_while(|line| line.starts_with("# ") || line.is_empty()) {
        match line {
            _ if line.starts_with("```") => {
                within_code = !within_code;
                page.control(if within_code { "nf" } else { "fi" }, []);
            }
            _ if within_code => {
                page.text([roman(line)]);
            }
            "" => {
                page.control("PP", []);
            }
            _ if line.starts_with("## ") => {
                page.control("SH", [line.trim_start_matches("## ").to_uppercase().as_str()]);
            }
            // The first two lines of a table are what its columns are called, and a rule.
            _ if line.starts_with("| --") || (line.starts_with("| ") && beside_table) => {}
            _ if line.starts_with("| ") => {
                let cells: Vec<String> = line.trim_matches(['|', ' ']).split(" | ").map(plain).collect();
                let [key, rest @ ..] = cells.as_slice() else { continue };
                page.control("TP", []);
                page.text([bold(key)]);
                page.text([roman(described(rest))]);
            }
            _ => {
                page.text([roman(plain(line))]);
            }
        }
        beside_table = !line.starts_with("| ");
    }
    page.render()
}

/// What it must be, its default, and what else there is to say.
fn described(cells: &[String]) -> String {
    let [must_be, default, more @ ..] = cells else { return cells.join(". ") };
    let default = match default.trim() {
        "required" => "Required".to_owned(),
        default => format!("Default: {default}"),
    };
    let more: Vec<&str> = more.iter().map(|cell| cell.trim_matches(['|', ' '])).filter(|cell| !cell.is_empty()).collect();
    let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join("; ")) };
    format!("{must_be}{more}. {default}.")
}

/// Markdown as people would read it aloud: no backquotes, of a link its text.
fn plain(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, link)) = rest.split_once('[') {
        match link.split_once("](").and_then(|(words, after)| Some((words, after.split_once(')')?.1))) {
            Some((words, after)) if !words.contains('[') => {
                out.push_str(before);
                out.push_str(words);
                rest = after;
            }
            _ => {
                out.push_str(before);
                out.push('[');
                rest = link;
            }
        }
    }
    out.push_str(rest);
    out.replace('`', "")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_becomes_a_page() {
        let reference = "# Title\n\nSee [this](that.md), `[here]` and `x = [1]`.\n\n## Keys\n\n```toml\n# [a]\n.b = 1\n```\n\n\
             | key | must be | default | what else |\n| --- | --- | --- | --- |\n| `a` | a number | required | bytes |\n| `b` | a text | `\"\"` | |\n";
        let page = file_page(reference);
        for part in [
            "See this, [here] and x = [1].",
            ".SH KEYS",
            ".nf\n# [a]\n\\&.b = 1\n.fi",
            ".TP\n\\fBa\\fR\na number (bytes). Required.",
            ".TP\n\\fBb\\fR\na text. Default: \"\".",
        ] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
        assert!(!page.contains("must be") && !page.contains("\\-\\-"), "neither the columns' names nor the rule: {page}");
    }

    #[test]
    fn the_page_of_the_file_has_every_key_of_the_reference() {
        let page = file_page(REFERENCE).replace('\\', "");
        let keys = REFERENCE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key);
        let missing: Vec<&str> = keys.filter(|key| !page.contains(&format!("fB{key}fR"))).collect();
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn pages_are_written_for_the_program_and_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let program = clap::Command::new("afard").about("a node").subcommand(clap::Command::new("inspect").about("reads"));
        write(program, &folder.path().join("pages")).unwrap();
        for page in ["afard.1", "afard-inspect.1", "afard.toml.5"] {
            assert!(folder.path().join("pages").join(page).exists(), "{page}");
        }
    }
}
