//! The oracle: decides one packet by reading the policies from top to bottom, without any cleverness.
//!
//! It is what the compiled rules are compared with, and what names the policy behind a denied packet.

use std::net::IpAddr;

use super::ir::{
    Direction, NamedPort, Pod, PodKind, PolicyId, PolicyRule, RuleAction, RulePeer, RulePeers, RulePort, RulePorts,
    Snapshot, TierDefault,
};
use crate::model::{PodId, Protocol};

/// The first packet of a connection, as it is after service translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Where it comes from.
    pub from: FlowEndpoint,
    /// Where it goes.
    pub to: FlowEndpoint,
    /// What it carries.
    pub transport: FlowTransport,
}

/// One end of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The pod whose policies hold at this end. `None`: outside of the cluster, or a node.
    pub pod: Option<PodId>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowTransport {
    /// A protocol with ports, and the destination's port.
    Port(Protocol, u16),
    /// Another protocol, by its number in the IP header: 1 is ICMP.
    Other(u8),
}

/// Why a packet passes or not, at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowVerdict {
    /// At the end that sends.
    pub egress: Trace,
    /// At the end that receives.
    pub ingress: Trace,
}

impl FlowVerdict {
    /// Whether the packet passes: both ends must let it.
    #[must_use]
    pub const fn allows(&self) -> bool {
        self.egress.outcome.allows() && self.ingress.outcome.allows()
    }
}

/// How one end came to its decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Rules that logged the packet, in order.
    pub logged_by: Vec<RuleId>,
    /// Rules that passed the packet on to the next tier, in order.
    pub passed_by: Vec<RuleId>,
    /// What decided in the end.
    pub outcome: Decision,
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
pub enum Decision {
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

impl Decision {
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
pub fn eval(snapshot: &Snapshot, packet: &Flow) -> FlowVerdict {
    FlowVerdict {
        egress: decide(snapshot, Direction::Egress, packet),
        ingress: decide(snapshot, Direction::Ingress, packet),
    }
}

fn decide(snapshot: &Snapshot, direction: Direction, packet: &Flow) -> Trace {
    let mut met = MatchedRules::default();
    let outcome = outcome(snapshot, direction, packet, &mut met);
    Trace { logged_by: met.logged_by, passed_by: met.passed_by, outcome }
}

/// Rules that matched on the way and did not decide.
#[derive(Default)]
struct MatchedRules {
    logged_by: Vec<RuleId>,
    passed_by: Vec<RuleId>,
}

fn outcome(snapshot: &Snapshot, direction: Direction, packet: &Flow, met: &mut MatchedRules) -> Decision {
    let (subject, peer) = match direction {
        Direction::Ingress => (&packet.to, &packet.from),
        Direction::Egress => (&packet.from, &packet.to),
    };
    let Some(id) = &subject.pod else { return Decision::NoEndpoint };
    let Some(pod) = snapshot.pods.get(id) else { return Decision::UnknownPod };
    if pod.kind == PodKind::HostNetwork {
        return Decision::NoEndpoint;
    }
    let case = FlowAtEndpoint { snapshot, direction, pod, peer: peer.address, transport: packet.transport };
    'tiers: for tier in &snapshot.tiers {
        let mut selecting: Vec<_> =
            tier.policies.iter().filter(|(_, policy)| policy.subject.matches(snapshot, id, pod)).collect();
        selecting.sort_by_key(|(id, policy)| (policy.order, *id));
        let applied: Vec<(&PolicyId, &[PolicyRule])> =
            selecting.into_iter().filter_map(|(id, policy)| Some((id, policy.rules(direction)?))).collect();
        for (rule, action) in matching(&case, &applied) {
            match action {
                RuleAction::Allow => return Decision::AllowedBy(rule),
                RuleAction::Deny => return Decision::DeniedBy(rule),
                RuleAction::Pass => {
                    met.passed_by.push(rule);
                    continue 'tiers;
                }
                RuleAction::Log => met.logged_by.push(rule),
            }
        }
        if !applied.is_empty() && tier.default == TierDefault::Deny {
            return Decision::IsolatedBy(applied.into_iter().map(|(id, _)| id.clone()).collect());
        }
    }
    Decision::Unrestricted
}

/// One packet at one end of it.
struct FlowAtEndpoint<'a> {
    snapshot: &'a Snapshot,
    direction: Direction,
    pod: &'a Pod,
    peer: IpAddr,
    transport: FlowTransport,
}

/// The rules that match the packet, in order.
fn matching(
    case: &FlowAtEndpoint<'_>,
    applied: &[(&PolicyId, &[PolicyRule])],
) -> impl Iterator<Item = (RuleId, RuleAction)> {
    applied.iter().flat_map(move |(policy, rules)| {
        let matching = rules.iter().enumerate().filter(|(_, rule)| case.rule_matches(rule));
        matching.map(|(rule, by)| (RuleId { policy: (*policy).clone(), rule }, by.action))
    })
}

impl FlowAtEndpoint<'_> {
    fn rule_matches(&self, rule: &PolicyRule) -> bool {
        match &rule.peers {
            RulePeers::Any => self.ports_match(&rule.ports, None),
            RulePeers::Of(peers) => {
                peers.iter().any(|peer| self.peer_matches(peer) && self.ports_match(&rule.ports, Some(peer)))
            }
            RulePeers::NoneOf(peers) => {
                !peers.iter().any(|peer| self.peer_matches(peer)) && self.ports_match(&rule.ports, None)
            }
        }
    }

    fn peer_matches(&self, peer: &RulePeer) -> bool {
        match peer {
            RulePeer::Pods(_) => self.pods_at_peer(Some(peer)).next().is_some(),
            RulePeer::IpBlock(block) => block.contains(self.peer),
        }
    }

    /// The pods that have the peer's address; with a pod selector only those that it finds.
    fn pods_at_peer(&self, peer: Option<&RulePeer>) -> impl Iterator<Item = &Pod> {
        self.snapshot
            .pods
            .iter()
            .filter(|(_, pod)| pod.kind == PodKind::Endpoint && pod.addresses.contains(&self.peer))
            .filter(move |(id, pod)| match peer {
                Some(RulePeer::Pods(selector)) => selector.matches(self.snapshot, id, pod),
                Some(RulePeer::IpBlock(_)) | None => true,
            })
            .map(|(_, pod)| &**pod)
    }

    fn ports_match(&self, ports: &RulePorts, peer: Option<&RulePeer>) -> bool {
        match ports {
            RulePorts::Any => true,
            RulePorts::Of(ports) => ports.iter().any(|port| self.port_matches(port, peer)),
        }
    }

    fn port_matches(&self, port: &RulePort, peer: Option<&RulePeer>) -> bool {
        let FlowTransport::Port(protocol, number) = self.transport else { return false };
        match port {
            RulePort::Numbers(of, first, last) => *of == protocol && (*first..=*last).contains(&number),
            RulePort::Named(of, name) => {
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
        policy::ir::{IpBlock, NamespaceSelector, PodSelector, Policy, Tier},
        selector::Selector,
    };

    fn id(name: &str) -> PolicyId {
        PolicyId { namespace: "a".to_owned(), name: name.to_owned() }
    }

    fn rule_of(policy: &str, rule: usize) -> RuleId {
        RuleId { policy: id(policy), rule }
    }

    /// A tier of policies for the pod `a/web` with these ingress rules each: the action, and the sender it is about.
    fn tier(default: TierDefault, policies: &[(&str, &[(RuleAction, &str)])]) -> Tier {
        let rule = |(action, from): &(RuleAction, &str)| PolicyRule {
            action: *action,
            peers: RulePeers::Of(vec![RulePeer::IpBlock(IpBlock {
                net: from.parse().unwrap(),
                except: BTreeSet::new(),
            })]),
            ports: RulePorts::Any,
        };
        let policy = |rules: &[(RuleAction, &str)]| Policy {
            order: 0,
            subject: PodSelector { namespaces: NamespaceSelector::Named("a".to_owned()), pods: Selector::everything() },
            ingress: Some(rules.iter().map(rule).collect()),
            egress: None,
        };
        let policies = policies.iter().map(|(name, rules)| (id(name), policy(rules))).collect();
        Tier { name: "t".to_owned(), default, policies }
    }

    fn ingress(tiers: Vec<Tier>) -> Trace {
        let web = PodId { namespace: "a".to_owned(), name: "web".to_owned() };
        let to = FlowEndpoint { address: IpAddr::from([10, 0, 0, 1]), pod: Some(web.clone()) };
        let pod = Pod {
            labels: Labels::new(),
            addresses: BTreeSet::from([to.address]),
            named_ports: BTreeSet::new(),
            kind: PodKind::Endpoint,
            node: None,
        };
        let snapshot =
            Snapshot { pods: [(web, std::sync::Arc::new(pod))].into_iter().collect(), tiers, ..Snapshot::default() };
        let from = FlowEndpoint { address: IpAddr::from([192, 0, 2, 1]), pod: None };
        let packet = Flow { from, to, transport: FlowTransport::Port(Protocol::Tcp, 80) };
        let verdict = eval(&snapshot, &packet);
        assert_eq!(verdict.egress.outcome, Decision::NoEndpoint, "the sender is outside of the cluster");
        assert_eq!(verdict.allows(), verdict.ingress.outcome.allows());
        verdict.ingress
    }

    #[test]
    fn the_trail_names_what_decided() {
        use RuleAction::{Allow, Deny, Log, Pass};
        const ME: &str = "192.0.2.0/24";
        const OTHER: &str = "198.51.100.0/24";
        let deny = TierDefault::Deny;
        let unrestricted = Decision::Unrestricted;
        for (tiers, logged_by, passed_by, outcome, why) in [
            (vec![], vec![], vec![], unrestricted.clone(), "no policy"),
            (
                vec![tier(deny, &[("p", &[(Allow, OTHER), (Allow, ME)])])],
                vec![],
                vec![],
                Decision::AllowedBy(rule_of("p", 1)),
                "the second rule",
            ),
            (
                vec![tier(deny, &[("p", &[(Allow, OTHER)]), ("q", &[])])],
                vec![],
                vec![],
                Decision::IsolatedBy(vec![id("p"), id("q")]),
                "all policies that isolate, in order",
            ),
            (
                vec![tier(deny, &[("p", &[(Deny, ME)]), ("q", &[(Allow, ME)])])],
                vec![],
                vec![],
                Decision::DeniedBy(rule_of("p", 0)),
                "the first match wins",
            ),
            (
                vec![tier(deny, &[("p", &[(Pass, ME), (Deny, ME)])]), tier(deny, &[("q", &[(Allow, ME)])])],
                vec![],
                vec![rule_of("p", 0)],
                Decision::AllowedBy(rule_of("q", 0)),
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
                Decision::DeniedBy(rule_of("q", 1)),
                "what logs decides nothing, and behind a decision nothing is logged",
            ),
            (
                vec![tier(deny, &[("p", &[(Log, ME)])])],
                vec![rule_of("p", 0)],
                vec![],
                Decision::IsolatedBy(vec![id("p")]),
                "to be logged is not to be let through",
            ),
        ] {
            assert_eq!(ingress(tiers), Trace { logged_by, passed_by, outcome }, "{why}");
        }
    }
}
