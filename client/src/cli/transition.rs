//! A layout on its way into force, for people: whom it waits for, and what to do about each.
use super::units;
use crate::status::merge::{Awaited, Transition};
use afar_model::units::UnixMillis;
use std::time::Duration;

/// What is on its way, and for each node that is waited for what is known of it, and what to do.
pub(super) fn lines(transition: &Transition, now: UnixMillis) -> Vec<String> {
    let older: Vec<&str> = transition.older.iter().map(|layout| layout.name.as_str()).collect();
    let since = transition.since.map_or_else(String::new, |since| format!(" since {} ({})", units::time(since), age(since, now)));
    let beside = if older.is_empty() { String::new() } else { format!("; still open: {}", older.join(", ")) };
    let head = format!("Layout {} is taking over{since}{beside}", transition.to.name);
    if transition.waits_for.is_empty() {
        return vec![head];
    }
    let mut lines = vec![format!("{head}. It waits for:")];
    for awaited in &transition.waits_for {
        lines.push(format!("  {}: {}", awaited.node, words(awaited, now)));
        if awaited.action != "wait" {
            lines.push(format!("    do: {}", awaited.action));
        }
    }
    lines
}

/// `12m 5s ago`, in whole seconds.
fn age(at: UnixMillis, now: UnixMillis) -> String {
    format!("{} ago", humantime::format_duration(Duration::from_secs(now.since(at).as_secs())))
}

fn words(awaited: &Awaited, now: UnixMillis) -> String {
    let more = |text: &str| if awaited.detail.is_empty() { text.to_owned() } else { format!("{text}: {}", awaited.detail) };
    match awaited.why.as_str() {
        "silent" => {
            let heard = match awaited.last_heard {
                Some(at) => format!("last heard {} ({})", units::time(at), age(at, now)),
                None => "never heard".to_owned(),
            };
            more(&format!("does not answer{}, {heard}", whom("", awaited)))
        }
        "unfit" => more(&format!("cannot be worked with{}", whom(" by", awaited))),
        "behind" => "has an older layout, or another".to_owned(),
        "writing" => "has requests under way that began by an older layout".to_owned(),
        "catching_up" => "has lost something, and is catching up".to_owned(),
        "unplaced" => more("has no place for"),
        "fetching" => {
            let (fetched, left) = (awaited.fetched_bytes.unwrap_or(0), awaited.to_fetch_bytes.unwrap_or(0));
            format!("has fetched {} of {}", units::bytes(fetched), units::bytes(fetched.saturating_add(left)))
        }
        "comparing" => more("has still to compare itself"),
        _ => more("nobody knows for what"),
    }
}

/// To whom: ` strasbourg, warsaw`, after a word if need be.
fn whom(before: &str, awaited: &Awaited) -> String {
    if awaited.not_reached_from.is_empty() { String::new() } else { format!("{before} {}", awaited.not_reached_from.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::merge::OpenLayout;

    fn awaited(node: &str, why: &str, action: &str) -> Awaited {
        Awaited {
            node: node.into(),
            site: node.into(),
            why: why.into(),
            detail: String::new(),
            last_heard: None,
            fetched_bytes: None,
            to_fetch_bytes: None,
            not_reached_from: Vec::new(),
            action: action.into(),
        }
    }

    fn layout(name: &str, version: u64) -> OpenLayout {
        OpenLayout { name: name.into(), version }
    }

    #[test]
    fn a_layout_that_does_not_come_into_force_says_whom_it_waits_for_and_what_to_do() {
        let now = UnixMillis(1_800_000_000_000);
        let silent = Awaited {
            detail: "connection refused".into(),
            last_heard: Some(UnixMillis(now.0 - 125_000)),
            not_reached_from: vec!["roubaix".into(), "strasbourg".into()],
            ..awaited("warsaw", "silent", "bring it back")
        };
        let fetching = Awaited { fetched_bytes: Some(3 << 30), to_fetch_bytes: Some(7 << 30), ..awaited("madrid", "fetching", "wait") };
        let transition = Transition {
            to: layout("3-1f2e3d4c", 3),
            since: Some(UnixMillis(now.0 - 3_600_000)),
            older: vec![layout("1-aaaaaaaa", 1), layout("2-bbbbbbbb", 2)],
            waits_for: vec![silent, fetching],
        };
        insta::assert_snapshot!(lines(&transition, now).join("\n"), @r"
        Layout 3-1f2e3d4c is taking over since 2027-01-15T07:00:00Z (1h ago); still open: 1-aaaaaaaa, 2-bbbbbbbb. It waits for:
          warsaw: does not answer roubaix, strasbourg, last heard 2027-01-15T07:57:55Z (2m 5s ago): connection refused
            do: bring it back
          madrid: has fetched 3.0 GiB of 10.0 GiB
        ");
        let ending = Transition { waits_for: Vec::new(), since: None, ..transition };
        insta::assert_snapshot!(lines(&ending, now).join("\n"), @"Layout 3-1f2e3d4c is taking over; still open: 1-aaaaaaaa, 2-bbbbbbbb");
    }
}
