//! The reconcile loop: watch events in, plans out. One task owns the state; there are no locks.
//!
//! A plan is made when something changed and when an earlier plan asked for it, at most every 200 ms. After a failure the
//! loop backs off for up to a minute, whatever changes meanwhile.

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
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time between two iterations of the loop.
const MAX_IDLE: Duration = Duration::from_secs(60);
/// Longest time for the writes of one plan; shorter than the grace period of a terminating pod.
const APPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// First and longest backoff after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Makes plans and executes them.
pub struct Reconciler {
    /// Writes to the API.
    pub executor: Executor,
    /// The operator's image and version.
    pub operator: OperatorInfo,
    /// Counters of reconciles, and gauges of the published status.
    pub metrics: Metrics,
    /// Liveness and readiness of the loop.
    pub health: Health,
}

/// When the next plan is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextPlan {
    /// When something changes.
    Unscheduled,
    /// At this time.
    At(Instant),
}

impl NextPlan {
    /// At the earlier of both times.
    fn or_at(self, at: Instant) -> Self {
        match self {
            Self::Unscheduled => Self::At(at),
            Self::At(due) => Self::At(due.min(at)),
        }
    }
}

impl Reconciler {
    /// Runs until `stop` changes. Plans only while this replica leads; follows the watches always, so that it can take
    /// over at once.
    pub async fn run(
        &self,
        events: impl Stream<Item = ClusterEvent>,
        mut leadership: watch::Receiver<Leadership>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut events: Pin<Box<dyn Stream<Item = ClusterEvent>>> = Box::pin(events);
        let mut cluster = ClusterState::default();
        let mut state = ReconcileState::default();
        let mut next = NextPlan::Unscheduled;
        let mut not_before = Instant::now();
        let mut failures = 0;
        loop {
            self.health.record_iteration(Timestamp::now());
            let now = Instant::now();
            let leading = *leadership.borrow_and_update() == Leadership::Leading;
            if cluster.is_synced() {
                self.health.record_synced();
                if leading && matches!(next, NextPlan::At(at) if at.max(not_before) <= now) {
                    next = NextPlan::Unscheduled;
                    let replan = self.reconcile(&cluster, &mut state, leadership.clone()).await;
                    failures = if state.error.is_some() { failures + 1 } else { 0 };
                    not_before = Instant::now() + if failures > 0 { backoff(failures) } else { MIN_INTERVAL };
                    if failures > 0 {
                        next = NextPlan::At(not_before);
                    }
                    if let Some(replan) = replan {
                        next = next.or_at(replan);
                    }
                    continue;
                }
            }
            let wake = match next {
                NextPlan::At(at) if leading => at.max(not_before).min(now + MAX_IDLE),
                NextPlan::At(_) | NextPlan::Unscheduled => now + MAX_IDLE,
            };
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                Ok(()) = leadership.changed() => next = NextPlan::At(Instant::now()),
                Some(event) = events.next() => match cluster.apply(event) {
                    Effect::Changed => next = next.or_at(Instant::now()),
                    Effect::Unchanged => {}
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Makes one plan and executes it. Returns when the next plan is due even if nothing changes.
    async fn reconcile(
        &self,
        cluster: &ClusterState,
        state: &mut ReconcileState,
        mut leadership: watch::Receiver<Leadership>,
    ) -> Option<Instant> {
        let started = Instant::now();
        let now = Timestamp::now();
        let reported = rejection::all(&cluster.reports);
        state.emitted.retain(|rejection| reported.contains(rejection));
        let Some(plan) = plan(&PlanContext { cluster, operator: &self.operator, state, now }) else {
            *state = ReconcileState::default();
            return None;
        };
        self.record_status(&plan);
        let replan = plan.replan_at.map(|at| Instant::now() + until(now, at));
        // A status that reports a failure is corrected after the next attempt.
        let replan = if state.error.take().is_some() { Some(Instant::now() + MIN_INTERVAL) } else { replan };
        if plan.is_empty() {
            return replan;
        }
        let config = cluster.configs.get(names::CONFIG_NAME)?;
        let executed = tokio::select! {
            executed = timeout(APPLY_TIMEOUT, self.executor.execute(config, &plan)) => executed,
            // Another replica may lead from now on; the remaining writes are its own.
            _ = leadership.wait_for(|now| *now == Leadership::Standby) => {
                tracing::warn!("reconcile stopped: leadership lost");
                return replan;
            }
        };
        let result = match executed {
            Ok(Ok(())) => {
                state.emitted.extend(plan.rejections.iter().cloned());
                "ok"
            }
            Ok(Err(error)) => {
                let text = chain(&error);
                tracing::error!(error = text, config = config.name_any(), "reconcile failed, will retry");
                state.error = Some(text);
                error.category()
            }
            Err(_) => {
                tracing::error!(seconds = APPLY_TIMEOUT.as_secs(), "reconcile timed out, will retry");
                state.error = Some(format!("the API server did not answer within {} s", APPLY_TIMEOUT.as_secs()));
                "timeout"
            }
        };
        for planned in &plan.writes {
            if let Write::RemoveFields(unmanaged) = &planned.write {
                state.removed_fields = Some(unmanaged.clone());
            }
        }
        self.metrics.reconciles.get_or_create(&ResultLabel { result }).inc();
        self.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
        replan
    }

    fn record_status(&self, plan: &Plan) {
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

/// An error and its sources in one line.
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
    fn a_time_in_the_past_is_due_now() {
        let now = crate::testing::now();
        assert_eq!(until(now, now - k8s_openapi::jiff::SignedDuration::from_secs(5)), Duration::ZERO);
        assert_eq!(until(now, now + k8s_openapi::jiff::SignedDuration::from_secs(5)), Duration::from_secs(5));
    }
}
