//! How objects are written on a command line: `BUCKET/KEY`, `BUCKET/PREFIX/`, `BUCKET@HEX`. Parsed once, at the door.
use crate::error::Error;
use afar_model::{
    id::{ObjectId, RecordId},
    record,
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

impl FromStr for Wanted {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let by_id = text.split_once('@').filter(|(bucket, _)| !bucket.is_empty() && !bucket.contains('/'));
        if let Some((bucket, hex)) = by_id {
            check_bucket(bucket)?;
            let object = hex.parse().map_err(|error| {
                Error::usage(format!("{text:?}: {error}")).hint("an object's id is its BLAKE3 hash, as `b3sum` and `afar put` print it")
            })?;
            return Ok(Self::object(bucket, object));
        }
        let place: Place = text.parse()?;
        if place.path.is_empty() {
            return Err(Error::usage(format!("{text:?} names a bucket, not an object")).hint("write BUCKET/KEY or BUCKET@ID"));
        }
        Ok(Self::key(place.bucket, place.path))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Key(key) => write!(f, "{}/{key}", self.bucket)?,
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
        if self.path.is_empty() { f.write_str(&self.bucket) } else { write!(f, "{}/{}", self.bucket, self.path) }
    }
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
    fn a_file_name_never_leads_elsewhere() {
        assert_eq!(Wanted::key("b", "a/b.txt").file_name().as_deref(), Some("b.txt"));
        for key in ["a/..", "a/.", "a/"] {
            assert_eq!(Wanted::key("b", key).file_name(), None, "{key}");
        }
    }
}
