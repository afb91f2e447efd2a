//! The overlay's port is the nodes' own: a frame that a pod could put there would come out behind every policy.

use super::{
    TableInput, accept, add_chain, address_type, base, drop, goto, in_set, networks, of_pods, set_name, to_overlay,
};
use crate::{
    model::Family,
    ruleset::{ChainType, Field, Hook, Lookup, Ruleset, Set, Value},
};

/// In chains of their own, because an accept ends only the chain that it is in: a flow that is established, as it is when
/// its sender has been a node until now, is not let through. Before the policies only because it is cheaper.
const BEFORE_FILTER: i32 = -1;

pub(super) fn add(all: &mut Ruleset, input: &TableInput<'_>) {
    let mut from = Vec::new();
    let mut to = Vec::new();
    for family in Family::ALL {
        let nodes = input.node_addresses.iter().filter(|addr| Family::of(**addr) == family);
        let elements = nodes.map(|addr| vec![Value::Addr(*addr)]).collect();
        let nodes = Set { key: vec![address_type(family)], lookup: Lookup::Hash, elements };
        all.sets.insert(set_name("nodes", family), nodes);
        from.push(accept([in_set(Field::Source(family), "nodes", family)]));
        all.sets.insert(set_name("pods", family), networks(family, input.cluster_pod_cidrs));
        to.push(accept([in_set(Field::Destination(family), "pods", family)]));
    }
    from.push(drop([]));
    // Whatever is no pod may be a node: it can have addresses that its Node object does not list, and masquerade would
    // give the packet a node's source address.
    to.push(drop([]));
    add_chain(all, "overlay-from", None, from);
    add_chain(all, "overlay-to", None, to);

    let hook = base(ChainType::Filter, Hook::Input, BEFORE_FILTER);
    add_chain(all, "guard-input", hook, vec![goto(to_overlay(input.vxlan_port), "overlay-from")]);
    let [udp, port] = to_overlay(input.vxlan_port);
    let hook = base(ChainType::Filter, Hook::Forward, BEFORE_FILTER);
    add_chain(all, "guard-forward", hook, vec![goto([of_pods(Field::InInterface), udp, port], "overlay-to")]);
}
