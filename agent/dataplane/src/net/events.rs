//! Announcements of the kernel about its network.
//!
//! Made for a thread of its own that waits in [`NetEvents::next`] and hands on what comes. Noise stays here: states of
//! neighbours that are not ours, links and addresses that are announced again without a change, everything about
//! pods' links, other programs' routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_REPLACE, NetlinkHeader, NlasIterator};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message, address::AddressMessage, link::LinkMessage,
    neighbour::NeighbourMessage, route::RouteMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::{
    socket::{
        setsockopt,
        sockopt::{RcvBufForce, ReceiveTimeout},
    },
    time::{TimeVal, TimeValLike},
};
use towpath_core::overlay::{IfIndex, Link, NetNotification, Presence, RouteOwner};

use towpath_podlink::{
    netlink::{self, NetlinkError},
    route::{self, RouteSocket, message, parse},
};

/// Multicast groups (`enum rtnetlink_groups` in `include/uapi/linux/rtnetlink.h`): links, neighbours, addresses and routes
/// of both families, and the network configuration of both.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];

/// The receive buffer in bytes. 1,000 peers that come at once are announced in about 3,000 messages of about 800 bytes.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Room for one datagram.
const BUFFER: usize = 64 * 1024;

/// Announcements from the network namespace in which it was opened.
#[derive(Debug)]
pub struct NetEvents {
    inner: netlink_sys::Socket,
    buffer: Vec<u8>,
    known: Known,
}

/// What was announced last, to tell a change from a repetition.
#[derive(Debug, Default)]
struct Known {
    /// All links but pods'.
    links: BTreeMap<IfIndex, Link>,
    addresses: BTreeSet<(IfIndex, IpNet)>,
}

impl NetEvents {
    /// Begins to listen in the calling thread's network namespace. What changes from then on is announced, so read
    /// back afterwards and nothing is missed.
    ///
    /// # Errors
    /// If the socket cannot be had, or the present state cannot be read.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |step| move |source| NetlinkError::Socket { step, source };
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        inner.bind_auto().map_err(failed("bind"))?;
        // Needs NET_ADMIN, which the agent has; with less the default must do, and an overrun is announced.
        let _ = setsockopt(&inner, RcvBufForce, &RECEIVE_BUFFER);
        for group in GROUPS {
            inner.add_membership(group).map_err(failed("join the announcements"))?;
        }
        Ok(Self { inner, buffer: Vec::with_capacity(BUFFER), known: Known::read()? })
    }

    /// Waits for something to change and says what; all that was announced together comes together. Without a bound it
    /// waits for ever; with one it gives nothing if nothing came in time.
    ///
    /// # Errors
    /// If the socket fails. Lost announcements are no error: they come as [`NetNotification::Overrun`].
    pub fn next(&mut self, within: Option<Duration>) -> Result<Vec<NetNotification>, NetlinkError> {
        let deadline = within.map(|within| Instant::now() + within);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Vec::new());
            }
            let notices = self.receive(left)?;
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }

    fn receive(&mut self, within: Option<Duration>) -> Result<Vec<NetNotification>, NetlinkError> {
        // Zero means no bound to the kernel, so that less than its unit is rounded up.
        let micros = within.map_or(0, |within| i64::try_from(within.as_micros()).unwrap_or(i64::MAX).max(1));
        setsockopt(&self.inner, ReceiveTimeout, &TimeVal::microseconds(micros))
            .map_err(|e| NetlinkError::Socket { step: "set the timeout", source: e.into() })?;
        self.buffer.clear();
        match self.inner.recv(&mut self.buffer, 0) {
            Ok(_) => {
                let known = &mut self.known;
                Ok(netlink::messages(&self.buffer)
                    .filter_map(|(header, payload)| known.notice(header, payload))
                    .collect())
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(Vec::new()),
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                self.known = Known::read()?;
                Ok(vec![NetNotification::Overrun])
            }
            Err(source) => Err(NetlinkError::Socket { step: "receive", source }),
        }
    }
}

impl Known {
    fn read() -> Result<Self, NetlinkError> {
        let mut socket = RouteSocket::open()?;
        let links = socket.dump(message::all_links())?;
        let addresses = socket.dump(message::all_addresses())?;
        let links = parse::links(&links).filter(|(_, link)| !link.name.is_pod()).collect();
        Ok(Self { links, addresses: parse::addresses(&addresses).collect() })
    }

    fn notice(&mut self, header: NetlinkHeader, payload: &[u8]) -> Option<NetNotification> {
        const RTM_NEWNETCONF: u16 = 80;
        if header.message_type == RTM_NEWNETCONF {
            return concerns_all_links(payload).then_some(NetNotification::Sysctls);
        }
        match route::decode(header, payload)? {
            Message::NewLink(message) => self.new_link(&message),
            Message::DelLink(message) => self.deleted_link(&message),
            Message::NewAddress(message) => self.address(&message, Presence::Present),
            Message::DelAddress(message) => self.address(&message, Presence::Absent),
            Message::NewNeighbour(message) => self.neighbour(&message, Presence::Present),
            Message::DelNeighbour(message) => self.neighbour(&message, Presence::Absent),
            Message::NewRoute(message) => self.route(&message, Presence::Present, header.flags),
            Message::DelRoute(message) => self.route(&message, Presence::Absent, header.flags),
            _ => None,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Option<NetNotification> {
        // A bridge announces its ports as links of its own family.
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
            let ((_, mac), remote) = parse::forwarding_entry(message)?;
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

/// Whether an RTM_NEWNETCONF message is about all links: only its interface number says so (NETCONFA_IFINDEX is −1,
/// `include/uapi/linux/netconf.h`). Single links' settings change whenever one is made.
fn concerns_all_links(payload: &[u8]) -> bool {
    const HEADER: usize = 4; // struct netconfmsg, padded
    const NETCONFA_IFINDEX: u16 = 1;
    const ALL: i32 = -1;
    NlasIterator::new(payload.get(HEADER..).unwrap_or_default())
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NETCONFA_IFINDEX)
        .and_then(|attribute| attribute.value().try_into().ok())
        .is_some_and(|bytes| i32::from_ne_bytes(bytes) == ALL)
}
