//! What the demo stores: the files that it was given, or this program's own sources, or, where there are none, the program
//! itself.
use crate::error::Error;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// A file and the key that it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DemoFile {
    pub(super) path: PathBuf,
    pub(super) key: String,
    pub(super) size: u64,
}

/// A demo is over in half a minute: no more files than this.
const FILES_MAX: usize = 1000;
/// And no more bytes.
const BYTES_MAX: u64 = 512 << 20;

/// The files, and how many there would have been beyond the bounds.
pub(super) fn gather(named: &[PathBuf]) -> Result<(Vec<DemoFile>, usize), Error> {
    let mut files = Vec::new();
    if named.is_empty() {
        own(&mut files)?;
    }
    for path in named {
        let metadata = fs::metadata(path).map_err(|error| Error::io(path.display(), &error))?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if metadata.is_dir() {
            let prefix = if name.is_empty() { String::new() } else { format!("{name}/") };
            walk(path, &prefix, &mut files)?;
        } else {
            fs::File::open(path).map_err(|error| Error::io(path.display(), &error))?;
            files.push(DemoFile { path: path.clone(), key: name.to_owned(), size: metadata.len() });
        }
    }
    files.retain(|file| afar_model::record::check_key(&file.key).is_ok());
    files.sort_by(|a, b| a.key.cmp(&b.key));
    // Two files of one name from different folders: one of them.
    files.dedup_by(|a, b| a.key == b.key);
    let all = files.len();
    let mut bytes = 0_u64;
    files.truncate(FILES_MAX);
    files.retain(|file| {
        let fits = bytes.saturating_add(file.size) <= BYTES_MAX;
        bytes += if fits { file.size } else { 0 };
        fits
    });
    if files.is_empty() {
        return Err(Error::usage("there is nothing to store").hint("name a file"));
    }
    let left_out = all - files.len();
    Ok((files, left_out))
}

fn own(files: &mut Vec<DemoFile>) -> Result<(), Error> {
    let program = env::current_exe().map_err(|error| Error::io("find this program", &error))?;
    let starts = [env::current_dir().ok(), Some(program.clone())];
    if let Some(root) = starts.iter().flatten().find_map(|start| repository(start)) {
        return walk(&root, "", files);
    }
    let size = fs::metadata(&program).map_err(|error| Error::io(program.display(), &error))?.len();
    files.push(DemoFile { path: program, key: "afar".into(), size });
    Ok(())
}

/// The folder above with this program's workspace.
fn repository(start: &Path) -> Option<PathBuf> {
    let is_it = |folder: &&Path| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        manifest.contains("[workspace]") && folder.join("client/Cargo.toml").is_file() && folder.join("server/Cargo.toml").is_file()
    };
    start.ancestors().find(is_it).map(Path::to_path_buf)
}

/// Every readable file below, but for what is hidden or built.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<DemoFile>) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder.display(), &error))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let (Some(name), Ok(kind)) = (name.to_str(), entry.file_type()) else { continue };
        if name.starts_with('.') || name == "target" {
            continue;
        }
        let key = format!("{prefix}{name}");
        if kind.is_dir() {
            // A folder that may not be read is none of the demo's business.
            let _ = walk(&path, &format!("{key}/"), files);
        } else if kind.is_file()
            && let Ok(metadata) = entry.metadata()
        {
            files.push(DemoFile { path, key, size: metadata.len() });
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_the_sources_are_taken_but_not_what_was_built() {
        let (files, _) = gather(&[]).unwrap();
        assert!(files.iter().any(|file| file.key == "client/src/demo/files.rs"));
        assert!(!files.iter().any(|file| file.key.starts_with("target/") || file.key.starts_with(".git/")));
    }

    #[test]
    fn a_named_file_that_is_not_there_is_an_error() {
        assert!(gather(&[PathBuf::from("/no/such/file")]).is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(gather(&[folder.path().to_owned()]).is_err(), "an empty folder");
    }
}
