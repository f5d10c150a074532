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
    let answers = every_node(client, |door| ask(door, fresh), |status: &v1::NodeStatus| &status.nodes).await;
    answers.into_iter().map(|(endpoint, outcome)| Answer { endpoint, outcome }).collect()
}

/// Asks every endpoint that is known or gets known from an answer, each once; what came of each.
pub(crate) async fn every_node<T, F: Future<Output = (String, Result<T, Error>)>>(
    client: &Client,
    ask: impl Fn(Door) -> F,
    nodes: impl Fn(&T) -> &[v1::NodeInfo],
) -> Vec<(String, Result<T, Error>)> {
    let mut asked = BTreeSet::new();
    let mut open = FuturesUnordered::new();
    for door in client.doors() {
        if asked.insert(door.name().to_owned()) {
            open.push(ask(door.clone()));
        }
    }
    let mut answers = Vec::new();
    while let Some((endpoint, outcome)) = open.next().await {
        if let Ok(answer) = &outcome {
            for endpoint in nodes(answer).iter().map(|node| &node.endpoint) {
                // Same certificate authority, same key; bounded by what a layout may name.
                let door = client.doors().first().and_then(|door| door.to(endpoint).ok());
                if let Some(door) = door.filter(|_| asked.len() < limits::ENDPOINTS_MAX)
                    && asked.insert(door.name().to_owned())
                {
                    open.push(ask(door));
                }
            }
        }
        answers.push((endpoint, outcome));
    }
    answers
}

async fn ask(door: Door, fresh: bool) -> (String, Result<v1::NodeStatus, Error>) {
    let mut service = door.status();
    let outcome = door.ask(limits::STATUS_TIMEOUT, service.node(v1::NodeStatusRequest { fresh })).await;
    (door.name().to_owned(), outcome)
}
