//! nfnetlink_log in a real kernel: packets that a rule logs and drops.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use support::{enter_new_namespace, sh, try_sh};
use towpath_core::{
    model::{Endpoint, PodId, Protocol},
    names::IfName,
    policy::{
        compile,
        ir::{Direction, Snapshot},
        packet_log::{DenyLog, GROUP, Reason, SNAPLEN, prefix},
    },
    ruleset::Rule,
};
use towpath_dataplane::nflog::{LogBatch, LoggedPacket, PacketLog, TransportHeader};

const SOON: Option<Duration> = Some(Duration::from_secs(10));
const NOW: Option<Duration> = Some(Duration::from_millis(200));

/// Attaches the rules of a pod whose egress is denied to the output hook of this namespace.
fn deny_egress(condition: &str) {
    let endpoint = Endpoint {
        pod: PodId { namespace: "a".to_owned(), name: "b".to_owned() },
        interface: IfName::new("tow0").unwrap(),
        addresses: Vec::new(),
    };
    let endpoints = [(endpoint.interface.clone(), endpoint)].into_iter().collect();
    let policy = compile(&Snapshot::default(), &endpoints, DenyLog::Enabled);
    let chain = &policy.chains[&policy.egress.into_iter().next().unwrap().1];
    let rules: Vec<String> = chain.rules.iter().map(Rule::to_string).collect();
    sh(&format!(
        "ip link set lo up
         nft -f - <<'E'
add table inet t
add chain inet t out {{ type filter hook output priority 0; }}
add chain inet t denied
add rule inet t out {condition} jump denied
add rule inet t denied {}
E",
        rules.join("\nadd rule inet t denied ")
    ));
}

fn to(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn send(from: &str, to: SocketAddr) {
    // The rule drops the packet in the sender's own namespace, so send_to fails with EPERM.
    let error = UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

/// Receives until there are this many packets, for at most ten seconds.
fn receive(log: &mut PacketLog, packets: usize) -> Vec<LoggedPacket> {
    let mut received = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while received.len() < packets && Instant::now() < end {
        let batch = log.receive(SOON).unwrap();
        assert_eq!(batch.lost, 0);
        received.extend(batch.packets);
    }
    received
}

#[test]
fn a_dropped_packet_is_received_with_its_addresses_port_and_direction() {
    enter_new_namespace();
    deny_egress("meta l4proto { 1, 58, 6, 17 }");
    let mut log = PacketLog::bind(GROUP, SNAPLEN).unwrap();
    send("127.0.0.1:0", to("127.0.0.2:53"));
    send("[::1]:0", to("[::1]:54"));
    let connect = TcpStream::connect_timeout(&to("127.0.0.3:80"), Duration::from_millis(50));
    assert!(connect.is_err(), "the first packet is dropped");
    assert!(try_sh("ping -c1 -W1 127.0.0.4").is_err());
    let received = receive(&mut log, 4);
    let of = |address: &str| {
        let packet =
            received.iter().find(|packet| packet.header.destination == address.parse::<std::net::IpAddr>().unwrap());
        packet.unwrap_or_else(|| panic!("no packet to {address} in {received:?}"))
    };
    for (address, source, transport) in [
        ("127.0.0.2", "127.0.0.1", TransportHeader::Port(Protocol::Udp, 53)),
        ("::1", "::1", TransportHeader::Port(Protocol::Udp, 54)),
        ("127.0.0.3", "127.0.0.1", TransportHeader::Port(Protocol::Tcp, 80)),
        ("127.0.0.4", "127.0.0.1", TransportHeader::Icmp(1, 8)),
    ] {
        let packet = of(address);
        assert_eq!((packet.header.source.to_string(), packet.header.transport), (source.to_owned(), transport));
        assert_eq!(packet.prefix, prefix(Reason::Denied, Direction::Egress));
    }
}

#[test]
fn a_flood_is_logged_at_the_rate_limit_of_the_rule_and_allowed_packets_are_not_logged() {
    enter_new_namespace();
    deny_egress("udp dport 9");
    let mut log = PacketLog::bind(GROUP, SNAPLEN).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    for _ in 0..2000 {
        sender.send_to(b"x", "127.0.0.1:9").unwrap_err();
        sender.send_to(b"x", "127.0.0.1:10").unwrap_or_default();
    }
    let took = start.elapsed();
    let mut received = Vec::new();
    loop {
        match log.receive(NOW).unwrap() {
            batch if batch == LogBatch::default() => break,
            batch => received.extend(batch.packets),
        }
    }
    let most = 20 + 10 * (took.as_secs() as usize + 1);
    assert!((20..=most).contains(&received.len()), "{} of 2000 within {took:?}", received.len());
    assert!(
        received.iter().all(|packet| packet.header.transport == TransportHeader::Port(Protocol::Udp, 9)),
        "{received:?}"
    );
}

#[test]
fn a_group_has_one_listener_until_that_one_is_closed() {
    enter_new_namespace();
    deny_egress("udp dport 9");
    let first = PacketLog::bind(GROUP, SNAPLEN).unwrap();
    let error = PacketLog::bind(GROUP, SNAPLEN).unwrap_err();
    assert!(matches!(error.errno(), Some(Errno::EBUSY | Errno::EPERM)), "{error:?}");
    drop(first);
    let mut second = PacketLog::bind(GROUP, SNAPLEN).unwrap();
    assert_eq!(second.receive(NOW).unwrap(), LogBatch::default(), "no packet was sent");
    send("127.0.0.1:0", to("127.0.0.1:9"));
    assert_eq!(receive(&mut second, 1).len(), 1);
}

#[test]
fn packets_lost_to_a_full_socket_buffer_are_counted() {
    const SENT: usize = 200_000;
    enter_new_namespace();
    sh(&format!(
        "ip link set lo up
         nft 'add table inet t
              add chain inet t out {{ type filter hook output priority 0; }}
              add rule inet t out udp dport 9 log prefix \"towpath-out\" group {GROUP} drop'"
    ));
    let mut log = PacketLog::bind(GROUP, SNAPLEN).unwrap();
    // With a payload, because the socket buffer is counted in bytes.
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..SENT {
        sender.send_to(&[0; 100], "127.0.0.1:9").unwrap_err();
    }
    let (mut received, mut lost, mut empty_batches) = (0, 0, 0);
    // ENOBUFS gives an empty batch, too, ahead of the buffered packets.
    while empty_batches < 2 {
        let batch = log.receive(NOW).unwrap();
        empty_batches = if batch == LogBatch::default() { empty_batches + 1 } else { 0 };
        received += batch.packets.len();
        lost += batch.lost as usize;
    }
    // The last packets may be lost, too: the sequence number of the next packet shows it.
    send("127.0.0.1:0", to("127.0.0.1:9"));
    let last = log.receive(SOON).unwrap();
    assert_eq!(received + lost + last.packets.len() + last.lost as usize, SENT + 1);
    assert!(
        received > 0 && lost + last.lost as usize > 0,
        "the test must overrun the buffer: {received} of {SENT} received"
    );
}
