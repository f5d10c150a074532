//! `afar doctor`: every node examines its disks, clock, limits and ways to the others.
use super::{Session, output::Out, status::nobody, units};
use crate::{
    error::Error,
    status::doctor::{Examination, Finding, examine, severity},
};
use clap::Args;
use std::collections::BTreeMap;

/// Let every node examine its machine and its ways to the others
#[derive(Debug, Args)]
#[command(after_help = "Needs a key with the admin right. Exit codes: 0 nothing found, 5 something to do, 14 no node answers")]
pub struct Arguments {
    /// Only what is wrong
    #[arg(short = 'x', long)]
    problems: bool,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let client = session.client()?;
    session.out.note("every node syncs its disks and calls the others: some seconds");
    let found = examine(&client).await.map_err(|errors| nobody(errors.iter()))?;
    if session.out.json {
        // Serialising our own plain structure cannot fail.
        session.out.value(&serde_json::to_value(&found).unwrap_or_default())?;
    } else {
        session.out.lines(&render(&session.out, &found, arguments.problems))?;
    }
    Ok(exit_code(&found.state))
}

fn exit_code(state: &str) -> u8 {
    if matches!(state, "warning" | "critical") { 5 } else { 0 }
}

fn name(node: &str, finding: &Finding) -> String {
    let words = [node, &finding.name, &finding.subject];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn render(out: &Out, found: &Examination, problems: bool) -> Vec<String> {
    let all = || found.nodes.iter().flat_map(|node| node.checks.iter().map(move |check| (node.node.as_str(), check)));
    let rows: Vec<Vec<String>> = all()
        .filter(|(_, check)| !problems || check.state != "ok")
        .map(|(node, check)| {
            let [node, name, subject] = [node, &check.name, &check.subject].map(str::to_owned);
            vec![node, name, subject, check.state.clone(), check.detail.clone()]
        })
        .collect();
    let mut lines = if rows.is_empty() { Vec::new() } else { units::table(&["NODE", "CHECK", "OF", "STATE", "FOUND"], &rows, &[]) };
    // The same advice for several nodes is given once; the worst first.
    let mut advice: BTreeMap<&str, (u8, Vec<String>)> = BTreeMap::new();
    for (node, check) in all().filter(|(_, check)| check.state != "ok" && !check.advice.is_empty()) {
        let entry = advice.entry(&check.advice).or_default();
        entry.0 = entry.0.max(severity(&check.state));
        entry.1.push(name(node, check));
    }
    let mut advice: Vec<(&str, (u8, Vec<String>))> = advice.into_iter().collect();
    advice.sort_by_key(|(_, (severity, _))| std::cmp::Reverse(*severity));
    for (what, (severity, whom)) in advice {
        let state = ["ok", "unknown", "warning", "critical"].get(usize::from(severity)).copied().unwrap_or("unknown");
        lines.push(format!("{} {}: {what}", out.paint(state, &state.to_uppercase()), whom.join(", ")));
    }
    if !all().any(|(_, check)| check.state != "ok") {
        lines.push(format!("{}: all ok", units::plural(all().count(), "check", "checks")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::output::ProgressStyle, status::doctor::Examined};

    const OUT: Out = Out { json: false, quiet: false, verbose: 0, color: false, progress: ProgressStyle::None };

    fn finding(name: &str, subject: &str, state: &str, detail: &str, advice: &str) -> Finding {
        let [name, subject, state, detail, advice] = [name, subject, state, detail, advice].map(str::to_owned);
        Finding { name, subject, state, detail, advice, measured: BTreeMap::new() }
    }

    fn examined(node: &str, checks: Vec<Finding>) -> Examined {
        Examined { node: node.into(), site: node.into(), checks }
    }

    #[test]
    fn the_screen() {
        let suspect = || finding("fsync", "/d", "warning", "5 µs", "turn its write cache off");
        let found = Examination {
            state: "critical".into(),
            nodes: vec![
                examined("strasbourg", vec![suspect(), finding("reach", "warsaw", "critical", "refused", "open that port")]),
                examined("warsaw", vec![suspect(), finding("open_files", "", "ok", "at most 65536", "")]),
            ],
        };
        insta::assert_snapshot!(render(&OUT, &found, false).join("\n"), @r"
        NODE        CHECK       OF      STATE     FOUND
        strasbourg  fsync       /d      warning   5 µs
        strasbourg  reach       warsaw  critical  refused
        warsaw      fsync       /d      warning   5 µs
        warsaw      open_files          ok        at most 65536
        CRITICAL strasbourg reach warsaw: open that port
        WARNING strasbourg fsync /d, warsaw fsync /d: turn its write cache off
        ");
        let fine = Examination { state: "ok".into(), nodes: vec![examined("warsaw", vec![finding("fsync", "/d", "ok", "900 µs", "")])] };
        assert_eq!(render(&OUT, &fine, true), ["1 check: all ok"]);
    }

    #[test]
    fn exit_codes_follow_the_contract() {
        assert_eq!(["ok", "unknown", "warning", "critical"].map(exit_code), [0, 0, 5, 5]);
    }
}
