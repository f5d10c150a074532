//! Files that must be whole or not there: temp, write, sync, rename, sync of the folder.
use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// Readable by its owner alone.
pub const SECRET: u32 = 0o600;
/// Readable by all.
pub const PUBLIC: u32 = 0o644;

/// Puts a file in place, whole and on disk, with these permissions from its first moment.
///
/// # Errors
/// If it cannot be written; then what was there before is still there.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".afar-").permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Keeps a copy of a file beside it, as `old-N.NAME` with the first N that is free; nothing if there is one already with the
/// same content.
///
/// # Errors
/// If it cannot be read or written.
pub fn keep_old(path: &Path, mode: u32) -> io::Result<()> {
    let content = fs::read(path)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for n in 1_u32.. {
        let old = path.with_file_name(format!("old-{n}.{name}"));
        match fs::read(&old) {
            Ok(kept) if kept == content => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return write(&old, &content, mode),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Renames within a folder, durably.
///
/// # Errors
/// If the system cannot.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")))
}

/// Makes a folder for its owner alone.
///
/// # Errors
/// If it cannot be made.
pub fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// If the system cannot.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
