//! Which link of the node carries the overlay, and how large its packets may be.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;

use super::{IfIndex, Kernel, Link, LinkState, RouteOwner, RouteTarget};
use crate::{model::Family, names::IfName};

/// How the user wants the uplink chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSpec {
    /// The link of the default route; if there is none, the one with the Node's internal address.
    DefaultRoute,
    /// The first of these that is there and fit.
    Names(Vec<IfName>),
    /// The link with an address in the first of these networks that any link has one in.
    Cidrs(Vec<IpNet>),
    /// The link with this address.
    Address(IpAddr),
}

/// What an uplink must do.
#[derive(Debug, Clone, Copy)]
pub struct UplinkQuery<'a> {
    /// How it is chosen.
    pub spec: &'a InterfaceSpec,
    /// The families in which it must have an address.
    pub families: &'a [Family],
    /// Addresses to take where a link has several: the Node's internal ones.
    pub prefer: &'a [IpAddr],
}

/// Why an uplink was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkReason {
    /// It has the default route of that family.
    DefaultRoute(Family),
    /// It has the Node's internal address.
    NodeAddress(IpAddr),
    /// Its name was given.
    Name,
    /// It has an address in a network that was given.
    Cidr(IpNet),
    /// Its address was given.
    Address(IpAddr),
}

impl fmt::Display for UplinkReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute(family) => write!(f, "{family} default route"),
            Self::NodeAddress(address) => write!(f, "node address {address}"),
            Self::Name => f.write_str("name"),
            Self::Cidr(net) => write!(f, "network {net}"),
            Self::Address(address) => write!(f, "address {address}"),
        }
    }
}

/// The link that carries the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: IfName,
    /// Its number.
    pub index: IfIndex,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The node's address on it, in each family that was asked for.
    pub addresses: BTreeMap<Family, IpAddr>,
    /// The networks that are on the link itself.
    pub networks: Vec<IpNet>,
    /// Why it was chosen.
    pub chosen_by: UplinkReason,
    /// Whether the node has its IPv6 default route from a router on it.
    pub router_advertisements: RouterAdvertisements,
}

/// Whether a link's default route hangs on what a router advertises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterAdvertisements {
    /// It does. The link must go on to listen when the node begins to forward.
    Followed,
    /// It does not; whether the link listens is left alone.
    NotFollowed,
}

impl Uplink {
    /// Whether an address is on the link itself, without a router between.
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address))
    }
}

/// Why there is no uplink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// Nothing says which.
    #[error("no default route and no link with the Node's internal address: name the uplink in spec.interface")]
    NoDefaultRoute,
    /// The default route leads to a link that cannot carry the overlay.
    #[error(
        "the default route leads to link {0}, which is no link that can carry the overlay: name one in spec.interface"
    )]
    DefaultRouteUnfit(IfIndex),
    /// None of the named ones is there and up.
    #[error("none of the links {} in spec.interface.names is there and up; there are {}", list(.names), list(.there))]
    NoSuchName {
        /// Those that were named.
        names: Vec<IfName>,
        /// Those that are there and up.
        there: Vec<IfName>,
    },
    /// No link has an address in any of the networks.
    #[error("no link has an address in {} of spec.interface.cidrs", list(.0))]
    NoAddressIn(Vec<IpNet>),
    /// No link has the address.
    #[error("no link has the address {0} that the Node's annotation node-public-ip names")]
    NoSuchAddress(IpAddr),
    /// It was found, but lacks an address.
    #[error(
        "link {name} has no {family} address that the overlay could use: give it one, or name another link in spec.interface"
    )]
    NoAddress {
        /// The link.
        name: IfName,
        /// The family.
        family: Family,
    },
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Chooses the link that carries the overlay.
///
/// # Errors
/// If none fits, with what to do about it.
pub fn choose_uplink(kernel: &Kernel, query: UplinkQuery<'_>) -> Result<Uplink, UplinkError> {
    let (index, link, chosen_by) = find(kernel, query)?;
    let nets = kernel.addresses.get(&index).map(Vec::as_slice).unwrap_or_default();
    let mut addresses = BTreeMap::new();
    for family in query.families {
        let address = choose_address(nets, *family, &chosen_by, query.prefer)
            .ok_or_else(|| UplinkError::NoAddress { name: link.name.clone(), family: *family })?;
        addresses.insert(*family, address);
    }
    let networks = nets
        .iter()
        .filter(|net| net.prefix_len() < Family::of_net(**net).host_prefix_len())
        .map(IpNet::trunc)
        .collect();
    let advertised = Family::ALL
        .into_iter()
        .flat_map(|family| kernel.default_routes(family))
        .any(|(_, route)| route.owner == RouteOwner::ROUTER_ADVERTISEMENT && route.target.link() == Some(index));
    let router_advertisements =
        if advertised { RouterAdvertisements::Followed } else { RouterAdvertisements::NotFollowed };
    let (name, mtu) = (link.name.clone(), link.mtu);
    Ok(Uplink { name, index, mtu, addresses, networks, chosen_by, router_advertisements })
}

/// The links that can carry the overlay: up, not the overlay itself, not a pod's.
fn candidates(kernel: &Kernel) -> impl Iterator<Item = (IfIndex, &Link)> {
    kernel.links.iter().map(|(index, link)| (*index, link)).filter(|(_, link)| is_fit(link))
}

fn is_fit(link: &Link) -> bool {
    link.state == LinkState::Up && link.overlay_family().is_none() && !link.name.is_pod()
}

type UplinkCandidate<'a> = (IfIndex, &'a Link, UplinkReason);

fn find<'a>(kernel: &'a Kernel, query: UplinkQuery<'_>) -> Result<UplinkCandidate<'a>, UplinkError> {
    match query.spec {
        InterfaceSpec::DefaultRoute => by_default_route(kernel, query),
        InterfaceSpec::Names(names) => names
            .iter()
            .find_map(|name| candidates(kernel).find(|(_, link)| link.name == *name))
            .map(|(index, link)| (index, link, UplinkReason::Name))
            .ok_or_else(|| UplinkError::NoSuchName {
                names: names.clone(),
                there: candidates(kernel).map(|(_, link)| link.name.clone()).collect(),
            }),
        InterfaceSpec::Cidrs(cidrs) => cidrs
            .iter()
            .find_map(|cidr| {
                let (index, link) = with_address(kernel, |address| cidr.contains(&address))?;
                Some((index, link, UplinkReason::Cidr(*cidr)))
            })
            .ok_or_else(|| UplinkError::NoAddressIn(cidrs.clone())),
        InterfaceSpec::Address(address) => with_address(kernel, |have| have == *address)
            .map(|(index, link)| (index, link, UplinkReason::Address(*address)))
            .ok_or(UplinkError::NoSuchAddress(*address)),
    }
}

fn with_address(kernel: &Kernel, fits: impl Fn(IpAddr) -> bool) -> Option<(IfIndex, &Link)> {
    candidates(kernel).find(|(index, _)| kernel.addresses.get(index).into_iter().flatten().any(|net| fits(net.addr())))
}

/// The default route with the least metric of the first family that has one.
fn by_default_route<'a>(kernel: &'a Kernel, query: UplinkQuery<'_>) -> Result<UplinkCandidate<'a>, UplinkError> {
    let leads_out = |target| matches!(target, RouteTarget::Via { .. } | RouteTarget::Link(_));
    for family in query.families {
        let first = kernel.default_routes(*family).find(|(_, route)| leads_out(route.target));
        let index = first.and_then(|(_, route)| route.target.link());
        if let Some(index) = index {
            let link = kernel.links.get(&index).filter(|link| is_fit(link));
            let link = link.ok_or(UplinkError::DefaultRouteUnfit(index))?;
            return Ok((index, link, UplinkReason::DefaultRoute(*family)));
        }
    }
    query
        .prefer
        .iter()
        .find_map(|address| {
            let (index, link) = with_address(kernel, |have| have == *address)?;
            Some((index, link, UplinkReason::NodeAddress(*address)))
        })
        .ok_or(UplinkError::NoDefaultRoute)
}

/// The address that led to the link if one did, else a preferred one, else the first in the kernel's order that belongs
/// to a network (a single address is rather a virtual IP that wanders between nodes), else the first.
fn choose_address(nets: &[IpNet], family: Family, chosen_by: &UplinkReason, prefer: &[IpAddr]) -> Option<IpAddr> {
    let nets: Vec<IpNet> = nets.iter().copied().filter(|net| Family::of_net(*net) == family).collect();
    let find = |fits: &dyn Fn(&IpNet) -> bool| nets.iter().find(|net| fits(net)).map(IpNet::addr);
    let by_choice = match chosen_by {
        UplinkReason::Cidr(cidr) => find(&|net| cidr.contains(&net.addr())),
        UplinkReason::Address(address) | UplinkReason::NodeAddress(address) => find(&|net| net.addr() == *address),
        UplinkReason::DefaultRoute(_) | UplinkReason::Name => None,
    };
    by_choice
        .or_else(|| find(&|net| prefer.contains(&net.addr())))
        .or_else(|| find(&|net| net.prefix_len() < family.host_prefix_len()))
        .or_else(|| find(&|_| true))
}

/// What a VXLAN packet adds, in bytes, by the family of the outer header (RFC 7348, section 5): Ethernet 14, VXLAN 8,
/// UDP 8, and IPv4 20 or IPv6 40.
#[must_use]
pub const fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The least MTU of a link that carries IPv6 (RFC 8200, section 5), and the least that NetworkConfig takes.
pub const MIN_MTU: u32 = 1280;

/// Why there is no MTU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MtuError {
    /// The configured one does not fit.
    #[error(
        "spec.mtu {configured} is larger than {largest}, which is what the uplink's MTU {uplink} leaves: lower it or unset it"
    )]
    TooLarge {
        /// What was configured.
        configured: u32,
        /// What would fit.
        largest: u32,
        /// The uplink's.
        uplink: u32,
    },
    /// The uplink is too small for any overlay.
    #[error("the uplink's MTU {uplink} leaves {largest} bytes, less than the {MIN_MTU} that pods need: raise it")]
    UplinkTooSmall {
        /// The uplink's.
        uplink: u32,
        /// What it leaves.
        largest: u32,
    },
}

/// The MTU of the overlay's devices and of the pods, in bytes: one number, so that a pod's packet of either family fits.
///
/// # Errors
/// If the configured one does not fit through the uplink, or the uplink is too small.
pub fn device_mtu(uplink: u32, configured: Option<u32>, families: &[Family]) -> Result<u32, MtuError> {
    let outer = if families.contains(&Family::V6) { Family::V6 } else { Family::V4 };
    let largest = uplink.saturating_sub(overhead(outer));
    if largest < MIN_MTU {
        return Err(MtuError::UplinkTooSmall { uplink, largest });
    }
    match configured {
        Some(configured) if configured > largest => Err(MtuError::TooLarge { configured, largest, uplink }),
        Some(configured) => Ok(configured),
        None => Ok(largest),
    }
}
