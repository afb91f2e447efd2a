//! Decodes the kernel's expressions to the rule from which they were encoded: the reverse of [`super::expression`].
//!
//! Expressions are ambiguous in one point: a load of an IPv4 address needs a check of the family before it, which looks the
//! same as a match on the family in the rule. So decoding gives candidates, and the fingerprint in the rule's comment
//! selects one. It covers the anonymous sets too, whose elements are not read.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32};

use ipnet::IpNet;
use towpath_core::{
    model::Family,
    names::SetName,
    policy::packet_log,
    ruleset::{Action, CmpOp, CtState, Field, Fingerprint, Log, Match, Rule, Value},
};

use super::{
    expression::{ICMPV6, state_bit},
    key::{self, length},
    read,
    wire::{bitwise, cmp, ct, data, expr, immediate, limit, log, lookup, masq, meta, payload, range, register},
};
use crate::nfnetlink::Attributes;

/// The prefix of the kernel's names for anonymous sets.
const ANONYMOUS: &str = "__set";

/// The limit of family checks in one rule; ours have fewer.
const MAX_GUARDS: usize = 6;

/// The rule of these expressions that has this fingerprint; `None` if we did not write it.
pub(super) fn rule(expressions: Attributes<'_>, fingerprint: Fingerprint) -> Option<Rule> {
    let mut decoder = RuleDecoder::default();
    for item in expressions {
        let expression = item.nested();
        decoder.expression(
            expression.find(expr::NAME)?.text()?,
            expression.find(expr::DATA).map_or(Attributes::new(&[]), |d| d.nested()),
        )?;
    }
    decoder.candidates()?.find(|rule| rule.fingerprint() == fingerprint)
}

/// The content of a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RegisterLoad {
    /// The first bytes of a field.
    Field(Field, usize),
    Family,
    State,
    Mark,
    ConnectionMark,
    Icmpv6Type,
}

/// A part of the rule.
enum RulePart {
    Match(Match),
    /// A family check: a match of the rule, or needed by a later load.
    Guard(Family),
}

#[derive(Default)]
struct RuleDecoder {
    parts: Vec<RulePart>,
    action: Option<Action>,
    /// Registers with their content, in the order of the loads.
    loads: Vec<(u32, RegisterLoad)>,
    /// Whether the loads have been used: the next load begins a new match.
    used: bool,
    mask: Option<Vec<u8>>,
    /// The lower end of a range of ports.
    at_least: Option<u16>,
    limit: Option<(NonZeroU32, NonZeroU32)>,
}

impl RuleDecoder {
    fn expression(&mut self, name: &str, body: Attributes<'_>) -> Option<()> {
        let number = |kind| body.find(kind)?.be32();
        let value = |kind| Some(body.find(kind)?.nested().find(data::VALUE)?.payload);
        if self.action.is_some() {
            return None;
        }
        match name {
            "meta" => self.load(number(meta::DREG)?, meta_load(number(meta::KEY)?)?),
            "ct" => self.load(number(ct::DREG)?, ct_load(number(ct::KEY)?)?),
            "payload" => {
                let load = payload_load(number(payload::BASE)?, number(payload::OFFSET)?, number(payload::LEN)?)?;
                self.load(number(payload::DREG)?, load);
            }
            "bitwise" => self.mask = Some(value(bitwise::MASK)?.to_vec()),
            "cmp" => self.compare(register_of(number(cmp::SREG)?), number(cmp::OP)?, value(cmp::DATA)?)?,
            "range" => self.range(
                register_of(number(range::SREG)?),
                number(range::OP)?,
                value(range::FROM_DATA)?,
                value(range::TO_DATA)?,
            )?,
            "lookup" => self.look_up(body)?,
            // nft puts one behind a protocol in a concatenation with intervals; of a single byte it changes nothing.
            "byteorder" => {}
            "limit" => {
                let positive = |number: u64| NonZeroU32::new(u32::try_from(number).ok()?);
                self.limit =
                    Some((positive(body.find(limit::RATE)?.be64()?)?, positive(number(limit::BURST)?.into())?));
            }
            _ => self.action = Some(self.action(name, body)?),
        }
        Some(())
    }

    fn action(&self, name: &str, body: Attributes<'_>) -> Option<Action> {
        let number = |kind| body.find(kind)?.be32();
        match name {
            "immediate" => read::verdict(body.find(immediate::DATA)?.nested()).map(Action::Verdict),
            "masq" => (number(masq::FLAGS)? == masq::FLAG_RANDOM_FULLY).then_some(Action::Masquerade),
            "notrack" => Some(Action::NoTrack),
            "log" => {
                let (rate, burst) = self.limit?;
                let (reason, direction) = packet_log::read_prefix(body.find(log::PREFIX)?.text()?)?;
                let prefix = packet_log::prefix(reason, direction);
                let snaplen = NonZeroU32::new(number(log::SNAPLEN)?)?;
                Some(Action::Log(Log { prefix, group: body.find(log::GROUP)?.be16()?, snaplen, rate, burst }))
            }
            _ => None,
        }
    }

    fn load(&mut self, at: u32, load: RegisterLoad) {
        if std::mem::take(&mut self.used) {
            self.loads.clear();
        }
        self.loads.push((register_of(at), load));
    }

    fn loaded(&mut self, at: u32) -> Option<RegisterLoad> {
        self.used = true;
        self.loads.iter().find(|(register, _)| *register == at).map(|(_, load)| *load)
    }

    fn compare(&mut self, at: u32, how: u32, with: &[u8]) -> Option<()> {
        let mask = self.mask.take();
        let part = match (self.loaded(at)?, how, mask) {
            (RegisterLoad::Family, cmp::EQ, None) => RulePart::Guard(match with {
                [2] => Family::V4,
                [10] => Family::V6,
                _ => return None,
            }),
            (RegisterLoad::State, cmp::NEQ, Some(mask)) => RulePart::Match(Match::CtState(states(host_order(&mask)?))),
            (RegisterLoad::Mark, cmp::EQ, Some(mask)) if mask == with => {
                RulePart::Match(Match::MarkBits(host_order(with)?))
            }
            (RegisterLoad::ConnectionMark, cmp::EQ, Some(mask)) if mask == with => {
                RulePart::Match(Match::ConnectionMarkBits(host_order(with)?))
            }
            (RegisterLoad::Field(Field::DestinationPort, 2), cmp::GTE, None) => {
                self.at_least = Some(port(with)?);
                return Some(());
            }
            (RegisterLoad::Field(Field::DestinationPort, 2), cmp::LTE, None) => {
                let range = Value::PortRange(self.at_least.take()?, port(with)?);
                RulePart::Match(Match::Field(Field::DestinationPort, CmpOp::Eq, range))
            }
            (RegisterLoad::Field(field, bytes), how, mask) => {
                let op = match how {
                    cmp::EQ => CmpOp::Eq,
                    cmp::NEQ => CmpOp::NotEq,
                    _ => return None,
                };
                RulePart::Match(field_match(field, bytes, op, with, mask.as_deref())?)
            }
            _ => return None,
        };
        self.parts.push(part);
        Some(())
    }

    fn range(&mut self, at: u32, how: u32, first: &[u8], last: &[u8]) -> Option<()> {
        let loaded = self.loaded(at)?;
        if loaded != RegisterLoad::Field(Field::DestinationPort, 2) || how != range::NEQ {
            return None;
        }
        let range = Value::PortRange(port(first)?, port(last)?);
        self.parts.push(RulePart::Match(Match::Field(Field::DestinationPort, CmpOp::NotEq, range)));
        Some(())
    }

    fn look_up(&mut self, body: Attributes<'_>) -> Option<()> {
        let name = body.find(lookup::SET)?.text()?;
        let first = self.loaded(register_of(body.find(lookup::SREG)?.be32()?))?;
        if name.starts_with(ANONYMOUS) {
            return match first {
                // A load of a port needs it; the rule has no such match.
                RegisterLoad::Field(Field::Proto, _) => Some(()),
                RegisterLoad::Icmpv6Type => {
                    // The match on the ICMPv6 type needs a match on the protocol.
                    let protocol = Match::Field(Field::Proto, CmpOp::Eq, Value::Proto(ICMPV6));
                    matches!(self.parts.pop()?, RulePart::Match(last) if last == protocol).then_some(())?;
                    self.parts.push(RulePart::Match(Match::NeighbourDiscovery));
                    Some(())
                }
                RegisterLoad::Field(..)
                | RegisterLoad::Family
                | RegisterLoad::State
                | RegisterLoad::Mark
                | RegisterLoad::ConnectionMark => None,
            };
        }
        let field = |(_, load): &(u32, RegisterLoad)| match load {
            RegisterLoad::Field(field, bytes) if *bytes == length(field.key_type()) => Some(*field),
            _ => None,
        };
        let fields: Vec<Field> = self.loads.iter().map(field).collect::<Option<_>>()?;
        let name = SetName::new(name).ok()?;
        match (body.find(lookup::DREG), body.find(lookup::FLAGS).and_then(|flags| flags.be32())) {
            (Some(_), _) => self.action = Some(Action::Dispatch(fields, name)),
            (None, None | Some(0)) => self.parts.push(RulePart::Match(Match::InSet(fields, CmpOp::Eq, name))),
            (None, Some(_)) => self.parts.push(RulePart::Match(Match::InSet(fields, CmpOp::NotEq, name))),
        }
        Some(())
    }

    /// All rules that are encoded as these expressions.
    fn candidates(self) -> Option<impl Iterator<Item = Rule>> {
        let Self { parts, action, .. } = self;
        let action = action?;
        let guards = parts.iter().filter(|part| matches!(part, RulePart::Guard(_))).count();
        let all = (guards <= MAX_GUARDS).then_some(0..1_u32 << guards)?;
        Some(all.map(move |named| {
            let mut guard = 0;
            let mut matches = Vec::new();
            for part in &parts {
                match part {
                    RulePart::Match(condition) => matches.push(condition.clone()),
                    RulePart::Guard(family) => {
                        if named >> guard & 1 == 1 {
                            matches.push(Match::Family(*family));
                        }
                        guard += 1;
                    }
                }
            }
            Rule { matches, action: action.clone() }
        }))
    }
}

/// The kernel dumps registers of 16 bytes with numbers of their own (`nft_dump_register`).
const fn register_of(number: u32) -> u32 {
    if number >= 1 && number < 5 { register::FIRST + (number - 1) * 4 } else { number }
}

fn meta_load(key: u32) -> Option<RegisterLoad> {
    let field = |field: Field| RegisterLoad::Field(field, length(field.key_type()));
    match key {
        meta::KEY_MARK => Some(RegisterLoad::Mark),
        meta::KEY_NFPROTO => Some(RegisterLoad::Family),
        meta::KEY_IIFNAME => Some(field(Field::InInterface)),
        meta::KEY_OIFNAME => Some(field(Field::OutInterface)),
        meta::KEY_L4PROTO => Some(field(Field::Proto)),
        _ => None,
    }
}

const fn ct_load(key: u32) -> Option<RegisterLoad> {
    match key {
        ct::KEY_STATE => Some(RegisterLoad::State),
        ct::KEY_MARK => Some(RegisterLoad::ConnectionMark),
        _ => None,
    }
}

fn payload_load(base: u32, offset: u32, bytes: u32) -> Option<RegisterLoad> {
    let field = match (base, offset, bytes) {
        (payload::NETWORK_HEADER, 12, 1..=4) => Field::Source(Family::V4),
        (payload::NETWORK_HEADER, 16, 1..=4) => Field::Destination(Family::V4),
        (payload::NETWORK_HEADER, 8, 1..=16) => Field::Source(Family::V6),
        (payload::NETWORK_HEADER, 24, 1..=16) => Field::Destination(Family::V6),
        (payload::TRANSPORT_HEADER, 2, 2) => Field::DestinationPort,
        (payload::TRANSPORT_HEADER, 0, 1) => return Some(RegisterLoad::Icmpv6Type),
        _ => return None,
    };
    Some(RegisterLoad::Field(field, usize::try_from(bytes).ok()?))
}

/// A match of a field with one value or one network.
fn field_match(field: Field, bytes: usize, op: CmpOp, with: &[u8], mask: Option<&[u8]>) -> Option<Match> {
    let whole = length(field.key_type());
    let value = match (field, mask) {
        (Field::InInterface | Field::OutInterface, None) if with.len() < whole => {
            let prefix = std::str::from_utf8(with).ok()?.to_owned();
            return (op == CmpOp::Eq).then_some(Match::InterfacePrefix(field, prefix));
        }
        (Field::Source(_) | Field::Destination(_), Some(mask)) => {
            let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
            Value::Net(IpNet::new(address(with)?, u8::try_from(ones).ok()?).ok()?)
        }
        (Field::Source(_) | Field::Destination(_), None) if bytes < whole => {
            let mut all = with.to_vec();
            all.resize(whole, 0);
            Value::Net(IpNet::new(address(&all)?, u8::try_from(bytes * 8).ok()?).ok()?)
        }
        (_, None) => {
            let bounds = key::Bounds { first: with.to_vec(), last: with.to_vec() };
            key::element(&[field.key_type()], &bounds)?.pop()?
        }
        (_, Some(_)) => return None,
    };
    Some(Match::Field(field, op, value))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

fn host_order(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn states(bits: u32) -> BTreeSet<CtState> {
    let all = [CtState::Established, CtState::Related, CtState::Invalid];
    all.into_iter().filter(|state| bits & state_bit(*state) != 0).collect()
}
