//! The three places of the story, and what the placement predicate says of them.
use crate::{
    cluster::{Blueprint, NodePlan},
    error::{Error, Kind},
};
use afar_model::{
    layout::{Layout, SiteIndex, examples},
    placement::{Geography, level, violations},
    policy::{Durability, Policy, VerifyDistance},
    units::Metres,
};
use std::net::TcpListener;

/// The site that burns, and the bucket's home.
pub(super) const HOME: &str = "strasbourg";
/// The bucket.
pub(super) const BUCKET: &str = "demo";
/// All of them, the home first.
pub(super) const SITES: [&str; 3] = ["strasbourg", "roubaix", "warsaw"];
/// Only a weight among equals, and no more than any machine has.
const CAPACITY: u64 = 16 << 30;

/// Three nodes on free ports of this machine.
pub(super) fn blueprint() -> Result<Blueprint, Error> {
    let layout = examples::three_sites().ok_or_else(|| Error::new(Kind::Failed, "the demo's map is wrong"))?;
    // Held together, so that no port is given out twice.
    let listeners = SITES.iter().map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<Vec<_>, _>>();
    let listeners = listeners.map_err(|error| Error::io("find free ports", &error))?;
    let mut nodes = Vec::new();
    for (site, listener) in SITES.iter().zip(&listeners) {
        let port = listener.local_addr().map_err(|error| Error::io("find free ports", &error))?.port();
        nodes.push(NodePlan { name: (*site).into(), site: (*site).into(), host: "127.0.0.1".into(), port, capacity: CAPACITY });
    }
    let mut sites = layout.sites().to_vec();
    for site in &mut sites {
        site.provider = "demo".into();
    }
    let policy = Policy { home: Some(HOME.into()), verify_distance: VerifyDistance::Off, ..Policy::default() };
    Ok(Blueprint { sites, nodes, policy, ..Blueprint::new("demo") })
}

/// What the policy says of a second copy at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) site: String,
    pub(super) distance: Metres,
    /// Whether a copy at home and one there are far.
    pub(super) far: bool,
    /// Why not.
    pub(super) why: String,
}

/// Asks the predicate of every other site: may it hold the far copy of what is at home?
pub(super) fn verdicts(layout: &Layout, policy: &Policy) -> Vec<Verdict> {
    let geography = Geography::claimed(layout);
    let Some(home) = policy.home.as_deref().and_then(|home| layout.site_named(home)) else { return Vec::new() };
    let verdict = |site: SiteIndex| {
        let holders = [home, site];
        let why: Vec<String> = violations(policy, &holders, &geography).iter().map(|violation| violation.explain(layout)).collect();
        Verdict {
            site: layout.site_name(site).to_owned(),
            distance: layout.distance(home, site),
            far: level(policy, &holders, &geography) >= Some(Durability::Far),
            why: why.join("; "),
        }
    };
    layout.site_indexes().filter(|site| *site != home).map(verdict).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn roubaix_is_refused_as_a_far_copy_and_warsaw_taken() {
        let plan = blueprint().unwrap();
        let layout = plan.layout().unwrap();
        let verdicts = verdicts(&layout, &plan.policy);
        let found: Vec<_> = verdicts.iter().map(|verdict| (verdict.site.as_str(), verdict.distance.km(), verdict.far)).collect();
        assert_eq!(found, [("roubaix", 405.8, false), ("warsaw", 1024.8, true)]);
        assert!(verdicts.iter().all(|verdict| verdict.far == verdict.why.is_empty()));
    }
}
