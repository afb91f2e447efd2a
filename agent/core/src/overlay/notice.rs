//! What the kernel announces, and whether it is news.

use std::net::IpAddr;

use super::{IfIndex, Kernel, Overlay, Route, RouteKey, RouteOwner, RoutePath, RouteTarget, kernel::default_metric};
use crate::model::{Family, Mac};

/// Whether the thing that an announcement is about is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is: new or changed.
    There,
    /// It is not any more.
    Gone,
}

/// Something that changed in the kernel's network, by whoever's hand: our own changes are announced as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetNotification {
    /// A link, no pod's, came, went, or changed its name, MAC, MTU, state or tunnel.
    Links,
    /// An address that connections may come from appeared or vanished, not on a pod's link.
    Addresses,
    /// A permanent neighbour on an overlay device.
    Neighbour {
        /// The neighbour.
        address: IpAddr,
        /// Its MAC; `None` if it is gone or permanent no more.
        mac: Option<Mac>,
    },
    /// A forwarding entry of an overlay device.
    Fdb {
        /// The MAC.
        mac: Mac,
        /// Where frames for it are sent.
        remote: IpAddr,
        /// Whether it is there.
        presence: Presence,
    },
    /// A route of the main table: ours, through our devices, a default route, or one that took another's place.
    Route {
        /// Which.
        key: RouteKey,
        /// Where it leads and whose it is.
        route: Route,
        /// Whether it is there.
        presence: Presence,
    },
    /// Forwarding was switched for all links.
    Sysctls,
    /// Announcements were lost: anything may have changed.
    Overrun,
}

impl Overlay {
    /// Whether an announcement tells only what is wanted, so that nothing need be read back. It is so for all changes of
    /// our own; whatever somebody else does to our objects is not.
    #[must_use]
    pub fn expects(&self, notice: &NetNotification, have: &Kernel) -> bool {
        match notice {
            NetNotification::Links
            | NetNotification::Addresses
            | NetNotification::Sysctls
            | NetNotification::Overrun => false,
            NetNotification::Neighbour { address, mac } => self.neighbours.get(address) == mac.as_ref(),
            NetNotification::Fdb { mac, remote, presence } => {
                let wanted = self.fdb.get(&(Family::of(*remote), *mac)) == Some(remote);
                wanted == (*presence == Presence::There)
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
        let is_pods = self.pod_routes.contains_key(&key.destination);
        match (presence, path) {
            (Presence::Gone, None) => !is_pods,
            (Presence::Gone, Some(_)) => false,
            // Ours where none is wanted is to go, except that the CNI plugin may be quicker with a pod's than we are.
            (Presence::There, None) => is_pods || route.owner != RouteOwner::Towpath || self.is_pods(route, have),
            (Presence::There, Some(path)) => {
                let device = || have.link(&self.devices.get(&family)?.name).map(|(index, _)| index);
                route.owner == RouteOwner::Towpath && Some(route.target) == target(*path, key, device)
            }
        }
    }

    fn is_pods(&self, route: Route, have: &Kernel) -> bool {
        let link = route.target.link();
        // A link that was not there when we last looked can only be a pod's: any other would have been announced.
        link.is_some_and(|link| have.links.get(&link).is_none_or(|link| link.name.is_pod()))
    }
}

/// Where the route of a path leads; `None` if its device is not there.
pub(super) fn target(path: RoutePath, key: RouteKey, device: impl FnOnce() -> Option<IfIndex>) -> Option<RouteTarget> {
    match path {
        RoutePath::Tunnel => device().map(|link| RouteTarget::Via { gateway: key.destination.network(), link }),
        RoutePath::Direct { gateway, uplink } => Some(RouteTarget::Via { gateway, link: uplink }),
        RoutePath::Blackhole => Some(RouteTarget::Blackhole),
    }
}
