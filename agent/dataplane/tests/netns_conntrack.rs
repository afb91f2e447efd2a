//! Conntrack entries in a real kernel: revoked, left alone, restored, and flushed by address.
//!
//! A node with two pods, B behind a policy. What must not arrive is followed by a datagram that must, over the same
//! links: when that is there, the first would be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

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

const BOUND: Duration = Duration::from_secs(10);
const TCP: u8 = 6;
const UDP: u8 = 17;
/// A port whose connections are denied later, and one that stays allowed.
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

struct World {
    node: Namespace,
    a: Namespace,
    b: Namespace,
}

impl World {
    fn new() -> Self {
        let world = Self { node: Namespace::new(), a: Namespace::new(), b: Namespace::new() };
        world.node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link set lo up");
        for (name, namespace) in [("a", &world.a), ("b", &world.b)] {
            let Endpoint { interface, addresses, .. } = endpoint(name);
            let spec = PodLinkSpec { host: interface, pod: IfName::new("eth0").unwrap(), addresses, mtu: 1450 };
            world.node.run(|| {
                let netns = Netns::open(&namespace.path()).unwrap();
                PodLink::create(&netns, &spec).unwrap().connect(&spec).unwrap();
            });
        }
        world
    }

    /// Puts a table in force in which B lets in connections to these ports only.
    fn let_in(&self, ports: &[u16]) -> Ruleset {
        let to = |port: &u16| vec![Match::Field(Field::DestinationPort, CmpOp::Eq, Value::Port(*port))];
        let rules = ports.iter().map(|port| Rule::verdict(to(port), Verdict::Accept)).collect();
        let chain = ChainName::new("in.b").unwrap();
        let part = CompiledPolicy {
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
            policy: PolicyEnforcement::Enforce(part),
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

    fn known(&self) -> usize {
        self.node.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse().unwrap()
    }

    /// A connection from A to B, by its two ends.
    fn tcp(&self, family: Family, port: u16) -> (TcpStream, TcpStream) {
        let to = SocketAddr::new(address("b", family), port);
        let listener = self.b.run(|| TcpListener::bind(to).unwrap());
        let client = self.a.run(|| TcpStream::connect_timeout(&to, BOUND).unwrap());
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(BOUND)).unwrap();
        }
        (client, server)
    }

    /// A flow of datagrams from A to B that has been answered.
    fn udp(&self, family: Family, port: u16) -> (UdpSocket, UdpSocket) {
        let to = SocketAddr::new(address("b", family), port);
        let server = self.b.run(|| UdpSocket::bind(to).unwrap());
        let client = self.a.run(|| UdpSocket::bind(SocketAddr::new(address("a", family), 0)).unwrap());
        client.connect(to).unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(BOUND)).unwrap();
        }
        client.send(b"hello").unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.connect(from).unwrap();
        server.send(b"hello").unwrap();
        client.recv(&mut [0; 16]).unwrap();
        (client, server)
    }

    /// Waits until what was sent from one pod to the other before has arrived, or never will.
    fn settle(&self, family: Family, from: &str, to: &str) {
        let (from_home, to_home) = if from == "a" { (&self.a, &self.b) } else { (&self.b, &self.a) };
        let receiver = to_home.run(|| UdpSocket::bind(SocketAddr::new(address(to, family), ALLOWED)).unwrap());
        receiver.set_read_timeout(Some(BOUND)).unwrap();
        let sender = from_home.run(|| UdpSocket::bind(SocketAddr::new(address(from, family), 0)).unwrap());
        sender.send_to(b"last", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 16]).expect("what is allowed arrives");
    }
}

fn nothing_there(mut end: &TcpStream) -> bool {
    end.set_nonblocking(true).unwrap();
    let nothing = end.read(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    end.set_nonblocking(false).unwrap();
    nothing
}

fn hears(mut end: &TcpStream, text: &str) -> bool {
    let mut received = vec![0; text.len()];
    end.read_exact(&mut received).is_ok() && received == text.as_bytes()
}

#[test]
fn a_denied_connection_of_tcp_is_cut_both_ways_and_goes_on_when_it_is_allowed_again() {
    for family in Family::ALL {
        let world = World::new();
        let open = world.let_in(&[DENIED, ALLOWED]);
        let ((mut client, mut server), (spared, mut spared_server)) =
            (world.tcp(family, DENIED), world.tcp(family, ALLOWED));
        assert_eq!(world.reevaluate(&open), Reevaluated::default(), "{family}: nothing is denied");

        let closed = world.let_in(&[ALLOWED]);
        let transport = Transport::Ports { protocol: TCP, destination: DENIED };
        let connection = Connection { from: address("a", family), to: address("b", family), transport };
        assert_eq!(world.reevaluate(&closed).revoked, [(connection, Direction::Ingress)], "{family}");
        // The answer first: it could start the connection again in a direction that no policy denies.
        server.write_all(b"answer").unwrap();
        world.settle(family, "b", "a");
        assert!(nothing_there(&client), "{family}: an answer");
        client.write_all(b"question").unwrap();
        world.settle(family, "a", "b");
        assert!(nothing_there(&server), "{family}: a question");
        assert_eq!(
            world.reevaluate(&closed),
            Reevaluated { still_revoked: 1, ..Reevaluated::default() },
            "{family}: again"
        );
        spared_server.write_all(b"spared").unwrap();
        assert!(hears(&spared, "spared"), "{family}: what is allowed");

        let open = world.let_in(&[DENIED, ALLOWED]);
        assert_eq!(world.reevaluate(&open).restored, 1, "{family}");
        assert!(hears(&client, "answer") && hears(&server, "question"), "{family}: both are sent again");
    }
}

#[test]
fn a_denied_flow_of_datagrams_is_cut_though_an_answer_is_on_its_way() {
    let world = World::new();
    for family in Family::ALL {
        world.let_in(&[DENIED, ALLOWED, ALLOWED + 1_000]);
        let (client, server) = world.udp(family, DENIED);
        let (spared, spared_server) = world.udp(family, ALLOWED + 1_000);
        let closed = world.let_in(&[ALLOWED, ALLOWED + 1_000]);
        let revoked = world.reevaluate(&closed).revoked;
        assert_eq!(revoked.len(), 1, "{family}: {revoked:?}");
        assert_eq!(revoked[0].0.transport, Transport::Ports { protocol: UDP, destination: DENIED });
        server.send(b"answer").unwrap();
        world.settle(family, "b", "a");
        client.send(b"question").unwrap();
        world.settle(family, "a", "b");
        for end in [&client, &server] {
            end.set_nonblocking(true).unwrap();
            assert_eq!(end.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock, "{family}");
        }
        spared.send(b"spared").unwrap();
        spared_server.recv(&mut [0; 16]).expect("what is allowed");
    }
}

#[test]
fn a_flow_that_nobody_has_answered_is_forgotten_and_asked_about_with_each_datagram() {
    for family in Family::ALL {
        let world = World::new();
        world.let_in(&[DENIED, ALLOWED]);
        let to = SocketAddr::new(address("b", family), DENIED);
        let server = world.b.run(|| UdpSocket::bind(to).unwrap());
        server.set_read_timeout(Some(BOUND)).unwrap();
        let client = world.a.run(|| UdpSocket::bind(SocketAddr::new(address("a", family), 0)).unwrap());
        client.send_to(b"hello", to).unwrap();
        server.recv(&mut [0; 16]).unwrap();
        let before = world.known();
        let closed = world.let_in(&[ALLOWED]);
        assert_eq!(world.reevaluate(&closed), Reevaluated::default(), "{family}: nothing is revoked");
        assert_eq!(world.known(), before - 1, "{family}");
        world.let_in(&[DENIED, ALLOWED]);
        client.send_to(b"hello", to).unwrap();
        server.recv(&mut [0; 16]).expect("allowed again, at once");
    }
}

#[test]
fn echo_requests_are_cut_where_only_ports_are_allowed() {
    let world = World::new();
    for family in Family::ALL {
        world.let_in(&[]);
        world.node.sh("nft flush chain inet towpath to-pod");
        world.a.sh(&format!("ping -n -c 1 -W 10 {}", address("b", family)));
        let revoked = world.reevaluate(&world.let_in(&[ALLOWED])).revoked;
        let protocol = if family == Family::V4 { 1 } else { 58 };
        let expected =
            Connection { from: address("a", family), to: address("b", family), transport: Transport::Other(protocol) };
        assert_eq!(revoked, [(expected, Direction::Ingress)], "{family}");
    }
}

#[test]
fn what_an_address_began_or_answered_goes_with_it_and_nothing_else() {
    let world = World::new();
    world.let_in(&[DENIED, ALLOWED]);
    // Two services: one of B's, and one behind which A's requests carry the node's address.
    world.node.sh("ip addr add 10.99.0.1/32 dev lo; ip addr add fd00:99::1/128 dev lo nodad
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
        let before = world.known();
        let service: IpAddr = if family == Family::V4 { "10.96.0.1" } else { "fd00:96::1" }.parse().unwrap();
        let server = world.b.run(|| UdpSocket::bind(SocketAddr::new(address("b", family), DENIED)).unwrap());
        server.set_read_timeout(Some(BOUND)).unwrap();
        let client = world.a.run(|| UdpSocket::bind(SocketAddr::new(address("a", family), 0)).unwrap());
        for to in [service, address("b", family)] {
            client.send_to(b"hello", SocketAddr::new(to, DENIED)).unwrap();
            server.recv(&mut [0; 16]).unwrap();
        }
        world.let_in(&[DENIED, ALLOWED]);
        world.settle(family, "b", "a");
        assert_eq!(world.known() - before, 3, "{family}");
        assert_eq!(world.flush(address("a", other)), 0, "{family}: the other family has none");
        let all = "to it, with and without translation, and from it";
        assert_eq!(world.flush(address("b", family)), 3, "{family}: {all}");
        assert_eq!(world.flush(address("a", family)), 0, "{family}: all of them were its own, too");
        assert_eq!(world.known(), before, "{family}");
    }
}
