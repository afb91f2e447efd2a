//! Background objects: pods that agents know and nobody runs, and policies about some of them.
//!
//! The background pods are bound to a node that does not exist and have addresses by their status; what would react to
//! such pods in the control plane is stopped. The local ones have a real interface with real rules, and no container.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use towpath_e2e::api::Api;
use towpath_e2e::cluster::Component;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::metrics;
use crate::plugin::{self, Plugin};
use crate::setup::{BenchCluster, NAMESPACE, pod, start};

/// Background pods.
pub(crate) const PODS: usize = 10_000;
/// Policies of one kind.
pub(crate) const POLICIES: usize = 1000;
/// Local pods that the policies are about. With the node's other pods these are as many as its range has addresses.
const LOCALS: usize = 245;
/// Values of the label `app` of background pods: ten pods have the same.
const APPS: usize = 1000;
/// Namespace of the background pods.
const NAMESPACE_OF_PODS: &str = "background";
const POLICY_PATH: &str = "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies";
/// The node of the server and of the local pods.
const NODE: &str = "n1";
/// CNI calls at once.
const WIDTH: usize = 4;
/// Time until an agent has received everything.
const BOUND: Duration = Duration::from_secs(120);

/// The kinds of background objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// [`PODS`] pods of another namespace.
    Pods,
    /// Local pods, and [`POLICIES`] policies about them that name background pods.
    Policies,
    /// [`POLICIES`] policies about the server.
    SamePod,
}

/// A client and a server on two nodes, and what is around them.
pub(crate) struct Background<'a> {
    pub(crate) cluster: &'a BenchCluster,
    pub(crate) api: Api,
    server: String,
    present: BTreeSet<Part>,
}

impl<'a> Background<'a> {
    /// Starts client and server, alone.
    pub(crate) fn start(cluster: &'a BenchCluster) -> Result<Self> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE_OF_PODS}});
        cluster.apply(&namespace.to_string())?;
        let addresses = start(cluster, &[pod("client", "n2"), pod("server", NODE)])?;
        wait_for("the ServiceAccount of the background", BOUND, || {
            // No pod is admitted before.
            Ok(cluster.get(&["serviceaccount", "default", "-n", NAMESPACE_OF_PODS])?.map(drop))
        })?;
        // The first would remove pods of a node that does not exist, the second would process each of them.
        cluster.stop(Component::ControllerManager)?;
        cluster.stop(Component::Scheduler)?;
        let server = addresses.get(1).cloned().context("the server's address")?;
        Ok(Self { cluster, api: Api::open(cluster)?, server, present: BTreeSet::new() })
    }

    /// The node of the server and of the local pods.
    pub(crate) fn node(&self) -> Result<Node> {
        self.cluster.node(NODE)
    }

    /// Address of the server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Creates a part of it, unless it exists.
    pub(crate) fn bring(&mut self, part: Part) -> Result<()> {
        if !self.present.insert(part) {
            return Ok(());
        }
        self.cluster.progress().step(format!("  creating background objects: {part:?}"));
        match part {
            Part::Pods => self.pods(),
            Part::Policies => {
                self.locals()?;
                self.policies("held", |index| json!({"app": plugin::pod_name(index % LOCALS)}))
            }
            Part::SamePod => self.policies("same", |_| json!({"app": "server"})),
        }
    }

    /// Pods and policies as [`Part::Policies`] has them.
    pub(crate) fn complete(&mut self) -> Result<()> {
        self.bring(Part::Pods)?;
        self.bring(Part::Policies)
    }

    fn pods(&self) -> Result<()> {
        let all: Vec<usize> = (0..PODS).collect();
        let path = format!("/api/v1/namespaces/{NAMESPACE_OF_PODS}/pods");
        self.api.each(&all, |index| {
            self.api.create(&path, &background_pod(*index))?;
            let ip = address(*index);
            let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
            self.api.patch(&format!("{}/status", pod_path(*index)), &json!({"status": status}))
        })
    }

    fn locals(&self) -> Result<()> {
        let node = self.node()?;
        let before = metrics::value(&node, "towpath_agent_endpoints")?;
        let pods: Vec<Value> = (0..LOCALS).map(plugin::held_pod).collect();
        self.api.create_all(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &pods)?;
        plugin::container_namespaces(&node, "add", LOCALS)?;
        Plugin::towpath(&node)?.calls("ADD", LOCALS, WIDTH)?;
        let want = before + f64::from(u32::try_from(LOCALS)?);
        reached(&node, "towpath_agent_endpoints", want)
    }

    /// Policies that each let one app of the background pods in on one port.
    fn policies(&self, name: &str, select: impl Fn(usize) -> Value) -> Result<()> {
        let node = self.node()?;
        let before = metrics::value(&node, "towpath_agent_policies")?;
        let policies: Vec<Value> =
            (0..POLICIES).map(|index| policy(&format!("{name}-{index}"), &select(index), index)).collect();
        self.api.create_all(POLICY_PATH, &policies)?;
        reached(&node, "towpath_agent_policies", before + f64::from(u32::try_from(POLICIES)?))
    }
}

/// Waits until a gauge of a node's agent is that high.
pub(crate) fn reached(node: &Node, gauge: &str, want: f64) -> Result<()> {
    wait_for(&format!("{gauge} of {want}"), BOUND, || Ok((metrics::value(node, gauge)? >= want).then_some(())))
}

/// A policy that lets one app of the background pods in on one port.
pub(crate) fn policy(name: &str, select: &Value, index: usize) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": select}, "policyTypes": ["Ingress"], "ingress": [rule(index, 10_000 + index)]},
    })
}

/// Lets one app of the background pods in on this port.
pub(crate) fn rule(index: usize, port: usize) -> Value {
    json!({
        "from": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE_OF_PODS}},
            "podSelector": {"matchLabels": {"app": app(index)}},
        }],
        "ports": [{"protocol": "TCP", "port": port}],
    })
}

/// Label `app` of a background pod.
pub(crate) fn app(index: usize) -> String {
    format!("app-{}", index % APPS)
}

/// API path of a background pod.
pub(crate) fn pod_path(index: usize) -> String {
    format!("/api/v1/namespaces/{NAMESPACE_OF_PODS}/pods/p-{index}")
}

/// Path of a policy about local pods.
pub(crate) fn policy_path(index: usize) -> String {
    format!("{POLICY_PATH}/held-{index}")
}

/// Addresses of the pod network that no node of the cluster has.
fn address(index: usize) -> String {
    format!("10.244.{}.{}", 64 + index / 250, 1 + index % 250)
}

fn background_pod(index: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p-{index}"), "namespace": NAMESPACE_OF_PODS, "labels": {"app": app(index), "number": format!("n-{index}")}},
        "spec": {
            "nodeName": "elsewhere", "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "towpath.local/agnhost:1", "ports": [{"name": "web", "containerPort": 8080}]}],
        },
    })
}
