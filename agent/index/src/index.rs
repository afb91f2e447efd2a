//! The index: applies watch events to the known state of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod as KubePod},
    networking::v1::NetworkPolicy,
};
use towpath_core::{
    model::{Endpoint, Labels, NodeName, PodId},
    names::IfName,
    policy::ir::{Policy, PolicyId, RejectedPart, Snapshot, Tier, TierDefault},
};

use crate::{
    event::{Dirty, DirtyPart, Event, ObjectChange},
    list_state::ListState,
    network_policy,
    node::{self, NodeRecord},
    pod,
};

/// The agent's view of the cluster.
#[derive(Debug)]
pub struct Index {
    me: NodeName,
    list_states: ListStates,
    nodes: OrdMap<NodeName, Arc<NodeRecord>>,
    snapshot: Snapshot,
    rejected: BTreeMap<PolicyId, Vec<RejectedPart>>,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    /// The addresses in the pod status, for pods with a local endpoint. In the snapshot they are merged with the addresses
    /// of the endpoint.
    reported_addresses: BTreeMap<PodId, BTreeSet<IpAddr>>,
    /// The UIDs of this node's pods, as the kubelet knows them.
    uids: BTreeMap<PodId, String>,
}

#[derive(Debug)]
struct ListStates {
    nodes: ListState<NodeName>,
    pods: ListState<PodId>,
    namespaces: ListState<String>,
    policies: ListState<PolicyId>,
}

impl Index {
    /// An empty index for the agent on node `me`.
    #[must_use]
    pub fn new(me: NodeName) -> Self {
        let tier = Tier { name: "NetworkPolicy".to_owned(), default: TierDefault::Deny, policies: OrdMap::new() };
        Self {
            me,
            list_states: ListStates {
                nodes: ListState::NotListed,
                pods: ListState::NotListed,
                namespaces: ListState::NotListed,
                policies: ListState::NotListed,
            },
            nodes: OrdMap::new(),
            snapshot: Snapshot { tiers: vec![tier], ..Snapshot::default() },
            rejected: BTreeMap::new(),
            endpoints: OrdMap::new(),
            reported_addresses: BTreeMap::new(),
            uids: BTreeMap::new(),
        }
    }

    /// Applies an event. Objects without a name are ignored; the API server does not send any.
    pub fn apply(&mut self, event: Event) -> Dirty {
        let synced_before = self.synced();
        let dirty = match event {
            Event::Node(change) => self.apply_change(*change),
            Event::Pod(change) => self.apply_change(*change),
            Event::Namespace(change) => self.apply_change(*change),
            Event::NetworkPolicy(change) => self.apply_change(*change),
        };
        if self.synced() && !synced_before { Dirty::everything() } else { dirty }
    }

    fn apply_change<K: Kind>(&mut self, change: ObjectChange<K>) -> Dirty {
        match change {
            ObjectChange::Applied(object) | ObjectChange::Listed(object) => {
                let Some(key) = object.key() else { return Dirty::nothing() };
                K::list_state(self).insert(key.clone());
                object.apply(self, key)
            }
            ObjectChange::Undecodable(object) => {
                if let Some(key) = object.key() {
                    K::list_state(self).insert(key);
                }
                Dirty::nothing()
            }
            ObjectChange::Deleted(object) => {
                let Some(key) = object.key() else { return Dirty::nothing() };
                K::list_state(self).remove(&key);
                K::remove(self, &key)
            }
            ObjectChange::ListStarted => {
                K::list_state(self).start();
                Dirty::nothing()
            }
            ObjectChange::ListDone => {
                let mut dirty = Dirty::nothing();
                if let Some(seen) = K::list_state(self).finish() {
                    let deleted: Vec<K::Key> = K::keys(self).filter(|key| !seen.contains(key)).cloned().collect();
                    deleted.iter().for_each(|key| dirty.merge(K::remove(self, key)));
                }
                dirty
            }
        }
    }

    /// Whether every kind has been listed once.
    #[must_use]
    pub const fn synced(&self) -> bool {
        let ListStates { nodes, pods, namespaces, policies } = &self.list_states;
        nodes.has_synced() && pods.has_synced() && namespaces.has_synced() && policies.has_synced()
    }

    /// The input of policy evaluation; `None` until [`Index::synced`].
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.synced().then_some(&self.snapshot)
    }

    /// The rejected parts of policies, sorted by policy.
    pub fn rejected(&self) -> impl Iterator<Item = &RejectedPart> {
        self.rejected.values().flatten()
    }

    /// All nodes, including this one; `None` until [`Index::synced`].
    #[must_use]
    pub fn nodes(&self) -> Option<&OrdMap<NodeName, Arc<NodeRecord>>> {
        self.synced().then_some(&self.nodes)
    }

    /// This node's own Node, as soon as it is known, even before [`Index::synced`].
    #[must_use]
    pub fn own_node(&self) -> Option<&NodeRecord> {
        self.nodes.get(&self.me).map(|node| &**node)
    }

    /// Whether the snapshot contains the pod. With a UID, whether it contains that pod of this node and not a predecessor
    /// of the same name, whose labels may differ.
    #[must_use]
    pub fn pod_known(&self, id: &PodId, uid: Option<&str>) -> bool {
        let same = |uid: &str| self.uids.get(id).is_some_and(|have| have == uid);
        self.snapshot.pods.contains_key(id) && uid.is_none_or(same)
    }

    /// Stores the UID of a pod of this node. Returns whether it differs from the previous one.
    fn set_uid(&mut self, id: &PodId, uid: Option<&str>) -> bool {
        let before = match uid {
            Some(uid) => self.uids.insert(id.clone(), uid.to_owned()),
            None => self.uids.remove(id),
        };
        before.as_deref() != uid
    }

    /// The endpoints of this node's pods, by interface.
    #[must_use]
    pub const fn endpoints(&self) -> &OrdMap<IfName, Arc<Endpoint>> {
        &self.endpoints
    }

    /// Adds or replaces the endpoint of a pod of this node. Its addresses take effect before the API server reports them,
    /// because other pods of this node can connect to it at once.
    pub fn set_local_endpoint(&mut self, endpoint: Endpoint) -> Dirty {
        if self.endpoints.get(&endpoint.interface).is_some_and(|have| **have == endpoint) {
            return Dirty::nothing();
        }
        let id = endpoint.pod.clone();
        let before = self.endpoints.insert(endpoint.interface.clone(), Arc::new(endpoint));
        if let Some(before) = before.filter(|b| b.pod != id) {
            self.merge_addresses(&before.pod);
        }
        self.merge_addresses(&id);
        Dirty::only(DirtyPart::Policy)
    }

    /// Removes the endpoint with this interface.
    pub fn remove_local_endpoint(&mut self, interface: &IfName) -> Dirty {
        let Some(endpoint) = self.endpoints.remove(interface) else { return Dirty::nothing() };
        self.merge_addresses(&endpoint.pod);
        Dirty::only(DirtyPart::Policy)
    }

    /// Sets the pod's addresses to those in its status and those of its endpoints.
    fn merge_addresses(&mut self, id: &PodId) {
        let Some(pod) = self.snapshot.pods.get_mut(id).map(Arc::make_mut) else {
            self.reported_addresses.remove(id);
            return;
        };
        let local: BTreeSet<IpAddr> =
            self.endpoints.values().filter(|e| e.pod == *id).flat_map(|e| e.addresses.iter().copied()).collect();
        let reported = self.reported_addresses.remove(id).unwrap_or_else(|| pod.addresses.clone());
        pod.addresses = &reported | &local;
        if !local.is_empty() {
            self.reported_addresses.insert(id.clone(), reported);
        }
    }

    fn policies(&mut self) -> &mut OrdMap<PolicyId, Arc<Policy>> {
        // `new` creates the only tier; it is never removed.
        &mut self.snapshot.tiers[0].policies
    }
}

/// A watched kind.
trait Kind: Sized {
    type Key: Ord + Clone + 'static;

    fn key(&self) -> Option<Self::Key>;
    fn list_state(index: &mut Index) -> &mut ListState<Self::Key>;
    fn keys(index: &Index) -> impl Iterator<Item = &Self::Key>;
    fn apply(self, index: &mut Index, key: Self::Key) -> Dirty;
    fn remove(index: &mut Index, key: &Self::Key) -> Dirty;
}

impl Kind for Node {
    type Key = NodeName;

    fn key(&self) -> Option<NodeName> {
        node::name(self)
    }

    fn list_state(index: &mut Index) -> &mut ListState<NodeName> {
        &mut index.list_states.nodes
    }

    fn keys(index: &Index) -> impl Iterator<Item = &NodeName> {
        index.nodes.keys()
    }

    fn apply(self, index: &mut Index, name: NodeName) -> Dirty {
        let record = node::convert(self);
        if index.nodes.get(&name).is_some_and(|have| **have == record) {
            return Dirty::nothing();
        }
        index.nodes.insert(name, Arc::new(record));
        Dirty::only(DirtyPart::Nodes)
    }

    fn remove(index: &mut Index, name: &NodeName) -> Dirty {
        index.nodes.remove(name).map_or_else(Dirty::nothing, |_| Dirty::only(DirtyPart::Nodes))
    }
}

impl Kind for KubePod {
    type Key = PodId;

    fn key(&self) -> Option<PodId> {
        pod::id(self)
    }

    fn list_state(index: &mut Index) -> &mut ListState<PodId> {
        &mut index.list_states.pods
    }

    fn keys(index: &Index) -> impl Iterator<Item = &PodId> {
        index.snapshot.pods.keys()
    }

    fn apply(self, index: &mut Index, id: PodId) -> Dirty {
        let uid = pod::uid(&self);
        let Some(pod) = pod::convert(self) else { return Self::remove(index, &id) };
        // UIDs are needed for pods that start on this node only.
        let uid_changed = index.set_uid(&id, uid.as_deref().filter(|_| pod.node.as_ref() == Some(&index.me)));
        index.reported_addresses.remove(&id);
        let before = index.snapshot.pods.insert(id.clone(), Arc::new(pod));
        index.merge_addresses(&id);
        if !uid_changed && before.as_ref() == index.snapshot.pods.get(&id) {
            Dirty::nothing()
        } else {
            Dirty::only(DirtyPart::Policy)
        }
    }

    fn remove(index: &mut Index, id: &PodId) -> Dirty {
        index.reported_addresses.remove(id);
        index.uids.remove(id);
        index.snapshot.pods.remove(id).map_or_else(Dirty::nothing, |_| Dirty::only(DirtyPart::Policy))
    }
}

impl Kind for Namespace {
    type Key = String;

    fn key(&self) -> Option<String> {
        self.metadata.name.clone()
    }

    fn list_state(index: &mut Index) -> &mut ListState<String> {
        &mut index.list_states.namespaces
    }

    fn keys(index: &Index) -> impl Iterator<Item = &String> {
        index.snapshot.namespaces.keys()
    }

    fn apply(self, index: &mut Index, name: String) -> Dirty {
        let labels: Labels = self.metadata.labels.unwrap_or_default();
        if index.snapshot.namespaces.get(&name).is_some_and(|have| **have == labels) {
            return Dirty::nothing();
        }
        index.snapshot.namespaces.insert(name, Arc::new(labels));
        Dirty::only(DirtyPart::Policy)
    }

    fn remove(index: &mut Index, name: &String) -> Dirty {
        index.snapshot.namespaces.remove(name).map_or_else(Dirty::nothing, |_| Dirty::only(DirtyPart::Policy))
    }
}

impl Kind for NetworkPolicy {
    type Key = PolicyId;

    fn key(&self) -> Option<PolicyId> {
        network_policy::id(self)
    }

    fn list_state(index: &mut Index) -> &mut ListState<PolicyId> {
        &mut index.list_states.policies
    }

    fn keys(index: &Index) -> impl Iterator<Item = &PolicyId> {
        index.snapshot.tiers[0].policies.keys()
    }

    fn apply(self, index: &mut Index, id: PolicyId) -> Dirty {
        let (policy, rejected) = network_policy::convert(&id, self);
        let rejected_before = index.rejected.remove(&id).unwrap_or_default();
        let same = index.policies().get(&id).is_some_and(|have| **have == policy) && rejected_before == rejected;
        if !rejected.is_empty() {
            index.rejected.insert(id.clone(), rejected);
        }
        index.policies().insert(id, Arc::new(policy));
        if same { Dirty::nothing() } else { Dirty::only(DirtyPart::Policy) }
    }

    fn remove(index: &mut Index, id: &PolicyId) -> Dirty {
        index.rejected.remove(id);
        index.policies().remove(id).map_or_else(Dirty::nothing, |_| Dirty::only(DirtyPart::Policy))
    }
}
