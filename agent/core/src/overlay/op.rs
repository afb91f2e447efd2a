//! One change to the kernel's network.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::{RouteKey, Sysctl, VxlanDevice};
use crate::{model::Mac, names::IfName};

/// Where a route is to lead. Links are named, because one that a change before it makes has no number yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHop {
    /// Through a router that is on the link whatever other routes say (`onlink`).
    Onlink {
        /// The router.
        gateway: IpAddr,
        /// The link.
        link: IfName,
    },
    /// To the link itself.
    Link(IfName),
    /// Nowhere.
    Blackhole,
}

/// One change. Each is complete in itself and may be repeated, except that a route is only added where none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetOp {
    /// Deletes a link, and with it everything on it.
    DeleteLink {
        /// The link.
        link: IfName,
        /// Why, for the log: `vni 2 should be 1`.
        why: String,
    },
    /// Makes a VXLAN device that is up, without its address.
    CreateDevice(VxlanDevice),
    /// Sets a link's MTU.
    SetMtu {
        /// The link.
        link: IfName,
        /// In bytes.
        mtu: u32,
    },
    /// Sets a link's MAC. The kernel forgets the link's neighbours over it, permanent ones too (`neigh_changeaddr`).
    SetMac {
        /// The link.
        link: IfName,
        /// The MAC.
        mac: Mac,
    },
    /// Sets a link up.
    SetUp {
        /// The link.
        link: IfName,
    },
    /// Sets a sysctl.
    SetSysctl {
        /// Which.
        sysctl: Sysctl,
        /// To what.
        value: i32,
    },
    /// Adds an address.
    AddAddress {
        /// The link.
        link: IfName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Sets a permanent neighbour, or changes its MAC.
    SetNeighbour {
        /// The link.
        link: IfName,
        /// The neighbour.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// Sets the forwarding entry of a MAC, or changes where it leads.
    SetFdb {
        /// The device.
        link: IfName,
        /// The MAC.
        mac: Mac,
        /// Where frames for it are sent.
        remote: IpAddr,
    },
    /// Adds a route where none is.
    AddRoute {
        /// The network.
        destination: IpNet,
        /// Where it leads.
        hop: NextHop,
    },
    /// Puts a route in the place of the one that is there.
    ReplaceRoute {
        /// The network.
        destination: IpNet,
        /// Where it leads.
        hop: NextHop,
    },
    /// Deletes a route of ours.
    DeleteRoute {
        /// Which.
        route: RouteKey,
    },
    /// Deletes a forwarding entry.
    DeleteFdb {
        /// The device.
        link: IfName,
        /// The MAC.
        mac: Mac,
        /// Where it leads.
        remote: IpAddr,
    },
    /// Deletes a neighbour.
    DeleteNeighbour {
        /// The link.
        link: IfName,
        /// The neighbour.
        address: IpAddr,
    },
    /// Deletes an address.
    DeleteAddress {
        /// The link.
        link: IfName,
        /// The address with its prefix length.
        address: IpNet,
    },
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Onlink { gateway, link } => write!(f, "via {gateway} dev {link}"),
            Self::Link(link) => write!(f, "dev {link}"),
            Self::Blackhole => f.write_str("nowhere"),
        }
    }
}

impl fmt::Display for NetOp {
    /// What the change does, to be read after "could not".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteLink { link, why } => write!(f, "delete {link} ({why})"),
            Self::CreateDevice(VxlanDevice { name, tunnel, mtu, .. }) => {
                let super::VxlanConfig { vni, port, local, uplink, .. } = tunnel;
                write!(f, "create {name} (VNI {vni}, port {port}, local {local}, uplink {uplink}, MTU {mtu})")
            }
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::SetMac { link, mac } => write!(f, "set the MAC of {link} to {mac}"),
            Self::SetUp { link } => write!(f, "set {link} up"),
            Self::SetSysctl { sysctl, value } => write!(f, "set sysctl {sysctl} to {value}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::SetNeighbour { link, address, mac } => write!(f, "set neighbour {address} on {link} to {mac}"),
            Self::SetFdb { link, mac, remote } => write!(f, "set forwarding entry {mac} on {link} to {remote}"),
            Self::AddRoute { destination, hop } => write!(f, "add route {destination} {hop}"),
            Self::ReplaceRoute { destination, hop } => write!(f, "replace route {destination} {hop}"),
            Self::DeleteRoute { route } => write!(f, "delete route {}", route.destination),
            Self::DeleteFdb { link, mac, remote } => write!(f, "delete forwarding entry {mac} to {remote} on {link}"),
            Self::DeleteNeighbour { link, address } => write!(f, "delete neighbour {address} on {link}"),
            Self::DeleteAddress { link, address } => write!(f, "delete address {address} on {link}"),
        }
    }
}
