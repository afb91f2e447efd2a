//! A steady stream of numbered datagrams from one pod to another.
//!
//! Nobody answers, so no connection is ever established, and policies apply to every datagram: the first that
//! arrives, or the last, shows when a policy was in force.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespaces::Namespaces;
use crate::setup::{BenchCluster, NAMESPACE};

/// Where the receiving pod listens.
const PORT: u16 = 9000;
/// How long nothing arrives when a policy denies the stream: longer than a busy machine lets a thread wait.
const SILENCE: Duration = Duration::from_millis(150);
/// Time for a change to be in force.
const BOUND: Duration = Duration::from_secs(30);

/// A running stream: for each datagram that arrives, when it was sent.
pub(crate) struct Stream<'a> {
    arrived: Receiver<Instant>,
    running: &'a AtomicBool,
}

/// Runs `act` while a datagram goes from the pod `client` to the pod `server`, which has this address, at each `pace`.
pub(crate) fn with_stream<T>(
    cluster: &BenchCluster,
    address: &str,
    pace: Duration,
    act: impl FnOnce(&Stream<'_>) -> Result<T>,
) -> Result<T> {
    let server = Namespaces::of_pod(cluster, NAMESPACE, "server")?
        .run(|| UdpSocket::bind(("0.0.0.0", PORT)).context("listen in the server's pod"))?;
    let client = Namespaces::of_pod(cluster, NAMESPACE, "client")?
        .run(|| UdpSocket::bind("0.0.0.0:0").context("open a socket in the client's pod"))?;
    client.connect((address, PORT)).context("find the route to the server")?;
    let running = AtomicBool::new(true);
    let origin = Instant::now();
    let (to, arrived) = channel();
    thread::scope(|scope| {
        // Dropping it ends the two threads, also on failure.
        let stream = Stream { arrived, running: &running };
        scope.spawn(|| send(&client, origin, pace, &running));
        scope.spawn(|| receive(&server, origin, &running, |sent| to.send(sent).is_ok()));
        act(&stream)
    })
}

/// Sends the time since `origin`, again and again.
fn send(socket: &UdpSocket, origin: Instant, pace: Duration, running: &AtomicBool) {
    while running.load(Ordering::Relaxed) {
        let nanos = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // A rule may reject it: that is what is measured.
        let _ = socket.send(&nanos.to_be_bytes());
        // The pace of the datagrams, not a wait for something.
        thread::sleep(pace);
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
    /// Waits until nothing arrives any more. Returns when the last was sent that arrived after `start`, if any did.
    pub(crate) fn silence(&self, start: Instant) -> Result<Option<Instant>> {
        Ok(self.until_silence(start)?.last().copied())
    }

    /// The same, with all that were sent from `start` on.
    pub(crate) fn until_silence(&self, start: Instant) -> Result<Vec<Instant>> {
        let mut all = Vec::new();
        while let Ok(sent) = self.arrived.recv_timeout(SILENCE) {
            if sent >= start {
                all.push(sent);
            }
            if start.elapsed() > BOUND {
                bail!("datagrams still arrive {} s after they were denied", BOUND.as_secs());
            }
        }
        all.sort();
        Ok(all)
    }

    /// Waits for the first that was sent after `start`, and returns when that was.
    pub(crate) fn first_after(&self, start: Instant) -> Result<Instant> {
        loop {
            let left = BOUND.saturating_sub(start.elapsed());
            let sent = self.arrived.recv_timeout(left).context("no datagram arrives long after they were allowed")?;
            if sent > start {
                return Ok(sent);
            }
        }
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
    }
}
