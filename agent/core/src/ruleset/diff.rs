//! The difference between two states of the table, as one transaction in an order that the kernel takes: nothing is named
//! before it is there, and nothing goes while it is named.
//!
//! Elements change one by one. A chain whose rules differ is flushed and written anew. What was declared in another way is
//! removed and made again, and with it every rule and map element that names it. All of it shows at once.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;

use super::{
    Base, Chain, Element, Foreign, Installed, InstalledChain, Reference, Ruleset, Set, Step, Transaction, Verdict,
    VerdictMap,
};
use crate::names::{ChainName, SetName};

/// What to do so that the kernel's table is as wanted. `have` is `None` where there is no table.
pub fn diff(want: &Ruleset, have: Option<&Installed>) -> Transaction {
    let Some(have) = have else { return Transaction::create(want) };
    if have.foreign.iter().any(|thing| matches!(thing, Foreign::Other(_))) {
        return Transaction::replace(want);
    }
    let chains = have.chains.iter().map(|(name, have)| {
        let rules = Rules::compare(want.chains.get(name).is_some_and(|want| reads_back_as(want, have)));
        (name, HaveChain { base: have.base, rules })
    });
    let mut difference =
        Difference { want, sets: &have.sets, maps: &have.maps, chains: chains.collect(), doomed: Doomed::default() };
    for thing in &have.foreign {
        match thing {
            Foreign::Set(name) => _ = difference.doomed.sets.insert(name),
            Foreign::Map(name) => _ = difference.doomed.maps.insert(name),
            Foreign::Chain(name) => _ = difference.doomed.chains.insert(name),
            Foreign::Other(_) => {}
        }
    }
    difference.transaction()
}

fn reads_back_as(want: &Chain, have: &InstalledChain) -> bool {
    let same = |(want, have): (&super::Rule, &Option<_>)| Some(want.fingerprint()) == *have;
    want.rules.len() == have.rules.len() && want.rules.iter().zip(&have.rules).all(same)
}

/// Whether a chain's rules are those that are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Same,
    Differ,
}

impl Rules {
    const fn compare(same: bool) -> Self {
        if same { Self::Same } else { Self::Differ }
    }
}

struct HaveChain {
    base: Option<Base>,
    rules: Rules,
}

/// What goes: for good, or to be made again.
#[derive(Default)]
struct Doomed<'a> {
    sets: BTreeSet<&'a SetName>,
    maps: BTreeSet<&'a SetName>,
    chains: BTreeSet<&'a ChainName>,
}

impl Doomed<'_> {
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

struct Difference<'a> {
    want: &'a Ruleset,
    sets: &'a OrdMap<SetName, Set>,
    maps: &'a OrdMap<SetName, VerdictMap>,
    chains: BTreeMap<&'a ChainName, HaveChain>,
    doomed: Doomed<'a>,
}

impl<'a> Difference<'a> {
    fn transaction(mut self) -> Transaction {
        self.doom();
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
        let want = self.want;
        let kept = |name: &SetName, set: &Set| {
            want.sets.get(name).is_some_and(|w| (&w.key, w.lookup) == (&set.key, set.lookup))
        };
        self.doomed.sets.extend(self.sets.iter().filter(|(name, set)| !kept(name, set)).map(|(name, _)| name));
        let kept = |name: &SetName, map: &VerdictMap| want.maps.get(name).is_some_and(|w| w.key == map.key);
        self.doomed.maps.extend(self.maps.iter().filter(|(name, map)| !kept(name, map)).map(|(name, _)| name));
        let kept = |name: &ChainName, chain: &HaveChain| want.chains.get(name).is_some_and(|w| w.base == chain.base);
        self.doomed.chains.extend(self.chains.iter().filter(|(name, chain)| !kept(name, chain)).map(|(name, _)| *name));
    }

    /// The chains that lose the rules they have and get those that are wanted: gone, new, changed, or naming what goes.
    fn rewritten(&self) -> BTreeSet<&'a ChainName> {
        let stays = |name: &ChainName, chain: &Chain| {
            self.chains.get(name).is_some_and(|have| have.rules == Rules::Same)
                && !self.doomed.chains.contains(name)
                && !chain.rules.iter().flat_map(super::Rule::references).any(|r| self.doomed.has(r))
        };
        let changed = self.want.chains.iter().filter(|(name, chain)| !stays(name, chain)).map(|(name, _)| name);
        self.doomed.chains.iter().copied().chain(changed).collect()
    }

    /// Names first, then what was named.
    fn remove(&self, rewritten: &BTreeSet<&ChainName>, all: &mut Transaction) {
        for name in
            rewritten.iter().filter(|name| self.chains.contains_key(**name) || self.doomed.chains.contains(**name))
        {
            all.push(Step::FlushChain((*name).clone()));
        }
        for (name, want, have) in self.kept_maps() {
            let goes = |(key, verdict): &(&Element, &Verdict)| {
                want.elements.get(*key) != Some(*verdict) || self.doomed.has_target_of(verdict)
            };
            all.delete_map_elements(name, have.elements.iter().filter(goes).map(|(key, _)| key.clone()).collect());
        }
        self.doomed.maps.iter().for_each(|name| all.push(Step::DeleteMap((*name).clone())));
        self.doomed.chains.iter().for_each(|name| all.push(Step::DeleteChain((*name).clone())));
        self.doomed.sets.iter().for_each(|name| all.push(Step::DeleteSet((*name).clone())));
    }

    /// What is new or goes to be made again, without contents.
    fn declare(&self, all: &mut Transaction) {
        for (name, set) in &self.want.sets {
            if !self.sets.contains_key(name) || self.doomed.sets.contains(name) {
                all.push(Step::AddSet(name.clone(), set.key.clone(), set.lookup));
            }
        }
        for (name, chain) in &self.want.chains {
            if !self.chains.contains_key(name) || self.doomed.chains.contains(name) {
                all.push(Step::AddChain(name.clone(), chain.base));
            }
        }
        for (name, map) in &self.want.maps {
            if !self.maps.contains_key(name) || self.doomed.maps.contains(name) {
                all.push(Step::AddMap(name.clone(), map.key.clone()));
            }
        }
    }

    fn fill_sets(&self, all: &mut Transaction) {
        for (name, want) in &self.want.sets {
            match self.sets.get(name).filter(|_| !self.doomed.sets.contains(name)) {
                Some(have) if have.elements == want.elements => {}
                Some(have) => {
                    all.delete_elements(name, have.elements.clone().relative_complement(want.elements.clone()));
                    all.add_elements(name, want.elements.clone().relative_complement(have.elements.clone()));
                }
                None => all.add_elements(name, want.elements.clone()),
            }
        }
    }

    fn fill_maps(&self, all: &mut Transaction) {
        for (name, want) in &self.want.maps {
            let have = self.maps.get(name).filter(|_| !self.doomed.maps.contains(name));
            let comes = |(key, verdict): &(&Element, &Verdict)| {
                have.and_then(|have| have.elements.get(*key)) != Some(*verdict) || self.doomed.has_target_of(verdict)
            };
            let elements = want.elements.iter().filter(comes).map(|(key, verdict)| (key.clone(), verdict.clone()));
            all.add_map_elements(name, elements.collect());
        }
    }

    fn kept_maps(&self) -> impl Iterator<Item = (&'a SetName, &'a VerdictMap, &'a VerdictMap)> {
        let kept = self.maps.iter().filter(|(name, _)| !self.doomed.maps.contains(name));
        kept.filter_map(|(name, have)| self.want.maps.get(name).map(|want| (name, want, have)))
    }
}
