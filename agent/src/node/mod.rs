//! The node's state machine: what is known, what the kernel has, and what to do next.
//!
//! Level-triggered. An input only marks what it makes stale; what to do follows from the plan and from what the kernel
//! holds. There is no I/O and no clock here: time comes in with the inputs, effects go out as values, so that every
//! history can be replayed in a test.
//!
//! Expected flow: all kinds listed → read back → plan → apply → settle; then the same from the plan on after each
//! event, and from the read on after a notice of the kernel, a failure or the timer. Nothing is written before every
//! watch has listed once: until then the rules of the last run stay in force.

mod cutting;
mod effect;
mod pods;
mod report;
mod state;
#[cfg(test)]
mod tests;
mod vacancy;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use towpath_core::{
    model::{Family, Mac, NodeName},
    overlay::{self, Kernel, Op},
    ruleset::{self, Installed, Transaction},
};
use towpath_dataplane::local::{EndpointFile, Listing, Reply, Request};
use towpath_index::{Concern, Dirty, Index};
use tracing::{debug, error, info, warn};

use self::{
    cutting::Cutting,
    pods::Pods,
    state::{Belief, Busy, Have, Opening, Outcome},
};
pub use self::{effect::Effect, state::Drift};
use crate::{
    cni_server::CniRequest,
    denials::{Denials, Findings, View},
    input::Input,
    kernel::{Applied, Change, Done, Job, Notice, Part, ReadError},
    plan::{Known, Path, Plan, Planner, Scope},
    settings::Settings,
};

/// How long changes are gathered before what they hint at is read back.
const GATHER: Duration = Duration::from_millis(100);
/// Time between two full read-backs when nobody tells of any change, less or more a fifth.
const RESYNC: Duration = Duration::from_secs(300);
/// Pause before files that could not be written are tried again.
const REOPEN: Duration = Duration::from_secs(10);
/// Bounds of the pause after a failure; it doubles with each in a row.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// Now, by the clock that never goes back and by the one on the wall.
#[derive(Debug, Clone)]
pub struct Now {
    /// For pauses and limits.
    pub instant: Instant,
    /// For people.
    pub time: Time,
}

/// What a node is from start to end.
#[derive(Debug)]
pub struct Identity {
    /// Its Node's name.
    pub me: NodeName,
    /// When the agent started.
    pub started_at: Time,
    /// MACs for VTEPs that have none yet, one per family.
    pub macs: BTreeMap<Family, Mac>,
    /// 0 to 999: where between four fifths and six fifths this node's timers stand.
    pub jitter: u32,
}

/// The node.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    identity: Identity,
    index: Index,
    pods: Pods,
    cutting: Cutting,
    net: Belief<Kernel>,
    table: Belief<Have>,
    busy: Busy,
    /// Whether the plan must be made again.
    stale: bool,
    /// Whether the next difference is somebody else's doing: nothing has changed but what was read.
    watching_drift: bool,
    planner: Planner,
    /// How much may have changed since the last plan.
    scope: Scope,
    /// When the first thing that concerns policy came that the kernel does not have yet; and that of the plan under way.
    policy_since: Option<Instant>,
    planned_since: Option<Instant>,
    plan: Option<Plan>,
    overlay_outcome: Outcome,
    table_outcome: Outcome,
    failures: u32,
    generation: u64,
    last_apply: Duration,
    drift: Drift,
    opening: Opening,
    denials: Denials,
    conditions: Vec<Condition>,
}

impl Node {
    /// A node that knows nothing of the cluster yet, with the pods that were there before the agent.
    #[must_use]
    pub fn new(settings: Settings, identity: Identity, pods: Vec<EndpointFile>, now: Instant) -> Self {
        let mut index = Index::new(identity.me.clone());
        let mut known = Pods::default();
        known.found(pods, &mut index);
        let cutting = Cutting::new(settings.on_change, now);
        Self {
            cutting,
            identity,
            index,
            pods: known,
            net: Belief { have: None, look: now },
            table: Belief { have: None, look: now },
            busy: Busy::No,
            stale: true,
            watching_drift: false,
            planner: Planner::new(&settings),
            scope: Scope::All,
            policy_since: None,
            planned_since: None,
            plan: None,
            overlay_outcome: Outcome::Untried,
            table_outcome: Outcome::Untried,
            failures: 0,
            generation: 0,
            last_apply: Duration::ZERO,
            drift: Drift::default(),
            opening: Opening::Closed,
            denials: Denials::new(now),
            conditions: Vec::new(),
            settings,
        }
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, now: &Now, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for input in inputs {
            self.take(now, input, &mut effects);
        }
        let dirty = self.pods.expire(now.instant, &mut self.index, &mut effects);
        self.clear(now.instant, &mut effects);
        self.mark(now.instant, &dirty);
        self.review(now.instant, &mut effects);
        tell(self.denials.tick(now.instant), &mut effects);
        if self.busy == Busy::No && self.index.synced() {
            self.decide(now, &mut effects);
        }
        self.review(now.instant, &mut effects);
        effects
    }

    /// When to call [`Node::step`] at the latest, even if nothing happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let looks = (self.busy == Busy::No && self.index.synced()).then(|| self.net.look.min(self.table.look));
        let again = if let Opening::Failed { again, .. } = self.opening { Some(again) } else { None };
        let review = if self.rules_in_force() { self.cutting.due() } else { None };
        looks
            .into_iter()
            .chain(self.pods.next_deadline())
            .chain(again)
            .chain(review)
            .chain(self.denials.wake_at())
            .min()
    }

    /// Pod interfaces.
    pub(crate) fn endpoints(&self) -> usize {
        self.index.endpoints().len()
    }

    /// Wanted peers of all families.
    pub(crate) fn peers(&self) -> usize {
        self.plan.as_ref().map_or(0, |plan| plan.peers.peers.values().map(BTreeSet::len).sum())
    }

    /// What somebody else changed and we put right.
    pub(crate) const fn drift(&self) -> &Drift {
        &self.drift
    }

    fn take(&mut self, now: &Now, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Watch(event) => {
                let dirty = self.index.apply(event);
                self.mark(now.instant, &dirty);
            }
            Input::Cni(request) => self.asked(now.instant, request, effects),
            Input::Notice(Notice::Net(notices)) => {
                if notices.iter().any(|notice| self.is_news(notice)) {
                    self.net.look_by(now.instant + GATHER);
                }
            }
            Input::Notice(Notice::Table) => self.table.look_by(now.instant),
            Input::Reviewed(result) => self.reviewed(now.instant, &result, effects),
            Input::Cleared(cleared) => self.cleared(now.instant, &cleared, effects),
            Input::Opened(result) => self.opened(now.instant, result),
            Input::Denied(batch) => {
                let view = self.index.snapshot().map(|snapshot| View { endpoints: self.index.endpoints(), snapshot });
                tell(self.denials.take(now.instant, &batch, view), effects);
            }
            Input::Done(done) => {
                let busy = std::mem::replace(&mut self.busy, Busy::No);
                match done {
                    Done::Net(read) => self.have_net(now.instant, read),
                    Done::Table(read) => self.have_table(now.instant, read),
                    Done::Applied(applied) => {
                        let ops = if let Busy::Applying(ops) = busy { ops } else { Vec::new() };
                        self.applied(now, &ops, applied, effects);
                    }
                }
            }
        }
    }

    /// Whether it tells more than that our plan has come true.
    fn is_news(&self, notice: &overlay::Notice) -> bool {
        let path = self.plan.as_ref().and_then(|plan| plan.path.as_ref());
        match (path, &self.net.have) {
            (Some(path), Some(have)) => !path.overlay.expects(notice, have),
            _ => true,
        }
    }

    fn mark(&mut self, now: Instant, dirty: &Dirty) {
        if !dirty.is_empty() {
            self.stale = true;
            self.watching_drift = false;
        }
        if dirty.contains(Concern::Overlay) || dirty.contains(Concern::OwnNode) {
            self.scope = Scope::All;
        }
        if dirty.contains(Concern::Policy) && self.index.synced() {
            self.policy_since.get_or_insert(now);
        }
    }

    fn asked(&mut self, now: Instant, request: CniRequest, effects: &mut Vec<Effect>) {
        let CniRequest { request, reply } = request;
        match request {
            Request::Add { endpoint } => {
                let dirty = self.pods.add(now, endpoint, reply, &mut self.index, effects);
                self.mark(now, &dirty);
            }
            Request::Del { container_id, ifname } => {
                let dirty = self.pods.remove(&container_id, &ifname, &mut self.index);
                self.mark(now, &dirty);
                effects.push(Effect::Reply(reply, Reply::Ok));
            }
            Request::Status => {
                let answer = self
                    .not_ready()
                    .map_or(Reply::Ok, |why| Reply::error(50, "the pod network of this node is not ready", &why));
                effects.push(Effect::Reply(reply, answer));
            }
        }
    }

    fn have_net(&mut self, now: Instant, read: Result<(Box<Kernel>, Listing), ReadError>) {
        match read {
            Ok((kernel, listing)) => {
                for damaged in &listing.damaged {
                    warn!(error = damaged as &dyn Error, "pod's record left out");
                }
                let dirty = self.pods.reconcile(listing.endpoints, &mut self.index);
                self.mark(now, &dirty);
                let differs = self.net.have.as_ref() != Some(&*kernel);
                if differs || matches!(self.overlay_outcome, Outcome::Failed(_)) {
                    self.watching_drift |= !self.stale && self.overlay_outcome == Outcome::Done;
                    self.stale = true;
                    self.scope = Scope::All;
                }
                self.net = Belief { have: Some(*kernel), look: now + self.resync() };
            }
            Err(error) => {
                self.net.look = now + self.failed(&error);
            }
        }
    }

    fn have_table(&mut self, now: Instant, read: Result<Option<Box<Installed>>, ReadError>) {
        match read {
            Ok(installed) => {
                let installed = installed.map(|i| *i);
                // What is as we made it stays shared with the plan.
                if !self.table.have.as_ref().is_some_and(|have| have.reads_back_as(installed.as_ref())) {
                    self.watching_drift |= !self.stale && self.table.have.is_some();
                    self.stale = true;
                    self.table.have = Some(Have::Read(installed));
                }
                self.table.look = now + self.resync();
            }
            Err(error) => {
                self.table.look = now + self.failed(&error);
            }
        }
    }

    fn opened(&mut self, now: Instant, result: anyhow::Result<()>) {
        let asked = std::mem::replace(&mut self.opening, Opening::Closed);
        self.opening = match (result, asked) {
            (Ok(()), Opening::Asked(state)) => {
                info!(mtu = state.mtu, "pods can be added");
                Opening::Open(state)
            }
            (Ok(()), other) => other,
            (Err(error), _) => {
                let why = format!("{error:#}");
                error!(error = why, "pods cannot be added: the CNI plugin or its files are not written; tried again");
                Opening::Failed { why, again: now + REOPEN }
            }
        };
    }

    /// Counts a failure, says so, and returns how long to wait.
    fn failed(&mut self, error: &(dyn Error + 'static)) -> Duration {
        let (least, most) = BACK_OFF;
        let pause = least.saturating_mul(1 << self.failures.min(16)).min(most);
        if self.failures == 0 {
            warn!(error, retry_ms = pause.as_millis(), "kernel not asked or not changed; tried again");
        } else {
            debug!(error, retry_ms = pause.as_millis(), "kernel not asked or not changed; tried again");
        }
        self.failures += 1;
        pause
    }

    fn resync(&self) -> Duration {
        RESYNC * (800 + self.identity.jitter * 2 / 5) / 1000
    }

    /// Reads what is not known well enough, else brings the kernel nearer to the plan, else tells how things stand.
    fn decide(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        let due = [(self.table.is_due(now.instant), Part::Table), (self.net.is_due(now.instant), Part::Net)];
        if let Some((_, part)) = due.into_iter().find(|(due, _)| *due) {
            if part == Part::Net {
                self.pods.reading();
            }
            self.busy = Busy::Reading;
            effects.push(Effect::Job(Job::Read(part)));
            return;
        }
        let (Some(net), Some(table)) = (&self.net.have, &self.table.have) else { return };
        if self.stale {
            let known = Known {
                settings: &self.settings,
                me: &self.identity.me,
                index: &self.index,
                have: net,
                macs: &self.identity.macs,
            };
            let scope = if self.overlay_outcome == Outcome::Done { self.scope } else { Scope::All };
            let Some(plan) = self.planner.plan(known, scope) else { return };
            let before = self.plan.as_ref().and_then(|plan| plan.path.as_ref());
            let as_before = |path: &&Arc<Path>| scope == Scope::Policy && before.is_some_and(|b| Arc::ptr_eq(b, path));
            // A difference that was refused will be refused again, whatever the reason: then the table is made anew.
            let rules = match self.table_outcome {
                Outcome::Failed(_) => Transaction::replace(&plan.table),
                Outcome::Untried | Outcome::Done => table.change(&plan.table),
            };
            let change = Change {
                table: rules,
                // What was carried out, and neither wanted otherwise nor changed by others since, is there.
                net: match &plan.path {
                    Some(path) if !as_before(&path) => overlay::diff(&path.overlay, net),
                    Some(_) | None => Vec::new(),
                },
            };
            self.stale = false;
            self.scope = Scope::Policy;
            self.planned_since = self.policy_since.take().filter(|_| !change.table.is_empty());
            self.pods.planned(&self.index);
            self.cutting.planned(&change.table, &plan.table);
            self.plan = Some(plan);
            if std::mem::take(&mut self.watching_drift) {
                self.count_drift(&change, now);
            }
            if !change.is_empty() {
                self.busy = Busy::Applying(change.net.clone());
                effects.push(Effect::Job(Job::Apply(change)));
                return;
            }
            self.done(now, effects);
        }
        self.settle(now, effects);
    }

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

    fn applied(&mut self, now: &Now, ops: &[Op], applied: Applied, effects: &mut Vec<Effect>) {
        let failed = applied.failed.len() as u64 + u64::from(applied.table.is_err());
        effects.push(Effect::Applied { took: applied.took, failed });
        let complete = applied.is_complete();
        match (applied.table, applied.failed.first()) {
            (Err(error), _) => {
                let pause = self.failed(&error);
                self.table = Belief { have: None, look: now.instant + pause };
                // Nothing else was done either.
                self.scope = Scope::All;
                self.policy_since = self.planned_since.take().or(self.policy_since);
                let why = in_full(&error);
                self.pods.refuse(&why, effects);
                self.table_outcome = Outcome::Failed(why);
                return;
            }
            (Ok(()), Some(first)) => {
                let pause = self.failed(first);
                self.net.look_by(now.instant + pause);
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
    fn follow(&mut self, ops: &[Op], now: Instant) {
        let is_guess = |op: &Op| matches!(op, Op::CreateDevice(_) | Op::DeleteLink { .. });
        let Some(have) = &mut self.net.have else { return };
        let followed = ops.iter().all(|op| !is_guess(op) && have.execute(op).is_ok());
        if !followed {
            self.scope = Scope::All;
            self.net.look_by(now);
        }
    }

    /// The kernel is as planned.
    fn done(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        self.failures = 0;
        self.overlay_outcome = Outcome::Done;
        self.table_outcome = Outcome::Done;
        self.pods.answer(now.instant, effects);
    }
}

fn tell(found: Findings, effects: &mut Vec<Effect>) {
    if !found.is_empty() {
        effects.push(Effect::Denied(found));
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
