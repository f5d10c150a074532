//! Listings: the sorted streams of an overlapping set of nodes, merged (rule 3). The end of a listing is an absence, so
//! it is never inferred from too few answers: then the listing fails, for a stale one makes mirrors delete live data.
use super::{
    buckets::Bucket,
    error::ObjectError,
    versions::{self, Listed, Page},
};
use crate::{cluster::keyring::Caller, cluster::peers::ChannelKind, limits, node::Node, replication::fetch};
use afar_model::{
    id::{BucketId, ObjectId, RecordId},
    layout::NodeIndex,
    record::{Right, VersionEntry},
};
use afar_proto::{convert, v1};
use afar_store::{ListFrom, limits::LIST_VERSIONS_PER_KEY_MAX};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only keys greater than this.
    pub after: String,
    /// Fold keys that contain this after the prefix; empty: none.
    pub delimiter: String,
    /// At most this many entries and folded prefixes; `None`: all.
    pub limit: Option<u64>,
    /// Every standing version, not only what keys hold now.
    pub versions: bool,
}

/// One line of a listing.
#[derive(Debug, Clone)]
pub enum Line {
    /// A version of a key.
    Entry {
        /// The key.
        key: String,
        /// The version.
        entry: VersionEntry,
        /// Whether it is what the key holds now.
        current: bool,
    },
    /// Keys with this prefix were folded.
    Prefix(String),
}

/// A page of merged keys, each with its newest versions.
struct Keys {
    keys: BTreeMap<String, Page>,
    /// Where to go on, if there may be more.
    next: Option<String>,
}

/// One node's answer to a page.
type Answer = (Vec<(String, Vec<VersionEntry>)>, bool);

async fn ask(node: &Arc<Node>, whom: NodeIndex, bucket: &Bucket, prefix: &str, after: &str) -> Option<Answer> {
    if whom == node.me {
        let from = ListFrom { prefix: prefix.to_owned(), after: Some(after.to_owned()).filter(|after| !after.is_empty()), from: None };
        let (reader, bucket) = (Arc::clone(node), bucket.id);
        let listed = tokio::task::spawn_blocking(move || reader.store.list(&bucket, &from, limits::LIST_PAGE)).await.ok()?.ok()?;
        let more = listed.len() >= limits::LIST_PAGE;
        return Some((listed, more)).filter(|_| !node.is_catching_up());
    }
    let mut client = fetch::peer(node, whom, ChannelKind::Control)?;
    let request = v1::ListVersionsRequest {
        bucket: convert::bytes(bucket.id.as_bytes()),
        prefix: prefix.to_owned(),
        after: after.to_owned(),
        limit: limits::LIST_PAGE as u32,
    };
    let reply = client.list_versions(fetch::with_deadline(request, limits::FETCH_DEADLINE)).await.ok()?.into_inner();
    if reply.catching_up {
        return None;
    }
    let keys = reply.keys.into_iter().map(|key| {
        let entries: Option<Vec<VersionEntry>> = key.entries.iter().map(|entry| VersionEntry::try_from(entry).ok()).collect();
        Some((key.key, entries?))
    });
    Some((keys.collect::<Option<Vec<_>>>()?, reply.more))
}

async fn page(node: &Arc<Node>, bucket: &Bucket, prefix: &str, after: &str) -> Result<Keys, ObjectError> {
    let mut failed = BTreeSet::new();
    loop {
        let asked = versions::quorum(node, bucket, &[], &failed)?;
        let answers = futures_util::future::join_all(asked.iter().map(|whom| ask(node, *whom, bucket, prefix, after))).await;
        let silent: Vec<NodeIndex> = asked.iter().zip(&answers).filter(|(_, answer)| answer.is_none()).map(|(whom, _)| *whom).collect();
        if silent.is_empty() {
            return Ok(merge(asked.into_iter().zip(answers.into_iter().flatten()).collect()));
        }
        failed.extend(silent);
    }
}

/// Pure. Only keys up to the least of the ends of unfinished answers are complete; the rest comes with the next page.
fn merge(answers: Vec<(NodeIndex, Answer)>) -> Keys {
    let end = answers.iter().filter(|(_, (_, more))| *more).filter_map(|(_, (keys, _))| keys.last().map(|(key, _)| key.clone())).min();
    let mut by_key: BTreeMap<String, Vec<(NodeIndex, Vec<VersionEntry>)>> = BTreeMap::new();
    for (from, (keys, _)) in answers {
        for (key, entries) in keys {
            if end.as_ref().is_none_or(|end| key <= *end) {
                by_key.entry(key).or_default().push((from, entries));
            }
        }
    }
    let keys = by_key.into_iter().map(|(key, answers)| (key, Page::of(answers, LIST_VERSIONS_PER_KEY_MAX))).collect();
    Keys { keys, next: end }
}

/// A walk over all keys of a bucket; each page comes from nodes whose answers overlap.
#[derive(Debug)]
pub struct Pages<'b> {
    bucket: &'b Bucket,
    after: Option<String>,
}

impl<'b> Pages<'b> {
    /// From the first key on.
    pub const fn of(bucket: &'b Bucket) -> Self {
        Self { bucket, after: Some(String::new()) }
    }

    /// The next keys, each with its newest versions; `None` at the end.
    ///
    /// # Errors
    /// If too few nodes answer to tell what is there.
    pub async fn next(&mut self, node: &Arc<Node>) -> Result<Option<BTreeMap<String, Page>>, ObjectError> {
        let Some(after) = self.after.take() else { return Ok(None) };
        let page = page(node, self.bucket, "", &after).await?;
        self.after = page.next;
        Ok(Some(page.keys))
    }
}

/// A listing under way: pages are fetched as they are needed. Between them it holds on to no [`Bucket`], and so to no layouts:
/// who reads it may take hours, and no transition waits for that.
#[derive(Debug)]
pub struct Cursor {
    node: Arc<Node>,
    bucket: BucketId,
    listing: Listing,
    after: Option<String>,
    left: u64,
    folded: Option<String>,
}

impl Cursor {
    /// Begins a listing that the caller may see.
    ///
    /// # Errors
    /// If there is no such bucket, or the caller may not.
    pub fn begin(node: &Arc<Node>, caller: &Caller, bucket: &str, listing: Listing) -> Result<Self, ObjectError> {
        let bucket = node.bucket(bucket)?;
        if !caller.may(Right::Read, &bucket.id) {
            return Err(ObjectError::Forbidden("list this bucket"));
        }
        let (after, left) = (Some(listing.after.clone()), listing.limit.unwrap_or(u64::MAX));
        Ok(Self { node: Arc::clone(node), bucket: bucket.id, listing, after, left, folded: None })
    }

    /// The next lines; `None` at the end.
    ///
    /// # Errors
    /// If too few nodes answer to tell what is there.
    pub async fn next(&mut self) -> Result<Option<Vec<Line>>, ObjectError> {
        let Some(after) = self.after.take().filter(|_| self.left > 0) else { return Ok(None) };
        // By the layouts that are open now.
        let bucket = self.node.buckets.get(&self.bucket).ok_or_else(|| ObjectError::NoSuchBucket(format!("@{}", self.bucket)))?;
        let page = page(&self.node, &bucket, &self.listing.prefix, &after).await?;
        let mut lines = Vec::new();
        for (key, newest) in page.keys {
            if self.left == 0 {
                break;
            }
            self.key(&bucket, key, newest, &mut lines).await?;
        }
        self.after = page.next;
        Ok(Some(lines))
    }

    async fn key(&mut self, bucket: &Bucket, key: String, newest: Page, lines: &mut Vec<Line>) -> Result<(), ObjectError> {
        let fold = self.fold(&key);
        if fold.is_some() && fold == self.folded {
            return Ok(());
        }
        let current = versions::current_from(&self.node, bucket, &key, newest.clone()).await?;
        let holds = current.as_ref().is_some_and(|current| current.entry.object.is_some());
        if !holds && !self.listing.versions {
            return Ok(());
        }
        if let Some(prefix) = fold {
            self.folded = Some(prefix.clone());
            self.left -= 1;
            lines.push(Line::Prefix(prefix));
            return Ok(());
        }
        let now = current.as_ref().map(|current| current.entry.id);
        if !self.listing.versions {
            self.show(&key, &current, now, lines);
            return Ok(());
        }
        let mut next = Some(newest);
        while let Some(page) = next.filter(|_| self.left > 0) {
            let stands = |listed: &&Listed| listed.entry.settled || Some(listed.entry.id) == now;
            self.show(&key, page.versions.iter().filter(stands), now, lines);
            next = page.older(&self.node, bucket, &key).await?;
        }
        Ok(())
    }

    fn show<'l>(&mut self, key: &str, listed: impl IntoIterator<Item = &'l Listed>, now: Option<RecordId>, lines: &mut Vec<Line>) {
        for Listed { entry, .. } in listed {
            self.left = self.left.saturating_sub(1);
            lines.push(Line::Entry { key: key.to_owned(), current: Some(entry.id) == now, entry: entry.clone() });
        }
    }

    fn fold(&self, key: &str) -> Option<String> {
        let delimiter = Some(&self.listing.delimiter).filter(|delimiter| !delimiter.is_empty())?;
        let rest = key.strip_prefix(&self.listing.prefix)?;
        let (folded, _) = rest.split_once(delimiter.as_str())?;
        Some(format!("{}{folded}{delimiter}", self.listing.prefix))
    }
}

/// A standing version with this content, the newest of the first key that has one. Walks the bucket: there is no view by
/// content.
///
/// # Errors
/// If too few nodes answer to tell.
pub async fn find_object(node: &Arc<Node>, bucket: &Bucket, object: &ObjectId) -> Result<Option<(String, Listed)>, ObjectError> {
    let mut pages = Pages::of(bucket);
    while let Some(keys) = pages.next(node).await? {
        for (key, newest) in keys {
            let mut next = Some(newest);
            while let Some(page) = next {
                let has_it = |listed: &&Listed| listed.entry.object.is_some_and(|(id, _)| id == *object);
                if let Some(listed) = versions::first_standing(node, bucket, &key, page.versions.iter().filter(has_it)).await? {
                    return Ok(Some((key, listed)));
                }
                next = page.older(node, bucket, &key).await?;
            }
        }
    }
    Ok(None)
}

/// Whether a bucket has no key that holds anything.
///
/// # Errors
/// If too few nodes answer to tell.
pub async fn is_empty(node: &Arc<Node>, bucket: &Bucket) -> Result<bool, ObjectError> {
    let mut pages = Pages::of(bucket);
    while let Some(keys) = pages.next(node).await? {
        for (key, newest) in keys {
            if versions::current_from(node, bucket, &key, newest).await?.is_some_and(|current| current.entry.object.is_some()) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_model::{hlc::Stamp, id::UploadId, units::UnixMillis};

    fn keys(names: &[&str]) -> Vec<(String, Vec<VersionEntry>)> {
        let entry = |name: &str| VersionEntry {
            stamp: Stamp::from_u64(1),
            id: RecordId::of(name.as_bytes()),
            upload: UploadId::ZERO,
            settled: true,
            object: None,
            inline: true,
            received: UnixMillis(0),
        };
        names.iter().map(|name| ((*name).to_owned(), vec![entry(name)])).collect()
    }

    #[test]
    fn rule_3_a_page_ends_where_the_shortest_unfinished_answer_ends() {
        let (a, b) = (NodeIndex(0), NodeIndex(1));
        let page = merge(vec![(a, (keys(&["a", "b", "c"]), true)), (b, (keys(&["a", "d"]), false))]);
        assert_eq!(page.keys.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(page.next.as_deref(), Some("c"));
        let page = merge(vec![(a, (keys(&["d"]), false)), (b, (keys(&["d", "e"]), false))]);
        assert_eq!((page.keys.len(), page.next), (2, None));
    }
}
