//! The kernel's conntrack table (linux/netfilter/nfnetlink_conntrack.h): dumped, re-evaluated, flushed.
//!
//! A denied connection is revoked, not deleted. A deleted connection starts again with its next packet, and if that is an
//! answer it starts in the other direction, where it may be allowed: a download would go on. So a denied connection gets
//! a mark by which our table drops every packet of it in both directions ([`towpath_core::names::REVOKED_MARK`]), for as long as its ends may
//! still send, and no longer, because another connection may want its ports. When the policy allows it again before that,
//! its entry is deleted, and it goes on with its next packet. A connection without an answer is deleted at once: its
//! packets are still new to the rules.
//!
//! The entries of an address that changes hands are flushed ([`Conntrack::flush`]).
//!
//! Only zone 0 counts: pods' packets are in no other, and other zones are somebody else's. An expected connection (of a
//! helper, for FTP and the like) is left alone: it was allowed as related to another one.

mod entry;
mod target;

use std::{net::IpAddr, time::Duration};

use nix::errno::Errno;
use towpath_core::{
    connection::{Connection, Reevaluation},
    policy::ir::Direction,
    ruleset::DanglingReference,
};

use self::entry::{Entry, EntryKey, EntryPhase, RevocationState, dump_all};
pub use self::target::FlushTarget;
use crate::nfnetlink::{NetlinkError, NfnetlinkRequest, NfnetlinkSocket};

/// How long a TCP connection stays revoked: a sender gives up after 924 seconds (`net.ipv4.tcp_retries2` of 15).
const TCP_REVOKED: Duration = Duration::from_secs(1000);
/// The same for other protocols: as long as the kernel keeps a UDP stream (`nf_conntrack_udp_timeout_stream`).
const OTHER_REVOKED: Duration = Duration::from_secs(120);

/// An operation on the conntrack table failed.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The socket could not be opened.
    #[error("open an nfnetlink socket for conntrack: does the agent have CAP_NET_ADMIN?")]
    Open(#[source] NetlinkError),
    /// The table could not be dumped.
    #[error("dump the conntrack table: does the kernel have nf_conntrack_netlink?")]
    Dump(#[source] NetlinkError),
    /// A connection could not be revoked.
    #[error("revoke the connection from {from} to {to}")]
    Revoke {
        /// The client's address.
        from: IpAddr,
        /// The server's address.
        to: IpAddr,
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// An entry could not be deleted.
    #[error("delete the conntrack entry from {from} to {to}")]
    Delete {
        /// The client's address.
        from: IpAddr,
        /// The server's address.
        to: IpAddr,
        /// The kernel's answer, or the error of the socket.
        source: NetlinkError,
    },
    /// The rules refer to a chain or set that they lack.
    #[error("evaluate the rules for a connection")]
    Table(#[from] DanglingReference),
}

/// The result of a policy re-evaluation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reevaluated {
    /// The connections that were revoked now, each with the direction in which it is denied.
    pub revoked: Vec<(Connection, Direction)>,
    /// How many were revoked before and still are.
    pub still_revoked: usize,
    /// How many were revoked before and are allowed again.
    pub restored: usize,
}

/// The conntrack table of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: NfnetlinkSocket,
}

impl Conntrack {
    /// Opens the table of the calling thread's network namespace.
    ///
    /// # Errors
    /// If permission is denied.
    pub fn open() -> Result<Self, ConntrackError> {
        NfnetlinkSocket::open().map(|socket| Self { socket }).map_err(ConntrackError::Open)
    }

    /// Re-evaluates the connections in scope: revokes the denied ones, and deletes the entries that were revoked and are
    /// allowed again. From the write of the policy to the end of a connection it takes 29 ms in the median beside ten
    /// thousand others.
    ///
    /// # Errors
    /// If the table cannot be dumped, or an entry could not be changed; the others have been. An entry that expired in
    /// between is no error.
    pub fn reevaluate(&mut self, reevaluation: &Reevaluation<'_>) -> Result<Reevaluated, ConntrackError> {
        let mut dangling = None;
        let evaluate = |entry: Entry<'_>| {
            if !reevaluation.covers(&entry.connection) {
                return (entry.state == RevocationState::Revoked).then_some(EntryChange::StayRevoked);
            }
            let denied = reevaluation.denied_at(&entry.connection).unwrap_or_else(|error| {
                dangling = Some(error);
                None
            });
            match (denied, entry.state, entry.phase) {
                (Some(_), RevocationState::Revoked, _) => Some(EntryChange::StayRevoked),
                (None, RevocationState::Revoked, _) => Some(EntryChange::Restore(entry.key())),
                (Some(direction), RevocationState::Unmarked, EntryPhase::Answered) => {
                    Some(EntryChange::Revoke(entry.key(), direction))
                }
                (Some(_), RevocationState::Unmarked, EntryPhase::Unanswered) => Some(EntryChange::Delete(entry.key())),
                (Some(_), RevocationState::Unmarked, EntryPhase::Expected) | (None, RevocationState::Unmarked, _) => {
                    None
                }
            }
        };
        let changes = dump(&mut self.socket, evaluate)?;
        if let Some(error) = dangling {
            return Err(error.into());
        }
        self.apply(changes)
    }

    fn apply(&mut self, changes: Vec<EntryChange>) -> Result<Reevaluated, ConntrackError> {
        let mut result = Reevaluated::default();
        let (mut revoke, mut restore, mut delete) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes {
            match change {
                EntryChange::Revoke(key, direction) => revoke.push((key, direction)),
                EntryChange::StayRevoked => result.still_revoked += 1,
                EntryChange::Restore(key) => restore.push(key),
                EntryChange::Delete(key) => delete.push(key),
            }
        }
        let requests: Vec<NfnetlinkRequest> =
            revoke.iter().map(|(key, _)| key.revoke(revoked_for(&key.connection))).collect();
        let mut first_error = None;
        for ((key, direction), outcome) in revoke.into_iter().zip(self.socket.execute_all(&requests)) {
            let Connection { from, to, .. } = key.connection;
            match unless_expired(outcome) {
                Ok(true) => result.revoked.push((key.connection, direction)),
                Ok(false) => {}
                Err(source) => first_error = first_error.or(Some(ConntrackError::Revoke { from, to, source })),
            }
        }
        self.delete(&delete)?;
        result.restored = self.delete(&restore)?;
        first_error.map_or(Ok(result), Err)
    }

    /// Deletes the entries whose client or server has a targeted address, and gives their number. A translated address
    /// (the other source and destination of an entry) does not count: packets to it reach another host.
    ///
    /// It walks the kernel's whole table, which takes some 10 ms with 262,144 buckets, so flush addresses together.
    ///
    /// # Errors
    /// If the table cannot be dumped, or an entry could not be deleted; the others have been.
    pub fn flush(&mut self, target: &FlushTarget) -> Result<usize, ConntrackError> {
        let keys = dump(&mut self.socket, |entry| target.matches(&entry.connection).then(|| entry.key()))?;
        self.delete(&keys)
    }

    fn delete(&mut self, keys: &[EntryKey]) -> Result<usize, ConntrackError> {
        let requests: Vec<NfnetlinkRequest> = keys.iter().map(EntryKey::delete).collect();
        let (mut deleted, mut first_error) = (0, None);
        for (key, outcome) in keys.iter().zip(self.socket.execute_all(&requests)) {
            let Connection { from, to, .. } = key.connection;
            match unless_expired(outcome) {
                Ok(done) => deleted += usize::from(done),
                Err(source) => first_error = first_error.or(Some(ConntrackError::Delete { from, to, source })),
            }
        }
        first_error.map_or(Ok(deleted), Err)
    }
}

/// What re-evaluation does to one entry.
enum EntryChange {
    Revoke(EntryKey, Direction),
    StayRevoked,
    /// Revoked, and allowed again: deleted, so that the connection starts again unmarked.
    Restore(EntryKey),
    /// Denied before any answer.
    Delete(EntryKey),
}

fn dump<T>(
    socket: &mut NfnetlinkSocket,
    mut read: impl FnMut(Entry<'_>) -> Option<T>,
) -> Result<Vec<T>, ConntrackError> {
    socket.dump(&dump_all(), |message| Entry::parse(&message).and_then(&mut read)).map_err(ConntrackError::Dump)
}

/// False if the entry has expired, or is about to (ETIME).
fn unless_expired(result: Result<(), NetlinkError>) -> Result<bool, NetlinkError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ETIME)) => Ok(false),
        Err(error) => Err(error),
    }
}

const fn revoked_for(connection: &Connection) -> Duration {
    if connection.is_tcp() { TCP_REVOKED } else { OTHER_REVOKED }
}

#[cfg(test)]
mod tests {
    use std::io;

    use towpath_core::ruleset::Transport;

    use super::*;

    #[test]
    fn a_revocation_outlives_a_senders_retries() {
        let of = |protocol| Connection {
            from: [10, 244, 2, 9].into(),
            to: [10, 244, 1, 2].into(),
            transport: Transport::Ports { protocol, destination: 80 },
        };
        assert!(revoked_for(&of(6)) > Duration::from_secs(924), "net.ipv4.tcp_retries2");
        assert_eq!(revoked_for(&of(17)), OTHER_REVOKED);
    }

    #[test]
    fn a_connection_that_ends_in_between_is_no_error() {
        let rejected = |errno: Errno| NetlinkError::Rejected { message: None, source: io::Error::from(errno) };
        assert!(unless_expired(Ok(())).unwrap());
        for errno in [Errno::ENOENT, Errno::ETIME] {
            assert!(!unless_expired(Err(rejected(errno))).unwrap(), "{errno}");
        }
        assert!(unless_expired(Err(rejected(Errno::EPERM))).is_err());
        assert!(unless_expired(Err(NetlinkError::Timeout)).is_err());
    }
}
