//! Compares two states of the table and returns the difference as one transaction, in an order that the kernel accepts:
//! objects are created before they are referenced, and deleted after their last reference.
//!
//! Set and map elements are added and deleted individually. A chain whose rules differ is flushed and refilled. An object
//! whose declaration differs is deleted and recreated, together with every rule and map element that refers to it. The
//! kernel commits all of it atomically.
//!
//! [`diff()`] compares everything with a table that was read back. [`change()`] compares only the parts that two rulesets do
//! not share.

use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, ordmap, ordset};

use super::{
    BaseChain, Chain, Element, Installed, InstalledChain, Reference, Ruleset, Set, Step, Transaction, Unmanaged,
    Verdict, VerdictMap,
};
use crate::names::{ChainName, SetName};

/// Compares the desired table with the one that was read back; `None` if the table does not exist.
pub fn diff(want: &Ruleset, have: Option<&Installed>) -> Transaction {
    let Some(have) = have else { return Transaction::create(want) };
    if have.unmanaged.iter().any(|object| matches!(object, Unmanaged::Other(_))) {
        return Transaction::replace(want);
    }
    let mut difference = TableDiff::new(want, &have.sets, &have.maps);
    for object in &have.unmanaged {
        match object {
            Unmanaged::Set(name) => _ = difference.to_delete.sets.insert(name),
            Unmanaged::Map(name) => _ = difference.to_delete.maps.insert(name),
            Unmanaged::Chain(name) => _ = difference.to_delete.chains.insert(name),
            Unmanaged::Other(_) => {}
        }
    }
    let names = want.chains.keys().chain(have.chains.keys());
    let chains: BTreeMap<&ChainName, ChainPair<'_>> = names
        .map(|name| {
            let (want, have) = (want.chains.get(name).map(|chain| &**chain), have.chains.get(name));
            let same = want.zip(have).is_some_and(|(want, have)| reads_back_as(want, have));
            (name, ChainPair { want, have: have.map(|have| have.base), rules: RulesCompared::compare(same) })
        })
        .collect();
    difference.chains = chains.iter().filter(|(_, pair)| pair.differs()).map(|(name, pair)| (*name, *pair)).collect();
    difference.transaction(|| chains)
}

/// Compares the desired table with the last applied one. Requires that the kernel's table is still equal to `have`.
pub fn change(want: &Ruleset, have: &Ruleset) -> Transaction {
    let mut difference = TableDiff::new(want, &have.sets, &have.maps);
    let pair = |name| {
        let (want, have) = (want.chains.get(name).map(|chain| &**chain), have.chains.get(name));
        let same = want.zip(have).is_some_and(|(want, have)| want.rules == have.rules);
        (name, ChainPair { want, have: have.map(|have| have.base), rules: RulesCompared::compare(same) })
    };
    difference.chains = have.chains.diff(&want.chains).map(|item| pair(key(&item))).collect();
    difference.transaction(|| want.chains.keys().chain(have.chains.keys()).map(pair).collect())
}

fn reads_back_as(want: &Chain, have: &InstalledChain) -> bool {
    let same = |(want, have): (&super::Rule, &Option<_>)| Some(want.fingerprint()) == *have;
    want.rules.len() == have.rules.len() && want.rules.iter().zip(&have.rules).all(same)
}

fn key<'a, K, V>(item: &ordmap::DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        ordmap::DiffItem::Add(key, _)
        | ordmap::DiffItem::Update { new: (key, _), .. }
        | ordmap::DiffItem::Remove(key, _) => key,
    }
}

/// Result of comparing the rules of a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RulesCompared {
    Same,
    Differ,
}

impl RulesCompared {
    const fn compare(same: bool) -> Self {
        if same { Self::Same } else { Self::Differ }
    }
}

/// A chain in both states.
#[derive(Clone, Copy)]
struct ChainPair<'a> {
    want: Option<&'a Chain>,
    /// Declaration of the existing chain; the outer `None` means that it does not exist.
    have: Option<Option<BaseChain>>,
    rules: RulesCompared,
}

impl ChainPair<'_> {
    fn differs(&self) -> bool {
        self.rules == RulesCompared::Differ || self.want.map(|want| want.base) != self.have
    }
}

type SetPairs<'a, T> = BTreeMap<&'a SetName, (Option<&'a T>, Option<&'a T>)>;

/// Objects to delete, whether or not they are recreated.
#[derive(Default)]
struct ToDelete<'a> {
    sets: BTreeSet<&'a SetName>,
    maps: BTreeSet<&'a SetName>,
    chains: BTreeSet<&'a ChainName>,
}

impl ToDelete<'_> {
    fn contains(&self, reference: Reference<'_>) -> bool {
        match reference {
            Reference::Set(name) => self.sets.contains(name) || self.maps.contains(name),
            Reference::Chain(name) => self.chains.contains(name),
        }
    }

    fn contains_target_of(&self, verdict: &Verdict) -> bool {
        verdict.target().is_some_and(|chain| self.chains.contains(chain))
    }
}

/// Objects that differ, by name, in the desired and in the existing state.
struct TableDiff<'a> {
    want: &'a Ruleset,
    have_maps: &'a OrdMap<SetName, VerdictMap>,
    sets: SetPairs<'a, Set>,
    maps: SetPairs<'a, VerdictMap>,
    chains: BTreeMap<&'a ChainName, ChainPair<'a>>,
    to_delete: ToDelete<'a>,
}

impl<'a> TableDiff<'a> {
    fn new(want: &'a Ruleset, sets: &'a OrdMap<SetName, Set>, maps: &'a OrdMap<SetName, VerdictMap>) -> Self {
        let of_set = |item| (key(&item), (want.sets.get(key(&item)), sets.get(key(&item))));
        let of_map = |item| (key(&item), (want.maps.get(key(&item)), maps.get(key(&item))));
        Self {
            want,
            have_maps: maps,
            sets: sets.diff(&want.sets).map(of_set).collect(),
            maps: maps.diff(&want.maps).map(of_map).collect(),
            chains: BTreeMap::new(),
            to_delete: ToDelete::default(),
        }
    }

    /// Calls `all_chains` only if an object is recreated, to find the chains that refer to it.
    fn transaction(mut self, all_chains: impl FnOnce() -> BTreeMap<&'a ChainName, ChainPair<'a>>) -> Transaction {
        self.mark_deletions();
        if self.recreates_an_object() {
            self.chains = all_chains();
            let (want, have) = (&self.want.maps, self.have_maps);
            self.maps = want.keys().chain(have.keys()).map(|n| (n, (want.get(n), have.get(n)))).collect();
        }
        let rewritten = self.rewritten_chains();
        let mut transaction = Transaction::default();
        self.delete_objects(&rewritten, &mut transaction);
        self.create_objects(&mut transaction);
        self.fill_sets(&mut transaction);
        for name in rewritten {
            if let Some(chain) = self.want.chains.get(name) {
                transaction.add_rules(name, &chain.rules);
            }
        }
        self.fill_maps(&mut transaction);
        transaction
    }

    /// Marks objects for deletion that are no longer wanted or whose declaration differs.
    fn mark_deletions(&mut self) {
        let outdated = |(name, (want, have)): (&&'a SetName, &(Option<&Set>, Option<&Set>))| {
            let declaration = |set: &Set| (set.key.clone(), set.lookup);
            (have.is_some() && want.map(declaration) != have.map(declaration)).then_some(*name)
        };
        self.to_delete.sets.extend(self.sets.iter().filter_map(outdated));
        let outdated = |(name, (want, have)): (&&'a SetName, &(Option<&VerdictMap>, Option<&VerdictMap>))| {
            (have.is_some() && want.map(|map| &map.key) != have.map(|map| &map.key)).then_some(*name)
        };
        self.to_delete.maps.extend(self.maps.iter().filter_map(outdated));
        let outdated = |(name, pair): (&&'a ChainName, &ChainPair<'_>)| {
            (pair.have.is_some() && pair.want.map(|chain| chain.base) != pair.have).then_some(*name)
        };
        self.to_delete.chains.extend(self.chains.iter().filter_map(outdated));
    }

    fn recreates_an_object(&self) -> bool {
        let ToDelete { sets, maps, chains } = &self.to_delete;
        let wanted = |name: &&&SetName| self.want.sets.contains_key(**name) || self.want.maps.contains_key(**name);
        sets.iter().chain(maps).any(|name| wanted(&name))
            || chains.iter().any(|name| self.want.chains.contains_key(*name))
    }

    /// The chains whose rules are flushed and added again: deleted, new or changed chains, and chains that refer to an
    /// object to delete.
    fn rewritten_chains(&self) -> BTreeSet<&'a ChainName> {
        let unchanged = |name: &ChainName, pair: &ChainPair<'_>| {
            let refers_to_deleted = || {
                pair.want
                    .into_iter()
                    .flat_map(|c| &c.rules)
                    .flat_map(super::Rule::references)
                    .any(|r| self.to_delete.contains(r))
            };
            pair.rules == RulesCompared::Same && !self.to_delete.chains.contains(name) && !refers_to_deleted()
        };
        let changed = self.chains.iter().filter(|(name, pair)| !unchanged(name, pair)).map(|(name, _)| *name);
        self.to_delete.chains.iter().copied().chain(changed).collect()
    }

    /// Deletes references first, then the objects.
    fn delete_objects(&self, rewritten: &BTreeSet<&ChainName>, transaction: &mut Transaction) {
        let exists = |name: &ChainName| self.chains.get(name).is_some_and(|pair| pair.have.is_some());
        for name in rewritten.iter().filter(|name| exists(name) || self.to_delete.chains.contains(**name)) {
            transaction.push(Step::FlushChain((*name).clone()));
        }
        for (name, (want, have)) in &self.maps {
            let (Some(want), Some(have), false) = (want, have, self.to_delete.maps.contains(name)) else { continue };
            transaction.delete_map_elements(name, self.deleted_elements(want, have));
        }
        self.to_delete.maps.iter().for_each(|name| transaction.push(Step::DeleteMap((*name).clone())));
        self.to_delete.chains.iter().for_each(|name| transaction.push(Step::DeleteChain((*name).clone())));
        self.to_delete.sets.iter().for_each(|name| transaction.push(Step::DeleteSet((*name).clone())));
    }

    /// Keys of the map elements that are unwanted, changed, or refer to a deleted chain.
    fn deleted_elements(&self, want: &VerdictMap, have: &VerdictMap) -> imbl::OrdSet<Element> {
        let changed = have.elements.diff(&want.elements).filter_map(|item| match item {
            ordmap::DiffItem::Remove(key, _) | ordmap::DiffItem::Update { old: (key, _), .. } => Some(key.clone()),
            ordmap::DiffItem::Add(..) => None,
        });
        changed.chain(self.elements_with_deleted_target(have).map(|(key, _)| key.clone())).collect()
    }

    /// Map elements that are new, changed, or refer to a recreated chain.
    fn added_elements(&self, want: &VerdictMap, have: &VerdictMap) -> OrdMap<Element, Verdict> {
        let copy = |(key, verdict): (&Element, &Verdict)| (key.clone(), verdict.clone());
        let changed = have.elements.diff(&want.elements).filter_map(|item| match item {
            ordmap::DiffItem::Add(key, verdict) | ordmap::DiffItem::Update { new: (key, verdict), .. } => {
                Some(copy((key, verdict)))
            }
            ordmap::DiffItem::Remove(..) => None,
        });
        changed.chain(self.elements_with_deleted_target(want).map(copy)).collect()
    }

    fn elements_with_deleted_target<'b>(
        &self,
        map: &'b VerdictMap,
    ) -> impl Iterator<Item = (&'b Element, &'b Verdict)> {
        let elements = (!self.to_delete.chains.is_empty()).then(|| map.elements.iter()).into_iter().flatten();
        elements.filter(|(_, verdict)| self.to_delete.contains_target_of(verdict))
    }

    /// Creates new and recreated objects without rules and elements.
    fn create_objects(&self, transaction: &mut Transaction) {
        let sets: BTreeSet<&SetName> = self.sets.keys().chain(&self.to_delete.sets).copied().collect();
        for (name, set) in sets.into_iter().filter_map(|name| Some((name, self.want.sets.get(name)?))) {
            if self.kept_set(name).is_none() {
                transaction.push(self.want.add_set(name, set));
            }
        }
        let chains: BTreeSet<&ChainName> = self.chains.keys().chain(&self.to_delete.chains).copied().collect();
        for (name, chain) in chains.into_iter().filter_map(|name| Some((name, self.want.chains.get(name)?))) {
            let exists = self.chains.get(name).is_some_and(|pair| pair.have.is_some());
            if !exists || self.to_delete.chains.contains(name) {
                transaction.push(self.want.add_chain(name, chain));
            }
        }
        let maps: BTreeSet<&SetName> = self.maps.keys().chain(&self.to_delete.maps).copied().collect();
        for (name, map) in maps.into_iter().filter_map(|name| Some((name, self.want.maps.get(name)?))) {
            if self.kept_map(name).is_none() {
                transaction.push(self.want.add_map(name, map));
            }
        }
    }

    fn kept_set(&self, name: &SetName) -> Option<&'a Set> {
        self.sets.get(name).and_then(|(_, have)| *have).filter(|_| !self.to_delete.sets.contains(name))
    }

    fn kept_map(&self, name: &SetName) -> Option<&'a VerdictMap> {
        self.have_maps.get(name).filter(|_| !self.to_delete.maps.contains(name))
    }

    fn fill_sets(&self, transaction: &mut Transaction) {
        for (name, (want, _)) in &self.sets {
            let Some(want) = want else { continue };
            match self.kept_set(name) {
                Some(have) => {
                    let (mut deleted, mut added) = (Vec::new(), Vec::new());
                    for item in have.elements.diff(&want.elements) {
                        match item {
                            ordset::DiffItem::Add(element) => added.push(element.clone()),
                            ordset::DiffItem::Remove(element) => deleted.push(element.clone()),
                        }
                    }
                    transaction.delete_elements(name, deleted.into());
                    transaction.add_elements(name, added.into());
                }
                None => transaction.add_elements(name, want.elements.clone()),
            }
        }
    }

    fn fill_maps(&self, transaction: &mut Transaction) {
        for (name, (want, _)) in &self.maps {
            let Some(want) = want else { continue };
            match self.kept_map(name) {
                Some(have) => transaction.add_map_elements(name, self.added_elements(want, have)),
                None => transaction.add_map_elements(name, want.elements.clone()),
            }
        }
    }
}
