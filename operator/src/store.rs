//! A cache of one kind of object, folded from watch events. Pure: no clock, no network.
//!
//! An object that cannot be decoded exists: it keeps its last known facts, and never counts as deleted. Whoever acts on
//! absence asks [`Store::contains`] or [`Store::entry`], not [`Store::get`].

use std::collections::BTreeMap;

/// One watch event, reduced to the facts that count.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectEvent<T> {
    /// A complete list begins.
    ListStarted,
    /// One object of the list.
    Listed(String, T),
    /// One object of the list, which cannot be decoded.
    ListedUndecodable(String),
    /// The list is complete: objects that it does not contain are deleted.
    ListDone,
    /// One object was added or changed.
    Applied(String, T),
    /// One object was added or changed, and cannot be decoded.
    Undecodable(String),
    /// One object was deleted.
    Deleted(String),
    /// This cluster does not serve the kind.
    NotServed,
}

/// Whether an event changed anything that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A new plan is due.
    Changed,
    /// The plan still holds.
    Unchanged,
}

/// What is known of an object that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<T> {
    /// The object as it is.
    Decoded(T),
    /// The object cannot be decoded now; this is what it was.
    LastKnown(T),
    /// The object has never been decoded.
    NeverDecoded,
}

impl<T> Entry<T> {
    /// The facts, current or last known.
    const fn facts(&self) -> Option<&T> {
        match self {
            Self::Decoded(facts) | Self::LastKnown(facts) => Some(facts),
            Self::NeverDecoded => None,
        }
    }

    fn undecodable(former: Option<Self>) -> Self {
        match former {
            Some(Self::Decoded(facts) | Self::LastKnown(facts)) => Self::LastKnown(facts),
            Some(Self::NeverDecoded) | None => Self::NeverDecoded,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    /// No list has been completed yet.
    Unsynced,
    /// The objects are those of the cluster, as of the last event.
    Synced,
    /// The cluster does not serve the kind.
    NotServed,
}

/// The objects of one kind by name.
#[derive(Clone, Debug)]
pub struct Store<T> {
    entries: BTreeMap<String, Entry<T>>,
    /// The list in progress; an object that cannot be decoded has no facts.
    incoming: BTreeMap<String, Option<T>>,
    sync_state: SyncState,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), incoming: BTreeMap::new(), sync_state: SyncState::Unsynced }
    }
}

impl<T: PartialEq> Store<T> {
    /// Folds one event in.
    pub fn apply(&mut self, event: ObjectEvent<T>) -> Effect {
        match event {
            ObjectEvent::ListStarted => {
                self.incoming.clear();
                Effect::Unchanged
            }
            ObjectEvent::Listed(name, facts) => {
                self.incoming.insert(name, Some(facts));
                Effect::Unchanged
            }
            ObjectEvent::ListedUndecodable(name) => {
                self.incoming.insert(name, None);
                Effect::Unchanged
            }
            ObjectEvent::ListDone => self.replace(),
            ObjectEvent::Applied(name, facts) => self.set(name, Entry::Decoded(facts)),
            ObjectEvent::Undecodable(name) => {
                let former = self.entries.remove(&name);
                let effect = match former {
                    Some(Entry::LastKnown(_) | Entry::NeverDecoded) => Effect::Unchanged,
                    Some(Entry::Decoded(_)) | None => Effect::Changed,
                };
                self.entries.insert(name, Entry::undecodable(former));
                effect
            }
            ObjectEvent::Deleted(name) => self.entries.remove(&name).map_or(Effect::Unchanged, |_| Effect::Changed),
            ObjectEvent::NotServed => {
                let same = self.sync_state == SyncState::NotServed;
                self.entries.clear();
                self.sync_state = SyncState::NotServed;
                if same { Effect::Unchanged } else { Effect::Changed }
            }
        }
    }

    fn set(&mut self, name: String, entry: Entry<T>) -> Effect {
        if self.entries.get(&name) == Some(&entry) {
            return Effect::Unchanged;
        }
        self.entries.insert(name, entry);
        Effect::Changed
    }

    fn replace(&mut self) -> Effect {
        let incoming = std::mem::take(&mut self.incoming);
        let mut former = std::mem::take(&mut self.entries);
        let mut same = self.sync_state == SyncState::Synced && former.len() == incoming.len();
        for (name, facts) in incoming {
            let before = former.remove(&name);
            same &= match (&before, &facts) {
                (Some(Entry::Decoded(before)), Some(facts)) => before == facts,
                (Some(Entry::LastKnown(_) | Entry::NeverDecoded), None) => true,
                (Some(Entry::Decoded(_)), None) | (Some(Entry::LastKnown(_) | Entry::NeverDecoded) | None, _) => false,
            };
            self.entries.insert(name, facts.map_or_else(|| Entry::undecodable(before), Entry::Decoded));
        }
        self.sync_state = SyncState::Synced;
        if same { Effect::Unchanged } else { Effect::Changed }
    }
}

impl<T> Store<T> {
    /// Whether the first list is complete, or known never to come.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.sync_state != SyncState::Unsynced
    }

    /// Whether the cluster serves the kind.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.sync_state != SyncState::NotServed
    }

    /// The facts of the object of this name, current or last known. `None` does not mean that the object is absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.entries.get(name).and_then(Entry::facts)
    }

    /// What is known of the object of this name; `None` if there is no such object.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry<T>> {
        self.entries.get(name)
    }

    /// Whether an object of this name exists, decoded or not.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names of all objects, decoded or not.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The names of objects that have never been decoded.
    pub fn never_decoded(&self) -> impl Iterator<Item = &str> {
        let entries = self.entries.iter().filter(|(_, entry)| entry.facts().is_none());
        entries.map(|(name, _)| name.as_str())
    }

    /// The facts of all objects that have been decoded at least once, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().filter_map(|(name, entry)| Some((name.as_str(), entry.facts()?)))
    }

    /// Number of objects, decoded or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
