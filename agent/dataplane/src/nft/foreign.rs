//! Notifications of changes in other programs' tables, as far as they may change what [`crate::foreign`] reads.

use std::time::{Duration, Instant};

use towpath_core::{
    foreign_firewall::{ForeignTable, TableFamily},
    names::TABLE,
};

use super::{
    NftError,
    batch::hook_number,
    events::GROUP,
    kernel::netlink,
    wire::{INET, NftMessage, OBJECT_TABLE, SUBSYSTEM, chain},
};
use crate::nfnetlink::{NfnetlinkMessage, NfnetlinkSocket, Received};

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// What came of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignChange {
    /// Nothing that concerns the forward hook.
    Nothing,
    /// A base chain at the forward hook came or changed, or something in one of the tables that have one; or more was
    /// notified than there was room for.
    Forward,
}

/// A listener in one network namespace.
#[derive(Debug)]
pub struct ForeignListener {
    socket: NfnetlinkSocket,
}

impl ForeignListener {
    /// Listens in the network namespace of the calling thread; what happens from now on is received.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or permission is denied.
    pub fn open() -> Result<Self, NftError> {
        let mut socket = NfnetlinkSocket::open().map_err(netlink("open a socket"))?;
        socket.join(GROUP).map_err(netlink("listen"))?;
        Ok(Self { socket })
    }

    /// Waits at most until then for a change that concerns the forward hook. `tables` were read last: a change within one
    /// of them concerns it; of others only a new base chain, or a new policy of one, does.
    ///
    /// # Errors
    /// If the socket fails: open a new listener.
    pub fn wait(&mut self, until: Instant, tables: &[ForeignTable]) -> Result<ForeignChange, NftError> {
        loop {
            let within = until.saturating_duration_since(Instant::now());
            let mut concerns = false;
            let received = self.socket.receive(Some(within), |message| concerns |= concerns_forward(&message, tables));
            match received.map_err(netlink("listen"))? {
                Received::Messages if concerns => return Ok(ForeignChange::Forward),
                Received::Overrun => return Ok(ForeignChange::Forward),
                Received::Messages if Instant::now() < until => {}
                Received::Messages | Received::Nothing => return Ok(ForeignChange::Nothing),
            }
        }
    }

    /// Forgets what has come so far: what is read after this has seen it.
    ///
    /// # Errors
    /// As [`ForeignListener::wait`].
    pub fn drain(&mut self) -> Result<(), NftError> {
        loop {
            match self.socket.receive(Some(Duration::ZERO), |_| {}).map_err(netlink("listen"))? {
                Received::Messages | Received::Overrun => {}
                Received::Nothing => return Ok(()),
            }
        }
    }
}

fn concerns_forward(message: &NfnetlinkMessage<'_>, tables: &[ForeignTable]) -> bool {
    let family = match message.family {
        IPV4 => TableFamily::Ip,
        IPV6 => TableFamily::Ip6,
        INET => TableFamily::Inet,
        _ => return false,
    };
    // The first attribute of all objects, tables too, is the name of the table.
    let Some(table) = message.attributes.find(OBJECT_TABLE).and_then(|a| a.text()) else { return false };
    if message.kind.subsystem != SUBSYSTEM || (family == TableFamily::Inet && table == TABLE) {
        return false;
    }
    tables.iter().any(|known| known.family == family && known.name == table) || is_forward_chain(message)
}

fn is_forward_chain(message: &NfnetlinkMessage<'_>) -> bool {
    let hook = || message.attributes.find(chain::HOOK)?.nested().find(chain::HOOK_NUMBER)?.be32();
    message.kind == NftMessage::NewChain.kind() && hook() == Some(hook_number(towpath_core::ruleset::Hook::Forward))
}
