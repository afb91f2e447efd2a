//! An index of the cluster's pods by namespace, label and address. An update costs as much as the pod has labels and
//! addresses.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use super::selector_index::update_entry;
use crate::{
    model::{Labels, PodId},
    policy::ir::{NamespaceSelector, Pod, PodKind, PodSelector},
};

/// A pod with the labels of its namespace: the input of a selector.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodView<'a> {
    pub(super) id: &'a PodId,
    pub(super) pod: &'a Pod,
    /// The labels of its namespace; `None` if the namespace is not known.
    pub(super) namespace: Option<&'a Labels>,
}

impl PodView<'_> {
    /// Whether selectors can match the pod at all: it has its own network namespace.
    pub(super) fn is_endpoint(&self) -> bool {
        is_endpoint(self.pod)
    }

    pub(super) fn selected_by(&self, selector: &PodSelector) -> bool {
        selector.matches_with(self.namespace, self.id, self.pod)
    }
}

/// Namespaces and pods of the last snapshot, with indexes of the pods that selectors can match.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    namespaces: OrdMap<String, Arc<Labels>>,
    pods: OrdMap<PodId, Arc<Pod>>,
    by_label: HashMap<String, HashMap<String, BTreeSet<Arc<PodId>>>>,
    by_address: HashMap<IpAddr, BTreeSet<Arc<PodId>>>,
}

impl PodIndex {
    pub(super) const fn namespaces(&self) -> &OrdMap<String, Arc<Labels>> {
        &self.namespaces
    }

    pub(super) const fn pods(&self) -> &OrdMap<PodId, Arc<Pod>> {
        &self.pods
    }

    pub(super) fn set_namespace(&mut self, name: &str, labels: Option<&Arc<Labels>>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), Arc::clone(labels)),
            None => self.namespaces.remove(name),
        };
    }

    pub(super) fn set_pod(&mut self, id: &PodId, pod: Option<&Arc<Pod>>) {
        let id = Arc::new(id.clone());
        let before = match pod {
            Some(pod) => self.pods.insert(PodId::clone(&id), Arc::clone(pod)),
            None => self.pods.remove(&*id),
        };
        let before = before.as_deref().filter(|pod| is_endpoint(pod));
        let after = pod.map(|pod| &**pod).filter(|pod| is_endpoint(pod));
        self.update_labels(&id, before, after);
        self.update_addresses(&id, before, after);
    }

    /// Replaces the namespaces by an equal map, to share its memory. The next comparison with a later version of that map
    /// then skips the shared part.
    pub(super) fn share_namespaces(&mut self, equal: &OrdMap<String, Arc<Labels>>) {
        self.namespaces = equal.clone();
    }

    /// As [`PodIndex::share_namespaces`].
    pub(super) fn share_pods(&mut self, equal: &OrdMap<PodId, Arc<Pod>>) {
        self.pods = equal.clone();
    }

    fn update_labels(&mut self, id: &Arc<PodId>, before: Option<&Pod>, after: Option<&Pod>) {
        let none = Labels::new();
        let (before, after) = (before.map_or(&none, |p| &p.labels), after.map_or(&none, |p| &p.labels));
        for (key, value) in before.iter().filter(|(key, value)| after.get(*key) != Some(value)) {
            update_entry(&mut self.by_label, key, |values| {
                update_entry(values, value, |ids| {
                    ids.remove(id);
                    ids.is_empty()
                });
                values.is_empty()
            });
        }
        for (key, value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
            update_entry(&mut self.by_label, key, |values| {
                update_entry(values, value, |ids| {
                    ids.insert(Arc::clone(id));
                    false
                });
                false
            });
        }
    }

    fn update_addresses(&mut self, id: &Arc<PodId>, before: Option<&Pod>, after: Option<&Pod>) {
        for address in before.into_iter().flat_map(|pod| &pod.addresses) {
            if let Some(ids) = self.by_address.get_mut(address) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in after.into_iter().flat_map(|pod| &pod.addresses) {
            self.by_address.entry(*address).or_default().insert(Arc::clone(id));
        }
    }

    pub(super) fn view<'a>(&'a self, id: &'a PodId, pod: &'a Pod) -> PodView<'a> {
        PodView { id, pod, namespace: self.namespaces.get(&id.namespace).map(|labels| &**labels) }
    }

    /// The current state of the pod.
    pub(super) fn get<'a>(&'a self, id: &'a PodId) -> Option<PodView<'a>> {
        self.pods.get(id).map(|pod| self.view(id, pod))
    }

    /// All pods of a namespace, including host-network pods.
    pub(super) fn in_namespace<'a, 'b>(&'a self, name: &'b str) -> impl Iterator<Item = PodView<'a>> + use<'a, 'b> {
        let first = PodId { namespace: name.to_owned(), name: String::new() };
        let pods = self.pods.range(first..).take_while(move |(id, _)| id.namespace == name);
        pods.map(|(id, pod)| self.view(id, pod))
    }

    /// Pods that have the address. Host-network pods are not included.
    pub(super) fn with_address(&self, address: IpAddr) -> impl Iterator<Item = PodView<'_>> {
        self.by_address.get(&address).into_iter().flatten().filter_map(|id| self.get(id))
    }

    /// All pods with their own network namespace.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = PodView<'_>> {
        self.pods.iter().filter(|(_, pod)| is_endpoint(pod)).map(|(id, pod)| self.view(id, pod))
    }

    /// The pods that the selector matches. Searches the pods of its namespaces or the pods with a label that it
    /// requires, whichever are fewer.
    pub(super) fn select(&self, selector: &PodSelector) -> Vec<PodView<'_>> {
        let by_label = selector.pods.required().map(|(key, values)| -> Vec<&Arc<PodId>> {
            let by_value = self.by_label.get(key);
            values.iter().filter_map(|value| by_value?.get(value)).flatten().collect()
        });
        let limit = by_label.as_ref().map_or(usize::MAX, Vec::len);
        let mut views: Vec<PodView<'_>> = match &selector.namespaces {
            NamespaceSelector::Named(name) => self.in_namespace(name).take(limit.saturating_add(1)).collect(),
            NamespaceSelector::Matching(labels) => {
                let matching = self.namespaces.iter().filter(|(_, have)| labels.matches(have));
                matching.flat_map(|(name, _)| self.in_namespace(name)).take(limit.saturating_add(1)).collect()
            }
        };
        if let Some(ids) = by_label
            && views.len() > ids.len()
        {
            views = ids.into_iter().filter_map(|id| self.get(id)).collect();
        }
        views.retain(|view| view.selected_by(selector));
        views
    }
}

fn is_endpoint(pod: &Pod) -> bool {
    pod.kind == PodKind::Endpoint
}
