//! Two versions side by side: nodes and clients of the last commit whose layouts could not change, and today's, serve one cluster.
//! `make test-upgrade` builds both and says where the earlier programs are (`AFAR_TEST_BEFORE`); elsewhere these tests are ignored,
//! and say so. What deploy/upgrade.md promises is shown here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails, and says where")]

mod changing;

mod mixed;

mod rolling;
