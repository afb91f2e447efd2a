//! Policies as lookups.
//!
//! A chain for every set of pods to which the same policies apply in a direction, and in it one lookup each for
//! "peer", "peer . protocol . port", port ranges and networks, however many policies there are: what costs a packet is
//! the number of alternations of action, not of rules. Chains and sets are named by the hash of what they mean, so that
//! pods that come and go change elements only, and equal content is one object for all chains.
//!
//! The [`Compiler`] remembers what it has made of the last snapshot, and its work is in proportion to what has changed
//! since. PortMatch it makes is a function of the snapshot alone: a property test holds every history against a compiler
//! that has seen the last snapshot only.
//!
//! | Changed | Touched |
//! |---|---|
//! | a pod, or its namespace's labels | the elements that it gives to sets (`sets`); if it is of this node, its chains |
//! | a policy | the pods of this node that it selects, and their chains (`chains`) with their sets |
//! | a pod's interface | its chains |

mod anchors;
mod chains;
mod interval;
mod policies;
mod run;
mod set;
mod sets;
#[cfg(test)]
mod tests;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use self::{
    chains::{ChainInputs, Chains, PodGroup},
    policies::{Policies, PolicyNumber},
    sets::Sets,
    world::{PodIndex, PodView},
};
use super::{
    ir::{Direction, Snapshot, TierDefault},
    packet_log::DenyLog,
};
use crate::{
    delta::changes,
    model::{Endpoint, Family, Labels, PodId},
    names::{ChainName, IfName},
    ruleset::Comments,
    table::CompiledPolicy,
};

/// Compiles what the policies say about the pods of this node, from nothing: [`Compiler::update`] once.
#[must_use]
pub fn compile(snapshot: &Snapshot, endpoints: &OrdMap<IfName, Arc<Endpoint>>, deny_log: DenyLog) -> CompiledPolicy {
    let mut compiler = Compiler::new(deny_log);
    compiler.update(snapshot, endpoints);
    compiler.part()
}

/// PortMatch was made of the last snapshot, ready for the next one.
#[derive(Debug)]
pub struct Compiler {
    deny_log: DenyLog,
    /// The last snapshot, without its namespaces and pods: those are the world's.
    last: Snapshot,
    world: PodIndex,
    policies: Policies,
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    locals: BTreeMap<IfName, LocalPod>,
    sets: Sets,
    chains: Chains,
    ingress: OrdMap<IfName, ChainName>,
    egress: OrdMap<IfName, ChainName>,
}

/// A pod of this node.
#[derive(Debug)]
struct LocalPod {
    /// The policies that apply to it, in the order in which a packet meets them.
    applied: Vec<PolicyNumber>,
    groups: BTreeMap<Direction, Arc<PodGroup>>,
}

/// Interfaces whose pods need another look.
#[derive(Default)]
struct DirtyInterfaces {
    /// Which policies apply to them is not known.
    policies: BTreeSet<IfName>,
    /// Their chains may be others.
    chains: BTreeSet<IfName>,
}

impl Compiler {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(deny_log: DenyLog) -> Self {
        Self {
            deny_log,
            last: Snapshot::default(),
            world: PodIndex::default(),
            policies: Policies::default(),
            endpoints: OrdMap::new(),
            locals: BTreeMap::new(),
            sets: Sets::default(),
            chains: Chains::default(),
            ingress: OrdMap::new(),
            egress: OrdMap::new(),
        }
    }

    /// Brings what it has made to this snapshot and these pods of this node.
    ///
    /// A pod that no policy selects in a direction has no chain there. One that the snapshot does not know has a chain
    /// that drops everything: nobody can say yet what it may do. With the deny log, what is dropped is told of before.
    /// Neighbouring rules that log are lookups, too: a packet that several of these find is told of by each.
    pub fn update(&mut self, snapshot: &Snapshot, endpoints: &OrdMap<IfName, Arc<Endpoint>>) {
        let shape = |snapshot: &Snapshot| snapshot.tiers.iter().map(|tier| tier.default).collect::<Vec<TierDefault>>();
        if shape(snapshot) != shape(&self.last) && !self.last.tiers.is_empty() {
            *self = Self::new(self.deny_log);
        }
        let mut stale = DirtyInterfaces::default();
        self.follow_namespaces(snapshot, &mut stale);
        self.follow_pods(snapshot, &mut stale);
        self.follow_policies(snapshot, &mut stale);
        self.follow_endpoints(endpoints, &mut stale);
        self.regroup(stale, &shape(snapshot));
        self.last.tiers.clone_from(&snapshot.tiers);
    }

    /// PortMatch it has made. The copy shares everything.
    #[must_use]
    pub fn part(&self) -> CompiledPolicy {
        CompiledPolicy {
            sets: self.sets.filled().clone(),
            chains: self.chains.made().clone(),
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            comments: Comments { chains: self.chains.comments().clone(), sets: self.sets.comments().clone() },
        }
    }

    /// The pods with a network of their own that have the address, in the snapshot that it has seen last.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &PodId> {
        self.world.at(address).map(|view| view.id)
    }

    fn follow_namespaces(&mut self, snapshot: &Snapshot, stale: &mut DirtyInterfaces) {
        let last = self.world.namespaces().clone();
        for (name, before, after) in changes(&last, &snapshot.namespaces) {
            self.world.set_namespace(name, after);
            for view in self.world.of_namespace(name) {
                let before = PodView { namespace: before.map(|labels: &Arc<Labels>| &**labels), ..view };
                self.sets.follow(Some(before), Some(view), &self.world);
            }
            let there = self.endpoints.iter().filter(|(_, endpoint)| endpoint.pod.namespace == *name);
            stale.policies.extend(there.map(|(interface, _)| interface.clone()));
        }
        self.world.share_namespaces(&snapshot.namespaces);
    }

    fn follow_pods(&mut self, snapshot: &Snapshot, stale: &mut DirtyInterfaces) {
        let last = self.world.pods().clone();
        for (id, before, after) in changes(&last, &snapshot.pods) {
            self.world.set_pod(id, after);
            let view = |pod| self.world.view(id, pod);
            self.sets.follow(before.map(|pod| view(&**pod)), after.map(|pod| view(&**pod)), &self.world);
            stale.policies.extend(self.interfaces_of(id));
        }
        self.world.share_pods(&snapshot.pods);
    }

    fn interfaces_of(&self, id: &PodId) -> impl Iterator<Item = IfName> {
        self.endpoints.iter().filter(move |(_, endpoint)| endpoint.pod == *id).map(|(interface, _)| interface.clone())
    }

    fn follow_policies(&mut self, snapshot: &Snapshot, stale: &mut DirtyInterfaces) {
        for (n, tier) in snapshot.tiers.iter().enumerate() {
            let last = self.last.tiers.get(n).map(|tier| tier.policies.clone()).unwrap_or_default();
            for (id, _, after) in changes(&last, &tier.policies) {
                let (before, after) = self.policies.set(n, id, after);
                for (interface, local) in &mut self.locals {
                    let Some(endpoint) = self.endpoints.get(interface) else { continue };
                    let Some(view) = self.world.get(&endpoint.pod) else { continue };
                    let had = before.and_then(|before| local.applied.iter().position(|number| *number == before));
                    let has = after.filter(|after| self.policies.applies(*after, &view));
                    if let Some(place) = had {
                        local.applied.remove(place);
                    }
                    if let Some(number) = has {
                        let place = local.applied.partition_point(|other| self.policies.order(*other, number).is_lt());
                        local.applied.insert(place, number);
                    }
                    if had.is_some() || has.is_some() {
                        stale.chains.insert(interface.clone());
                    }
                }
                if let Some(before) = before {
                    self.policies.forget(before);
                }
            }
        }
    }

    fn follow_endpoints(&mut self, endpoints: &OrdMap<IfName, Arc<Endpoint>>, stale: &mut DirtyInterfaces) {
        let last = std::mem::replace(&mut self.endpoints, endpoints.clone());
        for (interface, _, _) in changes(&last, endpoints) {
            stale.policies.insert(interface.clone());
        }
    }

    fn regroup(&mut self, stale: DirtyInterfaces, defaults: &[TierDefault]) {
        let DirtyInterfaces { policies, mut chains } = stale;
        for interface in policies {
            let Some(endpoint) = self.endpoints.get(&interface) else {
                chains.insert(interface);
                continue;
            };
            let applied = self.world.get(&endpoint.pod).filter(PodView::is_endpoint);
            let applied = applied.map(|view| self.policies.applied(&view)).unwrap_or_default();
            let local = || LocalPod { applied: Vec::new(), groups: BTreeMap::new() };
            self.locals.entry(interface.clone()).or_insert_with(local).applied = applied;
            chains.insert(interface);
        }
        // PortMatch is left goes last: a set that the next chain needs is not made again.
        let mut left = Vec::new();
        for interface in chains {
            for direction in Direction::ALL {
                let want = self.group(&interface, direction);
                let have = self.locals.get(&interface).and_then(|local| local.groups.get(&direction));
                if have.map(|group| &**group) == want.as_ref() {
                    continue;
                }
                let source =
                    ChainInputs { world: &self.world, policies: &self.policies, defaults, deny_log: self.deny_log };
                let entered = want.map(|group| self.chains.enter(group, &mut self.sets, source));
                let map = match direction {
                    Direction::Ingress => &mut self.ingress,
                    Direction::Egress => &mut self.egress,
                };
                match &entered {
                    Some((_, chain)) => _ = map.insert(interface.clone(), chain.clone()),
                    None => _ = map.remove(&interface),
                }
                if let Some(local) = self.locals.get_mut(&interface) {
                    left.extend(match entered {
                        Some((group, _)) => local.groups.insert(direction, group),
                        None => local.groups.remove(&direction),
                    });
                }
            }
            if !self.endpoints.contains_key(&interface) {
                self.locals.remove(&interface);
            }
        }
        left.iter().for_each(|group| self.chains.leave(group, &mut self.sets));
    }

    /// The group that the pod of an interface belongs to in a direction; `None` if nothing isolates it.
    fn group(&self, interface: &IfName, direction: Direction) -> Option<PodGroup> {
        let endpoint = self.endpoints.get(interface)?;
        let Some(view) = self.world.get(&endpoint.pod) else { return Some(PodGroup::Unknown(direction)) };
        let applied = &self.locals.get(interface)?.applied;
        let applied: Vec<PolicyNumber> = applied.iter().copied().filter(|number| number.is_about(direction)).collect();
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
