//! What pods may send, and the way to the chain of a pod's policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::{IpNet, Ipv6Net};

use super::{Policy, accept, add_chain, address_type, chain_name, drop, goto, guard, name, of_pods, set_name};
use crate::{
    model::{Endpoint, Family},
    names::{CUT_MARK, ChainName, IfName, SetName},
    policy::ir::Direction,
    ruleset::{Action, CtState, Field, KeyType, Lookup, Match, Op, Rule, Ruleset, Set, Value, Verdict, VerdictMap},
};

const SENDER: &str = "sender";
const FROM_POD: &str = "from-pod";
const TO_POD: &str = "to-pod";
const RECEIVER: &str = "receiver";

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
    add_chain(all, SENDER, None, rules);
}

/// What a sender's policy does with what it accepts: the receiver is asked.
#[must_use]
pub fn to_receiver() -> Verdict {
    Verdict::Goto(chain_name(RECEIVER))
}

/// Both directions: from a pod's interface and to one. A packet between two pods of this node goes both ways, and so
/// does one from a pod to itself.
pub(super) fn dispatch(all: &mut Ruleset, endpoints: &OrdMap<IfName, Arc<Endpoint>>, policy: Policy, port: u16) {
    let (ingress, egress) = match policy {
        Policy::Off => (OrdMap::new(), OrdMap::new()),
        Policy::Enforce(part) => {
            all.sets.extend(part.sets);
            all.chains.extend(part.chains);
            (part.ingress, part.egress)
        }
    };
    // Neighbour discovery is not tracked, and a pod under an egress policy still has to find the node.
    let mut from_pod = vec![guard::from_pods(port)];
    from_pod.extend(known());
    from_pod.push(accept([Match::NeighbourDiscovery]));
    let elements = verdicts(endpoints, egress, &to_receiver());
    add_direction(all, FROM_POD, Field::InInterface, from_pod, elements);
    let elements = verdicts(endpoints, ingress, &Verdict::Accept);
    add_direction(all, TO_POD, Field::OutInterface, known().into(), elements);
    add_chain(all, RECEIVER, None, vec![receives(), accept([])]);
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
    goto([of_pods(Field::InInterface)], SENDER)
}

/// The map has the chain's name. Pods' chains are jumped to: who falls off the end comes back here and is dropped.
fn add_direction(
    all: &mut Ruleset,
    chain: &str,
    field: Field,
    mut rules: Vec<Rule>,
    elements: BTreeMap<Vec<Value>, Verdict>,
) {
    let map = name!(SetName, chain);
    rules.push(Rule { matches: Vec::new(), action: Action::Dispatch(vec![field], map.clone()) });
    rules.push(drop([]));
    add_chain(all, chain, None, rules);
    all.maps.insert(map, VerdictMap { key: vec![KeyType::IfName], elements: elements.into() });
}

/// What connection tracking has to say: only of first packets a policy is asked.
fn known() -> [Rule; 3] {
    // What is cut stays known, so that an answer that is on its way does not begin the connection anew in the other
    // direction, where it may be allowed.
    let cut = drop([Match::ConnectionMarkBits(CUT_MARK)]);
    [cut, accept([state([CtState::Established, CtState::Related])]), drop([state([CtState::Invalid])])]
}

/// `free` is for pods that no policy isolates.
fn verdicts(
    endpoints: &OrdMap<IfName, Arc<Endpoint>>,
    mut chains: OrdMap<IfName, ChainName>,
    free: &Verdict,
) -> BTreeMap<Vec<Value>, Verdict> {
    let verdict = |interface: &IfName| {
        let verdict = chains.remove(interface).map_or_else(|| free.clone(), Verdict::Jump);
        (vec![Value::IfName(interface.clone())], verdict)
    };
    endpoints.keys().map(verdict).collect()
}

fn state(states: impl Into<BTreeSet<CtState>>) -> Match {
    Match::CtState(states.into())
}
