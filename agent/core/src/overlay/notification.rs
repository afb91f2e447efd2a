//! Kernel notifications about links, addresses, neighbours, FDB entries and routes, and whether they indicate drift.

use std::net::IpAddr;

use super::{IfIndex, Kernel, Overlay, Route, RouteKey, RouteOwner, RoutePath, RouteTarget, kernel::default_metric};
use crate::model::{Family, Mac};

/// Whether the object of a notification exists: RTM_NEW* or RTM_DEL*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The object was created or changed.
    Present,
    /// The object was deleted.
    Absent,
}

/// A change of the kernel's network state. The kernel also notifies us of our own changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetNotification {
    /// A link other than a pod's was created or deleted, or its name, MAC, MTU, state or VXLAN configuration changed.
    Links,
    /// A usable source address was added to or removed from a link other than a pod's.
    Addresses,
    /// A permanent neighbour entry of an overlay device changed.
    Neighbour {
        /// Protocol address of the neighbour.
        address: IpAddr,
        /// MAC address; `None` if the entry was deleted or is no longer permanent.
        mac: Option<Mac>,
    },
    /// An FDB entry of an overlay device changed.
    Fdb {
        /// Destination MAC of the entry.
        mac: Mac,
        /// Remote VTEP that receives frames for the MAC.
        remote: IpAddr,
        /// Whether the entry exists now.
        presence: Presence,
    },
    /// A route of the main table changed: ours, one through our devices, a default route, or one that replaced another.
    Route {
        /// Destination and metric.
        key: RouteKey,
        /// Target and owner.
        route: Route,
        /// Whether the route exists now.
        presence: Presence,
    },
    /// The forwarding sysctl of all links changed.
    Sysctls,
    /// Notifications were lost (ENOBUFS): anything may have changed.
    Overrun,
}

impl Overlay {
    /// Whether a notification agrees with the overlay, so that no resync is needed. Notifications of our own changes
    /// always agree; drift of our objects never does.
    #[must_use]
    pub fn expects(&self, notification: &NetNotification, have: &Kernel) -> bool {
        match notification {
            NetNotification::Links
            | NetNotification::Addresses
            | NetNotification::Sysctls
            | NetNotification::Overrun => false,
            NetNotification::Neighbour { address, mac } => self.neighbours.get(address) == mac.as_ref(),
            NetNotification::Fdb { mac, remote, presence } => {
                let wanted = self.fdb.get(&(Family::of(*remote), *mac)) == Some(remote);
                wanted == (*presence == Presence::Present)
            }
            NetNotification::Route { key, route, presence } => self.expects_route(*key, *route, *presence, have),
        }
    }

    fn expects_route(&self, key: RouteKey, route: Route, presence: Presence, have: &Kernel) -> bool {
        let family = Family::of_net(key.destination);
        if key.destination.prefix_len() == 0 {
            return false;
        }
        let path = self.routes.get(&key.destination).filter(|_| key.metric == default_metric(family));
        let is_pod_route = self.pod_routes.contains_key(&key.destination);
        match (presence, path) {
            (Presence::Absent, None) => !is_pod_route,
            (Presence::Absent, Some(_)) => false,
            // A route of ours that is not wanted is drift, unless the CNI plugin has just added it for a new pod.
            (Presence::Present, None) => {
                is_pod_route || route.owner != RouteOwner::Towpath || leads_to_pod(route, have)
            }
            (Presence::Present, Some(path)) => {
                let device = || have.link(&self.devices.get(&family)?.name).map(|(index, _)| index);
                route.owner == RouteOwner::Towpath && Some(route.target) == target(*path, key, device)
            }
        }
    }
}

fn leads_to_pod(route: Route, have: &Kernel) -> bool {
    let link = route.target.link();
    // A link unknown since the last dump can only be a pod's: any other would have caused a `Links` notification.
    link.is_some_and(|link| have.links.get(&link).is_none_or(|link| link.name.is_pod()))
}

/// The route target of a path; `None` if the overlay device does not exist.
pub(super) fn target(path: RoutePath, key: RouteKey, device: impl FnOnce() -> Option<IfIndex>) -> Option<RouteTarget> {
    match path {
        RoutePath::Tunnel => device().map(|link| RouteTarget::Via { gateway: key.destination.network(), link }),
        RoutePath::Direct { gateway, uplink } => Some(RouteTarget::Via { gateway, link: uplink }),
        RoutePath::Blackhole => Some(RouteTarget::Blackhole),
    }
}
