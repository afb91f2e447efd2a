//! What to change so that the kernel holds what is wanted.
//!
//! Order: first devices that must be replaced go; then up: device, sysctl, address, neighbour, forwarding entry, route;
//! then down, in reverse. What is wanted is there before what is not goes, so that a change of a peer interrupts nothing.
//!
//! Only what is ours: devices with an overlay's name, what is permanent on them, and routes with our protocol number. A
//! route of another program is replaced only where it has a network that we want and leads through our device (one
//! that was flannel's); anywhere else it stays, and adding ours beside it fails and says so.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    IfIndex, Kernel, LinkKind, LinkState, NetOp, NextHop, Overlay, Route, RouteKey, RouteOwner, RoutePath, RouteTarget,
    VxlanConfig, VxlanDevice, kernel::default_metric, notice::target,
};
use crate::{
    model::{Family, Mac},
    names::IfName,
};

/// Lists the changes that turn what the kernel has into what is wanted, in the order in which they must be made.
#[must_use]
pub fn diff(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    let mut ops = replaced_devices(want, have);
    ops.extend(want.devices.values().flat_map(|device| device_changes(device, have, &ops)).collect::<Vec<_>>());
    if ops.is_empty() {
        return changes(want, have);
    }
    // With a device go its entries, with a MAC the neighbours: compare with what is left once the devices are right.
    let mut left = have.clone();
    for op in &ops {
        let executed = left.execute(op);
        debug_assert!(executed.is_ok(), "what was read back can be changed: {executed:?}");
    }
    ops.extend(changes(want, &left));
    ops
}

/// Lists the changes that remove everything of ours, pods' links included.
#[must_use]
pub fn teardown(have: &Kernel) -> Vec<NetOp> {
    let mut ops = changes(&Overlay::default(), have);
    let pods = have.links.values().filter(|link| link.name.is_pod());
    ops.extend(
        pods.map(|link| NetOp::DeleteLink { link: link.name.clone(), why: "the network is removed".to_owned() }),
    );
    ops
}

/// Devices whose name is right and whose nature is wrong.
fn replaced_devices(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    let replace = |device: &VxlanDevice| {
        let (_, link) = have.link(&device.name)?;
        let why = why_replace(&device.tunnel, &link.kind)?;
        Some(NetOp::DeleteLink { link: device.name.clone(), why })
    };
    want.devices.values().filter_map(replace).collect()
}

/// What makes it impossible to keep a device.
fn why_replace(want: &VxlanConfig, have: &LinkKind) -> Option<String> {
    let LinkKind::Vxlan(have) = have else {
        let LinkKind::Other(kind) = have else { return None };
        return Some(format!("a {kind} should be a VXLAN device with a local address"));
    };
    let mut reasons = Vec::new();
    let mut compare = |what: &str, want: String, have: String| {
        if want != have {
            reasons.push(format!("{what} {have} should be {want}"));
        }
    };
    compare("VNI", want.vni.to_string(), have.vni.to_string());
    compare("port", want.port.to_string(), have.port.to_string());
    compare("local address", want.local.to_string(), have.local.to_string());
    compare("uplink", want.uplink.to_string(), have.uplink.to_string());
    compare("learning", format!("{:?}", want.learning), format!("{:?}", have.learning));
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

/// The numbers of the wanted devices that are there.
struct Devices<'a> {
    want: &'a BTreeMap<Family, VxlanDevice>,
    index: BTreeMap<Family, IfIndex>,
}

impl Devices<'_> {
    fn name(&self, family: Family) -> Option<&IfName> {
        self.want.get(&family).map(|device| &device.name)
    }
}

fn changes(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    let find = |device: &VxlanDevice| have.link(&device.name).map(|(index, _)| index);
    let index = want.devices.iter().filter_map(|(family, device)| Some((*family, find(device)?))).collect();
    let devices = Devices { want: &want.devices, index };
    let mut up = Vec::new();
    let mut down = Vec::new();
    up.extend(sysctl_changes(want, have));
    address_changes(&devices, have, &mut up, &mut down);
    up.extend(neighbour_changes(want, have, &devices));
    up.extend(fdb_changes(want, have, &devices));
    route_changes(want, have, &devices, &mut up);
    pod_route_changes(want, have, &mut up);

    stale_links(&devices, have, &mut down);
    stale_entries(want, have, &devices, &mut down);
    stale_routes(want, have, &mut down);
    up.extend(down.into_iter().rev());
    up
}

fn device_changes(want: &VxlanDevice, have: &Kernel, replaced: &[NetOp]) -> Vec<NetOp> {
    let goes = |op: &NetOp| matches!(op, NetOp::DeleteLink { link, .. } if *link == want.name);
    let link = want.name.clone();
    let Some((_, have)) = have.link(&want.name).filter(|_| !replaced.iter().any(goes)) else {
        return vec![NetOp::CreateDevice(want.clone())];
    };
    let mut ops = Vec::new();
    if have.mtu != want.mtu {
        ops.push(NetOp::SetMtu { link: link.clone(), mtu: want.mtu });
    }
    if have.mac != Some(want.mac) {
        ops.push(NetOp::SetMac { link: link.clone(), mac: want.mac });
    }
    if have.state == LinkState::Down {
        ops.push(NetOp::SetUp { link });
    }
    ops
}

fn sysctl_changes(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    want.sysctls
        .iter()
        .filter(|(sysctl, value)| have.sysctls.get(sysctl) != Some(value))
        .map(|(sysctl, value)| NetOp::SetSysctl { sysctl: sysctl.clone(), value: *value })
        .collect()
}

fn address_changes(devices: &Devices<'_>, have: &Kernel, up: &mut Vec<NetOp>, down: &mut Vec<NetOp>) {
    for (family, device) in devices.want {
        let addresses = devices.index.get(family).and_then(|index| have.addresses.get(index));
        let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
        let link = &device.name;
        if !addresses.contains(&device.address) {
            up.push(NetOp::AddAddress { link: link.clone(), address: device.address });
        }
        let stale = addresses.iter().filter(|address| **address != device.address);
        down.extend(stale.map(|address| NetOp::DeleteAddress { link: link.clone(), address: *address }));
    }
}

fn neighbour_changes(want: &Overlay, have: &Kernel, devices: &Devices<'_>) -> Vec<NetOp> {
    let set = |address: &IpAddr, mac: &Mac| {
        let link = devices.name(Family::of(*address))?;
        let there = have_neighbour(have, devices, *address) == Some(*mac);
        (!there).then(|| NetOp::SetNeighbour { link: link.clone(), address: *address, mac: *mac })
    };
    want.neighbours.iter().filter_map(|(address, mac)| set(address, mac)).collect()
}

fn have_neighbour(have: &Kernel, devices: &Devices<'_>, address: IpAddr) -> Option<Mac> {
    let index = devices.index.get(&Family::of(address))?;
    have.neighbours.get(&(*index, address)).copied()
}

fn fdb_changes(want: &Overlay, have: &Kernel, devices: &Devices<'_>) -> Vec<NetOp> {
    want.fdb
        .iter()
        .filter_map(|((family, mac), remote)| {
            let link = devices.name(*family)?;
            let there = devices.index.get(family).and_then(|index| have.fdb.get(&(*index, *mac)));
            (there != Some(remote)).then(|| NetOp::SetFdb { link: link.clone(), mac: *mac, remote: *remote })
        })
        .collect()
}

fn route_changes(want: &Overlay, have: &Kernel, devices: &Devices<'_>, up: &mut Vec<NetOp>) {
    for (destination, path) in &want.routes {
        let family = Family::of_net(*destination);
        let key = RouteKey { destination: *destination, metric: default_metric(family) };
        let device = devices.index.get(&family).copied();
        let target = target(*path, key, || device);
        let there = have.routes.get(&key);
        if there.is_some_and(|route| route.owner == RouteOwner::Towpath && Some(route.target) == target) {
            continue;
        }
        let Some(hop) = hop(*path, *destination, devices, have) else { continue };
        let place = place(there, target.and_then(RouteTarget::link), device);
        up.extend(put(key, hop, place));
    }
}

/// How a route gets to its place.
enum RouteChange {
    /// There is none, or one of another program.
    Add,
    /// One that may go is there.
    Replace,
    /// One that must go first is there: while an IPv6 route leads a gateway's address to another link, the kernel takes
    /// no route with this gateway (`ip6_route_check_nh_onlink`), and ours lies in the very network it is the gateway of.
    Remake,
}

fn place(there: Option<&Route>, link: Option<IfIndex>, device: Option<IfIndex>) -> RouteChange {
    match there {
        Some(route) if route.owner == RouteOwner::Towpath => {
            let moves = route.target.link().is_some_and(|there| Some(there) != link);
            if moves { RouteChange::Remake } else { RouteChange::Replace }
        }
        Some(route) if on(route, device) => RouteChange::Replace,
        Some(_) | None => RouteChange::Add,
    }
}

fn put(route: RouteKey, hop: NextHop, place: RouteChange) -> Vec<NetOp> {
    let destination = route.destination;
    match (place, destination) {
        (RouteChange::Add, _) => vec![NetOp::AddRoute { destination, hop }],
        (RouteChange::Replace, _) | (RouteChange::Remake, IpNet::V4(_)) => {
            vec![NetOp::ReplaceRoute { destination, hop }]
        }
        (RouteChange::Remake, IpNet::V6(_)) => vec![NetOp::DeleteRoute { route }, NetOp::AddRoute { destination, hop }],
    }
}

fn on(route: &Route, device: Option<IfIndex>) -> bool {
    route.target.link().is_some_and(|link| Some(link) == device)
}

/// `None` for a direct route whose uplink is gone meanwhile.
fn hop(path: RoutePath, destination: IpNet, devices: &Devices<'_>, have: &Kernel) -> Option<NextHop> {
    match path {
        RoutePath::Tunnel => {
            let link = devices.name(Family::of_net(destination))?.clone();
            Some(NextHop::Onlink { gateway: destination.network(), link })
        }
        RoutePath::Direct { gateway, uplink } => {
            Some(NextHop::Onlink { gateway, link: have.links.get(&uplink)?.name.clone() })
        }
        RoutePath::Blackhole => Some(NextHop::Blackhole),
    }
}

/// Routes to pods whose link is there. The CNI plugin adds and removes them with their links; here they only come back.
fn pod_route_changes(want: &Overlay, have: &Kernel, up: &mut Vec<NetOp>) {
    // Looked up by name once for all: there may be hundreds of pods.
    let links: BTreeMap<&IfName, (IfIndex, LinkState)> =
        have.links.iter().map(|(index, link)| (&link.name, (*index, link.state))).collect();
    for (destination, link) in &want.pod_routes {
        let Some((index, LinkState::Up)) = links.get(link).copied() else { continue };
        let metric = default_metric(Family::of_net(*destination));
        match have.routes.get(&RouteKey { destination: *destination, metric }) {
            Some(Route { target: RouteTarget::Link(there), .. }) if *there == index => {}
            Some(Route { owner: RouteOwner::Towpath, .. }) => {
                up.push(NetOp::ReplaceRoute { destination: *destination, hop: NextHop::Link(link.clone()) });
            }
            _ => up.push(NetOp::AddRoute { destination: *destination, hop: NextHop::Link(link.clone()) }),
        }
    }
}

/// Devices with an overlay's name that are not wanted: of another VNI, or of a family that has no overlay any more.
fn stale_links(devices: &Devices<'_>, have: &Kernel, down: &mut Vec<NetOp>) {
    let wanted = |name: &IfName| devices.want.values().any(|device| device.name == *name);
    for link in have.links.values() {
        let is_ours = link.overlay_family().is_some() && matches!(link.kind, LinkKind::Vxlan(_));
        if is_ours && !wanted(&link.name) {
            down.push(NetOp::DeleteLink { link: link.name.clone(), why: "no longer part of the overlay".to_owned() });
        }
    }
}

/// Neighbours and forwarding entries on our devices that are not wanted, in the order in which they would be made.
fn stale_entries(want: &Overlay, have: &Kernel, devices: &Devices<'_>, down: &mut Vec<NetOp>) {
    for (family, index) in &devices.index {
        let Some(link) = devices.name(*family) else { continue };
        for (at, address) in have.neighbours.keys() {
            if at == index && !want.neighbours.contains_key(address) {
                down.push(NetOp::DeleteNeighbour { link: link.clone(), address: *address });
            }
        }
        for ((at, mac), remote) in &have.fdb {
            if at == index && !want.fdb.contains_key(&(*family, *mac)) {
                down.push(NetOp::DeleteFdb { link: link.clone(), mac: *mac, remote: *remote });
            }
        }
    }
}

/// Routes of ours that are not wanted. Those to pods' links are the CNI plugin's, and go with the link.
fn stale_routes(want: &Overlay, have: &Kernel, down: &mut Vec<NetOp>) {
    for (key, route) in &have.routes {
        let link = route.target.link().and_then(|link| have.links.get(&link));
        let is_pods = link.is_some_and(|link| link.name.is_pod());
        let wanted = (want.routes.contains_key(&key.destination) || want.pod_routes.contains_key(&key.destination))
            && key.metric == default_metric(Family::of_net(key.destination));
        if route.owner == RouteOwner::Towpath && !is_pods && !wanted {
            down.push(NetOp::DeleteRoute { route: *key });
        }
    }
}
