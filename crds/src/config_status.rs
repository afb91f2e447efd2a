//! `NetworkConfig.status`: the observed state. A field is added here when something fills it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{network_config::BackendType, schema};

/// The observed state of the pod network, as the operator reports it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfigStatus {
    /// The metadata.generation that this status describes. -1 until the operator has processed the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The conditions Ready and PreflightPassed, and while they are True also Stalled and Reconciling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The values in force, each with its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// How many nodes are in which state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// The checks that run before a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
    /// The versions that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
}

/// The values in force, each with its source.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// The CIDRs of the pod network.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pub pod_cidrs: Option<EffectiveCidrs>,
    /// The CIDRs of Services. Empty with source Unknown: the overlap with the pod network was not checked.
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Option::is_none")]
    pub service_cidrs: Option<EffectiveCidrs>,
    /// The MTU of overlay devices and pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<EffectiveMtu>,
    /// The transport between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<EffectiveBackend>,
}

/// CIDRs and their source.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveCidrs {
    /// The CIDRs.
    #[schemars(length(max = 8))]
    pub value: Vec<String>,
    /// Where the CIDRs come from.
    pub source: ValueSource,
}

/// The MTU over all nodes, and its source.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveMtu {
    /// The smallest and largest MTU.
    pub value: MtuRange,
    /// Where the MTU comes from.
    pub source: ValueSource,
}

/// The smallest and largest MTU over all nodes, in bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MtuRange {
    /// Smallest MTU over all nodes, in bytes.
    pub min: i32,
    /// Largest MTU over all nodes, in bytes.
    pub max: i32,
}

/// The transport between nodes, and its source.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveBackend {
    /// The transport.
    pub value: BackendType,
    /// Where the choice comes from.
    pub source: ValueSource,
}

/// The source of a value.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// The spec of the NetworkConfig.
    Spec,
    /// The smallest range over all Node.spec.podCIDRs.
    NodePodCIDRs,
    /// The cluster's ServiceCIDR objects (networking.k8s.io/v1).
    ServiceCIDRObjects,
    /// The reports of the agents.
    NodeReports,
    /// The cluster does not publish it.
    Unknown,
}

/// How many nodes are in which state. Nodes that are in none of them are starting or being updated.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// Nodes that should run an agent.
    pub desired: i32,
    /// Nodes whose agent runs the wanted revision, reports Ready, and reaches all other such nodes.
    pub ready: i32,
    /// Nodes whose agent cannot start or reports a failure.
    pub degraded: i32,
    /// Nodes without a current report: the agent has not reported for fifteen minutes, the Node's Ready condition is
    /// Unknown, or the operator cannot decode the report.
    pub unreachable: i32,
    /// Ready and desired nodes as text, such as 2/3.
    #[schemars(length(max = 32))]
    pub summary: String,
    /// Nodes that are not ready, the worst first, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub worst: Vec<NodeProblem>,
}

/// A node that is not ready.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeProblem {
    /// Name of the Node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Why, as one word: a reason of the NetworkNode's Ready condition, of the kubelet, or of the operator.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, and what to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// The checks that run before a rollout.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// The checks, in the order in which they run.
    #[schemars(length(max = 32))]
    pub checks: Vec<Check>,
}

/// A check and its result.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Name of the check.
    #[schemars(length(max = 64))]
    pub name: String,
    /// Result of the check.
    pub result: CheckResult,
    /// What was found, and what to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Result of a check.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Nothing was found against the configuration.
    Passed,
    /// The rollout is held until the problem is solved.
    Failed,
    /// The cluster does not publish what the check needs.
    Skipped,
}

/// The versions that run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Version of the operator.
    #[schemars(length(max = 64))]
    pub operator: String,
    /// Versions of the agents, at most eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub agents: Vec<AgentVersion>,
}

/// A version of the agent, and how many nodes run it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentVersion {
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub version: String,
    /// Number of nodes that run it.
    pub nodes: i32,
}
