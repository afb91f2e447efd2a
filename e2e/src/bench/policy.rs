//! From the write of a NetworkPolicy to its effect on packets.
//!
//! A pod sends numbered datagrams to another all the time. Nobody answers, so no connection is ever established, and
//! every datagram is judged anew: the first that arrives, or the last, tells when the policy took hold.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::api::Api;
use crate::ground::{NAMESPACE, Standing, clear, pod, start};
use crate::report::Table;
use crate::sample::Sample;
use crate::spot::Spot;

const PATH: &str = "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies/flip";
const PORT: u16 = 9000;
/// Policies beside the one that changes; all select the same pod.
const OTHERS: [usize; 2] = [0, 100];
/// Changes in each direction.
const FLIPS: usize = 100;
/// Time between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// How long nothing arrives when the way is closed: longer than a busy machine lets a thread wait.
const SILENCE: Duration = Duration::from_millis(150);
/// Time for a change to take hold.
const BOUND: Duration = Duration::from_secs(20);

/// A stream of datagrams: for each that arrives, when it was sent.
struct Stream<'a> {
    arrived: Receiver<Instant>,
    running: &'a AtomicBool,
}

/// Opens and closes the way again and again.
pub(crate) fn measure(cluster: &Standing) -> Result<Table> {
    let addresses = start(cluster, &[pod("client", "n2"), pod("server", "n1")])?;
    let server = Spot::of_pod(cluster, NAMESPACE, "server")?
        .run(|| UdpSocket::bind(("0.0.0.0", PORT)).context("listen in the server's pod"))?;
    let client = Spot::of_pod(cluster, NAMESPACE, "client")?
        .run(|| UdpSocket::bind("0.0.0.0:0").context("open a socket in the client's pod"))?;
    client.connect((addresses[1].as_str(), PORT)).context("find the way to the server")?;
    let api = Api::open(cluster)?;
    let running = AtomicBool::new(true);
    let origin = Instant::now();
    let (to, arrived) = channel();
    let table = thread::scope(|scope| {
        // Its end, whichever way this goes, ends the two threads.
        let stream = Stream { arrived, running: &running };
        scope.spawn(|| send(&client, origin, &running));
        scope.spawn(|| receive(&server, origin, &running, |sent| to.send(sent).is_ok()));
        flip_all(cluster, &api, &stream)
    })?;
    cluster.kubectl(&["delete", "networkpolicies", "--all", "-n", NAMESPACE])?;
    clear(cluster)?;
    Ok(table)
}

fn flip_all(cluster: &Standing, api: &Api, stream: &Stream<'_>) -> Result<Table> {
    let header = ["change", "other policies", "p50 ms", "p99 ms", "median (least–most)", "runs"];
    let mut table = Table::new("Policy, from the API write to its effect", &header);
    for others in OTHERS {
        let mut objects: Vec<Value> = (0..others).map(other).collect();
        objects.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "flip", "namespace": NAMESPACE},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": from("client")},
        }));
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        // A few changes before, so that all of the above has arrived.
        let (mut closed, mut opened) = (Vec::new(), Vec::new());
        for round in 0..FLIPS + 3 {
            let deny = Instant::now();
            api.patch(PATH, &json!({"spec": {"ingress": from("nobody")}}))?;
            let denied = stream.silence(deny)?;
            let allow = Instant::now();
            api.patch(PATH, &json!({"spec": {"ingress": from("client")}}))?;
            let allowed = stream.first_after(allow)?;
            if round >= 3 {
                closed.push(denied);
                opened.push(allowed);
            }
        }
        for (what, times) in [("allow → deny", closed), ("deny → allow", opened)] {
            let sample = Sample::of_millis(times).context("no runs")?;
            let (half, most) = (format!("{:.1}", sample.median()), format!("{:.1}", sample.percentile(99)));
            table.row([what.into(), others.to_string(), half, most, sample.spread(1), sample.len().to_string()]);
        }
    }
    table.note("A datagram every millisecond across nodes; the write itself is part of the time. The others select the same pod.");
    Ok(table)
}

/// Rules that let pods with a label in.
fn from(app: &str) -> Value {
    json!([{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}])
}

/// One more policy for the server, of a peer that does not exist.
fn other(index: usize) -> Value {
    let port = 10_000 + index;
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("other-{index}"), "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": format!("peer-{index}")}}}],
            "ports": [{"protocol": "TCP", "port": port}],
        }]},
    })
}

/// Sends the time since `origin`, again and again.
fn send(socket: &UdpSocket, origin: Instant, running: &AtomicBool) {
    while running.load(Ordering::Relaxed) {
        let nanos = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Refused by a rule on the way: that is what is looked for.
        let _ = socket.send(&nanos.to_be_bytes());
        // The pace of the datagrams, not a wait for something.
        thread::sleep(PACE);
    }
}

fn receive(socket: &UdpSocket, origin: Instant, running: &AtomicBool, arrived: impl Fn(Instant) -> bool) {
    let mut bytes = [0; 8];
    // So that the end is noticed when nothing arrives any more.
    let _ = socket.set_read_timeout(Some(Duration::from_millis(100)));
    while running.load(Ordering::Relaxed) {
        if socket.recv(&mut bytes).is_ok() && !arrived(origin + Duration::from_nanos(u64::from_be_bytes(bytes))) {
            return;
        }
    }
}

impl Stream<'_> {
    /// Waits until nothing arrives any more. Gives the time from `start` until the last was sent.
    fn silence(&self, start: Instant) -> Result<Duration> {
        let mut last = start;
        while let Ok(sent) = self.arrived.recv_timeout(SILENCE) {
            last = last.max(sent);
            if start.elapsed() > BOUND {
                bail!("the way is still open {} s after it was closed", BOUND.as_secs());
            }
        }
        Ok(last.saturating_duration_since(start))
    }

    /// Waits for the first that was sent after `start`. Gives the time until then.
    fn first_after(&self, start: Instant) -> Result<Duration> {
        loop {
            let left = BOUND.saturating_sub(start.elapsed());
            let sent = self.arrived.recv_timeout(left).context("the way is still closed long after it was opened")?;
            if sent > start {
                return Ok(sent.saturating_duration_since(start));
            }
        }
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
    }
}
