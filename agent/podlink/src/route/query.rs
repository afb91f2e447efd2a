//! Lookups of one object.

use std::net::IpAddr;

use nix::errno::Errno;
use towpath_core::{
    names::IfName,
    overlay::{IfIndex, Link},
};

use super::{RouteSocket, message, parse};
use crate::netlink::NetlinkError;

/// A link by name; `None` if there is none.
///
/// # Errors
/// If the kernel rejects the request, or the socket fails.
pub fn find_link(socket: &mut RouteSocket, name: &IfName) -> Result<Option<(IfIndex, Link)>, NetlinkError> {
    match socket.get(message::get_link(name)) {
        Ok(answer) => Ok(answer.as_ref().and_then(parse::new_link)),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The link of the route to an address (`ip route get … fibmatch`); `None` for a route without one.
///
/// # Errors
/// If there is no route, the kernel rejects the request, or the socket fails.
pub fn route_link(socket: &mut RouteSocket, address: IpAddr) -> Result<Option<IfIndex>, NetlinkError> {
    Ok(socket.get(message::fib_match(address))?.as_ref().and_then(parse::output_link))
}
