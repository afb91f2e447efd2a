//! Which selectors may find a pod, without asking all of them.
//!
//! Every selector is filed under something that a pod must have to be found by it: its namespace or a label of its
//! namespace, and a label of its own. PortMatch a pod asks is what is filed under what it has; the few selectors that require
//! nothing are asked by every pod.

use std::collections::{BTreeSet, HashMap};

use super::world::PodView;
use crate::policy::ir::{NamespaceSelector, PodSelector};

/// Selectors with a number each, filed.
#[derive(Debug, Default)]
pub(super) struct SelectorIndex {
    anywhere: Bucket,
    by_namespace: HashMap<String, Bucket>,
    by_namespace_label: HashMap<String, HashMap<String, Bucket>>,
}

/// Those that require the same of the namespace.
#[derive(Debug, Default)]
struct Bucket {
    any_pod: BTreeSet<u32>,
    by_label: HashMap<String, HashMap<String, BTreeSet<u32>>>,
}

/// Whether a number comes or goes.
#[derive(Clone, Copy)]
enum IndexChange {
    In,
    Out,
}

impl SelectorIndex {
    pub(super) fn insert(&mut self, selector: &PodSelector, number: u32) {
        self.file(selector, number, IndexChange::In);
    }

    pub(super) fn remove(&mut self, selector: &PodSelector, number: u32) {
        self.file(selector, number, IndexChange::Out);
    }

    /// The numbers of all selectors that find the pod, and of some that do not.
    pub(super) fn candidates(&self, view: &PodView<'_>) -> BTreeSet<u32> {
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

    fn file(&mut self, selector: &PodSelector, number: u32, filing: IndexChange) {
        let file = |shelf: &mut Bucket| {
            shelf.file(selector, number, filing);
            shelf.is_empty()
        };
        match &selector.namespaces {
            NamespaceSelector::Named(name) => within(&mut self.by_namespace, name, file),
            NamespaceSelector::Matching(labels) => match labels.required() {
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

impl Bucket {
    fn is_empty(&self) -> bool {
        self.any_pod.is_empty() && self.by_label.is_empty()
    }

    fn candidates(&self, view: &PodView<'_>, all: &mut BTreeSet<u32>) {
        all.extend(&self.any_pod);
        for (key, value) in &view.pod.labels {
            all.extend(self.by_label.get(key).and_then(|values| values.get(value)).into_iter().flatten());
        }
    }

    fn file(&mut self, selector: &PodSelector, number: u32, filing: IndexChange) {
        let file = |numbers: &mut BTreeSet<u32>| {
            match filing {
                IndexChange::In => numbers.insert(number),
                IndexChange::Out => numbers.remove(&number),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        model::{Labels, PodId},
        policy::{
            compile::world::PodIndex,
            ir::{Pod, PodKind},
        },
        selector::Selector,
    };

    fn labels(key: &str, value: usize) -> Labels {
        Labels::from([(key.to_owned(), value.to_string())])
    }

    /// PortMatch a pod of namespace `a`, of team 7, with this label asks.
    fn asked(anchors: &SelectorIndex, labels: Labels) -> Vec<u32> {
        let pod = Pod {
            labels,
            addresses: BTreeSet::new(),
            named_ports: BTreeSet::new(),
            kind: PodKind::Endpoint,
            node: None,
        };
        let id = PodId { namespace: "a".to_owned(), name: "p".to_owned() };
        let mut world = PodIndex::default();
        world.set_namespace("a", Some(&Arc::new(self::labels("team", 7))));
        anchors.candidates(&world.view(&id, &pod)).into_iter().collect()
    }

    #[test]
    fn of_a_thousand_selectors_a_pod_asks_those_that_want_what_it_has_and_those_that_want_nothing() {
        let named = |name: &str| NamespaceSelector::Named(name.to_owned());
        let app = |n: usize| Selector::equals("app", &n.to_string());
        let team = |n: usize| NamespaceSelector::Matching(Selector::equals("team", &n.to_string()));
        let selector = |namespaces, pods| PodSelector { namespaces, pods };
        let both = Selector::In("app".to_owned(), ["5", "6"].map(str::to_owned).into());
        let without = Selector::DoesNotExist("app".to_owned());
        let mut selectors: Vec<PodSelector> = (0..1000).map(|n| selector(named("a"), app(n))).collect();
        selectors.extend((0..1000).map(|n| selector(team(n), app(5))));
        selectors.extend([
            selector(named("a"), both),
            selector(named("b"), app(5)),
            selector(NamespaceSelector::Matching(Selector::everything()), app(5)),
            selector(NamespaceSelector::Matching(Selector::everything()), without),
        ]);
        let mut anchors = SelectorIndex::default();
        let numbered = || selectors.iter().zip(0..);
        numbered().for_each(|(selector, number)| anchors.insert(selector, number));
        for (app, expected, why) in [
            (5, vec![5, 1007, 2000, 2002, 2003], "of its label and its namespace, and the one that wants nothing"),
            (6, vec![6, 2000, 2003], "a selector of two values is filed under both"),
            (2000, vec![2003], "a label that nobody wants"),
        ] {
            assert_eq!(asked(&anchors, labels("app", app)), expected, "{why}");
        }
        numbered().for_each(|(selector, number)| anchors.remove(selector, number));
        let SelectorIndex { anywhere, by_namespace, by_namespace_label } = &anchors;
        assert!(anywhere.is_empty() && by_namespace.is_empty() && by_namespace_label.is_empty(), "{anchors:?}");
    }
}
