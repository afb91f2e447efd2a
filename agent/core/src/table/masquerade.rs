//! Masquerades packets that leave the cluster: they get the node's source address.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Masquerade, SourceToNodes, TableInput, add_chain, base, goto, in_set, networks, set_name};
use crate::{
    model::Family,
    ruleset::{Action, ChainType, CmpOp, Field, Hook, Match, Rule, Ruleset, Value, Verdict},
};

/// kube-proxy's mark for packets that it masquerades itself (flag `--iptables-masquerade-bit`, default 14).
const KUBE_PROXY_MARK: u32 = 1 << 14;

const SOURCE_NAT: i32 = 100;

/// Adds the masquerade chains. Uses the sets `pods` and `nodes` of [`super::overlay_port::add`].
pub(super) fn add(ruleset: &mut Ruleset, input: &TableInput<'_>) {
    let Masquerade::Enabled { non_masquerade_cidrs } = &input.masquerade else { return };
    let mut rules = vec![keep_source([Match::MarkBits(KUBE_PROXY_MARK)])];
    rules.extend(
        Family::ALL.map(|family| keep_source([Match::Field(Field::Destination(family), CmpOp::Eq, multicast(family))])),
    );
    for family in Family::ALL {
        let destination = Field::Destination(family);
        let local = networks(family, input.node_pod_cidrs);
        let unmasqueraded = networks(family, non_masquerade_cidrs);
        let mut from_pod = vec![keep_source([in_set(destination, "pods", family)])];
        if !unmasqueraded.elements.is_empty() {
            ruleset.sets.insert(set_name("unmasqueraded", family), unmasqueraded);
            from_pod.push(keep_source([in_set(destination, "unmasqueraded", family)]));
        }
        if input.source_to_nodes == SourceToNodes::PodAddress {
            from_pod.push(keep_source([in_set(destination, "nodes", family)]));
        }
        from_pod.push(masquerade([]));
        let chain = match family {
            Family::V4 => "masquerade4",
            Family::V6 => "masquerade6",
        };
        add_chain(ruleset, chain, None, from_pod);
        rules.push(goto([in_set(Field::Source(family), "pods", family)], chain));
        if !local.elements.is_empty() {
            ruleset.sets.insert(set_name("local", family), local);
            rules.push(keep_source([in_set(destination, "local", family)]));
        }
        rules.push(masquerade([in_set(destination, "pods", family)]));
    }
    add_chain(ruleset, "postrouting", base(ChainType::Nat, Hook::Postrouting, SOURCE_NAT), rules);
}

/// The multicast range of a family (RFC 5771; RFC 4291, section 2.7).
const fn multicast(family: Family) -> Value {
    Value::Net(match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    })
}

/// The packet keeps its source address.
fn keep_source(matches: impl Into<Vec<Match>>) -> Rule {
    Rule::verdict(matches.into(), Verdict::Return)
}

fn masquerade(matches: impl Into<Vec<Match>>) -> Rule {
    Rule { matches: matches.into(), action: Action::Masquerade }
}
