//! What the machine can do at all.
use crate::report::Floors;
use afar_tests::processes::used;
use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;

/// Measures all floors, moving so many MiB for each.
pub fn measure(disk: &Path, mib: usize) -> Floors {
    let piece = afar_tests::data::bytes(&mut afar_tests::data::chance(1), MIB);
    let (tcp, tcp_cpu) = timed(|| tcp(&piece, mib));
    let (hash, hash_cpu) = timed(|| {
        (0..mib).for_each(|_| {
            std::hint::black_box(blake3::hash(&piece));
        });
    });
    let per_gib = |cpu: Duration| cpu.as_secs_f64() * 1024.0 / mib as f64;
    let rate = |elapsed: Duration| mib as f64 / elapsed.as_secs_f64();
    let disk_mib = mib.min(2048);
    let (memory, memory_cpu) = timed(|| touch(mib));
    let (write, _) = timed(|| write(disk, &piece, disk_mib));
    Floors {
        tcp_mib_s: rate(tcp),
        tcp_cpu_s_gib: per_gib(tcp_cpu),
        disk_mib_s: disk_mib as f64 / write.as_secs_f64(),
        sync_ms: sync(disk),
        blake3_mib_s: rate(hash),
        blake3_cpu_s_gib: per_gib(hash_cpu),
        memory_mib_s: rate(memory),
        memory_cpu_s_gib: per_gib(memory_cpu),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let (before, start) = (used(std::process::id()), Instant::now());
    work();
    (start.elapsed(), used(std::process::id()).since(before).cpu)
}

/// Touches memory that this process has never had, a page at a time, and gives it back.
fn touch(mib: usize) {
    let mut memory = vec![0_u8; mib * MIB];
    for page in memory.chunks_mut(4096) {
        if let Some(first) = page.first_mut() {
            *first = std::hint::black_box(1);
        }
    }
}

fn tcp(piece: &[u8], mib: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; MIB];
            while stream.read(&mut buffer).expect("read") > 0 {}
        });
        let mut stream = TcpStream::connect(address).expect("connect");
        (0..mib).for_each(|_| stream.write_all(piece).expect("write"));
    });
}

fn write(disk: &Path, piece: &[u8], mib: usize) {
    let mut file = tempfile::tempfile_in(disk).expect("a file");
    for number in 1..=mib {
        file.write_all(piece).expect("write");
        if number % 64 == 0 {
            file.sync_data().expect("sync");
        }
    }
    file.sync_data().expect("sync");
}

fn sync(disk: &Path) -> f64 {
    let mut file: File = tempfile::tempfile_in(disk).expect("a file");
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&[7; 4096]).expect("write");
            file.sync_data().expect("sync");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}
