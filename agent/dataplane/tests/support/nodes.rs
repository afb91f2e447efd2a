//! Nodes: network namespaces on one bridge, each with the overlay that the agent plans for it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;
use towpath_core::{
    model::{Endpoint, Family, Mac, NodeName, NodePeer, NodePeers, PodId, Vni},
    names::IfName,
    overlay::{
        DirectRouting, InterfaceSpec, Kernel, LocalVtep, NetOp, Overlay, OverlayInput, UplinkQuery, choose_uplink,
        device_mtu, diff, want,
    },
};
use towpath_dataplane::net::{KernelNet, Net};
use towpath_podlink::{PodLink, PodLinkSpec, netns::Netns, sysctl::Sysctls};

use super::Namespace;

/// Nodes on a common layer 2 network.
pub(crate) struct Underlay {
    pub(crate) bridge: Namespace,
    pub(crate) nodes: Vec<Node>,
}

/// A node: a namespace with the interface `uplink` on the bridge, and the addresses 172.30.0.n and fd00:30::n.
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) namespace: Namespace,
}

/// Settings of the overlay.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) direct: DirectRouting,
    pub(crate) mtu: Option<u32>,
}

pub(crate) const DEFAULTS: Settings = Settings { vni: 1, port: 8472, direct: DirectRouting::Disabled, mtu: None };

impl Underlay {
    pub(crate) fn new(nodes: u8) -> Self {
        let bridge = Namespace::new();
        bridge.sh("ip link add br0 type bridge; ip link set br0 up");
        let nodes = (1..=nodes).map(|number| Node::on(&bridge, number)).collect();
        Self { bridge, nodes }
    }

    pub(crate) fn peers(&self, n: usize) -> Vec<NodePeer> {
        self.nodes.iter().take(n).flat_map(Node::as_peers).collect()
    }

    /// Applies the wanted overlay on all nodes.
    pub(crate) fn converge(&self, settings: Settings) {
        let peers = self.peers(self.nodes.len());
        for node in &self.nodes {
            node.converge(settings, &peers);
        }
    }
}

impl Node {
    pub(crate) fn on(bridge: &Namespace, number: u8) -> Self {
        let namespace = Namespace::new();
        let netns = namespace.path();
        // The path names a file of this process; a child process opens it by the id of this process.
        let netns = netns.to_string_lossy().replace("self", &std::process::id().to_string());
        bridge.sh(&format!(
            "ip link add port{number} type veth peer name uplink netns {netns}; ip link set port{number} master br0 up"
        ));
        namespace.sh(&format!(
            "sysctl -qw net.ipv6.conf.uplink.accept_dad=0 # else it resolves no neighbour for a second
             ip link set lo up; ip link set uplink up
             ip addr add 172.30.0.{number}/24 dev uplink
             ip addr add fd00:30::{number}/64 dev uplink nodad
             ip route add default via 172.30.0.254"
        ));
        Self { number, namespace }
    }

    pub(crate) fn name(&self) -> NodeName {
        NodeName(format!("n{}", self.number))
    }

    pub(crate) fn pod_cidr(&self, family: Family) -> IpNet {
        let n = self.number;
        match family {
            Family::V4 => format!("10.244.{n}.0/24").parse().unwrap(),
            Family::V6 => format!("fd00:244:0:{n}::/64").parse().unwrap(),
        }
    }

    pub(crate) fn address(&self, family: Family) -> IpAddr {
        let n = self.number;
        match family {
            Family::V4 => format!("172.30.0.{n}").parse().unwrap(),
            Family::V6 => format!("fd00:30::{n}").parse().unwrap(),
        }
    }

    pub(crate) fn mac(&self, family: Family) -> Mac {
        Mac::locally_administered([0, 0, 0, 0, if family == Family::V4 { 4 } else { 6 }, self.number])
    }

    pub(crate) fn as_peers(&self) -> Vec<NodePeer> {
        Family::ALL
            .into_iter()
            .map(|family| NodePeer {
                node: self.name(),
                pod_cidr: self.pod_cidr(family),
                public_ip: self.address(family),
                vtep_mac: self.mac(family),
            })
            .collect()
    }

    pub(crate) fn want(&self, settings: Settings, peers: &[NodePeer], have: &Kernel) -> Overlay {
        let query = UplinkQuery { spec: &InterfaceSpec::DefaultRoute, families: &Family::ALL, prefer: &[] };
        let uplink = choose_uplink(have, query).unwrap();
        let own = |family| LocalVtep {
            pod_cidr: self.pod_cidr(family),
            local: uplink.addresses[&family],
            mac: self.mac(family),
        };
        let families: BTreeMap<_, _> = Family::ALL.into_iter().map(|family| (family, own(family))).collect();
        let mut by_family = NodePeers::new();
        for peer in peers.iter().filter(|peer| peer.node != self.name()) {
            let family = by_family.entry(Family::of_net(peer.pod_cidr)).or_default();
            family.insert(peer.node.clone(), peer.clone());
        }
        let endpoint = self.endpoint();
        want(&OverlayInput {
            vni: Vni::new(settings.vni).unwrap(),
            port: settings.port,
            mtu: device_mtu(uplink.mtu, settings.mtu, &Family::ALL).unwrap(),
            uplink: &uplink,
            direct_routing: settings.direct,
            families: &families,
            peers: &by_family,
            endpoints: &OrdMap::unit(endpoint.interface.clone(), Arc::new(endpoint)),
        })
    }

    /// Reads back, applies the difference, asserts that none is left, and returns the applied operations.
    pub(crate) fn converge(&self, settings: Settings, peers: &[NodePeer]) -> Vec<NetOp> {
        self.namespace.run(|| {
            let mut net = KernelNet::open(Sysctls::default()).unwrap();
            let have = net.read_back().unwrap();
            let want = self.want(settings, peers, &have);
            let ops = diff(&want, &have);
            let failed = net.apply(&ops);
            assert!(failed.is_empty(), "{failed:#?}");
            let rest = diff(&want, &net.read_back().unwrap());
            assert_eq!(rest, [], "a second run has nothing to apply");
            ops
        })
    }

    pub(crate) fn read_back(&self) -> Kernel {
        self.namespace.run(|| KernelNet::open(Sysctls::default()).unwrap().read_back().unwrap())
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        let pod = PodId { namespace: "default".to_owned(), name: format!("pod{}", self.number) };
        let interface = IfName::of_pod(&pod.namespace, &pod.name);
        Endpoint { pod, interface, addresses: Family::ALL.into_iter().map(|f| self.pod_address(f)).collect() }
    }

    pub(crate) fn pod_address(&self, family: Family) -> IpAddr {
        let n = self.number;
        match family {
            Family::V4 => format!("10.244.{n}.9").parse().unwrap(),
            Family::V6 => format!("fd00:244:0:{n}::9").parse().unwrap(),
        }
    }

    /// Creates the node's pod and returns its namespace.
    pub(crate) fn add_pod(&self, mtu: u32) -> Namespace {
        let pod = Namespace::new();
        let Endpoint { interface, addresses, .. } = self.endpoint();
        let spec = PodLinkSpec { host: interface, pod: IfName::new("eth0").unwrap(), addresses, mtu };
        self.namespace.run(|| {
            PodLink::create(&Netns::open(&pod.path()).unwrap(), &spec).unwrap().connect(&spec).unwrap();
        });
        pod
    }
}
