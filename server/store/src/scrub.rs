//! The raw scrub: re-reading sealed segments, past the page cache where that can be done, and hashing every live record.
//!
//! Segments are opened afresh by path (rule 26): a handle kept open would still read a file that somebody deleted. How fast
//! to go is decided elsewhere; this does one step of a budget, oldest first, and remembers where it was.
use crate::{
    directory::Directory,
    format::{self, Kind},
    limits,
    recovery::BadRange,
    segment::{self, Place, PlaceError, Segment},
    types::{IndexCheck, ScrubStep},
};
use afar_model::units::UnixMillis;
use std::sync::{Arc, atomic::Ordering};

impl Directory {
    /// Reads and hashes about `budget` bytes.
    pub fn scrub_step(&self, budget: u64) -> ScrubStep {
        let mut step = ScrubStep::default();
        let mut cursor = self.scrub_cursor.lock();
        let (sequence, from, began, clean) = match *cursor {
            Some(at) if self.segment(at.0).is_some() => at,
            _ => match self.least_recently_verified() {
                Some(segment) => (segment.sequence, 0, self.now(), true),
                None => return step,
            },
        };
        let Some(segment) = self.segment(sequence) else { return step };
        match self.scrub_segment(&segment, from, budget, &mut step) {
            Ok(Some(next)) => *cursor = Some((sequence, next, began, clean && step.corrupt.is_empty())),
            Ok(None) => {
                // Corrupt records are quarantined: what is still live in the segment was verified.
                segment.mark_scrubbed(began);
                step.finished_segment = true;
                *cursor = None;
            }
            Err(why) => {
                *cursor = None;
                if !self.is_whole(&segment) && self.segment(sequence).is_none() {
                    return step; // it is lost, and that is noted
                }
                tracing::error!(directory = %self.path.display(), segment = sequence, why, "segment cannot be scrubbed");
                self.report_damage(sequence, std::iter::once(BadRange { from: 0, to: segment.length(), why, header: None }));
                // Or the next step would try the same one again, and the others never have their turn.
                segment.mark_scrubbed(segment.oldest_verification());
            }
        }
        step
    }

    /// When the least recently verified sealed segment was verified, or written.
    pub fn oldest_unverified(&self) -> Option<UnixMillis> {
        self.least_recently_verified().map(|segment| segment.oldest_verification())
    }

    fn least_recently_verified(&self) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        segments
            .values()
            .filter(|segment| segment.trailer().is_some())
            .min_by_key(|segment| (segment.oldest_verification(), segment.sequence))
            .cloned()
    }

    fn scrub_segment(&self, segment: &Segment, from: usize, budget: u64, step: &mut ScrubStep) -> Result<Option<usize>, String> {
        let file = self.disk.open(&segment.path, false).map_err(|error| error.to_string())?;
        let stat = file.stat().map_err(|error| error.to_string())?;
        if stat.id != segment.id || stat.length != segment.length() {
            return Err("the file is not the one that this run opened".to_owned());
        }
        step.past_cache = file.can_forget();
        let mut lines = self.footer(segment.sequence).and_then(|footer| footer.in_log_order()).map_err(|error| error.to_string())?;
        lines.retain(|(entry, _)| matches!(entry.kind, Kind::Public(_)));
        for (at, (entry, _)) in lines.iter().enumerate().skip(from) {
            if step.bytes >= budget {
                return Ok(Some(at));
            }
            let Kind::Public(kind) = entry.kind else { continue };
            let place = Place { segment: segment.sequence, offset: entry.offset, length: entry.length, kind };
            if self.locate(&entry.key)? != Some(place) {
                continue; // dead: compaction will take it
            }
            let total = format::total(entry.length);
            file.forget(entry.offset, total);
            step.bytes += total;
            step.records += 1;
            match segment::read_record(&*file, self.salt, &entry.key, &place) {
                Ok(_) => {}
                Err(PlaceError::Bad(why)) => {
                    self.quarantine(&entry.key, &place, &why);
                    step.corrupt.push(entry.key);
                }
                Err(PlaceError::Io(error) | PlaceError::Unreadable(error)) => {
                    // A sector that cannot be read is as bad as one that reads wrong.
                    self.note_unreadable(&error);
                    self.quarantine(&entry.key, &place, &error.to_string());
                    step.corrupt.push(entry.key);
                }
            }
        }
        Ok(None)
    }

    /// Rule 18: compares counters with segments, and some entries of one segment with the index. A mismatch begins a rebuild.
    pub fn check_index(&self, check: &mut IndexCheck) {
        if !self.views_ready() {
            check.matches = false;
            check.mismatches.push(format!("{}: the index is being rebuilt", self.path.display()));
            return;
        }
        let mut mismatches = self.compare_counters(check);
        mismatches.extend(self.compare_sample(check));
        self.index_agrees.store(mismatches.is_empty(), Ordering::Release);
        if let Some(first) = mismatches.first() {
            self.distrust_index(first);
        }
        check.matches &= mismatches.is_empty();
        check.mismatches.extend(mismatches);
    }

    fn compare_counters(&self, check: &mut IndexCheck) -> Vec<String> {
        // Under the lock nothing is resolved, so counters and log stand still together.
        let _order = self.resolving.lock();
        let counters = self.counters.lock().clone();
        let end = self.commit.written();
        check.segments += counters.len();
        let active = self.active.lock();
        // The active segment's last records may be noted but not resolved yet; it is compared once sealed.
        let end = crate::Position { segment: active.sequence, offset: 0 }.min(end);
        drop(active);
        crate::indexer::compare(self, &counters, end)
    }

    /// Entries of one sealed segment's footer against the index: each must be live here, or have a reason not to be.
    fn compare_sample(&self, check: &mut IndexCheck) -> Option<String> {
        let mut cursor = self.sample_cursor.lock();
        let segments = self.segments.read();
        let sealed = |(_, segment): &(&u64, &Arc<Segment>)| segment.trailer().is_some();
        let next = segments.range(cursor.0..).find(sealed).or_else(|| segments.iter().find(sealed)).map(|(sequence, _)| *sequence)?;
        drop(segments);
        if next != cursor.0 {
            *cursor = (next, 0);
        }
        let footer = self.footer(next).ok()?;
        let (from, to) = (cursor.1, cursor.1 + limits::CHECK_SAMPLE);
        let lines = footer.lines(from, to).ok()?;
        *cursor = if to >= footer.len() { (next + 1, 0) } else { (next, to) };
        drop(cursor);
        for entry in lines {
            let Kind::Public(kind) = entry.kind else { continue };
            check.sampled += 1;
            let place = Place { segment: next, offset: entry.offset, length: entry.length, kind };
            let here = self.locate(&entry.key).ok()?;
            if here == Some(place) {
                continue;
            }
            if let Some(elsewhere) = here {
                // Moved or written again: there must be a file for it.
                if self.segment(elsewhere.segment).is_none() && self.locate(&entry.key).ok()? == here {
                    return Some(format!("the index has {:?} in a segment that does not exist", entry.key));
                }
            } else if !self.removed_after(&entry.key, next, entry.offset) && self.locate(&entry.key).ok()?.is_none() {
                return Some(format!("segment {next:016x} holds {:?}, the index lacks it", entry.key));
            }
        }
        None
    }

    /// Whether the log removes a record after this place.
    fn removed_after(&self, key: &afar_model::record::RecordKey, segment: u64, offset: u64) -> bool {
        let later: Vec<u64> =
            self.segments.read().range(segment..).filter(|(_, later)| later.trailer().is_some()).map(|(sequence, _)| *sequence).collect();
        let in_active = self.active.lock().builder.entries().iter().any(|entry| entry.key == *key && entry.kind == Kind::Tombstone);
        in_active
            || later.into_iter().any(|sequence| {
                let last = self.footer(sequence).ok().and_then(|footer| footer.last(key).ok().flatten());
                last.is_some_and(|last| last.kind == Kind::Tombstone && (sequence, last.offset) > (segment, offset))
            })
    }
}
