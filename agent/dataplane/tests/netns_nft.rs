//! The table in a real kernel: it is read back as written, and changes by other processes are detected and repaired.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

#[path = "../../core/tests/rulesets/mod.rs"]
mod rulesets;
mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use imbl::OrdSet;
use nix::errno::Errno;
use proptest::{prelude::*, test_runner::TestRunner};
use rulesets::{addr, chain, everything, interface, pair, set};
use support::{close, enter_new_namespace, sh};
use towpath_core::ruleset::{Chain, Lookup, Reference, Rule, Ruleset, Set, Step, Transaction, Unmanaged, diff};
use towpath_dataplane::nft::{KernelNft, Nft, NftError, NftEvents, Ownership, TableChange};

/// Creates the table in a new namespace of the calling thread.
fn create(want: &Ruleset) -> KernelNft {
    create_as(Ownership::Exclusive, want)
}

fn create_as(ownership: Ownership, want: &Ruleset) -> KernelNft {
    enter_new_namespace();
    let mut nft = KernelNft::open_as(ownership).unwrap();
    nft.apply(&Transaction::create(want)).unwrap();
    nft
}

#[test]
fn every_form_is_read_back_as_it_was_written() {
    let want = everything();
    let mut nft = create(&want);
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()));
}

#[test]
fn a_missing_table_is_read_back_as_none_and_deleting_it_succeeds() {
    let mut nft = create(&everything());
    for why in ["the table is deleted", "there is no table"] {
        nft.apply(&Transaction::delete()).unwrap();
        assert_eq!(nft.read_back().unwrap(), None, "{why}");
    }
}

#[test]
fn the_kernel_accepts_the_diff_between_any_two_rulesets() {
    enter_new_namespace();
    let mut nft = KernelNft::open().unwrap();
    let mut runner = TestRunner::new(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() });
    let nft = std::cell::RefCell::new(&mut nft);
    let result = runner.run(&pair(), |(have, want)| {
        let mut nft = nft.borrow_mut();
        for want in [have, want] {
            let transaction = diff(&want, nft.read_back().unwrap().as_ref());
            nft.apply(&transaction).map_err(|e| TestCaseError::fail(format!("{e}\n{transaction}")))?;
            prop_assert_eq!(nft.read_back().unwrap(), Some(want.installed()));
        }
        Ok(())
    });
    result.unwrap();
}

/// Changes of the table with `nft`, and what each does.
const EDITS: &[(&str, &str)] = &[
    ("delete element inet towpath set-0 { 10.0.0.1 }", "an element deleted"),
    ("add element inet towpath set-0 { 10.9.9.9 }", "an element added"),
    ("delete element inet towpath map.0 { 10.0.0.1 }", "a map element deleted"),
    ("flush set inet towpath set-1", "a set flushed"),
    ("flush chain inet towpath forward", "a chain flushed"),
    ("insert rule inet towpath forward accept", "a foreign rule at the head"),
    ("add rule inet towpath in.0123456789ab counter accept comment \"mine\"", "a foreign rule at the end"),
    ("chain inet towpath base1 { policy drop; }", "another policy of a base chain"),
    (
        "add chain inet towpath base3 { type filter hook forward priority 1; policy drop; }",
        "another policy of a base chain, with add",
    ),
    (
        "delete chain inet towpath base0; add chain inet towpath base0 { type filter hook input priority 7; }",
        "another hook and priority of a base chain",
    ),
    ("add chain inet towpath theirs; add rule inet towpath theirs accept", "a foreign chain"),
    (
        "add chain inet towpath theirs; add map inet towpath theirs { type mark : verdict; }; \
         add element inet towpath theirs { 1 : jump theirs }; \
         add rule inet towpath forward mark vmap @theirs",
        "a foreign map that references a foreign chain",
    ),
    ("add set inet towpath theirs { type ipv4_addr; flags timeout; }", "a foreign set"),
    ("add element inet towpath set-0 { 10.8.8.8 comment \"mine\" }", "an element with a comment"),
    ("add counter inet towpath theirs; add rule inet towpath base1 counter name theirs", "a counter"),
    ("delete table inet towpath", "the table deleted"),
    ("flush ruleset", "the ruleset flushed"),
];

#[test]
fn changes_by_others_are_detected_and_repaired_in_one_transaction() {
    let want = everything();
    let mut nft = create_as(Ownership::Shared, &want);
    for (edit, why) in EDITS.iter().chain(&[("table inet towpath { flags dormant; }", "the table is dormant")]) {
        sh(&format!("nft '{edit}'"));
        assert_repaired(&mut nft, &want, why);
    }
}

#[test]
fn changes_while_the_table_has_no_owner_are_detected_and_repaired() {
    let want = everything();
    let mut nft = create(&want);
    for (edit, why) in EDITS {
        close(nft);
        sh(&format!("nft '{edit}'"));
        nft = KernelNft::open().unwrap();
        assert_repaired(&mut nft, &want, why);
    }
}

fn assert_repaired(nft: &mut KernelNft, want: &Ruleset, why: &str) {
    let have = nft.read_back().unwrap();
    assert_ne!(have, Some(want.installed()), "{why}: detected");
    let repair = diff(want, have.as_ref());
    nft.apply(&repair).unwrap_or_else(|e| panic!("{why}: {e}\n{repair}"));
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()), "{why}: repaired");
}

#[test]
fn an_object_with_another_declaration_is_recreated_with_all_that_references_it() {
    let have = everything();
    let mut nft = create(&have);
    let mut want = have.clone();
    want.sets.get_mut(&set("set-0")).unwrap().lookup = Lookup::Interval;
    let forward = Arc::make_mut(want.chains.get_mut(&chain("forward")).unwrap());
    forward.base.as_mut().unwrap().priority = 7;
    let map = want.maps.remove(&set("map.0")).unwrap();
    let references_map = |rule: &Rule| rule.references().any(|r| r == Reference::Set(&set("map.0")));
    for (name, chain) in want.chains.clone() {
        let mut chain = Chain::clone(&chain);
        chain.rules.retain(|rule| !references_map(rule));
        want.chains.insert(name, Arc::new(chain));
    }
    let elements = map.elements.keys().cloned().collect();
    want.sets.insert(set("map.0"), Set { key: map.key, lookup: Lookup::Hash, elements });
    for (want, have) in [(&want, &have), (&have, &want)] {
        let transaction = diff(want, Some(&have.installed()));
        nft.apply(&transaction).unwrap_or_else(|e| panic!("{e}\n{transaction}"));
        assert_eq!(nft.read_back().unwrap(), Some(want.installed()));
    }
}

#[test]
fn other_tables_are_neither_read_nor_changed() {
    let mut nft = create(&everything());
    let foreign = "add table ip towpath; add chain ip towpath c { type filter hook input priority 0; }; \
        add table inet other; add set inet other s { type ipv4_addr; }; add element inet other s { 10.0.0.1 }";
    sh(&format!("nft '{foreign}'"));
    let before = sh("nft list table ip towpath; nft list table inet other");
    assert_eq!(nft.read_back().unwrap(), Some(everything().installed()));
    nft.apply(&Transaction::replace(&everything())).unwrap();
    nft.apply(&Transaction::delete()).unwrap();
    assert_eq!(sh("nft list table ip towpath; nft list table inet other"), before);
}

#[test]
fn a_rejected_transaction_changes_nothing_and_names_the_step() {
    let want = everything();
    let mut nft = create(&want);
    let steps =
        [Step::DeleteElements(set("set-0"), OrdSet::unit(vec![addr("10.0.0.1")])), Step::DeleteSet(set("absent"))];
    match nft.apply(&steps.into_iter().collect()) {
        Err(NftError::Rejected { step, source }) => {
            assert_eq!(step, "delete set inet towpath absent");
            assert_eq!(source.errno(), Some(Errno::ENOENT));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()));
}

#[test]
fn the_golden_tables_load_and_read_back_without_unmanaged_objects() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        thread::spawn(move || {
            enter_new_namespace();
            let mut nft = KernelNft::open_as(Ownership::Shared).unwrap();
            sh(&format!("nft -f '{}'", file.display()));
            let have = nft.read_back().unwrap().unwrap();
            assert_eq!(have.unmanaged, BTreeSet::<Unmanaged>::new(), "{}", file.display());
            let rules: Vec<_> = have.chains.values().flat_map(|chain| &chain.rules).collect();
            assert!(rules.iter().all(|rule| rule.is_some()), "{}", file.display());
            let written = script.lines().filter(|line| line.starts_with("add rule")).count();
            assert_eq!(rules.len(), written, "{}", file.display());
        })
        .join()
        .unwrap();
    }
}

/// Notifications of changes of the table, received by a thread in the calling thread's namespace.
struct Listener(mpsc::Receiver<TableChange>);

impl Listener {
    fn new() -> Self {
        let mut events = NftEvents::open().unwrap();
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            while let Ok(change) = events.next_change() {
                if send.send(change).is_err() {
                    break;
                }
            }
        });
        Self(receive)
    }

    fn next(&self) -> TableChange {
        self.0.recv_timeout(Duration::from_secs(10)).expect("a change within ten seconds")
    }
}

#[test]
fn changes_of_the_table_are_notified_and_our_own_are_recognised() {
    let mut nft = create_as(Ownership::Shared, &everything());
    let events = Listener::new();
    let element = OrdSet::unit(vec![addr("10.7.7.7")]);
    let ours: Transaction = [Step::AddElements(set("set-0"), element.clone())].into_iter().collect();
    nft.apply(&ours).unwrap();
    let change = events.next();
    assert!(nft.is_own(&change), "{change:?}");

    sh("nft add table inet other; nft add chain inet other c; nft add chain inet towpath theirs");
    let change = events.next();
    assert!(!nft.is_own(&change), "{change:?}: a change by another process; changes of other tables are not notified");
    assert!(matches!(&change, TableChange::Changed { process, .. } if process == "nft"), "{change:?}");

    let back: Transaction = [Step::DeleteElements(set("set-0"), element)].into_iter().collect();
    nft.apply(&back).unwrap();
    let change = events.next();
    assert!(nft.is_own(&change), "{change:?}");
    sh("nft flush ruleset");
    let change = events.next();
    assert!(!nft.is_own(&change), "{change:?}: a flush of the ruleset is notified, too");
}

#[test]
fn a_large_transaction_is_notified_once() {
    let mut want = everything();
    let mut nft = create(&want);
    let events = Listener::new();
    let many = (0..5000_u32).map(|n| vec![interface("tow0123456789a"), addr(&format!("10.1.{}.{}", n / 250, n % 250))]);
    want.sets.get_mut(&set("set-5")).unwrap().elements.extend(many);
    Arc::make_mut(want.chains.get_mut(&chain("base1")).unwrap()).rules.clear();
    let have = nft.read_back().unwrap();
    nft.apply(&diff(&want, have.as_ref())).unwrap();
    let change = events.next();
    assert!(nft.is_own(&change) || change == TableChange::Overrun, "{change:?}");
    nft.apply(&Transaction::delete()).unwrap();
    let change = events.next();
    assert!(nft.is_own(&change) || change == TableChange::Overrun, "{change:?}");
}
