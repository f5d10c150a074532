//! Why older layouts stay open, and when they are closed: one pure function decides it and tells it, so that what an operator
//! reads is what is really waited for.
//!
//! Two steps (rule 21). *Draining*: every member has the current layout, and no request is under way there that began by older
//! ones only. *Syncing*: since then every member has compared itself with every other, and has what is its own. Who is waited
//! for in the first step says nothing about the second yet.
use crate::{cluster::peers::PeerView, node::Node};
use afar_model::{
    document::Chapter,
    layout::{Layout, NodeIndex},
    units::UnixMillis,
};
use afar_proto::{convert, v1};
use std::sync::Arc;

/// How far a transition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Not every member writes by the current layout alone.
    Draining(Vec<Wait>),
    /// All do; not every one has everything that it assigns to it.
    Syncing(Vec<Wait>),
    /// Older layouts can be closed.
    Done,
}

/// A member that older layouts stay open for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Its name.
    pub node: String,
    /// What is not there yet.
    pub why: Why,
    /// More about it, in words; may be empty.
    pub detail: String,
    /// When it was last heard; `None`: never, or it is this node itself.
    pub heard: Option<UnixMillis>,
    /// Bytes that it lacked by the current layout and has now, and those that it lacks still, as far as is known.
    pub fetched: (u64, u64),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It does not answer.
    Silent,
    /// It answers, and cannot be worked with.
    Unfit,
    /// It has another layout.
    Behind,
    /// Requests are under way there that began by older layouts only.
    Writing,
    /// It has lost something, and its word counts only when it has it back.
    CatchingUp,
    /// A bucket can be placed nowhere: no waiting ends that.
    Unplaced,
    /// Records are on their way to it.
    Fetching,
    /// It has not compared itself with everybody yet.
    Comparing,
}

impl Why {
    /// As in [`v1::Awaited`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Unfit => "unfit",
            Self::Behind => "behind",
            Self::Writing => "writing",
            Self::CatchingUp => "catching_up",
            Self::Unplaced => "unplaced",
            Self::Fetching => "fetching",
            Self::Comparing => "comparing",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Silent => "does not answer",
            Self::Unfit => "cannot be worked with",
            Self::Behind => "has another layout",
            Self::Writing => "still writes by an older layout",
            Self::CatchingUp => "is catching up",
            Self::Unplaced => "has no place for a bucket",
            Self::Fetching => "is fetching",
            Self::Comparing => "is comparing",
        }
    }
}

/// What is known of one member, this node included.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    heard: Option<UnixMillis>,
    fetched: (u64, u64),
    /// Why it is not worked with, if it is not: whether it answers at all is the first thing to know.
    unusable: Option<(Why, String)>,
    has_layout: bool,
    drained: bool,
    /// What it lacks to be synced, and more about that.
    lacks: Option<(Why, String)>,
}

impl Member {
    fn of(view: PeerView, current: &[u8; 32]) -> Self {
        let (records, bytes) = view.rebalance;
        let lacks = match () {
            () if view.layout_synced => None,
            () if view.catching_up => Some(Why::CatchingUp),
            () if records > 0 => Some(Why::Fetching),
            () => Some(Why::Comparing),
        };
        let whether = if view.answers { Why::Unfit } else { Why::Silent };
        Self {
            unusable: (!view.usable).then_some((whether, view.trouble)),
            has_layout: view.layout_hash == current.as_slice(),
            drained: view.layout_drained,
            lacks: lacks.map(|why| (why, String::new())),
            name: view.node,
            heard: view.last_heard_wall,
            fetched: (0, bytes),
        }
    }

    /// One that the current layout names, and that this node has not made room for yet.
    fn unmet(name: &str) -> Self {
        let unusable = Some((Why::Silent, "not met yet".to_owned()));
        Self { name: name.to_owned(), heard: None, fetched: (0, 0), unusable, has_layout: false, drained: false, lacks: None }
    }

    fn wait(&self, why: Why, detail: &str) -> Wait {
        Wait { node: self.name.clone(), why, detail: detail.to_owned(), heard: self.heard, fetched: self.fetched }
    }

    fn draining(&self) -> Option<Wait> {
        match () {
            () if let Some((why, trouble)) = &self.unusable => Some(self.wait(*why, trouble)),
            () if !self.has_layout => Some(self.wait(Why::Behind, "")),
            () if !self.drained => Some(self.wait(Why::Writing, "")),
            () => None,
        }
    }

    fn syncing(&self) -> Option<Wait> {
        self.lacks.as_ref().map(|(why, detail)| self.wait(*why, detail))
    }
}

/// The step that all of these are at together.
fn step(members: &[Member]) -> Step {
    let draining: Vec<Wait> = members.iter().filter_map(Member::draining).collect();
    if !draining.is_empty() {
        return Step::Draining(draining);
    }
    let syncing: Vec<Wait> = members.iter().filter_map(Member::syncing).collect();
    if syncing.is_empty() { Step::Done } else { Step::Syncing(syncing) }
}

impl Step {
    /// Who is waited for.
    pub fn waits(&self) -> &[Wait] {
        match self {
            Self::Draining(waits) | Self::Syncing(waits) => waits,
            Self::Done => &[],
        }
    }

    /// Who is waited for, in words: `strasbourg (does not answer), warsaw (is fetching)`.
    pub fn words(&self) -> String {
        let words = self.waits().iter().map(|wait| format!("{} ({})", wait.node, wait.why.words()));
        words.collect::<Vec<_>>().join(", ")
    }
}

impl Node {
    /// How far the transition to a layout is, the current one, as this node sees it.
    pub fn transition(&self, layout: &Layout) -> Step {
        let known = |peer| match self.peers.view(peer) {
            Some(view) => Member::of(view, layout.hash()),
            None => Member::unmet(layout.node_name(peer)),
        };
        let members: Vec<Member> = std::iter::once(self.as_member()).chain(self.peers.others().map(known)).collect();
        step(&members)
    }

    fn as_member(&self) -> Member {
        Member {
            name: self.layout().node_name(self.me).to_owned(),
            heard: None,
            fetched: self.rebalance.progress(),
            unusable: None,
            has_layout: true,
            drained: self.layouts.is_drained(),
            lacks: self.unsynced(),
        }
    }

    /// Whether this node has everything that the current layout assigns to it. Never, while a bucket can be placed nowhere:
    /// nobody would be assigned anything, and nothing would be all of it.
    pub fn is_synced(&self) -> bool {
        self.unsynced().is_none()
    }

    fn unsynced(&self) -> Option<(Why, String)> {
        if self.is_catching_up() {
            return Some((Why::CatchingUp, String::new()));
        }
        let present = self.buckets.present();
        let homeless = present.buckets.values().find_map(|bucket| Some((bucket, bucket.now().placement.as_ref().err()?)));
        if let Some((bucket, why)) = homeless {
            return Some((Why::Unplaced, format!("bucket {:?}: {why}", bucket.name)));
        }
        let others: Vec<NodeIndex> = self.peers.others().collect();
        let not_yet = self.layouts.not_compared(&others);
        let layout = self.layout();
        let names: Vec<&str> = not_yet.iter().map(|node| layout.node_name(*node)).collect();
        match (not_yet.is_empty(), self.rebalance.to_fetch().0) {
            (true, _) => None,
            (false, 0) => Some((Why::Comparing, format!("with {}", names.join(", ")))),
            (false, _) => Some((Why::Fetching, String::new())),
        }
    }

    /// For status: the older layouts that are open here, and what that waits for; `None` if there are none.
    pub fn report_transition(&self) -> Option<v1::Transition> {
        let open = self.layouts.open();
        let (_, older) = open.chapters().split_last().filter(|(_, older)| !older.is_empty())?;
        let layout =
            |chapter: &Arc<Chapter>| v1::OpenLayout { version: chapter.layout.version(), digest: convert::bytes(chapter.layout.hash()) };
        let awaited = |wait: &Wait| v1::Awaited {
            node: wait.node.clone(),
            why: wait.why.name().to_owned(),
            detail: wait.detail.clone(),
            last_heard: wait.heard.map_or(0, |heard| heard.0),
            fetched_bytes: wait.fetched.0,
            to_fetch_bytes: wait.fetched.1,
        };
        Some(v1::Transition {
            since: self.layouts.since().0,
            older: older.iter().map(layout).collect(),
            waits: self.transition(&self.layout()).waits().iter().map(awaited).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        let heard = Some(UnixMillis(7));
        Member { name: name.into(), heard, fetched: (3, 7), unusable: None, has_layout: true, drained: true, lacks: None }
    }

    fn waits(members: &[Member]) -> Vec<(String, Why)> {
        step(members).waits().iter().map(|wait| (wait.node.clone(), wait.why)).collect()
    }

    #[test]
    fn rule_21_older_layouts_are_closed_when_everybody_is_drained_and_synced() {
        assert_eq!(step(&[member("a"), member("b")]), Step::Done);
        let fetching = Member { lacks: Some((Why::Fetching, String::new())), ..member("b") };
        assert_eq!(waits(&[member("a"), fetching.clone()]), [("b".into(), Why::Fetching)]);
        // What it has says nothing as long as somebody may write by older layouts alone.
        for (other, why) in [
            (Member { unusable: Some((Why::Silent, "no answer in time".into())), ..member("c") }, Why::Silent),
            (Member { unusable: Some((Why::Unfit, "two live instances".into())), ..member("c") }, Why::Unfit),
            (Member { has_layout: false, ..member("c") }, Why::Behind),
            (Member { drained: false, ..member("c") }, Why::Writing),
            (Member::unmet("c"), Why::Silent),
        ] {
            let step = step(&[member("a"), fetching.clone(), other]);
            assert!(matches!(&step, Step::Draining(_)), "{step:?}");
            assert_eq!(step.waits().iter().map(|wait| (wait.node.as_str(), wait.why)).collect::<Vec<_>>(), [("c", why)]);
        }
    }

    #[test]
    fn who_is_waited_for_is_said_with_what_is_known_of_it() {
        let silent = Member { unusable: Some((Why::Silent, "connection refused".into())), ..member("warsaw") };
        let step = step(&[member("strasbourg"), silent]);
        assert_eq!(step.words(), "warsaw (does not answer)");
        let [wait] = step.waits() else { panic!("{step:?}") };
        assert_eq!((wait.detail.as_str(), wait.heard, wait.fetched), ("connection refused", Some(UnixMillis(7)), (3, 7)));
    }
}
