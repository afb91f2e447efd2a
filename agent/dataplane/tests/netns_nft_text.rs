//! A transaction has the same result over netlink and as a script for `nft`: `nft` lists both tables alike.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

#[path = "../../core/tests/rulesets/mod.rs"]
mod rulesets;
mod support;

use std::{cell::RefCell, io::Write, sync::Arc};

use imbl::OrdSet;
use proptest::{prelude::*, test_runner::TestRunner};
use rulesets::{addr, chain, everything, pair, set, simple_matches};
use serde_json::Value as Json;
use support::Namespace;
use towpath_core::{
    model::Family,
    ruleset::{
        Action, Chain, CmpOp, Field, KeyType, Lookup, Match, Rule, Ruleset, Set, Step, Transaction, Value, Verdict,
        diff,
    },
};
use towpath_dataplane::nft::{KernelNft, Nft, Ownership};

/// Two namespaces: one is written by `nft` scripts, the other over netlink.
struct TextAndNetlink {
    by_text: Namespace,
    by_netlink: Namespace,
    nft: KernelNft,
}

impl TextAndNetlink {
    fn new() -> Self {
        let by_netlink = Namespace::new();
        let nft = by_netlink.run(|| KernelNft::open_as(Ownership::Shared).unwrap());
        Self { by_text: Namespace::new(), by_netlink, nft }
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<(), String> {
        let mut script = tempfile::NamedTempFile::new().unwrap();
        write!(script, "{transaction}").unwrap();
        self.by_text.try_sh(&format!("nft -f '{}'", script.path().display())).map_err(|e| format!("by text: {e}"))?;
        self.nft.apply(transaction).map_err(|e| format!("by netlink: {e:?}\n{transaction}"))
    }

    /// The listings of both tables by `nft`: as JSON and as text.
    fn listings(&self) -> [(Json, String); 2] {
        [&self.by_text, &self.by_netlink].map(|namespace| {
            let json = namespace.sh("nft -j list table inet towpath");
            let mut json = serde_json::from_str(&json).unwrap();
            without_handles(&mut json);
            (json, namespace.sh("nft list table inet towpath"))
        })
    }

    fn assert_equal(&self) {
        let [text, netlink] = self.listings();
        let lines = text.1.lines().zip(netlink.1.lines());
        let different: Vec<_> = lines.filter(|(text, netlink)| text != netlink).take(10).collect();
        assert_eq!(different, [], "lines that differ");
        assert!(text == netlink, "the JSON differs");
    }
}

/// Removes handles: the kernel assigns them in the order of creation, and a rewritten rule gets a new one.
fn without_handles(json: &mut Json) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(without_handles),
        Json::Object(object) => {
            object.remove("handle");
            object.values_mut().for_each(without_handles);
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[test]
fn every_form_is_listed_alike() {
    let mut both = TextAndNetlink::new();
    both.apply(&Transaction::create(&everything())).unwrap();
    both.assert_equal();
}

#[test]
fn every_pair_of_conditions_is_listed_alike() {
    let mut both = TextAndNetlink::new();
    let mut want = Ruleset::default();
    let forms = simple_matches();
    for (n, first) in forms.iter().enumerate() {
        for (m, second) in forms.iter().enumerate() {
            let rule = Rule::verdict(vec![first.clone(), second.clone()], Verdict::Accept);
            // nft rejects conditions that contradict each other in family or protocol.
            let add: Transaction =
                [Step::AddChain(chain("c"), None, None), Step::AddRule(chain("c"), rule.clone())].into_iter().collect();
            let check = || both.by_text.try_sh(&format!("nft -c -f - <<'END'\n{add}\nEND"));
            if combines_with_all(first) || combines_with_all(second) || check().is_ok() {
                want.chains.insert(chain(&format!("c-{n}-{m}")), Arc::new(Chain { base: None, rules: vec![rule] }));
            }
        }
    }
    assert!(want.chains.len() > 200, "most pairs are accepted: {}", want.chains.len());
    both.apply(&Transaction::create(&want)).unwrap();
    both.assert_equal();
}

#[test]
fn the_diff_between_two_rulesets_has_the_same_result_by_text_and_by_netlink() {
    let both = RefCell::new(TextAndNetlink::new());
    let mut runner = TestRunner::new(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() });
    let result = runner.run(&pair(), |(have, want)| {
        let mut both = both.borrow_mut();
        for want in [have, want] {
            let transaction = diff(&want, both.nft.read_back().unwrap().as_ref());
            both.apply(&transaction).map_err(TestCaseError::fail)?;
            let [text, netlink] = both.listings();
            prop_assert_eq!(&text.1, &netlink.1);
            prop_assert_eq!(text, netlink);
            // A table that nft wrote is read back as our own.
            let mut by_text = both.by_text.run(|| KernelNft::open_as(Ownership::Shared).unwrap());
            prop_assert_eq!(by_text.read_back().unwrap(), Some(want.installed()));
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn elements_that_need_several_messages_are_all_added() {
    let mut both = TextAndNetlink::new();
    let mut want = everything();
    let elements: OrdSet<_> = (0..5000_u16).map(|n| vec![addr(&format!("172.16.{}.{}", n >> 8, n & 0xff))]).collect();
    for (name, lookup) in [("hashed", Lookup::Hash), ("intervals", Lookup::Interval)] {
        let one = Set { key: vec![KeyType::Ipv4], lookup, elements: elements.clone() };
        want.sets.insert(set(name), one);
    }
    both.apply(&Transaction::create(&want)).unwrap();
    both.assert_equal();
    assert_eq!(both.nft.read_back().unwrap(), Some(want.installed()));
    for name in ["hashed", "intervals"] {
        want.sets.get_mut(&set(name)).unwrap().elements.clear();
    }
    let have = both.nft.read_back().unwrap();
    both.apply(&diff(&want, have.as_ref())).unwrap();
    both.assert_equal();
}

#[test]
fn networks_of_every_length_are_compared_alike() {
    let mut both = TextAndNetlink::new();
    let v4 = (0..=31_u8).map(|n| (Field::Source(Family::V4), format!("171.205.239.1/{n}")));
    let v6 =
        (0..=127_u8).map(|n| (Field::Destination(Family::V6), format!("fedc:ba98:7654:3210:abcd:ef01:2345:6789/{n}")));
    let rules = v4.chain(v6).flat_map(|(field, net)| {
        let net = net.parse::<ipnet::IpNet>().unwrap().trunc();
        [CmpOp::Eq, CmpOp::NotEq].map(|op| Rule {
            matches: vec![Match::Field(field, op, Value::Net(net))],
            action: Action::Verdict(Verdict::Drop),
        })
    });
    let mut want = Ruleset::default();
    want.chains.insert(chain("c"), Arc::new(Chain { base: None, rules: rules.collect() }));
    both.apply(&Transaction::create(&want)).unwrap();
    both.assert_equal();
}

const fn combines_with_all(condition: &Match) -> bool {
    match condition {
        Match::CtState(_) | Match::InterfacePrefix(..) | Match::MarkBits(_) | Match::ConnectionMarkBits(_) => true,
        Match::Field(field, ..) => matches!(field, Field::InInterface | Field::OutInterface),
        Match::InSet(..) | Match::Family(_) | Match::NeighbourDiscovery => false,
    }
}
