//! What several modules' tests need: a node of one's own in this process, who may sign its layouts, and callers that go away.
#![allow(clippy::unwrap_used)]
use crate::{
    cluster::testing::{Authority, Wanted, write_secret},
    config::Config,
    node::{Node, Running},
};
use afar_model::{
    document::{Chapter, Document, Signature, Signed},
    layout::examples,
    units::UnixMillis,
};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use std::{fmt::Debug, fs, pin::pin, sync::Arc, task::Poll, time::Duration};
use tokio::time::Instant;
use tonic::Request;

/// A state is waited for at most this long.
const BOUND: Duration = Duration::from_secs(60);

/// Who may sign layouts.
pub(crate) struct Custodian(Ed25519KeyPair);

impl Custodian {
    pub fn new() -> Self {
        let secret = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(secret.as_ref()).unwrap())
    }

    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().unwrap()
    }

    pub fn genesis(&self) -> Chapter {
        Chapter::genesis("trial", examples::three_sites().unwrap(), vec![self.public()])
    }

    pub fn sign(&self, document: &Document) -> Signed {
        self.sign_bytes(document.encode())
    }

    pub fn sign_bytes(&self, body: Vec<u8>) -> Signed {
        let signature = self.0.sign(&body).as_ref().to_vec();
        Signed { signatures: vec![Signature { key: self.public(), signature }], body }
    }

    pub fn child(&self, parent: &Chapter, note: &str) -> Signed {
        self.sign(&Document::child_of(parent, UnixMillis(1), note))
    }
}

/// The only node of a cluster whose policy is one copy.
pub(crate) struct Alone {
    pub node: Arc<Node>,
    pub custodian: Custodian,
    running: Running,
    _folder: tempfile::TempDir,
}

impl Alone {
    pub async fn start() -> Self {
        let (folder, custodian) = (tempfile::tempdir().unwrap(), Custodian::new());
        Authority::new().equip(folder.path(), &Wanted::good("afar://demo/warsaw"));
        write_secret(&folder.path().join("cluster.secret"), &"ab".repeat(32));
        write_secret(&folder.path().join("admin.key"), "access_key_id = \"AFAR1\"\nsecret_access_key = \"0123456789abcdef\"\n");
        let text = format!(
            r#"cluster = "demo"
node = "warsaw"
listen = "127.0.0.1:0"
data = ["data"]
state = "state"
[tls]
ca = "ca.crt"
certificate = "node.crt"
key = "node.key"
[secrets]
cluster = "cluster.secret"
admin_key = "admin.key"
[policy]
copies = 1
far_copies = 1
min_distance_km = 0
[layout]
version = 1
partitions = 256
custodians = ["{}"]
[[layout.sites]]
name = "warsaw"
latitude = 52.2297
longitude = 21.0122
country = "PL"
[[layout.nodes]]
name = "warsaw"
site = "warsaw"
endpoint = "https://127.0.0.1:7700"
capacity = "1GiB"
"#,
            hex::encode(custodian.public())
        );
        let path = folder.path().join("afard.toml");
        fs::write(&path, text).unwrap();
        let running = Node::start(Config::load(&path).unwrap()).await.unwrap();
        Self { node: Arc::clone(&running.node), custodian, running, _folder: folder }
    }

    pub async fn stop(self) {
        self.running.stop().await.unwrap();
    }
}

/// A request of the administrator's.
pub(crate) fn signed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer AFAR1.0123456789abcdef".parse().unwrap());
    request
}

/// What tonic does to a request whose caller goes away: polls it so often, and drops it where it waits. `None` if it was dropped.
pub(crate) async fn dropped_after<T>(polls: usize, request: impl Future<Output = T>) -> Option<T> {
    let (mut request, mut left) = (pin!(request), polls);
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match request.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Looks until `look` says `Ok`; what it said last is shown if it never does.
#[track_caller]
pub(crate) fn until<T, E: Debug>(mut look: impl FnMut() -> Result<T, E>) -> impl Future<Output = T> {
    let (caller, begun) = (std::panic::Location::caller(), Instant::now());
    async move {
        loop {
            match look() {
                Ok(found) => return found,
                Err(last) if begun.elapsed() > BOUND => panic!("{caller}: last seen: {last:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }
}
