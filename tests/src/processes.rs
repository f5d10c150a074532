//! What the kernel says of a process: for the benchmarks, and for tests about memory.
use std::{fs, time::Duration};

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Used {
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Bytes that it caused to be written to disks.
    pub written: u64,
    /// The most memory that it ever had, in bytes.
    pub memory_peak: u64,
}

impl Used {
    /// What was used since `earlier`; the peak stays a peak.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            written: self.written.saturating_sub(earlier.written),
            memory_peak: self.memory_peak,
        }
    }
}

/// Reads `/proc/PID`; what cannot be read counts as nothing.
pub fn used(pid: u32) -> Used {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let number = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    };
    // The name, in parentheses, may contain anything; what follows is numbers. utime and stime are fields 14 and 15.
    let stat = read("stat");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Used {
        cpu: Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64),
        written: number(&read("io"), "write_bytes:"),
        memory_peak: number(&read("status"), "VmHWM:") << 10,
    }
}
