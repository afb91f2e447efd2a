//! Which selectors may find a pod, without asking all of them.
//!
//! Every selector is filed under something that a pod must have to be found by it: its namespace or a label of its
//! namespace, and a label of its own. What a pod asks is what is filed under what it has; the few selectors that require
//! nothing are asked by every pod.

use std::collections::{BTreeSet, HashMap};

use super::world::View;
use crate::policy::ir::{Namespaces, PodSelector};

/// Selectors with a number each, filed.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    anywhere: Shelf,
    by_namespace: HashMap<String, Shelf>,
    by_namespace_label: HashMap<String, HashMap<String, Shelf>>,
}

/// Those that require the same of the namespace.
#[derive(Debug, Default)]
struct Shelf {
    any_pod: BTreeSet<u32>,
    by_label: HashMap<String, HashMap<String, BTreeSet<u32>>>,
}

/// Whether a number comes or goes.
#[derive(Clone, Copy)]
enum Filing {
    In,
    Out,
}

impl Anchors {
    pub(super) fn insert(&mut self, selector: &PodSelector, number: u32) {
        self.file(selector, number, Filing::In);
    }

    pub(super) fn remove(&mut self, selector: &PodSelector, number: u32) {
        self.file(selector, number, Filing::Out);
    }

    /// The numbers of all selectors that find the pod, and of some that do not.
    pub(super) fn candidates(&self, view: &View<'_>) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        self.anywhere.candidates(view, &mut all);
        if let Some(shelf) = self.by_namespace.get(&view.id.namespace) {
            shelf.candidates(view, &mut all);
        }
        for (key, value) in view.namespace.into_iter().flatten() {
            if let Some(shelf) = self.by_namespace_label.get(key).and_then(|values| values.get(value)) {
                shelf.candidates(view, &mut all);
            }
        }
        all
    }

    fn file(&mut self, selector: &PodSelector, number: u32, filing: Filing) {
        let file = |shelf: &mut Shelf| {
            shelf.file(selector, number, filing);
            shelf.is_empty()
        };
        match &selector.namespaces {
            Namespaces::Named(name) => within(&mut self.by_namespace, name, file),
            Namespaces::Matching(labels) => match labels.required() {
                Some((key, values)) => {
                    for value in values {
                        within(&mut self.by_namespace_label, key, |shelves| {
                            within(shelves, value, file);
                            shelves.is_empty()
                        });
                    }
                }
                None => _ = file(&mut self.anywhere),
            },
        }
    }
}

impl Shelf {
    fn is_empty(&self) -> bool {
        self.any_pod.is_empty() && self.by_label.is_empty()
    }

    fn candidates(&self, view: &View<'_>, all: &mut BTreeSet<u32>) {
        all.extend(&self.any_pod);
        for (key, value) in &view.pod.labels {
            all.extend(self.by_label.get(key).and_then(|values| values.get(value)).into_iter().flatten());
        }
    }

    fn file(&mut self, selector: &PodSelector, number: u32, filing: Filing) {
        let file = |numbers: &mut BTreeSet<u32>| {
            match filing {
                Filing::In => numbers.insert(number),
                Filing::Out => numbers.remove(&number),
            };
            numbers.is_empty()
        };
        match selector.pods.required() {
            None => _ = file(&mut self.any_pod),
            Some((key, values)) => {
                for value in values {
                    within(&mut self.by_label, key, |by_value| {
                        within(by_value, value, file);
                        by_value.is_empty()
                    });
                }
            }
        }
    }
}

/// Changes the entry of a key, which is made if it is not there, and goes if `change` says that it is empty then.
pub(super) fn within<V: Default>(map: &mut HashMap<String, V>, key: &str, change: impl FnOnce(&mut V) -> bool) {
    // Looked up first: the key is there nearly always, and need not be copied then.
    let empty = match map.get_mut(key) {
        Some(entry) => change(entry),
        None => change(map.entry(key.to_owned()).or_default()),
    };
    if empty {
        map.remove(key);
    }
}
