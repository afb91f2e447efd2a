//! The impact of a table change on established connections: whether it can deny any, and of which pods.

use std::collections::BTreeSet;

use super::is_policy_chain;
use crate::{
    names::{ChainName, IfName, SetName},
    ruleset::{Action, CmpOp, Element, Match, Rule, Ruleset, Step, Transaction, Value, Verdict},
    table::dispatch_to_pod,
};

/// The pods whose connections a policy change can affect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AffectedPods {
    /// All pods of this node.
    All,
    /// The pods of this node with these interfaces, as source and as destination.
    Pods(BTreeSet<IfName>),
}

impl AffectedPods {
    /// No pod.
    #[must_use]
    pub const fn none() -> Self {
        Self::Pods(BTreeSet::new())
    }

    /// Whether the pod with this interface is affected.
    #[must_use]
    pub fn contains(&self, interface: &IfName) -> bool {
        match self {
            Self::All => true,
            Self::Pods(pods) => pods.contains(interface),
        }
    }

    /// Adds the pods of `other`.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Pods(pods), Self::Pods(others)) => pods.extend(others),
            (Self::All, _) | (_, Self::All) => *self = Self::All,
        }
    }
}

/// Whether a change can deny connections that were allowed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImpactKind {
    /// The change can deny connections, and may allow others.
    Narrows,
    /// The change cannot deny connections. It may allow connections that were denied.
    Widens,
}

/// The impact of a table change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyImpact {
    /// Whether it can deny connections of the affected pods.
    pub kind: ImpactKind,
    /// The pods whose packets may have another verdict than before. The verdict is unchanged for all other pods.
    pub affected: AffectedPods,
}

impl PolicyImpact {
    /// The impact of an empty change.
    #[must_use]
    pub const fn none() -> Self {
        Self { kind: ImpactKind::Widens, affected: AffectedPods::none() }
    }

    /// The impact of `change`, which resulted in `table`.
    ///
    /// A change widens if it only adds pods with their chains, or elements to sets whose match accepts. Deleting an
    /// element from a set of peers always narrows: the table does not say whether the peer was deleted or lost a label.
    /// Removing a pod's own interface does not narrow, because its connections end with the pod.
    #[must_use]
    pub fn of(change: &Transaction, table: &Ruleset) -> Self {
        if change.steps().contains(&Step::DeleteTable) {
            return Self { kind: ImpactKind::Narrows, affected: AffectedPods::All };
        }
        let mut builder = ImpactBuilder::default();
        change.steps().iter().for_each(|step| builder.step(step, table));
        builder.add_chains_of_changed_sets(table);
        Self {
            kind: if builder.narrows { ImpactKind::Narrows } else { ImpactKind::Widens },
            affected: builder.affected(table),
        }
    }
}

/// Collects the effects of a transaction on the objects that existed before it.
#[derive(Default)]
struct ImpactBuilder<'a> {
    narrows: bool,
    new_chains: BTreeSet<&'a ChainName>,
    new_sets: BTreeSet<&'a SetName>,
    /// Existing chains whose verdicts may have changed. New chains are not included: what refers to them has changed too.
    chains: BTreeSet<&'a ChainName>,
    /// Existing sets to which elements were added.
    grown_sets: BTreeSet<&'a SetName>,
    /// Sets from which elements were deleted.
    shrunk_sets: BTreeSet<&'a SetName>,
    /// Elements deleted from dispatch maps, by map.
    deleted_map_elements: BTreeSet<(&'a SetName, &'a Element)>,
    /// Pods whose dispatch to a chain has changed.
    pods: BTreeSet<&'a IfName>,
}

impl<'a> ImpactBuilder<'a> {
    fn step(&mut self, step: &'a Step, table: &'a Ruleset) {
        match step {
            Step::AddSet(name, ..) => _ = self.new_sets.insert(name),
            Step::AddChain(name, ..) => _ = self.new_chains.insert(name),
            Step::AddElements(name, _) if self.new_sets.contains(name) => {}
            Step::AddElements(name, _) => _ = self.grown_sets.insert(name),
            Step::DeleteElements(name, _) => _ = self.shrunk_sets.insert(name),
            Step::AddRule(name, _) if self.new_chains.contains(name) => {}
            // A chain that is deleted: nothing refers to it any more.
            Step::FlushChain(name) if !table.chains.contains_key(name) => {}
            Step::AddRule(name, _) | Step::FlushChain(name) => {
                self.narrows = true;
                self.chains.insert(name);
            }
            Step::DeleteMapElements(name, keys) => {
                self.deleted_map_elements.extend(keys.iter().map(|key| (name, key)));
                self.pods.extend(keys.iter().flat_map(interface));
            }
            Step::AddMapElements(name, elements) => {
                // The pod is dispatched to another chain.
                self.narrows |= elements.keys().any(|key| self.deleted_map_elements.contains(&(name, key)));
                self.pods.extend(elements.keys().flat_map(interface));
            }
            // References to the deleted objects were flushed or deleted by an earlier step.
            Step::AddTable
            | Step::DeleteTable
            | Step::AddMap(..)
            | Step::DeleteSet(_)
            | Step::DeleteMap(_)
            | Step::DeleteChain(_) => {}
        }
    }

    /// Adds the policy chains that refer to changed sets. Deletions from the table's own sets, such as the anti-spoof set,
    /// do not narrow: the connections of a pod end with the pod.
    fn add_chains_of_changed_sets(&mut self, table: &'a Ruleset) {
        if self.grown_sets.is_empty() && self.shrunk_sets.is_empty() {
            return;
        }
        for (name, chain) in &table.chains {
            let is_policy_chain = is_policy_chain(name);
            for (rule, op, set) in chain.rules.iter().flat_map(sets) {
                let (grows, shrinks) = (self.grown_sets.contains(set), self.shrunk_sets.contains(set));
                self.narrows |= grows && !(op == CmpOp::Eq && accepts(rule)) || shrinks && is_policy_chain;
                if (grows || shrinks) && is_policy_chain {
                    self.chains.insert(name);
                }
            }
        }
    }

    /// The pods that are dispatched, directly or through other chains, to one of the changed chains.
    fn affected(mut self, table: &'a Ruleset) -> AffectedPods {
        if !self.chains.iter().all(|name| is_policy_chain(name)) {
            return AffectedPods::All;
        }
        let mut changed = !self.chains.is_empty();
        while std::mem::take(&mut changed) {
            for (name, chain) in table.chains.iter().filter(|(name, _)| is_policy_chain(name)) {
                let refers_to_changed = |rule: &Rule| target(&rule.action).is_some_and(|to| self.chains.contains(to));
                if !self.chains.contains(name) && chain.rules.iter().any(refers_to_changed) {
                    changed |= self.chains.insert(name);
                }
            }
        }
        if !self.chains.is_empty() {
            let elements = table.maps.values().flat_map(|map| &map.elements);
            let to_changed = |verdict: &Verdict| verdict.target().is_some_and(|to| self.chains.contains(to));
            self.pods.extend(elements.filter(|(_, verdict)| to_changed(verdict)).flat_map(|(key, _)| interface(key)));
        }
        AffectedPods::Pods(self.pods.into_iter().cloned().collect())
    }
}

/// The interface in the key of a map element.
fn interface(key: &Element) -> Option<&IfName> {
    key.iter().find_map(|value| if let Value::IfName(name) = value { Some(name) } else { None })
}

/// The set lookups of a rule.
fn sets(rule: &Rule) -> impl Iterator<Item = (&Rule, CmpOp, &SetName)> {
    rule.matches
        .iter()
        .filter_map(move |m| if let Match::InSet(_, op, name) = m { Some((rule, *op, name)) } else { None })
}

/// Whether the rule accepts the packets it matches, or dispatches them to the destination pod.
fn accepts(rule: &Rule) -> bool {
    [Verdict::Accept, dispatch_to_pod()].map(Action::Verdict).contains(&rule.action)
}

fn target(action: &Action) -> Option<&ChainName> {
    if let Action::Verdict(verdict) = action { verdict.target() } else { None }
}
