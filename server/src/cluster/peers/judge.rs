//! What heartbeats say of the claimed distances, and of this node's clock.
use super::{PeerState, Peers};
use crate::{
    cluster::skew::{self, PeerClock},
    limits,
};
use afar_model::{
    geo::{self, Physics},
    layout::{Layout, SiteIndex},
    units::Metres,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// What measured round trips say of a pair of sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairPhysics {
    /// The site of lower index.
    pub a: SiteIndex,
    /// The other.
    pub b: SiteIndex,
    /// What the layout claims.
    pub claimed: Metres,
    /// The least time in which light could have gone from one to the other and back, as measured; over this node if it is
    /// at neither. `None`: not measured yet.
    pub round_trip: Option<Duration>,
    /// The verdict; without a measurement nothing speaks against the claim.
    pub verdict: Physics,
}

impl Peers {
    /// What measured round trips say of every pair of sites that have nodes.
    pub fn physics(&self) -> Vec<PairPhysics> {
        let layout = self.layouts.current();
        let round_trips: Vec<(SiteIndex, Duration)> =
            layout.members().filter_map(|node| Some((layout.site_of(node)?, self.round_trip(node)?))).collect();
        judge_pairs(&layout, &round_trips)
    }

    pub(super) fn judge_distances(&self) {
        let refuted: BTreeSet<(SiteIndex, SiteIndex)> =
            self.physics().iter().filter(|pair| pair.verdict == Physics::Refuted).map(|pair| (pair.a, pair.b)).collect();
        if refuted != **self.refuted.load() {
            let layout = self.layouts.current();
            for (a, b) in refuted.difference(&self.refuted.load()) {
                let (a, b) = (layout.site_name(*a), layout.site_name(*b));
                tracing::warn!(a, b, "a measured round trip is shorter than light needs for the distance that the layout claims");
            }
            self.refuted.store(Arc::new(refuted));
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    pub(super) fn judge_clock(&self) {
        let now = self.clock.monotonic();
        let clocks: Vec<PeerClock> = (self.slots.load().iter().flatten())
            .filter_map(|slot| {
                let record = slot.record.lock();
                let lately = record.heard.is_some_and(|heard| now.saturating_sub(heard) < limits::CLOCK_HEARD_WITHIN);
                let said = record.said.as_ref().filter(|_| lately && record.state() == PeerState::Up)?;
                Some(PeerClock { offset_ms: record.clock_offset_ms, synchronised: said.clock_synchronised })
            })
            .collect();
        let trouble = skew::trouble(skew::judge(self.clock.kernel_synchronised(), &clocks));
        if trouble.is_some() != self.clock_trouble.load().is_some() {
            match &trouble {
                Some(trouble) => tracing::error!(trouble, "writes are refused"),
                None => tracing::info!("the clock is in step again: writes are taken"),
            }
        }
        self.clock_trouble.store(trouble.map(Arc::new));
    }
}

/// Judges every pair of sites by round trips from this node to nodes at them. News cannot go from one to the other faster
/// than over this node, so the sum of both round trips bounds the pair's own.
pub(super) fn judge_pairs(layout: &Layout, round_trips: &[(SiteIndex, Duration)]) -> Vec<PairPhysics> {
    let least = |site: SiteIndex| round_trips.iter().filter(|(at, _)| *at == site).map(|(_, time)| *time).min();
    let sites: Vec<SiteIndex> = layout.site_indexes().filter(|site| layout.nodes_at(*site).next().is_some()).collect();
    let pairs = sites.iter().enumerate().flat_map(|(index, a)| sites.iter().skip(index + 1).map(move |b| (*a, *b)));
    let judged = pairs.map(|(a, b)| {
        let claimed = layout.distance(a, b);
        let round_trip = least(a).zip(least(b)).map(|(to_a, to_b)| to_a + to_b);
        let verdict = round_trip.map_or(Physics::Possible, |time| geo::judge(claimed, time));
        PairPhysics { a, b, claimed, round_trip, verdict }
    });
    judged.collect()
}
