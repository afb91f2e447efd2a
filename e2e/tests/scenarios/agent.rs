//! The agent ends and starts; what is in the kernel stays, and no packet is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use towpath_e2e::cluster::{Cluster, Component};
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::flood::Flood;
use crate::harness::{Harness, READY, Scenario};
use crate::kernel;
use crate::pods::{self, HTTP, SharedPods};
use crate::policy::policy;
use crate::status::{self, NAMESPACE};
use crate::traffic::{self, Answer, Probe, Protocol, Stream};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "an agent's pod is deleted and replaced, and a running ping loses nothing", run: deleted },
    Scenario { name: "an agent is killed, and a running ping loses nothing", run: killed },
    Scenario {
        name: "an agent is killed while ten pods start: all pods run, and no address leaks",
        run: killed_in_starts,
    },
    Scenario { name: "thirty pods start and end on one node, and every address is released", run: thirty_pods },
];

/// The kubelets need up to a minute to recover, so no scenario that starts pods should follow.
pub(crate) const AWAY: &[Scenario] = &[Scenario {
    name: "the API server is unavailable for a minute: traffic continues and policies hold, also when an agent restarts meanwhile",
    run: api_away,
}];

/// How long the API server is unavailable, in seconds.
const SECONDS_AWAY: usize = 60;

fn deleted(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = shared.client.node.clone();
    let before = status::agent(&cluster, &node)?;
    let stream = Stream::start(&shared.client, shared.far()?.ip)?;
    let name = before["metadata"]["name"].as_str().unwrap_or_default();
    cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, name, "--wait=false"])?;
    status::wait_new_agent(&cluster, &node, &before)?;
    stream.go_on(Stream::PER_SECOND)?;
    stream.finish()
}

fn killed(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = cluster.node(&shared.client.node)?;
    let before = status::agent(&cluster, &node.name())?;
    let stream = Stream::start(&shared.client, shared.far()?.ip)?;
    kill_agent(&node)?;
    status::wait_new_agent(&cluster, &node.name(), &before)?;
    stream.go_on(Stream::PER_SECOND)?;
    stream.finish()
}

/// Kills the agent's process.
pub(crate) fn kill_agent(node: &Node) -> Result<()> {
    let pid = node.exec(&["pidof", "-s", "towpath-agent"])?;
    node.exec(&["kill", "-KILL", pid.trim()]).map(drop)
}

fn agent_pid(node: &Node) -> Result<Option<String>> {
    let said = node.exec_raw(&["pidof", "-s", "towpath-agent"])?;
    Ok(said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned()))
}

fn api_away(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    // Another node than in the scenario before, because the kubelet waits longer with each restart.
    let node = cluster.node(&shared.far()?.node)?;
    // A flood from a server, which a policy denies, goes through the node whose agent restarts.
    let silent = json!({"podSelector": {"matchLabels": {"role": "server"}}, "policyTypes": ["Egress"]});
    let flood = Flood::start(shared.far()?, &shared.client)?;
    flood.wait_open()?;
    pods::apply(&cluster, pods::SHARED, &[policy("silent", &silent)])?;
    let passed = flood.wait_closed()?;
    let (table, routes) = (kernel::table(&node)?, kernel::routes(&node)?);
    let stream = Stream::start(&shared.client, shared.far()?.ip)?;
    cluster.stop(Component::ApiServer)?;
    cluster.progress().step("  the API server is stopped");
    let away = while_away(&stream, &node);
    cluster.progress().step("  the API server is starting");
    let running = cluster.start(Component::ApiServer)?;
    cluster.wait_api(|| running.check())?;
    away?;
    ensure!(table == kernel::table(&node)?, "the rules changed while the API server was unavailable");
    ensure!(routes == kernel::routes(&node)?, "the routes changed while the API server was unavailable");
    cluster.progress().step("  the API server is ready");
    status::wait_ready(&cluster, 3, READY)?;
    // Before the policies change: a stream that one denies is revoked.
    stream.finish()?;
    agents_receive(&cluster, &shared)?;
    ensure!(flood.arrived() == passed, "{} datagrams arrived that a policy forbids", flood.arrived() - passed);
    cluster.kubectl(&["delete", "networkpolicy", "silent", "-n", pods::SHARED])?;
    flood.wait_open()
}

/// A policy that is created now is enforced, and one that is deleted is not. New pods would have to wait for the
/// kubelet, which needs longer to recover.
fn agents_receive(cluster: &Cluster, shared: &SharedPods) -> Result<()> {
    let (from, to) = (&shared.client, shared.far()?.at(HTTP));
    let expect = |state, want| {
        traffic::expect(state, &[Probe { from, to, by: Protocol::Tcp, want, why: "the agent has received the change" }])
    };
    let closed = json!({"podSelector": {"matchLabels": {"role": "server"}}, "policyTypes": ["Ingress"]});
    expect("a server that is open", Answer::Open)?;
    pods::apply(cluster, pods::SHARED, &[policy("after", &closed)])?;
    let closed = expect("a server that is closed", Answer::Closed);
    cluster.kubectl(&["delete", "networkpolicy", "after", "-n", pods::SHARED])?;
    closed?;
    expect("a server that is open again", Answer::Open)
}

/// An agent restarts in the middle of it.
fn while_away(stream: &Stream, node: &Node) -> Result<()> {
    stream.go_on(SECONDS_AWAY / 2 * Stream::PER_SECOND)?;
    let before = agent_pid(node)?;
    kill_agent(node)?;
    wait_for("an agent that starts without the API server", Duration::from_secs(30), || {
        let now = agent_pid(node)?;
        Ok((now.is_some() && now != before).then_some(()))
    })?;
    stream.go_on(SECONDS_AWAY / 2 * Stream::PER_SECOND)
}

fn killed_in_starts(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n3")?;
    SharedPods::pods(&cluster)?;
    no_address_leaked(&cluster, &node)?;
    let before = kernel::addresses(&node)?.len();
    let agent = status::agent(&cluster, &node.name())?;
    pods::with_namespace(&cluster, "starts", |namespace| {
        let (wanted, names) = crowd(10, &node.name());
        pods::apply(&cluster, namespace, &wanted)?;
        wait_for("the first pod's address", Duration::from_secs(30), || {
            Ok((kernel::addresses(&node)?.len() > before).then_some(()))
        })?;
        kill_agent(&node)?;
        pods::ready(&cluster, namespace, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        no_address_leaked(&cluster, &node)
    })?;
    status::wait_new_agent(&cluster, &node.name(), &agent)?;
    pods::gone(&cluster, "starts")?;
    no_address_leaked(&cluster, &node)
}

fn thirty_pods(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n2")?;
    SharedPods::pods(&cluster)?;
    no_address_leaked(&cluster, &node)?;
    let before = kernel::addresses(&node)?;
    pods::with_namespace(&cluster, "thirty", |namespace| {
        let (wanted, names) = crowd(30, &node.name());
        pods::apply(&cluster, namespace, &wanted)?;
        let made = pods::ready(&cluster, namespace, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let different: BTreeSet<_> = made.iter().map(|pod| pod.ip).collect();
        ensure!(different.len() == made.len(), "two pods have the same address");
        no_address_leaked(&cluster, &node)
    })?;
    pods::gone(&cluster, "thirty")?;
    no_address_leaked(&cluster, &node)?;
    ensure!(before == kernel::addresses(&node)?, "other addresses are in use than before");
    let left = kernel::routes(&node)?.into_iter().filter(|route| route.contains("dev tow")).count();
    ensure!(left == before.len(), "{left} routes to {} pods", before.len());
    Ok(())
}

/// Clients on one node, and their names.
fn crowd(count: usize, node: &str) -> (Vec<Value>, Vec<String>) {
    let names: Vec<String> = (0..count).map(|number| format!("one-{number}")).collect();
    (names.iter().map(|name| pods::pod(name, "client", node, &pods::client())).collect(), names)
}

/// Waits until the allocated addresses are those of the existing pods.
pub(crate) fn no_address_leaked(cluster: &Cluster, node: &Node) -> Result<()> {
    let mut last = String::new();
    let equal = wait_for("one allocated address per pod", Duration::from_secs(30), || {
        let pods = cluster.list(&["pods", "-A"])?;
        let (have, want) = (kernel::addresses(node)?, kernel::pod_addresses(&pods, &node.name()));
        last = format!("allocated: {have:?}, in use: {want:?}");
        Ok((have == want).then_some(()))
    });
    equal.with_context(|| last)
}
