//! The index itself.

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
    listing::ListState,
    network_policy,
    node::{self, NodeRecord},
    pod,
};

/// Everything that the agent knows of the cluster.
#[derive(Debug)]
pub struct Index {
    me: NodeName,
    listings: ListStates,
    nodes: OrdMap<NodeName, Arc<NodeRecord>>,
    snapshot: Snapshot,
    rejected: BTreeMap<PolicyId, Vec<RejectedPart>>,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    /// What the API says of the addresses of pods with an endpoint; the snapshot has the endpoint's, too.
    reported_addresses: BTreeMap<PodId, BTreeSet<IpAddr>>,
    /// The UIDs that the kubelet gives the pods of this node.
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
    /// An empty index of an agent on this node.
    #[must_use]
    pub fn new(me: NodeName) -> Self {
        let tier = Tier { name: "NetworkPolicy".to_owned(), default: TierDefault::Deny, policies: OrdMap::new() };
        Self {
            me,
            listings: ListStates {
                nodes: ListState::Never,
                pods: ListState::Never,
                namespaces: ListState::Never,
                policies: ListState::Never,
            },
            nodes: OrdMap::new(),
            snapshot: Snapshot { tiers: vec![tier], ..Snapshot::default() },
            rejected: BTreeMap::new(),
            endpoints: OrdMap::new(),
            reported_addresses: BTreeMap::new(),
            uids: BTreeMap::new(),
        }
    }

    /// Takes a change in. An object without a name cannot be one of the API server's and is passed over.
    pub fn apply(&mut self, event: Event) -> Dirty {
        let synced_before = self.synced();
        let dirty = match event {
            Event::Node(change) => self.fold(*change),
            Event::Pod(change) => self.fold(*change),
            Event::Namespace(change) => self.fold(*change),
            Event::NetworkPolicy(change) => self.fold(*change),
        };
        if self.synced() && !synced_before { Dirty::everything() } else { dirty }
    }

    fn fold<K: Kind>(&mut self, change: ObjectChange<K>) -> Dirty {
        match change {
            ObjectChange::Applied(object) | ObjectChange::Listed(object) => {
                let Some(key) = object.key() else { return Dirty::nothing() };
                K::listing(self).saw(key.clone());
                object.put(self, key)
            }
            ObjectChange::Undecodable(object) => {
                if let Some(key) = object.key() {
                    K::listing(self).saw(key);
                }
                Dirty::nothing()
            }
            ObjectChange::Deleted(object) => {
                let Some(key) = object.key() else { return Dirty::nothing() };
                K::listing(self).lost(&key);
                K::remove(self, &key)
            }
            ObjectChange::ListStarted => {
                K::listing(self).start();
                Dirty::nothing()
            }
            ObjectChange::ListDone => {
                let mut dirty = Dirty::nothing();
                if let Some(seen) = K::listing(self).finish() {
                    let gone: Vec<K::Key> = K::keys(self).filter(|key| !seen.contains(key)).cloned().collect();
                    gone.iter().for_each(|key| dirty.merge(K::remove(self, key)));
                }
                dirty
            }
        }
    }

    /// Whether every kind has been listed once.
    #[must_use]
    pub const fn synced(&self) -> bool {
        let ListStates { nodes, pods, namespaces, policies } = &self.listings;
        nodes.has_synced() && pods.has_synced() && namespaces.has_synced() && policies.has_synced()
    }

    /// The cluster as policy sees it; `None` until [`Index::synced`].
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.synced().then_some(&self.snapshot)
    }

    /// Parts of policies that cannot be used, in the order of the policies.
    pub fn rejected(&self) -> impl Iterator<Item = &RejectedPart> {
        self.rejected.values().flatten()
    }

    /// All nodes, this one included; `None` until [`Index::synced`].
    #[must_use]
    pub fn nodes(&self) -> Option<&OrdMap<NodeName, Arc<NodeRecord>>> {
        self.synced().then_some(&self.nodes)
    }

    /// This node's own object, as soon as it is known.
    #[must_use]
    pub fn own_node(&self) -> Option<&NodeRecord> {
        self.nodes.get(&self.me).map(|node| &**node)
    }

    /// Whether the pod is known, so that the snapshot says which policies apply to it. With a UID it is that very pod of
    /// this node and not its predecessor of the same name, whose labels may be others.
    #[must_use]
    pub fn pod_known(&self, id: &PodId, uid: Option<&str>) -> bool {
        let same = |uid: &str| self.uids.get(id).is_some_and(|have| have == uid);
        self.snapshot.pods.contains_key(id) && uid.is_none_or(same)
    }

    /// Remembers the UID of a pod of this node. Whether it is another one than before.
    fn set_uid(&mut self, id: &PodId, uid: Option<&str>) -> bool {
        let before = match uid {
            Some(uid) => self.uids.insert(id.clone(), uid.to_owned()),
            None => self.uids.remove(id),
        };
        before.as_deref() != uid
    }

    /// The interfaces of the pods of this node.
    #[must_use]
    pub const fn endpoints(&self) -> &OrdMap<IfName, Arc<Endpoint>> {
        &self.endpoints
    }

    /// A pod of this node has got its interface. From now on its addresses count, whether the API server knows them
    /// or not: other pods of this node may meet it at once.
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

    /// The interface is gone.
    pub fn remove_local_endpoint(&mut self, interface: &IfName) -> Dirty {
        let Some(endpoint) = self.endpoints.remove(interface) else { return Dirty::nothing() };
        self.merge_addresses(&endpoint.pod);
        Dirty::only(DirtyPart::Policy)
    }

    /// Gives the pod the addresses that the API reports and those of its endpoints.
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
        // The one tier is made in `new` and never goes.
        &mut self.snapshot.tiers[0].policies
    }
}

/// A watched kind.
trait Kind: Sized {
    type Key: Ord + Clone + 'static;

    fn key(&self) -> Option<Self::Key>;
    fn listing(index: &mut Index) -> &mut ListState<Self::Key>;
    fn keys(index: &Index) -> impl Iterator<Item = &Self::Key>;
    fn put(self, index: &mut Index, key: Self::Key) -> Dirty;
    fn remove(index: &mut Index, key: &Self::Key) -> Dirty;
}

impl Kind for Node {
    type Key = NodeName;

    fn key(&self) -> Option<NodeName> {
        node::name(self)
    }

    fn listing(index: &mut Index) -> &mut ListState<NodeName> {
        &mut index.listings.nodes
    }

    fn keys(index: &Index) -> impl Iterator<Item = &NodeName> {
        index.nodes.keys()
    }

    fn put(self, index: &mut Index, name: NodeName) -> Dirty {
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

    fn listing(index: &mut Index) -> &mut ListState<PodId> {
        &mut index.listings.pods
    }

    fn keys(index: &Index) -> impl Iterator<Item = &PodId> {
        index.snapshot.pods.keys()
    }

    fn put(self, index: &mut Index, id: PodId) -> Dirty {
        let uid = pod::uid(&self);
        let Some(pod) = pod::convert(self) else { return Self::remove(index, &id) };
        // Pods of other nodes start elsewhere.
        let another = index.set_uid(&id, uid.as_deref().filter(|_| pod.node.as_ref() == Some(&index.me)));
        index.reported_addresses.remove(&id);
        let before = index.snapshot.pods.insert(id.clone(), Arc::new(pod));
        index.merge_addresses(&id);
        if !another && before.as_ref() == index.snapshot.pods.get(&id) {
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

    fn listing(index: &mut Index) -> &mut ListState<String> {
        &mut index.listings.namespaces
    }

    fn keys(index: &Index) -> impl Iterator<Item = &String> {
        index.snapshot.namespaces.keys()
    }

    fn put(self, index: &mut Index, name: String) -> Dirty {
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

    fn listing(index: &mut Index) -> &mut ListState<PolicyId> {
        &mut index.listings.policies
    }

    fn keys(index: &Index) -> impl Iterator<Item = &PolicyId> {
        index.snapshot.tiers[0].policies.keys()
    }

    fn put(self, index: &mut Index, id: PolicyId) -> Dirty {
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
