//! Messages: behind the netlink header a `struct nfgenmsg`, then attributes.

use netlink_packet_core::NetlinkHeader;
use towpath_podlink::netlink::NetlinkRequest;

use super::{Attributes, Body};

/// The length of `struct nfgenmsg` in bytes: a family, a version that is 0, and two bytes that each subsystem uses in its
/// own way (`res_id`).
const GENERIC_HEADER: usize = 4;

/// The type of a message: the subsystem (`NFNL_SUBSYS_*`) and the message's number in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "names are self-explanatory")]
pub struct MessageType {
    pub subsystem: u8,
    pub number: u8,
}

/// A message to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfnetlinkRequest {
    /// The type of the message.
    pub kind: MessageType,
    /// `NLM_F_CREATE` and the like; those that every request has are added when it is sent.
    pub flags: u16,
    /// `NFPROTO_*` or `AF_*`.
    pub family: u8,
    /// `res_id` of the header: a group of nflog, the subsystem of a batch, else 0.
    pub resource: u16,
    /// The attributes.
    pub body: Body,
}

impl NfnetlinkRequest {
    /// A request without attributes, flags and resource.
    #[must_use]
    pub const fn new(kind: MessageType, family: u8) -> Self {
        Self { kind, flags: 0, family, resource: 0, body: Body::EMPTY }
    }
}

impl NetlinkRequest for NfnetlinkRequest {
    fn message_type(&self) -> u16 {
        u16::from_be_bytes([self.kind.subsystem, self.kind.number])
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn append_payload(&self, to: &mut Vec<u8>) {
        to.extend([self.family, 0]);
        to.extend(self.resource.to_be_bytes());
        to.extend(self.body.as_bytes());
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NfnetlinkMessage<'a> {
    /// The type of the message.
    pub kind: MessageType,
    /// `NFPROTO_*` or `AF_*`.
    pub family: u8,
    /// `res_id` of the header.
    pub resource: u16,
    /// The attributes.
    pub attributes: Attributes<'a>,
}

impl<'a> NfnetlinkMessage<'a> {
    /// `None` for a message that is not netfilter's, or is truncated.
    pub(super) fn decode(header: NetlinkHeader, payload: &'a [u8]) -> Option<Self> {
        let generic = payload.get(..GENERIC_HEADER)?;
        let [subsystem, number] = header.message_type.to_be_bytes();
        // Types of messages below 16 are netlink's own, and those without a subsystem are batches' bounds.
        (subsystem != 0).then(|| Self {
            kind: MessageType { subsystem, number },
            family: generic[0],
            resource: u16::from_be_bytes([generic[2], generic[3]]),
            attributes: Attributes::new(&payload[GENERIC_HEADER..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_decoded_as_the_message_that_it_was() {
        let kind = MessageType { subsystem: 10, number: 3 };
        let mut request = NfnetlinkRequest { flags: 0x400, resource: 0x0102, ..NfnetlinkRequest::new(kind, 1) };
        request.body.text(1, "towpath");
        let mut header = NetlinkHeader::default();
        header.message_type = request.message_type();
        let mut payload = Vec::new();
        request.append_payload(&mut payload);
        let message = NfnetlinkMessage::decode(header, &payload).unwrap();
        assert_eq!((message.kind, message.family, message.resource), (kind, 1, 0x0102));
        assert_eq!(message.attributes.find(1).and_then(|a| a.text()), Some("towpath"));
    }
}
