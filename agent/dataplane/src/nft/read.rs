//! The kernel's answers about our table, read without judging: what we would not have made is told as such.

use imbl::{OrdMap, OrdSet};

use towpath_core::{
    names::{ChainName, TABLE},
    ruleset::{BaseChain, ChainType, Element, Fingerprint, Hook, KeyType, Lookup, Rule, Verdict},
};

use super::{
    batch::hook_number,
    decode,
    key::{self, Bounds},
    wire::{TABLE_OF, chain, data, element, rule, set, table, userdata},
};
use crate::nfnetlink::{Attributes, NfnetlinkMessage};

/// What there is to know about our table itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) flags: u32,
    /// The port of the socket that owns it.
    pub(super) owner: Option<u32>,
    pub(super) comment: Comment,
}

/// Whether there is something beside an object that we do not put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comment {
    None,
    Some,
}

pub(super) fn table(answer: &NfnetlinkMessage<'_>) -> Option<Table> {
    let attributes = answer.attributes;
    (attributes.find(table::NAME)?.text()? == TABLE).then(|| Table {
        flags: attributes.find(table::FLAGS).and_then(|a| a.be32()).unwrap_or(0),
        owner: attributes.find(table::OWNER).and_then(|a| a.be32()),
        comment: if attributes.find(table::USERDATA).is_some() { Comment::Some } else { Comment::None },
    })
}

/// The attributes of an object of our table.
fn ours<'a>(answer: &NfnetlinkMessage<'a>) -> Option<Attributes<'a>> {
    (answer.attributes.find(TABLE_OF)?.text()? == TABLE).then_some(answer.attributes)
}

/// The name of an object of another kind.
pub(super) fn other(answer: &NfnetlinkMessage<'_>) -> Option<String> {
    /// `NFTA_OBJ_NAME` and `NFTA_FLOWTABLE_NAME`.
    const NAME: u16 = 2;
    ours(answer)?.find(NAME)?.text().map(str::to_owned)
}

/// A chain's name, and its base; an error for a base that we would not have made.
pub(super) fn chain(answer: &NfnetlinkMessage<'_>) -> Option<(String, Result<Option<BaseChain>, ()>)> {
    let attributes = ours(answer)?;
    let name = attributes.find(chain::NAME)?.text()?.to_owned();
    Some((name, base(attributes)))
}

fn base(attributes: Attributes<'_>) -> Result<Option<BaseChain>, ()> {
    let flags = attributes.find(chain::FLAGS).and_then(|a| a.be32()).unwrap_or(0);
    let beside = attributes.find(chain::USERDATA).map_or(&[][..], |data| data.payload);
    if userdata::entries(beside).any(|(kind, _)| kind != userdata::CHAIN_COMMENT) || flags & !chain::FLAG_BASE != 0 {
        return Err(());
    }
    let Some(hook) = attributes.find(chain::HOOK) else { return Ok(None) };
    let hook = hook.nested();
    let has_device = [chain::HOOK_DEVICE, chain::HOOK_DEVICES].iter().any(|kind| hook.find(*kind).is_some());
    let read = || {
        let number = hook.find(chain::HOOK_NUMBER)?.be32()?;
        let all = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
        let chain_type = match attributes.find(chain::TYPE)?.text()? {
            "filter" => ChainType::Filter,
            "nat" => ChainType::Nat,
            _ => return None,
        };
        let accepts = attributes.find(chain::POLICY)?.be32()? == chain::POLICY_ACCEPT;
        Some(BaseChain {
            chain_type,
            hook: all.into_iter().find(|hook| hook_number(*hook) == number).filter(|_| accepts && !has_device)?,
            priority: hook.find(chain::HOOK_PRIORITY)?.be32()?.cast_signed(),
        })
    };
    read().map(Some).ok_or(())
}

/// A rule's chain, and what its comment says; `None` for a rule that is not ours.
pub(super) fn rule(answer: &NfnetlinkMessage<'_>) -> Option<(String, Option<Fingerprint>)> {
    let attributes = ours(answer)?;
    let chain = attributes.find(rule::CHAIN)?.text()?.to_owned();
    let fingerprint = attributes.find(rule::USERDATA).and_then(|data| {
        let mut entries = userdata::entries(data.payload);
        let (_, text) = entries.find(|(kind, _)| *kind == userdata::RULE_COMMENT)?;
        std::str::from_utf8(text).ok()?.trim_end_matches('\0').parse().ok()
    });
    Some((chain, fingerprint))
}

/// A rule's chain and, if we wrote it, the rule itself.
pub(super) fn whole_rule(answer: &NfnetlinkMessage<'_>) -> Option<(String, Option<Rule>)> {
    let (chain, fingerprint) = rule(answer)?;
    let expressions = answer.attributes.find(rule::EXPRESSIONS)?.nested();
    Some((chain, fingerprint.and_then(|fingerprint| decode::rule(expressions, fingerprint))))
}

/// How something with elements is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Declared {
    Set(Vec<KeyType>, Lookup),
    Map(Vec<KeyType>),
    ForeignSet,
    ForeignMap,
}

/// A set's or a map's name and kind; nothing for those that a rule brings with it.
pub(super) fn set(answer: &NfnetlinkMessage<'_>) -> Option<(String, Declared)> {
    let attributes = ours(answer)?;
    let name = attributes.find(set::NAME)?.text()?.to_owned();
    let flags = attributes.find(set::FLAGS).and_then(|a| a.be32()).unwrap_or(0);
    if flags & set::FLAG_ANONYMOUS != 0 {
        return None;
    }
    let is_map = flags & set::FLAG_MAP != 0 || attributes.find(set::OBJECT_TYPE).is_some();
    let foreign = if is_map { Declared::ForeignMap } else { Declared::ForeignSet };
    Some((name, declared(attributes, flags).unwrap_or(foreign)))
}

fn declared(attributes: Attributes<'_>, flags: u32) -> Option<Declared> {
    // A policy, a size, a life time, expressions, objects: nothing of it is ours.
    let odd = [set::POLICY, set::TIMEOUT, set::GC_INTERVAL, set::OBJECT_TYPE, set::EXPRESSION, set::EXPRESSIONS];
    let has_size = attributes.find(set::DESC).is_some_and(|desc| desc.nested().find(set::DESC_SIZE).is_some());
    if has_size || attributes.into_iter().any(|attribute| odd.contains(&attribute.kind)) {
        return None;
    }
    let known = [
        userdata::SET_KEY_ORDER,
        userdata::SET_DATA_ORDER,
        userdata::SET_KEY_TYPEOF,
        userdata::SET_DATA_INTERVAL,
        userdata::SET_COMMENT,
    ];
    let beside = attributes.find(set::USERDATA).map_or(&[][..], |data| data.payload);
    if userdata::entries(beside).any(|(kind, _)| !known.contains(&kind)) {
        return None;
    }
    let key = key::parts(attributes.find(set::KEY_TYPE)?.be32()?)?;
    if attributes.find(set::KEY_LEN)?.be32()? as usize != key::whole_length(&key) {
        return None;
    }
    match flags & !set::FLAG_CONCAT {
        0 => Some(Declared::Set(key, Lookup::Hash)),
        set::FLAG_INTERVAL => Some(Declared::Set(key, Lookup::Interval)),
        set::FLAG_MAP => (attributes.find(set::DATA_TYPE)?.be32()? == set::DATA_VERDICT).then_some(Declared::Map(key)),
        _ => None,
    }
}

/// How the elements of a set are to be written.
pub(super) fn lookup(answer: &NfnetlinkMessage<'_>) -> Option<Lookup> {
    let flags = ours(answer)?.find(set::FLAGS).and_then(|a| a.be32()).unwrap_or(0);
    Some(if flags & set::FLAG_INTERVAL != 0 { Lookup::Interval } else { Lookup::Hash })
}

/// An element as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raw {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    place: Place,
    verdict: Option<Verdict>,
}

/// What an element is to an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    BehindEnd,
    Beginning,
}

/// The elements of one answer; an error if one is there that we would not have made.
pub(super) fn elements(answer: &NfnetlinkMessage<'_>) -> Option<Result<Vec<Raw>, ()>> {
    let list = ours(answer)?.find(element::LIST_ELEMENTS)?;
    Some(list.nested().map(|item| raw(item.nested()).ok_or(())).collect())
}

fn raw(attributes: Attributes<'_>) -> Option<Raw> {
    let mut raw = Raw { key: Vec::new(), key_end: None, place: Place::Beginning, verdict: None };
    let value =
        |attribute: crate::nfnetlink::Attribute<'_>| Some(attribute.nested().find(data::VALUE)?.payload.to_vec());
    for attribute in attributes {
        match attribute.kind {
            element::KEY => raw.key = value(attribute)?,
            element::KEY_END => raw.key_end = Some(value(attribute)?),
            element::DATA => raw.verdict = Some(verdict(attribute.nested())?),
            element::FLAGS if attribute.be32()? == element::FLAG_INTERVAL_END => raw.place = Place::BehindEnd,
            element::FLAGS if attribute.be32()? == 0 => {}
            element::USERDATA => {
                let flags_only = userdata::entries(attribute.payload).all(|(kind, _)| kind == userdata::ELEMENT_FLAGS);
                flags_only.then_some(())?;
            }
            _ => return None,
        }
    }
    Some(raw)
}

pub(super) fn verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let verdict = attributes.find(data::VERDICT)?.nested();
    let chain = || ChainName::new(verdict.find(data::CHAIN)?.text()?).ok();
    match verdict.find(data::CODE)?.be32()?.cast_signed() {
        data::ACCEPT => Some(Verdict::Accept),
        data::DROP => Some(Verdict::Drop),
        data::RETURN => Some(Verdict::Return),
        data::JUMP => chain().map(Verdict::Jump),
        data::GOTO => chain().map(Verdict::Goto),
        _ => None,
    }
}

/// The elements of a set; `None` if one is there that we would not have made.
pub(super) fn set_elements(key: &[KeyType], lookup: Lookup, raw: Vec<Raw>) -> Option<OrdSet<Element>> {
    let bounds = match (lookup, key) {
        (Lookup::Interval, [_]) => intervals(raw),
        (Lookup::Hash | Lookup::Interval, _) => raw.into_iter().map(whole).collect(),
    };
    bounds.iter().map(|bounds| key::element(key, bounds)).collect()
}

/// The elements of a verdict map; `None` if one is there that we would not have made.
pub(super) fn map_elements(key: &[KeyType], raw: Vec<Raw>) -> Option<OrdMap<Element, Verdict>> {
    let pair = |mut raw: Raw| {
        let verdict = raw.verdict.take()?;
        Some((key::element(key, &whole(raw))?, verdict))
    };
    raw.into_iter().map(pair).collect()
}

fn whole(raw: Raw) -> Bounds {
    Bounds { last: raw.key_end.unwrap_or_else(|| raw.key.clone()), first: raw.key }
}

/// Each beginning with the next end, which may be the next beginning; the last may go on to the last key there is.
fn intervals(mut raw: Vec<Raw>) -> Vec<Bounds> {
    raw.sort_by(|a, b| (&a.key, a.place).cmp(&(&b.key, b.place)));
    let mut all = Vec::new();
    let mut raw = raw.into_iter().peekable();
    while let Some(begin) = raw.next() {
        if begin.place == Place::BehindEnd {
            continue;
        }
        let last = raw.peek().and_then(|end| key::predecessor(&end.key));
        all.push(Bounds { last: last.unwrap_or_else(|| vec![0xff; begin.key.len()]), first: begin.key });
    }
    all
}
