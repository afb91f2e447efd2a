//! What to do next: read, change or tell.

use towpath_core::{
    overlay,
    ruleset::{self, Transaction},
};
use tracing::info;

use super::{Effect, Node, Now, outcome::Outcome, state::Busy};
use crate::{
    kernel::{Change, Job, Part},
    plan::Known,
};

impl Node {
    /// Reads what is not known well enough, else brings the kernel nearer to the plan, else tells how things stand.
    pub(super) fn decide(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        let due = [(self.table.is_due(now.instant), Part::Table), (self.net.is_due(now.instant), Part::Net)];
        if let Some((_, part)) = due.into_iter().find(|(due, _)| *due) {
            if part == Part::Net {
                self.pods.reading();
            }
            self.busy = Busy::Reading;
            effects.push(Effect::Job(Job::Read(part)));
            return;
        }
        // While something is not known, nothing can be done but to say what was refused.
        if self.stale
            && let Some(change) = self.plan(now)
        {
            if !change.is_empty() {
                self.busy = Busy::Applying(change.net.clone());
                effects.push(Effect::Job(Job::Apply(change)));
                return;
            }
            self.follow(&[], now.instant);
            self.done(now, effects);
        }
        self.settle(now, effects);
    }

    /// Plans anew, and says what that takes; `None` as long as too little is known.
    fn plan(&mut self, now: &Now) -> Option<Change> {
        let (net, table) = (self.net.have.as_ref()?, self.table.have.as_ref()?);
        let known = Known {
            settings: &self.settings,
            me: &self.identity.me,
            index: &self.index,
            have: net,
            macs: &self.identity.macs,
        };
        let plan = self.planner.plan(known)?;
        // A difference that was refused will be refused again, whatever the reason: then the table is made anew.
        let rules = match self.table_outcome {
            Outcome::Failed(_) => Transaction::replace(&plan.table),
            Outcome::Untried | Outcome::Done => table.change(&plan.table),
        };
        let change = Change {
            table: rules,
            net: match (&plan.path, &self.carried_out) {
                (Some(path), Some(before)) => overlay::change(&path.overlay, before, net),
                (Some(path), None) => overlay::diff(&path.overlay, net),
                (None, _) => Vec::new(),
            },
        };
        self.stale = false;
        self.planned_since = self.policy_since.take().filter(|_| !change.table.is_empty());
        self.pods.planned(&self.index);
        self.cutting.planned(&change.table, &plan.table);
        self.plan = Some(plan);
        if std::mem::take(&mut self.watching_drift) {
            self.count_drift(&change, now);
        }
        Some(change)
    }

    /// Counts what somebody else has changed and this change puts right.
    fn count_drift(&mut self, change: &Change, now: &Now) {
        let ops = change.net.iter().filter(|op| self.pods.is_settled(op)).map(ToString::to_string);
        let steps =
            change.table.steps().iter().filter(|step| **step != ruleset::Step::AddTable).map(ToString::to_string);
        let repaired: Vec<String> = ops.chain(steps).collect();
        let Some(first) = repaired.first() else { return };
        info!(repairs = repaired.len(), first, "somebody changed our kernel state; put right");
        self.drift.repairs += repaired.len() as u64;
        self.drift.last = Some((first.clone(), now.time.clone()));
    }
}
