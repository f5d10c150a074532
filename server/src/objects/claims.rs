//! Rule 15 among many: of several puts that may make a key and never replace it, at most one does, wherever they come in.
//!
//! Such a put first *claims* the key: at every node that its version will go to, and at so many that their answers cover.
//! A node gives a key to one put at a time, for [`limits::CLAIM_FOR`] at most, and answers with the key's versions as they
//! are once it has. A version that makes a key is stored only where its own put's claim is in force at that moment, and is
//! acknowledged only if it is durable before the first of its claims can have ended. Claims live in memory: one that a
//! restart has forgotten stores nothing.
//!
//! Why that is enough: let two puts A and B of one key both be acknowledged. B's answers cover, so one of them came from a
//! node *y* that A's version is durable at; in the same way one of A's came from a node *x* that holds B's. If *y* had A's
//! version when it answered B, B has seen it. Else *y* has stored it later, under A's claim, thus after B's there had ended,
//! thus after B was durable; and likewise A was durable before B's version was stored at *x*: each before the other.
//!
//! Where two hold a part of what both need, the one with the lesser upload id keeps its part and asks again, and the other
//! gives its own back. Nodes of an earlier version know no claims: while there are some, two puts at once may both succeed.
use super::{
    buckets::Bucket,
    commit,
    error::ObjectError,
    versions::{self, Listed, Page},
};
use crate::{cluster::peers::ChannelKind, limits, node::Node, replication::fetch};
use afar_model::{
    id::{BucketId, UploadId},
    layout::NodeIndex,
    record::VersionEntry,
};
use afar_proto::{convert, v1};
use parking_lot::Mutex;
use rand::Rng as _;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tokio::time::Instant;
use tonic::Code;

/// The claims that this node has granted.
#[derive(Debug, Default)]
pub struct Claims {
    held: Mutex<HashMap<(BucketId, String), Held>>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    by: UploadId,
    until: Instant,
}

impl Claims {
    /// Gives the key to a put, or to the one that has it already for longer.
    ///
    /// # Errors
    /// If another has it: which. The least of all, which nobody has, if there are too many to remember one more.
    pub fn take(&self, bucket: &BucketId, key: &str, upload: UploadId) -> Result<(), UploadId> {
        let (now, name) = (Instant::now(), (*bucket, key.to_owned()));
        let mut held = self.held.lock();
        if held.len() >= limits::CLAIMS_MAX {
            held.retain(|_, held| held.until > now);
        }
        match held.get(&name) {
            Some(other) if other.by != upload && other.until > now => return Err(other.by),
            None if held.len() >= limits::CLAIMS_MAX => return Err(UploadId::ZERO),
            _ => {}
        }
        held.insert(name, Held { by: upload, until: now + limits::CLAIM_FOR });
        Ok(())
    }

    /// A put gives the key back, if it has it.
    pub fn release(&self, bucket: &BucketId, key: &str, upload: UploadId) {
        let (mut held, name) = (self.held.lock(), (*bucket, key.to_owned()));
        if held.get(&name).is_some_and(|held| held.by == upload) {
            held.remove(&name);
        }
    }

    /// Whether a put has the key now.
    pub fn is_held(&self, bucket: &BucketId, key: &str, by: UploadId) -> bool {
        self.held.lock().get(&(*bucket, key.to_owned())).is_some_and(|held| held.by == by && held.until > Instant::now())
    }
}

/// A put's claim on a key, given back when dropped.
pub struct Claim {
    node: Arc<Node>,
    bucket: BucketId,
    key: String,
    upload: UploadId,
    /// Who was asked, and may have granted it.
    asked: BTreeSet<NodeIndex>,
    until: Instant,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("key", &self.key).field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// What came of the wish to make a key.
#[derive(Debug)]
pub enum Claimed {
    /// It holds nothing, and nobody else makes it meanwhile.
    Free(Claim),
    /// It holds this.
    Holds(Listed),
}

/// What a node says to a claim.
enum Answer {
    /// Granted, with what its views hold; `None` if that proves nothing.
    Granted(Option<Vec<VersionEntry>>),
    HeldBy(UploadId),
    Silent,
}

/// Claims a key for a put.
///
/// # Errors
/// If too few nodes answer, or others want the same key for too long.
pub async fn claim(node: &Arc<Node>, bucket: &Bucket, key: &str, upload: UploadId) -> Result<Claimed, ObjectError> {
    let patience = Instant::now() + limits::CLAIM_WAIT;
    let mut claim =
        Claim { node: Arc::clone(node), bucket: bucket.id, key: key.to_owned(), upload, asked: BTreeSet::new(), until: Instant::now() };
    // Who does not answer at all, and those besides whose views prove nothing.
    let (mut silent, mut blind) = (BTreeSet::new(), BTreeSet::new());
    let mut pause = limits::CLAIM_PAUSE;
    loop {
        let targets = commit::targets(node, bucket, bucket.version_partition(key), &silent)?.nodes;
        let quorum = versions::quorum(node, bucket, &targets, &silent.union(&blind).copied().collect())?;
        let whom: BTreeSet<NodeIndex> = targets.into_iter().chain(quorum.iter().copied()).collect();
        claim.until = Instant::now() + limits::CLAIM_FOR;
        claim.asked.extend(&whom);
        let asking = &claim;
        let answers = futures_util::future::join_all(whom.iter().map(|n| async move { (*n, asking.ask(*n).await) })).await;
        let (mut held_by, mut entries, mut failed) = (None, Vec::new(), false);
        for (from, answer) in answers {
            match answer {
                Answer::Granted(Some(listed)) => entries.push((from, listed)),
                Answer::Granted(None) => failed |= quorum.contains(&from) && blind.insert(from),
                Answer::Silent => failed |= silent.insert(from),
                Answer::HeldBy(other) => held_by = Some(held_by.map_or(other, |least: UploadId| least.min(other))),
            }
        }
        if let Some(other) = held_by {
            if Instant::now() > patience {
                return Err(ObjectError::Busy(format!("others are putting {key:?} at this moment")));
            }
            if other < upload {
                claim.give_back().await;
                pause = (pause * 2).min(limits::CLAIM_PAUSE_MAX);
            }
            let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(pause).await;
        } else if !failed {
            let newest = Page::of(entries, limits::VERSIONS_PAGE);
            let current = versions::current_from(node, bucket, key, newest).await?.filter(|current| current.entry.object.is_some());
            return Ok(current.map_or(Claimed::Free(claim), Claimed::Holds));
        }
    }
}

impl Claim {
    /// Who was not asked, and must not be sent the version.
    pub fn strangers(&self, eligible: &[NodeIndex]) -> impl Iterator<Item = NodeIndex> {
        eligible.iter().copied().filter(|node| !self.asked.contains(node))
    }

    /// Whether some node may have given the key to somebody else by now.
    pub fn may_be_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn ask(&self, whom: NodeIndex) -> Answer {
        let Self { node, bucket, key, upload, .. } = self;
        if whom == node.me {
            return match node.claims.take(bucket, key, *upload) {
                Ok(()) => Answer::Granted(versions::ask(node, whom, bucket, key, None).await),
                Err(other) => Answer::HeldBy(other),
            };
        }
        match self.send(whom, false).await {
            Ok(reply) => match reply.held_by.map(|other| convert::id("held_by", &other)) {
                Some(Ok(other)) => Answer::HeldBy(other),
                Some(Err(_)) => Answer::Silent,
                None => Answer::Granted(versions::entries(&reply.entries).filter(|_| !reply.catching_up)),
            },
            Err(Some(Code::Unimplemented)) => Answer::Granted(versions::ask(node, whom, bucket, key, None).await),
            Err(_) => Answer::Silent,
        }
    }

    async fn send(&self, to: NodeIndex, release: bool) -> Result<v1::ClaimReply, Option<Code>> {
        let mut client = fetch::peer(&self.node, to, ChannelKind::Control).ok_or(None)?;
        let request = v1::ClaimRequest {
            bucket: convert::bytes(self.bucket.as_bytes()),
            key: self.key.clone(),
            upload: convert::bytes(self.upload.as_bytes()),
            release,
            limit: limits::VERSIONS_PAGE as u32,
        };
        let reply = client.claim(fetch::with_deadline(request, limits::ASK_DEADLINE)).await;
        reply.map(tonic::Response::into_inner).map_err(|status| Some(status.code()))
    }

    /// Gives back whatever may have been granted.
    async fn give_back(&mut self) {
        let (asked, this) = (std::mem::take(&mut self.asked), &*self);
        let releases = asked.into_iter().map(|whom| async move {
            if whom == this.node.me {
                this.node.claims.release(&this.bucket, &this.key, this.upload);
            } else {
                // If that does not arrive, it ends by itself.
                let _ = this.send(whom, true).await;
            }
        });
        futures_util::future::join_all(releases).await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        if asked.is_empty() {
            return;
        }
        let (node, key) = (Arc::clone(&self.node), std::mem::take(&mut self.key));
        let mut left = Self { node, key, asked, ..*self };
        let lifecycle = self.node.lifecycle.clone();
        lifecycle.spawn_brief("give a claim back", async move { left.give_back().await });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BUCKET: BucketId = BucketId::ZERO;
    const A: UploadId = UploadId::from_bytes([1; UploadId::LENGTH]);
    const B: UploadId = UploadId::from_bytes([2; UploadId::LENGTH]);

    #[tokio::test(start_paused = true)]
    async fn rule_15_a_key_is_one_puts_until_it_is_given_back_or_the_time_is_over() {
        let claims = Claims::default();
        assert!(!claims.is_held(&BUCKET, "k", A));
        assert_eq!((claims.take(&BUCKET, "k", A), claims.take(&BUCKET, "k", B)), (Ok(()), Err(A)));
        assert!(claims.is_held(&BUCKET, "k", A) && !claims.is_held(&BUCKET, "k", B));
        assert_eq!(claims.take(&BUCKET, "other", B), Ok(()));
        claims.release(&BUCKET, "k", B);
        assert_eq!(claims.take(&BUCKET, "k", B), Err(A), "only who has it gives it back");
        claims.release(&BUCKET, "k", A);
        assert_eq!(claims.take(&BUCKET, "k", B), Ok(()));
        // Asked for again it lasts longer, and then no more.
        tokio::time::advance(limits::CLAIM_FOR / 2).await;
        assert_eq!(claims.take(&BUCKET, "k", B), Ok(()));
        tokio::time::advance(limits::CLAIM_FOR / 2).await;
        assert!(claims.is_held(&BUCKET, "k", B));
        tokio::time::advance(limits::CLAIM_FOR / 2).await;
        assert!(!claims.is_held(&BUCKET, "k", B));
        assert_eq!(claims.take(&BUCKET, "k", A), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn claims_are_bounded_and_those_that_are_over_make_room() {
        let claims = Claims::default();
        for n in 0..limits::CLAIMS_MAX {
            claims.take(&BUCKET, &n.to_string(), A).unwrap();
        }
        assert_eq!(claims.take(&BUCKET, "one more", B), Err(UploadId::ZERO));
        assert_eq!(claims.take(&BUCKET, "7", A), Ok(()), "that one is remembered");
        tokio::time::advance(limits::CLAIM_FOR).await;
        assert_eq!(claims.take(&BUCKET, "one more", B), Ok(()));
    }
}
