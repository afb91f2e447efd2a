//! The agent's configuration, and its ConfigMap.

use ipnet::IpNet;
use serde_json::json;
use towpath_crds::{AgentConfig, NetworkConfigSpec, names};

use super::{Child, ChildKind, child, labels};

/// The agents' configuration: the spec with defaults filled in, and the effective pod network.
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

/// The immutable ConfigMap of one revision. Its name contains the hash of its content.
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
