//! The oracle: decides one packet by reading the policies from top to bottom, without any cleverness.
//!
//! It is what the compiled rules are compared with, and what names the policy behind a denied packet.

use std::net::IpAddr;

use super::ir::{
    Action, Direction, NamedPort, Peer, Peers, Pod, PodKind, PolicyId, Port, Ports, Rule, Snapshot, TierDefault,
};
use crate::model::{PodId, Protocol};

/// The first packet of a connection, as it is after service translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub from: Party,
    /// Where it goes.
    pub to: Party,
    /// What it carries.
    pub transport: Transport,
}

/// One end of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// The pod whose policies hold at this end. `None`: outside of the cluster, or a node.
    pub pod: Option<PodId>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A protocol with ports, and the destination's port.
    Port(Protocol, u16),
    /// Another protocol, by its number in the IP header: 1 is ICMP.
    Other(u8),
}

/// Why a packet passes or not, at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// At the end that sends.
    pub egress: Trail,
    /// At the end that receives.
    pub ingress: Trail,
}

impl Verdict {
    /// Whether the packet passes: both ends must let it.
    #[must_use]
    pub const fn allows(&self) -> bool {
        self.egress.outcome.allows() && self.ingress.outcome.allows()
    }
}

/// How one end came to its decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    /// Rules that logged the packet, in order.
    pub logged_by: Vec<RuleId>,
    /// Rules that passed the packet on to the next tier, in order.
    pub passed_by: Vec<RuleId>,
    /// What decided in the end.
    pub outcome: Outcome,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId {
    /// The policy.
    pub policy: PolicyId,
    /// The rule's place in the policy's list of that direction, from 0.
    pub rule: usize,
}

/// What decided at one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Allowed: this end is no pod with a network of its own.
    NoEndpoint,
    /// Denied: this end is a pod that nothing is known of.
    UnknownPod,
    /// Allowed: no policy forbids it.
    Unrestricted,
    /// Allowed by this rule.
    AllowedBy(RuleId),
    /// Denied by this rule.
    DeniedBy(RuleId),
    /// Denied: these policies of a tier select the pod, and no rule of theirs matches.
    IsolatedBy(Vec<PolicyId>),
}

impl Outcome {
    /// Whether the packet passes this end.
    #[must_use]
    pub const fn allows(&self) -> bool {
        match self {
            Self::NoEndpoint | Self::Unrestricted | Self::AllowedBy(_) => true,
            Self::UnknownPod | Self::DeniedBy(_) | Self::IsolatedBy(_) => false,
        }
    }
}

/// Decides a packet.
#[must_use]
pub fn eval(snapshot: &Snapshot, packet: &Packet) -> Verdict {
    Verdict {
        egress: decide(snapshot, Direction::Egress, packet),
        ingress: decide(snapshot, Direction::Ingress, packet),
    }
}

fn decide(snapshot: &Snapshot, direction: Direction, packet: &Packet) -> Trail {
    let mut met = Met::default();
    let outcome = outcome(snapshot, direction, packet, &mut met);
    Trail { logged_by: met.logged_by, passed_by: met.passed_by, outcome }
}

/// Rules that matched on the way and did not decide.
#[derive(Default)]
struct Met {
    logged_by: Vec<RuleId>,
    passed_by: Vec<RuleId>,
}

fn outcome(snapshot: &Snapshot, direction: Direction, packet: &Packet, met: &mut Met) -> Outcome {
    let (subject, peer) = match direction {
        Direction::Ingress => (&packet.to, &packet.from),
        Direction::Egress => (&packet.from, &packet.to),
    };
    let Some(id) = &subject.pod else { return Outcome::NoEndpoint };
    let Some(pod) = snapshot.pods.get(id) else { return Outcome::UnknownPod };
    if pod.kind == PodKind::HostNetwork {
        return Outcome::NoEndpoint;
    }
    let case = Case { snapshot, direction, pod, peer: peer.address, transport: packet.transport };
    'tiers: for tier in &snapshot.tiers {
        let mut selecting: Vec<_> =
            tier.policies.iter().filter(|(_, policy)| policy.subject.matches(snapshot, id, pod)).collect();
        selecting.sort_by_key(|(id, policy)| (policy.order, *id));
        let applied: Vec<(&PolicyId, &[Rule])> =
            selecting.into_iter().filter_map(|(id, policy)| Some((id, policy.rules(direction)?))).collect();
        for (rule, action) in matching(&case, &applied) {
            match action {
                Action::Allow => return Outcome::AllowedBy(rule),
                Action::Deny => return Outcome::DeniedBy(rule),
                Action::Pass => {
                    met.passed_by.push(rule);
                    continue 'tiers;
                }
                Action::Log => met.logged_by.push(rule),
            }
        }
        if !applied.is_empty() && tier.default == TierDefault::Deny {
            return Outcome::IsolatedBy(applied.into_iter().map(|(id, _)| id.clone()).collect());
        }
    }
    Outcome::Unrestricted
}

/// One packet at one end of it.
struct Case<'a> {
    snapshot: &'a Snapshot,
    direction: Direction,
    pod: &'a Pod,
    peer: IpAddr,
    transport: Transport,
}

/// The rules that match the packet, in order.
fn matching(case: &Case<'_>, applied: &[(&PolicyId, &[Rule])]) -> impl Iterator<Item = (RuleId, Action)> {
    applied.iter().flat_map(move |(policy, rules)| {
        let matching = rules.iter().enumerate().filter(|(_, rule)| case.rule_matches(rule));
        matching.map(|(rule, by)| (RuleId { policy: (*policy).clone(), rule }, by.action))
    })
}

impl Case<'_> {
    fn rule_matches(&self, rule: &Rule) -> bool {
        match &rule.peers {
            Peers::Any => self.ports_match(&rule.ports, None),
            Peers::Of(peers) => {
                peers.iter().any(|peer| self.peer_matches(peer) && self.ports_match(&rule.ports, Some(peer)))
            }
            Peers::NoneOf(peers) => {
                !peers.iter().any(|peer| self.peer_matches(peer)) && self.ports_match(&rule.ports, None)
            }
        }
    }

    fn peer_matches(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Pods(_) => self.pods_at_peer(Some(peer)).next().is_some(),
            Peer::Block(block) => block.contains(self.peer),
        }
    }

    /// The pods that have the peer's address; with a pod selector only those that it finds.
    fn pods_at_peer(&self, peer: Option<&Peer>) -> impl Iterator<Item = &Pod> {
        self.snapshot
            .pods
            .iter()
            .filter(|(_, pod)| pod.kind == PodKind::Endpoint && pod.addresses.contains(&self.peer))
            .filter(move |(id, pod)| match peer {
                Some(Peer::Pods(selector)) => selector.matches(self.snapshot, id, pod),
                Some(Peer::Block(_)) | None => true,
            })
            .map(|(_, pod)| &**pod)
    }

    fn ports_match(&self, ports: &Ports, peer: Option<&Peer>) -> bool {
        match ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| self.port_matches(port, peer)),
        }
    }

    fn port_matches(&self, port: &Port, peer: Option<&Peer>) -> bool {
        let Transport::Port(protocol, number) = self.transport else { return false };
        match port {
            Port::Numbers(of, first, last) => *of == protocol && (*first..=*last).contains(&number),
            Port::Named(of, name) => {
                let port = NamedPort { name: name.clone(), protocol, port: number };
                // The name is the destination's: the selected pod's own on ingress, the peer's on egress.
                *of == protocol
                    && match self.direction {
                        Direction::Ingress => self.pod.named_ports.contains(&port),
                        Direction::Egress => self.pods_at_peer(peer).any(|pod| pod.named_ports.contains(&port)),
                    }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        model::Labels,
        policy::ir::{Block, Namespaces, PodSelector, Policy, Tier},
        selector::Selector,
    };

    fn id(name: &str) -> PolicyId {
        PolicyId { namespace: "a".to_owned(), name: name.to_owned() }
    }

    fn rule_of(policy: &str, rule: usize) -> RuleId {
        RuleId { policy: id(policy), rule }
    }

    /// A tier of policies for the pod `a/web` with these ingress rules each: the action, and the sender it is about.
    fn tier(default: TierDefault, policies: &[(&str, &[(Action, &str)])]) -> Tier {
        let rule = |(action, from): &(Action, &str)| Rule {
            action: *action,
            peers: Peers::Of(vec![Peer::Block(Block { net: from.parse().unwrap(), except: BTreeSet::new() })]),
            ports: Ports::Any,
        };
        let policy = |rules: &[(Action, &str)]| Policy {
            order: 0,
            subject: PodSelector { namespaces: Namespaces::Named("a".to_owned()), pods: Selector::everything() },
            ingress: Some(rules.iter().map(rule).collect()),
            egress: None,
        };
        let policies = policies.iter().map(|(name, rules)| (id(name), policy(rules))).collect();
        Tier { name: "t".to_owned(), default, policies }
    }

    fn ingress(tiers: Vec<Tier>) -> Trail {
        let web = PodId { namespace: "a".to_owned(), name: "web".to_owned() };
        let to = Party { address: IpAddr::from([10, 0, 0, 1]), pod: Some(web.clone()) };
        let pod = Pod {
            labels: Labels::new(),
            addresses: BTreeSet::from([to.address]),
            named_ports: BTreeSet::new(),
            kind: PodKind::Endpoint,
            node: None,
        };
        let snapshot =
            Snapshot { pods: [(web, std::sync::Arc::new(pod))].into_iter().collect(), tiers, ..Snapshot::default() };
        let from = Party { address: IpAddr::from([192, 0, 2, 1]), pod: None };
        let packet = Packet { from, to, transport: Transport::Port(Protocol::Tcp, 80) };
        let verdict = eval(&snapshot, &packet);
        assert_eq!(verdict.egress.outcome, Outcome::NoEndpoint, "the sender is outside of the cluster");
        assert_eq!(verdict.allows(), verdict.ingress.outcome.allows());
        verdict.ingress
    }

    #[test]
    fn the_trail_names_what_decided() {
        use Action::{Allow, Deny, Log, Pass};
        const ME: &str = "192.0.2.0/24";
        const OTHER: &str = "198.51.100.0/24";
        let deny = TierDefault::Deny;
        let unrestricted = Outcome::Unrestricted;
        for (tiers, logged_by, passed_by, outcome, why) in [
            (vec![], vec![], vec![], unrestricted.clone(), "no policy"),
            (
                vec![tier(deny, &[("p", &[(Allow, OTHER), (Allow, ME)])])],
                vec![],
                vec![],
                Outcome::AllowedBy(rule_of("p", 1)),
                "the second rule",
            ),
            (
                vec![tier(deny, &[("p", &[(Allow, OTHER)]), ("q", &[])])],
                vec![],
                vec![],
                Outcome::IsolatedBy(vec![id("p"), id("q")]),
                "all policies that isolate, in order",
            ),
            (
                vec![tier(deny, &[("p", &[(Deny, ME)]), ("q", &[(Allow, ME)])])],
                vec![],
                vec![],
                Outcome::DeniedBy(rule_of("p", 0)),
                "the first match wins",
            ),
            (
                vec![tier(deny, &[("p", &[(Pass, ME), (Deny, ME)])]), tier(deny, &[("q", &[(Allow, ME)])])],
                vec![],
                vec![rule_of("p", 0)],
                Outcome::AllowedBy(rule_of("q", 0)),
                "a pass leaves the tier, and the next one decides",
            ),
            (
                vec![tier(deny, &[("p", &[(Pass, ME)])])],
                vec![],
                vec![rule_of("p", 0)],
                unrestricted.clone(),
                "a pass out of the last tier allows",
            ),
            (
                vec![tier(TierDefault::Pass, &[("p", &[(Deny, OTHER)])]), tier(deny, &[])],
                vec![],
                vec![],
                unrestricted,
                "a default that passes, and a tier that selects nobody",
            ),
            (
                vec![
                    tier(deny, &[("p", &[(Log, OTHER), (Log, ME), (Log, ME), (Pass, ME), (Log, ME)])]),
                    tier(deny, &[("q", &[(Log, ME), (Deny, ME), (Log, ME)])]),
                ],
                vec![rule_of("p", 1), rule_of("p", 2), rule_of("q", 0)],
                vec![rule_of("p", 3)],
                Outcome::DeniedBy(rule_of("q", 1)),
                "what logs decides nothing, and behind a decision nothing is logged",
            ),
            (
                vec![tier(deny, &[("p", &[(Log, ME)])])],
                vec![rule_of("p", 0)],
                vec![],
                Outcome::IsolatedBy(vec![id("p")]),
                "to be logged is not to be let through",
            ),
        ] {
            assert_eq!(ingress(tiers), Trail { logged_by, passed_by, outcome }, "{why}");
        }
    }
}
