//! Route-netlink messages made of our words. Nothing here talks to the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteScope, RouteType},
};
use towpath_core::{
    model::{Family, Mac},
    overlay::{Learning, RouteKey, VxlanDevice},
};

use towpath_podlink::route::{
    RouteRequest,
    message::{Hop, RouteOrigin, WriteMode, address, address_family, link_at, plain, route},
};

/// Asks for the neighbours of a family on one link.
pub(crate) fn neighbours_on(family: Family, index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(family);
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    Message::GetNeighbour(message)
}

/// Asks for the forwarding entries of one device.
pub(crate) fn forwarding_entries_on(index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    Message::GetNeighbour(message)
}

/// Sets a link's MTU.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> RouteRequest {
    let mut link = link_at(index);
    link.attributes.push(LinkAttribute::Mtu(mtu));
    plain(Message::SetLink(link))
}

/// Sets a link's MAC.
pub(crate) fn set_mac(index: u32, mac: Mac) -> RouteRequest {
    let mut link = link_at(index);
    link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    plain(Message::SetLink(link))
}

/// Makes a VXLAN device that is up: no learning, no group, checksums and all else as the kernel makes them.
pub(crate) fn create_vxlan(device: &VxlanDevice) -> RouteRequest {
    let tunnel = &device.tunnel;
    let data = vec![
        InfoVxlan::Id(tunnel.vni.value()),
        InfoVxlan::Link(tunnel.uplink.0),
        match tunnel.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        },
        InfoVxlan::Port(tunnel.port),
        InfoVxlan::Learning(tunnel.learning == Learning::On),
    ];
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![
        LinkAttribute::IfName(device.name.to_string()),
        LinkAttribute::Mtu(device.mtu),
        LinkAttribute::Address(device.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ];
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

/// A forwarding entry of a VXLAN device: frames for that MAC go to that host.
fn forwarding_entry(index: u32, mac: Mac, remote: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), NeighbourAttribute::Destination(remote.into())];
    message
}

/// Sets the forwarding entry of a MAC, or moves it to another host.
pub(crate) fn set_forwarding_entry(index: u32, mac: Mac, remote: IpAddr) -> RouteRequest {
    let message = Message::NewNeighbour(forwarding_entry(index, mac, remote));
    RouteRequest { message, flags: WriteMode::Replace.flags() }
}

/// Deletes a forwarding entry.
pub(crate) fn delete_forwarding_entry(index: u32, mac: Mac, remote: IpAddr) -> RouteRequest {
    plain(Message::DelNeighbour(forwarding_entry(index, mac, remote)))
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
