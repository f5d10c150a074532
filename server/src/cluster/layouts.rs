//! The chain of layouts as this node has it, on disk, and which of them are *open*: the current one, and older ones whose
//! transition is not finished (rule 21). While several are open, writes satisfy all of them and reads ask by all of them.
//!
//! ```text
//! STATE/layouts/genesis          what the configuration said at the first start
//! STATE/layouts/00000002-1f2e…   signed documents, one file each; never changed, never removed
//! STATE/layouts/open             hashes of the open ones, oldest first; the last is the current one
//! ```
//! A document that is wrong in any way changes nothing: the node keeps its last good one, says so, and serves on.
use crate::files;
use afar_model::{
    document::{self, Chain, Chapter, Document, LayoutHash, Refused, ShortHash, Signed},
    id::Incarnation,
    layout::{Duty, Layout, NodeIndex},
    limits::LAYOUT_BYTES_MAX,
    units::UnixMillis,
};
use afar_store::disk::make_private_directory;
use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::sync::watch;

/// What is open now. Buckets hold on to it (by its token), and whoever writes to a bucket holds on to that, so that it is
/// known when nobody writes by an older set of layouts any more.
#[derive(Debug, Clone)]
pub struct Open {
    chapters: Vec<Arc<Chapter>>,
    token: Arc<()>,
    all_drained: Arc<AtomicBool>,
}

impl Open {
    pub(crate) fn new(chapters: Vec<Arc<Chapter>>, all_drained: bool) -> Self {
        Self { chapters, token: Arc::new(()), all_drained: Arc::new(AtomicBool::new(all_drained)) }
    }

    /// Set once every member asks and writes by the current layout: then all find what is written by it alone, and nothing
    /// need be written by older ones any more.
    pub fn all_drained(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.all_drained)
    }

    /// Oldest first; the last is the current one. Never empty.
    pub fn chapters(&self) -> &[Arc<Chapter>] {
        &self.chapters
    }

    /// The layouts, oldest first.
    pub fn layouts(&self) -> impl DoubleEndedIterator<Item = &Arc<Layout>> {
        self.chapters.iter().map(|chapter| &chapter.layout)
    }

    /// The newest one, if there is any: there always is.
    fn current(&self) -> Option<&Arc<Chapter>> {
        self.chapters.last()
    }

    /// Their hashes, oldest first.
    pub fn hashes(&self) -> impl Iterator<Item = &LayoutHash> {
        self.layouts().map(|layout| layout.hash())
    }

    /// What everybody holds who may write by this.
    pub fn writing(&self) -> Arc<()> {
        Arc::clone(&self.token)
    }
}

/// What has to be true before older layouts are closed.
#[derive(Debug, Default)]
struct Progress {
    /// Writes that began under other sets of open layouts.
    former: Vec<Weak<()>>,
    /// Since when every member is known to write by the current one.
    all_drained: Option<Instant>,
    /// With whom this node has compared itself since.
    compared: BTreeSet<NodeIndex>,
}

/// The chain.
#[derive(Debug)]
pub struct Layouts {
    folder: PathBuf,
    cluster: String,
    known: Mutex<BTreeMap<LayoutHash, Known>>,
    open: ArcSwap<Open>,
    /// The current layout by itself, for the many who ask nothing else.
    current: ArcSwap<Layout>,
    progress: Mutex<Progress>,
    changes: watch::Sender<u64>,
    /// When the current one became so here, at the latest; zero for one that was found at the start.
    applied: AtomicU64,
    /// Why the last document was not accepted; for status.
    trouble: Mutex<Option<String>>,
    /// One change at a time.
    changing: Mutex<()>,
    /// Drops under way.
    drops: Mutex<usize>,
    dropped: Condvar,
}

/// See [`Layouts::may_drop`].
#[derive(Debug)]
pub struct DropPermit(Arc<Layouts>);

impl Drop for DropPermit {
    fn drop(&mut self) {
        let mut drops = self.0.drops.lock();
        *drops = drops.saturating_sub(1);
        self.0.dropped.notify_all();
    }
}

#[derive(Debug, Clone)]
struct Known {
    chapter: Arc<Chapter>,
    /// `None` for the genesis.
    signed: Option<Arc<Signed>>,
}

/// The chain on disk is not to be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ChainError {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub why: String,
}

/// What became of an offered document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is the current one now.
    Applied,
    /// It was known before.
    Known,
    /// It is good, and a sibling of the current one: a conflict, until an operator's merge ends it.
    Rival,
}

impl Layouts {
    /// Reads the chain, or begins one with what the configuration says, and then with what a bundle brought (`brought`).
    ///
    /// # Errors
    /// If what is on disk cannot be read: to go on by the configuration's could be to go back in time.
    pub fn load(state: &Path, cluster: &str, configured: Chapter, brought: Vec<Signed>) -> Result<Self, ChainError> {
        let folder = state.join("layouts");
        let genesis = read_genesis(&folder, configured)?;
        let first = Known { chapter: Arc::new(genesis), signed: None };
        let chapters = vec![Arc::clone(&first.chapter)];
        let layouts = Self {
            folder,
            cluster: cluster.to_owned(),
            current: ArcSwap::from(Arc::clone(&first.chapter.layout)),
            known: Mutex::new(BTreeMap::from([(*first.chapter.layout.hash(), first)])),
            open: ArcSwap::from_pointee(Open::new(chapters, false)),
            progress: Mutex::default(),
            changes: watch::Sender::new(0),
            applied: AtomicU64::new(0),
            trouble: Mutex::default(),
            changing: Mutex::default(),
            drops: Mutex::default(),
            dropped: Condvar::new(),
        };
        for (path, signed) in read_documents(&layouts.folder)? {
            layouts.learn(&signed).map_err(|error| ChainError { path, why: format!("{error}: restore it from another node's copy") })?;
        }
        layouts.reopen()?;
        // Also for a state that was left by a program that did not say so.
        let said = layouts.leave_genesis(layouts.open().chapters());
        said.map_err(|error| ChainError { path: state.to_owned(), why: error.to_string() })?;
        for signed in brought {
            // What the bundle brought may be older than what is here.
            if let Err(error) = layouts.offer(&signed) {
                tracing::warn!(%error, "a layout that came with the configuration is not used");
            }
        }
        Ok(layouts)
    }

    /// The current layout.
    pub fn current(&self) -> Arc<Layout> {
        self.current.load_full()
    }

    /// The current layout with its document.
    pub fn chapter(&self) -> Arc<Chapter> {
        let open = self.open.load();
        // There is always one; were there none, the genesis would be found again.
        open.current().cloned().unwrap_or_else(|| Arc::new(Chapter::genesis(&self.cluster, (*self.current()).clone(), Vec::new())))
    }

    /// What is open now.
    pub fn open(&self) -> Arc<Open> {
        self.open.load_full()
    }

    /// The current layout, and its changes from then on: none between the two is missed.
    pub fn watched(&self) -> (Arc<Layout>, watch::Receiver<u64>) {
        let changes = self.changes.subscribe();
        (self.current(), changes)
    }

    /// Changes whenever what is open does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Why the last offered layout was not accepted, or that there are two.
    pub fn trouble(&self) -> Option<String> {
        let rivals = self.rivals();
        if rivals.is_empty() {
            return self.trouble.lock().clone();
        }
        let current = self.current();
        let names: Vec<String> = rivals.iter().map(|rival| ShortHash(rival.layout.hash()).to_string()).collect();
        Some(format!(
            "two layouts were made of one: this node has {}, others {}; end it with `afar layout apply --merge`",
            ShortHash(current.hash()),
            names.join(", ")
        ))
    }

    /// Good documents that are neither older than the current layout nor the current one: a conflict.
    pub fn rivals(&self) -> Vec<Arc<Chapter>> {
        let current = self.current();
        let known = self.known.lock();
        let mut ancestors = BTreeSet::new();
        let mut open = vec![*current.hash()];
        while let Some(hash) = open.pop() {
            if ancestors.insert(hash)
                && let Some(known) = known.get(&hash)
            {
                open.extend(known.chapter.document.parents.iter().copied());
            }
        }
        known.iter().filter(|(hash, _)| !ancestors.contains(*hash)).map(|(_, known)| Arc::clone(&known.chapter)).collect()
    }

    /// Everything that this node knows, parents first; its own current one last.
    pub fn whole_chain(&self) -> Chain {
        let (current, known) = (self.current(), self.known.lock());
        let genesis = known.values().find(|known| known.signed.is_none()).map(|known| known.chapter.document.encode()).unwrap_or_default();
        let mut documents: Vec<(u64, bool, Signed)> = known
            .iter()
            .filter_map(|(hash, known)| Some((known.chapter.document.version, hash == current.hash(), known.signed.as_deref()?.clone())))
            .collect();
        documents.sort_by_key(|(version, is_current, _)| (*version, *is_current));
        Chain { genesis, documents: documents.into_iter().map(|(_, _, signed)| signed).collect() }
    }

    /// What of our open layouts stays open if somebody with the same current one has closed the rest; `None` if nobody has.
    pub fn closed_by<'a>(&self, opens: impl Iterator<Item = &'a Vec<LayoutHash>>) -> Option<Vec<LayoutHash>> {
        let ours: Vec<LayoutHash> = self.open().hashes().copied().collect();
        let fewer = |theirs: &Vec<LayoutHash>| {
            let kept: Vec<LayoutHash> = ours.iter().filter(|hash| theirs.contains(hash)).copied().collect();
            (!theirs.is_empty() && kept.len() < ours.len()).then_some(kept)
        };
        opens.filter_map(fewer).min_by_key(Vec::len)
    }

    /// Remembers that something offered was refused, for status.
    pub fn refuse(&self, problems: &[String]) {
        *self.trouble.lock() = Some(format!("a layout was refused: {}", problems.join("; ")));
    }

    /// As [`Layouts::check`], for a document whose parents may be new here as well.
    ///
    /// # Errors
    /// Why it would not be taken.
    pub fn check_after(&self, earlier: &[Signed], last: &Signed) -> Result<Arc<Chapter>, Refused> {
        let unknown: Vec<&Signed> = earlier.iter().filter(|signed| !self.knows(&signed.hash())).collect();
        if let Some(first) = unknown.first() {
            // A node that lags takes what leads here as soon as it hears of it; it must be good, that is all.
            let document = Document::decode(&first.body)?;
            return Err(Refused::Strange(format!("this node does not have layout {} yet: try again in some seconds", document.version)));
        }
        self.check(last)
    }

    /// The chapters that lead to the current one and those beside it, oldest first.
    pub fn history(&self) -> Vec<Arc<Chapter>> {
        let mut all: Vec<Arc<Chapter>> = self.known.lock().values().map(|known| Arc::clone(&known.chapter)).collect();
        all.sort_by_key(|chapter| (chapter.document.version, *chapter.layout.hash()));
        all
    }

    /// Whether a layout is known here, applied or not.
    pub fn knows(&self, hash: &LayoutHash) -> bool {
        self.known.lock().contains_key(hash)
    }

    /// Checks a document as if it were applied, and changes nothing.
    ///
    /// # Errors
    /// Why it would not be.
    pub fn check(&self, signed: &Signed) -> Result<Arc<Chapter>, Refused> {
        let hash = signed.hash();
        if let Some(known) = self.known.lock().get(&hash) {
            return Ok(Arc::clone(&known.chapter));
        }
        let chapter = self.opened(signed)?;
        let current = self.current();
        if chapter.document.parents.contains(current.hash()) {
            Ok(Arc::new(chapter))
        } else {
            Err(Refused::Strange(format!(
                "layout {} is made of another than the current one, which is version {} ({}): fetch it, and plan again",
                ShortHash(&hash),
                current.version(),
                ShortHash(current.hash())
            )))
        }
    }

    /// Takes a document: stores it if it is good, and makes it current if it is a child of the current one. Blocking.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn offer(&self, signed: &Signed) -> Result<Offered, Refused> {
        let _one = self.changing.lock();
        let known = self.known.lock().get(&signed.hash()).map(|known| Arc::clone(&known.chapter));
        let new = known.is_none();
        let taken = known.map_or_else(|| self.learn(signed).and_then(|chapter| self.store(signed, &chapter).map(|()| chapter)), Ok);
        // If it is known and to be applied, the disk did not take that when it came for the first time.
        let offered = taken.and_then(|chapter| match chapter.document.parents.contains(self.current().hash()) {
            true => self.apply(chapter).map(|()| Offered::Applied),
            false if !new => Ok(Offered::Known),
            false => {
                let hash = ShortHash(chapter.layout.hash()).to_string();
                tracing::error!(hash, "two layouts were made of one: nothing is dropped until an operator merges them");
                self.changes.send_modify(|count| *count += 1);
                Ok(Offered::Rival)
            }
        });
        match &offered {
            Ok(Offered::Known) => {}
            Ok(_) => *self.trouble.lock() = None,
            Err(error) => *self.trouble.lock() = Some(format!("a layout was refused: {error}")),
        }
        offered
    }

    fn apply(&self, chapter: Arc<Chapter>) -> Result<(), Refused> {
        // In the order that indexes have here.
        let layout = chapter.document.layout_after(*chapter.layout.hash(), &self.current()).map_err(Refused::Wrong)?;
        let chapter = Arc::new(Chapter { layout: Arc::new(layout), document: chapter.document.clone() });
        let mut chapters = self.open.load().chapters.clone();
        chapters.push(Arc::clone(&chapter));
        self.wait_for_drops();
        self.write_open(&chapters).map_err(|error| Refused::Strange(format!("{}: {error}", self.folder.display())))?;
        tracing::info!(version = chapter.document.version, hash = %ShortHash(chapter.layout.hash()), note = chapter.document.note, "a new layout");
        self.replace(chapters);
        Ok(())
    }

    fn replace(&self, chapters: Vec<Arc<Chapter>>) {
        let Some(newest) = chapters.last().cloned() else { return };
        // Held throughout: nobody may see the new layout and what was noted of the one before.
        let mut progress = self.progress.lock();
        let changed = newest.layout.hash() != self.current().hash();
        let all_drained = !changed && self.open.load().all_drained.load(Ordering::Acquire);
        let before = self.open.swap(Arc::new(Open::new(chapters, all_drained)));
        self.current.store(Arc::clone(&newest.layout));
        if changed {
            self.applied.store(newest.document.made.0, Ordering::Release);
            progress.former.retain(|token| token.strong_count() > 0);
            progress.former.push(Arc::downgrade(&before.token));
            (progress.all_drained, progress.compared) = (None, BTreeSet::new());
        }
        drop((before, progress));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Verifies a document against its parents and remembers it, in memory only.
    fn learn(&self, signed: &Signed) -> Result<Arc<Chapter>, Refused> {
        let chapter = Arc::new(self.opened(signed)?);
        let known = Known { chapter: Arc::clone(&chapter), signed: Some(Arc::new(signed.clone())) };
        self.known.lock().insert(signed.hash(), known);
        Ok(chapter)
    }

    fn opened(&self, signed: &Signed) -> Result<Chapter, Refused> {
        let document = Document::decode(&signed.body)?;
        let known = self.known.lock();
        let parents: Vec<Arc<Chapter>> =
            document.parents.iter().filter_map(|parent| known.get(parent).map(|known| Arc::clone(&known.chapter))).collect();
        drop(known);
        if document.parents.is_empty() || parents.len() < document.parents.len() {
            let parent = document.parents.iter().find(|parent| !self.knows(parent)).copied().unwrap_or_default();
            return Err(Refused::Strange(format!("the layout is made of {}, which this node has never seen", ShortHash(&parent))));
        }
        let parents: Vec<&Chapter> = parents.iter().map(AsRef::as_ref).collect();
        signed.open(&parents, &verify)
    }

    fn store(&self, signed: &Signed, chapter: &Chapter) -> Result<(), Refused> {
        let name = format!("{:08}-{}", chapter.document.version, ShortHash(chapter.layout.hash()));
        let path = self.folder.join(name);
        let wrong = |error: &dyn std::fmt::Display| Refused::Strange(format!("{}: {error}", path.display()));
        let bytes = postcard::to_stdvec(signed).map_err(|error| wrong(&error))?;
        files::replace(&path, &bytes, 0o600).map_err(|error| {
            self.known.lock().remove(chapter.layout.hash());
            wrong(&error)
        })
    }

    fn write_open(&self, chapters: &[Arc<Chapter>]) -> io::Result<()> {
        self.leave_genesis(chapters)?;
        let text: String = chapters.iter().map(|chapter| format!("{}\n", hex::encode(chapter.layout.hash()))).collect();
        files::replace(&self.folder.join("open"), text.as_bytes(), 0o600)
    }

    /// Once a layout that is not the configuration's counts here, an earlier program must not start on this state any more: it
    /// would follow the configuration. Before, it may: then nothing has changed.
    fn leave_genesis(&self, chapters: &[Arc<Chapter>]) -> io::Result<()> {
        match self.folder.parent() {
            Some(state) if chapters.iter().any(|chapter| !chapter.document.parents.is_empty()) => afar_store::follows_layouts(state),
            _ => Ok(()),
        }
    }

    /// What is being dropped by the current layout is dropped before another takes its place, or not at all. Blocking.
    fn wait_for_drops(&self) {
        let mut drops = self.drops.lock();
        while *drops > 0 {
            self.dropped.wait(&mut drops);
        }
    }

    /// Permission to drop copies by a layout, as long as it is the current one, the only one open, and undisputed: nothing
    /// replaces it before the permission is given back.
    pub fn may_drop(self: &Arc<Self>, by: &LayoutHash) -> Option<DropPermit> {
        let _one = self.changing.try_lock()?;
        let fits =
            self.current().hash() == by && self.open.load().chapters.len() == 1 && self.rivals().is_empty() && self.latched().is_empty();
        fits.then(|| {
            *self.drops.lock() += 1;
            DropPermit(Arc::clone(self))
        })
    }

    /// Opens again what was open, and applies what was stored and not applied before a crash.
    fn reopen(&self) -> Result<(), ChainError> {
        let path = self.folder.join("open");
        let wrong = |why: String| ChainError { path: path.clone(), why };
        let text = match files::read_text(&path, 1 << 20) {
            Ok(text) => text,
            Err(_) if !path.exists() => String::new(),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let mut chapters = Vec::new();
        for line in text.lines() {
            let mut hash = [0; 32];
            hex::decode_to_slice(line.trim(), &mut hash).map_err(|_| wrong(format!("{line:?} is no hash of a layout")))?;
            let known = self.known.lock().get(&hash).map(|known| Arc::clone(&known.chapter));
            let missing = || wrong(format!("layout {} is missing: restore it from another node's copy", ShortHash(&hash)));
            chapters.push(known.ok_or_else(missing)?);
        }
        let mut before = self.current();
        for chapter in &mut chapters {
            let layout = chapter.document.layout_after(*chapter.layout.hash(), &before).map_err(|problems| wrong(problems.join("; ")))?;
            before = Arc::new(layout);
            *chapter = Arc::new(Chapter { layout: Arc::clone(&before), document: chapter.document.clone() });
        }
        if !chapters.is_empty() {
            self.replace(chapters);
        }
        self.progress.lock().former.clear();
        loop {
            let current = *self.current().hash();
            let children =
                self.known.lock().values().filter(|known| known.chapter.document.parents.contains(&current)).cloned().collect::<Vec<_>>();
            match children.as_slice() {
                [only] => self.apply(Arc::clone(&only.chapter)).map_err(|error| wrong(error.to_string()))?,
                _ => return Ok(()),
            }
        }
    }

    /// Whether no write is under way that began before the current layout.
    pub fn is_drained(&self) -> bool {
        self.progress.lock().former.iter().all(|token| token.strong_count() == 0)
    }

    /// With which of `others` this node has still to compare itself, since all of them write by the current layout, before it
    /// has everything that this assigns to it.
    pub fn not_compared(&self, others: &[NodeIndex]) -> Vec<NodeIndex> {
        if self.open.load().chapters.len() == 1 {
            // Older ones were closed because everybody was.
            return Vec::new();
        }
        let progress = self.progress.lock();
        let compared = |other: &NodeIndex| progress.all_drained.is_some() && progress.compared.contains(other);
        others.iter().copied().filter(|other| !compared(other)).collect()
    }

    /// Every member was heard to write by this layout, which counts if it is still the current one. Answers whether that is
    /// news: once true it stays so, for what begins later begins by the current layout.
    pub fn note_all_drained(&self, layout: &LayoutHash) -> bool {
        let mut progress = self.progress.lock();
        let news = progress.all_drained.is_none() && self.current().hash() == layout;
        if news {
            progress.all_drained = Some(Instant::now());
            self.open.load().all_drained.store(true, Ordering::Release);
        }
        news
    }

    /// This node has compared itself with a peer, completely; `begun` is when.
    pub fn note_compared(&self, peer: NodeIndex, begun: Instant, layout: &LayoutHash) {
        if self.current().hash() != layout {
            return;
        }
        let mut progress = self.progress.lock();
        if progress.all_drained.is_some_and(|since| begun >= since) {
            progress.compared.insert(peer);
        }
    }

    /// Whether older layouts stay open here until this node has compared itself with a peer once more.
    pub fn waits_for(&self, peer: NodeIndex) -> bool {
        let progress = self.progress.lock();
        self.open.load().chapters.len() > 1 && progress.all_drained.is_some() && !progress.compared.contains(&peer)
    }

    /// Something that was here is not: what was compared proves nothing any more.
    pub fn note_loss(&self) {
        self.progress.lock().compared.clear();
    }

    /// Closes all but `kept` of the open layouts, and never the current one. The caller knows that every member is drained
    /// and synced for the current one, `current`, or that a member of the same current one has closed them. Blocking.
    ///
    /// # Errors
    /// If that cannot be written; then they stay open.
    pub fn close_others(&self, current: &LayoutHash, kept: &[LayoutHash]) -> io::Result<()> {
        let _one = self.changing.lock();
        let open = self.open.load_full();
        let Some(newest) = open.current().filter(|newest| newest.layout.hash() == current) else { return Ok(()) };
        let stays = |chapter: &&Arc<Chapter>| chapter.layout.hash() == current || kept.contains(chapter.layout.hash());
        let chapters: Vec<Arc<Chapter>> = open.chapters.iter().filter(stays).cloned().collect();
        if chapters.len() == open.chapters.len() {
            return Ok(());
        }
        self.write_open(&chapters)?;
        tracing::info!(version = newest.document.version, open = chapters.len(), "older layouts are closed");
        self.replace(chapters);
        Ok(())
    }

    /// Before when a record must have been here to have been written by the layouts before this one: what was written since may
    /// never have been where they would have put it. When the document was made, since that was certainly before it was known.
    pub fn since(&self) -> UnixMillis {
        UnixMillis(self.applied.load(Ordering::Acquire))
    }

    /// Layouts that closed the latch and were not answered for (rule 10): while there is one, nothing is removed.
    pub fn latched(&self) -> Vec<LayoutHash> {
        document::latched(self.history().iter().map(AsRef::as_ref))
    }

    /// Disks of which an operator has accepted that what they alone held is gone (rule 8).
    pub fn given_up(&self) -> BTreeSet<Incarnation> {
        document::given_up(self.history().iter().map(AsRef::as_ref))
    }
}

/// The newest layout that a node has, before anything else is read or locked: for whom to believe when certificates are
/// checked. Nothing is verified here, and nothing written; [`Layouts::load`] does that a moment later.
pub fn glance(state: &Path) -> Option<Document> {
    let folder = state.join("layouts");
    let open = files::read_text(&folder.join("open"), 1 << 20).ok()?;
    let newest = open.lines().last()?.trim();
    let mut found = fs::read_dir(&folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let document = found.find(|path| path.to_string_lossy().ends_with(&format!("-{}", newest.get(..8).unwrap_or("?"))))?;
    let signed = read_document(&document).ok().filter(|signed| hex::encode(signed.hash()) == newest)?;
    Document::decode(&signed.body).ok()
}

/// The later of what a node has and what came with its configuration.
pub fn newest(had: Option<Document>, brought: &[Signed]) -> Option<Document> {
    let brought = brought.iter().filter_map(|signed| Document::decode(&signed.body).ok());
    had.into_iter().chain(brought).max_by_key(|document| document.version)
}

/// Ed25519 by AWS-LC.
pub fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, key).verify(message, signature).is_ok()
}

/// What the chain on disk began with; what the configuration says, at the first start.
fn read_genesis(folder: &Path, configured: Chapter) -> Result<Chapter, ChainError> {
    let path = folder.join("genesis");
    let wrong = |why: String| ChainError { path: path.clone(), why };
    match fs::read(&path) {
        Ok(bytes) => {
            let stored = Document::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
            let layout = stored.layout([0; 32]).map_err(|problems| wrong(problems.join("; ")))?;
            if layout.hash() == configured.layout.hash() {
                // The same sites and nodes; endpoints may have been mended in the file, and custodians named for the first time.
                // Those are kept from then on: what they sign must be believed whatever becomes of the file.
                let adopted = stored.custodians.is_empty() && !configured.document.custodians.is_empty();
                let custodians = if adopted { configured.document.custodians.clone() } else { stored.custodians };
                let chapter = Chapter { document: Document { custodians, ..configured.document }, ..configured };
                if adopted {
                    files::replace(&path, &chapter.document.encode(), 0o600).map_err(|error| wrong(error.to_string()))?;
                }
                return Ok(chapter);
            }
            tracing::warn!("[layout] in the configuration is not what this node began with: the stored chain counts");
            Ok(Chapter { layout: Arc::new(layout), document: stored })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_private_directory(folder).map_err(|error| wrong(error.to_string()))?;
            files::replace(&path, &configured.document.encode(), 0o600).map_err(|error| wrong(error.to_string()))?;
            Ok(configured)
        }
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Stored documents, parents first.
fn read_documents(folder: &Path) -> Result<Vec<(PathBuf, Signed)>, ChainError> {
    let at = |path: &Path, why: String| ChainError { path: path.to_owned(), why };
    let mut documents = Vec::new();
    let entries = fs::read_dir(folder).map_err(|error| at(folder, error.to_string()))?;
    for entry in entries {
        let path = entry.map_err(|error| at(folder, error.to_string()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_document = name.len() == 17 && name.as_bytes().get(8) == Some(&b'-') && name.bytes().take(8).all(|c| c.is_ascii_digit());
        if !is_document {
            continue;
        }
        documents.push((path.clone(), read_document(&path).map_err(|why| at(&path, why))?));
    }
    documents.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(documents)
}

fn read_document(path: &Path) -> Result<Signed, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LAYOUT_BYTES_MAX as u64 + 4096 {
        return Err(format!("it has {length} bytes: the most is {LAYOUT_BYTES_MAX}"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    postcard::from_bytes(&bytes).map_err(|error| format!("it is damaged ({error})"))
}

/// Whether a node of this duty under a layout is to be waited for.
pub fn awaited(layout: &Layout, node: NodeIndex) -> bool {
    matches!(layout.duty(node), Duty::Active | Duty::Draining)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
