//! How a bucket's data are kept, and the levels of durability that an acknowledgement can have.
use crate::units::Metres;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What may be said of a write. The order is the order of promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Fsynced at one site.
    Local,
    /// Fsynced and hash-checked at `far_copies` sites that are pairwise at least `min_distance` apart.
    Far,
    /// Every copy of the policy.
    Full,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Far => "far",
            Self::Full => "full",
        })
    }
}

/// What to do about a pair of sites whose claimed distance physics refutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyDistance {
    /// The pair does not count as far.
    #[default]
    Enforce,
    /// It counts, and is reported.
    Warn,
    /// It counts: for everything-on-one-machine trials.
    Off,
}

/// What to do with a write that cannot be far away now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DegradedWrites {
    /// Refuse it, and say why.
    #[default]
    Refuse,
    /// Acknowledge it as `local`, say so, and count it as at risk until its far copy exists.
    Queue,
}

/// How a bucket's data are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Copies at distinct sites, 1 to 16.
    pub copies: u8,
    /// How many of them are pairwise at least `min_distance` apart, 1 to `copies`.
    pub far_copies: u8,
    /// The distance, 0 to 20,003 km (half a meridian's length).
    pub min_distance: Metres,
    /// What acknowledges a write: `far` or `full`.
    pub level: Durability,
    /// The site that holds a copy if it may.
    pub home: Option<String>,
    /// Countries that may hold a copy (ISO 3166-1 alpha-2), or groups of them ([`crate::countries::GROUPS`]); empty: any.
    pub countries: Vec<String>,
    /// Most copies at sites of one provider; 0: any number.
    pub max_copies_per_provider: u8,
    /// About pairs of sites that physics refutes.
    pub verify_distance: VerifyDistance,
    /// About writes that cannot be far away now.
    pub degraded_writes: DegradedWrites,
}

impl Default for Policy {
    /// Two copies, at least 700 km apart: the rule of the trade.
    fn default() -> Self {
        Self {
            copies: 2,
            far_copies: 2,
            min_distance: Metres::from_km(700),
            level: Durability::Far,
            home: None,
            countries: Vec::new(),
            max_copies_per_provider: 0,
            verify_distance: VerifyDistance::Enforce,
            degraded_writes: DegradedWrites::Refuse,
        }
    }
}

/// Why a policy makes no sense whatever the layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Out of 1 to 16.
    #[error("copies = {0}: must be 1 to {COPIES_MAX}")]
    Copies(u8),
    /// Out of 1 to `copies`.
    #[error("far_copies = {far_copies}: must be 1 to copies, which is {copies}")]
    FarCopies {
        /// As asked.
        far_copies: u8,
        /// As asked.
        copies: u8,
    },
    /// No two points of the Earth are this far apart.
    #[error("min_distance = {0}: no two points of the Earth are more than {max} apart", max = DISTANCE_MAX)]
    Distance(Metres),
    /// Only `far` and `full` promise anything about a fire.
    #[error(
        "level = \"local\": a write is acknowledged at \"far\" or \"full\"; to accept writes while no far site answers, set degraded_writes = \"queue\""
    )]
    Level,
    /// Neither two capital letters nor a group.
    #[error("country {0:?}: must be two capital letters as in ISO 3166-1, such as \"FR\", or a group: \"EU\" or \"EEA\"")]
    Country(String),
}

/// More copies than this is a mistake.
pub const COPIES_MAX: u8 = 16;
/// Half the length of a meridian on WGS 84, rounded up: the greatest distance on Earth.
pub const DISTANCE_MAX: Metres = Metres(20_003_932);

impl Policy {
    /// For the wire: all of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// From the wire; `None` if it is no policy.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok().filter(|policy: &Self| policy.check().is_ok())
    }

    /// What of a policy decides where copies go, as bytes that can be compared: two policies with the same key are placed
    /// alike.
    pub fn placement_key(&self) -> Vec<u8> {
        let mut countries = self.countries.clone();
        countries.sort_unstable();
        countries.dedup();
        let verify = self.verify_distance == VerifyDistance::Enforce;
        let parts = (self.copies, self.far_copies, self.min_distance.0, &self.home, &countries, self.max_copies_per_provider, verify);
        // Writing to a vector does not fail; were it to, no plan would be found, and none is needed.
        postcard::to_stdvec(&parts).unwrap_or_default()
    }

    /// Checks what does not depend on a layout.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    pub fn check(&self) -> Result<(), PolicyError> {
        if !(1..=COPIES_MAX).contains(&self.copies) {
            return Err(PolicyError::Copies(self.copies));
        }
        if !(1..=self.copies).contains(&self.far_copies) {
            return Err(PolicyError::FarCopies { far_copies: self.far_copies, copies: self.copies });
        }
        if self.min_distance > DISTANCE_MAX {
            return Err(PolicyError::Distance(self.min_distance));
        }
        if self.level == Durability::Local {
            return Err(PolicyError::Level);
        }
        match self.countries.iter().find(|country| !crate::countries::is_country_or_group(country)) {
            Some(country) => Err(PolicyError::Country(country.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_rule_of_the_trade() {
        let policy = Policy::default();
        assert_eq!((policy.copies, policy.far_copies, policy.min_distance), (2, 2, Metres(700_000)));
        assert_eq!(policy.check(), Ok(()));
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            Policy { copies: 0, ..Policy::default() },
            Policy { copies: 17, ..Policy::default() },
            Policy { far_copies: 0, ..Policy::default() },
            Policy { far_copies: 3, ..Policy::default() },
            Policy { min_distance: Metres::from_km(30_000), ..Policy::default() },
            Policy { level: Durability::Local, ..Policy::default() },
            Policy { countries: vec!["France".into()], ..Policy::default() },
        ];
        for policy in bad {
            assert!(policy.check().is_err(), "{policy:?}");
        }
    }
}
