//! Policy re-evaluation: which established connections the current policies would deny.
//!
//! The table accepts packets of established connections before it evaluates policy, so a policy change alone does not
//! affect them. The agent therefore re-evaluates connections after a change and revokes those that are denied.
//! [`PolicyImpact`] says which pods' connections a change can affect, and whether it can deny any of them.
//! [`Reevaluation::denied_at`] gives the verdict for one connection: it interprets the chains that the kernel has, with
//! the first packet of the connection.

mod impact;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

pub use self::impact::{AffectedPods, ImpactKind, PolicyImpact};
use crate::{
    model::{Endpoint, Protocol},
    names::{ChainName, IfName},
    policy::ir::Direction,
    ruleset::{DanglingReference, Outcome, Packet, Ruleset, Transport},
    table::dispatch_chain,
};

/// A connection as policy sees it: in its original direction, after service translation (DNAT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// The source of the first packet.
    pub from: IpAddr,
    /// The destination of the first packet after DNAT, which is the source of the reply direction. Same family as `from`.
    pub to: IpAddr,
    /// Protocol and destination port.
    pub transport: Transport,
}

impl Connection {
    /// Whether the protocol is TCP.
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

/// The state of a node that the re-evaluation of its connections depends on.
#[derive(Debug)]
pub struct Reevaluation<'a> {
    table: &'a Ruleset,
    pods: BTreeMap<IpAddr, &'a IfName>,
    node_addresses: &'a BTreeSet<IpAddr>,
    affected: &'a AffectedPods,
}

impl<'a> Reevaluation<'a> {
    /// `table` is the ruleset in the kernel, `endpoints` are the pods of this node, `node_addresses` the addresses of the
    /// node itself. `affected` are the pods whose connections may have another verdict than at the last re-evaluation.
    pub fn new(
        table: &'a Ruleset,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
        node_addresses: &'a BTreeSet<IpAddr>,
        affected: &'a AffectedPods,
    ) -> Self {
        let addresses =
            |endpoint: &'a Endpoint| endpoint.addresses.iter().map(move |addr| (*addr, &endpoint.interface));
        Self { table, pods: endpoints.into_iter().flat_map(addresses).collect(), node_addresses, affected }
    }

    /// Whether one of the affected pods is an end of the connection. The verdict for other connections has not changed.
    #[must_use]
    pub fn covers(&self, connection: &Connection) -> bool {
        let affected = |end| self.pods.get(end).is_some_and(|interface| self.affected.contains(interface));
        *self.affected == AffectedPods::All || affected(&connection.from) || affected(&connection.to)
    }

    /// The direction in which current policy drops the connection's first packet. `None` if policy allows it, or if
    /// neither end is a pod of this node.
    ///
    /// Only the original direction is evaluated: replies are part of the connection. Connections from the node to its
    /// own pods are always allowed.
    ///
    /// # Errors
    /// If a rule of the table refers to a set, map or chain that does not exist.
    pub fn denied_at(&self, connection: &Connection) -> Result<Option<Direction>, DanglingReference> {
        let (from, to) = (self.pods.get(&connection.from).copied(), self.pods.get(&connection.to).copied());
        // Without the output interface: the chain of the source would otherwise continue with that of the destination.
        if from.is_some() && self.drops(Direction::Egress, connection, from, None)? {
            return Ok(Some(Direction::Egress));
        }
        let from_node = self.node_addresses.contains(&connection.from) || is_node_only(connection.from);
        if to.is_some() && !from_node && self.drops(Direction::Ingress, connection, from, to)? {
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

/// Whether only the node itself can use this source address to reach a pod.
const fn is_node_only(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_loopback(),
        IpAddr::V6(addr) => addr.is_loopback() || addr.is_unicast_link_local(),
    }
}

/// Whether it is a chain generated from policies. The names of the table's own chains contain no dot.
fn is_policy_chain(chain: &ChainName) -> bool {
    chain.as_str().contains('.')
}

#[cfg(test)]
mod tests;
