//! The addresses whose entries are flushed.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use towpath_core::connection::Connection;

/// The addresses whose entries are flushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlushTarget {
    /// Single addresses.
    Addresses(BTreeSet<IpAddr>),
    /// All addresses of some networks, but for those in use.
    Unused {
        /// The networks.
        within: Vec<IpNet>,
        /// The addresses in use.
        except: BTreeSet<IpAddr>,
    },
}

impl FlushTarget {
    /// Whether the address is targeted.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.contains(&address),
            Self::Unused { within, except } => {
                within.iter().any(|net| net.contains(&address)) && !except.contains(&address)
            }
        }
    }

    /// Whether the client or the server of the connection has a targeted address.
    #[must_use]
    pub fn matches(&self, connection: &Connection) -> bool {
        self.contains(connection.from) || self.contains(connection.to)
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::ruleset::Transport;

    use super::*;

    #[test]
    fn a_connection_matches_by_either_end() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let one = FlushTarget::Addresses([address("10.244.1.2")].into());
        let unused = FlushTarget::Unused {
            within: vec!["10.244.1.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            except: [address("10.244.1.2"), address("fd00::2")].into(),
        };
        for (target, from, to, expected, why) in [
            (&one, "10.244.1.2", "192.0.2.1", true, "the client"),
            (&one, "192.0.2.1", "10.244.1.2", true, "the server"),
            (&one, "10.244.1.3", "192.0.2.1", false, "another's"),
            (&unused, "10.244.1.3", "192.0.2.1", true, "unused"),
            (&unused, "192.0.2.1", "fd00::3", true, "unused, in the other family"),
            (&unused, "10.244.1.2", "192.0.2.1", false, "in use"),
            (&unused, "10.244.2.3", "192.0.2.1", false, "of another network"),
            (&unused, "10.244.1.2", "10.244.1.3", true, "one end in use, the other not"),
        ] {
            let transport = Transport::Other(1);
            let connection = Connection { from: address(from), to: address(to), transport };
            assert_eq!(target.matches(&connection), expected, "{why}");
        }
    }
}
