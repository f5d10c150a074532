//! The benchmark suite: two nodes, real processes, TLS, the client library in this process. Every figure stands beside what
//! this machine can do at all, measured in the same run: the floors.
//!
//! `make bench` runs it in full, `--quick` with small numbers. Data are written below `--disk` (an actual disk) and, as a
//! second table, below `/dev/shm`, which shows what the program costs when the disk costs nothing. Run it on an otherwise idle
//! machine; with two processors, the client and two nodes share them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends, and says where")]

mod floors;

mod objects;

mod restart;

mod report;

mod wan;

use clap::Parser;
use report::Report;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc; // as in `afar` itself

/// What to measure.
#[derive(Debug, Parser)]
#[command(name = "bench", about = "Throughput, latency, CPU, write amplification and memory, beside the machine's own floors")]
struct Arguments {
    /// Small numbers: to see that it runs, not to compare.
    #[arg(long)]
    quick: bool,
    /// A folder on the disk to measure.
    #[arg(long, default_value = "target")]
    disk: PathBuf,
    /// Leave out the second table, in memory.
    #[arg(long)]
    no_memory: bool,
    /// Records for the restart; 0 leaves it out.
    #[arg(long)]
    records: Option<usize>,
    /// Only what has this in its name: objects, wan, restart.
    #[arg(long)]
    only: Option<String>,
    /// Also write everything to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Objects of 64 MiB.
    pub large: usize,
    /// Objects of 1 MiB.
    pub medium: usize,
    /// Objects of 4 KiB.
    pub small: usize,
    /// MiB for each floor.
    pub floor_mib: usize,
    /// Objects of 1 MiB whose acknowledgement over a long distance is timed.
    pub far: usize,
    /// Records for the restart.
    pub records: usize,
}

const FULL: Scale = Scale { large: 32, medium: 1024, small: 50_000, floor_mib: 4096, far: 50, records: 1_000_000 };
const QUICK: Scale = Scale { large: 4, medium: 64, small: 2_000, floor_mib: 512, far: 10, records: 50_000 };

fn main() {
    let arguments = Arguments::parse();
    let mut scale = if arguments.quick { QUICK } else { FULL };
    scale.records = arguments.records.unwrap_or(scale.records);
    let wanted = |name: &str| arguments.only.as_deref().is_none_or(|only| name.contains(only));
    std::fs::create_dir_all(&arguments.disk).expect("a folder on the disk");
    let disk = arguments.disk.canonicalize().expect("a folder on the disk");

    let mut report = Report::new(arguments.quick);
    report.floors = floors::measure(&disk, scale.floor_mib);
    report.print_floors();
    if wanted("objects") {
        let rows = objects::measure(&disk, scale);
        report.table("2 sites, TLS, data on disk", rows);
        if !arguments.no_memory {
            let rows = objects::measure("/dev/shm".as_ref(), scale);
            report.table("2 sites, TLS, data in memory (/dev/shm)", rows);
        }
    }
    if wanted("wan") {
        let rows = wan::measure(&disk, scale);
        report.table("2 sites, TLS, a round trip of 30 ms between them, data on disk", rows);
    }
    if wanted("restart") && scale.records > 0 {
        let lines = restart::measure(&disk, scale.records);
        report.facts("restart", lines);
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report).expect("JSON")).expect("write the report");
        eprintln!("written to {}", path.display());
    }
}
