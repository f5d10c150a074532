//! Two questions that a machine asks: does it live, and may it be sent requests. Only a proved yes is a yes.
//!
//! Everybody may ask, so the reasons name neither paths nor peers: those are in the status and in the log.
use crate::node::Node;
use afar_store::{DirectoryState, Usage};
use serde_json::json;

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    status: &'static str,
    reasons: Vec<String>,
}

impl Verdict {
    /// Yes, with something to say.
    pub fn good(reason: &str) -> Self {
        Self { status: "ok", reasons: vec![reason.to_owned()] }
    }

    /// No.
    pub fn bad(reason: &str) -> Self {
        Self { status: "failed", reasons: vec![reason.to_owned()] }
    }

    /// Nobody knows, which is no yes.
    pub fn unknown() -> Self {
        Self { status: "unknown", reasons: vec!["the disks did not answer in time".to_owned()] }
    }

    /// Whether it is a yes.
    pub fn is_good(&self) -> bool {
        self.status == "ok"
    }

    /// For the answer's body.
    pub fn to_json(&self) -> String {
        let mut text = json!({ "status": self.status, "reasons": self.reasons }).to_string();
        text.push('\n');
        text
    }
}

/// Whether the process can go on: some data directory is left that works. One of several that has failed is named and is no
/// no: a restart would not mend it, and would take away what the others hold. Blocks.
pub fn health(node: &Node) -> Verdict {
    living(&node.store.usage())
}

fn living(usage: &Usage) -> Verdict {
    let (all, failed) = (usage.directories.len(), usage.directories.iter().filter(|directory| !works(&directory.state)).count());
    let reasons = if failed == 0 { Vec::new() } else { vec![format!("disk: {failed} of {all} data directories have failed")] };
    Verdict { status: if failed < all { "ok" } else { "failed" }, reasons }
}

const fn works(state: &DirectoryState) -> bool {
    matches!(state, DirectoryState::Created | DirectoryState::Healthy)
}

/// Whether this node can do its part of whatever it is asked. Blocks.
pub fn readiness(node: &Node) -> Verdict {
    let usage = node.store.usage();
    let mut reasons = Vec::new();
    if node.lifecycle.is_draining() {
        reasons.push("draining: the node is ending".to_owned());
    }
    if !node.layout().duty(node.me).is_member() {
        reasons.push("layout: the layout has taken this node out of service".to_owned());
    }
    let alive = living(&usage);
    if !alive.is_good() {
        reasons.extend(alive.reasons);
    }
    if !usage.views_ready {
        reasons.push(format!("index: being rebuilt, {:.0} % done", usage.rebuild_progress * 100.0));
    }
    if node.is_catching_up() {
        reasons.push("catching_up: its answers prove no absence yet".to_owned());
    }
    if node.clock_trouble().is_some() {
        reasons.push("clock: too far off, writes are refused".to_owned());
    }
    Verdict { status: if reasons.is_empty() { "ok" } else { "failed" }, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afar_store::DirectoryUsage;

    fn directory(state: DirectoryState) -> DirectoryUsage {
        DirectoryUsage {
            path: "/srv/disk".into(),
            id: None,
            state,
            capacity: 0,
            free: 0,
            segment_bytes: 0,
            syncs: afar_store::SyncCounts::default(),
            read_failures: afar_store::ReadFailures::default(),
        }
    }

    #[test]
    fn it_lives_as_long_as_some_directory_works_and_none_is_no_directory_that_works() {
        let look =
            |states: Vec<DirectoryState>| living(&Usage { directories: states.into_iter().map(directory).collect(), ..Usage::default() });
        let (failed, read_only) = (|| DirectoryState::Failed("why".into()), || DirectoryState::ReadOnly("why".into()));
        assert_eq!(look(vec![DirectoryState::Healthy]), Verdict { status: "ok", reasons: Vec::new() });
        let some = look(vec![failed(), DirectoryState::Created]);
        assert_eq!(some, Verdict::good("disk: 1 of 2 data directories have failed"));
        assert_eq!(look(vec![failed(), read_only()]), Verdict::bad("disk: 2 of 2 data directories have failed"));
        assert!(!look(Vec::new()).is_good() && !Verdict::unknown().is_good(), "nothing is proved");
    }
}
