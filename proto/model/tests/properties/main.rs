//! What the model promises, as properties: generators make worlds, the oracle is the slow and obvious version.
//!
//! Failing cases are kept in `../proptest-regressions` and run first ever after. `PROPTEST_CASES` and `PROPTEST_RNG_SEED` vary the search.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod worlds;

mod geography;

mod predicate;

mod placement;

mod plan;

mod advice;

mod coverage;

mod state;

mod clock;

mod records;
