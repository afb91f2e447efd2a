//! The kernel's network, over blocking route netlink.

pub(crate) mod message;
pub(crate) mod parse;
pub mod pod_link;
pub mod socket;

pub use pod_link::{Deleted, PodLink, PodLinkError, PodLinkSpec};
pub use socket::NetlinkError;
