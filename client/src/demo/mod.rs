//! `afar demo`: real nodes, real files, a real fire, on this machine.
//!
//! Nothing here is simulated but the geography: three `afard` processes that believe to be in Strasbourg, Roubaix and Warsaw.
//! So their claimed distances cannot be verified by physics, and the demo says so. What is far is decided by the same
//! placement predicate as everywhere else; the cluster is made by the same code as `afar cluster init`.
mod files;

mod map;

mod nodes;

mod serve;

mod story;

use crate::error::Error;
use clap::Args;
use std::path::PathBuf;

pub(crate) use serve::serve;
pub(crate) use story::run;

/// Show it all on this machine: three sites, a fire, nothing lost
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  afar demo                            with this program's sources
  afar demo ~/Documents                with yours (they are only read)
  afar demo --serve --dir /tmp/trial   keep running; then: . /tmp/trial/env")]
pub struct Arguments {
    /// Files or folders to store [default: this program's sources]
    #[arg(conflicts_with = "serve")]
    file: Vec<PathBuf>,
    /// Start the three nodes and stay, burn nothing
    #[arg(long, requires = "dir")]
    pub serve: bool,
    /// Where the nodes of --serve keep their files; resumed if it exists
    #[arg(long, value_name = "DIR", requires = "serve")]
    dir: Option<PathBuf>,
    /// The node's program [default: next to this one]
    #[arg(long, value_name = "FILE", env = "AFARD", hide_env = true)]
    afard: Option<PathBuf>,
}

/// The node's program: as named, or next to this one.
fn find_afard(named: Option<&PathBuf>) -> Result<PathBuf, Error> {
    let missing = |path: &std::path::Path| {
        Error::usage(format!("{}: the node's program is not there", path.display()))
            .hint("build it (`make build`), or name it with --afard or AFARD")
    };
    let path = match named {
        Some(path) => path.clone(),
        None => {
            let own = std::env::current_exe().map_err(|error| Error::io("find this program", &error))?;
            own.with_file_name("afard")
        }
    };
    if path.is_file() { path.canonicalize().map_err(|_| missing(&path)) } else { Err(missing(&path)) }
}
