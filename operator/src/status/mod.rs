//! The status fold: from what was observed to conditions, node counts and values in force. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use towpath_crds::{
    NetworkConfig, NetworkConfigStatus,
    condition::{self, ConditionStatus, ConfigCondition, ConfigReason, DesiredCondition},
    config_status::{AgentVersion, Check, Effective, Nodes, Preflight, Versions},
};

use crate::{facts::ReportFacts, preflight::PreflightFailure, store::Store};
use nodes::{Fleet, Rollout};

pub mod nodes;

/// Most agent versions in the status.
const MAX_VERSIONS: usize = 8;
/// Most nodes that a condition's message names.
const MAX_NAMED: usize = 3;

/// The phase of the network.
#[derive(Clone, Debug)]
pub enum Phase {
    /// `spec.managementState` is Unmanaged.
    Unmanaged,
    /// The spec contradicts itself; nothing is written.
    Invalid {
        /// One sentence per contradiction.
        problems: Vec<String>,
    },
    /// A preflight check failed. The revision that was rolled out before keeps running.
    PreflightFailed {
        /// The first failure.
        failure: PreflightFailure,
    },
    /// The network is rolled out or being rolled out.
    Active,
    /// The data plane is being removed.
    TearingDown {
        /// Nodes that are not clean yet.
        remaining: Vec<String>,
    },
}

/// The inputs of the status.
#[derive(Clone, Debug)]
pub struct StatusInputs {
    /// What the operator does with the network.
    pub phase: Phase,
    /// The state of the nodes, if there are agents.
    pub fleet: Option<Fleet>,
    /// The values in force.
    pub effective: Option<Effective>,
    /// The preflight checks that ran.
    pub checks: Vec<Check>,
    /// The versions that run.
    pub versions: Option<Versions>,
    /// Why the last reconcile failed, or why a child is not written.
    pub error: Option<String>,
}

/// The status to publish.
#[must_use]
pub fn fold(config: &NetworkConfig, inputs: StatusInputs, now: Timestamp) -> NetworkConfigStatus {
    let have = config.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let generation = config.metadata.generation;
    // The API keeps whole seconds; a fraction would be a difference forever.
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    NetworkConfigStatus {
        observed_generation: generation,
        conditions: condition::fold(have, conditions(&inputs), generation, &now),
        nodes: inputs.fleet.as_ref().map(node_counts),
        effective: inputs.effective,
        preflight: (!inputs.checks.is_empty()).then_some(Preflight { checks: inputs.checks }),
        versions: inputs.versions,
    }
}

type Desired = DesiredCondition<ConfigCondition, ConfigReason>;

fn condition(
    type_: ConfigCondition,
    status: ConditionStatus,
    reason: ConfigReason,
    message: impl Into<String>,
) -> Desired {
    DesiredCondition { type_, status, reason, message: message.into() }
}

/// The conditions in their order: Stalled and Reconciling only while true, then Ready and PreflightPassed.
fn conditions(inputs: &StatusInputs) -> Vec<Desired> {
    use ConfigCondition::{PreflightPassed, Ready, Reconciling, Stalled};
    let mut conditions = match &inputs.phase {
        Phase::Unmanaged => {
            let message =
                "spec.managementState is Unmanaged: the operator changes nothing; set it to Managed to resume";
            vec![condition(Ready, ConditionStatus::Unknown, ConfigReason::Unmanaged, message)]
        }
        Phase::Invalid { problems } => {
            let message = problems.join("; ");
            let reason = ConfigReason::InvalidConfiguration;
            vec![
                condition(Stalled, ConditionStatus::True, reason, &message),
                condition(Ready, ConditionStatus::False, reason, &message),
                condition(PreflightPassed, ConditionStatus::False, reason, message),
            ]
        }
        Phase::PreflightFailed { failure } => vec![
            condition(Stalled, ConditionStatus::True, ConfigReason::PreflightFailed, &failure.message),
            condition(Ready, ConditionStatus::False, ConfigReason::PreflightFailed, &failure.message),
            condition(PreflightPassed, ConditionStatus::False, failure.reason, &failure.message),
        ],
        Phase::Active => active_conditions(inputs.fleet.as_ref(), &inputs.checks),
        Phase::TearingDown { remaining } => {
            let message = match remaining.len() {
                0 => "waiting for every agent to finish the teardown".to_owned(),
                n => format!("nodes that are not clean yet ({n}): {}", crate::preflight::name_some(remaining)),
            };
            vec![
                condition(Reconciling, ConditionStatus::True, ConfigReason::TearingDown, &message),
                condition(Ready, ConditionStatus::False, ConfigReason::TearingDown, message),
            ]
        }
    };
    if let Some(error) = &inputs.error
        && !conditions.iter().any(|v| v.type_ == Stalled)
    {
        conditions.retain(|v| v.type_ != Reconciling);
        conditions.insert(0, condition(Reconciling, ConditionStatus::True, ConfigReason::RetryingAfterError, error));
    }
    conditions
}

fn active_conditions(fleet: Option<&Fleet>, checks: &[Check]) -> Vec<Desired> {
    use ConfigCondition::{PreflightPassed, Ready, Reconciling};
    let passed = condition(
        PreflightPassed,
        ConditionStatus::True,
        ConfigReason::AllChecksPassed,
        format!("{} checks ran, none failed", checks.len()),
    );
    let Some(fleet) = fleet else { return vec![passed] };
    let summary = summary(fleet);
    match fleet.rollout {
        Rollout::Unfinished { updated } => {
            let message = format!("{summary}; {updated} agents run the new template");
            vec![
                condition(Reconciling, ConditionStatus::True, ConfigReason::RollingOut, &message),
                condition(Ready, ConditionStatus::False, ConfigReason::RolloutInProgress, message),
                passed,
            ]
        }
        Rollout::Complete if fleet.degraded + fleet.unreachable > 0 => {
            vec![condition(Ready, ConditionStatus::False, ConfigReason::NodesNotReady, summary), passed]
        }
        Rollout::Complete if fleet.pending > 0 => vec![
            condition(Reconciling, ConditionStatus::True, ConfigReason::RollingOut, &summary),
            condition(Ready, ConditionStatus::False, ConfigReason::RolloutInProgress, summary),
            passed,
        ],
        Rollout::Complete if fleet.desired == 0 => {
            vec![
                condition(
                    Ready,
                    ConditionStatus::False,
                    ConfigReason::NodesNotReady,
                    "no node runs an agent: check that the cluster has Linux nodes, and spec.agent.tolerations against their taints",
                ),
                passed,
            ]
        }
        Rollout::Complete => {
            vec![condition(Ready, ConditionStatus::True, ConfigReason::AllNodesReady, summary), passed]
        }
    }
}

/// How many nodes are ready, and the worst that are not, with reason and message.
fn summary(fleet: &Fleet) -> String {
    let mut text = format!("{} of {} nodes are ready", fleet.ready, fleet.desired);
    for (index, worst) in fleet.worst.iter().take(MAX_NAMED).enumerate() {
        text.push_str(if index == 0 { ": " } else { "; " });
        text.push_str(&format!("{} ({}): {}", worst.node, worst.reason, worst.message));
    }
    text
}

fn node_counts(fleet: &Fleet) -> Nodes {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    Nodes {
        desired: number(fleet.desired),
        ready: number(fleet.ready),
        degraded: number(fleet.degraded),
        unreachable: number(fleet.unreachable),
        summary: format!("{}/{}", fleet.ready, fleet.desired),
        worst: fleet.worst.clone(),
    }
}

/// The operator's version, and how many nodes run each version of the agent.
#[must_use]
pub fn versions(operator: &str, reports: &Store<ReportFacts>) -> Versions {
    let mut agents = std::collections::BTreeMap::<&str, i32>::new();
    for version in reports.iter().filter_map(|(_, report)| report.version.as_deref()) {
        *agents.entry(version).or_default() += 1;
    }
    Versions {
        operator: operator.to_owned(),
        agents: agents
            .into_iter()
            .take(MAX_VERSIONS)
            .map(|(version, nodes)| AgentVersion { version: version.to_owned(), nodes })
            .collect(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
