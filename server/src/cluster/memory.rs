//! What a node remembers of its peers across restarts (rule 19): which incarnation and run it last heard, and how far each
//! directory's log reached. A peer whose log has gone backwards was restored from an old copy: it has forgotten what it
//! acknowledged, and is refused until it is initialised anew. So are two live instances of one name.
//!
//! The judgement is pure; the file is written by temp, fsync, rename and fsync of the directory, so that after a crash it is
//! the old one or the new one.
use crate::limits;
use afar_model::{
    id::{BootId, DirectoryId, Incarnation},
    units::UnixMillis,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Words of [`Refusal::Backwards`], by which the refused node knows what it is accused of.
pub const WENT_BACKWARDS: &str = "log went backwards";

/// Words of [`Refusal::Superseded`], by which the refused node knows that it has missed something.
pub const SUPERSEDED: &str = "other disks have answered to this node's name";

/// Words by which a node learns that the others' layout has taken it out of service.
pub const OUT_OF_SERVICE: &str = "out of service";

/// How far a directory's log reaches: segment, then offset.
pub type LogEnd = (u64, u64);

/// What a peer says of itself, as far as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its disks.
    pub incarnation: Incarnation,
    /// Its run.
    pub boot: BootId,
    /// How far its directories' logs reach.
    pub positions: BTreeMap<DirectoryId, LogEnd>,
}

/// Why a peer is not who it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A run that had been replaced by another is still alive.
    #[error(
        "two live instances answer to this name (runs {older:?} and {newer:?}): stop one of them, and restart the other if it is not \
         believed a minute later; a copy of a node needs a name of its own"
    )]
    TwoInstances {
        /// The run that should have ended.
        older: BootId,
        /// The run that replaced it.
        newer: BootId,
    },
    /// A log is shorter than it was.
    #[error(
        "its log went backwards (directory {directory:?}: {now:?}, was {before:?}): it was restored from an old copy and has forgotten \
         what it acknowledged; empty its directories and let it join anew"
    )]
    Backwards {
        /// Whose log.
        directory: DirectoryId,
        /// How far it reached.
        before: LogEnd,
        /// How far it reaches.
        now: LogEnd,
    },
    /// Disks that return, or that nobody here has met, and that call themselves complete: what others acknowledged under this
    /// name meanwhile is not on them (rule 3).
    #[error("{SUPERSEDED}: it has to compare itself with the others before its word counts, and does so by itself")]
    Superseded,
}

/// What a claim that was accepted changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accepted {
    /// Nothing but positions.
    Same,
    /// The first time that this peer is heard of.
    First,
    /// The peer was restarted.
    NewBoot,
    /// The peer was replaced: other disks under the same name.
    NewIncarnation,
}

/// What is remembered of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    last: Option<Claim>,
    /// Runs that were replaced, newest last.
    ended: VecDeque<BootId>,
    refused: Option<Refused>,
    /// Wall-clock time of the last claim; only for people.
    pub last_heard: Option<UnixMillis>,
}

impl Remembered {
    /// What the peer last said, and was believed.
    pub const fn last(&self) -> Option<&Claim> {
        self.last.as_ref()
    }

    /// Why the peer is refused now. Two instances of one name are forgotten some time after only one is heard.
    pub fn refusal(&self, now: Duration) -> Option<&Refusal> {
        let refused = self.refused.as_ref()?;
        let two = matches!(refused.why, Refusal::TwoInstances { .. });
        let over = two && now.saturating_sub(refused.at) >= limits::TWO_INSTANCES;
        (!over).then_some(&refused.why)
    }

    /// Hears a peer speak of itself. `behind`: it says that it is catching up. `now` is monotonic.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn hear(&mut self, claim: Claim, behind: bool, now: Duration) -> Result<Accepted, Refusal> {
        let accepted = self.judge(&claim, behind).inspect_err(|why| {
            self.refused = Some(Refused { why: why.clone(), boot: claim.boot, at: now });
        })?;
        self.accept(claim, accepted);
        match self.refusal(now) {
            Some(two @ Refusal::TwoInstances { .. }) => Err(two.clone()),
            _ => {
                self.refused = None;
                Ok(accepted)
            }
        }
    }

    fn judge(&self, claim: &Claim, behind: bool) -> Result<Accepted, Refusal> {
        let Some(last) = &self.last else { return Ok(Accepted::First) };
        // A log that went backwards grows again: that does not bring back what it forgot.
        if let Some(Refused { why: why @ Refusal::Backwards { .. }, boot, .. }) = &self.refused
            && *boot == claim.boot
        {
            return Err(why.clone());
        }
        if claim.boot == last.boot && claim.incarnation == last.incarnation {
            return Ok(Accepted::Same);
        }
        if self.ended.contains(&claim.boot) {
            return Err(Refusal::TwoInstances { older: claim.boot, newer: last.boot });
        }
        if claim.incarnation != last.incarnation {
            return if behind { Ok(Accepted::NewIncarnation) } else { Err(Refusal::Superseded) };
        }
        // A directory that is no longer named has failed, which the peer reports itself.
        let backwards = last.positions.iter().find_map(|(directory, before)| {
            let now = claim.positions.get(directory).filter(|now| *now < before)?;
            Some(Refusal::Backwards { directory: *directory, before: *before, now: *now })
        });
        backwards.map_or(Ok(Accepted::NewBoot), Err)
    }

    fn accept(&mut self, claim: Claim, accepted: Accepted) {
        match (&mut self.last, accepted) {
            // Messages of one run may overtake each other: what was reached stays reached.
            (Some(last), Accepted::Same) => {
                for (directory, end) in claim.positions {
                    let known = last.positions.entry(directory).or_default();
                    *known = (*known).max(end);
                }
            }
            (Some(last), _) => {
                self.ended.push_back(last.boot);
                while self.ended.len() > limits::BOOTS_REMEMBERED {
                    self.ended.pop_front();
                }
                self.last = Some(claim);
            }
            (None, _) => self.last = Some(claim),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    why: Refusal,
    /// The run that was refused.
    boot: BootId,
    at: Duration,
}

/// What is remembered of every peer, by name.
pub type Memory = BTreeMap<String, Remembered>;

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The system said no.
    #[error("{path}: {error}: check the state directory's owner and free space")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Not what this program wrote.
    #[error(
        "{path} is damaged ({why}): it protects against peers that were restored from old copies; remove it only if none was, and start again"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Whether two memories differ at most in when peers were last heard.
pub fn same_but_heard(a: &Memory, b: &Memory) -> bool {
    let gist = |memory: &Memory| -> Vec<(String, Remembered)> {
        memory.iter().map(|(name, peer)| (name.clone(), Remembered { last_heard: None, ..peer.clone() })).collect()
    };
    gist(a) == gist(b)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default)]
    peers: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    node: String,
    incarnation: String,
    boot: String,
    last_heard: u64,
    ended: Vec<String>,
    positions: Vec<Place>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    directory: String,
    segment: u64,
    offset: u64,
}

const FORMAT: u32 = 1;
const FILE: &str = "peers.toml";

/// What was remembered; nothing at the first start.
///
/// # Errors
/// If there is a file and it cannot be understood: to start without it would be to trust whoever answers.
pub fn load(state: &Path) -> Result<Memory, MemoryError> {
    let path = state.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::new()),
        Err(error) => return Err(MemoryError::Io { path, error }),
    };
    parse(&text).map_err(|why| MemoryError::Damaged { path, why })
}

fn parse(text: &str) -> Result<Memory, String> {
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if file.format != FORMAT {
        return Err(format!("format {}, this program knows {FORMAT}", file.format));
    }
    file.peers.into_iter().map(|entry| entry.read().map_err(|error| error.to_string())).collect()
}

impl Entry {
    fn read(self) -> Result<(String, Remembered), afar_model::id::ParseIdError> {
        let positions = self.positions.iter().map(|place| Ok((place.directory.parse()?, (place.segment, place.offset))));
        let claim =
            Claim { incarnation: self.incarnation.parse()?, boot: self.boot.parse()?, positions: positions.collect::<Result<_, _>>()? };
        let ended = self.ended.iter().map(|boot| boot.parse()).collect::<Result<_, _>>()?;
        Ok((self.node, Remembered { last: Some(claim), ended, refused: None, last_heard: Some(UnixMillis(self.last_heard)) }))
    }

    fn of(node: &str, remembered: &Remembered) -> Option<Self> {
        let last = remembered.last()?;
        let place = |(directory, end): (&DirectoryId, &LogEnd)| Place { directory: directory.to_string(), segment: end.0, offset: end.1 };
        Some(Self {
            node: node.to_owned(),
            incarnation: last.incarnation.to_string(),
            boot: last.boot.to_string(),
            last_heard: remembered.last_heard.unwrap_or_default().0,
            ended: remembered.ended.iter().map(ToString::to_string).collect(),
            positions: last.positions.iter().map(place).collect(),
        })
    }
}

/// Replaces what is remembered, durably. Blocking.
///
/// # Errors
/// If the file cannot be written; the old one stays.
pub fn save(state: &Path, memory: &Memory) -> Result<(), MemoryError> {
    let path = state.join(FILE);
    let peers = memory.iter().filter_map(|(node, remembered)| Entry::of(node, remembered)).collect();
    let text = toml::to_string(&File { format: FORMAT, peers })
        .map_err(|error| MemoryError::Io { path: path.clone(), error: io::Error::other(error) })?;
    crate::files::replace(&path, text.as_bytes(), 0o600).map_err(|error| MemoryError::Io { path, error })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const DISK: DirectoryId = DirectoryId::from_bytes([9; 16]);

    fn claim(incarnation: u8, boot: u8, end: LogEnd) -> Claim {
        Claim {
            incarnation: Incarnation::from_bytes([incarnation; 16]),
            boot: BootId::from_bytes([boot; 16]),
            positions: BTreeMap::from([(DISK, end)]),
        }
    }

    #[test]
    fn rule_19_a_restart_that_remembers_is_accepted() {
        let mut peer = Remembered::default();
        assert_eq!(peer.hear(claim(1, 1, (3, 50)), false, NOW), Ok(Accepted::First));
        assert_eq!(peer.hear(claim(1, 1, (3, 40)), false, NOW), Ok(Accepted::Same), "overtaken by a later message");
        assert_eq!(peer.hear(claim(1, 2, (3, 50)), false, NOW), Ok(Accepted::NewBoot));
        assert_eq!(peer.hear(claim(1, 3, (4, 0)), false, NOW), Ok(Accepted::NewBoot));
    }

    #[test]
    fn rule_19_a_log_that_went_backwards_is_refused_until_the_node_joins_anew() {
        let mut peer = Remembered::default();
        peer.hear(claim(1, 1, (3, 50)), false, NOW).unwrap();
        let refusal = Refusal::Backwards { directory: DISK, before: (3, 50), now: (3, 49) };
        assert_eq!(peer.hear(claim(1, 2, (3, 49)), false, NOW), Err(refusal.clone()));
        assert_eq!(peer.refusal(NOW * 1000), Some(&refusal), "time does not heal it");
        assert_eq!(peer.hear(claim(1, 2, (9, 0)), false, NOW), Err(refusal.clone()), "nor does new data");
        assert!(refusal.to_string().contains("empty its directories"));
        assert_eq!(peer.hear(claim(2, 3, (0, 0)), true, NOW), Ok(Accepted::NewIncarnation));
        assert_eq!(peer.refusal(NOW), None);
    }

    #[test]
    fn rule_19_two_live_instances_of_one_name_are_refused() {
        let mut peer = Remembered::default();
        peer.hear(claim(1, 1, (1, 0)), false, NOW).unwrap();
        peer.hear(claim(1, 2, (1, 0)), false, NOW).unwrap();
        assert!(matches!(peer.hear(claim(1, 1, (1, 0)), false, NOW), Err(Refusal::TwoInstances { .. })));
        assert!(peer.hear(claim(1, 2, (1, 0)), false, NOW).is_err(), "nor is the other believed");
        assert_eq!(peer.hear(claim(1, 2, (1, 0)), false, NOW + limits::TWO_INSTANCES), Ok(Accepted::Same), "the other one has ended");
    }

    #[test]
    fn rule_3_other_disks_under_a_known_name_are_believed_only_while_they_catch_up() {
        let mut peer = Remembered::default();
        peer.hear(claim(1, 1, (3, 50)), false, NOW).unwrap();
        assert_eq!(peer.hear(claim(2, 2, (0, 0)), true, NOW), Ok(Accepted::NewIncarnation));
        assert_eq!(peer.hear(claim(2, 2, (1, 0)), false, NOW), Ok(Accepted::Same), "it has caught up");
        // The disks that were replaced come back, and do not know that they were.
        assert_eq!(peer.hear(claim(1, 3, (3, 50)), false, NOW), Err(Refusal::Superseded));
        assert_eq!(peer.refusal(NOW), Some(&Refusal::Superseded));
        assert_eq!(peer.hear(claim(1, 3, (3, 50)), true, NOW), Ok(Accepted::NewIncarnation), "they were told");
        assert_eq!(peer.refusal(NOW), None);
        assert_eq!(peer.hear(claim(1, 3, (3, 60)), false, NOW), Ok(Accepted::Same));
    }

    #[test]
    fn rule_19_a_directory_that_failed_is_no_step_backwards() {
        let mut peer = Remembered::default();
        peer.hear(claim(1, 1, (3, 50)), false, NOW).unwrap();
        let without = Claim { positions: BTreeMap::new(), ..claim(1, 2, (0, 0)) };
        assert_eq!(peer.hear(without, false, NOW), Ok(Accepted::NewBoot));
    }

    #[test]
    fn rule_19_what_is_remembered_survives_a_restart_and_damage_is_noticed() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(load(state.path()).unwrap(), Memory::new());
        let mut peer = Remembered { last_heard: Some(UnixMillis(7)), ..Remembered::default() };
        peer.hear(claim(1, 1, (3, 50)), false, NOW).unwrap();
        peer.hear(claim(1, 2, (3, 60)), false, NOW).unwrap();
        let memory = Memory::from([("warsaw".to_owned(), peer)]);
        save(state.path(), &memory).unwrap();
        assert_eq!(load(state.path()).unwrap(), memory);
        fs::write(state.path().join(FILE), "format = 1\npeers = 3").unwrap();
        let error = load(state.path()).unwrap_err().to_string();
        assert!(error.contains("peers.toml is damaged"), "{error}");
    }
}
