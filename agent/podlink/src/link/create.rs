//! Creates, connects and deletes a pod's link.

use std::{
    io,
    net::IpAddr,
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

use super::{DeleteOutcome, GATEWAY_V4, GATEWAY_V6, PodLink, PodLinkError, PodLinkSpec, gateway, open};
use crate::{
    netlink::NetlinkError,
    netns::Netns,
    route::{
        RouteRequest, RouteSocket, find_link,
        message::{self, Hop, Reach, RouteOrigin, Veth, WriteMode},
        parse, route_link,
    },
    sysctl::{SysctlError, Sysctls},
};

/// How long a link may take from up to running. It takes less than a millisecond, but up to a second if both ends have the
/// same ifindex: the kernel then treats the event as not urgent (`linkwatch_urgent_event`).
const RUNNING_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause between two looks at the state.
const RUNNING_POLL: Duration = Duration::from_millis(1);

impl PodLink {
    /// Creates the pair and sets up both ends, but not the routes on the host ([`PodLink::connect`]): without them nothing
    /// reaches the pod, so that its policy rules can be put in force first.
    ///
    /// # Errors
    /// The step that failed. Nothing is left behind, unless the deletion fails too; an interface that existed before is
    /// left alone.
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
            return Err(creation_error(&mut socket, spec, error));
        }
        // The end that is brought up last, the pod's, is running at once. `connect` waits for the host's.
        let link = set_up_host(&mut socket, spec)
            .and_then(|host_index| Ok(Self { host_index, pod_mac: set_up_pod(netns, spec)? }));
        if link.is_err() {
            // The first error is the one to report; the next deletion finds what stays behind.
            let _ = delete_with(&mut socket, &spec.host);
        }
        link
    }

    /// Adds the host's routes to the pod's addresses, and waits until the link is running. May be repeated.
    ///
    /// # Errors
    /// [`PodLinkError::Conflict`] if the host has a route to an address over another link; the step that failed.
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

    /// Deletes a pod's link by the name of either end in this namespace, with its peer, addresses and routes.
    ///
    /// # Errors
    /// If the kernel rejects the deletion. A link that is not found is no error.
    pub fn delete(host: &IfName) -> Result<DeleteOutcome, PodLinkError> {
        delete_with(&mut open()?, host)
    }
}

fn delete_with(socket: &mut RouteSocket, host: &IfName) -> Result<DeleteOutcome, PodLinkError> {
    match socket.execute(message::delete_link(host)) {
        Ok(()) => Ok(DeleteOutcome::Deleted),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(DeleteOutcome::NotFound),
        Err(source) => Err(PodLinkError::Host { step: format!("delete {host}"), source }),
    }
}

/// The error of a creation that failed: the kernel answers EEXIST for either end.
fn creation_error(socket: &mut RouteSocket, spec: &PodLinkSpec, source: NetlinkError) -> PodLinkError {
    if source.errno() != Some(Errno::EEXIST) {
        return PodLinkError::Create { name: spec.host.clone(), source };
    }
    match find_link(socket, &spec.host) {
        Ok(Some(_)) => PodLinkError::HostExists { name: spec.host.clone() },
        Ok(None) => PodLinkError::PodExists { name: spec.pod.clone() },
        Err(source) => PodLinkError::Create { name: spec.host.clone(), source },
    }
}

/// Sets up the pod end inside the pod's namespace, and gives its MAC.
fn set_up_pod(netns: &Netns, spec: &PodLinkSpec) -> Result<Mac, PodLinkError> {
    const LOOPBACK: u32 = 1; // Always the first link of a network namespace (`loopback_net_init`).
    netns.run(|| {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| PodLinkError::Pod { step, source }
        };
        let mut socket = open()?;
        let not_found = || PodLinkError::NotFound { name: spec.pod.clone() };
        let (index, link) =
            find_link(&mut socket, &spec.pod).map_err(failed("find the interface"))?.ok_or_else(not_found)?;
        let mac = link.mac.ok_or_else(not_found)?;
        if spec.has(Family::V6) {
            // Some runtimes disable IPv6 in new namespaces.
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

/// The entries of one address in a pod, in the order in which the kernel needs them.
fn pod_entries(address: IpAddr, link: IfIndex) -> Vec<(String, RouteRequest)> {
    let family = Family::of(address);
    let gateway = gateway(family);
    let mut entries = vec![(format!("add address {address}"), message::add_address(link.0, host_net(address)))];
    entries.extend(pod_routes(family, link).into_iter().map(|(destination, hop)| {
        let route = message::route(destination, hop, RouteOrigin::Pod);
        (format!("add route {destination}"), message::add_route(route, WriteMode::Replace))
    }));
    entries.push((format!("add neighbour {gateway}"), message::neighbour(link.0, gateway, Mac::HOST_VETH)));
    entries
}

/// The routes of a pod, in order.
pub(crate) fn pod_routes(family: Family, link: IfIndex) -> Vec<(IpNet, Hop)> {
    let via = Hop::Via { gateway: gateway(family), index: link.0, reach: Reach::Routed };
    let mut routes = vec![(message::default_net(family), via)];
    if family == Family::V4 {
        // A link-local IPv6 gateway needs no route to itself.
        routes.insert(0, (host_net(GATEWAY_V4.into()), Hop::Link { index: link.0 }));
    }
    routes
}

/// Sets up the host end and gives its ifindex. Its sysctls come first: it must not be up with the defaults.
fn set_up_host(socket: &mut RouteSocket, spec: &PodLinkSpec) -> Result<IfIndex, PodLinkError> {
    let failed = |step: String| move |source| PodLinkError::Host { step, source };
    let name = &spec.host;
    let (index, _) = find_link(socket, name)
        .map_err(failed(format!("find {name}")))?
        .ok_or_else(|| PodLinkError::NotFound { name: name.clone() })?;
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

/// Sets the sysctls of the host end.
///
/// IPv4: forwarding, whatever `ip_forward` sets on new links; proxy ARP, as on Canal's links; a strict `rp_filter`, as a
/// second line behind the table's own anti-spoof rule. IPv6: the same where it exists; no address but the one that we
/// add, and that one usable at once. Without an IPv6 address of the pod, IPv6 is disabled on the host end.
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
        // The kernel runs without IPv6.
        Err(SysctlError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Waits until the host end is running. The kernel notices only later (`linkwatch`) that the peer is up too, and drops
/// packets until then. A request for the link makes it check at once (`linkwatch_sync_dev` in `rtnl_getlink`, since Linux
/// 6.8); older kernels take their time. No error after [`RUNNING_TIMEOUT`]: the kernel is late then, the link not broken.
fn wait_until_running(socket: &mut RouteSocket, name: &IfName) -> Result<(), NetlinkError> {
    let deadline = Instant::now() + RUNNING_TIMEOUT;
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
    let route = message::route(host_net(address), Hop::Link { index: link.0 }, RouteOrigin::Towpath);
    message::add_route(route, WriteMode::Create)
}

/// The host has a route to this address: no error if it is over our link.
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
