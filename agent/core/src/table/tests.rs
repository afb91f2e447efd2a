use super::*;
use crate::{
    model::PodId,
    ruleset::{CtState, Outcome, Packet, Transport},
};

const A: &str = "tow00000000000";
const B: &str = "tow11111111111";
const UNKNOWN: &str = "tow22222222222";

fn interface(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// A node with two pods. No policy selects A. For B, ingress policy allows only TCP port 80 and egress policy allows nothing.
struct TestNode {
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    cluster: Vec<IpNet>,
    local: Vec<IpNet>,
    nodes: OrdSet<IpAddr>,
    masquerade: Masquerade,
    source_to_nodes: SourceToNodes,
    policy: PolicyEnforcement,
}

impl TestNode {
    fn new() -> Self {
        let endpoint = |name: &str, addresses: [&str; 2]| {
            let pod = PodId { namespace: "default".to_owned(), name: name.to_owned() };
            let addresses = addresses.map(|text| text.parse().unwrap()).to_vec();
            (interface(name), Arc::new(Endpoint { pod, interface: interface(name), addresses }))
        };
        let nets = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap()).to_vec();
        let http = [
            Match::Field(Field::Proto, CmpOp::Eq, Value::Proto(6)),
            Match::Field(Field::DestinationPort, CmpOp::Eq, Value::Port(80)),
        ];
        let chain = |rules| Arc::new(Chain { base: None, rules });
        let (ingress, egress) = (chain_name("in.b"), chain_name("out.b"));
        // The ingress chain ends without a verdict: the packet must be dropped.
        let chains = vec![(ingress.clone(), chain(vec![accept(http)])), (egress.clone(), chain(vec![drop([])]))].into();
        let policy = CompiledPolicy {
            sets: OrdMap::new(),
            chains,
            ingress: OrdMap::unit(interface(B), ingress),
            egress: OrdMap::unit(interface(B), egress),
            ..CompiledPolicy::default()
        };
        Self {
            endpoints: OrdMap::from_iter([
                endpoint(A, ["10.244.1.2", "fd00:1::2"]),
                endpoint(B, ["10.244.1.3", "fd00:1::3"]),
            ]),
            cluster: nets(["10.244.0.0/16", "fd00::/16"]),
            local: nets(["10.244.1.0/24", "fd00:1::/64"]),
            nodes: ["172.30.0.11", "172.30.0.12", "2001:db8::11", "2001:db8::12"]
                .map(|text| text.parse::<IpAddr>().unwrap())
                .into_iter()
                .collect(),
            masquerade: Masquerade::Enabled { non_masquerade_cidrs: nets(["192.168.0.0/16", "2001:db8:1::/48"]) },
            source_to_nodes: SourceToNodes::NodeAddress,
            policy: PolicyEnforcement::Enforce(policy),
        }
    }

    fn table(&self) -> Ruleset {
        table(TableInput {
            endpoints: &self.endpoints,
            cluster_pod_cidrs: &self.cluster,
            node_pod_cidrs: &self.local,
            node_addresses: &self.nodes,
            vxlan_port: 8472,
            masquerade: self.masquerade.clone(),
            source_to_nodes: self.source_to_nodes,
            policy: self.policy.clone(),
        })
    }

    fn outcome(&self, hook: Hook, packet: &Packet) -> Outcome {
        self.table().interpret(hook, packet).unwrap()
    }
}

const TCP_80: Transport = Transport::Ports { protocol: 6, destination: 80 };
const TCP_81: Transport = Transport::Ports { protocol: 6, destination: 81 };
const OVERLAY: Transport = Transport::Ports { protocol: 17, destination: 8472 };
const PING: Transport = Transport::Other(1);

fn packet(interfaces: (&str, &str), source: &str, destination: &str, transport: Transport) -> Packet {
    let name = |name: &str| (!name.is_empty()).then(|| interface(name));
    Packet {
        in_interface: name(interfaces.0),
        out_interface: name(interfaces.1),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        transport,
        state: None,
        mark: 0,
    }
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    use Outcome::{Accepted, Dropped};
    let node = TestNode::new();
    for (from, source, transport, expected, why) in [
        (A, "10.244.1.2", TCP_80, Accepted, "its IPv4 address"),
        (A, "fd00:1::2", TCP_80, Accepted, "its IPv6 address"),
        (A, "10.244.1.3", TCP_80, Dropped, "address of another pod"),
        (A, "0.0.0.0", TCP_80, Dropped, "unspecified address"),
        (A, "172.30.0.12", OVERLAY, Dropped, "address of a node"),
        (A, "fe80::1", Transport::NeighbourDiscovery, Accepted, "neighbour solicitation from link-local"),
        (A, "::", Transport::NeighbourDiscovery, Accepted, "duplicate address detection"),
        (A, "fd00:1::2", Transport::NeighbourDiscovery, Accepted, "neighbour discovery from its IPv6 address"),
        (A, "fd00:1::3", Transport::NeighbourDiscovery, Dropped, "claims the address of another pod"),
        (A, "fe80::1", TCP_80, Dropped, "link-local would bypass policy"),
        (UNKNOWN, "10.244.1.9", TCP_80, Dropped, "interface without an endpoint"),
        (UNKNOWN, "::", Transport::NeighbourDiscovery, Accepted, "claims no address"),
        ("eth0", "10.9.9.9", TCP_80, Accepted, "not a pod interface"),
    ] {
        let packet = packet((from, ""), source, if source.contains(':') { "fd00:9::9" } else { "10.9.9.9" }, transport);
        assert_eq!(node.outcome(Hook::Prerouting, &packet), expected, "{why}");
    }
}

#[test]
fn egress_policy_of_the_source_and_ingress_policy_of_the_destination_apply() {
    use Outcome::{Accepted, Dropped};
    let node = TestNode::new();
    let remote = "10.244.2.7";
    for (hook, interfaces, transport, expected, why) in [
        (Hook::Forward, (A, "flannel.1"), TCP_81, Accepted, "A is not isolated for egress"),
        (Hook::Forward, ("flannel.1", A), TCP_81, Accepted, "A is not isolated for ingress"),
        (Hook::Forward, ("flannel.1", B), TCP_80, Accepted, "ingress of B allows port 80"),
        (Hook::Forward, ("flannel.1", B), TCP_81, Dropped, "ingress of B allows no other port"),
        (Hook::Forward, ("flannel.1", B), PING, Dropped, "end of the ingress chain"),
        (Hook::Forward, (B, "flannel.1"), TCP_80, Dropped, "egress of B allows nothing"),
        (Hook::Forward, (A, B), TCP_80, Accepted, "allowed by egress of A and ingress of B"),
        (Hook::Forward, (A, B), TCP_81, Dropped, "allowed by egress of A, denied by ingress of B"),
        (Hook::Forward, (B, A), TCP_80, Dropped, "denied by egress of B, although ingress of A allows it"),
        (Hook::Forward, (B, B), TCP_80, Dropped, "a pod to itself through a Service: both directions apply"),
        (Hook::Forward, (UNKNOWN, A), TCP_80, Dropped, "source interface without an endpoint"),
        (Hook::Forward, (A, UNKNOWN), TCP_80, Dropped, "destination interface without an endpoint"),
        (Hook::Forward, ("eth0", "eth1"), TCP_80, Accepted, "not a pod's packet"),
        (Hook::Input, (A, ""), TCP_80, Accepted, "pod to its node, not isolated"),
        (Hook::Input, (B, ""), TCP_80, Dropped, "egress policy applies to the pod's own node, too"),
        (Hook::Input, (B, ""), Transport::NeighbourDiscovery, Accepted, "neighbour discovery bypasses policy"),
        (Hook::Input, ("eth0", ""), TCP_80, Accepted, "traffic of the node itself"),
        (Hook::Output, ("", B), TCP_81, Accepted, "kubelet's probes bypass policy"),
    ] {
        assert_eq!(node.outcome(hook, &packet(interfaces, remote, remote, transport)), expected, "{why}");
    }
}

#[test]
fn conntrack_state_is_decided_before_policy() {
    use Outcome::{Accepted, Dropped};
    let node = TestNode::new();
    for (interfaces, state, expected, why) in [
        (("flannel.1", B), CtState::Established, Accepted, "a reply"),
        (("flannel.1", B), CtState::Related, Accepted, "an ICMP error"),
        ((B, "flannel.1"), CtState::Established, Accepted, "a reply of B, although its egress policy allows nothing"),
        ((A, "flannel.1"), CtState::Invalid, Dropped, "an invalid packet may be forged"),
        (("eth0", "eth1"), CtState::Invalid, Accepted, "not a pod's packet"),
    ] {
        let packet = Packet { state: Some(state), ..packet(interfaces, "10.244.2.7", "10.244.1.3", TCP_81) };
        assert_eq!(node.outcome(Hook::Forward, &packet), expected, "{why}");
    }
}

#[test]
fn only_nodes_send_to_the_overlay_port_of_nodes() {
    use Outcome::{Accepted, Dropped};
    let mut node = TestNode::new();
    node.policy = PolicyEnforcement::Off;
    for (hook, interfaces, source, destination, expected, why) in [
        (Hook::Input, ("eth0", ""), "172.30.0.12", "172.30.0.11", Accepted, "a node, over IPv4"),
        (Hook::Input, ("eth0", ""), "2001:db8::12", "2001:db8::11", Accepted, "a node, over IPv6"),
        (Hook::Input, ("eth0", ""), "172.30.0.99", "172.30.0.11", Dropped, "a host that is not a node"),
        (Hook::Input, (A, ""), "10.244.1.2", "172.30.0.11", Dropped, "a pod to its own node"),
        (
            Hook::Input,
            ("flannel.1", ""),
            "10.244.2.2",
            "10.244.1.0",
            Dropped,
            "a pod to the address of the VXLAN device",
        ),
        (Hook::Forward, (A, "eth0"), "10.244.1.2", "172.30.0.12", Dropped, "a pod to another node"),
        (Hook::Forward, (A, "eth0"), "fd00:1::2", "2001:db8::12", Dropped, "a pod to another node, over IPv6"),
        (
            Hook::Forward,
            (A, "eth0"),
            "10.244.1.2",
            "172.31.0.12",
            Dropped,
            "an address outside the cluster may belong to a node",
        ),
        (
            Hook::Forward,
            (A, "flannel.1"),
            "10.244.1.2",
            "10.244.2.2",
            Accepted,
            "pods may use the port among themselves",
        ),
        (Hook::Forward, ("eth0", "eth1"), "172.30.0.99", "172.30.0.98", Accepted, "not a pod's packet"),
    ] {
        for state in [None, Some(CtState::Established)] {
            let packet = Packet { state, ..packet(interfaces, source, destination, OVERLAY) };
            assert_eq!(node.outcome(hook, &packet), expected, "{why}");
        }
    }
}

#[test]
fn packets_that_leave_the_cluster_are_masqueraded() {
    use Outcome::{Accepted, Masqueraded};
    for (source, destination, expected, why) in [
        ("10.244.1.2", "198.51.100.7", Masqueraded, "pod to outside"),
        ("fd00:1::2", "2001:db8:9::9", Masqueraded, "pod to outside over IPv6"),
        ("10.244.1.2", "10.244.2.2", Accepted, "pod to pod"),
        ("fd00:1::2", "fd00:2::2", Accepted, "pod to pod over IPv6"),
        ("10.244.1.2", "192.168.4.4", Accepted, "to nonMasqueradeCIDRs"),
        ("fd00:1::2", "2001:db8:1::9", Accepted, "to nonMasqueradeCIDRs over IPv6"),
        ("10.244.1.2", "224.0.0.251", Accepted, "multicast"),
        ("fd00:1::2", "ff02::fb", Accepted, "multicast over IPv6"),
        ("10.244.1.2", "172.30.0.12", Masqueraded, "to a node: the reply must take the same path"),
        ("198.51.100.7", "10.244.2.2", Masqueraded, "outside to a remote pod: the reply must return here"),
        ("198.51.100.7", "10.244.1.2", Accepted, "outside to a local pod: keeps the client's address"),
        ("2001:db8:9::9", "fd00:2::2", Masqueraded, "outside to a remote pod over IPv6"),
        ("2001:db8:9::9", "fd00:1::2", Accepted, "outside to a local pod over IPv6"),
        ("172.30.0.11", "172.30.0.12", Accepted, "node to node"),
    ] {
        let node = TestNode::new();
        let packet = packet(("", "eth0"), source, destination, TCP_80);
        assert_eq!(node.outcome(Hook::Postrouting, &packet), expected, "{why}");
        for mark in [0x4000, 0xc001] {
            let marked = Packet { mark, ..packet.clone() };
            assert_eq!(
                node.outcome(Hook::Postrouting, &marked),
                Accepted,
                "{why}: kube-proxy masquerades it, {mark:#x}"
            );
        }
        let other = Packet { mark: 0x8000, ..packet.clone() };
        assert_eq!(node.outcome(Hook::Postrouting, &other), expected, "{why}: an unrelated mark");
        let disabled = TestNode { masquerade: Masquerade::Disabled, ..TestNode::new() };
        assert_eq!(disabled.outcome(Hook::Postrouting, &packet), Accepted, "{why}: disabled");
    }
}

#[test]
fn with_pod_address_as_source_packets_to_nodes_are_not_masqueraded() {
    let node = TestNode { source_to_nodes: SourceToNodes::PodAddress, ..TestNode::new() };
    for (destination, expected) in [("172.30.0.12", Outcome::Accepted), ("198.51.100.7", Outcome::Masqueraded)] {
        let packet = packet((A, "eth0"), "10.244.1.2", destination, TCP_80);
        assert_eq!(node.outcome(Hook::Postrouting, &packet), expected, "{destination}");
    }
}

#[test]
fn without_enforcement_endpoints_are_not_isolated_and_antispoofing_stays() {
    let node = TestNode { policy: PolicyEnforcement::Off, ..TestNode::new() };
    for (interfaces, expected) in
        [((A, B), Outcome::Accepted), ((B, A), Outcome::Accepted), ((UNKNOWN, A), Outcome::Dropped)]
    {
        let packet = packet(interfaces, "10.244.1.2", "10.244.1.3", TCP_81);
        assert_eq!(node.outcome(Hook::Forward, &packet), expected, "{interfaces:?}");
    }
    let spoofed = packet((A, ""), "10.244.1.3", "10.244.2.2", TCP_80);
    assert_eq!(node.outcome(Hook::Prerouting, &spoofed), Outcome::Dropped);
}

#[test]
fn overlapping_and_adjacent_networks_are_merged() {
    let nets: Vec<IpNet> =
        ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "192.0.2.7/32", "192.0.2.77/24", "fd00::/8", "192.0.2.7/32"]
            .map(|text| text.parse().unwrap())
            .into();
    let set = networks(Family::V4, &nets);
    let expected: [Value; 2] = [Value::Net("10.0.0.0/8".parse().unwrap()), Value::Net("192.0.2.0/24".parse().unwrap())];
    assert_eq!(set.elements, expected.map(|value| vec![value]).into_iter().collect());
    assert!(networks(Family::V6, &nets[..4]).elements.is_empty());
}
