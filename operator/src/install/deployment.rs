//! The operator's own Deployment.

use serde_json::{Value, json};
use towpath_crds::names;

/// Two replicas on two nodes. They use the host's network, because they run before there is another; the health port is
/// therefore the node's, and a node holds one replica.
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
            // A new pod finds no node while the old ones hold the port of each.
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

/// A node without a pod network is not ready and says so in taints; the operator is what ends that.
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
            // The agents run the same image: change both together.
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
