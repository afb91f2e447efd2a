//! A mirror of one kind of object, folded from watch steps. Pure: time and network are elsewhere.

use std::collections::BTreeMap;

/// One step of a watch, already reduced to the facts that count.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectEvent<T> {
    /// A complete list begins.
    ListStarted,
    /// One object of the list.
    Listed(String, T),
    /// The list is complete: what it did not name is gone.
    ListDone,
    /// One object was added or changed.
    Applied(String, T),
    /// One object is gone.
    Deleted(String),
    /// This cluster does not serve the kind.
    NotServed,
}

/// Whether a step changed anything that a plan could depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A new plan is due.
    Changed,
    /// Nothing new.
    Unchanged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    /// No list has been completed yet.
    Unsynced,
    /// The objects are those of the cluster, as of the last step.
    Synced,
    /// The cluster does not serve the kind.
    NotServed,
}

/// The objects of one kind by name.
#[derive(Clone, Debug)]
pub struct Store<T> {
    objects: BTreeMap<String, T>,
    incoming: BTreeMap<String, T>,
    sync_state: SyncState,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), incoming: BTreeMap::new(), sync_state: SyncState::Unsynced }
    }
}

impl<T: PartialEq> Store<T> {
    /// Folds one step in.
    pub fn apply(&mut self, step: ObjectEvent<T>) -> Effect {
        match step {
            ObjectEvent::ListStarted => {
                self.incoming.clear();
                Effect::Unchanged
            }
            ObjectEvent::Listed(name, object) => {
                self.incoming.insert(name, object);
                Effect::Unchanged
            }
            ObjectEvent::ListDone => {
                let listed = std::mem::take(&mut self.incoming);
                let same = self.sync_state == SyncState::Synced && self.objects == listed;
                self.objects = listed;
                self.sync_state = SyncState::Synced;
                if same { Effect::Unchanged } else { Effect::Changed }
            }
            ObjectEvent::Applied(name, object) => {
                if self.objects.get(&name) == Some(&object) {
                    return Effect::Unchanged;
                }
                self.objects.insert(name, object);
                Effect::Changed
            }
            ObjectEvent::Deleted(name) => self.objects.remove(&name).map_or(Effect::Unchanged, |_| Effect::Changed),
            ObjectEvent::NotServed => {
                let same = self.sync_state == SyncState::NotServed;
                self.objects.clear();
                self.sync_state = SyncState::NotServed;
                if same { Effect::Unchanged } else { Effect::Changed }
            }
        }
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

    /// The object of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.objects.get(name)
    }

    /// All objects by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.objects.iter().map(|(name, object)| (name.as_str(), object))
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[(&str, i32)]) -> Store<i32> {
        let mut table = Store::default();
        table.apply(ObjectEvent::ListStarted);
        for (name, value) in names {
            table.apply(ObjectEvent::Listed((*name).to_owned(), *value));
        }
        assert_eq!(table.apply(ObjectEvent::ListDone), Effect::Changed, "the first list is news, even an empty one");
        table
    }

    #[test]
    fn a_list_is_in_force_only_when_it_is_complete() {
        let mut table = Store::default();
        table.apply(ObjectEvent::ListStarted);
        table.apply(ObjectEvent::Listed("a".to_owned(), 1));
        assert!(!table.is_synced() && table.is_empty(), "half a list is no list");
        table.apply(ObjectEvent::ListDone);
        assert!(table.is_synced() && table.get("a") == Some(&1));
    }

    #[test]
    fn a_second_list_takes_away_what_it_does_not_name() {
        let mut table = listed(&[("a", 1), ("b", 2)]);
        table.apply(ObjectEvent::ListStarted);
        table.apply(ObjectEvent::Listed("b".to_owned(), 2));
        assert_eq!(table.len(), 2, "the old list holds until the new one is complete");
        assert_eq!(table.apply(ObjectEvent::ListDone), Effect::Changed);
        assert_eq!(table.iter().collect::<Vec<_>>(), [("b", &2)]);
    }

    #[test]
    fn only_what_changes_the_facts_counts_as_a_change() {
        let cases = [
            (ObjectEvent::Applied("a".to_owned(), 1), Effect::Unchanged, "the same facts again"),
            (ObjectEvent::Applied("a".to_owned(), 2), Effect::Changed, "other facts"),
            (ObjectEvent::Deleted("x".to_owned()), Effect::Unchanged, "never known"),
            (ObjectEvent::Deleted("a".to_owned()), Effect::Changed, "known"),
            (ObjectEvent::NotServed, Effect::Changed, "the kind is gone"),
        ];
        for (step, want, why) in cases {
            assert_eq!(listed(&[("a", 1)]).apply(step), want, "{why}");
        }
    }
}
