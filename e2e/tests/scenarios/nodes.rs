//! Nodes join and leave, and publish malformed data.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use towpath_e2e::cluster::{Cluster, Component};
use towpath_e2e::deploy;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::kernel;
use crate::pods::{self, SharedPods};
use crate::status::{self, SHOWN};
use crate::traffic;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a node that joins later gets its network, and everything about a node that leaves is removed",
        run: join_and_leave,
    },
    Scenario { name: "a node's own annotations are restored when somebody removes them", run: wiped },
    Scenario {
        name: "a flannel peer is connected, and reported and left out while its annotations are malformed",
        run: flannel_peer,
    },
];

/// Waits for the operator's grace period, and needs no kubelet.
pub(crate) const POD_CIDRS: &[Scenario] = &[Scenario {
    name: "a node without a podCIDR, or with one outside of the network, is reported",
    run: bad_pod_cidrs,
}];

/// What flannel's annotations begin with.
const PREFIX: &str = "flannel.alpha.coreos.com/";
/// Time for a change of Nodes to be in every kernel.
const PROGRAMMED: Duration = Duration::from_secs(10);

fn join_and_leave(harness: &Harness) -> Result<()> {
    let mut cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let name = cluster.add_node()?;
    cluster.progress().step(format!("  {name} is registered"));
    let joined = joins(harness, &cluster, &shared, &name);
    let range = pod_range(&cluster, &name);
    cluster.remove_node(&name)?;
    joined?;
    let (range, gateway) = range?;
    cluster.progress().step(format!("  {name} is removed"));
    for node in cluster.nodes() {
        wait_for(&format!("{} to remove {name}", node.name()), PROGRAMMED, || {
            let all = [kernel::routes(&node)?, kernel::neighbours(&node)?].concat();
            let known = all.iter().any(|line| line.starts_with(&range) || line.starts_with(&format!("{gateway} ")));
            Ok((!known && kernel::fdb(&node)?.len() == 2).then_some(()))
        })?;
    }
    cluster.progress().step("  all other nodes have removed it");
    status::wait_ready(&cluster, 3, READY)?;
    cluster.progress().step("  the network is ready without it");
    wait_for("the NetworkNode to be deleted", SHOWN, || {
        Ok(cluster.get(&["networknode", &name])?.is_none().then_some(()))
    })?;
    traffic::ping(&shared.client, shared.far()?.ip, &[]).map(drop)
}

fn joins(harness: &Harness, cluster: &Cluster, shared: &SharedPods, name: &str) -> Result<()> {
    harness.load_image(&cluster.node(name)?)?;
    cluster.progress().step(format!("  {name} has the image"));
    status::wait_ready(cluster, 4, READY)?;
    cluster.progress().step(format!("  {name} is ready"));
    for node in cluster.nodes() {
        let peers = kernel::fdb(&node)?.len();
        ensure!(peers == 3, "{} has {peers} peers", node.name());
    }
    pods::with_namespace(cluster, "joined", |namespace| {
        let wanted = [pods::pod("newcomer", "client", name, &pods::client())];
        let newcomer = pods::start(cluster, namespace, &wanted)?.pop().context("the newcomer")?;
        for server in &shared.servers {
            traffic::ping(&newcomer, server.ip, &[])?;
        }
        traffic::ping(&shared.client, newcomer.ip, &[]).map(drop)
    })
}

/// A node's podCIDR and its first address.
fn pod_range(cluster: &Cluster, node: &str) -> Result<(String, String)> {
    let object = status::object(cluster, &["node", node])?;
    let range = object["spec"]["podCIDR"].as_str().with_context(|| format!("{node} has no podCIDR"))?;
    let (first, _) = range.split_once('/').context("a podCIDR has a prefix")?;
    Ok((range.to_owned(), first.to_owned()))
}

/// What a node publishes to its peers.
fn published(cluster: &Cluster, node: &str) -> Result<Vec<(String, String)>> {
    let object = status::object(cluster, &["node", node])?;
    let annotations = object["metadata"]["annotations"].as_object().context("annotations")?;
    let ours = annotations.iter().filter(|(key, _)| key.starts_with(PREFIX));
    Ok(ours.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect())
}

fn wiped(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let before = published(&cluster, "n2")?;
    ensure!(before.len() == 4, "n2 publishes {before:?}");
    // An unknown annotation must disturb nobody.
    let foreign = format!("{PREFIX}weather=fair");
    let wipe: Vec<String> = before.iter().map(|(key, _)| format!("{key}-")).collect();
    let mut words = vec!["annotate", "node", "n2", "--overwrite", &foreign];
    words.extend(wipe.iter().map(String::as_str));
    cluster.kubectl(&words)?;
    let back = wait_for("the annotations of n2", PROGRAMMED, || {
        let mut now = published(&cluster, "n2")?;
        now.retain(|(key, _)| !key.ends_with("weather"));
        Ok((now == before).then_some(()))
    });
    cluster.kubectl(&["annotate", "node", "n2", &format!("{PREFIX}weather-")])?;
    back?;
    status::wait_ready(&cluster, 3, READY)?;
    let shared = SharedPods::pods(&cluster)?;
    for server in &shared.servers {
        traffic::ping(&shared.client, server.ip, &[])?;
    }
    Ok(())
}

/// A Node without a machine.
fn node_object(name: &str, range: Option<&str>, annotations: &Value) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {},
    });
    if let Some(range) = range {
        node["spec"] = json!({"podCIDR": range, "podCIDRs": [range]});
    }
    node
}

/// Runs `act` with Nodes without machines; afterwards the network is as it was before.
fn with_nodes(cluster: &Cluster, nodes: &[Value], act: impl FnOnce() -> Result<()>) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes});
    let outcome = cluster.kubectl_with_input(&["create", "-f", "-"], &list.to_string()).and_then(|_| act());
    let names: Vec<&str> = nodes.iter().filter_map(|node| node["metadata"]["name"].as_str()).collect();
    let mut words = vec!["delete", "node", "--ignore-not-found"];
    words.extend(names);
    cluster.kubectl(&words)?;
    outcome?;
    deploy::wait_ready(cluster, READY)
}

fn flannel_peer(harness: &Harness) -> Result<()> {
    const RANGE: &str = "10.244.200.0/24";
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let backend = format!("{PREFIX}backend-data");
    let annotations = json!({
        format!("{PREFIX}kube-subnet-manager"): "true",
        format!("{PREFIX}backend-type"): "vxlan",
        format!("{PREFIX}public-ip"): "172.30.0.99",
        backend.clone(): r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}"#,
    });
    let annotate =
        |value: &str| cluster.kubectl(&["annotate", "node", "stranger", "--overwrite", &format!("{backend}={value}")]);
    with_nodes(&cluster, &[node_object("stranger", Some(RANGE), &annotations)], || {
        for node in cluster.nodes() {
            wait_known(&node, RANGE, Known::Yes)?;
        }
        annotate(r#"{"VNI":1,"VtepMAC":"no such thing"}"#)?;
        for node in cluster.nodes() {
            wait_known(&node, RANGE, Known::No)?;
            let words = ["networknode", &node.name()];
            let said = status::wait_condition(&cluster, &words, "TunnelReady", ("False", "InvalidPeer"))?;
            ensure!(said.message.contains("stranger"), "it does not name the peer: {}", said.message);
            let object = status::object(&cluster, &["node", &node.name()])?;
            let unavailable = status::condition(&object, "NetworkUnavailable").status;
            ensure!(unavailable == "False", "one bad peer makes the network of {} unavailable", node.name());
        }
        for server in &shared.servers {
            traffic::ping(&shared.client, server.ip, &[])?;
        }
        annotate(r#"{"vni":1,"vtepMAC":"02:00:00:00:00:98"}"#)?;
        for node in cluster.nodes() {
            wait_known(&node, "02:00:00:00:00:98", Known::Yes)?;
            status::wait_condition(
                &cluster,
                &["networknode", &node.name()],
                "TunnelReady",
                ("True", "PeersProgrammed"),
            )?;
        }
        Ok(())
    })?;
    for node in cluster.nodes() {
        wait_known(&node, RANGE, Known::No)?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
}

/// Waits until a node's kernel has, or has no more, an entry with these words.
fn wait_known(node: &Node, words: &str, want: Known) -> Result<()> {
    wait_for(&format!("{} to have {words}: {want:?}", node.name()), PROGRAMMED, || {
        let all = [kernel::routes(node)?, kernel::neighbours(node)?, kernel::fdb(node)?].concat();
        let known = if all.iter().any(|line| line.contains(words)) { Known::Yes } else { Known::No };
        Ok((known == want).then_some(()))
    })
}

fn bad_pod_cidrs(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    // Nobody allocates podCIDRs while the controller manager is stopped. It would not even start with the outsider.
    cluster.stop(Component::ControllerManager)?;
    let nodes = [node_object("cidrless", None, &json!({})), node_object("outsider", Some("10.99.0.0/24"), &json!({}))];
    let named = with_nodes(&cluster, &nodes, || bad_shares_are_named(&cluster));
    cluster.start(Component::ControllerManager)?;
    named
}

fn bad_shares_are_named(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let words = ["networknode", &node.name()];
        let said = status::wait_condition(cluster, &words, "TunnelReady", ("False", "InvalidPeer"))?.message;
        ensure!(said.contains("outsider"), "it does not name the node: {said}");
    }
    // The operator waits 30 s before it reports a node without a podCIDR.
    let config = ["networkconfig", "default"];
    let said = status::wait_condition(cluster, &config, "PreflightPassed", ("False", "PodCIDRMissing"))?.message;
    ensure!(said.contains("cidrless (IPv4)"), "it does not name the node: {said}");
    let checks = status::config(cluster)?["status"]["preflight"]["checks"].as_array().cloned().unwrap_or_default();
    let fit = checks.iter().find(|check| check["name"] == "NodePodCIDRsFit").context("the check of the podCIDRs")?;
    let said = fit["message"].as_str().unwrap_or_default();
    ensure!(fit["result"] == "Failed" && said.contains("outsider (10.99.0.0/24)"), "it does not name the node: {fit}");
    Ok(())
}
