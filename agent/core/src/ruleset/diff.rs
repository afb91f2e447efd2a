//! The difference between two states of the table, as one transaction in an order that the kernel takes: nothing is named
//! before it is there, and nothing goes while it is named.
//!
//! Elements change one by one. A chain whose rules differ is flushed and written anew. What was declared in another way is
//! removed and made again, and with it every rule and map element that names it. All of it shows at once.
//!
//! Against a table that was read back all of both is compared; against one that is known to be as we made it, only what
//! the two do not share.

use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, ordmap, ordset};

use super::{
    BaseChain, Chain, Element, Installed, InstalledChain, Reference, Ruleset, Set, Step, Transaction, Unmanaged,
    Verdict, VerdictMap,
};
use crate::names::{ChainName, SetName};

/// What to do so that the kernel's table is as wanted, where it was read back. `have` is `None` where there is no table.
pub fn diff(want: &Ruleset, have: Option<&Installed>) -> Transaction {
    let Some(have) = have else { return Transaction::create(want) };
    if have.unmanaged.iter().any(|thing| matches!(thing, Unmanaged::Other(_))) {
        return Transaction::replace(want);
    }
    let mut difference = TableDiff::new(want, &have.sets, &have.maps);
    for thing in &have.unmanaged {
        match thing {
            Unmanaged::Set(name) => _ = difference.doomed.sets.insert(name),
            Unmanaged::Map(name) => _ = difference.doomed.maps.insert(name),
            Unmanaged::Chain(name) => _ = difference.doomed.chains.insert(name),
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

/// The same where the kernel's table is known to be `have`, because we made it and nobody has changed it since.
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

/// Whether a chain's rules are those that are wanted.
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

/// A chain on both sides.
#[derive(Clone, Copy)]
struct ChainPair<'a> {
    want: Option<&'a Chain>,
    /// How it hangs, if it is there.
    have: Option<Option<BaseChain>>,
    rules: RulesCompared,
}

impl ChainPair<'_> {
    fn differs(&self) -> bool {
        self.rules == RulesCompared::Differ || self.want.map(|want| want.base) != self.have
    }
}

type SetPairs<'a, T> = BTreeMap<&'a SetName, (Option<&'a T>, Option<&'a T>)>;

/// What goes: for good, or to be made again.
#[derive(Default)]
struct ToDelete<'a> {
    sets: BTreeSet<&'a SetName>,
    maps: BTreeSet<&'a SetName>,
    chains: BTreeSet<&'a ChainName>,
}

impl ToDelete<'_> {
    fn has(&self, reference: Reference<'_>) -> bool {
        match reference {
            Reference::Set(name) => self.sets.contains(name) || self.maps.contains(name),
            Reference::Chain(name) => self.chains.contains(name),
        }
    }

    fn has_target_of(&self, verdict: &Verdict) -> bool {
        verdict.target().is_some_and(|chain| self.chains.contains(chain))
    }
}

/// What differs, by name: as it is wanted, as it is there.
struct TableDiff<'a> {
    want: &'a Ruleset,
    have_maps: &'a OrdMap<SetName, VerdictMap>,
    sets: SetPairs<'a, Set>,
    maps: SetPairs<'a, VerdictMap>,
    chains: BTreeMap<&'a ChainName, ChainPair<'a>>,
    doomed: ToDelete<'a>,
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
            doomed: ToDelete::default(),
        }
    }

    /// `all_chains` is asked for only if something is made again, so that whatever names it has to be looked for.
    fn transaction(mut self, all_chains: impl FnOnce() -> BTreeMap<&'a ChainName, ChainPair<'a>>) -> Transaction {
        self.doom();
        if self.makes_something_again() {
            self.chains = all_chains();
            let (want, have) = (&self.want.maps, self.have_maps);
            self.maps = want.keys().chain(have.keys()).map(|n| (n, (want.get(n), have.get(n)))).collect();
        }
        let rewritten = self.rewritten();
        let mut all = Transaction::default();
        self.remove(&rewritten, &mut all);
        self.declare(&mut all);
        self.fill_sets(&mut all);
        for name in rewritten {
            if let Some(chain) = self.want.chains.get(name) {
                all.add_rules(name, &chain.rules);
            }
        }
        self.fill_maps(&mut all);
        all
    }

    /// Adds what is no longer wanted, or wanted otherwise, to what goes.
    fn doom(&mut self) {
        let goes = |(name, (want, have)): (&&'a SetName, &(Option<&Set>, Option<&Set>))| {
            let declared = |set: &Set| (set.key.clone(), set.lookup);
            (have.is_some() && want.map(declared) != have.map(declared)).then_some(*name)
        };
        self.doomed.sets.extend(self.sets.iter().filter_map(goes));
        let goes = |(name, (want, have)): (&&'a SetName, &(Option<&VerdictMap>, Option<&VerdictMap>))| {
            (have.is_some() && want.map(|map| &map.key) != have.map(|map| &map.key)).then_some(*name)
        };
        self.doomed.maps.extend(self.maps.iter().filter_map(goes));
        let goes = |(name, pair): (&&'a ChainName, &ChainPair<'_>)| {
            (pair.have.is_some() && pair.want.map(|chain| chain.base) != pair.have).then_some(*name)
        };
        self.doomed.chains.extend(self.chains.iter().filter_map(goes));
    }

    fn makes_something_again(&self) -> bool {
        let ToDelete { sets, maps, chains } = &self.doomed;
        let wanted = |name: &&&SetName| self.want.sets.contains_key(**name) || self.want.maps.contains_key(**name);
        sets.iter().chain(maps).any(|name| wanted(&name))
            || chains.iter().any(|name| self.want.chains.contains_key(*name))
    }

    /// The chains that lose the rules they have and get those that are wanted: gone, new, changed, or naming what goes.
    fn rewritten(&self) -> BTreeSet<&'a ChainName> {
        let stays = |name: &ChainName, pair: &ChainPair<'_>| {
            let names_what_goes = || {
                pair.want
                    .into_iter()
                    .flat_map(|c| &c.rules)
                    .flat_map(super::Rule::references)
                    .any(|r| self.doomed.has(r))
            };
            pair.rules == RulesCompared::Same && !self.doomed.chains.contains(name) && !names_what_goes()
        };
        let changed = self.chains.iter().filter(|(name, pair)| !stays(name, pair)).map(|(name, _)| *name);
        self.doomed.chains.iter().copied().chain(changed).collect()
    }

    /// Names first, then what was named.
    fn remove(&self, rewritten: &BTreeSet<&ChainName>, all: &mut Transaction) {
        let is_there = |name: &ChainName| self.chains.get(name).is_some_and(|pair| pair.have.is_some());
        for name in rewritten.iter().filter(|name| is_there(name) || self.doomed.chains.contains(**name)) {
            all.push(Step::FlushChain((*name).clone()));
        }
        for (name, (want, have)) in &self.maps {
            let (Some(want), Some(have), false) = (want, have, self.doomed.maps.contains(name)) else { continue };
            all.delete_map_elements(name, self.leaving(want, have));
        }
        self.doomed.maps.iter().for_each(|name| all.push(Step::DeleteMap((*name).clone())));
        self.doomed.chains.iter().for_each(|name| all.push(Step::DeleteChain((*name).clone())));
        self.doomed.sets.iter().for_each(|name| all.push(Step::DeleteSet((*name).clone())));
    }

    /// The keys of elements that go, or change, or lead to a chain that is made again.
    fn leaving(&self, want: &VerdictMap, have: &VerdictMap) -> imbl::OrdSet<Element> {
        let changed = have.elements.diff(&want.elements).filter_map(|item| match item {
            ordmap::DiffItem::Remove(key, _) | ordmap::DiffItem::Update { old: (key, _), .. } => Some(key.clone()),
            ordmap::DiffItem::Add(..) => None,
        });
        changed.chain(self.elements_to_what_is_made_again(have).map(|(key, _)| key.clone())).collect()
    }

    /// The elements that come, or change, or lead to a chain that is made again.
    fn coming(&self, want: &VerdictMap, have: &VerdictMap) -> OrdMap<Element, Verdict> {
        let copy = |(key, verdict): (&Element, &Verdict)| (key.clone(), verdict.clone());
        let changed = have.elements.diff(&want.elements).filter_map(|item| match item {
            ordmap::DiffItem::Add(key, verdict) | ordmap::DiffItem::Update { new: (key, verdict), .. } => {
                Some(copy((key, verdict)))
            }
            ordmap::DiffItem::Remove(..) => None,
        });
        changed.chain(self.elements_to_what_is_made_again(want).map(copy)).collect()
    }

    fn elements_to_what_is_made_again<'b>(
        &self,
        map: &'b VerdictMap,
    ) -> impl Iterator<Item = (&'b Element, &'b Verdict)> {
        let elements = (!self.doomed.chains.is_empty()).then(|| map.elements.iter()).into_iter().flatten();
        elements.filter(|(_, verdict)| self.doomed.has_target_of(verdict))
    }

    /// What is new or goes to be made again, without contents.
    fn declare(&self, all: &mut Transaction) {
        let sets: BTreeSet<&SetName> = self.sets.keys().chain(&self.doomed.sets).copied().collect();
        for (name, set) in sets.into_iter().filter_map(|name| Some((name, self.want.sets.get(name)?))) {
            if self.kept_set(name).is_none() {
                all.push(self.want.add_set(name, set));
            }
        }
        let chains: BTreeSet<&ChainName> = self.chains.keys().chain(&self.doomed.chains).copied().collect();
        for (name, chain) in chains.into_iter().filter_map(|name| Some((name, self.want.chains.get(name)?))) {
            let is_there = self.chains.get(name).is_some_and(|pair| pair.have.is_some());
            if !is_there || self.doomed.chains.contains(name) {
                all.push(self.want.add_chain(name, chain));
            }
        }
        let maps: BTreeSet<&SetName> = self.maps.keys().chain(&self.doomed.maps).copied().collect();
        for (name, map) in maps.into_iter().filter_map(|name| Some((name, self.want.maps.get(name)?))) {
            if self.kept_map(name).is_none() {
                all.push(self.want.add_map(name, map));
            }
        }
    }

    fn kept_set(&self, name: &SetName) -> Option<&'a Set> {
        self.sets.get(name).and_then(|(_, have)| *have).filter(|_| !self.doomed.sets.contains(name))
    }

    fn kept_map(&self, name: &SetName) -> Option<&'a VerdictMap> {
        self.have_maps.get(name).filter(|_| !self.doomed.maps.contains(name))
    }

    fn fill_sets(&self, all: &mut Transaction) {
        for (name, (want, _)) in &self.sets {
            let Some(want) = want else { continue };
            match self.kept_set(name) {
                Some(have) => {
                    let (mut gone, mut come) = (Vec::new(), Vec::new());
                    for item in have.elements.diff(&want.elements) {
                        match item {
                            ordset::DiffItem::Add(element) => come.push(element.clone()),
                            ordset::DiffItem::Remove(element) => gone.push(element.clone()),
                        }
                    }
                    all.delete_elements(name, gone.into());
                    all.add_elements(name, come.into());
                }
                None => all.add_elements(name, want.elements.clone()),
            }
        }
    }

    fn fill_maps(&self, all: &mut Transaction) {
        for (name, (want, _)) in &self.maps {
            let Some(want) = want else { continue };
            match self.kept_map(name) {
                Some(have) => all.add_map_elements(name, self.coming(want, have)),
                None => all.add_map_elements(name, want.elements.clone()),
            }
        }
    }
}
