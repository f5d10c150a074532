//! The word that versions are at their level, to those who hold them prepared: collected for some milliseconds and sent
//! together. It is a courtesy, not a promise: who has not heard proves a version for itself.
use crate::{limits, node::Node, replication::lane::LaneKind};
use afar_model::layout::NodeIndex;
use afar_proto::v1;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio_util::sync::CancellationToken;

/// What waits to be told.
#[derive(Debug, Default)]
pub struct Settlements {
    waiting: Mutex<HashMap<NodeIndex, Vec<v1::Settled>>>,
}

impl Settlements {
    /// Tells a peer soon; drops the word if too much waits for it.
    pub fn push(&self, peer: NodeIndex, version: v1::Settled) {
        let mut waiting = self.waiting.lock();
        let queue = waiting.entry(peer).or_default();
        if queue.len() < limits::SETTLE_QUEUE {
            queue.push(version);
        }
    }

    fn take(&self) -> Vec<(NodeIndex, Vec<v1::Settled>)> {
        self.waiting.lock().iter_mut().filter(|(_, queue)| !queue.is_empty()).map(|(peer, queue)| (*peer, std::mem::take(queue))).collect()
    }
}

/// Sends what waits, again and again, and once more at the end.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    loop {
        let stopping = stop.run_until_cancelled(tokio::time::sleep(limits::SETTLE_EVERY)).await.is_none();
        for (peer, versions) in node.settlements.take() {
            if let Some(lane) = node.lanes.to(peer, LaneKind::Small) {
                versions.chunks(limits::SETTLE_BATCH).for_each(|batch| lane.settle(batch.to_vec()));
            }
        }
        if stopping {
            return;
        }
    }
}
