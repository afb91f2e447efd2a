//! Compiles policies to nf_tables chains and sets.
//!
//! Pods of this node to which the same policies apply share one chain per direction and tier. A run of consecutive rules
//! with the same action becomes a few set lookups ("peer", "peer . protocol . port", port ranges, networks), however
//! many rules it has. The cost per packet grows with the number of runs, not with the number of rules or policies.
//! Chain and set names are hashes of their definition: a pod that starts or stops changes set elements only, and equal
//! definitions share one kernel object.
//!
//! The [`Compiler`] keeps its result between snapshots; the work of an update is proportional to the change.
//! Invariant: the result is a function of the last snapshot alone. `tests/prop_history.rs` compares every history with
//! a compiler that has seen only the last snapshot.
//!
//! | Changed | Updated |
//! |---|---|
//! | a pod, or the labels of its namespace | its set elements (`sets`); its chains, if it runs on this node |
//! | a policy | chains (`chains`) and sets of the pods of this node that it selects |
//! | an interface of a pod | the chains of that pod |

mod chains;
mod interval;
mod pod_index;
mod policies;
mod rule_run;
mod selector_index;
mod set;
mod sets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use self::{
    chains::{ChainInputs, Chains, PodGroup},
    pod_index::{PodIndex, PodView},
    policies::{Policies, PolicyNumber},
    sets::Sets,
};
use super::{
    ir::{Direction, Snapshot, Tier, TierDefault},
    packet_log::DenyLog,
};
use crate::{
    delta::changes,
    model::{Endpoint, Family, Labels, PodId},
    names::{ChainName, IfName},
    ruleset::Comments,
    table::CompiledPolicy,
};

/// Compiles the policies for the pods of this node with a new [`Compiler`].
#[must_use]
pub fn compile(snapshot: &Snapshot, endpoints: &OrdMap<IfName, Arc<Endpoint>>, deny_log: DenyLog) -> CompiledPolicy {
    let mut compiler = Compiler::new(deny_log);
    compiler.update(snapshot, endpoints);
    compiler.compiled()
}

/// The incremental compiler. It holds the result for the last snapshot.
#[derive(Debug)]
pub struct Compiler {
    deny_log: DenyLog,
    /// The tiers of the last snapshot. Its namespaces and pods are in `pod_index`.
    last_tiers: Vec<Tier>,
    pod_index: PodIndex,
    policies: Policies,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    local_pods: BTreeMap<IfName, LocalPod>,
    sets: Sets,
    chains: Chains,
    ingress: OrdMap<IfName, ChainName>,
    egress: OrdMap<IfName, ChainName>,
}

/// A pod of this node.
#[derive(Debug)]
struct LocalPod {
    /// The policies that apply to it, in evaluation order.
    applied: Vec<PolicyNumber>,
    groups: BTreeMap<Direction, Arc<PodGroup>>,
}

/// Interfaces of this node whose compiled policy is out of date.
#[derive(Default)]
struct DirtyInterfaces {
    /// The list of policies that apply to the pod has to be determined again.
    policies: BTreeSet<IfName>,
    /// The list of policies is right, but the chains may differ.
    chains: BTreeSet<IfName>,
}

impl Compiler {
    /// A compiler without pods and policies.
    #[must_use]
    pub fn new(deny_log: DenyLog) -> Self {
        Self {
            deny_log,
            last_tiers: Vec::new(),
            pod_index: PodIndex::default(),
            policies: Policies::default(),
            endpoints: OrdMap::new(),
            local_pods: BTreeMap::new(),
            sets: Sets::default(),
            chains: Chains::default(),
            ingress: OrdMap::new(),
            egress: OrdMap::new(),
        }
    }

    /// Updates the compiled policy to this snapshot and these pods of this node.
    ///
    /// A pod that no policy selects in a direction has no chain for it. A pod that is missing from the snapshot gets a
    /// chain that drops everything, because its policies are not known yet. With [`DenyLog::Enabled`] a log rule
    /// precedes each rule that drops. Consecutive Log rules become set lookups as well; a packet is logged once for
    /// each lookup that matches.
    pub fn update(&mut self, snapshot: &Snapshot, endpoints: &OrdMap<IfName, Arc<Endpoint>>) {
        let defaults = |tiers: &[Tier]| tiers.iter().map(|tier| tier.default).collect::<Vec<TierDefault>>();
        if defaults(&snapshot.tiers) != defaults(&self.last_tiers) && !self.last_tiers.is_empty() {
            *self = Self::new(self.deny_log);
        }
        let mut dirty = DirtyInterfaces::default();
        self.update_namespaces(snapshot, &mut dirty);
        self.update_pods(snapshot, &mut dirty);
        self.update_policies(snapshot, &mut dirty);
        self.update_endpoints(endpoints, &mut dirty);
        self.update_chains(dirty, &defaults(&snapshot.tiers));
        self.last_tiers.clone_from(&snapshot.tiers);
    }

    /// The compiled policy. It is a cheap copy that shares its sets and chains with the compiler.
    #[must_use]
    pub fn compiled(&self) -> CompiledPolicy {
        CompiledPolicy {
            sets: self.sets.sets().clone(),
            chains: self.chains.chains().clone(),
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            comments: Comments { chains: self.chains.comments().clone(), sets: self.sets.comments().clone() },
        }
    }

    /// The pods of the last snapshot that have the address. Host-network pods are not included.
    pub fn pods_with_address(&self, address: IpAddr) -> impl Iterator<Item = &PodId> {
        self.pod_index.with_address(address).map(|view| view.id)
    }

    fn update_namespaces(&mut self, snapshot: &Snapshot, dirty: &mut DirtyInterfaces) {
        let last = self.pod_index.namespaces().clone();
        for (name, before, after) in changes(&last, &snapshot.namespaces) {
            self.pod_index.set_namespace(name, after);
            for view in self.pod_index.in_namespace(name) {
                let before = PodView { namespace: before.map(|labels: &Arc<Labels>| &**labels), ..view };
                self.sets.update_pod(Some(before), Some(view), &self.pod_index);
            }
            let on_node = self.endpoints.iter().filter(|(_, endpoint)| endpoint.pod.namespace == *name);
            dirty.policies.extend(on_node.map(|(interface, _)| interface.clone()));
        }
        self.pod_index.share_namespaces(&snapshot.namespaces);
    }

    fn update_pods(&mut self, snapshot: &Snapshot, dirty: &mut DirtyInterfaces) {
        let last = self.pod_index.pods().clone();
        for (id, before, after) in changes(&last, &snapshot.pods) {
            self.pod_index.set_pod(id, after);
            let view = |pod| self.pod_index.view(id, pod);
            self.sets.update_pod(before.map(|pod| view(&**pod)), after.map(|pod| view(&**pod)), &self.pod_index);
            dirty.policies.extend(self.interfaces_of(id));
        }
        self.pod_index.share_pods(&snapshot.pods);
    }

    fn interfaces_of(&self, id: &PodId) -> impl Iterator<Item = IfName> {
        self.endpoints.iter().filter(move |(_, endpoint)| endpoint.pod == *id).map(|(interface, _)| interface.clone())
    }

    fn update_policies(&mut self, snapshot: &Snapshot, dirty: &mut DirtyInterfaces) {
        for (n, tier) in snapshot.tiers.iter().enumerate() {
            let last = self.last_tiers.get(n).map(|tier| tier.policies.clone()).unwrap_or_default();
            for (id, _, after) in changes(&last, &tier.policies) {
                let (before, after) = self.policies.set(n, id, after);
                for (interface, local) in &mut self.local_pods {
                    let Some(endpoint) = self.endpoints.get(interface) else { continue };
                    let Some(view) = self.pod_index.get(&endpoint.pod) else { continue };
                    let had = before.and_then(|before| local.applied.iter().position(|number| *number == before));
                    let has = after.filter(|after| self.policies.applies(*after, &view));
                    if let Some(position) = had {
                        local.applied.remove(position);
                    }
                    if let Some(number) = has {
                        let position =
                            local.applied.partition_point(|other| self.policies.compare(*other, number).is_lt());
                        local.applied.insert(position, number);
                    }
                    if had.is_some() || has.is_some() {
                        dirty.chains.insert(interface.clone());
                    }
                }
                if let Some(before) = before {
                    self.policies.remove(before);
                }
            }
        }
    }

    fn update_endpoints(&mut self, endpoints: &OrdMap<IfName, Arc<Endpoint>>, dirty: &mut DirtyInterfaces) {
        let last = std::mem::replace(&mut self.endpoints, endpoints.clone());
        for (interface, _, _) in changes(&last, endpoints) {
            dirty.policies.insert(interface.clone());
        }
    }

    fn update_chains(&mut self, dirty: DirtyInterfaces, defaults: &[TierDefault]) {
        let DirtyInterfaces { policies, mut chains } = dirty;
        for interface in policies {
            let Some(endpoint) = self.endpoints.get(&interface) else {
                chains.insert(interface);
                continue;
            };
            let applied = self.pod_index.get(&endpoint.pod).filter(PodView::is_endpoint);
            let applied = applied.map(|view| self.policies.applied(&view)).unwrap_or_default();
            let local = || LocalPod { applied: Vec::new(), groups: BTreeMap::new() };
            self.local_pods.entry(interface.clone()).or_insert_with(local).applied = applied;
            chains.insert(interface);
        }
        // Release the old groups last, so that a set that a new chain also uses is not deleted and recreated.
        let mut released = Vec::new();
        for interface in chains {
            for direction in Direction::ALL {
                let want = self.group(&interface, direction);
                let have = self.local_pods.get(&interface).and_then(|local| local.groups.get(&direction));
                if have.map(|group| &**group) == want.as_ref() {
                    continue;
                }
                let inputs = ChainInputs {
                    pod_index: &self.pod_index,
                    policies: &self.policies,
                    defaults,
                    deny_log: self.deny_log,
                };
                let acquired = want.map(|group| self.chains.acquire(group, &mut self.sets, inputs));
                let map = match direction {
                    Direction::Ingress => &mut self.ingress,
                    Direction::Egress => &mut self.egress,
                };
                match &acquired {
                    Some((_, chain)) => _ = map.insert(interface.clone(), chain.clone()),
                    None => _ = map.remove(&interface),
                }
                if let Some(local) = self.local_pods.get_mut(&interface) {
                    released.extend(match acquired {
                        Some((group, _)) => local.groups.insert(direction, group),
                        None => local.groups.remove(&direction),
                    });
                }
            }
            if !self.endpoints.contains_key(&interface) {
                self.local_pods.remove(&interface);
            }
        }
        released.iter().for_each(|group| self.chains.release(group, &mut self.sets));
    }

    /// The group of the interface's pod in a direction; `None` if no policy isolates the pod.
    fn group(&self, interface: &IfName, direction: Direction) -> Option<PodGroup> {
        let endpoint = self.endpoints.get(interface)?;
        let Some(view) = self.pod_index.get(&endpoint.pod) else { return Some(PodGroup::Unknown(direction)) };
        let applied = &self.local_pods.get(interface)?.applied;
        let applied: Vec<PolicyNumber> = applied.iter().copied().filter(|number| number.has_rules(direction)).collect();
        if applied.is_empty() {
            return None;
        }
        let own_ports = match direction {
            Direction::Ingress => self.policies.named_ports(&applied, &view.pod.named_ports),
            Direction::Egress => BTreeSet::new(),
        };
        let families = endpoint.addresses.iter().map(|a| Family::of(*a)).collect();
        Some(PodGroup::Selected { direction, families, applied, own_ports })
    }
}
