//! Whose connections are meant.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use towpath_core::connection::Connection;

/// Some addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// These.
    Of(BTreeSet<IpAddr>),
    /// All of some networks, but for those that somebody has.
    Vacant {
        /// The networks.
        within: Vec<IpNet>,
        /// Who is there.
        taken: BTreeSet<IpAddr>,
    },
}

impl Addresses {
    /// Whether it is one of them.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        match self {
            Self::Of(addresses) => addresses.contains(&address),
            Self::Vacant { within, taken } => {
                within.iter().any(|net| net.contains(&address)) && !taken.contains(&address)
            }
        }
    }

    /// Whether one of them is an end of the connection.
    #[must_use]
    pub fn occur_in(&self, connection: &Connection) -> bool {
        self.contain(connection.from) || self.contain(connection.to)
    }
}
