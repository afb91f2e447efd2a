//! The kernel's list of connections (linux/netfilter/nfnetlink_conntrack.h): looked through, cut, cleared.
//!
//! Cutting is not deleting. A connection that is deleted begins anew with its next packet, and if that is an answer it
//! begins in the other direction, where it may be allowed: a download would go on. So a connection that is denied is
//! kept with a mark by which our table drops every packet of it, both ways ([`REVOKED_MARK`]), for as long as its ends may
//! still send without having noticed, and not longer, because another connection could want its ports. When the policy
//! allows it again before that, it is deleted, and goes on with its next packet. One that nobody has answered yet is
//! deleted at once: its packets are asked about as long as there is no answer.
//!
//! What belongs to an address that changes hands is deleted ([`Conntrack::clear`]).
//!
//! Only connections of zone 0 are looked at: pods' packets are in no other, and other zones are somebody else's. One that
//! was expected (by a helper for FTP and the like) is left alone: it was let in as related to another one.

mod addresses;
mod entry;
pub mod fake;

use std::{net::IpAddr, time::Duration};

use nix::errno::Errno;
use towpath_core::{
    connection::{Connection, Reevaluation},
    names::REVOKED_MARK,
    policy::ir::Direction,
    ruleset::DanglingReference,
};

pub use self::addresses::Addresses;
use self::entry::{Entry, Handle, Life, Standing, all};
use crate::nfnetlink::{NetlinkError, NfnetlinkRequest, NfnetlinkSocket};

/// How long a TCP connection stays cut: a sender gives up after 924 seconds (`net.ipv4.tcp_retries2` of 15).
const TCP_CUT: Duration = Duration::from_secs(1000);
/// The same of other protocols: as long as the kernel remembers a flow of UDP (`nf_conntrack_udp_timeout_stream`).
const OTHER_CUT: Duration = Duration::from_secs(120);

/// What went wrong with the list of connections.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No way to it.
    #[error("open netlink to connection tracking: does the agent have CAP_NET_ADMIN?")]
    Open(#[source] NetlinkError),
    /// It could not be read.
    #[error("list connections: does the kernel have nf_conntrack_netlink?")]
    List(#[source] NetlinkError),
    /// One could not be marked.
    #[error("cut the connection {from} to {to}")]
    Cut {
        /// Who began it.
        from: IpAddr,
        /// Whom it reached.
        to: IpAddr,
        /// Why not.
        source: NetlinkError,
    },
    /// One could not be deleted.
    #[error("delete the connection {from} to {to}")]
    Delete {
        /// Who began it.
        from: IpAddr,
        /// Whom it reached.
        to: IpAddr,
        /// Why not.
        source: NetlinkError,
    },
    /// The rules are not whole.
    #[error("ask the table of a connection")]
    Table(#[from] DanglingReference),
}

/// What became of the connections when they were looked through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// Those that were cut now, and at which end they are denied.
    pub cut: Vec<(Connection, Direction)>,
    /// How many were cut before and still are.
    pub still_cut: usize,
    /// How many were cut before and may go on.
    pub restored: usize,
}

/// The way to the list, in one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: NfnetlinkSocket,
}

impl Conntrack {
    /// Of the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel does not let us near it.
    pub fn open() -> Result<Self, ConntrackError> {
        NfnetlinkSocket::open().map(|socket| Self { socket }).map_err(ConntrackError::Open)
    }

    /// Of those that the review is about: cuts what is denied, and deletes what was cut and is allowed again. From
    /// the policy's write to the end of a connection it takes 29 ms in the median with ten thousand others around.
    ///
    /// # Errors
    /// If the list cannot be read, or one of them could not be changed; the others have been. One that has gone
    /// meanwhile is no error.
    pub fn review(&mut self, review: &Reevaluation<'_>) -> Result<Reviewed, ConntrackError> {
        let mut dangling = None;
        let judge = |entry: Entry<'_>| {
            if !review.covers(&entry.connection) {
                return (entry.standing == Standing::Cut).then_some(Sentence::StayCut);
            }
            let denied = review.denied_at(&entry.connection).unwrap_or_else(|error| {
                dangling = Some(error);
                None
            });
            match (denied, entry.standing, entry.life) {
                (Some(_), Standing::Cut, _) => Some(Sentence::StayCut),
                (None, Standing::Cut, _) => Some(Sentence::Restore(entry.handle())),
                (Some(direction), Standing::Free, Life::Answered) => Some(Sentence::Cut(entry.handle(), direction)),
                (Some(_), Standing::Free, Life::Unanswered) => Some(Sentence::Forget(entry.handle())),
                (Some(_), Standing::Free, Life::Expected) | (None, Standing::Free, _) => None,
            }
        };
        let sentences = list(&mut self.socket, &all(), judge)?;
        if let Some(error) = dangling {
            return Err(error.into());
        }
        self.carry_out(sentences)
    }

    fn carry_out(&mut self, sentences: Vec<Sentence>) -> Result<Reviewed, ConntrackError> {
        let mut reviewed = Reviewed::default();
        let (mut to_cut, mut to_restore, mut to_forget) = (Vec::new(), Vec::new(), Vec::new());
        for sentence in sentences {
            match sentence {
                Sentence::Cut(handle, direction) => to_cut.push((handle, direction)),
                Sentence::StayCut => reviewed.still_cut += 1,
                Sentence::Restore(handle) => to_restore.push(handle),
                Sentence::Forget(handle) => to_forget.push(handle),
            }
        }
        let requests: Vec<NfnetlinkRequest> =
            to_cut.iter().map(|(handle, _)| handle.mark(REVOKED_MARK, duration_of(&handle.connection))).collect();
        let mut first = None;
        for ((handle, direction), result) in to_cut.into_iter().zip(self.socket.execute_all(&requests)) {
            let Connection { from, to, .. } = handle.connection;
            match unless_gone(result) {
                Ok(true) => reviewed.cut.push((handle.connection, direction)),
                Ok(false) => {}
                Err(source) => first = first.or(Some(ConntrackError::Cut { from, to, source })),
            }
        }
        self.delete(&to_forget)?;
        reviewed.restored = self.delete(&to_restore)?;
        first.map_or(Ok(reviewed), Err)
    }

    /// Deletes every connection that one of the addresses began or answers, and gives how many they were. Who has the
    /// address elsewhere only does not reach its owner: somebody has translated it to another, or another to it.
    ///
    /// One walk through the kernel's whole table, empty or not, of some 10 ms where it has 262,144 buckets; so addresses
    /// are better cleared together.
    ///
    /// # Errors
    /// If the list cannot be read, or one of them could not be deleted; the others have been.
    pub fn clear(&mut self, addresses: &Addresses) -> Result<usize, ConntrackError> {
        let has = |entry: Entry<'_>| addresses.occur_in(&entry.connection).then(|| entry.handle());
        let found = list(&mut self.socket, &all(), has)?;
        self.delete(&found)
    }

    fn delete(&mut self, handles: &[Handle]) -> Result<usize, ConntrackError> {
        let requests: Vec<NfnetlinkRequest> = handles.iter().map(Handle::delete).collect();
        let (mut deleted, mut first) = (0, None);
        for (handle, result) in handles.iter().zip(self.socket.execute_all(&requests)) {
            let Connection { from, to, .. } = handle.connection;
            match unless_gone(result) {
                Ok(done) => deleted += usize::from(done),
                Err(source) => first = first.or(Some(ConntrackError::Delete { from, to, source })),
            }
        }
        first.map_or(Ok(deleted), Err)
    }
}

/// What is to become of one connection.
enum Sentence {
    Cut(Handle, Direction),
    StayCut,
    Restore(Handle),
    Forget(Handle),
}

fn list<T>(
    socket: &mut NfnetlinkSocket,
    request: &NfnetlinkRequest,
    mut read: impl FnMut(Entry<'_>) -> Option<T>,
) -> Result<Vec<T>, ConntrackError> {
    socket.dump(request, |answer| Entry::parse(&answer).and_then(&mut read)).map_err(ConntrackError::List)
}

/// False if it has gone, or is just going (ETIME).
fn unless_gone(result: Result<(), NetlinkError>) -> Result<bool, NetlinkError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ETIME)) => Ok(false),
        Err(error) => Err(error),
    }
}

const fn duration_of(connection: &Connection) -> Duration {
    if connection.is_tcp() { TCP_CUT } else { OTHER_CUT }
}

#[cfg(test)]
mod tests {
    use std::io;

    use towpath_core::ruleset::Transport;

    use super::*;

    #[test]
    fn a_cut_outlives_the_patience_of_a_sender() {
        let of = |protocol| Connection {
            from: [10, 244, 2, 9].into(),
            to: [10, 244, 1, 2].into(),
            transport: Transport::Ports { protocol, destination: 80 },
        };
        assert!(duration_of(&of(6)) > Duration::from_secs(924), "net.ipv4.tcp_retries2");
        assert_eq!(duration_of(&of(17)), OTHER_CUT);
    }

    #[test]
    fn a_connection_that_ends_by_itself_meanwhile_is_no_error() {
        let refused = |errno: Errno| NetlinkError::Rejected { message: None, source: io::Error::from(errno) };
        assert!(unless_gone(Ok(())).unwrap());
        for errno in [Errno::ENOENT, Errno::ETIME] {
            assert!(!unless_gone(Err(refused(errno))).unwrap(), "{errno}");
        }
        assert!(unless_gone(Err(refused(Errno::EPERM))).is_err());
        assert!(unless_gone(Err(NetlinkError::Timeout)).is_err());
    }
}
