//! Who leaves the cluster does so with the node's address.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Masquerade, SourceToNodes, TableInput, add_chain, base, goto, in_set, networks, set_name};
use crate::{
    model::Family,
    ruleset::{Action, ChainType, CmpOp, Field, Hook, Match, Rule, Ruleset, Value, Verdict},
};

/// kube-proxy's mark for what it masquerades itself (its flag `--iptables-masquerade-bit`, 14 by default).
const KUBE_PROXY_MARK: u32 = 1 << 14;

const SOURCE_NAT: i32 = 100;

/// After the guard, whose sets `pods` and `nodes` it looks into.
pub(super) fn add(all: &mut Ruleset, input: &TableInput<'_>) {
    let Masquerade::Enabled { non_masquerade_cidrs } = &input.masquerade else { return };
    let mut rules = vec![stay([Match::MarkBits(KUBE_PROXY_MARK)])];
    rules.extend(
        Family::ALL.map(|family| stay([Match::Field(Field::Destination(family), CmpOp::Eq, multicast(family))])),
    );
    for family in Family::ALL {
        let destination = Field::Destination(family);
        let local = networks(family, input.node_pod_cidrs);
        let excepted = networks(family, non_masquerade_cidrs);
        let mut from_pod = vec![stay([in_set(destination, "pods", family)])];
        if !excepted.elements.is_empty() {
            all.sets.insert(set_name("unmasqueraded", family), excepted);
            from_pod.push(stay([in_set(destination, "unmasqueraded", family)]));
        }
        if input.source_to_nodes == SourceToNodes::PodAddress {
            from_pod.push(stay([in_set(destination, "nodes", family)]));
        }
        from_pod.push(masquerade([]));
        let chain = match family {
            Family::V4 => "masquerade4",
            Family::V6 => "masquerade6",
        };
        add_chain(all, chain, None, from_pod);
        rules.push(goto([in_set(Field::Source(family), "pods", family)], chain));
        if !local.elements.is_empty() {
            all.sets.insert(set_name("local", family), local);
            rules.push(stay([in_set(destination, "local", family)]));
        }
        rules.push(masquerade([in_set(destination, "pods", family)]));
    }
    add_chain(all, "postrouting", base(ChainType::Nat, Hook::Postrouting, SOURCE_NAT), rules);
}

/// RFC 5771 and RFC 4291, section 2.7.
const fn multicast(family: Family) -> Value {
    Value::Net(match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    })
}

/// Goes on with its own source address.
fn stay(matches: impl Into<Vec<Match>>) -> Rule {
    Rule::verdict(matches.into(), Verdict::Return)
}

fn masquerade(matches: impl Into<Vec<Match>>) -> Rule {
    Rule { matches: matches.into(), action: Action::Masquerade }
}
