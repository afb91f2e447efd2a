//! Runs a ruleset over a packet, as the kernel would. The tests hold it, the policy evaluator and the kernel together.

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

/// What follows the packet's IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A protocol with ports (TCP, UDP, SCTP), and the destination's.
    Ports {
        /// Its number in the IP header: 6, 17 or 132.
        protocol: u8,
        /// The destination port.
        destination: u16,
    },
    /// One of the messages of [`Match::NeighbourDiscovery`].
    NeighbourDiscovery,
    /// Another protocol, by its number.
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

/// A packet where one hook sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it came in; `None` for the node's own.
    pub in_interface: Option<IfName>,
    /// Where it goes out, as far as the hook knows.
    pub out_interface: Option<IfName>,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address, of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport,
    /// Its state in connection tracking; `None` for the first of a new connection.
    pub state: Option<CtState>,
    /// Its mark.
    pub mark: u32,
}

/// What becomes of a packet at one hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It goes on as it is.
    Accepted,
    /// It goes on with another source address.
    Masqueraded,
    /// It is gone.
    Dropped,
}

/// A name in a rule or a map that nothing has: the kernel would not have taken it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DanglingReference {
    /// No such set or map.
    #[error("no set or map is called {0}")]
    Set(SetName),
    /// No such chain.
    #[error("no chain is called {0}")]
    Chain(ChainName),
}

/// What a rule or a chain has decided.
enum Control {
    Accept,
    Drop,
    Masquerade,
    /// Behind the call.
    Return,
    /// With the next rule.
    Next,
}

impl Ruleset {
    /// What all base chains of a hook do with a packet, in the order of their priorities. A nat chain sees only the
    /// first packet of a connection.
    ///
    /// # Errors
    /// If a rule on the packet's way names what is not there.
    pub fn interpret(&self, hook: Hook, packet: &Packet) -> Result<Outcome, DanglingReference> {
        self.walk(hook, packet, &mut Vec::new())
    }

    /// What is told of a packet at a hook, in the order in which it is told, as long as no limit is reached.
    ///
    /// # Errors
    /// As [`Ruleset::interpret`].
    pub fn logs(&self, hook: Hook, packet: &Packet) -> Result<Vec<&Log>, DanglingReference> {
        let mut logs = Vec::new();
        self.walk(hook, packet, &mut logs)?;
        Ok(logs)
    }

    fn walk<'a>(&'a self, hook: Hook, packet: &Packet, logs: &mut Vec<&'a Log>) -> Result<Outcome, DanglingReference> {
        let mut chains: Vec<_> = self.chains.values().filter_map(|c| c.base.map(|base| (base, c))).collect();
        chains.retain(|(base, _)| base.hook == hook);
        chains.sort_by_key(|(base, _)| base.priority);
        let mut outcome = Outcome::Accepted;
        for (base, chain) in chains {
            if base.chain_type == ChainType::Nat && packet.state.is_some() {
                continue;
            }
            match self.run(chain, packet, logs)? {
                Control::Drop => return Ok(Outcome::Dropped),
                Control::Masquerade => outcome = Outcome::Masqueraded,
                Control::Accept | Control::Return | Control::Next => {}
            }
        }
        Ok(outcome)
    }

    /// What one chain does with a packet, with all that it calls. Coming to its end is being accepted.
    ///
    /// # Errors
    /// If there is no such chain, or a rule on the packet's way names what is not there.
    pub fn interpret_chain(&self, chain: &ChainName, packet: &Packet) -> Result<Outcome, DanglingReference> {
        Ok(match self.run(self.chain(chain)?, packet, &mut Vec::new())? {
            Control::Drop => Outcome::Dropped,
            Control::Masquerade => Outcome::Masqueraded,
            Control::Accept | Control::Return | Control::Next => Outcome::Accepted,
        })
    }

    fn run<'a>(
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
            if !self.holds(condition, packet)? {
                return Ok(Control::Next);
            }
        }
        match &rule.action {
            Action::Verdict(verdict) => self.follow(verdict, packet, logs),
            Action::Masquerade => Ok(Control::Masquerade),
            Action::Log(log) => {
                logs.push(log);
                Ok(Control::Next)
            }
            Action::NoTrack => Ok(Control::Next),
            Action::Dispatch(fields, name) => {
                let map = self.maps.get(name).ok_or_else(|| DanglingReference::Set(name.clone()))?;
                let Some(key) = packet.key(fields) else { return Ok(Control::Next) };
                map.elements.get(&key).map_or(Ok(Control::Next), |verdict| self.follow(verdict, packet, logs))
            }
        }
    }

    fn chain(&self, name: &ChainName) -> Result<&Chain, DanglingReference> {
        self.chains.get(name).map(|chain| &**chain).ok_or_else(|| DanglingReference::Chain(name.clone()))
    }

    fn follow<'a>(
        &'a self,
        verdict: &Verdict,
        packet: &Packet,
        logs: &mut Vec<&'a Log>,
    ) -> Result<Control, DanglingReference> {
        match verdict {
            Verdict::Accept => Ok(Control::Accept),
            Verdict::Drop => Ok(Control::Drop),
            Verdict::Return => Ok(Control::Return),
            Verdict::Goto(name) => self.run(self.chain(name)?, packet, logs),
            Verdict::Jump(name) => match self.run(self.chain(name)?, packet, logs)? {
                Control::Return => Ok(Control::Next),
                decided => Ok(decided),
            },
        }
    }

    fn holds(&self, condition: &Match, packet: &Packet) -> Result<bool, DanglingReference> {
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
                packet.key(fields).is_some_and(|key| set.has(&key) == (*op == CmpOp::Eq))
            }
            Match::MarkBits(bits) => packet.mark & bits == *bits,
            // Nobody has put a mark on the connections of the packets that are interpreted.
            Match::ConnectionMarkBits(_) => false,
            Match::Family(family) => Family::of(packet.source) == *family,
            Match::NeighbourDiscovery => packet.transport == Transport::NeighbourDiscovery,
        })
    }
}

impl Packet {
    /// The field's value; `None` where the packet has none, and then no condition on it holds, not even `!=`.
    fn value(&self, field: Field) -> Option<Value> {
        let of = |addr: IpAddr, family| (Family::of(addr) == family).then_some(Value::Addr(addr));
        match field {
            Field::InInterface => self.in_interface.clone().map(Value::IfName),
            Field::OutInterface => self.out_interface.clone().map(Value::IfName),
            Field::Source(family) => of(self.source, family),
            Field::Destination(family) => of(self.destination, family),
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
    /// Whether an element covers the key. Elements never overlap, so of networks alone only the last one that begins
    /// at the address or before it can.
    fn has(&self, key: &Element) -> bool {
        let fits = |element: &Element| element.iter().zip(key).all(|(e, k)| covers(e, k));
        match (self.elements.contains(key), self.lookup, &key[..]) {
            (true, ..) => true,
            (false, Lookup::Hash, _) => false,
            (false, Lookup::Interval, [Value::Addr(addr)]) => {
                self.elements.range(..=vec![Value::Net(IpNet::from(*addr))]).next_back().is_some_and(fits)
            }
            (false, Lookup::Interval, _) => self.elements.iter().any(fits),
        }
    }
}

/// Whether a value of a rule or an element covers the single value of a packet.
fn covers(pattern: &Value, single: &Value) -> bool {
    match (pattern, single) {
        (Value::Net(IpNet::V4(net)), Value::Addr(IpAddr::V4(addr))) => net.contains(addr),
        (Value::Net(IpNet::V6(net)), Value::Addr(IpAddr::V6(addr))) => net.contains(addr),
        (Value::PortRange(first, last), Value::Port(port)) => (first..=last).contains(&port),
        (pattern, single) => pattern == single,
    }
}
