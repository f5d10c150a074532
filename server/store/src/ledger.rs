//! What a log entry means for the index: the one function that turns records into changes, used by the writer, by replay
//! and by rebuild alike, so that they cannot disagree.
use crate::{
    format::{Debts, Note, Payments, SettledMarks, VersionInfo},
    index::{
        Op,
        keys::{self, Counters, ViewRow},
        overlay::DeltaNumber,
    },
    segment::Place,
    types::Position,
};
use afar_model::{
    record::{RecordKey, RecordKind},
    units::UnixMillis,
};

/// One entry of the log, as far as the index cares.
#[derive(Debug, Clone)]
pub enum LogItem {
    /// A record is here; a later one replaces an earlier one.
    Put {
        /// Its name.
        key: RecordKey,
        /// Where.
        place: Place,
        /// When it was received.
        received: UnixMillis,
        /// If it is a version.
        info: Option<VersionInfo>,
    },
    /// A record is removed; if it was a version that is lost, this is left of it.
    Remove(RecordKey, Option<Note>),
    /// Versions are settled.
    Settled(SettledMarks),
    /// Something is owed.
    Owed(Debts),
    /// Something is paid.
    Paid(Payments),
}

/// Changes that belong together, in the order of the log.
#[derive(Debug, Default)]
pub struct Delta {
    /// Its place in that order.
    pub number: DeltaNumber,
    /// Rows.
    pub ops: Vec<Op>,
    /// Differences of counters, by segment.
    pub counters: Vec<(u64, Counters)>,
    /// Entries that could not be resolved yet, because the views are being rebuilt.
    pub deferred: Vec<LogItem>,
    /// The log up to here is in the index once this is.
    pub end: Position,
}

impl Delta {
    fn count(&mut self, segment: u64, change: impl FnOnce(&mut Counters)) {
        if let Some((_, counters)) = self.counters.iter_mut().find(|(of, _)| *of == segment) {
            change(counters);
        } else {
            let mut counters = Counters::default();
            change(&mut counters);
            self.counters.push((segment, counters));
        }
    }
}

/// A change of what is owed to a node: records and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TallyChange {
    /// To whom.
    pub to: String,
    /// Records more (or fewer).
    pub records: i64,
    /// Bytes more (or fewer).
    pub bytes: i64,
}

/// What is known before an entry.
pub trait Known {
    /// Where a record is.
    fn place(&self, key: &RecordKey) -> Option<Place>;
    /// A row of the views.
    fn row(&self, key: &[u8]) -> Option<Vec<u8>>;
    /// What a version's record says.
    fn describe(&self, key: &RecordKey, place: &Place) -> Option<VersionInfo>;
}

/// Resolves one entry: rows and tally changes it causes, to be made visible before the next one is resolved; counters go
/// into the delta.
pub fn resolve(item: &LogItem, known: &dyn Known, delta: &mut Delta) -> (Vec<Op>, Vec<TallyChange>) {
    match item {
        LogItem::Put { key, place, received, info } => (resolve_put(key, place, *received, info.as_ref(), known, delta), Vec::new()),
        LogItem::Remove(key, note) => (resolve_remove(key, note.as_ref(), known, delta), Vec::new()),
        LogItem::Settled(marks) => (resolve_settled(marks, known), Vec::new()),
        LogItem::Owed(debts) => resolve_owed(debts, known),
        LogItem::Paid(payments) => resolve_paid(payments, known),
    }
}

fn resolve_put(
    key: &RecordKey,
    place: &Place,
    received: UnixMillis,
    info: Option<&VersionInfo>,
    known: &dyn Known,
    delta: &mut Delta,
) -> Vec<Op> {
    let old = known.place(key);
    if old == Some(*place) {
        return Vec::new();
    }
    delta.count(place.segment, |counters| counters.born(&key.id, place));
    if let Some(old) = &old {
        delta.count(old.segment, |counters| counters.died(old));
    }
    let mut ops = vec![(keys::primary(key), Some(keys::place(place)))];
    if let Some(info) = info {
        let row = keys::view(&key.bucket, &info.key, info.stamp, &key.id);
        match known.row(&row).and_then(|row| ViewRow::decode(&row)) {
            // A copy of what is already there (compaction) must not unsettle it.
            Some(before) if before.here && old.is_some() => {}
            // Nor must one of what was lost.
            Some(before) if !before.here => {
                ops.push((row, Some(ViewRow { here: true, ..before }.encode())));
                ops.push((keys::note(key), None));
            }
            _ => ops.push((row, Some(ViewRow::new(info, received).encode()))),
        }
    }
    if place.kind == RecordKind::Setting {
        ops.push((keys::setting(key), Some(Vec::new())));
    }
    ops
}

fn resolve_remove(key: &RecordKey, note: Option<&Note>, known: &dyn Known, delta: &mut Delta) -> Vec<Op> {
    let old = known.place(key);
    let mut ops = Vec::new();
    if let Some(old) = &old {
        delta.count(old.segment, |counters| counters.died(old));
        ops.push((keys::primary(key), None));
    }
    let view = |name: &str, stamp| keys::view(&key.bucket, name, stamp, &key.id);
    match (note, &old) {
        (Some(note), _) => {
            ops.push((view(&note.info.key, note.info.stamp), Some(ViewRow::noted(note).encode())));
            ops.push((keys::note(key), Some(keys::note_value(note))));
        }
        (None, Some(old)) => match old.kind {
            RecordKind::Version => ops.extend(known.describe(key, old).map(|info| (view(&info.key, info.stamp), None))),
            RecordKind::Setting => ops.push((keys::setting(key), None)),
            RecordKind::Chunk | RecordKind::Manifest => {}
        },
        (None, None) => {
            if let Some((name, stamp)) = known.row(&keys::note(key)).and_then(|value| keys::parse_note(&value)) {
                ops.push((view(&name, stamp), None));
                ops.push((keys::note(key), None));
            }
        }
    }
    ops
}

fn resolve_settled(marks: &SettledMarks, known: &dyn Known) -> Vec<Op> {
    let mut ops = Vec::new();
    for (bucket, key, stamp, id) in &marks.versions {
        let row = keys::view(bucket, key, *stamp, id);
        // Also if it is visible as settled already: that may be in memory only, and this brings it into the index.
        if let Some(known) = known.row(&row).and_then(|row| ViewRow::decode(&row)) {
            ops.push((row, Some(ViewRow { settled: true, ..known }.encode())));
        }
    }
    ops
}

/// The row of a version, settled; `None` if there is none or it already is.
pub fn settled(row: Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut row = ViewRow::decode(&row?).filter(|row| !row.settled)?;
    row.settled = true;
    Some(row.encode())
}

fn resolve_owed(debts: &Debts, known: &dyn Known) -> (Vec<Op>, Vec<TallyChange>) {
    let mut ops = Vec::new();
    let mut tally = Vec::new();
    for (key, kind, length, since) in &debts.items {
        let debt = keys::debt(&debts.to, key);
        // Owed already, since an earlier time: that stands. Within one entry the caller has removed doubles.
        if known.row(&debt).is_some() {
            continue;
        }
        ops.push((debt, Some(since.0.to_be_bytes().to_vec())));
        ops.push((keys::outbox(&debts.to, *since, key), Some(keys::outbox_value(*kind, *length))));
        tally.push(TallyChange { to: debts.to.clone(), records: 1, bytes: i64::from(*length) });
    }
    (ops, tally)
}

fn resolve_paid(payments: &Payments, known: &dyn Known) -> (Vec<Op>, Vec<TallyChange>) {
    let mut ops = Vec::new();
    let mut tally = Vec::new();
    for key in &payments.keys {
        let debt = keys::debt(&payments.to, key);
        let Some(since) = known.row(&debt).and_then(|since| since.try_into().ok()).map(u64::from_be_bytes) else { continue };
        let outbox = keys::outbox(&payments.to, UnixMillis(since), key);
        let bytes = known.row(&outbox).and_then(|value| keys::parse_outbox(&outbox, &value)).map_or(0, |owed| i64::from(owed.bytes));
        ops.push((debt, None));
        ops.push((outbox, None));
        tally.push(TallyChange { to: payments.to.clone(), records: -1, bytes: -bytes });
    }
    (ops, tally)
}
