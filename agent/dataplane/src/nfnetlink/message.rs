//! Messages: `struct nlmsghdr`, behind it `struct nfgenmsg`, then attributes.

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader};

use super::{Attributes, Body};
use towpath_podlink::netlink::HEADER;

/// `struct nfgenmsg`: a family, a version that is 0, and two bytes that each subsystem uses as it likes.
const GENERIC_HEADER: usize = 4;

/// What a message is: the subsystem (`NFNL_SUBSYS_*`) and the number of the message in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The subsystem.
    pub subsystem: u8,
    /// The number in it.
    pub number: u8,
}

impl Kind {
    pub(super) const fn of(message_type: u16) -> Self {
        let [subsystem, number] = message_type.to_be_bytes();
        Self { subsystem, number }
    }
}

/// A message to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is.
    pub kind: Kind,
    /// `NLM_F_CREATE` and the like; those that every request needs are added when it is sent.
    pub flags: u16,
    /// `NFPROTO_*` or `AF_*`.
    pub family: u8,
    /// `res_id` of the header: a group of the packet log, the subsystem of a batch, else 0.
    pub resource: u16,
    /// Its attributes.
    pub body: Body,
}

impl Request {
    /// Without attributes, flags and resource.
    #[must_use]
    pub const fn new(kind: Kind, family: u8) -> Self {
        Self { kind, flags: 0, family, resource: 0, body: Body::EMPTY }
    }

    /// Appends it in the form of the wire.
    pub(super) fn emit(&self, more_flags: u16, sequence: u32, to: &mut Vec<u8>) {
        let length = HEADER + GENERIC_HEADER + self.body.len();
        let length = u32::try_from(length).expect("a message is far below 4 GiB");
        to.extend(length.to_ne_bytes());
        to.extend(u16::from_be_bytes([self.kind.subsystem, self.kind.number]).to_ne_bytes());
        to.extend((NLM_F_REQUEST | self.flags | more_flags).to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        // Our port: the kernel knows who is asking.
        to.extend([0; 4]);
        to.extend([self.family, 0]);
        to.extend(self.resource.to_be_bytes());
        to.extend(self.body.as_bytes());
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// What it is.
    pub kind: Kind,
    /// `NFPROTO_*` or `AF_*`.
    pub family: u8,
    /// `res_id` of the header.
    pub resource: u16,
    /// Its attributes.
    pub attributes: Attributes<'a>,
}

impl<'a> Answer<'a> {
    /// `None` for what is no message of netfilter, or is cut off.
    pub(super) fn read(header: NetlinkHeader, payload: &'a [u8]) -> Option<Self> {
        let generic = payload.get(..GENERIC_HEADER)?;
        let kind = Kind::of(header.message_type);
        // Types of messages below 16 are netlink's own, and those without a subsystem are batches' bounds.
        (kind.subsystem != 0).then(|| Self {
            kind,
            family: generic[0],
            resource: u16::from_be_bytes([generic[2], generic[3]]),
            attributes: Attributes::new(&payload[GENERIC_HEADER..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_podlink::netlink::messages;

    #[test]
    fn what_is_sent_is_read_again_message_by_message() {
        let kind = Kind { subsystem: 10, number: 3 };
        let mut request = Request { flags: 0x400, resource: 0x0102, ..Request::new(kind, 1) };
        request.body.text(1, "towpath");
        let mut bytes = Vec::new();
        for sequence in [7, 8] {
            request.emit(4, sequence, &mut bytes);
        }
        let seen: Vec<_> = messages(&bytes).collect();
        assert_eq!(seen.iter().map(|(header, _)| header.sequence_number).collect::<Vec<_>>(), [7, 8]);
        for (header, payload) in seen {
            assert_eq!(header.flags, 0x405);
            let answer = Answer::read(header, payload).unwrap();
            assert_eq!((answer.kind, answer.family, answer.resource), (kind, 1, 0x0102));
            assert_eq!(answer.attributes.find(1).and_then(|a| a.text()), Some("towpath"));
        }
    }
}
