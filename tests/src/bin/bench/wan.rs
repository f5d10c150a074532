//! The same over a long distance: 30 ms there and back between the sites, none to the client.
use crate::{
    Scale,
    objects::{Bench, Load, Way},
    report::Row,
};
use std::{path::Path, time::Duration};

const MIB: usize = 1 << 20;
const ROUND_TRIP: Duration = Duration::from_millis(30);

/// The table.
pub fn measure(base: &Path, scale: Scale) -> Vec<Row> {
    let bench = Bench::start(base, true);
    bench.cluster().network().round_trip("strasbourg", "warsaw", ROUND_TRIP);
    let puts = [
        ("put 64 MiB, 1 at once", Load { size: 64 * MIB, count: scale.large.div_ceil(8), at_once: 1 }),
        ("put 64 MiB, 4 at once", Load { size: 64 * MIB, count: scale.large.div_ceil(2), at_once: 4 }),
        ("put 1 MiB, 1 at once", Load { size: MIB, count: scale.far, at_once: 1 }),
        ("put 4 KiB, 1 at once", Load { size: 4 << 10, count: scale.far, at_once: 1 }),
        ("put 4 KiB, 64 at once", Load { size: 4 << 10, count: scale.small / 5, at_once: 64 }),
    ];
    puts.into_iter().map(|(name, load)| bench.run(name, Way::Put, load)).collect()
}
