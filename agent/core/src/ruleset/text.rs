//! Renders rulesets in nft syntax. A kernel test loads every form and reads it back.

use std::fmt::{self, Display};

use imbl::{OrdMap, OrdSet};

use super::{
    Action, BaseChain, ChainType, CmpOp, CtState, Element, Field, Hook, KeyType, Log, Lookup, Match,
    PROTOCOLS_WITH_PORTS, Rule, Value, Verdict,
};
use crate::{model::Family, names::Comment};

/// Family and name of our table in commands. A test compares it with [`crate::names::TABLE`].
pub(super) const TABLE: &str = "inet towpath";

/// The declaration of a set, map or chain: the part of an `add` command after the name.
pub(super) enum Declaration<'a> {
    Set(&'a [KeyType], Lookup, Option<&'a Comment>),
    Map(&'a [KeyType], Option<&'a Comment>),
    /// Prints a leading space, because a regular chain without a comment has no declaration.
    Chain(Option<&'a BaseChain>, Option<&'a Comment>),
}

impl Display for Declaration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comment = |comment: &Option<&Comment>| comment.map_or_else(String::new, |c| format!(" comment \"{c}\";"));
        match self {
            Self::Set(key, Lookup::Hash, c) => write!(f, "{{ type {};{} }}", Joined(key, " . "), comment(c)),
            Self::Set(key, Lookup::Interval, c) => {
                write!(f, "{{ type {}; flags interval;{} }}", Joined(key, " . "), comment(c))
            }
            Self::Map(key, c) => write!(f, "{{ type {} : verdict;{} }}", Joined(key, " . "), comment(c)),
            Self::Chain(None, None) => Ok(()),
            Self::Chain(None, c) => write!(f, " {{{} }}", comment(c)),
            Self::Chain(Some(base), c) => write!(f, " {{ {base};{} }}", comment(c)),
        }
    }
}

/// A list of elements in braces.
pub(super) struct ElementList<'a, T>(pub &'a T);

impl Display for ElementList<'_, OrdSet<Element>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ ")?;
        for (i, element) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}", Joined(element, " . "))?;
        }
        f.write_str(" }")
    }
}

impl Display for ElementList<'_, OrdMap<Element, Verdict>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ ")?;
        for (i, (element, verdict)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} : {verdict}", Joined(element, " . "))?;
        }
        f.write_str(" }")
    }
}

/// Items with a separator.
struct Joined<'a, T>(&'a [T], &'static str);

impl<T: Display> Display for Joined<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(self.1)?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

impl Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::IfName => "ifname",
            Self::Proto => "inet_proto",
            Self::Port => "inet_service",
        })
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::Proto(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::PortRange(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InInterface => "iifname",
            Self::OutInterface => "oifname",
            Self::Source(Family::V4) => "ip saddr",
            Self::Source(Family::V6) => "ip6 saddr",
            Self::Destination(Family::V4) => "ip daddr",
            Self::Destination(Family::V6) => "ip6 daddr",
            Self::Proto => "meta l4proto",
            Self::DestinationPort => "th dport",
        })
    }
}

impl Display for CtState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
        })
    }
}

impl Display for CmpOp {
    /// Prints the surrounding spaces. nft compares for equality if no operator is given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eq => " ",
            Self::NotEq => " != ",
        })
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CtState(states) => {
                let states: Vec<_> = states.iter().collect();
                write!(f, "ct state {}", Joined(&states, ","))
            }
            Self::Field(field, op, value) => write!(f, "{field}{op}{value}"),
            Self::InterfacePrefix(field, prefix) => write!(f, "{field} \"{prefix}*\""),
            Self::InSet(fields, op, set) => write!(f, "{}{op}@{set}", Joined(fields, " . ")),
            Self::MarkBits(bits) => write!(f, "meta mark & {bits:#x} == {bits:#x}"),
            Self::ConnectionMarkBits(bits) => write!(f, "ct mark & {bits:#x} == {bits:#x}"),
            Self::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::NeighbourDiscovery => {
                f.write_str("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }")
            }
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Dispatch(fields, map) => write!(f, "{} vmap @{map}", Joined(fields, " . ")),
            Self::Masquerade => f.write_str("masquerade fully-random"),
            Self::Log(log) => log.fmt(f),
            Self::NoTrack => f.write_str("notrack"),
        }
    }
}

impl Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, group, snaplen, rate, burst } = self;
        write!(
            f,
            "limit rate {rate}/second burst {burst} packets log prefix \"{prefix}\" group {group} snaplen {snaplen}"
        )
    }
}

/// Prints the rule without its comment.
impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guard = self.port_guard();
        let [a, b, c] = PROTOCOLS_WITH_PORTS;
        for index in 0..=self.matches.len() {
            if guard == Some(index) {
                write!(f, "meta l4proto {{ {a}, {b}, {c} }} ")?;
            }
            match self.matches.get(index) {
                Some(condition) => write!(f, "{condition} ")?,
                None => self.action.fmt(f)?,
            }
        }
        Ok(())
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl Display for ChainType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        })
    }
}

impl Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {} hook {} priority {}; policy accept", self.chain_type, self.hook, self.priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    #[test]
    fn commands_use_the_table_name_of_names() {
        assert_eq!(TABLE, format!("inet {}", names::TABLE));
    }

    #[test]
    fn a_port_match_is_preceded_by_a_match_on_protocols_with_ports() {
        let port = Match::Field(Field::DestinationPort, CmpOp::Eq, Value::Port(80));
        let protocol = |n| Match::Field(Field::Proto, CmpOp::Eq, Value::Proto(n));
        for (matches, text, why) in [
            (vec![port.clone()], "meta l4proto { 6, 17, 132 } th dport 80 drop", "no protocol matched"),
            (vec![protocol(17), port.clone()], "meta l4proto 17 th dport 80 drop", "UDP already matched"),
            (
                vec![protocol(1), port.clone()],
                "meta l4proto 1 meta l4proto { 6, 17, 132 } th dport 80 drop",
                "ICMP has no ports",
            ),
            (
                vec![port.clone(), port],
                "meta l4proto { 6, 17, 132 } th dport 80 th dport 80 drop",
                "only before the first port",
            ),
        ] {
            assert_eq!(Rule::verdict(matches, Verdict::Drop).to_string(), text, "{why}");
        }
    }
}
