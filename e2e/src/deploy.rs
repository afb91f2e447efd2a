//! Installs Towpath on a cluster as a user would: image, install bundle, NetworkConfig, and the wait for Ready.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::image::Release;
use crate::wait::wait_for;

/// Namespace of the operator and the agents.
const NAMESPACE: &str = "towpath-system";
/// Time for the operator's pods to be replaced.
const OPERATOR_BOUND: Duration = Duration::from_secs(90);
/// Time for the network to be ready.
const READY_BOUND: Duration = Duration::from_secs(180);

/// Loads the image and installs bundle and operator, without a NetworkConfig.
///
/// # Errors
/// When the API server rejects an object, or the operator does not become available.
pub fn install(cluster: &Cluster, release: &Release) -> Result<()> {
    load(cluster, release)?;
    let bundle = &release.bundle;
    let text =
        fs::read_to_string(bundle).with_context(|| format!("read {}: make generate writes it", bundle.display()))?;
    cluster.apply(&text.replace(&release.name, &release.content_name)).context("apply the install bundle")?;
    cluster.progress().step("the install bundle is applied");
    with_diagnostics(cluster, wait_operator(cluster))
}

/// Installs Towpath and applies the NetworkConfig in `config`, then waits until it is Ready on every node.
///
/// # Errors
/// When a step fails, or the network is not ready within 180 s: the message has conditions, pods and logs.
pub fn deploy(cluster: &Cluster, release: &Release, config: &Path) -> Result<()> {
    install(cluster, release)?;
    let text = fs::read_to_string(config).with_context(|| format!("read {}", config.display()))?;
    cluster.apply(&text).with_context(|| format!("apply {}", config.display()))?;
    cluster.progress().step(format!("{} is applied", config.display()));
    wait_ready(cluster, READY_BOUND)
}

/// Waits until the NetworkConfig is Ready at its own generation and every agent runs the operator's image, and prints
/// the condition Ready whenever it changes.
///
/// # Errors
/// When that does not happen within `bound`: the message has conditions, pods and logs.
pub fn wait_ready(cluster: &Cluster, bound: Duration) -> Result<()> {
    let mut printed = String::new();
    let waited = wait_for("NetworkConfig Ready", bound, || {
        let config = cluster.get(&["networkconfig", "default"])?.unwrap_or_default();
        let (state, ready) = ready_condition(&config);
        if state != printed {
            cluster.progress().step(format!("  {state}"));
            printed = state;
        }
        Ok((ready && agents_rolled_out(cluster)?).then_some(()))
    });
    with_diagnostics(cluster, waited)
}

fn load(cluster: &Cluster, release: &Release) -> Result<()> {
    for node in cluster.nodes() {
        let present = node.exec(&["ctr", "-n", "k8s.io", "images", "ls", "-q"])?;
        if !present.lines().any(|name| name == release.content_name) {
            let names = cluster.load(&release.archive)?;
            cluster.progress().step(format!("loaded {} into {} nodes", names.join(", "), cluster.nodes().len()));
            return Ok(());
        }
    }
    cluster.progress().step(format!("every node has {}", release.content_name));
    Ok(())
}

fn wait_operator(cluster: &Cluster) -> Result<()> {
    wait_for("rollout of the operator", OPERATOR_BOUND, || {
        let operator = operator(cluster)?;
        let (status, wanted) = (&operator["status"], operator["spec"]["replicas"].as_u64().unwrap_or_default());
        let count = |field: &str| status[field].as_u64().unwrap_or_default();
        let observed = status["observedGeneration"] == operator["metadata"]["generation"];
        let replaced = count("replicas") == wanted && count("updatedReplicas") == wanted;
        // Two replicas use the same port of their node: on a cluster of one node the second stays Pending.
        let available = count("availableReplicas") >= wanted.min(cluster.nodes().len() as u64);
        Ok((observed && replaced && available && wanted > 0).then_some(()))
    })?;
    cluster.progress().step("the operator is available");
    Ok(())
}

fn operator(cluster: &Cluster) -> Result<Value> {
    Ok(cluster.get(&["deployment", "towpath-operator", "-n", NAMESPACE])?.unwrap_or_default())
}

fn agents_rolled_out(cluster: &Cluster) -> Result<bool> {
    let Some(agents) = cluster.get(&["daemonset", "towpath-agent", "-n", NAMESPACE])? else { return Ok(false) };
    // After an upgrade of the operator the DaemonSet is the old one until the new leader has rendered it.
    Ok(image_of(&agents) == image_of(&operator(cluster)?) && rolled_out(&agents))
}

/// The image of a workload's first container.
fn image_of(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]["containers"][0]["image"]
}

/// Whether every pod of a DaemonSet is available at the DaemonSet's own generation.
fn rolled_out(agents: &Value) -> bool {
    let status = &agents["status"];
    let wanted = &status["desiredNumberScheduled"];
    status["observedGeneration"] == agents["metadata"]["generation"]
        && status["updatedNumberScheduled"] == *wanted
        && status["numberAvailable"] == *wanted
}

/// The condition Ready of a NetworkConfig as a line of text, and whether it is True at the current generation.
fn ready_condition(config: &Value) -> (String, bool) {
    let conditions = config["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let Some(ready) = conditions.iter().find(|condition| condition["type"] == "Ready") else {
        return ("the operator has not reported a status yet".into(), false);
    };
    let text = |field: &str| ready[field].as_str().unwrap_or_default();
    let current = ready["observedGeneration"] == config["metadata"]["generation"];
    let line = format!("Ready={} {}: {}", text("status"), text("reason"), text("message"));
    (line, current && text("status") == "True")
}

/// Adds conditions, pods and logs to a failure.
fn with_diagnostics<T>(cluster: &Cluster, result: Result<T>) -> Result<T> {
    result.or_else(|error| {
        let commands: [&[&str]; 5] = [
            &[
                "get",
                "networkconfig",
                "default",
                "-o",
                "jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}",
            ],
            &["get", "networknode,nodes"],
            &["get", "pods", "-n", NAMESPACE, "-o", "wide"],
            &["logs", "-n", NAMESPACE, "deployment/towpath-operator", "--tail=15"],
            &["logs", "-n", NAMESPACE, "daemonset/towpath-agent", "--tail=15"],
        ];
        let mut report = String::new();
        for words in commands {
            let output = cluster.kubectl_raw(words).map(|out| [out.stdout, out.stderr].concat()).unwrap_or_default();
            report += &format!("--- kubectl {}\n{}\n", words.join(" "), String::from_utf8_lossy(&output).trim_end());
        }
        bail!("{error:#}\n{report}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_condition_of_the_current_generation_counts_as_ready() {
        let config = |generation: i64, status: &str| {
            json!({"metadata": {"generation": 2}, "status": {"conditions": [
                {"type": "Ready", "status": status, "reason": "R", "message": "m", "observedGeneration": generation}]}})
        };
        for (object, ready, why) in [
            (config(2, "True"), true, "ready at this generation"),
            (config(1, "True"), false, "ready before the change"),
            (config(2, "False"), false, "not ready"),
            (json!({"metadata": {"generation": 1}}), false, "no status yet"),
        ] {
            assert_eq!(ready_condition(&object).1, ready, "{why}");
        }
    }
    #[test]
    fn agents_are_rolled_out_when_every_pod_is_available_at_the_current_generation() {
        let agents = |observed: i64, updated: i64, available: i64| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": observed,
                "desiredNumberScheduled": 3, "updatedNumberScheduled": updated, "numberAvailable": available}})
        };
        for (object, done, why) in [
            (agents(2, 3, 3), true, "all replaced"),
            (agents(1, 3, 3), false, "the counts are of the generation before"),
            (agents(2, 2, 3), false, "one runs the old revision"),
            (agents(2, 3, 2), false, "one is not available"),
        ] {
            assert_eq!(rolled_out(&object), done, "{why}");
        }
    }
}
