//! What is wrong with this machine, or between it and the others, that no log tells: measured when somebody asks.
//!
//! First the verdicts, which are pure; then what is measured for them. A verdict says what was found and what to do about
//! it. What could not be measured is unknown, and is said to be.
use super::checks;
use crate::{cluster::connect::ConnectError, limits, node::Node};
use afar_model::{
    geo::{self, Physics},
    layout::NodeIndex,
    limits::CLOCK_SKEW_MAX,
    policy::VerifyDistance,
    units::Metres,
};
use afar_proto::v1;
use afar_store::DirectoryState;
use futures_util::future::join_all;
use rustix::process::{Resource, getrlimit};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const OK: &str = "ok";
const WARNING: &str = "warning";
const CRITICAL: &str = "critical";
const UNKNOWN: &str = "unknown";

fn finding(name: &str, subject: impl Into<String>, state: &str, detail: impl Into<String>, advice: impl Into<String>) -> v1::Finding {
    v1::Finding {
        name: name.to_owned(),
        subject: subject.into(),
        state: state.to_owned(),
        detail: detail.into(),
        advice: advice.into(),
        measured: std::collections::HashMap::new(),
    }
}

fn measured(mut finding: v1::Finding, figures: &[(&str, f64)]) -> v1::Finding {
    finding.measured.extend(figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure)));
    finding
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// What a data directory showed.
#[derive(Debug, Clone)]
struct Synced {
    /// The median of the syncs; or why there is none.
    median: Result<Duration, String>,
    /// Memory that looks like a disk.
    in_memory: bool,
    /// What the kernel says of the device; `None`: nothing.
    rotational: Option<bool>,
}

fn judge_sync(directory: &str, synced: &Synced) -> v1::Finding {
    let say = |state, detail: String, advice: &str| finding("fsync", directory, state, detail, advice);
    let median = match &synced.median {
        Ok(median) => *median,
        Err(why) => return say(CRITICAL, format!("nothing can be synced there: {why}"), "look at dmesg, and at the directory's owner"),
    };
    let device = match synced.rotational {
        Some(true) => ", a rotating disk by the kernel's word",
        Some(false) => ", flash by the kernel's word",
        None => "",
    };
    let took = format!("a write and its sync take {:.0} µs (median of {}){device}", micros(median), limits::DOCTOR_SYNCS);
    let found = if synced.in_memory {
        say(WARNING, format!("{took}: this is memory, not a disk"), "put the data on a disk: memory is gone after a restart")
    } else if median < limits::FSYNC_HONEST {
        say(
            WARNING,
            format!("{took}: this disk acknowledges fsync faster than hardware can: write cache without power loss protection?"),
            "if it has no capacitors or battery, turn its write cache off (hdparm -W0); in a virtual machine, the host's cache mode",
        )
    } else if median > limits::FSYNC_SLOW {
        say(WARNING, format!("{took}: every put waits for that"), "see what else writes to this disk, or use a faster one")
    } else {
        say(OK, took, "")
    };
    measured(found, &[("fsync_median_micros", micros(median))])
}

fn judge_offset(peer: &str, offset_ms: Option<i64>) -> v1::Finding {
    let Some(offset) = offset_ms else {
        return finding("clock", peer, UNKNOWN, "not heard in this run", "mend the way to it first");
    };
    let away = Duration::from_millis(offset.unsigned_abs());
    let detail = format!("its clock is {offset:+} ms from this node's");
    let advice = "see that both machines run a time service (chrony, systemd-timesyncd) and that it reaches its servers";
    let found = if away > CLOCK_SKEW_MAX {
        finding("clock", peer, CRITICAL, format!("{detail}: whichever is wrong refuses writes"), advice)
    } else if away > limits::DOCTOR_CLOCK {
        finding("clock", peer, WARNING, detail, advice)
    } else {
        finding("clock", peer, OK, detail, "")
    };
    measured(found, &[("offset_millis", offset as f64)])
}

fn judge_time_service(synchronised: Option<bool>) -> v1::Finding {
    let advice = "see that a time service runs and is in step: timedatectl, or chronyc tracking";
    match synchronised {
        Some(true) => finding("time_service", "", OK, "systemd-timesyncd is in step", ""),
        Some(false) => finding("time_service", "", WARNING, "systemd-timesyncd is not in step", advice),
        None => finding("time_service", "", UNKNOWN, "no systemd-timesyncd here, and no other service can be asked", advice),
    }
}

fn judge_distance(peer: &str, claimed: Metres, round_trip: Option<Duration>, verify: VerifyDistance) -> v1::Finding {
    let Some(round_trip) = round_trip else {
        return finding("distance", peer, UNKNOWN, "no round trip was measured yet", "mend the way to it first");
    };
    let took = format!("{} round trip at least, {claimed} claimed", millis(round_trip));
    let possible = geo::farthest(round_trip);
    let wrong = "correct the coordinates of the two sites, or find out where that machine really is";
    let (state, detail, advice) = match (geo::judge(claimed, round_trip), verify) {
        (Physics::Possible, _) => (OK, format!("{took}: possible"), ""),
        (_, VerifyDistance::Off) => (OK, format!("{took}: light is slower, but verify_distance is off"), ""),
        (Physics::Suspicious, _) => (WARNING, format!("{took}: faster than light in fibre"), wrong),
        (Physics::Refuted, VerifyDistance::Warn) => (WARNING, format!("{took}: light is slower, it is at most {possible} away"), wrong),
        (Physics::Refuted, VerifyDistance::Enforce) => {
            (CRITICAL, format!("{took}: light is slower, it is at most {possible} away and not counted as far"), wrong)
        }
    };
    let figures = [("round_trip_micros", micros(round_trip)), ("claimed_metres", claimed.0 as f64)];
    measured(finding("distance", peer, state, detail, advice), &figures)
}

fn judge_reach(peer: &str, endpoint: &str, probed: Result<Duration, ConnectError>, trouble: &str) -> v1::Finding {
    let firewall = "open that port (TCP) between the two, see that afard runs there, and that the layout names the right host";
    match probed {
        Ok(took) if trouble.is_empty() => {
            let found = finding("reach", peer, OK, format!("{endpoint} answers: TCP and TLS in {}", millis(took)), "");
            measured(found, &[("connect_micros", micros(took))])
        }
        Ok(_) => finding("reach", peer, WARNING, format!("{endpoint} answers, but: {trouble}"), "see what that node's own log says"),
        Err(error @ (ConnectError::Refused { .. } | ConnectError::Network { .. })) => {
            finding("reach", peer, CRITICAL, error.to_string(), firewall)
        }
        Err(error) => finding("reach", peer, CRITICAL, error.to_string(), "see deploy/runbook.md, \"Certificates\""),
    }
}

fn judge_files(most: Option<u64>, wanted: u64) -> v1::Finding {
    match most {
        Some(most) if most < wanted => {
            let advice = format!("set LimitNOFILE=65536 in the unit, or ulimit -n {wanted} before it starts");
            let found = finding("open_files", "", WARNING, format!("at most {most}, and up to {wanted} may be needed"), advice);
            measured(found, &[("limit", most as f64)])
        }
        Some(most) => measured(finding("open_files", "", OK, format!("at most {most}"), ""), &[("limit", most as f64)]),
        None => finding("open_files", "", OK, "no limit", ""),
    }
}

/// Whether a buffer lets one connection fill the line over that distance: twice the bandwidth-delay product, for the kernel
/// counts its own overhead in.
fn judge_buffer(setting: &str, most: Option<u64>, round_trip: Option<Duration>) -> v1::Finding {
    let (Some(most), Some(round_trip)) = (most, round_trip) else {
        let why = if most.is_none() { "it cannot be read here" } else { "no round trip was measured yet" };
        return finding("tcp_buffers", setting, UNKNOWN, why, format!("compare by hand: sysctl net.ipv4.{setting}"));
    };
    let wanted = (2.0 * limits::DOCTOR_LINE as f64 * round_trip.as_secs_f64()).ceil() as u64;
    let figures = [("max_bytes", most as f64), ("wanted_bytes", wanted as f64)];
    let line = limits::DOCTOR_LINE * 8 / 1_000_000_000;
    let detail = format!("at most {most} bytes; {line} Gbit/s over {} want {wanted}", millis(round_trip));
    let found = if most < wanted {
        let core = if setting == "tcp_rmem" { "rmem_max" } else { "wmem_max" };
        let advice = format!("raise the last figure of net.ipv4.{setting}, and net.core.{core}, to {wanted} (see deploy/three-sites.md)");
        finding("tcp_buffers", setting, WARNING, detail, advice)
    } else {
        finding("tcp_buffers", setting, OK, detail, "")
    };
    measured(found, &figures)
}

fn from_check(check: v1::Check, subject: &str) -> v1::Finding {
    // A check says in its detail what to do.
    let advice = if check.state == OK { "" } else { "see deploy/runbook.md" };
    finding(&check.name, subject, &check.state, check.detail, advice)
}

/// Examines this node: seconds, mostly of waiting for disks and peers.
pub async fn examine(node: &Arc<Node>) -> Vec<v1::Finding> {
    let (disks, reached) = tokio::join!(join_all(directories(node).into_iter().map(|directory| sync_of(node, directory))), reach(node));
    let mut findings = disks;
    findings.extend([from_check(checks::disks(node), ""), from_check(checks::space(node), "")]);
    findings.extend(checks::share(node).map(|check| from_check(check, "")));
    findings.extend([from_check(checks::certificate(node), ""), from_check(checks::authority(node), "")]);
    findings.push(judge_time_service(node.clock.kernel_synchronised()));
    findings.extend(node.peers.others().flat_map(|peer| clock_and_distance(node, peer)));
    findings.extend(reached);
    findings.push(judge_files(getrlimit(Resource::Nofile).current, files_wanted(node)));
    let farthest = node.peers.others().filter_map(|peer| node.peers.view(peer)?.least_round_trip).max();
    findings.extend(["tcp_rmem", "tcp_wmem"].map(|setting| judge_buffer(setting, buffer_max(setting), farthest)));
    findings
}

/// Data directories, and why one is not to be touched.
fn directories(node: &Node) -> Vec<(PathBuf, Result<(), String>)> {
    let state = |state: DirectoryState| match state {
        DirectoryState::Created | DirectoryState::Healthy => Ok(()),
        DirectoryState::ReadOnly(why) => Err(format!("it takes no writes: {why}")),
        DirectoryState::Failed(why) => Err(format!("it has failed: {why}")),
    };
    node.store.usage().directories.into_iter().map(|directory| (directory.path, state(directory.state))).collect()
}

async fn sync_of(node: &Node, (path, usable): (PathBuf, Result<(), String>)) -> v1::Finding {
    let name = path.display().to_string();
    let (in_memory, rotational) = (is_memory(&path), rotational(&path));
    let median = match usable {
        Err(why) => Err(why),
        Ok(()) => {
            let work = node.lifecycle.blocking("measure syncs", move || sync_median(&path));
            match tokio::time::timeout(limits::DOCTOR_DISK, work).await {
                Ok(Some(measured)) => measured.map_err(|error| error.to_string()),
                Ok(None) => Err("the node is ending, or has a bug".into()),
                Err(_) => Err(format!("{} syncs take longer than {} s", limits::DOCTOR_SYNCS, limits::DOCTOR_DISK.as_secs())),
            }
        }
    };
    judge_sync(&name, &Synced { median, in_memory, rotational })
}

/// A file that goes when this goes. (It keeps its name meanwhile: some file systems do not sync what has none.)
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        // If it stays, the next examination writes over it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Appends and syncs, as the log does; the median time of one.
fn sync_median(directory: &Path) -> io::Result<Duration> {
    let trial = Trial(directory.join("doctor.tmp"));
    let file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&trial.0)?;
    let block = [0x5a; limits::DOCTOR_BLOCK];
    let mut times = Vec::with_capacity(limits::DOCTOR_SYNCS);
    for number in 0..limits::DOCTOR_SYNCS {
        let start = Instant::now();
        file.write_all_at(&block, (number * limits::DOCTOR_BLOCK) as u64)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

/// tmpfs and ramfs, by the numbers in the kernel's `magic.h`.
fn is_memory(path: &Path) -> bool {
    const KINDS: [u32; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::statfs(path).is_ok_and(|found| KINDS.contains(&(found.f_type as u32)))
}

/// What the kernel says of the block device under a path: of a partition, what it says of the whole.
fn rotational(path: &Path) -> Option<bool> {
    let device = fs::metadata(path).ok()?.dev();
    let link = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let says = |file: &str| fs::read_to_string(format!("{link}/{file}")).ok();
    match says("queue/rotational").or_else(|| says("../queue/rotational"))?.trim() {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

async fn reach(node: &Arc<Node>) -> Vec<v1::Finding> {
    let probes = node.peers.others().map(|peer| async move {
        let probed = node.peers.probe(peer).await?;
        let view = node.peers.view(peer)?;
        Some(judge_reach(&view.node, &node.endpoint(peer), probed, &view.trouble))
    });
    join_all(probes).await.into_iter().flatten().collect()
}

fn clock_and_distance(node: &Node, peer: NodeIndex) -> Vec<v1::Finding> {
    let Some(view) = node.peers.view(peer) else { return Vec::new() };
    let mut found = vec![judge_offset(&view.node, view.last_heard.map(|_| view.clock_offset_ms))];
    let sites = node.layout().site_of(node.me).zip(node.layout().site_of(peer));
    if let Some((here, there)) = sites.filter(|(here, there)| here != there) {
        let claimed = node.layout().distance(here, there);
        found.push(judge_distance(&view.node, claimed, view.least_round_trip, node.config.policy.verify_distance));
    }
    found
}

fn files_wanted(node: &Node) -> u64 {
    let peers = node.peers.others().count() * 2 * limits::CONNECTIONS_PER_PEER;
    (node.config.limits.connections + peers) as u64 + limits::DOCTOR_FILES
}

/// The last of a setting's three figures.
fn buffer_max(setting: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc/sys/net/ipv4").join(setting)).ok()?;
    text.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn synced(micros: u64, in_memory: bool) -> v1::Finding {
        judge_sync("/d", &Synced { median: Ok(Duration::from_micros(micros)), in_memory, rotational: None })
    }

    #[test]
    fn a_disk_that_is_faster_than_hardware_is_suspected() {
        assert_eq!((synced(19, false).state, synced(20, false).state, synced(3000, false).state), (WARNING.into(), OK.into(), OK.into()));
        assert!(synced(5, false).detail.contains("write cache without power loss protection?"));
        assert_eq!((synced(3000, true).state, synced(100_001, false).state), (WARNING.into(), WARNING.into()));
        assert!(synced(3000, true).detail.contains("not a disk"));
        let broken = judge_sync("/d", &Synced { median: Err("input/output error".into()), in_memory: false, rotational: Some(true) });
        assert_eq!(broken.state, CRITICAL);
    }

    #[test]
    fn clocks_are_judged_by_their_distance_and_silence_is_no_agreement() {
        let state = |offset| judge_offset("warsaw", offset).state;
        assert_eq!((state(Some(-1000)), state(Some(1001)), state(Some(-300_001))), (OK.into(), WARNING.into(), CRITICAL.into()));
        assert_eq!(state(None), UNKNOWN);
        assert_eq!([Some(true), Some(false), None].map(|s| judge_time_service(s).state), [OK, WARNING, UNKNOWN]);
    }

    #[test]
    fn a_distance_that_light_refutes_is_as_bad_as_the_policy_says() {
        let claimed = Metres(700_000);
        let state = |millis: f64, verify| judge_distance("w", claimed, Some(Duration::from_secs_f64(millis / 1000.0)), verify).state;
        let judged = [4.0, 5.0, 8.0].map(|millis| state(millis, VerifyDistance::Enforce));
        assert_eq!(judged, [CRITICAL, WARNING, OK]);
        assert_eq!((state(4.0, VerifyDistance::Warn), state(4.0, VerifyDistance::Off)), (WARNING.into(), OK.into()));
        assert_eq!(judge_distance("w", claimed, None, VerifyDistance::Enforce).state, UNKNOWN);
    }

    #[test]
    fn a_peer_that_is_not_reached_is_critical_and_one_that_refuses_a_warning() {
        let address = String::from("w:7700");
        let judged = |probed, trouble: &str| judge_reach("w", "https://w:7700", probed, trouble);
        assert_eq!(judged(Ok(Duration::from_millis(3)), "").state, OK);
        assert_eq!(judged(Ok(Duration::from_millis(3)), "its layout is another").state, WARNING);
        let refused = judged(Err(ConnectError::Refused { address: address.clone() }), "");
        assert!(refused.state == CRITICAL && refused.advice.contains("open that port"), "{refused:?}");
        assert_eq!(judged(Err(ConnectError::Tls { address, why: "bad".into() }), "").state, CRITICAL);
    }

    #[test]
    fn limits_and_buffers_are_compared_with_what_the_distance_wants() {
        assert_eq!((judge_files(Some(1023), 1024).state, judge_files(Some(1024), 1024).state), (WARNING.into(), OK.into()));
        let buffer = |most, millis| judge_buffer("tcp_rmem", most, Some(Duration::from_millis(millis)));
        // Twice 1 Gbit/s times 30 ms.
        assert_eq!((buffer(Some(7_499_999), 30).state, buffer(Some(7_500_000), 30).state), (WARNING.into(), OK.into()));
        assert_eq!((buffer(None, 30).state, judge_buffer("tcp_rmem", Some(1), None).state), (UNKNOWN.into(), UNKNOWN.into()));
    }

    #[test]
    fn everything_that_is_not_fine_says_what_to_do() {
        let found = [
            synced(5, false),
            synced(5, true),
            judge_offset("w", Some(5000)),
            judge_offset("w", None),
            judge_time_service(None),
            judge_distance("w", Metres(700_000), Some(Duration::ZERO), VerifyDistance::Warn),
            judge_reach("w", "e", Ok(Duration::ZERO), "trouble"),
            judge_files(Some(1), 2),
            judge_buffer("tcp_wmem", None, None),
            judge_buffer("tcp_wmem", Some(1), Some(Duration::from_secs(1))),
        ];
        for finding in found {
            assert!(finding.state != OK && !finding.advice.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn a_directory_is_measured_and_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        assert!(sync_median(directory.path()).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(sync_median(&directory.path().join("nowhere")).is_err());
        assert!(!is_memory(Path::new("/proc")));
    }
}
