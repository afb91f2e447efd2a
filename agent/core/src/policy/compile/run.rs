//! Neighbouring rules of the same action, taken together: their order among each other means nothing, so however many
//! they are, they become a few lookups.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    interval::{PortRange, merge_nets, merge_ports, rectangles},
    set::{AddressSource, PortKey, SetExpr},
};
use crate::{
    model::{Family, Protocol},
    policy::ir::{Direction, IpBlock, NamedPort, PodSelector, PolicyRule, RulePeer, RulePeers, RulePort, RulePorts},
    ruleset::{CmpOp, Field},
};

/// A packet's fields, whether they must be in the set or must not, and the set.
pub(super) type SetLookup<'a> = (Vec<Field>, CmpOp, SetExpr<'a>);

/// PortMatch a run of rules matches, sorted by how it is looked up.
#[derive(Default)]
pub(super) struct RuleRun<'a> {
    matches_all: Coverage,
    pods: BTreeSet<&'a PodSelector>,
    blocks: Vec<&'a IpBlock>,
    ports: BTreeSet<(Protocol, u16)>,
    ranges: Vec<PortRange>,
    pod_ports: BTreeSet<(AddressSource<'a>, PortKey<'a>)>,
    pod_ranges: BTreeMap<&'a PodSelector, Vec<PortRange>>,
    block_ports: Vec<(&'a IpBlock, PortRange)>,
    /// PortMatch is matched of everybody but some.
    but: BTreeMap<ExcludedPeers<'a>, RuleRun<'a>>,
}

/// RulePeers that a rule is not about.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct ExcludedPeers<'a> {
    pods: BTreeSet<&'a PodSelector>,
    blocks: BTreeSet<&'a IpBlock>,
}

/// How far a run reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Coverage {
    /// Some packets.
    #[default]
    Some,
    /// Every packet: no lookup is needed, and nothing behind it is ever reached.
    All,
}

#[derive(Clone, Copy)]
enum PeerMatch<'a> {
    Anybody,
    Pods(&'a PodSelector),
    IpBlock(&'a IpBlock),
}

#[derive(Clone, Copy)]
enum PortMatch<'a> {
    Anything,
    Numbers(PortRange),
    Named(Protocol, &'a str),
}

impl<'a> RuleRun<'a> {
    /// Takes the rules together. On ingress a port's name means a port of the selected pod: `own_ports` are that
    /// pod's. On egress it means one of the peer's, which the sets resolve.
    pub(super) fn new(
        rules: impl IntoIterator<Item = &'a PolicyRule>,
        direction: Direction,
        own_ports: &BTreeSet<NamedPort>,
    ) -> Self {
        let mut run = Self::default();
        for rule in rules {
            let whats = whats(&rule.ports, direction, own_ports);
            let (run, whos) = match &rule.peers {
                RulePeers::Any => (&mut run, vec![PeerMatch::Anybody]),
                RulePeers::Of(peers) => (&mut run, peers.iter().map(who).collect()),
                RulePeers::NoneOf(peers) if peers.is_empty() => (&mut run, vec![PeerMatch::Anybody]),
                RulePeers::NoneOf(peers) => (run.but.entry(excluded(peers)).or_default(), vec![PeerMatch::Anybody]),
            };
            for who in whos {
                whats.iter().for_each(|what| run.add(who, *what));
            }
        }
        run
    }

    pub(super) const fn reach(&self) -> Coverage {
        self.matches_all
    }

    fn add(&mut self, who: PeerMatch<'a>, what: PortMatch<'a>) {
        let single = |range: PortRange| (range.first == range.last).then_some((range.protocol, range.first));
        match (who, what) {
            (PeerMatch::Anybody, PortMatch::Anything) => self.matches_all = Coverage::All,
            (PeerMatch::Pods(selector), PortMatch::Anything) => {
                self.pods.insert(selector);
            }
            (PeerMatch::IpBlock(block), PortMatch::Anything) => self.blocks.push(block),
            (PeerMatch::Anybody, PortMatch::Numbers(range)) => match single(range) {
                Some(port) => {
                    self.ports.insert(port);
                }
                None => self.ranges.push(range),
            },
            (PeerMatch::Pods(selector), PortMatch::Numbers(range)) => match single(range) {
                Some((protocol, port)) => {
                    self.pod_ports.insert((AddressSource::Selected(selector), PortKey::Number(protocol, port)));
                }
                None => self.pod_ranges.entry(selector).or_default().push(range),
            },
            (PeerMatch::IpBlock(block), PortMatch::Numbers(range)) => self.block_ports.push((block, range)),
            (who, PortMatch::Named(protocol, name)) => {
                let holder = match who {
                    PeerMatch::Anybody => AddressSource::AnyPod,
                    PeerMatch::Pods(selector) => AddressSource::Selected(selector),
                    PeerMatch::IpBlock(block) => AddressSource::Within(block),
                };
                self.pod_ports.insert((holder, PortKey::Named(protocol, name)));
            }
        }
    }

    /// The lookups of the run, cheapest first: a packet matches if all of one line say so. `peer` is the field that
    /// holds the other side's address.
    pub(super) fn lookups(&self, families: &BTreeSet<Family>, peer: fn(Family) -> Field) -> Vec<Vec<SetLookup<'a>>> {
        let found = |line: Vec<(Vec<Field>, SetExpr<'a>)>| {
            line.into_iter().map(|(fields, set)| (fields, CmpOp::Eq, set)).collect::<Vec<_>>()
        };
        let mut lines: Vec<Vec<SetLookup<'_>>> = self.finding(families, peer).into_iter().map(found).collect();
        for (excluded, run) in &self.but {
            for &family in families {
                let but = excluded.lookups(family, peer);
                let one = BTreeSet::from([family]);
                let inner = match run.reach() {
                    Coverage::All => vec![Vec::new()],
                    Coverage::Some => run.finding(&one, peer),
                };
                lines.extend(inner.into_iter().map(|line| but.iter().cloned().chain(found(line)).collect()));
            }
        }
        lines
    }

    /// The lines of those who are named, not of those who are excluded.
    fn finding(&self, families: &BTreeSet<Family>, peer: fn(Family) -> Field) -> Vec<Vec<(Vec<Field>, SetExpr<'a>)>> {
        let port = [Field::Proto, Field::DestinationPort];
        let with_peer = |family| [peer(family)].into_iter().chain(port).collect::<Vec<_>>();
        let mut lines = Vec::new();
        for &family in families {
            lines.push(vec![(vec![peer(family)], SetExpr::Pods(family, self.pods.clone()))]);
            lines.push(vec![(with_peer(family), SetExpr::PodPorts(family, self.pod_ports.clone()))]);
        }
        lines.push(vec![(port.to_vec(), SetExpr::Ports(self.ports.clone()))]);
        lines.push(vec![(port.to_vec(), SetExpr::PortRanges(merge_ports(self.ranges.iter().copied())))]);
        for &family in families {
            let nets = merge_nets(self.blocks.iter().copied(), family);
            lines.push(vec![(vec![peer(family)], SetExpr::Nets(family, nets))]);
            let pairs = rectangles(self.block_ports.iter().copied(), family);
            lines.push(vec![(with_peer(family), SetExpr::NetPorts(family, pairs))]);
            for (ranges, selectors) in self.pods_by_ranges() {
                lines.push(vec![
                    (vec![peer(family)], SetExpr::Pods(family, selectors)),
                    (port.to_vec(), SetExpr::PortRanges(ranges)),
                ]);
            }
        }
        lines.retain(|line| line.iter().all(|(_, set)| !set.is_empty()));
        lines
    }

    /// Pods and ranges of ports cannot share one set: ranges make its changes slow, and pods change all the time. So
    /// there is a pair of lookups for each list of ranges, of which a cluster has few.
    fn pods_by_ranges(&self) -> BTreeMap<Vec<PortRange>, BTreeSet<&'a PodSelector>> {
        let mut grouped: BTreeMap<Vec<PortRange>, BTreeSet<&PodSelector>> = BTreeMap::new();
        for (selector, ranges) in &self.pod_ranges {
            grouped.entry(merge_ports(ranges.iter().copied())).or_default().insert(selector);
        }
        grouped
    }
}

impl<'a> ExcludedPeers<'a> {
    /// That a packet of the family comes from nobody of them. The sets can be empty: they hold the packet to its
    /// family, too.
    fn lookups(&self, family: Family, peer: fn(Family) -> Field) -> Vec<SetLookup<'a>> {
        let nets = merge_nets(self.blocks.iter().copied(), family);
        let mut sets = vec![SetExpr::Pods(family, self.pods.clone()), SetExpr::Nets(family, nets)];
        if sets.iter().any(|set| !set.is_empty()) {
            sets.retain(|set| !set.is_empty());
        } else {
            sets.pop();
        }
        sets.into_iter().map(|set| (vec![peer(family)], CmpOp::NotEq, set)).collect()
    }
}

fn who(peer: &RulePeer) -> PeerMatch<'_> {
    match peer {
        RulePeer::Pods(selector) => PeerMatch::Pods(selector),
        RulePeer::IpBlock(block) => PeerMatch::IpBlock(block),
    }
}

fn excluded(peers: &[RulePeer]) -> ExcludedPeers<'_> {
    let mut excluded = ExcludedPeers::default();
    for peer in peers {
        match peer {
            RulePeer::Pods(selector) => _ = excluded.pods.insert(selector),
            RulePeer::IpBlock(block) => _ = excluded.blocks.insert(block),
        }
    }
    excluded
}

fn whats<'a>(ports: &'a RulePorts, direction: Direction, own_ports: &BTreeSet<NamedPort>) -> Vec<PortMatch<'a>> {
    let RulePorts::Of(ports) = ports else { return vec![PortMatch::Anything] };
    let numbers = |&protocol: &Protocol, first, last| PortMatch::Numbers(PortRange { protocol, first, last });
    let mut whats = Vec::new();
    for port in ports {
        match (port, direction) {
            (RulePort::Numbers(protocol, first, last), _) => whats.push(numbers(protocol, *first, *last)),
            (RulePort::Named(protocol, name), Direction::Egress) => whats.push(PortMatch::Named(*protocol, name)),
            (RulePort::Named(protocol, name), Direction::Ingress) => {
                let own = own_ports.iter().filter(|p| p.protocol == *protocol && p.name == *name);
                whats.extend(own.map(|p| numbers(protocol, p.port, p.port)));
            }
        }
    }
    whats
}
