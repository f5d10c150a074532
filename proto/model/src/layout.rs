//! The versioned document that names sites and nodes. Checked once, at the door; inside, an index is always valid.
use crate::{assignment::Assignment, geo::Coordinates, id::BucketId, limits, policy::Policy, units::Metres};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A site by its place in [`Layout::sites`]. The same site has the same index in every layout of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SiteIndex(pub u16);

/// A node by its place in [`Layout::nodes`]. The same node has the same index in every layout of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeIndex(pub u16);

/// What may be expected of a site or a node, the worse the later. A node never returns from the last two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// Takes part.
    #[default]
    Active,
    /// Is assigned nothing more, and hands over what it has.
    Draining,
    /// Out of service for good: holds nothing that counts. Its place in the list stays, so that indexes do.
    Removed,
    /// Destroyed, as an operator says: nobody waits for it, and what it alone held is gone.
    Lost,
}

impl Duty {
    /// As it is shown and written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
            Self::Lost => "lost",
        }
    }

    /// Whether it is still waited for and asked.
    pub const fn is_member(self) -> bool {
        matches!(self, Self::Active | Self::Draining)
    }
}

/// A datacentre.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Unique; see [`is_name`].
    pub name: String,
    /// Where it is.
    pub coordinates: Coordinates,
    /// By how much the coordinates may be off; taken from every distance.
    pub uncertainty: Metres,
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// Whose it is; may be empty.
    pub provider: String,
    /// Whether it takes part.
    pub duty: Duty,
}

/// One `afard` with its data directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Unique; see [`is_name`].
    pub name: String,
    /// The name of its site.
    pub site: String,
    /// Its share in bytes; weighs how many partitions it gets.
    pub capacity: u64,
    /// Where clients and peers reach it: `https://HOST:PORT`.
    pub endpoint: String,
    /// Whether it takes part. A node at a site that is lost is lost, whatever this says: see [`Layout::duty`].
    pub duty: Duty,
}

/// Sites, nodes and how finely the hash space is cut: valid by construction.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    version: u64,
    partitions: u32,
    sites: Vec<Site>,
    nodes: Vec<Node>,
    site_of: Vec<SiteIndex>,
    distances: Vec<Vec<Metres>>,
    hash: [u8; 32],
    plans: BTreeMap<PolicyKey, Arc<Assignment>>,
    promises: BTreeMap<BucketId, Policy>,
}

/// A policy as far as it decides placement, in a form that can be looked up.
pub type PolicyKey = Vec<u8>;

/// One thing wrong with a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutProblem {
    /// Nothing to place data on.
    #[error("there is no {0}: name at least one")]
    None(&'static str),
    /// More than the program handles.
    #[error("{count} {what}: the most is {max}")]
    TooMany {
        /// "sites" or "nodes".
        what: &'static str,
        /// As given.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// Two of one name.
    #[error("two {what} are named {name:?}: names must be unique")]
    Duplicate {
        /// "sites" or "nodes".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that would not survive a path, a label or a URL.
    #[error("{0:?} cannot be a name: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit")]
    Name(String),
    /// A node at a site that the layout does not name.
    #[error("node {node:?} is at site {site:?}, which the layout does not name; it names {known}")]
    UnknownSite {
        /// The node.
        node: String,
        /// What it says.
        site: String,
        /// What there is.
        known: String,
    },
    /// Not two capital letters.
    #[error("site {site:?}: country {country:?} must be two capital letters as in ISO 3166-1, such as \"FR\"")]
    Country {
        /// The site.
        site: String,
        /// As given.
        country: String,
    },
    /// A node that takes part without room for anything.
    #[error("node {0:?} has no capacity: give it some, or drain it")]
    Capacity(String),
    /// A partition count out of 1 to 65,536 or not a power of two.
    #[error("partitions = {0}: must be a power of two from 1 to 65536")]
    Partitions(u32),
}

/// Whether this can name a site or a node: 1 to 63 of `a-z`, `0-9`, `-`, beginning with a letter or digit.
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !name.starts_with('-')
}

/// Whether this is where a node can be called: `https://HOST[:PORT]`, the host a DNS name, an IPv4 address or an IPv6 address in
/// brackets.
pub fn is_endpoint(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("https://").map(|rest| rest.strip_suffix('/').unwrap_or(rest)) else { return false };
    let is_port = |text: &str| text.bytes().all(|c| c.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(rest) = rest.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else { return false };
        return host.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    (host.parse::<std::net::Ipv4Addr>().is_ok() || is_host(host)) && port.is_none_or(is_port)
}

/// A DNS name; one that ends in a number would be taken for an address.
fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(is_label) && !last.bytes().all(|c| c.is_ascii_digit())
}

/// Whether this looks like an ISO 3166-1 alpha-2 code.
pub fn is_country(code: &str) -> bool {
    // "EU" is reserved for the union, which is no place: as a group it may stand in policies.
    code.len() == 2 && code != "EU" && code.bytes().all(|c| c.is_ascii_uppercase())
}

impl Layout {
    /// Checks everything and complains completely.
    ///
    /// # Errors
    /// Every problem found.
    pub fn new(version: u64, partitions: u32, sites: Vec<Site>, nodes: Vec<Node>) -> Result<Self, Vec<LayoutProblem>> {
        let mut problems = Vec::new();
        check_count("sites", "site", sites.len(), limits::SITES_MAX, &mut problems);
        check_count("nodes", "node", nodes.len(), limits::NODES_MAX, &mut problems);
        check_names("sites", sites.iter().map(|site| &site.name), &mut problems);
        check_names("nodes", nodes.iter().map(|node| &node.name), &mut problems);
        for site in sites.iter().filter(|site| !is_country(&site.country)) {
            problems.push(LayoutProblem::Country { site: site.name.clone(), country: site.country.clone() });
        }
        if !partitions.is_power_of_two() || partitions > 1 << 16 {
            problems.push(LayoutProblem::Partitions(partitions));
        }
        for node in nodes.iter().filter(|node| node.capacity == 0 && node.duty == Duty::Active) {
            problems.push(LayoutProblem::Capacity(node.name.clone()));
        }
        let mut site_of = Vec::with_capacity(nodes.len());
        for node in &nodes {
            match sites.iter().position(|site| site.name == node.site) {
                Some(index) => site_of.push(SiteIndex(index as u16)),
                None => problems.push(LayoutProblem::UnknownSite {
                    node: node.name.clone(),
                    site: node.site.clone(),
                    known: sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>().join(", "),
                }),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let distances = sites.iter().map(|a| sites.iter().map(|b| between(a, b)).collect()).collect();
        let mut layout = Self {
            version,
            partitions,
            sites,
            nodes,
            site_of,
            distances,
            hash: [0; 32],
            plans: BTreeMap::new(),
            promises: BTreeMap::new(),
        };
        layout.hash = layout.digest();
        Ok(layout)
    }

    /// The same with the assignments and promises of a document, under that document's hash.
    #[must_use]
    pub fn with(
        mut self,
        hash: [u8; 32],
        plans: impl IntoIterator<Item = (Policy, Assignment)>,
        promises: impl IntoIterator<Item = (BucketId, Policy)>,
    ) -> Self {
        self.hash = hash;
        self.plans = plans.into_iter().map(|(policy, plan)| (policy.placement_key(), Arc::new(plan))).collect();
        self.promises = promises.into_iter().collect();
        self
    }

    /// What names this very layout: the digest of its document, or of what it says if it has none.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The assignment that was planned for a policy; `None` if the policy is newer than the last plan.
    pub fn plan(&self, policy: &Policy) -> Option<&Arc<Assignment>> {
        if self.plans.is_empty() { None } else { self.plans.get(&policy.placement_key()) }
    }

    /// How a bucket is kept under this layout, if that was changed since it was made.
    pub fn promise(&self, bucket: &BucketId) -> Option<&Policy> {
        self.promises.get(bucket)
    }

    /// What may be expected of a node: the worse of its own duty and its site's. Lost for an index of another layout.
    pub fn duty(&self, node: NodeIndex) -> Duty {
        let site = self.site_of(node).and_then(|site| self.site(site)).map_or(Duty::Lost, |site| site.duty);
        self.node(node).map_or(Duty::Lost, |node| node.duty).max(site)
    }

    /// The nodes that are still waited for and asked: all but those that were removed or lost.
    pub fn members(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.node_indexes().filter(|node| self.duty(*node).is_member())
    }

    /// Its place in the history of layouts.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Into how many slices the hash space is cut; a power of two.
    pub const fn partitions(&self) -> u32 {
        self.partitions
    }

    /// All sites, in the order of their indexes.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// All nodes, in the order of their indexes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Every site's index.
    pub fn site_indexes(&self) -> impl Iterator<Item = SiteIndex> + use<> {
        (0..self.sites.len() as u16).map(SiteIndex)
    }

    /// Every node's index.
    pub fn node_indexes(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        (0..self.nodes.len() as u16).map(NodeIndex)
    }

    /// The site of that index; `None` for an index of another layout.
    pub fn site(&self, index: SiteIndex) -> Option<&Site> {
        self.sites.get(usize::from(index.0))
    }

    /// The node of that index; `None` for an index of another layout.
    pub fn node(&self, index: NodeIndex) -> Option<&Node> {
        self.nodes.get(usize::from(index.0))
    }

    /// The site's name, or a question mark for an index of another layout.
    pub fn site_name(&self, index: SiteIndex) -> &str {
        self.site(index).map_or("?", |site| &site.name)
    }

    /// The node's name, or a question mark for an index of another layout.
    pub fn node_name(&self, index: NodeIndex) -> &str {
        self.node(index).map_or("?", |node| &node.name)
    }

    /// The site that a node is at; `None` for an index of another layout.
    pub fn site_of(&self, node: NodeIndex) -> Option<SiteIndex> {
        self.site_of.get(usize::from(node.0)).copied()
    }

    /// The nodes at a site.
    pub fn nodes_at(&self, site: SiteIndex) -> impl Iterator<Item = NodeIndex> + '_ {
        self.node_indexes().filter(move |node| self.site_of(*node) == Some(site))
    }

    /// The site of that name.
    pub fn site_named(&self, name: &str) -> Option<SiteIndex> {
        self.sites.iter().position(|site| site.name == name).map(|index| SiteIndex(index as u16))
    }

    /// The node of that name.
    pub fn node_named(&self, name: &str) -> Option<NodeIndex> {
        self.nodes.iter().position(|node| node.name == name).map(|index| NodeIndex(index as u16))
    }

    /// How far apart two sites certainly are: the geodesic less both uncertainties. Zero for unknown indexes, since
    /// what is not known is not far.
    pub fn distance(&self, a: SiteIndex, b: SiteIndex) -> Metres {
        self.distances.get(usize::from(a.0)).and_then(|row| row.get(usize::from(b.0))).copied().unwrap_or_default()
    }

    /// What two nodes must agree on to work together: a digest of everything that placement depends on.
    pub fn digest(&self) -> [u8; 32] {
        let text = serde_free_text(self);
        *blake3::hash(text.as_bytes()).as_bytes()
    }
}

/// One line per fact, in order of names, so that the order in a file does not matter to the digest.
fn serde_free_text(layout: &Layout) -> String {
    let mut lines: Vec<String> = layout
        .sites
        .iter()
        .map(|s| format!("site {} {} {} {} {:?}", s.name, s.coordinates, s.uncertainty.0, s.country, s.provider))
        .chain(layout.nodes.iter().map(|n| format!("node {} {} {}", n.name, n.site, n.capacity)))
        .collect();
    lines.sort_unstable();
    format!("afar layout 1\n{} {}\n{}", layout.version, layout.partitions, lines.join("\n"))
}

fn between(a: &Site, b: &Site) -> Metres {
    a.coordinates.distance(&b.coordinates).saturating_sub(a.uncertainty).saturating_sub(b.uncertainty)
}

fn check_count(what: &'static str, one: &'static str, count: usize, max: usize, problems: &mut Vec<LayoutProblem>) {
    if count == 0 {
        problems.push(LayoutProblem::None(one));
    }
    if count > max {
        problems.push(LayoutProblem::TooMany { what, count, max });
    }
}

fn check_names<'a>(what: &'static str, names: impl Iterator<Item = &'a String>, problems: &mut Vec<LayoutProblem>) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !is_name(name) {
            problems.push(LayoutProblem::Name(name.chars().take(80).collect()));
        }
        if !seen.insert(name) {
            problems.push(LayoutProblem::Duplicate { what, name: name.clone() });
        }
    }
}

/// Layouts for tests and documentation.
pub mod examples {
    use super::{Duty, Layout, Node, Site};
    use crate::{geo::Coordinates, units::Metres};

    /// A site of that name, country and place, known to the metre; `None` if the coordinates are out of range.
    pub fn site(name: &str, country: &str, latitude: f64, longitude: f64) -> Option<Site> {
        let coordinates = Coordinates::new(latitude, longitude).ok()?;
        Some(Site {
            name: name.into(),
            coordinates,
            uncertainty: Metres(0),
            country: country.into(),
            provider: String::new(),
            duty: Duty::Active,
        })
    }

    /// A node of that name at a site, of one byte.
    pub fn node(name: &str, site: &str) -> Node {
        Node { name: name.into(), site: site.into(), capacity: 1, endpoint: format!("https://{name}:7700"), duty: Duty::Active }
    }

    /// Strasbourg, Roubaix and Warsaw, a node of the same name at each: the demo's.
    pub fn three_sites() -> Option<Layout> {
        let sites = vec![
            site("strasbourg", "FR", 48.5734, 7.7521)?,
            site("roubaix", "FR", 50.6927, 3.1778)?,
            site("warsaw", "PL", 52.2297, 21.0122)?,
        ];
        let node = |site: &Site| Node { capacity: 1 << 30, ..node(&site.name, &site.name) };
        let nodes = sites.iter().map(node).collect();
        Layout::new(1, crate::limits::PARTITIONS_DEFAULT, sites, nodes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::examples::node;

    #[test]
    fn an_endpoint_is_where_a_node_can_be_called() {
        let good = ["https://a", "https://a:7700", "https://10.0.0.1:1", "https://[::1]:7700", "https://n-1.example.org:65535/"];
        assert!(good.iter().all(|endpoint| is_endpoint(endpoint)));
        let bad = [
            "",
            "a:1",
            "http://a:1",
            "https://",
            "https://:1",
            "https://a:",
            "https://a:0",
            "https://a:65536",
            "https://a:+1",
            "https://a b:1",
            "https://a:1/x",
            "https://u@a:1",
            "https://-a:1",
            "https://a..b:1",
            "https://[::1",
            "https://[x]:1",
            "https://1.2.3.256:1",
        ];
        for endpoint in bad {
            assert!(!is_endpoint(endpoint), "{endpoint}");
        }
    }

    #[test]
    fn a_layout_complains_completely() {
        let sites = vec![
            examples::site("a", "FR", 0.0, 0.0).unwrap(),
            examples::site("a", "FR", 1.0, 0.0).unwrap(),
            examples::site("Bad name", "France", 1.0, 0.0).unwrap(),
        ];
        let problems = Layout::new(1, 3, sites, vec![node("n", "nowhere")]).unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn uncertainty_is_taken_from_every_distance() {
        let mut sites = vec![examples::site("a", "FR", 0.0, 0.0).unwrap(), examples::site("b", "FR", 0.0, 10.0).unwrap()];
        let exact = Layout::new(1, 8, sites.clone(), vec![node("n", "a")]).unwrap().distance(SiteIndex(0), SiteIndex(1));
        for site in &mut sites {
            site.uncertainty = Metres(700);
        }
        let layout = Layout::new(1, 8, sites, vec![node("n", "a")]).unwrap();
        assert_eq!(layout.distance(SiteIndex(0), SiteIndex(1)), Metres(exact.0 - 1400));
        assert_eq!(layout.distance(SiteIndex(0), SiteIndex(9)), Metres(0));
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_in_a_file() {
        let layout = examples::three_sites().unwrap();
        let (mut sites, mut nodes) = (layout.sites().to_vec(), layout.nodes().to_vec());
        sites.reverse();
        nodes.rotate_left(1);
        let other = Layout::new(1, layout.partitions(), sites, nodes).unwrap();
        assert_eq!(layout.digest(), other.digest());
    }
}
