//! Which nodes hold what (stub).
use crate::{layout::NodeIndex, placement::Partition};
use serde::{Deserialize, Serialize};

/// For every partition the nodes that its records are assigned to, under one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    sets: Vec<Vec<NodeIndex>>,
    slots: Vec<u16>,
}

impl Assignment {
    /// The same with other indexes; `None` if a node has none.
    pub fn renumbered(&self, index: &dyn Fn(NodeIndex) -> Option<NodeIndex>) -> Option<Self> {
        let set = |set: &Vec<NodeIndex>| set.iter().map(|node| index(*node)).collect::<Option<Vec<_>>>();
        Some(Self { sets: self.sets.iter().map(set).collect::<Option<_>>()?, slots: self.slots.clone() })
    }

    /// The nodes of a partition.
    pub fn nodes(&self, partition: Partition) -> &[NodeIndex] {
        let slot = self.slots.get(partition.0 as usize).copied().unwrap_or(u16::MAX);
        self.sets.get(usize::from(slot)).map(Vec::as_slice).unwrap_or_default()
    }
}
