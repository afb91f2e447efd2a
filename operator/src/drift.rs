//! Compares the wanted child with the child in the cluster. Pure.
//!
//! The API server fills in defaults, so `have` always has more fields than `want`. A child is as wanted if every wanted
//! field has the wanted value and nobody else has added fields to the spec. `managedFields` name the manager of every
//! field; server-side apply alone would keep what others add, such as a node selector that matches no node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value};

/// Fields that others may add to: `kubectl rollout restart` writes an annotation of the template.
const UNRESTRICTED: &[&[&str]] = &[&["spec", "template", "metadata", "annotations"]];
/// Maps that are owned as a whole (`x-kubernetes-map-type: atomic`): one more entry is another value.
const ATOMIC: &[&str] = &["nodeSelector", "matchLabels", "fieldRef"];
/// Maps of quantities.
const QUANTITIES: &[&str] = &["requests", "limits"];

/// Paths of wanted fields that do not have the wanted value, in order.
#[must_use]
pub fn differences(want: &Value, have: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differ(want, Some(have), String::new(), &mut found);
    found
}

fn differ(want: &Value, have: Option<&Value>, path: String, found: &mut Vec<String>) {
    match (want, have) {
        (Value::Object(want), Some(Value::Object(have))) => {
            for (key, want) in want {
                let path = format!("{path}.{key}");
                match have.get(key) {
                    Some(have) if ATOMIC.contains(&key.as_str()) && want == have => {}
                    Some(_) if ATOMIC.contains(&key.as_str()) => found.push(path),
                    Some(have) if QUANTITIES.contains(&key.as_str()) && quantities_equal(want, have) => {}
                    Some(_) if QUANTITIES.contains(&key.as_str()) => found.push(path),
                    have => differ(want, have, path, found),
                }
            }
        }
        (Value::Array(want), Some(Value::Array(have))) if want.len() == have.len() => {
            for (index, (want, have)) in want.iter().zip(have).enumerate() {
                differ(want, Some(have), format!("{path}[{index}]"), found);
            }
        }
        (want, have) if have == Some(want) => {}
        _ => found.push(path),
    }
}

/// The API server rewrites quantities (0.5 becomes 500m), so they are compared by value.
fn quantities_equal(want: &Value, have: &Value) -> bool {
    let (Some(want), Some(have)) = (want.as_object(), have.as_object()) else { return false };
    want.len() == have.len()
        && want.iter().all(|(key, want)| match (want.as_str(), have.get(key).and_then(Value::as_str)) {
            (Some(want), Some(have)) => want == have || quantity(want).is_some_and(|w| Some(w) == quantity(have)),
            _ => false,
        })
}

/// The value of a Kubernetes quantity in billionths, rounded.
fn quantity(text: &str) -> Option<u128> {
    const SCALES: [(&str, f64); 16] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("", 1.0),
    ];
    let (number, scale) = SCALES.iter().find_map(|(suffix, scale)| {
        let number = text.strip_suffix(suffix)?.parse::<f64>().ok()?;
        Some((number, scale))
    })?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "quantities are positive; a cast saturates"
    )]
    let nanos = (number * scale * 1e9).round() as u128;
    Some(nanos)
}

/// JSON pointers (RFC 6901) of fields below `spec` that somebody else owns and that are not wanted. Higher list positions
/// come first, so that the fields can be removed one by one.
#[must_use]
pub fn unmanaged_fields(want: &Value, have: &Value, owners: &[ManagedFieldsEntry], manager: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in owners {
        let ours = entry.manager.as_deref() == Some(manager) && entry.operation.as_deref() == Some("Apply");
        if ours || entry.subresource.as_deref() == Some("status") {
            continue;
        }
        let Some(spec) = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:spec")) else { continue };
        let cursor = Cursor { want: want.get("spec"), have: have.get("spec"), path: vec!["spec".to_owned()] };
        collect(spec, &cursor, &mut found);
    }
    found.sort_by(|a, b| b.cmp(a));
    found.dedup();
    found.into_iter().map(|path| pointer(&path)).collect()
}

struct Cursor<'a> {
    want: Option<&'a Value>,
    have: Option<&'a Value>,
    path: Vec<String>,
}

/// Walks the owned fields; collects the topmost that exist and are not wanted.
fn collect(owned: &Value, cursor: &Cursor<'_>, found: &mut Vec<Vec<String>>) {
    if cursor.have.is_none()
        || UNRESTRICTED.iter().any(|path| cursor.path.iter().map(String::as_str).eq(path.iter().copied()))
    {
        return;
    }
    if cursor.want.is_none() {
        found.push(cursor.path.clone());
        return;
    }
    for (key, inner) in owned.as_object().into_iter().flatten() {
        let next = if let Some(field) = key.strip_prefix("f:") {
            Some((child(cursor.want, field), child(cursor.have, field), field.to_owned()))
        } else if let Some(keys) = key.strip_prefix("k:") {
            item(cursor, keys)
        } else {
            None
        };
        if let Some((want, have, segment)) = next {
            let mut path = cursor.path.clone();
            path.push(segment);
            collect(inner, &Cursor { want, have, path }, found);
        }
    }
}

fn child<'a>(value: Option<&'a Value>, field: &str) -> Option<&'a Value> {
    value.and_then(|v| v.get(field))
}

type ListItem<'a> = (Option<&'a Value>, Option<&'a Value>, String);

/// The list item that has these keys, in both; the position is that in `have`.
fn item<'a>(cursor: &Cursor<'a>, keys: &str) -> Option<ListItem<'a>> {
    let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
    let fits = |value: &&Value| keys.iter().all(|(key, want)| value.get(key) == Some(want));
    let have = cursor.have?.as_array()?;
    let position = have.iter().position(|v| fits(&v))?;
    let want = cursor.want.and_then(Value::as_array).and_then(|items| items.iter().find(fits));
    Some((want, have.get(position), format!("{position:06}")))
}

/// Removes the zeros with which list positions were padded for sorting.
fn pointer(path: &[String]) -> String {
    let mut text = String::new();
    for segment in path {
        text.push('/');
        match segment.parse::<usize>() {
            Ok(position) if segment.len() == 6 => text.push_str(&position.to_string()),
            _ => text.push_str(&segment.replace('~', "~0").replace('/', "~1")),
        }
    }
    text
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;
