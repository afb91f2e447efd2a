//! Intermediate representation of policy: the pods and namespaces of the cluster, and tiers of ordered rules.
//!
//! Each direction is evaluated separately. Tiers apply in order; within a tier, the rules of the policies that select
//! the pod apply in order. The first rule that matches gives the verdict: Allow and Deny are final, Pass continues with
//! the next tier. Log logs the packet and continues with the next rule. A tier in which no rule gives a verdict ends
//! with its default, but only for pods that one of its policies selects in that direction. After the last tier the
//! packet is allowed.
//!
//! NetworkPolicy is one tier of Allow rules with the default Deny: a selected pod is isolated, policies are additive and
//! their order does not matter. The tiers of KEP-2091 have the same shape.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    model::{Labels, NodeName, PodId, Protocol},
    selector::Selector,
};

/// All input of policy evaluation.
///
/// The maps are persistent: a clone shares its entries, and [`crate::delta::changes`] matches_with the difference between two
/// versions without reading the shared part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Labels of each namespace, by name.
    pub namespaces: OrdMap<String, Arc<Labels>>,
    /// All pods except those in phase Succeeded or Failed.
    pub pods: OrdMap<PodId, Arc<Pod>>,
    /// The tiers in evaluation order.
    pub tiers: Vec<Tier>,
}

/// The properties of a pod that policy depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The labels from its metadata.
    pub labels: Labels,
    /// Its pod IPs. Two pods can have the same address for a short time, when an address is reused quickly.
    pub addresses: BTreeSet<IpAddr>,
    /// The named ports of all its containers, including init containers.
    pub named_ports: BTreeSet<NamedPort>,
    /// Whether it has its own network namespace.
    pub kind: PodKind,
    /// The node it is assigned to; `None` until it is scheduled.
    pub node: Option<NodeName>,
}

/// Whether a pod has its own network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodKind {
    /// The pod has its own network namespace. Policies can select it as subject and as peer.
    Endpoint,
    /// The pod uses the node's network (`hostNetwork: true`). Policy treats it as the node: no pod selector matches it.
    HostNetwork,
}

/// A container port with a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name, as in `spec.containers[].ports[].name`.
    pub name: String,
    /// The protocol. A name identifies a port only together with its protocol.
    pub protocol: Protocol,
    /// The port number, 1 to 65535.
    pub port: u16,
}

/// A list of policies with a common default verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// The name shown to users. It does not affect evaluation.
    pub name: String,
    /// What happens to packets that no rule of the tier decides.
    pub default: TierDefault,
    /// The policies by id; [`Policy::order`] gives the evaluation order.
    pub policies: OrdMap<PolicyId, Arc<Policy>>,
}

/// The verdict at the end of a tier, for pods that the tier selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TierDefault {
    /// Drop the packet.
    Deny,
    /// Continue with the next tier.
    Pass,
}

/// The namespace and name of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyId {
    /// The namespace of the policy object.
    pub namespace: String,
    /// The name of the policy object.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The direction of a packet, relative to the pod that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both directions.
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

/// A policy: the pods it selects, and its rules per direction.
///
/// `None` leaves a direction unaffected. An empty list selects the pods in that direction and matches no packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Position in the tier: lower values first; the id breaks ties.
    pub order: i32,
    /// The pods the policy applies to.
    pub subject: PodSelector,
    /// Rules for packets to the selected pods.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Rules for packets from the selected pods.
    pub egress: Option<Vec<PolicyRule>>,
}

impl Policy {
    /// The rules of one direction; `None` if the policy does not affect it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[PolicyRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Selects pods by namespace and labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodSelector {
    /// The namespaces of the pods.
    pub namespaces: NamespaceSelector,
    /// The labels of the pods.
    pub pods: Selector,
}

/// Selects namespaces by name or labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceSelector {
    /// The namespace with this name.
    Named(String),
    /// Namespaces whose labels match. A namespace that is not known yet never matches, not even a negative selector:
    /// its pods must not be allowed before its labels are known.
    Matching(Selector),
}

impl PodSelector {
    /// Whether the selector matches the pod.
    #[must_use]
    pub fn matches(&self, snapshot: &Snapshot, id: &PodId, pod: &Pod) -> bool {
        self.matches_with(snapshot.namespaces.get(&id.namespace).map(|labels| &**labels), id, pod)
    }

    /// As [`PodSelector::matches`], with the labels of the pod's namespace; `None` if the namespace is not known.
    #[must_use]
    pub fn matches_with(&self, namespace: Option<&Labels>, id: &PodId, pod: &Pod) -> bool {
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

/// What a rule does with a packet that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Accept the packet. No later rule or tier applies.
    Allow,
    /// Drop the packet. No later rule or tier applies.
    Deny,
    /// Continue with the next tier.
    Pass,
    /// Log the packet, at a limited rate, and continue with the next rule.
    Log,
}

/// A rule. It matches a packet if both peer and port match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Applied to each packet that matches.
    pub action: RuleAction,
    /// The source on ingress, the destination on egress.
    pub peers: RulePeers,
    /// Protocol and destination port.
    pub ports: RulePorts,
}

/// The peers of a rule: sources on ingress, destinations on egress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePeers {
    /// Any address, inside or outside the cluster.
    Any,
    /// Any of these peers; an empty list matches nothing.
    Of(Vec<RulePeer>),
    /// Any address, inside or outside the cluster, except these peers.
    NoneOf(Vec<RulePeer>),
}

/// One peer of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePeer {
    /// Pods with their own network namespace.
    Pods(PodSelector),
    /// An address range.
    IpBlock(IpBlock),
}

/// A CIDR with exceptions, as `ipBlock` in NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpBlock {
    /// The CIDR, without host bits.
    pub net: IpNet,
    /// Ranges that do not match. Parts outside `net` have no effect.
    pub except: BTreeSet<IpNet>,
}

impl IpBlock {
    /// Whether the address is in the CIDR and in none of the exceptions.
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

/// The protocols and destination ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePorts {
    /// Any protocol and port, including protocols without ports such as ICMP.
    Any,
    /// Any of these ports; an empty list matches nothing.
    Of(Vec<RulePort>),
}

/// One port of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulePort {
    /// An inclusive range of ports: one port if both bounds are equal, all ports if it is 0 to 65535.
    Numbers(Protocol, u16, u16),
    /// The port of this name of the destination pod. It matches nothing if the destination is not a pod.
    Named(Protocol, String),
}

/// A part of a policy that was rejected. The rest of the policy stays in force and isolates the pods it selects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RejectedPart {
    /// The policy that contains the part.
    pub policy: PolicyId,
    /// The field path, for example `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// What is wrong, and what follows or what to write instead.
    pub reason: String,
}

impl fmt::Display for RejectedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkPolicy {}: {}: {}", self.policy, self.path, self.reason)
    }
}
