//! What the overlay should be on one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;

use super::{
    IfIndex, Learning, Sysctl, VxlanConfig,
    uplink::{RouterAdvertisements, Uplink},
};
use crate::{
    delta::changes,
    model::{Endpoint, Family, Mac, NodePeer, NodePeers, Vni, host_net},
    names::IfName,
};

/// Whether peers on the same link are reached without the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectRouting {
    /// They are: by a route through their public IP.
    Enabled,
    /// Every peer is reached through the tunnel.
    Disabled,
}

/// This node's side of one family of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalVtep {
    /// The network of this node's pods. Its network address is the device's own.
    pub pod_cidr: IpNet,
    /// The address of this node on the underlay, of the same family.
    pub local: IpAddr,
    /// The MAC that peers are told.
    pub mac: Mac,
}

/// Everything that decides what the overlay should be.
#[derive(Debug, Clone)]
pub struct OverlayInput<'a> {
    /// The network identifier.
    pub vni: Vni,
    /// The UDP port.
    pub port: u16,
    /// The MTU of the devices in bytes, as [`super::uplink::device_mtu`] found it.
    pub mtu: u32,
    /// The link that carries the overlay.
    pub uplink: &'a Uplink,
    /// Whether peers on the same link are reached directly.
    pub direct_routing: DirectRouting,
    /// This node's side; a family that is not in it has no overlay.
    pub families: &'a BTreeMap<Family, LocalVtep>,
    /// The other nodes. Those of a family that this node has not are left out.
    pub peers: &'a NodePeers,
    /// The pods on this node, by interface.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Its name.
    pub name: IfName,
    /// What cannot be changed while it lives.
    pub tunnel: VxlanConfig,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its MAC.
    pub mac: Mac,
    /// Its own address, with the prefix length of a single address.
    pub address: IpNet,
}

/// How a pod network is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutePath {
    /// Through the tunnel: by the network's own network address, on the device of its family.
    Tunnel,
    /// Through a peer's public IP on the uplink.
    Direct {
        /// The public IP.
        gateway: IpAddr,
        /// The uplink.
        uplink: IfIndex,
    },
    /// Not at all: this node's own network, where only the routes of living pods, being longer, lead anywhere. Otherwise
    /// packets for a dead pod would leave by the default route.
    Blackhole,
}

/// Desired overlay state of one node. All keys say by their family on which device they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The devices.
    pub devices: BTreeMap<Family, VxlanDevice>,
    /// Permanent neighbours: the network address of a peer's pods and its VTEP's MAC.
    pub neighbours: OrdMap<IpAddr, Mac>,
    /// Forwarding entries: a VTEP's MAC and its node's public IP.
    pub fdb: OrdMap<(Family, Mac), IpAddr>,
    /// Routes to pod networks.
    pub routes: OrdMap<IpNet, RoutePath>,
    /// Routes to this node's pods. One whose link is not there is not missed.
    pub pod_routes: OrdMap<IpNet, IfName>,
    /// Sysctls.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

/// Decides what the overlay should be, from nothing: [`OverlayPlanner::update`] once.
#[must_use]
pub fn want(input: &OverlayInput<'_>) -> Overlay {
    let mut wanted = OverlayPlanner::default();
    wanted.update(input);
    wanted.overlay
}

/// The overlay as it was decided last, ready for the next input: an update costs the peers and pods that have changed,
/// unless one of the few things has that all of them depend on.
#[derive(Debug, Default)]
pub struct OverlayPlanner {
    /// `None` before the first input.
    frame: Option<OverlayFrame>,
    peers: NodePeers,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    /// The interfaces by the pod address that leads to them. Files that a crash left behind can give one address to two:
    /// then the last by order has it.
    interfaces: BTreeMap<IpAddr, BTreeSet<IfName>>,
    overlay: Overlay,
}

/// What all of the overlay depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OverlayFrame {
    vni: Vni,
    port: u16,
    mtu: u32,
    uplink: Uplink,
    direct_routing: DirectRouting,
    families: BTreeMap<Family, LocalVtep>,
}

impl OverlayPlanner {
    /// Brings the overlay to what the input says: per peer one neighbour, one forwarding entry and one route, or one
    /// direct route.
    pub fn update(&mut self, input: &OverlayInput<'_>) {
        let frame = OverlayFrame {
            vni: input.vni,
            port: input.port,
            mtu: input.mtu,
            uplink: input.uplink.clone(),
            direct_routing: input.direct_routing,
            families: input.families.clone(),
        };
        if self.frame.as_ref() != Some(&frame) {
            *self = Self { overlay: frame.own_side(), ..Self::default() };
        }
        self.follow_peers(input, &frame);
        self.follow_endpoints(input.endpoints);
        self.frame = Some(frame);
    }

    /// The overlay as it is now.
    #[must_use]
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    fn follow_peers(&mut self, input: &OverlayInput<'_>, frame: &OverlayFrame) {
        let mut come = Vec::new();
        for family in frame.families.keys() {
            let before = self.peers.remove(family).unwrap_or_default();
            let after = input.peers.get(family).cloned().unwrap_or_default();
            for (_, before, after) in changes(&before, &after) {
                before.iter().for_each(|peer| self.overlay.remove_peer(peer));
                come.extend(after.cloned());
            }
            self.peers.insert(*family, after);
        }
        // All that goes has gone by now: what one peer had another may have got.
        come.iter().for_each(|peer| self.overlay.add_peer(frame, peer));
    }

    fn follow_endpoints(&mut self, endpoints: &OrdMap<IfName, Arc<Endpoint>>) {
        let mut touched = BTreeSet::new();
        for (interface, before, after) in changes(&self.endpoints, endpoints) {
            for address in before.iter().flat_map(|endpoint| &endpoint.addresses) {
                self.interfaces.entry(*address).or_default().remove(interface);
                touched.insert(*address);
            }
            for address in after.iter().flat_map(|endpoint| &endpoint.addresses) {
                self.interfaces.entry(*address).or_default().insert(interface.clone());
                touched.insert(*address);
            }
        }
        for address in touched {
            match self.interfaces.get(&address).and_then(BTreeSet::last) {
                Some(interface) => _ = self.overlay.pod_routes.insert(host_net(address), interface.clone()),
                None => {
                    self.interfaces.remove(&address);
                    self.overlay.pod_routes.remove(&host_net(address));
                }
            }
        }
        self.endpoints = endpoints.clone();
    }
}

impl OverlayFrame {
    /// The overlay of a node without peers and pods.
    fn own_side(&self) -> Overlay {
        let mut overlay = Overlay::default();
        for (family, own) in &self.families {
            let name = IfName::of_vxlan(*family, self.vni);
            overlay.sysctls.insert(Sysctl::Forwarding(*family), 1);
            if *family == Family::V6 {
                overlay.sysctls.insert(Sysctl::AcceptRouterAdvertisements(name.clone()), 0);
                if self.uplink.router_advertisements == RouterAdvertisements::Followed {
                    overlay.sysctls.insert(Sysctl::AcceptRouterAdvertisements(self.uplink.name.clone()), 2);
                }
            }
            overlay.routes.insert(own.pod_cidr.trunc(), RoutePath::Blackhole);
            let tunnel = VxlanConfig {
                vni: self.vni,
                port: self.port,
                local: own.local,
                uplink: self.uplink.index,
                learning: Learning::Off,
            };
            let address = host_net(own.pod_cidr.network());
            overlay.devices.insert(*family, VxlanDevice { name, tunnel, mtu: self.mtu, mac: own.mac, address });
        }
        overlay
    }

    /// How a peer is reached.
    fn path(&self, peer: &NodePeer) -> RoutePath {
        match self.direct_routing {
            DirectRouting::Enabled if self.uplink.reaches(peer.public_ip) => {
                RoutePath::Direct { gateway: peer.public_ip, uplink: self.uplink.index }
            }
            DirectRouting::Enabled | DirectRouting::Disabled => RoutePath::Tunnel,
        }
    }
}

impl Overlay {
    fn add_peer(&mut self, frame: &OverlayFrame, peer: &NodePeer) {
        let (pod_cidr, path) = (peer.pod_cidr.trunc(), frame.path(peer));
        self.routes.insert(pod_cidr, path);
        if path == RoutePath::Tunnel {
            self.neighbours.insert(pod_cidr.network(), peer.vtep_mac);
            self.fdb.insert((Family::of_net(pod_cidr), peer.vtep_mac), peer.public_ip);
        }
    }

    fn remove_peer(&mut self, peer: &NodePeer) {
        let pod_cidr = peer.pod_cidr.trunc();
        self.routes.remove(&pod_cidr);
        self.neighbours.remove(&pod_cidr.network());
        self.fdb.remove(&(Family::of_net(pod_cidr), peer.vtep_mac));
    }
}
