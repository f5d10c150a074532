//! Whose directory this is, and which directories there should be (rule 19).
//!
//! Each directory carries `identity`; the node keeps `directories` apart from them, in its state directory. A disk that
//! does not mount leaves an empty directory behind: without the list the node would take it for a new one, begin an empty
//! log there, and call itself healthy. Both files are small checked text, replaced atomically.
use crate::disk::{self, Disk};
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
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn seal(mut text: String) -> Vec<u8> {
    let crc = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("crc32c {crc:08x}\n"));
    text.into_bytes()
}

fn unseal(bytes: &[u8], first: &str) -> io::Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("not text: it is damaged"))?;
    let (content, crc) = text.rsplit_once("crc32c ").ok_or_else(|| invalid("no checksum: it is damaged"))?;
    if crc.trim_end() != format!("{:08x}", crc32c::crc32c(content.as_bytes())) {
        return Err(invalid("the checksum does not match: it is damaged, or was edited by hand"));
    }
    let mut lines = content.lines();
    match lines.next() {
        Some(line) if line == format!("{first} 1") => {}
        Some(line) if line.starts_with(first) => return Err(invalid("its format is not known to this program: upgrade it")),
        _ => return Err(invalid("it is something else")),
    }
    lines
        .map(|line| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.to_owned())).ok_or_else(|| invalid("malformed")))
        .collect()
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
        let fields = unseal(&disk::read_small(disk, &directory.join(IDENTITY), BYTES_MAX)?, "afar data directory")?;
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
        let fields = unseal(&bytes, "afar directories")?;
        let directories = fields
            .iter()
            .filter(|(word, _)| word == "directory")
            .map(|(_, value)| {
                let (id, path) = value.split_once(' ').ok_or_else(|| invalid("malformed"))?;
                Ok((id.parse().map_err(|_| invalid("malformed"))?, PathBuf::from(path)))
            })
            .collect::<io::Result<_>>()?;
        Ok(Some(Self { incarnation: field(&fields, "incarnation")?, directories }))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, disk: &dyn Disk, state: &Path) -> io::Result<()> {
        let mut text = format!("afar directories 1\nincarnation {}\n", self.incarnation);
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
        let fields = unseal(&bytes, "afar poisoned")?;
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
