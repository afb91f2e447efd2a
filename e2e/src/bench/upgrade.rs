//! An upgrade from another release under traffic: lost packets, gaps in TCP streams, revoked connections.
//!
//! The other release is the image and the install bundle of another checkout, so that CRDs, operator and agents are
//! upgraded together, as a user does it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use towpath_e2e::deploy;
use towpath_e2e::image::Release;
use towpath_e2e::node::Node;

use crate::metrics;
use crate::namespaces::Namespaces;
use crate::report::Table;
use crate::setup::{BenchCluster, CONFIG, NAMESPACE, Setup, pod, start};
use crate::traffic::{Datagrams, Handshakes, Ping, TcpStream};

/// Traffic before and after the upgrade.
const MARGIN: Duration = Duration::from_secs(5);
/// Time for the rollout.
const BOUND: Duration = Duration::from_secs(180);
/// Mark of a connection that a policy denies: see `towpath_core::connection`.
const REVOKED_MARK: u32 = 0x0040_0000;

/// Everything that runs between one client and one server.
struct Path {
    name: &'static str,
    ping: Ping,
    stream: TcpStream,
    handshakes: Handshakes,
    forbidden: Datagrams,
}

/// Installs `from`, starts traffic, upgrades to the release of this checkout, and counts what was lost.
pub(crate) fn measure(setup: &Setup, cluster: &BenchCluster, from: &Release) -> Result<Table> {
    deploy::deploy(cluster, from, &setup.site.root().join(CONFIG))?;
    let pods = [pod("client", "n1"), pod("stranger", "n3"), pod("near", "n1"), pod("far", "n2")];
    let addresses = start(cluster, &pods)?;
    cluster.apply(&policy().to_string())?;
    let [_, _, near, far] = addresses.as_slice() else { anyhow::bail!("four pods have {addresses:?}") };
    let mut paths = [
        Path::start(cluster, "pods of one node", "near", near)?,
        Path::start(cluster, "pods of two nodes", "far", far)?,
    ];
    // Not a wait for something: traffic without an upgrade, so that what is lost later was not lost all along.
    thread::sleep(MARGIN);
    cluster.progress().step("upgrading");
    let begin = Instant::now();
    setup.install(cluster)?;
    deploy::wait_ready(cluster, BOUND)?;
    let took = begin.elapsed();
    thread::sleep(MARGIN);
    let mut table = Table::new(
        "Upgrade under traffic",
        &[
            "between",
            "pings lost",
            "longest gap ms",
            "TCP stream",
            "longest gap ms",
            "new connections that failed",
            "forbidden datagrams that arrived",
        ],
    );
    for path in &mut paths {
        table.row(path.finish()?);
    }
    table.note(format!("From {} to {}.", from.content_name, setup.release().content_name));
    table.note(format!(
        "From kubectl apply of the bundle to Ready with every agent replaced: {:.1} s.",
        took.as_secs_f64()
    ));
    let revoked = cluster.nodes().iter().map(revoked).collect::<Result<Vec<_>>>()?;
    table.note(format!("Connections revoked, by node: {}. Aim: 0.", revoked.join("; ")));
    table.note(format!(
        "Pings and datagrams at most {} per second each, new connections at most {}. Aim: no ping, segment or connection lost, no \
         forbidden datagram. A retransmitted segment is late, and not lost, if the receiver had it already.",
        per_second(Ping::PACE),
        per_second(Handshakes::PACE),
    ));
    Ok(table)
}

fn per_second(pace: Duration) -> u128 {
    Duration::from_secs(1).as_nanos() / pace.as_nanos()
}

/// Lets the client in, and nobody else.
fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "only-client", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["near", "far"]}]},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        },
    })
}

/// What the agent and the kernel of a node count as revoked.
fn revoked(node: &Node) -> Result<String> {
    let counted = metrics::value(node, metrics::REVOKED)?;
    let entries = node.exec(&["cat", "/proc/net/nf_conntrack"])?;
    let mark = |line: &str| line.split(' ').find_map(|field| field.strip_prefix("mark=")?.parse::<u32>().ok());
    let marked = entries.lines().filter_map(mark).filter(|mark| mark & REVOKED_MARK != 0).count();
    Ok(format!("{} {counted} by the agent's counter, {marked} marked in the kernel", node.name()))
}

impl Path {
    fn start(cluster: &BenchCluster, name: &'static str, server: &str, address: &str) -> Result<Self> {
        let namespaces = |pod: &str| Namespaces::of_pod(cluster, NAMESPACE, pod);
        let (client, stranger, server) = (namespaces("client")?, namespaces("stranger")?, namespaces(server)?);
        let forbidden = Datagrams::start(&stranger, &server, address)?;
        // The policy is in force once nothing of the stranger arrives any more.
        forbidden.wait_closed()?;
        Ok(Self {
            name,
            ping: Ping::start(&client, address)?,
            stream: TcpStream::start(client.try_clone()?, &server, address)?,
            handshakes: Handshakes::start(client, &server, address)?,
            forbidden,
        })
    }

    fn finish(&mut self) -> Result<[String; 7]> {
        let ping = self.ping.finish().with_context(|| format!("ping between {}", self.name))?;
        let stream = self.stream.finish().with_context(|| format!("stream between {}", self.name))?;
        let handshakes = self.handshakes.finish()?;
        Ok([
            self.name.into(),
            format!("{} of {}", ping.lost, ping.sent),
            ping.longest_gap.as_millis().to_string(),
            stream.state,
            stream.longest_gap.as_millis().to_string(),
            handshakes,
            self.forbidden.finish(),
        ])
    }
}
