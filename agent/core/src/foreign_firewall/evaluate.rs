//! Walks the chains of one foreign table with one packet, or rather with all packets of one way at once.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::model::{Comparison, Condition, Direction, ForeignAction, ForeignRule, ForeignTable, PodFlow, PodTraffic};
use crate::{
    model::Family,
    names::{IfName, VETH_PREFIX},
};

/// The first packets of connections that go one way between two networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packets<'a> {
    pub(super) flow: PodFlow,
    pub(super) family: Family,
    overlay: &'a IfName,
    source: IpNet,
    destination: IpNet,
}

impl<'a> Packets<'a> {
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
    fn fits(&self, direction: Direction, pattern: &str) -> bool {
        let is_overlay = match (self.flow, direction) {
            (PodFlow::ToOtherNodes, Direction::To) | (PodFlow::FromOtherNodes, Direction::From) => true,
            (PodFlow::ToOtherNodes, Direction::From)
            | (PodFlow::FromOtherNodes, Direction::To)
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
    pub(super) end: End,
    /// Whether something that could not be evaluated may have let them pass.
    pub(super) may_pass: bool,
}

/// Where the way through a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Accepted,
    /// By a rule.
    Dropped,
    /// Behind the last rule, or by `return`.
    Returned,
}

/// Results of the chains that were walked: a chain that many rules jump to is walked once. `None`: under way.
type Known<'a> = BTreeMap<&'a str, Option<Walked>>;

/// Walks a chain and all that it jumps to.
pub(super) fn walk<'a>(table: &'a ForeignTable, chain: &'a str, packets: &Packets<'_>) -> Walked {
    walk_chain(table, chain, packets, &mut Known::new())
}

fn walk_chain<'a>(table: &'a ForeignTable, chain: &'a str, packets: &Packets<'_>, known: &mut Known<'a>) -> Walked {
    let unknown = Walked { end: End::Returned, may_pass: true };
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
    packets: &Packets<'_>,
    known: &mut Known<'a>,
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
            ForeignAction::Accept => (Walked { end: End::Accepted, may_pass: true }, false),
            ForeignAction::Drop => (Walked { end: End::Dropped, may_pass: false }, false),
            ForeignAction::Return => (Walked { end: End::Returned, may_pass: false }, true),
            ForeignAction::Jump(chain) => (walk_chain(table, chain, packets, known), false),
            ForeignAction::Goto(chain) => (walk_chain(table, chain, packets, known), true),
        };
        may_pass |= called.may_pass;
        match (holds, called.end) {
            (Holds::Yes, End::Accepted) => return Walked { end: End::Accepted, may_pass: true },
            (Holds::Yes, End::Dropped) => return Walked { end: End::Dropped, may_pass: may_pass || may_leave },
            (Holds::Yes, End::Returned) if leaves => return Walked { end: End::Returned, may_pass },
            (Holds::Yes, End::Returned) | (_, End::Dropped) => {}
            (_, End::Accepted) => may_pass = true,
            (_, End::Returned) => may_leave |= leaves,
        }
    }
    Walked { end: End::Returned, may_pass }
}

fn holds(condition: &Condition, packets: &Packets<'_>) -> Holds {
    let compared = |comparison: &Comparison, equal: Holds| match (comparison, equal) {
        (_, Holds::Unknown) => Holds::Unknown,
        (Comparison::Equal, equal) => equal,
        (Comparison::NotEqual, Holds::Yes) => Holds::No,
        (Comparison::NotEqual, Holds::No) => Holds::Yes,
    };
    match condition {
        Condition::Interface(direction, comparison, patterns) => {
            let fits = patterns.iter().any(|pattern| packets.fits(*direction, pattern));
            compared(comparison, if fits { Holds::Yes } else { Holds::No })
        }
        Condition::Address(direction, comparison, nets) => {
            let address = match direction {
                Direction::From => packets.source,
                Direction::To => packets.destination,
            };
            if nets.iter().all(|net| Family::of_net(*net) != packets.family) {
                // A packet of the other family has no such address, so that not even `!=` holds.
                return Holds::No;
            }
            compared(comparison, within(address, nets))
        }
        Condition::Family(comparison, family) => {
            compared(comparison, if *family == packets.family { Holds::Yes } else { Holds::No })
        }
        Condition::Partial => Holds::No,
        Condition::Unknown => Holds::Unknown,
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
