#![doc = include_str!("../README.md")]

mod event;
pub mod flannel;
mod index;
mod list_state;
mod network_policy;
mod node;
mod peers;
mod pod;

pub use self::{
    event::{Dirty, DirtyPart, Event, ObjectChange},
    index::Index,
    node::{AddressOverrides, NetworkUnavailable, NodeProblem, NodeRecord, PublishedVtep},
    peers::{FamilyPeers, PeerResolver, PeersByFamily, SkipReason},
};
