//! What to change where the kernel is known to have what was wanted before: the comparison of [`diff()`], narrowed to what
//! the two overlays do not share.

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

/// The same as [`diff()`], in the same order, where the kernel has all of `before` and nothing else of ours: because that was
/// carried out, and `have` has followed it, and nobody has changed anything since.
#[must_use]
pub fn change(want: &Overlay, before: &Overlay, have: &Kernel) -> Vec<NetOp> {
    if want.devices != before.devices {
        // Everything is on the devices.
        return diff(want, have);
    }
    let touched = ChangedKeys::between(before, want);
    diff(&touched.of_overlay(want), &touched.of_kernel(want, have))
}

/// Entries that are wanted in one of two overlays, or otherwise in the one than in the other.
struct ChangedKeys {
    neighbours: BTreeSet<IpAddr>,
    fdb: BTreeSet<(Family, Mac)>,
    /// Of peers and of pods.
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

    /// What is wanted of them.
    fn of_overlay(&self, want: &Overlay) -> Overlay {
        let pick_route = |net: &IpNet| Some((*net, *want.routes.get(net)?));
        let pick_pod_route = |net: &IpNet| Some((*net, want.pod_routes.get(net)?.clone()));
        Overlay {
            devices: want.devices.clone(),
            neighbours: self.neighbours.iter().filter_map(|key| Some((*key, *want.neighbours.get(key)?))).collect(),
            fdb: self.fdb.iter().filter_map(|key| Some((*key, *want.fdb.get(key)?))).collect(),
            routes: self.routes.iter().filter_map(pick_route).collect(),
            pod_routes: self.routes.iter().filter_map(pick_pod_route).collect(),
            sysctls: want.sysctls.clone(),
        }
    }

    /// What the kernel has of them, with the links that it is about and all that does not grow with peers and pods.
    fn of_kernel(&self, want: &Overlay, have: &Kernel) -> Kernel {
        let devices: BTreeMap<Family, IfIndex> =
            want.devices.iter().filter_map(|(f, device)| Some((*f, have.link(&device.name)?.0))).collect();
        let on = |family| devices.get(&family).copied();
        let neighbour = |address: &IpAddr| {
            let key = (on(Family::of(*address))?, *address);
            Some((key, *have.neighbours.get(&key)?))
        };
        let entry = |(family, mac): &(Family, Mac)| {
            let key = (on(*family)?, *mac);
            Some((key, *have.fdb.get(&key)?))
        };
        let routes = self.routes.iter().flat_map(|net| have.routes_to(*net));
        let routes: BTreeMap<_, _> = routes.map(|(key, route)| (*key, *route)).collect();
        let to: BTreeSet<IfIndex> = routes.values().filter_map(|route| route.target.link()).collect();
        let named: BTreeSet<_> = self.routes.iter().filter_map(|net| want.pod_routes.get(net)).collect();
        let links = have
            .links
            .iter()
            .filter(|(index, link)| !link.name.is_pod() || to.contains(index) || named.contains(&link.name));
        Kernel {
            links: links.map(|(index, link)| (*index, link.clone())).collect(),
            addresses: devices.values().filter_map(|at| Some((*at, have.addresses.get(at)?.clone()))).collect(),
            neighbours: self.neighbours.iter().filter_map(neighbour).collect(),
            fdb: self.fdb.iter().filter_map(entry).collect(),
            routes,
            sysctls: have.sysctls.clone(),
        }
    }
}
