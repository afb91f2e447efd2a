//! Route netlink on a blocking socket: the messages of netlink-packet-route over [`NetlinkSocket`].
//!
//! A message that cannot be decoded (a foreign object in a form that we do not know) is left out of a dump and never
//! spoils it.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{NetlinkError, NetlinkRequest, NetlinkSocket};

/// One request: the message, and flags such as `NLM_F_CREATE` beyond those that every request has.
#[derive(Debug, Clone)]
pub struct RouteRequest {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_*` flags of this request.
    pub flags: u16,
}

impl NetlinkRequest for RouteRequest {
    fn message_type(&self) -> u16 {
        self.message.message_type()
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn append_payload(&self, to: &mut Vec<u8>) {
        let start = to.len();
        to.resize(start + self.message.buffer_len(), 0);
        self.message.serialize(&mut to[start..]);
    }
}

/// A blocking route-netlink socket in one network namespace.
#[derive(Debug)]
pub struct RouteSocket(NetlinkSocket);

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses the socket, or is older than its options (4.20).
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = NetlinkSocket::open(NETLINK_ROUTE)?;
        socket.check_strictly()?;
        Ok(Self(socket))
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// If the kernel rejects it, with its error number and text, or the socket fails.
    pub fn execute(&mut self, request: RouteRequest) -> Result<(), NetlinkError> {
        self.execute_all(&[request]).pop().unwrap_or(Ok(()))
    }

    /// Sends requests in order and gives one result for each, in order. A rejected one does not stop those behind it.
    pub fn execute_all(&mut self, requests: &[RouteRequest]) -> Vec<Result<(), NetlinkError>> {
        self.0.execute(requests)
    }

    /// Dumps all objects of a kind; `message` is a `Get…` message with the filter in it.
    ///
    /// # Errors
    /// If the kernel rejects the request, the socket fails, or changes interrupt each attempt.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.0.dump(&RouteRequest { message, flags: 0 }, decode)
    }

    /// Reads one object.
    ///
    /// # Errors
    /// If the kernel rejects the request, also because there is no such object, or the socket fails.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        self.0.get(&RouteRequest { message, flags: 0 }, decode)
    }
}

/// The object in a message; `None` if it has a form that we do not know.
#[must_use]
pub fn decode(header: NetlinkHeader, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    RouteNetlinkMessage::deserialize(&header, payload).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;
    use proptest::prelude::proptest;

    use super::*;
    use crate::netlink::{messages, tests::datagram};

    #[test]
    fn a_request_is_decoded_as_the_message_that_it_was() {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let request = RouteRequest { message: message.clone(), flags: 0 };
        let mut header = NetlinkHeader::default();
        header.message_type = request.message_type();
        let mut payload = Vec::new();
        request.append_payload(&mut payload);
        assert_eq!(decode(header, &payload), Some(message));
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_to_an_end(bytes in datagram()) {
            for (header, payload) in messages(&bytes) {
                let _ = decode(header, payload);
            }
        }
    }
}
