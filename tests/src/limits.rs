//! Every bound of the harness in one place, each with its reason. None of them is a promise about speed: they only end what
//! would never end.
use std::time::Duration;

/// A node is up, or has said why not, within this time; unoptimised builds on a busy machine take seconds.
pub const START_MAX: Duration = Duration::from_secs(60);
/// A cluster has formed, noticed a change, or healed within this time.
pub const SETTLE_MAX: Duration = Duration::from_secs(120);
/// One command of the command line.
pub const COMMAND_MAX: Duration = Duration::from_secs(180);
/// After SIGTERM a node drains for at most ten seconds; then some.
pub const STOP_MAX: Duration = Duration::from_secs(30);
/// Between two looks at a state.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes that the network between two sites holds while they travel: half a second of a 1 Gbit/s link and more.
pub const IN_FLIGHT_BYTES: usize = 64 << 20;
/// Bytes that one read of the network takes.
pub const PIECE_BYTES: usize = 64 << 10;
/// Lines of a node's log that a failing test shows.
pub const LOG_LINES: usize = 40;
/// For so long something is looked at that must not happen: some rounds of whatever could do it.
pub const STAYS: Duration = Duration::from_secs(6);
/// Between two requests of the load: writers and readers leave something of two processors to the nodes.
pub const LOAD_PAUSE: Duration = Duration::from_millis(20);
/// Between two looks at who holds what.
pub const LOAD_LOOK_EVERY: Duration = Duration::from_millis(250);
/// Objects that the load puts; then it only reads. All of them are read again and again.
pub const LOAD_OBJECTS_MAX: usize = 400;
