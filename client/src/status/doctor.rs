//! What every node finds out about its machine and its ways to the others when it is asked to look.
use super::fetch::every_node;
use crate::{
    client::Client,
    endpoints::{Door, normalise},
    error::Error,
    limits,
};
use afar_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// Something that was measured or looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What kind of thing: "fsync", "reach" …
    pub name: String,
    /// Which one: a directory, a peer; empty: the node.
    pub subject: String,
    /// "ok", "warning", "critical" or "unknown".
    pub state: String,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing.
    pub advice: String,
    /// Figures, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub measured: BTreeMap<String, f64>,
}

/// What one node found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Examined {
    /// Its name.
    pub node: String,
    /// Its site; empty if it did not answer.
    pub site: String,
    /// What it found, or that it does not answer.
    pub checks: Vec<Finding>,
}

/// What all of them found: what `afar doctor --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Examination {
    /// The worst of all.
    pub state: String,
    /// By name.
    pub nodes: Vec<Examined>,
}

/// Asks every node that is known or gets known to examine itself.
///
/// # Errors
/// If none does: what each of them said.
pub async fn examine(client: &Client) -> Result<Examination, Vec<Error>> {
    let answers = every_node(client, ask, |report: &v1::DoctorReport| &report.nodes).await;
    merge(answers)
}

async fn ask(door: Door) -> (String, Result<v1::DoctorReport, Error>) {
    let mut service = door.status();
    let outcome = door.ask(limits::DOCTOR_TIMEOUT, service.doctor(v1::DoctorRequest {})).await;
    (door.name().to_owned(), outcome)
}

fn merge(answers: Vec<(String, Result<v1::DoctorReport, Error>)>) -> Result<Examination, Vec<Error>> {
    let mut nodes: BTreeMap<String, Examined> = BTreeMap::new();
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    let mut failed: BTreeMap<String, Error> = BTreeMap::new();
    for (endpoint, outcome) in answers {
        match outcome {
            Ok(report) => {
                named.extend(report.nodes.into_iter().map(|node| (node.name, node.endpoint)));
                let checks = report.findings.into_iter().map(Finding::from).collect();
                nodes.insert(report.node.clone(), Examined { node: report.node, site: report.site, checks });
            }
            Err(error) => {
                failed.insert(endpoint, error);
            }
        }
    }
    if nodes.is_empty() {
        return Err(failed.into_values().collect());
    }
    // An endpoint that does not answer is no trouble if its node was reached by another.
    for (name, endpoint) in named {
        nodes.entry(name.clone()).or_insert_with(|| {
            let why = normalise(&endpoint).ok().and_then(|endpoint| failed.get(&endpoint));
            silent(name, &endpoint, why)
        });
    }
    let nodes: Vec<Examined> = nodes.into_values().collect();
    let state = nodes.iter().flat_map(|node| &node.checks).map(|check| check.state.as_str()).max_by_key(|state| severity(state));
    Ok(Examination { state: state.unwrap_or("unknown").to_owned(), nodes })
}

fn silent(node: String, endpoint: &str, why: Option<&Error>) -> Examined {
    let found = Finding {
        name: "answers".into(),
        subject: String::new(),
        state: "critical".into(),
        detail: why.map_or_else(|| format!("{endpoint} was not asked"), ToString::to_string),
        advice: why
            .and_then(Error::what_to_do)
            .unwrap_or("see that afard runs there, that its port is open from here, and what its log says")
            .to_owned(),
        measured: BTreeMap::new(),
    };
    Examined { node, site: String::new(), checks: vec![found] }
}

/// Worse is greater.
pub(crate) fn severity(state: &str) -> u8 {
    match state {
        "critical" => 3,
        "warning" => 2,
        "ok" => 0,
        _ => 1,
    }
}

impl From<v1::Finding> for Finding {
    fn from(found: v1::Finding) -> Self {
        let v1::Finding { name, subject, state, detail, advice, measured } = found;
        Self { name, subject, state, detail, advice, measured: measured.into_iter().collect() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn report(node: &str, states: &[&str]) -> v1::DoctorReport {
        let info = |name: &str| v1::NodeInfo { name: name.into(), endpoint: format!("https://{name}"), ..v1::NodeInfo::default() };
        v1::DoctorReport {
            node: node.into(),
            site: node.into(),
            findings: states.iter().map(|state| v1::Finding { state: (*state).into(), ..v1::Finding::default() }).collect(),
            nodes: ["strasbourg", "warsaw"].map(info).to_vec(),
        }
    }

    fn asked(node: &str) -> String {
        format!("https://{node}:7700")
    }

    #[test]
    fn the_worst_finding_of_any_node_counts() {
        let both = |one: &[&str], two: &[&str]| {
            let answers = vec![(asked("strasbourg"), Ok(report("strasbourg", one))), (asked("warsaw"), Ok(report("warsaw", two)))];
            merge(answers).unwrap().state
        };
        assert_eq!(both(&["ok"], &["ok"]), "ok");
        assert_eq!(both(&["ok", "unknown"], &["ok"]), "unknown");
        assert_eq!(both(&["unknown"], &["warning"]), "warning");
        assert_eq!(both(&["critical", "ok"], &["warning"]), "critical");
    }

    #[test]
    fn a_silent_node_is_critical_but_not_a_silent_door_to_one_that_answers() {
        let error = || Error::new(Kind::Unreachable, "no answer");
        let answers = vec![(asked("strasbourg"), Ok(report("strasbourg", &["ok"]))), (asked("warsaw"), Err(error()))];
        let found = merge(answers).unwrap();
        let warsaw = found.nodes.iter().find(|node| node.node == "warsaw").unwrap();
        assert_eq!((found.state.as_str(), warsaw.checks[0].detail.contains("no answer")), ("critical", true));
        assert!(!warsaw.checks[0].advice.is_empty());
        let answers = vec![
            (asked("strasbourg"), Ok(report("strasbourg", &["ok"]))),
            (asked("alias"), Err(error())),
            (asked("warsaw"), Ok(report("warsaw", &["ok"]))),
        ];
        assert_eq!(merge(answers).unwrap().state, "ok");
    }

    #[test]
    fn nobody_is_nobody() {
        let error = Error::new(Kind::Unreachable, "no answer");
        assert_eq!(merge(vec![(asked("warsaw"), Err(error))]).unwrap_err().len(), 1);
    }
}
