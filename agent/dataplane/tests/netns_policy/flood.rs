//! A flood of first packets of connections to `web`, and a record of those that got through.

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
    cluster::{Party, who},
    probe::{Fate, Probe},
    world::World,
};

/// Where the flood goes.
pub(crate) const PORT: u16 = 5000;
/// Between two packets of one sender: some two thousand connections in a second.
const PACE: Duration = Duration::from_micros(400);
/// The most that one sender sends: each from a port of its own, and all of them fit in connection tracking.
const MOST: u16 = 12_000;
const FIRST_PORT: u16 = 40_000;

/// Counts the generations of the policies.
#[derive(Default)]
pub(crate) struct Clock {
    begun: AtomicU64,
    committed: AtomicU64,
}

impl Clock {
    /// To be called before anything of this generation can hold.
    pub(crate) fn begins(&self, generation: u64) {
        self.begun.store(generation, Ordering::SeqCst);
    }

    /// To be called when nothing of the generation before can hold any more.
    pub(crate) fn has_committed(&self, generation: u64) {
        self.committed.store(generation, Ordering::SeqCst);
    }
}

/// A packet that got through.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: &'static str,
    pub(crate) family: Family,
    /// The sender's counter, which identifies its packets.
    pub(crate) port: u16,
    /// The last generation that was committed when it was sent.
    pub(crate) sent: u64,
    /// The last that had begun when it had come.
    pub(crate) came: u64,
    pub(crate) at: Instant,
}

/// What became of a flood.
pub(crate) struct Flood<T> {
    pub(crate) result: T,
    pub(crate) arrivals: Vec<Arrival>,
    /// How many packets each has sent.
    pub(crate) sent: BTreeMap<&'static str, usize>,
}

impl<T> Flood<T> {
    /// How many of somebody's packets have come.
    pub(crate) fn arrived(&self, name: &str) -> usize {
        self.arrivals.iter().filter(|arrival| arrival.from == name).count()
    }

    /// Checks that everything that somebody has sent has come.
    pub(crate) fn has_all_of(&self, name: &str) {
        assert!(self.sent[name] > 0, "the flood has begun");
        let arrivals = self.arrivals.iter().filter(|arrival| arrival.from == name);
        let came: BTreeSet<_> = arrivals.map(|arrival| (arrival.port, arrival.family)).collect();
        let ports = (FIRST_PORT..).take(self.sent[name] / Family::ALL.len());
        let sent = ports.flat_map(|port| Family::ALL.map(|family| (port, family)));
        let lost: Vec<_> = sent.filter(|packet| !came.contains(packet)).collect();
        assert!(lost.is_empty(), "what is always allowed is never dropped, but of {} were {lost:?}", self.sent[name]);
    }
}

/// Ends the flood's threads.
struct Ending<'a>([&'a AtomicBool; 2]);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|end| end.store(true, Ordering::SeqCst));
    }
}

/// Lets these flood `web`, over both families, while something happens. `certain` is one of them
/// that is allowed at the beginning.
pub(crate) fn flood<T>(
    world: &mut World,
    from: &[&'static str],
    certain: &str,
    clock: &Clock,
    during: impl FnOnce(&mut World) -> T,
) -> Flood<T> {
    // A link that has just come up finds no IPv6 neighbour for a second, and more packets than wait for one are lost.
    let first = Family::ALL.map(|family| (Probe::new(family, certain, "web", "icmp"), Fate::Passed));
    assert_eq!(world.probe(&first), [Fate::Passed; 2]);
    let receivers = Family::ALL.map(|family| {
        let socket = world.home(who("web")).run(|| UdpSocket::bind((who("web").address(family), PORT)).unwrap());
        Socket::from(socket.try_clone().unwrap()).set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    });
    let homes: Vec<_> = from.iter().map(|name| Netns::open(&world.home(who(name)).path()).unwrap()).collect();
    let (stop, over) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        // Also when what happens meanwhile panics: the threads are waited for.
        let ending = Ending([stop, over]);
        let receivers = receivers.each_ref().map(|socket| scope.spawn(|| receive(socket, from, clock, over)));
        let senders: Vec<_> = from
            .iter()
            .zip(&homes)
            .map(|(name, home)| (*name, scope.spawn(|| home.run(|| send(who(name), clock, stop)).unwrap())))
            .collect();
        let result = during(world);
        stop.store(true, Ordering::SeqCst);
        let sent: BTreeMap<_, _> = senders.into_iter().map(|(name, thread)| (name, thread.join().unwrap())).collect();
        drop(ending);
        let arrivals: Vec<Arrival> = receivers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        Flood { result, arrivals, sent }
    })
}

fn send(from: &Party, clock: &Clock, stop: &AtomicBool) -> usize {
    let name = from.name.as_bytes();
    let mut sent = 0;
    for port in FIRST_PORT..FIRST_PORT + MOST {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        for family in Family::ALL {
            let socket = UdpSocket::bind((from.address(family), port)).unwrap();
            let mut packet = clock.committed.load(Ordering::SeqCst).to_be_bytes().to_vec();
            packet.extend(name);
            socket.send_to(&packet, SocketAddr::new(who("web").address(family), PORT)).unwrap();
            sent += 1;
        }
        // Not a wait for anything: the rate is bounded.
        thread::sleep(PACE);
    }
    sent
}

/// Reads until all have been sent and nothing more comes.
fn receive(socket: &UdpSocket, from: &[&'static str], clock: &Clock, over: &AtomicBool) -> Vec<Arrival> {
    let (mut arrivals, mut packet) = (Vec::new(), [0; 64]);
    loop {
        let was_over = over.load(Ordering::SeqCst);
        match socket.recv_from(&mut packet) {
            Ok((length, sender)) => {
                let (sent, name) = packet[..length].split_at(8);
                let name = from.iter().find(|from| from.as_bytes() == name).unwrap();
                arrivals.push(Arrival {
                    from: name,
                    family: Family::of(sender.ip()),
                    port: sender.port(),
                    sent: u64::from_be_bytes(sent.try_into().unwrap()),
                    came: clock.begun.load(Ordering::SeqCst),
                    at: Instant::now(),
                });
            }
            Err(_) if was_over => return arrivals,
            Err(_) => {}
        }
    }
}
