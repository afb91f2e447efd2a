//! One blocking socket in one network namespace.
//!
//! Expected flow: [`Socket::open`] in the namespace that is meant, then any number of calls. Each one reads all that it
//! asked for, so the socket is always ready for the next. A socket that listens ([`Socket::join`], [`Socket::hear`])
//! should do nothing else: what comes of its own accord between an answer is passed over.
//!
//! Guarantees: no call waits longer than [`TIMEOUT`] for an answer of the kernel, which it gives
//! within the system call that asks; a dump that the kernel reports as interrupted by a change is repeated.
//!
//! Such a socket is to be kept: when one is closed the kernel finishes what nf_tables has put off until later, which
//! takes tens of milliseconds after elements were deleted (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c).

use std::{
    io,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader};
use netlink_sys::{SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::{
    socket::{
        MsgFlags, setsockopt,
        sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout, SndBuf, SndBufForce},
    },
    time::{TimeVal, TimeValLike},
};

use super::{Answer, Request};
use towpath_podlink::netlink::{BUFFER, DUMP_ATTEMPTS, HEADER, NetlinkError, TIMEOUT, acknowledgement, messages};

/// Room for what is told between two readings, beyond `net.core.rmem_max`: some ten thousand objects.
const RECEIVE_ROOM: usize = 8 << 20;

/// How many requests go out before their acknowledgements are read: see [`RECEIVE_ROOM`], and an acknowledgement takes
/// about 800 bytes of it, of the 212,992 that there are at least.
const WINDOW: usize = 128;

/// What every socket may send at once: less than the smallest `net.core.wmem_default` (212,992, of which the kernel
/// counts half).
const SEND_ROOM: usize = 64 << 10;

/// A socket that is bound to one network namespace for good: the one in which it was opened.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
    patience: Option<Duration>,
    port: u32,
    /// What may be sent at once, as far as it was asked for.
    send_room: usize,
}

/// What came of the kernel's own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Messages; each was handed on.
    Messages,
    /// Nothing within the time.
    Nothing,
    /// There was no room for what the kernel had to tell, and some of it is lost.
    Overrun,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel has no netfilter netlink, or does not let us near it.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut inner = netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        let port = inner.bind_auto().map_err(failed("bind"))?.port_number();
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        inner.set_ext_ack(true).map_err(failed("ask for error texts"))?;
        inner.set_cap_ack(true).map_err(failed("ask for short acknowledgements"))?;
        // Beyond the limit only with NET_ADMIN in the first user namespace.
        let enlarged = setsockopt(&inner, RcvBufForce, &RECEIVE_ROOM);
        let enlarged = enlarged.or_else(|_| setsockopt(&inner, RcvBuf, &RECEIVE_ROOM));
        enlarged.map_err(|e| failed("enlarge the buffer")(e.into()))?;
        let mut socket =
            Self { inner, sequence: 0, buffer: Vec::with_capacity(BUFFER), patience: None, port, send_room: SEND_ROOM };
        socket.wait_at_most(Some(TIMEOUT))?;
        Ok(socket)
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// If the kernel refuses it, with its number and words, or the socket fails.
    pub fn request(&mut self, request: &Request) -> Result<(), NetlinkError> {
        self.requests(std::slice::from_ref(request)).pop().unwrap_or(Ok(()))
    }

    /// Sends requests in order and gives one result for each, in order. The kernel carries them out one after the other;
    /// a refused one does not stop those behind it.
    pub fn requests(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        requests.chunks(WINDOW).flat_map(|window| self.window(window)).collect()
    }

    fn window(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            request.emit(NLM_F_ACK, self.next_sequence(), &mut bytes);
        }
        let mut answers: Vec<Option<Result<(), NetlinkError>>> = requests.iter().map(|_| None).collect();
        let mut missing = requests.len();
        let mut failure = self.send(&bytes).err();
        while missing > 0 && failure.is_none() {
            let read = self.receive(|header, payload| {
                let place = header.sequence_number.wrapping_sub(first) as usize;
                if header.message_type == NLMSG_ERROR
                    && let Some(answer) = answers.get_mut(place)
                {
                    missing -= usize::from(answer.is_none());
                    *answer = Some(acknowledgement(payload, 4 + HEADER));
                }
            });
            failure = read.err();
        }
        // What was not answered failed for the reason that ended the reading.
        let lost = || Err(failure.as_ref().map_or(NetlinkError::Timeout, NetlinkError::once_more));
        answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }

    /// Reads all objects that a `…GET` request asks for; `read` takes what it needs of each.
    ///
    /// # Errors
    /// If the kernel refuses, the socket fails, or the state changes during each attempt.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.ask(request, NLM_F_DUMP, &mut read)? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Unsteady)
    }

    /// Reads the one object that a `…GET` request asks for; `read` takes what it needs of it.
    ///
    /// # Errors
    /// If the kernel refuses, also because there is no such object (ENOENT), or the socket fails.
    pub fn get<T>(
        &mut self,
        request: &Request,
        read: impl FnMut(Answer<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        Ok(self.ask(request, NLM_F_ACK, read)?.and_then(|mut objects| objects.pop()))
    }

    /// `None` if the kernel says that a change interrupted a dump, so that something may be missing in it.
    fn ask<T>(
        &mut self,
        request: &Request,
        flags: u16,
        mut read: impl FnMut(Answer<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        request.emit(flags, sequence, &mut bytes);
        self.send(&bytes)?;
        let mut objects = Some(Vec::new());
        let mut end = None;
        while end.is_none() {
            self.receive(|header, payload| {
                if header.sequence_number != sequence {
                    return;
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    objects = None;
                }
                match header.message_type {
                    NLMSG_ERROR => end = Some(acknowledgement(payload, 4 + HEADER)),
                    NLMSG_DONE => end = Some(acknowledgement(payload, 4)),
                    _ => {
                        if let (Some(objects), Some(answer)) = (&mut objects, Answer::read(header, payload)) {
                            objects.extend(read(answer));
                        }
                    }
                }
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok(objects)
    }

    /// Joins a multicast group (`NFNLGRP_*`): what happens from now on is heard.
    ///
    /// # Errors
    /// If the kernel does not let us listen.
    pub fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.inner.add_membership(group).map_err(failed("join the group"))
    }

    /// Waits for what the kernel tells of its own accord, at most `within`, for ever if that is `None`, and hands on
    /// each message of the one datagram that came.
    ///
    /// # Errors
    /// If the socket fails: open another one, and take it that anything may have been missed.
    pub fn hear(&mut self, within: Option<Duration>, mut each: impl FnMut(Answer<'_>)) -> Result<Heard, NetlinkError> {
        self.wait_at_most(within)?;
        let heard = self.receive(|header, payload| {
            if let Some(answer) = Answer::read(header, payload) {
                each(answer);
            }
        });
        match heard {
            Ok(()) => Ok(Heard::Messages),
            Err(NetlinkError::Timeout) => Ok(Heard::Nothing),
            Err(NetlinkError::Socket { source, .. }) if is_overrun(&source) => Ok(Heard::Overrun),
            Err(error) => Err(error),
        }
    }

    fn wait_at_most(&mut self, patience: Option<Duration>) -> Result<(), NetlinkError> {
        let bound = patience.map(|bound| bound.max(Duration::from_millis(1)));
        if self.patience != bound {
            // Zero stands for no bound.
            let micros = bound.map_or(0, |bound| i64::try_from(bound.as_micros()).unwrap_or(i64::MAX));
            let set = setsockopt(&self.inner, ReceiveTimeout, &TimeVal::microseconds(micros));
            set.map_err(|e| failed("set the timeout")(e.into()))?;
            self.patience = bound;
        }
        Ok(())
    }

    /// Sends what is answered within the usual time.
    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.wait_at_most(Some(TIMEOUT))?;
        self.inner.send(bytes, 0).map(drop).map_err(failed("send"))
    }

    /// A number for the next request.
    pub(super) const fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends bytes that must go out in one piece, however many.
    ///
    /// Where the kernel allows less than that (without NET_ADMIN in the first user namespace), they are refused with
    /// EMSGSIZE.
    pub(super) fn send_at_once(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        if bytes.len() > self.send_room {
            let room = bytes.len().next_power_of_two();
            let enlarged = setsockopt(&self.inner, SndBufForce, &room);
            let enlarged = enlarged.or_else(|_| setsockopt(&self.inner, SndBuf, &room));
            enlarged.map_err(|e| failed("enlarge the buffer for sending")(e.into()))?;
            self.send_room = room;
        }
        self.send(bytes)
    }

    /// Hands on all that has come, and does not wait for more.
    pub(super) fn receive_all(&mut self, mut each: impl FnMut(NetlinkHeader, &[u8])) -> Result<(), NetlinkError> {
        let mut overrun = None;
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, MsgFlags::MSG_DONTWAIT.bits()) {
                Ok(_) => messages(&self.buffer).for_each(|(header, payload)| each(header, payload)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return overrun.map_or(Ok(()), Err),
                // Said once, before what there was room for.
                Err(e) if is_overrun(&e) => overrun = Some(failed("receive")(e)),
                Err(e) => return Err(failed("receive")(e)),
            }
        }
    }

    /// The number by which the kernel knows this socket.
    #[must_use]
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Receives one datagram and hands its messages on, header and payload.
    fn receive(&mut self, mut each: impl FnMut(NetlinkHeader, &[u8])) -> Result<(), NetlinkError> {
        self.buffer.clear();
        let end = self.patience.map(|bound| Instant::now() + bound);
        loop {
            match self.inner.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(NetlinkError::Timeout),
                Err(e) => return Err(failed("receive")(e)),
            }
            if end.is_some_and(|end| Instant::now() > end) {
                return Err(NetlinkError::Timeout);
            }
        }
        messages(&self.buffer).for_each(|(header, payload)| each(header, payload));
        Ok(())
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |source| NetlinkError::Socket { step, source }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::Error::ENOBUFS as i32)
}
