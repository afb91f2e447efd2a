//! Names that users, manifests and several processes share: objects, labels, ports, paths.
//!
//! Every name is written once, here. Deliberately absent: names of kernel objects, which belong to the agent.

/// API group of every kind of Towpath.
pub const GROUP: &str = "towpath.io";
/// Served and stored API version.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of Towpath's objects in owner references and manifests.
pub const API_VERSION: &str = "towpath.io/v1alpha1";
/// Namespace of the operator, of the agents and of their ConfigMaps.
pub const NAMESPACE: &str = "towpath-system";
/// The only valid name of a NetworkConfig.
pub const CONFIG_NAME: &str = "default";

/// Deployment, ServiceAccount, Lease and field manager of the operator.
pub const OPERATOR: &str = "towpath-operator";
/// DaemonSet, ServiceAccount, container and field manager of the agent.
pub const AGENT: &str = "towpath-agent";
/// Prefix of the agent's ConfigMaps; the revision follows. See [`agent_config_map`].
pub const AGENT_CONFIG_MAP_PREFIX: &str = "towpath-agent-";
/// Key of the ConfigMap that holds the agent's configuration as JSON.
pub const AGENT_CONFIG_KEY: &str = "agent.json";
/// Mount path of the ConfigMap in the agent's container.
pub const AGENT_CONFIG_DIR: &str = "/etc/towpath";
/// Path of the agent's configuration file in its container.
pub const AGENT_CONFIG_PATH: &str = "/etc/towpath/agent.json";

/// Field manager of the operator's server-side apply.
pub const OPERATOR_FIELD_MANAGER: &str = OPERATOR;
/// Field manager of the agent's server-side apply.
pub const AGENT_FIELD_MANAGER: &str = AGENT;
/// Finalizer that the operator keeps on the NetworkConfig, so that deletion follows `spec.deletionPolicy`.
pub const FINALIZER: &str = "towpath.io/operator";

/// Label of every object of Towpath; its value is [`PART_OF`].
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";
/// Label that names the component: [`OPERATOR`] or [`AGENT`].
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label that names who reconciles the object: [`OPERATOR`] for what the operator renders.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_PART_OF`].
pub const PART_OF: &str = "towpath";
/// Annotation on the agent's pod template: the revision of its configuration.
pub const ANNOTATION_REVISION: &str = "towpath.io/config-revision";

/// Environment variable of the operator: the image that it runs, and that the agents run too.
pub const ENV_IMAGE: &str = "TOWPATH_IMAGE";
/// Default registry of the image.
pub const DEFAULT_REGISTRY: &str = "towpath.local";
/// Repository of the image in its registry.
pub const IMAGE_REPOSITORY: &str = "towpath";

/// TCP port on the node where the agent answers `/healthz`, `/readyz` and `/metrics`.
pub const AGENT_PORT: u16 = 9817;
/// TCP port on the node where the operator answers `/healthz`, `/readyz` and `/metrics`.
pub const OPERATOR_PORT: u16 = 9818;

/// Name of the agent's ConfigMap of one revision.
#[must_use]
pub fn agent_config_map(revision: &str) -> String {
    format!("{AGENT_CONFIG_MAP_PREFIX}{revision}")
}

/// The default image of operator and agents; its tag is the version of this crate.
#[must_use]
pub fn default_image() -> String {
    format!("{DEFAULT_REGISTRY}/{IMAGE_REPOSITORY}:{}", env!("CARGO_PKG_VERSION"))
}
