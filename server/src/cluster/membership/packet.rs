//! The bytes of membership packets: who a member is, and what of a packet from outside is let in.
//!
//! A packet is a format byte, a kind byte, and a body. Every packet is read to its end here, before anything acts on it: what
//! is malformed, speaks for somebody else than its sender, or is meant for another node is refused as a whole, and single
//! claims about nodes that are not of this layout, or from an impossible future, are left out. What passes is what the
//! protocol's own reader expects, so a packet that is refused has changed nothing.
use bytes::{BufMut, Bytes, BytesMut};
use foca::{Codec as _, Header, Member, Message, PostcardCodec};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

/// The first byte. A node of another format takes no part in the other's membership, and both go by heartbeats.
const FORMAT: u8 = 1;
/// The second byte: the protocol's own packet.
const SWIM: u8 = 0;
/// The second byte: "you are known by this newer identity".
const OUTDATED: u8 = 1;
/// Bytes before the body.
pub(super) const FRAME_BYTES: usize = 2;

/// A run of a node, as the membership protocol knows it. Of two identities of one node the greater is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node's name in the layout: its address in the protocol.
    #[serde(with = "name")]
    pub name: Arc<str>,
    /// When it started, in milliseconds since 1970 by its own clock.
    pub boot: u64,
    /// How often it has had to contradict its own death since.
    pub suffix: u32,
}

impl Identity {
    /// Of a node of which nothing but its name is known: only a question for members may be addressed to it.
    pub fn anybody(name: &Arc<str>) -> Self {
        Self { name: Arc::clone(name), boot: 0, suffix: 0 }
    }

    /// Whether this is a newer identity than that one, of the same node.
    pub const fn is_newer(&self, than: &Self) -> bool {
        self.boot > than.boot || (self.boot == than.boot && self.suffix > than.suffix)
    }

    /// The next one; `None` after four billion.
    pub fn renewed(&self) -> Option<Self> {
        Some(Self { suffix: self.suffix.checked_add(1)?, ..self.clone() })
    }
}

impl foca::Identity for Identity {
    type Addr = Arc<str>;

    fn renew(&self) -> Option<Self> {
        self.renewed()
    }

    fn addr(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_newer(adversary)
    }
}

/// serde shares no `Arc<str>` without a feature for all of the workspace.
mod name {
    use super::Arc;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        <&str>::deserialize(deserializer).map(Arc::from)
    }
}

/// Why a packet was not let in. It changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// Larger than this program makes them.
    #[error("{0} bytes")]
    TooLarge(usize),
    /// Another format, or of a kind that this program does not know.
    #[error("of another format: neighbouring versions work without, upgrade the older node")]
    Format,
    /// Not what it should be.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The sender's certificate names one node, the packet another, or one from an impossible future.
    #[error("it does not speak for its sender, or the sender's clock is more than a day ahead")]
    NotItsOwn,
    /// Meant for another node.
    #[error("meant for another node")]
    NotForUs,
    /// The sender is no node of this layout.
    #[error("not from a node of this layout")]
    Stranger,
}

/// Against what a packet is judged.
pub(super) struct Gate<'a> {
    /// Whom the sender's certificate names.
    pub from: &'a str,
    /// This node's name.
    pub me: &'a str,
    /// The other nodes of the layout.
    pub members: &'a BTreeSet<Arc<str>>,
    /// The newest start that is believed, as [`Identity::boot`].
    pub newest_boot: u64,
    /// The largest body.
    pub body_bytes: usize,
}

/// A packet that was let in.
pub(super) enum Admitted<'a> {
    /// The protocol's own.
    Swim {
        /// Its header.
        header: Header<Identity>,
        /// For the protocol's reader: what was left out is left out.
        body: Cow<'a, [u8]>,
        /// The newest identity of this node of which it speaks.
        about_us: Option<Identity>,
    },
    /// The sender knows this node by this newer identity.
    Outdated(Identity),
}

impl Gate<'_> {
    /// Reads a packet to its end.
    pub(super) fn admit<'a>(&self, packet: &'a [u8]) -> Result<Admitted<'a>, BadPacket> {
        if packet.len() > self.body_bytes + FRAME_BYTES {
            return Err(BadPacket::TooLarge(packet.len()));
        }
        if !self.members.contains(self.from) {
            return Err(BadPacket::Stranger);
        }
        match packet {
            [FORMAT, SWIM, body @ ..] => self.swim(body),
            [FORMAT, OUTDATED, body @ ..] => self.outdated(body),
            _ => Err(BadPacket::Format),
        }
    }

    fn outdated(&self, body: &[u8]) -> Result<Admitted<'static>, BadPacket> {
        let identity = postcard::from_bytes::<Identity>(body).map_err(|_| BadPacket::Malformed("identity"))?;
        match identity {
            identity if &*identity.name != self.me => Err(BadPacket::NotForUs),
            identity if identity.boot > self.newest_boot => Err(BadPacket::Malformed("from the future")),
            identity => Ok(Admitted::Outdated(identity)),
        }
    }

    fn swim<'a>(&self, body: &'a [u8]) -> Result<Admitted<'a>, BadPacket> {
        let mut rest = body;
        let header = PostcardCodec.decode_header(&mut rest).map_err(|_| BadPacket::Malformed("header"))?;
        self.check(&header)?;
        let head = body.get(..body.len() - rest.len()).unwrap_or_default();
        let (members, complete) = self.updates(rest, &header.message)?;
        let about_us = members.iter().map(Member::id).filter(|id| *id.name == *self.me);
        let about_us = about_us.reduce(|a, b| if b.is_newer(a) { b } else { a }).cloned();
        let body = if complete { Cow::Borrowed(body) } else { Cow::Owned(encode(head, &members)?) };
        Ok(Admitted::Swim { header, body, about_us })
    }

    fn check(&self, header: &Header<Identity>) -> Result<(), BadPacket> {
        if *header.src.name != *self.from || header.src.boot > self.newest_boot {
            return Err(BadPacket::NotItsOwn);
        }
        if *header.dst.name != *self.me {
            return Err(BadPacket::NotForUs);
        }
        match &header.message {
            // Somebody else is to be asked or told something: a member, and not ourselves.
            Message::PingReq { target: third, .. }
            | Message::IndirectPing { origin: third, .. }
            | Message::IndirectAck { target: third, .. }
            | Message::ForwardedAck { origin: third, .. } => {
                if self.members.contains(&third.name) {
                    Ok(())
                } else {
                    Err(BadPacket::Malformed("about a third node"))
                }
            }
            Message::Broadcast => Err(BadPacket::Malformed("broadcasts are not used")),
            _ => Ok(()),
        }
    }

    /// What a packet claims of nodes, without what is not let in; and whether nothing was left out.
    fn updates(&self, mut rest: &[u8], message: &Message<Identity>) -> Result<(Vec<Member<Identity>>, bool), BadPacket> {
        let Some((count, claims)) = rest.split_first_chunk::<2>() else {
            return if rest.is_empty() { Ok((Vec::new(), true)) } else { Err(BadPacket::Malformed("length")) };
        };
        if matches!(message, Message::Announce | Message::TurnUndead) {
            return Err(BadPacket::Malformed("this message makes no claims"));
        }
        rest = claims;
        let count = usize::from(u16::from_be_bytes(*count));
        let mut members = Vec::new();
        for _ in 0..count {
            let member: Member<Identity> = PostcardCodec.decode_member(&mut rest).map_err(|_| BadPacket::Malformed("claim"))?;
            let Identity { name, boot, .. } = member.id();
            if (**name == *self.me || self.members.contains(name)) && *boot <= self.newest_boot {
                members.push(member);
            }
        }
        let complete = members.len() == count;
        if rest.is_empty() { Ok((members, complete)) } else { Err(BadPacket::Malformed("length")) }
    }
}

fn encode(head: &[u8], members: &[Member<Identity>]) -> Result<Vec<u8>, BadPacket> {
    let mut body = head.to_vec();
    body.put_u16(u16::try_from(members.len()).unwrap_or(u16::MAX));
    for member in members {
        PostcardCodec.encode_member(member, &mut body).map_err(|_| BadPacket::Malformed("claim"))?;
    }
    Ok(body)
}

/// The protocol's own packet, as it travels.
pub(super) fn swim(body: &[u8]) -> Bytes {
    let mut packet = BytesMut::with_capacity(FRAME_BYTES + body.len());
    packet.put_slice(&[FORMAT, SWIM]);
    packet.put_slice(body);
    packet.freeze()
}

/// Tells a node that it is known by a newer identity than the one it goes by.
pub(super) fn outdated(known: &Identity) -> Option<Bytes> {
    let body = postcard::to_stdvec(known).ok()?;
    let mut packet = BytesMut::with_capacity(FRAME_BYTES + body.len());
    packet.put_slice(&[FORMAT, OUTDATED]);
    packet.put_slice(&body);
    Some(packet.freeze())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use foca::State;

    fn id(name: &str, boot: u64) -> Identity {
        Identity { name: name.into(), boot, suffix: 0 }
    }

    fn packet(header: &Header<Identity>, members: &[Member<Identity>]) -> Bytes {
        let mut head = Vec::new();
        PostcardCodec.encode_header(header, &mut head).unwrap();
        swim(&encode(&head, members).unwrap())
    }

    fn header(message: Message<Identity>) -> Header<Identity> {
        Header { src: id("warsaw", 5), src_incarnation: 0, dst: id("strasbourg", 5), message }
    }

    fn admit(from: &str, packet: &[u8]) -> Result<(usize, Option<Identity>), BadPacket> {
        let members = ["roubaix", "warsaw"].map(Arc::from).into();
        let gate = Gate { from, me: "strasbourg", members: &members, newest_boot: 100, body_bytes: 1000 };
        Ok(match gate.admit(packet)? {
            Admitted::Swim { body, about_us, .. } => (body.len(), about_us),
            Admitted::Outdated(known) => (0, Some(known)),
        })
    }

    #[test]
    fn a_packet_speaks_for_its_sender_and_for_nobody_else() {
        let good = packet(&header(Message::Gossip), &[]);
        assert!(admit("warsaw", &good).is_ok());
        assert_eq!(admit("roubaix", &good), Err(BadPacket::NotItsOwn));
        assert_eq!(admit("paris", &good), Err(BadPacket::Stranger));
        let mut elsewhere = header(Message::Gossip);
        elsewhere.dst = id("roubaix", 5);
        assert_eq!(admit("warsaw", &packet(&elsewhere, &[])), Err(BadPacket::NotForUs));
        let mut future = header(Message::Gossip);
        future.src.boot = 101;
        assert_eq!(admit("warsaw", &packet(&future, &[])), Err(BadPacket::NotItsOwn));
    }

    #[test]
    fn claims_about_strangers_and_from_the_future_are_left_out_and_the_rest_stays() {
        let good = Member::new(id("roubaix", 7), 1, State::Suspect);
        let all = [Member::alive(id("paris", 7)), good.clone(), Member::down(id("roubaix", u64::MAX))];
        let (length, _) = admit("warsaw", &packet(&header(Message::Gossip), &all)).unwrap();
        assert_eq!(length + FRAME_BYTES, packet(&header(Message::Gossip), &[good]).len());
    }

    #[test]
    fn the_newest_identity_of_ours_that_others_know_is_found() {
        let known = [Member::down(id("strasbourg", 9)), Member::alive(id("strasbourg", 12)), Member::alive(id("strasbourg", 3))];
        let (_, about_us) = admit("warsaw", &packet(&header(Message::Gossip), &known)).unwrap();
        assert_eq!(about_us, Some(id("strasbourg", 12)));
        assert_eq!(admit("warsaw", &outdated(&id("strasbourg", 12)).unwrap()).unwrap().1, Some(id("strasbourg", 12)));
        assert_eq!(admit("warsaw", &outdated(&id("roubaix", 12)).unwrap()), Err(BadPacket::NotForUs));
        assert!(admit("warsaw", &outdated(&id("strasbourg", 101)).unwrap()).is_err(), "from the future");
    }

    #[test]
    fn what_does_not_end_where_it_should_is_refused_as_a_whole() {
        let good = packet(&header(Message::Gossip), &[Member::alive(id("roubaix", 7))]);
        assert!(admit("warsaw", &good).is_ok());
        for length in 0..good.len() {
            // Without its claims a packet is whole again: their number comes after the header.
            let header_only = packet(&header(Message::Gossip), &[]).len() - 2;
            assert_eq!(admit("warsaw", &good[..length]).is_ok(), length == header_only, "{length}");
        }
        assert_eq!(admit("warsaw", &[&good[..], &[0]].concat()), Err(BadPacket::Malformed("length")));
        assert_eq!(admit("warsaw", &[0; 1003]), Err(BadPacket::TooLarge(1003)));
        assert_eq!(admit("warsaw", &[2, 0, 1]), Err(BadPacket::Format));
    }

    #[test]
    fn nobody_is_asked_to_ask_us_about_ourselves_or_strangers() {
        for name in ["strasbourg", "paris"] {
            let (third, probe_number) = (id(name, 5), 1);
            for message in [
                Message::PingReq { target: third.clone(), probe_number },
                Message::IndirectPing { origin: third.clone(), probe_number },
                Message::IndirectAck { target: third.clone(), probe_number },
                Message::ForwardedAck { origin: third.clone(), probe_number },
            ] {
                assert_eq!(admit("warsaw", &packet(&header(message), &[])), Err(BadPacket::Malformed("about a third node")));
            }
        }
        assert!(admit("warsaw", &packet(&header(Message::Broadcast), &[])).is_err());
        assert!(admit("warsaw", &packet(&header(Message::Announce), &[Member::alive(id("roubaix", 7))])).is_err());
    }

    #[test]
    fn of_two_runs_the_newer_and_of_one_run_the_later_identity_is_believed() {
        let old = id("warsaw", 5);
        let renewed = old.renewed().unwrap();
        assert!(renewed.is_newer(&old) && !old.is_newer(&renewed) && !old.is_newer(&old));
        assert!(id("warsaw", 6).is_newer(&renewed));
        assert_eq!(Identity { suffix: u32::MAX, ..old }.renewed(), None);
    }
}
