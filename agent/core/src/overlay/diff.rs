//! Compares the desired overlay with the kernel state and lists the operations that make them equal.
//!
//! Order: delete devices that must be recreated; then create or update devices, sysctls, addresses, neighbour entries,
//! FDB entries and routes; then delete what is not wanted, in reverse order. New entries exist before old ones are
//! deleted, so a changed peer stays reachable.
//!
//! Scope: devices with an overlay's name, permanent entries on them, and routes with our protocol number. A route of
//! another program is replaced only if it has a destination that we want and uses our device, as one of flannel's does.
//! Any other stays, and the attempt to add ours reports the conflict.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    IfIndex, Kernel, LinkKind, LinkState, NetOp, NextHop, Overlay, Route, RouteKey, RouteOwner, RoutePath, RouteTarget,
    VxlanConfig, VxlanDevice, kernel::default_metric, notification::target,
};
use crate::{
    model::{Family, Mac},
    names::IfName,
};

/// Lists the operations that turn `have` into `want`, in an order that the kernel accepts.
#[must_use]
pub fn diff(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    let mut ops = device_deletions(want, have);
    ops.extend(want.devices.values().flat_map(|device| device_changes(device, have, &ops)).collect::<Vec<_>>());
    if ops.is_empty() {
        return entry_changes(want, have);
    }
    // Deleting a device deletes its entries, and changing its MAC flushes its neighbours: compare with the state after that.
    let mut remaining = have.clone();
    for op in &ops {
        let executed = remaining.execute(op);
        debug_assert!(executed.is_ok(), "a device that was read back can be changed: {executed:?}");
    }
    ops.extend(entry_changes(want, &remaining));
    ops
}

/// Lists the operations that delete everything of ours, pod links included.
#[must_use]
pub fn teardown(have: &Kernel) -> Vec<NetOp> {
    let mut ops = entry_changes(&Overlay::default(), have);
    let pods = have.links.values().filter(|link| link.name.is_pod());
    ops.extend(pods.map(|link| NetOp::DeleteLink { link: link.name.clone(), reason: "network teardown".to_owned() }));
    ops
}

/// Deletes the devices that must be recreated because an immutable attribute differs.
fn device_deletions(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    let delete = |device: &VxlanDevice| {
        let (_, link) = have.link(&device.name)?;
        let reason = recreate_reason(&device.tunnel, &link.kind)?;
        Some(NetOp::DeleteLink { link: device.name.clone(), reason })
    };
    want.devices.values().filter_map(delete).collect()
}

/// Why a device cannot be changed in place; `None` if it can.
fn recreate_reason(want: &VxlanConfig, have: &LinkKind) -> Option<String> {
    let LinkKind::Vxlan(have) = have else {
        let LinkKind::Other(kind) = have else { return None };
        return Some(format!("kind {kind} should be a VXLAN device with a local address"));
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

/// The wanted devices, with the ifindex of those that exist.
struct Devices<'a> {
    want: &'a BTreeMap<Family, VxlanDevice>,
    index: BTreeMap<Family, IfIndex>,
}

impl Devices<'_> {
    fn name(&self, family: Family) -> Option<&IfName> {
        self.want.get(&family).map(|device| &device.name)
    }
}

/// Compares everything but the devices' own attributes.
fn entry_changes(want: &Overlay, have: &Kernel) -> Vec<NetOp> {
    let find = |device: &VxlanDevice| have.link(&device.name).map(|(index, _)| index);
    let index = want.devices.iter().filter_map(|(family, device)| Some((*family, find(device)?))).collect();
    let devices = Devices { want: &want.devices, index };
    let mut additions = Vec::new();
    let mut deletions = Vec::new();
    additions.extend(sysctl_changes(want, have));
    address_changes(&devices, have, &mut additions, &mut deletions);
    additions.extend(neighbour_changes(want, have, &devices));
    additions.extend(fdb_changes(want, have, &devices));
    route_changes(want, have, &devices, &mut additions);
    pod_route_changes(want, have, &mut additions);

    link_deletions(&devices, have, &mut deletions);
    entry_deletions(want, have, &devices, &mut deletions);
    route_deletions(want, have, &mut deletions);
    additions.extend(deletions.into_iter().rev());
    additions
}

fn device_changes(want: &VxlanDevice, have: &Kernel, deletions: &[NetOp]) -> Vec<NetOp> {
    let deletes_it = |op: &NetOp| matches!(op, NetOp::DeleteLink { link, .. } if *link == want.name);
    let link = want.name.clone();
    let Some((_, have)) = have.link(&want.name).filter(|_| !deletions.iter().any(deletes_it)) else {
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

fn address_changes(devices: &Devices<'_>, have: &Kernel, additions: &mut Vec<NetOp>, deletions: &mut Vec<NetOp>) {
    for (family, device) in devices.want {
        let addresses = devices.index.get(family).and_then(|index| have.addresses.get(index));
        let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
        let link = &device.name;
        if !addresses.contains(&device.address) {
            additions.push(NetOp::AddAddress { link: link.clone(), address: device.address });
        }
        let unwanted = addresses.iter().filter(|address| **address != device.address);
        deletions.extend(unwanted.map(|address| NetOp::DeleteAddress { link: link.clone(), address: *address }));
    }
}

fn neighbour_changes(want: &Overlay, have: &Kernel, devices: &Devices<'_>) -> Vec<NetOp> {
    let set = |address: &IpAddr, mac: &Mac| {
        let link = devices.name(Family::of(*address))?;
        let differs = have_neighbour(have, devices, *address) != Some(*mac);
        differs.then(|| NetOp::SetNeighbour { link: link.clone(), address: *address, mac: *mac })
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
            let installed = devices.index.get(family).and_then(|index| have.fdb.get(&(*index, *mac)));
            (installed != Some(remote)).then(|| NetOp::SetFdb { link: link.clone(), mac: *mac, remote: *remote })
        })
        .collect()
}

fn route_changes(want: &Overlay, have: &Kernel, devices: &Devices<'_>, additions: &mut Vec<NetOp>) {
    for (destination, path) in &want.routes {
        let family = Family::of_net(*destination);
        let key = RouteKey { destination: *destination, metric: default_metric(family) };
        let device = devices.index.get(&family).copied();
        let target = target(*path, key, || device);
        let installed = have.routes.get(&key);
        if installed.is_some_and(|route| route.owner == RouteOwner::Towpath && Some(route.target) == target) {
            continue;
        }
        let Some(hop) = next_hop(*path, *destination, devices, have) else { continue };
        let change = RouteChange::of(installed, target.and_then(RouteTarget::link), device);
        additions.extend(change.ops(key, hop));
    }
}

/// How to install a route.
enum RouteChange {
    /// No route with this key exists, or another program owns it: the kernel reports the conflict.
    Add,
    /// A route that we may replace exists.
    Replace,
    /// Our route through another link exists. In IPv6 it must be deleted first: the gateway is the network address of the
    /// destination, so the old route covers it, and `ip6_route_check_nh_onlink` rejects a gateway that is routed to
    /// another link.
    Recreate,
}

impl RouteChange {
    /// `link` is the link of the wanted route, `device` the overlay device of its family.
    fn of(installed: Option<&Route>, link: Option<IfIndex>, device: Option<IfIndex>) -> Self {
        match installed {
            Some(route) if route.owner == RouteOwner::Towpath => {
                let moves = route.target.link().is_some_and(|old| Some(old) != link);
                if moves { Self::Recreate } else { Self::Replace }
            }
            Some(route) if uses(route, device) => Self::Replace,
            Some(_) | None => Self::Add,
        }
    }

    fn ops(self, route: RouteKey, hop: NextHop) -> Vec<NetOp> {
        let destination = route.destination;
        match (self, destination) {
            (Self::Add, _) => vec![NetOp::AddRoute { destination, hop }],
            (Self::Replace, _) | (Self::Recreate, IpNet::V4(_)) => vec![NetOp::ReplaceRoute { destination, hop }],
            (Self::Recreate, IpNet::V6(_)) => {
                vec![NetOp::DeleteRoute { route }, NetOp::AddRoute { destination, hop }]
            }
        }
    }
}

fn uses(route: &Route, device: Option<IfIndex>) -> bool {
    route.target.link().is_some_and(|link| Some(link) == device)
}

/// `None` for a direct route whose uplink no longer exists.
fn next_hop(path: RoutePath, destination: IpNet, devices: &Devices<'_>, have: &Kernel) -> Option<NextHop> {
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

/// Restores missing routes to pods whose link exists. The CNI plugin adds and deletes these routes with the links.
fn pod_route_changes(want: &Overlay, have: &Kernel, additions: &mut Vec<NetOp>) {
    // Index the links by name once: a node may have hundreds of pods.
    let links: BTreeMap<&IfName, (IfIndex, LinkState)> =
        have.links.iter().map(|(index, link)| (&link.name, (*index, link.state))).collect();
    for (destination, link) in &want.pod_routes {
        let Some((index, LinkState::Up)) = links.get(link).copied() else { continue };
        let metric = default_metric(Family::of_net(*destination));
        match have.routes.get(&RouteKey { destination: *destination, metric }) {
            Some(Route { target: RouteTarget::Link(installed), .. }) if *installed == index => {}
            Some(Route { owner: RouteOwner::Towpath, .. }) => {
                additions.push(NetOp::ReplaceRoute { destination: *destination, hop: NextHop::Link(link.clone()) });
            }
            Some(_) | None => {
                additions.push(NetOp::AddRoute { destination: *destination, hop: NextHop::Link(link.clone()) });
            }
        }
    }
}

/// Deletes devices that have an overlay's name and are not wanted: the VNI changed, or the family is no longer used.
fn link_deletions(devices: &Devices<'_>, have: &Kernel, deletions: &mut Vec<NetOp>) {
    let wanted = |name: &IfName| devices.want.values().any(|device| device.name == *name);
    for link in have.links.values() {
        let is_ours = link.overlay_family().is_some() && matches!(link.kind, LinkKind::Vxlan(_));
        if is_ours && !wanted(&link.name) {
            let reason = "no longer part of the overlay".to_owned();
            deletions.push(NetOp::DeleteLink { link: link.name.clone(), reason });
        }
    }
}

/// Deletes unwanted neighbour and FDB entries of our devices. Pushes in creation order; the caller reverses the list.
fn entry_deletions(want: &Overlay, have: &Kernel, devices: &Devices<'_>, deletions: &mut Vec<NetOp>) {
    for (family, index) in &devices.index {
        let Some(link) = devices.name(*family) else { continue };
        for (on, address) in have.neighbours.keys() {
            if on == index && !want.neighbours.contains_key(address) {
                deletions.push(NetOp::DeleteNeighbour { link: link.clone(), address: *address });
            }
        }
        for ((on, mac), remote) in &have.fdb {
            if on == index && !want.fdb.contains_key(&(*family, *mac)) {
                deletions.push(NetOp::DeleteFdb { link: link.clone(), mac: *mac, remote: *remote });
            }
        }
    }
}

/// Deletes unwanted routes of ours. Routes to pod links belong to the CNI plugin; the kernel deletes them with the link.
fn route_deletions(want: &Overlay, have: &Kernel, deletions: &mut Vec<NetOp>) {
    for (key, route) in &have.routes {
        let link = route.target.link().and_then(|link| have.links.get(&link));
        let leads_to_pod = link.is_some_and(|link| link.name.is_pod());
        let wanted = (want.routes.contains_key(&key.destination) || want.pod_routes.contains_key(&key.destination))
            && key.metric == default_metric(Family::of_net(key.destination));
        if route.owner == RouteOwner::Towpath && !leads_to_pod && !wanted {
            deletions.push(NetOp::DeleteRoute { route: *key });
        }
    }
}
