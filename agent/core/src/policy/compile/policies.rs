//! The policies, with a number each: which of them apply to a pod, and what they say. A number is never given twice; a
//! policy that changes gets a new one, so that what was made of the old one is seen to be old.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{anchors::Anchors, world::View};
use crate::policy::ir::{Direction, NamedPort, Policy, PolicyId, Port, Ports, Rule};

/// A policy's number. It says in which directions the policy has rules, and whether they name ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u32);

impl Number {
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
    entries: BTreeMap<Number, Entry>,
    numbers: BTreeMap<(usize, PolicyId), Number>,
    subjects: Anchors,
    next: u32,
}

#[derive(Debug)]
struct Entry {
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
    ) -> (Option<Number>, Option<Number>) {
        let place = (tier, id.clone());
        let before = self.numbers.remove(&place);
        if let Some((number, entry)) = before.and_then(|number| Some((number, self.entries.get(&number)?))) {
            self.subjects.remove(&entry.policy.subject, number.0);
        }
        let number = policy.map(|policy| {
            self.next += 1;
            let about = |direction| if policy.rules(direction).is_some() { Number::of(direction) } else { 0 };
            let named = policy.ingress.iter().flatten().flat_map(named).next().is_some();
            let names = if named { Number::NAMES_PORTS } else { 0 };
            let bits = about(Direction::Ingress) | about(Direction::Egress) | names;
            let number = Number((self.next << Number::BITS) | bits);
            self.subjects.insert(&policy.subject, number.0);
            let entry = Entry { tier, id: id.clone(), policy: Arc::clone(policy) };
            self.entries.insert(number, entry);
            self.numbers.insert(place, number);
            number
        });
        (before, number)
    }

    /// No list holds this number, which [`Policies::set`] has replaced.
    pub(super) fn forget(&mut self, number: Number) {
        self.entries.remove(&number);
    }

    /// Those that apply to the pod, in the order in which a packet meets them.
    pub(super) fn applied(&self, view: &View<'_>) -> Vec<Number> {
        let candidates = self.subjects.candidates(view).into_iter().map(Number);
        let mut applied: Vec<(Number, &Entry)> = candidates
            .filter_map(|number| Some((number, self.entries.get(&number)?)))
            .filter(|(_, entry)| view.found_by(&entry.policy.subject))
            .collect();
        applied.sort_unstable_by(|(_, a), (_, b)| a.place().cmp(&b.place()));
        applied.into_iter().map(|(number, _)| number).collect()
    }

    pub(super) fn applies(&self, number: Number, view: &View<'_>) -> bool {
        self.entries.get(&number).is_some_and(|entry| view.found_by(&entry.policy.subject))
    }

    /// In which order a packet meets two of them.
    pub(super) fn order(&self, a: Number, b: Number) -> Ordering {
        let place = |number| self.entries.get(&number).map(Entry::place);
        place(a).cmp(&place(b))
    }

    /// Policies that were in order, by tier, the last tier first.
    pub(super) fn by_tier_from_last<'a>(
        &'a self,
        applied: &'a [Number],
    ) -> impl Iterator<Item = (usize, &'a [Number])> {
        let tier = |number: &Number| self.entries.get(number).map(|entry| entry.tier);
        let runs: Vec<&[Number]> = applied.chunk_by(|a, b| tier(a) == tier(b)).collect();
        runs.into_iter().rev().filter_map(move |run| Some((tier(run.first()?)?, run)))
    }

    /// Their rules, in order.
    pub(super) fn rules<'a>(&'a self, policies: &'a [Number], direction: Direction) -> impl Iterator<Item = &'a Rule> {
        let entries = policies.iter().filter_map(|number| self.entries.get(number));
        entries.flat_map(move |entry| entry.policy.rules(direction).unwrap_or_default())
    }

    /// The ports of a pod that a rule of these policies for packets to it calls by their names.
    pub(super) fn named_ports(&self, applied: &[Number], ports: &BTreeSet<NamedPort>) -> BTreeSet<NamedPort> {
        if ports.is_empty() {
            return BTreeSet::new();
        }
        let naming: Vec<Number> = applied.iter().copied().filter(|n| n.0 & Number::NAMES_PORTS != 0).collect();
        let names: BTreeSet<&str> = self.rules(&naming, Direction::Ingress).flat_map(named).collect();
        ports.iter().filter(|port| names.contains(port.name.as_str())).cloned().collect()
    }
}

impl Entry {
    fn place(&self) -> (usize, i32, &PolicyId) {
        (self.tier, self.policy.order, &self.id)
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
