//! Buckets and access keys: settings that every node holds. Making or ending one is a write to every node that answers,
//! acknowledged only when it is far away like any other.
use super::{buckets::Bucket, error::ObjectError, list};
use crate::{
    cluster::keyring::{Caller, Secret},
    node::Node,
    replication::{
        lane::LaneKind,
        send::{Purpose, copy_to},
    },
};
use afar_model::{
    hlc::Stamp,
    id::BucketId,
    layout::NodeIndex,
    limits::SHARDS_DEFAULT,
    placement::{Geography, level, sites_of},
    plan,
    policy::{Durability, Policy},
    record::{Grant, Record, RecordKind, Setting, check_bucket_name},
};
use std::sync::Arc;

/// Makes a bucket.
///
/// # Errors
/// If the name is taken or impossible, the policy cannot be met, or a node of the layout does not answer: a name must be
/// known everywhere before it is used, or two buckets could have it.
pub async fn create_bucket(node: &Arc<Node>, caller: &Caller, name: &str, policy: Option<Policy>) -> Result<Arc<Bucket>, ObjectError> {
    admin(caller)?;
    check_bucket_name(name)?;
    let policy = policy.unwrap_or_else(|| node.default_policy());
    refuse_unmet(node, &policy).await?;
    if node.buckets.find(name)?.is_some() {
        return Err(taken(name));
    }
    let created = Setting::BucketCreated { name: name.to_owned(), policy, shards: SHARDS_DEFAULT, stamp: by_chance(node.tick()) };
    let id = BucketId::from(record(&created).id());
    // Closed until its name is its own: what is taken away then holds nothing, and nobody needs to be asked whether it does.
    let (closed, closing) = closed(node, id);
    let own_name = match write(node, &[closed, created], true).await {
        // Two that are made at the same moment at two nodes know nothing of each other when they begin. Whoever ends later finds
        // the other, here or where both arrived.
        Ok(written) if written.name_taken || node.buckets.other_named(name, &id).is_some() => Err(taken(name)),
        written => written.map(drop),
    };
    if let Err(why) = own_name {
        // What is left of it if this fails takes nothing, says so, and goes as any bucket does.
        if let Err(error) = write(node, &[Setting::BucketRemoved { bucket: id, stamp: node.tick() }], false).await {
            tracing::warn!(%id, %error, "a bucket that could not be made stays closed");
        }
        return Err(why);
    }
    // From here on it may hold something wherever this has arrived.
    open(node, id, &[closing], true).await?;
    node.buckets.get(&id).ok_or_else(|| removed_meanwhile(name))
}

/// A bucket that could never have all its copies would be reported as broken for its whole life. One that had them and lost
/// them with a site is another matter: that is what status is for.
async fn refuse_unmet(node: &Arc<Node>, policy: &Policy) -> Result<(), ObjectError> {
    let (policy, layout, refuted) = (policy.clone(), node.layout(), node.peers.refuted());
    if let Some(what) = plan::misnamed(&policy, &layout) {
        return Err(ObjectError::Invalid(what));
    }
    // To look for what would help takes a while.
    let look = move || {
        let geography = Geography { layout: &layout, refuted: &refuted };
        plan::unmet(&policy, &geography).map(|unmet| (unmet.why, plan::sentence(&plan::suggest(&policy, &geography))))
    };
    match node.lifecycle.blocking("look whether a policy can be met", look).await {
        Some(None) => Ok(()),
        Some(Some((why, help))) => Err(ObjectError::Infeasible { why, help }),
        None => Err(ObjectError::unavailable("the node is ending")),
    }
}

/// Calls a bucket something else. What is in it stays where it is.
///
/// # Errors
/// If there is none, the new name is taken or impossible, or a node of the layout does not answer.
pub async fn rename_bucket(node: &Arc<Node>, caller: &Caller, bucket: &str, name: &str) -> Result<Arc<Bucket>, ObjectError> {
    admin(caller)?;
    check_bucket_name(name)?;
    let bucket = node.bucket(bucket)?;
    if node.buckets.other_named(name, &bucket.id).is_some() {
        return Err(taken(name));
    }
    let rename = |name: &str| Setting::BucketRenamed { bucket: bucket.id, name: name.to_owned(), stamp: node.tick() };
    let written = write(node, &[rename(name)], true).await?;
    // As for a bucket that is made: its old name is given back to it.
    if written.name_taken || node.buckets.other_named(name, &bucket.id).is_some() {
        write(node, &[rename(&bucket.name)], true).await?;
        return Err(taken(name));
    }
    node.buckets.get(&bucket.id).ok_or_else(|| removed_meanwhile(name))
}

/// A little later than that, by chance. What two nodes make in the same millisecond would else be one record, thus one bucket:
/// each would be told that it is its own, and a third that takes its own away would take theirs.
fn by_chance(stamp: Stamp) -> Stamp {
    Stamp::from_u64(stamp.as_u64().saturating_add(u64::from(rand::random::<u16>())))
}

/// What is written everywhere is known here, unless somebody else has removed it since.
fn removed_meanwhile(name: &str) -> ObjectError {
    ObjectError::NoSuchBucket(name.to_owned())
}

fn taken(name: &str) -> ObjectError {
    ObjectError::Exists(format!("bucket {name:?} exists already"))
}

/// Ends a bucket that holds nothing.
///
/// # Errors
/// If it holds something, or that cannot be known now.
pub async fn remove_bucket(node: &Arc<Node>, caller: &Caller, name: &str) -> Result<(), ObjectError> {
    admin(caller)?;
    let bucket = node.bucket(name)?;
    let not_empty = |why| ObjectError::NotEmpty { bucket: bucket.name.clone(), why };
    if !list::is_empty(node, &bucket).await? {
        if bucket.is_closed() {
            // By somebody who was stopped halfway.
            open(node, bucket.id, &bucket.closings, false).await?;
        }
        return Err(not_empty("it holds objects"));
    }
    // Closed first, so that nothing can be acknowledged between the last look and the end.
    let (closed, closing) = closed(node, bucket.id);
    let empty = match write(node, &[closed], true).await {
        Ok(_) => list::is_empty(node, &bucket).await,
        // Some may have closed it.
        Err(error) if error.may_happen() => Err(error),
        Err(refused) => return Err(refused),
    };
    if matches!(empty, Ok(true)) {
        return write(node, &[Setting::BucketRemoved { bucket: bucket.id, stamp: node.tick() }], true).await.map(drop);
    }
    open(node, bucket.id, &[closing], false).await?;
    empty?;
    Err(not_empty("something was put while it was being removed"))
}

/// What closes a bucket, and its stamp: by chance, so that it is nobody else's.
fn closed(node: &Node, bucket: BucketId) -> (Setting, Stamp) {
    let stamp = by_chance(node.tick());
    (Setting::BucketClosed { bucket, stamp }, stamp)
}

/// Undoes these closings of a bucket. Where something is in it this need not be heard everywhere at once: who takes it for closed
/// a little longer does no harm.
async fn open(node: &Arc<Node>, bucket: BucketId, closings: &[Stamp], everywhere: bool) -> Result<(), ObjectError> {
    let openings: Vec<Setting> = closings.iter().map(|closed| Setting::BucketOpened { bucket, stamp: closed.next() }).collect();
    write(node, &openings, everywhere).await.map(drop)
}

/// A new access key. If this is dropped before anybody has been told, the key is revoked: nobody could ever use it, and nobody
/// would know what it is for.
pub struct NewKey {
    node: Arc<Node>,
    access_key_id: String,
    secret: Secret,
    told: bool,
}

impl NewKey {
    /// Its id and its secret, which nobody can ask for again.
    pub fn tell(&mut self) -> (&str, &Secret) {
        self.told = true;
        (&self.access_key_id, &self.secret)
    }
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl Drop for NewKey {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let (node, access_key_id) = (Arc::clone(&self.node), std::mem::take(&mut self.access_key_id));
        self.node.lifecycle.spawn_brief("revoke a key that nobody was told of", async move {
            let revoked = Setting::KeyRevoked { access_key_id: access_key_id.clone(), stamp: node.tick() };
            match write(&node, &[revoked], false).await {
                Ok(_) => tracing::info!(access_key_id, "whoever asked for this key has gone: it is revoked"),
                Err(error) => tracing::warn!(access_key_id, %error, "nobody was told of this key, and it is not revoked everywhere"),
            }
        });
    }
}

/// Makes an access key.
///
/// # Errors
/// If a bucket is unknown, or the write is not far away.
pub async fn create_key(node: &Arc<Node>, caller: &Caller, name: &str, grants: Vec<Grant>) -> Result<NewKey, ObjectError> {
    admin(caller)?;
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err(ObjectError::Invalid("a key's name must have 1 to 128 printable characters".into()));
    }
    if grants.is_empty() || grants.iter().any(|grant| grant.rights.is_empty()) {
        return Err(ObjectError::Invalid("a key without rights is good for nothing: name at least one".into()));
    }
    let access_key_id = format!("AFAR{}", text(10, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")?);
    let secret = Secret::new(text(40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")?);
    let sealed_secret = node.keyring.seal(&access_key_id, &secret).map_err(|error| ObjectError::Internal(error.to_string()))?;
    let setting =
        Setting::KeyCreated { access_key_id: access_key_id.clone(), name: name.to_owned(), sealed_secret, grants, stamp: node.tick() };
    let written = write(node, &[setting], false).await;
    let told = written.as_ref().is_err_and(|error| !error.may_happen());
    let key = NewKey { node: Arc::clone(node), access_key_id, secret, told };
    written.map(|_| key)
}

/// Ends an access key, for good.
///
/// # Errors
/// If there is none, or the write is not far away.
pub async fn revoke_key(node: &Arc<Node>, caller: &Caller, access_key_id: &str) -> Result<(), ObjectError> {
    admin(caller)?;
    if !node.buckets.present().keys.iter().any(|key| key.access_key_id == access_key_id) {
        return Err(ObjectError::NoSuchKey(access_key_id.chars().take(64).collect()));
    }
    let setting = Setting::KeyRevoked { access_key_id: access_key_id.to_owned(), stamp: node.tick() };
    write(node, &[setting], false).await.map(|_| ())
}

/// Only administrators make and remove buckets and keys.
///
/// # Errors
/// If the caller is none.
pub fn admin(caller: &Caller) -> Result<(), ObjectError> {
    if caller.is_admin() {
        Ok(())
    } else {
        Err(ObjectError::Forbidden("administer this cluster: it needs the admin right for all buckets"))
    }
}

/// Characters of an alphabet whose size divides 256 evenly, or nearly: 62 + 2 and 32 do.
fn text(length: usize, alphabet: &[u8]) -> Result<String, ObjectError> {
    let mut random = vec![0; length];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| ObjectError::Internal("the system gives no randomness".into()))?;
    Ok(random.iter().filter_map(|byte| alphabet.get(usize::from(*byte) % alphabet.len())).map(|c| char::from(*c)).collect())
}

/// Settings that are where they have to be.
struct Written {
    /// A node knows another bucket by the name that this one gives.
    name_taken: bool,
}

fn record(setting: &Setting) -> Record {
    Record::new(RecordKind::Setting, BucketId::SYSTEM, setting.encode())
}

/// Writes settings to every node that answers, to all of them if `everywhere`.
async fn write(node: &Arc<Node>, settings: &[Setting], everywhere: bool) -> Result<Written, ObjectError> {
    if let Some(trouble) = node.clock_trouble() {
        return Err(ObjectError::unavailable(format!("this node refuses writes: {trouble}")));
    }
    let layout = node.layout();
    let silent: Vec<NodeIndex> = layout.members().filter(|n| !node.can_store(*n)).collect();
    if everywhere && !silent.is_empty() {
        let names: Vec<String> = silent.iter().map(|n| format!("{}: {}", layout.node_name(*n), node.why_unusable(&[*n]))).collect();
        return Err(ObjectError::unavailable(format!("every node must know of this, and not all answer ({})", names.join("; "))));
    }
    let targets: Vec<NodeIndex> = layout.members().filter(|n| !silent.contains(n)).collect();
    if !enough(node, &targets) {
        let far = node.default_policy().min_distance;
        let why = format!(
            "settings must be on every node, or at two sites that count as {far} apart under the cluster's default policy, and neither can be had"
        );
        return Err(ObjectError::not_far(why));
    }
    let records: Vec<Record> = settings.iter().map(record).collect();
    let copies = targets.iter().map(|n| copy_to(node, *n, &records, Purpose::Repair, LaneKind::Small));
    let (mut durable, mut failures, mut name_taken) = (Vec::new(), Vec::new(), false);
    for (target, copied) in targets.iter().zip(futures_util::future::join_all(copies).await) {
        match copied {
            Ok(copied) => {
                durable.push(*target);
                name_taken |= copied.iter().any(|copied| copied.same_name.is_some());
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    node.reload_settings().await;
    if !enough(node, &durable) || (everywhere && !failures.is_empty()) {
        return Err(ObjectError::maybe(format!("not everywhere yet: {}", failures.join("; "))));
    }
    Ok(Written { name_taken })
}

/// Whether a setting on these nodes is where it has to be: on all of them, or far under the default policy.
fn enough(node: &Node, durable: &[NodeIndex]) -> bool {
    let layout = node.layout();
    let everywhere = layout.members().all(|n| durable.contains(&n));
    let refuted = node.peers.refuted();
    let geography = Geography { layout: &layout, refuted: &refuted };
    everywhere || level(&node.default_policy(), &sites_of(&layout, durable.iter().copied()), &geography) >= Some(Durability::Far)
}
