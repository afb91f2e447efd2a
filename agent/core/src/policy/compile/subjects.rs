//! Which policies apply to a pod: found through its namespace, so that a pod does not ask every policy of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::PodId,
    policy::ir::{Direction, NamedPort, Namespaces, Pod, Policy, Port, Ports, Rule, Snapshot},
};

/// The policies that apply to a pod in a direction: for each tier that has any, its index, and theirs in order.
pub(super) type Applied = Vec<(usize, Vec<usize>)>;

/// The policies of every tier, by the namespace of their subject.
pub(super) struct Subjects<'a> {
    tiers: Vec<TierSubjects<'a>>,
}

#[derive(Default)]
struct TierSubjects<'a> {
    policies: Vec<&'a Policy>,
    of_namespace: BTreeMap<&'a str, Vec<usize>>,
    of_any_namespace: Vec<usize>,
}

impl<'a> Subjects<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let tiers = snapshot.tiers.iter().map(|tier| {
            let mut subjects = TierSubjects::default();
            for (n, policy) in tier.policies.values().enumerate() {
                subjects.policies.push(policy);
                match &policy.subject.namespaces {
                    Namespaces::Named(name) => subjects.of_namespace.entry(name).or_default().push(n),
                    Namespaces::Matching(_) => subjects.of_any_namespace.push(n),
                }
            }
            subjects
        });
        Self { tiers: tiers.collect() }
    }

    pub(super) fn applied(&self, snapshot: &Snapshot, id: &PodId, pod: &Pod, direction: Direction) -> Applied {
        let of_tier = |tier: &TierSubjects<'_>| {
            let named = tier.of_namespace.get(id.namespace.as_str()).into_iter().flatten();
            let mut applied: Vec<usize> = named
                .chain(&tier.of_any_namespace)
                .copied()
                .filter(|&n| tier.policies[n].rules(direction).is_some())
                .filter(|&n| tier.policies[n].subject.matches(snapshot, id, pod))
                .collect();
            applied.sort_unstable();
            applied
        };
        self.tiers.iter().map(of_tier).enumerate().filter(|(_, applied)| !applied.is_empty()).collect()
    }

    /// The rules of these policies of a tier, in order.
    pub(super) fn rules(&self, tier: usize, policies: &[usize], direction: Direction) -> Vec<&'a Rule> {
        let of = |n: &usize| self.tiers[tier].policies[*n].rules(direction).unwrap_or_default();
        policies.iter().flat_map(of).collect()
    }

    /// The ports of a pod that a rule for packets to it calls by their names.
    pub(super) fn named_ports(&self, applied: &Applied, pod: &'a Pod) -> BTreeSet<&'a NamedPort> {
        if pod.named_ports.is_empty() {
            return BTreeSet::new();
        }
        let rules = applied.iter().flat_map(|(tier, policies)| self.rules(*tier, policies, Direction::Ingress));
        let names: BTreeSet<&str> = rules.flat_map(named).collect();
        pod.named_ports.iter().filter(|p| names.contains(p.name.as_str())).collect()
    }
}

fn named(rule: &Rule) -> impl Iterator<Item = &str> {
    let ports = match &rule.ports {
        Ports::Any => &[][..],
        Ports::Of(ports) => ports,
    };
    ports.iter().filter_map(|port| match port {
        Port::Named(_, name) => Some(name.as_str()),
        Port::Numbers(..) => None,
    })
}
