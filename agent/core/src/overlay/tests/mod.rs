//! A small dual-stack test cluster: this node has the number 99, its peers count from 1.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::*;
use crate::{
    model::{Endpoint, Family, Mac, NodeName, NodePeer, NodePeers, PodId, Vni},
    names::IfName,
};

mod diff;
mod history;
mod laws;
mod notification;
mod uplink;
mod want;

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pod_cidr(family: Family, node: u8) -> IpNet {
    match family {
        Family::V4 => net(&format!("10.244.{node}.0/24")),
        Family::V6 => net(&format!("fd00:244:0:{node}::/64")),
    }
}

fn public_ip(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => addr(&format!("172.30.0.{host}")),
        Family::V6 => addr(&format!("fd00:30::{host}")),
    }
}

fn mac(family: Family, number: u8) -> Mac {
    Mac::locally_administered([0, 0, 0, 0, if family == Family::V4 { 4 } else { 6 }, number])
}

fn peer(family: Family, node: u8) -> NodePeer {
    NodePeer {
        node: NodeName(format!("n{node}")),
        pod_cidr: pod_cidr(family, node),
        public_ip: public_ip(family, node),
        vtep_mac: mac(family, node),
    }
}

fn link(text: &str, mtu: u32) -> Link {
    Link {
        name: name(text),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu,
        state: LinkState::Up,
        kind: LinkKind::Other("device".to_owned()),
    }
}

/// A node before the overlay exists: loopback, an uplink with a default route, and the links of two pods.
fn fresh() -> Kernel {
    let mut kernel = Kernel::default();
    kernel.links.insert(IfIndex(1), link("lo", 65536));
    kernel.links.insert(IfIndex(2), link("uplink", 1500));
    for pod in 1..=2 {
        kernel.links.insert(IfIndex(10 + u32::from(pod)), link(endpoint(pod).interface.as_str(), 1430));
    }
    kernel.addresses.insert(IfIndex(2), vec![net("172.30.0.99/24"), net("fd00:30::99/64")]);
    let target = RouteTarget::Via { gateway: addr("172.30.0.254"), link: IfIndex(2) };
    kernel
        .routes
        .insert(RouteKey { destination: net("0.0.0.0/0"), metric: 0 }, Route { target, owner: RouteOwner::Other(3) });
    kernel
}

fn endpoint(number: u8) -> Endpoint {
    let pod = PodId { namespace: "default".to_owned(), name: format!("pod{number}") };
    let interface = IfName::of_pod(&pod.namespace, &pod.name);
    let addresses = vec![addr(&format!("10.244.99.{}", number + 1)), addr(&format!("fd00:244:0:99::{}", number + 1))];
    Endpoint { pod, interface, addresses }
}

/// The input of the planner in a form that tests can modify.
#[derive(Debug, Clone)]
struct Cluster {
    vni: u32,
    port: u16,
    mtu: u32,
    direct: DirectRouting,
    families: BTreeMap<Family, LocalVtep>,
    peers: Vec<NodePeer>,
    endpoints: Vec<Endpoint>,
}

impl Cluster {
    /// Peers 1 to `peers`, in both families.
    fn of(peers: u8) -> Self {
        let vtep =
            |family| LocalVtep { pod_cidr: pod_cidr(family, 99), local: public_ip(family, 99), mac: mac(family, 99) };
        Self {
            vni: 1,
            port: 8472,
            mtu: 1430,
            direct: DirectRouting::Disabled,
            families: Family::ALL.into_iter().map(|family| (family, vtep(family))).collect(),
            peers: (1..=peers).flat_map(|n| Family::ALL.map(|family| peer(family, n))).collect(),
            endpoints: Vec::new(),
        }
    }

    fn want(&self) -> Overlay {
        self.want_on(&fresh())
    }

    /// The overlay on a node with this kernel state.
    fn want_on(&self, have: &Kernel) -> Overlay {
        let mut planner = OverlayPlanner::default();
        self.update(&mut planner, have);
        planner.overlay().clone()
    }

    /// Updates the planner to this cluster.
    fn update(&self, planner: &mut OverlayPlanner, have: &Kernel) {
        let query = UplinkQuery { spec: &InterfaceSpec::DefaultRoute, families: &Family::ALL, prefer: &[] };
        let mut peers = NodePeers::new();
        for peer in &self.peers {
            let family = peers.entry(Family::of_net(peer.pod_cidr)).or_default();
            assert_eq!(family.insert(peer.node.clone(), peer.clone()), None, "one peer per node and family");
        }
        let by_interface = |endpoint: &Endpoint| (endpoint.interface.clone(), Arc::new(endpoint.clone()));
        planner.update(&OverlayInput {
            vni: Vni::new(self.vni).unwrap(),
            port: self.port,
            mtu: self.mtu,
            uplink: &choose_uplink(have, query).unwrap(),
            direct_routing: self.direct,
            families: &self.families,
            peers: &peers,
            endpoints: &self.endpoints.iter().map(by_interface).collect(),
        });
    }
}

/// Executes all operations; panics if one is rejected.
fn execute(kernel: &mut Kernel, ops: &[NetOp]) {
    for op in ops {
        kernel.execute(op).unwrap_or_else(|error| panic!("{op}: {error}; all: {ops:#?}"));
    }
}

/// A node whose kernel state matches the overlay.
fn converged(want: &Overlay) -> Kernel {
    let mut kernel = fresh();
    let ops = diff(want, &kernel);
    execute(&mut kernel, &ops);
    kernel
}
