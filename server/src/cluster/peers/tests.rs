//! Two and three chassis in one process that find each other over loopback, with certificates, and those who must not.
use super::{hello::check, judge::judge_pairs, *};
use crate::{
    cluster::{
        identity::{Expected, Reloaded, TlsFiles},
        testing::{Authority, Wanted, write_secret},
        trust::{certificate_digest, key_digest},
    },
    gateways::grpc::{listener::Door, meta},
};
use afar_model::{
    document::Chapter,
    geo::Physics,
    layout::{Layout, examples},
};
use std::{pin::Pin, time::Instant};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

/// A state is waited for at most this long; it takes milliseconds.
const BOUND: Duration = Duration::from_secs(30);

struct World {
    authority: Authority,
    endpoints: Vec<String>,
    listeners: Vec<Option<TcpListener>>,
}

struct Chassis {
    peers: Arc<Peers>,
    lifecycle: Lifecycle,
    state: tempfile::TempDir,
    folder: tempfile::TempDir,
    identity: Arc<Identity>,
}

/// Answers heartbeats and nothing else.
struct OnlyHello(Arc<Peers>);

type Replies<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::peer_server::Peer for OnlyHello {
    type StoreStream = Replies<v1::StoreReply>;
    type FetchStream = Replies<v1::FetchReply>;

    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        let from = meta::from_node(&request).ok_or_else(|| Status::permission_denied("not a node"))?;
        let said = request.into_inner().from.unwrap_or_default();
        Ok(Response::new(v1::HelloReply { from: Some(self.0.answer_hello(said, from)?) }))
    }
    async fn store(&self, _: Request<Streaming<v1::StoreRequest>>) -> Result<Response<Self::StoreStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn versions(&self, _: Request<v1::VersionsRequest>) -> Result<Response<v1::VersionsReply>, Status> {
        panic!("on purpose")
    }
    async fn claim(&self, _: Request<v1::ClaimRequest>) -> Result<Response<v1::ClaimReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_versions(&self, _: Request<v1::ListVersionsRequest>) -> Result<Response<v1::ListVersionsReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn fetch(&self, _: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn prove(&self, _: Request<v1::ProveRequest>) -> Result<Response<v1::ProveReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn ids(&self, _: Request<v1::IdsRequest>) -> Result<Response<v1::IdsReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn version_ids(&self, _: Request<v1::VersionIdsRequest>) -> Result<Response<v1::VersionIdsReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn audit(&self, _: Request<v1::AuditRequest>) -> Result<Response<v1::AuditReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn gossip(&self, _: Request<v1::GossipRequest>) -> Result<Response<v1::GossipReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl World {
    async fn new() -> Self {
        let mut endpoints = Vec::new();
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            endpoints.push(format!("https://{}", listener.local_addr().unwrap()));
            listeners.push(Some(listener));
        }
        Self { authority: Authority::new(), endpoints, listeners }
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        self.equipped(name).1
    }

    fn equipped(&self, name: &str) -> (tempfile::TempDir, Arc<Identity>) {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("afar://demo/{name}");
        self.authority.equip(folder.path(), &Wanted::good(&uri));
        let files = TlsFiles::within(folder.path());
        let expected = Expected { cluster: "demo", node: name, host: "127.0.0.1", now: Clock::new(0).now() };
        let identity = Identity::load(&files, expected).unwrap();
        (folder, Arc::new(identity))
    }

    /// The node of that index. `disks`: its incarnation; `boot`: its run; `clock_ms`: how far its clock is off.
    async fn start(&mut self, index: u16, disks: u8, boot: u8, clock_ms: i64) -> Chassis {
        let example = examples::three_sites().unwrap();
        let mut nodes = example.nodes().to_vec();
        for (node, endpoint) in nodes.iter_mut().zip(&self.endpoints) {
            node.endpoint.clone_from(endpoint);
        }
        let layout = Layout::new(1, example.partitions(), example.sites().to_vec(), nodes).unwrap();
        let lifecycle = Lifecycle::new();
        let state = tempfile::tempdir().unwrap();
        let genesis = Chapter::genesis("demo", layout.clone(), Vec::new());
        let layouts = Arc::new(Layouts::load(state.path(), "demo", genesis, Vec::new()).unwrap());
        let (folder, identity) = self.equipped(layout.node_name(NodeIndex(index)));
        let peers = Peers::new(PeersOptions {
            layouts: Arc::clone(&layouts),
            own: Own { node: NodeIndex(index), incarnation: Incarnation::from_bytes([disks; 16]), boot: BootId::from_bytes([boot; 16]) },
            identity: Arc::clone(&identity),
            clock: Clock::new(clock_ms),
            lifecycle: lifecycle.clone(),
            state_directory: state.path().to_owned(),
            bulk_window: 1 << 20,
            memory: Memory::new(),
            replaced: Replaced::default(),
        })
        .unwrap();
        let address = self.endpoints[usize::from(index)].trim_start_matches("https://").to_owned();
        let listener = match self.listeners[usize::from(index)].take() {
            Some(listener) => listener,
            None => TcpListener::bind(&address).await.unwrap(),
        };
        let door = Door {
            identity: Arc::clone(&identity),
            layouts,
            lifecycle: lifecycle.clone(),
            connections: 4,
            client_window: 1 << 20,
            peer_window: 1 << 20,
        };
        let service = v1::peer_server::PeerServer::new(OnlyHello(Arc::clone(&peers)));
        door.serve(listener, Routes::default(), Routes::new(service));
        // Other disks than the node's first know that they lack something.
        peers.set_self_state(move |state| state.catching_up = u16::from(disks) != index + 1);
        peers.start();
        Chassis { peers, lifecycle, state, folder, identity }
    }

    /// A node that is not there: its port refuses.
    fn absent(&mut self, index: usize) {
        self.listeners[index] = None;
    }
}

impl Chassis {
    async fn sees(&self, node: u16, what: impl Fn(&PeerView) -> bool) -> PeerView {
        let asked = Instant::now();
        let mut changes = self.peers.changes();
        loop {
            let view = self.peers.view(NodeIndex(node)).unwrap();
            if what(&view) {
                return view;
            }
            assert!(asked.elapsed() < BOUND, "waited in vain: {view:?}");
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    }

    /// Replaces its certificate and key by new ones of that authority, while it runs.
    fn renew(&self, authority: &Authority, name: &str, until: i32) {
        let uri = format!("afar://demo/{name}");
        let (certificate, key) = authority.issue(&Wanted { years: (2020, until), ..Wanted::good(&uri) });
        std::fs::write(self.folder.path().join("node.crt"), certificate).unwrap();
        write_secret(&self.folder.path().join("node.key"), &key);
        let expected = Expected { cluster: "demo", node: name, host: "127.0.0.1", now: Clock::new(0).now() };
        assert_eq!(self.identity.reload(expected), Ok(Reloaded::Replaced));
    }

    /// The node is heard, and our heartbeats to it are answered.
    async fn works_with(&self, node: u16) {
        self.sees(node, |view| view.usable && view.trouble.is_empty()).await;
    }

    async fn has_trouble_with(&self, node: u16, why: &str) {
        self.sees(node, |view| view.trouble.contains(why)).await;
    }

    async fn stop(self) {
        self.lifecycle.stop(BOUND).await.unwrap();
    }
}

#[tokio::test]
async fn nodes_find_each_other_and_notice_who_leaves() {
    let mut world = World::new().await;
    world.absent(2);
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    let view = one.sees(1, |view| view.usable).await;
    two.sees(0, |view| view.usable).await;
    assert_eq!((view.state, view.node.as_str(), view.layout_agrees), (PeerState::Up, "roubaix", true));
    assert_eq!(view.incarnation, Some(Incarnation::from_bytes([2; 16])));
    let near = view.least_round_trip.unwrap();
    assert_eq!(one.peers.nearest_first([NodeIndex(2), NodeIndex(1), NodeIndex(0)]), [NodeIndex(0), NodeIndex(1), NodeIndex(2)]);
    assert!(one.peers.usable(NodeIndex(0)) && !one.peers.usable(NodeIndex(2)));
    let absent = one.sees(2, |view| view.trouble.contains("connection refused")).await;
    assert_eq!(absent.state, PeerState::Down);
    // Light needs 2.7 ms for the 405.8 km that the layout claims: loopback cannot take that long at its best.
    if near < Duration::from_millis(2) {
        assert!(one.peers.refuted().contains(&(SiteIndex(0), SiteIndex(1))));
    }
    two.stop().await;
    one.sees(1, |view| view.state == PeerState::Down).await;
    assert!(!one.peers.usable(NodeIndex(1)));
    one.stop().await;
}

#[tokio::test]
async fn rule_19_a_replacement_is_noticed_and_a_second_instance_refused() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    one.sees(1, |view| view.usable).await;
    two.stop().await;
    one.sees(1, |view| view.state != PeerState::Up).await;
    let replacement = world.start(1, 3, 3, 0).await;
    let view = one.sees(1, |view| view.usable && view.incarnation_changes == 1).await;
    assert_eq!(view.incarnation, Some(Incarnation::from_bytes([3; 16])));
    replacement.stop().await;
    one.sees(1, |view| view.state != PeerState::Up).await;
    // The run that was replaced comes back from the dead.
    let ghost = world.start(1, 2, 2, 0).await;
    let view = one.sees(1, |view| view.state == PeerState::Refused).await;
    assert!(view.trouble.contains("these were replaced") && !view.usable, "{view:?}");
    let memory = {
        let state = one.state.path().to_owned();
        one.lifecycle.stop(BOUND).await.unwrap();
        memory::load(&state).unwrap()
    };
    assert_eq!(memory["roubaix"].last().unwrap().boot, BootId::from_bytes([3; 16]), "what was believed last");
    ghost.stop().await;
}

#[tokio::test]
async fn rule_4_the_node_whose_clock_is_off_refuses_and_the_others_do_not() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    let off = world.start(2, 3, 3, -600_000).await;
    for chassis in [&one, &two] {
        chassis.sees(2, |view| view.usable).await;
    }
    off.sees(0, |view| view.usable).await;
    off.sees(1, |view| view.usable && off.peers.clock_trouble().is_some()).await;
    one.sees(1, |view| view.usable && one.peers.clock_trouble().is_none()).await;
    let trouble = off.peers.clock_trouble().unwrap();
    assert!(trouble.contains("s behind the others'"), "{trouble}");
    for chassis in [one, two, off] {
        chassis.stop().await;
    }
}

#[tokio::test]
async fn a_caller_without_a_nodes_certificate_reaches_no_peer_service() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let stranger = World { authority: Authority::new(), endpoints: world.endpoints.clone(), listeners: Vec::new() };
    let address = Address::parse(&world.endpoints[0]).unwrap();
    let call = |identity: Arc<Identity>, expected: &str| {
        let connector = Connector::new(address.clone(), expected, identity);
        let mut client = PeerClient::new(connector.channel(1 << 20).unwrap());
        async move {
            let answer = client.hello(v1::HelloRequest::default()).await;
            (answer.map(|_| ()).map_err(|status| status.code()), connector.last_failure())
        }
    };
    // A certificate of another authority: the handshake fails.
    let (answer, failure) = call(stranger.identity("warsaw"), "strasbourg").await;
    assert!(answer.is_err() && matches!(failure, Some(ConnectError::Untrusted { .. })), "{failure:?}");
    // Somebody else answers than was called.
    let (answer, failure) = call(world.identity("warsaw"), "roubaix").await;
    assert!(answer.is_err() && matches!(failure, Some(ConnectError::SomebodyElse { .. })), "{failure:?}");
    // The cluster's authority, but no node of the layout: a client, for whom there is no such service.
    let (answer, _) = call(world.identity("paris"), "strasbourg").await;
    assert_eq!(answer, Err(Code::Unimplemented));
    // A node of the layout is answered, though what it says makes no sense.
    let (answer, _) = call(world.identity("warsaw"), "strasbourg").await;
    assert_eq!(answer, Err(Code::InvalidArgument));
    one.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_both_ways_from_the_next_connection_on() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    one.works_with(1).await;
    two.works_with(0).await;
    let before = one.peers.certificate_ends(NodeIndex(1)).unwrap();
    two.renew(&world.authority, "roubaix", 2198);
    // What exists goes on: only a new connection shows the new certificate.
    assert_eq!(one.peers.certificate_ends(NodeIndex(1)), Some(before));
    assert!(one.identity.drop_connections_of("roubaix") > 0);
    one.sees(1, |view| view.usable && one.peers.certificate_ends(NodeIndex(1)).is_some_and(|ends| ends < before)).await;
    let caller = Connector::new(Address::parse(&world.endpoints[0]).unwrap(), "strasbourg", Arc::clone(&two.identity));
    let answer = PeerClient::new(caller.channel(1 << 20).unwrap()).hello(v1::HelloRequest::default()).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument, "let in, and told that it makes no sense");
    for chassis in [one, two] {
        chassis.stop().await;
    }
}

#[tokio::test]
async fn a_connection_that_ends_under_a_heartbeat_makes_nobody_suspect() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    one.works_with(1).await;
    let slot = one.peers.slot(NodeIndex(1)).unwrap();
    for round in 0..50 {
        let end = async { assert!(one.identity.drop_connections_of("roubaix") > 0, "round {round}") };
        tokio::join!(one.peers.say_hello(NodeIndex(1), &slot), end);
        assert!(one.peers.usable(NodeIndex(1)), "round {round}: {}", one.peers.view(NodeIndex(1)).unwrap().trouble);
    }
    for chassis in [one, two] {
        chassis.stop().await;
    }
}

#[tokio::test]
async fn a_cluster_changes_its_authority_without_a_restart() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    one.works_with(1).await;
    two.works_with(0).await;
    let (new, old) = (Authority::new(), certificate_digest(&world.authority.der()));
    // Both are trusted: an old and a new certificate go together, both ways.
    for chassis in [&one, &two] {
        chassis.identity.set_extra_roots(vec![new.der()], Vec::new()).unwrap();
    }
    let before = one.peers.certificate_ends(NodeIndex(1));
    two.renew(&new, "roubaix", 2198);
    one.identity.drop_connections_of("roubaix");
    two.identity.drop_connections_of("strasbourg");
    one.sees(1, |view| view.usable && one.peers.certificate_ends(NodeIndex(1)) != before).await;
    two.works_with(0).await;
    // One withdraws the old authority: connections that rest on it end though nobody closes them, and both sides say why.
    two.identity.set_extra_roots(vec![new.der()], vec![old]).unwrap();
    two.has_trouble_with(0, "the certificate there is refused: its authority is not, or no longer, trusted here").await;
    one.has_trouble_with(1, "refuses this node's certificate: its authority is not, or no longer, trusted there").await;
    assert!(!one.peers.usable(NodeIndex(1)) && !two.peers.usable(NodeIndex(0)));
    // A certificate of the new authority mends it.
    one.renew(&new, "strasbourg", 2198);
    one.works_with(1).await;
    two.works_with(0).await;
    for chassis in [one, two] {
        chassis.stop().await;
    }
}

#[tokio::test]
async fn a_revoked_key_is_let_in_nowhere_not_even_where_it_is_connected_already() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let two = world.start(1, 2, 2, 0).await;
    one.works_with(1).await;
    two.works_with(0).await;
    let stolen = key_digest(&two.identity.certificate().unwrap()).unwrap();
    one.identity.set_revoked(BTreeSet::from([stolen])).unwrap();
    one.has_trouble_with(1, "the certificate there is refused: its key was revoked").await;
    two.has_trouble_with(0, "refuses this node's certificate: its key was revoked").await;
    assert!(!one.peers.usable(NodeIndex(1)) && !two.peers.usable(NodeIndex(0)));
    two.renew(&world.authority, "roubaix", 2198);
    one.works_with(1).await;
    two.works_with(0).await;
    for chassis in [one, two] {
        chassis.stop().await;
    }
}

#[tokio::test]
async fn a_panic_in_a_request_leaves_the_connection_alone() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let connector = Connector::new(Address::parse(&world.endpoints[0]).unwrap(), "strasbourg", world.identity("warsaw"));
    let mut client = PeerClient::new(connector.channel(1 << 20).unwrap());
    for count in 1..=2 {
        let status = client.versions(v1::VersionsRequest::default()).await.unwrap_err();
        assert_eq!((status.code(), one.lifecycle.panics()), (Code::Internal, count));
    }
    one.stop().await;
}

#[tokio::test]
async fn a_caller_that_never_speaks_does_not_hold_up_the_end() {
    let mut world = World::new().await;
    let one = world.start(0, 1, 1, 0).await;
    let address = world.endpoints[0].trim_start_matches("https://").to_owned();
    let silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(world.identity("warsaw").client_config());
    let tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
    let shaken = connector.connect("127.0.0.1".try_into().unwrap(), tcp).await.unwrap();
    one.stop().await;
    drop((silent, shaken));
}

#[test]
fn physics_refutes_pairs_seen_from_here_and_over_here() {
    let layout = examples::three_sites().unwrap();
    let (s, r, w) = (SiteIndex(0), SiteIndex(1), SiteIndex(2));
    let verdicts = |r_ms: u64, w_ms: u64| -> Vec<Physics> {
        let times = [(s, Duration::ZERO), (r, Duration::from_millis(r_ms)), (w, Duration::from_millis(w_ms))];
        judge_pairs(&layout, &times).iter().map(|pair| pair.verdict).collect()
    };
    use Physics::{Possible, Refuted, Suspicious};
    assert_eq!(verdicts(8, 20), [Possible, Possible, Possible]);
    assert_eq!(verdicts(1, 1), [Refuted, Refuted, Refuted], "everything on one machine");
    assert_eq!(verdicts(1, 8), [Refuted, Suspicious, Suspicious]);
    let pairs: Vec<(SiteIndex, SiteIndex)> = judge_pairs(&layout, &[]).iter().map(|pair| (pair.a, pair.b)).collect();
    assert_eq!(pairs, [(s, r), (s, w), (r, w)]);
}

#[test]
fn rule_19_a_heartbeat_is_checked_before_it_is_believed() {
    let good = v1::NodeState {
        node: "warsaw".into(),
        incarnation: vec![1; 16].into(),
        boot: vec![2; 16].into(),
        protocol: afar_proto::PROTOCOL,
        ..v1::NodeState::default()
    };
    assert!(check(&good, "warsaw").is_ok());
    assert!(matches!(check(&good, "roubaix"), Err(HelloRefused::Malformed(_))));
    assert!(check(&v1::NodeState { boot: vec![2; 15].into(), ..good.clone() }, "warsaw").is_err());
    assert!(matches!(check(&v1::NodeState { protocol: 9, ..good.clone() }, "warsaw"), Err(HelloRefused::Protocol { theirs: 9, .. })));
    let position = v1::LogPosition { directory: vec![1; 16].into(), segment: 1, offset: 2 };
    let many = v1::NodeState { positions: vec![position; limits::POSITIONS_MAX + 1], ..good };
    assert!(check(&many, "warsaw").is_err());
}
