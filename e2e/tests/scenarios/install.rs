//! From the first NetworkConfig to a network: what is rejected, what is held, and what exists when it is Ready.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use towpath_e2e::cluster::{Cluster, condition};
use towpath_e2e::deploy;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::status::{self, NAMESPACE, SHOWN};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "an invalid NetworkConfig is rejected with a message that helps", run: rejections },
    Scenario { name: "pod addresses that overlap with Services hold the rollout", run: overlap_with_services },
    Scenario { name: "pod addresses that overlap with nodes hold the rollout", run: overlap_with_nodes },
    Scenario { name: "a NetworkConfig makes every node Ready and reports it", run: becomes_ready },
    Scenario {
        name: "an MTU that the uplinks cannot carry is held, and the running network stays",
        run: mtu_too_large,
    },
];

/// A NetworkConfig with this spec.
fn network_config(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "towpath.io/v1alpha1", "kind": "NetworkConfig", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn rejections(harness: &Harness) -> Result<()> {
    let cluster = harness.installed()?;
    for (name, spec, words, why) in [
        ("other", json!({}), "its name is 'default'", "there is one"),
        ("default", json!({"mtu": 100_000}), "less than or equal to 9216", "no link has that"),
        ("default", json!({"mtu": 1000}), "greater than or equal to 1280", "IPv6 needs 1280"),
        ("default", json!({"podCIDRs": ["10.244.0.0"]}), "must be CIDRs", "an address is no range"),
        (
            "default",
            json!({"podCIDRs": ["10.244.1.7/16"]}),
            "set the bits after the prefix to zero",
            "an address in it",
        ),
        (
            "default",
            json!({"podCIDRs": ["10.244.0.0/16", "10.245.0.0/16"]}),
            "at most one range per IP family",
            "two of one family",
        ),
        ("default", json!({"interface": {"names": ["eth0/1"]}}), "as `ip link` shows it", "a slash in a name"),
        (
            "default",
            json!({"interface": {"names": ["eth0"], "autodetect": "DefaultRoute"}}),
            "keep one and remove the others",
            "two ways of choosing",
        ),
        ("default", json!({"backend": {"vxlan": {"vni": 0}}}), "greater than or equal to 1", "zero is reserved"),
        ("default", json!({"backend": {"type": "GRE"}}), "Unsupported value", "there is no such transport"),
        ("default", json!({"backend": {"vxlan": {"ports": 1}}}), "unknown field", "a misspelt field"),
    ] {
        let applied = cluster.kubectl_with_input(
            &["create", "--dry-run=server", "--validate=strict", "-f", "-"],
            &network_config(name, &spec),
        );
        let Err(said) = applied else { anyhow::bail!("{spec} was accepted: {why}") };
        let said = format!("{said:#}");
        ensure!(said.contains(words), "{spec} is rejected without {words:?}: {said}");
    }
    Ok(())
}

fn overlap_with_services(harness: &Harness) -> Result<()> {
    let cluster = harness.installed()?;
    let said = with_config(&cluster, "10.0.0.0/8", |cluster| {
        let config = ["networkconfig", "default"];
        status::wait_condition(cluster, &config, "Stalled", ("True", "PreflightFailed"))?;
        status::wait_condition(cluster, &config, "PreflightPassed", ("False", "CIDROverlap"))
    })?;
    for word in ["pods (10.0.0.0/8) and Services (10.96.0.0/16) overlap", "choose another range in spec.podCIDRs"] {
        ensure!(said.message.contains(word), "the condition does not contain {word:?}: {}", said.message);
    }
    Ok(())
}

fn overlap_with_nodes(harness: &Harness) -> Result<()> {
    // The nodes' podCIDRs are outside too; the check of the nodes' addresses is a separate one.
    let cluster = harness.installed()?;
    let checks = with_config(&cluster, "172.16.0.0/12", |cluster| {
        wait_for("the outcome of the checks", SHOWN, || {
            let checks = status::config(cluster)?["status"]["preflight"]["checks"].as_array().cloned();
            Ok(checks.filter(|checks| checks.len() >= 6))
        })
    })?;
    let nodes = checks.iter().find(|check| check["name"] == "NoOverlapWithNodes").cloned().unwrap_or_default();
    let message = nodes["message"].as_str().unwrap_or_default();
    ensure!(nodes["result"] == "Failed" && message.contains("n1 (172.30.0.11)"), "the check reports {nodes}");
    Ok(())
}

/// Runs `act` with a NetworkConfig that must not be rolled out. Removes it again.
fn with_config<T>(cluster: &Cluster, range: &str, act: impl FnOnce(&Cluster) -> Result<T>) -> Result<T> {
    cluster.apply(&network_config("default", &json!({"podCIDRs": [range]})))?;
    let outcome = act(cluster);
    let agents = cluster.get(&["daemonset", "towpath-agent", "-n", NAMESPACE])?;
    cluster.kubectl(&["delete", "networkconfig", "default", "--timeout=60s"])?;
    ensure!(agents.is_none(), "agents were rolled out although the checks failed");
    outcome
}

fn becomes_ready(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    status::wait_ready(&cluster, 3, READY)?;
    cluster.wait_nodes_ready(READY)?;
    let config = status::config(&cluster)?;
    ensure!(
        config["status"]["observedGeneration"] == config["metadata"]["generation"],
        "the status is stale: {config}"
    );
    for kind in ["Stalled", "Reconciling"] {
        ensure!(status::condition(&config, kind).status.is_empty(), "{kind} exists although nothing is wrong");
    }
    for node in cluster.nodes() {
        let object = status::object(&cluster, &["node", &node.name()])?;
        ensure!(condition(&object, "NetworkUnavailable") == "False", "{}: NetworkUnavailable", node.name());
        let conflist = node.path("/etc/cni/net.d/10-towpath.conflist")?;
        let mode = fs::metadata(&conflist)?.permissions().mode() & 0o7777;
        ensure!(mode == 0o600, "the CNI configuration has mode {mode:o}");
        let report = status::object(&cluster, &["networknode", &node.name()])?;
        let tunnel = &report["status"]["tunnels"][0];
        ensure!(
            tunnel["peersExpected"] == 2 && tunnel["peersProgrammed"] == 2 && tunnel["mtu"] == 1450,
            "{} reports {tunnel}",
            node.name()
        );
    }
    let table = cluster.kubectl(&["get", "networkconfig,networknode"])?;
    ensure!(table.contains("3/3") && table.contains("VXLAN"), "kubectl get prints {table}");
    Ok(())
}

fn mtu_too_large(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let agents = |cluster: &Cluster| -> Result<Value> {
        Ok(status::object(cluster, &["daemonset", "towpath-agent", "-n", NAMESPACE])?["metadata"]["generation"].clone())
    };
    let before = agents(&cluster)?;
    cluster.kubectl(&["patch", "networkconfig", "default", "--type=merge", "-p", r#"{"spec":{"mtu":1480}}"#])?;
    let said =
        status::wait_condition(&cluster, &["networkconfig", "default"], "PreflightPassed", ("False", "MTUTooLarge"));
    cluster.kubectl(&["patch", "networkconfig", "default", "--type=merge", "-p", r#"{"spec":{"mtu":null}}"#])?;
    let message = said?.message;
    ensure!(message.contains("at most 1450") && message.contains("n1 (eth0 has 1500)"), "the message is {message}");
    deploy::wait_ready(&cluster, READY)?;
    ensure!(before == agents(&cluster)?, "the agents were changed");
    Ok(())
}
