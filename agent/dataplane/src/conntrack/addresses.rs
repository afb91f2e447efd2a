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

#[cfg(test)]
mod tests {
    use towpath_core::ruleset::Transport;

    use super::*;

    #[test]
    fn a_connection_has_an_address_at_either_end_and_a_vacant_one_is_nobodys() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let one = Addresses::Of([address("10.244.1.2")].into());
        let vacant = Addresses::Vacant {
            within: vec!["10.244.1.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            taken: [address("10.244.1.2"), address("fd00::2")].into(),
        };
        for (addresses, from, to, expected, why) in [
            (&one, "10.244.1.2", "192.0.2.1", true, "it began it"),
            (&one, "192.0.2.1", "10.244.1.2", true, "it answers"),
            (&one, "10.244.1.3", "192.0.2.1", false, "another's"),
            (&vacant, "10.244.1.3", "192.0.2.1", true, "nobody has it"),
            (&vacant, "192.0.2.1", "fd00::3", true, "nobody has it in the other family"),
            (&vacant, "10.244.1.2", "192.0.2.1", false, "somebody has it"),
            (&vacant, "10.244.2.3", "192.0.2.1", false, "it is of another network"),
            (&vacant, "10.244.1.2", "10.244.1.3", true, "one end is somebody's, the other nobody's"),
        ] {
            let transport = Transport::Other(1);
            let connection = Connection { from: address(from), to: address(to), transport };
            assert_eq!(addresses.occur_in(&connection), expected, "{why}");
        }
    }
}
