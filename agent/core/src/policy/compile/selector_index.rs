//! An index of pod selectors: finds the selectors that can match a pod without evaluating all of them.
//!
//! Each selector is indexed by properties that it requires: the namespace or a namespace label, and a pod label. A
//! lookup with a pod returns the selectors indexed under the pod's properties, and the selectors that require nothing.

use std::collections::{BTreeSet, HashMap};

use super::pod_index::PodView;
use crate::policy::ir::{NamespaceSelector, PodSelector};

/// Pod selectors, identified by numbers. Outer level: what they require of the namespace.
#[derive(Debug, Default)]
pub(super) struct SelectorIndex {
    any_namespace: Bucket,
    by_namespace: HashMap<String, Bucket>,
    by_namespace_label: HashMap<String, HashMap<String, Bucket>>,
}

/// Selectors with the same namespace requirement. Inner level: what they require of the pod's labels.
#[derive(Debug, Default)]
struct Bucket {
    any_pod: BTreeSet<u32>,
    by_label: HashMap<String, HashMap<String, BTreeSet<u32>>>,
}

/// Whether a number is added or removed.
#[derive(Clone, Copy)]
enum IndexChange {
    Insert,
    Remove,
}

impl SelectorIndex {
    pub(super) fn insert(&mut self, selector: &PodSelector, number: u32) {
        self.update(selector, number, IndexChange::Insert);
    }

    pub(super) fn remove(&mut self, selector: &PodSelector, number: u32) {
        self.update(selector, number, IndexChange::Remove);
    }

    /// The numbers of all selectors that match the pod, and possibly of others.
    pub(super) fn candidates(&self, view: &PodView<'_>) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        self.any_namespace.candidates(view, &mut all);
        if let Some(bucket) = self.by_namespace.get(&view.id.namespace) {
            bucket.candidates(view, &mut all);
        }
        for (key, value) in view.namespace.into_iter().flatten() {
            if let Some(bucket) = self.by_namespace_label.get(key).and_then(|values| values.get(value)) {
                bucket.candidates(view, &mut all);
            }
        }
        all
    }

    fn update(&mut self, selector: &PodSelector, number: u32, change: IndexChange) {
        let update = |bucket: &mut Bucket| {
            bucket.update(selector, number, change);
            bucket.is_empty()
        };
        match &selector.namespaces {
            NamespaceSelector::Named(name) => update_entry(&mut self.by_namespace, name, update),
            NamespaceSelector::Matching(labels) => match labels.required() {
                Some((key, values)) => {
                    for value in values {
                        update_entry(&mut self.by_namespace_label, key, |buckets| {
                            update_entry(buckets, value, update);
                            buckets.is_empty()
                        });
                    }
                }
                None => _ = update(&mut self.any_namespace),
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

    fn update(&mut self, selector: &PodSelector, number: u32, change: IndexChange) {
        let update = |numbers: &mut BTreeSet<u32>| {
            match change {
                IndexChange::Insert => numbers.insert(number),
                IndexChange::Remove => numbers.remove(&number),
            };
            numbers.is_empty()
        };
        match selector.pods.required() {
            None => _ = update(&mut self.any_pod),
            Some((key, values)) => {
                for value in values {
                    update_entry(&mut self.by_label, key, |by_value| {
                        update_entry(by_value, value, update);
                        by_value.is_empty()
                    });
                }
            }
        }
    }
}

/// Updates the entry of a key, inserting a default first if it is missing. Removes the entry if `change` returns true,
/// which means that it is empty.
pub(super) fn update_entry<V: Default>(map: &mut HashMap<String, V>, key: &str, change: impl FnOnce(&mut V) -> bool) {
    // The key nearly always exists; `get_mut` avoids copying it.
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
            compile::pod_index::PodIndex,
            ir::{Pod, PodKind},
        },
        selector::Selector,
    };

    fn labels(key: &str, value: usize) -> Labels {
        Labels::from([(key.to_owned(), value.to_string())])
    }

    /// The candidates for a pod with these labels in namespace `a`, which has the label team=7.
    fn candidates(index: &SelectorIndex, labels: Labels) -> Vec<u32> {
        let pod = Pod {
            labels,
            addresses: BTreeSet::new(),
            named_ports: BTreeSet::new(),
            kind: PodKind::Endpoint,
            node: None,
        };
        let id = PodId { namespace: "a".to_owned(), name: "p".to_owned() };
        let mut pod_index = PodIndex::default();
        pod_index.set_namespace("a", Some(&Arc::new(self::labels("team", 7))));
        index.candidates(&pod_index.view(&id, &pod)).into_iter().collect()
    }

    #[test]
    fn candidates_are_the_selectors_whose_requirements_the_pod_meets_and_those_without_requirements() {
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
        let mut index = SelectorIndex::default();
        let numbered = || selectors.iter().zip(0..);
        numbered().for_each(|(selector, number)| index.insert(selector, number));
        for (app, expected, why) in [
            (5, vec![5, 1007, 2000, 2002, 2003], "its label and namespace, and the selector without requirements"),
            (6, vec![6, 2000, 2003], "a selector with two values is indexed under both"),
            (2000, vec![2003], "no selector requires this label value"),
        ] {
            assert_eq!(candidates(&index, labels("app", app)), expected, "{why}");
        }
        numbered().for_each(|(selector, number)| index.remove(selector, number));
        let SelectorIndex { any_namespace, by_namespace, by_namespace_label } = &index;
        assert!(any_namespace.is_empty() && by_namespace.is_empty() && by_namespace_label.is_empty(), "{index:?}");
    }
}
