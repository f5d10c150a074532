//! What was measured, as tables for people and as JSON.
use afar_tests::processes::Used;
use comfy_table::{Cell, CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;
use std::time::Duration;

const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

/// What the machine can do at all.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Floors {
    /// Raw TCP over loopback, one connection, MiB/s.
    pub tcp_mib_s: f64,
    /// Its processor time, both ends, seconds per GiB.
    pub tcp_cpu_s_gib: f64,
    /// Sequential writes with an `fdatasync` every 64 MiB, MiB/s.
    pub disk_mib_s: f64,
    /// 4 KiB appended and `fdatasync`, median, ms.
    pub sync_ms: f64,
    /// BLAKE3 on one core, MiB/s.
    pub blake3_mib_s: f64,
    /// Its processor time, seconds per GiB.
    pub blake3_cpu_s_gib: f64,
    /// Memory touched for the first time, MiB/s. What is written lands in pages that are new to it; on a virtual machine that
    /// gives free memory back to its host this can be the slowest thing of all, and vary from run to run.
    pub memory_mib_s: f64,
    /// Its processor time, seconds per GiB.
    pub memory_cpu_s_gib: f64,
    /// Processors.
    pub processors: usize,
}

/// One workload.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was done.
    pub name: String,
    /// Operations.
    pub operations: usize,
    /// Bytes of content.
    pub bytes: u64,
    /// From the first to the last, seconds.
    pub seconds: f64,
    /// Of one operation, ms.
    pub p50_ms: f64,
    /// Of one operation, ms.
    pub p99_ms: f64,
    /// Client and nodes.
    pub cpu_seconds: f64,
    /// By the nodes, to block devices: `write_bytes` of `/proc/PID/io`.
    pub written_bytes: u64,
    /// By which the nodes' files grew.
    pub grown_bytes: u64,
    /// The most memory of a node, ever, bytes.
    pub node_memory_peak: u64,
    /// The most memory of this process, ever, bytes.
    pub client_memory_peak: u64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    quick: bool,
    /// See [`Floors`].
    pub floors: Floors,
    tables: Vec<(String, Vec<Row>)>,
    facts: Vec<(String, Vec<(String, String)>)>,
}

impl Row {
    /// From what was seen. `used`: of the nodes and of this process, since the beginning.
    pub fn new(name: &str, bytes: u64, elapsed: Duration, mut latencies: Vec<Duration>, nodes: &[Used], client: Used, grown: u64) -> Self {
        latencies.sort_unstable();
        let rank = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        Self {
            name: name.to_owned(),
            operations: latencies.len(),
            bytes,
            seconds: elapsed.as_secs_f64(),
            p50_ms: rank(0.5),
            p99_ms: rank(0.99),
            cpu_seconds: nodes.iter().map(|used| used.cpu).sum::<Duration>().as_secs_f64() + client.cpu.as_secs_f64(),
            written_bytes: nodes.iter().map(|used| used.written).sum(),
            grown_bytes: grown,
            node_memory_peak: nodes.iter().map(|used| used.memory_peak).max().unwrap_or(0),
            client_memory_peak: client.memory_peak,
        }
    }

    fn mib_s(&self) -> f64 {
        self.bytes as f64 / MIB / self.seconds
    }
}

impl Report {
    /// An empty one.
    pub fn new(quick: bool) -> Self {
        Self { quick, floors: Floors::default(), tables: Vec::new(), facts: Vec::new() }
    }

    /// Prints what the machine can do.
    pub fn print_floors(&self) {
        let floors = &self.floors;
        println!(
            "\nfloors of this machine ({} processors){}",
            floors.processors,
            if self.quick { "; QUICK: not for comparing" } else { "" }
        );
        println!("  raw TCP, loopback           {:8.0} MiB/s   {:.2} CPU s/GiB", floors.tcp_mib_s, floors.tcp_cpu_s_gib);
        println!("  disk, sequential, fdatasync {:8.0} MiB/s   4 KiB + fdatasync {:.2} ms", floors.disk_mib_s, floors.sync_ms);
        println!("  BLAKE3, one core            {:8.0} MiB/s   {:.2} CPU s/GiB", floors.blake3_mib_s, floors.blake3_cpu_s_gib);
        println!("  memory, first touch         {:8.0} MiB/s   {:.2} CPU s/GiB", floors.memory_mib_s, floors.memory_cpu_s_gib);
    }

    /// Prints and keeps a table.
    pub fn table(&mut self, title: &str, rows: Vec<Row>) {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header([
            "",
            "MiB/s",
            "% TCP",
            "% disk",
            "% BLAKE3",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "CPU s/GiB",
            "CPU ms/op",
            "written/B",
            "kept/B",
            "node MiB",
            "client MiB",
        ]);
        for row in &rows {
            let percent = |floor: f64| format!("{:.0}", 100.0 * row.mib_s() / floor.max(1e-9));
            let per_byte = |bytes: u64| format!("{:.2}", bytes as f64 / row.bytes.max(1) as f64);
            let cells = [
                format!("{:.1}", row.mib_s()),
                percent(self.floors.tcp_mib_s),
                percent(self.floors.disk_mib_s),
                percent(self.floors.blake3_mib_s),
                format!("{:.1}", row.operations as f64 / row.seconds),
                format!("{:.2}", row.p50_ms),
                format!("{:.2}", row.p99_ms),
                format!("{:.2}", row.cpu_seconds / (row.bytes as f64 / GIB)),
                format!("{:.3}", 1e3 * row.cpu_seconds / row.operations.max(1) as f64),
                per_byte(row.written_bytes),
                per_byte(row.grown_bytes),
                format!("{:.0}", row.node_memory_peak as f64 / MIB),
                format!("{:.0}", row.client_memory_peak as f64 / MIB),
            ];
            let numbers = cells.into_iter().map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
            table.add_row(std::iter::once(Cell::new(&row.name)).chain(numbers));
        }
        println!("\n{title}\n{table}");
        self.tables.push((title.to_owned(), rows));
    }

    /// Prints and keeps single figures.
    pub fn facts(&mut self, title: &str, lines: Vec<(String, String)>) {
        println!("\n{title}");
        for (name, value) in &lines {
            println!("  {name:60} {value}");
        }
        self.facts.push((title.to_owned(), lines));
    }
}
