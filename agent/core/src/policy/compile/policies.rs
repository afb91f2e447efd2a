//! The policies of all tiers, identified by numbers, and which of them apply to a pod.
//!
//! Numbers are never reused. A policy that changes gets a new number, so that results of the old version never compare
//! equal to results of the new one.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{pod_index::PodView, selector_index::SelectorIndex};
use crate::policy::ir::{Direction, NamedPort, Policy, PolicyId, PolicyRule, RulePort, RulePorts};

/// Identifies one version of a policy. The low bits say in which directions it has rules, and whether its ingress rules
/// refer to named ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PolicyNumber(u32);

impl PolicyNumber {
    const INGRESS: u32 = 1;
    const EGRESS: u32 = 2;
    const NAMED_PORTS: u32 = 4;
    const BITS: u32 = 3;

    const fn of(direction: Direction) -> u32 {
        match direction {
            Direction::Ingress => Self::INGRESS,
            Direction::Egress => Self::EGRESS,
        }
    }

    pub(super) const fn has_rules(self, direction: Direction) -> bool {
        self.0 & Self::of(direction) != 0
    }
}

/// All policies of all tiers.
#[derive(Debug, Default)]
pub(super) struct Policies {
    entries: BTreeMap<PolicyNumber, PolicyEntry>,
    numbers: BTreeMap<(usize, PolicyId), PolicyNumber>,
    subjects: SelectorIndex,
    next: u32,
}

#[derive(Debug)]
struct PolicyEntry {
    tier: usize,
    id: PolicyId,
    policy: Arc<Policy>,
}

impl Policies {
    /// Inserts, replaces or (with `None`) removes a policy. Returns the old and the new number. The old policy no longer
    /// applies to any pod; call [`Policies::remove`] once no list of applied policies contains its number.
    pub(super) fn set(
        &mut self,
        tier: usize,
        id: &PolicyId,
        policy: Option<&Arc<Policy>>,
    ) -> (Option<PolicyNumber>, Option<PolicyNumber>) {
        let position = (tier, id.clone());
        let before = self.numbers.remove(&position);
        if let Some((number, entry)) = before.and_then(|number| Some((number, self.entries.get(&number)?))) {
            self.subjects.remove(&entry.policy.subject, number.0);
        }
        let number = policy.map(|policy| {
            self.next += 1;
            let direction_bit =
                |direction| if policy.rules(direction).is_some() { PolicyNumber::of(direction) } else { 0 };
            let refers_to_names = policy.ingress.iter().flatten().flat_map(port_names).next().is_some();
            let named_ports = if refers_to_names { PolicyNumber::NAMED_PORTS } else { 0 };
            let bits = direction_bit(Direction::Ingress) | direction_bit(Direction::Egress) | named_ports;
            let number = PolicyNumber((self.next << PolicyNumber::BITS) | bits);
            self.subjects.insert(&policy.subject, number.0);
            let entry = PolicyEntry { tier, id: id.clone(), policy: Arc::clone(policy) };
            self.entries.insert(number, entry);
            self.numbers.insert(position, number);
            number
        });
        (before, number)
    }

    /// Drops a policy version that [`Policies::set`] has replaced.
    pub(super) fn remove(&mut self, number: PolicyNumber) {
        self.entries.remove(&number);
    }

    /// The policies that apply to the pod, in evaluation order.
    pub(super) fn applied(&self, view: &PodView<'_>) -> Vec<PolicyNumber> {
        let candidates = self.subjects.candidates(view).into_iter().map(PolicyNumber);
        let mut applied: Vec<(PolicyNumber, &PolicyEntry)> = candidates
            .filter_map(|number| Some((number, self.entries.get(&number)?)))
            .filter(|(_, entry)| view.selected_by(&entry.policy.subject))
            .collect();
        applied.sort_unstable_by(|(_, a), (_, b)| a.position().cmp(&b.position()));
        applied.into_iter().map(|(number, _)| number).collect()
    }

    pub(super) fn applies(&self, number: PolicyNumber, view: &PodView<'_>) -> bool {
        self.entries.get(&number).is_some_and(|entry| view.selected_by(&entry.policy.subject))
    }

    /// Compares two policies by evaluation order.
    pub(super) fn compare(&self, a: PolicyNumber, b: PolicyNumber) -> Ordering {
        let position = |number| self.entries.get(&number).map(PolicyEntry::position);
        position(a).cmp(&position(b))
    }

    /// Groups policies, given in evaluation order, by tier. The last tier comes first.
    pub(super) fn by_tier_from_last<'a>(
        &'a self,
        applied: &'a [PolicyNumber],
    ) -> impl Iterator<Item = (usize, &'a [PolicyNumber])> {
        let tier = |number: &PolicyNumber| self.entries.get(number).map(|entry| entry.tier);
        let runs: Vec<&[PolicyNumber]> = applied.chunk_by(|a, b| tier(a) == tier(b)).collect();
        runs.into_iter().rev().filter_map(move |run| Some((tier(run.first()?)?, run)))
    }

    /// The ids of the policies, in the same order.
    pub(super) fn ids<'a>(&'a self, policies: &'a [PolicyNumber]) -> impl Iterator<Item = &'a PolicyId> {
        policies.iter().filter_map(|number| self.entries.get(number)).map(|entry| &entry.id)
    }

    /// The rules of the policies for a direction, in the same order.
    pub(super) fn rules<'a>(
        &'a self,
        policies: &'a [PolicyNumber],
        direction: Direction,
    ) -> impl Iterator<Item = &'a PolicyRule> {
        let entries = policies.iter().filter_map(|number| self.entries.get(number));
        entries.flat_map(move |entry| entry.policy.rules(direction).unwrap_or_default())
    }

    /// Those of the pod's named ports that an ingress rule of the policies refers to.
    pub(super) fn named_ports(&self, applied: &[PolicyNumber], ports: &BTreeSet<NamedPort>) -> BTreeSet<NamedPort> {
        if ports.is_empty() {
            return BTreeSet::new();
        }
        let naming: Vec<PolicyNumber> =
            applied.iter().copied().filter(|n| n.0 & PolicyNumber::NAMED_PORTS != 0).collect();
        let names: BTreeSet<&str> = self.rules(&naming, Direction::Ingress).flat_map(port_names).collect();
        ports.iter().filter(|port| names.contains(port.name.as_str())).cloned().collect()
    }
}

impl PolicyEntry {
    fn position(&self) -> (usize, i32, &PolicyId) {
        (self.tier, self.policy.order, &self.id)
    }
}

fn port_names(rule: &PolicyRule) -> impl Iterator<Item = &str> {
    let ports = match &rule.ports {
        RulePorts::Any => &[][..],
        RulePorts::Of(ports) => ports,
    };
    ports.iter().filter_map(|port| match port {
        RulePort::Named(_, name) => Some(name.as_str()),
        RulePort::Numbers(..) => None,
    })
}
