//! One operation on links, addresses, neighbours, FDB entries, routes or sysctls.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::{RouteKey, Sysctl, VxlanDevice};
use crate::{model::Mac, names::IfName};

/// Next hop of a route to install. Refers to links by name, because a device created earlier in the same list of
/// operations has no ifindex yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHop {
    /// A gateway that is treated as directly reachable on the link, whatever other routes say (`RTNH_F_ONLINK`).
    Onlink {
        /// Address of the gateway.
        gateway: IpAddr,
        /// Link that reaches the gateway.
        link: IfName,
    },
    /// The destination is directly reachable on the link (`scope link`).
    Link(IfName),
    /// The kernel drops the packet (`RTN_BLACKHOLE`).
    Blackhole,
}

/// One operation. `Set*`, [`NetOp::AddAddress`] and [`NetOp::ReplaceRoute`] are idempotent. The others fail if the object
/// already exists (create, add) or does not exist (delete).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields that have no comment are named after what they are")]
pub enum NetOp {
    /// Deletes a link. The kernel deletes its addresses, neighbours, FDB entries and routes with it.
    DeleteLink {
        link: IfName,
        /// Reason for the log, such as `VNI 2 should be 1`.
        reason: String,
    },
    /// Creates a VXLAN device that is up and has no address.
    CreateDevice(VxlanDevice),
    /// Sets the MTU of a link.
    SetMtu {
        link: IfName,
        /// In bytes.
        mtu: u32,
    },
    /// Sets the MAC of a link. The kernel flushes the link's neighbour entries, permanent ones included
    /// (`neigh_changeaddr`).
    SetMac { link: IfName, mac: Mac },
    /// Sets a link administratively up (IFF_UP).
    SetUp { link: IfName },
    /// Writes a sysctl.
    SetSysctl { sysctl: Sysctl, value: i32 },
    /// Adds an address to a link.
    AddAddress {
        link: IfName,
        /// Address with prefix length.
        address: IpNet,
    },
    /// Adds a permanent neighbour entry or replaces its MAC.
    SetNeighbour { link: IfName, address: IpAddr, mac: Mac },
    /// Adds an FDB entry or replaces its remote.
    SetFdb {
        link: IfName,
        mac: Mac,
        /// Remote VTEP that receives frames for the MAC.
        remote: IpAddr,
    },
    /// Adds a route with our protocol number. Fails if a route with this key exists.
    AddRoute { destination: IpNet, hop: NextHop },
    /// Adds a route with our protocol number, in place of the one with the same key if there is one.
    ReplaceRoute { destination: IpNet, hop: NextHop },
    /// Deletes a route that has our protocol number.
    DeleteRoute { route: RouteKey },
    /// Deletes an FDB entry.
    DeleteFdb { link: IfName, mac: Mac, remote: IpAddr },
    /// Deletes a neighbour entry.
    DeleteNeighbour { link: IfName, address: IpAddr },
    /// Deletes an address from a link.
    DeleteAddress {
        link: IfName,
        /// Address with prefix length.
        address: IpNet,
    },
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Onlink { gateway, link } => write!(f, "via {gateway} dev {link}"),
            Self::Link(link) => write!(f, "dev {link}"),
            Self::Blackhole => f.write_str("blackhole"),
        }
    }
}

impl fmt::Display for NetOp {
    /// Describes the operation in the imperative, so that it reads well after "could not".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteLink { link, reason } => write!(f, "delete link {link} ({reason})"),
            Self::CreateDevice(VxlanDevice { name, tunnel, mtu, .. }) => {
                let super::VxlanConfig { vni, port, local, uplink, .. } = tunnel;
                write!(
                    f,
                    "create device {name} (VNI {vni}, port {port}, local {local}, uplink ifindex {uplink}, MTU {mtu})"
                )
            }
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::SetMac { link, mac } => write!(f, "set the MAC of {link} to {mac}"),
            Self::SetUp { link } => write!(f, "set {link} up"),
            Self::SetSysctl { sysctl, value } => write!(f, "set sysctl {sysctl} to {value}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::SetNeighbour { link, address, mac } => write!(f, "set neighbour entry {address} on {link} to {mac}"),
            Self::SetFdb { link, mac, remote } => write!(f, "set FDB entry {mac} on {link} to {remote}"),
            Self::AddRoute { destination, hop } => write!(f, "add route {destination} {hop}"),
            Self::ReplaceRoute { destination, hop } => write!(f, "replace route {destination} {hop}"),
            Self::DeleteRoute { route } => write!(f, "delete route {}", route.destination),
            Self::DeleteFdb { link, mac, remote } => write!(f, "delete FDB entry {mac} on {link} to {remote}"),
            Self::DeleteNeighbour { link, address } => write!(f, "delete neighbour entry {address} on {link}"),
            Self::DeleteAddress { link, address } => write!(f, "delete address {address} from {link}"),
        }
    }
}
