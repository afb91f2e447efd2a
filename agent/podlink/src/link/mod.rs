//! A pod's link: a veth pair by Canal's recipe, with the neighbour that Canal lacks.
//!
//! The pod has its address as /32 (/128) and sends everything to a router that it reaches on the link: 169.254.1.1, and
//! in IPv6 the host's end itself. A permanent neighbour tells it the router's MAC. Proxy ARP alone would answer only
//! while the node has a route that matches, so that pods of a node without a default route had no network at all.
//! On the host one route per address leads to the link.
//!
//! Cost of a creation: two sockets, about ten netlink messages in four rounds, a handful of sysctl files; no process is started.

mod check;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage as Message,
    link::{LinkAttribute, State},
};
use nix::errno::Errno;
use towpath_core::{
    model::{Family, Mac, host_net},
    names::IfName,
    overlay::IfIndex,
};

use crate::{
    netlink::NetlinkError,
    netns::{Netns, NetnsError},
    route::{
        RouteRequest, RouteSocket, find_link,
        message::{self, Hop, Owner, Reach, Veth, Write},
        parse, route_link,
    },
    sysctl::{SysctlError, Sysctls},
};

/// The router that every pod sees in IPv4. No interface has it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The router that every pod sees in IPv6: the link-local address of the host's end, made of [`Mac::HOST_VETH`]
/// (RFC 4291, appendix A), the same on every link.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// How long a link may take from up to running. It takes less than a millisecond, but up to a second where both ends have
/// the same number, which the kernel takes for the sign of a link that is not urgent (`linkwatch_urgent_event`).
const RUNNING_WITHIN: Duration = Duration::from_secs(2);

/// How often that is looked at.
const RUNNING_POLL: Duration = Duration::from_millis(1);

/// The router of a family inside a pod.
#[must_use]
pub const fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(GATEWAY_V4),
        Family::V6 => IpAddr::V6(GATEWAY_V6),
    }
}

/// What a pod's link is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLinkSpec {
    /// The host's end.
    pub host: IfName,
    /// The pod's end.
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

/// A pod's link that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLink {
    /// The number of the host's end.
    pub host_index: IfIndex,
    /// The MAC of the pod's end; the host's is [`Mac::HOST_VETH`].
    pub pod_mac: Mac,
}

/// What a deletion found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The link, and it is gone now, with its other end and its routes.
    Link,
    /// Nothing.
    Nothing,
}

/// What went wrong with a pod's link.
#[derive(Debug, thiserror::Error)]
pub enum PodLinkError {
    /// No socket.
    #[error("open a netlink socket")]
    Open {
        /// Why.
        source: NetlinkError,
    },
    /// The host's end is there: of an earlier container of this pod, usually.
    #[error("interface {name} exists on the host already: delete the pod's earlier container first")]
    HostExists {
        /// Its name.
        name: IfName,
    },
    /// The pod has such an interface.
    #[error("interface {name} exists in the pod already")]
    PodExists {
        /// Its name.
        name: IfName,
    },
    /// The pair could not be made.
    #[error("create veth {name}")]
    Create {
        /// The host's end.
        name: IfName,
        /// Why.
        source: NetlinkError,
    },
    /// A link vanished while it was being set up, or is not there when it should be.
    #[error("interface {name} is not there; was the container removed meanwhile?")]
    Gone {
        /// Its name.
        name: IfName,
    },
    /// The pod's end could not be set up.
    #[error("{step} in the pod")]
    Pod {
        /// What was being done.
        step: String,
        /// Why.
        source: NetlinkError,
    },
    /// The pod's namespace could not be entered.
    #[error("set up the pod's interface")]
    Namespace {
        /// Why.
        #[from]
        source: NetnsError,
    },
    /// A sysctl could not be set.
    #[error("set up interface {name}")]
    Sysctl {
        /// Its name.
        name: IfName,
        /// Why.
        source: SysctlError,
    },
    /// The host's end could not be set up.
    #[error("{step} on the host")]
    Host {
        /// What was being done.
        step: String,
        /// Why.
        source: NetlinkError,
    },
    /// The address is routed to another link: two pods would share it.
    #[error(
        "address {address} is in use: the host routes it to {other}; delete that route or the interface if its pod is gone"
    )]
    Conflict {
        /// The address.
        address: IpAddr,
        /// The link that has it, or where else it leads.
        other: String,
    },
    /// The link is not as it should be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Deviates(Vec<Deviation>),
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// What: `eth0`, `route 0.0.0.0/0 in the pod`.
    pub what: String,
    /// How it should be.
    pub want: String,
    /// How it is.
    pub have: String,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} should be {} but is {}", self.what, self.want, self.have)
    }
}

impl PodLink {
    /// Makes the pair and sets up both ends, all but the routes on the host ([`PodLink::connect`]): without them nothing
    /// reaches the pod, so that its rules can be put in force first.
    ///
    /// # Errors
    /// The step that failed. Nothing is left behind, unless deleting it failed as well; an interface that was there
    /// before is left alone.
    pub fn create(netns: &Netns, spec: &PodLinkSpec) -> Result<Self, PodLinkError> {
        let mut socket = open()?;
        let veth = Veth {
            host: &spec.host,
            host_mac: Mac::HOST_VETH,
            pod: &spec.pod,
            netns: netns.as_fd().as_raw_fd(),
            mtu: spec.mtu,
        };
        if let Err(error) = socket.execute(veth.create()) {
            return Err(why_not_created(&mut socket, spec, error));
        }
        // The end that is up last carries packets at once: the pod's. The host's is waited for in `connect`.
        let made = set_up_host(&mut socket, spec)
            .and_then(|host_index| Ok(Self { host_index, pod_mac: set_up_pod(netns, spec)? }));
        if made.is_err() {
            // The first error is the one to tell; what stays behind is found by the next deletion.
            let _ = delete_with(&mut socket, &spec.host);
        }
        made
    }

    /// Routes the pod's addresses to its link, and waits until the link carries packets. It may be repeated.
    ///
    /// # Errors
    /// If an address is routed elsewhere already, with the name of the other link.
    pub fn connect(&self, spec: &PodLinkSpec) -> Result<(), PodLinkError> {
        let mut socket = open()?;
        let routes: Vec<_> = spec.addresses.iter().map(|address| host_route(*address, self.host_index)).collect();
        for (address, result) in spec.addresses.iter().zip(socket.execute_all(&routes)) {
            match result {
                Ok(()) => {}
                Err(error) if error.errno() == Some(Errno::EEXIST) => {
                    own_or_conflict(&mut socket, *address, self.host_index)?;
                }
                Err(source) => {
                    return Err(PodLinkError::Host { step: format!("route {address} to {}", spec.host), source });
                }
            }
        }
        wait_until_running(&mut socket, &spec.host)
            .map_err(|source| PodLinkError::Host { step: format!("wait for {} to run", spec.host), source })
    }

    /// Deletes a pod's link by the name of the host's end; the other end, addresses and routes go with it.
    ///
    /// # Errors
    /// If the kernel refuses. A link that is not there is no error.
    pub fn delete(host: &IfName) -> Result<Deleted, PodLinkError> {
        delete_with(&mut open()?, host)
    }
}

pub(crate) fn open() -> Result<RouteSocket, PodLinkError> {
    RouteSocket::open().map_err(|source| PodLinkError::Open { source })
}

fn delete_with(socket: &mut RouteSocket, host: &IfName) -> Result<Deleted, PodLinkError> {
    match socket.execute(message::delete_link(host)) {
        Ok(()) => Ok(Deleted::Link),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(Deleted::Nothing),
        Err(source) => Err(PodLinkError::Host { step: format!("delete {host}"), source }),
    }
}

/// The kernel says EEXIST for either end.
fn why_not_created(socket: &mut RouteSocket, spec: &PodLinkSpec, source: NetlinkError) -> PodLinkError {
    if source.errno() != Some(Errno::EEXIST) {
        return PodLinkError::Create { name: spec.host.clone(), source };
    }
    match find_link(socket, &spec.host) {
        Ok(Some(_)) => PodLinkError::HostExists { name: spec.host.clone() },
        Ok(None) => PodLinkError::PodExists { name: spec.pod.clone() },
        Err(source) => PodLinkError::Create { name: spec.host.clone(), source },
    }
}

/// Sets up the pod's end, from within, and gives its MAC.
fn set_up_pod(netns: &Netns, spec: &PodLinkSpec) -> Result<Mac, PodLinkError> {
    const LOOPBACK: u32 = 1; // Always the first link of a network namespace (`loopback_net_init`).
    netns.run(|| {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| PodLinkError::Pod { step, source }
        };
        let mut socket = open()?;
        let gone = || PodLinkError::Gone { name: spec.pod.clone() };
        let (index, link) =
            find_link(&mut socket, &spec.pod).map_err(failed("find the interface"))?.ok_or_else(gone)?;
        let mac = link.mac.ok_or_else(gone)?;
        if spec.has(Family::V6) {
            // Some runtimes switch IPv6 off in new namespaces.
            let key = format!("ipv6/conf/{}/disable_ipv6", spec.pod);
            let error = |source| PodLinkError::Sysctl { name: spec.pod.clone(), source };
            Sysctls::default().ensure(&key, 0).map_err(error)?;
        }
        let mut steps = vec![
            ("set the loopback interface up".to_owned(), message::set_up(LOOPBACK)),
            (format!("set {} up", spec.pod), message::set_up(index.0)),
        ];
        steps.extend(spec.addresses.iter().flat_map(|address| pod_entries(*address, index)));
        let (names, requests): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
        for (step, result) in names.into_iter().zip(socket.execute_all(&requests)) {
            result.map_err(|source| PodLinkError::Pod { step, source })?;
        }
        Ok(mac)
    })?
}

/// What a pod gets for one of its addresses, in order: each needs those before it.
fn pod_entries(address: IpAddr, link: IfIndex) -> Vec<(String, RouteRequest)> {
    let family = Family::of(address);
    let gateway = gateway(family);
    let mut entries = vec![(format!("add address {address}"), message::add_address(link.0, host_net(address)))];
    entries.extend(pod_routes(family, link).into_iter().map(|(destination, hop)| {
        let route = message::route(destination, hop, Owner::Pod);
        (format!("add route {destination}"), message::add_route(route, Write::Replace))
    }));
    entries.push((format!("add neighbour {gateway}"), message::neighbour(link.0, gateway, Mac::HOST_VETH)));
    entries
}

/// The routes of a pod, in order.
pub(crate) fn pod_routes(family: Family, link: IfIndex) -> Vec<(IpNet, Hop)> {
    let via = Hop::Via { gateway: gateway(family), index: link.0, reach: Reach::Routed };
    let mut routes = vec![(message::default_net(family), via)];
    if family == Family::V4 {
        // An IPv6 router with a link-local address needs no route to itself.
        routes.insert(0, (host_net(GATEWAY_V4.into()), Hop::Link { index: link.0 }));
    }
    routes
}

/// Sets up the host's end and gives its number. Its sysctls come first: it must not be up with the defaults.
fn set_up_host(socket: &mut RouteSocket, spec: &PodLinkSpec) -> Result<IfIndex, PodLinkError> {
    let failed = |step: String| move |source| PodLinkError::Host { step, source };
    let name = &spec.host;
    let (index, _) = find_link(socket, name)
        .map_err(failed(format!("find {name}")))?
        .ok_or_else(|| PodLinkError::Gone { name: name.clone() })?;
    set_sysctls(spec).map_err(|source| PodLinkError::Sysctl { name: name.clone(), source })?;
    let mut requests = vec![message::set_up(index.0)];
    if spec.has(Family::V6) {
        requests.push(message::add_address(index.0, IpNet::new_assert(GATEWAY_V6.into(), 64)));
    }
    for result in socket.execute_all(&requests) {
        result.map_err(failed(format!("set {name} up")))?;
    }
    Ok(index)
}

/// Sets the sysctls of the host's end.
///
/// IPv4: forwarding whatever `ip_forward` says of new links; ARP answered for every address, for pods that were made by
/// Canal; sources that are routed to another link dropped, as a second line behind the table's own rule.
/// IPv6: the same, where it has such a thing; no address but the one that we give, and that one usable at once. A pod
/// without IPv6 has none on the host's end either.
fn set_sysctls(spec: &PodLinkSpec) -> Result<(), SysctlError> {
    const V4: [(&str, i32); 3] = [("forwarding", 1), ("proxy_arp", 1), ("rp_filter", 1)];
    const V6: [(&str, i32); 6] = [
        ("disable_ipv6", 0),
        ("addr_gen_mode", 1), // IN6_ADDR_GEN_MODE_NONE
        ("forwarding", 1),
        ("proxy_ndp", 1),
        ("accept_ra", 0),
        ("accept_dad", 0),
    ];
    let sysctls = Sysctls::default();
    let set = |family: &str, key: &str, value| sysctls.write(&format!("{family}/conf/{}/{key}", spec.host), value);
    if spec.has(Family::V4) {
        V4.iter().try_for_each(|(key, value)| set("ipv4", key, *value))?;
    }
    if spec.has(Family::V6) {
        return V6.iter().try_for_each(|(key, value)| set("ipv6", key, *value));
    }
    match set("ipv6", "disable_ipv6", 1) {
        // The kernel was started without IPv6.
        Err(SysctlError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Waits until the host's end carries packets. The kernel notices later (`linkwatch`) that the other end is up as well;
/// until then it drops what is sent. Asking for the link makes it look at once (`linkwatch_sync_dev` in `rtnl_getlink`,
/// since Linux 6.8); before, it is a matter of waiting. After [`RUNNING_WITHIN`] it goes on all the same: the kernel is
/// late then, not the link broken.
fn wait_until_running(socket: &mut RouteSocket, name: &IfName) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + RUNNING_WITHIN;
    loop {
        let running = match socket.get(message::get_link(name))? {
            Some(Message::NewLink(link)) => link.attributes.contains(&LinkAttribute::OperState(State::Up)),
            _ => false,
        };
        if running || Instant::now() > deadline {
            return Ok(());
        }
        thread::sleep(RUNNING_POLL);
    }
}

fn host_route(address: IpAddr, link: IfIndex) -> RouteRequest {
    let route = message::route(host_net(address), Hop::Link { index: link.0 }, Owner::Towpath);
    message::add_route(route, Write::New)
}

/// There is a route to this address: fine if it leads to our link.
fn own_or_conflict(socket: &mut RouteSocket, address: IpAddr, ours: IfIndex) -> Result<(), PodLinkError> {
    let failed = |source| PodLinkError::Host { step: format!("look up the route to {address}"), source };
    let link = route_link(socket, address).map_err(failed)?;
    if link == Some(ours) {
        return Ok(());
    }
    let mut other = "no link".to_owned();
    if let Some(index) = link {
        other = link_name(socket, index).map_err(failed)?.unwrap_or_else(|| format!("link {index}"));
    }
    Err(PodLinkError::Conflict { address, other })
}

fn link_name(socket: &mut RouteSocket, index: IfIndex) -> Result<Option<String>, NetlinkError> {
    let links = socket.dump(message::all_links())?;
    Ok(parse::links(&links).find(|(i, _)| *i == index).map(|(_, link)| link.name.to_string()))
}
