//! The state of the nodes: each node folded from its Node, its agent's pod and its agent's report. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::apps::v1::DaemonSet,
    jiff::{SignedDuration, Timestamp},
};
use towpath_crds::{condition::NodeReason, config_status::NodeProblem, names};

use crate::{
    facts::{Kubelet, NodeFacts, PodFacts, PodHealth, ReportFacts},
    store::Store,
};

/// Age at which a report is out of date: three keep-alives of the agent (300 s, up to 20 % late).
const REPORT_TIMEOUT: SignedDuration = SignedDuration::from_secs(900);
/// Most nodes in `status.nodes.worst`.
const MAX_WORST: usize = 10;
/// Characters that the CRD admits in a problem's reason and message.
const MAX_REASON: usize = 64;
const MAX_MESSAGE: usize = 1024;

/// The inputs of the fold.
#[derive(Clone, Copy, Debug)]
pub struct FleetInputs<'a> {
    /// The Nodes.
    pub nodes: &'a Store<NodeFacts>,
    /// The agents' reports, by node.
    pub reports: &'a Store<ReportFacts>,
    /// The agents' pods.
    pub pods: &'a Store<PodFacts>,
    /// The agents' DaemonSet, if there is one.
    pub daemon_set: Option<&'a DaemonSet>,
    /// The revision that the agents should run.
    pub revision: &'a str,
    /// Current time.
    pub now: Timestamp,
}

/// The state of the nodes. `desired` = `ready` + `degraded` + `unreachable` + `pending`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Nodes that should run an agent.
    pub desired: usize,
    /// Nodes that run the wanted revision, report Ready, and reach all other such nodes.
    pub ready: usize,
    /// Nodes whose agent cannot start or reports a failure.
    pub degraded: usize,
    /// Nodes without a current report.
    pub unreachable: usize,
    /// Nodes whose agent is starting or being replaced.
    pub pending: usize,
    /// Nodes that are not ready, the worst first, at most ten.
    pub worst: Vec<NodeProblem>,
    /// Progress of the DaemonSet's rolling update.
    pub rollout: Rollout,
    /// When the result changes by itself, because a report becomes out of date.
    pub replan_at: Option<Timestamp>,
}

/// Progress of the DaemonSet's rolling update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Every pod has the current template.
    Complete,
    /// Some pods have an older template.
    Unfinished {
        /// Pods that have the current template.
        updated: usize,
    },
}

/// Why a node is not ready, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum UnreadyState {
    Degraded,
    Unreachable,
    Pending,
}

struct UnreadyNode {
    state: UnreadyState,
    problem: NodeProblem,
}

/// Folds the nodes.
#[must_use]
pub fn fold(inputs: &FleetInputs<'_>) -> Fleet {
    let pods = pods_by_node(inputs.pods);
    let mut unready = Vec::new();
    let mut targeted = 0;
    let mut agentless = Vec::new();
    for name in inputs.nodes.names() {
        let pod = pods.get(name).copied();
        if pod.is_none() && !inputs.reports.contains(name) {
            agentless.push(name);
            continue;
        }
        targeted += 1;
        match inputs.nodes.get(name) {
            Some(node) => unready.extend(unready_node(name, node, pod, inputs)),
            None => unready.push(unreachable(name, "NodeUndecodable", UNDECODABLE)),
        }
    }
    let isolated = short_of_peers(inputs, targeted, &unready);
    unready.extend(isolated);
    let scheduled = desired(inputs).max(targeted);
    // Which nodes the scheduler will choose is not known: only as many are named as agents are missing.
    for name in agentless.into_iter().take(scheduled - targeted) {
        unready.push(pending(name, "AgentMissing", "no agent runs here yet"));
    }
    let unnamed = scheduled - targeted;
    unready.sort_by(|a, b| (a.state, &a.problem.node).cmp(&(b.state, &b.problem.node)));
    let count = |state| unready.iter().filter(|node| node.state == state).count();
    let (degraded, unreachable) = (count(UnreadyState::Degraded), count(UnreadyState::Unreachable));
    let pending = count(UnreadyState::Pending).max(unnamed);
    Fleet {
        desired: scheduled,
        ready: scheduled.saturating_sub(degraded + unreachable + pending),
        degraded,
        unreachable,
        pending,
        worst: unready.into_iter().take(MAX_WORST).map(|node| node.problem).collect(),
        rollout: rollout(inputs.daemon_set),
        replan_at: next_report_timeout(inputs),
    }
}

/// Nodes that are ready by themselves and do not yet reach all others that are: a cluster is not ready before every
/// pair of its nodes is connected.
fn short_of_peers(inputs: &FleetInputs<'_>, targeted: usize, unready: &[UnreadyNode]) -> Vec<UnreadyNode> {
    let others = (targeted - unready.len()).saturating_sub(1);
    let unready: BTreeSet<&str> = unready.iter().map(|node| node.problem.node.as_str()).collect();
    let ready = inputs.reports.iter().filter(|(name, _)| inputs.nodes.contains(name) && !unready.contains(*name));
    ready
        .filter(|(_, report)| report.peers < others)
        .map(|(name, report)| {
            pending(name, "PeersMissing", &format!("its overlay reaches {} of {others} other nodes", report.peers))
        })
        .collect()
}

/// Number of nodes that should run an agent, by the DaemonSet controller once it has observed the current template. The
/// controller counts the pod of a deleted Node until the pod garbage collector runs, so never more than there are Nodes.
fn desired(inputs: &FleetInputs<'_>) -> usize {
    let nodes = inputs.nodes.len();
    match inputs.daemon_set.filter(|ds| is_observed(ds)).and_then(|ds| ds.status.as_ref()) {
        Some(status) => usize::try_from(status.desired_number_scheduled).unwrap_or(0).min(nodes),
        None => nodes,
    }
}

fn is_observed(ds: &DaemonSet) -> bool {
    ds.status.as_ref().and_then(|s| s.observed_generation) == ds.metadata.generation
}

/// Progress of this DaemonSet's rolling update; unfinished while there is none.
#[must_use]
pub fn rollout(daemon_set: Option<&DaemonSet>) -> Rollout {
    let Some((ds, status)) = daemon_set.and_then(|ds| Some((ds, ds.status.as_ref()?))) else {
        return Rollout::Unfinished { updated: 0 };
    };
    let updated = status.updated_number_scheduled.unwrap_or(0);
    if is_observed(ds) && updated >= status.desired_number_scheduled {
        return Rollout::Complete;
    }
    Rollout::Unfinished { updated: if is_observed(ds) { usize::try_from(updated).unwrap_or(0) } else { 0 } }
}

/// The agents' pods by node; while one is replaced, the new one.
fn pods_by_node(pods: &Store<PodFacts>) -> BTreeMap<&str, &PodFacts> {
    let mut by_node = BTreeMap::new();
    for (_, pod) in pods.iter() {
        let Some(node) = pod.node.as_deref() else { continue };
        let best = by_node.entry(node).or_insert(pod);
        if pod.health < best.health {
            *best = pod;
        }
    }
    by_node
}

/// Why the node is not ready; `None` if it is.
fn unready_node(name: &str, node: &NodeFacts, pod: Option<&PodFacts>, inputs: &FleetInputs<'_>) -> Option<UnreadyNode> {
    match node.kubelet {
        Kubelet::Unreachable => {
            let message = "the node's Ready condition is Unknown: check the node and its kubelet";
            return Some(unreachable(name, "NodeUnreachable", message));
        }
        Kubelet::Reachable => {}
    }
    let health = pod.map(|pod| &pod.health);
    if let Some(PodHealth::Failing(reason)) = health {
        let message = format!(
            "the agent's container does not run: see kubectl -n {} describe pods --field-selector spec.nodeName={name}",
            names::NAMESPACE
        );
        return Some(degraded(name, reason, &message));
    }
    match inputs.reports.get(name) {
        Some(report) => unready_report(name, report, inputs).or_else(|| match health {
            Some(PodHealth::Ready) => None,
            Some(PodHealth::Starting | PodHealth::Failing(_) | PodHealth::Terminating) | None => {
                Some(pending(name, "AgentStarting", "its agent is starting; the data plane keeps running meanwhile"))
            }
        }),
        None if inputs.reports.contains(name) => Some(unreachable(name, "ReportUndecodable", UNDECODABLE)),
        None => Some(pending(name, "AgentStarting", "its agent has not reported yet")),
    }
}

const UNDECODABLE: &str = "the operator cannot decode this object: see the operator's log for the error, and compare its version with the agent's";

fn unready_report(name: &str, report: &ReportFacts, inputs: &FleetInputs<'_>) -> Option<UnreadyNode> {
    let Some(at) = report.at else { return Some(pending(name, "AgentStarting", "its agent has not reported yet")) };
    if inputs.now >= at + REPORT_TIMEOUT {
        let message = format!("its agent has not reported since {at}: check the agent's log");
        return Some(unreachable(name, "AgentSilent", &message));
    }
    let runs = report.revision.as_deref().unwrap_or("none");
    if runs != inputs.revision {
        let message = format!("its agent runs revision {runs}, the wanted one is {}", inputs.revision);
        return Some(pending(name, "OldRevision", &message));
    }
    match &report.ready {
        Some(ready) if ready.is_true => None,
        Some(ready) if ready.reason == NodeReason::Starting.as_str() => {
            Some(pending(name, &ready.reason, &ready.message))
        }
        Some(ready) => Some(degraded(name, &ready.reason, &ready.message)),
        None => Some(pending(name, "AgentStarting", "its agent has not reported its conditions yet")),
    }
}

fn next_report_timeout(inputs: &FleetInputs<'_>) -> Option<Timestamp> {
    let reports = inputs.reports.iter().filter(|(name, _)| inputs.nodes.contains(name));
    reports.filter_map(|(_, report)| report.at).map(|at| at + REPORT_TIMEOUT).filter(|at| *at > inputs.now).min()
}

fn degraded(node: &str, reason: &str, message: &str) -> UnreadyNode {
    UnreadyNode { state: UnreadyState::Degraded, problem: problem(node, reason, message) }
}

fn unreachable(node: &str, reason: &str, message: &str) -> UnreadyNode {
    UnreadyNode { state: UnreadyState::Unreachable, problem: problem(node, reason, message) }
}

fn pending(node: &str, reason: &str, message: &str) -> UnreadyNode {
    UnreadyNode { state: UnreadyState::Pending, problem: problem(node, reason, message) }
}

fn problem(node: &str, reason: &str, message: &str) -> NodeProblem {
    NodeProblem {
        node: node.to_owned(),
        reason: reason.chars().take(MAX_REASON).collect(),
        message: message.chars().take(MAX_MESSAGE).collect(),
    }
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
