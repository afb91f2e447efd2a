//! Properties of the difference between rulesets, checked with [`FakeTable`], which rejects what the kernel rejects.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod rulesets;

use std::sync::Arc;

use imbl::OrdSet;
use proptest::prelude::*;
use rulesets::{chain, pair, set};
use towpath_core::ruleset::{Chain, Ruleset, Step, Transaction, Unmanaged, change, diff, fake::FakeTable};

/// One drift of the table.
#[derive(Debug, Clone)]
enum Drift {
    /// An unmanaged object.
    Object(Unmanaged),
    /// An unmanaged rule in the chain of this name.
    Rule(&'static str),
}

fn drifts() -> impl Strategy<Value = Vec<Drift>> {
    let one = prop_oneof![
        prop::sample::select(vec!["x1", "x2", "y"]).prop_map(|name| Drift::Object(Unmanaged::Set(set(name)))),
        prop::sample::select(vec!["x3", "x4", "y"]).prop_map(|name| Drift::Object(Unmanaged::Map(set(name)))),
        prop::sample::select(vec!["top-1", "leaf.1", "leaf.2", "z"])
            .prop_map(|name| Drift::Object(Unmanaged::Chain(chain(name)))),
        Just(Drift::Object(Unmanaged::Other("flowtable f".to_owned()))),
        prop::sample::select(vec!["top-2", "leaf.1"]).prop_map(Drift::Rule),
    ];
    prop::collection::vec(one, 0..4)
}

/// A table with `have` and this drift. If a set or map is replaced, all rules are flushed first: it may be referenced.
fn drifted(have: &Ruleset, drifts: Vec<Drift>) -> FakeTable {
    let mut table = FakeTable::default();
    let mut have = have.clone();
    for drift in &drifts {
        if let Drift::Object(Unmanaged::Set(_) | Unmanaged::Map(_)) = drift {
            for (name, chain) in &have.chains.clone() {
                have.chains.insert(name.clone(), Arc::new(Chain { base: chain.base, rules: Vec::new() }));
            }
        }
    }
    table.apply(&Transaction::create(&have)).unwrap();
    for drift in drifts {
        match drift {
            Drift::Object(Unmanaged::Set(name)) => table.add_unmanaged(match table.read_back() {
                Some(have) if have.unmanaged.contains(&Unmanaged::Map(name.clone())) => Unmanaged::Map(name),
                _ => Unmanaged::Set(name),
            }),
            Drift::Object(Unmanaged::Map(name)) => table.add_unmanaged(match table.read_back() {
                Some(have) if have.unmanaged.contains(&Unmanaged::Set(name.clone())) => Unmanaged::Set(name),
                _ => Unmanaged::Map(name),
            }),
            Drift::Object(object) => table.add_unmanaged(object),
            Drift::Rule(name) => table.add_unmanaged_rule(&chain(name)),
        }
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn from_any_state_one_valid_transaction_leads_to_the_desired_state(
        (have, want) in pair(), drifts in drifts(),
    ) {
        let mut table = drifted(&have, drifts);
        let transaction = diff(&want, table.read_back().as_ref());
        table.apply(&transaction).map_err(|e| TestCaseError::fail(format!("{e}\n{transaction}")))?;
        prop_assert_eq!(table.read_back(), Some(want.installed()));
        prop_assert!(diff(&want, table.read_back().as_ref()).is_empty(), "a second diff is empty");
    }

    #[test]
    fn change_returns_the_same_transaction_as_diff((have, want) in pair()) {
        let transaction = change(&want, &have);
        prop_assert_eq!(&transaction, &diff(&want, Some(&have.installed())));
        prop_assert!(change(&want, &want.clone()).is_empty());
    }

    #[test]
    fn the_stages_lead_to_the_desired_state((have, want) in pair()) {
        let mut table = FakeTable::default();
        table.apply(&Transaction::create(&have)).unwrap();
        for stage in change(&want, &have).stages() {
            table.apply(&stage).map_err(|e| TestCaseError::fail(format!("{e}\n{stage}")))?;
        }
        prop_assert_eq!(table.ruleset(), Some(want));
    }

    #[test]
    fn the_table_is_created_replaced_and_deleted((_, want) in pair()) {
        let mut table = FakeTable::default();
        table.apply(&diff(&want, None)).unwrap();
        prop_assert_eq!(table.ruleset(), Some(want.clone()));
        table.apply(&Transaction::replace(&want)).unwrap();
        prop_assert_eq!(table.ruleset(), Some(want));
        table.apply(&Transaction::delete()).unwrap();
        prop_assert_eq!(table.read_back(), None);
    }

    #[test]
    fn adding_or_deleting_an_element_takes_one_step((_, want) in pair()) {
        for (name, full) in &want.sets {
            let Some(element) = full.elements.get_min().cloned() else { continue };
            let mut have = want.clone();
            have.sets.get_mut(name).unwrap().elements.remove(&element);
            let one = OrdSet::unit(element);
            let added = diff(&want, Some(&have.installed()));
            prop_assert_eq!(added.steps(), &[Step::AddTable, Step::AddElements(name.clone(), one.clone())]);
            let deleted = diff(&have, Some(&want.installed()));
            prop_assert_eq!(deleted.steps(), &[Step::AddTable, Step::DeleteElements(name.clone(), one)]);
        }
    }
}
