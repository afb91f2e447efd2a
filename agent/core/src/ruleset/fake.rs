//! A table that executes transactions and refuses what the kernel would refuse: for tests that have no kernel.
//!
//! It is stricter where we know better: an element is added once and deleted once, and a chain is empty before it goes.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use super::{
    Action, BaseChain, Chain, Comments, Element, Field, Installed, InstalledChain, KeyType, Lookup, Match, Reference,
    Rule, Ruleset, Set, Step, Transaction, Unmanaged, Value, Verdict, VerdictMap,
};
use crate::names::{ChainName, SetName};

/// Why a step was refused, with the step's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// What it changes or names is not there (ENOENT).
    #[error("{0}: what it names is not there")]
    Missing(String),
    /// What it makes is there already (EEXIST).
    #[error("{0}: it is there already")]
    Exists(String),
    /// What it removes is named by a rule or an element (EBUSY).
    #[error("{0}: it is still named")]
    Busy(String),
    /// A type does not fit, or a value does not belong into such a set (EINVAL).
    #[error("{0}: the types do not fit")]
    Mismatch(String),
}

/// One table.
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
    /// `None` for a rule that is not ours.
    rules: Vec<Option<Rule>>,
}

impl FakeTable {
    /// Does all of it or nothing.
    ///
    /// # Errors
    /// At the first step that the kernel would refuse.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), StepError> {
        let mut contents = self.contents.clone();
        for step in transaction.steps() {
            match step {
                Step::AddTable => _ = contents.get_or_insert_default(),
                Step::DeleteTable if contents.is_some() => contents = None,
                _ => contents.as_mut().ok_or_else(|| StepError::Missing(step.to_string()))?.apply(step)?,
            }
        }
        self.contents = contents;
        Ok(())
    }

    /// What is in the table.
    #[must_use]
    pub fn read_back(&self) -> Option<Installed> {
        self.contents.as_ref().map(|contents| Installed {
            sets: contents.sets.clone(),
            maps: contents.maps.clone(),
            chains: contents.chains.iter().map(|(name, chain)| (name.clone(), chain.read_back())).collect(),
            unmanaged: contents.unmanaged.clone(),
        })
    }

    /// The rules in force, to be interpreted; without those that are not ours.
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

    /// Somebody puts a rule of his own in front of a chain's rules. No chain, no rule.
    pub fn add_unmanaged_rule(&mut self, chain: &ChainName) {
        if let Some(chain) = self.contents.as_mut().and_then(|contents| contents.chains.get_mut(chain)) {
            chain.rules.insert(0, None);
        }
    }

    /// Somebody puts something of his own into the table, in place of what has its name.
    pub fn add_unmanaged(&mut self, thing: Unmanaged) {
        let contents = self.contents.get_or_insert_default();
        match &thing {
            Unmanaged::Set(name) | Unmanaged::Map(name) => {
                contents.sets.remove(name);
                contents.maps.remove(name);
            }
            Unmanaged::Chain(name) => _ = contents.chains.remove(name),
            Unmanaged::Other(_) => {}
        }
        contents.unmanaged.insert(thing);
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
        let missing = || StepError::Missing(step.to_string());
        match step {
            Step::AddTable => Ok(()),
            Step::DeleteTable => Err(missing()),
            Step::AddSet(name, key, lookup, comment) => {
                self.free_name(name, step)?;
                let set = Set { key: key.clone(), lookup: *lookup, elements: OrdSet::new() };
                self.sets.insert(name.clone(), set);
                self.comments.sets.extend(comment.iter().map(|comment| (name.clone(), comment.clone())));
                Ok(())
            }
            Step::AddMap(name, key, comment) => {
                self.free_name(name, step)?;
                self.maps.insert(name.clone(), VerdictMap { key: key.clone(), elements: OrdMap::new() });
                self.comments.sets.extend(comment.iter().map(|comment| (name.clone(), comment.clone())));
                Ok(())
            }
            Step::DeleteSet(name) => {
                self.not_named(Reference::Set(name), step)?;
                let unmanaged = self.unmanaged.remove(&Unmanaged::Set(name.clone()));
                self.comments.sets.remove(name);
                (self.sets.remove(name).is_some() || unmanaged).then_some(()).ok_or_else(missing)
            }
            Step::DeleteMap(name) => {
                self.not_named(Reference::Set(name), step)?;
                let unmanaged = self.unmanaged.remove(&Unmanaged::Map(name.clone()));
                self.comments.sets.remove(name);
                (self.maps.remove(name).is_some() || unmanaged).then_some(()).ok_or_else(missing)
            }
            Step::AddElements(name, elements) => {
                add_elements(self.sets.get_mut(name).ok_or_else(missing)?, elements, step)
            }
            Step::DeleteElements(name, keys) => {
                let set = self.sets.get_mut(name).ok_or_else(missing)?;
                keys.iter().all(|key| set.elements.remove(key).is_some()).then_some(()).ok_or_else(missing)
            }
            Step::AddMapElements(name, elements) => self.add_map_elements(name, elements, step),
            Step::DeleteMapElements(name, keys) => {
                let map = self.maps.get_mut(name).ok_or_else(missing)?;
                keys.iter().all(|key| map.elements.remove(key).is_some()).then_some(()).ok_or_else(missing)
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
                (known.is_some() || unmanaged).then_some(()).ok_or_else(missing)
            }
            Step::DeleteChain(name) => self.delete_chain(name, step),
            Step::AddRule(name, rule) => {
                self.can_take(rule, step)?;
                self.chains.get_mut(name).ok_or_else(missing)?.rules.push(Some(rule.clone()));
                Ok(())
            }
        }
    }

    fn delete_chain(&mut self, name: &ChainName, step: &Step) -> Result<(), StepError> {
        self.not_named(Reference::Chain(name), step)?;
        if self.chains.get(name).is_some_and(|chain| !chain.rules.is_empty()) {
            return Err(StepError::Busy(step.to_string()));
        }
        let unmanaged = self.unmanaged.remove(&Unmanaged::Chain(name.clone()));
        self.comments.chains.remove(name);
        let gone = self.chains.remove(name).is_some() || unmanaged;
        gone.then_some(()).ok_or_else(|| StepError::Missing(step.to_string()))
    }

    fn free_name(&self, name: &SetName, step: &Step) -> Result<(), StepError> {
        let unmanaged = [Unmanaged::Set(name.clone()), Unmanaged::Map(name.clone())];
        let taken = self.sets.contains_key(name)
            || self.maps.contains_key(name)
            || unmanaged.iter().any(|thing| self.unmanaged.contains(thing));
        if taken { Err(StepError::Exists(step.to_string())) } else { Ok(()) }
    }

    fn not_named(&self, thing: Reference<'_>, step: &Step) -> Result<(), StepError> {
        let mut rules = self.chains.values().flat_map(|chain| chain.rules.iter().flatten());
        let mut verdicts = self.maps.values().flat_map(|map| map.elements.values());
        let named = rules.any(|rule| rule.references().any(|r| r == thing))
            || verdicts.any(|verdict| verdict.target().map(Reference::Chain) == Some(thing));
        if named { Err(StepError::Busy(step.to_string())) } else { Ok(()) }
    }

    fn add_map_elements(
        &mut self,
        name: &SetName,
        elements: &OrdMap<Element, Verdict>,
        step: &Step,
    ) -> Result<(), StepError> {
        for target in elements.values().filter_map(Verdict::target) {
            self.is_callable(target, step)?;
        }
        let map = self.maps.get_mut(name).ok_or_else(|| StepError::Missing(step.to_string()))?;
        for (key, verdict) in elements {
            if !fits(&map.key, Lookup::Hash, key) {
                return Err(StepError::Mismatch(step.to_string()));
            }
            if map.elements.insert(key.clone(), verdict.clone()).is_some() {
                return Err(StepError::Exists(step.to_string()));
            }
        }
        Ok(())
    }

    /// A chain that a verdict may go to: it is there and hangs nowhere itself.
    fn is_callable(&self, chain: &ChainName, step: &Step) -> Result<(), StepError> {
        match self.chains.get(chain) {
            None => Err(StepError::Missing(step.to_string())),
            Some(FakeChain { base: Some(_), .. }) => Err(StepError::Mismatch(step.to_string())),
            Some(FakeChain { base: None, .. }) => Ok(()),
        }
    }

    fn can_take(&self, rule: &Rule, step: &Step) -> Result<(), StepError> {
        let looks_up = |fields: &[Field], key: Option<&Vec<KeyType>>| match key {
            None => Err(StepError::Missing(step.to_string())),
            Some(key) if fields.iter().map(|field| field.key_type()).eq(key.iter().copied()) => Ok(()),
            Some(_) => Err(StepError::Mismatch(step.to_string())),
        };
        for condition in &rule.matches {
            if let Match::InSet(fields, _, name) = condition {
                looks_up(fields, self.sets.get(name).map(|set| &set.key))?;
            }
        }
        match &rule.action {
            Action::Dispatch(fields, name) => looks_up(fields, self.maps.get(name).map(|map| &map.key)),
            Action::Verdict(verdict) => verdict.target().map_or(Ok(()), |chain| self.is_callable(chain, step)),
            Action::Masquerade | Action::Log(_) | Action::NoTrack => Ok(()),
        }
    }
}

fn add_elements(set: &mut Set, elements: &OrdSet<Element>, step: &Step) -> Result<(), StepError> {
    for element in elements {
        if !fits(&set.key, set.lookup, element) {
            return Err(StepError::Mismatch(step.to_string()));
        }
        if set.elements.iter().any(|have| overlap(have, element)) {
            return Err(StepError::Exists(step.to_string()));
        }
        set.elements.insert(element.clone());
    }
    Ok(())
}

fn fits(key: &[KeyType], lookup: Lookup, element: &Element) -> bool {
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

/// Whether some packet is in both elements.
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
