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
            Ok(found) => return found,
            Err(last) if start.elapsed() > most => panic!("{what}: not within {most:?}; last seen: {last:?}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
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
