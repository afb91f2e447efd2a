//! Who may change our table: the socket that owns it, and nobody else, until it is closed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "../../core/tests/rulesets/mod.rs"]
mod rulesets;
mod support;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rulesets::{chain, everything};
use support::{end, enter_new_namespace, sh, try_sh};
use towpath_core::ruleset::{Rule, Transaction, Unmanaged, Verdict, diff};
use towpath_dataplane::nft::{KernelNft, Nft, NftError, NftEvents, Ownership, TableChange};

/// In a namespace of the calling thread's own.
fn open() -> KernelNft {
    enter_new_namespace();
    KernelNft::open().unwrap()
}

#[test]
fn this_kernel_lets_a_socket_own_a_table_and_finding_out_changes_nothing() {
    let nft = open();
    assert_eq!(nft.ownership(), Ownership::Exclusive, "kernel 6.9 or later");
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn nobody_else_changes_an_owned_table() {
    let mut nft = open();
    let want = everything();
    nft.apply(&Transaction::create(&want)).unwrap();
    for (command, why) in [
        ("delete table inet towpath", "the table"),
        ("delete element inet towpath set-0 { 10.0.0.1 }", "an element"),
        ("add element inet towpath set-0 { 10.9.9.9 }", "an element more"),
        ("flush set inet towpath set-0", "all elements"),
        ("delete element inet towpath map.0 { 10.0.0.1 }", "a pod's entry"),
        ("flush chain inet towpath forward", "all rules"),
        ("insert rule inet towpath forward accept", "a rule in front"),
        ("add chain inet towpath theirs", "a chain more"),
        ("chain inet towpath base1 { policy drop; }", "a policy"),
        ("table inet towpath { flags dormant; }", "put to sleep"),
    ] {
        let error = try_sh(&format!("nft '{command}'")).unwrap_err();
        assert!(error.contains("Operation not permitted"), "{why}: {error}");
        assert_eq!(nft.read_back().unwrap(), Some(want.installed()), "{why}");
    }
    sh("nft add table inet other; nft flush ruleset");
    assert!(!sh("nft list tables").contains("other"), "a flush takes what is everybody's");
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()), "and passes ours by");
}

#[test]
fn a_table_outlives_its_owner_and_the_next_one_takes_it_over() {
    let mut first = open();
    let want = everything();
    first.apply(&Transaction::create(&want)).unwrap();
    end(first);
    assert!(sh("nft list table inet towpath").contains("chain forward"), "still there");

    let mut second = KernelNft::open().unwrap();
    let have = second.read_back().unwrap();
    assert_eq!(have, Some(want.installed()), "as it was, and nothing to be written");
    try_sh("nft flush chain inet towpath forward").expect_err("owned again");

    end(second);
    sh("nft flush chain inet towpath forward");
    let mut third = KernelNft::open().unwrap();
    let have = third.read_back().unwrap();
    assert_ne!(have, Some(want.installed()), "what was changed meanwhile is found");
    third.apply(&diff(&want, have.as_ref())).unwrap();
    assert_eq!(third.read_back().unwrap(), Some(want.installed()));
}

#[test]
fn taking_a_table_over_is_told_as_our_own_doing() {
    let mut first = open();
    first.apply(&Transaction::create(&everything())).unwrap();
    end(first);
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
fn while_another_process_owns_the_table_nothing_is_done_and_it_is_said() {
    let mut first = open();
    let want = everything();
    first.apply(&Transaction::create(&want)).unwrap();
    let mut second = KernelNft::open().unwrap();
    assert!(matches!(second.read_back(), Err(NftError::Owned { .. })));
    for transaction in [Transaction::delete(), Transaction::replace(&want), Transaction::create(&want)] {
        assert!(matches!(second.apply(&transaction), Err(NftError::Owned { .. })), "{transaction}");
    }
    assert_eq!(first.read_back().unwrap(), Some(want.installed()));
    end(first);
    assert_eq!(second.read_back().unwrap(), Some(want.installed()), "as soon as the other has ended");
    second.apply(&Transaction::delete()).unwrap();
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn a_table_that_nobody_can_own_is_replaced_at_once() {
    enter_new_namespace();
    let mut want = everything();
    let mut old = KernelNft::open_as(Ownership::Shared).unwrap();
    old.apply(&Transaction::create(&want)).unwrap();
    end(old);
    Arc::make_mut(want.chains.get_mut(&chain("forward")).unwrap()).rules.push(Rule::verdict(Vec::new(), Verdict::Drop));

    let mut new = KernelNft::open().unwrap();
    let have = new.read_back().unwrap().unwrap();
    assert!(matches!(have.unmanaged.first(), Some(Unmanaged::Other(_))), "{:?}", have.unmanaged);
    let transaction = diff(&want, Some(&have));
    assert_eq!(transaction, Transaction::replace(&want), "in one transaction, so that there is no moment without it");
    new.apply(&transaction).unwrap();
    assert_eq!(new.read_back().unwrap(), Some(want.installed()));
    try_sh("nft delete table inet towpath").expect_err("owned");
}

#[test]
fn a_table_is_removed_whoever_made_it() {
    enter_new_namespace();
    for ownership in [Ownership::Exclusive, Ownership::Shared] {
        let mut old = KernelNft::open_as(ownership).unwrap();
        old.apply(&Transaction::create(&everything())).unwrap();
        end(old);
        let mut nft = KernelNft::open().unwrap();
        nft.apply(&Transaction::delete()).unwrap();
        assert_eq!(nft.read_back().unwrap(), None, "{ownership:?}");
        assert_eq!(sh("nft list ruleset"), "");
    }
}
