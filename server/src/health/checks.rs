//! What an operator must know of this node beside the state of the data: each with a stable name, a state, and what to do.
use crate::node::Node;
use afar_model::document::ShortHash;
use afar_proto::v1;
use afar_store::DirectoryState;

fn check(name: &str, state: &str, detail: impl Into<String>) -> v1::Check {
    v1::Check { name: name.to_owned(), state: state.to_owned(), detail: detail.into() }
}

/// Everything that this node checks of itself.
pub fn checks(node: &Node) -> Vec<v1::Check> {
    let mut checks = vec![layout(node), clock(node), views(node), disks(node), losses(node), policies(node), panics(node)];
    checks.push(certificate(node));
    checks.extend(peers(node));
    checks
}

fn layout(node: &Node) -> v1::Check {
    let (open, current) = (node.layouts.open(), node.layouts.current());
    if let Some(trouble) = node.layouts.trouble() {
        return check("layout", "critical", trouble);
    }
    let latched = node.layouts.latched();
    if !latched.is_empty() {
        let names: Vec<String> = latched.iter().map(|hash| ShortHash(hash).to_string()).collect();
        let what = "a site was lost: nothing is removed for good anywhere until an operator releases it";
        return check("layout", "warning", format!("{what} (`afar layout release {}`)", names.join(" ")));
    }
    match open.chapters().len() {
        1 => check("layout", "ok", format!("version {}", current.version())),
        n => check("layout", "warning", format!("version {} is taking over: {} older still open", current.version(), n - 1)),
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

fn disks(node: &Node) -> v1::Check {
    let usage = node.store.usage();
    let mut troubles = Vec::new();
    for directory in &usage.directories {
        match &directory.state {
            DirectoryState::Created | DirectoryState::Healthy => {}
            DirectoryState::ReadOnly(why) => troubles.push(format!("{} is read-only: {why}", directory.path.display())),
            DirectoryState::Failed(why) => troubles.push(format!("{} has failed: {why}", directory.path.display())),
        }
    }
    if !troubles.is_empty() {
        check("disk", "critical", troubles.join("; "))
    } else if usage.free_for_clients == 0 {
        check("disk", "critical", format!("full: {} bytes free are kept in reserve; add a disk or free space", usage.free))
    } else if usage.free_for_clients < usage.capacity / 20 {
        check("disk", "warning", format!("{} bytes left for clients", usage.free_for_clients))
    } else {
        check("disk", "ok", format!("{} bytes left for clients", usage.free_for_clients))
    }
}

fn losses(node: &Node) -> v1::Check {
    let losses = node.store.losses();
    let missing = node.ledger.own_missing(1).len();
    if node.is_catching_up() {
        check("replica", "warning", "catching up: its answers prove no absence until it has compared itself with every other node")
    } else if missing > 0 {
        check("replica", "warning", "records that this node should have are missing or bad here and not mended yet")
    } else if losses.corrupt_total > 0 {
        check("replica", "warning", format!("{} bad copies were found since the start, and mended: watch this disk", losses.corrupt_total))
    } else {
        check("replica", "ok", "complete")
    }
}

fn policies(node: &Node) -> v1::Check {
    let present = node.buckets.present();
    let mut troubles: Vec<String> = present.conflicts.iter().map(|name| format!("two buckets are named {name:?}: remove one")).collect();
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

fn certificate(node: &Node) -> v1::Check {
    let days = node.identity.not_after().since(node.now()).as_secs() / 86_400;
    let detail = format!("ends in {days} days");
    if node.now() >= node.identity.not_after() {
        check("certificate", "critical", "has expired: install a new one and restart the node")
    } else if node.identity.not_after().since(node.now()) < crate::limits::CERTIFICATE_WARNING {
        check("certificate", "warning", format!("{detail}: install a new one and restart the node"))
    } else {
        check("certificate", "ok", detail)
    }
}

/// Peers that this node cannot work with, and why.
fn peers(node: &Node) -> impl Iterator<Item = v1::Check> {
    let troubled = node.peers.others().filter_map(|peer| node.peers.view(peer)).filter(|view| !view.usable);
    troubled.map(|view| {
        check("peer", "warning", format!("{}: {}", view.node, if view.trouble.is_empty() { view.state.name() } else { &view.trouble }))
    })
}
