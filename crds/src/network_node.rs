//! `NetworkNode`: what one node's agent reports. One per Node, of the same name, owned by the Node; no spec.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// A NetworkNode has nothing that a person would set: it is written by the node's agent.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "towpath.io",
    version = "v1alpha1",
    kind = "NetworkNode",
    plural = "networknodes",
    shortname = "netnode",
    category = "towpath",
    no_spec,
    status = "NetworkNodeStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "What the agent of one node reports about the node's network. Written by the agent, read by the operator and by people; it has the Node's name and goes with the Node.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Uplink", type_ = "string", json_path = ".status.uplink.name"),
    printcolumn(name = "PodCIDR", type_ = "string", json_path = ".status.podCIDRs[0]"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".status.tunnels[0].mtu"),
    printcolumn(name = "Peers", type_ = "integer", json_path = ".status.tunnels[0].peersProgrammed"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.configRevision", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
pub struct NetworkNodeFields {}

/// How the node's network stands, as its agent sees it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkNodeStatus {
    /// Ready, TunnelReady, PolicySynced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// When the agent last wrote this status; it does so on change and every five minutes. A report older than
    /// fifteen minutes counts as no report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_report_time: Option<Time>,
    /// Revision of the configuration that the agent runs with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub config_revision: Option<String>,
    /// The agent's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentProcess>,
    /// The interface that carries the traffic between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    /// The overlay's devices, one per IP family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub tunnels: Vec<Tunnel>,
    /// The node's share of the pod network.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub pod_cidrs: Vec<String>,
    /// Pod addresses of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
    /// Policy enforcement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyReport>,
    /// What somebody else changed in the kernel and the agent put right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Up to sixteen things on the node, not made by Towpath, that harm its pods: what was found and how to remove it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub findings: Vec<Finding>,
}

/// The agent's process.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentProcess {
    /// The agent's version.
    #[schemars(length(max = 64))]
    pub version: String,
    /// When it started.
    pub started_at: Time,
}

/// The interface that carries the traffic between nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    /// Its name.
    #[schemars(length(max = 15))]
    pub name: String,
    /// Its index in the kernel.
    pub index: i32,
    /// Its MTU, in bytes.
    pub mtu: i32,
    /// The addresses that peers send to, one per IP family.
    #[schemars(length(max = 2))]
    pub addresses: Vec<String>,
    /// Why this interface.
    pub chosen_by: ChosenBy,
}

/// Why an interface is the uplink.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// It carries the default route.
    DefaultRoute,
    /// There is no default route, and it has the Node's internal address.
    NodeAddress,
    /// It has a name from `spec.interface.names`.
    Name,
    /// It has an address inside `spec.interface.cidrs`.
    #[serde(rename = "CIDR")]
    Cidr,
    /// It has the address that the Node's annotation names.
    Annotation,
}

/// One of the overlay's devices.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// The device's name.
    #[schemars(length(max = 15))]
    pub device: String,
    /// VXLAN network identifier.
    pub vni: i32,
    /// UDP port.
    pub port: i32,
    /// The device's MTU, in bytes; pods have the same.
    pub mtu: i32,
    /// The device's hardware address.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// Peers that the cluster has.
    pub peers_expected: i32,
    /// Peers that the kernel knows.
    pub peers_programmed: i32,
}

/// Pod addresses of the node, both families together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// Addresses in use.
    pub used: i64,
    /// Addresses that there are.
    pub capacity: i64,
}

/// Policy enforcement on the node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    /// Counts the rule sets that were put in force since the agent started.
    pub generation: i64,
    /// Pods of the node under our rules.
    pub endpoints: i32,
    /// Policies that the agent knows, of all namespaces.
    pub policies: i32,
    /// How long the last change took from the event to the kernel, in milliseconds.
    pub last_apply_millis: i32,
    /// Up to ten policies that cannot be enforced as written. Their pods are closed, not open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub rejected: Vec<RejectedPolicy>,
}

/// A policy that cannot be enforced as written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct RejectedPolicy {
    /// `namespace/name`.
    #[schemars(length(max = 317))]
    pub policy: String,
    /// Why.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// What somebody else changed in the kernel and the agent put right.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// Repairs since the agent started.
    pub repairs: i64,
    /// The latest repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_repair: Option<Repair>,
}

/// One repair.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// What was repaired.
    #[schemars(length(max = 128))]
    pub object: String,
    /// When.
    pub time: Time,
}

/// Something on the node, not made by Towpath, that harms its pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of finding, one word for programs (ForeignFirewall).
    #[schemars(length(max = 64))]
    pub name: String,
    /// What was found, and what it does to pods.
    #[schemars(length(max = 512))]
    pub message: String,
    /// What to do about it: a command or a setting.
    #[schemars(length(max = 512))]
    pub remedy: String,
}
