//! Denials are reported: on the pod, in the agent's log; and invalid parts of a policy on the policy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use towpath_e2e::cluster::Cluster;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, Scenario};
use crate::pods::{self, HTTP};
use crate::policy::policy;
use crate::status::NAMESPACE;
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a denied connection has an Event on the pod that names the policy", run: denied },
    Scenario { name: "a policy with an invalid part has an Event, and its pods are closed", run: rejected },
];

const AGENTS: &str = "app.kubernetes.io/name=towpath-agent";
/// From the dropped packet, or from the report, to the Event.
const SOON: Duration = Duration::from_secs(30);

/// Pods `server` and `client` on two nodes, and the policy; the client is denied.
fn deny_client(cluster: &Cluster, namespace: &str, policy: Value) -> Result<()> {
    let wanted =
        [pods::pod("server", "server", "n1", &pods::server()), pods::pod("client", "client", "n2", &pods::client())];
    let made = pods::start(cluster, namespace, &wanted)?;
    pods::apply(cluster, namespace, &[policy])?;
    let [server, client] = &made[..] else { anyhow::bail!("two pods were wanted") };
    let (to, why) = (server.at(HTTP), "no valid rule allows it");
    traffic::expect("a closed server", &[Probe { from: client, to, by: Protocol::Tcp, want: Answer::Closed, why }])
}

fn denied(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    pods::with_namespace(&cluster, "denied", |namespace| {
        deny_client(
            &cluster,
            namespace,
            policy("nobody", &json!({"podSelector": {"matchLabels": {"role": "server"}}})),
        )?;
        let note = event(&cluster, namespace, "server", "PolicyDenied")?;
        for word in ["denied/client", &format!("TCP port {HTTP}"), "denied/nobody"] {
            ensure!(note.contains(word), "the Event does not contain {word}: {note}");
        }
        let line = wait_for("a line of the agent's log", SOON, || {
            let log = cluster.kubectl(&["logs", "-n", NAMESPACE, "-l", AGENTS, "--tail=-1"])?;
            Ok(log
                .lines()
                .find(|line| line.contains("denied/server") && line.contains("denied/nobody"))
                .map(str::to_owned))
        })?;
        let line: Value = serde_json::from_str(&line).context("the agent's log is JSON")?;
        ensure!(line["direction"] == "ingress" && line["message"] == "packets denied", "{line}");
        Ok(())
    })
}

/// The API server reads an address with a leading zero as decimal, other programs as octal: it is ambiguous.
fn rejected(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let ambiguous = json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "010.0.0.0/8"}}]}],
    });
    pods::with_namespace(&cluster, "unclear", |namespace| {
        deny_client(&cluster, namespace, policy("ambiguous", &ambiguous))?;
        let note = event(&cluster, namespace, "ambiguous", "PolicyPartRejected")?;
        ensure!(note.contains("spec.ingress[0].from[0].ipBlock.cidr"), "the Event does not name the part: {note}");
        Ok(())
    })
}

/// Waits for an Event on an object and returns its note.
fn event(cluster: &Cluster, namespace: &str, name: &str, reason: &str) -> Result<String> {
    wait_for(&format!("an Event {reason} on {name}"), SOON, || {
        let events = cluster.list(&["events.events.k8s.io", "-n", namespace])?;
        let found = events.iter().find(|event| event["reason"] == reason && event["regarding"]["name"] == name);
        Ok(found.and_then(|event| event["note"].as_str()).map(str::to_owned))
    })
}
