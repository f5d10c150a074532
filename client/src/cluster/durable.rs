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
