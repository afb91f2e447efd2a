//! Schema pieces that derive macros cannot express, and the last touches on the generated CRDs.
//!
//! CEL rules stand beside bounds on length and number, because the API server refuses rules whose worst case it cannot
//! bound. `isCIDR` and `cidr` are in every API server since Kubernetes 1.31.

use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::{NetworkConfig, NetworkNode};

/// Longest textual CIDR: an IPv6 address of 39 characters, a slash and three digits.
const CIDR_MAX_LENGTH: usize = 43;

/// The CRDs of this crate as values, each with its file name, in the order in which they are applied.
///
/// # Panics
/// Never for these types: the schemas are static, and the tests generate them.
#[must_use]
pub fn crds() -> Vec<(&'static str, Value)> {
    [("networkconfigs.yaml", NetworkConfig::crd()), ("networknodes.yaml", NetworkNode::crd())]
        .into_iter()
        .map(|(file, crd)| (file, finish(serde_json::to_value(crd).expect("a CRD is JSON"))))
        .collect()
}

/// What the derive macros leave to be done: no `nullable` (unset fields are absent, never null), whole bounds without a
/// fraction, and for kinds with a spec a status whose `observedGeneration` is -1 until the operator has looked, so that nobody who waits
/// takes an unseen object for a finished one.
fn finish(mut crd: Value) -> Value {
    tidy(&mut crd);
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

fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
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

/// One CIDR in network form; `field` completes the message.
fn cidr(field: &str) -> Value {
    json!({
        "type": "string",
        "minLength": 4,
        "maxLength": CIDR_MAX_LENGTH,
        "x-kubernetes-validations": [
            rule("isCIDR(self)", &format!("{field} must be CIDRs, like 10.244.0.0/16 or fd00:10:244::/56")),
            rule(
                "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                &format!("{field} must be written as networks: set the bits after the prefix to zero (10.244.0.0/16, not 10.244.1.7/16)"),
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
            "podCIDRs holds at most one range per IP family: keep one IPv4 and one IPv6 range"
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

/// Interface names as the kernel takes them: 1 to 15 bytes, no slash, colon or white space, not `.` or `..`
/// (`dev_valid_name` in net/core/dev.c).
pub(crate) fn interface_names(_: &mut SchemaGenerator) -> Schema {
    let name = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 15,
        "x-kubernetes-validations": [rule(
            r"self.matches('^[^\\s/:]+$') && self != '.' && self != '..'",
            "an interface name has 1 to 15 characters without slash, colon or white space: write it as `ip link` shows it (eth0), without the part after @",
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
            "images.registry is a host with an optional port and path, without scheme, image name or trailing slash: registry.example.org:5000/mirror",
        )],
    })
}

pub(crate) fn digest(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 71,
        "x-kubernetes-validations": [rule(
            "self.matches('^sha256:[0-9a-f]{64}$')",
            "images.digest is sha256: and 64 hexadecimal digits, as `docker image inspect` or `crane digest` print it",
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

/// Conditions as `metav1.Condition` bounds them, a map by type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    let condition = json!({
        "type": "object",
        "description": "One aspect of the object's state.",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "type": {"type": "string", "description": "The aspect.", "maxLength": 316,
                "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
            "status": {"type": "string", "description": "Whether it is so.", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0,
                "description": "The metadata.generation that this condition speaks of."},
            "lastTransitionTime": {"type": "string", "format": "date-time",
                "description": "When the status last changed from one value to another."},
            "reason": {"type": "string", "description": "Why, as one word for programs.", "minLength": 1, "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
            "message": {"type": "string", "description": "Why, and what to do, for people.", "maxLength": 32768},
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
