//! Walks the chains of one foreign table with one packet, or rather with all packets of one way at once.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::model::{
    Comparison, FlowSide, ForeignAction, ForeignCondition, ForeignRule, ForeignTable, PodFlow, PodTraffic,
};
use crate::{
    model::Family,
    names::{IfName, VETH_PREFIX},
};

/// The first packets of connections that go one way between two networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlowPackets<'a> {
    pub(super) flow: PodFlow,
    pub(super) family: Family,
    overlay: &'a IfName,
    source: IpNet,
    destination: IpNet,
}

impl<'a> FlowPackets<'a> {
    /// All ways that pod traffic takes.
    pub(super) fn all(traffic: &'a PodTraffic) -> Vec<Self> {
        let mut all = Vec::new();
        for (family, own) in &traffic.own {
            let Some(overlay) = traffic.overlay.get(family) else { continue };
            let packets = |flow, source, destination| Self { flow, family: *family, overlay, source, destination };
            for cluster in traffic.cluster.iter().filter(|net| Family::of_net(**net) == *family) {
                all.push(packets(PodFlow::ToOtherNodes, *own, *cluster));
                all.push(packets(PodFlow::FromOtherNodes, *cluster, *own));
            }
            all.push(packets(PodFlow::WithinNode, *own, *own));
        }
        all
    }

    /// Whether the interface's name fits a name or a pattern of nft. Pods' interfaces stand for all of their names.
    fn fits(&self, direction: FlowSide, pattern: &str) -> bool {
        let is_overlay = match (self.flow, direction) {
            (PodFlow::ToOtherNodes, FlowSide::To) | (PodFlow::FromOtherNodes, FlowSide::From) => true,
            (PodFlow::ToOtherNodes, FlowSide::From)
            | (PodFlow::FromOtherNodes, FlowSide::To)
            | (PodFlow::WithinNode, _) => false,
        };
        match (pattern.strip_suffix('*'), is_overlay) {
            (Some(prefix), true) => self.overlay.as_str().starts_with(prefix),
            (Some(prefix), false) => VETH_PREFIX.starts_with(prefix),
            (None, true) => pattern == self.overlay.as_str(),
            (None, false) => false,
        }
    }
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    /// For none of the packets, or not for all of them.
    No,
    /// Cannot be said.
    Unknown,
    /// For all of them.
    Yes,
}

/// What a chain does with the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    pub(super) end: ChainEnd,
    /// Whether something that could not be evaluated may have let them pass.
    pub(super) may_pass: bool,
}

/// Where the way through a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChainEnd {
    Accepted,
    /// By a rule.
    Dropped,
    /// Behind the last rule, or by `return`.
    Returned,
}

/// Results of the chains that were walked: a chain that many rules jump to is walked once. `None`: under way.
type KnownChains<'a> = BTreeMap<&'a str, Option<Walked>>;

/// Walks a chain and all that it jumps to.
pub(super) fn walk<'a>(table: &'a ForeignTable, chain: &'a str, packets: &FlowPackets<'_>) -> Walked {
    walk_chain(table, chain, packets, &mut KnownChains::new())
}

fn walk_chain<'a>(
    table: &'a ForeignTable,
    chain: &'a str,
    packets: &FlowPackets<'_>,
    known: &mut KnownChains<'a>,
) -> Walked {
    let unknown = Walked { end: ChainEnd::Returned, may_pass: true };
    match known.get(chain) {
        Some(Some(walked)) => return *walked,
        // The kernel refuses loops; a reading that fell between two changes may show one.
        Some(None) => return unknown,
        None => {}
    }
    let Some(rules) = table.chains.get(chain).and_then(|chain| chain.rules.as_ref()) else { return unknown };
    known.insert(chain, None);
    let walked = walk_rules(table, rules, packets, known);
    known.insert(chain, Some(walked));
    walked
}

fn walk_rules<'a>(
    table: &'a ForeignTable,
    rules: &'a [ForeignRule],
    packets: &FlowPackets<'_>,
    known: &mut KnownChains<'a>,
) -> Walked {
    let mut may_pass = false;
    // A rule that may have left this chain: what drops further down may not be reached.
    let mut may_leave = false;
    for rule in rules {
        let holds = rule.conditions.iter().map(|condition| holds(condition, packets)).min().unwrap_or(Holds::Yes);
        if holds == Holds::No {
            continue;
        }
        let (called, leaves) = match &rule.action {
            ForeignAction::Continue => continue,
            ForeignAction::Unknown => {
                may_pass = true;
                continue;
            }
            ForeignAction::Accept => (Walked { end: ChainEnd::Accepted, may_pass: true }, false),
            ForeignAction::Drop => (Walked { end: ChainEnd::Dropped, may_pass: false }, false),
            ForeignAction::Return => (Walked { end: ChainEnd::Returned, may_pass: false }, true),
            ForeignAction::Jump(chain) => (walk_chain(table, chain, packets, known), false),
            ForeignAction::Goto(chain) => (walk_chain(table, chain, packets, known), true),
        };
        may_pass |= called.may_pass;
        match (holds, called.end) {
            (Holds::Yes, ChainEnd::Accepted) => return Walked { end: ChainEnd::Accepted, may_pass: true },
            (Holds::Yes, ChainEnd::Dropped) => {
                return Walked { end: ChainEnd::Dropped, may_pass: may_pass || may_leave };
            }
            (Holds::Yes, ChainEnd::Returned) if leaves => return Walked { end: ChainEnd::Returned, may_pass },
            (Holds::Yes, ChainEnd::Returned) | (_, ChainEnd::Dropped) => {}
            (_, ChainEnd::Accepted) => may_pass = true,
            (_, ChainEnd::Returned) => may_leave |= leaves,
        }
    }
    Walked { end: ChainEnd::Returned, may_pass }
}

fn holds(condition: &ForeignCondition, packets: &FlowPackets<'_>) -> Holds {
    let compared = |comparison: &Comparison, equal: Holds| match (comparison, equal) {
        (_, Holds::Unknown) => Holds::Unknown,
        (Comparison::Equal, equal) => equal,
        (Comparison::NotEqual, Holds::Yes) => Holds::No,
        (Comparison::NotEqual, Holds::No) => Holds::Yes,
    };
    match condition {
        ForeignCondition::Interface(direction, comparison, patterns) => {
            let fits = patterns.iter().any(|pattern| packets.fits(*direction, pattern));
            compared(comparison, if fits { Holds::Yes } else { Holds::No })
        }
        ForeignCondition::Address(direction, comparison, nets) => {
            let address = match direction {
                FlowSide::From => packets.source,
                FlowSide::To => packets.destination,
            };
            if nets.iter().all(|net| Family::of_net(*net) != packets.family) {
                // A packet of the other family has no such address, so that not even `!=` holds.
                return Holds::No;
            }
            compared(comparison, within(address, nets))
        }
        ForeignCondition::Family(comparison, family) => {
            compared(comparison, if *family == packets.family { Holds::Yes } else { Holds::No })
        }
        ForeignCondition::Partial => Holds::No,
        ForeignCondition::Unknown => Holds::Unknown,
    }
}

/// Whether all addresses of a network are in one of the others; unknown if only some are.
fn within(address: IpNet, nets: &[IpNet]) -> Holds {
    if nets.iter().any(|net| net.contains(&address)) {
        Holds::Yes
    } else if nets.iter().any(|net| address.contains(net)) {
        Holds::Unknown
    } else {
        Holds::No
    }
}
