//! The input of the index, and what has to be computed again after it.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::NetworkPolicy,
};

/// A watch event of one of the watched kinds.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants are the watched kinds")]
pub enum Event {
    Node(Box<ObjectChange<Node>>),
    Pod(Box<ObjectChange<Pod>>),
    Namespace(Box<ObjectChange<Namespace>>),
    NetworkPolicy(Box<ObjectChange<NetworkPolicy>>),
}

/// A change of an object, or a step of a list of all objects of a kind.
///
/// Expected flow: `ListStarted`, `Listed` for each object, `ListDone`; then `Applied` and `Deleted`, until the watch
/// fails and a new list starts. A list arrives object by object, so that it is never in memory as a whole. `ListDone`
/// removes known objects that were not in the list.
#[derive(Debug)]
pub enum ObjectChange<K> {
    /// The object was created or changed.
    Applied(K),
    /// The object was deleted.
    Deleted(K),
    /// A list of all objects of the kind starts.
    ListStarted,
    /// An object of the list.
    Listed(K),
    /// A listed, created or changed object of which only the name could be decoded. The index keeps its last known
    /// state: an object that becomes undecodable is not deleted.
    Undecodable(K),
    /// The list is complete.
    ListDone,
}

/// A group of results that depends on the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirtyPart {
    /// Peers, underlay addresses and this node's own Node: [`crate::Index::nodes`], [`crate::Index::own_node`].
    Nodes,
    /// Policy snapshot and local endpoints: [`crate::Index::snapshot`], [`crate::Index::endpoints`].
    Policy,
}

/// The parts that have to be computed again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Dirty(BTreeSet<DirtyPart>);

impl Dirty {
    /// No part.
    pub const fn nothing() -> Self {
        Self(BTreeSet::new())
    }

    /// All parts. Returned when the last kind has been listed for the first time.
    pub fn everything() -> Self {
        Self(BTreeSet::from([DirtyPart::Nodes, DirtyPart::Policy]))
    }

    /// One part.
    pub fn only(part: DirtyPart) -> Self {
        Self(BTreeSet::from([part]))
    }

    /// Whether this part has to be computed again.
    #[must_use]
    pub fn contains(&self, part: DirtyPart) -> bool {
        self.0.contains(&part)
    }

    /// Whether no part has to be computed again.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the parts of `other`.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}
