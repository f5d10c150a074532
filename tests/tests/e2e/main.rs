//! From end to end: real nodes, the real command line, real faults. Each test is a requirement; one that guards a rule of
//! the consistency rules says so in its name.
//!
//! `AFAR_TEST_SEED` repeats a run, `AFAR_TEST_SECONDS` prolongs those under load, `AFAR_TEST_KEEP` keeps a failed test's files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails, and says where")]

mod common;

mod round_trips;

mod policies;

mod states;

mod alone;

mod crashes;

mod partitions;

mod outages;

mod prepared;

mod lanes;

mod budgets;

mod damage;

mod clients;

mod trust;

mod appends;

mod histories;

mod certificates;

mod names;

mod keys;

mod full_disk;

mod layouts;

mod drops;

mod conflicts;

mod departures;

mod documents;

mod promises;

mod hangups;

mod plans;

mod membership;

mod http;

mod acme;
