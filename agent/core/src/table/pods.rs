//! Anti-spoofing of pods and dispatch of their packets to policy chains.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use imbl::{OrdMap, OrdSet};
use ipnet::{IpNet, Ipv6Net};

use super::{accept, add_chain, address_type, chain_name, drop, goto, name, overlay_port, pod_interface, set_name};
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

/// The chain that dispatches packets of pods to their policy chains: `to-pod` for ingress, `from-pod` for egress.
#[must_use]
pub fn dispatch_chain(direction: Direction) -> ChainName {
    let text = match direction {
        Direction::Ingress => TO_POD,
        Direction::Egress => FROM_POD,
    };
    name!(ChainName, text)
}

/// Adds the chain `antispoof`: accepts the pod's own source addresses, and neighbour discovery from the link-local address
/// and, during duplicate address detection, from `::` (RFC 4862, section 5.4.2).
pub(super) fn add_antispoof(ruleset: &mut Ruleset) {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let sources = set_name("sources", family);
        let key = vec![KeyType::IfName, address_type(family)];
        ruleset.sets.insert(sources.clone(), Set { key, lookup: Lookup::Hash, elements: OrdSet::new() });
        rules.push(accept([Match::InSet(vec![Field::InInterface, Field::Source(family)], CmpOp::Eq, sources)]));
    }
    let link_local = Value::Net(IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)));
    for source in [link_local, Value::Addr(IpAddr::V6(Ipv6Addr::UNSPECIFIED))] {
        let source = Match::Field(Field::Source(Family::V6), CmpOp::Eq, source);
        rules.push(accept([source, Match::NeighbourDiscovery]));
    }
    rules.push(drop([]));
    add_chain(ruleset, ANTISPOOF, None, rules);
}

/// Verdict of egress policies for allowed packets: continue with the ingress policies of the destination pod.
#[must_use]
pub fn dispatch_to_pod() -> Verdict {
    Verdict::Goto(chain_name(DISPATCH_TO_POD))
}

/// Applies a change of an endpoint to the sets of allowed source addresses.
pub(super) fn update_sources(ruleset: &mut Ruleset, before: Option<&Endpoint>, after: Option<&Endpoint>) {
    for family in Family::ALL {
        let Some(set) = ruleset.sets.get_mut(&set_name("sources", family)) else { continue };
        let elements = |endpoint: &Endpoint| -> Vec<Element> {
            let addresses = endpoint.addresses.iter().filter(|addr| Family::of(**addr) == family);
            addresses.map(|addr| vec![Value::IfName(endpoint.interface.clone()), Value::Addr(*addr)]).collect()
        };
        for element in before.into_iter().flat_map(elements) {
            set.elements.remove(&element);
        }
        set.elements.extend(after.into_iter().flat_map(elements));
    }
}

/// Sets the verdict map element of an interface in a direction. Policy chains are the target of a jump, not of a goto: a
/// packet that reaches the end of one returns to the dispatch chain, which drops it.
pub(super) fn set_verdict(ruleset: &mut Ruleset, direction: Direction, interface: &IfName, dispatch: Dispatch<'_>) {
    let Some(map) = ruleset.maps.get_mut(&map_name(direction)) else { return };
    let key = vec![Value::IfName(interface.clone())];
    let verdict = match (dispatch, direction) {
        (Dispatch::Policy(chain), _) => Some(Verdict::Jump(chain.clone())),
        (Dispatch::NotIsolated, Direction::Ingress) => Some(Verdict::Accept),
        (Dispatch::NotIsolated, Direction::Egress) => Some(dispatch_to_pod()),
        (Dispatch::Unknown, _) => None,
    };
    match verdict {
        Some(verdict) => _ = map.elements.insert(key, verdict),
        None => _ = map.elements.remove(&key),
    }
}

/// How packets of a pod interface are dispatched in one direction.
#[derive(Clone, Copy)]
pub(super) enum Dispatch<'a> {
    /// To the chain of the policies that select the pod.
    Policy(&'a ChainName),
    /// No policy selects the pod: accepted.
    NotIsolated,
    /// No endpoint has this interface: dropped.
    Unknown,
}

fn map_name(direction: Direction) -> SetName {
    name!(SetName, dispatch_chain(direction).as_str())
}

/// Adds the dispatch chains of both directions. A packet between two pods of this node passes both, and so does a packet
/// of a pod to itself.
pub(super) fn add_dispatch(ruleset: &mut Ruleset, port: u16) {
    // Conntrack does not track neighbour discovery, and a pod must resolve the node whatever its egress policies.
    let mut from_pod = vec![overlay_port::jump_overlay_to(port)];
    from_pod.extend(conntrack_rules());
    from_pod.push(accept([Match::NeighbourDiscovery]));
    add_direction(ruleset, Direction::Egress, Field::InInterface, from_pod);
    add_direction(ruleset, Direction::Ingress, Field::OutInterface, conntrack_rules().into());
    add_chain(ruleset, DISPATCH_TO_POD, None, vec![goto_to_pod(), accept([])]);
}

/// Packets from pods: egress policies.
pub(super) fn goto_from_pod() -> Rule {
    goto([pod_interface(Field::InInterface)], FROM_POD)
}

/// Packets to pods: ingress policies.
pub(super) fn goto_to_pod() -> Rule {
    goto([pod_interface(Field::OutInterface)], TO_POD)
}

/// Packets from pods: check of the source address.
pub(super) fn goto_antispoof() -> Rule {
    goto([pod_interface(Field::InInterface)], ANTISPOOF)
}

/// Adds the dispatch chain of a direction and the verdict map of the same name.
fn add_direction(ruleset: &mut Ruleset, direction: Direction, field: Field, mut rules: Vec<Rule>) {
    let map = map_name(direction);
    rules.push(Rule { matches: Vec::new(), action: Action::Dispatch(vec![field], map.clone()) });
    rules.push(drop([]));
    add_chain(ruleset, dispatch_chain(direction).as_str(), None, rules);
    ruleset.maps.insert(map, VerdictMap { key: vec![KeyType::IfName], elements: OrdMap::new() });
}

/// Decides by conntrack state: only the first packet of a connection is subject to policy.
fn conntrack_rules() -> [Rule; 3] {
    // A revoked connection keeps its conntrack entry: otherwise a reply in flight would create a new connection in the
    // opposite direction, which may be allowed.
    let revoked = drop([Match::ConnectionMarkBits(REVOKED_MARK)]);
    [revoked, accept([ct_state([CtState::Established, CtState::Related])]), drop([ct_state([CtState::Invalid])])]
}

fn ct_state(states: impl Into<BTreeSet<CtState>>) -> Match {
    Match::CtState(states.into())
}
