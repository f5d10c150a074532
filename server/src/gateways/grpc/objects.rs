//! Clients' objects over gRPC: decode, ask the domain, encode. No rule lives here.
use super::{
    auth,
    flow::Flow,
    listener::ConnectionInfo,
    meta::{self, status},
    to_the_end,
};
use crate::{
    cluster::keyring::Caller,
    limits,
    node::Node,
    objects::{
        ObjectError,
        list::{Cursor, Line, Listing},
        put::{self, Intent, Piece, Put, Receipt},
        read::{self, Bite, Found, Wanted},
        remove, resolve,
    },
    pace::Pace,
    replication::fetch,
};
use afar_model::{
    id::{ObjectId, ParseIdPrefixError, RecordId, UploadId},
    limits::CHUNK_BYTES,
    placement::{Geography, sites_of},
    record::{ChunkRef, RecordKey, VersionEntry},
    state::{State, state},
};
use afar_proto::{
    convert::{self, InvalidMessage},
    v1::{self, objects_server::Objects},
};
use futures_util::{Stream, StreamExt as _};
use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Code, Request, Response, Status, Streaming};

/// The service.
#[derive(Debug, Clone)]
pub struct ObjectsService {
    node: Arc<Node>,
}

impl ObjectsService {
    /// On this node.
    pub const fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    #[allow(clippy::result_large_err)]
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        auth::caller_at(request, &self.node)
    }
}

/// The one map from what went wrong to the wire.
impl From<ObjectError> for Status {
    fn from(error: ObjectError) -> Self {
        let code = match &error {
            ObjectError::NoSuchBucket(_) | ObjectError::NoSuchObject { .. } | ObjectError::NoSuchKey(_) => Code::NotFound,
            ObjectError::Key(_) | ObjectError::BucketName(_) | ObjectError::Invalid(_) => Code::InvalidArgument,
            ObjectError::Mismatch(_) | ObjectError::Integrity(_) => Code::DataLoss,
            ObjectError::NotFar { .. } | ObjectError::Infeasible { .. } => Code::FailedPrecondition,
            ObjectError::Unavailable { .. } => Code::Unavailable,
            ObjectError::Busy(_) | ObjectError::NoSpace(_) => Code::ResourceExhausted,
            ObjectError::Exists(_) => Code::AlreadyExists,
            ObjectError::NotEmpty { .. } | ObjectError::Contested { .. } => Code::FailedPrecondition,
            ObjectError::Denied(_) | ObjectError::Forbidden(_) => Code::PermissionDenied,
            ObjectError::Internal(_) => Code::Internal,
        };
        let wire = meta::hint(status(code, error.exit(), error.to_string()), &error.hint());
        if error.may_happen() { meta::maybe(wire) } else { wire }
    }
}

/// A message that makes no sense.
pub fn invalid(error: &InvalidMessage) -> Status {
    status(Code::InvalidArgument, meta::exit::USAGE, error.to_string())
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Objects for ObjectsService {
    async fn put(&self, request: Request<Streaming<v1::PutRequest>>) -> Result<Response<v1::PutReply>, Status> {
        let caller = self.caller(&request)?;
        let (flow, connection) = (flow(&request), request.extensions().get::<ConnectionInfo>().cloned());
        let task =
            receive(Arc::clone(&self.node), caller, connection, Incoming::new(request.into_inner(), flow, self.node.config.slow_after));
        let receipt = to_the_end(&self.node, "put", Box::pin(task)).await?;
        Ok(Response::new(receipt.into()))
    }

    type GetStream = Replies<v1::GetReply>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let caller = self.caller(&request)?;
        let (flow, connection) = (flow(&request), request.extensions().get::<ConnectionInfo>().cloned());
        let request = request.into_inner();
        let wanted = wanted(request.key, request.version.as_deref(), request.object.as_deref()).map_err(|error| invalid(&error))?;
        let (found, permit) = read::open(&self.node, &caller, &request.bucket, wanted).await?;
        let bites = read::bytes(&self.node, &found, request.offset, request.length, Some(permit))?;
        let mut info = Some(info(&found));
        // The description travels with the first piece, so that a small object is one message.
        let mut replies = Box::pin(bites.map(move |bite| Ok(v1::GetReply { info: info.take(), piece: Some(piece(bite?)) })));
        let first = match replies.next().await {
            Some(first) => first?,
            None => v1::GetReply { info: Some(self::info(&found)), piece: None },
        };
        self.watch(flow, connection);
        Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(first)]).chain(replies))))
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::ObjectInfo>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let wanted = wanted(request.key, request.version.as_deref(), request.object.as_deref()).map_err(|error| invalid(&error))?;
        let found = read::find(&self.node, &caller, &request.bucket, wanted).await?;
        let holdings = read::holdings(&self.node, &found.bucket, &found.key, &found.listed).await;
        let layout = self.node.layout();
        let sites = sites_of(&layout, holdings.named());
        let refuted = self.node.peers.refuted();
        let geography = Geography { layout: &layout, refuted: &refuted };
        let policy = found.bucket.policy();
        let states = holdings.of_each().map(|holders| state(policy, &sites_of(&layout, holders.iter().copied()), &[], &geography));
        let state = states.max().unwrap_or(State::Unknown);
        let mut info = info(&found);
        info.sites = sites.iter().map(|site| layout.site_name(*site).to_owned()).collect();
        info.distance_metres = geography.greatest_distance(&sites).0;
        info.state = state.name().to_owned();
        Ok(Response::new(info))
    }

    type ListStream = Replies<v1::ListReply>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let listing = Listing {
            prefix: request.prefix,
            after: request.after,
            delimiter: request.delimiter,
            limit: Some(request.limit).filter(|limit| *limit > 0),
            versions: request.versions,
        };
        let mut cursor = Cursor::begin(&self.node, &caller, &request.bucket, listing)?;
        // The first page before the answer begins, so that an error is the answer's own.
        let first = cursor.next().await?;
        let replies = async_stream::try_stream! {
            let mut lines = first;
            while let Some(page) = lines {
                for part in page.chunks(limits::LIST_PAGE) {
                    yield reply(part);
                }
                lines = cursor.next().await?;
            }
        };
        Ok(Response::new(Box::pin(replies)))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        if request.version.is_some() {
            return Err(status(
                Code::Unimplemented,
                meta::exit::FAILED,
                "one version cannot be removed yet: without one a delete marker is written",
            ));
        }
        let upload: UploadId = convert::id("upload", &request.upload).map_err(|error| invalid(&error))?;
        let node = Arc::clone(&self.node);
        let task = async move { remove::remove(&node, &caller, &request.bucket, &request.key, upload).await };
        let receipt = to_the_end(&self.node, "remove", task).await?;
        Ok(Response::new(v1::DeleteReply {
            version: convert::bytes(receipt.version.as_bytes()),
            durability: receipt.durability.to_string(),
            sites: receipt.sites,
        }))
    }

    async fn copy(&self, request: Request<v1::CopyRequest>) -> Result<Response<v1::PutReply>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let upload: UploadId = convert::id("upload", &request.upload).map_err(|error| invalid(&error))?;
        let from = wanted(request.from_key, request.from_version.as_deref(), None).map_err(|error| invalid(&error))?;
        let metadata = request.replace_metadata.then(|| request.metadata.into_iter().collect());
        let node = Arc::clone(&self.node);
        let task = async move {
            let to = (request.to_bucket, request.to_key);
            remove::copy(&node, &caller, (request.from_bucket, from), to, upload, metadata).await
        };
        let receipt = to_the_end(&self.node, "copy", Box::pin(task)).await?;
        Ok(Response::new(receipt.into()))
    }

    async fn have(&self, request: Request<v1::HaveRequest>) -> Result<Response<v1::HaveReply>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let bucket = self.node.bucket(&request.bucket)?;
        if !caller.may(afar_model::record::Right::Write, &bucket.id) && !caller.may(afar_model::record::Right::Append, &bucket.id) {
            return Err(ObjectError::Forbidden("write to this bucket").into());
        }
        if request.chunks.len() > afar_proto::limits::HAVE_MAX {
            let message = format!("{} chunks in one question: the most is {}", request.chunks.len(), afar_proto::limits::HAVE_MAX);
            return Err(status(Code::InvalidArgument, meta::exit::USAGE, message));
        }
        let ids: Result<Vec<RecordId>, InvalidMessage> = request.chunks.iter().map(|chunk| convert::id("chunks", chunk)).collect();
        let keys: Vec<RecordKey> =
            ids.map_err(|error| invalid(&error))?.into_iter().map(|id| RecordKey { bucket: bucket.id, id }).collect();
        let mut present = Vec::with_capacity(keys.len());
        for batch in keys.chunks(limits::PROVE_BATCH) {
            present.extend(self.present(&bucket, batch).await);
        }
        Ok(Response::new(v1::HaveReply { present }))
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Result<Response<v1::ResolveReply>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let prefix = request.prefix.parse().map_err(|error: ParseIdPrefixError| ObjectError::Invalid(error.to_string()))?;
        let found = resolve::resolve(&self.node, &caller, &request.bucket, &request.key, &prefix).await?;
        let ids = found.ids.iter().map(|id| convert::bytes(id)).collect();
        Ok(Response::new(v1::ResolveReply { ids, more: found.more }))
    }
}

impl ObjectsService {
    /// Sees to it that a client that does not take its answer loses it, for what is kept for it is kept from others (rule 29).
    fn watch(&self, flow: Flow, connection: Option<ConnectionInfo>) {
        let (within, lifecycle) = (self.node.config.slow_after, self.node.lifecycle.clone());
        self.node.lifecycle.spawn_brief("watch a get", async move {
            let watched = tokio::select! {
                watched = flow.watch(within) => watched,
                () = lifecycle.stopping() => return,
            };
            if let (Err(slow), Some(connection)) = (watched, connection) {
                tracing::info!(remote = ?connection.remote, %slow, "a client does not take what it got: its connection is closed");
                connection.close.cancel();
            }
        });
    }

    /// Which chunks have verified, durable copies far enough apart.
    async fn present(&self, bucket: &crate::objects::buckets::Bucket, keys: &[RecordKey]) -> Vec<bool> {
        let node = &self.node;
        let whom: Vec<_> = bucket.eligible().into_iter().filter(|n| node.can_store(*n)).collect();
        let proved = fetch::prove_all(node, &whom, keys).await;
        proved.iter().map(|proved| put::reached(node, bucket, &proved.holders) >= Some(afar_model::policy::Durability::Far)).collect()
    }
}

/// What moves on a request; one that nobody counts if the layer is missing.
fn flow<T>(request: &Request<T>) -> Flow {
    request.extensions().get::<Flow>().cloned().unwrap_or_default()
}

async fn receive(
    node: Arc<Node>,
    caller: Caller,
    connection: Option<ConnectionInfo>,
    mut requests: Incoming,
) -> Result<Receipt, ObjectError> {
    let invalid = |error: InvalidMessage| ObjectError::Invalid(error.to_string());
    // Before the first byte is taken (rule 29): what comes in the meantime waits in HTTP/2's window.
    let carried = connection.map(|connection| connection.carry_put());
    let shared = carried.as_ref().is_some_and(|carried| carried.others > 0);
    let within = if shared { limits::ADMISSION_WAIT_SHARED } else { limits::ADMISSION_WAIT };
    let base = read::admit(&node, CHUNK_BYTES, within).await?;
    let mut message = requests.next().await?.ok_or_else(|| ObjectError::Invalid("the put is empty".into()))?;
    let header = message.header.take().ok_or_else(|| ObjectError::Invalid("a put begins with a header".into()))?;
    let intent = Intent {
        bucket: header.bucket,
        key: header.key,
        upload: convert::id("upload", &header.upload).map_err(invalid)?,
        metadata: header.metadata.into_iter().collect(),
        size: header.size,
        retry: header.retry,
    };
    let mut put = Put::begin(&node, &caller, intent, base).await?;
    loop {
        if message.header.is_some() {
            return Err(ObjectError::Invalid("a put has one header".into()));
        }
        for piece in message.pieces {
            let piece = decode(piece)?;
            requests.gave(&piece);
            put.piece(piece).await?;
        }
        if let Some(end) = message.end {
            return put.finish(convert::id("object", &end.object).map_err(invalid)?, end.size).await;
        }
        put.ready().await?;
        message = requests
            .next()
            .await?
            .ok_or_else(|| ObjectError::unavailable("the client ended the put before its end: nothing was stored under the key"))?;
    }
}

/// A client's messages of one put, as long as they come fast enough.
struct Incoming {
    messages: Streaming<v1::PutRequest>,
    flow: Flow,
    pace: Pace,
    /// Bytes that the pace knows of.
    known: u64,
    /// Bytes that the client need not send again, because they are here: they count as if it had.
    present: u64,
}

impl Incoming {
    fn new(messages: Streaming<v1::PutRequest>, flow: Flow, slow_after: Duration) -> Self {
        Self { messages, flow, pace: Pace::new(slow_after), known: 0, present: 0 }
    }

    /// Takes note of a piece that came.
    const fn gave(&mut self, piece: &Piece) {
        if let Piece::Present(chunk) = piece {
            self.present += chunk.length as u64;
        }
    }

    /// The next message; `None` at the end. Bytes count as they come, not when a message is whole.
    async fn next(&mut self) -> Result<Option<v1::PutRequest>, ObjectError> {
        loop {
            let since = Instant::now();
            let message = tokio::time::timeout(self.pace.left(), self.messages.message()).await;
            let moved = self.flow.received() + self.present;
            let pace = self.pace.waited(since.elapsed(), moved.saturating_sub(self.known));
            self.known = moved;
            match (message, pace) {
                (Ok(Err(error)), _) => {
                    let why = format!("the client went away in the middle of the put: {}", error.message());
                    return Err(ObjectError::unavailable(why));
                }
                (_, Err(slow)) => return Err(ObjectError::unavailable(format!("the client is too slow: {slow}"))),
                (Ok(Ok(message)), Ok(())) => return Ok(message),
                (Err(_), Ok(())) => {}
            }
        }
    }
}

fn decode(piece: v1::PutPiece) -> Result<Piece, ObjectError> {
    match piece.piece {
        Some(v1::put_piece::Piece::Data(data)) => Ok(Piece::Data(data)),
        Some(v1::put_piece::Piece::Present(chunk)) => {
            let id = convert::id("present", &chunk.id).map_err(|error| ObjectError::Invalid(error.to_string()))?;
            Ok(Piece::Present(ChunkRef { id, length: chunk.length }))
        }
        None => Err(ObjectError::Invalid("a piece is empty, or made by a later program".into())),
    }
}

fn wanted(key: String, version: Option<&[u8]>, object: Option<&[u8]>) -> Result<Wanted, InvalidMessage> {
    match (version, object) {
        (Some(version), _) => Ok(Wanted::Version(key, convert::id("version", version)?)),
        (None, Some(object)) => Ok(Wanted::Object(convert::id("object", object)?)),
        (None, None) => Ok(Wanted::Current(key)),
    }
}

fn info(found: &Found) -> v1::ObjectInfo {
    v1::ObjectInfo {
        bucket: found.bucket.name.clone(),
        key: found.key.clone(),
        object: convert::bytes(found.object.as_bytes()),
        version: convert::bytes(found.listed.entry.id.as_bytes()),
        size: found.size,
        modified: found.listed.entry.stamp.time().0,
        metadata: found.decoded.version.metadata.clone().into_iter().collect(),
        sites: Vec::new(),
        distance_metres: 0,
        state: String::new(),
    }
}

fn piece(bite: Bite) -> v1::DataPiece {
    v1::DataPiece { offset: bite.offset, data: bite.data, id: bite.id.map(|id| convert::bytes(id.as_bytes())) }
}

fn reply(lines: &[Line]) -> v1::ListReply {
    let mut reply = v1::ListReply::default();
    for line in lines {
        match line {
            Line::Entry { key, entry, current } => reply.entries.push(list_entry(key, entry, *current)),
            Line::Prefix(prefix) => reply.common_prefixes.push(prefix.clone()),
        }
    }
    reply
}

fn list_entry(key: &str, entry: &VersionEntry, current: bool) -> v1::ListEntry {
    v1::ListEntry {
        key: key.to_owned(),
        version: convert::bytes(entry.id.as_bytes()),
        object: entry.object.map(|(id, _): (ObjectId, u64)| convert::bytes(id.as_bytes())),
        size: entry.object.map_or(0, |(_, size)| size),
        modified: entry.stamp.time().0,
        current,
    }
}

impl From<Receipt> for v1::PutReply {
    fn from(receipt: Receipt) -> Self {
        Self {
            object: receipt.object.map(|id| convert::bytes(id.as_bytes())).unwrap_or_default(),
            bucket: receipt.bucket,
            key: receipt.key,
            version: convert::bytes(receipt.version.as_bytes()),
            size: receipt.size,
            durability: receipt.durability.to_string(),
            sites: receipt.sites,
            distance_metres: receipt.distance.0,
            deduplicated_bytes: receipt.deduplicated,
            note: receipt.note,
        }
    }
}
