//! What goes into the index and what it says has become stale.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::NetworkPolicy,
};

/// A change of one watched kind.
#[derive(Debug)]
pub enum Event {
    /// Of a Node.
    Node(Box<ObjectChange<Node>>),
    /// Of a Pod.
    Pod(Box<ObjectChange<Pod>>),
    /// Of a Namespace.
    Namespace(Box<ObjectChange<Namespace>>),
    /// Of a NetworkPolicy.
    NetworkPolicy(Box<ObjectChange<NetworkPolicy>>),
}

/// A change of an object, or a step of a list of all objects of the kind.
///
/// Expected: once `ListStarted`, `Listed` for every object, `ListDone`; then `Applied` and `Deleted`, until the watch
/// breaks and a new list starts. A list comes object by object so that it never lies in memory as a whole. What was
/// there before and is not in the list goes at `ListDone`.
#[derive(Debug)]
pub enum ObjectChange<K> {
    /// It was made or changed.
    Applied(K),
    /// It was deleted.
    Deleted(K),
    /// A list of all objects begins.
    ListStarted,
    /// One of the list.
    Listed(K),
    /// One of the list, or one that was made or changed, of which nothing but its name could be read. What is known of
    /// it stays: an object must not vanish because it has become illegible.
    Undecodable(K),
    /// The list is complete.
    ListDone,
}

/// Something that is computed from the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirtyPart {
    /// The peers, the underlay, this node's own object: [`crate::Index::nodes`], [`crate::Index::own_node`].
    Nodes,
    /// The policy snapshot and the local endpoints: [`crate::Index::snapshot`], [`crate::Index::endpoints`].
    Policy,
}

/// What has to be computed again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Dirty(BTreeSet<DirtyPart>);

impl Dirty {
    /// Nothing.
    pub const fn nothing() -> Self {
        Self(BTreeSet::new())
    }

    /// Everything: after the last of the first lists.
    pub fn everything() -> Self {
        Self(BTreeSet::from([DirtyPart::Nodes, DirtyPart::Policy]))
    }

    /// This.
    pub fn only(concern: DirtyPart) -> Self {
        Self(BTreeSet::from([concern]))
    }

    /// Whether this has to be computed again.
    #[must_use]
    pub fn contains(&self, concern: DirtyPart) -> bool {
        self.0.contains(&concern)
    }

    /// Whether nothing has to be computed again.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what another change has made stale.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}
