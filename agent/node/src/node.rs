//! The node: inputs in, effects out.
//!
//! [`Node::step`] routes each input to the machine that it concerns, and then asks for the next kernel job. The machines:
//! [`KernelView`] (what is wanted and what the kernel has), [`Pods`] (starts and addresses of pods), [`Revocation`]
//! (established connections that policies deny now) and [`Status`] (what is reported).

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;
use towpath_core::{
    connection::AffectedPods,
    model::{Family, Mac, NodeName},
    ruleset,
};
use towpath_index::{Dirty, Index};

use crate::{
    denials::{DenialLog, DenialReport},
    effect::{CniCode, CniReply, Effect, KernelJob, KernelPart, Measurement},
    explain::{PodLookup, PolicyView},
    input::{ApplyResult, CniRequest, Input, KernelResult, LocalPod, Ticket},
    kernel::{Applied, KernelView, Planned},
    pods::Pods,
    revocation::{ReevaluateRequest, Revocation},
    settings::Settings,
    status::{Observed, Status, policies},
};

/// The current time, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For pauses and deadlines.
    pub monotonic: Instant,
    /// For what people read.
    pub wall: SystemTime,
}

/// What stays the same from the start of the agent to its end.
#[derive(Debug)]
pub struct Identity {
    /// The name of our Node.
    pub me: NodeName,
    /// When the agent started.
    pub started_at: SystemTime,
    /// MACs for VTEPs that have none yet, one per family.
    pub macs: BTreeMap<Family, Mac>,
    /// 0 to 999: this node's place in the jitter of timers, from minus to plus a fifth.
    pub jitter: u32,
}

/// A node's state, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Why pods cannot be added; `None` if they can.
    pub not_ready: Option<String>,
    /// Pod interfaces of this node.
    pub endpoints: usize,
    /// Policies of all tiers.
    pub policies: usize,
    /// Wanted peers of all families.
    pub peers: usize,
    /// Objects that another process changed and the agent repaired, since its start.
    pub repairs: u64,
}

/// The node: its configuration, the index of the cluster, and the machines.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    identity: Identity,
    index: Index,
    kernel: KernelView,
    pods: Pods,
    revocation: Revocation,
    status: Status,
    denials: DenialLog,
}

impl Node {
    /// A node that knows nothing of the cluster yet, with the pods that started before the agent.
    #[must_use]
    pub fn new(settings: Settings, identity: Identity, pods: Vec<LocalPod>, now: Instant) -> Self {
        let mut index = Index::new(identity.me.clone());
        Self {
            pods: Pods::new(pods, &mut index),
            kernel: KernelView::new(&settings, &identity, now),
            revocation: Revocation::new(settings.on_change, now),
            status: Status::new(),
            denials: DenialLog::new(now),
            settings,
            identity,
            index,
        }
    }

    /// Takes in what happened, and returns what to do.
    pub fn step(&mut self, now: &Now, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for input in inputs {
            self.route(now, input, &mut effects);
        }
        let dirty = self.pods.expire(now.monotonic, &mut self.index, &mut effects);
        self.flush(now.monotonic, &mut effects);
        self.mark(now.monotonic, &dirty);
        self.reevaluate(now.monotonic, &mut effects);
        report_packets(self.denials.tick(now.monotonic), &mut effects);
        if self.kernel.is_idle() && self.index.synced() {
            self.decide(now, &mut effects);
        }
        self.reevaluate(now.monotonic, &mut effects);
        effects
    }

    /// When to call [`Node::step`] at the latest, even if nothing happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let kernel = if self.index.synced() { self.kernel.wake_at() } else { None };
        let revocation = if self.kernel.rules_in_force() { self.revocation.wake_at() } else { None };
        kernel
            .into_iter()
            .chain(self.pods.wake_at())
            .chain(self.status.wake_at())
            .chain(revocation)
            .chain(self.denials.wake_at())
            .min()
    }

    /// The state in numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            not_ready: self.status.not_ready(self.observed()),
            endpoints: self.index.endpoints().len(),
            policies: policies(&self.index),
            peers: self.kernel.peers(),
            repairs: self.status.drift.repairs,
        }
    }

    fn observed(&self) -> Observed<'_> {
        let Self { settings, identity, index, kernel, pods, .. } = self;
        Observed { settings, identity, index, kernel, pods }
    }

    fn route(&mut self, now: &Now, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Watch(event) => {
                let dirty = self.index.apply(event);
                self.mark(now.monotonic, &dirty);
            }
            Input::Cni(ticket, request) => self.cni(now.monotonic, ticket, request, effects),
            Input::Kernel(KernelResult::Network(Ok(read))) => {
                let dirty = self.pods.reconcile(read.pods, &mut self.index, effects);
                self.mark(now.monotonic, &dirty);
                self.kernel.network_read(now.monotonic, read.kernel);
            }
            Input::Kernel(KernelResult::Network(Err(error))) => {
                self.pods.read_failed();
                self.kernel.read_failed(now.monotonic, KernelPart::Network, &error, effects);
            }
            Input::Kernel(KernelResult::Table(Ok(table))) => {
                self.kernel.table_read(now.monotonic, table.map(|table| *table));
            }
            Input::Kernel(KernelResult::Table(Err(error))) => {
                self.kernel.read_failed(now.monotonic, KernelPart::Table, &error, effects);
            }
            Input::Kernel(KernelResult::Applied(result)) => self.applied(now.monotonic, result, effects),
            Input::Notification(notification) => self.kernel.notified(now.monotonic, &notification),
            Input::Reevaluated(result) => self.revocation.ended(now.monotonic, result, effects),
            Input::Flushed(flushed) => {
                self.pods.flushed(now.monotonic, &flushed, effects);
                if self.kernel.in_force() {
                    self.pods.in_force(now.monotonic, effects);
                }
            }
            Input::CniInstalled(network, result) => self.status.cni_installed(now, &network, result, effects),
            Input::ForeignTables(tables) => self.status.firewall.read(tables),
            Input::Packets(batch) => {
                let endpoints = self.index.endpoints();
                let lookup = PodLookup::Compiled(self.kernel.planner().compiler());
                let view = self.index.snapshot().map(|snapshot| PolicyView { endpoints, snapshot, lookup });
                report_packets(self.denials.take(now.monotonic, &batch, view), effects);
            }
        }
    }

    fn mark(&mut self, now: Instant, dirty: &Dirty) {
        self.kernel.mark(now, dirty, self.index.synced());
    }

    fn cni(&mut self, now: Instant, ticket: Ticket, request: CniRequest, effects: &mut Vec<Effect>) {
        match request {
            CniRequest::Add(pod) => {
                let dirty = self.pods.add(now, ticket, pod, &mut self.index, effects);
                self.mark(now, &dirty);
            }
            CniRequest::Del(attachment) => {
                let dirty = self.pods.delete(&attachment, &mut self.index);
                self.mark(now, &dirty);
                effects.push(Effect::Reply(ticket, CniReply::Ok));
            }
            CniRequest::Status => {
                let not_ready = |details| CniReply::Error {
                    code: CniCode::NotAvailable,
                    message: "the pod network of this node is not ready",
                    details,
                };
                let reply = self.status.not_ready(self.observed()).map_or(CniReply::Ok, not_ready);
                effects.push(Effect::Reply(ticket, reply));
            }
        }
    }

    /// Reads what is due, else changes what differs from the plan, else reports.
    fn decide(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        if let Some(part) = self.kernel.begin_read(now.monotonic) {
            if part == KernelPart::Network {
                self.pods.begin_read();
            }
            effects.push(Effect::Kernel(KernelJob::Read(part)));
            return;
        }
        if let Some(planned) = self.kernel.plan(&self.settings, &self.identity, &self.index) {
            self.pods.planned(&self.index);
            if planned.is_drift {
                self.status.repaired(now, &self.repairs(&planned), effects);
            }
            if !planned.change.is_empty() {
                let table = self.kernel.wanted().map(|plan| &plan.table);
                let affected = table.map(|table| self.revocation.affected_by(&planned.change.table, table));
                let change = self.kernel.begin_apply(planned, affected.unwrap_or(AffectedPods::none()));
                effects.push(Effect::Kernel(KernelJob::Apply(change)));
                return;
            }
            self.kernel.in_sync(now.monotonic);
            self.pods.in_force(now.monotonic, effects);
        }
        let Self { settings, identity, index, kernel, pods, status, .. } = self;
        status.publish(now, Observed { settings, identity, index, kernel, pods }, effects);
    }

    /// The objects that a change repairs.
    fn repairs(&self, planned: &Planned) -> Vec<String> {
        let ops = planned.change.network.iter().filter(|op| self.pods.is_repair(op)).map(ToString::to_string);
        let steps = planned.change.table.steps().iter();
        ops.chain(steps.filter(|step| **step != ruleset::Step::AddTable).map(ToString::to_string)).collect()
    }

    fn applied(&mut self, now: Instant, result: ApplyResult, effects: &mut Vec<Effect>) {
        let failed = match (&result.table, &result.network) {
            (Err(_), _) => 1,
            (Ok(()), Err(failed)) => failed.count as u64,
            (Ok(()), Ok(())) => 0,
        };
        effects.push(Effect::Measure(Measurement::Apply { took: result.took, failed }));
        match self.kernel.applied(now, result, effects) {
            None => {}
            Some(Applied::Rejected { error }) => self.pods.rejected(&error, effects),
            Some(Applied::Committed { affected, policy_since, complete }) => {
                let latency = policy_since.map(|since| now.saturating_duration_since(since));
                self.status.committed(latency);
                effects.extend(latency.map(|latency| Effect::Measure(Measurement::PolicyChange(latency))));
                self.revocation.committed(now, affected);
                if complete {
                    self.pods.in_force(now, effects);
                }
            }
        }
    }

    /// Evaluates established connections again if that is due: with the rules in force, never with those on their way.
    fn reevaluate(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if !self.kernel.rules_in_force() {
            return;
        }
        let (Some(plan), Some(have), Some(snapshot)) =
            (self.kernel.wanted(), self.kernel.have(), self.index.snapshot())
        else {
            return;
        };
        if let Some(affected) = self.revocation.begin(now) {
            let node_addresses = have.addresses.values().flatten().map(IpNet::addr).collect();
            effects.push(Effect::Reevaluate(Box::new(ReevaluateRequest {
                table: plan.table.clone(),
                endpoints: self.index.endpoints().clone(),
                node_addresses,
                snapshot: snapshot.clone(),
                affected,
            })));
        }
    }

    /// Flushes the conntrack entries of deleted pods.
    fn flush(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.index.synced() {
            let own = self.index.own_node().into_iter().flat_map(|node| node.pod_cidrs.values().copied());
            let own: Vec<IpNet> = own.collect();
            self.pods.flush(now, &own, effects);
        }
    }
}

fn report_packets(report: DenialReport, effects: &mut Vec<Effect>) {
    if !report.is_empty() {
        effects.push(Effect::ReportPackets(report));
    }
}
