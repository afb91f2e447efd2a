//! What the operator keeps of the objects that it watches: facts, not objects. A change that leaves the facts alone
//! wakes nobody, and a thousand nodes cost a few hundred kilobytes.

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

/// A Node, as far as the pod network is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its share of the pod network.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its kubelet is heard of.
    pub kubelet: Kubelet,
    /// When the object was created.
    pub created: Option<Timestamp>,
}

/// Whether a node's kubelet is heard of. "Not ready" is heard of: a node without a pod network is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// It renews its lease.
    Reachable,
    /// The node's Ready condition is Unknown: the node lifecycle controller has given it up.
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

/// A pod of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// The node where it runs; none while it waits for the scheduler.
    pub node: Option<String>,
    /// How it is.
    pub health: PodHealth,
}

/// How a pod of the agent is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodHealth {
    /// Its readiness probe passes.
    Ready,
    /// It starts.
    Starting,
    /// It cannot start or has stopped; the reason is the kubelet's word (ImagePullBackOff, CrashLoopBackOff).
    Failing(String),
    /// It is on its way out.
    Terminating,
}

impl From<&Pod> for PodFacts {
    fn from(pod: &Pod) -> Self {
        Self { node: pod.spec.as_ref().and_then(|s| s.node_name.clone()), health: pod_health(pod) }
    }
}

/// Waiting reasons of a container that starts as it should.
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
        // The kubelet goes back and forth between the two while it pauses between its attempts.
        Some(reason) if reason == "ErrImagePull" => PodHealth::Failing("ImagePullBackOff".to_owned()),
        Some(reason) if !NORMAL_WAITING.contains(&reason.as_str()) => PodHealth::Failing(reason),
        _ => PodHealth::Starting,
    }
}

/// What a node's agent reports.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReportFacts {
    /// Revision of its configuration.
    pub revision: Option<String>,
    /// Version of the agent.
    pub version: Option<String>,
    /// When it last wrote.
    pub at: Option<Timestamp>,
    /// Its Ready condition.
    pub ready: Option<ReadyCondition>,
    /// The uplink.
    pub uplink: Option<UplinkFacts>,
    /// MTUs of its overlay devices, in bytes.
    pub mtus: Vec<i32>,
    /// Other nodes that its overlay reaches: the least of its devices; none without a device.
    pub peers: usize,
    /// Policies that it cannot enforce as they are written.
    pub rejected: Vec<Rejection>,
}

/// The Ready condition of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyCondition {
    /// True, or why not.
    pub is_true: bool,
    /// The reason, one word.
    pub reason: String,
    /// The message.
    pub message: String,
}

/// The uplink of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Its name.
    pub name: String,
    /// Its MTU, in bytes.
    pub mtu: i32,
    /// Its addresses.
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
    fn a_node_that_is_not_ready_for_want_of_a_network_is_heard_of() {
        for (status, want, why) in [
            ("True", Kubelet::Reachable, "healthy"),
            ("False", Kubelet::Reachable, "no CNI configuration yet"),
            ("Unknown", Kubelet::Unreachable, "the node controller has given it up"),
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
    fn a_pods_health_is_the_kubelets_word() {
        let waiting = |reason: &str| {
            json!({"containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": reason}}}]})
        };
        let cases = [
            (json!({}), PodHealth::Starting, "nothing known yet"),
            (waiting("ContainerCreating"), PodHealth::Starting, "as it should be"),
            (waiting("ImagePullBackOff"), PodHealth::Failing("ImagePullBackOff".to_owned()), "a person must act"),
            (waiting("ErrImagePull"), PodHealth::Failing("ImagePullBackOff".to_owned()), "the same, a moment before"),
            (json!({"conditions": [{"type": "Ready", "status": "True"}]}), PodHealth::Ready, "ready"),
        ];
        for (status, want, why) in cases {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
            assert_eq!(PodFacts::from(&pod).health, want, "{why}");
        }
    }

    #[test]
    fn of_a_report_is_kept_what_decisions_and_people_need() {
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
