//! Connections that are under way: which of them the rules would not let begin now.
//!
//! The table accepts what is established before it asks any policy, so a change of policy alone ends nothing. This is the
//! other half: [`Reevaluation::denied_at`] asks of a connection what the table would say to its first packet, by running the
//! very chains that the kernel runs, and [`PolicyImpact`] tells after which changes that is worth asking, and of whose.

mod consequence;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

pub use self::consequence::{AffectedPods, ImpactKind, PolicyImpact};
use crate::{
    model::{Endpoint, Protocol},
    names::{ChainName, IfName},
    policy::ir::Direction,
    ruleset::{DanglingReference, Outcome, Packet, Ruleset, Transport},
    table::dispatch_chain,
};

/// A connection, as policies see it: who began it, and whom it reached after service translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// Who sent the first packet.
    pub from: IpAddr,
    /// Who got it: the source of the answers, of the same family.
    pub to: IpAddr,
    /// What it carries; the port is the one at [`Connection::to`].
    pub transport: Transport,
}

impl Connection {
    /// Whether it is one of TCP.
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Ports { protocol, .. } if protocol == Protocol::Tcp.number())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, transport } = self;
        match transport {
            Transport::Ports { protocol, destination } => {
                write!(f, "{from} to {to}, protocol {protocol}, port {destination}")
            }
            Transport::NeighbourDiscovery => write!(f, "{from} to {to}, neighbour discovery"),
            Transport::Other(protocol) => write!(f, "{from} to {to}, protocol {protocol}"),
        }
    }
}

/// What is known of a node when connections are looked through.
#[derive(Debug)]
pub struct Reevaluation<'a> {
    table: &'a Ruleset,
    pods: BTreeMap<IpAddr, &'a IfName>,
    node: &'a BTreeSet<IpAddr>,
    touched: &'a AffectedPods,
}

impl<'a> Reevaluation<'a> {
    /// With the table that is in force, the pods of this node, and the node's own addresses, of the connections that a
    /// change has touched since they were last looked through.
    pub fn new(
        table: &'a Ruleset,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
        node: &'a BTreeSet<IpAddr>,
        touched: &'a AffectedPods,
    ) -> Self {
        let addresses =
            |endpoint: &'a Endpoint| endpoint.addresses.iter().map(move |addr| (*addr, &endpoint.interface));
        Self { table, pods: endpoints.into_iter().flat_map(addresses).collect(), node, touched }
    }

    /// Whether the connection is to be asked about: what holds for the others has not changed.
    #[must_use]
    pub fn is_about(&self, connection: &Connection) -> bool {
        let touched = |end| self.pods.get(end).is_some_and(|interface| self.touched.has(interface));
        *self.touched == AffectedPods::All || touched(&connection.from) || touched(&connection.to)
    }

    /// The end at which its first packet would be dropped now; `None` where it would pass, and for what is no
    /// connection of a pod of this node. The node reaches its own pods whatever the policies are, and answers are
    /// never asked for: only the direction in which it began counts.
    ///
    /// # Errors
    /// If a rule of the table names what is not there.
    pub fn denied_at(&self, connection: &Connection) -> Result<Option<Direction>, DanglingReference> {
        let (from, to) = (self.pods.get(&connection.from).copied(), self.pods.get(&connection.to).copied());
        // Without the interface that it leaves by, because a sender's chain goes on to the receiver's.
        if from.is_some() && self.drops(Direction::Egress, connection, from, None)? {
            return Ok(Some(Direction::Egress));
        }
        let by_node = self.node.contains(&connection.from) || is_own(connection.from);
        if to.is_some() && !by_node && self.drops(Direction::Ingress, connection, from, to)? {
            return Ok(Some(Direction::Ingress));
        }
        Ok(None)
    }

    fn drops(
        &self,
        direction: Direction,
        connection: &Connection,
        from: Option<&IfName>,
        to: Option<&IfName>,
    ) -> Result<bool, DanglingReference> {
        let packet = Packet {
            in_interface: from.cloned(),
            out_interface: to.cloned(),
            source: connection.from,
            destination: connection.to,
            transport: connection.transport,
            state: None,
            mark: 0,
        };
        Ok(self.table.interpret_chain(&dispatch_chain(direction), &packet)? == Outcome::Dropped)
    }
}

/// Addresses with which only the node itself reaches a pod.
const fn is_own(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_loopback(),
        IpAddr::V6(addr) => addr.is_loopback() || addr.is_unicast_link_local(),
    }
}

/// Whether it is a chain of pods' policies, and none of those that every pod goes through.
fn by_policy(chain: &ChainName) -> bool {
    chain.as_str().contains('.')
}

#[cfg(test)]
mod tests;
