//! Buckets and access keys over gRPC: decode, ask the domain, encode.
use super::{
    auth,
    meta::{self, status},
    objects::invalid,
    to_the_end,
};
use crate::{
    node::Node,
    objects::{ObjectError, buckets::Bucket, settings},
};
use afar_model::{
    policy::Policy,
    record::{self, Right},
};
use afar_proto::{
    convert,
    v1::{self, admin_server::Admin},
};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status};

/// The service.
#[derive(Debug, Clone)]
pub struct AdminService {
    node: Arc<Node>,
}

impl AdminService {
    /// On this node.
    pub const fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn bucket(&self, bucket: &Bucket) -> v1::Bucket {
        let mut warning = match &bucket.now().placement {
            Err(why) => why.to_string(),
            Ok(placement) if !placement.is_complete() => {
                format!("the layout cannot keep all {} copies: they are far, but fewer", bucket.policy().copies)
            }
            Ok(_) => String::new(),
        };
        if self.node.buckets.other_named(&bucket.name, &bucket.id).is_some() {
            warning.push_str(&format!(" another bucket has this name: this one answers to @{} only", bucket.id));
        }
        if bucket.is_closed() {
            warning.push_str(" it takes nothing: it is being made or removed; if that has failed, `afar bucket rm` ends it, or opens it if it holds something");
        }
        v1::Bucket {
            id: convert::bytes(bucket.id.as_bytes()),
            name: bucket.name.clone(),
            policy: Some(v1::Policy::from(bucket.policy())),
            created: bucket.created.time().0,
            warning: warning.trim().to_owned(),
        }
    }

    #[allow(clippy::result_large_err)]
    fn grants(&self, grants: &[v1::Grant]) -> Result<Vec<record::Grant>, Status> {
        let grant = |grant: &v1::Grant| {
            let bucket = match grant.bucket.as_str() {
                "" => None,
                name => Some(self.node.bucket(name)?.id),
            };
            let rights: Result<Vec<Right>, Status> = grant.rights.iter().map(|name| right(name)).collect();
            Ok(record::Grant { bucket, rights: rights? })
        };
        grants.iter().map(grant).collect()
    }

    fn wire_grants(&self, grants: &[record::Grant]) -> Vec<v1::Grant> {
        let name = |id: afar_model::id::BucketId| self.node.buckets.get(&id).map_or_else(|| format!("@{id}"), |bucket| bucket.name.clone());
        let grant = |grant: &record::Grant| v1::Grant {
            bucket: grant.bucket.map(name).unwrap_or_default(),
            rights: grant.rights.iter().map(|right| right_name(*right).to_owned()).collect(),
        };
        grants.iter().map(grant).collect()
    }
}

const RIGHTS: [(&str, Right); 5] =
    [("read", Right::Read), ("write", Right::Write), ("append", Right::Append), ("delete", Right::Delete), ("admin", Right::Admin)];

#[allow(clippy::result_large_err)]
fn right(name: &str) -> Result<Right, Status> {
    let found = RIGHTS.iter().find(|(known, _)| *known == name).map(|(_, right)| *right);
    found.ok_or_else(|| {
        status(Code::InvalidArgument, meta::exit::USAGE, format!("{name:?} is no right: use read, write, append, delete or admin"))
    })
}

fn right_name(right: Right) -> &'static str {
    RIGHTS.iter().find(|(_, known)| *known == right).map_or("?", |(name, _)| name)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_bucket(&self, request: Request<v1::CreateBucketRequest>) -> Result<Response<v1::Bucket>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let request = request.into_inner();
        let policy = request.policy.as_ref().map(Policy::try_from).transpose().map_err(|error| invalid(&error))?;
        let node = Arc::clone(&self.node);
        let work = async move { settings::create_bucket(&node, &caller, &request.name, policy).await };
        let bucket = to_the_end(&self.node, "make a bucket", work).await?;
        Ok(Response::new(self.bucket(&bucket)))
    }

    async fn list_buckets(&self, request: Request<v1::ListBucketsRequest>) -> Result<Response<v1::ListBucketsReply>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        if self.node.is_catching_up() {
            return Err(ObjectError::unavailable("this node is catching up and cannot tell yet which buckets there are").into());
        }
        let present = self.node.buckets.present();
        let seen = |bucket: &&Arc<Bucket>| {
            [Right::Read, Right::Write, Right::Append, Right::Delete].iter().any(|right| caller.may(*right, &bucket.id))
        };
        let mut buckets: Vec<v1::Bucket> = present.buckets.values().filter(seen).map(|bucket| self.bucket(bucket)).collect();
        buckets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListBucketsReply { buckets }))
    }

    async fn remove_bucket(&self, request: Request<v1::RemoveBucketRequest>) -> Result<Response<v1::RemoveBucketReply>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let work = async move { settings::remove_bucket(&node, &caller, &request.name).await };
        to_the_end(&self.node, "remove a bucket", work).await?;
        Ok(Response::new(v1::RemoveBucketReply {}))
    }

    async fn rename_bucket(&self, request: Request<v1::RenameBucketRequest>) -> Result<Response<v1::Bucket>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let work = async move { settings::rename_bucket(&node, &caller, &request.bucket, &request.name).await };
        let bucket = to_the_end(&self.node, "rename a bucket", work).await?;
        Ok(Response::new(self.bucket(&bucket)))
    }

    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Result<Response<v1::CreatedKey>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let request = request.into_inner();
        settings::admin(&caller)?;
        let grants = self.grants(&request.grants)?;
        let (node, name) = (Arc::clone(&self.node), request.name.clone());
        let (wire, created) = (self.wire_grants(&grants), self.node.now().0);
        let work = async move { settings::create_key(&node, &caller, &name, grants).await };
        let mut made = to_the_end(&self.node, "make a key", work).await?;
        let (access_key_id, secret) = made.tell();
        let key = v1::AccessKey { access_key_id: access_key_id.to_owned(), name: request.name, grants: wire, created };
        Ok(Response::new(v1::CreatedKey { key: Some(key), secret_access_key: secret.reveal().to_owned() }))
    }

    async fn list_keys(&self, request: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysReply>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        settings::admin(&caller)?;
        if self.node.is_catching_up() {
            return Err(ObjectError::unavailable("this node is catching up and cannot tell yet which access keys there are").into());
        }
        let key = |key: &Arc<crate::cluster::keyring::Key>| v1::AccessKey {
            access_key_id: key.access_key_id.to_string(),
            name: key.name.clone(),
            grants: self.wire_grants(&key.grants),
            created: key.created.time().0,
        };
        Ok(Response::new(v1::ListKeysReply { keys: self.node.keyring.list().iter().map(key).collect() }))
    }

    async fn revoke_key(&self, request: Request<v1::RevokeKeyRequest>) -> Result<Response<v1::RevokeKeyReply>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let work = async move { settings::revoke_key(&node, &caller, &request.access_key_id).await };
        to_the_end(&self.node, "revoke a key", work).await?;
        Ok(Response::new(v1::RevokeKeyReply {}))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{Alone, dropped_after, signed, until};
    use afar_model::record::Setting;

    async fn make(service: &AdminService, name: &str) {
        service.create_bucket(signed(v1::CreateBucketRequest { name: name.into(), policy: None })).await.unwrap();
    }

    /// Whether there is a bucket of that name that takes objects.
    fn stands(node: &Node, name: &str) -> bool {
        node.buckets.find(name).unwrap().is_some_and(|bucket| !bucket.is_closed())
    }

    fn is(fact: bool) -> Result<(), &'static str> {
        if fact { Ok(()) } else { Err("not yet") }
    }

    #[tokio::test]
    async fn what_is_done_to_a_bucket_is_done_to_the_end_whenever_its_caller_goes_away() {
        let alone = Alone::start().await;
        let (node, service) = (&alone.node, AdminService::new(Arc::clone(&alone.node)));
        for polls in 1.. {
            let (name, other) = (format!("bucket-{polls}"), format!("other-{polls}"));
            let request = signed(v1::CreateBucketRequest { name: name.clone(), policy: None });
            let made = dropped_after(polls, service.create_bucket(request)).await;
            until(|| is(stands(node, &name))).await;
            let request = signed(v1::RenameBucketRequest { bucket: name.clone(), name: other.clone() });
            let renamed = dropped_after(polls, service.rename_bucket(request)).await;
            until(|| is(!stands(node, &name) && stands(node, &other))).await;
            let removed = dropped_after(polls, service.remove_bucket(signed(v1::RemoveBucketRequest { name: other.clone() }))).await;
            until(|| is(node.buckets.find(&other).unwrap().is_none())).await;
            if made.is_some() && renamed.is_some() && removed.is_some() {
                break;
            }
        }
        alone.stop().await;
    }

    /// Names of the access keys that were made, and of those that are good.
    fn keys(node: &Node) -> (Vec<String>, Vec<String>) {
        let made = node.store.settings().into_iter().filter_map(|record| match Setting::decode(record.body()) {
            Ok(Setting::KeyCreated { name, .. }) => Some(name),
            _ => None,
        });
        (made.collect(), node.keyring.list().iter().map(|key| key.name.clone()).collect())
    }

    #[tokio::test]
    async fn a_key_whose_caller_went_away_is_good_for_nobody_and_a_revoked_one_is_revoked() {
        let alone = Alone::start().await;
        let (node, service) = (&alone.node, AdminService::new(Arc::clone(&alone.node)));
        for polls in 1.. {
            let name = format!("key-{polls}");
            let grants = vec![v1::Grant { bucket: String::new(), rights: vec!["read".into()] }];
            let request = signed(v1::CreateKeyRequest { name: name.clone(), grants: grants.clone() });
            let Some(made) = dropped_after(polls, service.create_key(request)).await else {
                until(|| {
                    let (made, good) = keys(node);
                    if made.contains(&name) && !good.contains(&name) { Ok(()) } else { Err((made, good)) }
                })
                .await;
                continue;
            };
            let access_key_id = made.unwrap().into_inner().key.unwrap().access_key_id;
            assert!(keys(node).1.contains(&name), "whoever was told may use it");
            let revoked = dropped_after(1, service.revoke_key(signed(v1::RevokeKeyRequest { access_key_id }))).await;
            assert!(revoked.is_none(), "it takes longer than that");
            until(|| if keys(node).1.contains(&name) { Err("good") } else { Ok(()) }).await;
            break;
        }
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_bucket_that_was_left_closed_is_removed_if_it_is_empty_and_else_opened() {
        let alone = Alone::start().await;
        let (node, service) = (&alone.node, AdminService::new(Arc::clone(&alone.node)));
        let admin = auth::caller_at(&signed(()), node).unwrap();
        for (name, content) in [("empty", None), ("full", Some("content"))] {
            make(&service, name).await;
            if let Some(content) = content {
                let intent = crate::objects::put::Intent {
                    bucket: name.into(),
                    key: "k".into(),
                    upload: afar_model::id::UploadId::ZERO,
                    metadata: std::collections::BTreeMap::new(),
                    size: None,
                    retry: false,
                };
                let permit = node.transfer.admit(1, crate::limits::ADMISSION_WAIT).await.unwrap();
                let mut put = crate::objects::put::Put::begin(node, &admin, intent, permit).await.unwrap();
                put.piece(crate::objects::put::Piece::Data(content.into())).await.unwrap();
                put.finish(afar_model::id::ObjectId::of(content.as_bytes()), content.len() as u64).await.unwrap();
            }
            // As by a node that dies then.
            let bucket = node.buckets.find(name).unwrap().unwrap().id;
            let closed = Setting::BucketClosed { bucket, stamp: node.tick() };
            let record = record::Record::new(record::RecordKind::Setting, afar_model::id::BucketId::SYSTEM, closed.encode());
            node.keep(afar_store::AppendClass::Repair, vec![record]).await.unwrap();
            assert!(!stands(node, name));
            let removed = service.remove_bucket(signed(v1::RemoveBucketRequest { name: name.into() })).await;
            assert_eq!((removed.is_ok(), stands(node, name)), (content.is_none(), content.is_some()));
        }
        alone.stop().await;
    }
}
