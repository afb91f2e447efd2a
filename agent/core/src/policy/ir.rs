//! The cluster as policy sees it, and policies as an ordered list of rules.
//!
//! A packet meets, in each direction, the tiers in order; in a tier the rules of those policies that select the pod,
//! in order. The first rule that matches decides: Allow and Deny are final, Pass goes on with the next tier. A rule that
//! logs decides nothing: the packet is told of and meets the next rule. A tier without a decision ends with its default,
//! but only for pods that some policy of it selects in that direction. Behind the last tier everything is allowed.
//!
//! Kubernetes' NetworkPolicy is one tier of allow rules with the default Deny: that is exactly "a selected pod is
//! isolated, policies add up, their order means nothing" (KEP-2091 gives the tiers around it the same shape).

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    model::{Labels, NodeName, PodId, Protocol},
    selector::Selector,
};

/// Everything that a decision depends on. A copy shares its parts: what changed between two versions is found without
/// looking at what did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Labels of every namespace.
    pub namespaces: OrdMap<String, Arc<Labels>>,
    /// Every pod that has not run to its end.
    pub pods: OrdMap<PodId, Arc<Pod>>,
    /// The tiers, in the order in which a packet meets them.
    pub tiers: Vec<Tier>,
}

/// A pod as far as policy cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses. Several pods may claim one for a moment, when an address is given out again quickly.
    pub addresses: BTreeSet<IpAddr>,
    /// The named ports of all its containers, init containers included.
    pub named_ports: BTreeSet<NamedPort>,
    /// Whether it has a network of its own.
    pub kind: PodKind,
    /// Where it runs; `None` until it is scheduled.
    pub node: Option<NodeName>,
}

/// Whether a pod has a network of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodKind {
    /// It has: policies select it, as subject and as peer.
    Endpoint,
    /// It shares its node's. It is the node, to policy: no policy selects it and no pod selector finds it.
    HostNetwork,
}

/// A port that a container gives a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol: the same name with another protocol is another port.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// A list of policies with a common default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Its name, for people.
    pub name: String,
    /// What becomes of a packet that no rule of the tier matches.
    pub default: TierDefault,
    /// Its policies.
    pub policies: OrdMap<PolicyId, Arc<Policy>>,
}

/// How a tier ends for the pods that it selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TierDefault {
    /// The packet is dropped.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A policy, by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The direction of a packet, seen from the pod that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A policy: whom it selects, and its rules in each direction that it is about. A direction that is absent is not
/// touched by it; one with an empty list selects and matches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its place in its tier: the smaller is met first, of equal ones that with the smaller id.
    pub order: i32,
    /// The pods that it is for.
    pub subject: PodSelector,
    /// Rules for packets to them.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Rules for packets from them.
    pub egress: Option<Vec<PolicyRule>>,
}

impl Policy {
    /// Its rules in one direction, if it is about that direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[PolicyRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Pods, by their namespace and their labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodSelector {
    /// In which namespaces.
    pub namespaces: NamespaceSelector,
    /// With which labels.
    pub pods: Selector,
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceSelector {
    /// This one.
    Named(String),
    /// Those with these labels. A namespace that is not known yet has none of them: whatever the selector says,
    /// it does not match, because an unknown namespace must not be let in.
    Matching(Selector),
}

impl PodSelector {
    /// Whether it finds the pod.
    #[must_use]
    pub fn matches(&self, snapshot: &Snapshot, id: &PodId, pod: &Pod) -> bool {
        self.finds(snapshot.namespaces.get(&id.namespace).map(|labels| &**labels), id, pod)
    }

    /// The same with the labels of the pod's namespace, `None` if it is not known.
    #[must_use]
    pub fn finds(&self, namespace: Option<&Labels>, id: &PodId, pod: &Pod) -> bool {
        let namespace = match &self.namespaces {
            NamespaceSelector::Named(name) => *name == id.namespace,
            NamespaceSelector::Matching(selector) => namespace.is_some_and(|labels| selector.matches(labels)),
        };
        namespace && pod.kind == PodKind::Endpoint && self.pods.matches(&pod.labels)
    }
}

impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            NamespaceSelector::Named(name) => write!(f, "pods {} of namespace {name:?}", self.pods),
            NamespaceSelector::Matching(selector) => write!(f, "pods {} of namespaces {selector}", self.pods),
        }
    }
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Let through; nothing behind it is asked.
    Allow,
    /// Dropped.
    Deny,
    /// The next tier decides.
    Pass,
    /// Told of, at a limited rate; the next rule decides.
    Log,
}

/// A rule: the peer must match and the port must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// What it does.
    pub action: RuleAction,
    /// The other side.
    pub peers: RulePeers,
    /// The destination's port and protocol.
    pub ports: RulePorts,
}

/// The other side of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePeers {
    /// Anybody, outside of the cluster too.
    Any,
    /// Any of these; nobody if there are none.
    Of(Vec<RulePeer>),
    /// Anybody but these, outside of the cluster too.
    NoneOf(Vec<RulePeer>),
}

/// One peer of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePeer {
    /// Pods with a network of their own.
    Pods(PodSelector),
    /// Addresses.
    IpBlock(IpBlock),
}

/// A network less some parts of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpBlock {
    /// The network.
    pub net: IpNet,
    /// What of it is left out.
    pub except: BTreeSet<IpNet>,
}

impl IpBlock {
    /// Whether the address is in the network and in no exception.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.net.contains(&addr) && !self.except.iter().any(|e| e.contains(&addr))
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)?;
        self.except.iter().try_for_each(|e| write!(f, " except {e}"))
    }
}

/// RulePorts and protocols of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePorts {
    /// Any port and any protocol, ICMP too.
    Any,
    /// Any of these; none if there are none.
    Of(Vec<RulePort>),
}

/// One port of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulePort {
    /// The ports from the first to the last, both included: one port if they are equal, all from 0 to 65535.
    Numbers(Protocol, u16, u16),
    /// What the destination pod calls so; nothing if the destination is no pod.
    Named(Protocol, String),
}

/// A part of a policy that cannot be used. The rest of the policy counts, and it isolates whom it selects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RejectedPart {
    /// The policy.
    pub policy: PolicyId,
    /// Where in the object: `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for RejectedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkPolicy {}: {}: {}", self.policy, self.path, self.reason)
    }
}
