//! The plan for a NetworkConfig that is being deleted.
//!
//! Orphan: the finalizer goes, nothing else. The agents have no owner reference, so the garbage collector leaves them;
//! a NetworkConfig that comes later finds them in shape or brings them there.
//!
//! Teardown: the DaemonSet's command becomes `teardown`. Each agent cleans its node and last deletes its NetworkNode.
//! When all have, or when the bound is over, the rest is named and every object of ours goes.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::apps::v1::DaemonSet,
    jiff::{SignedDuration, Timestamp},
};
use towpath_crds::{
    NetworkConfig, names,
    network_config::{DeletionPolicy, ManagementState},
};

use super::{
    FinalizerChange, PartialPlan, Plan, PlanContext, PlannedWrite, Write, bare,
    children::{self, Difference},
    has_finalizer, publish,
};
use crate::{
    events::{EventReason, OperatorEvent},
    facts::PodHealth,
    preflight::name_some,
    render::{self, AgentTask, ChildKind},
    status::{
        Phase,
        nodes::{Rollout, rollout},
    },
};

/// How long nodes have to become clean, from the moment of deletion.
const BOUND: SignedDuration = SignedDuration::from_secs(120);

pub(super) fn plan(context: &PlanContext<'_>, config: &NetworkConfig, since: Timestamp) -> Plan {
    if !has_finalizer(config) {
        return Plan {
            finalizer: FinalizerChange::Keep,
            writes: Vec::new(),
            status: None,
            events: Vec::new(),
            rejections: Vec::new(),
            replan_at: None,
        };
    }
    match (config.spec.management_state, config.spec.deletion_policy) {
        (ManagementState::Unmanaged, _) | (_, DeletionPolicy::Orphan) => orphan(),
        (ManagementState::Managed, DeletionPolicy::Teardown) => teardown(context, config, since),
    }
}

fn orphan() -> Plan {
    finish(
        Vec::new(),
        OperatorEvent::new(
            EventReason::Orphaned,
            "the agents and the network go on as they are, and nobody looks after them: create a NetworkConfig again to \
             take them over",
        ),
    )
}

/// The last plan: writes, one Event, and the finalizer goes.
fn finish(writes: Vec<Write>, event: OperatorEvent) -> Plan {
    let writes = writes.into_iter().map(|write| PlannedWrite { write, event: None }).collect();
    Plan {
        finalizer: FinalizerChange::Remove,
        writes,
        status: None,
        events: vec![event],
        rejections: Vec::new(),
        replan_at: None,
    }
}

fn teardown(context: &PlanContext<'_>, config: &NetworkConfig, since: Timestamp) -> Plan {
    let cluster = context.cluster;
    let deadline = since + BOUND;
    let running = cluster.daemon_sets.get(names::AGENT).map(children::json_of);
    let revision = running.as_ref().and_then(children::template_revision);
    let Some(revision) = revision else {
        // No agent was ever started, or somebody deleted them: nobody is there who could clean a node.
        return conclude(context, &dirty(context));
    };
    let spec = &config.spec;
    let want = render::daemon_set(&spec.agent, &spec.images, &context.me.image, revision, AgentTask::Teardown);
    let daemon_set = cluster.daemon_sets.get(names::AGENT).map(AsRef::as_ref);
    let told = children::difference(&want, running.as_ref()) == Difference::None;
    let dirty = dirty(context);
    if context.now >= deadline || (told && dirty.is_empty() && is_done(daemon_set)) {
        return conclude(context, &dirty);
    }
    let mut partial = PartialPlan { replan_at: Some(deadline), ..PartialPlan::default() };
    if !told {
        let event = OperatorEvent::new(EventReason::TeardownStarted, "removing the network from every node");
        partial.writes.push(PlannedWrite { write: Write::Apply(want), event: Some(event) });
    }
    let phase = Phase::TearingDown { remaining: dirty.into_iter().collect() };
    publish(context, config, bare(phase, context), partial)
}

/// Whether every agent has the new command and has run for long enough to have cleaned a node that had no NetworkNode.
fn is_done(daemon_set: Option<&DaemonSet>) -> bool {
    let Some(status) = daemon_set.and_then(|ds| ds.status.as_ref()) else { return false };
    rollout(daemon_set) == Rollout::Complete && status.number_available.unwrap_or(0) >= status.desired_number_scheduled
}

/// Nodes that have a NetworkNode still, or whose agent is not ready.
fn dirty(context: &PlanContext<'_>) -> BTreeSet<String> {
    let cluster = context.cluster;
    let reporting = cluster.reports.iter().map(|(name, _)| name.to_owned());
    let busy = cluster.pods.iter().filter(|(_, pod)| pod.health != PodHealth::Ready);
    reporting.chain(busy.filter_map(|(_, pod)| pod.node.clone())).collect()
}

fn conclude(context: &PlanContext<'_>, dirty: &BTreeSet<String>) -> Plan {
    let cluster = context.cluster;
    let sets = cluster.daemon_sets.iter().map(|(name, _)| Write::Delete(ChildKind::DaemonSet, name.to_owned()));
    let maps = cluster.config_maps.iter().map(|(name, _)| Write::Delete(ChildKind::ConfigMap, name.to_owned()));
    let writes = sets.chain(maps).collect();
    if dirty.is_empty() {
        return finish(writes, OperatorEvent::new(EventReason::TeardownComplete, "every node is clean"));
    }
    let names: Vec<String> = dirty.iter().cloned().collect();
    let note = format!(
        "not clean: {}: run `towpath-agent teardown` there or reboot them, then delete their NetworkNodes",
        name_some(&names)
    );
    finish(writes, OperatorEvent::new(EventReason::TeardownIncomplete, note))
}
