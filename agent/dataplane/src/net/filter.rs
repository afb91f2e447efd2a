//! Which of the kernel's notifications matter. Noise stays here: states of neighbours that are not ours, links and
//! addresses that are notified again without a change, everything about pods' links, other programs' routes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message, address::AddressMessage, link::LinkMessage,
    neighbour::NeighbourMessage, route::RouteMessage,
};
use towpath_core::overlay::{IfIndex, Link, NetNotification, Presence, RouteOwner};
use towpath_podlink::{
    netlink::NetlinkError,
    route::{message, parse},
};

use super::connection::RouteConnection;

/// What the kernel reported last, to tell a change from a repetition.
#[derive(Debug, Default)]
pub(crate) struct NotificationFilter {
    /// All links but pods'.
    links: BTreeMap<IfIndex, Link>,
    addresses: BTreeSet<(IfIndex, IpNet)>,
}

impl NotificationFilter {
    /// Reads the current state in the calling thread's network namespace.
    pub(crate) fn read() -> Result<Self, NetlinkError> {
        let mut connection = RouteConnection::open()?;
        let links = connection.dump(&message::all_links(), parse::new_link)?;
        let addresses = connection.dump(&message::all_addresses(), parse::new_address)?;
        let links = links.into_iter().filter(|(_, link)| !link.name.is_pod()).collect();
        Ok(Self { links, addresses: addresses.into_iter().collect() })
    }

    /// The notification in a message with the flags of its header; `None` if it does not matter.
    pub(crate) fn pass(&mut self, message: &Message, flags: u16) -> Option<NetNotification> {
        match message {
            Message::NewLink(message) => self.new_link(message),
            Message::DelLink(message) => self.deleted_link(message),
            Message::NewAddress(message) => self.address(message, Presence::Present),
            Message::DelAddress(message) => self.address(message, Presence::Absent),
            Message::NewNeighbour(message) => self.neighbour(message, Presence::Present),
            Message::DelNeighbour(message) => self.neighbour(message, Presence::Absent),
            Message::NewRoute(message) => self.route(message, Presence::Present, flags),
            Message::DelRoute(message) => self.route(message, Presence::Absent, flags),
            _ => None,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Option<NetNotification> {
        // A bridge reports its ports as links of its own family.
        let (index, link) =
            parse::link(message).filter(|_| message.header.interface_family != AddressFamily::Bridge)?;
        if link.name.is_pod() || self.links.get(&index) == Some(&link) {
            return None;
        }
        self.links.insert(index, link);
        Some(NetNotification::Links)
    }

    fn deleted_link(&mut self, message: &LinkMessage) -> Option<NetNotification> {
        if message.header.interface_family == AddressFamily::Bridge {
            return None;
        }
        self.links.remove(&IfIndex(message.header.index)).map(|_| NetNotification::Links)
    }

    fn address(&mut self, message: &AddressMessage, presence: Presence) -> Option<NetNotification> {
        let (index, net, usable) = parse::any_address(message)?;
        if !self.links.contains_key(&index) {
            return None;
        }
        let changed = if presence == Presence::Present && usable == parse::Usability::Usable {
            self.addresses.insert((index, net))
        } else {
            self.addresses.remove(&(index, net))
        };
        changed.then_some(NetNotification::Addresses)
    }

    fn is_overlay(&self, index: IfIndex) -> bool {
        self.links.get(&index).is_some_and(|link| link.overlay_family().is_some())
    }

    fn neighbour(&self, message: &NeighbourMessage, presence: Presence) -> Option<NetNotification> {
        if !self.is_overlay(IfIndex(message.header.ifindex)) {
            return None;
        }
        if message.header.family == AddressFamily::Bridge {
            let ((_, mac), remote) = parse::fdb_entry(message)?;
            return Some(NetNotification::Fdb { mac, remote, presence });
        }
        let address = parse::neighbour_address(message)?;
        let mac = parse::neighbour(message).filter(|_| presence == Presence::Present).map(|(_, mac)| mac);
        Some(NetNotification::Neighbour { address, mac })
    }

    fn route(&self, message: &RouteMessage, presence: Presence, flags: u16) -> Option<NetNotification> {
        let (key, route) = parse::route(message)?;
        let ours = route.owner == RouteOwner::Towpath || route.target.link().is_some_and(|link| self.is_overlay(link));
        let may_be_in_ours_place = presence == Presence::Present && flags & NLM_F_REPLACE != 0;
        (ours || may_be_in_ours_place || key.destination.prefix_len() == 0).then_some(NetNotification::Route {
            key,
            route,
            presence,
        })
    }
}
