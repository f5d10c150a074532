//! Access keys: who may do what, by an id and a secret.
//!
//! The administrator's key comes from the node's folder, all others from records of the system bucket, where their secrets
//! are sealed with the cluster's secret. Secrets are never logged and never printed: their types do not allow it.
use afar_model::{
    hlc::Stamp,
    id::BucketId,
    record::{Grant, Right},
};
use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::{collections::HashMap, fmt, sync::Arc};

/// Text that must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for sealing, and to show it once to who created it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What all nodes of a cluster share and nobody else knows.
#[derive(Clone)]
pub struct ClusterSecret([u8; 32]);

impl ClusterSecret {
    /// From its bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A key for one purpose.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.0)
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The administrator's key, from the node's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminKey {
    /// Its public part.
    pub access_key_id: String,
    /// Its secret part.
    pub secret_access_key: Secret,
}

/// An access key as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Its public part.
    pub access_key_id: String,
    /// What people call it.
    pub name: String,
    /// Its secret, as [`KeyRing::seal`] made it.
    pub sealed_secret: Vec<u8>,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// When it was made.
    pub created: Stamp,
}

/// An access key that can be used.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its public part.
    pub access_key_id: Arc<str>,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub grants: Arc<[Grant]>,
    /// When it was made.
    pub created: Stamp,
    digest: blake3::Hash,
}

/// Who asks, proved.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its key's public part.
    pub access_key_id: Arc<str>,
    /// What it may do.
    pub grants: Arc<[Grant]>,
}

impl Caller {
    /// Whether it may do that in that bucket.
    pub fn may(&self, right: Right, bucket: &BucketId) -> bool {
        let applies = |grant: &Grant| grant.bucket.is_none_or(|granted| granted == *bucket);
        self.grants.iter().filter(|grant| applies(grant)).any(|grant| grant.rights.contains(&right) || grant.rights.contains(&Right::Admin))
    }

    /// Whether it may make and remove buckets and keys.
    pub fn is_admin(&self) -> bool {
        self.grants.iter().any(|grant| grant.bucket.is_none() && grant.rights.contains(&Right::Admin))
    }
}

/// A sealed secret that cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secret was not sealed with this cluster's secret, or is damaged")]
pub struct NotOpened;

/// Randomness or the cipher failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secret could not be sealed: the system gave no randomness")]
pub struct NotSealed;

/// Format of a sealed secret: this byte, a random nonce, then ciphertext and tag. GCM-SIV forgives a repeated nonce.
const SEALED_1: u8 = 1;

/// Every access key that this node knows.
pub struct KeyRing {
    admin: Arc<Key>,
    keys: ArcSwap<HashMap<String, Arc<Key>>>,
    sealing: LessSafeKey,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("keys", &self.keys.load().len()).finish_non_exhaustive()
    }
}

impl KeyRing {
    /// Only the administrator's key.
    ///
    /// # Errors
    /// If the cipher refuses the key, which it does not.
    pub fn new(secret: &ClusterSecret, admin: &AdminKey) -> Result<Self, NotSealed> {
        let sealing = UnboundKey::new(&AES_256_GCM_SIV, &secret.derive("afar 2026 access key secrets")).map_err(|_| NotSealed)?;
        let grants = vec![Grant { bucket: None, rights: vec![Right::Admin] }];
        let admin = Key {
            access_key_id: admin.access_key_id.as_str().into(),
            name: "admin".into(),
            grants: grants.into(),
            created: Stamp::ZERO,
            digest: digest(admin.secret_access_key.reveal()),
        };
        Ok(Self { admin: Arc::new(admin), keys: ArcSwap::default(), sealing: LessSafeKey::new(sealing) })
    }

    /// Takes these as all keys beside the administrator's. Those that cannot be opened are left out and named: one bad
    /// record must not lock out everybody else.
    pub fn replace(&self, stored: Vec<StoredKey>) -> Vec<(String, NotOpened)> {
        let mut keys = HashMap::with_capacity(stored.len());
        let mut unusable = Vec::new();
        for key in stored {
            match self.open(&key.access_key_id, &key.sealed_secret) {
                Ok(secret) => {
                    let usable = Key {
                        access_key_id: key.access_key_id.as_str().into(),
                        name: key.name,
                        grants: key.grants.into(),
                        created: key.created,
                        digest: digest(secret.reveal()),
                    };
                    keys.insert(key.access_key_id, Arc::new(usable));
                }
                Err(error) => unusable.push((key.access_key_id, error)),
            }
        }
        self.keys.store(Arc::new(keys));
        unusable
    }

    /// Whose id and secret these are. Takes as long for an unknown id as for a wrong secret.
    pub fn authenticate(&self, access_key_id: &str, secret: &str) -> Option<Caller> {
        let keys = self.keys.load();
        let known = if *self.admin.access_key_id == *access_key_id { Some(&self.admin) } else { keys.get(access_key_id) };
        let expected = known.map_or_else(|| digest(""), |key| key.digest);
        // Comparison of hashes takes the same time wherever they differ.
        let matches = digest(secret) == expected;
        let key = known.filter(|_| matches && !secret.is_empty())?;
        Some(Caller { access_key_id: Arc::clone(&key.access_key_id), grants: Arc::clone(&key.grants) })
    }

    /// Every key beside the administrator's, by id.
    pub fn list(&self) -> Vec<Arc<Key>> {
        let mut keys: Vec<Arc<Key>> = self.keys.load().values().cloned().collect();
        keys.sort_by(|a, b| a.access_key_id.cmp(&b.access_key_id));
        keys
    }

    /// Encrypts a key's secret for its record; only for this id can it be opened again.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn seal(&self, access_key_id: &str, secret: &Secret) -> Result<Vec<u8>, NotSealed> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| NotSealed)?;
        let mut body = secret.reveal().as_bytes().to_vec();
        let aad = Aad::from(associated(access_key_id));
        self.sealing.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body).map_err(|_| NotSealed)?;
        Ok([&[SEALED_1], nonce.as_slice(), &body].concat())
    }

    /// Decrypts a key's secret from its record.
    ///
    /// # Errors
    /// If it was sealed for another id or cluster, or is damaged.
    pub fn open(&self, access_key_id: &str, sealed: &[u8]) -> Result<Secret, NotOpened> {
        let (&format, rest) = sealed.split_first().ok_or(NotOpened)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).filter(|_| format == SEALED_1).ok_or(NotOpened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened)?;
        let mut body = body.to_vec();
        let text = self.sealing.open_in_place(nonce, Aad::from(associated(access_key_id)), &mut body).map_err(|_| NotOpened)?;
        String::from_utf8(text.to_vec()).map(Secret).map_err(|_| NotOpened)
    }
}

fn associated(access_key_id: &str) -> Vec<u8> {
    format!("afar access key 1 {access_key_id}").into_bytes()
}

/// Equal lengths to compare, whatever was sent.
fn digest(secret: &str) -> blake3::Hash {
    blake3::Hasher::new_derive_key("afar 2026 comparison of secrets").update(secret.as_bytes()).finalize()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ring(byte: u8) -> KeyRing {
        let admin = AdminKey { access_key_id: "ADMIN".into(), secret_access_key: Secret::new("s3cret") };
        KeyRing::new(&ClusterSecret::new([byte; 32]), &admin).unwrap()
    }

    fn stored(ring: &KeyRing, id: &str, secret: &str, grants: Vec<Grant>) -> StoredKey {
        let sealed_secret = ring.seal(id, &Secret::new(secret)).unwrap();
        StoredKey { access_key_id: id.into(), name: id.to_lowercase(), sealed_secret, grants, created: Stamp::ZERO }
    }

    #[test]
    fn only_the_right_secret_opens_the_door() {
        let ring = ring(1);
        assert!(ring.authenticate("ADMIN", "s3cret").unwrap().is_admin());
        for (id, secret) in [("ADMIN", "s3cre"), ("ADMIN", ""), ("admin", "s3cret"), ("", ""), ("NOBODY", "")] {
            assert!(ring.authenticate(id, secret).is_none(), "{id} {secret}");
        }
    }

    #[test]
    fn rights_are_per_bucket() {
        let ring = ring(1);
        let (mine, other) = (BucketId::from_bytes([1; 32]), BucketId::from_bytes([2; 32]));
        let grants = vec![Grant { bucket: Some(mine), rights: vec![Right::Read, Right::Append] }];
        assert!(ring.replace(vec![stored(&ring, "K", "secret", grants)]).is_empty());
        let caller = ring.authenticate("K", "secret").unwrap();
        assert!(caller.may(Right::Read, &mine) && caller.may(Right::Append, &mine));
        assert!(!caller.may(Right::Write, &mine) && !caller.may(Right::Read, &other) && !caller.is_admin());
        assert!(ring.authenticate("ADMIN", "s3cret").unwrap().may(Right::Delete, &other));
        ring.replace(vec![]);
        assert!(ring.authenticate("K", "secret").is_none(), "revoked");
    }

    #[test]
    fn a_secret_opens_only_for_its_id_and_in_its_cluster() {
        let ours = ring(1);
        let sealed = ours.seal("K", &Secret::new("hello")).unwrap();
        assert_eq!(ours.open("K", &sealed).unwrap().reveal(), "hello");
        assert_eq!(ours.open("L", &sealed), Err(NotOpened));
        assert_eq!(ring(2).open("K", &sealed), Err(NotOpened));
        for cut in 0..sealed.len() {
            assert_eq!(ours.open("K", &sealed[..cut]), Err(NotOpened), "cut at {cut}");
        }
        assert_eq!(ring(2).replace(vec![stored(&ours, "K", "x", vec![])]), vec![("K".into(), NotOpened)]);
    }

    #[test]
    fn secrets_do_not_print() {
        let printed = format!("{:?} {:?} {:?}", Secret::new("hush"), ClusterSecret::new([7; 32]), ring(7));
        assert!(!printed.contains("hush") && !printed.contains("7, 7"), "{printed}");
    }
}
