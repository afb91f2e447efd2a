//! Our table in a real kernel: what is written is read back, what somebody breaks is seen and mended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

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
use support::{end, enter_new_namespace, sh};
use towpath_core::ruleset::{Chain, Lookup, Reference, Rule, Ruleset, Set, Step, Transaction, Unmanaged, diff};
use towpath_dataplane::nft::{KernelNft, Nft, NftError, NftEvents, Ownership, TableChange};

/// In a namespace of the calling thread's own, with the table in it.
fn with(want: &Ruleset) -> KernelNft {
    with_as(Ownership::Exclusive, want)
}

fn with_as(ownership: Ownership, want: &Ruleset) -> KernelNft {
    enter_new_namespace();
    let mut nft = KernelNft::open_as(ownership).unwrap();
    nft.apply(&Transaction::create(want)).unwrap();
    nft
}

#[test]
fn every_form_is_read_back_as_it_was_written() {
    let want = everything();
    let mut nft = with(&want);
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()));
}

#[test]
fn where_there_is_no_table_none_is_read_back_and_deleting_it_is_no_error() {
    let mut nft = with(&everything());
    for why in ["the table goes", "there was none"] {
        nft.apply(&Transaction::delete()).unwrap();
        assert_eq!(nft.read_back().unwrap(), None, "{why}");
    }
}

#[test]
fn the_way_between_any_two_rulesets_is_one_that_the_kernel_takes() {
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

/// What somebody may do to the table with `nft`, and what it comes to.
const EDITS: &[(&str, &str)] = &[
    ("delete element inet towpath set-0 { 10.0.0.1 }", "an element less"),
    ("add element inet towpath set-0 { 10.9.9.9 }", "an element more"),
    ("delete element inet towpath map.0 { 10.0.0.1 }", "a pod without policy"),
    ("flush set inet towpath set-1", "no element"),
    ("flush chain inet towpath forward", "no rule"),
    ("insert rule inet towpath forward accept", "a foreign rule in front"),
    ("add rule inet towpath in.0123456789ab counter accept comment \"mine\"", "a foreign rule behind"),
    ("chain inet towpath base1 { policy drop; }", "another policy of a base chain"),
    ("add chain inet towpath base3 { type filter hook forward priority 1; policy drop; }", "the same, by add"),
    ("delete chain inet towpath base0; add chain inet towpath base0 { type filter hook input priority 7; }", "moved"),
    ("add chain inet towpath theirs; add rule inet towpath theirs accept", "a foreign chain"),
    (
        "add chain inet towpath theirs; add map inet towpath theirs { type mark : verdict; }; \
         add element inet towpath theirs { 1 : jump theirs }; \
         add rule inet towpath forward mark vmap @theirs",
        "a foreign map that names a foreign chain",
    ),
    ("add set inet towpath theirs { type ipv4_addr; flags timeout; }", "a foreign set"),
    ("add element inet towpath set-0 { 10.8.8.8 comment \"mine\" }", "an element with a comment"),
    ("add counter inet towpath theirs; add rule inet towpath base1 counter name theirs", "a counter"),
    ("delete table inet towpath", "no table"),
    ("flush ruleset", "nothing at all"),
];

#[test]
fn what_somebody_breaks_is_seen_and_mended_in_one_transaction() {
    let want = everything();
    let mut nft = with_as(Ownership::Shared, &want);
    for (edit, why) in EDITS.iter().chain(&[("table inet towpath { flags dormant; }", "the table is asleep")]) {
        sh(&format!("nft '{edit}'"));
        see_and_mend(&mut nft, &want, why);
    }
}

#[test]
fn what_somebody_breaks_while_nobody_owns_the_table_is_seen_and_mended() {
    let want = everything();
    let mut nft = with(&want);
    for (edit, why) in EDITS {
        end(nft);
        sh(&format!("nft '{edit}'"));
        nft = KernelNft::open().unwrap();
        see_and_mend(&mut nft, &want, why);
    }
}

fn see_and_mend(nft: &mut KernelNft, want: &Ruleset, why: &str) {
    let have = nft.read_back().unwrap();
    assert_ne!(have, Some(want.installed()), "{why}: seen");
    let repair = diff(want, have.as_ref());
    nft.apply(&repair).unwrap_or_else(|e| panic!("{why}: {e}\n{repair}"));
    assert_eq!(nft.read_back().unwrap(), Some(want.installed()), "{why}: mended");
}

#[test]
fn what_is_declared_otherwise_is_made_anew_with_all_that_names_it() {
    let have = everything();
    let mut nft = with(&have);
    let mut want = have.clone();
    want.sets.get_mut(&set("set-0")).unwrap().lookup = Lookup::Interval;
    let forward = Arc::make_mut(want.chains.get_mut(&chain("forward")).unwrap());
    forward.base.as_mut().unwrap().priority = 7;
    let map = want.maps.remove(&set("map.0")).unwrap();
    let names_it = |rule: &Rule| rule.references().any(|r| r == Reference::Set(&set("map.0")));
    for (name, chain) in want.chains.clone() {
        let mut chain = Chain::clone(&chain);
        chain.rules.retain(|rule| !names_it(rule));
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
fn other_tables_are_neither_seen_nor_touched() {
    let mut nft = with(&everything());
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
fn a_transaction_that_is_refused_changes_nothing_and_says_why() {
    let want = everything();
    let mut nft = with(&want);
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
fn the_golden_tables_load_and_read_back_without_anything_foreign() {
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

/// Changes of our table, as a thread of the calling thread's namespace hears them, within a bound.
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
fn the_kernel_tells_of_changes_of_our_table_and_ours_are_known() {
    let mut nft = with_as(Ownership::Shared, &everything());
    let events = Listener::new();
    let element = OrdSet::unit(vec![addr("10.7.7.7")]);
    let ours: Transaction = [Step::AddElements(set("set-0"), element.clone())].into_iter().collect();
    nft.apply(&ours).unwrap();
    let change = events.next();
    assert!(nft.is_own(&change), "{change:?}");

    sh("nft add table inet other; nft add chain inet other c; nft add chain inet towpath theirs");
    let change = events.next();
    assert!(!nft.is_own(&change), "{change:?}: somebody else's; and the other table's change was not notified");
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
fn a_great_change_is_told_once() {
    let mut want = everything();
    let mut nft = with(&want);
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
