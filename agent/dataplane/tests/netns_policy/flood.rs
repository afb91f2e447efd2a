//! Sends new connections to `web` at a high rate and records the packets that pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::Socket;
use towpath_core::model::Family;
use towpath_podlink::netns::Netns;

use crate::{
    cluster::{TestEndpoint, endpoint},
    probe::{Probe, ProbeOutcome},
    testbed::Testbed,
};

/// The destination port of the flood.
pub(crate) const PORT: u16 = 5000;
/// Time between two packets of one sender: some 2,000 connections per second.
const INTERVAL: Duration = Duration::from_micros(400);
/// The most packets per sender and family. Each has its own source port, and all fit in the conntrack table.
const MAX_PACKETS: u16 = 12_000;
const FIRST_PORT: u16 = 40_000;

/// Counts the generations of the policies: the last started one and the last committed one.
#[derive(Default)]
pub(crate) struct Clock {
    started: AtomicU64,
    committed: AtomicU64,
}

impl Clock {
    /// Call before any rule of this generation can be in force.
    pub(crate) fn start(&self, generation: u64) {
        self.started.store(generation, Ordering::SeqCst);
    }

    /// Call when no rule of the previous generation is in force.
    pub(crate) fn commit(&self, generation: u64) {
        self.committed.store(generation, Ordering::SeqCst);
    }
}

/// A packet that passed.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: &'static str,
    pub(crate) family: Family,
    /// The source port, which identifies the packet of its sender.
    pub(crate) port: u16,
    /// The last generation that was committed when it was sent.
    pub(crate) sent_in: u64,
    /// The last generation that was started when it was received.
    pub(crate) received_in: u64,
    pub(crate) at: Instant,
}

/// The result of a flood.
pub(crate) struct Flood<T> {
    pub(crate) result: T,
    pub(crate) arrivals: Vec<Arrival>,
    /// The number of packets sent, by sender.
    pub(crate) sent: BTreeMap<&'static str, usize>,
}

impl<T> Flood<T> {
    /// The number of packets received from a sender.
    pub(crate) fn received_from(&self, name: &str) -> usize {
        self.arrivals.iter().filter(|arrival| arrival.from == name).count()
    }

    /// Asserts that every packet of a sender was received.
    pub(crate) fn assert_all_received(&self, name: &str) {
        assert!(self.sent[name] > 0, "the flood was sent");
        let arrivals = self.arrivals.iter().filter(|arrival| arrival.from == name);
        let received: BTreeSet<_> = arrivals.map(|arrival| (arrival.port, arrival.family)).collect();
        let ports = (FIRST_PORT..).take(self.sent[name] / Family::ALL.len());
        let sent = ports.flat_map(|port| Family::ALL.map(|family| (port, family)));
        let lost: Vec<_> = sent.filter(|packet| !received.contains(packet)).collect();
        assert!(lost.is_empty(), "always allowed, but of {} packets these were dropped: {lost:?}", self.sent[name]);
    }
}

/// Stops the flood's threads when it is dropped.
struct StopOnDrop<'a>([&'a AtomicBool; 2]);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::SeqCst));
    }
}

/// Floods `web` from these endpoints over both families while `during` runs. `allowed` is one of them whose packets
/// pass at the start.
pub(crate) fn flood<T>(
    testbed: &mut Testbed,
    from: &[&'static str],
    allowed: &str,
    clock: &Clock,
    during: impl FnOnce(&mut Testbed) -> T,
) -> Flood<T> {
    // A new link resolves no IPv6 neighbour for a second, and packets beyond the neighbour's queue are lost.
    let first = Family::ALL.map(|family| (Probe::new(family, allowed, "web", "icmp"), ProbeOutcome::Passed));
    assert_eq!(testbed.probe(&first), [ProbeOutcome::Passed; 2]);
    let receivers = Family::ALL.map(|family| {
        let socket = testbed
            .namespace_of(endpoint("web"))
            .run(|| UdpSocket::bind((endpoint("web").address(family), PORT)).unwrap());
        Socket::from(socket.try_clone().unwrap()).set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    });
    let namespaces: Vec<_> =
        from.iter().map(|name| Netns::open(&testbed.namespace_of(endpoint(name)).path()).unwrap()).collect();
    let (stop, all_sent) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        // Stops the threads even if `during` panics: the scope joins them.
        let stop_all = StopOnDrop([stop, all_sent]);
        let receivers = receivers.each_ref().map(|socket| scope.spawn(|| receive(socket, from, clock, all_sent)));
        let senders: Vec<_> = from
            .iter()
            .zip(&namespaces)
            .map(|(name, namespace)| {
                (*name, scope.spawn(|| namespace.run(|| send(endpoint(name), clock, stop)).unwrap()))
            })
            .collect();
        let result = during(testbed);
        stop.store(true, Ordering::SeqCst);
        let sent: BTreeMap<_, _> = senders.into_iter().map(|(name, thread)| (name, thread.join().unwrap())).collect();
        drop(stop_all);
        let arrivals: Vec<Arrival> = receivers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        Flood { result, arrivals, sent }
    })
}

fn send(from: &TestEndpoint, clock: &Clock, stop: &AtomicBool) -> usize {
    let name = from.name.as_bytes();
    let mut sent = 0;
    for port in FIRST_PORT..FIRST_PORT + MAX_PACKETS {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        for family in Family::ALL {
            let socket = UdpSocket::bind((from.address(family), port)).unwrap();
            let mut packet = clock.committed.load(Ordering::SeqCst).to_be_bytes().to_vec();
            packet.extend(name);
            socket.send_to(&packet, SocketAddr::new(endpoint("web").address(family), PORT)).unwrap();
            sent += 1;
        }
        // Limits the rate.
        thread::sleep(INTERVAL);
    }
    sent
}

/// Receives until all packets were sent and no more arrive.
fn receive(socket: &UdpSocket, from: &[&'static str], clock: &Clock, all_sent: &AtomicBool) -> Vec<Arrival> {
    let (mut arrivals, mut packet) = (Vec::new(), [0; 64]);
    loop {
        let was_all_sent = all_sent.load(Ordering::SeqCst);
        match socket.recv_from(&mut packet) {
            Ok((length, sender)) => {
                let (sent, name) = packet[..length].split_at(8);
                let name = from.iter().find(|from| from.as_bytes() == name).unwrap();
                arrivals.push(Arrival {
                    from: name,
                    family: Family::of(sender.ip()),
                    port: sender.port(),
                    sent_in: u64::from_be_bytes(sent.try_into().unwrap()),
                    received_in: clock.started.load(Ordering::SeqCst),
                    at: Instant::now(),
                });
            }
            Err(_) if was_all_sent => return arrivals,
            Err(_) => {}
        }
    }
}
