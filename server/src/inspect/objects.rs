//! Objects from segments alone: which keys there are, and the bytes under them, put together from version record, manifests and
//! chunks. Every record is hashed when it is read, and the whole at the end.
use super::{InspectError, Outcome, rfc3339};
use afar_model::{
    hlc::Stamp,
    id::{BucketId, IdPrefix, ObjectId, RecordId},
    record::{ChunkRef, Content, Data, Manifest, RecordKey, RecordKind, Setting, Version},
    units::{self, UnixMillis},
};
use afar_store::salvage::{Missing, Salvage};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Write,
    path::Path,
};

/// Digits of an id in a table: enough to copy.
const ID_DIGITS: usize = 16;
/// How many missing chunks, or ids that an abbreviation may mean, are named.
const NAMED_MAX: usize = 20;

/// All versions that are there, those of a key side by side, the newest first.
#[derive(Debug)]
pub struct Objects<'a> {
    salvage: Salvage<'a>,
    buckets: BTreeMap<BucketId, String>,
    versions: Vec<Found>,
}

/// A version that is there.
#[derive(Debug, Clone)]
pub struct Found {
    record: RecordKey,
    bucket: String,
    key: String,
    stamp: Stamp,
    object: Option<(ObjectId, u64)>,
    received: UnixMillis,
    settled: bool,
    removed: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", units::printable(&format!("{}/{}", self.bucket, self.key)))
    }
}

impl Found {
    /// Its id, or its version's, in full.
    pub fn id(&self) -> String {
        self.object.map_or_else(|| self.record.id.to_string(), |(id, _)| id.to_string())
    }

    /// Its key as a path that stays below a folder; `None` if it is none.
    pub fn path(&self) -> Option<&Path> {
        let plain = !self.key.ends_with('/') && !self.key.split('/').any(|part| matches!(part, "" | "." | ".."));
        plain.then(|| Path::new(&self.key))
    }

    #[cfg(test)]
    pub const fn record(&self) -> RecordKey {
        self.record
    }

    /// What it is, for programs.
    pub fn json(&self) -> Value {
        json!({
            "type": if self.object.is_some() { "object" } else { "delete_marker" },
            "bucket": self.bucket, "bucket_id": self.record.bucket.to_string(), "key": self.key,
            "version": self.record.id.to_string(), "id": self.object.map(|(id, _)| id.to_string()), "size": self.object.map(|(_, size)| size),
            "modified": rfc3339(self.stamp.time().0).to_string(), "received_ms": self.received.0, "removed": self.removed, "settled": self.settled,
        })
    }
}

/// What an object's bytes are made of.
enum Pieces {
    Inline(Bytes),
    Chunks(Vec<ChunkRef>),
}

/// What of an object is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacks {
    /// Of how many pieces.
    of: usize,
    /// Which, and why.
    what: Vec<String>,
    /// Whether any of it is there and bad, and not only elsewhere.
    damaged: bool,
}

impl Lacks {
    /// What that is called.
    pub const fn outcome(&self) -> Outcome {
        if self.damaged { Outcome::Damaged } else { Outcome::Incomplete }
    }
}

/// Why a piece is not to be had, and whether for damage.
struct Lacking {
    why: String,
    damaged: bool,
}

impl From<Missing> for Lacking {
    fn from(missing: Missing) -> Self {
        Self { why: missing.to_string(), damaged: missing != Missing::Absent }
    }
}

impl Lacking {
    /// A record that matches its hash and is not what it should be.
    fn bad(why: impl ToString) -> Self {
        Self { why: why.to_string(), damaged: true }
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} pieces missing", self.what.len(), self.of)?;
        self.what.iter().take(NAMED_MAX).try_for_each(|what| write!(f, "\n  {what}"))?;
        match self.what.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Whether listing looks only for pieces, or reads and hashes them, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Whether they are there.
    There,
    /// Whether they match their hashes.
    Read,
}

impl<'a> Objects<'a> {
    /// Finds the names of buckets and orders the versions.
    pub fn of(salvage: Salvage<'a>) -> Self {
        let buckets = bucket_names(&salvage);
        let mut versions: Vec<Found> = salvage.versions().iter().map(|version| found(version, &salvage, &buckets)).collect();
        versions.sort_by(|a, b| {
            (&a.bucket, &a.key).cmp(&(&b.bucket, &b.key)).then_with(|| (b.stamp, b.record.id).cmp(&(a.stamp, a.record.id)))
        });
        Self { salvage, buckets, versions }
    }

    /// What could not be read.
    pub fn damage(&self) -> Vec<String> {
        self.salvage.damage().iter().map(ToString::to_string).collect()
    }

    /// How much of what lies here could be read at all.
    pub fn outcome(&self) -> Outcome {
        let of = |damage: &afar_store::inspect::InspectError| if damage.denied { Outcome::Denied } else { Outcome::Damaged };
        self.salvage.damage().iter().map(of).max().unwrap_or(Outcome::Good)
    }

    /// A line for every version. Answers the worst of those that are current.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn list(&self, look: Look, as_json: bool, out: &mut dyn Write) -> Result<Outcome, InspectError> {
        let mut worst = Outcome::Good;
        for same_key in self.versions.chunk_by(|a, b| (a.record.bucket, &a.key) == (b.record.bucket, &b.key)) {
            let looked: Vec<(&Found, Result<usize, Lacks>)> = same_key.iter().map(|found| (found, self.look(found, look))).collect();
            let current = looked.iter().position(|(found, whole)| stands(found, whole.is_ok()));
            for (at, (found, whole)) in looked.iter().enumerate() {
                let is_current = Some(at) == current;
                if let (true, Err(lacks)) = (is_current, whole) {
                    worst = worst.max(lacks.outcome());
                }
                writeln!(
                    out,
                    "{}",
                    if as_json { json_line(found, whole, is_current).to_string() } else { text_line(found, whole, is_current) }
                )?;
            }
        }
        Ok(worst)
    }

    /// The one that is asked for: by `BUCKET/KEY` the version that stands, by an id whatever has it and is whole.
    ///
    /// # Errors
    /// If there is none, or several.
    pub fn choose(&self, wanted: &str) -> Result<Chosen<'_>, InspectError> {
        match wanted.split_once('/') {
            Some((bucket, key)) => self.by_key(bucket, key),
            None => self.by_id(&wanted.parse()?),
        }
    }

    /// The objects that stand under `BUCKET[/PREFIX]`: the key itself, and what lies under it as in a folder.
    ///
    /// # Errors
    /// If there is none.
    pub fn under(&self, place: &str) -> Result<Vec<&Found>, InspectError> {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let bucket = self.bucket(bucket)?;
        let is_under = |key: &str| {
            let rest = key.strip_prefix(prefix);
            rest.is_some_and(|rest| prefix.is_empty() || prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
        };
        let keys = self.versions.chunk_by(|a, b| (a.record.bucket, &a.key) == (b.record.bucket, &b.key));
        let wanted =
            keys.filter(|same_key| same_key.first().is_some_and(|found| Some(found.record.bucket) == bucket && is_under(&found.key)));
        // Of what is not whole it is told what is missing.
        let standing = wanted.filter_map(|same_key| {
            let standing = same_key.iter().find(|found| stands(found, self.look(found, Look::There).is_ok()));
            standing.or_else(|| same_key.iter().find(|found| !found.removed))
        });
        let found: Vec<&Found> = standing.filter(|found| found.object.is_some()).collect();
        if found.is_empty() { Err(InspectError::Missing(place.to_owned())) } else { Ok(found) }
    }

    /// Which bucket that is, by its name or by the beginning of its id.
    fn bucket(&self, wanted: &str) -> Result<Option<BucketId>, InspectError> {
        if let Some((bucket, _)) = self.buckets.iter().find(|(_, name)| *name == wanted) {
            return Ok(Some(*bucket));
        }
        let Ok(prefix) = wanted.parse::<IdPrefix>() else { return Ok(None) };
        let fitting = self.versions.iter().map(|found| found.record.bucket).filter(|bucket| prefix.begins(bucket.as_bytes()));
        let fitting: BTreeSet<BucketId> = fitting.collect();
        match fitting.len() {
            0 | 1 => Ok(fitting.first().copied()),
            _ => Err(InspectError::Ambiguous(wanted.to_owned(), fitting.iter().map(ToString::to_string).collect())),
        }
    }

    fn by_key(&self, bucket: &str, key: &str) -> Result<Chosen<'_>, InspectError> {
        let id = self.bucket(bucket)?;
        let versions: Vec<&Found> = self.versions.iter().filter(|found| found.key == key && Some(found.record.bucket) == id).collect();
        let older = |found: &Found| format!("{} of {}", found.record.id, rfc3339(found.stamp.time().0));
        let choice = versions.iter().find(|found| stands(found, self.look(found, Look::There).is_ok()));
        match choice.or_else(|| versions.iter().find(|found| !found.removed)) {
            Some(found) if found.object.is_some() => Ok(Chosen::Object(found)),
            None if versions.is_empty() => Err(InspectError::Missing(format!("{bucket}/{key}"))),
            // A delete marker, or nothing but what was removed.
            _ => {
                let had = versions.iter().filter(|found| found.object.is_some()).map(|found| older(found)).take(NAMED_MAX).collect();
                Err(InspectError::Deleted(format!("{bucket}/{key}"), had))
            }
        }
    }

    fn by_id(&self, prefix: &IdPrefix) -> Result<Chosen<'_>, InspectError> {
        let objects = self.versions.iter().filter(|found| found.object.is_some_and(|(id, _)| prefix.begins(id.as_bytes())));
        let versions = self.versions.iter().filter(|found| prefix.begins(found.record.id.as_bytes()));
        let mut candidates: Vec<(&Found, [u8; 32])> =
            objects.filter_map(|found| found.object.map(|(id, _)| (found, *id.as_bytes()))).collect();
        candidates.extend(versions.map(|found| (found, *found.record.id.as_bytes())));
        // The one chunk of an object has the object's id, so that what is left are pieces of larger ones, and settings.
        let records = || self.salvage.named(prefix).into_iter();
        let mut ids: BTreeSet<[u8; 32]> = candidates.iter().map(|(_, id)| *id).collect();
        ids.extend(records().map(|record| *record.id.as_bytes()));
        if ids.len() > 1 {
            let ids = ids.into_iter().map(|id| RecordId::from_bytes(id).to_string()).collect();
            return Err(InspectError::Ambiguous(prefix.to_string(), ids));
        }
        let whole = candidates.iter().find(|(found, _)| found.object.is_some() && self.look(found, Look::There).is_ok());
        match whole.or(candidates.first()) {
            Some((found, _)) if found.object.is_some() => Ok(Chosen::Object(found)),
            Some((found, _)) => Err(InspectError::Deleted(found.to_string(), Vec::new())),
            None => {
                let mut missing = InspectError::Missing(prefix.digits().to_owned());
                for record in records() {
                    match self.salvage.get(&record) {
                        Ok(body) => return Ok(Chosen::Record(body)),
                        Err(why) => missing = InspectError::Incomplete(record.id.to_string(), self.lacks(1, vec![why.into()])),
                    }
                }
                Err(missing)
            }
        }
    }

    /// Writes an object, a chunk at a time. What is missing is known before the first byte where its absence is all; what turns
    /// out to be damaged ends the writing, and the rest is read nevertheless, so that all that is lacking is told.
    ///
    /// # Errors
    /// If something of it is not there, or the whole is not what its version says.
    pub fn write(&self, found: &Found, to: &mut dyn Write) -> Result<(), InspectError> {
        let incomplete = |lacks| InspectError::Incomplete(found.to_string(), lacks);
        self.look(found, Look::There).map_err(incomplete)?;
        let (Some((id, size)), pieces) = (found.object, self.pieces(found).map_err(incomplete)?) else { return Ok(()) };
        let (mut hasher, mut written) = (blake3::Hasher::new(), 0_u64);
        let mut take = |bytes: &[u8]| {
            hasher.update(bytes);
            written += bytes.len() as u64;
            to.write_all(bytes)
        };
        match pieces {
            Pieces::Inline(content) => take(&content)?,
            Pieces::Chunks(chunks) => {
                let mut what = Vec::new();
                for (at, chunk) in placed(&chunks) {
                    match self.chunk(found, chunk) {
                        Ok(body) if what.is_empty() => take(&body)?,
                        Ok(_) => {}
                        Err(why) => what.push(piece(at, chunk, why)),
                    }
                }
                if !what.is_empty() {
                    return Err(incomplete(self.lacks(chunks.len(), what)));
                }
            }
        }
        let got = ObjectId::from_bytes(*hasher.finalize().as_bytes());
        if (got, written) == (id, size) { Ok(()) } else { Err(InspectError::NotIt { wanted: id, got, bytes: written }) }
    }

    fn chunk(&self, of: &Found, chunk: &ChunkRef) -> Result<Bytes, Lacking> {
        let body = self.salvage.get(&RecordKey { bucket: of.record.bucket, id: chunk.id })?;
        if body.len() == chunk.length as usize {
            Ok(body)
        } else {
            Err(Lacking::bad(format!("{} bytes, not {}", body.len(), chunk.length)))
        }
    }

    /// Where something here is damaged, what is not found may have been there.
    fn lacks(&self, of: usize, what: Vec<Lacking>) -> Lacks {
        let damaged = self.outcome() == Outcome::Damaged || what.iter().any(|lacking| lacking.damaged);
        Lacks { of, what: what.into_iter().map(|lacking| lacking.why).collect(), damaged }
    }

    /// Of how many pieces it is, if all are there.
    fn look(&self, found: &Found, look: Look) -> Result<usize, Lacks> {
        let chunks = match self.pieces(found)? {
            Pieces::Inline(_) => return Ok(1),
            Pieces::Chunks(chunks) => chunks,
        };
        let lacking = |chunk: &ChunkRef| match look {
            Look::There if self.salvage.holds(&RecordKey { bucket: found.record.bucket, id: chunk.id }) => None,
            Look::There => Some(Missing::Absent.into()),
            Look::Read => self.chunk(found, chunk).err(),
        };
        let what: Vec<Lacking> = placed(&chunks).filter_map(|(at, chunk)| Some(piece(at, chunk, lacking(chunk)?))).collect();
        if what.is_empty() { Ok(chunks.len()) } else { Err(self.lacks(chunks.len(), what)) }
    }

    fn pieces(&self, found: &Found) -> Result<Pieces, Lacks> {
        let lacks = |lacking: Lacking| {
            let why = format!("version record {}: {}", found.record.id, lacking.why);
            self.lacks(1, vec![Lacking { why, ..lacking }])
        };
        let body = self.salvage.get(&found.record).map_err(|missing| lacks(missing.into()))?;
        let decoded = Version::decode(&body).map_err(|error| lacks(Lacking::bad(error)))?;
        match decoded.version.content {
            Content::DeleteMarker => Ok(Pieces::Chunks(Vec::new())),
            Content::Object { data: Data::Inline, .. } => Ok(Pieces::Inline(decoded.inline)),
            Content::Object { data: Data::Chunks(chunks), .. } => Ok(Pieces::Chunks(chunks)),
            Content::Object { data: Data::Manifests(manifests), .. } => {
                let (mut chunks, mut what, of) = (Vec::new(), Vec::new(), manifests.len());
                for id in manifests {
                    let body = self.salvage.get(&RecordKey { bucket: found.record.bucket, id }).map_err(Lacking::from);
                    match body.and_then(|body| Manifest::decode(&body).map_err(Lacking::bad)) {
                        Ok(manifest) => chunks.extend(manifest.chunks),
                        Err(lacking) => what.push(Lacking { why: format!("list of chunks {id}: {}", lacking.why), ..lacking }),
                    }
                }
                if what.is_empty() { Ok(Pieces::Chunks(chunks)) } else { Err(self.lacks(of, what)) }
            }
        }
    }
}

/// What is to be written.
#[derive(Debug)]
pub enum Chosen<'a> {
    /// An object.
    Object(&'a Found),
    /// A record that is none: a chunk, a list of chunks, a setting.
    Record(Bytes),
}

/// Whether readers would be shown this version, were it the newest: one that is only prepared may have been refused, unless all
/// of it is there (rule 1).
fn stands(found: &Found, whole: bool) -> bool {
    !found.removed && (found.settled || whole)
}

fn found(version: &afar_store::salvage::Described, salvage: &Salvage<'_>, buckets: &BTreeMap<BucketId, String>) -> Found {
    let bucket = buckets.get(&version.key.bucket).cloned();
    Found {
        record: version.key,
        bucket: bucket.unwrap_or_else(|| version.key.bucket.to_string().chars().take(ID_DIGITS).collect()),
        key: version.info.key.clone(),
        stamp: version.info.stamp,
        object: version.info.object,
        received: version.received,
        settled: salvage.is_settled(&version.key),
        removed: salvage.is_removed(&version.key),
    }
}

/// What buckets are called, as far as their settings are there; one whose name another has, too, goes by its id.
fn bucket_names(salvage: &Salvage<'_>) -> BTreeMap<BucketId, String> {
    let mut names: BTreeMap<BucketId, (Stamp, String)> = BTreeMap::new();
    for record in salvage.of_kind(RecordKind::Setting) {
        let Ok(body) = salvage.get(&record) else { continue };
        let named = match Setting::decode(&body) {
            Ok(Setting::BucketCreated { name, stamp, .. }) => Some((BucketId::from(record.id), stamp, name)),
            Ok(Setting::BucketRenamed { bucket, name, stamp }) => Some((bucket, stamp, name)),
            _ => None,
        };
        if let Some((bucket, stamp, name)) = named {
            let known = names.entry(bucket).or_default();
            *known = (stamp, name).max(std::mem::take(known));
        }
    }
    let mut of_name: BTreeMap<String, Vec<BucketId>> = BTreeMap::new();
    names.into_iter().for_each(|(bucket, (_, name))| of_name.entry(name).or_default().push(bucket));
    let alone = of_name.into_iter().filter_map(|(name, buckets)| if let [bucket] = buckets[..] { Some((bucket, name)) } else { None });
    alone.collect()
}

/// Every chunk, and which byte of the object it begins with.
fn placed(chunks: &[ChunkRef]) -> impl Iterator<Item = (u64, &ChunkRef)> {
    let mut end = 0;
    chunks.iter().map(move |chunk| {
        let from = end;
        end += u64::from(chunk.length);
        (from, chunk)
    })
}

fn piece(from: u64, chunk: &ChunkRef, lacking: Lacking) -> Lacking {
    // No chunk is empty: that was refused when the list was decoded.
    let why = format!("bytes {from} to {} (chunk {}): {}", from + u64::from(chunk.length) - 1, chunk.id, lacking.why);
    Lacking { why, ..lacking }
}

const fn standing(found: &Found, is_current: bool) -> &'static str {
    match (is_current, found.removed, found.settled) {
        (true, ..) => "current",
        (_, true, _) => "removed",
        (_, _, true) => "older",
        // Newer ones of these may be puts that were refused.
        (_, _, false) => "unproved",
    }
}

fn text_line(found: &Found, whole: &Result<usize, Lacks>, is_current: bool) -> String {
    let state = match (whole, &found.object) {
        (Ok(_), None) => "deleted".to_owned(),
        (Ok(_), Some(_)) => "whole".to_owned(),
        (Err(lacks), _) => format!("{} of {} missing", lacks.what.len(), lacks.of),
    };
    let (id, size) = found.object.map_or((found.record.id.to_string(), "-".to_owned()), |(id, size)| (id.to_string(), units::bytes(size)));
    let id: String = id.chars().take(ID_DIGITS).collect();
    let standing = standing(found, is_current);
    format!("{standing:<8}  {state:<14}  {size:>10}  {}  {id}  {found}", rfc3339(found.stamp.time().0))
}

fn json_line(found: &Found, whole: &Result<usize, Lacks>, is_current: bool) -> Value {
    let (pieces, missing) = whole.as_ref().map_or_else(|lacks| (lacks.of, lacks.what.as_slice()), |pieces| (*pieces, &[]));
    let mut line = found.json();
    if let Some(fields) = line.as_object_mut() {
        fields.extend([("current".into(), is_current.into()), ("pieces".into(), pieces.into()), ("missing".into(), missing.into())]);
    }
    line
}
