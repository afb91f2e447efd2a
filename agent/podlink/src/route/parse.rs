//! Decodes route-netlink messages into the types of towpath-core. Nothing here talks to the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use towpath_core::{
    model::{Family, Mac, Vni},
    names::{IfName, ROUTE_PROTOCOL},
    overlay::{
        IfIndex, Learning, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget, VxlanConfig,
        kernel::default_metric,
    },
};

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

/// A link; `None` if its name is not valid in [`IfName`].
pub fn link(message: &LinkMessage) -> Option<(IfIndex, Link)> {
    let mut name = None;
    let mut link_mac = None;
    let mut mtu = 0;
    let mut kind = LinkKind::Other("device".to_owned());
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = IfName::new(text).ok(),
            LinkAttribute::Address(bytes) => link_mac = mac(bytes),
            LinkAttribute::Mtu(n) => mtu = *n,
            LinkAttribute::LinkInfo(infos) => kind = link_kind(infos),
            _ => {}
        }
    }
    let state = if message.header.flags.contains(LinkFlags::Up) { LinkState::Up } else { LinkState::Down };
    Some((IfIndex(message.header.index), Link { name: name?, mac: link_mac, mtu, state, kind }))
}

fn link_kind(infos: &[LinkInfo]) -> LinkKind {
    let tunnel = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => tunnel(data),
        _ => None,
    });
    let word = || {
        let kind = infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        });
        kind.unwrap_or_else(|| "device".to_owned())
    };
    tunnel.map_or_else(|| LinkKind::Other(word()), LinkKind::Vxlan)
}

/// The tunnel of a VXLAN device; `None` if it lacks an attribute that ours has, so that it counts as another kind.
fn tunnel(data: &[InfoVxlan]) -> Option<VxlanConfig> {
    let (mut vni, mut port, mut local, mut uplink, mut learning) = (None, None, None, None, Learning::Off);
    for info in data {
        match info {
            InfoVxlan::Id(n) => vni = Vni::new(*n),
            InfoVxlan::Port(n) => port = Some(*n),
            InfoVxlan::Local(addr) => local = Some(IpAddr::V4(*addr)),
            InfoVxlan::Local6(addr) => local = Some(IpAddr::V6(*addr)),
            InfoVxlan::Link(index) => uplink = Some(IfIndex(*index)),
            InfoVxlan::Learning(true) => learning = Learning::On,
            _ => {}
        }
    }
    Some(VxlanConfig { vni: vni?, port: port?, local: local?, uplink: uplink?, learning })
}

/// Whether new connections may have an address as their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usability {
    /// The address is global, and neither temporary, tentative nor deprecated.
    Usable,
    /// The address is not.
    Unusable,
}

/// An address that new connections may have as their source.
pub fn address(message: &AddressMessage) -> Option<(IfIndex, IpNet)> {
    any_address(message).filter(|(_, _, usable)| *usable == Usability::Usable).map(|(index, net, _)| (index, net))
}

/// Any address, with its usability.
pub fn any_address(message: &AddressMessage) -> Option<(IfIndex, IpNet, Usability)> {
    let unfit = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // In IPv4 IFA_LOCAL is the address, and IFA_ADDRESS the peer of a point-to-point link.
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let temporary = message.header.family == AddressFamily::Inet6 && flags.contains(AddressFlags::Secondary);
    let is_fit = message.header.scope == AddressScope::Universe && !flags.intersects(unfit) && !temporary;
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((IfIndex(message.header.index), net, if is_fit { Usability::Usable } else { Usability::Unusable }))
}

/// States are bits: `bridge fdb` writes permanent together with NOARP.
fn is_permanent(message: &NeighbourMessage) -> bool {
    u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0
}

/// A permanent neighbour.
pub fn neighbour(message: &NeighbourMessage) -> Option<((IfIndex, IpAddr), Mac)> {
    if !is_permanent(message) {
        return None;
    }
    let (address, mac) = neighbour_parts(message)?;
    Some(((IfIndex(message.header.ifindex), address), mac))
}

/// A permanent FDB entry of a VXLAN device.
pub fn fdb_entry(message: &NeighbourMessage) -> Option<((IfIndex, Mac), IpAddr)> {
    if !is_permanent(message) || message.header.family != AddressFamily::Bridge {
        return None;
    }
    let (remote, mac) = neighbour_parts(message)?;
    Some(((IfIndex(message.header.ifindex), mac), remote))
}

fn neighbour_parts(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let link_address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    });
    Some((neighbour_address(message)?, link_address?))
}

/// The address of a neighbour, or the remote of an FDB entry.
pub fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        // In the bridge family the address is bytes: its own family does not tell the address family.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => ip(bytes),
        _ => None,
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A route of the main table; `None` for one of another table, or with a TOS.
pub fn route(message: &RouteMessage) -> Option<(RouteKey, Route)> {
    let family = match message.header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut destination = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    let (mut gateway, mut link, mut metric, mut several) = (None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => destination = route_address(addr)?,
            RouteAttribute::Gateway(addr) => gateway = route_address(addr),
            RouteAttribute::Oif(index) => link = Some(IfIndex(*index)),
            RouteAttribute::Priority(n) => metric = Some(*n),
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => several = true,
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    // The kernel leaves the metric out where it is 0.
    let metric = metric.unwrap_or_else(|| default_metric(Family::V4));
    let target = match (message.header.kind, gateway, link, several) {
        (RouteType::BlackHole, ..) => RouteTarget::Blackhole,
        (RouteType::Unicast, Some(gateway), Some(link), false) => RouteTarget::Via { gateway, link },
        (RouteType::Unicast, None, Some(link), false) => RouteTarget::Link(link),
        _ => RouteTarget::Other,
    };
    let owner = match u8::from(message.header.protocol) {
        ROUTE_PROTOCOL => RouteOwner::Towpath,
        other => RouteOwner::Other(other),
    };
    let in_main_table = message.header.table == RouteHeader::RT_TABLE_MAIN && message.header.tos == 0;
    in_main_table.then_some((RouteKey { destination, metric }, Route { target, owner }))
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

/// The link in an `RTM_NEWLINK`.
pub fn new_link(message: &Message) -> Option<(IfIndex, Link)> {
    match message {
        Message::NewLink(message) => link(message),
        _ => None,
    }
}

/// The address in an `RTM_NEWADDR`, if new connections may come from it.
pub fn new_address(message: &Message) -> Option<(IfIndex, IpNet)> {
    match message {
        Message::NewAddress(message) => address(message),
        _ => None,
    }
}

/// The payload of an `RTM_NEWNEIGH`, of whatever family.
pub const fn new_neighbour(message: &Message) -> Option<&NeighbourMessage> {
    match message {
        Message::NewNeighbour(message) => Some(message),
        _ => None,
    }
}

/// The route in an `RTM_NEWROUTE`, if it is one of the main table.
pub fn new_route(message: &Message) -> Option<(RouteKey, Route)> {
    match message {
        Message::NewRoute(message) => route(message),
        _ => None,
    }
}

/// The output link in an `RTM_NEWROUTE`.
pub fn output_link(message: &Message) -> Option<IfIndex> {
    let Message::NewRoute(route) = message else { return None };
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(IfIndex(*index)),
        _ => None,
    })
}

/// The links of a dump.
pub fn links(messages: &[Message]) -> impl Iterator<Item = (IfIndex, Link)> {
    messages.iter().filter_map(new_link)
}

/// The addresses of a dump.
pub fn addresses(messages: &[Message]) -> impl Iterator<Item = (IfIndex, IpNet)> {
    messages.iter().filter_map(new_address)
}

/// The neighbour messages of a dump, of any family.
pub fn neighbours(messages: &[Message]) -> impl Iterator<Item = &NeighbourMessage> {
    messages.iter().filter_map(new_neighbour)
}

/// The routes of a dump.
pub fn routes(messages: &[Message]) -> impl Iterator<Item = (RouteKey, Route)> {
    messages.iter().filter_map(new_route)
}
