//! Evaluates one flow against a [`Snapshot`], rule by rule.
//!
//! It is the reference for the compiler: property tests compare the two. The agent also uses it to find the policy that
//! denied or logged a packet. It reads every policy, so it is not for the packet path.

use std::net::IpAddr;

use super::ir::{
    Direction, NamedPort, Pod, PodKind, PolicyId, PolicyRule, RuleAction, RulePeer, RulePeers, RulePort, RulePorts,
    Snapshot, TierDefault,
};
use crate::model::{PodId, Protocol};

/// The first packet of a connection, after service translation (DNAT).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The source.
    pub from: FlowEndpoint,
    /// The destination.
    pub to: FlowEndpoint,
    /// The protocol and destination port.
    pub transport: FlowTransport,
}

/// The source or destination of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEndpoint {
    /// The IP address in the packet.
    pub address: IpAddr,
    /// The pod whose policies apply at this end; `None` for a node or an address outside the cluster.
    pub pod: Option<PodId>,
}

/// The protocol of a flow, with its destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowTransport {
    /// A protocol with ports, and the destination port.
    Port(Protocol, u16),
    /// Any other protocol, by IANA protocol number: 1 is ICMP.
    Other(u8),
}

/// The result of evaluating a flow at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowVerdict {
    /// Result of the source's egress policies.
    pub egress: Trace,
    /// Result of the destination's ingress policies.
    pub ingress: Trace,
}

impl FlowVerdict {
    /// Whether the flow is allowed: both ends must allow it.
    #[must_use]
    pub const fn allows(&self) -> bool {
        self.egress.outcome.allows() && self.ingress.outcome.allows()
    }
}

/// The rules that led to the decision at one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Log rules that matched, in order.
    pub logged_by: Vec<RuleId>,
    /// Pass rules that matched, in order.
    pub passed_by: Vec<RuleId>,
    /// The final decision.
    pub outcome: Decision,
}

/// Identifies a rule by its policy and position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId {
    /// The policy that contains the rule.
    pub policy: PolicyId,
    /// Index of the rule in the policy's list for the direction, from 0.
    pub rule: usize,
}

/// The decision at one end, with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed: this end is not a pod with its own network namespace.
    NoEndpoint,
    /// Denied: the pod is not in the snapshot.
    UnknownPod,
    /// Allowed: no policy denies it.
    Unrestricted,
    /// Allowed by this rule.
    AllowedBy(RuleId),
    /// Denied by this rule.
    DeniedBy(RuleId),
    /// Denied: these policies of one tier isolate the pod and none of their rules matches.
    IsolatedBy(Vec<PolicyId>),
}

impl Decision {
    /// Whether this end allows the flow.
    #[must_use]
    pub const fn allows(&self) -> bool {
        match self {
            Self::NoEndpoint | Self::Unrestricted | Self::AllowedBy(_) => true,
            Self::UnknownPod | Self::DeniedBy(_) | Self::IsolatedBy(_) => false,
        }
    }
}

/// Evaluates a flow at both ends.
#[must_use]
pub fn eval(snapshot: &Snapshot, flow: &Flow) -> FlowVerdict {
    FlowVerdict {
        egress: decide(snapshot, Direction::Egress, flow),
        ingress: decide(snapshot, Direction::Ingress, flow),
    }
}

fn decide(snapshot: &Snapshot, direction: Direction, flow: &Flow) -> Trace {
    let mut matched = MatchedRules::default();
    let outcome = outcome(snapshot, direction, flow, &mut matched);
    Trace { logged_by: matched.logged_by, passed_by: matched.passed_by, outcome }
}

/// Rules that matched without deciding.
#[derive(Default)]
struct MatchedRules {
    logged_by: Vec<RuleId>,
    passed_by: Vec<RuleId>,
}

fn outcome(snapshot: &Snapshot, direction: Direction, flow: &Flow, matched: &mut MatchedRules) -> Decision {
    let (subject, peer) = match direction {
        Direction::Ingress => (&flow.to, &flow.from),
        Direction::Egress => (&flow.from, &flow.to),
    };
    let Some(id) = &subject.pod else { return Decision::NoEndpoint };
    let Some(pod) = snapshot.pods.get(id) else { return Decision::UnknownPod };
    if pod.kind == PodKind::HostNetwork {
        return Decision::NoEndpoint;
    }
    let case = FlowAtEndpoint { snapshot, direction, pod, peer: peer.address, transport: flow.transport };
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
                    matched.passed_by.push(rule);
                    continue 'tiers;
                }
                RuleAction::Log => matched.logged_by.push(rule),
            }
        }
        if !applied.is_empty() && tier.default == TierDefault::Deny {
            return Decision::IsolatedBy(applied.into_iter().map(|(id, _)| id.clone()).collect());
        }
    }
    Decision::Unrestricted
}

/// A flow as seen from one of its ends.
struct FlowAtEndpoint<'a> {
    snapshot: &'a Snapshot,
    direction: Direction,
    pod: &'a Pod,
    peer: IpAddr,
    transport: FlowTransport,
}

/// The rules that match the flow, in order.
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

    /// The pods with the peer's address. If `peer` is a pod selector, only those that it matches.
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
                // A port name belongs to the destination: the selected pod on ingress, the peer on egress.
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

    /// A tier whose policies select `a/web`. Each ingress rule is an action and the source CIDR that it matches.
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
        let flow = Flow { from, to, transport: FlowTransport::Port(Protocol::Tcp, 80) };
        let verdict = eval(&snapshot, &flow);
        assert_eq!(verdict.egress.outcome, Decision::NoEndpoint, "the source is outside the cluster");
        assert_eq!(verdict.allows(), verdict.ingress.outcome.allows());
        verdict.ingress
    }

    #[test]
    fn a_trace_lists_the_rules_that_matched_and_the_decision() {
        use RuleAction::{Allow, Deny, Log, Pass};
        const CLIENT: &str = "192.0.2.0/24";
        const OTHER: &str = "198.51.100.0/24";
        let deny = TierDefault::Deny;
        let unrestricted = Decision::Unrestricted;
        for (tiers, logged_by, passed_by, outcome, why) in [
            (vec![], vec![], vec![], unrestricted.clone(), "no policy"),
            (
                vec![tier(deny, &[("p", &[(Allow, OTHER), (Allow, CLIENT)])])],
                vec![],
                vec![],
                Decision::AllowedBy(rule_of("p", 1)),
                "the second rule matches",
            ),
            (
                vec![tier(deny, &[("p", &[(Allow, OTHER)]), ("q", &[])])],
                vec![],
                vec![],
                Decision::IsolatedBy(vec![id("p"), id("q")]),
                "all isolating policies are listed, in order",
            ),
            (
                vec![tier(deny, &[("p", &[(Deny, CLIENT)]), ("q", &[(Allow, CLIENT)])])],
                vec![],
                vec![],
                Decision::DeniedBy(rule_of("p", 0)),
                "the first matching rule decides",
            ),
            (
                vec![tier(deny, &[("p", &[(Pass, CLIENT), (Deny, CLIENT)])]), tier(deny, &[("q", &[(Allow, CLIENT)])])],
                vec![],
                vec![rule_of("p", 0)],
                Decision::AllowedBy(rule_of("q", 0)),
                "Pass leaves the tier, the next tier decides",
            ),
            (
                vec![tier(deny, &[("p", &[(Pass, CLIENT)])])],
                vec![],
                vec![rule_of("p", 0)],
                unrestricted.clone(),
                "Pass in the last tier allows",
            ),
            (
                vec![tier(TierDefault::Pass, &[("p", &[(Deny, OTHER)])]), tier(deny, &[])],
                vec![],
                vec![],
                unrestricted,
                "a tier with default Pass, and a tier without policies",
            ),
            (
                vec![
                    tier(deny, &[("p", &[(Log, OTHER), (Log, CLIENT), (Log, CLIENT), (Pass, CLIENT), (Log, CLIENT)])]),
                    tier(deny, &[("q", &[(Log, CLIENT), (Deny, CLIENT), (Log, CLIENT)])]),
                ],
                vec![rule_of("p", 1), rule_of("p", 2), rule_of("q", 0)],
                vec![rule_of("p", 3)],
                Decision::DeniedBy(rule_of("q", 1)),
                "Log does not decide, and rules after the decision log nothing",
            ),
            (
                vec![tier(deny, &[("p", &[(Log, CLIENT)])])],
                vec![rule_of("p", 0)],
                vec![],
                Decision::IsolatedBy(vec![id("p")]),
                "Log does not allow",
            ),
        ] {
            assert_eq!(ingress(tiers), Trace { logged_by, passed_by, outcome }, "{why}");
        }
    }
}
