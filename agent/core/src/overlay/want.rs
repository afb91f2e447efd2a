//! What the overlay should be on one node.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    IfIndex, Learning, Sysctl, Tunnel,
    uplink::{RouterAdvertisements, Uplink},
};
use crate::{
    model::{Endpoint, Family, Mac, NodeName, Peer, Vni, host_net},
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
pub struct OwnSide {
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
    /// This node.
    pub node: &'a NodeName,
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
    pub families: &'a BTreeMap<Family, OwnSide>,
    /// The other nodes. This one may be among them.
    pub peers: &'a [Peer],
    /// The pods on this node.
    pub endpoints: &'a [Endpoint],
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: IfName,
    /// What cannot be changed while it lives.
    pub tunnel: Tunnel,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its MAC.
    pub mac: Mac,
    /// Its own address, with the prefix length of a single address.
    pub address: IpNet,
}

/// How a pod network is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
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
    pub devices: BTreeMap<Family, Device>,
    /// Permanent neighbours: the network address of a peer's pods and its VTEP's MAC.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Forwarding entries: a VTEP's MAC and its node's public IP.
    pub fdb: BTreeMap<(Family, Mac), IpAddr>,
    /// Routes to pod networks.
    pub routes: BTreeMap<IpNet, Path>,
    /// Routes to this node's pods. One whose link is not there is not missed.
    pub pod_routes: BTreeMap<IpNet, IfName>,
    /// Sysctls.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

/// A peer that cannot be programmed because of another one, or of this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerConflict {
    /// Two VTEPs with one MAC: frames for one would go to the other.
    #[error(
        "node {node} publishes the VTEP MAC {mac} that is {other}'s already: delete the device flannel.<VNI> on one of them"
    )]
    SameMac {
        /// The peer that is left out.
        node: NodeName,
        /// The MAC.
        mac: Mac,
        /// Who has it.
        other: NodeName,
    },
    /// Two nodes with one pod network, or one inside the other.
    #[error(
        "node {node} has podCIDR {pod_cidr}, which overlaps with {other}'s: correct spec.podCIDRs of one of the Nodes"
    )]
    SamePodCidr {
        /// The peer that is left out.
        node: NodeName,
        /// Its network.
        pod_cidr: IpNet,
        /// Who has it.
        other: NodeName,
    },
    /// A peer whose addresses are of different families.
    #[error("node {node} publishes the public IP {public_ip} for podCIDR {pod_cidr} of the other IP family")]
    MixedFamilies {
        /// The peer that is left out.
        node: NodeName,
        /// Its network.
        pod_cidr: IpNet,
        /// Its public IP.
        public_ip: IpAddr,
    },
}

/// Decides what the overlay should be: per peer one neighbour, one forwarding entry and one route, or one direct route.
/// Of peers in conflict the first by order wins, so that every call gives the same.
#[must_use]
pub fn want(input: &OverlayInput<'_>) -> (Overlay, Vec<PeerConflict>) {
    let mut overlay = Overlay::default();
    for (family, own) in input.families {
        add_own_side(&mut overlay, input, *family, own);
    }
    for endpoint in input.endpoints {
        for address in &endpoint.addresses {
            overlay.pod_routes.insert(host_net(*address), endpoint.interface.clone());
        }
    }
    let mut peers: Vec<&Peer> = input.peers.iter().filter(|peer| peer.node != *input.node).collect();
    peers.sort_unstable();
    let mut macs: BTreeMap<(Family, Mac), &NodeName> =
        input.families.iter().map(|(family, own)| ((*family, own.mac), input.node)).collect();
    let mut networks: BTreeMap<IpNet, &NodeName> =
        input.families.values().map(|own| (own.pod_cidr.trunc(), input.node)).collect();
    let conflicts = peers
        .into_iter()
        .filter(|peer| input.families.contains_key(&Family::of_net(peer.pod_cidr)))
        .filter_map(|peer| {
            let result = check_peer(peer, &mut macs, &mut networks);
            if result.is_ok() {
                add_peer(&mut overlay, input, peer);
            }
            result.err()
        })
        .collect();
    (overlay, conflicts)
}

fn add_own_side(overlay: &mut Overlay, input: &OverlayInput<'_>, family: Family, own: &OwnSide) {
    let name = IfName::of_vxlan(family, input.vni);
    overlay.sysctls.insert(Sysctl::Forwarding(family), 1);
    if family == Family::V6 {
        overlay.sysctls.insert(Sysctl::AcceptRouterAdvertisements(name.clone()), 0);
        if input.uplink.router_advertisements == RouterAdvertisements::Followed {
            overlay.sysctls.insert(Sysctl::AcceptRouterAdvertisements(input.uplink.name.clone()), 2);
        }
    }
    overlay.routes.insert(own.pod_cidr.trunc(), Path::Blackhole);
    let tunnel = Tunnel {
        vni: input.vni,
        port: input.port,
        local: own.local,
        uplink: input.uplink.index,
        learning: Learning::Off,
    };
    let address = host_net(own.pod_cidr.network());
    overlay.devices.insert(family, Device { name, tunnel, mtu: input.mtu, mac: own.mac, address });
}

/// Says whether a peer goes together with those before it, and remembers it if so.
fn check_peer<'a>(
    peer: &'a Peer,
    macs: &mut BTreeMap<(Family, Mac), &'a NodeName>,
    networks: &mut BTreeMap<IpNet, &'a NodeName>,
) -> Result<(), PeerConflict> {
    let (node, pod_cidr) = (|| peer.node.clone(), peer.pod_cidr.trunc());
    let family = Family::of_net(pod_cidr);
    if Family::of(peer.public_ip) != family {
        return Err(PeerConflict::MixedFamilies { node: node(), pod_cidr, public_ip: peer.public_ip });
    }
    if let Some(other) = overlapping(networks, pod_cidr) {
        return Err(PeerConflict::SamePodCidr { node: node(), pod_cidr, other: other.clone() });
    }
    match macs.entry((family, peer.vtep_mac)) {
        Entry::Occupied(other) => {
            return Err(PeerConflict::SameMac { node: node(), mac: peer.vtep_mac, other: (*other.get()).clone() });
        }
        Entry::Vacant(place) => place.insert(&peer.node),
    };
    networks.insert(pod_cidr, &peer.node);
    Ok(())
}

/// Who has a network that overlaps with this one. Those in the map do not overlap with each other, so that only the
/// neighbours in order can: networks are ordered by address and then by length, the shorter first.
fn overlapping<'a>(networks: &BTreeMap<IpNet, &'a NodeName>, net: IpNet) -> Option<&'a NodeName> {
    let overlaps = |other: &IpNet| other.contains(&net) || net.contains(other);
    let before = networks.range(..=net).next_back();
    let after = networks.range(net..).next();
    [before, after].into_iter().flatten().find(|(other, _)| overlaps(other)).map(|(_, node)| *node)
}

fn add_peer(overlay: &mut Overlay, input: &OverlayInput<'_>, peer: &Peer) {
    let pod_cidr = peer.pod_cidr.trunc();
    let uplink = input.uplink;
    if input.direct_routing == DirectRouting::Enabled && uplink.reaches(peer.public_ip) {
        overlay.routes.insert(pod_cidr, Path::Direct { gateway: peer.public_ip, uplink: uplink.index });
        return;
    }
    overlay.neighbours.insert(pod_cidr.network(), peer.vtep_mac);
    overlay.fdb.insert((Family::of_net(pod_cidr), peer.vtep_mac), peer.public_ip);
    overlay.routes.insert(pod_cidr, Path::Tunnel);
}
