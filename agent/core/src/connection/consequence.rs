//! What a change of the table means for connections that are under way: whether it can deny any, and whose.

use std::collections::BTreeSet;

use super::by_policy;
use crate::{
    names::{ChainName, IfName, SetName},
    ruleset::{Action, CmpOp, Element, Match, Rule, Ruleset, Step, Transaction, Value, Verdict},
    table::dispatch_to_pod,
};

/// Whose connections are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AffectedPods {
    /// Everybody's.
    All,
    /// Those of these pods of this node, by interface, in both directions.
    Pods(BTreeSet<IfName>),
}

impl AffectedPods {
    /// Nobody's.
    #[must_use]
    pub const fn nobody() -> Self {
        Self::Pods(BTreeSet::new())
    }

    /// Whether the pod's are meant.
    #[must_use]
    pub fn has(&self, interface: &IfName) -> bool {
        match self {
            Self::All => true,
            Self::Pods(pods) => pods.contains(interface),
        }
    }

    /// These, too.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Pods(pods), Self::Pods(others)) => pods.extend(others),
            (Self::All, _) | (_, Self::All) => *self = Self::All,
        }
    }
}

/// Whether a change can deny what was allowed before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImpactKind {
    /// It can.
    Narrows,
    /// It cannot, but it may allow what was denied.
    Widens,
}

/// What a change means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyImpact {
    /// For those whom it touches.
    pub meaning: ImpactKind,
    /// The pods whose packets may have another verdict than before. Who is not among them has the same.
    pub touched: AffectedPods,
}

impl PolicyImpact {
    /// None at all.
    #[must_use]
    pub const fn none() -> Self {
        Self { meaning: ImpactKind::Widens, touched: AffectedPods::nobody() }
    }

    /// Of a change that has made `table` what it is. It narrows nothing when it only adds: a pod and its own chains,
    /// members to sets by which packets are accepted. A pod that leaves takes its interface away and, as a peer, its
    /// addresses; the latter may be another pod's loss of a label, so it counts. Its own connections go with it.
    #[must_use]
    pub fn of(change: &Transaction, table: &Ruleset) -> Self {
        if change.steps().contains(&Step::DeleteTable) {
            return Self { meaning: ImpactKind::Narrows, touched: AffectedPods::All };
        }
        let mut difference = ImpactBuilder::default();
        change.steps().iter().for_each(|step| difference.step(step, table));
        difference.look_into_sets(table);
        Self {
            meaning: if difference.narrows { ImpactKind::Narrows } else { ImpactKind::Widens },
            touched: difference.touched(table),
        }
    }
}

/// What a transaction does to what was there before it.
#[derive(Default)]
struct ImpactBuilder<'a> {
    narrows: bool,
    new_chains: BTreeSet<&'a ChainName>,
    new_sets: BTreeSet<&'a SetName>,
    /// Chains that decide otherwise. Not the new ones: whoever leads to those is itself another.
    chains: BTreeSet<&'a ChainName>,
    /// Sets with new members.
    come: BTreeSet<&'a SetName>,
    /// Sets that have lost members.
    gone: BTreeSet<&'a SetName>,
    /// What led from a map to a chain.
    left: BTreeSet<(&'a SetName, &'a Element)>,
    pods: BTreeSet<&'a IfName>,
}

impl<'a> ImpactBuilder<'a> {
    fn step(&mut self, step: &'a Step, table: &'a Ruleset) {
        match step {
            Step::AddSet(name, ..) => _ = self.new_sets.insert(name),
            Step::AddChain(name, ..) => _ = self.new_chains.insert(name),
            Step::AddElements(name, _) if self.new_sets.contains(name) => {}
            Step::AddElements(name, _) => _ = self.come.insert(name),
            Step::DeleteElements(name, _) => _ = self.gone.insert(name),
            Step::AddRule(name, _) if self.new_chains.contains(name) => {}
            // Nothing leads any more to a chain that goes.
            Step::FlushChain(name) if !table.chains.contains_key(name) => {}
            Step::AddRule(name, _) | Step::FlushChain(name) => {
                self.narrows = true;
                self.chains.insert(name);
            }
            Step::DeleteMapElements(name, keys) => {
                self.left.extend(keys.iter().map(|key| (name, key)));
                self.pods.extend(keys.iter().flat_map(interface));
            }
            Step::AddMapElements(name, elements) => {
                // A pod that goes from one chain to another.
                self.narrows |= elements.keys().any(|key| self.left.contains(&(name, key)));
                self.pods.extend(elements.keys().flat_map(interface));
            }
            // What named them has been flushed or deleted before.
            Step::AddTable
            | Step::DeleteTable
            | Step::AddMap(..)
            | Step::DeleteSet(_)
            | Step::DeleteMap(_)
            | Step::DeleteChain(_) => {}
        }
    }

    /// Finds the chains that look into sets with other members. Who may send from which address is no policy: a
    /// pod's connections go with the pod.
    fn look_into_sets(&mut self, table: &'a Ruleset) {
        if self.come.is_empty() && self.gone.is_empty() {
            return;
        }
        for (name, chain) in &table.chains {
            let by_policy = by_policy(name);
            for (rule, op, set) in chain.rules.iter().flat_map(sets) {
                let (comes, goes) = (self.come.contains(set), self.gone.contains(set));
                self.narrows |= comes && !(op == CmpOp::Eq && accepts(rule)) || goes && by_policy;
                if (comes || goes) && by_policy {
                    self.chains.insert(name);
                }
            }
        }
    }

    /// The pods whose way goes through one of the chains.
    fn touched(mut self, table: &'a Ruleset) -> AffectedPods {
        if !self.chains.iter().all(|name| by_policy(name)) {
            return AffectedPods::All;
        }
        let mut news = !self.chains.is_empty();
        while std::mem::take(&mut news) {
            for (name, chain) in table.chains.iter().filter(|(name, _)| by_policy(name)) {
                let goes_on = |rule: &Rule| leads_to(&rule.action).is_some_and(|to| self.chains.contains(to));
                if !self.chains.contains(name) && chain.rules.iter().any(goes_on) {
                    news |= self.chains.insert(name);
                }
            }
        }
        if !self.chains.is_empty() {
            let elements = table.maps.values().flat_map(|map| &map.elements);
            let through = |verdict: &Verdict| verdict.target().is_some_and(|to| self.chains.contains(to));
            self.pods.extend(elements.filter(|(_, verdict)| through(verdict)).flat_map(|(key, _)| interface(key)));
        }
        AffectedPods::Pods(self.pods.into_iter().cloned().collect())
    }
}

/// The interface that an element of a map is about.
fn interface(key: &Element) -> Option<&IfName> {
    key.iter().find_map(|value| if let Value::IfName(name) = value { Some(name) } else { None })
}

/// The sets that a rule looks into, and how.
fn sets(rule: &Rule) -> impl Iterator<Item = (&Rule, CmpOp, &SetName)> {
    rule.matches
        .iter()
        .filter_map(move |m| if let Match::InSet(_, op, name) = m { Some((rule, *op, name)) } else { None })
}

/// Whether a packet for which the rule holds is at most accepted for it.
fn accepts(rule: &Rule) -> bool {
    [Verdict::Accept, dispatch_to_pod()].map(Action::Verdict).contains(&rule.action)
}

fn leads_to(action: &Action) -> Option<&ChainName> {
    if let Action::Verdict(verdict) = action { verdict.target() } else { None }
}
