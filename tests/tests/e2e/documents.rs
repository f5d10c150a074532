//! Layouts that are wrong, whoever signed them: each is refused with its reason, and every node serves on by its last good
//! one. A configuration that grew past its limit must never take a running node down.
use crate::common::{Known, try_put_bytes};
use afar::cluster::operator::Custodian;
use afar_model::{
    assignment::Assignment,
    document::{Chain, Chapter, Document, Signature, Signed},
    geo::Coordinates,
    id::BucketId,
    layout::{Duty, NodeIndex},
    policy::Policy,
    units::{Metres, UnixMillis},
};
use afar_proto::v1::{GetLayoutsRequest, LayoutPart, OfferReply, layouts_client::LayoutsClient};
use afar_tests::{
    cluster::{Cluster, Setup, THREE, check},
    data,
    limits::SETTLE_MAX,
    operator::{Operator, own_check, summary},
    wait::until,
    wire,
};
use bytes::Bytes;
use tonic::{Code, Request, Status};

const MIB: usize = 1 << 20;
const PART: usize = 256 << 10;

/// Offers bytes as a chain to a node.
async fn offer(cluster: &Cluster, bytes: &Bytes, check_only: bool) -> Result<OfferReply, Status> {
    let channel = wire::connect(cluster, "strasbourg", None).await.unwrap();
    let count = bytes.len().div_ceil(PART).max(1);
    let bytes = bytes.clone();
    let parts = (0..count).map(move |n| LayoutPart {
        data: bytes.slice(n * PART..((n + 1) * PART).min(bytes.len())),
        check_only,
        ..LayoutPart::default()
    });
    LayoutsClient::new(channel).offer(wire::signed(cluster, futures_util::stream::iter(parts))).await.map(tonic::Response::into_inner)
}

/// The chain and the key of an operator, to make bad layouts with.
struct Forge {
    chain: Chain,
    head: Chapter,
    custodian: Custodian,
}

impl Forge {
    fn new(operator: &Operator) -> Self {
        let library = operator.library();
        Self { chain: library.chain().clone(), head: library.head().unwrap().clone(), custodian: library.custodian().unwrap() }
    }

    /// The layout that would be next.
    fn next(&self) -> Document {
        Document::child_of(&self.head, UnixMillis(1), "made by a test")
    }

    /// The chain with one more, as bytes.
    fn with(&self, signed: Signed) -> Bytes {
        let mut chain = self.chain.clone();
        chain.documents.push(signed);
        chain.encode().into()
    }

    /// The next layout with a change, properly signed.
    fn changed(&self, change: impl FnOnce(&mut Document)) -> Bytes {
        let mut document = self.next();
        change(&mut document);
        self.with(self.custodian.sign(&document))
    }

    /// The next layout with other bytes; so its signature is wrong, too, but nobody gets as far as that.
    fn mangled(&self, mangle: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut signed = self.custodian.sign(&self.next());
        mangle(&mut signed.body);
        self.with(signed)
    }
}

/// What is wrong, its bytes, and a word that the refusal must say.
type Bad = (&'static str, Bytes, &'static str);

fn bytes_that_are_none(forge: &Forge) -> Vec<Bad> {
    let good = forge.changed(|_| ());
    let cut = good.slice(..good.len() - 100);
    let mut foreign = good.to_vec();
    foreign[0] ^= 1;
    let large = Signed { body: vec![0; 100 * MIB], signatures: Vec::new() };
    vec![
        ("nothing", Bytes::new(), "no layout document"),
        ("100 MiB of zeros", Bytes::from(vec![0; 100 * MIB]), "no layout document"),
        ("a layout of 100 MiB", forge.with(large), "the most is"),
        ("a signed layout of 17 MiB", forge.changed(|document| document.note = "x".repeat(17 * MIB)), "the most is"),
        ("cut off", cut, "no layout document"),
        ("another beginning", foreign.into(), "no layout document"),
        ("another beginning inside", forge.mangled(|body| body[0] ^= 1), "no layout document"),
        ("cut off inside", forge.mangled(|body| body.truncate(body.len() / 2)), "no layout document"),
        ("more after it", forge.mangled(|body| body.push(0)), "follow it"),
        ("of the future", forge.mangled(|body| body[8] = 2), "format 2"),
    ]
}

fn signatures_that_do_not_count(forge: &Forge) -> Vec<Bad> {
    let mut tampered = forge.custodian.sign(&forge.next());
    let last = tampered.body.len() - 1;
    tampered.body[last] ^= 1;
    let unsigned = Signed { signatures: Vec::new(), ..forge.custodian.sign(&forge.next()) };
    let stranger = Custodian::new().unwrap();
    let mut presumptuous = forge.next();
    presumptuous.custodians.push(stranger.public());
    let mut borrowed = stranger.sign(&forge.next());
    borrowed.signatures = vec![Signature { key: forge.custodian.public(), signature: borrowed.signatures[0].signature.clone() }];
    vec![
        ("unsigned", forge.with(unsigned), "not signed"),
        ("by a stranger", forge.with(stranger.sign(&forge.next())), "not signed by a custodian"),
        ("by a stranger who names himself", forge.with(stranger.sign(&presumptuous)), "not signed by a custodian"),
        ("by a stranger in a custodian's name", forge.with(borrowed), "not signed by a custodian"),
        ("changed after it was signed", forge.with(tampered), "layout"),
    ]
}

fn words_that_make_no_sense(forge: &Forge, bucket: BucketId) -> Vec<Bad> {
    let near = || Assignment::of_partitions((0..256).map(|_| vec![NodeIndex(0), NodeIndex(1)])).unwrap();
    let policy = |change: fn(&mut Policy)| {
        let mut policy = Policy::default();
        change(&mut policy);
        policy
    };
    let (none, moon) = (policy(|policy| policy.copies = 0), policy(|policy| policy.min_distance = Metres::from_km(30_000)));
    vec![
        ("of another cluster", forge.changed(|d| d.cluster = "another".into()), "another"),
        ("without a parent", forge.changed(|d| d.parents.clear()), "never seen"),
        ("of an unknown parent", forge.changed(|d| d.parents = vec![[9; 32]]), "never seen"),
        ("the same version", forge.changed(|d| d.version -= 1), "version"),
        ("a version too far", forge.changed(|d| d.version += 1), "version"),
        ("the last version that there is", forge.changed(|d| d.version = u64::MAX), "version"),
        ("other partitions", forge.changed(|d| d.partitions = 512), "partitions"),
        ("near copies", forge.changed(|d| d.plans = vec![(Policy::default(), near())]), "does not keep to the policy"),
        ("a promise of no copies", forge.changed(|d| d.promises.push((bucket, none.clone()))), "copies = 0"),
        ("a promise of 30,000 km", forge.changed(|d| d.promises.push((bucket, moon.clone()))), "no two points of the Earth"),
        ("a plan of no copies", forge.changed(|d| d.plans = vec![(none.clone(), near())]), "copies = 0"),
        ("a plan of 30,000 km", forge.changed(|d| d.plans = vec![(moon.clone(), near())]), "no two points of the Earth"),
        ("rule 24: moved in secret", forge.changed(|d| d.sites[0].coordinates = Coordinates::new(10.0, 10.0).unwrap()), "rule 24"),
        ("a site missing", forge.changed(|d| d.sites[2].name = "krakow".into()), "missing"),
        ("a node missing", forge.changed(|d| drop(d.nodes.pop())), "missing"),
        ("a node elsewhere", forge.changed(|d| d.nodes[0].site = "roubaix".into()), "cannot move"),
        ("a node removed at once", forge.changed(|d| d.nodes[0].duty = Duty::Removed), "drain it before"),
        ("a node of nowhere", forge.changed(|d| d.nodes[0].site = "krakow".into()), "krakow"),
        ("two nodes of one name", forge.changed(|d| d.nodes[1].name = "strasbourg".into()), "two nodes"),
        ("two nodes at one address", forge.changed(|d| d.nodes[1].endpoint = d.nodes[0].endpoint.clone()), "same endpoint"),
        ("a node that cannot be called", forge.changed(|d| d.nodes[1].endpoint = "gopher://here".into()), "gopher"),
        ("a node without room", forge.changed(|d| d.nodes[1].capacity = 0), "capacity"),
        ("a country that is none", forge.changed(|d| d.sites[0].country = "France".into()), "country"),
        ("nobody who may sign", forge.changed(|d| d.custodians.clear()), "no custodian"),
    ]
}

#[test]
fn a_layout_that_is_wrong_is_refused_with_its_reason_and_every_node_serves_on() {
    let cluster = Setup::of(&THREE).partitions(256).start();
    let operator = Operator::of(&cluster);
    cluster.bucket("served", &[]);
    let mut chance = data::chance(data::seed());
    let object = Known::put(&cluster.afar(), &mut chance, "served/a", 100_000);
    operator.change(&["node", "set", "warsaw", "--capacity", "2GiB"]);
    operator.wait_in_force(&cluster);
    let bucket = cluster.afar().ok(&["bucket", "ls", "--json"]).json()[0]["id"].as_str().unwrap().parse().unwrap();
    let (forge, runtime) = (Forge::new(&operator), wire::runtime());
    let before = runtime.block_on(wire::layouts_at(&cluster, "strasbourg")).unwrap();
    let mut bad = bytes_that_are_none(&forge);
    bad.extend(signatures_that_do_not_count(&forge));
    bad.extend(words_that_make_no_sense(&forge, bucket));
    for (what, bytes, word) in bad {
        for check_only in [true, false] {
            let reply = runtime.block_on(offer(&cluster, &bytes, check_only)).unwrap_or_else(|status| panic!("{what}: {status}"));
            assert!(reply.problems.iter().any(|problem| problem.contains(word)), "{what}: {:?} should say {word:?}", reply.problems);
            assert_eq!(reply.version, 2, "{what}");
        }
    }
    let endless = runtime.block_on(offer(&cluster, &Bytes::from(vec![0; 130 * MIB]), false)).unwrap_err();
    assert_eq!(endless.code(), Code::InvalidArgument, "{endless}");

    assert_eq!(runtime.block_on(wire::layouts_at(&cluster, "strasbourg")).unwrap(), before, "the last good layout stays");
    let status = cluster.status();
    let said = own_check(&status, "layout", "strasbourg").unwrap();
    assert_eq!(said["state"], "critical");
    assert!(said["detail"].as_str().unwrap().contains("a layout was refused: the chain is larger"), "{said}");
    object.must_be_at(&cluster.afar_at(&["strasbourg"]));
    try_put_bytes(&cluster.afar_at(&["strasbourg"]), b"served on", "served/b").expect(0);
    cluster.wait_state("safe");
    // A good one is taken as ever, and ends the complaint.
    operator.change(&["node", "set", "warsaw", "--capacity", "3GiB"]);
    operator.wait_in_force(&cluster);
    let status = until("the complaint is over", SETTLE_MAX, || {
        let status = cluster.status();
        if check(&status, "layout").is_some_and(|check| check["state"] == "ok") { Ok(status) } else { Err(summary(&status)) }
    });
    assert_eq!(status["layout_version"], 3);
}

#[test]
fn without_an_administrators_key_layouts_are_neither_read_nor_changed() {
    let cluster = Cluster::two();
    let operator = Operator::of(&cluster);
    let made = cluster.afar().ok(&["key", "create", "reader", "--read", "--json"]).json();
    let reader = format!("Bearer {}.{}", made["access_key_id"].as_str().unwrap(), made["secret_access_key"].as_str().unwrap());
    let bytes = Forge::new(&operator).changed(|_| ());
    let runtime = wire::runtime();
    for (key, code, exit) in
        [(None, Code::Unauthenticated, 12), (Some("Bearer X.Y"), Code::Unauthenticated, 12), (Some(&*reader), Code::PermissionDenied, 15)]
    {
        let refusals = runtime.block_on(async {
            let channel = wire::connect(&cluster, "strasbourg", None).await.unwrap();
            let mut client = LayoutsClient::new(channel);
            let parts = futures_util::stream::iter([LayoutPart { data: bytes.clone(), ..LayoutPart::default() }]);
            let (mut get, mut change) = (Request::new(GetLayoutsRequest {}), Request::new(parts));
            if let Some(key) = key {
                get.metadata_mut().insert("authorization", key.parse().unwrap());
                change.metadata_mut().insert("authorization", key.parse().unwrap());
            }
            [client.get(get).await.map(|_| ()).unwrap_err(), client.offer(change).await.map(|_| ()).unwrap_err()]
        });
        for refused in refusals {
            assert_eq!((refused.code(), wire::exit(&refused)), (code, Some(exit)), "{key:?}: {refused}");
        }
    }
    let (_, open) = runtime.block_on(wire::layouts_at(&cluster, "strasbourg")).unwrap();
    assert_eq!((open, operator.version()), (1, 1), "nothing has changed");
    // The command line says it in the same words.
    let admin = operator.folder().join("client/admin.key");
    std::fs::write(&admin, "access_key_id = \"NOBODY\"\nsecret_access_key = \"x\"\n").unwrap();
    let refused = operator.try_change(&["node", "set", "warsaw", "--capacity", "2GiB"]);
    assert_eq!(refused.code, 12, "{refused}");
}
