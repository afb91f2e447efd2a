//! One conntrack entry, and the requests about it. Numbers are those of linux/netfilter/nfnetlink_conntrack.h and
//! nf_conntrack_common.h.

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
/// `IPCTNL_MSG_CT_NEW`: an entry, or the change of one.
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

/// What conntrack has seen of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryPhase {
    /// Packets in both directions.
    Answered,
    /// Packets in one direction: they are still `ct state new` to the rules.
    Unanswered,
    /// Announced by another connection (`IPS_EXPECTED`).
    Expected,
}

/// Whether a connection has our mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RevocationState {
    Unmarked,
    Revoked,
}

/// An entry in a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) connection: Connection,
    pub(super) phase: EntryPhase,
    pub(super) state: RevocationState,
    /// `CTA_ID`: a connection that takes its place has another one.
    pub(super) id: u32,
    family: Family,
    status: u32,
    original: Attributes<'a>,
    /// As the kernel wrote it, so that a request names the entry whatever keys its protocol has.
    reply: (Attributes<'a>, &'a [u8]),
}

impl<'a> Entry<'a> {
    /// `None` for an entry of another zone, of no IP family, or of an unknown form.
    pub(super) fn parse(message: &NfnetlinkMessage<'a>) -> Option<Self> {
        let all = message.attributes;
        if message.kind != NEW || all.find(cta::ZONE).is_some() {
            return None;
        }
        let family = match i32::from(message.family) {
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
            phase: match (status & EXPECTED, status & SEEN_REPLY) {
                (0, 0) => EntryPhase::Unanswered,
                (0, _) => EntryPhase::Answered,
                (_, _) => EntryPhase::Expected,
            },
            state: if mark & REVOKED_MARK == 0 { RevocationState::Unmarked } else { RevocationState::Revoked },
            id: all.find(cta::ID)?.be32()?,
            family,
            status,
            original,
            reply,
        })
    }

    /// What later requests need to name the entry.
    pub(super) fn key(&self) -> EntryKey {
        let Self { connection, id, family, status, reply: (_, reply), .. } = *self;
        EntryKey { connection, id, family, status, reply: reply.to_vec() }
    }
}

/// The source address of a tuple.
fn address(tuple: Attributes<'_>, family: Family) -> Option<IpAddr> {
    let payload = tuple.find(ADDRESSES)?.nested().find(source(family))?.payload;
    match family {
        Family::V4 => <[u8; 4]>::try_from(payload).ok().map(IpAddr::from),
        Family::V6 => <[u8; 16]>::try_from(payload).ok().map(IpAddr::from),
    }
}

/// The transport of the reply tuple: its source port is the destination port in the policy.
fn transport(reply: Attributes<'_>) -> Option<Transport> {
    let protocol = reply.find(PROTOCOL)?.nested();
    let number = protocol.find(NUMBER)?.u8()?;
    let with_ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(Protocol::number).contains(&number);
    if !with_ports {
        return Some(Transport::Other(number));
    }
    Some(Transport::Ports { protocol: number, destination: protocol.find(SOURCE_PORT)?.be16()? })
}

/// Names an entry in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryKey {
    pub(super) connection: Connection,
    id: u32,
    family: Family,
    status: u32,
    reply: Vec<u8>,
}

impl EntryKey {
    /// Deletes the entry. One that has taken its place has another id and stays.
    pub(super) fn delete(&self) -> NfnetlinkRequest {
        let mut request = self.request(DELETE);
        request.body.be32(cta::ID, self.id);
        request
    }

    /// Marks the entry as revoked, and lets it expire after a time, whatever packets it still sees. The kernel does not
    /// compare the id here: an entry that has taken its place replies from the same address and port, so that the policy
    /// denies it too.
    pub(super) fn revoke(&self, lifetime: Duration) -> NfnetlinkRequest {
        // The kernel rejects a status without the first two once it has them, and it may have got them since the dump.
        let status = self.status | SEEN_REPLY | ASSURED | FIXED_TIMEOUT;
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut request = self.request(NEW);
        let body = request.body.be32(cta::TIMEOUT, seconds).be32(cta::STATUS, status);
        body.be32(cta::MARK, REVOKED_MARK).be32(cta::MARK_MASK, REVOKED_MARK);
        request
    }

    fn request(&self, kind: MessageType) -> NfnetlinkRequest {
        let mut request = NfnetlinkRequest::new(kind, family_number(self.family));
        request.body.nested_bytes(cta::REPLY, &self.reply);
        request
    }
}

/// Dumps all entries.
pub(super) fn dump_all() -> NfnetlinkRequest {
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

    /// `IPS_DST_NAT`, a bit that we do not set.
    const TRANSLATED: u32 = 1 << 5;

    /// The attributes of an entry from 10.244.2.9 to port 80 of 10.244.1.2.
    fn attributes(status: u32, mark: u32) -> Body {
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

    fn message(body: &Body) -> NfnetlinkMessage<'_> {
        let family = family_number(Family::V4);
        NfnetlinkMessage { kind: NEW, family, resource: 0, attributes: Attributes::new(body.as_bytes()) }
    }

    #[test]
    fn an_entry_tells_phase_and_revocation() {
        for (status, mark, phase, state, why) in [
            (0, 0, EntryPhase::Unanswered, RevocationState::Unmarked, "the first packet"),
            (SEEN_REPLY | ASSURED, 0, EntryPhase::Answered, RevocationState::Unmarked, "packets in both directions"),
            (EXPECTED, 0, EntryPhase::Expected, RevocationState::Unmarked, "announced"),
            (EXPECTED | SEEN_REPLY, 0, EntryPhase::Expected, RevocationState::Unmarked, "announced, and answered"),
            (SEEN_REPLY, REVOKED_MARK | 1, EntryPhase::Answered, RevocationState::Revoked, "our mark among others"),
            (SEEN_REPLY, !REVOKED_MARK, EntryPhase::Answered, RevocationState::Unmarked, "others' marks"),
        ] {
            let body = attributes(status, mark);
            let entry = Entry::parse(&message(&body)).unwrap();
            assert_eq!((entry.phase, entry.state), (phase, state), "{why}");
            let transport = Transport::Ports { protocol: 6, destination: 80 };
            let (from, to) = ([10, 244, 2, 9].into(), [10, 244, 1, 2].into());
            assert_eq!(entry.connection, Connection { from, to, transport }, "{why}");
        }
    }

    #[test]
    fn entries_of_other_zones_and_families_are_ignored() {
        let body = attributes(SEEN_REPLY, 0);
        let mut elsewhere = body.clone();
        elsewhere.nest(cta::ZONE, |_| ());
        assert_eq!(Entry::parse(&message(&elsewhere)), None, "another zone");
        assert_eq!(Entry::parse(&NfnetlinkMessage { family: 0, ..message(&body) }), None, "no family");
        assert_eq!(
            Entry::parse(&NfnetlinkMessage { kind: DELETE, ..message(&body) }),
            None,
            "the notification of a deletion"
        );
        assert_eq!(Entry::parse(&message(&Body::default())), None, "nothing");
    }

    #[test]
    fn a_revocation_sets_our_mark_bit_alone_and_an_expiry() {
        let body = attributes(SEEN_REPLY | TRANSLATED, 1);
        let key = Entry::parse(&message(&body)).unwrap().key();
        let revocation = key.revoke(Duration::from_secs(1000));
        let written = Attributes::new(revocation.body.as_bytes());
        let number = |kind| written.find(kind).and_then(|attribute| attribute.be32());
        assert_eq!((number(cta::MARK), number(cta::MARK_MASK)), (Some(REVOKED_MARK), Some(REVOKED_MARK)));
        assert_eq!(number(cta::TIMEOUT), Some(1000));
        assert_eq!(number(cta::STATUS), Some(SEEN_REPLY | ASSURED | FIXED_TIMEOUT | TRANSLATED));
        let deletion = key.delete();
        let id = Attributes::new(deletion.body.as_bytes()).find(cta::ID).and_then(|attribute| attribute.be32());
        assert_eq!(id, Some(7), "and not an entry that has taken its place");
    }
}
