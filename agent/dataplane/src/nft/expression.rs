//! Encodes a rule as the kernel's expressions: each loads into registers, compares them, or acts.

use towpath_core::{
    model::Family,
    ruleset::{Action, CmpOp, CtState, Field, Log, Match, PROTOCOLS_WITH_PORTS, Rule, Value, Verdict},
};

use super::{
    key::{self, length},
    wire::{
        LIST_ELEMENT, bitwise, cmp, ct, data, expr, immediate, limit, log, lookup, masq, meta, payload, range, register,
    },
};
use crate::nfnetlink::Body;

/// `IPPROTO_ICMPV6`.
pub(super) const ICMPV6: u8 = 58;

/// Neighbour solicitation and advertisement, router solicitation (RFC 4861, section 4).
const NEIGHBOUR_DISCOVERY: [u8; 3] = [135, 136, 133];

/// An anonymous set of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnonymousSet {
    pub(super) key: AnonymousKey,
    /// The elements, of one byte each.
    pub(super) elements: &'static [u8],
}

/// The key type of an anonymous set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnonymousKey {
    Protocols,
    Icmpv6Types,
}

/// The name of an anonymous set in a request: the kernel fills in a number.
pub(super) const ANONYMOUS: &str = "__set%d";

/// Appends a rule's expressions. `id` assigns each anonymous set of the rule its id in the batch.
pub(super) fn write(rule: &Rule, body: &mut Body, id: &mut dyn FnMut(AnonymousSet) -> u32) {
    let mut writer = ExpressionWriter { body, id, family: None };
    let guard = rule.port_guard();
    for place in 0..=rule.matches.len() {
        if guard == Some(place) {
            writer.meta(meta::KEY_L4PROTO, register::FIRST);
            writer.among(AnonymousSet { key: AnonymousKey::Protocols, elements: &PROTOCOLS_WITH_PORTS });
        }
        match rule.matches.get(place) {
            Some(condition) => writer.condition(condition),
            None => writer.action(&rule.action),
        }
    }
}

/// Appends the data of a verdict, for a register or a map's element.
pub(super) fn verdict(verdict: &Verdict, body: &mut Body) {
    let code = match verdict {
        Verdict::Accept => data::ACCEPT,
        Verdict::Drop => data::DROP,
        Verdict::Return => data::RETURN,
        Verdict::Jump(_) => data::JUMP,
        Verdict::Goto(_) => data::GOTO,
    };
    body.nest(data::VERDICT, |body| {
        body.be32(data::CODE, code.cast_unsigned());
        if let Some(chain) = verdict.target() {
            body.text(data::CHAIN, chain.as_str());
        }
    });
}

struct ExpressionWriter<'a> {
    body: &'a mut Body,
    id: &'a mut dyn FnMut(AnonymousSet) -> u32,
    /// The family of all packets that reach this expression.
    family: Option<Family>,
}

impl ExpressionWriter<'_> {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::CtState(states) => {
                let bits = states.iter().fold(0, |bits, state| bits | state_bit(*state));
                self.ct(ct::KEY_STATE);
                self.mask(&bits.to_ne_bytes());
                self.compare(cmp::NEQ, &0_u32.to_ne_bytes());
            }
            Match::MarkBits(bits) => {
                self.meta(meta::KEY_MARK, register::FIRST);
                self.has_bits(*bits);
            }
            Match::ConnectionMarkBits(bits) => {
                self.ct(ct::KEY_MARK);
                self.has_bits(*bits);
            }
            Match::Field(field, op, value) => self.field(*field, *op, value),
            Match::InterfacePrefix(field, prefix) => {
                self.load(*field, register::FIRST);
                self.compare(cmp::EQ, prefix.as_bytes());
            }
            Match::InSet(fields, op, set) => {
                self.load_all(fields);
                self.look_up(set.as_str(), LookupResult::Matches(*op), None);
            }
            Match::Family(family) => {
                // An explicit match is encoded even if another one implies it.
                self.family = None;
                self.of_family(*family);
            }
            Match::NeighbourDiscovery => {
                self.of_family(Family::V6);
                self.meta(meta::KEY_L4PROTO, register::FIRST);
                self.compare(cmp::EQ, &[ICMPV6]);
                self.payload(payload::TRANSPORT_HEADER, 0, 1, register::FIRST);
                self.among(AnonymousSet { key: AnonymousKey::Icmpv6Types, elements: &NEIGHBOUR_DISCOVERY });
            }
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Verdict(to) => self.expression("immediate", |body| {
                body.be32(immediate::DREG, register::VERDICT).nest(immediate::DATA, |body| verdict(to, body));
            }),
            Action::Dispatch(fields, map) => {
                self.load_all(fields);
                self.look_up(map.as_str(), LookupResult::Verdict, None);
            }
            Action::Masquerade => self.expression("masq", |body| {
                body.be32(masq::FLAGS, masq::FLAG_RANDOM_FULLY);
            }),
            Action::Log(log) => self.log(log),
            Action::NoTrack => self.expression("notrack", |_| {}),
        }
    }

    fn field(&mut self, field: Field, op: CmpOp, value: &Value) {
        let equal = match op {
            CmpOp::Eq => cmp::EQ,
            CmpOp::NotEq => cmp::NEQ,
        };
        match (value, op) {
            (Value::Net(net), _) => self.network(field, equal, net),
            (Value::PortRange(first, last), CmpOp::Eq) => {
                self.load(field, register::FIRST);
                self.compare(cmp::GTE, &first.to_be_bytes());
                self.compare(cmp::LTE, &last.to_be_bytes());
            }
            (Value::PortRange(first, last), CmpOp::NotEq) => {
                self.load(field, register::FIRST);
                self.expression("range", |body| {
                    body.be32(range::SREG, register::FIRST).be32(range::OP, range::NEQ);
                    body.nest(range::FROM_DATA, |body| _ = body.bytes(data::VALUE, &first.to_be_bytes()));
                    body.nest(range::TO_DATA, |body| _ = body.bytes(data::VALUE, &last.to_be_bytes()));
                });
            }
            (Value::Addr(_) | Value::IfName(_) | Value::Proto(_) | Value::Port(_), _) => {
                self.load(field, register::FIRST);
                self.compare(equal, &key::value_bounds(value).first);
            }
        }
    }

    /// Compares an address with a network: a prefix of whole bytes is loaded alone, another one is masked.
    fn network(&mut self, field: Field, equal: u32, net: &ipnet::IpNet) {
        let address = key::address(net.network());
        let bytes = usize::from(net.prefix_len() / 8);
        if net.prefix_len().is_multiple_of(8) && bytes > 0 {
            self.load_bytes(field, bytes, register::FIRST);
            self.compare(equal, &address[..bytes]);
        } else {
            self.load(field, register::FIRST);
            self.mask(&key::address(net.netmask()));
            self.compare(equal, &address);
        }
    }

    fn load_all(&mut self, fields: &[Field]) {
        let mut register = register::FIRST;
        // Families first: their match uses the first register.
        fields.iter().filter_map(|field| family(*field)).for_each(|family| self.of_family(family));
        for field in fields {
            self.load(*field, register);
            register += u32::try_from(length(field.key_type()).div_ceil(4)).expect("a key has a few words");
        }
    }

    fn load(&mut self, field: Field, register: u32) {
        self.load_bytes(field, length(field.key_type()), register);
    }

    /// Loads the first bytes of a field.
    fn load_bytes(&mut self, field: Field, bytes: usize, register: u32) {
        family(field).into_iter().for_each(|family| self.of_family(family));
        match field {
            Field::InInterface => self.meta(meta::KEY_IIFNAME, register),
            Field::OutInterface => self.meta(meta::KEY_OIFNAME, register),
            Field::Proto => self.meta(meta::KEY_L4PROTO, register),
            // Offsets of RFC 791, 8200, 9293.
            Field::Source(Family::V4) => self.payload(payload::NETWORK_HEADER, 12, bytes, register),
            Field::Destination(Family::V4) => self.payload(payload::NETWORK_HEADER, 16, bytes, register),
            Field::Source(Family::V6) => self.payload(payload::NETWORK_HEADER, 8, bytes, register),
            Field::Destination(Family::V6) => self.payload(payload::NETWORK_HEADER, 24, bytes, register),
            Field::DestinationPort => self.payload(payload::TRANSPORT_HEADER, 2, bytes, register),
        }
    }

    fn of_family(&mut self, family: Family) {
        if self.family.replace(family) == Some(family) {
            return;
        }
        // NFPROTO_IPV4 and NFPROTO_IPV6.
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        self.meta(meta::KEY_NFPROTO, register::FIRST);
        self.compare(cmp::EQ, &[number]);
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |body| _ = body.be32(meta::KEY, key).be32(meta::DREG, register));
    }

    fn ct(&mut self, key: u32) {
        self.expression("ct", |body| _ = body.be32(ct::KEY, key).be32(ct::DREG, register::FIRST));
    }

    fn payload(&mut self, base: u32, offset: u32, bytes: usize, register: u32) {
        let bytes = u32::try_from(bytes).expect("a field has a few bytes");
        self.expression("payload", |body| {
            body.be32(payload::DREG, register).be32(payload::BASE, base);
            body.be32(payload::OFFSET, offset).be32(payload::LEN, bytes);
        });
    }

    fn compare(&mut self, op: u32, with: &[u8]) {
        self.expression("cmp", |body| {
            body.be32(cmp::SREG, register::FIRST).be32(cmp::OP, op);
            body.nest(cmp::DATA, |body| _ = body.bytes(data::VALUE, with));
        });
    }

    fn has_bits(&mut self, bits: u32) {
        self.mask(&bits.to_ne_bytes());
        self.compare(cmp::EQ, &bits.to_ne_bytes());
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).expect("a field has a few bytes");
        self.expression("bitwise", |body| {
            body.be32(bitwise::SREG, register::FIRST).be32(bitwise::DREG, register::FIRST).be32(bitwise::LEN, length);
            body.nest(bitwise::MASK, |body| _ = body.bytes(data::VALUE, mask));
            body.nest(bitwise::XOR, |body| _ = body.bytes(data::VALUE, &vec![0; mask.len()]));
        });
    }

    fn among(&mut self, set: AnonymousSet) {
        let id = (self.id)(set);
        self.look_up(ANONYMOUS, LookupResult::Matches(CmpOp::Eq), Some(id));
    }

    fn look_up(&mut self, set: &str, result: LookupResult, id: Option<u32>) {
        self.expression("lookup", |body| {
            body.text(lookup::SET, set).be32(lookup::SREG, register::FIRST);
            match result {
                LookupResult::Matches(CmpOp::Eq) => {}
                LookupResult::Matches(CmpOp::NotEq) => _ = body.be32(lookup::FLAGS, lookup::FLAG_INV),
                LookupResult::Verdict => _ = body.be32(lookup::DREG, register::VERDICT),
            }
            id.into_iter().for_each(|id| _ = body.be32(lookup::SET_ID, id));
        });
    }

    fn log(&mut self, log: &Log) {
        self.expression("limit", |body| {
            // Without NFT_LIMIT_F_INV it matches up to the rate.
            body.be64(limit::RATE, u64::from(log.rate.get())).be64(limit::UNIT, limit::PER_SECOND);
            body.be32(limit::BURST, log.burst.get()).be32(limit::TYPE, limit::TYPE_PACKETS).be32(limit::FLAGS, 0);
        });
        self.expression("log", |body| {
            body.text(log::PREFIX, log.prefix).be16(log::GROUP, log.group).be32(log::SNAPLEN, log.snaplen.get());
        });
    }

    fn expression(&mut self, name: &str, write: impl FnOnce(&mut Body)) {
        self.body.nest(LIST_ELEMENT, |body| {
            body.text(expr::NAME, name).nest(expr::DATA, write);
        });
    }
}

/// What the result of a lookup decides.
#[derive(Clone, Copy)]
enum LookupResult {
    /// Whether the rule matches: in the set, or not in the set.
    Matches(CmpOp),
    /// The verdict, from the element of a map.
    Verdict,
}

/// The bit of a state: `NF_CT_STATE_BIT` of `enum ip_conntrack_info` (linux/netfilter/nf_conntrack_common.h).
pub(super) const fn state_bit(state: CtState) -> u32 {
    match state {
        CtState::Invalid => 1,
        CtState::Established => 2,
        CtState::Related => 4,
    }
}

const fn family(field: Field) -> Option<Family> {
    match field {
        Field::Source(family) | Field::Destination(family) => Some(family),
        Field::InInterface | Field::OutInterface | Field::Proto | Field::DestinationPort => None,
    }
}
