//! Asking every node by itself, at once, each with its own short deadline, so that status answers when most of the cluster
//! does not. Nodes that nobody configured are learnt from the layouts of those that answer.
use crate::{client::Client, endpoints::Door, error::Error, limits};
use afar_proto::v1;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::collections::BTreeSet;

/// What came of asking one endpoint.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who was asked.
    pub endpoint: String,
    /// What it said.
    pub outcome: Result<v1::NodeStatus, Error>,
}

/// Asks every node that is known or gets known, each once. With `fresh`, nodes look again instead of repeating their last survey.
pub async fn gather(client: &Client, fresh: bool) -> Vec<Answer> {
    let mut asked = BTreeSet::new();
    let mut open = FuturesUnordered::new();
    for door in client.doors() {
        if asked.insert(door.name().to_owned()) {
            open.push(ask(door.clone(), fresh));
        }
    }
    let mut answers: Vec<Answer> = Vec::new();
    while let Some(answer) = open.next().await {
        if let Ok(status) = &answer.outcome {
            for endpoint in status.nodes.iter().map(|node| &node.endpoint) {
                // Same certificate authority, same key; bounded by what a layout may name.
                let door = client.doors().first().and_then(|door| door.to(endpoint).ok());
                if let Some(door) = door.filter(|_| asked.len() < limits::ENDPOINTS_MAX)
                    && asked.insert(door.name().to_owned())
                {
                    open.push(ask(door, fresh));
                }
            }
        }
        answers.push(answer);
    }
    answers
}

async fn ask(door: Door, fresh: bool) -> Answer {
    let mut service = door.status();
    let outcome = door.ask(limits::STATUS_TIMEOUT, service.node(v1::NodeStatusRequest { fresh })).await;
    Answer { endpoint: door.name().to_owned(), outcome }
}
