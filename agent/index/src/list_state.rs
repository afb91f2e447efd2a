//! The list state of a watched kind.

use std::collections::BTreeSet;

/// Whether a kind has been listed, and which objects a running list has returned so far.
#[derive(Debug)]
pub(crate) enum ListState<K> {
    /// No list has started.
    NotListed,
    /// The first list is running. It has returned these objects.
    Listing(BTreeSet<K>),
    /// A list was completed.
    Listed,
    /// A list was completed, and another one is running. It has returned these objects.
    Relisting(BTreeSet<K>),
}

impl<K: Ord> ListState<K> {
    pub(crate) const fn has_synced(&self) -> bool {
        matches!(self, Self::Listed | Self::Relisting(_))
    }

    pub(crate) fn start(&mut self) {
        *self = if self.has_synced() { Self::Relisting(BTreeSet::new()) } else { Self::Listing(BTreeSet::new()) };
    }

    pub(crate) fn insert(&mut self, key: K) {
        if let Self::Listing(seen) | Self::Relisting(seen) = self {
            seen.insert(key);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Self::Listing(seen) | Self::Relisting(seen) = self {
            seen.remove(key);
        }
    }

    /// Completes the list and returns its objects. `None` if no list was running: then no object was deleted.
    pub(crate) fn finish(&mut self) -> Option<BTreeSet<K>> {
        match std::mem::replace(self, Self::Listed) {
            Self::Listing(seen) | Self::Relisting(seen) => Some(seen),
            Self::Listed => None,
            Self::NotListed => {
                *self = Self::NotListed;
                None
            }
        }
    }
}
