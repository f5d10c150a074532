//! Ids are types. A 32-byte id is a BLAKE3 digest and prints as 64 hex digits, which is what `b3sum` prints; a 16-byte
//! id is chosen at random by whoever creates the thing. `Debug` is short (for logs), `Display` round-trips.
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Text that is not an id of the expected length in hex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: expected {digits} hexadecimal digits")]
pub struct ParseIdError {
    what: &'static str,
    digits: usize,
    text: String,
}

/// Bytes of the wrong length for an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {what} has {expected} bytes, got {got}")]
pub struct IdLengthError {
    what: &'static str,
    expected: usize,
    got: usize,
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = (nibble(high)? << 4) | nibble(low)?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $length:literal, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = $length;
            /// All zero bytes: never the id of anything real.
            pub const ZERO: Self = Self([0; $length]);

            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(":")?;
                self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self).ok_or_else(|| ParseIdError { what: $what, digits: $length * 2, text: text.chars().take(80).collect() })
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdLengthError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdLengthError> {
                bytes.try_into().map(Self).map_err(|_| IdLengthError { what: $what, expected: $length, got: bytes.len() })
            }
        }
    };
}

id!(
    /// BLAKE3 digest of an object's whole content: same id, same object.
    ObjectId, 32, "object id", "obj"
);
id!(
    /// BLAKE3 digest of a record's body. The id of a chunk is the digest of its bytes; the id of a version is what
    /// S3 calls its VersionId.
    RecordId, 32, "record id", "rec"
);
id!(
    /// A bucket is the id of the record that created it; names only point to it. All zero is the system bucket.
    BucketId, 32, "bucket id", "bkt"
);
id!(
    /// Chosen by the client, once per put; a retry with the same one returns the version that the first made.
    UploadId, 16, "upload id", "upl"
);
id!(
    /// A node's disks under one name: made at random when a node's directories are initialised, so that a replacement
    /// under the same name is told apart from the node that burnt.
    Incarnation, 16, "incarnation", "inc"
);
id!(
    /// One data directory, made at random when it is initialised.
    DirectoryId, 16, "directory id", "dir"
);
id!(
    /// One run of one process: what was written but not synced in an earlier run counts for nothing.
    BootId, 16, "boot id", "boot"
);

/// The beginning of a 32-byte id, as people copy it from a screen: `3f2a91`, `3f2a91c0…`, or all 64 digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdPrefix(String);

/// Text that is not the beginning of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id: write 6 to 64 hexadecimal digits of it, from its beginning")]
pub struct ParseIdPrefixError(String);

impl IdPrefix {
    /// Fewer digits than this are no abbreviation but a guess: 6 tell some thousand objects apart.
    pub const DIGITS_MIN: usize = 6;
    /// The digits of a whole id.
    pub const DIGITS_MAX: usize = 64;

    /// Whether an id begins like this.
    pub fn begins(&self, id: &[u8; 32]) -> bool {
        let nibbles = id.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        self.0.bytes().map(nibble).zip(nibbles).all(|(wanted, nibble)| wanted == Some(nibble))
    }

    /// The id itself, if nothing of it is left out.
    pub fn whole(&self) -> Option<[u8; 32]> {
        parse_hex(&self.0)
    }

    /// Its digits, in lower case.
    pub fn digits(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdPrefix {
    type Err = ParseIdPrefixError;
    fn from_str(text: &str) -> Result<Self, ParseIdPrefixError> {
        // As it was printed: with an ellipsis, or what an ASCII terminal makes of one.
        let digits = text.trim_end_matches(['…', '.']);
        let fits = (Self::DIGITS_MIN..=Self::DIGITS_MAX).contains(&digits.len());
        if fits && digits.bytes().all(|digit| nibble(digit).is_some()) {
            Ok(Self(digits.to_ascii_lowercase()))
        } else {
            Err(ParseIdPrefixError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for IdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)?;
        if self.0.len() < Self::DIGITS_MAX { f.write_str("…") } else { Ok(()) }
    }
}

impl RecordId {
    /// The id of a record with this body.
    pub fn of(body: &[u8]) -> Self {
        Self(*blake3::hash(body).as_bytes())
    }
}

impl ObjectId {
    /// The id of an object with this content.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

impl BucketId {
    /// Holds what every node must know: bucket settings, access keys.
    pub const SYSTEM: Self = Self::ZERO;
}

impl From<RecordId> for BucketId {
    fn from(creation: RecordId) -> Self {
        Self(creation.0)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn display_round_trips_and_debug_is_short() {
        let id = ObjectId::of(b"");
        assert_eq!(id.to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(format!("{id:?}"), "obj:af1349b9");
    }

    #[test]
    fn an_id_may_be_abbreviated_as_it_is_printed() {
        let id = ObjectId::of(b"");
        for text in ["af1349", "AF1349b", "af1349b9…", "af1349b9...", &id.to_string()] {
            let prefix: IdPrefix = text.parse().expect("a prefix");
            assert!(prefix.begins(id.as_bytes()) && !prefix.begins(ObjectId::of(b"x").as_bytes()), "{text}");
            assert_eq!(prefix.to_string().parse(), Ok(prefix.clone()));
            assert_eq!(prefix.whole().is_some(), text.len() == 64, "{text}");
        }
        let odd: IdPrefix = "af1349b8".parse().expect("a prefix");
        assert!(!odd.begins(id.as_bytes()), "the last digit counts, too");
        for text in ["", "…", "af134", "af134…", "af134g", "af1349 ", "ääääää", &format!("{id}0")] {
            assert!(text.parse::<IdPrefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "af", "zz1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "äääääääääääääääääääääääääääääääää"]
        {
            assert!(text.parse::<ObjectId>().is_err(), "{text}");
        }
        assert!(ObjectId::try_from(&[0_u8; 31][..]).is_err());
    }
}
