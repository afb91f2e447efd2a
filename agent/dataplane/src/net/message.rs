//! The route-netlink messages that only the agent sends: links by rtnetlink's builders, neighbours and FDB entries of
//! netlink-packet-route's parts, because rtnetlink's builders of those are bound to its `Handle`. Messages that the CNI
//! plugin sends too are towpath-podlink's. Nothing here talks to the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteScope, RouteType},
};
use rtnetlink::{LinkUnspec, LinkVxlan};
use towpath_core::{
    model::{Family, Mac},
    overlay::{Learning, RouteKey, VxlanDevice},
};

use towpath_podlink::route::{
    RouteRequest,
    message::{Hop, RouteOrigin, WriteMode, address, address_family, plain, route},
};

/// Asks for the neighbours of a family on one link.
pub(crate) fn neighbours_on(family: Family, index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(family);
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    Message::GetNeighbour(message)
}

/// Asks for the FDB entries of one device.
pub(crate) fn fdb_entries_on(index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    Message::GetNeighbour(message)
}

/// Sets a link's MTU.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> RouteRequest {
    plain(Message::SetLink(LinkUnspec::new_with_index(index).mtu(mtu).build()))
}

/// Sets a link's MAC.
pub(crate) fn set_mac(index: u32, mac: Mac) -> RouteRequest {
    plain(Message::SetLink(LinkUnspec::new_with_index(index).address(mac.0.to_vec()).build()))
}

/// Creates a VXLAN device that is up: no learning, no group, checksums and everything else as the kernel's defaults.
pub(crate) fn create_vxlan(device: &VxlanDevice) -> RouteRequest {
    let tunnel = &device.tunnel;
    let link = LinkVxlan::new(device.name.as_str(), tunnel.vni.value()).dev(tunnel.uplink.0);
    let link = match tunnel.local {
        IpAddr::V4(local) => link.local(local),
        IpAddr::V6(local) => link.local6(local),
    };
    let link = link.port(tunnel.port).learning(tunnel.learning == Learning::On);
    let link = link.mtu(device.mtu).address(device.mac.0.to_vec()).up().build();
    RouteRequest { message: Message::NewLink(link), flags: WriteMode::Create.flags() }
}

/// Deletes an address.
pub(crate) fn delete_address(index: u32, net: IpNet) -> RouteRequest {
    plain(Message::DelAddress(address(index, net)))
}

/// Deletes a neighbour.
pub(crate) fn delete_neighbour(index: u32, address: IpAddr) -> RouteRequest {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    plain(Message::DelNeighbour(message))
}

/// An FDB entry of a VXLAN device: frames for that MAC go to that host.
fn fdb_entry(index: u32, mac: Mac, remote: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), NeighbourAttribute::Destination(remote.into())];
    message
}

/// Sets the FDB entry of a MAC, or moves it to another host.
pub(crate) fn set_fdb_entry(index: u32, mac: Mac, remote: IpAddr) -> RouteRequest {
    let message = Message::NewNeighbour(fdb_entry(index, mac, remote));
    RouteRequest { message, flags: WriteMode::Replace.flags() }
}

/// Deletes an FDB entry.
pub(crate) fn delete_fdb_entry(index: u32, mac: Mac, remote: IpAddr) -> RouteRequest {
    plain(Message::DelNeighbour(fdb_entry(index, mac, remote)))
}

/// Deletes a route of ours, wherever it leads.
pub(crate) fn delete_route(key: RouteKey) -> RouteRequest {
    let mut message = route(key.destination, Hop::Blackhole, RouteOrigin::Towpath);
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::NoWhere; // Any.
    if key.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    plain(Message::DelRoute(message))
}
