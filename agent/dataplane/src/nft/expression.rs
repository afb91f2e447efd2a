//! A rule as the kernel's expressions: each loads into registers, compares them, or acts. Registers are numbered in words
//! of four bytes from [`REGISTER`] on; those of a concatenation follow each other.

use towpath_core::{
    model::Family,
    ruleset::{Action, CmpOp, CtState, Field, Log, Match, PROTOCOLS_WITH_PORTS, Rule, Value, Verdict},
};

use super::{
    key::{self, length},
    wire::{ITEM, data},
};
use crate::nfnetlink::Body;

/// `NFT_REG32_00`: the first word of the registers.
pub(super) const REGISTER: u32 = 8;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;

/// `enum nft_meta_keys`.
pub(super) mod meta {
    pub(in crate::nft) const MARK: u32 = 3;
    pub(in crate::nft) const IIFNAME: u32 = 6;
    pub(in crate::nft) const OIFNAME: u32 = 7;
    pub(in crate::nft) const NFPROTO: u32 = 15;
    pub(in crate::nft) const L4PROTO: u32 = 16;
}

/// `enum nft_ct_keys`.
pub(super) mod ct {
    pub(in crate::nft) const STATE: u32 = 0;
    pub(in crate::nft) const MARK: u32 = 3;
}

/// `enum nft_cmp_ops`, and of ranges the first two alike.
pub(super) mod compare {
    pub(in crate::nft) const EQ: u32 = 0;
    pub(in crate::nft) const NEQ: u32 = 1;
    pub(in crate::nft) const LTE: u32 = 3;
    pub(in crate::nft) const GTE: u32 = 5;
}

/// `enum nft_payload_bases`.
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;

/// `IPPROTO_ICMPV6`.
pub(super) const ICMPV6: u8 = 58;

/// Neighbour solicitation and advertisement, router solicitation (RFC 4861, section 4).
const NEIGHBOUR_DISCOVERY: [u8; 3] = [135, 136, 133];

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (linux/netfilter/nf_nat.h).
pub(super) const RANDOM_FULLY: u32 = 1 << 4;

/// A set without a name that a rule brings with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anonymous {
    /// What its elements are.
    pub(super) of: Of,
    /// The elements, of one byte each.
    pub(super) elements: &'static [u8],
}

/// What the elements of an anonymous set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Protocols,
    Icmpv6Types,
}

/// The name by which the kernel chooses one for a set without.
pub(super) const ANONYMOUS: &str = "__set%d";

/// Writes a rule's expressions. `id` gives each anonymous set that a rule needs the number by which the batch knows it.
pub(super) fn write(rule: &Rule, body: &mut Body, id: &mut dyn FnMut(Anonymous) -> u32) {
    let mut rule_body = Writer { body, id, family: None };
    let guard = rule.port_guard();
    for place in 0..=rule.matches.len() {
        if guard == Some(place) {
            rule_body.meta(meta::L4PROTO, REGISTER);
            rule_body.among(Anonymous { of: Of::Protocols, elements: &PROTOCOLS_WITH_PORTS });
        }
        match rule.matches.get(place) {
            Some(condition) => rule_body.condition(condition),
            None => rule_body.action(&rule.action),
        }
    }
}

/// Of the data of a verdict: into a register, or of a map's element.
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

struct Writer<'a> {
    body: &'a mut Body,
    id: &'a mut dyn FnMut(Anonymous) -> u32,
    /// The family that all packets have which come this far.
    family: Option<Family>,
}

impl Writer<'_> {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::CtState(states) => {
                let bits = states.iter().fold(0, |bits, state| bits | state_bit(*state));
                self.ct(ct::STATE);
                self.mask(&bits.to_ne_bytes());
                self.compare(compare::NEQ, &0_u32.to_ne_bytes());
            }
            Match::MarkBits(bits) => {
                self.meta(meta::MARK, REGISTER);
                self.has_bits(*bits);
            }
            Match::ConnectionMarkBits(bits) => {
                self.ct(ct::MARK);
                self.has_bits(*bits);
            }
            Match::Field(field, op, value) => self.field(*field, *op, value),
            Match::InterfacePrefix(field, prefix) => {
                self.load(*field, REGISTER);
                self.compare(compare::EQ, prefix.as_bytes());
            }
            Match::InSet(fields, op, set) => {
                self.load_all(fields);
                self.look_up(set.as_str(), Found::Goes(*op), None);
            }
            Match::Family(family) => {
                // Said in so many words, it is there even where another condition implies it.
                self.family = None;
                self.of_family(*family);
            }
            Match::NeighbourDiscovery => {
                self.of_family(Family::V6);
                self.meta(meta::L4PROTO, REGISTER);
                self.compare(compare::EQ, &[ICMPV6]);
                self.payload(TRANSPORT_HEADER, 0, 1, REGISTER);
                self.among(Anonymous { of: Of::Icmpv6Types, elements: &NEIGHBOUR_DISCOVERY });
            }
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Verdict(to) => self.expression("immediate", |body| {
                body.be32(1, VERDICT_REGISTER).nest(2, |body| verdict(to, body));
            }),
            Action::Dispatch(fields, map) => {
                self.load_all(fields);
                self.look_up(map.as_str(), Found::Verdict, None);
            }
            Action::Masquerade => self.expression("masq", |body| {
                body.be32(1, RANDOM_FULLY);
            }),
            Action::Log(log) => self.log(log),
            Action::NoTrack => self.expression("notrack", |_| {}),
        }
    }

    fn field(&mut self, field: Field, op: CmpOp, value: &Value) {
        let equal = match op {
            CmpOp::Eq => compare::EQ,
            CmpOp::NotEq => compare::NEQ,
        };
        match (value, op) {
            (Value::Net(net), _) => self.network(field, equal, net),
            (Value::PortRange(first, last), CmpOp::Eq) => {
                self.load(field, REGISTER);
                self.compare(compare::GTE, &first.to_be_bytes());
                self.compare(compare::LTE, &last.to_be_bytes());
            }
            (Value::PortRange(first, last), CmpOp::NotEq) => {
                self.load(field, REGISTER);
                self.expression("range", |body| {
                    body.be32(1, REGISTER).be32(2, compare::NEQ);
                    body.nest(3, |body| _ = body.bytes(data::VALUE, &first.to_be_bytes()));
                    body.nest(4, |body| _ = body.bytes(data::VALUE, &last.to_be_bytes()));
                });
            }
            (Value::Addr(_) | Value::IfName(_) | Value::Proto(_) | Value::Port(_), _) => {
                self.load(field, REGISTER);
                self.compare(equal, &key::value_bounds(value).first);
            }
        }
    }

    /// An address against a network: of whole bytes only those are loaded, else what is behind the prefix is masked.
    fn network(&mut self, field: Field, equal: u32, net: &ipnet::IpNet) {
        let address = key::address(net.network());
        let bytes = usize::from(net.prefix_len() / 8);
        if net.prefix_len().is_multiple_of(8) && bytes > 0 {
            self.load_bytes(field, bytes, REGISTER);
            self.compare(equal, &address[..bytes]);
        } else {
            self.load(field, REGISTER);
            self.mask(&key::address(net.netmask()));
            self.compare(equal, &address);
        }
    }

    fn load_all(&mut self, fields: &[Field]) {
        let mut register = REGISTER;
        // Families first: what is loaded into the registers stays there.
        fields.iter().filter_map(|field| family(*field)).for_each(|family| self.of_family(family));
        for field in fields {
            self.load(*field, register);
            register += u32::try_from(length(field.key_type()).div_ceil(4)).expect("a key has a few words");
        }
    }

    fn load(&mut self, field: Field, register: u32) {
        self.load_bytes(field, length(field.key_type()), register);
    }

    /// The first bytes of a field.
    fn load_bytes(&mut self, field: Field, bytes: usize, register: u32) {
        family(field).into_iter().for_each(|family| self.of_family(family));
        match field {
            Field::InInterface => self.meta(meta::IIFNAME, register),
            Field::OutInterface => self.meta(meta::OIFNAME, register),
            Field::Proto => self.meta(meta::L4PROTO, register),
            // Offsets of RFC 791, 8200, 9293.
            Field::Source(Family::V4) => self.payload(NETWORK_HEADER, 12, bytes, register),
            Field::Destination(Family::V4) => self.payload(NETWORK_HEADER, 16, bytes, register),
            Field::Source(Family::V6) => self.payload(NETWORK_HEADER, 8, bytes, register),
            Field::Destination(Family::V6) => self.payload(NETWORK_HEADER, 24, bytes, register),
            Field::DestinationPort => self.payload(TRANSPORT_HEADER, 2, bytes, register),
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
        self.meta(meta::NFPROTO, REGISTER);
        self.compare(compare::EQ, &[number]);
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |body| _ = body.be32(2, key).be32(1, register));
    }

    fn ct(&mut self, key: u32) {
        self.expression("ct", |body| _ = body.be32(2, key).be32(1, REGISTER));
    }

    fn payload(&mut self, base: u32, offset: u32, bytes: usize, register: u32) {
        let bytes = u32::try_from(bytes).expect("a field has a few bytes");
        self.expression("payload", |body| _ = body.be32(1, register).be32(2, base).be32(3, offset).be32(4, bytes));
    }

    fn compare(&mut self, op: u32, with: &[u8]) {
        self.expression("cmp", |body| {
            body.be32(1, REGISTER).be32(2, op).nest(3, |body| _ = body.bytes(data::VALUE, with));
        });
    }

    fn has_bits(&mut self, bits: u32) {
        self.mask(&bits.to_ne_bytes());
        self.compare(compare::EQ, &bits.to_ne_bytes());
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).expect("a field has a few bytes");
        self.expression("bitwise", |body| {
            body.be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
            body.nest(4, |body| _ = body.bytes(data::VALUE, mask));
            body.nest(5, |body| _ = body.bytes(data::VALUE, &vec![0; mask.len()]));
        });
    }

    fn among(&mut self, set: Anonymous) {
        let id = (self.id)(set);
        self.look_up(ANONYMOUS, Found::Goes(CmpOp::Eq), Some(id));
    }

    fn look_up(&mut self, set: &str, found: Found, id: Option<u32>) {
        /// `NFT_LOOKUP_F_INV`.
        const INVERTED: u32 = 1;
        self.expression("lookup", |body| {
            body.text(1, set).be32(2, REGISTER);
            match found {
                Found::Goes(CmpOp::Eq) => {}
                Found::Goes(CmpOp::NotEq) => _ = body.be32(5, INVERTED),
                Found::Verdict => _ = body.be32(3, VERDICT_REGISTER),
            }
            id.into_iter().for_each(|id| _ = body.be32(4, id));
        });
    }

    fn log(&mut self, log: &Log) {
        self.expression("limit", |body| {
            // Packets (type 0) per one second, up to the rate (flags 0).
            body.be64(1, u64::from(log.rate.get())).be64(2, 1).be32(3, log.burst.get()).be32(4, 0).be32(5, 0);
        });
        self.expression("log", |body| _ = body.text(2, log.prefix).be16(1, log.group).be32(3, log.snaplen.get()));
    }

    fn expression(&mut self, name: &str, write: impl FnOnce(&mut Body)) {
        self.body.nest(ITEM, |body| {
            body.text(1, name).nest(2, write);
        });
    }
}

/// What a lookup is for.
#[derive(Clone, Copy)]
enum Found {
    /// The rule goes on if it is in the set, or if it is not.
    Goes(CmpOp),
    /// The verdict is taken.
    Verdict,
}

/// `NF_CT_STATE_BIT` of `enum ip_conntrack_info` (linux/netfilter/nf_conntrack_common.h).
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
