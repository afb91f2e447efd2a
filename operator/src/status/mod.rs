//! From what was found to what is published. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use towpath_crds::{
    NetworkConfig, NetworkConfigStatus,
    condition::{self, ConditionStatus, ConfigCondition, ConfigReason, DesiredCondition},
    config_status::{AgentVersion, Check, Effective, Nodes, Preflight, Versions},
};

use crate::{facts::ReportFacts, preflight::PreflightFailure, store::Store};
use nodes::{Fleet, Rollout};

pub mod nodes;

/// Most versions that the status lists.
const VERSIONS: usize = 8;

/// Where the network stands on its way.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The operator keeps its hands off.
    Unmanaged,
    /// The spec contradicts itself; nothing is done.
    Invalid {
        /// One sentence per contradiction.
        problems: Vec<String>,
    },
    /// A preflight check failed. What was rolled out before goes on.
    Held {
        /// The first failure.
        failure: PreflightFailure,
    },
    /// The network is rolled out or on its way.
    Live,
    /// The data plane is being removed.
    TearingDown {
        /// Nodes that are not clean yet.
        remaining: Vec<String>,
    },
}

/// Everything that goes into the status.
#[derive(Clone, Debug)]
pub struct StatusInputs {
    /// Where the network stands.
    pub phase: Phase,
    /// How the nodes stand, if there are agents.
    pub fleet: Option<Fleet>,
    /// The values in force.
    pub effective: Option<Effective>,
    /// The checks that ran.
    pub checks: Vec<Check>,
    /// Which versions run.
    pub versions: Option<Versions>,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// The status to publish.
#[must_use]
pub fn fold(config: &NetworkConfig, inputs: StatusInputs, now: Timestamp) -> NetworkConfigStatus {
    let have = config.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let generation = config.metadata.generation;
    // The API keeps whole seconds; a fraction would look like a difference for ever.
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

type ConfigConditionDraft = DesiredCondition<ConfigCondition, ConfigReason>;

fn condition(
    type_: ConfigCondition,
    status: ConditionStatus,
    reason: ConfigReason,
    message: impl Into<String>,
) -> ConfigConditionDraft {
    DesiredCondition { type_, status, reason, message: message.into() }
}

/// The conditions: Stalled and Reconciling first and only while true, then Ready and PreflightPassed.
fn conditions(inputs: &StatusInputs) -> Vec<ConfigConditionDraft> {
    use ConfigCondition::{PreflightPassed, Ready, Reconciling, Stalled};
    let mut conditions = match &inputs.phase {
        Phase::Unmanaged => {
            let message = "spec.managementState is Unmanaged: the operator does not look after the network";
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
        Phase::Held { failure } => vec![
            condition(Stalled, ConditionStatus::True, ConfigReason::PreflightFailed, &failure.message),
            condition(Ready, ConditionStatus::False, ConfigReason::PreflightFailed, &failure.message),
            condition(PreflightPassed, ConditionStatus::False, failure.reason, &failure.message),
        ],
        Phase::Live => live(inputs.fleet.as_ref(), &inputs.checks),
        Phase::TearingDown { remaining } => {
            let message = match remaining.len() {
                0 => "the last objects are being deleted".to_owned(),
                n => format!("{n} nodes are not clean yet: {}", crate::preflight::name_some(remaining)),
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

fn live(fleet: Option<&Fleet>, checks: &[Check]) -> Vec<ConfigConditionDraft> {
    use ConfigCondition::{PreflightPassed, Ready, Reconciling};
    let passed = condition(
        PreflightPassed,
        ConditionStatus::True,
        ConfigReason::AllChecksPassed,
        format!("{} checks found nothing against the configuration", checks.len()),
    );
    let Some(fleet) = fleet else { return vec![passed] };
    let summary = summary(fleet);
    match fleet.rollout {
        Rollout::Unfinished { updated } => {
            let message = format!("{summary}; {updated} agents have the new template");
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
                    "the cluster has no node for an agent",
                ),
                passed,
            ]
        }
        Rollout::Complete => {
            vec![condition(Ready, ConditionStatus::True, ConfigReason::AllNodesReady, summary), passed]
        }
    }
}

/// How many nodes are ready, and the worst three that are not.
fn summary(fleet: &Fleet) -> String {
    let mut text = format!("{} of {} nodes are ready", fleet.ready, fleet.desired);
    for (index, worst) in fleet.worst.iter().take(3).enumerate() {
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

/// The versions that run, the agents' in order.
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
            .take(VERSIONS)
            .map(|(version, nodes)| AgentVersion { version: version.to_owned(), nodes })
            .collect(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
