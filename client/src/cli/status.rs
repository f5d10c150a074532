//! `afar status`: the merged state for people, for scripts (`--json`), and for monitoring (`--check`).
use super::{Session, output::Out, units};
use crate::{
    client::Client,
    error::{Error, Kind},
    limits,
    status::{
        ClusterStatus, gather,
        merge::{CheckResult, DistanceCheck, SiteStatus, merge},
    },
};
use afar_model::{policy::VerifyDistance, state::State, units::UnixMillis};
use clap::Args;
use serde_json::{Value, json};
use std::{
    io::IsTerminal as _,
    time::{Duration, SystemTime},
};

/// The state of the cluster, asked of every node
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 safe, 5 degraded, unknown or at risk, 4 lost, 14 no node answers; with --check 0 to 3")]
pub struct Arguments {
    /// Ask again and again
    #[arg(short, long, conflicts_with = "check")]
    watch: bool,
    /// One line for monitoring: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
    #[arg(long)]
    check: bool,
    /// Only what is wrong
    #[arg(short = 'x', long)]
    problems: bool,
}

const WATCH_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<u8, Error> {
    let out = &session.out;
    if arguments.check {
        return Ok(check(session).await);
    }
    let client = session.client()?;
    loop {
        let status = ask(&client).await;
        if !arguments.watch {
            let status = status?;
            show(out, &status, arguments.problems)?;
            return Ok(exit_code(status.state));
        }
        if !out.json && std::io::stdout().is_terminal() {
            out.line("\x1b[H\x1b[2J")?;
        }
        match status {
            Ok(status) => show(out, &status, arguments.problems)?,
            Err(error) => out.warn(&error),
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Asks all nodes and merges.
pub(crate) async fn ask(client: &Client) -> Result<ClusterStatus, Error> {
    let (answers, distance) = tokio::join!(gather(client, true), distance_check(client));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixMillis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    if let Some(status) = merge(&answers, now, distance) {
        return Ok(status);
    }
    Err(nobody(answers.iter().filter_map(|answer| answer.outcome.as_ref().err())))
}

/// That no node answers, and what each said.
pub(super) fn nobody<'a>(errors: impl Iterator<Item = &'a Error>) -> Error {
    let errors: Vec<&Error> = errors.collect();
    // A wrong key is no outage: if all who spoke refused it, that is what must be mended.
    let all = |kind: &Kind| !errors.is_empty() && errors.iter().all(|error| error.kind() == *kind);
    let refused = [Kind::Authentication, Kind::Denied].into_iter().find(all);
    let kind = refused.unwrap_or(Kind::Unreachable);
    let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Error::new(kind, format!("no node answers: {}", why.join("; ")))
        .hint("check that the nodes run and that the endpoints and the key are right")
}

/// Whether any bucket cares about distances; a key that may not list buckets cares.
async fn distance_check(client: &Client) -> DistanceCheck {
    let buckets = tokio::time::timeout(limits::STATUS_TIMEOUT, client.buckets()).await;
    let off = matches!(&buckets, Ok(Ok(buckets)) if !buckets.is_empty() && buckets.iter().all(|bucket| bucket.policy.verify_distance == VerifyDistance::Off));
    if off { DistanceCheck::Off } else { DistanceCheck::On }
}

/// What `afar status` exits with.
pub(crate) const fn exit_code(state: State) -> u8 {
    match state {
        State::Safe => 0,
        State::Degraded | State::Unknown | State::AtRisk => 5,
        State::Lost => 4,
    }
}

/// What a monitoring plugin exits with: the state decides; something that a node warns of makes a safe state a warning.
fn check_code(status: &ClusterStatus) -> u8 {
    match status.state {
        State::AtRisk | State::Lost => 2,
        State::Unknown => 3,
        State::Degraded => 1,
        State::Safe => u8::from(status.checks.iter().any(|check| matches!(check.state.as_str(), "warning" | "critical"))),
    }
}

async fn check(session: &Session) -> u8 {
    let outcome = match session.client() {
        Ok(client) => ask(&client).await,
        Err(error) => Err(error),
    };
    let (code, line) = match outcome {
        Ok(status) => (check_code(&status), check_line(&status)),
        Err(error) => (3, format!("AFAR UNKNOWN - {error}")),
    };
    let value = || json!({"code": code, "message": line});
    // A plugin whose output cannot be read has still said what it had to say, by its exit code.
    let _ = session.out.either(value, || line.clone());
    code
}

fn check_line(status: &ClusterStatus) -> String {
    let word = match check_code(status) {
        0 => "OK",
        1 => "WARNING",
        2 => "CRITICAL",
        _ => "UNKNOWN",
    };
    let problem = status.checks.iter().find(|check| check.state != "ok").map(|check| format!("; {}: {}", check_name(check), check.detail));
    let o = &status.objects;
    format!(
        "AFAR {word} - {}: {} of {} objects safe{} | objects={} safe={} degraded={} unknown={} at_risk={} lost={} pending={} pending_bytes={}B",
        status.state,
        o.safe,
        o.total,
        problem.unwrap_or_default().replace(['|', '\n'], " "),
        o.total,
        o.safe,
        o.degraded,
        o.unknown,
        o.at_risk,
        o.lost,
        status.replication.pending_records,
        status.replication.pending_bytes,
    )
}

fn check_name(check: &CheckResult) -> String {
    check.node.as_ref().map_or_else(|| check.name.clone(), |node| format!("{node} {}", check.name))
}

fn show(out: &Out, status: &ClusterStatus, problems: bool) -> Result<(), Error> {
    if out.json {
        return out.value(&json(status));
    }
    out.lines(&render(out, status, problems))
}

fn json(status: &ClusterStatus) -> Value {
    // Serialising our own plain structure cannot fail.
    let mut value = serde_json::to_value(status).unwrap_or_default();
    value["as_of"] = json!(units::time(status.at));
    value
}

/// The screen.
fn render(out: &Out, status: &ClusterStatus, problems: bool) -> Vec<String> {
    let state = status.state.name();
    let mut lines = Vec::new();
    if !problems {
        let objects = units::plural(status.objects.total as usize, "object", "objects");
        lines.push(format!(
            "{}   {objects}, {}, in {}   layout {}   as of {}",
            out.paint(state, &state.to_uppercase()),
            units::bytes(status.bytes.total),
            units::plural(status.buckets as usize, "bucket", "buckets"),
            status.layout_version,
            units::time(status.at),
        ));
        lines.extend(sites_table(&status.sites));
        lines.push(counts_line(status));
        lines.push(pending_line(status));
    }
    let wrong: Vec<&CheckResult> = status.checks.iter().filter(|check| check.state != "ok").collect();
    for check in &wrong {
        lines.push(format!("{} {}: {}", out.paint(&check.state, &check.state.to_uppercase()), check_name(check), check.detail));
    }
    if wrong.is_empty() && !problems {
        lines.push(format!("{}: all ok", units::plural(status.checks.len(), "check", "checks")));
    }
    lines
}

fn sites_table(sites: &[SiteStatus]) -> Vec<String> {
    let row = |site: &SiteStatus| {
        let alive = site.nodes.iter().filter(|node| node.answered).count();
        let used: u64 = site.nodes.iter().filter_map(|node| node.used_bytes).sum();
        let capacity: u64 = site.nodes.iter().map(|node| node.capacity_bytes).sum();
        let oldest = site.nodes.iter().filter_map(|node| node.oldest_unverified_seconds).max();
        let verified =
            oldest.map_or_else(|| "-".to_owned(), |seconds| format!("{} ago", humantime::format_duration(Duration::from_secs(seconds))));
        let trouble: Vec<String> =
            site.nodes.iter().filter(|node| node.state != "up").map(|node| format!("{} {}", node.name, node.state)).collect();
        let state = if trouble.is_empty() { site.state.clone() } else { format!("{} ({})", site.state, trouble.join(", ")) };
        vec![
            format!("{} ({})", site.name, site.country),
            format!("{alive}/{}", site.nodes.len()),
            units::bytes(used),
            units::bytes(capacity),
            verified,
            state,
        ]
    };
    units::table(&["SITE", "NODES", "USED", "CAPACITY", "OLDEST VERIFIED", "STATE"], &sites.iter().map(row).collect::<Vec<_>>(), &[2, 3])
}

fn counts_line(status: &ClusterStatus) -> String {
    let o = &status.objects;
    let parts = [("safe", o.safe), ("degraded", o.degraded), ("unknown", o.unknown), ("at risk", o.at_risk), ("lost", o.lost)];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(name, count)| *count > 0 || *name == "safe")
        .map(|(name, count)| format!("{} {name}", units::grouped(count)))
        .collect();
    format!("Objects: {}", parts.join(", "))
}

fn pending_line(status: &ClusterStatus) -> String {
    let pending = status.replication;
    if pending.pending_records == 0 {
        return "Replication: nothing pending".into();
    }
    format!(
        "Replication: {} pending ({}), the oldest for {}",
        units::plural(pending.pending_records as usize, "record", "records"),
        units::bytes(pending.pending_bytes),
        humantime::format_duration(Duration::from_secs(pending.oldest_pending_seconds)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::output::ProgressStyle,
        status::merge::{Counts, NodeSummary, Replication},
    };

    fn status(state: State) -> ClusterStatus {
        let node = |name: &str, answered: bool| NodeSummary {
            name: name.into(),
            state: if answered { "up" } else { "down" }.into(),
            version: answered.then(|| "0.1.0".into()),
            capacity_bytes: 1 << 40,
            used_bytes: answered.then_some(3 << 30),
            oldest_unverified_seconds: answered.then_some(90),
            endpoint: format!("https://{name}:7700"),
            answered,
        };
        let site = |name: &str, country: &str, answered| SiteStatus {
            name: name.into(),
            latitude: 0.0,
            longitude: 0.0,
            country: country.into(),
            provider: String::new(),
            state: if answered { "up" } else { "down" }.into(),
            nodes: vec![node(name, answered)],
        };
        ClusterStatus {
            state,
            layout_version: 1,
            at: UnixMillis(1_800_000_000_000),
            objects: Counts { total: 1_204_331, safe: 1_204_331, ..Counts::default() },
            bytes: Counts { total: 8 << 40, safe: 8 << 40, ..Counts::default() },
            versions: Counts::default(),
            buckets: 2,
            replication: Replication::default(),
            sites: vec![site("strasbourg", "FR", true), site("warsaw", "PL", state == State::Safe)],
            checks: vec![CheckResult { name: "clock_skew".into(), node: None, state: "ok".into(), detail: "at most 3 ms".into() }],
        }
    }

    const OUT: Out = Out { json: false, quiet: false, verbose: 0, color: false, progress: ProgressStyle::None };

    #[test]
    fn the_screen() {
        insta::assert_snapshot!(render(&OUT, &status(State::Safe), false).join("\n"), @r"
        SAFE   1 204 331 objects, 8.0 TiB, in 2 buckets   layout 1   as of 2027-01-15T08:00:00Z
        SITE             NODES     USED  CAPACITY  OLDEST VERIFIED  STATE
        strasbourg (FR)  1/1    3.0 GiB   1.0 TiB  1m 30s ago       up
        warsaw (PL)      1/1    3.0 GiB   1.0 TiB  1m 30s ago       up
        Objects: 1 204 331 safe
        Replication: nothing pending
        1 check: all ok
        ");
        let mut trouble = status(State::Unknown);
        trouble.replication = Replication { pending_records: 3, pending_bytes: 4096, oldest_pending_seconds: 75 };
        trouble.checks =
            vec![CheckResult { name: "disk".into(), node: Some("warsaw".into()), state: "critical".into(), detail: "full".into() }];
        insta::assert_snapshot!(render(&OUT, &trouble, false).join("\n"), @r"
        UNKNOWN   1 204 331 objects, 8.0 TiB, in 2 buckets   layout 1   as of 2027-01-15T08:00:00Z
        SITE             NODES     USED  CAPACITY  OLDEST VERIFIED  STATE
        strasbourg (FR)  1/1    3.0 GiB   1.0 TiB  1m 30s ago       up
        warsaw (PL)      0/1        0 B   1.0 TiB  -                down (warsaw down)
        Objects: 1 204 331 safe
        Replication: 3 records pending (4.0 KiB), the oldest for 1m 15s
        CRITICAL warsaw disk: full
        ");
        assert_eq!(render(&OUT, &trouble, true), ["CRITICAL warsaw disk: full"]);
    }

    #[test]
    fn exit_codes_follow_the_contract() {
        let codes = State::ALL.map(|state| (exit_code(state), check_code(&status(state))));
        assert_eq!(codes, [(0, 0), (5, 1), (5, 3), (5, 2), (4, 2)]);
        let mut warned = status(State::Safe);
        warned.checks.push(CheckResult { name: "disk".into(), node: None, state: "warning".into(), detail: "a | b".into() });
        assert_eq!(check_code(&warned), 1);
        assert_eq!(check_line(&warned).matches('|').count(), 1, "perfdata begins at the only bar");
    }
}
