//! The agent's configuration and the ConfigMap that carries it.

use ipnet::IpNet;
use serde_json::json;
use towpath_crds::{AgentConfig, NetworkConfigSpec, names};

use super::{Child, ChildKind, child, labels};

/// The configuration of the agents: the spec with every default filled in and the pod network as it was found.
#[must_use]
pub fn agent_config(spec: &NetworkConfigSpec, pod_cidrs: &[IpNet]) -> AgentConfig {
    AgentConfig {
        pod_cidrs: pod_cidrs.iter().map(ToString::to_string).collect(),
        backend: spec.backend.resolved_vxlan(),
        mtu: spec.mtu,
        interface: spec.interface.clone(),
        masquerade: spec.masquerade.clone(),
        policy: spec.policy.clone(),
        log_level: spec.agent.log_level,
    }
}

/// The immutable ConfigMap of one revision: another content has another name.
#[must_use]
pub fn config_map(config: &AgentConfig) -> Child {
    child(
        ChildKind::ConfigMap,
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names::agent_config_map(&config.revision()),
                "namespace": names::NAMESPACE,
                "labels": labels(),
            },
            "immutable": true,
            "data": { names::AGENT_CONFIG_KEY: config.canonical_json() },
        }),
    )
}
