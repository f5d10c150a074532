//! Whose directory this is, and which directories there should be (rule 19).
//!
//! Each directory carries `identity`; the node keeps `directories` apart from them, in its state directory. A disk that
//! does not mount leaves an empty directory behind: without the list the node would take it for a new one, begin an empty
//! log there, and call itself healthy. Both files are small checked text, replaced atomically.
use crate::disk::{self, Disk, RealDisk};
use afar_model::id::{DirectoryId, Incarnation};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Where a directory's identity is.
pub const IDENTITY: &str = "identity";
/// Where the node's list of directories is, in its state directory.
pub const DIRECTORIES: &str = "directories";
/// Left behind by a failed sync.
pub const POISONED: &str = "poisoned";
/// The list's format once the node has left its configuration's layout; before that it is 1. The content is the same.
const LIST_FORMAT_FOLLOWS_LAYOUTS: u8 = 2;
/// Identity and list are a few lines; a poison marker as well.
const BYTES_MAX: u64 = 1 << 20;

/// Whose directory it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node's name.
    pub node: String,
    /// The node's disks under that name.
    pub incarnation: Incarnation,
    /// This directory.
    pub directory: DirectoryId,
}

/// The node's list of its directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// Every directory that holds (or held) its data.
    pub directories: Vec<(DirectoryId, PathBuf)>,
    /// The node has left the layout of its configuration; see [`follows_layouts`].
    pub follows_layouts: bool,
}

/// Has programs that know no layouts but their configuration's refuse a node's state from now on, by the format of its list of
/// directories: they would serve by a layout that all others have left, and tell clients that what was moved since does not
/// exist. Nothing happens if it is so already, or if there is no list.
///
/// # Errors
/// If the list cannot be read or written.
pub fn follows_layouts(state: &Path) -> io::Result<()> {
    match Known::read(&RealDisk, state)? {
        Some(known) if !known.follows_layouts => Known { follows_layouts: true, ..known }.write(&RealDisk, state),
        _ => Ok(()),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn seal(mut text: String) -> Vec<u8> {
    let crc = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("crc32c {crc:08x}\n"));
    text.into_bytes()
}

/// The fields of a file that begins with these words and a format, of which this program knows all up to `newest`; and which it has.
fn unseal(bytes: &[u8], first: &str, newest: u8) -> io::Result<(u8, Vec<(String, String)>)> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("not text: it is damaged"))?;
    let (content, crc) = text.rsplit_once("crc32c ").ok_or_else(|| invalid("no checksum: it is damaged"))?;
    if crc.trim_end() != format!("{:08x}", crc32c::crc32c(content.as_bytes())) {
        return Err(invalid("the checksum does not match: it is damaged, or was edited by hand"));
    }
    let mut lines = content.lines();
    let format = lines.next().and_then(|line| line.strip_prefix(first)).ok_or_else(|| invalid("it is something else"))?;
    let format = format.trim().parse().ok().filter(|format| (1..=newest).contains(format));
    let format = format.ok_or_else(|| invalid("its format is not known to this program: upgrade it"))?;
    let field = |line: &str| {
        let (word, rest) = line.split_once(' ').ok_or_else(|| invalid("malformed"))?;
        Ok((word.to_owned(), rest.to_owned()))
    };
    Ok((format, lines.map(field).collect::<io::Result<_>>()?))
}

fn field<T: std::str::FromStr>(fields: &[(String, String)], name: &str) -> io::Result<T> {
    let value = fields.iter().find(|(word, _)| word == name).map(|(_, value)| value);
    value.and_then(|value| value.parse().ok()).ok_or_else(|| invalid(&format!("no {name} in it")))
}

impl Identity {
    /// Reads a directory's identity.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InvalidData` if it is damaged.
    pub fn read(disk: &dyn Disk, directory: &Path) -> io::Result<Self> {
        let (_, fields) = unseal(&disk::read_small(disk, &directory.join(IDENTITY), BYTES_MAX)?, "afar data directory", 1)?;
        Ok(Self { node: field(&fields, "node")?, incarnation: field(&fields, "incarnation")?, directory: field(&fields, "directory")? })
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, disk: &dyn Disk, directory: &Path) -> io::Result<()> {
        let text = format!("afar data directory 1\nnode {}\nincarnation {}\ndirectory {}\n", self.node, self.incarnation, self.directory);
        disk::replace_small(disk, &directory.join(IDENTITY), &seal(text))
    }
}

impl Known {
    /// Reads the node's list; `None` if there is none yet.
    ///
    /// # Errors
    /// `InvalidData` if it is damaged.
    pub fn read(disk: &dyn Disk, state: &Path) -> io::Result<Option<Self>> {
        let bytes = match disk::read_small(disk, &state.join(DIRECTORIES), BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let (format, fields) = unseal(&bytes, "afar directories", LIST_FORMAT_FOLLOWS_LAYOUTS)?;
        let directories = fields
            .iter()
            .filter(|(word, _)| word == "directory")
            .map(|(_, value)| {
                let (id, path) = value.split_once(' ').ok_or_else(|| invalid("malformed"))?;
                Ok((id.parse().map_err(|_| invalid("malformed"))?, PathBuf::from(path)))
            })
            .collect::<io::Result<_>>()?;
        Ok(Some(Self { incarnation: field(&fields, "incarnation")?, directories, follows_layouts: format >= LIST_FORMAT_FOLLOWS_LAYOUTS }))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, disk: &dyn Disk, state: &Path) -> io::Result<()> {
        let format = if self.follows_layouts { LIST_FORMAT_FOLLOWS_LAYOUTS } else { 1 };
        let mut text = format!("afar directories {format}\nincarnation {}\n", self.incarnation);
        for (id, path) in &self.directories {
            text.push_str(&format!("directory {id} {}\n", path.display()));
        }
        disk::replace_small(disk, &state.join(DIRECTORIES), &seal(text))
    }
}

/// What a failed sync leaves behind: up to where the log was durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    /// The segment.
    pub segment: u64,
    /// Bytes of it that were durable.
    pub offset: u64,
    /// What failed.
    pub why: String,
}

impl Poison {
    /// Reads a directory's poison marker, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(disk: &dyn Disk, directory: &Path) -> io::Result<Option<Self>> {
        let bytes = match disk::read_small(disk, &directory.join(POISONED), BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let (_, fields) = unseal(&bytes, "afar poisoned", 1)?;
        Ok(Some(Self { segment: field(&fields, "segment")?, offset: field(&fields, "offset")?, why: field(&fields, "why")? }))
    }

    /// Writes it, as well as a failing disk lets it.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, disk: &dyn Disk, directory: &Path) -> io::Result<()> {
        let why = self.why.replace('\n', " ");
        let text = format!("afar poisoned 1\nsegment {}\noffset {}\nwhy {why}\n", self.segment, self.offset);
        disk::replace_small(disk, &directory.join(POISONED), &seal(text))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_when_programs_that_know_no_layouts_must_refuse_it() {
        let state = tempfile::tempdir().unwrap();
        follows_layouts(state.path()).unwrap();
        assert_eq!(Known::read(&RealDisk, state.path()).unwrap(), None, "no list is made");
        let directories = vec![(DirectoryId::from_bytes([1; 16]), PathBuf::from("/a b"))];
        let known = Known { incarnation: Incarnation::from_bytes([2; 16]), directories, follows_layouts: false };
        known.write(&RealDisk, state.path()).unwrap();
        let first = || std::fs::read_to_string(state.path().join(DIRECTORIES)).unwrap().lines().next().map(str::to_owned);
        assert_eq!(first().as_deref(), Some("afar directories 1"));
        follows_layouts(state.path()).unwrap();
        assert_eq!(first().as_deref(), Some("afar directories 2"));
        assert_eq!(Known::read(&RealDisk, state.path()).unwrap(), Some(Known { follows_layouts: true, ..known }));
        std::fs::write(state.path().join(DIRECTORIES), seal("afar directories 3\n".into())).unwrap();
        assert!(Known::read(&RealDisk, state.path()).unwrap_err().to_string().contains("upgrade it"));
    }
}
