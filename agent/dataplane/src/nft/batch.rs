//! Encodes a transaction as nf_tables requests, in the order of its steps.

use std::{cmp::Ordering, collections::BTreeMap};

use imbl::{OrdMap, OrdSet};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use towpath_core::{
    names::{Comment, SetName, TABLE},
    ruleset::{BaseChain, ChainType, Element, Hook, KeyType, Lookup, Rule, Step, Transaction, Verdict},
};

use super::{
    Ownership,
    expression::{self, ANONYMOUS, AnonymousKey, AnonymousSet},
    key::{self, Bounds},
    wire::{LIST_ELEMENT, NftMessage, OBJECT_TABLE, chain, data, element, rule, set, table, userdata},
};
use crate::nfnetlink::{Body, NfnetlinkRequest};

/// The limit of a list of elements in one request in bytes: an attribute ends at 64 KiB, and an element has some 150 at
/// most.
const MAX_LIST: usize = 60_000;

/// The requests of a transaction.
#[derive(Debug, Default)]
pub(super) struct NftBatch {
    pub(super) requests: Vec<NfnetlinkRequest>,
    /// The index of each request's step.
    pub(super) steps: Vec<usize>,
    /// The id of the last set that the batch creates.
    last_set: u32,
}

/// How the elements of a set are encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ElementEncoding {
    Hash,
    Interval,
    Concatenation,
}

impl ElementEncoding {
    /// The encoding of an element in a set with this lookup.
    const fn of(lookup: Lookup, element: &Element) -> Self {
        match (lookup, element.len()) {
            (Lookup::Hash, _) => Self::Hash,
            (Lookup::Interval, 1) => Self::Interval,
            (Lookup::Interval, _) => Self::Concatenation,
        }
    }
}

/// Whether elements are added or deleted.
#[derive(Clone, Copy)]
enum ElementOp {
    Add,
    Delete,
}

/// An element with its encoding.
struct EncodedElement<'a> {
    encoding: ElementEncoding,
    bounds: Bounds,
    /// The verdict of a map's element.
    verdict: Option<&'a Verdict>,
}

type EncodedElements<'a> = Vec<EncodedElement<'a>>;

impl NftBatch {
    /// Encodes a transaction. `lookups` are those of the sets in the table, on which the encoding of elements depends.
    pub(super) fn new(transaction: &Transaction, ownership: Ownership, mut lookups: Lookups) -> Self {
        let mut all = Self::default();
        let steps = transaction.steps();
        for (place, step) in steps.iter().enumerate() {
            all.step(step, steps.get(place + 1), ownership, &mut lookups);
            all.steps.resize(all.requests.len(), place);
        }
        all
    }

    fn step(&mut self, step: &Step, next: Option<&Step>, ownership: Ownership, lookups: &mut Lookups) {
        match step {
            Step::AddTable => {
                // The kernel rejects flags for a table that was created without them; a table that is deleted next needs none.
                let flags = if next == Some(&Step::DeleteTable) { None } else { Some(ownership.flags()) };
                self.requests.push(add_table(flags));
            }
            Step::DeleteTable => {
                lookups.clear();
                self.push(NftMessage::DelTable, 0, |_| {});
            }
            Step::AddSet(name, key, lookup, comment) => {
                lookups.insert(name.clone(), *lookup);
                let id = self.next_id();
                self.push(NftMessage::NewSet, NLM_F_CREATE, |body| {
                    add_set(name, key, *lookup, id, body);
                    add_set_userdata(&[(userdata::SET_KEY_ORDER, key_order(key))], comment.as_ref(), body);
                });
            }
            Step::AddMap(name, key, comment) => {
                lookups.remove(name);
                let id = self.next_id();
                self.push(NftMessage::NewSet, NLM_F_CREATE, |body| add_map(name, key, id, comment.as_ref(), body));
            }
            Step::DeleteSet(name) | Step::DeleteMap(name) => {
                lookups.remove(name);
                self.push(NftMessage::DelSet, 0, |body| _ = body.text(set::NAME, name.as_str()));
            }
            Step::AddElements(name, elements) => {
                self.elements(ElementOp::Add, name, keys(lookup_of(lookups, name), elements));
            }
            Step::DeleteElements(name, elements) | Step::DeleteMapElements(name, elements) => {
                self.elements(ElementOp::Delete, name, keys(lookup_of(lookups, name), elements));
            }
            Step::AddMapElements(name, elements) => self.elements(ElementOp::Add, name, verdicts(elements)),
            Step::AddChain(name, base, comment) => self.push(NftMessage::NewChain, NLM_F_CREATE, |body| {
                body.text(chain::NAME, name.as_str());
                base.iter().for_each(|base| add_base(*base, body));
                if let Some(comment) = comment {
                    let mut data = Vec::new();
                    userdata::comment(userdata::CHAIN_COMMENT, comment.as_str(), &mut data);
                    body.bytes(chain::USERDATA, &data);
                }
            }),
            Step::FlushChain(name) => {
                self.push(NftMessage::DelRule, 0, |body| _ = body.text(rule::CHAIN, name.as_str()));
            }
            Step::DeleteChain(name) => {
                self.push(NftMessage::DelChain, 0, |body| _ = body.text(chain::NAME, name.as_str()));
            }
            Step::AddRule(name, rule) => self.add_rule(name.as_str(), rule),
        }
    }

    fn push(&mut self, message: NftMessage, flags: u16, write: impl FnOnce(&mut Body)) {
        let mut request = NfnetlinkRequest { flags, ..message.request() };
        request.body.text(OBJECT_TABLE, TABLE);
        write(&mut request.body);
        self.requests.push(request);
    }

    /// The id of a set within the batch.
    const fn next_id(&mut self) -> u32 {
        self.last_set += 1;
        self.last_set
    }

    fn elements(&mut self, op: ElementOp, name: &SetName, items: EncodedElements<'_>) {
        let (message, flags) = match op {
            ElementOp::Add => (NftMessage::NewElement, NLM_F_CREATE),
            ElementOp::Delete => (NftMessage::DelElement, 0),
        };
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            self.push(message, flags, |body| {
                body.text(element::LIST_SET, name.as_str());
                body.nest(element::LIST_ELEMENTS, |body| {
                    let start = body.len();
                    while body.len() - start < MAX_LIST
                        && let Some(item) = items.next()
                    {
                        write_element(&item, body);
                    }
                });
            });
        }
    }

    fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let mut anonymous = Vec::new();
        let mut last = self.last_set;
        let mut expressions = Body::default();
        expression::write(rule, &mut expressions, &mut |set| {
            last += 1;
            anonymous.push((last, set));
            last
        });
        self.last_set = last;
        for (id, set) in anonymous {
            self.add_anonymous(id, set);
        }
        self.push(NftMessage::NewRule, NLM_F_CREATE | NLM_F_APPEND, |body| {
            body.text(rule::CHAIN, chain);
            body.nest(rule::EXPRESSIONS, |body| body.append(&expressions));
            let mut data = Vec::new();
            userdata::comment(userdata::RULE_COMMENT, &rule.fingerprint().to_string(), &mut data);
            body.bytes(rule::USERDATA, &data);
        });
    }

    fn add_anonymous(&mut self, id: u32, AnonymousSet { key, elements }: AnonymousSet) {
        // `TYPE_INET_PROTOCOL` and `TYPE_ICMP6_TYPE` of nft.
        let nft_type = match key {
            AnonymousKey::Protocols => key::nft_type(KeyType::Proto),
            AnonymousKey::Icmpv6Types => 29,
        };
        let size = u32::try_from(elements.len()).expect("a handful");
        self.push(NftMessage::NewSet, NLM_F_CREATE, |body| {
            body.text(set::NAME, ANONYMOUS).be32(set::FLAGS, set::FLAG_ANONYMOUS | set::FLAG_CONSTANT);
            body.be32(set::KEY_TYPE, nft_type).be32(set::KEY_LEN, 1).be32(set::ID, id);
            body.nest(set::DESC, |body| _ = body.be32(set::DESC_SIZE, size));
            add_set_userdata(&[(userdata::SET_KEY_ORDER, userdata::ORDER_NETWORK)], None, body);
        });
        self.push(NftMessage::NewElement, NLM_F_CREATE, |body| {
            body.text(element::LIST_SET, ANONYMOUS).be32(element::LIST_SET_ID, id);
            body.nest(element::LIST_ELEMENTS, |body| {
                for one in elements {
                    body.nest(LIST_ELEMENT, |body| write_key(element::KEY, &[*one], body));
                }
            });
        });
    }
}

/// The lookups of the sets in the table.
pub(super) type Lookups = BTreeMap<SetName, Lookup>;

/// The lookup of a set or a map. Maps are always hashed; elements of an unknown set are rejected in any encoding.
fn lookup_of(lookups: &Lookups, name: &SetName) -> Lookup {
    lookups.get(name).copied().unwrap_or(Lookup::Hash)
}

/// Creates the table, unless it exists.
pub(super) fn add_table(flags: Option<u32>) -> NfnetlinkRequest {
    let mut request = NftMessage::NewTable.request();
    request.body.text(table::NAME, TABLE);
    flags.into_iter().for_each(|flags| _ = request.body.be32(table::FLAGS, flags));
    request
}

fn keys(lookup: Lookup, elements: &OrdSet<Element>) -> EncodedElements<'_> {
    let item = |element| EncodedElement {
        encoding: ElementEncoding::of(lookup, element),
        bounds: key::bounds(element),
        verdict: None,
    };
    let mut items: EncodedElements<'_> = elements.iter().map(item).collect();
    // Intervals in the order of their keys: one that begins where another ends comes after it. The sort is stable, so that
    // other elements keep their order.
    items.sort_by(|a, b| match (a.encoding, b.encoding) {
        (ElementEncoding::Interval, ElementEncoding::Interval) => a.bounds.cmp(&b.bounds),
        _ => Ordering::Equal,
    });
    items
}

fn verdicts(elements: &OrdMap<Element, Verdict>) -> EncodedElements<'_> {
    let item = |(element, verdict)| EncodedElement {
        encoding: ElementEncoding::Hash,
        bounds: key::bounds(element),
        verdict: Some(verdict),
    };
    elements.iter().map(item).collect()
}

/// In a hash an element is its key. An interval of a concatenation is an element with two keys; another one is an element
/// at its first key, and one after its last key, unless that is the last key of the type.
fn write_element(EncodedElement { encoding, bounds, verdict }: &EncodedElement<'_>, body: &mut Body) {
    let after = match encoding {
        ElementEncoding::Interval => key::successor(&bounds.last),
        ElementEncoding::Hash | ElementEncoding::Concatenation => None,
    };
    body.nest(LIST_ELEMENT, |body| {
        write_key(element::KEY, &bounds.first, body);
        match encoding {
            ElementEncoding::Hash => {}
            ElementEncoding::Concatenation => write_key(element::KEY_END, &bounds.last, body),
            ElementEncoding::Interval if after.is_some() => {}
            ElementEncoding::Interval => {
                let mut open = Vec::new();
                userdata::entry(userdata::ELEMENT_FLAGS, &userdata::ELEMENT_OPEN.to_ne_bytes(), &mut open);
                body.bytes(element::USERDATA, &open);
            }
        }
        if let Some(verdict) = verdict {
            body.nest(element::DATA, |body| expression::verdict(verdict, body));
        }
    });
    if let Some(after) = after {
        body.nest(LIST_ELEMENT, |body| {
            body.be32(element::FLAGS, element::FLAG_INTERVAL_END);
            write_key(element::KEY, &after, body);
        });
    }
}

fn write_key(kind: u16, key: &[u8], body: &mut Body) {
    body.nest(kind, |body| _ = body.bytes(data::VALUE, key));
}

fn add_set(name: &SetName, key: &[KeyType], lookup: Lookup, id: u32, body: &mut Body) {
    let flags = match (lookup, key) {
        (Lookup::Hash, _) => 0,
        (Lookup::Interval, [_]) => set::FLAG_INTERVAL,
        (Lookup::Interval, _) => set::FLAG_INTERVAL | set::FLAG_CONCAT,
    };
    declare(name, key, flags, body);
    if flags & set::FLAG_CONCAT != 0 {
        body.nest(set::DESC, |body| {
            _ = body.nest(set::DESC_CONCAT, |body| key.iter().for_each(|part| add_field(*part, body)));
        });
    }
    body.be32(set::ID, id);
}

fn add_field(part: KeyType, body: &mut Body) {
    let length = u32::try_from(key::length(part)).expect("a part has a few bytes");
    body.nest(LIST_ELEMENT, |body| _ = body.be32(set::FIELD_LEN, length));
}

fn add_map(name: &SetName, key: &[KeyType], id: u32, comment: Option<&Comment>, body: &mut Body) {
    declare(name, key, set::FLAG_MAP, body);
    body.be32(set::DATA_TYPE, set::DATA_VERDICT).be32(set::DATA_LEN, 0).be32(set::ID, id);
    let orders =
        [(userdata::SET_KEY_ORDER, key_order(key)), (userdata::SET_DATA_ORDER, 0), (userdata::SET_DATA_INTERVAL, 0)];
    add_set_userdata(&orders, comment, body);
}

fn declare(name: &SetName, key: &[KeyType], flags: u32, body: &mut Body) {
    let length = u32::try_from(key::whole_length(key)).expect("a key has at most 64 bytes");
    body.text(set::NAME, name.as_str()).be32(set::FLAGS, flags);
    body.be32(set::KEY_TYPE, key::nft_types(key)).be32(set::KEY_LEN, length);
}

/// The byte order in which nft prints a key; a concatenation has none of its own.
const fn key_order(key: &[KeyType]) -> u32 {
    match key {
        [KeyType::IfName] => userdata::ORDER_HOST,
        [_] => userdata::ORDER_NETWORK,
        _ => 0,
    }
}

fn add_set_userdata(entries: &[(u8, u32)], comment: Option<&Comment>, body: &mut Body) {
    let mut data = Vec::new();
    entries.iter().for_each(|(kind, number)| userdata::entry(*kind, &number.to_ne_bytes(), &mut data));
    if let Some(comment) = comment {
        userdata::comment(userdata::SET_COMMENT, comment.as_str(), &mut data);
    }
    body.bytes(set::USERDATA, &data);
}

fn add_base(base: BaseChain, body: &mut Body) {
    body.nest(chain::HOOK, |body| {
        body.be32(chain::HOOK_NUMBER, hook_number(base.hook));
        body.be32(chain::HOOK_PRIORITY, base.priority.cast_unsigned());
    });
    body.be32(chain::POLICY, chain::POLICY_ACCEPT);
    body.text(
        chain::TYPE,
        match base.chain_type {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        },
    );
}

/// `enum nf_inet_hooks` (linux/netfilter.h).
pub(super) const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}
