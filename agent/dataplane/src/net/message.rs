//! Route-netlink messages made of our words. Nothing here talks to the kernel.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use towpath_core::{
    model::{Family, Mac},
    names::{IfName, ROUTE_PROTOCOL},
    overlay::{Learning, RouteKey, VxlanDevice},
};

use super::socket::Request;

/// The kernel's number of a family.
pub(crate) const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Whether an object may exist already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// It must not: somebody else's would be overwritten.
    New,
    /// It may, and is replaced.
    Replace,
}

impl Write {
    const fn flags(self) -> u16 {
        match self {
            Self::New => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// A change to what exists, or a deletion: no flags of its own.
pub(crate) const fn plain(message: Message) -> Request {
    Request { message, flags: 0 }
}

/// A veth pair that is made with its other end inside a pod.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) host: &'a IfName,
    pub(crate) host_mac: Mac,
    pub(crate) pod: &'a IfName,
    pub(crate) netns: RawFd,
    pub(crate) mtu: u32,
}

impl Veth<'_> {
    /// Both ends stay down: the kernel opens neither before it has both (ENOTCONN in `veth_open`).
    pub(crate) fn create(&self) -> Request {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod.to_string()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(self.netns),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(self.host.to_string()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Address(self.host_mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        Request { message: Message::NewLink(link), flags: Write::New.flags() }
    }
}

/// A message about a link that is known by name.
pub(crate) fn link_named(name: &IfName) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_string()));
    link
}

/// Asks for one link by name.
pub(crate) fn get_link(name: &IfName) -> Message {
    Message::GetLink(link_named(name))
}

/// Asks for all links, without the counters that make up most of an answer.
pub(crate) fn all_links() -> Message {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Message::GetLink(link)
}

/// Asks for all addresses, of both families.
pub(crate) fn all_addresses() -> Message {
    Message::GetAddress(AddressMessage::default())
}

/// Asks for all neighbours of a family.
pub(crate) fn all_neighbours(family: Family) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(family);
    Message::GetNeighbour(message)
}

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

/// Asks for the main table's routes of a family.
pub(crate) fn main_routes(family: Family) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    Message::GetRoute(message)
}

/// Deletes a link by name.
pub(crate) fn delete_link(name: &IfName) -> Request {
    plain(Message::DelLink(link_named(name)))
}

fn link_at(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// Sets a link's MTU.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    let mut link = link_at(index);
    link.attributes.push(LinkAttribute::Mtu(mtu));
    plain(Message::SetLink(link))
}

/// Sets a link's MAC.
pub(crate) fn set_mac(index: u32, mac: Mac) -> Request {
    let mut link = link_at(index);
    link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    plain(Message::SetLink(link))
}

/// Makes a VXLAN device that is up: no learning, no group, checksums and all else as the kernel makes them.
pub(crate) fn create_vxlan(device: &VxlanDevice) -> Request {
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
    Request { message: Message::NewLink(link), flags: Write::New.flags() }
}

/// Sets a link up.
pub(crate) fn set_up(index: u32) -> Request {
    let mut link = link_at(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    plain(Message::SetLink(link))
}

/// An address on a link, usable at once: duplicate address detection would delay an IPv6 address by a second, and the
/// address is ours alone by assignment.
pub(crate) fn address(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of_net(address));
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.attributes.push(AddressAttribute::Address(address.addr()));
    match address.addr() {
        IpAddr::V4(_) => message.attributes.push(AddressAttribute::Local(address.addr())),
        IpAddr::V6(addr) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            if addr.is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
        }
    }
    message
}

/// Adds an address, or makes the one that is there permanent.
pub(crate) fn add_address(index: u32, net: IpNet) -> Request {
    Request { message: Message::NewAddress(address(index, net)), flags: Write::Replace.flags() }
}

/// Deletes an address.
pub(crate) fn delete_address(index: u32, net: IpNet) -> Request {
    plain(Message::DelAddress(address(index, net)))
}

/// A permanent neighbour.
pub(crate) fn neighbour(index: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    Request { message: Message::NewNeighbour(message), flags: Write::Replace.flags() }
}

/// Deletes a neighbour.
pub(crate) fn delete_neighbour(index: u32, address: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    plain(Message::DelNeighbour(message))
}

/// How a router is known to be on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Another route says so, or it is a link-local address.
    Routed,
    /// Because we say so: `onlink`.
    Onlink,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// To a router on a link.
    Via { gateway: IpAddr, index: u32, reach: Reach },
    /// To the link itself: `dev … scope link`.
    Link { index: u32 },
    /// Nowhere.
    Blackhole,
}

/// Whose protocol number a route carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Ours, on the host.
    Towpath,
    /// None in particular: inside a pod nobody reads it, and other plugins leave `boot` there as `ip route` does.
    Pod,
}

/// A route in the main table.
pub(crate) fn route(destination: IpNet, hop: Hop, owner: Owner) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of_net(destination));
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = match owner {
        Owner::Towpath => RouteProtocol::Other(ROUTE_PROTOCOL),
        Owner::Pod => RouteProtocol::Boot,
    };
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    match hop {
        Hop::Via { gateway, index, reach } => {
            if reach == Reach::Onlink {
                message.header.flags = RouteFlags::Onlink;
            }
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Hop::Link { index } => {
            // IPv6 knows no scopes: it reads back universe whatever was written.
            if destination.addr().is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Hop::Blackhole => message.header.kind = RouteType::BlackHole,
    }
    message
}

/// Writes a route.
pub(crate) fn add_route(message: RouteMessage, write: Write) -> Request {
    Request { message: Message::NewRoute(message), flags: write.flags() }
}

/// The default network of a family.
pub(crate) fn default_net(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        Family::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
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
pub(crate) fn set_forwarding_entry(index: u32, mac: Mac, remote: IpAddr) -> Request {
    let message = Message::NewNeighbour(forwarding_entry(index, mac, remote));
    Request { message, flags: Write::Replace.flags() }
}

/// Deletes a forwarding entry.
pub(crate) fn delete_forwarding_entry(index: u32, mac: Mac, remote: IpAddr) -> Request {
    plain(Message::DelNeighbour(forwarding_entry(index, mac, remote)))
}

/// Deletes a route of ours, wherever it leads.
pub(crate) fn delete_route(key: RouteKey) -> Request {
    let mut message = route(key.destination, Hop::Blackhole, Owner::Towpath);
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::NoWhere; // Any.
    if key.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    plain(Message::DelRoute(message))
}

/// Asks which route leads to an address.
pub(crate) fn lookup(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(address));
    message.header.destination_prefix_length = Family::of(address).host_prefix_len();
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message
}
