//! What most tests say.
use afar_model::id::BucketId;
use afar_tests::{
    cluster::Cluster,
    command::{Afar, Ran},
    data,
    limits::SETTLE_MAX,
    wait::until,
};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::{fs, path::Path};

/// One MiB, the size of a chunk.
pub const MIB: usize = 1 << 20;

/// Puts a file, which must succeed.
#[track_caller]
pub fn put(afar: &Afar, file: &Path, to: &str) -> Value {
    try_put(afar, file, to).expect(0).json()
}

/// Puts a file.
pub fn try_put(afar: &Afar, file: &Path, to: &str) -> Ran {
    afar.run(&["put".as_ref(), "--json".as_ref(), file.as_os_str(), to.as_ref()])
}

/// Puts these bytes from standard input, which must succeed.
#[track_caller]
pub fn put_bytes(afar: &Afar, content: &[u8], to: &str) -> Value {
    try_put_bytes(afar, content, to).expect(0).json()
}

/// Puts these bytes from standard input.
pub fn try_put_bytes(afar: &Afar, content: &[u8], to: &str) -> Ran {
    afar.run_with_input(&["put", "--json", "-", to], content)
}

/// Reads an object, which must succeed.
#[track_caller]
pub fn read(afar: &Afar, from: &str) -> Vec<u8> {
    afar.ok(&["cat", from]).stdout
}

/// A bucket's id.
#[track_caller]
pub fn bucket_id(cluster: &Cluster, name: &str) -> BucketId {
    let listed = cluster.afar().ok(&["bucket", "ls", "--json"]);
    let buckets = listed.json();
    let bucket =
        buckets.as_array().into_iter().flatten().find(|bucket| bucket["name"] == name).unwrap_or_else(|| panic!("no {name}: {listed}"));
    bucket["id"].as_str().expect("an id").parse().expect("an id")
}

/// An object that was put, to be looked at later.
#[derive(Debug, Clone)]
pub struct Known {
    /// `BUCKET/KEY`
    pub at: String,
    /// Its content.
    pub content: Vec<u8>,
}

impl Known {
    /// Puts fresh content.
    #[track_caller]
    pub fn put(afar: &Afar, chance: &mut ChaCha8Rng, at: &str, length: usize) -> Self {
        let content = data::bytes(chance, length);
        put_bytes(afar, &content, at);
        Self { at: at.to_owned(), content }
    }

    /// It is there, and it is it.
    #[track_caller]
    pub fn must_be_at(&self, afar: &Afar) {
        let ran = afar.run(&["cat", &self.at]).expect(0);
        assert!(ran.stdout == self.content, "{} differs: {} bytes of {}", self.at, ran.stdout.len(), self.content.len());
    }
}

/// Waits until one node has written down that another alone holds so many objects.
#[track_caller]
pub fn wait_alone(cluster: &Cluster, at: &str, of: &str, objects: i64) {
    let file = cluster.node(at).folder().join("state/alone.toml");
    until(&format!("{at} has written down what {of} alone holds"), SETTLE_MAX, || {
        let file: toml::Table = fs::read_to_string(&file).unwrap_or_default().parse().unwrap_or_default();
        let peers = file.get("peers").and_then(|peers| peers.as_array()).cloned().unwrap_or_default();
        let peer = peers.iter().find(|peer| peer.get("node").and_then(|name| name.as_str()) == Some(of));
        let known = peer.and_then(|peer| peer.get("now")?.get("alone")?.get("objects")?.as_integer());
        if known == Some(objects) { Ok(()) } else { Err(format!("{file:?}")) }
    });
}

/// Whole chunks of an object that a node's disk holds.
pub fn chunks_on_disk(cluster: &Cluster, node: &str, content: &[u8]) -> usize {
    content.chunks(MIB).filter(|chunk| !afar_tests::disks::find(&cluster.node(node).data(), chunk).is_empty()).count()
}
