//! What the kernel holds, as far as the overlay is concerned: the shape in which it is read back.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    model::{Family, Mac, Vni},
    names::IfName,
};

/// The number of a network interface, unique within its network namespace and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a link is set up (IFF_UP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It is.
    Up,
    /// It is not; no route leads through it.
    Down,
}

/// Whether a VXLAN device learns where MACs are from the packets that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learning {
    /// It does, as the kernel makes it if one does not ask: any host could draw another's traffic to itself.
    On,
    /// Only what is configured counts.
    Off,
}

/// What makes a VXLAN device what it is. The kernel changes none of it on a live device (EOPNOTSUPP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConfig {
    /// Its network identifier.
    pub vni: Vni,
    /// The UDP port, here and at the peers.
    pub port: u16,
    /// The address from which it sends.
    pub local: IpAddr,
    /// The link through which it sends.
    pub uplink: IfIndex,
    /// Whether it learns.
    pub learning: Learning,
}

/// The kind of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device with all that a [`VxlanConfig`] has.
    Vxlan(VxlanConfig),
    /// Another one, by the kernel's word for it (`veth`, `bridge`); `device` if it has none, as hardware has not.
    Other(String),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: IfName,
    /// Its MAC; `None` for those that have none, such as tunnels without Ethernet.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub state: LinkState,
    /// Its kind.
    pub kind: LinkKind,
}

impl Link {
    /// The family of the overlay that it carries, if its name is one that Towpath and flannel give to their devices.
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

/// Whose a route is, by its protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteOwner {
    /// Ours: [`crate::names::ROUTE_PROTOCOL`].
    Towpath,
    /// Another program's, with that program's number.
    Other(u8),
}

impl RouteOwner {
    /// The kernel, for a route that it took from a router's advertisement (RTPROT_RA).
    pub const ROUTER_ADVERTISEMENT: Self = Self::Other(9);
    /// The kernel, for a route that follows from an address (RTPROT_KERNEL).
    pub const KERNEL: Self = Self::Other(2);
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Through a router on a link.
    Via {
        /// The router.
        gateway: IpAddr,
        /// The link.
        link: IfIndex,
    },
    /// To a link itself.
    Link(IfIndex),
    /// Nowhere: packets are dropped.
    Blackhole,
    /// Something that we never make, such as several routers at once.
    Other,
}

impl RouteTarget {
    /// The link that the route leaves by, if it is one.
    #[must_use]
    pub const fn link(self) -> Option<IfIndex> {
        match self {
            Self::Via { link, .. } | Self::Link(link) => Some(link),
            Self::Blackhole | Self::Other => None,
        }
    }
}

/// What tells the routes of the main table apart: the kernel keeps one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The network that it leads to.
    pub destination: IpNet,
    /// Its priority; less wins. Ours have what the kernel gives when one does not ask: [`default_metric`].
    pub metric: u32,
}

/// The metric of a route that asks for none: 0 in IPv4, 1024 in IPv6 (`IP6_RT_PRIO_USER` in `include/net/ipv6.h`).
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
    /// Where it leads.
    pub target: RouteTarget,
    /// Whose it is.
    pub owner: RouteOwner,
}

/// A sysctl below `/proc/sys/net` that the overlay depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    /// Whether a link takes IPv6 routes and addresses from whoever advertises them: 0 never, 1 if the node does not forward,
    /// 2 always. It comes before [`Sysctl::Forwarding`] in order: where it is 1, forwarding deletes such routes at once.
    AcceptRouterAdvertisements(IfName),
    /// Whether the node forwards packets of a family at all.
    Forwarding(Family),
}

impl fmt::Display for Sysctl {
    /// Its path below `/proc/sys/net`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarding(Family::V4) => f.write_str("ipv4/ip_forward"),
            Self::Forwarding(Family::V6) => f.write_str("ipv6/conf/all/forwarding"),
            Self::AcceptRouterAdvertisements(link) => write!(f, "ipv6/conf/{link}/accept_ra"),
        }
    }
}

/// What the kernel holds in one network namespace.
///
/// Neighbours and forwarding entries are only those on devices with an overlay's name ([`Link::overlay_family`]) and
/// permanent. Routes are those of the main table that are ours, lead to everywhere (default routes), or were given by a
/// program and leave through such a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// All links whose name we could write ourselves.
    pub links: BTreeMap<IfIndex, Link>,
    /// Their addresses of global scope that may be used for new connections, in the kernel's order, with prefix length.
    pub addresses: BTreeMap<IfIndex, Vec<IpNet>>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<(IfIndex, IpAddr), Mac>,
    /// Permanent forwarding entries of VXLAN devices: where frames for a MAC are sent.
    pub fdb: BTreeMap<(IfIndex, Mac), IpAddr>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Sysctls that exist.
    pub sysctls: BTreeMap<Sysctl, i32>,
}

impl Kernel {
    /// The link of a name.
    #[must_use]
    pub fn link(&self, name: &IfName) -> Option<(IfIndex, &Link)> {
        self.links.iter().find(|(_, link)| link.name == *name).map(|(index, link)| (*index, link))
    }

    /// The routes to a network, the least metric first.
    pub(super) fn routes_to(&self, destination: IpNet) -> impl DoubleEndedIterator<Item = (&RouteKey, &Route)> {
        let key = |metric| RouteKey { destination, metric };
        self.routes.range(key(0)..=key(u32::MAX))
    }

    /// The routes to everywhere of a family, the least metric first.
    pub(super) fn default_routes(&self, family: Family) -> impl Iterator<Item = (&RouteKey, &Route)> {
        let everywhere = match family {
            Family::V4 => IpNet::from(Ipv4Net::default()),
            Family::V6 => IpNet::from(Ipv6Net::default()),
        };
        self.routes_to(everywhere)
    }

    /// The MAC of the device that carries a family's overlay now, if there is one: it is kept over restarts, because the
    /// peers have it.
    #[must_use]
    pub fn overlay_mac(&self, family: Family, vni: Vni) -> Option<Mac> {
        self.link(&IfName::of_vxlan(family, vni)).and_then(|(_, link)| link.mac).filter(|mac| mac.is_unicast())
    }
}
