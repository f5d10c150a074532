//! Where things are, how far apart, and what physics has to say about it.
//!
//! Distances are WGS 84 geodesics (C. F. F. Karney, "Algorithms for geodesics", J. Geodesy 87, 2013), less the
//! uncertainty of both coordinates, rounded down once to whole metres and compared as integers ever after (rule 9). So
//! the promise is about discs of diameter *less than* the minimum distance.
use crate::units::Metres;
use geographiclib_rs::{Geodesic, InverseGeodesic};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// A point of the Earth: latitude and longitude in degrees on WGS 84, checked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Coordinates {
    latitude: f64,
    longitude: f64,
}

/// Why a pair of numbers is no point of the Earth.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CoordinatesError {
    /// NaN, infinite, or outside -90 to 90.
    #[error("latitude {0}: must be a number from -90 to 90")]
    Latitude(f64),
    /// NaN, infinite, or outside -180 to 180.
    #[error("longitude {0}: must be a number from -180 to 180")]
    Longitude(f64),
    /// Not two numbers with a comma.
    #[error("{0:?}: write a latitude and a longitude in degrees, such as 48.5734,7.7521")]
    Syntax(String),
}

impl Coordinates {
    /// Checks the ranges.
    ///
    /// # Errors
    /// If a number is not finite or out of its range.
    pub fn new(latitude: f64, longitude: f64) -> Result<Self, CoordinatesError> {
        if !(-90.0..=90.0).contains(&latitude) {
            return Err(CoordinatesError::Latitude(latitude));
        }
        if !(-180.0..=180.0).contains(&longitude) {
            return Err(CoordinatesError::Longitude(longitude));
        }
        Ok(Self { latitude, longitude })
    }

    /// Degrees north, -90 to 90.
    pub const fn latitude(&self) -> f64 {
        self.latitude
    }

    /// Degrees east, -180 to 180.
    pub const fn longitude(&self) -> f64 {
        self.longitude
    }

    /// The length of the geodesic between two points, rounded down to whole metres.
    pub fn distance(&self, other: &Self) -> Metres {
        let metres: f64 = Geodesic::wgs84().inverse(self.latitude, self.longitude, other.latitude, other.longitude);
        // The algorithm is not exactly symmetric in its last digits; the lesser of both ways is, and is the safe one.
        let back: f64 = Geodesic::wgs84().inverse(other.latitude, other.longitude, self.latitude, self.longitude);
        Metres(metres.min(back).max(0.0).floor() as u64)
    }
}

impl<'de> Deserialize<'de> for Coordinates {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            latitude: f64,
            longitude: f64,
        }
        let raw = Raw::deserialize(deserializer)?;
        Self::new(raw.latitude, raw.longitude).map_err(serde::de::Error::custom)
    }
}

impl FromStr for Coordinates {
    type Err = CoordinatesError;
    fn from_str(text: &str) -> Result<Self, CoordinatesError> {
        let syntax = || CoordinatesError::Syntax(text.chars().take(80).collect());
        let (latitude, longitude) = text.split_once(',').ok_or_else(syntax)?;
        let number = |part: &str| part.trim().parse::<f64>().map_err(|_| syntax());
        Self::new(number(latitude)?, number(longitude)?)
    }
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.latitude, self.longitude)
    }
}

/// Metres that light travels per second in vacuum (exact, by the definition of the metre).
const LIGHT_IN_VACUUM: u128 = 299_792_458;
/// Metres per second of light in fibre, rounded: two thirds of that in vacuum.
const LIGHT_IN_FIBRE: u128 = 200_000_000;

/// What a measured minimum round trip says about a claimed distance. A round trip can only be inflated, so a short one
/// is proof and a long one is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Physics {
    /// Nothing speaks against the claim.
    Possible,
    /// Faster than light in fibre could be: the claim is suspicious.
    Suspicious,
    /// Faster than light: the claim is false.
    Refuted,
}

/// Judges a claimed distance by the least round trip ever measured between the two places.
pub fn judge(claimed: Metres, least_round_trip: Duration) -> Physics {
    let there_and_back = 2 * u128::from(claimed.0) * 1_000_000_000;
    let nanos = least_round_trip.as_nanos();
    if nanos * LIGHT_IN_VACUUM < there_and_back {
        Physics::Refuted
    } else if nanos * LIGHT_IN_FIBRE < there_and_back {
        Physics::Suspicious
    } else {
        Physics::Possible
    }
}

/// The greatest distance that a round trip leaves possible.
pub fn farthest(least_round_trip: Duration) -> Metres {
    let metres = least_round_trip.as_nanos() * LIGHT_IN_VACUUM / 2_000_000_000;
    Metres(u64::try_from(metres).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Coordinates {
        text.parse().unwrap()
    }

    #[test]
    fn the_distances_that_the_product_names() {
        let (strasbourg, roubaix, warsaw) = (at("48.5734,7.7521"), at("50.6927,3.1778"), at("52.2297,21.0122"));
        assert_eq!(strasbourg.distance(&roubaix).km(), 405.8);
        assert_eq!(strasbourg.distance(&warsaw).km(), 1024.8);
        assert_eq!(roubaix.distance(&warsaw).km().round(), 1248.0);
    }

    #[test]
    fn the_edges_of_the_map() {
        assert_eq!(at("0,180").distance(&at("0,-180")), Metres(0));
        assert!(at("0,179.9").distance(&at("0,-179.9")) < Metres::from_km(23));
        assert_eq!(at("90,0").distance(&at("90,123")), Metres(0));
        assert_eq!(at("90,0").distance(&at("-90,0")), Metres(20_003_931));
        assert!(at("0,0").distance(&at("0,180")) <= crate::policy::DISTANCE_MAX);
    }

    #[test]
    fn what_is_no_point_is_refused() {
        for text in ["NaN,0", "0,NaN", "inf,0", "91,0", "0,181", "48", "a,b", "", "1,2,3"] {
            assert!(text.parse::<Coordinates>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_beats_light() {
        let far = Metres::from_km(700);
        assert_eq!(judge(far, Duration::from_micros(4_669)), Physics::Refuted);
        assert_eq!(judge(far, Duration::from_micros(4_671)), Physics::Suspicious);
        assert_eq!(judge(far, Duration::from_micros(7_000)), Physics::Possible);
        assert_eq!(farthest(Duration::from_micros(400)).0 / 1000, 59);
    }
}
