//! A thousand peers: time until the node has them all, and time for one more.
//!
//! The agent is a real one on a node of its own. Its peers are Node objects with flannel's annotations and no
//! machine behind them; controllers that would react to them are stopped before.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use towpath_e2e::api::Api;
use towpath_e2e::cluster::Component;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::namespaces::Namespaces;
use crate::report::Table;
use crate::sample::Sample;
use crate::setup::BenchCluster;

const NODES: &str = "/api/v1/nodes";
/// How many peers are present when one more comes.
const LEVELS: [usize; 3] = [10, 100, 1000];
/// How often one more comes at each level.
const SINGLES: usize = 15;
/// Time for a change to reach the kernel.
const BOUND: Duration = Duration::from_secs(120);
/// The device, and the protocol number of its routes.
const DEVICE: &str = "flannel.1";
const PROTOCOL: &str = "157";

/// Notifications about the routes of a node, from `ip monitor`. It ends when this value is dropped.
struct Routes {
    monitor: Child,
    lines: Receiver<(Instant, String)>,
}

/// Fills the node level by level.
pub(crate) fn measure(cluster: &BenchCluster) -> Result<Table> {
    let node = cluster.node("n1")?;
    stop_controllers(cluster)?;
    let (api, routes) = (Api::open(cluster)?, Routes::watch(&node)?);
    let mut table = Table::new("Peers on one node", &["what", "peers present", "median ms (min–max)", "aim", "runs"]);
    let mut present = 0;
    for level in LEVELS {
        let more: Vec<Value> = (present..level).map(peer).collect();
        let (written, all) = fill(&api, &routes, &more)?;
        let what = format!("{} at once, from the first Node's creation to the last route", more.len());
        table.row([what, present.to_string(), millis(all), String::new(), "1".into()]);
        let what = "of this after the API server had accepted the last".to_owned();
        table.row([what, String::new(), millis(all.saturating_sub(written)), String::new(), "1".into()]);
        present = level;
        let singles: Vec<Duration> = (0..SINGLES).map(|_| single(&api, &routes, level)).collect::<Result<_>>()?;
        let sample = Sample::of_millis(singles).context("no runs")?;
        let what = "one more, from its creation to its route".to_owned();
        table.row([what, level.to_string(), sample.spread(1), "does not grow".into(), sample.len().to_string()]);
        complete(&node, level)?;
    }
    let start = Instant::now();
    node.exec(&["ip", "link", "del", DEVICE])?;
    let last = routes.collect(present, start)?;
    let what = "all of them again, from the deletion of the device to the last route".to_owned();
    table.row([what, present.to_string(), millis(last), String::new(), "1".into()]);
    wait_for("every entry after the repair", BOUND, || Ok(complete(&node, present).ok()))?;
    table.note("At each level every peer had its neighbour, FDB entry and route.");
    table.note("The times include kubectl proxy and API server: a few milliseconds for one Node.");
    Ok(table)
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// Stops the controllers that would react to Nodes without a kubelet.
fn stop_controllers(cluster: &BenchCluster) -> Result<()> {
    cluster.kubectl(&["scale", "deployment", "towpath-operator", "-n", "towpath-system", "--replicas=0"])?;
    wait_for("the end of the operator", BOUND, || {
        let pods = cluster.list(&["pods", "-n", "towpath-system", "-l", "app.kubernetes.io/name=towpath-operator"])?;
        Ok(pods.is_empty().then_some(()))
    })?;
    cluster.stop(Component::ControllerManager)?;
    cluster.stop(Component::Scheduler)
}

/// Creates peers and waits for their routes. Returns the time until the API server had them, and until the node had.
fn fill(api: &Api, routes: &Routes, peers: &[Value]) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    api.create_all(NODES, peers)?;
    let written = start.elapsed();
    Ok((written, routes.collect(peers.len(), start)?))
}

/// Creates one more peer, waits for its route, and deletes it.
fn single(api: &Api, routes: &Routes, index: usize) -> Result<Duration> {
    let (_, time) = fill(api, routes, &[peer(index)])?;
    api.delete(&format!("{NODES}/{}", name(index)))?;
    routes.next(&format!("Deleted {}", range(index)))?;
    Ok(time)
}

fn name(index: usize) -> String {
    format!("peer-{index}")
}

/// Ranges of 64 addresses: a thousand of them fit into the pod network, after the node's own 10.244.0.0/24.
fn range(index: usize) -> String {
    format!("10.244.{}.{}/26", 1 + index / 4, index % 4 * 64)
}

fn peer(index: usize) -> Value {
    let (high, low) = (index / 250, index % 250);
    let range = range(index);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name(index), "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#),
            "flannel.alpha.coreos.com/public-ip": format!("172.31.{high}.{}", low + 1),
        }},
        "spec": {"podCIDR": range, "podCIDRs": [range]},
    })
}

/// Fails unless the node has all entries of that many peers, and no more.
fn complete(node: &Node, count: usize) -> Result<()> {
    let entries = [
        ("routes", node.exec(&["ip", "route", "show", "dev", DEVICE, "proto", PROTOCOL])?),
        ("neighbours", node.exec(&["ip", "neigh", "show", "dev", DEVICE, "nud", "permanent"])?),
        ("FDB entries", node.exec(&["bridge", "fdb", "show", "dev", DEVICE])?),
    ];
    for (what, said) in entries {
        let found = said.lines().count();
        ensure!(found == count, "{found} {what} of {count} peers on node {}", node.name());
    }
    Ok(())
}

impl Routes {
    fn watch(node: &Node) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["-oneline", "monitor", "route"]).stdout(Stdio::piped());
        let mut monitor = Namespaces::of_node(node)?.run(|| command.spawn().context("start ip monitor"))?;
        let said = monitor.stdout.take().context("ip monitor has no output")?;
        let (to, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if line.contains(DEVICE) && to.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let routes = Self { monitor, lines };
        routes.wait_until_it_listens(node)?;
        Ok(routes)
    }

    /// The monitor listens once it prints a test route. Later lines about that route do not match what is waited for.
    fn wait_until_it_listens(&self, node: &Node) -> Result<()> {
        wait_for("ip monitor to listen", BOUND, || {
            for verb in ["add", "del"] {
                node.exec(&["ip", "route", verb, "192.0.2.1/32", "dev", DEVICE])?;
            }
            Ok(self.lines.recv_timeout(Duration::from_millis(100)).ok().map(drop))
        })
    }

    /// Waits until that many routes were added. Returns the time of the last.
    fn collect(&self, count: usize, start: Instant) -> Result<Duration> {
        let mut last = start;
        for _ in 0..count {
            last = self.next("10.244.")?;
        }
        Ok(last.saturating_duration_since(start))
    }

    /// Waits for a line that begins so. Returns its time.
    fn next(&self, beginning: &str) -> Result<Instant> {
        let deadline = Instant::now() + BOUND;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (at, line) = self.lines.recv_timeout(left).with_context(|| format!("no route {beginning}…"))?;
            if line.starts_with(beginning) {
                return Ok(at);
            }
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}
