//! The library against nodes that break, lie and refuse: in-process servers that speak the real protocol over real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use afar::{Client, Config, Error, Kind, Named, PutOptions, Range, Source, Wanted, cluster::authority::Authority};
use afar_model::{
    id::{ObjectId, RecordId},
    limits::CHUNK_BYTES,
};
use afar_proto::{
    EXIT_METADATA, MAYBE_METADATA,
    v1::{self, objects_server::ObjectsServer, put_piece::Piece},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Identity, Server, ServerTlsConfig},
};

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a node does when asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Manner {
    /// As it should.
    Good,
    /// Every answer is this exit code.
    Refuses(u8),
    /// Takes so many pieces of a put, remembers them, and breaks.
    BreaksPutAfter(usize),
    /// Sends so many pieces of a get, and breaks.
    BreaksGetAfter(usize),
    /// Flips a bit of what it sends, and recomputes the piece's hash.
    LiesAboutWhole,
    /// Flips a bit of what it sends.
    LiesAboutPiece,
}

/// What a node was asked, and what it holds.
#[derive(Default, Debug)]
struct Seen {
    uploads: Vec<Bytes>,
    retries: Vec<bool>,
    chunks: BTreeSet<RecordId>,
    data_pieces: usize,
    present_pieces: usize,
    messages: usize,
    puts: usize,
    offsets: Vec<u64>,
    stats: usize,
    resolved: Vec<(String, String)>,
}

#[derive(Clone)]
struct Node {
    manner: Manner,
    seen: Arc<Mutex<Seen>>,
    content: Bytes,
}

fn refusal(exit: u8) -> Status {
    let mut status = Status::new(Code::FailedPrecondition, "because");
    status.metadata_mut().insert(EXIT_METADATA, exit.to_string().parse().unwrap());
    if exit == 14 {
        status.metadata_mut().insert(MAYBE_METADATA, "1".parse().unwrap());
    }
    status
}

impl Node {
    fn check(&self) -> Result<(), Status> {
        match self.manner {
            Manner::Refuses(exit) => Err(refusal(exit)),
            _ => Ok(()),
        }
    }

    fn info(&self) -> v1::ObjectInfo {
        v1::ObjectInfo {
            bucket: "docs".into(),
            key: "k".into(),
            object: id(ObjectId::of(&self.content).as_bytes()),
            version: id(RecordId::of(b"version").as_bytes()),
            size: self.content.len() as u64,
            ..v1::ObjectInfo::default()
        }
    }
}

fn id(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[tonic::async_trait]
impl v1::objects_server::Objects for Node {
    async fn put(&self, request: Request<Streaming<v1::PutRequest>>) -> Result<Response<v1::PutReply>, Status> {
        self.check()?;
        assert!(request.metadata().get("authorization").is_some_and(|value| value == "Bearer AK.secret"));
        self.seen.lock().unwrap().puts += 1;
        let mut messages = request.into_inner();
        let (mut pieces, mut key, mut size) = (0, String::new(), 0);
        while let Some(message) = messages.message().await? {
            let mut seen = self.seen.lock().unwrap();
            seen.messages += 1;
            if let Some(header) = message.header {
                seen.uploads.push(header.upload);
                seen.retries.push(header.retry);
                key = header.key;
            }
            for piece in message.pieces {
                pieces += 1;
                match piece.piece.unwrap() {
                    Piece::Data(data) => {
                        seen.data_pieces += 1;
                        size += data.len() as u64;
                        seen.chunks.insert(RecordId::of(&data));
                    }
                    Piece::Present(chunk) => {
                        seen.present_pieces += 1;
                        size += u64::from(chunk.length);
                        assert!(seen.chunks.contains(&RecordId::try_from(&*chunk.id).unwrap()), "claimed to be present");
                    }
                }
                if self.manner == Manner::BreaksPutAfter(pieces) {
                    return Err(refusal(14));
                }
            }
            if let Some(end) = message.end {
                assert_eq!(end.size, size);
                let reply = v1::PutReply {
                    object: end.object,
                    bucket: "docs".into(),
                    key,
                    version: id(RecordId::of(b"version").as_bytes()),
                    size,
                    durability: "far".into(),
                    sites: vec!["strasbourg".into(), "warsaw".into()],
                    distance_metres: 1_024_812,
                    ..v1::PutReply::default()
                };
                return Ok(Response::new(reply));
            }
        }
        Err(Status::cancelled("no end"))
    }

    type GetStream = Boxed<v1::GetReply>;
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        self.check()?;
        let request = request.into_inner();
        self.seen.lock().unwrap().offsets.push(request.offset);
        let first = request.offset as usize / CHUNK_BYTES * CHUNK_BYTES;
        let end = request.length.map_or(self.content.len(), |length| ((request.offset + length) as usize).min(self.content.len()));
        let mut replies = vec![Ok(v1::GetReply { info: Some(self.info()), piece: None })];
        for (index, offset) in (first..end).step_by(CHUNK_BYTES).enumerate() {
            if self.manner == Manner::BreaksGetAfter(index) {
                replies.push(Err(refusal(14)));
                break;
            }
            let mut data = self.content.slice(offset..(offset + CHUNK_BYTES).min(self.content.len()));
            let mut hash = RecordId::of(&data);
            if matches!(self.manner, Manner::LiesAboutWhole | Manner::LiesAboutPiece) {
                let mut bad = data.to_vec();
                bad[0] ^= 1;
                data = bad.into();
            }
            if self.manner == Manner::LiesAboutWhole {
                hash = RecordId::of(&data);
            }
            replies.push(Ok(v1::GetReply {
                info: None,
                piece: Some(v1::DataPiece { offset: offset as u64, data, id: Some(id(hash.as_bytes())) }),
            }));
        }
        Ok(Response::new(stream::iter(replies).boxed()))
    }

    async fn stat(&self, _: Request<v1::StatRequest>) -> Result<Response<v1::ObjectInfo>, Status> {
        self.seen.lock().unwrap().stats += 1;
        self.check()?;
        Ok(Response::new(self.info()))
    }

    type ListStream = Boxed<v1::ListReply>;
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.check()?;
        let after = request.into_inner().after;
        let entry = |key: &str| v1::ListEntry {
            key: key.into(),
            version: id(RecordId::of(key.as_bytes()).as_bytes()),
            object: Some(id(ObjectId::of(key.as_bytes()).as_bytes())),
            ..v1::ListEntry::default()
        };
        let keys: Vec<_> = ["a", "b", "c"].into_iter().filter(|key| *key > after.as_str()).collect();
        let breaks = matches!(self.manner, Manner::BreaksGetAfter(_));
        let mut pages: Vec<Result<v1::ListReply, Status>> =
            keys.iter().map(|key| Ok(v1::ListReply { entries: vec![entry(key)], common_prefixes: vec![] })).collect();
        if breaks {
            pages.truncate(1);
            pages.push(Err(refusal(14)));
        }
        Ok(Response::new(stream::iter(pages).boxed()))
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn copy(&self, _: Request<v1::CopyRequest>) -> Result<Response<v1::PutReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Result<Response<v1::ResolveReply>, Status> {
        self.check()?;
        let request = request.into_inner();
        self.seen.lock().unwrap().resolved.push((request.key, request.prefix.clone()));
        let numbered = |prefix: &str, number: u8| [hex::decode(prefix).unwrap(), vec![number; 29]].concat().into();
        let ids: Vec<Bytes> = match request.prefix.as_str() {
            "000000" => return Err(refusal(10)),
            "111111" => vec![numbered("111111", 1), numbered("111111", 2)],
            "222222" => vec![numbered("333333", 1)],
            "444444" => (0..8).map(|number| numbered("444444", number)).collect(),
            "555555" => vec![],
            _ => vec![id(ObjectId::of(&self.content).as_bytes())],
        };
        Ok(Response::new(v1::ResolveReply { more: ids.len() > 2, ids }))
    }

    async fn have(&self, request: Request<v1::HaveRequest>) -> Result<Response<v1::HaveReply>, Status> {
        self.check()?;
        let chunks = request.into_inner().chunks;
        let seen = self.seen.lock().unwrap();
        let present = chunks.iter().map(|chunk| seen.chunks.contains(&RecordId::try_from(&**chunk).unwrap()));
        Ok(Response::new(v1::HaveReply { present: present.collect() }))
    }
}

/// A cluster of fakes that share what they have seen and hold.
struct Fakes {
    endpoints: Vec<String>,
    ca_pem: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
    _stop: Vec<oneshot::Sender<()>>,
}

impl Fakes {
    async fn start(manners: &[Manner], content: Bytes) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let authority = Authority::new("fakes", now).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut endpoints, mut stops) = (Vec::new(), Vec::new());
        for manner in manners {
            let pair = authority.node("fakes", "n", "127.0.0.1", now).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            endpoints.push(format!("https://{}", listener.local_addr().unwrap()));
            let node = Node { manner: manner.clone(), seen: Arc::clone(&seen), content: content.clone() };
            let service = ObjectsServer::new(node).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX);
            let tls = ServerTlsConfig::new().identity(Identity::from_pem(pair.certificate, pair.key));
            let (stop, stopped) = oneshot::channel::<()>();
            let server = Server::builder().tls_config(tls).unwrap().max_frame_size(afar_proto::limits::FRAME_BYTES).add_service(service);
            tokio::spawn(async move {
                let stopped = async { drop(stopped.await) };
                server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await.unwrap();
            });
            stops.push(stop);
        }
        Self { endpoints, ca_pem: authority.pair.certificate.clone().into_bytes(), seen, _stop: stops }
    }

    fn client(&self) -> Client {
        self.client_of(self.endpoints.clone())
    }

    fn client_of(&self, endpoints: Vec<String>) -> Client {
        Client::connect(&Config {
            endpoints,
            access_key_id: "AK".into(),
            secret_access_key: "secret".into(),
            ca_pem: self.ca_pem.clone(),
            rounds: 2,
        })
        .unwrap()
    }
}

fn content(chunks: usize, more: usize) -> Bytes {
    (0..chunks * CHUNK_BYTES + more).map(|index| (index / 1000) as u8).collect::<Vec<u8>>().into()
}

/// Nobody listens there.
async fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("https://{}", listener.local_addr().unwrap())
}

fn key() -> Wanted {
    Wanted::key("docs", "k")
}

#[tokio::test]
async fn a_small_object_is_one_message() {
    for content in [Bytes::new(), content(0, 7), content(1, 0)] {
        let fakes = Fakes::start(&[Manner::Good], Bytes::new()).await;
        let stored = fakes.client().put("docs", "k", Source::Bytes(content.clone()), PutOptions::default()).await.unwrap();
        assert_eq!((stored.object, stored.size), (ObjectId::of(&content), content.len() as u64));
        assert_eq!(fakes.seen.lock().unwrap().messages, 1);
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let fakes = Fakes::start(&[Manner::Good], Bytes::new()).await;
    let client = fakes.client_of(vec![dead_endpoint().await, fakes.endpoints[0].clone()]);
    client.put("docs", "k", Source::Bytes(content(0, 9)), PutOptions::default()).await.unwrap();
    assert_eq!(fakes.seen.lock().unwrap().puts, 1);
}

#[tokio::test]
async fn an_interrupted_put_goes_on_at_the_next_endpoint_with_the_same_upload() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let content = content(20, 5);
    std::fs::write(&path, &content).unwrap();
    for source in [
        Source::File(path),
        Source::Bytes(content.clone()),
        Source::Read(Box::new(std::io::Cursor::new(content.to_vec()))),
        Source::Async(Box::new(std::io::Cursor::new(content.to_vec()))),
    ] {
        let is_file = matches!(source, Source::File(_));
        let fakes = Fakes::start(&[Manner::BreaksPutAfter(15), Manner::Good], Bytes::new()).await;
        let stored = fakes.client().put("docs", "k", source, PutOptions::default()).await.unwrap();
        assert_eq!(stored.object, ObjectId::of(&content));
        let seen = fakes.seen.lock().unwrap();
        assert_eq!((seen.uploads.len(), seen.uploads[0] == seen.uploads[1]), (2, true));
        assert_eq!(seen.retries, [false, true]);
        if is_file {
            assert_eq!((seen.present_pieces, seen.data_pieces), (15, 21), "what had arrived was not sent again");
        }
    }
}

#[tokio::test]
async fn a_later_run_resumes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, content(20, 5)).unwrap();
    let options = PutOptions { notes: Some(afar::resume::Notes::new(folder.path().join("notes"))), ..PutOptions::default() };
    let broken = Fakes::start(&[Manner::BreaksPutAfter(12)], Bytes::new()).await;
    let error = broken.client().put("docs", "k", Source::File(path.clone()), options.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.may_still_happen()), (Kind::Unreachable, true));
    let first = broken.seen.lock().unwrap().uploads[0].clone();
    // The same cluster, well again, as far as the client can tell: the same authority.
    let well = Fakes::start(&[Manner::Good], Bytes::new()).await;
    well.seen.lock().unwrap().chunks.clone_from(&broken.seen.lock().unwrap().chunks);
    let notes: Vec<_> = std::fs::read_dir(folder.path().join("notes")).unwrap().collect();
    assert_eq!(notes.len(), 1, "the note is kept until the put is done");
    let again = Fakes { ca_pem: well.ca_pem.clone(), endpoints: well.endpoints.clone(), seen: Arc::clone(&well.seen), _stop: vec![] };
    let stored = again.client().put("docs", "k", Source::File(path.clone()), options.clone()).await;
    // Another authority is another cluster: its upload has an id of its own.
    stored.unwrap();
    assert_ne!(well.seen.lock().unwrap().uploads[0], first);
    let error = broken.client().put("docs", "k", Source::File(path), options).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    let uploads = broken.seen.lock().unwrap().uploads.clone();
    assert!(uploads.contains(&first) && uploads.last() != Some(&first), "a later run is a put of its own: {uploads:?}");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, content(40, 0)).unwrap();
    let fakes = Fakes::start(&[Manner::Good], Bytes::new()).await;
    let (client, writer) = (fakes.client(), path.clone());
    let progress: afar::put::OnProgress = Arc::new(move |position| {
        if position == 2 * CHUNK_BYTES as u64 {
            std::fs::write(&writer, b"something else").unwrap();
        }
    });
    let options = PutOptions { progress: Some(progress), ..PutOptions::default() };
    let error = client.put("docs", "k", Source::File(path), options).await.unwrap_err();
    assert!(error.kind() == Kind::Failed && error.message().contains("changed"), "{error}");
}

#[tokio::test]
async fn a_download_goes_on_at_the_next_endpoint_at_the_same_byte() {
    let content = content(5, 77);
    let fakes = Fakes::start(&[Manner::BreaksGetAfter(2), Manner::Good], content.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "what was there before").unwrap();
    let info = fakes.client().get_file(&key(), &path, None).await.unwrap();
    assert_eq!(info.object, ObjectId::of(&content));
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(fakes.seen.lock().unwrap().offsets, [0, 2 * CHUNK_BYTES as u64]);
}

#[tokio::test]
async fn ranges_are_exact_and_verified() {
    let content = content(3, 77);
    let fakes = Fakes::start(&[Manner::Good], content.clone()).await;
    let client = fakes.client();
    let size = content.len() as u64;
    for (offset, length) in [(0, Some(1)), (CHUNK_BYTES as u64 - 1, Some(2)), (5, None), (size - 3, Some(100)), (size, None), (7, Some(0))]
    {
        let (_, bytes) = client.get_bytes(&key(), Range { offset, length }).await.unwrap();
        let end = length.map_or(size, |length| (offset + length).min(size));
        assert_eq!(bytes, content.slice(offset as usize..end as usize), "{offset} {length:?}");
    }
    let beyond = client.get_bytes(&key(), Range { offset: size + 1, length: None }).await.unwrap_err();
    assert_eq!(beyond.kind(), Kind::Usage);
}

#[tokio::test]
async fn a_liar_is_found_out_and_leaves_nothing() {
    for manner in [Manner::LiesAboutWhole, Manner::LiesAboutPiece] {
        let fakes = Fakes::start(std::slice::from_ref(&manner), content(2, 3)).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "before").unwrap();
        let error = fakes.client().get_file(&key(), &path, None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity, "{manner:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no leftovers");
        let mut sink = Vec::new();
        let error = fakes.client().get(&key(), Range::ALL, &mut sink).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity);
        if manner == Manner::LiesAboutPiece {
            assert!(sink.is_empty(), "no byte is written before its piece is verified");
            assert_eq!(fakes.client().get_bytes(&key(), Range { offset: 1, length: Some(1) }).await.unwrap_err().kind(), Kind::Integrity);
        }
    }
}

#[tokio::test]
async fn an_id_that_was_asked_for_is_the_id_that_comes() {
    let content = content(0, 10);
    let fakes = Fakes::start(&[Manner::Good], content.clone()).await;
    let client = fakes.client();
    client.get_bytes(&Wanted::object("docs", ObjectId::of(&content)), Range::ALL).await.unwrap();
    let other = client.get_bytes(&Wanted::object("docs", ObjectId::of(b"other")), Range::ALL).await.unwrap_err();
    assert_eq!(other.kind(), Kind::Integrity);
}

#[tokio::test]
async fn an_abbreviated_id_is_made_whole_or_its_candidates_are_named() {
    let content = content(0, 10);
    let fakes = Fakes::start(&[Manner::Good], content.clone()).await;
    let client = fakes.client();
    let whole = ObjectId::of(&content).to_string();
    let named = |text: &str| text.parse::<Named>().unwrap();
    let wanted = client.resolve(&named(&format!("docs@{}…", &whole[..8]))).await.unwrap();
    assert_eq!(wanted, Wanted::object("docs", ObjectId::of(&content)));
    let version = Some(whole[..6].parse().unwrap());
    let wanted = client.resolve(&named("docs/k").at_version(version).unwrap()).await.unwrap();
    assert_eq!((wanted.key_or_empty(), wanted.version.unwrap().to_string()), ("k", whole.clone()));
    let asked = std::mem::take(&mut fakes.seen.lock().unwrap().resolved);
    assert_eq!(asked, [(String::new(), whole[..8].to_owned()), ("k".to_owned(), whole[..6].to_owned())]);

    let error = client.resolve(&named("docs@111111")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    for number in ["01", "02"] {
        assert!(error.message().contains(&format!("111111{}", number.repeat(29))), "{error}");
    }
    assert!(!error.message().contains("others"), "{error}");
    let error = client.resolve(&named("docs@444444…")).await.unwrap_err();
    assert!(error.kind() == Kind::Usage && error.message().ends_with("and others"), "{error}");
    assert_eq!(client.resolve(&named("docs@000000")).await.unwrap_err().kind(), Kind::NotFound);
    for nonsense in ["docs@222222", "docs@555555"] {
        assert_eq!(client.resolve(&named(nonsense)).await.unwrap_err().kind(), Kind::Failed, "a node is not believed: {nonsense}");
    }
    fakes.seen.lock().unwrap().resolved.clear();
    client.resolve(&named(&format!("docs@{whole}"))).await.unwrap();
    client.resolve(&named("docs/k")).await.unwrap();
    assert!(fakes.seen.lock().unwrap().resolved.is_empty(), "nobody is asked about what is whole");
}

async fn refused(exit: u8) -> (Error, usize) {
    let fakes = Fakes::start(&[Manner::Refuses(exit), Manner::Refuses(exit)], Bytes::new()).await;
    let error = fakes.client().stat(&key()).await.unwrap_err();
    let stats = fakes.seen.lock().unwrap().stats;
    (error, stats)
}

#[tokio::test]
async fn every_exit_code_arrives_and_only_14_and_11_are_tried_elsewhere() {
    for (exit, kind, tries) in [
        (2, Kind::Usage, 1),
        (4, Kind::Integrity, 1),
        (5, Kind::BelowPolicy, 1),
        (10, Kind::NotFound, 1),
        (11, Kind::Busy, 4),
        (12, Kind::Authentication, 1),
        (13, Kind::Space, 1),
        (14, Kind::Unreachable, 4),
        (15, Kind::Denied, 1),
    ] {
        let (error, asked) = refused(exit).await;
        assert_eq!((error.kind(), asked), (kind, tries), "{exit}");
        assert!(error.message().contains("because"), "{error}");
    }
}

#[tokio::test]
async fn a_stranger_is_not_spoken_to() {
    let fakes = Fakes::start(&[Manner::Good], Bytes::new()).await;
    let others = Fakes::start(&[Manner::Good], Bytes::new()).await;
    let error = fakes.client_of(others.endpoints.clone()).stat(&key()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Authentication, "{error}");
    assert!(error.what_to_do().unwrap().contains("AFAR_CA_FILE"));
    let both = fakes.client_of(vec![others.endpoints[0].clone(), fakes.endpoints[0].clone()]);
    both.stat(&key()).await.unwrap();
}

#[tokio::test]
async fn a_listing_goes_on_after_the_last_key() {
    let fakes = Fakes::start(&[Manner::BreaksGetAfter(0), Manner::Good], Bytes::new()).await;
    let listing = afar::Listing { bucket: "docs".into(), ..afar::Listing::default() };
    let lines: Vec<_> = fakes.client().list(listing).try_collect().await.unwrap();
    let keys: Vec<String> = lines
        .into_iter()
        .map(|line| match line {
            afar::answers::Listed::Entry(entry) => entry.key,
            afar::answers::Listed::Prefix(prefix) => prefix,
        })
        .collect();
    assert_eq!(keys, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_pipe_that_fails_stores_nothing() {
    struct Broken(usize);
    impl std::io::Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("the pipe broke"));
            }
            self.0 -= 1;
            buffer.fill(7);
            Ok(buffer.len())
        }
    }
    let fakes = Fakes::start(&[Manner::Good], Bytes::new()).await;
    let client = fakes.client();
    let put = client.put("docs", "k", Source::Read(Box::new(Broken(200))), PutOptions::default());
    let outcome = tokio::time::timeout(Duration::from_secs(60), Box::pin(put)).await.expect("it ends");
    assert!(outcome.unwrap_err().message().contains("the pipe broke"));
}
