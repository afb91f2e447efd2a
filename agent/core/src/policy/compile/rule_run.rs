//! A run: consecutive rules with the same action. Their order does not affect the verdict, so a run of any length
//! becomes a few set lookups.

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

/// The packet fields, whether they must be in the set or not, and the set.
pub(super) type SetLookup<'a> = (Vec<Field>, CmpOp, SetExpr<'a>);

/// The matches of a run, by the kind of set that looks them up.
#[derive(Default)]
pub(super) struct RuleRun<'a> {
    coverage: Coverage,
    pods: BTreeSet<&'a PodSelector>,
    blocks: Vec<&'a IpBlock>,
    ports: BTreeSet<(Protocol, u16)>,
    ranges: Vec<PortRange>,
    pod_ports: BTreeSet<(AddressSource<'a>, PortKey<'a>)>,
    pod_ranges: BTreeMap<&'a PodSelector, Vec<PortRange>>,
    block_ports: Vec<(&'a IpBlock, PortRange)>,
    /// Rules that match all peers except some, by the excluded peers.
    excluding: BTreeMap<ExcludedPeers<'a>, RuleRun<'a>>,
}

/// Peers that a rule excludes.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct ExcludedPeers<'a> {
    pods: BTreeSet<&'a PodSelector>,
    blocks: BTreeSet<&'a IpBlock>,
}

/// Which packets a run matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Coverage {
    /// Some packets: lookups decide.
    #[default]
    Some,
    /// Every packet: no lookup is needed, and later rules of the chain are unreachable.
    All,
}

#[derive(Clone, Copy)]
enum PeerMatch<'a> {
    Any,
    Pods(&'a PodSelector),
    IpBlock(&'a IpBlock),
}

#[derive(Clone, Copy)]
enum PortMatch<'a> {
    Any,
    Numbers(PortRange),
    Named(Protocol, &'a str),
}

impl<'a> RuleRun<'a> {
    /// Collects the rules of a run. On ingress a port name refers to the selected pod and is resolved with `own_ports`.
    /// On egress it refers to the peer and is resolved by the set.
    pub(super) fn new(
        rules: impl IntoIterator<Item = &'a PolicyRule>,
        direction: Direction,
        own_ports: &BTreeSet<NamedPort>,
    ) -> Self {
        let mut run = Self::default();
        for rule in rules {
            let ports = port_matches(&rule.ports, direction, own_ports);
            let (run, peers) = match &rule.peers {
                RulePeers::Any => (&mut run, vec![PeerMatch::Any]),
                RulePeers::Of(peers) => (&mut run, peers.iter().map(peer_match).collect()),
                RulePeers::NoneOf(peers) if peers.is_empty() => (&mut run, vec![PeerMatch::Any]),
                RulePeers::NoneOf(peers) => (run.excluding.entry(excluded(peers)).or_default(), vec![PeerMatch::Any]),
            };
            for peer in peers {
                ports.iter().for_each(|port| run.add(peer, *port));
            }
        }
        run
    }

    pub(super) const fn coverage(&self) -> Coverage {
        self.coverage
    }

    fn add(&mut self, peer: PeerMatch<'a>, port: PortMatch<'a>) {
        let single = |range: PortRange| (range.first == range.last).then_some((range.protocol, range.first));
        match (peer, port) {
            (PeerMatch::Any, PortMatch::Any) => self.coverage = Coverage::All,
            (PeerMatch::Pods(selector), PortMatch::Any) => {
                self.pods.insert(selector);
            }
            (PeerMatch::IpBlock(block), PortMatch::Any) => self.blocks.push(block),
            (PeerMatch::Any, PortMatch::Numbers(range)) => match single(range) {
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
            (peer, PortMatch::Named(protocol, name)) => {
                let source = match peer {
                    PeerMatch::Any => AddressSource::AnyPod,
                    PeerMatch::Pods(selector) => AddressSource::Selected(selector),
                    PeerMatch::IpBlock(block) => AddressSource::Within(block),
                };
                self.pod_ports.insert((source, PortKey::Named(protocol, name)));
            }
        }
    }

    /// The lookups of the run, cheapest first. A packet matches the run if all lookups of one inner list match.
    /// `peer` is the packet field with the peer's address.
    pub(super) fn lookups(&self, families: &BTreeSet<Family>, peer: fn(Family) -> Field) -> Vec<Vec<SetLookup<'a>>> {
        let included = |conjunction: Vec<(Vec<Field>, SetExpr<'a>)>| {
            conjunction.into_iter().map(|(fields, set)| (fields, CmpOp::Eq, set)).collect::<Vec<_>>()
        };
        let mut lookups: Vec<Vec<SetLookup<'_>>> =
            self.included_lookups(families, peer).into_iter().map(included).collect();
        for (excluded, run) in &self.excluding {
            for &family in families {
                let excluding = excluded.lookups(family, peer);
                let one = BTreeSet::from([family]);
                let inner = match run.coverage() {
                    Coverage::All => vec![Vec::new()],
                    Coverage::Some => run.included_lookups(&one, peer),
                };
                lookups.extend(
                    inner
                        .into_iter()
                        .map(|conjunction| excluding.iter().cloned().chain(included(conjunction)).collect()),
                );
            }
        }
        lookups
    }

    /// The lookups of peers and ports that rules include; `excluding` is not part of them.
    fn included_lookups(
        &self,
        families: &BTreeSet<Family>,
        peer: fn(Family) -> Field,
    ) -> Vec<Vec<(Vec<Field>, SetExpr<'a>)>> {
        let port = [Field::Proto, Field::DestinationPort];
        let with_peer = |family| [peer(family)].into_iter().chain(port).collect::<Vec<_>>();
        let mut lookups = Vec::new();
        for &family in families {
            lookups.push(vec![(vec![peer(family)], SetExpr::Pods(family, self.pods.clone()))]);
            lookups.push(vec![(with_peer(family), SetExpr::PodPorts(family, self.pod_ports.clone()))]);
        }
        lookups.push(vec![(port.to_vec(), SetExpr::Ports(self.ports.clone()))]);
        lookups.push(vec![(port.to_vec(), SetExpr::PortRanges(merge_ports(self.ranges.iter().copied())))]);
        for &family in families {
            let nets = merge_nets(self.blocks.iter().copied(), family);
            lookups.push(vec![(vec![peer(family)], SetExpr::Nets(family, nets))]);
            let pairs = rectangles(self.block_ports.iter().copied(), family);
            lookups.push(vec![(with_peer(family), SetExpr::NetPorts(family, pairs))]);
            for (ranges, selectors) in self.pods_by_ranges() {
                lookups.push(vec![
                    (vec![peer(family)], SetExpr::Pods(family, selectors)),
                    (port.to_vec(), SetExpr::PortRanges(ranges)),
                ]);
            }
        }
        lookups.retain(|conjunction| conjunction.iter().all(|(_, set)| !set.is_empty()));
        lookups
    }

    /// Pod selectors by their list of port ranges. Pods and port ranges do not share a set: updates of interval sets are
    /// slow, and pods change often. Each list of ranges, of which a cluster has few, gets a pair of lookups instead.
    fn pods_by_ranges(&self) -> BTreeMap<Vec<PortRange>, BTreeSet<&'a PodSelector>> {
        let mut grouped: BTreeMap<Vec<PortRange>, BTreeSet<&PodSelector>> = BTreeMap::new();
        for (selector, ranges) in &self.pod_ranges {
            grouped.entry(merge_ports(ranges.iter().copied())).or_default().insert(selector);
        }
        grouped
    }
}

impl<'a> ExcludedPeers<'a> {
    /// Lookups that match packets of the family whose peer is not excluded. At least one lookup remains even if its set
    /// is empty, because it restricts the rule to the family.
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

fn peer_match(peer: &RulePeer) -> PeerMatch<'_> {
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

fn port_matches<'a>(ports: &'a RulePorts, direction: Direction, own_ports: &BTreeSet<NamedPort>) -> Vec<PortMatch<'a>> {
    let RulePorts::Of(ports) = ports else { return vec![PortMatch::Any] };
    let numbers = |&protocol: &Protocol, first, last| PortMatch::Numbers(PortRange { protocol, first, last });
    let mut matches = Vec::new();
    for port in ports {
        match (port, direction) {
            (RulePort::Numbers(protocol, first, last), _) => matches.push(numbers(protocol, *first, *last)),
            (RulePort::Named(protocol, name), Direction::Egress) => matches.push(PortMatch::Named(*protocol, name)),
            (RulePort::Named(protocol, name), Direction::Ingress) => {
                let own = own_ports.iter().filter(|p| p.protocol == *protocol && p.name == *name);
                matches.extend(own.map(|p| numbers(protocol, p.port, p.port)));
            }
        }
    }
    matches
}
