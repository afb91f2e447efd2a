//! From the world to what is to be done. Pure: the same world gives the same plan, and a world in shape an empty one.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use towpath_crds::{NetworkConfig, NetworkConfigStatus, names, network_config::ManagementState};

use crate::{
    notice::{Notice, on_transition},
    rejection::{self, Rejection},
    render::{Child, ChildKind},
    status::{self, Findings, Stage},
    world::World,
};

mod children;
mod managed;
mod removal;

/// What the operator knows of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The image that it runs.
    pub image: String,
    /// Its version.
    pub version: String,
}

/// What the operator remembers from one plan to the next. Losing it costs one repeated request.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
    /// The fields that were last removed from the DaemonSet. When they are still there at the same generation, then
    /// they are the API server's own defaults and are left alone.
    pub stripped: Option<Stripped>,
    /// What was told on policies, as long as a node says it.
    pub told: BTreeSet<Rejection>,
}

/// Fields that were removed from the DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripped {
    /// `metadata.generation` of the DaemonSet that was read before.
    pub generation: Option<i64>,
    /// JSON pointers.
    pub fields: Vec<String>,
}

/// What becomes of our finalizer on the NetworkConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalizerStep {
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
    Strip(Stripped),
    /// Deletion.
    Delete(ChildKind, String),
}

/// One write, and the Event that tells of it once it is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The write.
    pub write: Write,
    /// What to tell; nothing where the write is of no interest to people.
    pub notice: Option<Notice>,
}

/// Everything that is to be done now.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The finalizer's step.
    pub finalizer: FinalizerStep,
    /// Writes to children, in order.
    pub steps: Vec<Step>,
    /// The status to publish; none when it stands already.
    pub status: Option<NetworkConfigStatus>,
    /// Events of what the status shows.
    pub notices: Vec<Notice>,
    /// What to tell on policies.
    pub rejections: Vec<Rejection>,
    /// When to plan again even if nothing changes.
    pub again_at: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.finalizer == FinalizerStep::Keep
            && self.steps.is_empty()
            && self.status.is_none()
            && self.notices.is_empty()
            && self.rejections.is_empty()
    }
}

/// What a plan looks at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The cluster.
    pub world: &'a World,
    /// The operator.
    pub me: &'a Identity,
    /// What is remembered.
    pub memory: &'a Memory,
    /// The present.
    pub now: Timestamp,
}

/// The plan for the one NetworkConfig; none when there is none.
#[must_use]
pub fn plan(context: &Context<'_>) -> Option<Plan> {
    let config = context.world.configs.get(names::CONFIG_NAME)?;
    let deleting = config.metadata.deletion_timestamp.as_ref();
    Some(match (deleting, config.spec.management_state) {
        (Some(since), _) => removal::plan(context, config, since.0),
        (None, ManagementState::Unmanaged) => {
            let findings = bare(Stage::Unmanaged, context);
            publish(context, config, findings, Draft::default())
        }
        (None, ManagementState::Managed) => {
            let rejections = rejection::all(&context.world.reports);
            let rejections = rejections.difference(&context.memory.told).cloned().collect();
            Plan { rejections, ..managed::plan(context, config) }
        }
    })
}

/// A plan without its status.
#[derive(Default)]
struct Draft {
    finalizer: Option<FinalizerStep>,
    steps: Vec<Step>,
    again_at: Option<Timestamp>,
}

/// Findings with nothing but a stage.
fn bare(stage: Stage, context: &Context<'_>) -> Findings {
    Findings {
        stage,
        fleet: None,
        effective: None,
        checks: Vec::new(),
        versions: None,
        error: context.memory.error.clone(),
    }
}

/// Completes a plan by its status, and by what the change of status is worth telling.
fn publish(context: &Context<'_>, config: &NetworkConfig, findings: Findings, draft: Draft) -> Plan {
    let want = status::fold(config, findings, context.now);
    let notices = on_transition(config.status.as_ref(), &want);
    Plan {
        finalizer: draft.finalizer.unwrap_or(FinalizerStep::Keep),
        steps: draft.steps,
        status: (config.status.as_ref() != Some(&want)).then_some(want),
        notices,
        rejections: Vec::new(),
        again_at: draft.again_at,
    }
}

fn has_finalizer(config: &NetworkConfig) -> bool {
    config.finalizers().iter().any(|f| f == names::FINALIZER)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
