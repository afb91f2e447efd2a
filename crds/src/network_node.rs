//! `NetworkNode`: the report of one node's agent. One per Node, with the same name, owned by the Node. It has no spec.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// The body of a NetworkNode: status only.
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
    doc = "The state of one node's network, as its agent reports it. The agent writes it; do not edit it. It has the name of the Node and is deleted with the Node.",
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

/// The state of the node's network, as its agent reports it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkNodeStatus {
    /// The conditions Ready, TunnelReady and PolicySynced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// When the agent last wrote this status. It writes on change and every five minutes. After fifteen minutes without
    /// a report the operator counts the node as unreachable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_report_time: Option<Time>,
    /// Revision of the configuration that the agent runs, as in the name of its ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub config_revision: Option<String>,
    /// The agent's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentProcess>,
    /// The interface that carries the traffic between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkStatus>,
    /// The overlay devices, one per IP family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub tunnels: Vec<TunnelStatus>,
    /// The node's podCIDRs, from which its pods get their addresses.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub pod_cidrs: Vec<String>,
    /// Usage of the node's pod addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<AddressUsage>,
    /// State of policy enforcement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyStatus>,
    /// Changes that others made to the agent's kernel objects, and that the agent repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftStatus>,
    /// Problems on the node that others cause, such as a firewall that drops pod traffic, each with its remedy. At most
    /// sixteen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub findings: Vec<Finding>,
}

/// The agent's process.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentProcess {
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub version: String,
    /// When the agent's process started.
    pub started_at: Time,
}

/// The interface that carries the traffic between nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UplinkStatus {
    /// Name of the interface.
    #[schemars(length(max = 15))]
    pub name: String,
    /// Interface index (ifindex).
    pub index: i32,
    /// MTU of the interface, in bytes.
    pub mtu: i32,
    /// The addresses to which peers send encapsulated traffic, one per IP family.
    #[schemars(length(max = 2))]
    pub addresses: Vec<String>,
    /// How the interface was chosen.
    pub chosen_by: UplinkSelection,
}

/// How the uplink was chosen.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkSelection {
    /// It has the default route.
    DefaultRoute,
    /// There is no default route, and it has the Node's InternalIP.
    NodeAddress,
    /// Its name is in `spec.interface.names`.
    Name,
    /// It has an address in `spec.interface.cidrs`.
    #[serde(rename = "CIDR")]
    Cidr,
    /// It has the address in the Node's node-public-ip annotation.
    Annotation,
}

/// An overlay device.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// Name of the device.
    #[schemars(length(max = 15))]
    pub device: String,
    /// VXLAN network identifier.
    pub vni: i32,
    /// Destination UDP port.
    pub port: i32,
    /// MTU of the device and of pods, in bytes.
    pub mtu: i32,
    /// MAC address of the device.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// Other nodes in the cluster.
    pub peers_expected: i32,
    /// Other nodes whose route, neighbour and FDB entries are in the kernel.
    pub peers_programmed: i32,
}

/// Usage of the node's pod addresses, both IP families together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AddressUsage {
    /// Addresses assigned to pods.
    pub used: i64,
    /// Addresses that the podCIDRs can provide.
    pub capacity: i64,
}

/// State of policy enforcement on the node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Number of rulesets that have been applied since the agent started.
    pub generation: i64,
    /// Pods on the node whose traffic is filtered.
    pub endpoints: i32,
    /// NetworkPolicies in the cluster.
    pub policies: i32,
    /// Time from the latest change's event to its commit in the kernel, in milliseconds.
    pub last_apply_millis: i32,
    /// NetworkPolicies with parts that cannot be enforced as written, at most ten. Such a part allows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub rejected: Vec<RejectedPolicy>,
}

/// A NetworkPolicy with parts that cannot be enforced as written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct RejectedPolicy {
    /// The policy, as namespace/name.
    #[schemars(length(max = 317))]
    pub policy: String,
    /// Which parts, and what is wrong with each.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// Changes that others made to the agent's kernel objects, and that the agent repaired.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DriftStatus {
    /// Number of repairs since the agent started.
    pub repairs: i64,
    /// The latest repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_repair: Option<Repair>,
}

/// A repair of a kernel object.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// The kernel object that was repaired.
    #[schemars(length(max = 128))]
    pub object: String,
    /// When it was repaired.
    pub time: Time,
}

/// A problem on the node that others cause.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of problem as one word, such as ForeignFirewall.
    #[schemars(length(max = 64))]
    pub name: String,
    /// What was found, and how it affects pods.
    #[schemars(length(max = 512))]
    pub message: String,
    /// What to do about it: a command or a setting.
    #[schemars(length(max = 512))]
    pub remedy: String,
}
