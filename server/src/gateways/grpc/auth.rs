//! Who asks: `authorization: Bearer ID.SECRET`. One answer for everything that is wrong with it, so that nothing can be
//! learnt from it; secrets are never logged.
use crate::{
    cluster::keyring::{Caller, KeyRing},
    gateways::grpc::meta::{self, exit},
    node::Node,
};
use afar_model::{id::BucketId, record::Right};
use tonic::{Code, Request, Status, metadata::MetadataMap};

/// Who sent this request.
///
/// # Errors
/// UNAUTHENTICATED, exit 12, in the same words whatever is wrong.
pub fn caller<T>(request: &Request<T>, keyring: &KeyRing) -> Result<Caller, Status> {
    from_metadata(request.metadata(), keyring)
}

/// As [`caller`], at a node that may not have heard of every key yet: then an unknown one is no verdict, and another node
/// should be asked.
///
/// # Errors
/// As [`caller`]; UNAVAILABLE, exit 14, while the node is catching up.
pub fn caller_at<T>(request: &Request<T>, node: &Node) -> Result<Caller, Status> {
    caller(request, &node.keyring).map_err(|refused| {
        if node.is_catching_up() {
            let message = "this node is catching up and may not know this access key yet: ask another, or retry";
            return meta::status(Code::Unavailable, exit::UNREACHABLE, message);
        }
        refused
    })
}

/// As [`caller`], from the metadata alone.
///
/// # Errors
/// As [`caller`].
pub fn from_metadata(metadata: &MetadataMap, keyring: &KeyRing) -> Result<Caller, Status> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    header.and_then(|header| bearer(header, keyring)).ok_or_else(unauthenticated)
}

/// Whose `Bearer ID.SECRET` this is.
pub fn bearer(header: &str, keyring: &KeyRing) -> Option<Caller> {
    let (id, secret) = header.strip_prefix("Bearer ")?.trim().split_once('.')?;
    keyring.authenticate(id, secret)
}

/// Refuses a caller that may not do that in that bucket.
///
/// # Errors
/// PERMISSION_DENIED, exit 15.
pub fn require(caller: &Caller, right: Right, bucket: &BucketId, what: &str) -> Result<(), Status> {
    if caller.may(right, bucket) { Ok(()) } else { Err(denied(caller, what)) }
}

/// Refuses a caller that is no administrator.
///
/// # Errors
/// PERMISSION_DENIED, exit 15.
pub fn require_admin(caller: &Caller, what: &str) -> Result<(), Status> {
    if caller.is_admin() { Ok(()) } else { Err(denied(caller, what)) }
}

fn denied(caller: &Caller, what: &str) -> Status {
    let message = format!("access key {} may not {what}: ask an administrator for the right", caller.access_key_id);
    meta::status(Code::PermissionDenied, exit::DENIED, message)
}

fn unauthenticated() -> Status {
    let message = "the access key is missing, unknown, revoked or its secret is wrong: set AFAR_ACCESS_KEY_ID and AFAR_SECRET_ACCESS_KEY";
    meta::status(Code::Unauthenticated, exit::AUTHENTICATION, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::keyring::{AdminKey, ClusterSecret, Secret};

    fn ask(header: Option<&str>) -> Result<Caller, Status> {
        let admin = AdminKey { access_key_id: "AFAR1".into(), secret_access_key: Secret::new("abc.def") };
        let ring = KeyRing::new(&ClusterSecret::new([1; 32]), &admin).unwrap();
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().unwrap());
        }
        caller(&request, &ring)
    }

    #[test]
    fn the_right_key_opens_and_a_secret_may_hold_dots() {
        assert_eq!(&*ask(Some("Bearer AFAR1.abc.def")).unwrap().access_key_id, "AFAR1");
    }

    #[test]
    fn everything_else_gets_one_answer() {
        let bad = [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer AFAR1"),
            Some("Bearer AFAR1."),
            Some("Basic AFAR1.abc.def"),
            Some("Bearer AFAR2.abc.def"),
        ];
        for header in bad {
            let status = ask(header).unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::Unauthenticated, unauthenticated().message()), "{header:?}");
            assert_eq!(status.metadata().get(afar_proto::EXIT_METADATA).unwrap(), "12");
        }
    }

    #[test]
    fn rights_are_asked_for_by_name() {
        let nobody = Caller { access_key_id: "K".into(), grants: Vec::new().into() };
        let status = require(&nobody, Right::Write, &BucketId::SYSTEM, "write to bucket \"a\"").unwrap_err();
        assert_eq!(
            (status.code(), status.metadata().get(afar_proto::EXIT_METADATA).unwrap().as_bytes()),
            (Code::PermissionDenied, &b"15"[..])
        );
        assert!(require_admin(&nobody, "make buckets").is_err());
    }
}
