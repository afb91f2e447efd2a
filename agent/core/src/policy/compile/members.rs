//! Which pods a selector finds, answered from an index over labels: selectors that reach over many namespaces would
//! otherwise read all pods once for every policy.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    rc::Rc,
};

use crate::{
    model::PodId,
    policy::ir::{Namespaces, Pod, PodKind, PodSelector, Snapshot},
};

/// The pods of a snapshot that policies can find, by namespace and by label.
pub(super) struct Members<'a> {
    snapshot: &'a Snapshot,
    /// In order of their ids, so that a namespace is a range.
    pods: Vec<(&'a PodId, &'a Pod)>,
    by_label: HashMap<(&'a str, &'a str), Vec<usize>>,
    found: BTreeMap<&'a PodSelector, Rc<[usize]>>,
}

impl<'a> Members<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let pods: Vec<(&PodId, &Pod)> = snapshot
            .pods
            .iter()
            .map(|(id, p)| (id, &**p))
            .filter(|(_, p)| p.kind == PodKind::Endpoint && !p.addresses.is_empty())
            .collect();
        let mut by_label: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (n, (_, pod)) in pods.iter().enumerate() {
            for (key, value) in &pod.labels {
                by_label.entry((key, value)).or_default().push(n);
            }
        }
        Self { snapshot, pods, by_label, found: BTreeMap::new() }
    }

    /// All pods that have an address and a network of their own.
    pub(super) fn all(&self) -> impl Iterator<Item = &'a Pod> + use<'a, '_> {
        self.pods.iter().map(|(_, pod)| *pod)
    }

    /// Those of them that the selector finds.
    pub(super) fn find(&mut self, selector: &'a PodSelector) -> impl Iterator<Item = &'a Pod> + use<'a, '_> {
        let found = match self.found.get(selector) {
            Some(found) => Rc::clone(found),
            None => {
                let found: Rc<[usize]> = self.search(selector).into();
                self.found.insert(selector, Rc::clone(&found));
                found
            }
        };
        (0..found.len()).map(move |n| self.pods[found[n]].1)
    }

    fn search(&self, selector: &PodSelector) -> Vec<usize> {
        let mut candidates = self.candidates(selector);
        candidates.retain(|&n| {
            let (id, pod) = self.pods[n];
            selector.matches(self.snapshot, id, pod)
        });
        candidates
    }

    /// The shortest list of pods that is known to hold all that the selector finds.
    fn candidates(&self, selector: &PodSelector) -> Vec<usize> {
        let namespace = match &selector.namespaces {
            Namespaces::Named(name) => self.namespace(name),
            Namespaces::Matching(_) => 0..self.pods.len(),
        };
        let Some((key, values)) = selector.pods.required() else { return namespace.collect() };
        let lists: Vec<&[usize]> =
            values.iter().filter_map(|v| self.by_label.get(&(key, v.as_str()))).map(Vec::as_slice).collect();
        if lists.iter().map(|l| l.len()).sum::<usize>() < namespace.len() {
            lists.concat()
        } else {
            namespace.collect()
        }
    }

    fn namespace(&self, name: &str) -> Range<usize> {
        let start = self.pods.partition_point(|(id, _)| id.namespace.as_str() < name);
        let len = self.pods[start..].partition_point(|(id, _)| id.namespace == name);
        start..start + len
    }
}
