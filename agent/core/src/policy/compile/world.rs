//! The pods of the cluster as the compiler knows them, found by namespace, by label and by address. A change of a pod
//! costs what is filed of it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use super::anchors::within;
use crate::{
    model::{Labels, PodId},
    policy::ir::{NamespaceSelector, Pod, PodKind, PodSelector},
};

/// A pod as policies see it at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodView<'a> {
    pub(super) id: &'a PodId,
    pub(super) pod: &'a Pod,
    /// The labels of its namespace, if that is known.
    pub(super) namespace: Option<&'a Labels>,
}

impl PodView<'_> {
    /// Whether policies can find it at all.
    pub(super) fn is_endpoint(&self) -> bool {
        is_findable(self.pod)
    }

    pub(super) fn found_by(&self, selector: &PodSelector) -> bool {
        selector.finds(self.namespace, self.id, self.pod)
    }
}

/// NamespaceSelector and pods.
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
        let before = before.as_deref().filter(|pod| is_findable(pod));
        let after = pod.map(|pod| &**pod).filter(|pod| is_findable(pod));
        self.file_labels(&id, before, after);
        self.file_addresses(&id, before, after);
    }

    /// Holds the namespaces in the same parts as `equal`, which has the same: what the two share is not compared the next
    /// time.
    pub(super) fn share_namespaces(&mut self, equal: &OrdMap<String, Arc<Labels>>) {
        self.namespaces = equal.clone();
    }

    /// As [`PodIndex::share_namespaces`].
    pub(super) fn share_pods(&mut self, equal: &OrdMap<PodId, Arc<Pod>>) {
        self.pods = equal.clone();
    }

    fn file_labels(&mut self, id: &Arc<PodId>, before: Option<&Pod>, after: Option<&Pod>) {
        let none = Labels::new();
        let (before, after) = (before.map_or(&none, |p| &p.labels), after.map_or(&none, |p| &p.labels));
        for (key, value) in before.iter().filter(|(key, value)| after.get(*key) != Some(value)) {
            within(&mut self.by_label, key, |values| {
                within(values, value, |ids| {
                    ids.remove(id);
                    ids.is_empty()
                });
                values.is_empty()
            });
        }
        for (key, value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
            within(&mut self.by_label, key, |values| {
                within(values, value, |ids| {
                    ids.insert(Arc::clone(id));
                    false
                });
                false
            });
        }
    }

    fn file_addresses(&mut self, id: &Arc<PodId>, before: Option<&Pod>, after: Option<&Pod>) {
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

    /// The pod as it is now.
    pub(super) fn get<'a>(&'a self, id: &'a PodId) -> Option<PodView<'a>> {
        self.pods.get(id).map(|pod| self.view(id, pod))
    }

    /// All pods of a namespace.
    pub(super) fn of_namespace<'a, 'b>(&'a self, name: &'b str) -> impl Iterator<Item = PodView<'a>> + use<'a, 'b> {
        let first = PodId { namespace: name.to_owned(), name: String::new() };
        let pods = self.pods.range(first..).take_while(move |(id, _)| id.namespace == name);
        pods.map(|(id, pod)| self.view(id, pod))
    }

    /// Pods with a network of their own that claim the address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = PodView<'_>> {
        self.by_address.get(&address).into_iter().flatten().filter_map(|id| self.get(id))
    }

    /// All pods with a network of their own.
    pub(super) fn all(&self) -> impl Iterator<Item = PodView<'_>> {
        self.pods.iter().filter(|(_, pod)| is_findable(pod)).map(|(id, pod)| self.view(id, pod))
    }

    /// Those that the selector finds. It looks at the pods of its namespaces or at those with a label that it requires,
    /// whichever are fewer.
    pub(super) fn find(&self, selector: &PodSelector) -> Vec<PodView<'_>> {
        let labelled = selector.pods.required().map(|(key, values)| -> Vec<&Arc<PodId>> {
            let by_value = self.by_label.get(key);
            values.iter().filter_map(|value| by_value?.get(value)).flatten().collect()
        });
        let most = labelled.as_ref().map_or(usize::MAX, Vec::len);
        let mut views: Vec<PodView<'_>> = match &selector.namespaces {
            NamespaceSelector::Named(name) => self.of_namespace(name).take(most.saturating_add(1)).collect(),
            NamespaceSelector::Matching(labels) => {
                let matching = self.namespaces.iter().filter(|(_, have)| labels.matches(have));
                matching.flat_map(|(name, _)| self.of_namespace(name)).take(most.saturating_add(1)).collect()
            }
        };
        if let Some(ids) = labelled
            && views.len() > ids.len()
        {
            views = ids.into_iter().filter_map(|id| self.get(id)).collect();
        }
        views.retain(|view| view.found_by(selector));
        views
    }
}

fn is_findable(pod: &Pod) -> bool {
    pod.kind == PodKind::Endpoint
}
