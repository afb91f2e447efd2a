//! Encodes the types of towpath-core into route-netlink messages. Nothing here talks to the kernel.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use towpath_core::{
    model::{Family, Mac},
    names::{IfName, ROUTE_PROTOCOL},
};

use super::socket::RouteRequest;

/// The kernel's address family.
pub const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// What a request does if the object exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// It fails (EEXIST): it would overwrite somebody else's object.
    Create,
    /// It replaces the object.
    Replace,
}

impl WriteMode {
    /// The flags of the request (`NLM_F_*`).
    #[must_use]
    pub const fn flags(self) -> u16 {
        match self {
            Self::Create => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// A request without flags of its own: a change of an existing object, or a deletion.
pub const fn plain(message: Message) -> RouteRequest {
    RouteRequest { message, flags: 0 }
}

/// A veth pair with its peer in a pod's network namespace.
#[derive(Debug)]
pub struct Veth<'a> {
    /// The name of the host's end.
    pub host: &'a IfName,
    /// The MAC of the host's end; the kernel chooses the pod's.
    pub host_mac: Mac,
    /// The name of the pod's end.
    pub pod: &'a IfName,
    /// The pod's network namespace, as an open file descriptor.
    pub netns: RawFd,
    /// The MTU of both ends in bytes.
    pub mtu: u32,
}

impl Veth<'_> {
    /// The request that creates the pair. Both ends stay down: the kernel brings neither up before it has both (ENOTCONN
    /// in `veth_open`).
    pub fn create(&self) -> RouteRequest {
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
        RouteRequest { message: Message::NewLink(link), flags: WriteMode::Create.flags() }
    }
}

/// A message about a link, by name.
pub fn link_named(name: &IfName) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_string()));
    link
}

/// Gets one link by name.
pub fn get_link(name: &IfName) -> Message {
    Message::GetLink(link_named(name))
}

/// Dumps all links, without statistics, which are most of an answer.
pub fn all_links() -> Message {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Message::GetLink(link)
}

/// Dumps all addresses of both families.
pub fn all_addresses() -> Message {
    Message::GetAddress(AddressMessage::default())
}

/// Dumps all neighbours of a family.
pub fn all_neighbours(family: Family) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(family);
    Message::GetNeighbour(message)
}

/// Dumps the main table's routes of a family.
pub fn main_routes(family: Family) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    Message::GetRoute(message)
}

/// Deletes a link by name.
pub fn delete_link(name: &IfName) -> RouteRequest {
    plain(Message::DelLink(link_named(name)))
}

/// A message about a link, by ifindex.
fn link_at(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// Sets a link up.
pub fn set_up(index: u32) -> RouteRequest {
    let mut link = link_at(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    plain(Message::SetLink(link))
}

/// An address on a link, usable at once: duplicate address detection would delay an IPv6 address by a second, and podCIDRs
/// are assigned to one node only.
pub fn address(index: u32, address: IpNet) -> AddressMessage {
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

/// Adds an address, or makes an existing one permanent.
pub fn add_address(index: u32, net: IpNet) -> RouteRequest {
    RouteRequest { message: Message::NewAddress(address(index, net)), flags: WriteMode::Replace.flags() }
}

/// Adds or replaces a permanent neighbour.
pub fn neighbour(index: u32, address: IpAddr, mac: Mac) -> RouteRequest {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    RouteRequest { message: Message::NewNeighbour(message), flags: WriteMode::Replace.flags() }
}

/// How the kernel knows that a gateway is on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By another route, or because it is a link-local address.
    Routed,
    /// By the flag `onlink`.
    Onlink,
}

/// The next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// A gateway on a link.
    Via {
        /// The gateway's address.
        gateway: IpAddr,
        /// The ifindex of the link.
        index: u32,
        /// How the kernel knows that it is on the link.
        reach: Reach,
    },
    /// The link itself: `dev … scope link`.
    Link {
        /// The ifindex of the link.
        index: u32,
    },
    /// None: packets are dropped.
    Blackhole,
}

/// Who made a route, by its protocol number (`rtm_protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteOrigin {
    /// We, on the host.
    Towpath,
    /// `boot`, inside a pod: nobody reads it there, and `ip route` and other plugins use it.
    Pod,
}

/// A route in the main table.
pub fn route(destination: IpNet, hop: Hop, owner: RouteOrigin) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of_net(destination));
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = match owner {
        RouteOrigin::Towpath => RouteProtocol::Other(ROUTE_PROTOCOL),
        RouteOrigin::Pod => RouteProtocol::Boot,
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
            // IPv6 has no scopes: it reads back universe whatever was written.
            if destination.addr().is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Hop::Blackhole => message.header.kind = RouteType::BlackHole,
    }
    message
}

/// Adds a route.
pub fn add_route(message: RouteMessage, write: WriteMode) -> RouteRequest {
    RouteRequest { message: Message::NewRoute(message), flags: write.flags() }
}

/// The destination of a family's default route.
pub fn default_net(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        Family::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

/// Looks up the route to an address (`ip route get … fibmatch`).
pub fn fib_match(address: IpAddr) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(address));
    message.header.destination_prefix_length = Family::of(address).host_prefix_len();
    message.header.flags = RouteFlags::FibMatch;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    Message::GetRoute(message)
}
