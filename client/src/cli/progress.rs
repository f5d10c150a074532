//! Progress on standard error: a bar on a terminal, else a line every 30 s, so that a log stays readable and is never silent.
use super::{
    output::{Out, ProgressStyle, say},
    units,
};
use crate::put::OnProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle as BarStyle};
use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// What has been done so far, and how it is shown.
#[derive(Debug)]
pub struct Progress {
    shared: Arc<Shared>,
    ticker: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    phase: &'static str,
    total_bytes: Option<u64>,
    total_files: usize,
    bytes: AtomicU64,
    files: AtomicU64,
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Progress {
    /// Begins a phase of so many files and, if known, bytes.
    pub fn new(out: &Out, phase: &'static str, total_bytes: Option<u64>, total_files: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let style = match out.progress {
            _ if out.quiet => ProgressStyle::None,
            ProgressStyle::Auto if terminal => ProgressStyle::Bar,
            ProgressStyle::Auto => ProgressStyle::Plain,
            chosen => chosen,
        };
        let bar = (style == ProgressStyle::Bar).then(|| bar(phase, total_bytes));
        let shared = Arc::new(Shared {
            phase,
            total_bytes,
            total_files,
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            bar,
            begun: Instant::now(),
        });
        let ticker = (style == ProgressStyle::Plain).then(|| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PLAIN_EVERY).await;
                    say(&shared.line());
                }
            })
        });
        Self { shared, ticker }
    }

    /// For one file's bytes; what it is told is the position in that file.
    pub fn of_file(&self) -> OnProgress {
        let shared = Arc::clone(&self.shared);
        let last = AtomicU64::new(0);
        Arc::new(move |position| {
            let before = last.swap(position, Ordering::Relaxed);
            // A transfer that begins again takes back what it had counted.
            let now = if position >= before {
                shared.bytes.fetch_add(position - before, Ordering::Relaxed).saturating_add(position - before)
            } else {
                shared.bytes.fetch_sub(before - position, Ordering::Relaxed).saturating_sub(before - position)
            };
            if let Some(bar) = &shared.bar {
                bar.set_position(now);
            }
        })
    }

    /// A file is done.
    pub fn file_done(&self) {
        let files = self.shared.files.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(bar) = &self.shared.bar
            && self.shared.total_files > 1
        {
            bar.set_message(format!("{files}/{} files", self.shared.total_files));
        }
    }

    /// Runs something that writes to the terminal, with the bar out of the way.
    pub fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.shared.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
        }
        if let Some(bar) = &self.shared.bar {
            bar.finish_and_clear();
        }
    }
}

impl Shared {
    fn line(&self) -> String {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let rate = bytes as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let of = self.total_bytes.map(|total| format!(" of {}", units::bytes(total))).unwrap_or_default();
        let files = self.files.load(Ordering::Relaxed);
        format!("afar: {} {}{of}, {files} of {} files, {}/s", self.phase, units::bytes(bytes), self.total_files, units::bytes(rate as u64))
    }
}

fn bar(phase: &'static str, total_bytes: Option<u64>) -> ProgressBar {
    let bar = total_bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    let template = if total_bytes.is_some() {
        "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta} {msg}"
    } else {
        "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed} {msg}"
    };
    if let Ok(style) = BarStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(phase);
    bar
}
