//! The kernel's word that somebody changed our table.
//!
//! Every commit in the network namespace is announced on a netlink group: first what changed, object by object, then the
//! new generation of the whole ruleset. Other people's tables pass by here too, and are only looked at for their name.

use std::{collections::VecDeque, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::{
    socket::{
        setsockopt,
        sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout},
    },
    time::{TimeVal, TimeValLike},
};
use towpath_core::names::TABLE;

use super::{
    NftError,
    message::{self, Message},
};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// Room for a transaction of some ten thousand elements, beyond `net.core.rmem_max`; what is more is an overrun.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The kernel packs notifications into messages of up to 32 KiB.
const DATAGRAM: usize = 64 << 10;

/// Something happened to our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// A transaction touched it.
    Changed {
        /// The generation of the namespace's ruleset that began with it.
        generation: u32,
        /// The name of the process that did it, as far as the kernel tells.
        process: String,
    },
    /// The kernel had more to tell than there was room for: anything may have happened.
    Overrun,
}

/// A listener in one network namespace.
#[derive(Debug)]
pub struct NftEvents {
    socket: Socket,
    buffer: Vec<u8>,
    /// Of the transaction that is being announced.
    touched: bool,
    ready: VecDeque<TableChange>,
}

impl NftEvents {
    /// Listens in the network namespace of the calling thread; what happens from now on is heard.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or does not let us listen.
    pub fn open() -> Result<Self, NftError> {
        let socket = open_socket()?;
        // Beyond the limit only with NET_ADMIN in the first user namespace.
        let enlarged = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
        let enlarged = enlarged.or_else(|_| setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER));
        enlarged.map_err(|e| netlink("enlarge the buffer", e.into()))?;
        socket.add_membership(GROUP).map_err(|e| netlink("join the group", e))?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), touched: false, ready: VecDeque::new() })
    }

    /// Waits, as long as it takes, for the next change of our table.
    ///
    /// # Errors
    /// If the socket fails: open a new listener, and take it that anything may have happened.
    pub fn next_change(&mut self) -> Result<TableChange, NftError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => self.hear(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(nix::Error::ENOBUFS as i32) => {
                    self.touched = false;
                    return Ok(TableChange::Overrun);
                }
                Err(e) => return Err(netlink("listen", e)),
            }
        }
    }

    fn hear(&mut self) {
        for message in message::parse(&self.buffer) {
            match message {
                Message::Object { table } => self.touched |= table == TABLE,
                Message::Generation { generation, process } => {
                    if std::mem::take(&mut self.touched) {
                        self.ready.push_back(TableChange::Changed { generation, process: process.to_owned() });
                    }
                }
            }
        }
    }
}

/// Asks for the current generation.
#[derive(Debug)]
pub(super) struct GenerationSocket {
    socket: Socket,
}

impl GenerationSocket {
    pub(super) fn open() -> Result<Self, NftError> {
        let socket = open_socket()?;
        let bound = TimeVal::seconds(10);
        setsockopt(&socket, ReceiveTimeout, &bound).map_err(|e| netlink("set the timeout", e.into()))?;
        Ok(Self { socket })
    }

    pub(super) fn current(&self) -> Result<u32, NftError> {
        self.socket.send(&message::get_generation(), 0).map_err(|e| netlink("ask for the generation", e))?;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        self.socket.recv(&mut buffer, 0).map_err(|e| netlink("read the generation", e))?;
        let answer = message::parse(&buffer).find_map(|message| match message {
            Message::Generation { generation, .. } => Some(generation),
            Message::Object { .. } => None,
        });
        let missing = || netlink("read the generation", io::Error::from(io::ErrorKind::InvalidData));
        answer.ok_or_else(missing)
    }
}

fn open_socket() -> Result<Socket, NftError> {
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(|e| netlink("open a socket", e))?;
    socket.bind_auto().map_err(|e| netlink("bind the socket", e))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(|e| netlink("connect to the kernel", e))?;
    Ok(socket)
}

const fn netlink(step: &'static str, source: io::Error) -> NftError {
    NftError::Netlink { step, source }
}
