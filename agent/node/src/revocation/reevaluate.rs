//! Policy re-evaluation: which established connections the rules in force deny.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use imbl::OrdMap;
use towpath_core::{
    connection::{AffectedPods, Connection, Reevaluation},
    model::{Endpoint, Protocol},
    names::IfName,
    policy::ir::{Direction, Pod, Snapshot},
    ruleset::{self, Ruleset},
};

use crate::explain::{Denial, PacketTuple, Payload, PodLookup, PolicyView, explain};

/// How many of the revoked connections are logged.
const EXAMPLES: usize = 3;

/// A request to evaluate established connections again: everything as it is in force. All of it is shared with the node, so
/// that a request costs nothing to make.
#[derive(Debug, Clone)]
pub struct ReevaluateRequest {
    /// The rules in force.
    pub table: Ruleset,
    /// The pods of this node.
    pub endpoints: OrdMap<IfName, Arc<Endpoint>>,
    /// The node's own addresses.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Policies and pods, to name the policy that denies a connection.
    pub snapshot: Snapshot,
    /// The pods whose connections are evaluated.
    pub affected: AffectedPods,
}

/// What became of the connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReevaluateOutcome {
    /// Newly revoked connections, and the end at which they are denied.
    pub revoked: Vec<(Connection, Direction)>,
    /// How many were revoked before and still are.
    pub still_revoked: usize,
    /// How many were revoked before and are allowed again.
    pub restored: usize,
}

/// [`ReevaluateOutcome`] in numbers, with a few examples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReevaluateSummary {
    /// The number of newly revoked connections.
    pub revoked: usize,
    /// All revoked connections, new and earlier ones.
    pub total_revoked: usize,
    /// Connections that were revoked and are allowed again.
    pub restored: usize,
    /// Some of the newly revoked ones, with the policy that denies them.
    pub examples: Vec<String>,
    /// Duration of the re-evaluation.
    pub took: Duration,
}

impl ReevaluateRequest {
    /// The verdicts on connections.
    #[must_use]
    pub fn verdicts(&self) -> Reevaluation<'_> {
        let pods = self.endpoints.values().map(|endpoint| &**endpoint);
        Reevaluation::new(&self.table, pods, &self.node_addresses, &self.affected)
    }

    /// Counts, and names the policies behind the first few revoked connections.
    #[must_use]
    pub fn summarize(&self, outcome: &ReevaluateOutcome, took: Duration) -> ReevaluateSummary {
        let examples = &outcome.revoked[..outcome.revoked.len().min(EXAMPLES)];
        let vicinity = if examples.is_empty() { Snapshot::default() } else { self.vicinity(examples) };
        let view = PolicyView { endpoints: &self.endpoints, snapshot: &vicinity, lookup: PodLookup::Walk };
        let example = |(connection, direction): &(Connection, Direction)| {
            let denial: Option<Denial> = explain(view, *direction, tuple(connection));
            let cause =
                denial.map_or_else(|| "denied; its pod is deleted".to_owned(), |denial| denial.cause.to_string());
            format!("{connection}: {direction} {cause}")
        };
        ReevaluateSummary {
            revoked: outcome.revoked.len(),
            total_revoked: outcome.revoked.len() + outcome.still_revoked,
            restored: outcome.restored,
            examples: examples.iter().map(example).collect(),
            took,
        }
    }

    /// The snapshot with only the pods that have an address of one of the connections, so that all pods are walked over once.
    fn vicinity(&self, connections: &[(Connection, Direction)]) -> Snapshot {
        let addresses: BTreeSet<IpAddr> = connections.iter().flat_map(|(c, _)| [c.from, c.to]).collect();
        let is_near = |pod: &Pod| pod.addresses.iter().any(|address| addresses.contains(address));
        let pods = self.snapshot.pods.iter().filter(|(_, pod)| is_near(pod));
        let pods = pods.map(|(id, pod)| (id.clone(), Arc::clone(pod))).collect();
        Snapshot { namespaces: self.snapshot.namespaces.clone(), pods, tiers: self.snapshot.tiers.clone() }
    }
}

fn tuple(connection: &Connection) -> PacketTuple {
    const ICMPV6: u8 = 58;
    let with_port = |number: u8, port: u16| {
        let known = Protocol::ALL.into_iter().find(|known| known.number() == number);
        known.map_or(Payload::Other(number), |known| Payload::Port(known, port))
    };
    let payload = match connection.transport {
        ruleset::Transport::Ports { protocol, destination } => with_port(protocol, destination),
        ruleset::Transport::NeighbourDiscovery => Payload::Other(ICMPV6),
        ruleset::Transport::Other(protocol) => Payload::Other(protocol),
    };
    PacketTuple { source: connection.from, destination: connection.to, payload }
}

#[cfg(test)]
mod tests {
    use towpath_core::{
        model::{Labels, PodId},
        policy::ir::{NamespaceSelector, PodKind, PodSelector, Policy, PolicyId, Tier, TierDefault},
        ruleset::Transport,
        selector::Selector,
    };

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// For the pod `a/web`, which a policy isolates in one direction.
    fn request(direction: Direction) -> ReevaluateRequest {
        let id = PodId { namespace: "a".to_owned(), name: "web".to_owned() };
        let pod = Pod {
            labels: Labels::new(),
            addresses: BTreeSet::from([address("10.244.1.2")]),
            named_ports: BTreeSet::new(),
            kind: PodKind::Endpoint,
            node: None,
        };
        let subject =
            PodSelector { namespaces: NamespaceSelector::Named("a".to_owned()), pods: Selector::everything() };
        let rules = |of: Direction| (of == direction).then(Vec::new);
        let policy = Policy { order: 0, subject, ingress: rules(Direction::Ingress), egress: rules(Direction::Egress) };
        let name = PolicyId { namespace: "a".to_owned(), name: "p".to_owned() };
        let policies = OrdMap::unit(name, Arc::new(policy));
        let mut snapshot = Snapshot::default();
        snapshot.namespaces.insert("a".to_owned(), Arc::default());
        snapshot.pods.insert(id.clone(), Arc::new(pod));
        snapshot.tiers.push(Tier { name: "t".to_owned(), default: TierDefault::Deny, policies });
        let interface = IfName::of_pod("a", "web");
        let web = Endpoint { pod: id, interface: interface.clone(), addresses: vec![address("10.244.1.2")] };
        ReevaluateRequest {
            table: Ruleset::default(),
            endpoints: OrdMap::unit(interface, Arc::new(web)),
            node_addresses: BTreeSet::new(),
            snapshot,
            affected: AffectedPods::All,
        }
    }

    #[test]
    fn of_many_revoked_connections_some_are_named_with_the_policy_and_all_are_counted() {
        let [ingress, egress] = Direction::ALL;
        for (direction, from, to, cause) in [
            (ingress, "10.244.2.9", "10.244.1.2", "ingress isolated by NetworkPolicy a/p, and no rule allows it"),
            (egress, "10.244.1.2", "10.244.2.9", "egress isolated by NetworkPolicy a/p, and no rule allows it"),
        ] {
            let to_port = |destination| Connection {
                from: address(from),
                to: address(to),
                transport: Transport::Ports { protocol: 6, destination },
            };
            let revoked = (80..85).map(|port| (to_port(port), direction)).collect();
            let outcome = ReevaluateOutcome { revoked, still_revoked: 2, restored: 1 };
            let summary = request(direction).summarize(&outcome, Duration::ZERO);
            let examples: Vec<String> =
                (80..83).map(|port| format!("{from} to {to}, protocol 6, port {port}: {cause}")).collect();
            let took = Duration::ZERO;
            assert_eq!(summary, ReevaluateSummary { revoked: 5, total_revoked: 7, restored: 1, examples, took });
        }
    }
}
