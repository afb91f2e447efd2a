//! The network configuration on standard input (CNI specification, "Network configuration format").

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use towpath_local::{Attachment, Paths};

use crate::{error::CniError, version::Version};

/// A network configuration, as far as the plugin uses it; other keys are allowed and ignored.
#[derive(Debug, Clone)]
pub(crate) struct NetConf {
    /// The CNI version of the configuration and of the result.
    pub(crate) version: Version,
    /// The network's name, which is also that of its address directory.
    pub(crate) name: String,
    /// The directories of the node's local state: `stateDir` and `dataDir`, for tests; a node has the defaults.
    pub(crate) paths: Paths,
    /// Copied to the result.
    pub(crate) dns: Value,
    /// The result of ADD, or of the plugin before us.
    pub(crate) prev_result: Option<Value>,
    /// GC: the attachments that stay.
    pub(crate) valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawNetConf {
    // A configuration without a version is 0.1.0.
    #[serde(default = "oldest")]
    cni_version: String,
    #[serde(default)]
    name: String,
    state_dir: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    dns: Option<Value>,
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: ValidAttachments,
}

#[derive(Debug, Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// A list, or none, which is not the same as an empty one: a runtime in Go writes `null` for an empty list.
#[derive(Debug, Default)]
enum ValidAttachments {
    #[default]
    Absent,
    List(Vec<RawAttachment>),
}

impl<'de> Deserialize<'de> for ValidAttachments {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<Vec<RawAttachment>>::deserialize(deserializer).map(|list| Self::List(list.unwrap_or_default()))
    }
}

fn oldest() -> String {
    "0.1.0".to_owned()
}

impl NetConf {
    /// The version alone, as far as it can be read: an error about the rest is reported in it.
    #[must_use]
    pub(crate) fn version_of(input: &[u8]) -> Version {
        let value: Option<Value> = serde_json::from_slice(input).ok();
        let version = value.and_then(|v| Version::parse(v.get("cniVersion")?.as_str()?));
        version.unwrap_or(Version::NEWEST)
    }

    /// # Errors
    /// If the input is not JSON, of an unknown version, or lacks something.
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        let raw: RawNetConf = serde_json::from_slice(input).map_err(CniError::Decode)?;
        let version = Version::parse(&raw.cni_version).ok_or(CniError::IncompatibleVersion(raw.cni_version))?;
        if raw.name.is_empty() {
            return Err(CniError::Config("the network has no name".to_owned()));
        }
        if !is_network_name(&raw.name) {
            let rule = "a letter or digit, then at most 200 of those and . _ -";
            return Err(CniError::Config(format!("the network's name {:?} is not {rule}", raw.name)));
        }
        let valid_attachments = match raw.valid_attachments {
            ValidAttachments::Absent => None,
            ValidAttachments::List(list) => Some(list.iter().map(attachment).collect::<Result<_, _>>()?),
        };
        let default = Paths::default();
        let state = raw.state_dir.unwrap_or_else(|| default.state().to_owned());
        let data = raw.data_dir.unwrap_or_else(|| default.data().to_owned());
        let prev_result = raw.prev_result.filter(|r| !r.is_null());
        let dns = raw.dns.filter(Value::is_object).unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        Ok(Self { version, name: raw.name, paths: Paths::new(state, data), dns, prev_result, valid_attachments })
    }
}

fn attachment(raw: &RawAttachment) -> Result<Attachment, CniError> {
    Attachment::new(&raw.container_id, &raw.ifname)
        .map_err(|error| CniError::Config(format!("cni.dev/valid-attachments: {error}")))
}

/// The specification's rule for names; with a limit, because it names a directory.
fn is_network_name(name: &str) -> bool {
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_configuration_has_the_reference_plugins_code() {
        for (text, code, why) in [
            ("", 6, "nothing"),
            ("not json", 6, "no JSON"),
            ("[]", 6, "no object"),
            ("{\"cniVersion\":1,\"name\":\"n\"}", 6, "a version that is a number"),
            ("{\"name\":\"n\"}", 1, "without a version it is 0.1.0"),
            ("{\"cniVersion\":\"2.0.0\",\"name\":\"n\"}", 1, "an unknown version"),
            ("{\"cniVersion\":\"1.0.0\"}", 7, "no name"),
            ("{\"cniVersion\":\"1.0.0\",\"name\":\"../n\"}", 7, "a name that leads out of the directory"),
            (
                "{\"cniVersion\":\"1.1.0\",\"name\":\"n\",\"cni.dev/valid-attachments\":[{\"containerID\":\"/\",\"ifname\":\"e\"}]}",
                7,
                "an invalid attachment",
            ),
        ] {
            assert_eq!(NetConf::parse(text.as_bytes()).unwrap_err().code(), code, "{why}");
        }
    }

    #[test]
    fn a_configuration_without_more_than_a_name_is_a_nodes() {
        let conf =
            NetConf::parse(b"{\"cniVersion\":\"1.0.0\",\"name\":\"k8s-pod-network\",\"type\":\"towpath\"}").unwrap();
        assert_eq!(conf.paths, Paths::default());
        assert_eq!((conf.version, conf.prev_result, conf.valid_attachments), (Version::V1_0_0, None, None));
    }

    #[test]
    fn attachments_that_are_null_are_none_at_all_and_absent_ones_are_unknown() {
        let parse = |more: &str| {
            let text = format!("{{\"cniVersion\":\"1.1.0\",\"name\":\"n\"{more}}}");
            NetConf::parse(text.as_bytes()).unwrap().valid_attachments
        };
        assert_eq!(parse(""), None);
        assert_eq!(parse(",\"cni.dev/valid-attachments\":null"), Some(vec![]));
        let one = parse(",\"cni.dev/valid-attachments\":[{\"containerID\":\"c1\",\"ifname\":\"eth0\"}]");
        assert_eq!(one, Some(vec![Attachment::new("c1", "eth0").unwrap()]));
    }
}
