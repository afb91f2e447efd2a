//! Incremental diff: compares two overlays and runs [`diff()`] only on the keys that differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{IfIndex, Kernel, NetOp, Overlay, diff};
use crate::{
    delta::changes,
    model::{Family, Mac},
};

/// Returns the same operations as [`diff()`], in the same order, at a cost proportional to the change.
///
/// Requires that `have` contains all of `before` and no other objects of ours: `before` was applied, the cached state
/// was updated with it, and no drift was detected since.
#[must_use]
pub fn change(want: &Overlay, before: &Overlay, have: &Kernel) -> Vec<NetOp> {
    if want.devices != before.devices {
        // Every entry depends on a device.
        return diff(want, have);
    }
    let changed = ChangedKeys::between(before, want);
    diff(&changed.select_want(want), &changed.select_have(want, have))
}

/// Keys of the entries that differ between two overlays.
struct ChangedKeys {
    neighbours: BTreeSet<IpAddr>,
    fdb: BTreeSet<(Family, Mac)>,
    /// Routes to peers and to local pods.
    routes: BTreeSet<IpNet>,
}

impl ChangedKeys {
    fn between(before: &Overlay, want: &Overlay) -> Self {
        let routes = changes(&before.routes, &want.routes).map(|(net, ..)| *net);
        let pod_routes = changes(&before.pod_routes, &want.pod_routes).map(|(net, ..)| *net);
        Self {
            neighbours: changes(&before.neighbours, &want.neighbours).map(|(address, ..)| *address).collect(),
            fdb: changes(&before.fdb, &want.fdb).map(|(key, ..)| *key).collect(),
            routes: routes.chain(pod_routes).collect(),
        }
    }

    /// The overlay reduced to these keys.
    fn select_want(&self, want: &Overlay) -> Overlay {
        let route = |net: &IpNet| Some((*net, *want.routes.get(net)?));
        let pod_route = |net: &IpNet| Some((*net, want.pod_routes.get(net)?.clone()));
        Overlay {
            devices: want.devices.clone(),
            neighbours: self.neighbours.iter().filter_map(|key| Some((*key, *want.neighbours.get(key)?))).collect(),
            fdb: self.fdb.iter().filter_map(|key| Some((*key, *want.fdb.get(key)?))).collect(),
            routes: self.routes.iter().filter_map(route).collect(),
            pod_routes: self.routes.iter().filter_map(pod_route).collect(),
            sysctls: want.sysctls.clone(),
        }
    }

    /// The kernel state reduced to these keys, the links they refer to, and everything whose size does not depend on the
    /// number of peers and pods.
    fn select_have(&self, want: &Overlay, have: &Kernel) -> Kernel {
        let devices: BTreeMap<Family, IfIndex> =
            want.devices.iter().filter_map(|(f, device)| Some((*f, have.link(&device.name)?.0))).collect();
        let device = |family| devices.get(&family).copied();
        let neighbour = |address: &IpAddr| {
            let key = (device(Family::of(*address))?, *address);
            Some((key, *have.neighbours.get(&key)?))
        };
        let fdb_entry = |(family, mac): &(Family, Mac)| {
            let key = (device(*family)?, *mac);
            Some((key, *have.fdb.get(&key)?))
        };
        let routes = self.routes.iter().flat_map(|net| have.routes_to(*net));
        let routes: BTreeMap<_, _> = routes.map(|(key, route)| (*key, *route)).collect();
        let targets: BTreeSet<IfIndex> = routes.values().filter_map(|route| route.target.link()).collect();
        let wanted: BTreeSet<_> = self.routes.iter().filter_map(|net| want.pod_routes.get(net)).collect();
        let links = have
            .links
            .iter()
            .filter(|(index, link)| !link.name.is_pod() || targets.contains(index) || wanted.contains(&link.name));
        Kernel {
            links: links.map(|(index, link)| (*index, link.clone())).collect(),
            addresses: devices
                .values()
                .filter_map(|index| Some((*index, have.addresses.get(index)?.clone())))
                .collect(),
            neighbours: self.neighbours.iter().filter_map(neighbour).collect(),
            fdb: self.fdb.iter().filter_map(fdb_entry).collect(),
            routes,
            sysctls: have.sysctls.clone(),
        }
    }
}
