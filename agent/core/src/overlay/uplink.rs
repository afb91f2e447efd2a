//! Selects the uplink (the underlay link of the overlay) and computes the MTU.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;

use super::{IfIndex, Kernel, Link, LinkState, RouteOwner, RouteTarget};
use crate::{model::Family, names::IfName};

/// How to select the uplink (`spec.interface`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSpec {
    /// The link of the default route. Without a default route: the link that has an InternalIP of the Node.
    DefaultRoute,
    /// The first of these names whose link exists and is usable.
    Names(Vec<IfName>),
    /// The link with an address in the first of these networks that matches any link.
    Cidrs(Vec<IpNet>),
    /// The link that has this address.
    Address(IpAddr),
}

/// Requirements for the uplink.
#[derive(Debug, Clone, Copy)]
pub struct UplinkQuery<'a> {
    /// How to select the link.
    pub spec: &'a InterfaceSpec,
    /// Families in which the link must have an address.
    pub families: &'a [Family],
    /// Preferred addresses if the link has several: the InternalIPs of the Node.
    pub prefer: &'a [IpAddr],
}

/// Why a link was selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkReason {
    /// The default route of this family uses it.
    DefaultRoute(Family),
    /// It has this InternalIP of the Node.
    NodeAddress(IpAddr),
    /// `spec.interface.names` lists it.
    Name,
    /// It has an address in this network of `spec.interface.cidrs`.
    Cidr(IpNet),
    /// It has this address, which an annotation of the Node specifies.
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

/// The underlay link of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Interface name.
    pub name: IfName,
    /// Ifindex.
    pub index: IfIndex,
    /// MTU in bytes.
    pub mtu: u32,
    /// Address of the node on the link, in each family of the query.
    pub addresses: BTreeMap<Family, IpAddr>,
    /// Networks that are directly connected to the link.
    pub networks: Vec<IpNet>,
    /// Why the link was selected.
    pub chosen_by: UplinkReason,
    /// Whether a default route of the link was learned from router advertisements.
    pub router_advertisements: RouterAdvertisements,
}

/// Whether a link depends on router advertisements for its default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterAdvertisements {
    /// It does: the overlay sets `accept_ra=2`, because the node forwards.
    Required,
    /// It does not: `accept_ra` stays as configured.
    NotRequired,
}

impl Uplink {
    /// Whether an address is in a directly connected network, so that no router is needed.
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address))
    }
}

/// Why no uplink could be selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// The node has no default route, and no usable link has an InternalIP of the Node.
    #[error("no default route, and no usable link has the Node's InternalIP: set spec.interface")]
    NoDefaultRoute,
    /// The link of the default route is down, a pod's link or an overlay device.
    #[error("the default route uses ifindex {0}, which cannot be the uplink: set spec.interface")]
    DefaultRouteUnusable(IfIndex),
    /// No link of `spec.interface.names` exists and is usable.
    #[error(
        "no link in spec.interface.names ({}) exists and is up; usable links: {}", list(.names), list(.available)
    )]
    NoSuchName {
        /// Links of the configuration.
        names: Vec<IfName>,
        /// Usable links of the node.
        available: Vec<IfName>,
    },
    /// No usable link has an address in any of these networks.
    #[error("no usable link has an address in spec.interface.cidrs ({})", list(.0))]
    NoAddressIn(Vec<IpNet>),
    /// No usable link has this address.
    #[error("no usable link has the address {0} of the Node's annotation node-public-ip")]
    NoSuchAddress(IpAddr),
    /// The selected link has no usable address of a required family.
    #[error("link {name} has no usable {family} address: add one, or select another link in spec.interface")]
    NoAddress {
        /// Selected link.
        name: IfName,
        /// Required family.
        family: Family,
    },
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Selects the uplink.
///
/// # Errors
/// If no link matches, or the matching link lacks an address of a required family. The message names the remedy.
pub fn choose_uplink(kernel: &Kernel, query: UplinkQuery<'_>) -> Result<Uplink, UplinkError> {
    let (index, link, chosen_by) = select_link(kernel, query)?;
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
        if advertised { RouterAdvertisements::Required } else { RouterAdvertisements::NotRequired };
    let (name, mtu) = (link.name.clone(), link.mtu);
    Ok(Uplink { name, index, mtu, addresses, networks, chosen_by, router_advertisements })
}

fn usable_links(kernel: &Kernel) -> impl Iterator<Item = (IfIndex, &Link)> {
    kernel.links.iter().map(|(index, link)| (*index, link)).filter(|(_, link)| is_usable(link))
}

/// Whether a link can be the uplink: it is up, and neither an overlay device nor a pod's link.
fn is_usable(link: &Link) -> bool {
    link.state == LinkState::Up && link.overlay_family().is_none() && !link.name.is_pod()
}

type UplinkCandidate<'a> = (IfIndex, &'a Link, UplinkReason);

fn select_link<'a>(kernel: &'a Kernel, query: UplinkQuery<'_>) -> Result<UplinkCandidate<'a>, UplinkError> {
    match query.spec {
        InterfaceSpec::DefaultRoute => by_default_route(kernel, query),
        InterfaceSpec::Names(names) => names
            .iter()
            .find_map(|name| usable_links(kernel).find(|(_, link)| link.name == *name))
            .map(|(index, link)| (index, link, UplinkReason::Name))
            .ok_or_else(|| UplinkError::NoSuchName {
                names: names.clone(),
                available: usable_links(kernel).map(|(_, link)| link.name.clone()).collect(),
            }),
        InterfaceSpec::Cidrs(cidrs) => cidrs
            .iter()
            .find_map(|cidr| {
                let (index, link) = link_with_address(kernel, |address| cidr.contains(&address))?;
                Some((index, link, UplinkReason::Cidr(*cidr)))
            })
            .ok_or_else(|| UplinkError::NoAddressIn(cidrs.clone())),
        InterfaceSpec::Address(address) => link_with_address(kernel, |have| have == *address)
            .map(|(index, link)| (index, link, UplinkReason::Address(*address)))
            .ok_or(UplinkError::NoSuchAddress(*address)),
    }
}

fn link_with_address(kernel: &Kernel, matches: impl Fn(IpAddr) -> bool) -> Option<(IfIndex, &Link)> {
    usable_links(kernel)
        .find(|(index, _)| kernel.addresses.get(index).into_iter().flatten().any(|net| matches(net.addr())))
}

/// The link of the default route with the lowest metric, in the first family that has a default route.
fn by_default_route<'a>(kernel: &'a Kernel, query: UplinkQuery<'_>) -> Result<UplinkCandidate<'a>, UplinkError> {
    let uses_link = |target| matches!(target, RouteTarget::Via { .. } | RouteTarget::Link(_));
    for family in query.families {
        let first = kernel.default_routes(*family).find(|(_, route)| uses_link(route.target));
        let index = first.and_then(|(_, route)| route.target.link());
        if let Some(index) = index {
            let link = kernel.links.get(&index).filter(|link| is_usable(link));
            let link = link.ok_or(UplinkError::DefaultRouteUnusable(index))?;
            return Ok((index, link, UplinkReason::DefaultRoute(*family)));
        }
    }
    query
        .prefer
        .iter()
        .find_map(|address| {
            let (index, link) = link_with_address(kernel, |have| have == *address)?;
            Some((index, link, UplinkReason::NodeAddress(*address)))
        })
        .ok_or(UplinkError::NoDefaultRoute)
}

/// Selects the node's address on the uplink. Order of preference: the address by which the link was selected; a
/// preferred address; the first address with a network (a /32 or /128 may be a virtual IP that moves between nodes); the
/// first address.
fn choose_address(nets: &[IpNet], family: Family, chosen_by: &UplinkReason, prefer: &[IpAddr]) -> Option<IpAddr> {
    let nets: Vec<IpNet> = nets.iter().copied().filter(|net| Family::of_net(*net) == family).collect();
    let find = |matches: &dyn Fn(&IpNet) -> bool| nets.iter().find(|net| matches(net)).map(IpNet::addr);
    let selecting = match chosen_by {
        UplinkReason::Cidr(cidr) => find(&|net| cidr.contains(&net.addr())),
        UplinkReason::Address(address) | UplinkReason::NodeAddress(address) => find(&|net| net.addr() == *address),
        UplinkReason::DefaultRoute(_) | UplinkReason::Name => None,
    };
    selecting
        .or_else(|| find(&|net| prefer.contains(&net.addr())))
        .or_else(|| find(&|net| net.prefix_len() < family.host_prefix_len()))
        .or_else(|| find(&|_| true))
}

/// VXLAN overhead in bytes, by family of the outer header (RFC 7348, section 5): inner Ethernet 14, VXLAN 8, UDP 8, and
/// IPv4 20 or IPv6 40.
#[must_use]
pub const fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// Minimum MTU in bytes: the IPv6 minimum link MTU (RFC 8200, section 5) and the lower bound of `spec.mtu`.
pub const MIN_MTU: u32 = 1280;

/// Why no MTU could be determined. All values are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MtuError {
    /// `spec.mtu` exceeds what the uplink allows.
    #[error(
        "spec.mtu {configured} is larger than {largest}, the maximum for an uplink with MTU {uplink}: lower or unset it"
    )]
    TooLarge {
        /// `spec.mtu`.
        configured: u32,
        /// Uplink MTU minus the VXLAN overhead.
        largest: u32,
        /// MTU of the uplink.
        uplink: u32,
    },
    /// The uplink is too small for an overlay.
    #[error(
        "the uplink's MTU {uplink} leaves {largest} bytes for pods, less than the minimum of {MIN_MTU}: raise the uplink's MTU"
    )]
    UplinkTooSmall {
        /// MTU of the uplink.
        uplink: u32,
        /// Uplink MTU minus the VXLAN overhead.
        largest: u32,
    },
}

/// The MTU of the VXLAN devices and of pods, in bytes. One value for both families, with the overhead of the larger outer
/// header.
///
/// # Errors
/// If `configured` exceeds what the uplink allows, or the uplink allows less than [`MIN_MTU`].
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
