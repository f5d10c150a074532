//! Units that must not be mixed up, as types.
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, fmt::Write as _};

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

/// A name as a person is shown it: one with control characters as a shell quotes it (`$'a\nb'`), so that it stays on its line, plays
/// no tricks on a terminal, and can be pasted. Programs are given the name.
pub fn printable(name: &str) -> Cow<'_, str> {
    if !name.chars().any(char::is_control) {
        return Cow::Borrowed(name);
    }
    let mut quoted = "$'".to_owned();
    for character in name.chars() {
        match character {
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\'' | '\\' => quoted.extend(['\\', character]),
            // Into memory: cannot fail.
            control if control.is_control() => drop(write!(quoted, "\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    Cow::Owned(quoted)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_control_characters_are_quoted_as_a_shell_does() {
        assert_eq!(printable("a b/c's \u{fc}"), "a b/c's \u{fc}");
        assert_eq!(printable("a\n\t\u{1b}[31m'\\\u{9b}"), r"$'a\n\t\u001b[31m\'\\\u009b'");
    }
}
