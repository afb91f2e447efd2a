//! The overlay's port is the nodes' own: a frame that a pod could put there would come out behind every policy.

use std::net::IpAddr;

use imbl::{OrdSet, ordset::DiffItem};

use super::{
    TableInput, accept, add_chain, address_type, chain_name, drop, goto, in_set, networks, set_name, to_overlay,
};
use crate::{
    model::Family,
    ruleset::{Action, Field, Lookup, Match, Rule, Ruleset, Set, Value, Verdict},
};

const OVERLAY_FROM: &str = "overlay-from";
const OVERLAY_TO: &str = "overlay-to";

pub(super) fn add(all: &mut Ruleset, input: &TableInput<'_>) {
    let mut from = Vec::new();
    let mut to = Vec::new();
    for family in Family::ALL {
        let nodes = Set { key: vec![address_type(family)], lookup: Lookup::Hash, elements: OrdSet::new() };
        all.sets.insert(set_name("nodes", family), nodes);
        from.push(accept([in_set(Field::Source(family), "nodes", family)]));
        all.sets.insert(set_name("pods", family), networks(family, input.cluster_pod_cidrs));
        to.push(Rule::verdict(vec![in_set(Field::Destination(family), "pods", family)], Verdict::Return));
    }
    from.push(drop([]));
    // Whatever is no pod may be a node: it can have addresses that its Node object does not list, and masquerade would
    // give the packet a node's source address.
    to.push(drop([]));
    add_chain(all, OVERLAY_FROM, None, from);
    add_chain(all, OVERLAY_TO, None, to);
}

/// Nodes that came and went.
pub(super) fn set_nodes(all: &mut Ruleset, before: &OrdSet<IpAddr>, after: &OrdSet<IpAddr>) {
    for item in before.diff(after) {
        let (DiffItem::Add(address) | DiffItem::Remove(address)) = item;
        let Some(set) = all.sets.get_mut(&set_name("nodes", Family::of(*address))) else { continue };
        let element = vec![Value::Addr(*address)];
        match item {
            DiffItem::Add(_) => _ = set.elements.insert(element),
            DiffItem::Remove(_) => _ = set.elements.remove(&element),
        }
    }
}

/// What comes in for the overlay: only nodes may send it.
pub(super) fn incoming(port: u16) -> Rule {
    goto(to_overlay(port), OVERLAY_FROM)
}

/// What a pod sends to the overlay's port: only to pods. Asked before the state of the connection, because a flow can be
/// established since a time when its sender was a node or the port another.
pub(super) fn from_pods(port: u16) -> Rule {
    Rule::verdict(to_overlay(port).into(), Verdict::Jump(chain_name(OVERLAY_TO)))
}

/// The overlay's packets between nodes; others may use the port for what they like, and rely on NAT. `end` is the other
/// node's.
pub(super) fn untracked(end: fn(Family) -> Field, port: u16) -> [Rule; 2] {
    Family::ALL.map(|family| {
        let mut matches: Vec<Match> = to_overlay(port).into();
        matches.push(in_set(end(family), "nodes", family));
        Rule { matches, action: Action::NoTrack }
    })
}
