//! The policies, with a number each: which of them apply to a pod, and what they say. A number is never given twice; a
//! policy that changes gets a new one, so that what was made of the old one is seen to be old.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{anchors::SelectorIndex, world::PodView};
use crate::policy::ir::{Direction, NamedPort, Policy, PolicyId, PolicyRule, RulePort, RulePorts};

/// A policy's number. It says in which directions the policy has rules, and whether they name ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PolicyNumber(u32);

impl PolicyNumber {
    const INGRESS: u32 = 1;
    const EGRESS: u32 = 2;
    const NAMES_PORTS: u32 = 4;
    const BITS: u32 = 3;

    const fn of(direction: Direction) -> u32 {
        match direction {
            Direction::Ingress => Self::INGRESS,
            Direction::Egress => Self::EGRESS,
        }
    }

    pub(super) const fn is_about(self, direction: Direction) -> bool {
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
    /// Puts a policy in the place of the one of its name. The old number and the new one; the old one applies to no pod
    /// any more, and is to be forgotten when no list holds it.
    pub(super) fn set(
        &mut self,
        tier: usize,
        id: &PolicyId,
        policy: Option<&Arc<Policy>>,
    ) -> (Option<PolicyNumber>, Option<PolicyNumber>) {
        let place = (tier, id.clone());
        let before = self.numbers.remove(&place);
        if let Some((number, entry)) = before.and_then(|number| Some((number, self.entries.get(&number)?))) {
            self.subjects.remove(&entry.policy.subject, number.0);
        }
        let number = policy.map(|policy| {
            self.next += 1;
            let about = |direction| if policy.rules(direction).is_some() { PolicyNumber::of(direction) } else { 0 };
            let named = policy.ingress.iter().flatten().flat_map(named).next().is_some();
            let names = if named { PolicyNumber::NAMES_PORTS } else { 0 };
            let bits = about(Direction::Ingress) | about(Direction::Egress) | names;
            let number = PolicyNumber((self.next << PolicyNumber::BITS) | bits);
            self.subjects.insert(&policy.subject, number.0);
            let entry = PolicyEntry { tier, id: id.clone(), policy: Arc::clone(policy) };
            self.entries.insert(number, entry);
            self.numbers.insert(place, number);
            number
        });
        (before, number)
    }

    /// No list holds this number, which [`Policies::set`] has replaced.
    pub(super) fn forget(&mut self, number: PolicyNumber) {
        self.entries.remove(&number);
    }

    /// Those that apply to the pod, in the order in which a packet meets them.
    pub(super) fn applied(&self, view: &PodView<'_>) -> Vec<PolicyNumber> {
        let candidates = self.subjects.candidates(view).into_iter().map(PolicyNumber);
        let mut applied: Vec<(PolicyNumber, &PolicyEntry)> = candidates
            .filter_map(|number| Some((number, self.entries.get(&number)?)))
            .filter(|(_, entry)| view.found_by(&entry.policy.subject))
            .collect();
        applied.sort_unstable_by(|(_, a), (_, b)| a.place().cmp(&b.place()));
        applied.into_iter().map(|(number, _)| number).collect()
    }

    pub(super) fn applies(&self, number: PolicyNumber, view: &PodView<'_>) -> bool {
        self.entries.get(&number).is_some_and(|entry| view.found_by(&entry.policy.subject))
    }

    /// In which order a packet meets two of them.
    pub(super) fn order(&self, a: PolicyNumber, b: PolicyNumber) -> Ordering {
        let place = |number| self.entries.get(&number).map(PolicyEntry::place);
        place(a).cmp(&place(b))
    }

    /// Policies that were in order, by tier, the last tier first.
    pub(super) fn by_tier_from_last<'a>(
        &'a self,
        applied: &'a [PolicyNumber],
    ) -> impl Iterator<Item = (usize, &'a [PolicyNumber])> {
        let tier = |number: &PolicyNumber| self.entries.get(number).map(|entry| entry.tier);
        let runs: Vec<&[PolicyNumber]> = applied.chunk_by(|a, b| tier(a) == tier(b)).collect();
        runs.into_iter().rev().filter_map(move |run| Some((tier(run.first()?)?, run)))
    }

    /// Their names, in the same order.
    pub(super) fn ids<'a>(&'a self, policies: &'a [PolicyNumber]) -> impl Iterator<Item = &'a PolicyId> {
        policies.iter().filter_map(|number| self.entries.get(number)).map(|entry| &entry.id)
    }

    /// Their rules, in order.
    pub(super) fn rules<'a>(
        &'a self,
        policies: &'a [PolicyNumber],
        direction: Direction,
    ) -> impl Iterator<Item = &'a PolicyRule> {
        let entries = policies.iter().filter_map(|number| self.entries.get(number));
        entries.flat_map(move |entry| entry.policy.rules(direction).unwrap_or_default())
    }

    /// The ports of a pod that a rule of these policies for packets to it calls by their names.
    pub(super) fn named_ports(&self, applied: &[PolicyNumber], ports: &BTreeSet<NamedPort>) -> BTreeSet<NamedPort> {
        if ports.is_empty() {
            return BTreeSet::new();
        }
        let naming: Vec<PolicyNumber> =
            applied.iter().copied().filter(|n| n.0 & PolicyNumber::NAMES_PORTS != 0).collect();
        let names: BTreeSet<&str> = self.rules(&naming, Direction::Ingress).flat_map(named).collect();
        ports.iter().filter(|port| names.contains(port.name.as_str())).cloned().collect()
    }
}

impl PolicyEntry {
    fn place(&self) -> (usize, i32, &PolicyId) {
        (self.tier, self.policy.order, &self.id)
    }
}

fn named(rule: &PolicyRule) -> impl Iterator<Item = &str> {
    let ports = match &rule.ports {
        RulePorts::Any => &[][..],
        RulePorts::Of(ports) => ports,
    };
    ports.iter().filter_map(|port| match port {
        RulePort::Named(_, name) => Some(name.as_str()),
        RulePort::Numbers(..) => None,
    })
}
