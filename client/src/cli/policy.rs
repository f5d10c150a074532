//! A policy as flags: for `bucket create` and `cluster init`.
use crate::error::Error;
use afar_model::{
    policy::{DegradedWrites, Durability, Policy, VerifyDistance},
    units::Metres,
};
use clap::{Args, ValueEnum};

/// What acknowledges a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Copies at far-apart sites.
    Far,
    /// Every copy of the policy.
    Full,
}

/// What to do about refuted distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    /// The pair does not count as far.
    Enforce,
    /// It counts, and is reported.
    Warn,
    /// It counts.
    Off,
}

/// What to do with writes that cannot be far away now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Degraded {
    /// Refuse them.
    Refuse,
    /// Acknowledge them as local, and say so.
    Queue,
}

/// How data are kept.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub struct PolicyFlags {
    /// Copies at distinct sites [default: 2]
    #[arg(long, value_name = "N")]
    copies: Option<u8>,
    /// Of them pairwise far [default: 2]
    #[arg(long, value_name = "N")]
    far_copies: Option<u8>,
    /// What far means [default: 700]
    #[arg(long, value_name = "KM", value_parser = kilometres)]
    min_distance_km: Option<Metres>,
    /// Has a copy of all if it may; see below
    #[arg(long, value_name = "SITE")]
    home: Option<String>,
    /// OK means: far, full [default: far]
    #[arg(long, value_enum, hide_possible_values = true)]
    level: Option<Level>,
    /// Only there [default: anywhere]
    #[arg(long, value_name = "CC,..", value_delimiter = ',')]
    countries: Vec<String>,
    /// [default: any number]
    #[arg(long, value_name = "N")]
    max_copies_per_provider: Option<u8>,
    /// Nearer than claimed: enforce, warn, off
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = true)]
    verify_distance: Option<Verify>,
    /// Not far now: refuse, queue
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = true)]
    degraded_writes: Option<Degraded>,
}

/// Kilometres as flags and files have them: any number from 0 to 40000, as a node reads it.
pub fn metres(km: f64) -> Option<Metres> {
    (0.0..=40_000.0).contains(&km).then(|| Metres((km * 1000.0).round() as u64))
}

fn kilometres(text: &str) -> Result<Metres, String> {
    text.parse().ok().and_then(metres).ok_or_else(|| "write kilometres, such as 700 or 1024.8, from 0 to 40000".to_owned())
}

impl PolicyFlags {
    /// Whether any flag was given.
    pub fn given(&self) -> bool {
        let Self { copies, far_copies, min_distance_km, home, level, countries, max_copies_per_provider, verify_distance, degraded_writes } =
            self;
        copies.is_some()
            || far_copies.is_some()
            || min_distance_km.is_some()
            || home.is_some()
            || level.is_some()
            || !countries.is_empty()
            || max_copies_per_provider.is_some()
            || verify_distance.is_some()
            || degraded_writes.is_some()
    }

    /// Another policy with what was given changed.
    ///
    /// # Errors
    /// If that makes no sense whatever the layout.
    pub fn changing(&self, default: &Policy) -> Result<Policy, Error> {
        let copies = self.copies.unwrap_or(default.copies);
        let policy = Policy {
            copies,
            // One copy cannot be two far ones: with fewer copies than the default, all are far.
            far_copies: self.far_copies.unwrap_or(default.far_copies.min(copies)),
            min_distance: self.min_distance_km.unwrap_or(default.min_distance),
            level: match self.level {
                Some(Level::Full) => Durability::Full,
                Some(Level::Far) => Durability::Far,
                None => default.level,
            },
            // As in a node's file, an empty one is none.
            home: self.home.clone().or_else(|| default.home.clone()).filter(|home| !home.is_empty()),
            countries: if self.countries.is_empty() {
                default.countries.clone()
            } else {
                self.countries.iter().map(|country| country.to_ascii_uppercase()).collect()
            },
            max_copies_per_provider: self.max_copies_per_provider.unwrap_or(default.max_copies_per_provider),
            verify_distance: match self.verify_distance {
                Some(Verify::Enforce) => VerifyDistance::Enforce,
                Some(Verify::Warn) => VerifyDistance::Warn,
                Some(Verify::Off) => VerifyDistance::Off,
                None => default.verify_distance,
            },
            degraded_writes: match self.degraded_writes {
                Some(Degraded::Queue) => DegradedWrites::Queue,
                Some(Degraded::Refuse) => DegradedWrites::Refuse,
                None => default.degraded_writes,
            },
        };
        policy.check().map_err(|error| Error::usage(error.to_string()))?;
        Ok(policy)
    }
}

/// `2 copies, 2 of them at least 700.0 km apart, home strasbourg`.
pub fn words(policy: &Policy) -> String {
    let mut words = format!("{} copies, {} of them at least {} apart", policy.copies, policy.far_copies, policy.min_distance);
    if let Some(home) = &policy.home {
        words.push_str(&format!(", home {home}"));
    }
    if policy.level == Durability::Full {
        words.push_str(", acknowledged when full");
    }
    if !policy.countries.is_empty() {
        words.push_str(&format!(", only in {}", policy.countries.join(" ")));
    }
    if policy.max_copies_per_provider > 0 {
        words.push_str(&format!(", at most {} at one provider", policy.max_copies_per_provider));
    }
    match policy.verify_distance {
        VerifyDistance::Enforce => {}
        VerifyDistance::Warn => words.push_str(", distances only warned about"),
        VerifyDistance::Off => words.push_str(", distances not verified"),
    }
    if policy.degraded_writes == DegradedWrites::Queue {
        words.push_str(", queues writes that cannot be far");
    }
    words
}

/// A policy in JSON.
pub fn json(policy: &Policy) -> serde_json::Value {
    let wire = afar_proto::v1::Policy::from(policy);
    serde_json::json!({
        "copies": policy.copies,
        "far_copies": policy.far_copies,
        "min_distance_km": policy.min_distance.km(),
        "level": wire.level,
        "home": policy.home,
        "countries": policy.countries,
        "max_copies_per_provider": policy.max_copies_per_provider,
        "verify_distance": wire.verify_distance,
        "degraded_writes": wire.degraded_writes,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_flag_is_the_default_policy() {
        assert_eq!(PolicyFlags::default().changing(&Policy::default()).unwrap(), Policy::default());
        assert!(!PolicyFlags::default().given());
    }

    #[test]
    fn what_is_not_given_is_as_the_cluster_has_it() {
        let default = Policy { home: Some("strasbourg".into()), verify_distance: VerifyDistance::Off, ..Policy::default() };
        let flags = PolicyFlags { degraded_writes: Some(Degraded::Queue), ..PolicyFlags::default() };
        let policy = flags.changing(&default).unwrap();
        assert_eq!(policy, Policy { degraded_writes: DegradedWrites::Queue, ..default.clone() });
        let homeless = PolicyFlags { home: Some(String::new()), ..PolicyFlags::default() };
        assert!(homeless.given() && homeless.changing(&default).unwrap().home.is_none(), "and a home can be taken away");
    }

    #[test]
    fn a_distance_is_kilometres_with_or_without_a_fraction() {
        assert_eq!((kilometres("700"), kilometres("1024.8"), kilometres("0")), (Ok(Metres(700_000)), Ok(Metres(1_024_800)), Ok(Metres(0))));
        for text in ["", "far", "NaN", "inf", "-1", "40000.1", "1e300", "1024,8", "1 024.8"] {
            assert!(kilometres(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for flags in [
            PolicyFlags { copies: Some(0), ..PolicyFlags::default() },
            PolicyFlags { far_copies: Some(3), ..PolicyFlags::default() },
            PolicyFlags { min_distance_km: Some(Metres::from_km(30_000)), ..PolicyFlags::default() },
            PolicyFlags { countries: vec!["France".into()], ..PolicyFlags::default() },
        ] {
            assert!(flags.given());
            assert_eq!(flags.changing(&Policy::default()).unwrap_err().kind(), crate::error::Kind::Usage);
        }
        assert_eq!(PolicyFlags { copies: Some(1), ..PolicyFlags::default() }.changing(&Policy::default()).unwrap().far_copies, 1);
    }
}
