//! `NetworkConfig.status`: what the operator found out and how things stand. Only what is really filled is here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{network_config::BackendType, schema};

/// How the pod network stands, as the operator sees it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfigStatus {
    /// The metadata.generation that this status speaks of; -1 before the operator has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, PreflightPassed, and while they are true Stalled and Reconciling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The values that the spec comes down to in this cluster, each with where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// The nodes, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,
    /// What was checked before anything was rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
    /// Which versions run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
}

/// The values that the spec comes down to in this cluster, each with where it came from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// The address ranges of all pods.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pub pod_cidrs: Option<EffectiveCidrs>,
    /// The address ranges of Services. Empty with source Unknown: the overlap with Services was not checked.
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Option::is_none")]
    pub service_cidrs: Option<EffectiveCidrs>,
    /// MTU of the overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<EffectiveMtu>,
    /// The transport between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<EffectiveBackend>,
}

/// Address ranges and where they came from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveCidrs {
    /// The ranges.
    #[schemars(length(max = 8))]
    pub value: Vec<String>,
    /// Where they came from.
    pub source: ValueSource,
}

/// MTU of the overlay over all nodes and where it came from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveMtu {
    /// Smallest and largest.
    pub value: MtuRange,
    /// Where it came from.
    pub source: ValueSource,
}

/// Smallest and largest MTU of the overlay's devices, in bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MtuRange {
    /// Smallest over all nodes.
    pub min: i32,
    /// Largest over all nodes.
    pub max: i32,
}

/// The transport between nodes and where the choice came from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveBackend {
    /// The transport.
    pub value: BackendType,
    /// Where the choice came from.
    pub source: ValueSource,
}

/// Where an effective value came from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// The NetworkConfig's spec.
    Spec,
    /// The smallest range over all Node.spec.podCIDRs.
    NodePodCIDRs,
    /// The cluster's ServiceCIDR objects (networking.k8s.io/v1).
    ServiceCIDRObjects,
    /// What the nodes' agents report of their devices.
    NodeReports,
    /// Nowhere: the cluster does not tell.
    Unknown,
}

/// The nodes, counted. `desired` = `ready` + `degraded` + `unreachable` + those that have not reported yet.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// Nodes that should run an agent.
    pub desired: i32,
    /// Nodes whose agent runs the wanted revision and reports that all is well.
    pub ready: i32,
    /// Nodes whose agent reports a failure.
    pub degraded: i32,
    /// Nodes whose agent has been silent for too long or whose kubelet is not ready.
    pub unreachable: i32,
    /// `ready/desired`, for the column.
    #[schemars(length(max = 32))]
    pub summary: String,
    /// Up to ten nodes that are not ready, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub worst: Vec<NodeProblem>,
}

/// A node that is not ready.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeProblem {
    /// The node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Why, as one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// What was checked before anything was rolled out.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// The checks, in the order in which they ran.
    #[schemars(length(max = 32))]
    pub checks: Vec<Check>,
}

/// One check and its outcome.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was checked.
    #[schemars(length(max = 64))]
    pub name: String,
    /// The outcome.
    pub result: CheckResult,
    /// What was found, and what to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Outcome of a check.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// All is well.
    Passed,
    /// The rollout is held until somebody acts.
    Failed,
    /// The cluster does not tell what the check needs.
    Skipped,
}

/// Which versions run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// The operator's.
    #[schemars(length(max = 64))]
    pub operator: String,
    /// The agents', each with the number of nodes that run it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub agents: Vec<AgentVersion>,
}

/// A version of the agent and how many nodes run it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentVersion {
    /// The version.
    #[schemars(length(max = 64))]
    pub version: String,
    /// Number of nodes.
    pub nodes: i32,
}
