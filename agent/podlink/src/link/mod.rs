//! A pod's link: a veth pair by Canal's recipe, with the neighbour entry that Canal lacks.
//!
//! The pod has its address as /32 (/128) and a default route via a gateway on the link: 169.254.1.1, and in IPv6 the host
//! end's link-local address. A permanent neighbour entry holds the gateway's MAC: proxy ARP alone answers only while the
//! node has a route that matches, so that pods on a node without a default route would have no network at all. The host
//! has one route per address to the link.
//!
//! Cost of a creation: two sockets, about ten netlink messages in four rounds, a handful of sysctl files; no process.

mod check;
mod create;
mod error;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_core::{
    model::{Family, Mac},
    names::IfName,
    overlay::IfIndex,
};

pub use error::{Difference, PodLinkError};

use crate::route::RouteSocket;

/// The pods' IPv4 gateway. No interface has this address.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The pods' IPv6 gateway: the link-local address of the host end, derived from [`Mac::HOST_VETH`] (RFC 4291, appendix
/// A) and the same on every link.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// The pods' gateway of a family.
#[must_use]
pub const fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(GATEWAY_V4),
        Family::V6 => IpAddr::V6(GATEWAY_V6),
    }
}

/// The wanted state of a pod's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLinkSpec {
    /// The name of the host end.
    pub host: IfName,
    /// The name of the pod end.
    pub pod: IfName,
    /// The pod's addresses, one per family at most.
    pub addresses: Vec<IpAddr>,
    /// The MTU of both ends in bytes: the overlay device's.
    pub mtu: u32,
}

impl PodLinkSpec {
    fn has(&self, family: Family) -> bool {
        self.addresses.iter().any(|address| Family::of(*address) == family)
    }
}

/// A pod's link that was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLink {
    /// The ifindex of the host end.
    pub host_index: IfIndex,
    /// The MAC of the pod end; that of the host end is [`Mac::HOST_VETH`].
    pub pod_mac: Mac,
}

/// The result of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// The link was deleted, with its peer and its routes.
    Deleted,
    /// There was no such link.
    NotFound,
}

pub(crate) fn open() -> Result<RouteSocket, PodLinkError> {
    RouteSocket::open().map_err(|source| PodLinkError::Open { source })
}
