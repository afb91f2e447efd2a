//! From the write of a NetworkPolicy to the end of an established connection that it denies, with many others around.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::background::Background;
use crate::metrics;
use crate::namespaces::Namespaces;
use crate::report::Table;
use crate::sample::Sample;
use crate::setup::NAMESPACE;

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies";
/// Port of the connections that are revoked.
const PORT: u16 = 9200;
/// Port of the flows that are allowed all the time, and the first of their own ports.
const FLOWS_PORT: u16 = 9201;
const FIRST: u16 = 20_000;
/// Flows that the node knows.
const FLOWS: u16 = 10_000;
const ROUNDS: usize = 30;
/// How long nothing arrives on a connection that is revoked.
const SILENCE: Duration = Duration::from_millis(300);
/// Time between two bytes.
const PACE: Duration = Duration::from_millis(1);
/// Time for everything else.
const BOUND: Duration = Duration::from_secs(30);

/// Has connections revoked, one after the other.
pub(crate) fn measure(background: &Background<'_>) -> Result<Table> {
    let node = background.node()?;
    let before = metrics::value(&node, metrics::REVOKED)?;
    let server = Namespaces::of_pod(background.cluster, NAMESPACE, "server")?;
    let client = Namespaces::of_pod(background.cluster, NAMESPACE, "client")?;
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", PORT)).context("listen in the server's pod"))?;
    let echo = server.run(|| UdpSocket::bind(("0.0.0.0", FLOWS_PORT)).context("answer in the server's pod"))?;
    background.api.create(POLICIES, &policy("open"))?;
    let stop = AtomicBool::new(false);
    let measured = thread::scope(|scope| {
        scope.spawn(|| answer(&echo, &stop));
        let outcome = rounds(background, &client, &listener);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    background.api.delete(&format!("{POLICIES}/revocation"))?;
    let (times, least) = measured?;
    let revoked = metrics::value(&node, metrics::REVOKED)? - before;
    let sample = Sample::of_millis(times).context("no runs")?;
    let header = ["connections on the node", "p50 ms", "p99 ms", "median (min–max)", "aim p99", "runs"];
    let mut table = Table::new("Revocation of an established connection that is denied", &header);
    table.row([
        format!("≥ {least}"),
        format!("{:.0}", sample.median()),
        format!("{:.0}", sample.percentile(99)),
        sample.spread(0),
        "≤ 1000".into(),
        sample.len().to_string(),
    ]);
    table.note(format!(
        "From the write's return to the last byte that arrives. The agent counts {revoked} revoked connections."
    ));
    Ok(table)
}

/// Times of all rounds, and how many connections the node knew at least.
fn rounds(background: &Background<'_>, client: &Namespaces, listener: &TcpListener) -> Result<(Vec<Duration>, u64)> {
    let mut least = u64::MAX;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        client.run(|| flows(background.server()))?;
        let known = background.node()?.exec(&["cat", "/proc/sys/net/netfilter/nf_conntrack_count"])?;
        least = least.min(known.trim().parse().context("the number of connections")?);
        times.push(round(background, client, listener)?);
    }
    Ok((times, least))
}

fn round(background: &Background<'_>, client: &Namespaces, listener: &TcpListener) -> Result<Duration> {
    let to = format!("{}:{PORT}", background.server()).parse().context("the server's address")?;
    let mut near = client.run(|| TcpStream::connect_timeout(&to, BOUND).context("connect to the server"))?;
    let (mut far, _) = listener.accept().context("accept")?;
    near.set_read_timeout(Some(SILENCE)).context("bound a read")?;
    far.set_nodelay(true).context("send at once")?;
    let mut lives = || -> Result<bool> {
        far.write_all(b"x").context("write to the connection")?;
        Ok(near.read(&mut [0]).is_ok_and(|count| count > 0))
    };
    ensure!(lives()?, "the connection is broken before it is denied");
    background.api.patch(&format!("{POLICIES}/revocation"), &policy("closed"))?;
    let written = Instant::now();
    let mut last = written;
    loop {
        let begun = Instant::now();
        if !lives()? {
            break;
        }
        last = begun;
        ensure!(written.elapsed() < BOUND, "the connection still works long after it was denied");
        // The pace of the bytes, not a wait for something.
        thread::sleep(PACE);
    }
    background.api.patch(&format!("{POLICIES}/revocation"), &policy("open"))?;
    Ok(last.saturating_duration_since(written))
}

/// Lets datagrams in, and connections too if it is open.
fn policy(state: &str) -> Value {
    let mut ports = vec![json!({"protocol": "UDP", "port": FLOWS_PORT})];
    if state == "open" {
        ports.push(json!({"protocol": "TCP", "port": PORT}));
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "revocation", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]},
    })
}

/// A question and an answer from each port, so that the node knows as many flows. Asked again where the policy that
/// allows it is not in force yet.
fn flows(server: &str) -> Result<()> {
    let end = Instant::now() + BOUND;
    for port in FIRST..FIRST + FLOWS {
        let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("open port {port}"))?;
        socket.set_read_timeout(Some(SILENCE)).context("bound a read")?;
        socket.connect((server, FLOWS_PORT)).context("find the way to the server")?;
        loop {
            socket.send(b"?").context("ask")?;
            match socket.recv(&mut [0; 1]) {
                Ok(_) => break,
                Err(error) if Instant::now() > end => {
                    return Err(error).with_context(|| format!("wait for the answer to port {port}, which is allowed"));
                }
                Err(_) => {}
            }
        }
    }
    Ok(())
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) {
    // So that the end is noticed when nobody asks any more.
    let _ = socket.set_read_timeout(Some(Duration::from_millis(100)));
    let mut byte = [0; 1];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut byte) {
            let _ = socket.send_to(&byte, from);
        }
    }
}
