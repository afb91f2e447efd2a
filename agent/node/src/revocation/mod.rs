//! Revocation: connections that were established before a policy change and are denied now.
//!
//! Level-triggered: a policy re-evaluation is due after each commit that may deny what was allowed, after any commit while
//! connections are revoked or about to be (they may be allowed again), and once after the start, because nobody knows what
//! changed while the agent was away. A commit during a re-evaluation makes another one due. Only connections of pods that a
//! commit touches are evaluated.

mod reevaluate;

use std::time::{Duration, Instant};

use towpath_core::{
    connection::{AffectedPods, ImpactKind, PolicyImpact},
    ruleset::{Ruleset, Transaction},
};
use towpath_crds::network_config::OnChange;

pub use self::reevaluate::{ReevaluateOutcome, ReevaluateRequest, ReevaluateSummary};
use crate::{
    back_off::BackOff,
    effect::{Effect, Measurement},
    log::{FailedStep, LogLine},
};

/// The pause after a re-evaluation, as a multiple of its duration, and its maximum: a steady stream of changes costs a tenth
/// of a core, and a denied connection is revoked well within a second.
const GAP: (u32, Duration) = (9, Duration::from_millis(500));

/// The revocation of connections.
#[derive(Debug)]
pub(crate) enum Revocation {
    /// `spec.policy.onChange` is Keep: established connections live on.
    Disabled,
    /// `spec.policy.onChange` is Reevaluate.
    Enabled(Enabled),
}

/// What is known of revoked connections.
#[derive(Debug)]
pub(crate) struct Enabled {
    stage: Stage,
    /// The earliest time of the next re-evaluation.
    not_before: Instant,
    /// The number of revoked connections.
    revoked: usize,
    back_off: BackOff,
}

/// How far the policy re-evaluation is.
#[derive(Debug)]
enum Stage {
    /// No re-evaluation is due.
    Idle,
    /// One is due, of the connections of these pods.
    Due { at: Instant, affected: AffectedPods },
    /// One is running; commits meanwhile have affected `next`.
    Running { affected: AffectedPods, next: AffectedPods },
}

impl Revocation {
    /// Right after the start everything is due.
    pub(crate) fn new(on_change: OnChange, now: Instant) -> Self {
        match on_change {
            OnChange::Reevaluate => Self::Enabled(Enabled {
                stage: Stage::Due { at: now, affected: AffectedPods::All },
                not_before: now,
                revoked: 0,
                back_off: BackOff::default(),
            }),
            OnChange::Keep => Self::Disabled,
        }
    }

    /// The pods whose connections have to be evaluated again once this change is committed.
    pub(crate) fn affected_by(&self, change: &Transaction, table: &Ruleset) -> AffectedPods {
        let Self::Enabled(enabled) = self else { return AffectedPods::none() };
        // A running re-evaluation may revoke by rules that this change removes.
        let may_restore = enabled.revoked > 0 || matches!(enabled.stage, Stage::Running { .. });
        match PolicyImpact::of(change, table) {
            PolicyImpact { kind: ImpactKind::Widens, .. } if !may_restore => AffectedPods::none(),
            PolicyImpact { affected, .. } => affected,
        }
    }

    /// A change is committed.
    pub(crate) fn committed(&mut self, now: Instant, affected: AffectedPods) {
        let Self::Enabled(enabled) = self else { return };
        if affected == AffectedPods::none() {
            return;
        }
        match &mut enabled.stage {
            Stage::Idle => enabled.stage = Stage::Due { at: enabled.not_before.max(now), affected },
            Stage::Due { affected: due, .. } => due.merge(affected),
            Stage::Running { next, .. } => next.merge(affected),
        }
    }

    /// Begins the re-evaluation that is due; returns the pods whose connections it is about.
    pub(crate) fn begin(&mut self, now: Instant) -> Option<AffectedPods> {
        let Self::Enabled(Enabled { stage, .. }) = self else { return None };
        let affected = match stage {
            Stage::Due { at, affected } if *at <= now => affected.clone(),
            Stage::Due { .. } | Stage::Idle | Stage::Running { .. } => return None,
        };
        *stage = Stage::Running { affected: affected.clone(), next: AffectedPods::none() };
        Some(affected)
    }

    /// A re-evaluation has ended.
    pub(crate) fn ended(&mut self, now: Instant, result: Result<ReevaluateSummary, String>, effects: &mut Vec<Effect>) {
        let Self::Enabled(enabled) = self else { return };
        let (affected, next) = match std::mem::replace(&mut enabled.stage, Stage::Idle) {
            Stage::Running { affected, next } => (affected, next),
            stage @ (Stage::Idle | Stage::Due { .. }) => {
                enabled.stage = stage;
                return;
            }
        };
        match result {
            Ok(summary) => {
                enabled.back_off.succeeded();
                enabled.revoked = summary.total_revoked;
                enabled.not_before = now + summary.took.saturating_mul(GAP.0).min(GAP.1);
                if next != AffectedPods::none() {
                    enabled.stage = Stage::Due { at: enabled.not_before, affected: next };
                }
                report(&summary, effects);
            }
            Err(error) => {
                let at = now + enabled.back_off.failed(FailedStep::Reevaluate, &error, effects);
                let mut affected = affected;
                affected.merge(next);
                enabled.stage = Stage::Due { at, affected };
            }
        }
    }

    /// When a re-evaluation is due; `None` if none is.
    pub(crate) const fn wake_at(&self) -> Option<Instant> {
        match self {
            Self::Enabled(Enabled { stage: Stage::Due { at, .. }, .. }) => Some(*at),
            Self::Enabled(Enabled { stage: Stage::Idle | Stage::Running { .. }, .. }) | Self::Disabled => None,
        }
    }
}

fn report(summary: &ReevaluateSummary, effects: &mut Vec<Effect>) {
    let ReevaluateSummary { revoked, restored, took, .. } = *summary;
    effects.push(Effect::Measure(Measurement::Revoked(revoked as u64)));
    if revoked > 0 {
        let examples = summary.examples.join("; ");
        effects.push(Effect::Log(LogLine::Revoked { count: revoked, took, examples }));
    }
    if restored > 0 {
        effects.push(Effect::Log(LogLine::Restored { count: restored, took }));
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

    fn affected(names: &[&str]) -> Option<AffectedPods> {
        Some(AffectedPods::Pods(names.iter().map(|name| IfName::of_pod("a", name)).collect()))
    }

    /// One that has evaluated everything after the start.
    fn idle(now: Instant) -> Revocation {
        let mut revocation = Revocation::new(OnChange::Reevaluate, now);
        assert_eq!(revocation.begin(now), Some(AffectedPods::All), "nobody knows what was before");
        end(&mut revocation, now, Duration::ZERO);
        revocation
    }

    fn commit(revocation: &mut Revocation, now: Instant, change: &Transaction) {
        let affected = revocation.affected_by(change, &Ruleset::default());
        revocation.committed(now, affected);
    }

    fn end(revocation: &mut Revocation, now: Instant, took: Duration) {
        revocation.ended(now, Ok(ReevaluateSummary { took, ..ReevaluateSummary::default() }), &mut Vec::new());
    }

    #[test]
    fn a_re_evaluation_is_about_the_pods_that_commits_since_the_last_one_touched() {
        let now = Instant::now();
        let mut revocation = idle(now);
        for name in ["a", "b"] {
            commit(&mut revocation, now, &pod(name, Some(())));
        }
        assert_eq!(revocation.begin(now), affected(&["a", "b"]));
        commit(&mut revocation, now, &pod("c", Some(())));
        revocation.ended(now, Err("requested by the test".to_owned()), &mut Vec::new());
        let later = now + Duration::from_secs(60);
        assert_eq!(revocation.begin(later), affected(&["a", "b", "c"]), "the first two were not evaluated");
        end(&mut revocation, later, Duration::ZERO);
        assert_eq!(revocation.begin(later), None);
    }

    #[test]
    fn a_change_that_allows_during_a_re_evaluation_is_evaluated_again() {
        let now = Instant::now();
        let mut revocation = idle(now);
        commit(&mut revocation, now, &pod("a", None));
        assert_eq!(revocation.begin(now), None, "a new pod only adds");
        commit(&mut revocation, now, &pod("b", Some(())));
        assert_eq!(revocation.begin(now), affected(&["b"]));
        commit(&mut revocation, now, &pod("c", None));
        end(&mut revocation, now, Duration::ZERO);
        assert_eq!(revocation.begin(now), affected(&["c"]));
    }

    #[test]
    fn the_longer_a_re_evaluation_takes_the_longer_the_next_one_waits_within_a_bound() {
        let now = Instant::now();
        for (took_ms, wait_ms, why) in
            [(20, 180, "nine times as long"), (10_000, 500, "what is denied is revoked soon")]
        {
            let mut revocation = idle(now);
            commit(&mut revocation, now, &pod("a", Some(())));
            assert!(revocation.begin(now).is_some());
            commit(&mut revocation, now, &pod("b", Some(())));
            assert_eq!(revocation.wake_at(), None, "one at a time");
            end(&mut revocation, now, Duration::from_millis(took_ms));
            assert_eq!(revocation.wake_at(), Some(now + Duration::from_millis(wait_ms)), "{why}");
        }
    }
}
