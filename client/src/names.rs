//! How objects are written on a command line: `BUCKET/KEY`, `BUCKET/PREFIX/`, `BUCKET@HEX`. Parsed once, at the door.
use crate::error::Error;
use afar_model::{
    id::{IdPrefix, ObjectId, RecordId},
    record,
    units::printable,
};
use std::{fmt, str::FromStr};

/// A bucket, and what of it: nothing, or a key or prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The bucket's name, or `@` and its id in hex.
    pub bucket: String,
    /// What stands after the slash; may be empty, may end with a slash.
    pub path: String,
}

/// One object to read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The bucket's name, or `@` and its id in hex.
    pub bucket: String,
    /// By key, or by id.
    pub what: What,
    /// One version of it; the current one if `None`.
    pub version: Option<RecordId>,
}

/// One object as people name it: its ids may be abbreviated. [`crate::Client::resolve`] finds out which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The bucket's name.
    pub bucket: String,
    /// By key, or by the beginning of an id.
    pub by: NamedBy,
    /// The beginning of a version's id; the current version if `None`.
    pub version: Option<IdPrefix>,
}

/// How people name an object within its bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedBy {
    /// By its key.
    Key(String),
    /// By the beginning of its id.
    Id(IdPrefix),
}

/// How an object is named within its bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// By its key.
    Key(String),
    /// By its content: any version, current or older, that has it.
    Object(ObjectId),
}

fn check_bucket(name: &str) -> Result<(), Error> {
    record::check_bucket_name(name).map_err(|error| Error::usage(error.to_string()).hint("write BUCKET/KEY; `afar ls` shows the buckets"))
}

impl FromStr for Place {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let (bucket, path) = text.split_once('/').unwrap_or((text, ""));
        check_bucket(bucket)?;
        if !path.is_empty() {
            record::check_key(path).map_err(|error| Error::usage(format!("{text:?}: {error}")))?;
        }
        Ok(Self { bucket: bucket.into(), path: path.into() })
    }
}

impl Place {
    /// Whether the path is a prefix to put names under: empty or ending with a slash.
    pub fn is_folder(&self) -> bool {
        self.path.is_empty() || self.path.ends_with('/')
    }
}

impl Wanted {
    /// The current version of a key.
    pub fn key(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self { bucket: bucket.into(), what: What::Key(key.into()), version: None }
    }

    /// Any version with this content.
    pub fn object(bucket: impl Into<String>, object: ObjectId) -> Self {
        Self { bucket: bucket.into(), what: What::Object(object), version: None }
    }

    /// What a file that holds it would be called.
    pub fn file_name(&self) -> Option<String> {
        match &self.what {
            What::Key(key) => key.rsplit('/').next().filter(|name| !matches!(*name, "" | "." | "..")).map(str::to_owned),
            What::Object(object) => Some(object.to_string()),
        }
    }

    /// The key, empty if named by id: as the wire wants it.
    pub fn key_or_empty(&self) -> &str {
        match &self.what {
            What::Key(key) => key,
            What::Object(_) => "",
        }
    }

    /// The object's id, if named by it.
    pub const fn object_id(&self) -> Option<&ObjectId> {
        match &self.what {
            What::Key(_) => None,
            What::Object(object) => Some(object),
        }
    }
}

impl Named {
    /// The same, but this version of it.
    ///
    /// # Errors
    /// If it is named by an id: that names the content already, and may stand under several keys.
    pub fn at_version(self, version: Option<IdPrefix>) -> Result<Self, Error> {
        if version.is_some() && matches!(self.by, NamedBy::Id(_)) {
            return Err(Error::usage(format!("{self}: an id names the content already, a version is one of a key"))
                .hint("write BUCKET/KEY --version V, or BUCKET@ID alone"));
        }
        Ok(Self { version, ..self })
    }

    /// The same without abbreviations; `None` if there are any.
    pub fn whole(&self) -> Option<Wanted> {
        let what = match &self.by {
            NamedBy::Key(key) => What::Key(key.clone()),
            NamedBy::Id(prefix) => What::Object(ObjectId::from_bytes(prefix.whole()?)),
        };
        let version = match &self.version {
            Some(prefix) => Some(RecordId::from_bytes(prefix.whole()?)),
            None => None,
        };
        Some(Wanted { bucket: self.bucket.clone(), what, version })
    }
}

impl FromStr for Named {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let by_id = text.split_once('@').filter(|(bucket, _)| !bucket.is_empty() && !bucket.contains('/'));
        if let Some((bucket, hex)) = by_id {
            check_bucket(bucket)?;
            let prefix = hex.parse().map_err(|error| {
                Error::usage(format!("{text:?}: {error}")).hint("an object's id is its BLAKE3 hash, as `b3sum` and `afar put` print it")
            })?;
            return Ok(Self { bucket: bucket.into(), by: NamedBy::Id(prefix), version: None });
        }
        let place: Place = text.parse()?;
        if place.path.is_empty() {
            return Err(Error::usage(format!("{text:?} names a bucket, not an object")).hint("write BUCKET/KEY or BUCKET@ID"));
        }
        Ok(Self { bucket: place.bucket, by: NamedBy::Key(place.path), version: None })
    }
}

impl FromStr for Wanted {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let abbreviated = || Error::usage(format!("{text:?}: the id is abbreviated")).hint("write all of its 64 digits");
        text.parse::<Named>()?.whole().ok_or_else(abbreviated)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            NamedBy::Key(key) => write_key(f, &self.bucket, key)?,
            NamedBy::Id(prefix) => write!(f, "{}@{prefix}", self.bucket)?,
        }
        match &self.version {
            Some(version) => write!(f, " (version {version})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Key(key) => write_key(f, &self.bucket, key)?,
            What::Object(object) => write!(f, "{}@{object}", self.bucket)?,
        }
        match &self.version {
            Some(version) => write!(f, " (version {version})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.bucket) } else { write_key(f, &self.bucket, &self.path) }
    }
}

/// As people are shown it: a key stays on its line, whatever it holds.
fn write_key(f: &mut fmt::Formatter<'_>, bucket: &str, key: &str) -> fmt::Result {
    f.write_str(&printable(&format!("{bucket}/{key}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_by_key_or_by_id() {
        assert_eq!("docs/a/b@c.txt".parse::<Wanted>().unwrap(), Wanted::key("docs", "a/b@c.txt"));
        let id = ObjectId::of(b"");
        let by_id: Wanted = format!("docs@{id}").parse().unwrap();
        assert_eq!(by_id, Wanted::object("docs", id));
        assert_eq!(by_id.to_string(), format!("docs@{id}"));
        assert_eq!("docs//odd".parse::<Wanted>().unwrap(), Wanted::key("docs", "/odd"));
    }

    #[test]
    fn an_id_may_be_abbreviated_but_then_it_is_not_yet_one() {
        let id = ObjectId::of(b"");
        for text in ["docs@af1349", "docs@af1349b9…", "docs@AF1349B9..."] {
            let named: Named = text.parse().unwrap();
            assert!(matches!(&named.by, NamedBy::Id(prefix) if prefix.begins(id.as_bytes())), "{text}");
            assert_eq!(named.whole(), None, "{text}");
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
        let versioned = "docs/a".parse::<Named>().unwrap().at_version(Some("af1349".parse().unwrap())).unwrap();
        assert_eq!((versioned.whole(), versioned.to_string().as_str()), (None, "docs/a (version af1349…)"));
        let whole = "docs/a".parse::<Named>().unwrap().at_version(Some(id.to_string().parse().unwrap())).unwrap();
        assert_eq!(whole.whole().unwrap().version, Some(RecordId::from_bytes(*id.as_bytes())));
        let both = format!("docs@{id}").parse::<Named>().unwrap().at_version(Some("af1349".parse().unwrap()));
        assert_eq!(both.unwrap_err().kind(), crate::error::Kind::Usage);
    }

    #[test]
    fn what_names_no_object_is_a_usage_error() {
        for text in ["", "docs", "docs/", "Docs/a", "docs@12", "d/a", "docs/a\0b", "docs@"] {
            let error = text.parse::<Wanted>().unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage, "{text}");
        }
    }

    #[test]
    fn a_place_may_be_a_bucket_a_key_or_a_folder() {
        let place = |text: &str| text.parse::<Place>().unwrap();
        assert!(place("docs").is_folder() && place("docs/").is_folder() && place("docs/a/").is_folder());
        assert!(!place("docs/a").is_folder());
    }

    #[test]
    fn a_key_that_holds_control_characters_stays_on_its_line() {
        let key = "a\nremoved docs/b\x1b[31m";
        let quoted = "$'docs/a\\nremoved docs/b\\u001b[31m'";
        assert_eq!(Wanted::key("docs", key).to_string(), quoted);
        assert_eq!(Place { bucket: "docs".into(), path: key.into() }.to_string(), quoted);
        assert_eq!(Named { bucket: "docs".into(), by: NamedBy::Key(key.into()), version: None }.to_string(), quoted);
    }

    #[test]
    fn a_file_name_never_leads_elsewhere() {
        assert_eq!(Wanted::key("b", "a/b.txt").file_name().as_deref(), Some("b.txt"));
        for key in ["a/..", "a/.", "a/"] {
            assert_eq!(Wanted::key("b", key).file_name(), None, "{key}");
        }
    }
}
