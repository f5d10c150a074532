//! What the model promises, as properties: generators make worlds, the oracle is the slow and obvious version.
//!
//! Failing cases are kept in `../proptest-regressions` and run first ever after. `PROPTEST_CASES` and `PROPTEST_RNG_SEED` vary the search.
mod worlds;

mod geography;

mod predicate;

mod placement;

mod coverage;

mod state;

mod clock;

mod records;
