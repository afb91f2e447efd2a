//! Why a packet is denied: the policy and the rule, or the policies that isolate the pod.
//!
//! [`explain`] asks the evaluator about one end of a packet. It works over the index's snapshot, so that the deny log, the
//! policy re-evaluation and offline tools give the same answer. It answers from what is known *now*: a packet that the
//! present policies allow is blamed on none.

use std::{fmt, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use towpath_core::{
    model::{Endpoint, PodId, Protocol},
    names::IfName,
    policy::{
        compile::Compiler,
        eval::{Decision, Flow, FlowEndpoint, FlowTransport, RuleId, Trace, eval},
        ir::{Direction, Pod, PodKind, PolicyId, Snapshot},
    },
};

/// How many policies or rules a cause names: a pod can have hundreds.
const NAMED: usize = 3;

/// The first packet of a connection, after service translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketTuple {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address, of the same family.
    pub destination: IpAddr,
    /// Protocol, and port or message type.
    pub payload: Payload,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// A protocol with ports, and the destination port.
    Port(Protocol, u16),
    /// ICMP (1) or ICMPv6 (58): the protocol number and the message type.
    Icmp(u8, u8),
    /// Another protocol number; or one of those above where the port or type is unknown, as in a later fragment.
    Other(u8),
}

/// The cluster as [`explain`] sees it.
#[derive(Debug, Clone, Copy)]
pub struct PolicyView<'a> {
    /// The pods of this node.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
    /// Policies, namespaces and pods.
    pub snapshot: &'a Snapshot,
    /// How pods are found by their addresses.
    pub lookup: PodLookup<'a>,
}

/// How pods are found by their addresses.
#[derive(Debug, Clone, Copy)]
pub enum PodLookup<'a> {
    /// In the compiler's index. A pod that got its address since the rules were compiled is not found: the rules do not
    /// have it either.
    Compiled(&'a Compiler),
    /// By a walk over all pods of the snapshot.
    Walk,
}

/// Packets of one kind that policies dropped at one pod.
pub type Denial = ExplainedPacket<DenialCause>;

/// Packets of one kind that policy rules log at one pod, whether they pass or not.
pub type LoggedPacket = ExplainedPacket<LoggedBy>;

/// Packets of one kind at one pod, and the cause. Equal ones are reported together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExplainedPacket<C> {
    /// The pod of this node whose policies decided.
    pub pod: PodId,
    /// Whether its ingress or its egress policies did.
    pub direction: Direction,
    /// The other end of the connection.
    pub peer: PacketPeer,
    /// Protocol and destination port.
    pub payload: Payload,
    /// The policy or rule.
    pub cause: C,
}

/// The other end of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketPeer {
    /// Its address, after service translation.
    pub address: IpAddr,
    /// The pod with that address; `None`: a node, or outside of the cluster.
    pub pod: Option<PodId>,
}

/// Why a packet is denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenialCause {
    /// Policies select the pod, and no rule of theirs allows the packet.
    Isolated {
        /// The first of the policies.
        by: Vec<PolicyId>,
        /// How many more there are.
        more: usize,
    },
    /// A rule denies it.
    Rule {
        /// The rule's policy.
        policy: PolicyId,
        /// The rule's place in the policy's list of the direction, from 0.
        rule: usize,
    },
    /// The pod watch has not delivered the pod yet.
    UnknownPod,
    /// The present policies allow it: they have changed since the packet was dropped.
    AllowedNow,
}

/// The rules that log a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoggedBy {
    /// The first of them; empty if the policies have changed and none logs the packet any more.
    pub rules: Vec<RuleId>,
    /// How many more there are.
    pub more: usize,
}

/// Names the pod whose policies decide, the peer and the cause; `None` if no pod of this node has the address.
///
/// `direction` says at which end: ingress at the destination, egress at the source.
#[must_use]
pub fn explain<C: From<Trace>>(
    view: PolicyView<'_>,
    direction: Direction,
    tuple: PacketTuple,
) -> Option<ExplainedPacket<C>> {
    let (own, other) = match direction {
        Direction::Ingress => (tuple.destination, tuple.source),
        Direction::Egress => (tuple.source, tuple.destination),
    };
    let pod = view.endpoints.values().find(|endpoint| endpoint.addresses.contains(&own))?.pod.clone();
    let vicinity = vicinity(view, &pod, [own, other]);
    let holds = |at: &Pod| at.kind == PodKind::Endpoint && at.addresses.contains(&other);
    let holder = vicinity.pods.iter().find(|(id, at)| **id != pod && holds(at));
    let itself = (own == other).then(|| pod.clone());
    let peer = PacketPeer { address: other, pod: itself.or_else(|| holder.map(|(id, _)| id.clone())) };
    let cause = evaluate(&vicinity, direction, &pod, &peer, tuple).into();
    Some(ExplainedPacket { pod, direction, peer, payload: tuple.payload, cause })
}

/// The snapshot with only the pods on which the decision depends: the pod, and the holders of either address. The
/// evaluator walks over all pods for every peer of every rule.
fn vicinity(view: PolicyView<'_>, pod: &PodId, addresses: [IpAddr; 2]) -> Snapshot {
    let PolicyView { snapshot, lookup, .. } = view;
    let pods = match lookup {
        PodLookup::Compiled(compiler) => {
            let ids = addresses.into_iter().flat_map(|address| compiler.pods_with_address(address)).chain([pod]);
            ids.filter_map(|id| Some((id.clone(), Arc::clone(snapshot.pods.get(id)?)))).collect()
        }
        PodLookup::Walk => {
            let near = |id: &PodId, at: &Pod| id == pod || addresses.iter().any(|a| at.addresses.contains(a));
            let pods = snapshot.pods.iter().filter(|(id, at)| near(id, at));
            pods.map(|(id, at)| (id.clone(), Arc::clone(at))).collect()
        }
    };
    Snapshot { namespaces: snapshot.namespaces.clone(), pods, tiers: snapshot.tiers.clone() }
}

fn evaluate(vicinity: &Snapshot, direction: Direction, pod: &PodId, peer: &PacketPeer, tuple: PacketTuple) -> Trace {
    let transport = match tuple.payload {
        Payload::Port(protocol, port) => FlowTransport::Port(protocol, port),
        Payload::Icmp(protocol, _) | Payload::Other(protocol) => FlowTransport::Other(protocol),
    };
    let own = |address| FlowEndpoint { address, pod: Some(pod.clone()) };
    let other = FlowEndpoint { address: peer.address, pod: peer.pod.clone() };
    let (from, to) = match direction {
        Direction::Ingress => (other, own(tuple.destination)),
        Direction::Egress => (own(tuple.source), other),
    };
    let verdict = eval(vicinity, &Flow { from, to, transport });
    match direction {
        Direction::Ingress => verdict.ingress,
        Direction::Egress => verdict.egress,
    }
}

impl DenialCause {
    /// Whether a policy is the cause.
    #[must_use]
    pub const fn is_policy(&self) -> bool {
        match self {
            Self::Isolated { .. } | Self::Rule { .. } => true,
            Self::UnknownPod | Self::AllowedNow => false,
        }
    }
}

impl From<Trace> for DenialCause {
    fn from(trail: Trace) -> Self {
        match trail.outcome {
            Decision::IsolatedBy(by) => {
                let (by, more) = first(by);
                Self::Isolated { by, more }
            }
            Decision::DeniedBy(rule) => Self::Rule { policy: rule.policy, rule: rule.rule },
            Decision::UnknownPod => Self::UnknownPod,
            Decision::NoEndpoint | Decision::Unrestricted | Decision::AllowedBy(_) => Self::AllowedNow,
        }
    }
}

impl From<Trace> for LoggedBy {
    fn from(trail: Trace) -> Self {
        let (rules, more) = first(trail.logged_by);
        Self { rules, more }
    }
}

/// The first few, and how many more there are.
fn first<T>(mut all: Vec<T>) -> (Vec<T>, usize) {
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    (all, more)
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ICMP: u8 = 1;
        match self {
            Self::Port(Protocol::Tcp, port) => write!(f, "TCP port {port}"),
            Self::Port(Protocol::Udp, port) => write!(f, "UDP port {port}"),
            Self::Port(Protocol::Sctp, port) => write!(f, "SCTP port {port}"),
            Self::Icmp(ICMP, kind) => write!(f, "ICMP type {kind}"),
            Self::Icmp(_, kind) => write!(f, "ICMPv6 type {kind}"),
            Self::Other(protocol) => write!(f, "protocol {protocol}"),
        }
    }
}

impl fmt::Display for PacketPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({})", self.address),
            None => self.address.fmt(f),
        }
    }
}

impl fmt::Display for DenialCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolated { by, more } => {
                f.write_str("isolated by NetworkPolicy ")?;
                for (i, policy) in by.iter().enumerate() {
                    write!(f, "{}{policy}", if i == 0 { "" } else { ", " })?;
                }
                if *more > 0 {
                    write!(f, " and {more} more")?;
                }
                f.write_str(", and no rule allows it")
            }
            Self::Rule { policy, rule } => write!(f, "denied by rule {rule} of policy {policy}"),
            Self::UnknownPod => f.write_str("the agent has not received the pod from the API server yet"),
            Self::AllowedNow => f.write_str("allowed by the present policies, which have changed since"),
        }
    }
}

impl fmt::Display for LoggedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, RuleId { policy, rule }) in self.rules.iter().enumerate() {
            write!(f, "{}rule {rule} of policy {policy}", if i == 0 { "" } else { ", " })?;
        }
        match (&self.rules[..], self.more) {
            ([], _) => f.write_str("no rule any more: the policies have changed since"),
            (_, 0) => Ok(()),
            (_, more) => write!(f, " and {more} more"),
        }
    }
}

impl<C> fmt::Display for ExplainedPacket<C> {
    /// The peer and the payload, without the pod and the cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, payload, .. } = self;
        match self.direction {
            Direction::Ingress => write!(f, "from {peer}, {payload}"),
            Direction::Egress => write!(f, "to {peer}, {payload}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_reads_as_people_write_it() {
        for (payload, text) in [
            (Payload::Port(Protocol::Tcp, 80), "TCP port 80"),
            (Payload::Port(Protocol::Udp, 53), "UDP port 53"),
            (Payload::Port(Protocol::Sctp, 9), "SCTP port 9"),
            (Payload::Icmp(1, 8), "ICMP type 8"),
            (Payload::Icmp(58, 128), "ICMPv6 type 128"),
            (Payload::Other(47), "protocol 47"),
        ] {
            assert_eq!(payload.to_string(), text);
        }
    }
}
