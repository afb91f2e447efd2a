//! What is to be done to the table, as a value that prints as a script for `nft -f -`. The kernel does all of it or nothing.

use std::fmt;

use imbl::{OrdMap, OrdSet};

use super::{
    BaseChain, Chain, Element, KeyType, Lookup, Rule, Ruleset, Set, Verdict, VerdictMap,
    text::{Declaration, ElementList, TABLE},
};
use crate::names::{ChainName, Comment, SetName};

/// One change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The table, unless it is there.
    AddTable,
    /// The table with all that is in it.
    DeleteTable,
    /// A set without elements. Never with a `size`: the kernel would refuse elements beyond it.
    AddSet(SetName, Vec<KeyType>, Lookup, Option<Comment>),
    /// A set that no rule looks into.
    DeleteSet(SetName),
    /// Elements that are not in the set yet.
    AddElements(SetName, OrdSet<Element>),
    /// Elements that are in the set.
    DeleteElements(SetName, OrdSet<Element>),
    /// A verdict map without elements.
    AddMap(SetName, Vec<KeyType>, Option<Comment>),
    /// A verdict map that no rule looks into, with its elements.
    DeleteMap(SetName),
    /// Elements that are not in the map yet; the chains they name are there.
    AddMapElements(SetName, OrdMap<Element, Verdict>),
    /// Elements that are in the map.
    DeleteMapElements(SetName, OrdSet<Element>),
    /// A chain without rules; with a base it hangs in the packet's way.
    AddChain(ChainName, Option<BaseChain>, Option<Comment>),
    /// All rules of a chain.
    FlushChain(ChainName),
    /// A chain without rules that nothing names.
    DeleteChain(ChainName),
    /// A rule behind those that the chain has; what it names is there.
    AddRule(ChainName, Rule),
}

/// Steps in their order, done together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Transaction {
    steps: Vec<Step>,
}

impl Transaction {
    /// Makes the whole table. The table must not be there: else it would be a mixture.
    pub fn create(want: &Ruleset) -> Self {
        let mut all = Self::default();
        for (name, set) in &want.sets {
            all.push(want.add_set(name, set));
            all.add_elements(name, set.elements.clone());
        }
        for (name, chain) in &want.chains {
            all.push(want.add_chain(name, chain));
        }
        for (name, map) in &want.maps {
            all.push(want.add_map(name, map));
            all.add_map_elements(name, map.elements.clone());
        }
        for (name, chain) in &want.chains {
            all.add_rules(name, &chain.rules);
        }
        all.push(Step::AddTable);
        all
    }

    /// Removes the table if it is there, and makes it anew: there is no moment without it.
    pub fn replace(want: &Ruleset) -> Self {
        let mut all = Self::delete();
        all.steps.extend(Self::create(want).steps);
        all
    }

    /// Removes the table, whether it is there or not.
    pub fn delete() -> Self {
        Self { steps: vec![Step::AddTable, Step::DeleteTable] }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps in their order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// One more step. The first brings [`Step::AddTable`] with it, which harms nothing when the table is there.
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
    /// Creates one of its sets without elements.
    pub(super) fn add_set(&self, name: &SetName, set: &Set) -> Step {
        Step::AddSet(name.clone(), set.key.clone(), set.lookup, self.comments.sets.get(name).cloned())
    }

    /// Creates one of its maps without elements.
    pub(super) fn add_map(&self, name: &SetName, map: &VerdictMap) -> Step {
        Step::AddMap(name.clone(), map.key.clone(), self.comments.sets.get(name).cloned())
    }

    /// Creates one of its chains without rules.
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

/// Any steps, as somebody at the keyboard would do them.
impl FromIterator<Step> for Transaction {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        let mut all = Self::default();
        steps.into_iter().for_each(|step| all.push(step));
        all
    }
}
