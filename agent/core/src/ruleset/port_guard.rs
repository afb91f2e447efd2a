//! Decides where a rule must match the protocol before it reads a port.
//!
//! `th dport` reads two bytes of the transport header whatever the protocol is, such as the checksum of an ICMP message.
//! So a match on [`PROTOCOLS_WITH_PORTS`] precedes it, unless the rule has matched the protocol already or looks it up
//! together with the port.

use super::{Action, CmpOp, Field, Match, Rule, Value};

/// Protocol numbers of TCP, UDP and SCTP.
pub const PROTOCOLS_WITH_PORTS: [u8; 3] = [6, 17, 132];

impl Rule {
    /// Index of the condition before which the rule must match [`PROTOCOLS_WITH_PORTS`]; the number of conditions stands
    /// for the action. `None` if no such match is needed.
    #[must_use]
    pub fn port_guard(&self) -> Option<usize> {
        let protocol = self.matches.iter().position(is_protocol_with_ports).unwrap_or(usize::MAX);
        let port = self.matches.iter().position(reads_any_protocol);
        let port = port.or_else(|| match &self.action {
            Action::Dispatch(fields, _) if read_any_protocol(fields) => Some(self.matches.len()),
            Action::Dispatch(..) | Action::Verdict(_) | Action::Masquerade | Action::Log(_) | Action::NoTrack => None,
        });
        port.filter(|port| *port < protocol)
    }
}

fn read_any_protocol(fields: &[Field]) -> bool {
    fields.contains(&Field::DestinationPort) && !fields.contains(&Field::Proto)
}

fn reads_any_protocol(condition: &Match) -> bool {
    match condition {
        Match::Field(field, ..) => read_any_protocol(&[*field]),
        Match::InSet(fields, ..) => read_any_protocol(fields),
        Match::CtState(_)
        | Match::InterfacePrefix(..)
        | Match::MarkBits(_)
        | Match::ConnectionMarkBits(_)
        | Match::Family(_)
        | Match::NeighbourDiscovery => false,
    }
}

const fn is_protocol_with_ports(condition: &Match) -> bool {
    matches!(condition, Match::Field(Field::Proto, CmpOp::Eq, Value::Proto(6 | 17 | 132)))
}
