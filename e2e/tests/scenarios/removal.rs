//! Deletion of a NetworkConfig: what stays and what is removed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use towpath_e2e::cluster::Cluster;
use towpath_e2e::deploy;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::kernel;
use crate::pods::SharedPods;
use crate::status::{self, NAMESPACE};
use crate::traffic::{self, Stream};

/// On a cluster with a network, which is removed at the end.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "an orphaned network keeps running, and a later NetworkConfig takes it over", run: orphan },
    Scenario {
        name: "a Teardown leaves nothing of ours on any node, and the network can be installed again",
        run: teardown,
    },
    Scenario {
        name: "a Teardown cleans the nodes that it reaches at once, although one is unreachable",
        run: one_is_away,
    },
];

/// After those that need no shared cluster: the bound is two minutes, in which other scenarios run.
pub(crate) const LAST: &[Scenario] =
    &[Scenario { name: "a Teardown that cannot reach a node ends in time and names the node", run: ends_in_time }];

/// Time for reachable nodes to be clean.
const CLEAN: Duration = Duration::from_secs(60);
/// The operator's bound of two minutes, and time to see it.
const BOUND: Duration = Duration::from_secs(150);

fn orphan(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let agents = agent_uids(&cluster)?;
    let stream = Stream::start(&shared.client, shared.far()?.ip)?;
    cluster.kubectl(&["delete", "networkconfig", "default", "--timeout=60s"])?;
    status::wait_event(&cluster, "Orphaned", &["create a NetworkConfig"])?;
    stream.go_on(2 * Stream::PER_SECOND)?;
    ensure!(agent_uids(&cluster)? == agents, "the agents did not stay");
    harness.apply_config(&cluster)?;
    deploy::wait_ready(&cluster, READY)?;
    ensure!(agent_uids(&cluster)? == agents, "the agents were replaced, although nothing had changed");
    stream.finish()
}

fn agent_uids(cluster: &Cluster) -> Result<Vec<Value>> {
    let uid = |node: Node| Ok(status::agent(cluster, &node.name())?["metadata"]["uid"].clone());
    cluster.nodes().into_iter().map(uid).collect()
}

/// Asks for a Teardown, without waiting for it.
fn ask_for_teardown(cluster: &Cluster) -> Result<()> {
    let policy = r#"{"spec":{"deletionPolicy":"Teardown"}}"#;
    cluster.kubectl(&["patch", "networkconfig", "default", "--type=merge", "-p", policy])?;
    cluster.kubectl(&["delete", "networkconfig", "default", "--wait=false"]).map(drop)
}

fn wait_no_config(cluster: &Cluster, bound: Duration) -> Result<()> {
    wait_for("the end of the NetworkConfig", bound, || {
        Ok(cluster.get(&["networkconfig", "default"])?.is_none().then_some(()))
    })
}

fn teardown(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    SharedPods::pods(&cluster)?;
    ask_for_teardown(&cluster)?;
    wait_no_config(&cluster, CLEAN)?;
    status::wait_event(&cluster, "TeardownComplete", &["every node is clean"])?;
    for node in cluster.nodes() {
        ensure_clean(&cluster, &node)?;
    }
    let left =
        cluster.get(&["daemonsets,configmaps", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=towpath-agent"])?;
    let left = left.and_then(|list| list["items"].as_array().map(Vec::len)).unwrap_or_default();
    ensure!(left == 0, "{left} objects of ours are left");
    harness.apply_config(&cluster)?;
    deploy::wait_ready(&cluster, READY)?;
    // Pods that lost their interface must be recreated; new pods have a network.
    cluster.kubectl(&["delete", "pods", "--all", "-n", "shared", "--timeout=60s"])?;
    let shared = SharedPods::pods(&cluster)?;
    traffic::ping(&shared.client, shared.far()?.ip, &[]).map(drop)
}

/// Fails if anything of Towpath is on a node except the CNI plugin.
fn ensure_clean(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = node.name();
    ensure!(!kernel::has_device(node)?, "{name}: the device still exists");
    let routes = kernel::routes(node)?;
    ensure!(routes.is_empty(), "{name}: there are still routes: {routes:?}");
    let links = node.exec(&["ip", "-br", "link"])?;
    ensure!(!links.contains("tow"), "{name}: there are still interfaces of pods: {links}");
    ensure!(kernel::table(node)?.is_empty(), "{name}: the table still exists");
    ensure!(!node.path(kernel::CONFLIST)?.exists(), "{name}: the CNI configuration still exists");
    let object = status::object(cluster, &["node", &name])?;
    ensure!(!object["metadata"]["annotations"].to_string().contains("flannel"), "{name}: annotations still exist");
    ensure!(cluster.get(&["networknode", &name])?.is_none(), "{name}: the NetworkNode still exists");
    Ok(())
}

/// Stops the third node and begins the Teardown, unless that was done before.
fn begin_with_one_away(harness: &Harness) -> Result<Cluster> {
    let cluster = harness.network()?;
    if cluster.node("n3")?.init_pid().is_ok() {
        kill(Pid::from_raw(cluster.node("n3")?.init_pid()?), Signal::SIGKILL).context("stop node n3")?;
        ask_for_teardown(&cluster)?;
    }
    Ok(cluster)
}

fn one_is_away(harness: &Harness) -> Result<()> {
    let cluster = begin_with_one_away(harness)?;
    for name in ["n1", "n2"] {
        let node = cluster.node(name)?;
        let mut left = String::new();
        let clean = wait_for(&format!("{name} to be clean"), CLEAN, || match ensure_clean(&cluster, &node) {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                left = format!("{error:#}");
                Ok(None)
            }
        });
        clean.with_context(|| left)?;
    }
    let said = status::wait_condition(&cluster, &["networkconfig", "default"], "Reconciling", ("True", "TearingDown"))?;
    ensure!(said.message.contains("n3"), "it does not name the node that it waits for: {}", said.message);
    Ok(())
}

fn ends_in_time(harness: &Harness) -> Result<()> {
    let cluster = begin_with_one_away(harness)?;
    wait_no_config(&cluster, BOUND)?;
    status::wait_event(&cluster, "TeardownIncomplete", &["n3", "towpath-agent teardown"])?;
    let left = cluster.get(&["daemonset", "towpath-agent", "-n", NAMESPACE])?;
    ensure!(left.is_none(), "the agents' DaemonSet is left");
    Ok(())
}
