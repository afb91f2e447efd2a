//! How the node stands: conditions, numbers, and what is therefore to be published.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use towpath_core::{
    ipam::Range,
    model::{Family, Mac, NodePeer},
    overlay::{self, NetOp, VxlanDevice},
};
use towpath_crds::{
    condition::{self, NodeCondition, NodeReason, Truth, Verdict},
    network_config::PolicyMode,
    network_node::{
        Addresses, AgentProcess, ChosenBy, Drift as DriftReport, NetworkNodeStatus, PolicyReport, RejectedPolicy,
        Repair, Tunnel, Uplink,
    },
};
use towpath_index::{FamilyPeers, NetworkUnavailable as Condition, flannel};
use towpath_local::NodeState;
use tracing::info;

use super::{Effect, Node, Now, outcome::Outcome, state::Opening};
use crate::{
    plan::{Path, PathProblem, Plan},
    publish::{NetworkUnavailable, NodeWish, Report},
};

/// How many unusable policies are named.
const MAX_REJECTED: usize = 10;
/// How many bytes of a reason are kept; the schema takes 512 characters.
const MAX_REASON: usize = 500;

type NodeVerdict = Verdict<NodeCondition, NodeReason>;

impl Node {
    /// Everything has been tried: tell how it stands.
    pub(super) fn settle(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        let Some(plan) = &self.plan else { return };
        let verdicts = self.verdicts(plan);
        let conditions = condition::fold(&self.conditions, verdicts, None, &now.time);
        if let Some(path) = &plan.path
            && self.overlay_is_up()
            && self.table_outcome == Outcome::Done
        {
            let state = NodeState { pod_cidrs: path.own.values().map(|own| own.pod_cidr).collect(), mtu: path.mtu };
            let stands = match &self.opening {
                Opening::Closed => false,
                Opening::Asked(written) | Opening::Open(written) => *written == state,
                Opening::Failed { again, .. } => now.instant < *again,
            };
            if !stands {
                effects.push(Effect::Open(state.clone()));
                self.opening = Opening::Asked(state);
            }
        }
        effects.extend(self.wish(plan).map(Effect::Node));
        if let Some(node) = self.index.own_node() {
            let report = Report { node_uid: node.uid.clone(), status: self.status(plan, conditions.clone()) };
            effects.push(Effect::Report(Box::new(report)));
        }
        for new in &conditions {
            let before = self.conditions.iter().find(|c| c.type_ == new.type_).map(|c| c.reason.as_str());
            if before != Some(new.reason.as_str()) {
                info!(
                    condition = new.type_,
                    status = new.status,
                    reason = new.reason,
                    message = new.message,
                    "condition changed"
                );
            }
        }
        self.conditions = conditions;
    }

    /// Why pods cannot be added, in words; `None` if they can.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if !self.index.synced() {
            return Some("the agent has not heard from the API server since it started".to_owned());
        }
        let failed = |outcome: &Outcome| match outcome {
            Outcome::Failed(why) => Some(why.clone()),
            Outcome::Untried => Some("the agent has just started".to_owned()),
            Outcome::Done => None,
        };
        let problem = || self.plan.as_ref().and_then(|plan| plan.problem.as_ref()).map(ToString::to_string);
        let files = || match &self.opening {
            Opening::Failed { why, .. } => Some(why.clone()),
            Opening::Closed | Opening::Asked(_) | Opening::Open(_) => None,
        };
        problem().or_else(|| failed(&self.table_outcome)).or_else(|| failed(&self.overlay_outcome)).or_else(files)
    }

    /// Whether pods reach other nodes, apart from peers that are left out for their own faults.
    fn overlay_is_up(&self) -> bool {
        let complete = |plan: &Plan| plan.path.is_some() && plan.problem.is_none();
        self.overlay_outcome == Outcome::Done && self.plan.as_ref().is_some_and(complete)
    }

    fn verdicts(&self, plan: &Plan) -> Vec<NodeVerdict> {
        let (tunnel, policy) = (self.tunnel_verdict(plan), self.policy_verdict());
        let (status, reason, message) = match (tunnel.status, policy.status) {
            (Truth::True, Truth::True) if let Opening::Failed { why, .. } = &self.opening => {
                (Truth::False, NodeReason::InstallFailed, why.clone())
            }
            (Truth::True, Truth::True) => {
                (Truth::True, NodeReason::DataPathReady, "pods have their network and their policies".to_owned())
            }
            (Truth::True, _) => (Truth::False, NodeReason::PolicyNotSynced, policy.message.clone()),
            _ => (Truth::False, NodeReason::TunnelNotReady, tunnel.message.clone()),
        };
        vec![Verdict { type_: NodeCondition::Ready, status, reason, message }, tunnel, policy]
    }

    fn tunnel_verdict(&self, plan: &Plan) -> NodeVerdict {
        let verdict = |status, reason, message| Verdict { type_: NodeCondition::TunnelReady, status, reason, message };
        if let Some(problem) = &plan.problem {
            return verdict(Truth::False, reason_of(problem), problem.to_string());
        }
        match &self.overlay_outcome {
            Outcome::Untried => {
                return verdict(Truth::False, NodeReason::Starting, "nothing is programmed yet".to_owned());
            }
            Outcome::Failed(why) => return verdict(Truth::False, NodeReason::ProgrammingFailed, why.clone()),
            Outcome::Done => {}
        }
        let skipped = || plan.peers.families.values().map(|family| &family.skipped);
        if let Some((node, reason)) = skipped().find_map(|skipped| skipped.get_min()) {
            let count: usize = skipped().map(|skipped| skipped.len()).sum();
            let message = format!("{count} peers are left out; node {node}: {reason}");
            return verdict(Truth::False, NodeReason::InvalidPeer, message);
        }
        let mut message = format!("{} peers are programmed", self.peers());
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

    fn policy_verdict(&self) -> NodeVerdict {
        let verdict = |status, reason, message: &str| Verdict {
            type_: NodeCondition::PolicySynced,
            status,
            reason,
            message: message.to_owned(),
        };
        match (&self.table_outcome, self.settings.policy) {
            (Outcome::Untried, _) => verdict(Truth::False, NodeReason::Starting, "no rules are written yet"),
            (Outcome::Failed(why), _) => verdict(Truth::False, NodeReason::ApplyFailed, why),
            (Outcome::Done, PolicyMode::Off) => {
                verdict(Truth::True, NodeReason::PolicyOff, "spec.policy.mode is Off: every pod is open")
            }
            (Outcome::Done, PolicyMode::Enforce) => {
                verdict(Truth::True, NodeReason::RulesInForce, "the kernel has the rules of all policies")
            }
        }
    }

    fn status(
        &self,
        plan: &Plan,
        conditions: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
    ) -> NetworkNodeStatus {
        let path = plan.path.as_ref();
        let pod_cidrs = self.index.own_node().map(|node| node.pod_cidrs.values().map(ToString::to_string).collect());
        NetworkNodeStatus {
            conditions,
            last_report_time: None,
            config_revision: Some(self.settings.revision.clone()),
            agent: Some(AgentProcess {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: self.identity.started_at.clone(),
            }),
            uplink: path.map(|path| uplink(&path.uplink)),
            tunnels: path.map(|path| self.tunnels(plan, path)).unwrap_or_default(),
            pod_cidrs: pod_cidrs.unwrap_or_default(),
            addresses: path.map(|path| self.addresses(path)),
            policy: Some(self.policy_report()),
            drift: Some(DriftReport {
                repairs: i64::try_from(self.drift.repairs).unwrap_or(i64::MAX),
                last_repair: self.drift.last.clone().map(|(object, time)| Repair { object: cut(object, 128), time }),
            }),
        }
    }

    fn tunnels(&self, plan: &Plan, path: &Path) -> Vec<Tunnel> {
        let tunnel = |(family, device): (&Family, &VxlanDevice)| {
            let expected = Self::expected_peers(plan, *family);
            Tunnel {
                device: device.name.to_string(),
                vni: int(device.tunnel.vni.value()),
                port: i32::from(device.tunnel.port),
                mtu: int(device.mtu),
                mac: device.mac.to_string(),
                peers_expected: int(expected),
                peers_programmed: int(self.programmed_peers(plan, path, *family)),
            }
        };
        path.overlay.devices.iter().map(tunnel).collect()
    }

    /// All other nodes that the cluster has, those that are left out and those that are still to come included.
    fn expected_peers(plan: &Plan, family: Family) -> usize {
        let count = |view: &FamilyPeers| view.peers.len() + view.skipped.len() + view.waiting.len();
        plan.peers.families.get(&family).map_or(0, count)
    }

    /// Peers whose route stands as planned.
    fn programmed_peers(&self, plan: &Plan, path: &Path, family: Family) -> usize {
        let Some(view) = plan.peers.families.get(&family) else { return 0 };
        if self.overlay_outcome == Outcome::Done {
            return view.peers.len();
        }
        let Some(have) = &self.net.have else { return 0 };
        let missing = overlay::diff(&path.overlay, have);
        let gateway = |op: &NetOp| match op {
            NetOp::SetNeighbour { address, .. } => Some(*address),
            NetOp::AddRoute { destination, .. } | NetOp::ReplaceRoute { destination, .. } => {
                Some(destination.network())
            }
            _ => None,
        };
        let gateways: BTreeSet<IpAddr> = missing.iter().filter_map(gateway).collect();
        let mac = |op: &NetOp| if let NetOp::SetFdb { mac, .. } = op { Some(*mac) } else { None };
        let macs: BTreeSet<Mac> = missing.iter().filter_map(mac).collect();
        let stands = |peer: &&NodePeer| !gateways.contains(&peer.pod_cidr.network()) && !macs.contains(&peer.vtep_mac);
        view.peers.values().filter(stands).count()
    }

    fn addresses(&self, path: &Path) -> Addresses {
        // A podCIDR too small to hand anything out has room for nobody.
        let capacity = |own: &overlay::LocalVtep| {
            Range::new(own.pod_cidr).map_or(0, |range| i64::try_from(range.capacity()).unwrap_or(i64::MAX))
        };
        let used: usize = path.own.keys().map(|family| self.pods.addresses(*family)).sum();
        Addresses {
            used: i64::try_from(used).unwrap_or(i64::MAX),
            capacity: path.own.values().map(capacity).fold(0, i64::saturating_add),
        }
    }

    fn policy_report(&self) -> PolicyReport {
        let mut rejected: BTreeMap<String, String> = BTreeMap::new();
        for part in self.index.rejected() {
            let reason = rejected.entry(part.policy.to_string()).or_default();
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(&format!("{}: {}", part.path, part.reason));
        }
        let rejected = rejected.into_iter().take(MAX_REJECTED);
        PolicyReport {
            generation: i64::try_from(self.generation).unwrap_or(i64::MAX),
            endpoints: int(self.index.endpoints().len()),
            policies: int(self.policies()),
            last_apply_millis: int(self.last_apply.as_millis()),
            rejected: rejected
                .map(|(policy, reason)| RejectedPolicy { policy, reason: cut(reason, MAX_REASON) })
                .collect(),
        }
    }

    /// Policies known.
    pub(crate) fn policies(&self) -> usize {
        self.index.snapshot().map_or(0, |snapshot| snapshot.tiers.iter().map(|tier| tier.policies.len()).sum())
    }

    /// What our Node should carry, if it does not yet.
    fn wish(&self, plan: &Plan) -> Option<NodeWish> {
        let node = self.index.own_node()?;
        let published = plan.path.as_ref().map(|path| &path.published);
        let annotations =
            published.map(|published| flannel::annotations(self.settings.vni, published)).unwrap_or_default();
        let annotations: BTreeMap<String, Option<String>> = annotations
            .into_iter()
            .filter(|(name, want)| node.annotations.get(*name) != want.as_ref())
            .map(|(name, want)| (name.to_owned(), want))
            .collect();
        let up = self.overlay_is_up() && matches!(self.opening, Opening::Open(_) | Opening::Asked(_));
        let message = if up {
            "the overlay is up and policies are in force".to_owned()
        } else {
            self.not_ready().unwrap_or_default()
        };
        let condition = NetworkUnavailable { unavailable: !up, message };
        let stands = match &node.network_unavailable {
            Condition::Unset => false,
            Condition::True { reason } => !up && reason == condition.reason(),
            Condition::False { reason } => up && reason == condition.reason(),
        };
        (!stands || !annotations.is_empty()).then_some(NodeWish { annotations, network_unavailable: Some(condition) })
    }
}

const fn reason_of(problem: &PathProblem) -> NodeReason {
    match problem {
        PathProblem::NoNode(_) | PathProblem::NoPodCidr(_) => NodeReason::PodCIDRMissing,
        PathProblem::PodCidr(..) => NodeReason::PodCIDROutsideNetwork,
        PathProblem::Annotation(_) => NodeReason::InvalidAnnotation,
        PathProblem::Uplink(_) => NodeReason::UplinkNotFound,
        PathProblem::Mtu(_) => NodeReason::MTUTooLarge,
    }
}

fn uplink(uplink: &overlay::Uplink) -> Uplink {
    Uplink {
        name: uplink.name.to_string(),
        index: int(uplink.index.0),
        mtu: int(uplink.mtu),
        addresses: uplink.addresses.values().map(ToString::to_string).collect(),
        chosen_by: match uplink.chosen_by {
            overlay::uplink::UplinkReason::DefaultRoute(_) => ChosenBy::DefaultRoute,
            overlay::uplink::UplinkReason::NodeAddress(_) => ChosenBy::NodeAddress,
            overlay::uplink::UplinkReason::Name => ChosenBy::Name,
            overlay::uplink::UplinkReason::Cidr(_) => ChosenBy::Cidr,
            overlay::uplink::UplinkReason::Address(_) => ChosenBy::Annotation,
        },
    }
}

/// A number for the API, which has no unsigned ones.
fn int<N: TryInto<i32>>(number: N) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

fn cut(text: String, most: usize) -> String {
    if text.chars().count() <= most { text } else { text.chars().take(most - 1).chain(['…']).collect() }
}
