//! The sorted views of one directory, and their merging over several: versions of a key, listings, walks.
//!
//! A view is complete or says that it is not; a listing that lacks something would make a client delete live data (rule 3).
use crate::{
    directory::Directory,
    index::keys::{self, ViewRow, table},
    limits,
    types::{IdEntry, IdRange, ListFrom, NotReady, VersionCursor, VersionRow},
};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, RecordId},
    record::{RecordKey, RecordKind, VersionEntry},
};
use std::sync::atomic::Ordering;

type Listed = Vec<(String, Vec<VersionEntry>)>;

impl Directory {
    /// An error unless every view is complete.
    ///
    /// # Errors
    /// How far the rebuild is.
    pub fn require_views(&self) -> Result<(), NotReady> {
        if self.views_ready() { Ok(()) } else { Err(self.not_ready()) }
    }

    fn not_ready(&self) -> NotReady {
        let thousandths = self.progress.load(Ordering::Relaxed).min(999) as u16;
        NotReady { progress: f32::from(thousandths) / 1000.0 }
    }

    /// Scans rows; an unusable index means that the views are not ready.
    fn rows(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), NotReady> {
        self.require_views()?;
        self.scan(from, to, visit).map_err(|_| self.not_ready())?;
        self.require_views() // a rebuild may have begun under the scan
    }

    /// The versions of a key, newest first, those older than `before` if that is given.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn versions(
        &self,
        bucket: &BucketId,
        key: &str,
        before: Option<(Stamp, RecordId)>,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, NotReady> {
        let prefix = keys::view_key(bucket, key);
        let from = before.map_or_else(|| prefix.clone(), |(stamp, id)| [keys::view(bucket, key, stamp, &id).as_slice(), &[0]].concat());
        let mut versions = Vec::new();
        if limit > 0 {
            self.rows(&from, &keys::after_prefix(&prefix), &mut |row, value| {
                versions.extend(entry(row, value).map(|(_, entry)| entry));
                versions.len() < limit
            })?;
        }
        Ok(versions)
    }

    /// One version of a key.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn version(&self, bucket: &BucketId, key: &str, stamp: Stamp, id: RecordId) -> Result<Option<VersionEntry>, NotReady> {
        let row = keys::view(bucket, key, stamp, &id);
        let mut found = None;
        self.rows(&row, &[row.as_slice(), &[0]].concat(), &mut |row, value| {
            found = entry(row, value).map(|(_, entry)| entry);
            false
        })?;
        Ok(found)
    }

    /// Keys ascending, each with its newest versions.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn list(&self, bucket: &BucketId, from: &ListFrom, limit: usize) -> Result<Listed, NotReady> {
        let prefix = keys::view_prefix(bucket, &from.prefix);
        let end = keys::after_prefix(&prefix);
        let mut start = prefix;
        if let Some(first) = &from.from {
            start = start.max(keys::view_prefix(bucket, first));
        }
        if let Some(after) = &from.after {
            start = start.max(keys::after_prefix(&keys::view_key(bucket, after)));
        }
        let mut listed: Listed = Vec::new();
        while listed.len() < limit {
            // A key with very many versions is left by a jump, not by walking over all of them.
            let mut jump = None;
            self.rows(&start, &end, &mut |row, value| {
                let Some((key, entry)) = entry(row, value) else { return true };
                let full = listed.len() == limit;
                match listed.last_mut() {
                    Some((last, versions)) if *last == key => {
                        if versions.len() == limits::LIST_VERSIONS_PER_KEY_MAX {
                            jump = Some(keys::after_prefix(&keys::view_key(bucket, &key)));
                            return false;
                        }
                        versions.push(entry);
                    }
                    _ if full => return false,
                    _ => listed.push((key, vec![entry])),
                }
                true
            })?;
            match jump {
                Some(next) => start = next,
                None => break,
            }
        }
        Ok(listed)
    }

    /// Records by id.
    ///
    /// # Errors
    /// If the index is being rebuilt.
    pub fn ids(&self, range: IdRange, after: Option<&RecordKey>, kinds: &[RecordKind], limit: usize) -> Result<Vec<IdEntry>, NotReady> {
        let mut from = [&[table::PRIMARY][..], &range.first.to_be_bytes()].concat();
        let to = keys::after_prefix(&[&[table::PRIMARY][..], &range.last.to_be_bytes()].concat());
        if let Some(after) = after {
            from = from.max([keys::primary(after).as_slice(), &[0]].concat());
        }
        let mut found = Vec::new();
        if limit > 0 {
            self.rows(&from, &to, &mut |row, value| {
                if let (Some(key), Some(place)) = (keys::parse_record(row), keys::parse_place(value))
                    && (kinds.is_empty() || kinds.contains(&place.kind))
                {
                    found.push(IdEntry { key, kind: place.kind, length: place.length });
                }
                found.len() < limit
            })?;
        }
        Ok(found)
    }

    /// All versions of all buckets; `noted`: those as well of which only a note is left.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn version_rows(&self, after: Option<&VersionCursor>, noted: bool, limit: usize) -> Result<Vec<VersionRow>, NotReady> {
        let from = match after {
            None => vec![table::VIEW],
            Some(at) => [keys::view(&at.bucket, &at.key, at.stamp, &at.id).as_slice(), &[0]].concat(),
        };
        let mut rows = Vec::new();
        if limit > 0 {
            self.rows(&from, &[table::VIEW + 1], &mut |row, value| {
                if let (Some((bucket, key, stamp, id)), Some(view)) = (keys::parse_view(row), ViewRow::decode(value))
                    && (noted || view.here)
                {
                    rows.push(VersionRow { bucket, key: key.to_owned(), entry: view.entry(stamp, id), here: view.here });
                }
                rows.len() < limit
            })?;
        }
        Ok(rows)
    }

    /// Names of all records of kind setting. While the index is being rebuilt, from the footers of those segments that have
    /// any: a node needs them to start.
    pub fn setting_keys(&self) -> Vec<RecordKey> {
        if self.views_ready() {
            let mut found = Vec::new();
            let complete = self.rows(&[table::SETTING], &[table::SETTING + 1], &mut |row, _| {
                found.extend(keys::parse_record(row));
                true
            });
            if complete.is_ok() {
                return found;
            }
        }
        self.setting_keys_from_footers()
    }

    fn setting_keys_from_footers(&self) -> Vec<RecordKey> {
        let setting = crate::format::Kind::Public(RecordKind::Setting);
        let mut found = std::collections::BTreeSet::new();
        let active = self.active.lock();
        found.extend(active.builder.entries().iter().filter(|entry| entry.kind == setting).map(|entry| entry.key));
        let active_sequence = active.sequence;
        drop(active);
        let segments: Vec<_> = self.segments.read().values().cloned().collect();
        for segment in segments {
            match segment.trailer() {
                Some(trailer) if trailer.kinds & setting.bit() == 0 => continue,
                None if segment.sequence == active_sequence => continue,
                _ => {}
            }
            let Ok(footer) = self.footer(segment.sequence) else { continue };
            let lines = footer.lines(0, footer.len()).unwrap_or_default();
            found.extend(lines.into_iter().filter(|entry| entry.kind == setting).map(|entry| entry.key));
        }
        found.into_iter().filter(|key| self.locate(key).is_ok_and(|place| place.is_some())).collect()
    }
}

fn entry(row: &[u8], value: &[u8]) -> Option<(String, VersionEntry)> {
    let (_, key, stamp, id) = keys::parse_view(row)?;
    Some((key.to_owned(), ViewRow::decode(value)?.entry(stamp, id)))
}

/// Merges versions of one key from several directories: newest first, each once.
pub fn merge_versions(mut versions: Vec<VersionEntry>, limit: usize) -> Vec<VersionEntry> {
    versions.sort_by_key(|entry| std::cmp::Reverse(entry.order()));
    // The same record in two directories: settled in one is settled.
    versions.dedup_by(|next, kept| {
        let same = next.id == kept.id;
        kept.settled |= same && next.settled;
        same
    });
    versions.truncate(limit);
    versions
}

/// Merges sorted pages from several directories, each complete up to `limit` rows.
pub fn merge_sorted<T, K: Ord>(pages: Vec<Vec<T>>, limit: usize, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut all: Vec<T> = pages.into_iter().flatten().collect();
    all.sort_by_key(|row| key(row));
    all.dedup_by(|next, kept| key(next) == key(kept));
    all.truncate(limit);
    all
}

/// Merges walks over versions: of one that is noted in one directory the record may be in another.
pub fn merge_rows(pages: Vec<Vec<VersionRow>>, limit: usize) -> Vec<VersionRow> {
    let mut all: Vec<VersionRow> = pages.into_iter().flatten().collect();
    all.sort_by_key(walk_order);
    all.dedup_by(|next, kept| {
        let same = walk_order(next) == walk_order(kept);
        if same {
            kept.here |= next.here;
            kept.entry.settled |= next.entry.settled;
        }
        same
    });
    all.truncate(limit);
    all
}

/// Merges listings: a key may have versions in several directories.
pub fn merge_listings(pages: Vec<Listed>, limit: usize) -> Listed {
    let mut all: std::collections::BTreeMap<String, Vec<VersionEntry>> = std::collections::BTreeMap::new();
    for (key, versions) in pages.into_iter().flatten() {
        all.entry(key).or_default().extend(versions);
    }
    let cap = limits::LIST_VERSIONS_PER_KEY_MAX;
    all.into_iter().take(limit).map(|(key, versions)| (key, merge_versions(versions, cap))).collect()
}

/// The order of the walk over all versions.
fn walk_order(row: &VersionRow) -> (BucketId, String, std::cmp::Reverse<(Stamp, RecordId)>) {
    (row.bucket, row.key.clone(), std::cmp::Reverse(row.entry.order()))
}
