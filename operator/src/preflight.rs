//! Checks the configuration against the cluster before anything is rolled out. Pure.
//!
//! A failed check holds a *new* revision. The revision that was rolled out before is still reconciled, because a node
//! that joins without a podCIDR must not leave the other nodes without repairs.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use towpath_crds::{
    condition::ConfigReason,
    config_status::{Check, CheckResult, ValueSource},
};

use crate::{
    discover::PodNetwork,
    facts::{NodeFacts, ReportFacts},
    spec::family_name,
    store::Store,
};

/// How long a new Node may be without a podCIDR: the allocator runs after the object is created.
const ALLOCATION_GRACE: SignedDuration = SignedDuration::from_secs(30);
/// Bytes that VXLAN adds over IPv4: outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348).
const OVERHEAD_V4: i32 = 50;
/// Bytes that VXLAN adds over IPv6: as above, with an IPv6 header of 40.
const OVERHEAD_V6: i32 = 70;
/// Most names in a message.
const MAX_NAMED: usize = 5;

/// The inputs of the checks.
#[derive(Clone, Copy, Debug)]
pub struct PreflightInputs<'a> {
    /// The pod network, if one is known.
    pub network: Option<&'a PodNetwork>,
    /// `spec.mtu`, in bytes.
    pub mtu: Option<i32>,
    /// The Nodes.
    pub nodes: &'a Store<NodeFacts>,
    /// The agents' reports, by node.
    pub reports: &'a Store<ReportFacts>,
    /// The ranges of Services, by ServiceCIDR.
    pub service_cidrs: &'a Store<Vec<IpNet>>,
    /// Current time.
    pub now: Timestamp,
}

/// The result of all checks.
#[derive(Clone, Debug, PartialEq)]
pub struct PreflightOutcome {
    /// Every check, in the order in which it ran.
    pub checks: Vec<Check>,
    /// The first failed check, if any.
    pub failure: Option<PreflightFailure>,
    /// When the outcome may change by itself, because a new Node's grace ends.
    pub replan_at: Option<Timestamp>,
}

/// A failed check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightFailure {
    /// The reason for the conditions.
    pub reason: ConfigReason,
    /// What was found, and what to do about it.
    pub message: String,
}

enum CheckOutcome {
    Passed(String),
    Skipped(String),
    Failed(ConfigReason, String),
}

/// Runs every check.
#[must_use]
pub fn run(inputs: &PreflightInputs<'_>) -> PreflightOutcome {
    let outcomes = [
        ("PodNetworkKnown", pod_network_known(inputs)),
        ("NodesHavePodCIDRs", nodes_have_pod_cidrs(inputs)),
        ("NodePodCIDRsFit", node_pod_cidrs_fit(inputs)),
        ("NoOverlapWithServices", no_overlap_with_services(inputs)),
        ("NoOverlapWithNodes", no_overlap_with_nodes(inputs)),
        ("MTUFitsUplinks", mtu_fits_uplinks(inputs)),
    ];
    let mut preflight = PreflightOutcome { checks: Vec::new(), failure: None, replan_at: end_of_grace(inputs) };
    for (name, outcome) in outcomes {
        let (result, message) = match outcome {
            CheckOutcome::Passed(message) => (CheckResult::Passed, message),
            CheckOutcome::Skipped(message) => (CheckResult::Skipped, message),
            CheckOutcome::Failed(reason, message) => {
                preflight.failure.get_or_insert(PreflightFailure { reason, message: message.clone() });
                (CheckResult::Failed, message)
            }
        };
        preflight.checks.push(Check { name: name.to_owned(), result, message });
    }
    preflight
}

/// The CIDRs of the pod network; empty while it is unknown.
fn cidrs<'a>(inputs: &PreflightInputs<'a>) -> &'a [IpNet] {
    inputs.network.map(|network| network.cidrs.as_slice()).unwrap_or_default()
}

fn pod_network_known(inputs: &PreflightInputs<'_>) -> CheckOutcome {
    match inputs.network {
        Some(network) => CheckOutcome::Passed(format!("the pod network is {}", join(&network.cidrs))),
        None => CheckOutcome::Failed(
            ConfigReason::PodCIDRMissing,
            "no pod network is known: set spec.podCIDRs, or run kube-controller-manager with --allocate-node-cidrs and \
             --cluster-cidr so that Nodes get podCIDRs"
                .to_owned(),
        ),
    }
}

fn is_in_grace(node: &NodeFacts, now: Timestamp) -> bool {
    node.created.is_some_and(|created| now < created + ALLOCATION_GRACE)
}

fn end_of_grace(inputs: &PreflightInputs<'_>) -> Option<Timestamp> {
    let waiting = inputs.nodes.iter().map(|(_, node)| node).filter(|node| node.pod_cidrs.is_empty());
    waiting
        .filter(|node| is_in_grace(node, inputs.now))
        .filter_map(|node| node.created)
        .min()
        .map(|at| at + ALLOCATION_GRACE)
}

fn nodes_have_pod_cidrs(inputs: &PreflightInputs<'_>) -> CheckOutcome {
    let mut without = Vec::new();
    let mut waiting = 0;
    for (name, node) in inputs.nodes.iter() {
        if let Some(missing) = cidrs(inputs).iter().find(|c| !node.pod_cidrs.iter().any(|n| same_family(c, n))) {
            if is_in_grace(node, inputs.now) {
                waiting += 1;
            } else {
                without.push(format!("{name} ({})", family_name(missing)));
            }
        }
    }
    if without.is_empty() {
        let count = inputs.nodes.iter().count();
        return match waiting {
            0 => CheckOutcome::Passed(format!("nodes with a podCIDR: {count} of {count}")),
            n => CheckOutcome::Passed(format!("nodes with a podCIDR: {} of {count}; the others are new", count - n)),
        };
    }
    CheckOutcome::Failed(
        ConfigReason::PodCIDRMissing,
        format!(
            "no podCIDR on {}: run kube-controller-manager with --allocate-node-cidrs and a --cluster-cidr that has room, \
             or set spec.podCIDR of the Node when you create it",
            name_some(&without)
        ),
    )
}

fn node_pod_cidrs_fit(inputs: &PreflightInputs<'_>) -> CheckOutcome {
    let network = cidrs(inputs);
    let pod_cidrs: Vec<(&str, IpNet)> =
        inputs.nodes.iter().flat_map(|(name, node)| node.pod_cidrs.iter().map(move |cidr| (name, *cidr))).collect();
    let outside: Vec<String> = pod_cidrs
        .iter()
        .filter(|(_, cidr)| network.iter().any(|n| same_family(n, cidr)))
        .filter(|(_, cidr)| !network.iter().any(|n| n.contains(cidr)))
        .map(|(name, cidr)| format!("{name} ({cidr})"))
        .collect();
    if !outside.is_empty() {
        return CheckOutcome::Failed(
            ConfigReason::PodCIDRConflict,
            format!(
                "podCIDRs outside the pod network {}: {}: widen spec.podCIDRs, or recreate these Nodes with a podCIDR inside",
                join(network),
                name_some(&outside)
            ),
        );
    }
    let pairs = overlapping_pod_cidrs(&pod_cidrs);
    if !pairs.is_empty() {
        return CheckOutcome::Failed(
            ConfigReason::PodCIDRConflict,
            format!("podCIDRs of nodes overlap: {}: recreate one Node of each pair", name_some(&pairs)),
        );
    }
    CheckOutcome::Passed(format!("{} podCIDRs are inside the pod network and do not overlap", pod_cidrs.len()))
}

/// Pairs of nodes whose podCIDRs overlap. CIDRs are nested or disjoint, so comparing sorted neighbours is enough.
fn overlapping_pod_cidrs(pod_cidrs: &[(&str, IpNet)]) -> Vec<String> {
    let mut sorted: Vec<_> =
        pod_cidrs.iter().map(|(name, cidr)| (cidr.network(), cidr.prefix_len(), *cidr, *name)).collect();
    sorted.sort();
    let mut pairs = Vec::new();
    let mut widest: Option<(IpNet, &str)> = None;
    for (_, _, cidr, name) in sorted {
        match widest {
            Some((wide, owner)) if wide.contains(&cidr) => {
                if owner != name {
                    pairs.push(format!("{owner} ({wide}) and {name} ({cidr})"));
                }
            }
            Some(_) | None => widest = Some((cidr, name)),
        }
    }
    pairs
}

fn no_overlap_with_services(inputs: &PreflightInputs<'_>) -> CheckOutcome {
    if !inputs.service_cidrs.is_served() || inputs.service_cidrs.is_empty() {
        return CheckOutcome::Skipped(
            "the cluster has no ServiceCIDR objects (networking.k8s.io/v1, Kubernetes 1.33 and later)".to_owned(),
        );
    }
    for (_, services) in inputs.service_cidrs.iter() {
        for service in services {
            if let Some(pods) = cidrs(inputs).iter().find(|pods| overlap(pods, service)) {
                return CheckOutcome::Failed(
                    ConfigReason::CIDROverlap,
                    format!("pods ({pods}) and Services ({service}) overlap: {}", other_range(inputs)),
                );
            }
        }
    }
    if let Some(name) = inputs.service_cidrs.never_decoded().next() {
        return CheckOutcome::Skipped(format!(
            "ServiceCIDR {name} cannot be decoded: see the operator's log for the error"
        ));
    }
    CheckOutcome::Passed("the pod network does not overlap with Services".to_owned())
}

fn no_overlap_with_nodes(inputs: &PreflightInputs<'_>) -> CheckOutcome {
    let mut inside = Vec::new();
    for (name, node) in inputs.nodes.iter() {
        for address in &node.addresses {
            if cidrs(inputs).iter().any(|pods| pods.contains(address)) {
                inside.push(format!("{name} ({address})"));
            }
        }
    }
    if inside.is_empty() {
        return CheckOutcome::Passed("the pod network does not contain a node address".to_owned());
    }
    CheckOutcome::Failed(
        ConfigReason::CIDROverlap,
        format!(
            "node addresses lie inside the pod network {}: {}: {}",
            join(cidrs(inputs)),
            name_some(&inside),
            other_range(inputs)
        ),
    )
}

fn other_range(inputs: &PreflightInputs<'_>) -> &'static str {
    match inputs.network.map(|network| network.source) {
        Some(ValueSource::Spec) => "choose another range in spec.podCIDRs",
        Some(
            ValueSource::NodePodCIDRs
            | ValueSource::ServiceCIDRObjects
            | ValueSource::NodeReports
            | ValueSource::Unknown,
        )
        | None => "the range was derived from Node.spec.podCIDRs; name the right one in spec.podCIDRs",
    }
}

fn mtu_fits_uplinks(inputs: &PreflightInputs<'_>) -> CheckOutcome {
    let Some(mtu) = inputs.mtu else {
        return CheckOutcome::Passed("each node takes its uplink's MTU minus the overhead".to_owned());
    };
    let mut known = 0;
    let mut small = Vec::new();
    for (name, report) in inputs.reports.iter().filter(|(name, _)| inputs.nodes.contains(name)) {
        let Some(uplink) = &report.uplink else { continue };
        known += 1;
        let overhead = if uplink.addresses.iter().any(IpAddr::is_ipv6) { OVERHEAD_V6 } else { OVERHEAD_V4 };
        if mtu + overhead > uplink.mtu {
            small.push((uplink.mtu - overhead, format!("{name} ({} has {})", uplink.name, uplink.mtu)));
        }
    }
    let most = small.iter().map(|(fits, _)| *fits).min();
    match most {
        Some(most) => CheckOutcome::Failed(
            ConfigReason::MTUTooLarge,
            format!(
                "spec.mtu {mtu} does not fit the uplink of {}: set it to at most {most}, or leave it unset",
                name_some(&small.into_iter().map(|(_, text)| text).collect::<Vec<_>>())
            ),
        ),
        None if known == 0 => CheckOutcome::Skipped("no node has reported its uplink yet".to_owned()),
        None => CheckOutcome::Passed(format!("spec.mtu {mtu} fits {known} uplinks")),
    }
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    family_name(a) == family_name(b)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn join(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The first names, and how many more there are.
pub(crate) fn name_some(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
