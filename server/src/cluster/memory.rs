//! What a node remembers of its peers across restarts (rule 19): which incarnation and run it last heard, and how far each
//! directory's log reached. A peer whose log has gone backwards was restored from an old copy: it has forgotten what it
//! acknowledged, and is refused until it is initialised anew. So are two live instances of one name.
//!
//! And what each may have held alone (rule 8): once its disks were replaced or lost, nobody but those who heard of it can say
//! that something acknowledged may be gone.
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
    cmp::Ordering,
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
         believed two minutes later; a copy of a node needs a name of its own"
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
    /// Disks that were replaced speak while those in their place do.
    #[error(
        "{SUPERSEDED}, and are there now: these were replaced, and nothing that they say counts. Stop this process; or, if it is the \
         other that should go, stop that one, and this one is heard a minute later"
    )]
    Outlived,
    /// Disks that return, or that nobody here has met, and that call themselves complete: what others acknowledged under this
    /// name meanwhile is not on them (rule 3).
    #[error("{SUPERSEDED}: it has to compare itself with the others before its word counts, and does so by itself")]
    Superseded,
}

/// How a peer came to say what it says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// It says that it is catching up.
    pub behind: bool,
    /// It answers where its node is expected, and what is sent there reaches it; else it spoke first, from wherever it is.
    pub asked: bool,
    /// For how long the disks that were believed last have not been heard, be it with a refusal; at most since this process began.
    pub silent: Duration,
}

impl Circumstances {
    /// Whether the disks that were believed last may be alive. Where their node is expected they would have answered.
    fn live(&self) -> bool {
        self.silent < if self.asked { limits::SUCCESSOR_SILENT } else { limits::TWO_INSTANCES }
    }
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

/// What a node may hold that is nowhere else, as it says (rule 8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alone {
    /// At most so many objects that are acknowledged there only.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// It has not counted since its last start: it may be more.
    pub unknown: bool,
    /// Some bucket lets it acknowledge alone.
    pub may_queue: bool,
}

impl Alone {
    /// Whether it said that there is something.
    pub const fn is_any(&self) -> bool {
        self.objects > 0 || self.bytes > 0
    }

    /// The same, in numbers that the file can hold, whatever a peer says.
    #[must_use]
    pub fn bounded(self) -> Self {
        let most = i64::MAX.cast_unsigned();
        Self { objects: self.objects.min(most), bytes: self.bytes.min(most), ..self }
    }

    /// Whether something may be lost with that node, which has been silent for so long; `None`: for ever.
    ///
    /// One that may acknowledge alone does so just when the others do not hear it: of its silence no more than
    /// [`limits::ALONE_SILENT`] is believed.
    pub fn is_doubtful(&self, silent: Option<Duration>) -> bool {
        let long = || silent.is_none_or(|silent| silent > limits::ALONE_SILENT);
        self.is_any() || (self.may_queue && (self.unknown || long()))
    }
}

/// Disks that are gone, and what they may have held alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The disks.
    pub incarnation: Incarnation,
    /// As they last said.
    pub alone: Alone,
    /// When that was.
    pub heard: UnixMillis,
}

/// What is remembered of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    last: Option<Claim>,
    /// What its present disks may hold alone.
    alone: Alone,
    /// What disks that were replaced may have held alone, until they return and have handed it over. An operator's word
    /// ([`afar_model::document::given_up`]) is looked up where this is shown: it is in the layouts, not here.
    doubts: Vec<Doubt>,
    /// Runs that were replaced, newest last.
    ended: VecDeque<BootId>,
    /// The disks that had this name, in the order in which they were met: those before the present ones were replaced. They may
    /// return, but not beside their successors.
    disks: VecDeque<Incarnation>,
    refused: Option<Refused>,
    /// When disks that were replaced answered in the place of their successors: should these speak after that, both are alive.
    usurped: Option<Duration>,
    /// Wall-clock time of the last claim; only for people.
    pub last_heard: Option<UnixMillis>,
}

impl Remembered {
    /// What the peer last said, and was believed.
    pub const fn last(&self) -> Option<&Claim> {
        self.last.as_ref()
    }

    /// What its present disks may hold alone.
    pub const fn alone(&self) -> Alone {
        self.alone
    }

    /// What disks that were replaced may have held alone.
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// After it was believed: what it says that it holds alone, by our wall clock. Answers whether that is worth writing at once.
    pub fn told(&mut self, accepted: Accepted, alone: Alone, wall: UnixMillis) -> bool {
        if accepted == Accepted::NewIncarnation {
            // Heard a moment ago, with nothing pending: then nothing is missing with it.
            let fresh = |doubt: &mut Doubt| !doubt.alone.is_doubtful(Some(wall.since(doubt.heard)));
            self.doubts.pop_if(fresh);
        }
        let before = (self.alone.is_any(), self.doubts.len());
        if alone.unknown {
            self.alone = Alone { objects: self.alone.objects, bytes: self.alone.bytes, ..alone };
        } else {
            self.alone = alone;
        }
        if !self.alone.is_any() && !alone.unknown {
            // They came back, and have handed over what they had.
            let now = self.last.as_ref().map(|claim| claim.incarnation);
            self.doubts.retain(|doubt| Some(doubt.incarnation) != now);
        }
        self.last_heard = Some(wall);
        accepted == Accepted::NewIncarnation || before != (self.alone.is_any(), self.doubts.len())
    }

    /// Its logs reach as far as this, it says in answer to a write. What it acknowledged is known from then on, not only from
    /// its next heartbeat: a copy of its disks that was taken in between is recognised. Only of directories that it has claimed.
    pub fn reached(&mut self, positions: impl IntoIterator<Item = (DirectoryId, LogEnd)>) {
        let Some(last) = &mut self.last else { return };
        for (directory, end) in positions {
            if let Some(known) = last.positions.get_mut(&directory) {
                *known = (*known).max(end);
            }
        }
    }

    /// Why the peer is refused now. Two instances of one name are forgotten some time after only one is heard.
    pub fn refusal(&self, now: Duration) -> Option<&Refusal> {
        let refused = self.refused.as_ref()?;
        let two = matches!(refused.why, Refusal::TwoInstances { .. });
        let over = two && now.saturating_sub(refused.at) >= limits::TWO_INSTANCES;
        (!over).then_some(&refused.why)
    }

    /// Hears a peer speak of itself. `now` is monotonic.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn hear(&mut self, claim: Claim, heard: Circumstances, now: Duration) -> Result<Accepted, Refusal> {
        let judged = self.judge(&claim, heard).and_then(|accepted| self.contested(&claim, accepted, heard, now));
        match &judged {
            // From elsewhere: whoever is believed need not suffer for it.
            Err(Refusal::Outlived) if heard.asked => {
                self.usurped = Some(now);
                return Err(self.two_instances(now).unwrap_or(Refusal::Outlived));
            }
            Err(Refusal::Outlived) => {}
            Err(why) => self.refused = Some(Refused { why: why.clone(), boot: claim.boot, at: now }),
            Ok(_) => self.usurped = None,
        }
        let accepted = judged?;
        self.accept(claim, accepted);
        match self.two_instances(now) {
            Some(two) => Err(two),
            None => {
                self.refused = None;
                Ok(accepted)
            }
        }
    }

    fn two_instances(&self, now: Duration) -> Option<Refusal> {
        self.refusal(now).filter(|why| matches!(why, Refusal::TwoInstances { .. })).cloned()
    }

    fn judge(&self, claim: &Claim, heard: Circumstances) -> Result<Accepted, Refusal> {
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
        if claim.incarnation != last.incarnation {
            return match self.age(claim.incarnation).cmp(&self.age(last.incarnation)) {
                Ordering::Less if heard.live() => Err(Refusal::Outlived),
                // Its successors have gone for good; or it is one, and those that came back before it make way.
                _ if heard.behind => Ok(Accepted::NewIncarnation),
                _ => Err(Refusal::Superseded),
            };
        }
        if self.ended.contains(&claim.boot) {
            return Err(Refusal::TwoInstances { older: claim.boot, newer: last.boot });
        }
        // A directory that is no longer named has failed, which the peer reports itself.
        let backwards = last.positions.iter().find_map(|(directory, before)| {
            let now = claim.positions.get(directory).filter(|now| *now < before)?;
            Some(Refusal::Backwards { directory: *directory, before: *before, now: *now })
        });
        backwards.map_or(Ok(Accepted::NewBoot), Err)
    }

    /// What is sent to a node that speaks from elsewhere reaches those that answer in its place.
    fn contested(&self, claim: &Claim, accepted: Accepted, heard: Circumstances, now: Duration) -> Result<Accepted, Refusal> {
        let usurped = self.usurped.is_some_and(|at| now.saturating_sub(at) < limits::TWO_INSTANCES);
        if usurped && !heard.asked { Err(Refusal::TwoInstances { older: claim.boot, newer: claim.boot }) } else { Ok(accepted) }
    }

    /// Which of the disks of this name those are; who was not met yet is the newest.
    fn age(&self, disks: Incarnation) -> usize {
        self.disks.iter().position(|known| *known == disks).unwrap_or(self.disks.len())
    }

    fn met(&mut self, disks: Incarnation) {
        if !self.disks.contains(&disks) {
            self.disks.push_back(disks);
        }
        while self.disks.len() > limits::DISKS_REMEMBERED {
            self.disks.pop_front();
        }
    }

    fn accept(&mut self, claim: Claim, accepted: Accepted) {
        self.met(claim.incarnation);
        match (&mut self.last, accepted) {
            // Messages of one run may overtake each other: what was reached stays reached.
            (Some(last), Accepted::Same) => {
                for (directory, end) in claim.positions {
                    let known = last.positions.entry(directory).or_default();
                    *known = (*known).max(end);
                }
            }
            (Some(last), _) => {
                if accepted == Accepted::NewIncarnation {
                    let alone = std::mem::take(&mut self.alone);
                    let heard = self.last_heard.unwrap_or_default();
                    doubt(&mut self.doubts, Doubt { incarnation: last.incarnation, alone, heard });
                    // Disks that return have what they had, until they say otherwise.
                    let known = self.doubts.iter().find(|doubt| doubt.incarnation == claim.incarnation);
                    self.alone = known.map(|doubt| doubt.alone).unwrap_or_default();
                }
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

/// Adds what these disks may have held, if anything.
fn doubt(doubts: &mut Vec<Doubt>, new: Doubt) {
    if !new.alone.is_doubtful(None) {
        return;
    }
    if let Some(known) = doubts.iter_mut().find(|known| known.incarnation == new.incarnation) {
        *known = new;
    } else if doubts.len() < limits::DOUBTS_REMEMBERED {
        doubts.push(new);
    } else if let Some(last) = doubts.last_mut() {
        // Nobody has answered for any of so many: they are answered for together.
        let alone = Alone {
            objects: last.alone.objects.saturating_add(new.alone.objects),
            bytes: last.alone.bytes.saturating_add(new.alone.bytes),
            ..new.alone
        };
        *last = Doubt { alone: alone.bounded(), ..new };
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

/// What peers may hold alone, in a file of its own: the version before does not know it, and refuses words that it does not know
/// in the other one.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AloneFile {
    format: u32,
    #[serde(default)]
    peers: Vec<AloneEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AloneEntry {
    node: String,
    now: Doubted,
    #[serde(default)]
    before: Vec<Doubted>,
    /// All disks that had the name, the oldest first, if they were ever replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disks: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Doubted {
    incarnation: String,
    heard: u64,
    alone: Alone,
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
const ALONE_FILE: &str = "alone.toml";

/// What was remembered; nothing at the first start.
///
/// # Errors
/// If there is a file and it cannot be understood: to start without it would be to trust whoever answers.
pub fn load(state: &Path) -> Result<Memory, MemoryError> {
    let mut memory = read(&state.join(FILE), parse)?;
    let alone = read(&state.join(ALONE_FILE), parse_alone)?;
    for entry in alone.peers {
        let why = |error: afar_model::id::ParseIdError| MemoryError::Damaged { path: state.join(ALONE_FILE), why: error.to_string() };
        entry.remind(&mut memory).map_err(why)?;
    }
    Ok(memory)
}

/// Reads a file of the state directory; nothing, if there is none.
///
/// # Errors
/// If it cannot be read or understood.
pub(super) fn read<T: Default>(path: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, MemoryError> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|why| MemoryError::Damaged { path: path.to_owned(), why }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(MemoryError::Io { path: path.to_owned(), error }),
    }
}

fn parse_alone(text: &str) -> Result<AloneFile, String> {
    let file: AloneFile = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if file.format == FORMAT { Ok(file) } else { Err(format!("format {}, this program knows {FORMAT}", file.format)) }
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
        let last_heard = Some(UnixMillis(self.last_heard));
        let disks = VecDeque::from([claim.incarnation]);
        Ok((self.node, Remembered { last: Some(claim), ended, disks, last_heard, ..Remembered::default() }))
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

impl AloneEntry {
    fn of(node: &str, remembered: &Remembered) -> Option<Self> {
        // To the minute, lest every heartbeat change the file.
        let heard = remembered.last_heard.unwrap_or_default().0 / 60_000 * 60_000;
        let now = Doubt { incarnation: remembered.last()?.incarnation, alone: remembered.alone, heard: UnixMillis(heard) };
        let replaced = remembered.disks.len() > 1;
        let worth = replaced || remembered.alone != Alone::default() || !remembered.doubts.is_empty();
        worth.then(|| Self {
            node: node.to_owned(),
            now: (&now).into(),
            before: remembered.doubts.iter().map(Doubted::from).collect(),
            disks: remembered.disks.iter().filter(|_| replaced).map(ToString::to_string).collect(),
        })
    }

    /// Adds it to what is remembered of the node.
    fn remind(self, memory: &mut Memory) -> Result<(), afar_model::id::ParseIdError> {
        let remembered = memory.entry(self.node.clone()).or_default();
        for doubted in &self.before {
            remembered.doubts.push(doubted.read()?);
        }
        let newest = std::mem::take(&mut remembered.disks);
        for disks in &self.disks {
            remembered.met(disks.parse()?);
        }
        newest.into_iter().for_each(|disks| remembered.met(disks));
        let now = self.now.read()?;
        if remembered.last().is_some_and(|last| last.incarnation == now.incarnation) {
            remembered.alone = now.alone;
        } else {
            // They were replaced while a version ran that kept no such file.
            doubt(&mut remembered.doubts, now);
        }
        Ok(())
    }
}

impl Doubted {
    fn read(&self) -> Result<Doubt, afar_model::id::ParseIdError> {
        Ok(Doubt { incarnation: self.incarnation.parse()?, alone: self.alone, heard: UnixMillis(self.heard) })
    }
}

impl From<&Doubt> for Doubted {
    fn from(doubt: &Doubt) -> Self {
        Self { incarnation: doubt.incarnation.to_string(), heard: doubt.heard.0, alone: doubt.alone }
    }
}

/// Replaces what is remembered, durably. Blocking.
///
/// # Errors
/// If the file cannot be written; the old one stays.
pub fn save(state: &Path, memory: &Memory) -> Result<(), MemoryError> {
    // What may be lost with disks is written before the word that they were replaced: a crash in between repeats, and forgets nothing.
    let alone = state.join(ALONE_FILE);
    let peers: Vec<AloneEntry> = memory.iter().filter_map(|(node, remembered)| AloneEntry::of(node, remembered)).collect();
    if !peers.is_empty() || alone.exists() {
        write(&alone, &AloneFile { format: FORMAT, peers })?;
    }
    let peers = memory.iter().filter_map(|(node, remembered)| Entry::of(node, remembered)).collect();
    write(&state.join(FILE), &File { format: FORMAT, peers })
}

/// Replaces a file, unless it says the same already: what peers hold alone changes seldom.
///
/// # Errors
/// If it cannot be written; the old one stays.
pub(super) fn write(path: &Path, file: &impl Serialize) -> Result<(), MemoryError> {
    let failed = |error| MemoryError::Io { path: path.to_owned(), error };
    let text = toml::to_string(file).map_err(|error| failed(io::Error::other(error)))?;
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    crate::files::replace(path, text.as_bytes(), 0o600).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
