//! The install bundle as values: what `kubectl apply -f manifests/install.yaml` creates, in that order.
//!
//! Deliberately absent: a Helm chart, and objects of the agents other than their service account and RBAC. The operator
//! renders the agents, and has no right to grant rights.

use serde_json::{Value, json};
use towpath_crds::{names, schema};

mod admission;
mod deployment;
pub mod rbac;

/// Every object of the bundle, in the order in which they are applied.
#[must_use]
pub fn bundle() -> Vec<Value> {
    let crds = schema::crds().into_iter().map(|(_, crd)| crd);
    let accounts = [names::OPERATOR, names::AGENT].map(service_account);
    crds.chain([namespace()])
        .chain(accounts)
        .chain(rbac::objects())
        .chain(admission::objects())
        .chain([deployment::deployment()])
        .collect()
}

/// The namespace. Its pods use the host's network and paths, which stricter pod security levels deny.
fn namespace() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": names::NAMESPACE,
            "labels": {
                names::LABEL_PART_OF: names::PART_OF,
                "pod-security.kubernetes.io/enforce": "privileged",
            },
        },
    })
}

fn service_account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(name, Some(names::NAMESPACE)) })
}

/// Metadata with the common label.
fn metadata(name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({ "name": name, "labels": { names::LABEL_PART_OF: names::PART_OF } });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}
