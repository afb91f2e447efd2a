//! One connection as the kernel tells of it, and the requests about it. Numbers are those of
//! linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.

use std::{net::IpAddr, time::Duration};

use nix::libc;
use towpath_core::{
    connection::Connection,
    model::{Family, Protocol},
    names::REVOKED_MARK,
    ruleset::Transport,
};

use crate::nfnetlink::{Attributes, MessageType, NfnetlinkMessage, NfnetlinkRequest};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u8 = 1;
/// `IPCTNL_MSG_CT_NEW`: tells of a connection, or changes one.
const NEW: MessageType = MessageType { subsystem: SUBSYSTEM, number: 0 };
/// `IPCTNL_MSG_CT_GET`.
const GET: MessageType = MessageType { subsystem: SUBSYSTEM, number: 1 };
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: MessageType = MessageType { subsystem: SUBSYSTEM, number: 2 };

/// `enum ctattr_type`.
mod cta {
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const MARK: u16 = 8;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const MARK_MASK: u16 = 21;
}

/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// `IPS_EXPECTED`, `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_FIXED_TIMEOUT`.
const EXPECTED: u32 = 1;
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const FIXED_TIMEOUT: u32 = 1 << 10;

/// `CTA_IP_V4_SRC`, `CTA_IP_V6_SRC`.
const fn source(family: Family) -> u16 {
    match family {
        Family::V4 => 1,
        Family::V6 => 3,
    }
}

/// How a connection came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Both ends have sent.
    Answered,
    /// One has: its packets are still new ones to the rules.
    Unanswered,
    /// Another one announced it.
    Expected,
}

/// Whether it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Free,
    Cut,
}

/// A connection in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) connection: Connection,
    pub(super) life: Life,
    pub(super) standing: Standing,
    /// `CTA_ID`: a connection that takes its place has another.
    pub(super) id: u32,
    family: Family,
    status: u32,
    original: Attributes<'a>,
    /// As the kernel wrote it, so that it can be asked for in its own words, whatever the protocol has for keys.
    reply: (Attributes<'a>, &'a [u8]),
}

impl<'a> Entry<'a> {
    /// `None` for one of another zone, of no IP family, or that is not understood.
    pub(super) fn parse(answer: &NfnetlinkMessage<'a>) -> Option<Self> {
        let all = answer.attributes;
        if answer.kind != NEW || all.find(cta::ZONE).is_some() {
            return None;
        }
        let family = match i32::from(answer.family) {
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            _ => return None,
        };
        let original = all.find(cta::ORIGINAL)?.nested();
        let reply = all.find(cta::REPLY)?;
        let status = all.find(cta::STATUS)?.be32()?;
        let mark = all.find(cta::MARK).and_then(|a| a.be32()).unwrap_or(0);
        let reply = (reply.nested(), reply.payload);
        let connection = Connection {
            from: address(original, family)?,
            to: address(reply.0, family)?,
            transport: transport(reply.0)?,
        };
        Some(Self {
            connection,
            life: match (status & EXPECTED, status & SEEN_REPLY) {
                (0, 0) => Life::Unanswered,
                (0, _) => Life::Answered,
                (_, _) => Life::Expected,
            },
            standing: if mark & REVOKED_MARK == 0 { Standing::Free } else { Standing::Cut },
            id: all.find(cta::ID)?.be32()?,
            family,
            status,
            original,
            reply,
        })
    }

    /// What is needed to speak of it later.
    pub(super) fn handle(&self) -> Handle {
        let Self { connection, id, family, status, reply: (_, reply), .. } = *self;
        Handle { connection, id, family, status, reply: reply.to_vec() }
    }
}

/// Where the packets of a tuple come from.
fn address(tuple: Attributes<'_>, family: Family) -> Option<IpAddr> {
    let payload = tuple.find(ADDRESSES)?.nested().find(source(family))?.payload;
    match family {
        Family::V4 => <[u8; 4]>::try_from(payload).ok().map(IpAddr::from),
        Family::V6 => <[u8; 16]>::try_from(payload).ok().map(IpAddr::from),
    }
}

/// Of the answers: their source port is what the policy calls the destination port.
fn transport(reply: Attributes<'_>) -> Option<Transport> {
    let protocol = reply.find(PROTOCOL)?.nested();
    let number = protocol.find(NUMBER)?.u8()?;
    let with_ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(Protocol::number).contains(&number);
    if !with_ports {
        return Some(Transport::Other(number));
    }
    Some(Transport::Ports { protocol: number, destination: protocol.find(SOURCE_PORT)?.be16()? })
}

/// A connection to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) connection: Connection,
    id: u32,
    family: Family,
    status: u32,
    reply: Vec<u8>,
}

impl Handle {
    /// Deletes it. A connection that has taken its place is another one and stays.
    pub(super) fn delete(&self) -> NfnetlinkRequest {
        let mut request = self.request(DELETE);
        request.body.be32(cta::ID, self.id);
        request
    }

    /// Sets bits of its mark, and lets it end after a time, whatever packets it still sees. The kernel does not compare
    /// the id here: what has taken its place answers from the same address and port, so the policy says the same of it.
    pub(super) fn mark(&self, bits: u32, lifetime: Duration) -> NfnetlinkRequest {
        // The kernel refuses to take these two back, and they may have come since we looked.
        let status = self.status | SEEN_REPLY | ASSURED | FIXED_TIMEOUT;
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut request = self.request(NEW);
        let body = request.body.be32(cta::TIMEOUT, seconds).be32(cta::STATUS, status);
        body.be32(cta::MARK, bits).be32(cta::MARK_MASK, bits);
        request
    }

    fn request(&self, kind: MessageType) -> NfnetlinkRequest {
        let mut request = NfnetlinkRequest::new(kind, family_number(self.family));
        request.body.bytes(cta::REPLY | NESTED, &self.reply);
        request
    }
}

/// Asks for all connections.
pub(super) fn all() -> NfnetlinkRequest {
    NfnetlinkRequest::new(GET, 0)
}

const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::Body;

    /// `IPS_DST_NAT`, one of the bits that are none of ours.
    const TRANSLATED: u32 = 1 << 5;

    /// From 10.244.2.9 to port 80 of 10.244.1.2, as the kernel tells of it.
    fn told(status: u32, mark: u32) -> Body {
        let mut body = Body::default();
        for (kind, from, port) in [(cta::ORIGINAL, [10, 244, 2, 9], 40_000), (cta::REPLY, [10, 244, 1, 2], 80)] {
            body.nest(kind, |tuple| {
                tuple.nest(ADDRESSES, |addresses| _ = addresses.bytes(source(Family::V4), &from));
                tuple.nest(PROTOCOL, |protocol| _ = protocol.u8(NUMBER, 6).be16(SOURCE_PORT, port));
            });
        }
        body.be32(cta::STATUS, status).be32(cta::MARK, mark).be32(cta::ID, 7);
        body
    }

    fn answer(body: &Body) -> NfnetlinkMessage<'_> {
        let family = family_number(Family::V4);
        NfnetlinkMessage { kind: NEW, family, resource: 0, attributes: Attributes::new(body.as_bytes()) }
    }

    #[test]
    fn what_the_kernel_tells_says_how_a_connection_stands() {
        for (status, mark, life, standing, why) in [
            (0, 0, Life::Unanswered, Standing::Free, "the first packet"),
            (SEEN_REPLY | ASSURED, 0, Life::Answered, Standing::Free, "both have sent"),
            (EXPECTED, 0, Life::Expected, Standing::Free, "announced"),
            (EXPECTED | SEEN_REPLY, 0, Life::Expected, Standing::Free, "announced, and answered"),
            (SEEN_REPLY, REVOKED_MARK | 1, Life::Answered, Standing::Cut, "our mark among others"),
            (SEEN_REPLY, !REVOKED_MARK, Life::Answered, Standing::Free, "others' marks"),
        ] {
            let body = told(status, mark);
            let entry = Entry::parse(&answer(&body)).unwrap();
            assert_eq!((entry.life, entry.standing), (life, standing), "{why}");
            let transport = Transport::Ports { protocol: 6, destination: 80 };
            let (from, to) = ([10, 244, 2, 9].into(), [10, 244, 1, 2].into());
            assert_eq!(entry.connection, Connection { from, to, transport }, "{why}");
        }
    }

    #[test]
    fn what_is_of_another_zone_or_no_connection_of_ip_is_passed_over() {
        let body = told(SEEN_REPLY, 0);
        let mut elsewhere = body.clone();
        elsewhere.nest(cta::ZONE, |_| ());
        assert_eq!(Entry::parse(&answer(&elsewhere)), None, "another zone");
        assert_eq!(Entry::parse(&NfnetlinkMessage { family: 0, ..answer(&body) }), None, "no family");
        assert_eq!(Entry::parse(&NfnetlinkMessage { kind: DELETE, ..answer(&body) }), None, "one that ends");
        assert_eq!(Entry::parse(&answer(&Body::default())), None, "nothing");
    }

    #[test]
    fn a_cut_sets_our_bit_of_the_mark_alone_and_lets_the_connection_end_at_a_time() {
        let body = told(SEEN_REPLY | TRANSLATED, 1);
        let handle = Entry::parse(&answer(&body)).unwrap().handle();
        let cut = handle.mark(REVOKED_MARK, Duration::from_secs(1000));
        let written = Attributes::new(cut.body.as_bytes());
        let number = |kind| written.find(kind).and_then(|attribute| attribute.be32());
        assert_eq!((number(cta::MARK), number(cta::MARK_MASK)), (Some(REVOKED_MARK), Some(REVOKED_MARK)));
        assert_eq!(number(cta::TIMEOUT), Some(1000));
        assert_eq!(number(cta::STATUS), Some(SEEN_REPLY | ASSURED | FIXED_TIMEOUT | TRANSLATED));
        let deletion = handle.delete();
        let id = Attributes::new(deletion.body.as_bytes()).find(cta::ID).and_then(|attribute| attribute.be32());
        assert_eq!(id, Some(7), "and not what has taken its place");
    }
}
