//! Disks that have taken the place of others and have not caught up yet.
//!
//! A node that is behind has caught up when it has compared itself with every other (rule 3): what it lost is at one of them. Of
//! two nodes that have both come back with empty disks that is not so: what only their former disks held is nowhere, and each
//! would find that it has all that the other has. So a comparison with such a node counts only when it has caught up itself.
//! Nodes that have merely lost some of what they hold are no such nodes, or two of them would wait for each other.
//!
//! Who met the former disks knows of the replacement, and everybody passes on what he knows, to the new disks, too. It is kept
//! in memory: if all who know are restarted before these have caught up, it is forgotten.
use afar_model::id::Incarnation;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};

/// More than a cluster has nodes: what strangers to a layout could say besides is not kept.
const KEPT_MAX: usize = 1024;

/// What is known of disks that took the place of others.
#[derive(Debug, Default)]
pub struct Replaced {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// They have not caught up. Whether this node met those before them, or was told.
    behind: BTreeMap<Incarnation, bool>,
    /// They had, at some time: if they return, they bring what they had.
    whole: BTreeSet<Incarnation>,
}

impl Replaced {
    /// A node has other disks than before.
    pub fn met(&self, before: Incarnation, now: Incarnation) {
        let mut known = self.known.lock();
        match known.behind.get(&before) {
            // What was there before those, this node has not seen: it may be what returns now. Who has seen it tells.
            Some(false) => return,
            Some(true) => {}
            None => keep(&mut known.whole, before),
        }
        known.add(now, true);
    }

    /// Another node says that these took the place of others.
    pub fn told(&self, disks: impl IntoIterator<Item = Incarnation>) {
        let mut known = self.known.lock();
        disks.into_iter().take(KEPT_MAX).for_each(|disks| known.add(disks, false));
    }

    /// They say themselves whether they have caught up.
    pub fn heard(&self, disks: Incarnation, catching_up: bool) {
        if !catching_up {
            let mut known = self.known.lock();
            known.behind.remove(&disks);
            keep(&mut known.whole, disks);
        }
    }

    /// Whether they took the place of others, and have not caught up as far as is known.
    pub fn is_behind(&self, disks: &Incarnation) -> bool {
        self.known.lock().behind.contains_key(disks)
    }

    /// All that did.
    pub fn all(&self) -> Vec<Incarnation> {
        self.known.lock().behind.keys().copied().collect()
    }
}

impl Known {
    fn add(&mut self, disks: Incarnation, met: bool) {
        if !self.whole.contains(&disks) && self.behind.len() < KEPT_MAX {
            *self.behind.entry(disks).or_default() |= met;
        }
    }
}

fn keep(set: &mut BTreeSet<Incarnation>, disks: Incarnation) {
    if set.len() < KEPT_MAX {
        set.insert(disks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_3_who_took_anothers_place_is_behind_until_it_has_caught_up_once() {
        let [old, new, other] = [1, 2, 3].map(|n| Incarnation::from_bytes([n; 16]));
        let replaced = Replaced::default();
        replaced.heard(old, false);
        replaced.met(old, new);
        assert!(replaced.is_behind(&new) && !replaced.is_behind(&old));
        replaced.heard(new, true);
        replaced.told([other, old]);
        assert_eq!(replaced.all(), [new, other], "the former disks were whole, whatever others say");
        // They return: what they had is there again.
        replaced.met(new, old);
        assert!(!replaced.is_behind(&old) && replaced.is_behind(&new));
        replaced.heard(new, false);
        replaced.told([new]);
        assert!(!replaced.is_behind(&new), "it has caught up since that was said");
    }

    #[test]
    fn who_has_not_met_the_former_disks_leaves_it_to_others_whether_they_return() {
        let [first, second] = [1, 2].map(|n| Incarnation::from_bytes([n; 16]));
        let replaced = Replaced::default();
        replaced.told([first]);
        replaced.met(first, second);
        assert_eq!(replaced.all(), [first]);
        replaced.told([second]);
        assert!(replaced.is_behind(&second));
    }

    #[test]
    fn a_replacement_of_a_replacement_that_never_caught_up_is_not_whole_when_it_returns() {
        let [old, first, second] = [1, 2, 3].map(|n| Incarnation::from_bytes([n; 16]));
        let replaced = Replaced::default();
        replaced.met(old, first);
        replaced.met(first, second);
        replaced.met(second, first);
        assert!(replaced.is_behind(&first));
    }
}
