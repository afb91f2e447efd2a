//! The kernel state that concerns the overlay, as a dump returns it.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    model::{Family, Mac, Vni},
    names::IfName,
};

/// An ifindex: identifies a link within its network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Administrative state of a link (IFF_UP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// The link is up.
    Up,
    /// The link is down. The kernel removes its routes and accepts no new ones.
    Down,
}

/// Whether a VXLAN device learns FDB entries from received packets (IFLA_VXLAN_LEARNING).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learning {
    /// The kernel's default. Any host that reaches the UDP port could redirect another node's traffic to itself.
    On,
    /// Only configured entries are used.
    Off,
}

/// Immutable attributes of a VXLAN device: the kernel rejects a change on an existing device (EOPNOTSUPP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Destination UDP port, on this node and on its peers.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: IpAddr,
    /// Ifindex of the underlay link.
    pub uplink: IfIndex,
    /// Whether FDB learning is enabled.
    pub learning: Learning,
}

/// The kind of a link (IFLA_INFO_KIND).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device that has every attribute of a [`VxlanConfig`].
    Vxlan(VxlanConfig),
    /// Any other link, by the kernel's name for its kind (`veth`, `bridge`). `device` for a link without a kind, such as
    /// a physical interface.
    Other(String),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface name, unique within the network namespace.
    pub name: IfName,
    /// MAC address; `None` for links without one, such as layer 3 tunnels.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administrative state.
    pub state: LinkState,
    /// Kind, with the configuration of a VXLAN device.
    pub kind: LinkKind,
}

impl Link {
    /// The family whose overlay the link carries, if it has the name of an overlay device of Towpath or flannel.
    #[must_use]
    pub fn overlay_family(&self) -> Option<Family> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let name = self.name.as_str();
        if name.strip_prefix("flannel.").is_some_and(is_number) {
            Some(Family::V4)
        } else if name.strip_prefix("flannel-v6.").is_some_and(is_number) {
            Some(Family::V6)
        } else {
            None
        }
    }
}

/// The owner of a route, by its protocol number (`rtm_protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteOwner {
    /// This agent or its CNI plugin ([`crate::names::ROUTE_PROTOCOL`]).
    Towpath,
    /// The kernel or another program, with its protocol number.
    Other(u8),
}

impl RouteOwner {
    /// The kernel, for a route learned from a router advertisement (RTPROT_RA).
    pub const ROUTER_ADVERTISEMENT: Self = Self::Other(9);
    /// The kernel, for the connected route of an address (RTPROT_KERNEL).
    pub const KERNEL: Self = Self::Other(2);
}

/// The target of an installed route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// A gateway on a link.
    Via {
        /// Address of the gateway.
        gateway: IpAddr,
        /// Ifindex of the output link.
        link: IfIndex,
    },
    /// A link, without a gateway.
    Link(IfIndex),
    /// The kernel drops the packet (`RTN_BLACKHOLE`).
    Blackhole,
    /// A target that we never install, such as a multipath route.
    Other,
}

impl RouteTarget {
    /// The output link, if the route has exactly one.
    #[must_use]
    pub const fn link(self) -> Option<IfIndex> {
        match self {
            Self::Via { link, .. } | Self::Link(link) => Some(link),
            Self::Blackhole | Self::Other => None,
        }
    }
}

/// Key of a route in the main table: the kernel keeps one route per destination and metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Destination prefix.
    pub destination: IpNet,
    /// Priority (RTA_PRIORITY): the lowest wins. Our routes have the [`default_metric`].
    pub metric: u32,
}

/// The metric of a route added without one: 0 in IPv4, 1024 in IPv6 (`IP6_RT_PRIO_USER` in `linux/ipv6_route.h`).
#[must_use]
pub const fn default_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Gateway and output link.
    pub target: RouteTarget,
    /// Program that installed the route.
    pub owner: RouteOwner,
}

/// A sysctl below `/proc/sys/net` that the overlay depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    /// `accept_ra` of a link: 0 ignores router advertisements, 1 accepts them unless the node forwards, 2 always accepts
    /// them. Ordered before [`Sysctl::Forwarding`]: enabling forwarding at `accept_ra=1` purges the learned routes.
    AcceptRouterAdvertisements(IfName),
    /// IP forwarding of a family, for all links.
    Forwarding(Family),
}

impl fmt::Display for Sysctl {
    /// Prints the path below `/proc/sys/net`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarding(Family::V4) => f.write_str("ipv4/ip_forward"),
            Self::Forwarding(Family::V6) => f.write_str("ipv6/conf/all/forwarding"),
            Self::AcceptRouterAdvertisements(link) => write!(f, "ipv6/conf/{link}/accept_ra"),
        }
    }
}

/// Kernel state of one network namespace.
///
/// Contains only permanent neighbour and FDB entries, and only those of devices with an overlay's name
/// ([`Link::overlay_family`]). Contains these routes of the main table: ours, default routes, and routes that a program
/// installed through such a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Links whose name is a valid [`IfName`].
    pub links: BTreeMap<IfIndex, Link>,
    /// Addresses of global scope that may be used for new connections, in the kernel's order, with prefix length.
    pub addresses: BTreeMap<IfIndex, Vec<IpNet>>,
    /// Permanent neighbour entries of overlay devices.
    pub neighbours: BTreeMap<(IfIndex, IpAddr), Mac>,
    /// Permanent FDB entries of overlay devices: the remote VTEP of each MAC.
    pub fdb: BTreeMap<(IfIndex, Mac), IpAddr>,
    /// Routes of the main table, filtered as described above.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Values of the sysctls that exist.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

impl Kernel {
    /// Finds a link by name.
    #[must_use]
    pub fn link(&self, name: &IfName) -> Option<(IfIndex, &Link)> {
        self.links.iter().find(|(_, link)| link.name == *name).map(|(index, link)| (*index, link))
    }

    /// Routes with this destination, lowest metric first.
    pub(super) fn routes_to(&self, destination: IpNet) -> impl DoubleEndedIterator<Item = (&RouteKey, &Route)> {
        let key = |metric| RouteKey { destination, metric };
        self.routes.range(key(0)..=key(u32::MAX))
    }

    /// Default routes of a family, lowest metric first.
    pub(super) fn default_routes(&self, family: Family) -> impl Iterator<Item = (&RouteKey, &Route)> {
        let any = match family {
            Family::V4 => IpNet::from(Ipv4Net::default()),
            Family::V6 => IpNet::from(Ipv6Net::default()),
        };
        self.routes_to(any)
    }

    /// The MAC of the existing overlay device of a family, if it is usable. The agent keeps it across restarts, because
    /// peers have entries for it.
    #[must_use]
    pub fn overlay_mac(&self, family: Family, vni: Vni) -> Option<Mac> {
        self.link(&IfName::of_vxlan(family, vni)).and_then(|(_, link)| link.mac).filter(|mac| mac.is_unicast())
    }
}
