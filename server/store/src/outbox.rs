//! What this node owes to others: durable, so that a restart forgets no debt; its oldest entry is the recovery point that
//! is reported.
use crate::{
    directory::Directory,
    index::keys::{self, table},
    types::{NotReady, Owed, OwedSummary},
};
use afar_model::units::UnixMillis;
use std::collections::BTreeMap;

impl Directory {
    /// Debts by node and then oldest first.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn owed(&self, to: Option<&str>, after: Option<&Owed>, limit: usize) -> Result<Vec<Owed>, NotReady> {
        self.require_views()?;
        let (mut from, end) = match to {
            Some(to) => (keys::outbox_of(to), keys::after_prefix(&keys::outbox_of(to))),
            None => (vec![table::OUTBOX], vec![table::OUTBOX + 1]),
        };
        if let Some(after) = after {
            from = from.max([keys::outbox(&after.to, after.since, &after.key).as_slice(), &[0]].concat());
        }
        let mut found = Vec::new();
        if limit > 0 {
            self.scan(&from, &end, &mut |row, value| {
                found.extend(keys::parse_outbox(row, value));
                found.len() < limit
            })
            .map_err(|_| NotReady { progress: 0.0 })?;
        }
        Ok(found)
    }

    /// Sums by node, added to what other directories owe.
    ///
    /// # Errors
    /// If the views are being rebuilt.
    pub fn add_owed_summary(&self, sums: &mut BTreeMap<String, OwedSummary>) -> Result<(), NotReady> {
        self.require_views()?;
        let tally: Vec<(String, (i64, i64))> = self.tally.lock().iter().map(|(to, sums)| (to.clone(), *sums)).collect();
        for (to, (records, bytes)) in tally {
            let Some(oldest) = self.owed(Some(&to), None, 1)?.first().map(|owed| owed.since) else { continue };
            let sum = sums.entry(to.clone()).or_insert(OwedSummary { to, records: 0, bytes: 0, oldest: UnixMillis(u64::MAX) });
            sum.records += records.max(0).unsigned_abs();
            sum.bytes += bytes.max(0).unsigned_abs();
            sum.oldest = sum.oldest.min(oldest);
        }
        Ok(())
    }
}

/// The order in which debts are listed.
pub fn order(owed: &Owed) -> Vec<u8> {
    keys::outbox(&owed.to, owed.since, &owed.key)
}
