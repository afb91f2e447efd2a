//! A change of the table as a list of steps. It prints as a script for `nft -f -`, and the kernel commits it atomically.

use std::fmt;

use imbl::{OrdMap, OrdSet};

use super::{
    BaseChain, Chain, Element, KeyType, Lookup, Rule, Ruleset, Set, Verdict, VerdictMap,
    text::{Declaration, ElementList, TABLE},
};
use crate::names::{ChainName, Comment, SetName};

/// One command of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Creates the table unless it exists.
    AddTable,
    /// Deletes the table and everything in it.
    DeleteTable,
    /// Creates a set without elements. Never declares a `size`: the kernel would reject elements beyond it.
    AddSet(SetName, Vec<KeyType>, Lookup, Option<Comment>),
    /// Deletes a set. No rule may refer to it.
    DeleteSet(SetName),
    /// Adds elements that the set does not contain.
    AddElements(SetName, OrdSet<Element>),
    /// Deletes elements that the set contains.
    DeleteElements(SetName, OrdSet<Element>),
    /// Creates a verdict map without elements.
    AddMap(SetName, Vec<KeyType>, Option<Comment>),
    /// Deletes a verdict map and its elements. No rule may refer to it.
    DeleteMap(SetName),
    /// Adds elements that the map does not contain. The chains of their verdicts must exist.
    AddMapElements(SetName, OrdMap<Element, Verdict>),
    /// Deletes elements that the map contains.
    DeleteMapElements(SetName, OrdSet<Element>),
    /// Creates a chain without rules. A base chain is attached to its hook.
    AddChain(ChainName, Option<BaseChain>, Option<Comment>),
    /// Deletes all rules of a chain.
    FlushChain(ChainName),
    /// Deletes a chain without rules. Nothing may refer to it.
    DeleteChain(ChainName),
    /// Appends a rule to a chain. The objects that it refers to must exist.
    AddRule(ChainName, Rule),
}

/// Ordered steps that the kernel commits atomically.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Transaction {
    steps: Vec<Step>,
}

impl Transaction {
    /// Creates the whole table. The table must not exist, or its contents would remain.
    pub fn create(want: &Ruleset) -> Self {
        let mut transaction = Self::default();
        for (name, set) in &want.sets {
            transaction.push(want.add_set(name, set));
            transaction.add_elements(name, set.elements.clone());
        }
        for (name, chain) in &want.chains {
            transaction.push(want.add_chain(name, chain));
        }
        for (name, map) in &want.maps {
            transaction.push(want.add_map(name, map));
            transaction.add_map_elements(name, map.elements.clone());
        }
        for (name, chain) in &want.chains {
            transaction.add_rules(name, &chain.rules);
        }
        transaction.push(Step::AddTable);
        transaction
    }

    /// Deletes the table if it exists and creates it again, in the same commit.
    pub fn replace(want: &Ruleset) -> Self {
        let mut transaction = Self::delete();
        transaction.steps.extend(Self::create(want).steps);
        transaction
    }

    /// Deletes the table. Also succeeds if it does not exist.
    pub fn delete() -> Self {
        Self { steps: vec![Step::AddTable, Step::DeleteTable] }
    }

    /// Whether the transaction has no steps.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps in the order of execution.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Appends a step. Every transaction begins with [`Step::AddTable`], which has no effect if the table exists.
    pub(super) fn push(&mut self, step: Step) {
        if self.steps.is_empty() {
            self.steps.push(Step::AddTable);
        }
        if step != Step::AddTable {
            self.steps.push(step);
        }
    }

    pub(super) fn add_elements(&mut self, set: &SetName, elements: OrdSet<Element>) {
        if !elements.is_empty() {
            self.push(Step::AddElements(set.clone(), elements));
        }
    }

    pub(super) fn delete_elements(&mut self, set: &SetName, elements: OrdSet<Element>) {
        if !elements.is_empty() {
            self.push(Step::DeleteElements(set.clone(), elements));
        }
    }

    pub(super) fn add_map_elements(&mut self, map: &SetName, elements: OrdMap<Element, Verdict>) {
        if !elements.is_empty() {
            self.push(Step::AddMapElements(map.clone(), elements));
        }
    }

    pub(super) fn delete_map_elements(&mut self, map: &SetName, keys: OrdSet<Element>) {
        if !keys.is_empty() {
            self.push(Step::DeleteMapElements(map.clone(), keys));
        }
    }

    pub(super) fn add_rules(&mut self, chain: &ChainName, rules: &[Rule]) {
        for rule in rules {
            self.push(Step::AddRule(chain.clone(), rule.clone()));
        }
    }
}

impl Ruleset {
    /// The step that creates one of its sets, without elements.
    pub(super) fn add_set(&self, name: &SetName, set: &Set) -> Step {
        Step::AddSet(name.clone(), set.key.clone(), set.lookup, self.comments.sets.get(name).cloned())
    }

    /// The step that creates one of its verdict maps, without elements.
    pub(super) fn add_map(&self, name: &SetName, map: &VerdictMap) -> Step {
        Step::AddMap(name.clone(), map.key.clone(), self.comments.sets.get(name).cloned())
    }

    /// The step that creates one of its chains, without rules.
    pub(super) fn add_chain(&self, name: &ChainName, chain: &Chain) -> Step {
        Step::AddChain(name.clone(), chain.base, self.comments.chains.get(name).cloned())
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => write!(f, "add table {TABLE}"),
            Self::DeleteTable => write!(f, "delete table {TABLE}"),
            Self::AddSet(name, key, lookup, comment) => {
                write!(f, "add set {TABLE} {name} {}", Declaration::Set(key, *lookup, comment.as_ref()))
            }
            Self::DeleteSet(name) => write!(f, "delete set {TABLE} {name}"),
            Self::AddElements(name, elements) => write!(f, "add element {TABLE} {name} {}", ElementList(elements)),
            Self::DeleteElements(name, keys) | Self::DeleteMapElements(name, keys) => {
                write!(f, "delete element {TABLE} {name} {}", ElementList(keys))
            }
            Self::AddMap(name, key, comment) => {
                write!(f, "add map {TABLE} {name} {}", Declaration::Map(key, comment.as_ref()))
            }
            Self::DeleteMap(name) => write!(f, "delete map {TABLE} {name}"),
            Self::AddMapElements(name, elements) => write!(f, "add element {TABLE} {name} {}", ElementList(elements)),
            Self::AddChain(name, base, comment) => {
                write!(f, "add chain {TABLE} {name}{}", Declaration::Chain(base.as_ref(), comment.as_ref()))
            }
            Self::FlushChain(name) => write!(f, "flush chain {TABLE} {name}"),
            Self::DeleteChain(name) => write!(f, "delete chain {TABLE} {name}"),
            Self::AddRule(name, rule) => {
                write!(f, "add rule {TABLE} {name} {rule} comment \"{}\"", rule.fingerprint())
            }
        }
    }
}

/// Builds a transaction from arbitrary steps.
impl FromIterator<Step> for Transaction {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        let mut transaction = Self::default();
        steps.into_iter().for_each(|step| transaction.push(step));
        transaction
    }
}
