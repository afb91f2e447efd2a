//! From configuration to objects. Pure: the same input gives the same bytes.
//!
//! Objects are built as JSON values, never from half-filled typed structs: a default-built struct would send empty
//! fields in server-side apply and claim them.

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use towpath_crds::names;

mod config_map;
mod daemon_set;
mod image;

pub use config_map::{agent_config, config_map};
pub use daemon_set::{AgentTask, daemon_set};
pub use image::agent_image;

/// Annotation on a child: hash of the wanted child. If a child differs from what is wanted and its annotation has the
/// wanted hash, somebody else changed the child; if the annotation differs, the operator wants something new.
pub const ANNOTATION_INTENT: &str = "towpath.io/intent";

/// The kinds that the operator renders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    /// The configuration of the agents, immutable.
    ConfigMap,
    /// The agents' DaemonSet.
    DaemonSet,
}

impl ChildKind {
    /// The kind's name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::DaemonSet => "DaemonSet",
        }
    }
}

/// A wanted object, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// Kind of the object.
    pub kind: ChildKind,
    /// Name of the object, in [`names::NAMESPACE`].
    pub name: String,
    /// The object to apply.
    pub value: Value,
    /// The value of [`ANNOTATION_INTENT`].
    pub intent: String,
}

/// Labels of every object that the operator renders.
fn labels() -> Value {
    json!({
        names::LABEL_NAME: names::AGENT,
        names::LABEL_PART_OF: names::PART_OF,
        names::LABEL_MANAGED_BY: names::OPERATOR,
    })
}

/// Adds the intent annotation to an object.
fn child(kind: ChildKind, mut value: Value) -> Child {
    let digest = Sha1::digest(value.to_string().as_bytes());
    let intent: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    value["metadata"]["annotations"] = json!({ ANNOTATION_INTENT: intent });
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Child { kind, name, value, intent }
}
