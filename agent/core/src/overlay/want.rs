//! Plans the desired overlay state of one node.

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

/// Whether peers on the uplink's own networks are reached without encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectRouting {
    /// Such a peer gets a route via its public IP on the uplink.
    Enabled,
    /// Every peer gets a route through the VXLAN device.
    Disabled,
}

/// The VTEP of this node in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalVtep {
    /// podCIDR of this node. The VXLAN device has its network address.
    pub pod_cidr: IpNet,
    /// Underlay address of this node, of the same family.
    pub local: IpAddr,
    /// MAC of the VXLAN device, published to the peers.
    pub mac: Mac,
}

/// Input of [`OverlayPlanner::update`].
#[derive(Debug, Clone)]
pub struct OverlayInput<'a> {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Destination UDP port of the outer packets.
    pub port: u16,
    /// MTU of the VXLAN devices in bytes, from [`super::uplink::device_mtu`].
    pub mtu: u32,
    /// Underlay link.
    pub uplink: &'a Uplink,
    /// Whether peers on the uplink's own networks are reached without encapsulation.
    pub direct_routing: DirectRouting,
    /// VTEPs of this node. A family without one has no overlay.
    pub families: &'a BTreeMap<Family, LocalVtep>,
    /// Peers. Those of a family without a local VTEP are ignored.
    pub peers: &'a NodePeers,
    /// Pods of this node, by host-side interface.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Interface name, from [`IfName::of_vxlan`].
    pub name: IfName,
    /// Attributes that are fixed when the device is created.
    pub tunnel: VxlanConfig,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC address.
    pub mac: Mac,
    /// Address of the device: the network address of the podCIDR as a /32 or /128.
    pub address: IpNet,
}

/// How the podCIDR of a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutePath {
    /// Via the network address of the podCIDR, on the VXLAN device of its family.
    Tunnel,
    /// Via the public IP of the peer, on the uplink.
    Direct {
        /// Public IP of the peer.
        gateway: IpAddr,
        /// Ifindex of the uplink.
        uplink: IfIndex,
    },
    /// The podCIDR of this node: a blackhole, with a more specific route per existing pod. Without it, a packet for a
    /// deleted pod would leave through the default route.
    Blackhole,
}

/// Desired overlay state of one node. The family of a key determines the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// VXLAN device of each family.
    pub devices: BTreeMap<Family, VxlanDevice>,
    /// Permanent neighbour entries: network address of a peer's podCIDR to its VTEP MAC.
    pub neighbours: OrdMap<IpAddr, Mac>,
    /// Permanent FDB entries: VTEP MAC to the public IP of its node.
    pub fdb: OrdMap<(Family, Mac), IpAddr>,
    /// Routes to the podCIDR of each node, this one included.
    pub routes: OrdMap<IpNet, RoutePath>,
    /// Routes to the pods of this node, by host-side interface. A route whose link does not exist is not installed.
    pub pod_routes: OrdMap<IpNet, IfName>,
    /// Values of the sysctls that the overlay depends on.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

/// Plans the overlay from scratch: a single [`OverlayPlanner::update`].
#[must_use]
pub fn want(input: &OverlayInput<'_>) -> Overlay {
    let mut planner = OverlayPlanner::default();
    planner.update(input);
    planner.overlay
}

/// Plans the overlay incrementally. The cost of an update is proportional to the number of changed peers and pods; a
/// change of the settings or of the uplink plans the overlay from scratch.
#[derive(Debug, Default)]
pub struct OverlayPlanner {
    /// `None` before the first input.
    settings: Option<OverlaySettings>,
    peers: NodePeers,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    /// Interfaces by pod address. After a crash, stale endpoint files can assign one address to two interfaces; then the
    /// last one in order gets the route.
    interfaces: BTreeMap<IpAddr, BTreeSet<IfName>>,
    overlay: Overlay,
}

/// The part of the input that every entry depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OverlaySettings {
    vni: Vni,
    port: u16,
    mtu: u32,
    uplink: Uplink,
    direct_routing: DirectRouting,
    families: BTreeMap<Family, LocalVtep>,
}

impl OverlayPlanner {
    /// Updates the overlay to the input. A peer adds one neighbour entry, one FDB entry and one route, or only a direct
    /// route.
    pub fn update(&mut self, input: &OverlayInput<'_>) {
        let settings = OverlaySettings {
            vni: input.vni,
            port: input.port,
            mtu: input.mtu,
            uplink: input.uplink.clone(),
            direct_routing: input.direct_routing,
            families: input.families.clone(),
        };
        if self.settings.as_ref() != Some(&settings) {
            *self = Self { overlay: settings.local_overlay(), ..Self::default() };
        }
        self.update_peers(input, &settings);
        self.update_endpoints(input.endpoints);
        self.settings = Some(settings);
    }

    /// The desired overlay as of the last update.
    #[must_use]
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    fn update_peers(&mut self, input: &OverlayInput<'_>, settings: &OverlaySettings) {
        let mut added = Vec::new();
        for family in settings.families.keys() {
            let before = self.peers.remove(family).unwrap_or_default();
            let after = input.peers.get(family).cloned().unwrap_or_default();
            for (_, before, after) in changes(&before, &after) {
                before.iter().for_each(|peer| self.overlay.remove_peer(peer));
                added.extend(after.cloned());
            }
            self.peers.insert(*family, after);
        }
        // Add after all removals: a peer may have taken over the podCIDR or MAC of another.
        added.iter().for_each(|peer| self.overlay.add_peer(settings, peer));
    }

    fn update_endpoints(&mut self, endpoints: &OrdMap<IfName, Arc<Endpoint>>) {
        let mut changed = BTreeSet::new();
        for (interface, before, after) in changes(&self.endpoints, endpoints) {
            for address in before.iter().flat_map(|endpoint| &endpoint.addresses) {
                self.interfaces.entry(*address).or_default().remove(interface);
                changed.insert(*address);
            }
            for address in after.iter().flat_map(|endpoint| &endpoint.addresses) {
                self.interfaces.entry(*address).or_default().insert(interface.clone());
                changed.insert(*address);
            }
        }
        for address in changed {
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

impl OverlaySettings {
    /// The overlay of a node without peers and pods.
    fn local_overlay(&self) -> Overlay {
        let mut overlay = Overlay::default();
        for (family, vtep) in &self.families {
            let name = IfName::of_vxlan(*family, self.vni);
            overlay.sysctls.insert(Sysctl::Forwarding(*family), 1);
            if *family == Family::V6 {
                overlay.sysctls.insert(Sysctl::AcceptRouterAdvertisements(name.clone()), 0);
                if self.uplink.router_advertisements == RouterAdvertisements::Required {
                    overlay.sysctls.insert(Sysctl::AcceptRouterAdvertisements(self.uplink.name.clone()), 2);
                }
            }
            overlay.routes.insert(vtep.pod_cidr.trunc(), RoutePath::Blackhole);
            let tunnel = VxlanConfig {
                vni: self.vni,
                port: self.port,
                local: vtep.local,
                uplink: self.uplink.index,
                learning: Learning::Off,
            };
            let address = host_net(vtep.pod_cidr.network());
            overlay.devices.insert(*family, VxlanDevice { name, tunnel, mtu: self.mtu, mac: vtep.mac, address });
        }
        overlay
    }

    /// The path to a peer.
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
    fn add_peer(&mut self, settings: &OverlaySettings, peer: &NodePeer) {
        let (pod_cidr, path) = (peer.pod_cidr.trunc(), settings.path(peer));
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
