//! `NetworkConfig`: what the user wants of the pod network. The operator never writes the spec.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{config_status::NetworkConfigStatus, schema};

/// What the user wants of the pod network. Written by people only; the operator reports in `status`.
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
    doc = "The pod network that this cluster should have. There is one, named `default`; the operator rolls it out to every node and reports in `status`.",
    validation = Rule::new("self.metadata.name == 'default'")
        .message("there is one NetworkConfig per cluster and its name is 'default': rename this object, or edit the existing one with `kubectl edit networkconfig default`"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.summary", description = "Ready nodes of all nodes"),
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.effective.backend.value"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1)
)]
pub struct NetworkConfigSpec {
    /// Managed: the operator keeps the network as this object says. Unmanaged: the operator keeps its hands off; what
    /// runs goes on running. Default: Managed.
    #[serde(default)]
    pub management_state: ManagementState,
    /// The address ranges of all pods: at most one per IP family, in network form (10.244.0.0/16). Every node's
    /// podCIDR must lie inside. Empty: the smallest range that covers all Node.spec.podCIDRs.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::pod_cidrs")]
    pub pod_cidrs: Vec<String>,
    /// How packets travel between nodes.
    #[serde(default)]
    pub backend: Backend,
    /// MTU of the overlay device and of the pods, in bytes. Unset: each node takes its uplink's MTU minus 50 (outer
    /// IPv4) or 70 (outer IPv6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 9216))]
    pub mtu: Option<i32>,
    /// Which network interface of a node carries the traffic between nodes. Unset: that of the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Whether pods appear with their node's address outside the cluster.
    #[serde(default)]
    pub masquerade: MasqueradeSpec,
    /// Whether NetworkPolicies are enforced.
    #[serde(default)]
    pub policy: PolicySpec,
    /// Settings of the node agents' pods.
    #[serde(default)]
    pub agent: Agent,
    /// Where the agents' image comes from.
    #[serde(default)]
    pub images: Images,
    /// What becomes of the network when this object is deleted. Orphan: the agents and the network go on as they are,
    /// without anybody looking after them. Teardown: devices, routes, rules and CNI configuration are removed from
    /// every node that can be reached. Default: Orphan.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Whether the operator acts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManagementState {
    /// The operator keeps the network as the spec says.
    #[default]
    Managed,
    /// The operator keeps its hands off.
    Unmanaged,
}

/// What deletion of the NetworkConfig does to the data plane.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Everything goes on running.
    #[default]
    Orphan,
    /// Everything of ours is removed from every node that can be reached, within a bound.
    Teardown,
}

/// How packets travel between nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Kind of transport. VXLAN: flannel's wire format, UDP. Default: VXLAN.
    #[serde(default, rename = "type")]
    pub type_: BackendType,
    /// Settings of the VXLAN transport.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanBackend>,
}

impl Backend {
    /// The VXLAN settings with every default filled in.
    #[must_use]
    pub fn resolved_vxlan(&self) -> VxlanBackend {
        self.vxlan.clone().unwrap_or_default()
    }
}

/// Kind of transport between nodes.
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

/// Settings of the VXLAN transport. All nodes of a cluster, flanneld's too, must agree on `vni` and `port`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VxlanBackend {
    /// VXLAN network identifier, a number of 24 bits (RFC 7348). Default: 1, as flannel's.
    #[serde(default = "default_vni")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: i32,
    /// UDP port. Default: 8472, the Linux kernel's and flannel's (IANA's is 4789).
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// Enabled: pods of nodes on the same link are reached by plain routes, without encapsulation. Default: Disabled.
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

/// Whether peers on the same link are reached without encapsulation.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectRoutingMode {
    /// Plain routes to peers on the same link.
    Enabled,
    /// Every peer is reached through the tunnel.
    #[default]
    Disabled,
}

/// Which network interface of a node carries the traffic between nodes: at most one way of choosing.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("[has(self.names), has(self.cidrs), has(self.autodetect)].filter(x, x).size() <= 1")
        .message("names, cidrs and autodetect are three ways of choosing the interface: keep one and remove the others")
)]
pub struct Interface {
    /// Interface names in order of preference (eth0, bond0): the first that exists on the node is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::interface_names")]
    pub names: Vec<String>,
    /// Address ranges in order of preference: the interface that has an address inside is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::interface_cidrs")]
    pub cidrs: Vec<String>,
    /// DefaultRoute: the interface of the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autodetect: Option<Autodetect>,
}

/// How the interface is found without being named.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Autodetect {
    /// The interface of the default route.
    DefaultRoute,
}

/// Whether pods appear with their node's address outside the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MasqueradeSpec {
    /// Enabled: traffic from pods to addresses outside the pod network leaves with the node's address. Default: Enabled.
    #[serde(default)]
    pub mode: MasqueradeMode,
    /// Destinations that see the pod's own address, beside the pod network itself.
    #[serde(default, rename = "nonMasqueradeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::non_masquerade_cidrs")]
    pub non_masquerade_cidrs: Vec<String>,
}

/// Whether the node masquerades.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MasqueradeMode {
    /// Pods leave the cluster with the node's address.
    #[default]
    Enabled,
    /// No address of ours is ever translated.
    Disabled,
}

/// Whether NetworkPolicies are enforced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySpec {
    /// Enforce: NetworkPolicies hold. "Off" (in quotes, because YAML takes a bare Off for a boolean): they are ignored and
    /// every pod is open. Default: Enforce.
    #[serde(default)]
    pub mode: PolicyMode,
    /// What becomes of established connections that a changed policy denies. Reevaluate: they are cut within a second.
    /// Keep: they live on until one of their ends closes them. Default: Reevaluate.
    #[serde(default)]
    pub on_change: OnChange,
    /// Enabled: packets that a policy drops are logged at a limited rate; the agents say in their log, in metrics and in
    /// an Event on the pod which policy it was. Disabled: nothing tells of them. Default: Enabled.
    #[serde(default)]
    pub deny_log: DenyLogMode,
}

/// What becomes of established connections that a changed policy denies.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnChange {
    /// They are cut.
    #[default]
    Reevaluate,
    /// They live on.
    Keep,
}

/// Whether NetworkPolicies are enforced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyMode {
    /// NetworkPolicies hold.
    #[default]
    Enforce,
    /// NetworkPolicies are ignored.
    Off,
}

/// Whether packets that a policy drops are logged.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenyLogMode {
    /// At a limited rate, with the policy's name.
    #[default]
    Enabled,
    /// Not at all.
    Disabled,
}

/// Settings of the node agents' pods: few and typed, never a whole pod template.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Compute resources of the agent's container. Unset: requests of 20m CPU and 32Mi memory, no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Taints that the agents tolerate. Empty: all of them, because a node without its agent has no pod network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// How much the agents log. Default: Info.
    #[serde(default)]
    pub log_level: LogLevel,
}

/// Compute resources of a container.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Amounts>,
    /// What the kernel enforces. A CPU limit slows the agent down when the node is busiest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
}

/// Amounts of CPU and memory, as Kubernetes quantities.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// CPU, in cores or thousandths (100m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Option<Quantity>,
    /// Memory, in bytes (64Mi).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Option<Quantity>,
}

/// A taint that the agents tolerate; the fields are those of a pod's toleration.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Key of the taint. Unset with operator Exists: every taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// Exists: the key alone counts. Equal: the value too. Kubernetes takes Equal when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Value of the taint, with operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint. Unset: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds that a NoExecute taint is tolerated. Unset: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration compares.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TolerationOperator {
    /// The key alone counts.
    Exists,
    /// Key and value count.
    Equal,
}

/// Effect of a taint.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaintEffect {
    /// New pods stay away.
    NoSchedule,
    /// New pods stay away if they can.
    PreferNoSchedule,
    /// Running pods go too.
    NoExecute,
}

/// How much a process logs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// Failures and surprises.
    Warn,
    /// Changes of state.
    #[default]
    Info,
    /// One line per object.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as log filters spell it.
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
    /// Registry and path prefix (registry.example.org/mirror) below which the repository `towpath` lives. Unset: where
    /// the operator's own image comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::registry")]
    pub registry: Option<String>,
    /// Digest (sha256:…) that pins the image. Unset: the tag of the operator's own image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::digest")]
    pub digest: Option<String>,
    /// Names of Secrets in the namespace towpath-system with which the image is pulled.
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
    /// At every start.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never: the image must be on the node already.
    Never,
}
