//! The hybrid logical clock (rule 4).
use afar_model::{
    hlc::{Hlc, Stamp},
    limits::CLOCK_SKEW_MAX,
    units::UnixMillis,
};
use proptest::{collection::vec, prelude::*};

#[derive(Debug, Clone)]
enum Step {
    /// A stamp is made while the wall clock says this.
    Tick(u64),
    /// A stamp from elsewhere, this many milliseconds ahead of or behind the wall clock.
    Observe(u64, i64),
}

/// Wall clocks that jump back and forth by minutes around one day.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wall = 1_700_000_000_000..1_700_000_600_000_u64;
    let step = prop_oneof![
        wall.clone().prop_map(Step::Tick),
        (wall, -1_000_000..1_000_000_i64).prop_map(|(now, ahead)| Step::Observe(now, ahead)),
    ];
    vec(step, 1..100)
}

proptest! {
    #[test]
    fn rule_4_a_stamp_is_greater_than_all_that_was_seen_and_never_runs_away(steps in steps()) {
        let skew = CLOCK_SKEW_MAX.as_millis() as u64;
        let (mut clock, mut greatest, mut latest_wall) = (Hlc::default(), Stamp::ZERO, 0);
        for step in steps {
            match step {
                Step::Tick(now) => {
                    latest_wall = latest_wall.max(now);
                    let stamp = clock.tick(UnixMillis(now));
                    prop_assert!(stamp > greatest);
                    greatest = stamp;
                    prop_assert!(stamp.time().0 <= latest_wall + skew + 1, "dragged along by a clock that is off");
                }
                Step::Observe(now, ahead) => {
                    latest_wall = latest_wall.max(now);
                    let stamp = Stamp::at(UnixMillis(now.saturating_add_signed(ahead)));
                    match clock.observe(stamp, UnixMillis(now)) {
                        Ok(()) => greatest = greatest.max(stamp),
                        Err(refused) => prop_assert!(refused.ahead_ms > skew),
                    }
                }
            }
        }
    }

    #[test]
    fn rule_4_the_clock_restarts_from_the_logs_maximum(last in 0..u64::MAX / 2, now in any::<u64>()) {
        let last = Stamp::from_u64(last);
        prop_assert!(Hlc::starting_after(last).tick(UnixMillis(now)) > last);
    }

    #[test]
    fn a_stamp_keeps_its_order_and_its_time(a in any::<u64>(), b in any::<u64>(), millis in 0..1_u64 << 48) {
        prop_assert_eq!(Stamp::from_u64(a).cmp(&Stamp::from_u64(b)), a.cmp(&b));
        prop_assert_eq!(Stamp::from_u64(a).as_u64(), a);
        prop_assert_eq!(Stamp::at(UnixMillis(millis)).time(), UnixMillis(millis));
    }
}
