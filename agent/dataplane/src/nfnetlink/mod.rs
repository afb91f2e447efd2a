//! Netfilter's netlink (linux/netfilter/nfnetlink.h): the way to nf_tables, connection tracking and the packet log.
//!
//! A [`Request`] is a message with its attributes; a [`Socket`] sends requests and reads acknowledgements, dumps and
//! what the kernel tells of its own accord; an [`Answer`] is a message of the kernel, its [`Attributes`] are read in
//! place. Numbers are in network byte order throughout, as netfilter has them.

mod attribute;
mod batch;
mod message;
mod socket;

pub use attribute::{Attribute, Attributes, Body};
pub use batch::{BatchRefused, Purpose};
pub use message::{Answer, Kind, Request};
pub use socket::{Heard, Socket};

pub use towpath_podlink::netlink::NetlinkError;
