//! The kernel's notifications about its network, as a stream for the agent's loop.
//!
//! The multicast connections are their own, apart from requests: netlink-proto gives an overrun to nobody who waits for
//! an answer. rtnetlink's connection serves all groups but those of the sysctls, whose message it cannot decode
//! ([`NetconfMessage`]).

use std::io;

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    proto::{Connection, new_connection_with_socket},
};
use tokio::task::{JoinHandle, spawn, spawn_blocking};
use towpath_core::overlay::NetNotification;
use towpath_podlink::netlink::NetlinkError;

use super::{filter::NotificationFilter, netconf::NetconfMessage};

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

const SYSCTL_GROUPS: [MulticastGroup; 2] = [MulticastGroup::Ipv4Netconf, MulticastGroup::Ipv6Netconf];

/// The receive buffer in bytes. 1,000 peers that come at once are notified in about 3,000 messages of about 800 bytes.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

type Received<T> = UnboundedReceiver<(NetlinkMessage<T>, SocketAddr)>;

/// Listens to the network namespace in which it was opened. Its connections are tasks of the runtime in which it was
/// opened.
#[derive(Debug)]
pub struct NetListener {
    objects: Received<RouteNetlinkMessage>,
    sysctls: Received<NetconfMessage>,
    filter: NotificationFilter,
    /// After an overrun: the filter is read again, on a thread of its own, because the kernel may make it wait for the
    /// RTNL lock.
    rereading: Option<JoinHandle<Result<NotificationFilter, NetlinkError>>>,
}

impl NetListener {
    /// Begins to listen in the calling thread's network namespace. Later changes are notified, so read back afterwards
    /// and nothing is missed.
    ///
    /// # Errors
    /// If the kernel refuses the sockets, or the current state cannot be read.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, _, objects) =
            new_multicast_connection(&GROUPS).map_err(failed("join the multicast groups"))?;
        listen(connection);
        let (mut connection, _, sysctls) =
            new_connection_with_socket::<NetconfMessage, TokioSocket>(NETLINK_ROUTE).map_err(failed("open"))?;
        let socket = connection.socket_mut().socket_mut();
        socket.bind_auto().map_err(failed("bind"))?;
        for group in SYSCTL_GROUPS {
            socket.add_membership(group as u32).map_err(failed("join the multicast groups"))?;
        }
        listen(connection);
        Ok(Self { objects, sysctls, filter: NotificationFilter::read()?, rereading: None })
    }

    /// Waits for a change that matters; what arrived together comes together. Cancel safe.
    ///
    /// # Errors
    /// If a connection ended, or the state cannot be read again after an overrun. Lost notifications are no error: they
    /// come as [`NetNotification::Overrun`].
    pub async fn recv(&mut self) -> Result<Vec<NetNotification>, NetlinkError> {
        loop {
            if let Some(rereading) = &mut self.rereading {
                let read = rereading.await;
                self.rereading = None;
                self.filter = read.map_err(|e| failed("read the links again")(io::Error::other(e)))??;
                return Ok(vec![NetNotification::Overrun]);
            }
            let notifications = self.recv_batch().await?;
            if !notifications.is_empty() {
                return Ok(notifications);
            }
        }
    }

    async fn recv_batch(&mut self) -> Result<Vec<NetNotification>, NetlinkError> {
        let mut notifications = Vec::new();
        tokio::select! {
            message = self.objects.next() => notifications.extend(self.object(message.ok_or_else(ended)?.0)),
            message = self.sysctls.next() => notifications.extend(self.sysctl(message.ok_or_else(ended)?.0)),
        }
        while self.rereading.is_none()
            && let Ok((message, _)) = self.objects.try_recv()
        {
            notifications.extend(self.object(message));
        }
        if self.rereading.is_some() {
            // Whoever receives the overrun reads everything back.
            notifications.clear();
        }
        Ok(notifications)
    }

    fn object(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<NetNotification> {
        match message.payload {
            NetlinkPayload::InnerMessage(object) => self.filter.pass(&object, message.header.flags),
            other => self.overrun(&other),
        }
    }

    fn sysctl(&mut self, message: NetlinkMessage<NetconfMessage>) -> Option<NetNotification> {
        match message.payload {
            NetlinkPayload::InnerMessage(netconf) => netconf.concerns_all_links().then_some(NetNotification::Sysctls),
            other => self.overrun(&other),
        }
    }

    fn overrun<T>(&mut self, payload: &NetlinkPayload<T>) -> Option<NetNotification> {
        if matches!(payload, NetlinkPayload::Overrun(_)) {
            self.rereading = Some(spawn_blocking(NotificationFilter::read));
        }
        None
    }
}

/// Makes room for a burst and lets the connection run.
fn listen<T>(mut connection: Connection<T>)
where
    T: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug + Unpin + Send + 'static,
{
    // Needs NET_ADMIN, which the agent has; with less the default must do, and an overrun is reported.
    let _ = setsockopt(connection.socket_mut().socket_ref(), RcvBufForce, &RECEIVE_BUFFER);
    spawn(connection);
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> NetlinkError {
    move |source| NetlinkError::Socket { step, source }
}

/// netlink-proto logs why, as text alone.
fn ended() -> NetlinkError {
    failed("receive")(io::ErrorKind::UnexpectedEof.into())
}
