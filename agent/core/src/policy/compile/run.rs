//! Neighbouring rules of the same action, taken together: their order among each other means nothing, so however many
//! they are, they become a few lookups.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    interval::{PortRange, merge_nets, merge_ports, rectangles},
    set::{Holder, PortKey, SetExpr},
};
use crate::{
    model::{Family, Protocol},
    policy::ir::{Block, Direction, NamedPort, Peer, Peers, PodSelector, Port, Ports, Rule},
    ruleset::{Field, Op},
};

/// A packet's fields, whether they must be in the set or must not, and the set.
pub(super) type SetLookup<'a> = (Vec<Field>, Op, SetExpr<'a>);

/// What a run of rules matches, sorted by how it is looked up.
#[derive(Default)]
pub(super) struct Run<'a> {
    matches_all: Reach,
    pods: BTreeSet<&'a PodSelector>,
    blocks: Vec<&'a Block>,
    ports: BTreeSet<(Protocol, u16)>,
    ranges: Vec<PortRange>,
    pod_ports: BTreeSet<(Holder<'a>, PortKey<'a>)>,
    pod_ranges: BTreeMap<&'a PodSelector, Vec<PortRange>>,
    block_ports: Vec<(&'a Block, PortRange)>,
    /// What is matched of everybody but some.
    but: BTreeMap<Excluded<'a>, Run<'a>>,
}

/// Peers that a rule is not about.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Excluded<'a> {
    pods: BTreeSet<&'a PodSelector>,
    blocks: BTreeSet<&'a Block>,
}

/// How far a run reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// Some packets.
    #[default]
    Some,
    /// Every packet: no lookup is needed, and nothing behind it is ever reached.
    All,
}

#[derive(Clone, Copy)]
enum Who<'a> {
    Anybody,
    Pods(&'a PodSelector),
    Block(&'a Block),
}

#[derive(Clone, Copy)]
enum What<'a> {
    Anything,
    Numbers(PortRange),
    Named(Protocol, &'a str),
}

impl<'a> Run<'a> {
    /// Takes the rules together. On ingress a port's name means a port of the selected pod: `own_ports` are that
    /// pod's. On egress it means one of the peer's, which the sets resolve.
    pub(super) fn new(
        rules: impl IntoIterator<Item = &'a Rule>,
        direction: Direction,
        own_ports: &BTreeSet<NamedPort>,
    ) -> Self {
        let mut run = Self::default();
        for rule in rules {
            let whats = whats(&rule.ports, direction, own_ports);
            let (run, whos) = match &rule.peers {
                Peers::Any => (&mut run, vec![Who::Anybody]),
                Peers::Of(peers) => (&mut run, peers.iter().map(who).collect()),
                Peers::NoneOf(peers) if peers.is_empty() => (&mut run, vec![Who::Anybody]),
                Peers::NoneOf(peers) => (run.but.entry(excluded(peers)).or_default(), vec![Who::Anybody]),
            };
            for who in whos {
                whats.iter().for_each(|what| run.add(who, *what));
            }
        }
        run
    }

    pub(super) const fn reach(&self) -> Reach {
        self.matches_all
    }

    fn add(&mut self, who: Who<'a>, what: What<'a>) {
        let single = |range: PortRange| (range.first == range.last).then_some((range.protocol, range.first));
        match (who, what) {
            (Who::Anybody, What::Anything) => self.matches_all = Reach::All,
            (Who::Pods(selector), What::Anything) => {
                self.pods.insert(selector);
            }
            (Who::Block(block), What::Anything) => self.blocks.push(block),
            (Who::Anybody, What::Numbers(range)) => match single(range) {
                Some(port) => {
                    self.ports.insert(port);
                }
                None => self.ranges.push(range),
            },
            (Who::Pods(selector), What::Numbers(range)) => match single(range) {
                Some((protocol, port)) => {
                    self.pod_ports.insert((Holder::Selected(selector), PortKey::Number(protocol, port)));
                }
                None => self.pod_ranges.entry(selector).or_default().push(range),
            },
            (Who::Block(block), What::Numbers(range)) => self.block_ports.push((block, range)),
            (who, What::Named(protocol, name)) => {
                let holder = match who {
                    Who::Anybody => Holder::AnyPod,
                    Who::Pods(selector) => Holder::Selected(selector),
                    Who::Block(block) => Holder::Within(block),
                };
                self.pod_ports.insert((holder, PortKey::Named(protocol, name)));
            }
        }
    }

    /// The lookups of the run, cheapest first: a packet matches if all of one line say so. `peer` is the field that
    /// holds the other side's address.
    pub(super) fn lookups(&self, families: &BTreeSet<Family>, peer: fn(Family) -> Field) -> Vec<Vec<SetLookup<'a>>> {
        let found = |line: Vec<(Vec<Field>, SetExpr<'a>)>| {
            line.into_iter().map(|(fields, set)| (fields, Op::Is, set)).collect::<Vec<_>>()
        };
        let mut lines: Vec<Vec<SetLookup<'_>>> = self.finding(families, peer).into_iter().map(found).collect();
        for (excluded, run) in &self.but {
            for &family in families {
                let but = excluded.lookups(family, peer);
                let one = BTreeSet::from([family]);
                let inner = match run.reach() {
                    Reach::All => vec![Vec::new()],
                    Reach::Some => run.finding(&one, peer),
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

impl<'a> Excluded<'a> {
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
        sets.into_iter().map(|set| (vec![peer(family)], Op::IsNot, set)).collect()
    }
}

fn who(peer: &Peer) -> Who<'_> {
    match peer {
        Peer::Pods(selector) => Who::Pods(selector),
        Peer::Block(block) => Who::Block(block),
    }
}

fn excluded(peers: &[Peer]) -> Excluded<'_> {
    let mut excluded = Excluded::default();
    for peer in peers {
        match peer {
            Peer::Pods(selector) => _ = excluded.pods.insert(selector),
            Peer::Block(block) => _ = excluded.blocks.insert(block),
        }
    }
    excluded
}

fn whats<'a>(ports: &'a Ports, direction: Direction, own_ports: &BTreeSet<NamedPort>) -> Vec<What<'a>> {
    let Ports::Of(ports) = ports else { return vec![What::Anything] };
    let numbers = |&protocol: &Protocol, first, last| What::Numbers(PortRange { protocol, first, last });
    let mut whats = Vec::new();
    for port in ports {
        match (port, direction) {
            (Port::Numbers(protocol, first, last), _) => whats.push(numbers(protocol, *first, *last)),
            (Port::Named(protocol, name), Direction::Egress) => whats.push(What::Named(*protocol, name)),
            (Port::Named(protocol, name), Direction::Ingress) => {
                let own = own_ports.iter().filter(|p| p.protocol == *protocol && p.name == *name);
                whats.extend(own.map(|p| numbers(protocol, p.port, p.port)));
            }
        }
    }
    whats
}
