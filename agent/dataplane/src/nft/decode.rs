//! The kernel's expressions read back as the rule that they were written from: the reverse of [`super::expression`].
//!
//! One thing cannot be told from expressions: a load of an IPv4 address needs a check of the family before it, which looks
//! the same as a condition on the family that the rule names itself. So decoding gives candidates, and the fingerprint in
//! the rule's comment says which one it is. It answers for the anonymous sets as well, whose elements are not read.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32};

use ipnet::IpNet;
use towpath_core::{
    model::Family,
    names::SetName,
    policy::packet_log,
    ruleset::{Action, CmpOp, CtState, Field, Fingerprint, Log, Match, Rule, Value},
};

use super::{
    expression::{ICMPV6, NETWORK_HEADER, RANDOM_FULLY, REGISTER, TRANSPORT_HEADER, compare, ct, meta, state_bit},
    key::{self, length},
    read,
    wire::data,
};
use crate::nfnetlink::Attributes;

/// How the kernel names anonymous sets.
const ANONYMOUS: &str = "__set";

/// More family checks than a rule of ours has.
const MAX_GUARDS: usize = 6;

/// The rule of these expressions that has this fingerprint; `None` if we did not write it.
pub(super) fn rule(expressions: Attributes<'_>, fingerprint: Fingerprint) -> Option<Rule> {
    let mut decoder = RuleDecoder::default();
    for item in expressions {
        let expression = item.nested();
        decoder
            .expression(expression.find(1)?.text()?, expression.find(2).map_or(Attributes::new(&[]), |d| d.nested()))?;
    }
    decoder.candidates()?.find(|rule| rule.fingerprint() == fingerprint)
}

/// What is in a register.
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
    /// A family check: a condition of the rule, or what a later load needs.
    Guard(Family),
}

#[derive(Default)]
struct RuleDecoder {
    parts: Vec<RulePart>,
    action: Option<Action>,
    /// Registers and what is in them, in the order of the loads.
    loads: Vec<(u32, RegisterLoad)>,
    /// Whether the loads have been used: the next load begins a new condition.
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
            "meta" => self.load(number(1)?, meta_load(number(2)?)?),
            "ct" => self.load(number(1)?, ct_load(number(2)?)?),
            "payload" => self.load(number(1)?, payload_load(number(2)?, number(3)?, number(4)?)?),
            "bitwise" => self.mask = Some(value(4)?.to_vec()),
            "cmp" => self.compare(register(number(1)?), number(2)?, value(3)?)?,
            "range" => self.range(register(number(1)?), number(2)?, value(3)?, value(4)?)?,
            "lookup" => self.look_up(body)?,
            // nft puts one behind a protocol in a concatenation with intervals; of a single byte it changes nothing.
            "byteorder" => {}
            "limit" => {
                let positive = |number: u64| NonZeroU32::new(u32::try_from(number).ok()?);
                self.limit = Some((positive(body.find(1)?.be64()?)?, positive(number(3)?.into())?));
            }
            _ => self.action = Some(self.action(name, body)?),
        }
        Some(())
    }

    fn action(&self, name: &str, body: Attributes<'_>) -> Option<Action> {
        let number = |kind| body.find(kind)?.be32();
        match name {
            "immediate" => read::verdict(body.find(2)?.nested()).map(Action::Verdict),
            "masq" => (number(1)? == RANDOM_FULLY).then_some(Action::Masquerade),
            "notrack" => Some(Action::NoTrack),
            "log" => {
                let (rate, burst) = self.limit?;
                let (reason, direction) = packet_log::read_prefix(body.find(2)?.text()?)?;
                let prefix = packet_log::prefix(reason, direction);
                let snaplen = NonZeroU32::new(number(3)?)?;
                Some(Action::Log(Log { prefix, group: body.find(1)?.be16()?, snaplen, rate, burst }))
            }
            _ => None,
        }
    }

    fn load(&mut self, at: u32, load: RegisterLoad) {
        if std::mem::take(&mut self.used) {
            self.loads.clear();
        }
        self.loads.push((register(at), load));
    }

    fn loaded(&mut self, at: u32) -> Option<RegisterLoad> {
        self.used = true;
        self.loads.iter().find(|(register, _)| *register == at).map(|(_, load)| *load)
    }

    fn compare(&mut self, at: u32, how: u32, with: &[u8]) -> Option<()> {
        let mask = self.mask.take();
        let part = match (self.loaded(at)?, how, mask) {
            (RegisterLoad::Family, compare::EQ, None) => RulePart::Guard(match with {
                [2] => Family::V4,
                [10] => Family::V6,
                _ => return None,
            }),
            (RegisterLoad::State, compare::NEQ, Some(mask)) => {
                RulePart::Match(Match::CtState(states(host_order(&mask)?)))
            }
            (RegisterLoad::Mark, compare::EQ, Some(mask)) if mask == with => {
                RulePart::Match(Match::MarkBits(host_order(with)?))
            }
            (RegisterLoad::ConnectionMark, compare::EQ, Some(mask)) if mask == with => {
                RulePart::Match(Match::ConnectionMarkBits(host_order(with)?))
            }
            (RegisterLoad::Field(Field::DestinationPort, 2), compare::GTE, None) => {
                self.at_least = Some(port(with)?);
                return Some(());
            }
            (RegisterLoad::Field(Field::DestinationPort, 2), compare::LTE, None) => {
                let range = Value::PortRange(self.at_least.take()?, port(with)?);
                RulePart::Match(Match::Field(Field::DestinationPort, CmpOp::Eq, range))
            }
            (RegisterLoad::Field(field, bytes), how, mask) => {
                let op = match how {
                    compare::EQ => CmpOp::Eq,
                    compare::NEQ => CmpOp::NotEq,
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
        if loaded != RegisterLoad::Field(Field::DestinationPort, 2) || how != compare::NEQ {
            return None;
        }
        let range = Value::PortRange(port(first)?, port(last)?);
        self.parts.push(RulePart::Match(Match::Field(Field::DestinationPort, CmpOp::NotEq, range)));
        Some(())
    }

    fn look_up(&mut self, body: Attributes<'_>) -> Option<()> {
        let name = body.find(1)?.text()?;
        let first = self.loaded(register(body.find(2)?.be32()?))?;
        if name.starts_with(ANONYMOUS) {
            return match first {
                // What a look at a port needs; the rule says nothing of it.
                RegisterLoad::Field(Field::Proto, _) => Some(()),
                RegisterLoad::Icmpv6Type => {
                    // The protocol was compared for the sake of the type.
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
        match (body.find(3), body.find(5).and_then(|flags| flags.be32())) {
            (Some(_), _) => self.action = Some(Action::Dispatch(fields, name)),
            (None, None | Some(0)) => self.parts.push(RulePart::Match(Match::InSet(fields, CmpOp::Eq, name))),
            (None, Some(_)) => self.parts.push(RulePart::Match(Match::InSet(fields, CmpOp::NotEq, name))),
        }
        Some(())
    }

    /// All rules that are written as these expressions.
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

/// The kernel tells of registers of 16 bytes by numbers of their own (`nft_dump_register`).
const fn register(number: u32) -> u32 {
    if number >= 1 && number < 5 { REGISTER + (number - 1) * 4 } else { number }
}

fn meta_load(key: u32) -> Option<RegisterLoad> {
    let field = |field: Field| RegisterLoad::Field(field, length(field.key_type()));
    match key {
        meta::MARK => Some(RegisterLoad::Mark),
        meta::NFPROTO => Some(RegisterLoad::Family),
        meta::IIFNAME => Some(field(Field::InInterface)),
        meta::OIFNAME => Some(field(Field::OutInterface)),
        meta::L4PROTO => Some(field(Field::Proto)),
        _ => None,
    }
}

const fn ct_load(key: u32) -> Option<RegisterLoad> {
    match key {
        ct::STATE => Some(RegisterLoad::State),
        ct::MARK => Some(RegisterLoad::ConnectionMark),
        _ => None,
    }
}

fn payload_load(base: u32, offset: u32, bytes: u32) -> Option<RegisterLoad> {
    let field = match (base, offset, bytes) {
        (NETWORK_HEADER, 12, 1..=4) => Field::Source(Family::V4),
        (NETWORK_HEADER, 16, 1..=4) => Field::Destination(Family::V4),
        (NETWORK_HEADER, 8, 1..=16) => Field::Source(Family::V6),
        (NETWORK_HEADER, 24, 1..=16) => Field::Destination(Family::V6),
        (TRANSPORT_HEADER, 2, 2) => Field::DestinationPort,
        (TRANSPORT_HEADER, 0, 1) => return Some(RegisterLoad::Icmpv6Type),
        _ => return None,
    };
    Some(RegisterLoad::Field(field, usize::try_from(bytes).ok()?))
}

/// A field against one value or one network.
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
