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
    Context, Draft, FinalizerStep, Plan, Step, Write, bare,
    children::{self, Difference},
    has_finalizer, publish,
};
use crate::{
    facts::PodHealth,
    notice::{Notice, NoticeReason},
    preflight::name_some,
    render::{self, AgentTask, ChildKind},
    status::{
        Stage,
        nodes::{Rollout, rollout},
    },
};

/// How long nodes have to become clean, from the moment of deletion.
const BOUND: SignedDuration = SignedDuration::from_secs(120);

pub(super) fn plan(context: &Context<'_>, config: &NetworkConfig, since: Timestamp) -> Plan {
    if !has_finalizer(config) {
        return Plan {
            finalizer: FinalizerStep::Keep,
            steps: Vec::new(),
            status: None,
            notices: Vec::new(),
            rejections: Vec::new(),
            again_at: None,
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
        Notice::new(
            NoticeReason::Orphaned,
            "the agents and the network go on as they are, and nobody looks after them: create a NetworkConfig again to \
             take them over",
        ),
    )
}

/// The last plan: writes, one Event, and the finalizer goes.
fn finish(writes: Vec<Write>, notice: Notice) -> Plan {
    let steps = writes.into_iter().map(|write| Step { write, notice: None }).collect();
    Plan {
        finalizer: FinalizerStep::Remove,
        steps,
        status: None,
        notices: vec![notice],
        rejections: Vec::new(),
        again_at: None,
    }
}

fn teardown(context: &Context<'_>, config: &NetworkConfig, since: Timestamp) -> Plan {
    let world = context.world;
    let deadline = since + BOUND;
    let running = world.daemon_sets.get(names::AGENT).map(children::json_of);
    let revision = running.as_ref().and_then(children::template_revision);
    let Some(revision) = revision else {
        // No agent was ever started, or somebody deleted them: nobody is there who could clean a node.
        return conclude(context, &dirty(context));
    };
    let spec = &config.spec;
    let want = render::daemon_set(&spec.agent, &spec.images, &context.me.image, revision, AgentTask::Teardown);
    let daemon_set = world.daemon_sets.get(names::AGENT).map(AsRef::as_ref);
    let told = children::difference(&want, running.as_ref()) == Difference::None;
    let dirty = dirty(context);
    if context.now >= deadline || (told && dirty.is_empty() && is_done(daemon_set)) {
        return conclude(context, &dirty);
    }
    let mut draft = Draft { again_at: Some(deadline), ..Draft::default() };
    if !told {
        let notice = Notice::new(NoticeReason::TeardownStarted, "removing the network from every node");
        draft.steps.push(Step { write: Write::Apply(want), notice: Some(notice) });
    }
    let stage = Stage::TearingDown { remaining: dirty.into_iter().collect() };
    publish(context, config, bare(stage, context), draft)
}

/// Whether every agent has the new command and has run for long enough to have cleaned a node that had no NetworkNode.
fn is_done(daemon_set: Option<&DaemonSet>) -> bool {
    let Some(status) = daemon_set.and_then(|ds| ds.status.as_ref()) else { return false };
    rollout(daemon_set) == Rollout::Complete && status.number_available.unwrap_or(0) >= status.desired_number_scheduled
}

/// Nodes that have a NetworkNode still, or whose agent is not ready.
fn dirty(context: &Context<'_>) -> BTreeSet<String> {
    let world = context.world;
    let reporting = world.reports.iter().map(|(name, _)| name.to_owned());
    let busy = world.pods.iter().filter(|(_, pod)| pod.health != PodHealth::Ready);
    reporting.chain(busy.filter_map(|(_, pod)| pod.node.clone())).collect()
}

fn conclude(context: &Context<'_>, dirty: &BTreeSet<String>) -> Plan {
    let world = context.world;
    let sets = world.daemon_sets.iter().map(|(name, _)| Write::Delete(ChildKind::DaemonSet, name.to_owned()));
    let maps = world.config_maps.iter().map(|(name, _)| Write::Delete(ChildKind::ConfigMap, name.to_owned()));
    let writes = sets.chain(maps).collect();
    if dirty.is_empty() {
        return finish(writes, Notice::new(NoticeReason::TeardownComplete, "every node is clean"));
    }
    let names: Vec<String> = dirty.iter().cloned().collect();
    let note = format!(
        "not clean: {}: run `towpath-agent teardown` there or reboot them, then delete their NetworkNodes",
        name_some(&names)
    );
    finish(writes, Notice::new(NoticeReason::TeardownIncomplete, note))
}
