//! When the connections that are under way are to be looked through.
//!
//! Level-triggered: after each commit that may deny what was allowed, after any while connections are cut or about to be
//! (they may be allowed again), and once at the start, because nobody knows what changed while the agent was away. A
//! commit during a review makes another one due. Only connections of pods that a commit has touched are asked about.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use towpath_core::{
    connection::{AffectedPods, ImpactKind, PolicyImpact},
    ruleset::{Ruleset, Transaction},
};
use towpath_crds::network_config::OnChange;
use towpath_dataplane::conntrack::ConntrackError;
use tracing::info;

use super::{Effect, Node, back_off::BackOff, outcome::Outcome, state::Busy};
use crate::connections::{Cleared, Cuts, Order};

/// How many times as long as a review took the next one waits at least, and at most: under a steady stream of changes
/// reviews take a tenth of a core, and whatever is denied is cut well within a second.
const GAP: (u32, Duration) = (9, Duration::from_millis(500));

#[derive(Debug)]
enum Stage {
    /// Connections live on, whatever the policies say.
    Never,
    /// Nothing to do.
    Rest,
    /// Not before that time.
    Due(Instant),
    /// Under way.
    Running,
    /// Under way, and already out of date.
    Outdated,
}

/// The state of it.
#[derive(Debug)]
pub(super) struct Cutting {
    stage: Stage,
    not_before: Instant,
    /// Whose connections the plan that is being put in force makes worth a review.
    planned: AffectedPods,
    /// Those of the plans that are in force.
    pending: AffectedPods,
    /// Those that are being looked through.
    running: AffectedPods,
    /// Connections that are cut.
    held: usize,
    back_off: BackOff,
}

impl Cutting {
    pub(super) fn new(on_change: OnChange, now: Instant) -> Self {
        let stage = match on_change {
            OnChange::Reevaluate => Stage::Due(now),
            OnChange::Keep => Stage::Never,
        };
        let (planned, running) = (AffectedPods::none(), AffectedPods::none());
        Self {
            stage,
            not_before: now,
            planned,
            pending: AffectedPods::All,
            running,
            held: 0,
            back_off: BackOff::default(),
        }
    }

    /// This change is about to be made.
    pub(super) fn planned(&mut self, change: &Transaction, table: &Ruleset) {
        // A review that is under way may cut by rules that this change puts an end to.
        let may_restore = self.held > 0 || matches!(self.stage, Stage::Running | Stage::Outdated);
        self.planned = match (&self.stage, PolicyImpact::of(change, table)) {
            (Stage::Never, _) => AffectedPods::none(),
            (_, PolicyImpact { kind: ImpactKind::Widens, .. }) if !may_restore => AffectedPods::none(),
            (_, PolicyImpact { affected, .. }) => affected,
        };
    }

    /// The change is made.
    pub(super) fn committed(&mut self, now: Instant) {
        let touched = std::mem::replace(&mut self.planned, AffectedPods::none());
        if touched == AffectedPods::none() {
            return;
        }
        self.pending.merge(touched);
        match self.stage {
            Stage::Never | Stage::Due(_) | Stage::Outdated => {}
            Stage::Rest => self.stage = Stage::Due(self.not_before.max(now)),
            Stage::Running => self.stage = Stage::Outdated,
        }
    }

    /// Whose connections are to be looked through, if a review is to begin now; it has then begun.
    pub(super) fn begins(&mut self, now: Instant) -> Option<AffectedPods> {
        matches!(self.stage, Stage::Due(at) if at <= now).then(|| {
            self.stage = Stage::Running;
            self.running = std::mem::replace(&mut self.pending, AffectedPods::none());
            self.running.clone()
        })
    }

    /// A review has ended.
    pub(super) fn ended(&mut self, now: Instant, result: Result<&Cuts, &(dyn Error + 'static)>) {
        let touched = std::mem::replace(&mut self.running, AffectedPods::none());
        match result {
            Ok(cuts) => {
                self.back_off.succeeded();
                self.held = cuts.held;
                self.not_before = now + cuts.took.saturating_mul(GAP.0).min(GAP.1);
                let outdated = matches!(self.stage, Stage::Outdated);
                self.stage = if outdated { Stage::Due(self.not_before) } else { Stage::Rest };
                say(cuts);
            }
            Err(error) => {
                let pause = self.back_off.failed("connections not looked through", error);
                self.pending.merge(touched);
                self.stage = Stage::Due(now + pause);
            }
        }
    }

    /// When [`Cutting::begins`] has something to begin.
    pub(super) const fn due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Due(at) => Some(at),
            Stage::Never | Stage::Rest | Stage::Running | Stage::Outdated => None,
        }
    }
}

impl Node {
    /// Whether the kernel has the rules of the latest plan.
    pub(super) fn rules_in_force(&self) -> bool {
        self.plan.is_some() && self.table_outcome == Outcome::Done && !matches!(self.busy, Busy::Applying(_))
    }

    /// Has the connections looked through if that is due: with the rules that are in force, never with those that are
    /// on their way.
    pub(super) fn review(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let (true, Some(plan), Some(net), Some(snapshot)) =
            (self.rules_in_force(), &self.plan, &self.net.have, self.index.snapshot())
        else {
            return;
        };
        if let Some(touched) = self.cutting.begins(now) {
            effects.push(Effect::Review(Box::new(Order {
                table: plan.table.clone(),
                endpoints: self.index.endpoints().clone(),
                node: net.addresses.values().flatten().map(IpNet::addr).collect(),
                snapshot: snapshot.clone(),
                touched,
            })));
        }
    }

    pub(super) fn reviewed(&mut self, now: Instant, result: &Result<Cuts, ConntrackError>, effects: &mut Vec<Effect>) {
        self.cutting.ended(now, result.as_ref().map_err(|error| error as _));
        effects.extend(result.as_ref().map(|cuts| Effect::Cut(cuts.cut as u64)));
    }

    /// Has the kernel forget connections of pods that have gone.
    pub(super) fn clear(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.index.synced() {
            let own = self.index.own_node().into_iter().flat_map(|node| node.pod_cidrs.values().copied());
            let own: Vec<IpNet> = own.collect();
            self.pods.clear(now, &own, effects);
        }
    }

    pub(super) fn cleared(&mut self, now: Instant, cleared: &Cleared, effects: &mut Vec<Effect>) {
        self.pods.cleared(now, cleared);
        if self.rules_in_force() && self.overlay_outcome == Outcome::Done {
            self.pods.answer(now, effects);
        }
    }
}

fn say(cuts: &Cuts) {
    let took_ms = cuts.took.as_millis();
    if cuts.cut > 0 {
        let examples = cuts.examples.join("; ");
        info!(cut = cuts.cut, took_ms, examples, "connections were cut that policies deny now");
    }
    if cuts.restored > 0 {
        info!(restored = cuts.restored, took_ms, "connections may go on that policies allow again");
    }
}

#[cfg(test)]
mod tests {
    use imbl::OrdMap;
    use towpath_core::{
        names::{ChainName, IfName, SetName},
        ruleset::{Step, Value, Verdict},
    };

    use super::*;

    /// A pod gets another chain, or, without one before, its first.
    fn pod(name: &str, before: Option<()>) -> Transaction {
        let (map, key) = (SetName::new("to-pod").unwrap(), vec![Value::IfName(IfName::of_pod("a", name))]);
        let goes = before.map(|()| Step::DeleteMapElements(map.clone(), [key.clone()].into_iter().collect()));
        let chain = Verdict::Goto(ChainName::new("in.1").unwrap());
        goes.into_iter().chain([Step::AddMapElements(map, OrdMap::unit(key, chain))]).collect()
    }

    fn touched(names: &[&str]) -> Option<AffectedPods> {
        Some(AffectedPods::Pods(names.iter().map(|name| IfName::of_pod("a", name)).collect()))
    }

    /// One that has looked through everything at the start.
    fn rested(now: Instant) -> Cutting {
        let mut cutting = Cutting::new(OnChange::Reevaluate, now);
        assert_eq!(cutting.begins(now), Some(AffectedPods::All), "nobody knows what was before");
        cutting.ended(now, Ok(&Cuts::default()));
        cutting
    }

    fn commit(cutting: &mut Cutting, now: Instant, change: &Transaction) {
        cutting.planned(change, &Ruleset::default());
        cutting.committed(now);
    }

    #[test]
    fn those_are_looked_through_whom_the_commits_since_the_last_review_touched() {
        let now = Instant::now();
        let mut cutting = rested(now);
        for name in ["a", "b"] {
            commit(&mut cutting, now, &pod(name, Some(())));
        }
        assert_eq!(cutting.begins(now), touched(&["a", "b"]));
        commit(&mut cutting, now, &pod("c", Some(())));
        let error = std::io::Error::other("by order");
        cutting.ended(now, Err(&error));
        let later = now + Duration::from_secs(60);
        assert_eq!(cutting.begins(later), touched(&["a", "b", "c"]), "the first two were not looked through");
        cutting.ended(later, Ok(&Cuts::default()));
        assert_eq!(cutting.begins(later), None);
    }

    #[test]
    fn what_is_allowed_while_a_review_cuts_by_the_rules_of_before_is_looked_through_again() {
        let now = Instant::now();
        let mut cutting = rested(now);
        commit(&mut cutting, now, &pod("a", None));
        assert_eq!(cutting.begins(now), None, "a new pod only adds");
        commit(&mut cutting, now, &pod("b", Some(())));
        assert_eq!(cutting.begins(now), touched(&["b"]));
        commit(&mut cutting, now, &pod("c", None));
        cutting.ended(now, Ok(&Cuts::default()));
        assert_eq!(cutting.begins(now), touched(&["c"]));
    }

    #[test]
    fn the_longer_a_review_takes_the_longer_the_next_one_waits_within_a_bound() {
        let now = Instant::now();
        for (took_ms, wait_ms, why) in [(20, 180, "nine times as long"), (10_000, 500, "what is denied is cut soon")] {
            let mut cutting = rested(now);
            commit(&mut cutting, now, &pod("a", Some(())));
            assert!(cutting.begins(now).is_some());
            commit(&mut cutting, now, &pod("b", Some(())));
            assert_eq!(cutting.due(), None, "one at a time");
            cutting.ended(now, Ok(&Cuts { took: Duration::from_millis(took_ms), ..Cuts::default() }));
            assert_eq!(cutting.due(), Some(now + Duration::from_millis(wait_ms)), "{why}");
        }
    }
}
