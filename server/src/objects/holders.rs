//! Who holds a version, gathered record by record: what a coordinator tells the others, so that they need not ask.
//!
//! A version and its chunks are placed each for itself, so two nodes can hold all that is theirs without either holding all of
//! it. Whoever is assigned something of a version and lacks it is named; so is a stand-in, if it holds everything.
use afar_model::layout::NodeIndex;
use std::collections::BTreeSet;

/// Who holds a version's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// Who holds every record so far; `None` before the first.
    whole: Option<BTreeSet<NodeIndex>>,
    lacking: BTreeSet<NodeIndex>,
}

impl Holders {
    /// Of one record: the nodes that it is `assigned` to, and those that hold it durably.
    pub fn note(&mut self, assigned: &[NodeIndex], holders: &[NodeIndex]) {
        self.lacking.extend(assigned.iter().filter(|node| !holders.contains(node)));
        match &mut self.whole {
            Some(whole) => whole.retain(|node| holders.contains(node)),
            None => self.whole = Some(holders.iter().copied().collect()),
        }
    }

    /// Who holds every record.
    pub fn whole(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.whole.iter().flatten().copied()
    }

    /// Who is assigned something of it and lacks that.
    pub fn lacking(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.lacking.iter().copied()
    }

    /// Who has all of what is theirs: of those that the version record is `assigned` to, whoever lacks nothing; and who holds
    /// everything.
    pub fn complete(&self, assigned: &[NodeIndex]) -> Vec<NodeIndex> {
        let mut complete: Vec<NodeIndex> = assigned.iter().copied().filter(|node| !self.lacking.contains(node)).collect();
        complete.extend(self.whole().filter(|node| !assigned.contains(node)));
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeIndex = NodeIndex(0);
    const B: NodeIndex = NodeIndex(1);
    const C: NodeIndex = NodeIndex(2);
    const D: NodeIndex = NodeIndex(3);

    #[test]
    fn who_is_assigned_only_the_version_or_only_a_chunk_lacks_nothing_without_the_rest() {
        let mut holders = Holders::default();
        holders.note(&[A, B], &[A, B]);
        holders.note(&[B, C], &[B, C]);
        assert_eq!(holders.complete(&[A, B]), [A, B]);
        assert_eq!((holders.whole().collect::<Vec<_>>(), holders.lacking().count()), (vec![B], 0));
    }

    #[test]
    fn who_lacks_a_chunk_is_named_and_a_stand_in_counts_only_with_everything() {
        let mut holders = Holders::default();
        holders.note(&[A, B], &[A, D]);
        assert_eq!(holders.complete(&[A, B]), [A, D]);
        holders.note(&[A, C], &[B, D]);
        assert_eq!(holders.complete(&[A, B]), [D], "A lacks the chunk, B the version");
        assert_eq!(holders.lacking().collect::<Vec<_>>(), [A, B, C]);
        holders.note(&[C], &[C]);
        assert_eq!(holders.complete(&[A, B]), [], "D stands in, and lacks the last one");
    }
}
