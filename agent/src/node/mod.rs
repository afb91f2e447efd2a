//! The node's state machine: what is known, what the kernel has, and what to do next.
//!
//! Level-triggered. An input only marks what it makes stale; what to do follows from the plan and from what the kernel
//! holds. There is no I/O and no clock here: time comes in with the inputs, effects go out as values, so that every
//! history can be replayed in a test.
//!
//! Expected flow: all kinds listed → read back → plan → apply → settle; then the same from the plan on after each
//! event, and from the read on after a notice of the kernel, a failure or the timer. Nothing is written before every
//! watch has listed once: until then the rules of the last run stay in force.

mod back_off;
mod belief;
mod cutting;
mod decision;
mod effect;
mod outcome;
mod pods;
mod report;
mod state;
#[cfg(test)]
mod tests;
mod vacancy;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use towpath_core::{
    model::{Family, Mac, NodeName},
    overlay::{Kernel, Overlay},
};
use towpath_index::{Dirty, DirtyPart, Index};
use towpath_local::{EndpointFile, Reply, Request};
use tracing::{error, info};

use self::{
    back_off::BackOff,
    belief::{Belief, Have},
    cutting::Cutting,
    outcome::Outcome,
    pods::Pods,
    state::{Busy, Opening},
};
pub use self::{effect::Effect, state::Drift};
use crate::{
    cni_server::CniRequest,
    denials::{Denials, Findings, View},
    input::Input,
    kernel::Done,
    plan::{Plan, Planner},
    settings::Settings,
};

/// Pause before files that could not be written are tried again.
const REOPEN: Duration = Duration::from_secs(10);

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
    /// The overlay that the kernel is known to have, and nothing else of ours: all of it was carried out, and followed, and
    /// nobody has changed anything since. `None` as long as all has to be compared.
    carried_out: Option<Overlay>,
    /// When the first thing that concerns policy came that the kernel does not have yet; and that of the plan under way.
    policy_since: Option<Instant>,
    planned_since: Option<Instant>,
    plan: Option<Plan>,
    overlay_outcome: Outcome,
    table_outcome: Outcome,
    back_off: BackOff,
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
        let planner = Planner::new(&settings, &identity.me);
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
            planner,
            carried_out: None,
            policy_since: None,
            planned_since: None,
            plan: None,
            overlay_outcome: Outcome::Untried,
            table_outcome: Outcome::Untried,
            back_off: BackOff::default(),
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
        self.plan.as_ref().map_or(0, |plan| plan.peers.families.values().map(|family| family.peers.len()).sum())
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
            Input::Notice(notice) => self.noticed(now.instant, &notice),
            Input::Reviewed(result) => self.reviewed(now.instant, &result, effects),
            Input::Cleared(cleared) => self.cleared(now.instant, &cleared, effects),
            Input::Opened(result) => self.opened(now.instant, result),
            Input::Denied(batch) => {
                let (endpoints, compiler) = (self.index.endpoints(), self.planner.compiler());
                let view = self.index.snapshot().map(|snapshot| View { endpoints, snapshot, compiler });
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

    fn mark(&mut self, now: Instant, dirty: &Dirty) {
        if !dirty.is_empty() {
            self.stale = true;
            self.watching_drift = false;
        }
        if dirty.contains(DirtyPart::Policy) && self.index.synced() {
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
}

fn tell(found: Findings, effects: &mut Vec<Effect>) {
    if !found.is_empty() {
        effects.push(Effect::Denied(found));
    }
}
