//! The agents' DaemonSet.

use serde_json::{Map, Value, json};
use towpath_crds::{
    names,
    network_config::{Agent, Images, PullPolicy},
};

use super::{Child, ChildKind, agent_image, child, labels};

/// The agents' sub-command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentTask {
    /// Program the node's network.
    Run,
    /// Remove Towpath from the node, then idle.
    Teardown,
}

impl AgentTask {
    /// The argument of the agent's command.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Teardown => "teardown",
        }
    }

    /// One node at a time during a rollout; all nodes at once during a teardown, which is bounded in time.
    const fn max_unavailable(self) -> &'static str {
        match self {
            Self::Run => "1",
            Self::Teardown => "100%",
        }
    }
}

/// `minReadySeconds` during a teardown: an agent cleans its node in less than a second. A node that had no NetworkNode yet
/// counts as clean once its agent is available.
const TEARDOWN_SECONDS: i32 = 2;

/// A host path that is mounted into the agent's container.
struct HostMount {
    volume: &'static str,
    host_path: &'static str,
    mount_path: &'static str,
    /// `type` of the hostPath volume.
    type_: &'static str,
    access: MountAccess,
}

#[derive(Clone, Copy)]
enum MountAccess {
    ReadWrite,
    ReadOnly,
}

/// Every host path that is mounted. `/proc/sys` is read-only in a container that is not privileged; the host's
/// `/proc/sys/net` is writable when mounted at another path.
const HOST_MOUNTS: &[HostMount] = &[
    host_mount("cni-conf", "/etc/cni/net.d", "/etc/cni/net.d", "DirectoryOrCreate"),
    host_mount("cni-bin", "/opt/cni/bin", "/opt/cni/bin", "DirectoryOrCreate"),
    host_mount("run", "/run/towpath", "/run/towpath", "DirectoryOrCreate"),
    HostMount {
        access: MountAccess::ReadOnly,
        ..host_mount("cni-state", "/var/lib/cni", "/var/lib/cni", "DirectoryOrCreate")
    },
    host_mount("sysctl", "/proc/sys/net", "/host/proc/sys/net", "Directory"),
];

const fn host_mount(
    volume: &'static str,
    host_path: &'static str,
    mount_path: &'static str,
    type_: &'static str,
) -> HostMount {
    HostMount { volume, host_path, mount_path, type_, access: MountAccess::ReadWrite }
}

/// The DaemonSet of one revision of the configuration. `own_image` is the operator's image.
#[must_use]
pub fn daemon_set(agent: &Agent, images: &Images, own_image: &str, revision: &str, task: AgentTask) -> Child {
    let image = agent_image(own_image, images);
    let selector = json!({ names::LABEL_NAME: names::AGENT });
    let mut value = json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": { "name": names::AGENT, "namespace": names::NAMESPACE, "labels": labels() },
            "spec": {
                "selector": { "matchLabels": selector },
                "updateStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": { "maxUnavailable": int_or_percent(task.max_unavailable()), "maxSurge": 0 },
                },
                "template": {
                    "metadata": { "labels": labels(), "annotations": { names::ANNOTATION_REVISION: revision } },
                    "spec": pod_spec(agent, images, &image, revision, task),
                },
            },
    });
    if task == AgentTask::Teardown {
        value["spec"]["minReadySeconds"] = json!(TEARDOWN_SECONDS);
    }
    child(ChildKind::DaemonSet, value)
}

fn int_or_percent(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number))
}

fn pod_spec(agent: &Agent, images: &Images, image: &str, revision: &str, task: AgentTask) -> Value {
    let mut spec = json!({
        "serviceAccountName": names::AGENT,
        "priorityClassName": "system-node-critical",
        "hostNetwork": true,
        // Cluster DNS needs the network that this pod provides.
        "dnsPolicy": "Default",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "terminationGracePeriodSeconds": 10,
        "tolerations": tolerations(agent),
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [container(agent, images, image, task)],
        "volumes": volumes(revision),
    });
    if !images.pull_secrets.is_empty() {
        spec["imagePullSecrets"] = images.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    }
    spec
}

fn tolerations(agent: &Agent) -> Value {
    if agent.tolerations.is_empty() { json!([{ "operator": "Exists" }]) } else { json!(agent.tolerations) }
}

fn container(agent: &Agent, images: &Images, image: &str, task: AgentTask) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let mut container = json!({
        "name": names::AGENT,
        "image": image,
        "imagePullPolicy": pull_policy(images.pull_policy),
        "command": ["/usr/local/bin/towpath-agent", task.as_str()],
        "env": [
            field("NODE_NAME", "spec.nodeName"),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
        ],
        "ports": [{ "name": "health", "containerPort": names::AGENT_PORT, "hostPort": names::AGENT_PORT, "protocol": "TCP" }],
        "resources": resources(agent),
        "securityContext": {
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsUser": 0,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
        },
        "volumeMounts": mounts(),
    });
    // No probes during a teardown: the agent retries until its node is clean, then deletes its NetworkNode.
    if task == AgentTask::Run {
        container["readinessProbe"] = probe("/readyz", 5, 3);
        container["livenessProbe"] = probe("/healthz", 20, 6);
    }
    container
}

const fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Value {
    json!({
        "httpGet": { "host": "127.0.0.1", "path": path, "port": names::AGENT_PORT, "scheme": "HTTP" },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    })
}

fn resources(agent: &Agent) -> Value {
    match &agent.resources {
        Some(resources) => json!(resources),
        None => json!({ "requests": { "cpu": "20m", "memory": "32Mi" } }),
    }
}

fn mounts() -> Value {
    let config = json!({ "name": "config", "mountPath": names::AGENT_CONFIG_DIR, "readOnly": true });
    let host = HOST_MOUNTS.iter().map(|mount| {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(mount.volume));
        fields.insert("mountPath".to_owned(), json!(mount.mount_path));
        match mount.access {
            MountAccess::ReadOnly => _ = fields.insert("readOnly".to_owned(), json!(true)),
            // The API server drops `readOnly: false`, so sending it would always be a difference.
            MountAccess::ReadWrite => {}
        }
        Value::Object(fields)
    });
    std::iter::once(config).chain(host).collect()
}

fn volumes(revision: &str) -> Value {
    let config = json!({ "name": "config", "configMap": { "name": names::agent_config_map(revision) } });
    let host = HOST_MOUNTS
        .iter()
        .map(|mount| json!({ "name": mount.volume, "hostPath": { "path": mount.host_path, "type": mount.type_ } }));
    std::iter::once(config).chain(host).collect()
}

#[cfg(test)]
mod tests {
    use towpath_crds::network_config::{Amounts, Resources};

    use super::*;

    fn rendered(agent: &Agent, images: &Images, task: AgentTask) -> Value {
        daemon_set(agent, images, "towpath.local/towpath:0.1.0", "0123456789", task).value
    }

    #[test]
    fn the_agent_has_two_capabilities_and_no_privilege() {
        let ds = rendered(&Agent::default(), &Images::default(), AgentTask::Run);
        let context = &ds["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}));
        assert_eq!(context["privileged"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
    }

    #[test]
    fn nothing_that_is_sent_is_empty_or_null() {
        fn walk(value: &Value, path: &str) {
            match value {
                Value::Null => panic!("{path} is null"),
                Value::Object(fields) => {
                    assert!(!fields.is_empty(), "{path} is empty");
                    fields.iter().for_each(|(key, value)| walk(value, &format!("{path}.{key}")));
                }
                Value::Array(items) => {
                    assert!(!items.is_empty(), "{path} is empty");
                    items.iter().for_each(|value| walk(value, path));
                }
                Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let amounts = Amounts {
            cpu: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".to_owned())),
            memory: None,
        };
        let agent = Agent { resources: Some(Resources { requests: None, limits: Some(amounts) }), ..Agent::default() };
        for agent in [agent, Agent::default()] {
            walk(&rendered(&agent, &Images::default(), AgentTask::Run), "");
        }
    }

    #[test]
    fn a_teardown_changes_the_command_and_runs_on_all_nodes_at_once() {
        let ds = rendered(&Agent::default(), &Images::default(), AgentTask::Teardown);
        let container = &ds["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"], json!(["/usr/local/bin/towpath-agent", "teardown"]));
        assert_eq!(ds["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "100%");
        assert_eq!(container["readinessProbe"], Value::Null, "a probe would fail");
    }

    #[test]
    fn another_revision_is_another_template_and_another_intent() {
        let of = |revision| daemon_set(&Agent::default(), &Images::default(), "i", revision, AgentTask::Run);
        assert_ne!(of("a").intent, of("b").intent);
        assert_eq!(of("a"), of("a"));
        assert_eq!(of("a").value["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"], "towpath-agent-a");
    }
}
