//! Probes: real packets between endpoints of the cluster, and the outcome of each. All probes of a scenario are sent at
//! once.
//!
//! The reply shows that a probe passed. A dropped probe has no reply, and a timeout would be slow and ambiguous. So a
//! second table on the node records the id of each probe (its source port, or the ICMP identifier) twice: before all
//! rules and after them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol as SocketProtocol, SockAddr, Socket, Type};
use towpath_core::model::{Family, Protocol};

use crate::{
    cluster::{TestEndpoint, endpoint},
    packets::{SCTP_ID_OFFSET, echo_request, payload, plain, sctp_init, word},
    support::{Namespace, sh},
    testbed::Testbed,
};

/// A protocol without ports other than ICMP: reserved for experiments (RFC 3692).
const EXPERIMENTAL: u8 = 253;

/// The longest wait for a probe or a free address.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The transport header of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeTransport {
    /// The first packet of a connection to this port.
    Port(Protocol, u16),
    /// An echo request.
    Echo,
    /// A packet of a protocol without ports.
    Plain,
}

impl ProbeTransport {
    /// The protocol number in the IP header.
    pub(crate) const fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Port(protocol, _), _) => protocol.number(),
            (Self::Echo, Family::V4) => 1,
            (Self::Echo, Family::V6) => 58,
            (Self::Plain, _) => EXPERIMENTAL,
        }
    }
}

/// One packet to send, from one endpoint to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) family: Family,
    pub(crate) from: &'static TestEndpoint,
    pub(crate) to: &'static TestEndpoint,
    pub(crate) transport: ProbeTransport,
}

impl Probe {
    /// A probe between two named endpoints; `transport` is written `tcp 8080`, `udp 53`, `sctp 7`, `icmp` or `plain`.
    pub(crate) fn new(family: Family, from: &str, to: &str, transport: &str) -> Self {
        let (kind, port) = transport.split_once(' ').unwrap_or((transport, ""));
        let port =
            |protocol| ProbeTransport::Port(protocol, port.parse().unwrap_or_else(|_| panic!("{transport}: no port")));
        let transport = match kind {
            "tcp" => port(Protocol::Tcp),
            "udp" => port(Protocol::Udp),
            "sctp" => port(Protocol::Sctp),
            "icmp" => ProbeTransport::Echo,
            "plain" => ProbeTransport::Plain,
            other => panic!("unknown transport {other}"),
        };
        Self { family, from: endpoint(from), to: endpoint(to), transport }
    }

    /// Whether source and destination are the same endpoint: the packet never leaves its pod.
    pub(crate) fn stays_inside(&self) -> bool {
        self.from.name == self.to.name
    }

    /// The probe after DNAT: to a Service's address it goes to the backend pod.
    pub(crate) fn backend(&self) -> Self {
        if self.to.name != "service" {
            return *self;
        }
        let transport = match self.transport {
            ProbeTransport::Port(protocol @ Protocol::Tcp, 80) => ProbeTransport::Port(protocol, 8080),
            ProbeTransport::Port(protocol @ Protocol::Udp, 53) => ProbeTransport::Port(protocol, 5353),
            other => panic!("the Service has no {other:?}"),
        };
        Self { to: endpoint("web"), transport, ..*self }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {:?} over {}", self.from.name, self.to.name, self.transport, self.family)
    }
}

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// It was answered, or has arrived at a receiver that sends no reply.
    Passed,
    /// It reached the node and was not forwarded.
    Dropped,
    /// Neither within the timeout.
    TimedOut,
}

impl fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Dropped => "dropped",
            Self::TimedOut => "timed out",
        })
    }
}

/// The node's table that records probes.
struct ProbeTable;

impl ProbeTable {
    /// Creates the table. It records passed probes before source NAT.
    fn create(node: &Namespace) -> Self {
        node.sh("nft -f - <<'END'
            table inet probes
            delete table inet probes
            table inet probes {
                set received { typeof th sport; flags dynamic; size 65535; }
                set passed { typeof th sport; flags dynamic; size 65535; }
                chain prerouting { type filter hook prerouting priority -310; jump record-received; }
                chain record-received {
                    meta l4proto { 6, 17, 132, 253 } add @received { th sport }
                    icmp type echo-request add @received { icmp id }
                    icmpv6 type echo-request add @received { icmpv6 id }
                }
                chain postrouting { type filter hook postrouting priority 0; jump record-passed; }
                chain input { type filter hook input priority 100; jump record-passed; }
                chain record-passed {
                    meta l4proto { 6, 17, 132, 253 } add @passed { th sport }
                    icmp type echo-request add @passed { icmp id }
                    icmpv6 type echo-request add @passed { icmpv6 id }
                }
            }
END");
        Self
    }

    /// The ids of the probes that were received and of those that passed.
    fn read(&self, node: &Namespace) -> (BTreeSet<u16>, BTreeSet<u16>) {
        let text = node.run(|| sh("nft --numeric --json list table inet probes"));
        let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ids = |name: &str| {
            let sets = listing["nftables"].as_array().unwrap().iter().map(|object| &object["set"]);
            let elements = sets.filter(|set| set["name"] == name).filter_map(|set| set["elem"].as_array()).flatten();
            elements.map(|id| u16::try_from(id.as_u64().unwrap()).unwrap()).collect()
        };
        (ids("received"), ids("passed"))
    }
}

/// The socket that receives probes.
enum Receiver {
    /// The kernel answers: a listening socket, or none for echo requests.
    Kernel(#[allow(dead_code, reason = "it listens until it is dropped")] Option<Socket>),
    /// The test answers.
    Udp(UdpSocket),
    /// No reply is sent.
    Raw(RawReceiver),
}

struct RawReceiver {
    socket: Socket,
    family: Family,
    /// Offset of the id in a packet.
    id_offset: usize,
    /// The ids of the probes that have arrived.
    arrived: BTreeSet<u16>,
}

impl Receiver {
    fn open(probe: &Probe) -> Self {
        let address = probe.to.address(probe.family);
        let stream = |port| {
            let socket = open(probe.family, Type::STREAM, SocketProtocol::TCP);
            socket.set_reuse_address(true).unwrap();
            bind(&socket, SocketAddr::new(address, port));
            socket.listen(128).unwrap();
            Self::Kernel(Some(socket))
        };
        match probe.transport {
            ProbeTransport::Port(Protocol::Tcp, port) => stream(port),
            ProbeTransport::Port(Protocol::Udp, port) => {
                let socket = open(probe.family, Type::DGRAM, SocketProtocol::UDP);
                bind(&socket, SocketAddr::new(address, port));
                Self::Udp(socket.into())
            }
            ProbeTransport::Echo => Self::Kernel(None),
            ProbeTransport::Port(Protocol::Sctp, _) | ProbeTransport::Plain => {
                let id_offset = if probe.transport == ProbeTransport::Plain { 0 } else { SCTP_ID_OFFSET };
                let socket = raw(probe, address);
                Self::Raw(RawReceiver { socket, family: probe.family, id_offset, arrived: BTreeSet::new() })
            }
        }
    }

    fn answer(&mut self) {
        let mut buffer = [0; 256];
        match self {
            Self::Kernel(_) => {}
            Self::Udp(socket) => {
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // If this fails, the sender misses the reply.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
            Self::Raw(raw) => {
                while let Ok(length) = raw.socket.read(&mut buffer) {
                    raw.arrived.insert(word(payload(&buffer[..length], raw.family == Family::V4), raw.id_offset));
                }
            }
        }
    }
}

/// A probe that was sent.
struct SentProbe {
    probe: Probe,
    id: u16,
    sender: Sender,
    receiver: (IpAddr, ProbeTransport),
    outcome: Option<ProbeOutcome>,
}

enum Sender {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Echo(Socket),
    Silent,
}

impl SentProbe {
    fn send(probe: Probe) -> Self {
        let id = next_id();
        let backend = probe.backend();
        let from = SocketAddr::new(probe.from.address(probe.family), id);
        let to = |port| SocketAddr::new(probe.to.address(probe.family), port);
        let sender = match probe.transport {
            ProbeTransport::Port(Protocol::Tcp, port) => {
                let socket = open(probe.family, Type::STREAM, SocketProtocol::TCP);
                bind(&socket, from);
                // Close with a reset: no connection stays in TIME_WAIT.
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                match socket.connect(&to(port).into()) {
                    Err(e) if e.raw_os_error() == Some(nix::Error::EINPROGRESS as i32) => {}
                    other => panic!("{probe}: {other:?}"),
                }
                Sender::Tcp(socket.into())
            }
            ProbeTransport::Port(Protocol::Udp, port) => {
                let socket = open(probe.family, Type::DGRAM, SocketProtocol::UDP);
                bind(&socket, from);
                send(&socket, b"towpath", to(port), &probe);
                Sender::Udp(socket.into())
            }
            ProbeTransport::Port(Protocol::Sctp, port) => {
                send(&raw(&probe, from.ip()), &sctp_init(id, port), to(0), &probe);
                Sender::Silent
            }
            ProbeTransport::Echo => {
                let socket = raw(&probe, from.ip());
                let kind = if probe.family == Family::V4 { 8 } else { 128 };
                send(&socket, &echo_request(kind, id), to(0), &probe);
                Sender::Echo(socket)
            }
            ProbeTransport::Plain => {
                send(&raw(&probe, from.ip()), &plain(id), to(0), &probe);
                Sender::Silent
            }
        };
        Self { probe, id, sender, receiver: receiver_key(&backend), outcome: None }
    }

    /// Whether the reply was received or, without replies, the probe has arrived.
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
                    if packet[0] == reply && word(packet, 4) == self.id {
                        return true;
                    }
                }
                false
            }
            (Sender::Silent, Receiver::Raw(raw)) => raw.arrived.contains(&self.id),
            (Sender::Silent, Receiver::Kernel(_) | Receiver::Udp(_)) => unreachable!("raw probes have raw receivers"),
        }
    }
}

/// An id that no other probe of the process has: two probes with the same tuple share one conntrack entry.
fn next_id() -> u16 {
    const FIRST: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % (u16::MAX - FIRST)
}

/// The key of a probe's receiver: a raw socket receives packets to all ports.
fn receiver_key(probe: &Probe) -> (IpAddr, ProbeTransport) {
    let transport = match probe.transport {
        ProbeTransport::Port(Protocol::Sctp, _) => ProbeTransport::Port(Protocol::Sctp, 0),
        other => other,
    };
    (probe.to.address(probe.family), transport)
}

fn open(family: Family, kind: Type, protocol: SocketProtocol) -> Socket {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind, Some(protocol)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn raw(probe: &Probe, address: IpAddr) -> Socket {
    let protocol = SocketProtocol::from(i32::from(probe.transport.number(probe.family)));
    let socket = open(probe.family, Type::RAW, protocol);
    bind(&socket, SocketAddr::new(address, 0));
    socket
}

/// Binds, and retries while the address is in use: a child process of another test holds a copy of every socket between
/// fork and exec.
fn bind(socket: &Socket, address: SocketAddr) {
    let end = Instant::now() + TIMEOUT;
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

impl Testbed {
    /// Sends these probes at once and returns the outcome of each. An unexpected drop counts only when the table shows
    /// it twice.
    pub(crate) fn probe(&mut self, probes: &[(Probe, ProbeOutcome)]) -> Vec<ProbeOutcome> {
        self.probe_after(probes, |_| ())
    }

    /// Applies a change and sends the probes as soon as it has returned.
    pub(crate) fn probe_after(
        &mut self,
        probes: &[(Probe, ProbeOutcome)],
        change: impl FnOnce(&mut Self),
    ) -> Vec<ProbeOutcome> {
        let table = ProbeTable::create(&self.node);
        let mut receivers: BTreeMap<(IpAddr, ProbeTransport), Receiver> = BTreeMap::new();
        for (probe, _) in probes {
            let backend = probe.backend();
            let open = || self.namespace_of(backend.to).run(|| Receiver::open(&backend));
            receivers.entry(receiver_key(&backend)).or_insert_with(open);
        }
        change(self);
        let mut sent: Vec<SentProbe> =
            probes.iter().map(|(probe, _)| self.namespace_of(probe.from).run(|| SentProbe::send(*probe))).collect();
        let end = Instant::now() + TIMEOUT;
        let mut dropped_once = BTreeSet::new();
        while Instant::now() < end {
            receivers.values_mut().for_each(Receiver::answer);
            for probe in sent.iter_mut().filter(|probe| probe.outcome.is_none()) {
                if probe.has_passed(&receivers[&probe.receiver]) {
                    probe.outcome = Some(ProbeOutcome::Passed);
                }
            }
            if sent.iter().all(|probe| probe.outcome.is_some()) {
                break;
            }
            let (received, passed) = table.read(&self.node);
            for (probe, (_, expected)) in sent.iter_mut().zip(probes) {
                let dropped = received.contains(&probe.id) && !passed.contains(&probe.id);
                if dropped
                    && probe.outcome.is_none()
                    && (*expected == ProbeOutcome::Dropped || !dropped_once.insert(probe.id))
                {
                    probe.outcome = Some(ProbeOutcome::Dropped);
                }
            }
        }
        sent.iter().map(|probe| probe.outcome.unwrap_or(ProbeOutcome::TimedOut)).collect()
    }
}
