//! Status of Towpath's objects.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use towpath_e2e::cluster::Cluster;
use towpath_e2e::wait::wait_for;

/// Namespace of the operator and the agents.
pub(crate) const NAMESPACE: &str = "towpath-system";
/// Time until a change shows in an object's status. The operator waits 30 s before it calls a new Node's podCIDR
/// missing.
pub(crate) const SHOWN: Duration = Duration::from_secs(60);

/// One condition of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// The condition of this type; empty where there is none.
pub(crate) fn condition(object: &Value, kind: &str) -> Condition {
    let conditions = object["status"]["conditions"].as_array();
    let Some(found) = conditions.into_iter().flatten().find(|condition| condition["type"] == kind) else {
        return Condition::default();
    };
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Condition { status: text("status"), reason: text("reason"), message: text("message") }
}

/// An object that must exist.
pub(crate) fn object(cluster: &Cluster, words: &[&str]) -> Result<Value> {
    cluster.get(words)?.with_context(|| format!("there is no {}", words.join(" ")))
}

/// The NetworkConfig.
pub(crate) fn config(cluster: &Cluster) -> Result<Value> {
    object(cluster, &["networkconfig", "default"])
}

/// Waits until a condition of an object has this status and reason, and returns it.
pub(crate) fn wait_condition(cluster: &Cluster, words: &[&str], kind: &str, want: (&str, &str)) -> Result<Condition> {
    let mut last = Condition::default();
    let what = format!("{kind}={} {} on {}", want.0, want.1, words.join(" "));
    let met = wait_for(&what, SHOWN, || {
        last = cluster.get(words)?.map(|object| condition(&object, kind)).unwrap_or_default();
        Ok((last.status == want.0 && last.reason == want.1).then(|| last.clone()))
    });
    met.with_context(|| format!("the last was {last:?}"))
}

/// Waits until the NetworkConfig is Ready on so many nodes.
pub(crate) fn wait_ready(cluster: &Cluster, nodes: usize, bound: Duration) -> Result<()> {
    let mut last = String::new();
    let want = format!("{nodes}/{nodes}");
    let met = wait_for(&format!("NetworkConfig Ready on {want} nodes"), bound, || {
        let config = config(cluster)?;
        let ready = condition(&config, "Ready");
        let summary = config["status"]["nodes"]["summary"].as_str().unwrap_or_default().to_owned();
        last = format!("{summary} {ready:?}");
        Ok((ready.status == "True" && summary == want).then_some(()))
    });
    met.with_context(|| last)
}

/// Waits for an Event about the NetworkConfig with this reason and these words in its note.
pub(crate) fn wait_event(cluster: &Cluster, reason: &str, words: &[&str]) -> Result<()> {
    wait_for(&format!("an Event {reason} with {words:?}"), SHOWN, || {
        let events = cluster.list(&["events.events.k8s.io", "-A"])?;
        let found = events.iter().filter(|event| event["regarding"]["kind"] == "NetworkConfig").any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["reason"] == reason && words.iter().all(|word| note.contains(word))
        });
        Ok(found.then_some(()))
    })
}

/// The agents' pods, by node.
pub(crate) fn agent(cluster: &Cluster, node: &str) -> Result<Value> {
    let label = "app.kubernetes.io/name=towpath-agent";
    let pods = cluster.list(&["pods", "-n", NAMESPACE, "-l", label])?;
    let here = |pod: &Value| pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null();
    pods.into_iter().find(here).with_context(|| format!("no agent on {node}"))
}

/// Waits until the agent on this node is Ready and is not the one of before.
pub(crate) fn wait_new_agent(cluster: &Cluster, node: &str, before: &Value) -> Result<()> {
    let life =
        |pod: &Value| (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone());
    wait_for(&format!("a new agent on {node}"), Duration::from_secs(60), || {
        // Between two pods there is none.
        let Ok(now) = agent(cluster, node) else { return Ok(None) };
        Ok((life(&now) != life(before) && condition(&now, "Ready").status == "True").then_some(()))
    })
}
