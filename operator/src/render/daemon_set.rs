//! The agents' DaemonSet.

use serde_json::{Map, Value, json};
use towpath_crds::{
    names,
    network_config::{Agent, Images, PullPolicy},
};

use super::{Child, ChildKind, agent_image, child, labels};

/// What the agents do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentTask {
    /// Keep the node's network.
    Run,
    /// Remove everything of ours from the node, then idle.
    Teardown,
}

impl AgentTask {
    /// The agent's sub-command.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Teardown => "teardown",
        }
    }

    /// One node at a time while the network serves; all at once when it goes, because a bound holds.
    const fn max_unavailable(self) -> &'static str {
        match self {
            Self::Run => "1",
            Self::Teardown => "100%",
        }
    }
}

/// Seconds that a tearing-down agent runs before it counts as available: its work takes less than one, and what an
/// agent reports of itself, its NetworkNode, may not have been there yet.
const TEARDOWN_SECONDS: i32 = 2;

/// Host path, mount path, kind of the host's path, access.
type HostPath = (&'static str, &'static str, &'static str, MountAccess);

#[derive(Clone, Copy)]
enum MountAccess {
    ReadWrite,
    ReadOnly,
}

/// Every path of the host that the agent sees. `/proc/sys` of a container without `privileged` is read-only; the
/// host's `/proc/sys/net` mounted elsewhere is writable.
const HOST_PATHS: &[(&str, HostPath)] = &[
    ("cni-conf", ("/etc/cni/net.d", "/etc/cni/net.d", "DirectoryOrCreate", MountAccess::ReadWrite)),
    ("cni-bin", ("/opt/cni/bin", "/opt/cni/bin", "DirectoryOrCreate", MountAccess::ReadWrite)),
    ("run", ("/run/towpath", "/run/towpath", "DirectoryOrCreate", MountAccess::ReadWrite)),
    ("cni-state", ("/var/lib/cni", "/var/lib/cni", "DirectoryOrCreate", MountAccess::ReadOnly)),
    ("sysctl", ("/proc/sys/net", "/host/proc/sys/net", "Directory", MountAccess::ReadWrite)),
];

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
        // Cluster DNS needs the network that this pod makes.
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
    // Who tears down serves nobody: it tries until its node is clean, and its NetworkNode goes when it is.
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
    let host = HOST_PATHS.iter().map(|(name, (_, mount, _, access))| {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(name));
        fields.insert("mountPath".to_owned(), json!(mount));
        // The API drops a false `readOnly`, so that sending it would look like a difference for ever.
        if let MountAccess::ReadOnly = access {
            fields.insert("readOnly".to_owned(), json!(true));
        }
        Value::Object(fields)
    });
    std::iter::once(config).chain(host).collect()
}

fn volumes(revision: &str) -> Value {
    let config = json!({ "name": "config", "configMap": { "name": names::agent_config_map(revision) } });
    let host = HOST_PATHS
        .iter()
        .map(|(name, (path, _, kind, _))| json!({ "name": name, "hostPath": { "path": path, "type": kind } }));
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
                _ => {}
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
    fn a_teardown_changes_the_command_and_goes_everywhere_at_once() {
        let ds = rendered(&Agent::default(), &Images::default(), AgentTask::Teardown);
        let container = &ds["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"], json!(["/usr/local/bin/towpath-agent", "teardown"]));
        assert_eq!(ds["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "100%");
        assert_eq!(container["readinessProbe"], Value::Null, "it serves nothing");
    }

    #[test]
    fn another_revision_is_another_template_and_another_intent() {
        let of = |revision| daemon_set(&Agent::default(), &Images::default(), "i", revision, AgentTask::Run);
        assert_ne!(of("a").intent, of("b").intent);
        assert_eq!(of("a"), of("a"));
        assert_eq!(of("a").value["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"], "towpath-agent-a");
    }
}
