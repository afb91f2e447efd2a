//! One rule as statements of `nft -j`.

use nftables::{
    expr::{BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, SetItem},
    stmt::{JumpTarget, Limit, Log, Match as Matches, Operator, Statement, VerdictMap},
    types::NfFamily,
};
use towpath_core::{
    model::Family,
    names::{ChainName, TABLE},
    ruleset::{self, Action, CmpOp, CtState, Field, Match, PROTOCOLS_WITH_PORTS, Rule, Value, Verdict},
};

use super::{
    extension::{self, ExportedObject, MasqueradeFlag, ObjectExtension, RuleStatement, StatementExtension},
    protocol, text, value,
};

/// A rule of a chain.
pub(super) fn object(chain: &ChainName, rule: &Rule) -> ExportedObject {
    let mut writer = StatementWriter::default();
    let guard = rule.port_guard();
    for place in 0..=rule.matches.len() {
        if guard == Some(place) {
            let protocols = PROTOCOLS_WITH_PORTS.map(|number| value(&Value::Proto(number)));
            writer.compare(meta(MetaKey::L4proto), Operator::EQ, any_of(protocols));
        }
        match rule.matches.get(place) {
            Some(condition) => writer.condition(condition),
            None => writer.action(&rule.action),
        }
    }
    ExportedObject::Extension(ObjectExtension::Rule(extension::ExportedRule {
        family: NfFamily::INet,
        table: TABLE,
        chain: chain.to_string(),
        comment: rule.fingerprint().to_string(),
        expr: writer.statements,
    }))
}

/// A verdict as a statement.
pub(super) fn verdict(verdict: &Verdict) -> Statement<'static> {
    let target = |chain: &ChainName| JumpTarget { target: chain.to_string().into() };
    match verdict {
        Verdict::Accept => Statement::Accept(None),
        Verdict::Drop => Statement::Drop(None),
        Verdict::Return => Statement::Return(None),
        Verdict::Jump(chain) => Statement::Jump(target(chain)),
        Verdict::Goto(chain) => Statement::Goto(target(chain)),
    }
}

#[derive(Default)]
struct StatementWriter {
    statements: Vec<RuleStatement>,
    /// The protocol that the rule has compared, and where: nft prints it together with the port.
    transport: Option<(&'static str, usize)>,
}

impl StatementWriter {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::CtState(states) => {
                let mut states: Vec<_> = states.iter().map(|state| text(&state_name(*state))).collect();
                let right = if states.len() == 1 { states.remove(0) } else { Expression::List(states) };
                self.compare(tracking("state"), Operator::IN, right);
            }
            Match::MarkBits(bits) => self.has_bits(meta(MetaKey::Mark), *bits),
            Match::ConnectionMarkBits(bits) => self.has_bits(tracking("mark"), *bits),
            Match::Field(field, op, with) => self.field(*field, *op, with),
            Match::InterfacePrefix(name, prefix) => {
                self.compare(field(*name), Operator::EQ, text(&format!("{prefix}*")));
            }
            Match::InSet(fields, op, set) => {
                self.compare(concatenated(fields), operator(*op), text(&format!("@{set}")));
            }
            Match::Family(family) => {
                let name = match family {
                    Family::V4 => "ipv4",
                    Family::V6 => "ipv6",
                };
                self.compare(meta(MetaKey::Nfproto), Operator::EQ, text(&name));
            }
            Match::NeighbourDiscovery => {
                let types = ["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"];
                self.compare(payload("icmpv6", "type"), Operator::EQ, any_of(types.map(|name| text(&name))));
            }
        }
    }

    fn field(&mut self, what: Field, op: CmpOp, with: &Value) {
        match (what, op, with) {
            (Field::Proto, CmpOp::Eq, Value::Proto(number)) if PROTOCOLS_WITH_PORTS.contains(number) => {
                self.transport = protocol(*number).map(|name| (name, self.statements.len()));
                self.compare(field(what), operator(op), value(with));
            }
            (Field::DestinationPort, ..) => {
                let header = match self.transport {
                    Some((name, place)) if place < self.statements.len() => {
                        self.statements.remove(place);
                        self.transport = Some((name, usize::MAX));
                        name
                    }
                    Some((name, _)) => name,
                    None => "th",
                };
                self.compare(payload(header, "dport"), operator(op), value(with));
            }
            _ => self.compare(field(what), operator(op), value(with)),
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Verdict(to) => self.push(verdict(to)),
            Action::Dispatch(fields, map) => {
                let data = text(&format!("@{map}"));
                self.push(Statement::VerdictMap(VerdictMap { key: concatenated(fields), data }));
            }
            Action::Masquerade => {
                let flags = MasqueradeFlag::FullyRandom;
                self.statements.push(RuleStatement::Extension(StatementExtension::Masquerade { flags }));
            }
            Action::Log(log) => self.log(log),
            Action::NoTrack => self.statements.push(RuleStatement::Extension(StatementExtension::NoTrack(()))),
        }
    }

    fn log(&mut self, ruleset::Log { prefix, group, snaplen, rate, burst }: &ruleset::Log) {
        self.push(Statement::Limit(Limit {
            rate: rate.get(),
            rate_unit: None,
            per: Some("second".into()),
            burst: Some(burst.get()),
            burst_unit: None,
            inv: None,
        }));
        self.push(Statement::Log(Some(Log {
            prefix: Some((*prefix).into()),
            snaplen: Some(snaplen.get()),
            ..Log::new(Some((*group).into()))
        })));
    }

    fn has_bits(&mut self, of: Expression<'static>, bits: u32) {
        let masked = BinaryOperation::AND(of, Expression::Number(bits));
        self.compare(Expression::BinaryOperation(Box::new(masked)), Operator::EQ, Expression::Number(bits));
    }

    fn compare(&mut self, left: Expression<'static>, op: Operator, right: Expression<'static>) {
        self.push(Statement::Match(Matches { left, right, op }));
    }

    fn push(&mut self, statement: Statement<'static>) {
        self.statements.push(RuleStatement::Schema(Box::new(statement)));
    }
}

fn concatenated(fields: &[Field]) -> Expression<'static> {
    match fields {
        [only] => field(*only),
        fields => Expression::Named(NamedExpression::Concat(fields.iter().map(|one| field(*one)).collect())),
    }
}

fn field(field: Field) -> Expression<'static> {
    match field {
        Field::InInterface => meta(MetaKey::Iifname),
        Field::OutInterface => meta(MetaKey::Oifname),
        Field::Proto => meta(MetaKey::L4proto),
        Field::Source(Family::V4) => payload("ip", "saddr"),
        Field::Source(Family::V6) => payload("ip6", "saddr"),
        Field::Destination(Family::V4) => payload("ip", "daddr"),
        Field::Destination(Family::V6) => payload("ip6", "daddr"),
        Field::DestinationPort => payload("th", "dport"),
    }
}

const fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn tracking(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn any_of<const N: usize>(values: [Expression<'static>; N]) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(values.into_iter().map(SetItem::Element).collect()))
}

const fn operator(op: CmpOp) -> Operator {
    match op {
        CmpOp::Eq => Operator::EQ,
        CmpOp::NotEq => Operator::NEQ,
    }
}

const fn state_name(state: CtState) -> &'static str {
    match state {
        CtState::Established => "established",
        CtState::Related => "related",
        CtState::Invalid => "invalid",
    }
}
