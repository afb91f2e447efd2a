//! `AgentConfig`: the content of the agent's ConfigMap. The operator resolves every value; agents never watch the
//! NetworkConfig, so that a change of configuration is a revision of the DaemonSet like a new image.

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::network_config::{Interface, LogLevel, MasqueradeSpec, PolicySpec, VxlanBackend};

/// Everything that an agent is told. Unknown fields are refused: an agent must not run half a configuration.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// The address ranges of all pods, at most one per IP family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// The VXLAN transport.
    pub backend: VxlanBackend,
    /// MTU of the overlay and of the pods, in bytes; absent: from the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
    /// How the uplink is chosen; absent: the default route's interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Masquerading.
    pub masquerade: MasqueradeSpec,
    /// Policy enforcement.
    pub policy: PolicySpec,
    /// How much to log.
    pub log_level: LogLevel,
}

impl AgentConfig {
    /// The one spelling of this configuration: fields in declaration order, no white space. Both the ConfigMap's
    /// content and the input of [`AgentConfig::revision`].
    ///
    /// # Panics
    /// Never: the type holds nothing that JSON cannot say.
    #[must_use]
    pub fn canonical_json(&self) -> String {
        serde_json::to_string(self).expect("plain data is JSON")
    }

    /// First ten hexadecimal digits of the SHA-1 of the canonical JSON. Names a revision; nothing secret hangs on it.
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
    fn an_unknown_field_is_refused() {
        let text = config().canonical_json().replace("{\"podCIDRs\"", "{\"novelty\":1,\"podCIDRs\"");
        let error = serde_json::from_str::<AgentConfig>(&text).unwrap_err();
        assert!(error.to_string().contains("novelty"), "{error}");
    }
}
