//! Route netlink on a blocking socket (`AF_NETLINK`, `NETLINK_ROUTE`): requests, dumps, and the messages that they consist of.

pub mod message;
pub mod parse;
mod query;
mod socket;

pub use query::{find_link, route_link};
pub use socket::{RouteRequest, RouteSocket, decode};
