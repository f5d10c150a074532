//! What can go wrong with an object, and what the caller may do about it: one enum, one map to the wire
//! ([`crate::gateways::grpc`]).
use afar_model::record::{BucketNameError, KeyError};

/// Why an operation on objects failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// Exit 10.
    #[error("there is no bucket {0:?}")]
    NoSuchBucket(String),
    /// Exit 10.
    #[error("there is no {key:?} in bucket {bucket:?}")]
    NoSuchObject {
        /// The bucket's name.
        bucket: String,
        /// The key, or what was asked for instead.
        key: String,
    },
    /// Exit 10.
    #[error("there is no access key {0:?}")]
    NoSuchKey(String),
    /// Exit 2.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Exit 2.
    #[error(transparent)]
    BucketName(#[from] BucketNameError),
    /// Exit 2.
    #[error("{0}")]
    Invalid(String),
    /// Exit 4: what arrived is not what the client announced. Nothing was stored under the key.
    #[error("{0}")]
    Mismatch(String),
    /// Exit 4: every copy that could be reached is damaged.
    #[error("{0}")]
    Integrity(String),
    /// Exit 5: the write cannot be far away now, so it was refused.
    #[error("refused: the write cannot be far away now: {why}")]
    NotFar {
        /// Which sites were considered, and why each failed.
        why: String,
        /// What to do.
        help: String,
    },
    /// Exit 5: no bucket can be kept whole like that at these sites.
    #[error("no bucket can be kept like that: {why}")]
    Infeasible {
        /// What conflicts.
        why: String,
        /// The smallest changes that help; empty if none of the usual does.
        help: String,
    },
    /// Exit 14. `maybe`: it may still take effect later.
    #[error("{why}")]
    Unavailable {
        /// What is missing.
        why: String,
        /// Whether the write may still take effect.
        maybe: bool,
    },
    /// Exit 11.
    #[error("busy: {0}; retry later")]
    Busy(String),
    /// Exit 13.
    #[error("{0}")]
    NoSpace(String),
    /// Exit 15.
    #[error("denied: {0}")]
    Denied(String),
    /// Exit 15.
    #[error("this access key may not {0}")]
    Forbidden(&'static str),
    /// Exit 2: a name that is taken. Repeating it does not help.
    #[error("{0}")]
    Exists(String),
    /// Exit 1: several buckets have this name, so that it means none of them (rule 23).
    #[error("{} buckets are named {name:?}, so the name means none of them: {}", ids.len(), ids.join(", "))]
    Contested {
        /// The name.
        name: String,
        /// What each of them can be called instead.
        ids: Vec<String>,
    },
    /// Exit 1: a bucket that is not empty. Repeating it does not help.
    #[error("bucket {bucket:?} is not empty: {why}")]
    NotEmpty {
        /// Its name.
        bucket: String,
        /// What is in it, or how that was found.
        why: &'static str,
    },
    /// Exit 1: a bug, or a disk that failed.
    #[error("{0}")]
    Internal(String),
}

impl ObjectError {
    /// Unavailable, and certainly without effect.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), maybe: false }
    }

    /// Unavailable, but it may still take effect later (rule 2).
    pub fn maybe(why: impl Into<String>) -> Self {
        let why = why.into();
        Self::Unavailable { why: format!("{why}; the write may still take effect later: repeat it, or look"), maybe: true }
    }

    /// Whether a write that ended like this may take effect all the same.
    pub const fn may_happen(&self) -> bool {
        matches!(self, Self::Unavailable { maybe: true, .. })
    }

    /// Refused, for a reason that no bucket's policy can change.
    pub fn not_far(why: impl Into<String>) -> Self {
        let help = "bring back the sites that do not answer: `afar status -x` shows what is wrong with each".to_owned();
        Self::NotFar { why: why.into(), help }
    }

    /// The exit code that the command line's contract names.
    pub const fn exit(&self) -> u8 {
        match self {
            Self::NoSuchBucket(_) | Self::NoSuchObject { .. } | Self::NoSuchKey(_) => 10,
            Self::Key(_) | Self::BucketName(_) | Self::Invalid(_) | Self::Exists(_) => 2,
            Self::Mismatch(_) | Self::Integrity(_) => 4,
            Self::NotFar { .. } | Self::Infeasible { .. } => 5,
            Self::Unavailable { .. } => 14,
            Self::Busy(_) => 11,
            Self::NoSpace(_) => 13,
            Self::Denied(_) | Self::Forbidden(_) => 15,
            Self::Contested { .. } | Self::NotEmpty { .. } | Self::Internal(_) => 1,
        }
    }

    /// What to do about it, in the command line's words (`afar COMMAND`: whichever it was). ASCII, for it travels in a header.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::NoSuchBucket(_) => "`afar ls` shows the buckets that there are, `afar bucket create NAME` makes one",
            Self::NoSuchObject { bucket, .. } => {
                return format!("`afar ls -r {bucket}` shows the keys that there are, with --versions older versions too");
            }
            Self::NoSuchKey(_) => "`afar key ls` shows the access keys that there are",
            Self::Key(_) => "give it another key: `afar put FILE BUCKET/KEY`",
            Self::BucketName(_) => "choose a name of 3 to 63 of a-z, 0-9, '-' and '.'",
            Self::Invalid(_) => "`afar COMMAND --help` shows what is expected",
            Self::Mismatch(_) => "put it again; if that recurs, check the memory of the machine that it comes from",
            Self::Integrity(_) => "keep every disk that ever held a copy, and see what `afar status -x` says",
            Self::NotFar { help, .. } => return help.clone(),
            Self::Infeasible { help, .. } if !help.is_empty() => return help.clone(),
            Self::Infeasible { .. } => {
                "ask for fewer copies or a smaller distance, or add a site; `afar status` shows the sites that there are"
            }
            Self::Unavailable { .. } => "retry later; `afar status` shows which nodes answer",
            Self::Busy(_) => "retry later, or put fewer files at once (--jobs)",
            Self::NoSpace(_) => "add a disk or a node, or free space; `afar status` shows which node is full",
            Self::Denied(_) => "put it under another key, or use an access key with the write right",
            Self::Forbidden(_) => "use an access key with that right; `afar key ls`, as an administrator, shows what each may do",
            Self::Exists(_) => "choose another name; `afar ls` shows the names that are taken",
            Self::Contested { ids, .. } => {
                let one = ids.last().map_or("@ID", String::as_str);
                return format!("an administrator ends this: `afar bucket rename {one} NAME`, or `afar bucket rm {one}` if it is empty");
            }
            Self::NotEmpty { bucket, .. } => {
                return format!("`afar rm -r {bucket}` removes what is in it (recoverable), then remove the bucket");
            }
            Self::Internal(_) => "see the node's log, and what `afar status -x` says of it; if that recurs, please report it",
        };
        hint.to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::record::check_bucket_name;

    /// One of each, its exit code, and a word without which its hint would not fit.
    fn all() -> Vec<(ObjectError, u8, &'static str)> {
        let text = || "x".to_owned();
        vec![
            (ObjectError::NoSuchBucket(text()), 10, "bucket create"),
            (ObjectError::NoSuchObject { bucket: text(), key: text() }, 10, "ls -r"),
            (ObjectError::NoSuchKey(text()), 10, "key ls"),
            (ObjectError::Key(KeyError::Empty), 2, "BUCKET/KEY"),
            (check_bucket_name("").unwrap_err().into(), 2, "3 to 63"),
            (ObjectError::Invalid(text()), 2, "--help"),
            (ObjectError::Mismatch(text()), 4, "again"),
            (ObjectError::Integrity(text()), 4, "disk"),
            (ObjectError::not_far("x"), 5, "bring back"),
            (ObjectError::NotFar { why: text(), help: "start warsaw".into() }, 5, "start warsaw"),
            (ObjectError::Infeasible { why: text(), help: String::new() }, 5, "distance"),
            (ObjectError::Infeasible { why: text(), help: "lower copies from 9 to 3".into() }, 5, "from 9 to 3"),
            (ObjectError::unavailable("x"), 14, "retry later"),
            (ObjectError::maybe("x"), 14, "retry later"),
            (ObjectError::Busy(text()), 11, "retry later"),
            (ObjectError::NoSpace(text()), 13, "add a disk"),
            (ObjectError::Denied(text()), 15, "another key"),
            (ObjectError::Forbidden("x"), 15, "right"),
            (ObjectError::Exists(text()), 2, "another name"),
            (ObjectError::Contested { name: text(), ids: vec!["@00".into(), "@01".into()] }, 1, "afar bucket rename @01"),
            (ObjectError::NotEmpty { bucket: "docs".into(), why: "x" }, 1, "afar rm -r docs"),
            (ObjectError::Internal(text()), 1, "log"),
        ]
    }

    #[test]
    fn every_error_carries_its_exit_code_and_a_hint_that_fits() {
        for (error, exit, word) in all() {
            let hint = error.hint();
            assert!(hint.is_ascii() && hint.contains(word), "{error:?}: {hint}");
            // Only what time mends is worth a retry.
            assert_eq!(hint.contains("retry"), matches!(exit, 11 | 14), "{error:?}: {hint}");
            let maybe = error.may_happen();
            let wire = tonic::Status::from(error);
            let told = |name: &str| wire.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            assert_eq!(told(afar_proto::EXIT_METADATA), Some(exit.to_string()));
            assert_eq!(told(afar_proto::HINT_METADATA), Some(hint));
            assert_eq!(told(afar_proto::MAYBE_METADATA).is_some(), maybe);
        }
    }
}
