//! nfnetlink (linux/netfilter/nfnetlink.h): the transport to nf_tables, conntrack and nflog.
//!
//! An [`NfnetlinkRequest`] is a message with its attributes; an [`NfnetlinkSocket`] sends requests and receives
//! acknowledgements, dumps and notifications; an [`NfnetlinkMessage`] comes from the kernel, and its [`Attributes`] are
//! read in place. Numbers are in network byte order throughout, as netfilter has them.

mod attribute;
mod batch;
mod message;
mod socket;

pub use attribute::{Attribute, Attributes, Body};
pub use batch::{BatchError, BatchMode};
pub use message::{MessageType, NfnetlinkMessage, NfnetlinkRequest};
pub use socket::NfnetlinkSocket;

pub use towpath_podlink::netlink::{NetlinkError, Received};
