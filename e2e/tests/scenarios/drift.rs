//! Drift: somebody changes Towpath's objects in a node's kernel. The kernel rejects changes to the table while the
//! agent runs; everything else is repaired within two seconds and reported.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use towpath_e2e::cluster::Cluster;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::agent::kill_agent;
use crate::flood::Flood;
use crate::harness::{Harness, Scenario};
use crate::kernel::{self, DEVICE};
use crate::pods::{self, SharedPods};
use crate::policy::policy;
use crate::status;
use crate::traffic;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "drift of a node's network is repaired within two seconds and reported", run: repaired },
    Scenario {
        name: "nobody else can change a node's rules while its agent runs, and policies hold throughout",
        run: refused,
    },
    Scenario {
        name: "rules that were deleted while a node's agent was down are restored when it starts, and other tables stay",
        run: away,
    },
    Scenario { name: "what other programs have in the kernel is left alone", run: foreign },
];

/// Time for a repair.
const REPAIR: Duration = Duration::from_secs(2);

/// Towpath's objects in a node's kernel, as sorted text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ours {
    routes: Vec<String>,
    neighbours: Vec<String>,
    forwarding: Vec<String>,
    /// The device's MTU, with the white space of the kernel's file.
    mtu: Option<String>,
    table: String,
}

fn ours(node: &Node) -> Result<Ours> {
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    Ok(Ours {
        routes: sorted(kernel::routes(node)?),
        neighbours: sorted(kernel::neighbours(node)?),
        forwarding: sorted(kernel::fdb(node)?),
        mtu: kernel::mtu(node)?,
        table: kernel::table(node)?,
    })
}

fn repaired(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = cluster.node(&shared.client.node)?;
    let before = repairs(&cluster, &node)?;
    pods::settled(&cluster)?;
    let whole = ours(&node)?;
    let damages = damages(&whole)?;
    for damage in &damages {
        let start = Instant::now();
        for words in &damage.commands {
            node.exec(&words.split(' ').collect::<Vec<_>>())?;
        }
        let mut have = None;
        let back = wait_for(&format!("repair of {}", damage.what), REPAIR, || {
            have = Some(ours(&node)?);
            Ok((have.as_ref() == Some(&whole)).then_some(()))
        });
        back.with_context(|| format!("have {have:?}, want {whole:?}"))?;
        cluster.progress().step(format!("  {}: repaired after {} ms", damage.what, start.elapsed().as_millis()));
        traffic::ping(&shared.client, shared.far()?.ip, &[])?;
    }
    wait_for("repairs in the NetworkNode", status::SHOWN, || {
        Ok((repairs(&cluster, &node)? >= before + damages.len() as u64).then_some(()))
    })
}

/// A change made to a node.
struct Damage {
    what: &'static str,
    commands: Vec<String>,
}

fn damages(whole: &Ours) -> Result<Vec<Damage>> {
    let damage = |what, commands: &[String]| Damage { what, commands: commands.to_vec() };
    let first = |lines: &[String], holds: &str| {
        let found = lines.iter().find(|line| line.contains(holds)).and_then(|line| line.split(' ').next());
        found.map(str::to_owned).with_context(|| format!("no line with {holds:?}"))
    };
    let (peer, pod) = (first(&whole.routes, DEVICE)?, first(&whole.routes, "dev tow")?);
    let neighbour = first(&whole.neighbours, "lladdr")?;
    let mac = first(&whole.forwarding, "dst")?;
    Ok(vec![
        damage("a route to a peer", &[format!("ip route del {peer} dev {DEVICE}")]),
        damage("a route to a pod", &[format!("ip route del {pod}")]),
        damage("a neighbour", &[format!("ip neigh del {neighbour} dev {DEVICE}")]),
        damage("an FDB entry", &[format!("bridge fdb del {mac} dev {DEVICE} self")]),
        damage("the device's MTU", &[format!("ip link set {DEVICE} mtu 1400")]),
        damage("the device that is down", &[format!("ip link set {DEVICE} down")]),
        damage("the device", &[format!("ip link del {DEVICE}")]),
    ])
}

fn repairs(cluster: &Cluster, node: &Node) -> Result<u64> {
    let report = status::object(cluster, &["networknode", &node.name()])?;
    report["status"]["drift"]["repairs"].as_u64().context("the NetworkNode counts no repairs")
}

/// A policy is in force, and nothing of a flood that it denies arrives, whatever is tried.
fn refused(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = cluster.node(&shared.client.node)?;
    let closed = json!({"podSelector": {"matchLabels": {"role": "client"}}, "policyTypes": ["Ingress"]});
    let flood = Flood::start(shared.far()?, &shared.client)?;
    flood.wait_open()?;
    pods::apply(&cluster, pods::SHARED, &[policy("shut", &closed)])?;
    let held = meddle(&cluster, &node, &flood);
    cluster.kubectl(&["delete", "networkpolicy", "shut", "-n", pods::SHARED])?;
    held?;
    flood.wait_open()
}

fn meddle(cluster: &Cluster, node: &Node, flood: &Flood) -> Result<()> {
    let passed = flood.wait_closed()?;
    let (whole, before) = (ours(node)?, repairs(cluster, node)?);
    let rule = kernel::rules(node, "prerouting")?.first().context("a rule against spoofing")?.0.clone();
    for change in [
        &format!("delete rule inet towpath prerouting handle {rule}"),
        "flush chain inet towpath to-pod",
        "flush map inet towpath to-pod",
        "add chain inet towpath theirs",
        "flush table inet towpath",
        "delete table inet towpath",
    ] {
        let said = node.exec_raw(&["nft", change])?;
        let words = String::from_utf8_lossy(&said.stderr);
        ensure!(words.contains("Operation not permitted"), "nft {change}: {} {words}", said.status);
        ensure!(ours(node)? == whole, "nft {change}: the objects changed");
    }
    flood.go_on(1000)?;
    ensure!(flood.arrived() == passed, "{} datagrams arrived that a policy forbids", flood.arrived() - passed);
    ensure!(repairs(cluster, node)? == before, "something was repaired");
    Ok(())
}

/// The table outlives its owner, and anybody can delete it then.
fn away(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n2")?;
    let whole = ours(&node)?;
    let agent = status::agent(&cluster, &node.name())?;
    node.exec(&["nft", "table inet theirs { chain quiet { type filter hook forward priority 10; }; }"])?;
    kill_agent(&node)?;
    let gone = wait_for("the agent to end", REPAIR, || {
        let said = node.exec_raw(&["nft", "delete", "table", "inet", "towpath"])?;
        Ok(said.status.success().then_some(()))
    });
    let back = gone.and_then(|()| status::wait_new_agent(&cluster, &node.name(), &agent));
    let table = node.exec(&["nft", "list", "table", "inet", "theirs"])?;
    node.exec(&["nft", "delete", "table", "inet", "theirs"])?;
    back?;
    ensure!(table.contains("chain quiet"), "the other table is deleted");
    wait_for("the rules", REPAIR, || Ok((ours(&node)? == whole).then_some(())))
}

fn foreign(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n2")?;
    node.exec(&["ip", "route", "replace", "198.51.100.0/24", "via", "172.30.0.254", "proto", "static"])?;
    let stayed = theirs_stay(&node);
    node.exec(&["ip", "route", "del", "198.51.100.0/24"])?;
    stayed
}

/// A repair must not remove others' routes.
fn theirs_stay(node: &Node) -> Result<()> {
    let whole = ours(node)?;
    node.exec(&["ip", "link", "del", DEVICE])?;
    wait_for("repair of the device", REPAIR, || Ok((ours(node)? == whole).then_some(())))?;
    let route = node.exec(&["ip", "route", "show", "198.51.100.0/24"])?;
    ensure!(route.contains("172.30.0.254"), "the other route is deleted");
    Ok(())
}
