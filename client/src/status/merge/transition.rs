//! Which layouts are open beside the newest, and whom that waits for: so that a change that does not come to its end says why,
//! and what to do.
//!
//! A node that answers is believed about itself; about one that does not, those who wait for it are.
use super::{Awaited, Nodes, OpenLayout, Transition, members};
use afar_model::{document::ShortHash, units::UnixMillis};
use afar_proto::v1;
use std::collections::{BTreeMap, BTreeSet};

/// Why somebody is waited for, the worst first: of several opinions the first counts. The names are those of [`v1::Awaited`],
/// but for what only comparing nodes shows.
const WORST_FIRST: [&str; 9] = ["unplaced", "silent", "unfit", "behind", "unknown", "writing", "catching_up", "fetching", "comparing"];

pub(super) fn transition(nodes: &Nodes<'_>, newest: &v1::NodeStatus) -> Option<Transition> {
    let at_newest = |node: &&&v1::NodeStatus| node.layout_digest == newest.layout_digest;
    let older = older(nodes, newest);
    if older.is_empty() && nodes.values().all(|node| node.open_layouts <= 1) {
        return None;
    }
    let mut found: BTreeMap<&str, Found<'_>> = BTreeMap::new();
    for node in nodes.values().filter(at_newest).filter(|node| node.open_layouts > 1) {
        match &node.transition {
            Some(said) => said.waits.iter().for_each(|wait| found.entry(&wait.node).or_default().add(&node.node, wait)),
            // Of an older version: it waits for something, and does not say for what.
            None => found.entry(&node.node).or_default().own = Some(UNKNOWN),
        }
    }
    for node in nodes.values().filter(|node| !at_newest(node)) {
        found.entry(&node.node).or_default().own = Some(BEHIND);
    }
    let site = |name: &str| newest.nodes.iter().find(|node| node.name == name).map(|node| node.site.clone()).unwrap_or_default();
    let answers = |name: &str| nodes.contains_key(name);
    let mut waits_for: Vec<Awaited> = found.into_iter().map(|(name, found)| found.told(name, site(name), answers(name), newest)).collect();
    waits_for.sort_by_key(|awaited| (rank(&awaited.why), awaited.node.clone()));
    let since = nodes.values().filter(at_newest).filter_map(|node| node.transition.as_ref()).map(|said| said.since).max();
    Some(Transition {
        to: OpenLayout::new(newest.layout_version, &newest.layout_digest),
        since: since.filter(|since| *since > 0).map(UnixMillis),
        older,
        waits_for,
    })
}

/// Everything that is open somewhere beside the newest layout, oldest first.
fn older(nodes: &Nodes<'_>, newest: &v1::NodeStatus) -> Vec<OpenLayout> {
    let said = nodes.values().filter_map(|node| node.transition.as_ref()).flat_map(|said| &said.older);
    let open = said.map(|open| (open.version, open.digest.as_ref()));
    let current = nodes.values().map(|node| (node.layout_version, node.layout_digest.as_ref()));
    let all: BTreeSet<(u64, &[u8])> = open.chain(current).filter(|(_, digest)| *digest != newest.layout_digest.as_ref()).collect();
    all.into_iter().map(|(version, digest)| OpenLayout::new(version, digest)).collect()
}

impl OpenLayout {
    fn new(version: u64, digest: &[u8]) -> Self {
        let name = <[u8; 32]>::try_from(digest).map_or_else(|_| version.to_string(), |hash| format!("{version}-{}", ShortHash(&hash)));
        Self { name, version }
    }
}

fn rank(why: &str) -> usize {
    WORST_FIRST.iter().position(|known| *known == why).unwrap_or(0)
}

/// What is said of one member.
#[derive(Default)]
struct Found<'a> {
    /// By itself, or seen from its answer.
    own: Option<Said<'a>>,
    /// By those who wait for it.
    others: Vec<(&'a str, Said<'a>)>,
}

#[derive(Clone, Copy)]
struct Said<'a> {
    why: &'a str,
    detail: &'a str,
    last_heard: u64,
    fetched: (u64, u64),
}

const UNKNOWN: Said<'static> = Said { why: "unknown", detail: "its version does not say", last_heard: 0, fetched: (0, 0) };
const BEHIND: Said<'static> = Said { why: "behind", detail: "", last_heard: 0, fetched: (0, 0) };

impl<'a> Found<'a> {
    fn add(&mut self, from: &'a str, wait: &'a v1::Awaited) {
        let v1::Awaited { why, detail, last_heard, fetched_bytes, to_fetch_bytes, .. } = wait;
        let said = Said { why, detail, last_heard: *last_heard, fetched: (*fetched_bytes, *to_fetch_bytes) };
        if wait.node == from {
            self.own = Some(said);
        } else {
            self.others.push((from, said));
        }
    }

    fn told(self, name: &str, site: String, answers: bool, newest: &v1::NodeStatus) -> Awaited {
        let heard = self.others.iter().map(|(_, said)| said.last_heard).max().unwrap_or_default();
        let worst = self.others.iter().map(|(_, said)| *said).min_by_key(|said| rank(said.why)).unwrap_or(UNKNOWN);
        // Somebody does not reach it who must: that it answers us does not end the waiting.
        let cut = answers && matches!(worst.why, "silent" | "unfit");
        let said = self.own.filter(|_| !cut).unwrap_or(worst);
        let complain = |said: &Said<'_>| said.why == worst.why;
        let by: Vec<String> = self.others.iter().filter(|(_, said)| complain(said)).map(|(from, _)| (*from).to_owned()).collect();
        let progress = said.why == "fetching";
        Awaited {
            node: name.to_owned(),
            why: said.why.to_owned(),
            detail: said.detail.to_owned(),
            last_heard: (heard > 0 && said.why == "silent").then_some(UnixMillis(heard)),
            fetched_bytes: progress.then_some(said.fetched.0),
            to_fetch_bytes: progress.then_some(said.fetched.1),
            not_reached_from: if matches!(said.why, "silent" | "unfit") { by } else { Vec::new() },
            action: action(said.why, name, &site, cut, newest),
            site,
        }
    }
}

/// What to do about somebody who is waited for.
fn action(why: &str, node: &str, site: &str, cut: bool, newest: &v1::NodeStatus) -> String {
    let alone = members(newest).filter(|other| other.site == site).count() <= 1;
    match why {
        "silent" | "unfit" if cut => "mend the way between them: `afar doctor` says what each of them sees".to_owned(),
        "silent" => {
            let site = if alone { format!(" or, with its site, `afar site lost {site}`") } else { String::new() };
            format!(
                "bring it back; only if it is gone for good: `afar node remove {node} --lost`{site}, and what it alone holds is lost then"
            )
        }
        "unfit" => "see what it complains of, and mend that".to_owned(),
        "behind" => "wait some seconds; if it stays, see its check `layout`".to_owned(),
        "unplaced" => "no waiting ends this: add a site, bring one back, take back a drain (`afar layout rollback`), or ask less of that bucket (`afar bucket set`)".to_owned(),
        "unknown" => "upgrade it, or wait".to_owned(),
        _ => "wait".to_owned(),
    }
}
