//! Our table in the schema of `nft -j`: what `nft -j list table inet towpath` prints, without handles.
//!
//! In the types of the `nftables` crate; for what these cannot say there is `extension`. The same table gives the same
//! bytes: objects and elements are in the order of the ruleset, and no set of the crate that holds more than one flag is
//! used. `nft -j -f -` loads it, because chains come before the maps that lead to them: nft itself lists them behind, and
//! does not load what it has listed.

mod extension;
mod rule;

use std::borrow::Cow;

use nftables::{
    expr::{Expression, NamedExpression, Prefix, Range},
    schema::{self, NfListObject, SetFlag, SetType, SetTypeValue},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use towpath_core::{
    names::{ChainName, SetName, TABLE},
    ruleset::{BaseChain, Chain, ChainType, Element, Hook, KeyType, Lookup, Set, Value, VerdictMap},
};

pub use extension::NftDocument;
use extension::{ExportedObject, FlagName, ObjectExtension};

use crate::nft::{TableFlag, TableListing};

/// The version of the schema (`JSON_SCHEMA_VERSION` of libnftables).
const SCHEMA_VERSION: u32 = 1;

/// The whole table, objects in an order in which nft takes them.
#[must_use]
pub fn document(listing: &TableListing) -> NftDocument {
    let metainfo =
        schema::MetainfoObject { json_schema_version: Some(SCHEMA_VERSION), version: None, release_name: None };
    let mut nftables = vec![ExportedObject::Schema(NfListObject::MetainfoObject(metainfo)), table(&listing.flags)];
    let ruleset = &listing.ruleset;
    let comments = &ruleset.comments;
    let of_set = |name| comments.sets.get(name).map(ToString::to_string);
    let of_chain = |name| comments.chains.get(name).map(ToString::to_string);
    nftables.extend(ruleset.chains.iter().map(|(name, declared)| chain(name, declared, of_chain(name))));
    nftables.extend(ruleset.sets.iter().map(|(name, declared)| set(name, declared, of_set(name))));
    nftables.extend(ruleset.maps.iter().map(|(name, declared)| map(name, declared, of_set(name))));
    let rules =
        ruleset.chains.iter().flat_map(|(name, chain)| chain.rules.iter().map(move |one| rule::object(name, one)));
    nftables.extend(rules);
    NftDocument { nftables }
}

fn table(flags: &[TableFlag]) -> ExportedObject {
    let flag = |flag: &TableFlag| match flag {
        TableFlag::Owner => FlagName::Owner,
        TableFlag::Persist => FlagName::Persist,
    };
    let flags = flags.iter().map(flag).collect();
    ExportedObject::Extension(ObjectExtension::Table(extension::FlaggedTable {
        family: NfFamily::INet,
        name: TABLE,
        flags,
    }))
}

fn set(name: &SetName, Set { key, lookup, elements }: &Set, comment: Option<String>) -> ExportedObject {
    let flags = match lookup {
        Lookup::Hash => None,
        Lookup::Interval => Some([SetFlag::Interval].into()),
    };
    let elements: Vec<_> = elements.iter().map(element).collect();
    ExportedObject::Schema(NfListObject::Set(Box::new(schema::Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.as_str().to_owned().into(),
        set_type: key_type(key),
        flags,
        elem: (!elements.is_empty()).then_some(Cow::Owned(elements)),
        comment: comment.map(Cow::Owned),
        ..schema::Set::default()
    })))
}

fn map(name: &SetName, VerdictMap { key, elements }: &VerdictMap, comment: Option<String>) -> ExportedObject {
    ExportedObject::Extension(ObjectExtension::Map(extension::NamedVerdictMap {
        family: NfFamily::INet,
        name: name.to_string(),
        table: TABLE,
        key: key_type(key),
        map: extension::VerdictType::Verdict,
        comment,
        elem: elements.iter().map(|(key, verdict)| (element(key), rule::verdict(verdict))).collect(),
    }))
}

fn chain(name: &ChainName, chain: &Chain, comment: Option<String>) -> ExportedObject {
    let declared = schema::Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.as_str().to_owned().into(),
        ..schema::Chain::default()
    };
    let chain = match chain.base {
        None => declared,
        Some(BaseChain { chain_type, hook, priority }) => schema::Chain {
            _type: Some(match chain_type {
                ChainType::Filter => NfChainType::Filter,
                ChainType::Nat => NfChainType::NAT,
            }),
            hook: Some(match hook {
                Hook::Prerouting => NfHook::Prerouting,
                Hook::Input => NfHook::Input,
                Hook::Forward => NfHook::Forward,
                Hook::Output => NfHook::Output,
                Hook::Postrouting => NfHook::Postrouting,
            }),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..declared
        },
    };
    ExportedObject::Extension(ObjectExtension::Chain(extension::CommentedChain { chain, comment }))
}

fn key_type(key: &[KeyType]) -> SetTypeValue<'static> {
    let part = |part: &KeyType| match part {
        KeyType::Ipv4 => SetType::Ipv4Addr,
        KeyType::Ipv6 => SetType::Ipv6Addr,
        KeyType::IfName => SetType::Ifname,
        KeyType::Proto => SetType::InetProto,
        KeyType::Port => SetType::InetService,
    };
    match key {
        [only] => SetTypeValue::Single(part(only)),
        parts => SetTypeValue::Concatenated(parts.iter().map(part).collect()),
    }
}

fn element(parts: &Element) -> Expression<'static> {
    match &parts[..] {
        [only] => value(only),
        parts => Expression::Named(NamedExpression::Concat(parts.iter().map(value).collect())),
    }
}

fn value(value: &Value) -> Expression<'static> {
    match value {
        Value::Addr(address) => text(address),
        Value::Net(net) => Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(text(&net.network())),
            len: net.prefix_len().into(),
        })),
        Value::IfName(name) => text(name),
        // nft prints names of /etc/protocols, and takes numbers as well.
        Value::Proto(number) => protocol(*number).map_or(Expression::Number((*number).into()), |name| text(&name)),
        Value::Port(port) => Expression::Number((*port).into()),
        Value::PortRange(first, last) => Expression::Range(Box::new(Range {
            range: [Expression::Number((*first).into()), Expression::Number((*last).into())],
        })),
    }
}

fn text(value: &impl ToString) -> Expression<'static> {
    Expression::String(value.to_string().into())
}

/// The name of a protocol that policies name.
const fn protocol(number: u8) -> Option<&'static str> {
    match number {
        1 => Some("icmp"),
        6 => Some("tcp"),
        17 => Some("udp"),
        58 => Some("ipv6-icmp"),
        132 => Some("sctp"),
        _ => None,
    }
}
