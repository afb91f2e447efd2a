//! From the cluster to what is to be done. Pure: the same cluster gives the same plan, and a cluster in shape an empty one.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use towpath_crds::{NetworkConfig, NetworkConfigStatus, names, network_config::ManagementState};

use crate::{
    cluster::ClusterState,
    events::{OperatorEvent, on_transition},
    rejection::{self, Rejection},
    render::{Child, ChildKind},
    status::{self, Phase, StatusInputs},
};

mod children;
mod managed;
mod removal;

/// What the operator knows of itself.
#[derive(Clone, Debug)]
pub struct OperatorInfo {
    /// The image that it runs.
    pub image: String,
    /// Its version.
    pub version: String,
}

/// What the operator remembers from one plan to the next. Losing it costs one repeated request.
#[derive(Clone, Debug, Default)]
pub struct ReconcileState {
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
    /// The fields that were last removed from the DaemonSet. When they are still there at the same generation, then
    /// they are the API server's own defaults and are left alone.
    pub stripped: Option<UnmanagedFields>,
    /// What was told on policies, as long as a node says it.
    pub told: BTreeSet<Rejection>,
}

/// Fields that were removed from the DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmanagedFields {
    /// `metadata.generation` of the DaemonSet that was read before.
    pub generation: Option<i64>,
    /// JSON pointers.
    pub fields: Vec<String>,
}

/// What becomes of our finalizer on the NetworkConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalizerChange {
    /// It stays as it is.
    Keep,
    /// It is added, before anything else.
    Add,
    /// It is removed, after everything else.
    Remove,
}

/// One write to a child.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Server-side apply of the complete object.
    Apply(Child),
    /// Removal of fields that somebody else added to the DaemonSet.
    RemoveFields(UnmanagedFields),
    /// Deletion.
    Delete(ChildKind, String),
}

/// One write, and the Event that tells of it once it is done.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedWrite {
    /// The write.
    pub write: Write,
    /// What to tell; nothing where the write is of no interest to people.
    pub event: Option<OperatorEvent>,
}

/// Everything that is to be done now.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The finalizer's step.
    pub finalizer: FinalizerChange,
    /// Writes to children, in order.
    pub writes: Vec<PlannedWrite>,
    /// The status to publish; none when it stands already.
    pub status: Option<NetworkConfigStatus>,
    /// Events of what the status shows.
    pub events: Vec<OperatorEvent>,
    /// What to tell on policies.
    pub rejections: Vec<Rejection>,
    /// When to plan again even if nothing changes.
    pub replan_at: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.finalizer == FinalizerChange::Keep
            && self.writes.is_empty()
            && self.status.is_none()
            && self.events.is_empty()
            && self.rejections.is_empty()
    }
}

/// What a plan looks at.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// The cluster.
    pub cluster: &'a ClusterState,
    /// The operator.
    pub me: &'a OperatorInfo,
    /// What is remembered.
    pub state: &'a ReconcileState,
    /// The present.
    pub now: Timestamp,
}

/// The plan for the one NetworkConfig; none when there is none.
#[must_use]
pub fn plan(context: &PlanContext<'_>) -> Option<Plan> {
    let config = context.cluster.configs.get(names::CONFIG_NAME)?;
    let deleting = config.metadata.deletion_timestamp.as_ref();
    Some(match (deleting, config.spec.management_state) {
        (Some(since), _) => removal::plan(context, config, since.0),
        (None, ManagementState::Unmanaged) => {
            let inputs = bare(Phase::Unmanaged, context);
            publish(context, config, inputs, PartialPlan::default())
        }
        (None, ManagementState::Managed) => {
            let rejections = rejection::all(&context.cluster.reports);
            let rejections = rejections.difference(&context.state.told).cloned().collect();
            Plan { rejections, ..managed::plan(context, config) }
        }
    })
}

/// A plan without its status.
#[derive(Default)]
struct PartialPlan {
    finalizer: Option<FinalizerChange>,
    writes: Vec<PlannedWrite>,
    replan_at: Option<Timestamp>,
}

/// StatusInputs with nothing but a phase.
fn bare(phase: Phase, context: &PlanContext<'_>) -> StatusInputs {
    StatusInputs {
        phase,
        fleet: None,
        effective: None,
        checks: Vec::new(),
        versions: None,
        error: context.state.error.clone(),
    }
}

/// Completes a plan by its status, and by what the change of status is worth telling.
fn publish(context: &PlanContext<'_>, config: &NetworkConfig, inputs: StatusInputs, partial: PartialPlan) -> Plan {
    let want = status::fold(config, inputs, context.now);
    let events = on_transition(config.status.as_ref(), &want);
    Plan {
        finalizer: partial.finalizer.unwrap_or(FinalizerChange::Keep),
        writes: partial.writes,
        status: (config.status.as_ref() != Some(&want)).then_some(want),
        events,
        rejections: Vec::new(),
        replan_at: partial.replan_at,
    }
}

fn has_finalizer(config: &NetworkConfig) -> bool {
    config.finalizers().iter().any(|f| f == names::FINALIZER)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
