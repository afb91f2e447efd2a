#![doc = include_str!("../README.md")]

pub mod link;
pub mod netlink;
pub mod netns;
pub mod route;
pub mod sysctl;
mod traces;

pub use link::{Deleted, PodLink, PodLinkError, PodLinkSpec};
pub use traces::PodTraces;
