//! An in-memory table that executes transactions and rejects what the kernel would reject, for tests without a kernel.
//!
//! It is stricter than the kernel in two ways: it rejects adding an element that exists, and deleting a chain that has
//! rules.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use super::{
    Action, BaseChain, Chain, Comments, Element, Field, Installed, InstalledChain, KeyType, Lookup, Match, Reference,
    Rule, Ruleset, Set, Step, Transaction, Unmanaged, Value, Verdict, VerdictMap,
};
use crate::names::{ChainName, SetName};

/// Why a step was rejected, with the text of the step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The object, or one it refers to, does not exist (ENOENT).
    #[error("{0}: an object that the step refers to does not exist")]
    NotFound(String),
    /// The object already exists (EEXIST).
    #[error("{0}: the object already exists")]
    Exists(String),
    /// A rule or an element still refers to the object (EBUSY).
    #[error("{0}: the object is still referenced")]
    Busy(String),
    /// A key type does not match, or the set cannot contain the value (EINVAL).
    #[error("{0}: the type of a key or value does not match")]
    Mismatch(String),
}

/// The nft table, which may not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeTable {
    contents: Option<FakeContents>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FakeContents {
    sets: OrdMap<SetName, Set>,
    maps: OrdMap<SetName, VerdictMap>,
    chains: OrdMap<ChainName, FakeChain>,
    unmanaged: BTreeSet<Unmanaged>,
    comments: Comments,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FakeChain {
    base: Option<BaseChain>,
    /// `None` for an unmanaged rule.
    rules: Vec<Option<Rule>>,
}

impl FakeTable {
    /// Commits a transaction atomically.
    ///
    /// # Errors
    /// At the first step that the kernel would reject. The table is then unchanged.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), StepError> {
        let mut contents = self.contents.clone();
        for step in transaction.steps() {
            match step {
                Step::AddTable => _ = contents.get_or_insert_default(),
                Step::DeleteTable if contents.is_some() => contents = None,
                _ => contents.as_mut().ok_or_else(|| StepError::NotFound(step.to_string()))?.apply(step)?,
            }
        }
        self.contents = contents;
        Ok(())
    }

    /// Dumps the table; `None` if it does not exist.
    #[must_use]
    pub fn read_back(&self) -> Option<Installed> {
        self.contents.as_ref().map(|contents| Installed {
            sets: contents.sets.clone(),
            maps: contents.maps.clone(),
            chains: contents.chains.iter().map(|(name, chain)| (name.clone(), chain.read_back())).collect(),
            unmanaged: contents.unmanaged.clone(),
        })
    }

    /// The installed ruleset without unmanaged rules and objects.
    #[must_use]
    pub fn ruleset(&self) -> Option<Ruleset> {
        let chain =
            |chain: &FakeChain| Chain { base: chain.base, rules: chain.rules.iter().flatten().cloned().collect() };
        self.contents.as_ref().map(|contents| Ruleset {
            sets: contents.sets.clone(),
            maps: contents.maps.clone(),
            chains: contents.chains.iter().map(|(name, have)| (name.clone(), Arc::new(chain(have)))).collect(),
            comments: contents.comments.clone(),
        })
    }

    /// Inserts an unmanaged rule at the beginning of a chain. Does nothing if the chain does not exist.
    pub fn add_unmanaged_rule(&mut self, chain: &ChainName) {
        if let Some(chain) = self.contents.as_mut().and_then(|contents| contents.chains.get_mut(chain)) {
            chain.rules.insert(0, None);
        }
    }

    /// Adds an unmanaged object, replacing one of the same name.
    pub fn add_unmanaged(&mut self, object: Unmanaged) {
        let contents = self.contents.get_or_insert_default();
        match &object {
            Unmanaged::Set(name) | Unmanaged::Map(name) => {
                contents.sets.remove(name);
                contents.maps.remove(name);
            }
            Unmanaged::Chain(name) => _ = contents.chains.remove(name),
            Unmanaged::Other(_) => {}
        }
        contents.unmanaged.insert(object);
    }
}

impl FakeChain {
    fn read_back(&self) -> InstalledChain {
        let rules = self.rules.iter().map(|rule| rule.as_ref().map(Rule::fingerprint)).collect();
        InstalledChain { base: self.base, rules }
    }
}

impl FakeContents {
    fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        let not_found = || StepError::NotFound(step.to_string());
        match step {
            Step::AddTable => Ok(()),
            Step::DeleteTable => Err(not_found()),
            Step::AddSet(name, key, lookup, comment) => {
                self.require_free_name(name, step)?;
                let set = Set { key: key.clone(), lookup: *lookup, elements: OrdSet::new() };
                self.sets.insert(name.clone(), set);
                self.comments.sets.extend(comment.iter().map(|comment| (name.clone(), comment.clone())));
                Ok(())
            }
            Step::AddMap(name, key, comment) => {
                self.require_free_name(name, step)?;
                self.maps.insert(name.clone(), VerdictMap { key: key.clone(), elements: OrdMap::new() });
                self.comments.sets.extend(comment.iter().map(|comment| (name.clone(), comment.clone())));
                Ok(())
            }
            Step::DeleteSet(name) => {
                self.require_unreferenced(Reference::Set(name), step)?;
                let unmanaged = self.unmanaged.remove(&Unmanaged::Set(name.clone()));
                self.comments.sets.remove(name);
                (self.sets.remove(name).is_some() || unmanaged).then_some(()).ok_or_else(not_found)
            }
            Step::DeleteMap(name) => {
                self.require_unreferenced(Reference::Set(name), step)?;
                let unmanaged = self.unmanaged.remove(&Unmanaged::Map(name.clone()));
                self.comments.sets.remove(name);
                (self.maps.remove(name).is_some() || unmanaged).then_some(()).ok_or_else(not_found)
            }
            Step::AddElements(name, elements) => {
                add_elements(self.sets.get_mut(name).ok_or_else(not_found)?, elements, step)
            }
            Step::DeleteElements(name, keys) => {
                let set = self.sets.get_mut(name).ok_or_else(not_found)?;
                keys.iter().all(|key| set.elements.remove(key).is_some()).then_some(()).ok_or_else(not_found)
            }
            Step::AddMapElements(name, elements) => self.add_map_elements(name, elements, step),
            Step::DeleteMapElements(name, keys) => {
                let map = self.maps.get_mut(name).ok_or_else(not_found)?;
                keys.iter().all(|key| map.elements.remove(key).is_some()).then_some(()).ok_or_else(not_found)
            }
            Step::AddChain(name, base, comment) => {
                if self.chains.contains_key(name) || self.unmanaged.contains(&Unmanaged::Chain(name.clone())) {
                    return Err(StepError::Exists(step.to_string()));
                }
                self.chains.insert(name.clone(), FakeChain { base: *base, rules: Vec::new() });
                self.comments.chains.extend(comment.iter().map(|comment| (name.clone(), comment.clone())));
                Ok(())
            }
            Step::FlushChain(name) => {
                let known = self.chains.get_mut(name).map(|chain| chain.rules.clear());
                let unmanaged = self.unmanaged.contains(&Unmanaged::Chain(name.clone()));
                (known.is_some() || unmanaged).then_some(()).ok_or_else(not_found)
            }
            Step::DeleteChain(name) => self.delete_chain(name, step),
            Step::AddRule(name, rule) => {
                self.require_references(rule, step)?;
                self.chains.get_mut(name).ok_or_else(not_found)?.rules.push(Some(rule.clone()));
                Ok(())
            }
        }
    }

    fn delete_chain(&mut self, name: &ChainName, step: &Step) -> Result<(), StepError> {
        self.require_unreferenced(Reference::Chain(name), step)?;
        if self.chains.get(name).is_some_and(|chain| !chain.rules.is_empty()) {
            return Err(StepError::Busy(step.to_string()));
        }
        let unmanaged = self.unmanaged.remove(&Unmanaged::Chain(name.clone()));
        self.comments.chains.remove(name);
        let existed = self.chains.remove(name).is_some() || unmanaged;
        existed.then_some(()).ok_or_else(|| StepError::NotFound(step.to_string()))
    }

    fn require_free_name(&self, name: &SetName, step: &Step) -> Result<(), StepError> {
        let unmanaged = [Unmanaged::Set(name.clone()), Unmanaged::Map(name.clone())];
        let taken = self.sets.contains_key(name)
            || self.maps.contains_key(name)
            || unmanaged.iter().any(|object| self.unmanaged.contains(object));
        if taken { Err(StepError::Exists(step.to_string())) } else { Ok(()) }
    }

    fn require_unreferenced(&self, object: Reference<'_>, step: &Step) -> Result<(), StepError> {
        let mut rules = self.chains.values().flat_map(|chain| chain.rules.iter().flatten());
        let mut verdicts = self.maps.values().flat_map(|map| map.elements.values());
        let referenced = rules.any(|rule| rule.references().any(|r| r == object))
            || verdicts.any(|verdict| verdict.target().map(Reference::Chain) == Some(object));
        if referenced { Err(StepError::Busy(step.to_string())) } else { Ok(()) }
    }

    fn add_map_elements(
        &mut self,
        name: &SetName,
        elements: &OrdMap<Element, Verdict>,
        step: &Step,
    ) -> Result<(), StepError> {
        for target in elements.values().filter_map(Verdict::target) {
            self.require_target(target, step)?;
        }
        let map = self.maps.get_mut(name).ok_or_else(|| StepError::NotFound(step.to_string()))?;
        for (key, verdict) in elements {
            if !matches_key(&map.key, Lookup::Hash, key) {
                return Err(StepError::Mismatch(step.to_string()));
            }
            if map.elements.insert(key.clone(), verdict.clone()).is_some() {
                return Err(StepError::Exists(step.to_string()));
            }
        }
        Ok(())
    }

    /// A chain can be the target of a verdict if it exists and is not a base chain.
    fn require_target(&self, chain: &ChainName, step: &Step) -> Result<(), StepError> {
        match self.chains.get(chain) {
            None => Err(StepError::NotFound(step.to_string())),
            Some(FakeChain { base: Some(_), .. }) => Err(StepError::Mismatch(step.to_string())),
            Some(FakeChain { base: None, .. }) => Ok(()),
        }
    }

    fn require_references(&self, rule: &Rule, step: &Step) -> Result<(), StepError> {
        let lookup = |fields: &[Field], key: Option<&Vec<KeyType>>| match key {
            None => Err(StepError::NotFound(step.to_string())),
            Some(key) if fields.iter().map(|field| field.key_type()).eq(key.iter().copied()) => Ok(()),
            Some(_) => Err(StepError::Mismatch(step.to_string())),
        };
        for condition in &rule.matches {
            if let Match::InSet(fields, _, name) = condition {
                lookup(fields, self.sets.get(name).map(|set| &set.key))?;
            }
        }
        match &rule.action {
            Action::Dispatch(fields, name) => lookup(fields, self.maps.get(name).map(|map| &map.key)),
            Action::Verdict(verdict) => verdict.target().map_or(Ok(()), |chain| self.require_target(chain, step)),
            Action::Masquerade | Action::Log(_) | Action::NoTrack => Ok(()),
        }
    }
}

fn add_elements(set: &mut Set, elements: &OrdSet<Element>, step: &Step) -> Result<(), StepError> {
    for element in elements {
        if !matches_key(&set.key, set.lookup, element) {
            return Err(StepError::Mismatch(step.to_string()));
        }
        if set.elements.iter().any(|have| overlap(have, element)) {
            return Err(StepError::Exists(step.to_string()));
        }
        set.elements.insert(element.clone());
    }
    Ok(())
}

/// Whether an element is valid for a set with this key and lookup.
fn matches_key(key: &[KeyType], lookup: Lookup, element: &Element) -> bool {
    let part = |(key_type, value): (&KeyType, &Value)| match (key_type, value) {
        (KeyType::Ipv4, Value::Addr(IpAddr::V4(_)))
        | (KeyType::Ipv6, Value::Addr(IpAddr::V6(_)))
        | (KeyType::IfName, Value::IfName(_))
        | (KeyType::Proto, Value::Proto(_))
        | (KeyType::Port, Value::Port(_)) => true,
        (KeyType::Ipv4, Value::Net(IpNet::V4(net))) => lookup == Lookup::Interval && net.prefix_len() < 32,
        (KeyType::Ipv6, Value::Net(IpNet::V6(net))) => lookup == Lookup::Interval && net.prefix_len() < 128,
        (KeyType::Port, Value::PortRange(first, last)) => lookup == Lookup::Interval && first < last,
        _ => false,
    };
    key.len() == element.len() && key.iter().zip(element).all(part)
}

/// Whether a packet can match both elements.
fn overlap(a: &Element, b: &Element) -> bool {
    a.iter().zip(b).all(|(a, b)| match (a.as_net(), b.as_net(), a.as_ports(), b.as_ports()) {
        (Some(a), Some(b), ..) => a.contains(&b) || b.contains(&a),
        (.., Some(a), Some(b)) => a.0 <= b.1 && b.0 <= a.1,
        _ => a == b,
    })
}

impl Value {
    fn as_net(&self) -> Option<IpNet> {
        match self {
            Self::Addr(addr) => Some(IpNet::from(*addr)),
            Self::Net(net) => Some(*net),
            Self::IfName(_) | Self::Proto(_) | Self::Port(_) | Self::PortRange(..) => None,
        }
    }

    const fn as_ports(&self) -> Option<(u16, u16)> {
        match self {
            Self::Port(port) => Some((*port, *port)),
            Self::PortRange(first, last) => Some((*first, *last)),
            Self::Addr(_) | Self::Net(_) | Self::IfName(_) | Self::Proto(_) => None,
        }
    }
}
