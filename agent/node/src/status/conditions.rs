//! The conditions of the NetworkNode.

use towpath_crds::{
    condition::{ConditionStatus, DesiredCondition, NodeCondition, NodeReason},
    network_config::PolicyMode,
};

use super::{CniInstall, Observed, Status};
use crate::{
    kernel::Shortfall,
    plan::{OverlayProblem, Plan},
};

type DesiredNodeCondition = DesiredCondition<NodeCondition, NodeReason>;

/// The conditions as they should read.
pub(super) fn desired(current: &Status, observed: Observed<'_>, plan: &Plan) -> Vec<DesiredNodeCondition> {
    let (tunnel, policy) = (tunnel_ready(observed, plan), policy_synced(observed));
    let (status, reason, message) = match (tunnel.status, policy.status) {
        (ConditionStatus::True, ConditionStatus::True) if let CniInstall::Failed { error, .. } = &current.cni => {
            (ConditionStatus::False, NodeReason::InstallFailed, error.clone())
        }
        (ConditionStatus::True, ConditionStatus::True) if let Some(message) = current.firewall.closed() => {
            (ConditionStatus::False, NodeReason::ForeignFirewall, message)
        }
        (ConditionStatus::True, ConditionStatus::True) => {
            let message = "pods are connected and their policies are enforced";
            (ConditionStatus::True, NodeReason::DataPathReady, message.to_owned())
        }
        (ConditionStatus::True, ConditionStatus::False | ConditionStatus::Unknown) => {
            (ConditionStatus::False, NodeReason::PolicyNotSynced, policy.message.clone())
        }
        (ConditionStatus::False | ConditionStatus::Unknown, _) => {
            (ConditionStatus::False, NodeReason::TunnelNotReady, tunnel.message.clone())
        }
    };
    vec![DesiredCondition { type_: NodeCondition::Ready, status, reason, message }, tunnel, policy]
}

fn tunnel_ready(observed: Observed<'_>, plan: &Plan) -> DesiredNodeCondition {
    let verdict =
        |status, reason, message| DesiredCondition { type_: NodeCondition::TunnelReady, status, reason, message };
    if let Some(problem) = &plan.problem {
        return verdict(ConditionStatus::False, reason_of(problem), problem.to_string());
    }
    match observed.kernel.network_shortfall() {
        Some(Shortfall::Untried) => {
            return verdict(
                ConditionStatus::False,
                NodeReason::Starting,
                "the overlay is not programmed yet".to_owned(),
            );
        }
        Some(Shortfall::Failed(error)) => {
            return verdict(ConditionStatus::False, NodeReason::ProgrammingFailed, error.to_owned());
        }
        None => {}
    }
    let skipped = || plan.peers.families.values().map(|family| &family.skipped);
    if let Some((node, reason)) = skipped().find_map(|skipped| skipped.get_min()) {
        let count: usize = skipped().map(|skipped| skipped.len()).sum();
        let message = format!("{count} peers are skipped; node {node}: {reason}");
        return verdict(ConditionStatus::False, NodeReason::InvalidPeer, message);
    }
    let mut message = format!("{} peers are programmed", observed.kernel.peers());
    let problems = &plan.peers.problems;
    if let Some((node, of_node)) = problems.get_min() {
        let of_node: Vec<String> = of_node.iter().map(ToString::to_string).collect();
        message.push_str(&format!(
            "; Nodes with parts that cannot be used: {}; node {node}: {}",
            problems.len(),
            of_node.join(", ")
        ));
    }
    verdict(ConditionStatus::True, NodeReason::PeersProgrammed, message)
}

fn policy_synced(observed: Observed<'_>) -> DesiredNodeCondition {
    let verdict = |status, reason, message: &str| DesiredCondition {
        type_: NodeCondition::PolicySynced,
        status,
        reason,
        message: message.to_owned(),
    };
    match (observed.kernel.table_shortfall(), observed.settings.policy) {
        (Some(Shortfall::Untried), _) => {
            verdict(ConditionStatus::False, NodeReason::Starting, "no rules are committed yet")
        }
        (Some(Shortfall::Failed(error)), _) => verdict(ConditionStatus::False, NodeReason::ApplyFailed, error),
        (None, PolicyMode::Off) => {
            verdict(ConditionStatus::True, NodeReason::PolicyOff, "spec.policy.mode is Off: no policy is enforced")
        }
        (None, PolicyMode::Enforce) => {
            verdict(ConditionStatus::True, NodeReason::RulesInForce, "the kernel has the rules of all policies")
        }
    }
}

const fn reason_of(problem: &OverlayProblem) -> NodeReason {
    match problem {
        OverlayProblem::NoNode(_) | OverlayProblem::NoPodCidr(_) => NodeReason::PodCIDRMissing,
        OverlayProblem::PodCidr(..) => NodeReason::PodCIDROutsideNetwork,
        OverlayProblem::Annotation(_) => NodeReason::InvalidAnnotation,
        OverlayProblem::Uplink(_) => NodeReason::UplinkNotFound,
        OverlayProblem::Mtu(_) => NodeReason::MTUTooLarge,
    }
}
