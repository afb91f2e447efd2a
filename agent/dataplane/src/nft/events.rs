//! Notifications about changes of our table.
//!
//! The kernel notifies a multicast group of every commit in the network namespace: first the changed objects, one by one,
//! then the new generation of the whole ruleset. Changes of other tables are notified too, and dropped by their name.

use std::collections::VecDeque;

use towpath_core::names::TABLE;

use super::{
    NftError,
    kernel::netlink,
    wire::{self, INET, NftMessage, OBJECT_TABLE, SUBSYSTEM},
};
use crate::nfnetlink::{NfnetlinkMessage, NfnetlinkSocket, Received};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
pub(super) const GROUP: u32 = 7;

/// A change of our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// A transaction changed it.
    Changed {
        /// The generation of the namespace's ruleset after it.
        generation: u32,
        /// The name of the process, if the kernel gives it.
        process: String,
    },
    /// The receive buffer overran: anything may have changed.
    Overrun,
}

/// A listener in one network namespace.
#[derive(Debug)]
pub struct NftEvents {
    socket: NfnetlinkSocket,
    pending: PendingChanges,
}

/// Notifications that were received, up to the changes that are complete.
#[derive(Debug, Default)]
struct PendingChanges {
    /// Whether the current transaction has changed our table.
    touched: bool,
    complete: VecDeque<TableChange>,
}

impl NftEvents {
    /// Listens in the calling thread's network namespace, from now on.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or permission is denied.
    pub fn open() -> Result<Self, NftError> {
        let mut socket = NfnetlinkSocket::open().map_err(netlink("open a socket"))?;
        socket.join(GROUP).map_err(netlink("listen"))?;
        Ok(Self { socket, pending: PendingChanges::default() })
    }

    /// Waits for the next change of our table, without a time limit.
    ///
    /// # Errors
    /// If the socket fails: open a new listener, and assume that anything may have changed.
    pub fn next_change(&mut self) -> Result<TableChange, NftError> {
        loop {
            if let Some(change) = self.pending.complete.pop_front() {
                return Ok(change);
            }
            let pending = &mut self.pending;
            match self.socket.receive(None, |message| pending.add(&message)).map_err(netlink("listen"))? {
                Received::Messages | Received::Nothing => {}
                Received::Overrun => {
                    self.pending.touched = false;
                    return Ok(TableChange::Overrun);
                }
            }
        }
    }
}

impl PendingChanges {
    fn add(&mut self, message: &NfnetlinkMessage<'_>) {
        if let Some((generation, process)) = generation(message) {
            if std::mem::take(&mut self.touched) {
                self.complete.push_back(TableChange::Changed { generation, process: process.to_owned() });
            }
        } else if message.kind.subsystem == SUBSYSTEM && message.family == INET {
            self.touched |= message.attributes.find(OBJECT_TABLE).and_then(|a| a.text()) == Some(TABLE);
        }
    }
}

/// The number of a new generation, and the name of the process that committed it.
pub(super) fn generation<'a>(message: &NfnetlinkMessage<'a>) -> Option<(u32, &'a str)> {
    if message.kind != NftMessage::NewGeneration.kind() {
        return None;
    }
    let process = message.attributes.find(wire::generation::PROC_NAME).and_then(|a| a.text()).unwrap_or_default();
    Some((message.attributes.find(wire::generation::ID)?.be32()?, process))
}
