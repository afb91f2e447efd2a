//! `NetworkConfig`: the desired pod network. The operator never writes the spec.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{config_status::NetworkConfigStatus, schema};

/// The desired pod network. Only users write it; the operator reports in `status`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "towpath.io",
    version = "v1alpha1",
    kind = "NetworkConfig",
    plural = "networkconfigs",
    shortname = "netcfg",
    category = "towpath",
    status = "NetworkConfigStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "The pod network of this cluster. There is one NetworkConfig, named `default`. The operator rolls it out to every node and reports in `status`.",
    validation = Rule::new("self.metadata.name == 'default'")
        .message("there is one NetworkConfig per cluster and its name is 'default': rename this object, or edit the existing one with `kubectl edit networkconfig default`"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.summary", description = "Ready nodes / nodes that should run an agent"),
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.effective.backend.value"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1)
)]
pub struct NetworkConfigSpec {
    /// Whether the operator acts on this object. Managed: it keeps the network as the spec says. Unmanaged: it changes
    /// nothing, and the network keeps running as it is. Default: Managed.
    #[serde(default)]
    pub management_state: ManagementState,
    /// The CIDRs of the pod network, at most one per IP family, such as 10.244.0.0/16. Every node's podCIDR must be
    /// inside. Empty: the smallest range that covers all Node.spec.podCIDRs.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::pod_cidrs")]
    pub pod_cidrs: Vec<String>,
    /// How pod traffic travels between nodes.
    #[serde(default)]
    pub backend: Backend,
    /// MTU of the overlay device and of pods, in bytes. Unset: each node uses its uplink's MTU minus 50 (outer IPv4) or
    /// 70 (outer IPv6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 9216))]
    pub mtu: Option<i32>,
    /// Which interface of a node carries the traffic between nodes (the uplink). Unset: the interface of the default
    /// route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Whether traffic from pods leaves the cluster with the node's address.
    #[serde(default)]
    pub masquerade: MasqueradeSpec,
    /// How NetworkPolicies are enforced.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Settings of the agents' pods.
    #[serde(default)]
    pub agent: Agent,
    /// Where the agents' image comes from.
    #[serde(default)]
    pub images: Images,
    /// What happens to the network when this object is deleted. Orphan: agents and network keep running, and nothing
    /// repairs or updates them. Teardown: devices, routes, rules and CNI configuration are removed from every node that
    /// can be reached within two minutes. Default: Orphan.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Whether the operator acts on the NetworkConfig.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManagementState {
    /// The operator keeps the network as the spec says.
    #[default]
    Managed,
    /// The operator writes nothing but the status.
    Unmanaged,
}

/// What happens to the data plane when the NetworkConfig is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Agents and data plane keep running.
    #[default]
    Orphan,
    /// Every node that can be reached within the bound is cleaned; then the agents are deleted.
    Teardown,
}

/// How pod traffic travels between nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// The transport. VXLAN: encapsulation in UDP, in flannel's wire format. Default: VXLAN.
    #[serde(default, rename = "type")]
    pub type_: BackendType,
    /// Settings of the VXLAN transport. Unset: every default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanBackend>,
}

impl Backend {
    /// The VXLAN settings with defaults filled in.
    #[must_use]
    pub fn resolved_vxlan(&self) -> VxlanBackend {
        self.vxlan.clone().unwrap_or_default()
    }
}

/// The transport between nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendType {
    /// VXLAN in flannel's wire format.
    #[default]
    #[serde(rename = "VXLAN")]
    Vxlan,
}

impl BackendType {
    /// The value as it stands in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "VXLAN",
        }
    }
}

/// Settings of the VXLAN transport. All nodes of a cluster, including those that run flanneld, must use the same `vni`
/// and `port`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VxlanBackend {
    /// VXLAN network identifier, 24 bits (RFC 7348). Default: 1, as in flannel.
    #[serde(default = "default_vni")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: i32,
    /// Destination UDP port. Default: 8472, as in the Linux kernel and flannel (IANA assigned 4789).
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// Whether to skip encapsulation between nodes on the same link. Enabled: such nodes get plain routes. Disabled: all
    /// traffic between nodes is encapsulated. Default: Disabled.
    #[serde(default)]
    pub direct_routing: DirectRoutingMode,
}

impl Default for VxlanBackend {
    fn default() -> Self {
        Self { vni: default_vni(), port: default_port(), direct_routing: DirectRoutingMode::default() }
    }
}

const fn default_vni() -> i32 {
    1
}

const fn default_port() -> i32 {
    8472
}

/// Whether encapsulation is skipped between nodes on the same link.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectRoutingMode {
    /// Plain routes between nodes on the same link.
    Enabled,
    /// All traffic between nodes is encapsulated.
    #[default]
    Disabled,
}

/// Which interface of a node carries the traffic between nodes: set at most one of the fields.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("[has(self.names), has(self.cidrs), has(self.autodetect)].filter(x, x).size() <= 1")
        .message("names, cidrs and autodetect are alternative ways to choose the interface: keep one and remove the others")
)]
pub struct Interface {
    /// Interface names in order of preference, such as eth0. The first that exists on the node is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::interface_names")]
    pub names: Vec<String>,
    /// CIDRs in order of preference. The first interface that has an address inside one is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::interface_cidrs")]
    pub cidrs: Vec<String>,
    /// How to find the interface. DefaultRoute: the interface of the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autodetect: Option<Autodetect>,
}

/// How to find the interface. DefaultRoute: the interface of the default route.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Autodetect {
    /// The interface of the default route.
    DefaultRoute,
}

/// Whether traffic from pods leaves the cluster with the node's address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MasqueradeSpec {
    /// Enabled: traffic from pods to addresses outside the pod network is masqueraded, so it leaves with the node's
    /// address. Disabled: no traffic is masqueraded. Default: Enabled.
    #[serde(default)]
    pub mode: MasqueradeMode,
    /// Destinations outside the pod network that are not masqueraded, so they see the pod's address.
    #[serde(default, rename = "nonMasqueradeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::non_masquerade_cidrs")]
    pub non_masquerade_cidrs: Vec<String>,
}

/// Whether nodes masquerade.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MasqueradeMode {
    /// Traffic that leaves the pod network gets the node's address.
    #[default]
    Enabled,
    /// No traffic is masqueraded.
    Disabled,
}

/// How NetworkPolicies are enforced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySpec {
    /// Enforce: NetworkPolicies are enforced. Off: NetworkPolicies are ignored and all pod traffic is allowed. Write
    /// "Off" in quotes: YAML reads a bare Off as a boolean. Default: Enforce.
    #[serde(default)]
    pub mode: PolicyMode,
    /// What happens to established connections when policies change. Reevaluate: connections that are now denied are
    /// dropped within a second. Keep: they last until one end closes them. Default: Reevaluate.
    #[serde(default)]
    pub on_change: OnChange,
    /// Enabled: packets that a policy denies are reported, at a limited rate, in the agent's log, in metrics and in an
    /// Event on the pod, each with the policy. Disabled: they are dropped without a report. Default: Enabled.
    #[serde(default)]
    pub deny_log: DenyLogMode,
}

/// What happens to established connections when policies change.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnChange {
    /// Connections that are now denied are dropped.
    #[default]
    Reevaluate,
    /// They last until one end closes them.
    Keep,
}

/// Whether NetworkPolicies are enforced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyMode {
    /// NetworkPolicies are enforced.
    #[default]
    Enforce,
    /// NetworkPolicies are ignored; all pod traffic is allowed.
    Off,
}

/// Whether packets that a policy denies are reported.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenyLogMode {
    /// Reported at a limited rate, with the policy.
    #[default]
    Enabled,
    /// Dropped without a report.
    Disabled,
}

/// Settings of the agents' pods: few and typed, deliberately not a pod template.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Resources of the agent's container. Unset: requests of 20m CPU and 32Mi memory, no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Taints that the agents tolerate. Empty: all taints, because a node without an agent has no pod network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Log level of the agents. Default: Info.
    #[serde(default)]
    pub log_level: LogLevel,
}

/// Resources of a container.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Amounts that the scheduler reserves on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Amounts>,
    /// Amounts that the kernel enforces. A CPU limit delays policy changes when the node is busy; prefer none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
}

/// Amounts of CPU and memory, as Kubernetes quantities.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// CPU in cores, such as 0.1 or 100m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Option<Quantity>,
    /// Memory in bytes, such as 64Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Option<Quantity>,
}

/// A taint that the agents tolerate, with the fields of a pod's toleration.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Key of the taint. Unset, with operator Exists: every taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// How key and value compare. Exists: any value matches. Equal: the value must match. Unset: Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Value of the taint. Only with operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint. Unset: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds for which a NoExecute taint is tolerated. Unset: forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How key and value compare. Exists: any value matches. Equal: the value must match. Unset: Equal.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TolerationOperator {
    /// Any value matches.
    Exists,
    /// The value must match.
    Equal,
}

/// Effect of the taint. Unset: every effect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaintEffect {
    /// New pods are not scheduled.
    NoSchedule,
    /// New pods are scheduled elsewhere if possible.
    PreferNoSchedule,
    /// Running pods are evicted too.
    NoExecute,
}

/// Log level of the agents, from least to most verbose.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Failures, and conditions that may need attention.
    Warn,
    /// Changes of state.
    #[default]
    Info,
    /// Each object that is handled.
    Debug,
    /// Each message and event.
    Trace,
}

impl LogLevel {
    /// The level as a filter directive of `tracing`.
    #[must_use]
    pub const fn as_filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Where the agents' image comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// Registry and path prefix of the repository `towpath`, such as registry.example.org/mirror. Unset: those of the
    /// operator's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::registry")]
    pub registry: Option<String>,
    /// Digest that pins the image, as sha256 and 64 hexadecimal digits. Unset: the tag of the operator's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::digest")]
    pub digest: Option<String>,
    /// Names of Secrets in the namespace towpath-system that hold the registry's credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::pull_secrets")]
    pub pull_secrets: Vec<String>,
    /// When nodes pull the image. Default: IfNotPresent.
    #[serde(default)]
    pub pull_policy: PullPolicy,
}

/// When a node pulls an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start of an agent.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never: the image must already be on the node.
    Never,
}
