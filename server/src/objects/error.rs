//! What can go wrong with an object, and what the caller may do about it: one enum, one map to the wire
//! ([`crate::gateways::grpc`]).
use afar_model::record::{BucketNameError, KeyError};

/// Why an operation on objects failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// Exit 10.
    #[error("there is no bucket {0:?}: make it with `afar bucket create`")]
    NoSuchBucket(String),
    /// Exit 10.
    #[error("there is no {key:?} in bucket {bucket:?}")]
    NoSuchObject {
        /// The bucket's name.
        bucket: String,
        /// The key, or what was asked for instead.
        key: String,
    },
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
    #[error("refused: the write cannot be far away now: {0}")]
    NotFar(String),
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
    /// Exit 1: a bucket that is not empty, a name that is taken. Repeating it does not help.
    #[error("{0}")]
    Conflict(String),
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

    /// The exit code that the command line's contract names.
    pub const fn exit(&self) -> u8 {
        match self {
            Self::NoSuchBucket(_) | Self::NoSuchObject { .. } => 10,
            Self::Key(_) | Self::BucketName(_) | Self::Invalid(_) => 2,
            Self::Mismatch(_) | Self::Integrity(_) => 4,
            Self::NotFar(_) => 5,
            Self::Unavailable { .. } => 14,
            Self::Busy(_) => 11,
            Self::NoSpace(_) => 13,
            Self::Denied(_) | Self::Forbidden(_) => 15,
            Self::Conflict(_) | Self::Internal(_) => 1,
        }
    }
}
