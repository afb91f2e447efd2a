//! What pods may send, and the way to the chain of a pod's policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::{IpNet, Ipv6Net};

use super::{Policy, accept, add_chain, address_type, base, drop, goto, name, of_pods, set_name};
use crate::{
    model::{Endpoint, Family},
    names::{CUT_MARK, ChainName, IfName, SetName},
    policy::ir::Direction,
    ruleset::{
        Action, ChainType, CtState, Field, Hook, KeyType, Lookup, Match, Op, Rule, Ruleset, Set, Value, Verdict,
        VerdictMap,
    },
};

const RAW: i32 = -300;
const FROM_POD: &str = "from-pod";
const TO_POD: &str = "to-pod";

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
pub(super) fn antispoof(all: &mut Ruleset, endpoints: &OrdMap<IfName, Arc<Endpoint>>) {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let sources = set_name("sources", family);
        let elements = endpoints.iter().flat_map(|(interface, endpoint)| {
            let own = endpoint.addresses.iter().filter(move |addr| Family::of(**addr) == family);
            own.map(|addr| vec![Value::IfName(interface.clone()), Value::Addr(*addr)])
        });
        let key = vec![KeyType::IfName, address_type(family)];
        all.sets.insert(sources.clone(), Set { key, lookup: Lookup::Hash, elements: elements.collect() });
        rules.push(accept([Match::InSet(vec![Field::InInterface, Field::Source(family)], Op::Is, sources)]));
    }
    let link_local = Value::Net(IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)));
    for source in [link_local, Value::Addr(IpAddr::V6(Ipv6Addr::UNSPECIFIED))] {
        let source = Match::Field(Field::Source(Family::V6), Op::Is, source);
        rules.push(accept([source, Match::NeighbourDiscovery]));
    }
    rules.push(drop([]));
    add_chain(all, "sender", None, rules);
    let hook = base(ChainType::Filter, Hook::Prerouting, RAW);
    add_chain(all, "antispoof", hook, vec![goto([of_pods(Field::InInterface)], "sender")]);
}

/// Both directions: from a pod's interface and to one. A packet between two pods of this node goes both ways, and so
/// does one from a pod to itself.
pub(super) fn dispatch(all: &mut Ruleset, endpoints: &OrdMap<IfName, Arc<Endpoint>>, policy: Policy) {
    let (ingress, egress) = match policy {
        Policy::Off => (OrdMap::new(), OrdMap::new()),
        Policy::Enforce(part) => {
            all.sets.extend(part.sets);
            all.chains.extend(part.chains);
            (part.ingress, part.egress)
        }
    };
    // Neighbour discovery is not tracked, and a pod under an egress policy still has to find the node.
    let from_pod = [drop([state([CtState::Invalid])]), accept([Match::NeighbourDiscovery])];
    add_direction(all, FROM_POD, Field::InInterface, from_pod.into(), verdicts(endpoints, egress));
    let to_pod = [drop([state([CtState::Invalid])])];
    add_direction(all, TO_POD, Field::OutInterface, to_pod.into(), verdicts(endpoints, ingress));
    let bases = [
        ("egress", Hook::Forward, 0, Field::InInterface, FROM_POD),
        ("egress-host", Hook::Input, 0, Field::InInterface, FROM_POD),
        ("ingress", Hook::Forward, 1, Field::OutInterface, TO_POD),
    ];
    for (chain, hook, priority, field, target) in bases {
        let hook = base(ChainType::Filter, hook, priority);
        add_chain(all, chain, hook, vec![goto([of_pods(field)], target)]);
    }
}

/// The map has the chain's name. Pods' chains are jumped to: who falls off the end comes back here and is dropped.
fn add_direction(
    all: &mut Ruleset,
    chain: &str,
    field: Field,
    special: Vec<Rule>,
    elements: BTreeMap<Vec<Value>, Verdict>,
) {
    let map = name!(SetName, chain);
    // What is cut stays known, so that an answer that is on its way does not begin the connection anew in the other
    // direction, where it may be allowed.
    let cut = drop([Match::ConnectionMarkBits(CUT_MARK)]);
    let mut rules = vec![cut, accept([state([CtState::Established, CtState::Related])])];
    rules.extend(special);
    rules.push(Rule { matches: Vec::new(), action: Action::Dispatch(vec![field], map.clone()) });
    rules.push(drop([]));
    add_chain(all, chain, None, rules);
    all.maps.insert(map, VerdictMap { key: vec![KeyType::IfName], elements: elements.into() });
}

fn verdicts(
    endpoints: &OrdMap<IfName, Arc<Endpoint>>,
    mut chains: OrdMap<IfName, ChainName>,
) -> BTreeMap<Vec<Value>, Verdict> {
    let verdict = |interface: &IfName| {
        let verdict = chains.remove(interface).map_or(Verdict::Accept, Verdict::Jump);
        (vec![Value::IfName(interface.clone())], verdict)
    };
    endpoints.keys().map(verdict).collect()
}

fn state(states: impl Into<BTreeSet<CtState>>) -> Match {
    Match::CtState(states.into())
}
