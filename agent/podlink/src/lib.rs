#![doc = include_str!("../README.md")]

mod inventory;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod route;
pub mod sysctl;

pub use inventory::PodInventory;
pub use link::{DeleteOutcome, PodLink, PodLinkError, PodLinkSpec};
