//! A client of one cluster. Cheap to clone; every clone shares the same connections.
use crate::{
    answers::{AccessKey, Bucket, Grant, Info, Listed, NewKey, Removed, Stored, malformed},
    endpoints::{Bearer, Door, Endpoints},
    error::Error,
    limits,
    names::{Named, NamedBy, Wanted, What},
};
use afar_model::{
    id::{IdPrefix, ObjectId, RecordId, UploadId},
    policy::Policy,
};
use afar_proto::{convert, v1};
use futures_util::Stream;
use std::{collections::BTreeMap, fmt, sync::Arc};
use tonic::Response;

/// How to reach a cluster.
#[derive(Clone)]
pub struct Config {
    /// `https://HOST:PORT` of any of its nodes, in the order to try.
    pub endpoints: Vec<String>,
    /// An access key's id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// The cluster's certificate authority (`ca.crt`), PEM. Nothing else is believed.
    pub ca_pem: Vec<u8>,
    /// How often all endpoints are tried before an error is final: [`limits::ROUNDS`] if in doubt.
    pub rounds: u32,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("endpoints", &self.endpoints).field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A client of one cluster.
#[derive(Debug, Clone)]
pub struct Client {
    endpoints: Arc<Endpoints>,
    cluster: [u8; 32],
}

/// What to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The bucket's name.
    pub bucket: String,
    /// Only keys that begin with this.
    pub prefix: String,
    /// Fold what lies deeper than the next slash.
    pub fold: bool,
    /// Every version, delete markers too.
    pub versions: bool,
    /// At most so many entries; 0: all.
    pub limit: u64,
}

/// Asks a short question at one door after another until one of them has an answer.
macro_rules! ask {
    ($client:expr, $request:expr, $service:ident . $method:ident) => {
        ask!($client, $request, $service.$method, limits::UNARY_TIMEOUT)
    };
    ($client:expr, $request:expr, $service:ident . $method:ident, $within:expr) => {{
        let mut tries = $client.endpoints.tries();
        loop {
            let door = tries.door()?;
            let mut service = door.$service();
            match door.ask($within, service.$method($request.clone())).await {
                Ok(reply) => {
                    tries.worked();
                    break reply;
                }
                Err(error) => tries.failed(error).await?,
            }
        }
    }};
}

impl Client {
    /// Checks the configuration; connections are made when first used. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If an endpoint, the key or the CA makes no sense.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let bearer = Bearer::new(&config.access_key_id, &config.secret_access_key)?;
        let endpoints = Endpoints::new(&config.endpoints, &config.ca_pem, &bearer, config.rounds)?;
        Ok(Self { endpoints: Arc::new(endpoints), cluster: *blake3::hash(&config.ca_pem).as_bytes() })
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Every endpoint, in the order given.
    pub fn doors(&self) -> &[Door] {
        self.endpoints.doors()
    }

    /// Tells clusters apart: a digest of the CA that is believed.
    pub const fn cluster(&self) -> &[u8; 32] {
        &self.cluster
    }

    /// Describes an object.
    ///
    /// # Errors
    /// If there is none, or nobody could say.
    pub async fn stat(&self, wanted: &Wanted) -> Result<Info, Error> {
        let request = v1::StatRequest {
            bucket: wanted.bucket.clone(),
            key: wanted.key_or_empty().to_owned(),
            version: wanted.version.as_ref().map(|version| convert::bytes(version.as_bytes())),
            object: wanted.object_id().map(|object| convert::bytes(object.as_bytes())),
        };
        ask!(self, request, objects.stat).try_into()
    }

    /// Which object people mean: makes abbreviated ids whole. Asks nobody if none is abbreviated.
    ///
    /// # Errors
    /// If nothing begins like that (10), several things do (2: then the first of them are named), or nobody could say.
    pub async fn resolve(&self, named: &Named) -> Result<Wanted, Error> {
        let what = match &named.by {
            NamedBy::Key(key) => What::Key(key.clone()),
            NamedBy::Id(prefix) => What::Object(ObjectId::from_bytes(self.whole_id(named, "", prefix).await?)),
        };
        let version = match (&named.version, &what) {
            (Some(prefix), What::Key(key)) => Some(RecordId::from_bytes(self.whole_id(named, key, prefix).await?)),
            _ => None,
        };
        Ok(Wanted { bucket: named.bucket.clone(), what, version })
    }

    async fn whole_id(&self, named: &Named, key: &str, prefix: &IdPrefix) -> Result<[u8; 32], Error> {
        if let Some(whole) = prefix.whole() {
            return Ok(whole);
        }
        let request = v1::ResolveRequest { bucket: named.bucket.clone(), key: key.to_owned(), prefix: prefix.digits().to_owned() };
        // By content a node walks the whole bucket.
        let reply: v1::ResolveReply = ask!(self, request, objects.resolve, limits::IDLE_TIMEOUT);
        let ids: Result<Vec<RecordId>, Error> =
            reply.ids.iter().map(|id| convert::id("resolve.ids", id).map_err(|error| malformed(&error))).collect();
        let ids: Vec<[u8; 32]> = ids?.into_iter().map(|id| *id.as_bytes()).collect();
        match ids.as_slice() {
            [] => Err(malformed(&"no id begins like that, and no error said so")),
            all if !all.iter().all(|id| prefix.begins(id)) => Err(malformed(&"an id that begins otherwise")),
            [one] => Ok(*one),
            several => Err(ambiguous(named, several, reply.more)),
        }
    }

    /// Lists keys in order. Where an endpoint fails in the middle, another goes on after the last key.
    pub fn list(&self, listing: Listing) -> impl Stream<Item = Result<Listed, Error>> + Send + 'static {
        let client = self.clone();
        async_stream::try_stream! {
            let mut request = v1::ListRequest {
                bucket: listing.bucket.clone(),
                prefix: listing.prefix.clone(),
                after: String::new(),
                delimiter: if listing.fold { "/".into() } else { String::new() },
                limit: listing.limit,
                versions: listing.versions,
            };
            let mut tries = client.endpoints.tries();
            'doors: loop {
                let door = tries.door()?.clone();
                let mut service = door.objects();
                let opened = door.ask(limits::IDLE_TIMEOUT, service.list(request.clone())).await;
                let mut stream = match opened {
                    Ok(stream) => stream,
                    Err(error) => { tries.failed(error).await?; continue 'doors; }
                };
                loop {
                    let page = match door.ask(limits::IDLE_TIMEOUT, async { stream.message().await.map(Response::new) }).await {
                        Ok(Some(page)) => page,
                        Ok(None) => { tries.worked(); break 'doors; }
                        Err(error) => {
                            // Folded keys and versions cannot be taken up after a key: what was shown would be shown twice.
                            let begun = !request.after.is_empty();
                            if begun && (listing.fold || listing.versions) { Err(error.clone())?; }
                            tries.failed(error).await?;
                            continue 'doors;
                        }
                    };
                    tries.progressed();
                    for line in merged(page)? {
                        match &line {
                            Listed::Entry(entry) => { request.after.clone_from(&entry.key); request.limit = request.limit.saturating_sub(1); }
                            Listed::Prefix(prefix) => request.after.clone_from(prefix),
                        }
                        yield line;
                    }
                    if listing.limit > 0 && request.limit == 0 { break 'doors; }
                }
            }
        }
    }

    /// Hides a key behind a delete marker. (To remove one version for good is more than nodes can do yet: they refuse it.)
    ///
    /// # Errors
    /// If there is no such key, or nobody could.
    pub async fn delete(&self, wanted: &Wanted) -> Result<Removed, Error> {
        let request = v1::DeleteRequest {
            bucket: wanted.bucket.clone(),
            key: wanted.key_or_empty().to_owned(),
            upload: new_upload(),
            version: wanted.version.as_ref().map(|version| convert::bytes(version.as_bytes())),
        };
        ask!(self, request, objects.delete).try_into()
    }

    /// Copies an object without moving its bytes through here. With metadata, the copy gets those instead of the source's.
    ///
    /// # Errors
    /// If there is no such object, or nobody could.
    pub async fn copy(&self, from: &Wanted, bucket: &str, key: &str, metadata: Option<BTreeMap<String, String>>) -> Result<Stored, Error> {
        let request = v1::CopyRequest {
            from_bucket: from.bucket.clone(),
            from_key: from.key_or_empty().to_owned(),
            from_version: from.version.as_ref().map(|version| convert::bytes(version.as_bytes())),
            to_bucket: bucket.to_owned(),
            to_key: key.to_owned(),
            upload: new_upload(),
            replace_metadata: metadata.is_some(),
            metadata: metadata.unwrap_or_default().into_iter().collect(),
        };
        ask!(self, request, objects.copy).try_into()
    }

    /// Every bucket that the key may see.
    ///
    /// # Errors
    /// If nobody could say.
    pub async fn buckets(&self) -> Result<Vec<Bucket>, Error> {
        let reply: v1::ListBucketsReply = ask!(self, v1::ListBucketsRequest {}, admin.list_buckets);
        reply.buckets.into_iter().map(Bucket::try_from).collect()
    }

    /// The policy that a bucket gets without one of its own.
    ///
    /// # Errors
    /// If nobody could say.
    pub async fn default_policy(&self) -> Result<Policy, Error> {
        let status: v1::NodeStatus = ask!(self, v1::NodeStatusRequest { fresh: false }, status.node);
        status
            .default_policy
            .as_ref()
            .map_or_else(|| Ok(Policy::default()), |policy| Policy::try_from(policy).map_err(|error| malformed(&error)))
    }

    /// Makes a bucket; without a policy it gets the cluster's default.
    ///
    /// # Errors
    /// If the name is taken or cannot be one, the policy makes no sense, or a site is missing.
    pub async fn create_bucket(&self, name: &str, policy: Option<&Policy>) -> Result<Bucket, Error> {
        let request = v1::CreateBucketRequest { name: name.to_owned(), policy: policy.map(v1::Policy::from) };
        ask!(self, request, admin.create_bucket).try_into()
    }

    /// Removes an empty bucket.
    ///
    /// # Errors
    /// If there is none, or it is not empty.
    pub async fn remove_bucket(&self, name: &str) -> Result<(), Error> {
        ask!(self, v1::RemoveBucketRequest { name: name.to_owned() }, admin.remove_bucket);
        Ok(())
    }

    /// Calls a bucket something else: by its name, or by `@` and its id.
    ///
    /// # Errors
    /// If there is none, the new name is taken or cannot be one, or a site is missing.
    pub async fn rename_bucket(&self, bucket: &str, name: &str) -> Result<Bucket, Error> {
        ask!(self, v1::RenameBucketRequest { bucket: bucket.to_owned(), name: name.to_owned() }, admin.rename_bucket).try_into()
    }

    /// Makes an access key.
    ///
    /// # Errors
    /// If a bucket does not exist or a right has no such name.
    pub async fn create_key(&self, name: &str, grants: Vec<Grant>) -> Result<NewKey, Error> {
        let request = v1::CreateKeyRequest { name: name.to_owned(), grants: grants.into_iter().map(v1::Grant::from).collect() };
        let reply: v1::CreatedKey = ask!(self, request, admin.create_key);
        let key = reply.key.ok_or_else(|| malformed(&"a new key without an id"))?;
        Ok(NewKey { key: key.into(), secret_access_key: reply.secret_access_key })
    }

    /// Every access key, without secrets.
    ///
    /// # Errors
    /// If nobody could say.
    pub async fn keys(&self) -> Result<Vec<AccessKey>, Error> {
        let reply: v1::ListKeysReply = ask!(self, v1::ListKeysRequest {}, admin.list_keys);
        Ok(reply.keys.into_iter().map(AccessKey::from).collect())
    }

    /// Revokes an access key for good.
    ///
    /// # Errors
    /// If there is none.
    pub async fn revoke_key(&self, access_key_id: &str) -> Result<(), Error> {
        ask!(self, v1::RevokeKeyRequest { access_key_id: access_key_id.to_owned() }, admin.revoke_key);
        Ok(())
    }

    /// Which of these chunks a bucket already has at its level, in order.
    pub(crate) async fn have(door: &Door, bucket: &str, chunks: &[RecordId]) -> Result<Vec<bool>, Error> {
        let mut present = Vec::with_capacity(chunks.len());
        for page in chunks.chunks(afar_proto::limits::HAVE_MAX) {
            let chunks = page.iter().map(|id| convert::bytes(id.as_bytes())).collect();
            let request = v1::HaveRequest { bucket: bucket.to_owned(), chunks };
            let mut service = door.objects();
            let reply: v1::HaveReply = door.ask(limits::IDLE_TIMEOUT, service.have(request)).await?;
            if reply.present.len() != page.len() {
                return Err(malformed(&format!("{} answers about {} chunks", reply.present.len(), page.len())));
            }
            present.extend(reply.present);
        }
        Ok(present)
    }
}

/// How many candidates of an ambiguous id are named.
const CANDIDATES_SHOWN: usize = 4;

fn ambiguous(named: &Named, ids: &[[u8; 32]], more: bool) -> Error {
    let shown: Vec<String> = ids.iter().take(CANDIDATES_SHOWN).map(|id| RecordId::from_bytes(*id).to_string()).collect();
    let others = if more || ids.len() > CANDIDATES_SHOWN { " and others" } else { "" };
    Error::usage(format!("{named} is ambiguous: it may be {}{others}", shown.join(" or ")))
        .hint("write more digits of the one that you mean")
}

/// A page's entries and folded prefixes, in one order.
fn merged(page: v1::ListReply) -> Result<Vec<Listed>, Error> {
    let mut lines: Vec<Listed> = page.common_prefixes.into_iter().map(Listed::Prefix).collect();
    for entry in page.entries {
        lines.push(Listed::Entry(entry.try_into()?));
    }
    // Stable: versions of one key stay in the node's order, newest first.
    lines.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    Ok(lines)
}

fn name_of(line: &Listed) -> &str {
    match line {
        Listed::Entry(entry) => &entry.key,
        Listed::Prefix(prefix) => prefix,
    }
}

/// A fresh upload id, as the wire wants it.
fn new_upload() -> bytes::Bytes {
    convert::bytes(fresh_upload().as_bytes())
}

/// A fresh upload id: 16 random bytes, the same for every retry of one write.
pub fn fresh_upload() -> UploadId {
    UploadId::from_bytes(rand::random())
}
