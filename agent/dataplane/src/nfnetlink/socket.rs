//! nfnetlink on a blocking socket: netfilter's messages over [`NetlinkSocket`].
//!
//! Keep such a socket open: when one is closed the kernel finishes what nf_tables has deferred, which takes tens of
//! milliseconds after elements were deleted (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c).

use std::time::Duration;

use netlink_packet_core::NetlinkHeader;
use netlink_sys::protocols::NETLINK_NETFILTER;
use towpath_podlink::netlink::{NetlinkError, NetlinkSocket, Received};

use super::{NfnetlinkMessage, NfnetlinkRequest};

/// The receive buffer in bytes, beyond `net.core.rmem_max`: notifications about some ten thousand objects.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A blocking nfnetlink socket in one network namespace.
#[derive(Debug)]
pub struct NfnetlinkSocket {
    pub(super) inner: NetlinkSocket,
}

impl NfnetlinkSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel has no nfnetlink, or permission is denied.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut inner = NetlinkSocket::open(NETLINK_NETFILTER)?;
        inner.set_receive_buffer(RECEIVE_BUFFER)?;
        Ok(Self { inner })
    }

    /// The port by which the kernel knows this socket.
    #[must_use]
    pub const fn port(&self) -> u32 {
        self.inner.port()
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// If the kernel rejects it, with its error number and text, or the socket fails.
    pub fn execute(&mut self, request: &NfnetlinkRequest) -> Result<(), NetlinkError> {
        self.execute_all(std::slice::from_ref(request)).pop().unwrap_or(Ok(()))
    }

    /// Sends requests in order and gives one result for each, in order. A rejected one does not stop those behind it.
    pub fn execute_all(&mut self, requests: &[NfnetlinkRequest]) -> Vec<Result<(), NetlinkError>> {
        self.inner.execute(requests)
    }

    /// Dumps all objects that a `…GET` request selects; `read` takes what it needs of each.
    ///
    /// # Errors
    /// If the kernel rejects the request, the socket fails, or changes interrupt each attempt.
    pub fn dump<T>(
        &mut self,
        request: &NfnetlinkRequest,
        mut read: impl FnMut(NfnetlinkMessage<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.inner.dump(request, |header, payload| NfnetlinkMessage::decode(header, payload).and_then(&mut read))
    }

    /// Reads the one object that a `…GET` request selects; `read` takes what it needs of it.
    ///
    /// # Errors
    /// If the kernel rejects the request, also because there is no such object (ENOENT), or the socket fails.
    pub fn get<T>(
        &mut self,
        request: &NfnetlinkRequest,
        mut read: impl FnMut(NfnetlinkMessage<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        self.inner.get(request, |header, payload| NfnetlinkMessage::decode(header, payload).and_then(&mut read))
    }

    /// Joins a multicast group (`NFNLGRP_*`): the socket receives its notifications from now on.
    ///
    /// # Errors
    /// If permission is denied.
    pub fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        self.inner.join(group)
    }

    /// Receives one datagram of notifications and passes each message on. Waits at most `limit`, for ever if that is
    /// `None`.
    ///
    /// # Errors
    /// If the socket fails: open another one, and assume that anything may have been missed.
    pub fn receive(
        &mut self,
        limit: Option<Duration>,
        mut each: impl FnMut(NfnetlinkMessage<'_>),
    ) -> Result<Received, NetlinkError> {
        self.inner.receive(limit, |header: NetlinkHeader, payload: &[u8]| {
            NfnetlinkMessage::decode(header, payload).into_iter().for_each(&mut each);
        })
    }
}
