//! Random rulesets that the kernel accepts, generated from bytes so that they shrink. Shared with the kernel tests.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32, sync::Arc};

use imbl::OrdSet;
use proptest::prelude::*;
use towpath_core::{
    model::Family,
    names::{ChainName, IfName, SetName},
    ruleset::{
        Action, BaseChain, Chain, ChainType, CmpOp, CtState, Element, Field, Hook, KeyType, Log, Lookup, Match, Rule,
        Ruleset, Set, Value, Verdict, VerdictMap,
    },
};

/// A source of random decisions. After the last byte, every decision is the first choice.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into_iter())
    }

    /// Takes the bytes for one object, so that changing a byte changes a single object.
    fn part(&mut self) -> Self {
        Self::new(self.0.by_ref().take(16).collect())
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().unwrap_or(0)) % n
    }

    fn choose<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

pub(crate) fn set(name: &str) -> SetName {
    SetName::new(name).unwrap()
}

pub(crate) fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

pub(crate) fn addr(text: &str) -> Value {
    Value::Addr(text.parse::<IpAddr>().unwrap())
}

fn net(text: &str) -> Value {
    Value::Net(text.parse().unwrap())
}

pub(crate) fn interface(name: &str) -> Value {
    Value::IfName(IfName::new(name).unwrap())
}

/// A kind of set: its declaration, the fields that are looked up in it, and possible elements.
#[derive(Clone)]
struct Kind {
    key: Vec<KeyType>,
    lookup: Lookup,
    fields: Vec<Field>,
    elements: Vec<Element>,
}

fn kinds() -> Vec<Kind> {
    let kind = |key: &[KeyType], lookup, fields: &[Field], elements: Vec<Element>| Kind {
        key: key.to_vec(),
        lookup,
        fields: fields.to_vec(),
        elements,
    };
    let (v4, v6) = (Field::Source(Family::V4), Field::Destination(Family::V6));
    vec![
        kind(&[KeyType::Ipv4], Lookup::Hash, &[v4], vec![vec![addr("10.0.0.1")], vec![addr("10.0.0.2")]]),
        kind(
            &[KeyType::Ipv4],
            Lookup::Interval,
            &[v4],
            ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "11.0.0.0/8"]
                .map(|n| vec![net(n)])
                .into_iter()
                .chain([vec![addr("10.1.2.3")], vec![addr("11.0.0.0")], vec![addr("255.255.255.255")]])
                .collect(),
        ),
        kind(
            &[KeyType::Ipv6],
            Lookup::Interval,
            &[v6],
            vec![vec![net("::/0")], vec![net("fe80::/10")], vec![addr("fe80::1")], vec![net("2001:db8::/32")]],
        ),
        kind(
            &[KeyType::Ipv4, KeyType::Proto, KeyType::Port],
            Lookup::Hash,
            &[v4, Field::Proto, Field::DestinationPort],
            vec![
                vec![addr("10.0.0.1"), Value::Proto(6), Value::Port(80)],
                vec![addr("10.0.0.1"), Value::Proto(17), Value::Port(53)],
                vec![addr("10.0.0.2"), Value::Proto(132), Value::Port(65535)],
            ],
        ),
        kind(
            &[KeyType::Ipv6, KeyType::Proto, KeyType::Port],
            Lookup::Interval,
            &[v6, Field::Proto, Field::DestinationPort],
            vec![
                vec![net("2001:db8::/32"), Value::Proto(6), Value::PortRange(1, 65535)],
                vec![net("2001:db8::/64"), Value::Proto(6), Value::PortRange(80, 90)],
                vec![addr("2001:db8::1"), Value::Proto(17), Value::Port(53)],
                vec![net("::/0"), Value::Proto(132), Value::PortRange(0, 1)],
            ],
        ),
        kind(
            &[KeyType::IfName, KeyType::Ipv4],
            Lookup::Hash,
            &[Field::InInterface, v4],
            vec![
                vec![interface("tow0123456789a"), addr("10.0.0.1")],
                vec![interface("tow0123456789b"), addr("10.0.0.2")],
                vec![interface("a23456789012345"), addr("10.0.0.2")],
            ],
        ),
        kind(
            &[KeyType::Port],
            Lookup::Interval,
            &[Field::DestinationPort],
            vec![
                vec![Value::PortRange(0, 79)],
                vec![Value::Port(80)],
                vec![Value::PortRange(80, 95)],
                vec![Value::PortRange(96, 65535)],
            ],
        ),
        kind(&[KeyType::Proto], Lookup::Hash, &[Field::Proto], vec![vec![Value::Proto(6)], vec![Value::Proto(200)]]),
    ]
}

/// Objects that rules may refer to.
#[derive(Default)]
struct Targets {
    sets: Vec<(SetName, Vec<Field>)>,
    maps: Vec<(SetName, Vec<Field>)>,
    leaves: Vec<ChainName>,
}

/// Two rulesets that are independent, or that differ in a few objects.
pub(crate) fn pair() -> impl Strategy<Value = (Ruleset, Ruleset)> {
    // Enough for all objects: with fewer bytes, the last objects would be empty.
    let bytes = || prop::collection::vec(any::<u8>(), 192);
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    let similar = (bytes(), edits).prop_map(|(have, edits)| {
        let mut want = have.clone();
        for (position, byte) in edits {
            want[position.index(have.len())] = byte;
        }
        (have, want)
    });
    let ruleset = |bytes| ruleset(&mut Dice::new(bytes));
    prop_oneof![(bytes(), bytes()), similar].prop_map(move |(have, want)| (ruleset(have), ruleset(want)))
}

/// A ruleset that the kernel accepts. Names come from a small pool, so that two rulesets often share them.
fn ruleset(dice: &mut Dice) -> Ruleset {
    let mut all = Ruleset::default();
    let mut targets = Targets::default();
    let bases = bases();
    // The rules of leaf chains refer to no chain, so there are no loops. A leaf may be a base chain, or not exist.
    for name in ["leaf.1", "leaf.2", "leaf.3"] {
        let dice = &mut dice.part();
        let base = match dice.below(4) {
            0 => continue,
            1 => Some(dice.choose(&bases)),
            _ => None,
        };
        if base.is_none() {
            targets.leaves.push(chain(name));
        }
        all.chains.insert(chain(name), Arc::new(Chain { base, rules: Vec::new() }));
    }
    for name in ["x1", "x2", "x3", "x4"] {
        let dice = &mut dice.part();
        let kind = dice.choose(&kinds());
        let elements = elements(dice, &kind);
        match dice.below(3) {
            0 => {}
            1 if kind.lookup == Lookup::Hash => {
                let verdicts = elements.into_iter().map(|e| (e, verdict(dice, &targets.leaves))).collect();
                all.maps.insert(set(name), VerdictMap { key: kind.key, elements: verdicts });
                targets.maps.push((set(name), kind.fields));
            }
            _ => {
                all.sets.insert(set(name), Set { key: kind.key, lookup: kind.lookup, elements });
                targets.sets.push((set(name), kind.fields));
            }
        }
    }
    for (name, chain) in &all.chains.clone() {
        let leaf = Targets { sets: targets.sets.clone(), ..Targets::default() };
        let rules = rules(&mut dice.part(), &leaf, chain.base);
        all.chains.insert(name.clone(), Arc::new(Chain { base: chain.base, rules }));
    }
    for name in ["top-1", "top-2"] {
        let dice = &mut dice.part();
        let base = if dice.below(2) == 0 { Some(dice.choose(&bases)) } else { None };
        all.chains.insert(chain(name), Arc::new(Chain { base, rules: rules(dice, &targets, base) }));
    }
    all
}

fn bases() -> Vec<BaseChain> {
    let base = |chain_type, hook, priority| BaseChain { chain_type, hook, priority };
    vec![
        base(ChainType::Filter, Hook::Prerouting, -300),
        base(ChainType::Filter, Hook::Input, 0),
        base(ChainType::Filter, Hook::Forward, 0),
        base(ChainType::Filter, Hook::Forward, 1),
        base(ChainType::Filter, Hook::Output, -10),
        base(ChainType::Nat, Hook::Postrouting, 100),
    ]
}

fn elements(dice: &mut Dice, kind: &Kind) -> OrdSet<Element> {
    let mut chosen = OrdSet::new();
    for _ in 0..dice.below(5) {
        let element = dice.choose(&kind.elements);
        if !chosen.iter().any(|have: &Element| overlap(have, &element)) {
            chosen.insert(element);
        }
    }
    chosen
}

fn overlap(a: &Element, b: &Element) -> bool {
    let range = |value: &Value| -> Option<(u128, u128)> {
        let bits = |addr| match addr {
            IpAddr::V4(addr) => u128::from(addr.to_bits()),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        match value {
            Value::Addr(addr) => Some((bits(*addr), bits(*addr))),
            Value::Net(net) => Some((bits(net.network()), bits(net.broadcast()))),
            Value::Port(port) => Some((u128::from(*port), u128::from(*port))),
            Value::PortRange(first, last) => Some((u128::from(*first), u128::from(*last))),
            Value::IfName(_) | Value::Proto(_) => None,
        }
    };
    a.iter().zip(b).all(|(a, b)| match (range(a), range(b)) {
        (Some(a), Some(b)) => a.0 <= b.1 && b.0 <= a.1,
        _ => a == b,
    })
}

fn verdict(dice: &mut Dice, leaves: &[ChainName]) -> Verdict {
    match dice.below(4) {
        0 => Verdict::Accept,
        1 => Verdict::Drop,
        2 if !leaves.is_empty() => Verdict::Jump(dice.choose(leaves)),
        3 if !leaves.is_empty() => Verdict::Goto(dice.choose(leaves)),
        _ => Verdict::Return,
    }
}

fn rules(dice: &mut Dice, targets: &Targets, base: Option<BaseChain>) -> Vec<Rule> {
    // nft rejects conditions with contradictory families or protocols: use only those that are compatible with all.
    let neutral = |m: &Match| match m {
        Match::CtState(_) | Match::InterfacePrefix(..) | Match::MarkBits(_) | Match::ConnectionMarkBits(_) => true,
        Match::Field(field, ..) => matches!(field, Field::InInterface | Field::OutInterface),
        Match::InSet(..) | Match::Family(_) | Match::NeighbourDiscovery => false,
    };
    let simple: Vec<_> = simple_matches().into_iter().filter(neutral).collect();
    (0..dice.below(4))
        .map(|_| {
            let mut matches: Vec<_> = (0..dice.below(2)).map(|_| dice.choose(&simple)).collect();
            if !targets.sets.is_empty() && dice.below(2) == 0 {
                let (set, fields) = dice.choose(&targets.sets);
                let op = dice.choose(&[CmpOp::Eq, CmpOp::NotEq]);
                matches.push(Match::InSet(fields, op, set));
            }
            let action = match dice.below(4) {
                0 if !targets.maps.is_empty() && !matches!(matches.last(), Some(Match::InSet(..))) => {
                    let (map, fields) = dice.choose(&targets.maps);
                    Action::Dispatch(fields, map)
                }
                1 if base.is_some_and(|base| base.chain_type == ChainType::Nat) => Action::Masquerade,
                2 => Action::Log(log()),
                _ => Action::Verdict(verdict(dice, &targets.leaves)),
            };
            Rule { matches, action }
        })
        .collect()
}

fn log() -> Log {
    let nonzero = |n| NonZeroU32::new(n).unwrap();
    Log { prefix: "towpath-in", group: 9817, snaplen: nonzero(128), rate: nonzero(10), burst: nonzero(20) }
}

/// Every form of a condition that does not look up a set.
pub(crate) fn simple_matches() -> Vec<Match> {
    let field = |field, op, value| Match::Field(field, op, value);
    vec![
        Match::CtState(BTreeSet::from([CtState::Established, CtState::Related])),
        Match::CtState(BTreeSet::from([CtState::Invalid])),
        field(Field::InInterface, CmpOp::Eq, interface("eth0")),
        field(Field::OutInterface, CmpOp::NotEq, interface("tow0123456789a")),
        field(Field::Source(Family::V4), CmpOp::Eq, addr("10.0.0.1")),
        field(Field::Source(Family::V6), CmpOp::NotEq, net("fe80::/10")),
        field(Field::Destination(Family::V4), CmpOp::NotEq, net("10.0.0.0/8")),
        field(Field::Destination(Family::V6), CmpOp::Eq, addr("::")),
        field(Field::Proto, CmpOp::Eq, Value::Proto(6)),
        field(Field::Proto, CmpOp::NotEq, Value::Proto(132)),
        field(Field::DestinationPort, CmpOp::Eq, Value::Port(80)),
        field(Field::DestinationPort, CmpOp::NotEq, Value::PortRange(1, 1023)),
        Match::InterfacePrefix(Field::InInterface, "tow".to_owned()),
        Match::InterfacePrefix(Field::OutInterface, "tow".to_owned()),
        Match::MarkBits(0x4000),
        Match::MarkBits(0x8000_0001),
        Match::ConnectionMarkBits(0x10),
        Match::Family(Family::V4),
        Match::Family(Family::V6),
        Match::NeighbourDiscovery,
    ]
}

/// A ruleset with every kind of set, element, condition and action.
pub(crate) fn everything() -> Ruleset {
    let mut all = Ruleset::default();
    let leaf = chain("in.0123456789ab");
    all.chains.insert(leaf.clone(), Arc::new(Chain::default()));
    let mut rules: Vec<_> = simple_matches().into_iter().map(|m| Rule::verdict(vec![m], Verdict::Return)).collect();
    for (n, kind) in kinds().into_iter().enumerate() {
        let mut elements: OrdSet<Element> = OrdSet::new();
        for element in kind.elements {
            if !elements.iter().any(|have| overlap(have, &element)) {
                elements.insert(element);
            }
        }
        let name = set(&format!("set-{n}"));
        for op in [CmpOp::Eq, CmpOp::NotEq] {
            let lookup = Match::InSet(kind.fields.clone(), op, name.clone());
            rules.push(Rule::verdict(vec![lookup], Verdict::Jump(leaf.clone())));
        }
        if kind.lookup == Lookup::Hash {
            let map = set(&format!("map.{n}"));
            let verdicts = [
                Verdict::Accept,
                Verdict::Drop,
                Verdict::Return,
                Verdict::Jump(leaf.clone()),
                Verdict::Goto(leaf.clone()),
            ];
            let verdicts = elements.iter().cloned().zip(verdicts.into_iter().cycle().skip(n));
            all.maps.insert(map.clone(), VerdictMap { key: kind.key.clone(), elements: verdicts.collect() });
            rules.push(Rule { matches: Vec::new(), action: Action::Dispatch(kind.fields, map) });
        }
        all.sets.insert(name, Set { key: kind.key, lookup: kind.lookup, elements });
    }
    rules.push(Rule { matches: Vec::new(), action: Action::Log(log()) });
    rules.push(Rule::verdict(Vec::new(), Verdict::Goto(leaf)));
    all.chains.insert(chain("forward"), Arc::new(Chain { base: Some(bases()[2]), rules }));
    let actions = [Action::Masquerade, Action::Verdict(Verdict::Accept), Action::Verdict(Verdict::Drop)];
    let rules = actions.into_iter().map(|action| Rule { matches: Vec::new(), action }).collect();
    all.chains.insert(chain("postrouting"), Arc::new(Chain { base: Some(bases()[5]), rules }));
    for (n, base) in bases().into_iter().enumerate() {
        all.chains.insert(chain(&format!("base{n}")), Arc::new(Chain { base: Some(base), rules: Vec::new() }));
    }
    all
}
