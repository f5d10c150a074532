//! Buckets and access keys over gRPC: decode, ask the domain, encode.
use super::{
    auth,
    meta::{self, status},
    objects::invalid,
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
        if bucket.closed {
            warning.push_str(" it takes nothing: it is being made or removed; if that has failed, `afar bucket rm` ends it");
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
        let bucket = settings::create_bucket(&self.node, &caller, &request.name, policy).await?;
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
        settings::remove_bucket(&self.node, &caller, &request.into_inner().name).await?;
        Ok(Response::new(v1::RemoveBucketReply {}))
    }

    async fn rename_bucket(&self, request: Request<v1::RenameBucketRequest>) -> Result<Response<v1::Bucket>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let request = request.into_inner();
        let bucket = settings::rename_bucket(&self.node, &caller, &request.bucket, &request.name).await?;
        Ok(Response::new(self.bucket(&bucket)))
    }

    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Result<Response<v1::CreatedKey>, Status> {
        let caller = auth::caller_at(&request, &self.node)?;
        let request = request.into_inner();
        settings::admin(&caller)?;
        let grants = self.grants(&request.grants)?;
        let (access_key_id, secret) = settings::create_key(&self.node, &caller, &request.name, grants.clone()).await?;
        let key = v1::AccessKey { access_key_id, name: request.name, grants: self.wire_grants(&grants), created: self.node.now().0 };
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
        settings::revoke_key(&self.node, &caller, &request.into_inner().access_key_id).await?;
        Ok(Response::new(v1::RevokeKeyReply {}))
    }
}
