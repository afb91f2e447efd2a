//! The conditions of the NetworkNode.

use towpath_crds::{
    condition::{NodeCondition, NodeReason, Truth, Verdict},
    network_config::PolicyMode,
};

use super::{CniInstall, Observed, Status};
use crate::{
    kernel::Shortfall,
    plan::{OverlayProblem, Plan},
};

type NodeVerdict = Verdict<NodeCondition, NodeReason>;

/// The conditions as they should read.
pub(super) fn desired(current: &Status, observed: Observed<'_>, plan: &Plan) -> Vec<NodeVerdict> {
    let (tunnel, policy) = (tunnel_ready(observed, plan), policy_synced(observed));
    let (status, reason, message) = match (tunnel.status, policy.status) {
        (Truth::True, Truth::True) if let CniInstall::Failed { error, .. } = &current.cni => {
            (Truth::False, NodeReason::InstallFailed, error.clone())
        }
        (Truth::True, Truth::True) if let Some(message) = current.firewall.closed() => {
            (Truth::False, NodeReason::ForeignFirewall, message)
        }
        (Truth::True, Truth::True) => {
            let message = "pods are connected and their policies are enforced";
            (Truth::True, NodeReason::DataPathReady, message.to_owned())
        }
        (Truth::True, _) => (Truth::False, NodeReason::PolicyNotSynced, policy.message.clone()),
        (Truth::False | Truth::Unknown, _) => (Truth::False, NodeReason::TunnelNotReady, tunnel.message.clone()),
    };
    vec![Verdict { type_: NodeCondition::Ready, status, reason, message }, tunnel, policy]
}

fn tunnel_ready(observed: Observed<'_>, plan: &Plan) -> NodeVerdict {
    let verdict = |status, reason, message| Verdict { type_: NodeCondition::TunnelReady, status, reason, message };
    if let Some(problem) = &plan.problem {
        return verdict(Truth::False, reason_of(problem), problem.to_string());
    }
    match observed.kernel.network_shortfall() {
        Some(Shortfall::Untried) => {
            return verdict(Truth::False, NodeReason::Starting, "the overlay is not programmed yet".to_owned());
        }
        Some(Shortfall::Failed(error)) => {
            return verdict(Truth::False, NodeReason::ProgrammingFailed, error.to_owned());
        }
        None => {}
    }
    let skipped = || plan.peers.families.values().map(|family| &family.skipped);
    if let Some((node, reason)) = skipped().find_map(|skipped| skipped.get_min()) {
        let count: usize = skipped().map(|skipped| skipped.len()).sum();
        let message = format!("{count} peers are skipped; node {node}: {reason}");
        return verdict(Truth::False, NodeReason::InvalidPeer, message);
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
    verdict(Truth::True, NodeReason::PeersProgrammed, message)
}

fn policy_synced(observed: Observed<'_>) -> NodeVerdict {
    let verdict = |status, reason, message: &str| Verdict {
        type_: NodeCondition::PolicySynced,
        status,
        reason,
        message: message.to_owned(),
    };
    match (observed.kernel.table_shortfall(), observed.settings.policy) {
        (Some(Shortfall::Untried), _) => verdict(Truth::False, NodeReason::Starting, "no rules are committed yet"),
        (Some(Shortfall::Failed(error)), _) => verdict(Truth::False, NodeReason::ApplyFailed, error),
        (None, PolicyMode::Off) => {
            verdict(Truth::True, NodeReason::PolicyOff, "spec.policy.mode is Off: no policy is enforced")
        }
        (None, PolicyMode::Enforce) => {
            verdict(Truth::True, NodeReason::RulesInForce, "the kernel has the rules of all policies")
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
