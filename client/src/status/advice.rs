//! What a check that is not `ok` means for the data, and what to do: so that whoever is woken by it need not guess. The codes
//! are stable, and `deploy/runbook.md` says more under each.

/// What to know about a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// Stable; the runbook has a line for it.
    pub code: &'static str,
    /// What trouble with it means for the data.
    pub means: &'static str,
    /// What to do.
    pub action: &'static str,
    /// Whether nothing may be called safe while it is critical.
    pub doubts_safety: bool,
}

/// Checks by name: those of this program first, then those that nodes make of themselves.
const ALL: [(&str, Advice); 19] = [
    (
        "survey",
        known(
            "AFAR-SURVEY",
            "it is not proved that every copy is there",
            "wait for nodes that catch up, bring back those that are silent",
            true,
        ),
    ),
    (
        "layout_agreement",
        known("AFAR-LAYOUT", "nodes that disagree refuse to work together", "give every node the same [layout] and restart it", true),
    ),
    (
        "layout",
        known(
            "AFAR-LAYOUT",
            "data are moving to where a new layout wants them, a layout was refused, or a site was lost: nothing is removed meanwhile",
            "as is said there, and of each node that is waited for; end a conflict with `afar layout apply --merge`",
            false,
        ),
    ),
    ("authority", known("AFAR-AUTHORITY", "once it has ended, no certificate is believed", "`afar cluster rekey --authority`", false)),
    (
        "survivors",
        known(
            "AFAR-SURVIVORS",
            "after the loss of that site the others could not hold everything",
            "give nodes more capacity, or add one at another site",
            false,
        ),
    ),
    (
        "distance_physics",
        known(
            "AFAR-DISTANCE",
            "two sites are nearer than claimed: one fire may take both",
            "correct the coordinates; find out where the machines are",
            true,
        ),
    ),
    ("clock_skew", known("AFAR-CLOCK", "a node that is minutes off refuses writes", "set its clock (chronyc tracking)", true)),
    (
        "nodes",
        known(
            "AFAR-NODE",
            "what silent nodes hold is not proved; what others hold is served",
            "start them, or find out why they do not answer",
            true,
        ),
    ),
    ("clock", known("AFAR-CLOCK", "a node that is minutes off refuses writes", "set its clock (chronyc tracking)", true)),
    ("index", known("AFAR-INDEX", "nothing is lost: listings wait until it is rebuilt", "wait", false)),
    (
        "disk",
        known(
            "AFAR-DISK",
            "copies there may be gone, and no new ones are made there",
            "replace the disk, or add one; look at dmesg first",
            true,
        ),
    ),
    (
        "space",
        known(
            "AFAR-SPACE",
            "what is there stays, and is served and removed as ever; when it is full, writes that need this node are refused, then \
             repair to it",
            "add a disk (another entry in `data`) or a node; `afar rm` frees nothing at once, for versions stay recoverable",
            false,
        ),
    ),
    (
        "capacity",
        known(
            "AFAR-CAPACITY",
            "more is assigned to that node than its disks hold: it fills first, and then writes that need it are refused",
            "give it what its disks hold (`afar node set NAME --capacity SIZE`), or larger disks",
            false,
        ),
    ),
    (
        "replica",
        known(
            "AFAR-REPLICA",
            "copies are missing there; they are fetched from the others",
            "wait; if it stays, bring back the other sites",
            true,
        ),
    ),
    (
        "policy",
        known(
            "AFAR-POLICY",
            "what is put into such a bucket has fewer copies than it asks for, or is refused",
            "add a site, or ask less of it: `afar bucket set`",
            true,
        ),
    ),
    (
        "queued",
        known(
            "AFAR-QUEUED",
            "what was acknowledged at one site only may be lost with it; everything else is not concerned",
            "bring back the disks that had it; if they are gone for good, say so, and accept it with the `afar layout release` that is named",
            true,
        ),
    ),
    ("program", known("AFAR-PROGRAM", "the node goes on; what it was doing was given up", "report it, with the node's log", false)),
    (
        "certificate",
        known(
            "AFAR-CERTIFICATE",
            "once it has ended, nobody speaks with the node, or with its HTTP port",
            "install a new certificate: the node reads it while it runs (`afar node replace NAME -o BUNDLE` makes one)",
            false,
        ),
    ),
    ("peer", known("AFAR-PEER", "the two cannot copy to each other", "see which of them is down, or what is between them", true)),
];

const fn known(code: &'static str, means: &'static str, action: &'static str, doubts_safety: bool) -> Advice {
    Advice { code, means, action, doubts_safety }
}

impl Advice {
    /// About the check of that name; `None` if only a later version knows it.
    pub fn about(check: &str) -> Option<&'static Self> {
        ALL.iter().find(|(name, _)| *name == check).map(|(_, advice)| advice)
    }

    /// All that it says: several checks may have the same.
    pub const fn words(&self) -> [&'static str; 3] {
        [self.code, self.means, self.action]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbook_has_a_line_for_every_code() {
        let runbook = include_str!("../../../deploy/runbook.md");
        for (name, advice) in ALL {
            assert!(runbook.contains(&format!("| `{}` |", advice.code)), "{name}: {}", advice.code);
            assert!(advice.code.starts_with("AFAR-") && !advice.means.is_empty() && !advice.action.is_empty(), "{name}");
        }
    }
}
