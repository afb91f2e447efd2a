//! What pods may send, and the way to the chain of a pod's policy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use imbl::{OrdMap, OrdSet};
use ipnet::{IpNet, Ipv6Net};

use super::{accept, add_chain, address_type, chain_name, drop, goto, name, of_pods, overlay_port, set_name};
use crate::{
    model::{Endpoint, Family},
    names::{ChainName, IfName, REVOKED_MARK, SetName},
    policy::ir::Direction,
    ruleset::{
        Action, CmpOp, CtState, Element, Field, KeyType, Lookup, Match, Rule, Ruleset, Set, Value, Verdict, VerdictMap,
    },
};

const ANTISPOOF: &str = "antispoof";
const FROM_POD: &str = "from-pod";
const TO_POD: &str = "to-pod";
const DISPATCH_TO_POD: &str = "dispatch-to-pod";

/// The chain that every packet of a pod goes through in a direction, on its way to the pod's own.
#[must_use]
pub fn dispatch_chain(direction: Direction) -> ChainName {
    let text = match direction {
        Direction::Ingress => TO_POD,
        Direction::Egress => FROM_POD,
    };
    name!(ChainName, text)
}

/// A pod's interface sends from its own addresses; over IPv6 also what it needs to find its neighbours, before it has an
/// address (RFC 4862, section 5.4.2: from `::`) and from its link-local one.
pub(super) fn antispoof(all: &mut Ruleset) {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let sources = set_name("sources", family);
        let key = vec![KeyType::IfName, address_type(family)];
        all.sets.insert(sources.clone(), Set { key, lookup: Lookup::Hash, elements: OrdSet::new() });
        rules.push(accept([Match::InSet(vec![Field::InInterface, Field::Source(family)], CmpOp::Eq, sources)]));
    }
    let link_local = Value::Net(IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)));
    for source in [link_local, Value::Addr(IpAddr::V6(Ipv6Addr::UNSPECIFIED))] {
        let source = Match::Field(Field::Source(Family::V6), CmpOp::Eq, source);
        rules.push(accept([source, Match::NeighbourDiscovery]));
    }
    rules.push(drop([]));
    add_chain(all, ANTISPOOF, None, rules);
}

/// What a sender's policy does with what it accepts: the receiver is asked.
#[must_use]
pub fn dispatch_to_pod() -> Verdict {
    Verdict::Goto(chain_name(DISPATCH_TO_POD))
}

/// From which addresses a pod sends.
pub(super) fn set_sources(all: &mut Ruleset, before: Option<&Endpoint>, after: Option<&Endpoint>) {
    for family in Family::ALL {
        let Some(set) = all.sets.get_mut(&set_name("sources", family)) else { continue };
        let elements = |endpoint: &Endpoint| -> Vec<Element> {
            let own = endpoint.addresses.iter().filter(|addr| Family::of(**addr) == family);
            own.map(|addr| vec![Value::IfName(endpoint.interface.clone()), Value::Addr(*addr)]).collect()
        };
        for element in before.into_iter().flat_map(elements) {
            set.elements.remove(&element);
        }
        set.elements.extend(after.into_iter().flat_map(elements));
    }
}

/// Where packets of a known pod go in a direction: to the chain of its policies if it has one there. Pods' chains are
/// jumped to: who falls off the end comes back and is dropped.
pub(super) fn set_verdict(all: &mut Ruleset, direction: Direction, interface: &IfName, known: KnownEndpoint<'_>) {
    let Some(map) = all.maps.get_mut(&map_name(direction)) else { return };
    let key = vec![Value::IfName(interface.clone())];
    let free = || match direction {
        Direction::Ingress => Verdict::Accept,
        Direction::Egress => dispatch_to_pod(),
    };
    match known {
        KnownEndpoint::Yes(chain) => {
            _ = map.elements.insert(key, chain.map_or_else(free, |c| Verdict::Jump(c.clone())));
        }
        KnownEndpoint::No => _ = map.elements.remove(&key),
    }
}

/// Whether an interface is a known pod's, and the chain of the pod's policies in a direction.
#[derive(Clone, Copy)]
pub(super) enum KnownEndpoint<'a> {
    Yes(Option<&'a ChainName>),
    No,
}

fn map_name(direction: Direction) -> SetName {
    name!(SetName, dispatch_chain(direction).as_str())
}

/// Both directions: from a pod's interface and to one. A packet between two pods of this node goes both ways, and so
/// does one from a pod to itself.
pub(super) fn dispatch(all: &mut Ruleset, port: u16) {
    // Neighbour discovery is not tracked, and a pod under an egress policy still has to find the node.
    let mut from_pod = vec![overlay_port::from_pods(port)];
    from_pod.extend(known());
    from_pod.push(accept([Match::NeighbourDiscovery]));
    add_direction(all, Direction::Egress, Field::InInterface, from_pod);
    add_direction(all, Direction::Ingress, Field::OutInterface, known().into());
    add_chain(all, DISPATCH_TO_POD, None, vec![receives(), accept([])]);
}

/// The way to the policy of the pod that sends.
pub(super) fn sends() -> Rule {
    goto([of_pods(Field::InInterface)], FROM_POD)
}

/// The way to the policy of the pod that receives.
pub(super) fn receives() -> Rule {
    goto([of_pods(Field::OutInterface)], TO_POD)
}

/// The way to the check of a pod's own addresses.
pub(super) fn is_itself() -> Rule {
    goto([of_pods(Field::InInterface)], ANTISPOOF)
}

/// The map has the chain's name.
fn add_direction(all: &mut Ruleset, direction: Direction, field: Field, mut rules: Vec<Rule>) {
    let map = map_name(direction);
    rules.push(Rule { matches: Vec::new(), action: Action::Dispatch(vec![field], map.clone()) });
    rules.push(drop([]));
    add_chain(all, dispatch_chain(direction).as_str(), None, rules);
    all.maps.insert(map, VerdictMap { key: vec![KeyType::IfName], elements: OrdMap::new() });
}

/// What connection tracking has to say: only of first packets a policy is asked.
fn known() -> [Rule; 3] {
    // What is cut stays known, so that an answer that is on its way does not begin the connection anew in the other
    // direction, where it may be allowed.
    let cut = drop([Match::ConnectionMarkBits(REVOKED_MARK)]);
    [cut, accept([state([CtState::Established, CtState::Related])]), drop([state([CtState::Invalid])])]
}

fn state(states: impl Into<BTreeSet<CtState>>) -> Match {
    Match::CtState(states.into())
}
