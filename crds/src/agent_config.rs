//! `AgentConfig`: the content of the agent's ConfigMap. The operator resolves every value. Agents never watch the
//! NetworkConfig, so a change of configuration is a revision of the DaemonSet, as a new image is.

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::network_config::{Interface, LogLevel, MasqueradeSpec, PolicySpec, VxlanBackend};

/// The complete configuration of an agent. Unknown fields are errors: an agent must not run half a configuration.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// The CIDRs of the pod network, at most one per IP family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Settings of the VXLAN transport.
    pub backend: VxlanBackend,
    /// MTU of the overlay device and of pods, in bytes; absent: derived from the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
    /// How the uplink is chosen; absent: by the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Which traffic is masqueraded.
    pub masquerade: MasqueradeSpec,
    /// How policies are enforced.
    pub policy: PolicySpec,
    /// Log level of the agent.
    pub log_level: LogLevel,
}

impl AgentConfig {
    /// The canonical form: fields in declaration order, no white space. It is the ConfigMap's content, and the input of
    /// [`AgentConfig::revision`].
    ///
    /// # Panics
    /// Never: every value of the type can be written as JSON.
    #[must_use]
    pub fn canonical_json(&self) -> String {
        serde_json::to_string(self).expect("plain data is JSON")
    }

    /// First ten hexadecimal digits of the SHA-1 of the canonical JSON. It names a revision; security does not depend on
    /// it.
    #[must_use]
    pub fn revision(&self) -> String {
        let digest = Sha1::digest(self.canonical_json().as_bytes());
        digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            pod_cidrs: vec!["10.244.0.0/16".to_owned()],
            backend: VxlanBackend::default(),
            mtu: None,
            interface: None,
            masquerade: MasqueradeSpec::default(),
            policy: PolicySpec::default(),
            log_level: LogLevel::default(),
        }
    }

    #[test]
    fn the_canonical_form_is_what_agents_of_older_versions_read() {
        let want = r#"{"podCIDRs":["10.244.0.0/16"],"backend":{"vni":1,"port":8472,"directRouting":"Disabled"},"masquerade":{"mode":"Enabled"},"policy":{"mode":"Enforce","onChange":"Reevaluate","denyLog":"Enabled"},"logLevel":"Info"}"#;
        assert_eq!(config().canonical_json(), want);
        assert_eq!(serde_json::from_str::<AgentConfig>(want).unwrap(), config());
    }

    #[test]
    fn a_revision_is_ten_hex_digits_and_changes_with_every_value() {
        let base = config().revision();
        assert!(base.len() == 10 && base.bytes().all(|b| b.is_ascii_hexdigit()), "{base}");
        assert_eq!(base, config().revision(), "same content, same revision");
        assert_ne!(base, AgentConfig { mtu: Some(1400), ..config() }.revision());
        assert_ne!(base, AgentConfig { log_level: LogLevel::Debug, ..config() }.revision());
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let text = config().canonical_json().replace("{\"podCIDRs\"", "{\"novelty\":1,\"podCIDRs\"");
        let error = serde_json::from_str::<AgentConfig>(&text).unwrap_err();
        assert!(error.to_string().contains("novelty"), "{error}");
    }
}
