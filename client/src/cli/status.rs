//! `afar status`: the merged state for people, for scripts (`--json`), and for monitoring (`--check`).
use super::{Session, output::Out, policy, transition, units};
use crate::{
    answers::Bucket,
    client::Client,
    error::{Error, Kind},
    limits,
    status::{
        ClusterStatus,
        advice::Advice,
        gather,
        merge::{CheckResult, SiteStatus, merge, severity},
    },
};
use afar_model::{state::State, units::UnixMillis};
use clap::Args;
use serde_json::{Value, json};
use std::{
    cmp::Reverse,
    io::IsTerminal as _,
    time::{Duration, SystemTime},
};

/// The state of the cluster, asked of every node
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 safe, 5 degraded, unknown or at risk, 4 lost, 14 no node answers;
with --check: 0 safe, 1 degraded or a warning, 2 at risk, lost or something
critical, 3 unknown. Nothing is safe while a check is critical that concerns the
data: distances, clocks, disks, peers, policies, different layouts.")]
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
            show(out, &status, &arguments)?;
            return Ok(exit_code(status.state));
        }
        if !out.json && std::io::stdout().is_terminal() {
            out.line("\x1b[H\x1b[2J")?;
        }
        match status {
            Ok(status) => show(out, &status, &arguments)?,
            Err(error) => out.warn(&error),
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Asks all nodes and merges.
pub(crate) async fn ask(client: &Client) -> Result<ClusterStatus, Error> {
    let (answers, buckets) = tokio::join!(gather(client, true), buckets(client));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixMillis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    if let Some(status) = merge(&answers, now, buckets.as_deref()) {
        return Ok(status);
    }
    Err(nobody(answers.iter().filter_map(|answer| answer.outcome.as_ref().err())))
}

/// That no node answers, and what each said; or, if one did and refused the key, that: it is no outage, and nobody need look whether
/// nodes run. (Who may not know a key yet does not refuse it.)
pub(super) fn nobody<'a>(errors: impl Iterator<Item = &'a Error>) -> Error {
    let errors: Vec<&Error> = errors.collect();
    let refuses = |error: &Error| matches!(error.kind(), Kind::Authentication | Kind::Denied);
    if let Some(refused) = errors.iter().find(|error| refuses(error) && !error.is_connection()) {
        return (*refused).clone();
    }
    // That nobody is who he should be is no outage, either.
    let strangers = !errors.is_empty() && errors.iter().all(|error| refuses(error));
    let kind = if strangers { Kind::Authentication } else { Kind::Unreachable };
    let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Error::new(kind, format!("no node answers: {}", why.join("; ")))
        .hint("check that the nodes run and that the endpoints and the CA file are right")
}

/// What the key may see of how buckets are kept; `None` if nobody says.
async fn buckets(client: &Client) -> Option<Vec<Bucket>> {
    tokio::time::timeout(limits::STATUS_TIMEOUT, client.buckets()).await.ok()?.ok()
}

/// What `afar status` exits with.
pub(crate) const fn exit_code(state: State) -> u8 {
    match state {
        State::Safe => 0,
        State::Degraded | State::Unknown | State::AtRisk => 5,
        State::Lost => 4,
    }
}

/// What a monitoring plugin exits with: the worse of the state and the checks.
fn check_code(status: &ClusterStatus) -> u8 {
    let any = |state: &str| status.checks.iter().any(|check| check.state == state);
    match status.state {
        State::AtRisk | State::Lost => 2,
        _ if any("critical") => 2,
        State::Unknown => 3,
        State::Degraded => 1,
        State::Safe => u8::from(any("warning")),
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
    let o = &status.objects;
    format!(
        "AFAR {word} - {}: {} of {} objects safe{} | objects={} safe={} degraded={} unknown={} at_risk={} lost={} pending={} pending_bytes={}B",
        status.state,
        o.safe,
        o.total,
        findings_line(&status.checks).replace(['|', '\n'], " "),
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

/// How many further findings, and nodes of each, a line for monitoring names.
const ALSO_MAX: usize = 12;

/// All findings that are not `ok`, worst first: one in words, the others by name, so that none hides behind another.
fn findings_line(checks: &[CheckResult]) -> String {
    let mut wrong: Vec<&CheckResult> = checks.iter().filter(|check| check.state != "ok").collect();
    wrong.sort_by_key(|check| Reverse(severity(&check.state)));
    let Some((first, others)) = wrong.split_first() else { return String::new() };
    let mut line = format!("; {}: {}", first.title(), first.detail);
    let mut also: Vec<(&str, Vec<&str>)> = Vec::new();
    for check in others {
        match also.iter_mut().find(|(name, _)| *name == check.name) {
            Some((_, nodes)) => nodes.extend(check.node.as_deref()),
            None => also.push((&check.name, check.node.as_deref().into_iter().collect())),
        }
    }
    let of = |(name, nodes): &(&str, Vec<&str>)| if nodes.is_empty() { (*name).to_owned() } else { format!("{name} ({})", bounded(nodes)) };
    if !also.is_empty() {
        line.push_str(&format!("; also: {}", bounded(&also.iter().map(of).collect::<Vec<_>>())));
    }
    line
}

/// The first few, and how many more there are.
fn bounded<T: AsRef<str>>(items: &[T]) -> String {
    let mut shown: Vec<String> = items.iter().take(ALSO_MAX).map(|item| item.as_ref().to_owned()).collect();
    if items.len() > ALSO_MAX {
        shown.push(format!("{} more", items.len() - ALSO_MAX));
    }
    shown.join(", ")
}

fn show(out: &Out, status: &ClusterStatus, arguments: &Arguments) -> Result<(), Error> {
    if out.json {
        return out.value(&json(status, arguments));
    }
    out.lines(&render(out, status, arguments.problems))
}

fn json(status: &ClusterStatus, arguments: &Arguments) -> Value {
    // Serialising our own plain structure cannot fail.
    let mut value = serde_json::to_value(status).unwrap_or_default();
    value["as_of"] = json!(units::time(status.at));
    value["default_policy"] = status.default_policy.as_ref().map(policy::json).unwrap_or_default();
    if arguments.watch {
        value["message_type"] = json!("status");
    }
    if let Some(checks) = value["checks"].as_array_mut() {
        if arguments.problems {
            checks.retain(|check| check["state"] != "ok");
        }
        for check in checks.iter_mut().filter(|check| check["state"] != "ok") {
            let advice = check["name"].as_str().and_then(Advice::about);
            (check["means"], check["action"]) = (json!(advice.map(|advice| advice.means)), json!(advice.map(|advice| advice.action)));
        }
    }
    value
}

/// The screen.
fn render(out: &Out, status: &ClusterStatus, problems: bool) -> Vec<String> {
    let state = status.state.name();
    let mut lines = Vec::new();
    if problems && status.state != State::Safe {
        // What it exits with is said, whatever else is wrong.
        lines.push(format!("{}   {}", out.paint(state, &state.to_uppercase()), counts_line(status)));
    }
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
        if let Some(policy) = &status.default_policy {
            lines.push(format!("Default policy: {}", policy::words(policy)));
        }
        lines.extend(sites_table(&status.sites));
        lines.push(counts_line(status));
        lines.push(pending_line(status));
        lines.extend(rebalance_line(status));
        lines.extend(survivors_line(status));
    }
    lines.extend(status.transition.iter().flat_map(|transition| transition::lines(transition, status.at)));
    if !status.doubted_by.is_empty() {
        lines.push(format!("Not called safe, for this speaks against it: {}", status.doubted_by.join(", ")));
    }
    let wrong: Vec<&CheckResult> = status.checks.iter().filter(|check| check.state != "ok").collect();
    lines.extend(troubles(out, &wrong));
    match (wrong.is_empty(), problems, status.state) {
        (true, false, _) => lines.push(format!("{}: all ok", units::plural(status.checks.len(), "check", "checks"))),
        (true, true, State::Safe) => lines.push("no problems".into()),
        (true, true, _) | (false, ..) => {}
    }
    lines
}

/// Checks that are not `ok`: what was found and by whom; then, once for all that it holds for, what that means for the data and
/// what to do.
fn troubles(out: &Out, checks: &[&CheckResult]) -> Vec<String> {
    let mut groups: Vec<(Option<&'static Advice>, Vec<&CheckResult>)> = Vec::new();
    for check in checks {
        let advice = Advice::about(&check.name);
        match groups.iter_mut().find(|(known, _)| advice.is_some() && known.map(Advice::words) == advice.map(Advice::words)) {
            Some((_, group)) => group.push(check),
            None => groups.push((advice, vec![check])),
        }
    }
    let lines = |(advice, group): (Option<&Advice>, Vec<&CheckResult>)| {
        let means = advice.map(|advice| [format!("  {}: {}", advice.code, advice.means), format!("  do: {}", advice.action)]);
        findings(out, &group).into_iter().chain(means.into_iter().flatten()).collect::<Vec<_>>()
    };
    groups.into_iter().flat_map(lines).collect()
}

/// What was found, each finding once, with the nodes that found it.
fn findings(out: &Out, checks: &[&CheckResult]) -> Vec<String> {
    let same = |a: &CheckResult, b: &CheckResult| (&a.name, &a.state, &a.detail) == (&b.name, &b.state, &b.detail);
    let mut found: Vec<(&CheckResult, Vec<&str>)> = Vec::new();
    for check in checks {
        let node = check.node.as_deref();
        match found.iter_mut().find(|(first, _)| same(first, check)) {
            Some((_, nodes)) => nodes.extend(node),
            None => found.push((check, node.into_iter().collect())),
        }
    }
    let line = |(check, nodes): (&CheckResult, Vec<&str>)| {
        let who = if nodes.is_empty() { String::new() } else { format!("{} ", nodes.join(", ")) };
        format!("{} {who}{}: {}", out.paint(&check.state, &check.state.to_uppercase()), check.name, check.detail)
    };
    found.into_iter().map(line).collect()
}

/// What the loss of a site would mean, where that is no trouble; else it stands among the troubles. As long as not everything
/// is known to have its copies, there is worse to read.
fn survivors_line(status: &ClusterStatus) -> Option<String> {
    let check = status.checks.iter().find(|check| check.name == "survivors" && check.state == "ok")?;
    if status.state > State::Degraded {
        return None;
    }
    Some(format!("Loss of a site: {}", check.detail))
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
    let filling = |name: &str| match o.filling {
        1.. if name == "degraded" => format!(" ({} put just now, further copies are on their way)", units::grouped(o.filling)),
        _ => String::new(),
    };
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(name, count)| *count > 0 || *name == "safe")
        .map(|(name, count)| format!("{} {name}{}", units::grouped(count), filling(name)))
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

/// While a layout takes over, or copies wait to be let go of.
fn rebalance_line(status: &ClusterStatus) -> Option<String> {
    let moving = status.rebalance;
    if !moving.in_transition && moving.surplus_records == 0 {
        return None;
    }
    let mut line = match (moving.records, moving.in_transition) {
        (0, false) => "Rebalancing: done".to_owned(),
        (0, true) => "Rebalancing: nothing to fetch".to_owned(),
        (records, _) => {
            format!("Rebalancing: {} ({}) to fetch", units::plural(records as usize, "record", "records"), units::bytes(moving.bytes))
        }
    };
    if let Some(seconds) = moving.seconds_left.filter(|_| moving.records > 0) {
        let left = humantime::format_duration(Duration::from_secs(seconds));
        line.push_str(&format!(", at {}/s, about {left} left", units::bytes(moving.bytes_per_second)));
    }
    if moving.surplus_records > 0 {
        line.push_str(&format!("; {} to let go of", units::plural(moving.surplus_records as usize, "copy", "copies")));
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::output::ProgressStyle,
        status::merge::{Counts, NodeSummary, Rebalance, Replication},
    };
    use afar_model::policy::Policy;

    fn status(state: State) -> ClusterStatus {
        let node = |name: &str, answered: bool| NodeSummary {
            name: name.into(),
            state: if answered { "up" } else { "down" }.into(),
            version: answered.then(|| "0.1.0".into()),
            capacity_bytes: 1 << 40,
            used_bytes: answered.then_some(3 << 30),
            oldest_unverified_seconds: answered.then_some(90),
            endpoint: format!("https://{name}:7700"),
            rebalance_pace: None,
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
            rebalance: Rebalance::default(),
            transition: None,
            state,
            doubted_by: Vec::new(),
            layout_version: 1,
            default_policy: Some(Policy::default()),
            at: UnixMillis(1_800_000_000_000),
            objects: Counts { total: 1_204_331, safe: 1_204_331, ..Counts::default() },
            bytes: Counts { total: 8 << 40, safe: 8 << 40, ..Counts::default() },
            versions: Counts::default(),
            stored: crate::status::merge::Stored::default(),
            buckets: 2,
            replication: Replication::default(),
            sites: vec![site("strasbourg", "FR", true), site("warsaw", "PL", state == State::Safe)],
            checks: vec![found("clock_skew", None, "ok", "at most 3 ms")],
        }
    }

    fn found(name: &str, node: Option<&str>, state: &str, detail: &str) -> CheckResult {
        let code = Advice::about(name).map_or("", |advice| advice.code);
        CheckResult { name: name.into(), node: node.map(str::to_owned), state: state.into(), detail: detail.into(), code }
    }

    const ALL: Arguments = Arguments { watch: false, check: false, problems: false };

    const OUT: Out = Out { json: false, quiet: false, verbose: 0, color: false, progress: ProgressStyle::None };

    #[test]
    fn the_screen() {
        insta::assert_snapshot!(render(&OUT, &status(State::Safe), false).join("\n"), @r"
        SAFE   1 204 331 objects, 8.0 TiB, in 2 buckets   layout 1   as of 2027-01-15T08:00:00Z
        Default policy: 2 copies, 2 of them at least 700.0 km apart
        SITE             NODES     USED  CAPACITY  OLDEST VERIFIED  STATE
        strasbourg (FR)  1/1    3.0 GiB   1.0 TiB  1m 30s ago       up
        warsaw (PL)      1/1    3.0 GiB   1.0 TiB  1m 30s ago       up
        Objects: 1 204 331 safe
        Replication: nothing pending
        1 check: all ok
        ");
        let mut trouble = status(State::Unknown);
        trouble.replication = Replication { pending_records: 3, pending_bytes: 4096, oldest_pending_seconds: 75 };
        trouble.checks = vec![found("disk", Some("warsaw"), "critical", "full"), found("clock_skew", None, "ok", "")];
        trouble.doubted_by = vec!["warsaw disk".into()];
        insta::assert_snapshot!(render(&OUT, &trouble, false).join("\n"), @r"
        UNKNOWN   1 204 331 objects, 8.0 TiB, in 2 buckets   layout 1   as of 2027-01-15T08:00:00Z
        Default policy: 2 copies, 2 of them at least 700.0 km apart
        SITE             NODES     USED  CAPACITY  OLDEST VERIFIED  STATE
        strasbourg (FR)  1/1    3.0 GiB   1.0 TiB  1m 30s ago       up
        warsaw (PL)      0/1        0 B   1.0 TiB  -                down (warsaw down)
        Objects: 1 204 331 safe
        Replication: 3 records pending (4.0 KiB), the oldest for 1m 15s
        Not called safe, for this speaks against it: warsaw disk
        CRITICAL warsaw disk: full
          AFAR-DISK: copies there may be gone, and no new ones are made there
          do: replace the disk, or add one; look at dmesg first
        ");
    }

    #[test]
    fn the_same_words_are_said_once_with_the_nodes_that_they_hold_for() {
        let mut trouble = status(State::Safe);
        trouble.checks = vec![
            found("layout", Some("roubaix"), "warning", "version 2 is taking over"),
            found("peer", Some("roubaix"), "warning", "warsaw: connection refused"),
            found("layout", Some("strasbourg"), "warning", "version 2 is taking over"),
            found("peer", Some("strasbourg"), "warning", "warsaw: no answer in time"),
            found("later", Some("roubaix"), "warning", "this"),
            found("later_too", Some("roubaix"), "warning", "that"),
        ];
        insta::assert_snapshot!(render(&OUT, &trouble, true).join("\n"), @r"
        WARNING roubaix, strasbourg layout: version 2 is taking over
          AFAR-LAYOUT: data are moving to where a new layout wants them, a layout was refused, or a site was lost: nothing is removed meanwhile
          do: as is said there, and of each node that is waited for; end a conflict with `afar layout apply --merge`
        WARNING roubaix peer: warsaw: connection refused
        WARNING strasbourg peer: warsaw: no answer in time
          AFAR-PEER: the two cannot copy to each other
          do: see which of them is down, or what is between them
        WARNING roubaix later: this
        WARNING roubaix later_too: that
        ");
    }

    #[test]
    fn problems_alone_are_named_and_nothing_is_not_silence() {
        let mut trouble = status(State::Degraded);
        trouble.checks.push(found("disk", Some("warsaw"), "critical", "full"));
        let lines = render(&OUT, &trouble, true);
        assert_eq!(lines[0], "DEGRADED   Objects: 1 204 331 safe", "the state is said, whatever else is wrong");
        assert!(lines[1].starts_with("CRITICAL warsaw disk: full"), "{lines:?}");
        trouble.state = State::Safe;
        assert!(render(&OUT, &trouble, true)[0].starts_with("CRITICAL warsaw disk: full"), "and is not where it is safe");
        trouble.state = State::Degraded;
        let only = Arguments { problems: true, watch: true, ..ALL };
        let value = json(&trouble, &only);
        assert_eq!((value["checks"].as_array().map(Vec::len), &value["message_type"]), (Some(1), &json!("status")));
        assert_eq!(value["checks"][0]["code"], "AFAR-DISK");
        assert!(value["checks"][0]["action"].as_str().is_some_and(|action| action.contains("disk")), "{value}");
        let value = json(&trouble, &ALL);
        assert_eq!((value["checks"].as_array().map(Vec::len), &value["message_type"]), (Some(2), &Value::Null));
        assert_eq!(value["default_policy"]["min_distance_km"], 700.0);
        assert_eq!(render(&OUT, &status(State::Safe), true), ["no problems"]);
        assert_eq!(render(&OUT, &status(State::Degraded), true), ["DEGRADED   Objects: 1 204 331 safe"]);
    }

    #[test]
    fn a_refused_key_is_no_outage() {
        let denied = || Error::new(Kind::Denied, "access key A may not examine nodes");
        let dead = || Error::connection(Kind::Unreachable, "b cannot be reached");
        let told = |errors: &[Error]| {
            let error = nobody(errors.iter());
            (error.kind(), error.to_string(), error.what_to_do().unwrap_or_default().to_owned())
        };
        let (kind, message, hint) = told(&[denied(), denied()]);
        assert_eq!((kind, message.as_str()), (Kind::Denied, "access key A may not examine nodes"), "said once");
        assert!(hint.contains("right"), "{hint}");
        assert_eq!(told(&[dead(), denied()]).0, Kind::Denied, "who does not answer says nothing about the key");
        assert_eq!(told(&[Error::new(Kind::Authentication, "unknown"), dead()]).0, Kind::Authentication);
        let unsure = || Error::new(Kind::Unreachable, "catching up: may not know this access key yet");
        assert_eq!(told(&[unsure(), denied()]).0, Kind::Denied, "nor does who is not sure");
        for unclear in [vec![dead()], vec![unsure(), dead()], Vec::new()] {
            let (kind, message, _) = told(&unclear);
            assert!(kind == Kind::Unreachable && message.starts_with("no node answers"), "{message}");
        }
        // The node's certificate, not the key.
        let stranger = Error::connection(Kind::Authentication, "a is not who it should be");
        assert_eq!(told(std::slice::from_ref(&stranger)).0, Kind::Authentication);
        assert_eq!(told(&[stranger, dead()]).0, Kind::Unreachable);
    }

    #[test]
    fn a_line_for_monitoring_names_every_finding_and_the_worst_first() {
        let mut trouble = status(State::Safe);
        trouble.checks.extend([
            found("survivors", None, "warning", "without warsaw there is no room"),
            found("certificate", Some("madrid"), "warning", "ends in 5 days"),
            found("certificate", Some("warsaw"), "warning", "ends in 5 days"),
        ]);
        let line = check_line(&trouble);
        assert!(line.contains("; survivors: without warsaw there is no room; also: certificate (madrid, warsaw) |"), "{line}");
        assert!(line.starts_with("AFAR WARNING") && check_code(&trouble) == 1, "{line}");
        trouble.checks.push(found("disk", Some("warsaw"), "critical", "full"));
        let line = check_line(&trouble);
        assert!(line.contains("; warsaw disk: full; also: survivors, certificate (madrid, warsaw) |"), "{line}");
        assert!(line.starts_with("AFAR CRITICAL") && check_code(&trouble) == 2, "{line}");
        trouble.checks.extend((0..1000).map(|n| found("peer", Some(&format!("n{n}")), "warning", "silent")));
        trouble.checks.extend((0..1000).map(|n| found(&format!("later_{n}"), None, "warning", "")));
        let line = check_line(&trouble);
        assert!(line.contains("n11, 988 more)") && line.len() < 1000, "{line}");
    }

    #[test]
    fn exit_codes_follow_the_contract() {
        let codes = State::ALL.map(|state| (exit_code(state), check_code(&status(state))));
        assert_eq!(codes, [(0, 0), (5, 1), (5, 3), (5, 2), (4, 2)]);
        let mut warned = status(State::Safe);
        warned.checks.push(found("disk", None, "warning", "a | b"));
        assert_eq!(check_code(&warned), 1);
        assert_eq!(check_line(&warned).matches('|').count(), 1, "perfdata begins at the only bar");
        for state in [State::Safe, State::Degraded, State::Unknown] {
            let mut critical = status(state);
            critical.checks.push(found("certificate", None, "critical", "has expired"));
            assert_eq!(check_code(&critical), 2, "{state:?}");
        }
    }
}
