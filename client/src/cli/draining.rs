//! How far nodes are that were told to hand over what they hold. Only when nothing is left do the others let them be removed, so
//! whoever drains one has to learn when that is.
use super::{Session, operate::Desk, units};
use crate::{
    cluster::operator::name_of,
    error::Error,
    status::{Answer, gather},
};
use afar_model::layout::{Duty, Layout};
use serde_json::{Value, json};

/// A node that is being drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draining {
    /// It.
    node: String,
    /// Records that it still holds; `None` if nobody says.
    left: Option<u64>,
    /// What else is waited for.
    waiting: Option<String>,
}

impl Draining {
    /// Whether it can be removed.
    fn is_done(&self) -> bool {
        self.left == Some(0) && self.waiting.is_none()
    }

    /// For people: how far it is, or what to do next.
    pub fn words(&self) -> String {
        let Self { node, left, waiting } = self;
        let left = match left {
            Some(0) => "has handed over everything that it held".to_owned(),
            Some(left) => format!("still holds {}", units::plural(usize::try_from(*left).unwrap_or(usize::MAX), "record", "records")),
            None => "does not say yet how much it still holds".to_owned(),
        };
        match waiting {
            _ if self.is_done() => format!("{node} {left}: `afar node remove {node}` now, then stop it"),
            Some(waiting) => format!("{node} {left}; {waiting}"),
            None => format!("{node} {left}; it lets go of them when all who get them have them"),
        }
    }

    /// For scripts.
    pub fn value(&self) -> Value {
        json!({"node": self.node, "records_left": self.left, "done": self.is_done(), "waiting_for": self.waiting})
    }
}

/// Tells how far nodes are that are being drained already: to say it again changes nothing.
pub async fn tell(session: &Session, desk: &Desk, nodes: &[String]) -> Result<u8, Error> {
    let found: Vec<Draining> = draining(desk).await?.into_iter().filter(|draining| nodes.contains(&draining.node)).collect();
    session.out.either(
        || json!({"applied": false, "draining": found.iter().map(Draining::value).collect::<Vec<_>>()}),
        || found.iter().map(Draining::words).collect::<Vec<_>>().join("\n"),
    )?;
    Ok(0)
}

/// How far every node is that the newest layout drains. Nobody is asked if it drains none.
pub async fn draining(desk: &Desk) -> Result<Vec<Draining>, Error> {
    let layout = &desk.operator.head()?.layout;
    let drains = |layout: &Layout| layout.node_indexes().any(|node| layout.duty(node) == Duty::Draining);
    let answers = if drains(layout) { gather(&desk.client, false).await } else { Vec::new() };
    Ok(progress(layout, &name_of(desk.operator.head()?), &answers))
}

fn progress(layout: &Layout, name: &str, answers: &[Answer]) -> Vec<Draining> {
    let said = || answers.iter().filter_map(|answer| answer.outcome.as_ref().ok());
    let behind: Vec<&str> =
        said().filter(|status| status.layout_digest.as_ref() != layout.hash()).map(|status| status.node.as_str()).collect();
    let fetching = said().fold(0, |sum: u64, status| sum.saturating_add(status.to_fetch_records));
    // As a node judges whether one may be removed: no layout but the newest is in force anywhere.
    let waiting = if !behind.is_empty() {
        Some(format!("layout {name} is not yet at {}", behind.join(", ")))
    } else if said().any(|status| status.open_layouts > 1) {
        let fetch = units::plural(usize::try_from(fetching).unwrap_or(usize::MAX), "record", "records");
        let fetch = if fetching > 0 { format!(": {fetch} to fetch yet") } else { String::new() };
        Some(format!("layout {name} is taking over{fetch}"))
    } else {
        None
    };
    let of = |node: &str| match said().find(|status| status.node == node) {
        Some(status) => {
            // All ones: not counted yet.
            let left = Some(status.surplus_records).filter(|left| *left != u64::MAX);
            Draining { node: node.to_owned(), left, waiting: waiting.clone() }
        }
        None => Draining { node: node.to_owned(), left: None, waiting: Some("it does not answer (`afar status`)".into()) },
    };
    layout.node_indexes().filter(|node| layout.duty(*node) == Duty::Draining).map(|node| of(layout.node_name(node))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use afar_model::layout::examples;
    use afar_proto::v1;

    fn leaving() -> Layout {
        let layout = examples::three_sites().unwrap();
        let mut nodes = layout.nodes().to_vec();
        nodes[2].duty = Duty::Draining;
        Layout::new(2, layout.partitions(), layout.sites().to_vec(), nodes).unwrap()
    }

    fn answer(layout: &Layout, node: &str, surplus: u64, open: u32) -> Answer {
        let status = v1::NodeStatus {
            node: node.into(),
            layout_digest: layout.hash().to_vec().into(),
            surplus_records: surplus,
            open_layouts: open,
            to_fetch_records: 7,
            ..v1::NodeStatus::default()
        };
        Answer { endpoint: format!("https://{node}:7700"), outcome: Ok(status) }
    }

    fn words(answers: &[Answer]) -> String {
        let [warsaw] = <[Draining; 1]>::try_from(progress(&leaving(), "2-0a1b2c3d", answers)).unwrap();
        warsaw.words()
    }

    #[test]
    fn who_has_handed_over_everything_can_be_removed_and_nobody_else() {
        let layout = leaving();
        let of = |surplus, open| vec![answer(&layout, "strasbourg", 0, open), answer(&layout, "warsaw", surplus, 1)];
        assert_eq!(words(&of(0, 1)), "warsaw has handed over everything that it held: `afar node remove warsaw` now, then stop it");
        assert_eq!(words(&of(12, 1)), "warsaw still holds 12 records; it lets go of them when all who get them have them");
        let taking_over = words(&of(0, 2));
        assert!(taking_over.ends_with("; layout 2-0a1b2c3d is taking over: 14 records to fetch yet"), "{taking_over}");
        assert!(words(&of(u64::MAX, 1)).contains("does not say yet"));
        let mut lagging = of(0, 1);
        lagging[0] = answer(&examples::three_sites().unwrap(), "strasbourg", 0, 1);
        assert!(words(&lagging).contains("not yet at strasbourg"));
        assert!(words(&[answer(&layout, "strasbourg", 0, 1)]).contains("does not answer"));
        for not_yet in [of(12, 1), of(0, 2), of(u64::MAX, 1), lagging] {
            assert!(!words(&not_yet).contains("afar node remove"), "{}", words(&not_yet));
        }
    }

    #[test]
    fn nobody_leaves() {
        assert_eq!(progress(&examples::three_sites().unwrap(), "1-0a1b2c3d", &[]), []);
    }
}
