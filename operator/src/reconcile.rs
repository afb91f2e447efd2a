//! The wheel: changes in, plans out. One task owns the world; there are no locks.
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
    lease::Leadership,
    metrics::{Metrics, ResultLabel, StateLabel},
    plan::{Context, Identity, Memory, Plan, Write, plan},
    rejection,
    serve::Vitals,
    table::Effect,
    world::{Change, World},
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
    pub me: Identity,
    /// Counts.
    pub metrics: Metrics,
    /// Signs of life.
    pub vitals: Vitals,
}

/// When the next plan is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Nothing is known to be due.
    Idle,
    /// At this moment.
    At(Instant),
}

impl Due {
    /// At the earlier of both.
    fn or_at(self, at: Instant) -> Self {
        match self {
            Self::Idle => Self::At(at),
            Self::At(due) => Self::At(due.min(at)),
        }
    }
}

impl Reconciler {
    /// Turns until `stop` says so. Works only while this replica leads; watches always, so that it can take over at once.
    pub async fn run(
        &self,
        changes: impl Stream<Item = Change>,
        mut leadership: watch::Receiver<Leadership>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut changes: Pin<Box<dyn Stream<Item = Change>>> = Box::pin(changes);
        let mut world = World::default();
        let mut memory = Memory::default();
        let mut due = Due::Idle;
        let mut not_before = Instant::now();
        let mut failures = 0;
        loop {
            self.vitals.turned(Timestamp::now());
            let now = Instant::now();
            let leading = *leadership.borrow_and_update() == Leadership::Leading;
            if world.is_synced() {
                self.vitals.synced();
                if leading && matches!(due, Due::At(at) if at.max(not_before) <= now) {
                    due = Due::Idle;
                    let again = self.turn(&world, &mut memory, leadership.clone()).await;
                    failures = if memory.error.is_some() { failures + 1 } else { 0 };
                    not_before = Instant::now() + if failures > 0 { backoff(failures) } else { PAUSE };
                    if failures > 0 {
                        due = Due::At(not_before);
                    }
                    if let Some(again) = again {
                        due = due.or_at(again);
                    }
                    continue;
                }
            }
            let wake = match due {
                Due::At(at) if leading => at.max(not_before).min(now + TURN),
                Due::At(_) | Due::Idle => now + TURN,
            };
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                Ok(()) = leadership.changed() => due = Due::At(Instant::now()),
                Some(change) = changes.next() => {
                    if world.apply(change) == Effect::Changed {
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
        world: &World,
        memory: &mut Memory,
        mut leadership: watch::Receiver<Leadership>,
    ) -> Option<Instant> {
        let started = Instant::now();
        let now = Timestamp::now();
        let said = rejection::all(&world.reports);
        memory.told.retain(|told| said.contains(told));
        let Some(plan) = plan(&Context { world, me: &self.me, memory, now }) else {
            *memory = Memory::default();
            return None;
        };
        self.observe(&plan);
        let again = plan.again_at.map(|at| Instant::now() + until(now, at));
        // A status that tells of a failure needs another look after the next attempt.
        let again = if memory.error.take().is_some() { Some(Instant::now() + PAUSE) } else { again };
        if plan.is_empty() {
            return again;
        }
        let config = world.configs.get(names::CONFIG_NAME)?;
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
                memory.told.extend(plan.rejections.iter().cloned());
                "ok"
            }
            Ok(Err(error)) => {
                let text = chain(&error);
                tracing::error!(error = text, config = config.name_any(), "reconcile failed, tried again");
                memory.error = Some(text);
                error.category()
            }
            Err(_) => {
                tracing::error!(seconds = LIMIT.as_secs(), "reconcile took too long, tried again");
                memory.error = Some(format!("the API server did not answer within {} s", LIMIT.as_secs()));
                "timeout"
            }
        };
        for step in &plan.steps {
            if let Write::Strip(stripped) = &step.write {
                memory.stripped = Some(stripped.clone());
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
