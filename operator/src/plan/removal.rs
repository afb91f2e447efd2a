//! The plan for a NetworkConfig that is being deleted.
//!
//! Orphan: the finalizer is removed, nothing else. The agents have no owner reference, so the garbage collector leaves
//! them; a later NetworkConfig takes them over.
//!
//! Teardown: the DaemonSet's command becomes `teardown`. Each agent cleans its node, then deletes its NetworkNode. When
//! all have, or when the bound is over, the operator names the remaining nodes and deletes its objects. What cannot be
//! decoded counts as not clean, and nothing is concluded from it before the bound.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use towpath_crds::{
    NetworkConfig, names,
    network_config::{DeletionPolicy, ManagementState},
};

use super::{
    FinalizerChange, PartialPlan, Plan, PlanContext, PlannedWrite, Write, bare_inputs,
    children::{self, Difference, Have},
    complete, has_finalizer,
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
    store::Entry,
};

/// How long nodes have to become clean, from the deletion timestamp.
const BOUND: SignedDuration = SignedDuration::from_secs(120);

pub(super) fn plan(context: &PlanContext<'_>, config: &NetworkConfig, deleted_at: Timestamp) -> Plan {
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
        (ManagementState::Managed, DeletionPolicy::Teardown) => teardown(context, config, deleted_at),
    }
}

fn orphan() -> Plan {
    finish(
        Vec::new(),
        OperatorEvent::new(
            EventReason::Orphaned,
            "the agents and the network keep running, and nothing repairs or updates them: create a NetworkConfig to \
             manage them again",
        ),
    )
}

/// The last plan: writes, one Event, and the removal of the finalizer.
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

fn teardown(context: &PlanContext<'_>, config: &NetworkConfig, deleted_at: Timestamp) -> Plan {
    let deadline = deleted_at + BOUND;
    let have = Have::of(&context.cluster.daemon_sets, names::AGENT);
    let dirty = dirty_nodes(context);
    // Without a DaemonSet no agent was ever started, or somebody deleted them: nothing is left that cleans a node.
    if have == Have::Absent || context.now >= deadline {
        return conclude(context, &dirty);
    }
    let revision = have.last_known().and_then(children::template_revision);
    if revision.is_none() && matches!(have, Have::Decoded(_)) {
        return conclude(context, &dirty);
    }
    let spec = &config.spec;
    let image = &context.operator.image;
    let revision = revision.unwrap_or_default();
    let want = render::daemon_set(&spec.agent, &spec.images, image, revision, AgentTask::Teardown);
    let mut partial = PartialPlan { replan_at: Some(deadline), ..PartialPlan::default() };
    match children::difference(&want, &have) {
        Difference::None if dirty.is_empty() && is_done(context) => return conclude(context, &dirty),
        Difference::None => {}
        Difference::Undecodable => partial.held.push(children::held(&want)),
        Difference::Absent | Difference::Intent | Difference::Drift(_) => {
            let event = OperatorEvent::new(EventReason::TeardownStarted, "removing the network from every node");
            partial.writes.push(PlannedWrite { write: Write::Apply(want), event: Some(event) });
        }
    }
    let phase = Phase::TearingDown { remaining: dirty.into_iter().collect() };
    complete(context, config, bare_inputs(phase, context), partial)
}

/// Whether every agent has the new command and has run for long enough to have cleaned a node that had no NetworkNode.
fn is_done(context: &PlanContext<'_>) -> bool {
    let Some(Entry::Decoded(daemon_set)) = context.cluster.daemon_sets.entry(names::AGENT) else { return false };
    let Some(status) = daemon_set.status.as_ref() else { return false };
    rollout(Some(daemon_set)) == Rollout::Complete
        && status.number_available.unwrap_or(0) >= status.desired_number_scheduled
}

/// Nodes that still have a NetworkNode, or whose agent is not ready. A pod that was never decoded names no node.
fn dirty_nodes(context: &PlanContext<'_>) -> BTreeSet<String> {
    let cluster = context.cluster;
    let reporting = cluster.reports.names().map(str::to_owned);
    let busy = cluster.pods.iter().filter(|(_, pod)| pod.health != PodHealth::Ready);
    let busy = busy.filter_map(|(_, pod)| pod.node.clone());
    let unknown = cluster.pods.never_decoded().map(|pod| format!("the node of pod {pod}"));
    reporting.chain(busy).chain(unknown).collect()
}

fn conclude(context: &PlanContext<'_>, dirty: &BTreeSet<String>) -> Plan {
    let cluster = context.cluster;
    let sets = cluster.daemon_sets.names().map(|name| Write::Delete(ChildKind::DaemonSet, name.to_owned()));
    let maps = cluster.config_maps.names().map(|name| Write::Delete(ChildKind::ConfigMap, name.to_owned()));
    let writes = sets.chain(maps).collect();
    if dirty.is_empty() {
        return finish(writes, OperatorEvent::new(EventReason::TeardownComplete, "every node is clean"));
    }
    let names: Vec<String> = dirty.iter().cloned().collect();
    let note = format!(
        "not clean: {}: run `towpath-agent teardown` on these nodes or reboot them, then delete their NetworkNodes",
        name_some(&names)
    );
    finish(writes, OperatorEvent::new(EventReason::TeardownIncomplete, note))
}
