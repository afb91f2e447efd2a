//! The listing of the table, with its rules, equals what was written.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

#[path = "../../core/tests/rulesets/mod.rs"]
mod rulesets;
mod support;

use std::sync::Arc;

use proptest::{prelude::*, test_runner::TestRunner};
use rulesets::{chain, everything, pair, simple_matches};
use support::Namespace;
use towpath_core::ruleset::{Action, Chain, Rule, Ruleset, Transaction, Verdict};
use towpath_dataplane::nft::{KernelNft, ListError, Nft, Ownership, TableFlag};

fn open(namespace: &Namespace) -> KernelNft {
    namespace.run(|| KernelNft::open_as(Ownership::Shared).unwrap())
}

fn assert_listed(nft: &mut KernelNft, want: &Ruleset) {
    nft.apply(&Transaction::replace(want)).unwrap();
    let listed = nft.list().unwrap().unwrap().ruleset;
    for (name, chain) in &want.chains {
        assert_eq!(listed.chains.get(name), Some(chain), "{name}");
    }
    assert_eq!(&listed, want);
}

#[test]
fn every_form_is_listed_as_it_was_written() {
    let mut nft = open(&Namespace::new());
    assert_eq!(nft.list().unwrap(), None, "no table");
    assert_listed(&mut nft, &everything());
}

#[test]
fn every_pair_of_conditions_is_listed_as_it_was_written() {
    let mut want = Ruleset::default();
    let forms = simple_matches();
    for (n, first) in forms.iter().enumerate() {
        for (m, second) in forms.iter().enumerate() {
            let rule = Rule::verdict(vec![first.clone(), second.clone()], Verdict::Accept);
            want.chains.insert(chain(&format!("c-{n}-{m}")), Arc::new(Chain { base: None, rules: vec![rule] }));
        }
    }
    assert_listed(&mut open(&Namespace::new()), &want);
}

#[test]
fn random_tables_are_listed_as_they_were_written() {
    let nft = std::cell::RefCell::new(open(&Namespace::new()));
    let mut runner = TestRunner::new(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() });
    let result = runner.run(&pair(), |(_, want)| {
        let mut nft = nft.borrow_mut();
        nft.apply(&Transaction::replace(&want)).unwrap();
        prop_assert_eq!(nft.list().unwrap().map(|listing| listing.ruleset), Some(want));
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_table_that_another_socket_owns_is_listed_with_its_flags() {
    let namespace = Namespace::new();
    let mut owner = namespace.run(|| KernelNft::open().unwrap());
    owner.apply(&Transaction::create(&everything())).unwrap();
    let listing = open(&namespace).list().unwrap().unwrap();
    assert_eq!(listing.ruleset, everything());
    let flags = match owner.ownership() {
        Ownership::Exclusive => vec![TableFlag::Owner, TableFlag::Persist],
        Ownership::Shared => vec![],
    };
    assert_eq!(listing.flags, flags);
}

#[test]
fn an_unmanaged_object_is_an_error_that_names_it() {
    let namespace = Namespace::new();
    let mut nft = open(&namespace);
    let mut want = Ruleset::default();
    let rule = Rule { matches: Vec::new(), action: Action::Verdict(Verdict::Accept) };
    want.chains.insert(chain("c"), Arc::new(Chain { base: None, rules: vec![rule.clone()] }));
    for (command, what) in [
        ("nft add rule inet towpath c drop".to_owned(), "rule 2 of chain c"),
        (format!("nft 'add rule inet towpath c drop comment \"{}\"'", rule.fingerprint()), "rule 2 of chain c"),
        ("nft 'add set inet towpath s { type mark; }'".to_owned(), "set s"),
    ] {
        nft.apply(&Transaction::replace(&want)).unwrap();
        namespace.sh(&command);
        let error = nft.list().unwrap_err();
        assert!(matches!(&error, ListError::Unmanaged { what: named } if named.contains(what)), "{error}");
    }
}
