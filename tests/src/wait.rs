//! Waiting for a state, never for a time.
use crate::limits::LOOK_EVERY;
use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Looks until `look` says `Ok`; what it said last is shown if it never does.
///
/// # Panics
/// After `most`.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, most: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => {
                eprintln!("{what}: after {:.1} s", start.elapsed().as_secs_f64());
                return found;
            }
            Err(last) if start.elapsed() > most => panic!("{what}: not within {most:?}; last seen: {last:?}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Looks again and again whether something stays as it is. Nothing shorter than watching shows that something does not
/// happen; that it could not happen is what the code's own tests are for.
///
/// # Panics
/// As soon as it does not.
#[track_caller]
pub fn stays<E: Debug>(what: &str, for_so_long: Duration, mut look: impl FnMut() -> Result<(), E>) {
    let start = Instant::now();
    while start.elapsed() < for_so_long {
        if let Err(changed) = look() {
            panic!("{what}: not after {:?}: {changed:?}", start.elapsed());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks until it is true.
///
/// # Panics
/// After `most`.
#[track_caller]
pub fn until_true(what: &str, most: Duration, mut look: impl FnMut() -> bool) {
    until(what, most, || look().then_some(()).ok_or("not yet"));
}
