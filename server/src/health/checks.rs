//! What an operator must know of this node beside the state of the data: each with a stable name, a state, and what to do.
use crate::{
    cluster::{
        memory::Doubt,
        peers::{Absence, Absent},
        trust::Trust,
    },
    gateways::public_tls::Standing,
    inspect::rfc3339,
    limits,
    node::Node,
    replication::outbox,
};
use afar_model::{
    document::ShortHash,
    layout::Duty,
    units::{UnixMillis, bytes},
};
use afar_proto::v1;
use afar_store::{DirectoryState, DirectoryUsage};

fn check(name: &str, state: &str, detail: impl Into<String>) -> v1::Check {
    v1::Check { name: name.to_owned(), state: state.to_owned(), detail: detail.into() }
}

/// Everything that this node checks of itself.
pub fn checks(node: &Node) -> Vec<v1::Check> {
    let mut checks = vec![layout(node), clock(node), views(node), disks(node), space(node), losses(node), policies(node), panics(node)];
    checks.extend(share(node));
    checks.extend([certificate(node), authority(node)]);
    checks.extend(node.public_tls.standing().map(|standing| public_certificate(&standing, node.now())));
    checks.extend(trust(node));
    checks.extend(peers_certificates(node));
    checks.extend(peers(node));
    checks.extend(queued(node));
    checks
}

fn layout(node: &Node) -> v1::Check {
    let (open, current) = (node.layouts.open(), node.layouts.current());
    if let Some(trouble) = node.layouts.trouble() {
        return check("layout", "critical", trouble);
    }
    if !current.duty(node.me).is_member() {
        let what = "the layout has taken this node out of service, and nobody waits for it: stop it";
        return check("layout", "warning", format!("version {}: {what}", current.version()));
    }
    let latched = node.layouts.latched();
    let mut troubles = Vec::new();
    if !latched.is_empty() {
        let names: Vec<String> = latched.iter().map(|hash| ShortHash(hash).to_string()).collect();
        let what = "a site was lost: nothing is removed for good anywhere until an operator releases it";
        troubles.push(format!("{what} (`afar layout release {}`)", names.join(" ")));
    }
    if let older @ 1.. = open.chapters().len().saturating_sub(1) {
        let waits = node.transition(&current).words();
        let waits = if waits.is_empty() { String::new() } else { format!("; waits for {waits}") };
        troubles.push(format!("version {} is taking over: {older} older still open{waits}", current.version()));
    }
    if troubles.is_empty() {
        check("layout", "ok", format!("version {}", current.version()))
    } else {
        check("layout", "warning", troubles.join("; "))
    }
}

fn clock(node: &Node) -> v1::Check {
    match (node.clock_trouble(), node.clock.alarms()) {
        (Some(trouble), _) => check("clock", "critical", format!("{trouble}: writes are refused here; set the clock")),
        (None, 0) => check("clock", "ok", "in step with the peers"),
        (None, alarms) => check("clock", "warning", format!("{alarms} stamps from the future were seen: check the clocks")),
    }
}

fn views(node: &Node) -> v1::Check {
    let usage = node.store.usage();
    if usage.views_ready {
        check("index", "ok", "complete")
    } else {
        check("index", "warning", format!("being rebuilt, {:.0} % done: listings wait", usage.rebuild_progress * 100.0))
    }
}

pub(crate) fn disks(node: &Node) -> v1::Check {
    let directories = node.store.usage().directories;
    let failing: Vec<String> = directories.iter().filter_map(failing).collect();
    let troubled = directories.iter().filter_map(|directory| match &directory.state {
        DirectoryState::Created | DirectoryState::Healthy => None,
        DirectoryState::ReadOnly(why) => Some(format!("{} is read-only: {why}", directory.path.display())),
        DirectoryState::Failed(why) => Some(format!("{} has failed: {why}", directory.path.display())),
    });
    let troubled: Vec<String> = troubled.collect();
    match (troubled.is_empty(), failing.is_empty()) {
        (false, _) => check("disk", "critical", [troubled, failing].concat().join("; ")),
        (true, false) => check("disk", "warning", failing.join("; ")),
        (true, true) => check("disk", "ok", "every data directory is fine"),
    }
}

/// Room for new records. A disk that is full is as good as before for what is on it.
pub(crate) fn space(node: &Node) -> v1::Check {
    let usage = node.store.usage();
    let left = usage.free_for_clients;
    if usage.capacity == 0 {
        check("space", "unknown", "no data directory tells how large it is")
    } else if left == 0 {
        check("space", "critical", format!("full: what is left ({}) is kept for removals", bytes(usage.free)))
    } else if left < usage.capacity / 20 {
        check("space", "warning", format!("nearly full: {} left for clients", bytes(left)))
    } else {
        check("space", "ok", format!("{} left for clients", bytes(left)))
    }
}

/// Whether this node's disks have room for the share that the layout gives it; nothing, if they have.
pub(crate) fn share(node: &Node) -> Option<v1::Check> {
    let share = node.layout().node(node.me).filter(|_| node.layout().duty(node.me) == Duty::Active)?.capacity;
    excess(share, node.store.usage().capacity, &node.config.node)
}

fn excess(share: u64, disks: u64, name: &str) -> Option<v1::Check> {
    (disks > 0 && share > disks).then(|| {
        let what =
            format!("the layout gives it {}, and its file systems have {}: it is full before the others", bytes(share), bytes(disks));
        check("capacity", "warning", format!("{what} (`afar node set {name} --capacity SIZE`)"))
    })
}

/// A disk that could not read something, by name: what was there is mended from the others, the disk is not.
fn failing(directory: &DirectoryUsage) -> Option<String> {
    let (path, failures) = (directory.path.display(), &directory.read_failures);
    let what = "what was there is fetched from the others; replace this disk soon";
    (failures.count > 0).then(|| format!("{path}: {} reads failed since the start, the last: {}: {what}", failures.count, failures.last))
}

/// Peers that came back empty as this node did, and cannot fill it.
fn empty_together(node: &Node) -> Option<String> {
    let layout = node.layout();
    let others = node.peers.others().filter(|peer| node.peers.is_replacement_behind(*peer));
    let names: Vec<&str> = others.map(|peer| layout.node_name(peer)).collect();
    (node.peers.is_replacement() && !names.is_empty()).then(|| names.join(" and "))
}

fn losses(node: &Node) -> v1::Check {
    let losses = node.store.losses();
    let missing = node.ledger.own_missing(1).len();
    // The last one is enough to find the disk.
    let damage =
        losses.damaged.last().map(|last| format!("{}, the last: segment {:016x}: {}", losses.damaged.len(), last.segment, last.why));
    if let Some(damage) = damage.as_ref().filter(|_| node.is_catching_up()) {
        let what = "keep the other nodes up, drain nothing, and look at this disk";
        check("replica", "critical", format!("parts of the log are lost ({damage}), and not all of it is known to be back: {what}"))
    } else if let Some(others) = node.is_catching_up().then(|| empty_together(node)).flatten() {
        let cure = "bring back a disk that either had; if all are gone, `afar node remove NAME --lost`, and add it anew under another name";
        check(
            "replica",
            "critical",
            format!("has new disks, as {others} has: what only their former disks held is not known to be anywhere ({cure})"),
        )
    } else if node.is_catching_up() {
        check("replica", "warning", "catching up: its answers prove no absence until it has compared itself with every other node")
    } else if let overdue @ 1.. = node.ledger.missing_for(limits::MENDED_WITHIN) {
        // Of a version that nobody can read any more no count of objects knows: it must not be called safe for that.
        let what = "records that should be here are bad or missing, and nobody has given a good copy of them";
        check("replica", "critical", format!("{overdue} {what} for over a minute: keep every disk that ever held one"))
    } else if missing > 0 {
        check("replica", "warning", "records that this node should have are missing or bad here and not mended yet")
    } else if let Some(damage) = damage {
        let rest = "what another node has of them is here again; if a second node says this, what both lost may be missing unnoticed";
        check("replica", "warning", format!("parts of the log were lost ({damage}): {rest}. Look at this disk"))
    } else if let lost @ 1.. = node.survey.load().unmissed.len() {
        let what = "older versions cannot be read any more, nor be recovered: what took their place is not concerned";
        check("replica", "warning", format!("{lost} {what}"))
    } else if losses.corrupt_total > 0 {
        check("replica", "warning", format!("{} bad copies were found since the start, and mended: watch this disk", losses.corrupt_total))
    } else {
        check("replica", "ok", "complete")
    }
}

fn policies(node: &Node) -> v1::Check {
    let present = node.buckets.present();
    let mut troubles: Vec<String> = present.contested().map(|name| format!("several buckets are named {name:?}, so that name means none: `afar bucket ls` shows their ids, `afar bucket rename @ID NAME` ends this")).collect();
    for bucket in present.buckets.values() {
        match &bucket.now().placement {
            Err(why) => troubles.push(format!("bucket {:?}: {why}", bucket.name)),
            Ok(placement) if !placement.is_complete() => troubles.push(format!("bucket {:?}: fewer sites than copies", bucket.name)),
            Ok(_) => {}
        }
    }
    if troubles.is_empty() {
        check("policy", "ok", "every bucket's policy can be met")
    } else {
        check("policy", "critical", troubles.join("; "))
    }
}

fn panics(node: &Node) -> v1::Check {
    match node.lifecycle.panics() {
        0 => check("program", "ok", "no panic in this run"),
        panics => check("program", "critical", format!("{panics} panics were caught: this is a bug, please report it with the log")),
    }
}

/// The node's own certificate: in use, in time, believed.
pub(crate) fn certificate(node: &Node) -> v1::Check {
    let (identity, now) = (&node.identity, node.now());
    let left = Left::until(identity.not_after(), now);
    let rejected = identity.rejected().map(|why| format!("; the files on disk are not used, those read before are: {why}"));
    let tail = rejected.as_deref().unwrap_or_default();
    match (left, identity.own_refused()) {
        (_, Some(why)) => check("certificate", "critical", format!("{why}{tail}")),
        (Left::Nothing, _) => {
            check("certificate", "critical", format!("has expired: put a new one in its place, it is read at once{tail}"))
        }
        (Left::Little(days), _) => {
            check("certificate", "warning", format!("ends in {days} days: put a new one in its place, no restart is needed{tail}"))
        }
        (Left::Enough(days), _) if rejected.is_some() => check("certificate", "warning", format!("ends in {days} days{tail}")),
        (Left::Enough(days), _) => check("certificate", "ok", format!("ends in {days} days")),
    }
}

/// What ports for the public show, if that is not the node's own certificate.
fn public_certificate(standing: &Standing, now: UnixMillis) -> v1::Check {
    let Standing { until, trouble, warn_before } = standing;
    let tail = trouble.as_ref().map_or_else(String::new, |why| format!("; the last attempt to replace it: {why}"));
    let Some(until) = *until else {
        let why = trouble.as_deref().unwrap_or("it is being ordered");
        return check("certificate", "warning", format!("there is no public one yet, the node's own is shown: {why}"));
    };
    let (left, days) = (until.since(now), until.since(now).as_secs() / 86_400);
    if now >= until {
        check("certificate", "critical", format!("the public one has expired: put a new one in its place, it is read at once{tail}"))
    } else if left < *warn_before || trouble.is_some() {
        check(
            "certificate",
            "warning",
            format!("the public one ends in {days} days: put a new one in its place, no restart is needed{tail}"),
        )
    } else {
        check("certificate", "ok", format!("the public one ends in {days} days"))
    }
}

/// The authorities that this node trusts.
pub(crate) fn authority(node: &Node) -> v1::Check {
    match Left::until(node.identity.authority_not_after(), node.now()) {
        Left::Nothing => check("authority", "critical", "an authority has expired: nodes that trust no other do not start any more"),
        Left::Little(days) => {
            let what = "make a new one, let every node trust both, certify every node anew, then withdraw the old one";
            check("authority", "warning", format!("an authority ends in {days} days: {what}"))
        }
        Left::Enough(days) => check("authority", "ok", format!("ends in {days} days")),
    }
}

/// Whether this node believes whom the layout says to believe; nothing, if it does.
fn trust(node: &Node) -> Option<v1::Check> {
    let said = Trust::from(&node.layouts.chapter().document);
    let why = node.identity.objection(&said).unwrap_or_else(|| "see this node's log".into());
    let what = "the layout's authorities and withdrawn keys are not followed here";
    (node.identity.trust() != said).then(|| check("authority", "critical", format!("{what}: {why}")))
}

/// Peers whose certificates, as they showed them last, end soon: such a peer may be down and unable to say so itself.
fn peers_certificates(node: &Node) -> impl Iterator<Item = v1::Check> {
    let now = node.now();
    node.peers.others().filter_map(move |peer| {
        let name = node.layout().node_name(peer).to_owned();
        match Left::until(node.peers.certificate_ends(peer)?, now) {
            Left::Enough(_) => None,
            Left::Little(days) => Some(check("peer_certificate", "warning", format!("{name}'s certificate ends in {days} days"))),
            Left::Nothing => Some(check("peer_certificate", "warning", format!("{name}'s certificate has expired"))),
        }
    })
}

/// Time that a certificate has left, in whole days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Little(u64),
    Enough(u64),
}

impl Left {
    fn until(end: UnixMillis, now: UnixMillis) -> Self {
        let left = end.since(now);
        let days = left.as_secs() / 86_400;
        match () {
            () if now >= end => Self::Nothing,
            () if left < limits::CERTIFICATE_WARNING => Self::Little(days),
            () => Self::Enough(days),
        }
    }
}

/// Peers that this node cannot work with, and why.
fn peers(node: &Node) -> impl Iterator<Item = v1::Check> {
    let troubled = node.peers.others().filter_map(|peer| node.peers.view(peer)).filter(|view| !view.usable || view.is_shadowed);
    let now = node.clock.monotonic();
    troubled.map(move |view| {
        if view.usable {
            let what = "disks that it has replaced are running under its name, too: they are refused; stop that process";
            return check("peer", "warning", format!("{}: {what}", view.node));
        }
        let trouble = if view.trouble.is_empty() { view.state.name() } else { &view.trouble };
        let heard = view.last_heard.filter(|_| !view.answers).map(|at| now.saturating_sub(at).as_secs());
        let heard = heard.map_or_else(String::new, |seconds| format!("; last heard {seconds} s ago"));
        check("peer", "warning", format!("{}: {trouble}{heard}", view.node))
    })
}

/// What was acknowledged at one site only, by disks that are not heard now (rule 8).
fn queued(node: &Node) -> Vec<v1::Check> {
    let (layout, given_up, present) = (node.layout(), node.layouts.given_up(), node.buckets.present());
    // What a node of the version before owes may all be far: it tells no more. But where no bucket queues nothing is ever alone.
    let queues = present.buckets.values().any(|bucket| outbox::queues(bucket));
    let open = |absent: &Absent| absent.why == Absence::Silent || !given_up.contains(&absent.doubt.incarnation);
    let found = |absent: Absent| {
        let site = layout.site_of(absent.node).map_or("?", |site| layout.site_name(site));
        check("queued", "critical", queued_words(layout.node_name(absent.node), site, &absent))
    };
    let found: Vec<v1::Check> = node.peers.absent().into_iter().filter(|absent| queues && open(absent)).map(found).collect();
    if found.is_empty() { vec![check("queued", "ok", "no disks are gone that may have held something alone")] } else { found }
}

fn queued_words(node: &str, site: &str, absent: &Absent) -> String {
    let Doubt { incarnation, alone, heard } = &absent.doubt;
    let heard = rfc3339(heard.0);
    let what = if alone.is_any() {
        format!("up to {} objects ({} bytes) were acknowledged in {site} only", alone.objects, alone.bytes)
    } else {
        format!("what was acknowledged in {site} only is known to nobody else")
    };
    match absent.why {
        Absence::Silent => format!("{what}, and {node} does not answer; last heard {heard}: bring it back"),
        Absence::Gone => format!(
            "{what} and may be lost with the disks of {node} that are gone; last heard {heard}: bring those disks back, or accept the loss \
             (`afar layout release {incarnation}`)"
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::memory::Alone;
    use afar_model::{id::Incarnation, layout::NodeIndex};

    #[test]
    fn rule_8_what_may_be_lost_with_disks_is_said_with_what_to_do() {
        let alone = Alone { objects: 2, bytes: 24, may_queue: true, unknown: false };
        let doubt = Doubt { incarnation: Incarnation::from_bytes([7; 16]), alone, heard: UnixMillis(1_000) };
        let gone = Absent { node: NodeIndex(0), doubt, why: Absence::Gone };
        let words = queued_words("s1", "strasbourg", &gone);
        assert!(words.contains("up to 2 objects (24 bytes) were acknowledged in strasbourg only and may be lost"), "{words}");
        assert!(words.contains("last heard 1970-01-01T00:00:01Z"), "{words}");
        assert!(words.contains(&format!("`afar layout release {}`", "07".repeat(16))), "{words}");
        let silent = queued_words("s1", "strasbourg", &Absent { why: Absence::Silent, ..gone });
        assert!(silent.contains("s1 does not answer") && !silent.contains("release"), "{silent}");
    }

    #[test]
    fn a_share_that_the_disks_cannot_hold_is_complained_of() {
        assert_eq!((excess(10, 10, "s1"), excess(11, 0, "s1")), (None, None), "it fits, or nobody knows");
        let check = excess(11, 10, "s1").unwrap();
        assert_eq!(check.state, "warning");
        assert!(check.detail.contains("`afar node set s1 --capacity SIZE`"), "{}", check.detail);
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_named() {
        let read_failures = afar_store::ReadFailures { count: 3, last: "Input/output error (os error 5)".into() };
        let good = DirectoryUsage {
            path: "/srv/disk2".into(),
            id: None,
            state: DirectoryState::Healthy,
            capacity: 0,
            free: 0,
            segment_bytes: 0,
            syncs: afar_store::SyncCounts::default(),
            read_failures: afar_store::ReadFailures::default(),
        };
        assert_eq!(failing(&good), None);
        let words = failing(&DirectoryUsage { read_failures, ..good }).unwrap_or_default();
        assert!(words.starts_with("/srv/disk2: 3 reads failed") && words.contains("os error 5"), "{words}");
    }

    #[test]
    fn a_public_certificate_warns_before_it_ends_and_while_it_cannot_be_replaced() {
        let day = 86_400_000;
        let now = UnixMillis(1000 * day);
        let standing = |days: Option<u64>, trouble: Option<&str>| Standing {
            until: days.map(|days| UnixMillis(now.0 + days * day)),
            trouble: trouble.map(str::to_owned),
            warn_before: limits::CERTIFICATE_WARNING,
        };
        let state = |days, trouble| public_certificate(&standing(days, trouble), now).state;
        assert_eq!(
            (state(Some(31), None), state(Some(29), None), state(Some(0), None)),
            ("ok".into(), "warning".into(), "critical".into())
        );
        assert_eq!((state(Some(90), Some("why")), state(None, None)), ("warning".into(), "warning".into()));
        assert!(public_certificate(&standing(Some(90), Some("no such host")), now).detail.contains("no such host"));
    }

    #[test]
    fn a_certificate_warns_thirty_days_before_it_ends() {
        let day = 86_400_000;
        let left = |days: u64| Left::until(UnixMillis(1000 * day), UnixMillis(1000 * day - days * day));
        assert_eq!((left(31), left(30)), (Left::Enough(31), Left::Enough(30)));
        assert_eq!((left(29), left(1), left(0)), (Left::Little(29), Left::Little(1), Left::Nothing));
        assert_eq!(Left::until(UnixMillis(0), UnixMillis(day)), Left::Nothing);
    }
}
