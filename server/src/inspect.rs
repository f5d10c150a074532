//! `afard inspect`: what is in a data directory or in segment files, without an index, a cluster or a running node. So a disk
//! that was pulled out of a burnt rack can be read with this program alone.
use std::{io, path::PathBuf};

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Data directories or segment files.
    pub paths: Vec<PathBuf>,
    /// Hash every record.
    pub verify: bool,
    /// Write the record of this id.
    pub extract: Option<String>,
    /// Where to.
    pub output: Option<PathBuf>,
    /// Remove indexes.
    pub rebuild_index: bool,
    /// JSON instead of tables.
    pub json: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing wrong.
    Good,
    /// Records or files that do not match their names.
    Damaged,
}

impl Outcome {
    /// The exit code of the command line's contract.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Damaged => 4,
        }
    }
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Not possible yet.
    #[error("inspecting is not possible yet")]
    Unavailable,
    /// The answer could not be written.
    #[error("write: {0}")]
    Write(#[from] io::Error),
}

impl InspectError {
    /// The exit code of the command line's contract.
    pub const fn exit_code(&self) -> u8 {
        1
    }
}

/// Does what was asked for.
///
/// # Errors
/// Why it could not be done.
pub fn run(_asked: &Asked, _out: &mut dyn io::Write) -> Result<Outcome, InspectError> {
    Err(InspectError::Unavailable)
}
