//! Objects of three sizes, put and got back.
use crate::{Scale, report::Row};
use afar::{Client, Config, PutOptions, Range, Source, Wanted};
use afar_tests::{
    cluster::{Cluster, Setup, TWO},
    data,
    processes::{Used, used},
};
use bytes::Bytes;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Two nodes, and a client in this process.
pub struct Bench {
    runtime: Runtime,
    cluster: Cluster,
    client: Client,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the nodes.
    Put,
    /// From them.
    Get,
}

/// A number of objects of one size, so many at once.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of each.
    pub size: usize,
    /// Of them.
    pub count: usize,
    /// At once.
    pub at_once: usize,
}

impl Bench {
    /// Starts a cluster with its data below `base`; `network`: nodes reach each other through one that can be slowed.
    pub fn start(base: &Path, network: bool) -> Self {
        let setup = Setup::of(&TWO).under(base);
        let cluster = if network { setup.through_network().start() } else { setup.start() };
        cluster.bucket("bench", &[]);
        let runtime = Runtime::new().expect("a runtime");
        let (access_key_id, secret_access_key) = cluster.key();
        let config = Config {
            endpoints: cluster.nodes().iter().map(|node| node.endpoint()).collect(),
            access_key_id,
            secret_access_key,
            ca_pem: cluster.authority().into_bytes(),
            rounds: afar::limits::ROUNDS,
        };
        let client = runtime.block_on(async { Client::connect(&config) }).expect("a client");
        Self { runtime, cluster, client }
    }

    /// The cluster.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn nodes_used(&self) -> Vec<Used> {
        self.cluster.nodes().iter().filter_map(|node| node.pid()).map(used).collect()
    }

    fn kept(&self) -> u64 {
        self.cluster.nodes().iter().map(|node| size_of(&node.data())).sum()
    }

    /// Puts or gets the objects of a load. What is put is new to the cluster: its content begins with its number.
    pub fn run(&self, name: &str, way: Way, load: Load) -> Row {
        let template = Bytes::from(data::bytes(&mut data::chance(load.size as u64), load.size));
        let (next, client, label) =
            (Arc::new(AtomicUsize::new(0)), self.client.clone(), Arc::<str>::from(format!("{}x{}", load.size, load.at_once)));
        // Made before the clock starts, where memory allows: making content is no part of storing it.
        let prepared: Arc<Vec<Bytes>> = Arc::new(if way == Way::Put && load.size * load.count <= 4 << 30 {
            (0..load.count).map(|number| content(&template, load, number)).collect()
        } else {
            Vec::new()
        });
        let (nodes_before, before, kept_before) = (self.nodes_used(), used(std::process::id()), self.kept());
        let start = Instant::now();
        let workers: Vec<_> = (0..load.at_once)
            .map(|_| {
                let (next, client, label, template, prepared) =
                    (Arc::clone(&next), client.clone(), Arc::clone(&label), template.clone(), Arc::clone(&prepared));
                self.runtime.spawn(async move {
                    let mut latencies = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Relaxed);
                        if number >= load.count {
                            return latencies;
                        }
                        let key = format!("{label}/{number:08}");
                        let bytes = prepared.get(number).cloned();
                        let begun = Instant::now();
                        match way {
                            Way::Put => {
                                let bytes = bytes.unwrap_or_else(|| content(&template, load, number));
                                client.put("bench", &key, Source::Bytes(bytes), PutOptions::default()).await.expect("put");
                            }
                            Way::Get => {
                                let mut sink = tokio::io::sink();
                                client.get(&Wanted::key("bench", &key), Range::default(), &mut sink).await.expect("get");
                            }
                        }
                        latencies.push(begun.elapsed());
                    }
                })
            })
            .collect();
        let latencies: Vec<Duration> = self
            .runtime
            .block_on(async { futures_util::future::join_all(workers).await })
            .into_iter()
            .flat_map(|done| done.expect("a worker"))
            .collect();
        let elapsed = start.elapsed();
        let nodes: Vec<Used> = self.nodes_used().into_iter().zip(nodes_before).map(|(now, then)| now.since(then)).collect();
        let client = used(std::process::id()).since(before);
        let bytes = (load.size * load.count) as u64;
        let row = Row::new(name, bytes, elapsed, latencies, &nodes, client, self.kept().saturating_sub(kept_before));
        eprintln!("  {name}: {:.1} MiB/s", bytes as f64 / MIB as f64 / elapsed.as_secs_f64());
        row
    }
}

/// Differs from every other in each of its chunks.
fn content(template: &Bytes, load: Load, number: usize) -> Bytes {
    let mut bytes = template.to_vec();
    for chunk in bytes.chunks_mut(MIB) {
        for (byte, stamp) in chunk.iter_mut().zip(number.to_le_bytes().into_iter().chain(load.at_once.to_le_bytes())) {
            *byte ^= stamp;
        }
    }
    bytes.into()
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) }).sum()
}

/// The table of one kind of disk.
pub fn measure(base: &Path, scale: Scale) -> Vec<Row> {
    let bench = Bench::start(base, false);
    let mut rows = Vec::new();
    let mut both = |name: &str, load: Load| {
        rows.push(bench.run(&format!("put {name}"), Way::Put, load));
        rows.push(bench.run(&format!("get {name}"), Way::Get, load));
    };
    both("64 MiB, 1 at once", Load { size: 64 * MIB, count: scale.large / 2, at_once: 1 });
    both("64 MiB, 4 at once", Load { size: 64 * MIB, count: scale.large, at_once: 4 });
    both("1 MiB, 1 at once", Load { size: MIB, count: scale.medium / 4, at_once: 1 });
    both("1 MiB, 16 at once", Load { size: MIB, count: scale.medium, at_once: 16 });
    both("4 KiB, 64 at once", Load { size: 4 * KIB, count: scale.small, at_once: 64 });
    rows
}
