//! How far a kind has been listed.

use std::collections::BTreeSet;

/// Whether a kind has been listed once, and what a running list has shown so far.
#[derive(Debug)]
pub(crate) enum ListState<K> {
    /// Nothing is known yet.
    Never,
    /// The first list is running.
    First(BTreeSet<K>),
    /// Known.
    Known,
    /// Known, and being listed again.
    Again(BTreeSet<K>),
}

impl<K: Ord> ListState<K> {
    pub(crate) const fn has_synced(&self) -> bool {
        matches!(self, Self::Known | Self::Again(_))
    }

    pub(crate) fn start(&mut self) {
        *self = if self.has_synced() { Self::Again(BTreeSet::new()) } else { Self::First(BTreeSet::new()) };
    }

    pub(crate) fn saw(&mut self, key: K) {
        if let Self::First(seen) | Self::Again(seen) = self {
            seen.insert(key);
        }
    }

    pub(crate) fn lost(&mut self, key: &K) {
        if let Self::First(seen) | Self::Again(seen) = self {
            seen.remove(key);
        }
    }

    /// Ends the list; what was seen in it. `None` if no list was running: then nothing is known to have gone.
    pub(crate) fn finish(&mut self) -> Option<BTreeSet<K>> {
        match std::mem::replace(self, Self::Known) {
            Self::First(seen) | Self::Again(seen) => Some(seen),
            Self::Known => None,
            Self::Never => {
                *self = Self::Never;
                None
            }
        }
    }
}
