//! Evaluates a ruleset for a packet as the kernel does. Tests compare it with the policy evaluator and with the kernel.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, Chain, ChainType, CmpOp, CtState, Element, Field, Hook, Log, Lookup, Match, Rule, Ruleset, Set, Value,
    Verdict,
};
use crate::{
    model::Family,
    names::{ChainName, IfName, SetName},
};

/// The transport header of a packet, as far as rules match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A protocol with ports.
    Ports {
        /// Protocol number: 6 (TCP), 17 (UDP) or 132 (SCTP).
        protocol: u8,
        /// Destination port.
        destination: u16,
    },
    /// An ICMPv6 message that [`Match::NeighbourDiscovery`] matches.
    NeighbourDiscovery,
    /// Any other protocol, by its number.
    Other(u8),
}

impl Transport {
    const ICMPV6: u8 = 58;

    const fn protocol(self) -> u8 {
        match self {
            Self::Ports { protocol, .. } | Self::Other(protocol) => protocol,
            Self::NeighbourDiscovery => Self::ICMPV6,
        }
    }
}

/// A packet as a hook sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Input interface; `None` for a packet of the node itself.
    pub in_interface: Option<IfName>,
    /// Output interface; `None` at hooks before routing, and for packets to the node.
    pub out_interface: Option<IfName>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family as the source.
    pub destination: IpAddr,
    /// Transport protocol and destination port.
    pub transport: Transport,
    /// Conntrack state; `None` for the first packet of a connection.
    pub state: Option<CtState>,
    /// Packet mark (`meta mark`).
    pub mark: u32,
}

/// The result of all base chains of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No base chain drops the packet.
    Accepted,
    /// The packet is accepted and gets the node's source address.
    Masqueraded,
    /// A base chain drops the packet.
    Dropped,
}

/// A rule or a map element refers to an object that does not exist. The kernel would have rejected it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DanglingReference {
    /// Name of a missing set or map.
    #[error("set or map {0} does not exist")]
    Set(SetName),
    /// Name of a missing chain.
    #[error("chain {0} does not exist")]
    Chain(ChainName),
}

/// How evaluation continues after a rule or a chain.
enum Control {
    Accept,
    Drop,
    Masquerade,
    /// Continue after the rule that jumped to this chain.
    Return,
    /// Continue with the next rule.
    Next,
}

impl Ruleset {
    /// Evaluates all base chains of a hook in order of priority. Skips nat chains for all but the first packet of a
    /// connection.
    ///
    /// # Errors
    /// If an evaluated rule or element refers to an object that does not exist.
    pub fn interpret(&self, hook: Hook, packet: &Packet) -> Result<Outcome, DanglingReference> {
        self.run_hook(hook, packet, &mut Vec::new())
    }

    /// The log statements that a packet reaches at a hook, in order of evaluation. Ignores rate limits.
    ///
    /// # Errors
    /// As [`Ruleset::interpret`].
    pub fn logs(&self, hook: Hook, packet: &Packet) -> Result<Vec<&Log>, DanglingReference> {
        let mut logs = Vec::new();
        self.run_hook(hook, packet, &mut logs)?;
        Ok(logs)
    }

    fn run_hook<'a>(
        &'a self,
        hook: Hook,
        packet: &Packet,
        logs: &mut Vec<&'a Log>,
    ) -> Result<Outcome, DanglingReference> {
        let mut chains: Vec<_> = self.chains.values().filter_map(|c| c.base.map(|base| (base, c))).collect();
        chains.retain(|(base, _)| base.hook == hook);
        chains.sort_by_key(|(base, _)| base.priority);
        let mut outcome = Outcome::Accepted;
        for (base, chain) in chains {
            if base.chain_type == ChainType::Nat && packet.state.is_some() {
                continue;
            }
            match self.run_chain(chain, packet, logs)? {
                Control::Drop => return Ok(Outcome::Dropped),
                Control::Masquerade => outcome = Outcome::Masqueraded,
                Control::Accept | Control::Return | Control::Next => {}
            }
        }
        Ok(outcome)
    }

    /// Evaluates one chain and the chains it jumps or goes to. The end of the chain counts as accept.
    ///
    /// # Errors
    /// If the chain, or an object that an evaluated rule or element refers to, does not exist.
    pub fn interpret_chain(&self, chain: &ChainName, packet: &Packet) -> Result<Outcome, DanglingReference> {
        Ok(match self.run_chain(self.chain(chain)?, packet, &mut Vec::new())? {
            Control::Drop => Outcome::Dropped,
            Control::Masquerade => Outcome::Masqueraded,
            Control::Accept | Control::Return | Control::Next => Outcome::Accepted,
        })
    }

    fn run_chain<'a>(
        &'a self,
        chain: &'a Chain,
        packet: &Packet,
        logs: &mut Vec<&'a Log>,
    ) -> Result<Control, DanglingReference> {
        for rule in &chain.rules {
            match self.run_rule(rule, packet, logs)? {
                Control::Next => {}
                decided => return Ok(decided),
            }
        }
        Ok(Control::Return)
    }

    fn run_rule<'a>(
        &'a self,
        rule: &'a Rule,
        packet: &Packet,
        logs: &mut Vec<&'a Log>,
    ) -> Result<Control, DanglingReference> {
        for condition in &rule.matches {
            if !self.matches(condition, packet)? {
                return Ok(Control::Next);
            }
        }
        match &rule.action {
            Action::Verdict(verdict) => self.run_verdict(verdict, packet, logs),
            Action::Masquerade => Ok(Control::Masquerade),
            Action::Log(log) => {
                logs.push(log);
                Ok(Control::Next)
            }
            Action::NoTrack => Ok(Control::Next),
            Action::Dispatch(fields, name) => {
                let map = self.maps.get(name).ok_or_else(|| DanglingReference::Set(name.clone()))?;
                let Some(key) = packet.key(fields) else { return Ok(Control::Next) };
                map.elements.get(&key).map_or(Ok(Control::Next), |verdict| self.run_verdict(verdict, packet, logs))
            }
        }
    }

    fn chain(&self, name: &ChainName) -> Result<&Chain, DanglingReference> {
        self.chains.get(name).map(|chain| &**chain).ok_or_else(|| DanglingReference::Chain(name.clone()))
    }

    fn run_verdict<'a>(
        &'a self,
        verdict: &Verdict,
        packet: &Packet,
        logs: &mut Vec<&'a Log>,
    ) -> Result<Control, DanglingReference> {
        match verdict {
            Verdict::Accept => Ok(Control::Accept),
            Verdict::Drop => Ok(Control::Drop),
            Verdict::Return => Ok(Control::Return),
            Verdict::Goto(name) => self.run_chain(self.chain(name)?, packet, logs),
            Verdict::Jump(name) => match self.run_chain(self.chain(name)?, packet, logs)? {
                Control::Return => Ok(Control::Next),
                decided => Ok(decided),
            },
        }
    }

    fn matches(&self, condition: &Match, packet: &Packet) -> Result<bool, DanglingReference> {
        Ok(match condition {
            Match::CtState(states) => packet.state.is_some_and(|state| states.contains(&state)),
            Match::Field(field, op, value) => {
                packet.value(*field).is_some_and(|have| covers(value, &have) == (*op == CmpOp::Eq))
            }
            Match::InterfacePrefix(field, prefix) => match packet.value(*field) {
                Some(Value::IfName(name)) => name.as_str().starts_with(prefix.as_str()),
                _ => false,
            },
            Match::InSet(fields, op, name) => {
                let set = self.sets.get(name).ok_or_else(|| DanglingReference::Set(name.clone()))?;
                packet.key(fields).is_some_and(|key| set.contains(&key) == (*op == CmpOp::Eq))
            }
            Match::MarkBits(bits) => packet.mark & bits == *bits,
            // `Packet` has no connection mark: its connection is never revoked.
            Match::ConnectionMarkBits(_) => false,
            Match::Family(family) => Family::of(packet.source) == *family,
            Match::NeighbourDiscovery => packet.transport == Transport::NeighbourDiscovery,
        })
    }
}

impl Packet {
    /// The value of a field. `None` if the packet has no such field; then no condition on it matches, not even `!=`.
    fn value(&self, field: Field) -> Option<Value> {
        let address = |addr: IpAddr, family| (Family::of(addr) == family).then_some(Value::Addr(addr));
        match field {
            Field::InInterface => self.in_interface.clone().map(Value::IfName),
            Field::OutInterface => self.out_interface.clone().map(Value::IfName),
            Field::Source(family) => address(self.source, family),
            Field::Destination(family) => address(self.destination, family),
            Field::Proto => Some(Value::Proto(self.transport.protocol())),
            Field::DestinationPort => match self.transport {
                Transport::Ports { destination, .. } => Some(Value::Port(destination)),
                Transport::NeighbourDiscovery | Transport::Other(_) => None,
            },
        }
    }

    fn key(&self, fields: &[Field]) -> Option<Element> {
        fields.iter().map(|field| self.value(*field)).collect()
    }
}

impl Set {
    /// Whether an element covers the key. Intervals do not overlap, so in a set of plain networks only the last one that
    /// begins at or before the address can cover it.
    fn contains(&self, key: &Element) -> bool {
        let covers_key = |element: &Element| element.iter().zip(key).all(|(e, k)| covers(e, k));
        match (self.elements.contains(key), self.lookup, &key[..]) {
            (true, ..) => true,
            (false, Lookup::Hash, _) => false,
            (false, Lookup::Interval, [Value::Addr(addr)]) => {
                self.elements.range(..=vec![Value::Net(IpNet::from(*addr))]).next_back().is_some_and(covers_key)
            }
            (false, Lookup::Interval, _) => self.elements.iter().any(covers_key),
        }
    }
}

/// Whether a value of a rule or an element covers a value of a packet.
fn covers(pattern: &Value, single: &Value) -> bool {
    match (pattern, single) {
        (Value::Net(IpNet::V4(net)), Value::Addr(IpAddr::V4(addr))) => net.contains(addr),
        (Value::Net(IpNet::V6(net)), Value::Addr(IpAddr::V6(addr))) => net.contains(addr),
        (Value::PortRange(first, last), Value::Port(port)) => (first..=last).contains(&port),
        (pattern, single) => pattern == single,
    }
}
