//! How layouts travel, and when older ones are closed.
//!
//! A node that hears in a heartbeat of a layout that it does not know fetches the chain; one whose peer lags behind, or does
//! not know it at all yet, offers its own. What arrives is verified like anything from outside.
//!
//! Older layouts are closed in two steps (rule 21). *Drained*: no request is under way at any member that reads or writes by
//! older layouts only; from then on writes go by the current one alone. *Synced*: since then every member has compared itself
//! with every other and has everything that the current layout assigns to it; from then on reads ask by it alone, too.
use super::{peers::ChannelKind, transition::Step, trust::Trust};
use crate::{limits, node::Node};
use afar_model::{
    document::{self, Chain, Chapter, Document, LayoutHash, Refused, ShortHash},
    id::Incarnation,
    layout::{Duty, NodeIndex},
    placement::Geography,
    plan,
};
use afar_proto::{convert, v1, v1::layouts_client::LayoutsClient};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Bytes of a chain in one message.
const PART_BYTES: usize = 256 << 10;
/// Layouts that may be open at once; each costs every write and read.
const OPEN_MAX: usize = 3;

/// Cuts a chain into messages; the first carries `head`.
pub fn parts(chain: Bytes, head: v1::LayoutPart) -> Vec<v1::LayoutPart> {
    let mut parts: Vec<v1::LayoutPart> = (0..chain.len().max(1))
        .step_by(PART_BYTES)
        .map(|at| v1::LayoutPart { data: chain.slice(at..(at + PART_BYTES).min(chain.len())), ..v1::LayoutPart::default() })
        .collect();
    if let Some(first) = parts.first_mut() {
        let data = std::mem::take(&mut first.data);
        *first = v1::LayoutPart { data, ..head };
    }
    parts
}

/// The buckets that exist here, for whoever plans.
pub fn placed_buckets(node: &Node) -> Vec<v1::PlacedBucket> {
    let present = node.buckets.present();
    let placed = |bucket: &Arc<crate::objects::buckets::Bucket>| v1::PlacedBucket {
        id: convert::bytes(bucket.id.as_bytes()),
        name: bucket.name.clone(),
        policy: bucket.policy().to_bytes().into(),
    };
    // The one without a name and an id is the policy of buckets to come.
    let default = v1::PlacedBucket { policy: node.default_policy().to_bytes().into(), ..v1::PlacedBucket::default() };
    present.buckets.values().map(placed).chain([default]).collect()
}

/// Why a layout is not taken; nothing, if it is.
#[derive(Debug, Default)]
pub struct Objections {
    /// What speaks against it.
    pub problems: Vec<String>,
    /// How much of that speaks only against doing it now: something is under way.
    passing: usize,
}

impl Objections {
    fn of(problems: Vec<String>) -> Self {
        Self { problems, passing: 0 }
    }

    fn push(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn push_passing(&mut self, problem: impl Into<String>) {
        self.push(problem);
        self.passing += 1;
    }

    /// Whether it only has to wait.
    pub fn pass(&self) -> bool {
        !self.problems.is_empty() && self.passing == self.problems.len()
    }
}

/// Takes a chain, or only checks its last document. Answers why not.
///
/// To the end, whoever offers it: a layout that names the offering node for the first time closes the very connection that it
/// came by, and a node that had the layout, but did nothing of what follows from it, would know no way to the others.
pub async fn take(node: &Arc<Node>, bytes: Vec<u8>, check_only: bool) -> Objections {
    let taker = Arc::clone(node);
    let taken = node.lifecycle.to_the_end("take a layout", async move {
        let (before, blocking) = (*taker.layouts.current().hash(), Arc::clone(&taker));
        let taken = taker.lifecycle.blocking("take a layout", move || blocking.take_chain(&bytes, check_only)).await;
        // Of a chain that is refused in the end, the beginning may have been good.
        if *taker.layouts.current().hash() != before {
            taker.layout_changed().await;
        }
        taken
    });
    match taken.await.flatten() {
        Some(Ok(())) => Objections::default(),
        Some(Err(objections)) => {
            if !check_only {
                tracing::error!(problems = objections.problems.join("; "), "a layout is refused: this node keeps its last good one");
            }
            objections
        }
        None => Objections::of(vec!["the node is ending, or has a bug".into()]),
    }
}

impl Node {
    /// Blocking. What came before the document that is wrong, if one is, has been taken.
    fn take_chain(&self, bytes: &[u8], check_only: bool) -> Result<(), Objections> {
        let words = |error: Refused| match error {
            Refused::Wrong(problems) => problems,
            other => vec![other.to_string()],
        };
        let words = |error: Refused| Objections::of(words(error));
        let chain = Chain::decode(bytes).map_err(words).inspect_err(|wrong| self.layouts.refuse(&wrong.problems))?;
        let Some((last, earlier)) = chain.documents.split_last() else { return Ok(()) };
        if check_only {
            // What leads to it may be new here as well.
            let chapter = self.layouts.check_after(earlier, last).map_err(words)?;
            let objections = self.objections(&chapter);
            return if objections.problems.is_empty() { Ok(()) } else { Err(objections) };
        }
        for signed in &chain.documents {
            self.layouts.offer(signed).map_err(words)?;
        }
        Ok(())
    }

    /// What speaks against applying a layout that is good in itself: asked before, never after.
    fn objections(&self, next: &Chapter) -> Objections {
        let (current, mut problems) = (self.layouts.chapter(), Objections::default());
        let lost = !next.newly_lost(&[&current]).is_empty()
            || next.document.nodes.iter().any(|node| {
                node.duty == Duty::Lost && current.document.nodes.iter().any(|was| was.name == node.name && was.duty.is_member())
            });
        if let Some(trouble) = self.layouts.trouble().filter(|_| next.document.parents.len() < 2 && !self.layouts.rivals().is_empty()) {
            problems.push(trouble);
        }
        let open = self.layouts.open().chapters().len();
        let added = |now: &[[u8; 32]], before: &[[u8; 32]]| now.iter().any(|digest| !before.contains(digest));
        let withdraws =
            added(&next.document.revoked, &current.document.revoked) || added(&next.document.distrusted, &current.document.distrusted);
        // Where a bucket can be placed nowhere, no transition ends by waiting ([`Node::is_synced`]): only a change helps.
        let stuck = || self.buckets.present().buckets.values().any(|bucket| bucket.now().placement.is_err());
        // A fire and a thief do not wait for a transition to end; and none ends while a conflict lasts, which a merge ends.
        let merges = next.document.parents.len() >= 2;
        if open >= OPEN_MAX && !lost && !withdraws && !merges && !stuck() {
            problems.push_passing(format!(
                "{open} layouts are in transition already, and wait for {}: `afar status` says what to do, or wait",
                self.transition(&current.layout).words()
            ));
        }
        problems.problems.extend(self.identity.objection(&Trust::from(&next.document)));
        let stays = |name: &str| next.document.nodes.iter().any(|node| node.name == name && node.duty.is_member());
        for view in self.peers.others().filter_map(|peer| self.peers.view(peer)) {
            // It says which layout it has, and not which are open: it knows of no other than its configuration's.
            if view.layout_known && view.open_layouts.is_empty() && stays(&view.node) {
                problems.push(format!("{} runs a version that knows no layouts but its configuration's: upgrade it first", view.node));
            }
        }
        let latched = self.layouts.latched();
        let present = |disks: &Incarnation| {
            let peers = self.peers.others().filter_map(|peer| self.peers.view(peer));
            *disks == self.store.incarnation() || peers.map(|view| view.incarnation).any(|peer| peer == Some(*disks))
        };
        for disks in next.document.releases.iter().filter_map(document::released_disks).filter(present) {
            problems.push(format!("it gives up what {disks} holds, which takes part: replace that node first, or say that it is lost"));
        }
        let unknown = |hash: &&LayoutHash| !latched.contains(*hash) && document::released_disks(hash).is_none();
        for hash in next.document.releases.iter().filter(unknown) {
            problems.push(format!("it releases layout {}, which named no loss of a site, or it is answered for already", ShortHash(hash)));
        }
        let leaves = |name: &str| current.document.nodes.iter().any(|was| was.name == name && was.duty.is_member());
        let removed = next.document.nodes.iter().filter(|node| node.duty == Duty::Removed && leaves(&node.name)).collect::<Vec<_>>();
        if open > 1 && !removed.is_empty() {
            problems.push_passing(format!(
                "nodes are being drained still: remove them when the present layout is in force everywhere; it waits for {}",
                self.transition(&current.layout).words()
            ));
        }
        if removed.iter().any(|node| node.name == self.config.node) {
            match self.surplus() {
                Some(0) => {}
                Some(left) if latched.is_empty() => {
                    problems.push_passing(format!("this node still holds {left} records that it has not handed over: wait for its drain"));
                }
                Some(left) => problems.push(format!(
                    "this node still holds {left} records, and nothing is let go of anywhere until the loss of a site is answered for \
                     (`afar layout release {}`)",
                    latched.iter().map(|hash| ShortHash(hash).to_string()).collect::<Vec<_>>().join(" ")
                )),
                None => problems.push_passing("this node does not know yet whether it has handed over everything: wait for its drain"),
            }
        }
        let present = self.buckets.present();
        for bucket in present.buckets.values().filter(|_| !lost) {
            let policy = next.layout.promise(&bucket.id).unwrap_or(bucket.policy());
            let Some(unmet) = plan::unmet(policy, &Geography::claimed(&next.layout)) else { continue };
            // A copy that is missing because its site has left is told of by status. To promise it anew would be to promise what
            // nobody can keep; but a merge, which ends a conflict, takes a side's promises as they are.
            if !unmet.far || (policy != bucket.policy() && next.document.parents.len() < 2) {
                let more = if unmet.far { "" } else { " any more" };
                problems.push(format!("bucket {:?} could not be kept{more}: {}", bucket.name, unmet.why));
            }
        }
        problems
    }

    /// A new layout is current here: everything that follows from it is made anew.
    pub async fn layout_changed(self: &Arc<Self>) {
        self.follow_trust();
        self.rebalance.begin();
        self.ledger.layout_changed();
        let new = self.peers.layout_changed();
        self.follow_members();
        for peer in new {
            self.lanes.add(&self.peers, peer, &self.transfer, &self.lifecycle);
            self.start_peer_tasks(peer);
        }
        self.reload_settings().await;
        self.poke();
    }

    /// Believes whom the current layout says to believe. Connections that rest on what is not believed any more end.
    pub fn follow_trust(&self) {
        if let Err(error) = self.identity.follow(|| Trust::from(&self.layouts.chapter().document)) {
            tracing::error!(%error, "what the layout says of authorities and keys is not followed: what was believed before still is");
        }
    }

    /// Notes how far the members are, and closes older layouts when all are there.
    async fn advance(self: &Arc<Self>) {
        let layout = self.layouts.current();
        if layout.duty(self.me) == Duty::Removed || layout.duty(self.me) == Duty::Lost {
            return;
        }
        let step = self.transition(&layout);
        if !matches!(step, Step::Draining(_)) && self.layouts.note_all_drained(layout.hash()) {
            // What is compared from now on counts.
            self.poke();
        }
        let (current, layouts) = (*layout.hash(), Arc::clone(&self.layouts));
        let kept: Option<Vec<LayoutHash>> = if step == Step::Done {
            Some(Vec::new())
        } else {
            // Who has the same current layout and has closed older ones knew that everybody could, this node included.
            let views: Vec<_> = self.peers.others().filter_map(|other| self.peers.view(other)).collect();
            let same = views.iter().filter(|view| view.usable && view.layout_hash == current.as_slice());
            self.layouts.closed_by(same.map(|view| &view.open_layouts))
        };
        let Some(kept) = kept.filter(|_| self.layouts.open().chapters().len() > 1) else { return };
        match self.lifecycle.blocking("close layouts", move || layouts.close_others(&current, &kept)).await {
            Some(Ok(())) => {
                self.reload_settings().await;
                self.poke();
            }
            Some(Err(error)) => tracing::error!(%error, "older layouts stay open"),
            None => {}
        }
    }
}

/// Keeps this node's chain and its peers' together for as long as it runs.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut changes = node.peers.changes();
    loop {
        for peer in node.peers.others() {
            if stop.run_until_cancelled(meet(&node, peer)).await.is_none() {
                return;
            }
        }
        node.advance().await;
        tokio::select! {
            () = stop.cancelled() => return,
            _ = changes.changed() => {}
            () = tokio::time::sleep(limits::LAYOUT_EVERY) => {}
        }
        // Several changes come together.
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(50))).await.is_none() {
            return;
        }
    }
}

/// Fetches from, or offers to, a peer whose current layout is another, or that does not know this node.
async fn meet(node: &Arc<Node>, peer: NodeIndex) {
    let Some(view) = node.peers.view(peer) else { return };
    let ours = *node.layouts.current().hash();
    // One that has never said anything may answer all the same: it does not know this node, and refuses it.
    if view.layout_hash == ours.as_slice() || (!view.layout_known && !view.answers) {
        return;
    }
    let theirs: Option<LayoutHash> = view.layout_hash.as_slice().try_into().ok();
    let Some(channel) = node.peers.channel(peer, ChannelKind::Control) else { return };
    let client = LayoutsClient::new(channel).max_decoding_message_size(afar_proto::limits::MESSAGE_BYTES_MAX);
    let met = match theirs {
        Some(theirs) if node.layouts.knows(&theirs) => offer(node, client).await,
        Some(_) => fetch(node, client).await,
        // It says nothing, but refuses this node: it does not know it yet, or any more.
        None => match fetch(node, client.clone()).await {
            Ok(()) => offer(node, client).await,
            failed => failed,
        },
    };
    if let Err(error) = met {
        tracing::debug!(peer = view.node, error, "layouts were not exchanged");
    }
}

async fn offer(node: &Arc<Node>, mut client: LayoutsClient<Channel>) -> Result<(), String> {
    let chain = Bytes::from(node.layouts.whole_chain().encode());
    let offered = futures_util::stream::iter(parts(chain, v1::LayoutPart::default()));
    let answer = tokio::time::timeout(limits::FETCH_DEADLINE, client.offer(offered)).await.map_err(|_| "no answer in time")?;
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    if answer.problems.is_empty() { Ok(()) } else { Err(answer.problems.join("; ")) }
}

async fn fetch(node: &Arc<Node>, mut client: LayoutsClient<Channel>) -> Result<(), String> {
    let read = async {
        let mut stream = client.get(v1::GetLayoutsRequest {}).await.map_err(|status| status.message().to_owned())?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.map_err(|status| status.message().to_owned())? {
            if bytes.len() + part.data.len() > Chain::BYTES_MAX {
                return Err("the peer's chain is too large".to_owned());
            }
            bytes.extend_from_slice(&part.data);
        }
        Ok(bytes)
    };
    let bytes = tokio::time::timeout(limits::FETCH_DEADLINE, read).await.map_err(|_| "no answer in time")??;
    let problems = take(node, bytes, false).await.problems;
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// What a document changes, in words; for status and history.
pub fn summary(document: &Document) -> String {
    if document.note.is_empty() { format!("version {}", document.version) } else { document.note.clone() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        gateways::grpc::objects::ObjectsService,
        testing::{Alone, dropped_after, signed, until},
    };
    use afar_model::{document::Signed, units::UnixMillis};
    use afar_proto::v1::objects_server::Objects as _;

    /// The chain with one document more, in which Madrid joins, and then whatever follows.
    fn madrid_joins(alone: &Alone, follows: impl Fn(&Document) -> Vec<Signed>) -> Vec<u8> {
        let mut document = Document::child_of(&alone.node.layouts.chapter(), UnixMillis(1), "madrid joins");
        let (mut site, mut node) = (document.sites.first().unwrap().clone(), document.nodes.first().unwrap().clone());
        (site.name, node.name, node.site) = ("madrid".into(), "madrid".into(), "madrid".into());
        node.endpoint = "https://127.0.0.1:7701".into();
        document.sites.push(site);
        document.nodes.push(node);
        let mut chain = alone.node.layouts.whole_chain();
        chain.documents.push(alone.custodian.sign(&document));
        chain.documents.extend(follows(&document));
        chain.encode()
    }

    /// Whether this node has made room for Madrid.
    fn followed(node: &Node) -> bool {
        node.peers.view(NodeIndex(1)).is_some() && node.lanes.to(NodeIndex(1), crate::replication::lane::LaneKind::Small).is_some()
    }

    #[tokio::test]
    async fn a_layout_is_followed_whenever_whoever_offers_it_goes_away() {
        for polls in 1.. {
            let alone = Alone::start().await;
            let chain = madrid_joins(&alone, |_| Vec::new());
            let whole = dropped_after(polls, take(&alone.node, chain, false)).await;
            until(|| if followed(&alone.node) { Ok(()) } else { Err(polls) }).await;
            alone.stop().await;
            if whole.is_some() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn of_a_chain_that_is_refused_in_the_end_what_was_taken_is_followed() {
        let alone = Alone::start().await;
        let unsigned = |document: &Document| {
            let mut next = document.clone();
            next.version += 1;
            vec![Signed { body: next.encode(), signatures: Vec::new() }]
        };
        let chain = madrid_joins(&alone, unsigned);
        assert!(!take(&alone.node, chain, false).await.problems.is_empty());
        assert_eq!((alone.node.layouts.current().version(), followed(&alone.node)), (2, true));
        alone.stop().await;
    }

    #[tokio::test]
    async fn rule_21_who_reads_a_listing_slowly_keeps_no_layout_open() {
        let (alone, name) = (Alone::start().await, "listed");
        let setting = afar_model::record::Setting::BucketCreated {
            name: name.into(),
            policy: alone.node.default_policy(),
            shards: 1,
            stamp: alone.node.tick(),
        };
        let record =
            afar_model::record::Record::new(afar_model::record::RecordKind::Setting, afar_model::id::BucketId::SYSTEM, setting.encode());
        alone.node.keep(afar_store::AppendClass::Repair, vec![record]).await.unwrap();
        let service = ObjectsService::new(Arc::clone(&alone.node));
        let listing = service.list(signed(v1::ListRequest { bucket: name.into(), ..v1::ListRequest::default() })).await.unwrap();
        assert!(take(&alone.node, madrid_joins(&alone, |_| Vec::new()), false).await.problems.is_empty());
        until(|| if alone.node.layouts.is_drained() { Ok(()) } else { Err("not drained") }).await;
        drop(listing);
        alone.stop().await;
    }
}
