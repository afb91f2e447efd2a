//! Policies as lookups.
//!
//! A chain for every set of pods to which the same policies apply in a direction, and in it one lookup each for
//! "peer", "peer . protocol . port", port ranges and networks, however many policies there are: what costs a packet is
//! the number of alternations of action, not of rules. Chains and sets are named by the hash of what they mean, so that
//! pods that come and go change elements only, and equal content is one object for all chains.
//!
//! From scratch every time. Its three steps are what later work can keep between changes: which policies apply to a
//! local pod (`subjects`), what a chain says (a function of those policies alone), and which pods are in a set
//! (`members`).

mod interval;
mod members;
mod run;
mod set;
mod subjects;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use imbl::OrdMap;

use self::{
    members::Members,
    run::{Reach, Run},
    set::{SetExpr, fingerprint},
    subjects::{Applied, Subjects},
};
use super::{
    deny_log::{self, DenyLog},
    ir::{Action, Direction, NamedPort, PodKind, Rule, Snapshot, TierDefault},
};
use crate::{
    model::{Endpoint, Family},
    names::{ChainName, IfName, SetName},
    ruleset::{Chain, Field, Match, Op, Rule as NftRule, Verdict},
    table::{PolicyPart, to_receiver},
};

/// Compiles what the policies say about the pods of this node.
///
/// A pod that no policy selects in a direction has no chain there. One that the snapshot does not know has a chain that
/// drops everything: nobody can say yet what it may do. With the deny log, what is dropped is told of before.
#[must_use]
pub fn compile(snapshot: &Snapshot, endpoints: &OrdMap<IfName, Arc<Endpoint>>, deny_log: DenyLog) -> PolicyPart {
    let mut compiler = Compiler {
        snapshot,
        deny_log,
        subjects: Subjects::new(snapshot),
        members: Members::new(snapshot),
        chains: BTreeMap::new(),
        part: PolicyPart::default(),
    };
    for (interface, endpoint) in endpoints {
        for direction in Direction::ALL {
            if let Some(chain) = compiler.chain_of(endpoint, direction) {
                let map = match direction {
                    Direction::Ingress => &mut compiler.part.ingress,
                    Direction::Egress => &mut compiler.part.egress,
                };
                map.insert(interface.clone(), chain);
            }
        }
    }
    compiler.part
}

/// What becomes of what a pod's policies allow.
fn passed(direction: Direction) -> Verdict {
    match direction {
        Direction::Ingress => Verdict::Accept,
        Direction::Egress => to_receiver(),
    }
}

struct Compiler<'a> {
    snapshot: &'a Snapshot,
    deny_log: DenyLog,
    subjects: Subjects<'a>,
    members: Members<'a>,
    chains: BTreeMap<Group<'a>, ChainName>,
    part: PolicyPart,
}

/// Everything that a chain depends on: pods for which it is equal share the chain.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    direction: Direction,
    /// The families in which the pod has addresses: of others no packet gets to it or from it.
    families: BTreeSet<Family>,
    applied: Applied,
    /// The pod's own ports, as far as the policies name them.
    own_ports: BTreeSet<&'a NamedPort>,
}

impl<'a> Compiler<'a> {
    fn chain_of(&mut self, endpoint: &Endpoint, direction: Direction) -> Option<ChainName> {
        let Some(pod) = self.snapshot.pods.get(&endpoint.pod) else {
            let rules = self.decided(direction, Vec::new(), Verdict::Drop);
            return Some(self.add_chain(direction, rules));
        };
        if pod.kind == PodKind::HostNetwork {
            return None;
        }
        let applied = self.subjects.applied(self.snapshot, &endpoint.pod, pod, direction);
        if applied.is_empty() {
            return None;
        }
        let own_ports = match direction {
            Direction::Ingress => self.subjects.named_ports(&applied, pod),
            Direction::Egress => BTreeSet::new(),
        };
        let families = endpoint.addresses.iter().map(|a| Family::of(*a)).collect();
        let group = Group { direction, families, applied, own_ports };
        if let Some(chain) = self.chains.get(&group) {
            return Some(chain.clone());
        }
        let chain = self.build(&group)?;
        self.chains.insert(group, chain.clone());
        Some(chain)
    }

    /// Builds the chains of a group from the last tier to the first, because a tier goes on to the next one.
    fn build(&mut self, group: &Group<'a>) -> Option<ChainName> {
        let mut first = None;
        for (tier, policies) in group.applied.iter().rev() {
            let rules = self.subjects.rules(*tier, policies, group.direction);
            let next = first.map_or_else(|| passed(group.direction), Verdict::Goto);
            let rules = self.tier_rules(group, &rules, self.snapshot.tiers[*tier].default, &next);
            first = Some(self.add_chain(group.direction, rules));
        }
        first
    }

    fn tier_rules(
        &mut self,
        group: &Group<'a>,
        rules: &[&'a Rule],
        default: TierDefault,
        next: &Verdict,
    ) -> Vec<NftRule> {
        let mut out = Vec::new();
        for same in rules.chunk_by(|a, b| a.action == b.action) {
            let verdict = match same[0].action {
                Action::Allow => passed(group.direction),
                Action::Deny => Verdict::Drop,
                Action::Pass => next.clone(),
            };
            let run = Run::new(same.iter().copied(), group.direction, &group.own_ports);
            if run.reach() == Reach::All {
                out.extend(self.decided(group.direction, Vec::new(), verdict));
                return out;
            }
            let peer = match group.direction {
                Direction::Ingress => Field::Source,
                Direction::Egress => Field::Destination,
            };
            for line in run.lookups(&group.families, peer) {
                let matches =
                    line.into_iter().map(|(fields, set)| Match::InSet(fields, Op::Is, self.add_set(&set))).collect();
                out.extend(self.decided(group.direction, matches, verdict.clone()));
            }
        }
        let verdict = match default {
            TierDefault::Deny => Verdict::Drop,
            TierDefault::Pass => next.clone(),
        };
        out.extend(self.decided(group.direction, Vec::new(), verdict));
        out
    }

    /// The rule that gives the verdict; what is dropped is told of before.
    fn decided(&self, direction: Direction, matches: Vec<Match>, verdict: Verdict) -> Vec<NftRule> {
        let told = verdict == Verdict::Drop && self.deny_log == DenyLog::Enabled;
        let log = told.then(|| deny_log::rule(direction, matches.clone()));
        log.into_iter().chain([NftRule::verdict(matches, verdict)]).collect()
    }

    fn add_set(&mut self, expr: &SetExpr<'a>) -> SetName {
        let name = SetName::new(&expr.name()).expect("a prefix of ours and hexadecimal digits");
        let members = &mut self.members;
        if !self.part.sets.contains_key(&name) {
            self.part.sets.insert(name.clone(), expr.fill(members));
        }
        name
    }

    fn add_chain(&mut self, direction: Direction, rules: Vec<NftRule>) -> ChainName {
        let prefix = match direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        };
        let text = rules.iter().fold(String::new(), |mut text, rule| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{rule:?}");
            text
        });
        let name = ChainName::new(&format!("{prefix}.{}", fingerprint(text)))
            .expect("a prefix of ours and hexadecimal digits");
        self.part.chains.insert(name.clone(), Arc::new(Chain { base: None, rules }));
        name
    }
}
