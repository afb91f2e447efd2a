//! From the state of the cluster to everything that is to be done. Pure: the same state gives the same plan, and a
//! cluster that is as wanted gives an empty one.
//!
//! An object that cannot be decoded is planned with its last known state and is not written.

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
    store::Entry,
};

mod children;
mod managed;
mod removal;

/// The operator's own image and version.
#[derive(Clone, Debug)]
pub struct OperatorInfo {
    /// The image that the operator runs, and that the agents run unless the spec names another.
    pub image: String,
    /// The operator's version, for `status.versions`.
    pub version: String,
}

/// What is carried from one plan to the next. Losing it costs one repeated request.
#[derive(Clone, Debug, Default)]
pub struct ReconcileState {
    /// Why the last reconcile failed, if it did.
    pub error: Option<String>,
    /// The fields that were last removed from the DaemonSet. Fields that are back at the same generation are the API
    /// server's own defaults, and are left alone.
    pub removed_fields: Option<UnmanagedFields>,
    /// Rejections that have been emitted as Events and are still reported by a node.
    pub emitted: BTreeSet<Rejection>,
}

/// Fields of the DaemonSet that others own and that are not wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmanagedFields {
    /// `metadata.generation` of the DaemonSet in which they were found.
    pub generation: Option<i64>,
    /// JSON pointers (RFC 6901), in an order in which they can be removed one by one.
    pub fields: Vec<String>,
}

/// What happens to the finalizer on the NetworkConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalizerChange {
    /// Neither added nor removed.
    Keep,
    /// Added before any other write.
    Add,
    /// Removed after every other write.
    Remove,
}

/// A write to a child.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Server-side apply of the complete object.
    Apply(Child),
    /// JSON patch that removes fields from the DaemonSet.
    RemoveFields(UnmanagedFields),
    /// Deletion of the object of this name.
    Delete(ChildKind, String),
}

/// A write, and the Event to emit once it is done.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedWrite {
    /// The write to one child.
    pub write: Write,
    /// The Event, if people should know of the write.
    pub event: Option<OperatorEvent>,
}

/// Everything that is to be done now.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The change of the finalizer.
    pub finalizer: FinalizerChange,
    /// Writes to children, in order.
    pub writes: Vec<PlannedWrite>,
    /// The status to publish; `None` if it is published already.
    pub status: Option<NetworkConfigStatus>,
    /// Events on the NetworkConfig about the change of its status.
    pub events: Vec<OperatorEvent>,
    /// Events to emit on policies.
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

/// The inputs of a plan.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// The state of the cluster.
    pub cluster: &'a ClusterState,
    /// The operator's image and version.
    pub operator: &'a OperatorInfo,
    /// What earlier plans left.
    pub state: &'a ReconcileState,
    /// Current time.
    pub now: Timestamp,
}

/// The plan for the NetworkConfig; `None` if there is none, or none that has ever been decoded.
#[must_use]
pub fn plan(context: &PlanContext<'_>) -> Option<Plan> {
    match context.cluster.configs.entry(names::CONFIG_NAME)? {
        Entry::Decoded(config) => Some(plan_for(context, config)),
        // The published status is not known either: it would be written, and its Events emitted, with every plan.
        Entry::LastKnown(config) => Some(Plan {
            finalizer: FinalizerChange::Keep,
            status: None,
            events: Vec::new(),
            ..plan_for(context, config)
        }),
        Entry::NeverDecoded => None,
    }
}

fn plan_for(context: &PlanContext<'_>, config: &NetworkConfig) -> Plan {
    let deleted_at = config.metadata.deletion_timestamp.as_ref();
    match (deleted_at, config.spec.management_state) {
        (Some(at), _) => removal::plan(context, config, at.0),
        (None, ManagementState::Unmanaged) => {
            let inputs = bare_inputs(Phase::Unmanaged, context);
            complete(context, config, inputs, PartialPlan::default())
        }
        (None, ManagementState::Managed) => {
            let rejections = rejection::all(&context.cluster.reports);
            let rejections = rejections.difference(&context.state.emitted).cloned().collect();
            Plan { rejections, ..managed::plan(context, config) }
        }
    }
}

/// A plan without its status.
#[derive(Default)]
struct PartialPlan {
    finalizer: Option<FinalizerChange>,
    writes: Vec<PlannedWrite>,
    /// Why some children are not written.
    held: Vec<String>,
    replan_at: Option<Timestamp>,
}

/// The inputs of a status that has nothing but a phase.
fn bare_inputs(phase: Phase, context: &PlanContext<'_>) -> StatusInputs {
    StatusInputs {
        phase,
        fleet: None,
        effective: None,
        checks: Vec::new(),
        versions: None,
        error: context.state.error.clone(),
    }
}

/// Adds the status, and the Events about its change.
fn complete(context: &PlanContext<'_>, config: &NetworkConfig, inputs: StatusInputs, partial: PartialPlan) -> Plan {
    let held = (!partial.held.is_empty()).then(|| partial.held.join("; "));
    let inputs = StatusInputs { error: inputs.error.or(held), ..inputs };
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
