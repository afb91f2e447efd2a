//! The chains in use: one for all pods of this node to which the same policies apply in a direction, and gone with the
//! last of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use imbl::OrdMap;

use super::{
    policies::{Policies, PolicyNumber},
    run::{Coverage, RuleRun, SetLookup},
    set::fingerprint,
    sets::Sets,
    world::PodIndex,
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

/// Everything that a chain depends on: pods for which it is equal share the chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PodGroup {
    /// Nobody can say yet what the pod may do.
    Unknown(Direction),
    /// These policies apply.
    Selected {
        direction: Direction,
        /// The families in which the pod has addresses: of others no packet gets to it or from it.
        families: BTreeSet<Family>,
        /// In the order in which a packet meets them, those about the direction only.
        applied: Vec<PolicyNumber>,
        /// The pod's own ports, as far as the policies name them.
        own_ports: BTreeSet<NamedPort>,
    },
}

/// PortMatch chains are made of.
#[derive(Clone, Copy)]
pub(super) struct ChainInputs<'a> {
    pub(super) world: &'a PodIndex,
    pub(super) policies: &'a Policies,
    /// Of each tier.
    pub(super) defaults: &'a [TierDefault],
    pub(super) deny_log: DenyLog,
}

/// The chains and the groups that they are for.
#[derive(Debug, Default)]
pub(super) struct Chains {
    made: OrdMap<ChainName, Arc<Chain>>,
    comments: OrdMap<ChainName, Comment>,
    /// How many tiers of groups go through each, and the sets it looks into.
    users: BTreeMap<ChainName, (usize, Vec<SetName>)>,
    groups: BTreeMap<Arc<PodGroup>, PodGroupState>,
}

#[derive(Debug)]
struct PodGroupState {
    pods: usize,
    /// One for each tier, the first tier's last.
    chains: Vec<ChainName>,
}

impl Chains {
    /// The chains as they are now.
    pub(super) const fn made(&self) -> &OrdMap<ChainName, Arc<Chain>> {
        &self.made
    }

    /// Whose policies they are.
    pub(super) const fn comments(&self) -> &OrdMap<ChainName, Comment> {
        &self.comments
    }

    /// One more pod is in the group: its chain is made if it is not there. The group as it is kept, and its chain.
    pub(super) fn enter(
        &mut self,
        group: PodGroup,
        sets: &mut Sets,
        source: ChainInputs<'_>,
    ) -> (Arc<PodGroup>, ChainName) {
        let known = self.groups.get_key_value(&group).map(|(group, _)| Arc::clone(group));
        let group = known.unwrap_or_else(|| Arc::new(group));
        if !self.groups.contains_key(&group) {
            let chains = self.build(&group, sets, source);
            self.groups.insert(Arc::clone(&group), PodGroupState { pods: 0, chains });
        }
        let state = self.groups.get_mut(&group).expect("it has just been made");
        state.pods += 1;
        let chain = state.chains.last().expect("a group has a chain of its own").clone();
        (group, chain)
    }

    /// A pod has left the group.
    pub(super) fn leave(&mut self, group: &Arc<PodGroup>, sets: &mut Sets) {
        let Some(state) = self.groups.get_mut(group) else { return };
        state.pods -= 1;
        if state.pods > 0 {
            return;
        }
        let chains = self.groups.remove(group).map(|state| state.chains).unwrap_or_default();
        // PortMatch goes to another chain goes before it.
        for name in chains.iter().rev() {
            let Some((users, _)) = self.users.get_mut(name) else { continue };
            *users -= 1;
            if *users == 0 {
                let looked_into = self.users.remove(name).map(|(_, sets)| sets).unwrap_or_default();
                looked_into.iter().for_each(|set| sets.release(set));
                self.made.remove(name);
                self.comments.remove(name);
            }
        }
    }

    /// Builds the chains of a group from the last tier to the first, because a tier goes on to the next one.
    fn build(&mut self, group: &PodGroup, sets: &mut Sets, source: ChainInputs<'_>) -> Vec<ChainName> {
        let mut builder = ChainBuilder { sets, source, looked_into: Vec::new() };
        match group {
            PodGroup::Unknown(direction) => {
                let rules = builder.decided(*direction, Vec::new(), Verdict::Drop);
                let comment = Comment::new(&format!("{direction} of pods that the API server has not reported yet"));
                vec![self.add(*direction, rules, comment, builder)]
            }
            PodGroup::Selected { direction, families, applied, own_ports } => {
                let mut chains: Vec<ChainName> = Vec::new();
                for (tier, policies) in source.policies.by_tier_from_last(applied) {
                    let next = chains.last().cloned().map_or_else(|| passed(*direction), Verdict::Goto);
                    let default = source.defaults.get(tier).copied().unwrap_or(TierDefault::Deny);
                    let rules: Vec<&PolicyRule> = source.policies.rules(policies, *direction).collect();
                    let tier = Tier { direction: *direction, families, own_ports, default, next };
                    let rules = builder.tier_rules(&tier, &rules);
                    let names: Vec<String> = source.policies.ids(policies).map(ToString::to_string).collect();
                    let comment = Comment::list(&format!("{direction} of"), &names);
                    chains.push(self.add(*direction, rules, comment, builder));
                    builder = ChainBuilder { sets, source, looked_into: Vec::new() };
                }
                chains
            }
        }
    }

    /// The chain's name is the hash of its rules as nft text and of its comment. So it changes when the kernel's objects do,
    /// and not when a type of ours is renamed.
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
            // Writing to a string does not fail.
            let _ = writeln!(text, "{rule}");
            text
        });
        let name = ChainName::new(&format!("{prefix}.{}", fingerprint(text)))
            .expect("a prefix of ours and hexadecimal digits");
        match self.users.get_mut(&name) {
            Some((users, _)) => {
                *users += 1;
                builder.looked_into.iter().for_each(|set| builder.sets.release(set));
            }
            None => {
                self.users.insert(name.clone(), (1, builder.looked_into));
                self.made.insert(name.clone(), Arc::new(Chain { base: None, rules }));
                self.comments.insert(name.clone(), comment);
            }
        }
        name
    }
}

/// PortMatch becomes of what a pod's policies allow.
fn passed(direction: Direction) -> Verdict {
    match direction {
        Direction::Ingress => Verdict::Accept,
        Direction::Egress => dispatch_to_pod(),
    }
}

/// One tier of a group.
struct Tier<'a> {
    direction: Direction,
    families: &'a BTreeSet<Family>,
    own_ports: &'a BTreeSet<NamedPort>,
    default: TierDefault,
    /// Where a packet goes that the tier lets pass.
    next: Verdict,
}

/// A chain in the making.
struct ChainBuilder<'a> {
    sets: &'a mut Sets,
    source: ChainInputs<'a>,
    looked_into: Vec<SetName>,
}

impl ChainBuilder<'_> {
    fn tier_rules(&mut self, tier: &Tier<'_>, rules: &[&PolicyRule]) -> Vec<Rule> {
        let mut out = Vec::new();
        for same in rules.chunk_by(|a, b| a.action == b.action) {
            let verdict = match same[0].action {
                RuleAction::Allow => Some(passed(tier.direction)),
                RuleAction::Deny => Some(Verdict::Drop),
                RuleAction::Pass => Some(tier.next.clone()),
                RuleAction::Log => None,
            };
            let run = RuleRun::new(same.iter().copied(), tier.direction, tier.own_ports);
            for matches in self.lines(tier, &run) {
                match &verdict {
                    Some(verdict) => out.extend(self.decided(tier.direction, matches, verdict.clone())),
                    None => out.push(packet_log::rule(Reason::Logged, tier.direction, matches)),
                }
            }
            if run.reach() == Coverage::All && verdict.is_some() {
                return out;
            }
        }
        let verdict = match tier.default {
            TierDefault::Deny => Verdict::Drop,
            TierDefault::Pass => tier.next.clone(),
        };
        out.extend(self.decided(tier.direction, Vec::new(), verdict));
        out
    }

    /// The conditions of the rules that a run becomes: what matches one of them, the run matches.
    fn lines(&mut self, tier: &Tier<'_>, run: &RuleRun<'_>) -> Vec<Vec<Match>> {
        if run.reach() == Coverage::All {
            return vec![Vec::new()];
        }
        let peer = match tier.direction {
            Direction::Ingress => Field::Source,
            Direction::Egress => Field::Destination,
        };
        let mut in_set = |(fields, op, set): SetLookup<'_>| {
            let name = self.sets.acquire(&set, self.source.world);
            self.looked_into.push(name.clone());
            Match::InSet(fields, op, name)
        };
        let lookups = run.lookups(tier.families, peer).into_iter();
        lookups.map(|line| line.into_iter().map(&mut in_set).collect()).collect()
    }

    /// The rule that gives the verdict; what is dropped is told of before.
    fn decided(&self, direction: Direction, matches: Vec<Match>, verdict: Verdict) -> Vec<Rule> {
        let told = verdict == Verdict::Drop && self.source.deny_log == DenyLog::Enabled;
        let log = told.then(|| packet_log::rule(Reason::Denied, direction, matches.clone()));
        log.into_iter().chain([Rule::verdict(matches, verdict)]).collect()
    }
}
