//! How the nodes stand: one state per node, folded from the node, its agent's pod and its agent's report. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::apps::v1::DaemonSet,
    jiff::{SignedDuration, Timestamp},
};
use towpath_crds::{condition::NodeReason, config_status::NodeProblem};

use crate::{
    facts::{Kubelet, NodeFacts, PodFacts, PodHealth, ReportFacts},
    store::Store,
};

/// A report older than this counts as silence: three keep-alives of the agent (300 s, up to 20 % late).
const REPORT_TIMEOUT: SignedDuration = SignedDuration::from_secs(900);
/// Most nodes that the status names.
const WORST: usize = 10;

/// What the fold looks at.
#[derive(Clone, Copy, Debug)]
pub struct FleetInputs<'a> {
    /// The nodes.
    pub nodes: &'a Store<NodeFacts>,
    /// What their agents report.
    pub reports: &'a Store<ReportFacts>,
    /// The agents' pods.
    pub pods: &'a Store<PodFacts>,
    /// The agents' DaemonSet, if there is one.
    pub daemon_set: Option<&'a DaemonSet>,
    /// The revision that the agents should run.
    pub revision: &'a str,
    /// The present.
    pub now: Timestamp,
}

/// How the nodes stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Nodes that should run an agent.
    pub desired: usize,
    /// Nodes that are well.
    pub ready: usize,
    /// Nodes whose agent fails or reports a failure.
    pub degraded: usize,
    /// Nodes of which nothing is heard.
    pub unreachable: usize,
    /// Nodes that are on their way.
    pub pending: usize,
    /// Nodes that are not ready, the worst first, at most ten.
    pub worst: Vec<NodeProblem>,
    /// Whether every agent's pod is of the wanted template.
    pub rollout: Rollout,
    /// When the fold changes by itself, because a report grows too old.
    pub replan_at: Option<Timestamp>,
}

/// Whether every agent's pod is of the wanted template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// All are.
    Complete,
    /// Some are not yet.
    Unfinished {
        /// Pods of the wanted template.
        updated: usize,
    },
}

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
    for (name, node) in inputs.nodes.iter() {
        let pod = pods.get(name).copied();
        let report = inputs.reports.get(name);
        if pod.is_none() && report.is_none() {
            agentless.push(name);
            continue;
        }
        targeted += 1;
        unready.extend(unready_node(name, node, pod, report, inputs));
    }
    let short = short_of_peers(inputs, targeted, &unready);
    unready.extend(short);
    let scheduled = desired(inputs).max(targeted);
    // Which nodes the scheduler will choose is not known: only as many are named as agents are missing.
    for name in agentless.into_iter().take(scheduled - targeted) {
        unready.push(pending(name, "AgentMissing", "no agent runs here yet"));
    }
    let unnamed = scheduled - targeted;
    unready.sort_by(|a, b| (a.state, &a.problem.node).cmp(&(b.state, &b.problem.node)));
    let count = |state| unready.iter().filter(|t| t.state == state).count();
    let (degraded, unreachable) = (count(UnreadyState::Degraded), count(UnreadyState::Unreachable));
    let pending = count(UnreadyState::Pending).max(unnamed);
    Fleet {
        desired: scheduled,
        ready: scheduled.saturating_sub(degraded + unreachable + pending),
        degraded,
        unreachable,
        pending,
        worst: unready.into_iter().take(WORST).map(|t| t.problem).collect(),
        rollout: rollout(inputs.daemon_set),
        replan_at: next_silence(inputs),
    }
}

/// Nodes that are well by themselves and do not yet reach all others that are: a cluster is not ready before every pair
/// of its nodes talks.
fn short_of_peers(inputs: &FleetInputs<'_>, targeted: usize, unready: &[UnreadyNode]) -> Vec<UnreadyNode> {
    let others = (targeted - unready.len()).saturating_sub(1);
    let unready_names: BTreeSet<&str> = unready.iter().map(|unready_node| unready_node.problem.node.as_str()).collect();
    let well =
        inputs.reports.iter().filter(|(name, _)| inputs.nodes.get(name).is_some() && !unready_names.contains(*name));
    well.filter(|(_, report)| report.peers < others)
        .map(|(name, report)| {
            pending(name, "PeersMissing", &format!("its overlay reaches {} of {others} other nodes", report.peers))
        })
        .collect()
}

/// Number of nodes that should run an agent: the DaemonSet controller's word once it has seen the present template. When
/// a Node is deleted it keeps that word until the collector of pods comes by, so no more than there are nodes.
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

/// Whether every pod of this DaemonSet is of its present template.
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

fn unready_node(
    name: &str,
    node: &NodeFacts,
    pod: Option<&PodFacts>,
    report: Option<&ReportFacts>,
    inputs: &FleetInputs<'_>,
) -> Option<UnreadyNode> {
    if node.kubelet == Kubelet::Unreachable {
        return Some(lost(name, "NodeUnreachable", "the node's kubelet is silent: look at the node itself"));
    }
    if let Some(PodHealth::Failing(reason)) = pod.map(|pod| &pod.health) {
        let hint = format!(
            "the agent's container does not run: kubectl -n {} describe pods --field-selector spec.nodeName={name}",
            towpath_crds::names::NAMESPACE
        );
        return Some(degraded(name, reason, &hint));
    }
    let Some(report) = report else { return Some(pending(name, "AgentStarting", "its agent has not reported yet")) };
    reported(name, report, inputs).or_else(|| match pod.map(|pod| &pod.health) {
        Some(PodHealth::Ready) => None,
        _ => Some(pending(name, "AgentStarting", "its agent is starting; the network goes on as it was")),
    })
}

fn reported(name: &str, report: &ReportFacts, inputs: &FleetInputs<'_>) -> Option<UnreadyNode> {
    let Some(at) = report.at else { return Some(pending(name, "AgentStarting", "its agent has not reported yet")) };
    if inputs.now >= at + REPORT_TIMEOUT {
        return Some(lost(name, "AgentSilent", &format!("its agent has not reported since {at}: look at its log")));
    }
    let runs = report.revision.as_deref().unwrap_or("none");
    if runs != inputs.revision {
        return Some(pending(name, "OldRevision", &format!("runs revision {runs}, wanted is {}", inputs.revision)));
    }
    match &report.ready {
        Some(ready) if ready.is_true => None,
        Some(ready) if ready.reason == NodeReason::Starting.as_str() => {
            Some(pending(name, &ready.reason, &ready.message))
        }
        Some(ready) => Some(degraded(name, &ready.reason, &ready.message)),
        None => Some(pending(name, "AgentStarting", "its agent has not reported its state yet")),
    }
}

fn next_silence(inputs: &FleetInputs<'_>) -> Option<Timestamp> {
    let reports = inputs.reports.iter().filter(|(name, _)| inputs.nodes.get(name).is_some());
    reports.filter_map(|(_, report)| report.at).map(|at| at + REPORT_TIMEOUT).filter(|at| *at > inputs.now).min()
}

fn degraded(node: &str, reason: &str, message: &str) -> UnreadyNode {
    UnreadyNode { state: UnreadyState::Degraded, problem: problem(node, reason, message) }
}

fn lost(node: &str, reason: &str, message: &str) -> UnreadyNode {
    UnreadyNode { state: UnreadyState::Unreachable, problem: problem(node, reason, message) }
}

fn pending(node: &str, reason: &str, message: &str) -> UnreadyNode {
    UnreadyNode { state: UnreadyState::Pending, problem: problem(node, reason, message) }
}

/// Cut to the lengths that the CRD admits.
fn problem(node: &str, reason: &str, message: &str) -> NodeProblem {
    NodeProblem {
        node: node.to_owned(),
        reason: reason.chars().take(64).collect(),
        message: message.chars().take(1024).collect(),
    }
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
