//! Distances and what light has to say about them.
use crate::worlds::coordinates;
use afar_model::{
    geo::{Coordinates, Physics, farthest, judge},
    policy::DISTANCE_MAX,
    units::Metres,
};
use proptest::prelude::*;
use std::time::Duration;

/// The great circle on a sphere of the Earth's mean radius: off by up to 0.56 %, and obviously right.
fn haversine(a: &Coordinates, b: &Coordinates) -> f64 {
    let (la, lb) = (a.latitude().to_radians(), b.latitude().to_radians());
    let (dla, dlo) = (lb - la, (b.longitude() - a.longitude()).to_radians());
    let h = (dla / 2.0).sin().powi(2) + la.cos() * lb.cos() * (dlo / 2.0).sin().powi(2);
    2.0 * 6_371_008.8 * h.sqrt().min(1.0).asin()
}

fn turned(point: &Coordinates, degrees: f64) -> Coordinates {
    let longitude = point.longitude() + degrees;
    let wrapped = if longitude > 180.0 { longitude - 360.0 } else { longitude };
    Coordinates::new(point.latitude(), wrapped.clamp(-180.0, 180.0)).unwrap()
}

proptest! {
    #[test]
    fn a_point_is_a_point_only_in_range(latitude in any::<f64>(), longitude in any::<f64>()) {
        let fits = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        prop_assert_eq!(Coordinates::new(latitude, longitude).is_ok(), fits);
        let stored = postcard::to_stdvec(&(latitude, longitude)).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Coordinates>(&stored).is_ok(), fits, "nothing gets in through a file either");
    }

    #[test]
    fn distance_is_the_same_both_ways(a in coordinates(), b in coordinates()) {
        prop_assert_eq!(a.distance(&b), b.distance(&a));
        prop_assert_eq!(a.distance(&a), Metres(0));
        prop_assert!(a.distance(&b) <= DISTANCE_MAX);
    }

    #[test]
    fn no_detour_is_shorter(a in coordinates(), b in coordinates(), c in coordinates()) {
        // Each of the three is rounded down by less than a metre.
        prop_assert!(a.distance(&c).0 <= a.distance(&b).0 + b.distance(&c).0 + 2);
    }

    #[test]
    fn the_antimeridian_is_no_border(a in coordinates(), b in coordinates(), degrees in 0.0..360.0_f64) {
        let moved = turned(&a, degrees).distance(&turned(&b, degrees));
        prop_assert!(moved.0.abs_diff(a.distance(&b).0) <= 1, "{} against {}", moved.0, a.distance(&b).0);
    }

    #[test]
    fn the_ellipsoid_is_nearly_a_sphere(a in coordinates(), b in coordinates()) {
        let (exact, sphere) = (a.distance(&b).0 as f64, haversine(&a, &b));
        prop_assert!((exact - sphere).abs() <= 0.006 * sphere + 1.0, "{exact} against {sphere}");
    }

    #[test]
    fn a_shorter_round_trip_never_clears_a_claim(km in 0..20_003_u64, micros in 0..1_000_000_u64, less in 0..1_000_000_u64) {
        let rank = |micros| match judge(Metres::from_km(km), Duration::from_micros(micros)) {
            Physics::Possible => 0,
            Physics::Suspicious => 1,
            Physics::Refuted => 2,
        };
        prop_assert!(rank(micros.saturating_sub(less)) >= rank(micros));
    }

    #[test]
    fn what_a_round_trip_leaves_possible_is_exact_to_the_metre(nanos in 0..200_000_000_u64) {
        let round_trip = Duration::from_nanos(nanos);
        let edge = farthest(round_trip);
        prop_assert_ne!(judge(edge, round_trip), Physics::Refuted);
        prop_assert_eq!(judge(Metres(edge.0 + 1), round_trip), Physics::Refuted);
    }
}
