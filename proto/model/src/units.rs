//! Units that must not be mixed up, as types.
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whole metres. Distances are rounded down to these once and compared as integers ever after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Metres(pub u64);

impl Metres {
    /// From whole kilometres.
    pub const fn from_km(km: u64) -> Self {
        Self(km.saturating_mul(1000))
    }

    /// In kilometres, rounded to one decimal: what people and JSON are shown. Never what is compared.
    pub fn km(self) -> f64 {
        // At most half the Earth's girth, so exact in an f64.
        (self.0.saturating_add(50) / 100) as f64 / 10.0
    }

    /// The difference, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Metres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} km", self.km())
    }
}

/// Binary units, the smallest first.
pub const BINARY: [(&str, u64); 6] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("PiB", 1 << 50)];

/// A number of bytes as people read it: `1.5 GiB`. Programs are given the number.
pub fn bytes(count: u64) -> String {
    let (unit, size) = BINARY.into_iter().rev().find(|(_, size)| count >= *size).unwrap_or(("B", 1));
    if size == 1 { format!("{count} B") } else { format!("{:.1} {unit}", count as f64 / size as f64) }
}

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// How much later `self` is than `earlier`; zero if it is not.
    pub const fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
