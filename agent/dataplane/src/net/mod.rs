//! The kernel's network, over blocking route netlink.

pub(crate) mod message;
pub(crate) mod parse;
pub mod pod_link;
mod pod_traces;
pub mod socket;

pub use pod_link::{Deleted, PodLink, PodLinkError, PodLinkSpec};
pub use pod_traces::PodTraces;
pub use socket::NetlinkError;
