//! One rule of `nft -j`, statement by statement.

use nftables::{
    expr::{Expression, NamedExpression, SetItem, Verdict},
    schema,
    stmt::{Match, Operator, Statement, VerdictMap},
};
use serde::Deserialize;
use serde_json::Value;
use towpath_core::foreign_firewall::{ForeignAction, ForeignCondition, ForeignRule};

use super::condition;

/// Matches of xtables that hold for some protocols or ports only.
const XT_PARTIAL: [&str; 9] = ["ah", "esp", "icmp", "icmp6", "multiport", "sctp", "socket", "tcp", "udp"];

/// Targets of xtables that give no verdict.
const XT_CONTINUE: [&str; 13] =
    ["AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CT", "DSCP", "HL", "LOG", "MARK", "NFLOG", "TCPMSS", "TOS", "TRACE"];

/// A rule's chain, and the rules that it means: one, or one for each element of a verdict map. `None` for an object that
/// does not even name its chain.
pub(super) fn read(mut object: Value, skipped: &mut usize) -> Option<(String, Vec<ForeignRule>)> {
    let statements = object.get_mut("expr").map(Value::take);
    // Typed without its statements: one that is unknown would fail the rule.
    object.as_object_mut()?.insert("expr".to_owned(), Value::Array(Vec::new()));
    let chain = object.get("chain")?.as_str()?.to_owned();
    let statements = match (schema::Rule::deserialize(object), statements) {
        (Ok(_), Some(Value::Array(statements))) => statements,
        (Ok(_), None) => Vec::new(),
        (Err(_), _) | (Ok(_), Some(_)) => {
            *skipped += 1;
            return Some((chain, vec![unknown()]));
        }
    };
    let mut reader = RuleReader::default();
    for statement in statements {
        match Statement::deserialize(statement) {
            Ok(statement) => reader.statement(&statement),
            Err(_) => {
                *skipped += 1;
                reader.unknown();
            }
        }
    }
    Some((chain, reader.finish()))
}

fn unknown() -> ForeignRule {
    ForeignRule { conditions: vec![ForeignCondition::Unknown], action: ForeignAction::Unknown }
}

/// What was read of a rule so far.
#[derive(Default)]
struct RuleReader {
    conditions: Vec<ForeignCondition>,
    verdict: Option<ForeignAction>,
    /// Of an anonymous verdict map: a condition (`None`: always) and an action each.
    branches: Vec<(Option<ForeignCondition>, ForeignAction)>,
    /// Whether a statement that is not understood may have been the verdict.
    may_decide: bool,
    /// Whether xtables' conntrack match is among the conditions.
    tracks: bool,
}

impl RuleReader {
    fn statement(&mut self, statement: &Statement<'_>) {
        match statement {
            Statement::Match(condition) => self.conditions.extend(condition::read(condition)),
            // What is limited passes in part, and nobody knows how large.
            Statement::Limit(_) | Statement::Quota(_) | Statement::CTCount(_) | Statement::Meter(_) => {
                self.conditions.push(ForeignCondition::Unknown);
            }
            Statement::VerdictMap(map) => self.verdict_map(map),
            Statement::XT(xt) => self.xtables(xt.as_ref()),
            Statement::Counter(_)
            | Statement::Mangle(_)
            | Statement::Flow(_)
            | Statement::Notrack
            | Statement::Dup(_)
            | Statement::Set(_)
            | Statement::Log(_)
            | Statement::CTHelper(_)
            | Statement::CTTimeout(_)
            | Statement::CTExpectation(_) => {}
            other => match verdict_of(other) {
                Some(verdict) => self.verdict = Some(verdict),
                None => self.unknown(),
            },
        }
    }

    /// A statement that is not understood: a condition, or a verdict.
    fn unknown(&mut self) {
        self.conditions.push(ForeignCondition::Unknown);
        self.may_decide = true;
    }

    fn verdict_map(&mut self, map: &VerdictMap<'_>) {
        let Expression::Named(NamedExpression::Set(items)) = &map.data else {
            // A named map: its elements are not read.
            self.may_decide = true;
            return;
        };
        for item in items {
            let (value, action) = match item {
                SetItem::Element(Expression::List(pair)) => match &pair[..] {
                    [value, Expression::Verdict(verdict)] => (value, action_of(verdict)),
                    _ => return self.may_decide = true,
                },
                SetItem::Mapping(value, Expression::Verdict(verdict)) => (value, action_of(verdict)),
                SetItem::MappingStatement(value, statement) => {
                    (value, verdict_of(statement).unwrap_or(ForeignAction::Unknown))
                }
                SetItem::Element(_) | SetItem::Mapping(..) => return self.may_decide = true,
            };
            let is = Match { left: map.key.clone(), right: value.clone(), op: Operator::EQ };
            self.branches.push((condition::read(&is), action));
        }
    }

    /// nft shows no more of them than their kind and name.
    fn xtables(&mut self, xt: Option<&Value>) {
        let text = |key| xt.and_then(|xt| xt.get(key)).and_then(Value::as_str);
        match (text("type"), text("name")) {
            (Some("match"), Some("comment")) => {}
            (Some("match"), Some("conntrack" | "state")) => self.tracks = true,
            (Some("match"), Some(name)) if XT_PARTIAL.contains(&name) => {
                self.conditions.push(ForeignCondition::Partial);
            }
            (Some("match"), _) => self.conditions.push(ForeignCondition::Unknown),
            (Some("target"), Some("REJECT" | "DROP")) => self.verdict = Some(ForeignAction::Drop),
            (Some("target"), Some(name)) if XT_CONTINUE.contains(&name) => {}
            (Some("target"), _) => self.verdict = Some(ForeignAction::Unknown),
            _ => self.unknown(),
        }
    }

    fn finish(mut self) -> Vec<ForeignRule> {
        if self.tracks {
            // Which states it asks for is not shown. Alone it is `RELATED,ESTABLISHED -j ACCEPT` or `INVALID -j DROP` of
            // Docker, ufw and kube-proxy; with an address or an interface somebody may mean new connections, too.
            let is_narrowed = |condition: &ForeignCondition| {
                matches!(condition, ForeignCondition::Interface(..) | ForeignCondition::Address(..))
            };
            let narrowed = self.conditions.iter().any(is_narrowed);
            self.conditions.push(if narrowed { ForeignCondition::Unknown } else { ForeignCondition::Partial });
        }
        let fallback = if self.may_decide { ForeignAction::Unknown } else { ForeignAction::Continue };
        let conditions = &self.conditions;
        let branch = |(condition, action): (Option<ForeignCondition>, ForeignAction)| ForeignRule {
            conditions: conditions.iter().cloned().chain(condition).collect(),
            action,
        };
        let mut rules: Vec<ForeignRule> = self.branches.into_iter().map(branch).collect();
        let action = self.verdict.unwrap_or(fallback);
        if rules.is_empty() || action != ForeignAction::Continue {
            rules.push(ForeignRule { conditions: self.conditions, action });
        }
        rules
    }
}

/// The verdict of a statement; `None` for one that gives none that is understood.
fn verdict_of(statement: &Statement<'_>) -> Option<ForeignAction> {
    match statement {
        Statement::Accept(_) => Some(ForeignAction::Accept),
        Statement::Drop(_) | Statement::Reject(_) => Some(ForeignAction::Drop),
        Statement::Continue(_) => Some(ForeignAction::Continue),
        Statement::Return(_) => Some(ForeignAction::Return),
        Statement::Jump(to) => Some(ForeignAction::Jump(to.target.to_string())),
        Statement::Goto(to) => Some(ForeignAction::Goto(to.target.to_string())),
        Statement::Queue(_) => Some(ForeignAction::Unknown),
        _ => None,
    }
}

fn action_of(verdict: &Verdict<'_>) -> ForeignAction {
    match verdict {
        Verdict::Accept => ForeignAction::Accept,
        Verdict::Drop => ForeignAction::Drop,
        Verdict::Continue => ForeignAction::Continue,
        Verdict::Return => ForeignAction::Return,
        Verdict::Jump(to) => ForeignAction::Jump(to.target.to_string()),
        Verdict::Goto(to) => ForeignAction::Goto(to.target.to_string()),
    }
}
