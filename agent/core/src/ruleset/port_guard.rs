//! Where a rule must look at the protocol before it looks at a port.
//!
//! `th dport` alone would read two bytes of any protocol, of an ICMP message its checksum: so the protocols that have
//! ports come first, unless the protocol is looked up together with the port or has been matched before.

use super::{Action, CmpOp, Field, Match, Rule, Value};

/// TCP, UDP and SCTP.
pub const PROTOCOLS_WITH_PORTS: [u8; 3] = [6, 17, 132];

impl Rule {
    /// Before which of its conditions the rule must ask for one of [`PROTOCOLS_WITH_PORTS`]; the number of conditions
    /// stands for the action.
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
