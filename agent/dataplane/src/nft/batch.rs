//! A transaction as requests of nf_tables, in the order of its steps.

use std::{cmp::Ordering, collections::BTreeMap};

use imbl::{OrdMap, OrdSet};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use towpath_core::{
    names::{Comment, SetName, TABLE},
    ruleset::{BaseChain, ChainType, Element, Hook, KeyType, Lookup, Rule, Step, Transaction, Verdict},
};

use super::{
    Ownership,
    expression::{self, ANONYMOUS, Anonymous, Of},
    key::{self, Bounds},
    wire::{ITEM, Message, TABLE_OF, chain, data, element, rule, set, table, userdata},
};
use crate::nfnetlink::{Body, NfnetlinkRequest};

/// How long a list of elements in one request gets, in bytes: an attribute ends at 64 KiB, an element has some 150 at most.
const LIST: usize = 60_000;

/// Requests, and which step each of them comes from.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) requests: Vec<NfnetlinkRequest>,
    pub(super) steps: Vec<usize>,
    /// The number of the last set that the batch makes.
    last_set: u32,
}

/// How the elements of a set are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Hash,
    Interval,
    Concatenation,
}

impl Shape {
    /// Of a set by its lookup and by one of its elements.
    const fn of(lookup: Lookup, element: &Element) -> Self {
        match (lookup, element.len()) {
            (Lookup::Hash, _) => Self::Hash,
            (Lookup::Interval, 1) => Self::Interval,
            (Lookup::Interval, _) => Self::Concatenation,
        }
    }
}

/// What is to be done to elements.
#[derive(Clone, Copy)]
enum Do {
    Add,
    Delete,
}

/// An element as it is written.
struct Item<'a> {
    shape: Shape,
    bounds: Bounds,
    /// Of a map.
    verdict: Option<&'a Verdict>,
}

type Items<'a> = Vec<Item<'a>>;

impl Batch {
    /// The requests of a transaction. `lookups` are those of the sets that are in the table before it: an element is
    /// written in one way or the other.
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
                // Flags cannot be given to a table that was made without them; what is deleted next needs none.
                let flags = if next == Some(&Step::DeleteTable) { None } else { Some(ownership.flags()) };
                self.requests.push(add_table(flags));
            }
            Step::DeleteTable => {
                lookups.clear();
                self.push(Message::DelTable, 0, |_| {});
            }
            Step::AddSet(name, key, lookup, comment) => {
                lookups.insert(name.clone(), *lookup);
                let id = self.next_id();
                self.push(Message::NewSet, NLM_F_CREATE, |body| {
                    add_set(name, key, *lookup, id, body);
                    add_set_userdata(&[(userdata::SET_KEY_ORDER, key_order(key))], comment.as_ref(), body);
                });
            }
            Step::AddMap(name, key, comment) => {
                lookups.remove(name);
                let id = self.next_id();
                self.push(Message::NewSet, NLM_F_CREATE, |body| add_map(name, key, id, comment.as_ref(), body));
            }
            Step::DeleteSet(name) | Step::DeleteMap(name) => {
                lookups.remove(name);
                self.push(Message::DelSet, 0, |body| _ = body.text(set::NAME, name.as_str()));
            }
            Step::AddElements(name, elements) => self.elements(Do::Add, name, keys(of(lookups, name), elements)),
            Step::DeleteElements(name, elements) | Step::DeleteMapElements(name, elements) => {
                self.elements(Do::Delete, name, keys(of(lookups, name), elements));
            }
            Step::AddMapElements(name, elements) => self.elements(Do::Add, name, verdicts(elements)),
            Step::AddChain(name, base, comment) => self.push(Message::NewChain, NLM_F_CREATE, |body| {
                body.text(chain::NAME, name.as_str());
                base.iter().for_each(|base| add_base(*base, body));
                if let Some(comment) = comment {
                    let mut data = Vec::new();
                    userdata::comment(userdata::CHAIN_COMMENT, comment.as_str(), &mut data);
                    body.bytes(chain::USERDATA, &data);
                }
            }),
            Step::FlushChain(name) => {
                self.push(Message::DelRule, 0, |body| _ = body.text(rule::CHAIN, name.as_str()));
            }
            Step::DeleteChain(name) => {
                self.push(Message::DelChain, 0, |body| _ = body.text(chain::NAME, name.as_str()));
            }
            Step::AddRule(name, rule) => self.add_rule(name.as_str(), rule),
        }
    }

    fn push(&mut self, message: Message, flags: u16, write: impl FnOnce(&mut Body)) {
        let mut request = NfnetlinkRequest { flags, ..message.request() };
        request.body.text(TABLE_OF, TABLE);
        write(&mut request.body);
        self.requests.push(request);
    }

    /// A number by which a set is known within the batch.
    const fn next_id(&mut self) -> u32 {
        self.last_set += 1;
        self.last_set
    }

    fn elements(&mut self, what: Do, name: &SetName, items: Items<'_>) {
        let (message, flags) = match what {
            Do::Add => (Message::NewElement, NLM_F_CREATE),
            Do::Delete => (Message::DelElement, 0),
        };
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            self.push(message, flags, |body| {
                body.text(element::LIST_SET, name.as_str());
                body.nest(element::LIST_ELEMENTS, |body| {
                    let start = body.len();
                    while body.len() - start < LIST
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
        self.push(Message::NewRule, NLM_F_CREATE | NLM_F_APPEND, |body| {
            body.text(rule::CHAIN, chain);
            body.nest(rule::EXPRESSIONS, |body| body.append(&expressions));
            let mut data = Vec::new();
            userdata::comment(userdata::RULE_COMMENT, &rule.fingerprint().to_string(), &mut data);
            body.bytes(rule::USERDATA, &data);
        });
    }

    fn add_anonymous(&mut self, id: u32, Anonymous { of, elements }: Anonymous) {
        // `TYPE_INET_PROTOCOL` and `TYPE_ICMP6_TYPE` of nft.
        let nft_type = match of {
            Of::Protocols => key::nft_type(KeyType::Proto),
            Of::Icmpv6Types => 29,
        };
        let size = u32::try_from(elements.len()).expect("a handful");
        self.push(Message::NewSet, NLM_F_CREATE, |body| {
            body.text(set::NAME, ANONYMOUS).be32(set::FLAGS, set::FLAG_ANONYMOUS | set::FLAG_CONSTANT);
            body.be32(set::KEY_TYPE, nft_type).be32(set::KEY_LEN, 1).be32(set::ID, id);
            body.nest(set::DESC, |body| _ = body.be32(set::DESC_SIZE, size));
            add_set_userdata(&[(userdata::SET_KEY_ORDER, userdata::ORDER_NETWORK)], None, body);
        });
        self.push(Message::NewElement, NLM_F_CREATE, |body| {
            body.text(element::LIST_SET, ANONYMOUS).be32(element::LIST_SET_ID, id);
            body.nest(element::LIST_ELEMENTS, |body| {
                for one in elements {
                    body.nest(ITEM, |body| write_key(element::KEY, &[*one], body));
                }
            });
        });
    }
}

/// How the sets of a table find their elements.
pub(super) type Lookups = BTreeMap<SetName, Lookup>;

/// Maps are always hashed; and what is not there is refused whatever is written.
fn of(lookups: &Lookups, name: &SetName) -> Lookup {
    lookups.get(name).copied().unwrap_or(Lookup::Hash)
}

/// The table, unless it is there.
pub(super) fn add_table(flags: Option<u32>) -> NfnetlinkRequest {
    let mut request = Message::NewTable.request();
    request.body.text(table::NAME, TABLE);
    flags.into_iter().for_each(|flags| _ = request.body.be32(table::FLAGS, flags));
    request
}

fn keys(lookup: Lookup, elements: &OrdSet<Element>) -> Items<'_> {
    let item = |element| Item { shape: Shape::of(lookup, element), bounds: key::bounds(element), verdict: None };
    let mut items: Items<'_> = elements.iter().map(item).collect();
    // Intervals in the order of keys: one that begins where another ends comes behind it. The sort is stable, so that
    // other elements keep their order.
    items.sort_by(|a, b| match (a.shape, b.shape) {
        (Shape::Interval, Shape::Interval) => a.bounds.cmp(&b.bounds),
        _ => Ordering::Equal,
    });
    items
}

fn verdicts(elements: &OrdMap<Element, Verdict>) -> Items<'_> {
    let item = |(element, verdict)| Item { shape: Shape::Hash, bounds: key::bounds(element), verdict: Some(verdict) };
    elements.iter().map(item).collect()
}

/// In a hash an element is its key. Intervals of a concatenation are an element with two keys; others are an element where
/// the interval begins, and one behind its end, unless it goes on to the last key there is.
fn write_element(Item { shape, bounds, verdict }: &Item<'_>, body: &mut Body) {
    let after = match shape {
        Shape::Interval => key::successor(&bounds.last),
        Shape::Hash | Shape::Concatenation => None,
    };
    body.nest(ITEM, |body| {
        write_key(element::KEY, &bounds.first, body);
        match shape {
            Shape::Hash => {}
            Shape::Concatenation => write_key(element::KEY_END, &bounds.last, body),
            Shape::Interval if after.is_some() => {}
            Shape::Interval => {
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
        body.nest(ITEM, |body| {
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
    body.nest(ITEM, |body| _ = body.be32(set::FIELD_LEN, length));
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

/// Which order of bytes nft prints a key in; a concatenation has none of its own.
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
