//! Foreign changes to a node's rules under a flood of forbidden packets: how many of them pass, and for how long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::background::Background;
use crate::report::Table;
use crate::sample::Sample;
use crate::setup::NAMESPACE;
use crate::stream::with_stream;

const ROUNDS: usize = 10;
/// Time between two datagrams.
const PACE: Duration = Duration::from_micros(100);
/// Time for a repair.
const REPAIR: Duration = Duration::from_secs(30);
const POLICY_PATH: &str = "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies";

/// Makes each change several times under the flood.
pub(crate) fn measure(background: &mut Background<'_>) -> Result<Table> {
    let node = background.node()?;
    let closed = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]},
    });
    let header = ["change", "accepted by nft", "datagrams that passed", "for ms (min–max)", "aim", "runs"];
    let mut table = Table::new("Foreign changes to the rules under a flood of forbidden packets", &header);
    let map = "delete element inet towpath to-pod";
    with_stream(background.cluster, background.server(), PACE, |stream| {
        background.api.create(POLICY_PATH, &closed)?;
        stream.silence(Instant::now())?;
        let (element, whole) = (element(&node, background.server())?, table_of(&node)?);
        for damage in [
            &format!("{map} {{ {element} }}"),
            "flush chain inet towpath prerouting",
            "flush table inet towpath",
            "delete table inet towpath",
            "flush ruleset",
        ] {
            let (mut yes, mut passed, mut times) = (0, 0, Vec::new());
            for _ in 0..ROUNDS {
                let start = Instant::now();
                yes += usize::from(node.exec_raw(&["nft", damage])?.status.success());
                let through = stream.until_silence(start)?;
                passed += through.len();
                // A change may be repaired after the flood has stopped.
                wait_for("repair of the table", REPAIR, || Ok((table_of(&node)? == whole).then_some(())))?;
                times.push(through.first().zip(through.last()).map_or(Duration::ZERO, |(first, last)| *last - *first));
            }
            let spread = Sample::of_millis(times).context("no runs")?.spread(1);
            let said = format!("{yes} of {ROUNDS}");
            table.row([
                format!("nft {damage}"),
                said,
                passed.to_string(),
                spread,
                "0, at most 50 ms".into(),
                ROUNDS.to_string(),
            ]);
        }
        Ok(())
    })?;
    background.api.delete(&format!("{POLICY_PATH}/closed"))?;
    table.note("A datagram every tenth of a millisecond, or as fast as the machine can. nft flush ruleset succeeds even where the kernel skips a table that has an owner.");
    Ok(table)
}

/// The table as nft lists it; empty where there is none.
fn table_of(node: &Node) -> Result<String> {
    let said = node.exec_raw(&["nft", "-s", "list", "table", "inet", "towpath"])?;
    Ok(if said.status.success() { String::from_utf8(said.stdout)? } else { String::new() })
}

/// The element of the dispatch to the pod with this address: `"interface" : verdict chain`.
fn element(node: &Node, address: &str) -> Result<String> {
    let route = node.exec(&["ip", "-oneline", "route", "get", address])?;
    let interface =
        route.split_once(" dev ").and_then(|(_, rest)| rest.split(' ').next()).context("the pod's interface")?;
    Ok(format!("\"{interface}\""))
}
