//! The table in a real kernel, tested with packets: which ones arrive, and with which source address.
//!
//! A node with pods; on its first link another node, which is also the outside; on its second the pods of a third node.
//! To assert that a datagram is dropped, an allowed one follows it through the same queues: when that has arrived, the
//! first one would have arrived, too.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use support::Namespace;
use towpath_core::{
    model::{Endpoint, Family, PodId},
    names::{ChainName, IfName},
    ruleset::{Chain, CmpOp, Field, Match, Rule, Value, Verdict, diff},
    table::{CompiledPolicy, Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};
use towpath_dataplane::nft::{KernelNft, Nft, Ownership};
use towpath_podlink::{PodLink, PodLinkSpec, netns::Netns};

/// The addresses of each endpoint, IPv4 and IPv6.
const ADDRESSES: [(&str, [&str; 2]); 10] = [
    ("a", ["10.244.1.2", "fd00:244:1::2"]),
    ("b", ["10.244.1.3", "fd00:244:1::3"]),
    ("spoofed", ["10.244.9.9", "fd00:244:9::9"]),
    ("node", ["172.30.0.11", "fd00:172::11"]),
    ("node's second", ["10.99.0.1", "fd00:99::1"]),
    ("peer", ["172.30.0.12", "fd00:172::12"]),
    ("outside", ["198.51.100.7", "2001:db8::7"]),
    ("non-masquerade", ["203.0.113.7", "2001:db8:f::7"]),
    ("remote", ["10.244.2.2", "fd00:244:2::2"]),
    ("service", ["10.96.0.1", "fd00:96::1"]),
];

const OVERLAY: u16 = 8472;
const OTHER: u16 = 5000;
/// Datagrams to this port get kube-proxy's masquerade mark, with other bits set, in the node's forward hook.
const MARKED: u16 = 7777;

fn address(endpoint: &str, family: Family) -> IpAddr {
    let (_, [v4, v6]) = ADDRESSES.iter().find(|(name, _)| *name == endpoint).unwrap();
    let text = match family {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    text.parse().unwrap()
}

/// A node, its pods and the networks on its links.
struct Testbed {
    node: Namespace,
    a: Namespace,
    b: Namespace,
    /// The other node and the outside.
    peer: Namespace,
    /// The pods of a third node.
    remote: Namespace,
    policy: PolicyEnforcement,
    masquerade: Masquerade,
    source_to_nodes: SourceToNodes,
    known_pods: Vec<&'static str>,
}

impl Testbed {
    fn new() -> Self {
        let testbed = Self {
            node: Namespace::new(),
            a: Namespace::new(),
            b: Namespace::new(),
            peer: Namespace::new(),
            remote: Namespace::new(),
            policy: PolicyEnforcement::Off,
            masquerade: Masquerade::Enabled {
                non_masquerade_cidrs: vec!["203.0.113.0/24".parse().unwrap(), "2001:db8:f::/48".parse().unwrap()],
            },
            source_to_nodes: SourceToNodes::NodeAddress,
            known_pods: vec!["a", "b"],
        };
        testbed.create_links();
        testbed.pod("a", &testbed.a);
        testbed.pod("b", &testbed.b);
        testbed.a.sh("ip addr add 10.244.9.9/32 dev lo; ip addr add fd00:244:9::9/128 dev lo nodad");
        testbed.node.sh("nft -f - <<'END'
            table inet others {
                chain forward { type filter hook forward priority 0; udp dport 7777 meta mark set 0xc001; }
                chain prerouting { type nat hook prerouting priority -100;
                    ip daddr 10.96.0.1 udp dport 53 dnat ip to 172.30.0.12:8472
                    ip daddr 10.96.0.1 udp dport 54 dnat ip to 172.30.0.12:5000
                    ip6 daddr fd00:96::1 udp dport 53 dnat ip6 to [fd00:172::12]:8472
                    ip6 daddr fd00:96::1 udp dport 54 dnat ip6 to [fd00:172::12]:5000
                }
            }
END");
        testbed.apply();
        testbed
    }

    fn create_links(&self) {
        let namespaces = [(&self.peer, "eth0"), (&self.remote, "eth1")];
        for (other, link) in namespaces {
            // `ip` does not have the file open: it opens it by the id of this process.
            let netns = other.path().to_string_lossy().replace("self", &std::process::id().to_string());
            let command = format!("ip link add {link} type veth peer name eth0 netns {netns}");
            self.node.sh(&command);
        }
        self.node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
             ip link set lo up; ip link set eth0 up; ip link set eth1 up
             ip addr add 172.30.0.11/24 dev eth0; ip addr add fd00:172::11/64 dev eth0 nodad
             ip addr add 10.99.0.1/24 dev eth1; ip addr add fd00:99::1/64 dev eth1 nodad
             ip route add default via 172.30.0.12; ip route add default via fd00:172::12
             ip route add 10.244.2.0/24 via 10.99.0.2; ip route add fd00:244:2::/64 via fd00:99::2");
        self.peer.sh("ip link set lo up; ip link set eth0 up
             ip addr add 172.30.0.12/24 dev eth0; ip addr add fd00:172::12/64 dev eth0 nodad
             for a in 198.51.100.7/32 203.0.113.7/32; do ip addr add $a dev lo; done
             for a in 2001:db8::7/128 2001:db8:f::7/128; do ip addr add $a dev lo nodad; done
             ip route add 10.244.0.0/16 via 172.30.0.11; ip route add fd00:244::/32 via fd00:172::11");
        self.remote.sh("ip link set lo up; ip link set eth0 up
             ip addr add 10.99.0.2/24 dev eth0; ip addr add fd00:99::2/64 dev eth0 nodad
             ip addr add 10.244.2.2/32 dev lo; ip addr add fd00:244:2::2/128 dev lo nodad
             ip route add default via 10.99.0.1; ip route add default via fd00:99::1");
    }

    fn pod(&self, name: &str, namespace: &Namespace) {
        let spec = PodLinkSpec {
            host: IfName::of_pod("default", name),
            pod: IfName::new("eth0").unwrap(),
            addresses: Family::ALL.map(|family| address(name, family)).to_vec(),
            mtu: 1450,
        };
        self.node.run(|| {
            let netns = Netns::open(&namespace.path()).unwrap();
            PodLink::create(&netns, &spec).unwrap().connect(&spec).unwrap();
        });
    }

    /// Applies the wanted table on the node.
    fn apply(&self) {
        let endpoint = |name: &&str| {
            let interface = IfName::of_pod("default", name);
            let pod = PodId { namespace: "default".to_owned(), name: (*name).to_owned() };
            let addresses = Family::ALL.map(|family| address(name, family)).to_vec();
            (interface.clone(), Arc::new(Endpoint { pod, interface, addresses }))
        };
        let nodes = ["node", "peer"].map(|node| Family::ALL.map(|family| address(node, family)));
        let want = table(TableInput {
            endpoints: &self.known_pods.iter().map(endpoint).collect(),
            cluster_pod_cidrs: &["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
            node_pod_cidrs: &["10.244.1.0/24".parse().unwrap(), "fd00:244:1::/64".parse().unwrap()],
            node_addresses: &nodes.into_iter().flatten().collect(),
            vxlan_port: OVERLAY,
            masquerade: self.masquerade.clone(),
            source_to_nodes: self.source_to_nodes,
            policy: self.policy.clone(),
        });
        self.node.run(|| {
            let mut nft = KernelNft::open_as(Ownership::Shared).unwrap();
            let have = nft.read_back().unwrap();
            nft.apply(&diff(&want, have.as_ref())).unwrap();
            assert_eq!(nft.read_back().unwrap(), Some(want.installed()));
        });
    }

    /// The network namespace of an endpoint.
    fn namespace_of(&self, endpoint: &str) -> &Namespace {
        match endpoint {
            "a" | "spoofed" => &self.a,
            "b" => &self.b,
            "node" | "node's second" => &self.node,
            "peer" | "outside" | "non-masquerade" => &self.peer,
            "remote" => &self.remote,
            other => panic!("no endpoint {other}"),
        }
    }

    /// Sends `first`, then `second`, which must arrive. Returns the source address with which `first` arrived, if it
    /// did.
    fn received_source(&self, family: Family, first: &Datagram, second: &Datagram) -> Option<IpAddr> {
        let receiver = |datagram: &Datagram| {
            let to = SocketAddr::new(address(datagram.at.0, family), datagram.at.1);
            self.namespace_of(datagram.at.0).run(|| bind(|| UdpSocket::bind(to)))
        };
        let receivers = [receiver(first), receiver(second)];
        for datagram in [first, second] {
            let from = SocketAddr::new(address(datagram.from, family), 0);
            let to = SocketAddr::new(address(datagram.to.0, family), datagram.to.1);
            self.namespace_of(datagram.from).run(|| UdpSocket::bind(from).unwrap().send_to(b"towpath", to).unwrap());
        }
        receivers[1].set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        receivers[1].recv_from(&mut [0; 16]).expect("the second datagram must arrive");
        receivers[0].set_nonblocking(true).unwrap();
        match receivers[0].recv_from(&mut [0; 16]) {
            Ok((_, source)) => Some(source.ip()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// Asserts in both families with which source address a datagram arrives, or that it is dropped.
    fn check(&self, datagram: (&'static str, &'static str, u16), expected: Option<&str>, why: &str) {
        let (from, to, port) = datagram;
        let valid = if from == "spoofed" { "a" } else { from };
        for family in Family::ALL {
            let first = Datagram { from, to: (to, port), at: (to, port) };
            // The second one has a valid source address and goes to an open port.
            let second = match port {
                OVERLAY => Datagram { from: valid, to: (to, OTHER), at: (to, OTHER) },
                _ => Datagram { from: valid, to: (to, 5001), at: (to, 5001) },
            };
            let source = self.received_source(family, &first, &second);
            assert_eq!(
                source,
                expected.map(|from| address(from, family)),
                "{family} {from} to {to} port {port}: {why}"
            );
        }
    }
}

/// Binds, and retries while the address is in use: a child process of another test holds a copy of every socket between
/// fork and exec.
fn bind<T>(mut bind: impl FnMut() -> io::Result<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match bind() {
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < end => thread::yield_now(),
            result => return result.unwrap(),
        }
    }
}

/// A datagram: its source, the address and port that it is sent to, and those where it arrives after DNAT.
struct Datagram {
    from: &'static str,
    to: (&'static str, u16),
    at: (&'static str, u16),
}

#[test]
fn packets_arrive_with_the_source_address_that_masquerading_gives_them() {
    let testbed = Testbed::new();
    for (datagram, expected, why) in [
        (("a", "outside", OTHER), Some("node"), "masqueraded with the node's address"),
        (("a", "non-masquerade", OTHER), Some("a"), "a non-masquerade network"),
        (("a", "remote", OTHER), Some("a"), "pod to pod"),
        (("a", "b", OTHER), Some("a"), "pod to pod on the node"),
        (("a", "peer", OTHER), Some("node"), "to another node"),
        (("a", "node", OTHER), Some("a"), "to its own node"),
        (("a", "outside", MARKED), Some("a"), "kube-proxy masquerades what has its mark, whatever other bits are set"),
        (("node", "a", OTHER), Some("node"), "the node to its pod"),
        (("outside", "a", OTHER), Some("outside"), "outside to a local pod: the client's address"),
        (
            ("outside", "remote", OTHER),
            Some("node's second"),
            "outside to a remote pod: replies must come back through this node",
        ),
        (("spoofed", "outside", OTHER), None, "a spoofed address to outside"),
        (("spoofed", "b", OTHER), None, "a spoofed address to another pod"),
        (("spoofed", "node", OTHER), None, "a spoofed address to the node"),
    ] {
        testbed.check(datagram, expected, why);
    }
}

#[test]
fn only_nodes_send_to_the_overlay_port_of_nodes() {
    let testbed = Testbed::new();
    for (datagram, expected, why) in [
        (("a", "peer", OVERLAY), None, "a pod to another node"),
        (("a", "node", OVERLAY), None, "a pod to its own node"),
        (("a", "node's second", OVERLAY), None, "a pod to a node's address that the cluster does not know"),
        (("a", "outside", OVERLAY), None, "an address outside the cluster's podCIDRs may be a node"),
        (("a", "remote", OVERLAY), Some("a"), "a pod to a pod"),
        (("a", "b", OVERLAY), Some("a"), "a pod to a pod on the node"),
        (("peer", "node", OVERLAY), Some("peer"), "another node"),
        (("outside", "node", OVERLAY), None, "outside"),
        (("remote", "node", OVERLAY), None, "a remote pod"),
        (("node", "peer", OVERLAY), Some("node"), "this node"),
    ] {
        testbed.check(datagram, expected, why);
    }
    for family in Family::ALL {
        let through = |port, at| Datagram { from: "a", to: ("service", port), at: ("peer", at) };
        let source = testbed.received_source(family, &through(53, OVERLAY), &through(54, OTHER));
        assert_eq!(source, None, "{family}: a pod through a Service whose backend is a node");
    }
}

#[test]
fn an_established_flow_to_the_overlay_port_is_dropped_when_its_source_is_no_node_any_more() {
    let testbed = Testbed::new();
    let (node, peer) = (address("node", Family::V4), address("peer", Family::V4));
    let ours = testbed.node.run(|| UdpSocket::bind((node, OVERLAY))).unwrap();
    let theirs = testbed.peer.run(|| UdpSocket::bind((peer, 0))).unwrap();
    for socket in [&ours, &theirs] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let (port, mut buffer) = (theirs.local_addr().unwrap().port(), [0; 16]);
    theirs.send_to(b"1", (node, OVERLAY)).unwrap();
    assert_eq!(ours.recv_from(&mut buffer).unwrap().1, SocketAddr::new(peer, port));
    ours.send_to(b"2", (peer, port)).unwrap();
    theirs.recv_from(&mut buffer).unwrap();

    testbed.node.sh("nft delete element inet towpath nodes4 { 172.30.0.12 }");
    theirs.send_to(b"3", (node, OVERLAY)).unwrap();
    let second = Datagram { from: "peer", to: ("node", OTHER), at: ("node", OTHER) };
    let first = Datagram { from: "peer", to: ("node", 5001), at: ("node", 5001) };
    assert!(testbed.received_source(Family::V4, &first, &second).is_some());
    ours.set_nonblocking(true).unwrap();
    assert_eq!(
        ours.recv_from(&mut buffer).unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "its source is not a node any more"
    );
}

#[test]
fn overlay_packets_are_not_tracked() {
    let testbed = Testbed::new();
    testbed.node.sh("nft -f - <<'END'
        table inet tracking {
            counter overlay { }
            counter others { }
            chain tracked { udp dport 8472 counter name overlay; udp dport 5000 counter name others; }
            chain input { type filter hook input priority 10; ct state != untracked goto tracked; }
            chain output { type filter hook output priority 10; ct state != untracked goto tracked; }
        }
END");
    for (from, to) in [("node", "peer"), ("peer", "node")] {
        for port in [OVERLAY, OTHER] {
            testbed.check((from, to, port), Some(from), "between nodes");
        }
    }
    let count = |name| testbed.node.sh(&format!("nft list counter inet tracking {name}"));
    assert!(count("overlay").contains("packets 0 "), "{}", count("overlay"));
    assert!(!count("others").contains("packets 0 "), "other packets are tracked");
}

#[test]
fn packets_of_an_unknown_pod_interface_are_dropped_until_it_is_known() {
    let mut testbed = Testbed::new();
    testbed.known_pods = vec!["a"];
    testbed.apply();
    for family in Family::ALL {
        for (from, to) in [("b", "outside"), ("b", "node"), ("a", "b"), ("outside", "b")] {
            let first = Datagram { from, to: (to, OTHER), at: (to, OTHER) };
            let sender = if from == "b" { "a" } else { from };
            let target = if to == "b" { "a" } else { to };
            let target = if sender == target { "node" } else { target };
            let second = Datagram { from: sender, to: (target, 5001), at: (target, 5001) };
            assert_eq!(testbed.received_source(family, &first, &second), None, "{family}: {from} to {to}");
        }
    }
    testbed.known_pods = vec!["a", "b"];
    testbed.apply();
    testbed.check(("b", "outside", OTHER), Some("node"), "a known interface");
    testbed.check(("a", "b", OTHER), Some("a"), "to a known interface");
}

#[test]
fn pod_addresses_are_kept_to_nodes_with_direct_routing_and_everywhere_without_masquerade() {
    let mut testbed = Testbed::new();
    testbed.source_to_nodes = SourceToNodes::PodAddress;
    testbed.apply();
    testbed.check(("a", "peer", OTHER), Some("a"), "direct routing");
    testbed.check(("a", "outside", OTHER), Some("node"), "outside is masqueraded");
    testbed.masquerade = Masquerade::Disabled;
    testbed.apply();
    for (datagram, expected) in
        [(("a", "outside", OTHER), "a"), (("a", "peer", OTHER), "a"), (("outside", "remote", OTHER), "outside")]
    {
        testbed.check(datagram, Some(expected), "masquerade is off");
    }
}

/// A policy for B: ingress on TCP port 80, no egress.
fn one_policy() -> PolicyEnforcement {
    let chain = |name, rules| (ChainName::new(name).unwrap(), Arc::new(Chain { base: None, rules }));
    let is = |field, value| Match::Field(field, CmpOp::Eq, value);
    let http = vec![is(Field::Proto, Value::Proto(6)), is(Field::DestinationPort, Value::Port(80))];
    let ingress = chain("in.b", vec![Rule::verdict(http, Verdict::Accept)]);
    let egress = chain("out.b", vec![Rule::verdict(Vec::new(), Verdict::Drop)]);
    let b = IfName::of_pod("default", "b");
    PolicyEnforcement::Enforce(CompiledPolicy {
        sets: OrdMap::new(),
        ingress: OrdMap::unit(b.clone(), ingress.0.clone()),
        egress: OrdMap::unit(b, egress.0.clone()),
        chains: [ingress, egress].into_iter().collect(),
        ..CompiledPolicy::default()
    })
}

#[test]
fn a_pods_policy_applies_in_both_directions_and_replies_and_neighbour_discovery_pass() {
    let mut testbed = Testbed::new();
    testbed.policy = one_policy();
    testbed.apply();
    for family in Family::ALL {
        let connect = |from: &str, to: &str, port: u16, bound: Duration| {
            let to_address = SocketAddr::new(address(to, family), port);
            let _listener = testbed.namespace_of(to).run(|| bind(|| TcpListener::bind(to_address)));
            testbed.namespace_of(from).run(|| TcpStream::connect_timeout(&to_address, bound)).is_ok()
        };
        // These are the first IPv6 neighbour solicitations, under a policy that allows B no egress.
        let opens = |from, to, port| connect(from, to, port, Duration::from_secs(10));
        assert!(opens("a", "b", 80), "{family}: an allowed connection, and its replies");
        assert!(opens("node", "b", 81), "{family}: the node to its own pod, always");
        assert!(opens("outside", "b", 80), "{family}: from outside");
        for (from, to, port) in [("a", "b", 81), ("outside", "b", 81), ("b", "a", 80), ("b", "node", 80)] {
            let opened = connect(from, to, port, Duration::from_millis(200));
            assert!(!opened, "{family}: {from} to {to} port {port}");
        }
        let ping = |from: &Namespace, to: &str, bound: &str| {
            from.try_sh(&format!("ping -n -c 1 -W {bound} {}", address(to, family)))
        };
        ping(&testbed.node, "b", "10").expect("the node's echo request is answered");
        ping(&testbed.a, "b", "0.2").expect_err("a policy with a port allows no echo request");
        ping(&testbed.b, "a", "0.2").expect_err("no egress is allowed");
    }
}
