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

/// Two pods: A without policy, B with a policy for ingress that accepts TCP 80 only and one for egress that drops all.
struct World {
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    cluster: Vec<IpNet>,
    local: Vec<IpNet>,
    nodes: OrdSet<IpAddr>,
    masquerade: Masquerade,
    source_to_nodes: SourceToNodes,
    policy: PolicyEnforcement,
}

impl World {
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
        let (into, out) = (chain_name("in.b"), chain_name("out.b"));
        // The one for ingress comes to its end without a verdict, which must drop.
        let chains = vec![(into.clone(), chain(vec![accept(http)])), (out.clone(), chain(vec![drop([])]))].into();
        let part = CompiledPolicy {
            sets: OrdMap::new(),
            chains,
            ingress: OrdMap::unit(interface(B), into),
            egress: OrdMap::unit(interface(B), out),
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
            policy: PolicyEnforcement::Enforce(part),
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

fn packet(way: (&str, &str), source: &str, destination: &str, transport: Transport) -> Packet {
    let name = |name: &str| (!name.is_empty()).then(|| interface(name));
    Packet {
        in_interface: name(way.0),
        out_interface: name(way.1),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        transport,
        state: None,
        mark: 0,
    }
}

#[test]
fn a_pods_interface_sends_from_its_own_addresses_only() {
    use Outcome::{Accepted, Dropped};
    let world = World::new();
    for (from, source, transport, expected, why) in [
        (A, "10.244.1.2", TCP_80, Accepted, "its own"),
        (A, "fd00:1::2", TCP_80, Accepted, "its own of the other family"),
        (A, "10.244.1.3", TCP_80, Dropped, "another pod's"),
        (A, "0.0.0.0", TCP_80, Dropped, "none"),
        (A, "172.30.0.12", OVERLAY, Dropped, "a node's"),
        (A, "fe80::1", Transport::NeighbourDiscovery, Accepted, "looks for its neighbours"),
        (A, "::", Transport::NeighbourDiscovery, Accepted, "asks whether its address is free"),
        (A, "fd00:1::2", Transport::NeighbourDiscovery, Accepted, "its own"),
        (A, "fd00:1::3", Transport::NeighbourDiscovery, Dropped, "claims another pod's"),
        (A, "fe80::1", TCP_80, Dropped, "no way to talk to the node behind its policy"),
        (UNKNOWN, "10.244.1.9", TCP_80, Dropped, "an interface that is not known yet"),
        (UNKNOWN, "::", Transport::NeighbourDiscovery, Accepted, "harmless, and the address stays free"),
        ("eth0", "10.9.9.9", TCP_80, Accepted, "not a pod's"),
    ] {
        let packet = packet((from, ""), source, if source.contains(':') { "fd00:9::9" } else { "10.9.9.9" }, transport);
        assert_eq!(world.outcome(Hook::Prerouting, &packet), expected, "{why}");
    }
}

#[test]
fn a_packet_meets_the_policies_of_its_sender_and_of_its_receiver() {
    use Outcome::{Accepted, Dropped};
    let world = World::new();
    let remote = "10.244.2.7";
    for (hook, way, transport, expected, why) in [
        (Hook::Forward, (A, "flannel.1"), TCP_81, Accepted, "no policy isolates A"),
        (Hook::Forward, ("flannel.1", A), TCP_81, Accepted, "in neither direction"),
        (Hook::Forward, ("flannel.1", B), TCP_80, Accepted, "B takes port 80"),
        (Hook::Forward, ("flannel.1", B), TCP_81, Dropped, "and nothing else"),
        (Hook::Forward, ("flannel.1", B), PING, Dropped, "the chain's end drops"),
        (Hook::Forward, (B, "flannel.1"), TCP_80, Dropped, "B may not send"),
        (Hook::Forward, (A, B), TCP_80, Accepted, "both on this node: both are asked"),
        (Hook::Forward, (A, B), TCP_81, Dropped, "and B says no, although A's egress has accepted"),
        (Hook::Forward, (B, A), TCP_80, Dropped, "and B says no, although A would accept"),
        (Hook::Forward, (B, B), TCP_80, Dropped, "a pod to itself through a Service is asked twice"),
        (Hook::Forward, (UNKNOWN, A), TCP_80, Dropped, "who is not known may not send"),
        (Hook::Forward, (A, UNKNOWN), TCP_80, Dropped, "nor receive"),
        (Hook::Forward, ("eth0", "eth1"), TCP_80, Accepted, "no pod's business"),
        (Hook::Input, (A, ""), TCP_80, Accepted, "to its own node"),
        (Hook::Input, (B, ""), TCP_80, Dropped, "its egress policy counts for its own node, too"),
        (Hook::Input, (B, ""), Transport::NeighbourDiscovery, Accepted, "but it must find the node"),
        (Hook::Input, ("eth0", ""), TCP_80, Accepted, "the node's own traffic"),
        (Hook::Output, ("", B), TCP_81, Accepted, "kubelet's probes"),
    ] {
        assert_eq!(world.outcome(hook, &packet(way, remote, remote, transport)), expected, "{why}");
    }
}

#[test]
fn the_state_of_a_connection_comes_before_every_policy() {
    use Outcome::{Accepted, Dropped};
    let world = World::new();
    for (way, state, expected, why) in [
        (("flannel.1", B), CtState::Established, Accepted, "a reply"),
        (("flannel.1", B), CtState::Related, Accepted, "an ICMP error"),
        ((B, "flannel.1"), CtState::Established, Accepted, "its reply to who may connect"),
        ((A, "flannel.1"), CtState::Invalid, Dropped, "cannot be told apart from forgery"),
        (("eth0", "eth1"), CtState::Invalid, Accepted, "no pod's business"),
    ] {
        let packet = Packet { state: Some(state), ..packet(way, "10.244.2.7", "10.244.1.3", TCP_81) };
        assert_eq!(world.outcome(Hook::Forward, &packet), expected, "{why}");
    }
}

#[test]
fn the_overlays_port_belongs_to_nodes() {
    use Outcome::{Accepted, Dropped};
    let mut world = World::new();
    world.policy = PolicyEnforcement::Off;
    for (hook, way, source, destination, expected, why) in [
        (Hook::Input, ("eth0", ""), "172.30.0.12", "172.30.0.11", Accepted, "a node"),
        (Hook::Input, ("eth0", ""), "2001:db8::12", "2001:db8::11", Accepted, "a node, over IPv6"),
        (Hook::Input, ("eth0", ""), "172.30.0.99", "172.30.0.11", Dropped, "somebody else"),
        (Hook::Input, (A, ""), "10.244.1.2", "172.30.0.11", Dropped, "a pod to its own node"),
        (Hook::Input, ("flannel.1", ""), "10.244.2.2", "10.244.1.0", Dropped, "a pod to the address of our tunnel"),
        (Hook::Forward, (A, "eth0"), "10.244.1.2", "172.30.0.12", Dropped, "a pod to another node"),
        (Hook::Forward, (A, "eth0"), "fd00:1::2", "2001:db8::12", Dropped, "the same over IPv6"),
        (Hook::Forward, (A, "eth0"), "10.244.1.2", "172.31.0.12", Dropped, "an address that a node may have"),
        (
            Hook::Forward,
            (A, "flannel.1"),
            "10.244.1.2",
            "10.244.2.2",
            Accepted,
            "a pod to a pod is free to use the number",
        ),
        (Hook::Forward, ("eth0", "eth1"), "172.30.0.99", "172.30.0.98", Accepted, "not ours to judge"),
    ] {
        for state in [None, Some(CtState::Established)] {
            let packet = Packet { state, ..packet(way, source, destination, OVERLAY) };
            assert_eq!(world.outcome(hook, &packet), expected, "{why}");
        }
    }
}

#[test]
fn who_leaves_the_cluster_does_so_with_the_nodes_address() {
    use Outcome::{Accepted, Masqueraded};
    for (source, destination, expected, why) in [
        ("10.244.1.2", "198.51.100.7", Masqueraded, "pod to outside"),
        ("fd00:1::2", "2001:db8:9::9", Masqueraded, "pod to outside over IPv6"),
        ("10.244.1.2", "10.244.2.2", Accepted, "pod to pod"),
        ("fd00:1::2", "fd00:2::2", Accepted, "pod to pod over IPv6"),
        ("10.244.1.2", "192.168.4.4", Accepted, "to a network that sees pods"),
        ("fd00:1::2", "2001:db8:1::9", Accepted, "to one of IPv6"),
        ("10.244.1.2", "224.0.0.251", Accepted, "multicast"),
        ("fd00:1::2", "ff02::fb", Accepted, "multicast of IPv6"),
        ("10.244.1.2", "172.30.0.12", Masqueraded, "to a node: the answer must take the same way"),
        ("198.51.100.7", "10.244.2.2", Masqueraded, "outside to a remote pod: the answer must come back here"),
        ("198.51.100.7", "10.244.1.2", Accepted, "outside to a local pod keeps the client's address"),
        ("2001:db8:9::9", "fd00:2::2", Masqueraded, "outside to a remote pod over IPv6"),
        ("2001:db8:9::9", "fd00:1::2", Accepted, "outside to a local pod over IPv6"),
        ("172.30.0.11", "172.30.0.12", Accepted, "node to node"),
    ] {
        let world = World::new();
        let packet = packet(("", "eth0"), source, destination, TCP_80);
        assert_eq!(world.outcome(Hook::Postrouting, &packet), expected, "{why}");
        for mark in [0x4000, 0xc001] {
            let marked = Packet { mark, ..packet.clone() };
            assert_eq!(world.outcome(Hook::Postrouting, &marked), Accepted, "{why}: kube-proxy does it, {mark:#x}");
        }
        let other = Packet { mark: 0x8000, ..packet.clone() };
        assert_eq!(world.outcome(Hook::Postrouting, &other), expected, "{why}: another mark is no matter");
        let off = World { masquerade: Masquerade::Disabled, ..World::new() };
        assert_eq!(off.outcome(Hook::Postrouting, &packet), Accepted, "{why}: off is off");
    }
}

#[test]
fn nodes_see_pods_addresses_where_the_underlay_routes_them() {
    let world = World { source_to_nodes: SourceToNodes::PodAddress, ..World::new() };
    for (destination, expected) in [("172.30.0.12", Outcome::Accepted), ("198.51.100.7", Outcome::Masqueraded)] {
        let packet = packet((A, "eth0"), "10.244.1.2", destination, TCP_80);
        assert_eq!(world.outcome(Hook::Postrouting, &packet), expected, "{destination}");
    }
}

#[test]
fn without_policies_every_known_pod_talks_and_guards_stay() {
    let world = World { policy: PolicyEnforcement::Off, ..World::new() };
    for (way, expected) in [((A, B), Outcome::Accepted), ((B, A), Outcome::Accepted), ((UNKNOWN, A), Outcome::Dropped)]
    {
        let packet = packet(way, "10.244.1.2", "10.244.1.3", TCP_81);
        assert_eq!(world.outcome(Hook::Forward, &packet), expected, "{way:?}");
    }
    let forged = packet((A, ""), "10.244.1.3", "10.244.2.2", TCP_80);
    assert_eq!(world.outcome(Hook::Prerouting, &forged), Outcome::Dropped);
}

#[test]
fn networks_that_overlap_or_touch_are_merged() {
    let nets: Vec<IpNet> =
        ["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "192.0.2.7/32", "192.0.2.77/24", "fd00::/8", "192.0.2.7/32"]
            .map(|text| text.parse().unwrap())
            .into();
    let set = networks(Family::V4, &nets);
    let expected: [Value; 2] = [Value::Net("10.0.0.0/8".parse().unwrap()), Value::Net("192.0.2.0/24".parse().unwrap())];
    assert_eq!(set.elements, expected.map(|value| vec![value]).into_iter().collect());
    assert!(networks(Family::V6, &nets[..4]).elements.is_empty());
}
