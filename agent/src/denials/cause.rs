//! Why a packet was dropped, or who logged it.

use std::{fmt, net::IpAddr, sync::Arc};

use towpath_core::{
    model::PodId,
    policy::{
        eval::{Decision, Flow, FlowEndpoint, FlowTransport, RuleId, Trace, eval},
        ir::{Direction, Pod, PodKind, PolicyId, Snapshot},
    },
};
use towpath_dataplane::nflog::{Carried, Head};

use super::View;

/// How many policies or rules a cause names: a pod can have hundreds.
const NAMED: usize = 3;

/// Packets of one kind that were dropped at one pod.
pub type Denial = Told<Cause>;

/// Packets of one kind that rules log at one pod, whatever becomes of them.
pub type Sighting = Told<LoggedBy>;

/// Packets of one kind at one pod, and why the kernel tells of them. What is equal is told of as one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told<C> {
    /// The pod of this node whose policies it was.
    pub pod: PodId,
    /// Which of its policies: those for what it receives or those for what it sends.
    pub direction: Direction,
    /// The other end.
    pub peer: Peer,
    /// What they carried; the port is the receiver's.
    pub carried: Carried,
    /// Why.
    pub cause: C,
}

/// The other end of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its address, behind the translation of Services.
    pub address: IpAddr,
    /// The pod that has the address; `None`: a node, or outside of the cluster.
    pub pod: Option<PodId>,
}

/// Why packets are dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// These policies select the pod, and no rule of theirs allows the packets.
    Isolated {
        /// The first of them.
        by: Vec<PolicyId>,
        /// How many more there are.
        more: usize,
    },
    /// A rule denies them.
    Rule {
        /// Its policy.
        policy: PolicyId,
        /// Its place in the policy's list of the direction, from 0.
        rule: usize,
    },
    /// The API has not told of the pod yet.
    UnknownPod,
    /// None any more: as the policies are now, the packets would pass.
    AllowedNow,
}

/// Rules that log packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoggedBy {
    /// The first of them; none if, as the policies are now, no rule logs the packets any more.
    pub rules: Vec<RuleId>,
    /// How many more there are.
    pub more: usize,
}

impl Cause {
    /// Whether it is a policy's doing.
    #[must_use]
    pub const fn is_policy(&self) -> bool {
        match self {
            Self::Isolated { .. } | Self::Rule { .. } => true,
            Self::UnknownPod | Self::AllowedNow => false,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({})", self.address),
            None => self.address.fmt(f),
        }
    }
}

impl fmt::Display for Cause {
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
            Self::UnknownPod => f.write_str("the API server has not told of this pod yet"),
            Self::AllowedNow => f.write_str("the policies have changed since, and would let it through now"),
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

impl<C> fmt::Display for Told<C> {
    /// Without the pod and the cause: who was kept from what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, carried, .. } = self;
        match self.direction {
            Direction::Ingress => write!(f, "from {peer}, {carried}"),
            Direction::Egress => write!(f, "to {peer}, {carried}"),
        }
    }
}

/// Names the pod, the peer and the cause, which is read off the evaluator's trail. `None` if no pod of this node has the
/// address any more.
pub(super) fn find<C: From<Trace>>(view: View<'_>, direction: Direction, head: Head) -> Option<Told<C>> {
    let (own, other) = match direction {
        Direction::Ingress => (head.destination, head.source),
        Direction::Egress => (head.source, head.destination),
    };
    let pod = view.endpoints.values().find(|endpoint| endpoint.addresses.contains(&own))?.pod.clone();
    let near = near(view, &pod, [own, other]);
    let holder = near.pods.iter().find(|(id, at)| **id != pod && holds(at, other));
    let itself = (own == other).then(|| pod.clone());
    let peer = Peer { address: other, pod: itself.or_else(|| holder.map(|(id, _)| id.clone())) };
    let cause = trail(&near, direction, &pod, &peer, head).into();
    Some(Told { pod, direction, peer, carried: head.carried, cause })
}

fn holds(pod: &Pod, address: IpAddr) -> bool {
    pod.kind == PodKind::Endpoint && pod.addresses.contains(&address)
}

/// The cluster with no pods but those that the decision can depend on: the pod, and whoever has one of the addresses. The
/// evaluator walks over all pods for every peer of every rule. A pod that has got its address since the rules were made
/// is left out: they do not know of it either.
fn near(view: View<'_>, pod: &PodId, addresses: [IpAddr; 2]) -> Snapshot {
    let View { snapshot, compiler, .. } = view;
    let ids = addresses.into_iter().flat_map(|address| compiler.pods_with_address(address)).chain([pod]);
    let pods = ids.filter_map(|id| Some((id.clone(), Arc::clone(snapshot.pods.get(id)?))));
    Snapshot { namespaces: snapshot.namespaces.clone(), pods: pods.collect(), tiers: snapshot.tiers.clone() }
}

fn trail(near: &Snapshot, direction: Direction, pod: &PodId, peer: &Peer, head: Head) -> Trace {
    let transport = match head.carried {
        Carried::Port(protocol, port) => FlowTransport::Port(protocol, port),
        Carried::Icmp(protocol, _) | Carried::Other(protocol) => FlowTransport::Other(protocol),
    };
    let own = |address| FlowEndpoint { address, pod: Some(pod.clone()) };
    let other = FlowEndpoint { address: peer.address, pod: peer.pod.clone() };
    let (from, to) = match direction {
        Direction::Ingress => (other, own(head.destination)),
        Direction::Egress => (own(head.source), other),
    };
    let verdict = eval(near, &Flow { from, to, transport });
    match direction {
        Direction::Ingress => verdict.ingress,
        Direction::Egress => verdict.egress,
    }
}

impl From<Trace> for Cause {
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

/// Those that are named, and how many more there are.
fn first<T>(mut all: Vec<T>) -> (Vec<T>, usize) {
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    (all, more)
}
