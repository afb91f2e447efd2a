//! Conntrack entries in a real kernel: revoked, left alone, restored, and flushed by address.
//!
//! A node with two pods; a policy selects B. To assert that a packet is dropped, an allowed datagram follows it over
//! the same links: when that has arrived, the first one would have arrived, too.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use imbl::{OrdMap, OrdSet};

use support::Namespace;
use towpath_core::{
    connection::{AffectedPods, Connection, Reevaluation},
    model::{Endpoint, Family, PodId},
    names::{ChainName, IfName},
    policy::ir::Direction,
    ruleset::{Chain, CmpOp, Field, Match, Rule, Ruleset, Transport, Value, Verdict, diff},
    table::{CompiledPolicy, Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};
use towpath_dataplane::{
    conntrack::{Conntrack, FlushTarget, Reevaluated},
    nft::{KernelNft, Nft, Ownership},
};
use towpath_podlink::{PodLink, PodLinkSpec, netns::Netns};

const TIMEOUT: Duration = Duration::from_secs(10);
const TCP: u8 = 6;
const UDP: u8 = 17;
/// A port that the policy denies later, and one that stays allowed.
const DENIED: u16 = 80;
const ALLOWED: u16 = 81;

fn address(pod: &str, family: Family) -> IpAddr {
    let number = if pod == "a" { 2 } else { 3 };
    match family {
        Family::V4 => IpAddr::from([10, 244, 1, number]),
        Family::V6 => IpAddr::from([0xfd00, 0x244, 1, 0, 0, 0, 0, number.into()]),
    }
}

fn endpoint(pod: &str) -> Endpoint {
    let id = PodId { namespace: "default".to_owned(), name: pod.to_owned() };
    let addresses = Family::ALL.map(|family| address(pod, family)).to_vec();
    Endpoint { pod: id, interface: IfName::of_pod("default", pod), addresses }
}

/// A node and its two pods.
struct Testbed {
    node: Namespace,
    a: Namespace,
    b: Namespace,
}

impl Testbed {
    fn new() -> Self {
        let testbed = Self { node: Namespace::new(), a: Namespace::new(), b: Namespace::new() };
        testbed.node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link set lo up");
        for (name, namespace) in [("a", &testbed.a), ("b", &testbed.b)] {
            let Endpoint { interface, addresses, .. } = endpoint(name);
            let spec = PodLinkSpec { host: interface, pod: IfName::new("eth0").unwrap(), addresses, mtu: 1450 };
            testbed.node.run(|| {
                let netns = Netns::open(&namespace.path()).unwrap();
                PodLink::create(&netns, &spec).unwrap().connect(&spec).unwrap();
            });
        }
        testbed
    }

    /// Applies a table that allows B's ingress on these ports only.
    fn allow_ingress(&self, ports: &[u16]) -> Ruleset {
        let to = |port: &u16| vec![Match::Field(Field::DestinationPort, CmpOp::Eq, Value::Port(*port))];
        let rules = ports.iter().map(|port| Rule::verdict(to(port), Verdict::Accept)).collect();
        let chain = ChainName::new("in.b").unwrap();
        let policy = CompiledPolicy {
            ingress: OrdMap::unit(endpoint("b").interface, chain.clone()),
            chains: OrdMap::unit(chain, Arc::new(Chain { base: None, rules })),
            ..CompiledPolicy::default()
        };
        let want = table(TableInput {
            endpoints: &["a", "b"].into_iter().map(|pod| (endpoint(pod).interface, Arc::new(endpoint(pod)))).collect(),
            cluster_pod_cidrs: &["10.244.0.0/16".parse().unwrap()],
            node_pod_cidrs: &["10.244.1.0/24".parse().unwrap()],
            node_addresses: &OrdSet::new(),
            vxlan_port: 8472,
            masquerade: Masquerade::Disabled,
            source_to_nodes: SourceToNodes::NodeAddress,
            policy: PolicyEnforcement::Enforce(policy),
        });
        self.node.run(|| {
            let mut nft = KernelNft::open_as(Ownership::Shared).unwrap();
            let have = nft.read_back().unwrap();
            nft.apply(&diff(&want, have.as_ref())).unwrap();
        });
        want
    }

    fn reevaluate(&self, table: &Ruleset) -> Reevaluated {
        let (pods, node) = (["a", "b"].map(endpoint), BTreeSet::new());
        self.node.run(|| {
            Conntrack::open().unwrap().reevaluate(&Reevaluation::new(table, &pods, &node, &AffectedPods::All)).unwrap()
        })
    }

    fn flush(&self, addr: IpAddr) -> usize {
        self.node.run(|| Conntrack::open().unwrap().flush(&FlushTarget::Addresses([addr].into())).unwrap())
    }

    fn conntrack_count(&self) -> usize {
        self.node.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse().unwrap()
    }

    /// A TCP connection from A to B: the client's and the server's socket.
    fn tcp(&self, family: Family, port: u16) -> (TcpStream, TcpStream) {
        let to = SocketAddr::new(address("b", family), port);
        let listener = self.b.run(|| TcpListener::bind(to).unwrap());
        let client = self.a.run(|| TcpStream::connect_timeout(&to, TIMEOUT).unwrap());
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        (client, server)
    }

    /// A UDP flow from A to B with a reply: the client's and the server's socket.
    fn udp(&self, family: Family, port: u16) -> (UdpSocket, UdpSocket) {
        let to = SocketAddr::new(address("b", family), port);
        let server = self.b.run(|| UdpSocket::bind(to).unwrap());
        let client = self.a.run(|| UdpSocket::bind(SocketAddr::new(address("a", family), 0)).unwrap());
        client.connect(to).unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        client.send(b"hello").unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.connect(from).unwrap();
        server.send(b"hello").unwrap();
        client.recv(&mut [0; 16]).unwrap();
        (client, server)
    }

    /// Sends an allowed datagram from one pod to the other and waits for it: earlier packets have arrived or were
    /// dropped.
    fn wait_for_delivery(&self, family: Family, from: &str, to: &str) {
        let (source, destination) = if from == "a" { (&self.a, &self.b) } else { (&self.b, &self.a) };
        let receiver = destination.run(|| UdpSocket::bind(SocketAddr::new(address(to, family), ALLOWED)).unwrap());
        receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
        let sender = source.run(|| UdpSocket::bind(SocketAddr::new(address(from, family), 0)).unwrap());
        sender.send_to(b"last", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 16]).expect("an allowed datagram arrives");
    }
}

fn has_no_data(mut end: &TcpStream) -> bool {
    end.set_nonblocking(true).unwrap();
    let nothing = end.read(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    end.set_nonblocking(false).unwrap();
    nothing
}

fn receives(mut end: &TcpStream, text: &str) -> bool {
    let mut received = vec![0; text.len()];
    end.read_exact(&mut received).is_ok() && received == text.as_bytes()
}

#[test]
fn a_denied_tcp_connection_is_revoked_in_both_directions_and_restored_when_it_is_allowed_again() {
    for family in Family::ALL {
        let testbed = Testbed::new();
        let open = testbed.allow_ingress(&[DENIED, ALLOWED]);
        let ((mut client, mut server), (kept, mut kept_server)) =
            (testbed.tcp(family, DENIED), testbed.tcp(family, ALLOWED));
        assert_eq!(testbed.reevaluate(&open), Reevaluated::default(), "{family}: nothing is denied");

        let closed = testbed.allow_ingress(&[ALLOWED]);
        let transport = Transport::Ports { protocol: TCP, destination: DENIED };
        let connection = Connection { from: address("a", family), to: address("b", family), transport };
        assert_eq!(testbed.reevaluate(&closed).revoked, [(connection, Direction::Ingress)], "{family}");
        // The reply first: it could recreate the conntrack entry in a direction that no policy denies.
        server.write_all(b"reply").unwrap();
        testbed.wait_for_delivery(family, "b", "a");
        assert!(has_no_data(&client), "{family}: a reply");
        client.write_all(b"request").unwrap();
        testbed.wait_for_delivery(family, "a", "b");
        assert!(has_no_data(&server), "{family}: a request");
        assert_eq!(
            testbed.reevaluate(&closed),
            Reevaluated { still_revoked: 1, ..Reevaluated::default() },
            "{family}: again"
        );
        kept_server.write_all(b"kept").unwrap();
        assert!(receives(&kept, "kept"), "{family}: the allowed connection");

        let open = testbed.allow_ingress(&[DENIED, ALLOWED]);
        assert_eq!(testbed.reevaluate(&open).restored, 1, "{family}");
        assert!(receives(&client, "reply") && receives(&server, "request"), "{family}: both are retransmitted");
    }
}

#[test]
fn a_denied_udp_flow_is_revoked_although_a_reply_follows() {
    let testbed = Testbed::new();
    for family in Family::ALL {
        testbed.allow_ingress(&[DENIED, ALLOWED, ALLOWED + 1_000]);
        let (client, server) = testbed.udp(family, DENIED);
        let (kept, kept_server) = testbed.udp(family, ALLOWED + 1_000);
        let closed = testbed.allow_ingress(&[ALLOWED, ALLOWED + 1_000]);
        let revoked = testbed.reevaluate(&closed).revoked;
        assert_eq!(revoked.len(), 1, "{family}: {revoked:?}");
        assert_eq!(revoked[0].0.transport, Transport::Ports { protocol: UDP, destination: DENIED });
        server.send(b"reply").unwrap();
        testbed.wait_for_delivery(family, "b", "a");
        client.send(b"request").unwrap();
        testbed.wait_for_delivery(family, "a", "b");
        for end in [&client, &server] {
            end.set_nonblocking(true).unwrap();
            assert_eq!(end.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "{family}");
        }
        kept.send(b"kept").unwrap();
        kept_server.recv(&mut [0; 16]).expect("an allowed datagram arrives");
    }
}

#[test]
fn a_denied_flow_without_a_reply_is_deleted_and_evaluated_again_with_the_next_datagram() {
    for family in Family::ALL {
        let testbed = Testbed::new();
        testbed.allow_ingress(&[DENIED, ALLOWED]);
        let to = SocketAddr::new(address("b", family), DENIED);
        let server = testbed.b.run(|| UdpSocket::bind(to).unwrap());
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let client = testbed.a.run(|| UdpSocket::bind(SocketAddr::new(address("a", family), 0)).unwrap());
        client.send_to(b"hello", to).unwrap();
        server.recv(&mut [0; 16]).unwrap();
        let before = testbed.conntrack_count();
        let closed = testbed.allow_ingress(&[ALLOWED]);
        assert_eq!(testbed.reevaluate(&closed), Reevaluated::default(), "{family}: nothing is revoked");
        assert_eq!(testbed.conntrack_count(), before - 1, "{family}");
        testbed.allow_ingress(&[DENIED, ALLOWED]);
        client.send_to(b"hello", to).unwrap();
        server.recv(&mut [0; 16]).expect("allowed again, at once");
    }
}

#[test]
fn echo_requests_are_revoked_when_only_ports_are_allowed() {
    let testbed = Testbed::new();
    for family in Family::ALL {
        testbed.allow_ingress(&[]);
        testbed.node.sh("nft flush chain inet towpath to-pod");
        testbed.a.sh(&format!("ping -n -c 1 -W 10 {}", address("b", family)));
        let revoked = testbed.reevaluate(&testbed.allow_ingress(&[ALLOWED])).revoked;
        let protocol = if family == Family::V4 { 1 } else { 58 };
        let expected =
            Connection { from: address("a", family), to: address("b", family), transport: Transport::Other(protocol) };
        assert_eq!(revoked, [(expected, Direction::Ingress)], "{family}");
    }
}

#[test]
fn a_flush_deletes_all_entries_of_an_address_and_no_others() {
    let testbed = Testbed::new();
    testbed.allow_ingress(&[DENIED, ALLOWED]);
    // DNAT of a Service's address to B, and masquerade of A's requests to B.
    testbed.node.sh("ip addr add 10.99.0.1/32 dev lo; ip addr add fd00:99::1/128 dev lo nodad
        nft -f - <<'END'
            table inet others {
                chain prerouting { type nat hook prerouting priority -100;
                    ip daddr 10.96.0.1 dnat ip to 10.244.1.3
                    ip6 daddr fd00:96::1 dnat ip6 to fd00:244:1::3
                }
                chain postrouting { type nat hook postrouting priority 100;
                    ip saddr 10.244.1.2 ip daddr 10.244.1.3 masquerade
                    ip6 saddr fd00:244:1::2 ip6 daddr fd00:244:1::3 masquerade
                }
            }
END");
    for family in Family::ALL {
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        let before = testbed.conntrack_count();
        let service: IpAddr = if family == Family::V4 { "10.96.0.1" } else { "fd00:96::1" }.parse().unwrap();
        let server = testbed.b.run(|| UdpSocket::bind(SocketAddr::new(address("b", family), DENIED)).unwrap());
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let client = testbed.a.run(|| UdpSocket::bind(SocketAddr::new(address("a", family), 0)).unwrap());
        for to in [service, address("b", family)] {
            client.send_to(b"hello", SocketAddr::new(to, DENIED)).unwrap();
            server.recv(&mut [0; 16]).unwrap();
        }
        testbed.allow_ingress(&[DENIED, ALLOWED]);
        testbed.wait_for_delivery(family, "b", "a");
        assert_eq!(testbed.conntrack_count() - before, 3, "{family}");
        assert_eq!(testbed.flush(address("a", other)), 0, "{family}: the other family has none");
        let all = "to it, with and without NAT, and from it";
        assert_eq!(testbed.flush(address("b", family)), 3, "{family}: {all}");
        assert_eq!(testbed.flush(address("a", family)), 0, "{family}: they were the entries of both addresses");
        assert_eq!(testbed.conntrack_count(), before, "{family}");
    }
}
