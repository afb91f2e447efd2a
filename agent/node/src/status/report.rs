//! What is published of the status: our Node's annotations and condition, and the NetworkNode.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use towpath_core::{
    ipam::Range,
    model::Family,
    overlay::{self, VxlanDevice},
};
use towpath_crds::network_node::{
    AddressUsage, AgentProcess, DriftStatus, NetworkNodeStatus, PolicyStatus, RejectedPolicy, Repair, TunnelStatus,
    UplinkSelection, UplinkStatus,
};
use towpath_index::{FamilyPeers, Index, NetworkUnavailable, flannel};

use super::{CniInstall, Commits, Drift, Observed, Status, api_time};
use crate::{
    effect::{NetworkCondition, NodePatch, StatusUpdate},
    plan::{OverlayPlan, Plan},
};

/// How many rejected policies are named.
const MAX_REJECTED: usize = 10;
/// How many characters of a reason are kept; the schema allows 512.
const MAX_REASON: usize = 500;
/// How many characters of a repaired object's name are kept.
const MAX_OBJECT: usize = 128;

/// What our Node lacks; `None` if it has everything.
pub(super) fn node_patch(status: &Status, observed: Observed<'_>, plan: &Plan) -> Option<NodePatch> {
    let node = observed.index.own_node()?;
    let published = plan.overlay.as_ref().map(|overlay| &overlay.published);
    let annotations =
        published.map(|published| flannel::annotations(observed.settings.vni, published)).unwrap_or_default();
    let annotations: BTreeMap<String, Option<String>> = annotations
        .into_iter()
        .filter(|(name, want)| node.annotations.get(*name) != want.as_ref())
        .map(|(name, want)| (name.to_owned(), want))
        .collect();
    let installed = matches!(status.cni, CniInstall::Ready(_) | CniInstall::Installing(_));
    let up = observed.kernel.overlay_is_up() && installed;
    let message = if up {
        "the overlay is up and policies are enforced".to_owned()
    } else {
        status.not_ready(observed).unwrap_or_default()
    };
    let condition = NetworkCondition { unavailable: !up, message };
    let is_current = match &node.network_unavailable {
        NetworkUnavailable::Unset => false,
        NetworkUnavailable::True { reason } => !up && reason == condition.reason(),
        NetworkUnavailable::False { reason } => up && reason == condition.reason(),
    };
    let network_condition = Some(condition);
    (!is_current || !annotations.is_empty()).then_some(NodePatch { annotations, network_condition })
}

/// The NetworkNode's status; `None` while our Node is unknown.
pub(super) fn status_update(
    status: &Status,
    observed: Observed<'_>,
    plan: &Plan,
    conditions: &[Condition],
) -> Option<Box<StatusUpdate>> {
    let node = observed.index.own_node()?;
    let overlay = plan.overlay.as_ref();
    let status = NetworkNodeStatus {
        conditions: conditions.to_vec(),
        last_report_time: None,
        config_revision: Some(observed.settings.revision.clone()),
        agent: Some(AgentProcess {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: api_time(observed.identity.started_at),
        }),
        uplink: overlay.map(|overlay| uplink(&overlay.uplink)),
        tunnels: overlay.map(|overlay| tunnels(observed, plan, overlay)).unwrap_or_default(),
        pod_cidrs: node.pod_cidrs.values().map(ToString::to_string).collect(),
        addresses: overlay.map(|overlay| addresses(observed, overlay)),
        policy: Some(policy(observed.index, status.commits)),
        drift: Some(drift(&status.drift)),
        findings: status.firewall.findings(),
    };
    Some(Box::new(StatusUpdate { node_uid: node.uid.clone(), status }))
}

/// Policies of all tiers.
pub(crate) fn policies(index: &Index) -> usize {
    index.snapshot().map_or(0, |snapshot| snapshot.tiers.iter().map(|tier| tier.policies.len()).sum())
}

fn tunnels(observed: Observed<'_>, plan: &Plan, overlay: &OverlayPlan) -> Vec<TunnelStatus> {
    let tunnel = |(family, device): (&Family, &VxlanDevice)| TunnelStatus {
        device: device.name.to_string(),
        vni: int(device.tunnel.vni.value()),
        port: i32::from(device.tunnel.port),
        mtu: int(device.mtu),
        mac: device.mac.to_string(),
        peers_expected: int(expected_peers(plan, *family)),
        peers_programmed: int(observed.kernel.programmed_peers(*family)),
    };
    overlay.overlay.devices.iter().map(tunnel).collect()
}

/// All other nodes of the cluster, skipped and new ones included.
fn expected_peers(plan: &Plan, family: Family) -> usize {
    let count = |view: &FamilyPeers| view.peers.len() + view.skipped.len() + view.waiting.len();
    plan.peers.families.get(&family).map_or(0, count)
}

fn addresses(observed: Observed<'_>, overlay: &OverlayPlan) -> AddressUsage {
    // A podCIDR that is too small for any pod has no capacity.
    let capacity = |own: &overlay::LocalVtep| {
        Range::new(own.pod_cidr).map_or(0, |range| i64::try_from(range.capacity()).unwrap_or(i64::MAX))
    };
    let used: usize = overlay.own.keys().map(|family| observed.pods.addresses(*family)).sum();
    AddressUsage {
        used: i64::try_from(used).unwrap_or(i64::MAX),
        capacity: overlay.own.values().map(capacity).fold(0, i64::saturating_add),
    }
}

fn policy(index: &Index, commits: Commits) -> PolicyStatus {
    let mut rejected: BTreeMap<String, String> = BTreeMap::new();
    for part in index.rejected() {
        let reason = rejected.entry(part.policy.to_string()).or_default();
        if !reason.is_empty() {
            reason.push_str("; ");
        }
        reason.push_str(&format!("{}: {}", part.path, part.reason));
    }
    let rejected = rejected.into_iter().take(MAX_REJECTED);
    PolicyStatus {
        generation: i64::try_from(commits.count).unwrap_or(i64::MAX),
        endpoints: int(index.endpoints().len()),
        policies: int(policies(index)),
        last_apply_millis: int(commits.latency.as_millis()),
        rejected: rejected
            .map(|(policy, reason)| RejectedPolicy { policy, reason: truncate(reason, MAX_REASON) })
            .collect(),
    }
}

fn drift(drift: &Drift) -> DriftStatus {
    let repair = drift
        .last
        .as_ref()
        .map(|last| Repair { object: truncate(last.object.clone(), MAX_OBJECT), time: api_time(last.at) });
    DriftStatus { repairs: i64::try_from(drift.repairs).unwrap_or(i64::MAX), last_repair: repair }
}

fn uplink(uplink: &overlay::Uplink) -> UplinkStatus {
    UplinkStatus {
        name: uplink.name.to_string(),
        index: int(uplink.index.0),
        mtu: int(uplink.mtu),
        addresses: uplink.addresses.values().map(ToString::to_string).collect(),
        chosen_by: match uplink.chosen_by {
            overlay::uplink::UplinkReason::DefaultRoute(_) => UplinkSelection::DefaultRoute,
            overlay::uplink::UplinkReason::NodeAddress(_) => UplinkSelection::NodeAddress,
            overlay::uplink::UplinkReason::Name => UplinkSelection::Name,
            overlay::uplink::UplinkReason::Cidr(_) => UplinkSelection::Cidr,
            overlay::uplink::UplinkReason::Address(_) => UplinkSelection::Annotation,
        },
    }
}

/// A number for the API, which has no unsigned ones.
fn int<N: TryInto<i32>>(number: N) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

pub(super) fn truncate(text: String, most: usize) -> String {
    if text.chars().count() <= most { text } else { text.chars().take(most - 1).chain(['…']).collect() }
}
