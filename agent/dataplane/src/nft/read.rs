//! Decodes the objects of our table. An object that we would not have created is decoded as unmanaged.

use imbl::{OrdMap, OrdSet};

use towpath_core::{
    names::{ChainName, Comment, TABLE},
    ruleset::{BaseChain, ChainType, Element, Fingerprint, Hook, KeyType, Lookup, Rule, Verdict},
};

use super::{
    batch::hook_number,
    decode,
    key::{self, Bounds},
    wire::{OBJECT_TABLE, OTHER_NAME, chain, data, element, rule, set, table, userdata},
};
use crate::nfnetlink::{Attributes, NfnetlinkMessage};

/// Our table itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) flags: u32,
    /// The netlink port of the owner.
    pub(super) owner: Option<u32>,
    pub(super) userdata: UserData,
}

/// Whether an object has user data, where ours has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserData {
    Absent,
    Present,
}

pub(super) fn table(message: &NfnetlinkMessage<'_>) -> Option<Table> {
    let attributes = message.attributes;
    (attributes.find(table::NAME)?.text()? == TABLE).then(|| Table {
        flags: attributes.find(table::FLAGS).and_then(|a| a.be32()).unwrap_or(0),
        owner: attributes.find(table::OWNER).and_then(|a| a.be32()),
        userdata: if attributes.find(table::USERDATA).is_some() { UserData::Present } else { UserData::Absent },
    })
}

/// The attributes of an object of our table.
fn ours<'a>(message: &NfnetlinkMessage<'a>) -> Option<Attributes<'a>> {
    (message.attributes.find(OBJECT_TABLE)?.text()? == TABLE).then_some(message.attributes)
}

/// The name of a stateful object or a flowtable, which we never create.
pub(super) fn other(message: &NfnetlinkMessage<'_>) -> Option<String> {
    ours(message)?.find(OTHER_NAME)?.text().map(str::to_owned)
}

/// The name of a chain, and its hook if it is a base chain; an error for a base chain that we would not have created.
pub(super) fn chain(message: &NfnetlinkMessage<'_>) -> Option<(String, Result<Option<BaseChain>, ()>)> {
    let attributes = ours(message)?;
    let name = attributes.find(chain::NAME)?.text()?.to_owned();
    Some((name, base(attributes)))
}

fn base(attributes: Attributes<'_>) -> Result<Option<BaseChain>, ()> {
    let flags = attributes.find(chain::FLAGS).and_then(|a| a.be32()).unwrap_or(0);
    let userdata = attributes.find(chain::USERDATA).map_or(&[][..], |data| data.payload);
    if userdata::entries(userdata).any(|(kind, _)| kind != userdata::CHAIN_COMMENT) || flags & !chain::FLAG_BASE != 0 {
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

/// The chain of a rule, and the fingerprint in its comment; `None` for a rule that is not ours.
pub(super) fn rule(message: &NfnetlinkMessage<'_>) -> Option<(String, Option<Fingerprint>)> {
    let attributes = ours(message)?;
    let chain = attributes.find(rule::CHAIN)?.text()?.to_owned();
    let fingerprint = attributes.find(rule::USERDATA).and_then(|data| {
        let mut entries = userdata::entries(data.payload);
        let (_, text) = entries.find(|(kind, _)| *kind == userdata::RULE_COMMENT)?;
        std::str::from_utf8(text).ok()?.trim_end_matches('\0').parse().ok()
    });
    Some((chain, fingerprint))
}

/// The chain of a rule and, if we wrote it, the rule itself.
pub(super) fn whole_rule(message: &NfnetlinkMessage<'_>) -> Option<(String, Option<Rule>)> {
    let (chain, fingerprint) = rule(message)?;
    let expressions = message.attributes.find(rule::EXPRESSIONS)?.nested();
    Some((chain, fingerprint.and_then(|fingerprint| decode::rule(expressions, fingerprint))))
}

/// The name of a chain and its comment; `None` without one.
pub(super) fn chain_comment(message: &NfnetlinkMessage<'_>) -> Option<(String, Comment)> {
    let attributes = ours(message)?;
    let userdata = attributes.find(chain::USERDATA)?.payload;
    Some((attributes.find(chain::NAME)?.text()?.to_owned(), comment(userdata, userdata::CHAIN_COMMENT)?))
}

/// The name of a set or a map and its comment; `None` without one.
pub(super) fn set_comment(message: &NfnetlinkMessage<'_>) -> Option<(String, Comment)> {
    let attributes = ours(message)?;
    let userdata = attributes.find(set::USERDATA)?.payload;
    Some((attributes.find(set::NAME)?.text()?.to_owned(), comment(userdata, userdata::SET_COMMENT)?))
}

fn comment(userdata: &[u8], kind: u8) -> Option<Comment> {
    let (_, text) = userdata::entries(userdata).find(|(found, _)| *found == kind)?;
    Some(Comment::new(std::str::from_utf8(text).ok()?.trim_end_matches('\0')))
}

/// The declaration of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SetDeclaration {
    Set(Vec<KeyType>, Lookup),
    Map(Vec<KeyType>),
    UnmanagedSet,
    UnmanagedMap,
}

/// The name and the declaration of a set or a map; `None` for an anonymous one.
pub(super) fn set(message: &NfnetlinkMessage<'_>) -> Option<(String, SetDeclaration)> {
    let attributes = ours(message)?;
    let name = attributes.find(set::NAME)?.text()?.to_owned();
    let flags = attributes.find(set::FLAGS).and_then(|a| a.be32()).unwrap_or(0);
    if flags & set::FLAG_ANONYMOUS != 0 {
        return None;
    }
    let is_map = flags & set::FLAG_MAP != 0 || attributes.find(set::OBJECT_TYPE).is_some();
    let unmanaged = if is_map { SetDeclaration::UnmanagedMap } else { SetDeclaration::UnmanagedSet };
    Some((name, declaration(attributes, flags).unwrap_or(unmanaged)))
}

fn declaration(attributes: Attributes<'_>, flags: u32) -> Option<SetDeclaration> {
    // Ours have no policy, size, timeout, expressions or objects.
    let unmanaged = [set::POLICY, set::TIMEOUT, set::GC_INTERVAL, set::OBJECT_TYPE, set::EXPRESSION, set::EXPRESSIONS];
    let has_size = attributes.find(set::DESC).is_some_and(|desc| desc.nested().find(set::DESC_SIZE).is_some());
    if has_size || attributes.into_iter().any(|attribute| unmanaged.contains(&attribute.kind)) {
        return None;
    }
    let known = [
        userdata::SET_KEY_ORDER,
        userdata::SET_DATA_ORDER,
        userdata::SET_KEY_TYPEOF,
        userdata::SET_DATA_INTERVAL,
        userdata::SET_COMMENT,
    ];
    let userdata = attributes.find(set::USERDATA).map_or(&[][..], |data| data.payload);
    if userdata::entries(userdata).any(|(kind, _)| !known.contains(&kind)) {
        return None;
    }
    let key = key::parts(attributes.find(set::KEY_TYPE)?.be32()?)?;
    if attributes.find(set::KEY_LEN)?.be32()? as usize != key::whole_length(&key) {
        return None;
    }
    match flags & !set::FLAG_CONCAT {
        0 => Some(SetDeclaration::Set(key, Lookup::Hash)),
        set::FLAG_INTERVAL => Some(SetDeclaration::Set(key, Lookup::Interval)),
        set::FLAG_MAP => {
            (attributes.find(set::DATA_TYPE)?.be32()? == set::DATA_VERDICT).then_some(SetDeclaration::Map(key))
        }
        _ => None,
    }
}

/// The lookup of a set.
pub(super) fn lookup(message: &NfnetlinkMessage<'_>) -> Option<Lookup> {
    let flags = ours(message)?.find(set::FLAGS).and_then(|a| a.be32()).unwrap_or(0);
    Some(if flags & set::FLAG_INTERVAL != 0 { Lookup::Interval } else { Lookup::Hash })
}

/// An element in the kernel's encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawElement {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    end: IntervalEnd,
    verdict: Option<Verdict>,
}

/// Whether an element begins an interval or ends one, by the key after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum IntervalEnd {
    After,
    Begin,
}

/// The elements in one message; an error if we would not have created one of them.
pub(super) fn elements(message: &NfnetlinkMessage<'_>) -> Option<Result<Vec<RawElement>, ()>> {
    let list = ours(message)?.find(element::LIST_ELEMENTS)?;
    Some(list.nested().map(|item| raw(item.nested()).ok_or(())).collect())
}

fn raw(attributes: Attributes<'_>) -> Option<RawElement> {
    let mut raw = RawElement { key: Vec::new(), key_end: None, end: IntervalEnd::Begin, verdict: None };
    let value =
        |attribute: crate::nfnetlink::Attribute<'_>| Some(attribute.nested().find(data::VALUE)?.payload.to_vec());
    for attribute in attributes {
        match attribute.kind {
            element::KEY => raw.key = value(attribute)?,
            element::KEY_END => raw.key_end = Some(value(attribute)?),
            element::DATA => raw.verdict = Some(verdict(attribute.nested())?),
            element::FLAGS if attribute.be32()? == element::FLAG_INTERVAL_END => raw.end = IntervalEnd::After,
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

/// The elements of a set; `None` if we would not have created one of them.
pub(super) fn set_elements(key: &[KeyType], lookup: Lookup, raw: Vec<RawElement>) -> Option<OrdSet<Element>> {
    let bounds = match (lookup, key) {
        (Lookup::Interval, [_]) => intervals(raw),
        (Lookup::Hash | Lookup::Interval, _) => raw.into_iter().map(whole).collect(),
    };
    bounds.iter().map(|bounds| key::element(key, bounds)).collect()
}

/// The elements of a verdict map; `None` if we would not have created one of them.
pub(super) fn map_elements(key: &[KeyType], raw: Vec<RawElement>) -> Option<OrdMap<Element, Verdict>> {
    let pair = |mut raw: RawElement| {
        let verdict = raw.verdict.take()?;
        Some((key::element(key, &whole(raw))?, verdict))
    };
    raw.into_iter().map(pair).collect()
}

fn whole(raw: RawElement) -> Bounds {
    Bounds { last: raw.key_end.unwrap_or_else(|| raw.key.clone()), first: raw.key }
}

/// Each first key with the key before the next element; the last interval may be open-ended.
fn intervals(mut raw: Vec<RawElement>) -> Vec<Bounds> {
    raw.sort_by(|a, b| (&a.key, a.end).cmp(&(&b.key, b.end)));
    let mut all = Vec::new();
    let mut raw = raw.into_iter().peekable();
    while let Some(begin) = raw.next() {
        if begin.end == IntervalEnd::After {
            continue;
        }
        let last = raw.peek().and_then(|end| key::predecessor(&end.key));
        all.push(Bounds { last: last.unwrap_or_else(|| vec![0xff; begin.key.len()]), first: begin.key });
    }
    all
}
