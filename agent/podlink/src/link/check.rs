//! Compares a pod's link with its wanted state.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage as Message;
use towpath_core::{
    model::{Family, Mac, host_net},
    names::IfName,
    overlay::{IfIndex, Link, LinkState, Route, RouteTarget, kernel::default_metric},
};

use super::{Difference, PodLink, PodLinkError, PodLinkSpec, create::pod_routes, gateway, open};
use crate::{
    netlink::NetlinkError,
    netns::Netns,
    route::{
        RouteSocket, find_link,
        message::{self, Hop},
        parse,
    },
};

impl PodLink {
    /// Compares a pod's link with the kernel: both ends, addresses, routes on both sides, the gateway's neighbour entry.
    ///
    /// # Errors
    /// [`PodLinkError::Differs`] with all differences, or the step that could not be read.
    pub fn check(netns: &Netns, spec: &PodLinkSpec, pod_mac: Mac) -> Result<(), PodLinkError> {
        let mut differences = netns.run(|| check_pod(spec, pod_mac))??;
        differences.extend(check_host(spec)?);
        if differences.is_empty() { Ok(()) } else { Err(PodLinkError::Differs(differences)) }
    }
}

fn check_pod(spec: &PodLinkSpec, pod_mac: Mac) -> Result<Vec<Difference>, PodLinkError> {
    let mut socket = open()?;
    let failed = |step: &str| {
        let step = step.to_owned();
        move |source| PodLinkError::Pod { step, source }
    };
    let found = find_link(&mut socket, &spec.pod).map_err(failed("find the interface"))?;
    let Some((index, link)) = found else { return Ok(vec![absent(&spec.pod, "in the pod")]) };
    let mut differences = check_link(&link, pod_mac, spec.mtu);

    let have = addresses(&mut socket, index).map_err(failed("list the addresses"))?;
    for address in &spec.addresses {
        if !have.contains(&host_net(*address)) {
            differences.push(difference(format!("address {address} of {} in the pod", spec.pod), "present", "missing"));
        }
    }
    for family in Family::ALL.into_iter().filter(|family| spec.has(*family)) {
        let have = routes(&mut socket, family).map_err(failed("list the routes"))?;
        for (destination, hop) in pod_routes(family, index) {
            differences.extend(check_route(&have, destination, target(hop), "in the pod"));
        }
        let gateway = gateway(family);
        let neighbours = neighbours(&mut socket, family).map_err(failed("list the neighbours"))?;
        let have = neighbours.get(&(index, gateway));
        if have != Some(&Mac::HOST_VETH) {
            let have = have.map_or_else(|| "missing".to_owned(), Mac::to_string);
            differences.push(difference(format!("neighbour {gateway} in the pod"), &Mac::HOST_VETH.to_string(), &have));
        }
    }
    Ok(differences)
}

fn check_host(spec: &PodLinkSpec) -> Result<Vec<Difference>, PodLinkError> {
    let mut socket = open()?;
    let failed = |step: String| move |source| PodLinkError::Host { step, source };
    let found = find_link(&mut socket, &spec.host).map_err(failed(format!("find {}", spec.host)))?;
    let Some((index, link)) = found else { return Ok(vec![absent(&spec.host, "on the host")]) };
    let mut differences = check_link(&link, Mac::HOST_VETH, spec.mtu);
    for address in &spec.addresses {
        let family = Family::of(*address);
        let have = routes(&mut socket, family).map_err(failed("list the routes".to_owned()))?;
        differences.extend(check_route(&have, host_net(*address), RouteTarget::Link(index), "on the host"));
    }
    Ok(differences)
}

fn absent(name: &IfName, place: &str) -> Difference {
    difference(format!("interface {name} {place}"), "present", "missing")
}

fn difference(what: String, want: &str, have: &str) -> Difference {
    Difference { what, want: want.to_owned(), have: have.to_owned() }
}

fn check_link(link: &Link, mac: Mac, mtu: u32) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, want: String, have: String| {
        if want != have {
            differences.push(difference(format!("{what} of {}", link.name), &want, &have));
        }
    };
    compare("MAC", mac.to_string(), link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string()));
    compare("MTU", mtu.to_string(), link.mtu.to_string());
    let state = |state| if state == LinkState::Up { "up" } else { "down" };
    compare("state", state(LinkState::Up).to_owned(), state(link.state).to_owned());
    differences
}

fn check_route(have: &[(IpNet, u32, Route)], destination: IpNet, want: RouteTarget, place: &str) -> Option<Difference> {
    // Ours has the default metric; a route with another one may have another target.
    let metric = default_metric(Family::of_net(destination));
    let found = have.iter().find(|(d, m, _)| *d == destination && *m == metric).map(|(_, _, route)| route.target);
    let text = |target: Option<RouteTarget>| match target {
        None => "missing".to_owned(),
        Some(RouteTarget::Via { gateway, link }) => format!("via {gateway} on link {link}"),
        Some(RouteTarget::Link(link)) => format!("on link {link}"),
        Some(RouteTarget::Blackhole) => "a blackhole".to_owned(),
        Some(RouteTarget::Other) => "something else".to_owned(),
    };
    (found != Some(want)).then(|| difference(format!("route {destination} {place}"), &text(Some(want)), &text(found)))
}

fn target(hop: Hop) -> RouteTarget {
    match hop {
        Hop::Via { gateway, index, .. } => RouteTarget::Via { gateway, link: IfIndex(index) },
        Hop::Link { index } => RouteTarget::Link(IfIndex(index)),
        Hop::Blackhole => RouteTarget::Blackhole,
    }
}

fn addresses(socket: &mut RouteSocket, index: IfIndex) -> Result<Vec<IpNet>, NetlinkError> {
    let messages = socket.dump(message::all_addresses())?;
    Ok(parse::addresses(&messages).filter(|(link, _)| *link == index).map(|(_, net)| net).collect())
}

fn routes(socket: &mut RouteSocket, family: Family) -> Result<Vec<(IpNet, u32, Route)>, NetlinkError> {
    let messages = socket.dump(message::main_routes(family))?;
    Ok(parse::routes(&messages).map(|(key, route)| (key.destination, key.metric, route)).collect())
}

fn neighbours(socket: &mut RouteSocket, family: Family) -> Result<BTreeMap<(IfIndex, IpAddr), Mac>, NetlinkError> {
    let messages: Vec<Message> = socket.dump(message::all_neighbours(family))?;
    Ok(parse::neighbours(&messages).filter_map(parse::neighbour).collect())
}
