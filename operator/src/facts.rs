//! What the operator keeps of the objects that it watches: facts, not objects. A change that leaves the facts as they are
//! triggers no plan, and a thousand nodes take a few hundred kilobytes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use towpath_crds::{
    NetworkNode,
    condition::{self, NodeCondition},
};

use crate::rejection::Rejection;

/// The facts of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Its IP addresses; host names are left out.
    pub addresses: Vec<IpAddr>,
    /// Whether its kubelet is reachable.
    pub kubelet: Kubelet,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
}

/// Whether a node's kubelet is reachable. A node that is not ready counts as reachable: without a pod network every node
/// is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// It renews its Lease.
    Reachable,
    /// The Node's Ready condition is Unknown: the node lifecycle controller has set it after the Lease expired.
    Unreachable,
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let many = spec.and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
        let one = spec.and_then(|s| s.pod_cidr.clone());
        let cidrs = if many.is_empty() { one.into_iter().collect() } else { many };
        let silent = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let silent = silent.into_iter().any(|c| c.type_ == "Ready" && c.status == "Unknown");
        let addresses = status.and_then(|s| s.addresses.as_ref()).into_iter().flatten();
        Self {
            pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            addresses: addresses.filter_map(|a| a.address.parse().ok()).collect(),
            kubelet: if silent { Kubelet::Unreachable } else { Kubelet::Reachable },
            created: node.metadata.creation_timestamp.as_ref().map(|Time(at)| *at),
        }
    }
}

/// The facts of a pod of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// The node where it runs; none until it is scheduled.
    pub node: Option<String>,
    /// Health by its conditions and container states.
    pub health: PodHealth,
}

/// The health of a pod of the agent, the best first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodHealth {
    /// Its readiness probe passes.
    Ready,
    /// Its container is starting, or not yet ready.
    Starting,
    /// Its container cannot start or has stopped, with the kubelet's reason, such as ImagePullBackOff or
    /// CrashLoopBackOff.
    Failing(String),
    /// It is being deleted.
    Terminating,
}

impl From<&Pod> for PodFacts {
    fn from(pod: &Pod) -> Self {
        Self { node: pod.spec.as_ref().and_then(|s| s.node_name.clone()), health: pod_health(pod) }
    }
}

/// Waiting reasons of a container that starts normally.
const NORMAL_WAITING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn pod_health(pod: &Pod) -> PodHealth {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodHealth::Terminating;
    }
    let Some(status) = &pod.status else { return PodHealth::Starting };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        return PodHealth::Ready;
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let waiting = containers.iter().find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
    match waiting {
        // The kubelet alternates between the two while it backs off.
        Some(reason) if reason == "ErrImagePull" => PodHealth::Failing("ImagePullBackOff".to_owned()),
        Some(reason) if !NORMAL_WAITING.contains(&reason.as_str()) => PodHealth::Failing(reason),
        _ => PodHealth::Starting,
    }
}

/// The facts of an agent's report (NetworkNode).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReportFacts {
    /// Revision of the configuration that the agent runs.
    pub revision: Option<String>,
    /// Version of the agent.
    pub version: Option<String>,
    /// When the agent last reported.
    pub at: Option<Timestamp>,
    /// The Ready condition.
    pub ready: Option<ReadyCondition>,
    /// The interface that carries the traffic between nodes.
    pub uplink: Option<UplinkFacts>,
    /// MTUs of the overlay devices, in bytes.
    pub mtus: Vec<i32>,
    /// Number of other nodes in the kernel: the least of the overlay devices, 0 without a device.
    pub peers: usize,
    /// Policies with parts that cannot be enforced as written.
    pub rejected: Vec<Rejection>,
}

/// The Ready condition of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyCondition {
    /// Whether the status is True.
    pub is_true: bool,
    /// A `NodeReason`, or that of a newer agent.
    pub reason: String,
    /// The agent's message, which the status of the NetworkConfig repeats.
    pub message: String,
}

/// The uplink of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Name of the interface.
    pub name: String,
    /// MTU of the interface, in bytes.
    pub mtu: i32,
    /// Addresses that peers send to.
    pub addresses: Vec<IpAddr>,
}

impl From<&NetworkNode> for ReportFacts {
    fn from(node: &NetworkNode) -> Self {
        let Some(status) = &node.status else { return Self::default() };
        let rejected = status.policy.iter().flat_map(|policy| &policy.rejected);
        let ready = condition::find(&status.conditions, NodeCondition::Ready.as_str());
        Self {
            revision: status.config_revision.clone(),
            version: status.agent.as_ref().map(|a| a.version.clone()),
            at: status.last_report_time.as_ref().map(|Time(at)| *at),
            ready: ready.map(|c| ReadyCondition {
                is_true: c.status == "True",
                reason: c.reason.clone(),
                message: c.message.clone(),
            }),
            uplink: status.uplink.as_ref().map(|u| UplinkFacts {
                name: u.name.clone(),
                mtu: u.mtu,
                addresses: u.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            }),
            mtus: status.tunnels.iter().map(|t| t.mtu).collect(),
            rejected: rejected.filter_map(|r| Rejection::new(&r.policy, &r.reason)).collect(),
            peers: status.tunnels.iter().map(|t| usize::try_from(t.peers_programmed).unwrap_or(0)).min().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_is_not_ready_because_it_has_no_network_is_reachable() {
        for (status, want, why) in [
            ("True", Kubelet::Reachable, "healthy"),
            ("False", Kubelet::Reachable, "no CNI configuration yet"),
            ("Unknown", Kubelet::Unreachable, "the node controller has given up on it"),
        ] {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": "a"},
                "spec": {"podCIDR": "10.244.1.0/24"},
                "status": {"conditions": [{"type": "Ready", "status": status}],
                           "addresses": [{"type": "InternalIP", "address": "172.30.0.11"}, {"type": "Hostname", "address": "a"}]},
            }))
            .unwrap();
            let facts = NodeFacts::from(&node);
            assert_eq!(facts.kubelet, want, "{why}");
            assert_eq!(facts.pod_cidrs, ["10.244.1.0/24".parse().unwrap()], "the old singular field counts too");
            assert_eq!(facts.addresses, ["172.30.0.11".parse::<IpAddr>().unwrap()], "a host name is no address");
        }
    }

    #[test]
    fn the_health_of_a_pod_is_what_the_kubelet_reports() {
        let waiting = |reason: &str| {
            json!({"containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": reason}}}]})
        };
        let cases = [
            (json!({}), PodHealth::Starting, "nothing known yet"),
            (waiting("ContainerCreating"), PodHealth::Starting, "as it should be"),
            (waiting("ImagePullBackOff"), PodHealth::Failing("ImagePullBackOff".to_owned()), "a person must act"),
            (
                waiting("ErrImagePull"),
                PodHealth::Failing("ImagePullBackOff".to_owned()),
                "the same, before the backoff",
            ),
            (json!({"conditions": [{"type": "Ready", "status": "True"}]}), PodHealth::Ready, "ready"),
        ];
        for (status, want, why) in cases {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
            assert_eq!(PodFacts::from(&pod).health, want, "{why}");
        }
    }

    #[test]
    fn a_report_is_reduced_to_what_plans_and_status_need() {
        let tunnel = |device: &str, mtu: i32, peers: i32| {
            json!({"device": device, "vni": 1, "port": 8472, "mtu": mtu, "mac": "02:00:00:00:00:01",
                   "peersExpected": 5, "peersProgrammed": peers})
        };
        let rejected = json!([{"policy": "shop/web", "reason": "spec.x: bad"}, {"policy": "web", "reason": "whose?"}]);
        let node: NetworkNode = serde_json::from_value(json!({
            "apiVersion": "towpath.io/v1alpha1", "kind": "NetworkNode", "metadata": {"name": "n0"}, "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "False", "reason": "TunnelNotReady", "message": "why",
                                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "configRevision": "abc",
                "tunnels": [tunnel("flannel.1", 1450, 4), tunnel("flannel-v6.1", 1430, 3)],
                "policy": {"generation": 1, "endpoints": 1, "policies": 2, "lastApplyMillis": 1, "rejected": rejected},
            },
        }))
        .unwrap();
        let ready = ReadyCondition { is_true: false, reason: "TunnelNotReady".to_owned(), message: "why".to_owned() };
        let want = ReportFacts {
            revision: Some("abc".to_owned()),
            ready: Some(ready),
            mtus: vec![1450, 1430],
            peers: 3,
            rejected: vec![Rejection::new("shop/web", "spec.x: bad").unwrap()],
            ..ReportFacts::default()
        };
        assert_eq!(ReportFacts::from(&node), want);
    }
}
