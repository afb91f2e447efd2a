//! One blocking route-netlink socket: requests with an acknowledgement, batches of them, and dumps.
//!
//! Expected flow: [`Socket::open`] in the network namespace that is meant, then any number of calls. Each one reads all
//! that it asked for, so the socket is always ready for the next.
//!
//! Guarantees: no call blocks longer than [`TIMEOUT`] without an answer from the kernel; a dump that the kernel reports
//! as interrupted by a change is repeated; a message that cannot be decoded (a foreign object in a form that we do not
//! know) is left out of a dump and never spoils it.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

use crate::netlink::{BUFFER, DUMP_ATTEMPTS, HEADER, NetlinkError, TIMEOUT, acknowledgement, messages};

/// How many requests go out before their acknowledgements are read. An acknowledgement takes about 800 bytes of the
/// receive buffer (212,992 bytes by default, `net.core.rmem_default`), and the kernel drops what does not fit.
const WINDOW: usize = 128;

/// One request: the message, and flags such as `NLM_F_CREATE` beyond those that every request has.
#[derive(Debug, Clone)]
pub struct Request {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_*` flags of this request.
    pub flags: u16,
}

/// A blocking socket that is bound to one network namespace for good: the one in which it was opened.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What to do with the rest of an answer.
enum Step {
    Continue,
    Finished,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |step| move |source| NetlinkError::Socket { step, source };
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        inner.bind_auto().map_err(failed("bind"))?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        inner.set_netlink_get_strict_chk(true).map_err(failed("ask for strict checks"))?;
        inner.set_ext_ack(true).map_err(failed("ask for error texts"))?;
        inner.set_cap_ack(true).map_err(failed("ask for short acknowledgements"))?;
        let timeout = TimeVal::seconds(TIMEOUT.as_secs().cast_signed());
        setsockopt(&inner, ReceiveTimeout, &timeout).map_err(|e| failed("set the timeout")(e.into()))?;
        Ok(Self { inner, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn request(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.batch(vec![request]).pop().unwrap_or(Ok(()))
    }

    /// Sends requests in order and gives one result for each, in order. The kernel carries them out one after the other;
    /// a refused one does not stop those behind it.
    pub fn batch(&mut self, requests: Vec<Request>) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let window: Vec<_> = requests.by_ref().take(WINDOW).collect();
            let count = window.len();
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for request in window {
                self.sequence = self.sequence.wrapping_add(1);
                emit(request.message, request.flags | NLM_F_ACK, self.sequence, &mut bytes);
            }
            results.extend(self.exchange(&bytes, first, count));
        }
        results
    }

    /// Sends one window and reads its acknowledgements.
    fn exchange(&mut self, bytes: &[u8], first: u32, count: usize) -> Vec<Result<(), NetlinkError>> {
        let mut answers: Vec<Option<Result<(), NetlinkError>>> = (0..count).map(|_| None).collect();
        let mut missing = count;
        let mut failure = self.send(bytes).err();
        while missing > 0 && failure.is_none() {
            failure = self
                .receive(|header, payload| {
                    let place = header.sequence_number.wrapping_sub(first) as usize;
                    if header.message_type == NLMSG_ERROR
                        && let Some(answer) = answers.get_mut(place)
                    {
                        missing -= usize::from(answer.is_none());
                        *answer = Some(acknowledgement(payload, 4 + HEADER));
                    }
                    Step::Continue
                })
                .err();
        }
        // What was not answered failed for the reason that ended the reading.
        let lost = || Err(failure.as_ref().map_or(NetlinkError::Timeout, NetlinkError::once_more));
        answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }

    /// Reads all objects of a kind; `message` is a `Get…` message with the filter in it.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(message)? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// `None` if the kernel says that a change interrupted the dump, so that something may be missing in it.
    fn dump_once(&mut self, message: &RouteNetlinkMessage) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let sequence = self.start(message.clone(), NLM_F_DUMP)?;
        let mut objects = Some(Vec::new());
        let mut end = None;
        while end.is_none() {
            self.receive(|header, payload| {
                if header.sequence_number != sequence {
                    return Step::Continue;
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    objects = None;
                }
                match header.message_type {
                    NLMSG_ERROR => {
                        end = Some(acknowledgement(payload, 4 + HEADER));
                        return Step::Finished;
                    }
                    NLMSG_DONE => {
                        end = Some(acknowledgement(payload, 4));
                        return Step::Finished;
                    }
                    _ => {
                        if let (Some(objects), Some(object)) = (&mut objects, decode(header, payload)) {
                            objects.push(object);
                        }
                    }
                }
                Step::Continue
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok(objects)
    }

    /// Reads one object. A refusal is an error, also that there is no such object.
    pub fn read(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        let sequence = self.start(message, NLM_F_ACK)?;
        let mut object = None;
        let mut end = None;
        while end.is_none() {
            self.receive(|header, payload| {
                if header.sequence_number != sequence {
                    return Step::Continue;
                }
                if header.message_type == NLMSG_ERROR {
                    end = Some(acknowledgement(payload, 4 + HEADER));
                    return Step::Finished;
                }
                object = decode(header, payload);
                Step::Continue
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok(object)
    }

    fn start(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        emit(message, flags, self.sequence, &mut bytes);
        self.send(&bytes)?;
        Ok(self.sequence)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.inner.send(bytes, 0).map(|_| ()).map_err(|source| NetlinkError::Socket { step: "send", source })
    }

    /// Receives one datagram and hands its messages on, header and payload.
    fn receive(&mut self, mut each: impl FnMut(NetlinkHeader, &[u8]) -> Step) -> Result<(), NetlinkError> {
        self.buffer.clear();
        loop {
            match self.inner.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(NetlinkError::Timeout),
                Err(source) => return Err(NetlinkError::Socket { step: "receive", source }),
            }
        }
        for (header, payload) in messages(&self.buffer) {
            if let Step::Finished = each(header, payload) {
                break;
            }
        }
        Ok(())
    }
}

/// The object that a message carries; `None` if it has a form that we cannot read.
pub fn decode(header: NetlinkHeader, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    use netlink_packet_core::NetlinkDeserializable;
    RouteNetlinkMessage::deserialize(&header, payload).ok()
}

/// Appends a request in the form of the wire.
fn emit(message: RouteNetlinkMessage, flags: u16, sequence: u32, bytes: &mut Vec<u8>) {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;
    use proptest::prelude::proptest;

    use super::*;
    use crate::netlink::tests::datagram;

    #[test]
    fn what_is_sent_is_read_again_message_by_message() {
        let mut bytes = Vec::new();
        for sequence in [7, 8] {
            emit(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_ACK, sequence, &mut bytes);
        }
        let seen: Vec<_> = messages(&bytes).map(|(h, payload)| (h.sequence_number, h.flags, payload.len())).collect();
        assert_eq!(seen, [(7, NLM_F_REQUEST | NLM_F_ACK, 16), (8, NLM_F_REQUEST | NLM_F_ACK, 16)]);
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
