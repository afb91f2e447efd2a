//! Probes: real packets between parties of the cluster, all of a scenario at once, and what became of them.
//!
//! A probe that is let through is known by its answer. One that is dropped gives no sign, and waiting for none would
//! take long and prove little; so a table of the test's own on the node writes down, by the number that each probe
//! carries (its source port, or ICMP's identifier), what comes in before all rules and what gets through behind them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol as Number, SockAddr, Socket, Type};
use towpath_core::model::{Family, Protocol};

use crate::{
    cluster::{Party, who},
    support::{Namespace, sh},
    wire::{SCTP_NUMBER, echo_request, payload, plain, sctp_init, word},
    world::World,
};

/// A protocol without ports other than ICMP: one of those kept for experiments (RFC 3692).
const EXPERIMENTAL: u8 = 253;

/// The longest that anything is waited for.
const BOUND: Duration = Duration::from_secs(10);

/// What a probe carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Carries {
    /// The first packet of a connection to this port.
    Port(Protocol, u16),
    /// An echo request.
    Echo,
    /// A packet of a protocol without ports.
    Plain,
}

impl Carries {
    /// Its protocol's number in the IP header.
    pub(crate) const fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Port(protocol, _), _) => protocol.number(),
            (Self::Echo, Family::V4) => 1,
            (Self::Echo, Family::V6) => 58,
            (Self::Plain, _) => EXPERIMENTAL,
        }
    }
}

/// One question to the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) family: Family,
    pub(crate) from: &'static Party,
    pub(crate) to: &'static Party,
    pub(crate) carries: Carries,
}

impl Probe {
    /// Between two of the cluster, with what it carries in words: `tcp 8080`, `icmp`, or `plain`.
    pub(crate) fn new(family: Family, from: &str, to: &str, carries: &str) -> Self {
        let (kind, port) = carries.split_once(' ').unwrap_or((carries, ""));
        let port =
            |protocol| Carries::Port(protocol, port.parse().unwrap_or_else(|_| panic!("{carries}: which port?")));
        let carries = match kind {
            "tcp" => port(Protocol::Tcp),
            "udp" => port(Protocol::Udp),
            "sctp" => port(Protocol::Sctp),
            "icmp" => Carries::Echo,
            "plain" => Carries::Plain,
            other => panic!("{other} is not sent"),
        };
        Self { family, from: who(from), to: who(to), carries }
    }

    /// Whether it never leaves its pod.
    pub(crate) fn stays_inside(&self) -> bool {
        self.from.name == self.to.name
    }

    /// Who answers it: the pod behind the Service, for a Service's address.
    pub(crate) fn backend(&self) -> Self {
        if self.to.name != "service" {
            return *self;
        }
        let carries = match self.carries {
            Carries::Port(protocol @ Protocol::Tcp, 80) => Carries::Port(protocol, 8080),
            Carries::Port(protocol @ Protocol::Udp, 53) => Carries::Port(protocol, 5353),
            other => panic!("the Service has no {other:?}"),
        };
        Self { to: who("web"), carries, ..*self }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {:?} over {}", self.from.name, self.to.name, self.carries, self.family)
    }
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was answered, or has arrived where nobody answers.
    Passed,
    /// It came to the node and no further.
    Dropped,
    /// Neither within the bound.
    Lost,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Dropped => "dropped",
            Self::Lost => "got lost or was not answered",
        })
    }
}

/// The test's own table on the node.
struct Witness;

impl Witness {
    /// What gets through is seen before its source address is translated.
    fn place(node: &Namespace) -> Self {
        node.sh("nft -f - <<'END'
            table inet witness
            delete table inet witness
            table inet witness {
                set asked { typeof th sport; flags dynamic; size 65535; }
                set passed { typeof th sport; flags dynamic; size 65535; }
                chain came { type filter hook prerouting priority -310; jump ask; }
                chain ask {
                    meta l4proto { 6, 17, 132, 253 } add @asked { th sport }
                    icmp type echo-request add @asked { icmp id }
                    icmpv6 type echo-request add @asked { icmpv6 id }
                }
                chain left { type filter hook postrouting priority 0; jump pass; }
                chain arrived { type filter hook input priority 100; jump pass; }
                chain pass {
                    meta l4proto { 6, 17, 132, 253 } add @passed { th sport }
                    icmp type echo-request add @passed { icmp id }
                    icmpv6 type echo-request add @passed { icmpv6 id }
                }
            }
END");
        Self
    }

    /// The numbers of what came in and of what got through.
    fn read(&self, node: &Namespace) -> (BTreeSet<u16>, BTreeSet<u16>) {
        let text = node.run(|| sh("nft --numeric --json list table inet witness"));
        let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
        let numbers = |name: &str| {
            let sets = listing["nftables"].as_array().unwrap().iter().map(|object| &object["set"]);
            let elements = sets.filter(|set| set["name"] == name).filter_map(|set| set["elem"].as_array()).flatten();
            elements.map(|number| u16::try_from(number.as_u64().unwrap()).unwrap()).collect()
        };
        (numbers("asked"), numbers("passed"))
    }
}

/// Where probes are answered.
enum Receiver {
    /// The kernel answers: a listening socket, or nothing at all for echo requests.
    Kernel(#[allow(dead_code, reason = "it listens as long as it is there")] Option<Socket>),
    /// We answer.
    Udp(UdpSocket),
    /// Nobody answers: the numbers of those that have arrived.
    Raw(RawReceiver),
}

struct RawReceiver {
    socket: Socket,
    family: Family,
    /// Where packets have their number.
    at: usize,
    arrived: BTreeSet<u16>,
}

impl Receiver {
    fn open(probe: &Probe) -> Self {
        let address = probe.to.address(probe.family);
        let stream = |port| {
            let socket = open(probe.family, Type::STREAM, Number::TCP);
            socket.set_reuse_address(true).unwrap();
            bind(&socket, SocketAddr::new(address, port));
            socket.listen(128).unwrap();
            Self::Kernel(Some(socket))
        };
        match probe.carries {
            Carries::Port(Protocol::Tcp, port) => stream(port),
            Carries::Port(Protocol::Udp, port) => {
                let socket = open(probe.family, Type::DGRAM, Number::UDP);
                bind(&socket, SocketAddr::new(address, port));
                Self::Udp(socket.into())
            }
            Carries::Echo => Self::Kernel(None),
            Carries::Port(Protocol::Sctp, _) | Carries::Plain => {
                let at = if probe.carries == Carries::Plain { 0 } else { SCTP_NUMBER };
                let socket = raw(probe, address);
                Self::Raw(RawReceiver { socket, family: probe.family, at, arrived: BTreeSet::new() })
            }
        }
    }

    fn answer(&mut self) {
        let mut buffer = [0; 256];
        match self {
            Self::Kernel(_) => {}
            Self::Udp(socket) => {
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // An answer that cannot be sent is missed by who waits for it.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
            Self::Raw(raw) => {
                while let Ok(length) = raw.socket.read(&mut buffer) {
                    raw.arrived.insert(word(payload(&buffer[..length], raw.family == Family::V4), raw.at));
                }
            }
        }
    }
}

/// A probe under way.
struct Flight {
    probe: Probe,
    number: u16,
    sender: Sender,
    receiver: (IpAddr, Carries),
    fate: Option<Fate>,
}

enum Sender {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Echo(Socket),
    Silent,
}

impl Flight {
    fn send(probe: Probe) -> Self {
        let number = number();
        let backend = probe.backend();
        let from = SocketAddr::new(probe.from.address(probe.family), number);
        let to = |port| SocketAddr::new(probe.to.address(probe.family), port);
        let sender = match probe.carries {
            Carries::Port(Protocol::Tcp, port) => {
                let socket = open(probe.family, Type::STREAM, Number::TCP);
                bind(&socket, from);
                // Closing resets, so that nothing lingers.
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                match socket.connect(&to(port).into()) {
                    Err(e) if e.raw_os_error() == Some(nix::Error::EINPROGRESS as i32) => {}
                    other => panic!("{probe}: {other:?}"),
                }
                Sender::Tcp(socket.into())
            }
            Carries::Port(Protocol::Udp, port) => {
                let socket = open(probe.family, Type::DGRAM, Number::UDP);
                bind(&socket, from);
                send(&socket, b"towpath", to(port), &probe);
                Sender::Udp(socket.into())
            }
            Carries::Port(Protocol::Sctp, port) => {
                send(&raw(&probe, from.ip()), &sctp_init(number, port), to(0), &probe);
                Sender::Silent
            }
            Carries::Echo => {
                let socket = raw(&probe, from.ip());
                let kind = if probe.family == Family::V4 { 8 } else { 128 };
                send(&socket, &echo_request(kind, number), to(0), &probe);
                Sender::Echo(socket)
            }
            Carries::Plain => {
                send(&raw(&probe, from.ip()), &plain(number), to(0), &probe);
                Sender::Silent
            }
        };
        Self { probe, number, sender, receiver: place(&backend), fate: None }
    }

    /// Whether it has got an answer, or has arrived where nobody answers.
    fn has_passed(&mut self, arrived: &Receiver) -> bool {
        let mut buffer = [0; 256];
        match (&mut self.sender, arrived) {
            (Sender::Tcp(stream), _) => match stream.take_error() {
                Ok(None) => stream.peer_addr().is_ok(),
                Ok(Some(error)) | Err(error) => panic!("{}: {error}", self.probe),
            },
            (Sender::Udp(socket), _) => socket.recv(&mut buffer).is_ok(),
            (Sender::Echo(socket), _) => {
                let reply = if self.probe.family == Family::V4 { 0 } else { 129 };
                while let Ok(length) = socket.read(&mut buffer) {
                    let packet = payload(&buffer[..length], self.probe.family == Family::V4);
                    if packet[0] == reply && word(packet, 4) == self.number {
                        return true;
                    }
                }
                false
            }
            (Sender::Silent, Receiver::Raw(raw)) => raw.arrived.contains(&self.number),
            (Sender::Silent, Receiver::Kernel(_) | Receiver::Udp(_)) => unreachable!("raw probes have raw receivers"),
        }
    }
}

/// A number that no other probe of the process has: two that looked like one connection would share its fate.
fn number() -> u16 {
    const FIRST: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % (u16::MAX - FIRST)
}

/// Where a probe is answered: raw sockets take packets to all ports.
fn place(probe: &Probe) -> (IpAddr, Carries) {
    let carries = match probe.carries {
        Carries::Port(Protocol::Sctp, _) => Carries::Port(Protocol::Sctp, 0),
        other => other,
    };
    (probe.to.address(probe.family), carries)
}

fn open(family: Family, kind: Type, number: Number) -> Socket {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind, Some(number)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn raw(probe: &Probe, address: IpAddr) -> Socket {
    let number = Number::from(i32::from(probe.carries.number(probe.family)));
    let socket = open(probe.family, Type::RAW, number);
    bind(&socket, SocketAddr::new(address, 0));
    socket
}

/// Binds, and waits for an address that is in use: a process that another test is just starting holds a copy of every
/// socket until it is itself.
fn bind(socket: &Socket, address: SocketAddr) {
    let end = Instant::now() + BOUND;
    loop {
        match socket.bind(&address.into()) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < end => thread::yield_now(),
            result => return result.unwrap_or_else(|e| panic!("{address}: {e}")),
        }
    }
}

fn send(socket: &Socket, bytes: &[u8], to: SocketAddr, probe: &Probe) {
    let sent = socket.send_to(bytes, &SockAddr::from(to));
    sent.unwrap_or_else(|error: io::Error| panic!("{probe}: {error}"));
}

impl World {
    /// Sends these probes at once and gives what became of each. One whose fate is not the one that is expected is
    /// looked at again before it is believed.
    pub(crate) fn probe(&mut self, probes: &[(Probe, Fate)]) -> Vec<Fate> {
        self.probe_behind(probes, |_| ())
    }

    /// Sends them as soon as a change has returned.
    pub(crate) fn probe_behind(&mut self, probes: &[(Probe, Fate)], change: impl FnOnce(&mut Self)) -> Vec<Fate> {
        let witness = Witness::place(&self.node);
        let mut receivers: BTreeMap<(IpAddr, Carries), Receiver> = BTreeMap::new();
        for (probe, _) in probes {
            let backend = probe.backend();
            let open = || self.home(backend.to).run(|| Receiver::open(&backend));
            receivers.entry(place(&backend)).or_insert_with(open);
        }
        change(self);
        let mut flights: Vec<Flight> =
            probes.iter().map(|(probe, _)| self.home(probe.from).run(|| Flight::send(*probe))).collect();
        let end = Instant::now() + BOUND;
        let mut doubtful = BTreeSet::new();
        while Instant::now() < end {
            receivers.values_mut().for_each(Receiver::answer);
            for flight in flights.iter_mut().filter(|flight| flight.fate.is_none()) {
                if flight.has_passed(&receivers[&flight.receiver]) {
                    flight.fate = Some(Fate::Passed);
                }
            }
            if flights.iter().all(|flight| flight.fate.is_some()) {
                break;
            }
            let (asked, passed) = witness.read(&self.node);
            for (flight, (_, expected)) in flights.iter_mut().zip(probes) {
                let dropped = asked.contains(&flight.number) && !passed.contains(&flight.number);
                if dropped && flight.fate.is_none() && (*expected == Fate::Dropped || !doubtful.insert(flight.number)) {
                    flight.fate = Some(Fate::Dropped);
                }
            }
        }
        flights.iter().map(|flight| flight.fate.unwrap_or(Fate::Lost)).collect()
    }
}
