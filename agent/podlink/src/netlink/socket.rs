//! One blocking netlink socket in one network namespace: the only place that sends, receives, and waits.
//!
//! Expected flow: [`NetlinkSocket::open`] in the namespace that is meant, then any number of calls. Each one reads
//! everything that it asked for, so that the socket is always ready for the next. A socket that joined a multicast group
//! is for [`NetlinkSocket::receive`] alone: notifications that arrive between a request and its answer are dropped.
//!
//! Guarantees: a request waits at most [`TIMEOUT`] for each answer; a dump that a change interrupted
//! (`NLM_F_DUMP_INTR`) is repeated; a result belongs to the request with its sequence number.

use std::{
    io,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::{
    socket::{
        MsgFlags, setsockopt,
        sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout, SndBuf, SndBufForce},
    },
    time::{TimeVal, TimeValLike},
};

use super::{
    DUMP_ATTEMPTS, NetlinkError, NetlinkRequest, TIMEOUT,
    frame::{acknowledgement, append, end_of_dump, messages},
};

/// How many requests are sent before their acknowledgements are read. An acknowledgement takes about 800 bytes of the
/// receive buffer (212,992 bytes by default, `net.core.rmem_default`), and the kernel drops what does not fit.
const WINDOW: usize = 128;

/// The size of the buffer for one datagram in bytes. The kernel fills up to 32 KiB per datagram of a dump when the
/// reader offers as much.
const DATAGRAM: usize = 64 << 10;

/// What any socket may send at once, in bytes: less than the smallest `net.core.wmem_default` (212,992, of which the
/// kernel counts half).
const SEND_BUFFER: usize = 64 << 10;

/// A blocking socket, bound for good to the network namespace in which it was opened.
#[derive(Debug)]
pub struct NetlinkSocket {
    inner: Socket,
    port: u32,
    sequence: u32,
    datagram: Vec<u8>,
    /// `SO_RCVTIMEO` as it is set; `None` waits for ever.
    receive_timeout: Option<Duration>,
    /// How many bytes may be sent at once, as far as that was asked for.
    send_buffer: usize,
}

/// What [`NetlinkSocket::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// One datagram; each of its messages was passed on.
    Messages,
    /// Nothing arrived in time.
    Nothing,
    /// The receive buffer was full and the kernel dropped messages (ENOBUFS).
    Overrun,
}

impl NetlinkSocket {
    /// Opens a socket of a protocol (`NETLINK_*`) in the calling thread's network namespace, with extended and capped
    /// acknowledgements.
    ///
    /// # Errors
    /// If the kernel does not know the protocol or refuses permission.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut inner = Socket::new(protocol).map_err(failed("open"))?;
        let port = inner.bind_auto().map_err(failed("bind"))?.port_number();
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        inner.set_ext_ack(true).map_err(failed("set NETLINK_EXT_ACK"))?;
        inner.set_cap_ack(true).map_err(failed("set NETLINK_CAP_ACK"))?;
        Ok(Self {
            inner,
            port,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
            receive_timeout: None,
            send_buffer: SEND_BUFFER,
        })
    }

    /// The port by which the kernel knows this socket.
    #[must_use]
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Makes the kernel check the headers of requests and honour the filters of dumps (`NETLINK_GET_STRICT_CHK`).
    ///
    /// # Errors
    /// If the kernel does not know the option.
    pub fn check_strictly(&mut self) -> Result<(), NetlinkError> {
        self.inner.set_netlink_get_strict_chk(true).map_err(failed("set NETLINK_GET_STRICT_CHK"))
    }

    /// Sets the receive buffer in bytes: beyond `net.core.rmem_max` with NET_ADMIN in the first user namespace, up to
    /// it without.
    ///
    /// # Errors
    /// If the kernel refuses both.
    pub fn set_receive_buffer(&mut self, bytes: usize) -> Result<(), NetlinkError> {
        setsockopt(&self.inner, RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.inner, RcvBuf, &bytes))
            .map_err(|e| failed("enlarge the receive buffer")(e.into()))
    }

    /// Joins a multicast group of the protocol by its number.
    ///
    /// # Errors
    /// If there is no such group, or permission is denied.
    pub fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.inner.add_membership(group).map_err(failed("join the multicast group"))
    }

    /// Sends requests in order and gives one result for each, in order. The kernel executes them one after the other; a
    /// rejected one does not stop those behind it.
    pub fn execute<R: NetlinkRequest>(&mut self, requests: &[R]) -> Vec<Result<(), NetlinkError>> {
        requests.chunks(WINDOW).flat_map(|window| self.execute_window(window)).collect()
    }

    fn execute_window<R: NetlinkRequest>(&mut self, requests: &[R]) -> Vec<Result<(), NetlinkError>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            append(request, NLM_F_ACK, self.next_sequence(), &mut bytes);
        }
        let mut results: Vec<Option<Result<(), NetlinkError>>> = requests.iter().map(|_| None).collect();
        let mut missing = requests.len();
        let mut failure = self.send(&bytes).err();
        while missing > 0 && failure.is_none() {
            let received = self.receive_answer(|header, payload| {
                let place = header.sequence_number.wrapping_sub(first) as usize;
                if header.message_type == NLMSG_ERROR
                    && let Some(result) = results.get_mut(place)
                {
                    missing -= usize::from(result.is_none());
                    *result = Some(acknowledgement(payload));
                }
            });
            failure = received.err();
        }
        // What was not answered failed for the reason that ended the reading.
        let unanswered = || Err(failure.as_ref().map_or(NetlinkError::Timeout, NetlinkError::copy));
        results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect()
    }

    /// Dumps the objects that a request selects; `read` takes what it needs of each message.
    ///
    /// # Errors
    /// If the kernel rejects the request, the socket fails, or changes interrupt each attempt.
    pub fn dump<T>(
        &mut self,
        request: &impl NetlinkRequest,
        mut read: impl FnMut(NetlinkHeader, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.query(request, NLM_F_DUMP, &mut read)? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::DumpInterrupted)
    }

    /// Reads the one object that a request selects.
    ///
    /// # Errors
    /// If the kernel rejects the request, also because there is no such object, or the socket fails.
    pub fn get<T>(
        &mut self,
        request: &impl NetlinkRequest,
        read: impl FnMut(NetlinkHeader, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        Ok(self.query(request, NLM_F_ACK, read)?.and_then(|mut objects| objects.pop()))
    }

    /// `None` for a dump that a change interrupted, in which something may be missing.
    fn query<T>(
        &mut self,
        request: &impl NetlinkRequest,
        flags: u16,
        mut read: impl FnMut(NetlinkHeader, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        append(request, flags, sequence, &mut bytes);
        self.send(&bytes)?;
        let mut objects = Some(Vec::new());
        let mut end = None;
        while end.is_none() {
            self.receive_answer(|header, payload| {
                // Answers to an earlier request that timed out are dropped.
                if header.sequence_number != sequence || end.is_some() {
                    return;
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    objects = None;
                }
                match header.message_type {
                    NLMSG_ERROR => end = Some(acknowledgement(payload)),
                    NLMSG_DONE => end = Some(end_of_dump(payload)),
                    _ => {
                        if let Some(objects) = &mut objects {
                            objects.extend(read(header, payload));
                        }
                    }
                }
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok(objects)
    }

    /// Sends requests in one piece, without a wait for answers: for batches, whose answers are all there when the
    /// system call returns. `requests` come with their flags; gives the sequence number of the first.
    ///
    /// # Errors
    /// If the socket fails; with EMSGSIZE where the kernel allows less at once, which is without NET_ADMIN in the first
    /// user namespace.
    pub fn send_batch<'a, R: NetlinkRequest + 'a>(
        &mut self,
        requests: impl IntoIterator<Item = (&'a R, u16)>,
    ) -> Result<u32, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (request, flags) in requests {
            append(request, flags, self.next_sequence(), &mut bytes);
        }
        if bytes.len() > self.send_buffer {
            let size = bytes.len().next_power_of_two();
            setsockopt(&self.inner, SndBufForce, &size)
                .or_else(|_| setsockopt(&self.inner, SndBuf, &size))
                .map_err(|e| failed("enlarge the send buffer")(e.into()))?;
            self.send_buffer = size;
        }
        self.send(&bytes)?;
        Ok(first)
    }

    /// Passes on every acknowledgement that has arrived, by sequence number, and does not wait for more.
    ///
    /// # Errors
    /// If the socket fails, or an acknowledgement was lost to an overrun.
    pub fn drain_acknowledgements(
        &mut self,
        mut each: impl FnMut(u32, Result<(), NetlinkError>),
    ) -> Result<(), NetlinkError> {
        let mut overrun = false;
        loop {
            let received = self.receive(Some(Duration::ZERO), |header, payload| {
                if header.message_type == NLMSG_ERROR {
                    each(header.sequence_number, acknowledgement(payload));
                }
            })?;
            match received {
                Received::Messages => {}
                // Reported once, before the messages that there was room for.
                Received::Overrun => overrun = true,
                Received::Nothing => return if overrun { Err(lost_answer()) } else { Ok(()) },
            }
        }
    }

    /// Receives one datagram and passes each of its messages on. Waits at most `limit`: for ever if that is `None`, not
    /// at all if it is zero.
    ///
    /// # Errors
    /// If the socket fails: open another one, and assume that anything may have been missed.
    pub fn receive(
        &mut self,
        limit: Option<Duration>,
        mut each: impl FnMut(NetlinkHeader, &[u8]),
    ) -> Result<Received, NetlinkError> {
        let flags = if limit == Some(Duration::ZERO) { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        let deadline = limit.map(|limit| Instant::now() + limit);
        self.set_receive_timeout(limit)?;
        self.datagram.clear();
        loop {
            match self.inner.recv(&mut self.datagram, flags.bits()) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(e) if e.raw_os_error() == Some(nix::Error::ENOBUFS as i32) => return Ok(Received::Overrun),
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(failed("receive")(e)),
                Err(_) if deadline.is_some_and(|deadline| Instant::now() > deadline) => return Ok(Received::Nothing),
                Err(_) => {}
            }
        }
        messages(&self.datagram).for_each(|(header, payload)| each(header, payload));
        Ok(Received::Messages)
    }

    /// Receives one datagram of an answer.
    fn receive_answer(&mut self, each: impl FnMut(NetlinkHeader, &[u8])) -> Result<(), NetlinkError> {
        match self.receive(Some(TIMEOUT), each)? {
            Received::Messages => Ok(()),
            Received::Nothing => Err(NetlinkError::Timeout),
            Received::Overrun => Err(lost_answer()),
        }
    }

    fn set_receive_timeout(&mut self, limit: Option<Duration>) -> Result<(), NetlinkError> {
        // Zero is no time limit to the kernel; a receive that does not wait needs none.
        if limit == Some(Duration::ZERO) || limit == self.receive_timeout {
            return Ok(());
        }
        let micros = limit.map_or(0, |limit| i64::try_from(limit.as_micros()).unwrap_or(i64::MAX).max(1));
        setsockopt(&self.inner, ReceiveTimeout, &TimeVal::microseconds(micros))
            .map_err(|e| failed("set the receive timeout")(e.into()))?;
        self.receive_timeout = limit;
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.inner.send(bytes, 0).map(drop).map_err(failed("send"))
    }

    const fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |source| NetlinkError::Socket { step, source }
}

fn lost_answer() -> NetlinkError {
    failed("receive")(nix::Error::ENOBUFS.into())
}
