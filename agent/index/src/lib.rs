//! The cluster as the agent sees it: a synchronous fold over watch events. Kubernetes' types come in here and go no
//! further; out come the policy snapshot and the overlay's peers in the words of `towpath-core`.
//!
//! Whatever order events arrive in, the same final objects give the same answer. An object that cannot be understood
//! costs itself only, and says why. Nothing here does I/O, and nothing is handed out before every kind has been
//! listed once, because half a cluster would take away what the other half allows.

mod event;
pub mod flannel;
mod index;
mod listing;
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
