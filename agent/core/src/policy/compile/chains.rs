//! The policy chains in use. Pods of this node to which the same policies apply in a direction form a group and share
//! its chains. The chains are deleted with the last pod of the group.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use imbl::OrdMap;

use super::{
    pod_index::PodIndex,
    policies::{Policies, PolicyNumber},
    rule_run::{Coverage, RuleRun, SetLookup},
    set::fingerprint,
    sets::Sets,
};
use crate::{
    model::Family,
    names::{ChainName, Comment, SetName},
    policy::{
        ir::{Direction, NamedPort, PolicyRule, RuleAction, TierDefault},
        packet_log::{self, DenyLog, Reason},
    },
    ruleset::{Chain, Field, Match, Rule, Verdict},
    table::dispatch_to_pod,
};

/// Everything that the chains of a pod depend on. Pods with equal groups share their chains.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PodGroup {
    /// The pod is not in the snapshot. Its chain drops everything.
    Unknown(Direction),
    /// Policies apply to the pod in this direction.
    Selected {
        direction: Direction,
        /// The address families of the pod. Rules for other families are left out.
        families: BTreeSet<Family>,
        /// The policies with rules for the direction, in evaluation order.
        applied: Vec<PolicyNumber>,
        /// Those named ports of the pod that the policies refer to.
        own_ports: BTreeSet<NamedPort>,
    },
}

/// The input of chain generation.
#[derive(Clone, Copy)]
pub(super) struct ChainInputs<'a> {
    pub(super) pod_index: &'a PodIndex,
    pub(super) policies: &'a Policies,
    /// The default verdict of each tier.
    pub(super) defaults: &'a [TierDefault],
    pub(super) deny_log: DenyLog,
}

/// The chains, and the groups that use them.
#[derive(Debug, Default)]
pub(super) struct Chains {
    chains: OrdMap<ChainName, Arc<Chain>>,
    comments: OrdMap<ChainName, Comment>,
    /// For each chain: how many groups use it, and the sets that its rules refer to.
    users: BTreeMap<ChainName, (usize, Vec<SetName>)>,
    groups: BTreeMap<Arc<PodGroup>, PodGroupState>,
}

#[derive(Debug)]
struct PodGroupState {
    pods: usize,
    /// One chain per tier with policies that apply, in reverse order: the first tier's chain is last.
    chains: Vec<ChainName>,
}

impl Chains {
    /// The current chains.
    pub(super) const fn chains(&self) -> &OrdMap<ChainName, Arc<Chain>> {
        &self.chains
    }

    /// Which policies each chain was generated from.
    pub(super) const fn comments(&self) -> &OrdMap<ChainName, Comment> {
        &self.comments
    }

    /// Adds a pod to the group, and generates the chains for the first one. Returns the shared group and the chain of
    /// its first tier.
    pub(super) fn acquire(
        &mut self,
        group: PodGroup,
        sets: &mut Sets,
        inputs: ChainInputs<'_>,
    ) -> (Arc<PodGroup>, ChainName) {
        let known = self.groups.get_key_value(&group).map(|(group, _)| Arc::clone(group));
        let group = known.unwrap_or_else(|| Arc::new(group));
        if !self.groups.contains_key(&group) {
            let chains = self.build(&group, sets, inputs);
            self.groups.insert(Arc::clone(&group), PodGroupState { pods: 0, chains });
        }
        let state = self.groups.get_mut(&group).expect("the group was inserted above");
        state.pods += 1;
        let chain = state.chains.last().expect("a group has at least one chain").clone();
        (group, chain)
    }

    /// Removes a pod from the group.
    pub(super) fn release(&mut self, group: &Arc<PodGroup>, sets: &mut Sets) {
        let Some(state) = self.groups.get_mut(group) else { return };
        state.pods -= 1;
        if state.pods > 0 {
            return;
        }
        let chains = self.groups.remove(group).map(|state| state.chains).unwrap_or_default();
        // In reverse: delete the chain that refers to another before that other chain.
        for name in chains.iter().rev() {
            let Some((users, _)) = self.users.get_mut(name) else { continue };
            *users -= 1;
            if *users == 0 {
                let used_sets = self.users.remove(name).map(|(_, sets)| sets).unwrap_or_default();
                used_sets.iter().for_each(|set| sets.release(set));
                self.chains.remove(name);
                self.comments.remove(name);
            }
        }
    }

    /// Builds the chains of a group from the last tier to the first: the chain of a tier refers to the next one.
    fn build(&mut self, group: &PodGroup, sets: &mut Sets, inputs: ChainInputs<'_>) -> Vec<ChainName> {
        let mut builder = ChainBuilder { sets, inputs, used_sets: Vec::new() };
        match group {
            PodGroup::Unknown(direction) => {
                let rules = builder.verdict_rules(*direction, Vec::new(), Verdict::Drop);
                let comment = Comment::new(&format!("{direction} of pods that the API server has not reported yet"));
                vec![self.add(*direction, rules, comment, builder)]
            }
            PodGroup::Selected { direction, families, applied, own_ports } => {
                let mut chains: Vec<ChainName> = Vec::new();
                for (tier, policies) in inputs.policies.by_tier_from_last(applied) {
                    let next = chains.last().cloned().map_or_else(|| accept_verdict(*direction), Verdict::Goto);
                    let default = inputs.defaults.get(tier).copied().unwrap_or(TierDefault::Deny);
                    let rules: Vec<&PolicyRule> = inputs.policies.rules(policies, *direction).collect();
                    let tier = TierContext { direction: *direction, families, own_ports, default, next };
                    let rules = builder.tier_rules(&tier, &rules);
                    let names = inputs.policies.ids(policies);
                    let comment = Comment::list(&format!("{direction} of"), policies.len(), names);
                    chains.push(self.add(*direction, rules, comment, builder));
                    builder = ChainBuilder { sets, inputs, used_sets: Vec::new() };
                }
                chains
            }
        }
    }

    /// The chain name is a hash of the comment and of the rules as nft text. It changes when the kernel objects change,
    /// not when a Rust type is renamed.
    fn add(
        &mut self,
        direction: Direction,
        rules: Vec<Rule>,
        comment: Comment,
        builder: ChainBuilder<'_>,
    ) -> ChainName {
        let prefix = match direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        };
        let text = rules.iter().fold(format!("{comment}\n"), |mut text, rule| {
            // Writing to a `String` does not fail.
            let _ = writeln!(text, "{rule}");
            text
        });
        let name = ChainName::new(&format!("{prefix}.{}", fingerprint(text)))
            .expect("prefix and hexadecimal digits are valid");
        match self.users.get_mut(&name) {
            Some((users, _)) => {
                *users += 1;
                builder.used_sets.iter().for_each(|set| builder.sets.release(set));
            }
            None => {
                self.users.insert(name.clone(), (1, builder.used_sets));
                self.chains.insert(name.clone(), Arc::new(Chain { base: None, rules }));
                self.comments.insert(name.clone(), comment);
            }
        }
        name
    }
}

/// The verdict for packets that the pod's policies allow. Egress continues with the destination pod's ingress policies.
fn accept_verdict(direction: Direction) -> Verdict {
    match direction {
        Direction::Ingress => Verdict::Accept,
        Direction::Egress => dispatch_to_pod(),
    }
}

/// The input of the rules of one tier.
struct TierContext<'a> {
    direction: Direction,
    families: &'a BTreeSet<Family>,
    own_ports: &'a BTreeSet<NamedPort>,
    default: TierDefault,
    /// The verdict for packets that continue with the next tier.
    next: Verdict,
}

/// Generates the rules of one chain and records the sets they refer to.
struct ChainBuilder<'a> {
    sets: &'a mut Sets,
    inputs: ChainInputs<'a>,
    used_sets: Vec<SetName>,
}

impl ChainBuilder<'_> {
    fn tier_rules(&mut self, tier: &TierContext<'_>, rules: &[&PolicyRule]) -> Vec<Rule> {
        let mut out = Vec::new();
        for run in rules.chunk_by(|a, b| a.action == b.action) {
            let verdict = match run[0].action {
                RuleAction::Allow => Some(accept_verdict(tier.direction)),
                RuleAction::Deny => Some(Verdict::Drop),
                RuleAction::Pass => Some(tier.next.clone()),
                RuleAction::Log => None,
            };
            let run = RuleRun::new(run.iter().copied(), tier.direction, tier.own_ports);
            for matches in self.rule_matches(tier, &run) {
                match &verdict {
                    Some(verdict) => out.extend(self.verdict_rules(tier.direction, matches, verdict.clone())),
                    None => out.push(packet_log::rule(Reason::Logged, tier.direction, matches)),
                }
            }
            if run.coverage() == Coverage::All && verdict.is_some() {
                return out;
            }
        }
        let verdict = match tier.default {
            TierDefault::Deny => Verdict::Drop,
            TierDefault::Pass => tier.next.clone(),
        };
        out.extend(self.verdict_rules(tier.direction, Vec::new(), verdict));
        out
    }

    /// The rules of a run, each as its list of matches. The run matches a packet if one of these rules does.
    fn rule_matches(&mut self, tier: &TierContext<'_>, run: &RuleRun<'_>) -> Vec<Vec<Match>> {
        if run.coverage() == Coverage::All {
            return vec![Vec::new()];
        }
        let peer = match tier.direction {
            Direction::Ingress => Field::Source,
            Direction::Egress => Field::Destination,
        };
        let mut in_set = |(fields, op, set): SetLookup<'_>| {
            let name = self.sets.acquire(&set, self.inputs.pod_index);
            self.used_sets.push(name.clone());
            Match::InSet(fields, op, name)
        };
        let lookups = run.lookups(tier.families, peer).into_iter();
        lookups.map(|conjunction| conjunction.into_iter().map(&mut in_set).collect()).collect()
    }

    /// The rule with the verdict, preceded by a log rule if it drops and the deny log is enabled.
    fn verdict_rules(&self, direction: Direction, matches: Vec<Match>, verdict: Verdict) -> Vec<Rule> {
        let logged = verdict == Verdict::Drop && self.inputs.deny_log == DenyLog::Enabled;
        let log = logged.then(|| packet_log::rule(Reason::Denied, direction, matches.clone()));
        log.into_iter().chain([Rule::verdict(matches, verdict)]).collect()
    }
}
