//! Parts of the schema that derive macros cannot express, and post-processing of the generated CRDs.
//!
//! Every CEL rule applies to a value of bounded length, because the API server rejects rules whose cost it cannot bound.
//! `isCIDR` and `cidr` need Kubernetes 1.31 or later.

use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::{NetworkConfig, NetworkNode};

/// Longest CIDR as text: an IPv6 address of 39 characters, a slash and three digits.
const CIDR_MAX_LENGTH: usize = 43;

/// The CRDs of this crate as values, each with its file name, in the order in which they are applied.
///
/// # Panics
/// Never for these types: the schemas are static, and the tests generate them.
#[must_use]
pub fn crds() -> Vec<(&'static str, Value)> {
    [("networkconfigs.yaml", NetworkConfig::crd()), ("networknodes.yaml", NetworkNode::crd())]
        .into_iter()
        .map(|(file, crd)| (file, post_process(serde_json::to_value(crd).expect("a CRD is JSON"))))
        .collect()
}

/// Post-processes a generated CRD: no `nullable`, because unset fields are absent and never null; bounds as integers; and
/// for kinds with a spec a status whose `observedGeneration` defaults to -1, so that a client that waits for a condition
/// does not take an unprocessed object for a finished one.
fn post_process(mut crd: Value) -> Value {
    normalize(&mut crd);
    if let Some(versions) = crd.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            let Some(fields) = version.pointer_mut("/schema/openAPIV3Schema/properties") else { continue };
            if fields.get("spec").is_some() {
                fields["status"]["default"] = json!({"observedGeneration": -1});
            }
        }
    }
    crd
}

fn normalize(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.values_mut().for_each(normalize);
        }
        Value::Array(items) => items.iter_mut().for_each(normalize),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15) {
                #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
                let whole = whole as i64;
                *value = json!(whole);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// A CIDR without host bits; `field` completes the messages.
fn cidr(field: &str) -> Value {
    json!({
        "type": "string",
        "minLength": 4,
        "maxLength": CIDR_MAX_LENGTH,
        "x-kubernetes-validations": [
            rule("isCIDR(self)", &format!("{field} must be CIDRs, such as 10.244.0.0/16 or fd00:10:244::/56")),
            rule(
                "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                &format!("{field} must not have host bits: set the bits after the prefix to zero, as in 10.244.0.0/16"),
            ),
        ],
    })
}

fn list(items: &Value, max: usize) -> Map<String, Value> {
    let Value::Object(list) =
        json!({"type": "array", "maxItems": max, "items": items, "x-kubernetes-list-type": "atomic"})
    else {
        return Map::new();
    };
    list
}

pub(crate) fn pod_cidrs(_: &mut SchemaGenerator) -> Schema {
    let mut schema = list(&cidr("podCIDRs"), 2);
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([rule(
            "self.size() < 2 || !self.all(c, isCIDR(c)) || cidr(self[0]).ip().family() != cidr(self[1]).ip().family()",
            "podCIDRs holds at most one range per IP family: keep one IPv4 and one IPv6 CIDR"
        )]),
    );
    schema.into()
}

pub(crate) fn non_masquerade_cidrs(_: &mut SchemaGenerator) -> Schema {
    list(&cidr("nonMasqueradeCIDRs"), 64).into()
}

pub(crate) fn interface_cidrs(_: &mut SchemaGenerator) -> Schema {
    let mut schema = list(&cidr("interface.cidrs"), 8);
    schema.insert("minItems".to_owned(), json!(1));
    schema.into()
}

/// Interface names that the kernel accepts: 1 to 15 bytes, no slash, colon or white space, not `.` or `..`
/// (`dev_valid_name` in net/core/dev.c).
pub(crate) fn interface_names(_: &mut SchemaGenerator) -> Schema {
    let name = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 15,
        "x-kubernetes-validations": [rule(
            r"self.matches('^[^\\s/:]+$') && self != '.' && self != '..'",
            "an interface name has 1 to 15 characters, no slash, colon or white space: write it as `ip link` shows it, without the part after @, such as eth0",
        )],
    });
    let mut schema = list(&name, 8);
    schema.insert("minItems".to_owned(), json!(1));
    schema.into()
}

pub(crate) fn pull_secrets(_: &mut SchemaGenerator) -> Schema {
    let name = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    });
    list(&name, 8).into()
}

pub(crate) fn registry(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "x-kubernetes-validations": [rule(
            r"self.matches('^[a-zA-Z0-9][a-zA-Z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$')",
            "images.registry is a host with optional port and path, without scheme, image name or trailing slash, such as registry.example.org:5000/mirror",
        )],
    })
}

pub(crate) fn digest(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 71,
        "x-kubernetes-validations": [rule(
            "self.matches('^sha256:[0-9a-f]{64}$')",
            "images.digest is sha256: and 64 hexadecimal digits, as `crane digest` prints it",
        )],
    })
}

pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 20,
        "pattern": r"^[0-9]+(\.[0-9]+)?([munkMGTPE]|[KMGTPE]i|[eE]-?[0-9]+)?$",
    })
}

/// Conditions with the bounds of `metav1.Condition`, as a map by type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    let condition = json!({
        "type": "object",
        "description": "A condition of the object.",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "type": {"type": "string", "description": "Type of the condition.", "maxLength": 316,
                "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
            "status": {"type": "string", "description": "Status of the condition: True, False or Unknown.", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0,
                "description": "The metadata.generation that this condition describes."},
            "lastTransitionTime": {"type": "string", "format": "date-time",
                "description": "When the status last changed."},
            "reason": {"type": "string", "description": "The reason for the status as one word, for programs.", "minLength": 1, "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
            "message": {"type": "string", "description": "The reason for the status and what to do, for people.", "maxLength": 32768},
        },
    });
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": condition,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
