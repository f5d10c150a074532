//! A writer that puts all the time, a reader that reads everything back all the time, and a checker that asks the nodes all
//! the time whether every acknowledged record is at sites far apart.
use crate::{
    cluster::Cluster,
    data,
    limits::{LOAD_LOOK_EVERY, LOAD_OBJECTS_MAX, LOAD_PAUSE, SETTLE_MAX},
    wait::until,
    witness::Witness,
};
use afar::{Client, Kind, PutOptions, Range, Source, Wanted};
use afar_model::{
    id::RecordId,
    limits::{CHUNK_BYTES, INLINE_BYTES_MAX},
    record::RecordKey,
};
use rand::Rng;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

/// An object that was acknowledged.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its content.
    pub content: bytes::Bytes,
    /// Its version and its chunks.
    pub records: Vec<RecordKey>,
}

#[derive(Debug)]
struct Shared {
    bucket: String,
    client: Client,
    witness: Witness,
    acknowledged: Mutex<Vec<Object>>,
    stop: AtomicBool,
    /// Nodes are being killed: then "retry later" is an honest answer.
    disturbed: AtomicBool,
    refused_reads: AtomicUsize,
    refused_writes: AtomicUsize,
    looks: AtomicUsize,
    passes: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

/// See the module. Ends when dropped; what was wrong is told by [`Load::finish`] and [`Load::check`].
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all three on a bucket.
    ///
    /// # Panics
    /// If the cluster has no such bucket.
    pub fn start(cluster: &Cluster, bucket: &str, seed: u64) -> Self {
        let runtime = Arc::new(crate::wire::runtime());
        let client = runtime.block_on(async { Client::connect(&cluster.client_config()) }).expect("a client");
        let shared = Arc::new(Shared {
            bucket: bucket.to_owned(),
            client,
            witness: Witness::of(cluster, bucket),
            acknowledged: Mutex::default(),
            stop: AtomicBool::new(false),
            disturbed: AtomicBool::new(false),
            refused_reads: AtomicUsize::new(0),
            refused_writes: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            passes: AtomicUsize::new(0),
            wrong: Mutex::default(),
        });
        let mut load = Self { shared, threads: Vec::new() };
        load.spawn(&runtime, move |shared| Box::pin(shared.write(seed)));
        load.spawn(&runtime, |shared| Box::pin(shared.read()));
        load.spawn(&runtime, |shared| Box::pin(shared.look()));
        load
    }

    fn spawn(
        &mut self,
        runtime: &Arc<tokio::runtime::Runtime>,
        work: impl FnOnce(Arc<Shared>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + 'static,
    ) {
        let (runtime, shared) = (Arc::clone(runtime), Arc::clone(&self.shared));
        self.threads.push(std::thread::spawn(move || runtime.block_on(work(shared))));
    }

    /// Who holds what.
    pub fn witness(&self) -> &Witness {
        &self.shared.witness
    }

    /// While nodes are killed, reads and writes may be answered with "retry later".
    pub fn disturbed(&self, disturbed: bool) {
        self.shared.disturbed.store(disturbed, Relaxed);
    }

    /// Objects acknowledged so far.
    ///
    /// # Panics
    /// If a thread panicked.
    pub fn objects(&self) -> Vec<Object> {
        self.shared.acknowledged.lock().expect("nobody panics with this lock").clone()
    }

    /// Waits until so many more are acknowledged, and everything has been read and looked at once more since.
    ///
    /// # Panics
    /// If something was wrong, or it takes longer than [`SETTLE_MAX`].
    #[track_caller]
    pub fn go_on(&self, more: usize) {
        let count = || self.shared.acknowledged.lock().expect("nobody panics with this lock").len();
        let (before, looks, passes) = (count(), self.shared.looks.load(Relaxed), self.shared.passes.load(Relaxed));
        until("the load goes on", SETTLE_MAX, || {
            self.check();
            let now = (count(), self.shared.looks.load(Relaxed), self.shared.passes.load(Relaxed));
            let enough = now.0 >= (before + more).min(LOAD_OBJECTS_MAX) && now.1 >= looks + 2 && now.2 >= passes + 2;
            if enough { Ok(()) } else { Err(format!("{before} acknowledged, {looks} looks, {passes} passes before; now {now:?}")) }
        });
    }

    /// Nothing was wrong so far.
    ///
    /// # Panics
    /// If something was.
    #[track_caller]
    pub fn check(&self) {
        let wrong = self.shared.wrong.lock().expect("nobody panics with this lock");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Ends all three; what was acknowledged.
    ///
    /// # Panics
    /// If something was wrong.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Object> {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the load panicked");
        }
        self.check();
        let count = |counter: &AtomicUsize| counter.load(Relaxed);
        let objects = self.objects();
        let (looks, passes) = (count(&self.shared.looks), count(&self.shared.passes));
        let (reads, writes) = (count(&self.shared.refused_reads), count(&self.shared.refused_writes));
        eprintln!("{} acknowledged, {looks} looks, {passes} passes of reading, {writes} writes and {reads} reads refused", objects.len());
        objects
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

impl Shared {
    fn ended(&self) -> bool {
        self.stop.load(Relaxed)
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().expect("nobody panics with this lock").push(what);
    }

    async fn write(self: Arc<Self>, seed: u64) {
        let mut chance = data::chance(seed);
        for number in 0.. {
            let full = || self.acknowledged.lock().expect("nobody panics with this lock").len() >= LOAD_OBJECTS_MAX;
            while full() && !self.ended() {
                tokio::time::sleep(LOAD_PAUSE).await;
            }
            if self.ended() {
                return;
            }
            let length = [100, 5_000, INLINE_BYTES_MAX + 1, 200_000, CHUNK_BYTES + 5][chance.random_range(0..5)];
            let (key, content) = (format!("{number:06}"), bytes::Bytes::from(data::bytes(&mut chance, length)));
            let put = self.client.put(&self.bucket, &key, Source::Bytes(content.clone()), PutOptions::default()).await;
            match put {
                Ok(stored) => {
                    let chunks = content.chunks(CHUNK_BYTES).map(RecordId::of).filter(|_| content.len() > INLINE_BYTES_MAX);
                    let records = std::iter::once(stored.version).chain(chunks).map(|id| self.witness.key(id)).collect();
                    self.acknowledged.lock().expect("nobody panics with this lock").push(Object { key, content, records });
                }
                // What a node's death may do to a write.
                Err(error) if matches!(error.kind(), Kind::Unreachable | Kind::BelowPolicy | Kind::Busy) => {
                    self.refused_writes.fetch_add(1, Relaxed);
                    if !self.disturbed.load(Relaxed) {
                        self.wrong(format!("a write was refused although every node runs: {error}"));
                    }
                }
                Err(error) => return self.wrong(format!("put {key}: {error}")),
            }
            tokio::time::sleep(LOAD_PAUSE).await;
        }
    }

    async fn read(self: Arc<Self>) {
        while !self.ended() {
            let objects = self.acknowledged.lock().expect("nobody panics with this lock").clone();
            for object in &objects {
                if self.ended() {
                    return;
                }
                if !self.read_one(object).await {
                    return;
                }
            }
            self.passes.fetch_add(1, Relaxed);
            tokio::time::sleep(LOAD_PAUSE).await;
        }
    }

    async fn read_one(&self, object: &Object) -> bool {
        let wanted = Wanted::key(&self.bucket, &object.key);
        match self.client.get_bytes(&wanted, Range::ALL).await {
            Ok((_, content)) if content == object.content => true,
            Ok(_) => {
                self.wrong(format!("{} has another content", object.key));
                false
            }
            Err(error) if error.kind() == Kind::Unreachable && self.disturbed.load(Relaxed) => {
                self.refused_reads.fetch_add(1, Relaxed);
                true
            }
            // A read that began while nodes were killed may end after it.
            Err(error) if error.kind() == Kind::Unreachable && self.client.get_bytes(&wanted, Range::ALL).await.is_ok() => {
                self.refused_reads.fetch_add(1, Relaxed);
                eprintln!("a read was refused at first: {error}");
                true
            }
            Err(error) => {
                self.wrong(format!("{} was acknowledged and is not read: {error}", object.key));
                false
            }
        }
    }

    async fn look(self: Arc<Self>) {
        while !self.ended() {
            let records: Vec<RecordKey> =
                self.acknowledged.lock().expect("nobody panics with this lock").iter().flat_map(|object| object.records.clone()).collect();
            let (near, complete) = self.witness.not_far(&records).await;
            if !near.is_empty() {
                let words: Vec<String> = near.iter().take(5).map(|(key, names)| format!("{:?} at {names:?}", key.id)).collect();
                return self.wrong(format!("{} acknowledged records are not at sites far apart: {}", near.len(), words.join("; ")));
            }
            // A look that not everybody answered proves little.
            self.looks.fetch_add(usize::from(complete), Relaxed);
            tokio::time::sleep(LOAD_LOOK_EVERY).await;
        }
    }
}
