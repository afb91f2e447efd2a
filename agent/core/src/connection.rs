//! Connections that are under way: which of them the rules would not let begin now.
//!
//! The table accepts what is established before it asks any policy, so a change of policy alone ends nothing. This is the
//! other half: [`Review::denied_at`] asks of a connection what the table would say to its first packet, by running the
//! very chains that the kernel runs, and [`narrows`] tells after which changes that is worth asking.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::{
    model::{Endpoint, Protocol},
    names::{ChainName, IfName, SetName},
    policy::ir::Direction,
    ruleset::{Action, Dangling, Match, Op, Outcome, Packet, Rule, Ruleset, Step, Transaction, Transport, Verdict},
    table::{dispatch_chain, to_receiver},
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
pub struct Review<'a> {
    table: &'a Ruleset,
    pods: BTreeMap<IpAddr, &'a IfName>,
    node: &'a BTreeSet<IpAddr>,
}

impl<'a> Review<'a> {
    /// With the table that is in force, the pods of this node, and the node's own addresses.
    pub fn new(
        table: &'a Ruleset,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
        node: &'a BTreeSet<IpAddr>,
    ) -> Self {
        let addresses =
            |endpoint: &'a Endpoint| endpoint.addresses.iter().map(move |addr| (*addr, &endpoint.interface));
        Self { table, pods: endpoints.into_iter().flat_map(addresses).collect(), node }
    }

    /// The end at which its first packet would be dropped now; `None` where it would pass, and for what is no
    /// connection of a pod of this node. The node reaches its own pods whatever the policies are, and answers are
    /// never asked for: only the direction in which it began counts.
    ///
    /// # Errors
    /// If a rule of the table names what is not there.
    pub fn denied_at(&self, connection: &Connection) -> Result<Option<Direction>, Dangling> {
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
    ) -> Result<bool, Dangling> {
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

/// Whether a change that made `table` what it is can deny what was allowed before it. It does not when it only adds: a pod
/// and its own chains, members to sets by which packets are accepted. A pod that leaves takes its interface away and,
/// as a peer, its addresses; the latter may be another pod's loss of a label, so it counts.
#[must_use]
pub fn narrows(change: &Transaction, table: &Ruleset) -> bool {
    let (mut new_chains, mut new_sets) = (BTreeSet::new(), BTreeSet::new());
    let mut dispatched: BTreeSet<(&SetName, _)> = BTreeSet::new();
    change.steps().iter().any(|step| match step {
        Step::AddSet(name, ..) => {
            new_sets.insert(name);
            false
        }
        Step::AddChain(name, _) => {
            new_chains.insert(name);
            false
        }
        Step::AddElements(name, _) => !new_sets.contains(name) && !only_accepts(table, name),
        Step::DeleteElements(name, _) => is_looked_into(table, name),
        Step::AddRule(name, _) => !new_chains.contains(name),
        Step::DeleteMapElements(name, keys) => {
            dispatched.extend(keys.iter().map(|key| (name, key)));
            false
        }
        // A pod that goes from one chain to another.
        Step::AddMapElements(name, elements) => elements.keys().any(|key| dispatched.contains(&(name, key))),
        Step::FlushChain(_) | Step::DeleteTable => true,
        // What named them has been flushed or deleted before.
        Step::AddTable | Step::AddMap(..) | Step::DeleteSet(_) | Step::DeleteMap(_) | Step::DeleteChain(_) => false,
    })
}

/// Whether a packet that is in the set is at most accepted for it.
fn only_accepts(table: &Ruleset, set: &SetName) -> bool {
    rules_with(table, set).all(|rule| {
        let inverted = rule.matches.iter().any(|m| matches!(m, Match::InSet(_, Op::IsNot, name) if name == set));
        let accepts = [Verdict::Accept, to_receiver()].map(Action::Verdict).contains(&rule.action);
        accepts && !inverted
    })
}

/// Whether a pod's chain has it. Who may send from which address is no policy: a pod's connections go with the pod.
fn is_looked_into(table: &Ruleset, set: &SetName) -> bool {
    let by_policy = |(name, _): &(&ChainName, _)| name.as_str().contains('.');
    table.chains.iter().filter(by_policy).any(|(_, chain)| chain.rules.iter().any(|rule| looks_into(rule, set)))
}

fn rules_with<'a>(table: &'a Ruleset, set: &'a SetName) -> impl Iterator<Item = &'a Rule> {
    table.chains.values().flat_map(|chain| &chain.rules).filter(move |rule| looks_into(rule, set))
}

fn looks_into(rule: &Rule, set: &SetName) -> bool {
    rule.matches.iter().any(|m| matches!(m, Match::InSet(_, _, name) if name == set))
}

#[cfg(test)]
mod tests;
