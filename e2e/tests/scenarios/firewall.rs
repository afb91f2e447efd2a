//! Foreign firewalls: tables of others that drop the pods' traffic are found, reported, and left alone.

use anyhow::{Result, ensure};
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::pods::{HTTP, SharedPods};
use crate::status::{self, SHOWN};
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "a foreign chain that drops forwarded traffic makes its node not Ready, with a remedy, until it is removed",
    run: forward_drop,
}];

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

fn nft(node: &Node, command: &str) -> Result<()> {
    node.exec(&["nft", command]).map(drop)
}
