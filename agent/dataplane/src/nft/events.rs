//! The kernel's word that somebody changed our table.
//!
//! Every commit in the network namespace is announced on a netlink group: first what changed, object by object, then the
//! new generation of the whole ruleset. Other people's tables pass by here too, and are only looked at for their name.

use std::collections::VecDeque;

use towpath_core::names::TABLE;

use super::{
    NftError,
    kernel::netlink,
    wire::{INET, Message, SUBSYSTEM, TABLE_OF},
};
use crate::nfnetlink::{NfnetlinkMessage, NfnetlinkSocket, Received};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
pub(super) const GROUP: u32 = 7;

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
    socket: NfnetlinkSocket,
    hearing: Hearing,
}

/// What was heard and not yet told.
#[derive(Debug, Default)]
struct Hearing {
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
        let mut socket = NfnetlinkSocket::open().map_err(netlink("open a socket"))?;
        socket.join(GROUP).map_err(netlink("listen"))?;
        Ok(Self { socket, hearing: Hearing::default() })
    }

    /// Waits, as long as it takes, for the next change of our table.
    ///
    /// # Errors
    /// If the socket fails: open a new listener, and take it that anything may have happened.
    pub fn next_change(&mut self) -> Result<TableChange, NftError> {
        loop {
            if let Some(change) = self.hearing.ready.pop_front() {
                return Ok(change);
            }
            let hearing = &mut self.hearing;
            match self.socket.receive(None, |answer| hearing.hear(&answer)).map_err(netlink("listen"))? {
                Received::Messages | Received::Nothing => {}
                Received::Overrun => {
                    self.hearing.touched = false;
                    return Ok(TableChange::Overrun);
                }
            }
        }
    }
}

impl Hearing {
    fn hear(&mut self, answer: &NfnetlinkMessage<'_>) {
        if let Some((generation, process)) = generation(answer) {
            if std::mem::take(&mut self.touched) {
                self.ready.push_back(TableChange::Changed { generation, process: process.to_owned() });
            }
        } else if answer.kind.subsystem == SUBSYSTEM && answer.family == INET {
            self.touched |= answer.attributes.find(TABLE_OF).and_then(|a| a.text()) == Some(TABLE);
        }
    }
}

/// The number of a new generation, and the process that made it.
pub(super) fn generation<'a>(answer: &NfnetlinkMessage<'a>) -> Option<(u32, &'a str)> {
    /// `NFTA_GEN_ID` and `NFTA_GEN_PROC_NAME`.
    const ID: u16 = 1;
    const PROCESS: u16 = 3;
    if answer.kind != Message::NewGeneration.kind() {
        return None;
    }
    let process = answer.attributes.find(PROCESS).and_then(|a| a.text()).unwrap_or_default();
    Some((answer.attributes.find(ID)?.be32()?, process))
}
