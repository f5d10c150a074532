//! Notes that let an interrupted `put` of a file go on where it was, in a later run: that there was one. The pieces that
//! already arrived are found by their hashes, so a note is empty, and losing one costs only the time to send again.
//!
//! A later run is a put of its own, with an upload id of its own: somebody may have put something else meanwhile, and what is
//! acknowledged now must be what is current now, not what the earlier run may have stored before (rule 4).
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::limits;

/// The folder of notes.
#[derive(Debug, Clone)]
pub struct Notes {
    folder: PathBuf,
}

/// What an upload is of: any difference makes it another upload.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// [`crate::Client::cluster`].
    pub cluster: &'a [u8; 32],
    /// The bucket's name.
    pub bucket: &'a str,
    /// The key.
    pub key: &'a str,
    /// The file, as an absolute path.
    pub path: &'a Path,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last modified.
    pub modified: SystemTime,
}

impl Subject<'_> {
    fn name(&self) -> String {
        let since = self.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut hasher = blake3::Hasher::new_derive_key("afar 2026 name of a resume note");
        let parts: [&[u8]; 6] = [
            self.cluster,
            self.bucket.as_bytes(),
            self.key.as_bytes(),
            self.path.as_os_str().as_encoded_bytes(),
            &self.size.to_le_bytes(),
            &since.as_nanos().to_le_bytes(),
        ];
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize().to_hex().to_string()
    }
}

impl Notes {
    /// In this folder, which is made when first needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// `$XDG_STATE_HOME/afar/uploads`, or `~/.local/state/afar/uploads`; `None` without a home.
    pub fn of_user() -> Option<Self> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
        Some(Self::new(state.join("afar/uploads")))
    }

    /// Whether there is a note of an earlier, unfinished run.
    pub fn find(&self, subject: &Subject<'_>) -> bool {
        let modified = fs::metadata(self.folder.join(subject.name())).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| modified.elapsed().unwrap_or_default() <= limits::RESUME_NOTE_MAX_AGE)
    }

    /// Notes an upload that begins. Also forgets notes that are too old to be of use.
    ///
    /// # Errors
    /// If the folder cannot be written to: then the upload works, but cannot be resumed by a later run.
    pub fn write(&self, subject: &Subject<'_>) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.forget_old();
        fs::write(self.folder.join(subject.name()), [])
    }

    /// The upload is done.
    pub fn remove(&self, subject: &Subject<'_>) {
        // A note that stays costs nothing: the next run asks which pieces are there, before it sends any.
        let _ = fs::remove_file(self.folder.join(subject.name()));
    }

    fn forget_old(&self) {
        let Ok(notes) = fs::read_dir(&self.folder) else { return };
        for note in notes.flatten() {
            let age = note.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age > limits::RESUME_NOTE_MAX_AGE) {
                let _ = fs::remove_file(note.path());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_found_again_only_for_the_very_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(folder.path().join("uploads"));
        let subject =
            Subject { cluster: &[1; 32], bucket: "b", key: "k", path: Path::new("/f"), size: 3, modified: SystemTime::UNIX_EPOCH };
        assert!(!notes.find(&subject));
        notes.write(&subject).unwrap();
        assert!(notes.find(&subject));
        assert!(!notes.find(&Subject { size: 4, ..subject }));
        assert!(!notes.find(&Subject { cluster: &[2; 32], ..subject }));
        assert!(!notes.find(&Subject { bucket: "bk", key: "", ..subject }), "parts do not run into each other");
        notes.remove(&subject);
        assert!(!notes.find(&subject));
    }
}
