//! Foreign firewalls: tables of others that drop the pods' traffic are found, reported, and left alone. And the agent's
//! command that prints the table of Towpath.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::pods::{HTTP, SharedPods};
use crate::status::{self, SHOWN};
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a foreign chain that drops forwarded traffic makes its node not Ready, with a remedy, until it is removed",
        run: forward_drop,
    },
    Scenario {
        name: "the remedy for a foreign chain that drops forwarded traffic makes its node Ready",
        run: remedied,
    },
    Scenario { name: "the agent prints the table of its node as text and in the schema of nft -j", run: printed },
];

/// A table as a firewall manager might load it.
const TABLE: &str = "inet blocker";

fn forward_drop(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = cluster.node(&shared.client.node)?;
    let probe = |want, why| {
        let to = shared.far()?.at(HTTP);
        traffic::expect(why, &[Probe { from: &shared.client, to, by: Protocol::Tcp, want, why }])
    };
    probe(Answer::Open, "no foreign firewall")?;
    nft(&node, &format!("add table {TABLE}"))?;
    nft(&node, &format!("add chain {TABLE} forward {{ type filter hook forward priority 10; policy drop; }}"))?;
    let found = (|| {
        probe(Answer::Closed, "a foreign chain drops what is forwarded")?;
        let name = node.name();
        let object = ["networknode", name.as_str()];
        let ready = status::wait_condition(&cluster, &object, "Ready", ("False", "ForeignFirewall"))?;
        ensure!(ready.message.contains("blocker"), "the condition does not name the table: {}", ready.message);
        let finding = status::object(&cluster, &object)?["status"]["findings"][0].clone();
        let remedy = finding["remedy"].as_str().unwrap_or_default();
        ensure!(finding["name"] == "ForeignFirewall" && !remedy.is_empty(), "the finding is {finding}");
        wait_for("a NetworkConfig that is not Ready and names the node", SHOWN, || {
            let ready = status::condition(&status::config(&cluster)?, "Ready");
            Ok((ready.status == "False" && ready.message.contains(&name)).then_some(()))
        })?;
        ensure!(node.exec(&["nft", "list", "tables"])?.contains(TABLE), "the foreign table was removed");
        Ok(())
    })();
    nft(&node, &format!("delete table {TABLE}"))?;
    found?;
    status::wait_ready(&cluster, cluster.nodes().len(), READY)?;
    probe(Answer::Open, "the foreign firewall is removed")
}

/// As Docker leaves the node: a chain of iptables with policy drop.
fn remedied(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = cluster.node(&shared.client.node)?;
    let object = ["networknode", &shared.client.node];
    let probes = |want, why| {
        let probe = |to| Probe { from: &shared.client, to, by: Protocol::Tcp, want, why };
        traffic::expect(why, &[probe(shared.far()?.at(HTTP)), probe(shared.near()?.at(HTTP))])
    };
    nft(&node, "add table ip filter")?;
    let outcome = (|| {
        nft(&node, "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")?;
        probes(Answer::Closed, "policy drop, to the same node and to another one")?;
        let ready = status::wait_condition(&cluster, &object, "Ready", ("False", "ForeignFirewall"))?;
        let remedy = "iptables -I FORWARD -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT";
        ensure!(ready.message.contains(remedy), "the remedy is not {remedy:?}: {}", ready.message);
        // What that command makes of the chain.
        nft(&node, "insert rule ip filter FORWARD ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 counter accept")?;
        probes(Answer::Open, "pod traffic is accepted")?;
        status::wait_condition(&cluster, &object, "Ready", ("True", "DataPathReady")).map(drop)
    })();
    nft(&node, "delete table ip filter")?;
    outcome?;
    status::wait_ready(&cluster, cluster.nodes().len(), READY)
}

fn printed(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n1")?;
    let agent = status::agent(&cluster, &node.name())?;
    let agent = agent["metadata"]["name"].as_str().context("a pod without a name")?;
    let words = ["-n", status::NAMESPACE, "exec", agent, "--", "towpath-agent", "ruleset"];
    let text = cluster.kubectl(&words)?;
    ensure!(text.starts_with("add table inet towpath\n"), "not a script: {text}");
    let parse = |text: &str| serde_json::from_str::<Value>(text).context("parse a document of nft");
    let printed = objects(&parse(&cluster.kubectl(&[&words[..], &["-o", "json"]].concat())?)?);
    let listed = objects(&parse(&node.exec(&["nft", "-j", "list", "table", "inet", "towpath"])?)?);
    ensure!(printed == listed, "the agent prints {printed:?}, nft {listed:?}");
    Ok(())
}

/// The objects of a document by kind, name and chain, sorted.
fn objects(document: &Value) -> Vec<String> {
    let objects = document["nftables"].as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
    let name = |(kind, object): (&String, &Value)| format!("{kind} {} {}", object["name"], object["chain"]);
    let mut all: Vec<String> = objects.map(name).collect();
    all.sort();
    all
}

fn nft(node: &Node, command: &str) -> Result<()> {
    node.exec(&["nft", command]).map(drop)
}
