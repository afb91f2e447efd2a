//! How a change went, and what follows from that for our beliefs and for those who wait.

use std::{error::Error, time::Instant};

use towpath_core::overlay::NetOp;

use super::{
    Effect, Node, Now,
    belief::{Belief, Have},
};
use crate::kernel::Applied;

/// What is logged of a change that fails.
const NOT_CHANGED: &str = "kernel not changed, or not all of it";

/// How the last change of a kind went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was tried yet.
    Untried,
    /// All is as planned.
    Done,
    /// It was refused: the first refusal, in words.
    Failed(String),
}

impl Node {
    /// A change was made, or refused.
    pub(super) fn applied(&mut self, now: &Now, ops: &[NetOp], applied: Applied, effects: &mut Vec<Effect>) {
        let failed = applied.failed.len() as u64 + u64::from(applied.table.is_err());
        effects.push(Effect::Applied { took: applied.took, failed });
        let complete = applied.is_complete();
        match (applied.table, applied.failed.first()) {
            (Err(error), _) => {
                let pause = self.back_off.failed(NOT_CHANGED, &error);
                self.table = Belief { have: None, look: now.instant + pause };
                // Nothing else was done either: what was carried out before still is there.
                self.policy_since = self.planned_since.take().or(self.policy_since);
                let why = in_full(&error);
                self.pods.refuse(&why, effects);
                self.table_outcome = Outcome::Failed(why);
                return;
            }
            (Ok(()), Some(first)) => {
                let pause = self.back_off.failed(NOT_CHANGED, first);
                self.net.look_by(now.instant + pause);
                self.carried_out = None;
                let count = applied.failed.len();
                self.overlay_outcome =
                    Outcome::Failed(format!("{count} of {} changes failed, the first: {}", ops.len(), in_full(first)));
            }
            (Ok(()), None) => self.follow(ops, now.instant),
        }
        self.generation += 1;
        self.cutting.committed(now.instant);
        if let Some(since) = self.planned_since.take() {
            self.last_apply = now.instant.saturating_duration_since(since);
            effects.push(Effect::Enforced(self.last_apply));
        }
        self.table.have = self.plan.as_ref().map(|plan| Have::Made(plan.table.clone()));
        self.table_outcome = Outcome::Done;
        if complete {
            self.done(now, effects);
        }
    }

    /// Does to our belief what was done to the kernel, so that one more peer costs one more peer. A new device has got a
    /// number that only the kernel knows: then it is read back.
    pub(super) fn follow(&mut self, ops: &[NetOp], now: Instant) {
        let is_guess = |op: &NetOp| matches!(op, NetOp::CreateDevice(_) | NetOp::DeleteLink { .. });
        let (Some(have), Some(plan)) = (&mut self.net.have, &self.plan) else { return };
        let followed = ops.iter().all(|op| !is_guess(op) && have.execute(op).is_ok());
        if !followed {
            self.carried_out = None;
            self.net.look_by(now);
        } else if let Some(path) = &plan.path {
            self.carried_out = Some(path.overlay.clone());
        }
    }

    /// The kernel is as planned.
    pub(super) fn done(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        self.back_off.succeeded();
        self.overlay_outcome = Outcome::Done;
        self.table_outcome = Outcome::Done;
        self.pods.answer(now.instant, effects);
    }
}

/// An error with its sources, on one line.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
