//! Disks that have taken the place of others and have not caught up yet.
//!
//! A node that is behind has caught up when it has compared itself with every other (rule 3): what it lost is at one of them. Of
//! two nodes that have both come back with empty disks that is not so: what only their former disks held is nowhere, and each
//! would find that it has all that the other has. So a comparison with such a node counts only when it has caught up itself.
//! Nodes that have merely lost some of what they hold are no such nodes, or two of them would wait for each other.
//!
//! Who met the former disks knows of the replacement, and everybody passes on what he knows, to the new disks, too. All of them
//! keep it in a file, for a node that knows may be restarted before these have caught up, and so may all.
use super::memory::{self, MemoryError};
use afar_model::id::{Incarnation, ParseIdError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// More than a cluster has nodes: what strangers to a layout could say besides is not kept.
const KEPT_MAX: usize = 1024;

/// What is known of disks that took the place of others.
#[derive(Debug, Default)]
pub struct Replaced {
    known: Mutex<Known>,
}

/// What is known of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// They have not caught up. Whether this node met those before them, or was told.
    behind: BTreeMap<Incarnation, bool>,
    /// They had, at some time: if they return, they bring what they had.
    whole: BTreeSet<Incarnation>,
}

/// The file, of its own: versions before do not know it, and refuse words that they do not know in another.
const FILE: &str = "replaced.toml";
const FORMAT: u32 = 1;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default)]
    whole: Vec<String>,
    #[serde(default)]
    behind: Vec<Behind>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Behind {
    disks: String,
    met: bool,
}

impl Replaced {
    /// What was known; nothing at the first start.
    ///
    /// # Errors
    /// If there is a file and it cannot be understood: without it two nodes might take each other for all that there was.
    pub fn load(state: &Path) -> Result<Self, MemoryError> {
        let known = memory::read(&state.join(FILE), parse)?;
        Ok(Self { known: Mutex::new(known) })
    }

    /// What is known now.
    pub fn known(&self) -> Known {
        self.known.lock().clone()
    }

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

fn parse(text: &str) -> Result<Known, String> {
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if file.format != FORMAT {
        return Err(format!("format {}, this program knows {FORMAT}", file.format));
    }
    let wrong = |error: ParseIdError| error.to_string();
    let whole = file.whole.iter().map(|disks| disks.parse()).collect::<Result<_, _>>().map_err(wrong)?;
    let behind = file.behind.iter().map(|behind| Ok((behind.disks.parse()?, behind.met))).collect::<Result<_, _>>().map_err(wrong)?;
    Ok(Known { behind, whole })
}

impl Known {
    /// Remembers it, durably. Blocking.
    ///
    /// # Errors
    /// If the file cannot be written; the old one stays.
    pub fn save(&self, state: &Path) -> Result<(), MemoryError> {
        let whole = self.whole.iter().map(ToString::to_string).collect();
        let behind = self.behind.iter().map(|(disks, met)| Behind { disks: disks.to_string(), met: *met }).collect();
        memory::write(&state.join(FILE), &File { format: FORMAT, whole, behind })
    }

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
#[allow(clippy::unwrap_used)]
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
    fn rule_3_what_is_known_of_replacements_outlives_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let [old, new, other] = [1, 2, 3].map(|n| Incarnation::from_bytes([n; 16]));
        let replaced = Replaced::load(state.path()).unwrap();
        replaced.met(old, new);
        replaced.told([other]);
        replaced.known().save(state.path()).unwrap();
        let replaced = Replaced::load(state.path()).unwrap();
        assert_eq!(replaced.all(), [new, other]);
        replaced.told([old]);
        replaced.met(new, old);
        assert!(!replaced.is_behind(&old), "the former disks are still known to have been whole");
        replaced.met(other, new);
        replaced.heard(new, false);
        replaced.known().save(state.path()).unwrap();
        assert_eq!(Replaced::load(state.path()).unwrap().all(), [other], "who has caught up is forgotten");
        let file = state.path().join(FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        for damaged in [text.replace("format = 1", "format = 2"), text.replace("met", "mat"), text.replacen('"', "\"zz", 1)] {
            std::fs::write(&file, damaged).unwrap();
            assert!(matches!(Replaced::load(state.path()), Err(MemoryError::Damaged { .. })));
        }
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
