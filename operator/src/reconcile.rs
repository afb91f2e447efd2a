//! The wheel: changes in, plans out. One task owns the cluster; there are no locks.
//!
//! A plan is made when something changed, when a plan said that time matters, and never more often than every 200 ms.
//! After a failure it waits, at most a minute, whatever changes meanwhile.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use towpath_crds::{condition::ConfigCondition, names};

use crate::{
    apply::Executor,
    cluster::{ClusterEvent, ClusterState},
    lease::Leadership,
    metrics::{Metrics, ResultLabel, StateLabel},
    plan::{OperatorInfo, Plan, PlanContext, ReconcileState, Write, plan},
    rejection,
    serve::Health,
    store::Effect,
};

/// Shortest time between two plans.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest time between two turns of the loop.
const TURN: Duration = Duration::from_secs(60);
/// Longest time for the writes of one plan; shorter than the grace period of a pod that ends.
const LIMIT: Duration = Duration::from_secs(20);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Turns plans into writes.
pub struct Reconciler {
    /// Writes.
    pub executor: Executor,
    /// What the operator knows of itself.
    pub me: OperatorInfo,
    /// Counts.
    pub metrics: Metrics,
    /// HealthState of life.
    pub health: Health,
}

/// When the next plan is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextPlan {
    /// Nothing is known to be due.
    Unscheduled,
    /// At this moment.
    At(Instant),
}

impl NextPlan {
    /// At the earlier of both.
    fn or_at(self, at: Instant) -> Self {
        match self {
            Self::Unscheduled => Self::At(at),
            Self::At(due) => Self::At(due.min(at)),
        }
    }
}

impl Reconciler {
    /// Turns until `stop` says so. Works only while this replica leads; watches always, so that it can take over at once.
    pub async fn run(
        &self,
        changes: impl Stream<Item = ClusterEvent>,
        mut leadership: watch::Receiver<Leadership>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut changes: Pin<Box<dyn Stream<Item = ClusterEvent>>> = Box::pin(changes);
        let mut cluster = ClusterState::default();
        let mut state = ReconcileState::default();
        let mut due = NextPlan::Unscheduled;
        let mut not_before = Instant::now();
        let mut failures = 0;
        loop {
            self.health.turned(Timestamp::now());
            let now = Instant::now();
            let leading = *leadership.borrow_and_update() == Leadership::Leading;
            if cluster.is_synced() {
                self.health.synced();
                if leading && matches!(due, NextPlan::At(at) if at.max(not_before) <= now) {
                    due = NextPlan::Unscheduled;
                    let again = self.turn(&cluster, &mut state, leadership.clone()).await;
                    failures = if state.error.is_some() { failures + 1 } else { 0 };
                    not_before = Instant::now() + if failures > 0 { backoff(failures) } else { PAUSE };
                    if failures > 0 {
                        due = NextPlan::At(not_before);
                    }
                    if let Some(again) = again {
                        due = due.or_at(again);
                    }
                    continue;
                }
            }
            let wake = match due {
                NextPlan::At(at) if leading => at.max(not_before).min(now + TURN),
                NextPlan::At(_) | NextPlan::Unscheduled => now + TURN,
            };
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                Ok(()) = leadership.changed() => due = NextPlan::At(Instant::now()),
                Some(change) = changes.next() => {
                    if cluster.apply(change) == Effect::Changed {
                        due = due.or_at(Instant::now());
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// One plan and its writes. Returns when the plan wants to be made again.
    async fn turn(
        &self,
        cluster: &ClusterState,
        state: &mut ReconcileState,
        mut leadership: watch::Receiver<Leadership>,
    ) -> Option<Instant> {
        let started = Instant::now();
        let now = Timestamp::now();
        let said = rejection::all(&cluster.reports);
        state.told.retain(|told| said.contains(told));
        let Some(plan) = plan(&PlanContext { cluster, me: &self.me, state, now }) else {
            *state = ReconcileState::default();
            return None;
        };
        self.observe(&plan);
        let again = plan.replan_at.map(|at| Instant::now() + until(now, at));
        // A status that tells of a failure needs another look after the next attempt.
        let again = if state.error.take().is_some() { Some(Instant::now() + PAUSE) } else { again };
        if plan.is_empty() {
            return again;
        }
        let config = cluster.configs.get(names::CONFIG_NAME)?;
        let executed = tokio::select! {
            executed = timeout(LIMIT, self.executor.execute(config, &plan)) => executed,
            // Another replica may work from now on; what is not done yet is its to do.
            _ = leadership.wait_for(|now| *now == Leadership::Standby) => {
                tracing::warn!("reconcile was cut off: leadership is lost");
                return again;
            }
        };
        let result = match executed {
            Ok(Ok(())) => {
                state.told.extend(plan.rejections.iter().cloned());
                "ok"
            }
            Ok(Err(error)) => {
                let text = chain(&error);
                tracing::error!(error = text, config = config.name_any(), "reconcile failed, tried again");
                state.error = Some(text);
                error.category()
            }
            Err(_) => {
                tracing::error!(seconds = LIMIT.as_secs(), "reconcile took too long, tried again");
                state.error = Some(format!("the API server did not answer within {} s", LIMIT.as_secs()));
                "timeout"
            }
        };
        for step in &plan.writes {
            if let Write::RemoveFields(stripped) = &step.write {
                state.stripped = Some(stripped.clone());
            }
        }
        self.metrics.reconciles.get_or_create(&ResultLabel { result }).inc();
        self.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
        again
    }

    fn observe(&self, plan: &Plan) {
        let Some(status) = &plan.status else { return };
        let ready = status.conditions.iter().any(|c| c.type_ == ConfigCondition::Ready.as_str() && c.status == "True");
        self.metrics.ready.set(i64::from(ready));
        let Some(nodes) = &status.nodes else { return };
        let pending = nodes.desired - nodes.ready - nodes.degraded - nodes.unreachable;
        let states = [
            ("ready", nodes.ready),
            ("degraded", nodes.degraded),
            ("unreachable", nodes.unreachable),
            ("pending", pending),
        ];
        for (state, count) in states {
            self.metrics.nodes.get_or_create(&StateLabel { state }).set(i64::from(count));
        }
    }
}

fn backoff(failures: u32) -> Duration {
    (BACKOFF.0 * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(BACKOFF.1)
}

fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

/// An error with everything that caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_after_failures_grows_to_a_minute() {
        for (failures, want) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)] {
            assert_eq!(backoff(failures).as_secs(), want, "{failures} failures");
        }
    }

    #[test]
    fn a_moment_that_is_past_is_now() {
        let now = crate::testing::now();
        assert_eq!(until(now, now - k8s_openapi::jiff::SignedDuration::from_secs(5)), Duration::ZERO);
        assert_eq!(until(now, now + k8s_openapi::jiff::SignedDuration::from_secs(5)), Duration::from_secs(5));
    }
}
