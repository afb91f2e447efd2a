//! Requests over rtnetlink's connection: executed in windows, dumps, single objects.
//!
//! The calling thread drives the connection itself. The kernel executes a route-netlink request within the system call
//! that sends it, and waits there for the RTNL lock: an async runtime could do nothing else meanwhile. So the requests
//! belong on a thread of their own, and a thread of their own needs no runtime: it polls the connection and waits with
//! poll(2), which also gives exact time limits.
//!
//! rtnetlink's `Handle` is not used. It sends one request per datagram, which makes 3,000 changes a third slower, and
//! its `execute()` falls short in what follows, which is done here:
//! - interrupted dumps: it drops the header with `NLM_F_DUMP_INTR`, and the error number in `NLMSG_DONE`;
//! - time limits: it waits for ever for an answer that was lost to an overrun;
//! - errors: it does not decode the kernel's text (extended acknowledgement), and takes a connection that ended for
//!   success, because both end the stream of answers;
//! - socket options: it turns on `NETLINK_GET_STRICT_CHK`, but neither `NETLINK_EXT_ACK` nor `NETLINK_CAP_ACK`.

use std::{
    fmt, io,
    ops::ControlFlow,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{Future, Stream, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use rtnetlink::proto::{Connection, ConnectionHandle, new_connection_with_socket};
use towpath_podlink::{
    netlink::{DUMP_ATTEMPTS, HEADER, NetlinkError, TIMEOUT, outcome},
    route::RouteRequest,
};

use super::polled_socket::PolledSocket;

#[cfg(test)]
mod tests;

/// How many requests are sent before their acknowledgements are read. An acknowledgement takes about 800 bytes of the
/// receive buffer (212,992 bytes by default, `net.core.rmem_default`), and the kernel drops what does not fit.
const WINDOW: usize = 128;

/// Who is asked. Tests ask another socket.
#[derive(Debug, Clone, Copy)]
struct Peer {
    protocol: isize,
    address: SocketAddr,
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// A connection to the route netlink of one network namespace. One that ended is opened again, so that calls come from
/// threads in that namespace. One that is late or overrun goes on: its answers belong to earlier sequence numbers.
pub(crate) struct RouteConnection {
    peer: Peer,
    time_limit: Duration,
    open: OpenConnection,
}

impl fmt::Debug for RouteConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteConnection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl RouteConnection {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses the socket or one of its options.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Self::open_to(Peer { protocol: NETLINK_ROUTE, address: SocketAddr::new(0, 0) }, TIMEOUT)
    }

    /// `time_limit` is for each answer.
    fn open_to(peer: Peer, time_limit: Duration) -> Result<Self, NetlinkError> {
        Ok(Self { peer, time_limit, open: OpenConnection::new(peer)? })
    }

    /// Sends requests in order and gives one result for each, in order. A rejected one does not stop those behind it.
    pub(crate) fn execute_all(&mut self, requests: Vec<RouteRequest>) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter();
        while requests.len() > 0 {
            let end = results.len() + requests.len().min(WINDOW);
            let failure = self.execute_window(requests.by_ref().take(WINDOW), end, &mut results).err();
            // What was not answered failed for the reason that ended the reading.
            results.resize_with(end, || Err(failure.as_ref().map_or(NetlinkError::Timeout, NetlinkError::copy)));
        }
        results
    }

    /// Appends results up to `end`. The kernel acknowledges requests in the order in which they were sent, and drops
    /// acknowledgements only with an overrun, which is reported before those that there was room for.
    fn execute_window(
        &mut self,
        window: impl Iterator<Item = RouteRequest>,
        end: usize,
        results: &mut Vec<Result<(), NetlinkError>>,
    ) -> Result<(), NetlinkError> {
        let window = window.map(|request| message(request.message, request.flags | NLM_F_ACK));
        self.exchange(window, |answer| {
            if let NetlinkPayload::Error(acknowledgement) = &answer.payload {
                results.push(acknowledged(acknowledgement));
            }
            if results.len() == end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    }

    /// Dumps the objects that a `Get…` message selects; `read` takes what it needs of each.
    ///
    /// # Errors
    /// If the kernel rejects the request, the socket fails, or changes interrupt each attempt.
    pub(crate) fn dump<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        mut read: impl FnMut(&RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.query(request, NLM_F_DUMP, &mut read)? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::DumpInterrupted)
    }

    /// Reads the one object that a `Get…` message selects.
    ///
    /// # Errors
    /// If the kernel rejects the request, also because there is no such object, or the socket fails.
    pub(crate) fn get<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        read: impl FnMut(&RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        Ok(self.query(request, NLM_F_ACK, read)?.and_then(|mut objects| objects.pop()))
    }

    /// `None` for a dump that a change interrupted, in which something may be missing. An object that cannot be decoded
    /// (a foreign one in a form that netlink-packet-route does not know) is left out by netlink-proto.
    fn query<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        flags: u16,
        mut read: impl FnMut(&RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let mut objects = Some(Vec::new());
        self.exchange([message(request.clone(), flags)], |answer| {
            if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                objects = None;
            }
            match answer.payload {
                NetlinkPayload::InnerMessage(object) => {
                    if let Some(objects) = &mut objects {
                        objects.extend(read(&object));
                    }
                    ControlFlow::Continue(())
                }
                NetlinkPayload::Error(acknowledgement) => ControlFlow::Break(acknowledged(&acknowledgement)),
                NetlinkPayload::Done(end) => ControlFlow::Break(outcome(end.code, &end.extended_ack)),
                _ => ControlFlow::Continue(()),
            }
        })??;
        Ok(objects)
    }

    fn exchange<T>(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
        take: impl FnMut(Message) -> ControlFlow<T>,
    ) -> Result<T, NetlinkError> {
        if self.open.connection.should_shut_down() {
            self.open = OpenConnection::new(self.peer)?;
        }
        self.open.exchange(self.peer.address, messages, self.time_limit, take)
    }
}

struct OpenConnection {
    connection: Connection<RouteNetlinkMessage, PolledSocket>,
    handle: ConnectionHandle<RouteNetlinkMessage>,
    /// What belongs to no request: the report of an overrun.
    unsolicited: UnboundedReceiver<(Message, SocketAddr)>,
}

impl OpenConnection {
    fn new(peer: Peer) -> Result<Self, NetlinkError> {
        let (mut connection, handle, unsolicited) =
            new_connection_with_socket::<_, PolledSocket>(peer.protocol).map_err(failed("open"))?;
        // Otherwise success is the end of the stream of answers, as is the end of the connection.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&peer.address).map_err(failed("connect"))?;
        socket.set_netlink_get_strict_chk(true).map_err(failed("set NETLINK_GET_STRICT_CHK"))?;
        socket.set_ext_ack(true).map_err(failed("set NETLINK_EXT_ACK"))?;
        socket.set_cap_ack(true).map_err(failed("set NETLINK_CAP_ACK"))?;
        Ok(Self { connection, handle, unsolicited })
    }

    /// Sends messages in one datagram and passes the answers on until `take` has what it waits for.
    fn exchange<T>(
        &mut self,
        peer: SocketAddr,
        messages: impl IntoIterator<Item = Message>,
        time_limit: Duration,
        mut take: impl FnMut(Message) -> ControlFlow<T>,
    ) -> Result<T, NetlinkError> {
        let answers = self.handle.request_batch(messages, peer).map_err(|_| connection_ended())?;
        let mut answers = pin!(answers);
        let mut context = Context::from_waker(Waker::noop());
        // Sent before anything is polled: the answers are then there at the first poll, and need no wait.
        self.connection.poll_requests(&mut context);
        self.connection.poll_send_messages(&mut context);
        loop {
            let connection = Pin::new(&mut self.connection).poll(&mut context);
            self.check_overrun(&mut context)?;
            while let Poll::Ready(answer) = answers.as_mut().poll_next(&mut context) {
                if let ControlFlow::Break(result) = take(answer.ok_or_else(connection_ended)?) {
                    return Ok(result);
                }
            }
            if connection.is_ready() {
                return Err(connection_ended());
            }
            self.connection.socket_mut().wait(time_limit)?;
        }
    }

    /// netlink-proto reports an overrun without the request whose answer was dropped.
    fn check_overrun(&mut self, context: &mut Context<'_>) -> Result<(), NetlinkError> {
        while let Poll::Ready(Some((message, _))) = Pin::new(&mut self.unsolicited).poll_next(context) {
            if matches!(message.payload, NetlinkPayload::Overrun(_)) {
                return Err(failed("receive")(Errno::ENOBUFS.into()));
            }
        }
        Ok(())
    }
}

fn message(object: RouteNetlinkMessage, flags: u16) -> Message {
    let mut message = Message::from(object);
    message.header.flags = NLM_F_REQUEST | flags;
    message
}

/// The payload after the error number is the header of the request, because of `NETLINK_CAP_ACK`, and attributes.
fn acknowledged(acknowledgement: &ErrorMessage) -> Result<(), NetlinkError> {
    outcome(acknowledgement.raw_code(), acknowledgement.header.get(HEADER..).unwrap_or_default())
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |source| NetlinkError::Socket { step, source }
}

/// netlink-proto logs why, as text alone.
fn connection_ended() -> NetlinkError {
    failed("receive")(io::ErrorKind::UnexpectedEof.into())
}
