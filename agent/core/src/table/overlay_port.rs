//! Protects the overlay port. A pod that could send VXLAN packets to a node would inject frames that bypass policy.

use std::net::IpAddr;

use imbl::{OrdSet, ordset::DiffItem};

use super::{
    TableInput, accept, add_chain, address_type, chain_name, drop, goto, in_set, networks, set_name, to_overlay_port,
};
use crate::{
    model::Family,
    ruleset::{Action, Field, Lookup, Match, Rule, Ruleset, Set, Value, Verdict},
};

const OVERLAY_FROM: &str = "overlay-from";
const OVERLAY_TO: &str = "overlay-to";

pub(super) fn add(ruleset: &mut Ruleset, input: &TableInput<'_>) {
    let mut from = Vec::new();
    let mut to = Vec::new();
    for family in Family::ALL {
        let nodes = Set { key: vec![address_type(family)], lookup: Lookup::Hash, elements: OrdSet::new() };
        ruleset.sets.insert(set_name("nodes", family), nodes);
        from.push(accept([in_set(Field::Source(family), "nodes", family)]));
        ruleset.sets.insert(set_name("pods", family), networks(family, input.cluster_pod_cidrs));
        to.push(Rule::verdict(vec![in_set(Field::Destination(family), "pods", family)], Verdict::Return));
    }
    from.push(drop([]));
    // Any other destination may be a node: a node can have addresses that its Node object does not list. The packet
    // would pass the check there, because masquerade gives it a node's source address.
    to.push(drop([]));
    add_chain(ruleset, OVERLAY_FROM, None, from);
    add_chain(ruleset, OVERLAY_TO, None, to);
}

/// Applies a change of the nodes' addresses to the `nodes` sets.
pub(super) fn update_nodes(ruleset: &mut Ruleset, before: &OrdSet<IpAddr>, after: &OrdSet<IpAddr>) {
    for item in before.diff(after) {
        let (DiffItem::Add(address) | DiffItem::Remove(address)) = item;
        let Some(set) = ruleset.sets.get_mut(&set_name("nodes", Family::of(*address))) else { continue };
        let element = vec![Value::Addr(*address)];
        match item {
            DiffItem::Add(_) => _ = set.elements.insert(element),
            DiffItem::Remove(_) => _ = set.elements.remove(&element),
        }
    }
}

/// Packets to the overlay port of this node: only nodes may send them.
pub(super) fn goto_overlay_from(port: u16) -> Rule {
    goto(to_overlay_port(port), OVERLAY_FROM)
}

/// Packets from a pod to the overlay port: only other pods may receive them. Comes before the conntrack rules: the
/// connection may have been established when the pod's address belonged to a node, or when the overlay used another port.
pub(super) fn jump_overlay_to(port: u16) -> Rule {
    Rule::verdict(to_overlay_port(port).into(), Verdict::Jump(chain_name(OVERLAY_TO)))
}

/// Disables conntrack for overlay packets between nodes. Other hosts may use the same port and depend on NAT, so the
/// address of the other node is matched: `address` is the source of received packets, the destination of sent ones.
pub(super) fn notrack(address: fn(Family) -> Field, port: u16) -> [Rule; 2] {
    Family::ALL.map(|family| {
        let mut matches: Vec<Match> = to_overlay_port(port).into();
        matches.push(in_set(address(family), "nodes", family));
        Rule { matches, action: Action::NoTrack }
    })
}
