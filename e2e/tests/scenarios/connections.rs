//! Connections that are established when a policy changes or a pod ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use towpath_e2e::cluster::Cluster;
use towpath_e2e::deploy;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::pods::{self, Pod, START};
use crate::policy::policy;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "an established connection is revoked within a second when a policy denies it, and one that is allowed continues",
        run: denied,
    },
    Scenario { name: "with onChange: Keep an established connection outlives the policy that denies it", run: kept },
    Scenario { name: "a pod that goes leaves no connection behind with its address", run: inherited },
];

/// Ports of servers that the scenarios open themselves: one that policies deny, one that they allow.
const CLOSED: u16 = 7100;
const OPEN: u16 = 7101;
/// Time limit of a revocation, from the return of the write.
const BOUND: Duration = Duration::from_secs(1);
/// How long nothing arrives on a revoked connection: longer than a busy machine lets a packet wait.
const SILENCE: Duration = Duration::from_millis(500);

/// Both ends of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(client: &Pod, server: &Pod, port: u16) -> Result<Self> {
        let to = server.at(port);
        let listener = server.inside(|| TcpListener::bind(to).context("listen in the server's pod"))?;
        let client =
            client.inside(|| TcpStream::connect_timeout(&to, START).context("connect from the client's pod"))?;
        let (server, _) = listener.accept().context("accept")?;
        for end in [&client, &server] {
            end.set_nodelay(true).context("send at once")?;
            end.set_read_timeout(Some(SILENCE)).context("bound a read")?;
        }
        Ok(Self { client, server })
    }

    /// Sends a byte from the server, which no policy forbids, and one back. Whether either arrives in time.
    fn works(&mut self) -> Result<bool> {
        self.server.write_all(b"a").context("write at the server")?;
        self.client.write_all(b"q").context("write at the client")?;
        let mut byte = [0];
        let arrived = [self.client.read(&mut byte), self.server.read(&mut byte)];
        Ok(arrived.iter().any(|read| read.as_ref().is_ok_and(|count| *count > 0)))
    }

    /// Waits until nothing arrives any more. Returns when the last byte that arrived was sent.
    fn last_byte(&mut self) -> Result<Instant> {
        let start = Instant::now();
        let mut last = start;
        loop {
            let begun = Instant::now();
            if !self.works()? {
                return Ok(last);
            }
            last = begun;
            ensure!(start.elapsed() < START, "the connection still works long after it was denied");
        }
    }
}

fn cast(cluster: &Cluster, namespace: &str) -> Result<[Pod; 3]> {
    let wanted = [
        pods::pod("server", "server", "n1", &pods::server()),
        pods::pod("near", "client", "n1", &pods::client()),
        pods::pod("far", "client", "n2", &pods::client()),
    ];
    pods::start(cluster, namespace, &wanted)?.try_into().map_err(|_| anyhow!("three pods"))
}

/// Allows everybody, but on one port only.
fn close(cluster: &Cluster, namespace: &str) -> Result<()> {
    let open = json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{"ports": [{"protocol": "TCP", "port": OPEN}]}],
    });
    pods::apply(cluster, namespace, &[policy("open", &open)])
}

fn denied(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    pods::with_namespace(&cluster, "revoked", |namespace| {
        let [server, near, far] = cast(&cluster, namespace)?;
        for client in [&near, &far] {
            let mut denied = Connection::open(client, &server, CLOSED)?;
            let mut allowed = Connection::open(client, &server, OPEN)?;
            ensure!(denied.works()? && allowed.works()?, "no connection from {} without a policy", client.name);
            close(&cluster, namespace)?;
            let written = Instant::now();
            let took = denied.last_byte()?.saturating_duration_since(written);
            ensure!(took <= BOUND, "the connection from {} worked for {} ms", client.name, took.as_millis());
            ensure!(allowed.works()?, "the connection from {} that is allowed ended", client.name);
            cluster.kubectl(&["delete", "networkpolicy", "open", "-n", namespace])?;
            wait_for("the connection that is allowed again", START, || Ok(denied.works()?.then_some(())))?;
        }
        Ok(())
    })
}

fn kept(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    configure(&cluster, r#"{"spec":{"policy":{"onChange":"Keep"}}}"#)?;
    let outcome = pods::with_namespace(&cluster, "kept", |namespace| {
        let [server, near, _] = cast(&cluster, namespace)?;
        let mut connection = Connection::open(&near, &server, CLOSED)?;
        ensure!(connection.works()?, "no connection without a policy");
        close(&cluster, namespace)?;
        wait_for("new connections to be denied", START, || {
            let to = server.at(CLOSED);
            let _listener = server.inside(|| TcpListener::bind(to).context("listen"))?;
            let refused = near.inside(|| Ok(TcpStream::connect_timeout(&to, SILENCE).is_err()))?;
            Ok(refused.then_some(()))
        })?;
        let end = Instant::now() + 2 * BOUND;
        while Instant::now() < end {
            ensure!(connection.works()?, "it was revoked");
        }
        Ok(())
    });
    configure(&cluster, r#"{"spec":{"policy":null}}"#)?;
    outcome
}

fn configure(cluster: &Cluster, patch: &str) -> Result<()> {
    cluster.kubectl(&["patch", "networkconfig", "default", "--type=merge", "-p", patch])?;
    deploy::wait_ready(cluster, READY)
}

/// The conntrack entries are listed, because the next pod's address cannot be chosen.
fn inherited(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    pods::with_namespace(&cluster, "heirs", |namespace| {
        let [server, near, _] = cast(&cluster, namespace)?;
        let (node, address) = (cluster.node("n1")?, format!("={} ", server.ip));
        let known = || node.exec(&["cat", "/proc/net/nf_conntrack"]).map(|list| list.matches(&address).count());
        let mut connection = Connection::open(&near, &server, CLOSED)?;
        ensure!(connection.works()? && known()? > 0, "the kernel has no entry of the connection");
        cluster.kubectl(&["delete", "pod", "server", "-n", namespace, "--wait=true"])?;
        wait_for("conntrack without entries of the pod", START, || Ok((known()? == 0).then_some(())))
    })
}
