//! Laws of the difference between rulesets, held against a table that refuses what the kernel refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rulesets;

use std::sync::Arc;

use imbl::OrdSet;
use proptest::prelude::*;
use rulesets::{chain, pair, set};
use towpath_core::ruleset::{Chain, Ruleset, Step, Transaction, Unmanaged, change, diff, fake::FakeTable};

/// Somebody else's doing.
#[derive(Debug, Clone)]
enum Mischief {
    Thing(Unmanaged),
    Rule(&'static str),
}

fn any_mischief() -> impl Strategy<Value = Vec<Mischief>> {
    let one = prop_oneof![
        prop::sample::select(vec!["x1", "x2", "y"]).prop_map(|name| Mischief::Thing(Unmanaged::Set(set(name)))),
        prop::sample::select(vec!["x3", "x4", "y"]).prop_map(|name| Mischief::Thing(Unmanaged::Map(set(name)))),
        prop::sample::select(vec!["top-1", "leaf.1", "leaf.2", "z"])
            .prop_map(|name| Mischief::Thing(Unmanaged::Chain(chain(name)))),
        Just(Mischief::Thing(Unmanaged::Other("flowtable f".to_owned()))),
        prop::sample::select(vec!["top-2", "leaf.1"]).prop_map(Mischief::Rule),
    ];
    prop::collection::vec(one, 0..4)
}

/// A table with `have` in it and what somebody else did. Rules that name what he replaces are gone, as they must be
/// before he can replace it.
fn tampered(have: &Ruleset, mischief: Vec<Mischief>) -> FakeTable {
    let mut table = FakeTable::default();
    let mut have = have.clone();
    for thing in &mischief {
        if let Mischief::Thing(Unmanaged::Set(_) | Unmanaged::Map(_)) = thing {
            for (name, chain) in &have.chains.clone() {
                have.chains.insert(name.clone(), Arc::new(Chain { base: chain.base, rules: Vec::new() }));
            }
        }
    }
    table.apply(&Transaction::create(&have)).unwrap();
    for thing in mischief {
        match thing {
            Mischief::Thing(Unmanaged::Set(name)) => table.add_unmanaged(match table.read_back() {
                Some(have) if have.unmanaged.contains(&Unmanaged::Map(name.clone())) => Unmanaged::Map(name),
                _ => Unmanaged::Set(name),
            }),
            Mischief::Thing(Unmanaged::Map(name)) => table.add_unmanaged(match table.read_back() {
                Some(have) if have.unmanaged.contains(&Unmanaged::Set(name.clone())) => Unmanaged::Set(name),
                _ => Unmanaged::Map(name),
            }),
            Mischief::Thing(thing) => table.add_unmanaged(thing),
            Mischief::Rule(name) => table.add_unmanaged_rule(&chain(name)),
        }
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_there_is_becomes_what_is_wanted_in_one_legal_transaction(
        (have, want) in pair(), mischief in any_mischief(),
    ) {
        let mut table = tampered(&have, mischief);
        let transaction = diff(&want, table.read_back().as_ref());
        table.apply(&transaction).map_err(|e| TestCaseError::fail(format!("{e}\n{transaction}")))?;
        prop_assert_eq!(table.read_back(), Some(want.installed()));
        prop_assert!(diff(&want, table.read_back().as_ref()).is_empty(), "a second time there is nothing to do");
    }

    #[test]
    fn what_we_made_ourselves_becomes_what_is_wanted_by_the_same_steps((have, want) in pair()) {
        let transaction = change(&want, &have);
        prop_assert_eq!(&transaction, &diff(&want, Some(&have.installed())));
        prop_assert!(change(&want, &want.clone()).is_empty());
    }

    #[test]
    fn in_stages_the_same_is_made((have, want) in pair()) {
        let mut table = FakeTable::default();
        table.apply(&Transaction::create(&have)).unwrap();
        for stage in change(&want, &have).stages() {
            table.apply(&stage).map_err(|e| TestCaseError::fail(format!("{e}\n{stage}")))?;
        }
        prop_assert_eq!(table.ruleset(), Some(want));
    }

    #[test]
    fn without_a_table_all_of_it_is_made((_, want) in pair()) {
        let mut table = FakeTable::default();
        table.apply(&diff(&want, None)).unwrap();
        prop_assert_eq!(table.ruleset(), Some(want.clone()));
        table.apply(&Transaction::replace(&want)).unwrap();
        prop_assert_eq!(table.ruleset(), Some(want));
        table.apply(&Transaction::delete()).unwrap();
        prop_assert_eq!(table.read_back(), None);
    }

    #[test]
    fn an_element_more_or_less_costs_one_step((_, want) in pair()) {
        for (name, full) in &want.sets {
            let Some(element) = full.elements.get_min().cloned() else { continue };
            let mut have = want.clone();
            have.sets.get_mut(name).unwrap().elements.remove(&element);
            let one = OrdSet::unit(element);
            let more = diff(&want, Some(&have.installed()));
            prop_assert_eq!(more.steps(), &[Step::AddTable, Step::AddElements(name.clone(), one.clone())]);
            let less = diff(&have, Some(&want.installed()));
            prop_assert_eq!(less.steps(), &[Step::AddTable, Step::DeleteElements(name.clone(), one)]);
        }
    }
}
