//! A list of connections that plays the kernel's in tests.

use std::{collections::BTreeMap, io};

use towpath_core::connection::{Connection, Reevaluation};

use super::{Addresses, ConntrackError, Reviewed};
use crate::nfnetlink::NetlinkError;

/// Whether packets of a connection pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeStanding {
    /// They do.
    Free,
    /// They do not.
    Cut,
}

/// The list. No address in it is translated.
#[derive(Debug, Default)]
pub struct FakeConntrack {
    /// The connections.
    pub connections: BTreeMap<Connection, FakeStanding>,
    /// How often it was looked through.
    pub reviews: usize,
    /// So many requests from now on are refused.
    pub refuse: usize,
}

impl FakeConntrack {
    /// See [`super::Conntrack::review`].
    ///
    /// # Errors
    /// When told so, and if the table is not whole.
    pub fn review(&mut self, review: &Reevaluation<'_>) -> Result<Reviewed, ConntrackError> {
        self.refusal()?;
        self.reviews += 1;
        let mut reviewed = Reviewed::default();
        for (connection, standing) in &mut self.connections {
            if !review.covers(connection) {
                reviewed.still_cut += usize::from(*standing == FakeStanding::Cut);
                continue;
            }
            match (review.denied_at(connection)?, *standing) {
                (Some(direction), FakeStanding::Free) => {
                    *standing = FakeStanding::Cut;
                    reviewed.cut.push((*connection, direction));
                }
                (Some(_), FakeStanding::Cut) => reviewed.still_cut += 1,
                (None, FakeStanding::Cut) => {
                    *standing = FakeStanding::Free;
                    reviewed.restored += 1;
                }
                (None, FakeStanding::Free) => {}
            }
        }
        Ok(reviewed)
    }

    /// See [`super::Conntrack::clear`].
    ///
    /// # Errors
    /// When told so.
    pub fn clear(&mut self, addresses: &Addresses) -> Result<usize, ConntrackError> {
        self.refusal()?;
        let before = self.connections.len();
        self.connections.retain(|connection, _| !addresses.occur_in(connection));
        Ok(before - self.connections.len())
    }

    fn refusal(&mut self) -> Result<(), ConntrackError> {
        match self.refuse.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.refuse = left;
                let source = io::Error::from_raw_os_error(nix::libc::EPERM);
                Err(ConntrackError::List(NetlinkError::Rejected { message: Some("by order".to_owned()), source }))
            }
        }
    }
}
