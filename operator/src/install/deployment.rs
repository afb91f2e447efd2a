//! The operator's Deployment.

use serde_json::{Value, json};
use towpath_crds::names;

/// Two replicas on two nodes. They use the host network, because they must run before there is a pod network. The health
/// port is therefore a port of the node, and a node can run one replica.
pub(super) fn deployment() -> Value {
    let labels = json!({ names::LABEL_NAME: names::OPERATOR, names::LABEL_PART_OF: names::PART_OF });
    let selector = json!({ names::LABEL_NAME: names::OPERATOR });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": names::OPERATOR, "namespace": names::NAMESPACE, "labels": labels },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": selector },
            // Without surge: a new pod cannot be scheduled while the old pods use the port of each node.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "serviceAccountName": names::OPERATOR,
                    "priorityClassName": "system-cluster-critical",
                    "hostNetwork": true,
                    "dnsPolicy": "Default",
                    "nodeSelector": { "kubernetes.io/os": "linux" },
                    "tolerations": tolerations(),
                    "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
                        { "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": selector } },
                    ] } },
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": { "type": "RuntimeDefault" },
                    },
                    "containers": [container()],
                },
            },
        },
    })
}

/// Nodes without a pod network have these taints until the operator has rolled out the agents.
fn tolerations() -> Value {
    json!([
        { "key": "node.kubernetes.io/not-ready", "operator": "Exists" },
        { "key": "node.kubernetes.io/network-unavailable", "operator": "Exists" },
        { "key": "node.cloudprovider.kubernetes.io/uninitialized", "operator": "Exists" },
        { "key": "node-role.kubernetes.io/control-plane", "operator": "Exists" },
    ])
}

fn container() -> Value {
    let probe = |path: &str, period: i32| {
        json!({
            "httpGet": { "host": "127.0.0.1", "path": path, "port": names::OPERATOR_PORT },
            "periodSeconds": period,
            "timeoutSeconds": 3,
        })
    };
    json!({
        "name": names::OPERATOR,
        "image": names::default_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["/usr/local/bin/towpath-operator"],
        "env": [
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            // The image of the agents: change it together with `image`.
            { "name": names::ENV_IMAGE, "value": names::default_image() },
        ],
        "ports": [{ "name": "health", "containerPort": names::OPERATOR_PORT }],
        "resources": { "requests": { "cpu": "20m", "memory": "32Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "readinessProbe": probe("/readyz", 5),
        "livenessProbe": probe("/healthz", 20),
    })
}
