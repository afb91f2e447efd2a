//! A flood of datagrams from one pod to another, each with its number, and a count of those that arrive.
//!
//! Nobody answers, so no connection is ever established: policies apply to every datagram, and one that arrives was
//! allowed.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use towpath_e2e::wait::wait_for;

use crate::pods::Pod;

/// Port of the counting socket in the receiving pod.
pub(crate) const PORT: u16 = 7777;
/// Time between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// Time until some more were sent or have arrived.
const BOUND: Duration = Duration::from_secs(15);

/// A running flood, which ends when this value is dropped.
pub(crate) struct Flood {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    arrived: AtomicU64,
}

impl Flood {
    /// Starts it.
    pub(crate) fn start(from: &Pod, to: &Pod) -> Result<Self> {
        let receiver = to.inside(|| {
            let socket = UdpSocket::bind(SocketAddr::new(to.ip, PORT)).context("listen for the flood")?;
            // So that the end is noticed when nothing arrives.
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        })?;
        let sender = from.inside(|| {
            let socket = UdpSocket::bind(SocketAddr::new(from.ip, 0)).context("open the flood's socket")?;
            socket.connect(to.at(PORT))?;
            Ok(socket)
        })?;
        let shared = Arc::new(Shared::default());
        let (ours, theirs) = (Arc::clone(&shared), Arc::clone(&shared));
        let send = thread::spawn(move || ours.send(&sender));
        let receive = thread::spawn(move || theirs.receive(&receiver));
        Ok(Self { shared, threads: vec![send, receive] })
    }

    /// How many have arrived since the start.
    pub(crate) fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// How many were sent since the start.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more were sent.
    pub(crate) fn go_on(&self, more: u64) -> Result<()> {
        let target = self.sent() + more;
        wait_for(&format!("{more} more datagrams"), BOUND, || Ok((self.sent() >= target).then_some(())))
    }

    /// Waits until it arrives: a count of zero proves something only where it would arrive otherwise.
    pub(crate) fn wait_open(&self) -> Result<()> {
        let target = self.arrived() + 10;
        wait_for("a flood that arrives", BOUND, || Ok((self.arrived() >= target).then_some(())))
    }

    /// Waits until 300 in a row did not arrive. Returns how many have arrived until then.
    pub(crate) fn wait_closed(&self) -> Result<u64> {
        let (mut arrived, mut since) = (self.arrived(), self.sent());
        wait_for("a flood that does not arrive", BOUND, || {
            let (now, sent) = (self.arrived(), self.sent());
            if now != arrived {
                (arrived, since) = (now, sent);
            }
            Ok((sent >= since + 300).then_some(arrived))
        })
    }
}

impl Shared {
    fn send(&self, socket: &UdpSocket) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.sent.fetch_add(1, Ordering::Relaxed);
            // A rule may reject it: that is what is measured.
            let _ = socket.send(&number.to_be_bytes());
            // The pace of the datagrams, not a wait for something.
            thread::sleep(PACE);
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        while !self.stop.load(Ordering::Relaxed) {
            if socket.recv(&mut [0; 8]).is_ok() {
                self.arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Neither thread can panic; a failed scenario has its own error.
            let _ = thread.join();
        }
    }
}
