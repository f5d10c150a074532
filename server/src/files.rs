//! The few files outside the log: small, read whole up to a bound, replaced whole and durably.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Replaces a file, so that after a crash it is the old one or the new one: temp, fsync, rename, fsync of the directory.
///
/// # Errors
/// What the system said; then the old file is as it was.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, mode, |file| file.write_all(bytes))
}

/// As [`replace`], with what is too large to be in memory; if it cannot all be written, the old file is as it was.
///
/// # Errors
/// What `write` or the system said.
pub fn replace_with<E: From<io::Error>>(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file's name"))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(temporary);
    let written = write_synced(&temporary, mode, write).and_then(|()| Ok(fs::rename(&temporary, path)?));
    if written.is_err() {
        // Best effort: the error that matters is the first.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    Ok(File::open(directory)?.sync_all()?)
}

/// Removes a file if it is there, so that after a crash it stays removed.
///
/// # Errors
/// What the system said.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(directory)?.sync_all()
}

fn write_synced<E: From<io::Error>>(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    write(&mut file)?;
    Ok(file.sync_all()?)
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Larger than allowed; nothing was read.
    #[error("has {bytes} bytes, the most is {max}: it was not read")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// Not UTF-8.
    #[error("is not UTF-8 text")]
    NotText,
    /// Others may read a secret.
    #[error("may be read by every user (mode {mode:04o}): chmod 600 it, and change the secret if others have logins here")]
    WorldReadable {
        /// Its permission bits.
        mode: u32,
    },
}

/// Reads a text file that is no larger than `max` bytes.
///
/// # Errors
/// If it cannot be read, is too large (then it is not read) or is no text.
pub fn read_text(path: &Path, max: u64) -> Result<String, ReadFileError> {
    let file = File::open(path)?;
    read_open(file, max)
}

/// As [`read_text`], for a file that other users must not be able to read.
///
/// # Errors
/// As [`read_text`], and if its permissions are too wide.
pub fn read_secret(path: &Path, max: u64) -> Result<String, ReadFileError> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(ReadFileError::WorldReadable { mode });
    }
    read_open(file, max)
}

fn read_open(file: File, max: u64) -> Result<String, ReadFileError> {
    let bytes = file.metadata()?.len();
    if bytes > max {
        return Err(ReadFileError::TooLarge { bytes, max });
    }
    let mut content = Vec::new();
    // It may grow while it is read.
    file.take(max + 1).read_to_end(&mut content)?;
    let bytes = content.len() as u64;
    if bytes > max {
        return Err(ReadFileError::TooLarge { bytes, max });
    }
    String::from_utf8(content).map_err(|_| ReadFileError::NotText)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_too_large_is_not_read_and_a_secret_must_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "0123456789").unwrap();
        assert!(matches!(read_text(&path, 9), Err(ReadFileError::TooLarge { bytes: 10, max: 9 })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read_secret(&path, 10), Err(ReadFileError::WorldReadable { mode: 0o644 })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_secret(&path, 10).unwrap(), "0123456789");
    }
}
