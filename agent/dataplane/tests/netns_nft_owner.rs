//! Table ownership: only the owning socket may change the table, until it is closed.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

#[path = "../../core/tests/rulesets/mod.rs"]
mod rulesets;
mod support;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rulesets::{chain, everything};
use support::{close, enter_new_namespace, sh, try_sh};
use towpath_core::ruleset::{Rule, Transaction, Unmanaged, Verdict, diff};
use towpath_dataplane::nft::{KernelNft, Nft, NftError, NftEvents, Ownership, TableChange};

/// Opens nf_tables in a new namespace of the calling thread.
fn open() -> KernelNft {
    enter_new_namespace();
    KernelNft::open().unwrap()
}

#[test]
fn this_kernel_supports_table_owners_and_the_check_leaves_nothing_behind() {
    let nft = open();
    assert_eq!(nft.ownership(), Ownership::Exclusive, "kernel 6.9 or later");
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn no_other_process_changes_an_owned_table() {
    let mut nft = open();
    let want = everything();
    nft.apply(&Transaction::create(&want)).unwrap();
    for (command, why) in [
        ("delete table inet towpath", "the table"),
        ("delete element inet towpath set-0 { 10.0.0.1 }", "an element"),
        ("add element inet towpath set-0 { 10.9.9.9 }", "one more element"),
        ("flush set inet towpath set-0", "all elements"),
        ("delete element inet towpath map.0 { 10.0.0.1 }", "a map element"),
        ("flush chain inet towpath forward", "all rules"),
        ("insert rule inet towpath forward accept", "a rule at the head"),
        ("add chain inet towpath theirs", "one more chain"),
        ("chain inet towpath base1 { policy drop; }", "a chain policy"),
        ("table inet towpath { flags dormant; }", "dormant"),
    ] {
        let error = try_sh(&format!("nft '{command}'")).unwrap_err();
        assert!(error.contains("Operation not permitted"), "{why}: {error}");
        assert_eq!(nft.read_back().unwrap(), Some(want.installed()), "{why}");
    }
    sh("nft add table inet other; nft flush ruleset");
    assert!(!sh("nft list tables").contains("other"), "a flush deletes tables without an owner");
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()), "and not ours");
}

#[test]
fn a_table_outlives_its_owner_and_the_next_one_takes_it_over() {
    let mut first = open();
    let want = everything();
    first.apply(&Transaction::create(&want)).unwrap();
    close(first);
    assert!(sh("nft list table inet towpath").contains("chain forward"), "still there");

    let mut second = KernelNft::open().unwrap();
    let have = second.read_back().unwrap();
    assert_eq!(have, Some(want.installed()), "unchanged, and nothing to write");
    try_sh("nft flush chain inet towpath forward").expect_err("owned again");

    close(second);
    sh("nft flush chain inet towpath forward");
    let mut third = KernelNft::open().unwrap();
    let have = third.read_back().unwrap();
    assert_ne!(have, Some(want.installed()), "the change is detected");
    third.apply(&diff(&want, have.as_ref())).unwrap();
    assert_eq!(third.read_back().unwrap(), Some(want.installed()));
}

#[test]
fn taking_over_a_table_is_notified_as_our_own_change() {
    let mut first = open();
    first.apply(&Transaction::create(&everything())).unwrap();
    close(first);
    let mut events = NftEvents::open().unwrap();
    let mut second = KernelNft::open().unwrap();
    second.read_back().unwrap();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(events.next_change().unwrap()));
    let change = receive.recv_timeout(Duration::from_secs(10)).expect("a change within ten seconds");
    assert!(matches!(change, TableChange::Changed { .. }));
    assert!(second.is_own(&change), "{change:?}");
}

#[test]
fn while_another_process_owns_the_table_every_call_fails_and_changes_nothing() {
    let mut first = open();
    let want = everything();
    first.apply(&Transaction::create(&want)).unwrap();
    let mut second = KernelNft::open().unwrap();
    assert!(matches!(second.read_back(), Err(NftError::Owned { .. })));
    for transaction in [Transaction::delete(), Transaction::replace(&want), Transaction::create(&want)] {
        assert!(matches!(second.apply(&transaction), Err(NftError::Owned { .. })), "{transaction}");
    }
    assert_eq!(first.read_back().unwrap(), Some(want.installed()));
    close(first);
    assert_eq!(second.read_back().unwrap(), Some(want.installed()), "once the other socket is closed");
    second.apply(&Transaction::delete()).unwrap();
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn a_table_without_an_owner_is_replaced_in_one_transaction() {
    enter_new_namespace();
    let mut want = everything();
    let mut old = KernelNft::open_as(Ownership::Shared).unwrap();
    old.apply(&Transaction::create(&want)).unwrap();
    close(old);
    Arc::make_mut(want.chains.get_mut(&chain("forward")).unwrap()).rules.push(Rule::verdict(Vec::new(), Verdict::Drop));

    let mut new = KernelNft::open().unwrap();
    let have = new.read_back().unwrap().unwrap();
    assert!(matches!(have.unmanaged.first(), Some(Unmanaged::Other(_))), "{:?}", have.unmanaged);
    let transaction = diff(&want, Some(&have));
    assert_eq!(transaction, Transaction::replace(&want), "in one transaction, so that the table is never absent");
    new.apply(&transaction).unwrap();
    assert_eq!(new.read_back().unwrap(), Some(want.installed()));
    try_sh("nft delete table inet towpath").expect_err("owned");
}

#[test]
fn a_table_is_deleted_whether_it_was_owned_or_shared() {
    enter_new_namespace();
    for ownership in [Ownership::Exclusive, Ownership::Shared] {
        let mut old = KernelNft::open_as(ownership).unwrap();
        old.apply(&Transaction::create(&everything())).unwrap();
        close(old);
        let mut nft = KernelNft::open().unwrap();
        nft.apply(&Transaction::delete()).unwrap();
        assert_eq!(nft.read_back().unwrap(), None, "{ownership:?}");
        assert_eq!(sh("nft list ruleset"), "");
    }
}
