//! Installing Towpath on a cluster as a user would: image, install bundle, NetworkConfig, and the wait for Ready.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::image::{self, Release};
use crate::wait::wait_for;

/// Namespace of the operator and the agents.
const NAMESPACE: &str = "towpath-system";
/// The install bundle, below the checkout's top folder.
const BUNDLE: &str = "manifests/install.yaml";
/// Time for the operator's pods to be replaced.
const OPERATOR_BOUND: Duration = Duration::from_secs(90);
/// Time for the network to be ready.
const READY_BOUND: Duration = Duration::from_secs(180);

/// Loads the image and installs bundle and operator, without a NetworkConfig.
///
/// # Errors
/// When the API server refuses an object, or the operator does not become available.
pub fn install(cluster: &Cluster, release: &Release) -> Result<()> {
    load(cluster, release)?;
    let bundle = cluster.site().root().join(BUNDLE);
    let text =
        fs::read_to_string(&bundle).with_context(|| format!("read {}: make generate writes it", bundle.display()))?;
    // Under the content's own name every change of the image is a real rollout.
    cluster.apply(&text.replace(image::NAME, &release.content_name)).context("apply the install bundle")?;
    cluster.progress().step("the install bundle is applied");
    explained(cluster, wait_operator(cluster))
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

/// Waits until the NetworkConfig is Ready at its own generation and every agent runs what its DaemonSet says, telling
/// how things stand whenever that changes.
///
/// # Errors
/// When that does not happen within `bound`: the message has conditions, pods and logs.
pub fn wait_ready(cluster: &Cluster, bound: Duration) -> Result<()> {
    let mut told = String::new();
    let waited = wait_for("NetworkConfig Ready", bound, || {
        let config = cluster.get(&["networkconfig", "default"])?.unwrap_or_default();
        let (state, ready) = standing(&config);
        if state != told {
            cluster.progress().step(format!("  {state}"));
            told = state;
        }
        Ok((ready && agents_rolled_out(cluster)?).then_some(()))
    });
    explained(cluster, waited)
}

fn load(cluster: &Cluster, release: &Release) -> Result<()> {
    for node in cluster.nodes() {
        let there = node.exec(&["ctr", "-n", "k8s.io", "images", "ls", "-q"])?;
        if !there.lines().any(|name| name == release.content_name) {
            let names = cluster.load(&release.archive)?;
            cluster.progress().step(format!("loaded {} into {} nodes", names.join(", "), cluster.nodes().len()));
            return Ok(());
        }
    }
    cluster.progress().step("the nodes have the image already");
    Ok(())
}

fn wait_operator(cluster: &Cluster) -> Result<()> {
    wait_for("a rolled out operator", OPERATOR_BOUND, || {
        let operator = cluster.get(&["deployment", "towpath-operator", "-n", NAMESPACE])?.unwrap_or_default();
        let (status, wanted) = (&operator["status"], operator["spec"]["replicas"].as_u64().unwrap_or_default());
        let count = |field: &str| status[field].as_u64().unwrap_or_default();
        let observed = status["observedGeneration"] == operator["metadata"]["generation"];
        let replaced = count("replicas") == wanted && count("updatedReplicas") == wanted;
        // Two replicas use the same port of their node, so on a cluster of one node the second waits for another.
        let available = count("availableReplicas") >= wanted.min(cluster.nodes().len() as u64);
        Ok((observed && replaced && available && wanted > 0).then_some(()))
    })?;
    cluster.progress().step("the operator is available");
    Ok(())
}

fn agents_rolled_out(cluster: &Cluster) -> Result<bool> {
    let Some(agents) = cluster.get(&["daemonset", "towpath-agent", "-n", NAMESPACE])? else { return Ok(false) };
    let status = &agents["status"];
    let wanted = &status["desiredNumberScheduled"];
    Ok(status["observedGeneration"] == agents["metadata"]["generation"]
        && status["updatedNumberScheduled"] == *wanted
        && status["numberAvailable"] == *wanted)
}

/// How a NetworkConfig stands in words, and whether it is Ready at its own generation.
fn standing(config: &Value) -> (String, bool) {
    let conditions = config["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let Some(ready) = conditions.iter().find(|condition| condition["type"] == "Ready") else {
        return ("waiting for the operator's first look".into(), false);
    };
    let text = |field: &str| ready[field].as_str().unwrap_or_default();
    let current = ready["observedGeneration"] == config["metadata"]["generation"];
    let words = format!("Ready={} {}: {}", text("status"), text("reason"), text("message"));
    (words, current && text("status") == "True")
}

/// Adds to a failure what a person would look at next.
fn explained<T>(cluster: &Cluster, result: Result<T>) -> Result<T> {
    result.or_else(|error| {
        let looks: [&[&str]; 5] = [
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
        for words in looks {
            let said = cluster.kubectl_raw(words).map(|out| [out.stdout, out.stderr].concat()).unwrap_or_default();
            report += &format!("--- kubectl {}\n{}\n", words.join(" "), String::from_utf8_lossy(&said).trim_end());
        }
        bail!("{error:#}\n{report}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_condition_of_the_present_generation_counts_as_ready() {
        let config = |generation: i64, status: &str| {
            json!({"metadata": {"generation": 2}, "status": {"conditions": [
                {"type": "Ready", "status": status, "reason": "R", "message": "m", "observedGeneration": generation}]}})
        };
        for (object, ready, why) in [
            (config(2, "True"), true, "ready now"),
            (config(1, "True"), false, "that was before the change"),
            (config(2, "False"), false, "not ready"),
            (json!({"metadata": {"generation": 1}}), false, "nobody has looked"),
        ] {
            assert_eq!(standing(&object).1, ready, "{why}");
        }
    }
}
